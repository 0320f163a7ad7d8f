//! One cell of the matrix: a kind of fault, where in the chain it happens, and how the chain is set
//! up. It is played once and observed; `checks` says what must be seen.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use reqwest_failover::{
    Ambiguous, Breaker, Exhausted, Hedge, Inspect, Provider, ProviderChain, harden,
};
use reqwest_middleware::ClientBuilder;
use tokio::runtime::Handle;

use crate::caller::{Caller, Exchange, Told};
use crate::kinds::Kind;
use crate::script::{Asked, ms};
use crate::server::{Fault, Server, Wire};
use crate::sightings::Sightings;
use crate::support::canary::canary;
use crate::support::harness::trusting;
use crate::support::lock;
use crate::tls;

pub(crate) const NAMES: [&str; 3] = ["alpha", "bravo", "gamma"];
/// What a connection, with TLS, may take.
pub(crate) const CONNECT: Duration = ms(200);
/// What a success may be held back, where the chain looks into it.
pub(crate) const HOLD: Duration = ms(200);
pub(crate) const TOTAL: Duration = Duration::from_secs(3);
/// How long the body of a failed answer is read, unless told otherwise.
pub(crate) const READ: Duration = ms(100);
const HEDGED_AFTER: Duration = ms(50);

/// A chat-completions body with what a careless layer would change: order, spacing, escapes.
const BODY: &str = "{\"model\": \"gpt-5\",  \"b\":1,\"a\":1.0, \"text\":\"\\u00e9 é \\/\" }\n";
/// More than the buffers of both sockets hold.
const UPLOAD: usize = 6 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Position {
    First,
    AllButLast,
    All,
}

impl Position {
    pub(crate) const EACH: [Self; 3] = [Self::First, Self::AllButLast, Self::All];

    /// How many providers, from the first on, are faulty.
    pub(crate) fn faulty(self) -> usize {
        match self {
            Self::First => 1,
            Self::AllButLast => NAMES.len() - 1,
            Self::All => NAMES.len(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Setup {
    Standard,
    /// `Ambiguous::IdempotentOnly`.
    Careful,
    /// The same, and the request has the extension `Replay::allowed()`.
    CarefulWithReplay,
    /// `Exhausted::Error`.
    ToldAsError,
    /// A provider that is silent for [`HEDGED_AFTER`] is hedged.
    Hedged,
}

#[derive(Clone)]
pub(crate) struct Cell {
    pub(crate) kind: Arc<Kind>,
    pub(crate) position: Position,
    pub(crate) setup: Setup,
}

impl Cell {
    /// What an attempt may take to its headers.
    pub(crate) fn attempt_timeout(&self) -> Duration {
        if self.kind.upload { ms(800) } else { ms(300) }
    }
}

impl std::fmt::Display for Cell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} · {:?} · {:?}", self.kind.name, self.position, self.setup)
    }
}

/// All that was seen of a cell.
pub(crate) struct Observed {
    pub(crate) sightings: Arc<Sightings>,
    pub(crate) servers: Vec<Server>,
    pub(crate) body: bytes::Bytes,
    /// While the fault lasts.
    pub(crate) faulty: Exchange,
    /// After it has ended.
    pub(crate) healed: Exchange,
    /// Tasks of the client's runtime, before the client was made and after it was dropped.
    pub(crate) tasks: [usize; 2],
    /// Connections that the servers still had open then.
    pub(crate) left_open: usize,
}

/// The servers of a cell, and the keys that are about.
pub(crate) struct Harness {
    pub(crate) servers: Vec<Server>,
    pub(crate) sightings: Arc<Sightings>,
    resolves: Arc<AtomicBool>,
}

impl Harness {
    /// Must be called on the runtime that serves.
    pub(crate) fn set(cell: &Cell) -> std::io::Result<Self> {
        let keys = NAMES.map(canary);
        let callers = ["caller-bearer", "caller-cookie", "caller-query"].map(canary);
        let mut servers = Vec::new();
        for (at, server) in NAMES.into_iter().enumerate() {
            let asked = Asked { server, key: keys[at].clone() };
            let fault = (at < cell.position.faulty()).then(|| cell.kind.fault.clone());
            servers.push(Server::start(asked, cell.kind.wire, fault)?);
        }
        let sightings = Arc::new(Sightings::of(&keys, &callers));
        Ok(Self { servers, sightings, resolves: Arc::default() })
    }

    /// Each with a credential of another form.
    fn providers(&self, cell: &Cell) -> Vec<Provider> {
        let provider = |at: usize| {
            let server = &self.servers[at];
            let provider = Provider::new(NAMES[at], server.base_url());
            let provider = provider.attempt_timeout(cell.attempt_timeout());
            let key = &server.seen.asked.key;
            let provider = match at {
                0 => provider.bearer_auth(key),
                1 => provider.api_key_header("x-api-key", key),
                _ => provider.api_key_query("key", key),
            };
            // A name that leads nowhere is not known to be this machine's.
            match cell.kind.fault {
                Fault::Nameless => provider.danger_allow_plaintext(),
                _ => provider,
            }
        };
        (0..self.servers.len()).map(provider).collect()
    }

