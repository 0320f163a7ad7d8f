//! Looks into a response, and decides when it has seen enough.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use http::header::CONTENT_ENCODING;
use http::{HeaderMap, StatusCode};
use reqwest::Response;
use tokio::time::timeout_at;

use super::asked::Asked;
use super::flaw::{Answer, Flaw, FlawKind};
use super::object::{ContentRules, Object};
use super::peek::{Peek, Phase, Refusal};
use super::prefixed::{Arrival, Head, PrefixedBody};
use super::shape::{Declared, Shape, first_line, text_of};
use super::value::{First, first_of};
use super::watched::CommittedStream;
use super::{Check, Inspect, Inspected};
use crate::health::after;

/// Looks into a response whose headers came at `since`, until at most `until`. `on_panic` is called if the
/// user's own check panics.
pub(crate) async fn inspect(
    response: Response,
    asked: Asked,
    settings: &Inspect,
    since: Instant,
    until: Instant,
    on_panic: &(dyn Fn() + Sync),
) -> Inspected {
    let bodiless = matches!(
        response.status(),
        StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::PARTIAL_CONTENT
    );
    if !response.status().is_success() || bodiless || !asked.body || is_encoded(response.headers())
    {
        return Inspected::Pass(response);
    }
    let declared = Declared::of(response.headers());
    let may_be_empty = asked.nothing || response.status() == StatusCode::ACCEPTED;
    let length = response.content_length();
    match declared {
        Declared::Html if !asked.html => return Inspected::Failed(response, FlawKind::Html.into()),
        Declared::Html | Declared::Other => {
            return match length {
                Some(0) if !may_be_empty => Inspected::Failed(response, FlawKind::Empty.into()),
                _ => Inspected::Pass(response),
            };
        }
        Declared::Json | Declared::Plain | Declared::Lines
            if length.is_some_and(|length| length > settings.max_bytes as u64) =>
        {
            return Inspected::Pass(response);
        }
        _ => {}
    }
    let (head, body) = Head::cut_off(response);
    let look = Look {
        head,
        body: PrefixedBody::of(body),
        read: Vec::new(),
        whole: false,
        declared,
        asked,
        may_be_empty,
        settings,
        since,
        until,
        on_panic,
    };
    look.run().await
}

/// A response that is being looked into.
struct Look<'s> {
    head: Head,
    body: PrefixedBody,
    /// The data of what is held back.
    read: Vec<u8>,
    /// Whether that is all of it.
    whole: bool,
    declared: Declared,
    asked: Asked,
    may_be_empty: bool,
    settings: &'s Inspect,
    since: Instant,
    until: Instant,
    on_panic: &'s (dyn Fn() + Sync),
}

/// Why no more is read.
enum Stop {
    /// The transport failed.
    Failure,
    /// A limit was reached.
    Late,
}

