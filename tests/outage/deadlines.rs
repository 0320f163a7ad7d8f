//! Callers with deadlines, uploads, hedges and judges of their own: each must be served if any provider
//! can, and a provider is blamed for what it did and for nothing else. In virtual time, two also over
//! sockets.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use http::Extensions;
use http_body_util::BodyExt;
use reqwest::{Body, Request, Response};
use reqwest_failover::{
    Event, FailoverError, Hedge, Inspect, Outcome, Provider, ProviderChain, ProviderChainBuilder,
    Report, Route, State, Verdict, harden,
};
use reqwest_middleware::{ClientBuilder, Middleware, Next, Result};
use tokio::time::{Instant, sleep, timeout};

use crate::support::{Answer, Server};
use crate::table::{Part, Row, thousands};
use crate::terminal::{Harness, Script, lock, ms, secs};

const VIRTUAL: &str = "virtual time";
const SOCKETS: &str = "sockets";

/// What a chain told, and when.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<(Duration, What)>>>);

#[derive(Clone, Debug, PartialEq)]
enum What {
    Opened(String),
    /// The first provider does not serve as many as it should.
    Alarm,
    Rejected,
    Exhausted,
}

impl Seen {
    /// Notes what this chain tells from now on.
    fn by(&self, chain: ProviderChainBuilder) -> ProviderChainBuilder {
        let (seen, began) = (self.clone(), Instant::now());
        chain.observe(move |event| {
            let what = match event {
                Event::BreakerOpened { provider, .. } => What::Opened((*provider).to_owned()),
                Event::FallbackRateHigh { .. } => What::Alarm,
                Event::Rejected { .. } => What::Rejected,
                Event::Exhausted { .. } => What::Exhausted,
                _ => return,
            };
            lock(&seen.0).push((began.elapsed(), what));
        })
    }

    /// When that was told.
    fn of(&self, what: &What) -> Vec<Duration> {
        lock(&self.0).iter().filter(|(_, told)| told == what).map(|(at, _)| *at).collect()
    }

    fn opened(&self, provider: &str) -> Vec<Duration> {
        self.of(&What::Opened(provider.to_owned()))
    }
}

fn ok() -> Script {
    Script::status(200).after(ms(100))
}

/// A chain of `a` and `b` with these settings, and what it tells.
fn two(
    a: Script,
    b: Script,
    settings: impl FnOnce(ProviderChainBuilder) -> ProviderChainBuilder,
) -> (Harness, Seen) {
    let seen = Seen::default();
    let harness = Harness::with([("a", a), ("b", b)], |chain| seen.by(settings(chain)));
    (harness, seen)
}

fn unchanged(chain: ProviderChainBuilder) -> ProviderChainBuilder {
    chain
}

fn server(response: &Response) -> Option<&str> {
    Report::of(response).and_then(Report::served_by)
}

fn enter(part: Part, at: usize, over: &'static str, [setup, seen, must]: [&str; 3]) {
    let [setup, seen, must] = [setup, seen, must].map(str::to_owned);
    Row { setup, over, seen, must }.enter(part, at);
}

// The first provider hangs, and its callers give up.

/// One caller a second for an hour: how many are answered with 200.
async fn an_hour_of_callers(harness: &Harness, patience: impl Fn(usize) -> Duration) -> usize {
    let mut callers = Vec::new();
    for number in 0..3600 {
        callers.push(tokio::spawn(timeout(patience(number), harness.post().send())));
        sleep(secs(1)).await;
    }
    let mut served = 0;
    for caller in callers {
        let answer = caller.await.unwrap().ok().and_then(|result| result.ok());
        served += usize::from(answer.is_some_and(|answer| answer.status() == 200));
    }
    served
}

/// At least 3,500 of 3,600 are served, and someone is told within a minute after the first caller gave up.
async fn outlives_a_hang(
    at: usize,
    setup: &str,
    attempt_timeout: Option<Duration>,
    patience: impl Fn(usize) -> Duration,
) {
    let first_gives_up = (0..3600).map(|number| secs(number as u64) + patience(number)).min();
    let (harness, seen) = two(Script::hang(), ok(), |chain| match attempt_timeout {
        Some(limit) => chain.attempt_timeout(limit),
        None => chain,
    });
    let served = an_hour_of_callers(&harness, patience).await;
    let opened = seen.opened("a");
    let alarm = seen.of(&What::Alarm);
    let told = format!(
        "{} of 3,600 served, A's breaker open after {} s, alarm after {} s",
        thousands(served),
        opened[0].as_secs(),
        alarm[0].as_secs(),
    );
    enter(Part::Deadlines, at, VIRTUAL, [setup, &told, "≥ 3,500 served, a WARN within a minute"]);
    assert!(served >= 3500, "{served}");
    assert!(opened[0] <= first_gives_up.unwrap() + secs(60), "{opened:?}");
    assert!(alarm[0] <= opened[0] + secs(60), "{alarm:?}");
    assert_eq!(seen.opened("b"), Vec::<Duration>::new());
}

