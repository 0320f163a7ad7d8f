//! One entry of a chain as the user types it ([`Provider`]); an [`Entry`] is the same as `build()`
//! checked it.
//!
//! A chain is written down once, at startup, and a mistake in it should be found there, with the
//! provider's name on it. So a `Provider` takes whatever it is given.

mod auth;
mod check;
mod credential;
mod edits;
mod entry;
mod key;
mod keyring;
mod presets;
mod source;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use reqwest::Request;
use serde::Serialize;

pub(crate) use self::check::{ChainHeaders, Checked, MAX_PROVIDERS, check};
use self::credential::Credential;
use self::edits::BodyEdits;
pub(crate) use self::entry::Entry;
pub(crate) use self::source::{FreshKey, KeySource};
use crate::readdress::Base;

/// One API provider: a name, a base URL, and what a request needs there.
///
/// Nothing is checked before the chain's `build()`; what is wrong then is a
/// [`ConfigError`](crate::ConfigError) that names the provider and the method, and never a key.
/// `Debug` shows no key either.
///
/// ```
/// use reqwest_failover::{Provider, ProviderChain};
/// use std::time::Duration;
///
/// let chain = ProviderChain::builder([
///     Provider::cometapi("comet-key"),
///     Provider::openai("openai-key").header("openai-organization", "org-1"),
///     Provider::new("azure", "https://example.openai.azure.com/openai/v1")
///         .api_key_header("api-key", "azure-key")
///         .query("api-version", "preview")
///         .attempt_timeout(Duration::from_secs(20)),
/// ])
/// .build()?;
/// # Ok::<(), reqwest_failover::ConfigError>(())
/// ```
///
/// # Keys
///
/// Whitespace and newlines around a key are trimmed, since keys come from files. A key that is
/// empty, a placeholder such as `${OPENAI_API_KEY}` or `<your-api-key>`, begins with `Bearer `, or
/// holds spaces, control characters, non-ASCII or quotes is an error. Over `http://` a key is an
/// error too, except on loopback or with
/// [`danger_allow_plaintext`](Self::danger_allow_plaintext). A provider may have several
/// credentials, each in a header or query name of its own, or in the path.
#[derive(Clone)]
#[must_use]
pub struct Provider {
    name: String,
    base_url: String,
    credentials: Vec<Credential>,
    headers: Vec<Result<(HeaderName, HeaderValue), Cow<'static, str>>>,
    queries: Vec<(String, String)>,
    remove_headers: Vec<String>,
    keep_headers: Vec<String>,
    edits: BodyEdits,
    attempt_timeout: Option<Duration>,
    max_in_flight: Option<usize>,
    map_request: Option<MapRequest>,
    forward_caller_auth: bool,
    danger_allow_plaintext: bool,
}

