//! Time per request and layer, over a terminal that answers at once.
//!
//! `cargo bench -p reqwest-failover-bench --bench overhead` measures every row with criterion, then prints
//! each as a ratio to the no-op layer and to the layers that people use together with this one, and last
//! what 64 tasks on two threads get through. Times move with whatever else the machine does; the
//! instructions that `cargo bench -p reqwest-failover-bench --bench instructions` counts do not.

#[allow(dead_code)]
mod rows;

use std::cell::RefCell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::Criterion;
use rows::{Bench, Row};
use tokio::runtime::Runtime;

const BODY: usize = 1024;
const TASKS: usize = 64;
const PER_TASK: usize = 500;
const PAIRS: usize = 31;

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .without_plots()
        .configure_from_args();
    let times: Vec<(Row, f64)> =
        Row::ALL.iter().filter_map(|row| Some((*row, measure(&mut criterion, *row)?))).collect();
    criterion.final_summary();
    if times.len() == Row::ALL.len() {
        print(&times);
        println!();
        crowd();
    }
}

/// The time of one request in nanoseconds, of the fastest tenth of all samples: what else the machine
/// does only adds to it. `None` for a row that was not asked for.
fn measure(criterion: &mut Criterion, row: Row) -> Option<f64> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let bench = runtime.block_on(Bench::new(row, BODY));
    let samples = RefCell::new(Vec::new());
    criterion.bench_function(row.name(), |bencher| {
        bencher.iter_custom(|requests| {
            let took = runtime.block_on(async {
                let begun = Instant::now();
                for _ in 0..requests {
                    bench.send().await;
                }
                begun.elapsed()
            });
            samples.borrow_mut().push(took.as_nanos() as f64 / requests as f64);
            took
        });
    });
    let mut samples = samples.into_inner();
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 10).copied()
}

fn print(times: &[(Row, f64)]) {
    let of =
        |wanted: Row| times.iter().find(|(row, _)| *row == wanted).map_or(f64::NAN, |one| one.1);
    let [noop, retry, chain] = [Row::Noop, Row::Retry, Row::Chain].map(of);
    println!(
        "\n{:<26} {:>9} {:>10} {:>8} {:>15} {:>15}",
        "per request", "ns", "over no-op", "/ no-op", "/ reqwest-retry", "/ reqwest-chain"
    );
    for (row, time) in times {
        println!(
            "{:<26} {time:>9.0} {:>+10.0} {:>8.2} {:>15.2} {:>15.2}",
            row.name(),
            time - noop,
            time / noop,
            time / retry,
            time / chain
        );
    }
}

/// What many tasks at once get through, on two threads and on one: where the second thread brings the
/// layer less than it brings the no-op layer, requests wait for each other's locks.
fn crowd() {
    let [one, two] = [1, 2].map(|threads| {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let (ratio, control) = pairs(&builder.worker_threads(threads).build().unwrap());
        println!(
            "{TASKS} tasks, threads: {threads}, throughput over the no-op layer's, median of {PAIRS} \
             pairs: {ratio:.3}, no-op against itself {control:.3}"
        );
        ratio
    });
    println!("two threads over one: {:.3}", two / one);
}

/// The throughput over the no-op layer's, and the no-op layer's over its own, in pairs of which each
/// side goes first in turn.
fn pairs(runtime: &Runtime) -> (f64, f64) {
    let bench = |row| Arc::new(runtime.block_on(Bench::new(row, BODY)));
    let (noop, ours) = (bench(Row::Noop), bench(Row::Ours));
    let (mut ratios, mut control) = (Vec::new(), Vec::new());
    for pair in 0..PAIRS {
        let mut sides = [&noop, &ours, &noop];
        if pair % 2 == 1 {
            sides.reverse();
        }
        let mut times = sides.map(|side| runtime.block_on(rush(side)));
        if pair % 2 == 1 {
            times.reverse();
        }
        ratios.push(times[0] / times[1]);
        control.push(times[0] / times[2]);
    }
    (median(ratios), median(control))
}

/// The seconds that it takes for all tasks to be done.
async fn rush(bench: &Arc<Bench>) -> f64 {
    let begun = Instant::now();
    let tasks: Vec<_> = (0..TASKS)
        .map(|_| {
            let bench = bench.clone();
            tokio::spawn(async move {
                for _ in 0..PER_TASK {
                    bench.send().await;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    begun.elapsed().as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
