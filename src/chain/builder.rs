//! The builder of a chain: every setting, and what `build()` checks.

use std::fmt;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use reqwest::Request;

use super::ProviderChain;
use super::address::Addresses;
use super::caller::LastCaller;
use super::entries::Entries;
#[cfg(feature = "fleet")]
use super::fleet::link;
#[cfg(feature = "fleet")]
use super::fleet_link::FleetLink;
#[cfg(feature = "fleet")]
use super::list::StartTask;
use super::list::{CurrentList, show_entries};
use super::mark::CountedChain;
use super::settings::Settings;
use super::shared::{ChainState, Classify, RouteFor, Shared, Table, now};
use crate::error::{ConfigError, Exhausted};
#[cfg(feature = "fleet")]
use crate::fleet::HealthStore;
use crate::health::{Breaker, Cooldown, HealthKey, HealthTable};
use crate::hedge::{Hedge, Hedging};
use crate::inspect::Inspect;
use crate::observe::rate::{FallbackRate, RateLimits};
use crate::observe::{Closure, Event, Observer, RequestCounts};
use crate::provider::{ChainHeaders, Checked, MAX_PROVIDERS, Provider, check};
use crate::route::Route;
use crate::run::{Ambiguous, ChainLimits};
use crate::verdict::{Outcome, Verdict};

/// Builds a [`ProviderChain`]. Everything has a default; mistakes are reported by
/// [`build`](Self::build).
///
/// ```
/// use std::time::Duration;
/// use reqwest_failover::{Ambiguous, Provider, ProviderChain, Route, Verdict};
///
/// let chain = ProviderChain::builder([Provider::cometapi("key-a"), Provider::openai("key-b")])
///     .claim("https://llm.example.com/v1")
///     .classify(Verdict::transient)
///     .route(|request| {
///         request.url().path().contains("/files/").then(|| Route::only(["openai"]))
///     })
///     .attempt_timeout(Duration::from_secs(20))
///     .total_timeout(Duration::from_secs(45))
///     .max_attempts(2)
///     .on_ambiguous(Ambiguous::IdempotentOnly)
///     .replay_buffer(8 * 1024 * 1024)
///     .log_messages(false)
///     .build()?;
/// # Ok::<(), reqwest_failover::ConfigError>(())
/// ```
#[must_use = "a chain begins with `build()`"]
pub struct ProviderChainBuilder {
    providers: Vec<Provider>,
    claims: Vec<String>,
    headers: ChainHeaders,
    classify: Option<Classify>,
    route: Option<RouteFor>,
    attempt_timeout: Option<Duration>,
    total_timeout: Duration,
    error_body_timeout: Duration,
    max_attempts: Option<usize>,
    ambiguous: Ambiguous,
    health_key: Option<HealthKey>,
    breaker: Option<Breaker>,
    nested: bool,
    cooldown: Cooldown,
    replay_buffer: u64,
    hedge: Option<Hedge>,
    inspect: Option<Inspect>,
    exhausted: Exhausted,
    observe: Vec<Closure>,
    rate_limits: RateLimits,
    log_messages: bool,
    #[cfg(feature = "fleet")]
    fleet: Option<(Arc<FleetLink>, StartTask)>,
}

impl ProviderChainBuilder {
    pub(super) fn new(providers: impl IntoIterator<Item = Provider>) -> Self {
        Self {
            providers: providers.into_iter().collect(),
            claims: Vec::new(),
            headers: ChainHeaders::default(),
            classify: None,
            route: None,
            attempt_timeout: None,
            total_timeout: ChainLimits::DEFAULT_TOTAL,
            error_body_timeout: DEFAULT_ERROR_BODY_TIMEOUT,
            max_attempts: None,
            ambiguous: Ambiguous::default(),
            health_key: None,
            breaker: Some(Breaker::default()),
            nested: false,
            cooldown: Cooldown::default(),
            replay_buffer: DEFAULT_REPLAY_BUFFER,
            hedge: None,
            inspect: None,
            exhausted: Exhausted::default(),
            observe: Vec::new(),
            rate_limits: RateLimits::default(),
            log_messages: true,
            #[cfg(feature = "fleet")]
            fleet: None,
        }
    }

    /// Also claims requests below this base URL, which is no provider's own.
    pub fn claim(mut self, base_url: impl Into<String>) -> Self {
        self.claims.push(base_url.into());
        self
    }

