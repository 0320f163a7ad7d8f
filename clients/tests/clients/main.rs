//! Real clients over a chain of two stand-ins on loopback. Each test counts what each received.

mod openapi_generator;
mod progenitor;
mod rig;

use reqwest_failover::{Exhausted, Provider, ProviderChain, harden};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware};

use reqwest_failover_testing::stand_in::StandIn;

const COMETAPI_KEY: &str = "sk-stand-in-cometapi";
const OPENAI_KEY: &str = "sk-stand-in-openai";

/// What a client is configured with. The chain claims it; no request ever leaves for it.
const BASE_URL: &str = "https://api.openai.com/v1";
/// The key that a client insists on. It is no provider's, and none may see it.
const NO_KEY: &str = "sk-of-no-provider";

/// Two providers that never met.
struct Harness {
    cometapi: StandIn,
    openai: StandIn,
}

impl Harness {
    async fn set() -> Self {
        let start = |key, sentence| async move {
            StandIn::start(key, sentence).await.expect("a port on loopback")
        };
        Self {
            cometapi: start(COMETAPI_KEY, "I am the stand-in for CometAPI.").await,
            openai: start(OPENAI_KEY, "I am the stand-in for OpenAI.").await,
        }
    }

    /// What an application sets up, and then hands to its client.
    fn client(&self, exhausted: Exhausted) -> ClientWithMiddleware {
        let chain = ProviderChain::builder([
            Provider::new("cometapi", self.cometapi.base_url()).bearer_auth(COMETAPI_KEY),
            Provider::new("openai", self.openai.base_url()).bearer_auth(OPENAI_KEY),
        ])
        .claim(BASE_URL)
        .on_exhausted(exhausted)
        .build()
        .expect("a sound chain");
        ClientBuilder::new(self.http()).with(chain).build()
    }

    fn http(&self) -> reqwest::Client {
        harden(reqwest::Client::builder()).no_proxy().build().expect("a TLS stack")
    }

    fn both_fail(&self) {
        self.cometapi.fail(503, "No channel is available.");
        self.openai.fail(429, "You exceeded your current quota.");
    }

    /// How many requests CometAPI and OpenAI received; each with its own key and no other.
    fn received(&self) -> (usize, usize) {
        for (stand_in, own, other) in
            [(&self.cometapi, COMETAPI_KEY, OPENAI_KEY), (&self.openai, OPENAI_KEY, COMETAPI_KEY)]
        {
            for request in stand_in.received() {
                assert!(request.contains(own), "its own key: {request}");
                assert!(!request.contains(other), "another's key: {request}");
                assert!(!request.contains(NO_KEY), "the client's key: {request}");
            }
        }
        (self.cometapi.received().len(), self.openai.received().len())
    }
}
