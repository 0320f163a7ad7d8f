//! A client with a cookie store, below a chain.

use reqwest_failover::{Provider, ProviderChain, harden};
use reqwest_failover_testing::support::{Answer, Server};
use reqwest_middleware::ClientBuilder;

const COOKIE: &str = "session=of-this-provider-only";

/// Cookies know hosts, and no ports: both servers here are one host. No layer can prevent it, except
/// where a provider's own credential is a cookie, which is not added to.
#[tokio::test]
async fn a_cookie_store_knows_hosts_and_no_ports() {
    for own in [None, Some("session=its-own")] {
        let answer = Answer::error(500, "broken").header("set-cookie", format!("{COOKIE}; Path=/"));
        let first_server = Server::start(answer).await;
        let second = Server::start(Answer::ok()).await;
        let mut provider = Provider::new("second", second.base_url("/v1"));
        provider = match own {
            Some(cookie) => provider.api_key_header("cookie", cookie),
            None => provider.bearer_auth("second-key"),
        };
        let first = Provider::new("first", first_server.base_url("/v1")).bearer_auth("first-key");
        let chain = ProviderChain::builder([first, provider])
            .claim("https://api.openai.com/v1")
            .build()
            .expect("a sound chain");
        let http = harden(reqwest::Client::builder()).cookie_store(true).no_proxy().build();
        let client = ClientBuilder::new(http.expect("a client")).with(chain).build();
        let url = "https://api.openai.com/v1/chat/completions";
        let response = client.post(url).body("{}").send().await.expect("an answer");
        assert_eq!(response.status(), 200);
        let expected = own.unwrap_or(COOKIE);
        assert_eq!(second.only_request().header("cookie"), Some(expected));
    }
}
