//! What a body is: what it is said to be, and what its first bytes show.

use http::HeaderMap;
use http::header::CONTENT_TYPE;

use super::asked::Asked;

/// What a body is said to be.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Declared {
    Events,
    Json,
    /// Anything, and JSON or events in disguise.
    Plain,
    /// JSON, an object to a line.
    Lines,
    Html,
    Other,
}

impl Declared {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let Some(text) = headers.get(CONTENT_TYPE) else { return Self::Json };
        let text = text.to_str().unwrap_or_default();
        let text = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match text.as_str() {
            "text/event-stream" => Self::Events,
            "text/html" | "application/xhtml+xml" => Self::Html,
            "application/json" | "text/json" => Self::Json,
            "text/plain" | "application/octet-stream" => Self::Plain,
            "application/x-ndjson"
            | "application/ndjson"
            | "application/jsonl"
            | "application/x-jsonlines"
            | "application/stream+json" => Self::Lines,
            other if other.ends_with("+json") => Self::Json,
            _ => Self::Other,
        }
    }
}

/// What a body turns out to be, whatever it is said to be.
pub(super) enum Shape {
    Events,
    Object,
    List,
    Html,
    Text,
    Empty,
    /// Too little of it has arrived to tell.
    Pending,
}

impl Shape {
    pub(super) fn of(read: &[u8], declared: Declared, asked: Asked, whole: bool) -> Self {
        /// How the lines of an event stream begin.
        const FIELDS: [&[u8]; 5] = [b"data:", b"event:", b":", b"id:", b"retry:"];
        const PAGES: [&[u8]; 2] = [b"<!doctype html", b"<html"];

        let text = text_of(read);
        let begins_with = |any: &[&[u8]]| {
            any.iter().any(|field| {
                text.get(..field.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(field))
            })
        };
        let may_become = |any: &[&[u8]]| {
            any.iter().any(|field| {
                field.get(..text.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(text))
            })
        };
        let events = declared == Declared::Events || asked.stream;
        match text.first() {
            None if whole => Self::Empty,
            None => Self::Pending,
            // A byte order mark that has arrived in part.
            Some(_) if !whole && MARK.starts_with(text) => Self::Pending,
            Some(b'{') => Self::Object,
            Some(b'[') => Self::List,
            Some(_) if declared == Declared::Events => Self::Events,
            Some(_) if events && begins_with(&FIELDS) => Self::Events,
            // A text may be a page, unless something else was asked for.
            Some(_) if begins_with(&PAGES) && (declared != Declared::Plain || asked.data) => {
                Self::Html
            }
            Some(_) if whole => Self::Text,
            Some(_) if events && may_become(&FIELDS) || may_become(&PAGES) => Self::Pending,
            Some(_) => Self::Text,
        }
    }
}

/// A byte order mark in UTF-8.
const MARK: &[u8] = b"\xef\xbb\xbf";

/// The text without a byte order mark, which no JSON parser skips, and the blanks before it.
pub(super) fn text_of(read: &[u8]) -> &[u8] {
    read.strip_prefix(MARK).unwrap_or(read).trim_ascii_start()
}

/// The first line, if its end has arrived.
pub(super) fn first_line(read: &[u8]) -> Option<&[u8]> {
    let text = text_of(read);
    text.iter().position(|byte| *byte == b'\n').map(|end| &text[..end])
}
