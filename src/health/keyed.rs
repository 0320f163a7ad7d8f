//! Health keys: what counts for which of them, and which of them are kept.

use std::collections::{BTreeMap, BTreeSet};

use super::keys::MOST_KEYS;
use super::*;

const SECOND: Duration = Duration::from_secs(1);
const LEASE: Duration = Duration::from_secs(121);

struct Harness {
    health: HealthTable,
    now: Instant,
}

impl Harness {
    fn new() -> Self {
        #[expect(clippy::disallowed_methods, reason = "virtual time has to begin somewhere")]
        let now = Instant::now();
        Self { health: HealthTable::new(2, Some(Breaker::default()), now, 7), now }
    }

    fn ask(&mut self, key: Option<&str>) -> Permit {
        self.health.admit(0, key.map(str::as_bytes), self.now, self.now + LEASE)
    }

    fn answer(&mut self, key: Option<&str>, signal: HealthSignal, concern: Concern) -> Changes {
        let permit = self.ask(key);
        self.health.record_outcome(permit, signal, concern, self.now)
    }

    fn open(&mut self, key: &str) {
        for _ in 0..5 {
            self.answer(Some(key), HealthSignal::Failure, Concern::Key);
        }
    }

    fn cool(&mut self, key: &str, length: Duration) {
        self.answer(Some(key), HealthSignal::Cooldown(Some(length)), Concern::Key);
    }

    fn admission(&self, key: &str) -> Admission {
        self.health.admission(0, Some(key.as_bytes()), self.now)
    }

    /// The keys that rest, and how each stands.
    fn resting(&self) -> BTreeMap<&str, State> {
        let resting = self.health.resting_keys(0, self.now);
        resting.map(|(key, state)| (str::from_utf8(key).unwrap(), state)).collect()
    }

    fn of_provider(&self) -> Admission {
        self.health.admission(0, None, self.now)
    }
}

#[test]
fn what_counts_for_a_key_says_nothing_of_the_provider_or_of_another_key() {
    for signal in [
        HealthSignal::Failure,
        HealthSignal::Silent,
        HealthSignal::Cooldown(Some(SECOND * 9)),
        HealthSignal::UnknownModel,
    ] {
        let mut harness = Harness::new();
        for _ in 0..100 {
            assert_eq!(harness.answer(Some("a"), signal, Concern::Key).own(), UNMOVED);
        }
        assert!(matches!(harness.admission("a"), Admission::Unavailable(_)), "{signal:?}");
        assert_eq!(harness.of_provider(), Admission::Available, "{signal:?}");
        assert_eq!(harness.admission("b"), Admission::Available, "{signal:?}");
        assert_eq!(harness.health.admission(1, Some(b"a"), harness.now), Admission::Available);
        assert_eq!(harness.resting().into_keys().collect::<Vec<_>>(), ["a"]);
        assert_eq!(harness.health.state(0, harness.now), State::Closed);
    }
}

#[test]
fn what_counts_for_the_provider_rests_every_key_and_is_held_against_none() {
    for signal in [HealthSignal::Failure, HealthSignal::Cooldown(Some(SECOND * 9))] {
        let mut harness = Harness::new();
        for _ in 0..5 {
            assert_eq!(harness.answer(Some("a"), signal, Concern::Provider).key(), UNMOVED);
        }
        for key in ["a", "b"] {
            assert_eq!(harness.admission(key), harness.of_provider());
            assert!(matches!(harness.admission(key), Admission::Unavailable(_)), "{signal:?}");
        }
        assert_eq!(harness.resting(), BTreeMap::new());
    }
}

#[test]
fn a_request_without_a_key_counts_for_the_provider() {
    let mut harness = Harness::new();
    for _ in 0..5 {
        harness.answer(None, HealthSignal::Failure, Concern::Key);
    }
    assert!(matches!(harness.admission("a"), Admission::Unavailable(_)));
    assert!(matches!(harness.of_provider(), Admission::Unavailable(_)));
}

