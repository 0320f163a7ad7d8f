//! One stream of events and everyone who reads it: `tracing`, `metrics`, the snapshot and the user's
//! closure.
//!
//! This is the only file that knows which readers are compiled in.

mod event;
#[cfg(feature = "tracing")]
mod log;
#[cfg(feature = "metrics")]
mod meter;
pub(crate) mod rate;
#[cfg(feature = "serde")]
mod serialize;
mod snapshot;
mod state;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::Method;
use reqwest::Url;

pub use self::event::{Event, EventOrigin};
#[cfg(feature = "fleet")]
pub use self::snapshot::FleetSnapshot;
pub use self::snapshot::{ProviderSnapshot, Snapshot};
use crate::health::State;
use crate::report::{Attempt, Report};
use crate::verdict::Reason;

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

/// What the task of a chain that shares its health has done.
#[cfg(feature = "fleet")]
#[derive(Clone, Copy)]
#[cfg_attr(not(feature = "metrics"), expect(dead_code, reason = "only metrics read it"))]
pub(crate) enum FleetCount {
    /// A record was `"put"`, `"heard"` or `"ignored"`.
    Record(&'static str),
    /// This operation failed.
    Error(&'static str),
    PutTook(Duration),
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

    /// Counts something that the task of a chain that shares its health has done.
    #[cfg(feature = "fleet")]
    pub(crate) fn count_fleet(&self, count: FleetCount) {
        #[cfg(feature = "metrics")]
        meter::count_fleet(count);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_watched_where_its_steps_are_read() {
        let is_watched = |closures| {
            let observer = Observer::new(closures, false, std::iter::empty());
            observer.is_watched(&Trace::request(Some(&Method::GET)))
        };
        assert!(!is_watched(vec![]), "there is no subscriber");
        assert!(is_watched(vec![Box::new(|_| {})]));
    }
}
