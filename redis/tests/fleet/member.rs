//! One process of a fleet: the test's own executable, started again. It reads commands from its standard
//! input and prints what it did, a line each.

use std::collections::HashMap;
use std::io::{BufRead, stdin};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use reqwest_failover::{Breaker, Event, Provider, ProviderChain, Report};
use reqwest_failover_redis::RedisHealth;
use reqwest_failover_testing::support::harness::plain;
use reqwest_failover_testing::support::lock;
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware};
use tokio::task::JoinHandle;

/// What the lines begin with that are not of the test harness.
pub(crate) const MARK: &str = "member: ";

macro_rules! say {
    ($($words:tt)*) => { println!("{MARK}{}", format!($($words)*)) };
}

pub(crate) async fn run() {
    let (commands, mut next) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || {
        // It ends when the test does, which closes the pipe.
        stdin().lock().lines().map_while(Result::ok).try_for_each(|line| commands.send(line))
    });
    let mut chains = HashMap::new();
    while let Some(command) = next.recv().await {
        let words: Vec<&str> = command.split(' ').collect();
        match words[..] {
            ["chain", label, namespace, store, bases, first, longest] => {
                let breaks = [first, longest].map(|ms| Duration::from_millis(ms.parse().unwrap()));
                let running = Running::new(label, namespace, store, bases, breaks);
                let synced = running.chain.synced(Duration::from_secs(3)).await;
                chains.insert(label.to_owned(), running);
                say!("chain {label} {synced}");
            }
            [verb, label, ref rest @ ..] => {
                let running = chains.get_mut(label).expect("the chain was made");
                running.obey(verb, rest).await;
            }
            _ => panic!("{command:?}"),
        }
    }
}

struct Running {
    label: String,
    chain: ProviderChain,
    client: ClientWithMiddleware,
    calls: Arc<Mutex<Vec<Call>>>,
    sending: Option<JoinHandle<()>>,
}

struct Call {
    is_served: bool,
    took: Duration,
}

impl Running {
    fn new(label: &str, namespace: &str, store: &str, bases: &str, breaks: [Duration; 2]) -> Self {
        let provider = |(number, base): (usize, &str)| {
            Provider::new(format!("p{number}"), base).bearer_auth(format!("key-{number}"))
        };
        let own_label = label.to_owned();
        let mut builder = ProviderChain::builder(bases.split(',').enumerate().map(provider))
            .claim("http://api.test/v1")
            .breaker(Breaker::default().breaks(breaks[0], breaks[1]))
            .attempt_timeout(Duration::from_secs(2))
            .observe(move |event| say_event(&own_label, event));
        if store != "-" {
            builder = builder.share(RedisHealth::new(store, namespace).unwrap());
        }
        let chain = builder.build().unwrap();
        let client = ClientBuilder::new(plain()).with(chain.clone()).build();
        Self { label: label.into(), chain, client, calls: Arc::default(), sending: None }
    }

    async fn obey(&mut self, verb: &str, rest: &[&str]) {
        let label = &self.label;
        match (verb, rest) {
            // So often a second, at random.
            ("go", [rate]) => {
                let rate: f64 = rate.parse().unwrap();
                let (client, calls) = (self.client.clone(), self.calls.clone());
                self.sending = Some(tokio::spawn(async move {
                    loop {
                        let wait = -fastrand::f64().max(1e-9).ln() / rate;
                        tokio::time::sleep(Duration::from_secs_f64(wait)).await;
                        tokio::spawn(call(client.clone(), calls.clone()));
                    }
                }));
                say!("go {label}");
            }
            ("halt", []) => {
                self.sending.take().expect("it was sending").abort();
                tokio::time::sleep(Duration::from_millis(300)).await;
                let calls = std::mem::take(&mut *lock(&self.calls));
                let served = calls.iter().filter(|call| call.is_served).count();
                let took: Vec<String> =
                    calls.iter().map(|call| call.took.as_micros().to_string()).collect();
                say!("halt {label} {served} {} {}", calls.len() - served, took.join(","));
            }
            ("isolate", [name]) => {
                self.chain.isolate(name).unwrap();
                say!("isolate {label} {}", self.chain.synced(Duration::from_secs(2)).await);
            }
            ("restore", [name]) => {
                self.chain.restore(name).unwrap();
                say!("restore {label} {}", self.chain.synced(Duration::from_secs(2)).await);
            }
            ("order", names) => {
                self.chain.set_order(names).unwrap();
                say!("order {label} {}", self.chain.synced(Duration::from_secs(2)).await);
            }
            ("state", []) => {
                let snapshot = self.chain.snapshot();
                let providers = snapshot.providers().iter();
                let states: Vec<String> =
                    providers.map(|of| format!("{}:{:?}", of.name(), of.state())).collect();
                let joined = snapshot.fleet().is_some_and(|fleet| fleet.is_joined());
                say!("state {label} {} {joined}", states.join(","));
            }
            _ => panic!("{verb} {rest:?}"),
        }
    }
}

async fn call(client: ClientWithMiddleware, calls: Arc<Mutex<Vec<Call>>>) {
    let began = Instant::now();
    let answer = client.post("http://api.test/v1/chat").body("{}").send().await;
    let is_served = match answer {
        Ok(response) => {
            let is_served = response.status().is_success() && Report::of(&response).is_some();
            response.bytes().await.is_ok() && is_served
        }
        Err(_) => false,
    };
    lock(&calls).push(Call { is_served, took: began.elapsed() });
}

fn say_event(label: &str, event: &Event<'_>) {
    let (what, provider, heard) = match event {
        Event::BreakerOpened { provider, heard, .. } => ("opened", *provider, *heard),
        Event::BreakerClosed { provider, .. } => ("closed", *provider, false),
        Event::CoolingDown { provider, heard, .. } => ("cooling", *provider, *heard),
        Event::FleetJoined => ("joined", "-", false),
        Event::FleetLost { .. } => ("lost", "-", false),
        Event::Steered { provider, heard, .. } => ("steered", provider.unwrap_or("-"), *heard),
        _ => return,
    };
    say!("event {label} {} {what} {provider} {heard}", micros());
}

/// The time of this machine, which all members share.
pub(crate) fn micros() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    u64::try_from(since.as_micros()).unwrap()
}
