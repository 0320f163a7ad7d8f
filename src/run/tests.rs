use proptest::prelude::*;

use super::*;
use crate::health::{Admission, Breaker, Change, Counts, Moves, State};
use crate::hedge::{Hedge, Hedging};

const SECOND: Duration = Duration::from_secs(1);
const MOMENT: Duration = Duration::from_nanos(1);

const SERVED: Judgement = judgement(Verdict::Accept, Some(200));
const FAILED: Judgement = failed_over(Fault::Failure, Some(500));
const BAD_REQUEST: Judgement = failed_over(Fault::None, Some(400));
const LIMITED: Judgement = failed_over(Fault::Cooldown(None), Some(429));
const REFUSED: Judgement = failed_over(Fault::Failure, None);
const TIMED_OUT: Judgement = Judgement { ambiguous: true, ..REFUSED };
const UNSENT: Judgement = failed_over(Fault::None, None);
const NOTHING_ACCEPTED: Judgement = judgement(Verdict::Accept, None);

const fn failed_over(fault: Fault, status: Option<u16>) -> Judgement {
    judgement(Verdict::FailOver(fault), status)
}

const fn judgement(verdict: Verdict, status: Option<u16>) -> Judgement {
    Judgement {
        verdict,
        ambiguous: false,
        unreachable: false,
        concern: Concern::Key,
        unknown_model: false,
        status,
        time_to_headers: Duration::ZERO,
        cut_after: None,
    }
}

/// A chain without a driver, and a clock that is moved by hand.
struct Harness {
    health: HealthTable,
    limits: ChainLimits,
    now: Instant,
}

/// An attempt that the run wants made.
#[derive(Debug)]
struct Sent {
    permit: Permit,
    until: Instant,
    last: bool,
}

impl Harness {
    fn of(providers: usize) -> Self {
        Self::with(providers, Some(Breaker::default()))
    }

    fn with(providers: usize, breaker: Option<Breaker>) -> Self {
        let now = start();
        let limits = ChainLimits {
            hold: Duration::ZERO,
            max_attempts: usize::MAX,
            ambiguous: Ambiguous::FailOver,
            total: ChainLimits::DEFAULT_TOTAL,
            attempts: vec![None; providers],
            hosts: (0..providers as u32).collect(),
        };
        Self { health: HealthTable::new(providers, breaker, now, 7), limits, now }
    }

    fn run(&self) -> Run {
        let order = (0..self.limits.attempts.len()).collect();
        Run::new(order, &self.limits, false, None, self.now)
    }

    /// A run whose request can be sent only once.
    fn run_once(&self) -> Run {
        let mut run = self.run();
        run.forbid_replay();
        run
    }

    fn step(&mut self, run: &mut Run) -> Option<Sent> {
        match run.step(&self.limits, &mut self.health, self.now) {
            Step::Send { permit, until, last, .. } => Some(Sent { permit, until: until.at, last }),
            Step::Done => None,
            Step::Wait(_) => panic!("nothing is in flight"),
        }
    }

    #[track_caller]
    fn send(&mut self, run: &mut Run) -> Sent {
        self.step(run).expect("a provider is to be asked")
    }

    fn record_outcome(&mut self, run: &mut Run, sent: Sent, judgement: Judgement) -> Moves {
        self.settle(run, sent.permit, judgement).1.own()
    }

    fn is_silence(&mut self, quiet_for: Duration) -> bool {
        let permit = self.health.admit(0, None, self.now, self.now);
        let is_silence = self.health.is_silence(&permit, quiet_for);
        self.health.cancel(&permit);
        is_silence
    }

    fn settle(
        &mut self,
        run: &mut Run,
        permit: Permit,
        judgement: Judgement,
    ) -> (Settled, Changes) {
        run.record_outcome(permit, judgement, &self.limits, &mut self.health, self.now)
    }

    fn commit(&mut self, run: &mut Run, permit: &mut Permit) -> Moves {
        run.commit(permit, 200, Duration::ZERO, &mut self.health, self.now).own()
    }

    /// Asks and is answered in one moment; returns who was asked.
    fn ask(&mut self, run: &mut Run, judgement: Judgement) -> Option<usize> {
        let sent = self.step(run)?;
        let provider = sent.permit.provider();
        self.record_outcome(run, sent, judgement);
        Some(provider)
    }

    /// Whom a run asks if all answer like this.
    fn asked_by(&mut self, mut run: Run, judgement: Judgement) -> Vec<usize> {
        std::iter::from_fn(|| self.ask(&mut run, judgement)).collect()
    }

    /// Answers as this provider, whatever its standing.
    fn answer(&mut self, provider: usize, signal: HealthSignal) {
        let permit = self.health.admit(provider, None, self.now, self.now);
        self.health.record_outcome(permit, signal, Concern::Key, self.now);
    }

    /// Opens a provider's breaker and returns the end of the break.
    fn open(&mut self, provider: usize) -> Instant {
        for _ in 0..5 {
            self.answer(provider, HealthSignal::Failure);
        }
        match self.state(provider) {
            State::Open { until } => until,
            state => panic!("{state:?} is not open"),
        }
    }

    fn cool(&mut self, provider: usize, seconds: u32) {
        self.answer(provider, HealthSignal::Cooldown(Some(SECOND * seconds)));
    }

    fn state(&self, provider: usize) -> State {
        self.health.state(provider, self.now)
    }

    fn counts(&self, provider: usize) -> Counts {
        self.health.counts(provider)
    }
}

#[expect(clippy::disallowed_methods, reason = "virtual time has to begin somewhere")]
fn start() -> Instant {
    Instant::now()
}

// Whom a run asks, and in which order.

#[test]
fn asks_the_providers_in_list_order_and_each_once() {
    for judgement in [FAILED, BAD_REQUEST, LIMITED, REFUSED, TIMED_OUT, UNSENT] {
        let mut harness = Harness::of(4);
        let run = harness.run();
        assert_eq!(harness.asked_by(run, judgement), [0, 1, 2, 3], "{judgement:?}");
    }
}

#[test]
fn asks_no_provider_after_an_outcome_was_accepted() {
    for status in [Some(200), Some(404), None] {
        let mut harness = Harness::of(2);
        let mut run = harness.run();
        assert!(!run.has_accepted());
        assert_eq!(harness.ask(&mut run, FAILED), Some(0));
        assert!(!run.has_accepted());
        assert_eq!(harness.ask(&mut run, Judgement { status, ..SERVED }), Some(1));
        assert!(run.has_accepted());
        let run = harness.run();
        assert_eq!(harness.asked_by(run, Judgement { status, ..SERVED }), [0]);
    }
}

#[test]
fn waits_while_an_attempt_is_in_flight() {
    let mut harness = Harness::of(2);
    let mut run = harness.run();
    let sent = harness.send(&mut run);
    for _ in 0..3 {
        assert!(matches!(
            run.step(&harness.limits, &mut harness.health, harness.now),
            Step::Wait(None)
        ));
    }
    harness.now = run.deadline().at + SECOND;
    assert!(matches!(
        run.step(&harness.limits, &mut harness.health, harness.now),
        Step::Wait(None)
    ));
    harness.record_outcome(&mut run, sent, FAILED);
    assert!(harness.step(&mut run).is_none(), "its time is up");
}

#[test]
fn takes_the_order_that_it_is_given_and_asks_none_twice() {
    let mut harness = Harness::of(4);
    let mut run = harness.run();
    run.reorder(|_| Ok::<_, ()>(Arc::from([3, 1, 3, 1, 3]))).unwrap();
    assert_eq!(run.first(), Some(3));
    assert_eq!(harness.asked_by(run, FAILED), [3, 1]);
    let mut run = harness.run();
    assert_eq!(run.reorder(|_| Err("unknown")), Err("unknown"));
    assert_eq!(run.first(), Some(0));
}

#[test]
fn takes_the_chains_order_and_knows_the_first_of_it_that_is_not_isolated() {
    let mut harness = Harness::of(3);
    let mut run = harness.run();
    run.set_order(Arc::from([2, 0, 1]));
    assert_eq!(run.first_of(&harness.health), Some(2));
    harness.health.isolate(2, true);
    assert_eq!(run.first_of(&harness.health), Some(0));
    harness.health.isolate(0, true);
    assert_eq!(run.first_of(&harness.health), Some(1));
    harness.health.isolate(1, true);
    assert_eq!(run.first_of(&harness.health), None);
    (0..3).for_each(|provider| harness.health.isolate(provider, false));
    assert_eq!(harness.asked_by(run, FAILED), [2, 0, 1]);
}

#[test]
fn has_room_for_as_many_providers_as_a_chain_may_have() {
    let mut harness = Harness::of(128);
    let run = harness.run();
    assert!(harness.asked_by(run, FAILED).into_iter().eq(0..128));
}

#[test]
fn asks_the_available_in_order_and_then_the_unavailable_by_the_time_they_reopen() {
    let mut harness = Harness::of(5);
    harness.cool(0, 60);
    harness.cool(2, 20);
    harness.cool(3, 40);
    let run = harness.run();
    assert_eq!(harness.asked_by(run, FAILED), [1, 4, 2, 3, 0]);
}

#[test]
fn unavailable_providers_that_reopen_together_keep_the_list_order() {
    let mut harness = Harness::of(4);
    (0..4).for_each(|provider| harness.cool(provider, 30));
    let run = harness.run();
    assert_eq!(harness.asked_by(run, FAILED), [0, 1, 2, 3]);
}

#[test]
fn an_open_provider_is_not_asked_while_another_one_serves() {
    let mut harness = Harness::of(2);
    harness.open(0);
    for _ in 0..100 {
        let run = harness.run();
        assert_eq!(harness.asked_by(run, SERVED), [1]);
    }
}

#[test]
fn a_request_is_never_refused_untried() {
    for judgement in [SERVED, FAILED, BAD_REQUEST] {
        let mut harness = Harness::of(2);
        harness.cool(0, 300);
        let reopens = harness.open(1);
        assert!(reopens < harness.now + SECOND * 300);
        let run = harness.run();
        assert_eq!(harness.asked_by(run, judgement)[0], 1, "the one that reopens first");
    }
}

#[test]
fn after_a_bad_request_no_unavailable_provider_is_asked() {
    // What the two healthy providers answer, and whether the open one is asked after them.
    for (first, second, asked) in [
        (FAILED, FAILED, true),
        (BAD_REQUEST, FAILED, true),
        (BAD_REQUEST, LIMITED, true),
        (BAD_REQUEST, TIMED_OUT, true),
        (FAILED, BAD_REQUEST, false),
        (BAD_REQUEST, BAD_REQUEST, false),
        (FAILED, UNSENT, false),
    ] {
        let mut harness = Harness::of(3);
        harness.open(0);
        let mut run = harness.run();
        assert_eq!(harness.ask(&mut run, first), Some(1));
        assert_eq!(harness.ask(&mut run, second), Some(2));
        assert_eq!(harness.ask(&mut run, FAILED), asked.then_some(0), "{first:?}, {second:?}");
    }
}

