//! Hours in minutes: 256 callers at once, three providers that fail 30 % of their requests in every
//! way, callers that give up, and books on both sides that must agree at the end.
//!
//! `cargo run --release -p reqwest-failover-demos --example soak -- --minutes 10`
//!
//! It ends with status 1 if anything was lost, sent twice, answered to another caller, or shown a
//! key that is not its own; if a probe is stuck; or if memory keeps growing.

mod soak_support;

use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fastrand::Rng;
use http::Extensions;
use reqwest_failover::{Breaker, Provider, ProviderChain, Report, Route, State, harden};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware};
use soak_support::ledger::Ledger;
use soak_support::memory;
use soak_support::provider::{FAULTS, StandIn, key_of};

const CALLERS: u64 = 256;
/// The share of the calls that are dropped on the way, in percent.
const DROPPED: u8 = 5;
/// More than the providers' pauses let through: the ledgers' room.
const MOST_PER_SECOND: u64 = 20_000;
const PROGRESS: Duration = Duration::from_secs(5);
/// In MiB per minute.
const STEEPEST: f64 = 1.0;
/// By how many MiB the allocator's resident memory goes up and down without any reason.
const NOISE: f64 = 5.0;

struct Soak {
    chain: ProviderChain,
    client: ClientWithMiddleware,
    providers: Vec<StandIn>,
    /// For each provider the requests of which a report says that it was asked.
    reported: Vec<Ledger>,
    /// The same, where it also answered.
    answered: Vec<Ledger>,
    dropped: Ledger,
    ended: Ledger,
    issued: AtomicU64,
    tally: Tally,
    stop: AtomicBool,
}

#[derive(Default)]
struct Tally {
    served: AtomicU64,
    broken: AtomicU64,
    failed: AtomicU64,
    foreign: AtomicU64,
    twice: AtomicU64,
}

