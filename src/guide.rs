//! Guides: each says how to do one thing.
//!
//! They are the pages of the repository's folder `docs`. Begin with [start]; [recipes] has what to
//! paste for other clients and vendors.
//!
//! This module exists in the documentation only.

/// A page of `docs`. The definitions before it win over its own: there its links lead to other files,
/// here to other modules.
macro_rules! guide {
    ($name:ident, $file:literal) => {
        #[doc = include_str!("guide/links.md")]
        #[doc = include_str!($file)]
        pub mod $name {}
    };
}

guide!(start, "../docs/start.md");
guide!(failover, "../docs/failover.md");
guide!(health, "../docs/health.md");
guide!(keys, "../docs/keys.md");
guide!(streams, "../docs/streams.md");
// Their snippets need the clients that they are about, so they are doctests of the packages of clients.
#[cfg(not(doctest))]
guide!(recipes, "../docs/recipes.md");
#[cfg(not(doctest))]
guide!(solana, "../docs/solana.md");
guide!(observability, "../docs/observability.md");
guide!(runtime, "../docs/runtime.md");
// Its snippet needs a Redis store, so it is a doctest of the package `redis`.
#[cfg(not(doctest))]
guide!(fleet, "../docs/fleet.md");
guide!(choosing, "../docs/choosing.md");
guide!(performance, "../docs/performance.md");
guide!(testing, "../docs/testing.md");
guide!(architecture, "../docs/architecture.md");
guide!(security, "../SECURITY.md");
