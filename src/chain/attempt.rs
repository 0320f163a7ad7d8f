//! One attempt: the request made the provider's own, sent, and what came of it.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::{Duration, SystemTime};

use http::header::AUTHORIZATION;
use http::{Method, StatusCode};
use reqwest::{Request, ResponseBuilderExt, Url};
use reqwest_middleware::Error;

use super::Inner;
use super::address::Address;
use crate::error::FailoverError;
use crate::inspect::{CommittedStream, Flaw, FlawKind};
use crate::message;
use crate::observe::{Event, catch_panic};
use crate::provider::{BoxError, Entry, TokenSource, bearer_value, checked_key};
use crate::readdress::{clean_url, still_inside};
use crate::report::Report;
use crate::verdict::{Outcome, Reason};

/// What came of an attempt.
pub(super) enum Sent {
    Response(reqwest::Response),
    /// An event stream whose content has begun.
    Stream(Box<CommittedStream>),
    /// A response with a good status that is no success.
    Flawed(reqwest::Response, Flaw),
    /// A response from another URL than the one that was asked.
    Redirected(StatusCode),
    Failed(Error),
    /// The attempt's time was up. `departed`: the request had left this layer by then.
    TimedOut {
        departed: bool,
    },
    /// The credential source or `map_request` failed.
    Unsent(Unsent),
    /// The caller's own body broke off: nobody can do anything about that.
    CallerFailed(Error),
}

/// Why a request was not sent.
pub(super) struct Unsent {
    reason: Reason,
    error: BoxError,
}

impl Sent {
    pub(super) fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Response(response) => Some(response.status()),
            Self::Stream(held) => Some(held.status()),
            Self::Flawed(response, _) => Some(response.status()),
            Self::Redirected(status) => Some(*status),
            _ => None,
        }
    }

    /// Whether the outcome is only known when a stream ends.
    pub(super) fn is_stream(&self) -> bool {
        matches!(self, Self::Stream(_))
    }

    /// What the provider left to hand on as it is, if anything.
    pub(super) fn into_result(self) -> Option<Result<reqwest::Response, Error>> {
        match self {
            Self::Response(response) => Some(Ok(response)),
            Self::Stream(held) => Some(Ok(held.unwatched())),
            Self::Flawed(response, _) => Some(Ok(response)),
            Self::Failed(error) => Some(Err(error)),
            _ => None,
        }
    }

    /// The report of a chain that is stacked inside this one.
    fn inner_report(&self) -> Option<&Report> {
        match self {
            Self::Response(response) => Report::of(response),
            Self::Flawed(response, _) => Report::of(response),
            Self::Failed(error) => FailoverError::find(error).map(FailoverError::report),
            _ => None,
        }
    }

    /// Whether somebody may have processed the request of whom the outcome does not tell: where a
    /// redirect led, or a provider of a chain inside this one.
    pub(super) fn is_processed_elsewhere(&self) -> bool {
        let inner = || self.inner_report().is_some_and(Report::is_maybe_processed);
        matches!(self, Self::Redirected(_)) || inner()
    }

    /// The outcome as a verdict sees it. `None` where there is nothing to judge.
    pub(super) fn outcome<'a>(
        &'a self,
        provider: &'a str,
        upgrade_asked: bool,
        elapsed: Duration,
    ) -> Option<Outcome<'a>> {
        let answered = |status, headers| {
            Outcome::answered(provider, status, headers, upgrade_asked, None, elapsed, wall_clock)
        };
        Some(match self {
            Self::Response(response) => answered(response.status(), response.headers()),
            Self::Stream(held) => answered(held.status(), held.headers()),
            Self::Flawed(response, flaw) => {
                let reason = match flaw.kind() {
                    FlawKind::Broken => Reason::Reset,
                    FlawKind::Silent => Reason::Timeout,
                    _ => Reason::ErrorInSuccess,
                };
                let (status, headers) = (response.status(), response.headers());
                let cause = flaw.cause();
                Outcome::flawed(provider, reason, status, headers, cause, elapsed, wall_clock)
            }
            Self::Failed(error) if find_reqwest(error).is_some_and(reqwest::Error::is_builder) => {
                Outcome::unsent(provider, Reason::Other, error, elapsed)
            }
            Self::Failed(error) => {
                Outcome::failed(provider, reason_of(error), Some(error), elapsed)
            }
            Self::TimedOut { departed } => Outcome::timed_out(provider, *departed, elapsed),
            Self::Unsent(Unsent { reason, error }) => {
                Outcome::unsent(provider, *reason, &**error, elapsed)
            }
            Self::Redirected(_) | Self::CallerFailed(_) => return None,
        })
    }

    /// Whether anything is known already of what went wrong.
    pub(super) fn has_message(&self) -> bool {
        if matches!(self, Self::Flawed(..)) {
            return true;
        }
        matches!(self, Self::Failed(_) | Self::CallerFailed(_) | Self::Unsent(_))
    }

    /// What went wrong, where it is known already. `secrets` must not be shown.
    pub(super) fn message<'s>(
        &self,
        secrets: impl FnOnce() -> Cow<'s, [String]>,
    ) -> Option<Box<str>> {
        match self {
            Self::Failed(error) | Self::CallerFailed(error) => {
                Some(message::of_error(held_by(error), &secrets()))
            }
            Self::Unsent(unsent) => Some(message::of_error(&*unsent.error, &secrets())),
            Self::Flawed(response, flaw) => {
                let said = flaw.cause().filter(|_| Report::of(response).is_none());
                match said.and_then(|cause| cause.message.as_deref()) {
                    Some(said) => message::of_body(said.as_bytes(), true, &secrets()),
                    None => Some(flaw.kind().description().into()),
                }
            }
            _ => None,
        }
    }
}

