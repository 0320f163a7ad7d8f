//! A chain's part in its fleet: the task that writes to the store and reads from it.
//!
//! The task is the only one that waits for the store. It does what [`Member`] says, takes the table's lock for
//! one record at a time, and holds the chain only while it works on it: once the last handle to the chain is
//! gone, the task ends.

mod operators;

use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::task::yield_now;
use tokio::time::{sleep_until, timeout};

use self::operators::{key_of, obey};
pub(super) use self::operators::{tell_of_isolation, tell_of_order};
use super::fleet_link::FleetLink;
use super::list::{CurrentList, StartTask};
use super::shared::{Shared, now};
use crate::fleet::member::{Heard, Member, Write};
use crate::fleet::report::Subject;
use crate::fleet::{HealthStore, HealthWatch, Record, StoreError};
use crate::health::Received;
use crate::message;
use crate::observe::{Event, EventOrigin, FleetCount, catch_panic};

/// What a chain and the task that shares its health have in common, and how the task is started.
pub(super) fn link(store: impl HealthStore) -> (Arc<FleetLink>, StartTask) {
    let (link, store) = (Arc::new(FleetLink::new(now())), Arc::new(store));
    let fleet = link.clone();
    let start = move |chain| {
        if let Ok(runtime) = Handle::try_current()
            && fleet.begin()
        {
            let task = Task { store: store.clone(), chain, fleet: fleet.clone() };
            drop(runtime.spawn(task.run()));
        }
    };
    (link, Box::new(start))
}

struct Task<S> {
    store: Arc<S>,
    chain: Weak<CurrentList>,
    fleet: Arc<FleetLink>,
}

/// Why the task ends, or begins again.
enum TaskEnd {
    /// The last handle to the chain is gone.
    ChainGone,
    StoreFailed {
        operation: &'static str,
        error: String,
    },
}

/// What ended a wait.
enum Woken {
    /// There may be something to write, or to synchronise.
    Asked,
    Due,
    Watched(Result<(Record, Duration), TaskEnd>),
}

impl<S: HealthStore> Task<S> {
    async fn run(self) {
        let member = &mut *self.fleet.member.lock().await;
        let mut list = Weak::new();
        // What the last task was about to write.
        member.write_all_again();
        loop {
            match self.take_part(member, &mut list).await {
                Ok(never) => match never {},
                Err(TaskEnd::ChainGone) => return,
                Err(TaskEnd::StoreFailed { operation, error }) => {
                    let Ok(chain) = self.chain() else { return };
                    self.report_failure(&chain.get(), operation, &error);
                }
            }
            let again_at = member.fail(now());
            loop {
                let Ok(chain) = self.chain() else { return };
                self.refresh_providers(member, &mut list, &chain);
                drop(chain);
                if self.wait(again_at).await {
                    break;
                }
            }
        }
    }

    /// Joins the fleet, and does its part until the store fails.
    async fn take_part(
        &self,
        member: &mut Member,
        list: &mut Weak<Shared>,
    ) -> Result<std::convert::Infallible, TaskEnd> {
        let mut watch = limited("watch", || self.store.watch()).await?;
        self.read_list(member, list).await?;
        self.write_all(member, list).await?;
        // Now it is known that the store reads and writes.
        member.recover();
        self.report_joined(&self.chain()?.get());
        let mut syncing = *self.fleet.synced.borrow();
        loop {
            let asked = self.fleet.sync_asked();
            if syncing < asked {
                self.read_list(member, list).await?;
                member.begin_sync(&self.chain()?.get().lock().health);
                syncing = asked;
            }
            self.write_all(member, list).await?;
            if member.is_synced() {
                let is_news = |synced: &mut u64| std::mem::replace(synced, syncing) != syncing;
                self.fleet.synced.send_if_modified(is_news);
            }
            let write_at = member.write_at(&self.chain()?.get().lock().health, now());
            let until = write_at.map_or(member.poll_at(), |at| at.min(member.poll_at()));
            match self.wait_for(&mut watch, until).await {
                Woken::Asked => {}
                Woken::Due if now() >= member.poll_at() => self.read_list(member, list).await?,
                Woken::Due => {}
                Woken::Watched(watched) => {
                    let (record, ttl) = watched?;
                    let current = self.chain()?;
                    self.refresh_providers(member, list, &current);
                    match member.read_watched(&record, ttl, now()) {
                        Some(heard) => self.apply(member, &current, heard, ttl),
                        None => {
                            self.ignore(&current.get());
                            drop(current);
                            // The watch of a user's store need not wait.
                            yield_now().await;
                        }
                    }
                }
            }
        }
    }

