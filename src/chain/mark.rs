//! The mark on an attempt, by which chains in one client leave each other's attempts alone.
//!
//! Without it an inner chain whose bases overlap could claim an attempt of an outer one, and send it
//! elsewhere, with another key. A chain that is `.nested()` claims it all the same.

use std::sync::atomic::{AtomicUsize, Ordering};

use http::Extensions;

#[derive(Clone, Copy)]
struct AttemptMark;

/// How many chains there are. Where there is one, no attempt has to be marked, which saves a request a
/// twentieth of what this layer costs it.
static CHAINS: AtomicUsize = AtomicUsize::new(0);

/// Counts a chain for as long as it is there.
pub(super) struct CountedChain(());

impl CountedChain {
    pub(super) fn new() -> Self {
        CHAINS.fetch_add(1, Ordering::Relaxed);
        Self(())
    }
}

impl Drop for CountedChain {
    fn drop(&mut self) {
        CHAINS.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Marks the extensions of an attempt, where there is another chain to see it.
pub(super) fn set(extensions: &mut Extensions) {
    if CHAINS.load(Ordering::Relaxed) > 1 {
        extensions.insert(AttemptMark);
    }
}

/// Whether these are the extensions of a chain's attempt.
pub(super) fn is_set(extensions: &Extensions) -> bool {
    extensions.get::<AttemptMark>().is_some()
}

/// Takes the mark off, for the extensions that are handed back.
pub(super) fn remove(extensions: &mut Extensions) {
    extensions.remove::<AttemptMark>();
}

#[cfg(test)]
mod tests {
    use super::*;

    // No other unit test makes a chain, so that this one knows how many there are.
    #[test]
    fn attempts_are_marked_while_there_is_another_chain() {
        let is_marked = || {
            let mut extensions = Extensions::new();
            set(&mut extensions);
            is_set(&extensions)
        };
        let _chain = CountedChain::new();
        assert!(!is_marked());
        let other = CountedChain::new();
        assert!(is_marked());
        drop(other);
        assert!(!is_marked());
    }
}
