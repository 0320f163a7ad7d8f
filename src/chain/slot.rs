//! A place among the requests that a provider may have at once, which an answer keeps until it is over.
//!
//! Only providers with [`max_in_flight`](crate::Provider::max_in_flight) have places.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use reqwest::Body;

use super::outcome::AttemptResult;
use super::shared::Shared;
use crate::health::Permit;
use crate::inspect::Head;

/// A place that is given back when this is dropped.
pub(super) struct CapacitySlot {
    shared: Arc<Shared>,
    provider: usize,
}

/// Hands the place of a permit on to the body of its answer, which keeps it until it ends or is dropped.
#[cold]
pub(super) fn keep_place(
    shared: &Arc<Shared>,
    permit: Option<&mut Permit>,
    result: AttemptResult,
) -> AttemptResult {
    let Some(permit) = permit else { return result };
    let AttemptResult::Response(response) = result else { return result };
    let (head, body) = Head::cut_off(response);
    if body.is_end_stream() {
        return AttemptResult::Response(head.with(body));
    }
    permit.detach();
    let slot = CapacitySlot { shared: shared.clone(), provider: permit.provider() };
    let body = Body::wrap(SlotBody { body, slot: Some(slot) });
    AttemptResult::Response(head.with(body))
}

impl Drop for CapacitySlot {
    fn drop(&mut self) {
        self.shared.lock().health.leave(self.provider);
    }
}

struct SlotBody {
    body: Body,
    /// `None` once the body has ended.
    slot: Option<CapacitySlot>,
}

impl HttpBody for SlotBody {
    type Data = Bytes;
    type Error = reqwest::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<reqwest::Result<Frame<Bytes>>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        // A reader that knows the end from the last frame does not ask for it.
        let is_over = match &polled {
            Poll::Ready(Some(Ok(_))) => self.body.is_end_stream(),
            Poll::Ready(_) => true,
            Poll::Pending => false,
        };
        if is_over {
            self.slot = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
