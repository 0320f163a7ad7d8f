//! In the body: of a success, which is the caller's once its headers are accepted; of a success that
//! is looked into first; and of a failure, which is read for so long at most.

use reqwest_failover::Reason;

use super::{
    BROKEN_SUCCESS, BodyEnd, Cost, ERROR_IN_SUCCESS, Expected, Kind, reply, served, status,
};
use crate::script::Act::{self, Again, Fin, Rst, Send, Stall, Wait};
use crate::script::{Asked, JSON, chunk, gzip_bomb, ms};

pub(super) fn kinds() -> Vec<Kind> {
    let mut kinds = Vec::new();
    // It takes its time, for which no client should have to wait.
    gzip_bomb();
    for body in bodies() {
        let Body { name, unseen, seen, acts } = body;
        let faulty = move |status| reply(move |it: &Asked| acts(it, status));
        let failed = status(500, Reason::ServerError, Cost::Failure);
        kinds.push(Kind::new(format!("200, {name}"), served(unseen), faulty(200)));
        kinds.push(Kind::new(format!("200 inspected, {name}"), seen, faulty(200)).inspected());
        kinds.push(Kind::new(format!("500, {name}"), failed, faulty(500)));
    }
    kinds.extend(over_tls());
    kinds
}

struct Body {
    name: &'static str,
    /// How it ends for a caller whose chain does not look into it.
    unseen: BodyEnd,
    /// What comes of it where the chain does.
    seen: Expected,
    acts: fn(&Asked, u16) -> Vec<Act>,
}

fn bodies() -> Vec<Body> {
    use BodyEnd::{Broken, Open, Whole};
    let body = |name, unseen, seen, acts| Body { name, unseen, seen, acts };
    vec![
        body("half the body, then FIN", Broken, BROKEN_SUCCESS, |it, status| half(it, status, Fin)),
        body("half the body, then RST", Broken, BROKEN_SUCCESS, |it, status| half(it, status, Rst)),
        body("half the body, then a stall", Open, served(Open), |it, status| {
            half(it, status, Stall)
        }),
        body("a chunk of no size", Broken, BROKEN_SUCCESS, |it, status| {
            chunks(it, status, b"xyz\r\n{}\r\n", Stall)
        }),
        body("a chunk longer than any", Broken, BROKEN_SUCCESS, |it, status| {
            chunks(it, status, b"fffffffffffffffff\r\n{}\r\n", Stall)
        }),
        body("a chunk without its end", Broken, BROKEN_SUCCESS, |it, status| {
            chunks(it, status, b"2\r\n{}xx", Stall)
        }),
        body("a cut chunk", Broken, BROKEN_SUCCESS, |it, status| {
            chunks(it, status, b"ff\r\n{\"a\":", Fin)
        }),
        body("chunks without a last one", Broken, BROKEN_SUCCESS, |it, status| {
            chunks(it, status, &chunk(br#"{"answer":"#), Fin)
        }),
        // Nothing in HTTP/1 tells such a cut from the end.
        body("a cut of a body that the close ends", Whole, served(Whole), |it, status| {
            unlimited(it, status, Fin)
        }),
        body("RST where the close is the end", Broken, BROKEN_SUCCESS, |it, status| {
            unlimited(it, status, Rst)
        }),
        body("a content-length that is too short", Whole, served(Whole), |it, status| {
            let head = it.head(status, &[JSON, "content-length: 5"]);
            vec![Send(head), Send(it.fine_body().into()), Stall]
        }),
        body("gzip that is none", Broken, BROKEN_SUCCESS, |it, status| {
            it.answer(status, &[JSON, "content-encoding: gzip"], it.fine_body())
        }),
        body("a gzip bomb", Open, served(Open), |it, status| {
            let lines = [JSON, "content-encoding: gzip", "transfer-encoding: chunked"];
            vec![Send(it.head(status, &lines)), Send(chunk(gzip_bomb())), Stall]
        }),
        body("a byte every millisecond", Open, served(Open), |it, status| {
            vec![Send(it.chunked(status, JSON, &[b"{"])), Again(chunk(b" "), ms(1))]
        }),
        body("a body without an end", Open, served(Open), |it, status| {
            let more = chunk(&[b' '; 16 * 1024]);
            vec![Send(it.chunked(status, JSON, &[b"{"])), Again(more, ms(0))]
        }),
        body("no body", Whole, ERROR_IN_SUCCESS, |it, status| it.answer(status, &[JSON], "")),
        body("a chunked body without a byte", Whole, ERROR_IN_SUCCESS, |it, status| {
            vec![Send([it.chunked(status, JSON, &[]), b"0\r\n\r\n".into()].concat())]
        }),
    ]
}

fn over_tls() -> Vec<Kind> {
    use BodyEnd::Broken;
    let kind = |name: &str, acts: fn(&Asked) -> Vec<Act>| {
        Kind::new(name, served(Broken), reply(acts)).over_tls()
    };
    vec![
        kind("half the body, then FIN, over TLS", |it| half(it, 200, Fin)),
        kind("half the body, then RST, over TLS", |it| half(it, 200, Rst)),
        // TLS does tell such a cut from the end: there was no `close_notify`.
        kind("a cut of a body that the close ends, over TLS", |it| unlimited(it, 200, Fin)),
    ]
}

fn half(it: &Asked, status: u16, then: Act) -> Vec<Act> {
    let body = it.fine_body();
    let head = it.head(status, &[JSON, &format!("content-length: {}", body.len())]);
    let (half, _) = body.split_at(body.len() / 2);
    vec![Send(head), Send(half.into()), Wait(ms(50)), then]
}

/// A chunked body of these bytes, framed or not.
fn chunks(it: &Asked, status: u16, bytes: &[u8], then: Act) -> Vec<Act> {
    vec![Send(it.chunked(status, JSON, &[])), Wait(ms(20)), Send(bytes.into()), Wait(ms(50)), then]
}

/// A body of unknown length that is not chunked either.
fn unlimited(it: &Asked, status: u16, then: Act) -> Vec<Act> {
    let body = it.fine_body();
    let (half, _) = body.split_at(body.len() / 2);
    vec![Send(it.head(status, &[JSON])), Send(half.into()), Wait(ms(50)), then]
}
