//! What a chain and the task that shares its health have in common. By it the chain wakes the task.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Mutex as AsyncMutex, Notify, watch};
use tokio::time::timeout;

use crate::fleet::member::Member;
use crate::fleet::report::Subject;
use crate::health::Process;
use crate::observe::FleetSnapshot;

/// Shared by a chain and its task.
pub(super) struct FleetLink {
    pub(super) process: Process,
    is_running: AtomicBool,
    wake: Notify,
    /// What operators want of all processes, until the task takes it: the last command on each subject. It
    /// is locked where the list may be held, and not the other way round.
    commands: Mutex<BTreeMap<String, Subject>>,
    /// The task's. The next task goes on with it, where a runtime has ended.
    pub(super) member: AsyncMutex<Member>,
    /// How often it was asked to synchronise, and up to which of these it has.
    sync_asked: AtomicU64,
    pub(super) synced: watch::Sender<u64>,
    status: Mutex<FleetSnapshot>,
}

impl FleetLink {
    pub(super) fn new(now: Instant) -> Self {
        let process = Process(fastrand::u64(..));
        Self {
            process,
            is_running: AtomicBool::new(false),
            wake: Notify::new(),
            commands: Mutex::default(),
            member: AsyncMutex::new(Member::new(process, now)),
            sync_asked: AtomicU64::new(0),
            synced: watch::Sender::new(0),
            status: Mutex::default(),
        }
    }

    /// Whether the task runs.
    #[inline]
    pub(super) fn is_running(&self) -> bool {
        self.is_running.load(Ordering::Relaxed)
    }

    /// A task is about to begin. Not if there is one.
    pub(super) fn begin(&self) -> bool {
        !self.is_running.swap(true, Ordering::AcqRel)
    }

    /// The task has ended.
    pub(super) fn end(&self) {
        self.lock_status().is_joined = false;
        self.is_running.store(false, Ordering::Release);
    }

    /// There is something to do.
    pub(super) fn wake(&self) {
        self.wake.notify_one();
    }

    /// Waits until there is something to do.
    pub(super) async fn woken(&self) {
        self.wake.notified().await;
    }

    pub(super) fn command(&self, subject: Subject) {
        self.lock_commands().insert(subject.key(), subject);
        self.wake();
    }

    /// Whether an operator of this process has wanted something else of this subject, which is not told yet.
    pub(super) fn has_command(&self, subject: &Subject) -> bool {
        self.lock_commands().contains_key(&subject.key())
    }

    pub(super) fn take_commands(&self) -> BTreeMap<String, Subject> {
        std::mem::take(&mut *self.lock_commands())
    }

    /// Waits until the store was read, and all was written, that was to be when this was called.
    pub(super) async fn synced(&self, within: Duration) -> bool {
        let mut synced = self.synced.subscribe();
        let asked = self.sync_asked.fetch_add(1, Ordering::AcqRel) + 1;
        self.wake();
        timeout(within, synced.wait_for(|synced| *synced >= asked)).await.is_ok()
    }

    /// How often it was asked to synchronise.
    pub(super) fn sync_asked(&self) -> u64 {
        self.sync_asked.load(Ordering::Acquire)
    }

    pub(super) fn snapshot(&self) -> FleetSnapshot {
        *self.lock_status()
    }

    pub(super) fn lock_status(&self) -> MutexGuard<'_, FleetSnapshot> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_commands(&self) -> MutexGuard<'_, BTreeMap<String, Subject>> {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
