//! What the events of a stream, or a JSON body, say about it: preamble, content, an error, the end.
//!
//! The rules know the streams of Chat Completions, Responses and Anthropic Messages. Whatever else
//! comes is content, for holding back a stream that is not understood would be worse than missing
//! an error in it. Where the event's name and the `type` in its data differ, the data is believed.

use serde_json::Value;
use serde_json::value::RawValue;

use super::sse::{Decoder, SseEvent};
use crate::splice::for_each_entry;

/// Follows a stream from its first byte to its last. How its bytes are cut into chunks makes no
/// difference.
pub(crate) struct Peek {
    decoder: Decoder,
    bytes_left: usize,
    events_left: usize,
    /// Whether the stream is one of the known APIs', which end in a marker.
    ends_in_marker: bool,
    /// Whether a choice told why it is over. Not every server sends `[DONE]` after that.
    finished: bool,
    phase: Phase,
}

/// How far a stream has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Nothing yet but what precedes content.
    Preamble,
    /// An error came before any content, and said this; or the end did, and said nothing.
    Refused(Vec<u8>),
    /// There was content, or a limit was reached.
    Content,
    /// The stream's last word was heard, or it ended as it should.
    Complete,
    /// After its content came an error, or an end without the marker.
    Broken,
}

impl Peek {
    /// The most that is kept of an event after the commit.
    const KEPT: usize = 64 * 1024;

    pub(crate) fn new(max_bytes: usize, max_events: usize) -> Self {
        let mut peek = Self {
            decoder: Decoder::new(max_bytes),
            bytes_left: max_bytes,
            events_left: max_events,
            ends_in_marker: false,
            finished: false,
            phase: Phase::Preamble,
        };
        if max_bytes == 0 || max_events == 0 {
            peek.commit();
        }
        peek
    }

    pub(crate) fn phase(&self) -> &Phase {
        &self.phase
    }

    /// Whether a caller who stops reading here has had the whole answer.
    pub(crate) fn may_stop(&self) -> bool {
        self.phase == Phase::Complete || (self.phase == Phase::Content && self.finished)
    }

    /// Reads what has arrived.
    pub(crate) fn push(&mut self, mut bytes: &[u8]) {
        if self.phase == Phase::Preamble {
            let within = bytes.len().min(self.bytes_left);
            let mut peeked = &bytes[..within];
            while self.phase == Phase::Preamble {
                let Some(event) = self.decoder.next(&mut peeked) else { break };
                let meaning = Meaning::of(event);
                self.events_left -= 1;
                self.take(meaning);
                if self.events_left == 0 && self.phase == Phase::Preamble {
                    self.commit();
                }
            }
            self.bytes_left -= within;
            if self.bytes_left == 0 && self.phase == Phase::Preamble {
                self.commit();
            }
            bytes = &bytes[within - peeked.len()..];
        }
        while self.phase == Phase::Content {
            let Some(event) = self.decoder.next(&mut bytes) else { break };
            let meaning = Meaning::of(event);
            self.take(meaning);
        }
    }

    /// The stream has ended, and not by a failure of the transport.
    pub(crate) fn end(&mut self) {
        if matches!(self.phase, Phase::Preamble | Phase::Content)
            && let Some(event) = self.decoder.finish()
        {
            let meaning = Meaning::of(event);
            // What was cut in the middle and makes no sense is no content.
            if meaning != Meaning::Unknown {
                self.take(meaning);
            }
        }
        match self.phase {
            Phase::Preamble => self.phase = Phase::Refused(Vec::new()),
            Phase::Content if self.ends_in_marker && !self.finished => self.phase = Phase::Broken,
            Phase::Content => self.phase = Phase::Complete,
            _ => {}
        }
    }

    fn take(&mut self, meaning: Meaning) {
        let preamble = self.phase == Phase::Preamble;
        self.ends_in_marker |= !matches!(meaning, Meaning::Silence | Meaning::Unknown);
        match meaning {
            Meaning::Silence | Meaning::Preamble => {}
            Meaning::Unknown | Meaning::Content => self.commit(),
            Meaning::Finish => {
                self.commit();
                self.finished = true;
            }
            Meaning::Error(said) if preamble => self.phase = Phase::Refused(said),
            Meaning::End if preamble => self.phase = Phase::Refused(Vec::new()),
            Meaning::Error(_) => self.phase = Phase::Broken,
            Meaning::End | Meaning::Answer => self.phase = Phase::Complete,
        }
    }

