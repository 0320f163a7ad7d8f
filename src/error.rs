//! `ConfigError`, for a chain that cannot be built, and `FailoverError`, for a request that no provider
//! served.
//!
//! `reqwest_middleware::Error` is transparent: its `source()` skips the error that it holds. So a
//! `FailoverError` is carried as the source of a private wrapper, where [`FailoverError::find`] sees
//! it, also behind a retry layer or a client's own error type.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use http::StatusCode;

use crate::report::{Attempt, Report};
use crate::verdict::Reason;

/// A chain's configuration is wrong. Its `Display` names the provider and the field and says what
/// would be right; it never shows a key.
///
/// ```
/// use reqwest_failover::{Provider, ProviderChain};
///
/// let error = ProviderChain::builder([Provider::new("mine", "ftp://example.com")]).build().unwrap_err();
/// assert_eq!(error.provider(), Some("mine"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{field}: {problem}", .provider.as_ref().map(|name| format!("provider `{name}`: ")).unwrap_or_default())]
pub struct ConfigError {
    provider: Option<String>,
    field: &'static str,
    problem: String,
}

impl ConfigError {
    /// The provider that the error is about; `None` when it is about the chain.
    pub fn provider(&self) -> Option<&str> {
        self.provider.as_deref()
    }

    /// What is wrong: the name of the setting, such as `base_url` or `attempt_timeout`.
    ///
    /// ```
    /// # use reqwest_failover::ProviderChain;
    /// let error = ProviderChain::builder([]).build().unwrap_err();
    /// assert_eq!((error.provider(), error.field()), (None, "providers"));
    /// ```
    pub fn field(&self) -> &str {
        self.field
    }

    pub(crate) fn new(
        provider: Option<&str>,
        field: &'static str,
        problem: impl Into<String>,
    ) -> Self {
        let provider = provider.map(|name| name.escape_debug().to_string());
        Self { provider, field, problem: problem.into() }
    }
}

/// No provider served the request. Its `Display` is one line that says what every provider answered, and
/// why the others were not asked.
///
/// It is what a chain with [`Exhausted::Error`] fails with, and any chain that has no response or
/// transport error of a provider to hand on.
///
/// ```no_run
/// # async fn ask(client: reqwest_middleware::ClientWithMiddleware) {
/// use reqwest_failover::FailoverError;
///
/// if let Err(error) = client.get("https://api.openai.com/v1/models").send().await {
///     if let Some(failed) = FailoverError::find(&error) {
///         eprintln!("{failed}");
///         eprintln!("retry after: {:?}", failed.retry_after());
///     }
/// }
/// # }
/// ```
#[derive(Debug)]
pub struct FailoverError {
    cause: FailureKind,
    report: Report,
}

impl FailoverError {
    /// Finds a `FailoverError` in an error or among its sources.
    pub fn find<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a Self> {
        std::iter::successors(Some(error), |&error| error.source()).find_map(|error| {
            let found = error.downcast_ref::<Findable>().map(|found| &found.0);
            error.downcast_ref::<Self>().or(found)
        })
    }

    /// Every attempt that was made.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Whether the last attempt, or the request as a whole, ran out of time.
    ///
    /// `is_timeout()` and `is_connect()` of `reqwest_middleware::Error` answer for a `reqwest::Error` that
    /// is handed on; for a `FailoverError` they are always `false`, since that type has no way to say it.
    pub fn is_timeout(&self) -> bool {
        matches!(self.cause, FailureKind::NoTime) || self.ended_with(Reason::Timeout)
    }

    /// Whether the last attempt found no connection to its provider.
    pub fn is_connect(&self) -> bool {
        self.ended_with(Reason::Connect)
    }

    /// The status of the last response that any provider gave.
    pub fn last_status(&self) -> Option<StatusCode> {
        self.report.attempts().iter().rev().find_map(Attempt::status)
    }

    /// The shortest time after which a provider said that it may be asked again.
    pub fn retry_after(&self) -> Option<Duration> {
        self.report.attempts().iter().filter_map(|attempt| attempt.retry_after).min()
    }

    pub(crate) fn new(cause: FailureKind, report: Report) -> Self {
        Self { cause, report }
    }

    /// The error as it travels through `reqwest-middleware`.
    pub(crate) fn into_middleware(self) -> reqwest_middleware::Error {
        reqwest_middleware::Error::middleware(Carrier { found: Findable(self) })
    }

    fn ended_with(&self, reason: Reason) -> bool {
        self.report.attempts().last().is_some_and(|attempt| attempt.reason() == reason)
    }
}

impl fmt::Display for FailoverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.cause, f)?;
        for (index, attempt) in self.report.attempts().iter().enumerate() {
            f.write_str(if index == 0 { ": " } else { "; " })?;
            match attempt.status() {
                Some(status) => write!(f, "{} answered {}", attempt.provider(), status.as_u16())?,
                None => write!(f, "{} failed", attempt.provider())?,
            }
            write!(f, " ({}) in {} ms", attempt.reason(), attempt.elapsed().as_millis())?;
            if let Some(message) = attempt.message() {
                write!(f, ": {message}")?;
            }
        }
        if let Some(unasked) = self.report.unasked() {
            write!(f, "; {unasked}")?;
        }
        Ok(())
    }
}

