//! What becomes of a request when one of its attempts ends.

use std::time::{Duration, Instant};

use super::{AttemptState, RequestState, TableGuard};
use crate::chain::outcome::{AttemptResult, Circumstances};
use crate::health::{Changes, Permit};
use crate::message::Secrets;
use crate::observe::Observer;
use crate::report::Attempt;
use crate::run::{Settled, Step};
use crate::verdict::{Reason, Verdict};

/// Why an attempt in flight is dropped.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::chain) enum Dropped {
    /// Another attempt served.
    Loser,
    /// The caller dropped the request.
    Abandoned,
    /// The caller's own body failed.
    CallerFailed,
}

/// What became of an attempt.
pub(in crate::chain) struct Settlement {
    pub(in crate::chain) settled: Settled,
    pub(in crate::chain) step: Step,
    /// Its line in the report.
    pub(in crate::chain) line: Attempt,
    /// What changed in the provider's health.
    pub(in crate::chain) changes: Changes,
    pub(in crate::chain) provider: usize,
    pub(in crate::chain) started: Instant,
    /// That of a committed stream, which ends with it.
    pub(in crate::chain) permit: Option<Permit>,
}

impl RequestState<'_> {
    /// Judges what came back, moves the provider's health by it, and asks the run what is next. A
    /// committed stream keeps its permit until it ends. `of_caller`: what the caller put on the
    /// request, which is asked for only where a message is made.
    pub(in crate::chain) fn settle(
        &mut self,
        attempt: &mut AttemptState<'_>,
        result: &mut AttemptResult,
        of_caller: impl Fn() -> Secrets,
    ) -> Settlement {
        let shared = self.shared;
        let now = self.refresh_now();
        let provider = attempt.provider();
        if !attempt.secrets.is_empty() {
            self.secrets.get_or_insert_default().append(&mut attempt.secrets);
        }
        let circumstances = Circumstances {
            provider,
            upgrade_asked: self.upgrade_asked,
            is_replayable: self.is_replayable,
            until: attempt.until,
            to_headers: attempt.answered.unwrap_or(now).saturating_duration_since(attempt.started),
            started: attempt.started,
            quiet_since: attempt.quiet_since(),
            now,
        };
        let (judgement, line) = result.judge(shared, &circumstances, || self.secrets(&of_caller()));
        attempt.trace.record_outcome(&line);
        // The user's closures have run: nothing between here and the end of the lock can panic.
        let mut table = shared.lock();
        let health = &mut table.health;
        let mut streaming = None;
        let (settled, changes) = match (&*result, attempt.permit.take()) {
            (AttemptResult::Stream(stream), Some(mut permit))
                if judgement.verdict == Verdict::Accept =>
            {
                let status = stream.status().as_u16();
                let to_headers = circumstances.to_headers;
                let changes = self.run.commit(&mut permit, status, to_headers, health, now);
                streaming = Some(permit);
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
        self.release(table, provider);
        let started = attempt.started;
        Settlement { settled, step, line, changes, provider, started, permit: streaming }
    }

    /// Counts the attempt whose answer was kept as the one that served.
    pub(in crate::chain) fn serve_kept(&mut self, provider: usize, started: Instant) {
        let shared = self.shared;
        self.report.move_last(&shared.entries[provider].name);
        self.count_served(&mut shared.lock(), provider, started);
    }

    /// Drops an attempt that is still in flight.
    pub(in crate::chain) fn drop_attempt(&mut self, attempt: &mut AttemptState<'_>, why: Dropped) {
        let shared = self.shared;
        let provider = attempt.provider();
        let now = self.refresh_now();
        let quiet_since = attempt.quiet_since();
        let quiet_for =
            quiet_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
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
            code: None,
            message: None,
            elapsed: now.saturating_duration_since(attempt.started),
            retry_after: None,
            maybe_processed: attempt.is_sent && why != Dropped::CallerFailed,
            is_replayable: self.is_replayable,
        };
        attempt.trace.record_outcome(&line);
        self.release(table, provider);
        self.record(line, provider, changes);
    }

    /// Unlocks the table, and shows the provider's state.
    #[inline]
    fn release(&self, table: TableGuard<'_>, provider: usize) {
        let state = Observer::SHOWS_STATE.then(|| table.health.state(provider, self.now));
        drop(table);
        if let Some(state) = state {
            self.shared.observer.set_state_gauge(provider, state);
        }
    }
}
