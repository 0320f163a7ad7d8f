//! Plays all cells, some at a time, and says what came of them.
//!
//! The servers share one runtime of many threads. Each cell's client has a runtime of its own on one
//! thread: so its tasks, its memory, its log and its metrics are its own, and can be counted.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Handle};

use crate::cell::{Cell, Harness};
use crate::checks::{Checks, SLACK, check};
use crate::script::ms;
use crate::support::lock;

const AT_ONCE: usize = 8;
/// How often a cell is played, alone, if the machine was too busy to judge it.
const TRIES: usize = 4;

/// What came of all cells.
#[derive(Default)]
pub(crate) struct Outcome {
    pub(crate) cells: usize,
    /// In how many of them a hedge was sent.
    pub(crate) hedged: usize,
    pub(crate) checks: usize,
    pub(crate) played_again: usize,
    /// Each failed cell with all that failed in it.
    pub(crate) failed: Vec<(String, Vec<String>)>,
}

pub(crate) fn run(cells: Vec<Cell>) -> Outcome {
    let servers = Builder::new_multi_thread().worker_threads(4).enable_all().build();
    let servers = servers.expect("a runtime for the servers");
    let outcome = Mutex::new(Outcome { cells: cells.len(), ..Outcome::default() });
    let (queue, again) = (Mutex::new(VecDeque::from(cells)), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(cell) = next(&queue) {
                    let played = play(&cell, servers.handle());
                    if played.is_in_doubt() {
                        lock(&again).push(cell);
                    } else {
                        record(&outcome, &cell, played.checks);
                    }
                }
            });
        }
    });
    for cell in again.into_inner().unwrap_or_default() {
        let mut played = play(&cell, servers.handle());
        for _ in 1..TRIES {
            if played.is_in_doubt() {
                played = play(&cell, servers.handle());
            }
        }
        lock(&outcome).played_again += 1;
        record(&outcome, &cell, played.checks);
    }
    servers.shutdown_timeout(Duration::from_secs(1));
    outcome.into_inner().unwrap_or_default()
}

fn next(queue: &Mutex<VecDeque<Cell>>) -> Option<Cell> {
    lock(queue).pop_front()
}

fn record(outcome: &Mutex<Outcome>, cell: &Cell, checks: Checks) {
    let mut outcome = lock(outcome);
    outcome.hedged += usize::from(checks.hedged);
    outcome.checks += checks.count;
    if !checks.failed.is_empty() {
        outcome.failed.push((cell.to_string(), checks.failed));
    }
}

/// A cell that was played.
struct Played {
    checks: Checks,
    /// How late the machine was, at the worst, in doing what was due.
    late: Duration,
}

impl Played {
    /// Whether something failed while the machine itself was later than any check allows for: it is
    /// not known whose fault it was. A fault of the layer fails alone on the machine, too.
    fn is_in_doubt(&self) -> bool {
        !self.checks.failed.is_empty() && self.late > SLACK / 2
    }
}

fn play(cell: &Cell, servers: &Handle) -> Played {
    let late = Arc::new(AtomicU64::new(0));
    let metronome = servers.spawn(metronome(late.clone()));
    let played = catch_unwind(AssertUnwindSafe(|| play_within(cell, servers, &late)));
    let checks = played.unwrap_or_else(|_| Checks {
        count: 1,
        failed: vec!["it panicked".into()],
        hedged: false,
    });
    if !checks.failed.is_empty() {
        // A task that is late at this moment has not noticed yet.
        std::thread::sleep(SLACK);
    }
    metronome.abort();
    Played { checks, late: Duration::from_micros(late.load(Ordering::Relaxed)) }
}

fn play_within(cell: &Cell, servers: &Handle, late: &Arc<AtomicU64>) -> Checks {
    let harness = {
        let _serving = servers.enter();
        Harness::set(cell).expect("sockets on 127.0.0.1")
    };
    let clients = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let metronome = clients.spawn(metronome(late.clone()));
    let mut observed = None;
    #[cfg(feature = "metrics")]
    let recorder = metrics_util::debugging::DebuggingRecorder::new();
    let memory = {
        let _watched = harness.sightings.watch_log();
        #[cfg(feature = "metrics")]
        let _recorded = metrics::set_default_local_recorder(&recorder);
        allocation_counter::measure(|| {
            observed = Some(clients.block_on(harness.play(cell, servers)));
        })
        .bytes_max
    };
    metronome.abort();
    let Some(observed) = observed else { return Checks::default() };
    let mut checks = Checks::default();
    check(&mut checks, cell, &observed, memory);
    #[cfg(feature = "metrics")]
    crate::metered::check(&mut checks, cell, &observed, &recorder);
    let _serving = servers.enter();
    drop(observed);
    checks
}

/// Notes how late it is woken.
async fn metronome(late: Arc<AtomicU64>) {
    const EVERY: Duration = ms(5);
    loop {
        let since = Instant::now();
        tokio::time::sleep(EVERY).await;
        let by = since.elapsed().saturating_sub(EVERY).as_micros();
        late.fetch_max(u64::try_from(by).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}
