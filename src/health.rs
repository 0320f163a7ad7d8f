//! The circuit breaker, cooldown and capacity of each provider and of each of its health keys, and the
//! rules that move them.
//!
//! Nothing here reads a clock, waits or locks: every call has `now` as an argument, so that each rule can be
//! tested in virtual time. There is no half-open state. When a break ends, one request is lent the
//! right to probe, and that lease ends by itself: a probe that is cancelled, hangs or proves nothing
//! never leaves a provider shut.
//!
//! *Sent before* is decided by sequence numbers, not by instants, so that a clock that stands still
//! changes nothing.

mod breaker;
mod circuit;
mod cooldown;
mod key;
mod keys;
#[cfg_attr(not(feature = "fleet"), path = "health/no_peers.rs")]
mod peers;
mod permit;
mod provider;
mod ring;

use std::time::{Duration, Instant};

pub use self::breaker::Breaker;
#[cfg(feature = "fleet")]
pub(crate) use self::breaker::doubled;
use self::circuit::Rules;
pub use self::cooldown::Cooldown;
pub use self::key::HealthKey;
#[cfg(feature = "fleet")]
pub(crate) use self::peers::{HealthReport, Process, Received, Untold};
pub(crate) use self::permit::Permit;
use self::provider::ProviderHealth;
pub(crate) use self::ring::{Ring, Ticks, after};
use crate::hedge::Hedging;

/// How a provider stands with its chain, as [`ProviderSnapshot::state`](crate::ProviderSnapshot::state)
/// returns it.
///
/// ```
/// use reqwest_failover::{Provider, ProviderChain, State};
///
/// let chain = ProviderChain::builder([Provider::openai("key")]).build()?;
/// assert_eq!(chain.snapshot().providers()[0].state(), State::Closed);
/// # Ok::<(), reqwest_failover::ConfigError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum State {
    /// Healthy: requests are sent to it in its turn.
    Closed,
    /// The circuit breaker is open. Once `until` is past, the next request is the probe.
    #[non_exhaustive]
    Open {
        /// The end of the break.
        until: Instant,
    },
    /// The break or the cooldown is over and one request is out to see whether the provider is back.
    Probing,
    /// The provider asked for a pause. Once `until` is past, the next request is the probe, as after a
    /// break.
    #[non_exhaustive]
    CoolingDown {
        /// The end of the cooldown.
        until: Instant,
    },
    /// Healthy, with as many requests in flight as it may have
    /// ([`max_in_flight`](crate::Provider::max_in_flight)).
    AtCapacity,
    /// Taken out by [`isolate`](crate::ProviderChain::isolate): never asked.
    Isolated,
}

/// Whether a provider may be asked now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    Available,
    /// The break or the cooldown is over and no probe is out: the next request is the probe.
    ProbeDue,
    /// Open, cooling down, or being probed until then.
    Unavailable(Instant),
    /// As many requests are in flight as it may have.
    AtCapacity,
    Isolated,
}

impl Admission {
    /// For a request whose key is admitted so.
    fn and(self, key: Self) -> Self {
        match (self, key) {
            (Self::Unavailable(until), Self::Unavailable(key)) => Self::Unavailable(until.max(key)),
            (until @ Self::Unavailable(_), _) | (_, until @ Self::Unavailable(_)) => until,
            (Self::ProbeDue, _) | (_, Self::ProbeDue) => Self::ProbeDue,
            (own, _) => own,
        }
    }
}

/// What an attempt says about its provider's health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HealthSignal {
    Success,
    /// An answer that is neither success nor failure: the provider is alive.
    Neutral,
    Failure,
    Cooldown(Option<Duration>),
    /// The provider is alive and does not have the model. To a permit without a key this is neutral.
    UnknownModel,
    /// It was silent for so long that its caller gave up, or that a later attempt at another
    /// provider answered first.
    Silent,
    /// Nothing was learnt, because nothing was sent or the answer was not waited for.
    Nothing,
}

/// What a failure or a cooldown counts for, where the permit has a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Concern {
    /// That key at that provider.
    Key,
    /// The provider, as its host, its credential and its account do.
    Provider,
}

/// A state that was entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Opened {
        until: Instant,
        breaks: u32,
        cause: OpenCause,
    },
    Closed,
    CoolingDown {
        until: Instant,
    },
    /// It has answered ten requests, and each of them with 404.
    OnlyNotFound,
}

/// Why a breaker opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OpenCause {
    /// A row of failures, whose last one was no silence.
    Consecutive,
    /// The share of failures in the window.
    Ratio,
    /// A row of failures, whose last one was a silence.
    Silence,
    /// The probe failed, or was silent.
    Probe,
}

