//! A chain's providers are replaced while requests are under way.

use reqwest_failover_testing::terminal;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use allocation_counter::measure;
use async_trait::async_trait;
use http::Extensions;
use proptest::prelude::*;
use reqwest::{Body, Request, Response};
use reqwest_failover::{
    Event, FailoverError, Hedge, Inspect, Provider, ProviderChain, Report, State,
};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware, Middleware, Next, Result};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use terminal::{Harness, Script, URL, dribble, lock, ms, provider, secs, yields};

fn names(chain: &ProviderChain) -> Vec<String> {
    chain.snapshot().providers().iter().map(|provider| provider.name().to_owned()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_request_in_flight_keeps_its_providers_and_a_later_one_has_the_new_ones() {
    let told = Arc::new(Notify::new());
    let harness = Harness::of([("a", Script::status(500).when(&told)), ("b", Script::status(200))]);
    let old = harness.spawn();
    yields(3).await;
    assert_eq!(harness.all_asked(), ["a"]);
    harness.chain.replace([provider("c"), provider("d")]).unwrap();
    assert_eq!(names(&harness.chain), ["c", "d"]);
    assert_eq!(harness.ask().await, "c");
    told.notify_one();
    assert_eq!(old.await.unwrap(), "b");
    assert_eq!(harness.all_asked(), ["a", "c", "b"]);
    // What the old request counted is nothing of the new providers.
    for (name, attempts) in [("c", 1), ("d", 0)] {
        let of_provider = harness.of_provider(name);
        assert_eq!((of_provider.attempts(), of_provider.failures()), (attempts, 0), "{name}");
    }
    assert_eq!(harness.chain.snapshot().requests(), 2);
}

#[tokio::test(start_paused = true)]
async fn the_same_provider_keeps_its_health_and_its_counts() {
    let harness = Harness::of([
        ("open", Script::status(200)),
        ("cooling", Script::hint(429, "retry-after", "60")),
        ("isolated", Script::status(200)),
        ("well", Script::status(200)),
    ]);
    harness.break_it("open").await;
    assert_eq!(harness.ask().await, "isolated");
    harness.chain.isolate("isolated").unwrap();
    let before = ["open", "cooling", "isolated", "well"].map(|name| harness.of_provider(name));
    let new_keys = ["well", "isolated", "cooling", "open"]
        .map(|name| terminal::keyless(name).bearer_auth(format!("new-key-of-{name}")));
    harness.chain.replace(new_keys).unwrap();
    assert_eq!(names(&harness.chain), ["well", "isolated", "cooling", "open"]);
    for before in before {
        let after = harness.of_provider(before.name());
        assert_eq!(format!("{after:?}"), format!("{before:?}"));
    }
    assert!(matches!(harness.state("open"), State::Open { .. }));
    assert!(matches!(harness.state("cooling"), State::CoolingDown { .. }));
    assert_eq!(harness.state("isolated"), State::Isolated);
    harness.chain.restore("isolated").unwrap();
    harness.chain.set_order(["isolated", "open", "cooling", "well"]).unwrap();
    assert_eq!(harness.ask().await, "isolated");
}

#[tokio::test(start_paused = true)]
async fn another_base_or_name_is_another_provider() {
    let harness = Harness::of([("a", Script::status(200)), ("b", Script::status(200))]);
    harness.break_it("a").await;
    harness.chain.isolate("b").unwrap();
    let elsewhere = Provider::new("a", "https://elsewhere.test/v1").bearer_auth("key-of-a");
    let renamed = Provider::new("c", "https://b.test/v1").bearer_auth("key-of-b");
    harness.chain.replace([elsewhere, renamed]).unwrap();
    for name in ["a", "c"] {
        let provider = harness.of_provider(name);
        assert_eq!((provider.state(), provider.attempts()), (State::Closed, 0), "{name}");
    }
    let error = harness.chain.isolate("b").unwrap_err();
    assert!(error.to_string().contains("a, c"), "{error}");
    assert!(harness.chain.set_order(["a", "b"]).is_err());
    harness.chain.isolate("a").unwrap();
    assert_eq!(harness.ask().await, "c");
    // It was away, so it begins anew.
    harness.chain.replace([provider("a"), provider("b")]).unwrap();
    assert_eq!(harness.state("a"), State::Closed);
    assert_eq!(harness.state("b"), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_key_in_the_path_may_be_new() {
    let keyed = |key| Provider::new("a", "https://a.test/{key}/v1").api_key_path(key);
    let scripts = [("a", Script::status(200))];
    let harness = Harness::of_providers(vec![keyed("first-key-1")], scripts, |chain| chain);
    harness.break_it("a").await;
    harness.chain.replace([keyed("second-key-2")]).unwrap();
    assert!(matches!(harness.state("a"), State::Open { .. }));
}

#[tokio::test(start_paused = true)]
async fn a_list_that_build_refuses_is_refused_and_changes_nothing() {
    let harness =
        Harness::with([("a", Script::status(200)), ("b", Script::status(200))], |chain| {
            chain.total_timeout(secs(10)).keep_header("x-kept-token")
        });
    let refused: [(Vec<Provider>, &str); 5] = [
        (vec![], "providers"),
        (vec![provider("c"), provider("c")], "name"),
        (vec![terminal::keyless("c").bearer_auth("${KEY}")], "bearer_auth"),
        (vec![provider("c").attempt_timeout(secs(11))], "attempt_timeout"),
        (vec![terminal::keyless("c").api_key_header("x-kept-token", "key")], "keep_header"),
    ];
    for (list, field) in refused {
        let error = harness.chain.replace(list).unwrap_err();
        assert!(error.to_string().contains(field), "{error}");
        assert_eq!(names(&harness.chain), ["a", "b"]);
    }
    assert_eq!(harness.ask().await, "a");
}

#[tokio::test(start_paused = true)]
async fn a_limit_of_the_list_holds_for_requests_that_begin_with_it() {
    let slow = Script::status(200).after(secs(20));
    let harness = Harness::of([("a", slow), ("b", Script::status(200))]);
    let old = harness.spawn();
    yields(3).await;
    harness.chain.replace([provider("a").attempt_timeout(secs(1)), provider("b")]).unwrap();
    assert_eq!(harness.ask().await, "b");
    assert_eq!(old.await.unwrap(), "a");
}

/// The message of the only attempt of a request.
async fn message_of(client: &ClientWithMiddleware) -> String {
    let result = client.post(URL).body("{}").send().await;
    let report = match &result {
        Ok(response) => Report::of(response).unwrap().clone(),
        Err(error) => FailoverError::find(error).unwrap().report().clone(),
    };
    report.attempts()[0].message().unwrap().to_owned()
}

#[tokio::test(start_paused = true)]
async fn an_old_key_is_removed_from_messages_as_long_as_a_request_may_use_it() {
    const OLD: &str = "first-4711-zebra-quartz";
    const NEW: &str = "later-0815-violin-garnet";
    let keyed = |key| terminal::keyless("a").bearer_auth(key);
    let said = "you sent first-4711-zebra-quartz and later-0815-violin-garnet";
    let told = Arc::new(Notify::new());
    let scripts = [("a", Script::fail_with(said).when(&told))];
    let harness = Harness::of_providers(vec![keyed(OLD)], scripts, |chain| chain);
    let client = harness.client.clone();
    let old = tokio::spawn(async move { message_of(&client).await });
    yields(3).await;
    harness.chain.replace([keyed(NEW)]).unwrap();
    harness.tell("a", Script::fail_with(said));
    let shown = message_of(&harness.client).await;
    assert!(!shown.contains(OLD) && !shown.contains(NEW), "{shown}");
    assert!(shown.contains("[redacted]"), "{shown}");
    told.notify_one();
    let shown = old.await.unwrap();
    assert!(!shown.contains(OLD) && !shown.contains(NEW), "{shown}");
    // No request is left that has it, and so it is kept nowhere.
    let shown = message_of(&harness.client).await;
    assert!(shown.contains(OLD) && !shown.contains(NEW), "{shown}");
}

#[tokio::test(start_paused = true)]
async fn an_answer_counts_as_in_flight_until_it_is_over_though_its_list_was_replaced() {
    let limited = |name| provider(name).max_in_flight(1);
    let answers = || Script::answer(200, &[], || dribble(&["a", "b"], 1));
    let scripts = [("a", answers()), ("b", answers())];
    let harness = Harness::of_providers(vec![limited("a"), provider("b")], scripts, |chain| chain);
    let held = harness.post().send().await.unwrap();
    assert_eq!(harness.state("a"), State::AtCapacity);
    harness.chain.replace([limited("a"), provider("b")]).unwrap();
    assert_eq!(harness.state("a"), State::AtCapacity);
    assert_eq!(harness.ask().await, "b");
    drop(held);
    assert_eq!(harness.state("a"), State::Closed);
    let held = harness.post().send().await.unwrap();
    harness.chain.replace([limited("c"), limited("d")]).unwrap();
    harness.tell("c", answers());
    let of_other = harness.post().send().await.unwrap();
    harness.chain.replace([limited("a"), limited("c")]).unwrap();
    assert_eq!(harness.of_provider("a").in_flight(), 0, "another one of that name");
    assert_eq!(harness.state("c"), State::AtCapacity);
    drop(held);
    assert_eq!(harness.state("c"), State::AtCapacity);
    drop(of_other);
    assert_eq!(harness.state("c"), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_breaks_counts_for_its_provider_though_its_list_was_replaced() {
    let broken = Arc::new(Mutex::new(Vec::new()));
    let seen = broken.clone();
    let stream = Script::answer(200, &[("content-type", "text/event-stream".into())], || {
        let content = "data: {\"choices\":[{\"delta\":{\"content\":\"x\"}}]}\n\n";
        let chunks = [Ok(content), Err(std::io::Error::other("scripted"))];
        Body::wrap_stream(futures_util::stream::iter(chunks))
    });
    let harness = Harness::with([("a", stream)], |chain| {
        chain.inspect(Inspect::errors_in_success()).observe(move |event| {
            if let Event::StreamBroken { provider, .. } = event {
                lock(&seen).push((*provider).to_owned());
            }
        })
    });
    let [kept, left_out] = [harness.post().send().await, harness.post().send().await];
    assert_eq!(harness.of_provider("a").in_flight(), 2);
    harness.chain.replace([provider("a"), provider("b")]).unwrap();
    assert!(kept.unwrap().bytes().await.is_err());
    let a = harness.of_provider("a");
    assert_eq!((a.failures(), a.in_flight()), (1, 1));
    harness.chain.replace([provider("b")]).unwrap();
    harness.chain.replace([provider("b"), provider("a")]).unwrap();
    assert!(left_out.unwrap().bytes().await.is_err());
    assert_eq!(*lock(&broken), ["a", "a"]);
    for name in ["a", "b"] {
        let provider = harness.of_provider(name);
        assert_eq!((provider.failures(), provider.in_flight()), (0, 0), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn more_providers_than_requests_in_flight_leave_room_for_are_refused_until_they_are_over() {
    let harness = Harness::of([("p0", Script::hang())]);
    let mut waiting = vec![harness.spawn()];
    yields(3).await;
    for at in 1..128 {
        let name = format!("p{at}");
        harness.chain.replace([provider(&name)]).unwrap();
        harness.tell(&name, Script::hang());
        waiting.push(harness.spawn());
        yields(3).await;
    }
    let error = harness.chain.replace([provider("one-more")]).unwrap_err();
    assert!(error.to_string().contains("requests in flight"), "{error}");
    assert_eq!(names(&harness.chain), ["p127"]);
    harness.chain.replace([provider("p127")]).unwrap();
    waiting.remove(5).abort();
    yields(3).await;
    harness.chain.replace([provider("one-more")]).unwrap();
    assert_eq!(harness.of_provider("one-more").attempts(), 0);
    assert_eq!(harness.ask().await, "one-more");
}

/// Which number of a key a request must at least be sent.
#[derive(Clone)]
struct AtLeast(usize);

/// Counts keys that are older than they may be.
#[derive(Clone, Default)]
struct Gate(Arc<[AtomicUsize; 2]>);

fn number_of(request: &Request) -> usize {
    let value = request.headers()["authorization"].to_str().unwrap();
    value.rsplit('-').next().unwrap().parse().unwrap()
}

#[async_trait]
impl Middleware for Gate {
    async fn handle(
        &self,
        request: Request,
        own: &mut Extensions,
        _: Next<'_>,
    ) -> Result<Response> {
        let [asked, old] = &*self.0;
        asked.fetch_add(1, Ordering::Relaxed);
        let AtLeast(least) = own.get::<AtLeast>().unwrap();
        if number_of(&request) < *least {
            old.fetch_add(1, Ordering::Relaxed);
        }
        yields(3).await;
        let fails = request.url().host_str() == Some("a.test");
        let status = if fails { 500 } else { 200 };
        Ok(http::Response::builder().status(status).body(Body::default()).unwrap().into())
    }
}

fn numbered(number: usize) -> [Provider; 2] {
    ["a", "b"].map(|name| terminal::keyless(name).bearer_auth(format!("key-of-{name}-{number}")))
}

fn gated() -> (ProviderChain, ClientWithMiddleware, Gate) {
    let chain = ProviderChain::builder(numbered(0)).claim("https://caller.test/v1");
    let chain = chain.build().unwrap();
    let gate = Gate::default();
    let below = reqwest::Client::builder().no_proxy().build().unwrap();
    let client = ClientBuilder::new(below).with(chain.clone()).with(gate.clone()).build();
    (chain, client, gate)
}

async fn is_served(client: &ClientWithMiddleware, least: usize) -> bool {
    let request = client.post(URL).body("{}").with_extension(AtLeast(least));
    request.send().await.is_ok_and(|response| response.status() == 200)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn ten_thousand_replacements_under_load_lose_no_request_and_send_no_old_key() {
    const REPLACEMENTS: usize = 10_000;
    let (chain, client, gate) = gated();
    let replaced = Arc::new(AtomicUsize::new(0));
    let load: Vec<JoinHandle<[usize; 2]>> = (0..8)
        .map(|_| {
            let (client, replaced) = (client.clone(), replaced.clone());
            tokio::spawn(async move {
                let [mut sent, mut lost] = [0, 0];
                loop {
                    let least = replaced.load(Ordering::SeqCst);
                    sent += 1;
                    lost += usize::from(!is_served(&client, least).await);
                    if least == REPLACEMENTS {
                        return [sent, lost];
                    }
                }
            })
        })
        .collect();
    for number in 1..=REPLACEMENTS {
        chain.replace(numbered(number)).unwrap();
        replaced.store(number, Ordering::SeqCst);
        tokio::task::yield_now().await;
    }
    let [mut sent, mut lost] = [0, 0];
    for task in load {
        let [of_task, lost_of_task] = task.await.unwrap();
        sent += of_task;
        lost += lost_of_task;
    }
    let [asked, old] = &*gate.0;
    let (asked, old) = (asked.load(Ordering::Relaxed), old.load(Ordering::Relaxed));
    println!("{REPLACEMENTS} replacements, {sent} requests, {asked} attempts");
    println!("{lost} requests lost, {old} old keys sent");
    assert_eq!((lost, old), (0, 0));
    assert!(sent >= 8 && asked >= sent);
    let snapshot = chain.snapshot();
    assert_eq!(snapshot.requests(), sent as u64);
    let attempts: u64 = snapshot.providers().iter().map(|provider| provider.attempts()).sum();
    assert_eq!(attempts, asked as u64, "no count is lost");
    assert!(snapshot.providers().iter().all(|provider| provider.in_flight() == 0));
}

#[test]
fn ten_thousand_replacements_hold_no_memory() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (chain, client, _gate) = gated();
    let replace = |from: usize, times: usize| {
        runtime.block_on(async {
            for number in from..from + times {
                let ([before, after], next) = ([number, number + 1], numbered(number + 1));
                let old = is_served(&client, before);
                let new = async {
                    yields(1).await;
                    chain.replace(next).unwrap();
                    is_served(&client, after).await
                };
                assert_eq!(tokio::join!(old, new), (true, true));
            }
        });
    };
    replace(0, 500);
    let held = measure(|| replace(500, 10_000)).bytes_current;
    println!("10000 replacements hold {held} bytes");
    assert!(held < 16 * 1024, "{held} bytes");
}

/// What a request must be sent to each host, and whose attempt it is then.
#[derive(Clone)]
struct Began(Arc<HashMap<String, (String, usize)>>);

/// What each host does with a request.
#[derive(Clone, Copy, Debug)]
enum Does {
    Serves,
    ServesLate,
    Fails,
    Rests,
    Hangs,
    Streams,
    Breaks,
}

#[derive(Clone)]
struct Plan([Does; 4]);

/// Counts attempts, and those with a key that is not the one that the request began with.
#[derive(Clone, Default)]
struct Judge(Arc<Mutex<Found>>);

#[derive(Default)]
struct Found {
    /// The attempts at each of the providers that ever were.
    attempts: HashMap<usize, u64>,
    wrong_keys: Vec<String>,
}

#[async_trait]
impl Middleware for Judge {
    async fn handle(
        &self,
        request: Request,
        own: &mut Extensions,
        _: Next<'_>,
    ) -> Result<Response> {
        let host = request.url().host_str().unwrap().to_owned();
        let sent = request.headers()["authorization"].to_str().unwrap().to_owned();
        let Began(began) = own.get::<Began>().unwrap();
        let Plan(plan) = own.get::<Plan>().unwrap();
        {
            let mut judge = lock(&self.0);
            match began.get(&host) {
                Some((key, presence)) if sent == format!("Bearer {key}") => {
                    *judge.attempts.entry(*presence).or_default() += 1;
                }
                _ => judge.wrong_keys.push(format!("{host} was sent {sent}")),
            }
        }
        let does = plan[usize::from(host.as_bytes()[0] - b'a') % 4];
        let answer = |status: u16| http::Response::builder().status(status);
        let content = "data: {\"choices\":[{\"delta\":{\"content\":\"x\"}}]}\n\n";
        let stream = |last: std::io::Result<&'static str>| {
            let chunks = futures_util::stream::iter([Ok(content), last]);
            let answer = answer(200).header("content-type", "text/event-stream");
            answer.body(Body::wrap_stream(chunks)).unwrap()
        };
        let response = match does {
            Does::Serves => answer(200).body(Body::default()).unwrap(),
            Does::ServesLate => {
                tokio::time::sleep(ms(300)).await;
                answer(200).body(Body::from("late")).unwrap()
            }
            Does::Fails => answer(500).body(Body::default()).unwrap(),
            Does::Rests => answer(429).header("retry-after", "2").body(Body::default()).unwrap(),
            Does::Hangs => std::future::pending().await,
            Does::Streams => stream(Ok("data: [DONE]\n\n")),
            Does::Breaks => stream(Err(std::io::Error::other("scripted"))),
        };
        Ok(response.into())
    }
}

#[derive(Clone, Debug)]
enum Op {
    /// Which names, in which order, with which of two bases each.
    Replace(Vec<(usize, bool)>),
    Reorder(usize),
    Isolate(usize),
    Restore(usize),
    Ask([Does; 4]),
    Drop(usize),
    ReadAll(usize),
    Wait(u64),
}

fn does() -> impl Strategy<Value = Does> {
    use Does::*;
    prop_oneof![
        4 => Just(Serves), 2 => Just(ServesLate), 3 => Just(Fails), 1 => Just(Rests),
        1 => Just(Hangs), 2 => Just(Streams), 2 => Just(Breaks),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let list = prop::sample::subsequence(vec![0, 1, 2, 3], 1..=4).prop_shuffle();
    let list = (list, any::<[bool; 4]>());
    let list = list.prop_map(|(names, elsewhere)| {
        names.into_iter().map(|name| (name, elsewhere[name] && elsewhere[0])).collect()
    });
    prop_oneof![
        3 => list.prop_map(Op::Replace),
        1 => any::<usize>().prop_map(Op::Reorder),
        1 => (0..4_usize).prop_map(Op::Isolate),
        2 => (0..4_usize).prop_map(Op::Restore),
        8 => [does(), does(), does(), does()].prop_map(Op::Ask),
        2 => any::<usize>().prop_map(Op::Drop),
        2 => any::<usize>().prop_map(Op::ReadAll),
        3 => (1..3_000_u64).prop_map(Op::Wait),
    ]
}

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// One provider of the current list.
struct Present {
    name: usize,
    elsewhere: bool,
    key: String,
    /// Which of all that ever were it is: it stays so while lists keep it.
    presence: usize,
}

impl Present {
    fn host(&self) -> String {
        format!("{}{}.test", NAMES[self.name], if self.elsewhere { "-elsewhere" } else { "" })
    }

    fn provider(&self) -> Provider {
        let base = format!("https://{}/v1", self.host());
        let provider = Provider::new(NAMES[self.name], base).bearer_auth(self.key.as_str());
        if self.name == 1 { provider.max_in_flight(2) } else { provider }
    }
}

async fn play(ops: Vec<Op>, is_hedged: bool) {
    let mut keys = 0;
    let mut presences = 0;
    let mut next = |list: &[(usize, bool)], before: &[Present]| -> Vec<Present> {
        let present = |&(name, elsewhere): &(usize, bool)| {
            keys += 1;
            let same = before.iter().find(|it| it.name == name && it.elsewhere == elsewhere);
            let presence = same.map_or_else(
                || {
                    presences += 1;
                    presences
                },
                |same| same.presence,
            );
            Present { name, elsewhere, key: format!("key-number-{keys}"), presence }
        };
        list.iter().map(present).collect()
    };
    let mut current = next(&[(0, false), (1, false), (2, false)], &[]);
    let chain = ProviderChain::builder(current.iter().map(Present::provider))
        .claim("https://caller.test/v1")
        .inspect(Inspect::errors_in_success())
        .attempt_timeout(secs(1));
    let chain = if is_hedged { chain.hedge(Hedge::after(ms(100)).max_extra(1.0)) } else { chain };
    let chain = chain.build().unwrap();
    let judge = Judge::default();
    let below = reqwest::Client::builder().no_proxy().build().unwrap();
    let client = ClientBuilder::new(below).with(chain.clone()).with(judge.clone()).build();
    let mut asked: Vec<JoinHandle<Result<Response>>> = Vec::new();
    let mut begun = 0;
    for op in ops {
        match op {
            Op::Replace(list) => {
                current = next(&list, &current);
                chain.replace(current.iter().map(Present::provider)).unwrap();
                let listed: Vec<_> = current.iter().map(|it| NAMES[it.name]).collect();
                assert_eq!(names(&chain), listed);
            }
            Op::Reorder(by) => {
                let mut order = names(&chain);
                let by = by % order.len();
                order.rotate_left(by);
                chain.set_order(&order).unwrap();
                assert_eq!(names(&chain), order);
            }
            Op::Isolate(name) => {
                let is_known = current.iter().any(|it| it.name == name);
                assert_eq!(chain.isolate(NAMES[name]).is_ok(), is_known);
            }
            Op::Restore(name) => {
                let is_known = current.iter().any(|it| it.name == name);
                assert_eq!(chain.restore(NAMES[name]).is_ok(), is_known);
            }
            Op::Ask(plan) => {
                let began = current.iter().map(|it| (it.host(), (it.key.clone(), it.presence)));
                let began = Began(Arc::new(began.collect()));
                let request = client.post(URL).body("{}");
                let request = request.with_extension(began).with_extension(Plan(plan));
                asked.push(tokio::spawn(request.send()));
                begun += 1;
                yields(5).await;
            }
            Op::Drop(at) if !asked.is_empty() => {
                let at = at % asked.len();
                let dropped = asked.swap_remove(at);
                dropped.abort();
                _ = dropped.await;
            }
            Op::ReadAll(at) if !asked.is_empty() => {
                let at = at % asked.len();
                if let Ok(response) = asked.swap_remove(at).await.unwrap() {
                    _ = response.bytes().await;
                }
            }
            Op::Wait(time) => tokio::time::sleep(ms(time)).await,
            Op::Drop(_) | Op::ReadAll(_) => {}
        }
    }
    for asked in asked {
        asked.abort();
        _ = asked.await;
    }
    yields(5).await;
    let judge = lock(&judge.0);
    assert!(judge.wrong_keys.is_empty(), "{:?}", judge.wrong_keys);
    let snapshot = chain.snapshot();
    assert_eq!(snapshot.requests(), begun);
    for it in &current {
        let provider = snapshot.provider(NAMES[it.name]).unwrap();
        let attempts = judge.attempts.get(&it.presence).copied().unwrap_or_default();
        assert_eq!(provider.attempts(), attempts, "{provider:?}");
        assert_eq!(provider.in_flight(), 0, "{provider:?}");
        assert_ne!(provider.state(), State::Probing, "{provider:?}");
        assert!(provider.failures() <= attempts, "{provider:?}");
    }
}

#[test]
fn every_order_of_replacements_and_requests_keeps_keys_and_counts_apart() {
    let ops = prop::collection::vec(op(), 1..60);
    proptest!(ProptestConfig::with_cases(300), |(ops in ops, is_hedged in any::<bool>())| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(play(ops, is_hedged));
    });
}

#[tokio::test(start_paused = true)]
async fn a_token_from_before_a_replacement_is_removed_from_messages() {
    let sourced = || {
        terminal::keyless("a")
            .bearer_auth_with(|| async { Ok::<_, std::io::Error>("token-of-a-1234".to_owned()) })
    };
    let echo = || Body::from(r#"{"error":{"message":"saw token-of-a-1234"}}"#);
    let scripts = [("a", Script::status(200)), ("b", Script::answer(500, &[], echo))];
    let harness = Harness::of_providers(vec![sourced(), provider("b")], scripts, |chain| chain);
    assert_eq!(harness.ask().await, "a");
    harness.chain.replace([provider("b"), sourced()]).unwrap();
    let response = harness.post().send().await.unwrap();
    let message = Report::of(&response).unwrap().attempts()[0].message().unwrap();
    assert!(message.contains("saw") && !message.contains("1234"), "{message}");
}
