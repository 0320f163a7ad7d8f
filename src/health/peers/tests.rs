#![expect(clippy::disallowed_methods, reason = "virtual time has to begin somewhere")]

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::health::circuit::Circuit;
use crate::health::{Admission, Breaker, Change, Concern, HealthSignal, OpenCause, Permit, State};

const PROVIDER: usize = 0;

/// Processes that share the health of one provider, and tell each other what a test lets them.
struct Fleet {
    tables: Vec<HealthTable>,
    now: Instant,
}

impl Fleet {
    fn new(processes: usize) -> Self {
        Self::with(processes, Breaker::default())
    }

    fn with(processes: usize, breaker: Breaker) -> Self {
        let now = Instant::now();
        let table = |process: usize| {
            let mut table = HealthTable::new(1, Some(breaker.clone()), now, process as u64);
            table.share(PROVIDER, id(process));
            table
        };
        Self { tables: (0..processes).map(table).collect(), now }
    }

    fn pass(&mut self, seconds: f64) {
        self.now += Duration::from_secs_f64(seconds);
    }

    fn admit(&mut self, process: usize) -> Permit {
        let lease_until = self.now + Duration::from_secs(60);
        self.tables[process].admit(PROVIDER, None, self.now, lease_until)
    }

    fn end(&mut self, process: usize, permit: Permit, signal: HealthSignal) -> Changes {
        self.tables[process].record_outcome(permit, signal, Concern::Provider, self.now)
    }

    fn ask(&mut self, process: usize, signal: HealthSignal) -> Changes {
        let permit = self.admit(process);
        self.end(process, permit, signal)
    }

    fn fail(&mut self, process: usize, times: usize) {
        for _ in 0..times {
            self.ask(process, HealthSignal::Failure);
        }
    }

    fn succeed(&mut self, process: usize) {
        self.ask(process, HealthSignal::Success);
    }

    fn limit(&mut self, process: usize, seconds: u64) {
        self.ask(process, HealthSignal::Cooldown(Some(Duration::from_secs(seconds))));
    }

    fn report(&mut self, process: usize) -> HealthReport {
        self.tables[process].own_report(PROVIDER, self.now).expect("something to say").0
    }

    fn hear(&mut self, process: usize, from: usize, report: &HealthReport) -> Received {
        let open_for = report.open.map(|(left, _)| left + secs(3));
        let rest_for = report.cooldown.map(|(left, _)| left);
        let counts_for = [open_for, rest_for, Some(secs(10))].into_iter().flatten().max().unwrap();
        self.hear_late(process, from, report, counts_for)
    }

    /// A report that counts only for so long now.
    fn hear_late(
        &mut self,
        process: usize,
        from: usize,
        report: &HealthReport,
        counts_for: Duration,
    ) -> Received {
        self.tables[process].apply_report(PROVIDER, id(from), report, counts_for, self.now)
    }

    /// One process tells all others what it has to say.
    fn tell(&mut self, process: usize) {
        let report = self.report(process);
        for other in (0..self.tables.len()).filter(|other| *other != process) {
            self.hear(other, process, &report);
        }
    }

    /// All processes tell what others do not know yet.
    fn tell_all(&mut self) {
        for process in 0..self.tables.len() {
            if self.tables[process].untold(PROVIDER) != Untold::Nothing {
                self.tell(process);
            }
        }
    }

    fn state(&self, process: usize) -> State {
        self.tables[process].state(PROVIDER, self.now)
    }

    fn is_closed(&self, process: usize) -> bool {
        self.state(process) == State::Closed
    }

    fn admission(&self, process: usize) -> Admission {
        self.tables[process].admission(PROVIDER, None, self.now)
    }

    /// When the break of a process that is open ends.
    fn open_until(&self, process: usize) -> Instant {
        match self.state(process) {
            State::Open { until } => until,
            state => panic!("{process} is {state:?}"),
        }
    }

    fn circuit(&self, process: usize) -> &Circuit {
        &self.tables[process].providers[PROVIDER].circuit
    }

    /// Opens every process's breaker with two failures of each of three.
    fn open_all(&mut self) {
        for process in 0..3 {
            self.fail(process, 2);
            self.tell_all();
        }
        self.tell_all();
        for process in 0..self.tables.len() {
            assert!(matches!(self.state(process), State::Open { .. }), "{process}");
        }
    }

    /// Lets time pass until a process may probe.
    fn pass_break(&mut self, process: usize) {
        self.now = self.open_until(process);
    }
}

fn id(process: usize) -> Process {
    Process(100 + process as u64)
}

fn some(number: u64, failed: u32) -> HealthReport {
    HealthReport { number, failed, ..HealthReport::default() }
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn five_failures_in_a_row_anywhere_open_the_breaker_everywhere() {
    let mut fleet = Fleet::new(4);
    fleet.fail(0, 2);
    fleet.tell_all();
    fleet.fail(1, 2);
    fleet.tell_all();
    assert!((0..4).all(|process| fleet.is_closed(process)));
    fleet.fail(2, 1);
    assert!(!fleet.is_closed(2), "its own failure is the fifth");
    fleet.tell_all();
    assert!((0..4).all(|process| !fleet.is_closed(process)));
}

#[test]
fn no_other_process_counts_for_more_than_half() {
    let mut fleet = Fleet::new(2);
    fleet.fail(0, 5);
    fleet.tell_all();
    assert!(!fleet.is_closed(0) && fleet.is_closed(1));
    fleet.fail(1, 1);
    assert!(fleet.is_closed(1), "three of five and one");
    fleet.fail(1, 1);
    assert!(!fleet.is_closed(1));
}

#[test]
fn half_is_rounded_up() {
    for (consecutive, own) in [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2), (6, 3), (9, 4)] {
        let mut fleet = Fleet::with(2, Breaker::default().consecutive(consecutive));
        fleet.hear(0, 1, &some(1, 1_000));
        for failures in 0..own {
            assert!(fleet.is_closed(0), "{consecutive} after {failures}");
            fleet.fail(0, 1);
        }
        assert!(!fleet.is_closed(0), "{consecutive} after {own}");
    }
}

