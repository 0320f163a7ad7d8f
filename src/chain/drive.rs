//! The only loop: does what a [`Run`](crate::run::Run) decides for one claimed request, from its
//! arrival to the answer that its caller gets.

use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use http::Extensions;
use reqwest::{Body, Response};
use reqwest_middleware::Error;
use tokio::time::{Sleep, sleep_until, timeout_at};

use super::attempt::{AttemptState, Guard};
use super::body::{Requests, Streamed, Upload, hand_back, read_stream};
use super::flight::{Flight, Sender};
use super::outcome::AttemptResult;
use super::request::{Dropped, RequestState, Settlement};
use crate::error::{Exhausted, FailureKind};
use crate::health::Permit;
use crate::message::Secrets;
use crate::observe::Ending;
use crate::run::{Settled, Step, Until};

/// Sends a claimed request to one provider after the other until one serves it.
pub(super) fn drive<'a>(
    mut sender: Sender<'a>,
    mut requests: Requests,
    extensions: &'a mut Extensions,
) -> Pin<Box<dyn Future<Output = reqwest_middleware::Result<Response>> + Send + 'a>> {
    // An `async fn` would hold twice what it is given, and `#[async_trait]` once more. What is kept
    // while it waits is kept small: below 1,032 bytes glibc has fast lists for it.
    Box::pin(async move {
        let mut state = RequestState::new(&sender.shared, &requests, extensions);
        let mut step = match state.begin(&sender.address, &requests) {
            Ok(Some(step)) => step,
            Ok(None) => {
                Box::pin(make_replayable(&mut state, &mut sender.upload, &mut requests)).await?;
                state.next_step()
            }
            Err(cause) => return Err(state.fail(cause)),
        };
        let mut flights = Flights::new(&mut state);
        loop {
            let until = match flights.act(step, &sender, &mut requests) {
                ControlFlow::Continue(until) => until,
                ControlFlow::Break(answer) => return answer,
            };
            let over = flights.wait(&sender, until).await;
            step = match flights.settle(over, &sender, &mut requests) {
                ControlFlow::Continue(step) => step,
                ControlFlow::Break(answer) => return answer,
            };
        }
    })
}

/// What the caller gets.
type CallerResult = reqwest_middleware::Result<Response>;

/// An attempt that is over, while it may still be the answer.
struct Ended {
    provider: usize,
    started: Instant,
    result: AttemptResult,
    own: Extensions,
}

/// An attempt that is no longer in flight: where it was, its result, and its extensions.
type Over = (FlightSlot, AttemptResult, Extensions);

/// The attempts in flight: one, or two where one is hedged. Dropping it abandons them.
struct Flights<'s, 'a> {
    state: &'s mut RequestState<'a>,
    first: Option<Flight<'a>>,
    second: Option<Box<Flight<'a>>>,
    /// The one that failed last.
    last: Option<Box<Ended>>,
    /// The one whose answer is accepted if no other one serves.
    kept: Option<Box<Ended>>,
}

impl<'s, 'a> Flights<'s, 'a> {
    fn new(state: &'s mut RequestState<'a>) -> Self {
        Self { state, first: None, second: None, last: None, kept: None }
    }

    /// Does what the run decided. Returns until when to wait, or what the caller gets.
    fn act(
        &mut self,
        step: Step,
        sender: &'a Sender<'_>,
        requests: &mut Requests,
    ) -> ControlFlow<CallerResult, Option<Instant>> {
        match step {
            Step::Send { permit, until, last, hedge, full } => {
                if let Some(full) = full {
                    self.state.emit_at_capacity(*full);
                }
                self.send(permit, until, last, hedge, sender, requests)
            }
            Step::Wait(until) => ControlFlow::Continue(until),
            Step::Done => ControlFlow::Break(self.exhaust(sender, requests)),
        }
    }

    /// Sends an attempt.
    fn send(
        &mut self,
        permit: Permit,
        until: Until,
        is_last: bool,
        is_hedge: bool,
        sender: &'a Sender<'_>,
        requests: &mut Requests,
    ) -> ControlFlow<CallerResult, Option<Instant>> {
        let provider = permit.provider();
        if is_hedge {
            self.emit_hedged(provider);
        } else if self.last.take().is_some() {
            self.state.emit_failed_over(provider);
        }
        if permit.is_probe() {
            self.state.emit_probing(&permit);
        }
        let permit = Guard::new(&sender.shared, permit);
        let trace = self.state.start_attempt(provider);
        let attempt = AttemptState::new(permit, provider, trace, self.state.now, until);
        let url = || sender.target(provider).unwrap_or_else(|| sender.address.caller());
        let strip = &sender.shared.strip;
        let next =
            requests.next(url, self.state.time_left(), is_last, self.state.extensions, strip);
        let Some((request, own)) = next else {
            return ControlFlow::Break(Err(self.state.fail_unasked()));
        };
        self.add(sender.start(attempt, request, own));
        ControlFlow::Continue(self.state.run.hedge_at())
    }

    fn add(&mut self, flight: Flight<'a>) {
        match self.first.is_none() {
            true => self.first = Some(flight),
            false => self.second = Some(Box::new(flight)),
        }
    }

    /// Waits until an attempt is over, or until then.
    fn wait(
        &mut self,
        sender: &'a Sender<'_>,
        until: Option<Instant>,
    ) -> impl Future<Output = Option<Over>> {
        let mut timer: Option<Pin<Box<Sleep>>> = None;
        std::future::poll_fn(move |context| {
            let deadline = self.state.run.deadline();
            if let Some(flight) = &mut self.first
                && let Poll::Ready((result, own)) = flight.poll(sender, &deadline, context)
            {
                return Poll::Ready(Some((FlightSlot::First, result, own)));
            }
            if let Some(flight) = &mut self.second
                && let Poll::Ready((result, own)) = flight.poll(sender, &deadline, context)
            {
                return Poll::Ready(Some((FlightSlot::Second, result, own)));
            }
            let Some(until) = until else { return Poll::Pending };
            let timer = timer.get_or_insert_with(|| Box::pin(sleep_until(until.into())));
            timer.as_mut().poll(context).map(|()| None)
        })
    }

