//! One attempt in flight. Dropping it gives its permit back.
//!
//! An attempt goes through stages, and the stage is the answer to "was it sent?". It is polled by
//! hand and not an `async fn`, so that the driver can ask for the stage of an attempt that it drops.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::header::AUTHORIZATION;
use http::{Extensions, HeaderValue, Method};
use pin_project_lite::pin_project;
use reqwest::{Request, Response, Url};
use reqwest_middleware::{Error, Next};
use tokio::time::{Sleep, sleep_until};

use super::address::Address;
use super::body::Upload;
use super::outcome::{AttemptResult, Unsent, clean_error, clean_response, is_elsewhere, read};
use super::shared::{Shared, now};
use super::slot::keep_place;
use crate::health::{Permit, after};
use crate::inspect::Asked;
use crate::observe::{Event, Trace, catch_panic};
use crate::provider::{BoxError, Entry, TokenSource, bearer_value, checked_key};
use crate::readdress::still_inside;
use crate::run::{Bound, Deadline, Until};
use crate::verdict::Reason;

/// How much longer than the request's own timeout an attempt is waited for.
const CLIENTS_TIMEOUT_FIRST: Duration = Duration::from_millis(5);

type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What the rest of the middleware stack returns, and what it made of the attempt's extensions.
pub(super) type Answer = (reqwest_middleware::Result<Response>, Extensions);

/// Runs the rest of the middleware stack.
pub(super) async fn send(next: Next<'_>, request: Request, mut own: Extensions) -> Answer {
    let result = next.run(request, &mut own).await;
    (result, own)
}

/// What all attempts of a request have in common.
pub(super) struct Sender<'a> {
    pub(super) shared: &'a Arc<Shared>,
    pub(super) address: Arc<Address>,
    pub(super) next: Next<'a>,
    /// What the answer will be held against, where the chain inspects.
    pub(super) asked: Option<Asked>,
    /// How the caller's own stream is doing, if the body is one.
    pub(super) upload: Option<Arc<Upload>>,
    /// When the request as a whole is given up.
    pub(super) deadline: Deadline,
}

/// A permit that is given back when it is dropped.
pub(super) struct Guard<'a> {
    shared: &'a Shared,
    permit: Option<Permit>,
}

impl<'a> Guard<'a> {
    pub(super) fn new(shared: &'a Shared, permit: Permit) -> Self {
        Self { shared, permit: Some(permit) }
    }

    pub(super) fn get_mut(&mut self) -> Option<&mut Permit> {
        self.permit.as_mut()
    }

    pub(super) fn put_back(&mut self, permit: Permit) {
        self.permit = Some(permit);
    }

    /// The permit, for the health table to take back.
    pub(super) fn take(&mut self) -> Option<Permit> {
        self.permit.take()
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if let Some(permit) = self.permit.take() {
            self.shared.lock().health.cancel(&permit);
        }
    }
}

/// What is known of an attempt apart from its future.
pub(super) struct AttemptState<'a> {
    pub(super) permit: Guard<'a>,
    pub(super) provider: usize,
    pub(super) trace: Trace,
    pub(super) started: Instant,
    pub(super) until: Until,
    pub(super) is_sent: bool,
    /// Whether the caller's own body was pending when the time was up.
    pub(super) upload_pending: bool,
    /// What this attempt must not show: its token, and what `map_request` set.
    pub(super) secrets: Vec<String>,
}

impl<'a> AttemptState<'a> {
    pub(super) fn new(
        permit: Guard<'a>,
        provider: usize,
        trace: Trace,
        started: Instant,
        until: Until,
    ) -> Self {
        Self {
            permit,
            provider,
            trace,
            started,
            until,
            is_sent: false,
            upload_pending: false,
            secrets: Vec::new(),
        }
    }

    /// How long the provider has had the request.
    pub(super) fn quiet_for(&mut self, now: Instant) -> Duration {
        match self.permit.get_mut() {
            Some(permit) if self.is_sent && !self.upload_pending => permit.elapsed(now),
            _ => Duration::ZERO,
        }
    }
}

