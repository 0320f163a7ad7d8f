//! How long a run and each of its attempts may take.

use std::time::{Duration, Instant};

use super::Ambiguous;
use crate::health::after;

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
    /// For each provider a number that it shares with those at the same host and port.
    pub(crate) hosts: Vec<u32>,
}

impl Limits {
    pub(crate) const DEFAULT_ATTEMPT: Duration = Duration::from_secs(120);
    pub(crate) const DEFAULT_TOTAL: Duration = Duration::from_secs(600);
    /// How much longer than its request a probe's lease lasts.
    pub(super) const LEASE_MARGIN: Duration = Duration::from_secs(1);

    /// The end of a run, whose caller gives it as long as `timeout`, if it says.
    #[inline]
    pub(super) fn deadline(&self, timeout: Option<Duration>, now: Instant) -> Deadline {
        let (bound, length) = match timeout {
            Some(timeout) if timeout < self.total => (Bound::Request, timeout),
            _ => (Bound::Total, self.total),
        };
        Deadline { at: after(now, length), bound }
    }

    /// The end of an attempt. An explicit limit binds as it is; without one, the time is shared out
    /// where another provider may still be asked.
    #[inline]
    pub(super) fn until(
        &self,
        provider: usize,
        deadline: &Deadline,
        is_first: bool,
        last: bool,
        now: Instant,
    ) -> Until {
        let is_failure = is_first && deadline.bound == Bound::Total;
        let whole = Until { at: deadline.at, bound: deadline.bound, is_failure };
        let attempt = |at, is_failure| Until { at, bound: Bound::Attempt, is_failure };
        match self.attempts[provider] {
            Some(limit) => {
                let at = after(now, limit);
                if at > deadline.at { whole } else { attempt(at, true) }
            }
            None if last => whole,
            None if after(now, Self::DEFAULT_ATTEMPT * 2) <= deadline.at => {
                attempt(after(now, Self::DEFAULT_ATTEMPT), true)
            }
            None => {
                let share = deadline.at.saturating_duration_since(now) / 2;
                attempt(after(now, share), is_failure)
            }
        }
    }
}

/// When an attempt is given up, and why then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Until {
    pub(crate) at: Instant,
    pub(crate) bound: Bound,
    /// Whether an attempt that ends here is its provider's failure. It is not where the time was
    /// the caller's choice, or was used up by the attempts before: there only a long silence counts,
    /// by [`Judgement::cut_after`].
    pub(crate) is_failure: bool,
}

/// Whose limit it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bound {
    /// The attempt's own, explicit or by default.
    Attempt,
    /// The chain's, for all attempts together.
    Total,
    /// The request's own timeout, for all attempts together.
    Request,
}

/// When a run ends, and whose limit that is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    pub(crate) at: Instant,
    pub(super) bound: Bound,
}

impl Deadline {
    /// Moves the end of an attempt whose caller's own body was pending for so long.
    pub(crate) fn extend(&self, until: Until, pending: Duration) -> Until {
        let at = after(until.at, pending);
        match until.bound {
            Bound::Attempt if at <= self.at => Until { at, ..until },
            _ => Until { at: self.at, bound: self.bound, is_failure: false },
        }
    }
}
