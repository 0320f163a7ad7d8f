//! What a JSON object that a provider answers with says about itself: an error, an answer, or neither.
//!
//! The same rules hold for a body and for the data of an event. Only what is plainly an error is taken for
//! one: a status of 200 said that all is well.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::cause::{Blame, Cause};
use crate::splice::for_each_entry;

/// What counts as a flaw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rules {
    /// The state of a resource was asked for, and may be a failed one.
    pub(crate) resource: bool,
    /// An answer of JSON-RPC is a failure only where its error is no fault of the request.
    pub(crate) json_rpc: bool,
    /// An answer without content is a flaw.
    pub(crate) empty_answers: bool,
}

/// What is looked for at the top of a JSON object.
#[derive(Default)]
pub(super) struct Object<'a> {
    text: &'a str,
    pub(super) kind: Option<Cow<'a, str>>,
    object: Option<Cow<'a, str>>,
    status: Option<Cow<'a, str>>,
    error: Option<&'a RawValue>,
    errors: Option<&'a RawValue>,
    code: Option<&'a RawValue>,
    base_resp: Option<&'a RawValue>,
    x_groq: Option<&'a RawValue>,
    stop_reason: Option<&'a RawValue>,
    pub(super) choices: Option<&'a RawValue>,
    candidates: Option<&'a RawValue>,
    output: Option<&'a RawValue>,
    pub(super) response: Option<&'a RawValue>,
    /// The parts of an event that hold its content.
    pub(super) delta: Option<&'a RawValue>,
    pub(super) block: Option<&'a RawValue>,
    pub(super) item: Option<&'a RawValue>,
    pub(super) part: Option<&'a RawValue>,
    pub(super) content: Option<&'a RawValue>,
    /// Whether it has a message, as an error has.
    message: bool,
    /// Whether it holds anything that no error holds.
    beside: bool,
    /// Whether it is an answer of JSON-RPC.
    pub(super) is_rpc: bool,
}

impl<'a> Object<'a> {
    /// `None` if this is no JSON object. If it was `cut`, what its beginning says.
    pub(super) fn of(json: &'a [u8], cut: bool) -> Option<Self> {
        let text = match str::from_utf8(json) {
            Ok(text) => text,
            Err(error) if cut => str::from_utf8(&json[..error.valid_up_to()]).unwrap_or_default(),
            Err(_) => return None,
        };
        let mut object = Self { text, ..Self::default() };
        let read = for_each_entry(text, |key, value| object.take(key, value));
        (read.is_ok() || cut).then_some(object)
    }

    fn take(&mut self, key: &str, value: &'a RawValue) {
        match key {
            "type" => self.kind = string(value),
            "status" => self.status = string(value),
            "error" => self.error = Some(value),
            "errors" => self.errors = Some(value),
            "code" => self.code = Some(value),
            "base_resp" => self.base_resp = Some(value),
            "message" | "msg" => self.message = !is_nothing(value),
            "jsonrpc" => self.is_rpc = true,
            // What gateways add to an error.
            "detail" | "details" | "documentation_url" | "event_id" | "log_id" | "ok" | "param"
            | "path" | "request_id" | "requestId" | "success" | "timestamp" | "trace_id"
            | "user_id" => {}
            _ => {
                self.beside |= !is_nothing(value);
                match key {
                    "object" => {
                        self.object = string(value);
                        // Not beside an error, but the error.
                        self.beside &= self.object.as_deref() != Some("error");
                    }
                    "choices" => self.choices = Some(value),
                    "candidates" => self.candidates = Some(value),
                    "output" => self.output = Some(value),
                    "response" => self.response = Some(value),
                    "delta" => self.delta = Some(value),
                    "content_block" => self.block = Some(value),
                    "content" => self.content = Some(value),
                    "item" => self.item = Some(value),
                    "part" => self.part = Some(value),
                    "text" => self.content = self.content.or(Some(value)),
                    "stop_reason" => self.stop_reason = Some(value),
                    "x_groq" => self.x_groq = Some(value),
                    _ => {}
                }
            }
        }
    }

