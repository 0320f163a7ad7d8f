use std::ops::RangeInclusive;

use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const MOMENT: Duration = Duration::from_nanos(1);

/// How long probes last in these tests.
const LEASE: Duration = Duration::from_secs(121);

/// One provider, and a clock that is moved by hand.
struct Lab {
    board: Board,
    now: Instant,
}

impl Lab {
    fn new() -> Self {
        Self::with(Breaker::default())
    }

    fn with(breaker: Breaker) -> Self {
        Self::seeded(Some(breaker), 7)
    }

    fn seeded(breaker: Option<Breaker>, seed: u64) -> Self {
        let now = start();
        Self { board: Board::new(1, breaker, now, seed), now }
    }

    /// A provider whose breaker has just opened, and the end of its break.
    fn opened() -> (Self, Instant) {
        let mut lab = Self::new();
        let until = lab.open();
        (lab, until)
    }

    /// A provider whose break is over and whose probe is out.
    fn probing() -> (Self, Ticket) {
        let (mut lab, until) = Self::opened();
        lab.now = until;
        let probe = lab.ask();
        assert!(probe.is_probe());
        (lab, probe)
    }

    fn pass(&mut self, length: Duration) {
        self.now += length;
    }

    fn ask(&mut self) -> Ticket {
        self.board.admit(0, self.now, self.now + LEASE)
    }

    fn land(&mut self, ticket: Ticket, news: News) -> Changes {
        self.board.land(ticket, news, self.now)
    }

    /// Asks, and lands in the same moment.
    fn answer(&mut self, news: News) -> Changes {
        let ticket = self.ask();
        self.land(ticket, news)
    }

    fn commit(&mut self, stream: &Ticket) -> Option<Change> {
        self.board.commit(stream, self.now)
    }

    /// Answers with all of these, none of which may change anything.
    fn answer_unmoved(&mut self, all: impl IntoIterator<Item = News>) {
        for news in all {
            assert_eq!(self.answer(news), UNMOVED, "{news:?}");
        }
    }

    /// Fails until the breaker opens, and returns the end of the break.
    fn open(&mut self) -> Instant {
        self.answer_unmoved([News::Failure; 4]);
        break_of(self.answer(News::Failure)).1
    }

    /// Fails one probe after the other: the number and length of each break that follows.
    fn fail_probes(&mut self, times: usize) -> Vec<(u32, Duration)> {
        let fail = |_| {
            self.now = self.break_end();
            let (breaks, until) = break_of(self.answer(News::Failure));
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
        assert_eq!(self.answer(News::Success), CLOSED);
    }

    fn admission(&self) -> Admission {
        self.board.admission(0, self.now)
    }

    fn state(&self) -> State {
        self.board.state(0, self.now)
    }

    fn counts(&self) -> Counts {
        self.board.counts(0)
    }

    /// What a 429 without a hint costs now.
    fn next_cooldown(&mut self) -> Duration {
        let now = self.now;
        rest_of(self.answer(News::Cooldown(None))) - now
    }
}

const UNMOVED: Changes = [None, None];
const CLOSED: Changes = [Some(Change::Closed), None];

#[track_caller]
fn break_of(changes: Changes) -> (u32, Instant) {
    match changes {
        [Some(Change::Opened { until, breaks }), None] => (breaks, until),
        changes => panic!("{changes:?} opens no breaker"),
    }
}

#[track_caller]
fn rest_of(changes: Changes) -> Instant {
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
    let mut lab = Lab::new();
    lab.answer_unmoved([News::Failure; 4]);
    assert_eq!((lab.admission(), lab.state()), (Admission::Admissible, State::Closed));
    let (breaks, until) = break_of(lab.answer(News::Failure));
    assert_eq!(breaks, 1);
    assert_eq!(lab.admission(), Admission::PassedOver(until));
    assert_eq!(lab.state(), State::Open { until });
}

#[test]
fn failures_in_a_row_may_be_any_time_apart() {
    let mut lab = Lab::new();
    for _ in 0..4 {
        lab.answer_unmoved([News::Failure]);
        lab.pass(SECOND * 3600);
    }
    break_of(lab.answer(News::Failure));
}

#[test]
fn a_success_starts_the_row_of_failures_anew() {
    let mut lab = Lab::with(Breaker::default().ratio(1.0, 100));
    for _ in 0..10 {
        lab.answer_unmoved([News::Failure; 4]);
        lab.answer_unmoved([News::Success]);
    }
    lab.open();
}

#[test]
fn what_is_no_news_neither_breaks_nor_lengthens_the_row_of_failures() {
    let mut lab = Lab::new();
    for _ in 0..4 {
        lab.answer_unmoved([News::Failure, News::Neutral, News::Nothing]);
        let ticket = lab.ask();
        lab.board.cancel(&ticket);
    }
    break_of(lab.answer(News::Failure));
}

#[test]
fn opens_when_half_of_ten_requests_failed() {
    let mut lab = Lab::new();
    lab.answer_unmoved([News::Success, News::Failure].into_iter().cycle().take(9));
    break_of(lab.answer(News::Failure));
}

#[test]
fn stays_closed_while_less_than_half_of_the_requests_failed() {
    let mut lab = Lab::new();
    let mostly_well = [News::Success, News::Success, News::Failure];
    lab.answer_unmoved(mostly_well.into_iter().cycle().take(300));
}

#[test]
fn nine_requests_are_too_few_for_the_ratio() {
    let mut lab = Lab::new();
    let mostly_ill = [News::Failure, News::Failure, News::Success];
    lab.answer_unmoved(mostly_ill.into_iter().cycle().take(9));
    break_of(lab.answer(News::Failure));
}

#[test]
fn requests_without_news_are_not_among_the_ten() {
    let mut lab = Lab::new();
    lab.answer_unmoved([News::Neutral, News::Nothing].into_iter().cycle().take(100));
    let mostly_ill = [News::Failure, News::Failure, News::Success];
    lab.answer_unmoved(mostly_ill.into_iter().cycle().take(9));
}

#[test]
fn only_a_failure_opens_even_where_a_success_makes_it_ten_requests() {
    let mut lab = Lab::new();
    lab.answer_unmoved([News::Failure, News::Success].into_iter().cycle().take(9));
    lab.answer_unmoved([News::Success]);
    break_of(lab.answer(News::Failure));
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
        // Both when the board is new and in later rounds of the ten tenths.
        for age in [0, 60, 6 * 167] {
            let mut lab = Lab::new();
            lab.pass(SECOND * age);
            lab.answer_unmoved([News::Failure, News::Success].into_iter().cycle().take(9));
            lab.pass(later);
            let changes = lab.answer(News::Failure);
            assert_eq!(changes != UNMOVED, opens, "after {later:?}, at {age} s");
        }
    }
}

