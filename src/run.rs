//! One request's decisions: whom to ask, until when, and when to stop.
//!
//! A [`Run`] never waits, sends or reads a clock. The driver asks it for a [`Step`], does it, and
//! records the outcome. So every order of events, however unlikely, can be a table or property test
//! in virtual time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::health::{Admission, Changes, HealthSignal, HealthTable, Permit, after};
use crate::hedge::Hedging;
use crate::verdict::{Fault, Verdict};

/// What to do when a provider may have processed a request although no usable answer came: a
/// timeout or a reset after it was sent, 504 and 524, or a redirect that was followed.
///
/// ```
/// use reqwest_failover::{Ambiguous, Provider, ProviderChain};
///
/// let chain = ProviderChain::builder([Provider::openai("key")])
///     .on_ambiguous(Ambiguous::IdempotentOnly)
///     .build()?;
/// # Ok::<(), reqwest_failover::ConfigError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ambiguous {
    /// Ask the next provider; the request may be processed, and billed, twice. The default, since a
    /// provider that hangs is the case that most needs covering.
    #[default]
    FailOver,
    /// Ask the next provider only for GET, HEAD, OPTIONS, PUT, DELETE and TRACE, and for requests
    /// with an `Idempotency-Key` header; hedge no others either. No two providers share such keys:
    /// here the header says that the request may be processed at two of them.
    IdempotentOnly,
}

/// What bounds every run of a chain.
#[derive(Debug)]
pub(crate) struct Limits {
    pub(crate) max_attempts: usize,
    pub(crate) ambiguous: Ambiguous,
    pub(crate) total: Duration,
    /// How long a response may be held back after its headers, while it is looked into.
    pub(crate) hold: Duration,
    /// Each provider's explicit limit, its own or the chain's.
    pub(crate) attempts: Vec<Option<Duration>>,
}

impl Limits {
    pub(crate) const DEFAULT_ATTEMPT: Duration = Duration::from_secs(120);
    pub(crate) const DEFAULT_TOTAL: Duration = Duration::from_secs(600);
    /// How much longer than its request a probe's lease lasts.
    const LEASE_MARGIN: Duration = Duration::from_secs(1);
}

/// What is to be done next.
#[derive(Debug)]
pub(crate) enum Step {
    /// Ask this provider and give up at `until`. After the `last` attempt no other provider is
    /// asked. A `hedge` is sent while another attempt is silent.
    Send { permit: Permit, until: Instant, last: bool, hedge: bool },
    /// Wait for what is in flight; if there is a time, no longer than until then.
    Wait(Option<Instant>),
    /// No other provider is to be asked.
    Done,
}

/// The outcome of an attempt, as far as decisions need it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Judgement {
    pub(crate) verdict: Verdict,
    /// The provider may have processed the request.
    pub(crate) ambiguous: bool,
    /// The response's status, if there was a response.
    pub(crate) status: Option<u16>,
}

/// One request's way through the providers.
#[derive(Debug)]
pub(crate) struct Run {
    order: Arc<[usize]>,
    /// One bit for each provider that was asked; `build()` allows no more than fit.
    tried: u128,
    attempts: usize,
    max_attempts: usize,
    deadline: Instant,
    idempotent: bool,
    replayable: bool,
    in_flight: usize,
    over: bool,
    /// Whether the last outcome allows asking unavailable providers.
    allow_unhealthy: bool,
    /// Whether an attempt failed in whose place no other provider was asked yet.
    failover_pending: bool,
    /// When the attempt in flight has been silent for too long; `None` also once it was hedged.
    hedge_at: Option<Instant>,
    hedged: bool,
}

impl Run {
    pub(crate) fn new(
        order: Arc<[usize]>,
        limits: &Limits,
        idempotent: bool,
        now: Instant,
    ) -> Self {
        Self {
            order,
            tried: 0,
            attempts: 0,
            max_attempts: limits.max_attempts,
            deadline: after(now, limits.total),
            idempotent,
            replayable: true,
            in_flight: 0,
            over: false,
            allow_unhealthy: true,
            failover_pending: false,
            hedge_at: None,
            hedged: false,
        }
    }

    /// The provider that serves where nothing fails.
    pub(crate) fn first(&self) -> Option<usize> {
        self.order.first().copied()
    }

    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
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

    /// Tells the run that the request can be sent only once.
    pub(crate) fn forbid_replay(&mut self) {
        self.replayable = false;
    }

    /// Whether more than one provider could be asked, so that a copy of the request is worth having.
    pub(crate) fn may_fail_over(&self, health: &HealthTable, now: Instant) -> bool {
        self.max_attempts > 1 && self.usable(health, now).nth(1).is_some()
    }

    pub(crate) fn step(&mut self, limits: &Limits, health: &mut HealthTable, now: Instant) -> Step {
        if self.over || self.attempts >= self.max_attempts || now >= self.deadline {
            return self.rest();
        }
        let hedge = self.in_flight > 0 && !self.failover_pending;
        if hedge && self.hedge_at.is_none_or(|at| now < at) {
            return Step::Wait(self.hedge_at);
        }
        self.failover_pending = false;
        let Some(choice) = self.choose(health, now) else { return self.rest() };
        if hedge {
            self.hedged = true;
            if !health.hedging.as_mut().is_some_and(Hedging::withdraw) {
                return self.rest();
            }
        }
        self.tried |= 1 << choice.provider;
        self.attempts += 1;
        self.in_flight += 1;
        let last = !self.replayable || self.attempts >= self.max_attempts || !choice.leaves_any;
        self.over = last;
        self.hedge_at =
            self.silence(choice.provider, limits, health).map(|silence| after(now, silence));
        let until = self.attempt_end(&choice, last, limits, now);
        let lease_until = after(until, limits.hold.saturating_add(Limits::LEASE_MARGIN));
        let permit = health.admit(choice.provider, now, lease_until);
        Step::Send { permit, until, last, hedge }
    }

