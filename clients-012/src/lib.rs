//! Clients that still have `reqwest` 0.12, below a chain. Nothing here is published.
//!
//! The tests run each of them against stand-ins and count what arrived; the snippets of `docs/solana.md` are this
//! crate's doctests. One command does both:
//!
//! ```text
//! cargo test -p reqwest-failover-clients-012
//! ```

/// The page, so that its snippets are compiled.
#[cfg(doctest)]
#[doc = include_str!("../../docs/solana.md")]
struct Solana;
