use std::ops::RangeInclusive;

use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const MOMENT: Duration = Duration::from_nanos(1);

/// The longest cooldown by default.
const LONGEST_REST: Duration = Duration::from_secs(300);

/// How long probes last in these tests.
const LEASE: Duration = Duration::from_secs(121);

/// One provider, and a clock that is moved by hand.
struct Harness {
    health: HealthTable,
    now: Instant,
}

impl Harness {
    fn new() -> Self {
        Self::with(Breaker::default())
    }

    fn with(breaker: Breaker) -> Self {
        Self::seeded(Some(breaker), 7)
    }

    fn seeded(breaker: Option<Breaker>, seed: u64) -> Self {
        let now = start();
        Self { health: HealthTable::new(1, breaker, now, seed), now }
    }

    /// A provider whose breaker has just opened, and the end of its break.
    fn opened() -> (Self, Instant) {
        let mut harness = Self::new();
        let until = harness.open();
        (harness, until)
    }

    /// A provider whose break is over and whose probe is out.
    fn probing() -> (Self, Permit) {
        let (mut harness, until) = Self::opened();
        harness.now = until;
        let probe = harness.ask();
        assert!(probe.is_probe());
        (harness, probe)
    }

    fn pass(&mut self, length: Duration) {
        self.now += length;
    }

    fn ask(&mut self) -> Permit {
        self.health.admit(0, None, self.now, self.now + LEASE)
    }

    fn record_outcome(&mut self, permit: Permit, signal: HealthSignal) -> Moves {
        self.health.record_outcome(permit, signal, Concern::Key, self.now).own()
    }

    /// Asks, and is answered in the same moment.
    fn answer(&mut self, signal: HealthSignal) -> Moves {
        let permit = self.ask();
        self.record_outcome(permit, signal)
    }

    fn commit(&mut self, stream: &mut Permit) -> Option<Change> {
        self.health.commit(stream, self.now).own()[0]
    }

    fn record_answer(&mut self, status: u16, time: Duration) -> Option<Change> {
        let permit = self.ask();
        let report = self.health.record_answer(&permit, status == 404, time);
        self.health.cancel(&permit);
        report
    }

    fn is_silence(&mut self, quiet_for: Duration) -> bool {
        let permit = self.ask();
        let is_silence = self.health.is_silence(&permit, quiet_for);
        self.health.cancel(&permit);
        is_silence
    }

    /// Answers with all of these, none of which may change anything.
    fn answer_unmoved(&mut self, all: impl IntoIterator<Item = HealthSignal>) {
        for signal in all {
            assert_eq!(self.answer(signal), UNMOVED, "{signal:?}");
        }
    }

    /// Fails until the breaker opens, and returns the end of the break.
    fn open(&mut self) -> Instant {
        self.answer_unmoved([HealthSignal::Failure; 4]);
        break_of(self.answer(HealthSignal::Failure)).1
    }

    /// Fails one probe after the other: the number and length of each break that follows.
    fn fail_probes(&mut self, times: usize) -> Vec<(u32, Duration)> {
        let fail = |_| {
            self.now = self.break_end();
            let (breaks, until) = break_of(self.answer(HealthSignal::Failure));
            (breaks, until - self.now)
        };
        (0..times).map(fail).collect()
    }

    fn break_end(&self) -> Instant {
        match self.state() {
            State::Open { until } => until,
            state => panic!("{state:?} is not open"),
        }
    }

    /// Lets the break end and closes the breaker with a successful probe.
    fn recover(&mut self) {
        self.now = self.break_end();
        assert_eq!(self.answer(HealthSignal::Success), CLOSED);
    }

    fn admission(&self) -> Admission {
        self.health.admission(0, None, self.now)
    }

    fn state(&self) -> State {
        self.health.state(0, self.now)
    }

    fn counts(&self) -> Counts {
        self.health.counts(0)
    }

    /// What a 429 without a hint costs now.
    fn next_cooldown(&mut self) -> Duration {
        let now = self.now;
        rest_of(self.answer(HealthSignal::Cooldown(None))) - now
    }
}

const CLOSED: Moves = [Some(Change::Closed), None];

#[track_caller]
fn break_of(changes: Moves) -> (u32, Instant) {
    match changes {
        [Some(Change::Opened { until, breaks, .. }), None] => (breaks, until),
        changes => panic!("{changes:?} opens no breaker"),
    }
}

#[track_caller]
fn rest_of(changes: Moves) -> Instant {
    match changes {
        [None, Some(Change::CoolingDown { until })] => until,
        changes => panic!("{changes:?} begins no cooldown"),
    }
}

#[expect(clippy::disallowed_methods, reason = "virtual time has to begin somewhere")]
fn start() -> Instant {
    Instant::now()
}

/// The last instant that there is.
fn end_of_time() -> Instant {
    let (mut latest, mut step) = (start(), Duration::MAX);
    while !step.is_zero() {
        match latest.checked_add(step) {
            Some(later) => latest = later,
            None => step /= 2,
        }
    }
    latest
}

/// An equally jittered break of this length: at least half of it.
fn jittered(length: Duration) -> RangeInclusive<Duration> {
    length / 2..=length
}

// The breaker opens.

#[test]
fn opens_at_the_fifth_failure_in_a_row() {
    let mut harness = Harness::new();
    harness.answer_unmoved([HealthSignal::Failure; 4]);
    assert_eq!((harness.admission(), harness.state()), (Admission::Available, State::Closed));
    let (breaks, until) = break_of(harness.answer(HealthSignal::Failure));
    assert_eq!(breaks, 1);
    assert_eq!(harness.admission(), Admission::Unavailable(until));
    assert_eq!(harness.state(), State::Open { until });
}

#[test]
fn failures_in_a_row_may_be_any_time_apart() {
    let mut harness = Harness::new();
    for _ in 0..4 {
        harness.answer_unmoved([HealthSignal::Failure]);
        harness.pass(SECOND * 3600);
    }
    break_of(harness.answer(HealthSignal::Failure));
}

#[test]
fn a_success_starts_the_row_of_failures_anew() {
    let mut harness = Harness::with(Breaker::default().ratio(1.0, 100));
    for _ in 0..10 {
        harness.answer_unmoved([HealthSignal::Failure; 4]);
        harness.answer_unmoved([HealthSignal::Success]);
    }
    harness.open();
}

#[test]
fn what_is_no_signal_neither_breaks_nor_lengthens_the_row_of_failures() {
    let mut harness = Harness::new();
    for _ in 0..4 {
        harness.answer_unmoved([
            HealthSignal::Failure,
            HealthSignal::Neutral,
            HealthSignal::Nothing,
        ]);
        let permit = harness.ask();
        harness.health.cancel(&permit);
    }
    break_of(harness.answer(HealthSignal::Failure));
}

#[test]
fn opens_when_half_of_ten_requests_failed() {
    let mut harness = Harness::new();
    harness
        .answer_unmoved([HealthSignal::Success, HealthSignal::Failure].into_iter().cycle().take(9));
    break_of(harness.answer(HealthSignal::Failure));
}

#[test]
fn stays_closed_while_less_than_half_of_the_requests_failed() {
    let mut harness = Harness::new();
    let mostly_well = [HealthSignal::Success, HealthSignal::Success, HealthSignal::Failure];
    harness.answer_unmoved(mostly_well.into_iter().cycle().take(300));
}

#[test]
fn nine_requests_are_too_few_for_the_ratio() {
    let mut harness = Harness::new();
    let mostly_ill = [HealthSignal::Failure, HealthSignal::Failure, HealthSignal::Success];
    harness.answer_unmoved(mostly_ill.into_iter().cycle().take(9));
    break_of(harness.answer(HealthSignal::Failure));
}

#[test]
fn requests_without_a_signal_are_not_among_the_ten() {
    let mut harness = Harness::new();
    harness.answer_unmoved(
        [HealthSignal::Neutral, HealthSignal::Nothing].into_iter().cycle().take(100),
    );
    let mostly_ill = [HealthSignal::Failure, HealthSignal::Failure, HealthSignal::Success];
    harness.answer_unmoved(mostly_ill.into_iter().cycle().take(9));
}

#[test]
fn only_a_failure_opens_even_where_a_success_makes_it_ten_requests() {
    let mut harness = Harness::new();
    harness
        .answer_unmoved([HealthSignal::Failure, HealthSignal::Success].into_iter().cycle().take(9));
    harness.answer_unmoved([HealthSignal::Success]);
    break_of(harness.answer(HealthSignal::Failure));
}

#[test]
fn requests_leave_the_window_by_tenths() {
    // Nine requests in the first tenth, five of which failed; the tenth request comes later.
    for (later, opens) in [
        (Duration::ZERO, true),
        (SECOND * 59, true),
        (SECOND * 60 - MOMENT, true),
        (SECOND * 60, false),
        (SECOND * 66, false),
        (SECOND * 6000, false),
    ] {
        // Both when the health is new and in later rounds of the ten tenths.
        for age in [0, 60, 6 * 167] {
            let mut harness = Harness::new();
            harness.pass(SECOND * age);
            harness.answer_unmoved(
                [HealthSignal::Failure, HealthSignal::Success].into_iter().cycle().take(9),
            );
            harness.pass(later);
            let changes = harness.answer(HealthSignal::Failure);
            assert_eq!(changes != UNMOVED, opens, "after {later:?}, at {age} s");
        }
    }
}

#[test]
fn the_window_rolls_on_and_forgets_one_tenth_at_a_time() {
    // Two of four requests fail in every other tenth or so, and there are never more than eight
    // requests in the window: it has just lost the oldest four whenever another four come.
    let breaker = Breaker::default().ratio(0.5, 9).window(SECOND * 10);
    let mut harness = Harness::with(breaker);
    for _ in 0..20 {
        harness.answer_unmoved([
            HealthSignal::Success,
            HealthSignal::Failure,
            HealthSignal::Success,
            HealthSignal::Failure,
        ]);
        harness.pass(SECOND);
        harness.answer_unmoved([
            HealthSignal::Success,
            HealthSignal::Failure,
            HealthSignal::Success,
            HealthSignal::Failure,
        ]);
        harness.pass(SECOND * 9);
    }
}

#[test]
fn the_settings_say_when_it_opens() {
    let mut harness = Harness::with(Breaker::default().consecutive(1));
    break_of(harness.answer(HealthSignal::Failure));

    let mut harness = Harness::with(Breaker::default().ratio(0.25, 4).window(SECOND));
    harness.answer_unmoved([HealthSignal::Success; 3]);
    break_of(harness.answer(HealthSignal::Failure));

    let mut harness = Harness::with(Breaker::default().consecutive(u32::MAX).ratio(1.0, u32::MAX));
    harness.answer_unmoved([HealthSignal::Failure; 1000]);
}

#[test]
fn closing_forgets_what_led_to_the_break() {
    let (mut harness, _) = Harness::opened();
    harness.recover();
    harness.answer_unmoved([HealthSignal::Failure; 4]);
    harness.answer_unmoved([HealthSignal::Success]);
    harness.answer_unmoved([HealthSignal::Failure; 3]);
}

#[test]
fn a_429_that_follows_a_success_never_opens_a_breaker() {
    let mut harness = Harness::with(Breaker::default().consecutive(1).ratio(0.01, 1));
    for hint in [None, Some(Duration::ZERO), Some(Duration::MAX)] {
        for _ in 0..100 {
            assert_eq!(harness.answer(HealthSignal::Cooldown(hint))[0], None);
            harness.answer_unmoved([HealthSignal::Success]);
            harness.pass(SECOND * 7);
        }
    }
}