    /// The JSON that says what is wrong, if anything is.
    pub(super) fn error(&self, rules: Rules) -> Option<&'a str> {
        if self.is_rpc && rules.json_rpc {
            return self.rpc_error();
        }
        // A resource has an error of its own, which is no error of the request for it.
        let alone = !self.beside;
        if let Some(error) = self.error.filter(|error| !is_absent(error))
            && (alone || says_something(error, 0) && !rules.resource)
        {
            return Some(self.said(error));
        }
        if let Some(errors) = self.errors.filter(|errors| alone && says_something(errors, 0)) {
            return Some(self.said(errors));
        }
        let named =
            self.kind.as_deref() == Some("error") || self.object.as_deref() == Some("error");
        if named && (alone || !rules.resource) {
            return Some(self.text);
        }
        let refused = self
            .base_resp
            .is_some_and(|resp| field(resp, "status_code").is_some_and(says_a_number));
        if refused || alone && self.message && self.code.is_some_and(is_failed_status) {
            return Some(self.text);
        }
        if rules.resource {
            return None;
        }
        let groq = self.x_groq.and_then(|groq| field(groq, "error"));
        if let Some(error) = groq.filter(|error| says_something(error, 0)) {
            return Some(self.said(error));
        }
        if self.object.as_deref() == Some("response") && self.status.as_deref() == Some("failed") {
            return Some(self.text);
        }
        self.choices.filter(|choices| has_failed_choice(choices)).map(|_| self.text)
    }

    /// The whole text, which says most, if the reader of causes would see the error in it.
    fn said(&self, error: &'a RawValue) -> &'a str {
        if self.text.len() <= Cause::LOOKED_AT { self.text } else { error.get() }
    }

    fn rpc_error(&self) -> Option<&'a str> {
        let error = self.error.filter(|error| !is_absent(error))?;
        let said = match self.text.len() {
            0..=Cause::LOOKED_AT => Cow::Borrowed(self.text),
            _ => Cow::Owned(format!(r#"{{"jsonrpc":"2.0","error":{}}}"#, error.get())),
        };
        let blames = Cause::read(said.as_bytes()).blames;
        let failed = matches!(blames, Blame::Provider | Blame::Account | Blame::Model);
        failed.then_some(self.text)
    }

    /// Whether this is a whole answer that ends well and has no content.
    pub(super) fn is_empty_answer(&self) -> bool {
        if let Some(choices) = self.choices {
            return all(choices, |choice| Choice::of(choice).is_empty());
        }
        if self.object.as_deref() == Some("response") {
            let completed = self.status.as_deref() == Some("completed");
            return completed && self.output.is_some_and(is_empty_output);
        }
        if self.kind.as_deref() == Some("message") {
            let ended = self.stop_reason.and_then(string).is_some_and(|end| is_good_end(&end));
            return ended && self.content.is_some_and(|content| is_blank(content, ""));
        }
        self.candidates.is_some_and(|candidates| {
            all(candidates, |candidate| {
                let parts = field(candidate, "content").and_then(|content| field(content, "parts"));
                let end = field(candidate, "finishReason").and_then(string);
                end.is_some_and(|end| is_good_end(&end))
                    && parts.is_none_or(|parts| is_blank(parts, ""))
            })
        })
    }

    /// Why a message of Anthropic's stops, in a `message_delta`.
    pub(super) fn delta_stop(&self) -> Option<Cow<'a, str>> {
        self.delta.and_then(|delta| field(delta, "stop_reason")).and_then(string)
    }

    /// Whether the whole answer that a last event repeats has no content.
    pub(super) fn has_empty_response(&self) -> bool {
        let output = self.response.and_then(|response| field(response, "output"));
        output.is_some_and(is_empty_output)
    }

    /// The error within a `response.failed`.
    pub(super) fn response_error(&self) -> Option<&'a str> {
        field(self.response?, "error").filter(|error| !is_absent(error)).map(RawValue::get)
    }
}

/// One of the `choices` of Chat Completions, or of the older Completions.
#[derive(Default)]
pub(super) struct Choice<'a> {
    error: Option<&'a RawValue>,
    /// Why it ended.
    pub(super) end: Option<Cow<'a, str>>,
    delta: Option<&'a RawValue>,
    message: Option<&'a RawValue>,
    text: Option<&'a RawValue>,
}