impl OpenCause {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Consecutive => "consecutive",
            Self::Ratio => "ratio",
            Self::Silence => "silence",
            Self::Probe => "probe",
        }
    }
}

/// The changes that one outcome can make to one circuit: the breaker's; the cooldown's, or another.
pub(crate) type Moves = [Option<Change>; 2];

const UNMOVED: Moves = [None, None];

/// The changes that one outcome has made, if any: hardly any outcome changes anything.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes(Option<Box<[Moves; 2]>>);

impl Changes {
    /// The provider's own, and its key's.
    fn of(own: Moves, key: Moves) -> Self {
        let changes = [own, key];
        Self((changes != [UNMOVED; 2]).then(|| Box::new(changes)))
    }

    pub(crate) fn own(&self) -> Moves {
        self.0.as_ref().map_or(UNMOVED, |changes| changes[0])
    }

    pub(crate) fn key(&self) -> Moves {
        self.0.as_ref().map_or(UNMOVED, |changes| changes[1])
    }

    pub(crate) fn is_none(&self) -> bool {
        self.0.is_none()
    }

    /// Reports this, too, unless the provider cools down.
    #[cold]
    pub(crate) fn report(&mut self, change: Change) {
        let [breaker, other] = self.own();
        *self = Self::of([breaker, other.or(Some(change))], self.key());
    }
}

/// Every provider's health, and the counts that go with it.
#[derive(Debug)]
pub(crate) struct HealthTable {
    breaker: Option<Breaker>,
    pub(crate) cooldown: Cooldown,
    providers: Vec<ProviderHealth>,
    /// The number of the last permit.
    sequence: u64,
    random: fastrand::Rng,
    ticks: Ticks,
    /// Whether there is something that other processes have not been told.
    untold: bool,
    /// Only where the chain hedges.
    pub(crate) hedging: Option<Hedging>,
}

/// One provider's counts. An attempt is counted when it starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) attempts: u64,
    pub(crate) served: u64,
    pub(crate) failures: u64,
    pub(crate) in_flight: u64,
}

impl HealthTable {
    /// A table in which every provider is healthy. Without a breaker none is ever passed over.
    pub(crate) fn new(providers: usize, breaker: Option<Breaker>, now: Instant, seed: u64) -> Self {
        let window = breaker.as_ref().map_or(Duration::ZERO, |breaker| breaker.window);
        Self {
            ticks: Ticks::new(now, window),
            breaker,
            cooldown: Cooldown::default(),
            providers: (0..providers).map(|_| ProviderHealth::default()).collect(),
            sequence: 0,
            random: fastrand::Rng::with_seed(seed),
            untold: false,
            hedging: None,
        }
    }

    /// The most requests that a provider may have at once.
    pub(crate) fn limit_in_flight(&mut self, provider: usize, most: u64) {
        self.providers[provider].max_in_flight = most;
    }

    /// Gives this id to another provider, of which nothing is known yet. Nothing may be in flight at the
    /// one before it.
    pub(crate) fn renew(&mut self, provider: usize) {
        if provider >= self.providers.len() {
            self.providers.resize_with(provider + 1, ProviderHealth::default);
        }
        let before = std::mem::take(&mut self.providers[provider]);
        // `share` goes on from it.
        self.providers[provider].circuit.peers = before.circuit.peers;
        if let Some(hedging) = &mut self.hedging {
            hedging.renew(provider);
        }
    }

    #[inline]
    pub(crate) fn is_isolated(&self, provider: usize) -> bool {
        self.providers[provider].isolated
    }

    /// Whether a provider may be asked now, with a request that has this key.
    #[inline]
    pub(crate) fn admission(&self, provider: usize, key: Option<&[u8]>, now: Instant) -> Admission {
        self.providers[provider].admission(key, now)
    }

    /// Takes a permit. If this is a probe, its lease ends at `lease_until`.
    #[inline]
    pub(crate) fn admit(
        &mut self,
        provider: usize,
        key: Option<&[u8]>,
        now: Instant,
        lease_until: Instant,
    ) -> Permit {
        self.sequence += 1;
        let permit = self.providers[provider].admit(provider, key, self.sequence, now, lease_until);
        self.note(provider);
        permit
    }

    /// Notes whether there is something to tell other processes.
    #[inline]
    fn note(&mut self, provider: usize) {
        self.untold |= self.providers[provider].circuit.peers.is_untold();
    }

