//! The middleware, and the handle to a running chain.

mod address;
mod attempt;
mod body;
mod builder;
mod caller;
mod check;
mod clean;
mod drive;
mod entries;
#[cfg(feature = "fleet")]
mod fleet;
#[cfg(feature = "fleet")]
mod fleet_link;
mod flight;
mod list;
mod mark;
mod outcome;
mod request;
mod settings;
mod shared;
mod slot;
mod sources;

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
#[cfg(feature = "fleet")]
use std::time::Duration;

use http::Extensions;
use reqwest::{Request, Response};
use reqwest_middleware::{Middleware, Next};

use self::body::Requests;
pub use self::builder::ProviderChainBuilder;
use self::check::check;
use self::drive::drive;
use self::flight::Sender;
use self::list::CurrentList;
use self::shared::{Shared, now};
use crate::error::ConfigError;
use crate::health::State;
use crate::observe::{Event, EventOrigin, ProviderSnapshot, Snapshot};
use crate::provider::Provider;
use crate::report::Attempt;

/// An ordered list of API providers, as a `reqwest-middleware` layer.
///
/// Each request whose URL lies below one of the chain's bases goes to the first healthy provider,
/// readdressed; if that fails, to the next. Any other request passes through untouched, and so does an
/// attempt of another chain, unless this one is [`nested`](ProviderChainBuilder::nested). Clones share
/// their health.
///
/// A second attempt is made from the caller's request. It keeps the method, the path below the base, the
/// query, headers, body, version, what is left of the request's timeout, and the extensions that
/// middleware sees; of query and headers without what carries keys. Extensions of an `http::Request` that
/// was turned into a [`reqwest::Request`] are in that itself, where no layer can read them: the first
/// attempt has them, a later one does not.
///
/// ```
/// use reqwest_failover::{Provider, ProviderChain, harden};
/// use reqwest_middleware::ClientBuilder;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let chain = ProviderChain::builder([
///     Provider::cometapi("comet-key"),
///     Provider::openai("openai-key"),
/// ])
/// .build()?;
///
/// let client = ClientBuilder::new(harden(reqwest::Client::builder()).build()?)
///     .with(chain.clone())
///     .build();
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct ProviderChain {
    current: Arc<CurrentList>,
}

impl ProviderChain {
    /// Begins a chain of these providers: requests go to the first one first.
    pub fn builder(providers: impl IntoIterator<Item = Provider>) -> ProviderChainBuilder {
        ProviderChainBuilder::new(providers)
    }

    /// The chain's health and counts at this moment. Shown at [`Snapshot`].
    pub fn snapshot(&self) -> Snapshot {
        let shared = self.current.get();
        let now = now();
        let table = shared.lock();
        let order = shared.order(&table);
        let resting = |provider| -> Vec<(Box<[u8]>, State)> {
            let resting = table.health.resting_keys(provider, now);
            resting.map(|(key, state)| (key.into(), state)).collect()
        };
        let resting: Vec<_> = order.iter().map(|provider| resting(*provider)).collect();
        let provider = |provider: &usize| ProviderSnapshot {
            name: shared.entries[*provider].name.clone(),
            state: table.health.state(*provider, now),
            counts: table.health.counts(*provider),
            resting_keys: Vec::new(),
        };
        let mut snapshot = Snapshot {
            providers: order.iter().map(provider).collect(),
            counts: table.counts,
            fallback_ratio: table.fallback_rate.ratio(now),
            passed_through: shared.observer.passed_through(),
            callback_panics: shared.observer.callback_panics(),
            #[cfg(feature = "fleet")]
            fleet: shared.chain.fleet.as_ref().map(|fleet| fleet.snapshot()),
        };
        drop(table);
        for (provider, resting) in snapshot.providers.iter_mut().zip(resting) {
            let shown = resting.iter().map(|(key, state)| (shared.shown_key(key), *state));
            provider.resting_keys = shown.collect();
        }
        snapshot
    }