#[test]
fn an_id_that_another_provider_has_is_that_of_a_healthy_one() {
    let mut harness = Harness::new();
    let hedge = crate::hedge::Hedge::adaptive();
    harness.health.hedging = Some(Hedging::new(&hedge, 1));
    let record = |harness: &mut Harness| {
        let hedging = harness.health.hedging.as_mut().unwrap();
        (0..20).for_each(|_| hedging.record(0, SECOND));
        assert_eq!(hedging.delay(0), Some(SECOND * 2));
    };
    record(&mut harness);
    harness.open();
    harness.health.isolate(0, true);
    assert_eq!((harness.state(), harness.health.is_isolated(0)), (State::Isolated, true));
    harness.health.renew(0);
    assert_eq!((harness.state(), harness.health.is_isolated(0)), (State::Closed, false));
    assert_eq!(harness.counts(), Counts::default());
    assert_eq!(harness.health.hedging.as_ref().unwrap().delay(0), None);
    // An id that is new, and those before it.
    record(&mut harness);
    harness.health.renew(3);
    for provider in 0..=3 {
        let admission = harness.health.admission(provider, None, harness.now);
        assert_eq!(admission, Admission::Available);
        let hedging = harness.health.hedging.as_ref().unwrap();
        assert_eq!(hedging.delay(provider), (provider == 0).then_some(SECOND * 2));
    }
    harness.health.renew(1);
    assert_eq!(harness.health.hedging.as_ref().unwrap().delay(0), Some(SECOND * 2));
}

#[test]
fn a_success_where_all_is_well_needs_no_rules() {
    let mut harness = Harness::new();
    let succeed = |harness: &mut Harness, key: Option<&[u8]>| {
        let permit = harness.health.admit(0, key, harness.now, harness.now);
        let HealthTable { breaker, cooldown, providers, random, .. } = &mut harness.health;
        let (sequence, now) = (permit.sequence(), harness.now);
        let breaker = breaker.as_ref().unwrap();
        let rules = Rules { breaker, cooldown, random, tick: 0, sequence, now };
        let is_done = providers[0].succeed(&permit, &rules);
        providers[0].take_back(&permit);
        is_done
    };
    assert!(succeed(&mut harness, None) && succeed(&mut harness, Some(b"a")));
    let permit = harness.health.admit(0, Some(b"a"), harness.now, harness.now);
    harness.record_outcome(permit, HealthSignal::Cooldown(Some(SECOND)));
    assert!(succeed(&mut harness, None) && !succeed(&mut harness, Some(b"a")));
    harness.open();
    assert!(!succeed(&mut harness, None) && !succeed(&mut harness, Some(b"b")));
}

#[test]
fn changes_are_none_or_name_what_has_changed() {
    let closed = [Some(Change::Closed), None];
    assert!(Changes::default().is_none() && Changes::of(UNMOVED, UNMOVED).is_none());
    assert!(!Changes::of(closed, UNMOVED).is_none() && !Changes::of(UNMOVED, closed).is_none());
    let mut changes = Changes::of(closed, closed);
    changes.report(Change::OnlyNotFound);
    assert_eq!(changes.own(), [Some(Change::Closed), Some(Change::OnlyNotFound)]);
    assert_eq!(changes.key(), closed);
    let cooling = [None, Some(Change::CoolingDown { until: start() })];
    let mut changes = Changes::of(cooling, UNMOVED);
    changes.report(Change::OnlyNotFound);
    assert_eq!(changes.own(), cooling);
}

#[test]
fn every_cause_of_an_opening_has_its_label() {
    for (cause, label) in [
        (OpenCause::Consecutive, "consecutive"),
        (OpenCause::Ratio, "ratio"),
        (OpenCause::Silence, "silence"),
        (OpenCause::Probe, "probe"),
    ] {
        assert_eq!(cause.as_str(), label);
    }
}

#[test]
fn permits_are_in_the_order_of_their_admission() {
    let mut harness = Harness::new();
    let [first, second] = [harness.ask(), harness.ask()];
    assert!(first.is_before(second.sequence()) && !second.is_before(first.sequence()));
    assert!(!first.is_before(first.sequence()));
}

#[test]
fn a_cooldown_after_a_cooldown_is_a_failure_of_the_row_and_not_of_the_share() {
    let mut harness = Harness::with(Breaker::default().ratio(0.01, 1));
    for _ in 0..5 {
        let until = rest_of(harness.answer(HealthSignal::Cooldown(Some(SECOND))));
        // What is asked during the cooldown counts toward nothing.
        harness.answer(HealthSignal::Cooldown(Some(SECOND)));
        harness.now = until;
    }
    let changes = harness.answer(HealthSignal::Cooldown(Some(SECOND)));
    let [Some(Change::Opened { cause, .. }), Some(Change::CoolingDown { .. })] = changes else {
        panic!("{changes:?}");
    };
    assert_eq!(cause, OpenCause::Consecutive);
    assert_eq!(harness.counts().failures, 0);
}

#[test]
fn a_cooldown_neither_ends_the_row_of_failures_nor_is_it_one_by_itself() {
    let mut harness = Harness::new();
    harness.answer_unmoved([HealthSignal::Failure; 4]);
    harness.now = rest_of(harness.answer(HealthSignal::Cooldown(None)));
    break_of(harness.answer(HealthSignal::Failure));
}

#[test]
fn an_hour_of_503_that_asks_for_a_second_opens_the_breaker() {
    let (mut harness, mut attempts, mut opened) = (Harness::new(), 0, Vec::new());
    for second in 0..3600 {
        if matches!(harness.admission(), Admission::Available | Admission::ProbeDue) {
            attempts += 1;
            let changes = harness.answer(HealthSignal::Cooldown(Some(SECOND)));
            opened.extend(matches!(changes[0], Some(Change::Opened { .. })).then_some(second));
        }
        harness.pass(SECOND);
    }
    assert_eq!(opened[0], 5, "the first cooldown and five that follow one");
    assert!(opened.len() > 10, "{opened:?}");
    assert!(attempts < 200, "{attempts} of 3600");
}

#[test]
fn a_storm_of_bad_requests_never_opens_a_breaker() {
    let mut harness = Harness::with(Breaker::default().consecutive(1).ratio(0.01, 1));
    harness.answer_unmoved([HealthSignal::Neutral; 1000]);
    assert_eq!(harness.admission(), Admission::Available);
}

// Breaks and their lengths.

#[test]
fn breaks_double_up_to_the_longest_and_lose_up_to_half_to_jitter() {
    let full = [30, 60, 120, 240, 300, 300, 300].map(Duration::from_secs);
    let mut shortest = [Duration::MAX; 7];
    let mut longest = [Duration::ZERO; 7];
    for seed in 0..500 {
        let mut harness = Harness::seeded(Some(Breaker::default()), seed);
        let first = harness.open() - harness.now;
        let breaks = [(1, first)].into_iter().chain(harness.fail_probes(6));
        for (index, (breaks, length)) in breaks.enumerate() {
            assert_eq!(breaks as usize, index + 1);
            assert!(full[index] / 2 <= length && length < full[index], "{length:?}");
            shortest[index] = shortest[index].min(length);
            longest[index] = longest[index].max(length);
        }
    }
    // The whole range is made use of.
    for index in 0..7 {
        assert!(shortest[index] < full[index].mul_f64(0.51), "{shortest:?}");
        assert!(longest[index] > full[index].mul_f64(0.99), "{longest:?}");
    }
}

#[test]
fn jitter_is_never_negative_and_never_lengthens_a_break() {
    let lengths = [
        Duration::ZERO,
        MOMENT,
        MOMENT * 2,
        MOMENT * 3,
        Duration::from_millis(1),
        SECOND,
        SECOND * 300,
        SECOND * u32::MAX,
    ];
    for length in lengths {
        for seed in 0..1000 {
            let breaker = Breaker::default().consecutive(1).breaks(length, length);
            let mut harness = Harness::seeded(Some(breaker), seed);
            let (_, until) = break_of(harness.answer(HealthSignal::Failure));
            assert!(jittered(length).contains(&(until - harness.now)), "{length:?}, seed {seed}");
        }
    }
}

#[test]
fn the_level_falls_by_one_for_each_full_first_break_since_it_closed() {
    // (breaks before it closed, how long it was closed, doublings of the next break)
    let table = [
        (1, Duration::ZERO, 1),
        (1, SECOND * 30 - MOMENT, 1),
        (1, SECOND * 30, 0),
        (1, SECOND * 31, 0),
        (3, Duration::ZERO, 3),
        (3, SECOND * 30 - MOMENT, 3),
        (3, SECOND * 30, 2),
        (3, SECOND * 60 - MOMENT, 2),
        (3, SECOND * 60, 1),
        (3, SECOND * 90, 0),
        (3, SECOND * 100_000, 0),
        (40, SECOND * 30, 39),
    ];
    for (breaks, closed_for, level) in table {
        for traffic in [false, true] {
            let (mut harness, _) = Harness::opened();
            harness.fail_probes(breaks - 1);
            harness.recover();
            if traffic {
                for _ in 0..10 {
                    harness.answer_unmoved([HealthSignal::Success]);
                    harness.pass(closed_for / 10);
                }
                harness.pass(closed_for - closed_for / 10 * 10);
            } else {
                harness.pass(closed_for);
            }
            let length = harness.open() - harness.now;
            let full = SECOND * (30 << level.min(10)).min(300);
            assert!(jittered(full).contains(&length), "{breaks}, {closed_for:?}: {length:?}");
            harness.now = harness.break_end();
            assert_eq!(
                break_of(harness.answer(HealthSignal::Failure)).0,
                level + 2,
                "{breaks}, {closed_for:?}"
            );
        }
    }
}

#[test]
fn a_provider_that_flaps_does_not_start_afresh() {
    let (mut harness, _) = Harness::opened();
    let mut breaks = Vec::new();
    for _ in 0..5 {
        harness.recover();
        harness.pass(SECOND * 29);
        harness.answer_unmoved([HealthSignal::Failure; 4]);
        breaks.push(break_of(harness.answer(HealthSignal::Failure)).0);
    }
    assert_eq!(breaks, [2, 3, 4, 5, 6]);
}

#[test]
fn time_spent_open_does_not_lower_the_level() {
    let (mut harness, until) = Harness::opened();
    harness.now = until + SECOND * 3600;
    assert_eq!(break_of(harness.answer(HealthSignal::Failure)).0, 2);
}

// Probes.

#[test]
fn a_break_that_is_over_lends_one_probe() {
    let (mut harness, until) = Harness::opened();
    harness.now = until - MOMENT;
    assert_eq!(harness.admission(), Admission::Unavailable(until));
    harness.now = until;
    assert_eq!(harness.admission(), Admission::ProbeDue);
    assert_eq!(harness.state(), State::Open { until }, "it is open, with a past end");
    let probe = harness.ask();
    assert!(probe.is_probe());
    assert_eq!(harness.state(), State::Probing);
    assert_eq!(harness.admission(), Admission::Unavailable(harness.now + LEASE));
    assert!(!harness.ask().is_probe());
}

#[test]
fn a_thousand_requests_at_the_end_of_a_break_are_one_probe() {
    let (mut harness, until) = Harness::opened();
    harness.now = until;
    let permits: Vec<_> = (0..1000).map(|_| harness.ask()).collect();
    assert_eq!(permits.iter().filter(|permit| permit.is_probe()).count(), 1);
    let changes: Vec<_> = permits
        .into_iter()
        .flat_map(|permit| harness.record_outcome(permit, HealthSignal::Failure))
        .flatten()
        .collect();
    assert_eq!(changes.len(), 1, "{changes:?}");
}

#[test]
fn a_probe_that_never_returns_keeps_its_lease_until_it_ends_and_no_longer() {
    let (mut harness, _probe) = Harness::probing();
    let until = harness.now + LEASE;
    harness.now = until - MOMENT;
    assert_eq!(
        (harness.admission(), harness.state()),
        (Admission::Unavailable(until), State::Probing)
    );
    harness.now = until;
    assert_eq!(harness.admission(), Admission::ProbeDue);
    assert!(matches!(harness.state(), State::Open { until } if until < harness.now));
    let probe = harness.ask();
    assert!(probe.is_probe());
    assert_eq!(harness.record_outcome(probe, HealthSignal::Success), CLOSED);
}

