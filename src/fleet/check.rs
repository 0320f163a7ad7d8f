//! What a store must do, tried on one.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::{HealthStore, HealthWatch, Record, StoreError};

/// Tries whether a store does what [`HealthStore`] asks for. For the tests of an implementation.
///
/// `other` is a second connection to the same store: what one writes, the other must see. The records that
/// it writes have keys of their own that begin with `check/`, and are removed at the end. It takes 2 s to
/// 5 s, and needs a tokio runtime.
///
/// A watch that never delivers anything is in order, and so passes; after 1 s without a record it is
/// taken for one.
///
/// ```
/// # let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
/// # runtime.block_on(async {
/// use reqwest_failover::fleet::{self, MemoryStore};
///
/// let store = MemoryStore::new();
/// assert_eq!(fleet::check(&store, &store.clone()).await, Ok(()));
/// # });
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Errors
/// What the store does wrong, in words.
pub async fn check(store: &impl HealthStore, other: &impl HealthStore) -> Result<(), String> {
    let checked = StoreCheck { store, other, prefix: format!("check/{:016x}/", fastrand::u64(..)) };
    let result = checked.run().await;
    for name in ["a", "b", "odd", "long"] {
        // The result says what is wrong with the store, if anything is.
        _ = store.put(&checked.record(name, ""), Duration::ZERO).await;
    }
    result
}

struct StoreCheck<'a, S, O> {
    store: &'a S,
    other: &'a O,
    prefix: String,
}

impl<S: HealthStore, O: HealthStore> StoreCheck<'_, S, O> {
    async fn run(&self) -> Result<(), String> {
        let mut watch = said("watch", self.other.watch().await)?;
        self.overwrites().await?;
        self.keeps_bytes().await?;
        self.watches(&mut watch).await?;
        self.removes().await?;
        self.expires().await
    }

    async fn overwrites(&self) -> Result<(), String> {
        self.put(&self.record("a", "1"), MINUTE).await?;
        self.put(&self.record("b", "1"), MINUTE).await?;
        said("put", self.other.put(&self.record("a", "2"), 2 * MINUTE).await)?;
        let listed = self.list().await?;
        self.expect(&listed, "a", "2", 2 * MINUTE, "put must write over the record with its key")?;
        self.expect(&listed, "b", "1", MINUTE, "put must leave other records alone")?;
        self.put(&self.record("a", "3"), MINUTE).await?;
        let listed = self.list().await?;
        self.expect(&listed, "a", "3", MINUTE, "put must set the time to live, also a shorter one")
    }

    /// Everything that a record may hold.
    async fn keeps_bytes(&self) -> Result<(), String> {
        let printable: String = (b' '..=b'~').map(char::from).collect();
        let odd = format!("  {printable}  ");
        let long = "x ".repeat(Record::MAX_BODY / 2);
        self.put(&self.record("odd", &odd), MINUTE).await?;
        self.put(&self.record("long", &long), MINUTE).await?;
        let listed = self.list().await?;
        self.expect(&listed, "odd", &odd, MINUTE, "every printable byte of a body must be kept")?;
        self.expect(&listed, "long", &long, MINUTE, "a body of 1 KiB must be kept")
    }

    /// What was put until now has been watched, in part or as a whole.
    async fn watches(&self, watch: &mut O::Watch) -> Result<(), String> {
        loop {
            let next = match timeout(Duration::from_secs(1), watch.next()).await {
                Err(_) => return Ok(()),
                Ok(next) => said("watch", next)?,
            };
            let (record, ttl) = next;
            let Some(name) = record.key().strip_prefix(&self.prefix) else { continue };
            let was_put = match (name, record.body()) {
                ("a", body) => ["1", "2", "3"].contains(&body),
                ("b", body) => body == "1",
                ("odd", body) => body.starts_with("   !\"#") && body.ends_with("}~  "),
                ("long", body) => body.len() == Record::MAX_BODY,
                _ => false,
            };
            if !was_put {
                return Err(format!("watch returned for {name:?} what was not put: {record:?}"));
            }
            let most = if record.body() == "2" { 2 * MINUTE } else { MINUTE };
            if ttl > most || ttl + SLACK < most {
                return Err(format!(
                    "watch returned a record that was put for {most:?} as one for {ttl:?}"
                ));
            }
        }
    }

    async fn removes(&self) -> Result<(), String> {
        self.put(&self.record("a", "4"), Duration::ZERO).await?;
        // What is not there can be removed all the same.
        self.put(&self.record("a", "4"), Duration::ZERO).await?;
        let listed = self.list().await?;
        if listed.contains_key("a") {
            return Err("a put with a time to live of zero must remove the record".into());
        }
        self.expect(&listed, "b", "1", MINUTE, "removing a record must leave others alone")
    }

    async fn expires(&self) -> Result<(), String> {
        self.put(&self.record("a", "5"), Duration::from_millis(300)).await?;
        wait(Duration::from_millis(600)).await;
        let listed = self.list().await?;
        if listed.contains_key("a") {
            return Err("a record must expire: one of 300 ms was listed after 600 ms".into());
        }
        self.expect(&listed, "b", "1", MINUTE, "a record must not expire with another")
    }

    fn record(&self, name: &str, body: &str) -> Record {
        let record = Record::new(&format!("{}{name}", self.prefix), body);
        record.expect("the name is short and the body is printable")
    }

    async fn put(&self, record: &Record, ttl: Duration) -> Result<(), String> {
        said("put", self.store.put(record, ttl).await)
    }

    /// What the other connection lists of the records of this check.
    async fn list(&self) -> Result<BTreeMap<String, (String, Duration)>, String> {
        let mut listed = BTreeMap::new();
        for (record, left) in said("list", self.other.list().await)? {
            let Some(name) = record.key().strip_prefix(&self.prefix) else { continue };
            if listed.insert(name.to_owned(), (record.body().to_owned(), left)).is_some() {
                return Err(format!("list returned the record {name:?} twice"));
            }
        }
        Ok(listed)
    }

    fn expect(
        &self,
        listed: &BTreeMap<String, (String, Duration)>,
        name: &str,
        body: &str,
        ttl: Duration,
        rule: &str,
    ) -> Result<(), String> {
        match listed.get(name) {
            None => Err(format!("{rule}: the record {name:?} is not listed")),
            Some((listed, _)) if listed != body => {
                Err(format!("{rule}: {name:?} was put as {body:?} and listed as {listed:?}"))
            }
            Some((_, left)) if *left > ttl || *left + SLACK < ttl => {
                Err(format!("{rule}: {name:?} was put for {ttl:?} and listed with {left:?} left"))
            }
            Some(_) => Ok(()),
        }
    }
}

fn said<T>(operation: &str, result: Result<T, StoreError>) -> Result<T, String> {
    result.map_err(|error| format!("{operation} failed: {error}"))
}

#[expect(clippy::disallowed_methods, reason = "a record needs time to expire")]
async fn wait(time: Duration) {
    sleep(time).await;
}

const MINUTE: Duration = Duration::from_secs(60);
/// So much of a time to live may be gone when it is read: the store may be slow.
const SLACK: Duration = Duration::from_secs(10);
