//! Which providers there are, and which take their place.

use fastrand::Rng;
use reqwest_failover::{Provider, Snapshot, State};

use crate::account::Account;
use crate::ledger::Ledger;
use crate::settings::{NAMES, Settings, chance};

/// The providers that calls begin with.
#[derive(Clone)]
pub(crate) struct List {
    /// The provider of each slot, where there is one.
    slots: Vec<Option<usize>>,
    /// The last provider that each slot had. One that is gone does not come back.
    last: Vec<usize>,
    /// The number of each provider's key.
    pub(crate) keys: Vec<u32>,
    /// How many lists there were before.
    pub(crate) number: u64,
}

impl List {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self {
            slots: (0..settings.slots).map(Some).collect(),
            last: (0..settings.slots).collect(),
            keys: vec![0; settings.providers.len()],
            number: 0,
        }
    }

    /// The provider in this slot.
    pub(crate) fn at(&self, slot: usize) -> Option<usize> {
        self.slots[slot]
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.iter().flatten().count()
    }

    pub(crate) fn has(&self, provider: usize) -> bool {
        self.slots.contains(&Some(provider))
    }

    /// Another list: some providers go, others take their place, and keys are new.
    pub(crate) fn draw_next(&self, settings: &Settings, rng: &mut Rng) -> Self {
        let mut next = Self { number: self.number + 1, ..self.clone() };
        if settings.is_known_unlisted() {
            for slot in 0..self.slots.len() {
                let later = self.last[slot] + settings.slots;
                let later = Some(later).filter(|later| *later < settings.providers.len());
                match (rng.u8(..20), self.slots[slot]) {
                    (0, Some(_)) => next.slots[slot] = None,
                    (1 | 2, Some(_)) | (..8, None) => next.slots[slot] = later,
                    _ => {}
                }
                next.last[slot] = next.slots[slot].unwrap_or(self.last[slot]);
            }
        }
        if next.len() == 0 {
            next = Self { number: self.number + 1, ..self.clone() };
        }
        for provider in next.slots.iter().flatten() {
            next.keys[*provider] += u32::from(chance(rng, 50));
        }
        next
    }

    /// In the order of the slots.
    pub(crate) fn providers(&self, settings: &Settings) -> Vec<Provider> {
        let provider = |at: &usize| settings.providers[*at].provider(*at, self.keys[*at]);
        self.slots.iter().flatten().map(provider).collect()
    }
}

/// A provider's key of this number, which is looked for at every other one.
pub(crate) fn key(provider: usize, number: u32) -> String {
    format!("key-of-{}-number-{number}", NAMES[provider])
}

impl Ledger {
    /// Draws another list, in a random order.
    pub(crate) fn draw_list(&mut self, settings: &Settings) -> (List, Vec<Provider>) {
        let list = self.list.draw_next(settings, &mut self.rng);
        let mut providers = list.providers(settings);
        self.rng.shuffle(&mut providers);
        (list, providers)
    }

    /// The providers that the list lacks stay as they are: nothing names them any more.
    pub(crate) fn adopt(&mut self, list: List, before: &Snapshot) {
        for provider in (0..self.providers.len()).filter(|at| self.list.has(*at)) {
            let state = before.provider(NAMES[provider]).map(|provider| provider.state());
            self.providers[provider].is_isolated =
                !list.has(provider) && state == Some(State::Isolated);
        }
        let ever = list.last.iter().max().map_or(0, |last| last + 1);
        self.providers.resize_with(ever.max(self.providers.len()), Account::default);
        self.list = list;
        self.replacements += 1;
    }
}
