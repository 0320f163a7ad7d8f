//! One circuit breaker and one cooldown, and the rules that move them.

use std::time::{Duration, Instant};

use super::breaker::Breaker;
use super::cooldown::{Cooldown, LENT_FROM};
use super::peers::Peers;
use super::permit::{Admitted, Ticket};
use super::ring::{Ring, after, is_recent, nanos};
use super::{Admission, Change, HealthSignal, Moves, OpenCause, State};

/// What the rules need to know besides the circuit that they move.
pub(super) struct Rules<'a> {
    pub(super) breaker: &'a Breaker,
    pub(super) cooldown: &'a Cooldown,
    pub(super) random: &'a mut fastrand::Rng,
    /// The number of the current tenth of the window.
    pub(super) tick: u64,
    /// The last permit's number: after a transition, signals of this and of older permits are old.
    pub(super) sequence: u64,
    pub(super) now: Instant,
}

/// A circuit breaker and a cooldown.
#[derive(Debug, Default)]
pub(super) struct Circuit {
    /// The length of the row of failures.
    pub(super) consecutive: u32,
    window: Ring<Share>,
    /// While the breaker is open: the end of the break.
    pub(super) open_until: Option<Instant>,
    pub(super) lease: Option<Lease>,
    /// The number of doublings of the next break.
    pub(super) level: u32,
    closed_at: Option<Instant>,
    /// The last permit before the breaker last opened or closed.
    moved_after: u64,
    pub(super) rest: Option<Rest>,
    /// The last permit before the last cooldown began.
    pub(super) rested_after: u64,
    /// What other processes say of it, and are told.
    pub(super) peers: Peers,
}

/// Requests, and those of them that failed.
#[derive(Debug, Default)]
struct Share {
    requests: u32,
    failures: u32,
}

/// A probe's right to be the only one. It ends by itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lease {
    pub(super) sequence: u64,
    pub(super) until: Instant,
}

/// The current or last cooldown; a success clears it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rest {
    pub(super) until: Instant,
    pub(super) level: u32,
    /// Whether its end is lent to one request, and none has yet been answered well.
    pub(super) is_lent: bool,
}

impl Circuit {
    #[inline]
    pub(super) fn admission(&self, now: Instant) -> Admission {
        if self.is_well() {
            return Admission::Available;
        }
        self.restricted_admission(now)
    }

    fn restricted_admission(&self, now: Instant) -> Admission {
        let is_lent = self.is_lent();
        let shut = self.open_until.max(self.rest.map(|rest| rest.until));
        let lease = self.lease.filter(|_| is_lent).map(|lease| lease.until);
        match shut.max(lease).filter(|until| *until > now) {
            Some(until) => Admission::Unavailable(until),
            None if is_lent => Admission::ProbeDue,
            None => Admission::Available,
        }
    }

    /// Whether what comes next is a probe.
    fn is_lent(&self) -> bool {
        self.open_until.is_some() || self.rest.is_some_and(|rest| rest.is_lent)
    }

    #[inline]
    pub(super) fn state(&self, now: Instant) -> State {
        if self.is_well() {
            return State::Closed;
        }
        let probing = self.lease.is_some_and(|lease| lease.until > now);
        match (self.open_until, self.resting(now)) {
            _ if probing && self.is_lent() => State::Probing,
            (open, Some(until)) if open < Some(until) => State::CoolingDown { until },
            (Some(until), _) => State::Open { until },
            (None, _) => match self.rest.filter(|rest| rest.is_lent) {
                Some(rest) => State::CoolingDown { until: rest.until },
                None => State::Closed,
            },
        }
    }

    /// How a permit of this number is admitted. A probe's lease ends at `lease_until`.
    #[inline]
    pub(super) fn admit(&mut self, sequence: u64, now: Instant, lease_until: Instant) -> Admitted {
        match self.admission(now) {
            Admission::ProbeDue => {
                self.lease = Some(Lease { sequence, until: lease_until });
                self.peers.tell();
                Admitted::Probe
            }
            Admission::Unavailable(_) if self.resting(now).is_some() => Admitted::WhileCoolingDown,
            _ => Admitted::Regular,
        }
    }

