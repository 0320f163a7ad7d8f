//! An outage, watched: CometAPI is well, browns out, dies, limits the rate, and comes back.
//!
//! ```text
//! cargo run -p reqwest-failover-demos --example watch
//! ```
//!
//! Two stand-ins on loopback play the providers, and everything is sped up: breaks and cooldowns last
//! about a second. It takes about a quarter of a minute. Each phase has its line: who served, how
//! CometAPI stands, and the fallback rate. Then come the metrics as Prometheus would read them, and a
//! picture of it all. What was announced is checked: where it did not happen, the example panics.

use std::error::Error;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};
use reqwest_failover::{Breaker, Event, Provider, ProviderChain, Report, Snapshot, State, harden};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware};

use crate::timeline::Timeline;
use reqwest_failover_testing::stand_in::StandIn;

#[path = "watch_support/timeline.rs"]
mod timeline;

const OPENAI: &str = "https://api.openai.com/v1";
const COMETAPI_KEY: &str = "sk-stand-in-cometapi";
const OPENAI_KEY: &str = "sk-stand-in-openai";

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

#[tokio::main]
async fn main() -> Result<()> {
    // Before the chain is built: it describes its metrics then.
    let metrics = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &[0.01, 0.1, 1.0, 10.0])?
        .install_recorder()?;
    let cometapi = StandIn::start(COMETAPI_KEY, "I am the stand-in for CometAPI.").await?;
    let openai = StandIn::start(OPENAI_KEY, "I am the stand-in for OpenAI.").await?;
    let mut watch = Watch::over(&cometapi, &openai)?;

    watch.begin("healthy");
    let healthy = watch.ask_for(Duration::from_secs(2)).await?;
    assert_eq!((healthy.openai, healthy.state), (0, State::Closed), "CometAPI serves");

    watch.begin("brown-out");
    cometapi.brown_out(3);
    let brown = watch.ask_for(Duration::from_secs(2)).await?;
    assert!(brown.cometapi > brown.openai && brown.openai > 0, "OpenAI serves what failed");
    assert_eq!(brown.state, State::Closed, "a third of failures does not open the breaker");

    watch.begin("dead");
    cometapi.die();
    let dead = watch.ask_for(Duration::from_millis(2200)).await?;
    assert_eq!(dead.cometapi, 0, "OpenAI serves");
    assert!(watch.told("cometapi: circuit breaker opened") > 1, "a probe failed");

    watch.begin("rate-limited");
    cometapi.limit_rate(Duration::from_secs(1));
    let limited = watch.ask_for(Duration::from_millis(2600)).await?;
    assert_eq!(limited.cometapi, 0, "OpenAI serves");
    assert!(watch.told("cometapi: cooling down") > 0, "CometAPI asked for a rest");

    watch.begin("back");
    cometapi.recover();
    let back = watch.ask_for(Duration::from_secs(2)).await?;
    assert!(back.cometapi > 0, "CometAPI serves again");
    assert_eq!(back.state, State::Closed);

    // The rate is about the last five minutes: it falls when many requests were served since.
    watch.begin("rush hour");
    let rush = watch.ask_until("the fallback rate is normal").await?;
    assert_eq!((rush.openai, rush.state), (0, State::Closed), "CometAPI serves them all");

    assert_eq!(watch.told("the fallback rate is high"), 1, "one alarm");
    assert_eq!(watch.told("the fallback rate is normal"), 1, "and its end");
    let snapshot = watch.chain.snapshot();
    assert_eq!((snapshot.requests(), snapshot.exhausted()), (watch.asked, 0), "all were served");

    let text = metrics.render();
    println!("\nThe metrics, as Prometheus reads them:\n\n{text}");
    let picture = watch.locked(|seen| seen.timeline.svg())?;
    for key in [COMETAPI_KEY, OPENAI_KEY] {
        assert!(!text.contains(key) && !picture.contains(key), "no key is shown");
    }
    let path = target_directory()?.join("watch.svg");
    std::fs::write(&path, picture)?;
    println!("The picture: {}", path.display());
    println!("Everything went as announced.");
    Ok(())
}

