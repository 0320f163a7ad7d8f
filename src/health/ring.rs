//! A rolling window: equal parts of time, of which the oldest is forgotten first.

use std::time::{Duration, Instant};

/// Into how many parts a window is divided.
pub(crate) const PARTS: usize = 10;

/// What was counted in each of the last ten parts of time.
#[derive(Debug, Default)]
pub(crate) struct Ring<T> {
    slots: [Slot<T>; PARTS],
}

#[derive(Debug, Default)]
struct Slot<T> {
    /// The number of the part of time that `counted` is of.
    tick: u64,
    counted: T,
}

impl<T: Default> Ring<T> {
    /// What was counted in the part with this number, which is the latest.
    #[inline]
    pub(crate) fn current(&mut self, tick: u64) -> &mut T {
        let slot = &mut self.slots[tick as usize % PARTS];
        if slot.tick != tick {
            *slot = Slot { tick, counted: T::default() };
        }
        &mut slot.counted
    }

    /// What was counted in the part with this number and in the nine before.
    pub(crate) fn recent(&self, tick: u64) -> impl Iterator<Item = &T> {
        let recent = move |slot: &&Slot<T>| is_recent(slot.tick, tick);
        self.slots.iter().filter(recent).map(|slot| &slot.counted)
    }
}

/// Whether the part `tick` is among the last ten at `now`.
pub(crate) fn is_recent(tick: u64, now: u64) -> bool {
    now.saturating_sub(tick) < PARTS as u64
}

/// Counts the equal parts of time since `origin`.
#[derive(Debug)]
pub(crate) struct Ticks {
    origin: Instant,
    /// In nanoseconds.
    length: u64,
    last: u64,
    /// The end of the last one: until then a comparison is all it takes, where a subtraction and a
    /// division cost ten times that.
    until: Instant,
}

impl Ticks {
    /// Counts tenths of `window`.
    pub(crate) fn new(origin: Instant, window: Duration) -> Self {
        let length = nanos(window / PARTS as u32).max(1);
        Self { origin, length, last: 0, until: origin }
    }

    /// The number of the current part. Time does not run backwards here.
    #[inline]
    pub(crate) fn at(&mut self, now: Instant) -> u64 {
        if now >= self.until {
            self.advance(now);
        }
        self.last
    }

    #[cold]
    fn advance(&mut self, now: Instant) {
        self.last = self.of(now);
        let end = self.length.saturating_mul(self.last.saturating_add(1));
        self.until = after(self.origin, Duration::from_nanos(end));
    }

    /// The number of the part that `now` lies in.
    pub(crate) fn of(&self, now: Instant) -> u64 {
        nanos(now.saturating_duration_since(self.origin)) / self.length
    }
}

/// `now + length`, or a time that is out of any clock's reach.
#[inline]
pub(crate) fn after(now: Instant, length: Duration) -> Instant {
    now.checked_add(length).unwrap_or_else(|| far_after(now))
}

#[cold]
fn far_after(now: Instant) -> Instant {
    const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);
    now.checked_add(FAR).unwrap_or(now)
}

/// In nanoseconds, of which no more fit than those of 584 years.
#[inline]
pub(crate) fn nanos(length: Duration) -> u64 {
    let seconds = length.as_secs().saturating_mul(1_000_000_000);
    seconds.saturating_add(u64::from(length.subsec_nanos()))
}
