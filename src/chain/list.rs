//! A chain's list of providers, and how another one takes its place.
//!
//! A request holds the list that it began with until it is over, and so does whatever outlives it: a
//! stream that is watched, an answer that counts as in flight. So a provider's id is free again once no
//! list that has it is left, and nothing can be in flight there then.

use std::collections::BTreeSet;
#[cfg(feature = "fleet")]
use std::sync::Weak;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::address::Addresses;
use super::caller::LastCaller;
use super::entries::Entries;
use super::settings::Settings;
use super::shared::{ChainState, Shared};
use crate::error::ConfigError;
use crate::health::State;
use crate::observe::Observer;
use crate::provider::{Checked, Entry, MAX_PROVIDERS, Provider, check};
use crate::run::ChainLimits;

/// The list that requests begin with now.
pub(super) struct CurrentList {
    list: Mutex<Arc<Shared>>,
    /// Held while the list, its order or who is isolated changes.
    changing: Mutex<()>,
    /// Only where the chain shares its health.
    #[cfg(feature = "fleet")]
    start_task: Option<StartTask>,
}

/// Starts the task that shares a chain's health, if it does not run and there is a runtime for it.
#[cfg(feature = "fleet")]
pub(super) type StartTask = Box<dyn Fn(Weak<CurrentList>) + Send + Sync>;

impl CurrentList {
    pub(super) fn new(
        list: Shared,
        #[cfg(feature = "fleet")] start_task: Option<StartTask>,
    ) -> Self {
        let list = Arc::new(list);
        list.chain.add_list(&list);
        Self {
            list: Mutex::new(list),
            changing: Mutex::default(),
            #[cfg(feature = "fleet")]
            start_task,
        }
    }

    /// Starts the task that shares the chain's health, where one is missing and can be started.
    #[cfg(feature = "fleet")]
    #[cold]
    pub(super) fn start_task(self: &Arc<Self>) {
        if let Some(start) = &self.start_task {
            start(Arc::downgrade(self));
        }
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
        // What lists hold is in part the user's, and is dropped after the guard, where nothing is locked.
        let (before, lists, replaced);
        let (changing, current) = self.hold();
        before = current;
        lists = chain.lists(|_| true);
        let ids = assign_ids(&checked.entries, &before, &lists)?;
        for (id, entry) in ids.iter().zip(&mut checked.entries) {
            if before.entries.has(*id) {
                // The metrics know a provider by this.
                entry.name = before.entries[*id].name.clone();
            }
        }
        let list = Arc::new(before.next(checked, ids));
        chain.add_list(&list);
        before.give_way_to(&list);
        replaced = std::mem::replace(&mut *self.lock(), list.clone());
        drop(changing);
        drop(replaced);
        #[cfg(feature = "fleet")]
        if let Some(fleet) = &chain.fleet {
            fleet.wake();
        }
        show_entries(&list.entries, &before.entries, &list.observer);
        Ok(())
    }
}

impl Shared {
    /// The list that takes the place of this one.
    fn next(&self, checked: Checked, ids: Vec<usize>) -> Self {
        let Checked { entries, scope, strip } = checked;
        let entries = Entries::new(entries, ids);
        let mut tokens = vec![Vec::new(); entries.ids()];
        for (id, entry) in entries.iter().filter(|(id, _)| self.entries.has(*id)) {
            if !entry.sources.is_empty() {
                tokens[id].clone_from(&self.lock_tokens()[id]);
            }
        }
        let names = entries.iter().map(|(id, entry)| (id, entry.name.clone()));
        Self {
            chain: self.chain.clone(),
            limits: ChainLimits {
                attempts: self.chain.settings.attempts(&entries),
                hosts: entries.hosts(),
                ..self.limits
            },
            observer: self.observer.with_providers(names),
            secrets: entries.secrets(),
            last_caller: LastCaller::default(),
            tokens: Mutex::new(tokens),
            addresses: Addresses::new(),
            last_order: OnceLock::new(),
            entries,
            scope,
            strip,
        }
    }

    /// Moves the health table on to another list.
    fn give_way_to(&self, list: &Self) {
        self.lock().change(|table| {
            for (id, entry) in list.entries.iter() {
                if !self.entries.has(id) {
                    table.health.renew(id);
                    #[cfg(feature = "fleet")]
                    if let Some(fleet) = &self.chain.fleet {
                        table.health.share(id, fleet.process);
                    }
                }
                table.health.limit_in_flight(id, entry.most_in_flight());
            }
            let order = std::mem::replace(&mut table.order, list.entries.ids.clone().into());
            // Requests that have this list, and have not begun yet, keep its order.
            _ = self.last_order.set(order);
        });
    }
}

/// The task of a chain that shares its health ends with the last handle to the chain.
#[cfg(feature = "fleet")]
impl Drop for CurrentList {
    fn drop(&mut self) {
        if let Some(fleet) = &self.get().chain.fleet {
            fleet.wake();
        }
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
            "must be at most {MAX_PROVIDERS}, together with those that they replace and with earlier ones \
             that requests in flight still use"
        );
        ConfigError::new(None, "providers", problem)
    })
}

/// Sets the gauges of providers that were not there before, and warns of those whose outages will coincide
/// with another's.
pub(super) fn show_entries(entries: &Entries, before: &Entries, observer: &Observer) {
    let list = entries.as_slice();
    for (at, (id, entry)) in entries.iter().enumerate().filter(|(_, (id, _))| !before.has(*id)) {
        observer.set_state_gauge(id, State::Closed);
        let host = entry.base.host_str();
        let twin = list[..at].iter().find(|other| other.base.host_str() == host);
        if let Some(twin) = twin.filter(|_| !entry.base.is_loopback()) {
            observer.warn_of_shared_host(&twin.name, &entry.name, host);
        }
    }
}
