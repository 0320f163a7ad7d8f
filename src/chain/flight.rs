//! One attempt in flight. Dropping it gives its permit back.
//!
//! An attempt goes through stages. It is polled by hand and is no `async fn`, so that the driver can
//! ask how far an attempt came that it drops.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Extensions, Method};
use reqwest::{Request, Response, Url};
use reqwest_middleware::{Error, Next};
use tokio::time::{Sleep, sleep_until};

use super::address::Address;
use super::attempt::AttemptState;
use super::body::{Requests, Upload};
use super::clean::{clean_error, clean_response};
use super::outcome::{AttemptResult, CameFrom, Unsent, read};
use super::shared::{Shared, now};
use super::slot::keep_place;
use super::sources::ask_for_keys;
use crate::health::after;
use crate::inspect::Asked;
use crate::message::Secrets;
use crate::provider::{Entry, FreshKey};
use crate::readdress::still_inside;
use crate::run::{Bound, Deadline};
use crate::verdict::Reason;

/// How much longer than the request's own timeout an attempt is waited for.
const CLIENTS_TIMEOUT_FIRST: Duration = Duration::from_millis(5);

type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What the rest of the middleware stack returns, and what it made of the attempt's extensions.
type StackResult = (reqwest_middleware::Result<Response>, Extensions);

/// Runs the rest of the middleware stack.
fn send<'a>(next: Next<'a>, request: Request, mut own: Extensions) -> BoxFuture<'a, StackResult> {
    // An `async fn` would hold twice what it is given.
    Box::pin(async move {
        let result = next.run(request, &mut own).await;
        (result, own)
    })
}

/// What all attempts of a request have in common.
pub(super) struct Sender<'a> {
    /// The list of providers that the request began with, for as long as it takes.
    pub(super) shared: Arc<Shared>,
    pub(super) address: Arc<Address>,
    pub(super) next: Next<'a>,
    /// What the answer will be held against, where the chain inspects.
    pub(super) asked: Option<Asked>,
    /// How the caller's own stream is doing, if the body is one.
    pub(super) upload: Option<Arc<Upload>>,
}

/// An attempt in flight.
pub(super) struct Flight<'a> {
    pub(super) state: AttemptState<'a>,
    sent: Option<SentAs>,
    timer: Option<Pin<Box<Sleep>>>,
    stage: Stage<'a>,
}

