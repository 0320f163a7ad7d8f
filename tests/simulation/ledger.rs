//! What really happened in a harness, kept by the providers and the callers themselves, to be held
//! against all that the chain tells.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use fastrand::Rng;
use reqwest_failover::{Reason, Report, Snapshot, State};

use crate::account::{Account, Lease};
use crate::answers::{Meaning, Price, Script};
use crate::settings::{DEFAULT_ATTEMPT, LEASE_MARGIN, NAMES, Settings};

pub(crate) struct Ledger {
    pub(crate) rng: Rng,
    /// The calls under way.
    pub(crate) calls: HashMap<u64, Call>,
    /// The call that is being polled or dropped.
    pub(crate) current: u64,
    pub(crate) providers: Vec<Account>,
    pub(crate) requests: u64,
    pub(crate) switched: u64,
    pub(crate) exhausted: u64,
    pub(crate) unclaimed: u64,
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
    pub(crate) idempotent: bool,
    pub(crate) begun: Instant,
    /// Whether anybody could be asked when it began.
    pub(crate) hopeless: bool,
    pub(crate) entries: Vec<Entry>,
    pub(crate) dropped: bool,
    /// How many attempts' beginnings and ends the events told of.
    pub(crate) started: usize,
    pub(crate) finished: usize,
    pub(crate) reports: Vec<Report>,
}

/// One request that reached a provider.
pub(crate) struct Entry {
    pub(crate) provider: usize,
    pub(crate) started: Instant,
    /// When the chain must give up on it.
    pub(crate) until: Instant,
    pub(crate) is_probe: bool,
    /// Whether it was asked although it wanted rest.
    pub(crate) is_hurried: bool,
    /// How often its breaker had moved.
    pub(crate) moves: u64,
    /// Whether nobody else was left to be asked when it began.
    pub(crate) is_last: bool,
    pub(crate) end: Option<End>,
}

