//! However an outage goes, all that report it report the same: metrics, reports, events, the snapshot,
//! and the servers themselves.
#![cfg(feature = "metrics")]

use reqwest_failover_testing::support;

mod readings;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use fastrand::Rng;
use http::Extensions;
use metrics_util::debugging::{DebuggingRecorder, Snapshotter};
use reqwest::{Body, Request, Response};
use reqwest_failover::{
    Ambiguous, Attempt, Breaker, Event, Exhausted, FailoverError, Provider, ProviderChain,
    ProviderChainBuilder, Reason, Report, Route, Verdict, harden,
};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware, Error, Middleware, Next, Result};
use tokio::runtime::{Builder, Runtime};
use tokio::time::{sleep, timeout};

use readings::Readings;
use support::{Answer, Refusing, Server, lock};

const NAMES: [&str; 4] = ["cometapi", "openai", "spare", "last"];

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[test]
fn two_hundred_scripted_outages_are_told_alike_by_everyone() {
    let mut seen = Seen::default();
    for seed in 0..200 {
        let _told = ToldOnPanic(seed);
        fastrand::seed(seed);
        let mut paused = Builder::new_current_thread();
        recorded(paused.enable_time().start_paused(true).build().unwrap(), |snapshotter| {
            let seen = &mut seen;
            async move { seen.add(scripted_outage(seed, &snapshotter).await) }
        });
    }
    // The script is worth something only if it went everywhere.
    for reason in ["ok", "client_error", "auth", "rate_limited", "server_error", "timeout"] {
        assert!(seen.attempts_because(reason) > 100, "{reason}: {seen:#?}");
    }
    // Connections that are refused or reset need a socket; see below.
    for reason in ["redirected", "credential", "abandoned", "other"] {
        assert!(seen.attempts_because(reason) > 20, "{reason}: {seen:#?}");
    }
    assert!(seen.by_fallback > 500 && seen.exhausted > 100 && seen.unclaimed > 100, "{seen:#?}");
    assert!(seen.rejected > 20, "{seen:#?}");
    assert!(seen.dropped > 100 && seen.refused > 100 && seen.unsent > 100, "{seen:#?}");
    assert!(seen.maybe_processed > 100 && seen.not_replayable > 100, "{seen:#?}");
}

#[test]
fn outages_over_real_sockets_are_told_alike_by_everyone() {
    let mut seen = Seen::default();
    for seed in 0..4 {
        let _told = ToldOnPanic(seed);
        fastrand::seed(seed);
        recorded(Builder::new_current_thread().enable_all().build().unwrap(), |snapshotter| {
            let seen = &mut seen;
            async move { seen.add(real_outage(seed, &snapshotter).await) }
        });
    }
    for reason in ["ok", "server_error", "connect", "timeout", "reset", "abandoned"] {
        assert!(seen.attempts_because(reason) > 0, "{reason}: {seen:#?}");
    }
}

/// Runs with a recorder of its own: everything happens on this thread.
fn recorded<F: Future<Output = ()>>(runtime: Runtime, run: impl FnOnce(Snapshotter) -> F) {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    metrics::with_local_recorder(&recorder, || runtime.block_on(run(snapshotter)));
}

struct ToldOnPanic(u64);

impl Drop for ToldOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("this was the outage with seed {}", self.0);
        }
    }
}

// The script.

