//! What happened to a request, attempt by attempt.
//!
//! A report travels with the response and in the caller's `Extensions`, so that one line is enough
//! to know who served a request and why. It never holds a key or a URL.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::{Extensions, StatusCode};
use reqwest::Response;

use crate::verdict::Reason;

/// What happened to one request: every attempt in the order in which they ended.
///
/// Its `Display` is one line, such as `cometapi 503 in 212 ms → openai 200 in 640 ms`. Where no provider
/// served the request, it also says why the others were not asked, such as
/// `cometapi failed (timeout) in 2000 ms (maybe processed); openai not asked: the request's timeout of 2s was
/// over`.
///
/// ```no_run
/// # async fn ask(client: reqwest_middleware::ClientWithMiddleware) -> reqwest_middleware::Result<()> {
/// use reqwest_failover::Report;
///
/// let response = client.get("https://api.openai.com/v1/models").send().await?;
/// if let Some(report) = Report::of(&response) {
///     println!("{report}");
///     for attempt in report.attempts() {
///         println!("{}: {} after {:?}", attempt.provider(), attempt.reason(), attempt.elapsed());
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    id: u64,
    attempts: Attempts,
    served: bool,
    elapsed: Duration,
    /// Why the others were not asked, where no provider served.
    unasked: Option<Box<UnaskedNote>>,
}

impl Report {
    /// The report that a chain attached to this response. `None` if no chain claimed the request,
    /// or if an outer layer, such as a cache, dropped the response's extensions.
    pub fn of(response: &Response) -> Option<&Self> {
        Self::from_extensions(response.extensions())
    }

    /// The report in the `Extensions` that a request was executed with: there on success and on
    /// failure.
    ///
    /// ```no_run
    /// # async fn ask(client: reqwest_middleware::ClientWithMiddleware, request: reqwest::Request) {
    /// let mut extensions = http::Extensions::new();
    /// let result = client.execute_with_extensions(request, &mut extensions).await;
    /// let report = reqwest_failover::Report::from_extensions(&extensions);
    /// # let _ = (result, report);
    /// # }
    /// ```
    pub fn from_extensions(extensions: &Extensions) -> Option<&Self> {
        extensions.get::<Self>()
    }

    /// The request's number: 1 for the first that this chain claimed. Its span and its events have it, too.
    ///
    /// ```no_run
    /// # fn log(report: &reqwest_failover::Report) {
    /// println!("request {}: {report}", report.id());
    /// # }
    /// ```
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Whether more than one provider was asked after a failure or as a hedge.
    ///
    /// ```no_run
    /// # fn log(report: &reqwest_failover::Report) {
    /// if report.failed_over() {
    ///     println!("the first provider did not serve, or not in time: {report}");
    /// }
    /// # }
    /// ```
    pub fn failed_over(&self) -> bool {
        self.attempts().len() > 1
    }

    /// The provider whose response was accepted; `None` when every attempt failed.
    pub fn served_by(&self) -> Option<&str> {
        self.attempts().last().filter(|_| self.served).map(Attempt::provider)
    }

    /// Every attempt, in the order in which they ended. Empty when no provider was asked.
    pub fn attempts(&self) -> &[Attempt] {
        match &self.attempts {
            Attempts::One(attempt) => std::slice::from_ref(attempt),
            Attempts::Many(attempts) => attempts,
        }
    }

    /// From the request's arrival at the chain to the answer or the final error that its caller gets.
    pub fn elapsed(&self) -> Duration {
        self.elapsed
    }

    pub(crate) fn new(id: u64) -> Self {
        Self {
            id,
            attempts: Attempts::Many(Vec::new()),
            served: false,
            elapsed: Duration::ZERO,
            unasked: None,
        }
    }

    pub(crate) fn set_id(&mut self, id: u64) {
        self.id = id;
    }

    /// Adds an attempt.
    #[inline]
    pub(crate) fn push(&mut self, attempt: Attempt) {
        match &mut self.attempts {
            Attempts::Many(attempts) if attempts.is_empty() => {
                self.attempts = Attempts::One(attempt);
            }
            Attempts::Many(attempts) => attempts.push(attempt),
            Attempts::One(_) => self.push_second(attempt),
        }
    }

    #[cold]
    fn push_second(&mut self, attempt: Attempt) {
        let first = std::mem::replace(&mut self.attempts, Attempts::Many(Vec::with_capacity(2)));
        if let (Attempts::One(first), Attempts::Many(attempts)) = (first, &mut self.attempts) {
            attempts.extend([first, attempt]);
        }
    }

    /// Makes a provider's attempt the last, since it is the one that serves.
    pub(crate) fn move_last(&mut self, provider: &str) {
        if let Attempts::Many(attempts) = &mut self.attempts
            && let Some(at) = attempts.iter().position(|attempt| *attempt.provider == *provider)
        {
            attempts[at..].rotate_left(1);
        }
    }

