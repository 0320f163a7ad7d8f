//! Bodies that cannot be cloned: buffered within the limit and sent to everyone, else sent once.

use reqwest_failover_testing::support;

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use http::Extensions;
use http_body::{Frame, SizeHint};
use reqwest::{Body, Response, multipart};
use reqwest_failover::{FailoverError, Reason, Report};
use reqwest_middleware::RequestBuilder;

use support::harness::{WireHarness, client, line, plain};
use support::{Answer, Server};

type Chunk = Result<Bytes, io::Error>;

/// `pieces` pieces of a kibibyte, no two of them alike.
fn pieces(pieces: usize) -> Vec<Bytes> {
    (0..pieces).map(|at| Bytes::from(format!("{at:>1023}\n"))).collect()
}

fn streamed(pieces: Vec<Bytes>) -> Body {
    Body::wrap_stream(stream::iter(pieces.into_iter().map(Chunk::Ok)))
}

/// A stream that knows, or says, how long it is.
struct Sized {
    length: u64,
    chunks: Pin<Box<dyn Stream<Item = Chunk> + Send + Sync>>,
}

impl Sized {
    fn body(length: usize, pieces: Vec<Bytes>) -> Body {
        let chunks = Box::pin(stream::iter(pieces.into_iter().map(Chunk::Ok)));
        Body::wrap(Self { length: length as u64, chunks })
    }
}

impl http_body::Body for Sized {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        self.chunks.poll_next_unpin(context).map(|next| next.map(|chunk| chunk.map(Frame::data)))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.length)
    }
}

async fn failing_first() -> WireHarness {
    WireHarness::two(Answer::error(500, "broken"), Answer::ok()).await
}

fn upload(
    harness: &WireHarness,
    client: &reqwest_middleware::ClientWithMiddleware,
) -> RequestBuilder {
    client.post(harness.actors[1].url("/files"))
}

/// Both were sent this body, and only the second served.
#[track_caller]
fn assert_replayed(harness: &WireHarness, response: &Response, body: &[u8]) {
    let report = Report::of(response).unwrap();
    assert_eq!(line(report), "cometapi 500 in # ms (maybe processed) → openai 200 in # ms");
    assert!(report.attempts().iter().all(|attempt| attempt.is_replayable()));
    harness.assert_asked(&[1, 1]);
    for actor in 0..2 {
        let request = harness.requests(actor).remove(0);
        assert!(request.body == body, "provider {actor} was sent {} bytes", request.body.len());
        assert_eq!(request.header("content-length"), Some(&*body.len().to_string()));
        assert_eq!(request.header("transfer-encoding"), None);
    }
}

/// The first was sent this body, no other provider was asked, and its answer was handed on.
#[track_caller]
fn assert_sent_once(harness: &WireHarness, response: &Response, body: &[u8]) {
    let report = Report::of(response).unwrap();
    assert_eq!(response.status(), 500);
    assert_eq!(
        line(report),
        "cometapi 500 in # ms (maybe processed) (not replayable); openai not asked: the body could be sent only once"
    );
    assert!(!report.attempts()[0].is_replayable());
    assert_eq!(report.served_by(), None);
    harness.assert_asked(&[1, 0]);
    assert_eq!(harness.actors[1].server.connections(), 0);
    let request = harness.requests(0).remove(0);
    assert!(request.body == body, "the first was sent {} bytes", request.body.len());
}

#[tokio::test]
async fn a_stream_whose_header_says_its_length_is_sent_to_both() {
    let harness = failing_first().await;
    let (client, pieces) = (harness.client(), pieces(20));
    let body = pieces.concat();
    let request = upload(&harness, &client).header("content-length", body.len());
    let response = request.body(streamed(pieces)).send().await.unwrap();
    assert_replayed(&harness, &response, &body);
}

#[tokio::test]
async fn a_stream_that_knows_its_length_is_sent_to_both() {
    let harness = failing_first().await;
    let (client, pieces) = (harness.client(), pieces(20));
    let body = pieces.concat();
    let stream = Sized::body(body.len(), pieces);
    let response = upload(&harness, &client).body(stream).send().await.unwrap();
    assert_replayed(&harness, &response, &body);
}

#[tokio::test]
async fn a_stream_of_exactly_the_replay_buffers_size_is_sent_to_both() {
    let harness = failing_first().await;
    let (client, pieces) = (client(harness.chain().replay_buffer(4096)), pieces(4));
    let body = pieces.concat();
    let stream = Sized::body(body.len(), pieces);
    let response = upload(&harness, &client).body(stream).send().await.unwrap();
    assert_replayed(&harness, &response, &body);
}

