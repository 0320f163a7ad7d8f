//! A chain above simulated providers, on one thread and in virtual time.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use fastrand::Rng;
use http::Extensions;
use http_body::Frame;
use http_body_util::BodyExt;
use reqwest::{Body, Request, Response};
use reqwest_failover::{ConfigError, ProviderChain};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware, Error, Middleware, Next, Result};

use crate::answers::{Answer, Script, pause, unreachable};
use crate::call::Arrived;
use crate::ledger::Ledger;
use crate::list::key;
use crate::settings::{NAMES, Settings, chance};
use crate::turn::index;

/// The caller's own key, which no provider is to see.
pub(crate) const CALLERS_KEY: &str = "key-of-the-caller";
/// What each key begins with.
pub(crate) const ANY_KEY: &str = "key-of-";

/// The client below the terminal, where nothing arrives. It is slow to make.
static UNUSED: LazyLock<reqwest::Client> =
    LazyLock::new(|| reqwest::Client::builder().no_proxy().build().unwrap());

pub(crate) struct Harness {
    pub(crate) settings: Settings,
    pub(crate) chain: ProviderChain,
    pub(crate) client: ClientWithMiddleware,
    pub(crate) shared: Arc<Shared>,
}

/// What the callers, the providers and the observer have in common.
pub(crate) struct Shared {
    ledger: Mutex<Ledger>,
    /// From now on every provider answers.
    pub(crate) all_well: AtomicBool,
    begun: Instant,
}

impl Harness {
    pub(crate) fn new(seed: u64, hedged: bool, told: bool) -> Arc<Self> {
        // The chain draws its jitter from this.
        fastrand::seed(seed);
        let mut rng = Rng::with_seed(seed);
        let settings = Settings::draw(&mut rng, hedged);
        let begun = now();
        let ledger = Ledger::new(rng, &settings, begun, told);
        let shared = Arc::new(Shared {
            ledger: Mutex::new(ledger),
            all_well: AtomicBool::new(false),
            begun,
        });
        let mut builder = settings.chain();
        if settings.watched {
            let (seen, rules) = (shared.clone(), settings.rules());
            builder = builder.observe(move |event| seen.see(event, rules.as_ref()));
        }
        let chain = builder.build().expect("settings that are allowed");
        Arc::new_cyclic(|harness| {
            let terminal = Terminal { harness: harness.clone() };
            let client =
                ClientBuilder::new(UNUSED.clone()).with(chain.clone()).with(terminal).build();
            Self { settings, chain, client, shared }
        })
    }

    pub(crate) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.shared.ledger()
    }
}

impl Shared {
    pub(crate) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The providers: the innermost middleware.
struct Terminal {
    harness: Weak<Harness>,
}

#[async_trait]
impl Middleware for Terminal {
    async fn handle(&self, request: Request, _: &mut Extensions, _: Next<'_>) -> Result<Response> {
        let harness = self.harness.upgrade().expect("a harness outlives its calls");
        let shown = keys_shown(&request);
        if request.url().host_str() == Some("other.test") {
            let mut ledger = harness.ledger();
            ledger.unclaimed += 1;
            ledger.check(shown == [CALLERS_KEY.to_owned()].into(), || {
                format!("an unclaimed request shows {shown:?}")
            });
            return Ok(http::Response::new("passed through").into());
        }
        let name = request.url().path_segments().and_then(|mut path| path.next());
        let provider = index(name.unwrap_or_default());
        let id = request.headers().get("x-call").and_then(|id| id.to_str().ok()?.parse().ok());
        let id: u64 = id.unwrap_or_default();
        let (at, answer) = harness.receive(id, provider, request.timeout().copied());
        harness.check_keys(id, provider, &shown);
        let mut attempt = Attempt { harness: &harness, id, at, answered: false };
        let url = request.url().clone();
        harness.check_request(id, provider, request).await;
        if answer.script == Script::Hang {
            std::future::pending::<()>().await;
        }
        // First, since it takes some polls.
        let unreachable = match answer.script {
            Script::Unreachable => Some(unreachable().await),
            _ => None,
        };
        if answer.wait > 0 {
            pause(answer.wait).await;
        }
        for _ in 0..answer.yields {
            tokio::task::yield_now().await;
        }
        harness.replace_at_times();
        let seen = self.harness.clone();
        let limited = harness.settings.providers[provider].max_in_flight.map(|_| provider);
        let wrap = move |body| Body::wrap(SeenBody { body, harness: seen, id, at, limited });
        let words = answer.words(id, NAMES[provider]);
        attempt.answered = true;
        match unreachable {
            Some(error) => Err(Error::Reqwest(error)),
            None => answer.give(url, wrap, words),
        }
    }
}

impl Harness {
    /// Replaces the list now and then while a provider is about to answer, so that calls go on without it.
    fn replace_at_times(&self) {
        let is_on = self.settings.replaced && !self.shared.all_well.load(Ordering::Relaxed);
        if is_on && chance(&mut self.ledger().rng, 8) {
            let replaced = self.replace();
            self.ledger().check(replaced.is_ok(), || format!("{replaced:?}"));
        }
    }

