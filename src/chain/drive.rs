//! The driver: one claimed request, from its arrival to the answer that its caller gets.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::header::UPGRADE;
use http::{Extensions, Method};
use reqwest::{Body, Request, Response};
use reqwest_middleware::{Error, Next};
use tokio::time::{Sleep, sleep_until, timeout_at};

use super::attempt::{Attempt, Sent};
use super::body::{Drains, Pristine, Streamed, is_replayable, read_stream};
use super::{Inner, Shared, now};
use crate::error::{Cause, Exhausted, FailoverError};
use crate::health::{Change, Ticket};
use crate::message;
use crate::observe::Event;
use crate::readdress::{Claim, hides_dot_segment};
use crate::report::{self, Report};
use crate::route::Route;
use crate::run::{Ambiguous, Landing, Run, Step};
use crate::verdict::{Fault, Reason, Verdict};

/// Sends a claimed request to one provider after the other until one serves it.
pub(super) async fn drive(
    chain: &Inner,
    claim: Claim,
    mut request: Request,
    extensions: &mut Extensions,
    next: Next<'_>,
) -> reqwest_middleware::Result<Response> {
    let mut call = Call::begin(chain, &request);
    if claim.suffix(request.url()).is_none_or(hides_dot_segment) {
        return Err(call.fail(Cause::PathRefused, extensions));
    }
    if let Err(cause) = call.take_route(&request, extensions) {
        return Err(call.fail(cause, extensions));
    }
    let stream_failed = match call.make_replayable(&mut request).await {
        Ok(stream_failed) => stream_failed,
        Err(Unread::NoTime) => return Err(call.fail(Cause::NoTime, extensions)),
        Err(Unread::Failed(error)) => {
            call.finish(Ending::CallersFault, extensions);
            return Err(Error::Reqwest(error));
        }
    };
    let upgrade_asked = request.headers().contains_key(UPGRADE);

    let mut first = Some(request);
    let mut pristine: Option<Pristine> = None;
    let mut landed: Option<Landed> = None;
    let mut order = call.step();
    while let Some(Order { provider, until, last }) = order {
        if let Some(Landed { index, sent, .. }) = landed.take() {
            call.leave(index, sent, provider).await;
        }
        let request = match (first.take(), &pristine) {
            (Some(mut request), _) => {
                pristine = (!last).then(|| Pristine::of(&mut request));
                request
            }
            (None, Some(pristine)) => pristine.request(),
            // The run orders nothing more after a last attempt.
            (None, None) => break,
        };
        call.take_off(provider, claim, &request);
        let mut own = extensions.clone();
        let attempt = Attempt { chain, provider, claim, stream_failed: stream_failed.clone() };
        let sent = call.wait(attempt.send(request, &mut own, next.clone()), until).await;
        if let Sent::CallerFailed(error) = sent {
            call.abandon(Reason::Other);
            call.finish(Ending::CallersFault, extensions);
            return Err(error);
        }
        let (index, verdict, following) = call.land(&sent, upgrade_asked);
        if verdict == Verdict::Accept {
            return call.serve(index, sent, own, extensions);
        }
        landed = Some(Landed { index, sent, own });
        order = following;
    }
    match landed {
        Some(landed) => call.exhaust(landed, extensions).await,
        None => {
            let late = now() >= call.run.deadline();
            let cause = if late { Cause::NoTime } else { Cause::NobodyToAsk };
            Err(call.fail(cause, extensions))
        }
    }
}

/// An attempt that the run wants made.
struct Order {
    provider: usize,
    until: Instant,
    last: bool,
}

/// A failed attempt, while it may still be the last.
struct Landed {
    index: usize,
    sent: Sent,
    own: Extensions,
}

/// Why a streamed body could not be read.
enum Unread {
    NoTime,
    Failed(reqwest::Error),
}

/// How a call ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ending {
    Served,
    Exhausted,
    /// Refused, abandoned, or broken off by the caller: no news about the providers.
    CallersFault,
}

/// A claimed request's state. Dropping it gives back whatever it holds.
struct Call<'a> {
    chain: &'a Inner,
    run: Run,
    report: Report,
    started: Instant,
    flight: Option<Flight>,
    drains: Drains,
    /// The caller's own credentials, where a provider is given them.
    callers_secrets: Vec<String>,
    replayable: bool,
    counted: bool,
    finished: bool,
}

/// The attempt that is under way.
struct Flight {
    ticket: Ticket,
    since: Instant,
}

