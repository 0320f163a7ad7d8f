//! A client of the shape that openapi-generator's `rust` generator gives with
//! `library=reqwest,supportMiddleware=true`: functions that take a `Configuration`, whose `client`
//! is a `ClientWithMiddleware`. Here it is written by hand; the field is what matters.

use reqwest_failover::{Exhausted, FailoverError};
use reqwest_middleware::ClientWithMiddleware;
use serde_json::{Value, json};

use crate::{BASE_URL, Harness, NO_KEY};

struct Configuration {
    base_path: String,
    client: ClientWithMiddleware,
    bearer_access_token: Option<String>,
}

#[derive(Debug)]
#[expect(dead_code, reason = "what the tests do not look at is shown when they fail")]
enum Error {
    Middleware(reqwest_middleware::Error),
    Reqwest(reqwest::Error),
    Response { status: reqwest::StatusCode, content: String },
}

async fn create_chat_completion(
    configuration: &Configuration,
    question: &Value,
) -> Result<Value, Error> {
    let url = format!("{}/chat/completions", configuration.base_path);
    let mut request = configuration.client.request(reqwest::Method::POST, url);
    if let Some(token) = &configuration.bearer_access_token {
        request = request.bearer_auth(token);
    }
    let response = request.json(question).send().await.map_err(Error::Middleware)?;
    let status = response.status();
    if status.is_success() {
        response.json().await.map_err(Error::Reqwest)
    } else {
        let content = response.text().await.map_err(Error::Reqwest)?;
        Err(Error::Response { status, content })
    }
}

fn configuration(harness: &Harness, exhausted: Exhausted) -> Configuration {
    Configuration {
        base_path: BASE_URL.into(),
        client: harness.client(exhausted),
        bearer_access_token: Some(NO_KEY.into()),
    }
}

fn question() -> Value {
    json!({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Who are you?"}]})
}

#[tokio::test]
async fn a_generated_function_is_answered_by_the_second_provider() {
    let harness = Harness::set().await;
    harness.cometapi.fail(500, "The server had an error.");
    let configuration = configuration(&harness, Exhausted::LastOutcome);
    let answer = create_chat_completion(&configuration, &question()).await.unwrap();
    let content = &answer["choices"][0]["message"]["content"];
    assert_eq!(content, "I am the stand-in for OpenAI.");
    assert_eq!(harness.received(), (1, 1));
}

#[tokio::test]
async fn both_kinds_of_failure_arrive_as_the_generated_code_expects() {
    let harness = Harness::set().await;
    harness.both_fail();
    let last_outcome = configuration(&harness, Exhausted::LastOutcome);
    match create_chat_completion(&last_outcome, &question()).await.unwrap_err() {
        Error::Response { status, content } => {
            assert_eq!(status, 429);
            assert!(content.contains("insufficient_quota"), "{content}");
        }
        other => panic!("the last provider's response: {other:?}"),
    }
    let one_error = configuration(&harness, Exhausted::Error);
    match create_chat_completion(&one_error, &question()).await.unwrap_err() {
        Error::Middleware(error) => assert!(FailoverError::find(&error).is_some(), "{error}"),
        other => panic!("the chain's error: {other:?}"),
    }
    assert_eq!(harness.received(), (2, 2));
}
