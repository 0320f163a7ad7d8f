//! The scripted server, the scripted terminal and the stand-in for a provider that the tests, the
//! examples and the benchmarks of `reqwest-failover` share.

pub mod stand_in;
pub mod support;
pub mod terminal;
