//! Bodies on their way out and on their way in: what is needed to send a request twice, and what is
//! read of a response that failed.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH};
use http::{HeaderMap, Method, Version};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;
use reqwest::{Body, Request, Response, Url};
use tokio::time::{Sleep, sleep_until};

use super::now;
use crate::health::after;
use crate::message::{self, Secrets};
use crate::readdress::KeptHeaders;
use crate::report::Report;

/// The caller's request as it came, but for its URL, for the attempts after the first.
#[derive(Clone)]
pub(super) struct Pristine {
    method: Method,
    headers: KeptHeaders,
    body: Option<Bytes>,
    version: Version,
    timeout: Option<Duration>,
}

impl Pristine {
    /// Keeps a copy. The body must be one that [`is_replayable`]; its bytes are shared.
    pub(super) fn of(request: &mut Request) -> Self {
        let body = request.body_mut().take().map(take_bytes);
        *request.body_mut() = body.clone().map(Body::from);
        Self {
            method: request.method().clone(),
            headers: KeptHeaders::of(request.headers()),
            body,
            version: request.version(),
            timeout: request.timeout().copied(),
        }
    }

    /// A request to this URL that is otherwise as it came.
    pub(super) fn into_request(self, url: Url) -> Request {
        let mut request = Request::new(self.method, url);
        *request.headers_mut() = self.headers.into_map();
        *request.body_mut() = self.body.map(Body::from);
        *request.version_mut() = self.version;
        if self.timeout.is_some() {
            *request.timeout_mut() = self.timeout;
        }
        request
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
    /// It can be sent once. The flag is raised if the caller's stream fails on the way.
    Once(Body, Arc<AtomicBool>),
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
    let mut frames = VecDeque::new();
    let mut rest = Some(body);
    if let Some(declared) = declared.filter(|declared| *declared <= limit) {
        let mut read = BytesMut::new();
        while let Some(body) = &mut rest {
            match body.frame().await.transpose()?.map(Frame::into_data) {
                Some(Ok(data)) => read.extend_from_slice(&data),
                Some(Err(trailers)) => frames.push_back(trailers),
                None => rest = None,
            }
            if read.len() as u64 > declared || !frames.is_empty() {
                break;
            }
        }
        if rest.is_none() && read.len() as u64 == declared && frames.is_empty() {
            return Ok(Streamed::Whole(read.freeze()));
        }
        // Not what was declared: it is sent on as it would have been without this layer.
        frames.push_front(Frame::data(read.freeze()));
    }
    let failed = Arc::new(AtomicBool::new(false));
    let once = Once { read: frames, rest, ended: false, declared, hint, failed: failed.clone() };
    Ok(Streamed::Once(Body::wrap(once), failed))
}

/// What was read of a stream, then the rest of it.
struct Once {
    read: VecDeque<Frame<Bytes>>,
    /// `None` once it has ended.
    rest: Option<Body>,
    /// Whether the end was told.
    ended: bool,
    /// How much is still to come, if the caller said.
    declared: Option<u64>,
    hint: SizeHint,
    failed: Arc<AtomicBool>,
}

impl HttpBody for Once {
    type Data = Bytes;
    type Error = reqwest::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<reqwest::Result<Frame<Bytes>>>> {
        let frame = match (self.read.pop_front(), &mut self.rest) {
            (Some(frame), _) => Some(Ok(frame)),
            (None, Some(rest)) => ready!(Pin::new(rest).poll_frame(context)),
            (None, None) => None,
        };
        let missing = match &frame {
            Some(Ok(frame)) => {
                let length = frame.data_ref().map_or(0, |data| data.len() as u64);
                self.declared = self.declared.map(|declared| declared.saturating_sub(length));
                false
            }
            Some(Err(_)) => true,
            None => self.declared.is_some_and(|declared| declared > 0),
        };
        if missing {
            // A body that breaks off, or ends short of its length, is the caller's own fault.
            self.failed.store(true, Ordering::Relaxed);
        }
        if frame.is_none() {
            self.rest = None;
            self.ended = true;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        // Not before it was asked: only then it is known whether anything is missing, and a client
        // that is not told so waits for an answer to half a request.
        self.ended
    }

    fn size_hint(&self) -> SizeHint {
        self.hint
    }
}

/// The bodies of failed responses, read for their messages and so that their connections return to
/// the pool.
#[derive(Default)]
pub(super) struct Drains {
    active: Vec<Drain>,
}

impl Drains {
    pub(super) fn is_empty(&self) -> bool {
        self.active.is_empty()
    }