async fn scripted_outage(seed: u64, snapshotter: &Snapshotter) -> Seen {
    let mut rng = Rng::with_seed(seed);
    let names = &NAMES[..rng.usize(1..=NAMES.len())];
    let servers = Arc::new(Servers {
        arrived: Tally::default(),
        elsewhere: AtomicU64::new(0),
        moods: Mutex::new(vec![Mood::Well; names.len()]),
        rng: Mutex::new(rng.fork()),
    });
    let unsent = Arc::new(Tally::default());
    let witness = Arc::new(Witness::default());
    let providers = names.iter().map(|name| provider(name, &mut rng, &unsent));
    let chain = observed(ProviderChain::builder(providers.collect::<Vec<_>>()), &witness);
    let chain = settings(chain, &mut rng).build().unwrap();
    let client = ClientBuilder::new(reqwest::Client::new())
        .with(chain.clone())
        .with_arc(servers.clone())
        .build();

    let mut callers = Callers::default();
    let mut order = names.to_vec();
    for _ in 0..rng.usize(8..20) {
        for mood in lock(&servers.moods).iter_mut() {
            if rng.f32() < 0.3 {
                *mood = Mood::any(&mut rng);
            }
        }
        let name = names[rng.usize(..names.len())];
        match rng.u8(..10) {
            0 => chain.isolate(name).unwrap(),
            1 | 2 => names.iter().for_each(|name| chain.restore(name).unwrap()),
            3 => {
                rng.shuffle(&mut order);
                chain.set_order(&order).unwrap();
            }
            _ => {}
        }
        let requests = (0..rng.usize(1..6)).map(|_| Ask::any(&mut rng, names, &order));
        let requests: Vec<_> = requests.collect();
        let asked = requests.iter().map(|ask| ask.send(&client));
        let outcomes = futures_util::future::join_all(asked).await;
        for (ask, outcome) in requests.iter().zip(outcomes) {
            callers.hear(ask, outcome);
        }
        // Without `isolate` and the like in between, so that a break may end or not.
        sleep(ms(rng.u64(..20_000))).await;
    }
    let arrived = |name: &str| servers.arrived.of(name) + unsent.of(name);
    let mut seen = agree(names, &chain, &witness, &callers, snapshotter, arrived);
    assert_eq!(seen.unclaimed, servers.elsewhere.load(Ordering::Relaxed));
    seen.unsent = unsent.total();
    seen
}

/// A provider whose credential source or `map_request` fails now and then: such an attempt is never
/// sent, and the closure counts it instead of the server.
fn provider(name: &'static str, rng: &mut Rng, unsent: &Arc<Tally>) -> Provider {
    let provider = Provider::new(name, format!("https://{name}.test/v1"));
    let (dice, unsent) = (Mutex::new(rng.fork()), unsent.clone());
    let fails = move || {
        let fails = lock(&dice).f32() < 0.1;
        if fails {
            unsent.add(name);
        }
        fails
    };
    match rng.u8(..6) {
        0 => provider.bearer_auth_with(move || {
            let fails = fails();
            async move { if fails { Err("no token today") } else { Ok("token".to_owned()) } }
        }),
        1 => provider.bearer_auth("key").map_request(move |_| match fails() {
            true => Err("not today"),
            false => Ok(()),
        }),
        2 => provider.bearer_auth("key").attempt_timeout(ms(rng.u64(500..3000))),
        _ => provider.bearer_auth("key"),
    }
}

fn settings(mut chain: ProviderChainBuilder, rng: &mut Rng) -> ProviderChainBuilder {
    chain = chain.total_timeout(ms(rng.u64(5000..20_000)));
    chain = match rng.u8(..4) {
        0 => chain.without_health(),
        1 => chain,
        _ => chain.breaker(
            Breaker::default()
                .consecutive(rng.u32(1..4))
                .breaks(ms(rng.u64(100..3000)), ms(rng.u64(3000..60_000))),
        ),
    };
    if rng.bool() {
        chain = chain.attempt_timeout(ms(rng.u64(500..5000)));
    }
    if rng.u8(..4) == 0 {
        chain = chain.max_attempts(rng.usize(1..4));
    }
    if rng.u8(..4) == 0 {
        chain = chain.on_ambiguous(Ambiguous::IdempotentOnly);
    }
    if rng.u8(..4) == 0 {
        chain = chain.on_exhausted(Exhausted::Error);
    }
    match rng.u8(..8) {
        0 => chain.classify(Verdict::transient),
        1 => chain.classify(|outcome| match outcome.status().map(|status| status.as_u16()) {
            Some(404) => Verdict::Accept,
            Some(503) => panic!("the closure has no opinion"),
            _ => Verdict::standard(outcome),
        }),
        // Accepting an outcome without a response serves no caller.
        2 => chain.classify(|outcome| match outcome.reason() {
            Reason::Timeout => Verdict::Accept,
            _ => Verdict::standard(outcome),
        }),
        _ => chain,
    }
}

