//! One provider's circuit breaker and cooldown, and the rules that move them.
//!
//! Nothing here reads a clock, waits or locks: every call is told `now`, so that each rule can be
//! tested in virtual time. There is no half-open state. When a break ends, one request is lent the
//! right to probe, and that lease ends by itself: a probe that is cancelled, hangs or cannot tell
//! anything never leaves a provider shut.
//!
//! *Sent before* is decided by sequence numbers, not by instants, so that a clock that stands still
//! changes nothing.

use std::time::{Duration, Instant};

use crate::hedge::Hedging;

/// When a provider's circuit breaker opens, and for how long.
///
/// By default it opens at 5 consecutive failures, or when at least half of at least 10 requests
/// within 60 s failed; breaks last 30 s, doubling up to 300 s while the provider stays down, less
/// up to half of it as jitter.
///
/// ```
/// use std::time::Duration;
/// use reqwest_failover::{Breaker, Provider, ProviderChain};
///
/// let chain = ProviderChain::builder([Provider::openai("key")])
///     .breaker(
///         Breaker::default()
///             .consecutive(3)
///             .ratio(0.25, 20)
///             .window(Duration::from_secs(30))
///             .breaks(Duration::from_secs(5), Duration::from_secs(60)),
///     )
///     .build()?;
/// # Ok::<(), reqwest_failover::ConfigError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Breaker {
    consecutive: u32,
    ratio: f64,
    minimum: u32,
    window: Duration,
    first_break: Duration,
    max_break: Duration,
}

impl Breaker {
    /// Opens at this many failures in a row. Default 5; at least 1.
    pub fn consecutive(mut self, failures: u32) -> Self {
        self.consecutive = failures;
        self
    }

    /// Opens when this share of the requests in the window failed, once there were at least
    /// `requests` of them. Default 0.5 of 10; the share is above 0 and at most 1.
    pub fn ratio(mut self, failed: f64, requests: u32) -> Self {
        (self.ratio, self.minimum) = (failed, requests);
        self
    }

    /// The length of the rolling window that [`ratio`](Self::ratio) looks at. Default 60 s; longer
    /// than zero.
    pub fn window(mut self, length: Duration) -> Self {
        self.window = length;
        self
    }

    /// The length of the first break, and what doubling never exceeds. Default 30 s and 300 s.
    pub fn breaks(mut self, first: Duration, max: Duration) -> Self {
        (self.first_break, self.max_break) = (first, max);
        self
    }

    /// What is wrong with these settings, if anything is.
    pub(crate) fn problem(&self) -> Option<&'static str> {
        if self.consecutive == 0 {
            Some("consecutive must be at least 1")
        } else if !(self.ratio > 0.0 && self.ratio <= 1.0) {
            Some("the ratio must be above 0 and at most 1")
        } else if self.minimum == 0 {
            Some("the ratio must look at 1 request or more")
        } else if self.window.is_zero() {
            Some("the window must be longer than zero")
        } else if self.first_break > self.max_break {
            Some("the first break must not be longer than the longest")
        } else {
            None
        }
    }

    /// A break before jitter: the first one doubled `level` times.
    fn break_length(&self, level: u32) -> Duration {
        doubled(self.first_break, level, self.max_break)
    }
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            consecutive: 5,
            ratio: 0.5,
            minimum: 10,
            window: Duration::from_secs(60),
            first_break: Duration::from_secs(30),
            max_break: Duration::from_secs(300),
        }
    }
}

/// How a provider stands with its chain, as [`ProviderSnapshot::state`](crate::ProviderSnapshot::state)
/// tells it.
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
    /// Healthy: requests are sent to it in its admitted.
    Closed,
    /// The circuit breaker is open. Once `until` is past, the next request is the probe.
    Open {
        /// The end of the break.
        until: Instant,
    },
    /// The break is over and one request is out to see whether the provider is back.
    Probing,
    /// The provider said that it wants rest.
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
    /// The break is over and nobody probes: whoever is admitted next is the probe.
    ProbeDue,
    /// Open, cooling, or being probed until then.
    Unavailable(Instant),
    Isolated,
}