impl Provider {
    /// Any provider. The name appears in reports, logs and metrics, and is unique in its chain; the
    /// base URL is absolute, without userinfo, query or fragment. A trailing slash makes no
    /// difference.
    ///
    /// ```
    /// # use reqwest_failover::{Provider, ProviderChain};
    /// let local = Provider::new("local", "http://localhost:11434/v1");
    /// assert!(ProviderChain::builder([local]).build().is_ok());
    ///
    /// let relative = Provider::new("local", "localhost:11434/v1");
    /// let error = ProviderChain::builder([relative]).build().unwrap_err();
    /// assert_eq!(error.provider(), Some("local"));
    /// ```
    pub fn new(name: impl Into<String>, base_url: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            base_url: base_url.into(),
            credentials: Vec::new(),
            headers: Vec::new(),
            queries: Vec::new(),
            remove_headers: Vec::new(),
            keep_headers: Vec::new(),
            edits: BodyEdits::default(),
            attempt_timeout: None,
            max_in_flight: None,
            map_request: None,
            forward_caller_auth: false,
            danger_allow_plaintext: false,
        }
    }

    /// Sets a header on every request to this provider, in place of the caller's. The last value
    /// set for a name counts. Credentials do not belong here, and neither do `host` and the headers
    /// that frame a message. What is no header name or value is an error of `build()`.
    ///
    /// ```
    /// # use reqwest_failover::Provider;
    /// use reqwest::header::{HeaderValue, USER_AGENT};
    ///
    /// Provider::openai("openai-key")
    ///     .header("openai-project", "proj-1")
    ///     .header(USER_AGENT, HeaderValue::from_static("my-service/1.0"));
    /// ```
    pub fn header<N, V>(mut self, name: N, value: V) -> Self
    where
        N: TryInto<HeaderName>,
        V: TryInto<HeaderValue>,
    {
        // Neither is repeated: a user who mixes up name and value put a key where the name belongs.
        let header = match (name.try_into(), value.try_into()) {
            (Err(_), _) => Err("the name must be a header name: letters, digits, `-`".into()),
            (Ok(name), Err(_)) => {
                Err(format!("the value of `{name}` must hold no control characters").into())
            }
            (Ok(name), Ok(value)) => Ok((name, value)),
        };
        self.headers.push(header);
        self
    }

    /// Appends a pair to the query of every request to this provider, in place of the caller's pairs
    /// of that name (compared without ASCII case). A name may be given several times.
    ///
    /// ```
    /// # use reqwest_failover::Provider;
    /// Provider::new("azure", "https://example.openai.azure.com/openai").query("api-version", "preview");
    /// ```
    pub fn query(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.queries.push((name.into(), value.into()));
        self
    }

    /// Removes one of the caller's headers from requests to this provider. Those that are known to
    /// carry keys need no mention: they never reach another provider.
    ///
    /// ```
    /// # use reqwest_failover::Provider;
    /// Provider::openai("openai-key").remove_header("x-internal-user");
    /// ```
    pub fn remove_header(mut self, header: impl Into<String>) -> Self {
        self.remove_headers.push(header.into());
        self
    }

    /// Lets one of the caller's headers through to this provider, though its name looks as if it
    /// carried a key, or its value is marked sensitive. A name that any provider of the chain uses
    /// for its own credential is an error: what the caller sends there never reaches another.
    ///
    /// ```
    /// # use reqwest_failover::Provider;
    /// Provider::openai("openai-key").keep_header("x-partition-key");
    /// ```
    pub fn keep_header(mut self, header: impl Into<String>) -> Self {
        self.keep_headers.push(header.into());
        self
    }

    /// Asks this provider for the model `to` where the request names `from`: the same model has
    /// another name elsewhere. May be called several times.
    ///
    /// Only the value of `"model"` at the top of a JSON body changes; every other byte stays. The
    /// headers that speak of the body's length or digest go. A body that is not JSON, names another
    /// model, or can be sent only once is left as it is.
    ///
    /// ```
    /// # use reqwest_failover::Provider;
    /// Provider::new("openrouter", "https://openrouter.ai/api/v1")
    ///     .bearer_auth("openrouter-key")
    ///     .rename_model("gpt-4o-mini", "openai/gpt-4o-mini");
    /// ```
    pub fn rename_model(mut self, from: impl Into<String>, to: impl Into<String>) -> Self {
        self.edits.models.push((from.into(), to.into()));
        self
    }

    /// Renames models by a rule, where [`rename_model`](Self::rename_model) has no name for them; in the
    /// same way. `None` keeps the name. A second call replaces the first. If it panics, the name is kept.
    ///
    /// ```
    /// # use reqwest_failover::Provider;
    /// // OpenAI's models have its name before theirs.
    /// Provider::new("openrouter", "https://openrouter.ai/api/v1")
    ///     .bearer_auth("openrouter-key")
    ///     .rename_model_with(|model| model.starts_with("gpt-").then(|| format!("openai/{model}")));
    /// ```
    pub fn rename_model_with<F>(mut self, rename: F) -> Self
    where
        F: Fn(&str) -> Option<String> + Send + Sync + 'static,
    {
        self.edits.rename_with = Some(Arc::new(rename));
        self
    }

    /// Sets a value at the top of the JSON bodies that are sent to this provider: in place of the
    /// caller's, else at the end. Each key once; not the model where it is renamed.
    ///
    /// As for [`rename_model`](Self::rename_model), every other byte stays, and the headers that speak of
    /// the body go if it changes. Of duplicate keys each is set. A body that is no JSON object, is
    /// compressed, or can be sent only once is left as it is. Credentials do not belong here: no
    /// message is searched for them.
    ///
    /// ```
    /// # use reqwest_failover::{Provider, ProviderChain};
    /// let chain = ProviderChain::builder([
    ///     Provider::openai("openai-key").json_set("store", false),
    ///     // It refuses what the first one takes.
    ///     Provider::new("other", "https://api.example.com/v1")
    ///         .bearer_auth("other-key")
    ///         .json_set("reasoning", serde_json::json!({ "effort": "low" }))
    ///         .json_remove("store"),
    /// ])
    /// .build()?;
    /// # Ok::<(), reqwest_failover::ConfigError>(())
    /// ```
    ///
    /// The value is what `serde_json` makes of it. One that it cannot write is an error of `build()`.
    pub fn json_set(mut self, key: impl Into<String>, value: impl Serialize) -> Self {
        self.edits.set.push((key.into(), serde_json::to_string(&value).ok()));
        self
    }

    /// Removes a key from the top of the JSON bodies that are sent to this provider, such as a parameter
    /// that it refuses. Otherwise as [`json_set`](Self::json_set), where it is shown.
    pub fn json_remove(mut self, key: impl Into<String>) -> Self {
        self.edits.remove.push(key.into());
        self
    }

    /// The longest this provider may take until its response headers are complete, instead of the
    /// chain's default. It binds even when no other provider is left. Not zero.
    ///
    /// ```
    /// # use reqwest_failover::Provider;
    /// # use std::time::Duration;
    /// Provider::cometapi("comet-key").attempt_timeout(Duration::from_secs(10));
    /// ```
    pub fn attempt_timeout(mut self, limit: Duration) -> Self {
        self.attempt_timeout = Some(limit);
        self
    }

    /// How many requests this provider may have at once; at least 1. Default no limit.
    ///
    /// While it has as many, it is passed over as if it were cooling down: without a fault, and without a
    /// queue. Only where every other provider is at its limit, too, or has failed, it is asked all the
    /// same. An answer counts until its body ends or is dropped, also if it is never read.
    ///
    /// ```
    /// # use reqwest_failover::{Provider, ProviderChain};
    /// // Eight slots on a GPU of one's own; what does not fit goes to a cloud.
    /// let chain = ProviderChain::builder([
    ///     Provider::new("gpu", "http://localhost:8000/v1").max_in_flight(8),
    ///     Provider::openai("openai-key"),
    /// ])
    /// .build()?;
    /// # Ok::<(), reqwest_failover::ConfigError>(())
    /// ```
    pub fn max_in_flight(mut self, requests: usize) -> Self {
        self.max_in_flight = Some(requests);
        self
    }

    /// Changes every request to this provider, after its credentials were set. The URL must stay
    /// below the base URL. An error sends the request to the next provider and costs this one
    /// nothing. A second call replaces the first.
    ///
    /// ```
    /// # use reqwest_failover::Provider;
    /// Provider::openai("openai-key").map_request(|request| {
    ///     request.headers_mut().insert("x-attempt-at", "openai".parse()?);
    ///     Ok::<_, reqwest::header::InvalidHeaderValue>(())
    /// });
    /// ```
    pub fn map_request<F, E>(mut self, f: F) -> Self
    where
        F: Fn(&mut Request) -> Result<(), E> + Send + Sync + 'static,
        E: Into<BoxError>,
    {
        self.map_request = Some(Arc::new(move |request| f(request).map_err(Into::into)));
        self
    }

    /// Lets this provider, and no other, have the credentials that the caller put on the request,
    /// if the request is addressed below this provider's own base URL. Not together with a
    /// credential of its own.
    ///
    /// ```
    /// # use reqwest_failover::Provider;
    /// Provider::new("openai", "https://api.openai.com/v1").forward_caller_auth();
    /// ```
    pub fn forward_caller_auth(mut self) -> Self {
        self.forward_caller_auth = true;
        self
    }

    /// Allows credentials over `http://` to a host that is not loopback. Anyone on the way can read
    /// them.
    ///
    /// ```
    /// # use reqwest_failover::Provider;
    /// Provider::new("inhouse", "http://llm.internal/v1").bearer_auth("key").danger_allow_plaintext();
    /// ```
    pub fn danger_allow_plaintext(mut self) -> Self {
        self.danger_allow_plaintext = true;
        self
    }

    fn credential(mut self, credential: Credential) -> Self {
        self.credentials.push(credential);
        self
    }
}

