//! What shared health is worth, and what it must not cost: eight processes, alone and together.

use std::sync::Arc;
use std::time::Duration;

use reqwest_failover::{Breaker, ProviderChainBuilder};

use crate::store::Server;
use crate::world::{Behaviour, Kind, Move, Reply, World};
use crate::{ATTEMPT, in_virtual_time, secs};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sharing {
    Alone,
    Pushed,
    /// No record is watched: only polls are left.
    Polled,
}

/// Processes that call this often a second each, and for how long.
struct Fleet {
    rates: Vec<f64>,
    lasts: f64,
    breaker: Breaker,
}

impl Fleet {
    /// Eight processes that call this often together.
    fn of_eight(a_second: f64, lasts: f64) -> Self {
        Self { rates: vec![a_second / 8.0; 8], lasts, breaker: Breaker::default() }
    }

    fn live(&self, sharing: Sharing, seed: u64, behaviour: Behaviour) -> Arc<World> {
        in_virtual_time(self.run(sharing, seed, behaviour))
    }

    async fn run(&self, sharing: Sharing, seed: u64, behaviour: Behaviour) -> Arc<World> {
        let processes = self.rates.len();
        let world = World::new(processes, seed, ATTEMPT, behaviour);
        let server = Server::new(processes, seed);
        if sharing == Sharing::Polled {
            server.links(|link| link.lost = 1.0);
        }
        let server = (sharing != Sharing::Alone).then_some(&server);
        let settings = |chain: ProviderChainBuilder| chain.breaker(self.breaker.clone());
        let pods = (0..processes).map(|number| world.pod(number, server, settings));
        let calls = self.rates.iter().zip(pods.collect::<Vec<_>>());
        let calls = calls.map(|(rate, pod)| pod.keep_calling(*rate, secs(self.lasts)));
        futures_util::future::join_all(calls).await;
        let [_, _, failed] = world.calls(0..processes);
        assert_eq!(failed, 0);
        world
    }
}

/// Down from here to there.
fn down(from: f64, to: f64) -> Behaviour {
    Box::new(move |_, at, _| match (secs(from)..secs(to)).contains(&at) {
        true => Reply::Failed,
        false => Reply::Served,
    })
}

/// The middle and the largest of these.
fn spread(mut values: Vec<usize>) -> (usize, usize) {
    values.sort_unstable();
    (values[values.len() / 2], values[values.len() - 1])
}

/// The share of calls, in percent, that were kept from the first provider without asking it.
fn kept_away(world: &World, processes: std::ops::Range<usize>) -> f64 {
    let [calls, fallback, _] = world.calls(processes.clone());
    let failed = world
        .asked()
        .into_iter()
        .filter(|asked| processes.contains(&asked.process) && asked.reply != Reply::Served);
    100.0 * fallback.saturating_sub(failed.count() as u64) as f64 / calls as f64
}

#[test]
#[cfg_attr(debug_assertions, ignore = "takes minutes without --release")]
fn an_outage_is_found_out_once() {
    println!("wasted attempts of an outage (middle/most of 20)   alone   pushed   polled");
    for (name, fleet, most) in [
        ("8 processes, 10 calls a second", Fleet::of_eight(10.0, 20.0), (6, 10)),
        ("8 processes, 80 calls a second", Fleet::of_eight(80.0, 20.0), (6, 10)),
        ("8 processes, 800 calls a second", Fleet::of_eight(800.0, 20.0), (14, 24)),
        (
            "8 processes, nearly all calls in one",
            Fleet {
                rates: vec![80.0, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1],
                ..Fleet::of_eight(0.0, 20.0)
            },
            (7, 9),
        ),
        (
            "100 processes, 1,000 calls a second",
            Fleet { rates: vec![10.0; 100], ..Fleet::of_eight(0.0, 12.0) },
            (14, 24),
        ),
    ] {
        let wasted = |sharing| {
            let seeds = if fleet.rates.len() > 8 { 0..5 } else { 0..20 };
            spread(seeds.map(|seed| fleet.live(sharing, seed, down(5.0, 1e9)).wasted()).collect())
        };
        let [alone, pushed, polled] =
            [Sharing::Alone, Sharing::Pushed, Sharing::Polled].map(wasted);
        let show = |(middle, most)| format!("{middle}/{most}");
        println!("{name:<49} {:>7} {:>8} {:>8}", show(alone), show(pushed), show(polled));
        assert!(pushed.0 <= most.0 && pushed.1 <= most.1, "{pushed:?}");
        assert!(alone.0 >= pushed.0);
    }
}

