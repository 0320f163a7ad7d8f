//! Metrics, through the `metrics` facade. The names are those of `docs/observability.md`.
//!
//! Labels come from closed sets: provider names and [`Reason::as_str`]. What every request counts
//! has its key made once, so that a program without a recorder pays next to nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use metrics::{Key, Label, Level, Metadata, Recorder, SharedString, Unit, with_recorder};

use super::Event;
#[cfg(feature = "fleet")]
use super::FleetCount;
use crate::health::State;
use crate::report::{Attempt, Report};
use crate::verdict::Reason;

/// Writes a chain's metrics.
pub(super) struct Meter {
    /// Each provider's at its id.
    providers: Vec<Option<Arc<MetricKeys>>>,
    /// The bits that the ratio's gauge was last set to.
    ratio: Arc<AtomicU64>,
}

/// The keys of what one provider's requests count.
struct MetricKeys {
    name: Arc<str>,
    served: Key,
    succeeded: Key,
    duration: Key,
    state: Key,
    broken: Key,
    /// The level that the state's gauge was last set to.
    shown: AtomicU8,
}

impl Meter {
    pub(super) fn new(names: impl Iterator<Item = (usize, Arc<str>)>) -> Self {
        with_recorder(describe);
        let none = Self { providers: Vec::new(), ratio: Arc::new(AtomicU64::new(u64::MAX)) };
        none.with_providers(names)
    }

    /// The same for another list of providers, of whom it shares those that it has already.
    pub(super) fn with_providers(&self, names: impl Iterator<Item = (usize, Arc<str>)>) -> Self {
        let keys = |name: Arc<str>| {
            let provider = |key: &'static str| Label::new(key, shared(&name));
            let ok = Label::from_static_parts("reason", Reason::Ok.as_str());
            MetricKeys {
                served: Key::from_parts(REQUESTS, vec![provider("served_by")]),
                succeeded: Key::from_parts(ATTEMPTS, vec![provider("provider"), ok]),
                duration: Key::from_parts(DURATION, vec![provider("provider")]),
                state: Key::from_parts(STATE, vec![provider("provider")]),
                broken: Key::from_parts(BROKEN, vec![provider("provider")]),
                shown: AtomicU8::new(u8::MAX),
                name,
            }
        };
        let mut providers = Vec::new();
        for (id, name) in names {
            if id >= providers.len() {
                providers.resize_with(id + 1, || None);
            }
            let known = self.keys(&name).cloned();
            providers[id] = Some(known.unwrap_or_else(|| Arc::new(keys(name))));
        }
        let meter = Self { providers, ratio: self.ratio.clone() };
        with_recorder(|recorder| meter.begin(recorder));
        meter
    }

    /// Lets counters begin at zero: a series that begins at one has no increase that a rule sees.
    fn begin(&self, recorder: &dyn Recorder) {
        let begin = |key: &Key| recorder.register_counter(key, &METADATA).increment(0);
        for name in [EXHAUSTED, REJECTED, MAYBE_PROCESSED, NOT_REPLAYABLE, PASSED_THROUGH] {
            begin(&Key::from_static_name(name));
        }
        for keys in self.providers.iter().flatten() {
            begin(&keys.served);
            begin(&keys.succeeded);
            begin(&keys.broken);
            begin(&keys.attempts(Reason::Auth));
            begin(&keys.attempts(Reason::Quota));
        }
    }

    /// Shows the state that a provider is in, if it is not shown already.
    pub(super) fn set_state_gauge(&self, provider: usize, state: State) {
        if let Some(Some(keys)) = self.providers.get(provider) {
            keys.show(state);
        }
    }

    /// Counts a request that is over, and what succeeded of its attempts: one look for the recorder.
    pub(super) fn finished(&self, report: &Report, added: Option<Duration>, ratio: Option<f64>) {
        with_recorder(|recorder| {
            let mut served_by = &NOT_SERVED;
            for attempt in report.attempts() {
                let Some(keys) = self.keys(&attempt.provider) else { continue };
                if attempt.reason() == Reason::Ok {
                    recorder.register_counter(&keys.succeeded, &METADATA).increment(1);
                    keys.attempt(attempt, recorder);
                }
                served_by = &keys.served;
            }
            match added {
                Some(added) => {
                    let histogram = recorder.register_histogram(&ADDED_LATENCY_KEY, &METADATA);
                    histogram.record(added.as_secs_f64());
                }
                // No provider served.
                None => served_by = &NOT_SERVED,
            }
            recorder.register_counter(served_by, &METADATA).increment(1);
            if let Some(ratio) = ratio {
                let bits = ratio.to_bits();
                if self.ratio.load(Ordering::Relaxed) != bits {
                    self.ratio.store(bits, Ordering::Relaxed);
                    recorder.register_gauge(&RATIO_KEY, &METADATA).set(ratio);
                }
            }
        });
    }

