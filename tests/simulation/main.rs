//! Simulated worlds: providers that fail in every way, callers that come and go, and a clock that
//! costs nothing. Each harness is drawn from one number, and each call in it is held against what the
//! providers themselves wrote down.
//!
//! `cargo test --test simulation` makes 50,000 calls; `FAILOVER_CALLS=1000000` makes a million.
//! `FAILOVER_SEED=7 cargo test --test simulation one_seed -- --nocapture` shows one harness.

mod account;
mod answers;
mod call;
mod callers;
mod circuit;
mod events;
mod harness;
mod ledger;
mod list;
mod outcomes;
mod settings;
mod turn;

use std::panic::catch_unwind;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use callers::{Plan, Way, call, keep_calling, steer};
use circuit::Shown;
use harness::Harness;
use ledger::Ledger;
use reqwest_failover::State;

/// What came of one harness.
struct Lived {
    made: Made,
    digest: u64,
    wrong: Option<String>,
}

/// How much there was to be held against the promises.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Made {
    calls: u64,
    attempts: u64,
    hedges: u64,
    /// Requests that were lent the end of a cooldown.
    lent: u64,
    /// How often a health key began to rest, or its breaker moved.
    key_moves: u64,
    /// How often a provider was passed over at its limit.
    passed_over: u64,
    /// How often the list was replaced.
    replacements: u64,
    /// The attempts of calls that began with another list, and those at providers that are gone.
    by_earlier_lists: u64,
    at_unlisted: u64,
}

impl Made {
    fn of(ledger: &Ledger) -> Self {
        let mut made = Self {
            calls: ledger.requests,
            hedges: ledger.hedges,
            replacements: ledger.replacements,
            by_earlier_lists: ledger.by_earlier_lists,
            at_unlisted: ledger.at_unlisted,
            ..Self::default()
        };
        for provider in &ledger.providers {
            made.attempts += provider.attempts;
            made.passed_over += provider.passed_over;
            made.lent += provider.lent();
            made.key_moves += provider.key_moves();
        }
        made
    }

    fn add(&mut self, more: Self) {
        self.calls += more.calls;
        self.attempts += more.attempts;
        self.hedges += more.hedges;
        self.lent += more.lent;
        self.key_moves += more.key_moves;
        self.passed_over += more.passed_over;
        self.replacements += more.replacements;
        self.by_earlier_lists += more.by_earlier_lists;
        self.at_unlisted += more.at_unlisted;
    }
}

/// Lives through the harness of this seed; with hedges, where that is asked for.
fn live(seed: u64, hedged: bool, told: bool) -> Lived {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        let harness = Harness::new(seed, hedged, told);
        run(&harness).await;
        check_rest(&harness);
        recover(&harness).await;
        check_counts(&harness);
        let ledger = harness.ledger();
        Lived { made: Made::of(&ledger), digest: ledger.digest, wrong: ledger.wrong.clone() }
    })
}

async fn run(harness: &Arc<Harness>) {
    let next = Arc::new(AtomicU64::new(1));
    let steering = harness.settings.steered.then(|| tokio::spawn(steer(harness.clone())));
    let callers: Vec<_> = (0..harness.settings.callers)
        .map(|_| tokio::spawn(keep_calling(harness.clone(), next.clone())))
        .collect();
    for caller in callers {
        caller.await.unwrap();
    }
    if let Some(steering) = steering {
        steering.abort();
    }
}

/// Nothing is left of the calls, and no provider is kept away for longer than it may be.
fn check_rest(harness: &Harness) {
    let (snapshot, now) = (harness.chain.snapshot(), harness::now());
    let longest = harness.settings.longest_rest();
    let mut ledger = harness.ledger();
    ledger.current = 0;
    ledger.check_nothing_due();
    for provider in snapshot.providers() {
        let name = provider.name();
        let in_flight = provider.in_flight();
        ledger.check(in_flight == 0, || format!("{in_flight} requests are still at {name}"));
        let states = provider.resting_keys().map(|(_, state)| state);
        for state in states.chain([provider.state()]) {
            ledger.check(state != State::Probing, || format!("the probe of {name} is stuck"));
            if let State::Open { until, .. } | State::CoolingDown { until, .. } = state {
                let rest = until.saturating_duration_since(now);
                ledger.check(rest <= longest, || format!("{name} rests for {rest:?}"));
            }
        }
    }
}

