//! What hedging is worth when the first provider stalls: the slow end of 100,000 requests.
//!
//! ```text
//! cargo run --release -p reqwest-failover-demos --example tail
//! ```
//!
//! Everything happens in virtual time, so hours of traffic take seconds, and every run prints the
//! same. Answers take 20 ms in the median (log-normal, σ 0.25); 2 %, 30 % and 100 % of the first
//! provider's answers take 2 s instead. Requests are sent one after the other, and then 100 a second,
//! however many are under way. An extra call is one more than one per request. The picture, of the
//! requests one after the other, goes to `target/tail.svg`.

use std::error::Error;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use http::Extensions;
use reqwest::{Request, Response};
use reqwest_failover::{Breaker, Hedge, Provider, ProviderChain, ProviderChainBuilder};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware, Middleware, Next};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

#[path = "tail_support/curves.rs"]
mod curves;

const REQUESTS: u32 = 100_000;
const BETWEEN_REQUESTS: Duration = Duration::from_millis(10);
const MEDIAN: Duration = Duration::from_millis(20);
const SIGMA: f64 = 0.25;
const STALL: Duration = Duration::from_secs(2);
const STALLED: [f64; 3] = [0.02, 0.30, 1.0];

fn main() -> Result<(), Box<dyn Error>> {
    let measured = table(Load::OneAfterTheOther)?;
    table(Load::Steady)?;
    let path = target_directory()?.join("tail.svg");
    std::fs::write(&path, curves::svg(&STALLED, &measured)?)?;
    println!("the picture: {}", path.display());
    Ok(())
}

fn table(load: Load) -> Result<Vec<Measured>, Box<dyn Error>> {
    println!("{}", load.name());
    println!("{:<34} {:>8} {:>8} {:>8} {:>8} {:>8}", "", "stalled", "p50", "p99", "p99.9", "extra");
    let mut measured = Vec::new();
    for strategy in Strategy::ALL {
        for stalled in STALLED {
            let tail = simulate(strategy, load, stalled)?;
            println!(
                "{:<34} {:>6.0} % {:>5} ms {:>5} ms {:>5} ms {:>6.1} %",
                strategy.name(),
                stalled * 100.0,
                tail.quantile(0.5).as_millis(),
                tail.quantile(0.99).as_millis(),
                tail.quantile(0.999).as_millis(),
                tail.extra * 100.0,
            );
            measured.push(Measured { strategy: strategy.name(), stalled, tail });
        }
    }
    println!();
    Ok(measured)
}

/// When requests are sent.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Load {
    OneAfterTheOther,
    Steady,
}

impl Load {
    fn name(self) -> &'static str {
        match self {
            Self::OneAfterTheOther => "one request after the other",
            Self::Steady => "100 requests a second",
        }
    }
}

/// What is done about a provider that stalls.
#[derive(Clone, Copy)]
enum Strategy {
    Plain,
    Timeout,
    Fixed,
    Adaptive,
    Strict,
}

impl Strategy {
    const ALL: [Self; 5] = [Self::Plain, Self::Timeout, Self::Fixed, Self::Adaptive, Self::Strict];

    fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Timeout => "timeout 500 ms",
            Self::Fixed => "hedge after 40 ms",
            Self::Adaptive => "adaptive, 500 ms, breaker",
            Self::Strict => "adaptive, 500 ms, breaker at 20 %",
        }
    }

    fn set(self, chain: ProviderChainBuilder) -> ProviderChainBuilder {
        let limit = Duration::from_millis(500);
        match self {
            Self::Plain => chain.without_health(),
            Self::Timeout => chain.without_health().attempt_timeout(limit),
            Self::Fixed => chain.without_health().hedge(Hedge::after(Duration::from_millis(40))),
            Self::Adaptive => chain.attempt_timeout(limit).hedge(Hedge::adaptive()),
            Self::Strict => chain
                .attempt_timeout(limit)
                .hedge(Hedge::adaptive())
                .breaker(Breaker::default().ratio(0.2, 20)),
        }
    }
}

/// What came of a strategy.
pub(crate) struct Measured {
    strategy: &'static str,
    stalled: f64,
    tail: Tail,
}