    /// Writes what is to be written now, until the store is to be read.
    async fn write_all(&self, member: &mut Member, list: &mut Weak<Shared>) -> Result<(), TaskEnd> {
        loop {
            let chain = self.chain()?;
            self.refresh_providers(member, list, &chain);
            let commands = self.fleet.take_commands();
            for subject in commands.into_values() {
                if let Subject::Isolated { .. } = subject {
                    // The list may have been replaced since.
                    obey(&chain, &subject);
                }
                member.command(subject);
            }
            let write = member.next_write(&mut chain.get().lock().health, now());
            drop(chain);
            let Some(Write { record, ttl }) = write else { return Ok(()) };
            let began = now();
            limited("put", || self.store.put(&record, ttl)).await?;
            let took = now().saturating_duration_since(began);
            self.count(&[FleetCount::Record("put"), FleetCount::PutTook(took)])?;
            if now() >= member.poll_at() {
                return Ok(());
            }
        }
    }

    /// Reads all that the store has.
    async fn read_list(&self, member: &mut Member, list: &mut Weak<Shared>) -> Result<(), TaskEnd> {
        let records = limited("list", || self.store.list()).await?;
        let chain = self.chain()?;
        self.refresh_providers(member, list, &chain);
        // Requests do not wait while the records are read.
        let is_probing = |id| chain.get().lock().health.is_probing(id, now());
        let heard = member.read_list(&records, is_probing, now());
        for (heard, ttl) in heard {
            self.apply(member, &chain, heard, ttl);
        }
        self.fleet.lock_status().processes_heard = member.processes_heard(now());
        Ok(())
    }

    fn chain(&self) -> Result<Arc<CurrentList>, TaskEnd> {
        self.chain.upgrade().ok_or(TaskEnd::ChainGone)
    }

    /// Looks whether the list was replaced.
    fn refresh_providers(
        &self,
        member: &mut Member,
        list: &mut Weak<Shared>,
        chain: &Arc<CurrentList>,
    ) {
        let current = chain.get();
        if !std::ptr::eq(list.as_ptr(), &*current) {
            *list = Arc::downgrade(&current);
            let named = current.entries.iter().map(|(id, _)| (id, key_of(&current, id)));
            for isolation in member.set_providers(named.collect()) {
                obey(chain, &isolation);
            }
        }
    }

    fn apply(&self, member: &Member, chain: &CurrentList, heard: Heard, ttl: Duration) {
        let list = chain.get();
        match heard {
            Heard::Nothing => return,
            Heard::Unread => return self.ignore(&list),
            Heard::Command(subject) => obey(chain, &subject),
            // A user's closure may have replaced the list since.
            Heard::Report { provider, .. } if !list.entries.has(provider) => return,
            Heard::Report { provider, process, report } => {
                let now = now();
                let mut table = list.lock();
                let received = table.health.apply_report(provider, process, &report, ttl, now);
                let state = table.health.state(provider, now);
                drop(table);
                let Received::Applied(changes) = received else { return };
                list.observer.set_state_gauge(provider, state);
                list.emit_changes(NO_REQUEST, provider, None, changes);
            }
        }
        let mut status = self.fleet.lock_status();
        status.last_heard = Some(now());
        status.processes_heard = member.processes_heard(now());
        drop(status);
        list.observer.count_fleet(FleetCount::Record("heard"));
    }

