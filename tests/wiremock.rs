//! The mission's table with the mock server that most people know: each status at the first
//! provider, and who answers.

use reqwest_failover::{Provider, ProviderChain, Report, Verdict, harden};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware};
use serde_json::{Value, json};
use wiremock::matchers::{body_json, header, method, path};
use wiremock::{Mock, MockServer, ResponseTemplate};

const STATUSES: [u16; 16] =
    [400, 401, 402, 403, 404, 408, 409, 413, 422, 429, 500, 502, 503, 504, 520, 529];

/// A provider that answers every chat completion with its key and this body in the same way.
async fn provider(key: &str, answer: ResponseTemplate) -> MockServer {
    let server = MockServer::start().await;
    Mock::given(method("POST"))
        .and(path("/v1/chat/completions"))
        .and(header("authorization", format!("Bearer {key}").as_str()))
        .and(body_json(question()))
        .respond_with(answer)
        .expect(0..)
        .mount(&server)
        .await;
    server
}

fn question() -> Value {
    json!({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello!"}]})
}

fn client(
    first: &MockServer,
    second: &MockServer,
    verdict: Option<Preset>,
) -> ClientWithMiddleware {
    let builder = ProviderChain::builder([
        Provider::new("cometapi", format!("{}/v1", first.uri())).bearer_auth("comet-key"),
        Provider::new("openai", format!("{}/v1", second.uri())).bearer_auth("openai-key"),
    ])
    .claim("https://api.openai.com/v1");
    let chain = match verdict {
        Some(verdict) => builder.classify(verdict),
        None => builder,
    };
    let http = harden(reqwest::Client::builder()).no_proxy().build().unwrap();
    ClientBuilder::new(http).with(chain.build().unwrap()).build()
}

type Preset = fn(&reqwest_failover::Outcome<'_>) -> Verdict;

async fn ask(client: &ClientWithMiddleware) -> (u16, String, Value) {
    let url = "https://api.openai.com/v1/chat/completions";
    let response =
        client.post(url).bearer_auth("callers-key").json(&question()).send().await.unwrap();
    let report = Report::of(&response).unwrap();
    let served_by = report.served_by().unwrap_or("none").to_owned();
    (response.status().as_u16(), served_by, response.json().await.unwrap())
}

#[tokio::test]
async fn openai_answers_whatever_status_cometapi_fails_with() {
    let openai =
        provider("openai-key", ResponseTemplate::new(200).set_body_json(json!({"n": 2}))).await;
    for status in STATUSES {
        let failing = ResponseTemplate::new(status).set_body_json(json!({"error": {"code": "x"}}));
        let comet = provider("comet-key", failing).await;
        let answer = ask(&client(&comet, &openai, None)).await;
        assert_eq!(answer, (200, "openai".to_owned(), json!({"n": 2})), "{status}");
        assert_eq!(comet.received_requests().await.unwrap().len(), 1, "{status}");
    }
    let asked = openai.received_requests().await.unwrap();
    assert_eq!(asked.len(), STATUSES.len());
    assert!(asked.iter().all(|request| !format!("{request:?}").contains("comet-key")));
    assert!(asked.iter().all(|request| !format!("{request:?}").contains("callers-key")));
}

#[tokio::test]
async fn cometapi_alone_is_asked_while_it_answers() {
    let comet =
        provider("comet-key", ResponseTemplate::new(200).set_body_json(json!({"n": 1}))).await;
    let openai = provider("openai-key", ResponseTemplate::new(200)).await;
    let client = client(&comet, &openai, None);
    for _ in 0..3 {
        assert_eq!(ask(&client).await, (200, "cometapi".to_owned(), json!({"n": 1})));
    }
    assert_eq!(openai.received_requests().await.unwrap().len(), 0);
}

#[tokio::test]
async fn the_careful_preset_hands_a_bad_request_back() {
    let error = json!({"error": {"code": "bad"}});
    let openai =
        provider("openai-key", ResponseTemplate::new(200).set_body_json(json!({"n": 2}))).await;
    for status in STATUSES {
        let failing = ResponseTemplate::new(status).set_body_json(error.clone());
        let comet = provider("comet-key", failing).await;
        let answer = ask(&client(&comet, &openai, Some(Verdict::transient))).await;
        let expected = match status {
            408 | 429 | 500.. => (200, "openai".to_owned(), json!({"n": 2})),
            _ => (status, "cometapi".to_owned(), error.clone()),
        };
        assert_eq!(answer, expected, "{status}");
    }
}

#[tokio::test]
async fn the_last_providers_error_is_handed_on_when_both_fail() {
    let comet =
        provider("comet-key", ResponseTemplate::new(500).set_body_json(json!({"n": 1}))).await;
    let openai =
        provider("openai-key", ResponseTemplate::new(429).set_body_json(json!({"n": 2}))).await;
    let answer = ask(&client(&comet, &openai, None)).await;
    assert_eq!(answer, (429, "none".to_owned(), json!({"n": 2})));
}
