//! What is known of one provider's health, and what its breaker and its cooldown must do next.

use std::time::{Duration, Instant};

use crate::ledger::Entry;
use crate::settings::SHORTEST_SILENCE;

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
    /// The length of the row.
    pub(crate) row: u32,
    /// How often the breaker moved, as the events have it.
    pub(crate) moves: u64,
    /// The end of the last cooldown that no success has followed.
    pub(crate) rest: Option<Instant>,
    /// How many cooldowns began.
    pub(crate) rests: u64,
    /// What the breaker must do before anything else happens.
    pub(crate) due: Option<Due>,
    /// Whether a cooldown must be told before anything else happens.
    pub(crate) rest_due: bool,
    /// The moving average of its times to headers, in nanoseconds.
    usual: u64,
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

/// What an attempt says about its provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum News {
    Success,
    /// An answer that is neither success nor failure.
    Alive,
    Failure,
    Cooldown(Option<Duration>),
    /// It was silent for long, or overtaken.
    Silence,
    None,
}

impl Account {
    /// The provider took so long to its headers.
    pub(crate) fn learn(&mut self, time: Duration) {
        let time = time.as_nanos() as u64;
        self.usual = match self.usual {
            0 => time,
            usual => usual - usual / 8 + time / 8,
        };
    }

    /// Whether such a silence is long: more than a second, and than twice the usual time.
    pub(crate) fn is_long(&self, silence: Duration) -> bool {
        silence > SHORTEST_SILENCE && silence.as_nanos() > 2 * u128::from(self.usual)
    }

    /// What the breaker and the cooldown have to make of an attempt.
    pub(crate) fn hear(&mut self, entry: &Entry, news: News, consecutive: u32, now: Instant) {
        let asks_again = entry.rests == self.rests && self.rest.is_some_and(|until| until <= now);
        if entry.moves == self.moves {
            self.move_breaker(entry, news, asks_again, consecutive);
        }
        if entry.rests == self.rests {
            self.move_rest(entry, news, now);
        }
    }

    fn move_breaker(&mut self, entry: &Entry, news: News, asks_again: bool, consecutive: u32) {
        if self.is_open {
            self.due = match news {
                News::None => None,
                News::Success => Some(Due::Close),
                _ if !entry.is_probe => None,
                News::Failure | News::Silence => Some(Due::Open),
                News::Alive | News::Cooldown(_) => Some(Due::Close),
            };
            return;
        }
        let lengthens = match news {
            News::Success => {
                self.row = 0;
                false
            }
            News::Failure | News::Silence => true,
            // A rest did not help.
            News::Cooldown(_) => asks_again,
            News::Alive | News::None => false,
        };
        if lengthens && !entry.is_hurried {
            self.row += 1;
            self.due = (self.row >= consecutive).then_some(Due::Open);
        }
    }

    fn move_rest(&mut self, entry: &Entry, news: News, now: Instant) {
        match news {
            News::Success => self.rest = None,
            News::Cooldown(hint) => match self.rest {
                // Asked while it rests, it can only ask for more.
                Some(until) if entry.is_hurried || until > now => {
                    let longer = hint.map(|hint| now + hint).filter(|longer| *longer > until);
                    self.rest_due = longer.is_some();
                }
                _ => {
                    self.rests += 1;
                    self.rest_due = true;
                }
            },
            _ => {}
        }
    }

    /// The breaker opened or closed.
    pub(crate) fn moved(&mut self, is_open: bool) {
        (self.is_open, self.due) = (is_open, None);
        (self.failed_since, self.row) = (0, 0);
        self.moves += 1;
    }

    /// A cooldown began, or has another end.
    pub(crate) fn rests_until(&mut self, until: Instant) {
        (self.rest, self.rest_due) = (Some(until), false);
    }
}
