use std::error::Error as StdError;
use std::time::SystemTime;

use http::{HeaderMap, HeaderName};

use super::*;
use crate::cause::Cause;

fn answered<'a>(status: u16, headers: &'a HeaderMap, cause: Option<&'a Cause>) -> Outcome<'a> {
    let status = StatusCode::from_u16(status).unwrap();
    Outcome::answered("p", status, headers, false, cause, Duration::ZERO, wall)
}

fn flawed<'a>(reason: Reason, headers: &'a HeaderMap, cause: Option<&'a Cause>) -> Outcome<'a> {
    Outcome::flawed("p", reason, StatusCode::OK, headers, cause, Duration::ZERO, wall)
}

fn wall() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    pairs
        .iter()
        .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()))
        .collect()
}

const SEVEN: Option<Duration> = Some(Duration::from_secs(7));

/// Reason, fault without a hint, fault with one, and whether it may have been processed: the table of
/// DESIGN, once more.
fn expected(status: u16) -> (Reason, Option<[Fault; 2]>, bool) {
    use Fault::{Cooldown, Failure, None as Unhurt};
    let both = |fault| Some([fault, fault]);
    let hinted = Some([Failure, Cooldown(SEVEN)]);
    let reason = match status {
        200..=299 | 304 => Reason::Ok,
        300..=399 => Reason::Redirected,
        401..=403 => Reason::Auth,
        429 => Reason::RateLimited,
        408 | 425 | 500..=599 => Reason::ServerError,
        400..=499 => Reason::ClientError,
        _ => Reason::Other,
    };
    let faults = match status {
        200..=299 | 304 => None,
        429 => Some([Cooldown(None), Cooldown(SEVEN)]),
        402 | 503 | 529 => hinted,
        401 | 403 | 408 | 425 | 500..=599 => both(Failure),
        300..=499 => both(Unhurt),
        _ => both(Failure),
    };
    let unprocessed = [307, 308, 503, 521, 522, 523].contains(&status)
        || (400..=498).contains(&status) && status != 408;
    let processed = reason != Reason::Ok && !unprocessed;
    (reason, faults, processed)
}

#[test]
fn every_status_has_its_reason_its_verdict_and_its_doubt() {
    let (none, hint) = (HeaderMap::new(), headers(&[("retry-after", "7")]));
    for status in 100..1000 {
        let (reason, faults, processed) = expected(status);
        for (at, headers) in [&none, &hint].into_iter().enumerate() {
            let outcome = answered(status, headers, None);
            let verdict = faults.map_or(Verdict::Accept, |faults| Verdict::FailOver(faults[at]));
            assert_eq!(outcome.reason(), reason, "{status}");
            assert_eq!(Verdict::standard(&outcome), verdict, "{status} {headers:?}");
            let transient = match status {
                408 | 425 | 429 | 500..=599 => verdict,
                _ => Verdict::Accept,
            };
            assert_eq!(Verdict::transient(&outcome), transient, "{status}");
            assert_eq!(outcome.maybe_processed(), processed, "{status}");
            assert_eq!((outcome.code(), outcome.message()), (None, None));
        }
    }
}

#[test]
fn a_cause_that_blames_the_request_spares_the_provider() {
    let none = HeaderMap::new();
    let failed = Verdict::FailOver(Fault::Failure);
    let unhurt = Verdict::FailOver(Fault::None);
    for (status, code, verdict) in [
        (500, "invalid_request", unhurt),
        (500, "context_length_exceeded", unhurt),
        (502, "400", unhurt),
        (503, "content_filter", unhurt),
        (408, "invalid_prompt", unhurt),
        (500, "server_error", failed),
        (500, "model_not_found", failed),
        (500, "insufficient_quota", failed),
        (500, "never_heard_of", failed),
        // A key that is missing is said to be an `invalid_request_error`, too.
        (401, "invalid_request_error", failed),
        (401, "invalid_api_key", failed),
        (403, "400", failed),
        (403, "content_policy_violation", unhurt),
        (402, "insufficient_balance", failed),
        (429, "invalid_request", Verdict::FailOver(Fault::Cooldown(None))),
    ] {
        let cause = Cause::with_code(code);
        let outcome = answered(status, &none, Some(&cause));
        assert_eq!(Verdict::standard(&outcome), verdict, "{status} {code}");
        assert_eq!(outcome.code(), Some(code));
    }
}

