//! One stream of events and everyone who reads it: `tracing`, `metrics`, the snapshot and the user's
//! closure.
//!
//! This is the only file that knows which readers are compiled in.

#[cfg(feature = "tracing")]
mod log;
#[cfg(feature = "metrics")]
mod meter;
pub(crate) mod rate;
#[cfg(feature = "serde")]
mod serialize;
mod state;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http::{Extensions, Method};
use reqwest::Url;

use crate::health::{Counts, State};
use crate::report::{Attempt, Report};
use crate::verdict::Reason;

/// Something that happened in a chain, for [`observe`](crate::ProviderChainBuilder::observe).
///
/// No event holds a key or a URL. More events and fields may be added: match with `..` and `_`.
///
/// ```
/// use reqwest_failover::{Event, Provider, ProviderChain};
///
/// let chain = ProviderChain::builder([Provider::cometapi("key-a"), Provider::openai("key-b")])
///     .observe(|event| match event {
///         Event::FailedOver { from, to, .. } => eprintln!("{from} → {to}"),
///         Event::BreakerOpened { provider, .. } => eprintln!("{provider} is down"),
///         _ => {}
///     })
///     .build()?;
/// # Ok::<(), reqwest_failover::ConfigError>(())
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A provider is being asked.
    #[non_exhaustive]
    AttemptStarted {
        /// The request that it is about.
        origin: Origin<'a>,
        /// The provider's name.
        provider: &'a str,
        /// 1 for a request's first attempt.
        number: usize,
    },
    /// An attempt has its outcome.
    #[non_exhaustive]
    AttemptFinished {
        /// The request that it is about.
        origin: Origin<'a>,
        /// The attempt, as the report will hold it.
        attempt: &'a Attempt,
    },
    /// A request goes on to another provider after a failure. Not where the other one is being asked
    /// already: that is [`HedgeSent`](Self::HedgeSent).
    #[non_exhaustive]
    FailedOver {
        /// The request that it is about.
        origin: Origin<'a>,
        /// The attempt that failed.
        from: &'a Attempt,
        /// The provider that is asked next.
        to: &'a str,
    },
    /// A provider has been silent for so long that the next one is asked as well. Only chains that
    /// [`hedge`](crate::ProviderChainBuilder::hedge) see it.
    #[non_exhaustive]
    HedgeSent {
        /// The request that it is about.
        origin: Origin<'a>,
        /// The provider that is silent.
        from: &'a str,
        /// The provider that is asked as well.
        to: &'a str,
        /// For how long it had been silent.
        waited: Duration,
    },
    /// No provider served a request: one that was asked failed, or none could be asked. Where each one
    /// refused the request, that is [`Rejected`](Self::Rejected).
    #[non_exhaustive]
    Exhausted {
        /// The request that it is about.
        origin: Origin<'a>,
        /// What was tried.
        report: &'a Report,
    },
    /// No provider served a request, because each one that was asked refused the request itself, such
    /// as with a 400 or a 404. That says nothing about the providers' health.
    #[non_exhaustive]
    Rejected {
        /// The request that it is about.
        origin: Origin<'a>,
        /// What was tried.
        report: &'a Report,
    },
    /// A provider's circuit breaker opened, or opened again after a failed probe.
    #[non_exhaustive]
    BreakerOpened {
        /// The request that it is about.
        origin: Origin<'a>,
        /// The provider's name.
        provider: &'a str,
        /// The health key whose breaker it is; `None` where it is the provider's own. Control characters
        /// are escaped.
        key: Option<&'a str>,
        /// The end of the break.
        until: Instant,
        /// The number of breaks that count toward its length.
        breaks: u32,
        /// Why it opened: `"consecutive"` failures, a `"ratio"` of failures, `"silence"` that callers gave
        /// up on, or a `"probe"` that failed.
        cause: &'static str,
    },
    /// A provider's circuit breaker closed: its probe was answered, be it with a 404.
    #[non_exhaustive]
    BreakerClosed {
        /// The request that it is about.
        origin: Origin<'a>,
        /// The provider's name.
        provider: &'a str,
        /// As in [`BreakerOpened`](Self::BreakerOpened).
        key: Option<&'a str>,
    },
    /// A break or a cooldown is over and a request is sent to see whether the provider is back.
    #[non_exhaustive]
    BreakerProbing {
        /// The request that it is about.
        origin: Origin<'a>,
        /// The provider's name.
        provider: &'a str,
        /// As in [`BreakerOpened`](Self::BreakerOpened).
        key: Option<&'a str>,
    },
    /// A provider is at a limit, asked for a pause, or does not have the model that is its health key, and
    /// is passed over for a while.
    #[non_exhaustive]
    CoolingDown {
        /// The request that it is about.
        origin: Origin<'a>,
        /// The provider's name.
        provider: &'a str,
        /// As in [`BreakerOpened`](Self::BreakerOpened).
        key: Option<&'a str>,
        /// The end of the cooldown.
        until: Instant,
    },
    /// A provider was passed over because it has as many requests in flight as it may have
    /// ([`max_in_flight`](crate::Provider::max_in_flight)). It is emitted once, and again only after the
    /// provider was passed over for no request in a minute.
    #[non_exhaustive]
    AtCapacity {
        /// The request that it is about.
        origin: Origin<'a>,
        /// The provider's name.
        provider: &'a str,
    },
    /// A request was passed through untouched: its URL is below no base of the chain. Not emitted for
    /// attempts of another chain.
    #[non_exhaustive]
    PassedThrough {
        /// The request that it is about.
        origin: Origin<'a>,
        /// The host that the request goes to.
        host: &'a str,
    },
    /// A stream whose content had begun broke off, ended without its terminal marker, or was silent for
    /// too long. It is not replayed. Only chains that [`inspect`](crate::ProviderChainBuilder::inspect) see it.
    #[non_exhaustive]
    StreamBroken {
        /// The request that it is about.
        origin: Origin<'a>,
        /// The provider's name.
        provider: &'a str,
        /// `Reset` if it broke off or ended too soon, `Timeout` if it was silent for too long,
        /// `ErrorInSuccess` if it holds an error.
        reason: Reason,
        /// What the provider or the transport said went wrong, made safe as in
        /// [`Attempt::message`].
        message: Option<&'a str>,
    },
    /// One of the user's closures panicked and was treated as having no opinion.
    #[non_exhaustive]
    CallbackPanicked {
        /// `"classify"`, `"route"`, `"health_by"`, `"map_request"`, `"rename_model_with"`,
        /// `"bearer_auth_with"`, `"api_key_header_with"`, `"api_key_query_with"`, `"inspect"` or
        /// `"observe"`; `"display"` for an error that cannot be shown.
        callback: &'static str,
    },
    /// Many requests are not served by the first provider, which may mean trouble there.
    #[non_exhaustive]
    FallbackRateHigh {
        /// The request that it is about.
        origin: Origin<'a>,
        /// The first provider in order.
        provider: &'a str,
        /// The share of the last 5 minutes' requests that it did not serve.
        ratio: f64,
        /// Why its attempts failed most often; `None` if it was not even asked.
        reason: Option<Reason>,
    },
    /// The first provider serves nearly all requests again.
    #[non_exhaustive]
    FallbackRateNormal {
        /// The request that it is about.
        origin: Origin<'a>,
        /// The first provider in order.
        provider: &'a str,
        /// The share of the last 5 minutes' requests that it did not serve.
        ratio: f64,
    },
    /// A claimed request is over, also when its caller dropped it.
    #[non_exhaustive]
    Finished {
        /// The request that it is about.
        origin: Origin<'a>,
        /// What was tried.
        report: &'a Report,
        /// From the first attempt's start to the start of the one that served; `None` if none did.
        added_latency: Option<Duration>,
        /// As in [`Snapshot::fallback_ratio`].
        fallback_ratio: Option<f64>,
    },
}

