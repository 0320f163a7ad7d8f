//! What every benchmark measures: the same request through one layer after the other, over a
//! terminal that answers at once and without a network.

use std::time::Duration;

use bytes::Bytes;
use http::Extensions;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, USER_AGENT};
use reqwest::{Method, Request, Response, ResponseBuilderExt, Url};
use reqwest_chain::{ChainMiddleware, Chainer};
use reqwest_failover::{Ambiguous, Breaker, HealthKey, Provider, ProviderChain, Route, Verdict};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware, Error, Middleware, Next, Result};
use reqwest_retry::RetryTransientMiddleware;
use reqwest_retry::policies::ExponentialBackoff;

/// A layer, or a situation of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Row {
    /// Nothing but the terminal.
    Bare,
    /// A layer that hands everything on.
    Noop,
    Retry,
    Chain,
    /// A chain of two as `build()` gives it; the first provider answers.
    Ours,
    /// The same with every option that a request passes through.
    Options,
    /// The same with health by model.
    ByModel,
    /// `Ours`, with health that is shared.
    #[cfg(feature = "fleet")]
    Shared,
    /// The first provider answers 503 and the second 200; no breaker.
    FailoverOnce,
    /// The first provider's breaker is open.
    BreakerOpen,
    /// One provider, and no other to fail over to.
    OneUsable,
    /// As `Ours`, with ten and a hundred providers.
    Ten,
    Hundred,
    /// A layer that hands everything on, and `Ours`, where the answer is waited for once, as every real
    /// one is, and the caller sends an `authorization` of its own.
    NoopWaits,
    Waits,
}

impl Row {
    pub(crate) const ALL: &[Self] = &[
        Self::Bare,
        Self::Noop,
        Self::Retry,
        Self::Chain,
        Self::Ours,
        Self::Options,
        Self::ByModel,
        #[cfg(feature = "fleet")]
        Self::Shared,
        Self::FailoverOnce,
        Self::BreakerOpen,
        Self::OneUsable,
        Self::Ten,
        Self::Hundred,
        Self::NoopWaits,
        Self::Waits,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bare => "terminal",
            Self::Noop => "no-op layer",
            Self::Retry => "reqwest-retry",
            Self::Chain => "reqwest-chain",
            Self::Ours => "failover: defaults",
            Self::Options => "failover: every option",
            Self::ByModel => "failover: by model",
            #[cfg(feature = "fleet")]
            Self::Shared => "failover: shared health",
            Self::FailoverOnce => "failover: one failover",
            Self::BreakerOpen => "failover: breaker open",
            Self::OneUsable => "failover: one usable",
            Self::Ten => "failover: 10 providers",
            Self::Hundred => "failover: 100 providers",
            Self::NoopWaits => "no-op layer, waits",
            Self::Waits => "failover: waits",
        }
    }

    pub(crate) fn of_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|row| row.name() == name)
    }
}

/// A client and what it sends.
pub(crate) struct Bench {
    client: ClientWithMiddleware,
    url: Url,
    body: Bytes,
    waits: bool,
}

impl Bench {
    /// `body` is the size of the request's body in bytes.
    pub(crate) async fn new(row: Row, body: usize) -> Self {
        let failing = matches!(row, Row::FailoverOnce | Row::BreakerOpen);
        let waits = matches!(row, Row::NoopWaits | Row::Waits);
        let builder = ClientBuilder::new(reqwest::Client::builder().no_proxy().build().unwrap());
        let builder = match row {
            Row::Bare => builder,
            Row::Noop | Row::NoopWaits => builder.with(Noop),
            Row::Retry => builder.with(RetryTransientMiddleware::new_with_policy(
                ExponentialBackoff::builder().build_with_max_retries(1),
            )),
            Row::Chain => builder.with(ChainMiddleware::new(OnlyOnce)),
            _ => builder.with(chain(row)),
        };
        let bench = Self {
            client: builder.with(Terminal { failing, waits }).build(),
            waits,
            url: Url::parse("https://api.openai.com/v1/chat/completions").unwrap(),
            body: chat(body),
        };
        // The first requests fill caches, and open the breaker where one is to be open.
        for _ in 0..10 {
            bench.send().await;
        }
        bench
    }