#[test]
fn a_quota_that_is_used_up_rests_under_a_name_of_its_own() {
    let none = HeaderMap::new();
    for (code, reason) in [
        ("insufficient_quota", Reason::Quota),
        ("exceeded_current_quota_error", Reason::Quota),
        ("rate_limit_exceeded", Reason::RateLimited),
        ("never_heard_of", Reason::RateLimited),
    ] {
        let cause = Cause::with_code(code);
        for outcome in [
            answered(429, &none, Some(&cause)),
            // Inside a success it is an error in a success, unless it is a quota.
            flawed(Reason::ErrorInSuccess, &none, Some(&cause)),
        ] {
            let inside = outcome.status() == Some(StatusCode::OK);
            let reason = match reason {
                Reason::RateLimited if inside => Reason::ErrorInSuccess,
                reason => reason,
            };
            assert_eq!(outcome.reason(), reason, "{code}");
            let verdict = match code {
                "never_heard_of" if inside => Fault::Failure,
                _ => Fault::Cooldown(None),
            };
            assert_eq!(Verdict::standard(&outcome), Verdict::FailOver(verdict), "{code}");
            assert_eq!(Verdict::transient(&outcome), Verdict::FailOver(verdict), "{code}");
            assert_eq!(outcome.blames_account(), reason == Reason::Quota);
        }
        // Other statuses have reasons of their own.
        assert_eq!(answered(402, &none, Some(&cause)).reason(), Reason::Auth);
        assert_eq!(answered(403, &none, Some(&cause)).reason(), Reason::Auth);
        assert_eq!(answered(400, &none, Some(&cause)).reason(), Reason::ClientError);
    }
}