pin_project! {
    /// An attempt in flight.
    pub(super) struct Flight<'a, F> {
        // Taken when the attempt is over.
        state: Option<AttemptState<'a>>,
        send: fn(Next<'a>, Request, Extensions) -> F,
        sent: Option<SentAs>,
        timer: Option<Pin<Box<Sleep>>>,
        // How long the caller's own body was pending, as far as the clock has made up for it.
        excluded: Duration,
        #[pin]
        stage: Stage<'a, F>,
    }
}

pin_project! {
    #[project = StageProjection]
    enum Stage<'a, F> {
        // The request was not sent.
        Unsent { unsent: Option<Unsent> },
        // The credential source is asked for a token.
        Token {
            token: BoxFuture<'a, Result<HeaderValue, Unsent>>,
            parked: Option<(Request, Extensions)>,
        },
        Sent { #[pin] answer: F },
        // The answer is looked into before its verdict.
        Reading { read: BoxFuture<'a, AttemptResult>, own: Extensions },
    }
}

/// What the answer is compared with, to find out whether a redirect was followed.
struct SentAs {
    method: Method,
    /// The URL, if `map_request` may have changed it.
    url: Option<Box<Url>>,
}

/// What a stage came to.
enum Progress {
    Token(Result<HeaderValue, Unsent>, Request, Extensions),
    Answer(Answer),
    Over(AttemptResult, Extensions),
}

impl<F: Future<Output = Answer>> Stage<'_, F> {
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Progress> {
        match self.project() {
            StageProjection::Sent { answer } => answer.poll(context).map(Progress::Answer),
            StageProjection::Token { token, parked } => match token.as_mut().poll(context) {
                Poll::Ready(token) => match parked.take() {
                    Some((request, own)) => Poll::Ready(Progress::Token(token, request, own)),
                    None => Poll::Pending,
                },
                Poll::Pending => Poll::Pending,
            },
            StageProjection::Reading { read, own } => {
                let result = read.as_mut().poll(context);
                result.map(|result| Progress::Over(result, std::mem::take(own)))
            }
            StageProjection::Unsent { unsent } => match unsent.take() {
                Some(unsent) => {
                    Poll::Ready(Progress::Over(AttemptResult::Unsent(unsent), Extensions::new()))
                }
                None => Poll::Pending,
            },
        }
    }
}

impl<'a> Sender<'a> {
    /// Begins an attempt: makes the request the provider's own, and has it sent when it is polled.
    pub(super) fn start<F>(
        &self,
        mut state: AttemptState<'a>,
        mut request: Request,
        own: Extensions,
        send: fn(Next<'a>, Request, Extensions) -> F,
    ) -> Flight<'a, F> {
        let mut sent = None;
        let entry = self.entry(state.provider);
        let readdressed = state.trace.within(|| {
            self.readdress(entry, state.provider, &mut request)?;
            if entry.source.is_none() {
                sent = Some(self.map_request(entry, &mut request, &mut state.secrets)?);
            }
            Ok(())
        });
        let stage = match (readdressed, &entry.source) {
            (Err(unsent), _) => Stage::Unsent { unsent: Some(unsent) },
            (Ok(()), Some(source)) => Stage::Token {
                token: Box::pin(token(self.shared, state.provider, source)),
                parked: Some((request, own)),
            },
            (Ok(()), None) => {
                state.is_sent = true;
                Stage::Sent { answer: send(self.next.clone(), request, own) }
            }
        };
        let state = Some(state);
        Flight { state, send, sent, timer: None, excluded: Duration::ZERO, stage }
    }

    /// Gives the request the provider's URL, headers and credential.
    fn readdress(
        &self,
        entry: &Entry,
        provider: usize,
        request: &mut Request,
    ) -> Result<(), Unsent> {
        let Shared { scope, strip, .. } = &**self.shared;
        let target = self
            .target(provider)
            .ok_or_else(|| Unsent::new("the path does not fit below the provider's base URL"))?;
        if request.url() != target {
            *request.url_mut() = target.clone();
        }
        let keep_caller_auth = entry.keeps_caller_auth(self.address.claimed(scope));
        entry.apply_headers(request.headers_mut(), strip, keep_caller_auth);
        Ok(())
    }