#[tokio::test(start_paused = true)]
async fn callers_who_give_up_after_a_minute_are_served_by_the_second() {
    let setup = "A hangs, callers give up after 60 s, one a second for an hour";
    outlives_a_hang(0, setup, None, |_| secs(60)).await;
}

#[tokio::test(start_paused = true)]
async fn callers_who_give_up_before_the_attempt_limit_are_served_by_the_second() {
    let setup = "the same, attempt_timeout(20 s), callers give up after 15 s";
    outlives_a_hang(1, setup, Some(secs(20)), |_| secs(15)).await;
}

#[tokio::test(start_paused = true)]
async fn callers_of_whom_one_in_a_hundred_is_patient_are_served_by_the_second() {
    let setup = "the same, defaults, one in a hundred callers waits 300 s";
    outlives_a_hang(2, setup, None, |number| secs(if number % 100 == 0 { 300 } else { 60 })).await;
}

/// The shortest silence that is news is a second, over sockets too: so the callers wait a little longer,
/// and those of the first 1.2 s are lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_sockets_callers_who_give_up_are_served_by_the_second() {
    const CALLERS: usize = 300;
    let (a, b) = (Server::start(Answer::stall()).await, Server::start(Answer::ok()).await);
    let (client, chain, seen) = over_sockets(&a, &b, unchanged);
    let began = Instant::now();
    let mut callers = Vec::new();
    for _ in 0..CALLERS {
        let request = client.post(b.base_url("/v1/chat/completions")).body("{}");
        let sent = began.elapsed();
        callers.push((sent, tokio::spawn(timeout(ms(1_100), request.send()))));
        sleep(ms(20)).await;
    }
    let (mut served, mut last_unserved) = (0, Duration::ZERO);
    for (sent, caller) in callers {
        match caller.await.unwrap() {
            Ok(Ok(answer)) => {
                assert_eq!((answer.status().as_u16(), server(&answer)), (200, Some("b")));
                served += 1;
            }
            _ => last_unserved = sent,
        }
    }
    let opened = seen.opened("a");
    let told = format!(
        "{served} of {CALLERS} served, A's breaker open after {} ms, none lost after {} ms",
        opened[0].as_millis(),
        last_unserved.as_millis(),
    );
    let setup = "A hangs, callers give up after 1.1 s, 50 a second for 6 s";
    enter(Part::Deadlines, 3, SOCKETS, [setup, &told, "none lost once the breaker is open"]);
    // The first five to give up, and a machine that is late.
    assert!(opened[0] < ms(1_500), "{opened:?}");
    assert!(last_unserved <= opened[0], "{last_unserved:?} is after {opened:?}");
    assert_eq!(chain.snapshot().exhausted(), 0);
}

/// A client above a chain of two servers.
fn over_sockets(
    a: &Server,
    b: &Server,
    settings: impl FnOnce(ProviderChainBuilder) -> ProviderChainBuilder,
) -> (reqwest_middleware::ClientWithMiddleware, ProviderChain, Seen) {
    let provider = |name: &str, server: &Server| {
        Provider::new(name, server.base_url("/v1")).bearer_auth(format!("key-of-{name}"))
    };
    let seen = Seen::default();
    let chain = ProviderChain::builder([provider("a", a), provider("b", b)]);
    let chain = seen.by(settings(chain)).build().unwrap();
    let plain = harden(reqwest::Client::builder().no_proxy()).build().unwrap();
    (ClientBuilder::new(plain).with(chain.clone()).build(), chain, seen)
}

// Time is shared out.

#[tokio::test(start_paused = true)]
async fn a_short_total_leaves_time_for_the_second_provider() {
    let (harness, seen) = two(Script::hang(), ok(), |chain| chain.total_timeout(secs(3)));
    let mut longest = Duration::ZERO;
    for _ in 0..50 {
        let began = Instant::now();
        assert_eq!(harness.ask().await, "b");
        longest = longest.max(began.elapsed());
    }
    let told = format!("50 of 50 served by B, the slowest in {} ms", longest.as_millis());
    let setup = "total_timeout(3 s) alone, A hangs";
    enter(Part::Deadlines, 4, VIRTUAL, [setup, &told, "every one served by B"]);
    assert!(longest < secs(3));
    assert_eq!(harness.asked("a"), 5);
    assert_eq!(seen.of(&What::Exhausted), Vec::<Duration>::new());
}