    fn commit(&mut self) {
        if self.phase == Phase::Preamble {
            self.phase = Phase::Content;
            self.decoder.keep_at_most(Self::KEPT);
        }
    }
}

/// What one event says.
#[derive(Debug, PartialEq, Eq)]
enum Meaning {
    /// A keep-alive.
    Silence,
    /// The beginning of a known API's stream.
    Preamble,
    Content,
    /// The end of a choice.
    Finish,
    /// A last event that repeats the whole answer.
    Answer,
    /// A last event that holds nothing.
    End,
    Error(Vec<u8>),
    /// An event of no known API.
    Unknown,
}

impl Meaning {
    fn of(event: SseEvent<'_>) -> Self {
        let SseEvent { name, data, cut } = event;
        let data = data.trim_ascii();
        if data == b"[DONE]" {
            return Self::End;
        }
        let fields = TopLevelFields::of(data, cut).unwrap_or_default();
        if name == b"error" || fields.is_error() {
            return Self::Error(data.to_vec());
        }
        if let Some(choices) = fields.choices {
            return Self::of_choices(choices);
        }
        let kind = match &fields.kind {
            Some(kind) => kind,
            None => str::from_utf8(name).unwrap_or_default(),
        };
        match kind {
            "ping" | "keepalive" | "keep-alive" | "heartbeat" => Self::Silence,
            "message_start" | "response.created" | "response.queued" | "response.in_progress" => {
                Self::Preamble
            }
            "response.failed" => {
                Self::Error(fields.response_error().unwrap_or_else(|| data.to_vec()))
            }
            "response.completed" | "response.incomplete" | "response.cancelled" => Self::Answer,
            "message_stop" => Self::End,
            "content_block_start"
            | "content_block_delta"
            | "content_block_stop"
            | "message_delta" => Self::Content,
            _ if kind.starts_with("response.") => Self::Content,
            _ if data.is_empty() => Self::Silence,
            _ => Self::Unknown,
        }
    }

    /// A chunk of Chat Completions, or of the older Completions.
    fn of_choices(choices: &RawValue) -> Self {
        let Ok(choices) = serde_json::from_str::<Vec<Value>>(choices.get()) else {
            return Self::Unknown;
        };
        let says = |choice: &Value, name| choice.get(name).is_some_and(|value| !is_blank(value));
        let speaks = |choice: &Value| match choice.get("delta") {
            Some(Value::Object(delta)) => {
                delta.iter().any(|(name, value)| name != "role" && !is_blank(value))
            }
            _ => says(choice, "text") || says(choice, "message"),
        };
        if choices.iter().any(|choice| says(choice, "finish_reason")) {
            Self::Finish
        } else if choices.iter().any(speaks) {
            Self::Content
        } else {
            Self::Preamble
        }
    }
}

/// What a JSON body says went wrong, although its status says that nothing did.
pub(crate) fn is_error_body(body: &[u8]) -> bool {
    TopLevelFields::of(body, false)
        .is_some_and(|fields| fields.is_error() || fields.is_failed_response())
}

/// What is looked for at the top of a JSON object.
#[derive(Default)]
struct TopLevelFields<'a> {
    kind: Option<String>,
    object: Option<String>,
    status: Option<String>,
    error: Option<&'a RawValue>,
    choices: Option<&'a RawValue>,
    response: Option<&'a RawValue>,
}

impl<'a> TopLevelFields<'a> {
    /// `None` if this is no JSON object. If it was `cut`, what its beginning tells.
    fn of(json: &'a [u8], cut: bool) -> Option<Self> {
        let text = match str::from_utf8(json) {
            Ok(text) => text,
            Err(error) if cut => str::from_utf8(&json[..error.valid_up_to()]).unwrap_or_default(),
            Err(_) => return None,
        };
        let mut fields = Self::default();
        let string = |value: &RawValue| serde_json::from_str(value.get()).ok();
        let read = for_each_entry(text, |key, value| match key {
            "type" => fields.kind = string(value),
            "object" => fields.object = string(value),
            "status" => fields.status = string(value),
            "error" => fields.error = Some(value),
            "choices" => fields.choices = Some(value),
            "response" => fields.response = Some(value),
            _ => {}
        });
        (read.is_ok() || cut).then_some(fields)
    }

