//! One request's state: its run, its report, its counts and its events, however it ends.

use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use http::Extensions;
use reqwest::Request;
use reqwest_middleware::Error;

use super::flight::AttemptState;
use super::outcome::{AttemptResult, Circumstances};
use super::shared::{Shared, Table, now};
use crate::error::{Cause, FailoverError};
use crate::health::{Changes, HealthKey, Permit, State};
use crate::message::{self, Secrets};
use crate::observe::rate::Crossing;
use crate::observe::{Ending, Event, Observer, Trace};
use crate::report::{Attempt, Report};
use crate::route::Route;
use crate::run::{Ambiguous, ProviderSet, Replay, Run, Settled, Step, Unserved, is_idempotent};
use crate::verdict::{Reason, Verdict};

/// A claimed request's state. Dropping it counts the request as abandoned.
pub(super) struct RequestState<'a> {
    shared: &'a Arc<Shared>,
    pub(super) run: Run,
    report: Report,
    pub(super) trace: Trace,
    is_watched: bool,
    started: Instant,
    /// The time as of the last wait: a clock is not free, and nothing in between takes any.
    pub(super) now: Instant,
    begun: usize,
    /// Whether the first provider in order was asked.
    first_asked: bool,
    /// When the first attempt was started, and the one that served.
    first_sent: Option<Instant>,
    served_sent: Option<Instant>,
    /// Secrets of this request alone: the caller's own credentials, where a provider is given them,
    /// tokens, and what `map_request` set.
    pub(super) secrets: Vec<String>,
    pub(super) is_replayable: bool,
    pub(super) upgrade_asked: bool,
    /// Set once the request is counted.
    counted: Option<Counted>,
    /// Whether the request has a timeout of its own.
    has_timeout: bool,
    is_finished: bool,
}

/// Why an attempt in flight is dropped.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Dropped {
    /// Another attempt served.
    Loser,
    /// The caller dropped the request.
    Abandoned,
    /// The caller's own body failed.
    CallerFailed,
}

/// What became of an attempt.
pub(super) struct Settlement {
    pub(super) settled: Settled,
    pub(super) step: Step,
    /// Its line in the report.
    pub(super) line: Attempt,
}

/// What counting the request said about the switch rate.
struct Counted {
    ratio: Option<f64>,
    crossing: Option<Crossing>,
}

impl<'a> RequestState<'a> {
    pub(super) fn begin(
        shared: &'a Arc<Shared>,
        request: &Request,
        extensions: &Extensions,
    ) -> Self {
        let started = now();
        let trace = Trace::request(request);
        let idempotent = shared.limits.ambiguous == Ambiguous::FailOver
            || is_idempotent(request.method())
            || extensions.get::<Replay>().is_some();
        let order = shared.lock().order.clone();
        Self {
            shared,
            run: Run::new(
                order,
                &shared.limits,
                idempotent,
                request.timeout().copied(),
                started,
            ),
            report: Report::new(),
            is_watched: shared.observer.is_watched(&trace),
            trace,
            started,
            now: started,
            begun: 0,
            first_asked: false,
            first_sent: None,
            served_sent: None,
            secrets: Vec::new(),
            is_replayable: true,
            upgrade_asked: request.headers().contains_key(http::header::UPGRADE),
            counted: None,
            has_timeout: request.timeout().is_some(),
            is_finished: false,
        }
    }

    /// Applies the request's own route: the extension, else the closure's.
    pub(super) fn take_route(
        &mut self,
        request: &Request,
        extensions: &Extensions,
    ) -> Result<(), Cause> {
        let shared = self.shared;
        let asked = || {
            let route = shared.route.as_ref()?;
            shared.observer.catch_panic("route", || route(request)).flatten()
        };
        let Some(route) = extensions.get::<Route>().cloned().or_else(asked) else { return Ok(()) };
        self.run
            .reorder(|order| route.resolve(order, |name| shared.find(name), || shared.names()))?;
        if route.forbids_failover() {
            self.run.forbid_failover();
        }
        Ok(())
    }

    /// Reads what the request is about, as far as its providers' health depends on it.
    pub(super) fn take_key(&mut self, key: &HealthKey, request: &Request) {
        let key = self.shared.observer.catch_panic("health_by", || key.of(request));
        self.run.set_key(key.flatten());
    }

