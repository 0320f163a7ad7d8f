//! The providers of a list, found by their ids.

use std::ops::Index;

use crate::message::Secrets;
use crate::provider::{Entry, MAX_PROVIDERS};

/// The providers of a list, each with its id: its place in the health table.
pub(super) struct Entries {
    list: Vec<Entry>,
    /// The id of each.
    pub(super) ids: Vec<usize>,
    /// The highest id, plus one.
    end: usize,
    /// For each id, where in the list its provider is. As large as it can be, so that no access is checked.
    places: Box<[u8; MAX_PROVIDERS]>,
}

impl Entries {
    /// The ids must be below 128, and no two the same.
    pub(super) fn new(list: Vec<Entry>, ids: Vec<usize>) -> Self {
        let end = ids.iter().max().map_or(0, |highest| highest + 1);
        let mut places = Box::new([u8::MAX; MAX_PROVIDERS]);
        for (place, id) in ids.iter().enumerate() {
            places[*id] = place as u8;
        }
        Self { list, ids, end, places }
    }

    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    /// The highest id, plus one.
    pub(super) fn ids(&self) -> usize {
        self.end
    }

    /// The providers with their ids, in the order of the list.
    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, &Entry)> {
        self.ids.iter().copied().zip(&self.list)
    }

    pub(super) fn find(&self, name: &str) -> Option<usize> {
        self.iter().find(|(_, entry)| *entry.name == *name).map(|(id, _)| id)
    }

    /// Whether a provider of this list has this id.
    pub(super) fn has(&self, id: usize) -> bool {
        self.ids.contains(&id)
    }

    /// Every provider's keys.
    pub(super) fn secrets(&self) -> Secrets {
        Secrets::new(self.list.iter().flat_map(|entry| &entry.secrets))
    }

    pub(super) fn as_slice(&self) -> &[Entry] {
        &self.list
    }

    /// The id of the provider with this one's name and base URL, if there is one.
    pub(super) fn find_same(&self, entry: &Entry) -> Option<usize> {
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
        &self.list[usize::from(self.places[id % MAX_PROVIDERS])]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::{ChainHeaders, Checked, Provider, check};

    #[test]
    fn providers_share_a_host_where_host_and_port_are_the_same() {
        let bases =
            ["https://a.test/v1", "https://b.test/v1", "https://a.test:443", "https://a.test:8443"];
        let providers = bases.iter().enumerate();
        let providers =
            providers.map(|(at, base)| Provider::new(format!("p{at}"), *base)).collect();
        let Checked { entries, .. } = check(providers, &[], &ChainHeaders::default()).unwrap();
        // The ids are those of another list's places.
        let entries = Entries::new(entries, vec![1, 0, 4, 2]);
        let [first, second, other_port] = [0, 1, 3];
        assert_eq!(entries.hosts(), [second, first, other_port, 0, first]);
    }
}
