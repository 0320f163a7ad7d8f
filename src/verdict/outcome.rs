//! What came of one attempt.

use std::error::Error as StdError;
use std::fmt;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, StatusCode};

use super::{Fault, Reason};
use crate::cause::{self, Blame, Cause};

/// What came of one attempt, as a [`classify`](crate::ProviderChainBuilder::classify) closure sees
/// it.
///
/// What the provider said is there where it arrived in time, so that one closure can tell apart what
/// statuses do not:
///
/// ```
/// use reqwest_failover::{Fault, Provider, ProviderChain, Verdict};
///
/// let chain = ProviderChain::builder([Provider::openai("key")])
///     .classify(|outcome| match outcome.code() {
///         // No other provider is going to like it better.
///         Some("context_length_exceeded") => Verdict::Accept,
///         // Another one may: each has a filter of its own.
///         Some("content_filter" | "content_policy_violation") => Verdict::FailOver(Fault::None),
///         // A month's quota is not back in five minutes.
///         Some("insufficient_quota") => Verdict::FailOver(Fault::Failure),
///         _ => Verdict::standard(outcome),
///     })
///     .build()?;
/// # Ok::<(), reqwest_failover::ConfigError>(())
/// ```
pub struct Outcome<'a> {
    provider: &'a str,
    kind: OutcomeKind<'a>,
    reason: Reason,
    cause: Option<&'a Cause>,
    /// The status that the answer has, or, for an error inside a success, the one that its code stands
    /// for.
    judged: Option<StatusCode>,
    ambiguous: bool,
    retry_after: Option<Duration>,
    elapsed: Duration,
}

/// For the driver. Whatever `cause` holds is shown to `classify`, so secrets must be gone from it.
impl<'a> Outcome<'a> {
    /// A response arrived. `cause` is what its body says, if it failed and was read. `wall` is asked for
    /// the time only where a hint may be a date.
    pub(crate) fn answered(
        provider: &'a str,
        status: StatusCode,
        headers: &'a HeaderMap,
        upgrade_asked: bool,
        cause: Option<&'a Cause>,
        elapsed: Duration,
        wall: impl FnOnce() -> SystemTime,
    ) -> Self {
        let said = cause.and_then(|cause| cause.retry_after);
        let reason = Reason::of_status(status, upgrade_asked);
        Self {
            provider,
            kind: OutcomeKind::Response(status, headers),
            reason: reason.of_quota(cause),
            cause,
            judged: Some(status),
            ambiguous: reason != Reason::Ok && may_be_processed(status),
            retry_after: cause::retry_after(status, headers, said, wall),
            elapsed,
        }
    }

    /// A response with a good status arrived, and its body is no success: an error
    /// ([`Reason::ErrorInSuccess`]) of which `cause` is what it says, or the body broke off
    /// ([`Reason::Reset`]) or had no content in time ([`Reason::Timeout`]).
    pub(crate) fn flawed(
        provider: &'a str,
        reason: Reason,
        status: StatusCode,
        headers: &'a HeaderMap,
        cause: Option<&'a Cause>,
        elapsed: Duration,
        wall: impl FnOnce() -> SystemTime,
    ) -> Self {
        let said = cause.and_then(|cause| cause.retry_after);
        let judged = cause.and_then(Cause::status).filter(|_| reason == Reason::ErrorInSuccess);
        let hint = judged.and_then(|status| cause::retry_after(status, headers, said, wall));
        let limited = judged == Some(StatusCode::TOO_MANY_REQUESTS);
        Self {
            kind: OutcomeKind::Response(status, headers),
            reason: if limited && cause.is_some_and(Cause::is_quota) {
                Reason::Quota
            } else {
                reason
            },
            cause,
            judged,
            retry_after: hint,
            // So it may have been processed: a provider that answers 200 has done so, whatever it answers.
            ..Self::failed(provider, reason, None, elapsed)
        }
    }