/// The right to ask one provider once. It must come back to [`HealthTable::record_outcome`] or [`HealthTable::cancel`].
#[derive(Debug)]
pub(crate) struct Permit {
    pub(crate) provider: usize,
    sequence: u64,
    admitted: Admitted,
}

impl Permit {
    pub(crate) fn is_probe(&self) -> bool {
        self.admitted == Admitted::Probe
    }

    /// Tickets are numbered in the order of their admission.
    pub(crate) fn sequence(&self) -> u64 {
        self.sequence
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Admitted {
    Regular,
    Probe,
    /// Asked while it was open, because nobody better was left.
    WhileOpen,
    /// The same while it was cooling down.
    WhileCoolingDown,
}

/// What an attempt told about its provider's health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HealthSignal {
    Success,
    /// An answer that is neither success nor failure: the provider is alive.
    Neutral,
    Failure,
    Cooldown(Option<Duration>),
    /// It was silent for so long that a later attempt at another provider answered first.
    Overtaken,
    /// Nothing was learnt, because nothing was sent or nobody waited.
    Nothing,
}

/// A state that was entered, for whoever is watching.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Opened { until: Instant, breaks: u32 },
    Closed,
    CoolingDown { until: Instant },
}

/// The changes that one piece of signal can make: the breaker's, the cooldown's.
pub(crate) type Changes = [Option<Change>; 2];

/// Every provider's health, and the counts that go with it.
#[derive(Debug)]
pub(crate) struct HealthTable {
    breaker: Option<Breaker>,
    providers: Vec<ProviderHealth>,
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
    /// A health on which every provider is healthy. Without a breaker nobody is ever passed over.
    pub(crate) fn new(providers: usize, breaker: Option<Breaker>, now: Instant, seed: u64) -> Self {
        let window = breaker.as_ref().map_or(Duration::ZERO, |breaker| breaker.window);
        Self {
            ticks: Ticks::new(now, window / BUCKETS as u32),
            breaker,
            providers: (0..providers).map(|_| ProviderHealth::default()).collect(),
            sequence: 0,
            random: fastrand::Rng::with_seed(seed),
            hedging: None,
        }
    }

    pub(crate) fn admission(&self, provider: usize, now: Instant) -> Admission {
        self.providers[provider].admission(now)
    }

    /// Takes a permit. If this is a probe, its lease ends at `lease_until`.
    pub(crate) fn admit(&mut self, provider: usize, now: Instant, lease_until: Instant) -> Permit {
        self.sequence += 1;
        let sequence = self.sequence;
        let provider_health = &mut self.providers[provider];
        provider_health.counts.attempts += 1;
        provider_health.counts.in_flight += 1;
        let admitted = match provider_health.admission(now) {
            Admission::Available => Admitted::Regular,
            Admission::ProbeDue => {
                provider_health.lease = Some(Lease { sequence, until: lease_until });
                Admitted::Probe
            }
            _ if provider_health.cooling(now).is_some() => Admitted::WhileCoolingDown,
            Admission::Unavailable(_) | Admission::Isolated => Admitted::WhileOpen,
        };
        Permit { provider, sequence, admitted }
    }

    /// Takes a permit back together with what its attempt told.
    pub(crate) fn record_outcome(
        &mut self,
        mut permit: Permit,
        signal: HealthSignal,
        now: Instant,
    ) -> Changes {
        let Self { breaker, providers, sequence, random, ticks, .. } = self;
        let provider_health = &mut providers[permit.provider];
        if permit.is_probe() && !provider_health.holds_lease(&permit) {
            // Its lease ran out and another probe is on its way.
            permit.admitted = Admitted::WhileOpen;
        }
        provider_health.give_back(&permit);
        provider_health.counts.failures += u64::from(signal == HealthSignal::Failure);
        let Some(breaker) = breaker else { return [None, None] };
        let tick = ticks.at(now);
        let mut rules = Rules { breaker, random, tick, sequence: *sequence, now };
        [
            provider_health.move_breaker(&permit, signal, &mut rules),
            provider_health.move_cooldown(&permit, signal, &rules),
        ]
    }