#[test]
fn an_error_in_a_success_is_judged_as_the_status_that_its_code_stands_for() {
    let none = HeaderMap::new();
    for status in 400..600 {
        let cause = Cause::with_code(&status.to_string());
        let inside = flawed(Reason::ErrorInSuccess, &none, Some(&cause));
        let plain = answered(status, &none, Some(&cause));
        assert_eq!(Verdict::standard(&inside), Verdict::standard(&plain), "{status}");
        assert_eq!(Verdict::transient(&inside), Verdict::transient(&plain), "{status}");
        assert_eq!(inside.reason(), Reason::ErrorInSuccess);
        assert!(inside.maybe_processed());
    }
    for (code, fault) in [
        ("invalid_request_error", Fault::None),
        ("model_not_found", Fault::None),
        ("authentication_error", Fault::Failure),
        ("rate_limit_error", Fault::Cooldown(SEVEN)),
        ("overloaded_error", Fault::Cooldown(SEVEN)),
        ("api_error", Fault::Failure),
        ("never_heard_of", Fault::Failure),
    ] {
        let cause = Cause::with_code(code);
        let hint = headers(&[("retry-after", "7")]);
        let outcome = flawed(Reason::ErrorInSuccess, &hint, Some(&cause));
        assert_eq!(Verdict::standard(&outcome), Verdict::FailOver(fault), "{code}");
    }
    // What the body says is a hint, too.
    let cause = Cause::read(br#"{"error":{"code":"rate_limit_exceeded","retry_after":7}}"#);
    let outcome = flawed(Reason::ErrorInSuccess, &none, Some(&cause));
    assert_eq!(Verdict::standard(&outcome), Verdict::FailOver(Fault::Cooldown(SEVEN)));
    assert_eq!(outcome.retry_after(), SEVEN);
}

#[test]
fn every_flaw_of_a_success_is_a_failure_that_may_have_been_processed() {
    let headers = headers(&[("x-a", "b")]);
    let silence = Cause::said("an empty body", None);
    for (reason, cause) in [
        (Reason::ErrorInSuccess, None),
        (Reason::ErrorInSuccess, Some(&silence)),
        (Reason::Reset, None),
        (Reason::Timeout, None),
    ] {
        let outcome = flawed(reason, &headers, cause);
        assert_eq!((outcome.reason(), outcome.status()), (reason, Some(StatusCode::OK)));
        assert_eq!(outcome.headers(), Some(&headers));
        assert_eq!(outcome.message(), cause.map(|_| "an empty body"));
        assert!(outcome.maybe_processed(), "{reason}");
        assert_eq!(Verdict::standard(&outcome), Verdict::FailOver(Fault::Failure));
        assert_eq!(Verdict::transient(&outcome), Verdict::FailOver(Fault::Failure));
    }
}

#[test]
fn an_unknown_model_is_told_and_judged_by_its_status() {
    let none = HeaderMap::new();
    let body = br#"{"error":{"type":"not_found_error","message":"model: claude-9"}}"#;
    let cause = Cause::read(body);
    let outcome = answered(404, &none, Some(&cause));
    assert!(outcome.blames_model() && !outcome.blames_account());
    assert_eq!(Verdict::standard(&outcome), Verdict::FailOver(Fault::None));
    let cause = Cause::read(br#"{"error":{"type":"not_found_error","message":"file: f1"}}"#);
    assert!(!answered(404, &none, Some(&cause)).blames_model());
    assert!(!answered(404, &none, None).blames_model());
}

#[test]
fn the_host_the_key_and_the_account_concern_every_model_of_a_provider() {
    let none = HeaderMap::new();
    let error = std::io::Error::other("broken");
    for (reason, is_common) in [
        (Reason::Connect, true),
        (Reason::Timeout, false),
        (Reason::Reset, false),
        (Reason::Redirected, false),
        (Reason::Other, false),
    ] {
        let outcome = Outcome::failed("p", reason, Some(&error), Duration::ZERO);
        assert_eq!(outcome.blames_provider(), is_common, "{reason}");
    }
    let credential = Outcome::unsent("p", Reason::Credential, &error, Duration::ZERO);
    assert!(credential.blames_provider());
    for (status, code, is_common) in [
        (401, None, true),
        (402, None, true),
        (403, None, true),
        (403, Some("model_not_found"), false),
        (429, None, false),
        (429, Some("rate_limit_exceeded"), false),
        (429, Some("insufficient_quota"), true),
        (400, Some("invalid_api_key"), true),
        (400, Some("context_length_exceeded"), false),
        (404, Some("model_not_found"), false),
        (500, None, false),
        (500, Some("insufficient_quota"), true),
        (503, Some("overloaded_error"), false),
    ] {
        let cause = code.map(Cause::with_code);
        let outcome = answered(status, &none, cause.as_ref());
        assert_eq!(outcome.blames_provider(), is_common, "{status} {code:?}");
    }
}

#[test]
fn a_switch_of_protocols_is_a_success_only_when_it_was_asked_for() {
    let none = HeaderMap::new();
    let status = StatusCode::SWITCHING_PROTOCOLS;
    let outcome = Outcome::answered("p", status, &none, true, None, Duration::ZERO, wall);
    assert_eq!(Verdict::standard(&outcome), Verdict::Accept);
    assert!(!outcome.maybe_processed());
}

#[test]
fn outcomes_without_a_response_have_their_verdicts() {
    let error = std::io::Error::other("broken");
    let failed = Verdict::FailOver(Fault::Failure);
    for (reason, ambiguous) in [
        (Reason::Connect, false),
        (Reason::Timeout, true),
        (Reason::Reset, true),
        (Reason::Other, true),
    ] {
        let outcome = Outcome::failed("p", reason, Some(&error), Duration::ZERO);
        assert_eq!(Verdict::standard(&outcome), failed, "{reason}");
        assert_eq!(Verdict::transient(&outcome), failed, "{reason}");
        assert_eq!(outcome.maybe_processed(), ambiguous, "{reason}");
        assert!(outcome.error().is_some() && outcome.headers().is_none());
    }
    // It may have been processed where it led.
    let redirected = Outcome::failed("p", Reason::Redirected, Some(&error), Duration::ZERO);
    assert_eq!(Verdict::standard(&redirected), Verdict::FailOver(Fault::None));
    assert!(redirected.maybe_processed());
    let credential = Outcome::unsent("p", Reason::Credential, &error, Duration::ZERO);
    assert_eq!(Verdict::standard(&credential), failed);
    let prepare = Outcome::unsent("p", Reason::Other, &error, Duration::ZERO);
    assert_eq!(Verdict::standard(&prepare), Verdict::FailOver(Fault::None));
    assert_eq!(Verdict::transient(&prepare), Verdict::FailOver(Fault::None));
    assert!(!prepare.maybe_processed() && !credential.maybe_processed());
}

#[test]
fn an_attempt_that_ran_out_of_time_is_ambiguous_only_if_it_was_sent() {
    for sent in [false, true] {
        let outcome = Outcome::timed_out("p", sent, Duration::ZERO);
        assert!(outcome.is_timeout() && outcome.error().is_none());
        assert_eq!(outcome.maybe_processed(), sent);
        assert_eq!(Verdict::standard(&outcome), Verdict::FailOver(Fault::Failure));
        assert_eq!(Verdict::transient(&outcome), Verdict::FailOver(Fault::Failure));
    }
}

#[test]
fn an_outcome_tells_what_came_of_the_attempt_and_shows_no_word_of_the_provider() {
    let headers = headers(&[("x-a", "canary"), ("retry-after", "7")]);
    let error = std::io::Error::other("canary");
    let cause = Cause::said("canary", Some("canary"));
    let took = Duration::from_millis(12);
    let status = StatusCode::TOO_MANY_REQUESTS;
    let limited = Outcome::answered("name", status, &headers, false, Some(&cause), took, wall);
    assert_eq!((limited.provider(), limited.elapsed()), ("name", took));
    assert_eq!(limited.status(), Some(StatusCode::TOO_MANY_REQUESTS));
    assert_eq!(limited.headers(), Some(&headers));
    assert_eq!(limited.retry_after(), Some(Duration::from_secs(7)));
    assert_eq!((limited.code(), limited.message()), (Some("canary"), Some("canary")));
    assert!(limited.error().is_none() && !limited.is_timeout() && !limited.is_connect());

    let refused = Outcome::failed("name", Reason::Connect, Some(&error), took);
    assert!(refused.is_connect() && !refused.is_timeout());
    assert_eq!((refused.status(), refused.headers()), (None, None));
    assert_eq!(refused.error().unwrap().to_string(), "canary");
    let unsent = Outcome::unsent("name", Reason::Credential, &error, took);
    assert_eq!(unsent.error().unwrap().to_string(), "canary");
    assert!(!unsent.is_connect());

    let shown = format!("{limited:?} {refused:?} {cause:?}");
    assert!(!shown.contains("canary"), "{shown}");
    for part in ["name", "RateLimited", "429", "ambiguous: false", "7s", "12ms", "Connect"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
}

#[test]
fn every_reason_has_its_label() {
    let table = [
        (Reason::Ok, "ok"),
        (Reason::ClientError, "client_error"),
        (Reason::Auth, "auth"),
        (Reason::Quota, "quota"),
        (Reason::RateLimited, "rate_limited"),
        (Reason::ServerError, "server_error"),
        (Reason::Redirected, "redirected"),
        (Reason::Connect, "connect"),
        (Reason::Timeout, "timeout"),
        (Reason::Reset, "reset"),
        (Reason::ErrorInSuccess, "error_in_success"),
        (Reason::Credential, "credential"),
        (Reason::Abandoned, "abandoned"),
        (Reason::Other, "other"),
    ];
    for (reason, label) in table {
        assert_eq!(reason.as_str(), label);
        assert_eq!(format!("{reason:>18}"), format!("{label:>18}"));
    }
}

/// Frames of HTTP/2: what a server sends first, and ways to end the client's stream.
const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
const REFUSED_STREAM: &[u8] = &[0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, 7];
const INTERNAL_ERROR: &[u8] = &[0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, 2];
const CANCEL: &[u8] = &[0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, 8];
/// The last stream that was taken in is none; the last that was, is the client's.
const GOAWAY_BEFORE: &[u8] = &[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const GOAWAY_AFTER: &[u8] = &[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0];

/// What reqwest says when a server ends the stream with this frame and closes.
async fn ended_by(frame: &'static [u8]) -> reqwest::Error {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let server = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        socket.write_all(SETTINGS).await.unwrap();
        let mut read = Vec::new();
        // Until the body is there, and so the headers.
        while !read.ends_with(b"canary") {
            assert!(socket.read_buf(&mut read).await.unwrap() > 0);
        }
        socket.write_all(frame).await.unwrap();
        socket.shutdown().await.unwrap();
        while socket.read_buf(&mut read).await.is_ok_and(|count| count > 0) {}
    });
    let client = reqwest::Client::builder()
        .no_proxy()
        .http2_prior_knowledge()
        .retry(reqwest::retry::never())
        .build()
        .unwrap();
    let error = client.post(url).body("canary").send().await.unwrap_err();
    server.abort();
    error
}

#[tokio::test]
async fn a_stream_that_was_refused_or_lies_beyond_a_goaway_was_not_processed() {
    for (frame, ambiguous) in [
        (REFUSED_STREAM, false),
        (GOAWAY_BEFORE, false),
        (GOAWAY_AFTER, true),
        (INTERNAL_ERROR, true),
        (CANCEL, true),
        (&[], true),
    ] {
        let error = ended_by(frame).await;
        let dynamic: &(dyn StdError + 'static) = &error;
        let outcome = Outcome::failed("p", Reason::Reset, Some(dynamic), Duration::ZERO);
        assert_eq!(outcome.maybe_processed(), ambiguous, "{frame:?}: {error:?}");
        // Behind another middleware, too.
        let wrapped = reqwest_middleware::Error::Middleware(error.into());
        let outcome = Outcome::failed("p", Reason::Reset, Some(&wrapped), Duration::ZERO);
        assert_eq!(outcome.maybe_processed(), ambiguous, "{frame:?}");
    }
}
