//! Bodies on their way out and on their way in: what is needed to send a request twice, and what is
//! read of an answer that failed.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::header::CONTENT_LENGTH;
use http::{Extensions, HeaderMap, Method, Version};
use http_body::{Body as HttpBody, Frame, SizeHint};
use reqwest::{Body, Request, Response, Url};
use tokio::time::timeout_at;

use super::mark;
use super::shared::{Shared, now};
use crate::inspect::{Arrival, Head, PrefixedBody};
use crate::message::Secrets;
use crate::readdress::{KeptHeaders, StripList};
use crate::route::Route;
use crate::run::Limits;

/// The caller's request as it came, without its URL, for the attempts after the first.
#[derive(Clone)]
struct KeptRequest {
    method: Method,
    headers: KeptHeaders,
    body: Option<Bytes>,
    version: Version,
}

impl KeptRequest {
    /// Keeps a copy. The body must be one that [`is_replayable`]; its bytes are shared.
    fn of(request: &mut Request) -> Self {
        let body = request.body_mut().take().map(take_bytes);
        *request.body_mut() = body.clone().map(Body::from);
        Self {
            method: request.method().clone(),
            headers: KeptHeaders::of(request.headers()),
            body,
            version: request.version(),
        }
    }

    /// A request to this URL that is otherwise as it came.
    fn into_request(self, url: Url, timeout: Option<Duration>) -> Request {
        let mut request = Request::new(self.method, url);
        *request.headers_mut() = self.headers.into_map();
        *request.body_mut() = self.body.map(Body::from);
        *request.version_mut() = self.version;
        if timeout.is_some() {
            *request.timeout_mut() = timeout;
        }
        request
    }
}

/// What every attempt is made of.
pub(super) struct Requests {
    source: Source,
}

enum Source {
    /// The caller's request, which is not sent yet.
    Caller(Request),
    /// The copy that is kept for another attempt.
    Kept(KeptRequest),
    /// It was sent, and no copy is kept but of the headers that may carry a secret.
    Sent(KeptHeaders),
}

impl Requests {
    pub(super) fn new(request: Request) -> Self {
        Self { source: Source::Caller(request) }
    }

    /// The caller's request, if it is not sent yet.
    pub(super) fn caller(&self) -> Option<&Request> {
        match &self.source {
            Source::Caller(request) => Some(request),
            _ => None,
        }
    }

    pub(super) fn caller_mut(&mut self) -> Option<&mut Request> {
        match &mut self.source {
            Source::Caller(request) => Some(request),
            _ => None,
        }
    }

    /// The request of the next attempt, as its caller made it, and its extensions, which are a copy of the
    /// caller's. A copy of the request is made with `url`, which is the provider's in the end: a URL takes
    /// long to copy twice.
    #[inline]
    pub(super) fn next<'u>(
        &mut self,
        url: impl FnOnce() -> &'u Url,
        timeout: Option<Duration>,
        is_last: bool,
        extensions: &Extensions,
        strip: &StripList,
    ) -> Option<(Request, Extensions)> {
        let kept = match (&mut self.source, is_last) {
            (Source::Caller(request), false) => Source::Kept(KeptRequest::of(request)),
            (Source::Caller(request), true) => {
                Source::Sent(KeptHeaders::secret_ones(request.headers(), strip))
            }
            (Source::Kept(kept), false) => Source::Kept(kept.clone()),
            (Source::Kept(kept), true) => {
                Source::Sent(KeptHeaders::secret_ones(&kept.headers, strip))
            }
            (Source::Sent(_), _) => return None,
        };
        let request = match std::mem::replace(&mut self.source, kept) {
            Source::Caller(request) => request,
            Source::Kept(kept) => kept.into_request(url().clone(), timeout),
            Source::Sent(_) => return None,
        };
        let mut own = extensions.clone();
        if !own.is_empty() {
            // Both are for this chain: a route has names that another one does not know.
            own.remove::<Route>();
            own.remove::<Limits>();
        }
        mark::set(&mut own);
        Some((request, own))
    }

    /// The chain's secrets, and those that the caller put on the request, whose URL is this. No provider
    /// was given them, unless it forwards them, but a layer below may have seen them elsewhere.
    pub(super) fn secrets(&self, shared: &Shared, url: &Url) -> Secrets {
        let Shared { strip, secrets, last_caller, .. } = shared;
        let of_headers = match &self.source {
            Source::Caller(request) => last_caller.and_of(request.headers(), strip, secrets),
            Source::Kept(kept) => last_caller.and_of(&kept.headers, strip, secrets),
            Source::Sent(headers) => last_caller.and_of(headers, strip, secrets),
        };
        of_headers.and(strip.secrets_of_url(url))
    }
}