    /// Takes a permit back whose attempt was dropped.
    pub(crate) fn cancel(&mut self, permit: &Permit) {
        self.providers[permit.provider].give_back(permit);
    }

    /// A stream has begun well. The provider is back, if it was away; whether the stream is a
    /// success, its end will tell, with which the permit must come back.
    pub(crate) fn commit(&mut self, permit: &Permit, now: Instant) -> Option<Change> {
        let Self { breaker, providers, sequence, random, ticks, .. } = self;
        let provider_health = &mut providers[permit.provider];
        let is_signal =
            provider_health.open_until.is_some() && permit.sequence > provider_health.moved_after;
        let breaker = breaker.as_ref().filter(|_| is_signal)?;
        let rules = Rules { breaker, random, tick: ticks.at(now), sequence: *sequence, now };
        Some(provider_health.close(&rules))
    }

    /// Counts a response that was handed to the caller as this provider's success.
    pub(crate) fn serve(&mut self, provider: usize) {
        self.providers[provider].counts.served += 1;
    }

    pub(crate) fn isolate(&mut self, provider: usize, isolated: bool) {
        self.providers[provider].isolated = isolated;
    }

    pub(crate) fn state(&self, provider: usize, now: Instant) -> State {
        self.providers[provider].state(now)
    }

    pub(crate) fn counts(&self, provider: usize) -> Counts {
        self.providers[provider].counts
    }
}

/// `now + length`, or a time that nobody lives to see.
pub(crate) fn after(now: Instant, length: Duration) -> Instant {
    const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);
    now.checked_add(length).or_else(|| now.checked_add(FAR)).unwrap_or(now)
}

/// Counts the equal parts of time since `origin`.
#[derive(Debug)]
pub(crate) struct Ticks {
    origin: Instant,
    /// In nanoseconds.
    length: u64,
    last: u64,
    /// The end of the last one: until then a comparison is all it takes, where a subtraction and a
    /// division cost ten times that.
    until: Instant,
}

impl Ticks {
    pub(crate) fn new(origin: Instant, length: Duration) -> Self {
        Self { origin, length: nanos(length).max(1), last: 0, until: origin }
    }

    /// The number of the current part. Time does not run backwards here.
    #[inline]
    pub(crate) fn at(&mut self, now: Instant) -> u64 {
        if now >= self.until {
            self.last = self.of(now);
            let end = self.length.saturating_mul(self.last.saturating_add(1));
            self.until = after(self.origin, Duration::from_nanos(end));
        }
        self.last
    }

    /// The number of the part that `now` lies in.
    pub(crate) fn of(&self, now: Instant) -> u64 {
        nanos(now.saturating_duration_since(self.origin)) / self.length
    }
}

fn nanos(length: Duration) -> u64 {
    u64::try_from(length.as_nanos()).unwrap_or(u64::MAX)
}

/// What the rules need is_hedge the provider_health that they move.
struct Rules<'a> {
    breaker: &'a Breaker,
    random: &'a mut fastrand::Rng,
    /// The number of the current tenth of the window.
    tick: u64,
    /// The last permit's number: signal of this or an older permit is old after a transition.
    sequence: u64,
    now: Instant,
}

#[derive(Debug, Default)]
struct ProviderHealth {
    isolated: bool,
    counts: Counts,
    consecutive: u32,
    window: Window,
    /// While the breaker is open: the end of the break.
    open_until: Option<Instant>,
    lease: Option<Lease>,
    /// The number of doublings of the next break.
    level: u32,
    closed_at: Option<Instant>,
    /// The last permit before the breaker last opened or closed.
    moved_after: u64,
    cooldown: Option<Cooldown>,
    /// The last permit before the last cooldown began.
    cooled_after: u64,
}

