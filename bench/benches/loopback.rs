//! Whole requests over loopback, compared with plain `reqwest`: instructions, what a failover costs, and
//! what 64 callers at once get through. The servers are a process of their own. Needs valgrind
//! (Debian: `apt-get install valgrind`).
//!
//! `cargo bench -p reqwest-failover-bench --bench loopback` prints one table of ratios, with plain
//! `reqwest` measured against itself, which shows how far a ratio can be trusted.

#[allow(dead_code)]
mod rows;
mod wire;

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::{Method, Request, Response, Url};
use reqwest_chain::{ChainMiddleware, Chainer};
use reqwest_failover::{Provider, ProviderChain, harden};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware, Error};
use reqwest_retry::RetryTransientMiddleware;
use reqwest_retry::policies::ExponentialBackoff;
use rows::{Noop, OnlyOnce};
use wire::{HELD_BACK, Servers};

const REQUESTS: u64 = 400;
const AT_ONCE: usize = 64;
const PER_CALLER: usize = 40;
const ROUNDS: usize = 41;
const FAILOVERS: usize = 50;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.iter().any(|argument| argument == "--serve") {
        wire::serve();
    } else if let Some(at) = arguments.iter().position(|argument| argument == "--row") {
        let number = |offset: usize| arguments[at + offset].parse::<usize>().expect("a number");
        let row = Row::of_name(&arguments[at + 1]).expect("a row's name");
        let ports = [number(2), number(3)].map(|port| port as u16);
        single_threaded(async {
            let caller = Caller::new(row, ports, &failure(number(4)));
            for _ in 0..number(5) {
                caller.call().await;
            }
        });
    } else {
        let servers = Servers::start();
        instructions(servers.ports);
        connections(servers.ports);
        at_once(servers.ports);
    }
}

/// The lengths in bytes of the error bodies that failovers are measured with.
const ERRORS: [usize; 3] = [0, 160, 4096];

/// As long as those of real providers: a shorter one has to be searched for differently.
const KEY: &str = "sk-proj-9Kc1vQm4TzXbW7yRfLd2Gh6JpN3sEa8uVi5oBq0w";

/// What the caller's program sends of its own.
const CALLERS: &str = "Bearer sk-proj-Zt7Nq3WfK0xUe9RbPm5Ys1Ga8HcJd4Lv6TiOkXw2B";

/// Where a server fails with an error of so many bytes.
fn failure(bytes: usize) -> String {
    format!("fail-{bytes}")
}

/// What a caller does for one answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Row {
    Plain,
    Noop,
    Retry,
    Chain,
    Ours,
    /// Asks the failing server, then the other one, both by itself.
    TwoPlain,
    ChainFailover,
    Failover,
}

impl Row {
    const SERVED: [Self; 5] = [Self::Plain, Self::Noop, Self::Retry, Self::Chain, Self::Ours];
    const FAILED_OVER: [Self; 3] = [Self::TwoPlain, Self::ChainFailover, Self::Failover];

    fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain reqwest",
            Self::Noop => "no-op layer",
            Self::Retry => "reqwest-retry",
            Self::Chain => "reqwest-chain",
            Self::Ours => "failover: defaults",
            Self::TwoPlain => "two plain calls",
            Self::ChainFailover => "reqwest-chain: one failover",
            Self::Failover => "failover: one failover",
        }
    }

    fn of_name(name: &str) -> Option<Self> {
        Self::SERVED.into_iter().chain(Self::FAILED_OVER).find(|row| row.name() == name)
    }
}

/// A client and where it sends to.
struct Caller {
    row: Row,
    plain: reqwest::Client,
    client: ClientWithMiddleware,
    failing: Url,
    url: Url,
    body: Bytes,
}