impl<'a> Call<'a> {
    fn begin(chain: &'a Inner, request: &Request) -> Self {
        let started = now();
        let order = chain.lock().order.clone();
        let idempotent = chain.limits.ambiguous == Ambiguous::FailOver || is_idempotent(request);
        Self {
            chain,
            run: Run::new(order, &chain.limits, idempotent, started),
            report: Report::new(),
            started,
            flight: None,
            drains: Drains::default(),
            callers_secrets: Vec::new(),
            replayable: true,
            counted: false,
            finished: false,
        }
    }

    /// Applies the request's own route: the extension, else the closure's.
    fn take_route(&mut self, request: &Request, extensions: &Extensions) -> Result<(), Cause> {
        let chain = self.chain;
        let asked = || {
            let route = chain.route.as_ref()?;
            chain.observer.guard("route", || route(request)).flatten()
        };
        let Some(route) = extensions.get::<Route>().cloned().or_else(asked) else { return Ok(()) };
        self.run
            .reorder(|order| route.resolve(order, |name| chain.find(name), || chain.names()))?;
        if route.forbids_failover() {
            self.run.forbid_failover();
        }
        Ok(())
    }

    /// Reads a streamed body into memory, where it fits and failover is possible. Returns the flag
    /// that tells whether the caller's stream failed, if it is still a stream.
    async fn make_replayable(
        &mut self,
        request: &mut Request,
    ) -> Result<Option<Arc<AtomicBool>>, Unread> {
        if is_replayable(request) {
            return Ok(None);
        }
        let Some(body) = request.body_mut().take() else { return Ok(None) };
        let may_fail_over = self.run.may_fail_over(&self.chain.lock().board, now());
        let limit = if may_fail_over { self.chain.replay_buffer } else { 0 };
        let read = read_stream(body, request.headers(), limit);
        let streamed = timeout_at(self.run.deadline().into(), read).await;
        let (body, failed) = match streamed.map_err(|_| Unread::NoTime)?.map_err(Unread::Failed)? {
            Streamed::Whole(bytes) => (Body::from(bytes), None),
            Streamed::Once(body, failed) => {
                self.run.forbid_replay();
                self.replayable = false;
                (body, Some(failed))
            }
        };
        *request.body_mut() = Some(body);
        Ok(failed)
    }

    /// Asks the run what to do first.
    fn step(&mut self) -> Option<Order> {
        let chain = self.chain;
        let now = now();
        let order = self.next_order(&mut chain.lock(), now);
        self.announce();
        order
    }

    /// Asks the run what to do next and takes the ticket for it.
    fn next_order(&mut self, shared: &mut Shared, now: Instant) -> Option<Order> {
        match self.run.step(&self.chain.limits, &mut shared.board, now) {
            Step::Send { ticket, until, last } => {
                let provider = ticket.provider;
                self.flight = Some(Flight { ticket, since: now });
                Some(Order { provider, until, last })
            }
            Step::Wait | Step::Done => None,
        }
    }

    /// Tells that the attempt under way is a probe, if it is.
    fn announce(&self) {
        if let Some(flight) = self.flight.as_ref().filter(|flight| flight.ticket.is_probe()) {
            let provider = &self.chain.entries[flight.ticket.provider].name;
            self.chain.observer.emit(&Event::BreakerProbing { provider });
        }
    }

    fn take_off(&mut self, provider: usize, claim: Claim, request: &Request) {
        let Inner { entries, scope, strip, observer, .. } = self.chain;
        let entry = &entries[provider];
        let number = self.report.attempts().len() + 1;
        observer.emit(&Event::AttemptStarted { provider: &entry.name, number });
        if entry.keeps_caller_auth(scope.base(claim.base)) {
            self.callers_secrets.extend(strip.secrets_of(request));
        }
    }

    /// Waits for the attempt until its time is up, and reads beside it what failed before.
    async fn wait(&mut self, attempt: impl Future<Output = Sent>, until: Instant) -> Sent {
        let mut attempt = pin!(attempt);
        let mut timer = pin!(None::<Sleep>);
        std::future::poll_fn(|context| {
            if let Poll::Ready(sent) = attempt.as_mut().poll(context) {
                return Poll::Ready(sent);
            }
            self.poll_drains(context);
            // Most attempts over a network come this far once; those that do not need no timer.
            if timer.is_none() {
                timer.set(Some(sleep_until(until.into())));
            }
            match timer.as_mut().as_pin_mut() {
                Some(timer) => timer.poll(context).map(|()| Sent::TimedOut),
                None => Poll::Pending,
            }
        })
        .await
    }

