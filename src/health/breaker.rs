//! The settings of a circuit breaker.

use std::time::Duration;

/// When a provider's circuit breaker opens, and for how long.
///
/// By default it opens at 5 consecutive failures, or when at least half of at least 10 requests
/// within 60 s failed; breaks last 30 s, doubling up to 300 s while the provider stays down, less
/// up to half of it as jitter.
///
/// Three things count as one more failure in a row, and toward no share:
/// - a request that its caller gave up, by dropping it or by a timeout of its own, after the provider
///   was silent for more than a second and for more than twice its usual time to headers. What is
///   given up earlier counts for nothing, so impatient callers open no breaker;
/// - an attempt that a later one at another provider overtook (see [`Hedge`](crate::Hedge));
/// - a cooldown that follows a cooldown, without a success between.
///
/// A success ends the row, and so does a stream that has begun well.
///
/// When a break ends, one request is sent to the provider as its probe. A success closes the breaker,
/// and so does any other answer that is judged [`Fault::None`](crate::Fault::None), such as a 404:
/// the provider is alive, and only the request was wrong.
///
/// ```
/// use std::time::Duration;
/// use reqwest_failover::{Breaker, Provider, ProviderChain};
///
/// let chain = ProviderChain::builder([Provider::openai("key")])
///     .breaker(
///         Breaker::default()
///             .consecutive(3)
///             .ratio(0.25, 20)
///             .window(Duration::from_secs(30))
///             .breaks(Duration::from_secs(5), Duration::from_secs(60)),
///     )
///     .build()?;
/// # Ok::<(), reqwest_failover::ConfigError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Breaker {
    pub(super) consecutive: u32,
    pub(super) ratio: f64,
    pub(super) minimum: u32,
    pub(super) window: Duration,
    pub(super) first_break: Duration,
    pub(super) max_break: Duration,
}

impl Breaker {
    /// Opens at this many failures in a row. Default 5; at least 1.
    pub fn consecutive(mut self, failures: u32) -> Self {
        self.consecutive = failures;
        self
    }

    /// Opens when this share of the requests in the window failed, once there were at least
    /// `requests` of them. Default 0.5 of 10; the share is above 0 and at most 1.
    pub fn ratio(mut self, failed: f64, requests: u32) -> Self {
        (self.ratio, self.minimum) = (failed, requests);
        self
    }

    /// The length of the rolling window that [`ratio`](Self::ratio) looks at. Default 60 s; longer
    /// than zero.
    pub fn window(mut self, length: Duration) -> Self {
        self.window = length;
        self
    }

    /// The length of the first break, and what doubling never exceeds. Default 30 s and 300 s.
    pub fn breaks(mut self, first: Duration, max: Duration) -> Self {
        (self.first_break, self.max_break) = (first, max);
        self
    }

    /// What is wrong with these settings, if anything is.
    pub(crate) fn problem(&self) -> Option<&'static str> {
        if self.consecutive == 0 {
            Some("consecutive must be at least 1")
        } else if !(self.ratio > 0.0 && self.ratio <= 1.0) {
            Some("the ratio must be above 0 and at most 1")
        } else if self.minimum == 0 {
            Some("the ratio must look at 1 request or more")
        } else if self.window.is_zero() {
            Some("the window must be longer than zero")
        } else if self.first_break > self.max_break {
            Some("the first break must not be longer than the longest")
        } else {
            None
        }
    }

    /// A break before jitter: the first one doubled `level` times.
    pub(super) fn break_length(&self, level: u32) -> Duration {
        doubled(self.first_break, level, self.max_break)
    }
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            consecutive: 5,
            ratio: 0.5,
            minimum: 10,
            window: Duration::from_secs(60),
            first_break: Duration::from_secs(30),
            max_break: Duration::from_secs(300),
        }
    }
}

/// `first` doubled so many times, or the longest.
pub(crate) fn doubled(first: Duration, times: u32, longest: Duration) -> Duration {
    let factor = 1u32.checked_shl(times).unwrap_or(u32::MAX);
    first.saturating_mul(factor).min(longest)
}