    fn ignore(&self, list: &Shared) {
        self.fleet.lock_status().ignored += 1;
        list.observer.count_fleet(FleetCount::Record("ignored"));
    }

    fn count(&self, counts: &[FleetCount]) -> Result<(), TaskEnd> {
        let list = self.chain()?.get();
        counts.iter().for_each(|count| list.observer.count_fleet(*count));
        Ok(())
    }

    fn report_joined(&self, list: &Shared) {
        let was_joined = std::mem::replace(&mut self.fleet.lock_status().is_joined, true);
        if !was_joined {
            list.observer.emit(&Event::FleetJoined);
        }
    }

    /// Reports that the store has failed: once, until it is back.
    fn report_failure(&self, list: &Shared, operation: &'static str, error: &str) {
        let mut status = self.fleet.lock_status();
        status.errors += 1;
        let is_first = status.is_joined || status.errors == 1;
        status.is_joined = false;
        drop(status);
        list.observer.count_fleet(FleetCount::Error(operation));
        if is_first {
            let error = format!("{operation}: {error}");
            let error = message::make_safe(&error, true, &list.secrets(&[])).unwrap_or_default();
            list.observer.emit(&Event::FleetLost { error: &error });
        }
    }

    /// Waits for what comes first: a record, a wish, or that time.
    async fn wait_for(&self, watch: &mut S::Watch, until: Instant) -> Woken {
        let mut due = pin!(sleep_until(until.into()));
        let mut asked = pin!(self.fleet.woken());
        let mut watched = pin!(caught("watch", || watch.next()));
        poll_fn(|context| {
            if due.as_mut().poll(context).is_ready() {
                return Poll::Ready(Woken::Due);
            }
            if asked.as_mut().poll(context).is_ready() {
                return Poll::Ready(Woken::Asked);
            }
            watched.as_mut().poll(context).map(Woken::Watched)
        })
        .await
    }

    /// Waits for that time, or until it is woken. Returns whether it is that time.
    async fn wait(&self, until: Instant) -> bool {
        let mut due = pin!(sleep_until(until.into()));
        let mut asked = pin!(self.fleet.woken());
        poll_fn(|context| match due.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(true),
            Poll::Pending => asked.as_mut().poll(context).map(|()| false),
        })
        .await
    }
}

/// A runtime that ends drops the task, also one that has never run. The next request starts another one.
impl<S> Drop for Task<S> {
    fn drop(&mut self) {
        self.fleet.end();
    }
}

/// Asks the store, which has half a second.
async fn limited<T, F>(operation: &'static str, ask: impl FnOnce() -> F) -> Result<T, TaskEnd>
where
    F: Future<Output = Result<T, StoreError>>,
{
    let answer = timeout(CALL_LIMIT, caught(operation, ask)).await;
    let slow = || format!("no answer within {} ms", CALL_LIMIT.as_millis());
    answer.unwrap_or_else(|_| Err(TaskEnd::StoreFailed { operation, error: slow() }))
}

/// Asks the store, which is the user's and may panic.
async fn caught<T, F>(operation: &'static str, ask: impl FnOnce() -> F) -> Result<T, TaskEnd>
where
    F: Future<Output = Result<T, StoreError>>,
{
    let failed = |error| TaskEnd::StoreFailed { operation, error };
    let panicked = || failed("the store panicked".into());
    let mut asked = pin!(catch_panic(ask).ok_or_else(panicked)?);
    let answer = poll_fn(|context| {
        let polled = catch_panic(|| asked.as_mut().poll(context));
        polled.map_or(Poll::Ready(None), |poll| poll.map(Some))
    });
    answer.await.ok_or_else(panicked)?.map_err(|error| failed(error.to_string()))
}

const NO_REQUEST: EventOrigin<'static> = EventOrigin { id: None, extensions: None };
/// How long one call to the store may take.
const CALL_LIMIT: Duration = Duration::from_millis(500);
