//! A look into a successful response before it is handed over.
//!
//! Aggregators answer 200 and put the error into the body, or open a stream whose first event is
//! one. So a JSON body is held back until it is whole, and an event stream until its first content;
//! only then the response is the caller's. What was held back is handed on as it came, byte for
//! byte and chunk for chunk. Whenever in doubt, and at every limit, the response is passed on: the
//! status said that all is well.
//!
//! `asked` knows what the request wants, `shape` what a body is, `object` what a JSON object says (with
//! `value` for what is in it), `sse` cuts a stream into events, `meaning` knows what one of them says and `peek` how far the stream has come; all are given
//! bytes and nothing else. `look` waits for the bytes and decides, `watched` follows a stream to its end.

mod asked;
mod flaw;
mod look;
mod meaning;
mod object;
mod peek;
pub(crate) mod prefixed;
mod shape;
mod sse;
mod value;
mod watched;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use reqwest::Response;

pub(crate) use self::asked::Asked;
pub(crate) use self::flaw::FlawKind;
pub use self::flaw::{Answer, Flaw};
pub(crate) use self::look::inspect;
pub(crate) use self::prefixed::{Arrival, Head, PrefixedBody};
pub(crate) use self::watched::{CommittedStream, StreamEnd};

/// Looks for errors inside successful responses, for
/// [`inspect`](crate::ProviderChainBuilder::inspect).
///
/// A 2xx response fails over if it is
/// - JSON that says that it is an error: an `error` at its top that says something, `"type":"error"`,
///   `"object":"error"`, a choice with an error or with `"finish_reason":"error"`, a response of the
///   Responses API with `"status":"failed"`, and what other vendors write;
/// - HTML, where the request did not ask for HTML; or empty, where the request needs an answer: it sent
///   JSON and is no notification, or accepts JSON or a stream;
/// - an event stream with an error, or its end, before any content. Keep-alives, chunks that only name a
///   role, and empty messages, items and blocks are no content.
///
/// A request other than a POST asks for something that is there already, such as a job, whose own state
/// may be a failed one: an error with an object around it is then the answer.
///
/// What a body is, its first bytes decide, and not its `Content-Type`. Chat Completions, Responses and
/// Anthropic Messages are understood as streams; one of another kind is passed on with its first event
/// that is not an error. After its first content a stream is never replayed, but one that breaks off is
/// reported as [`StreamBroken`](crate::Event::StreamBroken) and counted as its provider's failure.
///
/// The price is that a JSON body, or a stream's preamble, is held back while it is looked into. At
/// each limit below, [`first_content_timeout`](Self::first_content_timeout) excepted, the response is
/// passed on as it is. Compressed bodies are passed on unseen: let the client decompress them (reqwest's
/// features `gzip` and so on).
///
/// ```
/// use std::time::Duration;
/// use reqwest_failover::{Inspect, Provider, ProviderChain};
///
/// let chain = ProviderChain::builder([Provider::cometapi("key-a"), Provider::openai("key-b")])
///     .inspect(Inspect::errors_in_success().first_content_timeout(Duration::from_secs(20)))
///     .build()?;
/// # Ok::<(), reqwest_failover::ConfigError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Inspect {
    max_bytes: usize,
    max_events: usize,
    time_limit: Duration,
    first_content_timeout: Option<Duration>,
    idle_timeout: Option<Duration>,
    json_rpc: bool,
    empty_answers: bool,
    check: Option<Check>,
}

impl Inspect {
    /// The defaults: 64 KiB, 64 events, 10 s, and no timeout for the first content or between two chunks.
    pub fn errors_in_success() -> Self {
        Self {
            max_bytes: 64 * 1024,
            max_events: 64,
            time_limit: Duration::from_secs(10),
            first_content_timeout: None,
            idle_timeout: None,
            json_rpc: false,
            empty_answers: false,
            check: None,
        }
    }

    /// An answer without content is a flaw, too: no choices, or choices, a message, a response or
    /// candidates that end well (`stop`, `length`, `end_turn` and the like) and hold no text, no tool call
    /// and no refusal. Off by default, since to some questions that is the answer.
    ///
    /// ```
    /// let inspect = reqwest_failover::Inspect::errors_in_success().empty_answers();
    /// ```
    pub fn empty_answers(mut self) -> Self {
        self.empty_answers = true;
        self
    }

