//! Eight processes over a real server. Each test prints its figures:
//! `cargo test -p reqwest-failover-redis --test fleet outage -- --nocapture`.
//!
//! `FLEET_ROUNDS` sets how often each outage is played, and `REDIS_SERVER` names another program.

mod fleet;
mod member;

use std::time::Duration;

use fleet::{Calls, Chain, Fleet, Kind, StandIn, quantile};
use member::micros;
use reqwest_failover_testing::redis::{Mode, Proxy, RedisServer};
use tokio::time::sleep;

/// One process. It does nothing unless a test has started it.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "it is a process of the other tests"]
async fn member() {
    if std::env::var_os("FLEET_MEMBER").is_some() {
        member::run().await;
    }
}

/// One at a time: they measure.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

const PROCESSES: usize = 8;
/// A machine that is busy with something else delays what processes tell each other. What misses its limit is
/// measured again, so many times in all.
const TRIES: usize = 5;
/// Of each process, in a second.
const RATE: f64 = 10.0;
/// What a stand-in takes to answer.
const TAKES: Duration = Duration::from_millis(5);
/// The defaults.
const BREAKS: [Duration; 2] = [Duration::from_secs(30), Duration::from_secs(300)];

macro_rules! server {
    () => {
        match RedisServer::start(&[]) {
            Some(server) => server,
            None => return,
        }
    };
}

fn rounds() -> usize {
    std::env::var("FLEET_ROUNDS").map_or(10, |rounds| rounds.parse().expect("a number"))
}

fn bases(providers: &[&StandIn]) -> String {
    providers.iter().map(|provider| provider.base_url()).collect::<Vec<_>>().join(",")
}

fn millis(micros: u64) -> f64 {
    micros as f64 / 1000.0
}

/// What outages of one kind came to.
#[derive(Default)]
struct Outages {
    /// Requests that the provider received after it had failed, in each.
    wasted: Vec<usize>,
    /// From the first process that knew to each of the others, in microseconds.
    known_after: Vec<u64>,
    failed: usize,
}

/// Plays outages of this kind, each with new chains.
async fn play(
    fleet: &mut Fleet,
    store: Option<&str>,
    kind: Kind,
    rounds: usize,
    lasts: Duration,
) -> Outages {
    let (first, second) = (StandIn::start(TAKES).await, StandIn::start(TAKES).await);
    let event = if kind == Kind::Limited { "cooling" } else { "opened" };
    let mut outages = Outages::default();
    for _ in 0..rounds {
        first.turn(Kind::Well);
        let namespace = format!("{:016x}", fastrand::u64(..));
        let bases = bases(&[&first, &second]);
        let chain = Chain { namespace: &namespace, store, bases: &bases, breaks: BREAKS };
        fleet.chain("a", &chain).await;
        fleet.go("a", RATE).await;
        sleep(Duration::from_millis(400)).await;
        let began = first.turn(kind);
        sleep(lasts).await;
        let calls = fleet.halt("a").await;
        outages.failed += calls.failed;
        outages.wasted.push(first.received(began).len());
        let known = fleet.first("a", event, "p0", began);
        if store.is_some() {
            assert_eq!(known.len(), fleet.len(), "{kind:?}: all know");
        }
        let earliest = known.iter().min().expect("one knows");
        let mut after: Vec<u64> = known.iter().map(|at| at - earliest).collect();
        after.sort_unstable();
        // The first one is not told.
        outages.known_after.extend(&after[1..]);
    }
    outages
}