impl Look<'_> {
    async fn run(mut self) -> Inspected {
        let is_stream = self.declared == Declared::Events;
        loop {
            match Shape::of(self.seen(), self.declared, self.asked, self.whole) {
                Shape::Events => return self.events().await,
                Shape::Html if !self.asked.html => return self.fail(FlawKind::Html),
                Shape::Object => return self.object().await,
                Shape::List => return self.list().await,
                Shape::Empty if self.declared == Declared::Events && !self.may_be_empty => {
                    return self.fail(FlawKind::Ended);
                }
                Shape::Empty if !self.may_be_empty => return self.fail(FlawKind::Empty),
                Shape::Html | Shape::Empty => return self.pass(),
                Shape::Text => return self.text().await,
                Shape::Pending if self.is_at_limit() && is_stream => return self.events().await,
                Shape::Pending if self.is_at_limit() => return self.pass(),
                Shape::Pending => {}
            }
            if let Err(stop) = self.more(is_stream).await {
                // A stream that is late is one all the same, and is followed to its end.
                return if is_stream { self.events_so_far(stop) } else { self.stopped(stop) };
            }
        }
    }

    /// A stream of events.
    async fn events(mut self) -> Inspected {
        let mut peek = self.peek();
        while *peek.phase() == Phase::Preamble {
            let read = self.read.len();
            match self.more(true).await {
                Ok(()) if self.whole => peek.end(),
                Ok(()) => peek.push(&self.read[read..]),
                Err(stop) => return self.late(stop, peek),
            }
        }
        self.committed(peek)
    }

    /// A stream of events that has said nothing to speak of when it was given up waiting.
    fn events_so_far(self, stop: Stop) -> Inspected {
        let peek = self.peek();
        self.late(stop, peek)
    }

    fn peek(&self) -> Peek {
        let mut peek = Peek::new(self.settings.max_bytes, self.settings.max_events, self.rules());
        peek.push(&self.read);
        if self.whole {
            peek.end();
        }
        peek
    }

    fn late(self, stop: Stop, peek: Peek) -> Inspected {
        match stop {
            Stop::Failure => self.fail(FlawKind::Broken),
            Stop::Late if self.may_fail_for_silence() => self.fail(FlawKind::Silent),
            Stop::Late => self.stream(peek),
        }
    }

    fn committed(self, peek: Peek) -> Inspected {
        match peek.phase() {
            Phase::Refused(Refusal::Error(said)) if !said.is_empty() => {
                let flaw = Flaw::said(said);
                self.fail(flaw)
            }
            Phase::Refused(Refusal::Error(_) | Refusal::Ended) => self.fail(FlawKind::Ended),
            Phase::Refused(Refusal::NoContent) => self.fail(FlawKind::NoContent),
            _ => match self.check(true) {
                Some(flaw) => self.fail(flaw),
                None => self.stream(peek),
            },
        }
    }

    fn stream(self, peek: Peek) -> Inspected {
        Inspected::Stream(Box::new(CommittedStream {
            head: self.head,
            body: self.body,
            peek,
            idle_timeout: self.settings.idle_timeout,
        }))
    }

    /// An object, which is waited for to its end; or, where lines may come, the first of them.
    async fn object(mut self) -> Inspected {
        let mut may_be_lines = self.declared == Declared::Lines || self.asked.stream;
        loop {
            if may_be_lines && let Some(line) = first_line(self.seen()) {
                may_be_lines = false;
                if let Some(object) = Object::of(line, false) {
                    let flaw = self.judge(&object);
                    return self.end(flaw);
                }
            }
            if let Err(stop) = self.read_on().await {
                return self.stopped(stop);
            }
            if self.whole {
                break;
            }
        }
        let object = Object::of(text_of(&self.read), false);
        let flaw = object.and_then(|object| self.judge(&object));
        self.end(flaw)
    }

    /// A list, of which only the first element is waited for: Gemini streams its answers in one. Where it
    /// is a batch of JSON-RPC, each counts.
    async fn list(mut self) -> Inspected {
        loop {
            match first_of(text_of(self.seen())) {
                First::NoObject => return self.text().await,
                First::Whole(first) => {
                    let object = Object::of(first.get().as_bytes(), false).unwrap_or_default();
                    if !(object.is_rpc && self.settings.json_rpc) {
                        let flaw = self.judge(&object);
                        return self.end(flaw);
                    }
                }
                First::Pending => {}
            }
            if let Err(stop) = self.read_on().await {
                return self.stopped(stop);
            }
            if self.whole {
                break;
            }
        }
        let batch: Vec<&serde_json::value::RawValue> =
            serde_json::from_slice(text_of(&self.read)).unwrap_or_default();
        let flaw = batch.into_iter().find_map(|element| {
            let object = Object::of(element.get().as_bytes(), false)?;
            self.judge(&object)
        });
        self.end(flaw)
    }

    /// Anything else, which only a check of the user's own has to see.
    async fn text(mut self) -> Inspected {
        if self.settings.check.is_none() {
            return self.pass();
        }
        while !self.whole {
            if let Err(stop) = self.read_on().await {
                return self.stopped(stop);
            }
        }
        self.end(None)
    }

    /// Reads on, up to the limits of a body in one piece.
    async fn read_on(&mut self) -> Result<(), Stop> {
        if self.is_at_limit() {
            return Err(Stop::Late);
        }
        self.more(false).await
    }

    /// What may be looked at. It is the same however the body is cut into frames.
    fn seen(&self) -> &[u8] {
        &self.read[..self.read.len().min(self.settings.max_bytes)]
    }

    fn is_at_limit(&self) -> bool {
        self.read.len() > self.settings.max_bytes
    }

    /// Holds back the next frame.
    async fn more(&mut self, is_stream: bool) -> Result<(), Stop> {
        let limit = match self.settings.first_content_timeout {
            Some(timeout) if is_stream => timeout,
            _ => self.settings.time_limit,
        };
        let until = after(self.since, limit).min(self.until);
        match timeout_at(until.into(), self.body.hold()).await {
            Err(_) => return Err(Stop::Late),
            Ok(Arrival::Data(data)) => self.read.extend_from_slice(&data),
            Ok(Arrival::Trailers) => {}
            Ok(Arrival::Failure) => return Err(Stop::Failure),
            Ok(Arrival::End) => self.whole = true,
        }
        Ok(())
    }

    /// Whether a stream without content is to fail: when there is no time left for another provider, this
    /// one is as good as it gets.
    fn may_fail_for_silence(&self) -> bool {
        let timeout = self.settings.first_content_timeout;
        timeout.is_some_and(|timeout| after(self.since, timeout) < self.until)
    }

    fn rules(&self) -> ContentRules {
        ContentRules {
            resource: self.asked.resource,
            json_rpc: self.settings.json_rpc,
            empty_answers: self.settings.empty_answers,
        }
    }

    fn judge(&self, object: &Object<'_>) -> Option<Flaw> {
        let rules = self.rules();
        if let Some(said) = object.error(rules) {
            return Some(Flaw::said(said.as_bytes()));
        }
        let empty = rules.empty_answers && !rules.resource && object.is_empty_answer();
        empty.then(|| FlawKind::NoContent.into())
    }

    /// What the user's own check says.
    fn check(&self, is_stream: bool) -> Option<Flaw> {
        let Check(check) = self.settings.check.as_ref()?;
        let answer = Answer {
            status: self.head.parts.status,
            headers: &self.head.parts.headers,
            body: &self.read,
            is_stream,
        };
        catch_unwind(AssertUnwindSafe(|| check(&answer))).unwrap_or_else(|_| {
            (self.on_panic)();
            None
        })
    }

    /// The end of a body in one piece.
    fn end(self, flaw: Option<Flaw>) -> Inspected {
        match flaw.or_else(|| self.check(!self.whole)) {
            Some(flaw) => self.fail(flaw),
            None => self.pass(),
        }
    }

    fn stopped(self, stop: Stop) -> Inspected {
        match stop {
            Stop::Failure => self.fail(FlawKind::Broken),
            Stop::Late => self.pass(),
        }
    }

    fn pass(self) -> Inspected {
        Inspected::Pass(self.head.with(self.body.into_body()))
    }

    fn fail(self, flaw: impl Into<Flaw>) -> Inspected {
        Inspected::Failed(self.head.with(self.body.into_body()), flaw.into())
    }
}

fn is_encoded(headers: &HeaderMap) -> bool {
    let mut encodings = headers.get_all(CONTENT_ENCODING).iter();
    encodings.any(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity"))
}
