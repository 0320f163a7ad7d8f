//! A look into a successful response before it is handed over.
//!
//! Aggregators answer 200 and put the error into the body, or open a stream whose first event is
//! one. So a JSON body is held back until it is whole, and an event stream until its first content;
//! only then the response is the caller's. What was held back is handed on as it came, byte for
//! byte and chunk for chunk. Whenever in doubt, and at every limit, the response is passed on: the
//! status said that all is well.
//!
//! `sse` cuts a stream into events and `peek` knows what they mean; both are told bytes and nothing
//! else. Only this file waits.

mod peek;
mod sse;

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, Method, StatusCode};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;
use reqwest::{Body, Request, Response, ResponseBuilderExt, Url};
use tokio::time::timeout_at;

use self::peek::{Peek, Phase, is_error_body};
use crate::health::after;

/// Looks for errors inside successful responses, for
/// [`inspect`](crate::ProviderChainBuilder::inspect).
///
/// A 2xx response fails over if it is
/// - JSON with an `error` at its top, with `"type":"error"`, or a response of the Responses API
///   with `"status":"failed"`;
/// - HTML, where the request did not ask for HTML; or empty, where the request sent or asked for
///   JSON, or asked for a stream;
/// - an event stream with an error, or its end, before any content. Keep-alives, `message_start`,
///   `response.created` and the like, and chunks that only name a role are no content.
///
/// Chat Completions, Responses and Anthropic Messages are understood; a stream of another kind is
/// passed on with its first event that is not an error. After its first content a stream is never
/// replayed, but one that breaks off is reported as [`StreamBroken`](crate::Event::StreamBroken)
/// and counted as its provider's failure.
///
/// The price is that a JSON body, or a stream's preamble, is held back while it is looked into. At
/// each limit below, but for the last, the response is passed on as it is. Compressed bodies are
/// passed on unseen: let the client decompress them (reqwest's features `gzip` and so on).
///
/// ```
/// use std::time::Duration;
/// use reqwest_failover::{Inspect, Provider, ProviderChain};
///
/// let chain = ProviderChain::builder([Provider::cometapi("key-a"), Provider::openai("key-b")])
///     .inspect(Inspect::errors_in_success().first_content_timeout(Duration::from_secs(20)))
///     .build()?;
/// # Ok::<(), reqwest_failover::ConfigError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Inspect {
    max_bytes: usize,
    max_events: usize,
    time_limit: Duration,
    first_content_timeout: Option<Duration>,
}

impl Inspect {
    /// The defaults: 64 KiB, 64 events, 10 s, and no timeout for the first content.
    pub fn errors_in_success() -> Self {
        Self {
            max_bytes: 64 * 1024,
            max_events: 64,
            time_limit: Duration::from_secs(10),
            first_content_timeout: None,
        }
    }

    /// The most that is looked into. A JSON body that is longer is passed on without a look, at once
    /// if it has a `content-length`.
    pub fn max_bytes(mut self, bytes: usize) -> Self {
        self.max_bytes = bytes;
        self
    }

    /// The most events without content that are held back; comments are none.
    pub fn max_events(mut self, events: usize) -> Self {
        self.max_events = events;
        self
    }

    /// The longest that a response is held back after its headers.
    pub fn time_limit(mut self, limit: Duration) -> Self {
        self.time_limit = limit;
        self
    }

    /// How long after its headers an event stream may take to its first content. One that takes
    /// longer **fails over**; for event streams this replaces [`time_limit`](Self::time_limit).
    pub fn first_content_timeout(mut self, timeout: Duration) -> Self {
        self.first_content_timeout = Some(timeout);
        self
    }
}

impl Inspect {
    /// How long a response may be held back after its headers.
    pub(crate) fn longest_hold(&self) -> Duration {
        self.time_limit.max(self.first_content_timeout.unwrap_or_default())
    }
}

/// What a request is content to get back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    /// Any body at all.
    body: bool,
    html: bool,
    nothing: bool,
}

impl Asked {
    pub(crate) fn of(request: &Request) -> Self {
        let accepted = |kinds: &[&str]| mentions(request.headers(), &ACCEPT, kinds);
        let html = accepted(&["html"]);
        let data = accepted(&["json", "event-stream"]);
        let anything =
            !request.headers().contains_key(ACCEPT) || accepted(&["*/*", "application/*"]);
        let sends_json = mentions(request.headers(), &CONTENT_TYPE, &["json"]);
        Self {
            body: !matches!(*request.method(), Method::HEAD | Method::CONNECT),
            html: html || !(data || anything),
            nothing: !(data || anything && sends_json),
        }
    }
}

