//! What the requests of a chain have in common.
//!
//! The table is locked for one decision and never across an await. Events are emitted after the lock
//! is released, so that a user's closure may ask the chain for its snapshot.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use http::StatusCode;
use reqwest::Request;

use super::address::Addresses;
use super::mark::CountedChain;
use crate::error::{ConfigError, Exhausted};
use crate::health::{Change, Changes, Concern, HealthKey, HealthSignal, HealthTable, Permit};
use crate::inspect::{Inspect, StreamEnd};
use crate::message::{self, Secrets};
use crate::observe::rate::SwitchRate;
use crate::observe::{Event, Observer, RequestCounts};
use crate::provider::Entry;
use crate::readdress::{Scope, StripList};
use crate::route::Route;
use crate::run::ChainLimits;
use crate::verdict::{Outcome, Verdict};

pub(super) type Classify = Box<dyn Fn(&Outcome<'_>) -> Verdict + Send + Sync>;
pub(super) type RouteFor = Box<dyn Fn(&Request) -> Option<Route> + Send + Sync>;

pub(super) struct Shared {
    pub(super) entries: Vec<Entry>,
    pub(super) scope: Scope,
    pub(super) strip: StripList,
    pub(super) addresses: Addresses,
    pub(super) limits: ChainLimits,
    pub(super) classify: Option<Classify>,
    pub(super) route: Option<RouteFor>,
    pub(super) _counted: CountedChain,
    /// Whether attempts of other chains are claimed.
    pub(super) nested: bool,
    pub(super) health_key: Option<HealthKey>,
    pub(super) replay_buffer: u64,
    pub(super) inspect: Option<Inspect>,
    pub(super) error_body_timeout: Duration,
    pub(super) exhausted: Exhausted,
    pub(super) observer: Observer,
    pub(super) table: Mutex<Table>,
    /// Every provider's keys.
    pub(super) secrets: Secrets,
    /// What each provider's sources returned last: to be looked for in messages.
    pub(super) tokens: Mutex<Vec<Vec<String>>>,
}

/// What moves while requests run.
pub(super) struct Table {
    pub(super) health: HealthTable,
    pub(super) order: Arc<[usize]>,
    pub(super) counts: RequestCounts,
    pub(super) switch_rate: SwitchRate,
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn lock_tokens(&self) -> MutexGuard<'_, Vec<Vec<String>>> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn isolate(&self, provider: usize, isolated: bool) {
        let mut table = self.lock();
        table.health.isolate(provider, isolated);
        let state = table.health.state(provider, now());
        drop(table);
        self.observer.set_state_gauge(provider, state);
    }

    /// Records how a stream that had begun well has ended. `key` is its request's.
    pub(super) fn end_stream(&self, permit: Permit, key: Option<&[u8]>, end: StreamEnd) {
        let provider = permit.provider;
        let now = now();
        let mut table = self.lock();
        let health = &mut table.health;
        let (is_broken, changes) = match end {
            StreamEnd::Complete => {
                (false, health.record_outcome(permit, HealthSignal::Success, Concern::Key, now))
            }
            StreamEnd::Silent { quiet_for } if !health.is_silence(&permit, quiet_for) => {
                health.cancel(&permit);
                (false, Changes::default())
            }
            StreamEnd::Broken | StreamEnd::Silent { .. } => {
                (true, health.record_outcome(permit, HealthSignal::Failure, Concern::Key, now))
            }
            StreamEnd::Dropped => {
                health.cancel(&permit);
                (false, Changes::default())
            }
        };
        let state = table.health.state(provider, now);
        drop(table);
        self.observer.set_state_gauge(provider, state);
        if is_broken {
            self.observer.emit(&Event::StreamBroken { provider: &self.entries[provider].name });
        }
        self.emit_changes(provider, key, changes);
    }

    /// Emits what has changed in a provider's health, and in that of its key.
    pub(super) fn emit_changes(&self, provider: usize, key: Option<&[u8]>, changes: Changes) {
        let (own, of_key) = (changes.own(), changes.key());
        own.into_iter().flatten().for_each(|change| self.emit_change(provider, None, change));
        if let (Some(key), [Some(_), _] | [_, Some(_)]) = (key, of_key) {
            let key = self.shown_key(key);
            let changes = of_key.into_iter().flatten();
            changes.for_each(|change| self.emit_change(provider, Some(&key), change));
        }
    }

    fn emit_change(&self, provider: usize, key: Option<&str>, change: Change) {
        let provider = &self.entries[provider].name;
        self.observer.emit(&match change {
            Change::Opened { until, breaks, cause } => {
                Event::BreakerOpened { provider, key, until, breaks, cause: cause.as_str() }
            }
            Change::Closed => Event::BreakerClosed { provider, key },
            Change::CoolingDown { until } => Event::CoolingDown { provider, key, until },
            Change::OnlyNotFound => return self.observer.warn_of_base_url(provider),
        });
    }

    /// A health key as it may be shown: it is data from outside.
    pub(super) fn shown_key(&self, key: &[u8]) -> Box<str> {
        message::make_safe(&String::from_utf8_lossy(key), true, &self.secrets(&[]))
            .unwrap_or_default()
    }

    pub(super) fn find(&self, name: &str) -> Option<usize> {
        self.entries.iter().position(|entry| *entry.name == *name)
    }

    pub(super) fn known(&self, name: &str, field: &'static str) -> Result<usize, ConfigError> {
        let unknown = || format!("is not in the chain, which has: {}", self.names());
        self.find(name).ok_or_else(|| ConfigError::new(Some(name), field, unknown()))
    }

    pub(super) fn names(&self) -> String {
        self.entries.iter().map(|entry| &*entry.name).collect::<Vec<_>>().join(", ")
    }

    /// Whether anything of an answer with this status is read before its verdict.
    pub(super) fn reads(&self, status: StatusCode) -> bool {
        match status.as_u16() {
            200..=299 => self.inspect.is_some(),
            100..=199 | 304 => false,
            _ => !self.error_body_timeout.is_zero(),
        }
    }

    /// Every secret that the chain knows, and these.
    pub(super) fn secrets(&self, more: &[String]) -> Secrets {
        let tokens = self.lock_tokens();
        self.secrets.and(tokens.iter().flatten().chain(more))
    }
}

/// The driver's clock: tokio's, so that tests can pause it.
#[expect(clippy::disallowed_methods, reason = "the driver is where time comes from")]
pub(super) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

#[expect(clippy::disallowed_methods, reason = "a hint may be a date")]
pub(super) fn wall_clock() -> SystemTime {
    SystemTime::now()
}
