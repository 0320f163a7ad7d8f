//! How often requests are not served by the chain's first provider, lately.
//!
//! Frequent failovers mean trouble at the first provider that goes unnoticed, because every request
//! is answered. The rate is reported once when it grows too large, and once when it is small again.
//! Between the two limits nothing is reported, so that a share that varies around one of them raises
//! one alarm and not many.

use std::time::{Duration, Instant};

use crate::health::{Ring, Ticks};
use crate::verdict::Reason;

/// The fallback rate's limits, as shares of requests.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RateLimits {
    pub(crate) high: f64,
    pub(crate) normal: f64,
}

impl Default for RateLimits {
    fn default() -> Self {
        Self { high: 0.10, normal: 0.05 }
    }
}

impl RateLimits {
    pub(crate) fn problem(self) -> Option<&'static str> {
        let ordered = 0.0 <= self.normal && self.normal <= self.high && self.high <= 1.0;
        (!ordered)
            .then_some("must be shares between 0 and 1, the normal one not above the high one")
    }
}

/// A rolling count of requests and of those that the first provider did not serve.
#[derive(Debug)]
pub(crate) struct FallbackRate {
    limits: RateLimits,
    ticks: Ticks,
    ring: Ring<RateCounts>,
    /// Requests and those served by fallbacks of the last 5 minutes, as of the last request's tick.
    totals: (u64, u64),
    last_tick: u64,
    is_high: bool,
    last_ratio: Option<f64>,
}

/// A limit that was crossed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Crossing {
    High { ratio: f64, reason: Option<Reason> },
    Normal { ratio: f64 },
}

impl FallbackRate {
    pub(crate) fn new(limits: RateLimits, now: Instant) -> Self {
        Self {
            limits,
            ticks: Ticks::new(now, WINDOW),
            ring: Ring::default(),
            totals: (0, 0),
            last_tick: 0,
            is_high: false,
            last_ratio: None,
        }
    }

    /// Counts a request that is over; `reason` is why its attempt at the first provider failed, if
    /// there was one.
    #[inline]
    pub(crate) fn record(
        &mut self,
        served_by_first: bool,
        reason: Option<Reason>,
        now: Instant,
    ) -> Option<Crossing> {
        let tick = self.ticks.at(now);
        if self.last_tick != tick {
            self.last_tick = tick;
            self.totals = self.recent_totals(tick);
        }
        let counts = self.ring.current(tick);
        counts.requests = counts.requests.saturating_add(1);
        self.totals.0 += 1;
        if !served_by_first {
            counts.by_fallback = counts.by_fallback.saturating_add(1);
            self.totals.1 += 1;
            if let Some(reason) = reason {
                counts.count(reason);
            }
        }
        self.last_ratio = share(self.totals);
        let ratio = self.last_ratio?;
        if !self.is_high && ratio > self.limits.high {
            self.is_high = true;
            Some(Crossing::High { ratio, reason: self.most_frequent(now) })
        } else if self.is_high && ratio < self.limits.normal {
            self.is_high = false;
            Some(Crossing::Normal { ratio })
        } else {
            None
        }
    }

    /// The share of the last 5 minutes' requests that the first provider did not serve. `None`
    /// below 20 requests, which say little.
    pub(crate) fn ratio(&self, now: Instant) -> Option<f64> {
        share(self.recent_totals(self.ticks.of(now)))
    }

    /// The ratio as of the last request.
    pub(crate) fn last_ratio(&self) -> Option<f64> {
        self.last_ratio
    }

    /// Forgets everything: another provider is the first.
    pub(crate) fn reset(&mut self) {
        self.ring = Ring::default();
        self.totals = (0, 0);
        self.is_high = false;
        self.last_ratio = None;
    }

    fn most_frequent(&self, now: Instant) -> Option<Reason> {
        let mut counts: Vec<(Reason, u64)> = Vec::new();
        let recent = self.ring.recent(self.ticks.of(now));
        for (reason, count) in recent.flat_map(|counts| &counts.reasons) {
            match counts.iter_mut().find(|(known, _)| known == reason) {
                Some((_, known)) => *known += u64::from(*count),
                None => counts.push((*reason, u64::from(*count))),
            }
        }
        counts.into_iter().max_by_key(|(_, count)| *count).map(|(reason, _)| reason)
    }

    fn recent_totals(&self, tick: u64) -> (u64, u64) {
        self.ring.recent(tick).fold((0, 0), |(requests, by_fallback), counts| {
            (requests + u64::from(counts.requests), by_fallback + u64::from(counts.by_fallback))
        })
    }
}

const WINDOW: Duration = Duration::from_secs(5 * 60);
const MINIMUM: u64 = 20;

/// The share of requests that fallbacks served; `None` where there are too few to say.
fn share((requests, by_fallback): (u64, u64)) -> Option<f64> {
    (requests >= MINIMUM).then(|| by_fallback as f64 / requests as f64)
}

/// What was counted in one part of the window.
#[derive(Debug, Default)]
struct RateCounts {
    requests: u32,
    by_fallback: u32,
    reasons: Vec<(Reason, u32)>,
}