/// Every provider is well again: after the longest rest, one request each brings it back.
async fn recover(harness: &Arc<Harness>) {
    harness.shared.all_well.store(true, Ordering::Relaxed);
    let list = harness.ledger().list.clone();
    let slots: Vec<_> =
        (0..harness.settings.slots).filter(|slot| list.at(*slot).is_some()).collect();
    for provider in harness.chain.snapshot().providers() {
        harness.chain.restore(provider.name()).unwrap();
    }
    answers::pause(harness.settings.longest_rest().as_millis() as u64).await;
    let before: u64 = served(harness).iter().sum();
    let keys: Vec<_> = (0..harness.settings.keys).map(Some).chain([None]).collect();
    let mut ids = harness.settings.calls + 1..;
    let mut calls = 0;
    for (slot, key) in slots.into_iter().flat_map(|it| keys.iter().map(move |key| (it, *key))) {
        let Some(id) = ids.next() else { return };
        call(harness, Plan::plain(id, Way::only(slot), key)).await;
        calls += 1;
        let (snapshot, mut ledger) = (harness.chain.snapshot(), harness.ledger());
        let provider = list.at(slot).expect("a provider that is listed");
        let views = ledger.views(&snapshot, None, &harness.settings, harness::now());
        let (state, name) = (views[provider].state(key), settings::NAMES[provider]);
        let is_back = state == Shown::Closed;
        ledger.check(is_back, || format!("{name} {key:?} stays {state:?}"));
    }
    for (key, id) in keys.into_iter().zip(ids) {
        call(harness, Plan::plain(id, Way::Any, key)).await;
        calls += 1;
    }
    let after: u64 = served(harness).iter().sum();
    harness.ledger().check(after - before == calls, || {
        format!("{} of {calls} requests are served when all is well", after - before)
    });
}

fn served(harness: &Harness) -> Vec<u64> {
    harness.ledger().providers.iter().map(|provider| provider.served).collect()
}

/// The chain's counts are the ledger's.
fn check_counts(harness: &Harness) {
    let snapshot = harness.chain.snapshot();
    let mut ledger = harness.ledger();
    ledger.current = 0;
    let counted = [
        snapshot.requests(),
        snapshot.served_by_fallback(),
        snapshot.rejected(),
        snapshot.exhausted(),
        snapshot.passed_through(),
    ];
    let Ledger { requests, by_fallback, rejected, exhausted, unclaimed, .. } = *ledger;
    let kept = [requests, by_fallback, rejected, exhausted, unclaimed];
    ledger.check(counted == kept, || format!("counts {counted:?}, not {kept:?}"));
    for provider in snapshot.providers() {
        let own = &ledger.providers[turn::index(provider.name())];
        let counted =
            (provider.attempts(), provider.served(), provider.failures(), provider.in_flight());
        let kept = (own.attempts, own.served, own.failures, own.in_flight);
        let name = provider.name();
        ledger.check(counted == kept, || format!("{name} counts {counted:?}, not {kept:?}"));
        let own = &ledger.providers[turn::index(name)];
        let (made, told) = (own.crossings, own.crossings_told);
        let is_told = !harness.settings.watched || harness.settings.hedge.is_some() || made == told;
        ledger.check(is_told, || {
            format!("{name} is full {made} times, and that is told {told} times")
        });
    }
    if harness.settings.watched {
        let (sent, told) = (ledger.hedges, ledger.hedges_told);
        ledger.check(sent == told, || format!("{sent} hedges are told as {told}"));
    }
    let open = ledger.calls.len();
    ledger.check(open == 0, || format!("{open} calls never ended"));
}