impl<'a> Choice<'a> {
    pub(super) fn of(choice: &'a RawValue) -> Self {
        let mut found = Self::default();
        let _ = for_each_entry(choice.get(), |key, value| match key {
            "error" => found.error = Some(value),
            "finish_reason" => found.end = string(value).filter(|end| !end.is_empty()),
            "delta" => found.delta = Some(value).filter(|delta| delta.get().starts_with('{')),
            "message" => found.message = Some(value),
            "text" => found.text = Some(value),
            _ => {}
        });
        found
    }

    /// Whether it says that it has failed.
    fn has_failed(&self) -> bool {
        // DeepSeek: the request was interrupted for want of resources
        // <https://api-docs.deepseek.com/api/create-chat-completion>. OpenRouter says `error`
        // <https://openrouter.ai/docs/api-reference/errors>.
        let ends_badly =
            matches!(self.end.as_deref(), Some("error" | "insufficient_system_resource"));
        ends_badly || self.error.is_some_and(|error| says_something(error, 0))
    }

    /// Whether it holds anything that a reader sees.
    pub(super) fn speaks(&self) -> bool {
        let holds = |value: Option<&RawValue>| value.is_some_and(|value| !is_blank(value, ""));
        match self.delta {
            Some(delta) => !is_blank(delta, ""),
            None => holds(self.text) || holds(self.message),
        }
    }

    fn is_empty(&self) -> bool {
        let says_nothing = |message: &RawValue| {
            let mut empty = true;
            // Thoughts are no answer.
            let read = for_each_entry(message.get(), |key, value| {
                empty &= is_label(key) || is_thought(key) || is_blank(value, key);
            });
            read.is_ok() && empty
        };
        self.end.as_deref().is_some_and(is_good_end)
            && self.message.is_none_or(says_nothing)
            && self.text.is_none_or(|text| is_blank(text, ""))
            && (self.message.is_some() || self.text.is_some())
    }
}

/// Whether any choice has failed. One of several that has not is worth more than another try.
fn has_failed_choice(choices: &RawValue) -> bool {
    // Most have neither word, and need no look.
    let text = choices.get();
    let (mut any, mut all) = (false, true);
    if text.contains("\"error\"") || text.contains("\"insufficient_system_resource\"") {
        for choice in list(choices) {
            let failed = Choice::of(choice).has_failed();
            any |= failed;
            all &= failed;
        }
    }
    any && all
}

fn is_empty_output(output: &RawValue) -> bool {
    all(output, |item| {
        let kind = field(item, "type").and_then(string);
        kind.as_deref() == Some("reasoning") || is_blank(item, "")
    })
}

/// Whether this is how an answer ends that is whole, or as long as was allowed.
pub(super) fn is_good_end(end: &str) -> bool {
    matches!(
        end,
        "stop" | "length" | "end_turn" | "max_tokens" | "stop_sequence" | "STOP" | "MAX_TOKENS"
    )
}

/// `null`, and what some vendors write for it.
fn is_absent(value: &RawValue) -> bool {
    matches!(value.get(), "null" | "false" | "\"\"")
}

/// Nothing at all.
fn is_nothing(value: &RawValue) -> bool {
    is_absent(value) || list_or_object_is_empty(value.get())
}