/// An attempt's fixed circumstances.
#[derive(Clone, Copy)]
pub(super) struct Attempt<'a> {
    pub(super) chain: &'a Inner,
    pub(super) provider: usize,
    pub(super) address: &'a Address,
}

/// What an attempt that may be dropped leaves behind.
#[derive(Default)]
pub(super) struct Trail {
    /// Whether the request has left this layer.
    departed: AtomicBool,
    /// The token that it was given: another one may be current when it is answered.
    token: OnceLock<String>,
}

impl Trail {
    pub(super) fn depart(&self) {
        self.departed.store(true, Ordering::Relaxed);
    }

    pub(super) fn has_departed(&self) -> bool {
        self.departed.load(Ordering::Relaxed)
    }

    pub(super) fn token(&self) -> Option<&String> {
        self.token.get()
    }
}

/// A request that is ready to be sent: what its answer will be held against.
pub(super) struct Departure {
    method: Method,
    /// The URL, if `map_request` may have changed it.
    url: Option<Box<Url>>,
}

impl Attempt<'_> {
    /// Makes the request the provider's own, for a provider without a source of tokens.
    pub(super) fn readdress(&self, request: &mut Request) -> Result<Departure, Unsent> {
        self.apply_headers(request)?;
        self.map_request(request)
    }

    /// Makes the request the provider's own.
    pub(super) async fn readdress_with_token(
        &self,
        request: &mut Request,
        trail: &Trail,
    ) -> Result<Departure, Unsent> {
        let Some(source) = &self.entry().source else { return self.readdress(request) };
        self.apply_headers(request)?;
        let token = Box::pin(self.token(source, trail)).await?;
        request.headers_mut().insert(AUTHORIZATION, token);
        self.map_request(request)
    }

    /// Makes an outcome of what came back.
    pub(super) fn receive(
        &self,
        departure: &Departure,
        result: reqwest_middleware::Result<reqwest::Response>,
    ) -> Sent {
        let hides_key = self.entry().has_query_key();
        let url = departure.url.as_deref().or_else(|| self.target());
        match result {
            Ok(response)
                if url.is_some_and(|url| is_redirected(url, &departure.method, &response)) =>
            {
                Sent::Redirected(response.status())
            }
            Ok(response) if hides_key => Sent::Response(clean_response(response)),
            Ok(response) => Sent::Response(response),
            Err(error) if hides_key => Sent::Failed(clean_error(error)),
            Err(error) => Sent::Failed(error),
        }
    }

    /// Gives the request the provider's URL, headers and credential.
    fn apply_headers(&self, request: &mut Request) -> Result<(), Unsent> {
        let Inner { scope, strip, .. } = self.chain;
        let entry = self.entry();
        let target = self
            .target()
            .ok_or_else(|| unsent("the path does not fit below the provider's base URL"))?;
        if request.url() != target {
            *request.url_mut() = target.clone();
        }
        let keep_caller_auth = entry.keeps_caller_auth(self.address.claimed(scope));
        entry.apply_headers(request.headers_mut(), strip, keep_caller_auth);
        Ok(())
    }

    /// Gives the model its name at the provider, and `map_request` its word.
    fn map_request(&self, request: &mut Request) -> Result<Departure, Unsent> {
        let entry = self.entry();
        entry.rename_model(request);
        let mut url = None;
        if let Some(map_request) = &entry.map_request {
            match self.chain.observer.catch_panic("map_request", || map_request(request)) {
                Some(Ok(())) => {}
                Some(Err(error)) => return Err(Unsent { reason: Reason::Other, error }),
                None => return Err(unsent("`map_request` panicked")),
            }
            if !still_inside(&entry.base, request.url()) {
                return Err(unsent(
                    "`map_request` moved the URL away from the provider's base URL",
                ));
            }
            url = Some(Box::new(request.url().clone()));
        }
        Ok(Departure { method: request.method().clone(), url })
    }

    /// Asks the entry's source of tokens.
    async fn token(
        &self,
        source: &TokenSource,
        trail: &Trail,
    ) -> Result<http::HeaderValue, Unsent> {
        let failed = |error: BoxError| Unsent { reason: Reason::Credential, error };
        let panicked = || {
            self.chain.observer.emit(&Event::CallbackPanicked { callback: "bearer_auth_with" });
            failed("`bearer_auth_with` panicked".into())
        };
        let mut asked = catch_panic(|| source()).ok_or_else(panicked)?;
        let answer = std::future::poll_fn(|context| {
            catch_panic(|| asked.as_mut().poll(context))
                .map_or(Poll::Ready(None), |poll| poll.map(Some))
        });
        let token = answer.await.ok_or_else(panicked)?.map_err(failed)?;
        let token =
            checked_key(&token).map_err(|problem| failed(format!("the token {problem}").into()))?;
        let value =
            bearer_value(token).ok_or_else(|| failed("the token is no header value".into()))?;
        self.chain.lock_tokens()[self.provider] = Some(token.to_owned());
        trail.token.get_or_init(|| token.to_owned());
        Ok(value)
    }

    /// The URL at the provider, if there is a safe one.
    pub(super) fn target(&self) -> Option<&Url> {
        let Inner { scope, strip, .. } = self.chain;
        self.address.target(self.provider, self.entry(), strip, scope)
    }

    fn entry(&self) -> &Entry {
        &self.chain.entries[self.provider]
    }
}

