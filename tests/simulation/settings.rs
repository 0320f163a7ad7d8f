//! What a harness is like, all of it drawn from its seed.

use std::time::Duration;

use fastrand::Rng;
use reqwest_failover::{
    Ambiguous, Breaker, Cooldown, Exhausted, HealthKey, Hedge, Provider, ProviderChain,
    ProviderChainBuilder, Verdict,
};

use crate::circuit::Rules;
use crate::list::{List, key};

/// How many providers a list has at most.
const SLOTS: usize = 6;
/// How many providers a slot has at most, one after the other.
const TIMES: usize = 4;

pub(crate) const NAMES: [&str; SLOTS * TIMES] = [
    "p0", "p1", "p2", "p3", "p4", "p5", "p6", "p7", "p8", "p9", "p10", "p11", "p12", "p13", "p14",
    "p15", "p16", "p17", "p18", "p19", "p20", "p21", "p22", "p23",
];

/// What requests are about, by their header `x-model`.
pub(crate) const HEALTH_KEYS: [&str; 3] = ["m0", "m1", "m2"];

/// How long an attempt may take at most where no limit is set and another provider is left.
pub(crate) const DEFAULT_ATTEMPT: Duration = Duration::from_secs(120);
/// How much longer than the request's own timeout an attempt is waited for: the client below has the
/// same timeout, and the better error.
pub(crate) const CLIENTS_TIMEOUT_FIRST: Duration = Duration::from_millis(5);
/// No shorter silence is news.
pub(crate) const SHORTEST_SILENCE: Duration = Duration::from_secs(1);
/// How much longer than its request a probe's lease lasts.
pub(crate) const LEASE_MARGIN: Duration = Duration::from_secs(1);
/// From this length on, the end of a cooldown is lent to one request.
pub(crate) const LENT_FROM: Duration = Duration::from_secs(1);
/// How long a key rests whose model the provider does not have.
pub(crate) const UNKNOWN_MODEL: Duration = Duration::from_secs(60);

pub(crate) struct Settings {
    /// Those of the first list, and those that may take their place in the order of the slots.
    pub(crate) providers: Vec<ProviderSettings>,
    /// How many providers the first list has.
    pub(crate) slots: usize,
    pub(crate) breaker: Option<BreakerSettings>,
    pub(crate) max_attempts: Option<usize>,
    pub(crate) attempt_timeout: Option<Duration>,
    pub(crate) total_timeout: Duration,
    /// How long the body of a failed answer is read.
    pub(crate) error_body_timeout: Duration,
    pub(crate) ambiguous: Ambiguous,
    pub(crate) exhausted: Exhausted,
    pub(crate) transient: bool,
    /// Whether an observer looks at every event.
    pub(crate) watched: bool,
    pub(crate) callers: usize,
    pub(crate) calls: u64,
    /// The longest pause between a caller's calls, in milliseconds.
    pub(crate) pause: u64,
    /// The share of the calls that are dropped on the way, in percent.
    pub(crate) dropped: u8,
    /// Whether providers are isolated, restored and reordered meanwhile.
    pub(crate) steered: bool,
    /// Whether the list is replaced meanwhile, too.
    pub(crate) replaced: bool,
    pub(crate) hedge: Option<HedgeSettings>,
    /// How many health keys there are; none where health is not kept by key.
    pub(crate) keys: usize,
    pub(crate) cooldown: CooldownSettings,
}

/// How long a provider rests.
#[derive(Clone, Copy)]
pub(crate) struct CooldownSettings {
    pub(crate) at_most: Duration,
    pub(crate) without_hint: Duration,
}

/// When a silent provider is hedged, and for which share of the requests at most.
#[derive(Clone, Copy)]
pub(crate) struct HedgeSettings {
    pub(crate) delay: Duration,
    pub(crate) max_extra: f64,
}

