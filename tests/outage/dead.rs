//! A first provider that is down, over real sockets: attempts that are wasted on it, answers, and how
//! soon it has its traffic back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use reqwest_failover::{Breaker, Event, Provider, ProviderChain, Report, State, harden};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::support::harness::BODY;
use crate::support::{Answer, Received, Refusing, Server};
use crate::table::{Part, Row, thousands};

const REQUESTS: usize = 1_000;

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// How the first provider is down.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Outage {
    Error500,
    RateLimited429,
    Refused,
    Reset,
    Hang,
}

use Outage::{Error500, Hang, RateLimited429, Refused, Reset};

const OUTAGES: [Outage; 5] = [Error500, RateLimited429, Refused, Reset, Hang];

impl Outage {
    /// What the first provider says; it rests for this long, where that is its own to say.
    fn answer(self, rest: Duration) -> Answer {
        match self {
            Error500 => Answer::error(500, "down"),
            RateLimited429 => Answer::error(429, "slow down")
                .header("retry-after-ms", rest.as_millis().to_string()),
            Reset => Answer::reset(),
            Hang => Answer::stall(),
            Refused => unreachable!("no server answers"),
        }
    }

    fn words(self) -> &'static str {
        match self {
            Error500 => "A answers 500",
            RateLimited429 => "A answers 429",
            Refused => "A refuses connections",
            Reset => "A resets connections",
            Hang => "A hangs, attempts of 100 ms",
        }
    }

    /// The attempts that it takes to find out.
    fn price(self) -> u64 {
        if self == RateLimited429 { 1 } else { 5 }
    }
}

/// The first provider: down by a switch, or a port at which nothing listens.
enum First {
    Scripted(Server, Arc<AtomicBool>),
    Absent(Refusing),
    /// Listening again, until the runtime ends.
    Back,
}

impl First {
    async fn down(outage: Outage, rest: Duration) -> Self {
        if outage == Refused {
            return Self::Absent(Refusing::start());
        }
        let down = Arc::new(AtomicBool::new(true));
        let is_down = down.clone();
        let script = move |_: &Received| match is_down.load(Ordering::SeqCst) {
            true => outage.answer(rest),
            false => Answer::ok(),
        };
        Self::Scripted(Server::start(script).await, down)
    }

    fn base_url(&self) -> String {
        match self {
            Self::Scripted(server, _) => server.base_url("/v1"),
            Self::Absent(refusing) => refusing.base_url("/v1"),
            Self::Back => unreachable!("asked before"),
        }
    }

    /// What arrived, where anything can.
    fn received(&self) -> Option<usize> {
        match self {
            Self::Scripted(server, _) => Some(server.requests().len()),
            _ => None,
        }
    }

    async fn recover(self) -> Self {
        match self {
            Self::Scripted(_, ref down) => {
                down.store(false, Ordering::SeqCst);
                self
            }
            Self::Absent(refusing) => {
                let address = refusing.base_url("").replace("http://", "");
                drop(refusing);
                let listener = TcpListener::bind(address).await.unwrap();
                tokio::spawn(answer_all(listener));
                Self::Back
            }
            Self::Back => self,
        }
    }
}

/// Says 200 once on each connection.
async fn answer_all(listener: TcpListener) {
    while let Ok((mut socket, _)) = listener.accept().await {
        tokio::spawn(async move {
            let mut read = Vec::new();
            while !read.ends_with(BODY.as_bytes()) {
                if socket.read_buf(&mut read).await.is_ok_and(|length| length == 0) {
                    return;
                }
            }
            let answer = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok";
            let _ = socket.write_all(answer.as_bytes()).await;
        });
    }
}

/// An outage, and a client that lives through it.
struct Scene {
    first: First,
    second: Server,
    chain: ProviderChain,
    client: ClientWithMiddleware,
    probes: Arc<AtomicUsize>,
}

impl Scene {
    async fn of(outage: Outage, breaker: Breaker, rest: Duration) -> Self {
        let first = First::down(outage, rest).await;
        let second = Server::start(Answer::ok()).await;
        let probes = Arc::new(AtomicUsize::new(0));
        let mut provider = Provider::new("first", first.base_url()).bearer_auth("key-1");
        if outage == Hang {
            provider = provider.attempt_timeout(ms(100));
        }
        let providers =
            [provider, Provider::new("second", second.base_url("/v1")).bearer_auth("key-2")];
        let count = probes.clone();
        let chain = ProviderChain::builder(providers)
            .breaker(breaker)
            .observe(move |event| {
                let probing = matches!(event, Event::BreakerProbing { .. });
                count.fetch_add(usize::from(probing), Ordering::Relaxed);
            })
            .build()
            .unwrap();
        let plain = harden(reqwest::Client::builder().no_proxy()).build().unwrap();
        let client = ClientBuilder::new(plain).with(chain.clone()).build();
        Self { first, second, chain, client, probes }
    }

    /// Asks once, reads the answer, and says who served.
    async fn ask(&self) -> String {
        let request = self.client.post(self.second.base_url("/v1/chat/completions"));
        let request = request.header("content-type", "application/json").body(BODY);
        let response = request.send().await.expect("no error reaches the caller");
        assert_eq!(response.status(), 200);
        let served = Report::of(&response).unwrap().served_by().expect("an answer").to_owned();
        response.bytes().await.expect("a whole answer");
        served
    }

    fn first_attempts(&self) -> u64 {
        self.chain.snapshot().providers()[0].attempts()
    }
}

struct Measured {
    outage: Outage,
    concurrent: usize,
    answers: usize,
    attempts: u64,
    received: Option<usize>,
    probes: usize,
    took: Duration,
}

