//! What happens in a chain, as its observers see it.

use std::time::{Duration, Instant};

use http::Extensions;

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
        origin: EventOrigin<'a>,
        /// The provider's name.
        provider: &'a str,
        /// 1 for a request's first attempt.
        number: usize,
    },
    /// An attempt has its outcome.
    #[non_exhaustive]
    AttemptFinished {
        /// The request that it is about.
        origin: EventOrigin<'a>,
        /// The attempt, as the report will hold it.
        attempt: &'a Attempt,
    },
    /// A request goes on to another provider after a failure. Not where the other one is being asked
    /// already: that is [`HedgeSent`](Self::HedgeSent).
    #[non_exhaustive]
    FailedOver {
        /// The request that it is about.
        origin: EventOrigin<'a>,
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
        origin: EventOrigin<'a>,
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
        origin: EventOrigin<'a>,
        /// What was tried.
        report: &'a Report,
    },
    /// No provider served a request, because each one that was asked refused the request itself, such
    /// as with a 400 or a 404. That says nothing about the providers' health.
    #[non_exhaustive]
    Rejected {
        /// The request that it is about.
        origin: EventOrigin<'a>,
        /// What was tried.
        report: &'a Report,
    },
    /// A provider's circuit breaker opened, or opened again after a failed probe.
    #[non_exhaustive]
    BreakerOpened {
        /// The request that it is about.
        origin: EventOrigin<'a>,
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
        /// Whether what other processes report has opened it, for chains that share their health.
        heard: bool,
    },
    /// A provider's circuit breaker closed: its probe was answered, be it with a 404.
    #[non_exhaustive]
    BreakerClosed {
        /// The request that it is about.
        origin: EventOrigin<'a>,
        /// The provider's name.
        provider: &'a str,
        /// As in [`BreakerOpened`](Self::BreakerOpened).
        key: Option<&'a str>,
    },
    /// A break or a cooldown is over and a request is sent to see whether the provider is back.
    #[non_exhaustive]
    BreakerProbing {
        /// The request that it is about.
        origin: EventOrigin<'a>,
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
        origin: EventOrigin<'a>,
        /// The provider's name.
        provider: &'a str,
        /// As in [`BreakerOpened`](Self::BreakerOpened).
        key: Option<&'a str>,
        /// The end of the cooldown.
        until: Instant,
        /// Whether another process was asked for it, for chains that share their health.
        heard: bool,
    },
    /// A provider was passed over because it has as many requests in flight as it may have
    /// ([`max_in_flight`](crate::Provider::max_in_flight)). It is emitted once, and again only after the
    /// provider was passed over for no request in a minute.
    #[non_exhaustive]
    AtCapacity {
        /// The request that it is about.
        origin: EventOrigin<'a>,
        /// The provider's name.
        provider: &'a str,
    },
    /// A request was passed through untouched: its URL is below no base of the chain. Not emitted for
    /// attempts of another chain.
    #[non_exhaustive]
    PassedThrough {
        /// The request that it is about.
        origin: EventOrigin<'a>,
        /// The host that the request goes to.
        host: &'a str,
    },
    /// A stream whose content had begun broke off, ended without its terminal marker, or was silent for
    /// too long. It is not replayed. Only chains that [`inspect`](crate::ProviderChainBuilder::inspect) see it.
    #[non_exhaustive]
    StreamBroken {
        /// The request that it is about.
        origin: EventOrigin<'a>,
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
        origin: EventOrigin<'a>,
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
        origin: EventOrigin<'a>,
        /// The first provider in order.
        provider: &'a str,
        /// The share of the last 5 minutes' requests that it did not serve.
        ratio: f64,
    },
    /// A chain that shares its health has read the store, and written what it had to say, for the first time
    /// or after [`FleetLost`](Self::FleetLost).
    FleetJoined,
    /// The store of shared health has failed or took too long. It is emitted once, until the chain has
    /// joined again; until then each process goes on by itself.
    #[non_exhaustive]
    FleetLost {
        /// What failed, made safe as in [`Attempt::message`].
        error: &'a str,
    },
    /// An operator has isolated or restored a provider or set the order, in a chain that shares its health.
    #[non_exhaustive]
    Steered {
        /// The provider that was isolated or restored; `None` where the order was set.
        provider: Option<&'a str>,
        /// Whether it was done in another process.
        heard: bool,
    },
    /// A claimed request is over, also when its caller dropped it.
    #[non_exhaustive]
    Finished {
        /// The request that it is about.
        origin: EventOrigin<'a>,
        /// What was tried.
        report: &'a Report,
        /// From the first attempt's start to the start of the one that served; `None` if none did.
        added_latency: Option<Duration>,
        /// As in [`Snapshot::fallback_ratio`](crate::Snapshot::fallback_ratio).
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

    fn origin(&self) -> Option<EventOrigin<'a>> {
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
            Self::CallbackPanicked { .. }
            | Self::FleetJoined
            | Self::FleetLost { .. }
            | Self::Steered { .. } => None,
        }
    }
}

/// The request that an event is about, for [`Event::request_id`] and [`Event::extensions`].
#[derive(Clone, Copy, Debug)]
pub struct EventOrigin<'a> {
    pub(crate) id: Option<u64>,
    pub(crate) extensions: Option<&'a Extensions>,
}