#[tokio::main]
async fn main() -> Result<ExitCode, Box<dyn Error>> {
    let length = Duration::try_from_secs_f64(60.0 * minutes()?)?;
    let soak = Arc::new(Soak::new(length).await?);
    println!(
        "{CALLERS} callers, {} providers, {FAULTS} % faults, {DROPPED} % dropped, {} s",
        soak.providers.len(),
        length.as_secs()
    );
    let callers: Vec<_> =
        (0..CALLERS).map(|seed| tokio::spawn(keep_calling(soak.clone(), seed))).collect();
    let samples = watch(&soak, length).await;
    soak.stop.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.await?;
    }
    let stuck = soak.stuck();
    let unwell = soak.recover().await;
    Ok(if soak.verdict(stuck, unwell, &samples) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// `--minutes`, 10 unless told.
fn minutes() -> Result<f64, Box<dyn Error>> {
    let mut arguments = std::env::args().skip_while(|argument| argument != "--minutes");
    match arguments.nth(1) {
        Some(minutes) => Ok(minutes.parse()?),
        None => Ok(10.0),
    }
}

impl Soak {
    async fn new(length: Duration) -> Result<Self, Box<dyn Error>> {
        let room = (length.as_secs() + 10) * MOST_PER_SECOND;
        let mut providers = Vec::new();
        for (seed, name) in ["first", "second", "third"].into_iter().enumerate() {
            providers.push(StandIn::start(name, room, seed as u64).await?);
        }
        let chain = ProviderChain::builder(providers.iter().map(|provider| {
            Provider::new(provider.name, provider.base_url()).bearer_auth(key_of(provider.name))
        }))
        .attempt_timeout(Duration::from_millis(400))
        .breaker(Breaker::default().breaks(Duration::from_millis(200), Duration::from_secs(1)))
        .build()?;
        let plain = harden(reqwest::Client::builder().no_proxy()).build()?;
        let ledgers = || (0..providers.len()).map(|_| Ledger::of(room)).collect();
        Ok(Self {
            client: ClientBuilder::new(plain).with(chain.clone()).build(),
            chain,
            reported: ledgers(),
            answered: ledgers(),
            dropped: Ledger::of(room),
            ended: Ledger::of(room),
            issued: AtomicU64::new(0),
            tally: Tally::default(),
            stop: AtomicBool::new(false),
            providers,
        })
    }

    /// One call, which its caller may drop.
    async fn call(&self, rng: &mut Rng) {
        let nonce = self.issued.fetch_add(1, Ordering::Relaxed);
        if rng.u8(..100) < DROPPED {
            let patience = Duration::from_millis(rng.u64(..60));
            if tokio::time::timeout(patience, self.ask(nonce, None)).await.is_err() {
                self.dropped.enter(nonce);
            }
        } else {
            self.ask(nonce, None).await;
        }
        count(!self.ended.enter(nonce), &self.tally.twice);
    }

    async fn ask(&self, nonce: u64, route: Option<Route>) {
        let url = format!("{}/chat/completions", self.providers[0].base_url());
        let body = format!(r#"{{"model":"gpt-4o-mini","stream":false,"nonce":{nonce}}}"#);
        let request = self
            .client
            .post(url)
            .header("content-type", "application/json")
            .header("x-nonce", nonce)
            .body(body)
            .build()
            .expect("a request");
        let mut extensions = Extensions::new();
        if let Some(route) = route {
            extensions.insert(route);
        }
        let result = self.client.execute_with_extensions(request, &mut extensions).await;
        let report = Report::from_extensions(&extensions).expect("a report of every call");
        for attempt in report.attempts() {
            let at = self.providers.iter().position(|provider| provider.name == attempt.provider());
            let at = at.expect("a provider's name");
            count(!self.reported[at].enter(nonce), &self.tally.twice);
            if attempt.status().is_some() {
                self.answered[at].enter(nonce);
            }
        }
        let served = report.served_by().is_some();
        let Ok(answer) = result else { return count(true, &self.tally.failed) };
        let echo =
            answer.headers().get("x-nonce").and_then(|echo| echo.to_str().ok()?.parse().ok());
        count(echo != Some(nonce), &self.tally.foreign);
        match answer.text().await {
            Ok(text) => {
                let own = text.starts_with(&format!(r#"{{"nonce":{nonce},"#));
                count(!own, &self.tally.foreign);
                count(true, if served { &self.tally.served } else { &self.tally.failed });
            }
            Err(_) => count(true, &self.tally.broken),
        }
    }

    /// Requests that are still counted, and probes that are still out, when there are no calls.
    fn stuck(&self) -> u64 {
        let snapshot = self.chain.snapshot();
        let stuck = |state| u64::from(matches!(state, State::Probing));
        snapshot.providers().iter().map(|one| one.in_flight() + stuck(one.state())).sum()
    }

    /// All are well again: after the longest rest, one request brings each one back. How many stay
    /// away.
    async fn recover(&self) -> u64 {
        for provider in &self.providers {
            provider.book.well.store(true, Ordering::Relaxed);
        }
        tokio::time::sleep(Duration::from_millis(1_100)).await;
        for provider in &self.providers {
            let nonce = self.issued.fetch_add(1, Ordering::Relaxed);
            self.ask(nonce, Some(Route::only([provider.name]))).await;
            self.ended.enter(nonce);
        }
        let snapshot = self.chain.snapshot();
        snapshot.providers().iter().filter(|one| one.state() != State::Closed).count() as u64
    }

    /// Joins the books and prints what they say; whether all is as promised.
    fn verdict(&self, stuck: u64, unwell: u64, samples: &[(Duration, f64)]) -> bool {
        let issued = self.issued.load(Ordering::Relaxed);
        let mut lost = issued - self.ended.len();
        let (mut unreported, mut received) = (0, 0);
        for (at, provider) in self.providers.iter().enumerate() {
            for nonce in 0..issued {
                let arrived = provider.book.received.has(nonce);
                received += u64::from(arrived);
                lost += u64::from(self.answered[at].has(nonce) && !arrived);
                let known = self.reported[at].has(nonce) || self.dropped.has(nonce);
                unreported += u64::from(arrived && !known);
            }
        }
        let sum = |of: fn(&StandIn) -> &AtomicU64| -> u64 {
            self.providers.iter().map(|provider| of(provider).load(Ordering::Relaxed)).sum()
        };
        let snapshot = self.chain.snapshot();
        let counted = snapshot.requests();
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let ends = load(&self.tally.served) + load(&self.tally.broken) + load(&self.tally.failed);
        let counts = [
            ("lost", lost),
            ("without an end", issued.abs_diff(ends + self.dropped.len())),
            ("ended or reported twice", load(&self.tally.twice)),
            ("arrived but not reported", unreported),
            ("duplicated to one provider", sum(|provider| &provider.book.duplicates)),
            ("foreign nonces", load(&self.tally.foreign)),
            ("foreign keys", sum(|provider| &provider.book.foreign_keys)),
            ("stuck probes and counts", stuck),
            ("providers that stay away", unwell),
            ("requests not counted", issued.abs_diff(counted)),
        ];
        println!(
            "\ncalls {issued}, received {received}, faults {}, served by a fallback {}, connections {}",
            sum(|provider| &provider.book.faults),
            snapshot.served_by_fallback(),
            sum(|provider| &provider.book.connections)
        );
        for (name, count) in counts {
            println!("{name:<28} {count:>6}  {}", if count == 0 { "ok" } else { "VIOLATED" });
        }
        let steady = memory::growth(samples).is_none_or(|(slope, rise)| {
            let steady = slope < STEEPEST || rise < NOISE;
            let verdict = if steady { "ok" } else { "VIOLATED" };
            println!(
                "{:<28} {slope:>+6.2}  {verdict} ({rise:+.1} in all)",
                "memory, MiB per minute"
            );
            steady
        });
        if memory::growth(samples).is_none() {
            println!("{:<28} not measured: no /proc, or too short", "memory, MiB per minute");
        }
        steady && counts.iter().all(|(_, count)| *count == 0)
    }
}

fn count(holds: bool, counter: &AtomicU64) {
    counter.fetch_add(u64::from(holds), Ordering::Relaxed);
}

async fn keep_calling(soak: Arc<Soak>, seed: u64) {
    let mut rng = Rng::with_seed(seed);
    while !soak.stop.load(Ordering::Relaxed) {
        soak.call(&mut rng).await;
    }
}

/// Prints how it goes, and samples the memory once a second when all pools and buffers have grown.
async fn watch(soak: &Soak, length: Duration) -> Vec<(Duration, f64)> {
    let begun = Instant::now();
    let warm = (length / 2).min(Duration::from_secs(60));
    let mut samples = Vec::new();
    let mut next = PROGRESS;
    while begun.elapsed() < length {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let elapsed = begun.elapsed();
        let resident = memory::resident();
        samples.extend(resident.filter(|_| elapsed > warm).map(|resident| (elapsed, resident)));
        if elapsed < next {
            continue;
        }
        next += PROGRESS;
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let (issued, served) = (load(&soak.issued), load(&soak.tally.served));
        println!(
            "{:>4} s  calls {issued} ({:.0}/s), served {:.1} %, failed {}, cut {}, dropped {}, {} MiB",
            elapsed.as_secs(),
            issued as f64 / elapsed.as_secs_f64(),
            100.0 * served as f64 / issued as f64,
            load(&soak.tally.failed),
            load(&soak.tally.broken),
            soak.dropped.len(),
            resident.map_or("-".to_owned(), |resident| format!("{resident:.1}")),
        );
    }
    samples
}
