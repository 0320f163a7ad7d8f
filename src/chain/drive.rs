//! The driver: does what a [`Run`](crate::run::Run) decides for one claimed request, from its
//! arrival to the answer that its caller gets.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::task::Poll;
use std::time::Instant;

use http::Extensions;
use http::header::UPGRADE;
use reqwest::{Body, Request, Response};
use reqwest_middleware::{Error, Next as Rest};
use tokio::time::timeout_at;

use super::Inner;
use super::address::Address;
use super::attempt::{Attempt, Sent};
use super::body::{Pristine, Streamed, is_replayable, poll_timer, read_stream};
use super::call::{Call, Ending, Next, Verdicted};
use super::race::{Finish, Race};
use crate::error::{Cause, Exhausted};
use crate::observe::Trace;
use crate::route::Route;
use crate::verdict::{Reason, Verdict};

/// Sends a claimed request to one provider after the other until one serves it.
///
/// What nearly every request needs, a first attempt that is answered, has a small future of its own;
/// everything else is boxed apart. Nothing is done before it is polled: whoever polls it may do so
/// within a span, or with a value for the task that the user's closures look for.
pub(super) fn drive<'a>(
    chain: &'a Arc<Inner>,
    address: Arc<Address>,
    mut request: Request,
    extensions: &'a mut Extensions,
    next: Rest<'a>,
) -> Answer<'a> {
    if !chain.is_plain || !is_replayable(&request) {
        return Box::pin(drive_any(chain, address, request, extensions, next));
    }
    // An `async` block and no `async fn`, which would hold all that it was given twice.
    Box::pin(async move {
        let mut call = Call::begin(chain, &request);
        if let Err(cause) = call.admit(&address, &request, extensions) {
            return Err(call.fail(cause, extensions));
        }
        let upgrade_asked = request.headers().contains_key(UPGRADE);
        let Next::Send(order) = call.next() else { return Err(call.fail_unasked(extensions)) };
        let pristine = (!order.last).then(|| Pristine::of(&mut request));
        let trace = call.take_off(&order, &address, &request);
        let attempt = Attempt { chain, provider: order.provider, address: &address };
        let (sent, own) = match trace.within(|| attempt.readdress(&mut request)) {
            Err(unsent) => (Sent::Unsent(unsent), Extensions::new()),
            Ok(mut departure) => {
                call.hide(std::mem::take(&mut departure.secrets));
                let own = Own::lend(extensions);
                let answer = {
                    let answer = trace.within(|| next.clone().run(request, &mut *own.extensions));
                    in_time(answer, &trace, order.until).await
                };
                let own = own.take_back();
                match answer {
                    Some(result) => (attempt.receive(&departure, result), own),
                    None => (Sent::TimedOut { departed: true }, own),
                }
            }
        };
        let flight = order.flight;
        let Verdicted { index, verdict, next: following } = {
            // The attempt's span ends here, and not with those that follow.
            let span = trace;
            call.record_outcome(flight, &sent, &span, upgrade_asked)
        };
        if verdict == Verdict::Accept {
            return serve(&mut call, sent, own, flight, extensions);
        }
        let race = Race {
            chain,
            address,
            next,
            extensions: extensions.clone(),
            upgrade_asked,
            stream_failed: None,
            request: None,
            pristine,
        };
        let landed = Landed { index, flight, sent, own };
        finish(call, race, Some(landed), following, extensions).await
    })
}

/// What a middleware returns.
pub(super) type Answer<'a> =
    Pin<Box<dyn Future<Output = reqwest_middleware::Result<Response>> + Send + 'a>>;

/// Waits for an answer within its attempt's span; `None` if there is none by then.
fn in_time<'a>(
    mut answer: Answer<'a>,
    trace: &'a Trace,
    until: Instant,
) -> impl Future<Output = Option<reqwest_middleware::Result<Response>>> + 'a {
    let mut timer = None;
    std::future::poll_fn(move |context| {
        if let Poll::Ready(answer) = trace.within(|| answer.as_mut().poll(context)) {
            return Poll::Ready(Some(answer));
        }
        poll_timer(&mut timer, Some(until), context).map(|()| None)
    })
}

/// An attempt that landed, while it may still be the last.
pub(super) struct Landed {
    pub(super) index: usize,
    pub(super) flight: usize,
    pub(super) sent: Sent,
    pub(super) own: Extensions,
}

/// The caller's extensions, lent to an attempt as its own. They are as before when it is over, also
/// when it is dropped.
struct Own<'a> {
    extensions: &'a mut Extensions,
    before: Option<Extensions>,
}

impl<'a> Own<'a> {
    fn lend(extensions: &'a mut Extensions) -> Self {
        let before = Some(extensions.clone());
        // It is for this chain, and names that another one does not know.
        extensions.remove::<Route>();
        Self { extensions, before }
    }

    /// What the attempt has made of them.
    fn take_back(mut self) -> Extensions {
        std::mem::replace(self.extensions, self.before.take().unwrap_or_default())
    }
}

impl Drop for Own<'_> {
    fn drop(&mut self) {
        if let Some(before) = self.before.take() {
            *self.extensions = before;
        }
    }
}