#[derive(Clone, Copy, Debug)]
enum Mood {
    Well,
    Brown,
    Dead,
    Limited,
    Refusing,
    Anything,
}

impl Mood {
    fn any(rng: &mut Rng) -> Self {
        let moods =
            [Self::Well, Self::Brown, Self::Dead, Self::Limited, Self::Refusing, Self::Anything];
        moods[rng.usize(..moods.len())]
    }
}

/// All providers, at the end of the stack in place of a network.
struct Servers {
    arrived: Tally,
    elsewhere: AtomicU64,
    moods: Mutex<Vec<Mood>>,
    rng: Mutex<Rng>,
}

#[async_trait]
impl Middleware for Servers {
    async fn handle(&self, request: Request, _: &mut Extensions, _: Next<'_>) -> Result<Response> {
        let host = request.url().host_str().unwrap();
        let Some(at) = NAMES.iter().position(|name| host.strip_suffix(".test") == Some(*name))
        else {
            self.elsewhere.fetch_add(1, Ordering::Relaxed);
            return Ok(http::Response::new("elsewhere").into());
        };
        self.arrived.add(NAMES[at]);
        let mood = lock(&self.moods)[at];
        let (wait, status, hint) = {
            let mut rng = lock(&self.rng);
            let any = [200, 204, 304, 302, 400, 401, 403, 404, 408, 422, 425, 429, 500, 503, 504];
            let status = match (mood, rng.u8(..3)) {
                (Mood::Well, _) => 200,
                (Mood::Brown, 0) => 500,
                (Mood::Brown, _) => 200,
                (Mood::Dead, 0) => 0,
                (Mood::Dead, 1) => 1,
                (Mood::Dead, _) => 503,
                (Mood::Limited, _) => 429,
                (Mood::Refusing, 0) => 401,
                (Mood::Refusing, _) => 400,
                (Mood::Anything, _) => any[rng.usize(..any.len())],
            };
            let hint = [None, Some("retry-after-ms"), Some("retry-after")][rng.usize(..3)];
            (ms(rng.u64(..800)), status, hint)
        };
        sleep(wait).await;
        match status {
            0 => Err(Error::middleware(std::io::Error::other("gone"))),
            1 => std::future::pending().await,
            status => {
                let mut response = http::Response::builder().status(status);
                if let Some(hint) = hint {
                    response = response.header(hint, "2");
                }
                let body = r#"{"error":{"message":"the script says so"}}"#;
                Ok(response.body(body).unwrap().into())
            }
        }
    }
}

/// One request that a caller wants to send, and how.
struct Ask {
    url: String,
    get: bool,
    body: BodyKind,
    route: Option<Route>,
    /// Who would serve it if all went well.
    first: Option<&'static str>,
    /// How long its caller waits before dropping it.
    patience: Option<Duration>,
    /// The request's own timeout.
    timeout: Option<Duration>,
    claimed: bool,
    refused: bool,
}

#[derive(Clone, Copy)]
enum BodyKind {
    None,
    Bytes,
    Stream,
}

/// What the caller got, unless it dropped the request.
type Outcome = Option<(Result<Response>, Extensions)>;

impl Ask {
    fn any(rng: &mut Rng, names: &[&'static str], order: &[&'static str]) -> Self {
        let name = names[rng.usize(..names.len())];
        let (mut claimed, mut refused, mut route) = (true, false, None);
        let mut first = Some(order[0]);
        let url = match rng.u8(..20) {
            0 => {
                claimed = false;
                "https://elsewhere.test/v1/chat/completions".to_owned()
            }
            1 => {
                refused = true;
                format!("https://{name}.test/v1/files/..%2fchat")
            }
            _ => format!("https://{name}.test/v1/chat/completions?key=unknown"),
        };
        match rng.u8(..20) {
            0 => (route, first) = (Some(Route::only([name])), Some(name)),
            1 => (route, first) = (Some(Route::order([name])), Some(name)),
            2 => {
                first = order.iter().find(|other| **other != name).copied();
                route = Some(Route::skip([name]));
            }
            3 => route = Some(Route::no_failover()),
            4 => (route, refused) = (Some(Route::only(["unknown"])), claimed),
            _ => {}
        }
        Self {
            url,
            get: rng.bool(),
            body: [BodyKind::None, BodyKind::Bytes, BodyKind::Stream][rng.usize(..3)],
            route,
            first,
            patience: (rng.u8(..8) == 0).then(|| ms(rng.u64(..1500))),
            timeout: (rng.u8(..6) == 0).then(|| ms(rng.u64(1..3000))),
            claimed,
            refused,
        }
    }

