//! In the headers.

use reqwest_failover::Reason;

use super::{BodyEnd, Cost, Expected, Kind, RESET, TIMEOUT, reply, served, status};
use crate::script::Act::{self, Again, Fin, Rst, Send, Stall, Wait};
use crate::script::{Asked, JSON, ms};

pub(super) fn kinds() -> Vec<Kind> {
    let mut kinds = cut();
    kinds.extend(malformed());
    kinds.extend(informational());
    kinds
}

fn cut() -> Vec<Kind> {
    let half = |it: &Asked| Send(it.unfinished_head(200, &["content-le"])[..40].to_vec());
    let within = |name: &str, expected, end: fn() -> Act| {
        Kind::new(name, expected, reply(move |it| vec![half(it), Wait(ms(5)), end()]))
    };
    vec![
        within("FIN within the headers", RESET, || Fin),
        within("RST within the headers", RESET, || Rst),
        within("a stall within the headers", TIMEOUT, || Stall),
        within("headers a byte at a time", TIMEOUT, || Again(b"x".into(), ms(5))),
    ]
}

fn malformed() -> Vec<Kind> {
    let raw = |name: &str, bytes: &'static [u8]| {
        Kind::new(name, RESET, reply(move |_| vec![Send(bytes.into()), Stall]))
    };
    // An otherwise good answer with these lines.
    let lines = |name: &str, expected: Expected, lines: Vec<String>| {
        let answer = move |it: &Asked| {
            let lines: Vec<_> = lines.iter().map(String::as_str).collect();
            let head = it.head(200, &[&[JSON][..], &lines].concat());
            vec![Send(head), Send(it.fine_body().into()), Stall]
        };
        Kind::new(name, expected, reply(answer))
    };
    let some = |text: &str| text.split('|').map(str::to_owned).collect::<Vec<_>>();
    let many = |count: usize| (0..count).map(|at| format!("x-{at}: 1")).collect::<Vec<_>>();
    let whole = served(BodyEnd::Whole);
    vec![
        raw("not HTTP", b"SSH-2.0-OpenSSH_9.6\r\n\r\n"),
        raw("a TLS alert in place of HTTP", b"\x15\x03\x01\x00\x02\x02\x28\r\n\r\n"),
        raw("HTTP/2 in place of HTTP/1", b"\0\0\0\x04\0\0\0\0\0\r\n\r\n"),
        raw("a status of letters", b"HTTP/1.1 abc OK\r\ncontent-length: 0\r\n\r\n"),
        raw("a status of two digits", b"HTTP/1.1 20 OK\r\ncontent-length: 0\r\n\r\n"),
        raw("a status of four digits", b"HTTP/1.1 2000 OK\r\ncontent-length: 0\r\n\r\n"),
        raw("a status of 000", b"HTTP/1.1 000 OK\r\ncontent-length: 0\r\n\r\n"),
        raw("a version of HTTP that is none", b"HTTP/1.7 200 OK\r\ncontent-length: 0\r\n\r\n"),
        raw("a header without a colon", b"HTTP/1.1 200 OK\r\nbroken\r\n\r\n"),
        raw("a header with a NUL", b"HTTP/1.1 200 OK\r\nx: a\0b\r\n\r\n"),
        lines("a folded header", RESET, some("x-folded: a| b")),
        lines("101 headers", RESET, many(99)),
        lines("a header of a megabyte", RESET, vec![format!("x-long: {}", "y".repeat(1 << 20))]),
        lines("a negative content-length", RESET, some("content-length: -1")),
        lines(
            "two content-lengths that differ",
            RESET,
            some("content-length: 5|content-length: 6"),
        ),
        lines(
            "a content-length beyond any number",
            RESET,
            some("content-length: 99999999999999999999"),
        ),
        lines("a content-length that is none", RESET, some("content-length: ten")),
        lines("the same content-length twice", whole, some("content-length: 9|content-length: 9")),
        // The connection's end would be the body's.
        lines(
            "an unknown transfer-encoding",
            served(BodyEnd::Open),
            some("transfer-encoding: rot13"),
        ),
    ]
}

fn informational() -> Vec<Kind> {
    let early = || b"HTTP/1.1 103 Early\r\nlink: </x>\r\n\r\n".repeat(100);
    vec![
        Kind::new(
            "a flood of 1xx without an end",
            TIMEOUT,
            reply(move |_| vec![Again(early(), ms(1))]),
        ),
        Kind::new(
            "ten thousand 1xx before a success",
            served(BodyEnd::Whole),
            reply(move |it| [vec![Send(early().repeat(100))], it.fine()].concat()),
        ),
        Kind::new(
            "a final 101 without an Upgrade",
            status(101, Reason::Other, Cost::Failure),
            reply(|it| vec![Send(it.head(101, &["connection: upgrade", "upgrade: x"])), Stall]),
        ),
    ]
}