#[test]
fn a_success_anywhere_ends_the_row_of_all() {
    let mut fleet = Fleet::new(4);
    fleet.fail(0, 2);
    fleet.fail(1, 2);
    fleet.tell_all();
    fleet.succeed(2);
    let report = fleet.report(2);
    assert_eq!(report.answers, [(id(0), 2), (id(1), 2)]);
    for process in [0, 1, 3] {
        fleet.hear(process, 2, &report);
        let circuit = fleet.circuit(process);
        assert_eq!(circuit.peers.unanswered(circuit.consecutive), 0);
    }
    for process in 0..4 {
        fleet.fail(process, 1);
        fleet.tell_all();
        assert!((0..4).all(|other| fleet.is_closed(other)), "{} of five", process + 1);
    }
    fleet.fail(0, 1);
    assert!(!fleet.is_closed(0));
}

#[test]
fn an_answer_may_come_before_what_it_answers() {
    let mut fleet = Fleet::new(3);
    fleet.fail(0, 3);
    let failed = fleet.report(0);
    fleet.hear(1, 0, &failed);
    fleet.succeed(1);
    let answered = fleet.report(1);
    fleet.hear(2, 1, &answered);
    fleet.hear(2, 0, &failed);
    fleet.fail(2, 4);
    assert!(fleet.is_closed(2));
    fleet.hear(0, 1, &answered);
    fleet.fail(0, 1);
    fleet.hear(0, 2, &some(1, 3));
    assert!(fleet.is_closed(0), "one here and three there");
}

#[test]
fn only_the_first_success_is_told() {
    let mut fleet = Fleet::new(3);
    fleet.succeed(0);
    assert_eq!(fleet.tables[0].untold(PROVIDER), Untold::Nothing);
    assert_eq!(fleet.tables[0].own_report(PROVIDER, fleet.now), None);
    fleet.fail(1, 1);
    fleet.tell_all();
    fleet.succeed(0);
    assert_eq!(fleet.tables[0].untold(PROVIDER), Untold::Counts);
    fleet.tell_all();
    for process in [0, 1, 2] {
        fleet.succeed(process);
        assert_eq!(fleet.tables[process].untold(PROVIDER), Untold::Nothing, "{process}");
    }
}

#[test]
fn a_success_answers_only_what_was_not_answered() {
    let mut fleet = Fleet::new(4);
    fleet.fail(0, 1);
    fleet.tell_all();
    fleet.succeed(1);
    fleet.tell_all();
    fleet.fail(2, 1);
    fleet.tell_all();
    fleet.succeed(3);
    assert_eq!(fleet.report(3).answers, [(id(2), 1)]);
}

#[test]
fn a_success_answers_ones_own_failures_whatever_was_heard_since() {
    let mut fleet = Fleet::new(2);
    fleet.fail(0, 1);
    fleet.tell_all();
    fleet.hear(0, 1, &HealthReport { served: 3, ..some(1, 3) });
    fleet.succeed(0);
    assert_eq!(fleet.tables[0].untold(PROVIDER), Untold::Counts);
    let report = fleet.report(0);
    assert_eq!((report.failed, report.served), (1, 1));
}

#[test]
fn a_report_opens_only_with_another_failure() {
    let mut fleet = Fleet::new(2);
    fleet.hear(0, 1, &some(1, 3));
    fleet.pass(11.0);
    fleet.fail(0, 2);
    fleet.hear(0, 1, &some(2, 3));
    assert!(fleet.is_closed(0), "it says again what had run out");
    fleet.hear(0, 1, &some(3, 4));
    assert!(!fleet.is_closed(0));
}

#[test]
fn a_break_and_a_cooldown_that_are_over_are_not_told() {
    let mut fleet = Fleet::new(2);
    fleet.hear(0, 1, &HealthReport { open: Some((secs(4), 4)), ..some(1, 3) });
    fleet.pass(4.0);
    fleet.fail(0, 2);
    assert_eq!(fleet.report(0).open.map(|(_, breaks)| breaks), Some(1));
    let mut fleet = Fleet::new(1);
    fleet.limit(0, 4);
    assert_eq!(fleet.report(0).cooldown, Some((secs(4), 0)));
    fleet.pass(4.0);
    assert_eq!(fleet.report(0).cooldown, None);
}

#[test]
fn what_has_run_out_counts_no_more() {
    let mut fleet = Fleet::new(3);
    fleet.fail(0, 2);
    fleet.fail(1, 2);
    fleet.tell_all();
    fleet.pass(10.0);
    fleet.fail(2, 1);
    assert!(fleet.is_closed(2));
    fleet.fail(2, 3);
    assert!(fleet.is_closed(2));
    fleet.fail(2, 1);
    assert!(!fleet.is_closed(2));
}

#[test]
fn what_was_heard_is_not_passed_on() {
    let mut fleet = Fleet::new(4);
    fleet.open_all();
    assert_eq!(fleet.tables[3].own_report(PROVIDER, fleet.now), None);
    fleet.limit(0, 20);
    // Nor is a break that others have seen, by one that has seen other failures.
    let mut fleet = Fleet::new(3);
    fleet.fail(0, 1);
    fleet.succeed(0);
    fleet.hear(0, 1, &some(1, 3));
    fleet.hear(0, 2, &some(1, 3));
    assert!(!fleet.is_closed(0));
    assert_eq!(fleet.report(0).open, None);
    let mut fleet = Fleet::new(3);
    fleet.limit(0, 20);
    fleet.tell_all();
    assert!(matches!(fleet.state(1), State::CoolingDown { .. }));
    assert_eq!(fleet.tables[1].own_report(PROVIDER, fleet.now), None);
    fleet.fail(1, 1);
    assert_eq!(fleet.tables[1].own_report(PROVIDER, fleet.now), None, "sent during a cooldown");
}