/// A probe's right to be the only one. It ends by itself.
#[derive(Clone, Copy, Debug)]
struct Lease {
    sequence: u64,
    until: Instant,
}

/// The current or last cooldown; a success clears it.
#[derive(Clone, Copy, Debug)]
struct Cooldown {
    until: Instant,
    level: u32,
}

impl ProviderHealth {
    fn admission(&self, now: Instant) -> Admission {
        if self.isolated {
            return Admission::Isolated;
        }
        let shut = self.open_until.and_then(|until| {
            let lease = self.lease.map_or(until, |lease| lease.until.max(until));
            (lease > now).then_some(lease)
        });
        match (self.cooling(now).max(shut), self.open_until) {
            (Some(until), _) => Admission::Unavailable(until),
            (None, Some(_)) => Admission::ProbeDue,
            (None, None) => Admission::Available,
        }
    }

    fn state(&self, now: Instant) -> State {
        let probing = self.lease.is_some_and(|lease| lease.until > now);
        match (self.isolated, self.open_until, self.cooling(now)) {
            (true, ..) => State::Isolated,
            (_, Some(_), _) if probing => State::Probing,
            (_, open, Some(until)) if open < Some(until) => State::CoolingDown { until },
            (_, Some(until), _) => State::Open { until },
            (_, None, _) => State::Closed,
        }
    }

    fn cooling(&self, now: Instant) -> Option<Instant> {
        self.cooldown.map(|cooldown| cooldown.until).filter(|until| *until > now)
    }

    fn give_back(&mut self, permit: &Permit) {
        self.counts.in_flight = self.counts.in_flight.saturating_sub(1);
        if self.holds_lease(permit) {
            self.lease = None;
        }
    }

    fn holds_lease(&self, permit: &Permit) -> bool {
        self.lease.is_some_and(|lease| lease.sequence == permit.sequence)
    }

    fn move_breaker(
        &mut self,
        permit: &Permit,
        signal: HealthSignal,
        rules: &mut Rules<'_>,
    ) -> Option<Change> {
        if permit.sequence <= self.moved_after {
            return None;
        }
        match (self.open_until, permit.admitted, signal) {
            (_, _, HealthSignal::Nothing) => None,
            (None, _, HealthSignal::Success) => {
                self.consecutive = 0;
                self.window.record(false, rules);
                None
            }
            // It was not given the rest that it had asked for.
            (None, Admitted::WhileCoolingDown, HealthSignal::Failure) => None,
            (None, _, HealthSignal::Failure) => {
                self.consecutive = self.consecutive.saturating_add(1);
                self.window.record(true, rules);
                let tripped =
                    self.consecutive >= rules.breaker.consecutive || self.window.is_bad(rules);
                tripped.then(|| self.open(rules))
            }
            // Slow is not wrong: only a row of it opens the breaker, not a share.
            (None, Admitted::WhileCoolingDown, HealthSignal::Overtaken) => None,
            (None, _, HealthSignal::Overtaken) => {
                self.consecutive = self.consecutive.saturating_add(1);
                (self.consecutive >= rules.breaker.consecutive).then(|| self.open(rules))
            }
            (None, _, HealthSignal::Neutral | HealthSignal::Cooldown(_)) => None,
            (Some(_), Admitted::Probe, HealthSignal::Failure | HealthSignal::Overtaken) => {
                Some(self.open(rules))
            }
            (Some(_), Admitted::Probe, _) | (Some(_), _, HealthSignal::Success) => {
                Some(self.close(rules))
            }
            (Some(_), _, _) => None,
        }
    }

    fn open(&mut self, rules: &mut Rules<'_>) -> Change {
        if let Some(closed_at) = self.closed_at.take() {
            let healthy = rules.now.saturating_duration_since(closed_at);
            self.level = self.level.saturating_sub(whole(healthy, rules.breaker.first_break));
        }
        let half = rules.breaker.break_length(self.level) / 2;
        let until = after(after(rules.now, half), half.mul_f64(rules.random.f64()));
        self.level = self.level.saturating_add(1);
        self.open_until = Some(until);
        self.moved_after = rules.sequence;
        Change::Opened { until, breaks: self.level }
    }

