//! The caller of a cell: it sends the requests, and keeps all that it is given.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use reqwest::Response;
use reqwest_failover::{Event, FailoverError, ProviderChain, Replay, Report, Route, Snapshot};
use reqwest_middleware::{ClientWithMiddleware, RequestBuilder};

use crate::cell::{Cell, Harness, Setup};
use crate::kinds::{BodyEnd, Expected};
use crate::script::ms;
use crate::support::lock;

/// One request and what came of it.
pub(crate) struct Exchange {
    pub(crate) ending: Ending,
    pub(crate) report: Option<Report>,
    /// Debug and Display of all that the caller was given.
    pub(crate) shown: String,
    pub(crate) took: Duration,
    pub(crate) events: Vec<Told>,
    /// Once the response is gone.
    pub(crate) snapshot: Snapshot,
    /// How many requests each server had been sent before it, and after it.
    pub(crate) before: Vec<usize>,
    pub(crate) after: Vec<usize>,
    pub(crate) bytes_sent: Vec<u64>,
}

impl Exchange {
    pub(crate) fn is_hedged(&self) -> bool {
        self.events.iter().any(|told| matches!(told, Told::Hedged(..)))
    }
}

pub(crate) enum Ending {
    Answered { status: u16, server: Option<String>, reported: bool, body: BodyEnd },
    FailoverError,
    TransportError,
}

/// An event, as far as its order matters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    Started(String, usize),
    Ended(String),
    FailedOver(String, String),
    Hedged(String, String),
    Rejected,
    Exhausted,
    StreamBroken(String),
    Finished,
    Other,
}

/// The caller of a cell.
pub(crate) struct Caller<'a> {
    pub(crate) harness: &'a Harness,
    pub(crate) cell: &'a Cell,
    pub(crate) client: ClientWithMiddleware,
    pub(crate) chain: ProviderChain,
    pub(crate) events: Arc<Mutex<Vec<Told>>>,
    pub(crate) body: bytes::Bytes,
}

impl Caller<'_> {
    /// Addressed to none of the providers, with credentials that none of them may see.
    fn request(&self) -> RequestBuilder {
        let [bearer, cookie, query] = self.harness.sightings.callers();
        let query =
            percent_encoding::utf8_percent_encode(query, percent_encoding::NON_ALPHANUMERIC);
        let url = format!("http://caller.test/v1/chat/completions?trace=1&key={query}");
        let request = self
            .client
            .post(url)
            .header("content-type", "application/json")
            .header("accept", "application/json, text/event-stream")
            .header("x-request-id", "42")
            .header("authorization", format!("Bearer {bearer}"))
            .header("cookie", format!("session={cookie}"))
            .body(self.body.clone());
        match self.cell.setup {
            Setup::CarefulWithReplay => request.with_extension(Replay::allowed()),
            _ => request,
        }
    }

    /// Opens a connection to this provider.
    pub(crate) async fn warm_up(&self, provider: &str) {
        let route = Route::only([provider]);
        let response = self.request().with_extension(route).send().await.expect("a response");
        let _ = response.bytes().await;
        lock(&self.events).clear();
    }

    /// Sends one request and reads what is answered.
    pub(crate) async fn exchange(&self) -> Exchange {
        let harness = self.harness;
        let before = harness.wire();
        let mut request = self.request();
        let mut extensions = request.extensions().clone();
        let request = request.build().expect("a request");
        let started = Instant::now();
        let result = self.client.execute_with_extensions(request, &mut extensions).await;
        let took = started.elapsed();
        let report = Report::from_extensions(&extensions).cloned();
        let mut shown = format!("{report:?} {:?} {:?}", self.chain, self.client);
        report.iter().for_each(|report| shown += &report.to_string());
        let ending = match result {
            Ok(response) => self.answered(response, &mut shown).await,
            Err(error) => {
                show(&error, &mut shown);
                match FailoverError::find(&error) {
                    Some(_) => Ending::FailoverError,
                    None => Ending::TransportError,
                }
            }
        };
        // A body that is dropped tells its stream's end, and what was sent wrongly would arrive.
        tokio::time::sleep(ms(2)).await;
        let snapshot = self.chain.snapshot();
        shown += &format!("{snapshot:?}");
        Exchange {
            ending,
            report,
            shown,
            took,
            events: std::mem::take(&mut lock(&self.events)),
            snapshot,
            before,
            after: harness.wire(),
            bytes_sent: harness.servers.iter().map(|server| server.seen.sent()).collect(),
        }
    }

    async fn answered(&self, mut response: Response, shown: &mut String) -> Ending {
        *shown += &format!("{response:?}");
        let status = response.status().as_u16();
        let server = response.headers().get("x-server").and_then(|name| name.to_str().ok());
        let server = server.map(str::to_owned);
        let reported = Report::of(&response).is_some();
        let ends = !matches!(self.cell.kind.expected, Expected::Served { body: BodyEnd::Open, .. });
        // What has no end is read until it is clear that it has none.
        let (most, patience) =
            if ends && status == 200 { (64 << 20, ms(2500)) } else { (1 << 20, ms(100)) };
        let mut read = 0;
        let reading = async {
            loop {
                match response.chunk().await {
                    Ok(Some(data)) => read += data.len(),
                    Ok(None) => return BodyEnd::Whole,
                    Err(error) => {
                        show(&error, shown);
                        return BodyEnd::Broken;
                    }
                }
                if read > most {
                    return BodyEnd::Open;
                }
            }
        };
        let body = tokio::time::timeout(patience, reading).await.unwrap_or(BodyEnd::Open);
        Ending::Answered { status, server, reported, body }
    }
}

/// An error as anyone might print it: itself, and all its sources.
fn show(error: &(dyn std::error::Error + 'static), shown: &mut String) {
    for error in std::iter::successors(Some(error), |error| error.source()) {
        *shown += &format!("{error} {error:?} {error:#?}\n");
    }
}

impl Told {
    pub(crate) fn of(event: &Event<'_>) -> Self {
        match event {
            Event::AttemptStarted { provider, number, .. } => {
                Self::Started((*provider).to_owned(), *number)
            }
            Event::AttemptFinished { attempt, .. } => Self::Ended(attempt.provider().to_owned()),
            Event::FailedOver { from, to, .. } => {
                Self::FailedOver(from.provider().to_owned(), (*to).to_owned())
            }
            Event::HedgeSent { from, to, .. } => Self::Hedged((*from).to_owned(), (*to).to_owned()),
            Event::Rejected { .. } => Self::Rejected,
            Event::Exhausted { .. } => Self::Exhausted,
            Event::StreamBroken { provider, .. } => Self::StreamBroken((*provider).to_owned()),
            Event::Finished { .. } => Self::Finished,
            _ => Self::Other,
        }
    }
}
