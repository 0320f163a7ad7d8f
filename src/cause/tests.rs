use std::time::SystemTime;

use http::HeaderMap;
use proptest::prelude::*;

use super::*;
use crate::verdict::{Fault, Outcome, Verdict};

/// An envelope: where it is from, the status it came with, its body with every value replaced, and what
/// is to be made of it.
struct Row {
    source: &'static str,
    status: u16,
    body: &'static str,
    code: Option<&'static str>,
    message: &'static str,
    blames: Blame,
    verdict: Fault,
}

const fn row(
    source: &'static str,
    status: u16,
    body: &'static str,
    code: Option<&'static str>,
    message: &'static str,
    blames: Blame,
    verdict: Fault,
) -> Row {
    Row { source, status, body, code, message, blames, verdict }
}

const REST: Fault = Fault::Cooldown(None);

const fn rest(seconds: u64) -> Fault {
    Fault::Cooldown(Some(Duration::from_secs(seconds)))
}

use Blame::{Account, Model, Provider, Request, Unknown};
use Fault::{Failure, None as Unhurt};

/// The sources are the vendors' pages that the tables name, and issues in public trackers.
#[rustfmt::skip]
const ROWS: &[Row] = &[
    row("OpenAI, error codes", 401,
        r#"{"error":{"message":"Incorrect API key provided: sk-1.","type":"invalid_request_error","param":null,"code":"invalid_api_key"}}"#,
        Some("invalid_api_key"), "Incorrect API key provided: sk-1.", Account, Failure),
    row("OpenAI, a request without a key", 401,
        r#"{"error":{"message":"You didn't provide an API key.","type":"invalid_request_error","param":null,"code":null}}"#,
        Some("invalid_request_error"), "You didn't provide an API key.", Request, Failure),
    row("OpenAI, quota", 429,
        r#"{"error":{"message":"You exceeded your current quota.","type":"insufficient_quota","param":null,"code":"insufficient_quota"}}"#,
        Some("insufficient_quota"), "You exceeded your current quota.", Account, REST),
    row("OpenAI, rate limit", 429,
        r#"{"error":{"message":"Rate limit reached for m on tokens.","type":"tokens","param":null,"code":"rate_limit_exceeded"}}"#,
        Some("rate_limit_exceeded"), "Rate limit reached for m on tokens.", Provider, REST),
    row("OpenAI, unknown model", 404,
        r#"{"error":{"message":"The model `m` does not exist.","type":"invalid_request_error","param":null,"code":"model_not_found"}}"#,
        Some("model_not_found"), "The model `m` does not exist.", Model, Unhurt),
    row("OpenAI, too long", 400,
        r#"{"error":{"message":"Maximum context length is 9.","type":"invalid_request_error","param":"messages","code":"context_length_exceeded"}}"#,
        Some("context_length_exceeded"), "Maximum context length is 9.", Request, Unhurt),
    row("OpenAI, its own failure", 500,
        r#"{"error":{"message":"The server had an error.","type":"server_error","param":null,"code":null}}"#,
        Some("server_error"), "The server had an error.", Provider, Failure),
    row("OpenAI Responses, event `error`", 200,
        r#"{"type":"error","code":"server_error","message":"Oh.","param":null,"sequence_number":3}"#,
        Some("server_error"), "Oh.", Provider, Failure),
    row("OpenAI Responses, `response.failed`", 200,
        r#"{"type":"response.failed","response":{"id":"r","status":"failed","error":{"code":"rate_limit_exceeded","message":"Slow."}}}"#,
        Some("rate_limit_exceeded"), "Slow.", Provider, REST),
    row("Anthropic, overloaded", 529,
        r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"},"request_id":"req_1"}"#,
        Some("overloaded_error"), "Overloaded", Provider, Failure),
    row("Anthropic, rate limit", 429,
        r#"{"type":"error","error":{"type":"rate_limit_error","message":"Slow."}}"#,
        Some("rate_limit_error"), "Slow.", Provider, REST),
    row("Anthropic, unknown model", 404,
        r#"{"type":"error","error":{"type":"not_found_error","message":"model: m"}}"#,
        Some("not_found_error"), "model: m", Model, Unhurt),
    row("Anthropic, unknown batch", 404,
        r#"{"type":"error","error":{"type":"not_found_error","message":"Batch not found"}}"#,
        Some("not_found_error"), "Batch not found", Request, Unhurt),
    row("Anthropic, credit", 400,
        r#"{"type":"error","error":{"type":"billing_error","message":"Your credit balance is too low."}}"#,
        Some("billing_error"), "Your credit balance is too low.", Account, Unhurt),
    row("Anthropic, overloaded within a stream", 200,
        r#"{"type":"error","error":{"details":null,"type":"overloaded_error","message":"Overloaded"}}"#,
        Some("overloaded_error"), "Overloaded", Provider, Failure),
    row("Gemini, as a list", 429,
        r#"[{"error":{"code":429,"message":"x","status":"RESOURCE_EXHAUSTED","details":[{"@type":"type.googleapis.com/google.rpc.Help","links":[{"description":"d","url":"u"}]},{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"34s"}]}}]"#,
        Some("RESOURCE_EXHAUSTED"), "x", Provider, rest(34)),
    row("Gemini, a dead key", 400,
        r#"{"error":{"code":400,"message":"API key not valid.","status":"INVALID_ARGUMENT","details":[{"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":"API_KEY_INVALID","domain":"googleapis.com"}]}}"#,
        Some("API_KEY_INVALID"), "API key not valid.", Account, Unhurt),
    row("Gemini, overloaded", 503,
        r#"{"error":{"code":503,"message":"The model is overloaded.","status":"UNAVAILABLE"}}"#,
        Some("UNAVAILABLE"), "The model is overloaded.", Provider, Failure),
    row("Gemini, a limit inside a 200", 200,
        r#"[{"error":{"code":429,"message":"x","status":"RESOURCE_EXHAUSTED","details":[{"retryDelay":"1.5s"}]}}]"#,
        Some("RESOURCE_EXHAUSTED"), "x", Provider, Fault::Cooldown(Some(Duration::from_millis(1500)))),
    row("Vertex, Cloud Code", 429,
        r#"[{"error":{"code":429,"message":"Exhausted.","errors":[{"message":"Inner.","domain":"global","reason":"rateLimitExceeded"}],"status":"RESOURCE_EXHAUSTED"}}]"#,
        Some("RESOURCE_EXHAUSTED"), "Exhausted.", Provider, REST),
    row("CometAPI, a malformed request", 500,
        r#"{"error":{"message":"x","type":"comet_api_error","param":"","code":"invalid_request"}}"#,
        Some("invalid_request"), "x", Request, Unhurt),
    row("CometAPI, without a code", 500,
        r#"{"error":{"code":"","message":"x","type":"comet_api_error"}}"#,
        Some("comet_api_error"), "x", Unknown, Failure),
    row("CometAPI, a number for a code", 200,
        r#"{"error":{"message":"No channel is free.","code":503}}"#,
        Some("503"), "No channel is free.", Provider, Failure),
    row("New API, no credit", 403,
        r#"{"error":{"code":"insufficient_user_quota","message":"x","type":"new_api_error"}}"#,
        Some("insufficient_user_quota"), "x", Account, Failure),
    row("New API, no channel for the model", 503,
        r#"{"error":{"code":"model_not_found","message":"No available channel for model m","type":"new_api_error"}}"#,
        Some("model_not_found"), "No available channel for model m", Model, Failure),
    row("New API, words", 500,
        r#"{"error":{"code":"sensitive_words_detected","message":"x","type":"new_api_error"}}"#,
        Some("sensitive_words_detected"), "x", Request, Unhurt),
    row("OpenRouter, credit", 402,
        r#"{"error":{"code":402,"message":"Insufficient credits"}}"#,
        Some("402"), "Insufficient credits", Account, Failure),
    row("OpenRouter, a provider behind it", 429,
        r#"{"error":{"message":"Provider returned error","code":429,"metadata":{"raw":"limited","provider_name":"P","is_byok":false,"retry_after_seconds":17,"retry_after_seconds_raw":16.007}},"user_id":"u"}"#,
        Some("429"), "Provider returned error", Provider, rest(17)),
    row("OpenRouter, in a choice", 200,
        r#"{"choices":[{"finish_reason":"error","message":{"content":""},"error":{"code":502,"message":"x"}}]}"#,
        Some("502"), "x", Provider, Failure),
    row("OpenRouter, a bad request inside a 200", 200,
        r#"{"error":{"message":"x","code":400}}"#,
        Some("400"), "x", Request, Unhurt),
    row("Azure, content filter", 400,
        r#"{"error":{"message":"Filtered.","type":null,"param":"prompt","code":"content_filter","status":400,"innererror":{"code":"ResponsibleAIPolicyViolation","content_filter_result":{"hate":{"filtered":true,"severity":"high"}}}}}"#,
        Some("content_filter"), "Filtered.", Request, Unhurt),
    row("Azure, rate limit", 429,
        r#"{"error":{"code":"429","message":"Retry after 26 seconds."}}"#,
        Some("429"), "Retry after 26 seconds.", Provider, REST),
    row("Azure, unknown deployment", 404,
        r#"{"error":{"code":"DeploymentNotFound","message":"x"}}"#,
        Some("DeploymentNotFound"), "x", Model, Unhurt),
    row("Azure API Management", 429,
        r#"{ "statusCode": 429, "message": "Rate limit is exceeded." }"#,
        Some("429"), "Rate limit is exceeded.", Provider, REST),
    row("Groq, last chunk", 200,
        r#"{"id":"c","choices":[],"x_groq":{"id":"r","error":"over capacity"}}"#,
        None, "over capacity", Unknown, Failure),
    row("Groq, tool call", 400,
        r#"{"error":{"message":"x","type":"invalid_request_error","code":"tool_use_failed","failed_generation":"<f>"}}"#,
        Some("tool_use_failed"), "x", Request, Unhurt),
    row("Mistral", 429,
        r#"{"object":"error","message":"Rate limit exceeded","type":"rate_limited","param":null,"code":"1300","raw_status_code":429}"#,
        Some("rate_limited"), "Rate limit exceeded", Provider, REST),
    row("vLLM", 404,
        r#"{"object":"error","message":"The model `m` does not exist.","type":"NotFoundError","param":null,"code":404}"#,
        Some("NotFoundError"), "The model `m` does not exist.", Model, Unhurt),
    row("vLLM, a number for a code, inside a 200", 200,
        r#"{"object":"error","message":"x","type":"BadRequestError","param":null,"code":400}"#,
        Some("BadRequestError"), "x", Request, Unhurt),
    row("DeepSeek", 402,
        r#"{"error":{"message":"Insufficient Balance","type":"unknown_error","param":null,"code":"invalid_request_error"}}"#,
        Some("invalid_request_error"), "Insufficient Balance", Provider, Failure),
    row("Moonshot", 429,
        r#"{"error":{"message":"x","type":"exceeded_current_quota_error"}}"#,
        Some("exceeded_current_quota_error"), "x", Account, REST),
    row("Moonshot, filter", 400,
        r#"{"error":{"type":"content_filter","message":"High risk."}}"#,
        Some("content_filter"), "High risk.", Request, Unhurt),
    row("Together", 429,
        r#"{"error":{"message":"x","error_type":"dynamic_token_limited"}}"#,
        Some("dynamic_token_limited"), "x", Provider, REST),
    row("DashScope", 429,
        r#"{"code":"Throttling.RateQuota","message":"Slow.","request_id":"r"}"#,
        Some("Throttling.RateQuota"), "Slow.", Provider, REST),
    row("DashScope, arrears", 400,
        r#"{"code":"Arrearage","message":"Access denied.","request_id":"r"}"#,
        Some("Arrearage"), "Access denied.", Account, Unhurt),
    row("MiniMax, balance inside a 200", 200,
        r#"{"id":"i","choices":null,"base_resp":{"status_code":1008,"status_msg":"insufficient balance"}}"#,
        Some("1008"), "insufficient balance", Account, REST),
    row("MiniMax, content", 200,
        r#"{"base_resp":{"status_code":1026,"status_msg":"input new_sensitive"}}"#,
        Some("1026"), "input new_sensitive", Request, Unhurt),
    row("Zhipu", 429,
        r#"{"error":{"code":"1302","message":"x"}}"#,
        Some("1302"), "x", Provider, REST),
    row("Bedrock", 429,
        r#"{"__type":"com.amazon.coral.service#ThrottlingException","message":"Slow."}"#,
        Some("com.amazon.coral.service#ThrottlingException"), "Slow.", Provider, REST),
    row("Bedrock, access", 403,
        r#"{"Message":"User is not authorized"}"#,
        None, "User is not authorized", Unknown, Failure),
    row("Ollama", 404,
        r#"{"error":"model \"m\" not found, try pulling it first"}"#,
        None, "model \"m\" not found, try pulling it first", Unknown, Unhurt),
    row("Cohere", 429,
        r#"{"message":"You are using a trial key"}"#,
        None, "You are using a trial key", Unknown, REST),
    row("FastAPI", 422,
        r#"{"detail":[{"type":"missing","loc":["body","model"],"msg":"Field required","input":{"a":1}}]}"#,
        Some("missing"), "Field required", Unknown, Unhurt),
    row("FastAPI, not found", 404,
        r#"{"detail":"Not Found"}"#,
        None, "Not Found", Unknown, Unhurt),
    row("ElevenLabs", 401,
        r#"{"detail":{"status":"quota_exceeded","message":"x"}}"#,
        Some("quota_exceeded"), "x", Account, Failure),
    row("Cloudflare", 403,
        r#"{"success":false,"errors":[{"code":10000,"message":"Authentication error"}],"messages":[],"result":null}"#,
        Some("10000"), "Authentication error", Unknown, Failure),
    row("GraphQL", 200,
        r#"{"errors":[{"message":"x","extensions":{"code":"UNAUTHENTICATED"}}],"data":null}"#,
        Some("UNAUTHENTICATED"), "x", Account, Failure),
    row("Deepgram", 402,
        r#"{"err_code":"ASR_PAYMENT_REQUIRED","err_msg":"x","request_id":"r"}"#,
        Some("ASR_PAYMENT_REQUIRED"), "x", Unknown, Failure),
    row("Stability", 400,
        r#"{"id":"i","name":"bad_request","errors":["Too short."]}"#,
        Some("bad_request"), "Too short.", Unknown, Unhurt),
    row("Baidu", 429,
        r#"{"error_code":18,"error_msg":"Open api qps request limit reached"}"#,
        Some("18"), "Open api qps request limit reached", Unknown, REST),
    row("Apigee", 401,
        r#"{"fault":{"faultstring":"Invalid ApiKey","detail":{"errorcode":"oauth.v2.InvalidApiKey"}}}"#,
        Some("oauth.v2.InvalidApiKey"), "Invalid ApiKey", Unknown, Failure),
    row("OAuth, RFC 6749", 401,
        r#"{"error":"invalid_client","error_description":"Unknown client"}"#,
        Some("invalid_client"), "Unknown client", Account, Failure),
    row("Problem details, RFC 9457", 403,
        r#"{"type":"https://example.com/out-of-credit","title":"No credit.","detail":"Your balance is 30.","status":403}"#,
        Some("https://example.com/out-of-credit"), "Your balance is 30.", Account, Failure),
    row("Infura, rate", 429,
        r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32005,"message":"project ID request rate exceeded","data":{"see":"u","current_rps":13.3,"allowed_rps":10.0,"backoff_seconds":30.0}}}"#,
        Some("-32005"), "project ID request rate exceeded", Provider, rest(30)),
    row("Infura, a day's requests, inside a 200", 200,
        r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32005,"message":"daily request count exceeded, request rate limited"}}"#,
        Some("-32005"), "daily request count exceeded, request rate limited", Account, REST),
    row("Infura, a query that finds too much", 200,
        r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32005,"message":"query returned more than 10000 results"}}"#,
        Some("-32005"), "query returned more than 10000 results", Request, Unhurt),
    row("Solana, a node that lags", 200,
        r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32005,"message":"Node is behind by 42 slots","data":{"numSlotsBehind":42}}}"#,
        Some("-32005"), "Node is behind by 42 slots", Provider, Failure),
    row("Ethereum, a contract that reverts", 200,
        r#"{"jsonrpc":"2.0","id":1,"error":{"code":3,"message":"execution reverted","data":"0x08c379a0"}}"#,
        Some("3"), "execution reverted", Request, Unhurt),
    row("Alchemy", 429,
        r#"{"jsonrpc":"2.0","error":{"code":429,"message":"Your app has exceeded its compute units per second capacity."},"id":1}"#,
        Some("429"), "Your app has exceeded its compute units per second capacity.", Provider, REST),
    row("QuickNode", 200,
        r#"{"jsonrpc":"2.0","error":{"code":-32007,"message":"50/second request limit reached"},"id":1}"#,
        Some("-32007"), "50/second request limit reached", Provider, REST),
    row("a load balancer", 502, "<html><head><title>502 Bad Gateway</title></head></html>",
        None, "<html><head><title>502 Bad Gateway</title></head></html>", Unknown, Failure),
    row("an event stream with a status", 400,
        "event: error\ndata: {\"error\":{\"code\":\"content_filter\",\"message\":\"x\"}}\n\n",
        Some("content_filter"), "x", Request, Unhurt),
];

