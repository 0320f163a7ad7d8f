//! Many threads at one health, in many orders: each holds the lock for one decision, as the driver
//! does, and anything may happen before its next one. A failing order is printed as a schedule, to
//! be given to `shuttle::replay` in place of the check that found it.

use std::collections::BTreeMap;
use std::sync::Arc;

use shuttle::rand::{Rng, thread_rng};
use shuttle::sync::{Mutex, MutexGuard};
use shuttle::thread;

use super::circuit::LONGEST_COOLDOWN;
use super::*;
use crate::run::{Ambiguous, Judgement, Limits, Run, Step};
use crate::verdict::{Fault, Verdict};

const PROVIDERS: usize = 2;
const CALLERS: usize = 3;
const CALLS: usize = 6;
const ATTEMPT: Duration = Duration::from_secs(2);
const LONGEST_BREAK: Duration = Duration::from_secs(8);

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
    /// The permits that are out, and until when they may probe, where they may.
    out: BTreeMap<u64, Option<Instant>>,
    attempts: u64,
    failures: u64,
    served: u64,
    isolated: bool,
}

/// The right to ask a provider, which comes back however its holder ends.
struct Flight<'a> {
    shared: &'a Mutex<Shared>,
    /// The health's permit and its number here.
    permit: Option<(Permit, u64)>,
}

impl Shared {
    fn new() -> Self {
        let breaker =
            Breaker::default().consecutive(2).breaks(Duration::from_secs(1), LONGEST_BREAK);
        let now = start();
        Self {
            health: HealthTable::new(PROVIDERS, Some(breaker), now, 7),
            order: (0..PROVIDERS).collect(),
            now,
            accounts: Default::default(),
            permits: 0,
        }
    }

    /// Takes a permit that the health gave out into account.
    fn take(&mut self, permit: &Permit, until: Instant) -> u64 {
        self.permits += 1;
        let now = self.now;
        let account = &mut self.accounts[permit.provider];
        assert!(!account.isolated, "an isolated provider is asked");
        if permit.is_probe() {
            assert!(account.probes(now) == 0, "two probes at once");
        }
        account.attempts += 1;
        account.out.insert(self.permits, permit.is_probe().then_some(until));
        self.check();
        self.permits
    }

    /// Takes a permit that came back, or a stream's good beginning, into account.
    fn hear(&mut self, provider: usize, changes: Changes) {
        if changes[0] == Some(Change::Closed) {
            self.accounts[provider].out.values_mut().for_each(|probe| *probe = None);
        }
        self.check();
    }

    /// What the health says of itself is what is known.
    fn check(&self) {
        for (provider, account) in self.accounts.iter().enumerate() {
            let counts = self.health.counts(provider);
            assert_eq!(counts.in_flight, account.out.len() as u64, "in flight");
            assert_eq!(counts.attempts, account.attempts, "attempts");
            assert_eq!(counts.failures, account.failures, "failures");
            assert_eq!(counts.served, account.served, "served");
            let probes = account.probes(self.now);
            assert!(probes <= 1, "one probe at most");
            let state = self.health.state(provider, self.now);
            if account.isolated {
                assert_eq!(state, State::Isolated);
            } else {
                assert_eq!(state == State::Probing, probes == 1, "{state:?} with {probes} probes");
            }
        }
    }
}

impl Account {
    fn probes(&self, now: Instant) -> usize {
        self.out.values().flatten().filter(|until| **until > now).count()
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        let Some((permit, number)) = self.permit.take() else { return };
        let mut shared = lock(self.shared);
        shared.health.cancel(&permit);
        shared.accounts[permit.provider].out.remove(&number);
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
        while let Some(flight) = next(shared, &mut run, &limits) {
            thread::yield_now();
            if !finish(flight, &mut run, &limits) {
                break;
            }
        }
    }
}

fn limits() -> Limits {
    Limits {
        max_attempts: usize::MAX,
        ambiguous: Ambiguous::FailOver,
        total: Duration::from_secs(60),
        hold: Duration::ZERO,
        attempts: vec![Some(ATTEMPT); PROVIDERS],
        hosts: (0..PROVIDERS as u32).collect(),
    }
}

fn next<'a>(shared: &'a Mutex<Shared>, run: &mut Run, limits: &Limits) -> Option<Flight<'a>> {
    let mut locked = lock(shared);
    let Shared { health, now, .. } = &mut *locked;
    let Step::Send { permit, until, .. } = run.step(limits, health, *now) else { return None };
    let number = locked.take(&permit, until.at + Duration::from_secs(1));
    Some(Flight { shared, permit: Some((permit, number)) })
}

/// Ends an attempt in one of the ways in which attempts end; whether the run may go on.
fn finish(mut flight: Flight<'_>, run: &mut Run, limits: &Limits) -> bool {
    let failed = Verdict::FailOver(Fault::Failure);
    let cooled = Verdict::FailOver(Fault::Cooldown(None));
    let (verdict, status) = match thread_rng().gen_range(0..8) {
        0 => return false,
        1 => {
            commit(&mut flight, run);
            return false;
        }
        2 => (cooled, Some(429)),
        3 => (Verdict::FailOver(Fault::None), Some(400)),
        4 => (Verdict::FailOver(Fault::None), None),
        5 | 6 => (failed, None),
        _ => (Verdict::Accept, Some(200)),
    };
    let mut locked = lock(flight.shared);
    let Some((permit, number)) = flight.permit.take() else { return false };
    let provider = permit.provider;
    let account = &mut locked.accounts[provider];
    account.out.remove(&number);
    account.failures += u64::from(verdict == failed);
    account.served += u64::from(verdict == Verdict::Accept);
    let judgement = Judgement {
        verdict,
        ambiguous: false,
        unreachable: false,
        status,
        time_to_headers: Duration::ZERO,
        cut_after: None,
    };
    let Shared { health, now, .. } = &mut *locked;
    let (_, changes) = run.record_outcome(permit, judgement, limits, health, *now);
    locked.hear(provider, changes);
    verdict != Verdict::Accept
}

/// Hands on a stream, of whose end the provider's health hears later, or never.
fn commit(flight: &mut Flight<'_>, run: &mut Run) {
    let mut locked = lock(flight.shared);
    let Some((permit, _)) = &mut flight.permit else { return };
    let provider = permit.provider;
    locked.accounts[provider].served += 1;
    let Shared { health, now, .. } = &mut *locked;
    let changes = run.commit(permit, 200, Duration::ZERO, health, *now);
    locked.hear(provider, changes);
    drop(locked);
    thread::yield_now();
    if thread_rng().gen_bool(0.5) {
        return;
    }
    let mut locked = lock(flight.shared);
    let Some((permit, number)) = flight.permit.take() else { return };
    let account = &mut locked.accounts[provider];
    account.out.remove(&number);
    account.failures += 1;
    let Shared { health, now, .. } = &mut *locked;
    let changes = health.record_outcome(permit, HealthSignal::Failure, *now);
    locked.hear(provider, changes);
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
        assert_eq!(health.counts(provider).in_flight, 0);
        health.isolate(provider, false);
        assert_ne!(health.state(provider, *now), State::Probing, "no probe is out");
        *now += LONGEST_COOLDOWN.max(LONGEST_BREAK);
        let permit = health.admit(provider, *now, *now + ATTEMPT);
        health.record_outcome(permit, HealthSignal::Success, *now);
        assert_eq!(health.state(provider, *now), State::Closed);
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
