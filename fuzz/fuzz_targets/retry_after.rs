//! No hint is zero, and none panics, whichever header or body it is in.
#![no_main]

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use libfuzzer_sys::fuzz_target;

#[path = "../../src"]
#[allow(dead_code)]
mod library {
    pub mod cause;
    pub mod verdict;
}

use library::cause::{self, Cause};
use library::verdict::{Outcome, Verdict};

/// The headers that are given the values of the input, in its order.
const NAMES: [&str; 8] = [
    "retry-after-ms",
    "retry-after",
    "x-ratelimit-reset-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-tokens",
    "anthropic-ratelimit-requests-reset",
    "x-ratelimit-reset",
    "ratelimit-reset",
];

fuzz_target!(|input: (u32, u8, Vec<&[u8]>, &[u8])| {
    let (wall, skip, values, body) = input;
    let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(wall.into());
    let mut headers = HeaderMap::new();
    for (name, value) in NAMES.iter().cycle().skip(usize::from(skip)).zip(values).take(16) {
        if let Ok(value) = HeaderValue::from_bytes(value)
            && !value.is_empty()
        {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    let cause = Cause::read(body);
    for status in [402, 429, 503, 529, 200, 500] {
        let status = StatusCode::from_u16(status).unwrap();
        let (took, cause) = (Duration::ZERO, Some(&cause));
        let outcome = Outcome::answered("p", status, &headers, false, cause, took, || wall);
        let hint = outcome.retry_after();
        assert_ne!(hint, Some(Duration::ZERO));
        assert!(hint.is_none() || matches!(status.as_u16(), 402 | 429 | 503 | 529));
        assert_eq!(hint, cause::retry_after(status, &headers, said(cause), || wall));
        let _ = (Verdict::standard(&outcome), Verdict::transient(&outcome));
    }
});

fn said(cause: Option<&Cause>) -> Option<Duration> {
    cause.and_then(|cause| cause.retry_after)
}