enum Stage<'a> {
    /// The request was not sent, or the attempt is over.
    Unsent(Option<Unsent>),
    /// The provider's sources are asked for its keys.
    Keys(BoxFuture<'a, Result<Vec<FreshKey>, Unsent>>, Box<(Request, Extensions)>),
    Sent(BoxFuture<'a, StackResult>),
    /// The answer is looked into before its verdict.
    Reading(BoxFuture<'a, AttemptResult>, Extensions),
}

/// What the answer is compared with, to find out whether a redirect was followed.
struct SentAs {
    /// Whether it may be led elsewhere below the provider's base: a GET or HEAD.
    may_move: bool,
    /// The URL, if `map_request` may have changed it.
    url: Option<Box<Url>>,
}

impl<'a> Sender<'a> {
    pub(super) fn new(
        shared: Arc<Shared>,
        address: Arc<Address>,
        next: Next<'a>,
        request: &Request,
    ) -> Self {
        let asked = shared.chain.inspect.as_ref().map(|_| Asked::of(request));
        Self { shared, address, next, asked, upload: None }
    }

    /// Begins an attempt: makes the request the provider's own, and has it sent when it is polled.
    pub(super) fn start<'s>(
        &'s self,
        mut state: AttemptState<'s>,
        mut request: Request,
        own: Extensions,
    ) -> Flight<'s> {
        let mut sent = None;
        let provider = state.provider();
        let entry = self.entry(provider);
        let readdressed = state.trace.within(|| {
            self.readdress(entry, provider, &mut request)?;
            if entry.sources.is_empty() {
                sent = Some(self.map_request(entry, &mut request, &mut state.secrets)?);
            }
            Ok(())
        });
        let stage = match readdressed {
            Err(unsent) => Stage::Unsent(Some(unsent)),
            Ok(()) if entry.sources.is_empty() => {
                Stage::Sent(send(self.next.clone(), request, own))
            }
            Ok(()) => Stage::Keys(
                Box::pin(ask_for_keys(&self.shared, provider, &entry.sources)),
                Box::new((request, own)),
            ),
        };
        Flight { state, sent, timer: None, stage }
    }

    /// Gives the request the provider's URL, headers and credential.
    fn readdress(
        &self,
        entry: &Entry,
        provider: usize,
        request: &mut Request,
    ) -> Result<(), Unsent> {
        let Shared { scope, strip, .. } = &*self.shared;
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
        let observer = &self.shared.observer;
        entry.edit_body(request, |rename| {
            observer.catch_panic("rename_model_with", rename).flatten()
        });
        let mut url = None;
        if let Some(map_request) = &entry.map_request {
            let mapped = observer.catch_panic("map_request", || map_request(request));
            // It may say what it had set when it failed.
            secrets.extend(self.shared.strip.secrets_of(request.headers(), request.url()));
            match mapped {
                Some(Ok(())) => {}
                Some(Err(error)) => return Err(Unsent { reason: Reason::Other, error }),
                None => return Err(Unsent::new("`map_request` panicked")),
            }
            if !still_inside(&entry.base, request.url()) {
                let problem = "`map_request` moved the URL away from the provider's base URL";
                return Err(Unsent::new(problem));
            }
            url = Some(Box::new(request.url().clone()));
        }
        let may_move = matches!(*request.method(), Method::GET | Method::HEAD);
        Ok(SentAs { may_move, url })
    }

    /// Makes a result of what came back, without reading it.
    fn receive(
        &self,
        state: &AttemptState<'_>,
        sent: Option<&SentAs>,
        result: Result<Response, Error>,
    ) -> AttemptResult {
        let entry = self.entry(state.provider());
        let asked = sent.and_then(|sent| sent.url.as_deref());
        let asked = asked.or_else(|| self.target(state.provider()));
        let secrets = || self.shared.secrets(&state.secrets);
        match result {
            Ok(response) => {
                let from = asked.zip(sent).map_or(CameFrom::Asked, |(asked, sent)| {
                    CameFrom::of(asked, sent.may_move, &response, &entry.base)
                });
                let moved = match from {
                    // As nearly all are: it is moved no further than it must be.
                    CameFrom::Asked if !entry.has_url_key() => {
                        return AttemptResult::Response(response);
                    }
                    CameFrom::Asked => None,
                    CameFrom::Moved => Some(secrets()),
                    CameFrom::Elsewhere => return AttemptResult::Redirected(response.status()),
                };
                AttemptResult::Response(clean_response(response, entry, moved.as_ref()))
            }
            Err(error) => {
                let is_moved = error.url().is_some_and(|url| Some(url) != asked);
                let error = clean_error(error, entry, is_moved.then(secrets).as_ref());
                match &self.upload {
                    Some(upload) if upload.has_failed() => AttemptResult::CallerFailed(error),
                    _ => AttemptResult::Failed(error),
                }
            }
        }
    }

    /// The chain's secrets, and those that the caller put on the request.
    pub(super) fn secrets_of_caller(&self, requests: &Requests) -> Secrets {
        requests.secrets(&self.shared, self.address.caller())
    }

    /// The URL at a provider, if there is a safe one.
    pub(super) fn target(&self, provider: usize) -> Option<&Url> {
        let Shared { scope, strip, .. } = &*self.shared;
        self.address.target(provider, self.entry(provider), strip, scope)
    }

    fn entry(&self, provider: usize) -> &Entry {
        &self.shared.entries[provider]
    }
}

