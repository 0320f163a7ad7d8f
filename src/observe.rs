//! One stream of events and everyone who reads it: `tracing`, the snapshot and the user's closure.
//!
//! This is the only file that knows which readers are compiled in.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::health::{Counts, State};
use crate::report::{Attempt, Report};

/// Something that happened in a chain, for [`observe`](crate::ProviderChainBuilder::observe).
///
/// No event holds a key or a URL. More events and fields may be added: match with `..` and `_`.
///
/// ```
/// use reqwest_failover::{Event, Provider, ProviderChain};
///
/// let chain = ProviderChain::of([Provider::cometapi("key-a"), Provider::openai("key-b")])
///     .observe(|event| match event {
///         Event::Switched { from, to, .. } => eprintln!("{from} → {to}"),
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
        /// The provider's name.
        provider: &'a str,
        /// 1 for a request's first attempt.
        number: usize,
    },
    /// An attempt has its outcome.
    #[non_exhaustive]
    AttemptFinished {
        /// The attempt, as the report will hold it.
        attempt: &'a Attempt,
    },
    /// A request goes on to another provider.
    #[non_exhaustive]
    Switched {
        /// The attempt that failed.
        from: &'a Attempt,
        /// The provider that is asked next.
        to: &'a str,
    },
    /// No provider served a request.
    #[non_exhaustive]
    Exhausted {
        /// What was tried.
        report: &'a Report,
    },
    /// A provider's circuit breaker opened, or opened again after a failed probe.
    #[non_exhaustive]
    BreakerOpened {
        /// The provider's name.
        provider: &'a str,
        /// The end of the break.
        until: Instant,
        /// The number of breaks that count toward its length.
        breaks: u32,
    },
    /// A provider's circuit breaker closed.
    #[non_exhaustive]
    BreakerClosed {
        /// The provider's name.
        provider: &'a str,
    },
    /// A break is over and a request is sent to see whether the provider is back.
    #[non_exhaustive]
    BreakerProbing {
        /// The provider's name.
        provider: &'a str,
    },
    /// A provider is left alone for a while because it said so.
    #[non_exhaustive]
    CoolingDown {
        /// The provider's name.
        provider: &'a str,
        /// The end of the cooldown.
        until: Instant,
    },
    /// A request was passed through untouched: its URL is below no base of the chain.
    #[non_exhaustive]
    Unclaimed {
        /// The host that the request goes to.
        host: &'a str,
    },
    /// One of the user's closures panicked and was treated as having no opinion.
    #[non_exhaustive]
    CallbackPanicked {
        /// `"classify"`, `"route"`, `"prepare"`, `"bearer_from"` or `"observe"`.
        callback: &'static str,
    },
    /// A claimed request is over, also when its caller dropped it.
    #[non_exhaustive]
    Finished {
        /// What was tried.
        report: &'a Report,
    },
}

/// A chain's health and counts at one moment.
///
/// ```
/// use reqwest_failover::{Provider, ProviderChain};
///
/// let chain = ProviderChain::of([Provider::cometapi("key-a"), Provider::openai("key-b")]).build()?;
/// let snapshot = chain.snapshot();
/// assert_eq!(snapshot.requests(), 0);
/// assert_eq!(snapshot.switched(), 0);
/// for provider in snapshot.providers() {
///     println!("{}: {:?}, {} attempts", provider.name(), provider.state(), provider.attempts());
/// }
/// # Ok::<(), reqwest_failover::ConfigError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub(crate) providers: Vec<ProviderSnapshot>,
    pub(crate) tally: Tally,
    pub(crate) unclaimed: u64,
    pub(crate) callback_panics: u64,
}

impl Snapshot {
    /// The providers in their current order.
    pub fn providers(&self) -> &[ProviderSnapshot] {
        &self.providers
    }

    /// Requests that were claimed and are over.
    pub fn requests(&self) -> u64 {
        self.tally.requests
    }

    /// Requests that were served by another provider than the first in order.
    pub fn switched(&self) -> u64 {
        self.tally.switched
    }

    /// Requests that no provider served.
    pub fn exhausted(&self) -> u64 {
        self.tally.exhausted
    }

    /// Requests that were passed through because their URL is below no base of the chain.
    pub fn unclaimed(&self) -> u64 {
        self.unclaimed
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

    /// Outcomes judged [`Fault::Failure`](crate::Fault::Failure).
    pub fn failures(&self) -> u64 {
        self.counts.failures
    }

    /// Attempts that are waiting for their outcome.
    pub fn in_flight(&self) -> u64 {
        self.counts.in_flight
    }
}

/// The counts of a chain's requests.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) requests: u64,
    pub(crate) switched: u64,
    pub(crate) exhausted: u64,
}

