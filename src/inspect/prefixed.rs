//! A body of which the beginning was read and is given out again, and a response without its body.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{Extensions, HeaderMap, StatusCode};
use http_body::{Body as HttpBody, Frame, SizeHint};
use reqwest::{Body, Response, ResponseBuilderExt, Url};

/// What was read of a body, then the rest of it, frame by frame as they came.
pub(crate) struct PrefixedBody {
    prefix: VecDeque<reqwest::Result<Frame<Bytes>>>,
    /// `None` once it has ended.
    rest: Option<Body>,
    /// Frames without data that were thrown away.
    empty: u32,
}

/// What came of a body.
pub(crate) enum Arrival {
    Data(Bytes),
    Trailers,
    Failure,
    End,
}

impl PrefixedBody {
    const MOST_EMPTY: u32 = 1024;

    pub(crate) fn of(body: Body) -> Self {
        Self { prefix: VecDeque::new(), rest: Some(body), empty: 0 }
    }

    /// Waits for the next frame and holds it back. Dropping this loses nothing.
    pub(crate) async fn hold(&mut self) -> Arrival {
        std::future::poll_fn(|context| self.poll_hold(context)).await
    }

    /// The same, polled.
    pub(crate) fn poll_hold(&mut self, context: &mut Context<'_>) -> Poll<Arrival> {
        let Some(frame) = ready!(self.poll_rest(context)) else {
            return Poll::Ready(Arrival::End);
        };
        let arrival = match &frame {
            Ok(frame) => frame.data_ref().cloned().map_or(Arrival::Trailers, Arrival::Data),
            Err(_) => Arrival::Failure,
        };
        if matches!(&arrival, Arrival::Data(data) if data.is_empty()) {
            // Nothing to keep, and no end of them is no body.
            self.empty += 1;
            let too_many = self.empty > Self::MOST_EMPTY;
            return Poll::Ready(if too_many { Arrival::Failure } else { arrival });
        }
        self.prefix.push_back(frame);
        Poll::Ready(arrival)
    }

    /// The failure that ended it, if that was held back last.
    pub(crate) fn take_failure(&mut self) -> Option<reqwest::Error> {
        match self.prefix.pop_back() {
            Some(Err(error)) => Some(error),
            Some(frame) => {
                self.prefix.push_back(frame);
                None
            }
            None => None,
        }
    }

    /// The data that is held back.
    pub(crate) fn held(&self) -> impl Iterator<Item = &Bytes> {
        self.prefix.iter().flatten().filter_map(Frame::data_ref)
    }

    /// Whether nothing is held back, so that the next frame has not been looked at.
    pub(super) fn is_live(&self) -> bool {
        self.prefix.is_empty()
    }

    /// Drops what has not arrived.
    pub(super) fn end(&mut self) {
        self.rest = None;
    }

    /// A body that gives out all of it. What arrived whole and in one piece needs no wrapping.
    pub(crate) fn into_body(mut self) -> Body {
        if self.rest.is_none() && self.prefix.len() < 2 {
            match self.prefix.pop_front().map(|frame| frame.map(Frame::into_data)) {
                None => return Body::from(Bytes::new()),
                Some(Ok(Ok(data))) => return Body::from(data),
                Some(Ok(Err(trailers))) => self.prefix.push_back(Ok(trailers)),
                Some(Err(error)) => self.prefix.push_back(Err(error)),
            }
        }
        Body::wrap(self)
    }

    fn poll_rest(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<reqwest::Result<Frame<Bytes>>>> {
        let Some(rest) = &mut self.rest else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(rest).poll_frame(context));
        if frame.is_none() {
            self.rest = None;
        }
        Poll::Ready(frame)
    }
}

impl HttpBody for PrefixedBody {
    type Data = Bytes;
    type Error = reqwest::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<reqwest::Result<Frame<Bytes>>>> {
        match self.prefix.pop_front() {
            Some(frame) => Poll::Ready(Some(frame)),
            None => self.poll_rest(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.prefix.is_empty() && self.rest.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let held: u64 = self.held().map(|data| data.len() as u64).sum();
        let rest = self.rest.as_ref().map_or(SizeHint::with_exact(0), HttpBody::size_hint);
        let mut hint = SizeHint::new();
        hint.set_lower(held.saturating_add(rest.lower()));
        if let Some(upper) = rest.upper().and_then(|upper| upper.checked_add(held)) {
            hint.set_upper(upper);
        }
        hint
    }
}

/// A response without its body.
pub(crate) struct Head {
    url: Url,
    pub(super) parts: http::response::Parts,
}

impl Head {
    pub(crate) fn cut_off(response: Response) -> (Self, Body) {
        let url = response.url().clone();
        let (parts, body) = http::Response::<Body>::from(response).into_parts();
        (Self { url, parts }, body)
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.parts.status
    }

    pub(crate) fn headers(&self) -> &HeaderMap {
        &self.parts.headers
    }

    pub(crate) fn extensions(&self) -> &Extensions {
        &self.parts.extensions
    }

    pub(crate) fn with(mut self, body: Body) -> Response {
        // reqwest keeps a response's URL in a private extension while it is taken apart.
        if let Ok(marked) = http::Response::builder().url(self.url).body(()) {
            self.parts.extensions.extend(marked.into_parts().0.extensions);
        }
        http::Response::from_parts(self.parts, body).into()
    }
}