#[test]
fn the_window_rolls_on_and_forgets_one_tenth_at_a_time() {
    // Two of four requests fail in every other tenth or so, and there are never more than eight
    // requests in the window: it has just lost the oldest four whenever another four come.
    let breaker = Breaker::default().ratio(0.5, 9).window(SECOND * 10);
    let mut lab = Lab::with(breaker);
    for _ in 0..20 {
        lab.answer_unmoved([News::Success, News::Failure, News::Success, News::Failure]);
        lab.pass(SECOND);
        lab.answer_unmoved([News::Success, News::Failure, News::Success, News::Failure]);
        lab.pass(SECOND * 9);
    }
}

#[test]
fn the_settings_say_when_it_opens() {
    let mut lab = Lab::with(Breaker::default().consecutive(1));
    break_of(lab.answer(News::Failure));

    let mut lab = Lab::with(Breaker::default().ratio(0.25, 4).window(SECOND));
    lab.answer_unmoved([News::Success; 3]);
    break_of(lab.answer(News::Failure));

    let mut lab = Lab::with(Breaker::default().consecutive(u32::MAX).ratio(1.0, u32::MAX));
    lab.answer_unmoved([News::Failure; 1000]);
}

#[test]
fn closing_forgets_what_led_to_the_break() {
    let (mut lab, _) = Lab::opened();
    lab.recover();
    lab.answer_unmoved([News::Failure; 4]);
    lab.answer_unmoved([News::Success]);
    lab.answer_unmoved([News::Failure; 3]);
}

#[test]
fn a_429_never_opens_a_breaker() {
    let mut lab = Lab::with(Breaker::default().consecutive(1).ratio(0.01, 1));
    for hint in [None, Some(Duration::ZERO), Some(Duration::MAX)] {
        for _ in 0..100 {
            assert_eq!(lab.answer(News::Cooldown(hint))[0], None);
            lab.pass(SECOND * 7);
        }
    }
}

#[test]
fn a_storm_of_bad_requests_never_opens_a_breaker() {
    let mut lab = Lab::with(Breaker::default().consecutive(1).ratio(0.01, 1));
    lab.answer_unmoved([News::Neutral; 1000]);
    assert_eq!(lab.admission(), Admission::Admissible);
}

// Breaks and their lengths.

#[test]
fn breaks_double_up_to_the_longest_and_lose_up_to_half_to_jitter() {
    let full = [30, 60, 120, 240, 300, 300, 300].map(Duration::from_secs);
    let mut shortest = [Duration::MAX; 7];
    let mut longest = [Duration::ZERO; 7];
    for seed in 0..500 {
        let mut lab = Lab::seeded(Some(Breaker::default()), seed);
        let first = lab.open() - lab.now;
        let breaks = [(1, first)].into_iter().chain(lab.fail_probes(6));
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
            let mut lab = Lab::seeded(Some(breaker), seed);
            let (_, until) = break_of(lab.answer(News::Failure));
            assert!(jittered(length).contains(&(until - lab.now)), "{length:?}, seed {seed}");
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
            let (mut lab, _) = Lab::opened();
            lab.fail_probes(breaks - 1);
            lab.recover();
            if traffic {
                for _ in 0..10 {
                    lab.answer_unmoved([News::Success]);
                    lab.pass(closed_for / 10);
                }
                lab.pass(closed_for - closed_for / 10 * 10);
            } else {
                lab.pass(closed_for);
            }
            let length = lab.open() - lab.now;
            let full = SECOND * (30 << level.min(10)).min(300);
            assert!(jittered(full).contains(&length), "{breaks}, {closed_for:?}: {length:?}");
            lab.now = lab.break_end();
            assert_eq!(
                break_of(lab.answer(News::Failure)).0,
                level + 2,
                "{breaks}, {closed_for:?}"
            );
        }
    }
}

#[test]
fn a_provider_that_flaps_does_not_start_afresh() {
    let (mut lab, _) = Lab::opened();
    let mut breaks = Vec::new();
    for _ in 0..5 {
        lab.recover();
        lab.pass(SECOND * 29);
        lab.answer_unmoved([News::Failure; 4]);
        breaks.push(break_of(lab.answer(News::Failure)).0);
    }
    assert_eq!(breaks, [2, 3, 4, 5, 6]);
}

#[test]
fn time_spent_open_does_not_lower_the_level() {
    let (mut lab, until) = Lab::opened();
    lab.now = until + SECOND * 3600;
    assert_eq!(break_of(lab.answer(News::Failure)).0, 2);
}

// Probes.

#[test]
fn a_break_that_is_over_lends_one_probe() {
    let (mut lab, until) = Lab::opened();
    lab.now = until - MOMENT;
    assert_eq!(lab.admission(), Admission::PassedOver(until));
    lab.now = until;
    assert_eq!(lab.admission(), Admission::ProbeDue);
    assert_eq!(lab.state(), State::Open { until }, "it is open, with a past end");
    let probe = lab.ask();
    assert!(probe.is_probe());
    assert_eq!(lab.state(), State::Probing);
    assert_eq!(lab.admission(), Admission::PassedOver(lab.now + LEASE));
    assert!(!lab.ask().is_probe());
}

#[test]
fn a_thousand_requests_at_the_end_of_a_break_are_one_probe() {
    let (mut lab, until) = Lab::opened();
    lab.now = until;
    let tickets: Vec<_> = (0..1000).map(|_| lab.ask()).collect();
    assert_eq!(tickets.iter().filter(|ticket| ticket.is_probe()).count(), 1);
    let changes: Vec<_> =
        tickets.into_iter().flat_map(|ticket| lab.land(ticket, News::Failure)).flatten().collect();
    assert_eq!(changes.len(), 1, "{changes:?}");
}

#[test]
fn a_probe_that_never_returns_keeps_its_lease_until_it_ends_and_no_longer() {
    let (mut lab, _probe) = Lab::probing();
    let until = lab.now + LEASE;
    lab.now = until - MOMENT;
    assert_eq!((lab.admission(), lab.state()), (Admission::PassedOver(until), State::Probing));
    lab.now = until;
    assert_eq!(lab.admission(), Admission::ProbeDue);
    assert!(matches!(lab.state(), State::Open { until } if until < lab.now));
    let probe = lab.ask();
    assert!(probe.is_probe());
    assert_eq!(lab.land(probe, News::Success), CLOSED);
}

