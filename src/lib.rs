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

/// Prepares a client so that this layer sees what really happened: redirects off, no referer, and a
/// connect timeout of 10 s, in place of what was set before. Call it first, and
/// `.connect_timeout(..)` after it for another one.
///
/// Redirects are followed below every middleware. One that leads elsewhere would carry a request, and
/// what it holds, to a host that was not configured, and turn a POST into a GET on the way.
///
/// `reqwest` itself repeats a request whose HTTP/2 stream was refused or lies beyond a GOAWAY, which
/// proves that it was not processed. That stays on: it costs the provider no failure.
///
/// With another client a response from another origin or path counts as a failure (a GET or HEAD may
/// be redirected below the provider's own base URL), but by then the redirect was followed. `reqwest`
/// removes `authorization` and cookies on the way to another host, and no other header, so an
/// [`api_key_header`](Provider::api_key_header) would be sent there. It also sends the URL as the
/// `Referer`, and so an [`api_key_query`](Provider::api_key_query). A POST that is redirected to its own
/// URL comes back as the answer to a GET, which nothing can detect.
///
/// Proxies, cookie stores and `default_headers` are left as they are, and work below every layer. A
/// proxy reads what is sent over `http://`, also to loopback: `reqwest` takes `HTTP_PROXY` from the
/// environment and makes no exception of loopback, and offers no way to make one. So with a provider
/// on loopback call `.no_proxy()` on the builder, or set `NO_PROXY=localhost,127.0.0.1,::1`.
///
/// ```
/// let client = reqwest_failover::harden(reqwest::Client::builder()).build()?;
/// # Ok::<(), reqwest::Error>(())
/// ```
pub fn harden(builder: reqwest::ClientBuilder) -> reqwest::ClientBuilder {
    builder
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .connect_timeout(std::time::Duration::from_secs(10))
}

/// The guides, so that their snippets are compiled.
#[cfg(doctest)]
mod guides {
    #[doc = include_str!("../docs/architecture.md")]
    struct Architecture;
    #[doc = include_str!("../docs/choosing.md")]
    struct Choosing;
    #[doc = include_str!("../docs/failover.md")]
    struct Failover;
    #[doc = include_str!("../docs/health.md")]
    struct Health;
    #[doc = include_str!("../docs/keys.md")]
    struct Keys;
    // docs/recipes.md needs the clients that it is about: it is a doctest of `clients`.
    #[doc = include_str!("../docs/observability.md")]
    struct Observability;
    #[doc = include_str!("../docs/performance.md")]
    struct Performance;
    #[doc = include_str!("../docs/runtime.md")]
    struct Runtime;
    #[doc = include_str!("../docs/streams.md")]
    struct Streams;
    #[doc = include_str!("../docs/testing.md")]
    struct Testing;
}