    /// Judges an outcome, moves the provider's health by it, and asks the run what is next. Returns
    /// the attempt's index in the report.
    fn land(&mut self, sent: &Sent, upgrade_asked: bool) -> (usize, Verdict, Option<Order>) {
        let chain = self.chain;
        let Some(flight) = self.flight.take() else {
            return (0, Verdict::FailOver(Fault::None), None);
        };
        let landed_at = now();
        let provider = flight.ticket.provider;
        let name = &chain.entries[provider].name;
        let elapsed = landed_at.saturating_duration_since(flight.since);
        // The ticket stays where dropping finds it while the user's closure has its say.
        self.flight = Some(flight);
        let (mut verdict, mut attempt) =
            (Verdict::FailOver(Fault::None), self.attempt(provider, elapsed));
        attempt.status = sent.status();
        attempt.reason = Reason::Redirected;
        let mut ambiguous = false;
        if let Some(outcome) = sent.outcome(name, upgrade_asked, elapsed) {
            let judge =
                |judge| chain.observer.guard("classify", || (judge as &super::Classify)(&outcome));
            verdict = chain
                .classify
                .as_ref()
                .and_then(judge)
                .unwrap_or_else(|| Verdict::standard(&outcome));
            ambiguous = outcome.is_ambiguous();
            attempt.reason = outcome.reason();
            attempt.retry_after = outcome.retry_after();
            attempt.maybe_processed = ambiguous && verdict != Verdict::Accept;
        }
        if let Some(error) = sent.error() {
            attempt.message = Some(message::of_error(error, &self.secrets()));
        }

        let Some(Flight { ticket, .. }) = self.flight.take() else {
            return (0, verdict, None);
        };
        let landing =
            Landing { verdict, ambiguous, status: sent.status().map(|status| status.as_u16()) };
        let mut shared = chain.lock();
        let changes = self.run.land(ticket, landing, &chain.limits, &mut shared.board, landed_at);
        let order = self.next_order(&mut shared, landed_at);
        if verdict == Verdict::Accept && matches!(sent, Sent::Response(_)) {
            self.count(&mut shared, Some(provider));
        }
        drop(shared);
        let index = self.report.push(attempt);
        for change in changes.into_iter().flatten() {
            chain.observer.emit(&match change {
                Change::Opened { until, breaks } => {
                    Event::BreakerOpened { provider: name, until, breaks }
                }
                Change::Closed => Event::BreakerClosed { provider: name },
                Change::CoolingDown { until } => Event::CoolingDown { provider: name, until },
            });
        }
        self.announce();
        (index, verdict, order)
    }

    /// Leaves a failed attempt behind for another provider: what it said is read once now, for the
    /// log, and then beside the next attempt.
    async fn leave(&mut self, index: usize, sent: Sent, to: usize) {
        if let Sent::Response(response) = sent {
            self.drains.begin(index, response);
            std::future::poll_fn(|context| {
                self.poll_drains(context);
                Poll::Ready(())
            })
            .await;
        }
        let Inner { entries, observer, .. } = self.chain;
        if let Some(from) = self.report.attempts().get(index) {
            observer.emit(&Event::AttemptFinished { attempt: from });
            observer.emit(&Event::Switched { from, to: &entries[to].name });
        }
    }

    /// Hands the accepted response to the caller.
    fn serve(
        &mut self,
        index: usize,
        sent: Sent,
        own: Extensions,
        extensions: &mut Extensions,
    ) -> reqwest_middleware::Result<Response> {
        let attempt = self.report.attempts().get(index);
        if let Some(attempt) = attempt {
            self.chain.observer.emit(&Event::AttemptFinished { attempt });
        }
        let Sent::Response(mut response) = sent else {
            return Err(self.fail(Cause::NothingAccepted, extensions));
        };
        *extensions = own;
        self.finish(Ending::Served, extensions);
        response.extensions_mut().insert(self.report.clone());
        Ok(response)
    }

    /// Hands on what the last provider left, or tells of all of them.
    async fn exhaust(
        &mut self,
        landed: Landed,
        extensions: &mut Extensions,
    ) -> reqwest_middleware::Result<Response> {
        let Landed { index, sent, own } = landed;
        let outcome = match (self.chain.exhausted, sent) {
            (Exhausted::LastOutcome, Sent::Response(response)) => Some(Ok(response)),
            (Exhausted::LastOutcome, Sent::Failed(error)) if !self.shows_secret(&error) => {
                Some(Err(error))
            }
            (_, Sent::Response(response)) => {
                self.drains.begin(index, response);
                None
            }
            _ => None,
        };
        if outcome.is_none() {
            self.finish_drains().await;
        }
        if let Some(attempt) = self.report.attempts().get(index) {
            self.chain.observer.emit(&Event::AttemptFinished { attempt });
        }
        let Some(outcome) = outcome else { return Err(self.fail(Cause::Exhausted, extensions)) };
        *extensions = own;
        self.finish(Ending::Exhausted, extensions);
        outcome.map(|mut response| {
            response.extensions_mut().insert(self.report.clone());
            response
        })
    }