#[tokio::test]
async fn a_stream_one_byte_over_the_replay_buffer_is_sent_once() {
    let harness = failing_first().await;
    let (client, pieces) = (client(harness.chain().replay_buffer(4095)), pieces(4));
    let body = pieces.concat();
    let request = upload(&harness, &client).header("content-length", body.len());
    let response = request.body(streamed(pieces)).send().await.unwrap();
    assert_sent_once(&harness, &response, &body);
    assert!(response.text().await.unwrap().contains("broken"));
}

#[tokio::test]
async fn the_replay_buffer_holds_two_mebibytes_unless_told_otherwise() {
    for (kibibytes, replayed) in [(2048, true), (2049, false)] {
        let harness = failing_first().await;
        let (client, pieces) = (harness.client(), pieces(kibibytes));
        let body = pieces.concat();
        let stream = Sized::body(body.len(), pieces);
        let response = upload(&harness, &client).body(stream).send().await.unwrap();
        match replayed {
            true => assert_replayed(&harness, &response, &body),
            false => assert_sent_once(&harness, &response, &body),
        }
    }
}

#[tokio::test]
async fn without_a_replay_buffer_every_stream_is_sent_once() {
    let harness = failing_first().await;
    let (client, pieces) = (client(harness.chain().replay_buffer(0)), pieces(1));
    let body = pieces.concat();
    let stream = Sized::body(body.len(), pieces);
    let response = upload(&harness, &client).body(stream).send().await.unwrap();
    assert_sent_once(&harness, &response, &body);
    let request = harness.requests(0).remove(0);
    assert_eq!(request.header("content-length"), Some(&*body.len().to_string()));
    assert_eq!(request.header("transfer-encoding"), None);
}

#[tokio::test]
async fn a_body_that_can_be_cloned_needs_no_replay_buffer() {
    let harness = failing_first().await;
    let (client, body) = (client(harness.chain().replay_buffer(0)), pieces(3).concat());
    let response = upload(&harness, &client).body(body.clone()).send().await.unwrap();
    assert_replayed(&harness, &response, &body);
}

#[tokio::test]
async fn a_stream_of_unknown_length_is_sent_once() {
    let harness = failing_first().await;
    let (client, pieces) = (harness.client(), pieces(4));
    let body = pieces.concat();
    let response = upload(&harness, &client).body(streamed(pieces)).send().await.unwrap();
    assert_sent_once(&harness, &response, &body);
    assert_eq!(harness.requests(0)[0].header("transfer-encoding"), Some("chunked"));
}

#[tokio::test]
async fn a_stream_of_unknown_length_is_served_like_any_other() {
    let harness = WireHarness::two(Answer::ok(), Answer::ok()).await;
    let (client, pieces) = (harness.client(), pieces(4));
    let body = pieces.concat();
    let response = upload(&harness, &client).body(streamed(pieces)).send().await.unwrap();
    assert_eq!(Report::of(&response).unwrap().served_by(), Some("cometapi"));
    harness.assert_asked(&[1, 0]);
    assert!(harness.requests(0)[0].body == body);
}

#[tokio::test]
async fn an_empty_stream_is_sent_to_both() {
    let harness = failing_first().await;
    let client = harness.client();
    let response = upload(&harness, &client).body(Sized::body(0, Vec::new())).send().await.unwrap();
    assert_eq!(response.status(), 200);
    harness.assert_asked(&[1, 1]);
    assert!(harness.requests(0)[0].body.is_empty() && harness.requests(1)[0].body.is_empty());
}

// Bodies that lie about their length.

/// What the plain client makes of it: what arrives, whether whole or not.
async fn sent_by_plain_client(header: Option<usize>, body: Body) -> (bool, Vec<u8>) {
    let server = Server::start(Answer::error(500, "broken")).await;
    let mut request = plain().post(server.base_url("/v1/files"));
    if let Some(length) = header {
        request = request.header("content-length", length);
    }
    let done = tokio::time::timeout(Duration::from_secs(2), request.body(body).send()).await;
    let answered = done.expect("the plain client does not hang").is_ok();
    let body = server.requests().pop().map(|request| request.body);
    (answered, body.unwrap_or_default())
}

#[tokio::test]
async fn a_body_longer_than_its_header_says_is_no_way_round_the_limit() {
    let pieces = pieces(64);
    let plain = sent_by_plain_client(Some(1500), streamed(pieces.clone())).await;
    let harness = failing_first().await;
    let client = client(harness.chain().replay_buffer(2000));
    let request = upload(&harness, &client).header("content-length", 1500);
    let response = request.body(streamed(pieces)).send().await.unwrap();
    assert!(plain.0);
    assert_sent_once(&harness, &response, &plain.1);
}