    fn is_error(&self) -> bool {
        self.kind.as_deref() == Some("error")
            || self.error.is_some_and(|error| !matches!(error.get(), "null" | "false" | "\"\""))
    }

    /// Other objects, such as a batch, may have failed too; to tell so is their purpose.
    fn is_failed_response(&self) -> bool {
        self.object.as_deref() == Some("response") && self.status.as_deref() == Some("failed")
    }

    /// The error within a `response.failed`.
    fn response_error(&self) -> Option<Vec<u8>> {
        let response = Self::of(self.response?.get().as_bytes(), false)?;
        response.error.map(|error| error.get().as_bytes().to_vec())
    }
}

fn is_blank(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(entries) => entries.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROLE: &str = r#"{"object":"chat.completion.chunk","choices":[{"index":0,"delta":{"role":"assistant","content":"","refusal":null},"finish_reason":null}]}"#;
    const HELLO: &str =
        r#"{"object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"Hello"}}]}"#;
    const STOP: &str = r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#;
    const USAGE: &str = r#"{"choices":[],"usage":{"total_tokens":9}}"#;

    fn peek() -> Peek {
        Peek::new(64 * 1024, 64)
    }

    /// The phase after each event, in initials, and the one after the end.
    fn phases(stream: &str) -> String {
        let initial = |phase: &Phase| match phase {
            Phase::Preamble => 'p',
            Phase::Refused(_) => 'R',
            Phase::Content => 'c',
            Phase::Complete => 'C',
            Phase::Broken => 'B',
        };
        let mut peek = peek();
        let mut phases = String::new();
        for event in stream.split_inclusive("\n\n") {
            peek.push(event.as_bytes());
            phases.push(initial(peek.phase()));
        }
        peek.end();
        phases.push(initial(peek.phase()));
        phases
    }

    fn data(events: &[&str]) -> String {
        events.iter().map(|event| format!("data: {event}\n\n")).collect()
    }

    /// Events of an API that names its events as in their data.
    fn named(kinds: &[(&str, &str)]) -> String {
        let event = |(kind, more): &(&str, &str)| {
            format!("event: {kind}\ndata: {{\"type\":\"{kind}\"{more}}}\n\n")
        };
        kinds.iter().map(event).collect()
    }

    #[test]
    fn follows_chat_completions() {
        for (events, expected) in [
            (&[ROLE, HELLO, STOP, USAGE, "[DONE]"][..], "pcccCC"),
            (&[ROLE, HELLO, STOP], "pccC"),
            (&[ROLE, HELLO], "pcB"),
            (&[ROLE, HELLO, "[DONE]"], "pcCC"),
            (&[ROLE, ROLE, "[DONE]"], "ppRR"),
            (&[ROLE], "pR"),
            (&["[DONE]"], "RR"),
            (&[USAGE, ROLE, HELLO], "ppcB"),
            (&[ROLE, r#"{"error":{"message":"overloaded"}}"#, HELLO], "pRRR"),
            (&[ROLE, HELLO, r#"{"error":{"message":"overloaded"}}"#, "[DONE]"], "pcBBB"),
            (&[r#"{"error":"no quota"}"#], "RR"),
            (&[r#"{"error":null,"choices":[{"delta":{"content":"a"}}]}"#], "cB"),
            (&[r#"{"choices":[{"delta":{"role":"assistant","content":"a"}}]}"#], "cB"),
            (
                &[
                    r#"{"choices":[{"delta":{"role":"assistant","content":null,"tool_calls":[{}]}}]}"#,
                ],
                "cB",
            ),
            (&[r#"{"choices":[{"delta":{"reasoning_content":"hm"}}]}"#], "cB"),
            (&[r#"{"choices":[{"delta":{"role":"assistant"},"finish_reason":""}]}"#], "pR"),
            (&[r#"{"choices":[{"text":""}]}"#, r#"{"choices":[{"text":"a"}]}"#], "pcB"),
            (&[r#"{"choices":[{"delta":{}},{"delta":{"content":"b"}}]}"#], "cB"),
        ] {
            assert_eq!(phases(&data(events)), expected, "{events:?}");
        }
    }

    #[test]
    fn follows_responses() {
        let created = ("response.created", r#","response":{"status":"in_progress","error":null}"#);
        let progress = ("response.in_progress", r#","response":{}"#);
        let delta = ("response.output_text.delta", r#","delta":"Hi""#);
        let completed = ("response.completed", r#","response":{"status":"completed"}"#);
        let failed = (
            "response.failed",
            r#","response":{"status":"failed","error":{"code":"server_error","message":"Oh."}}"#,
        );
        let error = ("error", r#","code":"server_error","message":"Oh.""#);
        for (events, expected) in [
            (&[created, progress, delta, completed][..], "ppcCC"),
            (&[created, progress, delta], "ppcB"),
            (&[created, ("response.queued", ""), progress], "pppR"),
            (&[created, failed], "pRR"),
            (&[created, error], "pRR"),
            (&[created, delta, failed], "pcBB"),
            (&[created, delta, error], "pcBB"),
            (&[created, completed], "pCC"),
            (&[created, delta, ("response.incomplete", "")], "pcCC"),
            (&[created, ("response.output_item.added", "")], "pcB"),
        ] {
            let stream = named(events);
            assert_eq!(phases(&stream), expected, "{stream}");
            let unnamed: String =
                stream.split_inclusive('\n').filter(|line| !line.starts_with("event")).collect();
            assert_eq!(phases(&unnamed), expected, "{unnamed}");
        }
    }

    #[test]
    fn follows_anthropic_messages() {
        let start = ("message_start", r#","message":{"content":[],"stop_reason":null}"#);
        let block = ("content_block_start", r#","content_block":{"type":"text","text":""}"#);
        let delta = ("content_block_delta", r#","delta":{"type":"text_delta","text":"Hi"}"#);
        let stop = ("message_stop", "");
        let error = ("error", r#","error":{"type":"overloaded_error","message":"Overloaded"}"#);
        for (events, expected) in [
            (
                &[
                    start,
                    ("ping", ""),
                    block,
                    delta,
                    ("content_block_stop", ""),
                    ("message_delta", ""),
                    stop,
                ][..],
                "ppccccCC",
            ),
            (&[start, ("ping", ""), block, delta], "ppccB"),
            (&[start, ("ping", ""), error], "ppRR"),
            (&[error], "RR"),
            (&[start, block, delta, error], "pccBB"),
            (&[start, stop], "pRR"),
            (&[start, ("ping", ""), ("ping", "")], "pppR"),
        ] {
            assert_eq!(phases(&named(events)), expected, "{events:?}");
        }
    }

    #[test]
    fn passes_an_unknown_stream_on_with_its_first_event() {
        for (stream, expected) in [
            (": hi\n\n: hi\n\ndata: 1\n\ndata: 2\n\n", "ppccC"),
            ("data: hello\n\n", "cC"),
            ("data: {\"candidates\":[]}\n\n", "cC"),
            ("data: [1]\n\n", "cC"),
            ("data: \u{fffd}\n\n", "cC"),
            ("event: tick\ndata: {}\n\n", "cC"),
            ("event: tick\n\n", "pR"),
            ("data:\n\nretry: 9\n\nevent: ping\n\nevent: heartbeat\ndata: {}\n\n", "ppppR"),
            ("event: error\n\n", "RR"),
            ("event: error\ndata: oh\n\n", "RR"),
            ("data: {\"type\":\"error\"}\n\n", "RR"),
            ("data: x\n\nevent: error\ndata: oh\n\n", "cBB"),
            ("data: x\n\ndata: [DONE]", "ccC"),
            ("", "R"),
            (": only\n\n: comments\n\n", "ppR"),
        ] {
            assert_eq!(phases(stream), expected, "{stream:?}");
        }
    }

    #[test]
    fn an_end_without_a_blank_line_is_an_end_too() {
        let begun = data(&[ROLE, HELLO]);
        assert_eq!(phases(&format!("{begun}data: [DONE]")), "pccC");
        assert_eq!(phases(&format!("{begun}data: [DONE]\r\n")), "pccC");
        assert_eq!(phases(&format!("{begun}data: {{\"error\":1}}")), "pccB");
        assert_eq!(phases("data: {\"error\":1}"), "pR");
        // A content that was cut is none.
        assert_eq!(phases(&format!("data: {ROLE}\n\ndata: {}", &HELLO[..60])), "ppR");
        assert_eq!(phases("data: hel"), "pR");
    }

    #[test]
    fn keeps_what_a_refusal_said() {
        for (stream, expected) in [
            ("data: {\"error\":{\"message\":\"no\"}}\n\n", "{\"error\":{\"message\":\"no\"}}"),
            ("event: error\ndata: no\n\n", "no"),
            (
                "data: {\"type\":\"response.failed\",\"response\":{\"error\": {\"message\":\"no\"}}}\n\n",
                "{\"message\":\"no\"}",
            ),
            ("data: {\"type\":\"response.failed\"}\n\n", "{\"type\":\"response.failed\"}"),
            ("data: [DONE]\n\n", ""),
        ] {
            let mut peek = peek();
            peek.push(stream.as_bytes());
            assert_eq!(*peek.phase(), Phase::Refused(expected.into()), "{stream}");
        }
    }

    #[test]
    fn commits_at_its_limits() {
        let mut peek = Peek::new(100, 64);
        peek.push(&b": keep-alive\n\n".repeat(7));
        assert_eq!(*peek.phase(), Phase::Preamble);
        peek.push(b": keep-alive\n\ndata: {\"error\":1}\n\n");
        assert_eq!(*peek.phase(), Phase::Broken);

        let mut peek = Peek::new(64 * 1024, 3);
        peek.push(b"event: ping\n\nevent: ping\n\n: comment\n\n");
        assert_eq!(*peek.phase(), Phase::Preamble);
        peek.push(b"event: ping\n\n");
        assert_eq!(*peek.phase(), Phase::Content);

        assert_eq!(*Peek::new(0, 1).phase(), Phase::Content);
        assert_eq!(*Peek::new(1, 0).phase(), Phase::Content);
    }

    #[test]
    fn hears_the_last_word_of_an_event_that_is_too_long_to_keep() {
        let begun = named(&[("response.created", ""), ("response.output_text.delta", "")]);
        let text = format!(r#","response":{{"output":"{}"}}"#, "x".repeat(Peek::KEPT));
        for last in [
            named(&[("response.completed", &text)]),
            format!("data: {{\"type\":\"response.completed\"{text}}}\n\n"),
            format!("data: {{\"type\":\"response.completed\"{text}}}"),
        ] {
            assert_eq!(phases(&format!("{begun}{last}")).chars().last(), Some('C'));
        }
        let long = format!("data: {}\n\n", "é".repeat(Peek::KEPT));
        assert_eq!(phases(&format!("{begun}{long}")), "pccB");
    }

    #[test]
    fn tells_an_error_body() {
        for body in [
            r#"{"error":{"message":"no"}}"#,
            r#"{"error":{}}"#,
            r#"{"error":"no","id":1}"#,
            r#" {"id":1,"error":true} "#,
            r#"{"type":"error","message":"no"}"#,
            r#"{"object":"response","status":"failed","error":null}"#,
            "\u{feff}{\"error\":1}",
        ] {
            assert!(is_error_body(body.as_bytes()), "{body}");
        }
        for body in [
            "",
            "error",
            "[]",
            r#"[{"error":1}]"#,
            "{}",
            r#"{"error":null}"#,
            r#"{"error":false}"#,
            r#"{"error":""}"#,
            r#"{"error":1"#,
            r#"{"error":1} x"#,
            r#"{"a":{"error":1}}"#,
            r#"{"choices":[{"message":{"content":"{\"error\":1}"}}]}"#,
            r#"{"object":"response","status":"incomplete"}"#,
            r#"{"object":"batch","status":"failed"}"#,
            r#"{"type":"message"}"#,
        ] {
            assert!(!is_error_body(body.as_bytes()), "{body}");
        }
        assert!(!is_error_body(b"{\"error\":\"\xff\"}"));
    }
}