#[derive(Clone)]
pub(crate) struct ProviderSettings {
    pub(crate) attempt_timeout: Option<Duration>,
    /// The number of the host that it is at.
    pub(crate) host: usize,
    credential: Credential,
    /// The length of each phase in milliseconds, and how the provider is meanwhile.
    phases: Vec<(u64, Mood)>,
    pub(crate) max_in_flight: Option<u64>,
    /// How the provider is to a health key's requests in every other phase of so many milliseconds, if
    /// not as it is to all.
    by_key: [Option<(u64, Mood)>; HEALTH_KEYS.len()],
}

#[derive(Clone, Copy)]
enum Credential {
    Bearer,
    Header,
    Query,
    Basic,
}

#[derive(Clone, Copy)]
pub(crate) struct BreakerSettings {
    pub(crate) consecutive: u32,
    pub(crate) ratio: f64,
    pub(crate) minimum: u32,
    window: Duration,
    pub(crate) first_break: Duration,
    pub(crate) max_break: Duration,
}

/// How a provider is for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    Well,
    /// Fails this share of its requests, in percent, each in a way of its own.
    Brown(u8),
    Dead,
    Hanging,
    Slow,
    Limited,
    Breaking,
    Unreachable,
    Refusing,
    Redirecting,
    Locked,
    /// It does not have the model.
    Lacking,
}

impl Settings {
    pub(crate) fn draw(rng: &mut Rng, hedged: bool) -> Self {
        let total_timeout = ms(pick(rng, &[300, 2_000, 20_000, 600_000]));
        let attempt_timeout = chance(rng, 60).then(|| limit(rng, total_timeout));
        let providers = 1 + rng.usize(..SLOTS);
        let provider = |at| ProviderSettings::draw(at, rng, total_timeout);
        let mut settings = Self {
            providers: (0..providers).map(provider).collect(),
            slots: providers,
            breaker: chance(rng, 90).then(|| BreakerSettings::draw(rng)),
            max_attempts: chance(rng, 40).then(|| 1 + rng.usize(..4)),
            attempt_timeout,
            total_timeout,
            error_body_timeout: ms(pick(rng, &[100, 100, 100, 0, 20, 3_000])),
            ambiguous: pick(rng, &[Ambiguous::FailOver, Ambiguous::IdempotentOnly]),
            exhausted: pick(rng, &[Exhausted::LastOutcome, Exhausted::Error]),
            transient: chance(rng, 30),
            watched: chance(rng, 75),
            callers: pick(rng, &[1, 2, 4, 8, 16, 32, 64]),
            calls: rng.u64(100..=400),
            pause: pick(rng, &[0, 10, 300, 3_000, 30_000]),
            dropped: pick(rng, &[0, 5, 30]),
            steered: chance(rng, 50),
            replaced: false,
            hedge: None,
            keys: 0,
            cooldown: CooldownSettings::default(),
        };
        // Last, so that the rest is the same without it.
        settings.hedge = hedged.then(|| HedgeSettings::draw(rng, &settings));
        // From a number that is not taken, for the same reason.
        let mut later = Rng::with_seed(!rng.clone().u64(..));
        settings.draw_keys_and_capacity(&mut later);
        settings.replaced = settings.steered && chance(&mut later, 60);
        if settings.replaced {
            let once = settings.providers.len();
            settings.providers =
                settings.providers.iter().cycle().take(once * TIMES).cloned().collect();
        }
        settings
    }

    fn draw_keys_and_capacity(&mut self, rng: &mut Rng) {
        if chance(rng, 40) && self.breaker.is_some() {
            self.keys = 1 + rng.usize(..HEALTH_KEYS.len());
        }
        if chance(rng, 40) {
            self.cooldown = CooldownSettings::draw(rng);
        }
        let is_limited = chance(rng, 40);
        for provider in &mut self.providers {
            if is_limited && chance(rng, 60) {
                provider.max_in_flight = Some(pick(rng, &[1, 2, 4, 8]));
            }
            for mood in &mut provider.by_key[..self.keys] {
                let moods = [Mood::Limited, Mood::Limited, Mood::Dead, Mood::Lacking];
                let drawn = (pick(rng, &[300, 5_000, 50_000]), pick(rng, &moods));
                *mood = chance(rng, 50).then_some(drawn);
            }
        }
    }

