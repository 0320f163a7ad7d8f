//! What really happened in a harness, kept by the providers and the callers themselves, to be held
//! against all that the chain tells.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use fastrand::Rng;
use reqwest_failover::{Reason, Report, Snapshot, State};

use crate::account::{Account, Lease, News};
use crate::answers::{Answer, Meaning, Price};
use crate::settings::{
    CLIENTS_TIMEOUT_FIRST, DEFAULT_ATTEMPT, HedgeSettings, LEASE_MARGIN, NAMES, Settings, ms,
};

pub(crate) struct Ledger {
    pub(crate) rng: Rng,
    /// The calls under way.
    pub(crate) calls: HashMap<u64, Call>,
    /// The call that is being polled or dropped.
    pub(crate) current: u64,
    pub(crate) providers: Vec<Account>,
    pub(crate) requests: u64,
    pub(crate) by_fallback: u64,
    pub(crate) rejected: u64,
    pub(crate) exhausted: u64,
    pub(crate) unclaimed: u64,
    pub(crate) hedges: u64,
    pub(crate) hedges_told: u64,
    /// What is left of the hedges that were earned, in millionths of one.
    earned: u64,
    /// The first thing that was not as it is promised.
    pub(crate) wrong: Option<String>,
    /// All that happened, in one number.
    pub(crate) digest: u64,
    /// Whether to print what happens.
    pub(crate) told: bool,
    begun: Instant,
}

/// One caller's call, as the caller knows it.
pub(crate) struct Call {
    /// The order of providers that holds for it.
    pub(crate) order: Vec<usize>,
    pub(crate) max_attempts: usize,
    pub(crate) replayable: bool,
    /// Whether it may be processed twice.
    pub(crate) idempotent: bool,
    pub(crate) begun: Instant,
    pub(crate) deadline: Instant,
    /// The request's own timeout, and whether that is its deadline.
    pub(crate) timeout: Option<Duration>,
    pub(crate) is_short: bool,
    /// Whether anybody could be asked when it began.
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
    gives_up: Instant,
    is_failure: bool,
    pub(crate) is_probe: bool,
    /// Whether it was asked although it wanted rest.
    pub(crate) is_hurried: bool,
    /// How often its breaker had moved, and how many cooldowns had begun.
    pub(crate) moves: u64,
    pub(crate) rests: u64,
    /// Whether no other provider was left to be asked when it began.
    pub(crate) is_last: bool,
    pub(crate) answer: Answer,
    /// When its headers came.
    headers: Option<Instant>,
    /// Until when its body is read before the verdict, while it is.
    reading: Option<Instant>,
    pub(crate) end: Option<End>,
}

#[derive(Clone, Copy)]
pub(crate) struct End {
    /// When the chain had its verdict, or gave up.
    pub(crate) at: Instant,
    /// `None` if it was dropped, by its caller or because another one served.
    pub(crate) meaning: Option<Meaning>,
    pub(crate) news: News,
    /// Who of the others could still be asked.
    pub(crate) left: Left,
}

/// How an attempt comes to its end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ending {
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
    admissible: usize,
    passed_over: usize,
}

impl Left {
    pub(crate) fn any(self) -> bool {
        self.admissible + self.passed_over > 0
    }
}

/// Whether a provider may be asked, as far as the snapshot shows.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Standing {
    Admissible,
    /// Until then, or at least until then.
    PassedOver(Instant, Precision),
    Isolated,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Precision {
    Exact,
    /// A cooldown may hide behind a probe.
    AtLeast,
}

