//! A panic in a closure of the user's costs its opinion and nothing else: the chain goes on, the
//! response arrives, and the snapshot counts it. A panic of another layer goes through.

use reqwest_failover_testing::terminal;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use reqwest::Body;
use reqwest_failover::{
    Event, Exhausted, Provider, ProviderChainBuilder, Report, Route, State, Verdict,
};

use terminal::{Harness, Script, Told, keyless, provider, secs, sleep_until, yields};

type Token = Result<String, std::io::Error>;

fn ok() -> Script {
    Script::status(200)
}

fn failing_first() -> [(&'static str, Script); 2] {
    [("first", Script::status(500)), ("second", ok())]
}

/// A switch for closures: on at first.
fn scare() -> (Arc<AtomicBool>, impl Fn() + Clone + Send + Sync + 'static) {
    let on = Arc::new(AtomicBool::new(true));
    let scared = on.clone();
    (on, move || assert!(!scared.load(Ordering::Relaxed), "scripted"))
}

fn panics(harness: &Harness) -> u64 {
    harness.chain.snapshot().callback_panics()
}

/// Nothing is held, and the chain serves.
async fn assert_sound(harness: &Harness) {
    for provider in harness.chain.snapshot().providers() {
        assert_eq!(provider.in_flight(), 0, "{}", provider.name());
        assert_ne!(provider.state(), State::Probing, "{}", provider.name());
    }
    harness.tell("second", ok());
    harness.ask().await;
}

// Each closure.

#[tokio::test]
async fn a_panic_in_classify_is_counted_and_the_standard_verdict_holds() {
    let harness = Harness::with(failing_first(), |chain| {
        chain.classify(|_| -> Verdict { panic!("scripted") })
    });
    for request in 1..=4 {
        let response = harness.post().send().await.unwrap();
        let report = Report::of(&response).unwrap();
        assert_eq!(report.served_by(), Some("second"), "{report}");
        assert_eq!(report.attempts().len(), 2);
        assert_eq!(panics(&harness), 2 * request);
    }
    assert_eq!(harness.of_provider("first").failures(), 4, "as the standard verdict has it");
    assert!(harness.told().contains(&Told::Panicked("classify")));
    assert_sound(&harness).await;
}

#[tokio::test]
async fn a_panic_in_route_is_counted_and_the_chains_order_holds() {
    let harness = Harness::with([("first", ok()), ("second", ok())], |chain| {
        chain.route(|_| -> Option<Route> { panic!("scripted") })
    });
    assert_eq!(harness.ask().await, "first");
    assert_eq!((panics(&harness), harness.told()[0].clone()), (1, Told::Panicked("route")));
    assert_sound(&harness).await;
}

#[tokio::test]
async fn a_panic_in_prepare_is_counted_and_the_attempt_fails_over_at_no_cost() {
    let first =
        provider("first").map_request(|_| -> Result<(), std::io::Error> { panic!("scripted") });
    let harness = Harness::of_providers(
        vec![first, provider("second")],
        [("first", ok()), ("second", ok())],
        |chain| chain,
    );
    for request in 1..=20 {
        let response = harness.post().send().await.unwrap();
        let report = Report::of(&response).unwrap();
        assert_eq!(report.served_by(), Some("second"));
        assert_eq!(report.attempts()[0].reason().as_str(), "other");
        assert!(!report.attempts()[0].maybe_processed(), "nothing was sent");
        assert_eq!(panics(&harness), request);
    }
    assert_eq!(harness.asked("first"), 0);
    let first = harness.of_provider("first");
    assert_eq!((first.failures(), first.state(), first.attempts()), (0, State::Closed, 20));
    assert_sound(&harness).await;
}

#[tokio::test]
async fn a_panic_in_a_source_is_counted_and_a_failed_credential() {
    let at_once = || -> std::future::Ready<Token> { panic!("scripted") };
    let later = || async {
        yields(3).await;
        let token: fn() -> Token = || panic!("scripted");
        token()
    };
    for (first, method) in [
        (keyless("first").bearer_auth_with(at_once), "bearer_auth_with"),
        (keyless("first").bearer_auth_with(later), "bearer_auth_with"),
        (keyless("first").api_key_header_with("x-key", later), "api_key_header_with"),
        (keyless("first").api_key_query_with("key", at_once), "api_key_query_with"),
    ] {
        let scripts = [("first", ok()), ("second", ok())];
        let harness =
            Harness::of_providers(vec![first, provider("second")], scripts, |chain| chain);
        for request in 1..=5 {
            let response = harness.post().send().await.unwrap();
            let report = Report::of(&response).unwrap();
            assert_eq!(report.served_by(), Some("second"));
            assert_eq!(report.attempts()[0].reason().as_str(), "credential");
            assert_eq!(panics(&harness), request);
        }
        assert_eq!(harness.asked("first"), 0);
        assert!(harness.told().contains(&Told::Panicked(method)));
        let state = harness.state("first");
        assert!(matches!(state, State::Open { .. }), "five failures: {state:?}");
        assert_sound(&harness).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_observe_at_every_event_is_counted_and_nothing_else_changes() {
    let (on, panic) = scare();
    let harness =
        Harness::with(failing_first(), |chain| chain.observe(move |_: &Event<'_>| panic()));
    assert_eq!(harness.ask_times(10).await["second"], 10);
    let until = match harness.state("first") {
        State::Open { until, .. } => until,
        other => panic!("{other:?}"),
    };
    // Started, finished, by_fallback, started, finished, and the request finished: six, five times;
    // then three, five times; and one breaker opened.
    assert_eq!(panics(&harness), 5 * 6 + 5 * 3 + 1);

    // A dropped request tells its end from a destructor.
    harness.tell("second", Script::hang());
    assert!(tokio::time::timeout(secs(1), harness.post().send()).await.is_err());
    harness.tell("second", ok());
    // A pass through the chain, a probe, an exhausted request.
    harness.client.get("https://elsewhere.test/").send().await.unwrap();
    sleep_until(until).await;
    assert_eq!(harness.ask().await, "second");
    harness.tell("second", Script::status(502));
    assert_eq!(harness.post().send().await.unwrap().status(), 500, "the last outcome");

    on.store(false, Ordering::Relaxed);
    let so_far = panics(&harness);
    assert_sound(&harness).await;
    assert_eq!(panics(&harness), so_far);
}

#[tokio::test]
async fn panics_in_all_closures_at_once_lose_no_response() {
    let (on, panic) = scare();
    let settings = |chain: ProviderChainBuilder| {
        let [observe, classify, route] = [(); 3].map(|()| panic.clone());
        chain
            .observe(move |_: &Event<'_>| observe())
            .classify(move |outcome| {
                classify();
                Verdict::standard(outcome)
            })
            .route(move |_| {
                route();
                None
            })
    };
    let prepare = panic.clone();
    let first = provider("first").map_request(move |_| {
        prepare();
        Ok::<_, std::io::Error>(())
    });
    let token = panic.clone();
    let second = keyless("second").bearer_auth_with(move || {
        token();
        async { Ok::<_, std::io::Error>("token".to_owned()) }
    });
    let providers: Vec<Provider> = vec![first, second, provider("third")];
    let names = ["first", "second", "third"];
    let harness = Harness::of_providers(providers, names.map(|name| (name, ok())), settings);
    for _ in 0..20 {
        assert_eq!(harness.ask().await, "third");
    }
    let so_far = panics(&harness);
    assert!(so_far > 100, "{so_far}");
    on.store(false, Ordering::Relaxed);
    assert_eq!(harness.ask().await, "first");
    assert_eq!(panics(&harness), so_far);
    assert_sound(&harness).await;
}

#[tokio::test(start_paused = true)]
async fn a_closure_that_panics_on_a_probe_wedges_nothing() {
    let (on, panic) = scare();
    on.store(false, Ordering::Relaxed);
    let [classify, prepare] = [(); 2].map(|()| panic.clone());
    let first = provider("first").map_request(move |_| {
        prepare();
        Ok::<_, std::io::Error>(())
    });
    let harness = Harness::of_providers(
        vec![first, provider("second")],
        [("first", ok()), ("second", ok())],
        |chain| {
            chain.classify(move |outcome| {
                classify();
                Verdict::standard(outcome)
            })
        },
    );
    let until = harness.break_it("first").await;
    sleep_until(until).await;
    on.store(true, Ordering::Relaxed);
    assert_eq!(harness.ask().await, "second");
    // Nothing was sent, so nothing was learnt: the next request is the probe.
    assert!(matches!(harness.state("first"), State::Open { until: end, .. } if end == until));
    on.store(false, Ordering::Relaxed);
    assert_eq!(harness.ask().await, "first");
    assert_eq!(harness.state("first"), State::Closed);
}

#[tokio::test]
async fn a_chain_that_saw_panics_on_other_threads_goes_on() {
    let (on, panic) = scare();
    let harness = Harness::with(failing_first(), |chain| {
        chain.without_health().observe(move |_: &Event<'_>| panic())
    });
    let chain = harness.chain.clone();
    let client = harness.client.clone();
    let ask = move || {
        let client = client.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async { client.post(terminal::URL).send().await.unwrap().status() })
    };
    let threads: Vec<_> = (0..4).map(|_| std::thread::spawn(ask.clone())).collect();
    for thread in threads {
        assert_eq!(thread.join().unwrap(), 200);
    }
    assert_eq!(chain.snapshot().callback_panics(), 4 * 6);
    on.store(false, Ordering::Relaxed);
    assert_sound(&harness).await;
}

// Panics of others.

/// Runs one request in a task of its own, which must panic.
async fn assert_panics(harness: &Harness, body: Body) {
    let request = harness.post().body(body).header("content-length", "2");
    let error = tokio::spawn(async move { request.send().await.map(drop) }).await.unwrap_err();
    assert!(error.is_panic(), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_an_inner_layer_goes_through_and_leaves_nothing_held() {
    for script in [Script::panic(), Script::panic().yields(3), Script::panic().after(secs(1))] {
        let harness = Harness::of([("first", script), ("second", ok())]);
        assert_panics(&harness, "{}".into()).await;
        let first = harness.of_provider("first");
        assert_eq!((first.in_flight(), first.attempts(), first.failures()), (0, 1, 0));
        assert_eq!(first.state(), State::Closed);
        assert_eq!(harness.chain.snapshot().requests(), 1);
        assert_eq!(panics(&harness), 0, "no closure of the user's");
        let abandoned = vec![("first".to_owned(), "abandoned".to_owned())];
        assert!(harness.told().contains(&Told::Finished(abandoned)));

        // A probe gives its lease back.
        let until = harness.break_it("first").await;
        sleep_until(until).await;
        assert_panics(&harness, "{}".into()).await;
        assert!(matches!(harness.state("first"), State::Open { until: end, .. } if end == until));
        assert_eq!(harness.of_provider("first").in_flight(), 0);
        harness.tell("first", ok());
        assert_eq!(harness.ask().await, "first");
        assert_eq!(harness.state("first"), State::Closed);
        assert_sound(&harness).await;
    }
}

#[cfg(feature = "tracing")]
mod subscriber {
    use std::cell::Cell;

    use tracing::Subscriber;
    use tracing::span::Id;
    use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
    use tracing_subscriber::registry::LookupSpan;

    use super::*;

    thread_local! {
        /// How many spans are entered on this thread until one panics.
        static LEFT: Cell<Option<usize>> = const { Cell::new(None) };
    }

    struct Panics;

    impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Panics {
        fn on_enter(&self, _: &Id, _: Context<'_, S>) {
            let left = LEFT.get();
            LEFT.set(left.and_then(|left| left.checked_sub(1)));
            assert!(left != Some(0), "scripted");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_of_a_subscriber_goes_through_and_leaves_nothing_held() {
        let subscriber = tracing_subscriber::registry().with(Panics);
        tracing::subscriber::set_global_default(subscriber).unwrap();
        let harness = Harness::of([("first", ok().yields(1)), ("second", ok())]);
        for entered in 0.. {
            LEFT.set(Some(entered));
            let request = harness.post();
            let sent = tokio::spawn(async move { request.send().await.map(drop) }).await;
            assert_eq!(harness.of_provider("first").in_flight(), 0, "after {entered} spans");
            if LEFT.take().is_some() {
                sent.unwrap().unwrap();
                assert!(entered > 3, "{entered} spans were entered");
                break;
            }
            assert!(sent.unwrap_err().is_panic());
        }
        assert_sound(&harness).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_a_body_goes_through_and_leaves_nothing_held() {
    let panicking = || {
        Body::wrap_stream(futures_util::stream::poll_fn(
            |_| -> std::task::Poll<Option<std::io::Result<&str>>> { panic!("scripted") },
        ))
    };
    // The caller's.
    let harness = Harness::of(failing_first());
    assert_panics(&harness, panicking()).await;
    assert_eq!((harness.chain.snapshot().requests(), harness.all_asked().len()), (1, 0));
    assert_sound(&harness).await;

    // A failed response's, while it is read for its message, on the way to a probe or after it.
    for due in [false, true] {
        for mode in [Exhausted::LastOutcome, Exhausted::Error] {
            let error = Script::answer(500, &[], panicking);
            let harness = Harness::with([("first", error.clone()), ("second", error)], |chain| {
                chain.on_exhausted(mode)
            });
            let until = harness.break_it("second").await;
            if due {
                sleep_until(until).await;
            }
            assert_panics(&harness, "{}".into()).await;
            assert!(
                matches!(harness.state("second"), State::Open { until: end, .. } if end == until)
            );
            harness.tell("first", ok());
            assert_sound(&harness).await;
        }
    }
}
