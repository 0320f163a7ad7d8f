//! Many threads at one health, in many orders: each holds the lock for one decision, as the driver
//! does, and anything may happen before its next one. A failing order is printed as a schedule, to
//! be given to `shuttle::replay` in place of the check that found it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use shuttle::rand::{Rng, thread_rng};
use shuttle::sync::{Mutex, MutexGuard};
use shuttle::thread;

use super::*;
use crate::run::{Ambiguous, ChainLimits, Judgement, Run, Step};
use crate::verdict::{Fault, Verdict};

const PROVIDERS: usize = 2;
const KEYS: [&[u8]; 2] = [b"a", b"b"];
/// How many requests the first provider may have; whom a limit makes no difference to may have more.
const MOST: u64 = 2;
const CALLERS: usize = 3;
const CALLS: usize = 6;
const ATTEMPT: Duration = Duration::from_secs(2);
const LONGEST_BREAK: Duration = Duration::from_secs(8);
const LONGEST_REST: Duration = Duration::from_secs(300);

/// What the threads share: the health, a clock that they move, and a naive account of it all.
struct Shared {
    health: HealthTable,
    order: Arc<[usize]>,
    now: Instant,
    accounts: [Account; PROVIDERS],
    permits: u64,
}

/// What is known of one provider without asking its health.
#[derive(Default)]
struct Account {
    /// The numbers of the permits that are out.
    out: BTreeSet<u64>,
    /// How many answers are being read.
    answers: u64,
    own: CircuitAccount,
    keys: [CircuitAccount; 2],
    attempts: u64,
    failures: u64,
    served: u64,
    isolated: bool,
}

/// What is known of one circuit.
#[derive(Default)]
struct CircuitAccount {
    /// The permits that are out and probe, and until when they may.
    probes: BTreeMap<u64, Instant>,
    is_open: bool,
    /// The end of the last cooldown that no success has followed.
    rest_until: Option<Instant>,
    /// The number of the last permit before it began.
    rested_after: u64,
    /// The permits that were given out during a cooldown: they can extend it, and begin no other.
    while_cooling_down: BTreeSet<u64>,
}

/// The right to ask a provider, which comes back however its holder ends.
struct Flight<'a> {
    shared: &'a Mutex<Shared>,
    key: Option<usize>,
    /// The health's permit and its number here.
    permit: Option<(Permit, u64)>,
}

/// An answer that is read at leisure.
struct AnswerInFlight<'a> {
    shared: &'a Mutex<Shared>,
    provider: usize,
}

impl Shared {
    fn new() -> Self {
        let breaker =
            Breaker::default().consecutive(2).breaks(Duration::from_secs(1), LONGEST_BREAK);
        let now = start();
        let mut health = HealthTable::new(PROVIDERS, Some(breaker), now, 7);
        health.limit_in_flight(0, MOST);
        Self {
            health,
            order: (0..PROVIDERS).collect(),
            now,
            accounts: Default::default(),
            permits: 0,
        }
    }

    /// Takes a permit that the health gave out into account.
    fn take(&mut self, permit: &Permit, key: Option<usize>, until: Instant) -> u64 {
        self.permits += 1;
        let (now, number) = (self.now, self.permits);
        let account = &mut self.accounts[permit.provider()];
        assert!(!account.isolated, "an isolated provider is asked");
        let lend = |circuit: &mut CircuitAccount| {
            assert_eq!(circuit.probes(now), 0, "two probes at once");
            circuit.probes.insert(number, until);
        };
        if permit.is_own_probe() {
            lend(&mut account.own);
        }
        if permit.is_key_probe() {
            lend(&mut account.keys[key.unwrap()]);
        }
        let key = key.map(|key| &mut account.keys[key]);
        for circuit in key.into_iter().chain([&mut account.own]) {
            if circuit.rest_until.is_some_and(|until| until > now) {
                circuit.while_cooling_down.insert(number);
            }
        }
        account.attempts += 1;
        account.out.insert(number);
        self.check();
        number
    }

    /// Takes what a permit's return, or a stream's good beginning, changed into account.
    fn hear(
        &mut self,
        provider: usize,
        key: Option<usize>,
        number: u64,
        succeeded: bool,
        changes: Changes,
    ) {
        let (permits, now) = (self.permits, self.now);
        let account = &mut self.accounts[provider];
        account.own.hear(number, permits, succeeded, changes.own(), now);
        match key {
            Some(key) => account.keys[key].hear(number, permits, succeeded, changes.key(), now),
            None => assert_eq!(changes.key(), UNMOVED),
        }
        self.check();
    }

