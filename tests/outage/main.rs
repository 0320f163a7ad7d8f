//! What an outage costs, and whom it is blamed on: a first provider that is down; and callers with
//! deadlines, uploads, hedges and judges of their own, of whom no provider is to blame. Run with
//! `--nocapture` for the table.

use reqwest_failover_testing::{support, terminal};

mod dead;
mod deadlines;
mod table;
