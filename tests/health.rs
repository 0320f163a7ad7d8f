//! Health and time through the middleware, on a paused clock: breakers, cooldowns, timeouts, and
//! what a snapshot shows of them.

use reqwest_failover_testing::terminal;

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use reqwest_failover::{
    Breaker, Event, Exhausted, FailoverError, ProviderChain, Reason, Report, Route, State,
};

use tokio::sync::Notify;

use terminal::{Harness, Script, Told, dribble, ms, now, provider, secs, silence, sleep_until};

fn ok() -> Script {
    Script::status(200)
}

fn two(first: Script, second: Script) -> Harness {
    Harness::of([("first", first), ("second", second)])
}

fn served<const N: usize>(counts: [(&str, usize); N]) -> HashMap<String, usize> {
    counts.into_iter().map(|(name, count)| (name.to_owned(), count)).collect()
}

fn open_until(state: State) -> Instant {
    match state {
        State::Open { until, .. } => until,
        other => panic!("{other:?} is not open"),
    }
}

fn cooling_until(state: State) -> Instant {
    match state {
        State::CoolingDown { until, .. } => until,
        other => panic!("{other:?} is not cooling down"),
    }
}

/// A stream of unknown length, which can be sent only once.
fn once() -> reqwest::Body {
    dribble(&["once"], 0)
}

fn reasons(report: &Report) -> Vec<(&str, Reason)> {
    report.attempts().iter().map(|attempt| (attempt.provider(), attempt.reason())).collect()
}

/// The error of a request that no provider served, and how long it took to the millisecond.
async fn failure(harness: &Harness) -> (reqwest_middleware::Error, Duration) {
    let started = now();
    let error = harness.post().send().await.expect_err("an error");
    (error, now() - started)
}

// Timeouts.

#[tokio::test(start_paused = true)]
async fn the_default_attempt_timeout_binds_all_but_the_last_admissible_provider() {
    let slow = ok().after(secs(300));
    let harness = Harness::of([
        ("first", Script::hang()),
        ("second", Script::hang()),
        ("third", slow.clone()),
    ]);
    let started = now();
    let response = harness.post().send().await.unwrap();
    assert_eq!(now() - started, secs(120 + 120 + 300));
    let report = Report::of(&response).unwrap();
    let expected = [("first", Reason::Timeout), ("second", Reason::Timeout), ("third", Reason::Ok)];
    assert_eq!(reasons(report), expected);
    assert_eq!(report.attempts()[0].elapsed(), secs(120));
    assert!(report.attempts()[0].maybe_processed() && !report.attempts()[2].maybe_processed());

    // The last that may be asked is not the last of the list where the others are out.
    harness.tell("first", slow);
    harness.chain.isolate("second").unwrap();
    harness.chain.isolate("third").unwrap();
    let started = now();
    assert_eq!(harness.ask().await, "first");
    assert_eq!(now() - started, secs(300));
}

#[tokio::test(start_paused = true)]
async fn the_default_attempt_timeout_binds_nobody_where_there_is_one_provider() {
    let harness = Harness::of([("only", ok().after(secs(599)))]);
    assert_eq!(harness.ask().await, "only");
}

#[tokio::test(start_paused = true)]
async fn an_explicit_attempt_timeout_binds_the_last_provider_too() {
    let hanging = [("first", Script::hang()), ("second", Script::hang())];
    let harness = Harness::with(hanging.clone(), |chain| chain.attempt_timeout(secs(7)));
    let (error, elapsed) = failure(&harness).await;
    assert_eq!(elapsed, secs(14));
    let failed = FailoverError::find(&error).unwrap();
    assert!(failed.is_timeout() && !failed.is_connect());
    assert_eq!(reasons(failed.report()), [("first", Reason::Timeout), ("second", Reason::Timeout)]);

    // A provider's own limit goes before the chain's, shorter or longer.
    let providers = vec![
        provider("first").attempt_timeout(secs(3)),
        provider("second").attempt_timeout(secs(20)),
    ];
    let harness = Harness::of_providers(providers, hanging, |chain| chain.attempt_timeout(secs(7)));
    assert_eq!(failure(&harness).await.1, secs(23));
}

#[tokio::test(start_paused = true)]
async fn an_answer_at_the_last_moment_is_in_time() {
    let harness = Harness::with(
        [("first", ok().after(secs(7))), ("second", ok().after(ms(7_001)))],
        |chain| chain.attempt_timeout(secs(7)),
    );
    assert_eq!(harness.ask().await, "first");
    harness.chain.isolate("first").unwrap();
    let (error, elapsed) = failure(&harness).await;
    assert!(FailoverError::find(&error).unwrap().is_timeout());
    assert_eq!(elapsed, secs(7));
}

#[tokio::test(start_paused = true)]
async fn the_total_timeout_is_exact() {
    let hanging = ["first", "second", "third", "fourth"].map(|name| (name, Script::hang()));
    let harness =
        Harness::with(hanging, |chain| chain.attempt_timeout(secs(2)).total_timeout(secs(5)));
    let (error, elapsed) = failure(&harness).await;
    assert_eq!(elapsed, secs(5));
    let failed = FailoverError::find(&error).unwrap();
    assert!(failed.is_timeout());
    let elapsed: Vec<_> = failed.report().attempts().iter().map(|a| a.elapsed()).collect();
    assert_eq!(elapsed, [secs(2), secs(2), secs(1)]);
    assert_eq!(failed.report().elapsed(), secs(5));
    assert_eq!(harness.asked("fourth"), 0);

    let harness = Harness::of([("only", Script::hang())]);
    assert_eq!(failure(&harness).await.1, secs(600));
}

