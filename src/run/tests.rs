use proptest::prelude::*;

use super::*;
use crate::health::{Breaker, Change, Counts, State};
use crate::hedge::Hedge;

const SECOND: Duration = Duration::from_secs(1);
const MOMENT: Duration = Duration::from_nanos(1);

const SERVED: Landing = Landing { verdict: Verdict::Accept, ambiguous: false, status: Some(200) };
const FAILED: Landing = failed_over(Fault::Failure, Some(500));
const BAD_REQUEST: Landing = failed_over(Fault::None, Some(400));
const LIMITED: Landing = failed_over(Fault::Cooldown(None), Some(429));
const REFUSED: Landing = failed_over(Fault::Failure, None);
const TIMED_OUT: Landing = Landing { ambiguous: true, ..REFUSED };
const UNSENT: Landing = failed_over(Fault::None, None);

const fn failed_over(fault: Fault, status: Option<u16>) -> Landing {
    Landing { verdict: Verdict::FailOver(fault), ambiguous: false, status }
}

/// A chain without a driver, and a clock that is moved by hand.
struct Lab {
    board: Board,
    limits: Limits,
    now: Instant,
}

/// An attempt that the run wants made.
#[derive(Debug)]
struct Sent {
    ticket: Ticket,
    until: Instant,
    last: bool,
}

impl Lab {
    fn of(providers: usize) -> Self {
        Self::with(providers, Some(Breaker::default()))
    }

    fn with(providers: usize, breaker: Option<Breaker>) -> Self {
        let now = start();
        let limits = Limits {
            hold: Duration::ZERO,
            max_attempts: usize::MAX,
            ambiguous: Ambiguous::FailOver,
            total: Limits::DEFAULT_TOTAL,
            attempts: vec![None; providers],
        };
        Self { board: Board::new(providers, breaker, now, 7), limits, now }
    }

    fn run(&self) -> Run {
        let order = (0..self.limits.attempts.len()).collect();
        Run::new(order, &self.limits, false, self.now)
    }

    /// A run whose request can be sent only once.
    fn run_once(&self) -> Run {
        let mut run = self.run();
        run.forbid_replay();
        run
    }

    fn step(&mut self, run: &mut Run) -> Option<Sent> {
        match run.step(&self.limits, &mut self.board, self.now) {
            Step::Send { ticket, until, last, .. } => Some(Sent { ticket, until, last }),
            Step::Done => None,
            Step::Wait(_) => panic!("nothing is in flight"),
        }
    }

    #[track_caller]
    fn send(&mut self, run: &mut Run) -> Sent {
        self.step(run).expect("somebody is to be asked")
    }

    fn land(&mut self, run: &mut Run, sent: Sent, landing: Landing) -> Changes {
        run.land(sent.ticket, landing, &self.limits, &mut self.board, self.now)
    }

    /// Asks and lands in one moment, and tells who was asked.
    fn ask(&mut self, run: &mut Run, landing: Landing) -> Option<usize> {
        let sent = self.step(run)?;
        let provider = sent.ticket.provider;
        self.land(run, sent, landing);
        Some(provider)
    }

    /// Whom a run asks if everybody answers like this.
    fn asked_by(&mut self, mut run: Run, landing: Landing) -> Vec<usize> {
        std::iter::from_fn(|| self.ask(&mut run, landing)).collect()
    }

    /// Answers as this provider, whatever its standing.
    fn answer(&mut self, provider: usize, news: News) {
        let ticket = self.board.admit(provider, self.now, self.now);
        self.board.land(ticket, news, self.now);
    }

    /// Opens a provider's breaker and returns the end of the break.
    fn open(&mut self, provider: usize) -> Instant {
        for _ in 0..5 {
            self.answer(provider, News::Failure);
        }
        match self.state(provider) {
            State::Open { until } => until,
            state => panic!("{state:?} is not open"),
        }
    }

    fn cool(&mut self, provider: usize, seconds: u32) {
        self.answer(provider, News::Cooldown(Some(SECOND * seconds)));
    }

    fn state(&self, provider: usize) -> State {
        self.board.state(provider, self.now)
    }

    fn counts(&self, provider: usize) -> Counts {
        self.board.counts(provider)
    }
}

#[expect(clippy::disallowed_methods, reason = "virtual time has to begin somewhere")]
fn start() -> Instant {
    Instant::now()
}

// Whom a run asks, and in which order.

#[test]
fn asks_the_providers_in_list_order_and_each_once() {
    for landing in [FAILED, BAD_REQUEST, LIMITED, REFUSED, TIMED_OUT, UNSENT] {
        let mut lab = Lab::of(4);
        let run = lab.run();
        assert_eq!(lab.asked_by(run, landing), [0, 1, 2, 3], "{landing:?}");
    }
}

#[test]
fn asks_nobody_after_an_outcome_was_accepted() {
    for status in [Some(200), Some(404), None] {
        let mut lab = Lab::of(2);
        let run = lab.run();
        assert_eq!(lab.asked_by(run, Landing { status, ..SERVED }), [0]);
    }
}

#[test]
fn waits_while_an_attempt_is_in_flight() {
    let mut lab = Lab::of(2);
    let mut run = lab.run();
    let sent = lab.send(&mut run);
    for _ in 0..3 {
        assert!(matches!(run.step(&lab.limits, &mut lab.board, lab.now), Step::Wait(None)));
    }
    lab.now = run.deadline() + SECOND;
    assert!(matches!(run.step(&lab.limits, &mut lab.board, lab.now), Step::Wait(None)));
    lab.land(&mut run, sent, FAILED);
    assert!(lab.step(&mut run).is_none(), "its time is up");
}

#[test]
fn takes_the_order_that_it_is_given_and_asks_nobody_twice() {
    let mut lab = Lab::of(4);
    let mut run = lab.run();
    run.reorder(|_| Ok::<_, ()>(Arc::from([3, 1, 3, 1, 3]))).unwrap();
    assert_eq!(run.first(), Some(3));
    assert_eq!(lab.asked_by(run, FAILED), [3, 1]);
    let mut run = lab.run();
    assert_eq!(run.reorder(|_| Err("unknown")), Err("unknown"));
    assert_eq!(run.first(), Some(0));
}

#[test]
fn has_room_for_as_many_providers_as_a_chain_may_have() {
    let mut lab = Lab::of(128);
    let run = lab.run();
    assert!(lab.asked_by(run, FAILED).into_iter().eq(0..128));
}

