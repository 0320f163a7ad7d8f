//! Callers with deadlines of their own, in virtual time.
//!
//! A driver without I/O: it does what the real one does, with providers whose answers are given.
//! The figures are those of requests per hour that callers saw.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use proptest::prelude::*;

use super::*;
use crate::health::{Breaker, Change, OpenCause, State};
use crate::hedge::{Hedge, Hedging};

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

/// What a provider does with a request: answers after a while, or never.
type Reply = Option<(Duration, Judgement)>;

/// How a provider replies to requests about this or that.
type Replies = Box<dyn Fn(Option<u8>) -> Reply>;

const HANGS: Reply = None;

fn answers(after: Duration, status: u16) -> Reply {
    let verdict = match status {
        ..400 => Verdict::Accept,
        400..500 => Verdict::FailOver(Fault::None),
        500.. => Verdict::FailOver(Fault::Failure),
    };
    Some((after, judgement(verdict, Some(status), after)))
}

fn judgement(verdict: Verdict, status: Option<u16>, time_to_headers: Duration) -> Judgement {
    Judgement {
        verdict,
        ambiguous: status.is_none(),
        unreachable: false,
        concern: Concern::Key,
        unknown_model: false,
        status,
        time_to_headers,
        cut_after: None,
    }
}

/// How long a caller waits, and what for.
#[derive(Clone, Copy, Debug, Default)]
struct Caller {
    /// Drops the request after this.
    gives_up: Option<Duration>,
    /// The request's own timeout.
    timeout: Option<Duration>,
    /// The client's, for each attempt.
    client_timeout: Option<Duration>,
    /// How long its body takes; the provider has the request after that.
    upload: Duration,
    /// What it asks about.
    key: Option<u8>,
    /// How long it reads its answer.
    reads: Duration,
}

/// What a caller got, and how long it took.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Got {
    Answer { provider: usize, status: Option<u16> },
    Nothing(Unserved),
    GaveUp,
}

struct Request {
    run: Run,
    caller: Caller,
    began: Instant,
    flights: Vec<Flight>,
    kept: Option<(usize, Judgement)>,
    got: Option<(Got, Duration)>,
}

struct Flight {
    permit: Permit,
    until: Until,
    began: Instant,
    uploaded: Instant,
    /// When it is answered, and when the client cuts it.
    answer: Option<(Instant, Judgement)>,
    client_cut: Option<Instant>,
}

impl Flight {
    fn quiet_for(&self, now: Instant) -> Duration {
        if now < self.uploaded { Duration::ZERO } else { self.permit.elapsed(now) }
    }

    fn next_event(&self) -> Instant {
        let answer = self.answer.map(|(at, _)| at);
        let times = [Some(self.until.at), answer, self.client_cut];
        times.into_iter().flatten().min().unwrap()
    }
}

struct Callers {
    health: HealthTable,
    limits: ChainLimits,
    began: Instant,
    now: Instant,
    replies: Vec<Replies>,
    /// When answers are over, and whose they are.
    reading: BinaryHeap<Reverse<(Instant, usize)>>,
    requests: Vec<Request>,
    due: BinaryHeap<Reverse<(Instant, usize)>>,
    changes: Vec<(usize, Change, Duration)>,
    /// For each provider the attempts that were no probes, and those that were.
    asked: Vec<[u64; 2]>,
    /// The most requests that each provider has had at once.
    most: Vec<u64>,
}

impl Callers {
    fn new(replies: Vec<Replies>) -> Self {
        #[expect(clippy::disallowed_methods, reason = "virtual time has to begin somewhere")]
        let now = Instant::now();
        let providers = replies.len();
        let limits = ChainLimits {
            max_attempts: usize::MAX,
            ambiguous: Ambiguous::FailOver,
            total: ChainLimits::DEFAULT_TOTAL,
            hold: Duration::ZERO,
            attempts: vec![None; providers],
            hosts: (0..providers as u32).collect(),
        };
        Self {
            health: HealthTable::new(providers, Some(Breaker::default()), now, 7),
            limits,
            began: now,
            now,
            replies,
            reading: BinaryHeap::new(),
            requests: Vec::new(),
            due: BinaryHeap::new(),
            changes: Vec::new(),
            asked: vec![[0; 2]; providers],
            most: vec![0; providers],
        }
    }