    async fn send(&self, client: &ClientWithMiddleware) -> Outcome {
        let request = if self.get { client.get(&self.url) } else { client.post(&self.url) };
        let request = match self.body {
            BodyKind::None => request,
            BodyKind::Bytes => request.body("{}"),
            BodyKind::Stream => {
                let chunks = ["{", "}"].map(Ok::<_, std::io::Error>);
                request.body(Body::wrap_stream(futures_util::stream::iter(chunks)))
            }
        };
        let mut request = request.build().unwrap();
        *request.timeout_mut() = self.timeout;
        let mut extensions = Extensions::new();
        if let Some(route) = &self.route {
            extensions.insert(route.clone());
        }
        let sent = client.execute_with_extensions(request, &mut extensions);
        let result = match self.patience {
            Some(patience) => timeout(patience, sent).await.ok(),
            None => Some(sent.await),
        };
        result.map(|result| (result, extensions))
    }
}

// Real sockets.

async fn real_outage(seed: u64, snapshotter: &Snapshotter) -> Seen {
    let mut rng = Rng::with_seed(seed);
    let script = |mut rng: Rng| {
        let answers = [
            Answer::ok(),
            Answer::ok(),
            Answer::error(500, "broken"),
            Answer::error(503, "overloaded").header("retry-after-ms", "1"),
            Answer::error(429, "slow down").header("retry-after-ms", "1"),
            Answer::error(400, "unheard of"),
            Answer::reset(),
            Answer::fin(),
            Answer::stall(),
        ];
        let answers: Vec<_> =
            (0..200).map(|_| answers[rng.usize(..answers.len())].clone()).collect();
        Server::start(answers)
    };
    let servers = [script(rng.fork()).await, script(rng.fork()).await];
    let closed = Refusing::start();
    let witness = Arc::new(Witness::default());
    let names = &NAMES[..3];
    let providers = [
        Provider::new(names[0], servers[0].base_url("/v1")).bearer_auth("key-a"),
        Provider::new(names[1], closed.base_url("/v1")).bearer_auth("key-b"),
        Provider::new(names[2], servers[1].base_url("/v1")).bearer_auth("key-c"),
    ];
    let breaker = Breaker::default().consecutive(4).breaks(ms(20), ms(40));
    let chain = observed(ProviderChain::builder(providers), &witness)
        .breaker(breaker)
        .attempt_timeout(ms(300))
        .build()
        .unwrap();
    // Each attempt has its own connection: one that is found closed would be tried again below.
    let http = harden(reqwest::Client::builder()).no_proxy().pool_max_idle_per_host(0);
    let client = ClientBuilder::new(http.build().unwrap()).with(chain.clone()).build();
    let mut callers = Callers::default();
    for round in 0..8 {
        let asks: Vec<_> = (0..4)
            .map(|at| Ask {
                url: servers[1].base_url("/v1/chat/completions"),
                get: at == 0,
                body: if at == 0 { BodyKind::None } else { BodyKind::Bytes },
                route: None,
                first: Some(names[0]),
                // Long enough for the request to arrive, so that the server can count it.
                patience: (at == 3 && round % 2 == 0).then(|| ms(150)),
                timeout: (at == 2 && round % 2 == 0).then(|| ms(400)),
                claimed: true,
                refused: false,
            })
            .collect();
        let sent = asks.iter().map(|ask| ask.send(&client));
        let outcomes = futures_util::future::join_all(sent).await;
        asks.iter().zip(outcomes).for_each(|(ask, outcome)| callers.hear(ask, outcome));
    }
    // A server may read a request after its caller gave up on it.
    let attempts: Vec<u64> = names.iter().map(|name| witness.started.of(name)).collect();
    for (server, attempts) in servers.iter().zip([attempts[0], attempts[2]]) {
        server.until(|server| server.requests().len() as u64 >= attempts).await;
    }
    let arrived = |name: &str| match name {
        name if name == names[0] => servers[0].requests().len() as u64,
        name if name == names[2] => servers[1].requests().len() as u64,
        // There is no counter.
        name => witness.started.of(name),
    };
    agree(names, &chain, &witness, &callers, snapshotter, arrived)
}

