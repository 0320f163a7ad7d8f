//! The bodies of failed answers: read before the verdict, as far as 64 KiB and for as long as
//! `error_body_timeout`, so that what a provider said is known and its connection is used again. The
//! caller gets the last one byte for byte all the same.

use reqwest_failover_testing::{support, terminal};

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http::HeaderMap;
use reqwest_failover::{Exhausted, FailoverError, ProviderChainBuilder, Report};

use support::harness::{WireHarness, client, line, plain};
use support::{Answer, Part, Place, Received, Server, Step};
use terminal::{Harness, Script, now, silence};

const KIB: usize = 1024;
/// How long a body is waited for unless told otherwise.
const DEFAULT: Duration = ms(100);

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// An error of this size. A 400, which says nothing about the provider's health.
fn error_of(bytes: usize) -> Answer {
    Answer::error(400, &"too long ".repeat(bytes / 9 + 1))
}

/// Notes when each request arrives.
fn clocked(answer: Answer) -> (Arc<Mutex<Vec<Instant>>>, impl Fn(&Received) -> Answer) {
    let arrivals = Arc::new(Mutex::new(Vec::new()));
    let script = {
        let arrivals = arrivals.clone();
        move |_: &Received| {
            arrivals.lock().unwrap().push(Instant::now());
            answer.clone()
        }
    };
    (arrivals, script)
}

/// From each request's arrival at the first provider to its arrival at the second: the shortest and
/// the median; and what the first one said each time.
async fn delays(
    requests: usize,
    first: Answer,
    settings: impl FnOnce(ProviderChainBuilder) -> ProviderChainBuilder,
) -> ([Duration; 2], Vec<Option<String>>) {
    let ((from, first), (to, second)) = (clocked(first), clocked(Answer::ok()));
    let harness = WireHarness::two(first, second).await;
    let client = client(settings(harness.chain()));
    let mut messages = Vec::new();
    for _ in 0..requests {
        let response = harness.post(&client).send().await.unwrap();
        let report = Report::of(&response).unwrap();
        assert_eq!(report.served_by(), Some("openai"));
        messages.push(report.attempts()[0].message().map(str::to_owned));
        response.bytes().await.unwrap();
    }
    harness.assert_asked(&[requests, requests]);
    let (from, to) = (from.lock().unwrap(), to.lock().unwrap());
    let mut delays: Vec<_> = from.iter().zip(to.iter()).map(|(from, to)| *to - *from).collect();
    delays.sort();
    ([delays[0], delays[requests / 2]], messages)
}

fn unchanged(chain: ProviderChainBuilder) -> ProviderChainBuilder {
    chain
}

// Connections.

#[tokio::test]
async fn three_hundred_failovers_open_at_most_two_connections_per_provider() {
    let harness = WireHarness::two(error_of(16 * KIB), Answer::ok()).await;
    let client = harness.client();
    for _ in 0..300 {
        let response = harness.post(&client).send().await.unwrap();
        assert_eq!(
            line(Report::of(&response).unwrap()),
            "cometapi 400 in # ms → openai 200 in # ms"
        );
        response.bytes().await.unwrap();
    }
    harness.assert_asked(&[300, 300]);
    for actor in &harness.actors {
        let connections = actor.server.connections();
        assert!(connections <= 2, "{connections} connections to {}", actor.name);
    }
}

#[tokio::test]
async fn error_bodies_up_to_64_kib_open_no_new_connections() {
    let sized = |bytes: usize| Answer::status(400).body(vec![b'x'; bytes]);
    let chunks = [16, 16, 16, 16].map(|kib| Part::Data(vec![b'x'; kib * KIB]));
    let trailed = [Part::Data(vec![b'x'; KIB]), Part::Trailer("x-sum", "1")];
    let bodies = [0, 1, KIB, 64 * KIB - 1, 64 * KIB].map(sized).into_iter();
    for first in bodies.chain([
        Answer::status(400).chunked(chunks),
        Answer::status(400).chunked(trailed),
        sized(64 * KIB).header("content-encoding", "gzip"),
    ]) {
        let harness = WireHarness::two(first.clone(), Answer::ok()).await;
        let client = client(harness.chain().error_body_timeout(Duration::from_secs(5)));
        for _ in 0..20 {
            let response = harness.post(&client).send().await.unwrap();
            assert_eq!(Report::of(&response).unwrap().served_by(), Some("openai"));
            response.bytes().await.unwrap();
        }
        harness.assert_asked(&[20, 20]);
        let connections = harness.actors[0].server.connections();
        assert!(connections <= 2, "{connections} connections for 20 requests");
    }
}

