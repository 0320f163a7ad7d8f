//! What really happened in a harness, kept by the providers and the callers themselves, to be held
//! against all that the chain tells.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use fastrand::Rng;
use reqwest_failover::{Reason, Snapshot};

use crate::account::Account;
use crate::answers::{Answer, Price};
use crate::call::{Arrived, Call, End, Ending, Entry, Left};
use crate::circuit::{Lease, News, Shown};
use crate::list::List;
use crate::settings::{
    CLIENTS_TIMEOUT_FIRST, DEFAULT_ATTEMPT, HedgeSettings, LEASE_MARGIN, NAMES, Settings, ms,
};
use crate::turn::{Scene, Standing, left};

pub(crate) struct Ledger {
    pub(crate) rng: Rng,
    /// The calls under way.
    pub(crate) calls: HashMap<u64, Call>,
    /// The call that is being polled or dropped.
    pub(crate) current: u64,
    pub(crate) providers: Vec<Account>,
    /// The list that a call begins with now.
    pub(crate) list: List,
    pub(crate) replacements: u64,
    /// The attempts of calls that began with another list, and those at providers that no list has any more.
    pub(crate) by_earlier_lists: u64,
    pub(crate) at_unlisted: u64,
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

impl Ledger {
    pub(crate) fn new(rng: Rng, settings: &Settings, begun: Instant, told: bool) -> Self {
        Self {
            rng,
            calls: HashMap::new(),
            current: 0,
            providers: (0..settings.slots).map(|_| Account::default()).collect(),
            list: List::new(settings),
            replacements: 0,
            by_earlier_lists: 0,
            at_unlisted: 0,
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
        let key = call.key;
        let views = self.views(snapshot, Some((provider, key)), settings, now);
        let scene = Scene { settings, views, now };
        self.by_earlier_lists += u64::from(call.list < self.list.number);
        self.at_unlisted += u64::from(!self.list.has(provider));
        let (name, view) = (NAMES[provider], &scene.views[provider]);
        let line = format!(
            "{:>9} call {id} ({key:?}) asks {name}: {:?}, {:?}",
            self.since(now),
            view.own,
            view.state(key)
        );
        self.note(|| line);
        self.check_nothing_due();
        let is_probe = |key| {
            let circuit = self.providers[provider].circuit(key);
            view.state(key) == Shown::Probing && !circuit.is_leased(now)
        };
        let is_probe = [is_probe(None), key.is_some() && is_probe(key)];
        self.check_states(&scene, Some((provider, key)));
        let asked = call.entries.iter().any(|entry| entry.provider == provider);
        self.check(!asked, || format!("asks {name} twice"));
        let host = |provider: usize| settings.providers[provider].host;
        let is_lost =
            |entry: &Entry| entry.is_unreachable() && host(entry.provider) == host(provider);
        let is_lost = call.entries.iter().any(is_lost);
        self.check(!is_lost, || format!("asks {name}, whose host could not be reached"));
        self.check(call.order.contains(&provider), || format!("{name} is not on its route"));
        self.check(scene.views[provider].own != Shown::Isolated, || format!("{name} is isolated"));
        let may_probe = call.replayable && call.in_flight() == 0;
        let others = self.others(&call, Some(provider), &scene);
        let left = left(&others);
        let own = self.standing(provider, key, may_probe, &scene);
        self.check_turn(&call, provider, own, &others, now);
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
            // What is left of it, also where the chain's total is over sooner: that does not bind bodies.
            _ => call.timeout.map(|timeout| timeout.saturating_sub(now - call.begun)),
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
        let until = until + settings.error_body_timeout + LEASE_MARGIN;
        let lease = Lease { call: id, until };
        let probes = is_probe.map(|is_probe| is_probe.then_some(lease));
        let (own, of_key) = self.providers[provider].admit(key, probes, now);
        call.entries.push(Entry {
            provider,
            started: now,
            gives_up,
            is_failure,
            own,
            of_key,
            is_last,
            answer,
            headers: None,
            reading: None,
            is_answer_counted: false,
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
            let is_limited = settings.providers[entry.provider].max_in_flight.is_some();
            entry.is_answer_counted = is_limited && entry.answer.has_body();
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
        let scene = Scene { settings, views: self.views(snapshot, None, settings, now), now };
        // What the winner changed is emitted after both are reported.
        if !matches!(ending, Ending::Lost { .. }) {
            self.check_nothing_due();
            self.check_states(&scene, None);
        }
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
        let health = account.health_mut(call.key);
        if let (Some(headers), Some(_)) = (entry.headers, meaning.and_then(|it| it.status)) {
            health.learn(headers.saturating_duration_since(started));
        }
        let silence = now.saturating_duration_since(entry.headers.unwrap_or(started));
        let silence = if health.is_long(silence) { News::Silence } else { News::None };
        let news = match (ending, meaning.map(|meaning| (meaning.price, meaning.status))) {
            (Ending::Lost { overtaken: true }, _) => News::Silence,
            (Ending::Lost { overtaken: false }, _) => News::None,
            (Ending::Dropped, _) | (_, None) => silence,
            (Ending::TimedOut, _) if !entry.is_failure => silence,
            (_, Some((Price::Accepted, Some(..400)))) => News::Success,
            (_, Some((Price::Failure, _))) => News::Failure,
            (_, Some((Price::Cooldown(hint), _))) => News::Cooldown(hint),
            _ if meaning.is_some_and(|meaning| meaning.lacks_model) => News::UnknownModel,
            (_, Some((_, Some(_)))) => News::Alive,
            (_, Some((_, None))) => News::None,
        };
        if !entry.is_answer_counted {
            account.in_flight -= 1;
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
        let concerns_provider = meaning.is_some_and(|meaning| meaning.concerns_provider);
        let end = End { at: now, meaning, news, concerns_provider, left: Left::default() };
        call.entries[at].end = Some(end);
        let rules = settings.rules().filter(|_| settings.watched);
        self.providers[provider].hear(id, &call.entries[at], rules.as_ref());
        call.ended.push(at);
        call.failed_just_now = meaning.is_some_and(|meaning| meaning.price != Price::Accepted);
        let left = left(&self.others(&call, None, &scene));
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

    /// An answer is over that counted as in flight: read to its end, broken or dropped.
    pub(crate) fn leave(&mut self, provider: usize) {
        self.providers[provider].in_flight -= 1;
    }

    /// Every state follows from all that was heard before, and each count of requests in flight is the
    /// provider's own. Without events, a state only says which probes are over. One provider may have been
    /// `asked` just now, with a key.
    fn check_states(&mut self, scene: &Scene<'_>, asked: Option<(usize, Option<usize>)>) {
        let Scene { settings, views, now } = scene;
        let mut wrong = None;
        for (at, (account, view)) in self.providers.iter_mut().zip(views).enumerate() {
            let asked = asked.filter(|(asked, _)| *asked == at).map(|(_, key)| key);
            let in_flight = account.in_flight + u64::from(asked.is_some());
            let Some(shown) = view.in_flight else { continue };
            if shown != in_flight {
                wrong = Some(format!("in flight {shown}, not {in_flight}"));
            }
            let is_full = settings.providers[at].max_in_flight.is_some_and(|most| shown >= most);
            for (key, circuit) in account.circuits() {
                let state = view.state(key);
                if !settings.watched || settings.breaker.is_none() {
                    circuit.forget_lease_unless(state);
                    continue;
                }
                let is_asked = asked.is_some_and(|asked| key.is_none() || key == asked);
                let expected = match circuit.shown(*now) {
                    _ if state == Shown::Isolated => continue,
                    _ if is_asked && circuit.is_probe_due(*now) => Shown::Probing,
                    Shown::Closed if is_full && key.is_none() => Shown::AtCapacity,
                    expected => expected,
                };
                if state != expected {
                    wrong = Some(format!("{key:?} is {state:?}, not {expected:?}"));
                }
            }
            if let Some(wrong) = wrong.take() {
                let name = NAMES[at];
                return self.check(false, || format!("{name}: {wrong}"));
            }
        }
    }

    pub(crate) fn check_nothing_due(&mut self) {
        let mut late = None;
        for (name, account) in NAMES.iter().zip(&mut self.providers) {
            for (key, circuit) in account.circuits() {
                if let Some(due) = circuit.take_due() {
                    late = Some(format!("{name} {key:?}: {due}"));
                }
            }
        }
        self.check(late.is_none(), || late.unwrap_or_default());
    }
}
