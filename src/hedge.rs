//! When a silent provider is worth a second request, and how many of those a chain may send.
//!
//! A hedge trades money for time: most requests are answered soon, a few hang, and asking another
//! provider costs one call where waiting costs seconds. What keeps that from doubling the bill is the
//! allowance: each request earns a small part of a hedge.

use std::time::Duration;

/// Asks the next provider too when one has been silent for a while; the first answer is served.
///
/// **A hedged request may be processed, and billed, twice**: the slower provider's attempt is
/// dropped, and reported as [`Reason::Abandoned`](crate::Reason::Abandoned), but it may have done its
/// work. So hedging is off by default, there is at most one hedge per request, and only for 5 % of
/// the requests. A body that can be sent only once is never hedged, and under
/// [`Ambiguous::IdempotentOnly`](crate::Ambiguous::IdempotentOnly) nor is a request that is not
/// idempotent. The hedge goes to the next healthy provider in order: never one whose circuit
/// breaker is open or that is cooling down.
///
/// Silence ends with the response's headers, or with its first content under
/// [`inspect`](crate::ProviderChainBuilder::inspect). A provider that loses to a later
/// attempt gets one failure in a row for its circuit breaker, and no failure for anything else. An
/// answer of status 400 or above that a judge accepts does not win: it is kept while the other attempt
/// is in flight, and served if that one has no better answer.
///
/// ```
/// use std::time::Duration;
/// use reqwest_failover::{Hedge, Provider, ProviderChain};
///
/// let chain = ProviderChain::builder([Provider::cometapi("key-a"), Provider::openai("key-b")])
///     .hedge(Hedge::after(Duration::from_secs(2)).max_extra(0.02))
///     .build()?;
/// # Ok::<(), reqwest_failover::ConfigError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Hedge {
    delay: Delay,
    max_extra: f64,
}

impl Hedge {
    /// Asks the next provider when one has been silent for this long; longer than zero.
    pub fn after(delay: Duration) -> Self {
        Self { delay: Delay::Fixed(delay), max_extra: DEFAULT_MAX_EXTRA }
    }

    /// Asks the next provider when one has been silent for twice the median of its last 64 answers.
    /// Never before it has given 20.
    pub fn adaptive() -> Self {
        Self { delay: Delay::Adaptive, max_extra: DEFAULT_MAX_EXTRA }
    }

    /// The most hedges, as a share of the requests that the chain sends. Default 0.05; above 0 and at
    /// most 1. Every request earns its share when it is first sent, and a new chain has earned
    /// nothing: with 0.02, the first hedge comes after 50 requests. What quiet times leave unused is
    /// kept, up to what 100 requests earn and at least one hedge: with 0.05, five hedges in a row.
    pub fn max_extra(mut self, share: f64) -> Self {
        self.max_extra = share;
        self
    }