#[test]
fn a_bad_request_at_an_unavailable_provider_goes_to_no_other_such() {
    let mut harness = Harness::of(3);
    (0..3).for_each(|provider| harness.cool(provider, 30));
    let run = harness.run();
    assert_eq!(harness.asked_by(run, BAD_REQUEST), [0]);
}

#[test]
fn a_storm_of_bad_requests_does_not_hammer_an_open_provider() {
    let mut harness = Harness::of(2);
    harness.open(0);
    let (mut breaks, mut asked) = (1, 0);
    for _ in 0..10_000 {
        harness.now += SECOND / 10;
        let mut run = harness.run();
        while let Some(sent) = harness.step(&mut run) {
            let dead = sent.permit.provider() == 0;
            assert!(!dead || sent.permit.is_probe());
            asked += u32::from(dead);
            let changes =
                harness.record_outcome(&mut run, sent, if dead { FAILED } else { BAD_REQUEST });
            breaks += u32::from(matches!(changes[0], Some(Change::Opened { .. })));
        }
    }
    assert_eq!(asked, breaks - 1, "one probe for each break that is over");
    assert!((4..12).contains(&asked), "{asked}");
    assert_eq!(harness.state(1), State::Closed);
    assert_eq!(harness.counts(1).failures, 0);
}

#[test]
fn a_provider_that_reopens_in_the_meantime_is_available_again() {
    let mut harness = Harness::of(3);
    harness.cool(0, 1);
    let mut run = harness.run();
    let sent = harness.send(&mut run);
    assert_eq!(sent.permit.provider(), 1);
    harness.now += SECOND;
    harness.record_outcome(&mut run, sent, BAD_REQUEST);
    assert_eq!(harness.ask(&mut run, BAD_REQUEST), Some(0), "before the third in the list");
    assert_eq!(harness.ask(&mut run, BAD_REQUEST), Some(2));
}

// Probes.

#[test]
fn a_provider_whose_break_is_over_is_probed_in_its_turn() {
    let mut harness = Harness::of(2);
    harness.now = harness.open(0);
    let mut run = harness.run();
    let sent = harness.send(&mut run);
    assert!(sent.permit.is_probe());
    assert_eq!(sent.permit.provider(), 0);

    // Other requests pass it over.
    let other = harness.run();
    assert_eq!(harness.asked_by(other, SERVED), [1]);

    harness.record_outcome(&mut run, sent, SERVED);
    let other = harness.run();
    assert_eq!(harness.asked_by(other, SERVED), [0]);
}

#[test]
fn a_request_that_cannot_be_replayed_is_no_probe_while_a_provider_is_available() {
    let mut harness = Harness::of(3);
    harness.now = harness.open(0);
    let run = harness.run_once();
    assert_eq!(harness.asked_by(run, SERVED), [1]);
    assert_eq!(harness.counts(0).attempts, 5);
    harness.cool(1, 30);
    let run = harness.run_once();
    assert_eq!(harness.asked_by(run, SERVED), [2]);
}

#[test]
fn a_request_that_cannot_be_replayed_is_the_probe_where_no_provider_is_available() {
    for judgement in [SERVED, FAILED] {
        let mut harness = Harness::of(3);
        harness.cool(0, 300);
        harness.cool(2, 299);
        harness.now = harness.open(1);
        let mut run = harness.run_once();
        let sent = harness.send(&mut run);
        assert_eq!(sent.permit.provider(), 1, "it may be asked at once");
        assert!(sent.permit.is_probe() && sent.last);
        harness.record_outcome(&mut run, sent, judgement);
        assert!(harness.step(&mut run).is_none());
        assert_eq!(harness.state(1) == State::Closed, judgement.verdict == Verdict::Accept);
    }
}

#[test]
fn a_request_that_cannot_be_replayed_is_sent_once() {
    for judgement in [FAILED, BAD_REQUEST, LIMITED, TIMED_OUT] {
        let mut harness = Harness::of(3);
        let mut run = harness.run_once();
        let sent = harness.send(&mut run);
        assert!(sent.last);
        harness.record_outcome(&mut run, sent, judgement);
        assert!(harness.step(&mut run).is_none(), "{judgement:?}");
    }
}

#[test]
fn a_thousand_requests_at_the_end_of_a_break_send_one_probe() {
    let mut harness = Harness::of(2);
    harness.now = harness.open(0);
    let mut runs: Vec<_> = (0..1000).map(|_| harness.run()).collect();
    let asked: Vec<_> = runs.iter_mut().map(|run| harness.send(run)).collect();
    assert_eq!(asked.iter().filter(|sent| sent.permit.is_probe()).count(), 1);
    assert_eq!(asked.iter().filter(|sent| sent.permit.provider() == 0).count(), 1);
}

#[test]
fn a_lease_lasts_a_second_longer_than_its_request_may() {
    for (limit, total, lasts) in [
        (None, SECOND * 600, SECOND * 121),
        (Some(SECOND * 10), SECOND * 600, SECOND * 11),
        (Some(SECOND * 600), SECOND * 600, SECOND * 601),
        (None, SECOND * 5, SECOND * 7 / 2),
    ] {
        let mut harness = Harness::of(2);
        harness.limits.attempts[0] = limit;
        harness.limits.total = total;
        harness.now = harness.open(0);
        let mut run = harness.run();
        let sent = harness.send(&mut run);
        assert_eq!(sent.until + SECOND, harness.now + lasts);
        let end = harness.now + lasts;
        assert_eq!(harness.health.admission(0, None, end - MOMENT), Admission::Unavailable(end));
        assert_eq!(harness.health.admission(0, None, end), Admission::ProbeDue);
    }
}

#[test]
fn a_probe_that_sent_nothing_leaves_the_next_request_to_probe() {
    let mut harness = Harness::of(2);
    harness.now = harness.open(0);
    for _ in 0..3 {
        let mut run = harness.run();
        let sent = harness.send(&mut run);
        assert!(sent.permit.is_probe());
        assert_eq!(harness.record_outcome(&mut run, sent, UNSENT), [None, None]);
    }
    let mut run = harness.run();
    let sent = harness.send(&mut run);
    harness.health.cancel(&sent.permit);
    let run = harness.run();
    assert_eq!(harness.asked_by(run, BAD_REQUEST), [0, 1]);
    assert_eq!(harness.state(0), State::Closed, "an answer that is not its fault closes it");
}

// Isolation.

#[test]
fn an_isolated_provider_is_never_asked() {
    let mut harness = Harness::of(3);
    harness.health.isolate(1, true);
    for judgement in [FAILED, BAD_REQUEST] {
        let run = harness.run();
        assert_eq!(harness.asked_by(run, judgement), [0, 2]);
    }
    harness.health.isolate(0, true);
    harness.open(2);
    let run = harness.run();
    assert_eq!(harness.asked_by(run, FAILED), [2], "not even as the last resort");
    harness.health.isolate(2, true);
    let run = harness.run();
    assert!(harness.asked_by(run, FAILED).is_empty());
}

#[test]
fn a_provider_may_be_isolated_and_restored_while_a_run_is_under_way() {
    let mut harness = Harness::of(3);
    harness.health.isolate(2, true);
    let mut run = harness.run();
    let sent = harness.send(&mut run);
    assert!(!sent.last);
    harness.health.isolate(1, true);
    harness.health.isolate(2, false);
    harness.record_outcome(&mut run, sent, FAILED);
    let sent = harness.send(&mut run);
    assert_eq!(sent.permit.provider(), 2);
    // No other was left when it was sent, so that no copy of the request was kept.
    assert!(sent.last);
    harness.health.isolate(1, false);
    harness.record_outcome(&mut run, sent, FAILED);
    assert!(harness.step(&mut run).is_none());
}

// When a run stops.

#[test]
fn asks_no_more_providers_than_it_may() {
    for max_attempts in 1..5 {
        let mut harness = Harness::of(3);
        harness.limits.max_attempts = max_attempts;
        let run = harness.run();
        assert_eq!(harness.asked_by(run, FAILED).len(), max_attempts.min(3));
    }
    let mut harness = Harness::of(3);
    let mut run = harness.run();
    run.forbid_failover();
    assert_eq!(harness.asked_by(run, FAILED), [0]);
}

#[test]
fn an_ambiguous_outcome_ends_a_run_only_where_twice_is_not_as_good_as_once() {
    for (ambiguous, idempotent, judgement, goes_on) in [
        (Ambiguous::FailOver, false, TIMED_OUT, true),
        (Ambiguous::FailOver, true, TIMED_OUT, true),
        (Ambiguous::IdempotentOnly, true, TIMED_OUT, true),
        (Ambiguous::IdempotentOnly, false, TIMED_OUT, false),
        (Ambiguous::IdempotentOnly, false, REFUSED, true),
        (Ambiguous::IdempotentOnly, false, FAILED, true),
        (Ambiguous::IdempotentOnly, false, Judgement { ambiguous: true, ..BAD_REQUEST }, false),
    ] {
        let mut harness = Harness::of(2);
        harness.limits.ambiguous = ambiguous;
        let run = Run::new(Arc::from([0, 1]), &harness.limits, idempotent, None, harness.now);
        let asked = harness.asked_by(run, judgement);
        assert_eq!(asked.len() == 2, goes_on, "{ambiguous:?}, {idempotent}, {judgement:?}");
    }
}

#[test]
fn an_ambiguous_outcome_that_ends_the_run_still_costs_the_provider() {
    let mut harness = Harness::of(2);
    harness.limits.ambiguous = Ambiguous::IdempotentOnly;
    for _ in 0..5 {
        let run = harness.run();
        assert_eq!(harness.asked_by(run, TIMED_OUT), [0]);
    }
    assert!(matches!(harness.state(0), State::Open { .. }));
}

#[test]
fn asks_no_provider_once_its_time_is_up() {
    for (passed, asked) in
        [(SECOND * 10 - MOMENT, true), (SECOND * 10, false), (SECOND * 11, false)]
    {
        let mut harness = Harness::of(2);
        harness.limits.total = SECOND * 10;
        let mut run = harness.run();
        assert_eq!(run.deadline().at, harness.now + SECOND * 10);
        let sent = harness.send(&mut run);
        harness.now += passed;
        harness.record_outcome(&mut run, sent, FAILED);
        let next = harness.step(&mut run);
        assert_eq!(next.is_some(), asked, "{passed:?}");
        assert!(next.is_none_or(|sent| sent.until == run.deadline().at));
    }
}

#[test]
fn a_run_that_begins_when_its_time_is_up_asks_no_provider() {
    let mut harness = Harness::of(2);
    let run = harness.run();
    harness.now = run.deadline().at;
    assert!(harness.asked_by(run, SERVED).is_empty());
    assert_eq!(harness.counts(0), Counts::default());
}

// How long an attempt may take, and whether it is the last.