#[test]
fn a_cancelled_probe_returns_its_lease() {
    let (mut lab, probe) = Lab::probing();
    lab.board.cancel(&probe);
    assert_eq!(lab.admission(), Admission::ProbeDue);
    assert!(lab.ask().is_probe());
}

#[test]
fn a_probe_that_learnt_nothing_returns_its_lease() {
    let (mut lab, probe) = Lab::probing();
    assert_eq!(lab.land(probe, News::Nothing), UNMOVED);
    assert_eq!(lab.admission(), Admission::ProbeDue);
}

#[test]
fn a_probe_that_is_answered_closes_the_breaker() {
    for news in [News::Success, News::Neutral] {
        let (mut lab, probe) = Lab::probing();
        assert_eq!(lab.land(probe, news), CLOSED, "{news:?}");
        assert_eq!((lab.admission(), lab.state()), (Admission::Admissible, State::Closed));
    }
}

#[test]
fn a_429_turns_a_probe_into_a_cooldown() {
    let (mut lab, probe) = Lab::probing();
    let until = lab.now + SECOND * 5;
    let changes = lab.land(probe, News::Cooldown(None));
    assert_eq!(changes, [Some(Change::Closed), Some(Change::CoolingDown { until })]);
    assert_eq!(lab.state(), State::CoolingDown { until });
    assert_eq!(lab.admission(), Admission::PassedOver(until));
    lab.now = until;
    assert_eq!((lab.admission(), lab.state()), (Admission::Admissible, State::Closed));
}

#[test]
fn a_failed_probe_begins_the_next_break() {
    let (mut lab, probe) = Lab::probing();
    lab.pass(SECOND);
    let (breaks, until) = break_of(lab.land(probe, News::Failure));
    assert_eq!(breaks, 2);
    assert!(jittered(SECOND * 60).contains(&(until - lab.now)));
    assert_eq!(lab.admission(), Admission::PassedOver(until));
    assert_eq!(lab.state(), State::Open { until });
}

#[test]
fn a_probe_whose_lease_ended_still_counts_while_nobody_has_replaced_it() {
    for (news, closes) in [(News::Success, true), (News::Neutral, true), (News::Failure, false)] {
        let (mut lab, probe) = Lab::probing();
        lab.pass(LEASE * 2);
        let changes = lab.land(probe, news);
        assert_eq!(changes == CLOSED, closes, "{news:?}");
        assert!(changes != UNMOVED, "{news:?}");
    }
}

#[test]
fn a_probe_that_was_replaced_lands_out_of_turn() {
    let replaced = || {
        let (mut lab, first) = Lab::probing();
        lab.pass(LEASE);
        let second = lab.ask();
        assert!(second.is_probe());
        (lab, first, second)
    };
    for news in [News::Failure, News::Neutral, News::Nothing] {
        let (mut lab, first, second) = replaced();
        assert_eq!(lab.land(first, news), UNMOVED, "{news:?}");
        assert_eq!(lab.state(), State::Probing, "the second probe keeps its lease");
        assert_eq!(break_of(lab.land(second, News::Failure)).0, 2);
    }
    let (mut lab, first, second) = replaced();
    assert_eq!(lab.land(first, News::Success), CLOSED);
    assert_eq!(lab.land(second, News::Failure), UNMOVED, "it was sent before the breaker closed");
    assert_eq!(lab.state(), State::Closed);

    let (mut lab, first, _second) = replaced();
    lab.board.cancel(&first);
    assert_eq!(lab.state(), State::Probing, "only its own lease is returned");
}

// Out of turn, while the breaker is open.

#[test]
fn a_success_out_of_turn_closes_the_breaker() {
    let (mut lab, until) = Lab::opened();
    lab.now = until - SECOND;
    assert_eq!(lab.answer(News::Success), CLOSED);
    assert_eq!(lab.admission(), Admission::Admissible);
}

#[test]
fn a_failure_out_of_turn_neither_lengthens_a_break_nor_raises_its_level() {
    let (mut lab, until) = Lab::opened();
    lab.answer_unmoved([News::Failure, News::Neutral, News::Nothing].into_iter().cycle().take(99));
    assert_eq!(lab.state(), State::Open { until });
    lab.now = until;
    assert_eq!(break_of(lab.answer(News::Failure)).0, 2);
}

#[test]
fn a_success_out_of_turn_ends_the_probe_under_way() {
    let (mut lab, probe) = Lab::probing();
    assert_eq!(lab.answer(News::Success), CLOSED);
    assert_eq!(lab.land(probe, News::Failure), UNMOVED);
    // The probe's failure is not the first in a row either.
    lab.open();
}

#[test]
fn a_lease_ends_with_its_break() {
    let (mut lab, probe) = Lab::probing();
    let lease_end = lab.now + LEASE;
    assert_eq!(lab.answer(News::Success), CLOSED);
    lab.now = lab.open();
    assert!(lab.now < lease_end);
    assert_eq!(lab.admission(), Admission::ProbeDue);
    let next = lab.ask();
    assert!(next.is_probe());
    assert_eq!(lab.land(probe, News::Failure), UNMOVED);
    assert_eq!(lab.state(), State::Probing);
}

#[test]
fn a_429_out_of_turn_leaves_an_open_breaker_open_and_cools_down() {
    let (mut lab, until) = Lab::opened();
    assert_eq!(rest_of(lab.answer(News::Cooldown(None))), lab.now + SECOND * 5);
    assert_eq!(lab.state(), State::Open { until }, "the later of both ends is told");
    let now = lab.now;
    assert_eq!(rest_of(lab.answer(News::Cooldown(Some(until - now)))), until);
    assert_eq!(lab.state(), State::Open { until }, "of two that end together, the break");
    let rest = rest_of(lab.answer(News::Cooldown(Some(SECOND * 200))));
    assert_eq!(lab.state(), State::CoolingDown { until: rest });
    lab.now = until;
    assert_eq!(lab.admission(), Admission::PassedOver(rest), "no probe before both are over");
    lab.now = rest;
    assert_eq!(lab.admission(), Admission::ProbeDue);
}

// Streams that have begun well, and whose end is still to come.