fn print_row(name: &str, outages: &Outages) {
    let Outages { wasted, known_after, failed } = outages;
    println!(
        "  {name:<28} {:>6} {:>4} {:>4}   {:>8.1} {:>8.1}   {failed:>6}",
        quantile(wasted, 0.5),
        quantile(wasted, 0.9),
        quantile(wasted, 1.0),
        millis(quantile(known_after, 0.5)),
        millis(quantile(known_after, 0.99)),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn outage() {
    let _alone = ALONE.lock().await;
    let server = server!();
    let mut fleet = Fleet::start(PROCESSES);
    let url = server.url();
    let (second, longer) = (Duration::from_secs(1), Duration::from_millis(1500));
    println!(
        "\n{PROCESSES} processes with {RATE} requests/s each, {} outages of each kind, {}",
        rounds(),
        reqwest_failover_testing::redis::program()
    );
    println!("                                wasted attempts   others know after   failed");
    println!("                                 p50  p90  max      p50 ms   p99 ms    calls");

    let alone = play(&mut fleet, None, Kind::Status(500), 3, longer).await;
    print_row("alone, 500", &alone);
    let alone_limited = play(&mut fleet, None, Kind::Limited, 3, longer).await;
    print_row("alone, 429 for 30 s", &alone_limited);

    let mut failed = alone.failed + alone_limited.failed;
    let mut missed = Vec::new();
    for (name, kind, p50, max) in [
        ("shared, 500", Kind::Status(500), 6, 10),
        ("shared, 503", Kind::Status(503), 6, 10),
        ("shared, 401", Kind::Status(401), 6, 10),
        ("shared, closed unanswered", Kind::Fin, 6, 10),
        ("shared, reset", Kind::Reset, 6, 10),
        ("shared, 429 for 30 s", Kind::Limited, 2, PROCESSES),
    ] {
        for attempt in 1..=TRIES {
            let outages = play(&mut fleet, Some(&url), kind, rounds(), second).await;
            print_row(name, &outages);
            failed += outages.failed;
            if quantile(&outages.wasted, 0.5) <= p50
                && quantile(&outages.wasted, 1.0) <= max
                && quantile(&outages.known_after, 0.99) <= 50_000
            {
                break;
            }
            if attempt == TRIES {
                missed.push((name, outages.wasted));
            }
        }
    }

    let mut admin = redis::Client::open(&*url).unwrap().get_connection().unwrap();
    let rights = ["resetchannels", "~*", "+@all", "on", ">password"];
    redis::cmd("ACL").arg("SETUSER").arg("polls").arg(&rights).exec(&mut admin).unwrap();
    let polling = format!("redis://polls:password@127.0.0.1:{}", server.port());
    let polled = play(&mut fleet, Some(&polling), Kind::Status(500), 3, longer).await;
    print_row("polled only, 500", &polled);

    assert!(missed.is_empty(), "p50, max or 50 ms: {missed:?}");
    assert!(quantile(&polled.known_after, 0.99) <= 1_000_000, "{:?}", polled.known_after);
    // Alone each process pays on its own.
    assert!(quantile(&alone.wasted, 0.5) >= 40, "{:?}", alone.wasted);
    assert!(quantile(&alone_limited.wasted, 0.5) >= PROCESSES, "{:?}", alone_limited.wasted);
    assert_eq!(failed + polled.failed, 0, "the second provider serves");
}

#[tokio::test(flavor = "multi_thread")]
async fn probes() {
    let _alone = ALONE.lock().await;
    let server = server!();
    let mut fleet = Fleet::start(PROCESSES);
    let mut each = f64::MAX;
    println!();
    for _ in 0..TRIES {
        each = probes_of_each_break(&mut fleet, &server.url()).await;
        if each <= 1.02 {
            break;
        }
    }
    assert!(each <= 1.02, "{each}");
}

async fn probes_of_each_break(fleet: &mut Fleet, store: &str) -> f64 {
    let mut down = Vec::new();
    for _ in 0..16 {
        down.push(StandIn::start(TAKES).await);
    }
    let up = StandIn::start(TAKES).await;
    let bases = bases(&down.iter().chain([&up]).collect::<Vec<_>>());
    let breaks = [Duration::from_secs(1), Duration::from_secs(4)];
    let namespace = format!("{:016x}", fastrand::u64(..));
    let chain = Chain { namespace: &namespace, store: Some(store), bases: &bases, breaks };
    fleet.chain("a", &chain).await;
    fleet.go("a", RATE).await;
    sleep(Duration::from_secs(2)).await;
    // One after the other, as sixteen outages and not as one.
    let mut went_down = Vec::new();
    for provider in &down {
        went_down.push(provider.turn(Kind::Status(500)));
        sleep(Duration::from_millis(400)).await;
    }
    sleep(Duration::from_secs(35)).await;
    let calls = fleet.halt("a").await;
    assert_eq!(calls.failed, 0);

    let (mut breaks, mut probes) = (0, 0);
    for (provider, went_down) in down.iter().zip(went_down) {
        // What comes soon after another one is of the same break: one lasts half a second or more.
        let received = provider.received(went_down);
        let mut groups: Vec<Vec<u64>> = Vec::new();
        for at in received {
            match groups.last_mut() {
                Some(group) if at - group.last().unwrap() < 350_000 => group.push(at),
                _ => groups.push(vec![at]),
            }
        }
        // The first ones opened it.
        breaks += groups.len() - 1;
        probes += groups[1..].iter().map(Vec::len).sum::<usize>();
    }
    let each = probes as f64 / breaks as f64;
    println!("{probes} probes of {PROCESSES} processes in {breaks} breaks: {each:.3} a break");
    assert!(breaks >= 200, "{breaks} breaks");
    each
}

/// In each process one chain shares its health and another does not, and both call in turn: what the machine
/// does to one it does to the other.
#[tokio::test(flavor = "multi_thread")]
async fn store_faults() {
    let _alone = ALONE.lock().await;
    let mut server = server!();
    let proxy = Proxy::start(server.addr()).await;
    let mut fleet = Fleet::start(PROCESSES);
    let takes = Duration::from_millis(50);
    let (first, second) = (StandIn::start(takes).await, StandIn::start(takes).await);
    let bases = bases(&[&first, &second]);
    let url = proxy.url();
    let breaks = [Duration::from_secs(2), Duration::from_secs(4)];
    let mut chain = Chain { namespace: "faults", store: Some(&url), bases: &bases, breaks };
    fleet.chain("shared", &chain).await;
    chain.store = None;
    fleet.chain("alone", &chain).await;

    let (mut failed, mut change) = (0, f64::MAX);
    for _ in 0..TRIES {
        println!("\n                    calls  failed   p99 ms: shared   alone");
        let (mut shared, mut alone) = (Vec::new(), Vec::new());
        for fault in ["none", "killed", "stopped", "slow", "black hole", "reset", "emptied"] {
            let (with, without) = under_fault(&mut fleet, &mut server, &proxy, fault).await;
            print_calls(fault, &with, &without);
            failed += with.failed + without.failed;
            shared.extend(with.took);
            alone.extend(without.took);
        }
        let [shared, alone] =
            [shared, alone].map(|took| Calls { served: took.len(), failed: 0, took });
        change = print_calls("all", &shared, &alone);
        println!("  {change:+.1} %");
        if change <= 5.0 {
            break;
        }
    }

    // Redis goes away in the middle of an outage, while one process may probe for all.
    let began = first.turn(Kind::Status(500));
    fleet.go("shared", RATE).await;
    fleet.until_all("shared", "opened", "p0", began, Duration::from_secs(2)).await;
    sleep(Duration::from_secs(3)).await;
    server.kill();
    sleep(Duration::from_secs(1)).await;
    let back = first.turn(Kind::Well);
    // The longest break, and 3 s for which a probe of another process may be waited for.
    let within = breaks[1] + Duration::from_secs(4);
    let closed = fleet.until_all("shared", "closed", "p0", back, within).await;
    let last = closed.iter().max().unwrap() - back;
    println!(
        "  the provider is back while Redis is gone: all ask it within {:.1} s",
        millis(last) / 1000.0
    );
    failed += fleet.halt("shared").await.failed;

    assert_eq!(failed, 0, "a store that fails fails no call");
    assert!(change <= 5.0, "{change:+.1} %");
}

/// Both chains call while the store fails for 4 s.
async fn under_fault(
    fleet: &mut Fleet,
    server: &mut RedisServer,
    proxy: &Proxy,
    fault: &str,
) -> (Calls, Calls) {
    fleet.go("shared", 2.0 * RATE).await;
    fleet.go("alone", 2.0 * RATE).await;
    sleep(Duration::from_millis(500)).await;
    match fault {
        "killed" => server.kill(),
        "stopped" => server.pause(),
        "slow" => proxy.set(Mode::Delay(Duration::from_millis(300))),
        "black hole" => proxy.set(Mode::BlackHole),
        "reset" => proxy.set(Mode::Reset),
        "emptied" => {
            let client = redis::Client::open(server.url()).unwrap();
            redis::cmd("FLUSHALL").exec(&mut client.get_connection().unwrap()).unwrap();
        }
        _ => {}
    }
    sleep(Duration::from_secs(4)).await;
    match fault {
        "killed" => server.restart(),
        "stopped" => server.resume(),
        _ => proxy.set(Mode::Pass),
    }
    sleep(Duration::from_millis(500)).await;
    (fleet.halt("shared").await, fleet.halt("alone").await)
}

/// Returns by how much the 99th percentile changed, in percent.
fn print_calls(name: &str, shared: &Calls, alone: &Calls) -> f64 {
    let [p99, p99_alone] = [shared, alone].map(|calls| millis(quantile(&calls.took, 0.99)));
    let (calls, failed) = (shared.took.len(), shared.failed);
    println!("  {name:<16} {calls:>6} {failed:>7}          {p99:>7.1} {p99_alone:>7.1}");
    (p99 / p99_alone - 1.0) * 100.0
}

#[tokio::test(flavor = "multi_thread")]
async fn reconverge() {
    let _alone = ALONE.lock().await;
    let mut server = server!();
    let mut fleet = Fleet::start(PROCESSES);
    let mut providers = Vec::new();
    for _ in 0..3 {
        providers.push(StandIn::start(TAKES).await);
    }
    let bases = bases(&providers.iter().collect::<Vec<_>>());
    let url = server.url();
    let chain = Chain { namespace: "again", store: Some(&url), bases: &bases, breaks: BREAKS };
    fleet.chain("a", &chain).await;

    let began = micros();
    assert_eq!(fleet.one(0, "isolate a p0").await, "true");
    assert_eq!(fleet.one(1, "order a p2 p1 p0").await, "true");
    // The two that gave an order emit it as well.
    fleet.until_all("a", "steered", "p0", began, Duration::from_secs(2)).await;
    fleet.until_all("a", "steered", "-", began, Duration::from_secs(2)).await;

    println!();
    for fault in ["killed and restarted empty", "stopped and resumed"] {
        let down = micros();
        if fault.starts_with("killed") {
            server.kill()
        } else {
            server.pause()
        }
        fleet.until_all("a", "lost", "-", down, Duration::from_secs(3)).await;
        sleep(Duration::from_secs(4)).await;
        let back = micros();
        if fault.starts_with("killed") {
            server.restart()
        } else {
            server.resume()
        }
        let joined = fleet.until_all("a", "joined", "-", back, Duration::from_secs(6)).await;
        let after: Vec<u64> = joined.iter().map(|at| at - back).collect();
        let [half, last] = [0.5, 1.0].map(|share| millis(quantile(&after, share)) / 1000.0);
        println!("  {fault}: joined again after p50 {half:.1} s, the last one after {last:.1} s");
        assert!(last <= 3.0, "{last} s");

        // What operators want is in the store again, and holds for one that starts now.
        sleep(Duration::from_secs(1)).await;
        fleet.add();
        fleet.chain("b", &chain).await;
        let newest = fleet.len() - 1;
        assert_eq!(fleet.one(newest, "state b").await, "p2:Closed,p1:Closed,p0:Isolated true");
        for provider in &providers {
            provider.turn(Kind::Well);
        }
        let began = micros();
        fleet.one(newest, "go b 50").await;
        sleep(Duration::from_millis(300)).await;
        fleet.one(newest, "halt b").await;
        let received: Vec<usize> = providers.iter().map(|of| of.received(began).len()).collect();
        assert!(received[..2] == [0, 0] && received[2] > 0, "the order is lost: {received:?}");
        for state in fleet.all("state b").await {
            assert_eq!(state, "p2:Closed,p1:Closed,p0:Isolated true");
        }
        fleet.chain("a", &chain).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn recovery() {
    let _alone = ALONE.lock().await;
    let server = server!();
    let mut fleet = Fleet::start(PROCESSES);
    let (first, second) = (StandIn::start(TAKES).await, StandIn::start(TAKES).await);
    let bases = bases(&[&first, &second]);
    let breaks = [Duration::from_secs(2), Duration::from_secs(8)];
    let url = server.url();
    println!("\n  after an outage of 6 s          first closed   all closed after that");
    for store in [None, Some(&*url), Some(&*url), Some(&*url)] {
        first.turn(Kind::Well);
        let namespace = format!("{:016x}", fastrand::u64(..));
        let chain = Chain { namespace: &namespace, store, bases: &bases, breaks };
        fleet.chain("a", &chain).await;
        fleet.go("a", RATE).await;
        sleep(Duration::from_millis(400)).await;
        first.turn(Kind::Status(500));
        sleep(Duration::from_secs(6)).await;
        let back = first.turn(Kind::Well);
        let closed = fleet.until_all("a", "closed", "p0", back, Duration::from_secs(12)).await;
        assert_eq!(fleet.halt("a").await.failed, 0);
        let (earliest, last) = (closed.iter().min().unwrap(), closed.iter().max().unwrap());
        let [waited, spread] = [earliest - back, last - earliest].map(|us| millis(us) / 1000.0);
        let name = if store.is_some() { "shared" } else { "alone" };
        println!("  {name:<32} {waited:>8.2} s {spread:>18.2} s");
        if store.is_some() {
            assert!(spread <= 1.0 + TAKES.as_secs_f64(), "{spread} s");
        }
    }
}
