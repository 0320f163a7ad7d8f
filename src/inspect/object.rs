//! What a JSON object that a provider answers with says about itself: an error, an answer, or neither.
//!
//! The same rules hold for a body and for the data of an event. Only what is plainly an error is taken for
//! one: a status of 200 said that all is well.

use std::borrow::Cow;

use serde_json::value::RawValue;

use super::value::{
    all, field, is_absent, is_blank, is_label, is_nothing, is_thought, list, says_a_number,
    says_something, string,
};
use crate::cause::{Blame, Cause};
use crate::splice::for_each_entry;

/// What counts as a flaw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ContentRules {
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
    holds_more: bool,
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
            "object" => {
                self.object = string(value);
                // That is the error itself.
                self.holds_more |= self.object.as_deref() != Some("error");
            }
            _ => {
                self.holds_more |= !is_nothing(value);
                match key {
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
    pub(super) fn error(&self, rules: ContentRules) -> Option<&'a str> {
        if self.is_rpc && rules.json_rpc {
            return self.rpc_error();
        }
        // A resource has an error of its own, which is no error of the request for it.
        let alone = !self.holds_more;
        if let Some(error) = self.error.filter(|error| !is_absent(error))
            && (alone || says_something(error) && !rules.resource)
        {
            return Some(self.said(error));
        }
        if let Some(errors) = self.errors.filter(|errors| alone && says_something(errors)) {
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
        if let Some(error) = groq.filter(|error| says_something(error)) {
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
        ends_badly || self.error.is_some_and(says_something)
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

/// Whether a code is a status of failure: `{"code":500,"message":"..","data":null}`.
fn is_failed_status(code: &RawValue) -> bool {
    code.get().trim_matches('"').parse().is_ok_and(|code: u16| (400..600).contains(&code))
}
