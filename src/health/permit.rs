//! The right to ask one provider once.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use super::ring::after;

/// The right to ask one provider once. It must come back to
/// [`HealthTable::record_outcome`](super::HealthTable::record_outcome),
/// [`abandon`](super::HealthTable::abandon) or [`cancel`](super::HealthTable::cancel).
#[derive(Debug)]
pub(crate) struct Permit {
    pub(crate) provider: usize,
    pub(super) sequence: u64,
    since: Instant,
    /// How the provider's own circuit admitted it, and how that of its key did.
    pub(super) own: Standing,
    pub(super) key: Option<KeyStanding>,
}

/// How one circuit stands to a permit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standing {
    admitted: Admitted,
    /// Where its stream has begun well: the part of the window in which that was counted, plus one.
    committed: Option<NonZeroU64>,
}

/// The same of a key's circuit.
#[derive(Clone, Copy, Debug)]
pub(super) struct KeyStanding {
    pub(super) slot: u16,
    /// Which of the keys that the slot has held. Another one has a health of its own.
    pub(super) tenant: u32,
    pub(super) standing: Standing,
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
    Regular,
    Probe,
    /// Asked while the breaker was open or a probe was out, because no better provider was left.
    WhileOpen,
    /// The same during a cooldown.
    WhileCoolingDown,
}

impl Permit {
    #[inline]
    pub(super) fn new(
        provider: usize,
        sequence: u64,
        now: Instant,
        own: Admitted,
        key: Option<KeyStanding>,
    ) -> Self {
        Self { provider, sequence, since: now, own: Standing::new(own), key }
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

    /// How long the provider has had the request.
    #[inline]
    pub(crate) fn elapsed(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }

    /// Whether the end of a break or of a cooldown is lent to it: the provider's, or its key's.
    #[inline]
    pub(crate) fn is_probe(&self) -> bool {
        self.own.is_probe() || self.is_key_probe()
    }

    #[inline]
    pub(crate) fn is_key_probe(&self) -> bool {
        self.key.is_some_and(|key| key.standing.is_probe())
    }

    /// Permits are numbered in the order of their admission.
    #[inline]
    pub(crate) fn sequence(&self) -> u64 {
        self.sequence
    }
}

impl Standing {
    #[inline]
    pub(super) fn new(admitted: Admitted) -> Self {
        Self { admitted, committed: None }
    }

    #[inline]
    pub(super) fn is_probe(self) -> bool {
        self.admitted == Admitted::Probe
    }

    #[inline]
    pub(super) fn ticket(self, sequence: u64) -> Ticket {
        Ticket { sequence, admitted: self.admitted, committed: self.committed }
    }

    /// Its lease ran out, and another probe is on its way.
    pub(super) fn lose_lease(&mut self) {
        self.admitted = Admitted::WhileOpen;
    }

    pub(super) fn mark_committed(&mut self, ticket: Ticket) {
        self.committed = ticket.committed;
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