/// What became of a response that was looked into.
pub(crate) enum Inspected {
    /// It is handed on as it is.
    Pass(Response),
    /// An event stream that has begun well.
    Stream(Box<CommittedStream>),
    /// It is no success. The response is whole all the same, for whoever wants it.
    Failed(Response, Flaw),
}

/// Why a response with a good status is no success.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// It says so: this is the JSON with its error.
    Error(Vec<u8>),
    /// An empty body.
    Empty,
    Html,
    /// A stream that ended before any content.
    Ended,
    /// The transport failed before the body was whole, or the stream had content.
    Broken,
    /// A stream without content for too long.
    Silent,
}

impl Flaw {
    /// An error in these words, without the byte order mark that no JSON parser would skip.
    fn said(words: &[u8]) -> Self {
        Self::Error(words.strip_prefix(MARK).unwrap_or(words).to_vec())
    }

    /// What to tell about it where the provider said nothing.
    pub(crate) fn description(&self) -> &'static str {
        match self {
            Self::Error(_) => "an error in a successful response",
            Self::Empty => "an empty body",
            Self::Html => "HTML where data was asked for",
            Self::Ended => "the stream ended before any content",
            Self::Broken => "the body broke off",
            Self::Silent => "no content in time",
        }
    }
}

/// How a stream ended after its first content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StreamEnd {
    /// As it should.
    Complete,
    /// By an error, a failure of the transport, or without the marker that its API ends with.
    Broken,
    /// The caller dropped it on the way.
    Dropped,
}

/// Told, once, how a stream ended.
pub(crate) type OnEnd = Box<dyn FnOnce(StreamEnd) + Send + Sync>;

/// An event stream whose content has begun.
pub(crate) struct CommittedStream {
    head: Head,
    body: Replay,
    peek: Peek,
}

impl CommittedStream {
    pub(crate) fn status(&self) -> StatusCode {
        self.head.parts.status
    }

    pub(crate) fn headers(&self) -> &HeaderMap {
        &self.head.parts.headers
    }

    /// The response, with a body that tells how it ends.
    pub(crate) fn watched(self, on_end: OnEnd) -> Response {
        let body = Watched { body: self.body, peek: self.peek, on_end: Some(on_end) };
        self.head.with(Body::wrap(body))
    }

    /// The response, for whoever does not care how it ends.
    pub(crate) fn unwatched(self) -> Response {
        self.head.with(Body::wrap(self.body))
    }
}

/// Looks into a response whose headers came at `since`, until at most `until`.
pub(crate) async fn inspect(
    response: Response,
    asked: Asked,
    settings: &Inspect,
    since: Instant,
    until: Instant,
) -> Inspected {
    let bodiless = matches!(
        response.status(),
        StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::PARTIAL_CONTENT
    );
    if !response.status().is_success() || bodiless || !asked.body || is_encoded(response.headers())
    {
        return Inspected::Pass(response);
    }
    match Kind::of(response.headers()) {
        Kind::Events => inspect_events(response, settings, since, until).await,
        Kind::Html if !asked.html => Inspected::Failed(response, Flaw::Html),
        Kind::Json => {
            let until = after(since, settings.time_limit).min(until);
            inspect_json(response, asked, settings.max_bytes, until).await
        }
        Kind::Html | Kind::Other => match response.content_length() {
            Some(0) if !asked.nothing => Inspected::Failed(response, Flaw::Empty),
            _ => Inspected::Pass(response),
        },
    }
}

async fn inspect_json(
    response: Response,
    asked: Asked,
    max_bytes: usize,
    until: Instant,
) -> Inspected {
    if response.content_length().is_some_and(|length| length > max_bytes as u64) {
        return Inspected::Pass(response);
    }
    let (head, body) = Head::cut_off(response);
    let mut body = Replay::of(body);
    let mut read = Vec::new();
    let whole = loop {
        if read.len() > max_bytes || begins_as_no_object(&read) {
            break false;
        }
        match timeout_at(until.into(), body.hold()).await {
            Err(_) => break false,
            Ok(Arrival::Data(data)) => read.extend_from_slice(&data),
            Ok(Arrival::Trailers) => {}
            Ok(Arrival::Failure) => return Inspected::Failed(head.with_held(body), Flaw::Broken),
            Ok(Arrival::End) => break true,
        }
    };
    let response = head.with_held(body);
    if whole && read.trim_ascii().is_empty() && !asked.nothing {
        Inspected::Failed(response, Flaw::Empty)
    } else if whole && is_error_body(&read) {
        Inspected::Failed(response, Flaw::said(&read))
    } else {
        Inspected::Pass(response)
    }
}

