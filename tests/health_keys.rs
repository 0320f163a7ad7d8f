//! Health where the fault is: per model, per account, per slot of capacity. A table of cases with
//! their numbers, in virtual time; run with `--nocapture` for the table.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use http::Extensions;
use http_body::Body as _;
use http_body_util::BodyExt as _;
use reqwest::{Body, Request, Response};
use reqwest_failover::{
    Breaker, Cooldown, Event, Fault, HealthKey, Hedge, Inspect, Provider, ProviderChain,
    ProviderChainBuilder, ProviderSnapshot, Report, State, Verdict,
};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware, Middleware, Next, Result};
use tokio::time::Instant;

/// The client below the terminal, where nothing arrives. It is slow to make.
static UNUSED: LazyLock<reqwest::Client> =
    LazyLock::new(|| reqwest::Client::builder().no_proxy().build().unwrap());

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// What a provider does with a request for a model.
type Script =
    Arc<dyn Fn(&str) -> Pin<Box<dyn Future<Output = Result<Response>> + Send>> + Send + Sync>;

fn script<F>(answer: impl Fn(&str) -> F + Send + Sync + 'static) -> Script
where
    F: Future<Output = Result<Response>> + Send + 'static,
{
    Arc::new(move |model| Box::pin(answer(model)))
}

fn answer(status: u16, headers: &[(&str, String)], body: impl Into<Body>) -> Result<Response> {
    let mut response = http::Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, value);
    }
    Ok(response.body(body.into()).unwrap().into())
}

fn ok() -> Result<Response> {
    answer(200, &[], "ok")
}

fn limited(header: &str, value: impl ToString) -> Result<Response> {
    answer(429, &[(header, value.to_string())], "slow down")
}

fn unknown_model() -> Result<Response> {
    let error = r#"{"error":{"message":"The model `m` does not exist.","code":"model_not_found"}}"#;
    answer(404, &[("content-type", "application/json".to_owned())], error)
}

/// Answers 200 after 20 ms.
fn healthy() -> Script {
    script(|_| async {
        tokio::time::sleep(ms(20)).await;
        ok()
    })
}

/// Answers for the network.
#[derive(Clone)]
struct Terminal {
    scripts: Arc<BTreeMap<&'static str, Script>>,
    /// How many requests reached each provider.
    asked: Arc<Mutex<BTreeMap<String, usize>>>,
}

#[async_trait]
impl Middleware for Terminal {
    async fn handle(&self, request: Request, _: &mut Extensions, _: Next<'_>) -> Result<Response> {
        let host = request.url().host_str().unwrap().trim_end_matches(".test").to_owned();
        let body = request.body().and_then(Body::as_bytes).unwrap_or_default();
        let body: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
        let model = body["model"].as_str().unwrap_or_default();
        *self.asked.lock().unwrap().entry(host.clone()).or_default() += 1;
        self.scripts[&*host](model).await
    }
}

/// A chain above scripted providers.
#[derive(Clone)]
struct World {
    chain: ProviderChain,
    client: ClientWithMiddleware,
    terminal: Terminal,
    events: Arc<Mutex<Vec<String>>>,
}

fn provider(name: &str) -> Provider {
    Provider::new(name, format!("https://{name}.test/v1")).bearer_auth(format!("key-of-{name}"))
}

impl World {
    /// Two providers, of which the second is healthy.
    fn new(
        first: Script,
        settings: impl FnOnce(ProviderChainBuilder) -> ProviderChainBuilder,
    ) -> Self {
        let providers = [provider("first"), provider("second")];
        Self::of(providers.into(), [("first", first), ("second", healthy())], settings)
    }

