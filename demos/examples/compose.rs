//! Where to put which other middleware, shown by what each provider receives.
//!
//! ```text
//! cargo run -p reqwest-failover-demos --example compose
//! ```
//!
//! Two stand-ins on loopback play CometAPI and OpenAI; nothing leaves this machine. Each row of the
//! table is one arrangement, outermost layer first, with stand-ins and a chain of its own. The
//! counts are asserted: where one is not as announced, the example panics.

use std::collections::HashMap;
use std::error::Error;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use http::Extensions;
use reqwest::multipart::{Form, Part};
use reqwest::{Request, Response, StatusCode};
use reqwest_failover::{Event, Exhausted, FailoverError, Provider, ProviderChain, Report, harden};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware, Middleware, Next, Result};
use reqwest_retry::RetryTransientMiddleware;
use reqwest_retry::policies::ExponentialBackoff;
use reqwest_tracing::TracingMiddleware;
use serde_json::{Value, json};
use tracing::span;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

use reqwest_failover_testing::stand_in::StandIn;

type BoxError = Box<dyn Error>;

#[tokio::main]
async fn main() -> std::result::Result<(), BoxError> {
    let spans = Arc::new(AtomicUsize::new(0));
    let counter = SpanCounter(Arc::clone(&spans));
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(counter))?;

    println!("{:<54} {:>8} {:>6}   what the caller got", "arrangement", "CometAPI", "OpenAI");

    // The whole list is asked, and asked again: three times each.
    let harness = Harness::set().await?;
    harness.cometapi.fail(500, "The server had an error.");
    harness.openai.fail(500, "The server had an error.");
    let client = harness.client().with(retry()).with(harness.chain()?).build();
    let response = ask(&client, "one").await?;
    assert_eq!(response.status(), 500);
    harness.row("retry (2 more) → failover, both down", (3, 3), response.status());

    // A chain that answers with an error of its own is asked once: for reqwest-retry, an error of
    // another middleware is final.
    let harness = Harness::set().await?;
    harness.cometapi.fail(500, "The server had an error.");
    harness.openai.fail(500, "The server had an error.");
    let chain = harness.chain_with(Exhausted::Error)?;
    let client = harness.client().with(retry()).with(chain).build();
    let error = ask(&client, "one").await.expect_err("both are down");
    assert!(FailoverError::find(&error).is_some(), "found through reqwest-retry's error");
    harness.row("retry → failover with `Exhausted::Error`, both down", (1, 1), "FailoverError");

    // Each provider is asked three times before the next one is.
    let harness = Harness::set().await?;
    harness.cometapi.fail(500, "The server had an error.");
    harness.openai.fail(500, "The server had an error.");
    let client = harness.client().with(harness.chain()?).with(retry()).build();
    let response = ask(&client, "one").await?;
    assert_eq!(response.status(), 500);
    assert_eq!(report(&response).attempts().len(), 2, "for the chain, one attempt each");
    harness.row("failover → retry (2 more), both down", (3, 3), response.status());

    // The same counts, but not the same thing. A hiccup: outside, failover has already covered it;
    let harness = Harness::set().await?;
    harness.cometapi.fail_times(1, 500, "The server had an error.");
    let client = harness.client().with(retry()).with(harness.chain()?).build();
    let response = ask(&client, "one").await?;
    assert_eq!(report(&response).served_by(), Some("openai"));
    harness.row("retry → failover, CometAPI has a hiccup", (1, 1), "OpenAI's answer");

    // inside, the first provider is given a second chance.
    let harness = Harness::set().await?;
    harness.cometapi.fail_times(1, 500, "The server had an error.");
    let client = harness.client().with(harness.chain()?).with(retry()).build();
    let response = ask(&client, "one").await?;
    assert_eq!(report(&response).served_by(), Some("cometapi"));
    harness.row("failover → retry, CometAPI has a hiccup", (2, 0), "CometAPI's answer");

    // An upload is a stream, which reqwest-retry cannot clone and refuses to send at all;
    let harness = Harness::set().await?;
    let client = harness.client().with(retry()).with(harness.chain()?).build();
    let error = upload(&client).await.expect_err("reqwest-retry refuses it");
    assert!(error.to_string().contains("not cloneable"), "{error}");
    harness.row("retry → failover, an upload", (0, 0), "an error of reqwest-retry");

    // after the chain, which has buffered it, it is repeated like anything else.
    let harness = Harness::set().await?;
    harness.cometapi.fail(500, "The server had an error.");
    let client = harness.client().with(harness.chain()?).with(retry()).build();
    let response = upload(&client).await?;
    assert_eq!(report(&response).served_by(), Some("openai"));
    harness.row("failover → retry (2 more), an upload", (3, 1), "OpenAI's answer");

    // A span for each attempt, and one for the request around them.
    let harness = Harness::set().await?;
    harness.cometapi.fail(500, "The server had an error.");
    let client = harness
        .client()
        .with(TracingMiddleware::default())
        .with(harness.chain()?)
        .with(TracingMiddleware::default())
        .build();
    spans.store(0, Ordering::SeqCst);
    ask(&client, "one").await?;
    let counted = spans.load(Ordering::SeqCst);
    assert_eq!(counted, 3, "one outside, two inside");
    harness.row("tracing → failover → tracing", (1, 1), format!("{counted} HTTP spans"));

    // Asked three times, answered twice from memory: no provider is asked again.
    let harness = Harness::set().await?;
    let client = harness.client().with(Cache::default()).with(harness.chain()?).build();
    for _ in 0..3 {
        let response = ask(&client, "one").await?;
        assert_eq!(content(response).await?, "I am the stand-in for CometAPI.");
    }
    harness.row("cache → failover, 3 equal requests", (1, 0), "3 answers");
    // The cache hands on no extensions: where a report matters, take it from `.observe(..)`.
    assert!(Report::of(&ask(&client, "one").await?).is_none());
    assert_eq!(harness.observed(), 1, "the one request that reached the chain");

    // Each provider's own limit. What is above CometAPI's goes to OpenAI, and CometAPI is not asked.
    let harness = Harness::set().await?;
    let client = harness.client().with(harness.chain()?).with(PerProvider::allow(2)).build();
    for n in 0..3 {
        let response = ask(&client, &n.to_string()).await?;
        assert_eq!(response.status(), 200);
    }
    harness.row("failover → limit (2 each), 3 requests", (2, 1), "3 answers");

    // All of it, in the order that the README recommends.
    let harness = Harness::set().await?;
    harness.cometapi.fail(500, "The server had an error.");
    let client = harness
        .client()
        .with(Cache::default())
        .with(TracingMiddleware::default())
        .with(harness.chain()?)
        .with(retry())
        .with(TracingMiddleware::default())
        .with(PerProvider::allow(10))
        .build();
    spans.store(0, Ordering::SeqCst);
    for _ in 0..2 {
        let response = ask(&client, "one").await?;
        assert_eq!(content(response).await?, "I am the stand-in for OpenAI.");
    }
    let counted = spans.load(Ordering::SeqCst);
    assert_eq!(counted, 5, "one outside, three attempts at CometAPI, one at OpenAI");
    let arrangement = "cache → tracing → failover → retry → tracing → limit";
    harness.row(arrangement, (3, 1), format!("2 answers, {counted} HTTP spans"));

    println!("\nEvery count is as announced.");
    Ok(())
}