#[test]
fn asks_the_admissible_in_order_and_then_the_passed_over_by_the_time_they_reopen() {
    let mut lab = Lab::of(5);
    lab.cool(0, 60);
    lab.cool(2, 20);
    lab.cool(3, 40);
    let run = lab.run();
    assert_eq!(lab.asked_by(run, FAILED), [1, 4, 2, 3, 0]);
}

#[test]
fn passed_over_providers_that_reopen_together_keep_the_list_order() {
    let mut lab = Lab::of(4);
    (0..4).for_each(|provider| lab.cool(provider, 30));
    let run = lab.run();
    assert_eq!(lab.asked_by(run, FAILED), [0, 1, 2, 3]);
}

#[test]
fn an_open_provider_is_not_asked_while_another_one_serves() {
    let mut lab = Lab::of(2);
    lab.open(0);
    for _ in 0..100 {
        let run = lab.run();
        assert_eq!(lab.asked_by(run, SERVED), [1]);
    }
}

#[test]
fn a_request_is_never_refused_untried() {
    for landing in [SERVED, FAILED, BAD_REQUEST] {
        let mut lab = Lab::of(2);
        lab.cool(0, 300);
        let reopens = lab.open(1);
        assert!(reopens < lab.now + SECOND * 300);
        let run = lab.run();
        assert_eq!(lab.asked_by(run, landing)[0], 1, "the one that reopens first");
    }
}

#[test]
fn after_a_bad_request_nobody_who_is_passed_over_is_asked() {
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
        let mut lab = Lab::of(3);
        lab.open(0);
        let mut run = lab.run();
        assert_eq!(lab.ask(&mut run, first), Some(1));
        assert_eq!(lab.ask(&mut run, second), Some(2));
        assert_eq!(lab.ask(&mut run, FAILED), asked.then_some(0), "{first:?}, {second:?}");
    }
}

#[test]
fn a_bad_request_out_of_turn_goes_to_nobody_else_who_is_passed_over() {
    let mut lab = Lab::of(3);
    (0..3).for_each(|provider| lab.cool(provider, 30));
    let run = lab.run();
    assert_eq!(lab.asked_by(run, BAD_REQUEST), [0]);
}

#[test]
fn a_storm_of_bad_requests_does_not_hammer_an_open_provider() {
    let mut lab = Lab::of(2);
    lab.open(0);
    let (mut breaks, mut asked) = (1, 0);
    for _ in 0..10_000 {
        lab.now += SECOND / 10;
        let mut run = lab.run();
        while let Some(sent) = lab.step(&mut run) {
            let dead = sent.ticket.provider == 0;
            assert!(!dead || sent.ticket.is_probe());
            asked += u32::from(dead);
            let changes = lab.land(&mut run, sent, if dead { FAILED } else { BAD_REQUEST });
            breaks += u32::from(matches!(changes[0], Some(Change::Opened { .. })));
        }
    }
    assert_eq!(asked, breaks - 1, "one probe for each break that is over");
    assert!((4..12).contains(&asked), "{asked}");
    assert_eq!(lab.state(1), State::Closed);
    assert_eq!(lab.counts(1).failures, 0);
}

#[test]
fn whoever_reopens_in_the_meantime_is_admissible_again() {
    let mut lab = Lab::of(3);
    lab.cool(0, 1);
    let mut run = lab.run();
    let sent = lab.send(&mut run);
    assert_eq!(sent.ticket.provider, 1);
    lab.now += SECOND;
    lab.land(&mut run, sent, BAD_REQUEST);
    assert_eq!(lab.ask(&mut run, BAD_REQUEST), Some(0), "before the third in the list");
    assert_eq!(lab.ask(&mut run, BAD_REQUEST), Some(2));
}

// Probes.

#[test]
fn a_provider_whose_break_is_over_is_probed_in_its_turn() {
    let mut lab = Lab::of(2);
    lab.now = lab.open(0);
    let mut run = lab.run();
    let sent = lab.send(&mut run);
    assert!(sent.ticket.is_probe());
    assert_eq!(sent.ticket.provider, 0);

    // Everyone else passes it over.
    let other = lab.run();
    assert_eq!(lab.asked_by(other, SERVED), [1]);

    lab.land(&mut run, sent, SERVED);
    let other = lab.run();
    assert_eq!(lab.asked_by(other, SERVED), [0]);
}

#[test]
fn a_request_that_cannot_be_replayed_is_no_probe_while_somebody_is_admissible() {
    let mut lab = Lab::of(3);
    lab.now = lab.open(0);
    let run = lab.run_once();
    assert_eq!(lab.asked_by(run, SERVED), [1]);
    assert_eq!(lab.counts(0).attempts, 5);
    lab.cool(1, 30);
    let run = lab.run_once();
    assert_eq!(lab.asked_by(run, SERVED), [2]);
}

#[test]
fn a_request_that_cannot_be_replayed_is_the_probe_where_nobody_is_admissible() {
    for landing in [SERVED, FAILED] {
        let mut lab = Lab::of(3);
        lab.cool(0, 300);
        lab.cool(2, 299);
        lab.now = lab.open(1);
        let mut run = lab.run_once();
        let sent = lab.send(&mut run);
        assert_eq!(sent.ticket.provider, 1, "it may be asked at once");
        assert!(sent.ticket.is_probe() && sent.last);
        lab.land(&mut run, sent, landing);
        assert!(lab.step(&mut run).is_none());
        assert_eq!(lab.state(1) == State::Closed, landing.verdict == Verdict::Accept);
    }
}

#[test]
fn a_request_that_cannot_be_replayed_is_sent_once() {
    for landing in [FAILED, BAD_REQUEST, LIMITED, TIMED_OUT] {
        let mut lab = Lab::of(3);
        let mut run = lab.run_once();
        let sent = lab.send(&mut run);
        assert!(sent.last);
        lab.land(&mut run, sent, landing);
        assert!(lab.step(&mut run).is_none(), "{landing:?}");
    }
}

#[test]
fn a_thousand_requests_at_the_end_of_a_break_send_one_probe() {
    let mut lab = Lab::of(2);
    lab.now = lab.open(0);
    let mut runs: Vec<_> = (0..1000).map(|_| lab.run()).collect();
    let asked: Vec<_> = runs.iter_mut().map(|run| lab.send(run)).collect();
    assert_eq!(asked.iter().filter(|sent| sent.ticket.is_probe()).count(), 1);
    assert_eq!(asked.iter().filter(|sent| sent.ticket.provider == 0).count(), 1);
}

