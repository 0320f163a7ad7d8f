//! Providers without a network: the innermost middleware, which answers by a script. With nothing
//! but timers to wait for, a test on a paused clock takes no time at all.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use http::Extensions;
use reqwest::{Body, Request, Response};
use reqwest_failover::{
    Event, Provider, ProviderChain, ProviderChainBuilder, ProviderSnapshot, Report, Route, State,
};
use reqwest_middleware::{
    ClientBuilder, ClientWithMiddleware, Middleware, Next, RequestBuilder, Result,
};
use tokio::sync::Notify;

/// Where every request is addressed: no provider's own base.
pub const URL: &str = "https://caller.test/v1/chat/completions";

/// The client below the terminal, where nothing arrives. It is slow to make.
static UNUSED: LazyLock<reqwest::Client> =
    LazyLock::new(|| reqwest::Client::builder().no_proxy().build().unwrap());

/// Says nothing of the panics that tests ask for.
static QUIET: LazyLock<()> = LazyLock::new(|| {
    let loud = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if panic.payload().downcast_ref() != Some(&"scripted") {
            loud(panic);
        }
    }));
});

/// A chain above scripted providers, and all that it told.
pub struct Harness {
    pub chain: ProviderChain,
    pub client: ClientWithMiddleware,
    terminal: Terminal,
    events: Arc<Mutex<Vec<Told>>>,
}

