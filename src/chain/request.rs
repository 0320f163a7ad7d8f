//! One request's state: its run, its report, its counts and its events, however it ends.

mod ending;
mod settle;

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Extensions;
use http::header::UPGRADE;
use reqwest::Request;

use self::ending::Counted;
pub(super) use self::settle::{Dropped, Settlement};
use super::address::Address;
use super::attempt::AttemptState;
use super::body::{Requests, is_replayable};
use super::shared::{Shared, StreamWatch, Table, TableGuard, now};
use crate::error::FailureKind;
use crate::health::{Permit, after};
use crate::message::Secrets;
use crate::observe::{Event, Trace};
use crate::report::Report;
use crate::route::Route;
use crate::run::{Ambiguous, Limits, Replay, Run, Step, is_idempotent};

/// A claimed request's state. Dropping it counts the request as abandoned.
pub(super) struct RequestState<'a> {
    shared: &'a Arc<Shared>,
    /// The caller's own: each attempt gets a copy.
    pub(super) extensions: &'a mut Extensions,
    pub(super) run: Run,
    report: Report,
    pub(super) trace: Trace,
    is_watched: bool,
    started: Instant,
    /// The time as of the last wait: a clock is not free, and nothing in between takes any.
    pub(super) now: Instant,
    /// How many attempts have begun; a chain has no more providers than this can count.
    begun: u16,
    /// Whether the first provider in order was asked.
    first_asked: bool,
    /// When the first attempt was started, and the one that served.
    first_sent: Option<Instant>,
    served_sent: Option<Instant>,
    /// Secrets of this request's attempts: tokens, and what `map_request` set.
    #[expect(clippy::box_collection, reason = "it is rare, and the state is kept small")]
    secrets: Option<Box<Vec<String>>>,
    pub(super) is_replayable: bool,
    pub(super) upgrade_asked: bool,
    /// Set once the request is counted.
    counted: Option<Counted>,
    /// The request's own timeout, if it has one: nanoseconds, which take half the room of a `Duration`.
    timeout: Option<NonZeroU64>,
    is_finished: bool,
}

/// How a request begins: with its first step; with none if its body is a stream, which is read first; or
/// refused.
type Begun = Result<Option<Step>, FailureKind>;

impl<'a> RequestState<'a> {
    /// A request that has not [begun](Self::begin).
    pub(super) fn new(
        shared: &'a Arc<Shared>,
        requests: &Requests,
        extensions: &'a mut Extensions,
    ) -> Self {
        let request = requests.caller();
        let started = now();
        let trace = Trace::request(request.map(Request::method));
        let timeout = request.and_then(Request::timeout).copied();
        let idempotent = shared.limits.ambiguous == Ambiguous::FailOver
            || request.is_some_and(|request| is_idempotent(request.method()))
            || extensions.get::<Replay>().is_some();
        let mut run = Run::new(Arc::default(), &shared.limits, idempotent, timeout, started);
        if let Some(limits) = extensions.get::<Limits>() {
            run.limit(limits, timeout, started);
        }
        Self {
            shared,
            extensions,
            run,
            report: Report::new(0),
            is_watched: shared.observer.is_watched(&trace),
            trace,
            started,
            now: started,
            begun: 0,
            first_asked: false,
            first_sent: None,
            served_sent: None,
            secrets: None,
            is_replayable: true,
            upgrade_asked: request
                .is_some_and(|request| request.headers().keys().any(|name| *name == UPGRADE)),
            counted: None,
            timeout: timeout.map(nanos),
            is_finished: false,
        }
    }

    /// Begins the request, and takes its first step where nothing has to be read for it: one lock.
    pub(super) fn begin(&mut self, address: &Address, requests: &Requests) -> Begun {
        let shared = self.shared;
        let request = requests.caller();
        let route = match address.is_refused() {
            true => Err(FailureKind::PathRefused),
            false => Ok(request.and_then(|request| Self::route(shared, request, self.extensions))),
        };
        let is_read = request.is_none_or(is_replayable);
        if let Some(request) = request.filter(|_| is_read) {
            self.take_key(request);
        }
        let mut table = shared.lock();
        self.run.set_order(shared.order(&table).clone());
        table.begun += 1;
        self.report.set_id(table.begun);
        self.trace.record_id(table.begun);
        if let Some(route) = route? {
            self.apply(&route)?;
        }
        if !is_read {
            return Ok(None);
        }
        Ok(Some(self.run.step(&shared.limits, &mut table.health, self.now)))
    }