    pub(crate) fn chain(&self) -> ProviderChainBuilder {
        let mut chain = ProviderChain::builder(List::new(self).providers(self))
            .claim("https://caller.test/v1")
            .total_timeout(self.total_timeout)
            .error_body_timeout(self.error_body_timeout)
            .on_ambiguous(self.ambiguous)
            .on_exhausted(self.exhausted)
            .cooldown(self.cooldown.cooldown());
        if self.keys > 0 {
            chain = chain.health_by(HealthKey::new(|request| {
                request.headers().get("x-model")?.to_str().ok().map(str::to_owned)
            }));
        }
        chain = match self.breaker {
            Some(breaker) => chain.breaker(breaker.breaker()),
            None => chain.without_health(),
        };
        if let Some(attempts) = self.max_attempts {
            chain = chain.max_attempts(attempts);
        }
        if let Some(limit) = self.attempt_timeout {
            chain = chain.attempt_timeout(limit);
        }
        if self.transient {
            chain = chain.classify(Verdict::transient);
        }
        if let Some(HedgeSettings { delay, max_extra }) = self.hedge {
            chain = chain.hedge(Hedge::after(delay).max_extra(max_extra));
        }
        chain
    }

    /// The limit that was set for this provider's attempts.
    pub(crate) fn explicit_limit(&self, provider: usize) -> Option<Duration> {
        self.providers[provider].attempt_timeout.or(self.attempt_timeout)
    }

    pub(crate) fn longest_rest(&self) -> Duration {
        let longest = |breaker: BreakerSettings| breaker.max_break.max(self.cooldown.at_most);
        self.breaker.map_or(Duration::ZERO, longest)
    }

    /// Whether the state of a provider that no list has is known: from events, or because it has none.
    pub(crate) fn is_known_unlisted(&self) -> bool {
        self.watched || self.breaker.is_none()
    }

    pub(crate) fn is_limited(&self) -> bool {
        self.providers.iter().any(|provider| provider.max_in_flight.is_some())
    }

    /// What moves every circuit, where anything does.
    pub(crate) fn rules(&self) -> Option<Rules> {
        self.breaker.map(|breaker| Rules { breaker, cooldown: self.cooldown })
    }
}

impl CooldownSettings {
    fn draw(rng: &mut Rng) -> Self {
        let at_most = pick(rng, &[300_000, 20_000, 1_200, 999, 500, 40]);
        let without_hint = pick(rng, &[5_000, 1_000, 200, 10]).min(at_most);
        Self { at_most: ms(at_most), without_hint: ms(without_hint) }
    }

    fn cooldown(self) -> Cooldown {
        Cooldown::default().at_most(self.at_most).without_hint(self.without_hint)
    }

    /// The length of the cooldown without a hint that follows so many others.
    pub(crate) fn unhinted(&self, number: u32) -> Duration {
        let doubled = (0..number.min(40)).fold(self.without_hint, |length, _| length * 2);
        doubled.min(self.at_most)
    }
}

impl Default for CooldownSettings {
    fn default() -> Self {
        Self { at_most: ms(300_000), without_hint: ms(5_000) }
    }
}

impl HedgeSettings {
    /// The delay is shorter than any attempt's limit.
    fn draw(rng: &mut Rng, settings: &Settings) -> Self {
        let shortest = settings.attempt_timeout.unwrap_or(DEFAULT_ATTEMPT);
        let longest = shortest.min(settings.total_timeout) - ms(1);
        Self {
            delay: ms(pick(rng, &[5, 40, 300, 1_500])).min(longest),
            max_extra: pick(rng, &[0.02, 0.2, 1.0]),
        }
    }
}

impl ProviderSettings {
    fn draw(at: usize, rng: &mut Rng, total: Duration) -> Self {
        use Credential::{Basic, Bearer, Header, Query};
        let phase = |rng: &mut Rng| (pick(rng, &[200, 3_000, 30_000, 200_000]), Mood::draw(rng));
        Self {
            attempt_timeout: chance(rng, 30).then(|| limit(rng, total)),
            host: if chance(rng, 25) { rng.usize(..=at) } else { at },
            credential: pick(rng, &[Bearer, Header, Query, Basic]),
            phases: (0..12).map(|_| phase(rng)).collect(),
            max_in_flight: None,
            by_key: [None; HEALTH_KEYS.len()],
        }
    }

