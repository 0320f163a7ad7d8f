//! CometAPI first, OpenAI when CometAPI fails.
//!
//! ```text
//! cargo run --example comet_to_openai
//! ```
//!
//! With `COMETAPI_KEY` and `OPENAI_API_KEY` set it asks the real services; without them it starts
//! two stand-ins on loopback. Every step prints what was asked, who answered and the report of the
//! attempts, and checks the outcome: where it is not as announced, the example panics.

use std::error::Error;

use reqwest::Response;
use reqwest_failover::{Exhausted, Provider, ProviderChain, harden};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware};
use serde_json::{Value, json};

use support::{Harness, show_log_lines, step};

/// Where the program sends its requests, whichever provider answers them in the end.
const OPENAI: &str = "https://api.openai.com/v1";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    show_log_lines();
    let harness = Harness::set().await?;

    step("CometAPI answers");
    let client = build_client([harness.cometapi(), harness.openai()], &harness)?;
    let response = ask(&client, &question()).await?;
    harness.check_answer(harness.first_served(), response).await?;

    if let Some(cometapi) = harness.stand_in_for_cometapi() {
        step("CometAPI fails with 500, OpenAI answers");
        cometapi.fail(500, "The server had an error.");
        let response = ask(&client, &question()).await?;
        harness.check_answer(&["openai"], response).await?;

        step("CometAPI refuses the request with 400, OpenAI answers");
        cometapi.fail(400, "Unsupported parameter: 'max_completion_tokens'.");
        let response = ask(&client, &question()).await?;
        harness.check_answer(&["openai"], response).await?;
        cometapi.recover();
    } else {
        step("CometAPI refuses a wrong key, OpenAI answers");
        println!("   (the real CometAPI cannot be told to fail with 500 or 400)");
        let client = build_client([Provider::cometapi("wrong-key"), harness.openai()], &harness)?;
        let response = ask(&client, &question()).await?;
        harness.check_answer(&["openai"], response).await?;
    }

    step("CometAPI is not there, OpenAI answers");
    let without = build_client([harness.cometapi_gone().await?, harness.openai()], &harness)?;
    let response = ask(&without, &question()).await?;
    harness.check_answer(&["openai"], response).await?;

    step("The answer is a stream, and each event is handed on as it comes");
    let mut streamed = question();
    streamed["stream"] = json!(true);
    let response = ask(&client, &streamed).await?;
    harness.check_stream(harness.first_served(), response).await?;

    step("Both fail, and one error says what each of them answered");
    let client = build_client(harness.both_failing(), &harness)?;
    let error = ask(&client, &question()).await.expect_err("both fail");
    harness.check_error(&error);

    harness.check_keys();
    println!("\nEvery step went as announced.");
    Ok(())
}

/// All there is to set up: the providers in order, and a chain of them as a layer on a client.
fn build_client(
    providers: [Provider; 2],
    harness: &Harness,
) -> Result<ClientWithMiddleware, Box<dyn Error>> {
    let chain = ProviderChain::builder(providers)
        // Requests below this URL are the chain's, also when the providers are stand-ins.
        .claim(OPENAI)
        // If everybody fails: one error about all, instead of the last one's answer.
        .on_exhausted(Exhausted::Error)
        .build()?;

    // No redirects, which would happen behind the chain's back, and no hidden retries.
    let mut http = harden(reqwest::Client::builder());
    if harness.is_on_loopback() {
        http = http.no_proxy();
    }
    Ok(ClientBuilder::new(http.build()?).with(chain).build())
}

/// What any program does: it asks OpenAI. It holds no key; each provider of the chain has its own.
async fn ask(client: &ClientWithMiddleware, body: &Value) -> reqwest_middleware::Result<Response> {
    let url = format!("{OPENAI}/chat/completions");
    println!("   asked     POST {url}");
    println!("             {body}");
    client.post(url).json(body).send().await
}

fn question() -> Value {
    json!({
        "model": "gpt-4o-mini",
        "messages": [{"role": "user", "content": "Who are you? One short sentence."}],
        "max_completion_tokens": 40,
    })
}
