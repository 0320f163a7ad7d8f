//! What a request through this layer allocates, compared with a layer that does nothing: a budget for every
//! row of the benchmarks. A count that grows past its budget is a fault, on any machine.

#[path = "../benches/rows/mod.rs"]
#[allow(dead_code)]
mod rows;

use bytes::Bytes;
use futures_util::FutureExt;
use http::Extensions;
use reqwest::{Body, Request, Response, ResponseBuilderExt};
use reqwest_failover::{Provider, ProviderChain};
use reqwest_middleware::{ClientBuilder, Middleware, Next, Result};
use rows::{Bench, Row};

const REQUESTS: u64 = 100;
const BODY: usize = 1024;

/// The most allocations that each row may add to those of the no-op layer.
const BUDGETS: [(Row, f64); 8] = [
    (Row::Ours, 8.0),
    (Row::Options, 8.0),
    (Row::ByModel, 10.0),
    (Row::OneUsable, 6.0),
    (Row::Ten, 8.0),
    (Row::Hundred, 8.0),
    (Row::BreakerOpen, 8.0),
    // Four of them are for metrics, where those are compiled in.
    (Row::FailoverOnce, 36.0),
];

/// Allocations and bytes of [`REQUESTS`] requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cost {
    count: u64,
    bytes: u64,
}

impl Cost {
    fn over(self, noop: Self) -> Self {
        Self { count: self.count - noop.count, bytes: self.bytes - noop.bytes }
    }

    fn per_request(total: u64) -> f64 {
        total as f64 / REQUESTS as f64
    }
}

/// What the requests cost, when caches are filled.
fn cost(row: Row, body: usize) -> Cost {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let bench = runtime.block_on(Bench::new(row, body));
    let _entered = runtime.enter();
    measure(async {
        for _ in 0..REQUESTS {
            bench.send().await;
        }
    })
}

/// The terminal answers at once, so there is nothing to wait for.
fn measure(requests: impl Future<Output = ()>) -> Cost {
    let measured = allocation_counter::measure(|| {
        requests.now_or_never().expect("the terminal answers at once");
    });
    Cost { count: measured.count_total, bytes: measured.bytes_total }
}

#[test]
fn no_row_allocates_more_than_its_budget() {
    let noop = cost(Row::Noop, BODY);
    let rows = BUDGETS.map(|(row, budget)| (row, cost(row, BODY).over(noop), budget));
    println!("{:<26} {:>7} {:>7} {:>7}", "over the no-op layer", "allocs", "budget", "bytes");
    for (row, cost, budget) in rows {
        let [count, bytes] = [cost.count, cost.bytes].map(Cost::per_request);
        println!("{:<26} {count:>+7.2} {budget:>7} {bytes:>+7.0}", row.name());
    }
    for (row, cost, budget) in rows {
        let count = Cost::per_request(cost.count);
        assert!(count <= budget, "{}: {count} allocations, {budget} allowed", row.name());
    }
}

#[cfg(feature = "fleet")]
#[test]
fn shared_health_allocates_nothing_more() {
    assert_eq!(cost(Row::Shared, BODY), cost(Row::Ours, BODY));
}

#[test]
fn a_larger_body_costs_nothing_more() {
    let over = |body| cost(Row::Ours, body).over(cost(Row::Noop, body));
    let small = over(1_000);
    for body in [100_000, 1_000_000] {
        assert_eq!(over(body), small, "{body} bytes");
    }
}

#[test]
fn more_providers_cost_nothing_more() {
    let two = cost(Row::Ours, BODY);
    for row in [Row::Ten, Row::Hundred] {
        assert_eq!(cost(row, BODY), two, "{}", row.name());
    }
}

#[test]
fn a_chunk_of_an_answer_costs_nothing_more() {
    for chunks in [1, 50] {
        let plain = streamed(None, chunks);
        let ours = streamed(Some(chain()), chunks).over(plain);
        let first = streamed(Some(chain()), 0).over(streamed(None, 0));
        assert_eq!(ours, first, "{chunks} chunks");
    }
}

fn chain() -> ProviderChain {
    ProviderChain::builder([Provider::cometapi("comet-key"), Provider::openai("openai-key")])
        .build()
        .unwrap()
}

/// The cost of requests whose answers come in so many chunks, all of them read.
fn streamed(chain: Option<ProviderChain>, chunks: usize) -> Cost {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _entered = runtime.enter();
    let plain = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut builder = ClientBuilder::new(plain);
    builder = match chain {
        Some(chain) => builder.with(chain),
        None => builder.with(rows::Noop),
    };
    let client = builder.with(Streaming { chunks }).build();
    let ask = async || {
        let url = "https://api.openai.com/v1/chat/completions";
        let mut response = client.post(url).body("{}").send().await.unwrap();
        for _ in 0..chunks {
            assert!(response.chunk().await.unwrap().is_some());
        }
        assert!(response.chunk().await.unwrap().is_none());
    };
    for _ in 0..10 {
        ask().now_or_never().expect("the terminal answers at once");
    }
    measure(async {
        for _ in 0..REQUESTS {
            ask().await;
        }
    })
}

/// Answers with a body in pieces.
struct Streaming {
    chunks: usize,
}

#[async_trait::async_trait]
impl Middleware for Streaming {
    async fn handle(&self, request: Request, _: &mut Extensions, _: Next<'_>) -> Result<Response> {
        let chunk = || Ok::<_, std::io::Error>(Bytes::from_static(b"data: x\n\n"));
        let chunks = std::iter::repeat_with(chunk).take(self.chunks);
        let response = http::Response::builder()
            .url(request.url().clone())
            .body(Body::wrap_stream(futures_util::stream::iter(chunks)))
            .unwrap();
        Ok(response.into())
    }
}
