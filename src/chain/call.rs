//! One claimed request's state: its run, its report, the attempts that are under way, and what must
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
use crate::health::{Changes, HealthTable, Permit, State};
use crate::inspect::CommittedStream;
use crate::message::{self, Secrets};
use crate::observe::rate::Crossing;
use crate::observe::{Event, Trace};
use crate::report::{Attempt, Report};
use crate::route::Route;
use crate::run::{Ambiguous, Judgement, Run, Step};
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
    /// How many attempts have begun; when the first did, and the one that served.
    begun: usize,
    first_sent: Option<Instant>,
    served_sent: Option<Instant>,
    /// The attempts that are under way: one, or two while one is hedged.
    flights: [Option<Flight>; 2],
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

/// What the run wants done next.
pub(super) enum Next {
    Send(Order),
    /// Wait for what is under way, or until then.
    Wait(Option<Instant>),
    Done,
}

/// An attempt that the run wants made.
pub(super) struct Order {
    pub(super) provider: usize,
    pub(super) until: Instant,
    pub(super) last: bool,
    pub(super) hedge: bool,
    /// Which of the call's flights this is.
    pub(super) flight: usize,
}

/// An attempt that has its verdict.
pub(super) struct Verdicted {
    /// Its index in the report.
    pub(super) index: usize,
    pub(super) verdict: Verdict,
    pub(super) next: Next,
}

