//! Which requests may be processed twice.

use http::Method;

/// What to do when a provider may have processed a request although no usable answer came.
///
/// ```
/// use reqwest_failover::{Ambiguous, Provider, ProviderChain};
///
/// let chain = ProviderChain::builder([Provider::openai("key")])
///     .on_ambiguous(Ambiguous::IdempotentOnly)
///     .build()?;
/// # Ok::<(), reqwest_failover::ConfigError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ambiguous {
    /// Ask the next provider; the request may be processed, and billed, twice. The default, since a
    /// provider that hangs is the case that most needs covering.
    #[default]
    FailOver,
    /// Ask the next provider only for GET, HEAD, OPTIONS, PUT, DELETE and TRACE, and for requests
    /// with the extension [`Replay::allowed`]; hedge no others either. An `Idempotency-Key` header
    /// changes nothing, since no two providers share such keys.
    IdempotentOnly,
}

/// A request extension: this request may be processed at two providers, although the chain is set to
/// [`Ambiguous::IdempotentOnly`] and its method does not say so.
///
/// ```no_run
/// # async fn search(client: reqwest_middleware::ClientWithMiddleware) -> reqwest_middleware::Result<()> {
/// use reqwest_failover::Replay;
///
/// let response = client
///     .post("https://api.openai.com/v1/embeddings")
///     .with_extension(Replay::allowed())
///     .body(r#"{"model":"text-embedding-3-small","input":"hello"}"#)
///     .send()
///     .await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replay {
    _private: (),
}

impl Replay {
    /// Allows the next provider to be asked after one that may have processed the request.
    pub fn allowed() -> Self {
        Self { _private: () }
    }
}

/// Whether sending a request of this method twice does what sending it once does.
pub(crate) fn is_idempotent(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE | Method::TRACE
    )
}
