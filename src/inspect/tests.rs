#![expect(clippy::disallowed_methods, reason = "the tests' time is tokio's, which is paused")]

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName};
use http::{HeaderMap, Method};
use http_body::{Body as HttpBody, Frame};
use http_body_util::BodyExt;
use proptest::prelude::*;
use reqwest::{Body, Request, ResponseBuilderExt, Url};

use super::*;

mod healthy;
mod items;

/// A body that gives out one step after the other.
struct Script(VecDeque<Step>, Option<Pin<Box<tokio::time::Sleep>>>);

#[derive(Clone, Debug)]
enum Step {
    Data(Vec<u8>),
    Wait(u64),
    Trailers,
    Fail,
    /// What a client's own timeout does to a body.
    TimeOut,
    Stall,
}

impl HttpBody for Script {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<std::io::Result<Frame<Bytes>>>> {
        loop {
            if let Some(sleep) = &mut self.1 {
                ready!(sleep.as_mut().poll(context));
                self.1 = None;
            }
            return Poll::Ready(match self.0.pop_front() {
                None => None,
                Some(Step::Data(data)) => Some(Ok(Frame::data(data.into()))),
                Some(Step::Trailers) => {
                    let mut trailers = HeaderMap::new();
                    trailers.insert("x-sum", "7".parse().unwrap());
                    Some(Ok(Frame::trailers(trailers)))
                }
                Some(Step::Fail) => Some(Err(std::io::Error::other("cut"))),
                Some(Step::TimeOut) => Some(Err(std::io::ErrorKind::TimedOut.into())),
                Some(Step::Wait(millis)) => {
                    let sleep = tokio::time::sleep(Duration::from_millis(millis));
                    self.1 = Some(Box::pin(sleep));
                    continue;
                }
                Some(Step::Stall) => {
                    self.0.push_front(Step::Stall);
                    return Poll::Pending;
                }
            });
        }
    }
}

fn data(text: &str) -> Step {
    Step::Data(text.into())
}

#[derive(Clone, Debug, PartialEq)]
struct Mark(u8);

fn response(status: u16, headers: &[(&str, &str)], steps: impl Into<Vec<Step>>) -> Response {
    let mut response = http::Response::builder()
        .status(status)
        .version(http::Version::HTTP_2)
        .url(Url::parse("https://api.example.com/v1/x?a=1").unwrap())
        .extension(Mark(7));
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    let body = Body::wrap(Script(Vec::from_iter(steps.into()).into(), None));
    response.body(body).unwrap().into()
}

const SSE: (&str, &str) = ("content-type", "text/event-stream; charset=utf-8");
const JSON: (&str, &str) = ("content-type", "application/json");
const HTML: (&str, &str) = ("content-type", "text/html");