/// As [`drive`], for requests and chains that may have more to wait for than an answer.
async fn drive_any<'a>(
    chain: &'a Arc<Inner>,
    address: Arc<Address>,
    mut request: Request,
    extensions: &'a mut Extensions,
    next: Rest<'a>,
) -> reqwest_middleware::Result<Response> {
    let mut call = Call::begin(chain, &request);
    if let Err(cause) = call.admit(&address, &request, extensions) {
        return Err(call.fail(cause, extensions));
    }
    let mut stream_failed = None;
    if !is_replayable(&request) {
        stream_failed = match make_replayable(&mut call, &mut request).await {
            Ok(stream_failed) => stream_failed,
            Err(Unread::NoTime) => return Err(call.fail(Cause::NoTime, extensions)),
            Err(Unread::Failed(error)) => {
                call.finish(Ending::CallersFault, extensions);
                return Err(Error::Reqwest(error));
            }
        };
    }
    let race = Race {
        chain,
        address,
        next,
        extensions: extensions.clone(),
        upgrade_asked: request.headers().contains_key(UPGRADE),
        stream_failed,
        request: Some(request),
        pristine: None,
    };
    let first = call.next();
    finish(call, race, None, first, extensions).await
}

/// Runs what is left of a race, and gives the caller what came of it.
fn finish<'a>(
    mut call: Call<'a>,
    mut race: Race<'a>,
    landed: Option<Landed>,
    next: Next,
    extensions: &'a mut Extensions,
) -> Answer<'a> {
    Box::pin(async move {
        match race.run(&mut call, landed, next).await {
            Finish::Served(Landed { sent, own, flight, .. }) => {
                serve(&mut call, sent, own, flight, extensions)
            }
            Finish::Exhausted(Some(landed)) => {
                Box::pin(exhaust(&mut call, landed, extensions)).await
            }
            Finish::Exhausted(None) => Err(call.fail_unasked(extensions)),
            Finish::CallerFailed(error) => {
                call.abandon(Reason::Other);
                call.finish(Ending::CallersFault, extensions);
                Err(error)
            }
        }
    })
}

/// Why a streamed body could not be read.
enum Unread {
    NoTime,
    Failed(reqwest::Error),
}

/// Reads a streamed body into memory, where it fits and failover is possible. Returns the flag that
/// tells whether the caller's stream failed, if it is still a stream.
async fn make_replayable(
    call: &mut Call<'_>,
    request: &mut Request,
) -> Result<Option<Arc<AtomicBool>>, Unread> {
    let Some(body) = request.body_mut().take() else { return Ok(None) };
    let read = read_stream(body, request.headers(), call.replay_limit());
    let streamed = timeout_at(call.deadline().into(), read).await;
    call.tick();
    let (body, failed) = match streamed.map_err(|_| Unread::NoTime)?.map_err(Unread::Failed)? {
        Streamed::Whole(bytes) => (Body::from(bytes), None),
        Streamed::Once(body, failed) => {
            call.forbid_replay();
            (body, Some(failed))
        }
    };
    *request.body_mut() = Some(body);
    Ok(failed)
}

/// Hands the accepted response to the caller.
fn serve(
    call: &mut Call<'_>,
    sent: Sent,
    own: Extensions,
    flight: usize,
    extensions: &mut Extensions,
) -> reqwest_middleware::Result<Response> {
    call.tell_landed();
    let result = match sent {
        Sent::Stream(held) => Some(Ok(call.watch(flight, *held))),
        sent => sent.into_result(),
    };
    let Some(Ok(mut response)) = result else {
        return Err(call.fail(Cause::NothingAccepted, extensions));
    };
    hand_back(extensions, own);
    let report = call.finish(Ending::Served, extensions);
    response.extensions_mut().insert(report);
    Ok(response)
}

/// Hands on what the last provider left, or tells of all of them.
async fn exhaust(
    call: &mut Call<'_>,
    landed: Landed,
    extensions: &mut Extensions,
) -> reqwest_middleware::Result<Response> {
    let Landed { index, sent, own, .. } = landed;
    let outcome = match (call.exhausted_mode(), sent) {
        (Exhausted::LastOutcome, sent) => {
            let shows = |result: &_| matches!(result, Err(error) if call.is_shown_by(error));
            sent.into_result().filter(|result| !shows(result))
        }
        (_, Sent::Response(response)) => {
            call.drain(index, response);
            None
        }
        _ => None,
    };
    if outcome.is_none() {
        finish_drains(call).await;
    }
    call.tell_landed();
    let Some(outcome) = outcome else { return Err(call.fail(Cause::Exhausted, extensions)) };
    hand_back(extensions, own);
    let report = call.finish(Ending::Exhausted, extensions);
    outcome.map(|mut response| {
        response.extensions_mut().insert(report);
        response
    })
}

/// Gives the caller the extensions of the attempt that counts.
fn hand_back(extensions: &mut Extensions, own: Extensions) {
    let route = extensions.remove::<Route>();
    *extensions = own;
    if let Some(route) = route {
        extensions.insert(route);
    }
}

/// Reads the failed bodies to their ends or limits: there is nothing else left to wait for.
async fn finish_drains(call: &mut Call<'_>) {
    let deadline = call.deadline().into();
    let done = std::future::poll_fn(|context| match call.poll_drains(context) {
        true => Poll::Ready(()),
        false => Poll::Pending,
    });
    // What is unread at the deadline is dropped when the call ends.
    let _ = timeout_at(deadline, done).await;
    call.tick();
}