#[tokio::test(start_paused = true)]
async fn a_second_provider_that_rests_is_asked_within_the_attempt_limit() {
    let mut told = Vec::new();
    for rests in ["cools for 5 s", "is open for 30 s"] {
        let (harness, _) = two(Script::hang(), ok(), unchanged);
        if rests == "cools for 5 s" {
            harness.tell("b", Script::hint(429, "retry-after", "5"));
            let only_b = harness.post().with_extension(Route::only(["b"]));
            assert_eq!(only_b.send().await.unwrap().status(), 429);
            harness.tell("b", ok());
            assert!(matches!(harness.state("b"), State::CoolingDown { .. }));
        } else {
            harness.break_it("b").await;
        }
        let began = Instant::now();
        assert_eq!(harness.ask().await, "b");
        assert!(began.elapsed() <= secs(120) + ms(100), "{:?}", began.elapsed());
        told.push(format!("B after {:.1} s where it {rests}", began.elapsed().as_secs_f64()));
    }
    let setup = "A hangs, B cools for 5 s or is open for 30 s";
    let told = told.join(", ");
    enter(Part::Deadlines, 5, VIRTUAL, [setup, &told, "B asked within the limit of 120 s"]);
}

#[tokio::test(start_paused = true)]
async fn a_requests_own_timeout_bounds_all_attempts_together() {
    let (harness, seen) = two(Script::hang(), Script::hang(), unchanged);
    let began = Instant::now();
    let error = harness.post().timeout(secs(1)).send().await.unwrap_err();
    let took = began.elapsed();
    let told = format!("{} ms in all, A and B asked", took.as_millis());
    let setup = "timeout(1 s) on the request, A and B hang";
    enter(Part::Deadlines, 6, VIRTUAL, [setup, &told, "1 s in all, within 50 ms"]);
    assert!(took >= secs(1) && took <= ms(1_050), "{took:?}");
    assert_eq!(harness.all_asked(), ["a", "b"]);
    assert!(FailoverError::find(&error).is_some_and(FailoverError::is_timeout));
    assert_eq!(seen.of(&What::Exhausted).len(), 1);
}

#[tokio::test]
async fn over_sockets_a_requests_own_timeout_bounds_all_attempts_together() {
    let (a, b) = (Server::start(Answer::stall()).await, Server::start(Answer::stall()).await);
    let (client, chain, _) = over_sockets(&a, &b, unchanged);
    // The connections are made before, and the first one to be asked is not the slowest.
    let mut shortest = Duration::MAX;
    for _ in 0..3 {
        let request = client.post(b.base_url("/v1/chat/completions")).body("{}").timeout(secs(1));
        let began = Instant::now();
        let error = request.send().await.unwrap_err();
        let took = began.elapsed();
        assert!(took >= secs(1), "{took:?}");
        let told = FailoverError::find(&error).is_some_and(FailoverError::is_timeout);
        let of_transport =
            matches!(&error, reqwest_middleware::Error::Reqwest(error) if error.is_timeout());
        assert!(told || of_transport, "{error:?}");
        shortest = shortest.min(took);
    }
    let told = format!("{} ms in all, A and B asked", shortest.as_millis());
    let setup = "the same";
    enter(Part::Deadlines, 7, SOCKETS, [setup, &told, "1 s in all, within 50 ms"]);
    assert!(shortest <= ms(1_050), "{shortest:?}");
    assert_eq!((a.requests().len(), b.requests().len()), (3, 3));
    assert_eq!(chain.snapshot().exhausted(), 3);
}

// What is the caller's own doing.

#[tokio::test(start_paused = true)]
async fn five_timeouts_of_a_millisecond_are_no_news() {
    let slow = || Script::status(200).after(ms(300));
    let (harness, seen) = two(slow(), slow(), unchanged);
    for _ in 0..5 {
        let result = harness.post().timeout(ms(1)).send().await;
        assert!(result.is_err());
    }
    let told = format!("A {:?}, B {:?}", harness.state("a"), harness.state("b"));
    let setup = "timeout(1 ms) on five requests, A and B answer in 300 ms";
    enter(Part::Blame, 0, VIRTUAL, [setup, &told, "no news of either"]);
    assert_eq!([harness.state("a"), harness.state("b")], [State::Closed; 2]);
    assert_eq!((harness.of_provider("a").failures(), harness.of_provider("b").failures()), (0, 0));
    assert_eq!((seen.opened("a"), seen.opened("b")), (vec![], vec![]));
    assert_eq!(harness.ask().await, "a");
}