    /// Replaces the providers for requests that begin from now on, such as where a key has changed. Those in
    /// flight keep theirs, with their keys and their order.
    ///
    /// The list is checked as in [`build`](ProviderChainBuilder::build), with the builder's settings; it
    /// need not have as many providers as before, and its order is the new order. A provider with the
    /// name and base URL of a current one keeps its health: open breaker, cooldown, counts, requests in
    /// flight, and whether it is [isolated](Self::isolate). Everything else of it may be new, such as its
    /// key. Any other provider begins as in a new chain.
    ///
    /// A key that was replaced is sent by no request that begins after this returns. It is removed from
    /// messages as long as a request that began before may use it.
    ///
    /// ```
    /// use reqwest_failover::{Provider, ProviderChain};
    ///
    /// let chain = ProviderChain::builder([Provider::cometapi("key-a"), Provider::openai("key-b")]).build()?;
    /// chain.replace([Provider::openai("key-c"), Provider::cometapi("key-a")])?;
    /// assert_eq!(chain.snapshot().providers()[0].name(), "openai");
    /// # Ok::<(), reqwest_failover::ConfigError>(())
    /// ```
    ///
    /// # Errors
    /// As [`build`](ProviderChainBuilder::build); and if these would be more than 128 providers, together
    /// with those that they replace and with earlier ones that requests in flight still use. One that stays
    /// counts once. The chain is as it was then.
    pub fn replace(
        &self,
        providers: impl IntoIterator<Item = Provider>,
    ) -> Result<(), ConfigError> {
        self.current.replace(providers.into_iter().collect())
    }

    /// Changes the order for requests that begin from now on; those in flight keep theirs.
    ///
    /// ```
    /// use reqwest_failover::{Provider, ProviderChain};
    ///
    /// let chain = ProviderChain::builder([Provider::cometapi("key-a"), Provider::openai("key-b")]).build()?;
    /// chain.set_order(["openai", "cometapi"])?;
    /// assert_eq!(chain.snapshot().providers()[0].name(), "openai");
    /// # Ok::<(), reqwest_failover::ConfigError>(())
    /// ```
    ///
    /// # Errors
    /// If the names are not a permutation of the chain's.
    pub fn set_order<I>(&self, names: I) -> Result<(), ConfigError>
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        // The iterator is the user's, and asked where nothing is locked.
        let names: Vec<_> = names.into_iter().collect();
        let (_changing, shared) = self.current.hold();
        let mut order = Vec::with_capacity(shared.entries.len());
        for name in &names {
            let provider = shared.known(name.as_ref(), "set_order")?;
            if order.contains(&provider) {
                let twice = "is named twice; name every provider once";
                return Err(ConfigError::new(Some(name.as_ref()), "set_order", twice));
            }
            order.push(provider);
        }
        if order.len() < shared.entries.len() {
            let missing = format!("must name every provider once: {}", shared.names());
            return Err(ConfigError::new(None, "set_order", missing));
        }
        shared.set_order(order.into());
        #[cfg(feature = "fleet")]
        fleet::tell_of_order(&shared, _changing);
        Ok(())
    }

    /// Takes a provider out: it is not asked again until [`restore`](Self::restore), not even as the
    /// last resort. Attempts in flight are not disturbed.
    ///
    /// ```
    /// use reqwest_failover::{Provider, ProviderChain, State};
    ///
    /// let chain = ProviderChain::builder([Provider::cometapi("key-a"), Provider::openai("key-b")]).build()?;
    /// chain.isolate("cometapi")?;
    /// assert_eq!(chain.snapshot().providers()[0].state(), State::Isolated);
    /// chain.restore("cometapi")?;
    /// assert_eq!(chain.snapshot().providers()[0].state(), State::Closed);
    /// # Ok::<(), reqwest_failover::ConfigError>(())
    /// ```
    ///
    /// # Errors
    /// If there is no such provider; the error lists those that there are.
    pub fn isolate(&self, name: &str) -> Result<(), ConfigError> {
        self.set_isolated(name, "isolate", true)
    }

    /// Undoes [`isolate`](Self::isolate): the provider stands as its health has it.
    ///
    /// # Errors
    /// If there is no such provider; the error lists those that there are.
    pub fn restore(&self, name: &str) -> Result<(), ConfigError> {
        self.set_isolated(name, "restore", false)
    }

    fn set_isolated(
        &self,
        name: &str,
        field: &'static str,
        isolated: bool,
    ) -> Result<(), ConfigError> {
        let (_changing, shared) = self.current.hold();
        let provider = shared.known(name, field)?;
        shared.isolate(provider, isolated);
        #[cfg(feature = "fleet")]
        fleet::tell_of_isolation(&shared, provider, isolated, _changing);
        Ok(())
    }

    /// Asks each provider this once, all of them at the same time and whatever their health, and returns
    /// what each said, in the chain's order. For deploy scripts, and for a standby that has not been used
    /// for weeks: a key that has expired there shows before it is needed.
    ///
    /// Isolated providers are asked, too. No provider's health moves, nothing is counted, and no
    /// [`Event`] is emitted for it. Each attempt is made and judged as any other, with the provider's key, within
    /// its attempt timeout, by default 120 s; a timeout of the request bounds each of them. `client` is the
    /// one below the chain, so that no other layer is asked, and neither is the chain itself.
    ///
    /// Since every provider processes the request, ask for something that costs nothing, such as a list of
    /// models. Where nothing can be sent, because the URL is below no base URL of the chain or the body is
    /// a stream, every attempt says so and has [`Reason::Other`](crate::Reason::Other).
    ///
    /// ```no_run
    /// # async fn check(chain: reqwest_failover::ProviderChain) -> Result<(), Box<dyn std::error::Error>> {
    /// use reqwest_failover::{Reason, harden};
    ///
    /// let http = harden(reqwest::Client::builder()).build()?;
    /// let request = http.get("https://api.openai.com/v1/models").build()?;
    /// let said = chain.check(&http, request).await;
    /// for attempt in &said {
    ///     println!("{attempt}: {}", attempt.message().unwrap_or("well"));
    /// }
    /// let is_well = said.iter().all(|attempt| attempt.reason() == Reason::Ok);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn check(&self, client: &reqwest::Client, request: Request) -> Vec<Attempt> {
        check(&self.current.get(), client, request).await
    }

    /// Waits until what other processes say is here, and what this one says is in the store. Returns
    /// `false` if that takes longer, and at once for a chain that does not
    /// [`share`](ProviderChainBuilder::share).
    ///
    /// No request needs it. It is for a service that starts and would know of an outage before its first
    /// request, and for an operator's command that must have reached the store.
    ///
    /// ```
    /// # async fn isolate() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::time::Duration;
    /// use reqwest_failover::fleet::MemoryStore;
    /// use reqwest_failover::{Provider, ProviderChain};
    ///
    /// let providers = [Provider::cometapi("key-a"), Provider::openai("key-b")];
    /// let chain = ProviderChain::builder(providers).share(MemoryStore::new()).build()?;
    /// chain.isolate("cometapi")?;
    /// if !chain.synced(Duration::from_secs(1)).await {
    ///     eprintln!("isolated here; the others follow when the store is back");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "fleet")]
    pub async fn synced(&self, within: Duration) -> bool {
        let Some(fleet) = self.current.get().chain.fleet.clone() else { return false };
        self.current.start_task();
        fleet.synced(within).await
    }
}

