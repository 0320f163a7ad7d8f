//! The only loop: does what a [`Run`](crate::run::Run) decides for one claimed request, from its
//! arrival to the answer that its caller gets.

use std::pin::Pin;
use std::task::Poll;
use std::time::Instant;

use http::Extensions;
use reqwest::{Body, Response};
use reqwest_middleware::Error;
use tokio::time::{Sleep, sleep_until, timeout_at};

use super::body::{Requests, Streamed, read_stream};
use super::flight::{AttemptState, Flight, Guard, Sender};
use super::outcome::AttemptResult;
use super::request::{Dropped, RequestState, Settlement};
use crate::error::{Cause, Exhausted};
use crate::health::Permit;
use crate::observe::Ending;
use crate::run::{Settled, Step};

/// Sends a claimed request to one provider after the other until one serves it.
pub(super) fn drive<'a>(
    mut sender: Sender<'a>,
    mut requests: Requests<'a>,
) -> Pin<Box<dyn Future<Output = reqwest_middleware::Result<Response>> + Send + 'a>> {
    // An `async fn` would hold twice what it is given, and `#[async_trait]` once more: 1,900 bytes
    // in place of 1,000, which are 16 moves of a request and an allocation beyond glibc's fast lists.
    Box::pin(async move {
        let (mut state, begun) = RequestState::begin(sender.shared, &sender.address, &requests);
        let begun = match begun.into_step() {
            Ok(step) => step,
            Err(cause) => return Err(state.fail(cause, requests.extensions)),
        };
        let mut step = match begun {
            Some(step) => step,
            None => match Box::pin(make_replayable(&mut state, &mut sender, &mut requests)).await {
                Ok(()) => state.next_step(),
                Err(Unread::NoTime) => return Err(state.fail(Cause::NoTime, requests.extensions)),
                Err(Unread::Failed(error)) => {
                    state.finish(Ending::NoNews, requests.extensions);
                    return Err(Error::Reqwest(error));
                }
            },
        };
        let mut flights = Flights { state: &mut state, first: None, second: None };
        let mut last: Option<Box<Ended>> = None;
        let mut kept: Option<Box<Ended>> = None;
        loop {
            let until = match step {
                Step::Send { permit, until, last: is_last, hedge, full } => {
                    let provider = permit.provider;
                    if let Some(full) = full {
                        flights.state.emit_at_capacity(*full);
                    }
                    if hedge {
                        flights.emit_hedged(provider);
                    } else if last.take().is_some() {
                        flights.state.emit_failed_over(provider);
                    }
                    if permit.is_probe() {
                        flights.state.emit_probing(&permit);
                    }
                    let permit = Guard::new(sender.shared, permit);
                    let trace = flights.state.start_attempt(provider);
                    let attempt =
                        AttemptState::new(permit, provider, trace, flights.state.now, until);
                    let url = || sender.target(provider).unwrap_or_else(|| sender.address.caller());
                    let next = requests.next(url, flights.state.time_left(), is_last);
                    let Some((request, own)) = next else {
                        return Err(flights.state.fail_unasked(requests.extensions));
                    };
                    sender.learn_caller_auth(provider, &request, &mut flights.state.secrets);
                    flights.add(sender.start(attempt, request, own));
                    flights.state.run.hedge_at()
                }
                Step::Wait(until) => until,
                Step::Done => break,
            };
            let Some((slot, mut result, own)) = flights.wait(&sender, until).await else {
                flights.state.refresh_now();
                step = flights.state.next_step();
                continue;
            };
            if let AttemptResult::CallerFailed(error) = result {
                flights.drop_all(Dropped::CallerFailed);
                flights.state.finish(Ending::NoNews, requests.extensions);
                return Err(error);
            }
            let Some(Settlement { settled, step: following, line, provider, started, permit }) =
                flights.settle(slot, &mut result)
            else {
                break;
            };
            if settled == Settled::Serve {
                flights.drop_all(Dropped::Loser);
            }
            flights.state.record(line);
            match settled {
                Settled::Serve => {
                    return serve(flights.state, result, own, permit, &mut requests);
                }
                Settled::Keep => kept = Some(Box::new(Ended { provider, started, result, own })),
                Settled::FailOver => {
                    last = Some(Box::new(Ended { provider, started, result, own }))
                }
                Settled::ServeKept => {
                    let Some(kept) = kept else { break };
                    let Ended { provider, started, result, own } = *kept;
                    flights.state.serve_kept(provider, started);
                    return serve(flights.state, result, own, None, &mut requests);
                }
            }
            step = following;
        }
        exhaust(flights.state, last, &mut requests)
    })
}

/// An attempt that is over, while it may still be the answer.
struct Ended {
    provider: usize,
    started: Instant,
    result: AttemptResult,
    own: Extensions,
}

/// The attempts in flight: one, or two where one is hedged. Dropping it abandons them.
struct Flights<'s, 'a> {
    state: &'s mut RequestState<'a>,
    first: Option<Flight<'a>>,
    second: Option<Box<Flight<'a>>>,
}

