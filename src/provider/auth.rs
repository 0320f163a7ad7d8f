//! The credentials of a provider, as they are set.

use super::credential::Credential;
use super::{BoxError, Provider, boxed};

impl Provider {
    /// Sends `Authorization: Bearer <key>`.
    ///
    /// ```
    /// # use reqwest_failover::Provider;
    /// Provider::new("groq", "https://api.groq.com/openai/v1").bearer_auth("groq-key");
    /// ```
    pub fn bearer_auth(self, key: impl Into<String>) -> Self {
        self.credential(Credential::Bearer(key.into()))
    }

    /// Sends `Authorization: Basic <base64 of user:password>`. Any user and password without
    /// control characters will do, an empty password too; only the user may hold no `:`.
    ///
    /// ```
    /// # use reqwest_failover::Provider;
    /// Provider::new("gateway", "https://gateway.example.com").basic_auth("service", "password");
    /// ```
    pub fn basic_auth(self, user: impl Into<String>, password: impl Into<String>) -> Self {
        self.credential(Credential::Basic(user.into(), password.into()))
    }

    /// Sends the key in a header of its own. Where the header takes more than a key, the value is
    /// all of it: `Token KEY` in `authorization`, `session=KEY` in `cookie`, or a sub-protocol that
    /// carries a key. What is searched for in messages is the key that the value holds.
    ///
    /// ```
    /// # use reqwest_failover::Provider;
    /// Provider::new("anthropic", "https://api.anthropic.com/v1")
    ///     .api_key_header("x-api-key", "anthropic-key")
    ///     .header("anthropic-version", "2023-06-01");
    /// ```
    pub fn api_key_header(self, header: impl Into<String>, key: impl Into<String>) -> Self {
        self.credential(Credential::Header(header.into(), key.into()))
    }

    /// Sends the key in the query. URLs are logged in many places that headers are not, so prefer
    /// [`api_key_header`](Self::api_key_header) where the provider takes it.
    ///
    /// ```
    /// # use reqwest_failover::Provider;
    /// Provider::new("gemini", "https://generativelanguage.googleapis.com/v1beta")
    ///     .api_key_query("key", "gemini-key");
    /// ```
    pub fn api_key_query(self, name: impl Into<String>, key: impl Into<String>) -> Self {
        self.credential(Credential::Query(name.into(), key.into()))
    }

    /// Sends the key as a part of the path: the base URL holds `{key}` once, where the key belongs.
    /// RPC nodes, Telegram's bots and webhooks take theirs there.
    ///
    /// A key that is typed into the URL itself cannot be recognised there, and is shown wherever the URL
    /// is. This one is treated as any other: it needs `https://`, and every URL that
    /// is handed out or shown holds `{key}` in its place.
    ///
    /// ```
    /// use reqwest_failover::{Provider, ProviderChain};
    ///
    /// let chain = ProviderChain::builder([
    ///     Provider::new("first", "https://eth.example.com/v2/{key}").api_key_path("first-secret"),
    ///     Provider::new("second", "https://rpc.example.net/{key}").api_key_path("second-secret"),
    /// ])
    /// .claim("https://eth.test")
    /// .build()?;
    /// assert!(!format!("{chain:?}").contains("secret"));
    /// # Ok::<(), reqwest_failover::ConfigError>(())
    /// ```
    ///
    /// A request's own URL should hold no key, so such a request is addressed below a
    /// base without one: another provider's, a [`claim`](crate::ProviderChainBuilder::claim)ed one
    /// as here, or this one's as it is typed, `https://eth.example.com/v2/{key}`.
    pub fn api_key_path(self, key: impl Into<String>) -> Self {
        self.credential(Credential::Path(key.into()))
    }

    /// Sends `Authorization: Bearer <token>` with a token that is asked for on every attempt, within
    /// its timeout. Nothing is cached: a source that fetches tokens keeps them itself.
    ///
    /// A source that fails, or whose token is malformed, is a failure of the provider: the request
    /// goes to the next, with [`Reason::Credential`](crate::Reason::Credential). Several sources are
    /// asked one after the other.
    ///
    /// ```
    /// # use reqwest_failover::Provider;
    /// Provider::new("vertex", "https://example.googleapis.com/v1").bearer_auth_with(|| async {
    ///     tokio::fs::read_to_string("/run/secrets/token").await
    /// });
    /// ```
    pub fn bearer_auth_with<F, Fut, E>(self, source: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<String, E>> + Send + 'static,
        E: Into<BoxError> + 'static,
    {
        self.credential(Credential::BearerSource(boxed(source)))
    }

    /// [`api_key_header`](Self::api_key_header) with a key that is asked for on every attempt, as
    /// [`bearer_auth_with`](Self::bearer_auth_with) does.
    ///
    /// ```
    /// # use reqwest_failover::Provider;
    /// Provider::new("azure", "https://example.openai.azure.com/openai/v1")
    ///     .api_key_header_with("api-key", || async {
    ///         tokio::fs::read_to_string("/run/secrets/azure").await
    ///     });
    /// ```
    pub fn api_key_header_with<F, Fut, E>(self, header: impl Into<String>, source: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<String, E>> + Send + 'static,
        E: Into<BoxError> + 'static,
    {
        self.credential(Credential::HeaderSource(header.into(), boxed(source)))
    }

    /// [`api_key_query`](Self::api_key_query) with a key that is asked for on every attempt, as
    /// [`bearer_auth_with`](Self::bearer_auth_with) does. It is the last pair of the query.
    ///
    /// ```
    /// # use reqwest_failover::Provider;
    /// Provider::new("gemini", "https://generativelanguage.googleapis.com/v1beta")
    ///     .api_key_query_with("key", || async {
    ///         tokio::fs::read_to_string("/run/secrets/gemini").await
    ///     });
    /// ```
    pub fn api_key_query_with<F, Fut, E>(self, name: impl Into<String>, source: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<String, E>> + Send + 'static,
        E: Into<BoxError> + 'static,
    {
        self.credential(Credential::QuerySource(name.into(), boxed(source)))
    }
}