impl<'a> Event<'a> {
    /// The id of the request that the event is about: [`Report::id`]. `None` where it is about none, or
    /// about one that the chain does not claim.
    ///
    /// ```
    /// # use reqwest_failover::{Event, Provider, ProviderChain};
    /// # let _ = ProviderChain::builder([Provider::openai("key")]).observe(|event: &Event| {
    /// if let Event::FailedOver { from, to, .. } = event {
    ///     eprintln!("request {:?}: {from} → {to}", event.request_id());
    /// }
    /// # });
    /// ```
    pub fn request_id(&self) -> Option<u64> {
        self.origin()?.id
    }

    /// The caller's `Extensions` of that request, with what `with_extension(..)` put in: a tenant, a trace.
    /// `None` where there is no request, or where it is over: a stream that breaks has an id only.
    ///
    /// ```
    /// # use reqwest_failover::{Event, Provider, ProviderChain};
    /// #[derive(Clone)]
    /// struct Tenant(String);
    ///
    /// # let _ = ProviderChain::builder([Provider::openai("key")]).observe(|event: &Event| {
    /// let tenant = event.extensions().and_then(|extensions| extensions.get::<Tenant>());
    /// # });
    /// ```
    pub fn extensions(&self) -> Option<&'a Extensions> {
        self.origin()?.extensions
    }

    fn origin(&self) -> Option<Origin<'a>> {
        match *self {
            Self::AttemptStarted { origin, .. }
            | Self::AttemptFinished { origin, .. }
            | Self::FailedOver { origin, .. }
            | Self::HedgeSent { origin, .. }
            | Self::Exhausted { origin, .. }
            | Self::Rejected { origin, .. }
            | Self::BreakerOpened { origin, .. }
            | Self::BreakerClosed { origin, .. }
            | Self::BreakerProbing { origin, .. }
            | Self::CoolingDown { origin, .. }
            | Self::AtCapacity { origin, .. }
            | Self::PassedThrough { origin, .. }
            | Self::StreamBroken { origin, .. }
            | Self::FallbackRateHigh { origin, .. }
            | Self::FallbackRateNormal { origin, .. }
            | Self::Finished { origin, .. } => Some(origin),
            Self::CallbackPanicked { .. } => None,
        }
    }
}

