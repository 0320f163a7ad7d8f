//! Processes that call the same two providers, each through a chain of its own.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use http::Extensions;
use reqwest::{Request, Response};
use reqwest_failover::{Event, Provider, ProviderChain, ProviderChainBuilder, Report};
use reqwest_failover_testing::terminal::{URL, lock};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware, Middleware, Next};
use tokio::time::{Instant, sleep, sleep_until};

use crate::store::Server;

/// What a provider does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    Served,
    Failed,
    /// It is at a limit, for so many seconds.
    Limited(u64),
}

/// What the first provider does with a request of this process, at this time. The second serves all.
pub(crate) type Behaviour = Box<dyn Fn(usize, Duration, &mut fastrand::Rng) -> Reply + Send + Sync>;

/// An attempt at the first provider.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    pub(crate) process: usize,
    /// A process that was started again has another one.
    pub(crate) chain: u64,
    pub(crate) sent: Duration,
    pub(crate) reply: Reply,
}

pub(crate) struct World {
    began: Instant,
    behaviour: Behaviour,
    /// How long an answer takes on average.
    attempt: Duration,
    /// Each process has its own, so that nothing but its own calls changes what it draws.
    random: Vec<Mutex<fastrand::Rng>>,
    asked: Mutex<Vec<Asked>>,
    /// Calls, calls that the second provider served, calls that failed. For each process.
    calls: Vec<[AtomicU64; 3]>,
    /// When each process's breaker or cooldown moved.
    moves: Mutex<Vec<Move>>,
    /// Of this, and of how many chains there were before it, each chain is drawn.
    seed: u64,
    chains: AtomicU64,
}

/// A process's circuit has moved.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Move {
    pub(crate) process: usize,
    pub(crate) at: Duration,
    pub(crate) kind: Kind,
    pub(crate) heard: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Opened,
    Closed,
    Cooling,
    Probing,
}

/// A process: its chain, and a client over it.
#[derive(Clone)]
pub(crate) struct Pod {
    pub(crate) chain: ProviderChain,
    client: ClientWithMiddleware,
    world: Arc<World>,
    number: usize,
}

impl World {
    pub(crate) fn new(
        processes: usize,
        seed: u64,
        attempt: Duration,
        behaviour: Behaviour,
    ) -> Arc<Self> {
        Arc::new(Self {
            began: Instant::now(),
            behaviour,
            attempt,
            random: (0..processes as u64)
                .map(|process| Mutex::new(fastrand::Rng::with_seed(seed ^ process << 32)))
                .collect(),
            asked: Mutex::default(),
            calls: (0..processes).map(|_| Default::default()).collect(),
            moves: Mutex::default(),
            seed,
            chains: AtomicU64::new(0),
        })
    }

    pub(crate) fn now(&self) -> Duration {
        self.began.elapsed()
    }

    pub(crate) async fn sleep_until(&self, time: Duration) {
        sleep_until(self.began + time).await;
    }

    /// A process that shares its health through this server, if there is one.
    pub(crate) fn pod(
        self: &Arc<Self>,
        number: usize,
        server: Option<&Arc<Server>>,
        settings: impl FnOnce(ProviderChainBuilder) -> ProviderChainBuilder,
    ) -> Pod {
        let chains = self.chains.fetch_add(1, Ordering::Relaxed);
        let world = self.clone();
        let providers = ["first", "second"]
            .map(|name| Provider::new(name, format!("https://{name}.test/v1")).bearer_auth(name));
        let chain = ProviderChain::builder(providers)
            .claim("https://caller.test/v1")
            .observe(move |event| world.note(number, event));
        let drawn = self.seed << 20 | chains << 1;
        fastrand::seed(drawn);
        let chain = match server {
            Some(server) => chain.share(server.connect(number)),
            None => chain,
        };
        fastrand::seed(drawn + 1);
        let chain = settings(chain).build().unwrap();
        let terminal = Terminal { world: self.clone(), process: number, chain: chains };
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let client = ClientBuilder::new(client).with(chain.clone()).with(terminal).build();
        Pod { chain, client, world: self.clone(), number }
    }

