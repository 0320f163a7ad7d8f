//! What was reported of earlier versions, as JSON and, where it has one, in the form of a stream.

use std::time::SystemTime;

use http::StatusCode;

use super::*;
use crate::verdict::{Fault, Outcome, Reason, Verdict};

fn request(method: Method, headers: &[(&str, &str)], body: &str) -> Asked {
    let mut request = Request::new(method, Url::parse("https://a.example/v1/x").unwrap());
    for (name, value) in headers {
        request.headers_mut().append(HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
    }
    if !body.is_empty() {
        *request.body_mut() = Some(body.to_owned().into());
    }
    Asked::of(&request)
}

fn post() -> Asked {
    request(Method::POST, &[JSON], r#"{"model":"m"}"#)
}

fn post_for_stream() -> Asked {
    request(Method::POST, &[JSON], r#"{"model":"m","stream":true}"#)
}

fn get() -> Asked {
    request(Method::GET, &[("accept", "application/json")], "")
}

async fn seen(asked: Asked, kind: (&str, &str), body: &str, settings: &Inspect) -> Inspected {
    look_for(response(200, &[kind], [data(body)]), asked, settings).await
}

/// What is wrong with this answer.
async fn found(asked: Asked, kind: (&str, &str), body: &str) -> Option<FlawKind> {
    flaw(&seen(asked, kind, body, &Inspect::errors_in_success()).await)
}

fn event(data: &str) -> String {
    format!("data: {data}\n\n")
}

/// The same by the standard verdict.
fn verdict(inspected: &Inspected) -> Verdict {
    let Inspected::Failed(response, flaw) = inspected else { return Verdict::Accept };
    let (status, headers) = (response.status(), response.headers());
    let wall = || SystemTime::UNIX_EPOCH;
    let (reason, cause) = (Reason::ErrorInSuccess, flaw.cause());
    let outcome = Outcome::flawed("p", reason, status, headers, cause, Duration::ZERO, wall);
    Verdict::standard(&outcome)
}

#[tokio::test(start_paused = true)]
async fn the_state_of_a_resource_is_no_failure_of_the_request_for_it() {
    for job in [
        r#"{"object":"fine_tuning.job","status":"validating_files","error":{}}"#,
        r#"{"object":"fine_tuning.job","status":"running","error":{"code":null,"message":null,"param":null}}"#,
        r#"{"object":"fine_tuning.job","id":"j","status":"failed","error":{"code":"invalid","message":"x"}}"#,
        r#"{"object":"response","id":"r","status":"failed","error":{"code":"server_error","message":"x"}}"#,
        r#"{"id":"p","status":"failed","error":"CUDA out of memory","output":null}"#,
        r#"{"object":"batch","status":"failed","errors":{"object":"list","data":[{"code":"c"}]}}"#,
        r#"{"id":"m","type":"error","text":"a document about errors"}"#,
    ] {
        assert_eq!(found(get(), JSON, job).await, None, "{job}");
    }
    // What was just made may say that it has no error.
    for made in [
        r#"{"object":"fine_tuning.job","status":"validating_files","error":{}}"#,
        r#"{"object":"response","status":"queued","error":null}"#,
    ] {
        assert_eq!(found(post(), JSON, made).await, None, "{made}");
    }
    // An envelope without an object is an error whatever was asked.
    for error in [
        r#"{"error":{"message":"x","code":503}}"#,
        r#"{"error":{},"request_id":"r"}"#,
        r#"{"type":"error","error":{"type":"overloaded_error","message":"x"},"request_id":"r"}"#,
        r#"{"object":"error","message":"x","type":"NotFoundError","code":404}"#,
        r#"{"success":false,"errors":[{"code":1,"message":"x"}],"result":null,"messages":[]}"#,
        r#"{"code":500,"message":"x","data":null}"#,
        r#"[{"error":{"code":429,"message":"x"}}]"#,
    ] {
        assert_eq!(found(get(), JSON, error).await, Some(FlawKind::Error), "{error}");
        assert_eq!(found(post(), JSON, error).await, Some(FlawKind::Error), "{error}");
    }
    assert_eq!(found(get(), HTML, "<html>").await, Some(FlawKind::Html));
    assert_eq!(found(get(), JSON, "<!DOCTYPE html><p>").await, Some(FlawKind::Html));
    assert_eq!(found(get(), JSON, "").await, Some(FlawKind::Empty));
    // A page that is said to be text is one only to a request for data.
    let plain = ("content-type", "text/plain");
    let anything = request(Method::POST, &[JSON], "{}");
    assert_eq!(found(anything, plain, "<html>").await, None);
    assert_eq!(found(get(), plain, "<html>").await, Some(FlawKind::Html));
    assert_eq!(found(anything, JSON, "<html>").await, Some(FlawKind::Html));
}

#[tokio::test(start_paused = true)]
async fn an_error_that_says_nothing_next_to_a_whole_answer_is_none() {
    let answer = r#"{"choices":[{"message":{"content":"Hi"},"finish_reason":"stop"}],"error":{"message":"","type":"","param":"","code":null}}"#;
    assert_eq!(found(post(), JSON, answer).await, None);
    let alone = r#"{"error":{"code":null,"message":null}}"#;
    assert_eq!(found(post(), JSON, alone).await, Some(FlawKind::Error));
    assert_eq!(found(post_for_stream(), SSE, &event(alone)).await, Some(FlawKind::Error));
    // One that says something is an error, whatever else is there.
    let both = r#"{"choices":[{"message":{"content":"Hi"}}],"error":{"message":"x"}}"#;
    assert_eq!(found(post(), JSON, both).await, Some(FlawKind::Error));
}

#[tokio::test(start_paused = true)]
async fn an_error_in_a_choice_is_found() {
    for (choice, expected) in [
        (
            r#"{"finish_reason":"error","message":{"content":""},"error":{"code":502,"message":"x"}}"#,
            true,
        ),
        (
            r#"{"finish_reason":null,"message":{"content":null},"error":{"code":502,"message":"x"}}"#,
            true,
        ),
        (r#"{"finish_reason":"error","message":{"content":null}}"#, true),
        (r#"{"finish_reason":"insufficient_system_resource","message":{"content":""}}"#, true),
        (r#"{"finish_reason":"stop","message":{"content":""}}"#, false),
        (r#"{"finish_reason":"length","message":{"content":null}}"#, false),
        (r#"{"finish_reason":"stop","message":{"content":"\"error\""}}"#, false),
        (r#"{"finish_reason":"stop","message":{"content":"Hi"},"error":null}"#, false),
        (r#"{"finish_reason":"stop","message":{"content":"Hi"},"error":{"message":""}}"#, false),
    ] {
        let body = format!(r#"{{"id":"c","choices":[{choice}]}}"#);
        let expected = expected.then_some(FlawKind::Error);
        assert_eq!(found(post(), JSON, &body).await, expected, "{choice}");
        let delta = body.replace("message\":{\"content", "delta\":{\"content");
        let flaw = found(post_for_stream(), SSE, &event(&delta)).await;
        assert_eq!(flaw, expected, "{delta}");
        // Some servers stream whole messages.
        assert_eq!(found(post_for_stream(), SSE, &event(&body)).await, expected, "{body}");
    }
    let body = r#"{"choices":[{"finish_reason":"error","message":{"content":""},"error":{"code":502,"message":"x"}}]}"#;
    let inspected = seen(post(), JSON, body, &Inspect::errors_in_success()).await;
    assert_eq!(message(&inspected), Some("x"));
    assert_eq!(verdict(&inspected), Verdict::FailOver(Fault::Failure));
}

#[tokio::test(start_paused = true)]
async fn other_envelopes_are_read() {
    let gemini = r#"[{"error":{"code":429,"message":"x","status":"RESOURCE_EXHAUSTED","details":[{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"34s"}]}}]"#;
    let rest = Fault::Cooldown(Some(Duration::from_secs(34)));
    for (body, fault) in [
        (r#"{"object":"error","message":"x","type":"NotFoundError","code":404}"#, Fault::None),
        (gemini, rest),
        (r#"{"base_resp":{"status_code":1002,"status_msg":"x"}}"#, Fault::Cooldown(None)),
    ] {
        for (asked, kind, body) in
            [(post(), JSON, body.to_owned()), (post_for_stream(), SSE, event(body))]
        {
            let inspected = seen(asked, kind, &body, &Inspect::errors_in_success()).await;
            assert_eq!(message(&inspected), Some("x"), "{body}");
            assert_eq!(verdict(&inspected), Verdict::FailOver(fault), "{body}");
        }
    }
    // The first element decides, as soon as it is there; the others are not waited for.
    for (beginning, expected) in [
        ("[{\"candidates\":[]}\n", None),
        ("[{\"error\":{\"code\":503}}", Some(FlawKind::Error)),
        ("[[1,2", None),
        ("[0.1,", None),
    ] {
        let since = now();
        let stalled = response(200, &[JSON], [data(beginning), Step::Stall]);
        let seen = look_for(stalled, post(), &Inspect::errors_in_success()).await;
        assert_eq!(flaw(&seen), expected, "{beginning}");
        assert_eq!(now(), since, "{beginning}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_bytes_are_believed_and_not_the_type() {
    let error = r#"{"error":{"message":"x"}}"#;
    for kind in ["text/plain", "application/json", "application/octet-stream", "text/event-stream"]
    {
        let kind = ("content-type", kind);
        for (asked, body) in [
            (post_for_stream(), event(error)),
            (request(Method::POST, &[JSON, ("accept", "text/event-stream")], "{}"), event(error)),
            (post_for_stream(), error.to_owned()),
            (post_for_stream(), format!("\n{error}\n")),
            (post_for_stream(), format!("\u{feff}: hi\n\n{}", event(error))),
            (post(), error.to_owned()),
        ] {
            let inspected = seen(asked, kind, &body, &Inspect::errors_in_success()).await;
            assert_eq!(message(&inspected), Some("x"), "{kind:?} {body:?}");
        }
        // Whatever it is said to be, it is followed to its end.
        let good = event(r#"{"choices":[{"delta":{"content":"Hi"}}]}"#);
        let seen = seen(post_for_stream(), kind, &good, &Inspect::errors_in_success()).await;
        let (mut response, told) = into_response(seen);
        assert!(!chunks(&mut response).await.1);
        assert_eq!(*told.lock().unwrap(), [StreamEnd::Broken(FlawKind::Broken.into())], "{kind:?}");
    }
    // A text that looks like a stream is a text to one who did not ask for a stream.
    let text = found(post(), ("content-type", "text/plain"), "data: {\"error\":1}\n\n").await;
    assert_eq!(text, None);
}

#[tokio::test(start_paused = true)]
async fn an_empty_answer_to_what_needs_none_is_right() {
    let accept = ("accept", "application/json, text/event-stream");
    let notification = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
    let upload = ("content-type", "multipart/form-data; boundary=x");
    let (json, events) = (("accept", "application/json"), accept);
    for (asked, status, expected) in [
        (post(), 202, None),
        (request(Method::POST, &[JSON, events], "{}"), 202, None),
        (request(Method::POST, &[JSON, json], notification), 200, None),
        (request(Method::POST, &[upload, json], "--x"), 200, None),
        (request(Method::PUT, &[JSON, json], "{}"), 200, None),
        (request(Method::DELETE, &[json], ""), 200, None),
        (post(), 200, Some(FlawKind::Empty)),
        (post(), 201, Some(FlawKind::Empty)),
        (get(), 200, Some(FlawKind::Empty)),
    ] {
        for headers in [&[][..], &[JSON], &[("content-type", "application/octet-stream")]] {
            let empty = response(status, headers, []);
            let seen = look_for(empty, asked, &Inspect::errors_in_success()).await;
            assert_eq!(flaw(&seen), expected, "{asked:?} {status} {headers:?}");
        }
    }
    let empty = response(202, &[SSE], []);
    let seen = look_for(empty, post_for_stream(), &Inspect::errors_in_success()).await;
    assert_eq!(flaw(&seen), None);
    assert_eq!(found(post_for_stream(), SSE, "").await, Some(FlawKind::Ended));
}

fn rpc_error(code: i64, message: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":1,"error":{{"code":{code},"message":"{message}"}}}}"#)
}

#[tokio::test(start_paused = true)]
async fn of_the_errors_of_json_rpc_only_those_of_the_node_fail() {
    let settings = Inspect::errors_in_success().json_rpc();
    let call = request(Method::POST, &[JSON], r#"{"jsonrpc":"2.0","id":1,"method":"eth_call"}"#);
    let result = r#"{"jsonrpc":"2.0","id":2,"result":"0x1"}"#;
    for (code, text, failed) in [
        (3, "execution reverted", false),
        (-32000, "nonce too low", false),
        (-32000, "insufficient funds for gas", false),
        (-32602, "invalid argument 0", false),
        (-32601, "the method does not exist", false),
        (-32002, "Transaction simulation failed", false),
        (-32007, "Slot 9 was skipped", false),
        (-32005, "query returned more than 10000 results", false),
        (7, "anything", false),
        (-32005, "project ID request rate exceeded", true),
        (-32005, "Node is behind by 42 slots", true),
        (-32007, "50/second request limit reached", true),
        (-32000, "header not found", true),
        (-32603, "Internal error", true),
        (-32016, "Minimum context slot has not been reached", true),
        (429, "slow down", true),
        (401, "no such key", true),
    ] {
        let error = rpc_error(code, text);
        let expected = failed.then_some(FlawKind::Error);
        for (kind, body) in [
            (JSON, error.clone()),
            (SSE, event(&error)),
            (JSON, format!("[{result},{error}]")),
            (JSON, format!("[{error},{result}]")),
            (JSON, format!("[{},{error}]", rpc_error(3, "execution reverted"))),
        ] {
            let inspected = seen(call, kind, &body, &settings).await;
            assert_eq!(flaw(&inspected), expected, "{body}");
            if failed {
                assert_eq!(message(&inspected), Some(text), "{body}");
            }
        }
    }
    assert_eq!(flaw(&seen(call, JSON, result, &settings).await), None);
    let batch = format!("[{result},{result}]");
    assert_eq!(flaw(&seen(call, JSON, &batch, &settings).await), None);
    // A limit rests the node, a lag is its failure.
    for (text, fault) in
        [("request rate exceeded", Fault::Cooldown(None)), ("Node is behind", Fault::Failure)]
    {
        let inspected = seen(call, JSON, &rpc_error(-32005, text), &settings).await;
        assert_eq!(verdict(&inspected), Verdict::FailOver(fault), "{text}");
    }
    // Another vendor's error in the same body is one all the same.
    let inspected = seen(call, JSON, r#"{"error":{"message":"x"}}"#, &settings).await;
    assert_eq!(flaw(&inspected), Some(FlawKind::Error));
}

#[tokio::test(start_paused = true)]
async fn the_fault_of_the_request_is_not_charged_to_the_provider() {
    for (code, fault) in [
        ("400", Fault::None),
        ("404", Fault::None),
        ("422", Fault::None),
        ("429", Fault::Cooldown(None)),
        ("500", Fault::Failure),
        (r#""context_length_exceeded""#, Fault::None),
        (r#""insufficient_quota""#, Fault::Cooldown(None)),
        ("null", Fault::Failure),
    ] {
        let error = format!(r#"{{"error":{{"message":"x","code":{code}}}}}"#);
        for (asked, kind, body) in
            [(post(), JSON, error.clone()), (post_for_stream(), SSE, event(&error))]
        {
            let inspected = seen(asked, kind, &body, &Inspect::errors_in_success()).await;
            assert_eq!(verdict(&inspected), Verdict::FailOver(fault), "{body}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_without_content_fails_where_that_is_asked_for() {
    let settings = Inspect::errors_in_success().empty_answers();
    for (body, empty) in [
        (r#"{"choices":[]}"#, true),
        (
            r#"{"choices":[{"message":{"role":"assistant","content":null},"finish_reason":"stop"}]}"#,
            true,
        ),
        (r#"{"choices":[{"message":{"content":""},"finish_reason":"length"}]}"#, true),
        (
            r#"{"choices":[{"message":{"content":"","reasoning":"Hm"},"finish_reason":"stop"}]}"#,
            true,
        ),
        (r#"{"choices":[{"text":"","finish_reason":"stop"}]}"#, true),
        (r#"{"type":"message","role":"assistant","content":[],"stop_reason":"end_turn"}"#, true),
        (r#"{"object":"response","status":"completed","output":[]}"#, true),
        (r#"{"candidates":[{"content":{"role":"model"},"finishReason":"STOP"}]}"#, true),
        (r#"{"choices":[{"message":{"content":"Hi"},"finish_reason":"stop"}]}"#, false),
        (
            r#"{"choices":[{"message":{"content":null,"refusal":"No."},"finish_reason":"stop"}]}"#,
            false,
        ),
        (
            r#"{"choices":[{"message":{"content":null,"tool_calls":[{"function":{"name":"f"}}]},"finish_reason":"tool_calls"}]}"#,
            false,
        ),
        (r#"{"choices":[{"message":{"content":null},"finish_reason":"content_filter"}]}"#, false),
        (
            r#"{"choices":[{"message":{"content":""},"finish_reason":"stop"},{"message":{"content":"Hi"},"finish_reason":"stop"}]}"#,
            false,
        ),
        (
            r#"{"type":"message","content":[{"type":"text","text":"Hi"}],"stop_reason":"end_turn"}"#,
            false,
        ),
        (
            r#"{"object":"response","status":"completed","output":[{"type":"function_call","name":"f"}]}"#,
            false,
        ),
        (r#"{"candidates":[{"finishReason":"SAFETY"}]}"#, false),
        (r#"{"object":"list","data":[]}"#, false),
    ] {
        let flaw_of = async |asked, settings| flaw(&seen(asked, JSON, body, settings).await);
        let expected = empty.then_some(FlawKind::NoContent);
        assert_eq!(flaw_of(post(), &settings).await, expected, "{body}");
        assert_eq!(flaw_of(get(), &settings).await, None, "{body}");
        assert_eq!(flaw_of(post(), &Inspect::errors_in_success()).await, None, "{body}");
    }
    let nothing = [
        r#"{"choices":[{"delta":{"content":""}}]}"#,
        r#"{"choices":[{"delta":{},"finish_reason":"stop"}]}"#,
        "[DONE]",
    ];
    let stream: String = nothing.iter().map(|data| event(data)).collect();
    let inspected = seen(post_for_stream(), SSE, &stream, &settings).await;
    assert_eq!(flaw(&inspected), Some(FlawKind::NoContent));
    assert_eq!(verdict(&inspected), Verdict::FailOver(Fault::Failure));
}

#[tokio::test(start_paused = true)]
async fn a_check_of_ones_own_is_asked_last_and_says_what_is_wrong() {
    let asked_of = Arc::new(Mutex::new(Vec::new()));
    let settings = Inspect::errors_in_success().also({
        let asked_of = asked_of.clone();
        move |answer| {
            let body = String::from_utf8_lossy(answer.body()).into_owned();
            assert!(format!("{answer:?}").contains("bytes"));
            assert!(!format!("{answer:?}").contains("sorry"));
            assert_eq!((answer.status(), answer.headers().len()), (StatusCode::OK, 1));
            asked_of.lock().unwrap().push((body.clone(), answer.is_stream()));
            match &*body {
                "panic" => panic!("scripted"),
                body if body.contains("limit") => {
                    Some(Flaw::new("it is sorry").code("rate_limit_exceeded"))
                }
                body if body.contains("sorry") => Some(Flaw::new("it is sorry")),
                _ => None,
            }
        }
    });
    let (plain, png) = (("content-type", "text/plain"), ("content-type", "image/png"));
    let sorry = event(r#"{"choices":[{"delta":{"content":"sorry"}}]}"#);
    for (kind, body, stream, fault) in [
        (JSON, r#"{"a":"fine"}"#, false, None),
        (JSON, r#"{"a":"sorry"}"#, false, Some(Fault::Failure)),
        (JSON, r#"["sorry: limit"]"#, false, Some(Fault::Cooldown(None))),
        (plain, "sorry", false, Some(Fault::Failure)),
        (plain, "panic", false, None),
        (SSE, &sorry, true, Some(Fault::Failure)),
    ] {
        let panics = std::sync::atomic::AtomicUsize::new(0);
        let until = now() + Duration::from_secs(9);
        let halves = body.split_at(body.len() / 2);
        let response = response(200, &[kind], [data(halves.0), data(halves.1)]);
        let on_panic = || {
            panics.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        };
        let seen = inspect(response, post_for_stream(), &settings, now(), until, &on_panic).await;
        assert_eq!(*asked_of.lock().unwrap(), [(body.to_owned(), stream)]);
        asked_of.lock().unwrap().clear();
        let expected = fault.map_or(Verdict::Accept, Verdict::FailOver);
        assert_eq!(verdict(&seen), expected, "{body}");
        assert_eq!(message(&seen), fault.map(|_| "it is sorry"), "{body}");
        assert_eq!(panics.into_inner(), usize::from(body == "panic"));
        let (mut response, _) = into_response(seen);
        assert_eq!(chunks(&mut response).await.0.concat(), body.as_bytes());
    }
    for (kind, body) in [(png, "sorry"), (JSON, r#"{"error":"x"}"#), (HTML, "sorry")] {
        let _ = seen(post(), kind, body, &settings).await;
        assert!(asked_of.lock().unwrap().is_empty(), "{body}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_falls_silent_ends_with_an_error_where_that_is_asked_for() {
    let hello = r#"data: {"choices":[{"delta":{"content":"a"}}]}"#;
    let settings = Inspect::errors_in_success().idle_timeout(Duration::from_secs(3));
    for (rest, silence, end) in [
        (vec![Step::Stall], Some(3000), StreamEnd::Broken(FlawKind::Silent.into())),
        (
            vec![Step::Wait(2000), data(": hi\n\n"), Step::Stall],
            Some(5000),
            StreamEnd::Broken(FlawKind::Silent.into()),
        ),
        (vec![Step::Wait(2999), data("data: [DONE]\n\n")], None, StreamEnd::Complete),
        // Nothing is due after the last word.
        (vec![data("data: [DONE]\n\n"), Step::Wait(60_000)], None, StreamEnd::Complete),
    ] {
        let steps = [vec![data(&format!("{hello}\n\n"))], rest.clone()].concat();
        let seen = look_for(response(200, &[SSE], steps), post_for_stream(), &settings).await;
        let (mut response, told) = into_response(seen);
        let since = now();
        let error = loop {
            match response.chunk().await {
                Ok(Some(_)) => {}
                Ok(None) => break None,
                Err(error) => break Some(error),
            }
        };
        assert_eq!(error.is_some(), silence.is_some(), "{rest:?}");
        if let (Some(error), Some(silence)) = (error, silence) {
            assert!(error.is_timeout(), "{error:?}");
            assert_eq!(now() - since, Duration::from_millis(silence), "{rest:?}");
            assert_eq!(response.chunk().await.unwrap(), None);
        }
        assert_eq!(*told.lock().unwrap(), [end], "{rest:?}");
    }
    // The time that its reader takes is no silence.
    let steps =
        [data(&format!("{hello}\n\n")), data(&format!("{hello}\n\n")), data("data: [DONE]\n\n")];
    let seen = look_for(response(200, &[SSE], steps), post_for_stream(), &settings).await;
    let (mut response, told) = into_response(seen);
    while response.chunk().await.unwrap().is_some() {
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
    assert_eq!(*told.lock().unwrap(), [StreamEnd::Complete]);
    // Without the limit a stream may be silent for as long as its reader waits.
    let steps = [data(&format!("{hello}\n\n")), Step::Wait(3_600_000), data("data: [DONE]\n\n")];
    let seen = look_at(&[SSE], steps).await;
    let (mut response, told) = into_response(seen);
    assert!(!chunks(&mut response).await.1);
    assert_eq!(*told.lock().unwrap(), [StreamEnd::Complete]);
}

#[tokio::test(start_paused = true)]
async fn a_timeout_below_says_for_how_long_the_stream_was_silent() {
    let hello = data("data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n");
    for (steps, millis) in [
        (vec![hello.clone(), Step::TimeOut], 0),
        (
            vec![hello.clone(), Step::Wait(700), hello.clone(), Step::Wait(5000), Step::TimeOut],
            5000,
        ),
    ] {
        let (mut response, told) = into_response(look_at(&[SSE], steps).await);
        assert!(chunks(&mut response).await.1);
        let quiet_for = Duration::from_millis(millis);
        assert_eq!(*told.lock().unwrap(), [StreamEnd::Silent { quiet_for }]);
    }
}