    /// Replaces the list; calls under way keep theirs.
    pub(crate) fn replace(&self) -> std::result::Result<(), ConfigError> {
        let before = self.chain.snapshot();
        let (list, providers) = self.ledger().draw_list(&self.settings);
        self.chain.replace(providers)?;
        self.ledger().adopt(list, &before);
        Ok(())
    }

    /// Writes down that a request arrived, and says what becomes of it.
    fn receive(&self, id: u64, provider: usize, timeout: Option<Duration>) -> (usize, Answer) {
        let (snapshot, now) = (self.chain.snapshot(), now());
        let mut ledger = self.ledger();
        let answer = match self.shared.all_well.load(Ordering::Relaxed) {
            true => Answer::WELL,
            false => {
                let age = now.saturating_duration_since(self.shared.begun);
                let key = ledger.calls.get(&id).and_then(|call| call.key);
                let mood = self.settings.providers[provider].mood(key, age);
                let answer = Answer::draw(mood, &mut ledger.rng);
                // An attempt that yields may end in the very poll in which its hedge is made.
                let yields = if self.settings.hedge.is_some() { 0 } else { answer.yields };
                Answer { yields, ..answer }
            }
        };
        let arrived = Arrived { provider, timeout, answer };
        let at = ledger.begin(id, arrived, &snapshot, &self.settings, now);
        (at, answer)
    }

    /// The request shows the key that its provider had when the call began, and no other.
    fn check_keys(&self, id: u64, provider: usize, shown: &BTreeSet<String>) {
        let mut ledger = self.ledger();
        let own = ledger.calls.get(&id).map(|call| key(provider, call.keys[provider]));
        let is_own = shown.len() == 1 && shown.first() == own.as_ref();
        ledger.check(is_own, || format!("the request to {provider} shows {shown:?}, not {own:?}"));
    }

    /// Everything but address and keys is as the caller gave it.
    async fn check_request(&self, id: u64, provider: usize, request: Request) {
        let path = request.url().path().to_owned();
        let kind = request.headers().get("content-type").cloned();
        let method = request.method().clone();
        let mut request = request;
        let body = match request.body_mut().take() {
            Some(body) => match body.as_bytes() {
                Some(bytes) => bytes::Bytes::copy_from_slice(bytes),
                None => body.collect().await.map(|body| body.to_bytes()).unwrap_or_default(),
            },
            None => bytes::Bytes::new(),
        };
        let intact = path == format!("/{}/v1/chat/completions", NAMES[provider])
            && kind.is_some_and(|kind| kind == "application/json")
            && (method == "GET" && body.is_empty() || *body == *body_of(id).as_bytes());
        self.ledger().check(intact, || format!("{method} {path} with {body:?} is not intact"));
    }
}

/// An attempt at a provider, whose future ends when it is answered or dropped.
struct Attempt<'a> {
    harness: &'a Harness,
    id: u64,
    at: usize,
    answered: bool,
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        // Of the same moment as the decision that follows.
        let (snapshot, now) = (self.harness.chain.snapshot(), now());
        let settings = &self.harness.settings;
        let Self { id, at, answered, .. } = *self;
        self.harness.ledger().end(id, at, answered, &snapshot, settings, now);
    }
}

/// The body of an answer, which knows when it is read.
struct SeenBody {
    body: Body,
    harness: Weak<Harness>,
    id: u64,
    at: usize,
    /// The limited provider at which it is in flight, until it is over.
    limited: Option<usize>,
}

impl http_body::Body for SeenBody {
    type Data = Bytes;
    type Error = reqwest::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<reqwest::Result<Frame<Bytes>>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        let is_over = matches!(polled, Poll::Ready(None | Some(Err(_))));
        if let Some(harness) = self.harness.upgrade() {
            let (snapshot, settings) = (|| harness.chain.snapshot(), &harness.settings);
            let mut ledger = harness.ledger();
            ledger.read(self.id, self.at, is_over, snapshot, settings, now());
            if let Some(provider) = self.limited.take_if(|_| is_over) {
                ledger.leave(provider);
            }
        }
        polled
    }
}

impl Drop for SeenBody {
    fn drop(&mut self) {
        if let Some(harness) = self.harness.upgrade() {
            let (snapshot, settings) = (|| harness.chain.snapshot(), &harness.settings);
            let mut ledger = harness.ledger();
            ledger.drop_answer(self.id, self.at, snapshot, settings, now());
            if let Some(provider) = self.limited.take() {
                ledger.leave(provider);
            }
        }
    }
}

pub(crate) fn body_of(id: u64) -> String {
    format!(r#"{{"call":{id}}}"#)
}

/// Whose keys are anywhere in a request's head.
fn keys_shown(request: &Request) -> BTreeSet<String> {
    let mut text = format!("{}\n", request.url());
    for value in request.headers().values() {
        let value = String::from_utf8_lossy(value.as_bytes());
        if let Some(basic) = value.strip_prefix("Basic ") {
            let decoded = BASE64_STANDARD.decode(basic).unwrap_or_default();
            text.push_str(&String::from_utf8_lossy(&decoded));
            text.push('\n');
        }
        text.push_str(&value);
        text.push('\n');
    }
    let ends = |it: char| !it.is_ascii_alphanumeric() && it != '-';
    let key = |(at, _)| text[at..].split(ends).next().unwrap_or_default().to_owned();
    text.match_indices(ANY_KEY).map(key).collect()
}

pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