    fn close(&mut self, rules: &Rules<'_>) -> Change {
        self.open_until = None;
        self.lease = None;
        self.consecutive = 0;
        self.window = Window::default();
        self.closed_at = Some(rules.now);
        self.moved_after = rules.sequence;
        Change::Closed
    }

    fn move_cooldown(
        &mut self,
        permit: &Permit,
        signal: HealthSignal,
        rules: &Rules<'_>,
    ) -> Option<Change> {
        if permit.sequence <= self.cooled_after {
            return None;
        }
        let hint = match signal {
            HealthSignal::Success => {
                self.cooldown = None;
                return None;
            }
            HealthSignal::Cooldown(hint) => {
                hint.map(|hint| hint.clamp(SHORTEST_COOLDOWN, LONGEST_COOLDOWN))
            }
            _ => return None,
        };
        let while_cooling_down = |cooldown: &Cooldown| {
            permit.admitted == Admitted::WhileCoolingDown || cooldown.until > rules.now
        };
        if let Some(current) = self.cooldown.as_mut().filter(|current| while_cooling_down(current))
        {
            // Asked out of admitted, it can only ask for more time: it was not given the rest that a
            // longer cooldown would have to answer for.
            let until = after(rules.now, hint?);
            return (until > current.until).then(|| {
                current.until = until;
                Change::CoolingDown { until }
            });
        }
        let level = self.cooldown.map_or(0, |last| last.level.saturating_add(1));
        let length = hint.unwrap_or_else(|| doubled(FIRST_COOLDOWN, level, LONGEST_COOLDOWN));
        let until = after(rules.now, length);
        self.cooldown = Some(Cooldown { until, level });
        self.cooled_after = rules.sequence;
        Some(Change::CoolingDown { until })
    }
}

const SHORTEST_COOLDOWN: Duration = Duration::from_secs(1);
const FIRST_COOLDOWN: Duration = Duration::from_secs(5);
const LONGEST_COOLDOWN: Duration = Duration::from_secs(300);

fn doubled(first: Duration, times: u32, longest: Duration) -> Duration {
    let factor = 1u32.checked_shl(times).unwrap_or(u32::MAX);
    first.saturating_mul(factor).min(longest)
}

/// How many times `part` fits into `length`.
fn whole(length: Duration, part: Duration) -> u32 {
    let times = length.as_nanos().checked_div(part.as_nanos()).unwrap_or(u128::MAX);
    u32::try_from(times).unwrap_or(u32::MAX)
}

/// Requests and failures of the last ten tenths of the breaker's window.
#[derive(Debug, Default)]
struct Window {
    buckets: [Bucket; BUCKETS],
}

const BUCKETS: usize = 10;

#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    tick: u64,
    requests: u32,
    failures: u32,
}

impl Window {
    fn record(&mut self, failed: bool, rules: &Rules<'_>) {
        let tick = rules.tick;
        let bucket = &mut self.buckets[tick as usize % BUCKETS];
        if bucket.tick != tick {
            *bucket = Bucket { tick, ..Bucket::default() };
        }
        bucket.requests = bucket.requests.saturating_add(1);
        bucket.failures = bucket.failures.saturating_add(u32::from(failed));
    }

    fn is_bad(&self, rules: &Rules<'_>) -> bool {
        let tick = rules.tick;
        // Not yet a whole round of the buckets ago.
        let recent = self
            .buckets
            .iter()
            .filter(|bucket| tick.saturating_sub(bucket.tick) / BUCKETS as u64 == 0);
        let (requests, failures) = recent.fold((0u64, 0u64), |(requests, failures), bucket| {
            (requests + u64::from(bucket.requests), failures + u64::from(bucket.failures))
        });
        requests >= u64::from(rules.breaker.minimum)
            && failures as f64 >= rules.breaker.ratio * requests as f64
    }
}

#[cfg(test)]
mod interleavings;
#[cfg(test)]
mod tests;
