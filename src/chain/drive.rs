//! The only loop: does what a [`Run`](crate::run::Run) decides for one claimed request, from its
//! arrival to the answer that its caller gets.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use http::Extensions;
use reqwest::{Body, Request, Response};
use reqwest_middleware::{Error, Next};
use tokio::time::{Sleep, sleep_until, timeout_at};

use super::address::Address;
use super::body::{KeptRequest, Streamed, Upload, is_replayable, read_stream};
use super::flight::{AttemptState, Answer, Flight, Guard, Sender, send};
use super::outcome::AttemptResult;
use super::request::{Dropped, RequestState, Settlement};
use super::shared::Shared;
use crate::error::{Cause, Exhausted};
use crate::inspect::Asked;
use crate::observe::Ending;
use crate::route::Route;
use crate::run::{Settled, Step};

/// Sends a claimed request to one provider after the other until one serves it.
pub(super) async fn drive<'a>(
    shared: &'a Arc<Shared>,
    address: Arc<Address>,
    mut request: Request,
    extensions: &'a mut Extensions,
    next: Next<'a>,
) -> reqwest_middleware::Result<Response> {
    let mut state = RequestState::begin(shared, &request, extensions);
    if address.is_refused() {
        return Err(state.fail(Cause::PathRefused, extensions));
    }
    if let Err(cause) = state.take_route(&request, extensions) {
        return Err(state.fail(cause, extensions));
    }
    let mut upload = None;
    if !is_replayable(&request) {
        upload = match Box::pin(make_replayable(&mut state, &mut request)).await {
            Ok(upload) => upload,
            Err(Unread::NoTime) => return Err(state.fail(Cause::NoTime, extensions)),
            Err(Unread::Failed(error)) => {
                state.finish(Ending::NoNews, extensions);
                return Err(Error::Reqwest(error));
            }
        };
    }
    if let Some(key) = &shared.health_key {
        state.take_key(key, &request);
    }
    let sender = Sender {
        asked: shared.inspect.as_ref().map(|_| Asked::of(&request)),
        deadline: state.run.deadline(),
        shared,
        address,
        next,
        upload,
    };
    let mut attempts = Attempts { request: Some(request), kept: None, extensions };
    let mut flights = Flights { state: &mut state, first: pin!(None), second: None };
    let mut last = None;
    let mut kept = None;
    let mut step = flights.state.next_step();
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
                let permit = Guard::new(shared, permit);
                let trace = flights.state.start_attempt(provider);
                let attempt = AttemptState::new(permit, provider, trace, flights.state.now, until);
                let Some((request, own)) = attempts.next(flights.state, &sender, provider, is_last)
                else {
                    return Err(flights.state.fail_unasked(attempts.extensions));
                };
                flights.add(sender.start(attempt, request, own, send));
                flights.state.run.hedge_at()
            }
            Step::Wait(until) => until,
            Step::Done => break,
        };
        let Some((mut attempt, mut result, own)) = flights.wait(&sender, until).await else {
            flights.state.refresh_now();
            step = flights.state.next_step();
            continue;
        };
        if let AttemptResult::CallerFailed(error) = result {
            flights.state.drop_attempt(attempt, Dropped::CallerFailed);
            flights.drop_all(Dropped::CallerFailed);
            flights.state.finish(Ending::NoNews, attempts.extensions);
            return Err(error);
        }
        let Settlement { settled, step: following, line } =
            flights.state.settle(&mut attempt, &mut result);
        if settled == Settled::Serve {
            flights.drop_all(Dropped::Loser);
        }
        flights.state.record(line);
        let ended = Ended { attempt, result, own };
        match settled {
            Settled::Serve => return serve(flights.state, ended, attempts.extensions),
            Settled::Keep => kept = Some(ended),
            Settled::FailOver => last = Some(ended),
            Settled::ServeKept => {
                let Some(kept) = kept else { break };
                let Ended { attempt, .. } = &kept;
                flights.state.serve_kept(attempt.provider, attempt.started);
                return serve(flights.state, kept, attempts.extensions);
            }
        }
        step = following;
    }
    exhaust(flights.state, last, attempts.extensions)
}

/// An attempt that is over.
struct Ended<'a> {
    attempt: AttemptState<'a>,
    result: AttemptResult,
    own: Extensions,
}

/// What every attempt is made of.
struct Attempts<'e> {
    /// The caller's request, until it is sent.
    request: Option<Request>,
    /// The copy that is kept for another attempt.
    kept: Option<KeptRequest>,
    /// The caller's own: each attempt gets a copy.
    extensions: &'e mut Extensions,
}

impl Attempts<'_> {
    /// The request of the next attempt, as its caller made it, and its extensions.
    fn next(
        &mut self,
        state: &mut RequestState<'_>,
        sender: &Sender<'_>,
        provider: usize,
        is_last: bool,
    ) -> Option<(Request, Extensions)> {
        let request = match self.request.take() {
            Some(mut request) => {
                self.kept = (!is_last).then(|| KeptRequest::of(&mut request));
                request
            }
            None => {
                let kept = if is_last { self.kept.take()? } else { self.kept.clone()? };
                // It is the provider's in the end, and a URL takes long to copy twice.
                let url = sender.target(provider).unwrap_or_else(|| sender.address.caller());
                kept.into_request(url.clone(), state.time_left(), 2)
            }
        };
        let Shared { entries, scope, strip, .. } = &**sender.shared;
        if entries[provider].keeps_caller_auth(sender.address.claimed(scope)) {
            state.secrets.extend(strip.secrets_of(request.headers(), request.url()));
        }
        let mut own = self.extensions.clone();
        // It is for this chain, and has names that another one does not know.
        own.remove::<Route>();
        Some((request, own))
    }
}

