//! What a chain lets be seen: events, spans, log lines, metrics and the fallback rate; and what it
//! never shows.

use reqwest_failover_testing::support;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use http::Extensions;
use reqwest::{Body, Request, Response};
use reqwest_failover::{
    Breaker, Event, Provider, ProviderChain, ProviderChainBuilder, Reason, Report, Route,
};
use reqwest_middleware::{
    ClientBuilder, ClientWithMiddleware, Error, Middleware, Next, RequestBuilder, Result,
};

use support::canary::{CORE, assert_no_key, canary};
use support::lock;

const URL: &str = "https://openai.test/v1/chat/completions";

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// What the first provider answers, and what the second one does.
struct Ends(AtomicU16, Second, Mutex<Option<&'static str>>);

enum Second {
    Answers,
    Fails,
    /// Has not what is asked for.
    Refuses,
}

impl Ends {
    fn fail(&self, status: u16) {
        self.0.store(status, Ordering::Relaxed);
    }

    /// With this code in its body.
    #[cfg(feature = "tracing")]
    fn fail_with(&self, status: u16, code: &'static str) {
        *lock(&self.2) = Some(code);
        self.fail(status);
    }

    fn hang(&self) {
        self.fail(0);
    }

    fn recover(&self) {
        self.fail(200);
    }
}

#[async_trait]
impl Middleware for Ends {
    async fn handle(&self, request: Request, _: &mut Extensions, _: Next<'_>) -> Result<Response> {
        #[cfg(feature = "tracing")]
        tracing::info!("inside");
        let status = match request.url().host_str() {
            Some("cometapi.test") => self.0.load(Ordering::Relaxed),
            _ => match self.1 {
                Second::Answers => 200,
                Second::Fails => 500,
                Second::Refuses => 404,
            },
        };
        if status == 0 {
            std::future::pending::<()>().await;
        }
        let code = lock(&self.2).map(|code| format!(r#""code":"{code}","#)).unwrap_or_default();
        let body = format!(r#"{{"error":{{{code}"message":"the sky is falling"}}}}"#);
        let response = http::Response::builder().status(status).header("retry-after-ms", "2000");
        Ok(response.body(body).unwrap().into())
    }
}

fn providers() -> [Provider; 2] {
    [
        Provider::new("cometapi", "https://cometapi.test/v1").bearer_auth("key-a"),
        Provider::new("openai", "https://openai.test/v1").bearer_auth("key-b"),
    ]
}

fn chain() -> ProviderChainBuilder {
    ProviderChain::builder(providers())
}

/// A chain over two providers that need no network, and the first one's mood.
struct Scene {
    client: ClientWithMiddleware,
    chain: ProviderChain,
    ends: Arc<Ends>,
}

impl Scene {
    fn of(chain: ProviderChainBuilder) -> Self {
        Self::with(chain, Second::Answers)
    }

    fn with(chain: ProviderChainBuilder, second: Second) -> Self {
        let chain = chain.build().unwrap();
        let ends = Arc::new(Ends(AtomicU16::new(200), second, Mutex::default()));
        let client = ClientBuilder::new(reqwest::Client::new())
            .with(chain.clone())
            .with_arc(ends.clone())
            .build();
        Self { client, chain, ends }
    }

    fn post(&self) -> RequestBuilder {
        self.client.post(URL).body("{}")
    }

    async fn ask(&self) -> Report {
        Report::of(&self.post().send().await.unwrap()).unwrap().clone()
    }

    /// So many requests that the first provider serves, or that it fails.
    async fn serve(&self, requests: usize) {
        self.ends.recover();
        for _ in 0..requests {
            assert_eq!(self.ask().await.served_by(), Some("cometapi"));
        }
    }

    async fn fail_over(&self, requests: usize) {
        self.ends.fail(500);
        for _ in 0..requests {
            assert_eq!(self.ask().await.served_by(), Some("openai"));
        }
    }
}

/// Keeps what a closure makes of the events.
fn keep<T: Send + 'static>(
    chain: ProviderChainBuilder,
    see: impl Fn(&Event<'_>) -> Option<T> + Send + Sync + 'static,
) -> (ProviderChainBuilder, Arc<Mutex<Vec<T>>>) {
    let kept = Arc::new(Mutex::new(Vec::new()));
    let keeper = kept.clone();
    let chain = chain.observe(move |event| lock(&keeper).extend(see(event)));
    (chain, kept)
}

/// An event's name.
fn name(event: &Event<'_>) -> String {
    let shown = format!("{event:?}");
    shown.split([' ', '{']).next().unwrap().to_owned()
}

// The end of a request.

#[tokio::test(start_paused = true)]
async fn finished_ends_every_claimed_request() {
    let (chain, names) = keep(chain().attempt_timeout(ms(900)), |event| match event {
        Event::Finished { report, .. } => Some(format!("Finished {:?}", report.served_by())),
        event => Some(name(event)),
    });
    let scene = Scene::with(chain.breaker(Breaker::default().consecutive(99)), Second::Fails);
    let told = || std::mem::take(&mut *lock(&names)).join(", ");

    assert_eq!(scene.ask().await.served_by(), Some("cometapi"));
    assert_eq!(told(), r#"AttemptStarted, AttemptFinished, Finished Some("cometapi")"#);

    scene.ends.fail(500);
    assert_eq!(scene.post().send().await.unwrap().status(), 500);
    let both = "AttemptStarted, AttemptFinished, FailedOver, AttemptStarted, AttemptFinished";
    assert_eq!(told(), format!("{both}, Exhausted, Finished None"));

    // A path that hides a dot segment, and a route to an unknown provider: refused.
    let hidden = scene.client.get("https://openai.test/v1/a/..%2fb").send().await;
    hidden.expect_err("refused");
    assert_eq!(told(), "Finished None");
    let lost = scene.post().with_extension(Route::only(["unknown"])).send().await;
    lost.expect_err("refused");
    assert_eq!(told(), "Finished None");

    // The caller's own stream breaks off: in the buffer, before anything is sent.
    let broken = futures_util::stream::iter([Ok("{"), Err(io::Error::other("broke off"))]);
    let upload = scene.client.post(URL).header("content-length", "2");
    upload.body(Body::wrap_stream(broken)).send().await.expect_err("the stream broke off");
    assert_eq!(told(), "Finished None");

    // Dropped while an attempt is in flight: the first one, or the second one.
    scene.ends.hang();
    tokio::time::timeout(ms(300), scene.post().send()).await.expect_err("it hangs");
    assert_eq!(told(), "AttemptStarted, AttemptFinished, Finished None");

    // Dropped while its body is read.
    let endless = Body::wrap_stream(futures_util::stream::pending::<io::Result<&str>>());
    let upload = scene.client.post(URL).header("content-length", "2").body(endless);
    tokio::time::timeout(ms(300), upload.send()).await.expect_err("it has no end");
    assert_eq!(told(), "Finished None");

    // Never begun.
    drop(scene.post().send());
    assert_eq!(told(), "");

    // No provider may be asked.
    scene.chain.isolate("cometapi").unwrap();
    scene.chain.isolate("openai").unwrap();
    scene.post().send().await.expect_err("no provider to ask");
    assert_eq!(told(), "Exhausted, Finished None");

    let snapshot = scene.chain.snapshot();
    assert_eq!((snapshot.requests(), snapshot.exhausted()), (8, 2));

    // Passed through: not claimed.
    scene.client.get("https://elsewhere.test/v1").send().await.expect("passed through");
    assert_eq!(told(), "PassedThrough");
}

#[tokio::test(start_paused = true)]
async fn a_request_can_be_dropped_after_each_poll_and_is_finished_once() {
    for patience in 0..60 {
        let (chain, names) = keep(chain().attempt_timeout(ms(20)), |event| Some(name(event)));
        let scene = Scene::of(chain);
        scene.ends.hang();
        let _ = tokio::time::timeout(ms(patience), scene.post().send()).await;
        let names = lock(&names);
        assert_eq!(names.last().map(String::as_str), Some("Finished"), "{names:?}");
        let count = |name: &str| names.iter().filter(|told| *told == name).count();
        assert_eq!(count("Finished"), 1, "{names:?}");
        assert_eq!(count("AttemptStarted"), count("AttemptFinished"), "{names:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn added_latency_is_what_the_failed_attempts_took() {
    let (chain, added) = keep(chain().attempt_timeout(ms(250)), |event| match event {
        Event::Finished { added_latency, .. } => Some(*added_latency),
        _ => None,
    });
    let scene = Scene::of(chain);
    scene.serve(1).await;
    scene.ends.hang();
    assert_eq!(scene.ask().await.served_by(), Some("openai"));
    assert_eq!(*lock(&added), [Some(ms(0)), Some(ms(250))]);
}

// Which request an event is about.

#[derive(Clone, Debug, PartialEq)]
struct Tenant(&'static str);

#[tokio::test(start_paused = true)]
async fn every_event_of_a_request_has_its_id_and_the_callers_extensions() {
    let (chain, seen) = keep(chain().breaker(Breaker::default().consecutive(1)), |event| {
        let tenant = event.extensions().and_then(|extensions| extensions.get::<Tenant>());
        Some((name(event), event.request_id(), tenant.cloned()))
    });
    let scene = Scene::of(chain);
    scene.ends.fail(500);
    for (tenant, id) in [(Tenant("a"), 1), (Tenant("b"), 2)] {
        let response = scene.post().with_extension(tenant.clone()).send().await.unwrap();
        assert_eq!(Report::of(&response).unwrap().id(), id);
        let seen = std::mem::take(&mut *lock(&seen));
        assert!(!seen.is_empty());
        for event in seen {
            assert_eq!((event.1, &event.2), (Some(id), &Some(tenant.clone())), "{event:?}");
        }
    }
    let elsewhere = scene.client.get("https://elsewhere.test/v1").with_extension(Tenant("c"));
    elsewhere.send().await.unwrap();
    let passed = ("PassedThrough".to_owned(), None, Some(Tenant("c")));
    assert_eq!(*lock(&seen), [passed], "it is not claimed");
}

#[tokio::test(start_paused = true)]
async fn an_abandoned_request_has_its_id_and_extensions_to_the_end() {
    let (chain, seen) = keep(chain(), |event| {
        let has_tenant = event.extensions().is_some_and(|it| it.get::<Tenant>().is_some());
        Some((name(event), event.request_id(), has_tenant))
    });
    let scene = Scene::of(chain);
    scene.ends.hang();
    let request = scene.post().with_extension(Tenant("a")).send();
    tokio::time::timeout(ms(9), request).await.expect_err("it hangs");
    let seen = lock(&seen);
    assert_eq!(seen.len(), 3, "{seen:?}");
    assert!(seen.iter().all(|(_, id, tenant)| *id == Some(1) && *tenant), "{seen:?}");
}

#[tokio::test(start_paused = true)]
async fn what_one_outcome_causes_is_emitted_in_order_also_to_a_slow_observer() {
    let (chain, names) = keep(chain().breaker(Breaker::default().consecutive(1)), |event| {
        std::thread::sleep(ms(1));
        Some(name(event))
    });
    let scene = Scene::of(chain.fallback_alert(0.0, 0.0));
    for _ in 0..19 {
        scene.ask().await;
    }
    lock(&names).clear();
    scene.ends.fail(500);
    scene.ask().await;
    assert_eq!(
        lock(&names).join(" "),
        "AttemptStarted AttemptFinished BreakerOpened FailedOver AttemptStarted AttemptFinished \
         Finished FallbackRateHigh"
    );
}

#[tokio::test(start_paused = true)]
async fn a_second_observer_adds_to_the_first_also_where_that_panics() {
    let (chain, first) = keep(chain(), |event| Some(name(event)));
    let chain = chain.observe(|_| panic!("an observer that panics"));
    let (chain, third) = keep(chain, |event| Some(name(event)));
    let scene = Scene::of(chain);
    scene.ask().await;
    assert_eq!(lock(&first).len(), 3);
    assert_eq!(*lock(&first), *lock(&third));
    assert_eq!(scene.chain.snapshot().callback_panics(), 3);
}

#[tokio::test(start_paused = true)]
async fn what_an_operator_takes_out_raises_no_alarm() {
    type Alarms = Arc<Mutex<Vec<String>>>;
    let is_alarm = |event: &Event<'_>| match event {
        Event::FallbackRateHigh { provider, .. } => Some((*provider).to_owned()),
        _ => None,
    };
    let (chain, alarms): (_, Alarms) = keep(chain(), is_alarm);
    let scene = Scene::of(chain);
    scene.serve(30).await;
    scene.chain.isolate("cometapi").unwrap();
    assert_eq!(scene.chain.snapshot().fallback_ratio(), None, "it begins anew");
    for _ in 0..100 {
        assert_eq!(scene.ask().await.served_by(), Some("openai"));
    }
    assert_eq!(scene.chain.snapshot().fallback_ratio(), Some(0.0));
    scene.chain.restore("cometapi").unwrap();
    assert_eq!(scene.chain.snapshot().fallback_ratio(), None);
    scene.serve(30).await;
    // To take out another provider than the first changes nothing.
    scene.chain.isolate("openai").unwrap();
    scene.chain.restore("openai").unwrap();
    assert_eq!(scene.chain.snapshot().fallback_ratio(), Some(0.0));
    scene.chain.set_order(["openai", "cometapi"]).unwrap();
    assert_eq!(scene.chain.snapshot().fallback_ratio(), None);
    assert!(lock(&alarms).is_empty());
    // What goes wrong after that does.
    scene.chain.set_order(["cometapi", "openai"]).unwrap();
    scene.fail_over(20).await;
    assert_eq!(*lock(&alarms), ["cometapi"]);
}

// The fallback rate.

#[derive(Clone, Debug, PartialEq)]
enum Crossing {
    High { provider: String, percent: f64, reason: Option<Reason> },
    Normal { provider: String, percent: f64 },
}

fn percent(ratio: f64) -> f64 {
    (ratio * 10_000.0).round() / 100.0
}

/// Every request asks the first provider first, whatever it did.
fn rated(chain: ProviderChainBuilder) -> (Scene, Arc<Mutex<Vec<Crossing>>>) {
    rated_with_health(chain.without_health())
}

fn rated_with_health(chain: ProviderChainBuilder) -> (Scene, Arc<Mutex<Vec<Crossing>>>) {
    let (chain, crossings) = keep(chain, |event| match event {
        Event::FallbackRateHigh { provider, ratio, reason, .. } => Some(Crossing::High {
            provider: (*provider).to_owned(),
            percent: percent(*ratio),
            reason: *reason,
        }),
        Event::FallbackRateNormal { provider, ratio, .. } => {
            Some(Crossing::Normal { provider: (*provider).to_owned(), percent: percent(*ratio) })
        }
        _ => None,
    });
    (Scene::of(chain), crossings)
}

fn high(percent: f64) -> Crossing {
    let (provider, reason) = ("cometapi".to_owned(), Some(Reason::ServerError));
    Crossing::High { provider, percent, reason }
}

fn normal(percent: f64) -> Crossing {
    Crossing::Normal { provider: "cometapi".to_owned(), percent }
}

fn take<T>(kept: &Mutex<Vec<T>>) -> Vec<T> {
    std::mem::take(&mut *lock(kept))
}

/// The clock stands still in this and the next tests unless they advance it.
#[tokio::test(start_paused = true)]
async fn the_fallback_rate_is_high_above_ten_percent_and_normal_below_five() {
    let (scene, crossings) = rated(chain());
    scene.serve(90).await;
    scene.fail_over(10).await;
    assert_eq!(take(&crossings), [], "10 % is not above 10 %");
    assert_eq!(scene.chain.snapshot().fallback_ratio(), Some(0.1));
    scene.fail_over(1).await;
    assert_eq!(take(&crossings), [high(10.89)]);
    scene.fail_over(4).await;
    assert_eq!(take(&crossings), [], "said already");

    // 15 of 300 is 5 %.
    scene.serve(195).await;
    assert_eq!(scene.chain.snapshot().fallback_ratio(), Some(0.05));
    assert_eq!(take(&crossings), [], "5 % is not below 5 %");
    scene.serve(1).await;
    assert_eq!(take(&crossings), [normal(4.98)]);
    scene.serve(50).await;
    assert_eq!(take(&crossings), [], "said already");
}

#[tokio::test(start_paused = true)]
async fn jitter_around_a_limit_is_one_crossing() {
    let (scene, crossings) = rated(chain());
    scene.serve(90).await;
    scene.fail_over(10).await;
    let mut sides = [false; 2];
    for _ in 0..20 {
        scene.fail_over(1).await;
        sides[0] |= scene.chain.snapshot().fallback_ratio() > Some(0.1);
        scene.serve(10).await;
        sides[1] |= scene.chain.snapshot().fallback_ratio() < Some(0.1);
    }
    assert_eq!(sides, [true; 2], "the rate was on either side");
    assert_eq!(take(&crossings).len(), 1);

    scene.serve(270).await;
    let mut sides = [false; 2];
    for _ in 0..20 {
        scene.serve(20).await;
        sides[0] |= scene.chain.snapshot().fallback_ratio() < Some(0.05);
        scene.fail_over(1).await;
        sides[1] |= scene.chain.snapshot().fallback_ratio() > Some(0.05);
    }
    assert_eq!(sides, [true; 2], "the rate was on either side");
    assert!(matches!(take(&crossings)[..], [Crossing::Normal { .. }]));
}

#[tokio::test(start_paused = true)]
async fn nineteen_requests_say_nothing_and_five_minutes_are_forgotten() {
    let (scene, crossings) = rated(chain());
    scene.fail_over(19).await;
    assert_eq!((scene.chain.snapshot().fallback_ratio(), take(&crossings)), (None, vec![]));
    scene.fail_over(1).await;
    assert_eq!(take(&crossings), [high(100.0)]);
    tokio::time::advance(Duration::from_secs(301)).await;
    assert_eq!(scene.chain.snapshot().fallback_ratio(), None);
    scene.serve(19).await;
    assert_eq!(take(&crossings), [], "too few to say that it is over");
    scene.serve(1).await;
    assert_eq!(take(&crossings), [normal(0.0)]);
}

#[tokio::test(start_paused = true)]
async fn the_limits_of_the_fallback_rate_can_be_set() {
    let (scene, crossings) = rated(chain().fallback_alert(0.5, 0.25));
    scene.serve(10).await;
    scene.fail_over(10).await;
    assert_eq!(take(&crossings), []);
    scene.fail_over(1).await;
    assert_eq!(take(&crossings), [high(52.38)]);
    scene.serve(23).await;
    assert_eq!(take(&crossings), [], "11 of 44 is a quarter");
    scene.serve(1).await;
    assert_eq!(take(&crossings), [normal(24.44)]);

    for (high, normal) in
        [(0.05, 0.10), (1.01, 0.5), (0.1, -0.01), (f64::NAN, 0.0), (0.1, f64::NAN), (f64::MAX, 0.0)]
    {
        let error = chain().fallback_alert(high, normal).build().unwrap_err();
        assert!(error.to_string().starts_with("fallback_alert: "), "{error}");
        assert_eq!(error.provider(), None);
    }
    for (high, normal) in [(0.0, 0.0), (1.0, 1.0), (0.1, 0.1), (1.0, 0.0)] {
        chain().fallback_alert(high, normal).build().expect("an ordered pair of shares");
    }
}

#[tokio::test(start_paused = true)]
async fn the_fallback_rate_names_the_most_frequent_reason() {
    let (scene, crossings) = rated(chain());
    scene.serve(17).await;
    scene.fail_over(1).await;
    scene.ends.fail(429);
    scene.ask().await;
    scene.ask().await;
    let (provider, reason) = ("cometapi".to_owned(), Some(Reason::RateLimited));
    assert_eq!(take(&crossings), [Crossing::High { provider, percent: 15.0, reason }]);

    // The first provider is not even asked: it failed longer ago than the rate looks back.
    let hour = Duration::from_secs(3600);
    let (scene, crossings) =
        rated_with_health(chain().breaker(Breaker::default().consecutive(1).breaks(hour, hour)));
    scene.fail_over(1).await;
    tokio::time::sleep(hour / 10).await;
    scene.fail_over(20).await;
    let provider = "cometapi".to_owned();
    assert_eq!(take(&crossings), [Crossing::High { provider, percent: 100.0, reason: None }]);
}

#[tokio::test(start_paused = true)]
async fn the_fallback_rate_is_about_the_chains_first_provider_only() {
    let (scene, crossings) = rated(chain());
    scene.serve(18).await;
    // A route of one's own, another host, a refused path and a dropped request are no news.
    for _ in 0..20 {
        let routed = scene.post().with_extension(Route::only(["openai"]));
        assert_eq!(routed.send().await.unwrap().status(), 200);
        scene.client.get("https://elsewhere.test/v1").send().await.unwrap();
        scene.client.get("https://openai.test/v1/..%2f").send().await.unwrap_err();
        scene.ends.hang();
        tokio::time::timeout(ms(1), scene.post().send()).await.unwrap_err();
    }
    assert_eq!(scene.chain.snapshot().fallback_ratio(), None);
    scene.fail_over(2).await;
    assert_eq!(scene.chain.snapshot().fallback_ratio(), Some(0.1));
    // Another first provider: another rate.
    scene.chain.set_order(["openai", "cometapi"]).unwrap();
    assert_eq!(scene.chain.snapshot().fallback_ratio(), None);
    assert_eq!(take(&crossings), []);
}

// Requests that every provider refused.

#[tokio::test(start_paused = true)]
async fn a_request_that_every_provider_refused_is_rejected_and_nothing_else() {
    let (chain, names) = keep(chain(), |event| Some(name(event)));
    let scene = Scene::with(chain, Second::Refuses);
    scene.ends.fail(404);
    for _ in 0..25 {
        assert_eq!(scene.post().send().await.unwrap().status(), 404);
        let told = take(&names).join(", ");
        let both = "AttemptStarted, AttemptFinished, FailedOver, AttemptStarted, AttemptFinished";
        assert_eq!(told, format!("{both}, Rejected, Finished"));
    }
    let snapshot = scene.chain.snapshot();
    assert_eq!((snapshot.requests(), snapshot.rejected(), snapshot.exhausted()), (25, 25, 0));
    assert_eq!(snapshot.fallback_ratio(), None, "no fallback rate");

    // A failure among them is an outage.
    scene.ends.fail(500);
    scene.post().send().await.unwrap();
    assert!(take(&names).contains(&"Exhausted".to_owned()));
    let snapshot = scene.chain.snapshot();
    assert_eq!((snapshot.rejected(), snapshot.exhausted()), (25, 1));
}

// Spans and log lines.

#[cfg(feature = "tracing")]
mod traced {
    use std::cell::RefCell;
    use std::collections::BTreeMap;
    use std::sync::Once;

    use tracing::field::{Field, Visit};
    use tracing::span::{Attributes, Id, Record};
    use tracing::{Level, Subscriber};
    use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
    use tracing_subscriber::registry::LookupSpan;

    use super::*;

    #[derive(Clone, Debug, Default)]
    pub(super) struct Span {
        pub(super) name: &'static str,
        pub(super) parent: Option<&'static str>,
        pub(super) fields: BTreeMap<&'static str, String>,
    }

    #[derive(Clone, Debug)]
    pub(super) struct Line {
        pub(super) level: Level,
        pub(super) target: &'static str,
        pub(super) within: Option<&'static str>,
        pub(super) fields: BTreeMap<&'static str, String>,
    }

    impl Line {
        pub(super) fn get(&self, field: &str) -> &str {
            self.fields.get(field).map_or("", String::as_str)
        }
    }

    #[derive(Default)]
    pub(super) struct Captured {
        /// In the order in which they were closed.
        pub(super) spans: Vec<Span>,
        pub(super) lines: Vec<Line>,
    }

    /// What this thread was told. One subscriber serves all threads: with one for each, a span that
    /// another thread without any is the first to meet is remembered as not seen.
    pub(super) struct Capture;

    thread_local! {
        static CAPTURED: RefCell<Captured> = RefCell::default();
    }

    impl Capture {
        /// Begins anew.
        pub(super) fn start() -> Self {
            static INSTALLED: Once = Once::new();
            INSTALLED.call_once(|| {
                let subscriber = tracing_subscriber::registry().with(Self);
                tracing::subscriber::set_global_default(subscriber).unwrap();
            });
            CAPTURED.take();
            Self
        }

        pub(super) fn take(&self) -> Captured {
            let mut captured = CAPTURED.take();
            captured.lines.retain(|line| line.get("message") != "inside");
            captured
        }

        /// The lines of one level.
        fn lines(&self, level: Level) -> Vec<Line> {
            let lines = CAPTURED.with_borrow(|captured| captured.lines.clone());
            lines.into_iter().filter(|line| line.level == level).collect()
        }
    }

    struct Fields<'a>(&'a mut BTreeMap<&'static str, String>);

    impl Visit for Fields<'_> {
        fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
            self.0.insert(field.name(), format!("{value:?}"));
        }

        fn record_str(&mut self, field: &Field, value: &str) {
            self.0.insert(field.name(), value.to_owned());
        }
    }

    impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Capture {
        fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
            let span = context.span(id).unwrap();
            let parent = span.parent().map(|parent| parent.name());
            let mut kept = Span { name: span.name(), parent, ..Span::default() };
            attributes.record(&mut Fields(&mut kept.fields));
            span.extensions_mut().insert(kept);
        }

        fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
            let span = context.span(id).unwrap();
            let mut extensions = span.extensions_mut();
            values.record(&mut Fields(&mut extensions.get_mut::<Span>().unwrap().fields));
        }

        fn on_event(&self, event: &tracing::Event<'_>, context: Context<'_, S>) {
            let within = context.event_span(event).map(|span| span.name());
            let (level, target) = (*event.metadata().level(), event.metadata().target());
            let mut line = Line { level, target, within, fields: BTreeMap::new() };
            event.record(&mut Fields(&mut line.fields));
            CAPTURED.with_borrow_mut(|captured| captured.lines.push(line));
        }

        fn on_close(&self, id: Id, context: Context<'_, S>) {
            let span = context.span(&id).unwrap();
            let kept = span.extensions().get::<Span>().cloned();
            CAPTURED.with_borrow_mut(|captured| captured.spans.extend(kept));
        }
    }

    fn fields(span: &Span) -> String {
        let fields = span.fields.iter().map(|(name, value)| format!("{name}={value}"));
        fields.collect::<Vec<_>>().join(" ")
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_is_a_span_and_each_attempt_is_one_below_it() {
        let capture = Capture::start();
        let scene = Scene::of(chain());
        scene.fail_over(1).await;
        let inside: Vec<_> = capture.lines(Level::INFO).iter().map(|line| line.within).collect();
        assert_eq!(inside, [Some("failover.attempt"); 2], "inner layers are within an attempt");
        let spans = capture.take().spans;
        let names: Vec<_> = spans.iter().map(|span| (span.name, span.parent)).collect();
        let attempt = ("failover.attempt", Some("failover.request"));
        assert_eq!(names, [attempt, attempt, ("failover.request", None)]);
        assert_eq!(
            fields(&spans[0]),
            "error.type=server_error gen_ai.provider.name=cometapi http.request.resend_count=0 \
             http.response.status_code=500 server.address=cometapi.test server.port=443"
        );
        assert_eq!(
            fields(&spans[1]),
            "gen_ai.provider.name=openai http.request.resend_count=1 \
             http.response.status_code=200 server.address=openai.test server.port=443"
        );
        assert_eq!(
            fields(&spans[2]),
            "failover.request_id=1 gen_ai.provider.name=openai http.request.method=POST \
             http.request.resend_count=1 http.response.status_code=200"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_span_tells_how_a_request_ended() {
        let capture = Capture::start();
        let scene = Scene::with(chain(), Second::Fails);
        scene.ends.fail(401);
        scene.post().send().await.unwrap();
        let spans = capture.take().spans;
        assert_eq!(
            fields(spans.last().unwrap()),
            "error.type=server_error failover.request_id=1 http.request.method=POST \
             http.request.resend_count=1 \
             http.response.status_code=500"
        );

        scene.ends.hang();
        tokio::time::timeout(ms(300), scene.post().send()).await.unwrap_err();
        let spans = capture.take().spans;
        assert_eq!(
            fields(spans.last().unwrap()),
            "error.type=abandoned failover.request_id=2 http.request.method=POST \
             http.request.resend_count=0"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn every_name_of_a_span_or_a_line_is_documented() {
        const PAGE: &str = include_str!("../docs/observability.md");
        let capture = Capture::start();
        everything().await;
        let captured = capture.take();
        let of_spans =
            captured.spans.iter().flat_map(|span| span.fields.keys().copied().chain([span.name]));
        let of_lines = captured.lines.iter().flat_map(|line| line.fields.keys().copied());
        for name in of_spans.chain(of_lines).filter(|name| *name != "message") {
            assert!(PAGE.contains(&format!("`{name}`")), "{name} is not documented");
        }
        for line in &captured.lines {
            let message = line.get("message");
            assert_eq!(line.target, "reqwest_failover", "{message}");
            assert!(PAGE.contains(&format!("`{message}`")), "`{message}` is not documented");
            let level = format!("{}", line.level);
            let row = PAGE.lines().find(|row| row.contains(&format!("`{message}`"))).unwrap();
            assert!(row.contains(&level), "{message} is {level}: {row}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_origin_that_no_base_claims_is_warned_of_once() {
        let capture = Capture::start();
        let scene = Scene::of(chain().claim("http://127.0.0.1:8000/v1"));
        let warned =
            |line: &Line| ["origin", "nearest", "differs"].map(|field| line.get(field).to_owned());
        for (url, nearest, differs) in [
            ("http://localhost:8000/v1/chat", "http://127.0.0.1:8000/v1", "host"),
            ("http://openai.test/v1/chat", "https://openai.test/v1", "scheme"),
            ("https://openai.test/V1/chat?key=hidden", "https://openai.test/v1", "path"),
            ("https://gateway.test/v1/chat", "https://cometapi.test/v1", "host"),
        ] {
            let origin = url.split('/').take(3).collect::<Vec<_>>().join("/");
            for _ in 0..3 {
                scene.client.get(url).send().await.unwrap();
            }
            let warnings: Vec<_> = capture.lines(Level::WARN).iter().map(warned).collect();
            assert_eq!(warnings, [[&*origin, nearest, differs]], "{url}");
            drop(capture.take());
        }
        // An origin of which a request was claimed has requests of other kinds, too.
        let scene = Scene::of(chain());
        scene.ask().await;
        scene.client.get("https://openai.test/dashboard").send().await.unwrap();
        assert!(capture.lines(Level::WARN).is_empty());
        assert_eq!(scene.chain.snapshot().passed_through(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_provider_that_has_answered_nothing_but_404_is_warned_of_once() {
        let capture = Capture::start();
        let scene = Scene::of(chain());
        scene.ends.fail(404);
        for _ in 0..30 {
            scene.ask().await;
        }
        let mut warnings = capture.lines(Level::WARN);
        warnings.retain(|line| line.get("message").contains("nothing but 404"));
        let providers: Vec<_> =
            warnings.iter().map(|line| line.get("gen_ai.provider.name")).collect();
        assert_eq!(providers, ["cometapi"]);
    }

    #[tokio::test(start_paused = true)]
    async fn each_failover_is_a_warning() {
        let capture = Capture::start();
        let scene = Scene::of(chain());
        scene.serve(1).await;
        assert!(capture.lines(Level::WARN).is_empty());
        scene.fail_over(3).await;
        let lines = capture.lines(Level::WARN);
        assert_eq!(lines.len(), 3, "{lines:?}");
        for line in lines {
            assert_eq!(line.get("message"), "failing over");
            assert_eq!(line.within, Some("failover.request"));
            assert_eq!((line.get("from"), line.get("to")), ("cometapi", "openai"));
            assert_eq!(line.get("http.response.status_code"), "500");
            assert_eq!(line.get("error.type"), "server_error");
            assert_eq!(line.get("error.message"), "the sky is falling");
            assert_eq!(line.get("maybe_processed"), "true");
        }
        assert!(capture.lines(Level::ERROR).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn an_exhausted_chain_is_an_error_in_one_line() {
        let capture = Capture::start();
        let scene = Scene::with(chain(), Second::Fails);
        scene.ends.fail(400);
        scene.post().send().await.unwrap();
        let lines = capture.lines(Level::ERROR);
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert_eq!(lines[0].get("message"), "no provider served the request");
        assert_eq!(
            lines[0].get("report"),
            "cometapi 400 in 0 ms → openai 500 in 0 ms (maybe processed)"
        );
        assert_eq!(lines[0].get("error.type"), "server_error");
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_every_provider_refused_is_a_warning_in_one_line() {
        let capture = Capture::start();
        let scene = Scene::with(chain(), Second::Refuses);
        scene.ends.fail(422);
        scene.post().send().await.unwrap();
        assert!(capture.lines(Level::ERROR).is_empty());
        let lines = capture.lines(Level::WARN);
        let messages: Vec<_> = lines.iter().map(|line| line.get("message")).collect();
        let message = "every provider that was asked refused the request";
        assert_eq!(messages, ["failing over", message]);
        assert_eq!(lines[0].get("maybe_processed"), "false");
        assert_eq!(lines[1].within, Some("failover.request"));
        assert_eq!(lines[1].get("report"), "cometapi 422 in 0 ms → openai 404 in 0 ms");
        assert_eq!(lines[1].get("error.type"), "client_error");
        assert_eq!(lines[1].get("error.message"), "the sky is falling");
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_key_is_an_error_also_when_another_provider_serves() {
        for status in [401, 402, 403] {
            let capture = Capture::start();
            let scene = Scene::of(chain());
            scene.ends.fail(status);
            assert_eq!(scene.ask().await.served_by(), Some("openai"));
            let lines = capture.lines(Level::ERROR);
            assert_eq!(lines.len(), 1, "{lines:?}");
            let message = "the provider refused the credential or the account";
            assert_eq!(lines[0].get("message"), message);
            assert_eq!(lines[0].get("gen_ai.provider.name"), "cometapi");
            assert_eq!(lines[0].get("http.response.status_code"), status.to_string());
            assert_eq!(lines[0].get("error.type"), "auth");
            assert_eq!(lines[0].get("error.message"), "the sky is falling");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_used_up_quota_is_an_error_like_a_refused_key() {
        for (said, is_error) in [("insufficient_quota", true), ("rate_limit_exceeded", false)] {
            let capture = Capture::start();
            let scene = Scene::of(chain());
            scene.ends.fail_with(429, said);
            assert_eq!(scene.ask().await.served_by(), Some("openai"));
            let lines = capture.lines(Level::ERROR);
            assert_eq!(lines.len(), usize::from(is_error), "{lines:?}");
            if let Some(line) = lines.first() {
                let message = "the provider refused the credential or the account";
                assert_eq!(line.get("message"), message);
                assert_eq!(line.get("error.type"), "quota");
                assert_eq!(line.get("http.response.status_code"), "429");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn messages_can_be_kept_out_of_the_log() {
        let capture = Capture::start();
        let scene = Scene::with(chain().log_messages(false), Second::Fails);
        for status in [401, 500] {
            scene.ends.fail(status);
            let response = scene.post().send().await.unwrap();
            let report = Report::of(&response).unwrap();
            assert_eq!(report.attempts()[0].message(), Some("the sky is falling"));
        }
        let captured = capture.take();
        assert!(captured.lines.len() > 8);
        for line in captured.lines {
            assert!(!format!("{line:?}").contains("falling"), "{line:?}");
            assert!(!line.fields.contains_key("error.message"), "{line:?}");
        }
        assert!(!format!("{:?}", captured.spans).contains("falling"));
    }

    #[tokio::test(start_paused = true)]
    async fn the_fallback_rate_is_a_warning_once_per_crossing() {
        let capture = Capture::start();
        let (scene, _) = rated(chain());
        scene.serve(20).await;
        scene.fail_over(5).await;
        let lines = capture.lines(Level::WARN);
        let lines: Vec<_> =
            lines.iter().filter(|line| line.get("message").starts_with("many")).collect();
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert_eq!(lines[0].get("gen_ai.provider.name"), "cometapi");
        assert_eq!(lines[0].get("error.type"), "server_error");
        assert!(lines[0].get("ratio").starts_with("0.13"), "{lines:?}");
    }

    #[test]
    fn two_providers_with_the_same_host_are_warned_of_when_the_chain_is_built() {
        let capture = Capture::start();
        chain().build().unwrap();
        assert!(capture.take().lines.is_empty());
        ProviderChain::builder([
            Provider::new("eu", "https://cometapi.test/eu").bearer_auth("key-a"),
            Provider::new("other", "https://other.test").bearer_auth("key-b"),
            Provider::new("us", "https://cometapi.test:8443/us").bearer_auth("key-c"),
        ])
        .build()
        .unwrap();
        let lines = capture.take().lines;
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert_eq!(lines[0].level, Level::WARN);
        assert_eq!((lines[0].get("first"), lines[0].get("second")), ("eu", "us"));
        assert_eq!(lines[0].get("server.address"), "cometapi.test");
    }
}

/// Script everything that can be seen once.
#[cfg(feature = "tracing")]
async fn everything() {
    let panicking = chain().classify(|_| panic!("no opinion"));
    let breaker = Breaker::default().consecutive(2).breaks(ms(100), ms(100));
    let scene = Scene::of(panicking.breaker(breaker).attempt_timeout(ms(500)));
    scene.serve(18).await;
    scene.fail_over(2).await;
    tokio::time::advance(ms(200)).await;
    scene.serve(1).await;
    for status in [401, 429, 0] {
        scene.ends.fail(status);
        scene.ask().await;
        tokio::time::advance(ms(5000)).await;
    }
    scene.serve(100).await;
    scene.client.get("https://elsewhere.test").send().await.unwrap();
    let absent = Scene::with(chain(), Second::Refuses);
    absent.ends.fail(404);
    for _ in 0..10 {
        absent.post().send().await.unwrap();
    }
    scene.chain.isolate("cometapi").unwrap();
    scene.chain.isolate("openai").unwrap();
    scene.post().send().await.unwrap_err();
    let twins = ["a", "b"].map(|name| Provider::new(name, format!("https://twins.test/{name}")));
    ProviderChain::builder(twins).build().unwrap();
}

// Metrics.

#[cfg(feature = "metrics")]
mod metered {
    use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
    use reqwest_failover::State;

    use super::*;

    /// What a series says now.
    fn level(handle: &PrometheusHandle, series: &str) -> Option<f64> {
        let text = handle.render();
        let line = text.lines().find_map(|line| line.strip_prefix(series));
        line.map(|line| line.trim().parse().unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn the_gauge_of_a_provider_follows_its_state() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        let _guard = metrics::set_default_local_recorder(&recorder);
        let shown = |state: f64| {
            let series = r#"failover_provider_state{provider="cometapi"}"#;
            assert_eq!(level(&handle, series), Some(state), "{}", handle.render());
            let series = r#"failover_provider_state{provider="openai"}"#;
            assert_eq!(level(&handle, series), Some(0.0));
        };
        let breaker = Breaker::default().consecutive(2).breaks(ms(1000), ms(1000));
        let scene = Scene::of(chain().breaker(breaker).attempt_timeout(ms(500)));
        let state = || scene.chain.snapshot().providers()[0].state();
        shown(0.0);
        scene.fail_over(1).await;
        shown(0.0);
        scene.fail_over(1).await;
        assert!(matches!(state(), State::Open { .. }));
        shown(3.0);

        // While it is probed, and after a probe that was dropped.
        tokio::time::advance(ms(1100)).await;
        scene.ends.hang();
        let probe = async {
            tokio::time::sleep(ms(100)).await;
            assert_eq!(state(), State::Probing);
            shown(2.0);
        };
        let sent = tokio::time::timeout(ms(300), scene.post().send());
        assert!(tokio::join!(sent, probe).0.is_err(), "it hangs");
        assert!(matches!(state(), State::Open { .. }));
        shown(3.0);
        scene.serve(1).await;
        assert_eq!(state(), State::Closed);
        shown(0.0);

        scene.ends.fail(429);
        scene.ask().await;
        assert!(matches!(state(), State::CoolingDown { .. }));
        shown(1.0);
        tokio::time::advance(ms(2100)).await;
        scene.serve(1).await;
        shown(0.0);

        scene.chain.isolate("cometapi").unwrap();
        assert_eq!(state(), State::Isolated);
        shown(4.0);
        scene.ask().await;
        shown(4.0);
        scene.chain.restore("cometapi").unwrap();
        shown(0.0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_fallback_ratio_is_a_gauge() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        let _guard = metrics::set_default_local_recorder(&recorder);
        let (scene, _) = rated(chain());
        scene.serve(19).await;
        assert_eq!(level(&handle, "failover_fallback_ratio"), None);
        scene.fail_over(1).await;
        assert_eq!(level(&handle, "failover_fallback_ratio"), Some(0.05));
        scene.serve(20).await;
        assert_eq!(level(&handle, "failover_fallback_ratio"), Some(0.025));
    }
}

// What is never shown.

/// Fails in every way there is, each time with keys in its mouth.
struct Echoing {
    keys: Vec<String>,
    well: AtomicBool,
    count: AtomicU16,
}

#[async_trait]
impl Middleware for Echoing {
    async fn handle(&self, request: Request, _: &mut Extensions, _: Next<'_>) -> Result<Response> {
        // What it was sent, and what it may know besides: every key that script not change.
        let mut all = format!("{} {}", request.url(), self.keys.join(" "));
        for value in request.headers().values() {
            all.push_str(&format!(" {}", String::from_utf8_lossy(value.as_bytes())));
        }
        if self.well.load(Ordering::Relaxed) {
            return Ok(http::Response::new(all).into());
        }
        let statuses = [500, 401, 429, 400, 503, 302, 0, 1];
        let turn = self.count.fetch_add(1, Ordering::Relaxed);
        let status = match statuses[usize::from(turn) % statuses.len()] {
            0 => return Err(Error::middleware(io::Error::other(all))),
            1 => std::future::pending().await,
            status => status,
        };
        let body = serde_json::json!({"error": {"message": all}}).to_string();
        let response = http::Response::builder().status(status).header("x-echo", &self.keys[0]);
        Ok(response.body(body).unwrap().into())
    }
}

#[tokio::test(start_paused = true)]
async fn no_key_is_seen_anywhere() {
    let keys: Vec<String> =
        ["bearer", "basic", "header", "query", "token", "callers"].map(canary).to_vec();
    let [bearer, basic, header, query, token, callers] = keys.clone().try_into().unwrap();
    let base = |name: &str| format!("https://{name}.test/v1");
    let providers = [
        Provider::new("bearer", base("bearer")).bearer_auth(&bearer),
        Provider::new("basic", base("basic")).basic_auth("user", &basic),
        Provider::new("header", base("header")).api_key_header("x-own-key", &header),
        Provider::new("query", base("query")).api_key_query("own_key", &query),
        Provider::new("token", base("token")).bearer_auth_with(move || {
            let token = token.clone();
            async move { Ok::<_, io::Error>(token) }
        }),
        Provider::new("callers", base("callers")).forward_caller_auth(),
    ];

    #[cfg(feature = "tracing")]
    let capture = traced::Capture::start();
    #[cfg(feature = "metrics")]
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    #[cfg(feature = "metrics")]
    let _recording = metrics::set_default_local_recorder(&recorder);

    let heard = Arc::new(Mutex::new(String::new()));
    let hearing = heard.clone();
    let chain = ProviderChain::builder(providers)
        .attempt_timeout(ms(200))
        .breaker(Breaker::default().consecutive(2).breaks(ms(300), ms(300)))
        .observe(move |event| {
            lock(&hearing).push_str(&format!("{event:?}\n{event:#?}\n"));
        })
        .build()
        .unwrap();
    let echoing = Arc::new(Echoing {
        keys: keys[..4].to_vec(),
        well: AtomicBool::new(false),
        count: AtomicU16::new(0),
    });
    let client = ClientBuilder::new(reqwest::Client::new())
        .with(chain.clone())
        .with_arc(echoing.clone())
        .build();
    for round in 0..60 {
        echoing.well.store(round % 5 == 0, Ordering::Relaxed);
        let request = client
            .post(format!(
                "https://callers.test/v1/chat/completions?key={callers}&api_key={bearer}"
            ))
            .bearer_auth(&callers)
            .body("{}");
        if round % 7 == 0 {
            let _ = tokio::time::timeout(ms(50), request.send()).await;
        } else {
            let _ = request.send().await;
        }
        lock(&heard).push_str(&format!("{:?}\n{:#?}\n", chain.snapshot(), chain));
        tokio::time::advance(ms(100)).await;
    }
    let outside = format!("https://elsewhere.test/v1/?key={callers}");
    client.get(outside).bearer_auth(&callers).send().await.ok();

    let text = &*lock(&heard);
    for name in ["AttemptFinished", "FailedOver", "BreakerOpened", "CoolingDown", "Exhausted"] {
        assert!(text.contains(name), "{name}");
    }
    assert!(text.contains("[redacted]"), "there was something to hide");
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    assert_unseen(text, &keys);
    #[cfg(feature = "metrics")]
    {
        let text = recorder.handle().render();
        assert!(text.contains("failover_requests_total"), "{text}");
        assert_unseen(&text, &keys);
    }
    #[cfg(feature = "tracing")]
    {
        let captured = capture.take();
        let (spans, lines) = (captured.spans.len(), captured.lines.len());
        assert!(spans > 100 && lines > 100, "{spans} spans, {lines} lines");
        assert_unseen(&format!("{:?}", captured.spans), &keys);
        assert_unseen(&format!("{:?}", captured.lines), &keys);
    }
}

fn assert_unseen(text: &str, keys: &[&str]) {
    assert_no_key(text, keys);
    assert!(!text.contains(CORE), "a part of a key in {text}");
}
