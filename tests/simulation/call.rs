//! One caller's call, and the requests that the providers had of it.

use std::time::{Duration, Instant};

use reqwest_failover::{Reason, Report};

use crate::answers::{Answer, Meaning, Price};
use crate::circuit::{Admitted, News};

/// One caller's call, as the caller knows it.
pub(crate) struct Call {
    pub(crate) id: u64,
    /// The order of providers that holds for it.
    pub(crate) order: Vec<usize>,
    /// The numbers of the providers' keys, and of their list, when it began.
    pub(crate) keys: Vec<u32>,
    pub(crate) list: u64,
    pub(crate) max_attempts: usize,
    pub(crate) replayable: bool,
    /// The health key that it has.
    pub(crate) key: Option<usize>,
    /// Whether it may be processed twice.
    pub(crate) idempotent: bool,
    pub(crate) begun: Instant,
    pub(crate) deadline: Instant,
    /// The request's own timeout, and whether that is its deadline.
    pub(crate) timeout: Option<Duration>,
    pub(crate) is_short: bool,
    /// Whether any provider could be asked when it began.
    pub(crate) hopeless: bool,
    pub(crate) entries: Vec<Entry>,
    /// The entries that have ended, in that order.
    pub(crate) ended: Vec<usize>,
    pub(crate) dropped: bool,
    /// Whether an attempt failed just now, in whose place another one may be made.
    pub(crate) failed_just_now: bool,
    pub(crate) hedged: bool,
    /// How many starts and ends of attempts, and how many ends of the request, were emitted.
    pub(crate) started: usize,
    pub(crate) finished: usize,
    pub(crate) rejections: usize,
    pub(crate) exhaustions: usize,
    pub(crate) reports: Vec<Report>,
}

/// What arrives at a provider: a request with this timeout, which is to be answered so.
pub(crate) struct Arrived {
    pub(crate) provider: usize,
    pub(crate) timeout: Option<Duration>,
    pub(crate) answer: Answer,
}

/// One request that reached a provider.
pub(crate) struct Entry {
    pub(crate) provider: usize,
    pub(crate) started: Instant,
    /// When the chain gives up on it, and whether that is the provider's failure.
    pub(crate) gives_up: Instant,
    pub(crate) is_failure: bool,
    /// How its provider has admitted it, and its provider's health of its key.
    pub(crate) own: Admitted,
    pub(crate) of_key: Option<(usize, Admitted)>,
    /// Whether no other provider was left to be asked when it began.
    pub(crate) is_last: bool,
    pub(crate) answer: Answer,
    /// When its headers came.
    pub(crate) headers: Option<Instant>,
    /// Until when its body is read before the verdict, while it is.
    pub(crate) reading: Option<Instant>,
    /// Whether its answer counts as in flight in its place.
    pub(crate) is_answer_counted: bool,
    pub(crate) end: Option<End>,
}

#[derive(Clone, Copy)]
pub(crate) struct End {
    /// When the chain had its verdict, or gave up.
    pub(crate) at: Instant,
    /// `None` if it was dropped, by its caller or because another one served.
    pub(crate) meaning: Option<Meaning>,
    pub(crate) news: News,
    /// Whether that is news of the provider, whatever the key.
    pub(crate) concerns_provider: bool,
    /// Who of the others could still be asked.
    pub(crate) left: Left,
}

/// How an attempt comes to its end.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Answered, and its body was read or not.
    Answered {
        heard: bool,
    },
    TimedOut,
    Dropped,
    /// Another one served: whether that had begun later.
    Lost {
        overtaken: bool,
    },
}

/// Who could be asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Left {
    pub(crate) admissible: usize,
    pub(crate) passed_over: usize,
}

impl Left {
    pub(crate) fn any(self) -> bool {
        self.admissible + self.passed_over > 0
    }
}

impl Call {
    pub(crate) fn new(id: u64, begun: Instant, deadline: Instant) -> Self {
        Self {
            id,
            order: Vec::new(),
            keys: Vec::new(),
            list: 0,
            max_attempts: usize::MAX,
            replayable: true,
            key: None,
            idempotent: true,
            begun,
            deadline,
            timeout: None,
            is_short: false,
            hopeless: false,
            entries: Vec::new(),
            ended: Vec::new(),
            dropped: false,
            failed_just_now: false,
            hedged: false,
            started: 0,
            finished: 0,
            rejections: 0,
            exhaustions: 0,
            reports: Vec::new(),
        }
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.entries.len() - self.ended.len()
    }

    pub(crate) fn last_ended(&self) -> Option<&Entry> {
        self.ended.last().map(|at| &self.entries[*at])
    }

    /// The attempt whose answer is the caller's, of those that have ended: a good answer, else the
    /// accepted one that was sent first.
    pub(crate) fn served(&self) -> Option<usize> {
        let status = |at: &usize| self.entries[*at].accepted();
        let accepted = |at: &usize| status(at).is_some();
        let good = |at: &usize| status(at).is_some_and(|status| status < 400);
        let ended = || self.ended.iter().copied();
        ended().find(good).or_else(|| ended().filter(accepted).min())
    }
}

impl Entry {
    /// The status with which it was accepted, if it was.
    pub(crate) fn accepted(&self) -> Option<u16> {
        let meaning = self.end?.meaning?;
        meaning.status.filter(|_| meaning.price == Price::Accepted)
    }

    pub(crate) fn is_unreachable(&self) -> bool {
        let meaning = self.end.and_then(|end| end.meaning);
        meaning.is_some_and(|meaning| meaning.reason == Reason::Connect)
    }

    /// What an attempt's report must say: its reason, status, length, and whether it is ambiguous.
    pub(crate) fn expected(&self) -> Option<(Reason, Option<u16>, Duration, bool)> {
        let End { at, meaning, .. } = self.end?;
        let to_headers = self.headers.filter(|_| meaning.is_some()).unwrap_or(at);
        let elapsed = to_headers.saturating_duration_since(self.started);
        Some(match meaning {
            Some(meaning) => (meaning.reason, meaning.status, elapsed, meaning.ambiguous),
            // It was sent.
            None => (Reason::Abandoned, None, at.saturating_duration_since(self.started), true),
        })
    }
}
