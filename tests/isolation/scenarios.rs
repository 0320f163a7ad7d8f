//! What happens to a request on its way.

use std::convert::Infallible;
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream;
use reqwest::{Body, Url};
use reqwest_failover::{Exhausted, Hedge, ProviderChain, Report, Route, harden};
use reqwest_middleware::{ClientBuilder, RequestBuilder};
use reqwest_retry::RetryTransientMiddleware;
use reqwest_retry::policies::ExponentialBackoff;

use crate::forms::Form;
use crate::harness::{BYSTANDER, Harness, built, client};
use crate::support::harness::{BODY, local};

/// What a provider's server does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Behaviour {
    Serves,
    Fails,
    SaysTheKey,
    Stalls,
    Resets,
    LeadsAway,
    LeadsToTheThird,
}

pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) answers: [Behaviour; 3],
    way: Way,
    /// Which servers a request reaches.
    pub(crate) asked: [bool; 4],
}

/// How the request is sent. Unless said otherwise it is addressed below the third provider's base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Plain,
    ToldAsError,
    Twice,
    TwentyAtOnce,
    RefusedPath,
    /// To a host that is no provider's.
    Unclaimed,
    /// To the third provider's host, and not below its base.
    NextToABase,
    /// Below a base that the chain claims, and that is no provider's.
    Claimed,
    PrepareLeadsAway,
    /// Another chain below this one claims the first provider's base for the third.
    Stacked,
    StreamThatFits,
    StreamOfUnknownLength,
    Reordered,
    Isolated,
    Routed,
    RetriedBelow,
    Hedged,
    Dropped,
    /// Every provider's key was replaced before.
    Rekeyed,
    /// The third takes the place of the others, before the request.
    Replaced,
    /// The same while another request waits for the first.
    ReplacedMeanwhile,
}

pub(crate) const SCENARIOS: &[Scenario] = {
    use Behaviour::{Fails, LeadsAway, LeadsToTheThird, Resets, SaysTheKey, Serves, Stalls};
    use Way::*;
    const NONE: [bool; 4] = [false, false, false, false];
    const FIRST: [bool; 4] = [true, false, false, false];
    const SECOND: [bool; 4] = [false, true, false, false];
    const BOTH: [bool; 4] = [true, true, false, false];
    const THREE: [bool; 4] = [true, true, true, false];
    const LAST: [bool; 4] = [false, false, true, false];
    const LAST_TWO: [bool; 4] = [false, true, true, false];
    const ELSEWHERE: [bool; 4] = [false, false, false, true];
    &[
        row("the first serves", [Serves; 3], Plain, FIRST),
        row("the first fails", [Fails, Serves, Serves], Plain, BOTH),
        row("two fail", [Fails, Fails, Serves], Plain, THREE),
        row("all fail", [Fails; 3], Plain, THREE),
        row("all fail, told as one error", [Fails; 3], ToldAsError, THREE),
        row("all say the key aloud", [SaysTheKey; 3], ToldAsError, THREE),
        row("two say the key aloud", [SaysTheKey, SaysTheKey, Serves], Plain, THREE),
        row("the first times out", [Stalls, Serves, Serves], Plain, BOTH),
        row("the first resets the connection", [Resets, Serves, Serves], Plain, BOTH),
        row("a redirect elsewhere", [LeadsAway, Serves, Serves], Plain, BOTH),
        row("a redirect to another provider", [LeadsToTheThird, Serves, Serves], Plain, BOTH),
        row("redirects at all", [LeadsAway; 3], Plain, THREE),
        row("two requests over the same connections", [Fails, Serves, Serves], Twice, BOTH),
        row("twenty at once", [Fails, Fails, Serves], TwentyAtOnce, THREE),
        row("a path that is refused", [Serves; 3], RefusedPath, NONE),
        row("a URL below no base", [Serves; 3], Unclaimed, ELSEWHERE),
        row("a URL next to a base", [Serves; 3], NextToABase, LAST),
        row("a URL that is claimed", [Fails, Fails, Serves], Claimed, THREE),
        row("a `map_request` that leads away", [Serves; 3], PrepareLeadsAway, SECOND),
        row("a chain below this one", [Serves, Serves, Fails], Stacked, LAST_TWO),
        row("a stream that can be replayed", [Fails, Serves, Serves], StreamThatFits, BOTH),
        row("a stream that is sent once", [Fails, Serves, Serves], StreamOfUnknownLength, FIRST),
        row("in another order", [Serves, Serves, Fails], Reordered, LAST_TWO),
        row("the first isolated", [Serves; 3], Isolated, SECOND),
        row("routed to the second alone", [Serves, Fails, Serves], Routed, SECOND),
        row("retried below the chain", [Fails, Serves, Serves], RetriedBelow, BOTH),
        row("hedged while one is silent", [Stalls, Serves, Serves], Hedged, BOTH),
        row("a hedge that fails", [Stalls, Fails, Serves], Hedged, THREE),
        row("dropped by its caller", [Stalls, Serves, Serves], Dropped, FIRST),
        row("with keys that replaced others", [Fails, SaysTheKey, Serves], Rekeyed, THREE),
        row("the others replaced", [Serves; 3], Replaced, LAST),
        row("replaced meanwhile", [Stalls, Serves, Serves], ReplacedMeanwhile, THREE),
    ]
};

