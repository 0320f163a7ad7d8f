//! The bodies of failed responses: read beside the next attempt, so that connections are reused,
//! and never waited for.

mod support;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use reqwest_failover::{Exhausted, FailoverError, Report};

use support::harness::{WireHarness, client, line};
use support::{Answer, Place, Received, Step};

const KIB: usize = 1024;

fn ms(millis: u64) -> Duration {
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

/// From each request's arrival at the first provider to its arrival at the second: the shortest,
/// the median and the longest.
async fn delays(requests: usize, first: Answer) -> [Duration; 3] {
    let ((from, first), (to, second)) = (clocked(first), clocked(Answer::ok()));
    let harness = WireHarness::two(first, second).await;
    let client = harness.client();
    for _ in 0..requests {
        let response = harness.post(&client).send().await.unwrap();
        assert_eq!(Report::of(&response).unwrap().served_by(), Some("openai"));
        response.bytes().await.unwrap();
    }
    harness.assert_asked(&[requests, requests]);
    let (from, to) = (from.lock().unwrap(), to.lock().unwrap());
    let mut delays: Vec<_> = from.iter().zip(to.iter()).map(|(from, to)| *to - *from).collect();
    delays.sort();
    [delays[0], delays[requests / 2], delays[requests - 1]]
}

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
async fn a_late_error_body_gives_its_connection_back_too() {
    let late = error_of(16 * KIB).body_after(ms(5));
    let harness = WireHarness::two(late, Answer::ok().headers_after(ms(15))).await;
    let client = harness.client();
    for _ in 0..50 {
        let response = harness.post(&client).send().await.unwrap();
        assert_eq!(Report::of(&response).unwrap().served_by(), Some("openai"));
        response.bytes().await.unwrap();
    }
    // A body may once in a while come after the answer, which ends the reading.
    let connections = harness.actors[0].server.connections();
    assert!(connections <= 10, "{connections} connections for 50 requests");
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

/// Whoever waited for the body would take the 5 ms on every single request; on a busy machine a
/// request may be late for other reasons, but not half of them.
#[tokio::test]
async fn an_error_body_that_arrives_5_ms_after_its_headers_delays_no_failover() {
    let [shortest, median, _] = delays(60, error_of(16 * KIB).body_after(ms(5))).await;
    assert!(shortest < ms(4), "the shortest delay was {shortest:?}");
    assert!(median < ms(5), "the median of the delays was {median:?}");
}

#[tokio::test]
async fn an_error_body_that_stalls_delays_no_failover() {
    for place in [Place::AfterHeaders, Place::WithinBody] {
        let [_, median, _] = delays(5, error_of(KIB).at(place, Step::Stall)).await;
        assert!(median < ms(100), "{place:?}: the median of the delays was {median:?}");
    }
}

#[tokio::test]
async fn an_error_body_that_never_ends_delays_nothing() {
    for endless in [error_of(16).endless(), error_of(KIB * KIB).endless()] {
        let (_, second) = clocked(Answer::ok().headers_after(ms(50)));
        let harness = WireHarness::two(endless, second).await;
        let client = harness.client();
        let mut took: Vec<_> = Vec::new();
        for _ in 0..5 {
            let started = Instant::now();
            let response = harness.post(&client).send().await.unwrap();
            assert_eq!(Report::of(&response).unwrap().served_by(), Some("openai"));
            took.push(started.elapsed());
        }
        took.sort();
        assert!(took[2] < ms(200), "the requests took {took:?}");
    }
}

#[tokio::test]
async fn an_error_body_without_an_end_is_read_for_its_message_and_then_left() {
    // The second takes longer than a body is read for.
    let harness =
        WireHarness::two(error_of(16).endless(), Answer::ok().headers_after(ms(400))).await;
    let started = Instant::now();
    let response = harness.post(&harness.client()).send().await.unwrap();
    let took = started.elapsed();
    assert!(took < ms(1500), "{took:?}");
    let message = Report::of(&response).unwrap().attempts()[0].message();
    assert!(message.is_some_and(|message| message.contains("too long")), "{message:?}");
    harness.assert_asked(&[1, 1]);
}

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
        assert!(took < ms(1000), "{took:?}");
        let failed = FailoverError::find(&error).expect("a FailoverError");
        assert_eq!(failed.report().attempts().len(), 2);
        let first = failed.report().attempts()[0].message();
        assert!(first.is_some_and(|message| message.contains("too long")), "{first:?}");
    }
}

#[tokio::test]
async fn a_late_last_body_is_in_the_error() {
    let harness =
        WireHarness::two(error_of(16), Answer::error(503, "closed").body_after(ms(50))).await;
    let client = client(harness.chain().on_exhausted(Exhausted::Error));
    let error = harness.post(&client).send().await.unwrap_err();
    assert!(FailoverError::find(&error).unwrap().to_string().contains("closed"), "{error}");
}

#[tokio::test]
async fn the_last_body_is_neither_read_nor_waited_for_where_it_is_handed_on() {
    let last = Answer::error(503, "closed").body_after(ms(300));
    let harness = WireHarness::two(error_of(16), last).await;
    let started = Instant::now();
    let response = harness.post(&harness.client()).send().await.unwrap();
    let took = started.elapsed();
    assert!(took < ms(200), "{took:?}");
    assert_eq!(response.status(), 503);
    assert_eq!(Report::of(&response).unwrap().attempts()[1].message(), None);
    assert_eq!(response.text().await.unwrap(), r#"{"error":{"code":503,"message":"closed"}}"#);
}

#[tokio::test]
async fn no_more_than_64_kib_of_an_error_body_are_read() {
    let many = 16 * KIB * KIB;
    let harness = WireHarness::two(error_of(many), Answer::ok().headers_after(ms(300))).await;
    let response = harness.post(&harness.client()).send().await.unwrap();
    assert_eq!(response.status(), 200);
    let message = Report::of(&response).unwrap().attempts()[0].message().unwrap();
    assert!(message.len() <= 2 * KIB && message.contains("too long"), "{message}");
    // Its connection was closed, not read to its end: the next request opens another.
    harness.post(&harness.client()).send().await.unwrap();
    assert_eq!(harness.actors[0].server.connections(), 2);
}