#[test]
fn a_breaker_that_opens_by_its_ratio_is_a_whole_row_to_others() {
    let mut fleet = Fleet::with(3, Breaker::default().ratio(0.5, 10));
    for _ in 0..5 {
        fleet.succeed(0);
        fleet.fail(0, 1);
    }
    assert!(!fleet.is_closed(0));
    let report = fleet.report(0);
    assert_eq!(report.failed - report.served, 5);
    assert!(report.open.is_some());
    fleet.hear(1, 0, &report);
    fleet.fail(1, 2);
    assert!(!fleet.is_closed(1));
}

#[test]
fn breakers_that_open_together_have_the_same_level_and_jitters_of_their_own() {
    let mut fleet = Fleet::new(4);
    let mut witness = some(1, 9);
    witness.open = Some((secs(200), 4));
    fleet.hear(3, 0, &witness);
    fleet.fail(3, 2);
    assert_eq!(fleet.report(3).open.map(|(_, breaks)| breaks), Some(4));
    let mut fleet = Fleet::new(4);
    fleet.open_all();
    let mut ends: Vec<_> = (0..4).map(|process| fleet.open_until(process)).collect();
    ends.sort();
    ends.dedup();
    assert_eq!(ends.len(), 4);
}

#[test]
fn a_process_that_fails_by_itself_takes_no_level_from_others() {
    let mut fleet = Fleet::new(2);
    let mut witness = some(1, 9);
    witness.open = Some((secs(200), 6));
    fleet.fail(0, 4);
    fleet.succeed(0);
    fleet.hear(0, 1, &witness);
    fleet.succeed(0);
    fleet.fail(0, 5);
    assert_eq!(fleet.report(0).open.map(|(_, breaks)| breaks), Some(1));
}

#[test]
fn a_process_that_comes_late_waits_no_longer_than_the_others() {
    for seed in 0..50 {
        let mut fleet = Fleet::new(3);
        fleet.tables[2].random = fastrand::Rng::with_seed(seed);
        for (other, left) in [(0, 2), (1, 4)] {
            let mut witness = some(1, 5);
            witness.open = Some((secs(left), 2));
            fleet.hear(2, other, &witness);
        }
        let left = fleet.open_until(2) - fleet.now;
        assert!((secs(4)..=secs(5)).contains(&left), "{left:?}");
    }
}

#[test]
fn a_probe_elsewhere_is_waited_for() {
    let mut fleet = Fleet::new(3);
    fleet.open_all();
    let ends: Vec<_> = (0..3).map(|process| fleet.open_until(process)).collect();
    let first = (0..3).min_by_key(|process| ends[*process]).unwrap();
    let other = (first + 1) % 3;
    fleet.pass_break(first);
    let probe = fleet.admit(first);
    assert!(fleet.report(first).is_probing);
    fleet.tell(first);
    fleet.now = ends[other].max(fleet.now);
    fleet.tell(first);
    assert_eq!(fleet.admission(other), Admission::Unavailable(fleet.now + secs(3)));
    assert_eq!(fleet.state(other), State::Probing);
    fleet.pass(2.9);
    assert!(matches!(fleet.admission(other), Admission::Unavailable(_)));
    fleet.pass(0.2);
    assert_eq!(fleet.admission(other), Admission::ProbeDue, "it was not heard of again");
    fleet.tell(first);
    assert!(matches!(fleet.admission(other), Admission::Unavailable(_)));
    fleet.tables[first].cancel(&probe);
    fleet.tell_all();
    assert_eq!(fleet.admission(other), Admission::ProbeDue, "the probe proved nothing");
}

#[test]
fn a_probe_elsewhere_holds_no_one_for_longer_than_two_minutes_after_the_break() {
    let mut fleet = Fleet::new(2);
    fleet.fail(0, 5);
    fleet.pass_break(0);
    let ended = fleet.now;
    for number in 1..400 {
        fleet.hear(0, 1, &HealthReport { is_probing: true, ..some(number, 1) });
        if let Admission::Unavailable(until) = fleet.admission(0) {
            assert!(until <= ended + secs(120));
        }
        fleet.pass(0.8);
    }
    assert_eq!(fleet.admission(0), Admission::ProbeDue);
}

#[test]
fn a_probe_of_ones_own_is_not_stopped_by_one_elsewhere() {
    let mut fleet = Fleet::new(2);
    fleet.fail(0, 5);
    fleet.pass_break(0);
    let probe = fleet.admit(0);
    fleet.hear(0, 1, &HealthReport { is_probing: true, ..some(1, 1) });
    fleet.hear(0, 1, &some(2, 1));
    assert_eq!(fleet.state(0), State::Probing);
    fleet.end(0, probe, HealthSignal::Success);
    assert!(fleet.is_closed(0));
}

#[test]
fn a_probe_of_ones_own_whose_lease_is_over_gives_way_to_one_elsewhere() {
    let mut fleet = Fleet::new(2);
    fleet.fail(0, 5);
    fleet.pass_break(0);
    let _probe = fleet.admit(0);
    fleet.pass(60.0);
    fleet.hear(0, 1, &HealthReport { is_probing: true, ..some(1, 1) });
    assert_eq!(fleet.admission(0), Admission::Unavailable(fleet.now + secs(3)));
}