    /// Lets this chain claim attempts of a chain that is above it in the same client, for chains that are
    /// stacked on purpose. Without it such attempts pass through untouched, so that two chains whose
    /// bases overlap do not send each other's attempts elsewhere, with another key.
    ///
    /// ```
    /// # use reqwest_failover::{Provider, ProviderChain};
    /// let regions = ProviderChain::builder([
    ///     Provider::new("eu", "https://eu.example.com/v1").bearer_auth("key-eu"),
    ///     Provider::new("us", "https://us.example.com/v1").bearer_auth("key-us"),
    /// ])
    /// .nested()
    /// .build()?;
    /// # Ok::<(), reqwest_failover::ConfigError>(())
    /// ```
    pub fn nested(mut self) -> Self {
        self.nested = true;
        self
    }

    /// Removes one of the caller's headers from every provider's requests. Those that are known to carry
    /// keys need no mention.
    ///
    /// ```
    /// # use reqwest_failover::{Provider, ProviderChain};
    /// let chain = ProviderChain::builder([Provider::openai("key")])
    ///     .remove_header("x-internal-user")
    ///     .keep_header("x-trace-token")
    ///     .build()?;
    /// # Ok::<(), reqwest_failover::ConfigError>(())
    /// ```
    pub fn remove_header(mut self, name: impl Into<String>) -> Self {
        self.headers.remove.push(name.into());
        self
    }

    /// Lets one of the caller's headers reach every provider, although its name may carry a key. A
    /// header that any provider uses for its own credential cannot be kept.
    pub fn keep_header(mut self, name: impl Into<String>) -> Self {
        self.headers.keep.push(name.into());
        self
    }

