//! Errors inside successful responses, over real sockets: who answers in the end, what the report
//! says of it, and that every byte that is handed on is the provider's.

use reqwest_failover_testing::support;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http_body_util::BodyExt as _;
use reqwest::Response;
use reqwest_failover::{
    Ambiguous, Breaker, Event, Exhausted, FailoverError, Fault, Flaw, Inspect, ProviderChain,
    ProviderChainBuilder, ProviderSnapshot, Reason, Report, State, Verdict,
};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware};
use tokio::sync::Notify;
use tokio::time::timeout;

use support::harness::{WireHarness, line, plain};
use support::{Answer, Part, Place, Received, Script, Step, lock};

const ROLE: &str =
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n";
const HELLO: &str = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Héllo\"}}]}\n\n";
const STOP: &str =
    "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";
const DONE: &str = "data: [DONE]\n\n";
const ERROR: &str = "data: {\"error\":{\"message\":\"No channel is free.\",\"code\":503}}\n\n";
const PING: &str = "event: ping\ndata: {\"type\":\"ping\"}\n\n";

const HANDED_ON: &str = "cometapi 200 in # ms";

/// Two providers, of which the second always answers well, and a chain that inspects.
struct Play {
    harness: WireHarness,
    chain: ProviderChain,
    client: ClientWithMiddleware,
    told: Arc<Mutex<Vec<String>>>,
}

impl Play {
    async fn of(first: impl Into<Script>) -> Self {
        Self::with(first, Inspect::errors_in_success(), |chain| chain).await
    }

    async fn with(
        first: impl Into<Script>,
        inspect: Inspect,
        set_up: impl FnOnce(ProviderChainBuilder) -> ProviderChainBuilder,
    ) -> Self {
        Self::on(WireHarness::two(first, Answer::ok()).await, inspect, set_up)
    }

    fn on(
        harness: WireHarness,
        inspect: Inspect,
        set_up: impl FnOnce(ProviderChainBuilder) -> ProviderChainBuilder,
    ) -> Self {
        let told = Arc::new(Mutex::new(Vec::new()));
        let teller = told.clone();
        let chain = set_up(harness.chain().inspect(inspect)).observe(move |event| {
            lock(&teller).extend(match event {
                Event::StreamBroken { provider, reason, message, .. } => Some(format!(
                    "{provider} broke off ({reason}: {})",
                    message.unwrap_or_default()
                )),
                Event::BreakerOpened { provider, .. } => Some(format!("{provider} opened")),
                Event::BreakerClosed { provider, .. } => Some(format!("{provider} closed")),
                Event::CallbackPanicked { callback, .. } => Some(format!("{callback} panicked")),
                Event::FailedOver { from, to, .. } => Some(format!("{} → {to}", from.provider())),
                _ => None,
            });
        });
        let chain = chain.build().expect("a chain");
        let client = ClientBuilder::new(plain()).with(chain.clone()).build();
        Self { harness, chain, client, told }
    }

    async fn ask(&self) -> Response {
        self.harness.post(&self.client).send().await.expect("a response")
    }

    fn told(&self) -> Vec<String> {
        lock(&self.told).clone()
    }

    fn first(&self) -> ProviderSnapshot {
        self.chain.snapshot().providers()[0].clone()
    }

    /// The second answered, and the report says what was wrong with the first.
    #[track_caller]
    fn assert_failed_over(&self, response: &Response, reason: Reason, message: &str) {
        let report = Report::of(response).unwrap();
        self.harness.hear(format!("{report} {report:?}"));
        let attempt = &report.attempts()[0];
        assert_eq!(attempt.reason(), reason, "{report:?}");
        assert_eq!(attempt.message(), Some(message), "{report:?}");
        assert_eq!(attempt.status().map(|status| status.as_u16()), Some(200));
        // A provider that answers 200 has processed the request, whatever the answer is.
        assert!(attempt.maybe_processed());
        let line = line(report).replace(" (maybe processed)", "");
        assert_eq!(line, format!("cometapi 200 {reason} in # ms → openai 200 in # ms"));
        assert_eq!(report.served_by(), Some("openai"));
        self.harness.assert_asked(&[1, 1]);
        assert_eq!(self.told(), ["cometapi → openai"]);
        let first = self.first();
        assert_eq!((first.served(), first.failures(), first.in_flight()), (0, 1, 0));
    }

    /// The first answered, and the second was not even connected to.
    #[track_caller]
    fn assert_handed_on(&self, response: &Response) {
        let report = Report::of(response).unwrap();
        assert_eq!(line(report), HANDED_ON);
        assert_eq!(report.served_by(), Some("cometapi"));
        assert_eq!(report.attempts()[0].reason(), Reason::Ok);
        assert_eq!(report.attempts()[0].message(), None);
        assert_eq!(self.harness.actors[1].server.connections(), 0);
    }

    /// Over, and well, as far as the first provider's health is concerned.
    #[track_caller]
    fn assert_sound(&self) {
        let first = self.first();
        assert_eq!((first.served(), first.failures(), first.in_flight()), (1, 0, 0));
        assert_eq!(self.told(), [""; 0]);
    }
}

fn events(parts: impl IntoIterator<Item = Part>) -> Answer {
    Answer::status(200).header("content-type", "text/event-stream; charset=utf-8").chunked(parts)
}

fn data(bytes: impl Into<Vec<u8>>) -> Part {
    Part::Data(bytes.into())
}

fn json(body: &str) -> Answer {
    Answer::status(200).header("content-type", "application/json").body(body)
}

/// The bytes that arrive, and whether the body breaks off.
async fn read(mut response: Response) -> (Vec<u8>, bool) {
    let mut read = Vec::new();
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) => read.extend_from_slice(&chunk),
            Ok(None) => return (read, false),
            Err(_) => return (read, true),
        }
    }
}

