//! One claimed request's state: its run, its report, the attempt that is under way, and what must
//! happen however it ends, also when its caller drops it.

use std::sync::Arc;
use std::task::Context;
use std::time::{Duration, Instant};

use http::{Extensions, Method};
use reqwest::{Request, Response};
use reqwest_middleware::Error;

use super::address::Address;
use super::attempt::Sent;
use super::body::Drains;
use super::{Classify, Inner, Shared, now};
use crate::error::{Cause, Exhausted, FailoverError};
use crate::health::{Changes, State, Ticket};
#[cfg(feature = "json")]
use crate::inspect::Held;
use crate::message;
use crate::observe::rate::Crossing;
use crate::observe::{Event, Trace};
use crate::report::{Attempt, Report};
use crate::route::Route;
use crate::run::{Ambiguous, Landing, Run, Step};
use crate::verdict::{Fault, Reason, Verdict};

/// A claimed request's state. Dropping it gives back whatever it holds.
pub(super) struct Call<'a> {
    chain: &'a Arc<Inner>,
    run: Run,
    report: Report,
    trace: Trace,
    is_watched: bool,
    started: Instant,
    /// The time as of the last wait: a clock is not free, and nothing in between takes any.
    now: Instant,
    /// When the first attempt began, and the latest.
    sent: Option<(Instant, Instant)>,
    flight: Option<Flight>,
    /// An attempt that landed and that no event has told of yet.
    untold: Option<usize>,
    drains: Drains,
    /// Secrets of this request alone: the caller's own credentials, where a provider is given them,
    /// and the tokens that its attempts were given.
    own_secrets: Vec<String>,
    replayable: bool,
    /// Set once the request is counted.
    counted: Option<Counted>,
    finished: bool,
}

/// How a call ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    Served,
    Exhausted,
    /// Refused, abandoned, or broken off by the caller: no news about the providers.
    CallersFault,
}

/// An attempt that the run wants made.
pub(super) struct Order {
    pub(super) provider: usize,
    pub(super) until: Instant,
    pub(super) last: bool,
}

/// The attempt that is under way.
struct Flight {
    ticket: Ticket,
    since: Instant,
}

/// What counting the request told about the switch rate.
struct Counted {
    ratio: Option<f64>,
    crossing: Option<Crossing>,
}

impl<'a> Call<'a> {
    pub(super) fn begin(chain: &'a Arc<Inner>, request: &Request) -> Self {
        let started = now();
        let order = chain.lock().order.clone();
        let trace = Trace::request(request);
        let idempotent = chain.limits.ambiguous == Ambiguous::FailOver || is_idempotent(request);
        Self {
            chain,
            run: Run::new(order, &chain.limits, idempotent, started),
            report: Report::new(),
            is_watched: chain.observer.is_watched(&trace),
            trace,
            started,
            now: started,
            sent: None,
            flight: None,
            untold: None,
            drains: Drains::default(),
            own_secrets: Vec::new(),
            replayable: true,
            counted: None,
            finished: false,
        }
    }

    pub(super) fn report(&self) -> &Report {
        &self.report
    }

    pub(super) fn deadline(&self) -> Instant {
        self.run.deadline()
    }

    pub(super) fn is_late(&self) -> bool {
        self.now >= self.run.deadline()
    }

    /// Looks at the clock, after a wait.
    pub(super) fn tick(&mut self) -> Instant {
        self.now = now();
        self.now
    }

    pub(super) fn exhausted_mode(&self) -> Exhausted {
        self.chain.exhausted
    }