    /// A transport error shows nothing but its URL, which was cleaned; any other error may.
    fn shows_secret(&self, error: &Error) -> bool {
        matches!(error, Error::Middleware(_)) && message::shows_secret(error, &self.secrets())
    }

    /// Ends the call with an error that tells of every attempt.
    fn fail(&mut self, cause: Cause, extensions: &mut Extensions) -> Error {
        let ending = match cause {
            Cause::PathRefused | Cause::UnknownRoute { .. } => Ending::CallersFault,
            _ => Ending::Exhausted,
        };
        self.finish(ending, extensions);
        FailoverError::new(cause, self.report.clone()).into_middleware()
    }

    /// Ends the call and leaves its report with the caller.
    fn finish(&mut self, ending: Ending, extensions: &mut Extensions) {
        self.close(ending);
        extensions.insert(self.report.clone());
    }

    fn close(&mut self, ending: Ending) {
        self.finished = true;
        let chain = self.chain;
        let secrets = if self.drains.is_empty() { Vec::new() } else { self.secrets() };
        let report = &mut self.report;
        self.drains
            .give_up(|drained| report.set_message(drained.attempt, drained.message(&secrets)));
        let elapsed = now().saturating_duration_since(self.started);
        report.finish(ending == Ending::Served, elapsed);
        if !self.counted {
            let mut shared = chain.lock();
            shared.tally.exhausted += u64::from(ending == Ending::Exhausted);
            self.count(&mut shared, None);
        }
        if ending == Ending::Exhausted {
            chain.observer.emit(&Event::Exhausted { report: &self.report });
        }
        chain.observer.emit(&Event::Finished { report: &self.report });
    }

    fn count(&mut self, shared: &mut Shared, served_by: Option<usize>) {
        self.counted = true;
        shared.tally.requests += 1;
        shared.tally.switched += u64::from(served_by.is_some() && served_by != self.run.first());
    }

    /// Gives up the attempt under way: no news for its provider.
    fn abandon(&mut self, reason: Reason) {
        let Some(flight) = self.flight.take() else { return };
        self.chain.lock().board.cancel(&flight.ticket);
        let elapsed = now().saturating_duration_since(flight.since);
        let mut attempt = self.attempt(flight.ticket.provider, elapsed);
        attempt.reason = reason;
        let index = self.report.push(attempt);
        if let Some(attempt) = self.report.attempts().get(index) {
            self.chain.observer.emit(&Event::AttemptFinished { attempt });
        }
    }

    fn attempt(&self, provider: usize, elapsed: Duration) -> report::Attempt {
        report::Attempt {
            provider: self.chain.entries[provider].name.clone(),
            status: None,
            reason: Reason::Other,
            message: None,
            elapsed,
            retry_after: None,
            maybe_processed: false,
            not_replayable: !self.replayable,
        }
    }

    fn poll_drains(&mut self, context: &mut Context<'_>) {
        if self.drains.is_empty() {
            return;
        }
        let secrets = self.secrets();
        let report = &mut self.report;
        self.drains.poll(context, |drained| {
            report.set_message(drained.attempt, drained.message(&secrets))
        });
    }

    /// Reads the failed bodies to their ends or limits: there is nothing else left to wait for.
    async fn finish_drains(&mut self) {
        let deadline = self.run.deadline().into();
        let done = std::future::poll_fn(|context| {
            self.poll_drains(context);
            if self.drains.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        });
        // What is unread at the deadline is dropped when the call closes.
        let _ = timeout_at(deadline, done).await;
    }

    fn secrets(&self) -> Vec<String> {
        [self.callers_secrets.clone(), self.chain.secrets()].concat()
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        if !self.finished {
            self.abandon(Reason::Abandoned);
            self.close(Ending::CallersFault);
        }
    }
}

/// Whether sending the request twice does what sending it once does.
fn is_idempotent(request: &Request) -> bool {
    matches!(
        *request.method(),
        Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE | Method::TRACE
    ) || request.headers().contains_key("idempotency-key")
}