    fn of<const N: usize>(
        providers: Vec<Provider>,
        scripts: [(&'static str, Script); N],
        settings: impl FnOnce(ProviderChainBuilder) -> ProviderChainBuilder,
    ) -> Self {
        let events = Arc::new(Mutex::new(Vec::new()));
        let told = events.clone();
        let builder = ProviderChain::builder(providers)
            .claim("https://caller.test/v1")
            .observe(move |event| told.lock().unwrap().extend(told_of(event)));
        let chain = settings(builder).build().unwrap();
        let terminal = Terminal { scripts: Arc::new(scripts.into()), asked: Arc::default() };
        let client =
            ClientBuilder::new(UNUSED.clone()).with(chain.clone()).with(terminal.clone()).build();
        Self { chain, client, terminal, events }
    }

    async fn send(&self, model: &str) -> Result<Response> {
        let body = serde_json::json!({ "messages": [], "model": model }).to_string();
        self.client.post("https://caller.test/v1/chat/completions").body(body).send().await
    }

    /// Asks once and returns who served.
    async fn ask(&self, model: &str) -> String {
        let response = self.send(model).await.expect("an answer");
        let report = Report::of(&response).expect("a report");
        report.served_by().unwrap_or("none").to_owned()
    }

    fn spawn(&self, model: &'static str) -> tokio::task::JoinHandle<String> {
        let world = self.clone();
        tokio::spawn(async move { world.ask(model).await })
    }

    /// Sends a request every `interval`, and counts the models of those that the first provider served.
    async fn served_by_first(
        &self,
        requests: u32,
        interval: Duration,
        model: impl Fn(u32) -> &'static str,
    ) -> BTreeMap<&'static str, u32> {
        let began = Instant::now();
        let mut asked = Vec::new();
        for number in 0..requests {
            tokio::time::sleep_until(began + interval * number).await;
            asked.push((model(number), self.spawn(model(number))));
        }
        let mut served = BTreeMap::new();
        for (model, asked) in asked {
            *served.entry(model).or_default() += u32::from(asked.await.unwrap() == "first");
        }
        served
    }

    fn asked(&self, name: &str) -> usize {
        self.terminal.asked.lock().unwrap().get(name).copied().unwrap_or_default()
    }

    fn of_provider(&self, name: &str) -> ProviderSnapshot {
        let snapshot = self.chain.snapshot();
        snapshot.providers().iter().find(|provider| provider.name() == name).unwrap().clone()
    }

    fn state(&self, name: &str) -> State {
        self.of_provider(name).state()
    }

    /// The keys that rest at the first provider.
    fn resting(&self) -> Vec<String> {
        self.of_provider("first").resting_keys().map(|(key, _)| key.to_owned()).collect()
    }

    fn told(&self) -> Vec<String> {
        std::mem::take(&mut self.events.lock().unwrap())
    }
}

fn told_of(event: &Event<'_>) -> Option<String> {
    Some(match event {
        Event::BreakerOpened { provider, key, .. } => format!("opened {provider} {key:?}"),
        Event::BreakerClosed { provider, key, .. } => format!("closed {provider} {key:?}"),
        Event::BreakerProbing { provider, key, .. } => format!("probing {provider} {key:?}"),
        Event::CoolingDown { provider, key, .. } => format!("cooling {provider} {key:?}"),
        Event::AtCapacity { provider, .. } => format!("full {provider}"),
        Event::CallbackPanicked { callback, .. } => format!("panicked {callback}"),
        _ => return None,
    })
}

/// With health by model, or without.
fn by_model(on: bool) -> impl FnOnce(ProviderChainBuilder) -> ProviderChainBuilder {
    move |builder| if on { builder.health_by(HealthKey::model()) } else { builder }
}

// The cases of the issue.

/// Every tenth request is for a model that is limited for a minute.
async fn one_limited_model(on: bool) -> u32 {
    let first = script(|model: &str| {
        let is_limited = model == "limited";
        async move { if is_limited { limited("retry-after", 60) } else { ok() } }
    });
    let world = World::new(first, by_model(on));
    let model = |number| if number % 10 == 0 { "limited" } else { "healthy" };
    world.served_by_first(600, ms(50), model).await["healthy"]
}

/// Every other request is for a model that is down.
async fn one_model_down(on: bool) -> u32 {
    let first = script(|model: &str| {
        let is_down = model == "down";
        async move { if is_down { answer(503, &[], "down") } else { ok() } }
    });
    let world = World::new(first, by_model(on));
    let model = |number| if number % 2 == 0 { "down" } else { "healthy" };
    world.served_by_first(600, ms(50), model).await["healthy"]
}

/// A thousand requests in a thousand seconds for a model that the first provider does not have: the
/// attempts that it gets, in vain.
async fn an_unknown_model(on: bool) -> usize {
    let world = World::new(script(|_| async { unknown_model() }), by_model(on));
    let served = world.served_by_first(1_000, secs(1), |_| "m").await;
    assert_eq!(served["m"], 0);
    world.asked("first")
}

/// 200 requests a second for a provider that serves so many of each 100 ms, and says honestly how long
/// it is until the next: how many of 2,000 it serves.
async fn a_rate_limit() -> u32 {
    const WINDOW: u128 = 100;
    let began = Instant::now();
    let served = Arc::new(Mutex::new((0, 0)));
    let first = script(move |_| {
        let served = served.clone();
        async move {
            let elapsed = began.elapsed().as_millis();
            let is_limited = {
                let mut served = served.lock().unwrap();
                if served.0 != elapsed / WINDOW {
                    *served = (elapsed / WINDOW, 0);
                }
                served.1 += 1;
                served.1 > 10
            };
            tokio::time::sleep(ms(20)).await;
            match is_limited {
                true => limited("retry-after-ms", WINDOW - began.elapsed().as_millis() % WINDOW),
                false => ok(),
            }
        }
    });
    let world = World::new(first, |builder| builder);
    world.served_by_first(2_000, ms(5), |_| "m").await["m"]
}

/// The same for a provider that has a token more every 10 ms, and says how long it is until the next.
async fn a_token_bucket() -> u32 {
    let began = Instant::now();
    let bucket = Arc::new(Mutex::new((0u64, 0u64)));
    let first = script(move |_| {
        let bucket = bucket.clone();
        async move {
            let wait = {
                let (tokens, filled) = &mut *bucket.lock().unwrap();
                let now = began.elapsed().as_millis() as u64;
                *tokens = (*tokens + (now / 10 - *filled / 10)).min(10);
                *filled = now;
                match tokens.checked_sub(1) {
                    Some(left) => {
                        *tokens = left;
                        None
                    }
                    // Until there are three.
                    None => Some(30 - now % 10),
                }
            };
            tokio::time::sleep(ms(20)).await;
            wait.map_or_else(ok, |wait| limited("retry-after-ms", wait))
        }
    });
    let world = World::new(first, |builder| builder);
    world.served_by_first(2_000, ms(5), |_| "m").await["m"]
}

/// 64 callers at the end of a cooldown of 30 s: how many are sent to the provider that is limited still.
async fn the_end_of_a_cooldown() -> usize {
    let first = script(|_| async {
        tokio::time::sleep(ms(20)).await;
        limited("retry-after", 30)
    });
    let world = World::new(first, |builder| builder);
    assert_eq!(world.ask("m").await, "second");
    let State::CoolingDown { until, .. } = world.state("first") else { panic!() };
    tokio::time::sleep_until(until.into()).await;
    let callers: Vec<_> = (0..64).map(|_| world.spawn("m")).collect();
    for caller in callers {
        assert_eq!(caller.await.unwrap(), "second");
    }
    world.asked("first") - 1
}

/// Eight slots on a GPU, the rest to a cloud: 64 callers at once, whose streams last a second. The most
/// that were at the GPU, and how many were answered after how long at most.
async fn eight_slots() -> (usize, usize, Duration) {
    let server = Server::default();
    let gpu = server.clone();
    let providers = vec![provider("first").max_in_flight(8), provider("second")];
    let gpu = script(move |_| {
        let stream = gpu.stream(10, ms(100));
        async { answer(200, &[], stream) }
    });
    let world = World::of(providers, [("first", gpu), ("second", healthy())], |builder| builder);
    let began = Instant::now();
    let callers: Vec<_> = (0..64)
        .map(|_| {
            let world = world.clone();
            tokio::spawn(async move {
                let response = world.send("m").await.unwrap();
                let waited = began.elapsed();
                response.bytes().await.unwrap();
                waited
            })
        })
        .collect();
    let (mut answered, mut longest) = (0, Duration::ZERO);
    for caller in callers {
        longest = longest.max(caller.await.unwrap());
        answered += 1;
    }
    assert_eq!(world.of_provider("first").in_flight(), 0);
    assert_eq!((world.asked("first"), world.asked("second")), (8, 56));
    (server.most(), answered, longest)
}

#[tokio::test(start_paused = true)]
async fn a_fault_rests_what_has_it_and_nothing_else() {
    let limited = [one_limited_model(false).await, one_limited_model(true).await];
    let down = [one_model_down(false).await, one_model_down(true).await];
    let unknown = [an_unknown_model(false).await, an_unknown_model(true).await];
    let rate = [a_rate_limit().await, a_token_bucket().await];
    let probes = the_end_of_a_cooldown().await;
    let (most, answered, longest) = eight_slots().await;
    println!("\n{:<58} {:>12} {:>14} {:>12}", "case", "without keys", "now", "must be");
    let row = |case: &str, without: String, now: String, must: &str| {
        println!("{case:<58} {without:>12} {now:>14} {must:>12}");
    };
    row(
        "one model in ten is limited for 60 s: healthy served",
        format!("{}", limited[0]),
        format!("{} of 540", limited[1]),
        "540 of 540",
    );
    row(
        "half is for a model that answers 503: healthy served",
        format!("{}", down[0]),
        format!("{} of 300", down[1]),
        "300 of 300",
    );
    row(
        "model_not_found, 1,000 requests in 1,000 s: wasted",
        format!("{}", unknown[0]),
        format!("{} of 1,000", unknown[1]),
        "<= 1/min",
    );
    for (case, served) in
        ["200/s for 100/s, windows of 100 ms: served", "200/s for 100/s, a token bucket: served"]
            .into_iter()
            .zip(rate)
    {
        row(case, "-".to_owned(), format!("{:.1} %", f64::from(served) / 20.0), ">= 45 %");
    }
    row(
        "64 callers at the end of a cooldown of 30 s: sent",
        "-".to_owned(),
        probes.to_string(),
        "1",
    );
    row(
        "64 callers, eight slots: at the provider at once",
        "-".to_owned(),
        format!("{most}"),
        "<= 8",
    );
    row(
        "... answered, and after at most",
        "-".to_owned(),
        format!("{answered}, {} ms", longest.as_millis()),
        "64, no queue",
    );

    assert_eq!(limited[1], 540);
    assert_eq!(down[1], 300);
    assert!(unknown[1] <= 1_000 / 60 + 1, "{}", unknown[1]);
    assert_eq!(unknown[0], 1_000);
    assert!(rate.into_iter().all(|served| served >= 900), "{rate:?} of 2,000");
    assert_eq!(probes, 1);
    assert!(most <= 8);
    assert_eq!((answered, longest), (64, ms(20)));
}

// Capacity: no slot is leaked, and none is counted twice.

/// A server that counts the requests that it has, as it sees them: to the end of each answer's body.
#[derive(Clone, Default)]
struct Server {
    now: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    total: Arc<AtomicUsize>,
}

/// One request at a server.
struct Busy(Server);

impl Server {
    fn enter(&self) -> Busy {
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        self.total.fetch_add(1, Ordering::SeqCst);
        Busy(self.clone())
    }

