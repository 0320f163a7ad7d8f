//! A store in memory that fails as networks and servers do, for one process and not for another.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::future::pending;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use reqwest_failover::fleet::{
    HealthStore, HealthWatch, MemoryStore, MemoryWatch, Record, StoreError,
};
use reqwest_failover_testing::terminal::lock;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

/// The server, and what lies between it and each process.
pub(crate) struct Server {
    store: Mutex<MemoryStore>,
    /// Counts restarts, which end every watch.
    restarts: watch::Sender<u64>,
    links: Mutex<Vec<Link>>,
    /// Everything that was ever put, and by which process.
    seen: Mutex<Vec<(usize, Record)>>,
    random: Mutex<fastrand::Rng>,
}

/// How one process reaches the server.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Link {
    pub(crate) state: Reach,
    /// The shares of watched records that are lost, and that come twice.
    pub(crate) lost: f64,
    pub(crate) doubled: f64,
    /// The longest that a watched record takes; some overtake others.
    pub(crate) delay: Duration,
    /// Whether what the process puts arrives, with the answer lost.
    pub(crate) is_deaf: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Reach {
    #[default]
    Up,
    /// It refuses at once.
    Down,
    /// It says nothing.
    Silent,
    /// It answers after this long.
    Slow(Duration),
}

impl Server {
    pub(crate) fn new(processes: usize, seed: u64) -> Arc<Self> {
        let link = Link { delay: Duration::from_millis(3), ..Link::default() };
        Arc::new(Self {
            store: Mutex::default(),
            restarts: watch::Sender::new(0),
            links: Mutex::new(vec![link; processes]),
            seen: Mutex::default(),
            random: Mutex::new(fastrand::Rng::with_seed(seed)),
        })
    }

    pub(crate) fn connect(self: &Arc<Self>, process: usize) -> FaultyStore {
        FaultyStore { server: self.clone(), process }
    }

    pub(crate) fn link(&self, process: usize, change: impl FnOnce(&mut Link)) {
        change(&mut lock(&self.links)[process]);
    }

    pub(crate) fn links(&self, change: impl Fn(&mut Link)) {
        lock(&self.links).iter_mut().for_each(change);
    }

    /// It starts anew, without records. Every watch ends.
    pub(crate) fn restart(&self) {
        *lock(&self.store) = MemoryStore::new();
        self.restarts.send_modify(|restarts| *restarts += 1);
    }

    /// It loses its records, and says nothing of it.
    pub(crate) async fn empty(&self) {
        let store = self.store();
        for (record, _) in store.list().await.unwrap() {
            // A watch sees that, as where a server is told to delete them all.
            store.put(&record, Duration::ZERO).await.unwrap();
        }
    }

    pub(crate) fn store(&self) -> MemoryStore {
        lock(&self.store).clone()
    }

    /// Everything that was ever put, and by which process.
    pub(crate) fn seen(&self) -> Vec<(usize, Record)> {
        lock(&self.seen).clone()
    }

    fn reach(&self, process: usize) -> Link {
        lock(&self.links)[process]
    }

    async fn call(&self, process: usize) -> Result<(), StoreError> {
        let random = |most: Duration| most.mul_f64(lock(&self.random).f64());
        match self.reach(process).state {
            Reach::Up => sleep(random(Duration::from_millis(1))).await,
            Reach::Down => return Err("connection refused".into()),
            Reach::Silent => pending().await,
            Reach::Slow(wait) => sleep(wait).await,
        }
        Ok(())
    }
}

/// One process's connection.
pub(crate) struct FaultyStore {
    server: Arc<Server>,
    process: usize,
}

impl HealthStore for FaultyStore {
    type Watch = FaultyWatch;

    async fn put(&self, record: &Record, ttl: Duration) -> Result<(), StoreError> {
        self.server.call(self.process).await?;
        lock(&self.server.seen).push((self.process, record.clone()));
        self.server.store().put(record, ttl).await?;
        match self.server.reach(self.process).is_deaf {
            true => Err("connection reset".into()),
            false => Ok(()),
        }
    }

    async fn list(&self) -> Result<Vec<(Record, Duration)>, StoreError> {
        self.server.call(self.process).await?;
        self.server.store().list().await
    }

    async fn watch(&self) -> Result<FaultyWatch, StoreError> {
        self.server.call(self.process).await?;
        Ok(FaultyWatch {
            watch: self.server.store().watch().await?,
            restarts: self.server.restarts.subscribe(),
            server: self.server.clone(),
            process: self.process,
            on_the_way: BinaryHeap::new(),
            number: 0,
            delivered: None,
        })
    }
}

pub(crate) struct FaultyWatch {
    watch: MemoryWatch,
    restarts: watch::Receiver<u64>,
    server: Arc<Server>,
    process: usize,
    on_the_way: BinaryHeap<Reverse<(Instant, u64)>>,
    number: u64,
    delivered: Option<Records>,
}

type Records = std::collections::HashMap<u64, (Record, Duration)>;

impl FaultyWatch {
    fn send(&mut self, record: &(Record, Duration)) {
        let link = self.server.reach(self.process);
        let mut random = lock(&self.server.random);
        if matches!(link.state, Reach::Down | Reach::Silent) || random.f64() < link.lost {
            return;
        }
        let copies = if random.f64() < link.doubled { 2 } else { 1 };
        for _ in 0..copies {
            self.number += 1;
            let shortest = Duration::from_micros(300).min(link.delay);
            let at = Instant::now() + shortest + (link.delay - shortest).mul_f64(random.f64());
            self.on_the_way.push(Reverse((at, self.number)));
            self.delivered.get_or_insert_default().insert(self.number, record.clone());
        }
    }
}

impl HealthWatch for FaultyWatch {
    async fn next(&mut self) -> Result<(Record, Duration), StoreError> {
        loop {
            let due = self.on_the_way.peek().map(|Reverse((at, _))| *at);
            let arrives = async {
                match due {
                    Some(at) => sleep_until(at).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                biased;
                _ = self.restarts.changed() => return Err("connection reset".into()),
                record = self.watch.next() => self.send(&record?),
                () = arrives => {
                    let arrived = self.on_the_way.pop();
                    let number = arrived.map(|Reverse((_, number))| number);
                    let records = self.delivered.as_mut();
                    let record = number.zip(records).and_then(|(number, all)| all.remove(&number));
                    if let Some(record) = record {
                        return Ok(record);
                    }
                }
            }
        }
    }
}