    /// Edits the body as the provider has it, and calls `map_request`.
    fn map_request(
        &self,
        entry: &Entry,
        request: &mut Request,
        secrets: &mut Vec<String>,
    ) -> Result<SentAs, Unsent> {
        entry.rename_model(request);
        let mut url = None;
        if let Some(map_request) = &entry.map_request {
            let observer = &self.shared.observer;
            match observer.catch_panic("map_request", || map_request(request)) {
                Some(Ok(())) => {}
                Some(Err(error)) => return Err(Unsent { reason: Reason::Other, error }),
                None => return Err(Unsent::new("`map_request` panicked")),
            }
            if !still_inside(&entry.base, request.url()) {
                let problem = "`map_request` moved the URL away from the provider's base URL";
                return Err(Unsent::new(problem));
            }
            secrets.extend(self.shared.strip.secrets_of(request.headers(), request.url()));
            url = Some(Box::new(request.url().clone()));
        }
        Ok(SentAs { method: request.method().clone(), url })
    }

    /// Makes a result of what came back, without reading it.
    fn receive(
        &self,
        provider: usize,
        sent: Option<&SentAs>,
        result: Result<Response, Error>,
    ) -> AttemptResult {
        let entry = self.entry(provider);
        match result {
            Ok(response) => {
                let asked = sent.and_then(|sent| sent.url.as_deref());
                let asked = asked.or_else(|| self.target(provider));
                let is_elsewhere = asked.zip(sent).is_some_and(|(asked, sent)| {
                    is_elsewhere(asked, &sent.method, &response, &entry.base)
                });
                match is_elsewhere {
                    true => AttemptResult::Redirected(response.status()),
                    false => AttemptResult::Response(clean_response(response, entry), None),
                }
            }
            Err(error) => match &self.upload {
                Some(upload) if upload.has_failed() => AttemptResult::CallerFailed(error),
                _ => AttemptResult::Failed(clean_error(error, entry)),
            },
        }
    }

    /// The URL at a provider, if there is a safe one.
    pub(super) fn target(&self, provider: usize) -> Option<&Url> {
        let Shared { scope, strip, .. } = &**self.shared;
        self.address.target(provider, self.entry(provider), strip, scope)
    }

    fn entry(&self, provider: usize) -> &'a Entry {
        &self.shared.entries[provider]
    }
}

impl<'a, F: Future<Output = Answer>> Flight<'a, F> {
    /// Ready when the attempt is over, by itself or because its time was up.
    pub(super) fn poll(
        mut self: Pin<&mut Self>,
        sender: &Sender<'a>,
        context: &mut Context<'_>,
    ) -> Poll<(AttemptResult, Extensions)> {
        loop {
            let mut this = self.as_mut().project();
            let Some(state) = this.state else { return Poll::Pending };
            let progress = state.trace.within(|| this.stage.as_mut().poll(context));
            match progress {
                Poll::Pending => return self.poll_time(sender, context),
                Poll::Ready(Progress::Over(result, own)) => return Poll::Ready((result, own)),
                Poll::Ready(Progress::Token(token, request, own)) => {
                    let stage = match self.as_mut().use_token(sender, token, request) {
                        Ok(request) => Stage::Sent {
                            answer: (self.send)(sender.next.clone(), request, own),
                        },
                        Err(unsent) => Stage::Unsent { unsent: Some(unsent) },
                    };
                    self.as_mut().project().stage.set(stage);
                }
                Poll::Ready(Progress::Answer((result, own))) => {
                    let mut result = sender.receive(state.provider, this.sent.as_ref(), result);
                    if sender.entry(state.provider).max_in_flight.is_some() {
                        result = keep_place(sender.shared, &mut state.permit, result);
                    }
                    let AttemptResult::Response(response, _) = result else {
                        return Poll::Ready((result, own));
                    };
                    if !sender.shared.reads(response.status()) {
                        return Poll::Ready((AttemptResult::Response(response, None), own));
                    }
                    // What follows is no part of the attempt's time, which ends with the headers.
                    let read = read(sender.shared, response, sender.asked, now(), sender.deadline.at);
                    this.stage.set(Stage::Reading { read: Box::pin(read), own });
                }
            }
        }
    }

