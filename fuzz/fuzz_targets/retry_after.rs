//! No hint is zero, and none panics.
#![no_main]

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderValue, StatusCode};
use libfuzzer_sys::fuzz_target;

#[path = "../../src/verdict.rs"]
#[allow(dead_code)]
mod verdict;

use verdict::{Outcome, Verdict};

fuzz_target!(|input: (u32, &[u8], &[u8])| {
    let (wall, millis, hint) = input;
    let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(wall.into());
    let mut headers = HeaderMap::new();
    for (name, value) in [("retry-after-ms", millis), ("retry-after", hint)] {
        if let Ok(value) = HeaderValue::from_bytes(value)
            && !value.is_empty()
        {
            headers.insert(name, value);
        }
    }
    for status in [429, 503, 200, 500] {
        let status = StatusCode::from_u16(status).unwrap();
        let outcome = Outcome::answered("p", status, &headers, false, Duration::ZERO, || wall);
        let hint = outcome.retry_after();
        assert_ne!(hint, Some(Duration::ZERO));
        assert!(hint.is_none() || matches!(status.as_u16(), 429 | 503));
        let _ = Verdict::standard(&outcome);
    }
});
