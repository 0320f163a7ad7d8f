//! The driver: does what a [`Run`](crate::run::Run) decides for one claimed request, from its
//! arrival to the answer that its caller gets.

use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Poll;
use std::time::Instant;

use http::Extensions;
use http::header::UPGRADE;
use reqwest::{Body, Request, Response};
use reqwest_middleware::{Error, Next};
use tokio::time::{Sleep, sleep_until, timeout_at};

use super::Inner;
use super::address::Address;
use super::attempt::{Attempt, Sent};
use super::body::{Pristine, Streamed, is_replayable, read_stream};
use super::call::{Call, Ending, Order};
use crate::error::{Cause, Exhausted};
#[cfg(feature = "json")]
use crate::inspect::{Asked, Inspect, Inspected, inspect};
use crate::observe::Trace;
use crate::route::Route;
use crate::verdict::{Reason, Verdict};

/// Sends a claimed request to one provider after the other until one serves it.
///
/// What only some requests need is boxed apart: a future is as large as all that it may wait for,
/// and this one is moved for every request.
pub(super) async fn drive(
    chain: &Arc<Inner>,
    address: &Address,
    mut request: Request,
    extensions: &mut Extensions,
    next: Next<'_>,
) -> reqwest_middleware::Result<Response> {
    let mut call = Call::begin(chain, &request);
    if address.is_refused() {
        return Err(call.fail(Cause::PathRefused, extensions));
    }
    if let Err(cause) = call.take_route(&request, extensions) {
        return Err(call.fail(cause, extensions));
    }
    let mut stream_failed = None;
    if !is_replayable(&request) {
        stream_failed = match Box::pin(make_replayable(&mut call, &mut request)).await {
            Ok(stream_failed) => stream_failed,
            Err(Unread::NoTime) => return Err(call.fail(Cause::NoTime, extensions)),
            Err(Unread::Failed(error)) => {
                call.finish(Ending::CallersFault, extensions);
                return Err(Error::Reqwest(error));
            }
        };
    }
    let upgrade_asked = request.headers().contains_key(UPGRADE);

    let mut first = Some(request);
    let mut pristine: Option<Pristine> = None;
    let mut landed: Option<Landed> = None;
    let mut order = call.first_order();
    while let Some(Order { provider, until, last }) = order {
        if let Some(Landed { index, sent, .. }) = landed.take() {
            Box::pin(leave(&mut call, index, sent, provider)).await;
        }
        let request = match (first.take(), &pristine) {
            (Some(mut request), _) => {
                pristine = (!last).then(|| Pristine::of(&mut request));
                request
            }
            (None, Some(pristine)) => pristine.request(address),
            // The run orders nothing more after a last attempt.
            (None, None) => break,
        };
        let trace = call.take_off(provider, address, &request);
        let mut own = extensions.clone();
        // It is for this chain, and names that another one does not know.
        own.remove::<Route>();
        #[cfg(feature = "json")]
        let asked = chain.inspect.as_ref().map(|settings| (settings, Asked::of(&request)));
        let (departed, given) = (AtomicBool::new(false), OnceLock::new());
        let stream_failed = stream_failed.clone();
        let attempt =
            Attempt { chain, provider, address, stream_failed, departed: &departed, given: &given };
        let sent = {
            let attempt = pin!(attempt.send(request, &mut own, next.clone()));
            wait(&mut call, &trace, attempt, until).await.unwrap_or_else(|TimeIsUp| {
                Sent::TimedOut { departed: departed.load(Ordering::Relaxed) }
            })
        };
        if let Some(token) = given.into_inner() {
            call.hide(token);
        }
        #[cfg(feature = "json")]
        let sent = match (sent, asked) {
            (Sent::Response(response), Some((settings, asked))) => {
                Box::pin(look_into(&mut call, response, asked, settings)).await
            }
            (sent, _) => sent,
        };
        if let Sent::CallerFailed(error) = sent {
            call.abandon(Reason::Other);
            call.finish(Ending::CallersFault, extensions);
            return Err(error);
        }
        let (index, verdict, following) = call.land(&sent, &trace, upgrade_asked);
        let landing = Landed { index, sent, own };
        if verdict == Verdict::Accept {
            return serve(&mut call, landing, extensions);
        }
        landed = Some(landing);
        order = following;
    }
    match landed {
        Some(landed) => Box::pin(exhaust(&mut call, landed, extensions)).await,
        None => {
            let cause = if call.is_late() { Cause::NoTime } else { Cause::NobodyToAsk };
            Err(call.fail(cause, extensions))
        }
    }
}

