//! The sweep: a request is polled k times and dropped, for every k until it is ready, and each time
//! the chain must stand as if it had never been asked, except for what providers really answered.

use reqwest_failover_testing::terminal;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use async_trait::async_trait;
use http::Extensions;
use reqwest::{Body, Request, Response};
use reqwest_failover::{
    Breaker, Event, Exhausted, ProviderChain, ProviderChainBuilder, Reason, Route, State, Verdict,
};
use reqwest_middleware::{ClientBuilder, Middleware, Next, RequestBuilder, Result};

use terminal::{
    Harness, Script, Told, dribble, keyless, lock, ms, provider, secs, silence, sleep_until, yields,
};

/// What is swept.
struct Case {
    harness: fn() -> Harness,
    prepare: Prepare,
    request: fn(&Harness) -> RequestBuilder,
    /// It takes at least this many polls, or the case is not what it means to be.
    at_least: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum Prepare {
    /// Two failures of the first provider, one short of what opens its breaker.
    TwoFailures,
    /// The first provider's break has just ended.
    ProbeDue,
    /// Every provider's breaker is open.
    AllOpen,
    /// The first one is cooling down.
    Cooling,
}

impl Case {
    fn new(harness: fn() -> Harness, prepare: Prepare, at_least: usize) -> Self {
        Self { harness, prepare, request: Harness::post, at_least }
    }

    /// Drops the request after every number of polls.
    async fn sweep(self) {
        let mut k = 0;
        while self.drop_after(k).await {
            k += 1;
        }
        assert!(k >= self.at_least, "ready after {k} polls");
        println!("dropped after 0 to {k} polls");
    }

    /// Whether the request was dropped before it was ready.
    async fn drop_after(&self, k: usize) -> bool {
        let harness = (self.harness)();
        self.prepare.apply(&harness).await;
        harness.told();
        let names: Vec<_> =
            harness.chain.snapshot().providers().iter().map(|p| p.name().to_owned()).collect();
        let states = || names.iter().map(|name| harness.state(name)).collect::<Vec<_>>();
        let before = states();
        let tally = |harness: &Harness| {
            let snapshot = harness.chain.snapshot();
            let unserved = (snapshot.rejected(), snapshot.exhausted());
            (snapshot.requests(), snapshot.served_by_fallback(), unserved)
        };
        let (requests, by_fallback, unserved) = tally(&harness);

        let mut request = Box::pin((self.request)(&harness).send());
        let mut ready = false;
        for _ in 0..k {
            if let Poll::Ready(result) =
                request.as_mut().poll(&mut Context::from_waker(Waker::noop()))
            {
                drop(result);
                ready = true;
                break;
            }
            tokio::time::advance(ms(10)).await;
        }
        let in_flight: u64 =
            harness.chain.snapshot().providers().iter().map(|provider| provider.in_flight()).sum();
        assert!(in_flight <= 1 && !(ready && in_flight > 0), "{in_flight} in flight after {k}");
        drop(request);

        let told = harness.told();
        let finished: Vec<_> = told
            .iter()
            .filter_map(|told| match told {
                Told::Finished(attempts) => Some(attempts),
                _ => None,
            })
            .collect();
        assert_eq!(finished.len(), usize::from(k > 0), "after {k}: {told:?}");
        for provider in harness.chain.snapshot().providers() {
            assert_eq!(provider.in_flight(), 0, "{} after {k}", provider.name());
            assert_ne!(provider.state(), State::Probing, "{} after {k}", provider.name());
        }
        let attempts = finished.first().map_or(&[][..], |attempts| attempts);
        let started = told.iter().filter(|told| matches!(told, Told::Started(_))).count();
        assert_eq!(started, attempts.len(), "after {k}: {told:?}");
        let ended = told.iter().filter(|told| matches!(told, Told::Ended(..))).count();
        assert_eq!(ended, attempts.len(), "after {k}: {told:?}");
        let abandoned = attempts.iter().filter(|(_, reason)| reason == "abandoned").count() as u64;
        assert_eq!(abandoned, in_flight, "after {k}: {attempts:?}");
        if in_flight == 1 {
            assert_eq!(attempts.last().unwrap().1, "abandoned", "after {k}: {attempts:?}");
        }

        // Only what landed moved anything.
        let landed = |name: &str| {
            attempts.iter().find(|(asked, reason)| asked == name && reason != "abandoned")
        };
        for (name, (before, after)) in names.iter().zip(before.iter().zip(states())) {
            if landed(name).is_none() {
                assert_eq!(*before, after, "{name} after {k}: {attempts:?}");
            }
        }
        let (counted, by_fallback_now, unserved_now) = tally(&harness);
        assert_eq!(counted, requests + u64::from(k > 0));
        if !ready {
            assert_eq!((by_fallback_now, unserved_now), (by_fallback, unserved), "after {k}");
        }
        let first = landed(&names[0]).map(|(_, reason)| reason.as_str());
        self.prepare.check(&harness, first, k).await;
        !ready
    }
}

impl Prepare {
    async fn apply(self, harness: &Harness) {
        match self {
            Self::TwoFailures => {
                let wanted = harness.replace("first", Script::status(500));
                for _ in 0..2 {
                    // An error where a credential source fails.
                    let _ = harness.post().with_extension(Route::only(["first"])).send().await;
                }
                assert_eq!(harness.of_provider("first").failures(), 2);
                harness.tell("first", wanted);
            }
            Self::ProbeDue => sleep_until(harness.break_it("first").await).await,
            Self::AllOpen => {
                harness.break_it("first").await;
                harness.break_it("second").await;
            }
            Self::Cooling => {
                let wanted = harness.replace("first", Script::hint(429, "retry-after", "300"));
                harness.ask().await;
                harness.tell("first", wanted);
            }
        }
    }

