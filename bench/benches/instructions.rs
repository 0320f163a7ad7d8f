//! Instructions per request and layer, in one run: the figure that holds on a noisy machine. Needs
//! valgrind (Debian: `apt-get install valgrind`).
//!
//! `cargo bench -p reqwest-failover-bench --bench instructions` prints the table; with `-- --check` it
//! fails where a row has grown past its budget. Allocations are counted in `tests/allocations.rs`.

mod rows;

use std::process::Command;

use rows::{Bench, Row};

const REQUESTS: u64 = 500;
const BODY: usize = 1024;

/// What each row was last measured to cost more than the no-op layer.
const MEASURED: [(Row, f64); 8] = [
    (Row::Ours, 7000.0),
    (Row::Options, 7460.0),
    (Row::FailoverOnce, 17540.0),
    (Row::BreakerOpen, 6900.0),
    (Row::OneUsable, 6350.0),
    (Row::Ten, 7000.0),
    (Row::Hundred, 7000.0),
    (Row::Waits, 8300.0),
];
/// How much more than that is put up with: compilers and dependencies differ a little.
const SLACK: f64 = 0.03;
/// What health keys may cost more than the defaults, for a body of 1 KiB.
const MOST_FOR_KEYS: f64 = 1_500.0;
/// What shared health may cost more than the defaults, where nothing fails.
#[cfg(feature = "fleet")]
const MOST_FOR_SHARING: f64 = 30.0;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.iter().position(|argument| argument == "--row") {
        Some(at) => {
            let row = Row::of_name(&arguments[at + 1]).expect("a row's name");
            run(row, arguments[at + 2].parse().unwrap(), arguments[at + 3].parse().unwrap());
        }
        None => {
            let over = table();
            if arguments.iter().any(|argument| argument == "--check") {
                check(&over);
            }
        }
    }
}

/// What valgrind watches: `requests` requests through `row`.
fn run(row: Row, body: usize, requests: u64) {
    // The task of shared health is started, and has nothing to do.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let _entered = runtime.enter();
    block_on(async {
        let bench = Bench::new(row, body).await;
        for _ in 0..requests {
            bench.send().await;
        }
    });
}

/// Prints every row, and returns what each costs more than the no-op layer.
fn table() -> Vec<(Row, f64)> {
    let figures: Vec<_> = Row::ALL.iter().map(|row| (*row, instructions(*row, BODY))).collect();
    let of = |wanted| figures.iter().find(|(row, _)| *row == wanted).unwrap().1;
    let [noop, retry, chain] = [Row::Noop, Row::Retry, Row::Chain].map(of);
    println!(
        "{:<26} {:>12} {:>10} {:>8} {:>10} {:>10}",
        "per request", "instructions", "over no-op", "/ no-op", "/ retry", "/ chain"
    );
    for &(row, count) in &figures {
        println!(
            "{:<26} {count:>12.0} {:>+10.0} {:>8.2} {:>10.2} {:>10.2}",
            row.name(),
            count - noop,
            count / noop,
            count / retry,
            count / chain,
        );
    }
    println!("{:<39} {:>+10.0}", "failover: waits, over no-op that waits", waits(&figures));
    for body in [100 * 1024, 1024 * 1024] {
        let over = instructions(Row::Ours, body) - instructions(Row::Noop, body);
        println!("{:<39} {over:>+10.0}", format!("defaults, {} KiB body", body / 1024));
    }
    let over = |&(row, count): &(Row, f64)| match row {
        Row::Waits => (row, waits(&figures)),
        _ => (row, count - noop),
    };
    figures.iter().map(over).collect()
}

/// What a request that is waited for costs more than one through a no-op layer that waits, too.
fn waits(figures: &[(Row, f64)]) -> f64 {
    let of = |wanted| figures.iter().find(|(row, _)| *row == wanted).map_or(0.0, |row| row.1);
    of(Row::Waits) - of(Row::NoopWaits)
}

/// Fails where a row costs more than it did.
fn check(over: &[(Row, f64)]) {
    let grown = MEASURED.iter().filter_map(|(row, measured)| {
        let now = over.iter().find(|(other, _)| other == row)?.1;
        (now > measured * (1.0 + SLACK))
            .then(|| format!("{}: {now:+.0}, last measured {measured:+.0}", row.name()))
    });
    let grown: Vec<_> = grown.collect();
    assert!(grown.is_empty(), "more instructions than before:\n{}", grown.join("\n"));
    let of = |wanted| over.iter().find(|(row, _)| *row == wanted).unwrap().1;
    let keys = of(Row::ByModel) - of(Row::Ours);
    assert!(keys <= MOST_FOR_KEYS, "health keys cost {keys:+.0}, {MOST_FOR_KEYS:+.0} are allowed");
    #[cfg(feature = "fleet")]
    {
        let shared = of(Row::Shared) - of(Row::Ours);
        assert!(shared <= MOST_FOR_SHARING, "shared health costs {shared:+.0}");
    }
    println!("no row costs more than {:.0} % over what was measured", SLACK * 100.0);
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

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}