    /// The request was sent, or may have been, and no response arrived.
    pub(crate) fn failed(
        provider: &'a str,
        reason: Reason,
        error: Option<&'a (dyn StdError + 'static)>,
        elapsed: Duration,
    ) -> Self {
        let ambiguous = reason != Reason::Connect && !error.is_some_and(is_refused_unprocessed);
        Self {
            provider,
            kind: OutcomeKind::Failed(error),
            reason,
            cause: None,
            judged: None,
            ambiguous,
            retry_after: None,
            elapsed,
        }
    }

    /// This layer's own timeout ended the attempt, before or after the request was sent.
    pub(crate) fn timed_out(provider: &'a str, sent: bool, elapsed: Duration) -> Self {
        Self { ambiguous: sent, ..Self::failed(provider, Reason::Timeout, None, elapsed) }
    }

    /// Nothing was sent: the credential source or `map_request` failed.
    pub(crate) fn unsent(
        provider: &'a str,
        reason: Reason,
        error: &'a (dyn StdError + 'static),
        elapsed: Duration,
    ) -> Self {
        Self {
            kind: OutcomeKind::Unsent(error),
            ambiguous: false,
            ..Self::failed(provider, reason, None, elapsed)
        }
    }

    /// Whether the answer says that the provider does not have the model. For health keys; the verdict
    /// on such an answer is that of its status.
    pub(crate) fn blames_model(&self) -> bool {
        self.blame() == Blame::Model
    }

    /// Whether a failure concerns every request to the provider, whatever its model: its host cannot be
    /// reached, or the credential or the account is at fault.
    pub(crate) fn blames_provider(&self) -> bool {
        let is_common = matches!(
            self.reason,
            Reason::Connect | Reason::Credential | Reason::Auth | Reason::Quota
        );
        !self.blames_model() && (is_common || self.blames_account())
    }

    /// Whether the answer says that the key or the account is at fault.
    pub(crate) fn blames_account(&self) -> bool {
        self.blame() == Blame::Account
    }

    fn blame(&self) -> Blame {
        self.cause.map_or(Blame::Unknown, |cause| cause.blames)
    }
}

impl<'a> Outcome<'a> {
    /// The provider's name.
    pub fn provider(&self) -> &'a str {
        self.provider
    }

    /// The outcome's label.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// The response's status; `None` when there was no response.
    pub fn status(&self) -> Option<StatusCode> {
        match self.kind {
            OutcomeKind::Response(status, _) => Some(status),
            _ => None,
        }
    }

    /// The response's headers; `None` when there was no response.
    pub fn headers(&self) -> Option<&'a HeaderMap> {
        match self.kind {
            OutcomeKind::Response(_, headers) => Some(headers),
            _ => None,
        }
    }

    /// The error; `None` when there was a response, or when this layer's own timeout ended the
    /// attempt.
    pub fn error(&self) -> Option<&'a (dyn StdError + 'static)> {
        match self.kind {
            OutcomeKind::Response(..) => None,
            OutcomeKind::Failed(error) => error,
            OutcomeKind::Unsent(error) => Some(error),
        }
    }

    /// The code that the answer gives, as its vendor spells it, such as `"insufficient_quota"`,
    /// `"RESOURCE_EXHAUSTED"` or `"-32005"`: the first of what it calls `code`, `status` or `type`, and
    /// rather a word than a number. `None` where it gives none, or where its body was not read in time.
    pub fn code(&self) -> Option<&'a str> {
        self.cause?.code.as_deref()
    }

    /// What the answer says went wrong, without keys. `None` where it says nothing, or where its body was
    /// not read in time.
    pub fn message(&self) -> Option<&'a str> {
        self.cause?.message.as_deref()
    }

    /// Whether no complete response headers arrived in time, or no content where the chain inspects.
    pub fn is_timeout(&self) -> bool {
        self.reason == Reason::Timeout
    }

    /// Whether there was no connection to the provider.
    pub fn is_connect(&self) -> bool {
        self.reason == Reason::Connect
    }

    /// Whether the provider may have processed the request although no usable answer arrived.
    ///
    /// It is `false` only for what proves that it did not: no connection, nothing sent, a 307 or 308 that
    /// was not followed, a 4xx other than 408 and 499, 503, 521 to 523, and an HTTP/2 stream that was
    /// refused or lies beyond a GOAWAY. A timeout or a reset after sending, 500, 502, 504, and an error
    /// inside a 200 may all have been processed, and billed.
    pub fn maybe_processed(&self) -> bool {
        self.ambiguous
    }

    /// The hint of a 429, or of a 402, 503 or 529: how long the provider asks to be left alone. That is
    /// `retry-after-ms` or `Retry-After` in seconds or as an HTTP-date; else what the body says; else,
    /// for a 429, when the limit that was met is lifted (`x-ratelimit-reset-*` and the like). Zero and
    /// dates in the past are 1 s. An error inside a 200 has the hint of the status that its code stands
    /// for.
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// From the start of the attempt to its outcome.
    pub fn elapsed(&self) -> Duration {
        self.elapsed
    }
}