/// How long requests took, and how many calls more than one they needed.
pub(crate) struct Tail {
    sorted: Vec<Duration>,
    extra: f64,
}

impl Tail {
    /// The time within which this share of the requests was answered.
    pub(crate) fn quantile(&self, share: f64) -> Duration {
        let at = (self.sorted.len() as f64 * share).ceil() as usize;
        self.sorted[at.clamp(1, self.sorted.len()) - 1]
    }
}

fn simulate(strategy: Strategy, load: Load, stalled: f64) -> Result<Tail, Box<dyn Error>> {
    // The breaker's jitter, too, comes from here.
    fastrand::seed(7);
    let chain = strategy.set(ProviderChain::builder([
        Provider::new("first", "https://first.test/v1"),
        Provider::new("second", "https://second.test/v1"),
    ]));
    let providers = Providers { stalled, calls: Arc::default(), random: Arc::default() };
    let client =
        ClientBuilder::new(UNUSED.clone()).with(chain.build()?).with(providers.clone()).build();
    let virtual_time =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
    let mut sorted = virtual_time.block_on(ask_all(client, load));
    sorted.sort_unstable();
    let calls = providers.calls.load(Ordering::Relaxed) as f64;
    Ok(Tail { extra: calls / f64::from(REQUESTS) - 1.0, sorted })
}

/// Sends every request at its time, and tells how long each took.
async fn ask_all(client: ClientWithMiddleware, load: Load) -> Vec<Duration> {
    let begun = Instant::now();
    let mut asked = JoinSet::new();
    let mut took = Vec::with_capacity(REQUESTS as usize);
    for number in 0..REQUESTS {
        if load == Load::Steady {
            sleep_until(begun + number * BETWEEN_REQUESTS).await;
        }
        asked.spawn(ask(client.clone()));
        if load == Load::OneAfterTheOther {
            took.extend(asked.join_next().await);
        }
    }
    while let Some(asked) = asked.join_next().await {
        took.push(asked);
    }
    took.into_iter().map(|asked| asked.expect("a request ends well")).collect()
}

async fn ask(client: ClientWithMiddleware) -> Duration {
    let begun = Instant::now();
    let response = client.post("https://first.test/v1/chat/completions").send().await;
    assert!(response.is_ok_and(|response| response.status() == 200));
    begun.elapsed()
}

/// The client below the providers, where nothing arrives. It is slow to make.
static UNUSED: LazyLock<reqwest::Client> = LazyLock::new(|| {
    reqwest::Client::builder().no_proxy().build().expect("a client without settings")
});

/// Both providers, as the innermost middleware.
#[derive(Clone)]
struct Providers {
    /// The share of the first one's answers that come late.
    stalled: f64,
    calls: Arc<AtomicU64>,
    random: Arc<Mutex<Random>>,
}

#[async_trait]
impl Middleware for Providers {
    async fn handle(
        &self,
        request: Request,
        _: &mut Extensions,
        _: Next<'_>,
    ) -> reqwest_middleware::Result<Response> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let first = request.url().host_str() == Some("first.test");
        let latency = {
            let mut random = self.random.lock().unwrap_or_else(PoisonError::into_inner);
            let stalls = random.0.f64() < self.stalled;
            let usual = MEDIAN.mul_f64((SIGMA * random.normal()).exp());
            if first && stalls { STALL } else { usual }
        };
        sleep(latency).await;
        Ok(http::Response::new("").into())
    }
}

/// Always the same numbers.
struct Random(fastrand::Rng);

impl Random {
    /// A standard normal number, by Box and Muller.
    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.0.f64()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.0.f64()).cos()
    }
}

impl Default for Random {
    fn default() -> Self {
        Self(fastrand::Rng::with_seed(7))
    }
}

/// Where cargo puts what it makes, which is where this program is.
fn target_directory() -> Result<PathBuf, Box<dyn Error>> {
    let program = std::env::current_exe()?;
    let target = program.ancestors().nth(3).ok_or("this program is not in a target directory")?;
    Ok(target.to_owned())
}