/// The request that an event is about, for [`Event::request_id`] and [`Event::extensions`].
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    pub(crate) id: Option<u64>,
    pub(crate) extensions: Option<&'a Extensions>,
}

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

    /// How often one of the user's closures panicked.
    pub fn callback_panics(&self) -> u64 {
        self.callback_panics
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

/// The counts of a chain's requests.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RequestCounts {
    requests: u64,
    by_fallback: u64,
    rejected: u64,
    exhausted: u64,
}

impl RequestCounts {
    #[inline]
    pub(crate) fn count(&mut self, ending: Ending, by_another: bool) {
        self.requests += 1;
        self.by_fallback += u64::from(by_another);
        self.rejected += u64::from(ending == Ending::Rejected);
        self.exhausted += u64::from(ending == Ending::Exhausted);
    }
}

/// How a request ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    Served,
    /// Every provider that was asked refused the request itself.
    Rejected,
    Exhausted,
    /// Abandoned by its caller, refused by this layer, or its own body failed: this says nothing
    /// about the providers.
    NoNews,
}

/// The user's closure.
pub(crate) type Closure = Box<dyn Fn(&Event<'_>) + Send + Sync>;

/// Hands every event to every reader.
pub(crate) struct Observer {
    closures: Arc<[Closure]>,
    #[cfg(feature = "tracing")]
    log_messages: bool,
    #[cfg(feature = "metrics")]
    meter: meter::Meter,
    counts: Arc<ObserverCounts>,
}

/// What only the observer counts.
#[derive(Default)]
struct ObserverCounts {
    passed_through: AtomicU64,
    callback_panics: AtomicU64,
}

#[cfg_attr(
    not(all(feature = "tracing", feature = "metrics")),
    allow(unused_variables, reason = "only log lines and metrics use them")
)]
impl Observer {
    /// Whether [`set_state_gauge`](Self::set_state_gauge) does anything.
    pub(crate) const SHOWS_STATE: bool = cfg!(feature = "metrics");

    pub(crate) fn new(
        closures: Vec<Closure>,
        log_messages: bool,
        names: impl Iterator<Item = (usize, Arc<str>)>,
    ) -> Self {
        Self {
            closures: closures.into(),
            #[cfg(feature = "tracing")]
            log_messages,
            #[cfg(feature = "metrics")]
            meter: meter::Meter::new(names),
            counts: Arc::default(),
        }
    }

    /// The same for another list of providers: each with its id and name.
    pub(crate) fn with_providers(&self, names: impl Iterator<Item = (usize, Arc<str>)>) -> Self {
        Self {
            closures: self.closures.clone(),
            #[cfg(feature = "tracing")]
            log_messages: self.log_messages,
            #[cfg(feature = "metrics")]
            meter: self.meter.with_providers(names),
            counts: self.counts.clone(),
        }
    }

    /// Whether any reader wants every step of this request. Metrics do not: they count what
    /// went well when the request is over.
    pub(crate) fn is_watched(&self, request: &Trace) -> bool {
        request.is_heard() || !self.closures.is_empty()
    }

    /// Counts a request that is over and that is not watched.
    #[inline]
    pub(crate) fn count_finished(
        &self,
        report: &Report,
        added_latency: Option<Duration>,
        fallback_ratio: Option<f64>,
    ) {
        #[cfg(feature = "metrics")]
        self.meter.finished(report, added_latency, fallback_ratio);
    }

    /// Calls one of the user's closures. `None` if it panicked, which is counted and logged.
    pub(crate) fn catch_panic<T>(
        &self,
        callback: &'static str,
        call: impl FnOnce() -> T,
    ) -> Option<T> {
        let result = catch_panic(call);
        if result.is_none() {
            self.emit(&Event::CallbackPanicked { callback });
        }
        result
    }

    /// Shows the state that a provider is in now.
    pub(crate) fn set_state_gauge(&self, provider: usize, state: State) {
        #[cfg(feature = "metrics")]
        self.meter.set_state_gauge(provider, state);
    }

    /// Warns of a provider that has answered nothing but 404.
    pub(crate) fn warn_of_base_url(&self, provider: &str) {
        #[cfg(feature = "tracing")]
        log::log_only_not_found(provider);
    }