    fn most(&self) -> usize {
        self.most.load(Ordering::SeqCst)
    }

    /// A body of so many chunks, each after a while.
    fn stream(&self, chunks: u32, each: Duration) -> Body {
        self.enter().stream(chunks, each, StreamEnd::Whole)
    }
}

/// How a stream of a server ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum StreamEnd {
    Whole,
    Broken,
    /// It panics in the task that reads it.
    Panic,
}

impl Busy {
    fn stream(self, chunks: u32, each: Duration, end: StreamEnd) -> Body {
        let stream =
            futures_util::stream::unfold((Some(self), 0), move |(busy, sent)| async move {
                // What has broken is over.
                let busy = busy?;
                tokio::time::sleep(each).await;
                match sent {
                    sent if sent < chunks => Some((Ok("data: x\n\n"), (Some(busy), sent + 1))),
                    _ => match end {
                        StreamEnd::Whole => None,
                        StreamEnd::Broken => {
                            Some((Err(std::io::Error::other("scripted")), (None, sent)))
                        }
                        StreamEnd::Panic => panic!("scripted"),
                    },
                }
            });
        Body::wrap_stream(stream.fuse())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::SeqCst);
    }
}

const FIRST: usize = 8;
const SECOND: usize = 16;

/// Three providers, of which two are limited, and whose answers are streams of every kind.
fn streams(seed: u64) -> (World, [Server; 2]) {
    use StreamEnd::{Broken, Panic, Whole};
    let servers = [Server::default(), Server::default()];
    let numbers = Arc::new(AtomicU64::new(seed));
    let of = |server: &Server| {
        let (server, numbers) = (server.clone(), numbers.clone());
        script(move |_| {
            let (server, numbers) = (server.clone(), numbers.clone());
            async move {
                let mut dice = fastrand::Rng::with_seed(numbers.fetch_add(1, Ordering::Relaxed));
                let busy = server.enter();
                tokio::time::sleep(ms(dice.u64(0..30))).await;
                match dice.u8(0..20) {
                    0 => panic!("scripted"),
                    1 => {
                        let end = if dice.u8(0..4) == 0 { Panic } else { Whole };
                        answer(400, &[], busy.stream(dice.u32(0..3), ms(1), end))
                    }
                    2 => Err(reqwest_middleware::Error::middleware(std::io::Error::other("lost"))),
                    3 => answer(204, &[], ""),
                    // A failed answer whose body does not arrive in time.
                    4 => answer(400, &[], busy.stream(3, ms(60), Whole)),
                    kind => {
                        let headers = [("content-type", "text/event-stream".to_owned())];
                        let (chunks, each) = (dice.u32(0..6), ms(dice.u64(0..10)));
                        let end = match kind {
                            5 => Broken,
                            6 => Panic,
                            _ => Whole,
                        };
                        answer(200, &headers, busy.stream(chunks, each, end))
                    }
                }
            }
        })
    };
    let providers = vec![
        provider("first").max_in_flight(FIRST),
        provider("second").max_in_flight(SECOND),
        provider("third"),
    ];
    let scripts = [("first", of(&servers[0])), ("second", of(&servers[1])), ("third", healthy())];
    let (inspects, hedges) = (seed % 2 == 1, seed >= 3);
    let world = World::of(providers, scripts, |builder| {
        // No breaker opens, so that the limits are what decides.
        let builder = builder
            .breaker(Breaker::default().consecutive(u32::MAX).ratio(1.0, u32::MAX))
            .health_by(HealthKey::model());
        let hedge = Hedge::after(ms(10)).max_extra(1.0);
        let builder = if hedges { builder.hedge(hedge) } else { builder };
        if inspects { builder.inspect(Inspect::errors_in_success()) } else { builder }
    });
    (world, servers)
}