/// The attempts in flight: one, or two where one is hedged. Dropping it abandons them.
struct Flights<'s, 'a, F> {
    state: &'s mut RequestState<'a>,
    first: Pin<&'s mut Option<Flight<'a, F>>>,
    second: Option<Pin<Box<Flight<'a, F>>>>,
}

impl<'a, F: Future<Output = Answer>> Flights<'_, 'a, F> {
    fn add(&mut self, flight: Flight<'a, F>) {
        match self.first.is_none() {
            true => self.first.set(Some(flight)),
            false => self.second = Some(Box::pin(flight)),
        }
    }

    /// Waits until an attempt is over, or until then.
    async fn wait(
        &mut self,
        sender: &Sender<'a>,
        until: Option<Instant>,
    ) -> Option<(AttemptState<'a>, AttemptResult, Extensions)> {
        let mut timer: Option<Pin<Box<Sleep>>> = None;
        std::future::poll_fn(|context| {
            if let Some(flight) = self.first.as_mut().as_pin_mut()
                && let Poll::Ready((result, own)) = flight.poll(sender, context)
            {
                let state = self.first.as_mut().as_pin_mut().and_then(Flight::end);
                self.first.set(None);
                return Poll::Ready(state.map(|state| (state, result, own)));
            }
            if let Some(flight) = &mut self.second
                && let Poll::Ready((result, own)) = flight.as_mut().poll(sender, context)
            {
                let state = flight.as_mut().end();
                self.second = None;
                return Poll::Ready(state.map(|state| (state, result, own)));
            }
            let Some(until) = until else { return Poll::Pending };
            let timer = timer.get_or_insert_with(|| Box::pin(sleep_until(until.into())));
            timer.as_mut().poll(context).map(|()| None)
        })
        .await
    }

    fn emit_hedged(&self, to: usize) {
        let first = self.first.as_ref().get_ref().as_ref();
        let silent = first.or(self.second.as_deref());
        if let Some(silent) = silent.and_then(Flight::state) {
            self.state.emit_hedged(silent, to);
        }
    }
}

impl<F> Flights<'_, '_, F> {
    /// Drops the attempts that are in flight. What they hold is free before anything is emitted.
    fn drop_all(&mut self, why: Dropped) {
        let first = self.first.as_mut().as_pin_mut().and_then(Flight::end);
        self.first.set(None);
        let second = self.second.take().and_then(|mut second| second.as_mut().end());
        for attempt in first.into_iter().chain(second) {
            self.state.drop_attempt(attempt, why);
        }
    }
}

impl<F> Drop for Flights<'_, '_, F> {
    fn drop(&mut self) {
        self.drop_all(Dropped::Abandoned);
    }
}

/// Why a streamed body could not be read.
enum Unread {
    NoTime,
    Failed(reqwest::Error),
}

/// Reads a streamed body into memory, where it fits and failover is possible. Returns how the caller's
/// stream is doing, if it is still a stream.
async fn make_replayable(
    state: &mut RequestState<'_>,
    request: &mut Request,
) -> Result<Option<Arc<Upload>>, Unread> {
    let Some(body) = request.body_mut().take() else { return Ok(None) };
    let read = read_stream(body, request.headers(), state.replay_limit());
    let streamed = timeout_at(state.run.deadline().at.into(), read).await;
    state.refresh_now();
    let (body, upload) = match streamed.map_err(|_| Unread::NoTime)?.map_err(Unread::Failed)? {
        Streamed::Whole(bytes) => (Body::from(bytes), None),
        Streamed::Once(body, upload) => {
            state.forbid_replay();
            (body, Some(upload))
        }
    };
    *request.body_mut() = Some(body);
    Ok(upload)
}

/// Hands the accepted response to the caller.
fn serve(
    state: &mut RequestState<'_>,
    ended: Ended<'_>,
    extensions: &mut Extensions,
) -> reqwest_middleware::Result<Response> {
    let Ended { mut attempt, result, own } = ended;
    let result = match (result, attempt.permit.take()) {
        (AttemptResult::Stream(stream), Some(permit)) => {
            let shared = state.shared().clone();
            let key: Option<Box<[u8]>> = state.run.key().map(Into::into);
            let on_end = move |end| shared.end_stream(permit, key.as_deref(), end);
            Some(Ok(stream.watched(Box::new(on_end))))
        }
        (result, _) => result.into_result(),
    };
    let Some(Ok(mut response)) = result else {
        return Err(state.fail(Cause::NothingAccepted, extensions));
    };
    hand_back(extensions, own);
    let report = state.finish(Ending::Served, extensions);
    response.extensions_mut().insert(report);
    Ok(response)
}

/// Hands on what the last provider left, or an error that holds what each of them left.
fn exhaust(
    state: &mut RequestState<'_>,
    last: Option<Ended<'_>>,
    extensions: &mut Extensions,
) -> reqwest_middleware::Result<Response> {
    let Some(Ended { result, own, .. }) = last else { return Err(state.fail_unasked(extensions)) };
    let is_shown = |result: &_| matches!(result, Err(error) if state.is_shown_by(error));
    let outcome = match state.shared().exhausted {
        Exhausted::LastOutcome => result.into_result().filter(|result| !is_shown(result)),
        Exhausted::Error => None,
    };
    let Some(outcome) = outcome else { return Err(state.fail(Cause::Exhausted, extensions)) };
    hand_back(extensions, own);
    let report = state.finish(state.unserved(), extensions);
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
