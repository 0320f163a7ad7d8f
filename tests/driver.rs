//! What the driver's short way for plain requests and its general one have in common: everything
//! that can be seen of them.

mod terminal;

use std::sync::LazyLock;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::Extensions;
use reqwest::{Body, Request, Response};
use reqwest_failover::{
    Exhausted, Fault, Hedge, Outcome, Provider, ProviderChainBuilder, Report, Route, Verdict,
};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware, Middleware, Next, Result};
use terminal::{Harness, Script, Told, keyless, ms, provider, secs};

/// A hedge that nobody waits for: it takes a chain off the short way, and script nothing else.
fn general(chain: ProviderChainBuilder) -> ProviderChainBuilder {
    chain.hedge(Hedge::after(secs(30)))
}

fn plain(chain: ProviderChainBuilder) -> ProviderChainBuilder {
    chain
}

#[derive(Clone, Debug, PartialEq)]
struct Note(String);

fn note(of: &str) -> Note {
    Note(of.to_owned())
}

/// Leaves a note of the provider that is asked, before it script and tells anything.
struct Scribe;

#[async_trait]
impl Middleware for Scribe {
    async fn handle(
        &self,
        request: Request,
        extensions: &mut Extensions,
        next: Next<'_>,
    ) -> Result<Response> {
        assert_eq!(extensions.get(), Some(&note("caller")), "another attempt's");
        assert!(extensions.get::<Route>().is_none());
        extensions.insert(note(request.url().host_str().unwrap()));
        next.run(request, extensions).await
    }
}

/// All that can be seen of one request.
#[derive(Debug, PartialEq)]
struct Seen {
    answer: std::result::Result<(u16, String), String>,
    panicked: bool,
    report: Option<String>,
    messages: Vec<Option<String>>,
    note: Option<Note>,
    has_route: bool,
    told: Vec<Told>,
    counts: Vec<(u64, u64, u64, u64)>,
    totals: [u64; 3],
    took: Duration,
}

type Way = fn(ProviderChainBuilder) -> ProviderChainBuilder;

async fn see(way: Way, case: &Case, limit: Option<Duration>) -> Seen {
    let harness = Harness::of_providers((case.providers)(), (case.script)(), |chain| {
        way((case.settings)(chain.attempt_timeout(secs(40)).total_timeout(secs(60))))
    });
    let client = with_scribe(&harness);
    let mut extensions = Extensions::new();
    extensions.insert(note("caller"));
    extensions.insert(Route::order(["a", "b"]));
    let begun = tokio::time::Instant::now();
    let request = client.post(terminal::URL).body("{}").build().unwrap();
    let asked = client.execute_with_extensions(request, &mut extensions);
    let asked = std::panic::AssertUnwindSafe(asked).catch_unwind();
    let result = tokio::time::timeout(limit.unwrap_or(Duration::MAX), asked).await;
    let took = begun.elapsed();
    let panicked = matches!(result, Ok(Err(_)));
    let answer = match result {
        Ok(Ok(Ok(response))) => {
            let status = response.status().as_u16();
            Ok((status, response.text().await.unwrap_or_else(|_| "broken".to_owned())))
        }
        Ok(Ok(Err(error))) => Err(error.to_string()),
        _ => Err("none".to_owned()),
    };
    let report = Report::from_extensions(&extensions);
    let attempts = report.iter().flat_map(|report| report.attempts());
    let snapshot = harness.chain.snapshot();
    Seen {
        answer,
        panicked,
        messages: attempts.map(|attempt| attempt.message().map(str::to_owned)).collect(),
        report: report.map(ToString::to_string),
        note: extensions.get().cloned(),
        has_route: extensions.get::<Route>().is_some(),
        told: harness.told(),
        counts: ["a", "b"]
            .map(|name| harness.of_provider(name))
            .map(|of| (of.attempts(), of.served(), of.failures(), of.in_flight()))
            .into(),
        totals: [snapshot.requests(), snapshot.switched(), snapshot.exhausted()],
        took,
    }
}