#[test]
fn a_cancelled_probe_returns_its_lease() {
    let (mut harness, probe) = Harness::probing();
    harness.health.cancel(&probe);
    assert_eq!(harness.admission(), Admission::ProbeDue);
    assert!(harness.ask().is_probe());
}

#[test]
fn a_probe_that_learnt_nothing_returns_its_lease() {
    let (mut harness, probe) = Harness::probing();
    assert_eq!(harness.record_outcome(probe, HealthSignal::Nothing), UNMOVED);
    assert_eq!(harness.admission(), Admission::ProbeDue);
}

#[test]
fn a_probe_that_is_answered_closes_the_breaker() {
    for signal in [HealthSignal::Success, HealthSignal::Neutral] {
        let (mut harness, probe) = Harness::probing();
        assert_eq!(harness.record_outcome(probe, signal), CLOSED, "{signal:?}");
        assert_eq!((harness.admission(), harness.state()), (Admission::Available, State::Closed));
    }
}

#[test]
fn a_429_turns_a_probe_into_a_cooldown() {
    let (mut harness, probe) = Harness::probing();
    let until = harness.now + SECOND * 5;
    let changes = harness.record_outcome(probe, HealthSignal::Cooldown(None));
    assert_eq!(changes, [Some(Change::Closed), Some(Change::CoolingDown { until })]);
    assert_eq!(harness.state(), State::CoolingDown { until });
    assert_eq!(harness.admission(), Admission::Unavailable(until));
    harness.now = until;
    assert_eq!(harness.admission(), Admission::ProbeDue);
    assert_eq!(harness.state(), State::CoolingDown { until });
}

#[test]
fn a_failed_probe_begins_the_next_break() {
    let (mut harness, probe) = Harness::probing();
    harness.pass(SECOND);
    let (breaks, until) = break_of(harness.record_outcome(probe, HealthSignal::Failure));
    assert_eq!(breaks, 2);
    assert!(jittered(SECOND * 60).contains(&(until - harness.now)));
    assert_eq!(harness.admission(), Admission::Unavailable(until));
    assert_eq!(harness.state(), State::Open { until });
}

#[test]
fn a_probe_whose_lease_ended_still_counts_until_it_is_replaced() {
    for (signal, closes) in [
        (HealthSignal::Success, true),
        (HealthSignal::Neutral, true),
        (HealthSignal::Failure, false),
    ] {
        let (mut harness, probe) = Harness::probing();
        harness.pass(LEASE * 2);
        let changes = harness.record_outcome(probe, signal);
        assert_eq!(changes == CLOSED, closes, "{signal:?}");
        assert!(changes != UNMOVED, "{signal:?}");
    }
}

#[test]
fn a_probe_that_was_replaced_no_longer_counts_as_one() {
    let replaced = || {
        let (mut harness, first) = Harness::probing();
        harness.pass(LEASE);
        let second = harness.ask();
        assert!(second.is_probe());
        (harness, first, second)
    };
    for signal in [HealthSignal::Failure, HealthSignal::Neutral, HealthSignal::Nothing] {
        let (mut harness, first, second) = replaced();
        assert_eq!(harness.record_outcome(first, signal), UNMOVED, "{signal:?}");
        assert_eq!(harness.state(), State::Probing, "the second probe keeps its lease");
        assert_eq!(break_of(harness.record_outcome(second, HealthSignal::Failure)).0, 2);
    }
    let (mut harness, first, second) = replaced();
    assert_eq!(harness.record_outcome(first, HealthSignal::Success), CLOSED);
    assert_eq!(
        harness.record_outcome(second, HealthSignal::Failure),
        UNMOVED,
        "it was sent before the breaker closed"
    );
    assert_eq!(harness.state(), State::Closed);

    let (mut harness, first, _second) = replaced();
    harness.health.cancel(&first);
    assert_eq!(harness.state(), State::Probing, "only its own lease is returned");
}

// Asked while the breaker is open.

#[test]
fn a_success_out_of_turn_closes_the_breaker() {
    let (mut harness, until) = Harness::opened();
    harness.now = until - SECOND;
    assert_eq!(harness.answer(HealthSignal::Success), CLOSED);
    assert_eq!(harness.admission(), Admission::Available);
}

#[test]
fn a_failure_out_of_turn_neither_lengthens_a_break_nor_raises_its_level() {
    let (mut harness, until) = Harness::opened();
    harness.answer_unmoved(
        [HealthSignal::Failure, HealthSignal::Neutral, HealthSignal::Nothing]
            .into_iter()
            .cycle()
            .take(99),
    );
    assert_eq!(harness.state(), State::Open { until });
    harness.now = until;
    assert_eq!(break_of(harness.answer(HealthSignal::Failure)).0, 2);
}

#[test]
fn a_success_out_of_turn_ends_the_probe_under_way() {
    let (mut harness, probe) = Harness::probing();
    assert_eq!(harness.answer(HealthSignal::Success), CLOSED);
    assert_eq!(harness.record_outcome(probe, HealthSignal::Failure), UNMOVED);
    // The probe's failure is not the first in a row either.
    harness.open();
}

#[test]
fn a_lease_ends_with_its_break() {
    let (mut harness, probe) = Harness::probing();
    let lease_end = harness.now + LEASE;
    assert_eq!(harness.answer(HealthSignal::Success), CLOSED);
    harness.now = harness.open();
    assert!(harness.now < lease_end);
    assert_eq!(harness.admission(), Admission::ProbeDue);
    let next = harness.ask();
    assert!(next.is_probe());
    assert_eq!(harness.record_outcome(probe, HealthSignal::Failure), UNMOVED);
    assert_eq!(harness.state(), State::Probing);
}

#[test]
fn a_429_out_of_turn_leaves_an_open_breaker_open_and_cools_down() {
    let (mut harness, until) = Harness::opened();
    assert_eq!(rest_of(harness.answer(HealthSignal::Cooldown(None))), harness.now + SECOND * 5);
    assert_eq!(harness.state(), State::Open { until }, "the later of both ends is told");
    let now = harness.now;
    assert_eq!(rest_of(harness.answer(HealthSignal::Cooldown(Some(until - now)))), until);
    assert_eq!(harness.state(), State::Open { until }, "of two that end together, the break");
    let rest = rest_of(harness.answer(HealthSignal::Cooldown(Some(SECOND * 200))));
    assert_eq!(harness.state(), State::CoolingDown { until: rest });
    harness.now = until;
    assert_eq!(harness.admission(), Admission::Unavailable(rest), "no probe before both are over");
    harness.now = rest;
    assert_eq!(harness.admission(), Admission::ProbeDue);
}

// Streams that have begun well, and whose end is still to come.

#[test]
fn a_stream_that_has_begun_closes_the_breaker_and_its_end_may_open_it_again() {
    let (mut harness, mut probe) = Harness::probing();
    assert_eq!(harness.commit(&mut probe), Some(Change::Closed));
    assert_eq!((harness.admission(), harness.state()), (Admission::Available, State::Closed));
    assert_eq!(harness.counts().in_flight, 1, "its end is still to come");
    assert_eq!(harness.commit(&mut probe), None, "it closes what is open");
    assert_eq!(
        harness.record_outcome(probe, HealthSignal::Failure),
        UNMOVED,
        "it was sent before the breaker closed"
    );
    harness.open();
}

#[test]
fn a_stream_that_has_begun_ends_the_row_of_failures_and_its_break_is_one() {
    let mut harness = Harness::new();
    let mut stream = harness.ask();
    harness.answer_unmoved([HealthSignal::Failure; 4]);
    assert_eq!(harness.commit(&mut stream), None);
    harness.answer_unmoved([HealthSignal::Failure; 3]);
    assert_eq!(harness.record_outcome(stream, HealthSignal::Failure), UNMOVED);
    break_of(harness.answer(HealthSignal::Failure));
}

#[test]
fn a_stream_that_has_begun_ends_a_cooldown_and_its_doubling() {
    let mut harness = Harness::new();
    let mut early = harness.ask();
    let length = harness.next_cooldown();
    assert_eq!(harness.commit(&mut early), None);
    assert!(matches!(harness.state(), State::CoolingDown { .. }), "it was sent before");
    harness.pass(length);
    let mut stream = harness.ask();
    assert_eq!(harness.commit(&mut stream), None);
    assert_eq!(harness.next_cooldown(), SECOND * 5);
}

#[test]
fn one_failure_among_nine_long_streams_never_opens_the_breaker() {
    // The streams are all in flight when the failures come.
    let mut harness = Harness::new();
    let mut streams = Vec::new();
    for _ in 0..300 {
        for _ in 0..9 {
            let mut stream = harness.ask();
            assert_eq!(harness.commit(&mut stream), None);
            streams.push(stream);
        }
        harness.answer_unmoved([HealthSignal::Failure]);
        harness.pass(SECOND);
    }
    for stream in streams {
        assert_eq!(harness.record_outcome(stream, HealthSignal::Success), UNMOVED);
    }
    assert_eq!(harness.state(), State::Closed);
}

#[test]
fn a_stream_is_one_request_of_the_share_however_it_ends() {
    let breaker = Breaker::default().consecutive(u32::MAX).ratio(0.5, 10);
    // (streams that break, that complete and that are dropped, whether the tenth opens)
    for (broken, complete, dropped, opens) in
        [(5, 5, 0, true), (4, 6, 0, false), (5, 0, 5, true), (4, 1, 5, false), (5, 4, 0, false)]
    {
        let mut harness = Harness::with(breaker.clone());
        let mut streams: Vec<_> = (0..broken + complete + dropped).map(|_| harness.ask()).collect();
        for stream in &mut streams {
            assert_eq!(harness.commit(stream), None);
        }
        let mut opened = false;
        for (number, stream) in streams.into_iter().rev().enumerate() {
            let signal = match number {
                _ if number < dropped => HealthSignal::Nothing,
                _ if number < dropped + complete => HealthSignal::Success,
                _ => HealthSignal::Failure,
            };
            opened |= harness.record_outcome(stream, signal) != UNMOVED;
        }
        assert_eq!(opened, opens, "{broken} {complete} {dropped}");
    }
}

#[test]
fn a_stream_that_breaks_long_after_it_began_is_a_request_of_its_own() {
    let mut harness = Harness::with(Breaker::default().consecutive(u32::MAX).ratio(1.0, 10));
    let mut stream = harness.ask();
    assert_eq!(harness.commit(&mut stream), None);
    harness.pass(SECOND * 60);
    harness.answer_unmoved([HealthSignal::Failure; 9]);
    let changes = harness.record_outcome(stream, HealthSignal::Failure);
    assert!(matches!(changes[0], Some(Change::Opened { cause: OpenCause::Ratio, .. })));
}

// Silence.

/// Abandons an attempt after this silence.
fn abandon(harness: &mut Harness, quiet_for: Duration) -> Moves {
    let permit = harness.ask();
    harness.health.abandon(permit, quiet_for, harness.now).own()
}

#[test]
fn a_silence_is_long_after_a_second_and_twice_the_usual_time_to_headers() {
    for (usual, longest) in [
        (None, SECOND),
        (Some(Duration::ZERO), SECOND),
        (Some(SECOND / 10), SECOND),
        (Some(SECOND / 2), SECOND),
        (Some(SECOND / 2 + MOMENT), SECOND + MOMENT * 2),
        (Some(SECOND * 8), SECOND * 16),
        (Some(Duration::MAX), Duration::MAX),
    ] {
        let mut harness = Harness::new();
        if let Some(usual) = usual {
            assert_eq!(harness.record_answer(200, usual), None);
        }
        assert!(!harness.is_silence(Duration::ZERO));
        assert!(!harness.is_silence(longest), "{usual:?}");
        let longer = longest.saturating_add(MOMENT);
        assert_eq!(harness.is_silence(longer), longer > longest, "{usual:?}");
    }
}