    /// Judges outcomes in place of [`Verdict::standard`], with the code and message of failed answers;
    /// shown at [`Outcome`]. Sees every outcome except a response from another origin or path than the one
    /// that was asked, which always fails over. If it accepts an outcome without
    /// a response, the request ends with a [`FailoverError`](crate::FailoverError). If it panics,
    /// the outcome is judged by [`Verdict::standard`].
    pub fn classify<F>(mut self, judge: F) -> Self
    where
        F: Fn(&Outcome<'_>) -> Verdict + Send + Sync + 'static,
    {
        self.classify = Some(Box::new(judge));
        self
    }

    /// Gives single requests a [`Route`] of their own. Sees the caller's request, before anything
    /// is changed; a `Route` among the request's extensions wins over it. If it panics, the request
    /// takes the chain's own order.
    pub fn route<F>(mut self, route: F) -> Self
    where
        F: Fn(&Request) -> Option<Route> + Send + Sync + 'static,
    {
        self.route = Some(Box::new(route));
        self
    }

    /// How long any provider may take to its response's headers, unless it has a limit of its own. An
    /// explicit limit binds as it is. Longer than zero, and at most the total timeout.
    ///
    /// Default: while another provider may still be asked, 120 s or half of the time that is left for
    /// the request, whichever is less; the last one has all that is left. No time passes for a provider
    /// while the caller's own body stream is pending.
    pub fn attempt_timeout(mut self, limit: Duration) -> Self {
        self.attempt_timeout = Some(limit);
        self
    }

    /// How long a request may take to its response's headers, all attempts together. Default 600 s.
    /// Longer than zero. A timeout of the request itself bounds all attempts together, too, if it is
    /// shorter; each attempt is given what is left of it. This limit does not bind bodies.
    pub fn total_timeout(mut self, limit: Duration) -> Self {
        self.total_timeout = limit;
        self
    }

    /// How long the body of a failed answer is read before the answer is judged. Default 100 ms; zero
    /// never reads it. What arrived in time is in [`Outcome::code`], [`Outcome::message`] and the
    /// report. At most 64 KiB are read, of which the first 16 KiB are looked at.
    ///
    /// ```
    /// use std::time::Duration;
    /// use reqwest_failover::{Provider, ProviderChain};
    ///
    /// let chain = ProviderChain::builder([Provider::openai("key")])
    ///     .error_body_timeout(Duration::from_millis(20))
    ///     .build()?;
    /// # Ok::<(), reqwest_failover::ConfigError>(())
    /// ```
    pub fn error_body_timeout(mut self, limit: Duration) -> Self {
        self.error_body_timeout = limit;
        self
    }

    /// The most providers that are asked for one request. Default all; at least 1.
    pub fn max_attempts(mut self, attempts: usize) -> Self {
        self.max_attempts = Some(attempts);
        self
    }

    /// What to do when a provider may have processed a request although no usable answer came; see
    /// [`Outcome::maybe_processed`]. Default [`Ambiguous::FailOver`].
    pub fn on_ambiguous(mut self, ambiguous: Ambiguous) -> Self {
        self.ambiguous = ambiguous;
        self
    }

    /// Keeps each provider's health for each key of requests, such as their model, so that a limit on one
    /// of them does not rest the others. Off by default. Shown at [`HealthKey`], which also says when not
    /// to use it.
    pub fn health_by(mut self, key: HealthKey) -> Self {
        self.health_key = Some(key);
        self
    }

    /// When a provider's circuit breaker opens, and for how long. Default [`Breaker::default`].
    pub fn breaker(mut self, breaker: Breaker) -> Self {
        self.breaker = Some(breaker);
        self
    }

    /// How long a provider rests after a 429 and the like. Default [`Cooldown::default`].
    pub fn cooldown(mut self, cooldown: Cooldown) -> Self {
        self.cooldown = cooldown;
        self
    }

    /// Keeps no health: no breaker opens, no provider or key cools down, and every request asks the first
    /// provider first that has room ([`max_in_flight`](Provider::max_in_flight)).
    pub fn without_health(mut self) -> Self {
        self.breaker = None;
        self
    }

    /// Also asks the next provider when one is silent for long. Off by default, since **a request
    /// may then be processed, and billed, twice**. Shown at [`Hedge`].
    pub fn hedge(mut self, hedge: Hedge) -> Self {
        self.hedge = Some(hedge);
        self
    }

    /// Looks for errors inside successful responses, which then fail over. Off by default. Shown at
    /// [`Inspect`].
    pub fn inspect(mut self, inspect: Inspect) -> Self {
        self.inspect = Some(inspect);
        self
    }

    /// The largest streamed body, in bytes, that is read into memory so that it can be sent again.
    /// Default 2 MiB. Multipart forms are streamed bodies. A larger one, or one of unknown length,
    /// is sent once, without failover.
    pub fn replay_buffer(mut self, bytes: u64) -> Self {
        self.replay_buffer = bytes;
        self
    }

    /// What the caller gets when no provider served, also where each refused the request. Default
    /// [`Exhausted::LastOutcome`].
    pub fn on_exhausted(mut self, exhausted: Exhausted) -> Self {
        self.exhausted = exhausted;
        self
    }

    /// Sees every [`Event`]. It is called in line, so it should be quick; if it panics, that is
    /// counted and logged, and nothing else changes.
    pub fn observe<F>(mut self, observer: F) -> Self
    where
        F: Fn(&Event<'_>) + Send + Sync + 'static,
    {
        self.observe.push(Box::new(observer));
        self
    }

    /// When the fallback rate counts as high, and when as normal again: the shares of the last 5
    /// minutes' requests that the first provider did not serve, above and below which
    /// [`Event::FallbackRateHigh`] and [`Event::FallbackRateNormal`] are sent. Default 0.10 and 0.05.
    pub fn fallback_alert(mut self, high: f64, normal: f64) -> Self {
        self.rate_limits = RateLimits { high, normal };
        self
    }

    /// Whether log lines hold the messages of failed attempts. Default `true`. Reports hold them
    /// either way.
    pub fn log_messages(mut self, log: bool) -> Self {
        self.log_messages = log;
        self
    }

    /// Shares the health of the providers, and what operators do, with the other chains that share the same
    /// store. Off by default. Shown at [`fleet`](crate::fleet). The health of [keys](Self::health_by) stays
    /// with each process. With [`without_health`](Self::without_health) only operators' commands are shared.
    ///
    /// One task on the current runtime talks to the store; it starts with the chain or, where there is no
    /// runtime yet, with the first request, and ends with the chain.
    #[cfg(feature = "fleet")]
    pub fn share(mut self, store: impl HealthStore) -> Self {
        self.fleet = Some(link(store));
        self
    }

    /// Checks everything and builds the chain.
    ///
    /// # Errors
    /// If there is no provider, two have the same name, one of them is misconfigured (see
    /// [`Provider`]), or a setting is out of its range. The error names the provider and the field.
    pub fn build(self) -> Result<ProviderChain, ConfigError> {
        let Checked { entries, scope, strip } = check(self.providers, &self.claims, &self.headers)?;
        let settings = Settings {
            claims: self.claims,
            headers: self.headers,
            total: self.total_timeout,
            attempt: self.attempt_timeout,
        };
        if self.max_attempts == Some(0) {
            return Err(ConfigError::new(None, "max_attempts", "must be at least 1"));
        }
        settings.check(&entries)?;
        let problems = [
            ("breaker", self.breaker.as_ref().and_then(Breaker::problem)),
            ("cooldown", self.cooldown.problem()),
            ("fallback_alert", self.rate_limits.problem()),
            ("hedge", self.hedge.as_ref().and_then(|hedge| hedge.problem(settings.shortest()))),
        ];
        for (field, problem) in problems {
            if let Some(problem) = problem {
                return Err(ConfigError::new(None, field, problem));
            }
        }
        let ids = (0..entries.len()).collect();
        let entries = Entries::new(entries, ids);
        let limits = ChainLimits {
            max_attempts: self.max_attempts.unwrap_or(usize::MAX),
            ambiguous: self.ambiguous,
            hold: self
                .inspect
                .as_ref()
                .map_or(Duration::ZERO, Inspect::longest_hold)
                .max(self.error_body_timeout),
            total: self.total_timeout,
            attempts: settings.attempts(&entries),
            hosts: entries.hosts(),
        };
        let now = now();
        let health_key = self.health_key.filter(|_| self.breaker.is_some());
        let mut health = HealthTable::new(entries.len(), self.breaker, now, fastrand::u64(..));
        health.hedging = self.hedge.as_ref().map(|hedge| Hedging::new(hedge, entries.len()));
        health.cooldown = self.cooldown;
        #[cfg(feature = "fleet")]
        let (fleet, start_task) = self.fleet.unzip();
        for (provider, entry) in entries.iter() {
            health.limit_in_flight(provider, entry.most_in_flight());
            #[cfg(feature = "fleet")]
            if let Some(fleet) = &fleet {
                health.share(provider, fleet.process);
            }
        }
        let table = Table {
            health,
            fallback_rate: FallbackRate::new(self.rate_limits, now),
            order: (0..entries.len()).collect(),
            counts: RequestCounts::default(),
            begun: 0,
        };
        let names = entries.iter().map(|(id, entry)| (id, entry.name.clone()));
        let observer = Observer::new(self.observe, self.log_messages, names);
        show_entries(&entries, &Entries::new(Vec::new(), Vec::new()), &observer);
        let chain = ChainState {
            settings,
            table: Mutex::new(table),
            lists: Mutex::default(),
            classify: self.classify,
            route: self.route,
            _counted: CountedChain::new(),
            nested: self.nested,
            health_key,
            replay_buffer: self.replay_buffer,
            inspect: self.inspect,
            error_body_timeout: self.error_body_timeout,
            exhausted: self.exhausted,
            #[cfg(feature = "fleet")]
            fleet,
        };
        let list = Shared {
            chain: Arc::new(chain),
            secrets: entries.secrets(),
            last_caller: LastCaller::default(),
            tokens: Mutex::new(vec![Vec::new(); entries.len()]),
            entries,
            scope,
            strip,
            addresses: Addresses::new(),
            limits,
            observer,
            last_order: OnceLock::new(),
        };
        let current = Arc::new(CurrentList::new(
            list,
            #[cfg(feature = "fleet")]
            start_task,
        ));
        #[cfg(feature = "fleet")]
        current.start_task();
        Ok(ProviderChain { current })
    }
}

impl fmt::Debug for ProviderChainBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProviderChainBuilder")
            .field("providers", &self.providers)
            .finish_non_exhaustive()
    }
}

// A run keeps one bit for each provider.
const _: () = assert!(MAX_PROVIDERS <= u128::BITS as usize);

const DEFAULT_REPLAY_BUFFER: u64 = 2 * 1024 * 1024;
const DEFAULT_ERROR_BODY_TIMEOUT: Duration = Duration::from_millis(100);