#[tokio::test]
async fn a_late_error_body_gives_its_connection_back_too() {
    let late = error_of(16 * KIB).body_after(ms(5));
    let harness = WireHarness::two(late, Answer::ok()).await;
    let client = client(harness.chain().error_body_timeout(Duration::from_secs(5)));
    for _ in 0..50 {
        let response = harness.post(&client).send().await.unwrap();
        assert_eq!(Report::of(&response).unwrap().served_by(), Some("openai"));
        response.bytes().await.unwrap();
    }
    let connections = harness.actors[0].server.connections();
    assert!(connections <= 2, "{connections} connections for 50 requests");
}

#[tokio::test]
async fn connections_are_given_back_where_everybody_fails() {
    for exhausted in [Exhausted::LastOutcome, Exhausted::Error] {
        let harness = WireHarness::two(error_of(16 * KIB), error_of(16 * KIB)).await;
        let client = client(harness.chain().on_exhausted(exhausted));
        for _ in 0..20 {
            match harness.post(&client).send().await {
                Ok(response) => drop(response.bytes().await.unwrap()),
                Err(error) => assert!(FailoverError::find(&error).is_some()),
            }
        }
        harness.assert_asked(&[20, 20]);
        for actor in &harness.actors {
            let connections = actor.server.connections();
            assert!(connections <= 2, "{connections} connections to {}, {exhausted:?}", actor.name);
        }
    }
}

// Messages.

#[tokio::test]
async fn a_server_that_writes_head_and_body_apart_has_50_of_50_messages_reported() {
    for apart in [0, 1, 5] {
        let first = Answer::error(400, "too long").body_after(ms(apart));
        let (_, messages) = delays(50, first, unchanged).await;
        assert_eq!(messages, vec![Some("too long".to_owned()); 50], "{apart} ms apart");
    }
}

#[tokio::test]
async fn a_message_in_two_halves_is_reported_whole() {
    let halves = error_of(KIB).at(Place::WithinBody, Step::Wait(ms(5)));
    let (_, messages) = delays(10, halves, unchanged).await;
    let whole = "too long ".repeat(KIB / 9 + 1);
    assert_eq!(messages, vec![Some(whole.trim().to_owned()); 10]);
}

// Time.

#[tokio::test]
async fn a_failover_waits_for_an_error_body_no_longer_than_it_takes() {
    let ([shortest, median], messages) =
        delays(20, error_of(16 * KIB).body_after(ms(5)), unchanged).await;
    assert!(shortest >= ms(5), "the shortest delay was {shortest:?}");
    assert!(median < ms(50), "the median of the delays was {median:?}");
    assert!(messages.iter().all(Option::is_some), "{messages:?}");
}

#[tokio::test]
async fn an_error_body_that_stalls_delays_a_failover_by_100_ms_at_most() {
    for place in [Place::AfterHeaders, Place::WithinBody] {
        let ([shortest, median], _) =
            delays(5, error_of(KIB).at(place, Step::Stall), unchanged).await;
        assert!(shortest >= DEFAULT, "{place:?}: the shortest delay was {shortest:?}");
        assert!(median < DEFAULT + ms(100), "{place:?}: the median of the delays was {median:?}");
    }
}

#[tokio::test]
async fn an_error_body_is_waited_for_as_long_as_its_timeout_says() {
    let stalls = || error_of(KIB).at(Place::AfterHeaders, Step::Stall);
    let ([shortest, median], messages) =
        delays(5, stalls(), |chain| chain.error_body_timeout(ms(20))).await;
    assert!(shortest >= ms(20) && median < DEFAULT, "{shortest:?}, {median:?}");
    assert_eq!(messages, [const { None }; 5]);
    let late = error_of(16).body_after(ms(300));
    let ([shortest, _], messages) =
        delays(3, late, |chain| chain.error_body_timeout(Duration::MAX)).await;
    assert!(shortest >= ms(300), "{shortest:?}");
    assert!(messages.iter().all(Option::is_some), "{messages:?}");
}