#[tokio::test]
async fn a_body_longer_than_it_knows_is_no_way_round_the_limit() {
    let pieces = pieces(64);
    let plain = sent_by_plain_client(None, Sized::body(1500, pieces.clone())).await;
    let harness = failing_first().await;
    let client = client(harness.chain().replay_buffer(2000));
    let response = upload(&harness, &client).body(Sized::body(1500, pieces)).send().await.unwrap();
    assert!(plain.0);
    let report = Report::of(&response).unwrap();
    assert!(!report.attempts()[0].is_replayable(), "{report}");
    harness.assert_asked(&[1, 0]);
    let arrived = harness.requests(0).remove(0).body;
    // Its length is unknown now, so all of it may be sent; but never another's beginning.
    let whole = self::pieces(64).concat();
    assert!(arrived == plain.1 || arrived == whole, "{} bytes arrived", arrived.len());
}

#[tokio::test]
async fn a_body_shorter_than_it_said_is_an_error_as_with_a_plain_client() {
    let plain = sent_by_plain_client(Some(5000), streamed(pieces(2))).await;
    assert_eq!(plain, (false, Vec::new()));
    let harness = WireHarness::two(Answer::ok(), Answer::ok()).await;
    let client = harness.client();
    let request = upload(&harness, &client).header("content-length", 5000);
    let sending = request.body(streamed(pieces(2))).send();
    let done = tokio::time::timeout(Duration::from_secs(2), sending).await;
    let error = done.expect("it does not hang").expect_err("it is incomplete");
    harness.hear(format!("{error} {error:?}"));
    harness.assert_asked(&[0, 0]);
}

// Bodies that fail or stall at the caller's end.

fn failing(pieces: Vec<Bytes>) -> Body {
    let fails = stream::iter([Chunk::Err(io::Error::other("the caller's disk is gone"))]);
    Body::wrap_stream(stream::iter(pieces.into_iter().map(Chunk::Ok)).chain(fails))
}

#[track_caller]
fn assert_is_the_callers(harness: &WireHarness, error: &reqwest_middleware::Error) {
    harness.hear(format!("{error} {error:?}"));
    let mut texts = vec![error.to_string()];
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        texts.push(error.to_string());
        source = error.source();
    }
    assert!(texts.iter().any(|text| text.contains("the caller's disk is gone")), "{texts:?}");
}

#[tokio::test]
async fn a_stream_that_fails_while_it_is_buffered_stops_with_its_error() {
    let harness = WireHarness::two(Answer::ok(), Answer::ok()).await;
    let client = harness.client();
    let request = upload(&harness, &client).header("content-length", 5000);
    let error = request.body(failing(pieces(2))).send().await.unwrap_err();
    assert_is_the_callers(&harness, &error);
    harness.assert_untouched();
}

#[tokio::test]
async fn a_stream_that_fails_while_it_is_sent_stops_with_its_error() {
    let harness = WireHarness::two(Answer::ok(), Answer::ok()).await;
    let client = harness.client();
    let request = upload(&harness, &client).body(failing(pieces(2))).build().unwrap();
    let mut extensions = Extensions::new();
    let error = client.execute_with_extensions(request, &mut extensions).await.unwrap_err();
    assert_is_the_callers(&harness, &error);
    let [attempt] = Report::from_extensions(&extensions).unwrap().attempts() else { panic!() };
    assert_eq!((attempt.reason(), attempt.maybe_processed()), (Reason::Other, false));
    harness.assert_asked(&[0, 0]);
    assert_eq!(harness.actors[1].server.connections(), 0);
    // It was no fault of the provider's.
    let response = harness.post(&client).send().await.unwrap();
    assert_eq!(Report::of(&response).unwrap().served_by(), Some("cometapi"));
}

#[tokio::test]
async fn a_stream_that_fails_beyond_what_it_said_stops_with_its_error() {
    let harness = WireHarness::two(Answer::ok(), Answer::ok()).await;
    let client = client(harness.chain().replay_buffer(3000));
    let stream = Body::wrap(Sized {
        length: 1500,
        chunks: Box::pin(
            stream::iter(pieces(64).into_iter().map(Chunk::Ok))
                .chain(stream::iter([Chunk::Err(io::Error::other("the caller's disk is gone"))])),
        ),
    });
    match upload(&harness, &client).body(stream).send().await {
        Err(error) => assert_is_the_callers(&harness, &error),
        // What it said was sent, and the rest was not asked for.
        Ok(response) => assert_eq!(Report::of(&response).unwrap().served_by(), Some("cometapi")),
    }
    assert_eq!(harness.actors[1].server.connections(), 0);
}

