//! The settings of a cooldown.

use std::time::Duration;

use super::breaker::doubled;

/// How long a provider rests after an answer that is judged
/// [`Fault::Cooldown`](crate::Fault::Cooldown), such as a 429.
///
/// A hint is obeyed to the millisecond: `retry-after-ms: 40` is a rest of 40 ms. Zero and dates in the
/// past are 1 s. No rest is longer than [`at_most`](Self::at_most), which is 300 s by default. Without
/// a hint the first rest lasts 5 s, and each one that follows without a success in between twice as
/// long as the one before.
///
/// A rest of a second or more ends like a break of the [`Breaker`](crate::Breaker): one request is
/// sent to the provider, and the others follow its answer. A shorter one ends for all at once.
///
/// ```
/// use std::time::Duration;
/// use reqwest_failover::{Cooldown, Provider, ProviderChain};
///
/// let chain = ProviderChain::builder([Provider::openai("key")])
///     .cooldown(
///         Cooldown::default()
///             .at_most(Duration::from_secs(60))
///             .without_hint(Duration::from_secs(2)),
///     )
///     .build()?;
/// # Ok::<(), reqwest_failover::ConfigError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Cooldown {
    longest: Duration,
    first: Duration,
}

impl Cooldown {
    /// No rest is longer than this, whatever the provider asks for. Default 300 s; longer than zero.
    pub fn at_most(mut self, longest: Duration) -> Self {
        self.longest = longest;
        self
    }

    /// The length of the first rest where the provider gives no hint. Default 5 s; longer than zero, and
    /// not longer than [`at_most`](Self::at_most).
    pub fn without_hint(mut self, first: Duration) -> Self {
        self.first = first;
        self
    }

    /// What is wrong with these settings, if anything is.
    pub(crate) fn problem(&self) -> Option<&'static str> {
        if self.longest.is_zero() {
            Some("the longest rest must be longer than zero")
        } else if self.first.is_zero() {
            Some("the rest without a hint must be longer than zero")
        } else if self.first > self.longest {
            Some("the rest without a hint must not be longer than the longest")
        } else {
            None
        }
    }

    /// A rest that was asked for.
    pub(super) fn hinted(&self, hint: Duration) -> Duration {
        let hint = if hint.is_zero() { FOR_ZERO } else { hint };
        hint.min(self.longest)
    }

    /// A rest without a hint that follows so many others.
    pub(super) fn unhinted(&self, level: u32) -> Duration {
        doubled(self.first, level, self.longest)
    }

    /// The rest of a key whose model the provider does not have.
    pub(super) fn unknown_model(&self) -> Duration {
        UNKNOWN_MODEL.min(self.longest)
    }
}

impl Default for Cooldown {
    fn default() -> Self {
        Self { longest: Duration::from_secs(300), first: Duration::from_secs(5) }
    }
}

/// A provider that is at a limit and says zero does not mean "at once".
const FOR_ZERO: Duration = Duration::from_secs(1);
const UNKNOWN_MODEL: Duration = Duration::from_secs(60);
/// From this length on, the end of a rest is lent to one request: what waits so long has a queue of
/// callers behind it.
pub(super) const LENT_FROM: Duration = Duration::from_secs(1);
