//! What operators want of all processes.

use std::sync::MutexGuard;

use crate::chain::list::CurrentList;
use crate::chain::shared::Shared;
use crate::fleet::report::{Subject, provider_key, provider_name};
use crate::observe::Event;

/// An operator of this process has isolated or restored a provider: all processes are to do so.
pub(in crate::chain) fn tell_of_isolation(
    list: &Shared,
    provider: usize,
    isolated: bool,
    changing: MutexGuard<'_, ()>,
) {
    let Some(fleet) = &list.chain.fleet else { return };
    fleet.command(Subject::Isolated { provider: key_of(list, provider), isolated });
    // The user's closures may change the chain.
    drop(changing);
    let provider = Some(&*list.entries[provider].name);
    list.observer.emit(&Event::Steered { provider, heard: false });
}

/// An operator of this process has set the order: all processes are to do so.
pub(in crate::chain) fn tell_of_order(list: &Shared, changing: MutexGuard<'_, ()>) {
    let Some(fleet) = &list.chain.fleet else { return };
    let order = list.lock().order.clone();
    let name = |provider: &usize| provider_name(&list.entries[*provider].name);
    fleet.command(Subject::Order(order.iter().map(name).collect()));
    drop(changing);
    list.observer.emit(&Event::Steered { provider: None, heard: false });
}

pub(super) fn key_of(list: &Shared, provider: usize) -> String {
    let entry = &list.entries[provider];
    // Its `Debug` holds no key.
    provider_key(&entry.name, &format!("{:?}", entry.base))
}

/// The providers of these names, which are as records have them.
fn ids(list: &Shared, names: &[String]) -> Vec<usize> {
    let known = list.entries.iter().map(|(id, entry)| (id, provider_name(&entry.name)));
    let known: Vec<_> = known.collect();
    let id = |name: &String| known.iter().find(|(_, known)| known == name).map(|(id, _)| *id);
    names.iter().filter_map(id).collect()
}

/// Does what an operator wants, if it is not so already, and if none of this process has wanted something
/// else since.
pub(super) fn obey(chain: &CurrentList, subject: &Subject) {
    let (changing, list) = chain.hold();
    if list.chain.fleet.as_ref().is_some_and(|fleet| fleet.has_command(subject)) {
        return;
    }
    let provider = match subject {
        Subject::Isolated { provider, isolated } => {
            let is_meant = |id: &usize| key_of(&list, *id) == *provider;
            let known = list.entries.iter().map(|(id, _)| id).find(is_meant);
            let Some(id) = known.filter(|id| list.is_isolated(*id) != *isolated) else {
                return;
            };
            list.isolate(id, *isolated);
            Some(&*list.entries[id].name)
        }
        Subject::Order(names) => {
            let order = reorder(&list.lock().order, &ids(&list, names));
            if *list.lock().order == *order {
                return;
            }
            list.set_order(order.into());
            None
        }
    };
    // The user's closures may change the chain.
    drop(changing);
    list.observer.emit(&Event::Steered { provider, heard: true });
}

/// The order with those that are named in the places that they held together; the others keep theirs.
fn reorder(order: &[usize], wanted: &[usize]) -> Vec<usize> {
    let mut named = wanted.iter().filter(|id| order.contains(id));
    let mut seen = Vec::new();
    let mut next = || {
        let next = named.find(|id| !seen.contains(*id))?;
        seen.push(*next);
        Some(*next)
    };
    order.iter().map(|id| if wanted.contains(id) { next().unwrap_or(*id) } else { *id }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_named_providers_share_the_places_that_they_held() {
        for (order, wanted, expected) in [
            (&[0, 1, 2][..], &[2, 1, 0][..], &[2, 1, 0][..]),
            (&[0, 1, 2], &[2, 0], &[2, 1, 0]),
            (&[0, 1, 2, 3], &[3, 1], &[0, 3, 2, 1]),
            (&[0, 1], &[7, 1, 0], &[1, 0]),
            (&[0, 1], &[], &[0, 1]),
            (&[0, 1], &[1, 1, 0], &[1, 0]),
        ] {
            assert_eq!(reorder(order, wanted), expected, "{order:?} {wanted:?}");
        }
    }
}