fn asked(headers: &[(&str, &str)]) -> Asked {
    let mut request = Request::new(Method::POST, Url::parse("https://a.example/").unwrap());
    for (name, value) in headers {
        request.headers_mut().append(HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
    }
    Asked::of(&request)
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

async fn look(response: Response, settings: &Inspect) -> Inspected {
    look_for(response, asked(&[JSON]), settings).await
}

/// The answer to a request that asks for this.
async fn look_for(response: Response, asked: Asked, settings: &Inspect) -> Inspected {
    let until = now() + Duration::from_secs(600);
    inspect(response, asked, settings, now(), until, &|| ()).await
}

async fn look_at(headers: &[(&str, &str)], steps: impl Into<Vec<Step>>) -> Inspected {
    look(response(200, headers, steps), &Inspect::errors_in_success()).await
}

fn flaw(inspected: &Inspected) -> Option<FlawKind> {
    match inspected {
        Inspected::Failed(_, flaw) => Some(flaw.kind()),
        _ => None,
    }
}

/// What the provider said was wrong.
fn message(inspected: &Inspected) -> Option<&str> {
    match inspected {
        Inspected::Failed(_, flaw) => flaw.cause()?.message.as_deref(),
        _ => None,
    }
}

type Told = Arc<Mutex<Vec<StreamEnd>>>;

fn into_response(inspected: Inspected) -> (Response, Told) {
    let told = Told::default();
    let response = match inspected {
        Inspected::Pass(response) | Inspected::Failed(response, _) => response,
        Inspected::Stream(held) => {
            let told = told.clone();
            held.watched(Box::new(move |end| told.lock().unwrap().push(end)))
        }
    };
    (response, told)
}

/// The chunks of a body, and whether it failed.
async fn chunks(response: &mut Response) -> (Vec<Vec<u8>>, bool) {
    let mut chunks = Vec::new();
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) => chunks.push(chunk.to_vec()),
            Ok(None) => return (chunks, false),
            Err(error) => {
                assert!(error.is_decode(), "{error:?}");
                return (chunks, true);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn finds_an_error_in_a_json_body_and_leaves_the_response_whole() {
    let steps = [data("{\"error\":"), data("{\"message\":\"no\"}}")];
    for kind in ["application/json", "application/problem+json; x=y", "text/plain"] {
        let inspected = look_at(&[("content-type", kind)], steps.clone()).await;
        assert_eq!(flaw(&inspected), Some(FlawKind::Error), "{kind}");
        assert_eq!(message(&inspected), Some("no"), "{kind}");
        let (mut response, _) = into_response(inspected);
        assert_eq!(chunks(&mut response).await.0.len(), 2);
    }
    assert!(flaw(&look_at(&[], steps.clone()).await).is_some());
    // An image is not looked into.
    assert_eq!(flaw(&look_at(&[("content-type", "image/png")], steps).await), None);
}

#[tokio::test(start_paused = true)]
async fn what_is_passed_on_is_as_it_came() {
    let events = [data(": hi\n\n"), data("data: 1\n\nda"), data("ta: 2\n\n"), Step::Trailers];
    let json = [data("{\"a\":"), data("1}"), Step::Trailers];
    for (kind, steps) in [(SSE, &events[..]), (JSON, &json[..]), (JSON, &json[..1])] {
        let inspected = look_at(&[kind, ("x-a", "1"), ("x-a", "2")], steps).await;
        assert_eq!(flaw(&inspected), None);
        let (mut response, _) = into_response(inspected);
        assert_eq!(response.status(), 200);
        assert_eq!(response.version(), http::Version::HTTP_2);
        assert_eq!(response.url().as_str(), "https://api.example.com/v1/x?a=1");
        assert_eq!(response.headers().get_all("x-a").iter().count(), 2);
        assert_eq!(response.extensions().get::<Mark>(), Some(&Mark(7)));
        let body = http::Response::<Body>::from(response).into_body();
        let mut body = std::pin::pin!(body);
        for step in steps {
            let frame = body.frame().await.unwrap().unwrap();
            match step {
                Step::Data(data) => assert_eq!(frame.into_data().unwrap(), data),
                _ => assert_eq!(frame.into_trailers().unwrap()["x-sum"], "7"),
            }
        }
        assert!(body.frame().await.is_none());
        response = http::Response::new("").into();
        let held = response_of_unknown_url().await;
        assert_eq!(held.url(), response.url());
    }
}

async fn response_of_unknown_url() -> Response {
    let mut response = http::Response::new(Body::wrap(Script([data("data: x\n\n")].into(), None)));
    response.headers_mut().insert(CONTENT_TYPE, "text/event-stream".parse().unwrap());
    into_response(look(response.into(), &Inspect::errors_in_success()).await).0
}

#[tokio::test(start_paused = true)]
async fn html_and_emptiness_fail_only_who_did_not_ask_for_them() {
    let page = [data("<html>")];
    let browser = &[("accept", "text/html,application/xhtml+xml,*/*;q=0.8")][..];
    let text = &[("accept", "text/plain")][..];
    for (headers, html, nothing) in [
        (&[][..], false, true),
        (&[JSON][..], false, false),
        (&[("accept", "*/*")], false, true),
        (&[("accept", "application/json")], false, false),
        (&[("accept", "Text/Event-Stream")], false, false),
        (&[("accept", "application/json, text/html;q=0.5")], true, false),
        (browser, true, true),
        (text, true, true),
    ] {
        let asked = asked(headers);
        let (settings, until) = (Inspect::errors_in_success(), now() + Duration::from_secs(9));
        let seen =
            inspect(response(200, &[HTML], page.clone()), asked, &settings, now(), until, &|| ());
        assert_eq!(flaw(&seen.await) != Some(FlawKind::Html), html, "{headers:?}");
        for kind in [&[][..], &[JSON]] {
            for steps in [&[][..], &[data(" \n")]] {
                let seen =
                    inspect(response(200, kind, steps), asked, &settings, now(), until, &|| ());
                assert_eq!(flaw(&seen.await) != Some(FlawKind::Empty), nothing, "{headers:?}");
            }
        }
    }
    let request = Request::new(Method::HEAD, Url::parse("https://a.example/").unwrap());
    assert!(!Asked::of(&request).body);
    for status in [204, 205, 206, 304, 400, 500] {
        let empty = response(status, &[JSON], []);
        assert_eq!(flaw(&look(empty, &Inspect::errors_in_success()).await), None, "{status}");
    }
}

#[tokio::test(start_paused = true)]
async fn encoded_bodies_are_passed_on_unseen() {
    for (encoding, seen) in [("gzip", false), ("br", false), ("identity", true)] {
        for (kind, steps) in [(JSON, data("{\"error\":1}")), (SSE, data("event: error\n\n"))] {
            let inspected = look_at(&[kind, ("content-encoding", encoding)], [steps]).await;
            assert_eq!(flaw(&inspected).is_some(), seen, "{encoding}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_json_body_is_held_back_no_longer_than_it_may_be() {
    let begun = now();
    for (steps, millis) in [
        // What cannot become an object is not waited for.
        (vec![data("[1,"), Step::Stall], 0),
        (vec![data("\u{feff} x"), Step::Stall], 0),
        (vec![Step::Data(vec![b' '; 65_537]), Step::Stall], 0),
        (vec![data("{\"error\":1"), Step::Stall], 10_000),
        (vec![Step::Stall], 10_000),
        (vec![data("{\"a\":1}"), Step::Wait(9_999)], 9_999),
    ] {
        let since = now();
        let inspected = look_at(&[JSON], steps.clone()).await;
        assert_eq!(flaw(&inspected), None, "{steps:?}");
        assert_eq!(now() - since, Duration::from_millis(millis), "{steps:?}");
    }
    // Nor longer than the request may take, however it is set up.
    let settings = Inspect::errors_in_success().time_limit(Duration::MAX);
    let (since, stalled) = (now(), response(200, &[JSON], [data("{"), Step::Stall]));
    let until = since + Duration::from_secs(3);
    let inspected = inspect(stalled, asked(&[]), &settings, begun, until, &|| ()).await;
    assert_eq!(flaw(&inspected), None);
    assert_eq!(now(), until);
}

#[tokio::test(start_paused = true)]
async fn a_body_with_a_length_above_the_limit_is_not_waited_for() {
    let long = format!("{{\"error\":\"{}\"}}", "x".repeat(64 * 1024));
    let response: Response =
        http::Response::builder().header(JSON.0, JSON.1).body(long.clone()).unwrap().into();
    let inspected = look(response, &Inspect::errors_in_success()).await;
    assert_eq!(flaw(&inspected), None);
    assert_eq!(into_response(inspected).0.text().await.unwrap(), long);
}

#[tokio::test(start_paused = true)]
async fn a_body_as_long_as_the_limit_is_looked_into_and_a_longer_one_is_not() {
    let body = "{\"error\":1}";
    for (limit, seen) in [(body.len() - 1, false), (body.len(), true), (body.len() + 1, true)] {
        let settings = Inspect::errors_in_success().max_bytes(limit);
        let known = http::Response::builder().header(JSON.0, JSON.1).body(body).unwrap().into();
        assert_eq!(flaw(&look(known, &settings).await).is_some(), seen, "{limit}");
        let unknown = response(200, &[JSON], [data(body)]);
        assert_eq!(flaw(&look(unknown, &settings).await).is_some(), seen, "{limit}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_of_empty_frames_is_held_for_a_thousand_of_them() {
    let after = |frames| [vec![data(""); frames], vec![data("{\"a\":1}")]].concat();
    assert_eq!(flaw(&look_at(&[JSON], after(1024)).await), None);
    assert_eq!(flaw(&look_at(&[JSON], after(1025)).await), Some(FlawKind::Broken));
}

#[tokio::test(start_paused = true)]
async fn an_empty_body_of_another_kind_fails_only_who_asked_for_data() {
    for (headers, empty) in [(&[][..], false), (&[JSON][..], true)] {
        let builder = http::Response::builder().header("content-type", "image/png");
        let response = builder.body("").unwrap().into();
        let (settings, until) = (Inspect::errors_in_success(), now() + Duration::from_secs(9));
        let seen = inspect(response, asked(headers), &settings, now(), until, &|| ()).await;
        assert_eq!(flaw(&seen) == Some(FlawKind::Empty), empty, "{headers:?}");
    }
}

#[test]
fn a_response_is_held_for_the_longer_of_both_limits() {
    let second = Duration::from_secs(1);
    let inspect = || Inspect::errors_in_success().time_limit(second * 3);
    assert_eq!(inspect().longest_hold(), second * 3);
    assert_eq!(inspect().first_content_timeout(second).longest_hold(), second * 3);
    assert_eq!(inspect().first_content_timeout(second * 5).longest_hold(), second * 5);
}

#[test]
fn every_flaw_is_told_in_other_words() {
    let flaws = [
        FlawKind::Error,
        FlawKind::Empty,
        FlawKind::NoContent,
        FlawKind::Html,
        FlawKind::Ended,
        FlawKind::Broken,
        FlawKind::Silent,
    ];
    let mut words = flaws.map(FlawKind::description);
    words.sort_unstable();
    assert!(words.windows(2).all(|pair| pair[0] != pair[1]) && !words[0].is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_body_that_breaks_before_it_was_understood_fails() {
    for (kind, steps) in [
        (JSON, vec![data("{\"a\":"), Step::Fail]),
        (SSE, vec![data("event: ping\n\ndata: \u{e9}"), Step::Fail]),
        (SSE, vec![Step::Fail]),
    ] {
        let inspected = look_at(&[kind], steps.clone()).await;
        assert_eq!(flaw(&inspected), Some(FlawKind::Broken), "{steps:?}");
        let (chunks, failed) = chunks(&mut into_response(inspected).0).await;
        assert!(failed && chunks.len() == steps.len() - 1, "{steps:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_is_held_back_until_its_first_content() {
    let steps = [
        data("event: ping\n\n"),
        Step::Wait(500),
        data("data: one\n\ndata: t"),
        Step::Wait(700),
        data("wo\n\n"),
    ];
    let since = now();
    let inspected = look_at(&[SSE], steps).await;
    assert_eq!(now() - since, Duration::from_millis(500));
    let (mut response, told) = into_response(inspected);
    assert_eq!(response.chunk().await.unwrap().unwrap(), "event: ping\n\n");
    assert_eq!(response.chunk().await.unwrap().unwrap(), "data: one\n\ndata: t");
    assert_eq!(now() - since, Duration::from_millis(500));
    assert_eq!(response.chunk().await.unwrap().unwrap(), "wo\n\n");
    assert_eq!(now() - since, Duration::from_millis(1200));
    assert!(told.lock().unwrap().is_empty());
    assert_eq!(response.chunk().await.unwrap(), None);
    assert_eq!(*told.lock().unwrap(), [StreamEnd::Complete]);
}

#[tokio::test(start_paused = true)]
async fn a_stream_without_content_fails_or_passes_by_the_limit_it_reaches() {
    let keep_alives = || {
        let steps = std::iter::repeat_n([data(": hi\n\n"), Step::Wait(300)], 1000).flatten();
        steps.chain([data("data: x\n\n")]).collect::<Vec<_>>()
    };
    let defaults = Inspect::errors_in_success;
    let millis = Duration::from_millis;
    for (settings, expected, after) in [
        (defaults(), None, 10_000),
        (defaults().time_limit(millis(50)), None, 50),
        (defaults().first_content_timeout(millis(1000)), Some(FlawKind::Silent), 1000),
        (
            defaults().time_limit(millis(5)).first_content_timeout(millis(1000)),
            Some(FlawKind::Silent),
            1000,
        ),
        (defaults().max_bytes(18).first_content_timeout(millis(1000)), None, 600),
        (defaults().first_content_timeout(Duration::MAX), None, 300_000),
    ] {
        let since = now();
        let inspected = look(response(200, &[SSE], keep_alives()), &settings).await;
        assert_eq!(flaw(&inspected), expected, "{settings:?}");
        assert_eq!(now() - since, millis(after), "{settings:?}");
        drop(inspected);
    }
    // With no time left for another provider, the stream is passed on.
    let settings = defaults().first_content_timeout(millis(1000));
    let stalled = response(200, &[SSE], [Step::Stall]);
    let inspected =
        inspect(stalled, asked(&[]), &settings, now(), now() + millis(400), &|| ()).await;
    assert_eq!(flaw(&inspected), None);
    let stalled = response(200, &[SSE], [Step::Stall]);
    let inspected =
        inspect(stalled, asked(&[]), &settings, now(), now() + millis(1000), &|| ()).await;
    assert_eq!(flaw(&inspected), None, "both end at once");
}

#[tokio::test(start_paused = true)]
async fn a_stream_tells_once_how_it_ended() {
    use StreamEnd::{Complete, Dropped};

    const CHAT: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";
    const STOP: &str = "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";
    const ERROR: &str = "data: {\"error\":1}\n\n";
    let broken = || StreamEnd::Broken(FlawKind::Broken.into());
    for (steps, reads, expected) in [
        (vec![data(CHAT), data("data: [DONE]\n\n")], 3, Complete),
        // Few clients read on after the last event.
        (vec![data(CHAT), data("data: [DONE]\n\n"), Step::Stall], 2, Complete),
        (vec![data(CHAT), data("data: [DONE]\n\n"), Step::Fail], 3, Complete),
        (vec![data(&format!("{CHAT}data: [DONE]\n\n")), Step::Stall], 0, Complete),
        (vec![data(CHAT), data("data: [DONE]")], 3, Complete),
        (vec![data(CHAT), data(STOP), Step::Stall], 2, Complete),
        (vec![data(CHAT), data(STOP), Step::Fail], 3, broken()),
        (vec![data(CHAT), Step::Stall], 1, Dropped),
        (vec![data(CHAT), Step::Stall], 0, Dropped),
        (vec![data(CHAT), data(CHAT)], 1, Dropped),
        (vec![data(CHAT), data(CHAT)], 3, broken()),
        (vec![data(CHAT), Step::Fail], 2, broken()),
        (
            vec![data(CHAT), data(ERROR), Step::Stall],
            2,
            StreamEnd::Broken(Flaw::said(b"{\"error\":1}")),
        ),
        (vec![data("data: x\n\n"), Step::Fail], 2, broken()),
        (vec![data("data: x\n\n"), data("data: y")], 3, Complete),
    ] {
        let (mut response, told) = into_response(look_at(&[SSE], steps.clone()).await);
        for _ in 0..reads {
            let _ = response.chunk().await;
        }
        drop(response);
        assert_eq!(*told.lock().unwrap(), [expected], "{steps:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_knows_the_end_from_the_last_frame_need_not_ask_for_it() {
    let stream = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";
    let response: Response =
        http::Response::builder().header(SSE.0, SSE.1).body(stream).unwrap().into();
    let (response, told) = into_response(look(response, &Inspect::errors_in_success()).await);
    assert_eq!(response.content_length(), Some(stream.len() as u64));
    let mut body = Body::from(response);
    assert!(!body.is_end_stream());
    assert!(body.frame().await.unwrap().unwrap().is_data());
    assert!(body.is_end_stream());
    drop(body);
    assert_eq!(*told.lock().unwrap(), [StreamEnd::Broken(FlawKind::Broken.into())]);
}

#[tokio::test(start_paused = true)]
async fn an_unwatched_stream_is_whole_too() {
    let stream = response(201, &[SSE], [data(":\n"), data("data: x\n\n")]);
    let Inspected::Stream(held) = look(stream, &Inspect::errors_in_success()).await else {
        panic!("no stream");
    };
    assert_eq!(
        (held.status().as_u16(), &held.headers()["content-type"]),
        (201, &SSE.1.parse().unwrap())
    );
    assert_eq!(held.unwatched().text().await.unwrap(), ":\ndata: x\n\n");
}

/// Everything that a caller and the chain see of a body.
type Everything = (Option<String>, Vec<u8>, bool, Vec<StreamEnd>);

fn everything(kind: (&str, &str), settings: &Inspect, steps: Vec<Step>) -> Everything {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        let sent = steps.clone();
        let inspected = look(response(200, &[kind], steps), settings).await;
        let flaw = flaw(&inspected).map(|flaw| format!("{flaw:?}"));
        let (mut response, told) = into_response(inspected);
        let (chunks, failed) = chunks(&mut response).await;
        let sent = sent.into_iter().filter_map(|step| match step {
            Step::Data(data) => Some(data),
            _ => None,
        });
        assert_eq!(chunks, sent.collect::<Vec<_>>());
        drop(response);
        let told = std::mem::take(&mut *told.lock().unwrap());
        (flaw, chunks.concat(), failed, told)
    })
}

proptest! {
    #[test]
    fn any_cut_of_any_body_comes_to_the_same(
        parts in prop::collection::vec(prop_oneof![
            Just(&b"data: {\"choices\":[{\"delta\":{\"role\":\"assistant\"}}]}\n\n"[..]),
            Just(&b"data: {\"choices\":[{\"delta\":{\"content\":\"\xc3\xa9\"}}]}\r\n\r\n"[..]),
            Just(&b"data: {\"error\":{}}\n\n"[..]),
            Just(&b"data: [DONE]\r\r"[..]),
            Just(&b"data: {\"type\":\n"[..]),
            Just(&b"data: \"message_start\"}\n\n"[..]),
            Just(&b"event: ping\n\n"[..]),
            Just(&b": \xff\n\n"[..]),
            Just(&b"\xef\xbb\xbf"[..]),
            Just(&b"{\"error\":"[..]),
            Just(&b"1}"[..]),
            Just(&b"\r"[..]),
            Just(&b"\n"[..]),
            Just(&b"x"[..]),
        ], 0..12),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        events in any::<bool>(),
        fails in any::<bool>(),
        limit in prop_oneof![Just(65_536), 0_usize..200],
    ) {
        let bytes = parts.concat();
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        cuts.dedup();
        let mut cut: Vec<_> =
            cuts.windows(2).map(|cut| Step::Data(bytes[cut[0]..cut[1]].to_vec())).collect();
        let mut uncut = if bytes.is_empty() { vec![] } else { vec![Step::Data(bytes)] };
        if fails {
            cut.push(Step::Fail);
            uncut.push(Step::Fail);
        }
        let settings = Inspect::errors_in_success().max_bytes(limit);
        let kind = if events { SSE } else { JSON };
        prop_assert_eq!(everything(kind, &settings, cut), everything(kind, &settings, uncut));
    }
}
