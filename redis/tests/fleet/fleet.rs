//! A fleet of processes, and the stand-ins that they call: what those received is the truth.

use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use reqwest_failover_testing::support::{Answer, Server, lock};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::{sleep, timeout};

use crate::member::{MARK, micros};

/// Something that a member's chain emitted.
#[derive(Clone, Debug)]
pub(crate) struct Emitted {
    pub(crate) member: usize,
    pub(crate) label: String,
    pub(crate) at: u64,
    pub(crate) what: String,
    pub(crate) provider: String,
}

/// What the calls of a chain came to.
#[derive(Default)]
pub(crate) struct Calls {
    pub(crate) served: usize,
    pub(crate) failed: usize,
    /// In microseconds.
    pub(crate) took: Vec<u64>,
}

pub(crate) struct Fleet {
    members: Vec<Member>,
    emitted: Arc<Mutex<Vec<Emitted>>>,
}

struct Member {
    // Killed when it is dropped.
    _child: Child,
    input: ChildStdin,
    replies: UnboundedReceiver<String>,
}

impl Fleet {
    pub(crate) fn start(members: usize) -> Self {
        let mut fleet = Self { members: Vec::new(), emitted: Arc::default() };
        for _ in 0..members {
            fleet.add();
        }
        fleet
    }

