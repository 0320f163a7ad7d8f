//! What the requests of a chain have in common: those with the same list of providers, and all of them.
//!
//! The table is locked for one decision and never across an await. Events are emitted after the lock
//! is released, so that a user's closure may ask the chain for its snapshot.

use std::collections::BTreeSet;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use http::StatusCode;
use reqwest::Request;

use super::address::Addresses;
use super::caller::LastCaller;
use super::entries::Entries;
#[cfg(feature = "fleet")]
use super::fleet_link::FleetLink;
use super::mark::CountedChain;
use super::settings::Settings;
use crate::error::{ConfigError, Exhausted};
use crate::health::{Change, Changes, Concern, HealthKey, HealthSignal, HealthTable, Permit};
use crate::inspect::{FlawKind, Inspect, StreamEnd};
use crate::message::{self, Secrets};
use crate::observe::rate::FallbackRate;
use crate::observe::{Event, EventOrigin, Observer, RequestCounts};
use crate::readdress::{Scope, StripList};
use crate::route::Route;
use crate::run::ChainLimits;
use crate::verdict::{Outcome, Reason, Verdict};

pub(super) type Classify = Box<dyn Fn(&Outcome<'_>) -> Verdict + Send + Sync>;
pub(super) type RouteFor = Box<dyn Fn(&Request) -> Option<Route> + Send + Sync>;

/// What all requests have in common that began with the same list of providers.
pub(super) struct Shared {
    pub(super) chain: Arc<ChainState>,
    pub(super) entries: Entries,
    pub(super) scope: Scope,
    pub(super) strip: StripList,
    pub(super) addresses: Addresses,
    pub(super) limits: ChainLimits,
    pub(super) observer: Observer,
    /// Every provider's keys.
    pub(super) secrets: Secrets,
    pub(super) last_caller: LastCaller,
    /// What each provider's sources returned last, at its id: to be looked for in messages.
    pub(super) tokens: Mutex<Vec<Vec<String>>>,
    /// The order when another list took the place of this one.
    pub(super) last_order: OnceLock<Arc<[usize]>>,
}

/// What all requests of a chain have in common, whatever its providers are.
pub(super) struct ChainState {
    /// What a list of providers is checked with.
    pub(super) settings: Settings,
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
    #[cfg(feature = "fleet")]
    pub(super) fleet: Option<Arc<FleetLink>>,
    pub(super) table: Mutex<Table>,
    /// The current list, and those before it that a request may still hold.
    pub(super) lists: Mutex<Vec<Weak<Shared>>>,
}

impl ChainState {
    /// The lists that are still used, without those that are not `wanted`.
    pub(super) fn lists(&self, wanted: impl Fn(*const Shared) -> bool) -> Vec<Arc<Shared>> {
        let lists = self.lock_lists();
        lists.iter().filter(|list| wanted(list.as_ptr())).filter_map(Weak::upgrade).collect()
    }

    /// Adds a list, and removes those that no request holds any more.
    pub(super) fn add_list(&self, list: &Arc<Shared>) {
        let mut lists = self.lock_lists();
        lists.retain(|list| list.strong_count() > 0);
        lists.push(Arc::downgrade(list));
    }

    fn lock_lists(&self) -> MutexGuard<'_, Vec<Weak<Shared>>> {
        self.lists.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The locked table. What others are to be told of a decision wakes the task that does it.
pub(super) struct TableGuard<'a> {
    table: MutexGuard<'a, Table>,
    #[cfg(feature = "fleet")]
    chain: &'a ChainState,
}

impl Deref for TableGuard<'_> {
    type Target = Table;

    #[inline]
    fn deref(&self) -> &Table {
        &self.table
    }
}

impl DerefMut for TableGuard<'_> {
    #[inline]
    fn deref_mut(&mut self) -> &mut Table {
        &mut self.table
    }
}

#[cfg(feature = "fleet")]
impl Drop for TableGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        if self.table.health.take_untold()
            && let Some(fleet) = &self.chain.fleet
        {
            fleet.wake();
        }
    }
}