    pub(crate) fn is_maybe_processed(&self) -> bool {
        self.attempts().iter().any(Attempt::maybe_processed)
    }

    pub(crate) fn set_unasked(&mut self, unasked: String) {
        self.unasked = Some(Box::new(UnaskedNote(unasked)));
    }

    pub(crate) fn unasked(&self) -> Option<&str> {
        self.unasked.as_ref().map(|unasked| &*unasked.0)
    }

    pub(crate) fn finish(&mut self, served: bool, elapsed: Duration) {
        (self.served, self.elapsed) = (served, elapsed);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.attempts().is_empty() {
            f.write_str("no provider was asked")?;
        }
        for (index, attempt) in self.attempts().iter().enumerate() {
            if index > 0 {
                f.write_str(" → ")?;
            }
            fmt::Display::fmt(attempt, f)?;
        }
        if let Some(unasked) = self.unasked() {
            write!(f, "; {unasked}")?;
        }
        Ok(())
    }
}

/// One attempt at one provider. Shown at [`Report`]; its `Display` is like `openai 200 in 640 ms`.
#[derive(Clone, Debug, PartialEq)]
pub struct Attempt {
    pub(crate) provider: Arc<str>,
    pub(crate) status: Option<StatusCode>,
    pub(crate) reason: Reason,
    pub(crate) code: Option<Box<str>>,
    pub(crate) message: Option<Box<str>>,
    pub(crate) elapsed: Duration,
    pub(crate) retry_after: Option<Duration>,
    pub(crate) maybe_processed: bool,
    pub(crate) is_replayable: bool,
}

impl Attempt {
    /// The name of the provider that was asked.
    pub fn provider(&self) -> &str {
        &self.provider
    }

    /// The response's status; `None` when there was no response.
    pub fn status(&self) -> Option<StatusCode> {
        self.status
    }

    /// How the attempt ended.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// The provider's own word or number for what went wrong, such as `insufficient_quota`. `None` where
    /// its answer has none, or had not arrived in time.
    ///
    /// ```no_run
    /// # fn count(report: &reqwest_failover::Report) -> usize {
    /// let is_too_long = |attempt: &&reqwest_failover::Attempt| {
    ///     attempt.code() == Some("context_length_exceeded")
    /// };
    /// report.attempts().iter().filter(is_too_long).count()
    /// # }
    /// ```
    pub fn code(&self) -> Option<&str> {
        self.code.as_deref()
    }

    /// What the provider or the transport said went wrong: at most 2 KiB, keys redacted, control
    /// characters escaped. Where a redirect was followed, what to do about it. `None` for a success, and
    /// where it did not arrive within the chain's
    /// [`error_body_timeout`](crate::ProviderChainBuilder::error_body_timeout).
    pub fn message(&self) -> Option<&str> {
        self.message.as_deref()
    }

    /// From the start of the attempt to its headers, or to the error. An attempt that failed in its body,
    /// as [`inspect`](crate::ProviderChainBuilder::inspect) finds it, lasted until that was found.
    pub fn elapsed(&self) -> Duration {
        self.elapsed
    }

    /// How long the provider asked to be left alone: [`Outcome::retry_after`](crate::Outcome::retry_after).
    ///
    /// ```no_run
    /// # fn longest(report: &reqwest_failover::Report) -> Option<std::time::Duration> {
    /// report.attempts().iter().filter_map(|attempt| attempt.retry_after()).max()
    /// # }
    /// ```
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// Whether this attempt failed and the provider may have processed, and billed, the request all
    /// the same. `false` only for what proves that it did not: no connection, nothing sent, 307 and 308
    /// that were not followed, 4xx except 408 and 499, 503, 521 to 523, and an HTTP/2 stream that the
    /// provider refused. So it is `true` for a 500, for a timeout, and for an attempt that was dropped
    /// after it was sent, by its caller or because another one was faster.
    pub fn maybe_processed(&self) -> bool {
        self.maybe_processed
    }

    /// Whether the request's body could be sent again. Where it could not, failover was impossible.
    pub fn is_replayable(&self) -> bool {
        self.is_replayable
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.status, self.reason) {
            (Some(status), Reason::Redirected) => {
                write!(f, "{} {} (redirected)", self.provider, status.as_u16())?;
            }
            // What the status does not say.
            (Some(status), reason)
                if reason == Reason::Quota || (status.is_success() && reason != Reason::Ok) =>
            {
                write!(f, "{} {} {reason}", self.provider, status.as_u16())?;
            }
            (Some(status), _) => write!(f, "{} {}", self.provider, status.as_u16())?,
            (None, reason) => write!(f, "{} failed ({reason})", self.provider)?,
        }
        write!(f, " in {} ms", self.elapsed.as_millis())?;
        if self.maybe_processed {
            f.write_str(" (maybe processed)")?;
        }
        if !self.is_replayable {
            f.write_str(" (not replayable)")?;
        }
        Ok(())
    }
}

