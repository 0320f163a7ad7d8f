//! Providers in their order, each with a key of its own. When a harness is dropped, what every server
//! was sent and all that was said and logged is searched for keys.

use std::fmt::Display;
use std::sync::Mutex;

use reqwest_failover::{Provider, ProviderChain, ProviderChainBuilder, Report};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware, RequestBuilder};

use super::canary::{assert_no_foreign_keys, assert_no_key, canary, logs};
use super::{Received, Script, Server, lock};

/// A chat-completions body with what a careless layer would change: order, spacing, escapes.
pub const BODY: &str = "{\"model\": \"gpt-5\",  \"b\":1,\"a\":1.0, \"text\":\"\\u00e9 é \\/\" }\n";

pub struct WireHarness {
    pub actors: Vec<Actor>,
    secrets: Mutex<Vec<String>>,
    said: Mutex<String>,
}

pub struct Actor {
    pub name: &'static str,
    pub server: Server,
    pub key: String,
}

impl Actor {
    /// With a base that ends in `/v1`, and a bearer key.
    pub fn provider(&self) -> Provider {
        self.keyless().bearer_auth(&self.key)
    }

    pub fn keyless(&self) -> Provider {
        Provider::new(self.name, self.server.base_url("/v1"))
    }

    pub fn url(&self, suffix: &str) -> String {
        self.server.base_url(&format!("/v1{suffix}"))
    }
}

impl WireHarness {
    pub async fn of<const N: usize>(scripts: [(&'static str, Script); N]) -> Self {
        let mut actors = Vec::new();
        for (name, script) in scripts {
            let server = Server::start(script).await;
            actors.push(Actor { name, server, key: canary(name) });
        }
        Self { actors, secrets: Mutex::default(), said: Mutex::default() }
    }

    /// `cometapi` and `openai`.
    pub async fn two(first: impl Into<Script>, second: impl Into<Script>) -> Self {
        Self::of([("cometapi", first.into()), ("openai", second.into())]).await
    }

    pub fn providers(&self) -> Vec<Provider> {
        self.actors.iter().map(Actor::provider).collect()
    }

    pub fn chain(&self) -> ProviderChainBuilder {
        ProviderChain::builder(self.providers())
    }

    pub fn client(&self) -> ClientWithMiddleware {
        client(self.chain())
    }

    /// A POST of [`BODY`] below the last provider's base, as a user of OpenAI would write it.
    pub fn post(&self, client: &ClientWithMiddleware) -> RequestBuilder {
        let url = self.actors.last().unwrap().url("/chat/completions");
        client.post(url).header("content-type", "application/json").body(BODY)
    }

    pub fn requests(&self, actor: usize) -> Vec<Received> {
        self.actors[actor].server.requests()
    }

    /// How many requests arrived whole at each provider, and each with its own bearer key.
    #[track_caller]
    pub fn assert_asked(&self, counts: &[usize]) {
        let asked: Vec<_> =
            (0..self.actors.len()).map(|actor| self.requests(actor).len()).collect();
        assert_eq!(asked, counts, "requests at each provider");
        for actor in &self.actors {
            for request in actor.server.requests() {
                let bearer = format!("Bearer {}", actor.key);
                assert_eq!(request.header("authorization"), Some(&*bearer), "at {}", actor.name);
            }
        }
    }

    /// No provider was even connected to.
    #[track_caller]
    pub fn assert_untouched(&self) {
        for actor in &self.actors {
            assert_eq!(actor.server.connections(), 0, "connections to {}", actor.name);
        }
    }

    /// A secret that no provider may see and no text may show.
    pub fn secret(&self, name: &str) -> String {
        let secret = canary(name);
        lock(&self.secrets).push(secret.clone());
        secret
    }

    /// Something that was shown to a caller.
    pub fn hear(&self, text: impl Display) -> String {
        let text = text.to_string();
        *lock(&self.said) += &format!("{text}\n");
        text
    }
}

impl Drop for WireHarness {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let secrets = lock(&self.secrets).clone();
        let own = self.actors.iter().map(|actor| &actor.key);
        let keys: Vec<&str> = own.chain(&secrets).map(String::as_str).collect();
        let servers: Vec<_> =
            self.actors.iter().map(|actor| (&actor.server, actor.key.as_str())).collect();
        assert_no_foreign_keys(&servers, &keys);
        assert_no_key(&lock(&self.said), &keys);
        assert_no_key(&logs(), &keys);
    }
}

/// The chain alone above a plain client that ignores the proxies of this machine.
pub fn client(chain: ProviderChainBuilder) -> ClientWithMiddleware {
    let chain = chain.build().expect("a chain");
    ClientBuilder::new(plain()).with(chain).build()
}

pub fn plain() -> reqwest::Client {
    local(reqwest::Client::builder())
}

/// For loopback: no proxy, and no certificates, which take longer to read than most tests.
pub fn local(builder: reqwest::ClientBuilder) -> reqwest::Client {
    trusting(builder.no_proxy().no_gzip(), []).build().unwrap()
}

/// A client that trusts these certificates and no others.
pub fn trusting(
    builder: reqwest::ClientBuilder,
    certificates: impl IntoIterator<Item = reqwest::Certificate>,
) -> reqwest::ClientBuilder {
    #[cfg(not(feature = "reqwest-012"))]
    return builder.tls_certs_only(certificates);
    #[cfg(feature = "reqwest-012")]
    certificates
        .into_iter()
        .fold(builder.tls_built_in_root_certs(false), reqwest::ClientBuilder::add_root_certificate)
}

/// `cometapi 503 in # ms → openai 200 in # ms`
pub fn line(report: &Report) -> String {
    let line = report.to_string();
    let mut words: Vec<_> = line.split(' ').collect();
    for at in 1..words.len() {
        if words[at - 1] == "in" && words[at].parse::<f64>().is_ok() {
            words[at] = "#";
        }
    }
    words.join(" ")
}
