//! All that an application needs. `COMETAPI_KEY=.. OPENAI_API_KEY=.. cargo run --example simple`
use reqwest_failover::{Provider, ProviderChain, Report, harden};
use reqwest_middleware::ClientBuilder;
use serde_json::json;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let providers = [Provider::cometapi_from_env(), Provider::openai_from_env()];
    let chain = ProviderChain::builder(providers).build()?;
    let http = harden(reqwest::Client::builder()).build()?;
    let client = ClientBuilder::new(http).with(chain).build();

    let url = "https://api.openai.com/v1/chat/completions";
    let messages = json!([{"role": "user", "content": "Hello!"}]);
    let body = json!({"model": "gpt-4o-mini", "messages": messages});
    let response = client.post(url).json(&body).send().await?;
    println!("{}", Report::of(&response).expect("the chain's report"));
    println!("{}", response.text().await?);
    Ok(())
}