    /// What the health says of itself is what is known.
    fn check(&self) {
        for (provider, account) in self.accounts.iter().enumerate() {
            let counts = self.health.counts(provider);
            assert_eq!(counts.in_flight, account.out.len() as u64 + account.answers, "in flight");
            assert_eq!(counts.attempts, account.attempts, "attempts");
            assert_eq!(counts.failures, account.failures, "failures");
            assert_eq!(counts.served, account.served, "served");
            let state = self.health.state(provider, self.now);
            match account.isolated {
                true => assert_eq!(state, State::Isolated),
                false => account.own.check(state, self.now),
            }
            for (key, account) in KEYS.into_iter().zip(&account.keys) {
                let mut resting = self.health.resting_keys(provider, self.now);
                let state = resting.find(|(name, _)| *name == key);
                account.check(state.map_or(State::Closed, |(_, state)| state), self.now);
            }
        }
    }
}

impl Account {
    fn forget(&mut self, key: Option<usize>, number: u64) {
        self.out.remove(&number);
        self.own.probes.remove(&number);
        if let Some(key) = key {
            self.keys[key].probes.remove(&number);
        }
    }
}

impl CircuitAccount {
    fn probes(&self, now: Instant) -> usize {
        self.probes.values().filter(|until| **until > now).count()
    }

    /// What ends a lease, apart from its permit and its time.
    fn hear(&mut self, number: u64, permits: u64, succeeded: bool, moves: Moves, now: Instant) {
        if let Some(Change::Opened { .. } | Change::Closed) = moves[0] {
            self.is_open = moves[0] != Some(Change::Closed);
            self.probes.clear();
        }
        let is_well = succeeded && number > self.rested_after;
        let cools = match moves[1] {
            Some(Change::CoolingDown { until }) => Some(until),
            _ => None,
        };
        // A cooldown that another request has only extended leaves its probe alone.
        let extends = self
            .rest_until
            .is_some_and(|until| until > now || self.while_cooling_down.contains(&number));
        if !self.is_open && (is_well || cools.is_some() && !extends) {
            self.probes.clear();
        }
        if cools.is_some() && !extends {
            self.rested_after = permits;
        }
        self.rest_until = cools.or(self.rest_until.filter(|_| !is_well));
    }

    fn check(&self, state: State, now: Instant) {
        let probes = self.probes(now);
        assert!(probes <= 1, "one probe at most");
        assert_eq!(state == State::Probing, probes == 1, "{state:?} with {probes} probes");
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        let Some((permit, number)) = self.permit.take() else { return };
        let mut shared = lock(self.shared);
        shared.health.cancel(&permit);
        shared.accounts[permit.provider()].forget(self.key, number);
        shared.check();
    }
}

impl Drop for AnswerInFlight<'_> {
    fn drop(&mut self) {
        let mut shared = lock(self.shared);
        shared.health.leave(self.provider);
        shared.accounts[self.provider].answers -= 1;
        shared.check();
    }
}

/// One request after the other, each in the steps that the driver makes.
fn keep_calling(shared: &Mutex<Shared>) {
    for _ in 0..CALLS {
        let (mut run, limits) = {
            let shared = lock(shared);
            let limits = limits();
            (Run::new(shared.order.clone(), &limits, true, None, shared.now), limits)
        };
        let key = [None, Some(0), Some(1)][thread_rng().gen_range(0..3)];
        run.set_key(key.map(|key: usize| KEYS[key].into()));
        while let Some(flight) = next(shared, key, &mut run, &limits) {
            thread::yield_now();
            let (goes_on, answer) = finish(flight, &mut run, &limits);
            thread::yield_now();
            drop(answer);
            if !goes_on {
                break;
            }
        }
    }
}

fn limits() -> ChainLimits {
    ChainLimits {
        max_attempts: usize::MAX,
        ambiguous: Ambiguous::FailOver,
        total: Duration::from_secs(60),
        hold: Duration::ZERO,
        attempts: vec![Some(ATTEMPT); PROVIDERS],
        hosts: (0..PROVIDERS as u32).collect(),
    }
}

fn next<'a>(
    shared: &'a Mutex<Shared>,
    key: Option<usize>,
    run: &mut Run,
    limits: &ChainLimits,
) -> Option<Flight<'a>> {
    let mut locked = lock(shared);
    let Shared { health, now, .. } = &mut *locked;
    let Step::Send { permit, until, .. } = run.step(limits, health, *now) else { return None };
    let number = locked.take(&permit, key, until.at + Duration::from_secs(1));
    Some(Flight { shared, key, permit: Some((permit, number)) })
}