    /// Starts one more process.
    pub(crate) fn add(&mut self) {
        let number = self.members.len();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "member", "--ignored", "--nocapture"])
            .env("FLEET_MEMBER", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let input = child.stdin.take().unwrap();
        let (said, replies) = unbounded_channel();
        let emitted = self.emitted.clone();
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                // The harness writes the test's name into the first line.
                let Some((_, line)) = line.split_once(MARK) else { continue };
                let words: Vec<&str> = line.split(' ').collect();
                match words[..] {
                    ["event", label, at, what, provider, _] => lock(&emitted).push(Emitted {
                        member: number,
                        label: label.into(),
                        at: at.parse().unwrap(),
                        what: what.into(),
                        provider: provider.into(),
                    }),
                    _ => drop(said.send(line.to_owned())),
                }
            }
        });
        self.members.push(Member { _child: child, input, replies });
    }

    pub(crate) fn len(&self) -> usize {
        self.members.len()
    }

    /// Sends the command to all, and returns their replies without its first two words.
    pub(crate) async fn all(&mut self, command: &str) -> Vec<String> {
        for member in &mut self.members {
            member.send(command).await;
        }
        let mut replies = Vec::new();
        for member in &mut self.members {
            replies.push(member.reply(command).await);
        }
        replies
    }

    pub(crate) async fn one(&mut self, member: usize, command: &str) -> String {
        self.members[member].send(command).await;
        self.members[member].reply(command).await
    }

    /// Makes a chain in each process, and waits until all have joined.
    pub(crate) async fn chain(&mut self, label: &str, chain: &Chain<'_>) {
        let Chain { namespace, store, bases, breaks } = chain;
        let [first, longest] = breaks.map(|length| length.as_millis());
        let store = store.unwrap_or("-");
        let command = format!("chain {label} {namespace} {store} {bases} {first} {longest}");
        for reply in self.all(&command).await {
            assert_eq!(reply, if store == "-" { "false" } else { "true" }, "{command}");
        }
    }

    pub(crate) async fn go(&mut self, label: &str, rate: f64) {
        self.all(&format!("go {label} {rate}")).await;
    }

    pub(crate) async fn halt(&mut self, label: &str) -> Calls {
        let mut calls = Calls::default();
        for reply in self.all(&format!("halt {label}")).await {
            let mut words = reply.split(' ');
            calls.served += words.next().unwrap().parse::<usize>().unwrap();
            calls.failed += words.next().unwrap().parse::<usize>().unwrap();
            let took = words.next().unwrap().split(',').filter(|took| !took.is_empty());
            calls.took.extend(took.map(|took| took.parse::<u64>().unwrap()));
        }
        calls
    }

    /// When each member first emitted that, from this time on.
    pub(crate) fn first(&self, label: &str, what: &str, provider: &str, since: u64) -> Vec<u64> {
        let emitted = lock(&self.emitted);
        let of_member = |member| {
            let is_it = |event: &&Emitted| {
                event.member == member
                    && event.at >= since
                    && (&*event.label, &*event.what, &*event.provider) == (label, what, provider)
            };
            emitted.iter().filter(is_it).map(|event| event.at).min()
        };
        (0..self.members.len()).filter_map(of_member).collect()
    }

    /// Waits until all have emitted that, and returns when they did.
    pub(crate) async fn until_all(
        &self,
        label: &str,
        what: &str,
        provider: &str,
        since: u64,
        within: Duration,
    ) -> Vec<u64> {
        let deadline = Instant::now() + within;
        loop {
            let times = self.first(label, what, provider, since);
            if times.len() == self.members.len() {
                return times;
            }
            let emitted = lock(&self.emitted).clone();
            let late = Instant::now() > deadline;
            assert!(!late, "{} of {} {what} {provider}: {emitted:#?}", times.len(), self.len());
            sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Member {
    async fn send(&mut self, command: &str) {
        self.input.write_all(format!("{command}\n").as_bytes()).await.expect("it lives");
    }

    async fn reply(&mut self, command: &str) -> String {
        let reply = timeout(Duration::from_secs(20), self.replies.recv()).await;
        let reply = reply.expect("a reply in time").expect("the member lives");
        let echoed: Vec<&str> = command.split(' ').take(2).collect();
        let rest = reply.strip_prefix(&echoed.join(" "));
        rest.unwrap_or_else(|| panic!("{reply} to {command}")).trim_start().to_owned()
    }
}

/// What the chains of a fleet have in common.
pub(crate) struct Chain<'c> {
    pub(crate) namespace: &'c str,
    /// A Redis, or none.
    pub(crate) store: Option<&'c str>,
    pub(crate) bases: &'c str,
    pub(crate) breaks: [Duration; 2],
}

/// A provider on loopback that takes some time to answer, and can fail.
pub(crate) struct StandIn {
    server: Server,
    state: Arc<Mutex<State>>,
}

struct State {
    kind: Kind,
    takes: Duration,
    /// When it received something, in microseconds.
    log: Vec<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Well,
    Status(u16),
    Limited,
    Fin,
    Reset,
}

impl StandIn {
    pub(crate) async fn start(takes: Duration) -> Self {
        let state = State { kind: Kind::Well, takes, log: Vec::new() };
        let state = Arc::new(Mutex::new(state));
        let shared = state.clone();
        let server = Server::quiet(move |_: &_| lock(&shared).answer()).await.unwrap();
        Self { server, state }
    }

    pub(crate) fn base_url(&self) -> String {
        self.server.base_url("/v1")
    }

    /// From now on it does this. Returns when that began.
    pub(crate) fn turn(&self, kind: Kind) -> u64 {
        lock(&self.state).kind = kind;
        micros()
    }

    /// When it received requests, from this time on.
    pub(crate) fn received(&self, since: u64) -> Vec<u64> {
        lock(&self.state).log.iter().copied().filter(|at| *at >= since).collect()
    }
}

impl State {
    fn answer(&mut self) -> Answer {
        self.log.push(micros());
        let answer = match self.kind {
            Kind::Well => Answer::ok(),
            Kind::Status(status) => Answer::error(status, "it is down"),
            Kind::Limited => Answer::error(429, "too many requests").header("retry-after", "30"),
            Kind::Fin => return Answer::fin(),
            Kind::Reset => return Answer::reset(),
        };
        answer.headers_after(self.takes)
    }
}

/// The value at this share of the sorted values.
pub(crate) fn quantile<T: Copy + Ord>(values: &[T], share: f64) -> T {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index")]
    let at = ((sorted.len() - 1) as f64 * share).ceil() as usize;
    sorted[at]
}