fn list_or_object_is_empty(json: &str) -> bool {
    let inside = json
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .or_else(|| json.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')));
    inside.is_some_and(|inside| inside.trim_ascii().is_empty())
}

/// How deep a value is looked into. Deeper than any API's, and not deep enough to hurt.
const DEEPEST: usize = 8;

/// Whether an error says anything: a text, a number, `true`, at any depth.
fn says_something(value: &RawValue, depth: usize) -> bool {
    if depth > DEEPEST {
        return true;
    }
    match value.get().as_bytes()[0] {
        b'n' | b'f' => false,
        b'"' => !is_blank_text(value.get(), true),
        b'{' => {
            let mut says = false;
            let read =
                for_each_entry(value.get(), |_, value| says |= says_something(value, depth + 1));
            read.is_err() || says
        }
        b'[' => list(value).into_iter().any(|value| says_something(value, depth + 1)),
        b't' => true,
        _ => says_a_number(value),
    }
}

fn says_a_number(value: &RawValue) -> bool {
    value.get().trim_matches('"').parse::<f64>().is_ok_and(|number| number != 0.0)
}

/// Whether a code is a status of failure: `{"code":500,"message":"..","data":null}`.
fn is_failed_status(code: &RawValue) -> bool {
    code.get().trim_matches('"').parse().is_ok_and(|code: u16| (400..600).contains(&code))
}

/// Whether a value holds nothing that a reader sees.
pub(super) fn is_blank(value: &RawValue, name: &str) -> bool {
    is_blank_at(value, is_thought(name), 0)
}

fn is_blank_at(value: &RawValue, thought: bool, depth: usize) -> bool {
    if depth > DEEPEST {
        return false;
    }
    match value.get().as_bytes()[0] {
        b'n' | b'f' | b't' => true,
        b'"' => is_blank_text(value.get(), thought),
        b'{' => {
            let mut blank = true;
            let read = for_each_entry(value.get(), |key, value| {
                let thought = thought || is_thought(key);
                blank &= is_label(key) || is_blank_at(value, thought, depth + 1);
            });
            read.is_ok() && blank
        }
        b'[' => list(value).into_iter().all(|value| is_blank_at(value, thought, depth + 1)),
        _ => false,
    }
}

/// What tells of which kind a value is, and not what it says.
fn is_label(key: &str) -> bool {
    matches!(key, "type" | "index" | "id" | "format" | "role" | "object" | "status")
}

/// Thoughts open with a blank line at some vendors.
fn is_thought(key: &str) -> bool {
    key.contains("reasoning") || key.contains("thinking") || key == "summary"
}

/// An empty text, or one of nothing but whitespace where that says nothing.
fn is_blank_text(json: &str, whitespace_is_blank: bool) -> bool {
    let mut inside = json.get(1..json.len() - 1).unwrap_or_default();
    while whitespace_is_blank {
        let rest = inside.trim_ascii_start();
        let rest = [r"\n", r"\r", r"\t"]
            .iter()
            .find_map(|escape| rest.strip_prefix(escape))
            .unwrap_or(rest);
        if rest.len() == inside.len() {
            break;
        }
        inside = rest;
    }
    inside.is_empty()
}

pub(super) fn string(value: &RawValue) -> Option<Cow<'_, str>> {
    let json = value.get();
    let inside = json.strip_prefix('"')?.strip_suffix('"')?;
    match inside.contains('\\') {
        true => serde_json::from_str(json).ok().map(Cow::Owned),
        false => Some(Cow::Borrowed(inside)),
    }
}

/// The last entry of this name.
fn field<'a>(object: &'a RawValue, name: &str) -> Option<&'a RawValue> {
    let mut found = None;
    let _ = for_each_entry(object.get(), |key, value| {
        if key == name {
            found = Some(value);
        }
    });
    found
}

/// The elements of a list; none if it is no list.
pub(super) fn list(value: &RawValue) -> Vec<&RawValue> {
    serde_json::from_str(value.get()).unwrap_or_default()
}

/// Whether this is a list, and all of its elements are so.
fn all(value: &RawValue, is_so: impl FnMut(&RawValue) -> bool) -> bool {
    value.get().starts_with('[') && list(value).into_iter().all(is_so)
}

/// The first element of a list that has arrived so far, if it has arrived whole.
pub(super) enum First<'a> {
    Whole(&'a RawValue),
    /// There is more to come before that is known.
    Pending,
    /// It is no object, or there is none.
    NoObject,
}

/// Looks for the first element of a list.
pub(super) fn first_of(list: &[u8]) -> First<'_> {
    let inside = list.strip_prefix(b"[").unwrap_or(list);
    match inside.trim_ascii_start().first() {
        None => return First::Pending,
        Some(b'{') => {}
        Some(_) => return First::NoObject,
    }
    let mut deserializer = serde_json::Deserializer::from_slice(inside);
    match <&RawValue>::deserialize(&mut deserializer) {
        Ok(first) => First::Whole(first),
        Err(error) if error.is_eof() => First::Pending,
        Err(_) => First::NoObject,
    }
}