#[test]
fn a_stream_that_has_begun_closes_the_breaker_and_its_end_may_open_it_again() {
    let (mut lab, probe) = Lab::probing();
    assert_eq!(lab.commit(&probe), Some(Change::Closed));
    assert_eq!((lab.admission(), lab.state()), (Admission::Admissible, State::Closed));
    assert_eq!(lab.counts().in_flight, 1, "its end is still to come");
    assert_eq!(lab.commit(&probe), None, "it closes what is open");
    assert_eq!(lab.land(probe, News::Failure), UNMOVED, "it was sent before the breaker closed");
    lab.open();
}

#[test]
fn a_stream_that_has_begun_is_no_news_while_the_breaker_is_closed() {
    let mut lab = Lab::new();
    let stream = lab.ask();
    lab.answer_unmoved([News::Failure; 4]);
    assert_eq!(lab.commit(&stream), None);
    break_of(lab.land(stream, News::Failure));
}

#[test]
fn a_late_stream_from_before_the_break_does_not_end_it() {
    let mut lab = Lab::new();
    lab.answer_unmoved([News::Failure; 4]);
    let (early, last) = (lab.ask(), lab.ask());
    let (_, until) = break_of(lab.land(last, News::Failure));
    let out_of_turn = lab.ask();
    assert_eq!(lab.commit(&early), None);
    assert_eq!(lab.state(), State::Open { until });
    assert_eq!(lab.commit(&out_of_turn), Some(Change::Closed));
}

#[test]
fn the_stream_that_was_sent_last_before_the_break_does_not_end_it() {
    let mut lab = Lab::new();
    lab.answer_unmoved([News::Failure; 4]);
    let (first, last) = (lab.ask(), lab.ask());
    let (_, until) = break_of(lab.land(first, News::Failure));
    assert_eq!(lab.commit(&last), None);
    assert_eq!(lab.state(), State::Open { until });
}

// Old news.

#[test]
fn a_late_success_from_before_the_break_does_not_end_it() {
    let mut lab = Lab::new();
    let early = lab.ask();
    let until = lab.open();
    assert_eq!(lab.land(early, News::Success), UNMOVED);
    assert_eq!(lab.state(), State::Open { until });
}

#[test]
fn a_late_success_from_before_a_failed_probe_does_not_end_the_break_that_followed() {
    let (mut lab, probe) = Lab::probing();
    let early = lab.ask();
    let (_, until) = break_of(lab.land(probe, News::Failure));
    assert_eq!(lab.land(early, News::Success), UNMOVED);
    assert_eq!(lab.state(), State::Open { until });
}

#[test]
fn twenty_requests_that_hung_since_before_the_break_do_not_reopen_it() {
    let mut lab = Lab::new();
    let hung: Vec<_> = (0..20).map(|_| lab.ask()).collect();
    lab.open();
    lab.recover();
    for ticket in hung {
        assert_eq!(lab.land(ticket, News::Failure), UNMOVED);
    }
    assert_eq!(lab.state(), State::Closed);
    // Nor do they count toward the next time.
    lab.open();
}

#[test]
fn what_was_asked_during_the_break_and_fails_after_it_closed_is_old_news() {
    let (mut lab, _) = Lab::opened();
    let extra: Vec<_> = (0..20).map(|_| lab.ask()).collect();
    lab.recover();
    for ticket in extra {
        assert_eq!(lab.land(ticket, News::Failure), UNMOVED);
    }
    lab.open();
}

#[test]
fn a_clock_that_stands_still_changes_no_rule() {
    let mut lab = Lab::with(Breaker::default().breaks(Duration::ZERO, Duration::ZERO));
    let early: Vec<_> = (0..20).map(|_| lab.ask()).collect();
    let now = lab.now;
    assert_eq!(lab.open(), now);
    let hung = early.into_iter().map(|ticket| lab.land(ticket, News::Success));
    assert!(hung.eq([UNMOVED; 20]));
    assert_eq!(lab.admission(), Admission::ProbeDue);
    let late = lab.ask();
    assert!(late.is_probe());
    assert!(!lab.ask().is_probe());
    assert_eq!(lab.land(late, News::Failure)[0], Some(Change::Opened { until: now, breaks: 2 }));
    lab.recover();
    assert_eq!(lab.now, now);
    // The level has fallen to nothing, since any time is many breaks of no length.
    assert_eq!(lab.open(), now);

    let (mut lab, until) = Lab::opened();
    assert_eq!(lab.admission(), Admission::PassedOver(until));
    assert_eq!(lab.answer(News::Success), CLOSED, "asked out of turn, in the same instant");
    assert_eq!(lab.next_cooldown(), SECOND * 5);
    lab.answer_unmoved([News::Success]);
    assert_eq!(lab.admission(), Admission::Admissible);
}

#[test]
fn a_clock_that_runs_backward_does_no_harm() {
    let mut lab = Lab::new();
    let early = lab.now;
    lab.pass(SECOND * 100);
    lab.answer_unmoved([News::Failure, News::Success]);
    lab.open();
    lab.recover();
    lab.now = early;
    lab.open();
    lab.answer(News::Cooldown(None));
    lab.answer(News::Success);
    assert_eq!(lab.state(), State::Closed);
}

// Cooldowns.

#[test]
fn a_hint_is_clamped_to_between_one_second_and_five_minutes() {
    for (hint, length) in [
        (Some(Duration::ZERO), SECOND),
        (Some(MOMENT), SECOND),
        (Some(SECOND - MOMENT), SECOND),
        (Some(SECOND), SECOND),
        (Some(SECOND * 15 / 2), SECOND * 15 / 2),
        (Some(SECOND * 300), SECOND * 300),
        (Some(SECOND * 300 + MOMENT), SECOND * 300),
        (Some(SECOND * 135_734), SECOND * 300),
        (Some(Duration::MAX), SECOND * 300),
        (None, SECOND * 5),
    ] {
        let mut lab = Lab::new();
        let until = rest_of(lab.answer(News::Cooldown(hint)));
        assert_eq!(until, lab.now + length, "{hint:?}");
        assert_eq!(lab.admission(), Admission::PassedOver(until));
        assert_eq!(lab.state(), State::CoolingDown { until });
        lab.now = until;
        assert_eq!((lab.admission(), lab.state()), (Admission::Admissible, State::Closed));
    }
}

#[test]
fn cooldowns_in_a_row_double_from_five_seconds_to_five_minutes() {
    let mut lab = Lab::new();
    for seconds in [5, 10, 20, 40, 80, 160, 300, 300].into_iter().chain([300; 40]) {
        let length = lab.next_cooldown();
        assert_eq!(length, SECOND * seconds);
        lab.pass(length);
    }
}

