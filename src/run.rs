//! One request's decisions: whom to ask, until when, and when to stop.
//!
//! A [`Run`] never waits, sends or reads a clock. The driver asks it for a [`Step`], does it, and
//! records the outcome. So every order of events, however unlikely, can be a table or property test
//! in virtual time.

mod choice;
mod judgement;
mod limits;
mod replay;
mod set;
mod unasked;

use std::sync::Arc;
use std::time::{Duration, Instant};

use self::choice::pass_over;
pub(crate) use self::judgement::{Judgement, Settled, Unserved};
pub use self::limits::Limits;
pub(crate) use self::limits::{Bound, ChainLimits, Deadline, Until};
pub(crate) use self::replay::is_idempotent;
pub use self::replay::{Ambiguous, Replay};
pub(crate) use self::set::ProviderSet;
pub(crate) use self::unasked::Unasked;
use crate::health::{Changes, Concern, HealthSignal, HealthTable, Permit, after};
use crate::verdict::{Fault, Verdict};

/// What is to be done next.
#[derive(Debug)]
pub(crate) enum Step {
    /// Ask this provider and give up at `until`. After the `last` attempt no other provider is
    /// asked. A `hedge` is sent while another attempt is silent. It is news of the `full` providers that
    /// they were passed over at their limit.
    Send { permit: Permit, until: Until, last: bool, hedge: bool, full: Option<Box<ProviderSet>> },
    /// Wait for what is in flight; if there is a time, no longer than until then.
    Wait(Option<Instant>),
    /// No other provider is to be asked.
    Done,
}

/// One request's way through the providers.
#[derive(Debug)]
pub(crate) struct Run {
    order: Arc<[usize]>,
    /// What the request is about, as far as health depends on it.
    key: Option<Box<[u8]>>,
    /// The providers that were asked, or whose host could not be reached.
    excluded: ProviderSet,
    deadline: Deadline,
    /// The request's own limit for each attempt. Boxed, since it is rare and a run is moved about.
    attempt_limit: Option<Box<Duration>>,
    attempts: u8,
    max_attempts: u8,
    in_flight: u8,
    idempotent: bool,
    replayable: bool,
    over: bool,
    /// Whether the last outcome allows asking unavailable providers.
    allow_unhealthy: bool,
    /// Whether an attempt failed in whose place no other provider was asked yet.
    failover_pending: bool,
    hedged: bool,
    /// When the attempt in flight has been silent for too long; `None` also once it was hedged.
    hedge_at: Option<Instant>,
    /// The accepted error that is the answer if the attempt in flight has no better one.
    kept: Option<Kept>,
    /// The number of the attempt that served.
    winner: u64,
    /// Whether a provider refused the request itself, and whether one failed.
    was_refused: bool,
    has_failed: bool,
}

#[derive(Clone, Copy, Debug)]
struct Kept {
    sequence: u64,
    /// In a size that keeps a run small: it is moved about.
    provider: u32,
    has_response: bool,
}

impl Run {
    /// A run of a request whose caller gives it as long as `timeout`, if it says.
    #[inline]
    pub(crate) fn new(
        order: Arc<[usize]>,
        limits: &ChainLimits,
        idempotent: bool,
        timeout: Option<Duration>,
        now: Instant,
    ) -> Self {
        Self {
            order,
            key: None,
            excluded: ProviderSet::default(),
            deadline: limits.deadline(timeout, now),
            attempt_limit: None,
            attempts: 0,
            max_attempts: u8::try_from(limits.max_attempts).unwrap_or(u8::MAX),
            in_flight: 0,
            idempotent,
            replayable: true,
            over: false,
            allow_unhealthy: true,
            failover_pending: false,
            hedged: false,
            hedge_at: None,
            kept: None,
            winner: 0,
            was_refused: false,
            has_failed: false,
        }
    }

    /// The provider that serves where nothing fails.
    pub(crate) fn first(&self) -> Option<usize> {
        self.order.first().copied()
    }

    /// Takes the request's own limits in place of the chain's.
    #[cold]
    pub(crate) fn limit(&mut self, own: &Limits, timeout: Option<Duration>, now: Instant) {
        self.deadline = own.deadline(timeout, now).unwrap_or(self.deadline);
        self.attempt_limit = own.of_attempt().map(Box::new);
        self.max_attempts = own.max_attempts().unwrap_or(self.max_attempts);
    }

    /// The first provider in order that is not isolated.
    #[inline]
    pub(crate) fn first_of(&self, health: &HealthTable) -> Option<usize> {
        self.order.iter().copied().find(|provider| !health.is_isolated(*provider))
    }

    /// Sets what the request is about.
    pub(crate) fn set_key(&mut self, key: Option<Box<[u8]>>) {
        self.key = key;
    }