#[test]
fn a_probe_that_fails_elsewhere_opens_again() {
    let mut fleet = Fleet::new(3);
    fleet.open_all();
    let ends: Vec<_> = (0..3).map(|process| fleet.open_until(process)).collect();
    let first = (0..3).min_by_key(|process| ends[*process]).unwrap();
    fleet.pass_break(first);
    fleet.fail(first, 1);
    let report = fleet.report(first);
    assert_eq!(report.open.map(|(_, breaks)| breaks), Some(2));
    for other in (0..3).filter(|other| *other != first) {
        let Received::Applied(changes) = fleet.hear(other, first, &report) else { panic!() };
        let [Some(Change::Opened { until, breaks: 2, cause: OpenCause::Probe }), None] =
            changes.own()
        else {
            panic!("{changes:?}");
        };
        assert!((secs(30)..=secs(60)).contains(&(until - fleet.now)));
    }
}

#[test]
fn no_report_lengthens_a_break_in_its_first_half_or_twice() {
    let mut fleet = Fleet::new(2);
    fleet.fail(0, 5);
    let until = fleet.open_until(0);
    let longer = |number: u32| HealthReport {
        open: Some((secs(300), 30)),
        ..some(number.into(), 9 + number)
    };
    fleet.pass(14.9);
    fleet.hear(0, 1, &longer(1));
    assert_eq!(fleet.open_until(0), until);
    fleet.pass(0.1);
    fleet.hear(0, 1, &longer(2));
    let second = fleet.open_until(0);
    assert!(second > until && second <= fleet.now + secs(60), "one level, whatever was said");
    fleet.pass(1.0);
    fleet.hear(0, 1, &longer(3));
    assert_eq!(fleet.open_until(0), second);
}

#[test]
fn a_report_without_another_failure_lengthens_no_break() {
    let mut fleet = Fleet::new(2);
    let open = |number, failed, breaks| HealthReport {
        open: Some((secs(20), breaks)),
        ..some(number, failed)
    };
    fleet.hear(0, 1, &open(1, 9, 1));
    fleet.fail(0, 5);
    let until = fleet.open_until(0);
    fleet.pass(15.0);
    fleet.hear(0, 1, &open(2, 9, 2));
    assert_eq!(fleet.open_until(0), until);
    fleet.hear(0, 1, &open(3, 10, 2));
    assert!(fleet.open_until(0) > until);
}

#[test]
fn another_failure_in_the_same_break_lengthens_it_not() {
    let mut fleet = Fleet::new(2);
    fleet.fail(0, 5);
    let until = fleet.open_until(0);
    fleet.pass(15.0);
    fleet.hear(0, 1, &HealthReport { open: Some((secs(300), 1)), ..some(1, 9) });
    assert_eq!(fleet.open_until(0), until);
    fleet.hear(0, 1, &HealthReport { open: Some((secs(300), 2)), ..some(2, 10) });
    assert!(fleet.open_until(0) > until);
}

#[test]
fn what_others_say_is_trusted_from_the_first_report_that_keeps_the_provider_unasked() {
    let since = |fleet: &Fleet| fleet.circuit(0).peers.0.as_ref().unwrap().on_trust_since;
    let probing = |number| HealthReport { is_probing: true, ..some(number, 1) };
    let mut fleet = Fleet::new(3);
    let early = fleet.admit(0);
    fleet.fail(0, 5);
    fleet.hear(0, 1, &some(1, 1));
    assert_eq!(since(&fleet), None, "its break is its own");
    fleet.pass_break(0);
    fleet.hear(0, 1, &probing(2));
    let first = fleet.now;
    assert_eq!(since(&fleet), Some(first), "it waits for a probe elsewhere");
    fleet.pass(1.0);
    fleet.hear(0, 1, &probing(3));
    assert_eq!(since(&fleet), Some(first));
    fleet.end(0, early, HealthSignal::Neutral);
    assert_eq!(since(&fleet), None, "it was asked");
    fleet.pass(3.0);
    fleet.hear(0, 2, &some(1, 1));
    assert_eq!(since(&fleet), None, "the wait is over");
    let _probe = fleet.admit(0);
    fleet.hear(0, 2, &some(2, 1));
    assert_eq!(since(&fleet), None, "the probe is its own");
}

#[test]
fn a_probe_that_fails_elsewhere_opens_again_however_many_there_were() {
    let mut fleet = Fleet::new(2);
    fleet.fail(0, 5);
    for _ in 0..100 {
        fleet.pass_break(0);
        fleet.fail(0, 1);
    }
    let breaks = fleet.report(0).open.map(|(_, breaks)| breaks);
    assert_eq!(breaks, Some(MOST_BREAKS), "it does not grow for ever");
    fleet.pass(290.0);
    let until = fleet.open_until(0);
    fleet.hear(0, 1, &HealthReport { open: Some((secs(300), MOST_BREAKS)), ..some(1, 9) });
    assert!(fleet.open_until(0) > until);
}

#[test]
fn a_break_is_not_lengthened_while_an_own_probe_is_out() {
    let mut fleet = Fleet::new(2);
    fleet.fail(0, 5);
    fleet.pass_break(0);
    let probe = fleet.admit(0);
    fleet.hear(0, 1, &HealthReport { open: Some((secs(300), 30)), ..some(1, 9) });
    assert_eq!(fleet.state(0), State::Probing);
    fleet.end(0, probe, HealthSignal::Success);
    assert!(fleet.is_closed(0));
}

#[test]
fn a_close_elsewhere_ends_the_break_and_does_not_close() {
    let mut fleet = Fleet::new(3);
    fleet.open_all();
    let ends: Vec<_> = (0..3).map(|process| fleet.open_until(process)).collect();
    let first = (0..3).min_by_key(|process| ends[*process]).unwrap();
    let other = (first + 1) % 3;
    fleet.pass_break(first);
    fleet.succeed(first);
    let report = fleet.report(first);
    assert!(report.has_closed && report.open.is_none());
    fleet.hear(other, first, &report);
    assert_eq!(fleet.admission(other), Admission::ProbeDue);
    fleet.fail(other, 1);
    let breaks = fleet.report(other).open.map(|(_, breaks)| breaks);
    assert_eq!(breaks, Some(1), "the doubling of the break that was cut short is taken back");
}