impl Caller {
    /// `failure` is the path below which the first server fails.
    fn new(row: Row, [first, second]: [u16; 2], failure: &str) -> Self {
        let plain = harden(reqwest::Client::builder().no_proxy()).build().unwrap();
        let base = |port: u16, path: &str| format!("http://127.0.0.1:{port}{path}/v1");
        let failing = base(first, &format!("/{failure}"));
        let provider = |name: &str, base: String| Provider::new(name, base).bearer_auth(KEY);
        let builder = ClientBuilder::new(plain.clone());
        let two = |first: String| {
            ProviderChain::builder([provider("first", first), provider("second", base(second, ""))])
        };
        let url = |base: String| Url::parse(&format!("{base}/chat/completions")).unwrap();
        let client = match row {
            Row::Plain | Row::TwoPlain => builder,
            Row::Noop => builder.with(Noop),
            Row::Retry => builder.with(RetryTransientMiddleware::new_with_policy(
                ExponentialBackoff::builder().build_with_max_retries(1),
            )),
            Row::Chain => builder.with(ChainMiddleware::new(OnlyOnce)),
            Row::ChainFailover => builder.with(ChainMiddleware::new(GoTo(url(base(second, ""))))),
            Row::Ours => builder.with(two(base(first, "")).build().unwrap()),
            Row::Failover => builder.with(two(failing.clone()).without_health().build().unwrap()),
        };
        Self {
            row,
            plain,
            client: client.build(),
            failing: url(failing),
            url: url(base(first, "")),
            body: Bytes::from(vec![b'x'; 1024]),
        }
    }

    /// Gets one good answer.
    async fn call(&self) {
        let answer = match self.row {
            Row::Plain => self.plain.execute(self.request(&self.url)).await.unwrap(),
            Row::TwoPlain => {
                let failed = self.plain.execute(self.request(&self.failing)).await.unwrap();
                read(failed, 503).await;
                self.plain.execute(self.request(&self.url)).await.unwrap()
            }
            Row::Failover | Row::ChainFailover => {
                self.client.execute(self.request(&self.failing)).await.unwrap()
            }
            _ => self.client.execute(self.request(&self.url)).await.unwrap(),
        };
        read(answer, 200).await;
    }

    fn request(&self, url: &Url) -> Request {
        let mut request = Request::new(Method::POST, url.clone());
        let headers = request.headers_mut();
        headers.insert("content-type", http::HeaderValue::from_static("application/json"));
        headers.insert("authorization", http::HeaderValue::from_static(CALLERS));
        *request.body_mut() = Some(self.body.clone().into());
        request
    }
}

async fn read(answer: Response, status: u16) {
    assert_eq!(answer.status(), status);
    answer.bytes().await.expect("a whole body");
}

/// Sends a failed request once more, to another URL.
struct GoTo(Url);

#[async_trait::async_trait]
impl Chainer for GoTo {
    type State = ();

    async fn chain(
        &self,
        result: reqwest_middleware::Result<Response>,
        (): &mut (),
        request: &mut Request,
    ) -> std::result::Result<Option<Response>, Error> {
        let response = result?;
        if response.status().is_success() {
            return Ok(Some(response));
        }
        *request.url_mut() = self.0.clone();
        Ok(None)
    }
}

/// Whole requests in instructions, of the client alone.
fn instructions(ports: [u16; 2]) {
    compare("a request that is served", &Row::SERVED, 0, ports);
    for bytes in ERRORS {
        compare(&format!("a failover from {bytes} bytes"), &Row::FAILED_OVER, bytes, ports);
    }
}

/// Prints every row compared with the first one, and that one compared with itself.
fn compare(title: &str, rows: &[Row], error: usize, ports: [u16; 2]) {
    let first = counted(rows[0], error, ports);
    println!("{title:<28} {:>13} {:>8}", "instructions", "ratio");
    for row in rows {
        let count = if *row == rows[0] { first } else { counted(*row, error, ports) };
        println!("{:<28} {count:>13.0} {:>8.3}", row.name(), count / first);
    }
    let again = counted(rows[0], error, ports);
    println!("{:<28} {again:>13.0} {:>8.3}\n", "the first again", again / first);
}