    /// Reads what does not happen to every request.
    pub(super) fn read(&self, event: &Event<'_>) {
        match event {
            Event::AttemptFinished { attempt, .. } => self.failed(attempt),
            Event::FailedOver { from, to, .. } => count(
                FAILOVERS,
                vec![
                    Label::new("from", from.provider().to_owned()),
                    Label::new("to", (*to).to_owned()),
                    Label::from_static_parts("reason", from.reason().as_str()),
                ],
            ),
            Event::HedgeSent { from, to, .. } => count(
                HEDGES,
                vec![Label::new("from", (*from).to_owned()), Label::new("to", (*to).to_owned())],
            ),
            Event::Exhausted { .. } => count(EXHAUSTED, Vec::new()),
            Event::Rejected { .. } => count(REJECTED, Vec::new()),
            Event::PassedThrough { .. } => count(PASSED_THROUGH, Vec::new()),
            Event::FleetJoined => set_joined(true),
            Event::FleetLost { .. } => set_joined(false),
            Event::StreamBroken { provider, .. } => {
                if let Some(keys) = self.keys(provider) {
                    with_recorder(|recorder| {
                        recorder.register_counter(&keys.broken, &METADATA).increment(1);
                    });
                }
            }
            _ => {}
        }
    }

    /// Counts an attempt that failed.
    fn failed(&self, attempt: &Attempt) {
        let Some(keys) = self.keys(&attempt.provider) else { return };
        with_recorder(|recorder| {
            let key = keys.attempts(attempt.reason());
            recorder.register_counter(&key, &METADATA).increment(1);
            keys.attempt(attempt, recorder);
        });
    }

    /// The keys of a provider. Events share their names with this, so addresses tell them apart.
    fn keys(&self, name: &str) -> Option<&Arc<MetricKeys>> {
        self.providers.iter().flatten().find(|keys| std::ptr::eq(&*keys.name, name))
    }
}

impl MetricKeys {
    /// Notes what there is to say of every attempt.
    #[inline(always)]
    fn attempt(&self, attempt: &Attempt, recorder: &dyn Recorder) {
        let duration = attempt.elapsed().as_secs_f64();
        recorder.register_histogram(&self.duration, &METADATA).record(duration);
        if attempt.maybe_processed() {
            count(MAYBE_PROCESSED, Vec::new());
        }
        if !attempt.is_replayable() {
            count(NOT_REPLAYABLE, Vec::new());
        }
    }

    /// The key of what failed attempts count.
    #[cold]
    fn attempts(&self, reason: Reason) -> Key {
        let provider = Label::new("provider", shared(&self.name));
        let reason = Label::from_static_parts("reason", reason.as_str());
        Key::from_parts(ATTEMPTS, vec![provider, reason])
    }

    fn show(&self, state: State) {
        let level = level(state);
        if self.shown.load(Ordering::Relaxed) != level {
            self.shown.store(level, Ordering::Relaxed);
            with_recorder(|recorder| {
                recorder.register_gauge(&self.state, &METADATA).set(f64::from(level));
            });
        }
    }
}

const REQUESTS: &str = "failover_requests_total";
const ATTEMPTS: &str = "failover_attempts_total";
const FAILOVERS: &str = "failover_failovers_total";
const HEDGES: &str = "failover_hedges_total";
const EXHAUSTED: &str = "failover_exhausted_total";
const REJECTED: &str = "failover_rejected_total";
const MAYBE_PROCESSED: &str = "failover_maybe_processed_total";
const NOT_REPLAYABLE: &str = "failover_not_replayable_total";
const PASSED_THROUGH: &str = "failover_passed_through_total";
const BROKEN: &str = "failover_stream_broken_total";
const STATE: &str = "failover_provider_state";
const RATIO: &str = "failover_fallback_ratio";
const DURATION: &str = "failover_attempt_duration_seconds";
const ADDED_LATENCY: &str = "failover_added_latency_seconds";
const FLEET_JOINED: &str = "failover_fleet_joined";
const FLEET_RECORDS: &str = "failover_fleet_records_total";
const FLEET_ERRORS: &str = "failover_fleet_errors_total";
const FLEET_PUT: &str = "failover_fleet_put_seconds";

