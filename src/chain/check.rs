//! Asks each provider once, apart from all requests: for deploy scripts, and for a standby that has not
//! been used for weeks.
//!
//! An attempt is made, sent and judged as any other, but by no run and with no permit, so that the health
//! table and the counts stay as they are.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;

use http::Extensions;
use http::header::UPGRADE;
use reqwest::{Body, Request, Response};
use reqwest_middleware::{ClientBuilder, Middleware, Next};

use super::address::Address;
use super::attempt::{AttemptState, Guard};
use super::body::{Requests, is_replayable};
use super::flight::Sender;
use super::outcome::{AttemptResult, Circumstances, Unsent};
use super::shared::{Shared, now};
use crate::message::Secrets;
use crate::observe::Trace;
use crate::report::Attempt;

/// What each provider said to the request, in the chain's order.
pub(super) async fn check(
    shared: &Arc<Shared>,
    client: &reqwest::Client,
    request: Request,
) -> Vec<Attempt> {
    let Shared { addresses, scope, entries, .. } = &**shared;
    let address = match addresses.find(request.url(), scope, entries.ids()) {
        None => return refuse(shared, "the URL is below no base URL of the chain"),
        Some(address) if address.is_refused() => {
            return refuse(shared, "the path hides a dot segment");
        }
        Some(address) => address,
    };
    if !is_replayable(&request) {
        return refuse(shared, "the body is a stream, which can be sent only once");
    }
    // What an attempt is sent with is given to a layer only.
    let layer = Arc::new(CheckLayer { shared: shared.clone(), address, said: Mutex::default() });
    let client = ClientBuilder::new(client.clone()).with_arc(layer.clone()).build();
    let _ = client.execute(request).await;
    std::mem::take(&mut *layer.said.lock().unwrap_or_else(PoisonError::into_inner))
}

/// The result where nothing can be sent to any provider.
fn refuse(shared: &Arc<Shared>, problem: &str) -> Vec<Attempt> {
    let now = now();
    let refused = |&provider: &usize| {
        let (_, until) = shared.limits.alone(provider, None, now);
        let trace = Trace::request(None);
        let state = AttemptState::new(Guard::empty(shared), provider, trace, now, until);
        said(shared, &state, AttemptResult::Unsent(Unsent::new(problem)), false, &shared.secrets)
    };
    let order = shared.order(&shared.lock()).clone();
    order.iter().map(refused).collect()
}

/// What an attempt's result is, in a report's terms.
fn said(
    shared: &Shared,
    state: &AttemptState<'_>,
    mut result: AttemptResult,
    upgrade_asked: bool,
    of_caller: &Secrets,
) -> Attempt {
    let now = now();
    let circumstances = Circumstances {
        provider: state.provider(),
        upgrade_asked,
        is_replayable: true,
        until: state.until,
        to_headers: state.answered.unwrap_or(now).saturating_duration_since(state.started),
        started: state.started,
        quiet_since: None,
        now,
    };
    let secrets = || shared.and_secrets(of_caller, &state.secrets);
    let (_, attempt) = result.judge(shared, &circumstances, secrets);
    state.trace.record_outcome(&attempt);
    attempt
}

/// Takes the place of the chain for one request.
struct CheckLayer {
    shared: Arc<Shared>,
    address: Arc<Address>,
    said: Mutex<Vec<Attempt>>,
}

impl Middleware for CheckLayer {
    fn handle<'layer, 'extensions, 'next, 'answer>(
        &'layer self,
        request: Request,
        extensions: &'extensions mut Extensions,
        next: Next<'next>,
    ) -> Pin<Box<dyn Future<Output = reqwest_middleware::Result<Response>> + Send + 'answer>>
    where
        'layer: 'answer,
        'extensions: 'answer,
        'next: 'answer,
        Self: 'answer,
    {
        Box::pin(async move {
            let said = self.ask_all(request, extensions, next).await;
            *self.said.lock().unwrap_or_else(PoisonError::into_inner) = said;
            Ok(http::Response::new(Body::default()).into())
        })
    }
}

impl CheckLayer {
    /// Asks all providers at once.
    async fn ask_all(
        &self,
        request: Request,
        extensions: &mut Extensions,
        next: Next<'_>,
    ) -> Vec<Attempt> {
        let shared = &self.shared;
        let trace = Trace::request(Some(request.method()));
        let upgrade_asked = request.headers().contains_key(UPGRADE);
        let timeout = request.timeout().copied();
        let sender = Sender::new(shared.clone(), self.address.clone(), next, &request);
        let mut requests = Requests::new(request);
        let order = shared.order(&shared.lock()).clone();
        let mut asked = Vec::with_capacity(order.len());
        for &provider in order.iter() {
            let entry = &shared.entries[provider];
            let started = now();
            let (deadline, until) = shared.limits.alone(provider, timeout, started);
            let url = || sender.target(provider).unwrap_or_else(|| self.address.caller());
            let Some((request, own)) =
                requests.next(url, timeout, false, extensions, &shared.strip)
            else {
                break;
            };
            let trace = trace.attempt(&entry.name, entry.base.url(), 0);
            let state = AttemptState::new(Guard::empty(shared), provider, trace, started, until);
            asked.push((Box::new(sender.start(state, request, own)), deadline, None));
        }
        let of_caller = sender.secrets_of_caller(&requests);
        std::future::poll_fn(|context| {
            let mut is_over = true;
            for (flight, deadline, attempt) in &mut asked {
                if attempt.is_some() {
                    continue;
                }
                match flight.poll(&sender, deadline, context) {
                    Poll::Pending => is_over = false,
                    Poll::Ready((result, _)) => {
                        *attempt =
                            Some(said(shared, &flight.state, result, upgrade_asked, &of_caller));
                    }
                }
            }
            if is_over { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        asked.into_iter().filter_map(|(_, _, attempt)| attempt).collect()
    }
}
