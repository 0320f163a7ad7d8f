//! The general way through the providers: one attempt after the other, or two at once where one is
//! hedged, with all that an attempt may have to wait for.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;

use http::Extensions;
use reqwest::Request;
use reqwest_middleware::Next as Rest;
use tokio::time::Sleep;

use super::Inner;
use super::address::Address;
use super::attempt::{Attempt, Sent, Trail};
use super::body::{Pristine, poll_timer};
use super::call::{Call, Next, Order, Verdicted};
use super::drive::Landed;
use crate::inspect::{self, Inspected, inspect};
use crate::observe::Event;
use crate::observe::Trace;
use crate::route::Route;
use crate::verdict::Verdict;

/// What every attempt of a request has in common.
pub(super) struct Race<'a> {
    pub(super) chain: &'a Arc<Inner>,
    pub(super) address: Arc<Address>,
    pub(super) next: Rest<'a>,
    /// The caller's own extensions: each attempt gets a copy.
    pub(super) extensions: Extensions,
    pub(super) upgrade_asked: bool,
    /// Raised when the caller's own stream fails.
    pub(super) stream_failed: Option<Arc<AtomicBool>>,
    /// The request, until it is sent, and the copy that is kept for a second attempt.
    pub(super) request: Option<Request>,
    pub(super) pristine: Option<Pristine>,
}

/// How a race ended.
pub(super) enum Finish {
    Served(Landed),
    /// Nobody served; what the last of them left, if anybody was asked.
    Exhausted(Option<Landed>),
    /// The caller's own body broke off.
    CallerFailed(reqwest_middleware::Error),
}

impl<'a> Race<'a> {
    /// Does what the call's run decides, until an attempt serves or nobody is left. `landed` has
    /// failed already.
    pub(super) async fn run(
        &mut self,
        call: &mut Call<'a>,
        mut landed: Option<Landed>,
        mut next: Next,
    ) -> Finish {
        let mut flying: Vec<Flying<'a>> = Vec::new();
        loop {
            let until = match next {
                Next::Send(order) => {
                    if let Some(landed) = landed.take() {
                        leave(call, landed, Some(order.provider)).await;
                    }
                    if let (true, Some(silent)) = (order.hedge, flying.first()) {
                        call.tell_hedged(silent.flight, &order);
                    }
                    // The run orders nothing more after a last attempt.
                    let Some(attempt) = self.launch(call, &order) else {
                        return Finish::Exhausted(None);
                    };
                    flying.push(attempt);
                    next = call.next();
                    continue;
                }
                Next::Wait(until) => until,
                Next::Done => return Finish::Exhausted(landed),
            };
            if let Some(landed) = landed.take() {
                leave(call, landed, None).await;
            }
            let Some((at, (sent, own))) = wait(call, &mut flying, until).await else {
                call.tick();
                next = call.next();
                continue;
            };
            if let Some(token) = flying[at].trail.token() {
                call.hide(token.clone());
            }
            let sent = match (sent, flying[at].asked.take()) {
                (Sent::Response(response), Some(asked)) => {
                    flying[at].look_into(response, asked, own, call);
                    next = call.next();
                    continue;
                }
                (sent, _) => sent,
            };
            let (flight, trace) = flying.swap_remove(at).ground();
            if let Sent::CallerFailed(error) = sent {
                return Finish::CallerFailed(error);
            }
            // An error that is accepted ends the race, but is no answer to be overtaken by.
            let winner = sent.status().and_then(|_| call.sequence(flight));
            let Verdicted { index, verdict, next: following } =
                call.record_outcome(flight, &sent, &trace, self.upgrade_asked);
            let judgement = Landed { index, flight, sent, own };
            if verdict == Verdict::Accept {
                for loser in flying {
                    let departed = loser.trail.has_departed();
                    let (flight, trace) = loser.ground();
                    call.cancel_loser(flight, winner.unwrap_or(0), departed, &trace);
                }
                return Finish::Served(judgement);
            }
            landed = Some(judgement);
            next = following;
        }
    }