impl StdError for FailoverError {}

/// What a chain returns when no provider served the request.
///
/// ```
/// use reqwest_failover::{Exhausted, Provider, ProviderChain};
///
/// let chain = ProviderChain::builder([Provider::openai("key")])
///     .on_exhausted(Exhausted::Error)
///     .build()?;
/// # Ok::<(), reqwest_failover::ConfigError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Exhausted {
    /// The last provider's response, its body byte for byte, or its `reqwest::Error`: exactly as if that
    /// provider had been the only one. A [`FailoverError`] where it left neither, as after a timeout of
    /// this layer. The default.
    #[default]
    LastOutcome,
    /// Always a [`FailoverError`].
    Error,
}

/// Why there is a `FailoverError`.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FailureKind {
    #[error("no provider served the request")]
    Exhausted,
    #[error("no provider may be asked: each is isolated or left out by the route")]
    NoProviderToAsk,
    #[error("the request's total timeout passed")]
    NoTime,
    #[error("the request's own body failed")]
    BodyFailed,
    #[error("the path hides a dot segment and is refused; nothing was sent")]
    PathRefused,
    #[error(
        "the route names the provider `{name}`, which is not one of: {known}; nothing was sent"
    )]
    UnknownRoute { name: String, known: String },
    #[error("`classify` accepted an outcome that has no response to hand on")]
    NothingAccepted,
}

/// Makes a `FailoverError` visible as a source; see the module's documentation.
#[derive(Debug, thiserror::Error)]
#[error("{}", .found.0)]
struct Carrier {
    #[source]
    found: Findable,
}

/// A `FailoverError` among the sources of another error. It has no text of its own, since the error above
/// it has shown all of it.
#[derive(Debug, thiserror::Error)]
#[error("FailoverError")]
struct Findable(FailoverError);

#[cfg(test)]
mod tests {
    use super::*;

    fn failed() -> FailoverError {
        let mut report = Report::new(1);
        for (provider, status, reason, message) in [
            ("a", Some(StatusCode::TOO_MANY_REQUESTS), Reason::RateLimited, Some("slow down")),
            ("b", None, Reason::Connect, None),
        ] {
            report.push(Attempt {
                provider: provider.into(),
                status,
                reason,
                code: None,
                message: message.map(Into::into),
                elapsed: Duration::from_millis(3),
                retry_after: status.map(|_| Duration::from_secs(9)),
                maybe_processed: false,
                is_replayable: true,
            });
        }
        FailoverError::new(FailureKind::Exhausted, report)
    }

    #[test]
    fn says_what_every_provider_answered() {
        assert_eq!(
            failed().to_string(),
            "no provider served the request: a answered 429 (rate_limited) in 3 ms: slow down; \
             b failed (connect) in 3 ms"
        );
        assert!(failed().is_connect() && !failed().is_timeout());
        assert_eq!(failed().last_status(), Some(StatusCode::TOO_MANY_REQUESTS));
        assert_eq!(failed().retry_after(), Some(Duration::from_secs(9)));
    }

    #[test]
    fn is_a_timeout_by_its_last_attempt_or_as_a_whole() {
        let mut late = failed();
        assert!(!late.is_timeout());
        late.report.push(Attempt { reason: Reason::Timeout, ..late.report.attempts()[1].clone() });
        assert!(late.is_timeout() && !late.is_connect());
        assert_eq!(late.report().attempts().len(), 3);
        let never = FailoverError::new(FailureKind::NoTime, Report::new(1));
        assert!(never.is_timeout() && !never.is_connect());
        assert_eq!((never.last_status(), never.retry_after()), (None, None));
    }

    #[test]
    fn is_found_through_transparent_and_nested_errors() {
        #[derive(Debug, thiserror::Error)]
        #[error("retried 3 times")]
        struct Retried(#[source] reqwest_middleware::Error);

        let error = failed().into_middleware();
        assert!(FailoverError::find(&error).is_some());
        assert_eq!(error.to_string(), failed().to_string());
        let whole: Option<&(dyn StdError + 'static)> = Some(&error);
        let chain = std::iter::successors(whole, |&error| error.source());
        let whole: Vec<_> = chain.map(ToString::to_string).collect();
        assert_eq!(whole.join(": "), format!("{}: FailoverError", failed()), "its text comes once");
        let retried = reqwest_middleware::Error::middleware(Retried(error));
        assert!(FailoverError::find(&retried).is_some());
        assert!(FailoverError::find(&failed()).is_some());
        assert!(FailoverError::find(&fmt::Error).is_none());
    }

    #[test]
    fn a_config_error_names_the_provider_and_the_field() {
        let error = ConfigError::new(Some("a"), "base_url", "must be absolute");
        assert_eq!(error.to_string(), "provider `a`: base_url: must be absolute");
        assert_eq!((error.provider(), error.field()), (Some("a"), "base_url"));
        let error = ConfigError::new(None, "max_attempts", "must be at least 1");
        assert_eq!(error.to_string(), "max_attempts: must be at least 1");
        assert_eq!(error.provider(), None);
    }
}
