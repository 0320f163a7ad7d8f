//! Before there is a connection, and before there are headers.

use reqwest_failover::Reason;

use super::{CONNECT, Cost, Kind, RESET, TIMEOUT, reply, status, upload};
use crate::script::Act::{Again, Fin, Rst, Send, Stall, Wait};
use crate::script::ms;
use crate::server::Fault;
use crate::tls::Certificate;

pub(super) fn kinds() -> Vec<Kind> {
    let mut kinds = before_a_connection();
    kinds.extend(before_headers());
    kinds
}

fn before_a_connection() -> Vec<Kind> {
    // A record of the type "handshake" that holds none.
    let garbage = || Send([&b"\x16\x03\x03\x40\x00"[..], &[0xa5; 1 << 14]].concat());
    let tls = |name: &str, acts| Kind::new(name, CONNECT, Fault::Handshake(acts));
    let certificate = |name: &str, one| Kind::new(name, CONNECT, Fault::Certificate(one));
    vec![
        Kind::new("the connection is refused", CONNECT, Fault::Refuses),
        Kind::new("the name cannot be resolved", CONNECT, Fault::Nameless),
        certificate("a certificate signed by itself", Certificate::SelfSigned),
        certificate("a certificate that expired", Certificate::Expired),
        certificate("a certificate of another name", Certificate::OtherName),
        tls("HTTP in place of TLS", vec![Send(b"HTTP/1.1 400 Plain\r\n\r\n".into()), Fin]),
        tls("garbage in place of TLS", vec![garbage(), Stall]),
        tls("endless garbage in place of TLS", vec![Again(vec![0xa5; 4096], ms(1))]),
        tls("a TLS handshake that stalls", vec![Stall]),
        tls("FIN in place of TLS", vec![Fin]),
        tls("RST in place of TLS", vec![Rst]),
    ]
}

fn before_headers() -> Vec<Kind> {
    let too_large = status(413, Reason::ClientError, Cost::Nothing);
    vec![
        Kind::new("FIN before the headers", RESET, reply(|_| vec![Fin])),
        Kind::new("RST before the headers", RESET, reply(|_| vec![Rst])),
        Kind::new("a stall before the headers", TIMEOUT, reply(|_| vec![Stall])),
        Kind::new("FIN before the headers, over TLS", RESET, reply(|_| vec![Fin])).over_tls(),
        Kind::new("RST before the headers, over TLS", RESET, reply(|_| vec![Rst])).over_tls(),
        Kind::new("a stall before the headers, over TLS", TIMEOUT, reply(|_| vec![Stall]))
            .over_tls(),
        Kind::new("RST during the upload", RESET, upload(|_| vec![Rst])),
        Kind::new("a stall during the upload", TIMEOUT, upload(|_| vec![Wait(ms(1500)), Rst])),
        Kind::new(
            "an early 413, the rest of the upload read",
            too_large,
            upload(|it| [it.refusal(413, &["connection: close"]), vec![Stall]].concat()),
        ),
        Kind::new(
            "an early 413, then RST",
            too_large,
            upload(|it| {
                [it.refusal(413, &["connection: close"]), vec![Wait(ms(60)), Rst]].concat()
            }),
        ),
        Kind::new("RST on a reused connection", RESET, reply(|_| vec![Rst])).reused(),
        Kind::new("FIN on a reused connection", RESET, reply(|_| vec![Fin])).reused(),
        Kind::new("a stall on a reused connection", TIMEOUT, reply(|_| vec![Stall])).reused(),
    ]
}