/// The user's closure.
pub(crate) type Closure = Box<dyn Fn(&Event<'_>) + Send + Sync>;

/// Hands every event to every reader.
pub(crate) struct Observer {
    pub(crate) closure: Option<Closure>,
    pub(crate) log_messages: bool,
    unclaimed: AtomicU64,
    callback_panics: AtomicU64,
}

impl Observer {
    pub(crate) fn new(closure: Option<Closure>, log_messages: bool) -> Self {
        Self {
            closure,
            log_messages,
            unclaimed: AtomicU64::new(0),
            callback_panics: AtomicU64::new(0),
        }
    }

    pub(crate) fn emit(&self, event: &Event<'_>) {
        match event {
            Event::Unclaimed { .. } => _ = self.unclaimed.fetch_add(1, Ordering::Relaxed),
            Event::CallbackPanicked { .. } => {
                self.callback_panics.fetch_add(1, Ordering::Relaxed);
            }
            _ => {}
        }
        #[cfg(feature = "tracing")]
        log(event, self.log_messages);
        let Some(closure) = &self.closure else { return };
        if catch_unwind(AssertUnwindSafe(|| closure(event))).is_err() {
            self.callback_panics.fetch_add(1, Ordering::Relaxed);
            #[cfg(feature = "tracing")]
            log(&Event::CallbackPanicked { callback: "observe" }, self.log_messages);
        }
    }

    /// Calls one of the user's closures. `None` if it panicked, which is counted and logged.
    pub(crate) fn guard<T>(&self, callback: &'static str, call: impl FnOnce() -> T) -> Option<T> {
        let result = catch_unwind(AssertUnwindSafe(call)).ok();
        if result.is_none() {
            self.emit(&Event::CallbackPanicked { callback });
        }
        result
    }

    pub(crate) fn unclaimed(&self) -> u64 {
        self.unclaimed.load(Ordering::Relaxed)
    }

    pub(crate) fn callback_panics(&self) -> u64 {
        self.callback_panics.load(Ordering::Relaxed)
    }
}

#[cfg(feature = "tracing")]
fn log(event: &Event<'_>, messages: bool) {
    use crate::verdict::Reason;
    use tracing::{debug, error, info, trace, warn};

    let shown = |attempt: &Attempt| attempt.message().filter(|_| messages).map(str::to_owned);
    let millis = |attempt: &Attempt| attempt.elapsed().as_millis() as u64;
    match event {
        Event::AttemptStarted { provider, number } => {
            trace!(gen_ai.provider.name = provider, attempt = number, "attempt started");
        }
        Event::AttemptFinished { attempt } if attempt.reason() == Reason::Auth => error!(
            gen_ai.provider.name = attempt.provider(),
            http.response.status_code = attempt.status().map(|status| status.as_u16()),
            error.type = attempt.reason().as_str(),
            elapsed_ms = millis(attempt),
            message_from_provider = shown(attempt),
            "the provider refused the credential or the account"
        ),
        Event::AttemptFinished { attempt } => debug!(
            gen_ai.provider.name = attempt.provider(),
            http.response.status_code = attempt.status().map(|status| status.as_u16()),
            reason = attempt.reason().as_str(),
            elapsed_ms = millis(attempt),
            "attempt finished"
        ),
        Event::Switched { from, to } => warn!(
            from = from.provider(),
            to = to,
            http.response.status_code = from.status().map(|status| status.as_u16()),
            error.type = from.reason().as_str(),
            elapsed_ms = millis(from),
            message_from_provider = shown(from),
            maybe_processed = from.maybe_processed(),
            "failing over"
        ),
        Event::Exhausted { report } => error!(%report, "no provider served the request"),
        Event::BreakerOpened { provider, breaks, .. } => {
            warn!(gen_ai.provider.name = provider, breaks, "circuit breaker opened");
        }
        Event::BreakerClosed { provider } => {
            info!(gen_ai.provider.name = provider, "circuit breaker closed");
        }
        Event::BreakerProbing { provider } => {
            info!(gen_ai.provider.name = provider, "probing after a break");
        }
        Event::CoolingDown { provider, .. } => {
            warn!(gen_ai.provider.name = provider, "provider is cooling down");
        }
        Event::Unclaimed { host } => {
            debug!(server.address = host, "no base of the chain claims this request");
        }
        Event::CallbackPanicked { callback } => error!(callback, "a closure of the chain panicked"),
        Event::Finished { report } => debug!(%report, "request finished"),
    }
}