#[test]
fn a_probe_of_the_provider_that_fails_for_its_key_leaves_the_question_open() {
    let mut harness = Harness::new();
    for _ in 0..5 {
        harness.answer(None, HealthSignal::Failure, Concern::Provider);
    }
    harness.now += SECOND * 30;
    for signal in [HealthSignal::Failure, HealthSignal::Silent, HealthSignal::Cooldown(None)] {
        let probe = harness.ask(Some("a"));
        assert!(probe.is_probe() && !probe.is_key_probe());
        assert!(matches!(harness.admission("b"), Admission::Unavailable(_)), "one at a time");
        let changes = harness.health.record_outcome(probe, signal, Concern::Key, harness.now);
        assert_eq!(changes.own(), UNMOVED, "{signal:?}");
        assert_eq!(harness.of_provider(), Admission::ProbeDue, "{signal:?}");
    }
    assert!(matches!(harness.admission("a"), Admission::Unavailable(_)));
    let changes = harness.answer(Some("b"), HealthSignal::Success, Concern::Key);
    assert_eq!(changes.own()[0], Some(Change::Closed));
}

#[test]
fn the_probe_of_a_key_closes_that_key() {
    let mut harness = Harness::new();
    harness.open("a");
    harness.open("b");
    harness.now += SECOND * 30;
    let probe = harness.ask(Some("a"));
    assert!(probe.is_key_probe());
    assert_eq!(harness.resting()["a"], State::Probing);
    assert_eq!(harness.admission("b"), Admission::ProbeDue);
    let changes =
        harness.health.record_outcome(probe, HealthSignal::Success, Concern::Key, harness.now);
    assert_eq!(changes, Changes::of(UNMOVED, [Some(Change::Closed), None]));
    assert_eq!(
        (harness.admission("a"), harness.admission("b")),
        (Admission::Available, Admission::ProbeDue)
    );
}

#[test]
fn the_probe_of_a_key_that_fails_opens_that_key_again_unless_its_lease_was_over() {
    let mut harness = Harness::new();
    harness.open("a");
    harness.now += SECOND * 30;
    let late = harness.ask(Some("a"));
    harness.now += LEASE;
    let probe = harness.ask(Some("a"));
    assert!(late.is_key_probe() && probe.is_key_probe());
    let mut fail = |permit| {
        harness.health.record_outcome(permit, HealthSignal::Failure, Concern::Key, harness.now)
    };
    assert_eq!(fail(late), Changes::default());
    let changes = fail(probe);
    assert_eq!(changes.own(), UNMOVED);
    let opened = changes.key()[0];
    assert!(
        matches!(opened, Some(Change::Opened { breaks: 2, cause: OpenCause::Probe, .. })),
        "{opened:?}"
    );
}

#[test]
fn a_stream_that_has_begun_closes_its_key_and_its_provider() {
    let mut harness = Harness::new();
    harness.open("a");
    for _ in 0..5 {
        harness.answer(Some("b"), HealthSignal::Failure, Concern::Provider);
    }
    harness.now += SECOND * 30;
    let mut stream = harness.ask(Some("a"));
    let closed = [Some(Change::Closed), None];
    let changes = harness.health.commit(&mut stream, harness.now);
    assert_eq!(changes, Changes::of(closed, closed));
    assert_eq!(harness.admission("a"), Admission::Available);
    let changes =
        harness.health.record_outcome(stream, HealthSignal::Failure, Concern::Key, harness.now);
    assert_eq!(changes, Changes::default(), "it was sent before");
}

#[test]
fn what_is_usual_for_one_model_is_not_for_another() {
    let mut harness = Harness::new();
    for (key, time) in [("slow", SECOND * 30), ("quick", SECOND / 10)] {
        let permit = harness.ask(Some(key));
        harness.health.record_answer(&permit, false, time);
        harness.health.cancel(&permit);
    }
    for (key, is_silence) in [("slow", false), ("quick", true)] {
        let permit = harness.ask(Some(key));
        assert_eq!(harness.health.is_silence(&permit, SECOND * 3), is_silence, "{key}");
        harness.health.cancel(&permit);
    }
}

#[test]
fn an_isolated_provider_is_shut_to_every_key() {
    let mut harness = Harness::new();
    harness.health.isolate(0, true);
    assert_eq!(harness.admission("a"), Admission::Isolated);
}

// Which keys are kept.

fn name(number: usize) -> String {
    format!("key-{number}")
}

