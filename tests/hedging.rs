//! A second provider while the first is silent: when it is asked, who serves, and what it costs.

use reqwest_failover_testing::terminal;

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures_util::FutureExt;
use http::Extensions;
use reqwest::{Body, Request, Response};
use reqwest_failover::{
    Ambiguous, Breaker, Event, FailoverError, Hedge, Provider, ProviderChain, ProviderChainBuilder,
    Reason, Replay, Report, Route, State, Verdict,
};
use reqwest_middleware::{ClientBuilder, Middleware, Next, Result};
use terminal::{Harness, Script, Told, keyless, lock, ms, provider, secs, sleep_until};
use tokio::time::{Instant, sleep};

fn hedged(chain: ProviderChainBuilder) -> ProviderChainBuilder {
    chain.hedge(Hedge::after(ms(40)).max_extra(1.0))
}

fn stalled() -> Script {
    Script::status(200).after(secs(2))
}

async fn ask(harness: &Harness) -> (Response, Report, std::time::Duration) {
    let begun = Instant::now();
    let response = harness.post().send().await.unwrap();
    let report = Report::of(&response).unwrap().clone();
    (response, report, begun.elapsed())
}

fn attempts(report: &Report) -> Vec<(&str, Reason, bool)> {
    report
        .attempts()
        .iter()
        .map(|attempt| (attempt.provider(), attempt.reason(), attempt.maybe_processed()))
        .collect()
}

