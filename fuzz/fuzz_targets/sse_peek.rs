//! A stream means the same however it is cut, and its events are those that another parser sees.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../src"]
#[allow(dead_code)]
mod library {
    pub mod cause;
    pub mod inspect {
        pub mod meaning;
        pub mod object;
        pub mod peek;
        pub mod sse;
        pub mod value;
    }
    pub mod splice;
}

// The files name each other so.
use library::inspect::object::Rules;
use library::inspect::peek::{Peek, Phase};
use library::inspect::sse;
use library::{cause, splice};

fuzz_target!(|input: (u16, u8, u8, Vec<u8>, &[u8])| {
    let (max_bytes, max_events, rules, cuts, stream) = input;
    let rules = Rules {
        resource: rules & 1 > 0,
        json_rpc: rules & 2 > 0,
        empty_answers: rules & 4 > 0,
    };
    let limits = (usize::from(max_bytes), usize::from(max_events), rules);

    let whole = follow([stream], limits);
    assert_eq!(follow(chunks(stream, &cuts), limits), whole);
    assert_eq!(follow(stream.chunks(1), limits), whole);

    if str::from_utf8(stream).is_ok() {
        assert_eq!(events(chunks(stream, &cuts)), reference(stream));
    }
});

/// What a stream is taken for before and after its end.
fn follow<'a>(
    chunks: impl IntoIterator<Item = &'a [u8]>,
    (max_bytes, max_events, rules): (usize, usize, Rules),
) -> (Phase, bool, Phase) {
    let mut peek = Peek::new(max_bytes, max_events, rules);
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
