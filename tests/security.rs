//! What SECURITY.md says in addition to what other tests hold: that these exist, and where this layer ends.

use reqwest_failover_testing::support;

use std::path::Path;

use reqwest::header::{HeaderMap, HeaderValue};
use reqwest_failover::{Provider, ProviderChain, harden};
use reqwest_middleware::ClientBuilder;

use support::canary::{assert_no_foreign_keys, canary};
use support::harness::trusting;
use support::{Answer, Server};

/// What looks like `tests/keys.rs::a_test` in the page.
fn named_tests() -> Vec<(&'static str, &'static str)> {
    include_str!("../SECURITY.md").split('`').filter_map(|code| code.split_once(".rs::")).collect()
}

#[test]
fn every_test_that_the_page_names_exists() {
    // The package for reqwest 0.12 has a link to this folder.
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").canonicalize().unwrap();
    let named = named_tests();
    assert!(named.len() > 40, "{} are named", named.len());
    for (file, test) in named {
        let path = tests.with_file_name(file).with_extension("rs");
        let source =
            std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{file}: {error}"));
        let declared = format!("fn {test}()");
        let before = source.split_once(&declared).map(|(before, _)| before.lines().rev());
        let mut attributes = before.into_iter().flatten().take_while(|line| !line.is_empty());
        assert!(
            attributes.any(|line| line.contains("#[") && line.contains("test")),
            "{file}.rs has no test {test}"
        );
    }
}

/// `reqwest` reads `HTTP_PROXY` when a client is built, so a process of its own has it.
#[test]
fn a_proxy_reads_what_is_sent_over_http_to_loopback_too() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let proxy = runtime.block_on(Server::start(Answer::ok()));
    for (no_proxy, reads) in [("", true), ("localhost,127.0.0.1,::1", false)] {
        let before = proxy.requests().len();
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_asks_through_the_proxy_of_the_environment", "--ignored"])
            .env("HTTP_PROXY", proxy.base_url(""))
            .env("http_proxy", proxy.base_url(""))
            .env("NO_PROXY", no_proxy)
            .env("no_proxy", no_proxy)
            .env_remove("REQUEST_METHOD")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stdout);
        assert!(child.status.success() && said.contains("1 passed"), "{said}");
        let read = &proxy.requests()[before..];
        assert_eq!(read.len(), usize::from(reads), "NO_PROXY={no_proxy}");
        let with_key = |request: &support::Received| {
            request.header("authorization") == Some("Bearer sk-read-by-the-proxy")
        };
        assert!(read.iter().all(with_key));
    }
}

#[tokio::test]
#[ignore = "a child of the test above"]
async fn child_asks_through_the_proxy_of_the_environment() {
    let server = Server::start(Answer::ok()).await;
    let provider =
        Provider::new("local", server.base_url("/v1")).bearer_auth("sk-read-by-the-proxy");
    let chain = ProviderChain::builder([provider]).build().unwrap();
    let http = trusting(harden(reqwest::Client::builder()), []).build().unwrap();
    let client = ClientBuilder::new(http).with(chain).build();
    let response = client.get(server.base_url("/v1/models")).send().await.unwrap();
    assert_eq!(response.status(), 200);
}

#[tokio::test]
async fn a_default_header_reaches_every_provider_and_replaces_no_credential() {
    let servers =
        [Server::start(Answer::error(500, "broken")).await, Server::start(Answer::ok()).await];
    let keys = [canary("first"), canary("second")];
    let chain = ProviderChain::builder([
        Provider::new("first", servers[0].base_url("/v1")).bearer_auth(&keys[0]),
        Provider::new("second", servers[1].base_url("/v1")).bearer_auth(&keys[1]),
    ]);
    let everywhere = HeaderMap::from_iter(
        [("authorization", "Bearer nobodys"), ("x-api-key", "everybodys")]
            .map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))),
    );
    let http = harden(reqwest::Client::builder()).default_headers(everywhere).no_proxy().build();
    let client = ClientBuilder::new(http.unwrap()).with(chain.build().unwrap()).build();

    let response = client.post(servers[0].base_url("/v1/models")).body("{}").send().await.unwrap();

    assert_eq!(response.status(), 200);
    for (server, key) in servers.iter().zip(&keys) {
        let request = server.only_request();
        assert_eq!(request.header("authorization"), Some(&*format!("Bearer {key}")));
        assert_eq!(request.header("x-api-key"), Some("everybodys"));
    }
    let [first, second] = &keys;
    assert_no_foreign_keys(&[(&servers[0], first), (&servers[1], second)], &[first, second]);
}