/// Two providers, fresh for each row.
struct Harness {
    cometapi: StandIn,
    openai: StandIn,
    reports: Arc<AtomicUsize>,
}

impl Harness {
    async fn set() -> std::result::Result<Self, BoxError> {
        Ok(Self {
            cometapi: StandIn::start("sk-cometapi", "I am the stand-in for CometAPI.").await?,
            openai: StandIn::start("sk-openai", "I am the stand-in for OpenAI.").await?,
            reports: Arc::default(),
        })
    }

    fn chain(&self) -> std::result::Result<ProviderChain, BoxError> {
        self.chain_with(Exhausted::LastOutcome)
    }

    fn chain_with(&self, exhausted: Exhausted) -> std::result::Result<ProviderChain, BoxError> {
        let reports = Arc::clone(&self.reports);
        Ok(ProviderChain::builder([
            Provider::new("cometapi", self.cometapi.base_url()).bearer_auth("sk-cometapi"),
            Provider::new("openai", self.openai.base_url()).bearer_auth("sk-openai"),
        ])
        .claim("https://api.openai.com/v1")
        .on_exhausted(exhausted)
        .observe(move |event| {
            if let Event::Finished { .. } = event {
                reports.fetch_add(1, Ordering::SeqCst);
            }
        })
        .build()?)
    }

    fn client(&self) -> ClientBuilder {
        let http = harden(reqwest::Client::builder()).no_proxy();
        ClientBuilder::new(http.build().expect("a TLS stack"))
    }

    fn observed(&self) -> usize {
        self.reports.load(Ordering::SeqCst)
    }