#[test]
fn the_default_attempt_timeout_binds_all_but_the_last_available_attempt() {
    let mut harness = Harness::of(3);
    let mut run = harness.run();
    for bound in [true, true, false] {
        let sent = harness.send(&mut run);
        let until = if bound { harness.now + SECOND * 120 } else { run.deadline().at };
        assert_eq!(sent.until, until);
        harness.now += SECOND;
        harness.record_outcome(&mut run, sent, FAILED);
    }
}

#[test]
fn the_default_attempt_timeout_binds_also_where_only_unavailable_providers_are_left() {
    let mut harness = Harness::of(3);
    harness.cool(0, 200);
    harness.cool(2, 300);
    let mut run = harness.run();
    let mut limits = Vec::new();
    while let Some(sent) = harness.step(&mut run) {
        limits.push((sent.permit.provider(), sent.until - harness.now, sent.last));
        harness.record_outcome(&mut run, sent, FAILED);
    }
    // Among the unavailable, there is another one to go on to, and then there is not.
    let (total, bound) = (SECOND * 600, SECOND * 120);
    assert_eq!(limits, [(1, bound, false), (0, bound, false), (2, total, true)]);
}

#[test]
fn an_explicit_attempt_timeout_always_binds() {
    let mut harness = Harness::of(3);
    harness.limits.attempts = vec![Some(SECOND * 10), Some(SECOND * 200), Some(SECOND * 30)];
    let mut run = harness.run();
    for seconds in [10, 200, 30] {
        let sent = harness.send(&mut run);
        assert_eq!(sent.until, harness.now + SECOND * seconds);
        harness.record_outcome(&mut run, sent, FAILED);
    }
    let mut only = Harness::of(1);
    only.limits.attempts = vec![Some(SECOND * 10)];
    let mut run = only.run_once();
    assert_eq!(only.send(&mut run).until, only.now + SECOND * 10);
}

#[test]
fn the_default_does_not_bind_an_attempt_that_is_the_last_for_another_reason() {
    let unbound = |mut run: Run, harness: &mut Harness| {
        let sent = harness.send(&mut run);
        assert!(sent.last);
        assert_eq!(sent.until, run.deadline().at);
    };
    let mut harness = Harness::of(3);
    unbound(harness.run_once(), &mut harness);
    let mut run = harness.run();
    run.forbid_failover();
    unbound(run, &mut harness);
    harness.limits.max_attempts = 1;
    unbound(harness.run(), &mut harness);
    harness.limits.max_attempts = 3;
    harness.health.isolate(1, true);
    harness.health.isolate(2, true);
    unbound(harness.run(), &mut harness);
    let mut harness = Harness::of(1);
    unbound(harness.run(), &mut harness);
}

#[test]
fn no_attempt_outlasts_the_total() {
    let mut harness = Harness::of(3);
    harness.limits.total = SECOND * 100;
    harness.limits.attempts[1] = Some(SECOND * 100);
    let mut run = harness.run();
    // Half of it, all of it, and what is left of it.
    for share in [2, 1, 1] {
        let sent = harness.send(&mut run);
        assert_eq!(sent.until, harness.now + (run.deadline().at - harness.now) / share);
        harness.now += SECOND;
        harness.record_outcome(&mut run, sent, FAILED);
    }
}

#[test]
fn only_the_attempt_after_which_no_provider_is_left_is_the_last() {
    let last = |harness: &mut Harness, mut run: Run| {
        let mut all = Vec::new();
        while let Some(sent) = harness.step(&mut run) {
            all.push(sent.last);
            harness.record_outcome(&mut run, sent, FAILED);
        }
        all
    };
    let mut harness = Harness::of(3);
    let run = harness.run();
    assert_eq!(last(&mut harness, run), [false, false, true]);
    harness.open(0);
    let run = harness.run();
    assert_eq!(last(&mut harness, run), [false, false, true], "the passed-over one is left");
    harness.health.isolate(1, true);
    let run = harness.run();
    assert_eq!(last(&mut harness, run), [false, true]);
    harness.health.isolate(1, false);
    harness.limits.max_attempts = 2;
    let run = harness.run();
    assert_eq!(last(&mut harness, run), [false, true]);
}

#[test]
fn tells_whether_a_copy_of_the_request_is_worth_having() {
    let mut harness = Harness::of(2);
    assert!(harness.run().may_fail_over(&harness.health));
    let mut run = harness.run();
    run.forbid_failover();
    assert!(!run.may_fail_over(&harness.health));
    harness.open(0);
    assert!(harness.run().may_fail_over(&harness.health));
    harness.health.isolate(0, true);
    assert!(!harness.run().may_fail_over(&harness.health));
    harness.limits.max_attempts = 1;
    harness.health.isolate(0, false);
    assert!(!harness.run().may_fail_over(&harness.health));
    let harness = Harness::of(1);
    assert!(!harness.run().may_fail_over(&harness.health));
}

// What an outcome says about the provider.

#[test]
fn every_judgement_is_its_own_signal() {
    let accepted = |status| Judgement { status, ..SERVED };
    let hint = Some(SECOND);
    for (judgement, signal) in [
        (accepted(Some(101)), HealthSignal::Success),
        (accepted(Some(200)), HealthSignal::Success),
        (accepted(Some(304)), HealthSignal::Success),
        (accepted(Some(399)), HealthSignal::Success),
        (accepted(Some(400)), HealthSignal::Neutral),
        (accepted(Some(404)), HealthSignal::Neutral),
        (accepted(Some(500)), HealthSignal::Neutral),
        (accepted(None), HealthSignal::Nothing),
        (BAD_REQUEST, HealthSignal::Neutral),
        (failed_over(Fault::None, Some(200)), HealthSignal::Neutral),
        (UNSENT, HealthSignal::Nothing),
        (FAILED, HealthSignal::Failure),
        (REFUSED, HealthSignal::Failure),
        (TIMED_OUT, HealthSignal::Failure),
        (LIMITED, HealthSignal::Cooldown(None)),
        (failed_over(Fault::Cooldown(hint), Some(503)), HealthSignal::Cooldown(hint)),
        (failed_over(Fault::Cooldown(hint), None), HealthSignal::Cooldown(hint)),
    ] {
        assert_eq!(judgement.signal(), signal, "{judgement:?}");
    }
}

#[test]
fn only_a_response_that_was_accepted_is_served() {
    let mut harness = Harness::of(1);
    for (judgement, served) in [
        (SERVED, 1),
        (Judgement { status: Some(404), ..SERVED }, 2),
        (Judgement { status: None, ..SERVED }, 2),
        (FAILED, 2),
        (BAD_REQUEST, 2),
    ] {
        let run = harness.run();
        harness.asked_by(run, judgement);
        assert_eq!(harness.counts(0).served, served, "{judgement:?}");
    }
    assert_eq!(harness.counts(0), Counts { attempts: 5, served: 2, failures: 1, in_flight: 0 });
}

// Minutes and hours of traffic.

/// Sends a request at every `interval`; each provider answers at once or, where it gives none,
/// hangs until its time is up. Returns how many breaks the first provider's breaker began, and how
/// many of its attempts were probes.
fn traffic(
    harness: &mut Harness,
    length: Duration,
    interval: Duration,
    answers: &[Option<Judgement>],
) -> (u32, u32) {
    let end = harness.now + length;
    let mut hanging: Vec<(Run, Sent)> = Vec::new();
    let (mut breaks, mut probes) = (0, 0);
    while harness.now < end {
        let mut under_way = vec![(harness.run(), None)];
        let due = |(_, sent): &mut (Run, Sent)| sent.until <= harness.now;
        let finished: Vec<_> = hanging.extract_if(.., due).collect();
        under_way.extend(finished.into_iter().map(|(run, sent)| (run, Some((sent, TIMED_OUT)))));
        for (mut run, mut outcome) in under_way {
            loop {
                if let Some((sent, judgement)) = outcome.take() {
                    let first = sent.permit.provider() == 0;
                    let opened = matches!(
                        harness.record_outcome(&mut run, sent, judgement)[0],
                        Some(Change::Opened { .. })
                    );
                    breaks += u32::from(first && opened);
                }
                let Some(sent) = harness.step(&mut run) else { break };
                probes += u32::from(sent.permit.provider() == 0 && sent.permit.is_probe());
                match answers[sent.permit.provider()] {
                    Some(judgement) => outcome = Some((sent, judgement)),
                    None => {
                        hanging.push((run, sent));
                        break;
                    }
                }
            }
        }
        harness.now += interval;
    }
    (breaks, probes)
}

#[test]
fn a_provider_that_hangs_for_ten_minutes_costs_one_probe_for_each_break() {
    for limit in [None, Some(SECOND), Some(SECOND * 10), Some(SECOND * 30)] {
        let mut harness = Harness::of(2);
        harness.limits.attempts[0] = limit;
        let (breaks, probes) =
            traffic(&mut harness, SECOND * 600, SECOND / 10, &[None, Some(SERVED)]);
        assert!(breaks >= 2, "{limit:?}: {breaks}");
        // The last break may still last, or its probe be out.
        let last_is_over = !matches!(harness.state(0), State::Open { .. });
        assert_eq!(probes, breaks - 1 + u32::from(last_is_over), "{limit:?}");
        // Apart from its probes it was only asked until the fifth timeout.
        let limit = limit.unwrap_or(SECOND * 120).as_secs() * 10;
        let asked = harness.counts(0).attempts - u64::from(probes);
        assert!((limit..limit + 6).contains(&asked), "{asked} before it opened");
        assert_eq!(harness.counts(1).failures, 0);
    }
}

#[test]
fn a_thousand_requests_to_a_dead_first_provider_cost_five_attempts_and_its_probes() {
    for (judgement, most) in [(FAILED, 5), (REFUSED, 5), (LIMITED, 1)] {
        let mut harness = Harness::of(2);
        let answers = [Some(judgement), Some(SERVED)];
        // All of them within what no break or cooldown is shorter than.
        let (_, probes) = traffic(&mut harness, SECOND * 4, SECOND / 250, &answers);
        assert_eq!(probes, 0);
        assert_eq!(harness.counts(0).attempts, most, "{judgement:?}");
        assert_eq!(harness.counts(1).served, 1000);
    }
}

#[test]
fn a_provider_that_recovers_serves_again_after_one_break() {
    let mut harness = Harness::of(2);
    traffic(&mut harness, SECOND * 10, SECOND / 10, &[Some(FAILED), Some(SERVED)]);
    let served = harness.counts(1).served;
    traffic(&mut harness, SECOND * 60, SECOND / 10, &[Some(SERVED), Some(SERVED)]);
    assert_eq!(harness.state(0), State::Closed);
    assert!(harness.counts(1).served - served <= 300, "the break lasted 30 s at most");
    assert!(harness.counts(0).served >= 300);
}

#[test]
fn two_dead_providers_do_not_lengthen_each_others_breaks() {
    let mut harness = Harness::of(2);
    let answers = [Some(FAILED), Some(FAILED)];
    let (breaks, probes) = traffic(&mut harness, SECOND * 600, SECOND / 10, &answers);
    assert!((3..8).contains(&breaks), "{breaks}");
    assert_eq!(probes, breaks - 1);
    let attempts = harness.counts(0).attempts + harness.counts(1).attempts;
    assert_eq!(attempts, 12_000, "no request was refused untried, and no provider asked twice");
}