    /// Providers that always do the same.
    fn of<const N: usize>(replies: [Reply; N]) -> Self {
        let constant = |reply| Box::new(move |_| reply) as Replies;
        Self::new(replies.into_iter().map(constant).collect())
    }

    fn hedge(mut self, hedge: &Hedge) -> Self {
        self.health.hedging = Some(Hedging::new(hedge, self.replies.len()));
        self
    }

    /// A request now. Returns its number.
    fn call(&mut self, caller: Caller) -> usize {
        let order = (0..self.replies.len()).collect();
        let mut run = Run::new(order, &self.limits, false, caller.timeout, self.now);
        run.set_key(caller.key.map(|key| [key].into()));
        if !caller.upload.is_zero() {
            run.forbid_replay();
        }
        let (flights, kept, got) = (Vec::new(), None, None);
        let number = self.requests.len();
        self.requests.push(Request { run, caller, began: self.now, flights, kept, got });
        self.due.push(Reverse((self.now, number)));
        number
    }

    /// Calls once every `interval`, and lets everything end.
    fn call_every(&mut self, interval: Duration, caller: impl Fn(u32) -> Caller, times: u32) {
        for number in 0..times {
            self.pass_until(self.began + interval * number);
            self.call(caller(number));
        }
        self.finish();
    }

    fn pass_until(&mut self, then: Instant) {
        while let Some(Reverse((at, number))) = self.due.peek().copied().filter(|it| it.0.0 <= then)
        {
            self.due.pop();
            self.now = self.now.max(at);
            self.advance(number);
        }
        self.now = then;
    }

    fn finish(&mut self) {
        while let Some(Reverse((at, number))) = self.due.pop() {
            self.now = self.now.max(at);
            self.advance(number);
        }
    }

    /// Calls once and waits for what comes of it.
    fn wait_for(&mut self, caller: Caller) -> (Got, Duration) {
        let number = self.call(caller);
        self.finish();
        self.requests[number].got.unwrap()
    }

    fn got(&self) -> impl Iterator<Item = (Got, Duration)> {
        self.requests.iter().map(|request| request.got.unwrap())
    }

    fn served(&self) -> usize {
        self.got().filter(|(got, _)| matches!(got, Got::Answer { .. })).count()
    }

    /// When this provider's breaker opened, and why.
    fn opened(&self, provider: usize) -> Vec<(Duration, OpenCause)> {
        let opened = self.changes.iter().filter_map(|(it, change, at)| match change {
            Change::Opened { cause, .. } if *it == provider => Some((*at, *cause)),
            _ => None,
        });
        opened.collect()
    }

    fn note(&mut self, provider: usize, changes: Changes) {
        let at = self.now - self.began;
        self.changes
            .extend(changes.own().into_iter().flatten().map(|change| (provider, change, at)));
    }