#[test]
#[cfg_attr(debug_assertions, ignore = "takes minutes without --release")]
fn a_rate_limit_is_found_out_once() {
    let limited = || -> Behaviour {
        Box::new(|_, at, _| match at < secs(120.0) {
            true => Reply::Limited(30),
            false => Reply::Served,
        })
    };
    let fleet = Fleet::of_eight(80.0, 130.0);
    for sharing in [Sharing::Alone, Sharing::Pushed, Sharing::Polled] {
        let wasted =
            spread((0..9).map(|seed| fleet.live(sharing, seed, limited()).wasted()).collect());
        println!("a limit of 30 s, for 120 s, {sharing:?}: {wasted:?} wasted attempts");
        assert!(sharing != Sharing::Pushed || wasted.0 <= 8, "two a round");
    }
}

#[test]
#[cfg_attr(debug_assertions, ignore = "takes minutes without --release")]
fn a_break_has_one_probe() {
    let mut fleet = Fleet::of_eight(80.0, 1_500.0);
    fleet.breaker = Breaker::default().breaks(secs(1.0), secs(4.0));
    let world = fleet.live(Sharing::Pushed, 1, down(5.0, 1e9));
    let moves = world.moves();
    let count = |wanted: &dyn Fn(&&Move) -> bool| moves.iter().filter(wanted).count();
    let probes = count(&|change| change.kind == Kind::Probing);
    let breaks = count(&|change| change.kind == Kind::Opened && change.process == 0);
    let share = probes as f64 / breaks as f64;
    println!("{probes} probes in {breaks} breaks: {share:.3}");
    assert!(breaks >= 200 && share <= 1.02);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "takes minutes without --release")]
fn an_hour_of_outage_wastes_little() {
    let fleet = Fleet::of_eight(80.0, 3_600.0);
    let [alone, together] = [Sharing::Alone, Sharing::Pushed]
        .map(|sharing| fleet.live(sharing, 1, down(5.0, 1e9)).wasted());
    println!("wasted in an hour of outage: {alone} alone, {together} together");
    assert!(together <= 40 && together * 4 < alone);
}

#[test]
fn all_come_back_together() {
    let fleet = Fleet::of_eight(80.0, 250.0);
    for seed in 0..10 {
        let world = fleet.live(Sharing::Pushed, seed, down(5.0, 105.0));
        let closed = world.moves().into_iter().filter(|change| change.kind == Kind::Closed);
        let closed: Vec<Duration> = closed.map(|change| change.at).collect();
        let (first, last) = (*closed.iter().min().unwrap(), *closed.iter().max().unwrap());
        println!("first closed at {first:.1?}, all {:.2?} later", last - first);
        assert_eq!(closed.len(), 8);
        assert!(last - first <= secs(1.0) + 10 * ATTEMPT, "{closed:?}");
    }
}

#[test]
#[cfg_attr(debug_assertions, ignore = "takes minutes without --release")]
fn one_bad_pod_moves_no_other() {
    println!("one process of eight is bad, 1 % noise, an hour: kept from the first provider");
    for a_second in [10.0, 1.0, 0.1] {
        let behaviour = || -> Behaviour {
            Box::new(|process, _, random| match process == 0 || random.f64() < 0.01 {
                true => Reply::Failed,
                false => Reply::Served,
            })
        };
        let fleet = Fleet { rates: vec![a_second; 8], ..Fleet::of_eight(0.0, 3_600.0) };
        let [alone, together] = [Sharing::Alone, Sharing::Pushed]
            .map(|sharing| kept_away(&fleet.live(sharing, 1, behaviour()), 1..8));
        println!("{a_second:>5} calls a second each: {alone:.4} % alone, {together:.4} % together");
        assert!(together <= 0.01);
    }
}

#[test]
#[cfg_attr(debug_assertions, ignore = "takes minutes without --release")]
fn noise_opens_no_breaker() {
    println!("noise, 80 calls a second, 30 minutes: kept from the first provider");
    // With more of it, breakers open alone as well, and all of them together.
    for (noise, most) in [(0.01, 0.0), (0.05, 0.02), (0.1, 100.0)] {
        let behaviour = || -> Behaviour {
            Box::new(move |_, _, random| match random.f64() < noise {
                true => Reply::Failed,
                false => Reply::Served,
            })
        };
        let fleet = Fleet::of_eight(80.0, 1_800.0);
        let [alone, together] = [Sharing::Alone, Sharing::Pushed]
            .map(|sharing| kept_away(&fleet.live(sharing, 1, behaviour()), 0..8));
        println!("{:>3.0} %: {alone:.4} % alone, {together:.4} % together", noise * 100.0);
        assert!(together <= alone + most);
    }
}

#[test]
fn a_healthy_day_puts_nothing() {
    in_virtual_time(async {
        let world = World::new(8, 1, ATTEMPT, Box::new(|_, _, _| Reply::Served));
        let server = Server::new(8, 1);
        let pods = (0..8).map(|number| world.pod(number, Some(&server), |chain| chain));
        let calls = pods.collect::<Vec<_>>().into_iter();
        let calls = calls.map(|pod| pod.keep_calling(10.0, secs(60.0)));
        futures_util::future::join_all(calls).await;
        assert_eq!(server.seen().len(), 0);
        assert!(world.calls(0..8)[0] > 4_000);
    });
}
