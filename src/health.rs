//! Each provider's circuit breaker and cooldown, and the rules that move them.
//!
//! Nothing here reads a clock, waits or locks: every call is told `now`, so that each rule can be
//! tested in virtual time. There is no half-open state. When a break ends, one request is lent the
//! right to probe, and that lease ends by itself: a probe that is cancelled, hangs or proves nothing
//! never leaves a provider shut.
//!
//! *Sent before* is decided by sequence numbers, not by instants, so that a clock that stands still
//! changes nothing.

mod breaker;
mod circuit;
mod provider;
mod ring;

use std::time::{Duration, Instant};

pub use self::breaker::Breaker;
use self::circuit::Rules;
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
    Open {
        /// The end of the break.
        until: Instant,
    },
    /// The break is over and one request is out to see whether the provider is back.
    Probing,
    /// The provider asked for a pause.
    CoolingDown {
        /// The end of the cooldown.
        until: Instant,
    },
    /// Taken out by [`isolate`](crate::ProviderChain::isolate): never asked.
    Isolated,
}

/// Whether a provider may be asked now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    Available,
    /// The break is over and no probe is out: the next request is the probe.
    ProbeDue,
    /// Open, cooling down, or being probed until then.
    Unavailable(Instant),
    Isolated,
}

/// The right to ask one provider once. It must come back to [`HealthTable::record_outcome`],
/// [`HealthTable::abandon`] or [`HealthTable::cancel`].
#[derive(Debug)]
pub(crate) struct Permit {
    pub(crate) provider: usize,
    sequence: u64,
    since: Instant,
    /// Where its stream has begun well: the part of the window in which that was counted.
    committed: Option<u64>,
    admitted: Admitted,
}

impl Permit {
    /// The request is sent now: what came before is not the provider's time.
    #[inline]
    pub(crate) fn mark_sent(&mut self, now: Instant) {
        self.since = now;
    }

    /// The caller's own body was pending for this long, which is not the provider's time.
    #[inline]
    pub(crate) fn exclude(&mut self, pending: Duration) {
        self.since = after(self.since, pending);
    }

    /// Since when the provider has had the request.
    #[inline]
    pub(crate) fn since(&self) -> Instant {
        self.since
    }

    /// How long the provider has had the request.
    #[inline]
    pub(crate) fn elapsed(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }

    #[inline]
    pub(crate) fn is_probe(&self) -> bool {
        self.admitted == Admitted::Probe
    }

    /// Permits are numbered in the order of their admission.
    #[inline]
    pub(crate) fn sequence(&self) -> u64 {
        self.sequence
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Admitted {
    Regular,
    Probe,
    /// Asked while the breaker was open, because no better provider was left.
    WhileOpen,
    /// The same during a cooldown.
    WhileCoolingDown,
}

/// What an attempt says about its provider's health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HealthSignal {
    Success,
    /// An answer that is neither success nor failure: the provider is alive.
    Neutral,
    Failure,
    Cooldown(Option<Duration>),
    /// It was silent for so long that its caller gave up, or that a later attempt at another
    /// provider answered first.
    Silent,
    /// Nothing was learnt, because nothing was sent or the answer was not waited for.
    Nothing,
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

/// The changes that one outcome can make: the breaker's; the cooldown's, or another.
pub(crate) type Changes = [Option<Change>; 2];

/// Every provider's health, and the counts that go with it.
#[derive(Debug)]
pub(crate) struct HealthTable {
    breaker: Option<Breaker>,
    providers: Vec<ProviderHealth>,
    /// The number of the last permit.
    sequence: u64,
    random: fastrand::Rng,
    ticks: Ticks,
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
            providers: (0..providers).map(|_| ProviderHealth::default()).collect(),
            sequence: 0,
            random: fastrand::Rng::with_seed(seed),
            hedging: None,
        }
    }