/// A chain over two stand-ins, and what is seen of it.
struct Watch {
    client: ClientWithMiddleware,
    chain: ProviderChain,
    seen: Arc<Mutex<Seen>>,
    started: Instant,
    asked: u64,
    phase: &'static str,
}

/// What the chain's events told.
struct Seen {
    timeline: Timeline,
    told: Vec<String>,
    /// Those of `told` that are printed.
    printed: usize,
}

/// How a phase went.
struct Phase {
    cometapi: u64,
    openai: u64,
    /// CometAPI's, at the end.
    state: State,
}

#[expect(clippy::disallowed_methods, reason = "it is a program on real sockets, in real time")]
impl Watch {
    fn over(cometapi: &StandIn, openai: &StandIn) -> Result<Self> {
        let started = Instant::now();
        let timeline = Timeline::of(["cometapi", "openai"]);
        let seen = Arc::new(Mutex::new(Seen { timeline, told: Vec::new(), printed: 0 }));
        let hearing = Arc::clone(&seen);
        let chain = ProviderChain::builder([
            Provider::new("cometapi", cometapi.base_url()).bearer_auth(COMETAPI_KEY),
            Provider::new("openai", openai.base_url()).bearer_auth(OPENAI_KEY),
        ])
        .claim(OPENAI)
        .attempt_timeout(Duration::from_secs(1))
        .breaker(
            Breaker::default()
                .consecutive(3)
                .breaks(Duration::from_millis(600), Duration::from_millis(1200)),
        )
        .observe(move |event| {
            let mut seen = hearing.lock().unwrap_or_else(PoisonError::into_inner);
            seen.timeline.hear(event, started.elapsed());
            seen.told.extend(sentence(event));
        })
        .build()?;
        let http = harden(reqwest::Client::builder()).no_proxy().build()?;
        let client = ClientBuilder::new(http).with(chain.clone()).build();
        Ok(Self { client, chain, seen, started, asked: 0, phase: "" })
    }

    fn begin(&mut self, phase: &'static str) {
        self.phase = phase;
        let at = self.started.elapsed();
        self.locked(|seen| seen.timeline.begin(phase, at));
    }

    /// Some sixteen requests a second.
    async fn ask_for(&mut self, length: Duration) -> Result<Phase> {
        let start = Instant::now();
        let mut pace = tokio::time::interval(Duration::from_millis(60));
        let before = self.chain.snapshot();
        while start.elapsed() < length {
            pace.tick().await;
            self.ask().await?;
            self.show(&before, start.elapsed().as_secs_f64() / length.as_secs_f64(), false);
        }
        Ok(self.end(&before))
    }

    /// One request after the other until an event is told.
    async fn ask_until(&mut self, told: &str) -> Result<Phase> {
        const MOST: u64 = 10_000;
        let before = self.chain.snapshot();
        let first = self.asked;
        while self.told(told) == 0 {
            assert!(self.asked - first < MOST, "`{told}` after {MOST} requests");
            self.ask().await?;
            // How far the rate is on its way down to 5 %.
            let ratio = |snapshot: &Snapshot| snapshot.fallback_ratio().unwrap_or_default();
            let (high, now) = (ratio(&before), ratio(&self.chain.snapshot()));
            self.show(&before, (high - now) / (high - 0.05), false);
        }
        Ok(self.end(&before))
    }

