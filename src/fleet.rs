//! Health that many processes share, through a store that they all reach.
//!
//! Chains that [`share`](crate::ProviderChainBuilder::share) a store behave like one process that carries
//! all their traffic: failures in a row *anywhere* open a breaker everywhere, a cooldown holds for all, one
//! process probes, and [`isolate`](crate::ProviderChain::isolate), [`restore`](crate::ProviderChain::restore)
//! and [`set_order`](crate::ProviderChain::set_order) hold for all. A request reads what its own process
//! knows and never waits for the store. If the store is away, each process goes on by itself.
//!
//! [`MemoryStore`] is the store of several chains of one process, and of tests. The crate
//! `reqwest-failover-redis` has one for Redis and Valkey. Any other store with a time to live, a list and,
//! better, a feed of changes fits [`HealthStore`]; [`check`](fn@check) tries one.
//!
//! ```
//! # let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
//! # runtime.block_on(async {
//! use std::time::Duration;
//! use reqwest_failover::fleet::MemoryStore;
//! use reqwest_failover::{Provider, ProviderChain, State};
//!
//! let store = MemoryStore::new();
//! let providers = || [Provider::cometapi("key-a"), Provider::openai("key-b")];
//! let batch = ProviderChain::builder(providers()).share(store.clone()).build()?;
//! let web = ProviderChain::builder(providers()).share(store).build()?;
//!
//! web.synced(Duration::from_secs(1)).await;
//! batch.isolate("cometapi")?;
//! batch.synced(Duration::from_secs(1)).await;
//! web.synced(Duration::from_secs(1)).await;
//! assert_eq!(web.snapshot().providers()[0].state(), State::Isolated);
//! # Ok::<(), reqwest_failover::ConfigError>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod check;
pub(crate) mod member;
mod memory;
pub(crate) mod report;

use std::error::Error;
use std::time::Duration;

pub use self::check::check;
pub use self::memory::{MemoryStore, MemoryWatch};

/// Why a store's operation failed. Its text is logged, without what looks like a password.
pub type StoreError = Box<dyn Error + Send + Sync>;

/// What one process says of one provider, or an operator's command, in a [`HealthStore`].
///
/// The key says who wrote what, and the body what it says; both are text of this crate's own and hold no
/// URL, key, model or message. A store keeps the body under the key as it is.
///
/// ```
/// use reqwest_failover::fleet::Record;
///
/// let record = Record::new("openai~1b2c3d4e/00112233aabbccdd", "1 n=1 f=5 s=2").unwrap();
/// assert_eq!(record.body(), "1 n=1 f=5 s=2");
/// assert!(Record::new("a key", "").is_none());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    key: Box<str>,
    body: Box<str>,
}

impl Record {
    /// The longest key, in bytes.
    pub const MAX_KEY: usize = 128;
    /// The longest body, in bytes.
    pub const MAX_BODY: usize = 1024;

    /// A record as a store returns it. `None` if it is none: the key is empty, longer than 128 bytes or has
    /// a space, the body is longer than 1 KiB, or one of them has anything but printable ASCII. A store
    /// leaves those out.
    pub fn new(key: &str, body: &str) -> Option<Self> {
        let is_printable = |text: &str| text.bytes().all(|byte| matches!(byte, b' '..=b'~'));
        let is_key = !key.is_empty() && key.len() <= Self::MAX_KEY && !key.contains(' ');
        let is_record =
            is_key && body.len() <= Self::MAX_BODY && is_printable(key) && is_printable(body);
        is_record.then(|| Self { key: key.into(), body: body.into() })
    }

    /// Where the store keeps it: at most 128 bytes of printable ASCII without a space.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// What the store keeps: at most 1 KiB of printable ASCII.
    pub fn body(&self) -> &str {
        &self.body
    }
}

/// Where processes leave [`Record`]s for each other.
///
/// The chain calls it from one task, with at most one write and one read at a time, and gives each call
/// 500 ms; a call that takes longer is dropped. After an error it waits, up to 2 s, and begins again with
/// [`watch`](Self::watch) and [`list`](Self::list). An implementation keeps no clock of the caller's: only
/// durations are exchanged. Try one with [`check`](fn@check).
///
/// ```
/// use std::time::Duration;
/// use reqwest_failover::fleet::{HealthStore, MemoryStore, MemoryWatch, Record, StoreError};
///
/// /// A store that counts what is written.
/// struct Counted(MemoryStore, std::sync::atomic::AtomicU64);
///
/// impl HealthStore for Counted {
///     type Watch = MemoryWatch;
///
///     async fn put(&self, record: &Record, ttl: Duration) -> Result<(), StoreError> {
///         self.1.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
///         self.0.put(record, ttl).await
///     }
///
///     async fn list(&self) -> Result<Vec<(Record, Duration)>, StoreError> {
///         self.0.list().await
///     }
///
///     async fn watch(&self) -> Result<MemoryWatch, StoreError> {
///         self.0.watch().await
///     }
/// }
/// ```
pub trait HealthStore: Send + Sync + 'static {
    /// What [`watch`](Self::watch) returns.
    type Watch: HealthWatch;

    /// Writes the record over the one with its key, for this long; zero removes it. Those that watch are
    /// sent it.
    fn put(
        &self,
        record: &Record,
        ttl: Duration,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// What has not expired, and how long each record still has.
    fn list(&self) -> impl Future<Output = Result<Vec<(Record, Duration)>, StoreError>> + Send;

    /// What is put from now on. It may lose records, repeat them or reorder them, and may never return
    /// any: the chain lists the store every 0.8 s.
    fn watch(&self) -> impl Future<Output = Result<Self::Watch, StoreError>> + Send;
}

/// The records that are put, one after the other.
pub trait HealthWatch: Send + 'static {
    /// The next record, and how long it has; zero if it was removed. The future may be dropped before it is
    /// ready, which must lose no record. An error ends the watch.
    fn next(&mut self) -> impl Future<Output = Result<(Record, Duration), StoreError>> + Send;
}
