//! Errors inside a 200, and event streams; the chain looks into them.

use super::{
    BROKEN_SUCCESS, BodyEnd, Cost, ERROR_IN_SUCCESS, Expected, Kind, SILENT_SUCCESS, broken_stream,
    coded, reply, served,
};
use crate::script::Act::{self, Again, Fin, Rst, Send, Stall, Wait};
use crate::script::{Asked, EVENTS, JSON, chunk, ms};

pub(super) fn kinds() -> Vec<Kind> {
    let mut kinds = errors_in_a_success();
    kinds.extend(streams_before_content());
    kinds.extend(streams_after_content());
    kinds
}

fn errors_in_a_success() -> Vec<Kind> {
    let answer = |name: &str, kind: &'static str, body: fn(&Asked) -> String| {
        let acts = move |it: &Asked| it.answer(200, &[kind], body(it));
        Kind::new(name, ERROR_IN_SUCCESS, reply(acts)).inspected()
    };
    let plain = "content-type: text/plain";
    let html = "content-type: text/html";
    vec![
        answer("an error in a 200", JSON, |it| it.said(500)),
        Kind::new(
            "a rate limit in a 200",
            coded(Cost::Cooldown),
            reply(|it| it.answer(200, &[JSON], it.said(429))),
        )
        .inspected(),
        Kind::new(
            "a refusal in a 200",
            coded(Cost::Nothing),
            reply(|it| it.answer(200, &[JSON], it.said(400))),
        )
        .inspected(),
        answer("an error in a 200 of plain text", plain, |it| it.said(500)),
        answer("an error in a 200 of no type", "x-none: 1", |it| it.said(500)),
        answer("an error in a 200, of the type error", JSON, |_| {
            r#"{"type":"error","message":"overloaded"}"#.into()
        }),
        answer("a failed response in a 200", JSON, |_| {
            r#"{"object":"response","status":"failed","error":{"message":"no"}}"#.into()
        }),
        answer("whitespace in a 200", JSON, |_| " \r\n ".into()),
        answer("a web page in a 200", html, |_| "<h1>Welcome</h1>".into()),
    ]
}

const ROLE: &str = r#"data: {"choices":[{"delta":{"role":"assistant"}}]}"#;
const HELLO: &str = r#"data: {"choices":[{"delta":{"content":"Hé"}}]}"#;

/// An event stream that is inspected: these bytes in one chunk, then these acts.
fn stream(
    name: &str,
    expected: Expected,
    text: impl Fn(&Asked) -> Vec<u8> + std::marker::Send + Sync + 'static,
    then: Vec<Act>,
) -> Kind {
    let acts = move |it: &Asked| {
        let text = text(it);
        let mut acts = vec![Send(it.chunked(200, EVENTS, &[]))];
        if !text.is_empty() {
            acts.push(Send(chunk(&text)));
        }
        acts.extend(then.clone());
        acts
    };
    Kind::new(name, expected, reply(acts)).inspected()
}

/// The end of a chunked body as it should be.
fn last_chunk() -> Act {
    Send(b"0\r\n\r\n".into())
}