    /// Ends the lease of the permit of this number, if it holds one.
    pub(super) fn end_lease(&mut self, sequence: u64) {
        if self.holds_lease(sequence) {
            self.lease = None;
            self.peers.tell();
        }
    }

    pub(super) fn holds_lease(&self, sequence: u64) -> bool {
        self.lease.is_some_and(|lease| lease.sequence == sequence)
    }

    /// Whether it cools down, or has, and it is not known how it is after that.
    pub(super) fn is_resting(&self, now: Instant) -> bool {
        self.rest.is_some_and(|rest| rest.is_lent || rest.until > now)
    }

    /// Whether the breaker is open, also where its break is over.
    pub(super) fn is_open(&self) -> bool {
        self.open_until.is_some()
    }

    /// Whether a success changes nothing but counts.
    #[inline]
    pub(super) fn is_well(&self) -> bool {
        self.open_until.is_none() && self.rest.is_none()
    }

    pub(super) fn record(
        &mut self,
        ticket: Ticket,
        signal: HealthSignal,
        rules: &mut Rules<'_>,
    ) -> Moves {
        if signal == HealthSignal::Success && self.is_well() {
            self.succeed(ticket, rules.tick, rules.now);
            return [None, None];
        }
        if signal != HealthSignal::Nothing {
            self.peers.record_own_outcome();
        }
        [self.move_breaker(ticket, signal, rules), self.move_rest(ticket, signal, rules)]
    }

    /// A stream has begun well. It counts as a request that did not fail, until it breaks. The ticket
    /// is marked where it was counted.
    pub(super) fn commit(&mut self, ticket: &mut Ticket, rules: &Rules<'_>) -> Option<Change> {
        self.peers.record_own_outcome();
        if ticket.sequence > self.rested_after {
            self.end_rest();
        }
        if ticket.sequence <= self.moved_after || ticket.committed.is_some() {
            return None;
        }
        if self.open_until.is_some() {
            return Some(self.close(rules));
        }
        self.end_row(rules.now);
        self.count_request(rules.tick);
        ticket.commit(rules.tick);
        None
    }

    /// The end of the cooldown, while it lasts.
    fn resting(&self, now: Instant) -> Option<Instant> {
        self.rest.map(|rest| rest.until).filter(|until| *until > now)
    }

    fn move_breaker(
        &mut self,
        ticket: Ticket,
        signal: HealthSignal,
        rules: &mut Rules<'_>,
    ) -> Option<Change> {
        if ticket.sequence <= self.moved_after {
            return None;
        }
        match (self.open_until, ticket.admitted, signal) {
            (_, _, HealthSignal::Nothing) => None,
            (None, _, HealthSignal::Success) => {
                self.succeed(ticket, rules.tick, rules.now);
                None
            }
            // Sent during a cooldown because nothing else was left; its failure does not count.
            (None, Admitted::WhileCoolingDown, _) => None,
            (None, _, HealthSignal::Failure) => {
                self.count_failure(ticket, rules.tick);
                let row = self.lengthen_row(OpenCause::Consecutive, rules);
                let cause = row.or_else(|| self.is_bad(rules).then_some(OpenCause::Ratio));
                if cause == Some(OpenCause::Ratio) {
                    // To other processes it is a whole row.
                    let row = self.peers.unanswered(self.consecutive);
                    self.count_own_failures(rules.breaker.consecutive.saturating_sub(row));
                }
                cause.map(|cause| self.open(cause, rules))
            }
            // Slow is not wrong: only a row of it opens the breaker, not a share.
            (None, _, HealthSignal::Silent) => {
                let cause = self.lengthen_row(OpenCause::Silence, rules);
                cause.map(|cause| self.open(cause, rules))
            }
            // It asked for a rest, was given it, and asks again: a rest does not help.
            (None, _, HealthSignal::Cooldown(_)) if self.asks_again(ticket, rules.now) => {
                let cause = self.lengthen_row(OpenCause::Consecutive, rules);
                cause.map(|cause| self.open(cause, rules))
            }
            (None, _, HealthSignal::Cooldown(_) | HealthSignal::Neutral) => None,
            (None, _, HealthSignal::UnknownModel) => None,
            (Some(_), Admitted::Probe, HealthSignal::Failure | HealthSignal::Silent) => {
                self.count_own_failures(1);
                Some(self.open(OpenCause::Probe, rules))
            }
            (Some(_), Admitted::Probe, _) | (Some(_), _, HealthSignal::Success) => {
                Some(self.close(rules))
            }
            (Some(_), _, _) => None,
        }
    }