#[test]
fn without_a_breaker_the_first_is_always_asked_first() {
    let mut harness = Harness::with(3, None);
    for judgement in [FAILED, LIMITED, BAD_REQUEST].into_iter().cycle().take(300) {
        let run = harness.run();
        assert_eq!(harness.asked_by(run, judgement), [0, 1, 2]);
    }
}

#[test]
fn no_limit_is_too_short_or_too_long() {
    let lengths = [
        Duration::ZERO,
        MOMENT,
        SECOND,
        SECOND * u32::MAX,
        Duration::from_secs(i64::MAX as u64),
        Duration::MAX - MOMENT,
        Duration::MAX,
    ];
    // The total that ends with time itself leaves no room for the lease's second.
    let mut most = Duration::MAX;
    while start().checked_add(most).is_none() {
        most /= 2;
    }
    let mut step = most;
    while !step.is_zero() {
        match start().checked_add(most + step) {
            Some(_) => most += step,
            None => step /= 2,
        }
    }
    let lengths = lengths.into_iter().chain([most, most - SECOND / 2, most - SECOND]);
    let lengths: Vec<_> = lengths.collect();
    for total in &lengths {
        for limit in lengths.iter().copied().map(Some).chain([None]) {
            let mut harness = Harness::with(2, Some(Breaker::default().consecutive(1)));
            harness.limits.total = *total;
            harness.limits.attempts = vec![limit; 2];
            for _ in 0..3 {
                let mut run = harness.run();
                while let Some(sent) = harness.step(&mut run) {
                    assert!(harness.now <= sent.until && sent.until <= run.deadline().at);
                    harness.record_outcome(&mut run, sent, FAILED);
                }
                harness.now += SECOND * 100;
            }
        }
    }
}

// Random histories, against the rules written down once more and without regard to cost.

/// Reads a random number as choices, one after the other.
struct Dice(u64);

impl Dice {
    fn below(&mut self, sides: u64) -> u64 {
        let choice = self.0 % sides;
        self.0 /= sides;
        choice
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    fn one_in(&mut self, sides: u64) -> bool {
        self.below(sides) == 0
    }

    fn judgement(&mut self) -> Judgement {
        let hint = self.of(&[0, 3, 100, 1_000]);
        self.of(&[
            FAILED,
            FAILED,
            TIMED_OUT,
            REFUSED,
            BAD_REQUEST,
            BAD_REQUEST,
            LIMITED,
            failed_over(Fault::Cooldown(Some(SECOND * hint)), Some(503)),
            UNSENT,
            SERVED,
            SERVED,
            Judgement { status: Some(404), ..SERVED },
            Judgement { status: None, ..SERVED },
        ])
    }
}

#[derive(Clone, Debug)]
enum Action {
    Begin {
        order: Vec<usize>,
        replayable: bool,
        idempotent: bool,
    },
    /// The outstanding attempt of this number, wrapped around, finishes.
    Finish(usize, Judgement),
    Cancel(usize),
    /// Its guard never runs.
    Forget(usize),
    Pass(Duration),
    Isolate(usize, bool),
}

#[derive(Clone, Debug)]
struct Setting {
    providers: usize,
    breaker: Breaker,
    limits: [Option<Duration>; MOST],
    total: Duration,
    max_attempts: usize,
    ambiguous: Ambiguous,
}

const MOST: usize = 4;

fn setting(number: u64) -> Setting {
    let mut dice = Dice(number);
    let seconds = |seconds: u64| Duration::from_secs(seconds);
    let total = seconds(dice.of(&[600, 600, 60, 1]));
    let mut limit = || {
        let limit = dice.of(&[None, None, Some(1), Some(50), Some(600)]);
        limit.map(seconds)
    };
    let limits = [limit(), limit(), limit(), limit()];
    Setting {
        providers: 1 + dice.below(MOST as u64) as usize,
        breaker: Breaker::default()
            .consecutive(dice.of(&[1, 2, 5]))
            .breaks(seconds(dice.of(&[30, 1, 0])), seconds(dice.of(&[300, 30]))),
        limits,
        total,
        max_attempts: dice.of(&[usize::MAX, usize::MAX, 1, 2, 3]),
        ambiguous: dice.of(&[Ambiguous::FailOver, Ambiguous::IdempotentOnly]),
    }
}

fn action(number: u64, providers: usize) -> Action {
    let mut dice = Dice(number);
    match dice.below(16) {
        0..5 => {
            // Part of a random permutation.
            let mut rest: Vec<_> = (0..providers).collect();
            let mut order = Vec::new();
            while !rest.is_empty() && (order.is_empty() || !dice.one_in(8)) {
                let next = if dice.one_in(3) { dice.below(rest.len() as u64) } else { 0 };
                order.push(rest.remove(next as usize));
            }
            Action::Begin { order, replayable: !dice.one_in(4), idempotent: dice.one_in(2) }
        }
        5..11 => Action::Finish(dice.below(8) as usize, dice.judgement()),
        11 => Action::Cancel(dice.below(8) as usize),
        12 => Action::Forget(dice.below(8) as usize),
        13 | 14 => Action::Pass(Duration::from_millis(
            dice.of(&[0, 1, 900, 1_000, 5_000, 16_000, 30_000, 61_000, 121_000, 301_000]),
        )),
        _ => Action::Isolate(dice.below(providers as u64) as usize, dice.one_in(3)),
    }
}

/// A request under way, and what the rules need to know of it.
struct Request {
    run: Run,
    order: Vec<usize>,
    began: Instant,
    replayable: bool,
    idempotent: bool,
    asked: Vec<usize>,
    /// The judgement before, if there was one.
    before: Option<Judgement>,
    /// An attempt was announced to be the last.
    announced: bool,
}

/// Whom the rules want asked, until when, and whether as the last.
fn due(setting: &Setting, request: &Request, harness: &Harness) -> Option<(usize, Instant, bool)> {
    let deadline = request.began + setting.total;
    let over = match request.before {
        None => false,
        Some(Judgement { verdict: Verdict::Accept, .. }) => true,
        Some(Judgement { ambiguous, .. }) => {
            let once = setting.ambiguous == Ambiguous::IdempotentOnly && !request.idempotent;
            ambiguous && once || !request.replayable
        }
    };
    let enough = request.asked.len() >= setting.max_attempts;
    if over || enough || request.announced || harness.now >= deadline {
        return None;
    }
    let left: Vec<_> = request
        .order
        .iter()
        .copied()
        .filter(|provider| !request.asked.contains(provider))
        .map(|provider| (provider, harness.health.admission(provider, None, harness.now)))
        .filter(|(_, admission)| *admission != Admission::Isolated)
        .collect();
    let available: Vec<_> = left
        .iter()
        .filter(|(_, admission)| match admission {
            Admission::Available => true,
            Admission::ProbeDue => request.replayable,
            _ => false,
        })
        .map(|(provider, _)| *provider)
        .collect();
    let unhurt = Verdict::FailOver(Fault::None);
    let fault = request.before.is_none_or(|judgement| judgement.verdict != unhurt);
    let mut unavailable: Vec<_> =
        left.iter().filter(|(provider, _)| fault && !available.contains(provider)).collect();
    unavailable.sort_by_key(|(_, admission)| match admission {
        Admission::Unavailable(until) => *until,
        _ => harness.now,
    });
    let choice = match available.first() {
        Some(provider) => *provider,
        None => unavailable.first()?.0,
    };
    let last =
        !request.replayable || request.asked.len() + 1 >= setting.max_attempts || left.len() == 1;
    let until = match setting.limits[choice] {
        Some(limit) => harness.now + limit,
        None if last => deadline,
        None => harness.now + (SECOND * 120).min((deadline - harness.now) / 2),
    };
    Some((choice, until.min(deadline), last))
}

struct PairHarness {
    setting: Setting,
    harness: Harness,
    out: Vec<(Request, Sent)>,
    /// Each provider's probe that is out, and the end of its lease.
    leases: Vec<Option<Instant>>,
    forgotten: Vec<u64>,
}

impl PairHarness {
    fn new(setting: Setting) -> Self {
        let mut harness = Harness::with(setting.providers, Some(setting.breaker.clone()));
        harness.limits.total = setting.total;
        harness.limits.max_attempts = setting.max_attempts;
        harness.limits.ambiguous = setting.ambiguous;
        harness.limits.attempts = setting.limits[..setting.providers].to_vec();
        let leases = vec![None; setting.providers];
        let forgotten = vec![0; setting.providers];
        Self { setting, harness, out: Vec::new(), leases, forgotten }
    }

    fn begin(
        &mut self,
        order: Vec<usize>,
        replayable: bool,
        idempotent: bool,
    ) -> Result<bool, TestCaseError> {
        let limits = &self.harness.limits;
        let mut run = Run::new(order.clone().into(), limits, idempotent, None, self.harness.now);
        if !replayable {
            run.forbid_replay();
        }
        self.go_on(Request {
            run,
            order,
            began: self.harness.now,
            replayable,
            idempotent,
            asked: Vec::new(),
            before: None,
            announced: false,
        })
    }

    /// Takes the next step of a request, and returns whether there was one.
    fn go_on(&mut self, mut request: Request) -> Result<bool, TestCaseError> {
        let due = due(&self.setting, &request, &self.harness);
        let probe_due = due
            .map(|(provider, ..)| self.harness.health.admission(provider, None, self.harness.now));
        let Some(sent) = self.harness.step(&mut request.run) else {
            prop_assert_eq!(due, None);
            let isolated = |it: &usize| self.harness.state(*it) == State::Isolated;
            let untried = request.asked.is_empty() && !request.order.iter().all(isolated);
            prop_assert!(!untried, "refused untried");
            return Ok(false);
        };
        let provider = sent.permit.provider();
        prop_assert_eq!(Some((provider, sent.until, sent.last)), due);
        prop_assert_eq!(sent.permit.is_probe(), probe_due == Some(Admission::ProbeDue));
        prop_assert!(!request.asked.contains(&provider), "asked twice");
        prop_assert!(sent.until <= request.run.deadline().at, "beyond the deadline");
        if sent.permit.is_probe() {
            let held = self.leases[provider].filter(|until| *until > self.harness.now);
            prop_assert_eq!(held, None, "one probe for each lease");
            self.leases[provider] = Some(sent.until + SECOND);
        }
        request.asked.push(provider);
        request.announced = sent.last;
        self.out.push((request, sent));
        Ok(true)
    }

    fn take(&mut self, number: usize) -> Option<(Request, Sent)> {
        (!self.out.is_empty()).then(|| self.out.remove(number % self.out.len()))
    }

