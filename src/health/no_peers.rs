//! A circuit's peers where the feature `fleet` is off: there are none, at no cost.

use std::time::Instant;

/// Nothing.
#[derive(Debug, Default)]
pub(super) struct Peers;

impl Peers {
    pub(super) fn tell(&mut self) {}

    pub(super) fn is_untold(&self) -> bool {
        false
    }

    pub(super) fn is_unanswered(&self) -> bool {
        false
    }

    pub(super) fn answer(&mut self, _: Instant) {}

    pub(super) fn failures(&self, _: u32, _: Instant) -> u32 {
        0
    }

    pub(super) fn breaks(&self, _: Instant) -> u32 {
        0
    }

    pub(super) fn unanswered(&self, own: u32) -> u32 {
        own
    }

    pub(super) fn count_failures(&mut self, _: u32) {}

    pub(super) fn record_own_outcome(&mut self) {}

    pub(super) fn record_opening(&mut self, _: Instant, _: bool) {}

    pub(super) fn record_close(&mut self, _: Instant) {}

    pub(super) fn record_cooldown(&mut self) {}
}