    /// Begins to read the body of the attempt with this index.
    pub(super) fn begin(&mut self, attempt: usize, response: Response) {
        // A key inside a compressed body would not be found, so such a body has no message.
        let encoded = response.headers().get(CONTENT_ENCODING);
        // Nor would be a key of a chain that is stacked inside this one.
        let legible = encoded.is_none_or(|encoding| encoding == "identity")
            && Report::of(&response).is_none();
        self.active.push(Drain {
            attempt,
            body: response.into(),
            read: Vec::new(),
            legible,
            until: after(now(), Drain::LONGEST),
            timer: None,
        });
    }

    /// Reads what has arrived; tells each body that was read to its end or its limit to `landed`.
    pub(super) fn poll(&mut self, context: &mut Context<'_>, mut landed: impl FnMut(Drained)) {
        self.active.retain_mut(|drain| match drain.poll(context) {
            Poll::Ready(complete) => {
                landed(drain.take(complete));
                false
            }
            Poll::Pending => true,
        });
    }

    /// Gives up on what has not arrived.
    pub(super) fn give_up(&mut self, landed: impl FnMut(Drained)) {
        self.active.drain(..).map(|mut drain| drain.take(false)).for_each(landed);
    }
}

/// As much of a failed response's body as was read.
pub(super) struct Drained {
    pub(super) attempt: usize,
    read: Vec<u8>,
    complete: bool,
    legible: bool,
}

impl Drained {
    pub(super) fn message(&self, secrets: impl FnOnce() -> Secrets) -> Option<Box<str>> {
        let says_something = self.legible && !self.read.is_empty();
        says_something.then(|| message::of_body(&self.read, self.complete, &secrets())).flatten()
    }
}

/// Polls a timer that is made when it is first needed: what is ready at once needs none.
pub(super) fn poll_timer(
    timer: &mut Option<Pin<Box<Sleep>>>,
    until: Option<Instant>,
    context: &mut Context<'_>,
) -> Poll<()> {
    let Some(until) = until else { return Poll::Pending };
    timer.get_or_insert_with(|| Box::pin(sleep_until(until.into()))).as_mut().poll(context)
}

struct Drain {
    attempt: usize,
    body: Body,
    read: Vec<u8>,
    legible: bool,
    until: Instant,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Drain {
    const LONGEST: Duration = Duration::from_millis(250);
    const LARGEST: usize = 64 * 1024;
    /// What comes without a wait: more would be smaller than any transport makes them.
    const MOST_FRAMES: usize = 4096;

    /// Ready when there is nothing more to read; `true` at the end of the body.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<bool> {
        // A body that is always ready would otherwise never be asked for the time.
        for _ in 0..Self::MOST_FRAMES {
            match Pin::new(&mut self.body).poll_frame(context) {
                Poll::Pending => {
                    let timer = &mut self.timer;
                    return poll_timer(timer, Some(self.until), context).map(|()| false);
                }
                Poll::Ready(None) => return Poll::Ready(true),
                Poll::Ready(Some(Err(_))) => return Poll::Ready(false),
                Poll::Ready(Some(Ok(frame))) => {
                    let data = frame.into_data().unwrap_or_default();
                    if self.read.len() + data.len() > Self::LARGEST {
                        return Poll::Ready(false);
                    }
                    self.read.extend_from_slice(&data);
                }
            }
        }
        Poll::Ready(false)
    }

    fn take(&mut self, complete: bool) -> Drained {
        Drained {
            attempt: self.attempt,
            read: std::mem::take(&mut self.read),
            complete,
            legible: self.legible,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stream_fails_its_caller_only_if_it_ends_short_of_its_length() {
        for (declared, fails) in [("3", false), ("4", true), ("2", false)] {
            let stream = futures_util::stream::iter([Ok::<_, std::io::Error>("abc")]);
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_LENGTH, declared.parse().unwrap());
            match read_stream(Body::wrap_stream(stream), &headers, 0).await.unwrap() {
                Streamed::Once(body, failed) => {
                    assert_eq!(body.collect().await.unwrap().to_bytes(), "abc");
                    assert_eq!(failed.load(Ordering::Relaxed), fails, "{declared} of 3");
                }
                Streamed::Whole(_) => panic!("nothing may be kept"),
            }
        }
    }
}
