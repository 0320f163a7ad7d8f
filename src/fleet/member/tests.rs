#![expect(clippy::disallowed_methods, reason = "virtual time has to begin somewhere")]

use super::super::report::provider_key;
use super::*;
use crate::health::{Breaker, Concern, HealthSignal, Permit};

/// A member of a fleet and its table, with two providers.
struct Harness {
    member: Member,
    health: HealthTable,
    now: Instant,
}

const OWN: u64 = 7;

fn name(provider: usize) -> String {
    provider_key(["a", "b"][provider], "https://h/v1")
}

fn own_key(provider: usize) -> String {
    format!("{}/{OWN:016x}", name(provider))
}

fn record(key: &str, body: &str) -> Record {
    Record::new(key, body).unwrap()
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn isolated(provider: usize, isolated: bool) -> Subject {
    Subject::Isolated { provider: name(provider), isolated }
}

impl Harness {
    fn new() -> Self {
        let now = Instant::now();
        let mut health = HealthTable::new(
            2,
            Some(Breaker::default().consecutive(10_000).ratio(1.0, 10_000)),
            now,
            1,
        );
        let mut member = Member::new(Process(OWN), now);
        for provider in 0..2 {
            health.share(provider, Process(OWN));
        }
        member.set_providers((0..2).map(|provider| (provider, name(provider))).collect());
        Self { member, health, now }
    }

    fn admit(&mut self, provider: usize) -> Permit {
        self.health.admit(provider, None, self.now, self.now + secs(60))
    }

    fn ask(&mut self, provider: usize, signal: HealthSignal) {
        let permit = self.admit(provider);
        self.health.record_outcome(permit, signal, Concern::Provider, self.now);
    }

    fn write(&mut self) -> Option<Write> {
        self.member.next_write(&mut self.health, self.now)
    }

    /// Everything that is to be written.
    fn writes(&mut self) -> Vec<Write> {
        std::iter::from_fn(|| self.write()).collect()
    }

    fn list(&mut self, list: &[(Record, Duration)]) -> Vec<Heard> {
        let is_probing = |id| self.health.is_probing(id, self.now);
        let heard = self.member.read_list(list, is_probing, self.now);
        heard.into_iter().map(|(heard, _)| heard).collect()
    }

    fn hear(&mut self, key: &str, body: &str) -> Heard {
        self.member.read_watched(&record(key, body), secs(10), self.now).expect("there is room")
    }
}

#[test]
fn nothing_is_written_on_a_healthy_day() {
    let mut harness = Harness::new();
    for _ in 0..100 {
        harness.ask(0, HealthSignal::Success);
        harness.list(&[]);
        assert_eq!(harness.writes(), []);
        assert_eq!(harness.member.write_at(&harness.health, harness.now), None);
    }
}

#[test]
fn what_is_untold_is_written_once() {
    let mut harness = Harness::new();
    harness.ask(0, HealthSignal::Failure);
    harness.ask(0, HealthSignal::Failure);
    harness.ask(1, HealthSignal::Failure);
    let mut written: Vec<_> =
        harness.writes().into_iter().map(|write| (write.record, write.ttl)).collect();
    written.sort_by(|(one, _), (other, _)| one.key().cmp(other.key()));
    let expected = [
        (record(&own_key(0), "1 n=1 f=2 s=0"), secs(10)),
        (record(&own_key(1), "1 n=1 f=1 s=0"), secs(10)),
    ];
    assert_eq!(written, expected);
    assert_eq!(harness.writes(), []);
}

#[test]
fn own_records_that_the_store_lost_are_written_again() {
    let mut harness = Harness::new();
    harness.ask(0, HealthSignal::Failure);
    let written = harness.write().unwrap().record;
    harness.list(&[(written.clone(), secs(9))]);
    assert_eq!(harness.writes(), [], "the store has it");
    harness.list(&[(record(&own_key(1), "1 n=1 f=1 s=0"), secs(9))]);
    assert_eq!(harness.write().unwrap().record, record(&own_key(0), "1 n=2 f=1 s=0"));
    assert_eq!(harness.writes(), []);
    harness.now += secs(10);
    harness.list(&[]);
    assert_eq!(harness.writes(), [], "it has expired");
}

#[test]
fn what_was_answered_is_heard_before_what_it_answers() {
    let mut harness = Harness::new();
    let failed = record(&format!("{}/{:016x}", name(0), 1), "1 n=1 f=3 s=0");
    let answered = record(&format!("{}/{:016x}", name(0), 2), "1 n=1 f=0 s=0 a=0000000000000001:3");
    for list in [[&failed, &answered], [&answered, &failed]] {
        let heard = harness.list(&list.map(|record| (record.clone(), secs(9))));
        let failures = heard.iter().map(|heard| match heard {
            Heard::Report { report, .. } => report.failed,
            heard => panic!("{heard:?}"),
        });
        assert_eq!(failures.collect::<Vec<_>>(), [0, 3]);
    }
}

#[test]
fn a_probe_is_written_again_at_each_poll() {
    let mut harness = Harness::new();
    harness.ask(0, HealthSignal::Cooldown(Some(secs(5))));
    harness.writes();
    harness.now += secs(6);
    let probe = harness.admit(0);
    let writes = harness.writes();
    assert!(writes[0].record.body().ends_with(" p"), "{writes:?}");
    for _ in 0..3 {
        harness.list(&[(writes[0].record.clone(), secs(9))]);
        assert_eq!(harness.writes().len(), 1);
    }
    harness.health.cancel(&probe);
    assert!(!harness.write().unwrap().record.body().contains('p'));
}

#[test]
fn counts_leave_room_for_what_says_more() {
    let mut harness = Harness::new();
    let mut written = 0;
    for _ in 0..100 {
        harness.ask(0, HealthSignal::Failure);
        written += harness.writes().len();
    }
    assert_eq!(written, 15);
    let wait = harness.member.write_at(&harness.health, harness.now);
    assert_eq!(wait, Some(harness.now + Duration::from_millis(50)));
    harness.ask(1, HealthSignal::Cooldown(Some(secs(9))));
    assert_eq!(harness.write().map(|write| write.record.key().to_owned()), Some(own_key(1)));
    assert_eq!(harness.write(), None);
}

#[test]
fn twenty_records_are_written_in_a_second() {
    let mut harness = Harness::new();
    harness.member.budget = Budget { left: 0.0, as_of: harness.now };
    let mut written = 0;
    for _ in 0..1_000 {
        harness.now += Duration::from_millis(10);
        harness.ask(0, HealthSignal::Failure);
        written += harness.writes().len();
    }
    assert!((194..=196).contains(&written), "{written}");
    harness.now += secs(100);
    let mut at_once = 0;
    for _ in 0..100 {
        harness.member.again.insert(0);
        at_once += harness.writes().len();
    }
    assert_eq!(at_once, 20, "what was not used is not saved for later");
}

#[test]
fn a_command_is_written_before_anything_else_and_for_a_week() {
    let mut harness = Harness::new();
    harness.ask(0, HealthSignal::Failure);
    harness.member.command(isolated(1, true));
    let write = harness.write().unwrap();
    let key = format!("isolate/{}", name(1));
    assert_eq!(write.record, record(&key, "1 n=1 by=0000000000000007 on"));
    assert_eq!(write.ttl, secs(7 * 24 * 3600));
    assert_eq!(harness.write().unwrap().record.key(), own_key(0));
    assert_eq!(harness.writes(), []);
}

#[test]
fn the_latest_command_holds() {
    let mut harness = Harness::new();
    let key = format!("isolate/{}", name(0));
    let on = Heard::Command(isolated(0, true));
    let off = Heard::Command(isolated(0, false));
    assert_eq!(harness.hear(&key, "1 n=5 by=0000000000000008 on"), on);
    for body in
        ["5 by=0000000000000008 off", "5 by=0000000000000007 off", "4 by=ffffffffffffffff off"]
    {
        assert_eq!(harness.hear(&key, &format!("1 n={body}")), Heard::Nothing, "{body}");
    }
    assert_eq!(harness.hear(&key, "1 n=5 by=0000000000000009 off"), off);
    harness.member.command(isolated(0, true));
    let body = "1 n=6 by=0000000000000007 on";
    assert_eq!(harness.write().unwrap().record, record(&key, body));
    let order = harness.hear("order", "1 n=1 by=0000000000000001 b a");
    assert_eq!(order, Heard::Command(Subject::Order(vec!["b".into(), "a".into()])));
}

#[test]
fn a_command_that_the_store_lost_is_written_again() {
    let mut harness = Harness::new();
    let key = format!("isolate/{}", name(0));
    let body = "1 n=5 by=0000000000000008 on";
    let (week, day) = (secs(7 * 24 * 3600), secs(24 * 3600));
    assert!(matches!(harness.hear(&key, body), Heard::Command(_)));
    assert_eq!(harness.writes(), [], "another has written it");
    for (list, again) in [
        (vec![], true),
        (vec![(record(&key, body), week)], false),
        (vec![(record(&key, body), week - day)], false),
        (vec![(record(&key, body), week - day - secs(1))], true),
        (vec![(record(&key, "1 n=4 by=0000000000000008 off"), week)], true),
        (vec![(record(&key, "nonsense"), week)], true),
        (vec![(record("order", body), week), (record(&key, body), week)], false),
    ] {
        harness.list(&list);
        let writes = harness.writes();
        let expected = again.then(|| Write { record: record(&key, body), ttl: week });
        assert_eq!(
            writes.iter().find(|write| write.record.key() == key),
            expected.as_ref(),
            "{list:?}"
        );
    }
    harness.list(&[(record(&key, "1 n=6 by=0000000000000001 off"), week)]);
    assert!(harness.writes().iter().all(|write| write.record.key() != key), "it is overruled");
}

#[test]
fn a_provider_that_comes_later_is_told_what_holds_for_it() {
    let mut harness = Harness::new();
    let other = provider_key("c", "https://h/v1");
    let heard = harness.hear(&format!("isolate/{other}"), "1 n=1 by=0000000000000008 on");
    let subject = Subject::Isolated { provider: other.clone(), isolated: true };
    assert_eq!(heard, Heard::Command(subject.clone()));
    harness.hear("order", "1 n=1 by=0000000000000008 b a");
    assert_eq!(harness.member.set_providers(vec![(5, other)]), [subject]);
}

#[test]
fn reports_of_others_are_for_the_provider_that_they_name() {
    let mut harness = Harness::new();
    let heard = harness.hear(&format!("{}/{:016x}", name(1), 9), "1 n=1 f=2 s=1");
    let report = HealthReport { number: 1, failed: 2, served: 1, ..HealthReport::default() };
    assert_eq!(heard, Heard::Report { provider: 1, process: Process(9), report });
    for (key, body, expected) in [
        (own_key(0), "1 n=1 f=2 s=1", Heard::Nothing),
        (format!("{}/{:016x}", provider_key("z", ""), 9), "1 n=1 f=2 s=1", Heard::Nothing),
        (format!("{}/{:016x}", name(0), 9), "2 n=1 f=2 s=1", Heard::Unread),
        ("nonsense".into(), "1 n=1 f=2 s=1", Heard::Unread),
    ] {
        assert_eq!(harness.hear(&key, body), expected, "{key} {body}");
    }
}

#[test]
fn others_are_counted_as_long_as_what_they_say_counts() {
    let mut harness = Harness::new();
    for (process, seconds) in [(8, 10), (9, 20), (9, 5), (OWN, 99)] {
        let key = format!("{}/{process:016x}", name(0));
        let said = record(&key, "1 n=1 f=2 s=1");
        harness.member.read_watched(&said, secs(seconds), harness.now);
    }
    for (after, expected) in [(0, 2), (9, 2), (10, 1), (19, 1), (20, 0)] {
        assert_eq!(harness.member.processes_heard(harness.now + secs(after)), expected, "{after}");
    }
    harness.now += secs(10);
    harness.list(&[]);
    let others: Vec<_> = harness.member.others.keys().collect();
    assert_eq!(others, [&Process(9)], "those that said nothing for long are forgotten");
}

#[test]
fn what_others_say_takes_a_bounded_room() {
    let mut harness = Harness::new();
    let mut list = Vec::new();
    for number in 0..3_000u64 {
        let key = format!("{}/{:016x}", name(0), 100 + number);
        list.push((record(&key, "1 n=1 f=2 s=1"), secs(10)));
        let key = format!("isolate/x{number}~00000000");
        list.push((record(&key, "1 n=1 by=0000000000000008 on"), secs(10)));
    }
    harness.list(&list);
    assert_eq!(harness.member.others.len(), 1_000);
    assert_eq!(harness.member.commands.len(), 1_000);
    let key = format!("{}/{:016x}", name(0), 100);
    harness.member.read_watched(&record(&key, "1 n=2 f=2 s=1"), secs(99), harness.now);
    assert_eq!(harness.member.processes_heard(harness.now + secs(50)), 1);
    let heard = harness.hear("isolate/x0~00000000", "1 n=2 by=0000000000000008 off");
    assert!(matches!(heard, Heard::Command(_)), "a known one is still obeyed");
}

#[test]
fn two_hundred_watched_records_are_taken_in_between_two_polls() {
    let mut harness = Harness::new();
    let said = record("nonsense", "");
    let now = harness.now;
    let mut taken =
        || (0..500).filter_map(|_| harness.member.read_watched(&said, secs(1), now)).count();
    assert_eq!(taken(), 200);
    assert_eq!(taken(), 0);
    harness.list(&[]);
    assert!(harness.member.read_watched(&said, secs(1), now).is_some());
}

#[test]
fn polls_are_four_fifths_of_a_second_apart() {
    let mut harness = Harness::new();
    assert_eq!(harness.member.poll_at(), harness.now, "the first one is at once");
    let mut all = Vec::new();
    for _ in 0..200 {
        harness.list(&[]);
        all.push((harness.member.poll_at() - harness.now).as_millis());
    }
    let (least, most) = (*all.iter().min().unwrap(), *all.iter().max().unwrap());
    assert!((720..740).contains(&least) && (860..=880).contains(&most), "{least} to {most}");
}

#[test]
fn a_store_that_fails_is_asked_less_and_less_often() {
    let mut harness = Harness::new();
    let mut longest = Vec::new();
    for failures in 0..8 {
        let wait = |harness: &mut Harness| {
            harness.member.failures = failures;
            harness.member.fail(harness.now) - harness.now
        };
        longest.push((0..300).map(|_| wait(&mut harness).as_millis()).max().unwrap());
    }
    for (wait, bound) in longest.iter().zip([100, 200, 400, 800, 1_600, 2_000, 2_000, 2_000]) {
        assert!(*wait <= bound && *wait > bound * 9 / 10, "{longest:?}");
    }
    harness.member.failures = 0;
    harness.member.fail(harness.now);
    harness.member.fail(harness.now);
    assert_eq!(harness.member.failures, 2);
    harness.list(&[]);
    assert_eq!(harness.member.failures, 2, "it may not write");
    harness.member.recover();
    assert_eq!(harness.member.failures, 0);
}

#[test]
fn all_is_written_again_after_a_failure() {
    let mut harness = Harness::new();
    harness.ask(0, HealthSignal::Failure);
    harness.write().unwrap();
    harness.member.fail(harness.now);
    assert!(harness.member.write_at(&harness.health, harness.now).is_some());
    assert_eq!(harness.write().unwrap().record, record(&own_key(0), "1 n=2 f=1 s=0"));
    assert_eq!(harness.writes(), [], "there is nothing to say of the other");
    assert_eq!(harness.member.write_at(&harness.health, harness.now), None);
}

#[test]
fn providers_that_say_as_much_take_turns() {
    let mut harness = Harness::new();
    let mut written = [0u32, 0];
    for _ in 0..400 {
        harness.now += Duration::from_millis(10);
        (0..2).for_each(|provider| harness.ask(provider, HealthSignal::Failure));
        for write in harness.writes() {
            written[usize::from(write.record.key() == own_key(1))] += 1;
        }
    }
    assert!(written[0].abs_diff(written[1]) <= 1, "{written:?}");
}

#[test]
fn nothing_to_say_takes_no_room_of_what_others_say() {
    let mut harness = Harness::new();
    harness.ask(0, HealthSignal::Failure);
    harness.member.budget = Budget { left: 1.0, as_of: harness.now };
    harness.member.write_all_again();
    assert_eq!(harness.write().map(|write| write.record.key().to_owned()), Some(own_key(0)));
}

#[test]
fn a_provider_that_is_gone_is_not_waited_for() {
    let mut harness = Harness::new();
    harness.ask(1, HealthSignal::Failure);
    harness.member.fail(harness.now);
    harness.member.begin_sync(&harness.health);
    assert!(!harness.member.is_synced());
    harness.member.set_providers(vec![(0, name(0))]);
    assert_eq!(harness.writes(), []);
    assert!(harness.member.is_synced());
    assert_eq!(harness.member.write_at(&harness.health, harness.now), None);
}

#[test]
fn what_is_said_after_a_synchronisation_began_is_not_waited_for() {
    let mut harness = Harness::new();
    harness.ask(0, HealthSignal::Failure);
    harness.member.command(isolated(1, true));
    harness.member.begin_sync(&harness.health);
    for written in 0..3 {
        assert!(!harness.member.is_synced(), "{written}");
        harness.write();
        harness.ask(1, HealthSignal::Failure);
    }
    assert!(harness.member.is_synced());
}

#[test]
fn an_own_record_that_an_earlier_one_has_replaced_is_written_again() {
    let mut harness = Harness::new();
    harness.ask(0, HealthSignal::Failure);
    let earlier = harness.write().unwrap().record;
    harness.ask(0, HealthSignal::Failure);
    let later = harness.write().unwrap().record;
    harness.list(&[(later, secs(9))]);
    assert_eq!(harness.writes(), []);
    harness.list(&[(earlier, secs(9))]);
    assert_eq!(harness.write().unwrap().record, record(&own_key(0), "1 n=3 f=2 s=0"));
}