/// What is asked for from outside.
fn asked(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().expect("a number"))
}

fn replay(seed: u64, hedged: bool) -> String {
    let hedged = if hedged { "FAILOVER_HEDGED=1 " } else { "" };
    format!("{hedged}FAILOVER_SEED={seed} cargo test --test simulation one_seed -- --nocapture")
}

#[test]
fn no_world_breaks_a_promise() {
    keeps_promises(false);
}

#[test]
fn no_world_with_hedges_breaks_a_promise() {
    let Made { hedges, .. } = keeps_promises(true);
    assert!(hedges > 1_000, "{hedges} hedges prove little");
}

/// Lives through world after world, until so many calls are made.
fn keeps_promises(hedged: bool) -> Made {
    let calls = asked("FAILOVER_CALLS").unwrap_or(50_000);
    let next = AtomicU64::new(asked("FAILOVER_FIRST_SEED").unwrap_or(0));
    let (seeds, failed) = (AtomicU64::new(0), AtomicBool::new(false));
    let all = Mutex::new(Made::default());
    let begun = now();
    let work = || {
        while all.lock().unwrap().calls < calls {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            let lived = catch_unwind(|| live(seed, hedged, false));
            seeds.fetch_add(1, Ordering::Relaxed);
            let wrong = match lived {
                Ok(lived) => {
                    all.lock().unwrap().add(lived.made);
                    lived.wrong
                }
                Err(_) => Some("a panic".to_owned()),
            };
            if let Some(wrong) = wrong {
                eprintln!("seed {seed}: {wrong}\n  {}", replay(seed, hedged));
                failed.store(true, Ordering::Relaxed);
                return;
            }
        }
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(work);
        work();
        other.join().unwrap();
    });
    let failed = usize::from(failed.into_inner());
    let all = all.into_inner().unwrap();
    let Made { calls, attempts, hedges, lent, key_moves, passed_over, .. } = all;
    let Made { replacements, by_earlier_lists, at_unlisted, .. } = all;
    println!(
        "seeds {seeds:?}, calls {calls}, attempts {attempts}, hedges {hedges}, cooldowns' ends lent \
         {lent}, moves of health keys {key_moves}, passed over at a limit {passed_over}, \
         lists replaced {replacements}, attempts with an earlier list {by_earlier_lists}, at a provider \
         that is gone {at_unlisted}, failed {failed} in {:.1} s",
        begun.elapsed().as_secs_f64()
    );
    assert_eq!(failed, 0, "the commands above replay what failed");
    let fewest = [lent, key_moves, passed_over].into_iter().min();
    let of_lists = [replacements, by_earlier_lists, 5 * at_unlisted].into_iter().min();
    assert!(fewest > Some(1_000) && of_lists > Some(500), "{all:?} prove little");
    all
}

#[test]
fn the_same_seed_is_the_same_world() {
    for (seed, hedged) in (0..20).flat_map(|seed| [(seed, false), (seed, true)]) {
        let (once, again) = (live(seed, hedged, false), live(seed, hedged, false));
        assert_eq!(once.digest, again.digest, "seed {seed}");
        assert_eq!(once.made, again.made);
    }
    assert_ne!(live(0, false, false).digest, live(1, false, false).digest);
}

/// The harness of `FAILOVER_SEED`, told line by line.
#[test]
fn one_seed_can_be_looked_at() {
    let (seed, hedged) = (asked("FAILOVER_SEED"), asked("FAILOVER_HEDGED").is_some());
    let lived = live(seed.unwrap_or(0), hedged, seed.is_some());
    assert_eq!(lived.wrong, None, "{}", replay(seed.unwrap_or(0), hedged));
}

fn now() -> Instant {
    Instant::now()
}