#[test]
fn a_lease_lasts_a_second_longer_than_its_request_may() {
    for (limit, total, lasts) in [
        (None, SECOND * 600, SECOND * 121),
        (Some(SECOND * 10), SECOND * 600, SECOND * 11),
        (Some(SECOND * 600), SECOND * 600, SECOND * 601),
        (None, SECOND * 5, SECOND * 6),
    ] {
        let mut lab = Lab::of(2);
        lab.limits.attempts[0] = limit;
        lab.limits.total = total;
        lab.now = lab.open(0);
        let mut run = lab.run();
        let sent = lab.send(&mut run);
        assert_eq!(sent.until + SECOND, lab.now + lasts);
        let end = lab.now + lasts;
        assert_eq!(lab.board.admission(0, end - MOMENT), Admission::PassedOver(end));
        assert_eq!(lab.board.admission(0, end), Admission::ProbeDue);
    }
}

#[test]
fn a_probe_that_sent_nothing_leaves_the_next_request_to_probe() {
    let mut lab = Lab::of(2);
    lab.now = lab.open(0);
    for _ in 0..3 {
        let mut run = lab.run();
        let sent = lab.send(&mut run);
        assert!(sent.ticket.is_probe());
        assert_eq!(lab.land(&mut run, sent, UNSENT), [None, None]);
    }
    let mut run = lab.run();
    let sent = lab.send(&mut run);
    lab.board.cancel(&sent.ticket);
    let run = lab.run();
    assert_eq!(lab.asked_by(run, BAD_REQUEST), [0, 1]);
    assert_eq!(lab.state(0), State::Closed, "an answer that is nobody's fault closes it");
}

// Isolation.

#[test]
fn an_isolated_provider_is_never_asked() {
    let mut lab = Lab::of(3);
    lab.board.isolate(1, true);
    for landing in [FAILED, BAD_REQUEST] {
        let run = lab.run();
        assert_eq!(lab.asked_by(run, landing), [0, 2]);
    }
    lab.board.isolate(0, true);
    lab.open(2);
    let run = lab.run();
    assert_eq!(lab.asked_by(run, FAILED), [2], "not even as the last resort");
    lab.board.isolate(2, true);
    let run = lab.run();
    assert!(lab.asked_by(run, FAILED).is_empty());
}

#[test]
fn a_provider_may_be_isolated_and_restored_while_a_run_is_under_way() {
    let mut lab = Lab::of(3);
    lab.board.isolate(2, true);
    let mut run = lab.run();
    let sent = lab.send(&mut run);
    assert!(!sent.last);
    lab.board.isolate(1, true);
    lab.board.isolate(2, false);
    lab.land(&mut run, sent, FAILED);
    let sent = lab.send(&mut run);
    assert_eq!(sent.ticket.provider, 2);
    // Nobody else was left when it was sent, so that no copy of the request was kept.
    assert!(sent.last);
    lab.board.isolate(1, false);
    lab.land(&mut run, sent, FAILED);
    assert!(lab.step(&mut run).is_none());
}

// When a run stops.

#[test]
fn asks_no_more_providers_than_it_may() {
    for max_attempts in 1..5 {
        let mut lab = Lab::of(3);
        lab.limits.max_attempts = max_attempts;
        let run = lab.run();
        assert_eq!(lab.asked_by(run, FAILED).len(), max_attempts.min(3));
    }
    let mut lab = Lab::of(3);
    let mut run = lab.run();
    run.forbid_failover();
    assert_eq!(lab.asked_by(run, FAILED), [0]);
}

#[test]
fn an_ambiguous_outcome_ends_a_run_only_where_twice_is_not_as_good_as_once() {
    for (ambiguous, idempotent, landing, goes_on) in [
        (Ambiguous::FailOver, false, TIMED_OUT, true),
        (Ambiguous::FailOver, true, TIMED_OUT, true),
        (Ambiguous::IdempotentOnly, true, TIMED_OUT, true),
        (Ambiguous::IdempotentOnly, false, TIMED_OUT, false),
        (Ambiguous::IdempotentOnly, false, REFUSED, true),
        (Ambiguous::IdempotentOnly, false, FAILED, true),
        (Ambiguous::IdempotentOnly, false, Landing { ambiguous: true, ..BAD_REQUEST }, false),
    ] {
        let mut lab = Lab::of(2);
        lab.limits.ambiguous = ambiguous;
        let run = Run::new(Arc::from([0, 1]), &lab.limits, idempotent, lab.now);
        let asked = lab.asked_by(run, landing);
        assert_eq!(asked.len() == 2, goes_on, "{ambiguous:?}, {idempotent}, {landing:?}");
    }
}

#[test]
fn an_ambiguous_outcome_that_ends_the_run_still_costs_the_provider() {
    let mut lab = Lab::of(2);
    lab.limits.ambiguous = Ambiguous::IdempotentOnly;
    for _ in 0..5 {
        let run = lab.run();
        assert_eq!(lab.asked_by(run, TIMED_OUT), [0]);
    }
    assert!(matches!(lab.state(0), State::Open { .. }));
}

#[test]
fn asks_nobody_once_its_time_is_up() {
    for (passed, asked) in
        [(SECOND * 10 - MOMENT, true), (SECOND * 10, false), (SECOND * 11, false)]
    {
        let mut lab = Lab::of(2);
        lab.limits.total = SECOND * 10;
        let mut run = lab.run();
        assert_eq!(run.deadline(), lab.now + SECOND * 10);
        let sent = lab.send(&mut run);
        lab.now += passed;
        lab.land(&mut run, sent, FAILED);
        let next = lab.step(&mut run);
        assert_eq!(next.is_some(), asked, "{passed:?}");
        assert!(next.is_none_or(|sent| sent.until == run.deadline()));
    }
}

#[test]
fn a_run_that_begins_when_its_time_is_up_asks_nobody() {
    let mut lab = Lab::of(2);
    let run = lab.run();
    lab.now = run.deadline();
    assert!(lab.asked_by(run, SERVED).is_empty());
    assert_eq!(lab.counts(0), Counts::default());
}

// How long an attempt may take, and whether it is the last.

