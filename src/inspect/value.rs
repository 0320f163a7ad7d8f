//! Values in JSON that was not parsed: whether they say anything, and what is in them.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::splice::for_each_entry;

/// `null`, and what some vendors write for it.
pub(super) fn is_absent(value: &RawValue) -> bool {
    matches!(value.get(), "null" | "false" | "\"\"")
}

/// Nothing at all.
pub(super) fn is_nothing(value: &RawValue) -> bool {
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
pub(super) fn says_something(value: &RawValue) -> bool {
    says_something_at(value, 0)
}

fn says_something_at(value: &RawValue, depth: usize) -> bool {
    if depth > DEEPEST {
        return true;
    }
    match value.get().as_bytes()[0] {
        b'n' | b'f' => false,
        b'"' => !is_blank_text(value.get(), true),
        b'{' => {
            let mut says = false;
            let read =
                for_each_entry(value.get(), |_, value| says |= says_something_at(value, depth + 1));
            read.is_err() || says
        }
        b'[' => list(value).into_iter().any(|value| says_something_at(value, depth + 1)),
        b't' => true,
        _ => says_a_number(value),
    }
}

pub(super) fn says_a_number(value: &RawValue) -> bool {
    value.get().trim_matches('"').parse::<f64>().is_ok_and(|number| number != 0.0)
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

/// What says of which kind a value is, and nothing else.
pub(super) fn is_label(key: &str) -> bool {
    matches!(key, "type" | "index" | "id" | "format" | "role" | "object" | "status")
}

/// Thoughts open with a blank line at some vendors.
pub(super) fn is_thought(key: &str) -> bool {
    key.contains("reasoning") || key.contains("thinking") || key == "summary"
}

/// An empty text, or one of nothing but whitespace where that says nothing.
fn is_blank_text(json: &str, whitespace_is_blank: bool) -> bool {
    let mut inside = json.get(1..json.len() - 1).unwrap_or_default();
    if !whitespace_is_blank {
        return inside.is_empty();
    }
    loop {
        let rest = inside.trim_ascii_start();
        let escaped = [r"\n", r"\r", r"\t"].iter().find_map(|blank| rest.strip_prefix(blank));
        match escaped {
            Some(rest) => inside = rest,
            None => return rest.is_empty(),
        }
    }
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
pub(super) fn field<'a>(object: &'a RawValue, name: &str) -> Option<&'a RawValue> {
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
pub(super) fn all(value: &RawValue, is_so: impl FnMut(&RawValue) -> bool) -> bool {
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
