//! What is known of one provider's breaker, and what it must do next.

use std::time::Instant;

use crate::answers::{Meaning, Price};
use crate::ledger::Entry;

/// What is known of one provider.
#[derive(Default)]
pub(crate) struct Account {
    pub(crate) attempts: u64,
    pub(crate) served: u64,
    pub(crate) failures: u64,
    pub(crate) in_flight: u64,
    pub(crate) lease: Option<Lease>,
    /// As the events have it.
    pub(crate) is_open: bool,
    /// Failures since the breaker last moved.
    pub(crate) failed_since: u64,
    /// The same since the last success.
    pub(crate) failed_in_a_row: u32,
    /// How often the breaker moved, as the events have it.
    pub(crate) moves: u64,
    /// What the breaker must do before anything else happens.
    pub(crate) due: Option<Due>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    Open,
    Close,
}

/// A probe that is out: whose, and until when it may be.
#[derive(Clone, Copy)]
pub(crate) struct Lease {
    pub(crate) call: u64,
    pub(crate) until: Instant,
}

impl Account {
    /// What the breaker has to make of an attempt that was sent after it last moved.
    pub(crate) fn hear(&mut self, entry: &Entry, meaning: Meaning, consecutive: u32) {
        if entry.moves != self.moves {
            return;
        }
        // An error that is accepted is no news.
        let succeeded =
            meaning.price == Price::Accepted && meaning.status.is_some_and(|status| status < 400);
        let failed = meaning.price == Price::Failure;
        if self.is_open {
            let answered = entry.is_probe && meaning.status.is_some();
            self.due = match (succeeded || answered && !failed, failed && entry.is_probe) {
                (true, _) => Some(Due::Close),
                (_, true) => Some(Due::Open),
                _ => None,
            };
        } else if succeeded {
            self.failed_in_a_row = 0;
        } else if failed && !entry.is_hurried {
            self.failed_in_a_row += 1;
            self.due = (self.failed_in_a_row >= consecutive).then_some(Due::Open);
        }
    }

    /// The breaker opened or closed.
    pub(crate) fn moved(&mut self, is_open: bool) {
        (self.is_open, self.due) = (is_open, None);
        (self.failed_since, self.failed_in_a_row) = (0, 0);
        self.moves += 1;
    }
}