#[test]
fn the_default_attempt_timeout_binds_all_but_the_last_admissible_attempt() {
    let mut lab = Lab::of(3);
    let mut run = lab.run();
    for bound in [true, true, false] {
        let sent = lab.send(&mut run);
        let until = if bound { lab.now + SECOND * 120 } else { run.deadline() };
        assert_eq!(sent.until, until);
        lab.now += SECOND;
        lab.land(&mut run, sent, FAILED);
    }
}

#[test]
fn the_default_attempt_timeout_does_not_bind_where_only_passed_over_providers_are_left() {
    let mut lab = Lab::of(3);
    lab.cool(0, 200);
    lab.cool(2, 300);
    let mut run = lab.run();
    let mut limits = Vec::new();
    while let Some(sent) = lab.step(&mut run) {
        limits.push((sent.ticket.provider, sent.until - lab.now, sent.last));
        lab.land(&mut run, sent, FAILED);
    }
    // Out of turn, there is another one to go on to, and then there is not.
    let total = SECOND * 600;
    assert_eq!(limits, [(1, total, false), (0, SECOND * 120, false), (2, total, true)]);
}

#[test]
fn an_explicit_attempt_timeout_always_binds() {
    let mut lab = Lab::of(3);
    lab.limits.attempts = vec![Some(SECOND * 10), Some(SECOND * 200), Some(SECOND * 30)];
    let mut run = lab.run();
    for seconds in [10, 200, 30] {
        let sent = lab.send(&mut run);
        assert_eq!(sent.until, lab.now + SECOND * seconds);
        lab.land(&mut run, sent, FAILED);
    }
    let mut only = Lab::of(1);
    only.limits.attempts = vec![Some(SECOND * 10)];
    let mut run = only.run_once();
    assert_eq!(only.send(&mut run).until, only.now + SECOND * 10);
}

#[test]
fn the_default_does_not_bind_an_attempt_that_is_the_last_for_another_reason() {
    let unbound = |mut run: Run, lab: &mut Lab| {
        let sent = lab.send(&mut run);
        assert!(sent.last);
        assert_eq!(sent.until, run.deadline());
    };
    let mut lab = Lab::of(3);
    unbound(lab.run_once(), &mut lab);
    let mut run = lab.run();
    run.forbid_failover();
    unbound(run, &mut lab);
    lab.limits.max_attempts = 1;
    unbound(lab.run(), &mut lab);
    lab.limits.max_attempts = 3;
    lab.board.isolate(1, true);
    lab.board.isolate(2, true);
    unbound(lab.run(), &mut lab);
    let mut lab = Lab::of(1);
    unbound(lab.run(), &mut lab);
}

#[test]
fn no_attempt_outlasts_the_total() {
    let mut lab = Lab::of(3);
    lab.limits.total = SECOND * 100;
    lab.limits.attempts[1] = Some(SECOND * 100);
    let mut run = lab.run();
    for _ in 0..3 {
        let sent = lab.send(&mut run);
        assert_eq!(sent.until, run.deadline());
        lab.now += SECOND;
        lab.land(&mut run, sent, FAILED);
    }
}

#[test]
fn only_the_attempt_after_which_nobody_is_left_is_the_last() {
    let last = |lab: &mut Lab, mut run: Run| {
        let mut all = Vec::new();
        while let Some(sent) = lab.step(&mut run) {
            all.push(sent.last);
            lab.land(&mut run, sent, FAILED);
        }
        all
    };
    let mut lab = Lab::of(3);
    let run = lab.run();
    assert_eq!(last(&mut lab, run), [false, false, true]);
    lab.open(0);
    let run = lab.run();
    assert_eq!(last(&mut lab, run), [false, false, true], "the passed-over one is left");
    lab.board.isolate(1, true);
    let run = lab.run();
    assert_eq!(last(&mut lab, run), [false, true]);
    lab.board.isolate(1, false);
    lab.limits.max_attempts = 2;
    let run = lab.run();
    assert_eq!(last(&mut lab, run), [false, true]);
}

#[test]
fn tells_whether_a_copy_of_the_request_is_worth_having() {
    let mut lab = Lab::of(2);
    assert!(lab.run().may_fail_over(&lab.board, lab.now));
    let mut run = lab.run();
    run.forbid_failover();
    assert!(!run.may_fail_over(&lab.board, lab.now));
    lab.open(0);
    assert!(lab.run().may_fail_over(&lab.board, lab.now));
    lab.board.isolate(0, true);
    assert!(!lab.run().may_fail_over(&lab.board, lab.now));
    lab.limits.max_attempts = 1;
    lab.board.isolate(0, false);
    assert!(!lab.run().may_fail_over(&lab.board, lab.now));
    let lab = Lab::of(1);
    assert!(!lab.run().may_fail_over(&lab.board, lab.now));
}

// What an outcome tells of the provider.

#[test]
fn every_landing_is_its_own_news() {
    let accepted = |status| Landing { status, ..SERVED };
    let hint = Some(SECOND);
    for (landing, news) in [
        (accepted(Some(101)), News::Success),
        (accepted(Some(200)), News::Success),
        (accepted(Some(304)), News::Success),
        (accepted(Some(399)), News::Success),
        (accepted(Some(400)), News::Neutral),
        (accepted(Some(404)), News::Neutral),
        (accepted(Some(500)), News::Neutral),
        (accepted(None), News::Nothing),
        (BAD_REQUEST, News::Neutral),
        (failed_over(Fault::None, Some(200)), News::Neutral),
        (UNSENT, News::Nothing),
        (FAILED, News::Failure),
        (REFUSED, News::Failure),
        (TIMED_OUT, News::Failure),
        (LIMITED, News::Cooldown(None)),
        (failed_over(Fault::Cooldown(hint), Some(503)), News::Cooldown(hint)),
        (failed_over(Fault::Cooldown(hint), None), News::Cooldown(hint)),
    ] {
        assert_eq!(landing.news(), news, "{landing:?}");
    }
}

#[test]
fn only_a_response_that_was_accepted_is_served() {
    let mut lab = Lab::of(1);
    for (landing, served) in [
        (SERVED, 1),
        (Landing { status: Some(404), ..SERVED }, 2),
        (Landing { status: None, ..SERVED }, 2),
        (FAILED, 2),
        (BAD_REQUEST, 2),
    ] {
        let run = lab.run();
        lab.asked_by(run, landing);
        assert_eq!(lab.counts(0).served, served, "{landing:?}");
    }
    assert_eq!(lab.counts(0), Counts { attempts: 5, served: 2, failures: 1, in_flight: 0 });
}