/// An attempt that is under way.
struct Flight {
    permit: Permit,
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
        let order = {
            let mut shared = chain.lock();
            if let Some(hedging) = &mut shared.board.hedging {
                hedging.deposit();
            }
            shared.order.clone()
        };
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
            begun: 0,
            first_sent: None,
            served_sent: None,
            flights: [None, None],
            untold: None,
            drains: Drains::default(),
            own_secrets: Vec::new(),
            replayable: true,
            counted: None,
            finished: false,
        }
    }

    pub(super) fn deadline(&self) -> Instant {
        self.run.deadline()
    }

    /// Looks at the clock, after a wait.
    pub(super) fn tick(&mut self) -> Instant {
        self.now = now();
        self.now
    }

    pub(super) fn exhausted_mode(&self) -> Exhausted {
        self.chain.exhausted
    }

    pub(super) fn chain(&self) -> &'a Arc<Inner> {
        self.chain
    }

    /// Refuses what must not be sent, and applies the request's own route.
    pub(super) fn admit(
        &mut self,
        address: &Address,
        request: &Request,
        extensions: &Extensions,
    ) -> Result<(), Cause> {
        if address.is_refused() {
            return Err(Cause::PathRefused);
        }
        self.take_route(request, extensions)
    }

    /// The request's own route: the extension, else the closure's.
    fn take_route(&mut self, request: &Request, extensions: &Extensions) -> Result<(), Cause> {
        let chain = self.chain;
        let asked = || {
            let route = chain.route.as_ref()?;
            chain.observer.catch_panic("route", || route(request)).flatten()
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

    /// Learns of secrets that no message of this call may show.
    pub(super) fn hide(&mut self, secrets: impl IntoIterator<Item = String>) {
        self.own_secrets.extend(secrets);
    }

    pub(super) fn forbid_replay(&mut self) {
        self.run.forbid_replay();
        self.replayable = false;
    }

    /// Asks the run what to do, as of the last look at the clock.
    pub(super) fn next(&mut self) -> Next {
        let chain = self.chain;
        self.next_of(&mut chain.lock())
    }

    /// An attempt begins. Returns its span.
    pub(super) fn take_off(
        &mut self,
        order: &Order,
        address: &Address,
        request: &Request,
    ) -> Trace {
        let Inner { entries, scope, strip, .. } = &**self.chain;
        let entry = &entries[order.provider];
        let resends = self.begun - 1;
        let flight = self.flights[order.flight].as_ref();
        if flight.is_some_and(|flight| flight.permit.is_probe()) {
            self.chain.observer.set_state_gauge(order.provider, State::Probing);
            self.emit(&Event::BreakerProbing { provider: &entry.name });
        }
        if self.is_watched {
            self.emit(&Event::AttemptStarted { provider: &entry.name, number: self.begun });
        }
        if entry.keeps_caller_auth(address.claimed(scope)) {
            self.own_secrets.extend(strip.secrets_of(request.headers(), request.url()));
        }
        self.trace.attempt(&entry.name, entry.base.url(), resends)
    }

    /// Judges an outcome, moves the provider's health by it, and asks the run what is next.
    pub(super) fn record_outcome(
        &mut self,
        at: usize,
        sent: &Sent,
        trace: &Trace,
        upgrade_asked: bool,
    ) -> Verdicted {
        let chain = self.chain;
        let now = self.tick();
        let Some(Flight { permit, since }) = &self.flights[at] else {
            // Nothing lands twice.
            return Verdicted {
                index: 0,
                verdict: Verdict::FailOver(Fault::None),
                next: Next::Done,
            };
        };
        let (provider, since) = (permit.provider, *since);
        let elapsed = now.saturating_duration_since(since);
        let (judgement, attempt) = self.judge(sent, provider, elapsed, upgrade_asked);
        let verdict = judgement.verdict;
        trace.record_outcome(&attempt);
        // The user's closure has had its say: nothing between here and the judgement can panic.
        let mut shared = chain.lock();
        let mut changes = Changes::default();
        if verdict == Verdict::Accept && sent.is_stream() {
            // The stream's end is still to come, and the permit stays until then.
            if let Some(Flight { permit, .. }) = &self.flights[at] {
                changes = self.run.commit(permit, &mut shared.board, now);
            }
        } else if let Some(Flight { permit, .. }) = self.flights[at].take() {
            changes =
                self.run.record_outcome(permit, judgement, &chain.limits, &mut shared.board, now);
        }
        let state = shared.board.state(provider, now);
        let mut next = Next::Done;
        if verdict != Verdict::Accept {
            next = self.next_of(&mut shared);
        } else if judgement.status.is_some() {
            if let Some(hedging) = &mut shared.board.hedging {
                hedging.record(provider, elapsed);
            }
            self.served_sent = Some(since);
            self.count(&mut shared, Ending::Served, Some(provider));
        }
        drop(shared);
        chain.observer.set_state_gauge(provider, state);
        let index = self.report.push(attempt);
        self.untold = Some(index);
        if changes != Changes::default() {
            self.trace.within(|| chain.tell_changes(provider, changes));
        }
        Verdicted { index, verdict, next }
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
        let Self { chain, own_secrets, report, drains, .. } = self;
        drains.poll(context, |drained| {
            report.set_message(drained.attempt, drained.message(|| chain.secrets(own_secrets)));
        });
        self.drains.is_empty()
    }

    /// Tells of the attempt that landed last.
    #[inline]
    pub(super) fn tell_landed(&mut self) {
        if let Some(index) = self.untold.take() {
            self.tell_finished(index);
        }
    }

    fn tell_finished(&self, index: usize) {
        if let Some(attempt) = self.report.attempts().get(index)
            && (self.is_watched || attempt.reason() != Reason::Ok)
        {
            self.emit(&Event::AttemptFinished { attempt });
        }
    }

    pub(super) fn tell_hedged(&self, silent: usize, order: &Order) {
        let Some(Flight { permit, since }) = &self.flights[silent] else { return };
        let name = |provider: usize| &*self.chain.entries[provider].name;
        self.emit(&Event::HedgeSent {
            from: name(permit.provider),
            to: name(order.provider),
            waited: self.now.saturating_duration_since(*since),
        });
    }

    pub(super) fn tell_switched(&self, index: usize, to: usize) {
        if let Some(from) = self.report.attempts().get(index) {
            self.emit(&Event::Switched { from, to: &self.chain.entries[to].name });
        }
    }

    /// Hands on a stream that has begun well; its provider's health hears of its end.
    pub(super) fn watch(&mut self, at: usize, held: CommittedStream) -> Response {
        let Some(Flight { permit, .. }) = self.flights[at].take() else { return held.unwatched() };
        let chain = self.chain.clone();
        held.watched(Box::new(move |end| chain.end_stream(permit, end)))
    }

    /// Whether an error shows a secret. A transport error shows nothing but its URL, which was
    /// cleaned; any other error may.
    pub(super) fn is_shown_by(&self, error: &Error) -> bool {
        matches!(error, Error::Middleware(_)) && message::shows_secret(error, &self.secrets())
    }

    /// The number of the permit of an attempt that is under way.
    pub(super) fn sequence(&self, at: usize) -> Option<u64> {
        self.flights[at].as_ref().map(|flight| flight.permit.sequence())
    }

    /// Drops an attempt because another one, of this number, served.
    pub(super) fn cancel_loser(&mut self, at: usize, winner: u64, departed: bool, trace: &Trace) {
        self.drop_flight(at, Reason::Abandoned, departed, Some(trace), |call, permit, board| {
            call.run.cancel_loser(permit, winner, board, call.now)
        });
    }

    /// Gives up the attempts under way: no news for their providers.
    pub(super) fn abandon(&mut self, reason: Reason) {
        for at in 0..self.flights.len() {
            self.drop_flight(at, reason, false, None, |_, permit, board| {
                board.cancel(&permit);
                Changes::default()
            });
        }
    }

    fn drop_flight(
        &mut self,
        at: usize,
        reason: Reason,
        maybe_processed: bool,
        trace: Option<&Trace>,
        give_back: impl FnOnce(&mut Self, Permit, &mut HealthTable) -> Changes,
    ) {
        let Some(Flight { permit, since }) = self.flights[at].take() else { return };
        let chain = self.chain;
        let provider = permit.provider;
        let now = self.tick();
        let mut shared = chain.lock();
        let changes = give_back(self, permit, &mut shared.board);
        let state = shared.board.state(provider, now);
        drop(shared);
        chain.observer.set_state_gauge(provider, state);
        let elapsed = now.saturating_duration_since(since);
        let blank = self.blank_attempt(provider, elapsed);
        let attempt = Attempt { reason, maybe_processed, ..blank };
        if let Some(trace) = trace {
            trace.record_outcome(&attempt);
        }
        // The attempt that served is the report's last.
        let index = self.report.push_before(self.untold, attempt);
        self.untold = self.untold.map(|untold| untold + 1);
        self.tell_finished(index);
        if changes != Changes::default() {
            self.trace.within(|| chain.tell_changes(provider, changes));
        }
    }

    /// Ends the call with an error that tells of every attempt.
    pub(super) fn fail(&mut self, cause: Cause, extensions: &mut Extensions) -> Error {
        let ending = match cause {
            Cause::PathRefused | Cause::UnknownRoute { .. } => Ending::CallersFault,
            _ => Ending::Exhausted,
        };
        let report = self.finish(ending, extensions);
        FailoverError::new(cause, report).into_middleware()
    }

    /// Ends the call of a request that nobody was asked.
    pub(super) fn fail_unasked(&mut self, extensions: &mut Extensions) -> Error {
        let late = self.now >= self.run.deadline();
        self.fail(if late { Cause::NoTime } else { Cause::NobodyToAsk }, extensions)
    }

    /// Ends the call and leaves its report with the caller. It is returned for the response, too.
    pub(super) fn finish(&mut self, ending: Ending, extensions: &mut Extensions) -> Report {
        self.close(ending);
        let report = std::mem::replace(&mut self.report, Report::new());
        extensions.insert(report.clone());
        report
    }

    fn close(&mut self, ending: Ending) {
        self.finished = true;
        let chain = self.chain;
        let now = self.now;
        let Self { own_secrets, report, drains, .. } = self;
        drains.give_up(|drained| {
            report.set_message(drained.attempt, drained.message(|| chain.secrets(own_secrets)));
        });
        let served = ending == Ending::Served;
        self.report.finish(served, now.saturating_duration_since(self.started));
        if self.counted.is_none() {
            self.count(&mut chain.lock(), ending, None);
        }
        self.trace.record_end(&self.report);
        if ending == Ending::Exhausted {
            self.emit(&Event::Exhausted { report: &self.report });
        }
        let counted = self.counted.take();
        let added_latency = match self.begun {
            ..=1 => served.then_some(Duration::ZERO),
            _ => {
                served.then(|| self.served_sent?.checked_duration_since(self.first_sent?)).flatten()
            }
        };
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

    fn next_of(&mut self, shared: &mut Shared) -> Next {
        let now = self.now;
        match self.run.step(&self.chain.limits, &mut shared.board, now) {
            Step::Send { permit, until, last, hedge } => {
                let provider = permit.provider;
                let flight = usize::from(self.flights[0].is_some());
                self.first_sent.get_or_insert(now);
                self.begun += 1;
                self.flights[flight] = Some(Flight { permit, since: now });
                Next::Send(Order { provider, until, last, hedge, flight })
            }
            Step::Wait(until) => Next::Wait(until),
            Step::Done => Next::Done,
        }
    }

    fn judge(
        &self,
        sent: &Sent,
        provider: usize,
        elapsed: Duration,
        upgrade_asked: bool,
    ) -> (Judgement, Attempt) {
        let Inner { entries, classify, observer, .. } = &**self.chain;
        let status = sent.status();
        let mut judgement = Judgement {
            verdict: Verdict::FailOver(Fault::None),
            ambiguous: false,
            status: status.map(|status| status.as_u16()),
        };
        let mut attempt = Attempt {
            status,
            reason: Reason::Redirected,
            message: sent
                .has_message()
                .then(|| {
                    observer.catch_panic("display", || sent.message(|| self.secrets())).flatten()
                })
                .flatten(),
            ..self.blank_attempt(provider, elapsed)
        };
        if let Some(outcome) = sent.outcome(&entries[provider].name, upgrade_asked, elapsed) {
            let judge = |judge: &Classify| observer.catch_panic("classify", || judge(&outcome));
            let opinion = classify.as_ref().and_then(judge);
            judgement.verdict = opinion.unwrap_or_else(|| Verdict::standard(&outcome));
            judgement.ambiguous = outcome.maybe_processed();
            attempt.reason = outcome.reason();
            attempt.retry_after = outcome.retry_after();
        }
        judgement.ambiguous |= sent.is_processed_elsewhere();
        attempt.maybe_processed = judgement.ambiguous && judgement.verdict != Verdict::Accept;
        (judgement, attempt)
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
            is_replayable: self.replayable,
        }
    }

    fn count(&mut self, shared: &mut Shared, ending: Ending, served_by: Option<usize>) {
        shared.request_counts.requests += 1;
        shared.request_counts.exhausted += u64::from(ending == Ending::Exhausted);
        shared.request_counts.switched +=
            u64::from(served_by.is_some() && served_by != self.run.first());
        // A route that puts another provider first says nothing about the chain's first.
        let first = self.run.first().filter(|first| shared.order.first() == Some(first));
        let crossing = first.filter(|_| ending != Ending::CallersFault).and_then(|first| {
            let name = &self.chain.entries[first].name;
            let failed = |attempt: &&Attempt| attempt.provider == *name;
            let reason = self.report.attempts().iter().find(failed).map(Attempt::reason);
            let reason = reason.or(self.is_under_way(first).then_some(Reason::Abandoned));
            shared.switch_rate.record(served_by == Some(first), reason, self.now)
        });
        self.counted = Some(Counted { ratio: shared.switch_rate.last_ratio(), crossing });
    }

    fn is_under_way(&self, provider: usize) -> bool {
        self.flights.iter().flatten().any(|flight| flight.permit.provider == provider)
    }

    fn emit(&self, event: &Event<'_>) {
        self.trace.within(|| self.chain.observer.emit(event));
    }

    fn secrets(&self) -> Secrets {
        self.chain.secrets(&self.own_secrets)
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        if !self.finished {
            self.tell_landed();
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
