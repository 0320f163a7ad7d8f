//! The health of each of a provider's keys: what a request is about, such as its model.
//!
//! Keys come from outside, so there is a limit to them: what is least worth keeping makes room.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use super::circuit::Circuit;
use super::permit::{KeyStanding, Standing};
use super::provider::Usual;
use super::{Admission, State};

/// How many keys a provider has at most.
pub(crate) const MOST_KEYS: usize = 256;

/// The health of a provider's keys.
#[derive(Debug, Default)]
pub(super) struct Keys {
    slots: Vec<Slot>,
    of_name: HashMap<Arc<str>, u16>,
}

/// The health of one key.
#[derive(Debug)]
pub(super) struct Slot {
    name: Arc<str>,
    /// Counts the keys that this slot has held.
    tenant: u32,
    /// The last permit that was given out for it.
    used: u64,
    pub(super) circuit: Circuit,
    pub(super) usual: Usual,
}

impl Keys {
    /// A key that is not known is well.
    pub(super) fn admission(&self, name: &str, now: Instant) -> Admission {
        match self.of_name.get(name) {
            Some(slot) => self.slots[usize::from(*slot)].circuit.admission(now),
            None => Admission::Available,
        }
    }

    pub(super) fn admit(
        &mut self,
        name: &str,
        sequence: u64,
        now: Instant,
        lease_until: Instant,
    ) -> KeyStanding {
        let slot = match self.of_name.get(name) {
            Some(slot) => *slot,
            None => self.insert(name, now),
        };
        let Slot { tenant, used, circuit, .. } = &mut self.slots[usize::from(slot)];
        *used = sequence;
        let admitted = circuit.admit(sequence, now, lease_until);
        KeyStanding { slot, tenant: *tenant, standing: Standing::new(admitted) }
    }

    /// The key that a permit was given out for, unless it had to make room meanwhile.
    #[inline]
    pub(super) fn of(&mut self, key: KeyStanding) -> Option<&mut Slot> {
        self.slots.get_mut(usize::from(key.slot)).filter(|slot| slot.tenant == key.tenant)
    }

    /// The keys that are not closed, with the state of each.
    pub(super) fn resting(&self, now: Instant) -> impl Iterator<Item = (&Arc<str>, State)> {
        let state = move |slot: &Slot| slot.circuit.state(now);
        let slots = self.slots.iter().map(move |slot| (&slot.name, state(slot)));
        slots.filter(|(_, state)| *state != State::Closed)
    }

    #[cold]
    fn insert(&mut self, name: &str, now: Instant) -> u16 {
        let name: Arc<str> = name.into();
        let at = match self.slots.len() < MOST_KEYS {
            true => {
                self.slots.push(Slot::new(name.clone(), 0));
                self.slots.len() - 1
            }
            false => {
                let at = self.least_worth(now);
                let slot = &mut self.slots[at];
                self.of_name.remove(&slot.name);
                *slot = Slot::new(name.clone(), slot.tenant.wrapping_add(1));
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
            let Slot { circuit, used, .. } = &self.slots[*at];
            (circuit.is_open(), circuit.is_resting(now), *used)
        };
        (0..self.slots.len()).min_by_key(worth).unwrap_or(0)
    }
}

impl Slot {
    fn new(name: Arc<str>, tenant: u32) -> Self {
        Self { name, tenant, used: 0, circuit: Circuit::default(), usual: Usual::default() }
    }
}