#[tokio::test(start_paused = true)]
async fn the_next_provider_serves_what_the_first_is_silent_about() {
    let harness =
        Harness::with([("a", stalled()), ("b", Script::status(201).after(ms(20)))], hedged);
    let (response, report, took) = ask(&harness).await;
    assert_eq!((response.status().as_u16(), took), (201, ms(60)));
    assert_eq!(report.served_by(), Some("b"));
    assert_eq!(attempts(&report), [("a", Reason::Abandoned, true), ("b", Reason::Ok, false)]);
    assert_eq!(report.attempts()[0].elapsed(), ms(60));
    assert_eq!(report.attempts()[1].elapsed(), ms(20));
    assert_eq!(report.elapsed(), ms(60));
    assert_eq!(
        report.to_string(),
        "a failed (abandoned) in 60 ms (maybe processed) → b 201 in 20 ms"
    );
    let own = |name: &str| name.to_owned();
    assert_eq!(
        harness.told(),
        [
            Told::Started(own("a")),
            Told::Hedged(own("a"), own("b"), 40),
            Told::Started(own("b")),
            Told::Ended(own("a"), own("abandoned")),
            Told::Ended(own("b"), own("ok")),
            Told::Finished(vec![(own("a"), own("abandoned")), (own("b"), own("ok"))]),
        ]
    );
    assert_eq!(harness.chain.snapshot().served_by_fallback(), 1);
    for name in ["a", "b"] {
        assert_eq!(
            (harness.of_provider(name).in_flight(), harness.of_provider(name).failures()),
            (0, 0)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_provider_serves_if_it_answers_first() {
    let harness =
        Harness::with([("a", Script::status(200).after(ms(50))), ("b", stalled())], hedged);
    let (_, report, took) = ask(&harness).await;
    assert_eq!(took, ms(50));
    assert_eq!(attempts(&report), [("b", Reason::Abandoned, true), ("a", Reason::Ok, false)]);
    assert_eq!(report.served_by(), Some("a"));
    let snapshot = harness.chain.snapshot();
    assert_eq!((snapshot.served_by_fallback(), snapshot.requests()), (0, 1));
    assert_eq!(harness.of_provider("b").in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn nobody_is_asked_beside_a_provider_that_answers_soon_enough() {
    let harness =
        Harness::with([("a", Script::status(200).after(ms(39))), ("b", stalled())], hedged);
    for _ in 0..20 {
        assert_eq!(harness.ask().await, "a");
    }
    assert_eq!(harness.asked("b"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_hedge_that_fails_leaves_the_first_in_peace_and_launches_the_next() {
    let harness = Harness::with(
        [("a", stalled()), ("b", Script::status(500).after(ms(5))), ("c", Script::status(200))],
        hedged,
    );
    let (_, report, took) = ask(&harness).await;
    assert_eq!(took, ms(45));
    assert_eq!(
        attempts(&report),
        [
            ("b", Reason::ServerError, true),
            ("a", Reason::Abandoned, true),
            ("c", Reason::Ok, false)
        ]
    );

    let harness =
        Harness::with([("a", stalled()), ("b", Script::status(500).after(ms(5)))], hedged);
    let (_, report, took) = ask(&harness).await;
    assert_eq!(took, secs(2));
    assert_eq!(attempts(&report), [("b", Reason::ServerError, true), ("a", Reason::Ok, false)]);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_is_made_when_another_serves_was_not_sent() {
    let harness = Harness::with(
        [
            ("a", Script::status(200).yields(1).after(ms(60))),
            ("b", Script::status(500).after(ms(20))),
            ("c", Script::status(200)),
        ],
        hedged,
    );
    let (_, report, took) = ask(&harness).await;
    assert_eq!(took, ms(60));
    assert_eq!(
        attempts(&report),
        [
            ("b", Reason::ServerError, true),
            ("c", Reason::Abandoned, false),
            ("a", Reason::Ok, false)
        ]
    );
    assert_eq!(harness.asked("c"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_first_that_fails_beside_its_hedge_leaves_the_answer_to_it() {
    let harness = Harness::with(
        [("a", Script::status(500).after(ms(50))), ("b", Script::status(200).after(ms(100)))],
        hedged,
    );
    let (_, report, took) = ask(&harness).await;
    assert_eq!(took, ms(140));
    assert_eq!(attempts(&report), [("a", Reason::ServerError, true), ("b", Reason::Ok, false)]);
}

#[tokio::test(start_paused = true)]
async fn the_last_to_land_is_handed_on_if_both_fail() {
    let harness = Harness::with(
        [("a", Script::status(500).after(ms(60))), ("b", Script::status(502).after(ms(5)))],
        hedged,
    );
    let (response, report, took) = ask(&harness).await;
    assert_eq!((response.status().as_u16(), took), (500, ms(60)));
    assert_eq!(
        attempts(&report),
        [("b", Reason::ServerError, true), ("a", Reason::ServerError, true)]
    );
    assert_eq!(report.served_by(), None);
    assert_eq!(harness.chain.snapshot().exhausted(), 1);
}

#[tokio::test(start_paused = true)]
async fn both_time_out_each_at_its_own_time() {
    let harness = Harness::with([("a", Script::hang()), ("b", Script::hang())], |chain| {
        hedged(chain).attempt_timeout(ms(100)).total_timeout(secs(1))
    });
    let begun = Instant::now();
    let error = harness.post().send().await.unwrap_err();
    assert_eq!(begun.elapsed(), ms(140));
    let failed = FailoverError::find(&error).unwrap();
    assert_eq!(
        attempts(failed.report()),
        [("a", Reason::Timeout, true), ("b", Reason::Timeout, true)]
    );
    assert_eq!(harness.of_provider("a").failures(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_total_timeout_ends_both() {
    let harness = Harness::with([("a", Script::hang()), ("b", Script::hang())], |chain| {
        hedged(chain).total_timeout(ms(90))
    });
    let begun = Instant::now();
    let error = harness.post().send().await.unwrap_err();
    assert_eq!(begun.elapsed(), ms(90));
    assert!(FailoverError::find(&error).unwrap().is_timeout());
    assert_eq!(["a", "b"].map(|name| harness.of_provider(name).in_flight()), [0, 0]);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_can_be_sent_once_is_never_hedged() {
    let harness = Harness::with([("a", stalled()), ("b", Script::status(200))], hedged);
    let stream = futures_util::stream::iter([Ok::<_, std::io::Error>("x")]);
    let response =
        harness.client.post(terminal::URL).body(Body::wrap_stream(stream)).send().await.unwrap();
    let report = Report::of(&response).unwrap();
    assert_eq!(attempts(report), [("a", Reason::Ok, false)]);
    assert_eq!(harness.asked("b"), 0);
}

#[tokio::test(start_paused = true)]
async fn only_idempotent_requests_are_hedged_under_idempotent_only() {
    let harness = Harness::with([("a", stalled()), ("b", Script::status(200))], |chain| {
        hedged(chain).on_ambiguous(Ambiguous::IdempotentOnly)
    });
    assert_eq!(harness.ask().await, "a");
    assert_eq!(harness.asked("b"), 0);
    let response = harness.client.get(terminal::URL).send().await.unwrap();
    assert_eq!(Report::of(&response).unwrap().served_by(), Some("b"));
    let response = harness.post().header("idempotency-key", "1").send().await.unwrap();
    assert_eq!(Report::of(&response).unwrap().served_by(), Some("a"));
    let response = harness.post().with_extension(Replay::allowed()).send().await.unwrap();
    assert_eq!(Report::of(&response).unwrap().served_by(), Some("b"));
}

#[tokio::test(start_paused = true)]
async fn a_route_without_failover_and_a_single_attempt_are_not_hedged() {
    let harness = Harness::with([("a", stalled()), ("b", Script::status(200))], hedged);
    let response = harness.post().with_extension(Route::no_failover()).send().await.unwrap();
    assert_eq!(Report::of(&response).unwrap().served_by(), Some("a"));
    let harness = Harness::with([("a", stalled()), ("b", Script::status(200))], |chain| {
        hedged(chain).max_attempts(1)
    });
    assert_eq!(harness.ask().await, "a");
    assert_eq!(harness.asked("b"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_provider_whose_breaker_is_open_is_no_hedge() {
    let harness = Harness::with([("a", stalled()), ("b", Script::status(200))], hedged);
    harness.break_it("b").await;
    let asked = harness.asked("b");
    assert_eq!(harness.ask().await, "a");
    assert_eq!(harness.asked("b"), asked);
}

#[tokio::test(start_paused = true)]
async fn one_request_in_twenty_is_hedged_at_most() {
    let harness = Harness::with([("a", stalled()), ("b", Script::status(200))], |chain| {
        chain.hedge(Hedge::after(ms(40))).without_health()
    });
    for _ in 0..100 {
        harness.ask().await;
    }
    assert_eq!(harness.asked("b"), 5);
    assert_eq!(harness.of_provider("a").in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn five_overtaken_in_a_row_open_the_breaker() {
    let harness = Harness::with([("a", stalled()), ("b", Script::status(200))], hedged);
    for _ in 0..5 {
        assert_eq!(harness.state("a"), State::Closed);
        assert_eq!(harness.ask().await, "b");
    }
    assert!(matches!(harness.state("a"), State::Open { .. }));
    assert!(harness.told().contains(&Told::Opened("a".to_owned(), 1)));
    assert_eq!(harness.of_provider("a").failures(), 0);
    assert_eq!(harness.ask().await, "b");
    assert_eq!(harness.asked("a"), 5);
}

#[tokio::test(start_paused = true)]
async fn an_adaptive_hedge_learns_what_is_usual_first() {
    let harness = Harness::with(
        [("a", Script::status(200).after(ms(10))), ("b", Script::status(200))],
        |chain| chain.hedge(Hedge::adaptive().max_extra(1.0)),
    );
    harness.tell("a", stalled());
    assert_eq!(harness.ask().await, "a", "nothing is known yet");
    harness.tell("a", Script::status(200).after(ms(10)));
    for _ in 0..30 {
        assert_eq!(harness.ask().await, "a");
    }
    harness.tell("a", stalled());
    let (_, report, took) = ask(&harness).await;
    assert_eq!((report.served_by(), took), (Some("b"), ms(20)));
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_gives_up_drops_both() {
    let harness = Harness::with([("a", Script::hang()), ("b", Script::hang())], hedged);
    let abandoned = tokio::time::timeout(ms(60), harness.post().send()).await;
    assert!(abandoned.is_err());
    assert_eq!(["a", "b"].map(|name| harness.of_provider(name).in_flight()), [0, 0]);
    let ended: Vec<_> =
        harness.told().into_iter().filter(|told| matches!(told, Told::Ended(..))).collect();
    let own = |name: &str| Told::Ended(name.to_owned(), "abandoned".to_owned());
    assert_eq!(ended, [own("a"), own("b")]);
    assert_eq!(harness.state("a"), State::Closed);
}

/// Polls a request k times and drops it, k + 1, until it is ready.
#[tokio::test(start_paused = true)]
async fn wherever_a_race_is_dropped_nothing_stays_in_flight() {
    for (a, b) in [
        (Script::status(500).after(ms(50)), Script::status(200).after(ms(50)).yields(2)),
        (Script::hang(), Script::status(500).yields(3)),
        (Script::status(200).after(ms(41)).yields(1), Script::hang()),
    ] {
        for polls in 0..40 {
            let harness = Harness::with([("a", a.clone()), ("b", b.clone())], |chain| {
                hedged(chain).attempt_timeout(ms(70)).total_timeout(ms(300))
            });
            let mut request = Box::pin(harness.post().send());
            for _ in 0..polls {
                if futures_util::poll!(&mut request).is_ready() {
                    break;
                }
                sleep(ms(7)).await;
            }
            drop(request);
            for name in ["a", "b"] {
                let provider = harness.of_provider(name);
                assert_eq!(provider.in_flight(), 0, "{name} after {polls} polls");
            }
            let told = harness.told();
            let count = |wanted: fn(&Told) -> bool| told.iter().filter(|told| wanted(told)).count();
            let started = count(|told| matches!(told, Told::Started(_)));
            assert_eq!(started, count(|told| matches!(told, Told::Ended(..))), "{told:?}");
            assert_eq!(count(|told| matches!(told, Told::Finished(_))), 1.min(polls), "{told:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_that_is_accepted_overtakes_nobody() {
    let harness = Harness::with([("a", Script::hang()), ("b", Script::fail())], |chain| {
        hedged(chain).classify(|_| Verdict::Accept)
    });
    for _ in 0..5 {
        harness.post().send().await.unwrap_err();
    }
    assert_eq!(harness.state("a"), State::Closed, "no provider answered before it");
    assert_eq!(["a", "b"].map(|name| harness.of_provider(name).in_flight()), [0, 0]);
}

#[tokio::test(start_paused = true)]
async fn no_accepted_error_is_served_while_a_better_answer_may_come() {
    for status in 400..=599 {
        let healthy = || Script::status(200).after(ms(250));
        // The hedge answers first, or the first provider does, once the hedge is sent.
        for (scripts, served_by) in [
            ([("a", healthy()), ("b", Script::status(status))], "a"),
            ([("a", Script::status(status).after(ms(50))), ("b", healthy())], "b"),
        ] {
            let harness =
                Harness::with(scripts, |chain| hedged(chain).classify(|_| Verdict::Accept));
            let (response, report, _) = ask(&harness).await;
            assert_eq!(response.status(), 200, "{status}: {report}");
            assert_eq!(report.served_by(), Some(served_by), "{status}: {report}");
            assert_eq!(["a", "b"].map(|name| harness.state(name)), [State::Closed; 2]);
            assert_eq!(["a", "b"].map(|name| harness.of_provider(name).in_flight()), [0; 2]);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_dead_key_at_the_hedge_never_replaces_a_healthy_answer() {
    let harness = Harness::with(
        [("a", Script::status(200).after(ms(250))), ("b", Script::status(401))],
        |chain| hedged(chain).classify(Verdict::transient),
    );
    assert_eq!(harness.ask_times(166).await, [("a".to_owned(), 166)].into());
    assert_eq!(harness.state("a"), State::Closed);
}

/// Answers of which the caller gets an error that was accepted: its status, and whose it is.
fn accepted_errors() -> [(Script, Script, (u16, &'static str)); 4] {
    [
        // The other one fails, or is accepted with an error, too.
        (Script::status(500).after(ms(90)), Script::status(401), (401, "b")),
        (Script::status(404).after(ms(90)), Script::status(401), (404, "a")),
        (Script::status(404).after(ms(50)), Script::status(401).after(ms(50)), (404, "a")),
        (Script::hang(), Script::status(401), (401, "b")),
    ]
}

fn careful(chain: ProviderChainBuilder) -> ProviderChainBuilder {
    hedged(chain).classify(Verdict::transient).attempt_timeout(ms(500))
}

#[tokio::test(start_paused = true)]
async fn an_accepted_error_is_the_answer_if_the_other_attempt_has_none() {
    for (a, b, (status, by)) in accepted_errors() {
        let harness = Harness::with([("a", a), ("b", b)], careful);
        let (response, report, _) = ask(&harness).await;
        assert_eq!(response.status(), status, "{report}");
        assert!(report.served_by().is_some(), "{report}");
        assert_eq!(["a", "b"].map(|name| harness.of_provider(name).in_flight()), [0; 2]);
        let served = ["a", "b"].map(|name| harness.of_provider(name).served());
        assert_eq!(served, ["a", "b"].map(|name| u64::from(name == by)), "{report}");
        assert_eq!(harness.chain.snapshot().served_by_fallback(), u64::from(by == "b"), "{report}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_report_names_the_provider_whose_accepted_error_is_served() {
    for (a, b, (_, by)) in accepted_errors() {
        let (_, report, _) = ask(&Harness::with([("a", a), ("b", b)], careful)).await;
        assert_eq!(report.served_by(), Some(by), "{report}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_beside_another_attempt_leaves_nothing_in_flight() {
    for (a, b) in [
        (Script::hang(), Script::panic().after(ms(3))),
        (Script::panic().after(ms(50)), Script::hang()),
        (Script::hang(), Script::panic()),
    ] {
        let harness = Harness::with([("a", a), ("b", b)], hedged);
        let asked = std::panic::AssertUnwindSafe(harness.post().send());
        assert!(asked.catch_unwind().await.is_err());
        assert_eq!(["a", "b"].map(|name| harness.of_provider(name).in_flight()), [0, 0]);
        assert_eq!(["a", "b"].map(|name| harness.state(name)), [State::Closed; 2]);
        let ended = harness.told().into_iter().filter(|told| matches!(told, Told::Ended(..)));
        assert_eq!(ended.count(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_hedge_that_never_leaves_is_not_processed() {
    let hanging = || keyless("b").bearer_auth_with(std::future::pending::<std::io::Result<String>>);
    let harness = Harness::of_providers(
        vec![provider("a"), hanging()],
        [("a", Script::status(200).after(ms(90))), ("b", Script::status(200))],
        hedged,
    );
    let response = harness.post().send().await.unwrap();
    let report = Report::of(&response).unwrap();
    assert_eq!(report.served_by(), Some("a"));
    let lost = &report.attempts()[0];
    assert_eq!((lost.provider(), lost.reason()), ("b", Reason::Abandoned));
    assert!(!lost.maybe_processed());
    assert_eq!(harness.of_provider("b").in_flight(), 0);
    assert_eq!(harness.asked("b"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_hedge_that_cannot_be_prepared_makes_way_for_the_next() {
    let panics = |_: &mut Request| -> std::io::Result<()> { panic!("scripted") };
    let harness = Harness::of_providers(
        vec![provider("a"), provider("b").map_request(panics), provider("c")],
        [("a", Script::hang()), ("b", Script::status(200)), ("c", Script::status(200))],
        hedged,
    );
    assert_eq!(harness.ask().await, "c");
    assert!(harness.told().contains(&Told::Panicked("map_request")));
    assert_eq!(["a", "b", "c"].map(|name| harness.of_provider(name).in_flight()), [0; 3]);
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_is_overtaken_breaks_for_longer_and_gives_its_lease_back() {
    let harness = Harness::with([("a", Script::hang()), ("b", Script::status(200))], hedged);
    let until = harness.break_it("a").await;
    sleep_until(until).await;
    harness.told();
    assert_eq!(harness.ask().await, "b");
    let told = harness.told();
    assert!(told.contains(&Told::Probing("a".to_owned())), "{told:?}");
    assert!(told.contains(&Told::Opened("a".to_owned(), 2)), "{told:?}");
    assert!(matches!(harness.state("a"), State::Open { .. }));
    assert_eq!(harness.of_provider("a").in_flight(), 0);
}

/// Leaves a note in the extensions for each request that it sees.
#[derive(Clone, Default)]
struct Notes(Arc<Mutex<Vec<String>>>);

#[derive(Clone, Debug, PartialEq)]
struct Note(String);

#[async_trait]
impl Middleware for Notes {
    async fn handle(
        &self,
        request: Request,
        extensions: &mut Extensions,
        next: Next<'_>,
    ) -> Result<Response> {
        let host = request.url().host_str().unwrap().to_owned();
        let key = request.headers()["authorization"].to_str().unwrap().to_owned();
        assert_eq!(extensions.get::<Note>(), Some(&Note("caller".to_owned())));
        extensions.insert(Note(host.clone()));
        lock(&self.0).push(format!("{host} {key}"));
        if host == "a.test" {
            sleep(secs(2)).await;
        }
        let _ = next;
        Ok(http::Response::new("").into())
    }
}

#[tokio::test(start_paused = true)]
async fn each_has_its_own_key_and_extensions_and_only_the_winners_come_back() {
    let chain = hedged(ProviderChain::builder([provider("a"), provider("b")])).build().unwrap();
    let notes = Notes::default();
    let client = ClientBuilder::new(reqwest::Client::builder().no_proxy().build().unwrap())
        .with(chain)
        .with(notes.clone())
        .build();
    let mut extensions = Extensions::new();
    extensions.insert(Note("caller".to_owned()));
    let request = client.get("https://a.test/v1/x").build().unwrap();
    client.execute_with_extensions(request, &mut extensions).await.unwrap();
    assert_eq!(extensions.get::<Note>(), Some(&Note("b.test".to_owned())));
    assert_eq!(*lock(&notes.0), ["a.test Bearer key-of-a", "b.test Bearer key-of-b"]);
}

/// Headers at once are no answer where a response is looked into: its first content is.
#[tokio::test(start_paused = true)]
async fn an_event_stream_that_says_nothing_is_overtaken() {
    let events = |body: fn() -> Body| {
        Script::answer(200, &[("content-type", "text/event-stream".to_owned())], body)
    };
    let content = || {
        const DELTA: &str =
            "data: {\"choices\":[{\"delta\":{\"content\":\"b\"}}]}\n\ndata: [DONE]\n\n";
        Body::from(DELTA)
    };
    let harness = Harness::with(
        [("a", events(terminal::silence)), ("b", events(content).after(ms(20)))],
        |chain| hedged(chain).inspect(reqwest_failover::Inspect::errors_in_success()),
    );
    let (response, report, took) = ask(&harness).await;
    assert_eq!(took, ms(60));
    assert_eq!(attempts(&report), [("a", Reason::Abandoned, true), ("b", Reason::Ok, false)]);
    assert!(response.text().await.unwrap().contains("\"b\""));
    assert_eq!(["a", "b"].map(|name| harness.of_provider(name).in_flight()), [0, 0]);
    assert_eq!(harness.of_provider("b").served(), 1);
}

#[test]
fn settings_that_cannot_be_meant_are_config_errors() {
    let build = |hedge| {
        ProviderChain::builder([Provider::openai("key")])
            .attempt_timeout(secs(1))
            .hedge(hedge)
            .build()
    };
    for wrong in [
        Hedge::after(ms(0)),
        Hedge::after(secs(1)),
        Hedge::adaptive().max_extra(0.0),
        Hedge::adaptive().max_extra(-1.0),
        Hedge::adaptive().max_extra(1.5),
    ] {
        assert!(build(wrong).unwrap_err().to_string().starts_with("hedge: "));
    }
    assert!(build(Hedge::after(ms(999))).is_ok());
    let by_default = |hedge| ProviderChain::builder([Provider::openai("key")]).hedge(hedge).build();
    assert!(by_default(Hedge::after(secs(120))).is_err(), "the default attempt timeout ends it");
    assert!(by_default(Hedge::after(secs(119))).is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_slow_provider_stays_closed_where_nothing_counts() {
    let harness = Harness::with([("a", stalled()), ("b", Script::status(200))], |chain| {
        hedged(chain).breaker(Breaker::default().consecutive(1000))
    });
    for _ in 0..100 {
        assert_eq!(harness.ask().await, "b");
    }
    assert_eq!(harness.state("a"), State::Closed, "no share of overtaken requests opens a breaker");
}

#[tokio::test(start_paused = true)]
async fn the_fallback_rate_blames_a_first_that_was_overtaken() {
    let reasons = Arc::new(Mutex::new(Vec::new()));
    let keeper = reasons.clone();
    let harness = Harness::with([("a", stalled()), ("b", Script::status(200))], |chain| {
        hedged(chain).without_health().observe(move |event| {
            if let Event::FallbackRateHigh { reason, .. } = event {
                lock(&keeper).push(*reason);
            }
        })
    });
    assert_eq!(harness.ask_times(20).await, [("b".to_owned(), 20)].into());
    assert_eq!(*lock(&reasons), [Some(Reason::Abandoned)]);
}
