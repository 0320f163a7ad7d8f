//! What one event of a stream says: a beginning, content, an error, an end.
//!
//! The rules know the streams of Chat Completions, Responses and Anthropic Messages. Whatever else
//! comes is content, for holding back a stream that is not understood would be worse than missing
//! an error in it. Where the event's name and the `type` in its data differ, the data is believed.

use serde_json::value::RawValue;

use super::object::{Choice, ContentRules, Object, is_good_end};
use super::sse::SseEvent;
use super::value::{First, first_of, is_blank, list};

/// What one event says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// A keep-alive.
    Silence,
    /// The beginning of a known API's stream, in which there is nothing to see yet.
    Preamble,
    Content,
    /// The end of a choice: whether there is content in the same event, whether the end is a good one,
    /// and whether nothing more has to come.
    Finish {
        speaks: bool,
        good: bool,
        last: bool,
    },
    /// A last event that repeats the whole answer, and whether that is without content.
    Answer {
        empty: bool,
    },
    /// A last event that holds nothing.
    End,
    Error(Vec<u8>),
    /// An event of no known API.
    Unknown,
}

impl Meaning {
    pub(super) fn of(event: SseEvent<'_>, rules: ContentRules) -> Self {
        let SseEvent { name, data, cut } = event;
        let data = data.trim_ascii();
        if data == b"[DONE]" {
            return Self::End;
        }
        let object = match first_of_list(data) {
            Some(first) => Object::of(first, false),
            None => Object::of(data, cut),
        };
        let object = object.unwrap_or_default();
        if name == b"error" {
            return Self::Error(data.to_vec());
        }
        if let Some(said) = object.error(rules) {
            return Self::Error(said.as_bytes().to_vec());
        }
        if let Some(choices) = object.choices {
            return Self::of_choices(choices);
        }
        let kind = match &object.kind {
            Some(kind) => kind,
            None => str::from_utf8(name).unwrap_or_default(),
        };
        match kind {
            "ping" | "keepalive" | "keep-alive" | "heartbeat" => Self::Silence,
            "message_start" | "response.created" | "response.queued" | "response.in_progress" => {
                Self::Preamble
            }
            "response.failed" if !rules.resource => {
                let said = object.response_error().map(|said| said.as_bytes().to_vec());
                Self::Error(said.unwrap_or_else(|| data.to_vec()))
            }
            "response.completed"
            | "response.incomplete"
            | "response.cancelled"
            | "response.failed" => {
                Self::Answer { empty: kind == "response.completed" && object.has_empty_response() }
            }
            "message_stop" => Self::End,
            "message_delta" => match object.delta_stop() {
                Some(stop) => Self::Finish { speaks: false, good: is_good_end(&stop), last: false },
                None if object.delta.is_some() => Self::Preamble,
                None => Self::Content,
            },
            "content_block_start" => Self::of_part(object.block, ""),
            "content_block_delta" => Self::of_part(object.delta, ""),
            "content_block_stop" => Self::Preamble,
            "response.output_item.added" | "response.output_item.done" => {
                Self::of_part(object.item, "")
            }
            _ if kind.starts_with("response.") => {
                Self::of_part(object.delta.or(object.part).or(object.content), kind)
            }
            _ if data.is_empty() => Self::Silence,
            _ => Self::Unknown,
        }
    }

    /// An event whose content is in this part of it. What has no such part is not understood.
    fn of_part(part: Option<&RawValue>, name: &str) -> Self {
        match part {
            Some(part) if is_blank(part, name) => Self::Preamble,
            _ => Self::Content,
        }
    }

    /// A chunk of Chat Completions, or of the older Completions.
    fn of_choices(choices: &RawValue) -> Self {
        if !choices.get().starts_with('[') {
            return Self::Unknown;
        }
        let choices: Vec<_> = list(choices).into_iter().map(Choice::of).collect();
        let speaks = choices.iter().any(Choice::speaks);
        let mut ends = choices.iter().filter_map(|choice| choice.end.as_deref()).peekable();
        if ends.peek().is_some() {
            Self::Finish { speaks, good: ends.all(is_good_end), last: true }
        } else if speaks {
            Self::Content
        } else {
            Self::Preamble
        }
    }

    /// Whether an event makes sense that the stream ended in the midst of.
    pub(super) fn is_whole(event: &SseEvent<'_>) -> bool {
        let data = event.data.trim_ascii();
        // It is unknown of one that is too long to be kept, which counts as whole.
        event.cut
            || event.name == b"error"
            || data == b"[DONE]"
            || !data.is_empty() && serde_json::from_slice::<&RawValue>(data).is_ok()
    }
}

/// The first object, where the data is a list of them.
fn first_of_list(data: &[u8]) -> Option<&[u8]> {
    match data.starts_with(b"[").then(|| first_of(data))? {
        First::Whole(first) => Some(first.get().as_bytes()),
        First::Pending | First::NoObject => None,
    }
}