    async fn ask(&mut self) -> Result<()> {
        const BODY: &str = r#"{"model":"gpt-4o-mini","messages":[{"role":"user","content":"Hi"}]}"#;
        let request = self.client.post(format!("{OPENAI}/chat/completions"));
        let response = request.header("content-type", "application/json").body(BODY).send().await?;
        let report = Report::of(&response).expect("a report").clone();
        assert!(response.status().is_success() && report.served_by().is_some(), "{report}");
        response.bytes().await?;
        self.asked += 1;
        let (snapshot, at) = (self.chain.snapshot(), self.started.elapsed());
        self.locked(|seen| seen.timeline.look(&snapshot, at));
        Ok(())
    }

    fn end(&self, before: &Snapshot) -> Phase {
        self.show(before, 1.0, true);
        let now = self.chain.snapshot();
        let served = |at: usize| now.providers()[at].served() - before.providers()[at].served();
        Phase { cometapi: served(0), openai: served(1), state: now.providers()[0].state() }
    }

    /// How often a sentence was told.
    fn told(&self, beginning: &str) -> usize {
        self.locked(|seen| seen.told.iter().filter(|told| told.starts_with(beginning)).count())
    }

    /// Prints what happened since, and the phase's line over the last one. Without a terminal the
    /// line is printed once, at the end of the phase.
    fn show(&self, before: &Snapshot, progress: f64, ended: bool) {
        let now = self.chain.snapshot();
        let is_live = io::stdout().is_terminal();
        let mut text = String::new();
        self.locked(|seen| {
            for told in &seen.told[seen.printed..] {
                let wipe = if is_live { "\r\x1b[K" } else { "" };
                text +=
                    &format!("{wipe}    {:5.1} s  {told}\n", self.started.elapsed().as_secs_f64());
            }
            seen.printed = seen.told.len();
        });
        if is_live || ended {
            let done = (progress.clamp(0.0, 1.0) * 12.0).round() as usize;
            let served = |at: usize| now.providers()[at].served() - before.providers()[at].served();
            let state = match now.providers()[0].state() {
                State::Closed => "closed",
                State::Open { .. } => "open",
                State::Probing => "probing",
                State::CoolingDown { .. } => "cooling down",
                _ => "isolated",
            };
            let ratio =
                now.fallback_ratio().map_or("–".to_owned(), |r| format!("{:.1} %", r * 100.0));
            text += &format!(
                "{}{:<13}{}{}  served: cometapi {:>4}, openai {:>3}  cometapi is {:<13} fallback rate {ratio:>6}{}",
                if is_live { "\r\x1b[K" } else { "" },
                self.phase,
                "█".repeat(done),
                "░".repeat(12 - done),
                served(0),
                served(1),
                state,
                if ended { "\n" } else { "" },
            );
        }
        print!("{text}");
        let _ = io::stdout().flush();
    }

    fn locked<T>(&self, f: impl FnOnce(&mut Seen) -> T) -> T {
        f(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What an event means to an operator; single requests are left to the phase's line.
fn sentence(event: &Event<'_>) -> Option<String> {
    let percent = |ratio: &f64| format!("{:.1} %", ratio * 100.0);
    Some(match event {
        Event::BreakerOpened { provider, breaks, .. } => {
            format!("{provider}: circuit breaker opened, break {breaks}")
        }
        Event::BreakerProbing { provider, .. } => format!("{provider}: a request probes it"),
        Event::BreakerClosed { provider, .. } => format!("{provider}: circuit breaker closed"),
        Event::CoolingDown { provider, .. } => format!("{provider}: cooling down"),
        Event::FallbackRateHigh { provider, ratio, reason, .. } => {
            let reason = reason.map_or("not asked", |reason| reason.as_str());
            format!(
                "the fallback rate is high: {} of requests, {provider}: {reason}",
                percent(ratio)
            )
        }
        Event::FallbackRateNormal { ratio, .. } => {
            format!("the fallback rate is normal: {} of requests", percent(ratio))
        }
        _ => return None,
    })
}

/// Where cargo put this program: `target`, three levels up.
fn target_directory() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    let target = program.ancestors().nth(3).ok_or("the program is in no target directory")?;
    Ok(target.to_owned())
}
