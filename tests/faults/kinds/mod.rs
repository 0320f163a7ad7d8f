//! The kinds of faults, one line each: its name, what is expected of it, and what the server does.

mod body;
mod connection;
mod content;
mod head;
mod http2;
mod status;

use std::sync::Arc;

use reqwest_failover::Reason;

use crate::script::{Act, Asked};
use crate::server::{Fault, Wire};

/// One thing that can go wrong at a provider.
pub(crate) struct Kind {
    pub(crate) name: String,
    pub(crate) wire: Wire,
    pub(crate) fault: Fault,
    pub(crate) expected: Expected,
    /// The chain looks into successful responses.
    pub(crate) inspected: bool,
    /// The request's body is larger than any socket's buffer.
    pub(crate) upload: bool,
    /// The connections were used before, when nothing was wrong yet.
    pub(crate) reused: bool,
    /// How often the transport sends one attempt's request: again where the server has said that it did
    /// not look at it.
    pub(crate) sent: usize,
}

/// What comes of a faulty provider's attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    /// It fails, and the request goes on.
    Failure(Failure),
    /// Its headers are accepted, so the rest is the caller's: no other provider is asked.
    Served { status: u16, body: BodyEnd, cost: Cost },
}

/// How an attempt fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) reason: Reason,
    pub(crate) status: Option<u16>,
    pub(crate) ambiguous: bool,
    pub(crate) cost: Cost,
    /// Whose clock ends the attempt, where the reason is a timeout.
    pub(crate) clock: Clock,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clock {
    Layer,
    Transport,
}

/// What the fault does to the provider's health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cost {
    Nothing,
    Failure,
    Cooldown,
    /// A stream broke off that had begun well.
    BrokenStream,
}

/// How a body ends for the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BodyEnd {
    Whole,
    Broken,
    /// Not before the caller has had enough of it.
    Open,
}

pub(crate) fn all() -> Vec<Arc<Kind>> {
    let parts = [
        connection::kinds(),
        head::kinds(),
        body::kinds(),
        status::kinds(),
        content::kinds(),
        http2::kinds(),
    ];
    parts.into_iter().flatten().map(Arc::new).collect()
}

impl Expected {
    /// The failed attempt that is expected, if any.
    pub(crate) fn failure(self) -> Option<Failure> {
        match self {
            Self::Failure(failure) => Some(failure),
            Self::Served { .. } => None,
        }
    }

    pub(crate) fn cost(self) -> Cost {
        match self {
            Self::Failure(Failure { cost, .. }) | Self::Served { cost, .. } => cost,
        }
    }
}

impl Kind {
    fn new(name: impl Into<String>, expected: Expected, fault: Fault) -> Self {
        let wire = match fault {
            Fault::Certificate(_) | Fault::Handshake(_) => Wire::Tls,
            Fault::Http2(_) => Wire::Http2,
            _ => Wire::Http1,
        };
        let (inspected, upload, reused) = (false, matches!(fault, Fault::Upload(_)), false);
        Self { name: name.into(), wire, fault, expected, inspected, upload, reused, sent: 1 }
    }

    fn sent(self, sent: usize) -> Self {
        Self { sent, ..self }
    }

    fn inspected(self) -> Self {
        Self { inspected: true, ..self }
    }

    fn reused(self) -> Self {
        Self { reused: true, ..self }
    }

    fn over_tls(self) -> Self {
        Self { wire: Wire::Tls, ..self }
    }
}

/// A fault once the whole request has arrived.
fn reply(acts: impl Fn(&Asked) -> Vec<Act> + Send + Sync + 'static) -> Fault {
    Fault::Reply(Arc::new(acts))
}

/// A fault while the request is still arriving.
fn upload(acts: impl Fn(&Asked) -> Vec<Act> + Send + Sync + 'static) -> Fault {
    Fault::Upload(Arc::new(acts))
}

// What is expected.

const CONNECT: Expected = failure(Reason::Connect, false);
const RESET: Expected = failure(Reason::Reset, true);
const TIMEOUT: Expected = failure(Reason::Timeout, true);
/// The client's own clock, after a silence that is too short to be news.
const TRANSPORT_TIMEOUT: Expected = Expected::Failure(Failure {
    reason: Reason::Timeout,
    status: None,
    ambiguous: true,
    cost: Cost::Nothing,
    clock: Clock::Transport,
});
/// The server says that it has not looked at the request.
const REFUSED: Expected = failure(Reason::Reset, false);
/// Found by looking into a successful response, whose request was processed.
const ERROR_IN_SUCCESS: Expected = flaw(Reason::ErrorInSuccess);
const BROKEN_SUCCESS: Expected = flaw(Reason::Reset);
const SILENT_SUCCESS: Expected = flaw(Reason::Timeout);

const fn failure(reason: Reason, ambiguous: bool) -> Expected {
    failed(reason, None, ambiguous, Cost::Failure)
}

const fn flaw(reason: Reason) -> Expected {
    failed(reason, Some(200), true, Cost::Failure)
}

/// An error in a success, of which its code says what it costs.
const fn coded(cost: Cost) -> Expected {
    failed(Reason::ErrorInSuccess, Some(200), true, cost)
}

const fn status(status: u16, reason: Reason, cost: Cost) -> Expected {
    failed(reason, Some(status), !proves_unprocessed(status), cost)
}

/// The list of what proves that nothing was processed; what is not on it may have been.
const fn proves_unprocessed(status: u16) -> bool {
    match status {
        307 | 308 | 429 | 503 | 521 | 522 | 523 => true,
        408 | 499 => false,
        _ => status / 100 == 4,
    }
}

const fn failed(reason: Reason, status: Option<u16>, ambiguous: bool, cost: Cost) -> Expected {
    Expected::Failure(Failure { reason, status, ambiguous, cost, clock: Clock::Layer })
}

const fn served(body: BodyEnd) -> Expected {
    Expected::Served { status: 200, body, cost: Cost::Nothing }
}

const fn broken_stream(body: BodyEnd) -> Expected {
    Expected::Served { status: 200, body, cost: Cost::BrokenStream }
}