/// Shows what is set, never a key or a header's or query's value.
impl fmt::Debug for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let credentials: Vec<_> = self.credentials.iter().map(Credential::kind).collect();
        let valid = self.headers.iter().map(Result::as_ref);
        let headers: Vec<_> =
            valid.map(|header| header.map_or("<invalid>", |(name, _)| name.as_str())).collect();
        let queries: Vec<_> = self.queries.iter().map(|(name, _)| name.as_str()).collect();
        let mut shown = f.debug_struct("Provider");
        shown.field("name", &self.name);
        // As typed, it may hold a password.
        let key = |credential: &Credential| matches!(credential, Credential::Path(_));
        let base = match self.credentials.iter().any(key) {
            true => Base::parse_with_key(&self.base_url, "key"),
            false => Base::parse(&self.base_url),
        };
        match base {
            Ok(base) => shown.field("base_url", &base),
            Err(_) => shown.field("base_url", &format_args!("<invalid>")),
        };
        shown
            .field("credentials", &credentials)
            .field("headers", &headers)
            .field("queries", &queries)
            .field("remove_header", &self.remove_headers)
            .field("keep_header", &self.keep_headers)
            .field("attempt_timeout", &self.attempt_timeout)
            .field("map_request", &self.map_request.is_some())
            .field("forward_caller_auth", &self.forward_caller_auth)
            .field("danger_allow_plaintext", &self.danger_allow_plaintext)
            .finish()
    }
}

/// A source as it is kept.
fn boxed<F, Fut, E>(source: F) -> TokenSource
where
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<String, E>> + Send + 'static,
    E: Into<BoxError> + 'static,
{
    Arc::new(move || {
        let key = source();
        Box::pin(async move { key.await.map_err(Into::into) })
    })
}

pub(crate) type BoxError = Box<dyn StdError + Send + Sync>;
pub(crate) type TokenFuture = Pin<Box<dyn Future<Output = Result<String, BoxError>> + Send>>;
pub(crate) type TokenSource = Arc<dyn Fn() -> TokenFuture + Send + Sync>;
pub(crate) type RenameModel = Arc<dyn Fn(&str) -> Option<String> + Send + Sync>;
pub(crate) type MapRequest = Arc<dyn Fn(&mut Request) -> Result<(), BoxError> + Send + Sync>;
