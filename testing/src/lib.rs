//! The scripted server, the scripted terminal, the stand-in for a provider and the real Redis that the tests, the
//! examples and the benchmarks of `reqwest-failover` share.

pub mod redis;
pub mod stand_in;
pub mod support;
pub mod terminal;