/// Reads the caller's body as a server does, before anything answers.
struct ReadsTheBody;

#[async_trait]
impl Middleware for ReadsTheBody {
    async fn handle(
        &self,
        mut request: Request,
        extensions: &mut Extensions,
        next: Next<'_>,
    ) -> Result<Response> {
        if let Some(body) = request.body_mut().take() {
            body.collect().await?;
        }
        next.run(request, extensions).await
    }
}

#[tokio::test(start_paused = true)]
async fn five_slow_uploads_are_no_news() {
    let (harness, seen) = two(ok(), ok(), |chain| chain.attempt_timeout(secs(10)));
    let client = ClientBuilder::new(reqwest::Client::new())
        .with(harness.chain.clone())
        .with(ReadsTheBody)
        .with(harness.terminal())
        .build();
    let mut served = 0;
    for _ in 0..5 {
        let chunks = futures_util::stream::unfold(0, |sent| async move {
            sleep(secs(10)).await;
            (sent < 6).then_some((Ok::<_, std::io::Error>("ten seconds' worth"), sent + 1))
        });
        let request = client.post(crate::terminal::URL).body(Body::wrap_stream(chunks));
        let began = Instant::now();
        let answer = request.send().await.unwrap();
        assert!(began.elapsed() >= secs(60));
        served += usize::from(server(&answer) == Some("a"));
    }
    let told = format!("{served} of 5 served by A, A {:?}", harness.state("a"));
    let setup = "attempt_timeout(10 s), five uploads of a minute each";
    enter(Part::Blame, 1, VIRTUAL, [setup, &told, "no news of A"]);
    assert_eq!(served, 5);
    assert_eq!((harness.state("a"), harness.of_provider("a").failures()), (State::Closed, 0));
    assert_eq!(seen.opened("a"), Vec::<Duration>::new());
}

#[tokio::test(start_paused = true)]
async fn what_no_provider_has_is_rejected_and_no_alarm() {
    let (harness, seen) = two(Script::status(404), Script::status(404), unchanged);
    for _ in 0..25 {
        let answer = harness.client.get("https://caller.test/v1/models/x").send().await.unwrap();
        assert_eq!(answer.status(), 404);
    }
    let snapshot = harness.chain.snapshot();
    let told = format!(
        "{} rejected, {} exhausted, alarms: {}",
        snapshot.rejected(),
        snapshot.exhausted(),
        seen.of(&What::Alarm).len()
    );
    let setup = "a GET that is 404 at A and at B, 25 times";
    let must = "25 rejected, none exhausted, no alarm";
    enter(Part::Blame, 2, VIRTUAL, [setup, &told, must]);
    assert_eq!((snapshot.rejected(), snapshot.exhausted()), (25, 0));
    assert_eq!(snapshot.fallback_ratio(), None, "they count toward no rate");
    assert_eq!(seen.of(&What::Rejected).len(), 25);
    assert_eq!((seen.of(&What::Alarm), seen.of(&What::Exhausted)), (vec![], vec![]));
    assert_eq!([harness.state("a"), harness.state("b")], [State::Closed; 2]);
}

// Hedges.

/// The recipe's judge: a refusal of Azure's content filter is final.
fn judge_of_the_recipe(outcome: &Outcome<'_>) -> Verdict {
    match (outcome.provider(), outcome.status().map(|status| status.as_u16())) {
        ("azure", Some(400)) => Verdict::Accept,
        _ => Verdict::standard(outcome),
    }
}

