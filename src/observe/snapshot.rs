//! A chain's health and counts at one moment.

use std::sync::Arc;
#[cfg(feature = "fleet")]
use std::time::Instant;

use super::RequestCounts;
use crate::health::{Counts, State};

/// A chain's health and counts at one moment.
///
/// ```
/// use reqwest_failover::{Provider, ProviderChain};
///
/// let chain = ProviderChain::builder([Provider::cometapi("key-a"), Provider::openai("key-b")]).build()?;
/// let snapshot = chain.snapshot();
/// assert_eq!(snapshot.requests(), 0);
/// assert_eq!(snapshot.served_by_fallback(), 0);
/// for provider in snapshot.providers() {
///     println!("{}: {}, {} attempts", provider.name(), provider.state(), provider.attempts());
/// }
/// # Ok::<(), reqwest_failover::ConfigError>(())
/// ```
///
/// With the feature `serde` it implements `Serialize`, for a health page: see
/// [`State::remaining`](crate::State::remaining) for the time that is left of a break.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub(crate) providers: Vec<ProviderSnapshot>,
    pub(crate) counts: RequestCounts,
    pub(crate) fallback_ratio: Option<f64>,
    pub(crate) passed_through: u64,
    pub(crate) callback_panics: u64,
    #[cfg(feature = "fleet")]
    pub(crate) fleet: Option<FleetSnapshot>,
}

impl Snapshot {
    /// The providers in their current order.
    pub fn providers(&self) -> &[ProviderSnapshot] {
        &self.providers
    }

    /// The provider of this name, if the chain has it.
    ///
    /// ```
    /// # use reqwest_failover::{Provider, ProviderChain};
    /// # let chain = ProviderChain::builder([Provider::openai("key")]).build()?;
    /// let snapshot = chain.snapshot();
    /// let openai = snapshot.provider("openai").unwrap();
    /// println!("openai is {}", openai.state());
    /// # Ok::<(), reqwest_failover::ConfigError>(())
    /// ```
    pub fn provider(&self, name: &str) -> Option<&ProviderSnapshot> {
        self.providers.iter().find(|provider| &*provider.name == name)
    }

    /// Requests that were claimed and are over.
    pub fn requests(&self) -> u64 {
        self.counts.requests
    }

    /// Requests that were served by another provider than the first in order, a hedge's included.
    pub fn served_by_fallback(&self) -> u64 {
        self.counts.by_fallback
    }

    /// The share of the last 5 minutes' requests that the first provider did not serve; `None` when
    /// there were fewer than 20.
    pub fn fallback_ratio(&self) -> Option<f64> {
        self.fallback_ratio
    }

    /// Requests that no provider served, because each one that was asked refused the request itself.
    pub fn rejected(&self) -> u64 {
        self.counts.rejected
    }

    /// Requests that no provider served, without the [`rejected`](Self::rejected) ones. A request that its
    /// caller dropped is counted in [`requests`](Self::requests) only.
    pub fn exhausted(&self) -> u64 {
        self.counts.exhausted
    }

    /// Requests that were passed through because their URL is below no base of the chain.
    pub fn passed_through(&self) -> u64 {
        self.passed_through
    }

    /// How the chain stands with the others that share its health; `None` if it does not
    /// [`share`](crate::ProviderChainBuilder::share) it.
    #[cfg(feature = "fleet")]
    pub fn fleet(&self) -> Option<FleetSnapshot> {
        self.fleet
    }

    /// How often one of the user's closures panicked.
    pub fn callback_panics(&self) -> u64 {
        self.callback_panics
    }
}

/// How a chain stands with the others that share its health, as [`Snapshot::fleet`] returns it.
///
/// ```
/// # use reqwest_failover::{Provider, ProviderChain, fleet::MemoryStore};
/// # let chain = ProviderChain::builder([Provider::openai("key")]).share(MemoryStore::new()).build()?;
/// if let Some(fleet) = chain.snapshot().fleet() {
///     println!("joined: {}, others heard: {}", fleet.is_joined(), fleet.processes_heard());
///     println!("errors: {}, ignored: {}", fleet.errors(), fleet.ignored());
///     println!("last heard {:?} ago", fleet.last_heard().map(|heard| heard.elapsed()));
/// }
/// # Ok::<(), reqwest_failover::ConfigError>(())
/// ```
#[cfg(feature = "fleet")]
#[derive(Clone, Copy, Debug, Default)]
pub struct FleetSnapshot {
    pub(crate) is_joined: bool,
    pub(crate) processes_heard: usize,
    pub(crate) ignored: u64,
    pub(crate) errors: u64,
    pub(crate) last_heard: Option<Instant>,
}

#[cfg(feature = "fleet")]
impl FleetSnapshot {
    /// Whether the store answers: it was read, and nothing has failed since.
    pub fn is_joined(&self) -> bool {
        self.is_joined
    }

    /// How many other processes have reported something that still counts. Where nothing fails, none do.
    pub fn processes_heard(&self) -> usize {
        self.processes_heard
    }

    /// Records that were left out: they are in a format that this version does not read, or there were more
    /// than 200 between two reads of the store.
    pub fn ignored(&self) -> u64 {
        self.ignored
    }

    /// Calls to the store that failed or took longer than 500 ms.
    pub fn errors(&self) -> u64 {
        self.errors
    }

    /// When a report or a command of another process was last taken in.
    pub fn last_heard(&self) -> Option<Instant> {
        self.last_heard
    }
}

/// One provider's part of a [`Snapshot`], where it is shown.
#[derive(Clone, Debug)]
pub struct ProviderSnapshot {
    pub(crate) name: Arc<str>,
    pub(crate) state: State,
    pub(crate) counts: Counts,
    pub(crate) resting_keys: Vec<(Box<str>, State)>,
}

impl ProviderSnapshot {
    /// The provider's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How the provider stands with the chain.
    pub fn state(&self) -> State {
        self.state
    }

    /// Attempts that were started.
    pub fn attempts(&self) -> u64 {
        self.counts.attempts
    }

    /// Responses that were accepted.
    pub fn served(&self) -> u64 {
        self.counts.served
    }

    /// Failures that its health recorded: outcomes judged [`Fault::Failure`](crate::Fault::Failure), and
    /// streams that broke. Not what its caller gave up.
    pub fn failures(&self) -> u64 {
        self.counts.failures
    }

    /// Attempts that are waiting for their outcome, and inspected streams for their end. At a provider
    /// with [`max_in_flight`](crate::Provider::max_in_flight) an answer counts until its body ends or is
    /// dropped.
    pub fn in_flight(&self) -> u64 {
        self.counts.in_flight
    }

    /// The health keys with which the provider is not asked for now, and how each of them stands with the
    /// chain. Keys are data from outside: control characters are escaped, and keys of the chain's
    /// providers removed. Empty without [`health_by`](crate::ProviderChainBuilder::health_by).
    ///
    /// ```
    /// # use reqwest_failover::{HealthKey, Provider, ProviderChain};
    /// # let chain = ProviderChain::builder([Provider::openai("key")])
    /// #     .health_by(HealthKey::model())
    /// #     .build()?;
    /// for provider in chain.snapshot().providers() {
    ///     for (model, state) in provider.resting_keys() {
    ///         println!("{} rests for {model}: {state:?}", provider.name());
    ///     }
    /// }
    /// # Ok::<(), reqwest_failover::ConfigError>(())
    /// ```
    pub fn resting_keys(&self) -> impl Iterator<Item = (&str, State)> {
        self.resting_keys.iter().map(|(key, state)| (&**key, *state))
    }
}
