//! The wire fault matrix: everything that can go wrong at a provider, over sockets, at three places
//! in a chain of three.
//!
//! `cargo test --test faults -- --nocapture` prints `cells N, hedged H, checks M, failed 0`, once for a
//! chain without hedges and once for one with them. One of its cells:
//! `FAULTS="RST before" cargo test --test faults -- --nocapture` plays those whose name holds that.

use reqwest_failover_testing::support;

mod caller;
mod cell;
mod checks;
mod http2;
mod kinds;
#[cfg(feature = "metrics")]
mod metered;
#[cfg(feature = "metrics")]
#[path = "../readings/mod.rs"]
mod readings;
mod runner;
mod script;
mod server;
mod sightings;
mod tls;

use std::sync::{Arc, Mutex};

use cell::{Cell, Position, Setup};
use kinds::{Failure, Kind};

#[test]
fn every_fault_at_every_place_has_its_one_outcome() {
    play(cells(), 240);
}

#[test]
fn every_fault_at_every_place_has_its_one_outcome_with_hedges() {
    let hedged = play(hedged_cells(), 240);
    assert!(hedged > 50 || is_part(), "only {hedged} cells in which a hedge was sent");
}

/// Which cells are asked for.
fn only() -> String {
    std::env::var("FAULTS").unwrap_or_default()
}

fn is_part() -> bool {
    !only().is_empty()
}

/// Plays the cells that are asked for, of which there are so many at least. Returns in how many a hedge
/// was sent.
fn play(cells: Vec<Cell>, least: usize) -> usize {
    let only = only();
    let cells: Vec<_> = cells.into_iter().filter(|cell| cell.to_string().contains(&only)).collect();
    assert!(is_part() || cells.len() >= least, "only {} cells", cells.len());
    // Both at once would be later than their checks allow.
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = support::lock(&ALONE);
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
    let runner::Outcome { cells, hedged, checks, .. } = outcome;
    println!("cells {cells}, hedged {hedged}, checks {checks}, failed {failed}");
    assert_eq!(failed, 0);
    hedged
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

/// Each kind at three places, in a chain that hedges.
fn hedged_cells() -> Vec<Cell> {
    let cell =
        |kind: &Arc<Kind>, position| Cell { kind: kind.clone(), position, setup: Setup::Hedged };
    let kinds = kinds::all();
    kinds.iter().flat_map(|kind| Position::EACH.map(|position| cell(kind, position))).collect()
}