    fn note(&self, process: usize, event: &Event<'_>) {
        let (kind, heard) = match event {
            Event::BreakerOpened { provider: "first", heard, .. } => (Kind::Opened, *heard),
            Event::BreakerClosed { provider: "first", .. } => (Kind::Closed, false),
            Event::CoolingDown { provider: "first", heard, .. } => (Kind::Cooling, *heard),
            Event::BreakerProbing { provider: "first", .. } => (Kind::Probing, false),
            _ => return,
        };
        lock(&self.moves).push(Move { process, at: self.now(), kind, heard });
    }

    pub(crate) fn moves(&self) -> Vec<Move> {
        lock(&self.moves).clone()
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        lock(&self.asked).clone()
    }

    /// Attempts at the first provider that failed.
    pub(crate) fn wasted(&self) -> usize {
        lock(&self.asked).iter().filter(|asked| asked.reply != Reply::Served).count()
    }

    /// Calls of these processes, those that the second provider served, and those that failed.
    pub(crate) fn calls(&self, processes: impl IntoIterator<Item = usize>) -> [u64; 3] {
        let mut sum = [0; 3];
        for process in processes {
            for (sum, count) in sum.iter_mut().zip(&self.calls[process]) {
                *sum += count.load(Ordering::Relaxed);
            }
        }
        sum
    }

    /// A random time of this average.
    fn exponential(&self, process: usize, average: Duration) -> Duration {
        average.mul_f64(-(1.0 - lock(&self.random[process]).f64()).ln())
    }
}

impl Pod {
    /// Calls once. Whether it was served.
    pub(crate) async fn call(&self) -> bool {
        let result = self.client.post(URL).body("{}").send().await;
        let served_by = result.ok().and_then(|response| {
            let report = Report::of(&response)?;
            report.served_by().map(str::to_owned)
        });
        let counts = &self.world.calls[self.number];
        counts[0].fetch_add(1, Ordering::Relaxed);
        match served_by.as_deref() {
            Some("first") => {}
            Some(_) => _ = counts[1].fetch_add(1, Ordering::Relaxed),
            None => _ = counts[2].fetch_add(1, Ordering::Relaxed),
        }
        served_by.is_some()
    }

    /// Calls at random times, this often a second, until then.
    pub(crate) async fn keep_calling(self, a_second: f64, until: Duration) {
        let mut calls = tokio::task::JoinSet::new();
        loop {
            let pause = Duration::from_secs_f64(1.0 / a_second);
            sleep(self.world.exponential(self.number, pause)).await;
            while calls.try_join_next().is_some() {}
            if self.world.now() >= until {
                break;
            }
            let pod = self.clone();
            calls.spawn(async move { pod.call().await });
        }
        calls.join_all().await;
    }
}

struct Terminal {
    world: Arc<World>,
    process: usize,
    chain: u64,
}

#[async_trait]
impl Middleware for Terminal {
    async fn handle(
        &self,
        request: Request,
        _: &mut Extensions,
        _: Next<'_>,
    ) -> reqwest_middleware::Result<Response> {
        let world = &self.world;
        let sent = world.now();
        sleep(world.exponential(self.process, world.attempt)).await;
        let reply = match request.url().host_str() {
            Some("first.test") => {
                let reply =
                    (world.behaviour)(self.process, sent, &mut lock(&world.random[self.process]));
                lock(&world.asked).push(Asked {
                    process: self.process,
                    chain: self.chain,
                    sent,
                    reply,
                });
                reply
            }
            _ => Reply::Served,
        };
        let response = http::Response::builder();
        let response = match reply {
            Reply::Served => response.status(200),
            Reply::Failed => response.status(500),
            Reply::Limited(seconds) => response.status(429).header("retry-after", seconds),
        };
        Ok(response.body(reqwest::Body::default()).unwrap().into())
    }
}