/// An attempt that landed, while it may still be the last.
struct Landed {
    index: usize,
    sent: Sent,
    own: Extensions,
}

/// An attempt took too long.
struct TimeIsUp;

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

/// Waits for the attempt until its time is up, and reads beside it what failed before.
async fn wait(
    call: &mut Call<'_>,
    trace: &Trace,
    mut attempt: Pin<&mut impl Future<Output = Sent>>,
    until: Instant,
) -> Result<Sent, TimeIsUp> {
    let mut timer = pin!(None::<Sleep>);
    std::future::poll_fn(|context| {
        if let Poll::Ready(sent) = trace.within(|| attempt.as_mut().poll(context)) {
            return Poll::Ready(Ok(sent));
        }
        call.poll_drains(context);
        // An attempt that is answered at once needs no timer.
        if timer.is_none() {
            timer.set(Some(sleep_until(until.into())));
        }
        match timer.as_mut().as_pin_mut() {
            Some(timer) => timer.poll(context).map(|()| Err(TimeIsUp)),
            None => Poll::Pending,
        }
    })
    .await
}

/// Looks for an error inside a response, and reads beside it what failed before. This is no part of
/// the attempt's time, which ends with the headers.
#[cfg(feature = "json")]
async fn look_into(
    call: &mut Call<'_>,
    response: Response,
    asked: Asked,
    settings: &Inspect,
) -> Sent {
    let since = call.tick();
    let mut looking = pin!(inspect(response, asked, settings, since, call.deadline()));
    let inspected = std::future::poll_fn(|context| {
        call.poll_drains(context);
        looking.as_mut().poll(context)
    });
    match inspected.await {
        Inspected::Pass(response) => Sent::Response(response),
        Inspected::Stream(held) => Sent::Stream(held),
        Inspected::Failed(response, flaw) => Sent::Flawed(response, flaw),
    }
}

/// Leaves a failed attempt behind for another provider: what it said is read once now, for the log,
/// and then beside the next attempt.
async fn leave(call: &mut Call<'_>, index: usize, sent: Sent, to: usize) {
    if let Sent::Response(response) = sent {
        call.drain(index, response);
        std::future::poll_fn(|context| {
            call.poll_drains(context);
            Poll::Ready(())
        })
        .await;
    }
    call.tell_finished(index);
    call.tell_switched(index, to);
}

/// Hands the accepted response to the caller.
fn serve(
    call: &mut Call<'_>,
    landed: Landed,
    extensions: &mut Extensions,
) -> reqwest_middleware::Result<Response> {
    let Landed { index, sent, own } = landed;
    call.tell_finished(index);
    let result = match sent {
        #[cfg(feature = "json")]
        Sent::Stream(held) => Some(Ok(call.watch(*held))),
        sent => sent.into_result(),
    };
    let Some(Ok(mut response)) = result else {
        return Err(call.fail(Cause::NothingAccepted, extensions));
    };
    hand_back(extensions, own);
    call.finish(Ending::Served, extensions);
    response.extensions_mut().insert(call.report().clone());
    Ok(response)
}

/// Hands on what the last provider left, or tells of all of them.
async fn exhaust(
    call: &mut Call<'_>,
    landed: Landed,
    extensions: &mut Extensions,
) -> reqwest_middleware::Result<Response> {
    let Landed { index, sent, own } = landed;
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
    call.tell_finished(index);
    let Some(outcome) = outcome else { return Err(call.fail(Cause::Exhausted, extensions)) };
    hand_back(extensions, own);
    call.finish(Ending::Exhausted, extensions);
    outcome.map(|mut response| {
        response.extensions_mut().insert(call.report().clone());
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
