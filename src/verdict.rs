//! What one outcome means: where the request goes next, and what the health records.
//!
//! The two are separate facts. A 400 sends the request to the next provider and is a failure of none; a
//! 429 rests a provider and is no failure of it either. Everything here is
//! a pure function of the outcome, so that a chain's decisions can be read off a table.

mod outcome;

use std::fmt;
use std::time::Duration;

use http::StatusCode;

pub use self::outcome::Outcome;

/// What a chain does with the outcome of one attempt.
///
/// [`Verdict::standard`] is the default: success is accepted, everything else fails over.
/// [`Verdict::transient`] is the careful preset. A chain's
/// [`classify`](crate::ProviderChainBuilder::classify) may start from either:
///
/// ```
/// use reqwest_failover::{Fault, Provider, ProviderChain, Verdict};
///
/// let chain = ProviderChain::builder([Provider::openai("key")])
///     .classify(|outcome| match outcome.status().map(|status| status.as_u16()) {
///         Some(404) => Verdict::Accept,
///         Some(418) => Verdict::FailOver(Fault::Failure),
///         _ => Verdict::standard(outcome),
///     })
///     .build()?;
/// # Ok::<(), reqwest_failover::ConfigError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// Hand the response to the caller. A success counts as one for the provider's health. A status of
    /// 400 or more counts as neither success nor failure, as [`Fault::None`] does.
    Accept,
    /// Ask the next provider; the provider's health records the [`Fault`].
    FailOver(Fault),
}

impl Verdict {
    /// The default: only success is accepted.
    ///
    /// | outcome | verdict | health |
    /// |---|---|---|
    /// | 2xx, 304, 101 when `Upgrade` was asked for | `Accept` | success |
    /// | no response: connect, timeout, reset, credential source | `FailOver` | `Failure` |
    /// | 429; 402, 503 and 529 with a hint | `FailOver` | `Cooldown` |
    /// | any other 5xx, 408, 425 | `FailOver` | `Failure`; `None` if the answer blames the request |
    /// | 401, 402, 403, and no cooldown | `FailOver` | `Failure`; `None` if the answer blames the request by a code of its own |
    /// | other 4xx, 3xx; `map_request` failed | `FailOver` | `None` |
    /// | a 2xx that `inspect` found an error in | `FailOver` | that of the status that its code stands for, else `Failure` |
    ///
    /// An answer blames the request by its code: `context_length_exceeded`, `content_filter`,
    /// `invalid_request` and many more. Gateways say that with statuses of every kind. Its body is read
    /// for that before the verdict; see
    /// [`error_body_timeout`](crate::ProviderChainBuilder::error_body_timeout).
    ///
    /// A timeout that was the caller's choice (of the request or of the client) is a `Failure` here, too.
    /// The health counts it only after a long silence of the provider; see [`Breaker`](crate::Breaker).
    pub fn standard(outcome: &Outcome<'_>) -> Self {
        match outcome.reason() {
            Reason::Ok => Self::Accept,
            _ => Self::FailOver(outcome.fault()),
        }
    }

    /// The careful preset: only transport errors, 408, 425, 429 and 5xx fail over, and errors inside a
    /// success whose code stands for one of these or for no status at all, with the health of
    /// [`standard`](Self::standard). Every other response is accepted as it is.
    pub fn transient(outcome: &Outcome<'_>) -> Self {
        if outcome.is_transient() { Self::standard(outcome) } else { Self::Accept }
    }
}

/// What a provider's health records for an outcome that fails over. Shown at [`Verdict`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// No failure: the request was at fault, not the provider. An answer that is judged so counts for
    /// nothing, with one exception: it closes the circuit breaker if it answers the probe, since the
    /// provider is alive.
    None,
    /// A failure: it counts toward opening the provider's circuit breaker.
    Failure,
    /// A rest without a failure: the provider is passed over for this long, as
    /// [`Cooldown`](crate::Cooldown) allows; zero is 1 s. Without a duration 5 s, doubling with each
    /// cooldown in a row.
    Cooldown(Option<Duration>),
}

/// How an attempt ended: the closed set of labels in reports, logs and metrics.
///
/// ```
/// assert_eq!(reqwest_failover::Reason::RateLimited.as_str(), "rate_limited");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Reason {
    /// 2xx, 304, or 101 when the request asked for `Upgrade`.
    Ok,
    /// A 4xx that none of the others names.
    ClientError,
    /// 401, 402 or 403: the key, the account, or its balance.
    Auth,
    /// A 429 whose code says that the account's quota or balance is used up, or such an error inside a
    /// success. It rests like a rate limit, since some vendors throttle so, and is logged like a key that is refused.
    Quota,
    /// Any other 429.
    RateLimited,
    /// 5xx, 408 or 425.
    ServerError,
    /// A 3xx, or a response from another origin or path than the one that was asked.
    Redirected,
    /// No connection: refused, DNS, TLS.
    Connect,
    /// No complete response headers in time, or for chains that
    /// [`inspect`](crate::ProviderChainBuilder::inspect) no content.
    Timeout,
    /// The connection broke before the response headers were complete, or for chains that
    /// [`inspect`](crate::ProviderChainBuilder::inspect) before the first content.
    Reset,
    /// A 2xx whose body is an error, for chains that
    /// [`inspect`](crate::ProviderChainBuilder::inspect).
    ErrorInSuccess,
    /// The credential source failed, or its token was malformed. Nothing was sent.
    Credential,
    /// The attempt was dropped before it had an outcome: the caller dropped the request, or a hedge or
    /// the attempt that it hedged was faster.
    Abandoned,
    /// Anything else: an error of unknown kind, `map_request` that failed, a status outside 100–599.
    Other,
}

impl Reason {
    /// The label, in snake case: `"ok"`, `"client_error"`, `"auth"`, `"rate_limited"`, …
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::ClientError => "client_error",
            Self::Auth => "auth",
            Self::Quota => "quota",
            Self::RateLimited => "rate_limited",
            Self::ServerError => "server_error",
            Self::Redirected => "redirected",
            Self::Connect => "connect",
            Self::Timeout => "timeout",
            Self::Reset => "reset",
            Self::ErrorInSuccess => "error_in_success",
            Self::Credential => "credential",
            Self::Abandoned => "abandoned",
            Self::Other => "other",
        }
    }

    fn of_status(status: StatusCode, upgrade_asked: bool) -> Self {
        match status.as_u16() {
            200..=299 | 304 => Self::Ok,
            101 if upgrade_asked => Self::Ok,
            300..=399 => Self::Redirected,
            401..=403 => Self::Auth,
            429 => Self::RateLimited,
            408 | 425 | 500..=599 => Self::ServerError,
            400..=499 => Self::ClientError,
            _ => Self::Other,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests;