    /// Reads the clock, after a wait.
    pub(super) fn refresh_now(&mut self) -> Instant {
        self.now = now();
        self.now
    }

    /// How many bytes of a streamed body are worth keeping: none where no other provider may be asked.
    pub(super) fn replay_limit(&self) -> u64 {
        let may_fail_over = self.run.may_fail_over(&self.shared.lock().health);
        if may_fail_over { self.shared.replay_buffer } else { 0 }
    }

    pub(super) fn shared(&self) -> &'a Arc<Shared> {
        self.shared
    }

    /// What is left of the request's own timeout, if it has one.
    pub(super) fn time_left(&self) -> Option<Duration> {
        let deadline = self.run.deadline().at;
        self.has_timeout.then(|| deadline.saturating_duration_since(self.now))
    }

    pub(super) fn forbid_replay(&mut self) {
        self.run.forbid_replay();
        self.is_replayable = false;
    }

    /// Asks the run what to do, as of the last look at the clock.
    pub(super) fn next_step(&mut self) -> Step {
        let shared = self.shared;
        self.run.step(&shared.limits, &mut shared.lock().health, self.now)
    }

    /// An attempt begins. Returns its span.
    pub(super) fn start_attempt(&mut self, provider: usize) -> Trace {
        let entry = &self.shared.entries[provider];
        let resends = self.begun;
        self.begun += 1;
        self.first_asked |= self.run.first() == Some(provider);
        self.first_sent.get_or_insert(self.now);
        if self.is_watched {
            self.emit(&Event::AttemptStarted { provider: &entry.name, number: self.begun });
        }
        self.trace.attempt(&entry.name, entry.base.url(), resends)
    }

    /// Judges what came back, moves the provider's health by it, and asks the run what is next. A
    /// committed stream keeps its permit until it ends.
    pub(super) fn settle(
        &mut self,
        attempt: &mut AttemptState<'_>,
        result: &mut AttemptResult,
    ) -> Settlement {
        let shared = self.shared;
        let now = self.refresh_now();
        let provider = attempt.provider;
        self.secrets.append(&mut attempt.secrets);
        let circumstances = Circumstances {
            provider,
            upgrade_asked: self.upgrade_asked,
            is_replayable: self.is_replayable,
            until: attempt.until,
            elapsed: now.saturating_duration_since(attempt.started),
            quiet_for: attempt.quiet_for(now),
        };
        let (judgement, line) = result.judge(shared, &circumstances, || self.secrets());
        attempt.trace.record_outcome(&line);
        // The user's closures have run: nothing between here and the end of the lock can panic.
        let mut table = shared.lock();
        let health = &mut table.health;
        let (settled, changes) = match (&*result, attempt.permit.take()) {
            (AttemptResult::Stream(stream), Some(mut permit))
                if judgement.verdict == Verdict::Accept =>
            {
                let status = stream.status().as_u16();
                let elapsed = circumstances.elapsed;
                let changes = self.run.commit(&mut permit, status, elapsed, health, now);
                attempt.permit.put_back(permit);
                (Settled::Serve, changes)
            }
            (_, Some(permit)) => {
                self.run.record_outcome(permit, judgement, &shared.limits, health, now)
            }
            // An attempt is settled once.
            (_, None) => (Settled::FailOver, Changes::default()),
        };
        let step = match settled {
            Settled::Keep | Settled::FailOver => self.run.step(&shared.limits, health, now),
            Settled::Serve | Settled::ServeKept => Step::Done,
        };
        if settled == Settled::Serve && judgement.status.is_some() {
            self.count_served(&mut table, provider, attempt.started);
        }
        self.release(table, provider, changes);
        Settlement { settled, step, line }
    }

    /// Counts the attempt whose answer was kept as the one that served.
    pub(super) fn serve_kept(&mut self, provider: usize, started: Instant) {
        let shared = self.shared;
        self.count_served(&mut shared.lock(), provider, started);
    }

    /// Drops an attempt that is still in flight.
    pub(super) fn drop_attempt(&mut self, mut attempt: AttemptState<'_>, why: Dropped) {
        let shared = self.shared;
        let provider = attempt.provider;
        let now = self.refresh_now();
        let quiet_for = attempt.quiet_for(now);
        let Some(permit) = attempt.permit.take() else { return };
        let mut table = shared.lock();
        let health = &mut table.health;
        let changes = match why {
            Dropped::Loser => self.run.cancel_loser(permit, health, now),
            Dropped::Abandoned => health.abandon(permit, quiet_for, now),
            Dropped::CallerFailed => {
                health.cancel(&permit);
                Changes::default()
            }
        };
        let line = Attempt {
            provider: shared.entries[provider].name.clone(),
            status: None,
            reason: match why {
                Dropped::CallerFailed => Reason::Other,
                _ => Reason::Abandoned,
            },
            message: None,
            elapsed: now.saturating_duration_since(attempt.started),
            retry_after: None,
            maybe_processed: attempt.is_sent && why != Dropped::CallerFailed,
            is_replayable: self.is_replayable,
        };
        attempt.trace.record_outcome(&line);
        self.release(table, provider, changes);
        self.record(line);
    }

    /// Unlocks the table, and emits what has changed in it.
    #[inline]
    fn release(&self, table: MutexGuard<'_, Table>, provider: usize, changes: Changes) {
        let state = Observer::SHOWS_STATE.then(|| table.health.state(provider, self.now));
        drop(table);
        if let Some(state) = state {
            self.shared.observer.set_state_gauge(provider, state);
        }
        if !changes.is_none() {
            self.emit_changes(provider, changes);
        }
    }

    #[cold]
    fn emit_changes(&self, provider: usize, changes: Changes) {
        let key = self.run.key();
        self.trace.within(|| self.shared.emit_changes(provider, key, changes));
    }

    /// Adds an attempt to the report, and emits that it is over.
    pub(super) fn record(&mut self, line: Attempt) {
        self.report.push(line);
        if let Some(attempt) = self.report.attempts().last()
            && (self.is_watched || attempt.reason() != Reason::Ok)
        {
            self.emit(&Event::AttemptFinished { attempt });
        }
    }

    /// Emits that the request goes on after the attempt that failed last.
    pub(super) fn emit_failed_over(&self, to: usize) {
        if let Some(from) = self.report.attempts().last() {
            self.emit(&Event::Switched { from, to: &self.shared.entries[to].name });
        }
    }

    /// Emits that the end of a break or of a cooldown is lent to an attempt: the provider's, its key's, or
    /// both.
    #[cold]
    pub(super) fn emit_probing(&self, permit: &Permit) {
        let shared = self.shared;
        let provider = &shared.entries[permit.provider].name;
        if permit.is_own_probe() {
            shared.observer.set_state_gauge(permit.provider, State::Probing);
            self.emit(&Event::BreakerProbing { provider, key: None });
        }
        if let Some(key) = self.run.key().filter(|_| permit.is_key_probe()) {
            let key = Some(&*shared.shown_key(key));
            self.emit(&Event::BreakerProbing { provider, key });
        }
    }

    /// Emits that these providers were passed over at their limit.
    #[cold]
    pub(super) fn emit_at_capacity(&self, full: ProviderSet) {
        for provider in full.iter() {
            self.emit(&Event::AtCapacity { provider: &self.shared.entries[provider].name });
        }
    }

    /// Emits that a hedge is sent.
    pub(super) fn emit_hedged(&self, silent: &AttemptState<'_>, to: usize) {
        let name = |provider: usize| &*self.shared.entries[provider].name;
        self.emit(&Event::HedgeSent {
            from: name(silent.provider),
            to: name(to),
            waited: self.now.saturating_duration_since(silent.started),
        });
    }

    /// Whether an error shows a secret. A transport error shows nothing but its URL, which was
    /// cleaned; any other error may.
    pub(super) fn is_shown_by(&self, error: &Error) -> bool {
        matches!(error, Error::Middleware(_)) && message::shows_secret(error, &self.secrets())
    }

    /// Ends the request with an error that holds every attempt.
    pub(super) fn fail(&mut self, cause: Cause, extensions: &mut Extensions) -> Error {
        let ending = match cause {
            Cause::PathRefused | Cause::UnknownRoute { .. } => Ending::NoNews,
            _ => self.unserved(),
        };
        let report = self.finish(ending, extensions);
        FailoverError::new(cause, report).into_middleware()
    }

    /// Ends a request for which no provider was asked.
    pub(super) fn fail_unasked(&mut self, extensions: &mut Extensions) -> Error {
        let is_late = self.now >= self.run.deadline().at;
        self.fail(if is_late { Cause::NoTime } else { Cause::NobodyToAsk }, extensions)
    }

    /// How a request ends that no provider served.
    pub(super) fn unserved(&self) -> Ending {
        match self.run.ending() {
            Unserved::Rejected => Ending::Rejected,
            Unserved::Exhausted => Ending::Exhausted,
        }
    }

    /// Ends the request and leaves its report with the caller. It is returned for the response, too.
    pub(super) fn finish(&mut self, ending: Ending, extensions: &mut Extensions) -> Report {
        self.close(ending);
        let report = std::mem::replace(&mut self.report, Report::new());
        extensions.insert(report.clone());
        report
    }

    fn close(&mut self, ending: Ending) {
        self.is_finished = true;
        let shared = self.shared;
        let served = ending == Ending::Served;
        self.report.finish(served, self.now.saturating_duration_since(self.started));
        if self.counted.is_none() {
            self.count(&mut shared.lock(), ending, None);
        }
        self.trace.record_end(&self.report);
        let report = &self.report;
        match ending {
            Ending::Exhausted => self.emit(&Event::Exhausted { report }),
            Ending::Rejected => self.emit(&Event::Rejected { report }),
            Ending::Served | Ending::NoNews => {}
        }
        let Some(Counted { ratio: switch_ratio, crossing }) = self.counted.take() else { return };
        let added_latency = served.then(|| self.added_latency()).flatten();
        if self.is_watched {
            self.emit(&Event::Finished { report, added_latency, switch_ratio });
        } else {
            shared.observer.count_finished(report, added_latency, switch_ratio);
        }
        if let Some(crossing) = crossing {
            let first = self.run.first().map_or("", |first| &shared.entries[first].name);
            self.emit(&match crossing {
                Crossing::High { ratio, reason } => {
                    Event::SwitchRateHigh { provider: first, ratio, reason }
                }
                Crossing::Normal { ratio } => Event::SwitchRateNormal { provider: first, ratio },
            });
        }
    }

    fn added_latency(&self) -> Option<Duration> {
        match self.begun {
            ..=1 => Some(Duration::ZERO),
            _ => self.served_sent?.checked_duration_since(self.first_sent?),
        }
    }

    fn count_served(&mut self, table: &mut Table, provider: usize, started: Instant) {
        self.served_sent = Some(started);
        self.count(table, Ending::Served, Some(provider));
    }

    fn count(&mut self, table: &mut Table, ending: Ending, served_by: Option<usize>) {
        let first = self.run.first();
        table.counts.count(ending, served_by.is_some() && served_by != first);
        // A route that puts another provider first says nothing about the chain's first.
        let first = first.filter(|first| table.order.first() == Some(first));
        let is_news = matches!(ending, Ending::Served | Ending::Exhausted);
        let crossing = first.filter(|_| is_news).and_then(|first| {
            let name = &self.shared.entries[first].name;
            let failed = |attempt: &&Attempt| attempt.provider == *name;
            let reason = self.report.attempts().iter().find(failed).map(Attempt::reason);
            let reason = reason.or(self.first_asked.then_some(Reason::Abandoned));
            table.switch_rate.record(served_by == Some(first), reason, self.now)
        });
        self.counted = Some(Counted { ratio: table.switch_rate.last_ratio(), crossing });
    }

    fn emit(&self, event: &Event<'_>) {
        self.trace.within(|| self.shared.observer.emit(event));
    }

    pub(super) fn secrets(&self) -> Secrets {
        self.shared.secrets(&self.secrets)
    }
}

impl Drop for RequestState<'_> {
    fn drop(&mut self) {
        if !self.is_finished {
            self.refresh_now();
            self.close(Ending::NoNews);
        }
    }
}