    /// A success where the breaker is closed.
    #[inline]
    pub(super) fn succeed(&mut self, ticket: Ticket, tick: u64, now: Instant) {
        if ticket.sequence <= self.moved_after {
            return;
        }
        self.end_row(now);
        if ticket.committed.is_none() {
            self.count_request(tick);
        }
    }

    /// One more of the row; the cause if that opens the breaker.
    fn lengthen_row(&mut self, cause: OpenCause, rules: &Rules<'_>) -> Option<OpenCause> {
        self.count_own_failures(1);
        (self.row(rules) >= rules.breaker.consecutive).then_some(cause)
    }

    /// The length of the row of failures: the own one, or the one over all processes.
    pub(super) fn row(&self, rules: &Rules<'_>) -> u32 {
        let heard = self.peers.failures(rules.breaker.consecutive, rules.now);
        let unanswered = self.peers.unanswered(self.consecutive);
        self.consecutive.max(unanswered.saturating_add(heard))
    }

    fn count_own_failures(&mut self, failures: u32) {
        self.consecutive = self.consecutive.saturating_add(failures);
        self.peers.count_failures(failures);
    }

    /// A success ends the row, also what others have seen of it.
    #[inline]
    fn end_row(&mut self, now: Instant) {
        self.consecutive = 0;
        if self.peers.is_unanswered() {
            self.peers.answer(now);
        }
    }

    /// Whether a cooldown that begins now follows one, without a success between.
    fn asks_again(&self, ticket: Ticket, now: Instant) -> bool {
        ticket.sequence > self.rested_after && self.rest.is_some_and(|rest| rest.until <= now)
    }

    #[inline]
    fn count_request(&mut self, tick: u64) {
        let share = self.window.current(tick);
        share.requests = share.requests.saturating_add(1);
    }

    fn count_failure(&mut self, ticket: Ticket, tick: u64) {
        // A stream that breaks was counted as a request when it began.
        if !ticket.committed().is_some_and(|committed| is_recent(committed, tick)) {
            self.count_request(tick);
        }
        let share = self.window.current(tick);
        share.failures = share.failures.saturating_add(1);
    }

    /// Whether the share of failures in the window opens the breaker.
    fn is_bad(&self, rules: &Rules<'_>) -> bool {
        let recent = self.window.recent(rules.tick);
        let (requests, failures) = recent.fold((0u64, 0u64), |(requests, failures), share| {
            (requests + u64::from(share.requests), failures + u64::from(share.failures))
        });
        requests >= u64::from(rules.breaker.minimum)
            && failures as f64 >= rules.breaker.ratio * requests as f64
    }

