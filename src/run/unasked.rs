//! Why a run that served no answer has not asked a provider.

use std::fmt;
use std::time::{Duration, Instant};

use super::{Bound, Limits, Run};
use crate::health::{Admission, HealthTable};

/// Why a provider was not asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unasked {
    LeftOut,
    Isolated,
    Unreachable,
    SentOnce,
    MaybeProcessed,
    Attempts(u8),
    Total(Duration),
    Timeout(Duration),
    /// It was not healthy, and the request was refused by those that are.
    Unhealthy,
    AtCapacity,
}

impl fmt::Display for Unasked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LeftOut => f.write_str("left out by the route"),
            Self::Isolated => f.write_str("isolated"),
            Self::Unreachable => f.write_str("at a host that could not be reached"),
            Self::SentOnce => f.write_str("the body could be sent only once"),
            Self::MaybeProcessed => f.write_str("the request may have been processed"),
            Self::Attempts(1) => f.write_str("the request may be sent only once"),
            Self::Attempts(most) => write!(f, "the limit is {most} attempts"),
            Self::Total(limit) => write!(f, "the total timeout of {limit:?} was over"),
            Self::Timeout(limit) => write!(f, "the request's timeout of {limit:?} was over"),
            Self::Unhealthy => f.write_str("not healthy, and the request was refused"),
            Self::AtCapacity => f.write_str("at capacity, and the request was refused"),
        }
    }
}

impl Run {
    /// Why a provider was not asked by this run, which began at `started` and served no answer.
    #[cold]
    pub(crate) fn why_unasked(
        &self,
        provider: usize,
        limits: &Limits,
        health: &HealthTable,
        started: Instant,
        now: Instant,
    ) -> Unasked {
        if !self.order.contains(&provider) {
            Unasked::LeftOut
        } else if health.is_isolated(provider) {
            Unasked::Isolated
        } else if self.excluded.contains(provider) {
            Unasked::Unreachable
        } else if self.attempts > 0 && !self.replayable {
            Unasked::SentOnce
        } else if self.attempts >= self.max_attempts {
            Unasked::Attempts(self.max_attempts)
        } else if self.over {
            Unasked::MaybeProcessed
        } else if now >= self.deadline.at {
            match self.deadline.bound {
                Bound::Request => {
                    Unasked::Timeout(self.deadline.at.saturating_duration_since(started))
                }
                Bound::Attempt | Bound::Total => Unasked::Total(limits.total),
            }
        } else if health.admission(provider, self.key(), now) == Admission::AtCapacity {
            Unasked::AtCapacity
        } else {
            Unasked::Unhealthy
        }
    }
}