/// The hedge is answered at once with an error that the judge accepts; the first answers in 250 ms.
async fn outlives_a_hedge(at: usize, setup: &str, judge: fn(&Outcome<'_>) -> Verdict, error: u16) {
    let seen = Seen::default();
    let scripts = [("a", Script::status(200).after(ms(250))), ("azure", Script::status(error))];
    let harness = Harness::with(scripts, |chain| {
        let hedge = Hedge::after(ms(100)).max_extra(1.0);
        seen.by(chain.classify(judge).hedge(hedge))
    });
    let mut served = 0;
    for _ in 0..166 {
        let answer = harness.post().send().await.unwrap();
        served += usize::from(answer.status() == 200 && server(&answer) == Some("a"));
    }
    let told = format!(
        "{served} of 166 get A's 200, {} hedged, A {:?}",
        harness.asked("azure"),
        harness.state("a")
    );
    enter(Part::Blame, at, VIRTUAL, [setup, &told, "every caller gets A's 200"]);
    assert_eq!(served, 166);
    assert_eq!(harness.asked("azure"), 166);
    assert_eq!((harness.state("a"), seen.opened("a")), (State::Closed, vec![]));
}

#[tokio::test(start_paused = true)]
async fn a_dead_key_at_the_hedge_replaces_no_answer() {
    let setup = "Verdict::transient, B is hedged and its key is dead, A takes 250 ms";
    outlives_a_hedge(3, setup, Verdict::transient, 401).await;
}

#[tokio::test(start_paused = true)]
async fn a_refusal_at_the_hedge_that_a_judge_accepts_replaces_no_answer() {
    let setup = "the recipe's judge, Azure is hedged and answers 400, A takes 250 ms";
    outlives_a_hedge(4, setup, judge_of_the_recipe, 400).await;
}

#[tokio::test(start_paused = true)]
async fn hedges_are_earned_by_requests_that_were_sent() {
    let slow = Script::status(200).after(ms(250));
    let (harness, _) =
        two(slow, Script::status(200), |chain| chain.hedge(Hedge::after(ms(50)).max_extra(0.05)));
    for _ in 0..2000 {
        let refused = harness.client.get("https://caller.test/v1/files/..%2fx").send().await;
        assert!(refused.is_err());
    }
    assert!(harness.all_asked().is_empty());
    for _ in 0..60 {
        harness.ask().await;
    }
    let hedged = harness.asked("b");
    let told = format!("{hedged} of 60 hedged");
    let setup = "2,000 refused requests, then 60 slow ones, hedges at 5 %";
    enter(Part::Blame, 5, VIRTUAL, [setup, &told, "≤ 5 % of what was sent: 3"]);
    assert_eq!(hedged, 3);
}

// Streams and cooldowns.

#[tokio::test(start_paused = true)]
async fn a_few_failures_among_long_good_streams_open_no_breaker() {
    const EVENT: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"Hello\"}}]}\n\n";
    let stream = || {
        use futures_util::StreamExt;
        let first = futures_util::stream::iter([Ok::<_, std::io::Error>(EVENT)]);
        Body::wrap_stream(first.chain(futures_util::stream::pending()))
    };
    let streams = Script::answer(200, &[("content-type", "text/event-stream".into())], stream);
    let json = Script::answer(200, &[("content-type", "application/json".into())], || "{}".into());
    let (harness, seen) =
        two(streams.clone(), json, |chain| chain.inspect(Inspect::errors_in_success()));
    let mut open = Vec::new();
    let mut at_fifth = 0;
    for number in 1..=100 {
        let fails = number % 10 == 0;
        harness.tell("a", if fails { Script::status(500) } else { streams.clone() });
        let answer = harness.post().send().await.unwrap();
        assert_eq!(server(&answer), Some(if fails { "b" } else { "a" }), "{number}");
        if number == 50 {
            at_fifth = harness.of_provider("a").in_flight();
        }
        open.push(answer);
        sleep(ms(500)).await;
    }
    let failures = harness.of_provider("a").failures();
    let told = format!(
        "A {:?} after {failures} failures, {at_fifth} streams open at the fifth",
        harness.state("a")
    );
    let setup = "inspect, 10 % failures among 90 % long good streams";
    enter(Part::Blame, 6, VIRTUAL, [setup, &told, "stays closed"]);
    assert_eq!((failures, at_fifth), (10, 45));
    assert_eq!((harness.state("a"), seen.opened("a")), (State::Closed, vec![]));
}

#[tokio::test(start_paused = true)]
async fn an_hour_of_503_with_a_hint_of_a_second_opens_the_breaker() {
    let busy = Script::hint(503, "retry-after", "1");
    let (harness, seen) = two(busy, ok(), unchanged);
    let served = an_hour_of_callers(&harness, |_| secs(60)).await;
    let opened = seen.opened("a");
    let asked = harness.asked("a");
    let told = format!(
        "{} of 3,600 served, breaker open after {} s, A asked {asked} times",
        thousands(served),
        opened[0].as_secs(),
    );
    let setup = "A answers 503 with Retry-After: 1 for an hour";
    enter(Part::Blame, 7, VIRTUAL, [setup, &told, "the breaker opens"]);
    assert_eq!(served, 3600);
    assert!(opened[0] < secs(60), "{opened:?}");
    assert!(asked < 200, "{asked}");
}
