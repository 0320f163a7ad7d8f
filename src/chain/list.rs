//! A chain's list of providers, and how another one takes its place.
//!
//! A request holds the list that it began with until it is over, and so does whatever outlives it: a
//! stream that is watched, an answer that counts as in flight. So a provider's id is free again once no
//! list that has it is left, and nothing can be in flight there then.

use std::collections::BTreeSet;
use std::ops::Index;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::address::Addresses;
use super::builder::Settings;
use super::shared::{ChainState, Shared};
use crate::error::ConfigError;
use crate::health::State;
use crate::message::Secrets;
use crate::observe::Observer;
use crate::provider::{Checked, Entry, MAX_PROVIDERS, Provider, check};
use crate::run::ChainLimits;

/// The providers of a list, each with its id: its place in the health table.
#[derive(Default)]
pub(super) struct Entries {
    list: Vec<Entry>,
    /// The id of each.
    ids: Vec<usize>,
    /// For each id, where in the list its provider is.
    places: Vec<u8>,
}

impl Entries {
    /// The ids must be below 128, and no two the same.
    pub(super) fn new(list: Vec<Entry>, ids: Vec<usize>) -> Self {
        let mut places = vec![u8::MAX; ids.iter().max().map_or(0, |highest| highest + 1)];
        for (place, id) in ids.iter().enumerate() {
            places[*id] = place as u8;
        }
        Self { list, ids, places }
    }

    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    /// The highest id, plus one.
    pub(super) fn ids(&self) -> usize {
        self.places.len()
    }

    /// The providers with their ids, in the order of the list.
    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, &Entry)> {
        self.ids.iter().copied().zip(&self.list)
    }

    pub(super) fn find(&self, name: &str) -> Option<usize> {
        self.iter().find(|(_, entry)| *entry.name == *name).map(|(id, _)| id)
    }

    pub(super) fn as_slice(&self) -> &[Entry] {
        &self.list
    }

    /// The id of the provider with this one's name and base URL, if there is one.
    fn find_same(&self, entry: &Entry) -> Option<usize> {
        let is_same =
            |other: &Entry| other.name == entry.name && other.base.is_same_place(&entry.base);
        self.iter().find(|(_, other)| is_same(other)).map(|(id, _)| id)
    }

    /// One value for each id, and a default for those that the list does not have.
    pub(super) fn each<T: Clone + Default>(&self, value: impl Fn(&Entry) -> T) -> Vec<T> {
        let mut values = vec![T::default(); self.ids()];
        for (id, entry) in self.iter() {
            values[id] = value(entry);
        }
        values
    }

    /// For each id the first provider in the list at the same host and port.
    pub(super) fn hosts(&self) -> Vec<u32> {
        let host = |entry: &Entry| {
            let url = entry.base.url();
            (url.host_str().map(str::to_owned), url.port_or_known_default())
        };
        let hosts: Vec<_> = self.list.iter().map(host).collect();
        let first = |entry: &Entry| {
            let host = host(entry);
            hosts.iter().position(|other| *other == host).unwrap_or(0) as u32
        };
        self.each(first)
    }
}

impl Index<usize> for Entries {
    type Output = Entry;

    #[inline]
    fn index(&self, id: usize) -> &Entry {
        &self.list[usize::from(self.places[id])]
    }
}

/// The list that requests begin with now.
pub(super) struct CurrentList {
    list: Mutex<Arc<Shared>>,
    /// Held while the list, its order or who is isolated changes.
    changing: Mutex<()>,
}

impl CurrentList {
    pub(super) fn new(list: Shared) -> Self {
        let list = Arc::new(list);
        list.chain.add_list(&list);
        Self { list: Mutex::new(list), changing: Mutex::default() }
    }

    #[inline]
    pub(super) fn get(&self) -> Arc<Shared> {
        self.lock().clone()
    }

    /// The list, which stays the current one as long as the guard lives.
    pub(super) fn hold(&self) -> (MutexGuard<'_, ()>, Arc<Shared>) {
        let changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        (changing, self.get())
    }

