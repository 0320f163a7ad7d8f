//! See the files of `benches`, and `tests/allocations.rs`.
