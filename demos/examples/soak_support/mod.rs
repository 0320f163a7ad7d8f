//! What the soak is made of: providers on loopback, the ledgers of both sides, and a look at this
//! process's memory.

pub(crate) mod ledger;
pub(crate) mod memory;
pub(crate) mod provider;
