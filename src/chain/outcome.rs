//! What came back from an attempt, and what is made of it: an outcome, its verdict, a line of the
//! report.

use std::error::Error as StdError;
use std::pin::Pin;
use std::time::{Duration, Instant};

use http::header::CONTENT_ENCODING;
use http::{HeaderMap, StatusCode};
use reqwest::{Response, Url};
use reqwest_middleware::Error;

use super::body::ReadAnswer;
use super::clean::is_unknown;
use super::shared::{Classify, Shared, reason_of_flaw, wall_clock};
use crate::cause::Cause;
use crate::error::FailoverError;
use crate::health::{Concern, after};
use crate::inspect::{Asked, CommittedStream, Flaw, Inspected, inspect};
use crate::message::{self, Secrets};
use crate::observe::Event;
use crate::provider::BoxError;
use crate::readdress::{Base, is_redirected};
use crate::report::{Attempt, Report};
use crate::run::{Judgement, Until};
use crate::verdict::{Fault, Outcome, Reason, Verdict};

/// What came back from an attempt.
pub(super) enum AttemptResult {
    /// A response that is not read.
    Response(Response),
    /// A response that failed, of whose body a part was read.
    Failure(Box<ReadAnswer>),
    /// An event stream whose content has begun.
    Stream(Box<CommittedStream>),
    /// A response with a good status that is no success.
    Flawed(Response, Flaw),
    /// A response from another URL than the one that was asked.
    Redirected(StatusCode),
    Failed(Error),
    /// The attempt's time was up.
    TimedOut {
        sent: bool,
    },
    /// The credential source or `map_request` failed.
    Unsent(Unsent),
    /// The caller's own body failed, which no provider can help.
    CallerFailed(Error),
}

/// Why a request was not sent.
pub(super) struct Unsent {
    pub(super) reason: Reason,
    pub(super) error: BoxError,
}

impl Unsent {
    pub(super) fn new(problem: &str) -> Self {
        Self { reason: Reason::Other, error: problem.into() }
    }
}

/// What an attempt is judged by, apart from its result.
pub(super) struct Circumstances {
    pub(super) provider: usize,
    pub(super) upgrade_asked: bool,
    pub(super) is_replayable: bool,
    pub(super) until: Until,
    pub(super) started: Instant,
    /// From then to its headers, if they came, else to now.
    pub(super) to_headers: Duration,
    /// Since when the provider has been silent; `None` while the caller's own body was pending.
    pub(super) quiet_since: Option<Instant>,
    pub(super) now: Instant,
}

impl Circumstances {
    fn elapsed(&self) -> Duration {
        self.now.saturating_duration_since(self.started)
    }

    fn quiet_for(&self) -> Duration {
        self.quiet_since.map_or(Duration::ZERO, |since| self.now.saturating_duration_since(since))
    }
}

/// Reads as much of an answer as its verdict needs: the body of a failed one, and that of a
/// successful one where the chain inspects.
pub(super) fn read<'a>(
    shared: &'a Shared,
    response: Response,
    asked: Option<Asked>,
    since: Instant,
    deadline: Instant,
) -> Pin<Box<dyn Future<Output = AttemptResult> + Send + 'a>> {
    // Two futures, since one would always have the size of the larger one.
    if let (true, Some(settings), Some(asked)) =
        (response.status().is_success(), &shared.chain.inspect, asked)
    {
        return Box::pin(async move {
            let panicked = || {
                shared.observer.emit(&Event::CallbackPanicked { callback: "inspect" });
            };
            match inspect(response, asked, settings, since, deadline, &panicked).await {
                Inspected::Pass(response) => AttemptResult::Response(response),
                Inspected::Stream(stream) => AttemptResult::Stream(stream),
                Inspected::Failed(response, flaw) => AttemptResult::Flawed(response, flaw),
            }
        });
    }
    let until = after(since, shared.chain.error_body_timeout).min(deadline);
    let mut answer = Box::new(ReadAnswer::new(response));
    Box::pin(async move {
        answer.read(until).await;
        AttemptResult::Failure(answer)
    })
}