fn with_scribe(harness: &Harness) -> ClientWithMiddleware {
    above_unused().with(harness.chain.clone()).with(Scribe).with(harness.terminal()).build()
}

/// Layers above a client where nothing arrives, which is slow to make.
fn above_unused() -> ClientBuilder {
    static UNUSED: LazyLock<reqwest::Client> =
        LazyLock::new(|| reqwest::Client::builder().no_proxy().build().unwrap());
    ClientBuilder::new(UNUSED.clone())
}

struct Case {
    name: &'static str,
    providers: fn() -> Vec<Provider>,
    script: fn() -> [(&'static str, Script); 2],
    settings: Way,
}

const TWO: fn() -> Vec<Provider> = || vec![provider("a"), provider("b")];
const DEFAULT: Way = |chain| chain;

fn says(status: u16) -> Script {
    Script::answer(status, &[], || Body::from(r#"{"error":{"message":"for key-of-a: no"}}"#))
}

fn cases() -> Vec<Case> {
    let two = |name, script, settings| Case { name, providers: TWO, script, settings };
    let accepting: Way = |chain| chain.classify(|_| Verdict::Accept);
    vec![
        two("served", || [("a", says(200)), ("b", says(200))], DEFAULT),
        two("switched", || [("a", says(500)), ("b", says(200).after(ms(9)))], DEFAULT),
        two("refused", || [("a", Script::fail()), ("b", says(201))], DEFAULT),
        two("exhausted", || [("a", says(401)), ("b", says(503).after(ms(9)))], DEFAULT),
        two("exhausted by errors", || [("a", says(500)), ("b", Script::fail())], DEFAULT),
        two(
            "exhausted, and told",
            || [("a", says(500)), ("b", says(429))],
            |chain| chain.on_exhausted(Exhausted::Error),
        ),
        two("late", || [("a", Script::hang()), ("b", says(200))], DEFAULT),
        two("too late", || [("a", Script::hang()), ("b", Script::hang())], DEFAULT),
        two("accepted", || [("a", says(500).after(ms(3))), ("b", says(200))], accepting),
        two("nothing accepted", || [("a", Script::fail()), ("b", says(200))], accepting),
        two("nothing accepted late", || [("a", Script::hang()), ("b", says(200))], accepting),
        two("a panic", || [("a", Script::panic()), ("b", says(200))], DEFAULT),
        two("a late panic", || [("a", says(500)), ("b", Script::panic().after(ms(2)))], DEFAULT),
        two("once", || [("a", says(500)), ("b", says(200))], |chain| chain.max_attempts(1)),
        two(
            "a closure that panics",
            || [("a", says(500)), ("b", says(200))],
            |chain| chain.classify(|_: &Outcome<'_>| -> Verdict { panic!("scripted") }),
        ),
        two(
            "no fault",
            || [("a", says(200)), ("b", says(200))],
            |chain| {
                chain.classify(|outcome| match outcome.provider() {
                    "a" => Verdict::FailOver(Fault::None),
                    _ => Verdict::Accept,
                })
            },
        ),
        Case {
            name: "unsent",
            providers: || {
                let fails = |_: &mut Request| Err(std::io::Error::other("key-of-a"));
                vec![provider("a").map_request(fails), provider("b")]
            },
            script: || [("a", says(200)), ("b", says(200))],
            settings: DEFAULT,
        },
        Case {
            name: "nothing sent",
            providers: || {
                let panics = |_: &mut Request| -> std::io::Result<()> { panic!("scripted") };
                let moves = |request: &mut Request| {
                    request.url_mut().set_host(Some("evil.test")).map_err(std::io::Error::other)
                };
                vec![provider("a").map_request(panics), provider("b").map_request(moves)]
            },
            script: || [("a", says(200)), ("b", says(200))],
            settings: DEFAULT,
        },
        Case {
            name: "keys in the query",
            providers: || {
                ["a", "b"]
                    .map(|name| keyless(name).api_key_query("key", format!("key-of-{name}")))
                    .into()
            },
            script: || [("a", says(500)), ("b", says(200))],
            settings: DEFAULT,
        },
    ]
}

#[tokio::test(start_paused = true)]
async fn a_plain_request_is_seen_to_go_the_general_way() {
    for case in cases() {
        let short = see(plain, &case, None).await;
        assert_eq!(short, see(general, &case, None).await, "{}", case.name);
        assert!(short.has_route, "{}", case.name);
        assert!(short.counts.iter().all(|counts| counts.3 == 0), "{}: {short:?}", case.name);
    }
}

#[tokio::test(start_paused = true)]
async fn a_plain_request_is_dropped_as_any_other() {
    for case in cases() {
        for limit in [ms(0), ms(1), ms(5), secs(39), secs(41)] {
            let short = see(plain, &case, Some(limit)).await;
            let context = format!("{} after {limit:?}", case.name);
            assert_eq!(short, see(general, &case, Some(limit)).await, "{context}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_callers_extensions_outlast_an_error_that_is_accepted() {
    for way in [plain, general] {
        for script in [Script::fail(), Script::hang()] {
            let harness = Harness::with([("a", script), ("b", says(200))], |chain| {
                way(chain.classify(|_| Verdict::Accept).attempt_timeout(secs(40)))
            });
            let client = with_scribe(&harness);
            let mut extensions = Extensions::new();
            extensions.insert(note("caller"));
            let request = client.post(terminal::URL).body("{}").build().unwrap();
            client.execute_with_extensions(request, &mut extensions).await.unwrap_err();
            assert_eq!(extensions.get(), Some(&note("caller")), "no attempt served");
            assert!(Report::from_extensions(&extensions).is_some());
        }
    }
}

// Layers around the chain.

type Answer<'a> = BoxFuture<'a, Result<Response>>;

/// A layer that script this with the answer of those below it.
struct Outer(fn(Answer<'_>) -> Answer<'_>);

#[async_trait]
impl Middleware for Outer {
    async fn handle(
        &self,
        request: Request,
        extensions: &mut Extensions,
        next: Next<'_>,
    ) -> Result<Response> {
        (self.0)(next.run(request, extensions)).await
    }
}

tokio::task_local! {
    static TENANT: &'static str;
}

#[tokio::test(start_paused = true)]
async fn what_an_outer_layer_sets_for_its_task_is_there_for_every_closure() {
    for way in [plain, general] {
        let checked = |name: &str| {
            provider(name).map_request(|_| TENANT.try_with(|_| ()).map_err(std::io::Error::other))
        };
        let harness = Harness::of_providers(
            vec![checked("a"), checked("b")],
            [("a", says(200)), ("b", says(200))],
            |chain| way(chain.route(|_| TENANT.try_with(|name| Route::only([*name])).ok())),
        );
        let client = above_unused()
            .with(Outer(|rest| Box::pin(TENANT.scope("b", rest))))
            .with(harness.chain.clone())
            .with(harness.terminal())
            .build();
        let response = client.post(terminal::URL).body("{}").send().await;
        assert_eq!(terminal::served_by(response), "b");
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_an_outer_layer_never_polls_never_was() {
    for way in [plain, general] {
        let harness = Harness::with([("a", says(200)), ("b", says(200))], way);
        let answer = |rest: Answer<'_>| {
            drop(rest);
            async { Ok(http::Response::new("").into()) }.boxed()
        };
        let client = above_unused().with(Outer(answer)).with(harness.chain.clone()).build();
        client.post(terminal::URL).body("{}").send().await.unwrap();
        assert_eq!(harness.told(), []);
        assert_eq!(
            (harness.chain.snapshot().requests(), harness.of_provider("a").attempts()),
            (0, 0)
        );
    }
}

#[cfg(feature = "tracing")]
mod traced {
    use std::sync::{Arc, Mutex, Once};

    use reqwest_failover::ProviderChain;
    use terminal::lock;
    use tracing::{Instrument, Span, info_span};
    use tracing_subscriber::Registry;
    use tracing_subscriber::registry::LookupSpan;

    use super::*;

    fn listen() {
        static INSTALLED: Once = Once::new();
        INSTALLED.call_once(|| {
            tracing::subscriber::set_global_default(tracing_subscriber::registry()).unwrap();
        });
    }

    /// The spans that this is within, the inmost first.
    fn scope() -> Vec<&'static str> {
        Span::current()
            .with_subscriber(|(id, subscriber)| {
                let registry = subscriber.downcast_ref::<Registry>().unwrap();
                registry.span(id).unwrap().scope().map(|span| span.name()).collect()
            })
            .unwrap_or_default()
    }

    type Scopes = Arc<Mutex<Vec<Vec<&'static str>>>>;

    /// A layer that begins to work when it is called, as one may that is no `async fn`.
    #[derive(Clone, Default)]
    struct Eager(Scopes);

    impl Middleware for Eager {
        fn handle<'s, 'e, 'n, 'f>(
            &'s self,
            request: Request,
            extensions: &'e mut Extensions,
            next: Next<'n>,
        ) -> Answer<'f>
        where
            's: 'f,
            'e: 'f,
            'n: 'f,
            Self: 'f,
        {
            lock(&self.0).push(scope());
            next.run(request, extensions)
        }
    }

    const ATTEMPT: [&str; 2] = ["failover.attempt", "failover.request"];

    #[tokio::test(start_paused = true)]
    async fn whatever_belongs_to_an_attempt_is_within_its_span() {
        listen();
        for way in [plain, general] {
            let scopes = Scopes::default();
            let checked = |name: &str| {
                let scopes = scopes.clone();
                provider(name).map_request(move |_| {
                    lock(&scopes).push(scope());
                    std::io::Result::Ok(())
                })
            };
            let harness = Harness::of_providers(
                vec![checked("a"), checked("b")],
                [("a", says(500)), ("b", says(200))],
                way,
            );
            let client = above_unused()
                .with(harness.chain.clone())
                .with(Eager(scopes.clone()))
                .with(harness.terminal())
                .build();
            client.post(terminal::URL).body("{}").send().await.unwrap();
            assert_eq!(*lock(&scopes), [ATTEMPT; 4], "`map_request` and an inner layer, twice");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_outer_layers_span_is_around_a_request_and_a_chain_inside_is_within_an_attempt() {
        listen();
        for way in [plain, general] {
            let scopes = Scopes::default();
            let inner = way(ProviderChain::builder([provider("b")]).claim("https://a.test/v1"));
            let harness = Harness::with([("a", says(200)), ("b", says(200))], way);
            let client = above_unused()
                .with(Outer(|rest| Box::pin(rest.instrument(info_span!("outer")))))
                .with(harness.chain.clone())
                .with(inner.build().unwrap())
                .with(Eager(scopes.clone()))
                .with(harness.terminal())
                .build();
            client.post(terminal::URL).body("{}").send().await.unwrap();
            let expected = [&ATTEMPT[..], &ATTEMPT, &["outer"]].concat();
            assert_eq!(*lock(&scopes), [expected]);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn as_many_header_values_as_a_request_can_hold_go_on_to_the_next() {
    let harness = Harness::of([("a", Script::status(500)), ("b", Script::status(200))]);
    let mut request = harness.post().build().unwrap();
    for _ in 0..30_000 {
        request.headers_mut().append("x-many", http::HeaderValue::from_static("1"));
    }
    assert_eq!(terminal::served_by(harness.client.execute(request).await), "b");
}
