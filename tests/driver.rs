//! The driver's table of cases: everything that can be seen of one request, written out.

use reqwest_failover_testing::terminal;

use std::sync::LazyLock;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::Extensions;
use reqwest::{Body, Request, Response};
use reqwest_failover::{
    Ambiguous, Exhausted, Fault, Hedge, Inspect, Outcome, Provider, ProviderChainBuilder,
    ProviderSnapshot, Replay, Report, Route, Verdict,
};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware, Middleware, Next, Result};
use terminal::{Harness, Script, Told, keyless, ms, provider, secs, silence};

#[derive(Clone, Debug, PartialEq)]
struct Note(String);

fn note(of: &str) -> Note {
    Note(of.to_owned())
}

/// Leaves a note of the provider that is asked, before it answers.
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
struct Seen {
    answer: std::result::Result<String, String>,
    took: Duration,
    report: Option<Report>,
    extensions: Note,
    has_route: bool,
    told: Vec<Told>,
    counts: [ProviderSnapshot; 2],
    /// Requests, those served by a fallback, rejected and exhausted.
    totals: [u64; 4],
}

impl Seen {
    /// One line for each kind of thing.
    fn lines(&self) -> Vec<String> {
        let (Ok(answer) | Err(answer)) = &self.answer;
        let mut lines = vec![format!("{answer} in {} ms", self.took.as_millis())];
        lines.push(format!("extensions of {}", self.extensions.0));
        lines.extend(self.report.iter().map(|report| format!("report: {report}")));
        let attempts = self.report.iter().flat_map(|report| report.attempts());
        lines.extend(attempts.filter_map(|attempt| {
            attempt.message().map(|message| format!("{} said: {message}", attempt.provider()))
        }));
        for of in &self.counts {
            let (name, asked, served, failed) =
                (of.name(), of.attempts(), of.served(), of.failures());
            lines.push(format!("{name}: {asked} attempts, {served} served, {failed} failures"));
        }
        let names = ["requests", "by fallback", "rejected", "exhausted"];
        let totals = names.iter().zip(self.totals).filter(|(_, total)| *total > 0);
        let totals: Vec<_> = totals.map(|(name, total)| format!("{total} {name}")).collect();
        lines.push(totals.join(", "));
        let told: Vec<_> = self.told.iter().map(event).collect();
        lines.push(format!("events: {}", told.join(", ")));
        lines
    }
}

fn event(told: &Told) -> String {
    match told {
        Told::Started(provider) => format!("{provider} started"),
        Told::Ended(provider, reason) => format!("{provider} ended ({reason})"),
        Told::Finished(_) => "finished".to_owned(),
        other => format!("{other:?}").to_lowercase(),
    }
}

type Settings = fn(ProviderChainBuilder) -> ProviderChainBuilder;