/// One caller, who does with its stream what callers do.
async fn call(world: World, mut dice: fastrand::Rng) {
    let model = ["a", "b", "c"][dice.usize(0..3)];
    let patience = if dice.u8(0..4) == 0 { ms(dice.u64(0..25)) } else { secs(60) };
    let Ok(Ok(mut response)) = tokio::time::timeout(patience, world.send(model)).await else {
        return;
    };
    match dice.u8(0..40) {
        // It is dropped while its task unwinds.
        0 => panic!("scripted"),
        1..=9 => _ = response.bytes().await,
        10..=19 => {
            for _ in 0..dice.u8(0..4) {
                let _ = response.chunk().await;
            }
        }
        // It is not read for a while.
        20..=29 => {
            tokio::time::sleep(ms(dice.u64(0..100))).await;
            drop(response);
        }
        _ => while let Ok(Some(_)) = response.chunk().await {},
    }
}

fn quiet_panics() {
    static QUIET: LazyLock<()> = LazyLock::new(|| {
        let loud = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if panic.payload().downcast_ref() != Some(&"scripted") {
                loud(panic);
            }
        }));
    });
    LazyLock::force(&QUIET);
}

#[tokio::test(start_paused = true)]
async fn a_hundred_thousand_streams_leak_no_slot_and_are_never_more_than_allowed() {
    const STREAMS: usize = 100_000;
    quiet_panics();
    let began = std::time::Instant::now();
    for seed in [1, 2, 3] {
        let (world, servers) = streams(seed);
        let total = |servers: &[Server; 2]| -> usize {
            servers.iter().map(|server| server.total.load(Ordering::SeqCst)).sum()
        };
        let callers: Vec<_> = (0..64)
            .map(|caller| {
                let (world, servers) = (world.clone(), servers.clone());
                tokio::spawn(async move {
                    let mut dice = fastrand::Rng::with_seed(caller << 8 | seed);
                    while total(&servers) < STREAMS / 3 + 1 {
                        // In a task of its own, since it may panic.
                        let _ = tokio::spawn(call(world.clone(), dice.fork())).await;
                        tokio::time::sleep(ms(dice.u64(0..10))).await;
                    }
                })
            })
            .collect();
        for caller in callers {
            caller.await.unwrap();
        }
        for (server, most) in servers.iter().zip([FIRST, SECOND]) {
            assert_eq!(server.most(), most, "the limit is reached, and not crossed");
            assert_eq!(server.now.load(Ordering::SeqCst), 0);
        }
        let snapshot = world.chain.snapshot();
        for provider in snapshot.providers() {
            assert_eq!(provider.in_flight(), 0, "{} has leaked slots", provider.name());
        }
        println!(
            "{} requests, {} at the limited providers, of {:?}: 0 slots leaked",
            snapshot.requests(),
            total(&servers),
            servers.map(|server| server.total.load(Ordering::SeqCst)),
        );
    }
    println!("in {:.1} s", began.elapsed().as_secs_f64());
}

