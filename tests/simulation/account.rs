//! What is known of one provider.

use std::time::{Duration, Instant};

use crate::call::{End, Entry};
use crate::circuit::{Admitted, Circuit, Lease, News, Rules};
use crate::settings::{HEALTH_KEYS, SHORTEST_SILENCE};

#[derive(Default)]
pub(crate) struct Account {
    pub(crate) attempts: u64,
    pub(crate) served: u64,
    pub(crate) failures: u64,
    /// As the provider has it: where it is limited, an answer counts until its body is over.
    pub(crate) in_flight: u64,
    /// Its health apart from any key.
    own: Health,
    /// Its health for each health key.
    keys: [Health; HEALTH_KEYS.len()],
    /// How often it was passed over because it was at its limit, and when last.
    pub(crate) passed_over: u64,
    last_passed_over: Option<Instant>,
    /// How often that was news, and how often it was emitted.
    pub(crate) crossings: u64,
    pub(crate) crossings_told: u64,
    /// Whether it was isolated when a list took its place.
    pub(crate) is_isolated: bool,
}

#[derive(Default)]
pub(crate) struct Health {
    pub(crate) circuit: Circuit,
    /// The moving average of the times to headers, in nanoseconds.
    usual: u64,
}

impl Account {
    /// As long as it is passed over more often than this, it is at its limit for one time.
    const ROOM_FOR: Duration = Duration::from_secs(60);

    /// Its circuit for a key, else its own.
    pub(crate) fn circuit(&self, key: Option<usize>) -> &Circuit {
        &key.map_or(&self.own, |key| &self.keys[key]).circuit
    }

    pub(crate) fn circuit_mut(&mut self, key: Option<usize>) -> &mut Circuit {
        &mut self.health_mut(key).circuit
    }

    pub(crate) fn health_mut(&mut self, key: Option<usize>) -> &mut Health {
        match key {
            Some(key) => &mut self.keys[key],
            None => &mut self.own,
        }
    }

    /// Each circuit, and of which key it is.
    pub(crate) fn circuits(&mut self) -> impl Iterator<Item = (Option<usize>, &mut Circuit)> {
        let keys = self.keys.iter_mut().enumerate();
        let keys = keys.map(|(key, health)| (Some(key), &mut health.circuit));
        std::iter::once((None, &mut self.own.circuit)).chain(keys)
    }

    /// An attempt begins, which is its own probe, or its key's, by these leases.
    pub(crate) fn admit(
        &mut self,
        key: Option<usize>,
        probes: [Option<Lease>; 2],
        now: Instant,
    ) -> (Admitted, Option<(usize, Admitted)>) {
        self.attempts += 1;
        self.in_flight += 1;
        let [own, of_key] = probes;
        let own = self.circuit_mut(None).admit(own, now);
        (own, key.map(|key| (key, self.circuit_mut(Some(key)).admit(of_key, now))))
    }

    /// An attempt of this call has ended. What it says of the provider says nothing of its keys, and what
    /// it says of one key says nothing of another one, nor of the provider.
    pub(crate) fn hear(&mut self, call: u64, entry: &Entry, rules: Option<&Rules>) {
        let Some(End { at, news, concerns_provider, .. }) = entry.end else { return };
        self.failures += u64::from(news == News::Failure);
        let (own, of_key) = match news {
            News::Success | News::Alive => (news, news),
            News::UnknownModel => (News::Alive, news),
            _ if entry.of_key.is_some() && !concerns_provider => (News::None, news),
            _ => (news, News::None),
        };
        let of_key = entry.of_key.map(|(key, admitted)| (Some(key), admitted, of_key));
        for (key, admitted, news) in [(None, entry.own, own)].into_iter().chain(of_key) {
            let circuit = self.circuit_mut(key);
            let had_lease = circuit.end_lease(call);
            if let Some(rules) = rules {
                circuit.hear(&admitted, had_lease, news, rules, at);
            }
        }
    }

    /// How many requests were lent the end of a cooldown, its own or a key's.
    pub(crate) fn lent(&self) -> u64 {
        let keys: u64 = self.keys.iter().map(|key| key.circuit.lent).sum();
        keys + self.own.circuit.lent
    }

    /// How often a key began to rest, or its breaker moved.
    pub(crate) fn key_moves(&self) -> u64 {
        self.keys.iter().map(|key| key.circuit.moves + key.circuit.rests).sum()
    }

    /// It was passed over at its limit. That is news once, until it has had room for a minute.
    pub(crate) fn pass_over(&mut self, now: Instant) {
        self.passed_over += 1;
        let last = self.last_passed_over.replace(now);
        self.crossings += u64::from(last.is_none_or(|last| now - last > Self::ROOM_FOR));
    }
}

impl Health {
    /// The provider took so long to its headers.
    pub(crate) fn learn(&mut self, time: Duration) {
        let time = time.as_nanos() as u64;
        self.usual = match self.usual {
            0 => time,
            usual => usual - usual / 8 + time / 8,
        };
    }

    /// Whether such a silence is long: more than a second, and than twice the usual time.
    pub(crate) fn is_long(&self, silence: Duration) -> bool {
        silence > SHORTEST_SILENCE && silence.as_nanos() > 2 * u128::from(self.usual)
    }
}
