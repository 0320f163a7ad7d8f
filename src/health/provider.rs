//! What the health table keeps of one provider.

use std::time::{Duration, Instant};

use super::circuit::{Circuit, Rules};
use super::keys::{KeyHealth, Keys};
use super::permit::{Of, Permit};
use super::ring::nanos;
use super::{Admission, Change, Changes, Concern, Counts, HealthSignal, State, UNMOVED};

#[derive(Debug)]
pub(super) struct ProviderHealth {
    pub(super) isolated: bool,
    pub(super) counts: Counts,
    pub(super) circuit: Circuit,
    keys: Option<Box<Keys>>,
    usual: Usual,
    /// How many requests it may have at once.
    pub(super) max_in_flight: u64,
    /// When it was last passed over because it had as many.
    passed_over: Option<Instant>,
    /// How often it has answered 404 and nothing else; `ANSWERED` once that is settled.
    not_found: u8,
}

/// The moving average of times to headers, in nanoseconds; zero before the first answer.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Usual(u64);

impl ProviderHealth {
    /// The answer with which a base URL that holds no API becomes likely.
    const NOT_FOUND: u8 = 10;
    /// It has given another answer, or what it has not given was reported.
    const ANSWERED: u8 = u8::MAX;
    /// As long as it is passed over more often than this, it is at its limit for one time.
    const ROOM_FOR: Duration = Duration::from_secs(60);

    #[inline]
    pub(super) fn admission(&self, key: Option<&[u8]>, now: Instant) -> Admission {
        if self.isolated {
            return Admission::Isolated;
        }
        if self.counts.in_flight >= self.max_in_flight {
            return Admission::AtCapacity;
        }
        let own = self.circuit.admission(now);
        match (key, &self.keys) {
            (Some(key), Some(keys)) => own.and(keys.admission(key, now)),
            _ => own,
        }
    }

    #[inline]
    pub(super) fn admit(
        &mut self,
        provider: usize,
        key: Option<&[u8]>,
        sequence: u64,
        now: Instant,
        lease_until: Instant,
    ) -> Permit {
        self.counts.attempts += 1;
        self.counts.in_flight += 1;
        let own = self.circuit.admit(sequence, now, lease_until);
        let mut permit = Permit::new(provider, sequence, now, own);
        if let Some(key) = key {
            let keys = self.keys.get_or_insert_default();
            let (slot, admitted) = keys.admit(key, sequence, now, lease_until);
            permit.set_key(slot, admitted);
        }
        permit
    }

    /// An answer came, after so long.
    #[inline]
    pub(super) fn record_answer(
        &mut self,
        permit: &Permit,
        not_found: bool,
        time: Duration,
    ) -> Option<Change> {
        self.usual_of(permit).record(time);
        if self.not_found == Self::ANSWERED {
            return None;
        }
        self.count_not_found(not_found)
    }

    #[cold]
    fn count_not_found(&mut self, not_found: bool) -> Option<Change> {
        if !not_found {
            self.not_found = Self::ANSWERED;
            return None;
        }
        self.not_found += 1;
        (self.not_found == Self::NOT_FOUND).then(|| {
            self.not_found = Self::ANSWERED;
            Change::OnlyNotFound
        })
    }

    pub(super) fn is_silence(&mut self, permit: &Permit, quiet_for: Duration) -> bool {
        self.usual_of(permit).is_silence(quiet_for)
    }

    /// A slow model is no reason to wait for a quick one.
    #[inline]
    fn usual_of(&mut self, permit: &Permit) -> &mut Usual {
        let of_key = permit.key.zip(self.keys.as_mut()).and_then(|(key, keys)| keys.of(key));
        of_key.map_or(&mut self.usual, |key| &mut key.usual)
    }

    /// Takes a permit off the count, unless its answer counts in its place. Its leases end.
    #[inline]
    pub(super) fn take_back(&mut self, permit: &Permit) {
        if !permit.is_detached {
            self.leave();
        }
        if permit.is_probe() {
            self.end_leases(permit);
        }
    }

    #[cold]
    fn end_leases(&mut self, permit: &Permit) {
        self.circuit.end_lease(permit.sequence);
        if let Some(key) = self.key_of(permit) {
            key.circuit.end_lease(permit.sequence);
        }
    }

    #[inline]
    pub(super) fn leave(&mut self) {
        self.counts.in_flight = self.counts.in_flight.saturating_sub(1);
    }

    #[inline]
    pub(super) fn record(
        &mut self,
        permit: &Permit,
        signal: HealthSignal,
        concern: Concern,
        rules: &mut Rules<'_>,
    ) -> Changes {
        if signal == HealthSignal::Success && self.succeed(permit, rules) {
            return Changes::default();
        }
        self.record_any(permit, signal, concern, rules)
    }