impl RateCounts {
    fn count(&mut self, reason: Reason) {
        match self.reasons.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, count)) => *count = count.saturating_add(1),
            None => self.reasons.push((reason, 1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Clocked {
        rate: FallbackRate,
        now: Instant,
    }

    impl Clocked {
        fn new() -> Self {
            #[expect(clippy::disallowed_methods, reason = "any instant will do as the first")]
            let now = Instant::now();
            Self { rate: FallbackRate::new(RateLimits::default(), now), now }
        }

        fn pass(&mut self, seconds: u64) {
            self.now += Duration::from_secs(seconds);
        }

        fn record(&mut self, served: u32, by_fallback: u32) -> Vec<Crossing> {
            let reason = Some(Reason::ServerError);
            let served = (0..served).filter_map(|_| self.rate.record(true, None, self.now));
            let mut crossings: Vec<_> = served.collect();
            let by_fallback =
                (0..by_fallback).filter_map(|_| self.rate.record(false, reason, self.now));
            crossings.extend(by_fallback);
            crossings
        }
    }

    #[test]
    fn says_nothing_before_twenty_requests() {
        let mut clocked = Clocked::new();
        assert_eq!(clocked.record(0, 19), []);
        assert_eq!(clocked.rate.ratio(clocked.now), None);
        let crossings = clocked.record(0, 1);
        let high = Crossing::High { ratio: 1.0, reason: Some(Reason::ServerError) };
        assert_eq!(crossings, [high]);
    }

    #[test]
    fn says_once_that_the_rate_is_high_and_once_that_it_is_normal() {
        let mut clocked = Clocked::new();
        assert_eq!(clocked.record(90, 10), [], "10 % is not above 10 %");
        assert!(matches!(clocked.record(0, 1)[..], [Crossing::High { .. }]));
        assert_eq!(clocked.record(0, 30), [], "said already");
        assert_eq!(clocked.record(600, 0).len(), 0, "41 of 731 is above 5 %");
        assert!(matches!(clocked.record(200, 0)[..], [Crossing::Normal { .. }]));
        assert_eq!(clocked.record(200, 0), [], "said already");
    }

    #[test]
    fn a_rate_that_varies_around_a_limit_crosses_it_once() {
        let mut clocked = Clocked::new();
        clocked.record(90, 10);
        let mut crossings = Vec::new();
        for _ in 0..50 {
            crossings.extend(clocked.record(0, 1));
            crossings.extend(clocked.record(9, 0));
            crossings.extend(clocked.record(1, 0));
        }
        assert!(matches!(crossings[..], [Crossing::High { .. }]), "{crossings:?}");
        let mut crossings = clocked.record(1000, 0);
        for _ in 0..50 {
            crossings.extend(clocked.record(0, 1));
            crossings.extend(clocked.record(20, 0));
        }
        assert!(matches!(crossings[..], [Crossing::Normal { .. }]), "{crossings:?}");
    }

    #[test]
    fn forgets_what_is_older_than_five_minutes() {
        let mut clocked = Clocked::new();
        clocked.record(0, 50);
        clocked.pass(299);
        assert_eq!(clocked.rate.ratio(clocked.now), Some(1.0));
        clocked.pass(1);
        assert_eq!(clocked.rate.ratio(clocked.now), None);
        assert!(matches!(clocked.record(20, 0)[..], [Crossing::Normal { ratio: 0.0 }]));
    }

    #[test]
    fn a_clock_that_stands_still_changes_nothing() {
        let mut clocked = Clocked::new();
        assert_eq!(clocked.record(1000, 101).len(), 0);
        assert_eq!(clocked.record(0, 200).len(), 1);
        assert_eq!(
            clocked.rate.ratio(clocked.now - Duration::from_secs(1)),
            clocked.rate.ratio(clocked.now)
        );
    }

    #[test]
    fn names_the_most_frequent_reason_and_forgets_it_on_reset() {
        let mut clocked = Clocked::new();
        clocked.record(18, 0);
        assert_eq!(clocked.rate.record(false, Some(Reason::Timeout), clocked.now), None);
        clocked.pass(60);
        clocked.rate.record(false, Some(Reason::Connect), clocked.now);
        let crossing = clocked.rate.record(false, Some(Reason::Connect), clocked.now);
        assert!(matches!(crossing, Some(Crossing::High { reason: Some(Reason::Connect), .. })));
        clocked.rate.reset();
        assert_eq!(clocked.rate.ratio(clocked.now), None);
    }

    #[test]
    fn a_reason_is_as_frequent_as_in_all_of_the_window() {
        let mut clocked = Clocked::new();
        clocked.record(40, 0);
        for _ in 0..3 {
            assert_eq!(clocked.rate.record(false, Some(Reason::Timeout), clocked.now), None);
            clocked.pass(60);
        }
        assert_eq!(clocked.rate.record(false, Some(Reason::Connect), clocked.now), None);
        let crossing = clocked.rate.record(false, Some(Reason::Connect), clocked.now);
        assert!(matches!(crossing, Some(Crossing::High { reason: Some(Reason::Timeout), .. })));
    }

    #[test]
    fn limits_are_ordered_shares() {
        assert!(RateLimits::default().problem().is_none());
        for (high, normal) in
            [(0.05, 0.1), (1.1, 0.1), (0.5, -0.1), (f64::NAN, 0.1), (0.1, f64::NAN)]
        {
            assert!(RateLimits { high, normal }.problem().is_some(), "{high} {normal}");
        }
    }
}