/// What moves while requests run.
pub(super) struct Table {
    pub(super) health: HealthTable,
    pub(super) order: Arc<[usize]>,
    pub(super) counts: RequestCounts,
    /// How many requests have begun, which is the last one's id.
    pub(super) begun: u64,
    pub(super) fallback_rate: FallbackRate,
}

impl Table {
    /// The provider that requests go to first: the first in order that is not isolated.
    pub(super) fn first(&self) -> Option<usize> {
        self.order.iter().copied().find(|provider| !self.health.is_isolated(*provider))
    }

    /// Changes the order, or who is isolated. Where requests go to another provider first after that,
    /// the fallback rate begins anew: an operator's wish is no alarm.
    pub(super) fn change(&mut self, change: impl FnOnce(&mut Self)) {
        let first = self.first();
        change(self);
        if self.first() != first {
            self.fallback_rate.reset();
        }
    }
}

impl Shared {
    #[inline]
    pub(super) fn lock(&self) -> TableGuard<'_> {
        let table = self.chain.table.lock().unwrap_or_else(PoisonError::into_inner);
        TableGuard {
            table,
            #[cfg(feature = "fleet")]
            chain: &self.chain,
        }
    }

    /// The order of the providers: the chain's, or what it was when another list took the place of this one.
    #[inline]
    pub(super) fn order<'t>(&'t self, table: &'t Table) -> &'t Arc<[usize]> {
        self.last_order.get().unwrap_or(&table.order)
    }

    pub(super) fn lock_tokens(&self) -> MutexGuard<'_, Vec<Vec<String>>> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(feature = "fleet")]
    pub(super) fn is_isolated(&self, provider: usize) -> bool {
        self.lock().health.is_isolated(provider)
    }

    pub(super) fn set_order(&self, order: Arc<[usize]>) {
        self.lock().change(|table| table.order = order);
    }

    pub(super) fn isolate(&self, provider: usize, isolated: bool) {
        let mut table = self.lock();
        table.change(|table| table.health.isolate(provider, isolated));
        let state = table.health.state(provider, now());
        drop(table);
        self.observer.set_state_gauge(provider, state);
    }

    /// Emits what has changed in a provider's health, and in that of its key.
    pub(super) fn emit_changes(
        &self,
        origin: EventOrigin<'_>,
        provider: usize,
        key: Option<&[u8]>,
        changes: Changes,
    ) {
        let (own, of_key) = (changes.own(), changes.key());
        let emit = |key, change| self.emit_change(origin, provider, key, change);
        own.into_iter().flatten().for_each(|change| emit(None, change));
        if let (Some(key), [Some(_), _] | [_, Some(_)]) = (key, of_key) {
            let key = self.shown_key(key);
            let changes = of_key.into_iter().flatten();
            changes.for_each(|change| emit(Some(&key), change));
        }
    }

    fn emit_change(
        &self,
        origin: EventOrigin<'_>,
        provider: usize,
        key: Option<&str>,
        change: Change,
    ) {
        let provider = &self.entries[provider].name;
        // What no request has changed was heard of.
        let heard = origin.id.is_none();
        self.observer.emit(&match change {
            Change::Opened { until, breaks, cause } => {
                let cause = cause.as_str();
                Event::BreakerOpened { origin, provider, key, until, breaks, cause, heard }
            }
            Change::Closed => Event::BreakerClosed { origin, provider, key },
            Change::CoolingDown { until } => {
                Event::CoolingDown { origin, provider, key, until, heard }
            }
            Change::OnlyNotFound => return self.observer.warn_of_base_url(provider),
        });
    }

    /// A health key as it may be shown: it is data from outside.
    pub(super) fn shown_key(&self, key: &[u8]) -> Box<str> {
        message::make_safe(&String::from_utf8_lossy(key), true, &self.secrets(&[]))
            .unwrap_or_default()
    }

    pub(super) fn find(&self, name: &str) -> Option<usize> {
        self.entries.find(name)
    }

    pub(super) fn known(&self, name: &str, field: &'static str) -> Result<usize, ConfigError> {
        let unknown = || format!("is not in the chain, which has: {}", self.names());
        self.find(name).ok_or_else(|| ConfigError::new(Some(name), field, unknown()))
    }

    pub(super) fn names(&self) -> String {
        self.entries.as_slice().iter().map(|entry| &*entry.name).collect::<Vec<_>>().join(", ")
    }

    /// Whether anything of an answer with this status is read before its verdict.
    pub(super) fn reads(&self, status: StatusCode) -> bool {
        match status.as_u16() {
            200..=299 => self.chain.inspect.is_some(),
            100..=199 | 304 => false,
            _ => !self.chain.error_body_timeout.is_zero(),
        }
    }

    /// Every secret that the chain knows, and these.
    pub(super) fn secrets(&self, more: &[String]) -> Secrets {
        self.and_secrets(&self.secrets, more)
    }

    /// A set that holds every provider's keys, with what else the chain knows, and these. The keys of other
    /// lists are known, too, as long as a request uses one: a provider may repeat what it was sent in
    /// another request.
    pub(super) fn and_secrets(&self, known: &Secrets, more: &[String]) -> Secrets {
        let others = self.secrets_of_other_lists();
        let tokens = self.lock_tokens();
        known.and(tokens.iter().flatten().chain(more).chain(&others))
    }

    #[cold]
    fn secrets_of_other_lists(&self) -> BTreeSet<String> {
        let mut secrets = BTreeSet::new();
        for list in self.chain.lists(|list| !std::ptr::eq(list, self)) {
            let keys = list.entries.as_slice().iter().flat_map(|entry| &entry.secrets);
            secrets.extend(keys.cloned());
            secrets.extend(list.lock_tokens().iter().flatten().cloned());
        }
        for key in self.entries.as_slice().iter().flat_map(|entry| &entry.secrets) {
            secrets.remove(key);
        }
        secrets
    }
}

