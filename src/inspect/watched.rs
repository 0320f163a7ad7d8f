//! A stream after its first content: handed on as it comes, and followed to its end.

use std::error::Error as StdError;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use http_body::{Body as HttpBody, Frame, SizeHint};
use reqwest::{Body, Response};
use tokio::time::{Sleep, sleep_until};

use super::flaw::{Flaw, FlawKind};
use super::peek::{Peek, Phase};
use super::prefixed::{Head, PrefixedBody};
use crate::health::after;

/// How a stream ended after its first content.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum StreamEnd {
    /// As it should.
    Complete,
    /// By an error, a failure of the transport, without the marker that its API ends with, or by
    /// `idle_timeout`.
    Broken(Flaw),
    /// A timeout below this layer cut it: the client's, or the request's, which includes the body. Its
    /// reader had waited in vain for this long by then. Whether that is the stream's fault is for the
    /// rule about silence to say.
    Silent { quiet_for: Duration },
    /// The caller dropped it on the way.
    Dropped,
}

/// Called once, with how a stream ended.
pub(crate) type OnEnd = Box<dyn FnOnce(StreamEnd) + Send + Sync>;

/// An event stream whose content has begun.
pub(crate) struct CommittedStream {
    pub(super) head: Head,
    pub(super) body: PrefixedBody,
    pub(super) peek: Peek,
    pub(super) idle_timeout: Option<Duration>,
}

impl CommittedStream {
    pub(crate) fn status(&self) -> StatusCode {
        self.head.parts.status
    }

    pub(crate) fn headers(&self) -> &HeaderMap {
        &self.head.parts.headers
    }

    /// The response, with a body that says how it ends.
    pub(crate) fn watched(self, on_end: OnEnd) -> Response {
        let body = Watched {
            body: self.body,
            peek: self.peek,
            on_end: Some(on_end),
            quiet_since: None,
            idle: self.idle_timeout.map(|limit| Idle { limit, timer: None }),
        };
        self.head.with(Body::wrap(body))
    }

    /// The response, where it does not matter how it ends.
    pub(crate) fn unwatched(self) -> Response {
        self.head.with(Body::wrap(self.body))
    }
}

/// A stream on its way to the caller.
struct Watched {
    body: PrefixedBody,
    peek: Peek,
    on_end: Option<OnEnd>,
    /// Since when its reader waits. The time that a reader takes between two frames is its own.
    quiet_since: Option<Instant>,
    idle: Option<Idle>,
}

/// The longest silence, and the timer that measures it.
struct Idle {
    limit: Duration,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Watched {
    fn report(&mut self, end: StreamEnd) {
        if let Some(on_end) = self.on_end.take() {
            on_end(end);
        }
    }

    /// Reports how the stream ended as soon as that is known.
    fn report_if_over(&mut self) {
        let end = match self.peek.phase() {
            Phase::Complete => StreamEnd::Complete,
            Phase::Broken(Some(said)) => StreamEnd::Broken(Flaw::said(said)),
            Phase::Broken(None) => StreamEnd::Broken(FlawKind::Broken.into()),
            _ => return,
        };
        self.report(end);
    }

    /// Nothing has arrived. Ready when that has been so for too long.
    fn poll_silence(&mut self, context: &mut Context<'_>) -> Poll<Duration> {
        let begins = self.quiet_since.is_none();
        let since = *self.quiet_since.get_or_insert_with(now);
        // What has had its last event may stay open: nothing is due any more.
        let Some(idle) = self.idle.as_mut().filter(|_| self.on_end.is_some()) else {
            return Poll::Pending;
        };
        let until = after(since, idle.limit).into();
        let timer = idle.timer.get_or_insert_with(|| Box::pin(sleep_until(until)));
        if begins {
            timer.as_mut().reset(until);
        }
        timer.as_mut().poll(context).map(|()| idle.limit)
    }

    fn quiet_for(&self) -> Duration {
        self.quiet_since.map_or(Duration::ZERO, |since| now().saturating_duration_since(since))
    }
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = Box<dyn StdError + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        // What was held back has been looked into.
        let live = self.body.is_live();
        let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) else {
            return self.poll_silence(context).map(|limit| {
                self.body.end();
                self.report(StreamEnd::Broken(FlawKind::Silent.into()));
                let error = format!("the stream was silent for {limit:?}");
                Some(Err(io::Error::new(io::ErrorKind::TimedOut, error).into()))
            });
        };
        match &frame {
            Some(Ok(frame)) if live => {
                if let Some(data) = frame.data_ref() {
                    self.peek.push(data);
                }
            }
            Some(Ok(_)) => {}
            Some(Err(error)) if error.is_timeout() => {
                let quiet_for = self.quiet_for();
                self.report(StreamEnd::Silent { quiet_for });
            }
            Some(Err(_)) => self.report(StreamEnd::Broken(FlawKind::Broken.into())),
            None => self.peek.end(),
        }
        self.quiet_since = None;
        if self.body.is_live() {
            self.report_if_over();
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
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
        // A reader that knows the end from the frame before does not ask for it.
        if self.body.is_end_stream() {
            self.peek.end();
        }
        self.report_if_over();
        let end = if self.peek.may_stop() { StreamEnd::Complete } else { StreamEnd::Dropped };
        self.report(end);
    }
}

#[expect(clippy::disallowed_methods, reason = "a silence is measured where it is waited for")]
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
