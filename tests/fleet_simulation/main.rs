//! Fleets: several chains over one store, in virtual time, with every kind of fault.
//!
//! `cargo test --release --all-features --test fleet_simulation -- --nocapture` prints the figures and lives
//! through fleets drawn from seeds; `FAILOVER_CALLS=1000000` makes that a million calls.

mod figures;
mod seeds;
mod store;
mod world;

use std::time::Duration;

/// How long an answer takes on average.
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