    /// The request's own route: the extension, else the closure's.
    fn route(shared: &Shared, request: &Request, extensions: &Extensions) -> Option<Route> {
        extensions.get::<Route>().cloned().or_else(|| {
            let route = shared.chain.route.as_ref()?;
            shared.observer.catch_panic("route", || route(request)).flatten()
        })
    }

    fn apply(&mut self, route: &Route) -> Result<(), FailureKind> {
        let shared = self.shared;
        self.run
            .reorder(|order| route.resolve(order, |name| shared.find(name), || shared.names()))?;
        if route.forbids_failover() {
            self.run.forbid_failover();
        }
        Ok(())
    }

    /// What the request is about, as far as its providers' health depends on it.
    fn key(shared: &Shared, request: &Request) -> Option<Box<[u8]>> {
        let key = shared.chain.health_key.as_ref()?;
        shared.observer.catch_panic("health_by", || key.of(request)).flatten()
    }

    /// Reads what the request is about, once its body is in memory.
    pub(super) fn take_key(&mut self, request: &Request) {
        self.run.set_key(Self::key(self.shared, request));
    }

    /// Reads the clock, after a wait.
    pub(super) fn refresh_now(&mut self) -> Instant {
        self.now = now();
        self.now
    }

    /// How many bytes of a streamed body are worth keeping: none where no other provider may be asked.
    pub(super) fn replay_limit(&self) -> u64 {
        let may_fail_over = self.run.may_fail_over(&self.shared.lock().health);
        if may_fail_over { self.shared.chain.replay_buffer } else { 0 }
    }

    pub(super) fn shared(&self) -> &'a Arc<Shared> {
        self.shared
    }

    /// What is left of the request's own timeout, if it has one.
    pub(super) fn time_left(&self) -> Option<Duration> {
        let end = |timeout: NonZeroU64| after(self.started, Duration::from_nanos(timeout.get()));
        self.timeout.map(|timeout| end(timeout).saturating_duration_since(self.now))
    }

    pub(super) fn forbid_replay(&mut self) {
        self.run.forbid_replay();
        self.is_replayable = false;
    }

    /// Asks the run what to do, as of the last look at the clock.
    pub(super) fn next_step(&mut self) -> Step {
        let shared = self.shared;
        self.run.step(&shared.limits, &mut shared.lock().health, self.now)
    }

    /// An attempt begins. Returns its span.
    pub(super) fn start_attempt(&mut self, provider: usize) -> Trace {
        let entry = &self.shared.entries[provider];
        let resends = usize::from(self.begun);
        self.begun += 1;
        self.first_asked |= self.run.first() == Some(provider);
        self.first_sent.get_or_insert(self.now);
        if self.is_watched {
            let (origin, number) = (self.origin(), usize::from(self.begun));
            self.emit(&Event::AttemptStarted { origin, provider: &entry.name, number });
        }
        self.trace.attempt(&entry.name, entry.base.url(), resends)
    }

    /// What is needed of the request when its stream ends.
    pub(super) fn watch(&self, permit: Permit, of_caller: &Secrets) -> StreamWatch {
        StreamWatch {
            shared: self.shared.clone(),
            id: self.id(),
            key: self.run.key().map(Box::from),
            secrets: of_caller.and(self.secrets.as_deref().into_iter().flatten()),
            permit,
        }
    }

    /// Every secret that a message about this request may not show: these, and those of its attempts.
    fn secrets(&self, of_caller: &Secrets) -> Secrets {
        let of_attempts = self.secrets.as_deref().map_or(&[][..], Vec::as_slice);
        self.shared.and_secrets(of_caller, of_attempts)
    }
}

/// At least one nanosecond.
fn nanos(duration: Duration) -> NonZeroU64 {
    let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    NonZeroU64::new(nanos).unwrap_or(NonZeroU64::MIN)
}
