//! What a request asked for, and so what a right answer to it looks like.

use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, Method};
use reqwest::Request;

use crate::splice::for_each_entry;

/// What a request accepts as an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    /// Any body at all.
    pub(super) body: bool,
    pub(super) html: bool,
    /// JSON or events, by name.
    pub(super) data: bool,
    /// An empty body is a right answer.
    pub(super) nothing: bool,
    /// Events, or lines of JSON.
    pub(super) stream: bool,
    /// The state of something that is there already, which may be that of a failure.
    pub(super) resource: bool,
}

impl Asked {
    pub(crate) fn of(request: &Request) -> Self {
        let accepted = |kinds: &[&str]| mentions(request.headers(), &ACCEPT, kinds);
        let html = accepted(&["html"]);
        let events = accepted(&["event-stream"]);
        let data = events || accepted(&["json"]);
        let anything =
            !request.headers().contains_key(ACCEPT) || accepted(&["*/*", "application/*"]);
        let sends_json = mentions(request.headers(), &CONTENT_TYPE, &["json"]);
        let body = request.body().map(|body| body.as_bytes().unwrap_or_default());
        let is_upload = body.is_some() && !sends_json;
        let method = request.method();
        let needs_no_answer = match *method {
            Method::PUT | Method::PATCH | Method::DELETE => true,
            _ => is_upload || body.is_some_and(is_notification),
        };
        Self {
            body: !matches!(*method, Method::HEAD | Method::CONNECT),
            html: html || !(data || anything),
            data,
            nothing: !(data || anything && sends_json) || needs_no_answer && !events,
            stream: events
                || body.is_some_and(asks_for_stream)
                || request.url().path().ends_with("streamGenerateContent"),
            resource: *method != Method::POST,
        }
    }
}

/// How far into a body a key is looked for, from both ends: between them is the prompt, which may be long.
const ENDS: usize = 1024;

/// Whether a body says `"stream": true`. Within a string it would be `\"stream\"`.
fn asks_for_stream(body: &[u8]) -> bool {
    find_key(body, b"\"stream\"").is_some_and(|rest| {
        let value = rest.trim_ascii_start().strip_prefix(b":");
        value.is_some_and(|value| value.trim_ascii_start().starts_with(b"true"))
    })
}

/// Whether this is a call of JSON-RPC that wants no answer.
fn is_notification(body: &[u8]) -> bool {
    if find_key(body, b"\"jsonrpc\"").is_none() {
        return false;
    }
    let Ok(text) = str::from_utf8(body) else { return false };
    let (mut calls, mut has_id) = (false, false);
    let read = for_each_entry(text, |key, _| {
        calls |= key == "method";
        has_id |= key == "id";
    });
    read.is_ok() && calls && !has_id
}

/// What comes after a key, if it is near an end of the body.
fn find_key<'b>(body: &'b [u8], key: &[u8]) -> Option<&'b [u8]> {
    let find = |from: usize, to: usize| {
        let mut part = &body[from..to];
        // Most bytes are no quote: this is far faster than to compare at each of them.
        while let Some(quote) = part.iter().position(|byte| *byte == key[0]) {
            part = &part[quote..];
            if part.starts_with(key) {
                return Some(&body[to - part.len() + key.len()..]);
            }
            part = &part[1..];
        }
        None
    };
    find(0, body.len().min(ENDS)).or_else(|| {
        let from = body.len().saturating_sub(ENDS).max(ENDS - key.len());
        (from < body.len()).then(|| find(from, body.len())).flatten()
    })
}

/// Whether a header's values, in any case, hold one of these.
pub(super) fn mentions(headers: &HeaderMap, name: &HeaderName, kinds: &[&str]) -> bool {
    headers.get_all(name).iter().any(|value| {
        let value = value.as_bytes();
        let holds = |kind: &&str| {
            value.windows(kind.len()).any(|part| part.eq_ignore_ascii_case(kind.as_bytes()))
        };
        kinds.iter().any(holds)
    })
}

#[cfg(test)]
mod tests {
    use reqwest::Url;

    use super::*;

    fn asked(method: Method, headers: &[(&str, &str)], body: Option<&str>) -> Asked {
        let url = Url::parse("https://a.example/v1/x").unwrap();
        let mut request = Request::new(method, url);
        for (name, value) in headers {
            let name = HeaderName::try_from(*name).unwrap();
            request.headers_mut().append(name, value.parse().unwrap());
        }
        *request.body_mut() = body.map(|body| body.to_owned().into());
        Asked::of(&request)
    }

    const JSON: (&str, &str) = ("content-type", "application/json");

    #[test]
    fn a_stream_is_asked_for_in_the_body_in_a_header_or_in_the_path() {
        let long = format!(r#"{{"messages":"{}","stream":true}}"#, "x".repeat(100_000));
        let before = format!(r#"{{"stream":true,"messages":"{}"}}"#, "x".repeat(100_000));
        for (body, stream) in [
            (r#"{"stream":true}"#, true),
            (r#"{ "stream" : true }"#, true),
            (r#"{"stream":false}"#, false),
            (r#"{"stream":"true"}"#, false),
            (r#"{"content":"\"stream\":true"}"#, false),
            (r#"{"stream_options":{}}"#, false),
            (&long, true),
            (&before, true),
            ("", false),
        ] {
            assert_eq!(asked(Method::POST, &[JSON], Some(body)).stream, stream, "{body:.40}");
        }
        for at in 1000..1050 {
            let body = format!(r#"{}"stream":true{}"#, " ".repeat(at), " ".repeat(3000));
            let near = at + 8 <= ENDS;
            assert_eq!(asked(Method::POST, &[JSON], Some(&body)).stream, near, "{at}");
        }
        for length in 0..3000 {
            let body = format!(r#"{}"stream":true}}"#, " ".repeat(length));
            assert!(asked(Method::POST, &[JSON], Some(&body)).stream, "{length}");
        }
        assert!(asked(Method::GET, &[("accept", "text/event-stream")], None).stream);
        let url = "https://g.example/v1beta/models/m:streamGenerateContent?alt=sse";
        let mut request = Request::new(Method::POST, Url::parse(url).unwrap());
        assert!(Asked::of(&request).stream);
        *request.url_mut() =
            Url::parse("https://g.example/v1beta/models/m:generateContent").unwrap();
        assert!(!Asked::of(&request).stream);
    }

    #[test]
    fn an_empty_answer_is_right_for_what_needs_none() {
        let accept = ("accept", "application/json");
        let both = [JSON, accept];
        let notification = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
        let call = r#"{"jsonrpc":"2.0","id":1,"method":"eth_call"}"#;
        for (method, headers, body, nothing) in [
            (Method::POST, &both[..], Some("{}"), false),
            (Method::POST, &[JSON], Some("{}"), false),
            (Method::POST, &both, Some(call), false),
            (Method::POST, &both, Some(notification), true),
            (Method::POST, &[("content-type", "multipart/form-data"), accept], Some("x"), true),
            (Method::POST, &[accept], None, false),
            (Method::PUT, &both, Some("{}"), true),
            (Method::DELETE, &[accept], None, true),
            (Method::GET, &[accept], None, false),
            (Method::GET, &[], None, true),
            (Method::POST, &[("accept", "text/event-stream")], Some("x"), false),
        ] {
            let asked = asked(method.clone(), headers, body);
            assert_eq!(asked.nothing, nothing, "{method} {headers:?} {body:?}");
            assert_eq!(asked.resource, method != Method::POST);
        }
    }
}