    #[inline]
    pub(crate) fn admission(&self, provider: usize, now: Instant) -> Admission {
        let provider = &self.providers[provider];
        if provider.isolated { Admission::Isolated } else { provider.circuit.admission(now) }
    }

    /// Takes a permit. If this is a probe, its lease ends at `lease_until`.
    #[inline]
    pub(crate) fn admit(&mut self, provider: usize, now: Instant, lease_until: Instant) -> Permit {
        self.sequence += 1;
        let sequence = self.sequence;
        let ProviderHealth { counts, circuit, .. } = &mut self.providers[provider];
        counts.attempts += 1;
        counts.in_flight += 1;
        let admitted = circuit.admit(sequence, now, lease_until);
        Permit { provider, sequence, since: now, committed: None, admitted }
    }

    /// An answer came, after so long. Returns what is to be reported of it.
    #[inline]
    pub(crate) fn record_answer(
        &mut self,
        provider: usize,
        status: u16,
        time_to_headers: Duration,
    ) -> Option<Change> {
        self.providers[provider].record_answer(status, time_to_headers)
    }

    /// Takes a permit back together with what its attempt says.
    pub(crate) fn record_outcome(
        &mut self,
        mut permit: Permit,
        signal: HealthSignal,
        now: Instant,
    ) -> Changes {
        let Self { breaker, providers, sequence, random, ticks, .. } = self;
        let provider = &mut providers[permit.provider];
        if permit.is_probe() && !provider.circuit.holds_lease(&permit) {
            // Its lease ran out and another probe is on its way.
            permit.admitted = Admitted::WhileOpen;
        }
        provider.take_back(&permit);
        provider.counts.failures += u64::from(signal == HealthSignal::Failure);
        let Some(breaker) = breaker else { return [None, None] };
        let tick = ticks.at(now);
        let mut rules = Rules { breaker, random, tick, sequence: *sequence, now };
        provider.circuit.record(&permit, signal, &mut rules)
    }

    /// Takes a permit back whose attempt its caller gave up, after the provider was silent for so
    /// long: for no time at all where nothing was sent, or the caller's own body was pending.
    pub(crate) fn abandon(&mut self, permit: Permit, quiet_for: Duration, now: Instant) -> Changes {
        let signal = self.silence(permit.provider, quiet_for);
        self.record_outcome(permit, signal, now)
    }

    /// What a silence that its caller ended says: nothing, unless it was long. So no caller, however
    /// impatient, moves the health of a provider that answers others.
    pub(crate) fn silence(&self, provider: usize, quiet_for: Duration) -> HealthSignal {
        match self.is_silence(provider, quiet_for) {
            true => HealthSignal::Silent,
            false => HealthSignal::Nothing,
        }
    }

    /// Whether the provider has been silent for long: more than a second, and more than twice its
    /// usual time to headers. A stream that is cut after such a silence is a broken stream.
    pub(crate) fn is_silence(&self, provider: usize, quiet_for: Duration) -> bool {
        self.providers[provider].is_silence(quiet_for)
    }

    /// Takes a permit back whose attempt was dropped.
    pub(crate) fn cancel(&mut self, permit: &Permit) {
        self.providers[permit.provider].take_back(permit);
    }

    /// A stream has begun well. That ends what a success ends; whether the stream counts as a
    /// success is known at its end, with which the permit must come back.
    pub(crate) fn commit(&mut self, permit: &mut Permit, now: Instant) -> Option<Change> {
        let Self { breaker, providers, sequence, random, ticks, .. } = self;
        let breaker = breaker.as_ref()?;
        let rules = Rules { breaker, random, tick: ticks.at(now), sequence: *sequence, now };
        providers[permit.provider].circuit.commit(permit, &rules)
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
        let provider = &self.providers[provider];
        if provider.isolated { State::Isolated } else { provider.circuit.state(now) }
    }

    pub(crate) fn counts(&self, provider: usize) -> Counts {
        self.providers[provider].counts
    }
}

#[cfg(test)]
mod interleavings;
#[cfg(test)]
mod tests;