    fn set_healthy(&self, servers: &Handle, healthy: bool) {
        self.resolves.store(healthy, Ordering::SeqCst);
        let _serving = servers.enter();
        for server in &self.servers {
            server.set_healthy(healthy).expect("a socket that listens");
        }
    }

    /// How many requests each server was sent.
    pub(crate) fn wire(&self) -> Vec<usize> {
        self.servers.iter().map(|server| server.seen.heads()).collect()
    }

    /// Plays the cell. `servers` is the runtime that serves; this one is the client's.
    pub(crate) async fn play(self, cell: &Cell, servers: &Handle) -> Observed {
        let tasks = || Handle::current().metrics().num_alive_tasks();
        let before = tasks();
        let body = match cell.kind.upload {
            // Not counted as memory that the layer takes.
            true => bytes::Bytes::from_static(UPLOADED),
            false => bytes::Bytes::from_static(BODY.as_bytes()),
        };
        let (faulty, healed) = {
            let events = Arc::<Mutex<Vec<Told>>>::default();
            let chain = self.chain(cell, &events);
            let client = ClientBuilder::new(self.client(cell)).with(chain.clone()).build();
            let caller = Caller { harness: &self, cell, client, chain, events, body: body.clone() };
            if cell.kind.reused {
                self.set_healthy(servers, true);
                for name in NAMES {
                    caller.warm_up(name).await;
                }
                self.set_healthy(servers, false);
            }
            let faulty = caller.exchange().await;
            self.set_healthy(servers, true);
            // Longer than any break.
            tokio::time::sleep(ms(3)).await;
            (faulty, caller.exchange().await)
        };
        let left_open = || self.servers.iter().map(|server| server.seen.open_connections()).sum();
        let patience = Instant::now() + Duration::from_secs(3);
        while (tasks() != before || left_open() != 0usize) && Instant::now() < patience {
            tokio::time::sleep(ms(1)).await;
        }
        Observed {
            tasks: [before, tasks()],
            left_open: left_open(),
            sightings: self.sightings,
            servers: self.servers,
            body,
            faulty,
            healed,
        }
    }

    fn chain(&self, cell: &Cell, events: &Arc<Mutex<Vec<Told>>>) -> ProviderChain {
        let (events, sightings) = (events.clone(), self.sightings.clone());
        let chain = ProviderChain::builder(self.providers(cell))
            .claim("http://caller.test/v1")
            .total_timeout(TOTAL)
            // One failure opens it, so that the next request is a probe.
            .breaker(Breaker::default().consecutive(1).breaks(ms(1), ms(1)))
            .observe(move |event| {
                sightings.look_at("an event", &format!("{event:?}"));
                lock(&events).push(Told::of(event));
            });
        let chain = match cell.setup {
            Setup::Standard => chain,
            Setup::Careful | Setup::CarefulWithReplay => {
                chain.on_ambiguous(Ambiguous::IdempotentOnly)
            }
            Setup::ToldAsError => chain.on_exhausted(Exhausted::Error),
            Setup::Hedged => chain.hedge(Hedge::after(HEDGED_AFTER).max_extra(1.0)),
        };
        let inspect = Inspect::errors_in_success().time_limit(HOLD).first_content_timeout(HOLD);
        let chain = if cell.kind.inspected { chain.inspect(inspect) } else { chain };
        chain.build().expect("a chain")
    }

    fn client(&self, cell: &Cell) -> reqwest::Client {
        let authority = reqwest::Certificate::from_der(tls::authority()).expect("a certificate");
        let resolver = Resolver(self.resolves.clone());
        let authority = (cell.kind.wire == Wire::Tls).then_some(authority);
        let client = trusting(harden(reqwest::Client::builder()), authority)
            .no_proxy()
            .connect_timeout(CONNECT)
            .dns_resolver(Arc::new(resolver));
        let client = match cell.kind.wire {
            // Without it, a connection that went silent is used again and again.
            Wire::Http2 => client
                .http2_prior_knowledge()
                .http2_keep_alive_interval(ms(60))
                .http2_keep_alive_timeout(ms(60))
                .http2_keep_alive_while_idle(true),
            _ => client,
        };
        client.build().expect("a client")
    }
}

pub(crate) static UPLOADED: &[u8] = &[b'u'; UPLOAD];

/// Asks no network: names lead to this machine, or nowhere.
struct Resolver(Arc<AtomicBool>);

impl reqwest::dns::Resolve for Resolver {
    fn resolve(&self, _: reqwest::dns::Name) -> reqwest::dns::Resolving {
        let resolves = self.0.load(Ordering::SeqCst);
        Box::pin(async move {
            match resolves {
                true => {
                    let addr = SocketAddr::from(([127, 0, 0, 1], 0));
                    Ok(Box::new(std::iter::once(addr)) as reqwest::dns::Addrs)
                }
                false => Err("no such host".into()),
            }
        })
    }
}

impl Server {
    /// Whether requests can get as far as this server's HTTP.
    pub(crate) fn can_be_asked(fault: &Fault) -> bool {
        !matches!(
            fault,
            Fault::Refuses | Fault::Nameless | Fault::Certificate(_) | Fault::Handshake(_)
        )
    }
}