    /// Lets everything happen to a request that is due.
    fn advance(&mut self, number: usize) {
        while let Some(Reverse((_, provider))) =
            self.reading.peek().copied().filter(|it| it.0.0 <= self.now)
        {
            self.reading.pop();
            self.health.leave(provider);
        }
        if self.requests[number].got.is_some() {
            return;
        }
        let (caller, began) = (self.requests[number].caller, self.requests[number].began);
        let gives_up = caller.gives_up.map(|after| began + after);
        if gives_up.is_some_and(|at| at <= self.now) {
            for flight in std::mem::take(&mut self.requests[number].flights) {
                let (provider, quiet_for) = (flight.permit.provider(), flight.quiet_for(self.now));
                let changes = self.health.abandon(flight.permit, quiet_for, self.now);
                self.note(provider, changes);
            }
            self.requests[number].got = Some((Got::GaveUp, self.now - began));
            return;
        }
        while let Some(judged) = self.due_flight(number) {
            if let Some(got) = self.record(number, judged) {
                self.requests[number].got = Some((got, self.now - began));
                return;
            }
        }
        let mut wake = gives_up;
        loop {
            let run = &mut self.requests[number].run;
            match run.step(&self.limits, &mut self.health, self.now) {
                Step::Send { permit, until, .. } => self.send(number, permit, until),
                Step::Wait(until) => {
                    let flights = self.requests[number].flights.iter().map(Flight::next_event);
                    wake = flights.chain(until).chain(wake).min();
                    break;
                }
                Step::Done => {
                    let ending = self.requests[number].run.ending();
                    self.requests[number].got = Some((Got::Nothing(ending), self.now - began));
                    return;
                }
            }
        }
        self.due.extend(wake.map(|at| Reverse((at, number))));
    }

    fn send(&mut self, number: usize, mut permit: Permit, until: Until) {
        let provider = permit.provider();
        self.asked[provider][usize::from(permit.is_probe())] += 1;
        let Caller { upload, client_timeout, key, .. } = self.requests[number].caller;
        let reply = (self.replies[provider])(key);
        let in_flight = &mut self.most[provider];
        *in_flight = self.health.counts(provider).in_flight.max(*in_flight);
        permit.mark_sent(self.now);
        let uploaded = self.now + upload;
        self.requests[number].flights.push(Flight {
            permit,
            until,
            began: self.now,
            uploaded,
            answer: reply.map(|(after, judgement)| (uploaded + after, judgement)),
            client_cut: client_timeout.map(|timeout| self.now + timeout),
        });
    }

    /// What has become of a flight of this request, if one is over.
    fn due_flight(&mut self, number: usize) -> Option<(Flight, Judgement)> {
        let Request { run, flights, .. } = &mut self.requests[number];
        for at in 0..flights.len() {
            let flight = &mut flights[at];
            if let Some((_, judgement)) = flight.answer.filter(|(answer, _)| *answer <= self.now) {
                return Some((flights.swap_remove(at), judgement));
            }
            if flight.until.at <= self.now && flight.began < flight.uploaded {
                // As long as its own upload takes, no limit of the attempt ends it.
                let pending = flight.uploaded.min(self.now) - flight.began;
                flight.permit.exclude(pending);
                flight.until = run.deadline().extend(flight.until, pending);
                flight.began = flight.uploaded.min(self.now);
            }
            let quiet_for = flight.quiet_for(self.now);
            let timed_out = judgement(Verdict::FailOver(Fault::Failure), None, Duration::ZERO);
            let cut = Judgement { cut_after: Some(quiet_for), ..timed_out };
            if flight.until.at <= self.now {
                let judgement = if flight.until.is_failure { timed_out } else { cut };
                return Some((flights.swap_remove(at), judgement));
            }
            if flight.client_cut.is_some_and(|cut| cut <= self.now) {
                return Some((flights.swap_remove(at), cut));
            }
        }
        None
    }