// Those who tell.

/// What the callers got.
#[derive(Debug, Default)]
struct Callers {
    reports: Vec<Report>,
    by_fallback: u64,
    rejected: u64,
    exhausted: u64,
    refused: u64,
    dropped: u64,
    unclaimed: u64,
}

impl Callers {
    fn hear(&mut self, ask: &Ask, outcome: Outcome) {
        let Some((result, extensions)) = outcome else {
            // Nothing awaits before a request is refused.
            assert!(!ask.refused, "dropped");
            match ask.claimed {
                true => self.dropped += 1,
                false => self.unclaimed += 1,
            }
            return;
        };
        let report = Report::from_extensions(&extensions);
        if !ask.claimed {
            assert!(report.is_none(), "an unclaimed request has a report");
            self.unclaimed += 1;
            return;
        }
        let report = report.expect("a claimed request has a report").clone();
        let of_result = match &result {
            Ok(response) => Report::of(response),
            Err(error) => FailoverError::find(error).map(FailoverError::report),
        };
        if let Some(of_result) = of_result {
            assert_eq!(of_result.to_string(), report.to_string());
        }
        match report.served_by() {
            Some(name) => self.by_fallback += u64::from(Some(name) != ask.first),
            None if ask.refused => self.refused += 1,
            None if is_rejected(report.attempts()) => self.rejected += 1,
            None => self.exhausted += 1,
        }
        assert!(!ask.refused || report.attempts().is_empty(), "{report}");
        self.reports.push(report);
    }
}

/// Whether every provider that was asked refused the request itself: by a redirect, or a 4xx that says
/// nothing about key, account, limits or time.
fn is_rejected(attempts: &[Attempt]) -> bool {
    let refuses =
        |attempt: &Attempt| matches!(attempt.reason(), Reason::ClientError | Reason::Redirected);
    !attempts.is_empty() && attempts.iter().all(refuses)
}

/// What the chain's own events told.
#[derive(Debug, Default)]
struct Witness {
    started: Tally,
    finished: Tally,
    /// As in the labels of the metric.
    attempts: Tally,
    failovers: Tally,
    rejected: AtomicU64,
    exhausted: AtomicU64,
    unclaimed: AtomicU64,
    maybe_processed: AtomicU64,
    not_replayable: AtomicU64,
    panics: AtomicU64,
    reports: Mutex<Vec<Report>>,
    added: AtomicU64,
}

fn observed(chain: ProviderChainBuilder, witness: &Arc<Witness>) -> ProviderChainBuilder {
    let witness = witness.clone();
    chain.observe(move |event| {
        let count = |counter: &AtomicU64, more: bool| {
            counter.fetch_add(u64::from(more), Ordering::Relaxed);
        };
        match event {
            Event::AttemptStarted { provider, .. } => witness.started.add(provider),
            Event::AttemptFinished { attempt, .. } => {
                witness.finished.add(attempt.provider());
                let (provider, reason) = (attempt.provider(), attempt.reason());
                witness.attempts.add(&attempts_shown(provider, reason));
                count(&witness.maybe_processed, attempt.maybe_processed());
                count(&witness.not_replayable, !attempt.is_replayable());
            }
            Event::FailedOver { from, to, .. } => {
                witness.failovers.add(&fallback_shown(from.provider(), to, from.reason()));
            }
            Event::Rejected { report, .. } => {
                assert!(report.served_by().is_none() && is_rejected(report.attempts()));
                count(&witness.rejected, true);
            }
            Event::Exhausted { .. } => count(&witness.exhausted, true),
            Event::PassedThrough { .. } => count(&witness.unclaimed, true),
            Event::CallbackPanicked { .. } => count(&witness.panics, true),
            Event::Finished { report, added_latency, .. } => {
                assert_eq!(added_latency.is_some(), report.served_by().is_some());
                count(&witness.added, added_latency.is_some());
                lock(&witness.reports).push((*report).clone());
            }
            _ => {}
        }
    })
}

