#![doc = include_str!("../README.md")]
#![warn(clippy::disallowed_methods)]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(target_family = "wasm")]
compile_error!("reqwest-failover needs tokio's timers, which wasm32 does not have");

mod cause;
mod chain;
mod error;
mod health;
mod hedge;
mod inspect;
mod message;
mod observe;
mod provider;
mod readdress;
mod report;
mod route;
mod run;
mod splice;
mod verdict;

pub use chain::{ProviderChain, ProviderChainBuilder};
pub use error::{ConfigError, Exhausted, FailoverError};
pub use health::{Breaker, Cooldown, HealthKey, State};
pub use hedge::Hedge;
pub use inspect::{Answer, Flaw, Inspect};
pub use observe::{Event, ProviderSnapshot, Snapshot};
pub use provider::Provider;
pub use report::{Attempt, Report};
pub use route::Route;
pub use run::{Ambiguous, Replay};
pub use verdict::{Fault, Outcome, Reason, Verdict};

/// Prepares a client so that this layer sees what really happened: redirects off, no referer,
/// reqwest's own retries off, and a connect timeout of 10 s, in place of what was set before. Call
/// it first, and `.connect_timeout(..)` after it for another one.
///
/// Redirects are followed below every middleware. One that leads elsewhere would carry a request,
/// and what it holds, to a host that nobody chose, and turn a POST into a GET on the way. Retries
/// below this layer would send a request again that no report tells of.
///
/// With another client a response from an unexpected URL counts as a failure, but by then the redirect
/// was followed: `reqwest` takes `authorization` and cookies off on the way to another host, and no
/// other header, so that a [`api_key_header`](Provider::api_key_header) would be handed over; and it sends the
/// URL on as the `Referer`, so that a [`api_key_query`](Provider::api_key_query) would be, too. And a POST that
/// is redirected to its own URL comes back as the answer to a GET, which nothing tells apart.
///
/// ```
/// let client = reqwest_failover::harden(reqwest::Client::builder()).build()?;
/// # Ok::<(), reqwest::Error>(())
/// ```
pub fn harden(builder: reqwest::ClientBuilder) -> reqwest::ClientBuilder {
    builder
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .retry(reqwest::retry::never())
        .connect_timeout(std::time::Duration::from_secs(10))
}

/// The guides, so that their snippets are compiled.
#[cfg(doctest)]
mod guides {
    #[doc = include_str!("../docs/architecture.md")]
    struct Architecture;
    #[doc = include_str!("../docs/choosing.md")]
    struct Choosing;
    // docs/recipes.md needs the clients that it is about: it is a doctest of `clients`.
    #[doc = include_str!("../docs/observability.md")]
    struct Observability;
    #[doc = include_str!("../docs/performance.md")]
    struct Performance;
    #[doc = include_str!("../docs/streams.md")]
    struct Streams;
    #[doc = include_str!("../docs/testing.md")]
    struct Testing;
}