    /// Finds out by further requests whether the first provider's breaker is where it was. `landed`
    /// is how the first provider's attempt ended, if it did.
    async fn check(self, harness: &Harness, landed: Option<&str>, k: usize) {
        harness.tell("second", Script::status(200));
        let first_fails =
            |landed: &str| matches!(landed, "server_error" | "timeout" | "credential");
        match self {
            Self::TwoFailures => {
                let missing = match landed {
                    None => 1,
                    Some("ok") => 3,
                    Some(reason) if first_fails(reason) => 0,
                    Some(_) => 1,
                };
                harness.tell("first", Script::status(500));
                for _ in 0..missing {
                    assert_eq!(harness.state("first"), State::Closed, "after {k}: {landed:?}");
                    harness.ask().await;
                }
                let state = harness.state("first");
                assert!(matches!(state, State::Open { .. }), "after {k}: {landed:?}: {state:?}");
            }
            Self::ProbeDue => match landed {
                // The lease is back: the next request is the probe, and a failure's break the second.
                None => {
                    harness.tell("first", Script::status(500));
                    harness.ask().await;
                    let told = harness.told();
                    assert!(told.contains(&Told::Probing("first".into())), "after {k}: {told:?}");
                    assert!(told.contains(&Told::Opened("first".into(), 2)), "after {k}: {told:?}");
                }
                Some("ok" | "client_error") => {
                    assert_eq!(harness.state("first"), State::Closed, "after {k}");
                }
                Some("rate_limited") => {
                    let state = harness.state("first");
                    assert!(matches!(state, State::CoolingDown { .. }), "after {k}: {state:?}");
                }
                Some(reason) => {
                    assert!(first_fails(reason), "after {k}: {reason}");
                    let state = harness.state("first");
                    assert!(matches!(state, State::Open { .. }), "after {k}: {state:?}");
                    let asked = harness.asked("first");
                    harness.ask().await;
                    assert_eq!(harness.asked("first"), asked, "after {k}");
                }
            },
            Self::AllOpen => {
                let asked = harness.all_asked().len();
                harness.ask().await;
                assert!(harness.all_asked().len() > asked, "never refused untried");
            }
            Self::Cooling => {
                assert!(matches!(harness.state("first"), State::CoolingDown { .. }));
                let asked = harness.asked("first");
                harness.ask().await;
                assert_eq!(harness.asked("first"), asked);
            }
        }
    }
}

fn three_failures(chain: ProviderChainBuilder) -> ProviderChainBuilder {
    chain.breaker(Breaker::default().consecutive(3))
}

fn healthy() -> Harness {
    let answers = [("first", Script::status(200).yields(6)), ("second", Script::status(200))];
    Harness::with(answers, three_failures)
}

fn failing_first() -> Harness {
    Harness::with(
        [("first", Script::status(500).yields(5)), ("second", Script::status(200).yields(5))],
        three_failures,
    )
}

fn bad_request_first() -> Harness {
    Harness::with(
        [("first", Script::status(400).yields(5)), ("second", Script::status(200).yields(5))],
        three_failures,
    )
}

fn limited_first() -> Harness {
    Harness::with(
        [
            ("first", Script::hint(429, "retry-after", "300").yields(5)),
            ("second", Script::status(200).yields(5)),
        ],
        three_failures,
    )
}

fn hanging_first() -> Harness {
    Harness::with([("first", Script::hang()), ("second", Script::status(200).yields(5))], |chain| {
        three_failures(chain).attempt_timeout(ms(55))
    })
}

/// Its error arrives in pieces, before the second provider is asked.
fn slow_error() -> Harness {
    let error = || dribble(&["{\"error\":{\"message\":", "\"not ", "today\"", "}}"], 2);
    Harness::with(
        [
            ("first", Script::answer(500, &[], error).yields(3)),
            ("second", Script::status(200).yields(20)),
        ],
        three_failures,
    )
}

/// No provider serves, and the errors are read to their ends, or for 100 ms.
fn slow_last_error() -> Harness {
    let error = || dribble(&["slow", " and ", "slower"], 2);
    Harness::with(
        [
            ("first", Script::answer(500, &[], silence).yields(2)),
            ("second", Script::answer(503, &[], error).yields(2)),
        ],
        |chain| three_failures(chain).on_exhausted(Exhausted::Error),
    )
}

fn asking_for_a_token() -> Harness {
    let first = keyless("first").bearer_auth_with(|| async {
        yields(4).await;
        Ok::<_, std::io::Error>("token".to_owned())
    });
    Harness::of_providers(
        vec![first, provider("second")],
        [("first", Script::status(500).yields(3)), ("second", Script::status(200).yields(3))],
        three_failures,
    )
}

fn without_a_token() -> Harness {
    let first = keyless("first").bearer_auth_with(|| async {
        yields(4).await;
        Err::<String, _>(std::io::Error::other("no token today"))
    });
    Harness::of_providers(
        vec![first, provider("second")],
        [("first", Script::status(200)), ("second", Script::status(200).yields(3))],
        three_failures,
    )
}

fn streamed(harness: &Harness) -> RequestBuilder {
    harness.post().header("content-length", "9").body(dribble(&["one", "two", "six"], 2))
}

fn endless(harness: &Harness) -> RequestBuilder {
    harness.post().body(Body::wrap_stream(futures_util::stream::repeat_with(|| {
        Ok::<_, std::io::Error>("more")
    })))
}

// Without a probe.

#[tokio::test(start_paused = true)]
async fn a_request_that_is_dropped_leaves_no_trace() {
    Case::new(healthy, Prepare::TwoFailures, 6).sweep().await;
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_dropped_leaves_what_the_first_provider_answered() {
    Case::new(failing_first, Prepare::TwoFailures, 10).sweep().await;
    Case::new(bad_request_first, Prepare::TwoFailures, 10).sweep().await;
    Case::new(hanging_first, Prepare::TwoFailures, 10).sweep().await;
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_dropped_while_a_slow_error_is_read_leaves_no_trace() {
    Case::new(slow_error, Prepare::TwoFailures, 20).sweep().await;
    Case::new(slow_last_error, Prepare::TwoFailures, 10).sweep().await;
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_dropped_while_a_token_is_asked_for_leaves_no_trace() {
    Case::new(asking_for_a_token, Prepare::TwoFailures, 10).sweep().await;
    Case::new(without_a_token, Prepare::TwoFailures, 7).sweep().await;
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_dropped_while_its_body_is_read_leaves_no_trace() {
    for harness in [healthy, failing_first] {
        Case { request: streamed, ..Case::new(harness, Prepare::TwoFailures, 12) }.sweep().await;
    }
    Case { request: endless, ..Case::new(healthy, Prepare::TwoFailures, 6) }.sweep().await;
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_dropped_out_of_turn_leaves_no_trace() {
    Case::new(failing_first, Prepare::AllOpen, 5).sweep().await;
    Case::new(healthy, Prepare::Cooling, 1).sweep().await;
}

// With a probe.

#[tokio::test(start_paused = true)]
async fn a_probe_that_is_dropped_gives_its_lease_back() {
    Case::new(healthy, Prepare::ProbeDue, 6).sweep().await;
    Case::new(failing_first, Prepare::ProbeDue, 10).sweep().await;
    Case::new(bad_request_first, Prepare::ProbeDue, 10).sweep().await;
    Case::new(limited_first, Prepare::ProbeDue, 10).sweep().await;
    Case::new(hanging_first, Prepare::ProbeDue, 10).sweep().await;
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_is_dropped_while_a_slow_error_is_read_gives_its_lease_back() {
    Case::new(slow_error, Prepare::ProbeDue, 20).sweep().await;
    Case::new(slow_last_error, Prepare::ProbeDue, 10).sweep().await;
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_is_dropped_while_a_token_is_asked_for_gives_its_lease_back() {
    Case::new(asking_for_a_token, Prepare::ProbeDue, 10).sweep().await;
    Case::new(without_a_token, Prepare::ProbeDue, 7).sweep().await;
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_is_dropped_while_its_body_is_read_never_began() {
    for harness in [healthy, failing_first] {
        Case { request: streamed, ..Case::new(harness, Prepare::ProbeDue, 12) }.sweep().await;
    }
    Case { request: endless, ..Case::new(healthy, Prepare::ProbeDue, 1) }.sweep().await;
}

#[tokio::test(start_paused = true)]
async fn a_thousand_probes_that_are_dropped_wedge_nothing() {
    let harness = Harness::of([("first", Script::hang()), ("second", Script::status(200))]);
    let until = harness.break_it("first").await;
    sleep_until(until).await;
    for _ in 0..1_000 {
        assert!(tokio::time::timeout(ms(1), harness.post().send()).await.is_err());
        assert!(matches!(harness.state("first"), State::Open { until: end, .. } if end == until));
    }
    harness.tell("first", Script::status(200));
    assert_eq!(harness.ask().await, "first");
    assert_eq!(harness.state("first"), State::Closed);
    assert_eq!(harness.of_provider("first").failures(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_its_own_task_drops_with_others_in_flight_takes_back_only_its_own() {
    let harness =
        Harness::of([("first", Script::status(200).after(secs(2))), ("second", Script::hang())]);
    let others: Vec<_> = (0..10).map(|_| harness.spawn()).collect();
    let dropped: Vec<_> = (0..10).map(|_| harness.spawn()).collect();
    tokio::time::sleep(secs(1)).await;
    assert_eq!(harness.of_provider("first").in_flight(), 20);
    dropped.iter().for_each(|dropped| dropped.abort());
    for dropped in dropped {
        assert!(dropped.await.unwrap_err().is_cancelled());
    }
    assert_eq!(harness.of_provider("first").in_flight(), 10);
    for other in others {
        assert_eq!(other.await.unwrap(), "first");
    }
    let first = harness.of_provider("first");
    assert_eq!((first.in_flight(), first.attempts(), first.served()), (0, 20, 10));
    assert_eq!(harness.chain.snapshot().requests(), 20);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_was_sent_when_its_request_was_dropped_may_have_been_processed() {
    let token = || async {
        tokio::time::sleep(secs(1)).await;
        Ok::<_, std::io::Error>("token".to_owned())
    };
    for (first, dropped_after, sent) in [
        (provider("first"), ms(1), true),
        (keyless("first").bearer_auth_with(token), ms(500), false),
        (keyless("first").bearer_auth_with(token), ms(1_500), true),
    ] {
        let ended = Arc::new(Mutex::new(Vec::new()));
        let keeper = ended.clone();
        let harness = Harness::of_providers(
            vec![first, provider("second")],
            [("first", Script::hang()), ("second", Script::status(200))],
            |chain| {
                chain.observe(move |event| {
                    if let Event::AttemptFinished { attempt, .. } = event {
                        lock(&keeper).push((attempt.reason(), attempt.maybe_processed()));
                    }
                })
            },
        );
        tokio::time::timeout(dropped_after, harness.post().send()).await.unwrap_err();
        assert_eq!(*lock(&ended), [(Reason::Abandoned, sent)], "after {dropped_after:?}");
        assert_eq!(harness.asked("first"), usize::from(sent));
    }
}

/// A layer whose attempts hang, and hold something while they do.
#[derive(Clone, Default)]
struct Holds(Arc<AtomicUsize>);

struct Held<'a>(&'a AtomicUsize);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[async_trait]
impl Middleware for Holds {
    async fn handle(&self, _: Request, _: &mut Extensions, _: Next<'_>) -> Result<Response> {
        self.0.fetch_add(1, Ordering::Relaxed);
        let _held = Held(&self.0);
        std::future::pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn what_an_attempt_holds_is_free_before_its_end_is_judged_or_emitted() {
    let layer = Holds::default();
    let ended = Arc::new(Mutex::new(Vec::new()));
    let held = || (layer.0.clone(), ended.clone());
    let ((held_at_verdict, verdicts), (held_at_event, events)) = (held(), held());
    let chain = ProviderChain::builder(["first", "second"].map(provider))
        .claim("https://caller.test/v1")
        .attempt_timeout(secs(1))
        .classify(move |outcome| {
            lock(&verdicts).push(("judged", held_at_verdict.load(Ordering::Relaxed)));
            Verdict::standard(outcome)
        })
        .observe(move |event| {
            if let Event::AttemptFinished { .. } = event {
                lock(&events).push(("emitted", held_at_event.load(Ordering::Relaxed)));
            }
        })
        .build()
        .unwrap();
    let client = ClientBuilder::new(reqwest::Client::new()).with(chain).with(layer).build();
    // The first attempt is over by itself, and the second is dropped by the caller.
    let sent = client.post(terminal::URL).body("{}").send();
    tokio::time::timeout(ms(1_500), sent).await.unwrap_err();
    assert_eq!(*lock(&ended), [("judged", 0), ("emitted", 0), ("emitted", 0)]);
}
