//! Fleets: several chains over one store, in virtual time, with every kind of fault.
//!
//! `cargo test --release --all-features --test fleet_simulation -- --nocapture` prints the figures.

mod seeds;
mod store;
mod world;

use std::time::Duration;

use store::Server;
use world::{Kind, Reply, World};

const ATTEMPT: Duration = Duration::from_millis(5);

fn in_virtual_time<T>(run: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(run)
}

fn secs(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

/// Processes that call this often a second each, and how they share.
#[derive(Clone, Copy)]
struct Fleet<'a> {
    rates: &'a [f64],
    shared: Sharing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sharing {
    Alone,
    Pushed,
    Polled,
}

/// Lets the processes call for so long.
async fn run(
    fleet: Fleet<'_>,
    seed: u64,
    lasts: f64,
    behaviour: world::Behaviour,
) -> std::sync::Arc<World> {
    let processes = fleet.rates.len();
    let world = World::new(processes, seed, ATTEMPT, behaviour);
    let server = Server::new(processes, seed);
    if fleet.shared == Sharing::Polled {
        server.links(|link| link.lost = 1.0);
    }
    let server = (fleet.shared != Sharing::Alone).then_some(&server);
    let pods: Vec<_> =
        (0..processes).map(|number| world.pod(number, server, |chain| chain)).collect();
    let calls = fleet
        .rates
        .iter()
        .zip(&pods)
        .map(|(rate, pod)| pod.clone().keep_calling(*rate, secs(lasts)));
    futures_util::future::join_all(calls).await;
    world
}

/// The middle and the largest of these.
fn spread(mut values: Vec<usize>) -> (usize, usize) {
    values.sort_unstable();
    (values[values.len() / 2], values[values.len() - 1])
}

#[test]
fn wasted_attempts() {
    let down = || -> world::Behaviour {
        Box::new(|_, at, _| if at >= secs(5.0) { Reply::Failed } else { Reply::Served })
    };
    for (name, rates) in [
        ("8 processes, 10 calls a second together", vec![10.0 / 8.0; 8]),
        ("8 processes, 80 calls a second together", vec![10.0; 8]),
        ("8 processes, 800 calls a second together", vec![100.0; 8]),
    ] {
        for shared in [Sharing::Alone, Sharing::Pushed, Sharing::Polled] {
            let wasted = (0..20).map(|seed| {
                in_virtual_time(run(Fleet { rates: &rates, shared }, seed, 20.0, down())).wasted()
            });
            let (middle, most) = spread(wasted.collect());
            println!("{name}, {shared:?}: {middle}/{most}");
        }
    }
}

#[test]
fn probes() {
    let rates = [10.0; 8];
    let behaviour = || -> world::Behaviour {
        Box::new(|_, at, _| if at >= secs(5.0) { Reply::Failed } else { Reply::Served })
    };
    let world = in_virtual_time(run(
        Fleet { rates: &rates, shared: Sharing::Pushed },
        1,
        3600.0,
        behaviour(),
    ));
    let moves = world.moves();
    let probes = moves.iter().filter(|change| change.kind == Kind::Probing).count();
    let rounds =
        moves.iter().filter(|change| change.kind == Kind::Opened && change.process == 0).count();
    println!("probes {probes} in {rounds} rounds, wasted {}", world.wasted());
}

#[test]
fn bad_pod() {
    for total in [10.0, 1.0, 0.1] {
        for shared in [Sharing::Alone, Sharing::Pushed] {
            let rates = [total; 8];
            let behaviour: world::Behaviour = Box::new(|process, _, random| {
                let bad = process == 0 || random.f64() < 0.01;
                if bad { Reply::Failed } else { Reply::Served }
            });
            let world = in_virtual_time(run(Fleet { rates: &rates, shared }, 1, 3600.0, behaviour));
            let [calls, fallback, failed] = world.calls(1..8);
            let opened =
                world.moves().iter().filter(|m| m.process > 0 && m.kind == Kind::Opened).count();
            println!(
                "bad pod, {total} a second, {shared:?}: {calls} calls, {fallback} by fallback, {failed} failed, opened {opened}"
            );
        }
    }
}

#[test]
fn noise() {
    for noise in [0.05, 0.2] {
        for shared in [Sharing::Alone, Sharing::Pushed] {
            let rates = [10.0; 8];
            let behaviour: world::Behaviour =
                Box::new(
                    move |_, _, random| {
                        if random.f64() < noise { Reply::Failed } else { Reply::Served }
                    },
                );
            let world = in_virtual_time(run(Fleet { rates: &rates, shared }, 1, 600.0, behaviour));
            let [calls, fallback, _] = world.calls(0..8);
            let failed = world.wasted() as u64;
            println!(
                "noise {noise}, {shared:?}: {:.3} % beyond own failures",
                100.0 * (fallback - failed) as f64 / calls as f64
            );
        }
    }
}