#[test]
fn a_close_elsewhere_ends_the_wait_for_a_third_ones_probe_and_no_probe_of_ones_own() {
    let closed = |number| HealthReport { has_closed: true, ..some(number, 1) };
    let mut fleet = Fleet::new(3);
    fleet.fail(0, 5);
    fleet.pass_break(0);
    fleet.hear(0, 1, &HealthReport { is_probing: true, ..some(1, 1) });
    fleet.hear(0, 2, &closed(1));
    assert_eq!(fleet.admission(0), Admission::ProbeDue);
    let probe = fleet.admit(0);
    fleet.hear(0, 1, &closed(2));
    assert_eq!(fleet.state(0), State::Probing);
    fleet.end(0, probe, HealthSignal::Success);
    assert!(fleet.is_closed(0));
}

#[test]
fn a_close_is_heard_once() {
    let mut fleet = Fleet::new(2);
    fleet.fail(0, 5);
    fleet.pass_break(0);
    fleet.succeed(0);
    let first = fleet.report(0);
    let again = fleet.report(0);
    assert!(first.has_closed && again.has_closed);
    fleet.fail(1, 5);
    fleet.hear(1, 0, &first);
    assert_eq!(fleet.admission(1), Admission::ProbeDue);
    fleet.fail(1, 1);
    fleet.hear(1, 0, &again);
    assert!(matches!(fleet.state(1), State::Open { until } if until > fleet.now));
    fleet.pass(10.0);
    assert!(!fleet.report(0).has_closed);
}

#[test]
fn a_cooldown_elsewhere_is_obeyed() {
    for seed in 0..20 {
        let mut fleet = Fleet::new(2);
        fleet.tables[1].random = fastrand::Rng::with_seed(seed);
        fleet.limit(0, 20);
        fleet.tell_all();
        let State::CoolingDown { until } = fleet.state(1) else { panic!() };
        assert!((secs(20)..=secs(21)).contains(&(until - fleet.now)));
        fleet.now = until;
        assert_eq!(fleet.admission(1), Admission::ProbeDue, "its end is lent to one request");
    }
}

#[test]
fn a_cooldown_elsewhere_is_no_longer_than_the_own_settings_allow_or_five_minutes() {
    for (most, asked, expected) in [(60, 200, 60), (1_000, 400, 300), (1_000, 200, 200)] {
        let mut fleet = Fleet::new(2);
        fleet.tables[0].cooldown = crate::health::Cooldown::default().at_most(secs(most));
        fleet.hear(0, 1, &HealthReport { cooldown: Some((secs(asked), 3)), ..some(1, 0) });
        let State::CoolingDown { until } = fleet.state(0) else { panic!() };
        assert!((secs(expected)..=secs(expected + 1)).contains(&(until - fleet.now)));
    }
}

#[test]
fn a_cooldown_elsewhere_never_shortens_the_own_one() {
    let mut fleet = Fleet::new(2);
    fleet.limit(0, 30);
    let before = fleet.state(0);
    fleet.hear(0, 1, &HealthReport { cooldown: Some((secs(20), 0)), ..some(1, 0) });
    assert_eq!(fleet.state(0), before);
    assert_eq!(fleet.report(0).cooldown, Some((secs(30), 0)));
    fleet.hear(0, 1, &HealthReport { cooldown: Some((secs(0), 0)), ..some(2, 0) });
    assert_eq!(fleet.state(0), before);
}

#[test]
fn a_cooldown_that_is_heard_again_does_not_grow() {
    let mut fleet = Fleet::new(2);
    fleet.hear(0, 1, &HealthReport { cooldown: Some((secs(30), 0)), ..some(1, 0) });
    let before = fleet.state(0);
    for number in 2..100 {
        fleet.pass(0.25);
        let left = secs(30).saturating_sub(Duration::from_millis(250 * (number - 1)));
        fleet.hear(0, 1, &HealthReport { cooldown: Some((left, 0)), ..some(number, 0) });
        assert_eq!(fleet.state(0), before);
    }
}

#[test]
fn the_level_of_a_cooldown_elsewhere_is_bounded() {
    let mut fleet = Fleet::new(2);
    fleet.hear(0, 1, &HealthReport { cooldown: Some((secs(10), u32::MAX)), ..some(1, 0) });
    assert_eq!(fleet.circuit(0).rest.unwrap().level, 6);
}

#[test]
fn a_cooldown_elsewhere_takes_nothing_from_the_level_of_the_own_one() {
    let mut fleet = Fleet::new(2);
    for _ in 0..3 {
        fleet.ask(0, HealthSignal::Cooldown(None));
        fleet.now = fleet.circuit(0).rest.unwrap().until;
    }
    fleet.hear(0, 1, &HealthReport { cooldown: Some((secs(10), 0)), ..some(1, 0) });
    assert_eq!(fleet.circuit(0).rest.unwrap().level, 2);
}

#[test]
fn reports_keep_a_provider_unasked_for_an_hour_at_most() {
    let mut fleet = Fleet::new(2);
    let began = fleet.now;
    let mut number = 0;
    let mut asked = None;
    while asked.is_none() && fleet.now < began + secs(3 * 3600) {
        number += 1;
        fleet.hear(0, 1, &HealthReport { cooldown: Some((secs(300), 0)), ..some(number, 0) });
        asked = (fleet.admission(0) == Admission::ProbeDue).then_some(fleet.now);
        fleet.pass(100.0);
    }
    let waited = asked.expect("it is asked in the end") - began;
    assert!((secs(3600)..=secs(3600 + 400)).contains(&waited), "{waited:?}");
    fleet.succeed(0);
    fleet.hear(0, 1, &HealthReport { cooldown: Some((secs(300), 0)), ..some(number + 1, 0) });
    assert!(matches!(fleet.state(0), State::CoolingDown { .. }), "it was asked, and trusts again");
}

