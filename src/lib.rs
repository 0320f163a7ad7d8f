//! Automatic failover and fallback for [`reqwest`]: each request goes to the first healthy API provider
//! and, when that one fails, to the next.
//!
//! A [`ProviderChain`] is one [`reqwest_middleware`] layer. It holds an ordered list of [`Provider`]s: LLM
//! APIs (CometAPI, OpenAI and everything OpenAI-compatible), RPC nodes, mirrors. Each attempt gets that
//! provider's base URL and that provider's key. Method, body and other headers stay as they are. A
//! circuit breaker, cooldowns after rate limits and time limits are on by default.
//!
//! # Use it
//!
//! ```sh
//! cargo add reqwest-failover reqwest@0.13
//! cargo add reqwest-middleware@0.5 --features json
//! ```
//!
//! With `reqwest` 0.12 and `reqwest-middleware` 0.4 take the package `reqwest-failover-012` instead: the same
//! sources, also with the crate name `reqwest_failover`.
//!
//! ```no_run
//! # async fn run(body: serde_json::Value) -> Result<(), Box<dyn std::error::Error>> {
//! use reqwest_failover::{HealthKey, Provider, ProviderChain, Report, harden};
//!
//! let providers = [Provider::cometapi_from_env(), Provider::openai_from_env()];
//! let chain = ProviderChain::builder(providers).health_by(HealthKey::model()).build()?;
//! let http = harden(reqwest::Client::builder()).build()?;
//! let client = reqwest_middleware::ClientBuilder::new(http).with(chain.clone()).build();
//!
//! // The URL is one below any provider's base URL.
//! let url = "https://api.openai.com/v1/chat/completions";
//! let response = client.post(url).json(&body).send().await?;
//! println!("{}", Report::of(&response).unwrap()); // cometapi 503 in 212 ms → openai 200 in 640 ms
//! # Ok(())
//! # }
//! ```
//!
//! # The names of the first day
//!
//! | name | what it is for |
//! |---|---|
//! | [`Provider`] | a base URL and its key |
//! | [`ProviderChain`] | the list, as a layer; its builder has every setting, and the running chain `snapshot`, `isolate`, `restore`, `set_order` |
//! | [`harden`] | prepares the `reqwest::ClientBuilder` below the chain |
//! | [`Report`] | what happened to one request, attempt by attempt |
//! | [`HealthKey`] | health for each model or method, and not for the whole provider |
//! | [`Inspect`] | errors inside a 200, and streams that fail at once |
//! | [`Route`] | which providers one request may go to |
//! | [`Verdict`] | what counts as a failure |
//! | [`FailoverError`] | why no provider served a request |
//! | [`Snapshot`] | how each provider stands, for health pages |
//!
//! # Features
//!
//! | feature | default | adds |
//! |---|---|---|
//! | `tracing` | on | spans and log lines |
//! | `metrics` | off | counters, gauges and histograms through the `metrics` facade |
//! | `serde` | off | `Serialize` for [`Snapshot`], [`Report`], [`State`] |
//! | `fleet` | off | health that many processes share: `fleet`, `share`, `synced` |
//!
//! It works with `reqwest` 0.13 (0.13.4 or newer) and `reqwest-middleware` 0.5, on Rust 1.88 or newer. The package
//! `reqwest-failover-012` works with `reqwest` 0.12 (0.12.23 or newer) and `reqwest-middleware` 0.4.
//!
//! # Guides
//!
#![cfg_attr(doc, doc = include_str!("guide/list.md"))]
#![warn(clippy::disallowed_methods)]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(target_family = "wasm")]
compile_error!("reqwest-failover needs tokio's timers, which wasm32 does not have");

mod cause;
mod chain;
mod error;
#[cfg(feature = "fleet")]
pub mod fleet;
#[cfg(doc)]
pub mod guide;
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
#[cfg(feature = "fleet")]
pub use observe::FleetSnapshot;
pub use observe::{Event, EventOrigin, ProviderSnapshot, Snapshot};
pub use provider::Provider;
pub use report::{Attempt, Report};
pub use route::Route;
pub use run::{Ambiguous, Limits, Replay};
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

/// The page that the repository shows, so that its snippets are compiled.
#[cfg(doctest)]
#[doc = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md"))]
struct Readme;
