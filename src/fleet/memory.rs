//! The store of several chains of one process.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::broadcast::error::RecvError;
use tokio::sync::broadcast::{Receiver, Sender};
use tokio::time::Instant;

use super::{HealthStore, HealthWatch, Record, StoreError};

/// Shares health among the chains of one process, and is the store of tests. Clones are the same store.
///
/// It holds at most 10,000 records, and writes no new ones beyond that. A watch that is more than 1,000
/// records behind loses the oldest. Times are those of tokio's clock.
///
/// ```
/// use reqwest_failover::fleet::MemoryStore;
/// use reqwest_failover::{Provider, ProviderChain};
///
/// let store = MemoryStore::new();
/// let chain = ProviderChain::builder([Provider::openai("key")]).share(store.clone()).build()?;
/// # Ok::<(), reqwest_failover::ConfigError>(())
/// ```
#[derive(Clone, Debug)]
pub struct MemoryStore {
    records: Arc<Mutex<BTreeMap<Box<str>, StoredRecord>>>,
    puts: Sender<(Record, Duration)>,
}

#[derive(Debug)]
struct StoredRecord {
    record: Record,
    until: Instant,
}

/// What is put into a [`MemoryStore`].
#[derive(Debug)]
pub struct MemoryWatch(Receiver<(Record, Duration)>);

impl MemoryStore {
    const MOST_RECORDS: usize = 10_000;
    const MOST_BEHIND: usize = 1_000;

    /// An empty store.
    pub fn new() -> Self {
        Self { records: Arc::default(), puts: Sender::new(Self::MOST_BEHIND) }
    }

    /// Without what has expired.
    fn current(&self) -> MutexGuard<'_, BTreeMap<Box<str>, StoredRecord>> {
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        let now = now();
        records.retain(|_, kept| kept.until > now);
        records
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl HealthStore for MemoryStore {
    type Watch = MemoryWatch;

    async fn put(&self, record: &Record, ttl: Duration) -> Result<(), StoreError> {
        let mut records = self.current();
        let key = record.key();
        if ttl.is_zero() {
            records.remove(key);
        } else if records.len() >= Self::MOST_RECORDS && !records.contains_key(key) {
            return Err("the store is full".into());
        } else {
            let until = now().checked_add(ttl).ok_or("the time to live is too long")?;
            records.insert(key.into(), StoredRecord { record: record.clone(), until });
        }
        drop(records);
        // It fails where there is no watch.
        _ = self.puts.send((record.clone(), ttl));
        Ok(())
    }

    async fn list(&self) -> Result<Vec<(Record, Duration)>, StoreError> {
        let now = now();
        let left =
            |kept: &StoredRecord| (kept.record.clone(), kept.until.saturating_duration_since(now));
        Ok(self.current().values().map(left).collect())
    }

    async fn watch(&self) -> Result<MemoryWatch, StoreError> {
        Ok(MemoryWatch(self.puts.subscribe()))
    }
}

impl HealthWatch for MemoryWatch {
    async fn next(&mut self) -> Result<(Record, Duration), StoreError> {
        loop {
            match self.0.recv().await {
                Ok(put) => return Ok(put),
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return Err("the store is gone".into()),
            }
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a store counts the time that its records have")]
fn now() -> Instant {
    Instant::now()
}
