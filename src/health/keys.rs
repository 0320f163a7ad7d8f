//! The health of each of a provider's keys: what a request is about, such as its model.
//!
//! Keys come from outside, so there is a limit to them: what is least worth keeping makes room.

use std::cell::Cell;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Instant;

use super::circuit::Circuit;
use super::permit::{Admitted, KeySlot};
use super::provider::Usual;
use super::{Admission, State};

/// How many keys a provider has at most.
pub(crate) const MOST_KEYS: usize = 256;

/// The health of a provider's keys.
#[derive(Debug, Default)]
pub(super) struct Keys {
    slots: Vec<KeyHealth>,
    of_name: HashMap<Arc<[u8]>, u16, BuildHasherDefault<NameHasher>>,
    /// Where the key is that was looked up last: a request looks for its own more than once.
    last: Cell<u16>,
}

/// The health of one key.
#[derive(Debug)]
pub(super) struct KeyHealth {
    name: Arc<[u8]>,
    /// Counts the keys that this slot has held.
    tenant: NonZeroU32,
    /// The last permit that was given out for it.
    used: u64,
    pub(super) circuit: Circuit,
    pub(super) usual: Usual,
}

impl Keys {
    /// A key that is not known is well.
    pub(super) fn admission(&self, name: &[u8], now: Instant) -> Admission {
        match self.find(name) {
            Some(slot) => self.slots[usize::from(slot)].circuit.admission(now),
            None => Admission::Available,
        }
    }

    /// Where a key is kept, if it is.
    #[inline]
    fn find(&self, name: &[u8]) -> Option<u16> {
        let last = self.last.get();
        if self.slots.get(usize::from(last)).is_some_and(|key| *key.name == *name) {
            return Some(last);
        }
        let slot = *self.of_name.get(name)?;
        self.last.set(slot);
        Some(slot)
    }

    pub(super) fn admit(
        &mut self,
        name: &[u8],
        sequence: u64,
        now: Instant,
        lease_until: Instant,
    ) -> (KeySlot, Admitted) {
        let slot = self.find(name).unwrap_or_else(|| self.insert(name, now));
        let KeyHealth { tenant, used, circuit, .. } = &mut self.slots[usize::from(slot)];
        *used = sequence;
        let admitted = circuit.admit(sequence, now, lease_until);
        (KeySlot { slot, tenant: *tenant }, admitted)
    }

    /// The key that a permit was given out for, unless it had to make room meanwhile.
    #[inline]
    pub(super) fn of(&mut self, key: KeySlot) -> Option<&mut KeyHealth> {
        self.slots.get_mut(usize::from(key.slot)).filter(|slot| slot.tenant == key.tenant)
    }

    /// The keys that are not closed, with the state of each.
    pub(super) fn resting(&self, now: Instant) -> impl Iterator<Item = (&Arc<[u8]>, State)> {
        let state = move |slot: &KeyHealth| slot.circuit.state(now);
        let slots = self.slots.iter().map(move |slot| (&slot.name, state(slot)));
        slots.filter(|(_, state)| *state != State::Closed)
    }

    #[cold]
    fn insert(&mut self, name: &[u8], now: Instant) -> u16 {
        let name: Arc<[u8]> = name.into();
        let at = match self.slots.len() < MOST_KEYS {
            true => {
                self.slots.push(KeyHealth::new(name.clone(), NonZeroU32::MIN));
                self.slots.len() - 1
            }
            false => {
                let at = self.least_worth(now);
                let slot = &mut self.slots[at];
                self.of_name.remove(&slot.name);
                *slot = KeyHealth::new(name.clone(), slot.tenant.saturating_add(1));
                at
            }
        };
        let slot = at as u16;
        self.of_name.insert(name, slot);
        slot
    }

    /// The key that was used least recently: of those that are well, else of those that rest, else of
    /// those whose breaker is open.
    fn least_worth(&self, now: Instant) -> usize {
        let worth = |at: &usize| {
            let KeyHealth { circuit, used, .. } = &self.slots[*at];
            (circuit.is_open(), circuit.is_resting(now), *used)
        };
        (0..self.slots.len()).min_by_key(worth).unwrap_or(0)
    }
}

impl KeyHealth {
    fn new(name: Arc<[u8]>, tenant: NonZeroU32) -> Self {
        Self { name, tenant, used: 0, circuit: Circuit::default(), usual: Usual::default() }
    }
}

/// A quick hash, for names that are short. That names can be made to collide does no harm: there are few.
#[derive(Default)]
struct NameHasher(u64);

impl NameHasher {
    #[inline]
    fn add(&mut self, word: u64) {
        // The fractional part of the golden ratio.
        const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(FACTOR);
    }
}

impl Hasher for NameHasher {
    #[inline]
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        words.iter().for_each(|word| self.add(u64::from_le_bytes(*word)));
        rest.iter().for_each(|byte| self.add(u64::from(*byte)));
    }

    #[inline]
    fn finish(&self) -> u64 {
        // The highest bits are mixed best. A map takes the lowest.
        self.0.rotate_left(9)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::hash::BuildHasher;

    use super::*;

    #[test]
    fn names_are_spread_over_all_buckets() {
        const BUCKETS: u64 = 512;
        type Name = fn(u64) -> String;
        let names: [Name; 5] = [
            |number| number.to_string(),
            |number| format!("gpt-4o-{number}"),
            |number| format!("{number:08}"),
            |number| format!("model-{number:010}"),
            |number| format!("model-{number:04}-preview"),
        ];
        let hasher = BuildHasherDefault::<NameHasher>::default();
        for name in names {
            let hash = |number| hasher.hash_one(name(number).as_bytes());
            let hashes: Vec<u64> = (0..BUCKETS).map(hash).collect();
            let buckets: HashSet<u64> = hashes.iter().map(|hash| hash % BUCKETS).collect();
            assert!(buckets.len() > 256, "{}: {} buckets", name(1), buckets.len());
            // By these a map tells names apart that share a bucket.
            let tags: HashSet<u64> = hashes.iter().map(|hash| hash >> 57).collect();
            assert!(tags.len() > 32, "{}: {} tags", name(1), tags.len());
        }
    }
}