/// Ends an attempt in one of the ways in which attempts end; whether the run may go on, and the answer
/// that is still being read.
fn finish<'a>(
    mut flight: Flight<'a>,
    run: &mut Run,
    limits: &ChainLimits,
) -> (bool, Option<AnswerInFlight<'a>>) {
    let failed = Verdict::FailOver(Fault::Failure);
    let cooled = Verdict::FailOver(Fault::Cooldown(None));
    let (verdict, status) = match thread_rng().gen_range(0..8) {
        0 => return (false, None),
        1 => {
            commit(&mut flight, run);
            return (false, None);
        }
        2 => (cooled, Some(429)),
        3 => (Verdict::FailOver(Fault::None), Some(400)),
        4 => (Verdict::FailOver(Fault::None), None),
        5 | 6 => (failed, None),
        _ => (Verdict::Accept, Some(200)),
    };
    let mut locked = lock(flight.shared);
    let Some((mut permit, number)) = flight.permit.take() else { return (false, None) };
    let (provider, key) = (permit.provider(), flight.key);
    let account = &mut locked.accounts[provider];
    account.forget(key, number);
    account.failures += u64::from(verdict == failed);
    account.served += u64::from(verdict == Verdict::Accept);
    let judgement = Judgement {
        verdict,
        ambiguous: false,
        unreachable: false,
        concern: if thread_rng().gen_bool(0.5) { Concern::Key } else { Concern::Provider },
        unknown_model: status == Some(400) && thread_rng().gen_bool(0.5),
        status,
        time_to_headers: Duration::ZERO,
        cut_after: None,
    };
    let Shared { health, now, .. } = &mut *locked;
    let answer = status.map(|_| {
        permit.detach();
        AnswerInFlight { shared: flight.shared, provider }
    });
    let (_, changes) = run.record_outcome(permit, judgement, limits, health, *now);
    locked.accounts[provider].answers += u64::from(answer.is_some());
    locked.hear(provider, key, number, verdict == Verdict::Accept, changes);
    drop(locked);
    (verdict != Verdict::Accept, answer)
}

/// Hands on a stream, of whose end the provider's health hears later, or never.
fn commit(flight: &mut Flight<'_>, run: &mut Run) {
    let key = flight.key;
    let mut locked = lock(flight.shared);
    let Some((permit, number)) = &mut flight.permit else { return };
    let provider = permit.provider();
    locked.accounts[provider].served += 1;
    let Shared { health, now, .. } = &mut *locked;
    let changes = run.commit(permit, 200, Duration::ZERO, health, *now);
    locked.hear(provider, key, *number, true, changes);
    drop(locked);
    thread::yield_now();
    if thread_rng().gen_bool(0.5) {
        return;
    }
    let mut locked = lock(flight.shared);
    let Some((permit, number)) = flight.permit.take() else { return };
    let account = &mut locked.accounts[provider];
    account.forget(key, number);
    account.failures += 1;
    let Shared { health, now, .. } = &mut *locked;
    let changes = health.record_outcome(permit, HealthSignal::Failure, Concern::Key, *now);
    locked.hear(provider, key, number, false, changes);
}

/// Lets time pass: now and then past the end of a break, or of a lease.
fn pass_time(shared: &Mutex<Shared>) {
    for _ in 0..CALLS {
        let millis = [1, 300, 600, 1_000, 3_001][thread_rng().gen_range(0..5)];
        lock(shared).now += Duration::from_millis(millis);
        lock(shared).check();
    }
}

/// Reorders, isolates and restores.
fn steer(shared: &Mutex<Shared>) {
    for _ in 0..CALLS {
        let provider = thread_rng().gen_range(0..PROVIDERS);
        let mut locked = lock(shared);
        match thread_rng().gen_range(0..3) {
            0 => locked.order = locked.order.iter().rev().copied().collect(),
            action => {
                let isolated = action == 1;
                locked.health.isolate(provider, isolated);
                locked.accounts[provider].isolated = isolated;
            }
        }
        locked.check();
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// All threads at once; then, when all are well, one request each brings every provider back.
fn scene() {
    let shared = Arc::new(Mutex::new(Shared::new()));
    let start = |work: fn(&Mutex<Shared>)| {
        let shared = shared.clone();
        thread::spawn(move || work(&shared))
    };
    let mut threads: Vec<_> = (0..CALLERS).map(|_| start(keep_calling)).collect();
    threads.extend([start(pass_time), start(steer)]);
    threads.into_iter().for_each(|thread| thread.join().unwrap());

    let mut shared = lock(&shared);
    let Shared { health, now, .. } = &mut *shared;
    for provider in 0..PROVIDERS {
        assert_eq!(health.counts(provider).in_flight, 0, "a slot is leaked");
        health.isolate(provider, false);
        assert_ne!(health.state(provider, *now), State::Probing, "no probe is out");
        *now += LONGEST_REST.max(LONGEST_BREAK);
        for key in KEYS {
            let permit = health.admit(provider, Some(key), *now, *now + ATTEMPT);
            health.record_outcome(permit, HealthSignal::Success, Concern::Key, *now);
        }
        assert_eq!(health.state(provider, *now), State::Closed);
        assert_eq!(health.resting_keys(provider, *now).count(), 0);
    }
}

#[expect(clippy::disallowed_methods, reason = "virtual time has to begin somewhere")]
fn start() -> Instant {
    Instant::now()
}

#[test]
fn no_random_order_of_threads_breaks_the_health_table() {
    shuttle::check_random(scene, 3_000);
}

#[test]
fn no_order_with_few_preemptions_breaks_the_health_table() {
    shuttle::check_pct(scene, 3_000, 3);
}