#[test]
fn every_envelope_has_its_code_message_blame_and_verdict() {
    assert!(ROWS.len() >= 40, "{}", ROWS.len());
    let none = HeaderMap::new();
    for row in ROWS {
        let source = row.source;
        let cause = Cause::read(row.body.as_bytes());
        assert_eq!(cause.code.as_deref(), row.code, "{source}");
        assert_eq!(cause.message.as_deref(), Some(row.message), "{source}");
        assert_eq!(cause.blames, row.blames, "{source}");
        let status = StatusCode::from_u16(row.status).unwrap();
        let wall = || SystemTime::UNIX_EPOCH;
        let took = Duration::ZERO;
        let outcome = match row.status {
            200 => {
                let reason = crate::verdict::Reason::ErrorInSuccess;
                Outcome::flawed("p", reason, status, &none, Some(&cause), took, wall)
            }
            _ => Outcome::answered("p", status, &none, false, Some(&cause), took, wall),
        };
        assert_eq!(Verdict::standard(&outcome), Verdict::FailOver(row.verdict), "{source}");

        // Behind a byte order mark, with whitespace around it, and as a list, it says the same.
        for body in [
            format!("\u{feff} {}\r\n", row.body),
            format!("\n[{}]", row.body.trim_start_matches('[').trim_end_matches(']')),
        ] {
            if body.contains("event:") || body.contains("<html>") {
                continue;
            }
            let again = Cause::read(body.as_bytes());
            if !(body.starts_with("\n[") && row.body.contains("jsonrpc")) {
                assert_eq!(again, cause, "{source}: {body}");
            }
        }
    }
}