    pub(crate) fn provider(&self, at: usize, number: u32) -> Provider {
        let (name, host, key) = (NAMES[at], NAMES[self.host], key(at, number));
        let provider = Provider::new(name, format!("https://{host}.test/{name}/v1"));
        let provider = match self.credential {
            Credential::Bearer => provider.bearer_auth(key),
            Credential::Header => provider.api_key_header("x-api-key", key),
            Credential::Query => provider.api_key_query("key", key),
            Credential::Basic => provider.basic_auth(key, "password"),
        };
        let provider = match self.attempt_timeout {
            Some(limit) => provider.attempt_timeout(limit),
            None => provider,
        };
        match self.max_in_flight {
            Some(most) => provider.max_in_flight(most as usize),
            None => provider,
        }
    }

    /// How the provider is after so long to a request with this health key; its phases come round.
    pub(crate) fn mood(&self, key: Option<usize>, after: Duration) -> Mood {
        if let Some((length, mood)) = key.and_then(|key| self.by_key[key])
            && (after.as_millis() as u64 / length).is_multiple_of(2)
        {
            return mood;
        }
        let round: u64 = self.phases.iter().map(|(length, _)| length).sum();
        let mut left = after.as_millis() as u64 % round;
        for (length, mood) in &self.phases {
            if left < *length {
                return *mood;
            }
            left -= length;
        }
        unreachable!("what is left is less than a round")
    }
}

impl BreakerSettings {
    fn draw(rng: &mut Rng) -> Self {
        let first_break = pick(rng, &[10, 500, 5_000, 30_000]);
        Self {
            consecutive: pick(rng, &[1, 2, 5, 20]),
            ratio: pick(rng, &[0.1, 0.5, 1.0]),
            minimum: pick(rng, &[1, 4, 10, 30]),
            window: ms(pick(rng, &[100, 5_000, 60_000])),
            first_break: ms(first_break),
            max_break: ms(first_break * pick(rng, &[1, 3, 10])),
        }
    }

    fn breaker(&self) -> Breaker {
        Breaker::default()
            .consecutive(self.consecutive)
            .ratio(self.ratio, self.minimum)
            .window(self.window)
            .breaks(self.first_break, self.max_break)
    }

    /// The longest that the `number`th break in a row may be; jitter takes up to half of it.
    pub(crate) fn break_length(&self, number: u32) -> Duration {
        let doubled = (1..number).fold(self.first_break, |length, _| {
            if length >= self.max_break { length } else { length * 2 }
        });
        doubled.min(self.max_break)
    }

    /// The fewest failures that can open it.
    pub(crate) fn fewest_failures(&self) -> u64 {
        let of_ratio = (self.ratio * f64::from(self.minimum)).ceil() as u64;
        of_ratio.min(u64::from(self.consecutive)).max(1)
    }
}

impl Mood {
    fn draw(rng: &mut Rng) -> Self {
        let share = rng.u8(1..100);
        let moods = [
            Self::Brown(share),
            Self::Brown(share / 4),
            Self::Dead,
            Self::Hanging,
            Self::Slow,
            Self::Limited,
            Self::Breaking,
            Self::Unreachable,
            Self::Refusing,
            Self::Redirecting,
            Self::Locked,
        ];
        if chance(rng, 30) { Self::Well } else { pick(rng, &moods) }
    }
}

pub(crate) fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub(crate) fn chance(rng: &mut Rng, percent: u8) -> bool {
    rng.u8(..100) < percent
}

pub(crate) fn pick<T: Copy>(rng: &mut Rng, from: &[T]) -> T {
    from[rng.usize(..from.len())]
}

fn limit(rng: &mut Rng, total: Duration) -> Duration {
    ms(pick(rng, &[20, 100, 1_000, 10_000])).min(total)
}