#[test]
fn a_report_that_is_old_or_repeated_or_ones_own_moves_nothing() {
    let mut fleet = Fleet::new(2);
    assert_eq!(fleet.hear(0, 1, &some(2, 2)), Received::Applied(Changes::default()));
    assert_eq!(fleet.hear(0, 1, &some(2, 3)), Received::Old);
    assert_eq!(fleet.hear(0, 1, &some(1, 3)), Received::Old);
    assert_eq!(fleet.hear(0, 0, &some(9, 9)), Received::Old);
    fleet.fail(0, 2);
    assert!(fleet.is_closed(0));
    fleet.fail(0, 1);
    assert!(!fleet.is_closed(0));
}

#[test]
fn what_was_sent_before_an_opening_that_was_heard_moves_nothing() {
    let mut fleet = Fleet::new(4);
    let (slow, probe) = (fleet.admit(3), fleet.admit(3));
    fleet.open_all();
    fleet.end(3, slow, HealthSignal::Success);
    assert!(matches!(fleet.state(3), State::Open { .. }));
    fleet.end(3, probe, HealthSignal::Failure);
    assert_eq!(fleet.tables[3].own_report(PROVIDER, fleet.now), None);
}

#[test]
fn a_chain_that_does_not_share_hears_and_says_nothing() {
    let now = Instant::now();
    let mut table = HealthTable::new(1, Some(Breaker::default()), now, 1);
    let applied = table.apply_report(PROVIDER, id(1), &some(1, 9), secs(10), now);
    assert_eq!(applied, Received::Old);
    for _ in 0..5 {
        let permit = table.admit(PROVIDER, None, now, now);
        table.record_outcome(permit, HealthSignal::Failure, Concern::Provider, now);
    }
    assert_eq!(table.untold(PROVIDER), Untold::Nothing);
    assert!(!table.take_untold());
    assert_eq!(table.own_report(PROVIDER, now), None);
    assert_eq!(table.own_report(9, now), None);
}

#[test]
fn what_others_should_know_is_noted_when_it_happens() {
    let mut fleet = Fleet::new(1);
    let noted = |fleet: &mut Fleet, untold| {
        assert_eq!(fleet.tables[0].untold(PROVIDER), untold);
        assert_eq!(fleet.tables[0].take_untold(), untold != Untold::Nothing);
        _ = fleet.tables[0].own_report(PROVIDER, fleet.now);
        assert!(!fleet.tables[0].take_untold());
        assert_eq!(fleet.tables[0].untold(PROVIDER), Untold::Nothing);
    };
    fleet.succeed(0);
    noted(&mut fleet, Untold::Nothing);
    fleet.fail(0, 1);
    noted(&mut fleet, Untold::Counts);
    fleet.succeed(0);
    noted(&mut fleet, Untold::Counts);
    fleet.fail(0, 5);
    noted(&mut fleet, Untold::State);
    fleet.pass_break(0);
    let probe = fleet.admit(0);
    noted(&mut fleet, Untold::State);
    fleet.tables[0].cancel(&probe);
    noted(&mut fleet, Untold::State);
    fleet.succeed(0);
    noted(&mut fleet, Untold::State);
    fleet.limit(0, 9);
    noted(&mut fleet, Untold::State);
}

#[test]
fn a_stream_that_begins_well_answers_too() {
    let mut fleet = Fleet::new(2);
    fleet.fail(0, 2);
    fleet.tell_all();
    let mut permit = fleet.admit(1);
    let now = fleet.now;
    fleet.tables[1].commit(&mut permit, now);
    assert!(fleet.tables[1].take_untold());
    assert_eq!(fleet.report(1).answers, [(id(0), 2)]);
}

#[test]
fn a_report_counts_as_long_as_what_it_says() {
    let mut fleet = Fleet::new(2);
    let counts_for = |fleet: &mut Fleet| {
        let now = fleet.now;
        fleet.tables[0].own_report(PROVIDER, now).unwrap().1
    };
    fleet.fail(0, 1);
    assert_eq!(counts_for(&mut fleet), secs(10));
    fleet.fail(0, 4);
    let left = fleet.open_until(0) - fleet.now;
    assert_eq!(counts_for(&mut fleet), left + secs(3));
    let mut fleet = Fleet::new(2);
    fleet.limit(0, 100);
    assert_eq!(counts_for(&mut fleet), secs(100));
    fleet.pass(100.0);
    assert_eq!(counts_for(&mut fleet), secs(10), "the cooldown is over");
    assert_eq!(fleet.tables[0].own_report(PROVIDER, fleet.now), None);
    let mut fleet = Fleet::new(2);
    fleet.hear(0, 1, &some(1, 1));
    fleet.succeed(0);
    assert_eq!(counts_for(&mut fleet), secs(300));
    fleet.pass(299.0);
    assert_eq!(counts_for(&mut fleet), secs(10));
    fleet.pass(1.0);
    assert_eq!(counts_for(&mut fleet), secs(10), "the answers are over");
    assert_eq!(fleet.tables[0].own_report(PROVIDER, fleet.now), None);
}