    /// What nearly every outcome is, without the rules that agree: a success where all is well. Whether
    /// that is so.
    #[inline]
    pub(super) fn succeed(&mut self, permit: &Permit, rules: &Rules<'_>) -> bool {
        let Self { circuit, keys, .. } = self;
        if !circuit.is_well() {
            return false;
        }
        if let (Some(key), Some(keys)) = (permit.key, keys)
            && let Some(key) = keys.of(key)
        {
            if !key.circuit.is_well() {
                return false;
            }
            key.circuit.succeed(permit.ticket(Of::Key), rules.tick, rules.now);
        }
        circuit.succeed(permit.ticket(Of::Provider), rules.tick, rules.now);
        true
    }

    /// What counts for the key says nothing of the provider, and the reverse.
    fn record_any(
        &mut self,
        permit: &Permit,
        signal: HealthSignal,
        concern: Concern,
        rules: &mut Rules<'_>,
    ) -> Changes {
        let ticket = permit.ticket(Of::Provider);
        let (own, of_key) = match (signal, concern) {
            (HealthSignal::Success | HealthSignal::Neutral, _) => (signal, signal),
            (HealthSignal::UnknownModel, _) => (HealthSignal::Neutral, signal),
            (_, Concern::Key) if permit.key.is_some() => (HealthSignal::Nothing, signal),
            _ => (signal, HealthSignal::Nothing),
        };
        let own = self.circuit.record(ticket, own, rules);
        let ticket = permit.ticket(Of::Key);
        let key = self.key_of(permit);
        let key = key.map_or(UNMOVED, |key| key.circuit.record(ticket, of_key, rules));
        Changes::of(own, key)
    }

    /// Probes whose lease ran out, and was lent to another, are none any more.
    #[cold]
    pub(super) fn forget_lost_leases(&mut self, permit: &mut Permit) {
        let sequence = permit.sequence;
        if !self.circuit.holds_lease(sequence) && permit.is_own_probe() {
            permit.lose_lease(Of::Provider);
        }
        let key = self.key_of(permit);
        if permit.is_key_probe() && !key.is_some_and(|key| key.circuit.holds_lease(sequence)) {
            permit.lose_lease(Of::Key);
        }
    }

    /// A stream has begun well.
    pub(super) fn commit(&mut self, permit: &mut Permit, rules: &Rules<'_>) -> Changes {
        let mut ticket = permit.ticket(Of::Provider);
        let own = self.circuit.commit(&mut ticket, rules);
        permit.mark(Of::Provider, ticket);
        let mut ticket = permit.ticket(Of::Key);
        let key = self.key_of(permit);
        let key = key.and_then(|key| key.circuit.commit(&mut ticket, rules));
        permit.mark(Of::Key, ticket);
        Changes::of([own, None], [key, None])
    }

    #[inline]
    fn key_of(&mut self, permit: &Permit) -> Option<&mut KeyHealth> {
        self.keys.as_mut()?.of(permit.key?)
    }

    /// It was passed over at its limit. Whether that is to be reported: not while it has been so
    /// all along.
    pub(super) fn pass_over(&mut self, now: Instant) -> bool {
        let last = self.passed_over.replace(now);
        last.is_none_or(|last| now.saturating_duration_since(last) > Self::ROOM_FOR)
    }

    #[inline]
    pub(super) fn state(&self, now: Instant) -> State {
        if self.isolated {
            return State::Isolated;
        }
        match self.circuit.state(now) {
            State::Closed if self.counts.in_flight >= self.max_in_flight => State::AtCapacity,
            state => state,
        }
    }

    pub(super) fn resting_keys(&self, now: Instant) -> impl Iterator<Item = (&[u8], State)> {
        let keys = self.keys.iter().flat_map(move |keys| keys.resting(now));
        keys.map(|(name, state)| (&**name, state))
    }
}

impl Default for ProviderHealth {
    fn default() -> Self {
        Self {
            isolated: false,
            counts: Counts::default(),
            circuit: Circuit::default(),
            keys: None,
            usual: Usual::default(),
            max_in_flight: u64::MAX,
            passed_over: None,
            not_found: 0,
        }
    }
}

impl Usual {
    /// No shorter silence says anything: that long, a healthy provider may take.
    const SHORTEST_SILENCE: u64 = 1_000_000_000;

    #[inline]
    fn record(&mut self, time: Duration) {
        let time = nanos(time);
        self.0 = match self.0 {
            0 => time,
            usual => usual - usual / 8 + time / 8,
        };
    }

    fn is_silence(self, quiet_for: Duration) -> bool {
        nanos(quiet_for) > self.0.saturating_mul(2).max(Self::SHORTEST_SILENCE)
    }
}