async fn inspect_events(
    response: Response,
    settings: &Inspect,
    since: Instant,
    until: Instant,
) -> Inspected {
    let limit = settings.first_content_timeout.unwrap_or(settings.time_limit);
    // When there is no time left for another provider, this one is as good as it gets.
    let may_fail = settings.first_content_timeout.is_some() && after(since, limit) < until;
    let until = after(since, limit).min(until);

    let (head, body) = Head::cut_off(response);
    let mut body = Replay::of(body);
    let mut peek = Peek::new(settings.max_bytes, settings.max_events);
    while *peek.phase() == Phase::Preamble {
        match timeout_at(until.into(), body.hold()).await {
            Err(_) if may_fail => return Inspected::Failed(head.with_held(body), Flaw::Silent),
            Err(_) => break,
            Ok(Arrival::Data(data)) => peek.push(&data),
            Ok(Arrival::Trailers) => {}
            Ok(Arrival::Failure) => return Inspected::Failed(head.with_held(body), Flaw::Broken),
            Ok(Arrival::End) => peek.end(),
        }
    }
    let flaw = match peek.phase() {
        Phase::Refused(said) if said.is_empty() => Flaw::Ended,
        Phase::Refused(said) => Flaw::said(said),
        _ => return Inspected::Stream(Box::new(CommittedStream { head, body, peek })),
    };
    Inspected::Failed(head.with_held(body), flaw)
}

/// What a body is said to be.
enum Kind {
    Events,
    /// JSON, or what may be JSON in disguise.
    Json,
    Html,
    Other,
}

impl Kind {
    fn of(headers: &HeaderMap) -> Self {
        let Some(text) = headers.get(CONTENT_TYPE) else { return Self::Json };
        let text = text.to_str().unwrap_or_default();
        let text = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match text.as_str() {
            "text/event-stream" => Self::Events,
            "text/html" | "application/xhtml+xml" => Self::Html,
            "application/json" | "text/json" | "text/plain" => Self::Json,
            other if other.ends_with("+json") => Self::Json,
            _ => Self::Other,
        }
    }
}