impl Call {
    pub(crate) fn new(begun: Instant, deadline: Instant) -> Self {
        Self {
            order: Vec::new(),
            max_attempts: usize::MAX,
            replayable: true,
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

    fn in_flight(&self) -> usize {
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
    fn accepted(&self) -> Option<u16> {
        let meaning = self.end?.meaning?;
        meaning.status.filter(|_| meaning.price == Price::Accepted)
    }

    fn is_unreachable(&self) -> bool {
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

impl Ledger {
    pub(crate) fn new(rng: Rng, providers: usize, begun: Instant, told: bool) -> Self {
        Self {
            rng,
            calls: HashMap::new(),
            current: 0,
            providers: (0..providers).map(|_| Account::default()).collect(),
            requests: 0,
            by_fallback: 0,
            rejected: 0,
            exhausted: 0,
            unclaimed: 0,
            hedges: 0,
            hedges_told: 0,
            earned: 0,
            wrong: None,
            digest: 0xcbf2_9ce4_8422_2325,
            told,
            begun,
        }
    }

    /// Keeps the first thing that is wrong.
    pub(crate) fn check(&mut self, holds: bool, promise: impl FnOnce() -> String) {
        if !holds && self.wrong.is_none() {
            let wrong = format!("call {}: {}", self.current, promise());
            self.note(|| wrong.clone());
            self.wrong = Some(wrong);
        }
    }

    pub(crate) fn note(&self, line: impl FnOnce() -> String) {
        if self.told {
            println!("{}", line());
        }
    }

    pub(crate) fn since(&self, then: Instant) -> u128 {
        then.saturating_duration_since(self.begun).as_millis()
    }

    fn hash(&mut self, values: [u128; 5]) {
        for value in values {
            self.digest = (self.digest ^ value as u64).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    /// When a timer fires that is set to then: at the next whole millisecond.
    fn tick(&self, then: Instant) -> Instant {
        let since = then.saturating_duration_since(self.begun).as_nanos();
        self.begun + ms(since.div_ceil(1_000_000) as u64)
    }

    /// A request reaches a provider. All that the chain decided was decided at this very moment. Returns
    /// the number of the attempt.
    pub(crate) fn begin(
        &mut self,
        id: u64,
        arrived: Arrived,
        snapshot: &Snapshot,
        settings: &Settings,
        now: Instant,
    ) -> usize {
        let Arrived { provider, answer, timeout } = arrived;
        let Some(mut call) = self.calls.remove(&id) else {
            self.check(false, || "a request of no call".to_owned());
            return 0;
        };
        self.current = id;
        let states = states(snapshot);
        let name = NAMES[provider];
        let line = format!("{:>9} call {id} asks {name}: {:?}", self.since(now), states[provider]);
        self.note(|| line);
        self.forget_leases(&states);
        self.check_nothing_due();
        let asked = call.entries.iter().any(|entry| entry.provider == provider);
        self.check(!asked, || format!("asks {name} twice"));
        let host = |provider: usize| settings.providers[provider].host;
        let is_lost =
            |entry: &Entry| entry.is_unreachable() && host(entry.provider) == host(provider);
        let is_lost = call.entries.iter().any(is_lost);
        self.check(!is_lost, || format!("asks {name}, whose host could not be reached"));
        self.check(call.order.contains(&provider), || format!("{name} is not on its route"));
        self.check(states[provider] != State::Isolated, || format!("{name} is isolated"));
        let is_probe = states[provider] == State::Probing && !self.is_leased(provider, now);
        let may_probe = call.replayable && call.in_flight() == 0;
        let others = self.others(&call, Some(provider), settings, &states, now);
        let left = left(&others);
        let own = match self.standing(provider, states[provider], now, may_probe) {
            _ if is_probe && !may_probe => Standing::PassedOver(now, Precision::Exact),
            _ if is_probe => Standing::Admissible,
            standing => standing,
        };
        self.check_turn(&call, provider, own, &others);
        let is_hedge = call.in_flight() > 0 && !call.failed_just_now;
        match is_hedge {
            true => self.check_hedge(&call, settings, now),
            false => self.check_may_go_on(&call, own, now),
        }
        self.check(call.in_flight() == 0 || own == Standing::Admissible, || {
            format!("asks {name} ({own:?}) while it is asking")
        });
        self.check(call.in_flight() < 2, || "asks three at once".to_owned());
        self.check(now < call.deadline, || "asks after its deadline".to_owned());
        if call.entries.is_empty() {
            self.earn(settings);
        }
        call.failed_just_now = false;
        call.hedged |= is_hedge;
        let expected = match call.entries.len() {
            0 => call.timeout,
            // What is left of it.
            _ => call.timeout.map(|_| call.deadline - now),
        };
        self.check(timeout == expected, || {
            format!("{name} is given {timeout:?}, not {expected:?}")
        });
        let is_last =
            !call.replayable || call.entries.len() + 1 >= call.max_attempts || !left.any();
        let (until, is_failure) = Self::limit(&call, settings, provider, is_last, now);
        let is_requests = until == call.deadline && call.is_short;
        let is_explicit =
            settings.explicit_limit(provider).is_some_and(|limit| now + limit == until);
        let grace = match is_requests && !is_explicit {
            true => CLIENTS_TIMEOUT_FIRST,
            false => Duration::ZERO,
        };
        let gives_up = self.tick(until + grace);
        let account = &mut self.providers[provider];
        account.attempts += 1;
        account.in_flight += 1;
        if is_probe {
            let until = until + settings.error_body_timeout + LEASE_MARGIN;
            account.lease = Some(Lease { call: id, until });
        }
        call.entries.push(Entry {
            provider,
            started: now,
            gives_up,
            is_failure,
            is_probe,
            is_hurried: account.rest.is_some_and(|until| until > now),
            moves: account.moves,
            rests: account.rests,
            is_last,
            answer,
            headers: None,
            reading: None,
            end: None,
        });
        let at = call.entries.len() - 1;
        self.calls.insert(id, call);
        at
    }

    /// When an attempt is to be given up, and whether that is its provider's failure. It is not where the
    /// caller chose the time, or where other attempts used it up.
    fn limit(
        call: &Call,
        settings: &Settings,
        provider: usize,
        is_last: bool,
        now: Instant,
    ) -> (Instant, bool) {
        let is_fair = call.entries.is_empty() && !call.is_short;
        let left = call.deadline - now;
        match settings.explicit_limit(provider) {
            Some(limit) if limit <= left => (now + limit, true),
            Some(_) => (call.deadline, is_fair),
            None if is_last => (call.deadline, is_fair),
            // Time is shared out.
            None if left >= 2 * DEFAULT_ATTEMPT => (now + DEFAULT_ATTEMPT, true),
            None => (now + left / 2, is_fair),
        }
    }

    /// A request is sent and earns its share of a hedge.
    fn earn(&mut self, settings: &Settings) {
        let Some(HedgeSettings { max_extra, .. }) = settings.hedge else { return };
        let share = (max_extra * 1e6).round() as u64;
        self.earned = (self.earned + share).min((100 * share).max(1_000_000));
    }

    /// A hedge is sent.
    fn check_hedge(&mut self, call: &Call, settings: &Settings, now: Instant) {
        let Some(HedgeSettings { delay, .. }) = settings.hedge else {
            return self.check(false, || "asks while it is asking".to_owned());
        };
        self.check(!call.hedged, || "hedges twice".to_owned());
        self.check(call.idempotent, || "hedges what must not be processed twice".to_owned());
        self.check(call.replayable, || "sends a stream twice".to_owned());
        self.check(call.entries.len() < call.max_attempts, || "asks too often".to_owned());
        let silent = call.entries.last().filter(|last| last.end.is_none());
        let due = silent.map(|silent| self.tick(silent.started + delay));
        self.check(due == Some(now), || format!("hedges now and not at {due:?}"));
        let left = self.earned.checked_sub(1_000_000);
        self.check(left.is_some(), || "has not earned its hedge".to_owned());
        self.earned = left.unwrap_or_default();
        self.hedges += 1;
    }

    /// The attempt's future is gone: there are headers or an error, or they are not waited for any more.
    pub(crate) fn end(
        &mut self,
        id: u64,
        at: usize,
        answered: bool,
        snapshot: &Snapshot,
        settings: &Settings,
        now: Instant,
    ) {
        let Some(call) = self.calls.get_mut(&id) else { return };
        let deadline = call.deadline;
        let entry = &mut call.entries[at];
        let (name, gives_up) = (NAMES[entry.provider], entry.gives_up);
        let mut late = now > gives_up;
        if answered {
            entry.headers = Some(now);
            let until = (now + settings.error_body_timeout).min(deadline);
            if entry.answer.is_read() && now < until {
                entry.reading = Some(until);
                late = false;
            }
        }
        let is_reading = entry.reading.is_some();
        self.current = id;
        self.check(!late, || format!("{name} was not given up in time"));
        if is_reading {
            return;
        }
        let ending = match answered {
            true => Ending::Answered { heard: false },
            false => self.ending_of_dropped(id, at),
        };
        if ending == Ending::TimedOut {
            let early = gives_up.saturating_duration_since(now);
            self.check(now == gives_up, || format!("{early:?} left to {name}"));
        }
        self.settle(id, at, ending, snapshot, settings, now);
    }

    /// Why an attempt is dropped that has no answer.
    fn ending_of_dropped(&self, id: u64, at: usize) -> Ending {
        let Some(call) = self.calls.get(&id) else { return Ending::Dropped };
        if call.dropped {
            return Ending::Dropped;
        }
        let good = |at: &usize| call.entries[*at].accepted().is_some_and(|status| status < 400);
        match call.ended.iter().copied().find(good) {
            Some(winner) => Ending::Lost { overtaken: winner > at },
            None => Ending::TimedOut,
        }
    }

    /// The body of an answer is polled, whose verdict follows if that was the end or the time is up.
    pub(crate) fn read(
        &mut self,
        id: u64,
        at: usize,
        is_over: bool,
        snapshot: impl FnOnce() -> Snapshot,
        settings: &Settings,
        now: Instant,
    ) {
        let Some(until) = self.reading(id, at) else { return };
        let fires = self.tick(until);
        self.check(now <= fires, || format!("reads for {:?} too long", now - fires));
        if is_over || now >= until {
            self.settle(id, at, Ending::Answered { heard: true }, &snapshot(), settings, now);
        }
    }

    /// An answer is dropped. If it was being read, it is not waited for any more.
    pub(crate) fn drop_answer(
        &mut self,
        id: u64,
        at: usize,
        snapshot: impl FnOnce() -> Snapshot,
        settings: &Settings,
        now: Instant,
    ) {
        if self.reading(id, at).is_none() {
            return;
        }
        self.current = id;
        let ending = self.ending_of_dropped(id, at);
        self.check(ending != Ending::TimedOut, || "an answer is not read to its end".to_owned());
        self.settle(id, at, ending, &snapshot(), settings, now);
    }

    fn reading(&self, id: u64, at: usize) -> Option<Instant> {
        let entry = &self.calls.get(&id)?.entries[at];
        entry.reading.filter(|_| entry.end.is_none())
    }

    /// The chain makes of an attempt what it makes of it.
    fn settle(
        &mut self,
        id: u64,
        at: usize,
        ending: Ending,
        snapshot: &Snapshot,
        settings: &Settings,
        now: Instant,
    ) {
        let Some(mut call) = self.calls.remove(&id) else { return };
        self.current = id;
        let states = states(snapshot);
        self.forget_leases(&states);
        self.check_nothing_due();
        let meaning = match ending {
            Ending::Answered { heard } => {
                Some(call.entries[at].answer.meaning(settings.transient, heard))
            }
            Ending::TimedOut => Some(Answer::HANGS.meaning(settings.transient, false)),
            Ending::Dropped | Ending::Lost { .. } => None,
        };
        let entry = &call.entries[at];
        let (provider, started) = (entry.provider, entry.started);
        let account = &mut self.providers[provider];
        if let (Some(headers), Some(_)) = (entry.headers, meaning.and_then(|it| it.status)) {
            account.learn(headers.saturating_duration_since(started));
        }
        let silence = now.saturating_duration_since(entry.headers.unwrap_or(started));
        let silence = if account.is_long(silence) { News::Silence } else { News::None };
        let news = match (ending, meaning.map(|meaning| (meaning.price, meaning.status))) {
            (Ending::Lost { overtaken: true }, _) => News::Silence,
            (Ending::Lost { overtaken: false }, _) => News::None,
            (Ending::Dropped, _) | (_, None) => silence,
            (Ending::TimedOut, _) if !entry.is_failure => silence,
            (_, Some((Price::Accepted, Some(..400)))) => News::Success,
            (_, Some((Price::Failure, _))) => News::Failure,
            (_, Some((Price::Cooldown(hint), _))) => News::Cooldown(hint),
            (_, Some((_, Some(_)))) => News::Alive,
            (_, Some((_, None))) => News::None,
        };
        account.in_flight -= 1;
        if entry.is_probe && account.lease.is_some_and(|lease| lease.call == id) {
            account.lease = None;
        }
        if news == News::Failure {
            account.failures += 1;
            account.failed_since += 1;
        }
        if settings.watched
            && let Some(breaker) = settings.breaker
        {
            account.hear(entry, news, breaker.consecutive, now);
        }
        let reason = meaning.map_or(Reason::Abandoned, |meaning| meaning.reason);
        let line = format!(
            "{:>9} call {id} has of {}: {reason} {:?}, {news:?}",
            self.since(now),
            NAMES[provider],
            meaning.and_then(|meaning| meaning.status)
        );
        self.note(|| line);
        let (from, to) = (self.since(started), self.since(now));
        self.hash([u128::from(id), provider as u128, from, to, reason as u128]);
        let end = End { at: now, meaning, news, left: Left::default() };
        call.entries[at].end = Some(end);
        call.ended.push(at);
        call.failed_just_now = meaning.is_some_and(|meaning| meaning.price != Price::Accepted);
        let left = left(&self.others(&call, None, settings, &states, now));
        call.entries[at].end = Some(End { left, ..end });
        self.count_served(&call, at);
        self.calls.insert(id, call);
    }

    /// Counts the provider whose answer is the caller's, once that is clear.
    fn count_served(&mut self, call: &Call, just_ended: usize) {
        let Some(served) = call.served() else { return };
        let is_good = call.entries[served].accepted().is_some_and(|status| status < 400);
        let is_clear = match is_good {
            true => served == just_ended,
            // An error that is accepted waits for a better answer.
            false => call.in_flight() == 0 && !call.dropped,
        };
        self.providers[call.entries[served].provider].served += u64::from(is_clear);
    }

    /// A breaker that closed has no probe, whichever request had been one.
    fn forget_leases(&mut self, states: &[State]) {
        for (account, state) in self.providers.iter_mut().zip(states) {
            if !matches!(state, State::Probing | State::Isolated) {
                account.lease = None;
            }
        }
    }

    fn is_leased(&self, provider: usize, now: Instant) -> bool {
        self.providers[provider].lease.is_some_and(|lease| lease.until > now)
    }

    pub(crate) fn check_nothing_due(&mut self) {
        let mut late = None;
        for (name, account) in NAMES.iter().zip(&mut self.providers) {
            if let Some(due) = account.due.take() {
                late = Some(format!("the breaker of {name} did not {due:?}"));
            }
            if std::mem::take(&mut account.rest_due) {
                late = Some(format!("{name} does not cool down"));
            }
        }
        self.check(late.is_none(), || late.unwrap_or_default());
    }

    /// The providers that this call may still ask, apart from this one.
    fn others(
        &self,
        call: &Call,
        apart_from: Option<usize>,
        settings: &Settings,
        states: &[State],
        now: Instant,
    ) -> Vec<(usize, Standing)> {
        let host = |provider: usize| settings.providers[provider].host;
        let excluded = |provider: usize| {
            let excludes = |entry: &Entry| {
                entry.provider == provider
                    || entry.is_unreachable() && host(entry.provider) == host(provider)
            };
            call.entries.iter().any(excludes)
        };
        let may_probe = call.replayable && call.in_flight() == 0;
        call.order
            .iter()
            .filter(|provider| Some(**provider) != apart_from && !excluded(**provider))
            .map(|&other| (other, self.standing(other, states[other], now, may_probe)))
            .filter(|(_, standing)| *standing != Standing::Isolated)
            .collect()
    }

    fn standing(&self, provider: usize, state: State, now: Instant, may_probe: bool) -> Standing {
        match state {
            State::Closed => Standing::Admissible,
            State::Open { until } if until <= now && may_probe => Standing::Admissible,
            State::Open { until } if until <= now => Standing::PassedOver(now, Precision::Exact),
            State::Open { until } | State::CoolingDown { until } => {
                Standing::PassedOver(until, Precision::Exact)
            }
            State::Probing => {
                let lease = self.providers[provider].lease.map_or(now, |lease| lease.until);
                Standing::PassedOver(lease, Precision::AtLeast)
            }
            _ => Standing::Isolated,
        }
    }

    /// The admissible in list order; then the passed-over by the time at which they reopen.
    fn check_turn(
        &mut self,
        call: &Call,
        provider: usize,
        own: Standing,
        others: &[(usize, Standing)],
    ) {
        let place = |of: usize| call.order.iter().position(|provider| *provider == of);
        let name = NAMES[provider];
        for (other, standing) in others {
            let is_before = place(*other) < place(provider);
            let better = NAMES[*other];
            let holds = match (own, *standing) {
                (Standing::Admissible, Standing::Admissible) => !is_before,
                (Standing::PassedOver(..), Standing::Admissible) => false,
                (Standing::PassedOver(own, _), Standing::PassedOver(until, Precision::Exact)) => {
                    own < until || own == until && !is_before
                }
                _ => true,
            };
            self.check(holds, || format!("asks {name} ({own:?}) before {better} ({standing:?})"));
        }
    }

    fn check_may_go_on(&mut self, call: &Call, own: Standing, now: Instant) {
        let last = call.last_ended().and_then(|last| last.end);
        let begins = last.map_or(call.begun, |end| end.at);
        self.check(begins == now, || "waits between two attempts".to_owned());
        let Some(last) = last else {
            return self.check(call.entries.is_empty(), || "asks while it is asking".to_owned());
        };
        let Some(meaning) = last.meaning else {
            return self.check(false, || "asks after it was dropped".to_owned());
        };
        self.check(call.served().is_none(), || "asks after an answer".to_owned());
        self.check(call.entries.len() < call.max_attempts, || "asks too often".to_owned());
        self.check(call.replayable, || "sends a stream twice".to_owned());
        let ambiguous = |entry: &Entry| {
            entry.end.and_then(|end| end.meaning).is_some_and(|meaning| meaning.ambiguous)
        };
        let replays = call.idempotent || !call.entries.iter().any(ambiguous);
        self.check(replays, || "may be processed twice, which it forbade".to_owned());
        let desperate = meaning.price != Price::Unhurt || own == Standing::Admissible;
        self.check(desperate, || "storms a provider that rests".to_owned());
    }

    /// Why the call may have ended without an answer, if it may.
    pub(crate) fn reason_to_stop(call: &Call) -> Option<&'static str> {
        let Some(last) = call.last_ended() else {
            return call.hopeless.then_some("none to ask");
        };
        let End { at, meaning, left, .. } = last.end?;
        let meaning = meaning?;
        let reasons = [
            (call.entries.len() >= call.max_attempts, "asked as many as allowed"),
            (at >= call.deadline, "no time left"),
            (meaning.ambiguous && !call.idempotent, "maybe processed"),
            (!call.replayable, "cannot be sent twice"),
            (call.entries.iter().any(|entry| entry.is_last) || !left.any(), "none left"),
            (left.admissible == 0 && meaning.price == Price::Unhurt, "its own fault"),
        ];
        reasons.into_iter().find(|(holds, _)| *holds).map(|(_, reason)| reason)
    }
}

fn left(others: &[(usize, Standing)]) -> Left {
    let admissible =
        others.iter().filter(|(_, standing)| *standing == Standing::Admissible).count();
    Left { admissible, passed_over: others.len() - admissible }
}

/// The providers' states in the order in which they were built.
pub(crate) fn states(snapshot: &Snapshot) -> Vec<State> {
    let mut states = vec![State::Isolated; snapshot.providers().len()];
    for provider in snapshot.providers() {
        states[index(provider.name())] = provider.state();
    }
    states
}

pub(crate) fn index(name: &str) -> usize {
    NAMES.iter().position(|known| *known == name).expect("a provider's name")
}