#[test]
fn a_probe_that_ends_a_cooldown_is_taken_back() {
    let mut fleet = Fleet::new(3);
    fleet.hear(0, 2, &HealthReport { cooldown: Some((secs(5), 0)), ..some(1, 0) });
    fleet.hear(1, 2, &HealthReport { cooldown: Some((secs(5), 0)), ..some(1, 0) });
    fleet.pass(6.0);
    let probe = fleet.admit(0);
    fleet.tell_all();
    assert_eq!(fleet.state(1), State::Probing);
    fleet.end(0, probe, HealthSignal::Success);
    fleet.tell_all();
    assert_eq!(fleet.admission(1), Admission::ProbeDue);
}

#[test]
fn the_list_of_others_and_of_answers_is_bounded() {
    let mut fleet = Fleet::new(1);
    for other in 1..2_000 {
        fleet.pass(0.001);
        fleet.hear(0, other, &some(1, 1));
    }
    let known = fleet.circuit(0).peers.0.as_ref().unwrap();
    assert_eq!(known.list.len(), 1_000);
    let latest = |peer: &Peer| peer.process >= id(1_000);
    assert!(known.list.iter().all(latest), "those that were quiet for longest go first");
    fleet.succeed(0);
    assert_eq!(fleet.report(0).answers.len(), 16);
}

#[test]
fn no_number_overflows() {
    let most = HealthReport {
        number: u64::MAX,
        failed: u32::MAX,
        served: 0,
        open: Some((Duration::MAX, u32::MAX)),
        cooldown: Some((Duration::MAX, u32::MAX)),
        is_probing: true,
        has_closed: true,
        answers: vec![(id(0), u32::MAX); 99],
    };
    let mut fleet = Fleet::new(2);
    for process in 1..4 {
        let from = id(process);
        fleet.tables[0].apply_report(PROVIDER, from, &most, Duration::MAX, fleet.now);
    }
    fleet.fail(0, 9);
    fleet.pass(1e6);
    fleet.fail(0, 1);
    assert!(fleet.tables[0].own_report(PROVIDER, fleet.now).is_some());
}

#[test]
fn what_is_left_is_counted_from_when_the_report_was_made() {
    let mut fleet = Fleet::new(3);
    let limited = HealthReport { cooldown: Some((secs(30), 0)), ..some(1, 0) };
    fleet.hear_late(0, 1, &limited, secs(12));
    let State::CoolingDown { until } = fleet.state(0) else { panic!() };
    assert!((secs(12)..=secs(13)).contains(&(until - fleet.now)));
    let mut fleet = Fleet::new(3);
    for other in [1, 2] {
        let open = HealthReport { open: Some((secs(25), 1)), ..some(1, 3) };
        fleet.hear_late(0, other, &open, secs(7));
    }
    let left = fleet.open_until(0) - fleet.now;
    assert!((secs(4)..=secs(5)).contains(&left), "{left:?}");
}

#[test]
fn a_stream_that_begins_well_ends_what_was_taken_on_trust() {
    let mut fleet = Fleet::new(2);
    let limited = |number| HealthReport { cooldown: Some((secs(20), 0)), ..some(number, 0) };
    fleet.hear(0, 1, &limited(1));
    fleet.pass(22.0);
    let mut stream = fleet.admit(0);
    let now = fleet.now;
    fleet.tables[0].commit(&mut stream, now);
    fleet.end(0, stream, HealthSignal::Success);
    for _ in 0..4 {
        fleet.pass(1_000.0);
        fleet.succeed(0);
    }
    fleet.hear(0, 1, &limited(2));
    assert!(matches!(fleet.state(0), State::CoolingDown { .. }));
}

#[test]
fn a_prober_that_is_gone_keeps_no_one_from_what_others_say() {
    let mut fleet = Fleet::new(3);
    let limited = |number| HealthReport { cooldown: Some((secs(20), 0)), ..some(number, 0) };
    fleet.hear(0, 1, &limited(1));
    fleet.hear(0, 1, &HealthReport { is_probing: true, ..limited(2) });
    fleet.pass(25.0);
    fleet.succeed(0);
    for number in 1..5 {
        fleet.hear(0, 2, &HealthReport { served: 1, ..some(number, 1) });
        fleet.pass(1_000.0);
        fleet.succeed(0);
    }
    fleet.hear(0, 2, &limited(5));
    assert!(matches!(fleet.state(0), State::CoolingDown { .. }));
}

#[test]
fn a_provider_that_is_shared_again_is_heard_again() {
    let mut fleet = Fleet::new(2);
    fleet.fail(0, 4);
    fleet.tell(0);
    fleet.succeed(1);
    let answer = fleet.report(1);
    for _ in 0..2 {
        // Another one takes its place, and then it comes back.
        fleet.tables[0].renew(PROVIDER);
        fleet.tables[0].share(PROVIDER, id(0));
    }
    assert_eq!(fleet.tables[0].untold(PROVIDER), Untold::Nothing);
    fleet.fail(0, 2);
    fleet.hear(0, 1, &answer);
    assert_eq!(fleet.circuit(0).consecutive, 2, "what was answered are others");
    fleet.tell(0);
    fleet.fail(1, 2);
    assert!(fleet.is_closed(1));
    fleet.fail(1, 1);
    assert!(!fleet.is_closed(1), "two there and three here");
}

#[test]
fn what_many_have_said_before_a_success_opens_nothing_after_it() {
    let mut fleet = Fleet::new(1);
    let reports: Vec<_> = (1..100)
        .map(|other| (other, HealthReport { open: Some((secs(60), 1)), ..some(1, 5) }))
        .collect();
    let hear_all =
        |fleet: &mut Fleet| reports.iter().for_each(|(from, said)| _ = fleet.hear(0, *from, said));
    hear_all(&mut fleet);
    fleet.pass_break(0);
    fleet.succeed(0);
    hear_all(&mut fleet);
    assert!(fleet.is_closed(0));
}