async fn measure(outage: Outage, concurrent: usize) -> Measured {
    let scene = Scene::of(outage, Breaker::default(), Duration::from_secs(60)).await;
    let scene = Arc::new(scene);
    let asked = Arc::new(AtomicUsize::new(0));
    let begun = Instant::now();
    let callers: Vec<_> = (0..concurrent)
        .map(|_| {
            let (scene, asked) = (scene.clone(), asked.clone());
            tokio::spawn(async move {
                let mut answers = 0;
                while asked.fetch_add(1, Ordering::Relaxed) < REQUESTS {
                    answers += usize::from(scene.ask().await == "second");
                }
                answers
            })
        })
        .collect();
    let mut answers = 0;
    for caller in callers {
        answers += caller.await.unwrap();
    }
    let took = begun.elapsed();
    let snapshot = scene.chain.snapshot();
    assert_eq!(snapshot.requests(), REQUESTS as u64);
    assert_eq!((snapshot.served_by_fallback(), snapshot.exhausted()), (REQUESTS as u64, 0));
    assert!(snapshot.providers().iter().all(|provider| provider.in_flight() == 0));
    assert_eq!(scene.second.requests().len(), REQUESTS);
    Measured {
        outage,
        concurrent,
        answers,
        attempts: scene.first_attempts(),
        received: scene.first.received(),
        probes: scene.probes.load(Ordering::Relaxed),
        took,
    }
}

impl Measured {
    /// Where it stands in the table.
    fn enter(&self, at: usize) {
        let Self { outage, concurrent, answers, attempts, received, probes, took } = self;
        let price = match outage.price() {
            1 => "once".to_owned(),
            times => format!("{times} times"),
        };
        let (part, calls, must) = match concurrent {
            1 => (Part::InARow, String::new(), format!("all served, A asked {price}")),
            _ => {
                let must = format!("all served, A asked {price} and by those on their way");
                (Part::AtOnce, format!(", {concurrent} at once"), must)
            }
        };
        let arrived = received.map_or(String::new(), |all| format!(", {all} arrived"));
        let seen = format!(
            "{} served, A asked {attempts}{arrived}, {probes} probes, {} ms",
            thousands(*answers),
            took.as_millis(),
        );
        let setup = format!("{}, {} requests{calls}", outage.words(), thousands(REQUESTS));
        Row { setup, over: "sockets", seen, must }.enter(part, at);
    }
}

fn check(row: &Measured) {
    let Measured { outage, answers, attempts, received, probes, .. } = row;
    assert_eq!(*answers, REQUESTS, "{outage:?}");
    // None at all, unless this machine takes longer than a break for a thousand requests.
    let allowed = outage.price() + row.concurrent as u64 - 1 + *probes as u64;
    assert!(*attempts <= allowed, "{outage:?}: {attempts} first attempts, {allowed} allowed");
    if let Some(received) = received {
        // A connection may be given up before its request is written.
        assert!(*received as u64 <= *attempts, "{outage:?}: {received} arrived of {attempts}");
        if *outage != Hang {
            assert_eq!(*received as u64, *attempts, "{outage:?}");
        }
    }
}

#[tokio::test]
async fn a_thousand_requests_in_a_row_cost_a_dead_first_provider_five_attempts() {
    for (at, outage) in OUTAGES.into_iter().enumerate() {
        let row = measure(outage, 1).await;
        row.enter(at);
        check(&row);
        assert!(row.attempts >= row.outage.price());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_requests_at_once_cost_it_no_more_than_those_already_on_their_way() {
    for (at, outage) in OUTAGES.into_iter().enumerate() {
        let row = measure(outage, 64).await;
        row.enter(at);
        check(&row);
    }
}

#[tokio::test]
async fn a_first_provider_that_recovers_serves_again_within_one_break() {
    for (at, outage) in OUTAGES.into_iter().enumerate() {
        let breaker = Breaker::default().breaks(ms(300), ms(300));
        // The shortest rest that a provider is given.
        let mut scene = Scene::of(outage, breaker, ms(1_000)).await;
        // Into the middle of a rest, with no probe out.
        let until = loop {
            assert_eq!(scene.ask().await, "second");
            match scene.chain.snapshot().providers()[0].state() {
                State::Open { until, .. } | State::CoolingDown { until, .. }
                    if until > Instant::now() + ms(50) =>
                {
                    break until;
                }
                _ => {}
            }
        };
        scene.first = scene.first.recover().await;
        let recovered = Instant::now();
        let before = scene.first_attempts();
        let mut meanwhile = 0;
        loop {
            let asked = Instant::now();
            let served = scene.ask().await;
            if served == "first" {
                assert!(Instant::now() >= until, "{outage:?}: its rest is kept");
                break;
            }
            assert!(asked < until, "{outage:?}: the first request after the rest is served by it");
            meanwhile += 1;
            tokio::time::sleep(ms(1)).await;
        }
        let took = recovered.elapsed();
        assert_eq!(scene.first_attempts(), before + 1, "{outage:?}: after {meanwhile} others");
        assert_eq!(scene.chain.snapshot().providers()[0].state(), State::Closed);
        for _ in 0..20 {
            assert_eq!(scene.ask().await, "first", "{outage:?}: all of its traffic is back");
        }
        let rest = until.saturating_duration_since(recovered);
        let row = Row {
            setup: format!(
                "{}, and recovers {} ms before the end",
                outage.words(),
                rest.as_millis()
            ),
            over: "sockets",
            seen: format!("serves again after {} ms, B served {meanwhile}", took.as_millis()),
            must: "with the first request after its rest".to_owned(),
        };
        row.enter(Part::Recovery, at);
    }
}