#[test]
fn the_usual_time_follows_the_last_answers() {
    let mut harness = Harness::new();
    (0..100).for_each(|_| _ = harness.record_answer(200, SECOND * 10));
    assert!(!harness.is_silence(SECOND * 20));
    // One quick answer of eight moves it by an eighth.
    harness.record_answer(500, Duration::ZERO);
    assert!(harness.is_silence(SECOND * 35 / 2 + MOMENT * 100));
    assert!(!harness.is_silence(SECOND * 35 / 2 - MOMENT * 100));
    (0..100).for_each(|_| _ = harness.record_answer(200, SECOND / 5));
    assert!(harness.is_silence(SECOND + MOMENT));
}

#[test]
fn the_fifth_long_silence_in_a_row_opens_the_breaker() {
    let mut harness = Harness::new();
    for _ in 0..4 {
        assert_eq!(abandon(&mut harness, SECOND * 2), UNMOVED);
    }
    let changes = abandon(&mut harness, SECOND * 2);
    assert!(matches!(
        changes,
        [Some(Change::Opened { cause: OpenCause::Silence, breaks: 1, .. }), None]
    ));
    assert_eq!(harness.counts(), Counts { attempts: 5, ..Counts::default() });
}

#[test]
fn silences_count_toward_no_share() {
    let mut harness = Harness::with(Breaker::default().ratio(0.01, 1));
    for _ in 0..100 {
        for _ in 0..4 {
            assert_eq!(abandon(&mut harness, SECOND * 2), UNMOVED);
        }
        harness.answer_unmoved([HealthSignal::Success]);
    }
}

#[test]
fn a_short_silence_is_no_signal_and_returns_the_lease_of_a_probe() {
    let mut harness = Harness::with(Breaker::default().consecutive(1).ratio(0.01, 1));
    for _ in 0..1000 {
        assert_eq!(abandon(&mut harness, SECOND), UNMOVED);
    }
    assert_eq!(harness.counts(), Counts { attempts: 1000, ..Counts::default() });

    let (mut harness, probe) = Harness::probing();
    assert_eq!(harness.health.abandon(probe, SECOND, harness.now).own(), UNMOVED);
    assert_eq!(harness.admission(), Admission::ProbeDue);
    let changes = abandon(&mut harness, SECOND * 2);
    assert!(matches!(
        changes,
        [Some(Change::Opened { cause: OpenCause::Probe, breaks: 2, .. }), None]
    ));
}

#[test]
fn a_breaker_says_why_it_opened() {
    let cause = |changes: Moves| match changes[0] {
        Some(Change::Opened { cause, .. }) => cause,
        _ => panic!("{changes:?}"),
    };
    let mut harness = Harness::new();
    harness.answer_unmoved([HealthSignal::Failure; 4]);
    assert_eq!(cause(harness.answer(HealthSignal::Failure)), OpenCause::Consecutive);
    harness.now = harness.break_end();
    assert_eq!(cause(harness.answer(HealthSignal::Failure)), OpenCause::Probe);

    let mut harness = Harness::with(Breaker::default().ratio(0.5, 2));
    harness.answer_unmoved([HealthSignal::Success]);
    assert_eq!(cause(harness.answer(HealthSignal::Failure)), OpenCause::Ratio);

    let mut harness = Harness::new();
    harness.answer_unmoved([HealthSignal::Failure; 4]);
    assert_eq!(cause(harness.answer(HealthSignal::Silent)), OpenCause::Silence);
    let mut harness = Harness::new();
    harness.answer_unmoved([HealthSignal::Silent; 4]);
    assert_eq!(cause(harness.answer(HealthSignal::Failure)), OpenCause::Consecutive);
}

#[test]
fn ten_answers_of_404_and_no_other_are_reported_once() {
    let answer = |health: &mut HealthTable, provider, status| {
        let permit = health.admit(provider, None, start(), start());
        health.record_answer(&permit, status == 404, Duration::ZERO)
    };
    let mut health = HealthTable::new(2, None, start(), 7);
    for number in 1..=100 {
        let report = answer(&mut health, 0, 404);
        assert_eq!(report, (number == 10).then_some(Change::OnlyNotFound), "{number}");
    }
    for other in [200, 400, 500, 301] {
        for before in [0, 9] {
            let mut health = HealthTable::new(2, None, start(), 7);
            let statuses = [404].repeat(before).into_iter().chain([other]).chain([404].repeat(20));
            for status in statuses {
                assert_eq!(answer(&mut health, 1, status), None);
            }
        }
    }
}

// Permits know the provider's time.

#[test]
fn a_permit_counts_the_time_since_the_request_was_sent_without_the_uploads_pauses() {
    let mut harness = Harness::new();
    let mut permit = harness.ask();
    harness.pass(SECOND * 3);
    assert_eq!(permit.elapsed(harness.now), SECOND * 3);
    permit.mark_sent(harness.now);
    assert_eq!(permit.elapsed(harness.now), Duration::ZERO);
    harness.pass(SECOND * 5);
    permit.exclude(SECOND * 4);
    assert_eq!(permit.elapsed(harness.now), SECOND);
    permit.exclude(SECOND * 4);
    assert_eq!(permit.elapsed(harness.now), Duration::ZERO);
    permit.exclude(Duration::MAX);
    assert_eq!(permit.elapsed(harness.now), Duration::ZERO);
}

#[test]
fn a_late_stream_from_before_the_break_does_not_end_it() {
    let mut harness = Harness::new();
    harness.answer_unmoved([HealthSignal::Failure; 4]);
    let (mut early, last) = (harness.ask(), harness.ask());
    let (_, until) = break_of(harness.record_outcome(last, HealthSignal::Failure));
    let mut out_of_turn = harness.ask();
    assert_eq!(harness.commit(&mut early), None);
    assert_eq!(harness.state(), State::Open { until });
    assert_eq!(harness.commit(&mut out_of_turn), Some(Change::Closed));
}

#[test]
fn the_stream_that_was_sent_last_before_the_break_does_not_end_it() {
    let mut harness = Harness::new();
    harness.answer_unmoved([HealthSignal::Failure; 4]);
    let (first, mut last) = (harness.ask(), harness.ask());
    let (_, until) = break_of(harness.record_outcome(first, HealthSignal::Failure));
    assert_eq!(harness.commit(&mut last), None);
    assert_eq!(harness.state(), State::Open { until });
}

// Old signals.

#[test]
fn a_late_success_from_before_the_break_does_not_end_it() {
    let mut harness = Harness::new();
    let early = harness.ask();
    let until = harness.open();
    assert_eq!(harness.record_outcome(early, HealthSignal::Success), UNMOVED);
    assert_eq!(harness.state(), State::Open { until });
}

#[test]
fn a_late_success_from_before_a_failed_probe_does_not_end_the_break_that_followed() {
    let (mut harness, probe) = Harness::probing();
    let early = harness.ask();
    let (_, until) = break_of(harness.record_outcome(probe, HealthSignal::Failure));
    assert_eq!(harness.record_outcome(early, HealthSignal::Success), UNMOVED);
    assert_eq!(harness.state(), State::Open { until });
}

#[test]
fn twenty_requests_that_hung_since_before_the_break_do_not_reopen_it() {
    let mut harness = Harness::new();
    let hung: Vec<_> = (0..20).map(|_| harness.ask()).collect();
    harness.open();
    harness.recover();
    for permit in hung {
        assert_eq!(harness.record_outcome(permit, HealthSignal::Failure), UNMOVED);
    }
    assert_eq!(harness.state(), State::Closed);
    // Nor do they count toward the next time.
    harness.open();
}

#[test]
fn what_was_asked_during_the_break_and_fails_after_it_closed_is_an_old_signal() {
    let (mut harness, _) = Harness::opened();
    let extra: Vec<_> = (0..20).map(|_| harness.ask()).collect();
    harness.recover();
    for permit in extra {
        assert_eq!(harness.record_outcome(permit, HealthSignal::Failure), UNMOVED);
    }
    harness.open();
}

#[test]
fn a_clock_that_stands_still_changes_no_rule() {
    let mut harness = Harness::with(Breaker::default().breaks(Duration::ZERO, Duration::ZERO));
    let early: Vec<_> = (0..20).map(|_| harness.ask()).collect();
    let now = harness.now;
    assert_eq!(harness.open(), now);
    let hung =
        early.into_iter().map(|permit| harness.record_outcome(permit, HealthSignal::Success));
    assert!(hung.eq([UNMOVED; 20]));
    assert_eq!(harness.admission(), Admission::ProbeDue);
    let late = harness.ask();
    assert!(late.is_probe());
    assert!(!harness.ask().is_probe());
    assert_eq!(
        harness.record_outcome(late, HealthSignal::Failure)[0],
        Some(Change::Opened { until: now, breaks: 2, cause: OpenCause::Probe })
    );
    harness.recover();
    assert_eq!(harness.now, now);
    // The level has fallen to nothing, since any time is many breaks of no length.
    assert_eq!(harness.open(), now);

    let (mut harness, until) = Harness::opened();
    assert_eq!(harness.admission(), Admission::Unavailable(until));
    assert_eq!(
        harness.answer(HealthSignal::Success),
        CLOSED,
        "asked while it is open, in the same instant"
    );
    assert_eq!(harness.next_cooldown(), SECOND * 5);
    harness.answer_unmoved([HealthSignal::Success]);
    assert_eq!(harness.admission(), Admission::Available);
}

#[test]
fn a_clock_that_runs_backward_does_no_harm() {
    let mut harness = Harness::new();
    let early = harness.now;
    harness.pass(SECOND * 100);
    harness.answer_unmoved([HealthSignal::Failure, HealthSignal::Success]);
    harness.open();
    harness.recover();
    harness.now = early;
    harness.open();
    harness.answer(HealthSignal::Cooldown(None));
    harness.answer(HealthSignal::Success);
    assert_eq!(harness.state(), State::Closed);
}

// Cooldowns.

#[test]
fn a_hint_is_obeyed_up_to_five_minutes_and_zero_is_a_second() {
    for (hint, length) in [
        (Some(Duration::ZERO), SECOND),
        (Some(MOMENT), MOMENT),
        (Some(SECOND / 25), SECOND / 25),
        (Some(SECOND - MOMENT), SECOND - MOMENT),
        (Some(SECOND), SECOND),
        (Some(SECOND * 15 / 2), SECOND * 15 / 2),
        (Some(SECOND * 300), SECOND * 300),
        (Some(SECOND * 300 + MOMENT), SECOND * 300),
        (Some(SECOND * 135_734), SECOND * 300),
        (Some(Duration::MAX), SECOND * 300),
        (None, SECOND * 5),
    ] {
        let mut harness = Harness::new();
        let until = rest_of(harness.answer(HealthSignal::Cooldown(hint)));
        assert_eq!(until, harness.now + length, "{hint:?}");
        assert_eq!(harness.admission(), Admission::Unavailable(until));
        assert_eq!(harness.state(), State::CoolingDown { until });
        harness.now = until;
        let after = match length < SECOND {
            true => (Admission::Available, State::Closed),
            false => (Admission::ProbeDue, State::CoolingDown { until }),
        };
        assert_eq!((harness.admission(), harness.state()), after, "{hint:?}");
    }
}

#[test]
fn settings_of_a_cooldown_that_make_no_sense_are_named() {
    let cooldown = Cooldown::default;
    for wrong in [
        cooldown().at_most(Duration::ZERO),
        cooldown().without_hint(Duration::ZERO),
        cooldown().at_most(SECOND).without_hint(SECOND * 2),
    ] {
        assert!(wrong.problem().is_some_and(|problem| problem.contains("must")), "{wrong:?}");
    }
    for right in [cooldown(), cooldown().at_most(SECOND).without_hint(SECOND)] {
        assert_eq!(right.problem(), None, "{right:?}");
    }
}