#[test]
fn what_is_no_envelope_is_its_own_message() {
    for (body, message) in [
        ("", None),
        (" \n", None),
        ("\u{feff}", None),
        ("upstream connect error", Some("upstream connect error")),
        (" 503\n", Some("503")),
        ("{\"a\":1", Some("{\"a\":1")),
        ("{\"a\": \"\\u0041\"}", Some("{\"a\":\"A\"}")),
        ("[]", Some("[]")),
        ("{\"error\":{}}", Some("{\"error\":{}}")),
        (
            "{\"error\":{\"message\":\" \",\"code\":null}}",
            Some("{\"error\":{\"code\":null,\"message\":\" \"}}"),
        ),
        ("\"no\"", Some("no")),
        ("data:", None),
    ] {
        let cause = Cause::read(body.as_bytes());
        assert_eq!(cause.message.as_deref(), message, "{body:?}");
        assert_eq!((cause.code, cause.blames), (None, Blame::Unknown), "{body:?}");
    }
    assert_eq!(Cause::read(b"\xff\xfe").message.as_deref(), Some("\u{fffd}\u{fffd}"));
}

#[test]
fn a_body_that_is_cut_says_what_it_said_before_the_cut() {
    let long = "x".repeat(2 * Cause::LOOKED_AT);
    let body = format!(r#"{{"error":{{"message":"no","code":"server_error","more":"{long}"}}}}"#);
    let cause = Cause::read(body.as_bytes());
    assert_eq!(
        (cause.code.as_deref(), cause.message.as_deref()),
        (Some("server_error"), Some("no"))
    );
    // A message that is itself too long is given as it is, for `message` to cut.
    let body = format!(r#"{{"error":{{"message":"{long}","code":"server_error"}}}}"#);
    let cause = Cause::read(body.as_bytes());
    assert_eq!(cause.message.unwrap().len(), Cause::LOOKED_AT);
}

#[test]
fn no_more_than_16_kib_of_a_body_are_looked_at() {
    assert_eq!(Cause::read("x".repeat(40_000).as_bytes()).message.unwrap().len(), 16_384);
    // What is cut off is no part of it.
    let body = format!(r#"{{"\u0061":1}}{}"#, " ".repeat(40_000));
    assert_eq!(Cause::read(body.as_bytes()).message.as_deref(), Some(r#"{"a":1}"#));
}

#[test]
fn what_a_cause_shows_is_no_word_of_the_provider() {
    let cause = Cause::read(br#"{"error":{"code":"rate_limit_exceeded","message":"canary"}}"#);
    let shown = format!("{cause:?}");
    assert!(shown.contains("blames: Provider, status: Some(429)"), "{shown}");
    assert!(!shown.contains("rate_limit") && !shown.contains("canary"), "{shown}");
}

#[test]
fn a_code_is_a_word() {
    for code in [r#""""#, r#"" ""#, r#""two words""#, "null", "0", "1.5", "true", "{}", "[]"] {
        let body = format!(r#"{{"error":{{"code":{code},"message":"m"}}}}"#);
        assert_eq!(Cause::read(body.as_bytes()).code, None, "{code}");
    }
    let body = format!(r#"{{"error":{{"code":"{}","message":"m"}}}}"#, "x".repeat(65));
    assert_eq!(Cause::read(body.as_bytes()).code, None);
}

#[test]
fn a_status_among_the_codes_blames_as_the_status_does() {
    for status in 300..700 {
        let blames = match status {
            401..=403 => Account,
            408 | 425 | 429 => Provider,
            400..=499 => Request,
            500..=599 => Provider,
            _ => Unknown,
        };
        let cause = Cause::with_code(&status.to_string());
        assert_eq!(cause.blames, blames, "{status}");
        let known = (400..600).contains(&status).then_some(status);
        assert_eq!(cause.status().map(|status| status.as_u16()), known);
    }
}

#[test]
fn a_number_that_is_no_code_hides_no_status_behind_it() {
    for id in [r#""1234567890123""#, "1234567890123", "-99999999999", r#""2147483648""#] {
        let body = format!(r#"{{"error":{{"code":{id},"status":429,"message":"slow down"}}}}"#);
        let cause = Cause::read(body.as_bytes());
        assert_eq!(cause.status(), Some(StatusCode::TOO_MANY_REQUESTS), "{id}");
        assert_eq!(cause.blames, Blame::Provider, "{id}");
        assert_eq!(cause.code.as_deref(), Some(id.trim_matches('"')));
    }
}

#[test]
fn words_say_more_than_numbers_and_names_more_than_words_for_everything() {
    for (body, code, blames, status) in [
        (
            r#"{"error":{"type":"invalid_request_error","code":"500"}}"#,
            "invalid_request_error",
            Provider,
            500,
        ),
        (
            r#"{"error":{"type":"invalid_request_error","code":"invalid_api_key"}}"#,
            "invalid_api_key",
            Account,
            401,
        ),
        (r#"{"error":{"type":"rate_limit_error","code":"new"}}"#, "new", Provider, 429),
        (r#"{"error":{"type":"new","code":404,"message":"no such model"}}"#, "404", Model, 404),
        (r#"{"error":{"type":"new","code":404}}"#, "404", Request, 404),
    ] {
        let cause = Cause::read(body.as_bytes());
        let seen = (cause.code.as_deref(), cause.blames, cause.status().unwrap().as_u16());
        assert_eq!(seen, (Some(code), blames, status), "{body}");
    }
}

#[test]
fn finds_what_stands_in_places_of_its_own() {
    for (body, code, wait) in [
        (r#"{"error":{"innererror":{"code":"NoSuchThing"}}}"#, Some("NoSuchThing"), None),
        (r#"{"innererror":{"code":"NoSuchThing"}}"#, None, None),
        (r#"{"retry_after":7}"#, None, Some(7)),
        (r#"{"\u0065rror":{"c\u006fde":"NoSuchThing"}}"#, Some("NoSuchThing"), None),
        (r#"{"retry_after_seconds":8}"#, None, Some(8)),
        (r#"{"error":{"code":"4111111111"}}"#, Some("4111111111"), None),
        (
            r#"{"error":{"type":"rate_limit_error","code":"4111111111"}}"#,
            Some("rate_limit_error"),
            None,
        ),
    ] {
        let cause = Cause::read(body.as_bytes());
        assert_eq!(cause.code.as_deref(), code, "{body}");
        assert_eq!(cause.retry_after, wait.map(Duration::from_secs), "{body}");
    }
}

#[test]
fn the_codes_of_json_rpc_mean_what_nodes_mean_by_them() {
    for (code, blames, status) in [
        (3, Request, Some(400)),
        (-32700, Request, Some(400)),
        (-32602, Request, Some(400)),
        (-32600, Request, Some(400)),
        (-32603, Provider, Some(500)),
        (-32005, Provider, Some(429)),
        (-32001, Provider, Some(500)),
        (-32004, Provider, Some(500)),
        (-32008, Provider, Some(500)),
        (-32010, Provider, Some(500)),
        (-32011, Provider, Some(500)),
        (-32014, Provider, Some(500)),
        (-32016, Provider, Some(500)),
        (401, Account, Some(401)),
        (403, Account, Some(403)),
        (429, Provider, Some(429)),
        (500, Provider, Some(500)),
        (599, Provider, Some(500)),
        (-32000, Request, Some(400)),
        (-32002, Request, Some(400)),
        (-32099, Request, Some(400)),
        (-32100, Unknown, None),
        (400, Unknown, None),
        (1, Unknown, None),
    ] {
        let body = format!(r#"{{"jsonrpc":"2.0","id":1,"error":{{"code":{code},"message":"m"}}}}"#);
        let cause = Cause::read(body.as_bytes());
        let found = cause.status().map(|status| status.as_u16());
        assert_eq!((cause.blames, found), (blames, status), "{code}");
    }
}

#[test]
fn of_many_errors_the_first_64_codes_and_the_first_message_count() {
    for (errors, code) in [(63, "best"), (64, "other")] {
        let list = vec![r#"{"code":"other","message":"a"}"#; errors].join(",");
        let body = format!(r#"{{"errors":[{list},{{"message":"b"}}],"error":{{"code":"best"}}}}"#);
        let cause = Cause::read(body.as_bytes());
        assert_eq!(cause.code.as_deref(), Some(code), "{errors}");
        assert_eq!(cause.message.as_deref(), Some("a"));
    }
}

#[test]
fn finds_the_message_in_the_usual_shapes() {
    for body in [
        r#"{"error":{"message":"no such model","code":null}}"#,
        r#"{"error":"no such model"}"#,
        r#"{"message":"no such model"}"#,
        r#"{"detail":"no such model"}"#,
        r#""no such model""#,
        "\u{feff}{\"error\":\"no such model\"}",
        " no such model\n",
    ] {
        let message = Cause::read(body.as_bytes()).message;
        assert_eq!(message.as_deref(), Some("no such model"), "{body}");
    }
    for (body, said) in [
        (r#"{"code": 7}"#, r#"{"code":7}"#),
        // Written anew, so that no escape sequence hides a key from the search that follows.
        (r#"{"key":"sk\u002dsecret-123"}"#, r#"{"key":"sk-secret-123"}"#),
        (r#"{"error":{"message":"Incorrect key: sk\u002dsecret"}}"#, "Incorrect key: sk-secret"),
    ] {
        assert_eq!(Cause::read(body.as_bytes()).message.as_deref(), Some(said), "{body}");
    }
}

proptest! {
    #[test]
    fn any_bytes_make_a_cause(body in prop::collection::vec(any::<u8>(), 0..200)) {
        let cause = Cause::read(&body);
        prop_assert!(cause.code.is_none_or(|code| code.len() <= Cause::LONGEST_CODE));
        prop_assert!(cause.retry_after != Some(Duration::ZERO));
    }

    #[test]
    fn any_beginning_of_an_envelope_makes_a_cause(
        row in any::<prop::sample::Index>(),
        cut in any::<prop::sample::Index>(),
        noise in "[{}\\[\\]\",:a\\\\]{0,6}",
    ) {
        let body = row.get(ROWS).body.as_bytes();
        let cut = cut.index(body.len() + 1);
        let _ = Cause::read(&[&body[..cut], noise.as_bytes()].concat());
        let _ = Cause::read(&[&body[..cut], noise.as_bytes(), &body[cut..]].concat());
    }
}