/// Why providers were not asked, in words. Boxed, since it is rare and reports are moved about.
#[derive(Clone, Debug, PartialEq)]
struct UnaskedNote(String);

/// The first attempt is kept in place: most requests need no second one, and no allocation.
#[derive(Clone, Debug, PartialEq)]
enum Attempts {
    One(Attempt),
    Many(Vec<Attempt>),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(provider: &str, status: Option<u16>, reason: Reason, millis: u64) -> Attempt {
        Attempt {
            provider: provider.into(),
            status: status.map(|status| StatusCode::from_u16(status).unwrap()),
            reason,
            code: None,
            message: None,
            elapsed: Duration::from_millis(millis),
            retry_after: None,
            maybe_processed: reason == Reason::Timeout,
            is_replayable: true,
        }
    }

    #[test]
    fn a_report_reads_as_one_line() {
        let mut report = Report::new(1);
        assert_eq!(report.to_string(), "no provider was asked");
        report.push(attempt("cometapi", Some(503), Reason::ServerError, 212));
        assert_eq!(report.to_string(), "cometapi 503 in 212 ms");
        assert!(!report.failed_over());
        assert!(matches!(report.attempts, Attempts::One(_)), "it is kept in place");
        report.push(attempt("b", None, Reason::Timeout, 1000));
        assert!(report.failed_over());
        report.push(attempt("openai", Some(200), Reason::Ok, 640));
        report.finish(true, Duration::from_secs(2));
        assert_eq!(
            report.to_string(),
            "cometapi 503 in 212 ms → b failed (timeout) in 1000 ms (maybe processed) → openai 200 in 640 ms"
        );
        assert_eq!(report.served_by(), Some("openai"));
        assert_eq!(report.attempts().len(), 3);
        assert_eq!(report.attempts()[0].provider(), "cometapi");
    }

    #[test]
    fn an_attempt_tells_what_came_of_it() {
        let mut report = Report::new(1);
        report.push(Attempt {
            code: Some("moved_permanently".into()),
            message: Some("moved".into()),
            ..attempt("a", Some(302), Reason::Redirected, 7)
        });
        assert!(!report.is_maybe_processed());
        report.push(attempt("c", None, Reason::Connect, 1));
        report.push(Attempt {
            is_replayable: false,
            retry_after: Some(Duration::from_secs(5)),
            message: Some("late".into()),
            ..attempt("b", None, Reason::Timeout, 9)
        });
        assert!(report.is_maybe_processed());
        report.push(attempt("d", Some(200), Reason::Ok, 1));
        let codes: Vec<_> = report.attempts().iter().map(Attempt::code).collect();
        assert_eq!(codes, [Some("moved_permanently"), None, None, None]);
        report.finish(true, Duration::from_millis(11));

        let told: Vec<_> = report
            .attempts()
            .iter()
            .map(|attempt| {
                let status = attempt.status().map(|status| status.as_u16());
                (attempt.provider(), status, attempt.reason(), attempt.message())
            })
            .collect();
        assert_eq!(
            told,
            [
                ("a", Some(302), Reason::Redirected, Some("moved")),
                ("c", None, Reason::Connect, None),
                ("b", None, Reason::Timeout, Some("late")),
                ("d", Some(200), Reason::Ok, None),
            ]
        );
        let timed_out = &report.attempts()[2];
        assert!(timed_out.maybe_processed() && !timed_out.is_replayable());
        assert_eq!(timed_out.elapsed(), Duration::from_millis(9));
        assert_eq!(timed_out.retry_after(), Some(Duration::from_secs(5)));
        let first = &report.attempts()[0];
        assert_eq!(first.retry_after(), None);
        assert!(!first.maybe_processed() && first.is_replayable());
        assert_eq!(first.to_string(), "a 302 (redirected) in 7 ms");
        assert_eq!(report.elapsed(), Duration::from_millis(11));

        let mut response = http::Response::new("");
        response.extensions_mut().insert(report);
        let response = Response::from(response);
        assert_eq!(Report::of(&response).and_then(Report::served_by), Some("d"));
    }

    #[test]
    fn the_attempt_that_serves_in_the_end_is_the_last() {
        let mut report = Report::new(1);
        for provider in ["a", "b", "c"] {
            report.push(attempt(provider, Some(404), Reason::ClientError, 1));
        }
        report.move_last("a");
        report.move_last("none");
        report.finish(true, Duration::ZERO);
        let order: Vec<_> = report.attempts().iter().map(Attempt::provider).collect();
        assert_eq!((order, report.served_by()), (vec!["b", "c", "a"], Some("a")));
    }

    #[test]
    fn a_report_that_ends_in_failure_names_no_provider() {
        let mut report = Report::new(1);
        report.push(attempt("a", Some(500), Reason::ServerError, 1));
        report.finish(false, Duration::ZERO);
        assert_eq!(report.served_by(), None);
    }
}
