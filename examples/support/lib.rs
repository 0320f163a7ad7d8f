//! The harness of an example: who plays the providers, what is printed, and the checks.

use std::error::Error;
use std::io::{self, IsTerminal};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use reqwest::Response;
use reqwest_failover::{FailoverError, Provider, Report};
use serde_json::Value;
use tracing_subscriber::filter::LevelFilter;

use reqwest_failover_testing::stand_in::{StandIn, closed_port};

const COMETAPI_KEY: &str = "sk-stand-in-cometapi";
const OPENAI_KEY: &str = "sk-stand-in-openai";

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

/// The real services, or the stand-ins that play them.
pub struct Harness {
    /// CometAPI's and OpenAI's.
    stand_ins: Option<(StandIn, StandIn)>,
}

impl Harness {
    /// Sets the harness for whichever keys there are, and says which.
    pub async fn set() -> Result<Self> {
        let is_set = |name| std::env::var(name).is_ok_and(|key| !key.trim().is_empty());
        if is_set("COMETAPI_KEY") && is_set("OPENAI_API_KEY") {
            println!("COMETAPI_KEY and OPENAI_API_KEY are set: asking the real services.");
            return Ok(Self { stand_ins: None });
        }
        let cometapi = StandIn::start(COMETAPI_KEY, "I am the stand-in for CometAPI.").await?;
        let openai = StandIn::start(OPENAI_KEY, "I am the stand-in for OpenAI.").await?;
        println!("COMETAPI_KEY and OPENAI_API_KEY are not both set: nothing leaves this machine.");
        println!("  {} plays CometAPI", cometapi.base_url());
        println!("  {} plays OpenAI", openai.base_url());
        Ok(Self { stand_ins: Some((cometapi, openai)) })
    }

    pub fn is_on_loopback(&self) -> bool {
        self.stand_ins.is_some()
    }

    pub fn stand_in_for_cometapi(&self) -> Option<&StandIn> {
        self.stand_ins.as_ref().map(|(cometapi, _)| cometapi)
    }

    pub fn cometapi(&self) -> Provider {
        match &self.stand_ins {
            Some((cometapi, _)) => {
                Provider::new("cometapi", cometapi.base_url()).bearer_auth(COMETAPI_KEY)
            }
            None => Provider::cometapi_from_env(),
        }
    }

    pub fn openai(&self) -> Provider {
        match &self.stand_ins {
            Some((_, openai)) => Provider::new("openai", openai.base_url()).bearer_auth(OPENAI_KEY),
            None => Provider::openai_from_env(),
        }
    }

    /// A CometAPI to which there is no connection.
    pub async fn cometapi_gone(&self) -> Result<Provider> {
        Ok(match &self.stand_ins {
            Some(_) => Provider::new("cometapi", closed_port().await?).bearer_auth(COMETAPI_KEY),
            // `.invalid` is reserved: no name below it ever resolves.
            None => Provider::new("cometapi", "https://cometapi.invalid/v1"),
        })
    }

    /// Stand-ins that are told to fail, or the real services with wrong keys.
    pub fn both_failing(&self) -> [Provider; 2] {
        match &self.stand_ins {
            Some((cometapi, openai)) => {
                cometapi.fail(503, "No channel is available for this model.");
                openai.fail(429, "You exceeded your current quota.");
                [self.cometapi(), self.openai()]
            }
            None => [Provider::cometapi("wrong-key"), Provider::openai("wrong-key")],
        }
    }

    /// Which providers may serve when none was made to fail: stand-ins do as they are told, but a real
    /// CometAPI may have a bad day.
    pub fn first_served(&self) -> &'static [&'static str] {
        match &self.stand_ins {
            Some(_) => &["cometapi"],
            None => &["cometapi", "openai"],
        }
    }

    pub async fn check_answer(&self, expected: &[&str], response: Response) -> Result<()> {
        check_report(expected, &response);
        let body: Value = response.json().await?;
        let content = body["choices"][0]["message"]["content"].as_str();
        println!("   content   {}", content.expect("a chat completion"));
        Ok(())
    }

    #[expect(clippy::disallowed_methods, reason = "times are printed, nothing depends on them")]
    pub async fn check_stream(&self, expected: &[&str], response: Response) -> Result<()> {
        check_report(expected, &response);
        let (start, mut response) = (Instant::now(), response);
        let (mut chunks, mut text) = (0, String::new());
        while let Some(chunk) = response.chunk().await? {
            let chunk = String::from_utf8_lossy(&chunk);
            for line in chunk.lines().filter(|line| !line.is_empty()) {
                println!("   +{:>4} ms  {line}", start.elapsed().as_millis());
            }
            text.push_str(&chunk);
            chunks += 1;
        }
        assert!(text.contains("data: [DONE]"), "the stream is whole");
        assert!(chunks > 1 || !self.is_on_loopback(), "the events came one by one");
        Ok(())
    }

    pub fn check_error(&self, error: &reqwest_middleware::Error) {
        let failed = FailoverError::find(error).expect("an error of the chain");
        println!("   answered  none");
        println!("   report    {}", failed.report());
        println!("   error     {failed}");
        assert!(failed.report().served_by().is_none(), "no provider served");
        let text = failed.to_string();
        assert!(text.contains("cometapi") && text.contains("openai"), "both are named");
        if self.is_on_loopback() {
            assert!(text.contains("No channel is available"), "CometAPI's message is told");
            assert!(text.contains("exceeded your current quota"), "OpenAI's message is told");
        }
    }

    /// No stand-in ever saw the other's key.
    pub fn check_keys(&self) {
        let Some((cometapi, openai)) = &self.stand_ins else {
            return;
        };
        for (stand_in, own, other) in
            [(cometapi, COMETAPI_KEY, OPENAI_KEY), (openai, OPENAI_KEY, COMETAPI_KEY)]
        {
            let received = stand_in.received();
            assert!(!received.is_empty(), "it was asked");
            assert!(received.iter().all(|request| request.contains(own)), "its own key came");
            assert!(!received.iter().any(|request| request.contains(other)), "only its own key");
        }
        println!(
            "\nRequests received: CometAPI {}, OpenAI {}.",
            cometapi.received().len(),
            openai.received().len()
        );
        println!("Each came with the key of its receiver, and with no other.");
    }
}

/// Prints a step's number and title.
pub fn step(title: &str) {
    static NUMBER: AtomicU32 = AtomicU32::new(1);
    println!("\n{}. {title}", NUMBER.fetch_add(1, Ordering::Relaxed));
}

/// The crate logs through `tracing`; its lines appear between the example's own.
pub fn show_log_lines() {
    tracing_subscriber::fmt()
        .with_max_level(LevelFilter::WARN)
        .with_ansi(io::stdout().is_terminal())
        .without_time()
        .init();
}

fn check_report(expected: &[&str], response: &Response) {
    let report = Report::of(response).expect("a response that came through a chain has a report");
    let server = report.served_by().expect("a provider served");
    println!("   answered  {server} with {}", response.status());
    println!("   report    {report}");
    assert!(response.status().is_success(), "the answer is a success");
    assert!(expected.contains(&server), "one of {expected:?} was to answer");
}