    fn play(&mut self, action: Action) -> Result<(), TestCaseError> {
        match action {
            Action::Begin { order, replayable, idempotent } => {
                self.begin(order, replayable, idempotent)?;
            }
            Action::Finish(number, judgement) => {
                let Some((mut request, sent)) = self.take(number) else { return Ok(()) };
                let (provider, until) = (sent.permit.provider(), sent.until);
                let probe = sent.permit.is_probe();
                let changes = self.harness.record_outcome(&mut request.run, sent, judgement);
                let succeeded = judgement.signal() == HealthSignal::Success;
                let moved = changes[0].is_some() || changes[1] != Some(Change::OnlyNotFound);
                if succeeded
                    || moved && changes != Moves::default()
                    || probe && self.leases[provider] == Some(until + SECOND)
                {
                    self.leases[provider] = None;
                }
                let opened = matches!(changes[0], Some(Change::Opened { .. }));
                let cooled = matches!(judgement.signal(), HealthSignal::Cooldown(_));
                let failed = judgement.signal() == HealthSignal::Failure;
                prop_assert!(!opened || failed || cooled);
                request.before = Some(judgement);
                self.go_on(request)?;
            }
            Action::Cancel(number) => {
                let Some((_, sent)) = self.take(number) else { return Ok(()) };
                self.harness.health.cancel(&sent.permit);
                let provider = sent.permit.provider();
                let lease = Some(sent.until + SECOND);
                if sent.permit.is_probe() && self.leases[provider] == lease {
                    self.leases[provider] = None;
                }
            }
            Action::Forget(number) => {
                if let Some((_, sent)) = self.take(number) {
                    self.forgotten[sent.permit.provider()] += 1;
                }
            }
            Action::Pass(length) => self.harness.now += length,
            Action::Isolate(provider, isolated) => self.harness.health.isolate(provider, isolated),
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 10_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_run_goes_the_way_that_the_rules_want(
        setting in any::<u64>().prop_map(setting),
        actions in proptest::collection::vec(any::<u64>(), 1..60),
    ) {
        let providers = setting.providers;
        let mut harness = PairHarness::new(setting);
        for number in actions {
            harness.play(action(number, providers))?;
        }

        // When every permit is back, none is in flight.
        while !harness.out.is_empty() {
            harness.play(Action::Cancel(0))?;
        }
        for provider in 0..providers {
            let in_flight = harness.harness.counts(provider).in_flight;
            prop_assert_eq!(in_flight, harness.forgotten[provider]);
        }
        // After the longest break, lease and cooldown every provider is asked again that may be.
        harness.harness.now += SECOND * (300 + 601 + 300);
        for provider in 0..providers {
            let isolated = harness.harness.state(provider) == State::Isolated;
            let asked = harness.begin(vec![provider], true, false)?;
            prop_assert_eq!(asked, !isolated);
            if let Some((_, sent)) = harness.take(0) {
                let regular = matches!(harness.harness.state(provider), State::Closed | State::Probing);
                prop_assert!(regular, "{:?} out of turn", sent);
            }
        }
    }

    #[test]
    fn bad_requests_and_429s_after_a_success_never_open_a_breaker(
        actions in proptest::collection::vec(any::<u64>(), 1..60),
    ) {
        let mut harness = Harness::with(2, Some(Breaker::default().consecutive(1).ratio(0.01, 1)));
        for number in actions {
            let mut dice = Dice(number);
            harness.now += SECOND * dice.of(&[0, 1, 6, 100]);
            let run = harness.run();
            let unhurt = dice.of(&[BAD_REQUEST, LIMITED, UNSENT, SERVED]);
            harness.asked_by(run, unhurt);
            (0..2).for_each(|provider| harness.answer(provider, HealthSignal::Success));
            for provider in 0..2 {
                let open = matches!(harness.state(provider), State::Open { .. });
                prop_assert!(!open);
            }
        }
    }
}

// Streams that have begun well, and whose end is still to come.

#[test]
fn a_run_ends_with_a_stream_that_has_begun_and_its_provider_has_served() {
    let mut harness = Harness::of(2);
    let mut run = harness.run();
    let mut stream = harness.send(&mut run);
    assert_eq!(harness.commit(&mut run, &mut stream.permit), Moves::default());
    assert!(harness.step(&mut run).is_none(), "no other provider is asked");
    assert_eq!((harness.counts(0).served, harness.counts(0).in_flight), (1, 1));
    harness.health.record_outcome(stream.permit, HealthSignal::Failure, Concern::Key, harness.now);
    assert_eq!((harness.counts(0).in_flight, harness.counts(0).failures), (0, 1));
}

#[test]
fn a_probe_that_begins_to_stream_closes_the_breaker() {
    let mut harness = Harness::of(1);
    harness.now = harness.open(0);
    let mut run = harness.run();
    let mut probe = harness.send(&mut run);
    let changes = harness.commit(&mut run, &mut probe.permit);
    assert_eq!(changes, [Some(Change::Closed), None]);
    assert_eq!(harness.state(0), State::Closed);
}

#[test]
fn a_stream_that_has_begun_during_another_attempt_waits_for_that_one_only() {
    let mut harness = Harness::hedging(3, 5);
    let mut run = harness.run();
    let slow = harness.send(&mut run);
    let mut hedge = harness.hedge(&mut run);
    harness.commit(&mut run, &mut hedge);
    harness.assert_never_hedges(&mut run);
    run.cancel_loser(slow.permit, &mut harness.health, harness.now);
    assert!(matches!(harness.raw_step(&mut run), Step::Done));
}

// Hedging: a second provider while the first is silent.

const SILENCE: Duration = Duration::from_millis(40);

impl Harness {
    /// A chain that hedges, and may send this many hedges.
    fn hedging(providers: usize, hedges: u64) -> Self {
        let mut harness = Self::of(providers);
        let hedge = Hedge::after(SILENCE);
        harness.health.hedging = Some(Hedging::with_balance(&hedge, providers, hedges));
        harness
    }

    /// Asks the next provider after the silence, and checks that this is a hedge.
    fn hedge(&mut self, run: &mut Run) -> Permit {
        let due = self.now + SILENCE;
        assert!(matches!(self.raw_step(run), Step::Wait(Some(at)) if at == due));
        assert_eq!(run.hedge_at(), Some(due));
        self.now = due - MOMENT;
        assert!(matches!(self.raw_step(run), Step::Wait(Some(at)) if at == due));
        self.now = due;
        match self.raw_step(run) {
            Step::Send { permit, hedge: true, .. } => permit,
            step => panic!("{step:?} is no hedge"),
        }
    }

    fn raw_step(&mut self, run: &mut Run) -> Step {
        run.step(&self.limits, &mut self.health, self.now)
    }

    #[track_caller]
    fn assert_never_hedges(&mut self, run: &mut Run) {
        for _ in 0..3 {
            assert!(matches!(self.raw_step(run), Step::Wait(None)));
            assert_eq!(run.hedge_at(), None);
            self.now += SECOND;
        }
    }

    /// Lets the next provider serve what this one was silent about.
    fn overtake(&mut self) -> Moves {
        let mut run = self.run();
        let slow = self.send(&mut run);
        let hedge = self.hedge(&mut run);
        run.record_outcome(hedge, SERVED, &self.limits, &mut self.health, self.now);
        run.cancel_loser(slow.permit, &mut self.health, self.now).own()
    }
}

#[test]
fn asks_one_more_provider_when_one_is_silent_and_no_third() {
    let mut harness = Harness::hedging(3, 5);
    let mut run = harness.run();
    let first = harness.send(&mut run);
    assert_eq!(first.permit.provider(), 0);
    assert_eq!(harness.hedge(&mut run).provider(), 1);
    harness.now += SECOND;
    harness.assert_never_hedges(&mut run);
}

#[test]
fn a_failure_launches_the_next_at_once_and_its_silence_counts_anew() {
    let mut harness = Harness::hedging(3, 5);
    let mut run = harness.run();
    let first = harness.send(&mut run);
    harness.now += SILENCE / 2;
    harness.record_outcome(&mut run, first, FAILED);
    let second = harness.send(&mut run);
    assert_eq!(second.permit.provider(), 1);
    assert_eq!(harness.hedge(&mut run).provider(), 2);
}

#[test]
fn a_failure_during_another_attempt_launches_the_next_at_once() {
    let mut harness = Harness::hedging(3, 5);
    let mut run = harness.run();
    let _slow = harness.send(&mut run);
    let hedge = harness.hedge(&mut run);
    run.record_outcome(hedge, FAILED, &harness.limits, &mut harness.health, harness.now);
    let Step::Send { permit, hedge: false, last: true, .. } = harness.raw_step(&mut run) else {
        panic!("the third is asked at once");
    };
    assert_eq!(permit.provider(), 2);
    run.record_outcome(permit, FAILED, &harness.limits, &mut harness.health, harness.now);
    harness.assert_never_hedges(&mut run);
}

#[test]
fn a_run_is_over_when_both_have_failed() {
    let mut harness = Harness::hedging(2, 5);
    let mut run = harness.run();
    let slow = harness.send(&mut run);
    let hedge = harness.hedge(&mut run);
    run.record_outcome(hedge, FAILED, &harness.limits, &mut harness.health, harness.now);
    harness.assert_never_hedges(&mut run);
    harness.record_outcome(&mut run, slow, FAILED);
    assert!(matches!(harness.raw_step(&mut run), Step::Done));
    assert_eq!([0, 1].map(|provider| harness.counts(provider).in_flight), [0, 0]);
}

#[test]
fn hedges_only_at_healthy_providers() {
    for disturb in [
        |harness: &mut Harness| _ = harness.open(1),
        |harness: &mut Harness| harness.cool(1, 100),
        |harness: &mut Harness| harness.now = harness.open(1),
        |harness: &mut Harness| harness.health.isolate(1, true),
    ] {
        let mut harness = Harness::hedging(2, 5);
        disturb(&mut harness);
        let mut run = harness.run();
        let first = harness.send(&mut run);
        assert_eq!(first.permit.provider(), 0);
        harness.now += SILENCE;
        harness.assert_never_hedges(&mut run);
    }
}

#[test]
fn never_hedges_what_must_not_be_processed_twice() {
    let mut harness = Harness::hedging(2, 5);
    let mut run = harness.run_once();
    harness.send(&mut run);
    harness.assert_never_hedges(&mut run);

    harness.limits.ambiguous = Ambiguous::IdempotentOnly;
    let mut run = harness.run();
    harness.send(&mut run);
    harness.assert_never_hedges(&mut run);

    let order = (0..2).collect();
    let mut idempotent = Run::new(order, &harness.limits, true, None, harness.now);
    harness.send(&mut idempotent);
    harness.hedge(&mut idempotent);
}

#[test]
fn never_hedges_beyond_the_attempts_or_the_allowance_or_the_deadline() {
    let mut harness = Harness::hedging(3, 5);
    harness.limits.max_attempts = 1;
    let mut run = harness.run();
    harness.send(&mut run);
    harness.assert_never_hedges(&mut run);

    let mut harness = Harness::hedging(3, 0);
    let mut run = harness.run();
    harness.send(&mut run);
    harness.now += SILENCE;
    harness.assert_never_hedges(&mut run);

    let mut harness = Harness::hedging(3, 5);
    let mut run = harness.run();
    harness.send(&mut run);
    harness.now = run.deadline().at;
    harness.assert_never_hedges(&mut run);
}

#[test]
fn an_allowance_is_spent_by_hedges_only() {
    let mut harness = Harness::hedging(2, 1);
    let mut failing = harness.run();
    assert_eq!(harness.ask(&mut failing, FAILED), Some(0));
    harness.send(&mut failing);
    let mut run = harness.run();
    harness.send(&mut run);
    harness.hedge(&mut run);
    let mut run = harness.run();
    harness.send(&mut run);
    harness.now += SILENCE;
    harness.assert_never_hedges(&mut run);
}

#[test]
fn being_overtaken_counts_toward_the_consecutive_trigger_only() {
    let mut harness = Harness::hedging(2, 100);
    for _ in 0..4 {
        assert_eq!(harness.overtake(), Moves::default());
    }
    harness.answer(0, HealthSignal::Success);
    // Eight of nine were overtaken by now, and no share opens the breaker.
    for _ in 0..4 {
        assert_eq!(harness.overtake(), Moves::default());
    }
    assert!(matches!(harness.overtake(), [Some(Change::Opened { .. }), None]));
    assert!(matches!(harness.state(0), State::Open { .. }));
    assert_eq!(harness.counts(0).failures, 0);
    assert_eq!(harness.counts(0).in_flight, 0);

    let mut harness = Harness::hedging(2, 100);
    for _ in 0..3 {
        (0..4).for_each(|_| _ = harness.overtake());
        harness.answer(0, HealthSignal::Success);
    }
    (0..4).for_each(|_| harness.answer(0, HealthSignal::Failure));
    assert_eq!(harness.state(0), State::Closed, "4 of 7 that count, and 10 are needed");
}

#[test]
fn a_probe_that_is_overtaken_has_failed() {
    let mut harness = Harness::hedging(2, 100);
    let end = harness.open(0);
    harness.now = end;
    assert!(matches!(harness.overtake(), [Some(Change::Opened { breaks: 2, .. }), None]));
}

#[test]
fn a_hedge_that_comes_too_late_is_no_signal() {
    let mut harness = Harness::hedging(2, 100);
    for _ in 0..20 {
        let mut run = harness.run();
        let first = harness.send(&mut run);
        let hedge = harness.hedge(&mut run);
        harness.record_outcome(&mut run, first, SERVED);
        assert_eq!(run.cancel_loser(hedge, &mut harness.health, harness.now), Changes::default());
        assert!(matches!(harness.raw_step(&mut run), Step::Done));
    }
    assert_eq!(harness.state(1), State::Closed);
    assert_eq!(harness.counts(1).in_flight, 0);
}

#[test]
fn a_row_of_silence_during_a_cooldown_is_not_held_against_a_provider() {
    let mut harness = Harness::hedging(2, 100);
    harness.cool(0, 100);
    for _ in 0..20 {
        harness.answer(0, HealthSignal::Silent);
    }
    assert!(matches!(harness.state(0), State::CoolingDown { .. }));
    harness.now += SECOND * 101;
    harness.answer(0, HealthSignal::Success);
    assert_eq!(harness.state(0), State::Closed);
}

#[test]
fn only_requests_that_are_sent_earn_hedges_and_each_once() {
    let mut harness = Harness::of(2);
    harness.health.hedging = Some(Hedging::new(&Hedge::after(SILENCE).max_extra(0.25), 2));
    // 2,000 requests that are refused before they are sent.
    (0..2000).for_each(|_| drop(harness.run()));
    let mut hedged = 0;
    for _ in 0..60 {
        let mut run = harness.run();
        let first = harness.send(&mut run);
        harness.now += SILENCE;
        if let Step::Send { permit, hedge: true, .. } = harness.raw_step(&mut run) {
            hedged += 1;
            harness.settle(&mut run, permit, SERVED);
        }
        run.cancel_loser(first.permit, &mut harness.health, harness.now);
        harness.health.isolate(0, false);
        harness.answer(0, HealthSignal::Success);
    }
    assert_eq!(hedged, 15);

    // What fails over earns no second share.
    let mut harness = Harness::of(2);
    harness.health.hedging = Some(Hedging::new(&Hedge::after(SILENCE).max_extra(0.5), 2));
    let mut run = harness.run();
    assert_eq!(harness.ask(&mut run, BAD_REQUEST), Some(0));
    assert_eq!(harness.ask(&mut run, BAD_REQUEST), Some(1));
    assert!(!harness.health.hedging.as_mut().unwrap().withdraw());
}

#[test]
fn how_fast_a_provider_usually_is_is_learnt_from_accepted_answers_and_from_streams() {
    for (judgement, is_learnt) in
        [(SERVED, true), (accepted(Some(404)), true), (FAILED, false), (BAD_REQUEST, false)]
    {
        let mut harness = Harness::with(1, None);
        harness.health.hedging = Some(Hedging::new(&Hedge::adaptive(), 1));
        for _ in 0..20 {
            let mut run = harness.run();
            let sent = harness.send(&mut run);
            harness.now += SECOND;
            harness.record_outcome(&mut run, sent, judgement);
        }
        let delay = harness.health.hedging.as_ref().unwrap().delay(0);
        assert_eq!(delay, is_learnt.then_some(SECOND * 2), "{judgement:?}");
    }
    let mut harness = Harness::of(1);
    harness.health.hedging = Some(Hedging::new(&Hedge::adaptive(), 1));
    for _ in 0..20 {
        let mut run = harness.run();
        let mut stream = harness.send(&mut run);
        harness.now += SECOND;
        harness.commit(&mut run, &mut stream.permit);
    }
    assert_eq!(harness.health.hedging.as_ref().unwrap().delay(0), Some(SECOND * 2));
}

// Accepted errors while two attempts are in flight.

/// What a judge accepts that accepts everything.
fn accepted(status: Option<u16>) -> Judgement {
    judgement(Verdict::Accept, status)
}

#[test]
fn an_accepted_error_never_replaces_what_the_other_attempt_says() {
    // What the quicker and then the slower attempt is answered, and which of them is served; the
    // quicker one is the hedge, or the first.
    let good = accepted(Some(200));
    for (quick, slow, by_quick) in [
        (accepted(Some(200)), None, true),
        (accepted(Some(304)), None, true),
        (accepted(Some(401)), Some(good), false),
        (accepted(Some(404)), Some(good), false),
        (accepted(Some(500)), Some(good), false),
        (accepted(None), Some(good), false),
        (accepted(Some(401)), Some(FAILED), true),
        (accepted(Some(401)), Some(BAD_REQUEST), true),
        (accepted(Some(401)), Some(TIMED_OUT), true),
    ] {
        for hedge_is_quick in [true, false] {
            let mut harness = Harness::hedging(3, 5);
            let mut run = harness.run();
            let first = harness.send(&mut run).permit;
            let hedge = harness.hedge(&mut run);
            let (first, second) = if hedge_is_quick { (hedge, first) } else { (first, hedge) };
            let (quick_provider, slow_provider) = (first.provider(), second.provider());
            let (settled, changes) = harness.settle(&mut run, first, quick);
            assert_eq!(changes, Changes::default());
            let Some(slow) = slow else {
                assert_eq!(settled, Settled::Serve);
                assert_eq!(harness.counts(quick_provider).served, 1);
                continue;
            };
            assert_eq!(settled, Settled::Keep, "{quick:?}");
            assert_eq!(harness.counts(quick_provider).served, 0);
            harness.assert_never_hedges(&mut run);
            let (settled, _) = harness.settle(&mut run, second, slow);
            let expected = if by_quick { Settled::ServeKept } else { Settled::Serve };
            assert_eq!(settled, expected, "{quick:?}, {slow:?}");
            assert_eq!(harness.counts(quick_provider).served, u64::from(by_quick));
            assert_eq!(harness.counts(slow_provider).served, u64::from(!by_quick));
            assert!(harness.step(&mut run).is_none(), "no third provider is asked");
        }
    }
}

#[test]
fn of_two_accepted_errors_that_of_the_attempt_that_began_first_is_served() {
    for hedge_is_quick in [true, false] {
        let mut harness = Harness::hedging(2, 5);
        let mut run = harness.run();
        let first = harness.send(&mut run).permit;
        let hedge = harness.hedge(&mut run);
        let (quick, slow) = if hedge_is_quick { (hedge, first) } else { (first, hedge) };
        assert_eq!(harness.settle(&mut run, quick, accepted(Some(404))).0, Settled::Keep);
        let expected = if hedge_is_quick { Settled::Serve } else { Settled::ServeKept };
        assert_eq!(harness.settle(&mut run, slow, accepted(Some(404))).0, expected);
        assert_eq!([0, 1].map(|provider| harness.counts(provider).served), [1, 0]);
    }
}

#[test]
fn an_accepted_error_is_served_at_once_where_no_other_attempt_is_in_flight() {
    for status in [Some(404), Some(500), None] {
        let mut harness = Harness::of(2);
        let mut run = harness.run();
        let sent = harness.send(&mut run);
        assert_eq!(harness.settle(&mut run, sent.permit, accepted(status)).0, Settled::Serve);
        assert_eq!(harness.counts(0).served, u64::from(status.is_some()));
    }
}

#[test]
fn an_outcome_that_fails_over_is_no_answer_where_none_is_kept() {
    let mut harness = Harness::hedging(3, 5);
    let mut run = harness.run();
    let first = harness.send(&mut run).permit;
    let hedge = harness.hedge(&mut run);
    assert_eq!(harness.settle(&mut run, first, FAILED).0, Settled::FailOver);
    assert_eq!(harness.settle(&mut run, hedge, BAD_REQUEST).0, Settled::FailOver);
    let third = harness.send(&mut run).permit;
    assert_eq!(harness.settle(&mut run, third, TIMED_OUT).0, Settled::FailOver);
}

#[test]
fn a_kept_error_without_a_response_is_no_served_answer() {
    let mut harness = Harness::hedging(2, 5);
    let mut run = harness.run();
    let first = harness.send(&mut run).permit;
    let hedge = harness.hedge(&mut run);
    assert_eq!(harness.settle(&mut run, hedge, accepted(None)).0, Settled::Keep);
    assert_eq!(harness.settle(&mut run, first, FAILED).0, Settled::ServeKept);
    assert_eq!([0, 1].map(|provider| harness.counts(provider).served), [0, 0]);
}

// How a run ends without an answer.

#[test]
fn a_run_is_rejected_where_every_provider_that_answered_refused_the_request() {
    for (judgements, ending) in [
        (&[][..], Unserved::Exhausted),
        (&[BAD_REQUEST], Unserved::Rejected),
        (&[BAD_REQUEST, BAD_REQUEST], Unserved::Rejected),
        (&[BAD_REQUEST, FAILED], Unserved::Exhausted),
        (&[FAILED, BAD_REQUEST], Unserved::Exhausted),
        (&[BAD_REQUEST, LIMITED], Unserved::Exhausted),
        (&[BAD_REQUEST, TIMED_OUT], Unserved::Exhausted),
        (&[BAD_REQUEST, UNSENT], Unserved::Exhausted),
        (&[UNSENT, UNSENT], Unserved::Exhausted),
        // A judge may accept what is no answer.
        (&[BAD_REQUEST, NOTHING_ACCEPTED], Unserved::Exhausted),
    ] {
        let mut harness = Harness::of(3);
        let mut run = harness.run();
        for judgement in judgements {
            harness.ask(&mut run, *judgement);
        }
        assert_eq!(run.ending(), ending, "{judgements:?}");
    }
}

/// Why this run has not asked this provider, of one that began at the start of the harness.
fn why(harness: &Harness, run: &Run, provider: usize, started: Instant) -> Unasked {
    run.why_unasked(provider, &harness.limits, &harness.health, started, harness.now)
}

#[test]
fn a_run_knows_why_it_has_not_asked_a_provider() {
    let mut harness = Harness::of(4);
    let start = harness.now;
    harness.health.isolate(1, true);
    harness.limits.hosts[2] = harness.limits.hosts[0];
    let mut run = harness.run();
    run.reorder(|_| Ok::<_, ()>(Arc::from([0, 1, 2]))).unwrap();
    harness.ask(&mut run, Judgement { unreachable: true, ..REFUSED });
    assert_eq!(why(&harness, &run, 1, start), Unasked::Isolated);
    assert_eq!(why(&harness, &run, 2, start), Unasked::Unreachable);
    assert_eq!(why(&harness, &run, 3, start), Unasked::LeftOut);

    let mut harness = Harness::of(2);
    let mut run = harness.run_once();
    harness.ask(&mut run, FAILED);
    assert_eq!(why(&harness, &run, 1, start), Unasked::SentOnce);
    harness.limits.max_attempts = 1;
    let mut run = harness.run();
    harness.ask(&mut run, FAILED);
    assert_eq!(why(&harness, &run, 1, start), Unasked::Attempts(1));
    harness.limits.max_attempts = 2;
    harness.limits.ambiguous = Ambiguous::IdempotentOnly;
    let mut run = harness.run();
    harness.ask(&mut run, TIMED_OUT);
    assert_eq!(why(&harness, &run, 1, start), Unasked::MaybeProcessed);

    for (is_full, reason) in [(false, Unasked::Unhealthy), (true, Unasked::AtCapacity)] {
        let mut harness = Harness::of(2);
        harness.cool(1, 60);
        harness.health.limit_in_flight(1, if is_full { 0 } else { 1 });
        let mut run = harness.run();
        harness.ask(&mut run, BAD_REQUEST);
        assert!(harness.step(&mut run).is_none());
        assert_eq!(why(&harness, &run, 1, start), reason);
    }
}

#[test]
fn a_run_that_was_out_of_time_names_the_limit() {
    let total = SECOND * 600;
    for (own, timeout, reason) in [
        (None, None, Unasked::Total(total)),
        (Some(SECOND * 5), None, Unasked::OwnTotal(SECOND * 5)),
        (Some(SECOND * 5), Some(SECOND * 2), Unasked::Timeout(SECOND * 2)),
        (None, Some(SECOND * 2), Unasked::Timeout(SECOND * 2)),
    ] {
        let mut harness = Harness::of(2);
        let start = harness.now;
        let limits = own.map_or(Limits::new(), |own| Limits::new().total(own));
        let mut run = limited(&harness, limits, timeout);
        harness.now = run.deadline().at - MOMENT;
        assert_eq!(why(&harness, &run, 1, start), Unasked::Unhealthy);
        harness.now += MOMENT;
        assert!(harness.step(&mut run).is_none());
        assert_eq!(why(&harness, &run, 1, start), reason);
        // What was not sent at all was not sent once.
        run.forbid_replay();
        assert_eq!(why(&harness, &run, 1, start), reason);
    }
}

#[test]
fn every_reason_not_to_ask_a_provider_has_its_words() {
    for (reason, words) in [
        (Unasked::LeftOut, "left out by the route"),
        (Unasked::Isolated, "isolated"),
        (Unasked::Unreachable, "at a host that could not be reached"),
        (Unasked::SentOnce, "the body could be sent only once"),
        (Unasked::MaybeProcessed, "the request may have been processed"),
        (Unasked::Attempts(1), "the request may be sent only once"),
        (Unasked::Attempts(2), "the limit is 2 attempts"),
        (Unasked::Total(SECOND), "the total timeout of 1s was over"),
        (Unasked::OwnTotal(SECOND), "the request's limit of 1s was over"),
        (Unasked::Timeout(SECOND), "the request's timeout of 1s was over"),
        (Unasked::Unhealthy, "not healthy, and the request was refused"),
        (Unasked::AtCapacity, "at capacity, and the request was refused"),
    ] {
        assert_eq!(reason.to_string(), words);
    }
}

// One host, one fate.

#[test]
fn the_providers_at_a_host_that_cannot_be_reached_are_not_asked() {
    let unreachable = Judgement { unreachable: true, ..REFUSED };
    for (hosts, judgement, asked) in [
        ([0, 0, 1, 0], unreachable, &[0, 2][..]),
        ([0, 0, 1, 0], REFUSED, &[0, 1, 2, 3]),
        ([0, 0, 1, 0], FAILED, &[0, 1, 2, 3]),
        ([0, 1, 1, 2], unreachable, &[0, 1, 3]),
        ([7, 7, 7, 7], unreachable, &[0]),
    ] {
        let mut harness = Harness::of(4);
        harness.limits.hosts = hosts.into();
        let run = harness.run();
        assert_eq!(harness.asked_by(run, judgement), asked, "{hosts:?}, {judgement:?}");
        // Each request tries anew.
        let run = harness.run();
        assert_eq!(harness.asked_by(run, SERVED), [0]);
    }
}

// Until when an attempt may go on, and who is to blame.

/// The limits of a first and a second attempt, both of which use up their time.
fn limits_of(mut harness: Harness, timeout: Option<Duration>) -> [(Duration, Bound, bool); 2] {
    let order = (0..harness.limits.attempts.len()).collect();
    let mut run = Run::new(order, &harness.limits, false, timeout, harness.now);
    [(); 2].map(|()| match harness.raw_step(&mut run) {
        Step::Send { permit, until, .. } => {
            let length = until.at - harness.now;
            harness.now = until.at;
            harness.settle(&mut run, permit, TIMED_OUT);
            (length, until.bound, until.is_failure)
        }
        step => panic!("{step:?}"),
    })
}

#[test]
fn the_time_is_shared_out_and_the_limit_says_whose_it_is() {
    use Bound::{Attempt, Request, Total};
    let explicit = Some(SECOND * 10);
    let (total, none) = (SECOND * 600, None::<Duration>);
    for (limits, total, timeout, expected) in [
        ([none; 2], total, None, [(120, Attempt, true), (480, Total, false)]),
        ([none; 2], SECOND * 100, None, [(50, Attempt, true), (50, Total, false)]),
        ([none; 2], total, Some(100), [(50, Attempt, false), (50, Request, false)]),
        ([none; 2], total, Some(600), [(120, Attempt, true), (480, Total, false)]),
        ([none; 2], total, Some(500), [(120, Attempt, true), (380, Request, false)]),
        ([explicit; 2], total, None, [(10, Attempt, true), (10, Attempt, true)]),
        ([explicit; 2], total, Some(15), [(10, Attempt, true), (5, Request, false)]),
        ([explicit; 2], SECOND * 15, None, [(10, Attempt, true), (5, Total, false)]),
        ([explicit; 2], SECOND * 20, None, [(10, Attempt, true), (10, Attempt, true)]),
        ([none, explicit], SECOND * 40, None, [(20, Attempt, true), (10, Attempt, true)]),
    ] {
        let mut harness = Harness::of(2);
        harness.limits.attempts = limits.into();
        harness.limits.total = total;
        let timeout = timeout.map(Duration::from_secs);
        let expected = expected
            .map(|(seconds, bound, is_failure)| (Duration::from_secs(seconds), bound, is_failure));
        assert_eq!(limits_of(harness, timeout), expected, "{limits:?} {total:?} {timeout:?}");
    }
}

#[test]
fn a_first_attempt_that_has_the_whole_total_fails_by_it() {
    let mut harness = Harness::of(1);
    for (timeout, bound, is_failure) in
        [(None, Bound::Total, true), (Some(SECOND), Bound::Request, false)]
    {
        let mut run = Run::new(Arc::from([0]), &harness.limits, false, timeout, harness.now);
        let Step::Send { until, .. } = harness.raw_step(&mut run) else { panic!() };
        assert_eq!(until, Until { at: run.deadline().at, bound, is_failure });
    }
}

#[test]
fn a_pending_upload_is_not_the_providers_time() {
    let mut harness = Harness::of(2);
    harness.limits.attempts[0] = Some(SECOND * 10);
    harness.limits.total = SECOND * 60;
    let mut run = harness.run();
    let Step::Send { mut permit, until, .. } = harness.raw_step(&mut run) else { panic!() };
    let began = harness.now;
    harness.now += SECOND * 8;
    permit.exclude(SECOND * 7);
    let until = run.deadline().extend(until, SECOND * 7);
    assert_eq!(permit.elapsed(harness.now), SECOND);
    assert_eq!(until.at, began + SECOND * 17);
    assert_eq!((until.bound, until.is_failure), (Bound::Attempt, true));
    // No further than the total.
    let end = Until { at: began + SECOND * 60, bound: Bound::Total, is_failure: false };
    assert_eq!(run.deadline().extend(until, SECOND * 44), end);
    assert_eq!(run.deadline().extend(end, SECOND), end);
    assert_eq!(run.deadline().extend(end, Duration::MAX), end);
}

#[test]
fn an_attempt_that_its_callers_time_ended_is_judged_by_the_providers_silence() {
    let cut = |quiet_for| Judgement { cut_after: Some(quiet_for), ..TIMED_OUT };
    for (judgement, failures, opens) in [
        (TIMED_OUT, 5, true),
        (cut(SECOND * 2), 0, true),
        (cut(SECOND), 0, false),
        (cut(Duration::ZERO), 0, false),
    ] {
        let mut harness = Harness::of(2);
        for _ in 0..5 {
            let run = harness.run();
            assert_eq!(harness.asked_by(run, judgement), [0, 1], "it fails over all the same");
        }
        assert_eq!(harness.counts(0).failures, failures, "{judgement:?}");
        assert_eq!(matches!(harness.state(0), State::Open { .. }), opens, "{judgement:?}");
    }
    // What says more than silence says it.
    let mut harness = Harness::of(1);
    let run = harness.run();
    harness.asked_by(run, Judgement { cut_after: Some(SECOND * 2), ..LIMITED });
    assert!(matches!(harness.state(0), State::CoolingDown { .. }));
}

#[test]
fn what_is_usual_is_learnt_from_every_answer() {
    for judgement in [SERVED, BAD_REQUEST, FAILED, accepted(Some(404))] {
        let mut harness = Harness::of(1);
        assert!(harness.is_silence(SECOND * 2));
        let run = harness.run();
        harness.asked_by(run, Judgement { time_to_headers: SECOND * 3, ..judgement });
        assert!(!harness.is_silence(SECOND * 6), "{judgement:?}");
    }
    let mut harness = Harness::of(1);
    let mut run = harness.run();
    let mut stream = harness.send(&mut run);
    run.commit(&mut stream.permit, 200, SECOND * 3, &mut harness.health, harness.now);
    assert!(!harness.is_silence(SECOND * 6));
    for judgement in [TIMED_OUT, REFUSED, UNSENT] {
        let mut harness = Harness::of(1);
        let run = harness.run();
        harness.asked_by(run, Judgement { time_to_headers: SECOND * 3, ..judgement });
        assert!(harness.is_silence(SECOND * 2), "{judgement:?}");
    }
}

#[test]
fn ten_404s_are_reported_with_the_outcome_of_the_tenth() {
    let mut harness = Harness::of(1);
    for number in 1..=25 {
        let mut run = harness.run();
        let sent = harness.send(&mut run);
        let not_found = failed_over(Fault::None, Some(404));
        let changes = harness.record_outcome(&mut run, sent, not_found);
        assert_eq!(changes, [None, (number == 10).then_some(Change::OnlyNotFound)]);
        assert_eq!(run.ending(), Unserved::Rejected);
    }
    assert_eq!((harness.state(0), harness.counts(0).failures), (State::Closed, 0));
    // So is a tenth stream, if a judge accepts the status.
    for (status, is_reported) in [(404, true), (200, false)] {
        let mut harness = Harness::of(1);
        for number in 1..=25 {
            let mut run = harness.run();
            let mut permit = harness.send(&mut run).permit;
            let now = harness.now;
            let changes = run.commit(&mut permit, status, SECOND, &mut harness.health, now).own();
            let reported = (is_reported && number == 10).then_some(Change::OnlyNotFound);
            assert_eq!(changes, [None, reported]);
        }
    }
    // That a model is unknown is the word of an API.
    let mut harness = Harness::of(1);
    for _ in 0..25 {
        let mut run = harness.run();
        let sent = harness.send(&mut run);
        let not_found = failed_over(Fault::None, Some(404));
        let unknown = Judgement { unknown_model: true, ..not_found };
        assert_eq!(harness.record_outcome(&mut run, sent, unknown), Moves::default());
    }
}

// Which requests may be processed twice.

#[test]
fn methods_that_do_the_same_twice_are_idempotent() {
    use http::Method;
    for (method, idempotent) in [
        (Method::GET, true),
        (Method::HEAD, true),
        (Method::OPTIONS, true),
        (Method::PUT, true),
        (Method::DELETE, true),
        (Method::TRACE, true),
        (Method::POST, false),
        (Method::PATCH, false),
        (Method::CONNECT, false),
        (Method::from_bytes(b"PURGE").unwrap(), false),
    ] {
        assert_eq!(is_idempotent(&method), idempotent, "{method}");
    }
    assert_eq!(Replay::allowed(), Replay::allowed().clone());
}

// Capacity and health keys.

#[test]
fn providers_at_their_limit_are_passed_over_and_asked_last_of_all() {
    let mut harness = Harness::of(3);
    harness.health.limit_in_flight(0, 1);
    let mut first = harness.run();
    assert_eq!(harness.send(&mut first).permit.provider(), 0);
    let run = harness.run();
    assert_eq!(harness.asked_by(run, FAILED), [1, 2, 0]);
    let run = harness.run();
    assert_eq!(harness.asked_by(run, BAD_REQUEST), [1, 2], "a refused request is no reason to");
    // Providers that rest are asked before, in the order in which they reopen.
    harness.cool(1, 200);
    harness.cool(2, 100);
    let run = harness.run();
    assert_eq!(harness.asked_by(run, FAILED), [2, 1, 0]);
    harness.health.isolate(1, true);
    harness.health.isolate(2, true);
    let run = harness.run();
    assert_eq!(harness.asked_by(run, SERVED), [0], "no request is refused untried");
}

#[test]
fn no_hedge_is_sent_to_a_provider_at_its_limit() {
    let mut harness = Harness::hedging(3, 5);
    harness.health.limit_in_flight(1, 1);
    let _held = harness.health.admit(1, None, harness.now, harness.now);
    let mut run = harness.run();
    let _slow = harness.send(&mut run);
    assert_eq!(harness.hedge(&mut run).provider(), 2);
}

#[test]
fn a_step_names_the_providers_at_their_limit_that_it_passed_over_once_a_minute() {
    let mut harness = Harness::of(3);
    for provider in [0, 1] {
        harness.health.limit_in_flight(provider, 1);
        let _held = harness.health.admit(provider, None, harness.now, harness.now);
    }
    let mut full = |now| -> Option<Vec<usize>> {
        harness.now = now;
        let mut run = harness.run();
        let Step::Send { permit, full, .. } = harness.raw_step(&mut run) else { panic!() };
        harness.health.cancel(&permit);
        full.map(|full| full.iter().collect())
    };
    let now = Harness::of(1).now;
    assert_eq!(full(now), Some(vec![0, 1]));
    assert_eq!(full(now), None);
    assert_eq!(full(now + SECOND * 60), None);
    assert_eq!(full(now + SECOND * 121), Some(vec![0, 1]));
}

#[test]
fn what_a_run_is_about_decides_whom_it_asks_and_what_its_outcome_counts_for() {
    let unknown_model = Judgement { unknown_model: true, ..failed_over(Fault::None, Some(404)) };
    let limited = failed_over(Fault::Cooldown(Some(SECOND * 60)), Some(429));
    for (judgement, times) in [(FAILED, 5), (limited, 1), (unknown_model, 1)] {
        let mut harness = Harness::of(2);
        let about = |key: &str, harness: &Harness| {
            let mut run = harness.run();
            run.set_key(Some(key.as_bytes().into()));
            run
        };
        for _ in 0..times {
            let mut run = about("a", &harness);
            assert_eq!(harness.ask(&mut run, judgement), Some(0));
        }
        for (key, first) in [("a", 1), ("b", 0)] {
            let mut run = about(key, &harness);
            assert_eq!(harness.ask(&mut run, SERVED), Some(first), "{key}, {judgement:?}");
        }
        assert_eq!(harness.state(0), State::Closed);
    }
    // The account's limit is that of every model.
    let mut harness = Harness::of(2);
    let mut run = harness.run();
    run.set_key(Some(b"a"[..].into()));
    let limited = Judgement { concern: Concern::Provider, ..limited };
    assert_eq!(harness.ask(&mut run, limited), Some(0));
    let mut run = harness.run();
    run.set_key(Some(b"b"[..].into()));
    assert_eq!(harness.ask(&mut run, SERVED), Some(1));
}

// The request's own limits.

/// A run whose request has these limits, and this timeout of its own.
fn limited(harness: &Harness, own: Limits, timeout: Option<Duration>) -> Run {
    let order = (0..harness.limits.attempts.len()).collect();
    let mut run = Run::new(order, &harness.limits, false, timeout, harness.now);
    run.limit(&own, timeout, harness.now);
    run
}

#[test]
fn the_requests_own_total_replaces_the_chains_and_its_timeout_bounds_both() {
    const MAX: Duration = Duration::MAX;
    let harness = Harness::of(2);
    for (own, timeout, expected) in [
        (None, None, ChainLimits::DEFAULT_TOTAL),
        (Some(SECOND), None, SECOND),
        (Some(SECOND * 900), None, SECOND * 900),
        (Some(SECOND * 900), Some(SECOND * 700), SECOND * 700),
        (Some(SECOND), Some(SECOND * 2), SECOND),
        (None, Some(SECOND * 2), SECOND * 2),
        (Some(Duration::ZERO), Some(SECOND), Duration::ZERO),
        (Some(MAX), Some(SECOND), SECOND),
    ] {
        let limits = own.map_or(Limits::new(), |total| Limits::new().total(total));
        let run = limited(&harness, limits, timeout);
        assert_eq!(run.deadline().at - harness.now, expected, "{own:?} {timeout:?}");
    }
    let endless = limited(&harness, Limits::new().total(MAX), Some(MAX));
    assert!(endless.deadline().at > harness.now + SECOND * 3600 * 24 * 365);
}

#[test]
fn the_requests_own_attempt_limit_replaces_every_providers_and_blames_none() {
    let mut harness = Harness::of(3);
    harness.limits.attempts = vec![Some(SECOND), Some(SECOND * 90), None];
    for (own, expected) in [(SECOND * 5, SECOND * 5), (SECOND * 200, SECOND * 100)] {
        let limits = Limits::new().attempt(own).total(SECOND * 100);
        let mut run = limited(&harness, limits, None);
        for _ in 0..3 {
            let step = run.step(&harness.limits, &mut harness.health, harness.now);
            let Step::Send { permit, until, .. } = step else { panic!("{step:?}") };
            assert_eq!(until.at - harness.now, expected);
            assert!(!until.is_failure, "the time was the caller's choice");
            harness.settle(&mut run, permit, UNSENT);
        }
    }
}

#[test]
fn a_total_of_the_requests_own_shares_its_time_out_and_blames_no_provider() {
    let mut harness = Harness::of(2);
    let mut run = limited(&harness, Limits::new().total(SECOND * 10), None);
    for length in [SECOND * 5, SECOND * 10] {
        let step = run.step(&harness.limits, &mut harness.health, harness.now);
        let Step::Send { permit, until, .. } = step else { panic!("{step:?}") };
        assert_eq!(until.at - harness.now, length);
        assert!(!until.is_failure && matches!(until.bound, Bound::Attempt | Bound::Own));
        harness.settle(&mut run, permit, UNSENT);
    }
}

#[test]
fn the_requests_own_number_of_attempts_replaces_the_chains_and_is_at_least_one() {
    for (chains, own, expected) in
        [(usize::MAX, 2, 2), (1, 3, 3), (1, usize::MAX, 4), (3, 0, 1), (3, 1, 1)]
    {
        let mut harness = Harness::of(4);
        harness.limits.max_attempts = chains;
        let run = limited(&harness, Limits::new().attempts(own), None);
        assert_eq!(harness.asked_by(run, FAILED).len(), expected, "{chains} {own}");
    }
    let mut harness = Harness::of(4);
    let mut run = limited(&harness, Limits::new().attempts(3), None);
    run.forbid_failover();
    assert_eq!(harness.asked_by(run, FAILED), [0]);
}

#[test]
fn limits_of_zero_ask_no_provider_or_give_it_no_time() {
    let mut harness = Harness::of(2);
    let run = limited(&harness, Limits::new().total(Duration::ZERO), None);
    assert_eq!(harness.asked_by(run, FAILED), [0; 0]);
    let mut run = limited(&harness, Limits::new().attempt(Duration::ZERO), None);
    assert_eq!(harness.send(&mut run).until, harness.now);
}