    fn lock(&self) -> MutexGuard<'_, Arc<Shared>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets requests begin with these providers from now on.
    pub(super) fn replace(&self, providers: Vec<Provider>) -> Result<(), ConfigError> {
        let chain = self.get().chain.clone();
        let mut checked = check_list(providers, &chain)?;
        // What lists hold is in part the user's, and dropped where nothing is locked.
        let (lists, before);
        let (changing, old) = self.hold();
        before = old;
        lists = chain.lists(|_| true);
        let ids = assign_ids(&checked.entries, &before, &lists)?;
        let mut is_new = Vec::with_capacity(ids.len());
        for (id, entry) in ids.iter().zip(&mut checked.entries) {
            let kept = before.entries.find_same(entry);
            if let Some(kept) = kept {
                entry.name = before.entries[kept].name.clone();
            }
            is_new.push(kept != Some(*id));
        }
        let Checked { entries, scope, strip } = checked;
        let entries = Entries::new(entries, ids);
        let names = entries.iter().map(|(id, entry)| (id, entry.name.clone()));
        let observer = before.observer.with_providers(names);
        let limits = ChainLimits {
            attempts: chain.settings.attempts(&entries),
            hosts: entries.hosts(),
            ..before.limits
        };
        let mut tokens = vec![Vec::new(); entries.ids()];
        for (id, entry) in entries.iter().zip(&is_new).filter(|(_, new)| !**new).map(|(it, _)| it) {
            if !entry.sources.is_empty() {
                tokens[id] = before.lock_tokens()[id].clone();
            }
        }
        let list = Arc::new(Shared {
            secrets: Secrets::new(entries.as_slice().iter().flat_map(|entry| &entry.secrets)),
            tokens: Mutex::new(tokens),
            entries,
            scope,
            strip,
            addresses: Addresses::new(),
            limits,
            observer,
            last_order: std::sync::OnceLock::new(),
            chain,
        });
        list.chain.add_list(&list);
        let mut table = list.lock();
        table.change(|table| {
            for ((id, entry), is_new) in list.entries.iter().zip(&is_new) {
                if *is_new {
                    table.health.renew(id);
                }
                let most = entry.max_in_flight.map_or(u64::MAX, |most| most.get() as u64);
                table.health.limit_in_flight(id, most);
            }
            let order = std::mem::replace(&mut table.order, list.entries.ids.clone().into());
            // Requests that have the old list, and have not begun yet, keep its order.
            _ = before.last_order.set(order);
        });
        drop(table);
        let replaced = std::mem::replace(&mut *self.lock(), list.clone());
        drop(changing);
        drop(replaced);
        show_entries(&list.entries, &is_new, &list.observer);
        Ok(())
    }
}

/// Checks a list as `build()` does.
fn check_list(providers: Vec<Provider>, chain: &ChainState) -> Result<Checked, ConfigError> {
    let Settings { claims, headers, .. } = &chain.settings;
    let checked = check(providers, claims, headers)?;
    chain.settings.check(&checked.entries)?;
    Ok(checked)
}

/// The ids of these providers: that of the same one in the current list, or one that no list has.
fn assign_ids(
    entries: &[Entry],
    current: &Shared,
    lists: &[Arc<Shared>],
) -> Result<Vec<usize>, ConfigError> {
    let used: BTreeSet<usize> = lists.iter().flat_map(|list| list.entries.ids.clone()).collect();
    let mut free = (0..MAX_PROVIDERS).filter(|id| !used.contains(id));
    let id = |entry| current.entries.find_same(entry).or_else(|| free.next());
    entries.iter().map(id).collect::<Option<_>>().ok_or_else(|| {
        let problem = format!(
            "must be at most {MAX_PROVIDERS} together with the earlier ones that requests in flight still use"
        );
        ConfigError::new(None, "providers", problem)
    })
}

/// Sets the gauges of new providers, and warns of those whose outages will coincide with another's.
pub(super) fn show_entries(entries: &Entries, is_new: &[bool], observer: &Observer) {
    let list = entries.as_slice();
    for (at, (id, entry)) in entries.iter().enumerate().filter(|(at, _)| is_new[*at]) {
        observer.set_state_gauge(id, State::Closed);
        let host = entry.base.host_str();
        let twin = list[..at].iter().find(|other| other.base.host_str() == host);
        if let Some(twin) = twin.filter(|_| !entry.base.is_loopback()) {
            observer.warn_of_shared_host(&twin.name, &entry.name, host);
        }
    }
}