    /// What is wrong with these settings, where attempts are given up after `limit`.
    pub(crate) fn problem(&self, limit: Duration) -> Option<&'static str> {
        match self.delay {
            Delay::Fixed(delay) if delay.is_zero() => Some("the delay must be longer than zero"),
            Delay::Fixed(delay) if delay >= limit => {
                Some("the delay must be shorter than the attempt timeout and the total timeout")
            }
            _ if !(self.max_extra > 0.0 && self.max_extra <= 1.0) => {
                Some("max_extra must be above 0 and at most 1")
            }
            _ => None,
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Delay {
    Fixed(Duration),
    Adaptive,
}

const DEFAULT_MAX_EXTRA: f64 = 0.05;

/// What a chain's hedges have in common: how fast each provider usually is, and what is left of the
/// allowance.
#[derive(Debug)]
pub(crate) struct Hedging {
    delay: Delay,
    latencies: Vec<Latencies>,
    /// In millionths of a hedge, so that no rounding adds up.
    deposit_per_request: u64,
    balance: u64,
    /// The most that is kept.
    most: u64,
}

impl Hedging {
    pub(crate) fn new(hedge: &Hedge, providers: usize) -> Self {
        let deposit_per_request = ((hedge.max_extra * ONE as f64).round() as u64).max(1);
        Self {
            delay: hedge.delay,
            latencies: vec![Latencies::default(); providers],
            deposit_per_request,
            balance: 0,
            most: (KEPT_REQUESTS * deposit_per_request).max(ONE),
        }
    }

    /// Forgets how long the provider of this id took: another one has it now.
    pub(crate) fn renew(&mut self, provider: usize) {
        if provider >= self.latencies.len() {
            self.latencies.resize_with(provider + 1, Latencies::default);
        }
        self.latencies[provider] = Latencies::default();
    }

    /// A request is sent.
    pub(crate) fn deposit(&mut self) {
        self.balance = (self.balance + self.deposit_per_request).min(self.most);
    }

    /// Whether one more hedge is within the allowance; it is taken off if so.
    pub(crate) fn withdraw(&mut self) -> bool {
        let left = self.balance.checked_sub(ONE);
        self.balance = left.unwrap_or(self.balance);
        left.is_some()
    }

    /// How long the provider may be silent before it is hedged.
    pub(crate) fn delay(&self, provider: usize) -> Option<Duration> {
        match self.delay {
            Delay::Fixed(delay) => Some(delay),
            Delay::Adaptive => Some(self.latencies[provider].median()?.saturating_mul(2)),
        }
    }

    /// The provider answered.
    pub(crate) fn record(&mut self, provider: usize, latency: Duration) {
        if matches!(self.delay, Delay::Adaptive) {
            self.latencies[provider].record(latency);
        }
    }
}

#[cfg(test)]
impl Hedging {
    /// So many hedges, and no more are earned.
    pub(crate) fn with_balance(hedge: &Hedge, providers: usize, hedges: u64) -> Self {
        let hedging = Self::new(hedge, providers);
        let balance = hedges * ONE;
        Self { deposit_per_request: 0, balance, most: balance, ..hedging }
    }
}

/// A whole hedge.
const ONE: u64 = 1_000_000;
/// As many requests' deposits are kept, but at least one hedge.
const KEPT_REQUESTS: u64 = 100;

/// How long a provider took for its last answers.
#[derive(Clone, Debug, Default)]
struct Latencies {
    last: Vec<Duration>,
    next: usize,
}

impl Latencies {
    const MOST: usize = 64;
    const FEWEST: usize = 20;

    fn record(&mut self, latency: Duration) {
        if self.last.len() < Self::MOST {
            self.last.push(latency);
        } else {
            self.last[self.next] = latency;
            self.next = (self.next + 1) % Self::MOST;
        }
    }

    fn median(&self) -> Option<Duration> {
        if self.last.len() < Self::FEWEST {
            return None;
        }
        let mut sorted = self.last.clone();
        let middle = sorted.len() / 2;
        Some(*sorted.select_nth_unstable(middle).1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn never_more_hedges_than_the_share_allows() {
        for (share, requests, allowed) in
            [(0.05, 19, 0), (0.05, 20, 1), (0.05, 999, 49), (1.0, 7, 7)]
        {
            let mut hedging = Hedging::new(&Hedge::after(MS).max_extra(share), 1);
            let mut withdrawn = 0;
            for _ in 0..requests {
                hedging.deposit();
                withdrawn += u32::from(hedging.withdraw());
            }
            assert_eq!(withdrawn, allowed, "{share} of {requests}");
        }
    }

    #[test]
    fn quiet_times_are_kept_up_to_what_a_hundred_requests_earn() {
        for (share, kept) in [(0.05, 5), (0.00001, 1), (1.0, 100)] {
            let mut hedging = Hedging::new(&Hedge::after(MS).max_extra(share), 1);
            (0..100_000).for_each(|_| hedging.deposit());
            let withdrawn = (0..20_000).filter(|_| hedging.withdraw()).count();
            assert_eq!(withdrawn, kept, "{share}");
        }
    }

    #[test]
    fn an_adaptive_delay_is_twice_the_median_of_the_last_64_answers() {
        let mut hedging = Hedging::new(&Hedge::adaptive(), 2);
        for latency in 1..=19 {
            hedging.record(1, latency * MS);
            assert_eq!(hedging.delay(1), None);
        }
        hedging.record(1, 20 * MS);
        assert_eq!(hedging.delay(1), Some(22 * MS));
        assert_eq!(hedging.delay(0), None, "each provider has its own");
        (0..100).for_each(|_| hedging.record(1, 7 * MS));
        assert_eq!(hedging.delay(1), Some(14 * MS));
        (0..33).for_each(|_| hedging.record(1, Duration::MAX));
        assert_eq!(hedging.delay(1), Some(Duration::MAX));
    }

    #[test]
    fn the_65th_answer_takes_the_place_of_the_first() {
        let mut hedging = Hedging::new(&Hedge::adaptive(), 1);
        (0..33).for_each(|_| hedging.record(0, MS));
        (0..31).for_each(|_| hedging.record(0, 9 * MS));
        assert_eq!(hedging.delay(0), Some(2 * MS));
        hedging.record(0, 9 * MS);
        assert_eq!(hedging.delay(0), Some(18 * MS));
    }

    #[test]
    fn a_fixed_delay_is_the_same_for_all() {
        let mut hedging = Hedging::new(&Hedge::after(3 * MS), 1);
        hedging.record(0, 500 * MS);
        assert_eq!(hedging.delay(0), Some(3 * MS));
    }

    #[test]
    fn settings_that_make_no_sense_are_named() {
        let limit = 100 * MS;
        for wrong in [
            Hedge::after(Duration::ZERO),
            Hedge::after(limit),
            Hedge::adaptive().max_extra(0.0),
            Hedge::adaptive().max_extra(1.1),
            Hedge::adaptive().max_extra(f64::NAN),
        ] {
            assert!(wrong.problem(limit).is_some(), "{wrong:?}");
        }
        assert!(Hedge::after(99 * MS).max_extra(1.0).problem(limit).is_none());
        assert!(Hedge::adaptive().problem(limit).is_none());
    }
}
