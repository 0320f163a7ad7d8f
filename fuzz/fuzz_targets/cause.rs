//! Whatever a body is, a cause is made of it, the same however much follows what is looked at; and every
//! beginning of it, too.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;

#[path = "../../src"]
#[allow(dead_code)]
mod library {
    pub mod cause;
}

use library::cause::Cause;

fuzz_target!(|input: (u16, &[u8])| {
    let (cut, body) = input;
    let cause = Cause::read(body);
    assert_eq!(cause, Cause::read(body));
    check(&cause, body);

    let cut = usize::from(cut).min(body.len());
    check(&Cause::read(&body[..cut]), body);

    // What is beyond the limit is not looked at.
    let mut long = body.to_vec();
    long.resize(Cause::LOOKED_AT.max(body.len()), b' ');
    let padded = Cause::read(&long);
    long.push(b'}');
    let more = Cause::read(&long);
    assert_eq!((padded.code, padded.retry_after), (more.code, more.retry_after));

    // A list of one says what the one says, unless it is a text or no JSON.
    if serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(body).is_ok()
        && body.len() < Cause::LOOKED_AT - 2
        && body.iter().filter(|byte| matches!(byte, b'[' | b'{')).count() < NEAR_THE_DEEPEST
        && !is_rpc(body)
    {
        let list = [b"[", body, b"]"].concat();
        let one = Cause::read(&list);
        assert_eq!((one.code, one.blames), (cause.code, cause.blames));
    }
});

/// A list is a level more, and serde_json goes no deeper than 128.
const NEAR_THE_DEEPEST: usize = 100;

/// Whether this is an answer of JSON-RPC, whose codes mean something else; a list of them is none.
fn is_rpc(body: &[u8]) -> bool {
    let value: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    value.get("jsonrpc").is_some()
}

fn check(cause: &Cause, body: &[u8]) {
    assert_ne!(cause.retry_after, Some(Duration::ZERO));
    assert!(cause.code.as_ref().is_none_or(|code| !code.is_empty() && code.len() <= 64));
    let limit = 3 * body.len().min(Cause::LOOKED_AT) + 64;
    assert!(cause.message.as_ref().is_none_or(|text| !text.is_empty() && text.len() <= 2 * limit));
    assert!(cause.status().is_none_or(|status| (400..600).contains(&status.as_u16())));
    let _ = (cause.is_quota(), cause.surely_blames_request());
}
