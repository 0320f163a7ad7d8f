//! rig: its `ReqwestMiddlewareClient` is made from any `ClientWithMiddleware`.

use futures_util::StreamExt;
use reqwest_failover::{Exhausted, FailoverError};
use rig::agent::MultiTurnStreamItem;
use rig::completion::CompletionRequest;
use rig::prelude::*;
use rig::providers::openai::{OpenAI, OpenAIConfig};
use rig::rig_reqwest::ReqwestMiddlewareClient;
use rig::streaming::{Item, StreamEvent};

use crate::{BASE_URL, Harness, NO_KEY};

fn openai(harness: &Harness, exhausted: Exhausted) -> OpenAI {
    OpenAIConfig::new(NO_KEY)
        .with_base_url(BASE_URL)
        .connect(ReqwestMiddlewareClient::from(harness.client(exhausted)))
}

fn agent(harness: &Harness, exhausted: Exhausted) -> Agent {
    // Chat Completions, which most providers speak; `.responses(..)` is OpenAI's newer API.
    let model = openai(harness, exhausted).chat("gpt-4o-mini");
    AgentBuilder::new(model).preamble("Be brief.").build()
}

#[tokio::test]
async fn an_agent_is_answered_by_the_second_provider() {
    let harness = Harness::set().await;
    harness.cometapi.fail(500, "The server had an error.");
    let response = agent(&harness, Exhausted::LastOutcome).prompt("Who are you?").await.unwrap();
    assert_eq!(response.output(), "I am the stand-in for OpenAI.");
    assert_eq!(harness.received(), (1, 1));
}

#[tokio::test]
async fn an_agents_stream_is_the_second_providers() {
    let harness = Harness::set().await;
    harness.cometapi.fail(500, "The server had an error.");
    let mut stream = agent(&harness, Exhausted::LastOutcome).prompt("Who are you?").stream();
    let (mut text, mut pieces) = (String::new(), 0);
    while let Some(item) = stream.next().await {
        if let MultiTurnStreamItem::StreamAssistantItem(Item::Event(StreamEvent::Text {
            text: piece,
            ..
        })) = item.unwrap()
        {
            text.push_str(&piece);
            pieces += 1;
        }
    }
    assert_eq!(text, "I am the stand-in for OpenAI.");
    assert_eq!(pieces, 6, "one piece per word");
    assert_eq!(harness.received(), (1, 1));
}

#[tokio::test]
async fn rigs_error_is_the_last_providers_answer() {
    let harness = Harness::set().await;
    harness.both_fail();
    let agent = agent(&harness, Exhausted::LastOutcome);
    let error = agent.prompt("Who are you?").await.unwrap_err();
    assert!(error.to_string().contains("You exceeded your current quota."), "{error}");
    assert_eq!(harness.received(), (1, 1));
}

/// An agent keeps the text of an error and no more of it; for the report there is `.observe(..)`.
#[tokio::test]
async fn an_agents_error_says_what_the_chains_says() {
    let harness = Harness::set().await;
    harness.both_fail();
    let error = agent(&harness, Exhausted::Error).prompt("Who are you?").await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("cometapi answered 503"), "{text}");
    assert!(text.contains("openai answered 429"), "{text}");
    assert_eq!(harness.received(), (1, 1));
}

#[tokio::test]
async fn the_chains_error_is_found_in_a_models() {
    let harness = Harness::set().await;
    harness.both_fail();
    let model = openai(&harness, Exhausted::Error).chat("gpt-4o-mini");
    match model.call(CompletionRequest::new("Who are you?")).await.unwrap_err() {
        ProviderError::Http(error) => {
            let failed = FailoverError::find(&*error).expect("the chain's error");
            assert_eq!(failed.report().attempts().len(), 2);
        }
        other => panic!("an error of the transport: {other}"),
    }
    assert_eq!(harness.received(), (1, 1));
}