    /// Sets the token, which is the last thing that the request waits for.
    fn use_token(
        self: Pin<&mut Self>,
        sender: &Sender<'a>,
        token: Result<HeaderValue, Unsent>,
        mut request: Request,
    ) -> Result<Request, Unsent> {
        let this = self.project();
        let Some(state) = this.state else { return Ok(request) };
        let token = token?;
        let shown = token.to_str().unwrap_or_default();
        state.secrets.push(shown.strip_prefix("Bearer ").unwrap_or(shown).to_owned());
        request.headers_mut().insert(AUTHORIZATION, token);
        let entry = sender.entry(state.provider);
        let sent = state
            .trace
            .within(|| sender.map_request(entry, &mut request, &mut state.secrets))?;
        *this.sent = Some(sent);
        state.is_sent = true;
        if let Some(permit) = state.permit.get_mut() {
            permit.mark_sent(now());
        }
        Ok(request)
    }

    /// Ready when the attempt's time is up.
    fn poll_time(
        self: Pin<&mut Self>,
        sender: &Sender<'a>,
        context: &mut Context<'_>,
    ) -> Poll<(AttemptResult, Extensions)> {
        let this = self.project();
        let (Some(state), false) = (this.state, matches!(*this.stage, Stage::Reading { .. }))
        else {
            return Poll::Pending;
        };
        loop {
            // The client below has the request's own timeout, too, and the better error for it.
            let grace = match state.until.bound {
                Bound::Request => CLIENTS_TIMEOUT_FIRST,
                Bound::Attempt | Bound::Total => Duration::ZERO,
            };
            let until = after(state.until.at, grace).into();
            let timer = this.timer.get_or_insert_with(|| Box::pin(sleep_until(until)));
            if timer.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            // No clock runs against a provider while the caller's own stream is pending.
            let now = now();
            let (pending, is_pending) =
                sender.upload.as_ref().map_or_else(Default::default, |upload| upload.pending(now));
            let more = pending.saturating_sub(*this.excluded);
            let before = state.until.at;
            if let (Some(permit), false) = (state.permit.get_mut(), more.is_zero()) {
                permit.exclude(more);
                state.until = sender.deadline.extend(state.until, more);
                *this.excluded = pending;
            }
            state.upload_pending = is_pending;
            if state.until.at <= before {
                let result = AttemptResult::TimedOut { sent: state.is_sent };
                return Poll::Ready((result, Extensions::new()));
            }
            timer.as_mut().reset(after(state.until.at, grace).into());
        }
    }

}

impl<'a, F> Flight<'a, F> {
    /// What is known of the attempt, which is over.
    pub(super) fn end(self: Pin<&mut Self>) -> Option<AttemptState<'a>> {
        self.project().state.take()
    }

    pub(super) fn state(&self) -> Option<&AttemptState<'a>> {
        self.state.as_ref()
    }
}

/// Asks a provider's source of tokens.
async fn token(
    shared: &Shared,
    provider: usize,
    source: &TokenSource,
) -> Result<HeaderValue, Unsent> {
    const CALLBACK: &str = "bearer_auth_with";
    let failed = |error: BoxError| Unsent { reason: Reason::Credential, error };
    let panicked = || {
        shared.observer.emit(&Event::CallbackPanicked { callback: CALLBACK });
        failed(format!("`{CALLBACK}` panicked").into())
    };
    let mut asked = catch_panic(|| source()).ok_or_else(panicked)?;
    let answer = std::future::poll_fn(|context| {
        catch_panic(|| asked.as_mut().poll(context))
            .map_or(Poll::Ready(None), |poll| poll.map(Some))
    });
    let token = answer.await.ok_or_else(panicked)?.map_err(failed)?;
    let token =
        checked_key(&token).map_err(|problem| failed(format!("the token {problem}").into()))?;
    let value = bearer_value(token).ok_or_else(|| failed("the token is no header value".into()))?;
    shared.lock_tokens()[provider] = Some(token.to_owned());
    Ok(value)
}