/// A stream that has begun well, until it ends.
pub(super) struct StreamWatch {
    pub(super) shared: Arc<Shared>,
    /// Its request's.
    pub(super) id: u64,
    pub(super) key: Option<Box<[u8]>>,
    /// The chain's, its caller's, and those of its attempts.
    pub(super) secrets: Secrets,
    pub(super) permit: Permit,
}

impl StreamWatch {
    /// Records how it has ended.
    pub(super) fn end(self, end: StreamEnd) {
        let Self { shared, id, key, secrets, permit } = self;
        let provider = permit.provider();
        let now = now();
        let mut table = shared.lock();
        let health = &mut table.health;
        let broken = match &end {
            StreamEnd::Complete | StreamEnd::Dropped => None,
            StreamEnd::Silent { quiet_for } => health
                .is_silence(&permit, *quiet_for)
                .then(|| (Reason::Timeout, FlawKind::Silent.description())),
            StreamEnd::Broken(flaw) => Some((reason_of_flaw(flaw.kind()), flaw.message())),
        };
        let signal = match (&end, &broken) {
            (_, Some(_)) => Some(HealthSignal::Failure),
            (StreamEnd::Complete, None) => Some(HealthSignal::Success),
            _ => None,
        };
        let changes = match signal {
            Some(signal) => health.record_outcome(permit, signal, Concern::Key, now),
            None => {
                health.cancel(&permit);
                Changes::default()
            }
        };
        let state = table.health.state(provider, now);
        drop(table);
        shared.observer.set_state_gauge(provider, state);
        let origin = EventOrigin { id: Some(id), extensions: None };
        if let Some((reason, message)) = broken {
            let message = message::make_safe(message, true, &shared.and_secrets(&secrets, &[]));
            let (provider, message) = (&*shared.entries[provider].name, message.as_deref());
            shared.observer.emit(&Event::StreamBroken { origin, provider, reason, message });
        }
        shared.emit_changes(origin, provider, key.as_deref(), changes);
    }
}

/// The reason of an attempt whose answer has a good status and is no success.
pub(super) fn reason_of_flaw(kind: FlawKind) -> Reason {
    match kind {
        FlawKind::Broken => Reason::Reset,
        FlawKind::Silent => Reason::Timeout,
        _ => Reason::ErrorInSuccess,
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
