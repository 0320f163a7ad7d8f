//! A client that progenitor generates: `ClientHooks::exec` is where its requests are sent.

use bytes::Bytes;
use progenitor::progenitor_client::{ClientHooks, OperationInfo};
use reqwest::Response;
use reqwest_failover::{Exhausted, FailoverError};
use reqwest_middleware::ClientWithMiddleware;

use crate::{BASE_URL, Harness};

mod generated {
    progenitor::generate_api!(
        spec = "openapi.json",
        inner_type = reqwest_middleware::ClientWithMiddleware,
        hooks = Expected,
    );
}

use self::generated::types::{Message, Question};
use self::generated::{Client, Error};

impl ClientHooks<ClientWithMiddleware> for Client {
    async fn exec(
        &self,
        request: reqwest::Request,
        _: &OperationInfo,
    ) -> reqwest::Result<Response> {
        match self.inner.execute(request).await {
            Ok(response) => Ok(response),
            Err(reqwest_middleware::Error::Reqwest(error)) => Err(error),
            Err(error) => Err(as_reqwest(error).await),
        }
    }
}

/// A `reqwest::Error` whose source is another error: that of reading a body which fails with it.
/// `reqwest` offers no shorter way.
async fn as_reqwest(error: reqwest_middleware::Error) -> reqwest::Error {
    let failing = futures_util::stream::iter([Err::<Bytes, _>(error)]);
    let response = Response::from(http::Response::new(reqwest::Body::wrap_stream(failing)));
    response.bytes().await.expect_err("the body fails")
}

fn client(harness: &Harness, exhausted: Exhausted) -> Client {
    // The plain client builds requests, the inner one sends them.
    Client::new_with_client(BASE_URL, harness.http(), harness.client(exhausted))
}

fn question() -> Question {
    let message = Message { role: "user".into(), content: "Who are you?".into() };
    Question { model: "gpt-4o-mini".into(), messages: vec![message] }
}

#[tokio::test]
async fn a_generated_method_is_answered_by_the_second_provider() {
    let harness = Harness::set().await;
    harness.cometapi.fail(500, "The server had an error.");
    let client = client(&harness, Exhausted::LastOutcome);
    let answer = client.create_chat_completion(&question()).await.unwrap();
    assert_eq!(answer.choices[0].message.content, "I am the stand-in for OpenAI.");
    assert_eq!(harness.received(), (1, 1));
}

#[tokio::test]
async fn the_described_error_response_is_the_last_providers() {
    let harness = Harness::set().await;
    harness.both_fail();
    let client = client(&harness, Exhausted::LastOutcome);
    match client.create_chat_completion(&question()).await.unwrap_err() {
        Error::ErrorResponse(failure) => {
            assert_eq!(failure.status(), 429);
            assert_eq!(failure.error.code.as_deref(), Some("insufficient_quota"));
        }
        other => panic!("an error as the document describes it: {other}"),
    }
    assert_eq!(harness.received(), (1, 1));
}

#[tokio::test]
async fn the_chains_error_is_found_through_progenitors() {
    let harness = Harness::set().await;
    harness.both_fail();
    let client = client(&harness, Exhausted::Error);
    let error = client.create_chat_completion(&question()).await.unwrap_err();
    let failed = FailoverError::find(&error).expect("the chain's error");
    assert_eq!(failed.last_status().map(|status| status.as_u16()), Some(429));
    assert_eq!(harness.received(), (1, 1));
}
