//! The middleware and its builder.
//!
//! The driver below does what a [`Run`] decides, and nothing else: it asks for a step, does it, and
//! reports what landed. The board is locked for each decision and never across an await; events go
//! out after the lock is gone, so that a user's closure may ask the chain for its snapshot.

mod address;
mod attempt;
mod body;
mod call;
mod drive;
mod race;

use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use address::Addresses;
use http::Extensions;
use reqwest::Request;
use reqwest_middleware::{Middleware, Next};

use crate::error::{ConfigError, Exhausted};
use crate::health::{Breaker, Change, Changes, HealthTable, State};
use crate::health::{HealthSignal, Permit};
use crate::hedge::{Hedge, Hedging};
use crate::inspect::{Inspect, StreamEnd};
use crate::observe::rate::{RateLimits, SwitchRate};
use crate::observe::{Closure, Event, Observer, ProviderSnapshot, RequestCounts, Snapshot};
use crate::provider::{Checked, Entry, MAX_PROVIDERS, Provider, check};
use crate::readdress::{Scope, StripList};
use crate::route::Route;
use crate::run::{Ambiguous, Limits};
use crate::verdict::{Outcome, Verdict};

/// An ordered list of API providers, as a `reqwest-middleware` layer.
///
/// Each request whose URL lies below one of the chain's bases goes to the first healthy provider,
/// readdressed; if that fails, to the next. Any other request passes through untouched. Clones
/// share their health.
///
/// ```
/// use reqwest_failover::{Provider, ProviderChain, harden};
/// use reqwest_middleware::ClientBuilder;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let chain = ProviderChain::builder([
///     Provider::cometapi("comet-key"),
///     Provider::openai("openai-key"),
/// ])
/// .build()?;
///
/// let client = ClientBuilder::new(harden(reqwest::Client::builder()).build()?)
///     .with(chain.clone())
///     .build();
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct ProviderChain {
    inner: Arc<Inner>,
}

impl ProviderChain {
    /// Begins a chain of these providers: requests go to the first one first.
    pub fn builder(providers: impl IntoIterator<Item = Provider>) -> ProviderChainBuilder {
        ProviderChainBuilder {
            providers: providers.into_iter().collect(),
            claims: Vec::new(),
            classify: None,
            route: None,
            attempt_timeout: None,
            total_timeout: Limits::DEFAULT_TOTAL,
            max_attempts: None,
            ambiguous: Ambiguous::default(),
            breaker: Some(Breaker::default()),
            replay_buffer: DEFAULT_REPLAY_BUFFER,
            hedge: None,
            inspect: None,
            exhausted: Exhausted::default(),
            observe: None,
            rate_limits: RateLimits::default(),
            log_messages: true,
        }
    }

    /// The chain's health and counts at this moment. Shown at [`Snapshot`].
    pub fn snapshot(&self) -> Snapshot {
        let inner = &self.inner;
        let now = now();
        let shared = inner.lock();
        let provider = |provider: &usize| ProviderSnapshot {
            name: inner.entries[*provider].name.clone(),
            state: shared.board.state(*provider, now),
            counts: shared.board.counts(*provider),
        };
        Snapshot {
            providers: shared.order.iter().map(provider).collect(),
            request_counts: shared.request_counts,
            switch_ratio: shared.switch_rate.ratio(now),
            passed_through: inner.observer.passed_through(),
            callback_panics: inner.observer.callback_panics(),
        }
    }

