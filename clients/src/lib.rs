//! Clients that people already use, below a chain. Nothing here is published.
//!
//! `tests/clients` runs each of them against two stand-ins and counts what arrived; the snippets of
//! `docs/recipes.md` are this crate's doctests. One command does both:
//!
//! ```text
//! cargo test -p reqwest-failover-clients
//! ```

/// The page, so that its snippets are compiled.
#[cfg(doctest)]
#[doc = include_str!("../../docs/recipes.md")]
struct Recipes;