/// What the presets make of it.
impl Outcome<'_> {
    /// What the provider's health records for an outcome that fails over.
    pub(super) fn fault(&self) -> Fault {
        if matches!(self.kind, OutcomeKind::Unsent(_)) && self.reason == Reason::Other {
            return Fault::None;
        }
        let Some(status) = self.judged else {
            // An error inside a success that blames the request has a code that stands for a status.
            let is_request_fault = self.reason == Reason::Redirected;
            return if is_request_fault { Fault::None } else { Fault::Failure };
        };
        match (status.as_u16(), self.retry_after) {
            (429, hint) => Fault::Cooldown(hint),
            (402 | 503 | 529, hint @ Some(_)) => Fault::Cooldown(hint),
            (401..=403, _) if self.cause.is_some_and(Cause::surely_blames_request) => Fault::None,
            (408 | 425 | 500..=599, _) if self.blame() == Blame::Request => Fault::None,
            (401..=403 | 408 | 425 | 500..=599, _) => Fault::Failure,
            (300..=499, _) => Fault::None,
            _ => Fault::Failure,
        }
    }

    /// Whether another try may succeed where this one did not: no usable answer came, or 408, 425, 429
    /// or a 5xx.
    pub(super) fn is_transient(&self) -> bool {
        match self.judged {
            None => true,
            Some(status) => matches!(status.as_u16(), 408 | 425 | 429 | 500..=599),
        }
    }
}

impl Reason {
    /// A limit that is the account's quota is another reason than one that passes.
    fn of_quota(self, cause: Option<&Cause>) -> Self {
        match self {
            Self::RateLimited if cause.is_some_and(Cause::is_quota) => Self::Quota,
            reason => reason,
        }
    }
}

impl fmt::Debug for Outcome<'_> {
    /// Leaves out headers, error, code and message, which may hold what must not be logged.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outcome")
            .field("provider", &self.provider)
            .field("reason", &self.reason)
            .field("status", &self.status())
            .field("ambiguous", &self.ambiguous)
            .field("retry_after", &self.retry_after)
            .field("elapsed", &self.elapsed)
            .finish_non_exhaustive()
    }
}

enum OutcomeKind<'a> {
    Response(StatusCode, &'a HeaderMap),
    Failed(Option<&'a (dyn StdError + 'static)>),
    Unsent(&'a (dyn StdError + 'static)),
}

/// Whether a request may have been processed that was answered so. A list of what proves the contrary:
/// what is not on it, is doubtful.
fn may_be_processed(status: StatusCode) -> bool {
    match status.as_u16() {
        // Not followed: the request is to be sent elsewhere, as it is.
        307 | 308 => false,
        // 408: too slow in coming, perhaps not whole. 499: nginx's for a client that went away.
        408 | 499 => true,
        400..=498 => false,
        // 503: not now. 521 to 523: Cloudflare has not reached the server.
        503 | 521..=523 => false,
        _ => true,
    }
}

/// Whether an error says that the provider has not looked at the request: it refused the HTTP/2 stream,
/// or closed the connection in good order before it came to it (RFC 9113, section 8.7).
///
/// `h2` is no dependency of this crate, and the `reqwest` and `hyper` errors around its own have no
/// question for this, so its words are looked for. They begin with who ended the stream, which is the
/// peer, and go on with the frame's own code; what a peer may write itself comes behind that. With
/// another `h2`, that words it otherwise, the request counts as processed, which is the safe error. A
/// GOAWAY with another code than NO_ERROR counts as processed, too: `h2` says it of streams that were
/// being served as well.
fn is_refused_unprocessed(error: &(dyn StdError + 'static)) -> bool {
    const REFUSED: &str =
        "stream error received: refused stream before processing any application logic";
    const GONE: &str = "connection error received: not a result of an error";
    std::iter::successors(Some(error), |&error| error.source())
        // Those hold a URL, and are never the one that is looked for.
        .filter(|error| !error.is::<reqwest::Error>())
        .filter(|error| !error.is::<reqwest_middleware::Error>())
        .map(ToString::to_string)
        .any(|words| words.starts_with(REFUSED) || words.starts_with(GONE))
}