// What `#[async_trait]` would write, without a future around the one that `drive` returns.
impl Middleware for ProviderChain {
    fn handle<'chain, 'extensions, 'next, 'answer>(
        &'chain self,
        request: Request,
        extensions: &'extensions mut Extensions,
        next: Next<'next>,
    ) -> Pin<Box<dyn Future<Output = reqwest_middleware::Result<Response>> + Send + 'answer>>
    where
        'chain: 'answer,
        'extensions: 'answer,
        'next: 'answer,
        Self: 'answer,
    {
        let shared = self.current.get();
        #[cfg(feature = "fleet")]
        if let Some(fleet) = &shared.chain.fleet
            && !fleet.is_running()
        {
            self.current.start_task();
        }
        if !shared.chain.nested && mark::is_set(extensions) {
            return next.run(request, extensions);
        }
        match shared.addresses.find(request.url(), &shared.scope, shared.entries.ids()) {
            Some(address) => {
                let sender = Sender::new(shared, address, next, &request);
                drive(sender, Requests::new(request), extensions)
            }
            None => Box::pin(async move {
                let Shared { addresses, scope, observer, .. } = &*shared;
                if addresses.is_unknown_origin(request.url(), scope)
                    && let Some((base, difference)) = scope.nearest(request.url())
                {
                    let origin = request.url().origin().ascii_serialization();
                    observer.warn_of_passed_through(&origin, &base, &difference);
                }
                let host = request.url().host_str().unwrap_or_default();
                let origin = EventOrigin { id: None, extensions: Some(extensions) };
                observer.emit(&Event::PassedThrough { origin, host });
                next.run(request, extensions).await
            }),
        }
    }
}

impl fmt::Debug for ProviderChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProviderChain")
            .field("providers", &self.current.get().entries.as_slice())
            .finish_non_exhaustive()
    }
}
