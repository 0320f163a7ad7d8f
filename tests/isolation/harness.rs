//! Three providers and a bystander, each on a server of its own that keeps every byte.

use std::sync::Mutex;
use std::time::Duration;

use reqwest_failover::{Provider, ProviderChain, ProviderChainBuilder, harden};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware, RequestBuilder};

use crate::forms::Form;
use crate::scenarios::{Behaviour, Scenario};
use crate::support::canary::{canary, holds_key};
use crate::support::harness::{BODY, local};
use crate::support::{Answer, Received, Script, Server, lock};
use crate::table::{Arrived, Row};

/// Where a key may arrive. The bystander is where a redirect leads, and where a request goes that is
/// none of the chain's.
pub(crate) const PLACES: [&str; 4] = ["first", "second", "third", "bystander"];
pub(crate) const BYSTANDER: usize = 3;

pub(crate) struct Harness {
    pub(crate) form: Form,
    pub(crate) servers: [Server; 4],
    /// The providers' keys. With `forward_caller_auth` the last one's is the caller's.
    pub(crate) keys: [String; 3],
    pub(crate) callers: String,
    answers: [Behaviour; 3],
    /// Keys that were replaced before any request.
    replaced: Mutex<Vec<String>>,
    /// All that the caller was given.
    said: Mutex<String>,
}

impl Harness {
    pub(crate) async fn of(form: Form, scenario: &Scenario) -> Self {
        let mut keys = PLACES.map(canary);
        let [_, _, third, callers] = &mut keys;
        if form == Form::Forwarded {
            third.clone_from(callers);
        }
        let [first, second, third, callers] = keys;
        let bystander = Server::start(Answer::ok()).await;
        let away = bystander.base_url("/v1/elsewhere");
        let last = Server::start(scenario.answers[2].script(&away)).await;
        let next = last.base_url("/v1/chat/completions");
        let [one, two] = [scenario.answers[0], scenario.answers[1]].map(|does| match does {
            Behaviour::LeadsToTheThird => does.script(&next),
            does => does.script(&away),
        });
        Self {
            form,
            servers: [Server::start(one).await, Server::start(two).await, last, bystander],
            keys: [first, second, third],
            callers,
            answers: scenario.answers,
            replaced: Mutex::default(),
            said: Mutex::default(),
        }
    }

    pub(crate) fn provider(&self, at: usize) -> Provider {
        self.provider_with(at, &self.keys[at])
    }

    /// The provider with a key that is to be replaced.
    pub(crate) fn provider_before(&self, at: usize) -> Provider {
        let key = canary(PLACES[at]);
        lock(&self.replaced).push(key.clone());
        self.provider_with(at, &key)
    }

    fn provider_with(&self, at: usize, key: &str) -> Provider {
        let provider = Provider::new(PLACES[at], self.servers[at].base_url("/v1"));
        let provider = self.form.dress(provider, key, at == 2);
        match self.answers[at] {
            Behaviour::Stalls => provider.attempt_timeout(Duration::from_millis(500)),
            _ => provider,
        }
    }

    pub(crate) fn chain(&self) -> ProviderChainBuilder {
        ProviderChain::builder((0..3).map(|at| self.provider(at))).without_health()
    }

    /// A POST to this path of a server, with the caller's credential.
    pub(crate) fn post(
        &self,
        client: &ClientWithMiddleware,
        at: usize,
        path: &str,
    ) -> RequestBuilder {
        self.post_to(client, self.servers[at].base_url(path))
    }

    pub(crate) fn post_to(&self, client: &ClientWithMiddleware, url: String) -> RequestBuilder {
        let request = client.post(self.form.url(url, &self.callers)).body(BODY);
        self.form.sign(request, &self.callers)
    }

    pub(crate) fn hear(&self, text: String) {
        *lock(&self.said) += &text;
    }

    /// What arrived where, and whether that is what should have.
    pub(crate) fn into_row(self, form: &'static str, scenario: &Scenario) -> Row {
        let arrived = [0, 1, 2, 3].map(|at| self.arrived(at, scenario));
        let mut wrong = Vec::new();
        for (at, found) in arrived.iter().enumerate() {
            let asked = !self.servers[at].requests().is_empty();
            if asked != scenario.asked[at] {
                wrong.push(format!("{} was asked: {asked}", PLACES[at]));
            }
            // A table of servers that nothing reaches would say nothing.
            let own = found.own;
            if at < 3 && own != (asked && scenario.is_given_its_own(self.form, at)) {
                wrong.push(format!("{} was sent its own key: {own}", PLACES[at]));
            }
            if !found.callers && scenario.is_given_the_callers(self.form, at) {
                wrong.push(format!("{} was not sent the caller's", PLACES[at]));
            }
            wrong.extend(found.foreign.iter().map(|key| format!("{} was sent {key}", PLACES[at])));
        }
        let said = lock(&self.said).clone();
        let replaced = lock(&self.replaced).clone();
        let secrets = self.keys.iter().chain([&self.callers]).chain(&replaced);
        let shown = secrets.filter(|secret| holds_key(&said, secret));
        wrong.extend(shown.map(|secret| format!("{secret} is shown in {said}")));
        Row { form, scenario: scenario.name, arrived, wrong }
    }

    fn arrived(&self, at: usize, scenario: &Scenario) -> Arrived {
        let raw = self.servers[at].raw().concat();
        let raw = String::from_utf8_lossy(&raw);
        let own = at < 3 && holds_key(&raw, &self.keys[at]);
        let is_callers = self.form == Form::Forwarded && at == 2;
        let callers = !is_callers && holds_key(&raw, &self.callers);
        let mut foreign: Vec<_> = (0..3)
            .filter(|other| *other != at && self.keys[*other] != self.callers)
            .filter(|other| holds_key(&raw, &self.keys[*other]))
            .map(|other| format!("the {}'s", PLACES[other]))
            .collect();
        let is_sent = |key: &&String| holds_key(&raw, key);
        let replaced = lock(&self.replaced).iter().filter(is_sent).count();
        foreign.extend((0..replaced).map(|_| "a replaced one".to_owned()));
        if callers && !scenario.is_given_the_callers(self.form, at) {
            foreign.push("the caller's".to_owned());
        }
        let asked = self.servers[at].requests().len();
        Arrived { asked, own, callers, foreign }
    }
}

impl Behaviour {
    fn script(self, leads_to: &str) -> Script {
        let redirect = Answer::status(307).header("location", leads_to);
        match self {
            Self::Serves => Answer::ok().into(),
            Self::Fails => Answer::error(500, "broken").into(),
            Self::SaysTheKey => Script::from(|request: &Received| {
                let values: Vec<_> = request.headers.iter().map(|(_, value)| &**value).collect();
                let echo = format!("no: {} {}", request.target, values.join(" "));
                Answer::error(401, &echo)
            }),
            Self::Stalls => Answer::stall().into(),
            Self::Resets => Answer::reset().into(),
            Self::LeadsAway | Self::LeadsToTheThird => redirect.into(),
        }
    }
}

/// The chain above a client that is set up as the documentation says.
pub(crate) fn client(chain: ProviderChainBuilder) -> ClientWithMiddleware {
    let http = local(harden(reqwest::Client::builder()));
    ClientBuilder::new(http).with(built(chain)).build()
}

pub(crate) fn built(chain: ProviderChainBuilder) -> ProviderChain {
    chain.build().expect("a chain")
}
