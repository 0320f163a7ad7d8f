//! A stream means the same however it is cut, and its events are those that another parser sees.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../src/inspect/peek.rs"]
mod peek;
#[path = "../../src/splice.rs"]
#[allow(dead_code)]
mod splice;
#[path = "../../src/inspect/sse.rs"]
mod sse;

use peek::{Peek, Phase};

fuzz_target!(|input: (u16, u8, Vec<u8>, &[u8])| {
    let (max_bytes, max_events, cuts, stream) = input;
    let (max_bytes, max_events) = (usize::from(max_bytes), usize::from(max_events));

    let whole = follow([stream], max_bytes, max_events);
    assert_eq!(follow(chunks(stream, &cuts), max_bytes, max_events), whole);
    assert_eq!(follow(stream.chunks(1), max_bytes, max_events), whole);

    let _ = peek::is_error_body(stream);

    if str::from_utf8(stream).is_ok() {
        assert_eq!(events(chunks(stream, &cuts)), reference(stream));
    }
});

/// What a stream is taken for before and after its end.
fn follow<'a>(
    chunks: impl IntoIterator<Item = &'a [u8]>,
    max_bytes: usize,
    max_events: usize,
) -> (Phase, bool, Phase) {
    let mut peek = Peek::new(max_bytes, max_events);
    for chunk in chunks {
        peek.push(chunk);
    }
    let before = (peek.phase().clone(), peek.may_stop());
    peek.end();
    assert!(!matches!(peek.phase(), Phase::Preamble | Phase::Content));
    (before.0, before.1, peek.phase().clone())
}

fn chunks<'a>(mut stream: &'a [u8], cuts: &[u8]) -> Vec<&'a [u8]> {
    let mut chunks = Vec::new();
    for cut in cuts {
        let (chunk, rest) = stream.split_at(stream.len().min(usize::from(*cut)));
        chunks.push(chunk);
        stream = rest;
    }
    chunks.push(stream);
    chunks
}

/// The names and data of the events that have data.
fn events<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> Vec<(String, String)> {
    let mut decoder = sse::Decoder::new(usize::MAX);
    let mut events = Vec::new();
    for mut chunk in chunks {
        while let Some(event) = decoder.next(&mut chunk) {
            assert!(!event.cut);
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            let name = if event.name.is_empty() { b"message" } else { event.name };
            events.push((text(name), text(event.data)));
        }
    }
    events.retain(|(_, data)| !data.is_empty());
    events
}

fn reference(mut stream: &[u8]) -> Vec<(String, String)> {
    let mut decoder = sse_core::SseDecoder::new();
    let mut events = Vec::new();
    while let Some(event) = decoder.next(&mut stream) {
        if let sse_core::SseEvent::Message(message) = event.unwrap() {
            events.push((message.event.into_owned(), message.data));
        }
    }
    events.retain(|(_, data)| !data.is_empty());
    events
}
