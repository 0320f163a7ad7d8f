//! A provider's state as health pages show it.

use std::fmt;
use std::time::{Duration, Instant};

use crate::health::State;

impl State {
    /// The state's name: `closed`, `open`, `probing`, `cooling_down`, `at_capacity` or `isolated`.
    ///
    /// ```
    /// assert_eq!(reqwest_failover::State::Isolated.as_str(), "isolated");
    /// ```
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open { .. } => "open",
            Self::Probing => "probing",
            Self::CoolingDown { .. } => "cooling_down",
            Self::AtCapacity => "at_capacity",
            Self::Isolated => "isolated",
        }
    }

    /// How long a break or a cooldown still lasts: zero where it is over, and the next request is the
    /// probe. `None` in any other state.
    ///
    /// ```
    /// # let state = reqwest_failover::State::Closed;
    /// if let Some(left) = state.remaining() {
    ///     println!("{} for {} s", state.as_str(), left.as_secs());
    /// }
    /// ```
    pub fn remaining(self) -> Option<Duration> {
        match self {
            Self::Open { until } | Self::CoolingDown { until } => {
                Some(until.saturating_duration_since(now()))
            }
            _ => None,
        }
    }
}

impl fmt::Display for State {
    /// Such as `closed`, or `open for 12 s`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.remaining() {
            Some(left) => write!(f, "{} for {:.0} s", self.as_str(), left.as_secs_f64().ceil()),
            None => f.pad(self.as_str()),
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "what is left depends on when it is asked for")]
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