#[tokio::test]
async fn with_an_error_body_timeout_of_zero_no_error_body_is_waited_for() {
    for first in [
        error_of(KIB),
        error_of(KIB).body_after(ms(80)),
        error_of(KIB).at(Place::AfterHeaders, Step::Stall),
        error_of(KIB).at(Place::WithinBody, Step::Stall),
        error_of(KIB).endless(),
    ] {
        let ([_, median], messages) =
            delays(5, first, |chain| chain.error_body_timeout(Duration::ZERO)).await;
        assert!(median < ms(50), "the median of the delays was {median:?}");
        assert_eq!(messages, [const { None }; 5], "nothing was read");
    }
}

#[tokio::test]
async fn an_error_body_that_never_ends_delays_a_failover_by_100_ms_at_most() {
    // The second one holds 64 KiB at once, so that there is nothing to wait for.
    for (endless, at_least, below) in [
        (error_of(16).endless(), DEFAULT, DEFAULT + ms(100)),
        (error_of(KIB * KIB).endless(), Duration::ZERO, DEFAULT),
    ] {
        let ([shortest, median], messages) = delays(5, endless, unchanged).await;
        assert!(shortest >= at_least, "the shortest delay was {shortest:?}");
        assert!(median < below, "the median of the delays was {median:?}");
        for message in messages {
            assert!(message.as_ref().is_some_and(|said| said.contains("too long")), "{message:?}");
        }
    }
}

#[tokio::test]
async fn no_more_than_64_kib_of_an_error_body_are_read() {
    let many = 16 * KIB * KIB;
    let harness = WireHarness::two(error_of(many), Answer::ok()).await;
    let client = client(harness.chain().error_body_timeout(Duration::from_secs(5)));
    let response = harness.post(&client).send().await.unwrap();
    assert_eq!(response.status(), 200);
    let message = Report::of(&response).unwrap().attempts()[0].message().unwrap();
    assert!(message.len() <= 2 * KIB && message.contains("too long"), "{message}");
    // Its connection was closed, not read to its end: the next request opens another.
    harness.post(&client).send().await.unwrap();
    assert_eq!(harness.actors[0].server.connections(), 2);
}

// The last one.

#[tokio::test]
async fn the_last_body_is_waited_for_only_so_long_where_an_error_is_made_of_it() {
    for last in [
        error_of(16).endless(),
        error_of(16).at(Place::AfterHeaders, Step::Stall),
        error_of(16).at(Place::WithinBody, Step::Stall),
    ] {
        let harness = WireHarness::two(error_of(16), last).await;
        let client = client(harness.chain().on_exhausted(Exhausted::Error));
        let started = Instant::now();
        let error = harness.post(&client).send().await.unwrap_err();
        let took = started.elapsed();
        assert!(took >= DEFAULT && took < ms(1000), "{took:?}");
        let failed = FailoverError::find(&error).expect("a FailoverError");
        assert_eq!(failed.report().attempts().len(), 2);
        let first = failed.report().attempts()[0].message();
        assert!(first.is_some_and(|message| message.contains("too long")), "{first:?}");
    }
}

#[tokio::test]
async fn a_late_last_body_is_in_the_error() {
    let last = Answer::error(503, "closed").body_after(ms(50));
    let harness = WireHarness::two(error_of(16), last).await;
    let chain = harness.chain().error_body_timeout(Duration::from_secs(5));
    let client = client(chain.on_exhausted(Exhausted::Error));
    let error = harness.post(&client).send().await.unwrap_err();
    assert!(FailoverError::find(&error).unwrap().to_string().contains("closed"), "{error}");
}