    /// Changes the order for requests that begin from now on; those in flight keep theirs.
    ///
    /// ```
    /// use reqwest_failover::{Provider, ProviderChain};
    ///
    /// let chain = ProviderChain::builder([Provider::cometapi("key-a"), Provider::openai("key-b")]).build()?;
    /// chain.set_order(["openai", "cometapi"])?;
    /// assert_eq!(chain.snapshot().providers()[0].name(), "openai");
    /// # Ok::<(), reqwest_failover::ConfigError>(())
    /// ```
    ///
    /// # Errors
    /// If the names are not a permutation of the chain's.
    pub fn set_order<I>(&self, names: I) -> Result<(), ConfigError>
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        let mut order = Vec::with_capacity(self.inner.entries.len());
        for name in names {
            let provider = self.inner.known(name.as_ref(), "set_order")?;
            if order.contains(&provider) {
                let twice = "is named twice; name every provider once";
                return Err(ConfigError::new(Some(name.as_ref()), "set_order", twice));
            }
            order.push(provider);
        }
        if order.len() < self.inner.entries.len() {
            let missing = format!("must name every provider once: {}", self.inner.names());
            return Err(ConfigError::new(None, "set_order", missing));
        }
        let mut shared = self.inner.lock();
        if shared.order.first() != order.first() {
            shared.switch_rate.reset();
        }
        shared.order = order.into();
        Ok(())
    }

    /// Takes a provider out: it is not asked again until [`restore`](Self::restore), not even as the
    /// last resort. Attempts in flight are not disturbed.
    ///
    /// ```
    /// use reqwest_failover::{Provider, ProviderChain, State};
    ///
    /// let chain = ProviderChain::builder([Provider::cometapi("key-a"), Provider::openai("key-b")]).build()?;
    /// chain.isolate("cometapi")?;
    /// assert_eq!(chain.snapshot().providers()[0].state(), State::Isolated);
    /// chain.restore("cometapi")?;
    /// assert_eq!(chain.snapshot().providers()[0].state(), State::Closed);
    /// # Ok::<(), reqwest_failover::ConfigError>(())
    /// ```
    ///
    /// # Errors
    /// If there is no such provider; the error lists those that there are.
    pub fn isolate(&self, name: &str) -> Result<(), ConfigError> {
        self.inner.isolate(self.inner.known(name, "isolate")?, true);
        Ok(())
    }

    /// Undoes [`isolate`](Self::isolate): the provider stands as its health has it.
    ///
    /// # Errors
    /// If there is no such provider; the error lists those that there are.
    pub fn restore(&self, name: &str) -> Result<(), ConfigError> {
        self.inner.isolate(self.inner.known(name, "restore")?, false);
        Ok(())
    }
}

// What `#[async_trait]` would write, but for the box: see `drive`.
impl Middleware for ProviderChain {
    fn handle<'chain, 'extensions, 'next, 'answer>(
        &'chain self,
        request: Request,
        extensions: &'extensions mut Extensions,
        next: Next<'next>,
    ) -> drive::Answer<'answer>
    where
        'chain: 'answer,
        'extensions: 'answer,
        'next: 'answer,
        Self: 'answer,
    {
        let Inner { addresses, scope, entries, .. } = &*self.inner;
        match addresses.find(request.url(), scope, entries.len()) {
            Some(address) => drive::drive(&self.inner, address, request, extensions, next),
            None => Box::pin(async move {
                let host = request.url().host_str().unwrap_or_default();
                self.inner.observer.emit(&Event::PassedThrough { host });
                next.run(request, extensions).await
            }),
        }
    }
}

impl fmt::Debug for ProviderChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProviderChain")
            .field("providers", &self.inner.entries)
            .finish_non_exhaustive()
    }
}

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
    classify: Option<Classify>,
    route: Option<RouteFor>,
    attempt_timeout: Option<Duration>,
    total_timeout: Duration,
    max_attempts: Option<usize>,
    ambiguous: Ambiguous,
    breaker: Option<Breaker>,
    replay_buffer: u64,
    hedge: Option<Hedge>,
    inspect: Option<Inspect>,
    exhausted: Exhausted,
    observe: Option<Closure>,
    rate_limits: RateLimits,
    log_messages: bool,
}

impl ProviderChainBuilder {
    /// Also claims requests below this base URL, which is no provider's own.
    pub fn claim(mut self, base_url: impl Into<String>) -> Self {
        self.claims.push(base_url.into());
        self
    }

    /// Judges outcomes in place of [`Verdict::standard`]. Sees every outcome but a response whose
    /// URL is not the one that was asked, which always fails over. If it accepts an outcome without
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

    /// How long any provider may take to its response's headers, unless it has a limit of its own.
    /// Default 120 s, which does not bind the last provider that may be asked; an explicit limit
    /// always binds. Longer than zero, and at most the total timeout.
    pub fn attempt_timeout(mut self, limit: Duration) -> Self {
        self.attempt_timeout = Some(limit);
        self
    }

    /// How long a request may take to its response's headers, all attempts together. Default 600 s.
    /// Longer than zero. Bodies stream on for as long as they like.
    pub fn total_timeout(mut self, limit: Duration) -> Self {
        self.total_timeout = limit;
        self
    }

    /// The most providers that are asked for one request. Default all; at least 1.
    pub fn max_attempts(mut self, attempts: usize) -> Self {
        self.max_attempts = Some(attempts);
        self
    }

    /// What to do when a provider may have processed a request without answering. Default
    /// [`Ambiguous::FailOver`].
    pub fn on_ambiguous(mut self, ambiguous: Ambiguous) -> Self {
        self.ambiguous = ambiguous;
        self
    }