impl<'a> Flights<'_, 'a> {
    fn add(&mut self, flight: Flight<'a>) {
        match self.first.is_none() {
            true => self.first = Some(flight),
            false => self.second = Some(Box::new(flight)),
        }
    }

    /// Waits until an attempt is over, or until then.
    fn wait(
        &mut self,
        sender: &Sender<'a>,
        until: Option<Instant>,
    ) -> impl Future<Output = Option<(Slot, AttemptResult, Extensions)>> {
        let mut timer: Option<Pin<Box<Sleep>>> = None;
        std::future::poll_fn(move |context| {
            let deadline = self.state.run.deadline();
            if let Some(flight) = &mut self.first
                && let Poll::Ready((result, own)) = flight.poll(sender, &deadline, context)
            {
                return Poll::Ready(Some((Slot::First, result, own)));
            }
            if let Some(flight) = &mut self.second
                && let Poll::Ready((result, own)) = flight.poll(sender, &deadline, context)
            {
                return Poll::Ready(Some((Slot::Second, result, own)));
            }
            let Some(until) = until else { return Poll::Pending };
            let timer = timer.get_or_insert_with(|| Box::pin(sleep_until(until.into())));
            timer.as_mut().poll(context).map(|()| None)
        })
    }

    /// Settles the attempt that is over, whose place is free then.
    fn settle(&mut self, slot: Slot, result: &mut AttemptResult) -> Option<Settlement> {
        let flight = match slot {
            Slot::First => self.first.as_mut(),
            Slot::Second => self.second.as_deref_mut(),
        };
        let settlement = self.state.settle(&mut flight?.state, result);
        match slot {
            Slot::First => self.first = None,
            Slot::Second => self.second = None,
        }
        Some(settlement)
    }

    fn emit_hedged(&self, to: usize) {
        if let Some(silent) = self.first.as_ref().or(self.second.as_deref()) {
            self.state.emit_hedged(&silent.state, to);
        }
    }

    /// Drops the attempts that are in flight. What they hold is free before anything is emitted.
    #[inline]
    fn drop_all(&mut self, why: Dropped) {
        if self.first.is_some() || self.second.is_some() {
            self.drop_some(why);
        }
    }

    #[cold]
    fn drop_some(&mut self, why: Dropped) {
        if let Some(mut flight) = self.first.take() {
            flight.stop();
            self.state.drop_attempt(&mut flight.state, why);
        }
        if let Some(mut flight) = self.second.take() {
            flight.stop();
            self.state.drop_attempt(&mut flight.state, why);
        }
    }
}

/// Where an attempt is in flight.
#[derive(Clone, Copy)]
enum Slot {
    First,
    Second,
}

impl Drop for Flights<'_, '_> {
    fn drop(&mut self) {
        self.drop_all(Dropped::Abandoned);
    }
}

/// Why a streamed body could not be read.
enum Unread {
    NoTime,
    Failed(reqwest::Error),
}

/// Reads a streamed body into memory, where it fits and failover is possible.
async fn make_replayable(
    state: &mut RequestState<'_>,
    sender: &mut Sender<'_>,
    requests: &mut Requests<'_>,
) -> Result<(), Unread> {
    let Some(request) = requests.caller_mut() else { return Ok(()) };
    let Some(body) = request.body_mut().take() else { return Ok(()) };
    let read = read_stream(body, request.headers(), state.replay_limit());
    let streamed = timeout_at(state.run.deadline().at.into(), read).await;
    state.refresh_now();
    let body = match streamed.map_err(|_| Unread::NoTime)?.map_err(Unread::Failed)? {
        Streamed::Whole(bytes) => Body::from(bytes),
        Streamed::Once(body, upload) => {
            state.forbid_replay();
            sender.upload = Some(upload);
            body
        }
    };
    *request.body_mut() = Some(body);
    state.take_key(request);
    Ok(())
}

/// Hands the accepted response to the caller.
fn serve(
    state: &mut RequestState<'_>,
    result: AttemptResult,
    own: Extensions,
    permit: Option<Permit>,
    requests: &mut Requests<'_>,
) -> reqwest_middleware::Result<Response> {
    let result = match (result, permit) {
        (AttemptResult::Stream(stream), Some(permit)) => {
            let shared = state.shared().clone();
            let key: Option<Box<[u8]>> = state.run.key().map(Into::into);
            let on_end = move |end| shared.end_stream(permit, key.as_deref(), end);
            Some(Ok(stream.watched(Box::new(on_end))))
        }
        (result, _) => result.into_result(),
    };
    let Some(Ok(mut response)) = result else {
        return Err(state.fail(Cause::NothingAccepted, requests.extensions));
    };
    requests.hand_back(own);
    let report = state.finish(Ending::Served, requests.extensions);
    response.extensions_mut().insert(report);
    Ok(response)
}

/// Hands on what the last provider left, or an error that holds what each of them left.
fn exhaust(
    state: &mut RequestState<'_>,
    last: Option<Box<Ended>>,
    requests: &mut Requests<'_>,
) -> reqwest_middleware::Result<Response> {
    let Some(last) = last else { return Err(state.fail_unasked(requests.extensions)) };
    let Ended { result, own, .. } = *last;
    let is_shown = |result: &_| matches!(result, Err(error) if state.is_shown_by(error));
    let outcome = match state.shared().exhausted {
        Exhausted::LastOutcome => result.into_result().filter(|result| !is_shown(result)),
        Exhausted::Error => None,
    };
    let Some(outcome) = outcome else {
        return Err(state.fail(Cause::Exhausted, requests.extensions));
    };
    requests.hand_back(own);
    let report = state.finish(state.unserved(), requests.extensions);
    outcome.map(|mut response| {
        response.extensions_mut().insert(report);
        response
    })
}
