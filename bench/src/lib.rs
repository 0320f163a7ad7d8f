//! See `benches`, and `tests/allocations.rs`.