    fn record(
        &mut self,
        number: usize,
        (mut flight, judgement): (Flight, Judgement),
    ) -> Option<Got> {
        let provider = flight.permit.provider();
        let Caller { reads, .. } = self.requests[number].caller;
        if judgement.status.is_some() && !reads.is_zero() {
            flight.permit.detach();
            self.reading.push(Reverse((self.now + reads, provider)));
        }
        let (limits, health) = (&self.limits, &mut self.health);
        let request = &mut self.requests[number];
        let (settled, changes) =
            request.run.record_outcome(flight.permit, judgement, limits, health, self.now);
        let answer = |(provider, judgement): (usize, Judgement)| Got::Answer {
            provider,
            status: judgement.status,
        };
        let got = match settled {
            Settled::Serve => Some(answer((provider, judgement))),
            Settled::ServeKept => request.kept.map(answer),
            Settled::Keep => {
                request.kept = Some((provider, judgement));
                None
            }
            Settled::FailOver => None,
        };
        let losers = if got.is_some() { std::mem::take(&mut request.flights) } else { Vec::new() };
        self.note(provider, changes);
        for loser in losers {
            let provider = loser.permit.provider();
            let run = &mut self.requests[number].run;
            let changes = run.cancel_loser(loser.permit, &mut self.health, self.now);
            self.note(provider, changes);
        }
        got
    }
}

fn gives_up(seconds: u64) -> Caller {
    Caller { gives_up: Some(Duration::from_secs(seconds)), ..Caller::default() }
}

// The first provider hangs, and the callers give up.

#[test]
fn an_hour_of_callers_who_give_up_after_a_minute_is_served_by_the_second() {
    let mut callers = Callers::of([HANGS, answers(MS * 100, 200)]);
    callers.call_every(SECOND, |_| gives_up(60), 3600);
    assert!(callers.served() >= 3500, "{} of 3,600", callers.served());
    // The first five to give up.
    assert_eq!(callers.opened(0)[0], (SECOND * 64, OpenCause::Silence));
    assert_eq!(callers.opened(1), []);
}

#[test]
fn an_hour_of_callers_who_give_up_before_the_attempt_limit_is_served_by_the_second() {
    let mut callers = Callers::of([HANGS, answers(MS * 100, 200)]);
    callers.limits.attempts = vec![Some(SECOND * 20); 2];
    callers.call_every(SECOND, |_| gives_up(15), 3600);
    assert!(callers.served() >= 3500, "{} of 3,600", callers.served());
    assert_eq!(callers.opened(0)[0], (SECOND * 19, OpenCause::Silence));
}

#[test]
fn an_hour_of_callers_of_whom_one_in_a_hundred_is_patient_is_served_by_the_second() {
    let mut callers = Callers::of([HANGS, answers(MS * 100, 200)]);
    let caller = |number| gives_up(if number % 100 == 0 { 300 } else { 60 });
    callers.call_every(SECOND, caller, 3600);
    assert!(callers.served() >= 3500, "{} of 3,600", callers.served());
}

// Time is shared out.

#[test]
fn a_short_total_leaves_time_for_the_second_provider() {
    let mut callers = Callers::of([HANGS, answers(MS * 100, 200)]);
    callers.limits.total = SECOND * 3;
    for number in 0..100 {
        let (got, took) = callers.wait_for(Caller::default());
        assert_eq!(got, Got::Answer { provider: 1, status: Some(200) });
        // From its fifth request on, the first is passed over.
        let wasted = if number < 5 { MS * 1500 } else { Duration::ZERO };
        assert_eq!(took, wasted + MS * 100);
    }
}

#[test]
fn a_second_provider_that_rests_is_asked_within_the_attempt_limit() {
    for open in [false, true] {
        let mut callers = Callers::of([HANGS, answers(MS * 100, 200)]);
        let signals = match open {
            true => vec![HealthSignal::Failure; 5],
            false => vec![HealthSignal::Cooldown(Some(SECOND * 5))],
        };
        for signal in signals {
            let permit = callers.health.admit(1, None, callers.now, callers.now);
            callers.health.record_outcome(permit, signal, Concern::Key, callers.now);
        }
        assert_ne!(callers.health.state(1, callers.now), State::Closed);
        let (got, took) = callers.wait_for(Caller::default());
        assert_eq!(got, Got::Answer { provider: 1, status: Some(200) });
        assert_eq!(took, SECOND * 120 + MS * 100);
    }
}