fn attempts_shown(provider: &str, reason: Reason) -> String {
    format!("failover_attempts_total{{provider={provider:?},reason=\"{reason}\"}}")
}

fn fallback_shown(from: &str, to: &str, reason: Reason) -> String {
    format!("failover_failovers_total{{from={from:?},reason=\"{reason}\",to={to:?}}}")
}

fn requests_shown(served_by: &str) -> String {
    format!("failover_requests_total{{served_by={served_by:?}}}")
}

/// They all tell the same. `arrived` is how many attempts a server knows of.
fn agree(
    names: &[&'static str],
    chain: &ProviderChain,
    witness: &Witness,
    callers: &Callers,
    snapshotter: &Snapshotter,
    arrived: impl Fn(&str) -> u64,
) -> Seen {
    let metrics = Readings::take(snapshotter);
    let snapshot = chain.snapshot();
    let reports = lock(&witness.reports).clone();
    let attempts: Vec<_> = reports.iter().flat_map(Report::attempts).collect();
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);

    // Attempts, by provider.
    for name in names {
        let found = snapshot.providers().iter().find(|provider| provider.name() == *name);
        let provider = found.expect("every provider is in the snapshot");
        let reported = attempts.iter().filter(|attempt| attempt.provider() == *name).count() as u64;
        let of_provider = format!("{{provider={name:?}");
        let metered = metrics.counted("failover_attempts_total");
        let metered = metered.iter().filter(|(shown, _)| shown.contains(&of_provider));
        let metered: u64 = metered.map(|(_, count)| count).sum();
        let timed = metrics
            .histograms
            .get(&format!("failover_attempt_duration_seconds{{provider={name:?}}}"));
        let told = [
            ("servers", arrived(name)),
            ("metrics", metered),
            ("durations", timed.map_or(0, |durations| durations.len() as u64)),
            ("events of starts", witness.started.of(name)),
            ("events of ends", witness.finished.of(name)),
            ("reports", reported),
            ("snapshot", provider.attempts()),
        ];
        assert!(told.iter().all(|(_, count)| *count == told[0].1), "{name}: {told:?}");
        assert_eq!(provider.in_flight(), 0, "{name}");
        let served = |report: &&Report| report.served_by() == Some(name);
        let served = reports.iter().filter(served).count() as u64;
        assert_eq!(provider.served(), served, "{name}");
        assert_eq!(metrics.counters.get(&requests_shown(name)).copied().unwrap_or(0), served);
    }

    // Attempts, by provider and reason.
    let reported = Tally::default();
    for attempt in &attempts {
        reported.add(&attempts_shown(attempt.provider(), attempt.reason()));
    }
    assert_eq!(metrics.counted("failover_attempts_total"), reported.take());
    assert_eq!(metrics.counted("failover_attempts_total"), witness.attempts.take());

    // Failovers.
    let reported = Tally::default();
    for pair in reports.iter().flat_map(|report| report.attempts().windows(2)) {
        reported.add(&fallback_shown(pair[0].provider(), pair[1].provider(), pair[0].reason()));
    }
    assert_eq!(metrics.counted("failover_failovers_total"), reported.take());
    assert_eq!(metrics.counted("failover_failovers_total"), witness.failovers.take());

    // Requests.
    let requests = callers.reports.len() as u64 + callers.dropped;
    assert_eq!(reports.len() as u64, requests);
    assert_eq!(snapshot.requests(), requests);
    assert_eq!(metrics.total("failover_requests_total"), requests);
    let unserved = callers.rejected + callers.exhausted + callers.refused + callers.dropped;
    assert_eq!(metrics.counters.get(&requests_shown("none")).copied().unwrap_or(0), unserved);
    let mut at_end: Vec<_> = reports.iter().map(|report| format!("{report:?}")).collect();
    for report in &callers.reports {
        let report = format!("{report:?}");
        let found = at_end.iter().position(|told| *told == report);
        at_end.swap_remove(found.unwrap_or_else(|| panic!("only its caller knows of {report}")));
    }
    assert_eq!(at_end.len() as u64, callers.dropped);

    assert_eq!(snapshot.served_by_fallback(), callers.by_fallback);
    assert_eq!(snapshot.rejected(), callers.rejected);
    assert_eq!(metrics.total("failover_rejected_total"), callers.rejected);
    assert_eq!(load(&witness.rejected), callers.rejected);
    assert_eq!(snapshot.exhausted(), callers.exhausted);
    assert_eq!(metrics.total("failover_exhausted_total"), callers.exhausted);
    assert_eq!(load(&witness.exhausted), callers.exhausted);
    assert_eq!(snapshot.passed_through(), callers.unclaimed);
    assert_eq!(metrics.total("failover_passed_through_total"), callers.unclaimed);
    assert_eq!(load(&witness.unclaimed), callers.unclaimed);
    assert_eq!(snapshot.callback_panics(), load(&witness.panics));

    let maybe = attempts.iter().filter(|attempt| attempt.maybe_processed()).count() as u64;
    assert_eq!(metrics.total("failover_maybe_processed_total"), maybe);
    assert_eq!(load(&witness.maybe_processed), maybe);
    let once = attempts.iter().filter(|attempt| !attempt.is_replayable()).count() as u64;
    assert_eq!(metrics.total("failover_not_replayable_total"), once);
    assert_eq!(load(&witness.not_replayable), once);
    let added = metrics.histograms.get("failover_added_latency_seconds");
    assert_eq!(added.map_or(0, |added| added.len() as u64), load(&witness.added));

    Seen {
        attempts: metrics.counted("failover_attempts_total"),
        requests,
        by_fallback: callers.by_fallback,
        rejected: callers.rejected,
        exhausted: callers.exhausted,
        refused: callers.refused,
        dropped: callers.dropped,
        unclaimed: callers.unclaimed,
        unsent: 0,
        maybe_processed: maybe,
        not_replayable: once,
    }
}