#[test]
fn a_cooldown_with_a_hint_counts_toward_the_doubling() {
    let mut lab = Lab::new();
    rest_of(lab.answer(News::Cooldown(Some(SECOND * 2))));
    lab.pass(SECOND * 2);
    assert_eq!(lab.next_cooldown(), SECOND * 10);
}

#[test]
fn ten_concurrent_429s_are_one_step() {
    let mut lab = Lab::new();
    let tickets: Vec<_> = (0..10).map(|_| lab.ask()).collect();
    let mut changes = Vec::new();
    for ticket in tickets {
        changes.extend(lab.land(ticket, News::Cooldown(None)).into_iter().flatten());
        // The last ones land when the cooldown is over.
        lab.pass(SECOND);
    }
    assert_eq!(changes.len(), 1, "{changes:?}");
    assert_eq!(lab.next_cooldown(), SECOND * 10);
}

#[test]
fn a_success_sent_after_it_began_ends_a_cooldown_and_its_doubling() {
    let mut lab = Lab::new();
    let length = lab.next_cooldown();
    lab.pass(length);
    assert_eq!(lab.next_cooldown(), SECOND * 10);
    lab.answer_unmoved([News::Success]);
    assert_eq!((lab.admission(), lab.state()), (Admission::Admissible, State::Closed));
    assert_eq!(lab.next_cooldown(), SECOND * 5);
}

#[test]
fn a_success_after_the_cooldown_ends_its_doubling() {
    let mut lab = Lab::new();
    let length = lab.next_cooldown();
    lab.pass(length);
    lab.answer_unmoved([News::Success]);
    assert_eq!(lab.next_cooldown(), SECOND * 5);
}

#[test]
fn only_a_success_ends_the_doubling() {
    let mut lab = Lab::new();
    let length = lab.next_cooldown();
    lab.pass(length);
    lab.answer_unmoved([News::Neutral, News::Nothing, News::Failure]);
    lab.pass(SECOND * 86_400);
    assert_eq!(lab.next_cooldown(), SECOND * 10);
}

#[test]
fn a_success_sent_before_a_cooldown_began_does_not_end_it() {
    let mut lab = Lab::new();
    let early = lab.ask();
    let until = rest_of(lab.answer(News::Cooldown(None)));
    assert_eq!(lab.land(early, News::Success), UNMOVED);
    assert_eq!(lab.state(), State::CoolingDown { until });
}

#[test]
fn a_429_sent_before_a_cooldown_that_a_success_ended_is_old_news() {
    let mut lab = Lab::new();
    let hung: Vec<_> = (0..20).map(|_| lab.ask()).collect();
    rest_of(lab.answer(News::Cooldown(None)));
    lab.answer_unmoved([News::Success]);
    for ticket in hung {
        assert_eq!(lab.land(ticket, News::Cooldown(Some(SECOND * 300))), UNMOVED);
    }
    assert_eq!(lab.state(), State::Closed);
    assert_eq!(lab.next_cooldown(), SECOND * 5);
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
        let mut lab = Lab::new();
        rest_of(lab.answer(News::Cooldown(Some(SECOND * 10))));
        lab.pass(SECOND * 2);
        let changes = lab.answer(News::Cooldown(hint));
        match left {
            Some(left) => assert_eq!(rest_of(changes), lab.now + left, "{hint:?}"),
            None => assert_eq!(changes, UNMOVED, "{hint:?}"),
        }
        let until = lab.now + left.unwrap_or(SECOND * 8);
        assert_eq!(lab.state(), State::CoolingDown { until }, "{hint:?}");
        lab.now = until;
        assert_eq!(lab.next_cooldown(), SECOND * 10, "{hint:?} raises no level");
    }
}

#[test]
fn a_429_out_of_turn_raises_no_level_though_it_lands_after_the_cooldown() {
    let mut lab = Lab::new();
    let length = lab.next_cooldown();
    lab.pass(length - MOMENT);
    let (silent, hinting) = (lab.ask(), lab.ask());
    lab.pass(SECOND);
    assert_eq!(lab.land(silent, News::Cooldown(None)), UNMOVED);
    assert_eq!(lab.admission(), Admission::Admissible);
    let until = rest_of(lab.land(hinting, News::Cooldown(Some(SECOND * 3))));
    assert_eq!(until, lab.now + SECOND * 3);
    lab.now = until;
    assert_eq!(lab.next_cooldown(), SECOND * 10);
}

#[test]
fn a_failure_out_of_turn_while_cooling_is_no_news() {
    let mut lab = Lab::new();
    lab.answer_unmoved([News::Failure; 4]);
    let length = lab.next_cooldown();
    lab.answer_unmoved([News::Failure; 100]);
    assert_eq!(lab.counts().failures, 104);
    let late = lab.ask();
    lab.pass(length);
    assert_eq!(lab.land(late, News::Failure), UNMOVED);
    assert_eq!(lab.state(), State::Closed);
    break_of(lab.answer(News::Failure));
}

#[test]
fn a_cooldown_outlasts_the_opening_of_the_breaker() {
    let mut lab = Lab::new();
    let tickets: Vec<_> = (0..5).map(|_| lab.ask()).collect();
    let rest = rest_of(lab.answer(News::Cooldown(Some(SECOND * 300))));
    let opened = tickets.into_iter().map(|ticket| lab.land(ticket, News::Failure)).last().unwrap();
    let (_, until) = break_of(opened);
    assert_eq!(lab.state(), State::CoolingDown { until: rest });
    lab.now = until;
    assert_eq!(lab.admission(), Admission::PassedOver(rest));
    lab.now = rest;
    assert_eq!(lab.admission(), Admission::ProbeDue);
    assert_eq!(lab.state(), State::Open { until });
}

// Isolation, counts, and no breaker at all.

#[test]
fn an_isolated_provider_is_shut_until_it_is_restored() {
    let mut lab = Lab::new();
    lab.board.isolate(0, true);
    assert_eq!((lab.admission(), lab.state()), (Admission::Isolated, State::Isolated));
    lab.pass(SECOND * 86_400);
    assert_eq!(lab.admission(), Admission::Isolated);
    lab.board.isolate(0, false);
    assert_eq!((lab.admission(), lab.state()), (Admission::Admissible, State::Closed));
}