#[test]
fn a_cooldown_has_the_length_that_its_settings_allow() {
    let mut harness = Harness::with(Breaker::default().consecutive(u32::MAX));
    harness.health.cooldown = Cooldown::default().at_most(SECOND * 7).without_hint(SECOND * 2);
    for (hint, length) in [
        (None, SECOND * 2),
        (None, SECOND * 4),
        (None, SECOND * 7),
        (Some(SECOND * 8), SECOND * 7),
        (Some(SECOND / 8), SECOND / 8),
        (Some(Duration::ZERO), SECOND),
    ] {
        let until = rest_of(harness.answer(HealthSignal::Cooldown(hint)));
        assert_eq!(until, harness.now + length, "{hint:?}");
        harness.now = until;
    }
    let until = rest_of(harness.answer(HealthSignal::Cooldown(None)));
    harness.now = until;
    harness.health.cooldown = Cooldown::default().at_most(SECOND / 2).without_hint(SECOND / 2);
    let until = rest_of(harness.answer(HealthSignal::Cooldown(Some(Duration::ZERO))));
    assert_eq!(until, harness.now + SECOND / 2);
}

#[test]
fn the_end_of_a_cooldown_is_lent_to_one_request_and_the_others_follow_its_answer() {
    for (signal, after) in [
        (HealthSignal::Success, Admission::Available),
        (HealthSignal::Neutral, Admission::Available),
        // Nothing was learnt, or nothing good: the next one finds out.
        (HealthSignal::Nothing, Admission::ProbeDue),
        (HealthSignal::Silent, Admission::ProbeDue),
        (HealthSignal::Failure, Admission::ProbeDue),
    ] {
        let mut harness = Harness::new();
        harness.now = rest_of(harness.answer(HealthSignal::Cooldown(Some(SECOND * 30))));
        let probe = harness.ask();
        assert!(probe.is_probe());
        let lease_end = harness.now + LEASE;
        assert_eq!(harness.admission(), Admission::Unavailable(lease_end));
        assert_eq!(harness.state(), State::Probing);
        assert!(!harness.ask().is_probe(), "not even where no other provider is left");
        harness.pass(SECOND);
        assert_eq!(harness.record_outcome(probe, signal), UNMOVED);
        assert_eq!(harness.admission(), after, "{signal:?}");
    }
    let mut harness = Harness::new();
    harness.now = rest_of(harness.answer(HealthSignal::Cooldown(Some(SECOND * 30))));
    let probe = harness.ask();
    harness.health.cancel(&probe);
    assert_eq!(harness.admission(), Admission::ProbeDue, "a lease ends with its request");
    harness.ask();
    harness.pass(LEASE);
    assert_eq!(harness.admission(), Admission::ProbeDue, "and by itself");
}

#[test]
fn failures_of_the_probes_of_a_cooldown_open_the_breaker() {
    let mut harness = Harness::new();
    harness.now = rest_of(harness.answer(HealthSignal::Cooldown(Some(SECOND))));
    for _ in 0..4 {
        assert_eq!(harness.admission(), Admission::ProbeDue);
        harness.answer_unmoved([HealthSignal::Failure]);
    }
    break_of(harness.answer(HealthSignal::Failure));
}

#[test]
fn a_429_while_the_probe_of_a_cooldown_is_out_begins_the_next_cooldown() {
    let mut harness = Harness::new();
    let length = harness.next_cooldown();
    harness.pass(length);
    let [probe, other] = [harness.ask(), harness.ask()];
    assert!(probe.is_probe() && !other.is_probe());
    let until = rest_of(harness.record_outcome(other, HealthSignal::Cooldown(None)));
    assert_eq!(until - harness.now, length * 2);
}

#[test]
fn a_short_cooldown_ends_for_all() {
    let mut harness = Harness::new();
    harness.now = rest_of(harness.answer(HealthSignal::Cooldown(Some(SECOND / 30))));
    for _ in 0..64 {
        assert_eq!(harness.admission(), Admission::Available);
        assert!(!harness.ask().is_probe());
    }
    // A longer hint makes a long one of it.
    rest_of(harness.answer(HealthSignal::Cooldown(Some(SECOND / 30))));
    harness.now = rest_of(harness.answer(HealthSignal::Cooldown(Some(SECOND))));
    assert_eq!(harness.admission(), Admission::ProbeDue);
}

#[test]
fn a_model_that_is_unknown_rests_for_a_minute_and_opens_no_breaker() {
    let mut harness = Harness::with(Breaker::default().consecutive(1).ratio(0.01, 1));
    for _ in 0..20 {
        let mut permit = harness.health.admit(0, Some(b"m"), harness.now, harness.now + LEASE);
        permit.mark_sent(harness.now);
        let changes = harness.health.record_outcome(
            permit,
            HealthSignal::UnknownModel,
            Concern::Key,
            harness.now,
        );
        let until = harness.now + SECOND * 60;
        assert_eq!(changes.own(), UNMOVED);
        assert_eq!(changes.key(), [None, Some(Change::CoolingDown { until })]);
        harness.now = until;
        assert_eq!(harness.health.admission(0, Some(b"m"), harness.now), Admission::ProbeDue);
        assert_eq!(harness.state(), State::Closed);
    }
    // Without a key it is an answer like any other.
    harness.answer_unmoved([HealthSignal::UnknownModel; 100]);
}

#[test]
fn cooldowns_in_a_row_double_from_five_seconds_to_five_minutes() {
    let mut harness = Harness::with(Breaker::default().consecutive(u32::MAX));
    for seconds in [5, 10, 20, 40, 80, 160, 300, 300].into_iter().chain([300; 40]) {
        let length = harness.next_cooldown();
        assert_eq!(length, SECOND * seconds);
        harness.pass(length);
    }
}

#[test]
fn a_cooldown_with_a_hint_counts_toward_the_doubling() {
    let mut harness = Harness::new();
    rest_of(harness.answer(HealthSignal::Cooldown(Some(SECOND * 2))));
    harness.pass(SECOND * 2);
    assert_eq!(harness.next_cooldown(), SECOND * 10);
}

#[test]
fn ten_concurrent_429s_are_one_step() {
    let mut harness = Harness::new();
    let permits: Vec<_> = (0..10).map(|_| harness.ask()).collect();
    let mut changes = Vec::new();
    for permit in permits {
        changes.extend(
            harness.record_outcome(permit, HealthSignal::Cooldown(None)).into_iter().flatten(),
        );
        // The last ones land when the cooldown is over.
        harness.pass(SECOND);
    }
    assert_eq!(changes.len(), 1, "{changes:?}");
    assert_eq!(harness.next_cooldown(), SECOND * 10);
}

#[test]
fn a_success_sent_after_it_began_ends_a_cooldown_and_its_doubling() {
    let mut harness = Harness::new();
    let length = harness.next_cooldown();
    harness.pass(length);
    assert_eq!(harness.next_cooldown(), SECOND * 10);
    harness.answer_unmoved([HealthSignal::Success]);
    assert_eq!((harness.admission(), harness.state()), (Admission::Available, State::Closed));
    assert_eq!(harness.next_cooldown(), SECOND * 5);
}

#[test]
fn a_success_after_the_cooldown_ends_its_doubling() {
    let mut harness = Harness::new();
    let length = harness.next_cooldown();
    harness.pass(length);
    harness.answer_unmoved([HealthSignal::Success]);
    assert_eq!(harness.next_cooldown(), SECOND * 5);
}

#[test]
fn only_a_success_ends_the_doubling() {
    let mut harness = Harness::new();
    let length = harness.next_cooldown();
    harness.pass(length);
    harness.answer_unmoved([HealthSignal::Neutral, HealthSignal::Nothing, HealthSignal::Failure]);
    harness.pass(SECOND * 86_400);
    assert_eq!(harness.next_cooldown(), SECOND * 10);
}

#[test]
fn a_success_sent_before_a_cooldown_began_does_not_end_it() {
    let mut harness = Harness::new();
    let early = harness.ask();
    let until = rest_of(harness.answer(HealthSignal::Cooldown(None)));
    assert_eq!(harness.record_outcome(early, HealthSignal::Success), UNMOVED);
    assert_eq!(harness.state(), State::CoolingDown { until });
}

#[test]
fn what_was_sent_last_before_a_cooldown_began_is_as_old_as_all_before() {
    let mut harness = Harness::with(Breaker::default().consecutive(1));
    let [limited, mut stream, success, late] = [(); 4].map(|()| harness.ask());
    let until = rest_of(harness.record_outcome(limited, HealthSignal::Cooldown(Some(SECOND))));
    assert_eq!(harness.commit(&mut stream), None);
    assert_eq!(harness.record_outcome(success, HealthSignal::Success), UNMOVED);
    assert_eq!(harness.state(), State::CoolingDown { until });
    harness.now = until;
    // Nor has it asked again.
    assert_eq!(harness.record_outcome(late, HealthSignal::Cooldown(None)), UNMOVED);

    let mut harness = Harness::with(Breaker::default().consecutive(1));
    let [limited, mut last] = [(); 2].map(|()| harness.ask());
    let until = rest_of(harness.record_outcome(limited, HealthSignal::Cooldown(Some(SECOND))));
    assert_eq!(harness.commit(&mut last), None);
    assert_eq!(harness.state(), State::CoolingDown { until });
    harness.now = until;
    assert_eq!(harness.record_outcome(last, HealthSignal::Cooldown(None)), UNMOVED);
}

#[test]
fn a_circuit_is_well_where_nothing_is_open_and_nothing_rests() {
    let is_well = |harness: &Harness| harness.health.providers[0].circuit.is_well();
    let mut harness = Harness::new();
    assert!(is_well(&harness));
    harness.answer_unmoved([HealthSignal::Failure; 4]);
    assert!(is_well(&harness));
    harness.answer(HealthSignal::Failure);
    assert!(!is_well(&harness));
    harness.recover();
    assert!(is_well(&harness));
    let length = harness.next_cooldown();
    assert!(!is_well(&harness));
    harness.pass(length);
    assert!(!is_well(&harness), "a success is still to come");
    harness.answer_unmoved([HealthSignal::Success]);
    assert!(is_well(&harness));
}

#[test]
fn a_429_sent_before_a_cooldown_that_a_success_ended_is_an_old_signal() {
    let mut harness = Harness::new();
    let hung: Vec<_> = (0..20).map(|_| harness.ask()).collect();
    rest_of(harness.answer(HealthSignal::Cooldown(None)));
    harness.answer_unmoved([HealthSignal::Success]);
    for permit in hung {
        assert_eq!(
            harness.record_outcome(permit, HealthSignal::Cooldown(Some(SECOND * 300))),
            UNMOVED
        );
    }
    assert_eq!(harness.state(), State::Closed);
    assert_eq!(harness.next_cooldown(), SECOND * 5);
}

#[test]
fn a_429_out_of_turn_only_extends_a_cooldown_by_a_longer_hint() {
    // The cooldown has 8 s to go.
    for (hint, left) in [
        (None, None),
        (Some(Duration::ZERO), None),
        (Some(SECOND * 7), None),
        (Some(SECOND * 8), None),
        (Some(SECOND * 9), Some(SECOND * 9)),
        (Some(Duration::MAX), Some(SECOND * 300)),
    ] {
        let mut harness = Harness::new();
        rest_of(harness.answer(HealthSignal::Cooldown(Some(SECOND * 10))));
        harness.pass(SECOND * 2);
        let changes = harness.answer(HealthSignal::Cooldown(hint));
        match left {
            Some(left) => assert_eq!(rest_of(changes), harness.now + left, "{hint:?}"),
            None => assert_eq!(changes, UNMOVED, "{hint:?}"),
        }
        let until = harness.now + left.unwrap_or(SECOND * 8);
        assert_eq!(harness.state(), State::CoolingDown { until }, "{hint:?}");
        harness.now = until;
        assert_eq!(harness.next_cooldown(), SECOND * 10, "{hint:?} raises no level");
    }
}