impl Harness {
    /// Providers of these names, which do what is said.
    pub fn of<const N: usize>(providers: [(&'static str, Script); N]) -> Self {
        Self::with(providers, |chain| chain)
    }

    pub fn with<const N: usize>(
        providers: [(&'static str, Script); N],
        settings: impl FnOnce(ProviderChainBuilder) -> ProviderChainBuilder,
    ) -> Self {
        let names = providers.iter().map(|(name, _)| provider(name)).collect();
        Self::of_providers(names, providers, settings)
    }

    /// Providers with settings of their own, made by [`provider`].
    pub fn of_providers<const N: usize>(
        providers: Vec<Provider>,
        scripts: [(&'static str, Script); N],
        settings: impl FnOnce(ProviderChainBuilder) -> ProviderChainBuilder,
    ) -> Self {
        LazyLock::force(&QUIET);
        let events = Arc::new(Mutex::new(Vec::new()));
        let told = events.clone();
        let chain = ProviderChain::builder(providers)
            .claim("https://caller.test/v1")
            .observe(move |event| lock(&told).extend(Told::of(event)));
        let chain = settings(chain).build().unwrap();
        let terminal = Terminal::default();
        let client =
            ClientBuilder::new(UNUSED.clone()).with(chain.clone()).with(terminal.clone()).build();
        let harness = Self { chain, client, terminal, events };
        scripts.into_iter().for_each(|(name, script)| harness.tell(name, script));
        harness
    }

    /// What the provider script from now on.
    pub fn tell(&self, name: &str, script: Script) {
        lock(&self.terminal.0).scripts.insert(name.to_owned(), script);
    }

    /// [`tell`](Self::tell), and what it did before.
    pub fn replace(&self, name: &str, script: Script) -> Script {
        lock(&self.terminal.0).scripts.insert(name.to_owned(), script).unwrap()
    }

    /// What answers, for a client with other layers.
    pub fn terminal(&self) -> impl Middleware {
        self.terminal.clone()
    }

    pub fn post(&self) -> RequestBuilder {
        self.client.post(URL).body("{}")
    }

    /// Asks once and says who served.
    pub async fn ask(&self) -> String {
        served_by(self.post().send().await)
    }

    /// Asks `times` times, one after the other, and counts who served.
    pub async fn ask_times(&self, times: usize) -> HashMap<String, usize> {
        let mut served = HashMap::new();
        for _ in 0..times {
            *served.entry(self.ask().await).or_default() += 1;
        }
        served
    }

    /// Asks this many at once, in tasks of their own.
    pub async fn ask_at_once(&self, requests: usize) -> HashMap<String, usize> {
        let asked: Vec<_> = (0..requests).map(|_| self.spawn()).collect();
        let mut served = HashMap::new();
        for asked in asked {
            *served.entry(asked.await.unwrap()).or_default() += 1;
        }
        served
    }

    /// A request that goes on by itself: who served it.
    pub fn spawn(&self) -> tokio::task::JoinHandle<String> {
        let request = self.post();
        tokio::spawn(async move { served_by(request.send().await) })
    }

    /// How many requests reached the provider.
    pub fn asked(&self, name: &str) -> usize {
        lock(&self.terminal.0).asked.iter().filter(|asked| *asked == name).count()
    }

    /// Who was asked, in order.
    pub fn all_asked(&self) -> Vec<String> {
        lock(&self.terminal.0).asked.clone()
    }

    pub fn of_provider(&self, name: &str) -> ProviderSnapshot {
        let snapshot = self.chain.snapshot();
        snapshot.providers().iter().find(|provider| provider.name() == name).unwrap().clone()
    }

    pub fn state(&self, name: &str) -> State {
        self.of_provider(name).state()
    }

    /// All that was told since this was last called.
    pub fn told(&self) -> Vec<Told> {
        std::mem::take(&mut lock(&self.events))
    }

    /// Opens the provider's breaker, with five failures at most.
    pub async fn break_it(&self, name: &str) -> Instant {
        let before = self.replace(name, Script::status(500));
        for _ in 0..5 {
            if !matches!(self.state(name), State::Open { .. }) {
                // An error where a credential source fails.
                let _ = self.post().with_extension(Route::only([name])).send().await;
            }
        }
        self.tell(name, before);
        match self.state(name) {
            State::Open { until, .. } => until,
            other => panic!("{name} is {other:?} after five failures"),
        }
    }
}

/// A provider whose requests go to `name`.test.
pub fn provider(name: &str) -> Provider {
    keyless(name).bearer_auth(format!("key-of-{name}"))
}

pub fn keyless(name: &str) -> Provider {
    Provider::new(name, format!("https://{name}.test/v1"))
}

#[track_caller]
pub fn served_by(result: Result<Response>) -> String {
    let response = result.expect("an answer");
    let report = Report::of(&response).expect("a report");
    report.served_by().unwrap_or_else(|| panic!("no provider served: {report}")).to_owned()
}

/// What a provider script with a request.
#[derive(Clone)]
pub struct Script(Arc<dyn Fn() -> BoxFuture<'static, Result<Response>> + Send + Sync>);

impl Script {
    pub fn status(status: u16) -> Self {
        Self::answer(status, &[], Body::default)
    }

    pub fn hint(status: u16, header: &'static str, value: impl Into<String>) -> Self {
        Self::answer(status, &[(header, value.into())], Body::default)
    }

    pub fn answer(
        status: u16,
        headers: &[(&'static str, String)],
        body: impl Fn() -> Body + Send + Sync + 'static,
    ) -> Self {
        let headers = headers.to_vec();
        Self::of(move || {
            let mut response = http::Response::builder().status(status);
            for (name, value) in &headers {
                response = response.header(*name, value);
            }
            Ok(response.body(body()).unwrap().into())
        })
    }

    /// Fails as a layer below that is no `reqwest::Error`.
    pub fn fail() -> Self {
        Self::fail_with("scripted")
    }

    /// Fails so, and says this.
    pub fn fail_with(words: &'static str) -> Self {
        Self::of(move || Err(reqwest_middleware::Error::middleware(std::io::Error::other(words))))
    }

    /// Never answers.
    pub fn hang() -> Self {
        Self(Arc::new(|| Box::pin(std::future::pending())))
    }

    pub fn panic() -> Self {
        Self::of(|| panic!("scripted"))
    }

    /// Script it after this long.
    pub fn after(self, wait: Duration) -> Self {
        Self(Arc::new(move || {
            let then = self.clone();
            Box::pin(async move {
                tokio::time::sleep(wait).await;
                (then.0)().await
            })
        }))
    }

    /// Script it once it is told to.
    pub fn when(self, told: &Arc<Notify>) -> Self {
        let told = told.clone();
        Self(Arc::new(move || {
            let (then, told) = (self.clone(), told.clone());
            Box::pin(async move {
                told.notified().await;
                (then.0)().await
            })
        }))
    }

    /// Script it when it is polled for the `times` + first time.
    pub fn yields(self, times: usize) -> Self {
        Self(Arc::new(move || {
            let then = self.clone();
            Box::pin(async move {
                yields(times).await;
                (then.0)().await
            })
        }))
    }

    fn of(answer: impl Fn() -> Result<Response> + Send + Sync + 'static) -> Self {
        let answer = Arc::new(answer);
        Self(Arc::new(move || {
            let answer = answer.clone();
            Box::pin(async move { answer() })
        }))
    }
}

/// Is ready when it is polled for the `times` + first time.
pub async fn yields(times: usize) {
    for _ in 0..times {
        tokio::task::yield_now().await;
    }
}

/// A body of these chunks, each of which is there after so many polls.
pub fn dribble(chunks: &'static [&'static str], polls: usize) -> Body {
    let chunks = futures_util::stream::unfold(chunks.iter(), move |mut chunks| async move {
        yields(polls).await;
        let chunk = chunks.next()?;
        Some((Ok::<_, std::io::Error>(*chunk), chunks))
    });
    Body::wrap_stream(chunks)
}

/// A body that says nothing, and never ends.
pub fn silence() -> Body {
    Body::wrap_stream(futures_util::stream::pending::<std::io::Result<&str>>())
}

/// What a chain told, as far as a test wants to know.
#[derive(Clone, Debug, PartialEq)]
pub enum Told {
    Started(String),
    /// An attempt's provider and reason.
    Ended(String, String),
    /// How many breaks count toward this one's length.
    Opened(String, u32),
    Closed(String),
    Probing(String),
    Cooling(String),
    Panicked(&'static str),
    Exhausted,
    Rejected,
    /// Who was silent, who is asked as well, and for how many milliseconds it was.
    Hedged(String, String, u128),
    /// The reasons of all attempts, with their providers.
    Finished(Vec<(String, String)>),
}

impl Told {
    fn of(event: &Event<'_>) -> Option<Self> {
        Some(match event {
            Event::AttemptStarted { provider, .. } => Self::Started((*provider).to_owned()),
            Event::AttemptFinished { attempt, .. } => {
                Self::Ended(attempt.provider().to_owned(), attempt.reason().to_string())
            }
            Event::BreakerOpened { provider, breaks, .. } => {
                Self::Opened((*provider).to_owned(), *breaks)
            }
            Event::BreakerClosed { provider, .. } => Self::Closed((*provider).to_owned()),
            Event::BreakerProbing { provider, .. } => Self::Probing((*provider).to_owned()),
            Event::CoolingDown { provider, .. } => Self::Cooling((*provider).to_owned()),
            Event::CallbackPanicked { callback, .. } => Self::Panicked(callback),
            Event::Exhausted { .. } => Self::Exhausted,
            Event::Rejected { .. } => Self::Rejected,
            Event::HedgeSent { from, to, waited, .. } => {
                Self::Hedged((*from).to_owned(), (*to).to_owned(), waited.as_millis())
            }
            Event::Finished { report, .. } => Self::Finished(
                report
                    .attempts()
                    .iter()
                    .map(|attempt| (attempt.provider().to_owned(), attempt.reason().to_string()))
                    .collect(),
            ),
            _ => return None,
        })
    }
}

pub fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// The chain's clock, as [`State`] shows it.
pub fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

pub async fn sleep_until(then: Instant) {
    tokio::time::sleep_until(then.into()).await;
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Clone, Default)]
struct Terminal(Arc<Mutex<Stage>>);

#[derive(Default)]
struct Stage {
    scripts: HashMap<String, Script>,
    asked: Vec<String>,
}

#[async_trait]
impl Middleware for Terminal {
    async fn handle(&self, request: Request, _: &mut Extensions, _: Next<'_>) -> Result<Response> {
        let host = request.url().host_str().unwrap().trim_end_matches(".test").to_owned();
        let script = {
            let mut stage = lock(&self.0);
            stage.asked.push(host.clone());
            // Whatever is not claimed is answered.
            stage.scripts.get(&host).cloned().unwrap_or_else(|| Script::status(200))
        };
        (script.0)().await
    }
}