const fn row(name: &'static str, answers: [Behaviour; 3], way: Way, asked: [bool; 4]) -> Scenario {
    Scenario { name, answers, way, asked }
}

impl Scenario {
    /// For what is sent in another way.
    pub(crate) const fn new(name: &'static str, answers: [Behaviour; 3], asked: [bool; 4]) -> Self {
        row(name, answers, Way::Plain, asked)
    }

    /// Whether a provider that is asked is sent its own key.
    pub(crate) fn is_given_its_own(&self, form: Form, at: usize) -> bool {
        match (form, self.way) {
            // The request is the caller's, as it is.
            (_, Way::NextToABase | Way::Unclaimed) => form == Form::Forwarded && at == 2,
            // Only what is addressed to a provider is forwarded to it.
            (Form::Forwarded, Way::Claimed | Way::Stacked) => at != 2,
            _ => true,
        }
    }

    /// Whether a server is sent the caller's own credential: where the caller sent it, past the
    /// chain.
    pub(crate) fn is_given_the_callers(&self, form: Form, at: usize) -> bool {
        let has_one = form.is_callers();
        match self.way {
            Way::Unclaimed => has_one && at == BYSTANDER,
            Way::NextToABase => has_one && form != Form::Forwarded && at == 2,
            _ => false,
        }
    }

