//! Three processes that call the same two providers, first each for itself and then with health that they
//! share through Redis. The first provider dies, and a table says what that cost each of them.
//!
//! ```text
//! cargo run -p reqwest-failover-redis --example fleet
//! ```
//!
//! It needs `redis-server`, or another program that the variable `REDIS_SERVER` names, and no network: Redis
//! and the providers listen on loopback. The processes are this program, started again as `fleet worker`.

use std::error::Error;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use reqwest_failover::{Event, Provider, ProviderChain, Report};
use reqwest_failover_redis::RedisHealth;
use reqwest_failover_testing::redis::RedisServer;
use reqwest_failover_testing::stand_in::StandIn;
use reqwest_middleware::ClientBuilder;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, stdin};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

const PROCESSES: usize = 3;
const PAUSE: Duration = Duration::from_millis(100);

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["worker", store, first, second] => work(store, first, second).await,
        _ => compare().await,
    }
}

// One of the processes: an application with two providers.

async fn work(store: &str, first: &str, second: &str) -> Result<(), Box<dyn Error>> {
    let known = Arc::new(Mutex::new(None));
    let learned = known.clone();
    let mut builder = ProviderChain::builder([
        Provider::new("first", first).bearer_auth("key-1"),
        Provider::new("second", second).bearer_auth("key-2"),
    ])
    .claim("http://api.example/v1")
    .observe(move |event| {
        if let Event::BreakerOpened { heard, .. } = event {
            let from = if *heard { "others" } else { "own failures" };
            *learned.lock().unwrap() = Some((now_in_ms(), from));
        }
    });
    if store != "alone" {
        // All there is to do.
        builder = builder.share(RedisHealth::new(store, "example")?);
    }
    let chain = builder.build()?;
    chain.synced(Duration::from_secs(2)).await;
    let http = reqwest::Client::builder().no_proxy().build()?;
    let client = ClientBuilder::new(http).with(chain).build();
    println!("ready");

    let (mut requests, mut unserved, mut wasted) = (0, 0, 0);
    let mut lines = BufReader::new(stdin()).lines();
    while timeout(PAUSE.mul_f64(0.5 + fastrand::f64()), lines.next_line()).await.is_err() {
        let request = client.post("http://api.example/v1/chat/completions").body("{}");
        requests += 1;
        match request.send().await {
            Ok(response) if response.status().is_success() => {
                let report = Report::of(&response).ok_or("the chain did not claim it")?;
                wasted += report.attempts().len() - 1;
            }
            _ => unserved += 1,
        }
    }
    let (at, from) = known.lock().unwrap().unwrap_or((0, "nothing"));
    println!("{requests} {unserved} {wasted} {at} {from}");
    Ok(())
}

// The comparison.

/// What one process says of itself at the end.
struct Said {
    requests: u32,
    unserved: u32,
    wasted: u32,
    knew_after: Duration,
    from: String,
}

async fn compare() -> Result<(), Box<dyn Error>> {
    let Some(redis) = RedisServer::start(&[]) else { return Ok(()) };
    println!("{PROCESSES} processes, each with about 10 requests a second, and 2 providers.");
    println!("After 2 s the first provider dies. The breaker opens at 5 failures in a row.\n");
    let alone = play("alone").await?;
    let shared = play(&redis.url()).await?;
    print_table("Each for itself", &alone);
    print_table("With .share(RedisHealth::new(..))", &shared);
    let [alone, shared] =
        [&alone, &shared].map(|said| said.iter().map(|of| of.wasted).sum::<u32>());
    println!("Attempts wasted on the dead provider: {alone} alone, {shared} shared.");
    if shared >= alone {
        return Err("sharing did not help".into());
    }
    Ok(())
}

/// Starts the processes, kills the first provider, and returns what they say.
async fn play(store: &str) -> Result<Vec<Said>, Box<dyn Error>> {
    let first = StandIn::start("key-1", "I am the first.").await?;
    let second = StandIn::start("key-2", "I am the second.").await?;
    let mut workers = Vec::new();
    for _ in 0..PROCESSES {
        workers.push(Worker::start([store, first.base_url(), second.base_url()])?);
    }
    for worker in &mut workers {
        assert_eq!(worker.line().await?, "ready");
    }
    sleep(Duration::from_secs(2)).await;
    let died_at = now_in_ms();
    first.die();
    sleep(Duration::from_secs(3)).await;
    let mut said = Vec::new();
    for worker in &mut workers {
        worker.end().await?;
        let line = worker.line().await?;
        let mut words = line.splitn(5, ' ');
        let mut next = || words.next().ok_or("the worker says too little");
        said.push(Said {
            requests: next()?.parse()?,
            unserved: next()?.parse()?,
            wasted: next()?.parse()?,
            knew_after: Duration::from_millis(next()?.parse::<u64>()?.saturating_sub(died_at)),
            from: next()?.to_owned(),
        });
    }
    Ok(said)
}

fn print_table(title: &str, said: &[Said]) {
    println!("{title}:");
    println!("  process  requests  not served  wasted attempts  knew after  from");
    for (number, of) in said.iter().enumerate() {
        println!(
            "  {:<7}  {:>8}  {:>10}  {:>15}  {:>7} ms  {}",
            number + 1,
            of.requests,
            of.unserved,
            of.wasted,
            of.knew_after.as_millis(),
            of.from,
        );
    }
    println!();
}

/// This program, started again.
struct Worker {
    child: Child,
    lines: tokio::io::Lines<BufReader<tokio::process::ChildStdout>>,
}

impl Worker {
    fn start(words: [&str; 3]) -> Result<Self, Box<dyn Error>> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("worker")
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let output = child.stdout.take().ok_or("its output is a pipe")?;
        Ok(Self { child, lines: BufReader::new(output).lines() })
    }

    async fn line(&mut self) -> Result<String, Box<dyn Error>> {
        let line = timeout(Duration::from_secs(10), self.lines.next_line()).await??;
        line.ok_or_else(|| "the worker has ended".into())
    }

    async fn end(&mut self) -> Result<(), Box<dyn Error>> {
        let input = self.child.stdin.as_mut().ok_or("its input is a pipe")?;
        Ok(input.write_all(b"end\n").await?)
    }
}

/// By the machine's clock, which all of these processes share.
fn now_in_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or_default()
}