    /// Tells apart the errors of JSON-RPC. A limit (`-32005`), a node that lags, an internal error and a
    /// refused key fail over; a contract that reverts, wrong parameters and other faults of the request are
    /// the right answer, which every node would give. In a batch one entry that must fail over is enough.
    ///
    /// ```
    /// use reqwest_failover::{Inspect, Provider, ProviderChain};
    ///
    /// let chain = ProviderChain::builder([
    ///     Provider::new("infura", "https://mainnet.infura.io/v3/key-a"),
    ///     Provider::new("alchemy", "https://eth-mainnet.g.alchemy.com/v2/key-b"),
    /// ])
    /// .inspect(Inspect::errors_in_success().json_rpc())
    /// .build()?;
    /// # Ok::<(), reqwest_failover::ConfigError>(())
    /// ```
    pub fn json_rpc(mut self) -> Self {
        self.json_rpc = true;
        self
    }

    /// A check of your own, of every answer that nothing else is wrong with: a body of text or JSON when it
    /// is whole, a stream when its first content is there. Not called for what is passed on unseen. It
    /// replaces an earlier one. A panic in it counts as no flaw.
    ///
    /// ```
    /// use reqwest_failover::{Flaw, Inspect};
    ///
    /// let inspect = Inspect::errors_in_success().also(|answer| {
    ///     let apology = b"currently at capacity";
    ///     let sorry = answer.body().windows(apology.len()).any(|part| part == apology);
    ///     sorry.then(|| Flaw::new("an apology for an answer").code("overloaded"))
    /// });
    /// ```
    pub fn also<F>(mut self, check: F) -> Self
    where
        F: Fn(&Answer<'_>) -> Option<Flaw> + Send + Sync + 'static,
    {
        self.check = Some(Check(Arc::new(check)));
        self
    }

    /// The most that is looked into. A JSON body that is longer is passed on without a look, at once
    /// if it has a `content-length`.
    pub fn max_bytes(mut self, bytes: usize) -> Self {
        self.max_bytes = bytes;
        self
    }

    /// The most events without content that are held back; comments are none.
    pub fn max_events(mut self, events: usize) -> Self {
        self.max_events = events;
        self
    }

    /// The longest that a response is held back after its headers.
    pub fn time_limit(mut self, limit: Duration) -> Self {
        self.time_limit = limit;
        self
    }

    /// How long after its headers an event stream may take to its first content. One that takes
    /// longer **fails over**; for event streams this replaces [`time_limit`](Self::time_limit).
    pub fn first_content_timeout(mut self, timeout: Duration) -> Self {
        self.first_content_timeout = Some(timeout);
        self
    }

    /// How long an event stream may be silent after its first content, while its reader waits. One that is
    /// silent for longer ends with an error, for which `reqwest::Error::is_timeout` is true, and counts as
    /// one that broke off. Comments and keep-alives are no silence. Off by default.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let inspect = reqwest_failover::Inspect::errors_in_success()
    ///     .first_content_timeout(Duration::from_secs(20))
    ///     .idle_timeout(Duration::from_secs(30));
    /// ```
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.idle_timeout = Some(timeout);
        self
    }
}

impl Inspect {
    /// How long a response may be held back after its headers.
    pub(crate) fn longest_hold(&self) -> Duration {
        self.time_limit.max(self.first_content_timeout.unwrap_or_default())
    }
}

/// The user's own check.
#[derive(Clone)]
struct Check(Arc<CheckFn>);

type CheckFn = dyn Fn(&Answer<'_>) -> Option<Flaw> + Send + Sync;

impl fmt::Debug for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Check")
    }
}

/// What became of a response that was looked into.
pub(crate) enum Inspected {
    /// It is handed on as it is.
    Pass(Response),
    /// An event stream that has begun well.
    Stream(Box<CommittedStream>),
    /// It is no success. The response is whole all the same.
    Failed(Response, Flaw),
}

#[cfg(test)]
mod tests;