impl AttemptResult {
    pub(super) fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Response(response) | Self::Flawed(response, _) => Some(response.status()),
            Self::Failure(answer) => Some(answer.head.status()),
            Self::Stream(stream) => Some(stream.status()),
            Self::Redirected(status) => Some(*status),
            _ => None,
        }
    }

    /// What the provider left to hand on as it is, if anything.
    #[inline]
    pub(super) fn into_result(self) -> Option<Result<Response, Error>> {
        match self {
            Self::Response(response) | Self::Flawed(response, _) => Some(Ok(response)),
            Self::Failure(answer) => Some(Ok(answer.into_response())),
            Self::Stream(stream) => Some(Ok(stream.unwatched())),
            Self::Failed(error) => Some(Err(error)),
            _ => None,
        }
    }

    /// Judges the result. What the provider said is made safe first: `classify` and the report see
    /// nothing else.
    pub(super) fn judge(
        &mut self,
        shared: &Shared,
        circumstances: &Circumstances,
        secrets: impl Fn() -> Secrets,
    ) -> (Judgement, Attempt) {
        let Circumstances { provider, upgrade_asked, is_replayable, until, to_headers, .. } =
            *circumstances;
        let elapsed = match self {
            // What came after the headers is what failed.
            Self::Flawed(..) => circumstances.elapsed(),
            _ => to_headers,
        };
        let name = &shared.entries[provider].name;
        let cause = self.safe_cause(&secrets);
        let status = self.status();
        let mut judgement = Judgement {
            verdict: Verdict::FailOver(Fault::None),
            ambiguous: false,
            unreachable: false,
            concern: Concern::Key,
            unknown_model: false,
            status: status.map(|status| status.as_u16()),
            time_to_headers: to_headers,
            cut_after: None,
        };
        let mut attempt = Attempt {
            provider: name.clone(),
            status,
            reason: Reason::Redirected,
            code: None,
            message: None,
            elapsed,
            retry_after: None,
            maybe_processed: false,
            is_replayable,
        };
        if let Some(outcome) = self.outcome(name, upgrade_asked, cause.as_ref(), elapsed) {
            let judge =
                |judge: &Classify| shared.observer.catch_panic("classify", || judge(&outcome));
            let opinion = shared.chain.classify.as_ref().and_then(judge);
            judgement.verdict = opinion.unwrap_or_else(|| Verdict::standard(&outcome));
            judgement.ambiguous = outcome.maybe_processed();
            judgement.unreachable = outcome.is_connect();
            if judgement.verdict != Verdict::Accept {
                judgement.unknown_model = outcome.blames_model();
                judgement.concern = match outcome.blames_provider() {
                    true => Concern::Provider,
                    false => Concern::Key,
                };
            }
            if self.is_cut_by_caller(&outcome, until) {
                judgement.cut_after = Some(circumstances.quiet_for());
            }
            attempt.reason = outcome.reason();
            attempt.retry_after = outcome.retry_after();
        }
        judgement.ambiguous |= self.is_processed_elsewhere();
        attempt.maybe_processed = judgement.ambiguous && judgement.verdict != Verdict::Accept;
        if status.is_none() || attempt.reason != Reason::Ok {
            let Cause { code, message, .. } = cause.unwrap_or_default();
            attempt.code = code;
            attempt.message =
                message.or_else(|| self.message(shared, &shared.entries[provider].base, &secrets));
        }
        (judgement, attempt)
    }

    /// Whether the time that ended the attempt was the caller's choice.
    fn is_cut_by_caller(&self, outcome: &Outcome<'_>, until: Until) -> bool {
        match self {
            Self::Failed(_) => outcome.is_timeout() && !outcome.is_connect(),
            Self::TimedOut { .. } => !until.is_failure,
            _ => false,
        }
    }

    /// The report of a chain that is stacked inside this one.
    fn inner_report(&self) -> Option<&Report> {
        match self {
            Self::Response(response) | Self::Flawed(response, _) => Report::of(response),
            Self::Failure(answer) => Report::from_extensions(answer.head.extensions()),
            Self::Failed(error) => FailoverError::find(error).map(FailoverError::report),
            _ => None,
        }
    }

    /// Whether the request may have been processed where the outcome does not show it: where a
    /// redirect led, or at a provider of a chain inside this one.
    fn is_processed_elsewhere(&self) -> bool {
        let inner = || self.inner_report().is_some_and(Report::is_maybe_processed);
        matches!(self, Self::Redirected(_)) || inner()
    }

    /// The outcome as a verdict sees it. `None` where there is nothing to judge.
    fn outcome<'a>(
        &'a self,
        provider: &'a str,
        upgrade_asked: bool,
        cause: Option<&'a Cause>,
        elapsed: Duration,
    ) -> Option<Outcome<'a>> {
        let answered = |status, headers| {
            Outcome::answered(provider, status, headers, upgrade_asked, cause, elapsed, wall_clock)
        };
        Some(match self {
            Self::Response(response) => answered(response.status(), response.headers()),
            Self::Failure(answer) => answered(answer.head.status(), answer.head.headers()),
            Self::Stream(stream) => answered(stream.status(), stream.headers()),
            Self::Flawed(response, flaw) => Outcome::flawed(
                provider,
                reason_of_flaw(flaw.kind()),
                response.status(),
                response.headers(),
                cause,
                elapsed,
                wall_clock,
            ),
            Self::Failed(error) if find_reqwest(error).is_some_and(reqwest::Error::is_builder) => {
                Outcome::unsent(provider, Reason::Other, error, elapsed)
            }
            Self::Failed(error) => {
                Outcome::failed(provider, reason_of(error), Some(error), elapsed)
            }
            Self::TimedOut { sent } => Outcome::timed_out(provider, *sent, elapsed),
            Self::Unsent(Unsent { reason, error }) => {
                Outcome::unsent(provider, *reason, &**error, elapsed)
            }
            Self::Redirected(_) | Self::CallerFailed(_) => return None,
        })
    }

    /// What the answer says went wrong, without any secret.
    fn safe_cause(&mut self, secrets: &impl Fn() -> Secrets) -> Option<Cause> {
        let (mut cause, complete) = match self {
            // A key inside a compressed body would not be found, nor would be one of a chain that is
            // stacked inside this one.
            Self::Failure(answer)
                if !answer.read.is_empty()
                    && is_plain(answer.head.headers())
                    && Report::from_extensions(answer.head.extensions()).is_none() =>
            {
                (Cause::read(&answer.read), answer.complete)
            }
            Self::Flawed(response, flaw) if Report::of(response).is_none() => {
                (std::mem::take(flaw.cause_mut()?), true)
            }
            _ => return None,
        };
        let secrets = secrets();
        let safe = |text: Box<str>| message::make_safe(&text, complete, &secrets);
        cause.message = cause.message.take().and_then(safe);
        cause.code = cause.code.take().and_then(safe);
        Some(cause)
    }

    /// What went wrong where the provider's answer does not say it.
    fn message(
        &self,
        shared: &Shared,
        base: &Base,
        secrets: &impl Fn() -> Secrets,
    ) -> Option<Box<str>> {
        let error: &(dyn StdError + 'static) = match self {
            Self::Redirected(_) => return Some(FOLLOWED.into()),
            Self::Failed(error) | Self::CallerFailed(error) => held_by(error),
            Self::Unsent(unsent) => &*unsent.error,
            Self::Flawed(_, flaw) => return Some(flaw.kind().description().into()),
            _ => return None,
        };
        let words =
            shared.observer.catch_panic("display", || message::of_error(error, &secrets()))?;
        let reason = match self {
            Self::Failed(error) => reason_of(error),
            _ => return Some(words),
        };
        Some(match (reason, proxy_variable(base)) {
            (Reason::Redirected, _) => format!("{words}: {FOLLOWED}").into(),
            (Reason::Connect, Some(variable)) => {
                format!("{words} ({variable} is set: a proxy may have been asked)").into()
            }
            _ => words,
        })
    }
}

