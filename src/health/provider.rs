//! What the health table keeps of one provider.

use std::time::Duration;

use super::circuit::Circuit;
use super::ring::nanos;
use super::{Change, Counts, Permit};

#[derive(Debug, Default)]
pub(super) struct ProviderHealth {
    pub(super) isolated: bool,
    pub(super) counts: Counts,
    pub(super) circuit: Circuit,
    /// The moving average of its times to headers, in nanoseconds; zero before its first answer.
    usual: u64,
    /// How often it has answered 404 and nothing else; `ANSWERED` once that is settled.
    not_found: u8,
}

impl ProviderHealth {
    /// The answer with which a base URL that holds no API becomes likely.
    const NOT_FOUND: u8 = 10;
    /// It has given another answer, or what it has not given was reported.
    const ANSWERED: u8 = u8::MAX;
    /// No shorter silence says anything: that long, a healthy provider may take.
    const SHORTEST_SILENCE: u64 = 1_000_000_000;

    #[inline]
    pub(super) fn record_answer(&mut self, status: u16, time: Duration) -> Option<Change> {
        let time = nanos(time);
        self.usual = match self.usual {
            0 => time,
            usual => usual - usual / 8 + time / 8,
        };
        if self.not_found == Self::ANSWERED {
            return None;
        }
        self.count_not_found(status)
    }

    #[cold]
    fn count_not_found(&mut self, status: u16) -> Option<Change> {
        if status != 404 {
            self.not_found = Self::ANSWERED;
            return None;
        }
        self.not_found += 1;
        (self.not_found == Self::NOT_FOUND).then(|| {
            self.not_found = Self::ANSWERED;
            Change::OnlyNotFound
        })
    }

    pub(super) fn is_silence(&self, quiet_for: Duration) -> bool {
        nanos(quiet_for) > self.usual.saturating_mul(2).max(Self::SHORTEST_SILENCE)
    }

    #[inline]
    pub(super) fn take_back(&mut self, permit: &Permit) {
        self.counts.in_flight = self.counts.in_flight.saturating_sub(1);
        self.circuit.end_lease(permit);
    }
}