#[tokio::test(start_paused = true)]
async fn nobody_is_asked_at_the_very_moment_when_time_is_up() {
    let harness =
        Harness::with([("first", Script::status(500).after(secs(5))), ("second", ok())], |chain| {
            chain.total_timeout(secs(5)).attempt_timeout(secs(5))
        });
    let response = harness.post().send().await.unwrap();
    assert_eq!(response.status(), 500, "the last outcome");
    assert_eq!(harness.all_asked(), ["first"]);
}

#[tokio::test(start_paused = true)]
async fn the_total_timeout_covers_the_reading_of_a_streamed_body() {
    let settings = |chain: reqwest_failover::ProviderChainBuilder| chain.total_timeout(secs(5));
    let harness = Harness::with([("first", ok()), ("second", ok())], settings);
    let started = now();
    let request = harness.post().header("content-length", "4").body(silence());
    let error = request.send().await.unwrap_err();
    assert_eq!(now() - started, secs(5));
    let failed = FailoverError::find(&error).unwrap();
    assert!(failed.is_timeout());
    assert!(failed.report().attempts().is_empty() && harness.all_asked().is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_total_timeout_covers_the_reading_of_failed_bodies() {
    let failing = Script::answer(500, &[], silence).after(ms(900));
    let harness = Harness::with([("only", failing)], |chain| {
        chain.on_exhausted(Exhausted::Error).total_timeout(secs(1))
    });
    assert_eq!(failure(&harness).await.1, secs(1));
    // With time to spare it is 100 ms, unless told otherwise.
    let harness = Harness::with([("only", Script::answer(500, &[], silence))], |chain| {
        chain.on_exhausted(Exhausted::Error)
    });
    assert_eq!(failure(&harness).await.1, ms(100));
    for limit in [Duration::ZERO, ms(1), ms(700)] {
        let harness = Harness::with([("only", Script::answer(500, &[], silence))], |chain| {
            chain.on_exhausted(Exhausted::Error).error_body_timeout(limit)
        });
        assert_eq!(failure(&harness).await.1, limit);
    }
}

#[tokio::test(start_paused = true)]
async fn the_requests_own_timeout_bounds_all_attempts_together() {
    for names in [&["first"][..], &["first", "second"], &["first", "second", "third"]] {
        let scripts = ["first", "second", "third"].map(|name| (name, Script::hang()));
        let providers = names.iter().map(|name| provider(name)).collect();
        let harness = Harness::of_providers(providers, scripts, |chain| chain);
        let started = now();
        let error = harness.post().timeout(secs(1)).send().await.unwrap_err();
        let took = now() - started;
        assert!((secs(1)..=ms(1_050)).contains(&took), "{names:?}: {took:?}");
        assert!(FailoverError::find(&error).unwrap().is_timeout());
        assert_eq!(harness.all_asked(), names, "each has a part of the second");
    }
    // A limit that is longer than the request's own is not reached.
    let hanging = [("first", Script::hang()), ("second", Script::hang())];
    let harness = Harness::with(hanging, |chain| chain.attempt_timeout(secs(7)));
    let started = now();
    harness.post().timeout(secs(1)).send().await.unwrap_err();
    assert!((secs(1)..=ms(1_050)).contains(&(now() - started)));
    assert_eq!(harness.all_asked(), ["first"]);
}

#[tokio::test(start_paused = true)]
async fn a_total_timeout_alone_leaves_time_for_the_second_provider() {
    let harness = Harness::with([("first", Script::hang()), ("second", ok())], |chain| {
        chain.total_timeout(secs(3))
    });
    for _ in 0..5 {
        let started = now();
        assert_eq!(harness.ask().await, "second");
        assert!(now() - started < secs(3));
    }
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_is_unavailable_is_asked_within_the_attempt_limit_of_one_that_hangs() {
    for open in [true, false] {
        let harness = two(Script::hang(), ok());
        if open {
            harness.break_it("second").await;
        } else {
            harness.tell("second", Script::status(429));
            let limited = harness.post().with_extension(Route::only(["second"]));
            limited.send().await.unwrap();
            harness.tell("second", ok());
        }
        assert_ne!(harness.state("second"), State::Closed);
        let started = now();
        assert_eq!(harness.ask().await, "second");
        assert_eq!(now() - started, secs(120));
    }
}

// Callers who give up.

#[tokio::test(start_paused = true)]
async fn an_hour_of_callers_who_give_up_on_a_provider_that_hangs_is_served_by_the_next() {
    /// A name, the chain's attempt timeout, and how long each caller waits.
    type Row = (&'static str, Option<Duration>, fn(usize) -> Duration);
    let patience: [Row; 3] = [
        ("callers of 60 s", None, |_| secs(60)),
        ("callers of 15 s, attempts of 20 s", Some(secs(20)), |_| secs(15)),
        ("one caller in a hundred of 300 s", None, |at| {
            secs(if at % 100 == 99 { 300 } else { 60 })
        }),
    ];
    for (name, limit, patience) in patience {
        let opened = Arc::new(OnceLock::new());
        let (begun, first_opened) = (now(), opened.clone());
        let harness = Harness::with([("first", Script::hang()), ("second", ok())], |chain| {
            let chain = chain.observe(move |event| {
                if let Event::BreakerOpened { provider: "first", cause, .. } = event {
                    let is_first = first_opened.get().is_none();
                    assert!(!is_first || matches!(*cause, "silence" | "consecutive"), "{cause}");
                    first_opened.get_or_init(|| now() - begun);
                }
            });
            match limit {
                Some(limit) => chain.attempt_timeout(limit),
                None => chain,
            }
        });
        let mut callers = Vec::new();
        for at in 0..3_600 {
            let request = harness.post();
            callers.push(tokio::spawn(tokio::time::timeout(patience(at), request.send())));
            tokio::time::sleep(secs(1)).await;
        }
        let mut served = 0;
        for caller in callers {
            served += usize::from(matches!(caller.await.unwrap(), Ok(Ok(_))));
        }
        let opened = opened.get().expect("its breaker opened");
        println!("{name}: {served} of 3600 served, the breaker opened after {opened:?}");
        assert!(served >= 3_500, "{name}: {served}");
        // The fifth caller who gave up.
        assert_eq!(opened.as_secs(), patience(1).as_secs() + 5 - 1, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn callers_who_give_up_early_open_no_breaker() {
    for patience in [ms(1), ms(500), secs(1)] {
        let harness = two(Script::hang(), Script::hang());
        for _ in 0..50 {
            tokio::time::timeout(patience, harness.post().send()).await.unwrap_err();
        }
        assert_eq!(["first", "second"].map(|name| harness.state(name)), [State::Closed; 2]);
        assert_eq!(harness.of_provider("first").failures(), 0);
    }
    for timeout in [ms(1), ms(500)] {
        let harness = two(Script::hang(), Script::hang());
        for _ in 0..50 {
            harness.post().timeout(timeout).send().await.unwrap_err();
        }
        assert_eq!(["first", "second"].map(|name| harness.state(name)), [State::Closed; 2]);
    }
}

#[tokio::test(start_paused = true)]
async fn callers_who_give_up_while_a_key_is_fetched_open_no_breaker() {
    let source = || std::future::pending::<Result<String, std::io::Error>>();
    let first = terminal::keyless("first").bearer_auth_with(source);
    let scripts = [("first", ok()), ("second", ok())];
    let harness = Harness::of_providers(vec![first, provider("second")], scripts, |chain| chain);
    for _ in 0..10 {
        tokio::time::timeout(secs(60), harness.post().send()).await.unwrap_err();
    }
    assert_eq!((harness.state("first"), harness.asked("first")), (State::Closed, 0));
}

#[tokio::test(start_paused = true)]
async fn how_long_is_too_long_depends_on_the_providers_usual_time() {
    for (usual, patience, opens) in
        [(ms(100), ms(1_100), true), (secs(20), secs(30), false), (secs(20), secs(45), true)]
    {
        let harness = two(ok().after(usual), ok());
        harness.ask_times(10).await;
        harness.tell("first", Script::hang());
        for _ in 0..5 {
            tokio::time::timeout(patience, harness.post().send()).await.unwrap_err();
        }
        let is_open = matches!(harness.state("first"), State::Open { .. });
        assert_eq!(is_open, opens, "usually {usual:?}, given up after {patience:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_streams_on_for_as_long_as_it_likes() {
    let endless = || {
        reqwest::Body::wrap_stream(futures_util::stream::unfold(0, |sent| async move {
            tokio::time::sleep(secs(1_000)).await;
            (sent < 3).then_some((Ok::<_, std::io::Error>("late "), sent + 1))
        }))
    };
    let harness = Harness::with([("first", Script::answer(200, &[], endless))], |chain| {
        chain.attempt_timeout(secs(2)).total_timeout(secs(5))
    });
    let response = harness.post().send().await.unwrap();
    assert_eq!(response.text().await.unwrap(), "late late late ");
}

#[tokio::test(start_paused = true)]
async fn no_limit_is_too_long() {
    for provider_limit in [Duration::MAX, secs(1)] {
        let harness = Harness::of_providers(
            vec![provider("first").attempt_timeout(provider_limit), provider("second")],
            [("first", ok().after(ms(900))), ("second", Script::hang())],
            |chain| {
                let breaker = Breaker::default()
                    .breaks(Duration::MAX, Duration::MAX)
                    .window(Duration::MAX)
                    .consecutive(1);
                chain.breaker(breaker).total_timeout(Duration::MAX).attempt_timeout(Duration::MAX)
            },
        );
        assert_eq!(harness.ask().await, "first");
        harness.chain.set_order(["second", "first"]).unwrap();
        let waiting = tokio::time::timeout(secs(30 * 24 * 3600), harness.post().send());
        assert!(waiting.await.is_err(), "a month is not the end of all time");
        assert_eq!(harness.of_provider("second").in_flight(), 0);

        harness.chain.set_order(["first", "second"]).unwrap();
        harness.tell("first", Script::status(500));
        harness.tell("second", ok());
        assert_eq!(harness.ask().await, "second");
        assert!(open_until(harness.state("first")) > now() + secs(365 * 24 * 3600));
        assert_eq!(harness.ask().await, "second");
        assert_eq!(harness.asked("first"), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn breaks_of_no_length_are_no_breaks() {
    let harness = Harness::with([("first", Script::status(500)), ("second", ok())], |chain| {
        chain.breaker(Breaker::default().breaks(Duration::ZERO, Duration::ZERO))
    });
    assert_eq!(harness.ask_times(20).await, served([("second", 20)]));
    assert_eq!(harness.asked("first"), 20);
    harness.tell("first", ok());
    assert_eq!(harness.ask().await, "first");
    assert_eq!(harness.state("first"), State::Closed);
}

// The breaker.

#[tokio::test(start_paused = true)]
async fn a_breaker_opens_after_5_failures_and_closes_after_a_probe() {
    let harness = two(Script::status(500), ok());
    assert_eq!(harness.ask_times(4).await, served([("second", 4)]));
    assert_eq!(harness.state("first"), State::Closed);
    assert_eq!(harness.ask().await, "second");
    let until = open_until(harness.state("first"));
    let length = until - now();
    assert!((secs(15)..=secs(30)).contains(&length), "equal jitter: {length:?}");
    assert_eq!(harness.asked("first"), 5);
    assert!(harness.told().contains(&Told::Opened("first".into(), 1)));

    // During the break it is left alone, to the last millisecond.
    assert_eq!(harness.ask_times(100).await, served([("second", 100)]));
    sleep_until(until - ms(2)).await;
    assert_eq!(harness.ask().await, "second");
    assert_eq!(harness.asked("first"), 5);
    assert!(matches!(harness.state("first"), State::Open { until: end, .. } if end == until));

    // Then the next request is the probe, and others do not wait for it.
    sleep_until(until).await;
    assert!(
        matches!(harness.state("first"), State::Open { until: end, .. } if end == until),
        "`until` is past"
    );
    harness.tell("first", Script::status(500).after(secs(1)));
    harness.told();
    let probe = harness.spawn();
    tokio::time::sleep(ms(500)).await;
    assert_eq!(harness.state("first"), State::Probing);
    assert_eq!(harness.of_provider("first").in_flight(), 1);
    assert_eq!(harness.ask_times(10).await, served([("second", 10)]));
    assert_eq!(probe.await.unwrap(), "second");
    assert_eq!(harness.asked("first"), 6);
    assert_eq!(harness.told()[0], Told::Probing("first".into()));

    // It failed: the second break is twice as long.
    let until = open_until(harness.state("first"));
    let length = until - now();
    assert!((secs(30)..=secs(60)).contains(&length), "equal jitter: {length:?}");

    // The next one succeeds, and with it the first provider has its traffic back.
    sleep_until(until).await;
    harness.tell("first", ok());
    assert_eq!(harness.ask().await, "first");
    assert_eq!(harness.state("first"), State::Closed);
    assert!(harness.told().contains(&Told::Closed("first".into())));
    assert_eq!(harness.ask_times(100).await, served([("first", 100)]));
    assert_eq!(harness.of_provider("first").failures(), 6);
}

#[tokio::test(start_paused = true)]
async fn a_success_in_between_starts_the_count_anew() {
    let harness = two(ok(), ok());
    for _ in 0..10 {
        // And never as many failures as successes.
        harness.tell("first", ok());
        harness.ask_times(5).await;
        harness.tell("first", Script::status(500));
        harness.ask_times(4).await;
    }
    assert_eq!(harness.state("first"), State::Closed);
    assert_eq!(harness.asked("first"), 90);
}

#[tokio::test(start_paused = true)]
async fn half_of_10_requests_in_a_minute_open_the_breaker_too() {
    for (pace, opens) in [(secs(5), true), (secs(7), false)] {
        let harness = two(ok(), ok());
        for request in 0..10 {
            assert_eq!(harness.state("first"), State::Closed, "{request} requests, {pace:?} apart");
            let script = if request % 2 == 0 { ok() } else { Script::status(503) };
            harness.tell("first", script);
            harness.ask().await;
            tokio::time::sleep(pace).await;
        }
        assert_eq!(harness.state("first") != State::Closed, opens, "{pace:?} apart");
    }
}

#[tokio::test(start_paused = true)]
async fn bad_requests_open_no_breaker_and_hammer_no_dead_provider() {
    let harness = two(Script::status(400), Script::status(400));
    for _ in 0..100 {
        assert_eq!(harness.post().send().await.unwrap().status(), 400);
    }
    assert_eq!(harness.state("first"), State::Closed);
    assert_eq!(harness.of_provider("first").failures(), 0);

    harness.break_it("first").await;
    let asked = harness.asked("first");
    for _ in 0..100 {
        assert_eq!(harness.post().send().await.unwrap().status(), 400);
    }
    assert_eq!(harness.asked("first"), asked);
}

#[tokio::test(start_paused = true)]
async fn a_thousand_requests_at_the_end_of_a_break_are_one_probe() {
    for (script, by_first) in [(ok(), 1), (Script::status(500), 0), (Script::hang(), 0)] {
        let harness = two(script.after(secs(1)), ok());
        let until = harness.break_it("first").await;
        sleep_until(until).await;
        let (asked, _) = (harness.asked("first"), harness.told());
        let answers = harness.ask_at_once(1_000).await;
        assert_eq!(answers.get("first").copied().unwrap_or_default(), by_first);
        assert_eq!(answers.values().sum::<usize>(), 1_000);
        assert_eq!(harness.asked("first") - asked, 1);
        let probes = harness.told().iter().filter(|told| matches!(told, Told::Probing(_))).count();
        assert_eq!(probes, 1);
        assert_eq!(harness.of_provider("first").in_flight(), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_thousand_requests_on_four_threads_are_one_probe() {
    let answer = Arc::new(Notify::new());
    let harness = Harness::with([("first", ok().when(&answer)), ("second", ok())], |chain| {
        chain.breaker(Breaker::default().breaks(ms(1), ms(1)))
    });
    harness.break_it("first").await;
    tokio::time::sleep(ms(5)).await;
    let asked = harness.asked("first");
    let mut answers: FuturesUnordered<_> = (0..1_000).map(|_| harness.spawn()).collect();
    for _ in 0..999 {
        let served = tokio::time::timeout(secs(20), answers.next()).await;
        assert_eq!(served.expect("not more than one waits").unwrap().unwrap(), "second");
    }
    assert_eq!(harness.asked("first") - asked, 1);
    answer.notify_one();
    assert_eq!(answers.next().await.unwrap().unwrap(), "first");
    assert_eq!(harness.state("first"), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_cannot_be_replayed_is_no_probe_while_another_is_admissible() {
    let harness = two(ok(), ok());
    let until = harness.break_it("first").await;
    let asked = harness.asked("first");
    sleep_until(until).await;
    for _ in 0..10 {
        let response = harness.post().body(once()).send().await.unwrap();
        let report = Report::of(&response).unwrap();
        assert_eq!(report.served_by(), Some("second"));
        assert!(!report.attempts()[0].is_replayable());
    }
    assert_eq!(harness.asked("first"), asked);
    assert!(
        matches!(harness.state("first"), State::Open { until: end, .. } if end == until),
        "the probe is still due"
    );
    assert_eq!(harness.ask().await, "first");
    assert_eq!(harness.state("first"), State::Closed);

    // Where no provider is admissible it is, and is sent once.
    let until = harness.break_it("first").await;
    harness.break_it("second").await;
    sleep_until(until).await;
    harness.tell("first", Script::status(500).after(secs(1)));
    let asked = harness.all_asked().len();
    let request = tokio::spawn(harness.post().body(once()).send());
    tokio::time::sleep(ms(500)).await;
    assert_eq!(harness.state("first"), State::Probing);
    assert_eq!(request.await.unwrap().unwrap().status(), 500);
    assert_eq!(harness.all_asked().len(), asked + 1);
}

#[tokio::test(start_paused = true)]
async fn a_probe_whose_failed_answer_is_still_being_read_is_the_only_one() {
    let harness = Harness::with([("first", ok()), ("second", ok())], |chain| {
        chain.attempt_timeout(secs(1)).error_body_timeout(secs(30))
    });
    let until = harness.break_it("first").await;
    harness.tell("first", Script::answer(500, &[], silence).after(ms(900)));
    sleep_until(until).await;
    let before = harness.asked("first");
    let probe = harness.spawn();
    for second in 0..30 {
        tokio::time::sleep(secs(1)).await;
        assert_eq!(harness.state("first"), State::Probing, "after {second} s");
        assert_eq!(harness.ask().await, "second");
        assert_eq!(harness.asked("first"), before + 1, "after {second} s");
    }
    assert_eq!(probe.await.unwrap(), "second");
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_says_nothing_about_health_closes_or_leaves_its_lease() {
    for (script, expected) in [
        (Script::status(400), "Closed"),
        (Script::status(302), "Closed"),
        (Script::hint(429, "retry-after", "9"), "CoolingDown"),
        (Script::fail(), "Open"),
    ] {
        let harness = two(script, ok());
        let until = harness.break_it("first").await;
        sleep_until(until).await;
        assert_eq!(harness.ask().await, "second");
        let state = format!("{:?}", harness.state("first"));
        assert!(state.starts_with(expected), "{state} is not {expected}");
    }
}

#[tokio::test(start_paused = true)]
async fn old_failures_do_not_reopen_a_breaker_that_recovered() {
    let harness = two(Script::status(500).after(secs(60)), ok());
    let hung: Vec<_> = (0..20).map(|_| harness.spawn()).collect();
    tokio::time::sleep(ms(1)).await;
    assert_eq!(harness.of_provider("first").in_flight(), 20);
    sleep_until(harness.break_it("first").await).await;
    harness.tell("first", ok());
    assert_eq!(harness.ask().await, "first");
    for hung in hung {
        assert_eq!(hung.await.unwrap(), "second");
    }
    assert_eq!(harness.of_provider("first").failures(), 25);
    assert_eq!(harness.state("first"), State::Closed);
    assert_eq!(harness.ask().await, "first");
}

#[tokio::test(start_paused = true)]
async fn an_old_success_does_not_close_a_breaker() {
    let harness = two(ok().after(secs(5)), ok());
    let slow = harness.spawn();
    tokio::time::sleep(ms(1)).await;
    let until = harness.break_it("first").await;
    assert_eq!(slow.await.unwrap(), "first");
    assert!(matches!(harness.state("first"), State::Open { until: end, .. } if end == until));
}

#[tokio::test(start_paused = true)]
async fn a_request_is_never_refused_untried_when_all_breakers_are_open() {
    let harness = Harness::of([("first", ok()), ("second", ok()), ("third", ok())]);
    let mut reopening = Vec::new();
    for name in ["first", "second", "third"] {
        reopening.push((harness.break_it(name).await, name));
        harness.tell(name, Script::status(500));
    }
    reopening.sort();
    let names: Vec<_> = reopening.iter().map(|(_, name)| *name).collect();
    let asked = harness.all_asked().len();
    assert_eq!(harness.post().send().await.unwrap().status(), 500);
    assert_eq!(harness.all_asked()[asked..], names, "by the time they reopen, each once");
    // Out of turn, a failure is no news.
    for (until, name) in reopening {
        assert!(matches!(harness.state(name), State::Open { until: end, .. } if end == until));
    }
    // A success is.
    harness.tell("third", ok());
    assert_eq!(harness.ask().await, "third");
    assert_eq!(harness.state("third"), State::Closed);
    let asked = harness.all_asked().len();
    assert_eq!(harness.ask().await, "third");
    assert_eq!(harness.all_asked().len(), asked + 1, "the others are left alone again");
}

#[tokio::test(start_paused = true)]
async fn the_passed_over_are_asked_only_after_a_fault_of_somebody() {
    let harness = two(ok(), Script::status(500));
    harness.break_it("first").await;
    assert_eq!(harness.ask().await, "first", "the second one failed");
    harness.break_it("first").await;
    harness.tell("second", Script::status(404));
    let asked = harness.asked("first");
    assert_eq!(harness.post().send().await.unwrap().status(), 404);
    assert_eq!(harness.asked("first"), asked);
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_hangs_for_10_minutes_is_asked_once_per_break() {
    let harness = Harness::with([("first", Script::hang()), ("second", ok())], |chain| {
        chain.attempt_timeout(secs(10))
    });
    let begun = now();
    let mut asked = Vec::new();
    while now() - begun < secs(600) {
        asked.push(harness.spawn());
        tokio::time::sleep(ms(500)).await;
    }
    let requests = asked.len();
    for asked in asked {
        assert_eq!(asked.await.unwrap(), "second");
    }
    let told = harness.told();
    let count = |wanted: fn(&Told) -> bool| told.iter().filter(|told| wanted(told)).count();
    let breaks = count(|told| matches!(told, Told::Opened(..)));
    let probes = count(|told| matches!(told, Told::Probing(_)));
    let opened = told.iter().position(|told| matches!(told, Told::Opened(..))).unwrap();
    let is_first = |told: &&Told| **told == Told::Started("first".into());
    let before = told[..opened].iter().filter(is_first).count();
    let after = told[opened..].iter().filter(is_first).count();
    println!("{requests} requests, {before} before the breaker opened, {breaks} breaks");
    // The last break is still on.
    assert_eq!((after, probes), (breaks - 1, breaks - 1), "one attempt per break, the probe");
    // 15–30, 30–60, 60–120, 120–240 and 150–300 s, and 10 s for each probe.
    assert!((3..=6).contains(&breaks), "{breaks} breaks");
    // At two a second, the fifth timeout is 12 s from the first request.
    assert!((5..=25).contains(&before), "{before} before the breaker opened");
}

// Cooldowns.

#[tokio::test(start_paused = true)]
async fn a_provider_rests_for_as_long_as_it_says() {
    let date = httpdate::fmt_http_date(SystemTime::now() + secs(60));
    for (status, header, value, least, most) in [
        (429, "retry-after", "7", ms(7_000), ms(7_000)),
        (429, "retry-after", "2.5", ms(2_500), ms(2_500)),
        (429, "retry-after-ms", "2345", ms(2_345), ms(2_345)),
        (429, "retry-after-ms", "40", ms(40), ms(40)),
        (429, "retry-after-ms", "0", ms(1_000), ms(1_000)),
        (429, "retry-after", "0", ms(1_000), ms(1_000)),
        (429, "retry-after", "135734", secs(300), secs(300)),
        (429, "retry-after", &date, secs(50), secs(60)),
        (429, "retry-after", "Thu, 01 Jan 1970 00:00:00 GMT", ms(1_000), ms(1_000)),
        (429, "retry-after", "Fri, 31 Dec 9999 23:59:59 GMT", secs(300), secs(300)),
        // No hint: the first of 5 s, 10 s, …
        (429, "retry-after", "-10", secs(5), secs(5)),
        (429, "retry-after", "NaN", secs(5), secs(5)),
        (429, "retry-after", "1e35", secs(5), secs(5)),
        (429, "x-nothing", "7", secs(5), secs(5)),
        (503, "retry-after", "7", secs(7), secs(7)),
        (402, "retry-after", "7", secs(7), secs(7)),
        (529, "retry-after", "7", secs(7), secs(7)),
    ] {
        let harness = two(Script::hint(status, header, value), ok());
        assert_eq!(harness.ask().await, "second");
        let until = cooling_until(harness.state("first"));
        let length = until - now();
        assert!((least..=most).contains(&length), "{status} {header}: {value}: {length:?}");
        assert_eq!(harness.ask_times(50).await, served([("second", 50)]));
        sleep_until(until - ms(2)).await;
        assert_eq!(harness.ask().await, "second");
        assert_eq!((harness.asked("first"), harness.of_provider("first").failures()), (1, 0));
        sleep_until(until).await;
        harness.tell("first", ok());
        assert_eq!(harness.ask().await, "first");
        assert_eq!(harness.state("first"), State::Closed);
    }
}

#[tokio::test(start_paused = true)]
async fn cooldowns_without_a_hint_double_and_a_success_ends_that() {
    let harness = two(Script::status(429), ok());
    for length in [5, 10, 20, 40, 80, 160, 300, 300] {
        assert_eq!(harness.ask().await, "second");
        let until = cooling_until(harness.state("first"));
        assert_eq!(until - now(), secs(length));
        sleep_until(until).await;
    }
    assert_eq!(harness.asked("first"), 8);
    assert_eq!(harness.of_provider("first").failures(), 0);
    harness.tell("first", ok());
    assert_eq!(harness.ask().await, "first");
    harness.tell("first", Script::status(429));
    harness.ask().await;
    assert_eq!(cooling_until(harness.state("first")) - now(), secs(5));
}

#[tokio::test(start_paused = true)]
async fn ten_requests_that_are_limited_at_once_are_one_cooldown() {
    let harness = two(Script::status(429).after(secs(1)), ok());
    assert_eq!(harness.ask_at_once(10).await, served([("second", 10)]));
    assert_eq!(harness.asked("first"), 10);
    let until = cooling_until(harness.state("first"));
    assert_eq!(until - now(), secs(5));
    sleep_until(until).await;
    harness.ask().await;
    assert_eq!(cooling_until(harness.state("first")) - now(), secs(10), "one step, not ten");
}

#[tokio::test(start_paused = true)]
async fn without_a_breaker_the_first_provider_is_always_asked_first() {
    let harness = Harness::with([("first", Script::status(500)), ("second", ok())], |chain| {
        chain.without_health()
    });
    for script in [Script::status(500), Script::hint(429, "retry-after", "60"), Script::status(401)]
    {
        harness.tell("first", script);
        assert_eq!(harness.ask_times(50).await, served([("second", 50)]));
        assert_eq!(harness.state("first"), State::Closed);
    }
    let asked = harness.all_asked();
    assert!(asked.chunks(2).all(|pair| pair == ["first", "second"]), "{asked:?}");
    assert_eq!(harness.of_provider("first").attempts(), 150);
}

// What a user may change.

#[tokio::test(start_paused = true)]
async fn an_isolated_provider_is_not_asked_until_it_is_restored() {
    let harness = two(ok(), Script::status(500));
    harness.chain.isolate("first").unwrap();
    assert_eq!(harness.state("first"), State::Isolated);
    assert_eq!(harness.post().send().await.unwrap().status(), 500, "not even as a last resort");
    assert_eq!(harness.asked("first"), 0);
    harness.chain.restore("first").unwrap();
    assert_eq!(harness.ask().await, "first");

    // It stands as its health has it.
    let until = harness.break_it("first").await;
    harness.chain.isolate("first").unwrap();
    assert_eq!(harness.state("first"), State::Isolated);
    harness.chain.restore("first").unwrap();
    assert!(matches!(harness.state("first"), State::Open { until: end, .. } if end == until));
}

#[tokio::test(start_paused = true)]
async fn where_all_are_isolated_there_is_an_error_and_no_attempt() {
    let harness = two(ok(), ok());
    harness.chain.isolate("first").unwrap();
    harness.chain.isolate("second").unwrap();
    let (error, elapsed) = failure(&harness).await;
    let failed = FailoverError::find(&error).unwrap();
    assert!(failed.report().attempts().is_empty() && !failed.is_timeout());
    assert_eq!((elapsed, harness.all_asked().len()), (Duration::ZERO, 0));
    assert_eq!(harness.chain.snapshot().exhausted(), 1);
}

#[tokio::test(start_paused = true)]
async fn isolating_does_not_disturb_an_attempt_in_flight() {
    let harness = two(ok().after(secs(2)), ok());
    let slow = harness.spawn();
    tokio::time::sleep(secs(1)).await;
    harness.chain.isolate("first").unwrap();
    assert_eq!(slow.await.unwrap(), "first");
    assert_eq!(harness.state("first"), State::Isolated);
    assert_eq!(harness.of_provider("first").in_flight(), 0);

    // But it is not asked any more, also by those in flight.
    harness.chain.restore("first").unwrap();
    harness.tell("first", Script::status(500).after(secs(2)));
    harness.chain.isolate("second").unwrap();
    harness.chain.restore("second").unwrap();
    let slow = tokio::spawn(harness.post().send());
    tokio::time::sleep(secs(1)).await;
    harness.chain.isolate("second").unwrap();
    assert_eq!(slow.await.unwrap().unwrap().status(), 500);
    assert_eq!(harness.asked("second"), 0);
}

#[tokio::test(start_paused = true)]
async fn isolating_a_provider_that_is_probed_wedges_nothing() {
    let harness = two(ok().after(secs(2)), ok());
    sleep_until(harness.break_it("first").await).await;
    let probe = harness.spawn();
    tokio::time::sleep(secs(1)).await;
    assert_eq!(harness.state("first"), State::Probing);
    harness.chain.isolate("first").unwrap();
    assert_eq!(probe.await.unwrap(), "first");
    harness.chain.restore("first").unwrap();
    assert_eq!(harness.state("first"), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn requests_in_flight_keep_the_order_that_they_began_with() {
    let slow = Script::status(500).after(secs(2));
    let harness = Harness::of([("first", slow), ("second", ok()), ("third", ok())]);
    let in_flight = harness.spawn();
    tokio::time::sleep(secs(1)).await;
    harness.chain.set_order(["third", "first", "second"]).unwrap();
    assert_eq!(harness.ask().await, "third");
    assert_eq!(in_flight.await.unwrap(), "second");
    assert_eq!(harness.all_asked(), ["first", "third", "second"]);
    let names: Vec<_> =
        harness.chain.snapshot().providers().iter().map(|p| p.name().to_owned()).collect();
    assert_eq!(names, ["third", "first", "second"]);
    assert_eq!(
        harness.chain.snapshot().served_by_fallback(),
        1,
        "the one that began with another first"
    );
}

#[tokio::test(start_paused = true)]
async fn a_provider_keeps_its_health_when_the_order_changes() {
    let harness = Harness::of([("first", ok()), ("second", ok()), ("third", ok())]);
    let until = harness.break_it("second").await;
    harness.chain.set_order(["second", "third", "first"]).unwrap();
    assert!(matches!(harness.state("second"), State::Open { until: end, .. } if end == until));
    assert_eq!(harness.ask().await, "third");
}

#[test]
fn an_unknown_name_is_an_error_that_lists_the_known() {
    let harness = two(ok(), ok());
    let chain = &harness.chain;
    for error in [
        chain.isolate("frist").unwrap_err(),
        chain.restore("frist").unwrap_err(),
        chain.set_order(["frist", "second"]).unwrap_err(),
    ] {
        assert_eq!(error.provider(), Some("frist"));
        assert!(error.to_string().contains("first, second"), "{error}");
    }
    for (order, problem) in [
        (&["first"][..], "first, second"),
        (&[], "first, second"),
        (&["first", "second", "first"], "twice"),
    ] {
        let error = chain.set_order(order).unwrap_err();
        assert!(error.to_string().contains(problem), "{error}");
    }
    let names: Vec<_> = chain.snapshot().providers().iter().map(|p| p.name().to_owned()).collect();
    assert_eq!(names, ["first", "second"], "nothing changed");
}

// What a snapshot counts.

#[tokio::test(start_paused = true)]
async fn a_request_that_every_provider_refused_is_rejected_and_moves_no_health() {
    let harness = two(Script::status(404), Script::status(422));
    for _ in 0..25 {
        assert_eq!(harness.post().send().await.unwrap().status(), 422);
    }
    let snapshot = harness.chain.snapshot();
    assert_eq!((snapshot.requests(), snapshot.rejected(), snapshot.exhausted()), (25, 25, 0));
    assert_eq!(snapshot.fallback_ratio(), None, "it says nothing about the first provider");
    assert_eq!(["first", "second"].map(|name| harness.state(name)), [State::Closed; 2]);
    let told = harness.told();
    assert_eq!(told.iter().filter(|told| **told == Told::Rejected).count(), 25);
    assert!(!told.contains(&Told::Exhausted));

    // One failure, or nothing that was sent, is enough for it to be exhausted.
    let unsent = || provider("second").map_request(|_| Err("not now"));
    for (second, script) in [
        (provider("second"), Script::status(500)),
        (provider("second"), Script::status(429)),
        (provider("second"), Script::fail()),
        (unsent(), ok()),
    ] {
        let providers = vec![provider("first"), second];
        let scripts = [("first", Script::status(400)), ("second", script)];
        let harness = Harness::of_providers(providers, scripts, |chain| chain);
        let _ = harness.post().send().await;
        let snapshot = harness.chain.snapshot();
        assert_eq!((snapshot.rejected(), snapshot.exhausted()), (0, 1));
        assert!(harness.told().contains(&Told::Exhausted));
    }
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_counts_requests_and_attempts() {
    let harness = two(ok(), ok());
    let counts = || {
        let snapshot = harness.chain.snapshot();
        (
            snapshot.requests(),
            snapshot.served_by_fallback(),
            snapshot.exhausted(),
            snapshot.passed_through(),
        )
    };
    let of = |name| {
        let provider = harness.of_provider(name);
        (provider.attempts(), provider.served(), provider.failures(), provider.in_flight())
    };
    assert_eq!((counts(), of("first"), of("second")), ((0, 0, 0, 0), (0, 0, 0, 0), (0, 0, 0, 0)));

    harness.ask_times(3).await;
    assert_eq!((counts(), of("first")), ((3, 0, 0, 0), (3, 3, 0, 0)));

    harness.tell("first", Script::status(500));
    harness.ask().await;
    assert_eq!((counts(), of("first"), of("second")), ((4, 1, 0, 0), (4, 3, 1, 0), (1, 1, 0, 0)));

    // What is no failure of the provider is not counted as one.
    harness.tell("first", Script::status(400));
    harness.tell("second", Script::status(500));
    assert_eq!(harness.post().send().await.unwrap().status(), 500);
    assert_eq!((counts(), of("first"), of("second")), ((5, 1, 1, 0), (5, 3, 1, 0), (2, 1, 1, 0)));

    let elsewhere = harness.client.get("https://elsewhere.test/v1/models").send().await.unwrap();
    assert!(Report::of(&elsewhere).is_none());
    assert_eq!(counts(), (5, 1, 1, 1));

    // In flight is where it is now, and a request counts when it is over.
    harness.tell("first", Script::status(500).after(secs(2)));
    harness.tell("second", ok().after(secs(2)));
    let slow = harness.spawn();
    tokio::time::sleep(secs(1)).await;
    assert_eq!((counts(), of("first"), of("second")), ((5, 1, 1, 1), (6, 3, 1, 1), (2, 1, 1, 0)));
    tokio::time::sleep(secs(2)).await;
    assert_eq!((of("first"), of("second")), ((6, 3, 2, 0), (3, 1, 1, 1)));
    slow.await.unwrap();
    assert_eq!((counts(), of("second")), ((6, 2, 1, 1), (3, 2, 1, 0)));

    // Dropped: over, and neither served nor exhausted.
    let dropped = tokio::time::timeout(secs(1), harness.post().send());
    assert!(dropped.await.is_err());
    assert_eq!((counts(), of("first")), ((7, 2, 1, 1), (7, 3, 2, 0)));
}

#[test]
fn a_closure_may_ask_and_change_the_chain_that_calls_it() {
    // A deadlock would hang: it is looked for from another thread.
    let (done, is_done) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.unwrap().block_on(async {
            let cell = Arc::new(OnceLock::<ProviderChain>::new());
            let meddle = {
                let cell = cell.clone();
                move || {
                    let Some(chain) = cell.get() else { return };
                    assert_eq!(chain.snapshot().providers().len(), 2);
                    chain.set_order(["first", "second"]).unwrap();
                    chain.isolate("second").unwrap();
                    chain.restore("second").unwrap();
                }
            };
            let [observe, classify, route, prepare, token] = [(); 5].map(|()| meddle.clone());
            let first = provider("first").map_request(move |_| {
                prepare();
                Ok::<_, std::io::Error>(())
            });
            let second = terminal::keyless("second").bearer_auth_with(move || {
                token();
                async { Ok::<_, std::io::Error>("token".to_owned()) }
            });
            let seen = Arc::new(std::sync::Mutex::new(std::collections::BTreeSet::new()));
            let kinds = seen.clone();
            let harness = Harness::of_providers(
                vec![first, second],
                [("first", Script::status(500)), ("second", ok())],
                |chain| {
                    chain
                        .observe(move |event: &Event<'_>| {
                            let name = format!("{event:?}");
                            let name = name.split([' ', '{']).next().unwrap().to_owned();
                            terminal::lock(&kinds).insert(name);
                            observe();
                        })
                        .classify(move |outcome| {
                            classify();
                            reqwest_failover::Verdict::standard(outcome)
                        })
                        .route(move |_| {
                            route();
                            None::<Route>
                        })
                },
            );
            cell.set(harness.chain.clone()).ok().unwrap();
            harness.client.get("https://elsewhere.test/").send().await.unwrap();
            harness.ask_times(20).await;
            let until = open_until(harness.state("first"));
            drop(tokio::time::timeout(ms(1), harness.post().send()).await);
            sleep_until(until).await;
            harness.tell("first", ok());
            assert_eq!(harness.ask().await, "first");
            harness.tell("first", Script::status(429));
            harness.tell("second", Script::status(500));
            harness.post().send().await.unwrap();
            assert_eq!(harness.chain.snapshot().callback_panics(), 0);
            done.send(terminal::lock(&seen).clone()).unwrap();
        });
    });
    let seen = is_done.recv_timeout(secs(20)).expect("no deadlock, and no panic");
    for kind in [
        "AttemptStarted",
        "AttemptFinished",
        "FailedOver",
        "Exhausted",
        "BreakerOpened",
        "BreakerClosed",
        "BreakerProbing",
        "CoolingDown",
        "PassedThrough",
        "FallbackRateHigh",
        "Finished",
    ] {
        assert!(seen.contains(kind), "{kind} was not among {seen:?}");
    }
}
