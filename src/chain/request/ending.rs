//! What a request leaves behind, however it ends: its report, its counts and its events.

use std::error::Error as StdError;
use std::time::{Duration, Instant};

use reqwest_middleware::Error;

use super::{AttemptState, RequestState, Table};
use crate::error::{FailoverError, FailureKind};
use crate::health::{Changes, Permit, State};
use crate::message::{self, Secrets};
use crate::observe::rate::Crossing;
use crate::observe::{Ending, Event, EventOrigin};
use crate::report::{Attempt, Report};
use crate::run::{ProviderSet, Unasked, Unserved};
use crate::verdict::Reason;

/// What counting the request said about the fallback rate.
pub(super) struct Counted {
    ratio: Option<f64>,
    crossing: Option<Box<Crossing>>,
}

impl RequestState<'_> {
    pub(in crate::chain) fn id(&self) -> u64 {
        self.report.id()
    }

    /// The request, for its events.
    pub(super) fn origin(&self) -> EventOrigin<'_> {
        EventOrigin { id: Some(self.report.id()), extensions: Some(self.extensions) }
    }

    /// Adds an attempt to the report, and emits that it is over and what that changed.
    pub(in crate::chain) fn record(&mut self, line: Attempt, provider: usize, changes: Changes) {
        self.report.push(line);
        if let Some(attempt) = self.report.attempts().last()
            && (self.is_watched || attempt.reason() != Reason::Ok)
        {
            self.emit(&Event::AttemptFinished { origin: self.origin(), attempt });
        }
        if !changes.is_none() {
            self.emit_changes(provider, changes);
        }
    }

    #[cold]
    fn emit_changes(&self, provider: usize, changes: Changes) {
        let (origin, key) = (self.origin(), self.run.key());
        self.trace.within(|| self.shared.emit_changes(origin, provider, key, changes));
    }

    /// Emits that the request goes on after the attempt that failed last.
    pub(in crate::chain) fn emit_failed_over(&self, to: usize) {
        if let Some(from) = self.report.attempts().last() {
            let (origin, to) = (self.origin(), &*self.shared.entries[to].name);
            self.emit(&Event::FailedOver { origin, from, to });
        }
    }

    /// Emits that the end of a break or of a cooldown is lent to an attempt: the provider's, its key's, or
    /// both.
    #[cold]
    pub(in crate::chain) fn emit_probing(&self, permit: &Permit) {
        let (shared, origin) = (self.shared, self.origin());
        let provider = &shared.entries[permit.provider()].name;
        if permit.is_own_probe() {
            shared.observer.set_state_gauge(permit.provider(), State::Probing);
            self.emit(&Event::BreakerProbing { origin, provider, key: None });
        }
        if let Some(key) = self.run.key().filter(|_| permit.is_key_probe()) {
            let shown = shared.shown_key(key);
            let key = Some(&*shown);
            self.emit(&Event::BreakerProbing { origin, provider, key });
        }
    }

    /// Emits that these providers were passed over at their limit.
    #[cold]
    pub(in crate::chain) fn emit_at_capacity(&self, full: ProviderSet) {
        for provider in full.iter() {
            let provider = &self.shared.entries[provider].name;
            self.emit(&Event::AtCapacity { origin: self.origin(), provider });
        }
    }

    /// Emits that a hedge is sent.
    pub(in crate::chain) fn emit_hedged(&self, silent: &AttemptState<'_>, to: usize) {
        let name = |provider: usize| &*self.shared.entries[provider].name;
        self.emit(&Event::HedgeSent {
            origin: self.origin(),
            from: name(silent.provider()),
            to: name(to),
            waited: self.now.saturating_duration_since(silent.started),
        });
    }

    /// Whether an error shows a secret. The URL of a transport error was cleaned; the rest of it may hold
    /// what the provider said, as HTTP/2 has it say when it closes a connection.
    pub(in crate::chain) fn is_shown_by(&self, error: &Error, of_caller: &Secrets) -> bool {
        let may_show: Option<&(dyn StdError + 'static)> = match error {
            Error::Reqwest(error) => error.source(),
            Error::Middleware(_) => Some(error),
        };
        may_show.is_some_and(|error| message::shows_secret(error, &self.secrets(of_caller)))
    }

    /// Ends the request with an error that holds every attempt.
    pub(in crate::chain) fn fail(&mut self, cause: FailureKind) -> Error {
        let ending = match cause {
            FailureKind::PathRefused
            | FailureKind::UnknownRoute { .. }
            | FailureKind::BodyFailed => Ending::NoNews,
            _ => self.unserved(),
        };
        let report = self.finish(ending);
        FailoverError::new(cause, report).into_middleware()
    }

    /// Ends a request for which no provider was asked.
    pub(in crate::chain) fn fail_unasked(&mut self) -> Error {
        let is_late = self.now >= self.run.deadline().at;
        self.fail(if is_late { FailureKind::NoTime } else { FailureKind::NoProviderToAsk })
    }

    /// How a request ends that no provider served.
    pub(in crate::chain) fn unserved(&self) -> Ending {
        match self.run.ending() {
            Unserved::Rejected => Ending::Rejected,
            Unserved::Exhausted => Ending::Exhausted,
        }
    }

    /// Ends the request and leaves its report with the caller. It is returned for the response, too.
    pub(in crate::chain) fn finish(&mut self, ending: Ending) -> Report {
        self.close(ending);
        let empty = Report::new(self.id());
        let report = std::mem::replace(&mut self.report, empty);
        self.extensions.insert(report.clone());
        report
    }

    fn close(&mut self, ending: Ending) {
        self.is_finished = true;
        let shared = self.shared;
        let served = ending == Ending::Served;
        self.report.finish(served, self.now.saturating_duration_since(self.started));
        if self.counted.is_none() {
            let mut table = shared.lock();
            self.count(&mut table, ending, None);
            if matches!(ending, Ending::Rejected | Ending::Exhausted) {
                self.explain_unasked(&table);
            }
        }
        self.trace.record_end(&self.report);
        let counted = self.counted.take();
        let (origin, report) = (self.origin(), &self.report);
        match ending {
            Ending::Exhausted => self.emit(&Event::Exhausted { origin, report }),
            Ending::Rejected => self.emit(&Event::Rejected { origin, report }),
            Ending::Served | Ending::NoNews => {}
        }
        let Some(Counted { ratio: fallback_ratio, crossing }) = counted else { return };
        let added_latency = served.then(|| self.added_latency()).flatten();
        if self.is_watched {
            self.emit(&Event::Finished { origin, report, added_latency, fallback_ratio });
        } else {
            shared.observer.count_finished(report, added_latency, fallback_ratio);
        }
        if let Some(crossing) = crossing {
            let first = self.run.first().map_or("", |first| &shared.entries[first].name);
            self.emit(&match *crossing {
                Crossing::High { ratio, reason } => {
                    Event::FallbackRateHigh { origin, provider: first, ratio, reason }
                }
                Crossing::Normal { ratio } => {
                    Event::FallbackRateNormal { origin, provider: first, ratio }
                }
            });
        }
    }

    /// Puts into the report why providers were not asked.
    #[cold]
    fn explain_unasked(&mut self, table: &Table) {
        let Self { shared, run, report, started, now, .. } = self;
        if run.has_accepted() {
            return;
        }
        let mut reasons: Vec<(Unasked, Vec<&str>)> = Vec::new();
        for provider in shared.order(table).iter() {
            let name = &*shared.entries[*provider].name;
            if report.attempts().iter().any(|attempt| attempt.provider() == name) {
                continue;
            }
            let why = run.why_unasked(*provider, &shared.limits, &table.health, *started, *now);
            match reasons.iter_mut().find(|(reason, _)| *reason == why) {
                Some((_, names)) => names.push(name),
                None => reasons.push((why, vec![name])),
            }
        }
        let lines =
            reasons.iter().map(|(why, names)| format!("{} not asked: {why}", names.join(", ")));
        let lines: Vec<_> = lines.collect();
        if !lines.is_empty() {
            report.set_unasked(lines.join("; "));
        }
    }

    fn added_latency(&self) -> Option<Duration> {
        match self.begun {
            // As most requests have: a subtraction of times is not free.
            ..=1 => Some(Duration::ZERO),
            _ => self.served_sent?.checked_duration_since(self.first_sent?),
        }
    }

    pub(super) fn count_served(&mut self, table: &mut Table, provider: usize, started: Instant) {
        self.served_sent = Some(started);
        self.count(table, Ending::Served, Some(provider));
    }

    fn count(&mut self, table: &mut Table, ending: Ending, served_by: Option<usize>) {
        let first = self.run.first();
        table.counts.count(ending, served_by.is_some() && served_by != first);
        // A route that puts another provider first says nothing about the chain's first.
        let first = self.run.first_of(&table.health).filter(|first| table.first() == Some(*first));
        let is_news = matches!(ending, Ending::Served | Ending::Exhausted);
        let crossing = first.filter(|_| is_news).and_then(|first| {
            let name = &self.shared.entries[first].name;
            let failed = |attempt: &&Attempt| attempt.provider == *name;
            let reason = self.report.attempts().iter().find(failed).map(Attempt::reason);
            let reason = reason.or(self.first_asked.then_some(Reason::Abandoned));
            table.fallback_rate.record(served_by == Some(first), reason, self.now)
        });
        let crossing = crossing.map(Box::new);
        self.counted = Some(Counted { ratio: table.fallback_rate.last_ratio(), crossing });
    }

    pub(super) fn emit(&self, event: &Event<'_>) {
        self.trace.within(|| self.shared.observer.emit(event));
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