    #[cold]
    pub(super) fn open(&mut self, cause: OpenCause, rules: &mut Rules<'_>) -> Change {
        if let Some(closed_at) = self.closed_at.take() {
            let healthy = rules.now.saturating_duration_since(closed_at);
            self.level = self.level.saturating_sub(whole(healthy, rules.breaker.first_break));
        }
        if self.consecutive < rules.breaker.consecutive && cause != OpenCause::Probe {
            // Others have seen the rest of the row, and perhaps more breaks.
            self.level = self.level.max(self.peers.breaks(rules.now).saturating_sub(1));
        }
        let half = rules.breaker.break_length(self.level) / 2;
        let earliest = after(rules.now, half);
        let until = after(earliest, half.mul_f64(rules.random.f64()));
        self.level = (self.level + 1).min(MOST_BREAKS);
        self.open_until = Some(until);
        self.lease = None;
        self.moved_after = rules.sequence;
        let was_seen = self.peers.unanswered(self.consecutive) > 0;
        self.peers.record_opening(earliest, was_seen);
        Change::Opened { until, breaks: self.level, cause }
    }

    #[cold]
    fn close(&mut self, rules: &Rules<'_>) -> Change {
        self.open_until = None;
        self.lease = None;
        self.window = Ring::default();
        self.closed_at = Some(rules.now);
        self.moved_after = rules.sequence;
        self.peers.record_close(rules.now);
        self.end_row(rules.now);
        Change::Closed
    }

    fn move_rest(
        &mut self,
        ticket: Ticket,
        signal: HealthSignal,
        rules: &Rules<'_>,
    ) -> Option<Change> {
        if ticket.sequence <= self.rested_after {
            return None;
        }
        let hint = match signal {
            HealthSignal::Success => {
                self.end_rest();
                return None;
            }
            HealthSignal::Neutral => {
                self.reopen_if_probe(ticket);
                return None;
            }
            HealthSignal::Cooldown(hint) => hint.map(|hint| rules.cooldown.hinted(hint)),
            HealthSignal::UnknownModel => Some(rules.cooldown.unknown_model()),
            _ => return None,
        };
        let while_cooling_down =
            |rest: &Rest| ticket.admitted == Admitted::WhileCoolingDown || rest.until > rules.now;
        if let Some(current) = self.rest.as_mut().filter(|current| while_cooling_down(current)) {
            // Asked during its cooldown, it can only ask for more time: it did not get the rest after
            // which a longer one would be due.
            let hint = hint?;
            let until = after(rules.now, hint);
            return (until > current.until).then(|| {
                current.until = until;
                current.is_lent |= hint >= LENT_FROM;
                self.peers.record_cooldown();
                Change::CoolingDown { until }
            });
        }
        let level = self.rest.map_or(0, |last| last.level.saturating_add(1));
        let length = hint.unwrap_or_else(|| rules.cooldown.unhinted(level));
        let until = after(rules.now, length);
        self.end_rest();
        self.rest(until, level, length, rules);
        self.peers.record_cooldown();
        Some(Change::CoolingDown { until })
    }

    /// Begins a cooldown of this length.
    pub(super) fn rest(&mut self, until: Instant, level: u32, length: Duration, rules: &Rules<'_>) {
        self.rest = Some(Rest { until, level, is_lent: length >= LENT_FROM });
        self.rested_after = rules.sequence;
    }

    /// Forgets the cooldown. Its probe is none any more.
    fn end_rest(&mut self) {
        self.rest = None;
        if self.open_until.is_none() {
            self.lease = None;
        }
    }

    /// The end of a cooldown was lent to this request, which was answered, if not with a success.
    fn reopen_if_probe(&mut self, ticket: Ticket) {
        if let Some(rest) = self.rest.as_mut().filter(|_| ticket.admitted == Admitted::Probe) {
            rest.is_lent = false;
        }
    }
}

/// No more breaks count toward the length of the next, which does not grow any more by then.
pub(super) const MOST_BREAKS: u32 = 64;

/// How many times `part` fits into `length`.
fn whole(length: Duration, part: Duration) -> u32 {
    let times = nanos(length).checked_div(nanos(part)).unwrap_or(u64::MAX);
    u32::try_from(times).unwrap_or(u32::MAX)
}