/// Gives the caller the extensions of the attempt that counts.
pub(super) fn hand_back(extensions: &mut Extensions, own: Extensions) {
    if extensions.is_empty() {
        *extensions = own;
        mark::remove(extensions);
        return;
    }
    let route = extensions.remove::<Route>();
    let limits = extensions.remove::<Limits>();
    let is_marked = mark::is_set(extensions);
    *extensions = own;
    if !is_marked {
        mark::remove(extensions);
    }
    if let Some(route) = route {
        extensions.insert(route);
    }
    if let Some(limits) = limits {
        extensions.insert(limits);
    }
}

/// Whether the body is in memory, so that it can be sent any number of times.
pub(super) fn is_replayable(request: &Request) -> bool {
    request.body().is_none_or(|body| body.as_bytes().is_some())
}

/// Takes the bytes out of a body that holds them, without copying them.
fn take_bytes(mut body: Body) -> Bytes {
    let mut context = Context::from_waker(Waker::noop());
    match Pin::new(&mut body).poll_frame(&mut context) {
        Poll::Ready(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
        _ => Bytes::new(),
    }
}

/// A streamed body, after as much of it was read as the replay buffer allows.
pub(super) enum Streamed {
    /// It was read to its end and can be sent any number of times.
    Whole(Bytes),
    /// It can be sent once.
    Once(Body, Arc<Upload>),
}

/// Reads a streamed body if its declared length is within `limit`.
pub(super) async fn read_stream(
    body: Body,
    headers: &HeaderMap,
    limit: u64,
) -> reqwest::Result<Streamed> {
    let hint = body.size_hint();
    let declared =
        hint.exact().or_else(|| headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok());
    let mut body = PrefixedBody::of(body);
    if let Some(declared) = declared.filter(|declared| *declared <= limit) {
        let mut length = 0;
        loop {
            match body.hold().await {
                Arrival::Data(data) => length += data.len() as u64,
                Arrival::End if length == declared => return Ok(Streamed::Whole(concat(&body))),
                Arrival::Failure => match body.take_failure() {
                    Some(error) => return Err(error),
                    None => break,
                },
                // Not what was declared: it is sent on as it would have been without this layer.
                Arrival::End | Arrival::Trailers => break,
            }
            if length > declared {
                break;
            }
        }
    }
    let upload = Arc::new(Upload::default());
    let once = UploadBody { body, missing: declared, hint, upload: upload.clone() };
    Ok(Streamed::Once(Body::wrap(once), upload))
}

/// The data that was read of a body.
fn concat(body: &PrefixedBody) -> Bytes {
    let mut held = body.held();
    match (held.next(), held.next()) {
        (None, _) => Bytes::new(),
        (Some(only), None) => only.clone(),
        _ => body
            .held()
            .fold(BytesMut::new(), |mut all, data| {
                all.extend_from_slice(data);
                all
            })
            .freeze(),
    }
}

/// How the caller's own stream is doing while it is sent.
#[derive(Default)]
pub(super) struct Upload {
    failed: AtomicBool,
    pending: Mutex<Pending>,
}

/// The time in which the client waited for the caller's stream.
#[derive(Default)]
struct Pending {
    before: Duration,
    since: Option<Instant>,
}

impl Upload {
    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// For how long the stream was pending since this was last called, and whether it still is.
    pub(super) fn take_pending(&self, now: Instant) -> (Duration, bool) {
        let mut pending = self.lock();
        let before = std::mem::take(&mut pending.before);
        let Some(since) = &mut pending.since else { return (before, false) };
        let current = now.saturating_duration_since(*since);
        *since = now;
        (before.saturating_add(current), true)
    }

    fn set_pending(&self, is_pending: bool) {
        let mut pending = self.lock();
        match (is_pending, pending.since) {
            (true, None) => pending.since = Some(now()),
            (false, Some(since)) => {
                let current = now().saturating_duration_since(since);
                pending.before = pending.before.saturating_add(current);
                pending.since = None;
            }
            _ => {}
        }
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A stream that can be sent once. Its [`Upload`] knows how it is doing.
///
/// It never says that its end is reached, so that it is polled to its end: only then it is known whether
/// anything is missing, and a client that does not know so waits for an answer to half a request.
struct UploadBody {
    body: PrefixedBody,
    /// How much is still to come, if the caller said.
    missing: Option<u64>,
    hint: SizeHint,
    upload: Arc<Upload>,
}

impl HttpBody for UploadBody {
    type Data = Bytes;
    type Error = reqwest::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<reqwest::Result<Frame<Bytes>>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        self.upload.set_pending(polled.is_pending());
        let Poll::Ready(frame) = polled else { return Poll::Pending };
        let has_failed = match &frame {
            Some(Ok(frame)) => {
                let length = frame.data_ref().map_or(0, |data| data.len() as u64);
                self.missing = self.missing.map(|missing| missing.saturating_sub(length));
                false
            }
            Some(Err(_)) => true,
            None => self.missing.is_some_and(|missing| missing > 0),
        };
        if has_failed {
            // A body that fails, or ends short of its length, is the caller's own fault.
            self.upload.failed.store(true, Ordering::Relaxed);
        }
        Poll::Ready(frame)
    }

    fn size_hint(&self) -> SizeHint {
        self.hint
    }
}

/// A failed answer, of whose body a part was read. It can be handed on whole all the same.
pub(super) struct ReadAnswer {
    pub(super) head: Head,
    body: PrefixedBody,
    /// What was read.
    pub(super) read: Bytes,
    /// Whether that is the body to its end.
    pub(super) complete: bool,
}

impl ReadAnswer {
    pub(super) fn new(response: Response) -> Self {
        let (head, body) = Head::cut_off(response);
        Self { head, body: PrefixedBody::of(body), read: Bytes::new(), complete: false }
    }

    /// Reads the body until then, at most 64 KiB, so that it can be looked at and so that its connection
    /// returns to the pool.
    pub(super) async fn read(&mut self, until: Instant) {
        let complete = {
            let mut reading = pin!(self.read_on(until));
            // Mostly all of it is there already, and no timer is needed.
            match poll_fn(|context| Poll::Ready(reading.as_mut().poll(context))).await {
                Poll::Ready(complete) => complete,
                Poll::Pending => timeout_at(until.into(), reading).await.unwrap_or(false),
            }
        };
        self.complete = complete;
        self.read = concat(&self.body);
    }

    /// Returns whether it has read all of it.
    async fn read_on(&mut self, until: Instant) -> bool {
        const LARGEST: usize = 64 * 1024;
        // A body that is always ready would otherwise be read beyond its time.
        let mut length = 0;
        while length <= LARGEST && now() < until {
            match self.body.hold().await {
                Arrival::Data(data) => length += data.len(),
                Arrival::Trailers => {}
                Arrival::Failure => return false,
                Arrival::End => return true,
            }
        }
        false
    }

    pub(super) fn into_response(self) -> Response {
        self.head.with(self.body.into_body())
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn a_stream_fails_its_caller_only_if_it_ends_short_of_its_length() {
        for (declared, fails) in [("3", false), ("4", true), ("2", false)] {
            let stream = futures_util::stream::iter([Ok::<_, std::io::Error>("abc")]);
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_LENGTH, declared.parse().unwrap());
            match read_stream(Body::wrap_stream(stream), &headers, 0).await.unwrap() {
                Streamed::Once(body, upload) => {
                    assert_eq!(body.collect().await.unwrap().to_bytes(), "abc");
                    assert_eq!(upload.has_failed(), fails, "{declared} of 3");
                }
                Streamed::Whole(_) => panic!("nothing may be kept"),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_is_pending_from_when_it_has_nothing_to_when_it_has() {
        let (upload, second) = (Upload::default(), Duration::from_secs(1));
        assert_eq!(upload.take_pending(now()), (Duration::ZERO, false));
        upload.set_pending(true);
        tokio::time::advance(second).await;
        upload.set_pending(true);
        tokio::time::advance(second).await;
        assert_eq!(upload.take_pending(now()), (2 * second, true));
        tokio::time::advance(second).await;
        upload.set_pending(false);
        tokio::time::advance(second).await;
        upload.set_pending(false);
        assert_eq!(upload.take_pending(now()), (second, false), "it went on a second ago");
        assert_eq!(upload.take_pending(now()), (Duration::ZERO, false));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_answer_is_not_read_when_its_time_is_up() {
        let answer = || ReadAnswer::new(http::Response::new("broken").into());
        let mut in_time = answer();
        in_time.read(now() + Duration::from_millis(1)).await;
        assert_eq!((&*in_time.read, in_time.complete), (&b"broken"[..], true));
        let mut late = answer();
        late.read(now()).await;
        assert_eq!((&*late.read, late.complete), (&b""[..], false));
        assert_eq!(late.into_response().bytes().await.unwrap(), "broken");
    }

    #[tokio::test]
    async fn a_body_in_one_piece_is_not_copied() {
        let piece = Bytes::from(vec![b'x'; 100]);
        let mut answer = ReadAnswer::new(http::Response::new(piece.clone()).into());
        answer.read(now() + Duration::from_secs(1)).await;
        assert_eq!(answer.read.as_ptr(), piece.as_ptr());
    }
}
