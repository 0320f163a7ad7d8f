//! One request's decisions: whom to ask, until when, and when to stop.
//!
//! A [`Run`] never waits, sends or looks at a clock. The driver asks it for a [`Step`], does it, and
//! tells it what came of it; that makes every order of events, however unlikely, a table or property
//! test in virtual time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::health::{Admission, Board, Changes, News, Ticket, after};
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
    /// Ask this provider and give up at `until`. After the `last` attempt nobody else is asked.
    /// `hedge`: beside one that is silent.
    Send { ticket: Ticket, until: Instant, last: bool, hedge: bool },
    /// Wait for what is in flight; if there is a time, no longer than until then.
    Wait(Option<Instant>),
    /// Nobody else is to be asked.
    Done,
}

/// What came of an attempt, as far as decisions go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Landing {
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
    /// Whether the last outcome allows asking providers that are passed over.
    desperate: bool,
    /// Whether an attempt failed that nobody was asked in place of yet.
    owed: bool,
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
            desperate: true,
            owed: false,
            hedge_at: None,
            hedged: false,
        }
    }

    /// The provider that an undisturbed request is served by.
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
    pub(crate) fn may_fail_over(&self, board: &Board, now: Instant) -> bool {
        self.max_attempts > 1 && self.usable(board, now).nth(1).is_some()
    }

    pub(crate) fn step(&mut self, limits: &Limits, board: &mut Board, now: Instant) -> Step {
        if self.over || self.attempts >= self.max_attempts || now >= self.deadline {
            return self.rest();
        }
        let hedge = self.in_flight > 0 && !self.owed;
        if hedge && self.hedge_at.is_none_or(|at| now < at) {
            return Step::Wait(self.hedge_at);
        }
        self.owed = false;
        let Some(choice) = self.choose(board, now) else { return self.rest() };
        if hedge {
            self.hedged = true;
            if !board.hedging.as_mut().is_some_and(Hedging::spend) {
                return self.rest();
            }
        }
        self.tried |= 1 << choice.provider;
        self.attempts += 1;
        self.in_flight += 1;
        let last = !self.replayable || self.attempts >= self.max_attempts || !choice.leaves_any;
        self.over = last;
        self.hedge_at =
            self.silence(choice.provider, limits, board).map(|silence| after(now, silence));
        let until = self.attempt_end(&choice, last, limits, now);
        let lease_until = after(until, limits.hold.saturating_add(Limits::LEASE_MARGIN));
        let ticket = board.admit(choice.provider, now, lease_until);
        Step::Send { ticket, until, last, hedge }
    }

    /// Takes in what came of an attempt that was in flight.
    pub(crate) fn land(
        &mut self,
        ticket: Ticket,
        landing: Landing,
        limits: &Limits,
        board: &mut Board,
        now: Instant,
    ) -> Changes {
        self.in_flight -= 1;
        match landing.verdict {
            Verdict::Accept => self.over = true,
            Verdict::FailOver(fault) => {
                self.owed = true;
                self.desperate = fault != Fault::None;
                self.over |= landing.ambiguous
                    && limits.ambiguous == Ambiguous::IdempotentOnly
                    && !self.idempotent;
            }
        }
        if landing.verdict == Verdict::Accept && landing.status.is_some() {
            board.serve(ticket.provider);
        }
        board.land(ticket, landing.news(), now)
    }

    /// Takes in an attempt that was dropped because the one with the number `winner` served.
    pub(crate) fn lose(
        &mut self,
        ticket: Ticket,
        winner: u64,
        board: &mut Board,
        now: Instant,
    ) -> Changes {
        self.in_flight -= 1;
        // To be slower than somebody who was asked before is nothing to be blamed for.
        let news = if winner > ticket.sequence() { News::Overtaken } else { News::Nothing };
        board.land(ticket, news, now)
    }

    /// Ends the run with a stream that has begun well, whose end is still to come.
    pub(crate) fn commit(&mut self, ticket: &Ticket, board: &mut Board, now: Instant) -> Changes {
        self.in_flight -= 1;
        self.over = true;
        board.serve(ticket.provider);
        [board.commit(ticket, now), None]
    }

    /// Nobody is to be asked now.
    fn rest(&mut self) -> Step {
        self.hedge_at = None;
        if self.in_flight > 0 { Step::Wait(None) } else { Step::Done }
    }

    /// How long a provider that is asked now may be silent before somebody is asked beside it.
    fn silence(&self, provider: usize, limits: &Limits, board: &Board) -> Option<Duration> {
        let hedging = board.hedging.as_ref()?;
        let may_be_processed_twice = self.idempotent || limits.ambiguous == Ambiguous::FailOver;
        let allowed = !self.hedged && !self.over && may_be_processed_twice;
        allowed.then(|| hedging.delay(provider)).flatten()
    }

    /// The providers that have not been asked and are not isolated.
    fn usable(&self, board: &Board, now: Instant) -> impl Iterator<Item = (usize, Admission)> {
        self.order
            .iter()
            .filter(|provider| self.tried & (1 << **provider) == 0)
            .map(move |provider| (*provider, board.admission(*provider, now)))
            .filter(|(_, admission)| *admission != Admission::Isolated)
    }

    /// The first admissible provider in order; else, when nothing better is left, the passed-over
    /// one that reopens first. Beside an attempt in flight only healthy ones are asked.
    fn choose(&self, board: &Board, now: Instant) -> Option<Choice> {
        let mut admissible = None;
        let mut passed_over: Option<(usize, Instant)> = None;
        let mut passed_over_count = 0;
        let beside = self.in_flight > 0;
        for (provider, admission) in self.usable(board, now) {
            let until = match (admission, admissible) {
                (Admission::ProbeDue, _) if beside || !self.replayable => now,
                (Admission::PassedOver(until), _) => until,
                (_, None) => {
                    admissible = Some(provider);
                    continue;
                }
                (_, Some(provider)) => {
                    return Some(Choice { provider, others: true, leaves_any: true });
                }
            };
            passed_over_count += 1;
            if passed_over.is_none_or(|(_, earliest)| until < earliest) {
                passed_over = Some((provider, until));
            }
        }
        if let Some(provider) = admissible {
            return Some(Choice { provider, others: false, leaves_any: passed_over_count > 0 });
        }
        let (provider, _) = passed_over.filter(|_| self.desperate && !beside)?;
        let leaves_any = passed_over_count > 1;
        Some(Choice { provider, others: leaves_any, leaves_any })
    }

    /// An explicit limit always binds; the default one only where someone else is still to be asked.
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
    /// Whether anybody else could be asked at all.
    leaves_any: bool,
}

impl Landing {
    fn news(&self) -> News {
        match (self.verdict, self.status) {
            (Verdict::FailOver(Fault::Failure), _) => News::Failure,
            (Verdict::FailOver(Fault::Cooldown(hint)), _) => News::Cooldown(hint),
            (Verdict::Accept, Some(..400)) => News::Success,
            (_, Some(_)) => News::Neutral,
            (_, None) => News::Nothing,
        }
    }
}

#[cfg(test)]
mod tests;