#[test]
fn a_429_out_of_turn_raises_no_level_though_it_is_recorded_after_the_cooldown() {
    let mut harness = Harness::new();
    let length = harness.next_cooldown();
    harness.pass(length - MOMENT);
    let (silent, hinting) = (harness.ask(), harness.ask());
    harness.pass(SECOND);
    assert_eq!(harness.record_outcome(silent, HealthSignal::Cooldown(None)), UNMOVED);
    assert_eq!(harness.admission(), Admission::ProbeDue);
    let until = rest_of(harness.record_outcome(hinting, HealthSignal::Cooldown(Some(SECOND * 3))));
    assert_eq!(until, harness.now + SECOND * 3);
    harness.now = until;
    assert_eq!(harness.next_cooldown(), SECOND * 10);
}

#[test]
fn a_failure_out_of_turn_while_cooling_is_no_signal() {
    let mut harness = Harness::new();
    harness.answer_unmoved([HealthSignal::Failure; 4]);
    let length = harness.next_cooldown();
    harness.answer_unmoved([HealthSignal::Failure; 100]);
    assert_eq!(harness.counts().failures, 104);
    let late = harness.ask();
    harness.pass(length);
    assert_eq!(harness.record_outcome(late, HealthSignal::Failure), UNMOVED);
    assert!(matches!(harness.state(), State::CoolingDown { .. }));
    break_of(harness.answer(HealthSignal::Failure));
}

#[test]
fn a_cooldown_outlasts_the_opening_of_the_breaker() {
    let mut harness = Harness::new();
    let permits: Vec<_> = (0..5).map(|_| harness.ask()).collect();
    let rest = rest_of(harness.answer(HealthSignal::Cooldown(Some(SECOND * 300))));
    let opened = permits
        .into_iter()
        .map(|permit| harness.record_outcome(permit, HealthSignal::Failure))
        .last()
        .unwrap();
    let (_, until) = break_of(opened);
    assert_eq!(harness.state(), State::CoolingDown { until: rest });
    harness.now = until;
    assert_eq!(harness.admission(), Admission::Unavailable(rest));
    harness.now = rest;
    assert_eq!(harness.admission(), Admission::ProbeDue);
    assert_eq!(harness.state(), State::Open { until });
}

// Isolation, counts, and no breaker at all.

#[test]
fn an_isolated_provider_is_shut_until_it_is_restored() {
    let mut harness = Harness::new();
    harness.health.isolate(0, true);
    assert_eq!((harness.admission(), harness.state()), (Admission::Isolated, State::Isolated));
    harness.pass(SECOND * 86_400);
    assert_eq!(harness.admission(), Admission::Isolated);
    harness.health.isolate(0, false);
    assert_eq!((harness.admission(), harness.state()), (Admission::Available, State::Closed));
}

#[test]
fn a_restored_provider_stands_as_its_health_has_it() {
    let (mut harness, until) = Harness::opened();
    harness.health.isolate(0, true);
    assert_eq!(harness.state(), State::Isolated);
    harness.health.isolate(0, false);
    assert_eq!(harness.admission(), Admission::Unavailable(until));

    // The outcome of what was in flight is recorded all the same.
    let (mut harness, probe) = Harness::probing();
    harness.health.isolate(0, true);
    assert_eq!((harness.admission(), harness.state()), (Admission::Isolated, State::Isolated));
    assert_eq!(harness.record_outcome(probe, HealthSignal::Success), CLOSED);
    assert_eq!(harness.state(), State::Isolated);
    harness.health.isolate(0, false);
    assert_eq!(harness.state(), State::Closed);
}

#[test]
fn isolation_does_not_reach_other_providers() {
    let now = start();
    let mut health = HealthTable::new(3, Some(Breaker::default().consecutive(1)), now, 7);
    health.isolate(0, true);
    let permit = health.admit(1, None, now, now + LEASE);
    health.record_outcome(permit, HealthSignal::Failure, Concern::Key, now);
    assert_eq!(health.admission(0, None, now), Admission::Isolated);
    assert!(matches!(health.admission(1, None, now), Admission::Unavailable(_)));
    assert_eq!(health.admission(2, None, now), Admission::Available);
    assert_eq!(health.counts(2), Counts::default());
}

#[test]
fn counts_what_starts_what_is_in_flight_what_failed_and_what_was_served() {
    let mut harness = Harness::new();
    let permits: Vec<_> = (0..6).map(|_| harness.ask()).collect();
    assert_eq!(harness.counts(), Counts { attempts: 6, in_flight: 6, ..Counts::default() });
    let signal = [
        HealthSignal::Success,
        HealthSignal::Neutral,
        HealthSignal::Failure,
        HealthSignal::Cooldown(None),
        HealthSignal::Nothing,
        HealthSignal::Failure,
    ];
    for (permit, signal) in permits.into_iter().zip(signal) {
        harness.record_outcome(permit, signal);
    }
    harness.health.serve(0);
    assert_eq!(harness.counts(), Counts { attempts: 6, served: 1, failures: 2, in_flight: 0 });
    let permit = harness.ask();
    harness.health.cancel(&permit);
    assert_eq!(harness.counts(), Counts { attempts: 7, served: 1, failures: 2, in_flight: 0 });
}

#[test]
fn without_a_breaker_no_provider_is_ever_passed_over() {
    let mut harness = Harness::seeded(None, 7);
    for signal in [
        HealthSignal::Failure,
        HealthSignal::Cooldown(None),
        HealthSignal::Cooldown(Some(Duration::MAX)),
    ] {
        harness.answer_unmoved([signal; 100]);
        assert_eq!((harness.admission(), harness.state()), (Admission::Available, State::Closed));
    }
    assert_eq!(harness.counts(), Counts { attempts: 300, failures: 100, ..Counts::default() });
    harness.health.isolate(0, true);
    assert_eq!(harness.admission(), Admission::Isolated);
}

// Settings and extremes.

#[test]
fn settings_that_make_no_sense_are_named() {
    let breaker = Breaker::default;
    assert_eq!(breaker().problem(), None);
    assert_eq!(breaker().consecutive(u32::MAX).ratio(1.0, u32::MAX).problem(), None);
    assert_eq!(breaker().breaks(Duration::ZERO, Duration::ZERO).problem(), None);
    assert_eq!(breaker().breaks(Duration::MAX, Duration::MAX).problem(), None);
    for (breaker, word) in [
        (breaker().consecutive(0), "consecutive"),
        (breaker().ratio(0.0, 10), "ratio"),
        (breaker().ratio(-0.5, 10), "ratio"),
        (breaker().ratio(1.1, 10), "ratio"),
        (breaker().ratio(f64::NAN, 10), "ratio"),
        (breaker().ratio(0.5, 0), "ratio"),
        (breaker().window(Duration::ZERO), "window"),
        (breaker().breaks(SECOND * 2, SECOND), "break"),
    ] {
        let problem = breaker.problem().unwrap();
        assert!(problem.contains(word), "{problem}");
    }
}

#[test]
fn breaks_of_no_length_make_every_request_a_probe_in_its_turn() {
    let mut harness = Harness::with(Breaker::default().breaks(Duration::ZERO, Duration::ZERO));
    harness.open();
    for _ in 0..100 {
        let probe = harness.ask();
        assert!(probe.is_probe());
        break_of(harness.record_outcome(probe, HealthSignal::Failure));
    }
    harness.recover();
    assert_eq!(harness.state(), State::Closed);
}

#[test]
fn no_length_of_a_break_or_window_is_too_long() {
    let most = end_of_time() - start();
    let lengths = [
        Duration::MAX,
        Duration::MAX - MOMENT,
        Duration::MAX / 2,
        // Half of these still fits before the end of time; half and its jitter do not.
        most.saturating_mul(2) - SECOND,
        most.saturating_mul(2) - SECOND * 60 * 60 * 24,
        most.mul_f64(1.5),
        most,
        most - SECOND,
    ];
    for (length, seed) in
        lengths.into_iter().flat_map(|length| (0..20).map(move |seed| (length, seed)))
    {
        let breaker = Breaker::default().window(length).breaks(length, length);
        let mut harness = Harness::seeded(Some(breaker), seed);
        let until = harness.open();
        assert!(until > harness.now + SECOND * 60 * 60 * 24 * 365, "{length:?}");
        assert_eq!(harness.admission(), Admission::Unavailable(until));
        assert_eq!(harness.answer(HealthSignal::Success), CLOSED);
        harness.open();
    }
}

#[test]
fn what_ends_too_late_for_the_clock_ends_in_thirty_years() {
    let now = start();
    assert_eq!(after(now, Duration::MAX) - now, SECOND * 946_080_000);
    assert_eq!(after(end_of_time(), MOMENT), end_of_time());
}

#[test]
fn the_end_of_time_is_never_reached() {
    let end = end_of_time();
    for now in [end, end - MOMENT, end - SECOND * 10, end - SECOND * 60 * 60 * 24 * 365 * 40] {
        for length in [Duration::ZERO, MOMENT, SECOND, SECOND * 400, Duration::MAX] {
            assert!(after(now, length) >= now, "{length:?}");
            let mut harness = Harness::with(Breaker::default().breaks(length, length));
            harness.now = now;
            let answer = |harness: &mut Harness, signal| {
                let permit = harness.health.admit(0, None, now, after(now, length));
                harness.record_outcome(permit, signal);
            };
            for signal in
                [HealthSignal::Failure, HealthSignal::Cooldown(Some(length)), HealthSignal::Success]
            {
                (0..6).for_each(|_| answer(&mut harness, signal));
            }
            assert_eq!(harness.state(), State::Closed);
        }
    }
}

// Random histories, against a model that gets what happened and reads it from the start whenever
// it is asked anything.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    InTurn,
    Probe,
    WhileOpen,
    WhileCooling,
}

#[derive(Clone, Copy, Debug)]
enum Fact {
    Asked {
        permit: usize,
        standing: Standing,
        lease_until: Instant,
    },
    /// Recorded or cancelled.
    Returned {
        permit: usize,
    },
    /// A success or failure that the breaker took notice of.
    Noticed {
        at: Instant,
        failed: bool,
    },
    /// A silence, or a cooldown after a cooldown: counts toward the row only.
    Unwell,
    /// A stream has begun well, and has ended well.
    Committed {
        permit: usize,
        at: Instant,
    },
    Completed,
    /// A stream that had begun well has broken.
    Broke {
        committed: Instant,
        at: Instant,
    },
    Opened {
        at: Instant,
        until: Instant,
    },
    Closed {
        at: Instant,
    },
    Cooled {
        doublings: u32,
        until: Instant,
        lent: bool,
    },
    CooledLonger {
        until: Instant,
        lent: bool,
    },
    /// A success ended the cooldown.
    Rested,
    /// The probe after the cooldown was answered.
    Reopened,
}

struct Model {
    facts: Vec<Fact>,
    settings: Settings,
    began: Instant,
    isolated: bool,
}

#[derive(Clone, Debug)]
struct Settings {
    consecutive: u32,
    ratio: f64,
    minimum: u32,
    window: Duration,
    first: Duration,
    max: Duration,
}

impl Settings {
    fn breaker(&self) -> Breaker {
        Breaker::default()
            .consecutive(self.consecutive)
            .ratio(self.ratio, self.minimum)
            .window(self.window)
            .breaks(self.first, self.max)
    }
}

impl Model {
    fn last(&self, is: impl Fn(&Fact) -> bool) -> Option<usize> {
        self.facts.iter().rposition(is)
    }

    /// When the breaker last opened or closed.
    fn moved(&self) -> Option<usize> {
        self.last(|fact| matches!(fact, Fact::Opened { .. } | Fact::Closed { .. }))
    }

    fn break_end(&self) -> Option<Instant> {
        match self.facts[self.moved()?] {
            Fact::Opened { until, .. } => Some(until),
            _ => None,
        }
    }

    /// The probe that was lent last in this break or cooldown and has not come back.
    fn probe(&self) -> Option<(usize, Instant)> {
        let began = match self.break_end() {
            Some(_) => self.moved(),
            None if self.is_lent() => self.last(|fact| {
                matches!(
                    fact,
                    Fact::Cooled { .. } | Fact::Rested | Fact::Opened { .. } | Fact::Closed { .. }
                )
            }),
            None => None,
        };
        let this_break = &self.facts[began?..];
        let (permit, until) = this_break.iter().rev().find_map(|fact| match *fact {
            Fact::Asked { permit, standing: Standing::Probe, lease_until } => {
                Some((permit, lease_until))
            }
            _ => None,
        })?;
        let returned = |fact: &Fact| matches!(*fact, Fact::Returned { permit: it } if it == permit);
        (!this_break.iter().any(returned)).then_some((permit, until))
    }