#[test]
fn a_restored_provider_stands_as_its_health_has_it() {
    let (mut lab, until) = Lab::opened();
    lab.board.isolate(0, true);
    assert_eq!(lab.state(), State::Isolated);
    lab.board.isolate(0, false);
    assert_eq!(lab.admission(), Admission::PassedOver(until));

    // News of what was in flight is heard all the same.
    let (mut lab, probe) = Lab::probing();
    lab.board.isolate(0, true);
    assert_eq!((lab.admission(), lab.state()), (Admission::Isolated, State::Isolated));
    assert_eq!(lab.land(probe, News::Success), CLOSED);
    assert_eq!(lab.state(), State::Isolated);
    lab.board.isolate(0, false);
    assert_eq!(lab.state(), State::Closed);
}

#[test]
fn isolation_does_not_reach_other_providers() {
    let now = start();
    let mut board = Board::new(3, Some(Breaker::default().consecutive(1)), now, 7);
    board.isolate(0, true);
    let ticket = board.admit(1, now, now + LEASE);
    board.land(ticket, News::Failure, now);
    assert_eq!(board.admission(0, now), Admission::Isolated);
    assert!(matches!(board.admission(1, now), Admission::PassedOver(_)));
    assert_eq!(board.admission(2, now), Admission::Admissible);
    assert_eq!(board.counts(2), Counts::default());
}

#[test]
fn counts_what_starts_what_is_in_flight_what_failed_and_what_was_served() {
    let mut lab = Lab::new();
    let tickets: Vec<_> = (0..6).map(|_| lab.ask()).collect();
    assert_eq!(lab.counts(), Counts { attempts: 6, in_flight: 6, ..Counts::default() });
    let news = [
        News::Success,
        News::Neutral,
        News::Failure,
        News::Cooldown(None),
        News::Nothing,
        News::Failure,
    ];
    for (ticket, news) in tickets.into_iter().zip(news) {
        lab.land(ticket, news);
    }
    lab.board.serve(0);
    assert_eq!(lab.counts(), Counts { attempts: 6, served: 1, failures: 2, in_flight: 0 });
    let ticket = lab.ask();
    lab.board.cancel(&ticket);
    assert_eq!(lab.counts(), Counts { attempts: 7, served: 1, failures: 2, in_flight: 0 });
}

#[test]
fn without_a_breaker_nobody_is_ever_passed_over() {
    let mut lab = Lab::seeded(None, 7);
    for news in [News::Failure, News::Cooldown(None), News::Cooldown(Some(Duration::MAX))] {
        lab.answer_unmoved([news; 100]);
        assert_eq!((lab.admission(), lab.state()), (Admission::Admissible, State::Closed));
    }
    assert_eq!(lab.counts(), Counts { attempts: 300, failures: 100, ..Counts::default() });
    lab.board.isolate(0, true);
    assert_eq!(lab.admission(), Admission::Isolated);
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
    let mut lab = Lab::with(Breaker::default().breaks(Duration::ZERO, Duration::ZERO));
    lab.open();
    for _ in 0..100 {
        let probe = lab.ask();
        assert!(probe.is_probe());
        break_of(lab.land(probe, News::Failure));
    }
    lab.recover();
    assert_eq!(lab.state(), State::Closed);
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
        let mut lab = Lab::seeded(Some(breaker), seed);
        let until = lab.open();
        assert!(until > lab.now + SECOND * 60 * 60 * 24 * 365, "{length:?}");
        assert_eq!(lab.admission(), Admission::PassedOver(until));
        assert_eq!(lab.answer(News::Success), CLOSED);
        lab.open();
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
            let mut lab = Lab::with(Breaker::default().breaks(length, length));
            lab.now = now;
            let answer = |lab: &mut Lab, news| {
                let ticket = lab.board.admit(0, now, after(now, length));
                lab.land(ticket, news);
            };
            for news in [News::Failure, News::Cooldown(Some(length)), News::Success] {
                (0..6).for_each(|_| answer(&mut lab, news));
            }
            assert_eq!(lab.state(), State::Closed);
        }
    }
}