    pub(crate) async fn play(&self, harness: &Harness) {
        let chain = harness.chain();
        let path = "/v1/chat/completions";
        match self.way {
            Way::Plain => send(harness, harness.post(&client(chain), 2, path)).await,
            Way::ToldAsError => {
                let chain = chain.on_exhausted(Exhausted::Error);
                send(harness, harness.post(&client(chain), 2, path)).await;
            }
            Way::Twice => {
                let client = client(chain);
                for _ in 0..2 {
                    send(harness, harness.post(&client, 2, path)).await;
                }
            }
            Way::TwentyAtOnce => {
                let client = client(chain);
                join_all((0..20).map(|_| send(harness, harness.post(&client, 2, path)))).await;
            }
            Way::RefusedPath => {
                send(harness, harness.post(&client(chain), 2, "/v1/..%2fadmin")).await
            }
            Way::Unclaimed => send(harness, harness.post(&client(chain), BYSTANDER, path)).await,
            Way::NextToABase => send(harness, harness.post(&client(chain), 2, "/v10/models")).await,
            Way::Claimed => {
                let client = client(chain.claim("http://claimed.test/v1"));
                let url = "http://claimed.test/v1/chat/completions".to_owned();
                send(harness, harness.post_to(&client, url)).await;
            }
            Way::PrepareLeadsAway => {
                let away = Url::parse(&harness.servers[BYSTANDER].base_url(path)).expect("a URL");
                let first = harness.provider(0).map_request(move |request| {
                    *request.url_mut() = away.clone();
                    Ok::<_, Infallible>(())
                });
                let chain =
                    ProviderChain::builder([first, harness.provider(1), harness.provider(2)]);
                send(harness, harness.post(&client(chain), 2, path)).await;
            }
            Way::Stacked => {
                let outer = ProviderChain::builder([harness.provider(0), harness.provider(1)]);
                let inner = ProviderChain::builder([harness.provider(2)]).nested();
                let inner = inner.claim(harness.servers[0].base_url("/v1"));
                let http = local(harden(reqwest::Client::builder()));
                let client = ClientBuilder::new(http).with(built(outer)).with(built(inner)).build();
                send(harness, harness.post(&client, 1, path)).await;
            }
            Way::StreamThatFits => {
                let request = harness.post(&client(chain), 2, path);
                let length = BODY.len().to_string();
                send(harness, request.header("content-length", length).body(streamed())).await;
            }
            Way::StreamOfUnknownLength => {
                send(harness, harness.post(&client(chain), 2, path).body(streamed())).await;
            }
            Way::Reordered | Way::Isolated => {
                let chain = built(chain);
                match self.way {
                    Way::Reordered => chain.set_order(["third", "second", "first"]),
                    _ => chain.isolate("first"),
                }
                .expect("names of the chain");
                let http = local(harden(reqwest::Client::builder()));
                let client = ClientBuilder::new(http).with(chain).build();
                send(harness, harness.post(&client, 2, path)).await;
            }
            Way::Routed => {
                let request = harness.post(&client(chain), 2, path);
                send(harness, request.with_extension(Route::only(["second"]))).await;
            }
            Way::RetriedBelow => {
                let short = Duration::from_millis(1);
                let policy = ExponentialBackoff::builder().retry_bounds(short, short);
                let retry =
                    RetryTransientMiddleware::new_with_policy(policy.build_with_max_retries(1));
                let http = local(harden(reqwest::Client::builder()));
                let client = ClientBuilder::new(http).with(built(chain)).with(retry).build();
                send(harness, harness.post(&client, 2, path)).await;
            }
            Way::Hedged => {
                let hedge = Hedge::after(Duration::from_millis(50)).max_extra(1.0);
                send(harness, harness.post(&client(chain.hedge(hedge)), 2, path)).await;
            }
            Way::Dropped => {
                let client = client(chain);
                let first = &harness.servers[0];
                tokio::select! {
                    () = send(harness, harness.post(&client, 2, path)) => {}
                    () = first.until(|first| !first.requests().is_empty()) => {}
                }
            }
            Way::Rekeyed => {
                let old = (0..3).map(|at| harness.provider_before(at));
                let chain = built(ProviderChain::builder(old).without_health());
                chain.replace((0..3).map(|at| harness.provider(at))).expect("a list");
                let http = local(harden(reqwest::Client::builder()));
                let client = ClientBuilder::new(http).with(chain).build();
                send(harness, harness.post(&client, 2, path)).await;
            }
            Way::Replaced | Way::ReplacedMeanwhile => {
                let others = [harness.provider(0), harness.provider(1)];
                let base = harness.servers[2].base_url("/v1");
                let chain = built(ProviderChain::builder(others).claim(base).without_health());
                let http = local(harden(reqwest::Client::builder()));
                let client = ClientBuilder::new(http).with(chain.clone()).build();
                let before = async {
                    if self.way == Way::ReplacedMeanwhile {
                        send(harness, harness.post(&client, 1, path)).await;
                    }
                };
                let after = async {
                    if self.way == Way::ReplacedMeanwhile {
                        harness.servers[0].until(|first| !first.requests().is_empty()).await;
                    }
                    chain.replace([harness.provider(2)]).expect("a list");
                    send(harness, harness.post(&client, 2, path)).await;
                };
                tokio::join!(before, after);
            }
        }
    }
}

fn streamed() -> Body {
    Body::wrap_stream(stream::iter([Ok::<_, Infallible>(BODY)]))
}

/// Sends it, reads the answer, and keeps what anyone could print of it.
pub(crate) async fn send(harness: &Harness, request: RequestBuilder) {
    match request.send().await {
        Ok(response) => {
            let report = Report::of(&response);
            harness.hear(format!("{report:?}"));
            // It shows its URL: the caller's own, with the caller's own key in its query, where the
            // request was not the chain's, or where that key was forwarded.
            if report.is_some() && harness.form != Form::Forwarded {
                harness.hear(format!("{response:?}"));
            }
            let _ = response.bytes().await;
        }
        Err(error) => harness.hear(format!("{error} {error:?}")),
    }
}