#[tokio::test]
async fn a_stream_that_stalls_while_it_is_buffered_ends_at_the_total_timeout() {
    let harness = WireHarness::two(Answer::ok(), Answer::ok()).await;
    let client = client(harness.chain().total_timeout(Duration::from_millis(100)));
    let stalls = stream::iter(pieces(2).into_iter().map(Chunk::Ok)).chain(stream::pending());
    let request = upload(&harness, &client).header("content-length", 5000);
    let started = Instant::now();
    let error = request.body(Body::wrap_stream(stalls)).send().await.unwrap_err();
    let took = started.elapsed();
    assert!(took >= Duration::from_millis(100) && took < Duration::from_secs(1), "{took:?}");
    let failed = FailoverError::find(&error).expect("a FailoverError");
    assert!(failed.is_timeout(), "{failed}");
    assert_eq!(failed.report().attempts().len(), 0);
    harness.assert_untouched();
}

#[tokio::test]
async fn no_clock_runs_against_a_provider_while_the_callers_stream_is_pending() {
    let harness = WireHarness::two(Answer::ok(), Answer::ok()).await;
    let chain = harness.chain().attempt_timeout(Duration::from_millis(80)).build().unwrap();
    let client = reqwest_middleware::ClientBuilder::new(plain()).with(chain.clone()).build();
    for _ in 0..6 {
        let slow = stream::unfold(pieces(2).into_iter(), |mut pieces| async move {
            tokio::time::sleep(Duration::from_millis(150)).await;
            Some((Chunk::Ok(pieces.next()?), pieces))
        });
        let started = Instant::now();
        let upload = upload(&harness, &client).body(Body::wrap_stream(slow));
        let response = upload.send().await.unwrap();
        assert!(started.elapsed() >= Duration::from_millis(300));
        assert_eq!(Report::of(&response).unwrap().served_by(), Some("cometapi"));
    }
    harness.assert_asked(&[6, 0]);
    let snapshot = chain.snapshot();
    let first = &snapshot.providers()[0];
    assert_eq!((first.failures(), first.state()), (0, reqwest_failover::State::Closed));
}

// Forms.

fn form(file: Vec<u8>) -> multipart::Form {
    let file = multipart::Part::bytes(file).file_name("a.jsonl").mime_str("application/x").unwrap();
    multipart::Form::new().text("purpose", "fine-tune").part("file", file)
}

#[tokio::test]
async fn a_form_is_sent_to_both() {
    let harness = failing_first().await;
    let (client, file) = (harness.client(), pieces(20).concat());
    let response = upload(&harness, &client).multipart(form(file.clone())).send().await.unwrap();
    assert_eq!(response.status(), 200);
    let first = harness.requests(0).remove(0);
    assert!(first.text().contains("fine-tune") && first.text().contains("a.jsonl"));
    assert!(first.text().contains(std::str::from_utf8(&file).unwrap()));
    assert_replayed(&harness, &response, &first.body);
    let kind = first.header("content-type").unwrap();
    assert!(kind.starts_with("multipart/form-data; boundary="), "{kind}");
    assert!(first.text().starts_with(&format!("--{}", kind.split_once('=').unwrap().1)));
    assert_eq!(harness.requests(1)[0].header("content-type"), Some(kind));
}

#[tokio::test]
async fn a_form_over_the_replay_buffer_is_sent_once() {
    let harness = failing_first().await;
    let (client, file) = (client(harness.chain().replay_buffer(2000)), pieces(20).concat());
    let response = upload(&harness, &client).multipart(form(file.clone())).send().await.unwrap();
    let first = harness.requests(0).remove(0);
    assert!(first.text().contains(std::str::from_utf8(&file).unwrap()));
    assert_sent_once(&harness, &response, &first.body);
}

#[tokio::test]
async fn a_form_with_a_part_of_unknown_length_is_sent_once() {
    let harness = failing_first().await;
    let client = harness.client();
    let part = multipart::Part::stream(streamed(pieces(2)));
    let form = multipart::Form::new().part("file", part);
    let response = upload(&harness, &client).multipart(form).send().await.unwrap();
    let first = harness.requests(0).remove(0);
    assert!(first.text().contains(std::str::from_utf8(&pieces(2).concat()).unwrap()));
    assert_sent_once(&harness, &response, &first.body);
}