    /// The current or last cooldown, unless a success has ended it: its doublings and its end.
    fn cooldown(&self) -> Option<(u32, Instant)> {
        self.facts.iter().fold(None, |cooldown, fact| match *fact {
            Fact::Cooled { doublings, until, .. } => Some((doublings, until)),
            Fact::CooledLonger { until, .. } => cooldown.map(|(doublings, _)| (doublings, until)),
            Fact::Rested => None,
            _ => cooldown,
        })
    }

    /// Whether what comes next, after a break or a cooldown, is a probe.
    fn is_lent(&self) -> bool {
        let of_cooldown = self.facts.iter().fold(false, |is_lent, fact| match *fact {
            Fact::Cooled { lent, .. } => lent,
            Fact::CooledLonger { lent, .. } => is_lent || lent,
            Fact::Rested | Fact::Reopened => false,
            _ => is_lent,
        });
        self.break_end().is_some() || of_cooldown
    }

    fn cooling(&self, now: Instant) -> Option<Instant> {
        self.cooldown().map(|(_, until)| until).filter(|until| *until > now)
    }

    fn admission(&self, now: Instant) -> Admission {
        let lease_end = self.probe().map(|(_, until)| until);
        let waits = [self.break_end(), lease_end, self.cooling(now)];
        let longest = waits.into_iter().flatten().filter(|until| *until > now).max();
        match longest {
            _ if self.isolated => Admission::Isolated,
            Some(until) => Admission::Unavailable(until),
            None if self.is_lent() => Admission::ProbeDue,
            None => Admission::Available,
        }
    }

    fn state(&self, now: Instant) -> State {
        let probing = self.probe().is_some_and(|(_, until)| until > now);
        match (self.break_end(), self.cooling(now)) {
            _ if self.isolated => State::Isolated,
            _ if probing => State::Probing,
            (Some(until), Some(rest)) if rest > until => State::CoolingDown { until: rest },
            (Some(until), _) => State::Open { until },
            (None, Some(until)) => State::CoolingDown { until },
            (None, None) => match self.cooldown().filter(|_| self.is_lent()) {
                Some((_, until)) => State::CoolingDown { until },
                None => State::Closed,
            },
        }
    }

    fn ask(&mut self, permit: usize, now: Instant, lease_until: Instant) -> Standing {
        let standing = match self.admission(now) {
            Admission::Available => Standing::InTurn,
            Admission::ProbeDue => Standing::Probe,
            _ if self.cooling(now).is_some() => Standing::WhileCooling,
            _ => Standing::WhileOpen,
        };
        self.facts.push(Fact::Asked { permit, standing, lease_until });
        standing
    }

    /// The number of doublings of a break that begins now.
    fn level(&self, now: Instant) -> u32 {
        let (mut level, mut closed) = (0u32, None);
        let healed = |level: u32, since: Option<Instant>, at: Instant| {
            let first = self.settings.first;
            let Some(since) = since else { return level };
            let mut level = level;
            let mut left = at - since;
            while level > 0 && left >= first {
                level -= 1;
                left -= first;
            }
            level
        };
        for fact in &self.facts {
            match *fact {
                Fact::Opened { at, .. } => level = healed(level, closed.take(), at) + 1,
                Fact::Closed { at } => closed = Some(at),
                _ => {}
            }
        }
        healed(level, closed, now)
    }

    /// Whether the row of failures and silences since the breaker closed opens it.
    fn is_row(&self) -> bool {
        let since = self.moved().unwrap_or(0);
        let noticed = self.facts[since..].iter().rev().filter_map(|fact| match *fact {
            Fact::Noticed { failed, .. } => Some(failed),
            Fact::Unwell | Fact::Broke { .. } => Some(true),
            Fact::Committed { .. } | Fact::Completed => Some(false),
            _ => None,
        });
        noticed.take_while(|bad| *bad).count() >= self.settings.consecutive as usize
    }

    /// Whether the share of failures since the breaker closed opens it.
    fn is_bad(&self, now: Instant) -> bool {
        let since = self.moved().unwrap_or(0);
        let tenth =
            |at: Instant| (at - self.began).as_nanos() / (self.settings.window / 10).as_nanos();
        let is_recent = |at: Instant, now: Instant| tenth(at) + 10 > tenth(now);
        let noticed = self.facts[since..].iter().filter_map(|fact| match *fact {
            Fact::Noticed { at, failed } => Some((at, 1, u32::from(failed))),
            Fact::Committed { at, .. } => Some((at, 1, 0)),
            Fact::Broke { committed, at } => Some((at, u32::from(!is_recent(committed, at)), 1)),
            _ => None,
        });
        let recent: Vec<_> = noticed.filter(|(at, ..)| is_recent(*at, now)).collect();
        let requests: u32 = recent.iter().map(|(_, requests, _)| requests).sum();
        let failed: u32 = recent.iter().map(|(_, _, failed)| failed).sum();
        requests >= self.settings.minimum
            && f64::from(failed) >= self.settings.ratio * f64::from(requests)
    }

    fn open(&mut self, now: Instant, change: Option<Change>) -> Result<(), TestCaseError> {
        let level = self.level(now);
        let full = (0..level.min(64))
            .fold(self.settings.first, |length, _| length.saturating_mul(2))
            .min(self.settings.max);
        let Some(Change::Opened { until, breaks, .. }) = change else {
            return Err(TestCaseError::fail(format!("{change:?} should open")));
        };
        prop_assert_eq!(breaks, level + 1);
        prop_assert!(jittered(full).contains(&(until - now)), "{:?} of {:?}", until - now, full);
        self.facts.push(Fact::Opened { at: now, until });
        Ok(())
    }

    /// When this stream has begun well.
    fn committed(&self, permit: usize) -> Option<Instant> {
        self.facts.iter().find_map(|fact| match *fact {
            Fact::Committed { permit: it, at } if it == permit => Some(at),
            _ => None,
        })
    }

    fn close(&mut self, now: Instant, change: Option<Change>) -> Result<(), TestCaseError> {
        prop_assert_eq!(change, Some(Change::Closed));
        self.facts.push(Fact::Closed { at: now });
        Ok(())
    }

    /// Checks what the good beginning of a stream changed, and takes it in.
    fn commit(
        &mut self,
        permit: usize,
        now: Instant,
        change: Option<Change>,
    ) -> Result<(), TestCaseError> {
        let asked = self.last(|it| matches!(it, Fact::Asked { permit: it, .. } if *it == permit));
        let rested = asked > self.last(|fact| matches!(fact, Fact::Cooled { .. }));
        match self.break_end() {
            Some(_) if asked > self.moved() => self.close(now, change)?,
            None if asked > self.moved() && self.committed(permit).is_none() => {
                prop_assert_eq!(change, None);
                self.facts.push(Fact::Committed { permit, at: now });
            }
            _ => prop_assert_eq!(change, None),
        }
        self.facts.extend(rested.then_some(Fact::Rested));
        Ok(())
    }

    /// Checks what the signal of a permit changed, and takes it in.
    fn record_outcome(
        &mut self,
        permit: usize,
        signal: HealthSignal,
        now: Instant,
        [breaker, cooldown]: Moves,
    ) -> Result<(), TestCaseError> {
        let asked = self.last(|it| matches!(it, Fact::Asked { permit: it, .. } if *it == permit));
        let asked = asked.unwrap();
        let Fact::Asked { standing, .. } = self.facts[asked] else { unreachable!() };
        let probes =
            standing == Standing::Probe && self.probe().is_some_and(|(it, _)| it == permit);
        let old = self.moved().is_some_and(|moved| asked < moved);
        let asks_again = self.cooldown().is_some_and(|(_, end)| end <= now)
            && self.last(|fact| matches!(fact, Fact::Cooled { .. })) < Some(asked);
        self.facts.push(Fact::Returned { permit });

        match (self.break_end(), signal) {
            _ if old => prop_assert_eq!(breaker, None),
            (_, HealthSignal::Nothing) => prop_assert_eq!(breaker, None),
            (None, HealthSignal::Success) => {
                prop_assert_eq!(breaker, None);
                self.facts.push(match self.committed(permit) {
                    Some(_) => Fact::Completed,
                    None => Fact::Noticed { at: now, failed: false },
                });
            }
            (None, HealthSignal::Failure) if standing != Standing::WhileCooling => {
                self.facts.push(match self.committed(permit) {
                    Some(committed) => Fact::Broke { committed, at: now },
                    None => Fact::Noticed { at: now, failed: true },
                });
                match self.is_row() || self.is_bad(now) {
                    true => self.open(now, breaker)?,
                    false => prop_assert_eq!(breaker, None),
                }
            }
            (None, HealthSignal::Silent | HealthSignal::Cooldown(_))
                if standing != Standing::WhileCooling
                    && (signal == HealthSignal::Silent || asks_again) =>
            {
                self.facts.push(Fact::Unwell);
                match self.is_row() {
                    true => self.open(now, breaker)?,
                    false => prop_assert_eq!(breaker, None),
                }
            }
            (None, _) => prop_assert_eq!(breaker, None),
            (Some(_), HealthSignal::Success) => self.close(now, breaker)?,
            (Some(_), HealthSignal::Failure | HealthSignal::Silent) if probes => {
                self.open(now, breaker)?
            }
            (Some(_), _) if probes => self.close(now, breaker)?,
            (Some(_), _) => prop_assert_eq!(breaker, None),
        }

        let cooled = self.last(|fact| matches!(fact, Fact::Cooled { .. }));
        let old = cooled.is_some_and(|cooled| asked < cooled);
        let signal = match signal {
            HealthSignal::UnknownModel => HealthSignal::Cooldown(Some(SECOND * 60)),
            signal => signal,
        };
        let (fact, change) = match (signal, self.cooldown()) {
            _ if old => (None, None),
            (HealthSignal::Success, Some(_)) => (Some(Fact::Rested), None),
            (HealthSignal::Neutral, Some(_)) if probes => (Some(Fact::Reopened), None),
            (HealthSignal::Cooldown(hint), current) => {
                let length = hint.map(|hint| match hint {
                    Duration::ZERO => SECOND,
                    hint => hint.min(SECOND * 300),
                });
                let lent = length.is_none_or(|length| length >= SECOND);
                let hint = length.map(|length| now + length);
                match current {
                    Some((_, end)) if end > now || standing == Standing::WhileCooling => {
                        let longer = hint.filter(|until| *until > end);
                        (longer.map(|until| Fact::CooledLonger { until, lent }), longer)
                    }
                    _ => {
                        let doublings = current.map_or(0, |(doublings, _)| doublings + 1);
                        let length = SECOND * (5 << doublings.min(6)).min(300);
                        let until = hint.unwrap_or(now + length);
                        (Some(Fact::Cooled { doublings, until, lent }), Some(until))
                    }
                }
            }
            _ => (None, None),
        };
        prop_assert_eq!(cooldown, change.map(|until| Change::CoolingDown { until }));
        self.facts.extend(fact);
        Ok(())
    }
}

#[derive(Clone, Copy, Debug)]
enum Action {
    Ask,
    /// Records the outstanding permit of this number, wrapped around.
    Finish(usize, HealthSignal),
    /// The outstanding permit of this number is a stream that has begun well.
    Commit(usize),
    /// That many requests, at once.
    Burst(usize, HealthSignal),
    Cancel(usize),
    /// A driver that is never polled again and whose guard never runs.
    Forget(usize),
    Pass(Duration),
    /// To the very moment at which the provider may be asked again.
    PassUntilDue,
    Isolate(bool),
}