static METADATA: Metadata<'static> =
    Metadata::new(module_path!(), Level::INFO, Some(module_path!()));
// Made at compile time: a key is hashed when it is made.
static NOT_SERVED: Key = Key::from_static_parts(REQUESTS, &NONE);
static NONE: [Label; 1] = [Label::from_static_parts("served_by", "none")];
static RATIO_KEY: Key = Key::from_static_name(RATIO);
static ADDED_LATENCY_KEY: Key = Key::from_static_name(ADDED_LATENCY);

fn level(state: State) -> u8 {
    match state {
        // It is healthy.
        State::Closed | State::AtCapacity => 0,
        State::CoolingDown { .. } => 1,
        State::Probing => 2,
        State::Open { .. } => 3,
        State::Isolated => 4,
    }
}

#[cfg(feature = "fleet")]
pub(super) fn count_fleet(done: FleetCount) {
    match done {
        FleetCount::Record(direction) => {
            count(FLEET_RECORDS, vec![Label::from_static_parts("direction", direction)]);
        }
        FleetCount::Error(operation) => {
            count(FLEET_ERRORS, vec![Label::from_static_parts("op", operation)]);
        }
        FleetCount::PutTook(time) => with_recorder(|recorder| {
            let key = Key::from_static_name(FLEET_PUT);
            recorder.register_histogram(&key, &METADATA).record(time.as_secs_f64());
        }),
    }
}

fn set_joined(joined: bool) {
    with_recorder(|recorder| {
        let key = Key::from_static_name(FLEET_JOINED);
        recorder.register_gauge(&key, &METADATA).set(f64::from(u8::from(joined)));
    });
}

#[cold]
fn count(name: &'static str, labels: Vec<Label>) {
    let key = Key::from_parts(name, labels);
    with_recorder(|recorder| recorder.register_counter(&key, &METADATA).increment(1));
}

fn shared(name: &Arc<str>) -> SharedString {
    SharedString::from_shared(name.clone())
}

fn describe(recorder: &dyn Recorder) {
    for (name, text) in [
        (
            REQUESTS,
            "Requests that are over, by the provider that served them; `none` if no provider did",
        ),
        (ATTEMPTS, "Attempts that ended, by provider and reason"),
        (FAILOVERS, "Requests that went on from one provider to another, by the reason"),
        (HEDGES, "Requests for which a second provider was asked while the first was silent"),
        (EXHAUSTED, "Requests that no provider served"),
        (REJECTED, "Requests that every provider that was asked refused"),
        (
            MAYBE_PROCESSED,
            "Failed attempts whose provider may have processed the request all the same",
        ),
        (NOT_REPLAYABLE, "Attempts whose body could be sent only once"),
        (BROKEN, "Streams that broke after their content had begun"),
        (PASSED_THROUGH, "Requests that were passed through because no base claims them"),
        (FLEET_RECORDS, "Records that were put into the store of shared health, heard or ignored"),
        (FLEET_ERRORS, "Calls to the store of shared health that failed, by operation"),
    ] {
        recorder.describe_counter(name.into(), Some(Unit::Count), text.into());
    }
    for (name, text) in [
        (STATE, "0 closed, 1 cooling down, 2 probing, 3 open, 4 isolated"),
        (RATIO, "Share of the last 5 minutes' requests that the first provider did not serve"),
        (FLEET_JOINED, "1 while the store of shared health answers, else 0"),
    ] {
        recorder.describe_gauge(name.into(), Some(Unit::Count), text.into());
    }
    for (name, text) in [
        (DURATION, "From the start of an attempt to its response's headers or error"),
        (ADDED_LATENCY, "From a request's first attempt to the start of the one that served it"),
        (FLEET_PUT, "How long a write to the store of shared health took"),
    ] {
        recorder.describe_histogram(name.into(), Some(Unit::Seconds), text.into());
    }
}