    pub(crate) fn key(&self) -> Option<&[u8]> {
        self.key.as_deref()
    }

    pub(crate) fn deadline(&self) -> Deadline {
        self.deadline
    }

    /// When the attempt in flight is to be hedged, if that is all that the run waits for.
    pub(crate) fn hedge_at(&self) -> Option<Instant> {
        self.hedge_at
    }

    /// Sets the chain's order.
    pub(crate) fn set_order(&mut self, order: Arc<[usize]>) {
        self.order = order;
    }

    /// Takes another order than the chain's.
    pub(crate) fn reorder<E>(
        &mut self,
        order: impl FnOnce(&Arc<[usize]>) -> Result<Arc<[usize]>, E>,
    ) -> Result<(), E> {
        self.order = order(&self.order)?;
        Ok(())
    }

    /// Limits the run to one attempt.
    pub(crate) fn forbid_failover(&mut self) {
        self.max_attempts = 1;
    }

    /// The request can be sent only once.
    pub(crate) fn forbid_replay(&mut self) {
        self.replayable = false;
    }

    /// Whether more than one provider could be asked, so that a copy of the request is worth having.
    pub(crate) fn may_fail_over(&self, health: &HealthTable) -> bool {
        self.max_attempts > 1 && self.usable(health).nth(1).is_some()
    }

    pub(crate) fn step(
        &mut self,
        limits: &ChainLimits,
        health: &mut HealthTable,
        now: Instant,
    ) -> Step {
        if self.over || self.attempts >= self.max_attempts || now >= self.deadline.at {
            return self.rest();
        }
        let hedge = self.in_flight > 0 && !self.failover_pending;
        if hedge && self.hedge_at.is_none_or(|at| now < at) {
            return Step::Wait(self.hedge_at);
        }
        self.failover_pending = false;
        let Some(choice) = self.choose(health, now) else { return self.rest() };
        let is_first = self.attempts == 0;
        if let Some(hedging) = &mut health.hedging {
            if is_first {
                // Only what is sent earns a share of a hedge.
                hedging.deposit();
            }
            if hedge {
                self.hedged = true;
                if !hedging.withdraw() {
                    return self.rest();
                }
            }
        }
        self.excluded.insert(choice.provider);
        self.attempts += 1;
        self.in_flight += 1;
        let last = !self.replayable || self.attempts >= self.max_attempts || !choice.leaves_any;
        self.over = last;
        self.hedge_at =
            self.silence(choice.provider, limits, health).map(|silence| after(now, silence));
        let own = self.attempt_limit.as_deref().copied();
        let until = limits.until(choice.provider, own, &self.deadline, is_first, last, now);
        let lease_until = match choice.may_probe {
            true => after(until.at, limits.hold.saturating_add(ChainLimits::LEASE_MARGIN)),
            false => until.at,
        };
        let full = match choice.full.is_empty() {
            true => None,
            false => pass_over(choice.full, health, now),
        };
        let permit = health.admit(choice.provider, self.key(), now, lease_until);
        Step::Send { permit, until, last, hedge, full }
    }

    /// Records the outcome of an attempt.
    pub(crate) fn record_outcome(
        &mut self,
        permit: Permit,
        judgement: Judgement,
        limits: &ChainLimits,
        health: &mut HealthTable,
        now: Instant,
    ) -> (Settled, Changes) {
        self.in_flight -= 1;
        let provider = permit.provider();
        let settled = self.settle(&permit, &judgement, limits);
        let (served_by, has_response) = match (settled, self.kept) {
            (Settled::Serve, _) => (provider, judgement.status.is_some()),
            (Settled::ServeKept, Some(kept)) => (kept.provider as usize, kept.has_response),
            _ => (provider, false),
        };
        if has_response {
            health.serve(served_by);
        }
        let mut report = None;
        if let Some(status) = judgement.status {
            let not_found = status == 404 && !judgement.unknown_model;
            report = health.record_answer(&permit, not_found, judgement.time_to_headers);
            if judgement.verdict == Verdict::Accept {
                record_latency(health, &permit, now);
            }
        }
        let signal = match (judgement.signal(), judgement.cut_after) {
            (HealthSignal::Failure, Some(quiet_for)) => health.silence(&permit, quiet_for),
            (signal, _) => signal,
        };
        let mut changes = health.record_outcome(permit, signal, judgement.concern, now);
        if let Some(report) = report {
            changes.report(report);
        }
        (settled, changes)
    }

