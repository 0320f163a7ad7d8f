//! A stream that fails in its first event, behind a 200, and goes on at the next provider.
//!
//! ```text
//! cargo run --example streaming
//! ```
//!
//! Two stand-ins on loopback play CometAPI, whose stream begins with an error, and OpenAI, whose
//! stream is well; nothing leaves this machine. Each word is printed when it arrives. The example
//! panics where anything is not as announced.

use std::error::Error;
use std::io::Write;
use std::time::{Duration, Instant};

use reqwest_failover::{Inspect, Provider, ProviderChain, Reason, Report, harden};
use reqwest_middleware::ClientBuilder;
use serde_json::{Value, json};

use reqwest_failover_testing::stand_in::StandIn;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let cometapi = StandIn::start("sk-stand-in-cometapi", "Never said.").await?;
    let openai = StandIn::start(
        "sk-stand-in-openai",
        "This comes word by word, and none of it was held back for longer than its first.",
    )
    .await?;
    cometapi.fail_in_stream("No channel is available for this model.");

    let chain = ProviderChain::builder([
        Provider::new("cometapi", cometapi.base_url())
            .bearer_auth("sk-stand-in-cometapi")
            // What the program calls `gpt-4o-mini` has another name here.
            .rename_model("gpt-4o-mini", "openai/gpt-4o-mini"),
        Provider::new("openai", openai.base_url()).bearer_auth("sk-stand-in-openai"),
    ])
    .claim("https://api.openai.com/v1")
    // Streams are held back until their first content, and for 20 s at most.
    .inspect(Inspect::errors_in_success().first_content_timeout(Duration::from_secs(20)))
    .build()?;
    let http = harden(reqwest::Client::builder()).no_proxy().build()?;
    let client = ClientBuilder::new(http).with(chain.clone()).build();

    let response = client
        .post("https://api.openai.com/v1/chat/completions")
        .json(&json!({
            "model": "gpt-4o-mini",
            "messages": [{"role": "user", "content": "How do you come?"}],
            "stream": true,
        }))
        .send()
        .await?
        .error_for_status()?;

    let report = Report::of(&response).expect("a response that came through a chain has a report");
    println!("report    {report}");
    let failed = &report.attempts()[0];
    println!("cometapi  {}: {}", failed.reason(), failed.message().unwrap_or_default());
    assert_eq!(report.served_by(), Some("openai"));
    assert_eq!((failed.provider(), failed.reason()), ("cometapi", Reason::ErrorInSuccess));
    assert_eq!(failed.message(), Some("No channel is available for this model."));

    print!("openai    ");
    // A program would read the events with a crate such as `sse-stream`. Here each is one line, in one piece.
    let mut response = response;
    let (mut text, mut times, mut done) = (String::new(), Vec::new(), false);
    while let Some(event) = response.chunk().await? {
        let event = String::from_utf8(event.to_vec())?;
        let Some(data) = event.trim_end().strip_prefix("data: ") else { continue };
        if data == "[DONE]" {
            done = true;
            continue;
        }
        let chunk: Value = serde_json::from_str(data)?;
        if let Some(word) = chunk["choices"][0]["delta"]["content"].as_str() {
            print!("{word}");
            std::io::stdout().flush()?;
            text.push_str(word);
            times.push(Instant::now());
        }
    }
    let spread = times[times.len() - 1] - times[0];
    println!("\n          {} words within {} ms", times.len(), spread.as_millis());

    assert!(done, "the stream came to its end");
    assert!(text.starts_with("This comes word by word") && text.ends_with("its first."));
    assert!(spread >= Duration::from_millis(500), "the words came one by one");
    let snapshot = chain.snapshot();
    let counts: Vec<_> =
        snapshot.providers().iter().map(|it| (it.served(), it.failures())).collect();
    assert_eq!(counts, [(0, 1), (1, 0)], "a failure at CometAPI, a success at OpenAI");
    let (asked, also_asked) = (cometapi.received(), openai.received());
    assert!(asked.len() == 1 && asked[0].contains(r#""model":"openai/gpt-4o-mini""#));
    assert!(also_asked.len() == 1 && also_asked[0].contains(r#""model":"gpt-4o-mini""#));
    Ok(())
}