    fn attempt(&self, provider: usize) -> Attempt<'_> {
        Attempt { chain: self.chain, provider, address: &self.address }
    }

    /// Begins an attempt.
    fn launch(&mut self, call: &mut Call<'a>, order: &Order) -> Option<Flying<'a>> {
        let mut request = match self.request.take() {
            Some(mut request) => {
                self.pristine = (!order.last).then(|| Pristine::of(&mut request));
                request
            }
            None => {
                let last = order.last.then(|| self.pristine.take()).flatten();
                let pristine = last.or_else(|| self.pristine.clone())?;
                // It is the provider's in the end, and a URL takes long to copy twice.
                let attempt = self.attempt(order.provider);
                let url = attempt.target();
                pristine.into_request(url.unwrap_or_else(|| self.address.caller()).clone())
            }
        };
        let trace = call.take_off(order, &self.address, &request);
        let mut own = self.extensions.clone();
        // It is for this chain, and names that another one does not know.
        own.remove::<Route>();
        let asked = self.chain.inspect.as_ref().map(|_| inspect::Asked::of(&request));
        let trail = Arc::new(Trail::default());
        let (chain, provider) = (self.chain, order.provider);
        let (next, stream_failed) = (self.next.clone(), self.stream_failed.clone());
        // An `async` block, since an `async fn` would hold all that it is given twice.
        let future = Box::pin({
            let (address, trail) = (self.address.clone(), trail.clone());
            async move {
                let attempt = Attempt { chain, provider, address: &address };
                let sent = match attempt.readdress_with_token(&mut request, &trail).await {
                    Ok(departure) => {
                        trail.depart();
                        let result = next.run(request, &mut own).await;
                        attempt.receive(&departure, result)
                    }
                    Err(unsent) => Sent::Unsent(unsent),
                };
                match (sent, stream_failed) {
                    (Sent::Failed(error), Some(flag)) if flag.load(Ordering::Relaxed) => {
                        (Sent::CallerFailed(error), own)
                    }
                    (sent, _) => (sent, own),
                }
            }
        });
        Some(Flying {
            asked,
            future,
            trace,
            trail,
            flight: order.flight,
            until: Some(order.until),
            timer: None,
        })
    }
}

/// An attempt that is under way.
struct Flying<'a> {
    future: Pin<Box<dyn Future<Output = (Sent, Extensions)> + Send + 'a>>,
    trace: Trace,
    trail: Arc<Trail>,
    flight: usize,
    /// What the response is to be held against; `None` if nobody looks into it, or it is looked into.
    asked: Option<inspect::Asked>,
    /// When it is given up.
    until: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Flying<'_> {
    /// Drops what it holds, so that it is free before anybody is told. Returns its flight and span.
    fn ground(self) -> (usize, Trace) {
        (self.flight, self.trace)
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<(Sent, Extensions)> {
        let future = &mut self.future;
        if let Poll::Ready(landed) = self.trace.within(|| future.as_mut().poll(context)) {
            return Poll::Ready(landed);
        }
        poll_timer(&mut self.timer, self.until, context).map(|()| {
            let departed = self.trail.has_departed();
            (Sent::TimedOut { departed }, Extensions::new())
        })
    }
}

impl<'a> Flying<'a> {
    /// Looks for an error inside the response. This is no part of the attempt's time, which ends
    /// with the headers.
    fn look_into(
        &mut self,
        response: reqwest::Response,
        asked: inspect::Asked,
        own: Extensions,
        call: &mut Call<'a>,
    ) {
        let (since, deadline) = (call.tick(), call.deadline());
        let chain = call.chain();
        self.future = Box::pin(async move {
            let Some(settings) = &chain.inspect else { return (Sent::Response(response), own) };
            let on_panic = || chain.observer.emit(&Event::CallbackPanicked { callback: "inspect" });
            let seen = inspect(response, asked, settings, since, deadline, &on_panic).await;
            let sent = match seen {
                Inspected::Pass(response) => Sent::Response(response),
                Inspected::Stream(held) => Sent::Stream(held),
                Inspected::Failed(response, flaw) => Sent::Flawed(response, flaw),
            };
            (sent, own)
        });
        (self.until, self.timer) = (None, None);
    }
}

/// Waits for an attempt, or until then; reads beside it what failed before.
async fn wait(
    call: &mut Call<'_>,
    flying: &mut [Flying<'_>],
    until: Option<Instant>,
) -> Option<(usize, (Sent, Extensions))> {
    let mut timer = None;
    std::future::poll_fn(|context| {
        for (at, attempt) in flying.iter_mut().enumerate() {
            if let Poll::Ready(landed) = attempt.poll(context) {
                return Poll::Ready(Some((at, landed)));
            }
        }
        call.poll_drains(context);
        poll_timer(&mut timer, until, context).map(|()| None)
    })
    .await
}

/// Leaves a failed attempt behind: what it said is read once now, for the log, and then beside the
/// attempts that follow.
async fn leave(call: &mut Call<'_>, landed: Landed, to: Option<usize>) {
    let Landed { index, sent, .. } = landed;
    if let Sent::Response(response) = sent {
        call.drain(index, response);
        std::future::poll_fn(|context| {
            call.poll_drains(context);
            Poll::Ready(())
        })
        .await;
    }
    call.tell_landed();
    if let Some(to) = to {
        call.tell_switched(index, to);
    }
}