    /// A provider was passed over because it has as many requests as it may have. Whether that is to be
    /// reported: once, until it has had room for a minute.
    pub(crate) fn pass_over(&mut self, provider: usize, now: Instant) -> bool {
        self.providers[provider].pass_over(now)
    }

    /// An answer came, after so long: perhaps that there is nothing where it was sent, which is no word of
    /// an API. Returns what is to be reported of it.
    #[inline]
    pub(crate) fn record_answer(
        &mut self,
        permit: &Permit,
        not_found: bool,
        time_to_headers: Duration,
    ) -> Option<Change> {
        self.providers[permit.provider()].record_answer(permit, not_found, time_to_headers)
    }

    /// Takes a permit back together with what its attempt says, and of what.
    pub(crate) fn record_outcome(
        &mut self,
        mut permit: Permit,
        signal: HealthSignal,
        concern: Concern,
        now: Instant,
    ) -> Changes {
        let Self { breaker, cooldown, providers, sequence, random, ticks, .. } = self;
        let provider = &mut providers[permit.provider()];
        if permit.is_probe() {
            provider.forget_lost_leases(&mut permit);
        }
        provider.take_back(&permit);
        provider.counts.failures += u64::from(signal == HealthSignal::Failure);
        let Some(breaker) = breaker else { return Changes::default() };
        let tick = ticks.at(now);
        let mut rules = Rules { breaker, cooldown, random, tick, sequence: *sequence, now };
        let changes = provider.record(&permit, signal, concern, &mut rules);
        self.note(permit.provider());
        changes
    }

    /// Takes a permit back whose attempt its caller gave up, after the provider was silent for so
    /// long: for no time at all where nothing was sent, or the caller's own body was pending.
    pub(crate) fn abandon(&mut self, permit: Permit, quiet_for: Duration, now: Instant) -> Changes {
        let signal = self.silence(&permit, quiet_for);
        self.record_outcome(permit, signal, Concern::Key, now)
    }

    /// What a silence that its caller ended says: nothing, unless it was long. So no caller, however
    /// impatient, moves the health of a provider that answers others.
    pub(crate) fn silence(&mut self, permit: &Permit, quiet_for: Duration) -> HealthSignal {
        match self.is_silence(permit, quiet_for) {
            true => HealthSignal::Silent,
            false => HealthSignal::Nothing,
        }
    }

    /// Whether the provider has been silent for long: more than a second, and more than twice its
    /// usual time to headers. A stream that is cut after such a silence is a broken stream.
    pub(crate) fn is_silence(&mut self, permit: &Permit, quiet_for: Duration) -> bool {
        self.providers[permit.provider()].is_silence(permit, quiet_for)
    }

    /// Takes a permit back whose attempt was dropped.
    pub(crate) fn cancel(&mut self, permit: &Permit) {
        self.providers[permit.provider()].take_back(permit);
        self.note(permit.provider());
    }

    /// A stream has begun well. That ends what a success ends; whether the stream counts as a
    /// success is known at its end, with which the permit must come back.
    pub(crate) fn commit(&mut self, permit: &mut Permit, now: Instant) -> Changes {
        let Self { breaker, cooldown, providers, sequence, random, ticks, .. } = self;
        let Some(breaker) = breaker else { return Changes::default() };
        let tick = ticks.at(now);
        let rules = Rules { breaker, cooldown, random, tick, sequence: *sequence, now };
        let changes = providers[permit.provider()].commit(permit, &rules);
        self.note(permit.provider());
        changes
    }

    /// The answer of a request is over that counted in the place of its [detached](Permit::detach) permit.
    pub(crate) fn leave(&mut self, provider: usize) {
        self.providers[provider].leave();
    }

    /// Counts a response that was handed to the caller as this provider's success.
    #[inline]
    pub(crate) fn serve(&mut self, provider: usize) {
        self.providers[provider].counts.served += 1;
    }

    pub(crate) fn isolate(&mut self, provider: usize, isolated: bool) {
        self.providers[provider].isolated = isolated;
    }

    #[inline]
    pub(crate) fn state(&self, provider: usize, now: Instant) -> State {
        self.providers[provider].state(now)
    }

    /// The keys that a provider is not asked with for now, and how each stands.
    pub(crate) fn resting_keys(
        &self,
        provider: usize,
        now: Instant,
    ) -> impl Iterator<Item = (&[u8], State)> {
        self.providers[provider].resting_keys(now)
    }

    pub(crate) fn counts(&self, provider: usize) -> Counts {
        self.providers[provider].counts
    }
}

#[cfg(test)]
mod interleavings;
#[cfg(test)]
mod keyed;
#[cfg(test)]
mod tests;