    /// When a provider's circuit breaker opens, and for how long. Default [`Breaker::default`].
    pub fn breaker(mut self, breaker: Breaker) -> Self {
        self.breaker = Some(breaker);
        self
    }

    /// Keeps no health: no breaker opens, no provider cools down, and every request asks the first
    /// provider first.
    pub fn without_health(mut self) -> Self {
        self.breaker = None;
        self
    }

    /// Asks the next provider beside one that is silent for long. Off by default, since **a request
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

    /// What the caller gets when no provider served. Default [`Exhausted::LastOutcome`].
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
        self.observe = Some(Box::new(observer));
        self
    }

    /// When the switch rate counts as high, and when as normal again: the shares of the last 5
    /// minutes' requests that the first provider did not serve, above and below which
    /// [`Event::SwitchRateHigh`] and [`Event::SwitchRateNormal`] are sent. Default 0.10 and 0.05.
    pub fn switch_rate_limits(mut self, high: f64, normal: f64) -> Self {
        self.rate_limits = RateLimits { high, normal };
        self
    }

    /// Whether log lines hold the messages of failed attempts. Default `true`. Reports hold them
    /// either way.
    pub fn log_messages(mut self, log: bool) -> Self {
        self.log_messages = log;
        self
    }

    /// Checks everything and builds the chain.
    ///
    /// # Errors
    /// If there is no provider, two have the same name, one of them is misconfigured (see
    /// [`Provider`]), or a setting is out of its range. The error names the provider and the field.
    pub fn build(self) -> Result<ProviderChain, ConfigError> {
        let Checked { entries, scope, strip } = check(self.providers, self.claims)?;
        let wrong = |field, problem: &str| Err(ConfigError::new(None, field, problem));
        if self.max_attempts == Some(0) {
            return wrong("max_attempts", "must be at least 1");
        }
        if self.total_timeout.is_zero() {
            return wrong("total_timeout", "must be longer than zero");
        }
        if self.attempt_timeout.is_some_and(|limit| limit.is_zero()) {
            return wrong("attempt_timeout", "must be longer than zero");
        }
        if let Some(problem) = self.breaker.as_ref().and_then(Breaker::problem) {
            return wrong("breaker", problem);
        }
        if let Some(problem) = self.rate_limits.problem() {
            return wrong("switch_rate_limits", problem);
        }
        const TOO_LONG: &str = "must not be longer than the total timeout";
        if self.attempt_timeout.is_some_and(|limit| limit > self.total_timeout) {
            return wrong("attempt_timeout", TOO_LONG);
        }
        let too_long =
            |entry: &&Entry| entry.attempt_timeout.is_some_and(|limit| limit > self.total_timeout);
        if let Some(entry) = entries.iter().find(too_long) {
            return Err(ConfigError::new(Some(&entry.name), "attempt_timeout", TOO_LONG));
        }
        let limit = self.attempt_timeout.unwrap_or(Limits::DEFAULT_ATTEMPT).min(self.total_timeout);
        if let Some(problem) = self.hedge.as_ref().and_then(|hedge| hedge.problem(limit)) {
            return wrong("hedge", problem);
        }
        let limits = Limits {
            max_attempts: self.max_attempts.unwrap_or(usize::MAX),
            ambiguous: self.ambiguous,
            hold: self.inspect.as_ref().map_or(Duration::ZERO, Inspect::longest_hold),
            total: self.total_timeout,
            attempts: entries
                .iter()
                .map(|entry| entry.attempt_timeout.or(self.attempt_timeout))
                .collect(),
        };
        let now = now();
        let mut board = HealthTable::new(entries.len(), self.breaker, now, fastrand::u64(..));
        board.hedging = self.hedge.as_ref().map(|hedge| Hedging::new(hedge, entries.len()));
        let shared = Shared {
            board,
            switch_rate: SwitchRate::new(self.rate_limits, now),
            order: (0..entries.len()).collect(),
            request_counts: RequestCounts::default(),
        };
        let names = entries.iter().map(|entry| entry.name.clone());
        let observer = Observer::new(self.observe, self.log_messages, names);
        for (at, entry) in entries.iter().enumerate() {
            observer.set_state_gauge(at, State::Closed);
            if entry.base.is_loopback() {
                continue;
            }
            let host = entry.base.host_str();
            if let Some(twin) = entries[..at].iter().find(|other| other.base.host_str() == host) {
                observer.warn_of_shared_host(&twin.name, &entry.name, host);
            }
        }
        let inspects = self.inspect.is_some();
        let is_plain =
            !inspects && self.hedge.is_none() && entries.iter().all(|entry| entry.source.is_none());
        let inner = Inner {
            is_plain,
            secrets: entries.iter().flat_map(|entry| entry.secrets.iter().cloned()).collect(),
            tokens: Mutex::new(vec![None; entries.len()]),
            shared: Mutex::new(shared),
            entries,
            scope,
            strip,
            addresses: Addresses::new(),
            limits,
            classify: self.classify,
            route: self.route,
            replay_buffer: self.replay_buffer,
            inspect: self.inspect,
            exhausted: self.exhausted,
            observer,
        };
        Ok(ProviderChain { inner: Arc::new(inner) })
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

type Classify = Box<dyn Fn(&Outcome<'_>) -> Verdict + Send + Sync>;
type RouteFor = Box<dyn Fn(&Request) -> Option<Route> + Send + Sync>;

struct Inner {
    entries: Vec<Entry>,
    scope: Scope,
    strip: StripList,
    addresses: Addresses,
    limits: Limits,
    classify: Option<Classify>,
    route: Option<RouteFor>,
    replay_buffer: u64,
    inspect: Option<Inspect>,
    exhausted: Exhausted,
    /// Whether an attempt has nothing to wait for but its answer.
    is_plain: bool,
    observer: Observer,
    shared: Mutex<Shared>,
    /// Every provider's keys.
    secrets: Vec<String>,
    /// Each provider's current token, if it has a source of them: to be looked for in messages.
    tokens: Mutex<Vec<Option<String>>>,
}

/// What requests have in common while they run.
struct Shared {
    board: HealthTable,
    order: Arc<[usize]>,
    request_counts: RequestCounts,
    switch_rate: SwitchRate,
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_tokens(&self) -> MutexGuard<'_, Vec<Option<String>>> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn isolate(&self, provider: usize, isolated: bool) {
        let mut shared = self.lock();
        shared.board.isolate(provider, isolated);
        let state = shared.board.state(provider, now());
        drop(shared);
        self.observer.set_state_gauge(provider, state);
    }

    /// Takes in how a stream that had begun well has ended.
    fn end_stream(&self, ticket: Permit, end: StreamEnd) {
        let provider = ticket.provider;
        let now = now();
        let mut shared = self.lock();
        let changes = match end {
            StreamEnd::Complete => shared.board.record_outcome(ticket, HealthSignal::Success, now),
            StreamEnd::Broken => shared.board.record_outcome(ticket, HealthSignal::Failure, now),
            StreamEnd::Dropped | StreamEnd::Silent { .. } => {
                shared.board.cancel(&ticket);
                Changes::default()
            }
        };
        let state = shared.board.state(provider, now);
        drop(shared);
        self.observer.set_state_gauge(provider, state);
        if end == StreamEnd::Broken {
            self.observer.emit(&Event::StreamBroken { provider: &self.entries[provider].name });
        }
        self.tell_changes(provider, changes);
    }

    fn tell_changes(&self, provider: usize, changes: Changes) {
        let provider = &self.entries[provider].name;
        for change in changes.into_iter().flatten() {
            self.observer.emit(&match change {
                Change::Opened { until, breaks } => {
                    Event::BreakerOpened { provider, until, breaks }
                }
                Change::Closed => Event::BreakerClosed { provider },
                Change::CoolingDown { until } => Event::CoolingDown { provider, until },
            });
        }
    }

    fn find(&self, name: &str) -> Option<usize> {
        self.entries.iter().position(|entry| *entry.name == *name)
    }

    fn known(&self, name: &str, field: &'static str) -> Result<usize, ConfigError> {
        let unknown = || format!("is not in the chain, which has: {}", self.names());
        self.find(name).ok_or_else(|| ConfigError::new(Some(name), field, unknown()))
    }

    fn names(&self) -> String {
        self.entries.iter().map(|entry| &*entry.name).collect::<Vec<_>>().join(", ")
    }

    /// Every secret that the chain knows, and these.
    fn secrets(&self, more: &[String]) -> Cow<'_, [String]> {
        let tokens = self.lock_tokens();
        let mut more = tokens.iter().flatten().chain(more).peekable();
        if more.peek().is_none() {
            return Cow::Borrowed(&self.secrets);
        }
        more.chain(&self.secrets).cloned().collect()
    }
}

/// The driver's clock: tokio's, so that tests can pause it.
#[expect(clippy::disallowed_methods, reason = "the driver is where time comes from")]
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
