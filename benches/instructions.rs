//! Instructions and allocations per request and layer, in one run: the figures that hold on a noisy
//! machine. Needs valgrind (Debian: `apt-get install valgrind`).
//!
//! `cargo bench --bench instructions` prints the table.

mod rows;

use std::process::Command;

use rows::{Bench, Row};

const REQUESTS: u64 = 500;
const BODY: usize = 1024;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.iter().position(|argument| argument == "--row") {
        Some(at) => {
            let row = Row::of_name(&arguments[at + 1]).expect("a row's name");
            run(row, arguments[at + 2].parse().unwrap(), arguments[at + 3].parse().unwrap());
        }
        None => table(),
    }
}

/// What valgrind watches: `requests` requests through `row`.
fn run(row: Row, body: usize, requests: u64) {
    block_on(async {
        let bench = Bench::new(row, body).await;
        for _ in 0..requests {
            bench.send().await;
        }
    });
}

fn table() {
    let figures: Vec<(Row, f64, f64)> =
        Row::ALL.map(|row| (row, instructions(row, BODY), allocations(row))).into();
    let noop = *figures.iter().find(|(row, ..)| *row == Row::Noop).unwrap();
    println!("{:<26} {:>13} {:>12} {:>7}", "per request", "instructions", "over no-op", "allocs");
    for (row, instructions, allocations) in &figures {
        println!(
            "{:<26} {:>13.0} {:>+12.0} {:>+7.1}",
            row.name(),
            instructions,
            instructions - noop.1,
            allocations - noop.2
        );
    }
    for body in [100 * 1024, 1024 * 1024] {
        let grown = instructions(Row::Ours, body) - instructions(Row::Noop, body);
        println!(
            "{:<26} {:>13} {:>+12.0}",
            format!("defaults, {} KiB body", body / 1024),
            "",
            grown
        );
    }
}

/// Instructions of one request: the difference between two runs leaves out everything else.
fn instructions(row: Row, body: usize) -> f64 {
    let counted = |requests: u64| -> f64 {
        let output = Command::new("valgrind")
            .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
            .arg(std::env::current_exe().unwrap())
            .args(["--row", row.name(), &body.to_string(), &requests.to_string()])
            .output()
            .expect("valgrind is installed");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{text}");
        let (_, count) = text.split_once("Collected : ").expect("callgrind's summary");
        count.trim().lines().next().unwrap().trim().parse().unwrap()
    };
    (counted(2 * REQUESTS) - counted(REQUESTS)) / REQUESTS as f64
}

fn allocations(row: Row) -> f64 {
    block_on(async {
        let bench = Bench::new(row, BODY).await;
        let requests = 100;
        let counted = allocation_counter::measure(|| {
            futures_util::future::FutureExt::now_or_never(async {
                for _ in 0..requests {
                    bench.send().await;
                }
            })
            .expect("the terminal answers at once");
        });
        counted.count_total as f64 / f64::from(requests)
    })
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}