    /// Checks what each provider received, and prints it.
    fn row(&self, arrangement: &str, expected: (usize, usize), outcome: impl ToString) {
        let received = (self.cometapi.received().len(), self.openai.received().len());
        println!("{arrangement:<54} {:>8} {:>6}   {}", received.0, received.1, outcome.to_string());
        assert_eq!(received, expected, "{arrangement}");
    }
}

async fn ask(client: &ClientWithMiddleware, question: &str) -> Result<Response> {
    client
        .post("https://api.openai.com/v1/chat/completions")
        .json(&json!({
            "model": "gpt-4o-mini",
            "messages": [{"role": "user", "content": question}],
        }))
        .send()
        .await
}

async fn upload(client: &ClientWithMiddleware) -> Result<Response> {
    let file = Part::bytes(b"a line\n".repeat(1000)).file_name("lines.txt");
    let form = Form::new().text("purpose", "user_data").part("file", file);
    client.post("https://api.openai.com/v1/files").multipart(form).send().await
}

fn report(response: &Response) -> &Report {
    Report::of(response).expect("a response that came through a chain has a report")
}

async fn content(response: Response) -> reqwest::Result<String> {
    let body: Value = response.json().await?;
    Ok(body["choices"][0]["message"]["content"].as_str().unwrap_or_default().to_owned())
}

/// reqwest-retry: two more tries, without long pauses.
fn retry() -> RetryTransientMiddleware<ExponentialBackoff> {
    let (least, most) = (Duration::from_millis(1), Duration::from_millis(10));
    let policy = ExponentialBackoff::builder().retry_bounds(least, most);
    RetryTransientMiddleware::new_with_policy(policy.build_with_max_retries(2))
}

/// A limit of its own for each host. What is above it is answered with a 429 right here: the chain
/// rests the provider for as long as `retry-after` says, and asks the next.
struct PerProvider {
    limiter: DefaultKeyedRateLimiter<String>,
}

impl PerProvider {
    fn allow(requests: u32) -> Self {
        let burst = NonZeroU32::new(requests).expect("at least one request");
        let quota = Quota::with_period(Duration::from_secs(3600)).expect("not zero");
        Self { limiter: RateLimiter::keyed(quota.allow_burst(burst)) }
    }
}

#[async_trait]
impl Middleware for PerProvider {
    async fn handle(
        &self,
        request: Request,
        extensions: &mut Extensions,
        next: Next<'_>,
    ) -> Result<Response> {
        let provider = request.url().authority().to_owned();
        if self.limiter.check_key(&provider).is_ok() {
            return next.run(request, extensions).await;
        }
        let refusal = http::Response::builder()
            .status(StatusCode::TOO_MANY_REQUESTS)
            .header("retry-after", "60")
            .body("the limit for this provider is used up");
        Ok(refusal.expect("valid parts").into())
    }
}

/// A cache of successful answers by what was asked. HTTP caches, `http-cache-reqwest` among them,
/// keep answers to GET; completions are POSTs, whose key is the body.
#[derive(Default)]
struct Cache {
    answers: Mutex<HashMap<(String, Bytes), (StatusCode, Bytes)>>,
}

#[async_trait]
impl Middleware for Cache {
    async fn handle(
        &self,
        request: Request,
        extensions: &mut Extensions,
        next: Next<'_>,
    ) -> Result<Response> {
        let Some(body) = request.body().and_then(|body| body.as_bytes()) else {
            return next.run(request, extensions).await;
        };
        let key = (request.url().to_string(), Bytes::copy_from_slice(body));
        let kept = self.answers.lock().expect("not poisoned").get(&key).cloned();
        let (status, body) = match kept {
            Some(answer) => answer,
            None => {
                let response = next.run(request, extensions).await?;
                if !response.status().is_success() {
                    return Ok(response);
                }
                let answer = (response.status(), response.bytes().await?);
                self.answers.lock().expect("not poisoned").insert(key, answer.clone());
                answer
            }
        };
        let answer = http::Response::builder().status(status).body(body);
        Ok(answer.expect("valid parts").into())
    }
}

/// Counts the spans of reqwest-tracing.
struct SpanCounter(Arc<AtomicUsize>);

impl<S: tracing::Subscriber> Layer<S> for SpanCounter {
    fn on_new_span(&self, attributes: &span::Attributes<'_>, _: &span::Id, _: Context<'_, S>) {
        if attributes.metadata().name() == "HTTP request" {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
}