    /// Settles the attempt that is over, if one is. Returns what is next, or what the caller gets.
    fn settle(
        &mut self,
        over: Option<Over>,
        sender: &'a Sender<'_>,
        requests: &mut Requests,
    ) -> ControlFlow<CallerResult, Step> {
        let Some((slot, mut result, own)) = over else {
            self.state.refresh_now();
            return ControlFlow::Continue(self.state.next_step());
        };
        if let AttemptResult::CallerFailed(error) = result {
            self.drop_all(Dropped::CallerFailed);
            if self.state.is_shown_by(&error, &sender.secrets_of_caller(requests)) {
                let failed = self.state.fail(FailureKind::BodyFailed);
                return ControlFlow::Break(Err(failed));
            }
            self.state.finish(Ending::NoNews);
            return ControlFlow::Break(Err(error));
        }
        let flight = match slot {
            FlightSlot::First => self.first.as_mut(),
            FlightSlot::Second => self.second.as_deref_mut(),
        };
        let Some(flight) = flight else {
            return ControlFlow::Break(self.exhaust(sender, requests));
        };
        let of_caller = || sender.secrets_of_caller(requests);
        let Settlement { settled, step, line, changes, provider, started, permit } =
            self.state.settle(&mut flight.state, &mut result, of_caller);
        match slot {
            FlightSlot::First => self.first = None,
            FlightSlot::Second => self.second = None,
        }
        if settled == Settled::Serve {
            self.drop_all(Dropped::Loser);
        }
        self.state.record(line, provider, changes);
        match settled {
            Settled::Serve => {
                let of_caller = || sender.secrets_of_caller(requests);
                return ControlFlow::Break(serve(self.state, result, own, permit, of_caller));
            }
            Settled::Keep => self.kept = Some(Box::new(Ended { provider, started, result, own })),
            Settled::FailOver => {
                self.last = Some(Box::new(Ended { provider, started, result, own }));
            }
            Settled::ServeKept => return ControlFlow::Break(self.serve_kept(sender, requests)),
        }
        ControlFlow::Continue(step)
    }

    #[cold]
    fn serve_kept(&mut self, sender: &Sender<'a>, requests: &mut Requests) -> CallerResult {
        let Some(kept) = self.kept.take() else { return self.exhaust(sender, requests) };
        let Ended { provider, started, result, own } = *kept;
        self.state.serve_kept(provider, started);
        serve(self.state, result, own, None, Secrets::default)
    }

    /// Hands on what the last provider left, or an error that holds what each of them left.
    #[cold]
    fn exhaust(&mut self, sender: &Sender<'a>, requests: &mut Requests) -> CallerResult {
        let state = &mut *self.state;
        let Some(last) = self.last.take() else {
            return Err(state.fail_unasked());
        };
        let Ended { result, own, .. } = *last;
        let is_shown = |result: &_| match result {
            Ok(_) => false,
            Err(error) => state.is_shown_by(error, &sender.secrets_of_caller(requests)),
        };
        let outcome = match state.shared().chain.exhausted {
            Exhausted::LastOutcome => result.into_result().filter(|result| !is_shown(result)),
            Exhausted::Error => None,
        };
        let Some(outcome) = outcome else {
            return Err(state.fail(FailureKind::Exhausted));
        };
        hand_back(state.extensions, own);
        let report = state.finish(state.unserved());
        outcome.map(|mut response| {
            response.extensions_mut().insert(report);
            response
        })
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
enum FlightSlot {
    First,
    Second,
}

impl Drop for Flights<'_, '_> {
    fn drop(&mut self) {
        self.drop_all(Dropped::Abandoned);
    }
}

/// Reads a streamed body into memory, where it fits and failover is possible.
async fn make_replayable(
    state: &mut RequestState<'_>,
    upload_of: &mut Option<Arc<Upload>>,
    requests: &mut Requests,
) -> Result<(), Error> {
    let Some(request) = requests.caller_mut() else { return Ok(()) };
    let Some(body) = request.body_mut().take() else { return Ok(()) };
    let read = read_stream(body, request.headers(), state.replay_limit());
    let streamed = timeout_at(state.run.deadline().at.into(), read).await;
    state.refresh_now();
    let body = match streamed {
        Err(_) => return Err(state.fail(FailureKind::NoTime)),
        Ok(Err(error)) => {
            state.finish(Ending::NoNews);
            return Err(Error::Reqwest(error));
        }
        Ok(Ok(Streamed::Whole(bytes))) => Body::from(bytes),
        Ok(Ok(Streamed::Once(body, upload))) => {
            state.forbid_replay();
            *upload_of = Some(upload);
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
    of_caller: impl FnOnce() -> Secrets,
) -> CallerResult {
    let mut response = match (result, permit) {
        (AttemptResult::Stream(stream), Some(permit)) => {
            let watch = state.watch(permit, &of_caller());
            stream.watched(Box::new(move |end| watch.end(end)))
        }
        (AttemptResult::Response(response), _) => response,
        (result, _) => match result.into_result() {
            Some(Ok(response)) => response,
            _ => return Err(state.fail(FailureKind::NothingAccepted)),
        },
    };
    hand_back(state.extensions, own);
    let report = state.finish(Ending::Served);
    response.extensions_mut().insert(report);
    Ok(response)
}