    pub(crate) async fn send(&self) {
        let mut request = Request::new(Method::POST, self.url.clone());
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(USER_AGENT, HeaderValue::from_static("bench/1.0"));
        if self.waits {
            request.headers_mut().insert(AUTHORIZATION, HeaderValue::from_static("Bearer caller"));
        }
        *request.body_mut() = Some(self.body.clone().into());
        let response = self.client.execute(request).await.unwrap();
        assert_eq!(response.status(), 200);
    }
}

/// A request for a chat of this many bytes. The model follows the messages, as `serde_json` sorts them and
/// as OpenAI's own clients send them.
fn chat(length: usize) -> Bytes {
    let before = r#"{"messages":[{"role":"user","content":""#;
    let after = r#""}],"model":"gpt-4o-mini","temperature":0.2}"#;
    let content = "x".repeat(length - before.len() - after.len());
    format!("{before}{content}{after}").into()
}

fn chain(row: Row) -> ProviderChain {
    let others = match row {
        Row::OneUsable => 0,
        Row::Ten => 9,
        Row::Hundred => 99,
        _ => 1,
    };
    let first = match row {
        // The caller's base is no provider's own where there is but one.
        Row::OneUsable => Provider::openai("openai-key"),
        _ => Provider::cometapi("comet-key"),
    };
    let others = (0..others).map(|at| match at {
        0 => Provider::openai("openai-key"),
        at => Provider::new(format!("p{at}"), format!("https://p{at}.example.com/v1"))
            .bearer_auth("key"),
    });
    let builder = ProviderChain::builder([first].into_iter().chain(others));
    match row {
        Row::Options => builder
            .claim("https://llm.example.com/v1")
            .classify(Verdict::standard)
            .route(|request| request.url().path().contains("/files").then(Route::no_failover))
            .attempt_timeout(Duration::from_secs(30))
            .total_timeout(Duration::from_secs(60))
            .on_ambiguous(Ambiguous::IdempotentOnly)
            .observe(|_| {})
            .build(),
        Row::ByModel => builder.health_by(HealthKey::model()).build(),
        #[cfg(feature = "fleet")]
        Row::Shared => builder.share(reqwest_failover::fleet::MemoryStore::new()).build(),
        Row::FailoverOnce => builder.without_health().build(),
        Row::BreakerOpen => {
            let long = Duration::from_secs(1_000_000);
            builder.breaker(Breaker::default().breaks(long, long)).build()
        }
        _ => builder.build(),
    }
    .unwrap()
}

/// Answers 200, or 503 for the first provider.
struct Terminal {
    failing: bool,
    waits: bool,
}

#[async_trait::async_trait]
impl Middleware for Terminal {
    async fn handle(&self, request: Request, _: &mut Extensions, _: Next<'_>) -> Result<Response> {
        if self.waits {
            tokio::task::yield_now().await;
        }
        let failed = self.failing && request.url().host_str() == Some("api.cometapi.com");
        let response = http::Response::builder()
            .status(if failed { 503 } else { 200 })
            .url(request.url().clone())
            .body("")
            .unwrap();
        Ok(response.into())
    }
}

/// Hands everything on.
pub(crate) struct Noop;

#[async_trait::async_trait]
impl Middleware for Noop {
    async fn handle(
        &self,
        request: Request,
        extensions: &mut Extensions,
        next: Next<'_>,
    ) -> Result<Response> {
        next.run(request, extensions).await
    }
}

/// Repeats nothing.
pub(crate) struct OnlyOnce;

#[async_trait::async_trait]
impl Chainer for OnlyOnce {
    type State = ();

    async fn chain(
        &self,
        result: Result<Response>,
        (): &mut (),
        _: &mut Request,
    ) -> std::result::Result<Option<Response>, Error> {
        result.map(Some)
    }
}