#[derive(Clone, Copy)]
pub(crate) struct End {
    pub(crate) at: Instant,
    /// `None` if it was dropped by its caller.
    pub(crate) meaning: Option<Meaning>,
    /// Who of the others could still be asked.
    pub(crate) left: Left,
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

impl Ledger {
    pub(crate) fn new(rng: Rng, providers: usize, begun: Instant, told: bool) -> Self {
        Self {
            rng,
            calls: HashMap::new(),
            current: 0,
            providers: (0..providers).map(|_| Account::default()).collect(),
            requests: 0,
            switched: 0,
            exhausted: 0,
            unclaimed: 0,
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

    /// A request reaches a provider. All that the chain decided was decided at this very moment.
    pub(crate) fn begin(
        &mut self,
        id: u64,
        provider: usize,
        snapshot: &Snapshot,
        settings: &Settings,
        now: Instant,
    ) {
        let Some(call) = self.calls.remove(&id) else {
            return self.check(false, || "a request of nobody's".to_owned());
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
        self.check(call.order.contains(&provider), || format!("{name} is not on its route"));
        self.check(states[provider] != State::Isolated, || format!("{name} is isolated"));
        let is_probe = states[provider] == State::Probing && !self.is_leased(provider, now);
        let others: Vec<(usize, Standing)> = self.others(&call, provider, &states, now);
        let left = left(&others);
        let own = match self.standing(provider, states[provider], now, true) {
            _ if is_probe && !call.replayable => Standing::PassedOver(now, Precision::Exact),
            _ if is_probe => Standing::Admissible,
            standing => standing,
        };
        self.check_turn(&call, provider, own, &others);
        self.check_may_go_on(&call, settings, own, now);
        let peers = if own == Standing::Admissible { left.admissible } else { left.passed_over };
        let is_last =
            !call.replayable || call.entries.len() + 1 >= call.max_attempts || !left.any();
        let implied = (peers > 0 && !is_last).then_some(DEFAULT_ATTEMPT);
        let limit = settings.explicit_limit(provider).or(implied);
        let deadline = call.begun + settings.total_timeout;
        let until = limit.map_or(deadline, |limit| (now + limit).min(deadline));
        let account = &mut self.providers[provider];
        account.attempts += 1;
        account.in_flight += 1;
        if is_probe {
            account.lease = Some(Lease { call: id, until: until + LEASE_MARGIN });
        }
        let is_hurried = matches!(states[provider], State::CoolingDown { .. });
        let moves = account.moves;
        let mut call = call;
        call.entries.push(Entry {
            provider,
            started: now,
            until,
            is_probe,
            is_hurried,
            moves,
            is_last,
            end: None,
        });
        self.calls.insert(id, call);
    }

    /// The attempt ended: with an answer, or because nobody waits for it any more.
    pub(crate) fn end(
        &mut self,
        id: u64,
        answer: Option<Script>,
        snapshot: &Snapshot,
        settings: &Settings,
        now: Instant,
    ) {
        let Some(mut call) = self.calls.remove(&id) else { return };
        self.current = id;
        let states = states(snapshot);
        self.forget_leases(&states);
        self.check_nothing_due();
        let last = call.entries.len() - 1;
        let Entry { provider, started, until, is_probe, .. } = call.entries[last];
        let left = left(&self.others(&call, provider, &states, now));
        self.check(now <= until, || format!("{} was not given up in time", NAMES[provider]));
        if answer.is_none() && !call.dropped {
            let early = until.saturating_duration_since(now);
            self.check(now == until, || format!("{early:?} left to {}", NAMES[provider]));
        }
        let script = answer.or((!call.dropped).then_some(Script::Hang));
        let meaning = script.map(|script| script.meaning(settings.transient));
        let account = &mut self.providers[provider];
        account.in_flight -= 1;
        if is_probe && account.lease.is_some_and(|lease| lease.call == id) {
            account.lease = None;
        }
        match meaning.map(|meaning| meaning.price) {
            Some(Price::Failure) => {
                account.failures += 1;
                account.failed_since += 1;
            }
            Some(Price::Accepted) => account.served += 1,
            _ => {}
        }
        if settings.watched
            && let (Some(meaning), Some(breaker)) = (meaning, settings.breaker)
        {
            account.hear(&call.entries[last], meaning, breaker.consecutive);
        }
        let reason = meaning.map_or(Reason::Abandoned, |meaning| meaning.reason);
        let line = format!(
            "{:>9} call {id} has of {}: {reason} {:?}",
            self.since(now),
            NAMES[provider],
            meaning.and_then(|meaning| meaning.status)
        );
        self.note(|| line);
        let (from, to) = (self.since(started), self.since(now));
        self.hash([u128::from(id), provider as u128, from, to, reason as u128]);
        call.entries[last].end = Some(End { at: now, meaning, left });
        self.calls.insert(id, call);
    }

    /// A breaker that closed has no probe, whoever had been sent.
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
        let mut accounts = NAMES.iter().zip(&mut self.providers);
        let late = accounts.find_map(|(name, account)| Some((name, account.due.take()?)));
        if let Some((name, due)) = late {
            self.check(false, || format!("the breaker of {name} did not {due:?}"));
        }
    }

    /// The providers that this call may still ask, but for this one.
    fn others(
        &self,
        call: &Call,
        but: usize,
        states: &[State],
        now: Instant,
    ) -> Vec<(usize, Standing)> {
        let tried = |provider| call.entries.iter().any(|entry| entry.provider == provider);
        call.order
            .iter()
            .filter(|provider| **provider != but && !tried(**provider))
            .map(|&other| (other, self.standing(other, states[other], now, call.replayable)))
            .filter(|(_, standing)| *standing != Standing::Isolated)
            .collect()
    }

    fn standing(&self, provider: usize, state: State, now: Instant, replayable: bool) -> Standing {
        match state {
            State::Closed => Standing::Admissible,
            State::Open { until } if until <= now && replayable => Standing::Admissible,
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

    fn check_may_go_on(&mut self, call: &Call, settings: &Settings, own: Standing, now: Instant) {
        let deadline = call.begun + settings.total_timeout;
        self.check(now < deadline, || "asks after its deadline".to_owned());
        let begins =
            call.entries.last().map_or(call.begun, |last| last.end.map_or(now, |end| end.at));
        self.check(begins == now, || "waits between two attempts".to_owned());
        let Some(last) = call.entries.last() else { return };
        let Some(meaning) = last.end.and_then(|end| end.meaning) else {
            return self.check(false, || "asks while it is asking".to_owned());
        };
        self.check(meaning.price != Price::Accepted, || "asks after an answer".to_owned());
        self.check(call.entries.len() < call.max_attempts, || "asks too often".to_owned());
        self.check(call.replayable, || "sends a stream twice".to_owned());
        let replays = !meaning.ambiguous || call.idempotent;
        self.check(replays, || "may be processed twice, which it forbade".to_owned());
        let desperate = meaning.price != Price::Unhurt || own == Standing::Admissible;
        self.check(desperate, || "storms a provider that rests".to_owned());
    }

    /// Why the call may have ended without an answer, if it may.
    pub(crate) fn reason_to_stop(call: &Call, settings: &Settings) -> Option<&'static str> {
        let Some(last) = call.entries.last() else {
            return call.hopeless.then_some("nobody to ask");
        };
        let End { at, meaning, left } = last.end?;
        let meaning = meaning?;
        let reasons = [
            (call.entries.len() >= call.max_attempts, "asked as many as allowed"),
            (at >= call.begun + settings.total_timeout, "no time left"),
            (meaning.ambiguous && !call.idempotent, "maybe processed"),
            (!call.replayable, "cannot be sent twice"),
            (last.is_last || !left.any(), "nobody left"),
            (left.admissible == 0 && meaning.price == Price::Unhurt, "its own fault"),
        ];
        reasons.into_iter().find(|(holds, _)| *holds).map(|(_, reason)| reason)
    }
}

impl Entry {
    /// What an attempt's report must say: its reason, status, length, and whether it is ambiguous.
    pub(crate) fn expected(&self) -> Option<(Reason, Option<u16>, Duration, bool)> {
        let End { at, meaning, .. } = self.end?;
        let elapsed = at.saturating_duration_since(self.started);
        Some(match meaning {
            Some(meaning) => (meaning.reason, meaning.status, elapsed, meaning.ambiguous),
            None => (Reason::Abandoned, None, elapsed, false),
        })
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