#[tokio::test]
async fn a_last_body_that_is_later_than_its_timeout_is_handed_on_whole_and_without_a_message() {
    for (timeout, waited) in [(ms(20), ms(20)), (Duration::ZERO, Duration::ZERO)] {
        let last = Answer::error(503, "closed").body_after(ms(300));
        let harness = WireHarness::two(error_of(16), last).await;
        let client = client(harness.chain().error_body_timeout(timeout));
        let started = Instant::now();
        let response = harness.post(&client).send().await.unwrap();
        let took = started.elapsed();
        assert!(took >= waited && took < ms(250), "{took:?}");
        assert_eq!(response.status(), 503);
        assert_eq!(Report::of(&response).unwrap().attempts()[1].message(), None);
        assert_eq!(response.text().await.unwrap(), r#"{"error":{"code":503,"message":"closed"}}"#);
    }
}

/// What a client gets of an answer: its headers, its body as far as it came, and whether it broke.
async fn read_by(response: reqwest::Response) -> (u16, HeaderMap, Vec<u8>, bool) {
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let (mut response, mut body) = (response, Vec::new());
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Ok(None) => return (status, headers, body, false),
            Err(error) => {
                assert!(error.is_decode(), "{error:?}");
                return (status, headers, body, true);
            }
        }
    }
}

#[tokio::test]
async fn the_last_answer_is_handed_on_byte_for_byte() {
    let bytes = |length: usize| (0..length).map(|at| (at * 31 % 256) as u8).collect::<Vec<_>>();
    let sized = |length: usize| Answer::status(503).header("x-id", "42").body(bytes(length));
    let apart = |millis| [Part::Data(bytes(KIB)), Part::Then(Step::Wait(ms(millis)))];
    let mut answers: Vec<_> = [0, 1, KIB, 64 * KIB, 64 * KIB + 1, 300 * KIB].map(sized).into();
    answers.extend([
        sized(KIB).body_after(ms(5)),
        sized(KIB).body_after(ms(150)),
        sized(200 * KIB).at(Place::WithinBody, Step::Wait(ms(150))),
        sized(KIB).header("content-encoding", "gzip"),
        Answer::status(503).chunked([apart(0), apart(5), apart(150), apart(0)].concat()),
        // They break: within what is read before the verdict, and behind it.
        sized(KIB)
            .declare(2 * KIB)
            .at(Place::AfterBody, Step::Wait(ms(5)))
            .at(Place::AfterBody, Step::Fin),
        sized(300 * KIB)
            .declare(400 * KIB)
            .at(Place::AfterBody, Step::Wait(ms(5)))
            .at(Place::AfterBody, Step::Fin),
        sized(KIB)
            .declare(2 * KIB)
            .at(Place::AfterBody, Step::Wait(ms(150)))
            .at(Place::AfterBody, Step::Fin),
    ]);
    let checks = answers.into_iter().enumerate().map(|(at, last)| async move {
        let server = Server::start(last.clone()).await;
        let direct = read_by(plain().post(server.base_url("/v1")).send().await.unwrap()).await;
        for timeout in [DEFAULT, Duration::ZERO] {
            let harness = WireHarness::two(error_of(16), last.clone()).await;
            let client = client(harness.chain().error_body_timeout(timeout));
            let response = harness.post(&client).send().await.unwrap();
            assert_eq!(Report::of(&response).unwrap().attempts().len(), 2);
            let through = read_by(response).await;
            assert!(through == direct, "answer {at} with {timeout:?} differs");
        }
    });
    futures_util::future::join_all(checks).await;
}

#[tokio::test(start_paused = true)]
async fn the_body_of_an_answer_that_is_no_failure_is_not_waited_for() {
    for status in [200, 304, 500] {
        let silent = Script::answer(status, &[], silence);
        let harness = Harness::of([("first", silent), ("second", Script::status(200))]);
        let began = now();
        harness.ask().await;
        let waited = now() - began;
        assert_eq!(waited, if status == 500 { DEFAULT } else { ms(0) }, "{status}");
    }
}

#[tokio::test]
async fn a_compressed_error_body_is_not_searched_for_a_message() {
    for (encoding, message) in [("identity", Some("out of stock")), ("gzip", None), ("br", None)] {
        let first = Answer::error(500, "out of stock").header("content-encoding", encoding);
        let harness = WireHarness::two(first, Answer::ok()).await;
        let response = harness.post(&harness.client()).send().await.unwrap();
        let report = Report::of(&response).unwrap();
        assert_eq!(report.attempts()[0].message(), message, "{encoding}");
    }
}