/// Reads a random number as choices, one after the other. It is a good deal faster than a strategy
/// for each of them.
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

    /// One of the shortest lengths, the longest, and those that end near the end of time.
    fn extreme(&mut self, most: Duration) -> Duration {
        let millis = Duration::from_millis(self.of(&[0, 1, 999, 60_000, 400_000_000_000]));
        match self.below(8) {
            0 => Duration::ZERO,
            1 => MOMENT,
            2 => MOMENT * 9,
            3 => millis,
            4 => Duration::MAX,
            5 => Duration::MAX - MOMENT,
            6 => most - millis,
            _ => most.saturating_mul(2) - millis,
        }
    }

    fn signal(&mut self) -> HealthSignal {
        match self.below(12) {
            0..4 => HealthSignal::Failure,
            4..7 => HealthSignal::Success,
            7 => HealthSignal::Neutral,
            8 => HealthSignal::Nothing,
            9 => HealthSignal::Silent,
            10 if self.below(3) == 0 => HealthSignal::UnknownModel,
            _ => HealthSignal::Cooldown(match self.below(5) {
                0 | 1 => None,
                2 => Some(Duration::from_millis(self.below(400_000))),
                3 => Some(Duration::from_millis(self.below(1_100))),
                _ => Some(Duration::MAX),
            }),
        }
    }

    fn action(&mut self) -> Action {
        match self.below(24) {
            0..5 => Action::Ask,
            5..11 => Action::Finish(self.below(8) as usize, self.signal()),
            11..14 => Action::Burst(1 + self.below(6) as usize, self.signal()),
            14 => Action::Cancel(self.below(8) as usize),
            15 => Action::Forget(self.below(8) as usize),
            16..19 => {
                Action::Pass(Duration::from_millis(self.of(&[
                    0, 1, 500, 1_000, 5_000, 6_000, 15_000, 30_000, 61_000, 121_000, 301_000,
                ])))
            }
            19..22 => Action::PassUntilDue,
            22 => Action::Commit(self.below(8) as usize),
            _ => Action::Isolate(self.below(3) == 0),
        }
    }
}

fn actions() -> impl Strategy<Value = Vec<(usize, Action)>> {
    let action = |number| {
        let mut dice = Dice(number);
        (dice.below(2) as usize, dice.action())
    };
    proptest::collection::vec(any::<u64>(), 1..60)
        .prop_map(move |numbers| numbers.into_iter().map(action).collect())
}

fn settings() -> impl Strategy<Value = Settings> {
    let breaks = [(30_000, 300_000), (1_000, 1_000), (10, 300_000), (0, 0), (7_000, 100_000)];
    let choose =
        (1..6u32, 0..4usize, 1..11u32, 0..3usize, proptest::sample::select(breaks.to_vec()));
    choose.prop_map(|(consecutive, ratio, minimum, window, (first, max))| Settings {
        consecutive,
        ratio: [0.5, 0.25, 0.9, 1.0][ratio],
        minimum,
        window: SECOND * [60, 10, 1][window],
        first: Duration::from_millis(first),
        max: Duration::from_millis(max),
    })
}

/// What there are two of.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Pair {
    Providers,
    /// Keys of one provider.
    Keys,
}

impl Pair {
    /// The provider and the key of one of the two.
    fn at(self, number: usize) -> (usize, Option<&'static [u8]>) {
        match self {
            Self::Providers => (number, None),
            Self::Keys => (0, Some([b"a", b"b"][number])),
        }
    }

    fn moves(self, changes: Changes) -> Moves {
        let (moved, unmoved) = match self {
            Self::Providers => (changes.own(), changes.key()),
            Self::Keys => (changes.key(), changes.own()),
        };
        assert_eq!(unmoved, UNMOVED);
        moved
    }
}

/// Two providers on one health, or two keys of one provider, each with its model, and the requests
/// that are out.
struct PairHarness {
    pair: Pair,
    health: HealthTable,
    models: [Model; 2],
    out: [Vec<(usize, Permit)>; 2],
    now: Instant,
    permits: usize,
    forgotten: [u64; 2],
}

impl PairHarness {
    fn new(pair: Pair, settings: &Settings, seed: u64) -> Self {
        let now = start();
        let model =
            || Model { facts: Vec::new(), settings: settings.clone(), began: now, isolated: false };
        Self {
            pair,
            health: HealthTable::new(2, Some(settings.breaker()), now, seed),
            models: [model(), model()],
            out: [Vec::new(), Vec::new()],
            now,
            permits: 0,
            forgotten: [0; 2],
        }
    }

    fn admission(&self, number: usize) -> Admission {
        let (provider, key) = self.pair.at(number);
        self.health.admission(provider, key, self.now)
    }

    fn state(&self, number: usize) -> State {
        let (provider, key) = self.pair.at(number);
        let Some(key) = key else { return self.health.state(provider, self.now) };
        let mut resting = self.health.resting_keys(provider, self.now);
        resting.find(|(name, _)| *name == key).map_or(State::Closed, |(_, state)| state)
    }

    fn ask(&mut self, provider: usize) -> Result<(), TestCaseError> {
        if self.admission(provider) == Admission::Isolated {
            return Ok(());
        }
        let (at, key) = self.pair.at(provider);
        let permit = self.health.admit(at, key, self.now, self.now + LEASE);
        self.permits += 1;
        let held = self.models[provider].probe().filter(|(_, until)| *until > self.now);
        let standing = self.models[provider].ask(self.permits, self.now, self.now + LEASE);
        prop_assert_eq!(permit.is_probe(), standing == Standing::Probe);
        prop_assert!(!permit.is_probe() || held.is_none(), "at most one probe for each lease");
        self.out[provider].push((self.permits, permit));
        Ok(())
    }

    fn take(&mut self, provider: usize, number: usize) -> Option<(usize, Permit)> {
        let out = &mut self.out[provider];
        (!out.is_empty()).then(|| out.remove(number % out.len()))
    }

    fn record_outcome(
        &mut self,
        provider: usize,
        number: usize,
        signal: HealthSignal,
    ) -> Result<(), TestCaseError> {
        let Some((number, permit)) = self.take(provider, number) else { return Ok(()) };
        let changes = self.health.record_outcome(permit, signal, Concern::Key, self.now);
        let changes = self.pair.moves(changes);
        let opened = matches!(changes[0], Some(Change::Opened { .. }));
        let signal = match (self.pair, signal) {
            (Pair::Providers, HealthSignal::UnknownModel) => HealthSignal::Neutral,
            (_, signal) => signal,
        };
        let good =
            matches!(signal, HealthSignal::Success | HealthSignal::Neutral | HealthSignal::Nothing);
        prop_assert!(!opened || !good, "only failures, silences and cooldowns open");
        self.models[provider].record_outcome(number, signal, self.now, changes)
    }

    fn play(&mut self, provider: usize, action: Action) -> Result<(), TestCaseError> {
        match action {
            Action::Ask => self.ask(provider)?,
            Action::Finish(number, signal) => self.record_outcome(provider, number, signal)?,
            Action::Commit(number) => {
                let out = &mut self.out[provider];
                let number = number % out.len().max(1);
                let Some((number, permit)) = out.get_mut(number) else {
                    return Ok(());
                };
                let change = self.pair.moves(self.health.commit(permit, self.now))[0];
                self.models[provider].commit(*number, self.now, change)?;
            }
            Action::Burst(requests, signal) => {
                (0..requests).try_for_each(|_| self.ask(provider))?;
                let newest = self.out[provider].len().saturating_sub(requests);
                (0..requests).try_for_each(|_| self.record_outcome(provider, newest, signal))?;
            }
            Action::Cancel(number) => {
                if let Some((number, permit)) = self.take(provider, number) {
                    self.health.cancel(&permit);
                    self.models[provider].facts.push(Fact::Returned { permit: number });
                }
            }
            Action::Forget(number) => {
                self.forgotten[provider] += u64::from(self.take(provider, number).is_some());
            }
            Action::Pass(length) => self.now += length,
            Action::PassUntilDue => {
                if let Admission::Unavailable(until) = self.models[provider].admission(self.now) {
                    self.now = until;
                }
            }
            // A key has none of its own.
            Action::Isolate(_) if self.pair == Pair::Keys => {}
            Action::Isolate(isolated) => {
                self.health.isolate(provider, isolated);
                self.models[provider].isolated = isolated;
            }
        }
        Ok(())
    }

    fn compare(&self) -> Result<(), TestCaseError> {
        for (provider, model) in self.models.iter().enumerate() {
            prop_assert_eq!(self.admission(provider), model.admission(self.now));
            prop_assert_eq!(self.state(provider), model.state(self.now));
        }
        if self.pair == Pair::Keys {
            prop_assert_eq!(self.health.state(0, self.now), State::Closed);
            prop_assert_eq!(self.health.admission(0, None, self.now), Admission::Available);
            prop_assert_eq!(self.health.admission(0, Some(b"c"), self.now), Admission::Available);
        }
        let in_flight = |number: usize| self.out[number].len() as u64 + self.forgotten[number];
        let counted = [0, 1].map(|provider| self.health.counts(provider).in_flight);
        prop_assert_eq!(
            counted,
            match self.pair {
                Pair::Providers => [in_flight(0), in_flight(1)],
                Pair::Keys => [in_flight(0) + in_flight(1), 0],
            }
        );
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 20_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_health_table_does_what_the_model_does(
        settings in settings(),
        actions in actions(),
        pair in proptest::sample::select(vec![Pair::Providers, Pair::Keys]),
        seed in any::<u64>(),
    ) {
        let mut harness = PairHarness::new(pair, &settings, seed);
        for (provider, action) in actions {
            harness.play(provider, action)?;
            harness.compare()?;
        }

        // After the longest break, lease and cooldown every provider is asked again,
        harness.now += settings.max + LEASE + LONGEST_REST;
        for provider in 0..2 {
            let admission = harness.admission(provider);
            let shut = matches!(admission, Admission::Unavailable(_));
            prop_assert!(!shut, "{:?} when nothing is left to wait for", admission);
        }
        // and when every permit is back, none is in flight.
        for provider in 0..2 {
            while let Some((_, permit)) = harness.take(provider, 0) {
                harness.health.cancel(&permit);
            }
        }
        let in_flight = |provider| harness.health.counts(provider).in_flight;
        prop_assert_eq!(in_flight(0) + in_flight(1), harness.forgotten.iter().sum::<u64>());
    }

    #[test]
    fn no_duration_makes_it_panic(
        lengths in any::<[u64; 3]>(),
        actions in proptest::collection::vec(any::<u64>(), 1..30),
        consecutive in 1..4u32,
        seed in any::<u64>(),
    ) {
        let began = start();
        let most = end_of_time() - began;
        let lengths = lengths.map(|number| Dice(number).extreme(most));
        let breaker = Breaker::default()
            .consecutive(consecutive)
            .window(lengths[0].max(MOMENT))
            .breaks(lengths[1].min(lengths[2]), lengths[1].max(lengths[2]));
        prop_assert_eq!(breaker.problem(), None);
        let mut health = HealthTable::new(1, Some(breaker), began, seed);
        let mut now = began;
        for number in actions {
            let mut dice = Dice(number);
            let (action, lease, passes) = (dice.below(4), dice.extreme(most), dice.extreme(most));
            let signal = dice.signal();
            let permit = health.admit(0, None, now, after(now, lease));
            if action == 0 {
                // It goes on for a while, and sometimes the clock jumps to somewhere else.
                now = after(if passes.is_zero() { began } else { now }, passes);
            }
            match (action, signal) {
                (1, _) => health.cancel(&permit),
                (2, _) => {
                    health.record_outcome(permit, HealthSignal::Cooldown(Some(passes)), Concern::Key, now);
                }
                _ => {
                    health.record_outcome(permit, signal, Concern::Key, now);
                }
            }
            health.admission(0, None, now);
            if let State::Open { until } | State::CoolingDown { until } = health.state(0, now) {
                prop_assert!(until >= began);
            }
        }
        prop_assert_eq!(health.counts(0).in_flight, 0);
    }
}