impl<'a> Flight<'a> {
    /// Ready when the attempt is over, by itself or because its time was up.
    pub(super) fn poll(
        &mut self,
        sender: &'a Sender<'_>,
        deadline: &Deadline,
        context: &mut Context<'_>,
    ) -> Poll<(AttemptResult, Extensions)> {
        loop {
            let Self { state, stage, .. } = self;
            match stage {
                Stage::Sent(answer) => {
                    // Before it is polled for the first time, nothing leaves this machine.
                    state.is_sent = true;
                    let answer = state.trace.within(|| answer.as_mut().poll(context));
                    let Poll::Ready((result, own)) = answer else { break };
                    let mut result = sender.receive(state, self.sent.as_ref(), result);
                    if sender.entry(state.provider()).max_in_flight.is_some() {
                        result = keep_place(&sender.shared, state.permit.get_mut(), result);
                    }
                    let response = match result {
                        AttemptResult::Response(response)
                            if sender.shared.reads(response.status()) =>
                        {
                            response
                        }
                        result => return self.end(result, own),
                    };
                    // What follows is no part of the attempt's time, which ends with the headers.
                    let now = now();
                    state.answered = Some(now);
                    let read = read(&sender.shared, response, sender.asked, now, deadline.at);
                    *stage = Stage::Reading(read, own);
                }
                Stage::Reading(read, own) => {
                    let read = state.trace.within(|| read.as_mut().poll(context));
                    let Poll::Ready(result) = read else { return Poll::Pending };
                    let own = std::mem::take(own);
                    return self.end(result, own);
                }
                Stage::Keys(keys, _) => {
                    let keys = state.trace.within(|| keys.as_mut().poll(context));
                    let Poll::Ready(keys) = keys else { break };
                    let stage = std::mem::replace(stage, Stage::Unsent(None));
                    let Stage::Keys(_, parked) = stage else { break };
                    let (request, own) = *parked;
                    self.stage = match self.use_keys(sender, keys, request) {
                        Ok(request) => Stage::Sent(send(sender.next.clone(), request, own)),
                        Err(unsent) => Stage::Unsent(Some(unsent)),
                    };
                }
                Stage::Unsent(unsent) => {
                    let Some(unsent) = unsent.take() else { return Poll::Pending };
                    return self.end(AttemptResult::Unsent(unsent), Extensions::new());
                }
            }
        }
        self.poll_time(sender, deadline, context)
    }

    /// What the attempt holds is free before anything is made of its result.
    fn end(&mut self, result: AttemptResult, own: Extensions) -> Poll<(AttemptResult, Extensions)> {
        self.stop();
        Poll::Ready((result, own))
    }

    /// Drops what the attempt holds.
    pub(super) fn stop(&mut self) {
        self.stage = Stage::Unsent(None);
    }

    /// Sets the keys, which are the last thing that the request waits for.
    fn use_keys(
        &mut self,
        sender: &'a Sender<'_>,
        keys: Result<Vec<FreshKey>, Unsent>,
        mut request: Request,
    ) -> Result<Request, Unsent> {
        let state = &mut self.state;
        for mut key in keys? {
            state.secrets.append(&mut key.secrets);
            key.apply(&mut request);
        }
        let entry = sender.entry(state.provider());
        let AttemptState { trace, secrets, .. } = state;
        let sent = trace.within(|| sender.map_request(entry, &mut request, secrets))?;
        self.sent = Some(sent);
        if let Some(permit) = state.permit.get_mut() {
            permit.mark_sent(now());
        }
        Ok(request)
    }

    /// Ready when the attempt's time is up.
    fn poll_time(
        &mut self,
        sender: &'a Sender<'_>,
        deadline: &Deadline,
        context: &mut Context<'_>,
    ) -> Poll<(AttemptResult, Extensions)> {
        loop {
            let Self { state, timer, .. } = self;
            // The client below has the request's own timeout, too, and the better error for it.
            let grace = match state.until.bound {
                Bound::Request => CLIENTS_TIMEOUT_FIRST,
                Bound::Attempt | Bound::Total | Bound::Own => Duration::ZERO,
            };
            let at = after(state.until.at, grace).into();
            let timer = timer.get_or_insert_with(|| Box::pin(sleep_until(at)));
            if timer.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            // No clock runs against a provider while the caller's own stream is pending.
            let (more, is_pending) = sender
                .upload
                .as_ref()
                .map_or_else(Default::default, |upload| upload.take_pending(now()));
            let before = state.until.at;
            if let (Some(permit), false) = (state.permit.get_mut(), more.is_zero()) {
                permit.exclude(more);
                state.until = deadline.extend(state.until, more);
            }
            state.upload_pending = is_pending;
            if state.until.at <= before {
                let result = AttemptResult::TimedOut { sent: state.is_sent };
                return self.end(result, Extensions::new());
            }
            timer.as_mut().reset(after(state.until.at, grace).into());
        }
    }
}