fn streams_before_content() -> Vec<Kind> {
    let error = |it: &Asked| format!("data: {}\n\n", it.said(500)).into_bytes();
    let end = || vec![last_chunk()];
    let comments = || chunk(&b": keep-alive\n\n".repeat(100));
    vec![
        stream("a stream whose first event is an error", ERROR_IN_SUCCESS, error, end()),
        stream("a stream that stalls after an error", ERROR_IN_SUCCESS, error, vec![Stall]),
        stream(
            "a stream with an event named error",
            ERROR_IN_SUCCESS,
            |it| format!("event: error\ndata: {}\n\n", it.server).into_bytes(),
            end(),
        ),
        stream(
            "a stream with an error after a role",
            ERROR_IN_SUCCESS,
            move |it| [format!("{ROLE}\n\n").as_bytes(), &error(it)].concat(),
            end(),
        ),
        stream(
            "an error behind a byte order mark, in lines that end with CR",
            ERROR_IN_SUCCESS,
            |it| format!("\u{feff}: hi\r\rdata: {}\r\r", it.said(500)).into_bytes(),
            end(),
        ),
        stream("a silent stream", SILENT_SUCCESS, |_| Vec::new(), vec![Stall]),
        stream(
            "a stream of a comment every few milliseconds",
            SILENT_SUCCESS,
            |_| Vec::new(),
            vec![Again(chunk(b": keep-alive\n\n"), ms(5))],
        ),
        stream(
            "a flood of comments",
            served(BodyEnd::Open),
            |_| Vec::new(),
            vec![Again(comments(), ms(0))],
        ),
        stream("a stream without an event", ERROR_IN_SUCCESS, |_| Vec::new(), end()),
        stream(
            "a stream that is done at once",
            ERROR_IN_SUCCESS,
            |_| "data: [DONE]\n\n".into(),
            end(),
        ),
        stream(
            "a stream that FIN cuts before its content",
            BROKEN_SUCCESS,
            |_| format!("{ROLE}\n\n").into(),
            vec![Wait(ms(20)), Fin],
        ),
        stream(
            "a stream that RST cuts before its content",
            BROKEN_SUCCESS,
            |_| format!("{ROLE}\n\n").into(),
            vec![Wait(ms(20)), Rst],
        ),
    ]
}

fn streams_after_content() -> Vec<Kind> {
    use BodyEnd::{Broken, Open, Whole};
    let begun = || format!("{ROLE}\n\n{HELLO}\n\n").into_bytes();
    let with = |more: &str| [begun(), more.as_bytes().to_vec()].concat();
    let within_a_character = {
        let text = begun();
        let at = text.iter().rposition(|byte| *byte == 0xc3).unwrap_or_default() + 1;
        [text.clone(), text[..at].to_vec()].concat()
    };
    let whole = with("data: [DONE]\n\n");
    let at = whole.iter().position(|byte| *byte == 0xc3).unwrap_or_default() + 1;
    let (before, after) = (whole[..at].to_vec(), whole[at..].to_vec());
    let failed = with("data: {\"error\":{\"message\":\"late\"}}\n\n");
    let cut = |name: &str, then: Vec<Act>| {
        let text = begun();
        stream(name, broken_stream(Broken), move |_| text.clone(), then)
    };
    let long = [begun(), b"data: ".to_vec(), vec![b'x'; 16 << 20], b"\n\n".to_vec()].concat();
    let first_long = [b"data: ".to_vec(), vec![b'x'; 16 << 20]].concat();
    vec![
        stream(
            "an error after content",
            broken_stream(Whole),
            move |_| failed.clone(),
            vec![last_chunk()],
        ),
        cut("a stream that FIN cuts after its content", vec![Wait(ms(50)), Fin]),
        cut("a stream that RST cuts after its content", vec![Wait(ms(50)), Rst]),
        stream(
            "a stream that ends without its last word",
            broken_stream(Whole),
            move |_| begun(),
            vec![last_chunk()],
        ),
        stream(
            "a stream that is cut within a character",
            broken_stream(Broken),
            move |_| within_a_character.clone(),
            vec![Wait(ms(50)), Fin],
        ),
        stream(
            "a stream in chunks that part a character",
            served(Whole),
            move |_| before.clone(),
            vec![Wait(ms(20)), Send(chunk(&after)), last_chunk()],
        ),
        stream(
            "a stream that stalls after its content",
            served(Open),
            |_| format!("{ROLE}\n\n{HELLO}\n\n").into(),
            vec![Stall],
        ),
        stream(
            "a line of 16 MB after content",
            broken_stream(Whole),
            move |_| long.clone(),
            vec![last_chunk()],
        ),
        stream("a first line of 16 MB", served(Open), move |_| first_long.clone(), vec![Stall]),
    ]
}