// Minutes and hours of traffic.

/// Sends a request at every `interval`; each provider answers at once or, where it gives none,
/// hangs until its time is up. Returns how many breaks the first provider's breaker began, and how
/// many of its attempts were probes.
fn traffic(
    lab: &mut Lab,
    length: Duration,
    interval: Duration,
    answers: &[Option<Landing>],
) -> (u32, u32) {
    let end = lab.now + length;
    let mut hanging: Vec<(Run, Sent)> = Vec::new();
    let (mut breaks, mut probes) = (0, 0);
    while lab.now < end {
        let mut under_way = vec![(lab.run(), None)];
        let due = |(_, sent): &mut (Run, Sent)| sent.until <= lab.now;
        let landed: Vec<_> = hanging.extract_if(.., due).collect();
        under_way.extend(landed.into_iter().map(|(run, sent)| (run, Some((sent, TIMED_OUT)))));
        for (mut run, mut outcome) in under_way {
            loop {
                if let Some((sent, landing)) = outcome.take() {
                    let first = sent.ticket.provider == 0;
                    let opened =
                        matches!(lab.land(&mut run, sent, landing)[0], Some(Change::Opened { .. }));
                    breaks += u32::from(first && opened);
                }
                let Some(sent) = lab.step(&mut run) else { break };
                probes += u32::from(sent.ticket.provider == 0 && sent.ticket.is_probe());
                match answers[sent.ticket.provider] {
                    Some(landing) => outcome = Some((sent, landing)),
                    None => {
                        hanging.push((run, sent));
                        break;
                    }
                }
            }
        }
        lab.now += interval;
    }
    (breaks, probes)
}

#[test]
fn a_provider_that_hangs_for_ten_minutes_costs_one_probe_for_each_break() {
    for limit in [None, Some(SECOND), Some(SECOND * 10), Some(SECOND * 30)] {
        let mut lab = Lab::of(2);
        lab.limits.attempts[0] = limit;
        let (breaks, probes) = traffic(&mut lab, SECOND * 600, SECOND / 10, &[None, Some(SERVED)]);
        assert!(breaks >= 2, "{limit:?}: {breaks}");
        // The last break may still last, or its probe be out.
        let last_is_over = !matches!(lab.state(0), State::Open { .. });
        assert_eq!(probes, breaks - 1 + u32::from(last_is_over), "{limit:?}");
        // Beside its probes it was only asked until the fifth timeout.
        let limit = limit.unwrap_or(SECOND * 120).as_secs() * 10;
        let asked = lab.counts(0).attempts - u64::from(probes);
        assert!((limit..limit + 6).contains(&asked), "{asked} before it opened");
        assert_eq!(lab.counts(1).failures, 0);
    }
}

#[test]
fn a_thousand_requests_to_a_dead_first_provider_cost_five_attempts_and_its_probes() {
    for (landing, most) in [(FAILED, 5), (REFUSED, 5), (LIMITED, 1)] {
        let mut lab = Lab::of(2);
        let answers = [Some(landing), Some(SERVED)];
        // All of them within what no break or cooldown is shorter than.
        let (_, probes) = traffic(&mut lab, SECOND * 4, SECOND / 250, &answers);
        assert_eq!(probes, 0);
        assert_eq!(lab.counts(0).attempts, most, "{landing:?}");
        assert_eq!(lab.counts(1).served, 1000);
    }
}

#[test]
fn a_provider_that_recovers_serves_again_after_one_break() {
    let mut lab = Lab::of(2);
    traffic(&mut lab, SECOND * 10, SECOND / 10, &[Some(FAILED), Some(SERVED)]);
    let served = lab.counts(1).served;
    traffic(&mut lab, SECOND * 60, SECOND / 10, &[Some(SERVED), Some(SERVED)]);
    assert_eq!(lab.state(0), State::Closed);
    assert!(lab.counts(1).served - served <= 300, "the break lasted 30 s at most");
    assert!(lab.counts(0).served >= 300);
}

#[test]
fn two_dead_providers_do_not_lengthen_each_others_breaks() {
    let mut lab = Lab::of(2);
    let answers = [Some(FAILED), Some(FAILED)];
    let (breaks, probes) = traffic(&mut lab, SECOND * 600, SECOND / 10, &answers);
    assert!((3..8).contains(&breaks), "{breaks}");
    assert_eq!(probes, breaks - 1);
    let attempts = lab.counts(0).attempts + lab.counts(1).attempts;
    assert_eq!(attempts, 12_000, "nobody was refused untried, and nobody asked twice");
}

#[test]
fn without_a_breaker_the_first_is_always_asked_first() {
    let mut lab = Lab::with(3, None);
    for landing in [FAILED, LIMITED, BAD_REQUEST].into_iter().cycle().take(300) {
        let run = lab.run();
        assert_eq!(lab.asked_by(run, landing), [0, 1, 2]);
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
            let mut lab = Lab::with(2, Some(Breaker::default().consecutive(1)));
            lab.limits.total = *total;
            lab.limits.attempts = vec![limit; 2];
            for _ in 0..3 {
                let mut run = lab.run();
                while let Some(sent) = lab.step(&mut run) {
                    assert!(lab.now <= sent.until && sent.until <= run.deadline());
                    lab.land(&mut run, sent, FAILED);
                }
                lab.now += SECOND * 100;
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

    fn landing(&mut self) -> Landing {
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
            Landing { status: Some(404), ..SERVED },
            Landing { status: None, ..SERVED },
        ])
    }
}

#[derive(Clone, Debug)]
enum Deed {
    Begin {
        order: Vec<usize>,
        replayable: bool,
        idempotent: bool,
    },
    /// The outstanding attempt of this number, wrapped around, lands.
    Land(usize, Landing),
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

fn deed(number: u64, providers: usize) -> Deed {
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
            Deed::Begin { order, replayable: !dice.one_in(4), idempotent: dice.one_in(2) }
        }
        5..11 => Deed::Land(dice.below(8) as usize, dice.landing()),
        11 => Deed::Cancel(dice.below(8) as usize),
        12 => Deed::Forget(dice.below(8) as usize),
        13 | 14 => Deed::Pass(Duration::from_millis(
            dice.of(&[0, 1, 900, 1_000, 5_000, 16_000, 30_000, 61_000, 121_000, 301_000]),
        )),
        _ => Deed::Isolate(dice.below(providers as u64) as usize, dice.one_in(3)),
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
    /// The landing before, if there was one.
    before: Option<Landing>,
    /// An attempt was announced to be the last.
    announced: bool,
}

