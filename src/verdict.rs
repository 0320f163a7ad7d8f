//! What one outcome means: where the request goes next, and what the provider pays for it.
//!
//! The two are separate facts. A 400 sends the request to the next provider without hurting
//! anyone's health; a 429 rests a provider without counting as a failure of it. Everything here is
//! a pure function of the outcome, so that a chain's decisions can be read off a table.

use std::error::Error as StdError;
use std::fmt;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, StatusCode, header::RETRY_AFTER};

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
    /// Hand the response to the caller. A success counts as one for the provider's health; a
    /// status of 400 or more is no news to it.
    Accept,
    /// Ask the next provider; the provider's health pays the [`Fault`].
    FailOver(Fault),
}

impl Verdict {
    /// The default: only success is accepted.
    ///
    /// | outcome | verdict | health |
    /// |---|---|---|
    /// | 2xx, 304, 101 when `Upgrade` was asked for | `Accept` | success |
    /// | no response: connect, timeout, reset, credential source | `FailOver` | `Failure` |
    /// | a 2xx that `inspect` found an error in | `FailOver` | `Failure` |
    /// | 5xx, 408, 425, 401, 402, 403 | `FailOver` | `Failure` |
    /// | 429; 503 with a `Retry-After` | `FailOver` | `Cooldown` |
    /// | other 4xx, 3xx; `map_request` failed | `FailOver` | `None` |
    pub fn standard(outcome: &Outcome<'_>) -> Self {
        let fault = match outcome.reason {
            Reason::Ok => return Self::Accept,
            Reason::RateLimited => Fault::Cooldown(outcome.retry_after),
            Reason::ServerError
                if outcome.status() == Some(StatusCode::SERVICE_UNAVAILABLE)
                    && outcome.retry_after.is_some() =>
            {
                Fault::Cooldown(outcome.retry_after)
            }
            Reason::ClientError | Reason::Redirected => Fault::None,
            Reason::Other if matches!(outcome.kind, OutcomeKind::Unsent(_)) => Fault::None,
            _ => Fault::Failure,
        };
        Self::FailOver(fault)
    }

    /// The careful preset: only transport errors, errors inside a success, 408, 425, 429 and 5xx
    /// fail over, with the health of [`standard`](Self::standard). Every other response is accepted as it is.
    pub fn transient(outcome: &Outcome<'_>) -> Self {
        match (outcome.status(), outcome.reason) {
            (None, _)
            | (_, Reason::RateLimited | Reason::ServerError)
            | (_, Reason::ErrorInSuccess | Reason::Reset | Reason::Timeout) => {
                Self::standard(outcome)
            }
            _ => Self::Accept,
        }
    }
}

/// What a provider's health pays for an outcome that fails over. Shown at [`Verdict`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// Nothing: the request was at fault, not the provider.
    None,
    /// A failure: it counts toward opening the provider's circuit breaker.
    Failure,
    /// A rest without a failure: the provider is passed over for this long, clamped to 1–300 s;
    /// without a duration 5 s, doubling with each cooldown in a row.
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
    /// 429.
    RateLimited,
    /// 5xx, 408 or 425.
    ServerError,
    /// A 3xx, or a response whose URL is not the one that was asked.
    Redirected,
    /// No connection: refused, DNS, TLS.
    Connect,
    /// No complete response headers in time.
    Timeout,
    /// The connection broke before the response headers were complete.
    Reset,
    /// A 2xx whose body is an error, for chains that
    /// [`inspect`](crate::ProviderChainBuilder::inspect).
    ErrorInSuccess,
    /// The credential source failed, or its token was malformed. Nothing was sent.
    Credential,
    /// The attempt was dropped before it had an outcome: the caller dropped the request, or a hedge or
    /// the attempt that it was sent beside was faster.
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

/// What came of one attempt, as a [`classify`](crate::ProviderChainBuilder::classify) closure sees
/// it. Shown at [`Verdict`].
pub struct Outcome<'a> {
    provider: &'a str,
    kind: OutcomeKind<'a>,
    reason: Reason,
    ambiguous: bool,
    retry_after: Option<Duration>,
    elapsed: Duration,
}

impl<'a> Outcome<'a> {
    /// A response arrived. `wall` is asked for the time only where a hint may be a date.
    pub(crate) fn answered(
        provider: &'a str,
        status: StatusCode,
        headers: &'a HeaderMap,
        upgrade_asked: bool,
        elapsed: Duration,
        wall: impl FnOnce() -> SystemTime,
    ) -> Self {
        let hinted = matches!(status.as_u16(), 429 | 503);
        Self {
            provider,
            kind: OutcomeKind::Response(status, headers),
            reason: Reason::of_status(status, upgrade_asked),
            ambiguous: matches!(status.as_u16(), 504 | 524),
            retry_after: if hinted { retry_after(headers, wall()) } else { None },
            elapsed,
        }
    }

