//! The wire fault matrix: everything that can go wrong at a provider, over sockets, at three places
//! in a chain of three.
//!
//! `cargo test --test faults -- --nocapture` prints `cells N, checks M, failed 0`. One of its cells:
//! `FAULTS="RST before" cargo test --test faults -- --nocapture` plays those whose name holds that.

#[path = "../support/mod.rs"]
mod support;

mod caller;
mod cell;
mod checks;
mod http2;
mod kinds;
#[cfg(feature = "metrics")]
mod metered;
#[cfg(feature = "metrics")]
#[path = "../support/readings.rs"]
mod readings;
mod runner;
mod script;
mod server;
mod sightings;
mod tls;

use cell::{Cell, Position, Setup};
use kinds::Failure;

#[test]
fn every_fault_at_every_place_has_its_one_outcome() {
    let only = std::env::var("FAULTS").unwrap_or_default();
    let cells: Vec<_> =
        cells().into_iter().filter(|cell| cell.to_string().contains(&only)).collect();
    assert!(!only.is_empty() || cells.len() >= 240, "only {} cells", cells.len());
    let outcome = runner::run(cells);
    for (cell, failed) in &outcome.failed {
        println!("FAILED {cell}");
        failed.iter().for_each(|check| println!("    {check}"));
    }
    if outcome.played_again > 0 {
        let again = outcome.played_again;
        println!("{again} cells were played again alone, since the machine was late");
    }
    let failed = outcome.failed.len();
    println!("cells {}, checks {}, failed {failed}", outcome.cells, outcome.checks);
    assert_eq!(failed, 0);
}

/// Each kind at three places; where the outcome is ambiguous, also where that is not to be sent
/// again; and where everybody fails, also told as one error.
fn cells() -> Vec<Cell> {
    let mut cells = Vec::new();
    for kind in kinds::all() {
        for position in Position::EACH {
            let mut add = |setup| cells.push(Cell { kind: kind.clone(), position, setup });
            add(Setup::Standard);
            let Some(Failure { ambiguous, .. }) = kind.expected.failure() else { continue };
            if ambiguous {
                add(Setup::Careful);
                if position == Position::First {
                    add(Setup::CarefulWithReplay);
                }
            }
            if position == Position::All {
                add(Setup::ToldAsError);
            }
        }
    }
    cells
}
