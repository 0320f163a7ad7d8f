//! Who saw which request. A request is a number, and everything that is known of it a bit: a ledger
//! is allocated and touched before the soak begins, and does not grow while it lasts.

use std::sync::atomic::{AtomicU64, Ordering};

/// A set of requests.
pub(crate) struct Ledger {
    words: Box<[AtomicU64]>,
}

impl Ledger {
    /// Room for this many.
    pub(crate) fn of(requests: u64) -> Self {
        let words: Box<[AtomicU64]> =
            (0..requests.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        // A page that was never written to does not count as memory yet.
        for word in &words {
            word.store(1, Ordering::Relaxed);
            word.store(0, Ordering::Relaxed);
        }
        Self { words }
    }

    /// Enters a request; `false` if it is there already.
    pub(crate) fn enter(&self, nonce: u64) -> bool {
        let bit = 1 << (nonce % 64);
        self.words[nonce as usize / 64].fetch_or(bit, Ordering::Relaxed) & bit == 0
    }

    pub(crate) fn has(&self, nonce: u64) -> bool {
        self.words[nonce as usize / 64].load(Ordering::Relaxed) & (1 << (nonce % 64)) != 0
    }

    pub(crate) fn len(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.load(Ordering::Relaxed).count_ones())).sum()
    }
}