/// The variable that `reqwest` takes a proxy for such a URL from, if it is set. Whether the client heeds it
/// is not to be seen from here.
fn proxy_variable(base: &Base) -> Option<&'static str> {
    let own = match base.is_plaintext() {
        true => ["http_proxy", "HTTP_PROXY"],
        false => ["https_proxy", "HTTPS_PROXY"],
    };
    let is_set = |name: &&str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    own.into_iter().chain(["all_proxy", "ALL_PROXY"]).find(is_set)
}

/// What is said of an attempt that followed a redirect.
const FOLLOWED: &str = "a redirect was followed below the chain: build the client with `harden`, or, \
                        where a layer edits the URL, sign in `map_request`";

/// Where a response came from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum CameFrom {
    /// The URL that was asked.
    Asked,
    /// Another URL that is as good: a GET was led to it, or a layer below edited the query.
    Moved,
    /// A redirect was followed below this layer, which may turn a POST into a GET and answer 200.
    Elsewhere,
}

impl CameFrom {
    pub(super) fn of(asked: &Url, may_move: bool, response: &Response, base: &Base) -> Self {
        let answered = response.url();
        if answered == asked || Report::of(response).is_some() || is_unknown(answered) {
            Self::Asked
        } else if is_redirected(asked, answered, may_move, base) {
            Self::Elsewhere
        } else {
            Self::Moved
        }
    }
}

fn is_plain(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_ENCODING).is_none_or(|encoding| encoding == "identity")
}

fn reason_of(error: &Error) -> Reason {
    let Some(error) = find_reqwest(error) else {
        return match FailoverError::find(error) {
            Some(inner) if inner.is_timeout() => Reason::Timeout,
            Some(inner) if inner.is_connect() => Reason::Connect,
            _ => Reason::Other,
        };
    };
    // A connect timeout is both, and nothing was sent.
    if error.is_connect() {
        Reason::Connect
    } else if error.is_timeout() {
        Reason::Timeout
    } else if error.is_redirect() {
        Reason::Redirected
    } else if error.is_request() || error.is_body() {
        Reason::Reset
    } else {
        Reason::Other
    }
}

/// What a transparent error holds, which its `source()` skips.
fn held_by(error: &Error) -> &(dyn StdError + 'static) {
    match error {
        Error::Reqwest(error) => error,
        Error::Middleware(error) => error.as_ref(),
    }
}

/// The `reqwest::Error` in an error, also where an inner middleware hides it.
fn find_reqwest(error: &Error) -> Option<&reqwest::Error> {
    std::iter::successors(Some(held_by(error)), |&error| error.source()).find_map(|error| {
        error.downcast_ref::<reqwest::Error>().or_else(|| match error.downcast_ref::<Error>()? {
            Error::Reqwest(error) => Some(error),
            Error::Middleware(_) => None,
        })
    })
}