#[test]
fn the_requests_own_timeout_bounds_all_attempts_together() {
    for timeout in [MS, SECOND / 10, SECOND, SECOND * 60, SECOND * 599] {
        let mut callers = Callers::of([HANGS, HANGS]);
        for _ in 0..3 {
            let caller = Caller { timeout: Some(timeout), ..Caller::default() };
            let (got, took) = callers.wait_for(caller);
            assert_eq!(got, Got::Nothing(Unserved::Exhausted));
            assert_eq!(took, timeout);
            assert_eq!(callers.asked, [[callers.requests.len() as u64, 0]; 2]);
        }
    }
}

// What callers do to themselves.

#[test]
fn a_caller_with_a_timeout_of_a_millisecond_moves_no_health() {
    let mut callers = Callers::of([answers(MS * 300, 200), answers(MS * 300, 200)]);
    let caller = |_| Caller { timeout: Some(MS), ..Caller::default() };
    callers.call_every(SECOND / 10, caller, 1000);
    assert_eq!(callers.changes, []);
    assert_eq!(callers.served(), 0);
}

#[test]
fn a_slow_upload_moves_no_health() {
    for limit in [None, Some(SECOND * 10)] {
        let mut callers = Callers::of([answers(MS * 300, 200), answers(MS * 300, 200)]);
        callers.limits.attempts = vec![limit; 2];
        let slow = |_| Caller { upload: SECOND * 60, ..Caller::default() };
        callers.call_every(SECOND, slow, 20);
        assert_eq!(callers.served(), 20, "it is no timeout either");
        let endless = |_| Caller { upload: SECOND * 6000, ..Caller::default() };
        callers.call_every(SECOND, endless, 20);
        assert_eq!(callers.changes, []);
        assert!(callers.asked[0][0] >= 40);
    }
    // What hangs after the upload hangs.
    let mut callers = Callers::of([HANGS, answers(MS * 300, 200)]);
    callers.limits.attempts = vec![Some(SECOND * 10); 2];
    callers.call_every(SECOND, |_| Caller { upload: SECOND * 60, ..Caller::default() }, 5);
    assert_eq!(callers.opened(0), [(SECOND * 74, OpenCause::Consecutive)]);
}

// Hedges.

#[test]
fn a_dead_key_at_the_hedge_never_replaces_a_healthy_answer() {
    // The judge accepts what is no server's error, and the second provider's key is dead.
    let dead = Some((MS, judgement(Verdict::Accept, Some(401), MS)));
    let hedge = Hedge::after(MS * 50).max_extra(1.0);
    let mut callers = Callers::of([answers(MS * 250, 200), dead]).hedge(&hedge);
    callers.call_every(SECOND, |_| Caller::default(), 166);
    let all = callers.got().all(|(got, took)| {
        got == Got::Answer { provider: 0, status: Some(200) } && took == MS * 250
    });
    assert!(all);
    assert_eq!(callers.asked[1], [166, 0]);
    assert_eq!(callers.changes, []);
}

#[test]
fn no_status_of_a_quicker_hedge_replaces_a_healthy_answer() {
    for status in 100..600 {
        for verdict in [Verdict::Accept, Verdict::FailOver(Fault::None)] {
            let quick = Some((MS, judgement(verdict, Some(status), MS)));
            let hedge = Hedge::after(MS * 50).max_extra(1.0);
            let mut callers = Callers::of([answers(MS * 250, 200), quick]).hedge(&hedge);
            let (got, _) = callers.wait_for(Caller::default());
            let by_hedge = verdict == Verdict::Accept && status < 400;
            let (provider, status) = if by_hedge { (1, status) } else { (0, 200) };
            assert_eq!(got, Got::Answer { provider, status: Some(status) }, "{verdict:?}");
        }
    }
}

