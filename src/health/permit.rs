//! The right to ask one provider once.

use std::num::{NonZeroU32, NonZeroU64};
use std::time::{Duration, Instant};

use super::ring::after;

/// The right to ask one provider once. It must come back to
/// [`HealthTable::record_outcome`](super::HealthTable::record_outcome),
/// [`abandon`](super::HealthTable::abandon) or [`cancel`](super::HealthTable::cancel).
#[derive(Debug)]
pub(crate) struct Permit {
    /// In a size that keeps a permit small.
    provider: u32,
    pub(super) sequence: u64,
    since: Instant,
    /// Where its stream has begun well: the part of the window in which that was counted, plus one. Of
    /// each circuit.
    committed: [Option<NonZeroU64>; 2],
    /// How each circuit has admitted it.
    admitted: [Admitted; 2],
    /// Whether its answer counts in its place, until that is over.
    pub(super) is_detached: bool,
    /// The key that it was given out for.
    pub(super) key: Option<KeySlot>,
}

/// One of the circuits that a permit has to do with.
#[derive(Clone, Copy, Debug)]
pub(super) enum Of {
    /// The provider's own.
    Provider,
    /// Its key's, if it has one.
    Key,
}

/// Where a key's health is kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct KeySlot {
    pub(super) slot: u16,
    /// Which of the keys that the slot has held. Another one has a health of its own.
    pub(super) tenant: NonZeroU32,
}

/// A permit as one circuit sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ticket {
    pub(super) sequence: u64,
    pub(super) admitted: Admitted,
    pub(super) committed: Option<NonZeroU64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admitted {
    /// Also while the breaker was open or a probe was out, because no better provider was left.
    Regular,
    Probe,
    /// Asked during a cooldown, because no better provider was left.
    WhileCoolingDown,
}

impl Permit {
    #[inline]
    pub(super) fn new(provider: usize, sequence: u64, now: Instant, own: Admitted) -> Self {
        Self {
            provider: provider as u32,
            sequence,
            since: now,
            committed: [None; 2],
            admitted: [own, Admitted::Regular],
            is_detached: false,
            key: None,
        }
    }

    #[inline]
    pub(crate) fn provider(&self) -> usize {
        self.provider as usize
    }

    /// The request is sent now: what came before is not the provider's time.
    #[inline]
    pub(crate) fn mark_sent(&mut self, now: Instant) {
        self.since = now;
    }

    /// The caller's own body was pending for this long, which is not the provider's time.
    #[inline]
    pub(crate) fn exclude(&mut self, pending: Duration) {
        self.since = after(self.since, pending);
    }

    /// Since when the provider has had the request.
    #[inline]
    pub(crate) fn since(&self) -> Instant {
        self.since
    }

    /// How long the provider has had the request.
    #[inline]
    pub(crate) fn elapsed(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }

    /// From now on the answer counts as in flight in its place. It must come back to
    /// [`HealthTable::leave`](super::HealthTable::leave).
    pub(crate) fn detach(&mut self) {
        self.is_detached = true;
    }

    /// Whether the end of a break or of a cooldown is lent to it: the provider's, or its key's.
    #[inline]
    pub(crate) fn is_probe(&self) -> bool {
        self.is_own_probe() || self.is_key_probe()
    }

    #[inline]
    pub(crate) fn is_own_probe(&self) -> bool {
        self.admits_probe(Of::Provider)
    }

    #[inline]
    pub(crate) fn is_key_probe(&self) -> bool {
        self.admits_probe(Of::Key)
    }

    /// Permits are numbered in the order of their admission.
    #[inline]
    pub(crate) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Whether it was admitted before the permit of this number.
    pub(crate) fn is_before(&self, sequence: u64) -> bool {
        self.sequence < sequence
    }

    #[inline]
    fn admits_probe(&self, of: Of) -> bool {
        self.admitted[of as usize] == Admitted::Probe
    }

    #[inline]
    pub(super) fn set_key(&mut self, slot: KeySlot, admitted: Admitted) {
        self.key = Some(slot);
        self.admitted[Of::Key as usize] = admitted;
    }

    #[inline]
    pub(super) fn ticket(&self, of: Of) -> Ticket {
        let (admitted, committed) = (self.admitted[of as usize], self.committed[of as usize]);
        Ticket { sequence: self.sequence, admitted, committed }
    }

    /// Its lease ran out, and another probe is on its way.
    pub(super) fn lose_lease(&mut self, of: Of) {
        self.admitted[of as usize] = Admitted::Regular;
    }

    /// Takes over what a circuit has marked.
    pub(super) fn mark(&mut self, of: Of, ticket: Ticket) {
        self.committed[of as usize] = ticket.committed;
    }
}

impl Ticket {
    /// Its stream was counted in this part of the window.
    pub(super) fn commit(&mut self, tick: u64) {
        self.committed = Some(NonZeroU64::MIN.saturating_add(tick));
    }

    pub(super) fn committed(self) -> Option<u64> {
        self.committed.map(|committed| committed.get() - 1)
    }
}