    /// Records the outcome of an attempt.
    pub(crate) fn record_outcome(
        &mut self,
        permit: Permit,
        judgement: Judgement,
        limits: &Limits,
        health: &mut HealthTable,
        now: Instant,
    ) -> Changes {
        self.in_flight -= 1;
        match judgement.verdict {
            Verdict::Accept => self.over = true,
            Verdict::FailOver(fault) => {
                self.failover_pending = true;
                self.allow_unhealthy = fault != Fault::None;
                self.over |= judgement.ambiguous
                    && limits.ambiguous == Ambiguous::IdempotentOnly
                    && !self.idempotent;
            }
        }
        if judgement.verdict == Verdict::Accept && judgement.status.is_some() {
            health.serve(permit.provider);
        }
        health.record_outcome(permit, judgement.signal(), now)
    }

    /// Records an attempt that was dropped because the one with the number `winner` served.
    pub(crate) fn cancel_loser(
        &mut self,
        permit: Permit,
        winner: u64,
        health: &mut HealthTable,
        now: Instant,
    ) -> Changes {
        self.in_flight -= 1;
        // An attempt is not to blame for being slower than one that began before it.
        let signal = if winner > permit.sequence() {
            HealthSignal::Overtaken
        } else {
            HealthSignal::Nothing
        };
        health.record_outcome(permit, signal, now)
    }

    /// Ends the run with a stream that has begun well, whose end is still to come.
    pub(crate) fn commit(
        &mut self,
        permit: &Permit,
        health: &mut HealthTable,
        now: Instant,
    ) -> Changes {
        self.in_flight -= 1;
        self.over = true;
        health.serve(permit.provider);
        [health.commit(permit, now), None]
    }

    /// No provider is to be asked now.
    fn rest(&mut self) -> Step {
        self.hedge_at = None;
        if self.in_flight > 0 { Step::Wait(None) } else { Step::Done }
    }

    /// How long a provider that is asked now may be silent before a hedge is sent.
    fn silence(&self, provider: usize, limits: &Limits, health: &HealthTable) -> Option<Duration> {
        let hedging = health.hedging.as_ref()?;
        let may_be_processed_twice = self.idempotent || limits.ambiguous == Ambiguous::FailOver;
        let allowed = !self.hedged && !self.over && may_be_processed_twice;
        allowed.then(|| hedging.delay(provider)).flatten()
    }

    /// The providers that have not been asked and are not isolated.
    fn usable(
        &self,
        health: &HealthTable,
        now: Instant,
    ) -> impl Iterator<Item = (usize, Admission)> {
        self.order
            .iter()
            .filter(|provider| self.tried & (1 << **provider) == 0)
            .map(move |provider| (*provider, health.admission(*provider, now)))
            .filter(|(_, admission)| *admission != Admission::Isolated)
    }

    /// The first available provider in order; else, when none is left, the unavailable one that
    /// reopens first. A hedge is sent to an available one only.
    fn choose(&self, health: &HealthTable, now: Instant) -> Option<Choice> {
        let mut available = None;
        let mut unavailable: Option<(usize, Instant)> = None;
        let mut unavailable_count = 0;
        let is_hedge = self.in_flight > 0;
        for (provider, admission) in self.usable(health, now) {
            let until = match (admission, available) {
                (Admission::ProbeDue, _) if is_hedge || !self.replayable => now,
                (Admission::Unavailable(until), _) => until,
                (_, None) => {
                    available = Some(provider);
                    continue;
                }
                (_, Some(provider)) => {
                    return Some(Choice { provider, others: true, leaves_any: true });
                }
            };
            unavailable_count += 1;
            if unavailable.is_none_or(|(_, earliest)| until < earliest) {
                unavailable = Some((provider, until));
            }
        }
        if let Some(provider) = available {
            return Some(Choice { provider, others: false, leaves_any: unavailable_count > 0 });
        }
        let (provider, _) = unavailable.filter(|_| self.allow_unhealthy && !is_hedge)?;
        let leaves_any = unavailable_count > 1;
        Some(Choice { provider, others: leaves_any, leaves_any })
    }

    /// An explicit limit always binds; the default one only where another is still to be asked.
    fn attempt_end(&self, choice: &Choice, last: bool, limits: &Limits, now: Instant) -> Instant {
        let explicit = limits.attempts[choice.provider];
        let limit = match explicit {
            None if choice.others && !last => Some(Limits::DEFAULT_ATTEMPT),
            explicit => explicit,
        };
        limit.map_or(self.deadline, |limit| after(now, limit).min(self.deadline))
    }
}

struct Choice {
    provider: usize,
    /// Whether there is another provider of the same standing to go on to.
    others: bool,
    /// Whether any other provider could be asked at all.
    leaves_any: bool,
}

impl Judgement {
    fn signal(&self) -> HealthSignal {
        match (self.verdict, self.status) {
            (Verdict::FailOver(Fault::Failure), _) => HealthSignal::Failure,
            (Verdict::FailOver(Fault::Cooldown(hint)), _) => HealthSignal::Cooldown(hint),
            (Verdict::Accept, Some(..400)) => HealthSignal::Success,
            (_, Some(_)) => HealthSignal::Neutral,
            (_, None) => HealthSignal::Nothing,
        }
    }
}

#[cfg(test)]
mod tests;