#[test]
fn hedges_stay_within_their_share_of_what_was_sent() {
    let hedge = Hedge::after(MS * 50).max_extra(0.05);
    let mut callers = Callers::of([answers(MS * 250, 200), answers(MS, 200)]).hedge(&hedge);
    // 2,000 requests are refused before anything is sent.
    for _ in 0..2000 {
        let order = Arc::from([0, 1]);
        drop(Run::new(order, &callers.limits, false, None, callers.now));
    }
    callers.call_every(SECOND, |_| Caller::default(), 60);
    assert_eq!(callers.asked[1], [3, 0]);
}

// What only the request is to blame for.

#[test]
fn a_request_for_what_no_provider_has_is_rejected_and_moves_no_health() {
    let mut callers = Callers::of([answers(MS, 404), answers(MS, 404)]);
    for provider in [0, 1] {
        let permit = callers.health.admit(provider, None, callers.now, callers.now);
        callers.health.record_answer(&permit, false, MS);
        callers.health.cancel(&permit);
    }
    callers.call_every(SECOND, |_| Caller::default(), 25);
    assert!(callers.got().all(|(got, _)| got == Got::Nothing(Unserved::Rejected)));
    assert_eq!(callers.changes, []);
}

// Any callers.

/// Reads a random number as choices, one after the other.
fn choose<T: Copy>(number: &mut u64, choices: &[T]) -> T {
    let choice = choices[(*number % choices.len() as u64) as usize];
    *number /= choices.len() as u64;
    choice
}

/// A caller who gives up after at most a second, in one way or another.
fn impatient(mut number: u64) -> Caller {
    let length = MS * choose(&mut number, &[0, 1, 10, 400, 900, 999, 1000]);
    let upload = SECOND * choose(&mut number, &[0, 0, 0, 2, 700]);
    let mut caller = Caller { upload, ..Caller::default() };
    match choose(&mut number, &[0, 1, 2]) {
        0 => caller.gives_up = Some(length),
        1 => caller.timeout = Some(length),
        _ => {
            caller.client_timeout = Some(length);
            caller.gives_up = Some(length * 2);
        }
    }
    caller
}

