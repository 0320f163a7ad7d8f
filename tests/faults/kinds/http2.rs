//! HTTP/2.

use h2::Reason as Code;
use reqwest_failover::Reason;

use super::{BodyEnd, Cost, Expected, Kind, REFUSED, RESET, TRANSPORT_TIMEOUT, served, status};
use crate::http2::{Http2, empty_data, frame, go_away};
use crate::script::Act::{Again, Fin, Rst, Send, Stall, Wait};
use crate::script::ms;
use crate::server::Fault;

pub(super) fn kinds() -> Vec<Kind> {
    let kind = |name: &str, expected: Expected, fault| {
        Kind::new(format!("HTTP/2: {name}"), expected, Fault::Http2(fault))
    };
    let reset = |name: &str, code| kind(name, RESET, Http2::Reset(code));
    let raw = |name: &str, acts| kind(name, RESET, Http2::Raw(acts));
    // Everything was or may be processed; then nothing was.
    let twice = vec![
        Send(go_away(i32::MAX as u32, Code::NO_ERROR)),
        Wait(ms(20)),
        Send(go_away(0, Code::NO_ERROR)),
        Wait(ms(20)),
        Fin,
    ];
    let failed = status(500, Reason::ServerError, Cost::Failure);
    let broken = served(BodyEnd::Broken);
    let flood = || vec![Again(empty_data().repeat(20), ms(1))];
    let once = |name: &str, fault| {
        kind(name, served(BodyEnd::Whole), Http2::Once(Box::new(fault))).sent(2)
    };
    let gone = || vec![Send(go_away(0, Code::NO_ERROR)), Wait(ms(20)), Fin];
    vec![
        // The transport sends it again by itself, twice at most.
        once("REFUSED_STREAM once", Http2::Reset(Code::REFUSED_STREAM)),
        once("GOAWAY with NO_ERROR once", Http2::Raw(gone())),
        kind("REFUSED_STREAM", REFUSED, Http2::Reset(Code::REFUSED_STREAM)).sent(3),
        kind("GOAWAY with NO_ERROR", REFUSED, Http2::Raw(gone())).sent(3),
        reset("CANCEL", Code::CANCEL),
        reset("INTERNAL_ERROR", Code::INTERNAL_ERROR),
        reset("ENHANCE_YOUR_CALM", Code::ENHANCE_YOUR_CALM),
        reset("HTTP_1_1_REQUIRED", Code::HTTP_1_1_REQUIRED),
        kind("GOAWAY twice", REFUSED, Http2::Raw(twice)).sent(3),
        raw(
            "GOAWAY with ENHANCE_YOUR_CALM",
            vec![Send(go_away(0, Code::ENHANCE_YOUR_CALM)), Wait(ms(20)), Fin],
        ),
        raw("FIN before the headers", vec![Fin]),
        raw("RST before the headers", vec![Rst]),
        // The transport's own timeout, since the client sends pings.
        kind("pings without an answer", TRANSPORT_TIMEOUT, Http2::Raw(vec![Stall])),
        raw("HTTP/1 in place of frames", vec![Send(b"HTTP/1.1 400 No\r\n\r\n".into()), Stall]),
        raw("a frame larger than allowed", vec![Send(frame(0, 0, 1, &[0; 1 << 15])), Stall]),
        raw("a header block that is none", vec![Send(frame(1, 5, 1, &[0xff; 64])), Stall]),
        kind("500", failed, Http2::Status(500)),
        kind("200, then RST_STREAM", broken, Http2::HalfThenReset(200, Code::INTERNAL_ERROR)),
        kind("500, then RST_STREAM", failed, Http2::HalfThenReset(500, Code::INTERNAL_ERROR)),
        kind(
            "200, then GOAWAY and FIN",
            broken,
            Http2::HalfThenRaw(200, vec![Send(go_away(0, Code::INTERNAL_ERROR)), Fin]),
        ),
        kind("200, then RST", broken, Http2::HalfThenRaw(200, vec![Rst])),
        kind("200, then pings without an answer", broken, Http2::HalfThenRaw(200, vec![Stall])),
        kind("200, then empty DATA without an end", broken, Http2::HalfThenRaw(200, flood())),
        kind("500, then empty DATA without an end", failed, Http2::HalfThenRaw(500, flood())),
    ]
}