/// Instructions of one call: the difference between two runs leaves out everything else. The middle
/// one of three, since how often a socket is not ready yet is a matter of luck.
fn counted(row: Row, error: usize, [first, second]: [u16; 2]) -> f64 {
    let run = |requests: u64| -> f64 {
        let output = Command::new("valgrind")
            .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
            .arg(std::env::current_exe().unwrap())
            .args(["--row", row.name(), &first.to_string(), &second.to_string()])
            .args([error.to_string(), requests.to_string()])
            .output()
            .expect("valgrind is installed");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{text}");
        let (_, count) = text.split_once("Collected : ").expect("callgrind's summary");
        count.trim().lines().next().unwrap().trim().parse().unwrap()
    };
    let once = || (run(2 * REQUESTS) - run(REQUESTS)) / REQUESTS as f64;
    median(vec![once(), once(), once()])
}

/// A failed response's body is read to its end, so that its connection is used again, and is not waited
/// for longer than its time limit.
fn connections(ports: [u16; 2]) {
    println!("{:<38} {:>15}", format!("{FAILOVERS} failovers in a row"), "new connections");
    for bytes in [0, 1024, 64 * 1024] {
        let opened = single_threaded(async {
            let caller = Caller::new(Row::Failover, ports, &failure(bytes));
            caller.call().await;
            let before = accepted(ports[0]).await;
            for _ in 0..FAILOVERS {
                caller.call().await;
            }
            // One of them asks for the count.
            accepted(ports[0]).await - before - 1
        });
        println!("{:<38} {opened:>15}", format!("error bodies of {bytes} bytes"));
    }
    let took = single_threaded(async {
        let caller = Caller::new(Row::Failover, ports, "slow");
        caller.call().await;
        let begun = Instant::now();
        for _ in 0..FAILOVERS {
            caller.call().await;
        }
        begun.elapsed() / FAILOVERS as u32
    });
    println!("error bodies that are held back {HELD_BACK:?}: a failover takes {took:?}");
    assert!(took < HELD_BACK * 3 / 4, "a failover waits no longer than `error_body_timeout`");
}

/// How many connections the server has accepted, this one included.
async fn accepted(port: u16) -> u64 {
    let plain = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = format!("http://127.0.0.1:{port}/connections");
    plain.get(url).send().await.unwrap().text().await.unwrap().parse().expect("a number")
}

/// What many callers at once get through, in pairs of which each side goes first in turn.
fn at_once(ports: [u16; 2]) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let caller = |row| Arc::new(Caller::new(row, ports, &failure(0)));
    let callers = [Row::Plain, Row::Ours, Row::Chain, Row::Plain].map(caller);
    for caller in &callers {
        runtime.block_on(rush(caller));
    }
    let mut ratios = [const { Vec::new() }; 3];
    for round in 0..ROUNDS {
        let mut order = [0, 1, 2, 3];
        order.rotate_left(round % 4);
        let mut times = [Duration::ZERO; 4];
        for at in order {
            times[at] = runtime.block_on(rush(&callers[at]));
        }
        let [plain, others @ ..] = times.map(|time| time.as_secs_f64());
        for (ratios, other) in ratios.iter_mut().zip(others) {
            ratios.push(plain / other);
        }
    }
    let [ours, chain, again] = ratios.map(median);
    println!(
        "\n{AT_ONCE} callers at once, throughput over plain reqwest's, in turn, median of {ROUNDS} rounds: \
         {ours:.3}, reqwest-chain {chain:.3}, plain against itself {again:.3}"
    );
}

async fn rush(caller: &Arc<Caller>) -> Duration {
    let begun = Instant::now();
    let tasks: Vec<_> = (0..AT_ONCE)
        .map(|_| {
            let caller = caller.clone();
            tokio::spawn(async move {
                for _ in 0..PER_CALLER {
                    caller.call().await;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    begun.elapsed()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn single_threaded<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}