/// A caller who gives a provider more than a second.
fn patient(mut number: u64) -> Caller {
    let length = SECOND * choose(&mut number, &[3, 5, 30, 60, 300, 1000]);
    let mut caller = Caller::default();
    match choose(&mut number, &[0, 1, 2, 3]) {
        0 => caller.gives_up = Some(length),
        1 => caller.timeout = Some(length),
        2 => caller.client_timeout = Some(length),
        _ => {}
    }
    caller
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_set_of_callers_who_all_give_up_early_moves_any_health(
        numbers in proptest::collection::vec(any::<u64>(), 1..60),
        reply in proptest::sample::select(vec![HANGS, answers(SECOND * 3, 200)]),
        hedges in any::<bool>(),
        gap in proptest::sample::select(vec![0, 7, 300, 5_000]),
    ) {
        let mut callers = Callers::of([reply, reply]);
        if hedges {
            callers = callers.hedge(&Hedge::after(MS * 20).max_extra(1.0));
        }
        let caller = |number: u32| impatient(numbers[number as usize]);
        callers.call_every(MS * gap, caller, numbers.len() as u32);
        prop_assert_eq!(&callers.changes, &[]);
        for provider in [0, 1] {
            prop_assert_eq!(callers.health.counts(provider).in_flight, 0);
        }
    }

    #[test]
    fn a_provider_that_answers_no_request_is_passed_over_after_five(
        numbers in proptest::collection::vec(any::<u64>(), 20..60),
        limit in proptest::sample::select(vec![None, Some(SECOND * 2), Some(SECOND * 20)]),
        hedges in any::<bool>(),
        gap in proptest::sample::select(vec![1_001, 5_000, 60_000]),
    ) {
        let mut callers = Callers::of([HANGS, answers(MS * 100, 200)]);
        callers.limits.attempts = vec![limit; 2];
        if hedges {
            callers = callers.hedge(&Hedge::after(MS * 1_500).max_extra(1.0));
        }
        for number in &numbers {
            // One after the other, so that no more than one is in flight.
            callers.wait_for(patient(*number));
            callers.now += MS * gap;
        }
        prop_assert_eq!(callers.asked[0][0], 5, "apart from its probes");
        prop_assert_eq!(callers.opened(1), []);
        for (got, _) in callers.got().skip(5) {
            // A probe may be what its caller gives up.
            let served = matches!(got, Got::Answer { provider: 1, .. });
            prop_assert!(served || got == Got::GaveUp || callers.asked[0][1] > 0);
        }
        for (request, (_, took)) in callers.requests.iter().zip(callers.got()) {
            let Caller { gives_up, timeout, .. } = request.caller;
            let most = gives_up.into_iter().chain(timeout).min().unwrap_or(SECOND * 600);
            prop_assert!(took <= most.min(SECOND * 600));
        }
    }

    #[test]
    fn limits_and_keys_hold_whatever_is_drawn(
        fates in proptest::collection::vec(0..7usize, 8),
        limits in proptest::array::uniform2(1..6u64),
        numbers in proptest::collection::vec(any::<u64>(), 50..300),
        gap in proptest::sample::select(vec![1, 10, 100, 5_000]),
    ) {
        // Two limited providers, each of which has a fate for each of four keys; the third is well.
        let fate = move |provider: usize, key: Option<u8>| {
            let fate = key.map_or(0, |key| fates[provider * 4 + usize::from(key)]);
            let mut reply = answers(MS * 20, [200, 200, 200, 503, 429, 404, 200][fate])?;
            match fate {
                4 => reply.1.verdict = Verdict::FailOver(Fault::Cooldown(Some(MS * 40))),
                5 => reply.1.unknown_model = true,
                6 => return HANGS,
                _ => {}
            }
            Some(reply)
        };
        let fate = std::rc::Rc::new(fate);
        let of = |provider| {
            let fate = fate.clone();
            Box::new(move |key| fate(provider, key)) as Replies
        };
        let mut callers =
            Callers::new(vec![of(0), of(1), Box::new(|_| answers(MS * 20, 200))]);
        callers.limits.attempts = vec![Some(SECOND * 2); 3];
        for (provider, most) in limits.into_iter().enumerate() {
            callers.health.limit_in_flight(provider, most);
        }
        let caller = |number: u32| {
            let mut number = numbers[number as usize];
            Caller {
                key: choose(&mut number, &[Some(0), Some(1), Some(2), Some(3)]),
                gives_up: choose(&mut number, &[None, None, Some(MS * 10), Some(MS * 100)]),
                reads: MS * choose(&mut number, &[0, 0, 5, 50, 1_000]),
                ..Caller::default()
            }
        };
        callers.call_every(MS * gap, caller, numbers.len() as u32);
        for (provider, limit) in limits.into_iter().enumerate() {
            prop_assert!(callers.most[provider] <= limit, "{} of {limit}", callers.most[provider]);
            for (key, state) in callers.health.resting_keys(provider, callers.now) {
                let is_well = fate(provider, Some(key[0]))
                    .is_some_and(|(_, judgement)| judgement.verdict == Verdict::Accept);
                prop_assert!(!is_well, "{key:?} is well at {provider}, and {state:?}");
            }
        }
        prop_assert_eq!(&callers.changes, &[], "no key's health moves its provider's");
        for (got, _) in callers.got() {
            let is_served = matches!(got, Got::GaveUp | Got::Answer { status: Some(200), .. });
            prop_assert!(is_served, "{:?}", got);
        }
        callers.now += SECOND * 10;
        while let Some(Reverse((_, provider))) = callers.reading.pop() {
            callers.health.leave(provider);
        }
        for provider in 0..3 {
            prop_assert_eq!(callers.health.counts(provider).in_flight, 0);
        }
    }
}
