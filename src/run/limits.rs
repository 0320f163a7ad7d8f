//! How long a run and each of its attempts may take, and how many there may be.

use std::time::{Duration, Instant};

use super::Ambiguous;
use crate::health::after;

/// A request extension: this request's own limits, in place of its chain's.
///
/// What is not set stays as the chain has it. They may be shorter than the chain's, or longer. A timeout
/// of the request itself still bounds all of it.
///
/// ```no_run
/// # async fn ask(client: reqwest_middleware::ClientWithMiddleware) -> reqwest_middleware::Result<()> {
/// use std::time::Duration;
/// use reqwest_failover::Limits;
///
/// // A user waits for this one: an answer or an error within 5 s, from one of two providers.
/// let response = client
///     .post("https://api.openai.com/v1/chat/completions")
///     .with_extension(
///         Limits::new()
///             .total(Duration::from_secs(5))
///             .attempt(Duration::from_secs(3))
///             .attempts(2),
///     )
///     .body(r#"{"model":"gpt-4o-mini","messages":[]}"#)
///     .send()
///     .await?;
/// # Ok(())
/// # }
/// ```
///
/// As with a timeout of the request, the time is the caller's choice: a provider that is cut off by it
/// has failed only if it was silent for long, so that impatient callers open no breaker. The limits are
/// removed for a chain that is stacked inside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use = "limits do nothing until they are a request's extension"]
pub struct Limits {
    total: Option<Duration>,
    attempt: Option<Duration>,
    attempts: Option<usize>,
}

impl Limits {
    /// The chain's own limits, until others are set.
    pub fn new() -> Self {
        Self::default()
    }

    /// How long the request may take to its response's headers, all attempts together, in place of the
    /// chain's [`total_timeout`](crate::ProviderChainBuilder::total_timeout). The caller has an answer or
    /// an error by then. Zero asks no provider. This limit does not bind bodies.
    pub fn total(mut self, limit: Duration) -> Self {
        self.total = Some(limit);
        self
    }

    /// How long each provider may take to its response's headers, in place of its own and of the chain's
    /// [`attempt_timeout`](crate::ProviderChainBuilder::attempt_timeout). It binds at the last provider,
    /// too. Zero gives an attempt up as soon as it is begun.
    pub fn attempt(mut self, limit: Duration) -> Self {
        self.attempt = Some(limit);
        self
    }

    /// The most providers that are asked, in place of the chain's
    /// [`max_attempts`](crate::ProviderChainBuilder::max_attempts). Zero counts as 1. A
    /// [`Route::no_failover`](crate::Route::no_failover) still allows one only.
    pub fn attempts(mut self, attempts: usize) -> Self {
        self.attempts = Some(attempts);
        self
    }

    /// The end of the run, if these say. `timeout` is the request's own.
    pub(super) fn deadline(&self, timeout: Option<Duration>, now: Instant) -> Option<Deadline> {
        self.total.map(|total| Deadline::of(Bound::Own, total, timeout, now))
    }

    /// How long an attempt may take, if these say.
    pub(super) fn of_attempt(&self) -> Option<Duration> {
        self.attempt
    }

    /// How many attempts there may be, if these say.
    pub(super) fn max_attempts(&self) -> Option<u8> {
        self.attempts.map(|attempts| u8::try_from(attempts.max(1)).unwrap_or(u8::MAX))
    }
}

/// What bounds every run of a chain.
#[derive(Debug)]
pub(crate) struct ChainLimits {
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

impl ChainLimits {
    pub(crate) const DEFAULT_ATTEMPT: Duration = Duration::from_secs(120);
    pub(crate) const DEFAULT_TOTAL: Duration = Duration::from_secs(600);
    /// How much longer than its request a probe's lease lasts.
    pub(super) const LEASE_MARGIN: Duration = Duration::from_secs(1);

    /// The end of a run, whose caller gives it as long as `timeout`, if it says.
    #[inline]
    pub(super) fn deadline(&self, timeout: Option<Duration>, now: Instant) -> Deadline {
        Deadline::of(Bound::Total, self.total, timeout, now)
    }

    /// The end of an attempt that is made by itself, outside of any run: its explicit limit, else 120 s.
    pub(crate) fn alone(
        &self,
        provider: usize,
        timeout: Option<Duration>,
        now: Instant,
    ) -> (Deadline, Until) {
        let deadline = self.deadline(timeout, now);
        let limit = self.attempts[provider].unwrap_or(Self::DEFAULT_ATTEMPT);
        (deadline, self.until(provider, Some(limit), &deadline, true, true, now))
    }

    /// The end of an attempt. An explicit limit binds as it is; without one, the time is shared out
    /// where another provider may still be asked. `own` is the request's explicit limit.
    #[inline]
    pub(super) fn until(
        &self,
        provider: usize,
        own: Option<Duration>,
        deadline: &Deadline,
        is_first: bool,
        last: bool,
        now: Instant,
    ) -> Until {
        let is_failure = is_first && deadline.bound == Bound::Total;
        let whole = Until { at: deadline.at, bound: deadline.bound, is_failure };
        let attempt = |at, is_failure| Until { at, bound: Bound::Attempt, is_failure };
        match own.or(self.attempts[provider]) {
            Some(limit) => {
                let at = after(now, limit);
                if at > deadline.at { whole } else { attempt(at, own.is_none()) }
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
    /// The request's own [`Limits`], for all attempts together.
    Own,
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
    /// The end of `total`, or that of the request's own timeout if it is earlier.
    #[inline]
    fn of(bound: Bound, total: Duration, timeout: Option<Duration>, now: Instant) -> Self {
        let (bound, length) = match timeout {
            Some(timeout) if timeout < total => (Bound::Request, timeout),
            _ => (bound, total),
        };
        Self { at: after(now, length), bound }
    }

    /// Moves the end of an attempt whose caller's own body was pending for so long.
    pub(crate) fn extend(&self, until: Until, pending: Duration) -> Until {
        let at = after(until.at, pending);
        match until.bound {
            Bound::Attempt if at <= self.at => Until { at, ..until },
            _ => Until { at: self.at, bound: self.bound, is_failure: false },
        }
    }
}