#[test]
fn the_257th_key_takes_the_place_of_the_one_that_was_used_least_recently() {
    let mut harness = Harness::new();
    for number in 0..MOST_KEYS {
        harness.cool(&name(number), SECOND);
    }
    assert_eq!(harness.resting().len(), MOST_KEYS);
    // Being asked for is use.
    let early = harness.ask(Some(&name(0)));
    harness.cool("new", SECOND);
    assert_eq!(harness.resting().len(), MOST_KEYS);
    assert_eq!(harness.admission(&name(1)), Admission::Available);
    assert!(harness.resting().contains_key(&*name(0)));
    harness.health.cancel(&early);
}

#[test]
fn a_key_that_is_well_makes_room_before_one_that_rests_and_that_before_an_open_one() {
    // The first key is so, and was used before all others, which are well.
    for is_open in [false, true] {
        let mut harness = Harness::new();
        match is_open {
            true => harness.open(&name(0)),
            false => harness.cool(&name(0), SECOND),
        }
        let answer = |harness: &mut Harness, number: usize| {
            harness.answer(Some(&name(number)), HealthSignal::Success, Concern::Key);
        };
        (1..MOST_KEYS).for_each(|number| answer(&mut harness, number));
        (0..MOST_KEYS - 1).for_each(|more| answer(&mut harness, MOST_KEYS + more));
        assert!(harness.resting().contains_key(&*name(0)), "255 that were well made room");
        // It is not known how it is after that.
        harness.now += SECOND * 2;
        (0..MOST_KEYS - 1).for_each(|more| answer(&mut harness, 2 * MOST_KEYS + more));
        assert!(harness.resting().contains_key(&*name(0)), "and 255 more");
        // Among those that rest it is the first to go, unless it is open.
        (0..MOST_KEYS).for_each(|more| harness.cool(&format!("cool-{more}"), SECOND));
        assert_eq!(harness.resting().contains_key(&*name(0)), is_open);
    }
}

#[test]
fn a_key_whose_short_cooldown_is_over_is_well() {
    let short = SECOND / 2;
    for (passed, makes_room) in [(short - Duration::from_nanos(1), false), (short, true)] {
        let mut harness = Harness::new();
        (1..MOST_KEYS).for_each(|number| harness.cool(&name(number), SECOND * 60));
        harness.cool("short", short);
        harness.now += passed;
        harness.cool("new", SECOND * 60);
        let resting = harness.resting();
        assert_eq!(resting.contains_key(&*name(1)), makes_room, "else it is the oldest");
        assert_eq!(resting.contains_key("short"), !makes_room);
    }
}

#[test]
fn what_comes_back_for_a_key_that_made_room_moves_no_other() {
    let mut harness = Harness::new();
    let early: Vec<_> = (0..10).map(|_| harness.ask(Some("early"))).collect();
    for number in 0..MOST_KEYS {
        harness.answer(Some(&name(number)), HealthSignal::Success, Concern::Key);
    }
    for permit in early {
        harness.health.record_answer(&permit, false, SECOND * 100);
        let changes =
            harness.health.record_outcome(permit, HealthSignal::Failure, Concern::Key, harness.now);
        assert_eq!(changes, Changes::default());
    }
    assert_eq!(harness.resting(), BTreeMap::new());
    let permit = harness.ask(Some(&name(MOST_KEYS - 1)));
    assert!(harness.health.is_silence(&permit, SECOND * 2), "its usual time is its own");
    assert_eq!(harness.health.counts(0).failures, 10);
}