/// Whom the rules want asked, until when, and whether as the last.
fn due(setting: &Setting, request: &Request, lab: &Lab) -> Option<(usize, Instant, bool)> {
    let deadline = request.began + setting.total;
    let over = match request.before {
        None => false,
        Some(Landing { verdict: Verdict::Accept, .. }) => true,
        Some(Landing { ambiguous, .. }) => {
            let once = setting.ambiguous == Ambiguous::IdempotentOnly && !request.idempotent;
            ambiguous && once || !request.replayable
        }
    };
    let enough = request.asked.len() >= setting.max_attempts;
    if over || enough || request.announced || lab.now >= deadline {
        return None;
    }
    let left: Vec<_> = request
        .order
        .iter()
        .copied()
        .filter(|provider| !request.asked.contains(provider))
        .map(|provider| (provider, lab.board.admission(provider, lab.now)))
        .filter(|(_, admission)| *admission != Admission::Isolated)
        .collect();
    let admissible: Vec<_> = left
        .iter()
        .filter(|(_, admission)| match admission {
            Admission::Admissible => true,
            Admission::ProbeDue => request.replayable,
            _ => false,
        })
        .map(|(provider, _)| *provider)
        .collect();
    let unhurt = Verdict::FailOver(Fault::None);
    let fault = request.before.is_none_or(|landing| landing.verdict != unhurt);
    let mut passed_over: Vec<_> =
        left.iter().filter(|(provider, _)| fault && !admissible.contains(provider)).collect();
    passed_over.sort_by_key(|(_, admission)| match admission {
        Admission::PassedOver(until) => *until,
        _ => lab.now,
    });
    let (choice, others) = match admissible.first() {
        Some(provider) => (*provider, admissible.len() > 1),
        None => (passed_over.first()?.0, passed_over.len() > 1),
    };
    let last =
        !request.replayable || request.asked.len() + 1 >= setting.max_attempts || left.len() == 1;
    let until = match setting.limits[choice] {
        Some(limit) => lab.now + limit,
        None if others && !last => lab.now + SECOND * 120,
        None => deadline,
    };
    Some((choice, until.min(deadline), last))
}

struct World {
    setting: Setting,
    lab: Lab,
    out: Vec<(Request, Sent)>,
    /// Each provider's probe that is out, and the end of its lease.
    leases: Vec<Option<Instant>>,
    forgotten: Vec<u64>,
}

impl World {
    fn new(setting: Setting) -> Self {
        let mut lab = Lab::with(setting.providers, Some(setting.breaker.clone()));
        lab.limits.total = setting.total;
        lab.limits.max_attempts = setting.max_attempts;
        lab.limits.ambiguous = setting.ambiguous;
        lab.limits.attempts = setting.limits[..setting.providers].to_vec();
        let leases = vec![None; setting.providers];
        let forgotten = vec![0; setting.providers];
        Self { setting, lab, out: Vec::new(), leases, forgotten }
    }

    fn begin(
        &mut self,
        order: Vec<usize>,
        replayable: bool,
        idempotent: bool,
    ) -> Result<bool, TestCaseError> {
        let limits = &self.lab.limits;
        let mut run = Run::new(order.clone().into(), limits, idempotent, self.lab.now);
        if !replayable {
            run.forbid_replay();
        }
        self.go_on(Request {
            run,
            order,
            began: self.lab.now,
            replayable,
            idempotent,
            asked: Vec::new(),
            before: None,
            announced: false,
        })
    }

