//! The builder's settings that hold for every list of providers, and whether they fit together.

use std::time::Duration;

use super::entries::Entries;
use crate::error::ConfigError;
use crate::provider::{ChainHeaders, Entry};
use crate::run::ChainLimits;

/// The builder's settings that hold for every list of providers.
pub(super) struct Settings {
    pub(super) claims: Vec<String>,
    pub(super) headers: ChainHeaders,
    pub(super) total: Duration,
    pub(super) attempt: Option<Duration>,
}

impl Settings {
    pub(super) fn check(&self, entries: &[Entry]) -> Result<(), ConfigError> {
        const TOO_LONG: &str = "must not be longer than the total timeout";
        let wrong = |field, problem: &str| Err(ConfigError::new(None, field, problem));
        if self.total.is_zero() {
            return wrong("total_timeout", "must be longer than zero");
        }
        match self.attempt {
            Some(limit) if limit.is_zero() => {
                return wrong("attempt_timeout", "must be longer than zero");
            }
            Some(limit) if limit > self.total => return wrong("attempt_timeout", TOO_LONG),
            _ => {}
        }
        let too_long =
            |entry: &&Entry| entry.attempt_timeout.is_some_and(|limit| limit > self.total);
        match entries.iter().find(too_long) {
            Some(entry) => Err(ConfigError::new(Some(&entry.name), "attempt_timeout", TOO_LONG)),
            None => Ok(()),
        }
    }

    /// The explicit limit of each provider's attempts.
    pub(super) fn attempts(&self, entries: &Entries) -> Vec<Option<Duration>> {
        entries.each(|entry| entry.attempt_timeout.or(self.attempt))
    }

    /// How long an attempt may take where nothing else is said.
    pub(super) fn shortest(&self) -> Duration {
        self.attempt.unwrap_or(ChainLimits::DEFAULT_ATTEMPT).min(self.total)
    }
}