    /// Records an attempt that was dropped because another one served.
    pub(crate) fn cancel_loser(
        &mut self,
        permit: Permit,
        health: &mut HealthTable,
        now: Instant,
    ) -> Changes {
        self.in_flight -= 1;
        // An attempt is not to blame for being slower than one that began before it.
        let signal = match permit.is_before(self.winner) {
            true => HealthSignal::Silent,
            false => HealthSignal::Nothing,
        };
        health.record_outcome(permit, signal, Concern::Key, now)
    }

    /// Ends the run with a stream that has begun well, whose end is still to come.
    pub(crate) fn commit(
        &mut self,
        permit: &mut Permit,
        status: u16,
        time_to_headers: Duration,
        health: &mut HealthTable,
        now: Instant,
    ) -> Changes {
        self.in_flight -= 1;
        self.serve(permit);
        health.serve(permit.provider());
        record_latency(health, permit, now);
        let report = health.record_answer(permit, status == 404, time_to_headers);
        let mut changes = health.commit(permit, now);
        if let Some(report) = report {
            changes.report(report);
        }
        changes
    }

    /// Whether an outcome was accepted, be it one without an answer.
    pub(crate) fn has_accepted(&self) -> bool {
        self.winner > 0
    }

    /// How a run ends that served no answer.
    pub(crate) fn ending(&self) -> Unserved {
        match self.was_refused && !self.has_failed {
            true => Unserved::Rejected,
            false => Unserved::Exhausted,
        }
    }

    fn settle(&mut self, permit: &Permit, judgement: &Judgement, limits: &ChainLimits) -> Settled {
        // What is no answer is no refusal, even where it is accepted.
        self.has_failed |= judgement.status.is_none();
        match judgement.verdict {
            Verdict::Accept if self.in_flight > 0 && !judgement.is_good() => {
                // A worse answer is not a better one for being early.
                self.over = true;
                self.kept = Some(Kept {
                    provider: permit.provider() as u32,
                    sequence: permit.sequence(),
                    has_response: judgement.status.is_some(),
                });
                Settled::Keep
            }
            Verdict::Accept => {
                self.serve(permit);
                // Of two errors, the one that would have come without the hedge.
                let is_earlier = |kept: Kept| !permit.is_before(kept.sequence);
                match !judgement.is_good() && self.kept.is_some_and(is_earlier) {
                    true => Settled::ServeKept,
                    false => Settled::Serve,
                }
            }
            Verdict::FailOver(fault) => {
                self.fail_over(permit.provider(), fault, judgement, limits);
                match self.kept {
                    Some(_) => Settled::ServeKept,
                    None => Settled::FailOver,
                }
            }
        }
    }

    fn serve(&mut self, permit: &Permit) {
        self.over = true;
        self.winner = permit.sequence();
    }

    fn fail_over(
        &mut self,
        provider: usize,
        fault: Fault,
        judgement: &Judgement,
        limits: &ChainLimits,
    ) {
        self.failover_pending = true;
        self.allow_unhealthy = fault != Fault::None;
        self.over |= judgement.ambiguous
            && limits.ambiguous == Ambiguous::IdempotentOnly
            && !self.idempotent;
        let refused = fault == Fault::None && judgement.status.is_some();
        self.was_refused |= refused;
        self.has_failed |= !refused;
        if judgement.unreachable {
            let same_host = |other: &&usize| limits.hosts[**other] == limits.hosts[provider];
            self.order.iter().filter(same_host).for_each(|other| self.excluded.insert(*other));
        }
    }

    /// No provider is to be asked now.
    fn rest(&mut self) -> Step {
        self.hedge_at = None;
        if self.in_flight > 0 { Step::Wait(None) } else { Step::Done }
    }

    /// How long a provider that is asked now may be silent before a hedge is sent.
    fn silence(
        &self,
        provider: usize,
        limits: &ChainLimits,
        health: &HealthTable,
    ) -> Option<Duration> {
        let hedging = health.hedging.as_ref()?;
        let may_be_processed_twice = self.idempotent || limits.ambiguous == Ambiguous::FailOver;
        let allowed = !self.hedged && !self.over && may_be_processed_twice;
        allowed.then(|| hedging.delay(provider)).flatten()
    }

    /// The providers that may still be asked and are not isolated.
    fn usable(&self, health: &HealthTable) -> impl Iterator<Item = usize> {
        self.order.iter().copied().filter(|provider| self.is_usable(*provider, health))
    }

    #[inline]
    fn is_usable(&self, provider: usize, health: &HealthTable) -> bool {
        !self.excluded.contains(provider) && !health.is_isolated(provider)
    }
}

fn record_latency(health: &mut HealthTable, permit: &Permit, now: Instant) {
    if let Some(hedging) = &mut health.hedging {
        hedging.record(permit.provider(), permit.elapsed(now));
    }
}

#[cfg(test)]
mod callers;
#[cfg(test)]
mod tests;