#[test]
fn a_probe_that_fails_elsewhere_opens_again_the_break_of_one_that_came_late() {
    let mut fleet = Fleet::new(3);
    for other in [1, 2] {
        fleet.hear(0, other, &HealthReport { open: Some((secs(4), 1)), ..some(1, 5) });
    }
    fleet.pass(4.0);
    fleet.hear(0, 1, &HealthReport { open: Some((secs(60), 2)), ..some(2, 6) });
    assert!(fleet.open_until(0) >= fleet.now + secs(10));
}

#[test]
fn what_others_say_keeps_no_own_row_from_opening() {
    let mut fleet = Fleet::new(2);
    for failures in 0..5 {
        assert!(fleet.is_closed(0), "{failures}");
        fleet.succeed(1);
        fleet.tell_all();
        fleet.pass(10.0);
        fleet.fail(0, 1);
        fleet.tell_all();
        assert!(fleet.is_closed(1));
    }
    assert!(!fleet.is_closed(0), "only its own network is broken");
    let report = fleet.report(0);
    assert_eq!(report.failed - report.served, 1, "the others were answered");
    assert!(report.open.is_some());
}

#[test]
fn an_answer_of_what_is_still_to_come_answers_nothing_of_ones_own() {
    let mut fleet = Fleet::new(3);
    fleet.hear(0, 1, &HealthReport { answers: vec![(id(0), u32::MAX)], ..some(1, 0) });
    fleet.fail(0, 2);
    fleet.hear(0, 2, &some(1, 3));
    assert!(!fleet.is_closed(0));
}

/// What the rules say of a row, without a table.
#[derive(Default)]
struct Model {
    own_row: u32,
    failed: u32,
    answered: u32,
    others: BTreeMap<u64, Other>,
}

#[derive(Clone, Copy, Default)]
struct Other {
    number: u64,
    failed: u32,
    answered: u32,
}

impl Model {
    fn row(&self) -> u32 {
        let heard = self.others.values().map(|it| it.failed.saturating_sub(it.answered).min(3));
        let own = self.own_row.min(self.failed.saturating_sub(self.answered));
        self.own_row.max(own + heard.sum::<u32>())
    }
}

#[derive(Clone, Debug)]
enum Step {
    Fail,
    Succeed,
    Hear { from: u64, report: HealthReport },
}

fn step() -> impl Strategy<Value = Step> {
    let answers = proptest::collection::vec((100u64..104, 0u32..5), 0..3);
    let report =
        (1u64..8, 0u32..6, 0u32..6, answers).prop_map(|(number, failed, served, answers)| {
            let answers = answers.into_iter().map(|(process, to)| (Process(process), to)).collect();
            HealthReport { served: served.min(failed), answers, ..some(number, failed) }
        });
    prop_oneof![
        2 => Just(Step::Fail),
        2 => Just(Step::Succeed),
        6 => (101u64..104, report).prop_map(|(from, report)| Step::Hear { from, report }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn the_breaker_opens_where_the_row_is_complete(steps in proptest::collection::vec(step(), 1..40)) {
        let mut fleet = Fleet::with(1, Breaker::default().ratio(1.0, 1_000));
        let mut model = Model::default();
        for step in steps {
            let may_open = match step {
                Step::Fail => {
                    fleet.fail(0, 1);
                    model.own_row += 1;
                    model.failed += 1;
                    true
                }
                Step::Succeed => {
                    fleet.succeed(0);
                    model.own_row = 0;
                    model.others.values_mut().for_each(|it| it.answered = it.answered.max(it.failed));
                    false
                }
                Step::Hear { from, report } => {
                    fleet.tables[0].apply_report(PROVIDER, Process(from), &report, secs(10), fleet.now);
                    let it = model.others.entry(from).or_default();
                    let mut rose = false;
                    if report.number > it.number {
                        rose = report.failed > it.failed;
                        it.number = report.number;
                        it.failed = it.failed.max(report.failed);
                        it.answered = it.answered.max(report.served);
                        for (Process(process), to) in &report.answers {
                            if *process == 100 {
                                model.answered = model.answered.max(model.failed.min(*to));
                            } else {
                                let other = model.others.entry(*process).or_default();
                                other.answered = other.answered.max(*to);
                            }
                        }
                    }
                    rose
                }
            };
            let open = may_open && model.row() >= 5;
            prop_assert_eq!(fleet.is_closed(0), !open);
            if open {
                break;
            }
        }
    }

    #[test]
    fn the_order_of_reports_changes_nothing(
        reports in proptest::collection::vec((101u64..104, 1u32..3), 1..12),
        order in proptest::collection::vec(any::<prop::sample::Index>(), 24),
    ) {
        let mut failed = BTreeMap::new();
        let reports: Vec<_> = reports.iter().enumerate().map(|(number, (from, more))| {
            let failed = failed.entry(*from).or_insert(0);
            *failed += more;
            (Process(*from), some(number as u64 + 1, *failed))
        }).collect();
        let mut last = BTreeMap::new();
        reports.iter().for_each(|(from, report)| _ = last.insert(*from, report.clone()));
        let mut apart = Fleet::with(1, Breaker::default().consecutive(1_000));
        let mut sorted = Fleet::with(1, Breaker::default().consecutive(1_000));
        for at in order {
            let (from, report) = &reports[at.index(reports.len())];
            apart.tables[0].apply_report(PROVIDER, *from, report, secs(10), apart.now);
        }
        for (from, report) in &last {
            apart.tables[0].apply_report(PROVIDER, *from, report, secs(10), apart.now);
            sorted.tables[0].apply_report(PROVIDER, *from, report, secs(10), sorted.now);
        }
        let failures = |fleet: &Fleet| fleet.circuit(0).peers.failures(1_000, fleet.now);
        prop_assert_eq!(failures(&apart), failures(&sorted));
    }
}