    /// Takes the next step of a request, and returns whether there was one.
    fn go_on(&mut self, mut request: Request) -> Result<bool, TestCaseError> {
        let due = due(&self.setting, &request, &self.lab);
        let probe_due = due.map(|(provider, ..)| self.lab.board.admission(provider, self.lab.now));
        let Some(sent) = self.lab.step(&mut request.run) else {
            prop_assert_eq!(due, None);
            let isolated = |it: &usize| self.lab.state(*it) == State::Isolated;
            let untried = request.asked.is_empty() && !request.order.iter().all(isolated);
            prop_assert!(!untried, "refused untried");
            return Ok(false);
        };
        let provider = sent.ticket.provider;
        prop_assert_eq!(Some((provider, sent.until, sent.last)), due);
        prop_assert_eq!(sent.ticket.is_probe(), probe_due == Some(Admission::ProbeDue));
        prop_assert!(!request.asked.contains(&provider), "asked twice");
        prop_assert!(sent.until <= request.run.deadline(), "beyond the deadline");
        if sent.ticket.is_probe() {
            let held = self.leases[provider].filter(|until| *until > self.lab.now);
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

    fn play(&mut self, deed: Deed) -> Result<(), TestCaseError> {
        match deed {
            Deed::Begin { order, replayable, idempotent } => {
                self.begin(order, replayable, idempotent)?;
            }
            Deed::Land(number, landing) => {
                let Some((mut request, sent)) = self.take(number) else { return Ok(()) };
                let (provider, until) = (sent.ticket.provider, sent.until);
                let probe = sent.ticket.is_probe();
                let changes = self.lab.land(&mut request.run, sent, landing);
                let closed = changes[0] == Some(Change::Closed);
                if closed || probe && self.leases[provider] == Some(until + SECOND) {
                    self.leases[provider] = None;
                }
                let opened = matches!(changes[0], Some(Change::Opened { .. }));
                prop_assert!(!opened || landing.news() == News::Failure);
                request.before = Some(landing);
                self.go_on(request)?;
            }
            Deed::Cancel(number) => {
                let Some((_, sent)) = self.take(number) else { return Ok(()) };
                self.lab.board.cancel(&sent.ticket);
                let provider = sent.ticket.provider;
                let lease = Some(sent.until + SECOND);
                if sent.ticket.is_probe() && self.leases[provider] == lease {
                    self.leases[provider] = None;
                }
            }
            Deed::Forget(number) => {
                if let Some((_, sent)) = self.take(number) {
                    self.forgotten[sent.ticket.provider] += 1;
                }
            }
            Deed::Pass(length) => self.lab.now += length,
            Deed::Isolate(provider, isolated) => self.lab.board.isolate(provider, isolated),
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
        deeds in proptest::collection::vec(any::<u64>(), 1..60),
    ) {
        let providers = setting.providers;
        let mut world = World::new(setting);
        for number in deeds {
            world.play(deed(number, providers))?;
        }

        // When everyone is back, nobody is in flight.
        while !world.out.is_empty() {
            world.play(Deed::Cancel(0))?;
        }
        for provider in 0..providers {
            let in_flight = world.lab.counts(provider).in_flight;
            prop_assert_eq!(in_flight, world.forgotten[provider]);
        }
        // After the longest break, lease and cooldown every provider is asked again that may be.
        world.lab.now += SECOND * (300 + 601 + 300);
        for provider in 0..providers {
            let isolated = world.lab.state(provider) == State::Isolated;
            let asked = world.begin(vec![provider], true, false)?;
            prop_assert_eq!(asked, !isolated);
            if let Some((_, sent)) = world.take(0) {
                let regular = matches!(world.lab.state(provider), State::Closed | State::Probing);
                prop_assert!(regular, "{:?} out of turn", sent);
            }
        }
    }

    #[test]
    fn bad_requests_and_429s_never_open_a_breaker(
        deeds in proptest::collection::vec(any::<u64>(), 1..60),
    ) {
        let mut lab = Lab::with(2, Some(Breaker::default().consecutive(1).ratio(0.01, 1)));
        for number in deeds {
            let mut dice = Dice(number);
            lab.now += SECOND * dice.of(&[0, 1, 6, 100]);
            let run = lab.run();
            let unhurt = dice.of(&[BAD_REQUEST, LIMITED, UNSENT, SERVED]);
            lab.asked_by(run, unhurt);
            for provider in 0..2 {
                let open = matches!(lab.state(provider), State::Open { .. });
                prop_assert!(!open);
            }
        }
    }
}

// Streams that have begun well, and whose end is still to come.

#[test]
fn a_run_ends_with_a_stream_that_has_begun_and_its_provider_has_served() {
    let mut lab = Lab::of(2);
    let mut run = lab.run();
    let stream = lab.send(&mut run);
    assert_eq!(run.commit(&stream.ticket, &mut lab.board, lab.now), Changes::default());
    assert!(lab.step(&mut run).is_none(), "nobody else is asked");
    assert_eq!((lab.counts(0).served, lab.counts(0).in_flight), (1, 1));
    lab.board.land(stream.ticket, News::Failure, lab.now);
    assert_eq!((lab.counts(0).in_flight, lab.counts(0).failures), (0, 1));
}

#[test]
fn a_probe_that_begins_to_stream_closes_the_breaker() {
    let mut lab = Lab::of(1);
    lab.now = lab.open(0);
    let mut run = lab.run();
    let probe = lab.send(&mut run);
    let changes = run.commit(&probe.ticket, &mut lab.board, lab.now);
    assert_eq!(changes, [Some(Change::Closed), None]);
    assert_eq!(lab.state(0), State::Closed);
}

#[test]
fn a_stream_that_has_begun_beside_another_attempt_waits_for_that_one_only() {
    let mut lab = Lab::hedging(3, 5);
    let mut run = lab.run();
    let slow = lab.send(&mut run);
    let hedge = lab.hedge(&mut run);
    run.commit(&hedge, &mut lab.board, lab.now);
    lab.assert_never_hedges(&mut run);
    run.lose(slow.ticket, hedge.sequence(), &mut lab.board, lab.now);
    assert!(matches!(lab.raw_step(&mut run), Step::Done));
}

// Hedging: a second provider beside a silent one.

const SILENCE: Duration = Duration::from_millis(40);

impl Lab {
    /// A chain that hedges, and has earned `hedges`.
    fn hedging(providers: usize, hedges: u32) -> Self {
        let mut lab = Self::of(providers);
        let mut hedging = Hedging::new(&Hedge::after(SILENCE).max_extra(1.0), providers);
        (0..hedges).for_each(|_| hedging.earn());
        lab.board.hedging = Some(hedging);
        lab
    }

    /// Asks the next provider after the silence, and checks that this is a hedge.
    fn hedge(&mut self, run: &mut Run) -> Ticket {
        let due = self.now + SILENCE;
        assert!(matches!(self.raw_step(run), Step::Wait(Some(at)) if at == due));
        self.now = due - MOMENT;
        assert!(matches!(self.raw_step(run), Step::Wait(Some(at)) if at == due));
        self.now = due;
        match self.raw_step(run) {
            Step::Send { ticket, hedge: true, .. } => ticket,
            step => panic!("{step:?} is no hedge"),
        }
    }

    fn raw_step(&mut self, run: &mut Run) -> Step {
        run.step(&self.limits, &mut self.board, self.now)
    }

    #[track_caller]
    fn assert_never_hedges(&mut self, run: &mut Run) {
        for _ in 0..3 {
            assert!(matches!(self.raw_step(run), Step::Wait(None)));
            self.now += SECOND;
        }
    }

    /// Lets the next provider serve what this one was silent about.
    fn overtake(&mut self) -> Changes {
        let mut run = self.run();
        let slow = self.send(&mut run);
        let hedge = self.hedge(&mut run);
        let winner = hedge.sequence();
        run.land(hedge, SERVED, &self.limits, &mut self.board, self.now);
        run.lose(slow.ticket, winner, &mut self.board, self.now)
    }
}

#[test]
fn asks_one_more_provider_beside_a_silent_one_and_no_third() {
    let mut lab = Lab::hedging(3, 5);
    let mut run = lab.run();
    let first = lab.send(&mut run);
    assert_eq!(first.ticket.provider, 0);
    assert_eq!(lab.hedge(&mut run).provider, 1);
    lab.now += SECOND;
    lab.assert_never_hedges(&mut run);
}

#[test]
fn a_failure_launches_the_next_at_once_and_its_silence_counts_anew() {
    let mut lab = Lab::hedging(3, 5);
    let mut run = lab.run();
    let first = lab.send(&mut run);
    lab.now += SILENCE / 2;
    lab.land(&mut run, first, FAILED);
    let second = lab.send(&mut run);
    assert_eq!(second.ticket.provider, 1);
    assert_eq!(lab.hedge(&mut run).provider, 2);
}

#[test]
fn a_failure_beside_another_attempt_launches_the_next_at_once() {
    let mut lab = Lab::hedging(3, 5);
    let mut run = lab.run();
    let _slow = lab.send(&mut run);
    let hedge = lab.hedge(&mut run);
    run.land(hedge, FAILED, &lab.limits, &mut lab.board, lab.now);
    let Step::Send { ticket, hedge: false, last: true, .. } = lab.raw_step(&mut run) else {
        panic!("the third is asked at once");
    };
    assert_eq!(ticket.provider, 2);
    run.land(ticket, FAILED, &lab.limits, &mut lab.board, lab.now);
    lab.assert_never_hedges(&mut run);
}

#[test]
fn a_run_is_over_when_both_have_failed() {
    let mut lab = Lab::hedging(2, 5);
    let mut run = lab.run();
    let slow = lab.send(&mut run);
    let hedge = lab.hedge(&mut run);
    run.land(hedge, FAILED, &lab.limits, &mut lab.board, lab.now);
    lab.assert_never_hedges(&mut run);
    lab.land(&mut run, slow, FAILED);
    assert!(matches!(lab.raw_step(&mut run), Step::Done));
    assert_eq!([0, 1].map(|provider| lab.counts(provider).in_flight), [0, 0]);
}

#[test]
fn hedges_only_at_healthy_providers() {
    for disturb in [
        |lab: &mut Lab| _ = lab.open(1),
        |lab: &mut Lab| lab.cool(1, 100),
        |lab: &mut Lab| lab.now = lab.open(1),
        |lab: &mut Lab| lab.board.isolate(1, true),
    ] {
        let mut lab = Lab::hedging(2, 5);
        disturb(&mut lab);
        let mut run = lab.run();
        let first = lab.send(&mut run);
        assert_eq!(first.ticket.provider, 0);
        lab.now += SILENCE;
        lab.assert_never_hedges(&mut run);
    }
}

#[test]
fn never_hedges_what_must_not_be_processed_twice() {
    let mut lab = Lab::hedging(2, 5);
    let mut run = lab.run_once();
    lab.send(&mut run);
    lab.assert_never_hedges(&mut run);

    lab.limits.ambiguous = Ambiguous::IdempotentOnly;
    let mut run = lab.run();
    lab.send(&mut run);
    lab.assert_never_hedges(&mut run);

    let order = (0..2).collect();
    let mut idempotent = Run::new(order, &lab.limits, true, lab.now);
    lab.send(&mut idempotent);
    lab.hedge(&mut idempotent);
}

#[test]
fn never_hedges_beyond_the_attempts_or_the_allowance_or_the_deadline() {
    let mut lab = Lab::hedging(3, 5);
    lab.limits.max_attempts = 1;
    let mut run = lab.run();
    lab.send(&mut run);
    lab.assert_never_hedges(&mut run);

    let mut lab = Lab::hedging(3, 0);
    let mut run = lab.run();
    lab.send(&mut run);
    lab.now += SILENCE;
    lab.assert_never_hedges(&mut run);

    let mut lab = Lab::hedging(3, 5);
    let mut run = lab.run();
    lab.send(&mut run);
    lab.now = run.deadline();
    lab.assert_never_hedges(&mut run);
}

#[test]
fn an_allowance_is_spent_by_hedges_only() {
    let mut lab = Lab::hedging(2, 1);
    let mut failing = lab.run();
    assert_eq!(lab.ask(&mut failing, FAILED), Some(0));
    lab.send(&mut failing);
    let mut run = lab.run();
    lab.send(&mut run);
    lab.hedge(&mut run);
    let mut run = lab.run();
    lab.send(&mut run);
    lab.now += SILENCE;
    lab.assert_never_hedges(&mut run);
}

#[test]
fn being_overtaken_counts_toward_the_consecutive_trigger_only() {
    let mut lab = Lab::hedging(2, 100);
    for _ in 0..4 {
        assert_eq!(lab.overtake(), Changes::default());
    }
    lab.answer(0, News::Success);
    // Eight of nine were overtaken by now, and no share opens the breaker.
    for _ in 0..4 {
        assert_eq!(lab.overtake(), Changes::default());
    }
    assert!(matches!(lab.overtake(), [Some(Change::Opened { .. }), None]));
    assert!(matches!(lab.state(0), State::Open { .. }));
    assert_eq!(lab.counts(0).failures, 0);
    assert_eq!(lab.counts(0).in_flight, 0);

    let mut lab = Lab::hedging(2, 100);
    for _ in 0..3 {
        (0..4).for_each(|_| _ = lab.overtake());
        lab.answer(0, News::Success);
    }
    (0..4).for_each(|_| lab.answer(0, News::Failure));
    assert_eq!(lab.state(0), State::Closed, "4 of 7 that count, and 10 are needed");
}

#[test]
fn a_probe_that_is_overtaken_has_failed() {
    let mut lab = Lab::hedging(2, 100);
    let end = lab.open(0);
    lab.now = end;
    assert!(matches!(lab.overtake(), [Some(Change::Opened { breaks: 2, .. }), None]));
}

#[test]
fn a_hedge_that_comes_too_late_is_no_news() {
    let mut lab = Lab::hedging(2, 100);
    for _ in 0..20 {
        let mut run = lab.run();
        let first = lab.send(&mut run);
        let winner = first.ticket.sequence();
        let hedge = lab.hedge(&mut run);
        lab.land(&mut run, first, SERVED);
        assert_eq!(run.lose(hedge, winner, &mut lab.board, lab.now), Changes::default());
        assert!(matches!(lab.raw_step(&mut run), Step::Done));
    }
    assert_eq!(lab.state(1), State::Closed);
    assert_eq!(lab.counts(1).in_flight, 0);
}

#[test]
fn nobody_is_overtaken_by_itself() {
    let mut lab = Lab::hedging(2, 100);
    for _ in 0..20 {
        let mut run = lab.run();
        let sent = lab.send(&mut run);
        let own = sent.ticket.sequence();
        assert_eq!(run.lose(sent.ticket, own, &mut lab.board, lab.now), Changes::default());
    }
    assert_eq!(lab.state(0), State::Closed);
}

#[test]
fn a_row_of_silence_toward_hurried_requests_is_not_held_against_a_provider() {
    let mut lab = Lab::hedging(2, 100);
    lab.cool(0, 100);
    for _ in 0..20 {
        lab.answer(0, News::Overtaken);
    }
    assert!(matches!(lab.state(0), State::CoolingDown { .. }));
    lab.now += SECOND * 101;
    assert_eq!(lab.state(0), State::Closed);
}
