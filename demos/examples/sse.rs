//! A streamed completion, read event by event with `sse-stream`.
//!
//! ```text
//! cargo run -p reqwest-failover-demos --example sse
//! ```
//!
//! Two stand-ins on loopback play CometAPI, which fails, and OpenAI, which answers; nothing leaves
//! this machine. The example panics where a count or the text is not as announced.

use std::error::Error;

use futures_util::TryStreamExt;
use reqwest_failover::{Provider, ProviderChain, Report, harden};
use reqwest_middleware::ClientBuilder;
use serde_json::{Value, json};
use sse_stream::SseByteStream;

use reqwest_failover_testing::stand_in::StandIn;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let cometapi = StandIn::start("sk-stand-in-cometapi", "Never said.").await?;
    let openai = StandIn::start("sk-stand-in-openai", "I am the stand-in for OpenAI.").await?;
    cometapi.fail(503, "No channel is available.");

    let chain = ProviderChain::builder([
        Provider::new("cometapi", cometapi.base_url()).bearer_auth("sk-stand-in-cometapi"),
        Provider::new("openai", openai.base_url()).bearer_auth("sk-stand-in-openai"),
    ])
    .claim("https://api.openai.com/v1")
    .build()?;
    let http = harden(reqwest::Client::builder()).no_proxy().build()?;
    let client = ClientBuilder::new(http).with(chain).build();

    let response = client
        .post("https://api.openai.com/v1/chat/completions")
        .json(&json!({
            "model": "gpt-4o-mini",
            "messages": [{"role": "user", "content": "Who are you?"}],
            "stream": true,
        }))
        .send()
        .await?
        // The chain hands the last provider's failure on like any other response.
        .error_for_status()?;

    let report = Report::of(&response).expect("a response that came through a chain has a report");
    println!("{report}");
    assert_eq!(report.served_by(), Some("openai"));

    // Failover is over: from the headers on, the stream is OpenAI's. If it breaks, what has been
    // read stays read, and the caller decides whether to ask again.
    let mut events = SseByteStream::new(response.bytes_stream());
    let (mut text, mut pieces, mut done) = (String::new(), 0, false);
    while let Some(event) = events.try_next().await? {
        let Some(data) = event.data else { continue };
        if data == "[DONE]" {
            done = true;
            break;
        }
        let chunk: Value = serde_json::from_str(&data)?;
        if let Some(piece) = chunk["choices"][0]["delta"]["content"].as_str() {
            println!("  {piece:?}");
            text.push_str(piece);
            pieces += 1;
        }
    }
    println!("{text}");

    assert!(done, "the stream came to its end");
    assert_eq!(text, "I am the stand-in for OpenAI.");
    assert_eq!(pieces, 6, "one event per word");
    assert_eq!((cometapi.received().len(), openai.received().len()), (1, 1));
    Ok(())
}