async fn see(case: &Case, hedged: bool, limit: Option<Duration>) -> Seen {
    let harness = Harness::of_providers((case.providers)(), (case.script)(), |chain| {
        let chain = (case.settings)(chain.attempt_timeout(secs(40)).total_timeout(secs(60)));
        // Due while a provider hangs, and more than the chain has earned.
        if hedged { chain.hedge(Hedge::after(secs(30))) } else { chain }
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
    let answer = match result {
        Ok(Ok(Ok(response))) => {
            let status = response.status().as_u16();
            assert_eq!(response.text().await.expect("a whole body"), SAID);
            Ok(status.to_string())
        }
        Ok(Ok(Err(error))) => Err(format!("error ({error})")),
        Ok(Err(_)) => Err("panic".to_owned()),
        Err(_) => Err("dropped".to_owned()),
    };
    let snapshot = harness.chain.snapshot();
    Seen {
        answer,
        took,
        report: Report::from_extensions(&extensions).cloned(),
        extensions: extensions.get().cloned().expect("a note"),
        has_route: extensions.get::<Route>().is_some(),
        told: harness.told(),
        counts: ["a", "b"].map(|name| harness.of_provider(name)),
        totals: [
            snapshot.requests(),
            snapshot.served_by_fallback(),
            snapshot.rejected(),
            snapshot.exhausted(),
        ],
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
    settings: Settings,
    /// All that is seen of it.
    expected: &'static [&'static str],
}

const TWO: fn() -> Vec<Provider> = || vec![provider("a"), provider("b")];
const DEFAULT: Settings = |chain| chain;

/// What every answer says.
const SAID: &str = r#"{"error":{"message":"for key-of-a: no"}}"#;

fn says(status: u16) -> Script {
    Script::answer(status, &[], || Body::from(SAID))
}

fn cases() -> Vec<Case> {
    let two = |name, script, settings, expected| Case {
        name,
        providers: TWO,
        script,
        settings,
        expected,
    };
    let accepting: Settings = |chain| chain.classify(|_| Verdict::Accept);
    vec![
        two(
            "served",
            || [("a", says(200)), ("b", says(200))],
            DEFAULT,
            &[
                "200 in 0 ms",
                "extensions of a.test",
                "report: a 200 in 0 ms",
                "a: 1 attempts, 1 served, 0 failures",
                "b: 0 attempts, 0 served, 0 failures",
                "1 requests",
                "events: a started, a ended (ok), finished",
            ],
        ),
        two(
            "served by a fallback",
            || [("a", says(500)), ("b", says(200).after(ms(9)))],
            DEFAULT,
            &[
                "200 in 9 ms",
                "extensions of b.test",
                "report: a 500 in 0 ms (maybe processed) → b 200 in 9 ms",
                "a said: for [redacted]: no",
                "a: 1 attempts, 0 served, 1 failures",
                "b: 1 attempts, 1 served, 0 failures",
                "1 requests, 1 by fallback",
                "events: a started, a ended (server_error), b started, b ended (ok), finished",
            ],
        ),
        two(
            "served by a fallback after an error",
            || [("a", Script::fail()), ("b", says(201))],
            DEFAULT,
            &[
                "201 in 0 ms",
                "extensions of b.test",
                "report: a failed (other) in 0 ms (maybe processed) → b 201 in 0 ms",
                "a said: scripted",
                "a: 1 attempts, 0 served, 1 failures",
                "b: 1 attempts, 1 served, 0 failures",
                "1 requests, 1 by fallback",
                "events: a started, a ended (other), b started, b ended (ok), finished",
            ],
        ),
        two(
            "exhausted",
            || [("a", says(401)), ("b", says(503).after(ms(9)))],
            DEFAULT,
            &[
                "503 in 9 ms",
                "extensions of b.test",
                "report: a 401 in 0 ms → b 503 in 9 ms",
                "a said: for [redacted]: no",
                "b said: for [redacted]: no",
                "a: 1 attempts, 0 served, 1 failures",
                "b: 1 attempts, 0 served, 1 failures",
                "1 requests, 1 exhausted",
                "events: a started, a ended (auth), b started, b ended (server_error), exhausted, finished",
            ],
        ),
        two(
            "exhausted by errors",
            || [("a", says(500)), ("b", Script::fail())],
            DEFAULT,
            &[
                "error (scripted) in 0 ms",
                "extensions of b.test",
                "report: a 500 in 0 ms (maybe processed) → b failed (other) in 0 ms (maybe processed)",
                "a said: for [redacted]: no",
                "b said: scripted",
                "a: 1 attempts, 0 served, 1 failures",
                "b: 1 attempts, 0 served, 1 failures",
                "1 requests, 1 exhausted",
                "events: a started, a ended (server_error), b started, b ended (other), exhausted, finished",
            ],
        ),
        two(
            "exhausted, and told",
            || [("a", says(500)), ("b", says(429))],
            |chain| chain.on_exhausted(Exhausted::Error),
            &[
                "error (no provider served the request: a answered 500 (server_error) in 0 ms: for [redacted]: no; b answered 429 (rate_limited) in 0 ms: for [redacted]: no) in 0 ms",
                "extensions of caller",
                "report: a 500 in 0 ms (maybe processed) → b 429 in 0 ms",
                "a said: for [redacted]: no",
                "b said: for [redacted]: no",
                "a: 1 attempts, 0 served, 1 failures",
                "b: 1 attempts, 0 served, 0 failures",
                "1 requests, 1 exhausted",
                "events: a started, a ended (server_error), b started, b ended (rate_limited), cooling(\"b\"), exhausted, finished",
            ],
        ),
        two(
            "rejected",
            || [("a", says(400)), ("b", says(404).after(ms(9)))],
            DEFAULT,
            &[
                "404 in 9 ms",
                "extensions of b.test",
                "report: a 400 in 0 ms → b 404 in 9 ms",
                "a said: for [redacted]: no",
                "b said: for [redacted]: no",
                "a: 1 attempts, 0 served, 0 failures",
                "b: 1 attempts, 0 served, 0 failures",
                "1 requests, 1 rejected",
                "events: a started, a ended (client_error), b started, b ended (client_error), rejected, finished",
            ],
        ),
        two(
            "rejected, and told",
            || [("a", says(422)), ("b", says(307))],
            |chain| chain.on_exhausted(Exhausted::Error),
            &[
                "error (no provider served the request: a answered 422 (client_error) in 0 ms: for [redacted]: no; b answered 307 (redirected) in 0 ms: for [redacted]: no) in 0 ms",
                "extensions of caller",
                "report: a 422 in 0 ms → b 307 (redirected) in 0 ms",
                "a said: for [redacted]: no",
                "b said: for [redacted]: no",
                "a: 1 attempts, 0 served, 0 failures",
                "b: 1 attempts, 0 served, 0 failures",
                "1 requests, 1 rejected",
                "events: a started, a ended (client_error), b started, b ended (redirected), rejected, finished",
            ],
        ),
        two(
            "refused by one, failed by the other",
            || [("a", says(400)), ("b", says(500))],
            DEFAULT,
            &[
                "500 in 0 ms",
                "extensions of b.test",
                "report: a 400 in 0 ms → b 500 in 0 ms (maybe processed)",
                "a said: for [redacted]: no",
                "b said: for [redacted]: no",
                "a: 1 attempts, 0 served, 0 failures",
                "b: 1 attempts, 0 served, 1 failures",
                "1 requests, 1 exhausted",
                "events: a started, a ended (client_error), b started, b ended (server_error), exhausted, finished",
            ],
        ),
        two(
            "failed by one, refused by the other",
            || [("a", Script::fail()), ("b", says(413))],
            DEFAULT,
            &[
                "413 in 0 ms",
                "extensions of b.test",
                "report: a failed (other) in 0 ms (maybe processed) → b 413 in 0 ms",
                "a said: scripted",
                "b said: for [redacted]: no",
                "a: 1 attempts, 0 served, 1 failures",
                "b: 1 attempts, 0 served, 0 failures",
                "1 requests, 1 exhausted",
                "events: a started, a ended (other), b started, b ended (client_error), exhausted, finished",
            ],
        ),
        two(
            "late",
            || [("a", Script::hang()), ("b", says(200))],
            DEFAULT,
            &[
                "200 in 40000 ms",
                "extensions of b.test",
                "report: a failed (timeout) in 40000 ms (maybe processed) → b 200 in 0 ms",
                "a: 1 attempts, 0 served, 1 failures",
                "b: 1 attempts, 1 served, 0 failures",
                "1 requests, 1 by fallback",
                "events: a started, a ended (timeout), b started, b ended (ok), finished",
            ],
        ),
        two(
            "too late",
            || [("a", Script::hang()), ("b", Script::hang())],
            DEFAULT,
            &[
                "error (no provider served the request: a failed (timeout) in 40000 ms; b failed (timeout) in 20000 ms) in 60000 ms",
                "extensions of caller",
                "report: a failed (timeout) in 40000 ms (maybe processed) → b failed (timeout) in 20000 ms (maybe processed)",
                "a: 1 attempts, 0 served, 1 failures",
                "b: 1 attempts, 0 served, 0 failures",
                "1 requests, 1 exhausted",
                "events: a started, a ended (timeout), b started, b ended (timeout), exhausted, finished",
            ],
        ),
        two(
            "accepted",
            || [("a", says(500).after(ms(3))), ("b", says(200))],
            accepting,
            &[
                "500 in 3 ms",
                "extensions of a.test",
                "report: a 500 in 3 ms",
                "a said: for [redacted]: no",
                "a: 1 attempts, 1 served, 0 failures",
                "b: 0 attempts, 0 served, 0 failures",
                "1 requests",
                "events: a started, a ended (server_error), finished",
            ],
        ),
        two(
            "nothing accepted",
            || [("a", Script::fail()), ("b", says(200))],
            accepting,
            &[
                "error (`classify` accepted an outcome that has no response to hand on: a failed (other) in 0 ms: scripted) in 0 ms",
                "extensions of caller",
                "report: a failed (other) in 0 ms",
                "a said: scripted",
                "a: 1 attempts, 0 served, 0 failures",
                "b: 0 attempts, 0 served, 0 failures",
                "1 requests, 1 exhausted",
                "events: a started, a ended (other), exhausted, finished",
            ],
        ),
        two(
            "nothing accepted late",
            || [("a", Script::hang()), ("b", says(200))],
            accepting,
            &[
                "error (`classify` accepted an outcome that has no response to hand on: a failed (timeout) in 40000 ms) in 40000 ms",
                "extensions of caller",
                "report: a failed (timeout) in 40000 ms",
                "a: 1 attempts, 0 served, 0 failures",
                "b: 0 attempts, 0 served, 0 failures",
                "1 requests, 1 exhausted",
                "events: a started, a ended (timeout), exhausted, finished",
            ],
        ),
        two(
            "a panic",
            || [("a", Script::panic()), ("b", says(200))],
            DEFAULT,
            &[
                "panic in 0 ms",
                "extensions of caller",
                "a: 1 attempts, 0 served, 0 failures",
                "b: 0 attempts, 0 served, 0 failures",
                "1 requests",
                "events: a started, a ended (abandoned), finished",
            ],
        ),
        two(
            "a late panic",
            || [("a", says(500)), ("b", Script::panic().after(ms(2)))],
            DEFAULT,
            &[
                "panic in 2 ms",
                "extensions of caller",
                "a: 1 attempts, 0 served, 1 failures",
                "b: 1 attempts, 0 served, 0 failures",
                "1 requests",
                "events: a started, a ended (server_error), b started, b ended (abandoned), finished",
            ],
        ),
        two(
            "once",
            || [("a", says(500)), ("b", says(200))],
            |chain| chain.max_attempts(1),
            &[
                "500 in 0 ms",
                "extensions of a.test",
                "report: a 500 in 0 ms (maybe processed); b not asked: the request may be sent only once",
                "a said: for [redacted]: no",
                "a: 1 attempts, 0 served, 1 failures",
                "b: 0 attempts, 0 served, 0 failures",
                "1 requests, 1 exhausted",
                "events: a started, a ended (server_error), exhausted, finished",
            ],
        ),
        two(
            "rejected at once",
            || [("a", says(404)), ("b", says(200))],
            |chain| chain.max_attempts(1),
            &[
                "404 in 0 ms",
                "extensions of a.test",
                "report: a 404 in 0 ms; b not asked: the request may be sent only once",
                "a said: for [redacted]: no",
                "a: 1 attempts, 0 served, 0 failures",
                "b: 0 attempts, 0 served, 0 failures",
                "1 requests, 1 rejected",
                "events: a started, a ended (client_error), rejected, finished",
            ],
        ),
        two(
            "cautious",
            || [("a", says(500)), ("b", says(200))],
            |chain| chain.on_ambiguous(Ambiguous::IdempotentOnly),
            &[
                "500 in 0 ms",
                "extensions of a.test",
                "report: a 500 in 0 ms (maybe processed); b not asked: the request may have been processed",
                "a said: for [redacted]: no",
                "a: 1 attempts, 0 served, 1 failures",
                "b: 0 attempts, 0 served, 0 failures",
                "1 requests, 1 exhausted",
                "events: a started, a ended (server_error), exhausted, finished",
            ],
        ),
        two(
            "cautious, and surely not processed",
            || [("a", says(503)), ("b", says(200))],
            |chain| chain.on_ambiguous(Ambiguous::IdempotentOnly),
            &[
                "200 in 0 ms",
                "extensions of b.test",
                "report: a 503 in 0 ms → b 200 in 0 ms",
                "a said: for [redacted]: no",
                "a: 1 attempts, 0 served, 1 failures",
                "b: 1 attempts, 1 served, 0 failures",
                "1 requests, 1 by fallback",
                "events: a started, a ended (server_error), b started, b ended (ok), finished",
            ],
        ),
        two(
            "a closure that panics",
            || [("a", says(500)), ("b", says(200))],
            |chain| chain.classify(|_: &Outcome<'_>| -> Verdict { panic!("scripted") }),
            &[
                "200 in 0 ms",
                "extensions of b.test",
                "report: a 500 in 0 ms (maybe processed) → b 200 in 0 ms",
                "a said: for [redacted]: no",
                "a: 1 attempts, 0 served, 1 failures",
                "b: 1 attempts, 1 served, 0 failures",
                "1 requests, 1 by fallback",
                "events: a started, panicked(\"classify\"), a ended (server_error), b started, panicked(\"classify\"), b ended (ok), finished",
            ],
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
            &[
                "200 in 0 ms",
                "extensions of b.test",
                "report: a 200 in 0 ms → b 200 in 0 ms",
                "a: 1 attempts, 0 served, 0 failures",
                "b: 1 attempts, 1 served, 0 failures",
                "1 requests, 1 by fallback",
                "events: a started, a ended (ok), b started, b ended (ok), finished",
            ],
        ),
        two(
            "a silent error, not waited for",
            || [("a", Script::answer(500, &[], silence)), ("b", says(200))],
            |chain| chain.error_body_timeout(Duration::ZERO),
            &[
                "200 in 0 ms",
                "extensions of b.test",
                "report: a 500 in 0 ms (maybe processed) → b 200 in 0 ms",
                "a: 1 attempts, 0 served, 1 failures",
                "b: 1 attempts, 1 served, 0 failures",
                "1 requests, 1 by fallback",
                "events: a started, a ended (server_error), b started, b ended (ok), finished",
            ],
        ),
        Case {
            name: "unsent",
            providers: || {
                let fails = |_: &mut Request| Err(std::io::Error::other("key-of-a"));
                vec![provider("a").map_request(fails), provider("b")]
            },
            script: || [("a", says(200)), ("b", says(200))],
            settings: DEFAULT,
            expected: &[
                "200 in 0 ms",
                "extensions of b.test",
                "report: a failed (other) in 0 ms → b 200 in 0 ms",
                "a said: [redacted]",
                "a: 1 attempts, 0 served, 0 failures",
                "b: 1 attempts, 1 served, 0 failures",
                "1 requests, 1 by fallback",
                "events: a started, a ended (other), b started, b ended (ok), finished",
            ],
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
            expected: &[
                "error (no provider served the request: a failed (other) in 0 ms: `map_request` panicked; b failed (other) in 0 ms: `map_request` moved the URL away from the provider's base URL) in 0 ms",
                "extensions of caller",
                "report: a failed (other) in 0 ms → b failed (other) in 0 ms",
                "a said: `map_request` panicked",
                "b said: `map_request` moved the URL away from the provider's base URL",
                "a: 1 attempts, 0 served, 0 failures",
                "b: 1 attempts, 0 served, 0 failures",
                "1 requests, 1 exhausted",
                "events: a started, panicked(\"map_request\"), a ended (other), b started, b ended (other), exhausted, finished",
            ],
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
            expected: &[
                "200 in 0 ms",
                "extensions of b.test",
                "report: a 500 in 0 ms (maybe processed) → b 200 in 0 ms",
                "a said: for [redacted]: no",
                "a: 1 attempts, 0 served, 1 failures",
                "b: 1 attempts, 1 served, 0 failures",
                "1 requests, 1 by fallback",
                "events: a started, a ended (server_error), b started, b ended (ok), finished",
            ],
        },
    ]
}

#[tokio::test(start_paused = true)]
async fn every_case_is_seen_as_the_table_says() {
    let mut wrong = Vec::new();
    for case in cases() {
        let seen = see(&case, false, None).await;
        assert!(seen.has_route, "{}", case.name);
        assert!(seen.counts.iter().all(|of| of.in_flight() == 0), "{}", case.name);
        if seen.lines() != case.expected {
            wrong.push(format!("{}\n{:#?}", case.name, seen.lines()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test(start_paused = true)]
async fn a_hedge_that_is_not_earned_changes_nothing() {
    for case in cases() {
        assert_eq!(see(&case, true, None).await.lines(), case.expected, "{}", case.name);
    }
}

#[tokio::test(start_paused = true)]
async fn a_case_that_is_dropped_at_any_time_ends_once_and_leaves_nothing_in_flight() {
    for case in cases() {
        for (limit, hedged) in [ms(0), ms(1), ms(5), ms(50), secs(39), secs(41)]
            .into_iter()
            .flat_map(|limit| [(limit, false), (limit, true)])
        {
            let seen = see(&case, hedged, Some(limit)).await;
            let context = format!("{} after {limit:?}: {:#?}", case.name, seen.lines());
            assert!(seen.counts.iter().all(|of| of.in_flight() == 0), "{context}");
            assert!(seen.has_route, "{context}");
            let count =
                |wanted: fn(&Told) -> bool| seen.told.iter().filter(|told| wanted(told)).count();
            let started = count(|told| matches!(told, Told::Started(_)));
            assert_eq!(started, count(|told| matches!(told, Told::Ended(..))), "{context}");
            assert_eq!(count(|told| matches!(told, Told::Finished(_))), 1, "{context}");
            assert_eq!(seen.totals[0], 1, "{context}");
            if seen.answer == Err("dropped".to_owned()) {
                assert_eq!(seen.took, limit, "{context}");
                assert_eq!(seen.totals[1..], [0; 3], "{context}");
                assert!(seen.report.is_none() && seen.extensions == note("caller"), "{context}");
            } else {
                assert_eq!(seen.lines(), case.expected, "{context}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_time_of_an_attempt_ends_with_its_headers_unless_its_body_is_what_failed() {
    let late = || {
        let said = futures_util::stream::once(async {
            tokio::time::sleep(ms(50)).await;
            Ok::<_, std::io::Error>(SAID)
        });
        Body::wrap_stream(said)
    };
    for (status, took) in [(500, 9), (200, 59)] {
        let harness = Harness::with(
            [("a", Script::answer(status, &[], late).after(ms(9))), ("b", says(201))],
            |chain| chain.inspect(Inspect::errors_in_success()),
        );
        let begun = tokio::time::Instant::now();
        let response = harness.post().send().await.unwrap();
        assert_eq!(response.status(), 201, "an error, or one inside a success");
        assert_eq!(begun.elapsed(), ms(59));
        assert_eq!(Report::of(&response).unwrap().attempts()[0].elapsed(), ms(took));
    }
}

#[tokio::test(start_paused = true)]
async fn the_callers_extensions_outlast_an_error_that_is_accepted() {
    for script in [Script::fail(), Script::hang()] {
        let harness = Harness::with([("a", script), ("b", says(200))], |chain| {
            chain.classify(|_| Verdict::Accept).attempt_timeout(secs(40))
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

// What is sent again.

/// What a request says of being sent again.
#[derive(Clone, Copy, Debug)]
enum Asks {
    Post,
    /// A POST that allows it.
    Allowed,
    Get,
}

/// Asks `a`, which may be followed by `b`: whether `a` may have processed the request, and whether `b`
/// was asked.
async fn sent_again(
    first: Script,
    asks: Asks,
    settings: impl FnOnce(ProviderChainBuilder) -> ProviderChainBuilder,
) -> (bool, bool) {
    let harness = Harness::with([("a", first), ("b", Script::status(200))], |chain| {
        settings(chain.without_health().attempt_timeout(secs(40)))
    });
    let request = match asks {
        Asks::Get => harness.client.get(terminal::URL),
        Asks::Post => harness.post(),
        Asks::Allowed => harness.post().with_extension(Replay::allowed()),
    };
    let mut extensions = Extensions::new();
    let mut request = request.header("content-type", "application/json");
    extensions.extend(std::mem::take(request.extensions()));
    let request = request.build().unwrap();
    let _ = harness.client.execute_with_extensions(request, &mut extensions).await;
    let report = Report::from_extensions(&extensions).expect("a report");
    assert_eq!(report.attempts()[0].provider(), "a");
    (report.attempts()[0].maybe_processed(), harness.asked("b") == 1)
}

/// Under the default a doubtful attempt is marked and the next provider is asked; under
/// `IdempotentOnly` only a request that may be processed twice goes on.
async fn check_sent_again(first: &Script, doubtful: bool, what: &str, inspects: bool) -> usize {
    let mut checked = 0;
    for asks in [Asks::Post, Asks::Allowed, Asks::Get] {
        for ambiguous in [Ambiguous::FailOver, Ambiguous::IdempotentOnly] {
            let seen = sent_again(first.clone(), asks, |chain| {
                let chain = chain.on_ambiguous(ambiguous);
                if inspects {
                    chain.inspect(Inspect::errors_in_success().first_content_timeout(secs(5)))
                } else {
                    chain
                }
            });
            let allowed = !matches!((asks, ambiguous), (Asks::Post, Ambiguous::IdempotentOnly));
            let expected = (doubtful, allowed || !doubtful);
            assert_eq!(seen.await, expected, "{what} {asks:?} {ambiguous:?}");
            checked += 1;
        }
    }
    checked
}

#[tokio::test(start_paused = true)]
async fn every_status_is_sent_again_unless_it_may_have_been_processed_and_its_caller_minds() {
    let mut checked = 0;
    for status in (200..=599).filter(|status| !(200..=299).contains(status) && *status != 304) {
        // DESIGN, section 3: what proves that nothing was processed.
        let proves_it = match status {
            307 | 308 | 429 | 503 | 521..=523 => true,
            400..=498 => status != 408,
            _ => false,
        };
        let what = status.to_string();
        checked += check_sent_again(&says(status), !proves_it, &what, false).await;
    }
    println!("{checked} cells");
}

#[tokio::test(start_paused = true)]
async fn every_flaw_of_a_success_may_have_been_processed() {
    const JSON: &str = "application/json";
    const EVENTS: &str = "text/event-stream";
    let flawed = |of_type: &str, body: &'static str| {
        Script::answer(200, &[("content-type", of_type.to_owned())], move || Body::from(body))
    };
    let breaks = |of_type: &str, body: &'static str| {
        Script::answer(200, &[("content-type", of_type.to_owned())], move || {
            let fails = std::io::Error::other("broke off");
            Body::wrap_stream(futures_util::stream::iter([Ok(body), Err(fails)]))
        })
    };
    let error = r#"{"error":{"message":"x"}}"#;
    let mut checked = 0;
    for (what, first) in [
        ("an error", flawed(JSON, error)),
        ("an error with a code", flawed(JSON, r#"{"error":{"message":"x","code":429}}"#)),
        ("the request's fault", flawed(JSON, r#"{"error":{"message":"x","code":400}}"#)),
        ("HTML", flawed("text/html", "<!doctype html><html></html>")),
        ("an error first in a stream", flawed(EVENTS, "data: {\"error\":{\"message\":\"x\"}}\n\n")),
        ("a stream without content", flawed(EVENTS, "data: [DONE]\n\n")),
        ("a broken body", breaks(JSON, "{\"choices\":[")),
        ("a broken stream", breaks(EVENTS, ": comment\n\n")),
        ("a silent stream", Script::answer(200, &[("content-type", EVENTS.to_owned())], silence)),
    ] {
        checked += check_sent_again(&first, true, what, true).await;
    }
    // No response at all.
    for (what, first) in [("a timeout", Script::hang()), ("an error", Script::fail())] {
        checked += check_sent_again(&first, true, what, false).await;
    }
    println!("{checked} cells");
}

// Layers around the chain.

type Answer<'a> = BoxFuture<'a, Result<Response>>;

/// A layer that does this with the answer of those below it.
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
    let checked = |name: &str| {
        provider(name).map_request(|_| TENANT.try_with(|_| ()).map_err(std::io::Error::other))
    };
    let harness = Harness::of_providers(
        vec![checked("a"), checked("b")],
        [("a", says(200)), ("b", says(200))],
        |chain| chain.route(|_| TENANT.try_with(|name| Route::only([*name])).ok()),
    );
    let client = above_unused()
        .with(Outer(|rest| Box::pin(TENANT.scope("b", rest))))
        .with(harness.chain.clone())
        .with(harness.terminal())
        .build();
    let response = client.post(terminal::URL).body("{}").send().await;
    assert_eq!(terminal::served_by(response), "b");
}

#[tokio::test(start_paused = true)]
async fn a_request_that_an_outer_layer_never_polls_never_was() {
    let harness = Harness::of([("a", says(200)), ("b", says(200))]);
    let answer = |rest: Answer<'_>| {
        drop(rest);
        async { Ok(http::Response::new("").into()) }.boxed()
    };
    let client = above_unused().with(Outer(answer)).with(harness.chain.clone()).build();
    client.post(terminal::URL).body("{}").send().await.unwrap();
    assert_eq!(harness.told(), []);
    assert_eq!((harness.chain.snapshot().requests(), harness.of_provider("a").attempts()), (0, 0));
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
            DEFAULT,
        );
        let client = above_unused()
            .with(harness.chain.clone())
            .with(Eager(scopes.clone()))
            .with(harness.terminal())
            .build();
        client.post(terminal::URL).body("{}").send().await.unwrap();
        assert_eq!(*lock(&scopes), [ATTEMPT; 4], "`map_request` and an inner layer, twice");
    }

    #[tokio::test(start_paused = true)]
    async fn an_outer_layers_span_is_around_a_request_and_a_chain_inside_is_within_an_attempt() {
        listen();
        let scopes = Scopes::default();
        let inner = ProviderChain::builder([provider("b")]).claim("https://a.test/v1").nested();
        let harness = Harness::of([("a", says(200)), ("b", says(200))]);
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

#[tokio::test(start_paused = true)]
async fn as_many_header_values_as_a_request_can_hold_go_on_to_the_next() {
    let harness = Harness::of([("a", Script::status(500)), ("b", Script::status(200))]);
    let mut request = harness.post().build().unwrap();
    for _ in 0..30_000 {
        request.headers_mut().append("x-many", http::HeaderValue::from_static("1"));
    }
    assert_eq!(terminal::served_by(harness.client.execute(request).await), "b");
}