#[test]
fn a_dropped_runtime_leaks_no_slot() {
    quiet_panics();
    let (world, servers) = streams(7);
    for round in 0..200 {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            for caller in 0..40 {
                tokio::spawn(call(world.clone(), fastrand::Rng::with_seed(round << 8 | caller)));
            }
            tokio::time::sleep(ms(round % 20)).await;
        });
        drop(runtime);
        for provider in world.chain.snapshot().providers() {
            assert_eq!(provider.in_flight(), 0, "{} in round {round}", provider.name());
        }
    }
    for (server, most) in servers.iter().zip([FIRST, SECOND]) {
        assert!(server.most() <= most);
        assert_eq!(server.now.load(Ordering::SeqCst), 0);
        let total = server.total.load(Ordering::SeqCst);
        assert!(total > 1_000, "{total} requests prove little");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_counts_until_its_body_ends_or_is_dropped() {
    let first = script(|_| async {
        let chunks = ["a", "b"].map(Ok::<_, std::io::Error>);
        answer(200, &[], Body::wrap_stream(futures_util::stream::iter(chunks)))
    });
    let providers = vec![provider("first").max_in_flight(1), provider("second")];
    let world = World::of(providers, [("first", first), ("second", healthy())], |builder| builder);
    let in_flight = || world.of_provider("first").in_flight();

    let mut read = world.send("m").await.unwrap();
    assert_eq!((in_flight(), world.state("first")), (1, State::AtCapacity));
    assert_eq!(world.ask("m").await, "second", "unread, it counts");
    assert_eq!(read.chunk().await.unwrap().unwrap(), "a");
    assert_eq!(in_flight(), 1);
    assert_eq!(read.chunk().await.unwrap().unwrap(), "b");
    assert_eq!(read.chunk().await.unwrap(), None);
    assert_eq!((in_flight(), world.state("first")), (0, State::Closed), "read to its end");

    let unread = world.send("m").await.unwrap();
    assert_eq!(in_flight(), 1);
    drop(unread);
    assert_eq!(in_flight(), 0, "dropped");
    assert_eq!(world.asked("first"), 2);
    assert_eq!(world.of_provider("first").failures(), 0, "it is no fault to be busy");
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_the_same_with_a_limit_as_without() {
    let mut ends = Vec::new();
    for limit in [false, true] {
        let first = script(|_| async {
            answer(200, &[("x-id", "7".to_owned()), ("content-length", "5".to_owned())], "hello")
        });
        let first_provider =
            if limit { provider("first").max_in_flight(1) } else { provider("first") };
        let world = World::of(vec![first_provider], [("first", first)], |builder| builder);
        let response = world.send("m").await.unwrap();
        assert_eq!(
            (response.status().as_u16(), &response.headers()["x-id"]),
            (200, &"7".parse().unwrap())
        );
        assert_eq!(response.content_length(), Some(5));
        assert_eq!(response.url().as_str(), "http://no.url.provided.local/");
        let mut body = Body::from(response);
        let at_first = body.is_end_stream();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "hello");
        ends.push([at_first, body.is_end_stream()]);
        assert!(body.frame().await.is_none());
        assert_eq!(world.of_provider("first").in_flight(), 0);
    }
    assert_eq!(ends[0], ends[1], "whether the end is known before it is asked for");
}

#[tokio::test(start_paused = true)]
async fn a_failed_answer_that_was_read_is_not_in_flight_during_the_next_attempt() {
    let world = Arc::new(Mutex::new(None::<World>));
    let seen = Arc::new(AtomicU64::new(u64::MAX));
    let second = {
        let (world, seen) = (world.clone(), seen.clone());
        script(move |_| {
            let world = world.lock().unwrap().clone().unwrap();
            seen.store(world.of_provider("first").in_flight(), Ordering::SeqCst);
            async { ok() }
        })
    };
    let providers = vec![provider("first").max_in_flight(1), provider("second")];
    let first = script(|_| async { answer(400, &[], "no") });
    let made = World::of(providers, [("first", first), ("second", second)], |builder| builder);
    *world.lock().unwrap() = Some(made.clone());
    assert_eq!(made.ask("m").await, "second");
    assert_eq!(seen.load(Ordering::SeqCst), 0);
    *world.lock().unwrap() = None;
}

#[tokio::test(start_paused = true)]
async fn when_all_are_full_they_are_asked_all_the_same() {
    let slow = || {
        script(|_| async {
            tokio::time::sleep(secs(1)).await;
            ok()
        })
    };
    let providers = ["first", "second"].map(|name| provider(name).max_in_flight(1)).into();
    let world = World::of(providers, [("first", slow()), ("second", slow())], |builder| builder);
    let callers: Vec<_> = (0..5).map(|_| world.spawn("m")).collect();
    for caller in callers {
        caller.await.unwrap();
    }
    assert_eq!((world.asked("first"), world.asked("second")), (4, 1));
    assert_eq!(world.told(), ["full first", "full second"], "one event each, not one a request");
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_stays_busy_is_news_once() {
    let slow = script(|_| async {
        tokio::time::sleep(ms(100)).await;
        ok()
    });
    let providers = vec![provider("first").max_in_flight(1), provider("second")];
    let world = World::of(providers, [("first", slow), ("second", healthy())], |builder| builder);
    world.served_by_first(1_000, ms(10), |_| "m").await;
    assert_eq!(world.told(), ["full first"]);
    tokio::time::sleep(secs(61)).await;
    world.served_by_first(10, ms(10), |_| "m").await;
    assert_eq!(world.told(), ["full first"]);
}

#[test]
fn settings_that_make_no_sense_are_named() {
    let error = ProviderChain::builder([provider("gpu").max_in_flight(0)]).build().unwrap_err();
    assert_eq!(error.to_string(), "provider `gpu`: max_in_flight: must be at least 1");
    for wrong in [
        Cooldown::default().at_most(Duration::ZERO),
        Cooldown::default().without_hint(Duration::ZERO),
        Cooldown::default().at_most(secs(4)),
    ] {
        let error = ProviderChain::builder([provider("p")]).cooldown(wrong).build().unwrap_err();
        assert!(error.to_string().starts_with("cooldown: "), "{error}");
        assert_eq!(error.provider(), None);
    }
    let right = Cooldown::default().at_most(ms(1)).without_hint(ms(1));
    assert!(ProviderChain::builder([provider("p")]).cooldown(right).build().is_ok());
}

// Health keys.

#[tokio::test(start_paused = true)]
async fn what_concerns_the_account_or_the_host_rests_every_model() {
    let quota = || {
        let error = r#"{"error":{"code":"insufficient_quota","message":"no credit"}}"#;
        answer(429, &[("retry-after", "60".to_owned())], error)
    };
    let refused = || Err(reqwest_middleware::Error::middleware(std::io::Error::other("refused")));
    let refused_key = || answer(401, &[], "no such key");
    for (is_quota, times) in [(true, 1), (false, 5)] {
        let first = move || if is_quota { quota() } else { refused_key() };
        let world = World::new(script(move |_| async move { first() }), by_model(true));
        for _ in 0..times {
            assert_eq!(world.ask("a").await, "second");
        }
        let before = world.asked("first");
        assert_eq!(world.ask("b").await, "second");
        assert_eq!(world.asked("first"), before, "no other model is tried");
        assert_ne!(world.state("first"), State::Closed);
        assert!(world.resting().is_empty());
    }
    // What says nothing of the host counts for the model.
    let world = World::new(script(move |_| async move { refused() }), by_model(true));
    for _ in 0..5 {
        assert_eq!(world.ask("a").await, "second");
    }
    assert_eq!((world.state("first"), world.resting()), (State::Closed, vec!["a".to_owned()]));
}

#[tokio::test]
async fn a_refused_connection_rests_every_model() {
    let providers = [
        Provider::new("first", "http://127.0.0.1:1/v1"),
        Provider::new("second", "http://127.0.0.1:2/v1"),
    ];
    let chain = ProviderChain::builder(providers).health_by(HealthKey::model()).build().unwrap();
    let client = ClientBuilder::new(UNUSED.clone()).with(chain.clone()).build();
    for number in 0..5 {
        let body = format!(r#"{{"model":"m{number}"}}"#);
        client.post("http://127.0.0.1:1/v1/x").body(body).send().await.unwrap_err();
    }
    for provider in chain.snapshot().providers() {
        assert!(matches!(provider.state(), State::Open { .. }), "{provider:?}");
        assert_eq!(provider.resting_keys().count(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_classify_of_ones_own_decides_what_a_key_records() {
    // An answer that is accepted rests no key.
    let world = World::new(script(|_| async { unknown_model() }), |builder| {
        builder.health_by(HealthKey::model()).classify(|_| Verdict::Accept)
    });
    assert_eq!(world.send("m").await.unwrap().status(), 404);
    assert!(world.resting().is_empty());
    let world = World::new(script(|_| async { answer(418, &[], "") }), |builder| {
        builder
            .health_by(HealthKey::model())
            .classify(|_| Verdict::FailOver(Fault::Cooldown(Some(secs(9)))))
    });
    let _ = world.send("m").await;
    assert_eq!(world.resting(), ["m"]);
}

#[tokio::test(start_paused = true)]
async fn events_and_the_snapshot_say_which_key_it_is() {
    let down = Arc::new(AtomicBool::new(true));
    let is_down = down.clone();
    let first = script(move |_| {
        let is_down = is_down.load(Ordering::SeqCst);
        async move { if is_down { answer(500, &[], "") } else { ok() } }
    });
    let world = World::new(first, by_model(true));
    for _ in 0..5 {
        world.ask("m\u{7}\n\u{202e}").await;
    }
    let key = r"m\u{7}\n\u{202e}";
    assert_eq!(world.resting(), [key]);
    let (_, state) =
        world.of_provider("first").resting_keys().map(|(_, it)| ((), it)).next().unwrap();
    assert!(matches!(state, State::Open { .. }), "{state:?}");
    assert_eq!(world.told(), [format!("opened first Some({key:?})")]);
    down.store(false, Ordering::SeqCst);
    tokio::time::sleep(secs(30)).await;
    assert_eq!(world.ask("m\u{7}\n\u{202e}").await, "first");
    let events = ["probing", "closed"].map(|what| format!("{what} first Some({key:?})"));
    assert_eq!(world.told(), events);
    assert!(world.resting().is_empty());
}

#[tokio::test(start_paused = true)]
async fn no_key_of_a_provider_is_shown_as_a_health_key() {
    let world = World::new(script(|_| async { limited("retry-after", 60) }), by_model(true));
    world.ask("key-of-second").await;
    let shown = format!("{:?} {:?} {:?}", world.resting(), world.told(), world.chain.snapshot());
    assert!(!shown.contains("key-of-second"), "{shown}");
    assert_eq!(world.resting().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_closure_that_panics_gives_no_key_and_is_counted() {
    quiet_panics();
    let world = World::new(script(|_| async { limited("retry-after", 60) }), |builder| {
        builder.health_by(HealthKey::new(|_| panic!("scripted")))
    });
    assert_eq!(world.ask("m").await, "second");
    assert!(matches!(world.state("first"), State::CoolingDown { .. }));
    assert_eq!(world.told()[0], "panicked health_by");
    assert_eq!(world.chain.snapshot().callback_panics(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_key_is_read_once_for_each_request() {
    let calls = Arc::new(AtomicUsize::new(0));
    let count = calls.clone();
    let world = World::new(script(|_| async { answer(500, &[], "") }), move |builder| {
        builder.health_by(HealthKey::new(move |request| {
            count.fetch_add(1, Ordering::SeqCst);
            assert_eq!(request.url().host_str(), Some("caller.test"));
            Some("all".to_owned())
        }))
    });
    for _ in 0..7 {
        assert_eq!(world.ask("m").await, "second");
    }
    assert_eq!(calls.load(Ordering::SeqCst), 7);
    assert_eq!((world.asked("first"), world.resting()), (5, vec!["all".to_owned()]));
}

#[tokio::test(start_paused = true)]
async fn a_hint_of_milliseconds_is_obeyed_to_the_millisecond() {
    for (value, rest) in [("40", ms(40)), ("1", ms(1)), ("0", secs(1)), ("400000", secs(300))] {
        let first = script(move |_| async move { limited("retry-after-ms", value) });
        let providers = ["first", "second"].map(provider).into();
        let scripts = [("first", first), ("second", script(|_| async { ok() }))];
        let world = World::of(providers, scripts, |builder| builder);
        world.ask("m").await;
        let State::CoolingDown { until, .. } = world.state("first") else { panic!("{value}") };
        assert_eq!(Instant::from_std(until) - Instant::now(), rest, "{value}");
    }
}