// Random histories, against a model that is told what happened and reads it from the start whenever
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
        ticket: usize,
        standing: Standing,
        lease_until: Instant,
    },
    /// Landed or was cancelled.
    Returned {
        ticket: usize,
    },
    /// A success or failure that the breaker took notice of.
    Noticed {
        at: Instant,
        failed: bool,
    },
    /// A later attempt elsewhere answered first.
    Overtaken,
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
    },
    CooledLonger {
        until: Instant,
    },
    /// A success ended the cooldown.
    Rested,
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

    /// The probe that was lent last in this break and has not come back.
    fn probe(&self) -> Option<(usize, Instant)> {
        let this_break = &self.facts[self.moved()?..];
        let (ticket, until) = this_break.iter().rev().find_map(|fact| match *fact {
            Fact::Asked { ticket, standing: Standing::Probe, lease_until } => {
                Some((ticket, lease_until))
            }
            _ => None,
        })?;
        let returned = |fact: &Fact| matches!(*fact, Fact::Returned { ticket: it } if it == ticket);
        (!this_break.iter().any(returned)).then_some((ticket, until))
    }

    /// The current or last cooldown, unless a success has ended it: its doublings and its end.
    fn cooldown(&self) -> Option<(u32, Instant)> {
        self.facts.iter().fold(None, |cooldown, fact| match *fact {
            Fact::Cooled { doublings, until } => Some((doublings, until)),
            Fact::CooledLonger { until } => cooldown.map(|(doublings, _)| (doublings, until)),
            Fact::Rested => None,
            _ => cooldown,
        })
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
            Some(until) => Admission::PassedOver(until),
            None if self.break_end().is_some() => Admission::ProbeDue,
            None => Admission::Admissible,
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
            (None, None) => State::Closed,
        }
    }

    fn ask(&mut self, ticket: usize, now: Instant, lease_until: Instant) -> Standing {
        let standing = match self.admission(now) {
            Admission::Admissible => Standing::InTurn,
            Admission::ProbeDue => Standing::Probe,
            _ if self.cooling(now).is_some() => Standing::WhileCooling,
            _ => Standing::WhileOpen,
        };
        self.facts.push(Fact::Asked { ticket, standing, lease_until });
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
            Fact::Overtaken => Some(true),
            _ => None,
        });
        noticed.take_while(|bad| *bad).count() >= self.settings.consecutive as usize
    }

    /// Whether the share of failures since the breaker closed opens it.
    fn is_bad(&self, now: Instant) -> bool {
        let since = self.moved().unwrap_or(0);
        let noticed: Vec<_> = self.facts[since..]
            .iter()
            .filter_map(|fact| match *fact {
                Fact::Noticed { at, failed } => Some((at, failed)),
                _ => None,
            })
            .collect();
        let tenth =
            |at: Instant| (at - self.began).as_nanos() / (self.settings.window / 10).as_nanos();
        let recent: Vec<_> =
            noticed.iter().filter(|(at, _)| tenth(*at) + 10 > tenth(now)).collect();
        let failed = recent.iter().filter(|(_, failed)| *failed).count();
        recent.len() >= self.settings.minimum as usize
            && failed as f64 / recent.len() as f64 >= self.settings.ratio
    }

    fn open(&mut self, now: Instant, change: Option<Change>) -> Result<(), TestCaseError> {
        let level = self.level(now);
        let full = (0..level.min(64))
            .fold(self.settings.first, |length, _| length.saturating_mul(2))
            .min(self.settings.max);
        let Some(Change::Opened { until, breaks }) = change else {
            return Err(TestCaseError::fail(format!("{change:?} should open")));
        };
        prop_assert_eq!(breaks, level + 1);
        prop_assert!(jittered(full).contains(&(until - now)), "{:?} of {:?}", until - now, full);
        self.facts.push(Fact::Opened { at: now, until });
        Ok(())
    }

    fn close(&mut self, now: Instant, change: Option<Change>) -> Result<(), TestCaseError> {
        prop_assert_eq!(change, Some(Change::Closed));
        self.facts.push(Fact::Closed { at: now });
        Ok(())
    }

    /// Checks what the good beginning of a stream changed, and takes it in.
    fn commit(
        &mut self,
        ticket: usize,
        now: Instant,
        change: Option<Change>,
    ) -> Result<(), TestCaseError> {
        let asked = self.last(|it| matches!(it, Fact::Asked { ticket: it, .. } if *it == ticket));
        match self.break_end() {
            Some(_) if asked > self.moved() => self.close(now, change)?,
            _ => prop_assert_eq!(change, None),
        }
        Ok(())
    }

    /// Checks what the news of a ticket changed, and takes it in.
    fn land(
        &mut self,
        ticket: usize,
        news: News,
        now: Instant,
        [breaker, cooldown]: Changes,
    ) -> Result<(), TestCaseError> {
        let asked = self.last(|it| matches!(it, Fact::Asked { ticket: it, .. } if *it == ticket));
        let asked = asked.unwrap();
        let Fact::Asked { standing, .. } = self.facts[asked] else { unreachable!() };
        let probes =
            standing == Standing::Probe && self.probe().is_some_and(|(it, _)| it == ticket);
        let old = self.moved().is_some_and(|moved| asked < moved);
        self.facts.push(Fact::Returned { ticket });

        match (self.break_end(), news) {
            _ if old => prop_assert_eq!(breaker, None),
            (_, News::Nothing) => prop_assert_eq!(breaker, None),
            (None, News::Success) => {
                prop_assert_eq!(breaker, None);
                self.facts.push(Fact::Noticed { at: now, failed: false });
            }
            (None, News::Failure) if standing != Standing::WhileCooling => {
                self.facts.push(Fact::Noticed { at: now, failed: true });
                match self.is_row() || self.is_bad(now) {
                    true => self.open(now, breaker)?,
                    false => prop_assert_eq!(breaker, None),
                }
            }
            (None, News::Overtaken) if standing != Standing::WhileCooling => {
                self.facts.push(Fact::Overtaken);
                match self.is_row() {
                    true => self.open(now, breaker)?,
                    false => prop_assert_eq!(breaker, None),
                }
            }
            (None, _) => prop_assert_eq!(breaker, None),
            (Some(_), News::Success) => self.close(now, breaker)?,
            (Some(_), News::Failure | News::Overtaken) if probes => self.open(now, breaker)?,
            (Some(_), _) if probes => self.close(now, breaker)?,
            (Some(_), _) => prop_assert_eq!(breaker, None),
        }

        let cooled = self.last(|fact| matches!(fact, Fact::Cooled { .. }));
        let old = cooled.is_some_and(|cooled| asked < cooled);
        let (fact, change) = match (news, self.cooldown()) {
            _ if old => (None, None),
            (News::Success, Some(_)) => (Some(Fact::Rested), None),
            (News::Cooldown(hint), current) => {
                let hint = hint.map(|hint| now + hint.max(SECOND).min(SECOND * 300));
                match current {
                    Some((_, end)) if end > now || standing == Standing::WhileCooling => {
                        let longer = hint.filter(|until| *until > end);
                        (longer.map(|until| Fact::CooledLonger { until }), longer)
                    }
                    _ => {
                        let doublings = current.map_or(0, |(doublings, _)| doublings + 1);
                        let length = SECOND * (5 << doublings.min(6)).min(300);
                        let until = hint.unwrap_or(now + length);
                        (Some(Fact::Cooled { doublings, until }), Some(until))
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
enum Deed {
    Ask,
    /// Lands the outstanding ticket of this number, wrapped around.
    Land(usize, News),
    /// The outstanding ticket of this number is a stream that has begun well.
    Commit(usize),
    /// That many requests, at once.
    Burst(usize, News),
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

    fn news(&mut self) -> News {
        match self.below(12) {
            0..4 => News::Failure,
            4..7 => News::Success,
            7 => News::Neutral,
            8 => News::Nothing,
            9 => News::Overtaken,
            _ => News::Cooldown(match self.below(5) {
                0 | 1 => None,
                2 | 3 => Some(Duration::from_millis(self.below(400_000))),
                _ => Some(Duration::MAX),
            }),
        }
    }

    fn deed(&mut self) -> Deed {
        match self.below(24) {
            0..5 => Deed::Ask,
            5..11 => Deed::Land(self.below(8) as usize, self.news()),
            11..14 => Deed::Burst(1 + self.below(6) as usize, self.news()),
            14 => Deed::Cancel(self.below(8) as usize),
            15 => Deed::Forget(self.below(8) as usize),
            16..19 => {
                Deed::Pass(Duration::from_millis(self.of(&[
                    0, 1, 500, 1_000, 5_000, 6_000, 15_000, 30_000, 61_000, 121_000, 301_000,
                ])))
            }
            19..22 => Deed::PassUntilDue,
            22 => Deed::Commit(self.below(8) as usize),
            _ => Deed::Isolate(self.below(3) == 0),
        }
    }
}

fn deeds() -> impl Strategy<Value = Vec<(usize, Deed)>> {
    let deed = |number| {
        let mut dice = Dice(number);
        (dice.below(2) as usize, dice.deed())
    };
    proptest::collection::vec(any::<u64>(), 1..60)
        .prop_map(move |numbers| numbers.into_iter().map(deed).collect())
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

/// Two providers on one board, each with its model, and the requests that are out.
struct World {
    board: Board,
    models: [Model; 2],
    out: [Vec<(usize, Ticket)>; 2],
    now: Instant,
    tickets: usize,
    forgotten: [u64; 2],
}

impl World {
    fn new(settings: &Settings, seed: u64) -> Self {
        let now = start();
        let model =
            || Model { facts: Vec::new(), settings: settings.clone(), began: now, isolated: false };
        Self {
            board: Board::new(2, Some(settings.breaker()), now, seed),
            models: [model(), model()],
            out: [Vec::new(), Vec::new()],
            now,
            tickets: 0,
            forgotten: [0; 2],
        }
    }

    fn ask(&mut self, provider: usize) -> Result<(), TestCaseError> {
        if self.board.admission(provider, self.now) == Admission::Isolated {
            return Ok(());
        }
        let ticket = self.board.admit(provider, self.now, self.now + LEASE);
        self.tickets += 1;
        let held = self.models[provider].probe().filter(|(_, until)| *until > self.now);
        let standing = self.models[provider].ask(self.tickets, self.now, self.now + LEASE);
        prop_assert_eq!(ticket.is_probe(), standing == Standing::Probe);
        prop_assert!(!ticket.is_probe() || held.is_none(), "at most one probe for each lease");
        self.out[provider].push((self.tickets, ticket));
        Ok(())
    }

    fn take(&mut self, provider: usize, number: usize) -> Option<(usize, Ticket)> {
        let out = &mut self.out[provider];
        (!out.is_empty()).then(|| out.remove(number % out.len()))
    }

    fn land(&mut self, provider: usize, number: usize, news: News) -> Result<(), TestCaseError> {
        let Some((number, ticket)) = self.take(provider, number) else { return Ok(()) };
        let changes = self.board.land(ticket, news, self.now);
        let opened = matches!(changes[0], Some(Change::Opened { .. }));
        let bad = matches!(news, News::Failure | News::Overtaken);
        prop_assert!(!opened || bad, "only a failure opens, and silence");
        self.models[provider].land(number, news, self.now, changes)
    }

    fn play(&mut self, provider: usize, deed: Deed) -> Result<(), TestCaseError> {
        match deed {
            Deed::Ask => self.ask(provider)?,
            Deed::Land(number, news) => self.land(provider, number, news)?,
            Deed::Commit(number) => {
                let out = &self.out[provider];
                let Some((number, ticket)) = out.get(number % out.len().max(1)) else {
                    return Ok(());
                };
                let change = self.board.commit(ticket, self.now);
                self.models[provider].commit(*number, self.now, change)?;
            }
            Deed::Burst(requests, news) => {
                (0..requests).try_for_each(|_| self.ask(provider))?;
                let newest = self.out[provider].len().saturating_sub(requests);
                (0..requests).try_for_each(|_| self.land(provider, newest, news))?;
            }
            Deed::Cancel(number) => {
                if let Some((number, ticket)) = self.take(provider, number) {
                    self.board.cancel(&ticket);
                    self.models[provider].facts.push(Fact::Returned { ticket: number });
                }
            }
            Deed::Forget(number) => {
                self.forgotten[provider] += u64::from(self.take(provider, number).is_some());
            }
            Deed::Pass(length) => self.now += length,
            Deed::PassUntilDue => {
                if let Admission::PassedOver(until) = self.models[provider].admission(self.now) {
                    self.now = until;
                }
            }
            Deed::Isolate(isolated) => {
                self.board.isolate(provider, isolated);
                self.models[provider].isolated = isolated;
            }
        }
        Ok(())
    }

    fn compare(&self) -> Result<(), TestCaseError> {
        for (provider, model) in self.models.iter().enumerate() {
            let admission = self.board.admission(provider, self.now);
            prop_assert_eq!(admission, model.admission(self.now));
            prop_assert_eq!(self.board.state(provider, self.now), model.state(self.now));
            let in_flight = self.out[provider].len() as u64 + self.forgotten[provider];
            prop_assert_eq!(self.board.counts(provider).in_flight, in_flight);
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
    fn the_board_does_what_the_model_does(
        settings in settings(),
        deeds in deeds(),
        seed in any::<u64>(),
    ) {
        let mut world = World::new(&settings, seed);
        for (provider, deed) in deeds {
            world.play(provider, deed)?;
            world.compare()?;
        }

        // However it came here: after the longest break, lease and cooldown everyone is asked again,
        world.now += settings.max + LEASE + LONGEST_COOLDOWN;
        for provider in 0..2 {
            let admission = world.board.admission(provider, world.now);
            let shut = matches!(admission, Admission::PassedOver(_));
            prop_assert!(!shut, "{:?} when nothing is left to wait for", admission);
        }
        // and when everyone is back, nobody is in flight.
        for provider in 0..2 {
            while let Some((_, ticket)) = world.take(provider, 0) {
                world.board.cancel(&ticket);
            }
            let in_flight = world.board.counts(provider).in_flight;
            prop_assert_eq!(in_flight, world.forgotten[provider]);
        }
    }

    #[test]
    fn no_duration_makes_it_panic(
        lengths in any::<[u64; 3]>(),
        deeds in proptest::collection::vec(any::<u64>(), 1..30),
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
        let mut board = Board::new(1, Some(breaker), began, seed);
        let mut now = began;
        for number in deeds {
            let mut dice = Dice(number);
            let (deed, lease, passes) = (dice.below(4), dice.extreme(most), dice.extreme(most));
            let news = dice.news();
            let ticket = board.admit(0, now, after(now, lease));
            if deed == 0 {
                // It goes on for a while, and sometimes the clock jumps to somewhere else.
                now = after(if passes.is_zero() { began } else { now }, passes);
            }
            match (deed, news) {
                (1, _) => board.cancel(&ticket),
                (2, _) => {
                    board.land(ticket, News::Cooldown(Some(passes)), now);
                }
                _ => {
                    board.land(ticket, news, now);
                }
            }
            board.admission(0, now);
            if let State::Open { until } | State::CoolingDown { until } = board.state(0, now) {
                prop_assert!(until >= began);
            }
        }
        prop_assert_eq!(board.counts(0).in_flight, 0);
    }
}