fn is_encoded(headers: &HeaderMap) -> bool {
    let mut encodings = headers.get_all(CONTENT_ENCODING).iter();
    encodings.any(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity"))
}

/// Whether a header's values, in any case, hold one of these.
fn mentions(headers: &HeaderMap, name: &HeaderName, kinds: &[&str]) -> bool {
    headers.get_all(name).iter().any(|value| {
        let value = value.as_bytes().to_ascii_lowercase();
        let holds = |kind: &&str| value.windows(kind.len()).any(|part| part == kind.as_bytes());
        kinds.iter().any(holds)
    })
}

/// A byte order mark in UTF-8.
const MARK: &[u8] = b"\xef\xbb\xbf";

/// Whether this is the beginning of what cannot become an object, and so of nothing to hold back.
fn begins_as_no_object(read: &[u8]) -> bool {
    let text = read.strip_prefix(MARK).unwrap_or(read).trim_ascii_start();
    !matches!(text.first(), None | Some(b'{')) && !MARK.starts_with(text)
}

/// A response without its body.
struct Head {
    url: Url,
    parts: http::response::Parts,
}

impl Head {
    fn cut_off(response: Response) -> (Self, Body) {
        let url = response.url().clone();
        let (parts, body) = http::Response::<Body>::from(response).into_parts();
        (Self { url, parts }, body)
    }

    fn with_held(self, body: Replay) -> Response {
        self.with(body.into_body())
    }

    fn with(mut self, body: Body) -> Response {
        // reqwest keeps a response's URL in a private extension while it is taken apart.
        if let Ok(marked) = http::Response::builder().url(self.url).body(()) {
            self.parts.extensions.extend(marked.into_parts().0.extensions);
        }
        http::Response::from_parts(self.parts, body).into()
    }
}

/// A body of which the beginning was read and is given out again, frame by frame.
struct Replay {
    held: VecDeque<reqwest::Result<Frame<Bytes>>>,
    /// `None` once it has ended.
    rest: Option<Body>,
    /// Frames without data that were thrown away.
    empty: u32,
}

/// What came of a body.
enum Arrival {
    Data(Bytes),
    Trailers,
    Failure,
    End,
}

impl Replay {
    const MOST_EMPTY: u32 = 1024;

    fn of(body: Body) -> Self {
        Self { held: VecDeque::new(), rest: Some(body), empty: 0 }
    }

    /// Waits for the next frame and holds it back.
    async fn hold(&mut self) -> Arrival {
        let Some(rest) = &mut self.rest else { return Arrival::End };
        let Some(frame) = rest.frame().await else {
            self.rest = None;
            return Arrival::End;
        };
        let arrival = match &frame {
            Ok(frame) => frame.data_ref().cloned().map_or(Arrival::Trailers, Arrival::Data),
            Err(_) => Arrival::Failure,
        };
        if matches!(&arrival, Arrival::Data(data) if data.is_empty()) {
            // Nothing to keep, and no end of them is no body.
            self.empty += 1;
            return if self.empty > Self::MOST_EMPTY { Arrival::Failure } else { arrival };
        }
        self.held.push_back(frame);
        arrival
    }

    /// What arrived whole and in one piece needs no wrapping.
    fn into_body(mut self) -> Body {
        if self.rest.is_none() && self.held.len() < 2 {
            match self.held.pop_front().map(|frame| frame.map(Frame::into_data)) {
                None => return Body::from(Bytes::new()),
                Some(Ok(Ok(data))) => return Body::from(data),
                Some(Ok(Err(trailers))) => self.held.push_back(Ok(trailers)),
                Some(Err(error)) => self.held.push_back(Err(error)),
            }
        }
        Body::wrap(self)
    }
}

impl HttpBody for Replay {
    type Data = Bytes;
    type Error = reqwest::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<reqwest::Result<Frame<Bytes>>>> {
        if let Some(frame) = self.held.pop_front() {
            return Poll::Ready(Some(frame));
        }
        let Some(rest) = &mut self.rest else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(rest).poll_frame(context));
        if frame.is_none() {
            self.rest = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.held.is_empty() && self.rest.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let held = self.held.iter().flatten().filter_map(Frame::data_ref);
        let held: u64 = held.map(|data| data.len() as u64).sum();
        let rest = self.rest.as_ref().map_or(SizeHint::with_exact(0), HttpBody::size_hint);
        let mut hint = SizeHint::new();
        hint.set_lower(held.saturating_add(rest.lower()));
        if let Some(upper) = rest.upper().and_then(|upper| upper.checked_add(held)) {
            hint.set_upper(upper);
        }
        hint
    }
}

/// A stream on its way to the caller.
struct Watched {
    body: Replay,
    peek: Peek,
    on_end: Option<OnEnd>,
}

impl Watched {
    fn tell(&mut self, end: StreamEnd) {
        if let Some(on_end) = self.on_end.take() {
            on_end(end);
        }
    }

    /// Tells how the stream ended as soon as that is known.
    fn tell_if_over(&mut self) {
        match self.peek.phase() {
            Phase::Complete => self.tell(StreamEnd::Complete),
            Phase::Broken => self.tell(StreamEnd::Broken),
            _ => {}
        }
    }
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = reqwest::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<reqwest::Result<Frame<Bytes>>>> {
        // What was held back has been looked into.
        let live = self.body.held.is_empty();
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        match &frame {
            Some(Ok(frame)) if live => {
                if let Some(data) = frame.data_ref() {
                    self.peek.push(data);
                }
            }
            Some(Ok(_)) => {}
            // Most likely the caller's own timeout, which includes the body: no news.
            Some(Err(error)) if error.is_timeout() => self.tell(StreamEnd::Dropped),
            Some(Err(_)) => self.tell(StreamEnd::Broken),
            None => self.peek.end(),
        }
        if self.body.held.is_empty() {
            self.tell_if_over();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // Whoever knows the end from the frame before does not ask for it.
        if self.body.is_end_stream() {
            self.peek.end();
        }
        self.tell_if_over();
        let end = if self.peek.may_stop() { StreamEnd::Complete } else { StreamEnd::Dropped };
        self.tell(end);
    }
}

#[cfg(test)]
mod tests;