    /// A response with a good status arrived, and its body is no success.
    pub(crate) fn flawed(
        provider: &'a str,
        reason: Reason,
        status: StatusCode,
        headers: &'a HeaderMap,
        elapsed: Duration,
    ) -> Self {
        let kind = OutcomeKind::Response(status, headers);
        Self { kind, ..Self::failed(provider, reason, None, elapsed) }
    }

    /// The request was sent, or may have been, and no response arrived.
    pub(crate) fn failed(
        provider: &'a str,
        reason: Reason,
        error: Option<&'a (dyn StdError + 'static)>,
        elapsed: Duration,
    ) -> Self {
        Self {
            provider,
            kind: OutcomeKind::Failed(error),
            reason,
            ambiguous: matches!(reason, Reason::Timeout | Reason::Reset | Reason::Other),
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
            provider,
            kind: OutcomeKind::Unsent(error),
            reason,
            ambiguous: false,
            retry_after: None,
            elapsed,
        }
    }

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

    /// Whether no complete response headers arrived in time.
    pub fn is_timeout(&self) -> bool {
        self.reason == Reason::Timeout
    }

    /// Whether there was no connection to the provider.
    pub fn is_connect(&self) -> bool {
        self.reason == Reason::Connect
    }

    /// Whether the provider may have processed the request although no usable answer arrived: a
    /// timeout or a reset after it was sent, 504 and 524.
    pub fn maybe_processed(&self) -> bool {
        self.ambiguous
    }

    /// The hint of a 429 or 503: `retry-after-ms`, else `Retry-After` in seconds or as an
    /// HTTP-date, as the provider said it. Zero and dates in the past are 1 s.
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// From the start of the attempt to its outcome.
    pub fn elapsed(&self) -> Duration {
        self.elapsed
    }
}

impl fmt::Debug for Outcome<'_> {
    /// Leaves out headers and error, which may hold what must not be logged.
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

fn retry_after(headers: &HeaderMap, wall: SystemTime) -> Option<Duration> {
    const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");
    let text = |name: HeaderName| headers.get(name)?.to_str().ok().map(str::trim);
    let hint = text(RETRY_AFTER_MS).and_then(|millis| decimal(millis, 1e-3)).or_else(|| {
        let value = text(RETRY_AFTER)?;
        decimal(value, 1.0).or_else(|| {
            let date = httpdate::parse_http_date(value).ok()?;
            Some(date.duration_since(wall).unwrap_or(Duration::ZERO))
        })
    })?;
    Some(if hint.is_zero() { Duration::from_secs(1) } else { hint })
}