    /// Applies the request's own route: the extension, else the closure's.
    pub(super) fn take_route(
        &mut self,
        request: &Request,
        extensions: &Extensions,
    ) -> Result<(), Cause> {
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

    /// How many bytes of a streamed body are worth keeping: none without anyone to fail over to.
    pub(super) fn replay_limit(&self) -> u64 {
        let may_fail_over = self.run.may_fail_over(&self.chain.lock().board, self.now);
        if may_fail_over { self.chain.replay_buffer } else { 0 }
    }

    /// Learns of a secret that no message of this call may show.
    pub(super) fn hide(&mut self, secret: String) {
        self.own_secrets.push(secret);
    }

    pub(super) fn forbid_replay(&mut self) {
        self.run.forbid_replay();
        self.replayable = false;
    }

    pub(super) fn first_order(&mut self) -> Option<Order> {
        let chain = self.chain;
        self.next_order(&mut chain.lock())
    }

    /// An attempt begins. Returns its span.
    pub(super) fn take_off(
        &mut self,
        provider: usize,
        address: &Address,
        request: &Request,
    ) -> Trace {
        let Inner { entries, scope, strip, .. } = &**self.chain;
        let entry = &entries[provider];
        let resends = self.report.attempts().len();
        if self.flight.as_ref().is_some_and(|flight| flight.ticket.is_probe()) {
            self.chain.observer.show(provider, State::Probing);
            self.emit(&Event::BreakerProbing { provider: &entry.name });
        }
        if self.is_watched {
            self.emit(&Event::AttemptStarted { provider: &entry.name, number: resends + 1 });
        }
        if entry.keeps_caller_auth(address.claimed(scope)) {
            self.own_secrets.extend(strip.secrets_of(request));
        }
        self.trace.attempt(&entry.name, entry.base.url(), resends)
    }

    /// Judges an outcome, moves the provider's health by it, and asks the run what is next. Returns
    /// the attempt's index in the report.
    pub(super) fn land(
        &mut self,
        sent: &Sent,
        trace: &Trace,
        upgrade_asked: bool,
    ) -> (usize, Verdict, Option<Order>) {
        let chain = self.chain;
        let now = self.tick();
        let (provider, since) = match &self.flight {
            Some(flight) => (flight.ticket.provider, flight.since),
            None => return (0, Verdict::FailOver(Fault::None), None),
        };
        let elapsed = now.saturating_duration_since(since);
        let (landing, attempt) = self.judge(sent, provider, elapsed, upgrade_asked);
        trace.record_outcome(&attempt);
        // The user's closure has had its say: nothing between here and the landing can panic.
        let Some(Flight { ticket, .. }) = self.flight.take() else {
            return (0, landing.verdict, None);
        };
        let mut shared = chain.lock();
        let changes = if landing.verdict == Verdict::Accept && sent.is_stream() {
            let changes = self.run.commit(&ticket, &mut shared.board, now);
            // The stream's end is still to come.
            self.flight = Some(Flight { ticket, since });
            changes
        } else {
            self.run.land(ticket, landing, &chain.limits, &mut shared.board, now)
        };
        let state = shared.board.state(provider, now);
        if landing.verdict == Verdict::Accept && landing.status.is_some() {
            self.count(&mut shared, Ending::Served, Some(provider));
        }
        let order = self.next_order(&mut shared);
        drop(shared);
        chain.observer.show(provider, state);
        let index = self.report.push(attempt);
        self.untold = Some(index);
        if changes != Changes::default() {
            self.trace.within(|| chain.tell_changes(provider, changes));
        }
        (index, landing.verdict, order)
    }

    /// Begins to read the body of a failed attempt's response.
    pub(super) fn drain(&mut self, index: usize, response: Response) {
        self.drains.begin(index, response);
    }

    /// Reads what has arrived of the failed bodies; `true` when there is nothing more to read.
    pub(super) fn poll_drains(&mut self, context: &mut Context<'_>) -> bool {
        if self.drains.is_empty() {
            return true;
        }
        let secrets = self.secrets();
        let report = &mut self.report;
        self.drains.poll(context, |drained| {
            report.set_message(drained.attempt, drained.message(&secrets));
        });
        self.drains.is_empty()
    }

    #[inline]
    pub(super) fn tell_finished(&mut self, index: usize) {
        self.untold = None;
        if let Some(attempt) = self.report.attempts().get(index)
            && (self.is_watched || attempt.reason() != Reason::Ok)
        {
            self.emit(&Event::AttemptFinished { attempt });
        }
    }

    pub(super) fn tell_switched(&self, index: usize, to: usize) {
        if let Some(from) = self.report.attempts().get(index) {
            self.emit(&Event::Switched { from, to: &self.chain.entries[to].name });
        }
    }

    /// Hands on a stream that has begun well; its provider's health hears of its end.
    #[cfg(feature = "json")]
    pub(super) fn watch(&mut self, held: Held) -> Response {
        let Some(Flight { ticket, .. }) = self.flight.take() else { return held.unwatched() };
        let chain = self.chain.clone();
        held.watched(Box::new(move |end| chain.end_stream(ticket, end)))
    }

    /// Whether an error shows a secret. A transport error shows nothing but its URL, which was
    /// cleaned; any other error may.
    pub(super) fn is_shown_by(&self, error: &Error) -> bool {
        matches!(error, Error::Middleware(_)) && message::shows_secret(error, &self.secrets())
    }

    /// Gives up the attempt under way: no news for its provider.
    pub(super) fn abandon(&mut self, reason: Reason) {
        let Some(Flight { ticket, since }) = self.flight.take() else { return };
        let provider = ticket.provider;
        let now = self.tick();
        let mut shared = self.chain.lock();
        shared.board.cancel(&ticket);
        let state = shared.board.state(provider, now);
        drop(shared);
        self.chain.observer.show(provider, state);
        let elapsed = now.saturating_duration_since(since);
        let attempt = Attempt { reason, ..self.blank_attempt(provider, elapsed) };
        let index = self.report.push(attempt);
        self.tell_finished(index);
    }

    /// Ends the call with an error that tells of every attempt.
    pub(super) fn fail(&mut self, cause: Cause, extensions: &mut Extensions) -> Error {
        let ending = match cause {
            Cause::PathRefused | Cause::UnknownRoute { .. } => Ending::CallersFault,
            _ => Ending::Exhausted,
        };
        self.finish(ending, extensions);
        FailoverError::new(cause, self.report.clone()).into_middleware()
    }

    /// Ends the call and leaves its report with the caller.
    pub(super) fn finish(&mut self, ending: Ending, extensions: &mut Extensions) {
        self.close(ending);
        extensions.insert(self.report.clone());
    }

    fn close(&mut self, ending: Ending) {
        self.finished = true;
        let chain = self.chain;
        let now = self.now;
        if !self.drains.is_empty() {
            let secrets = self.secrets();
            let report = &mut self.report;
            self.drains.give_up(|drained| {
                report.set_message(drained.attempt, drained.message(&secrets));
            });
        }
        let served = ending == Ending::Served;
        self.report.finish(served, now.saturating_duration_since(self.started));
        if self.counted.is_none() {
            self.count(&mut chain.lock(), ending, None);
        }
        self.trace.record_end(&self.report);
        if ending == Ending::Exhausted {
            self.emit(&Event::Exhausted { report: &self.report });
        }
        let (first, latest) = self.sent.unwrap_or((now, now));
        let counted = self.counted.take();
        let added_latency = served.then(|| latest.saturating_duration_since(first));
        let switch_ratio = counted.as_ref().and_then(|counted| counted.ratio);
        if self.is_watched {
            self.emit(&Event::Finished { report: &self.report, added_latency, switch_ratio });
        } else {
            chain.observer.count_finished(&self.report, added_latency, switch_ratio);
        }
        if let Some(crossing) = counted.and_then(|counted| counted.crossing) {
            let first = self.run.first().map_or("", |first| &chain.entries[first].name);
            self.emit(&match crossing {
                Crossing::High { ratio, reason } => {
                    Event::SwitchRateHigh { provider: first, ratio, reason }
                }
                Crossing::Normal { ratio } => Event::SwitchRateNormal { provider: first, ratio },
            });
        }
    }

    /// Asks the run what to do next and takes the ticket for it.
    fn next_order(&mut self, shared: &mut Shared) -> Option<Order> {
        let now = self.now;
        match self.run.step(&self.chain.limits, &mut shared.board, now) {
            Step::Send { ticket, until, last } => {
                let provider = ticket.provider;
                self.sent = Some((self.sent.map_or(now, |(first, _)| first), now));
                self.flight = Some(Flight { ticket, since: now });
                Some(Order { provider, until, last })
            }
            Step::Wait | Step::Done => None,
        }
    }

    fn judge(
        &self,
        sent: &Sent,
        provider: usize,
        elapsed: Duration,
        upgrade_asked: bool,
    ) -> (Landing, Attempt) {
        let Inner { entries, classify, observer, .. } = &**self.chain;
        let status = sent.status();
        let mut landing = Landing {
            verdict: Verdict::FailOver(Fault::None),
            ambiguous: false,
            status: status.map(|status| status.as_u16()),
        };
        let mut attempt = Attempt {
            status,
            reason: Reason::Redirected,
            message: sent
                .has_message()
                .then(|| observer.guard("display", || sent.message(|| self.secrets())).flatten())
                .flatten(),
            ..self.blank_attempt(provider, elapsed)
        };
        if let Some(outcome) = sent.outcome(&entries[provider].name, upgrade_asked, elapsed) {
            let judge = |judge: &Classify| observer.guard("classify", || judge(&outcome));
            let opinion = classify.as_ref().and_then(judge);
            landing.verdict = opinion.unwrap_or_else(|| Verdict::standard(&outcome));
            landing.ambiguous = outcome.is_ambiguous();
            attempt.reason = outcome.reason();
            attempt.retry_after = outcome.retry_after();
        }
        landing.ambiguous |= sent.is_processed_elsewhere();
        attempt.maybe_processed = landing.ambiguous && landing.verdict != Verdict::Accept;
        (landing, attempt)
    }

    fn blank_attempt(&self, provider: usize, elapsed: Duration) -> Attempt {
        Attempt {
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

    fn count(&mut self, shared: &mut Shared, ending: Ending, served_by: Option<usize>) {
        shared.tally.requests += 1;
        shared.tally.exhausted += u64::from(ending == Ending::Exhausted);
        shared.tally.switched += u64::from(served_by.is_some() && served_by != self.run.first());
        // A route that puts another provider first says nothing about the chain's first.
        let first = self.run.first().filter(|first| shared.order.first() == Some(first));
        let crossing = first.filter(|_| ending != Ending::CallersFault).and_then(|first| {
            let name = &self.chain.entries[first].name;
            let failed = |attempt: &&Attempt| attempt.provider == *name;
            let reason = self.report.attempts().iter().find(failed).map(Attempt::reason);
            shared.switch_rate.record(served_by == Some(first), reason, self.now)
        });
        self.counted = Some(Counted { ratio: shared.switch_rate.last_ratio(), crossing });
    }

    fn emit(&self, event: &Event<'_>) {
        self.trace.within(|| self.chain.observer.emit(event));
    }

    fn secrets(&self) -> Vec<String> {
        [self.own_secrets.clone(), self.chain.secrets()].concat()
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        if !self.finished {
            if let Some(index) = self.untold {
                self.tell_finished(index);
            }
            self.tick();
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