/// Reads until this much has arrived.
async fn read_at_least(response: &mut Response, length: usize) -> Vec<u8> {
    let mut read = Vec::new();
    while read.len() < length {
        let chunk = timeout(secs(5), response.chunk()).await.expect("in time").unwrap();
        read.extend_from_slice(&chunk.expect("more"));
    }
    read
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

// Bodies in one piece.

#[tokio::test]
async fn an_error_in_a_json_body_fails_over() {
    for (body, message) in [
        (r#"{"error":{"message":"No channel is free.","code":503}}"#, "No channel is free."),
        (r#" {"id":"1","error":"no quota"}"#, "no quota"),
        ("\u{feff}{\"error\":{\"message\":\"sp\\u0065lt out\"}}", "spelt out"),
        (
            r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}"#,
            "Overloaded",
        ),
        (
            r#"{"object":"response","status":"failed","error":{"code":"server_error","message":"Oh."}}"#,
            "Oh.",
        ),
    ] {
        let halves = body.as_bytes().split_at(body.len() / 2);
        let chunked = [data(halves.0), Part::Then(Step::Wait(ms(5))), data(halves.1)];
        for answer in [
            json(body),
            Answer::status(200).body(body),
            Answer::status(200).header("content-type", "text/plain").body(body),
            Answer::status(200).header("content-type", "application/json").chunked(chunked),
        ] {
            let play = Play::of(answer).await;
            let response = play.ask().await;
            play.assert_failed_over(&response, Reason::ErrorInSuccess, message);
            assert_eq!(response.text().await.unwrap(), r#"{"answer":"fine"}"#);
        }
    }
}

#[tokio::test]
async fn without_inspect_an_error_in_a_json_body_is_handed_on() {
    let body = r#"{"error":{"message":"No channel is free."}}"#;
    let harness = WireHarness::two(json(body), Answer::ok()).await;
    let response = harness.post(&harness.client()).send().await.unwrap();
    assert_eq!(line(Report::of(&response).unwrap()), HANDED_ON);
    assert_eq!(response.text().await.unwrap(), body);
}

#[tokio::test]
async fn a_page_in_place_of_data_fails_over() {
    let page =
        Answer::status(200).header("content-type", "text/html; charset=utf-8").body("<html>Hi.");
    let play = Play::of(page.clone()).await;
    let response = play.ask().await;
    let message = "HTML where data was asked for";
    play.assert_failed_over(&response, Reason::ErrorInSuccess, message);

    // Who asks for pages gets them.
    let play = Play::of(page).await;
    let url = play.harness.actors[1].url("/");
    let response = play.client.get(url).header("accept", "text/html").send().await.unwrap();
    play.assert_handed_on(&response);
    assert_eq!(response.text().await.unwrap(), "<html>Hi.");
}

#[tokio::test]
async fn an_empty_body_fails_over() {
    for answer in [
        Answer::status(200),
        json(""),
        json(" \r\n"),
        Answer::status(200).header("content-type", "application/json").chunked([]),
        Answer::status(200).header("content-type", "application/octet-stream"),
    ] {
        let play = Play::of(answer).await;
        let response = play.ask().await;
        play.assert_failed_over(&response, Reason::ErrorInSuccess, "an empty body");
    }
    // A 204 is empty on purpose.
    let play = Play::of(Answer::status(204)).await;
    let response = play.ask().await;
    assert_eq!(response.status(), 204);
    assert_eq!(line(Report::of(&response).unwrap()), "cometapi 204 in # ms");
}

#[tokio::test]
async fn a_json_body_that_breaks_off_fails_over() {
    for (place, step) in [(Place::WithinBody, Step::Fin), (Place::WithinBody, Step::Rst)] {
        let play = Play::of(json(r#"{"choices":[{"message":{}}]}"#).at(place, step)).await;
        let response = play.ask().await;
        play.assert_failed_over(&response, Reason::Reset, "the body broke off");
    }
}

#[tokio::test]
async fn a_body_that_stalls_halfway_is_handed_on_at_the_time_limit() {
    let body = r#"{"error":{"message":"half said"}}"#;
    let inspect = Inspect::errors_in_success().time_limit(ms(80));
    let stalled = json(body).at(Place::WithinBody, Step::Stall);
    let play = Play::with(stalled, inspect, |chain| chain).await;
    let started = Instant::now();
    let mut response = play.ask().await;
    let took = started.elapsed();
    assert!(took >= ms(80) && took < secs(2), "{took:?}");
    play.assert_handed_on(&response);
    let half = body.len() / 2;
    assert_eq!(read_at_least(&mut response, half).await, body.as_bytes()[..half]);
    assert!(timeout(ms(50), response.chunk()).await.is_err(), "it stalls at its caller's too");
}

#[tokio::test]
async fn a_json_body_above_the_limit_is_handed_on_unseen() {
    let body = format!(r#"{{"error":"{}"}}"#, "x".repeat(1000));
    let parts = body.as_bytes().chunks(90).map(data).collect::<Vec<_>>();
    let chunked = Answer::status(200).header("content-type", "application/json").chunked(parts);
    for answer in [json(&body), chunked] {
        let inspect = Inspect::errors_in_success().max_bytes(1000);
        let play = Play::with(answer, inspect, |chain| chain).await;
        let response = play.ask().await;
        play.assert_handed_on(&response);
        assert_eq!(response.text().await.unwrap(), body);
        play.assert_sound();
    }
}

#[tokio::test]
async fn a_compressed_body_is_handed_on_unseen() {
    // `{"error":{"message":"no"}}`
    let zipped = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\x03\xabVJ-*\xca/R\xb2\xaaV\xcaM-.NLOU\xb2R\xca\xcbW\xaa\xad\x05\x00\xdc\x82l\xee\x1a\x00\x00\x00";
    for kind in ["application/json", "text/event-stream"] {
        let answer = Answer::status(200)
            .header("content-type", kind)
            .header("content-encoding", "gzip")
            .body(*zipped);
        let play = Play::of(answer).await;
        let response = play.ask().await;
        play.assert_handed_on(&response);
        assert_eq!(response.headers()["content-encoding"], "gzip");
        assert_eq!(response.content_length(), Some(zipped.len() as u64));
        assert_eq!(response.bytes().await.unwrap(), &zipped[..]);
        play.assert_sound();
    }
}

// Streams before their first content.

#[tokio::test]
async fn a_stream_that_begins_with_an_error_fails_over() {
    for (stream, message) in [
        (ERROR, "No channel is free."),
        ("data: {\"error\":\"no quota\"}\r\n\r\n", "no quota"),
        ("event: error\rdata: it is broken\r\r", "it is broken"),
        (
            "event: error\ndata: {\"type\":\"error\",\ndata: \"error\":{\"message\":\"Overloaded\"}}\n\n",
            "Overloaded",
        ),
        (
            "event: response.failed\ndata: {\"type\":\"response.failed\",\"response\":{\"error\":{\"message\":\"Oh.\"}}}\n\n",
            "Oh.",
        ),
        ("\u{feff}: hi\n\ndata: {\"error\":{\"message\":\"Grüße\"}}", "Grüße"),
    ] {
        let whole = vec![data(stream)];
        let bytes: Vec<_> = stream.bytes().map(|byte| data([byte])).collect();
        for parts in [whole, bytes] {
            let play = Play::of(events(parts)).await;
            let response = play.ask().await;
            play.assert_failed_over(&response, Reason::ErrorInSuccess, message);
        }
    }
}

#[tokio::test]
async fn an_error_after_the_preamble_fails_over() {
    let start = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{}}\n\n";
    let created = "data: {\"type\":\"response.created\",\"response\":{\"error\":null}}\n\n";
    for preamble in [ROLE, start, created, PING, ": keep-alive\n\n"] {
        let pause = Part::Then(Step::Wait(ms(10)));
        let play = Play::of(events([data(preamble), pause, data(ERROR), data(HELLO)])).await;
        let response = play.ask().await;
        play.assert_failed_over(&response, Reason::ErrorInSuccess, "No channel is free.");
    }
}

#[tokio::test]
async fn a_stream_that_ends_before_any_content_fails_over() {
    for parts in [vec![], vec![data(ROLE)], vec![data(PING), data(DONE)], vec![data(": hi\n\n")]] {
        let play = Play::of(events(parts)).await;
        let response = play.ask().await;
        let message = "the stream ended before any content";
        play.assert_failed_over(&response, Reason::ErrorInSuccess, message);
    }
}

#[tokio::test]
async fn a_stream_that_is_cut_before_any_content_fails_over() {
    let until_character = HELLO.find('é').unwrap() + 1;
    for cut in [vec![], vec![data(ROLE), data(&HELLO.as_bytes()[..until_character])]] {
        for end in [Step::Fin, Step::Rst] {
            let parts = cut.iter().cloned().chain([Part::Then(end)]);
            let play = Play::of(events(parts)).await;
            let response = play.ask().await;
            play.assert_failed_over(&response, Reason::Reset, "the body broke off");
        }
    }
}

#[tokio::test]
async fn a_flood_of_keep_alives_is_handed_on_at_a_limit() {
    let defaults = Inspect::errors_in_success;
    let comment = ": keep-alive\n\n";
    for (keep_alive, inspect, at_least) in [
        (PING, defaults(), ms(60)),
        (PING, defaults().max_events(5), ms(4)),
        (comment, defaults().max_bytes(200), ms(10)),
        (comment, defaults().time_limit(ms(80)), ms(80)),
    ] {
        let flood = events([Part::Forever(keep_alive.into(), ms(1))]);
        let play = Play::with(flood, inspect, |chain| chain).await;
        let started = Instant::now();
        let mut response = play.ask().await;
        let took = started.elapsed();
        assert!(took >= at_least && took < secs(5), "{took:?} for {keep_alive:?}");
        play.assert_handed_on(&response);
        let read = read_at_least(&mut response, 2000).await;
        assert!(keep_alive.repeat(read.len()).as_bytes().starts_with(&read));
        drop(response);
        play.assert_sound();
    }
}

#[tokio::test]
async fn a_flood_of_keep_alives_fails_over_where_content_is_due() {
    for keep_alive in [": keep-alive\n\n", "\n", "retry: 9\n\n", "data:\n\n"] {
        let inspect = Inspect::errors_in_success().first_content_timeout(ms(80)).max_events(9999);
        let flood = events([Part::Forever(keep_alive.into(), ms(1))]);
        let play = Play::with(flood, inspect, |chain| chain).await;
        let started = Instant::now();
        let response = play.ask().await;
        let took = started.elapsed();
        assert!(took >= ms(80) && took < secs(2), "{took:?}");
        play.assert_failed_over(&response, Reason::Timeout, "no content in time");
    }
}

#[tokio::test]
async fn a_silent_stream_is_handed_on_at_the_time_limit() {
    let inspect = Inspect::errors_in_success().time_limit(ms(80));
    let late = Arc::new(Notify::new());
    let answer = events([Part::Until(late.clone()), data(HELLO), data(DONE)]);
    let play = Play::with(answer, inspect, |chain| chain).await;
    let started = Instant::now();
    let response = play.ask().await;
    assert!(started.elapsed() >= ms(80));
    play.assert_handed_on(&response);
    late.notify_one();
    assert_eq!(read(response).await, ([HELLO, DONE].concat().into_bytes(), false));
    play.assert_sound();
}

#[tokio::test]
async fn a_silent_stream_fails_over_where_content_is_due() {
    for parts in [vec![], vec![data(ROLE)], vec![data(&HELLO.as_bytes()[..HELLO.len() - 1])]] {
        let inspect = Inspect::errors_in_success().first_content_timeout(ms(80));
        let answer = events(parts.into_iter().chain([Part::Then(Step::Stall)]));
        let play = Play::with(answer, inspect, |chain| chain).await;
        let response = play.ask().await;
        play.assert_failed_over(&response, Reason::Timeout, "no content in time");
    }
}

#[tokio::test]
async fn a_silent_stream_that_may_be_at_work_is_not_asked_for_twice_where_that_is_forbidden() {
    let inspect = Inspect::errors_in_success().first_content_timeout(ms(50));
    let late = Arc::new(Notify::new());
    let answer = events([data(ROLE), Part::Until(late.clone()), data(HELLO), data(DONE)]);
    let play =
        Play::with(answer, inspect, |chain| chain.on_ambiguous(Ambiguous::IdempotentOnly)).await;
    let response = play.ask().await;
    let report = Report::of(&response).unwrap();
    assert_eq!(
        line(report),
        "cometapi 200 timeout in # ms (maybe processed); openai not asked: the request may have been \
         processed"
    );
    assert_eq!(report.served_by(), None);
    // It is handed on all the same: it may yet speak.
    late.notify_one();
    assert_eq!(read(response).await, ([ROLE, HELLO, DONE].concat().into_bytes(), false));
}

// Streams after their first content.

#[tokio::test]
async fn an_error_after_content_is_handed_on_and_counted_once() {
    let sent = [ROLE, HELLO, ERROR, ERROR, DONE];
    let play = Play::of(events(sent.map(data))).await;
    let response = play.ask().await;
    play.assert_handed_on(&response);
    assert_eq!(read(response).await, (sent.concat().into_bytes(), false));
    play.harness.assert_asked(&[1, 0]);
    assert_eq!(play.told(), ["cometapi broke off (error_in_success: No channel is free.)"]);
    let first = play.first();
    assert_eq!((first.served(), first.failures(), first.in_flight()), (1, 1, 0));
}

#[tokio::test]
async fn what_a_broken_stream_says_is_searched_for_the_keys_of_its_request() {
    let callers = "caller-key-Kq7xZz0123456789";
    let error = format!("data: {{\"error\":{{\"message\":\"no credit for {callers}\"}}}}\n\n");
    let play = Play::of(events([ROLE, HELLO, &*error].map(data))).await;
    let request = play.harness.post(&play.client).header("x-api-key", callers);
    read(request.send().await.unwrap()).await;
    assert_eq!(play.told(), ["cometapi broke off (error_in_success: no credit for [redacted])"]);
}

#[tokio::test]
async fn a_stream_without_its_marker_is_handed_on_and_counted_once() {
    let play = Play::of(events([data(ROLE), data(HELLO)])).await;
    let response = play.ask().await;
    play.assert_handed_on(&response);
    assert_eq!(read(response).await, ([ROLE, HELLO].concat().into_bytes(), false));
    assert_eq!(play.told(), ["cometapi broke off (reset: the body broke off)"]);
    assert_eq!((play.first().failures(), play.first().in_flight()), (1, 0));
}

#[tokio::test]
async fn a_stream_that_is_cut_inside_a_character_keeps_every_byte_before_the_cut() {
    let cut =
        [ROLE.as_bytes(), HELLO.as_bytes(), &HELLO.as_bytes()[..HELLO.find('é').unwrap() + 1]];
    let play = Play::of(events(cut.map(data).into_iter().chain([Part::Then(Step::Fin)]))).await;
    let response = play.ask().await;
    play.assert_handed_on(&response);
    assert_eq!(read(response).await, (cut.concat(), true));
    play.harness.assert_asked(&[1, 0]);
    assert_eq!(play.told(), ["cometapi broke off (reset: the body broke off)"]);
    assert_eq!((play.first().failures(), play.first().in_flight()), (1, 0));
}

#[tokio::test]
async fn a_whole_stream_is_handed_on_and_counted_as_a_success() {
    let chat = [ROLE, HELLO, STOP, DONE].concat();
    let messages = [
        "event: message_start\ndata: {\"type\":\"message_start\"}\n\n",
        "event: content_block_delta\ndata: {\"type\":\"content_block_delta\"}\n\n",
        "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n",
    ];
    let responses = [
        "data: {\"type\":\"response.created\"}\r\n\r\n",
        "data: {\"type\":\"response.output_text.delta\",\"delta\":\"é\"}\r\n\r\n",
        "data: {\"type\":\"response.completed\"}\r\n\r\n",
    ];
    let unknown = "\u{feff}: hi\n\ndata: 1\n\ndata: \u{1f600}\n\n";
    for stream in [&*chat, &messages.concat(), &responses.concat(), unknown] {
        for size in [1, 7, 4096] {
            let parts = stream.as_bytes().chunks(size).map(data).collect::<Vec<_>>();
            let play = Play::of(events(parts)).await;
            let response = play.ask().await;
            play.assert_handed_on(&response);
            assert_eq!(read(response).await, (stream.as_bytes().to_vec(), false));
            play.assert_sound();
        }
    }
}

#[tokio::test]
async fn the_end_of_a_whole_stream_ends_the_row_of_failures() {
    for complete in [true, false] {
        let asked = AtomicUsize::new(0);
        let first = move |_: &Received| match asked.fetch_add(1, Ordering::Relaxed) {
            0 => events([ROLE, HELLO, STOP, DONE].map(data)),
            _ => Answer::error(500, "broken"),
        };
        let play = Play::of(first).await;
        let stream = play.ask().await;
        for _ in 0..4 {
            play.ask().await;
        }
        match complete {
            true => _ = read(stream).await,
            false => drop(stream),
        }
        for _ in 0..4 {
            play.ask().await;
        }
        assert_eq!(play.first().failures(), if complete { 8 } else { 5 });
        let is_open = matches!(play.first().state(), State::Open { .. });
        assert_eq!(is_open, !complete, "{:?}", play.first());
    }
}

#[tokio::test]
async fn a_line_of_16_megabytes_is_handed_on() {
    let long = "x".repeat(16 * 1024 * 1024);
    let event = format!("data: {{\"choices\":[{{\"delta\":{{\"content\":\"{long}\"}}}}]}}\n\n");
    let comment = format!(": {long}\n\n");
    for line in [&event, &comment, &long] {
        let play = Play::of(events([data(ROLE), data(&**line), data(HELLO), data(DONE)])).await;
        let response = play.ask().await;
        play.assert_handed_on(&response);
        let (read, failed) = read(response).await;
        assert!(!failed && read == [ROLE, line, HELLO, DONE].concat().as_bytes());
        play.assert_sound();
    }
}

#[tokio::test]
async fn a_stream_that_never_ends_is_let_go_with_its_caller() {
    let play = Play::of(events([data(ROLE), Part::Forever(HELLO.into(), ms(1))])).await;
    let mut response = play.ask().await;
    play.assert_handed_on(&response);
    let read = read_at_least(&mut response, ROLE.len() + 20 * HELLO.len()).await;
    assert!([ROLE, &HELLO.repeat(read.len())].concat().as_bytes().starts_with(&read));
    assert_eq!(play.first().in_flight(), 1);
    drop(response);
    play.assert_sound();
}

// What is handed on.

#[tokio::test]
async fn what_is_handed_on_is_what_a_plain_client_sees() {
    let stream = [ROLE, HELLO, DONE];
    let trailer = Part::Trailer("x-sum", "7");
    let headers = |answer: Answer| answer.header("x-twice", "1").header("x-twice", "2");
    for answer in [
        json(" {\"a\" : 1.0,\n\"é\":\"\\u00e9\"}\n"),
        json("[1]"),
        Answer::status(201).header("content-type", "application/json").chunked([data("{}")]),
        Answer::status(200).header("content-type", "text/event-stream").body(stream.concat()),
        events(stream.map(data)),
        events(stream.map(data).into_iter().chain([trailer.clone()])),
        Answer::status(200).header("content-type", "application/json").chunked([
            data("{\"a\":"),
            data("1}"),
            trailer,
        ]),
        Answer::status(200).header("content-type", "image/png").body(*b"\x89PNG\x00\xff"),
    ] {
        let play = Play::of(headers(answer)).await;
        let url = play.harness.actors[0].url("/chat/completions?a=%20b");
        let seen = plain().post(&url).body("{}").send().await.unwrap();
        let inspected = play.client.post(&url).body("{}").send().await.unwrap();
        assert_eq!(inspected.url(), seen.url());
        assert_eq!(inspected.status(), seen.status());
        assert_eq!(inspected.version(), seen.version());
        assert_eq!(inspected.headers(), seen.headers());
        assert_eq!(inspected.remote_addr(), seen.remote_addr());
        assert!(inspected.remote_addr().is_some());
        let (length, known) = (seen.content_length(), inspected.content_length());
        let (seen, inspected) = (frames(seen).await, frames(inspected).await);
        // What was held back whole has a length, also where the provider did not say it.
        assert!(known == length || known == Some(seen.0.len() as u64), "{known:?} for {length:?}");
        assert_eq!(inspected, seen);
        assert!(!inspected.0.is_empty());
        assert_eq!(play.first().in_flight(), 0);
        // The plain request had no key.
        assert_eq!(play.harness.requests(0).len(), 2);
    }
}

/// The bytes of a body, and its trailers.
async fn frames(response: Response) -> (Vec<u8>, Option<http::HeaderMap>) {
    let mut body = http::Response::<reqwest::Body>::from(response).into_body();
    let (mut read, mut trailers) = (Vec::new(), None);
    while let Some(frame) = body.frame().await {
        match frame.unwrap().into_data() {
            Ok(data) => read.extend_from_slice(&data),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    (read, trailers)
}

#[tokio::test]
async fn each_chunk_is_handed_on_before_the_next_is_sent() {
    let gates: Vec<_> = (0..4).map(|_| Arc::new(Notify::new())).collect();
    let chunks = [HELLO, &HELLO[..9], &HELLO[9..], STOP, DONE];
    let mut parts = vec![data(ROLE), data(chunks[0])];
    for (gate, chunk) in gates.iter().zip(&chunks[1..]) {
        parts.extend([Part::Until(gate.clone()), data(*chunk)]);
    }
    let play = Play::of(events(parts)).await;
    let mut response = play.ask().await;
    let first = [ROLE, chunks[0]].concat();
    assert_eq!(read_at_least(&mut response, first.len()).await, first.as_bytes());
    for (gate, chunk) in gates.iter().zip(&chunks[1..]) {
        assert!(timeout(ms(5), response.chunk()).await.is_err(), "nothing was sent");
        gate.notify_one();
        assert_eq!(read_at_least(&mut response, chunk.len()).await, chunk.as_bytes());
    }
    assert_eq!(response.chunk().await.unwrap(), None);
    play.assert_sound();
}

// Health.

/// A break that is over as soon as it began.
fn brief() -> Breaker {
    Breaker::default().consecutive(1).breaks(ms(1), ms(1))
}

#[tokio::test]
async fn the_first_content_ends_a_break() {
    for (rest, broke) in [(DONE, false), (ERROR, true)] {
        let end = Arc::new(Notify::new());
        let stream = events([data(ROLE), data(HELLO), Part::Until(end.clone()), data(rest)]);
        let answers = vec![Answer::error(500, "down"), stream];
        let inspect = Inspect::errors_in_success();
        let play = Play::with(answers, inspect, |chain| chain.breaker(brief())).await;
        assert_eq!(Report::of(&play.ask().await).unwrap().served_by(), Some("openai"));
        assert!(matches!(play.first().state(), State::Open { .. }));
        tokio::time::sleep(ms(10)).await;
        lock(&play.told).clear();

        let probe = play.ask().await;
        assert_eq!(Report::of(&probe).unwrap().served_by(), Some("cometapi"));
        assert_eq!(play.told(), ["cometapi closed"]);
        assert!(matches!(play.first().state(), State::Closed));
        assert_eq!((play.first().served(), play.first().in_flight()), (1, 1));
        // Its end is counted. But it was sent before the break ended, and so begins no other.
        end.notify_one();
        read(probe).await;
        assert_eq!((play.first().failures(), play.first().in_flight()), (1 + u64::from(broke), 0));
        assert!(matches!(play.first().state(), State::Closed));
        assert_eq!(play.told().len(), 1 + usize::from(broke));
        lock(&play.told).clear();

        // The next one's end moves the breaker.
        end.notify_one();
        read(play.ask().await).await;
        let broken = "cometapi broke off (error_in_success: No channel is free.)";
        let told = if broke { &[broken, "cometapi opened"][..] } else { &[] };
        assert_eq!(play.told(), told);
    }
}

#[tokio::test]
async fn a_stream_that_has_begun_well_ends_the_row_of_failures_however_it_ends() {
    for reads_on in [true, false] {
        let down = Answer::error(500, "down");
        let stream = match reads_on {
            true => events([HELLO, STOP, DONE].map(data)),
            false => events([data(HELLO), Part::Then(Step::Stall)]),
        };
        let inspect = Inspect::errors_in_success();
        let twice = Breaker::default().consecutive(2);
        let play =
            Play::with(vec![down.clone(), stream, down], inspect, |chain| chain.breaker(twice));
        let play = play.await;
        play.ask().await;
        let mut response = play.ask().await;
        assert_eq!(play.first().in_flight(), 1);
        match reads_on {
            true => assert!(!read(response).await.1),
            false => {
                let _ = response.chunk().await;
                drop(response);
            }
        }
        assert_eq!(play.first().in_flight(), 0);
        play.ask().await;
        assert_eq!(play.first().failures(), 2);
        let is_open = matches!(play.first().state(), State::Open { .. });
        assert!(!is_open, "{:?}", play.told());
    }
}

#[tokio::test]
async fn a_caller_who_stops_reading_at_the_last_word_has_had_a_success() {
    let stalls = events([data(HELLO), data(STOP), data(DONE), Part::Then(Step::Stall)]);
    let play = Play::of(stalls).await;
    let mut response = play.ask().await;
    read_at_least(&mut response, HELLO.len() + STOP.len() + DONE.len()).await;
    // Known before the stream is over.
    assert_eq!(play.first().in_flight(), 0);
    drop(response);
    play.assert_sound();
}

#[tokio::test]
async fn who_drops_the_request_while_it_is_looked_into_leaves_nothing_behind() {
    for answer in [
        events([data(ROLE), Part::Then(Step::Stall)]),
        json("{\"a\":1}").at(Place::WithinBody, Step::Stall),
    ] {
        let play = Play::of(answer).await;
        let server = &play.harness.actors[0].server;
        tokio::select! {
            response = play.ask() => panic!("not held back: {response:?}"),
            () = async {
                server.until(|server| server.requests().len() == 1).await;
                tokio::time::sleep(ms(30)).await;
            } => {}
        }
        play.harness.assert_asked(&[1, 0]);
        let first = play.first();
        assert_eq!((first.served(), first.failures(), first.in_flight()), (0, 0, 0));
        assert_eq!(play.chain.snapshot().requests(), 1);
    }
}

// Verdicts, and no provider left.

#[tokio::test]
async fn classify_sees_the_error_in_the_success_and_has_the_last_word() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let body = r#"{"error":{"message":"I like it."}}"#;
    let judge = {
        let seen = seen.clone();
        move |outcome: &reqwest_failover::Outcome<'_>| {
            let status = outcome.status().map(|status| status.as_u16());
            lock(&seen).push((outcome.reason(), status, outcome.maybe_processed()));
            Verdict::Accept
        }
    };
    let inspect = Inspect::errors_in_success();
    let play = Play::with(json(body), inspect.clone(), |chain| chain.classify(judge)).await;
    let response = play.ask().await;
    let report = Report::of(&response).unwrap();
    assert_eq!(line(report), "cometapi 200 error_in_success in # ms");
    assert_eq!(report.served_by(), Some("cometapi"));
    assert_eq!(*lock(&seen), [(Reason::ErrorInSuccess, Some(200), true)]);
    assert_eq!(response.text().await.unwrap(), body);
    play.assert_sound();

    // What it costs is for it to say as well.
    let unhurt = |_: &reqwest_failover::Outcome<'_>| Verdict::FailOver(Fault::None);
    let play = Play::with(json(body), inspect, |chain| chain.classify(unhurt)).await;
    play.ask().await;
    assert_eq!(play.first().failures(), 0);
    play.harness.assert_asked(&[1, 1]);
}

#[tokio::test]
async fn a_stream_that_classify_refuses_fails_over_and_the_last_is_handed_on() {
    let stream = [ROLE, HELLO, DONE];
    let refuse = |outcome: &reqwest_failover::Outcome<'_>| match outcome.provider() {
        "cometapi" => Verdict::FailOver(Fault::Failure),
        _ => Verdict::standard(outcome),
    };
    let inspect = Inspect::errors_in_success;
    let first = events(stream.map(data));
    let play = Play::with(first.clone(), inspect(), |chain| chain.classify(refuse)).await;
    let report = Report::of(&play.ask().await).unwrap().clone();
    assert_eq!(report.served_by(), Some("openai"), "{report}");
    assert_eq!((play.first().failures(), play.first().in_flight()), (1, 0));

    let harness = WireHarness::two(Answer::error(500, "broken"), first).await;
    let refuse = |_: &reqwest_failover::Outcome<'_>| Verdict::FailOver(Fault::Failure);
    let play = Play::on(harness, inspect(), |chain| chain.classify(refuse));
    let response = play.ask().await;
    assert_eq!(Report::of(&response).unwrap().served_by(), None);
    assert_eq!(read(response).await, (stream.concat().into_bytes(), false));
    play.harness.assert_asked(&[1, 1]);
}

#[cfg(feature = "metrics")]
#[tokio::test]
async fn broken_streams_are_a_metric() {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let _recording = metrics::set_default_local_recorder(&recorder);
    let play = Play::of(events([ROLE, HELLO].map(data))).await;
    for _ in 0..2 {
        read(play.ask().await).await;
    }
    let text = recorder.handle().render();
    for (provider, broken) in [("cometapi", 2), ("openai", 0)] {
        let line = format!("failover_stream_broken_total{{provider=\"{provider}\"}} {broken}\n");
        assert!(text.contains(&line), "{text}");
    }
}

#[tokio::test]
async fn a_broken_stream_has_the_id_of_its_request() {
    let ids = Arc::new(Mutex::new(Vec::new()));
    let keeper = ids.clone();
    let inspect = Inspect::errors_in_success();
    let play = Play::with(events([ROLE, HELLO, ERROR].map(data)), inspect, |chain| {
        chain.observe(move |event| {
            if let Event::StreamBroken { .. } = event {
                lock(&keeper).push(event.request_id());
            }
        })
    });
    let play = play.await;
    for id in 1..=3 {
        let response = play.ask().await;
        assert_eq!(Report::of(&response).unwrap().id(), id);
        read(response).await;
    }
    assert_eq!(*lock(&ids), [Some(1), Some(2), Some(3)]);
}

#[tokio::test]
async fn the_careful_preset_fails_over_on_an_error_in_a_success() {
    for answer in
        [json(r#"{"error":{"message":"No channel is free."}}"#), events([data(ROLE), data(ERROR)])]
    {
        let inspect = Inspect::errors_in_success();
        let play = Play::with(answer, inspect, |chain| chain.classify(Verdict::transient)).await;
        let response = play.ask().await;
        play.assert_failed_over(&response, Reason::ErrorInSuccess, "No channel is free.");
    }
}

async fn both_flawed(first: Answer, last: Answer, exhausted: Exhausted) -> Play {
    let harness = WireHarness::two(first, last).await;
    Play::on(harness, Inspect::errors_in_success(), |chain| chain.on_exhausted(exhausted))
}

#[tokio::test]
async fn the_last_flawed_response_is_handed_on_untouched() {
    let first = json(r#"{"error":{"message":"first"}}"#);
    let body = " {\"error\": {\"message\":\"l\\u0061st\"} }\n";
    let sent = [ROLE, ERROR, "data: and more\n\n"];
    for (last, expected, message) in [
        (json(body), body.to_owned(), "last"),
        (events(sent.map(data)), sent.concat(), "No channel is free."),
        (Answer::status(200), String::new(), "an empty body"),
    ] {
        let play = both_flawed(first.clone(), last, Exhausted::LastOutcome).await;
        let response = play.ask().await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.url().as_str(), play.harness.actors[1].url("/chat/completions"));
        let report = Report::of(&response).unwrap();
        let flawed = "cometapi 200 error_in_success in # ms → openai 200 error_in_success in # ms";
        assert_eq!(line(report).replace(" (maybe processed)", ""), flawed);
        assert_eq!(report.served_by(), None);
        let messages: Vec<_> = report.attempts().iter().map(|attempt| attempt.message()).collect();
        assert_eq!(messages, [Some("first"), Some(message)]);
        assert_eq!(read(response).await, (expected.into_bytes(), false));
        let snapshot = play.chain.snapshot();
        assert_eq!((snapshot.exhausted(), snapshot.providers()[1].served()), (1, 0));
        assert_eq!(snapshot.providers()[1].in_flight(), 0);
        // A stream that never began well cannot break.
        assert_eq!(play.told(), ["cometapi → openai"]);
    }
}

#[tokio::test]
async fn the_error_of_all_says_what_was_found_in_each() {
    let first = json(r#"{"error":{"message":"no channel"}}"#);
    let play = both_flawed(first, events([data(ERROR)]), Exhausted::Error).await;
    let error = play.harness.post(&play.client).send().await.expect_err("no provider served");
    let failed = FailoverError::find(&error).unwrap();
    let text = play.harness.hear(failed);
    assert!(text.contains("cometapi") && text.contains("no channel"), "{text}");
    assert!(text.contains("openai") && text.contains("No channel is free."), "{text}");
    assert!(failed.last_status().is_some_and(|status| status == 200));
    let reasons: Vec<_> = failed.report().attempts().iter().map(|a| a.reason()).collect();
    assert_eq!(reasons, [Reason::ErrorInSuccess; 2]);
}

#[tokio::test]
async fn a_key_that_is_echoed_in_a_success_is_not_shown() {
    let echo = |streamed: bool, mark: &'static str| {
        move |request: &Received| {
            let key = request.header("authorization").unwrap_or_default();
            // Spelt in a way that only a parser of JSON sees through.
            let key = key.replace('/', "\\/").replace('K', "\\u004b");
            let error =
                format!("{mark}{{\"error\":{{\"message\":\"Wrong key: {key}, said he.\"}}}}");
            match streamed {
                true => events([data(ROLE), data(format!("data: {error}\n\n"))]),
                false => json(&error),
            }
        }
    };
    for (streamed, mark) in [(false, ""), (true, ""), (false, "\u{feff}"), (true, "\u{feff}")] {
        let harness = WireHarness::two(echo(streamed, mark), echo(!streamed, mark)).await;
        let play = Play::on(harness, Inspect::errors_in_success(), |chain| {
            chain.on_exhausted(Exhausted::Error)
        });
        let error = play.harness.post(&play.client).send().await.expect_err("no provider served");
        let failed = FailoverError::find(&error).unwrap();
        play.harness.hear(format!("{error} {error:?} {failed} {failed:?} {:?}", failed.report()));
        for attempt in failed.report().attempts() {
            let message = attempt.message().unwrap();
            assert!(
                message.starts_with("Wrong key: ") && message.ends_with("said he."),
                "{message}"
            );
        }
    }
}

// What an answer is held against.

#[tokio::test]
async fn polling_a_job_that_has_failed_moves_no_breaker_and_asks_nobody_else() {
    for job in [
        r#"{"object":"fine_tuning.job","id":"j","status":"failed","error":{"code":"invalid","message":"x"}}"#,
        r#"{"object":"fine_tuning.job","id":"j","status":"validating_files","error":{}}"#,
        r#"{"object":"response","id":"r","status":"failed","error":{"message":"x"}}"#,
    ] {
        let play = Play::of(json(job)).await;
        let url = play.harness.actors[0].url("/fine_tuning/jobs/j");
        for _ in 0..5 {
            let response = play.client.get(&url).send().await.unwrap();
            play.assert_handed_on(&response);
            assert_eq!(response.text().await.unwrap(), job);
        }
        let first = play.first();
        assert_eq!((first.served(), first.failures()), (5, 0));
        assert!(matches!(first.state(), State::Closed));
    }
}

fn rpc(code: i64, message: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":1,"error":{{"code":{code},"message":"{message}"}}}}"#)
}

#[tokio::test]
async fn a_contract_that_reverts_is_the_right_answer() {
    let revert = rpc(3, "execution reverted");
    let inspect = Inspect::errors_in_success().json_rpc();
    let play = Play::with(json(&revert), inspect, |chain| chain).await;
    for _ in 0..1000 {
        let response = play.ask().await;
        assert_eq!(Report::of(&response).unwrap().served_by(), Some("cometapi"));
        assert_eq!(response.text().await.unwrap(), revert);
    }
    play.harness.assert_asked(&[1000, 0]);
    let first = play.first();
    assert_eq!((first.served(), first.failures()), (1000, 0));
    assert!(matches!(first.state(), State::Closed));
    assert_eq!(play.told(), [""; 0]);
}

#[tokio::test]
async fn a_limit_in_an_answer_of_json_rpc_fails_over_and_rests_the_node() {
    let limited = rpc(-32005, "project ID request rate exceeded");
    let fine = r#"{"jsonrpc":"2.0","id":2,"result":"0x1"}"#;
    for body in [limited.clone(), format!("[{fine},{limited}]"), format!("[{limited}]")] {
        let inspect = Inspect::errors_in_success().json_rpc();
        let play = Play::with(json(&body), inspect, |chain| chain).await;
        let response = play.ask().await;
        let report = Report::of(&response).unwrap();
        assert_eq!(report.served_by(), Some("openai"), "{body}");
        let attempt = &report.attempts()[0];
        assert_eq!(attempt.reason(), Reason::ErrorInSuccess);
        assert_eq!(attempt.message(), Some("project ID request rate exceeded"));
        assert!(matches!(play.first().state(), State::CoolingDown { .. }), "{body}");
        assert_eq!(play.first().failures(), 0);
    }
}

#[tokio::test]
async fn an_error_in_a_success_costs_what_its_code_says() {
    for (code, reason, failures, rests) in [
        ("400", Reason::ErrorInSuccess, 0, false),
        (r#""context_length_exceeded""#, Reason::ErrorInSuccess, 0, false),
        ("429", Reason::ErrorInSuccess, 0, true),
        (r#""insufficient_quota""#, Reason::Quota, 0, true),
        ("503", Reason::ErrorInSuccess, 1, false),
        (r#""never_heard_of""#, Reason::ErrorInSuccess, 1, false),
    ] {
        let error = format!(r#"{{"error":{{"message":"x","code":{code}}}}}"#);
        for answer in [json(&error), events([data(format!("data: {error}\n\n"))])] {
            let play = Play::of(answer).await;
            let response = play.ask().await;
            let report = Report::of(&response).unwrap();
            assert_eq!(report.served_by(), Some("openai"), "{code}");
            assert_eq!(report.attempts()[0].reason(), reason, "{code}");
            let first = play.first();
            assert_eq!(first.failures(), failures, "{code}");
            assert_eq!(matches!(first.state(), State::CoolingDown { .. }), rests, "{code}");
        }
    }
}

#[tokio::test]
async fn classify_sees_the_code_and_the_message_of_an_error_in_a_success() {
    let error = r#"{"error":{"message":"Too long.","code":"context_length_exceeded"}}"#;
    let judge = |outcome: &reqwest_failover::Outcome<'_>| match outcome.code() {
        Some("context_length_exceeded") => {
            assert_eq!(outcome.message(), Some("Too long."));
            Verdict::Accept
        }
        _ => Verdict::standard(outcome),
    };
    for answer in [json(error), events([data(format!("data: {error}\n\n"))])] {
        let inspect = Inspect::errors_in_success();
        let play = Play::with(answer, inspect, |chain| chain.classify(judge)).await;
        let response = play.ask().await;
        assert_eq!(Report::of(&response).unwrap().served_by(), Some("cometapi"));
        play.harness.assert_asked(&[1, 0]);
    }
}

#[tokio::test]
async fn a_check_of_ones_own_fails_over_and_a_panic_in_it_does_not() {
    let inspect = || {
        Inspect::errors_in_success().also(|answer| match answer.body() {
            b"{\"a\":\"panic\"}" => panic!("scripted"),
            b"{\"a\":\"sorry\"}" => Some(Flaw::new("an apology").code("overloaded")),
            _ => None,
        })
    };
    let play = Play::with(json(r#"{"a":"sorry"}"#), inspect(), |chain| chain).await;
    let response = play.ask().await;
    play.assert_failed_over(&response, Reason::ErrorInSuccess, "an apology");

    let play = Play::with(json(r#"{"a":"panic"}"#), inspect(), |chain| chain).await;
    let response = play.ask().await;
    play.assert_handed_on(&response);
    assert_eq!(play.told(), ["inspect panicked"]);
}

#[tokio::test]
async fn a_stream_that_falls_silent_after_its_content_is_ended_and_counted() {
    let silent = events([data(ROLE), data(HELLO), Part::Then(Step::Stall)]);
    let inspect = Inspect::errors_in_success().idle_timeout(ms(80));
    let play = Play::with(silent, inspect, |chain| chain).await;
    let mut response = play.ask().await;
    play.assert_handed_on(&response);
    let sent = [ROLE, HELLO].concat();
    assert_eq!(read_at_least(&mut response, sent.len()).await, sent.as_bytes());
    let error = timeout(secs(5), response.chunk()).await.expect("in time").unwrap_err();
    assert!(error.is_timeout(), "{error:?}");
    assert_eq!(play.told(), ["cometapi broke off (timeout: no content in time)"]);
    assert_eq!((play.first().failures(), play.first().in_flight()), (1, 0));
}