    /// Warns of two providers whose outages will coincide.
    pub(crate) fn warn_of_shared_host(&self, first: &str, second: &str, host: &str) {
        #[cfg(feature = "tracing")]
        log::log_shared_host(first, second, host);
    }

    /// Warns of an origin whose requests are passed through, though one of the bases was perhaps meant.
    pub(crate) fn warn_of_passed_through(
        &self,
        origin: &str,
        nearest: &dyn fmt::Debug,
        differs: &dyn fmt::Display,
    ) {
        #[cfg(feature = "tracing")]
        log::log_passed_through(origin, nearest, differs);
    }

    pub(crate) fn passed_through(&self) -> u64 {
        self.counts.passed_through.load(Ordering::Relaxed)
    }

    pub(crate) fn callback_panics(&self) -> u64 {
        self.counts.callback_panics.load(Ordering::Relaxed)
    }

    /// Hands an event to every reader.
    #[inline(never)]
    pub(crate) fn emit(&self, event: &Event<'_>) {
        self.read(event);
        for closure in self.closures.iter() {
            if catch_panic(|| closure(event)).is_none() {
                self.read(&Event::CallbackPanicked { callback: "observe" });
            }
        }
    }

    /// What happens to every request is read here, apart from the rest of the events, so that it costs little.
    fn read(&self, event: &Event<'_>) {
        let is_rare = match event {
            Event::AttemptStarted { .. } => false,
            Event::AttemptFinished { attempt, .. } => attempt.reason() != Reason::Ok,
            Event::Finished { report, added_latency, fallback_ratio, .. } => {
                #[cfg(feature = "metrics")]
                self.meter.finished(report, *added_latency, *fallback_ratio);
                false
            }
            _ => true,
        };
        if is_rare {
            self.read_rare(event);
        } else {
            #[cfg(feature = "tracing")]
            if log::is_heard() {
                log::log(event, self.log_messages);
            }
        }
    }

    #[cold]
    fn read_rare(&self, event: &Event<'_>) {
        let count = |counter: &AtomicU64| counter.fetch_add(1, Ordering::Relaxed);
        match event {
            Event::PassedThrough { .. } => _ = count(&self.counts.passed_through),
            Event::CallbackPanicked { .. } => _ = count(&self.counts.callback_panics),
            _ => {}
        }
        #[cfg(feature = "tracing")]
        log::log(event, self.log_messages);
        #[cfg(feature = "metrics")]
        self.meter.read(event);
    }
}

/// Calls what may panic. `None` if it did; the payload is not dropped, since that may panic too.
pub(crate) fn catch_panic<T>(call: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(call)).map_err(std::mem::forget).ok()
}

/// The span of a request or of an attempt. It is nothing without `tracing`, or without a subscriber:
/// then it costs next to nothing either.
pub(crate) struct Trace {
    #[cfg(feature = "tracing")]
    span: Option<Box<tracing::Span>>,
}

#[cfg_attr(not(feature = "tracing"), expect(unused_variables, reason = "only spans use them"))]
impl Trace {
    pub(crate) fn request(method: Option<&Method>) -> Self {
        Self {
            #[cfg(feature = "tracing")]
            span: log::is_heard().then(|| Box::new(log::request_span(method))),
        }
    }

    /// Whether there is a span, and so a subscriber.
    #[inline]
    fn is_heard(&self) -> bool {
        #[cfg(feature = "tracing")]
        return self.span.is_some();
        #[cfg(not(feature = "tracing"))]
        false
    }

    /// The span of an attempt of this request, after so many others.
    pub(crate) fn attempt(&self, provider: &str, base: &Url, resends: usize) -> Self {
        Self {
            #[cfg(feature = "tracing")]
            span: self
                .span
                .as_ref()
                .map(|request| Box::new(log::attempt_span(request, provider, base, resends))),
        }
    }

    #[inline]
    pub(crate) fn within<T>(&self, call: impl FnOnce() -> T) -> T {
        #[cfg(feature = "tracing")]
        if let Some(span) = &self.span {
            return span.in_scope(call);
        }
        call()
    }

    pub(crate) fn record_id(&self, id: u64) {
        #[cfg(feature = "tracing")]
        if let Some(span) = &self.span {
            span.record("failover.request_id", id);
        }
    }

    pub(crate) fn record_outcome(&self, attempt: &Attempt) {
        #[cfg(feature = "tracing")]
        if let Some(span) = &self.span {
            log::record_outcome(span, attempt);
        }
    }

    pub(crate) fn record_end(&self, report: &Report) {
        #[cfg(feature = "tracing")]
        if let Some(span) = &self.span {
            log::record_end(span, report);
        }
    }
}