/// What happened in some outages, to see that the script went everywhere.
#[derive(Debug, Default)]
struct Seen {
    attempts: BTreeMap<String, u64>,
    requests: u64,
    by_fallback: u64,
    rejected: u64,
    exhausted: u64,
    refused: u64,
    dropped: u64,
    unclaimed: u64,
    unsent: u64,
    maybe_processed: u64,
    not_replayable: u64,
}

impl Seen {
    fn add(&mut self, other: Self) {
        for (shown, count) in other.attempts {
            *self.attempts.entry(shown).or_default() += count;
        }
        self.requests += other.requests;
        self.by_fallback += other.by_fallback;
        self.rejected += other.rejected;
        self.exhausted += other.exhausted;
        self.refused += other.refused;
        self.dropped += other.dropped;
        self.unclaimed += other.unclaimed;
        self.unsent += other.unsent;
        self.maybe_processed += other.maybe_processed;
        self.not_replayable += other.not_replayable;
    }

    fn attempts_because(&self, reason: &str) -> u64 {
        let reason = format!("reason={reason:?}");
        self.attempts.iter().filter(|(shown, _)| shown.contains(&reason)).map(|(_, n)| n).sum()
    }
}

/// Counts by name.
#[derive(Debug, Default)]
struct Tally(Mutex<BTreeMap<String, u64>>);

impl Tally {
    fn add(&self, name: &str) {
        *lock(&self.0).entry(name.to_owned()).or_default() += 1;
    }

    fn of(&self, name: &str) -> u64 {
        lock(&self.0).get(name).copied().unwrap_or(0)
    }

    fn total(&self) -> u64 {
        lock(&self.0).values().sum()
    }

    fn take(&self) -> BTreeMap<String, u64> {
        lock(&self.0).clone()
    }
}
