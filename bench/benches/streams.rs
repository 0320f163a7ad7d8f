//! What looking into streams and renaming models costs.
//!
//! `cargo bench -p reqwest-failover-bench --bench streams` prints, over a terminal in memory: the time to a
//! stream's first content with `.inspect(..)` off and on, and what `Provider::model` adds to a request of 1
//! MB, in time and in bytes allocated.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt;
use http::Extensions;
use reqwest::{Method, Request, Response, ResponseBuilderExt, Url};
use reqwest_failover::{Inspect, Provider, ProviderChain};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware, Middleware, Next, Result};

const ROUNDS: usize = 2_000;
const MEGABYTE: usize = 1_000_000;

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _entered = runtime.enter();
    let provider = || Provider::openai("key");
    let plain = client(ProviderChain::builder([provider()]).build().unwrap());
    let inspecting = ProviderChain::builder([provider()]).inspect(Inspect::errors_in_success());
    let inspecting = client(inspecting.build().unwrap());
    let renaming = provider().rename_model("gpt-4o-mini", "openai/gpt-4o-mini");
    let renaming = client(ProviderChain::builder([renaming]).build().unwrap());

    let small = Bytes::from_static(br#"{"model":"gpt-4o-mini","stream":true}"#);
    let off = median(|| timed(|| ask(&plain, &small)));
    let on = median(|| timed(|| ask(&inspecting, &small)));
    println!(
        "time to first content, median of {ROUNDS}: inspect off {off:?}, on {on:?}, {:?} more",
        on - off
    );

    for (kind, text) in
        [("plain text", "x".repeat(MEGABYTE)), ("escapes", r"\n\u00e9".repeat(MEGABYTE / 8))]
    {
        let body = Bytes::from(format!(r#"{{"messages":"{text}","model":"gpt-4o-mini"}}"#));
        let without = median(|| timed(|| ask(&plain, &body)));
        let with = median(|| timed(|| ask(&renaming, &body)));
        let allocated = |client: &ClientWithMiddleware| {
            allocation_counter::measure(|| ask(client, &body)).bytes_total as f64
                / body.len() as f64
        };
        println!(
            "1 MB of {kind} through model, median of {ROUNDS}: {:?} more; allocated {:.2} times the body more",
            with - without,
            allocated(&renaming) - allocated(&plain)
        );
    }
}

/// Sends the request and waits for the first chunk of its answer.
fn ask(client: &ClientWithMiddleware, body: &Bytes) {
    let url = Url::parse("https://api.openai.com/v1/chat/completions").unwrap();
    let mut request = Request::new(Method::POST, url);
    *request.body_mut() = Some(body.clone().into());
    let first = async {
        let mut response = client.execute(request).await.unwrap();
        response.chunk().await.unwrap().unwrap()
    };
    assert!(!first.now_or_never().expect("the terminal answers at once").is_empty());
}

fn timed(call: impl FnOnce()) -> Duration {
    let begin = Instant::now();
    call();
    begin.elapsed()
}

fn median(mut measure: impl FnMut() -> Duration) -> Duration {
    let mut times: Vec<Duration> = (0..ROUNDS).map(|_| measure()).collect();
    times.sort_unstable();
    times[ROUNDS / 2]
}

fn client(chain: ProviderChain) -> ClientWithMiddleware {
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    ClientBuilder::new(http).with(chain).with(Terminal).build()
}

/// Streams a role and a word.
struct Terminal;

#[async_trait::async_trait]
impl Middleware for Terminal {
    async fn handle(&self, request: Request, _: &mut Extensions, _: Next<'_>) -> Result<Response> {
        const EVENTS: &str = concat!(
            "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\"}}]}\n\n",
            "data: {\"choices\":[{\"delta\":{\"content\":\"Hello\"}}]}\n\n",
            "data: [DONE]\n\n"
        );
        let response = http::Response::builder()
            .header("content-type", "text/event-stream")
            .url(request.url().clone())
            .body(EVENTS)
            .unwrap();
        Ok(response.into())
    }
}