fn unsent(problem: &str) -> Unsent {
    Unsent { reason: Reason::Other, error: problem.into() }
}

/// Whether a response came from elsewhere: a redirect was followed below this layer, which may turn
/// a POST into a GET and answer 200.
fn is_redirected(asked: &Url, method: &Method, response: &reqwest::Response) -> bool {
    let answered = response.url();
    if answered == asked || Report::of(response).is_some() || is_unknown(answered) {
        return false;
    }
    let (mut asked, mut answered) = (asked.clone(), answered.clone());
    asked.set_fragment(None);
    answered.set_fragment(None);
    let harmless =
        matches!(*method, Method::GET | Method::HEAD) && asked.origin() == answered.origin();
    asked != answered && !harmless
}

/// What reqwest gives a response that was made without a URL.
fn is_unknown(url: &Url) -> bool {
    url.as_str() == "http://no.url.provided.local/"
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

/// Drops the query from a response's URL, for providers that carry their key there.
fn clean_response(response: reqwest::Response) -> reqwest::Response {
    let mut url = response.url().clone();
    if is_unknown(&url) {
        return response;
    }
    clean_url(&mut url);
    let mut response = http::Response::<reqwest::Body>::from(response);
    let marked = http::Response::builder().url(url).body(()).map(|marked| marked.into_parts().0);
    if let Ok(marked) = marked {
        response.extensions_mut().extend(marked.extensions);
    }
    response.into()
}

/// Drops the query from an error's URL.
fn clean_error(mut error: Error) -> Error {
    if let Some(url) = error.url_mut() {
        clean_url(url);
    }
    error
}

#[expect(clippy::disallowed_methods, reason = "a hint may be a date")]
fn wall_clock() -> SystemTime {
    SystemTime::now()
}
