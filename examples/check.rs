//! For a deploy script: asks each provider once, prints a table, and exits with 1 if one is not well.
//!
//! ```text
//! cargo run --example check
//! cargo run --example check -- expired
//! ```
//!
//! With `COMETAPI_KEY` and `OPENAI_API_KEY` set it asks the real services for their lists of models, which
//! cost nothing; without them it starts two stand-ins on loopback. With `expired`, the second provider's
//! key is one that it does not know.

use std::error::Error;
use std::process::ExitCode;

use reqwest_failover::{Attempt, Provider, ProviderChain, Reason, harden};

use reqwest_failover_testing::stand_in::StandIn;

const COMETAPI_KEY: &str = "sk-stand-in-cometapi";
const OPENAI_KEY: &str = "sk-stand-in-openai";

#[tokio::main]
async fn main() -> Result<ExitCode, Box<dyn Error>> {
    let is_set = |name| std::env::var(name).is_ok_and(|key| !key.trim().is_empty());
    let is_real = is_set("COMETAPI_KEY") && is_set("OPENAI_API_KEY");
    let is_expired = std::env::args().any(|argument| argument == "expired");

    let mut http = harden(reqwest::Client::builder());
    let stand_ins;
    let [cometapi, openai] = match is_real {
        true => {
            let openai = if is_expired {
                Provider::openai("sk-expired")
            } else {
                Provider::openai_from_env()
            };
            [Provider::cometapi_from_env(), openai]
        }
        false => {
            http = http.no_proxy();
            stand_ins = [
                StandIn::start(COMETAPI_KEY, "I am a stand-in.").await?,
                StandIn::start(OPENAI_KEY, "I am a stand-in.").await?,
            ];
            let [cometapi, openai] = &stand_ins;
            let key = if is_expired { "sk-expired" } else { OPENAI_KEY };
            [
                Provider::new("cometapi", cometapi.base_url()).bearer_auth(COMETAPI_KEY),
                Provider::new("openai", openai.base_url()).bearer_auth(key),
            ]
        }
    };
    // The chain that the service uses, too.
    let chain =
        ProviderChain::builder([cometapi, openai]).claim("https://api.openai.com/v1").build()?;

    let http = http.build()?;
    let request = http.get("https://api.openai.com/v1/models").build()?;
    let said = chain.check(&http, request).await;

    println!("{:<12} {:<8} {:<14} {:>8}  message", "provider", "status", "reason", "took");
    for attempt in &said {
        println!("{}", row(attempt));
    }
    let is_well = said.iter().all(|attempt| attempt.reason() == Reason::Ok);
    Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn row(attempt: &Attempt) -> String {
    let status = attempt.status().map_or("-".to_owned(), |status| status.as_u16().to_string());
    let (provider, reason) = (attempt.provider(), attempt.reason().as_str());
    let took = format!("{} ms", attempt.elapsed().as_millis());
    let message = attempt.message().unwrap_or_default();
    format!("{provider:<12} {status:<8} {reason:<14} {took:>8}  {message}").trim_end().to_owned()
}