/// An unsigned decimal such as `7`, `0.5` or a number of any size; no exponent, no sign.
fn decimal(text: &str, unit: f64) -> Option<Duration> {
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    if !digits(whole) || !digits(fraction) {
        return None;
    }
    let seconds = text.parse::<f64>().ok()? * unit;
    Some(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(status: u16, headers: &HeaderMap) -> Outcome<'_> {
        let status = StatusCode::from_u16(status).unwrap();
        Outcome::answered("p", status, headers, false, Duration::ZERO, wall)
    }

    fn wall() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()))
            .collect()
    }

    #[test]
    fn every_status_has_its_verdict() {
        use Fault::{Cooldown, Failure, None as Unhurt};
        let none = HeaderMap::new();
        let table: &[(u16, Verdict, Reason)] = &[
            (200, Verdict::Accept, Reason::Ok),
            (204, Verdict::Accept, Reason::Ok),
            (299, Verdict::Accept, Reason::Ok),
            (304, Verdict::Accept, Reason::Ok),
            (101, Verdict::FailOver(Failure), Reason::Other),
            (300, Verdict::FailOver(Unhurt), Reason::Redirected),
            (302, Verdict::FailOver(Unhurt), Reason::Redirected),
            (307, Verdict::FailOver(Unhurt), Reason::Redirected),
            (400, Verdict::FailOver(Unhurt), Reason::ClientError),
            (401, Verdict::FailOver(Failure), Reason::Auth),
            (402, Verdict::FailOver(Failure), Reason::Auth),
            (403, Verdict::FailOver(Failure), Reason::Auth),
            (404, Verdict::FailOver(Unhurt), Reason::ClientError),
            (408, Verdict::FailOver(Failure), Reason::ServerError),
            (409, Verdict::FailOver(Unhurt), Reason::ClientError),
            (413, Verdict::FailOver(Unhurt), Reason::ClientError),
            (422, Verdict::FailOver(Unhurt), Reason::ClientError),
            (425, Verdict::FailOver(Failure), Reason::ServerError),
            (429, Verdict::FailOver(Cooldown(None)), Reason::RateLimited),
            (451, Verdict::FailOver(Unhurt), Reason::ClientError),
            (500, Verdict::FailOver(Failure), Reason::ServerError),
            (503, Verdict::FailOver(Failure), Reason::ServerError),
            (504, Verdict::FailOver(Failure), Reason::ServerError),
            (529, Verdict::FailOver(Failure), Reason::ServerError),
            (599, Verdict::FailOver(Failure), Reason::ServerError),
            (600, Verdict::FailOver(Failure), Reason::Other),
            (999, Verdict::FailOver(Failure), Reason::Other),
        ];
        for &(status, verdict, reason) in table {
            let outcome = answered(status, &none);
            assert_eq!(Verdict::standard(&outcome), verdict, "{status}");
            assert_eq!(outcome.reason(), reason, "{status}");
            assert_eq!(outcome.maybe_processed(), matches!(status, 504 | 524), "{status}");
            let transient = match status {
                408 | 425 | 429 | 500..=599 => verdict,
                _ => Verdict::Accept,
            };
            assert_eq!(Verdict::transient(&outcome), transient, "{status}");
        }
    }

    #[test]
    fn a_switch_of_protocols_is_a_success_only_when_it_was_asked_for() {
        let none = HeaderMap::new();
        let status = StatusCode::SWITCHING_PROTOCOLS;
        let outcome = Outcome::answered("p", status, &none, true, Duration::ZERO, wall);
        assert_eq!(Verdict::standard(&outcome), Verdict::Accept);
    }

    #[test]
    fn a_hint_turns_429_and_503_into_a_cooldown_of_that_length() {
        let headers = headers(&[("retry-after", "7")]);
        for status in [429, 503] {
            let verdict = Verdict::FailOver(Fault::Cooldown(Some(Duration::from_secs(7))));
            assert_eq!(Verdict::standard(&answered(status, &headers)), verdict);
            assert_eq!(Verdict::transient(&answered(status, &headers)), verdict);
        }
        assert_eq!(answered(500, &headers).retry_after(), None);
    }

    #[test]
    fn outcomes_without_a_response_have_their_verdicts() {
        let error = std::io::Error::other("broken");
        let failed = Verdict::FailOver(Fault::Failure);
        for (reason, ambiguous) in [
            (Reason::Connect, false),
            (Reason::Timeout, true),
            (Reason::Reset, true),
            (Reason::Other, true),
        ] {
            let outcome = Outcome::failed("p", reason, Some(&error), Duration::ZERO);
            assert_eq!(Verdict::standard(&outcome), failed, "{reason}");
            assert_eq!(Verdict::transient(&outcome), failed, "{reason}");
            assert_eq!(outcome.maybe_processed(), ambiguous, "{reason}");
            assert!(outcome.error().is_some() && outcome.headers().is_none());
        }
        let redirected = Outcome::failed("p", Reason::Redirected, Some(&error), Duration::ZERO);
        assert_eq!(Verdict::standard(&redirected), Verdict::FailOver(Fault::None));
        assert!(!redirected.maybe_processed());
        let credential = Outcome::unsent("p", Reason::Credential, &error, Duration::ZERO);
        assert_eq!(Verdict::standard(&credential), failed);
        let prepare = Outcome::unsent("p", Reason::Other, &error, Duration::ZERO);
        assert_eq!(Verdict::standard(&prepare), Verdict::FailOver(Fault::None));
        assert_eq!(Verdict::transient(&prepare), Verdict::FailOver(Fault::None));
        assert!(!prepare.maybe_processed() && !credential.maybe_processed());
    }

    #[test]
    fn an_attempt_that_ran_out_of_time_is_ambiguous_only_if_it_was_sent() {
        for sent in [false, true] {
            let outcome = Outcome::timed_out("p", sent, Duration::ZERO);
            assert!(outcome.is_timeout() && outcome.error().is_none());
            assert_eq!(outcome.maybe_processed(), sent);
            assert_eq!(Verdict::standard(&outcome), Verdict::FailOver(Fault::Failure));
            assert_eq!(Verdict::transient(&outcome), Verdict::FailOver(Fault::Failure));
        }
    }

    #[test]
    fn a_success_with_a_flaw_is_a_failure_with_the_status_that_it_had() {
        let headers = headers(&[("x-a", "b")]);
        for (reason, ambiguous) in
            [(Reason::ErrorInSuccess, false), (Reason::Reset, true), (Reason::Timeout, true)]
        {
            let outcome = Outcome::flawed("p", reason, StatusCode::OK, &headers, Duration::ZERO);
            assert_eq!((outcome.reason(), outcome.status()), (reason, Some(StatusCode::OK)));
            assert_eq!(outcome.headers(), Some(&headers));
            assert_eq!(outcome.maybe_processed(), ambiguous, "{reason}");
            assert_eq!(Verdict::standard(&outcome), Verdict::FailOver(Fault::Failure));
            assert_eq!(Verdict::transient(&outcome), Verdict::FailOver(Fault::Failure));
        }
    }

    #[test]
    fn an_outcome_tells_what_came_of_the_attempt_and_shows_no_header() {
        let headers = headers(&[("x-a", "canary"), ("retry-after", "7")]);
        let error = std::io::Error::other("canary");
        let took = Duration::from_millis(12);
        let limited =
            Outcome::answered("name", StatusCode::TOO_MANY_REQUESTS, &headers, false, took, wall);
        assert_eq!((limited.provider(), limited.elapsed()), ("name", took));
        assert_eq!(limited.status(), Some(StatusCode::TOO_MANY_REQUESTS));
        assert_eq!(limited.headers(), Some(&headers));
        assert_eq!(limited.retry_after(), Some(Duration::from_secs(7)));
        assert!(limited.error().is_none() && !limited.is_timeout() && !limited.is_connect());

        let refused = Outcome::failed("name", Reason::Connect, Some(&error), took);
        assert!(refused.is_connect() && !refused.is_timeout());
        assert_eq!((refused.status(), refused.headers()), (None, None));
        assert_eq!(refused.error().unwrap().to_string(), "canary");
        let unsent = Outcome::unsent("name", Reason::Credential, &error, took);
        assert_eq!(unsent.error().unwrap().to_string(), "canary");
        assert!(!unsent.is_connect());

        let shown = format!("{limited:?} {refused:?}");
        assert!(!shown.contains("canary"), "{shown}");
        for part in ["name", "RateLimited", "429", "ambiguous: false", "7s", "12ms", "Connect"] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
    }

    #[test]
    fn every_reason_has_its_label() {
        let table = [
            (Reason::Ok, "ok"),
            (Reason::ClientError, "client_error"),
            (Reason::Auth, "auth"),
            (Reason::RateLimited, "rate_limited"),
            (Reason::ServerError, "server_error"),
            (Reason::Redirected, "redirected"),
            (Reason::Connect, "connect"),
            (Reason::Timeout, "timeout"),
            (Reason::Reset, "reset"),
            (Reason::ErrorInSuccess, "error_in_success"),
            (Reason::Credential, "credential"),
            (Reason::Abandoned, "abandoned"),
            (Reason::Other, "other"),
        ];
        for (reason, label) in table {
            assert_eq!(reason.as_str(), label);
            assert_eq!(format!("{reason:>18}"), format!("{label:>18}"));
        }
    }

    #[test]
    fn every_form_of_hint_is_read_or_refused() {
        let second = Duration::from_secs(1);
        type Row = (&'static [(&'static str, &'static str)], Option<Duration>);
        let table: &[Row] = &[
            (&[("retry-after", "30")], Some(second * 30)),
            (&[("retry-after", " 30 ")], Some(second * 30)),
            (&[("retry-after", "0.5")], Some(second / 2)),
            (&[("retry-after", "0")], Some(second)),
            (&[("retry-after", "0.0")], Some(second)),
            (&[("retry-after", "135734")], Some(second * 135_734)),
            (&[("retry-after", "99999999999999999999999999999")], Some(Duration::MAX)),
            (&[("retry-after", "-10")], None),
            (&[("retry-after", "+10")], None),
            (&[("retry-after", "NaN")], None),
            (&[("retry-after", "inf")], None),
            (&[("retry-after", "1e35")], None),
            (&[("retry-after", "5.")], None),
            (&[("retry-after", ".5")], None),
            (&[("retry-after", "")], None),
            (&[("retry-after", "soon")], None),
            (&[("retry-after", "Thu, 01 Jan 1970 00:00:01 GMT")], Some(second)),
            (&[("retry-after", "Fri, 15 Jan 2027 08:00:30 GMT")], Some(second * 30)),
            (&[("retry-after-ms", "1500"), ("retry-after", "9")], Some(second * 3 / 2)),
            (&[("retry-after-ms", "x"), ("retry-after", "9")], Some(second * 9)),
            (&[("retry-after-ms", "0")], Some(second)),
            (&[], None),
        ];
        for (pairs, hint) in table {
            assert_eq!(retry_after(&headers(pairs), wall()), *hint, "{pairs:?}");
        }
        let far = headers(&[("retry-after", "Fri, 31 Dec 9999 23:59:59 GMT")]);
        assert!(retry_after(&far, wall()).unwrap() > second * 1_000_000_000);
    }
}