#[test]
fn an_open_breaker_is_forgotten_after_every_closed_one() {
    let mut rng = fastrand::Rng::with_seed(16);
    for _ in 0..20 {
        let mut harness = Harness::new();
        let mut used: BTreeMap<String, u64> = BTreeMap::new();
        let mut open: BTreeSet<String> = BTreeSet::new();
        for step in 0..1500 {
            harness.now += Duration::from_millis(rng.u64(0..30));
            let more = rng.usize(1..60);
            let key = name(rng.usize(0..MOST_KEYS + more));
            if !used.contains_key(&key) && used.len() == MOST_KEYS {
                // Only what is worth least may go.
                let resting = harness.resting();
                let worth = |(key, used): (&String, &u64)| {
                    let cools = matches!(resting.get(&**key), Some(State::CoolingDown { .. }));
                    ((open.contains(key), cools, *used), key.clone())
                };
                let (_, victim) = used.iter().map(worth).min().unwrap();
                used.remove(&victim);
                open.remove(&victim);
            }
            used.insert(key.clone(), step);
            match rng.u8(0..10) {
                0..6 => {
                    harness.answer(Some(&key), HealthSignal::Success, Concern::Key);
                    open.remove(&key);
                }
                6 | 7 => {
                    harness.open(&key);
                    // A cooldown that has begun is a reason not to hold failures against it.
                    if matches!(harness.resting().get(&*key), Some(State::Open { .. })) {
                        open.insert(key);
                    }
                }
                _ if open.contains(&key) => {}
                _ => harness.cool(&key, Duration::from_millis(rng.u64(1..900))),
            }
            if step % 100 == 99 {
                let resting = harness.resting();
                let states = resting.iter().filter(|(_, it)| matches!(it, State::Open { .. }));
                let found: BTreeSet<String> = states.map(|(key, _)| (*key).to_owned()).collect();
                assert_eq!(found, open);
            }
        }
    }
}

#[test]
fn a_million_random_keys_keep_less_than_a_mebibyte() {
    let mut rng = fastrand::Rng::with_seed(16);
    let kept = allocation_counter::measure(|| {
        let mut harness = Harness::new();
        for _ in 0..1_000_000 {
            let key = format!("{:0128}", rng.u64(..));
            let signal = match rng.u8(0..4) {
                0 => HealthSignal::Success,
                1 => HealthSignal::UnknownModel,
                2 => HealthSignal::Cooldown(None),
                _ => HealthSignal::Failure,
            };
            harness.answer(Some(&key), signal, Concern::Key);
            harness.now += Duration::from_millis(1);
        }
        assert!(harness.resting().len() <= MOST_KEYS);
        assert_eq!(harness.health.counts(0).in_flight, 0);
    });
    println!("at most {} KiB for a provider with a million keys", kept.bytes_max / 1024);
    assert!(kept.bytes_max < 1024 * 1024, "{kept:?}");
}

// Capacity.

#[test]
fn a_provider_at_its_limit_is_passed_over_until_one_of_its_requests_is_over() {
    let mut harness = Harness::new();
    harness.health.limit_in_flight(0, 2);
    let mut first = harness.ask(None);
    assert_eq!(harness.of_provider(), Admission::Available);
    let second = harness.ask(Some("a"));
    assert_eq!(harness.of_provider(), Admission::AtCapacity);
    assert_eq!(harness.admission("b"), Admission::AtCapacity);
    assert_eq!(harness.health.state(0, harness.now), State::AtCapacity);
    assert_eq!(harness.health.admission(1, None, harness.now), Admission::Available);
    // The answer of the first is a stream that is read for a while.
    first.detach();
    harness.health.record_outcome(first, HealthSignal::Success, Concern::Key, harness.now);
    assert_eq!(harness.of_provider(), Admission::AtCapacity);
    harness.health.cancel(&second);
    assert_eq!(harness.of_provider(), Admission::Available);
    harness.health.leave(0);
    assert_eq!(harness.health.counts(0).in_flight, 0);
}

#[test]
fn that_a_provider_is_at_its_limit_is_news_once_until_it_has_had_room_for_a_minute() {
    let mut harness = Harness::new();
    let mut news = Vec::new();
    for second in 0..600 {
        // It is busy for five minutes, then quiet for two.
        let is_busy = second % 420 < 300;
        if is_busy && harness.health.pass_over(0, harness.now) {
            news.push(second);
        }
        harness.now += SECOND;
    }
    assert_eq!(news, [0, 420]);
    assert!(harness.health.pass_over(1, harness.now), "each provider has its own");
    let mut pass_over_after = |passed| {
        harness.now += passed;
        harness.health.pass_over(1, harness.now)
    };
    let minute = SECOND * 60;
    assert!(!pass_over_after(minute) && pass_over_after(minute + Duration::from_nanos(1)));
}
