//! A key never leaves home: what each provider is sent, and what anyone is shown.

use reqwest_failover_testing::support;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use reqwest::header::{HeaderMap, HeaderValue};
use reqwest::{Method, Request, Url};
use reqwest_failover::{
    Exhausted, FailoverError, Provider, ProviderChain, Reason, Report, Verdict, harden,
};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware, Error};

use support::canary::{CORE, assert_no_foreign_keys, assert_no_key, canary, logs};
use support::harness::{BODY, WireHarness, client, line, local, plain};
use support::{Answer, Place, Received, Script, Server, Step};

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn failing() -> Answer {
    Answer::error(500, "broken")
}

/// An error as anyone might print it: itself, and all its sources.
fn shown(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = format!("{error} {error:?} {error:#?}");
    if let Some(source) = error.source() {
        text += &shown(source);
    }
    text
}

// Scope.

#[tokio::test]
async fn a_url_outside_the_scope_is_left_alone_and_gets_no_key() {
    let harness = WireHarness::two(Answer::ok(), Answer::ok()).await;
    let other = Server::start(Answer::error(500, "not yours")).await;
    let (mine, cookie, named) = (canary("caller"), canary("cookie"), canary("named"));
    let response = harness
        .client()
        .post(other.base_url(&format!("/v1/chat/completions?key={named}")))
        .header("authorization", format!("Bearer {mine}"))
        .header("cookie", &cookie)
        .header("api-key", &named)
        .header("openai-organization", "org-1")
        .body(BODY)
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 500);
    assert!(Report::of(&response).is_none());
    let request = other.only_request();
    assert_eq!(request.header("authorization"), Some(&*format!("Bearer {mine}")));
    assert_eq!(request.header("cookie"), Some(&*cookie));
    assert_eq!(request.header("api-key"), Some(&*named));
    assert_eq!(request.header("openai-organization"), Some("org-1"));
    assert!(request.target.starts_with("/v1/chat/completions?key=sk-"), "{}", request.target);
    assert_eq!(request.text(), BODY);
    let keys = [&*harness.actors[0].key, &*harness.actors[1].key];
    assert_no_foreign_keys(&[(&other, &mine)], &keys);
    assert_no_key(&logs(), &[&mine, &cookie, &named]);
    harness.assert_untouched();
}

#[tokio::test]
async fn only_whole_segments_of_a_base_are_in_scope() {
    for path in ["/v10/models", "/v1x", "/v", "/", "/V1/models", "/x/v1/models", "//v1/models"] {
        let harness = WireHarness::two(failing(), failing()).await;
        let url = harness.actors[1].server.base_url(path);
        let response = harness.client().get(url).send().await.unwrap();
        assert!(Report::of(&response).is_none(), "{path}");
        let request = harness.actors[1].server.only_request();
        assert_eq!(request.target, path);
        assert_eq!(request.header("authorization"), None, "{path}");
        assert_eq!(harness.actors[0].server.connections(), 0, "{path}");
    }
}

#[tokio::test]
async fn another_name_for_the_same_machine_is_out_of_scope() {
    let harness = WireHarness::two(Answer::ok(), Answer::ok()).await;
    let url = harness.actors[1].url("/models").replace("127.0.0.1", "localhost");
    let response = harness.client().get(url).send().await.unwrap();
    assert!(Report::of(&response).is_none());
    assert_eq!(harness.actors[1].server.only_request().header("authorization"), None);
}

#[tokio::test]
async fn the_longest_base_that_matches_wins() {
    let servers = WireHarness::two(failing(), Answer::ok()).await;
    let [short, long] = [&servers.actors[0], &servers.actors[1]];
    let chain = ProviderChain::builder([
        Provider::new("cometapi", short.server.base_url("/v1")).bearer_auth(&short.key),
        Provider::new("openai", long.server.base_url("/api")).bearer_auth(&long.key),
    ]);
    let chain = chain.claim(short.server.base_url("/v1/special")).claim("http://claimed.test/x/");
    let client = client(chain);
    for url in [
        short.server.base_url("/v1/special/models"),
        short.server.base_url("/v1/models"),
        "http://claimed.test/x/models".to_owned(),
    ] {
        assert_eq!(client.get(url).send().await.unwrap().status(), 200);
    }
    for (actor, prefix) in [(0, "/v1"), (1, "/api")] {
        for request in servers.requests(actor) {
            assert_eq!(request.target, format!("{prefix}/models"));
        }
    }
    servers.assert_asked(&[3, 3]);
}

// Paths.

#[tokio::test]
async fn a_hidden_dot_segment_is_refused_and_nothing_is_sent() {
    for suffix in [
        "/..%2fadmin",
        "/..%2Fadmin",
        "/a/..%2f..%2fadmin",
        "/%2e%2e%2fadmin",
        "/%2e%2fadmin",
        "/..%5cadmin",
        "/..%5Cadmin",
        "/a%5c..%5cb",
        "/%5c..",
        "/%2e%2e%5cadmin",
        "/a%2f..",
        "/..;/admin",
        "/..;a=b/admin",
        "/.;/admin",
        "/a/..%3b/admin",
        "/..%3Bx=y/admin",
        "/%252e%252e/admin",
        "/%252e/admin",
        "/%252E%252E/admin",
        "/a%252f..%252fb",
        "/..%252fadmin",
        "/..%255cadmin",
        "/%252e%252e%252fadmin",
        "/%25252e/../..%2f",
        "/.%252e/admin",
        "/%2e%252e/admin",
        "/files/..%2f?x=1",
        "/%252e%252e%253badmin/x",
    ] {
        let harness = WireHarness::two(Answer::ok(), Answer::ok()).await;
        let url = harness.actors[1].url(suffix);
        let path = Url::parse(&url).unwrap().path().to_owned();
        if !path.starts_with("/v1/") {
            panic!("{suffix} is no test: `url` itself resolves it to {path}");
        }
        let error = harness.client().get(url).send().await.expect_err(suffix);
        assert!(FailoverError::find(&error).is_some(), "{suffix}: {error}");
        harness.hear(shown(&error));
        harness.assert_untouched();
    }
}

#[tokio::test]
async fn a_plain_dot_segment_is_in_or_out_of_scope_as_the_url_says() {
    for (suffix, target) in [
        ("/../admin", "/admin"),
        ("/%2e%2e/admin", "/admin"),
        ("/.%2E/admin", "/admin"),
        ("/a/../../admin", "/admin"),
        ("\\..\\admin", "/admin"),
        ("/../v10/x", "/v10/x"),
    ] {
        let harness = WireHarness::two(Answer::ok(), Answer::ok()).await;
        let response = harness.client().get(harness.actors[1].url(suffix)).send().await.unwrap();
        assert!(Report::of(&response).is_none(), "{suffix}");
        let request = harness.actors[1].server.only_request();
        assert_eq!(request.target, target, "{suffix}");
        assert_eq!(request.header("authorization"), None, "{suffix}");
        assert_eq!(harness.actors[0].server.connections(), 0, "{suffix}");
    }
    for (suffix, target) in [("/a/../b", "/v1/b"), ("/%2e/b", "/v1/b"), ("\\b", "/v1/b")] {
        let harness = WireHarness::two(failing(), Answer::ok()).await;
        let response = harness.client().get(harness.actors[1].url(suffix)).send().await.unwrap();
        assert_eq!(response.status(), 200);
        harness.assert_asked(&[1, 1]);
        assert_eq!(harness.requests(0)[0].target, target, "{suffix}");
    }
}

#[tokio::test]
async fn the_suffix_arrives_byte_for_byte() {
    for suffix in [
        "",
        "/",
        "//",
        "//models",
        "/models/",
        "//evil.example/x",
        "/org%2Fname",
        "/org%2fname",
        "/models/org%2Fname/x%20y",
        "/a//b///c",
        "/@evil.example/",
        "/:80/x",
        "/a;b=c/d",
        "/...",
        "/..x/y..",
        "/%zz",
        "/%",
        "/%2",
        "/a%00b",
        "/%C3%A9",
        "/a+b",
        "/~!$&'()*,=|^",
        "/.well-known",
        "/x?",
        "/x?a=%2e%2e/%2F..;/",
        "/x?b=1&a=2&b=3&&=&c",
        "/x?a=b?c=d",
        "/x?a=%zz+%20",
    ] {
        let harness = WireHarness::two(failing(), Answer::ok()).await;
        let url = harness.actors[1].url(suffix);
        let response = harness.client().get(&url).send().await.unwrap();
        assert_eq!(response.status(), 200, "{suffix}");
        // What `url` made of it is what a plain client sends.
        let expected = path_and_query(&url);
        assert_eq!(expected, format!("/v1{suffix}"));
        for actor in 0..2 {
            assert_eq!(harness.requests(actor)[0].target, expected);
        }
        harness.assert_asked(&[1, 1]);
    }
}

#[tokio::test]
async fn a_fragment_stays_at_home() {
    let harness = WireHarness::two(failing(), Answer::ok()).await;
    let url = harness.actors[1].url("/models?a=1#secret");
    assert_eq!(harness.client().get(url).send().await.unwrap().status(), 200);
    assert_eq!(harness.requests(0)[0].target, "/v1/models?a=1");
    assert_eq!(harness.requests(1)[0].target, "/v1/models?a=1");
}

fn path_and_query(url: &str) -> String {
    let url = Url::parse(url).unwrap();
    let query = url.query().map(|query| format!("?{query}")).unwrap_or_default();
    format!("{}{query}", url.path())
}

/// Sends a request to `asked` below the second's base and says where it arrived at both.
async fn arrives(bases: [&str; 2], asked: &str) -> [String; 2] {
    let harness = WireHarness::two(failing(), Answer::ok()).await;
    let provider = |at: usize| {
        let actor = &harness.actors[at];
        Provider::new(actor.name, actor.server.base_url(bases[at])).bearer_auth(&actor.key)
    };
    let client = client(ProviderChain::builder([provider(0), provider(1)]));
    let url = harness.actors[1].server.base_url(asked);
    let response = client.get(&url).send().await.unwrap();
    assert_eq!(response.status(), 200, "{url} with {bases:?}");
    harness.assert_asked(&[1, 1]);
    [0, 1].map(|actor| {
        let request = harness.requests(actor).remove(0);
        let host = format!("127.0.0.1:{}", harness.actors[actor].server.port());
        assert_eq!(request.header("host"), Some(&*host));
        request.target
    })
}

#[tokio::test]
async fn every_form_of_base_keeps_its_prefix_and_the_suffix() {
    #[rustfmt::skip]
    let table = [
        (["/v1", "/v1"], "/v1/models", ["/v1/models", "/v1/models"]),
        (["/v1/", "/v1"], "/v1/models", ["/v1/models", "/v1/models"]),
        (["/v1", "/v1/"], "/v1/models", ["/v1/models", "/v1/models"]),
        (["/v1/", "/v1/"], "/v1/models", ["/v1/models", "/v1/models"]),
        (["", "/v1"], "/v1/models", ["/models", "/v1/models"]),
        (["/v1", ""], "/models", ["/v1/models", "/models"]),
        (["/", ""], "/models", ["/models", "/models"]),
        (["/v1", "/"], "/v1/models", ["/v1/v1/models", "/v1/models"]),
        (["/api/openai/v1", "/v1"], "/v1/models?x=1", ["/api/openai/v1/models?x=1", "/v1/models?x=1"]),
        (["/v1", "/api/v2/"], "/api/v2/files/org%2Fname", ["/v1/files/org%2Fname", "/api/v2/files/org%2Fname"]),
        (["/a%2Fb", "/v1"], "/v1/x", ["/a%2Fb/x", "/v1/x"]),
        (["/v10", "/v1"], "/v1/models", ["/v10/models", "/v1/models"]),
        (["/v1", "/v10"], "/v10/models", ["/v1/models", "/v10/models"]),
        (["/v2", "/v1"], "/v1//models", ["/v2//models", "/v1//models"]),
    ];
    for (bases, asked, expected) in table {
        assert_eq!(arrives(bases, asked).await, expected, "{bases:?} {asked}");
    }
}

#[tokio::test]
async fn a_base_on_ipv6_is_served_like_any_other() {
    let Some(v6) = Server::start_v6(failing()).await else { return };
    let harness = WireHarness::of([("openai", Answer::ok().into())]).await;
    let key = harness.secret("cometapi");
    let first = Provider::new("cometapi", v6.base_url("/v1/")).bearer_auth(&key);
    let client = client(ProviderChain::builder([first, harness.actors[0].provider()]));
    for base in [v6.base_url("/v1"), v6.base_url("/v1").replace("[::1]", "[0:0::0:1]")] {
        let response = client.get(format!("{base}/models")).send().await.unwrap();
        assert_eq!(
            line(Report::of(&response).unwrap()),
            "cometapi 500 in # ms (maybe processed) → openai 200 in # ms"
        );
    }
    for request in v6.requests() {
        assert_eq!(request.header("host"), Some(&*format!("[::1]:{}", v6.port())));
        assert_eq!(request.header("authorization"), Some(&*format!("Bearer {key}")));
        assert_eq!(request.target, "/v1/models");
    }
    assert_eq!(v6.requests().len(), 2);
    harness.assert_asked(&[2]);
    assert_no_foreign_keys(&[(&v6, &key)], &[&key, &harness.actors[0].key]);
}

#[tokio::test]
async fn a_base_with_a_host_in_capitals_is_the_same() {
    let harness = WireHarness::two(Answer::ok(), Answer::ok()).await;
    let base = harness.actors[0].url("").replace("http://127.0.0.1", "HTTP://LocalHost");
    let provider = Provider::new("cometapi", base).bearer_auth(&harness.actors[0].key);
    let url = harness.actors[0].url("/models").replace("127.0.0.1", "localhost");
    let response = client(ProviderChain::builder([provider])).get(url).send().await.unwrap();
    assert_eq!(response.status(), 200);
    harness.assert_asked(&[1, 0]);
}

// What the caller put on the request.

#[tokio::test]
async fn the_callers_credentials_reach_no_provider() {
    let harness = WireHarness::two(failing(), Answer::ok()).await;
    let client = harness.client();
    let mut headers = HeaderMap::new();
    for name in [
        "cookie",
        "authorization",
        "proxy-authorization",
        "x-api-key",
        "api-key",
        "x-goog-api-key",
        "openai-organization",
        "openai-project",
    ] {
        headers.append(name, harness.secret(name).parse().unwrap());
        headers.append(name, harness.secret(name).parse().unwrap());
    }
    let mut sensitive = HeaderValue::from_str(&harness.secret("custom")).unwrap();
    sensitive.set_sensitive(true);
    headers.append("x-custom", sensitive);
    headers.append("host", HeaderValue::from_static("evil.example"));
    headers.append("x-request-id", HeaderValue::from_static("42"));
    headers.append("idempotency-key", HeaderValue::from_static("once"));
    headers.append("accept", HeaderValue::from_static("text/event-stream"));
    let names = ["key", "api_key", "api-key", "access_token", "k%65y"];
    let query: String = names
        .iter()
        .map(|name| format!("&{name}={}", harness.secret(name).replace('+', "%2B")))
        .collect();
    let url = harness.actors[1].url(&format!("/models?a=%2F1{query}&monkey=3&b=+"));
    let response = client.post(url).headers(headers).body(BODY).send().await.unwrap();
    assert_eq!(response.status(), 200);
    harness.assert_asked(&[1, 1]);
    for actor in 0..2 {
        let request = harness.requests(actor).remove(0);
        let host = format!("127.0.0.1:{}", harness.actors[actor].server.port());
        assert_eq!(request.header("host"), Some(&*host));
        assert_eq!(request.header("x-request-id"), Some("42"));
        assert_eq!(request.header("idempotency-key"), Some("once"));
        assert_eq!(request.header("accept"), Some("text/event-stream"));
        assert_eq!(request.target, "/v1/models?a=%2F1&monkey=3&b=+");
        assert_eq!(request.text(), BODY);
    }
}

/// The names that vendors' documentation has, and one for each ending that names of keys have; each is
/// tried at a foreign provider.
const KEY_HEADERS: [&str; 56] = [
    "authorization",
    "proxy-authorization",
    "cookie",
    "api-key",
    "apikey",
    "api_key",
    "x-api-key",
    "x-api-token",
    "x-api-secret",
    "xi-api-key",
    "x-goog-api-key",
    "x-goog-iam-authorization-token",
    "x-goog-iap-jwt-assertion",
    "ocp-apim-subscription-key",
    "x-functions-key",
    "x-ms-client-principal",
    "cf-aig-authorization",
    "cf-access-client-id",
    "cf-access-client-secret",
    "cf-access-jwt-assertion",
    "helicone-auth",
    "x-litellm-api-key",
    "x-portkey-api-key",
    "x-rapidapi-key",
    "x-honeycomb-team",
    "x-sentry-auth",
    "x-amz-security-token",
    "x-amzn-oidc-data",
    "private-token",
    "x-vault-token",
    "auth",
    "authentication",
    "x-auth",
    "x-auth-token",
    "x-access-token",
    "x-csrftoken",
    "x-jwt",
    "x-jwt-assertion",
    "x-session",
    "x-password",
    "password",
    "token",
    "access_token",
    "accesstoken",
    "authtoken",
    "x-authtoken",
    "dpop",
    "signature",
    "signature-input",
    "x-hub-signature-256",
    "x-shop-signature",
    "x-some-vendors-secret",
    "x-some-vendors-apikey",
    "x-some-vendors-key",
    "x-some-vendors-token",
    "x-authorization",
];

const KEY_QUERIES: [&str; 56] = [
    "accesskey",
    "api_secret",
    "api_token",
    "app_key",
    "app_secret",
    "app_token",
    "appid",
    "appkey",
    "auth_key",
    "authkey",
    "authtoken",
    "bearer_token",
    "license_key",
    "oauth_signature",
    "oauth_token",
    "session_key",
    "user_key",
    "key",
    "api_key",
    "apikey",
    "access_key",
    "access_token",
    "auth",
    "auth_token",
    "awsaccesskeyid",
    "client_assertion",
    "client_secret",
    "code",
    "googleaccessid",
    "id_token",
    "jwt",
    "passwd",
    "password",
    "private_token",
    "pwd",
    "refresh_token",
    "secret",
    "secret_key",
    "session_token",
    "sig",
    "Signature",
    "subscription_key",
    "token",
    "X-Amz-Credential",
    "x-goog-credential",
    "x-ms-signature",
    "api-key",
    "subscription-key",
    "X-Amz-Signature",
    "X-Amz-Security-Token",
    "X-Goog-Signature",
    "x-some-vendors-key",
    "auth-token",
    "vendor-secret",
    "vendorapikey",
    "x-authorization",
];

#[tokio::test]
async fn no_name_that_carries_keys_reaches_a_foreign_provider() {
    let harness = WireHarness::two(failing(), Answer::ok()).await;
    let client = client(harness.chain().without_health());
    let mut arrived = 0;
    for name in KEY_HEADERS {
        let value = harness.secret(name);
        let response = harness.post(&client).header(name, value).send().await.unwrap();
        assert_eq!(response.status(), 200);
    }
    for name in KEY_QUERIES {
        let value = harness.secret(name).replace('+', "%2B");
        let url = harness.actors[1].url(&format!("/models?a=1&{name}={value}&b=2"));
        assert_eq!(client.get(url).send().await.unwrap().status(), 200);
    }
    let key = harness.secret("protocol");
    let protocols = format!("realtime, openai-insecure-api-key.{key}, openai-beta.realtime-v1");
    let request = harness.post(&client).header("sec-websocket-protocol", protocols);
    assert_eq!(request.send().await.unwrap().status(), 200);
    for actor in 0..2 {
        let requests = harness.requests(actor);
        for request in &requests {
            let own = request.header("authorization");
            assert_eq!(own, Some(&*format!("Bearer {}", harness.actors[actor].key)));
            arrived +=
                KEY_HEADERS[1..].iter().filter(|name| request.header(name).is_some()).count();
            if request.target.contains('?') {
                assert_eq!(request.target, "/v1/models?a=1&b=2");
            }
        }
        let left = requests.last().unwrap().header("sec-websocket-protocol");
        assert_eq!(left, Some("realtime, openai-beta.realtime-v1"));
    }
    assert_eq!(arrived, 0);
    println!(
        "{} header names and {} query names at 2 providers: {arrived} arrived",
        KEY_HEADERS.len(),
        KEY_QUERIES.len()
    );
}

#[tokio::test]
async fn what_the_protocol_needs_travels() {
    let harness = WireHarness::two(failing(), Answer::ok()).await;
    let names = ["idempotency-key", "sec-websocket-key", "x-request-id", "openai-beta"];
    let mut request = harness.post(&harness.client());
    for name in names {
        request = request.header(name, "value");
    }
    let url = "/models?page_token=1&continuation-token=2&api-version=3";
    assert_eq!(request.send().await.unwrap().status(), 200);
    let response = harness.client().get(harness.actors[1].url(url)).send().await.unwrap();
    assert_eq!(response.status(), 200);
    for actor in 0..2 {
        let requests = harness.requests(actor);
        assert!(names.iter().all(|name| requests[0].header(name) == Some("value")));
        assert_eq!(requests[1].target, format!("/v1{url}"));
    }
}

#[tokio::test]
async fn a_header_that_is_kept_reaches_the_provider_that_keeps_it_and_no_other() {
    let harness = WireHarness::two(failing(), Answer::ok()).await;
    let first = harness.actors[0].provider().keep_header("x-partition-key");
    let client = client(ProviderChain::builder([first, harness.actors[1].provider()]));
    let response = harness.post(&client).header("x-partition-key", "7").send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(harness.requests(0)[0].header("x-partition-key"), Some("7"));
    assert_eq!(harness.requests(1)[0].header("x-partition-key"), None);
}

#[tokio::test]
async fn what_the_chain_keeps_and_removes_holds_for_every_provider() {
    let harness = WireHarness::two(failing(), Answer::ok()).await;
    let chain = harness.chain().keep_header("X-Partition-Key").remove_header("X-Internal-User");
    let request = harness.post(&client(chain)).header("x-partition-key", "7");
    let request = request.header("x-internal-user", harness.secret("user"));
    let response = request.header("x-other-key", harness.secret("other")).send().await.unwrap();
    assert_eq!(response.status(), 200);
    for actor in 0..2 {
        let request = harness.requests(actor).remove(0);
        assert_eq!(request.header("x-partition-key"), Some("7"));
        assert_eq!(request.header("x-internal-user"), None);
        assert_eq!(request.header("x-other-key"), None);
    }
}

#[tokio::test]
async fn a_name_and_password_in_the_url_reach_no_provider() {
    let harness = WireHarness::two(failing(), Answer::ok()).await;
    let client = harness.client();
    let (user, password) = ("me", harness.secret("password"));
    let mut url = Url::parse(&harness.actors[1].url("/models")).unwrap();
    url.set_username(user).unwrap();
    url.set_password(Some(&password)).unwrap();
    // The builder makes a header of it, a request of one's own does not.
    assert_eq!(client.get(url.clone()).send().await.unwrap().status(), 200);
    let response = client.execute(Request::new(Method::GET, url)).await.unwrap();
    assert_eq!(response.status(), 200);
    harness.hear(format!("{response:?}"));
    harness.assert_asked(&[2, 2]);
}

#[tokio::test]
async fn what_any_provider_uses_as_a_credential_is_stripped_at_all() {
    let harness = WireHarness::two(failing(), Answer::ok()).await;
    let [first, second] = [&harness.actors[0], &harness.actors[1]];
    let typed = [
        first.keyless().api_key_header("x-vendor-token", &first.key),
        second.keyless().api_key_query("subscription", &second.key),
    ];
    let sourced = [
        first.keyless().api_key_header_with("X-Vendor-Token", source_of(&first.key)),
        second.keyless().api_key_query_with("subscription", source_of(&second.key)),
    ];
    let (header, query) = (harness.secret("header"), harness.secret("query"));
    for (at, providers) in [typed, sourced].into_iter().enumerate() {
        let client = client(ProviderChain::builder(providers));
        let response = client
            .get(second.url(&format!("/models?subscription={query}&a=1&SUBSCRIPTION={query}")))
            .header("x-vendor-token", &header)
            .send()
            .await
            .unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.url().query(), None);
        let request = &first.server.requests()[at];
        assert_eq!(request.header("x-vendor-token"), Some(&*first.key));
        assert_eq!(request.target, "/v1/models?a=1");
        let request = &second.server.requests()[at];
        assert_eq!(request.header("x-vendor-token"), None);
        let (target, own) = request.target.split_once("&subscription=").expect("its own key");
        assert_eq!(target, "/v1/models?a=1");
        let own = percent_encoding::percent_decode_str(own).decode_utf8().unwrap();
        assert_eq!(own, second.key);
    }
}

/// Returns the key, as it is read from a file.
fn source_of(key: &str) -> impl Fn() -> std::future::Ready<Result<String, Infallible>> + use<> {
    let key = format!("{key}\n");
    move || std::future::ready(Ok(key.clone()))
}

#[tokio::test]
async fn each_kind_of_credential_arrives_where_it_belongs() {
    let harness = WireHarness::two(failing(), Answer::ok()).await;
    let [first, second] = [&harness.actors[0], &harness.actors[1]];
    let client = client(ProviderChain::builder([
        first.keyless().basic_auth("me:".trim_end_matches(':'), &first.key),
        second.keyless().api_key_header("API-Key", format!(" {}\r\n", second.key)),
    ]));
    assert_eq!(harness.post(&client).send().await.unwrap().status(), 200);
    let basic = format!("Basic {}", BASE64.encode(format!("me:{}", first.key)));
    assert_eq!(first.server.only_request().header("authorization"), Some(&*basic));
    assert_eq!(first.server.only_request().header("api-key"), None);
    assert_eq!(second.server.only_request().header("authorization"), None);
    assert_eq!(second.server.only_request().header("api-key"), Some(&*second.key));
}

#[tokio::test]
async fn a_providers_own_headers_and_query_replace_the_callers() {
    let harness = WireHarness::two(failing(), Answer::ok()).await;
    let [first, second] = [harness.actors[0].provider(), harness.actors[1].provider()];
    let client = client(ProviderChain::builder([
        first.header("x-tier", "comet").query("api-version", "1 2&x").remove_header("x-tenant"),
        second.header("openai-organization", "org-own"),
    ]));
    let secret = harness.secret("organization");
    let response = client
        .get(harness.actors[1].url("/models?api-version=7&b=%2F&api-version=8"))
        .header("x-tier", "caller")
        .header("x-tenant", "acme")
        .header("openai-organization", secret)
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 200);
    let request = harness.actors[0].server.only_request();
    assert_eq!(request.header("x-tier"), Some("comet"));
    assert_eq!(request.header("x-tenant"), None);
    assert_eq!(request.header("openai-organization"), None);
    assert!(
        ["/v1/models?b=%2F&api-version=1+2%26x", "/v1/models?b=%2F&api-version=1%202%26x"]
            .contains(&&*request.target),
        "{}",
        request.target
    );
    let request = harness.actors[1].server.only_request();
    assert_eq!(request.header("x-tier"), Some("caller"));
    assert_eq!(request.header("x-tenant"), Some("acme"));
    assert_eq!(request.header("openai-organization"), Some("org-own"));
    assert_eq!(request.target, "/v1/models?api-version=7&b=%2F&api-version=8");
    harness.assert_asked(&[1, 1]);
}

#[tokio::test]
async fn the_callers_own_credential_goes_only_where_it_was_addressed() {
    for (addressed, forwards) in [(0, false), (1, true)] {
        let mut harness = WireHarness::two(failing(), failing()).await;
        harness.actors[1].key = canary("caller");
        let mine = harness.actors[1].key.clone();
        let client = client(ProviderChain::builder([
            harness.actors[0].provider(),
            harness.actors[1].keyless().forward_caller_auth(),
        ]));
        let response = client
            .get(harness.actors[addressed].url(&format!("/models?key={mine}")))
            .header("authorization", format!("Bearer {mine}"))
            .header("x-api-key", &mine)
            .send()
            .await
            .unwrap();
        assert_eq!(response.status(), 500);
        harness.hear(format!("{:?}", Report::of(&response)));
        let request = harness.actors[1].server.only_request();
        assert_eq!(request.header("authorization").is_some(), forwards);
        assert_eq!(request.header("x-api-key").is_some(), forwards);
        assert_eq!(request.target.contains(&mine), forwards, "{}", request.target);
        assert_eq!(harness.actors[0].server.only_request().target, "/v1/models");
    }
}

// Keys in the query.

/// Providers with a key that was typed, or with one from a source.
fn query_keyed(harness: &WireHarness, sourced: bool) -> Vec<Provider> {
    let provider = |actor: &support::harness::Actor| match sourced {
        true => actor.keyless().api_key_query_with("key", source_of(&actor.key)),
        false => actor.keyless().api_key_query("key", &actor.key),
    };
    harness.actors.iter().map(provider).collect()
}

#[tokio::test]
async fn the_url_of_a_response_is_cleaned_of_a_query_key() {
    let answers = [(Answer::ok(), 200), (failing(), 503)];
    let cases = answers.iter().flat_map(|answer| [(answer, false), (answer, true)]);
    for ((first, status), sourced) in cases {
        let harness = WireHarness::two(first.clone(), Answer::error(503, "closed")).await;
        let client = client(ProviderChain::builder(query_keyed(&harness, sourced)));
        let response = client.get(harness.actors[1].url("/models?a=1")).send().await.unwrap();
        assert_eq!(response.status(), *status);
        assert_eq!(response.url().query(), None);
        assert_eq!(response.url().path(), "/v1/models");
        harness.hear(format!("{response:?}"));
        if let Err(error) = response.error_for_status() {
            harness.hear(shown(&error));
        }
        let sent = &harness.requests(0)[0].target;
        assert!(sent.starts_with("/v1/models?a=1&key=sk-"), "{sent}");
    }
}

#[tokio::test]
async fn the_url_of_a_response_keeps_a_query_that_holds_no_key() {
    for first in [Answer::ok(), failing()] {
        let harness = WireHarness::two(first, Answer::ok()).await;
        let url = harness.actors[1].url("/models?a=1");
        let response = harness.client().get(url).send().await.unwrap();
        assert_eq!((response.status().as_u16(), response.url().query()), (200, Some("a=1")));
    }
}

#[tokio::test]
async fn the_url_of_an_error_is_cleaned_of_a_query_key() {
    let stall: Script = Answer::stall().into();
    let answers = [Answer::fin().into(), Answer::reset().into(), stall];
    let cases = answers.iter().flat_map(|answer| [(answer, false), (answer, true)]);
    for (last, sourced) in cases {
        let last = last.clone();
        let harness = WireHarness::of([("cometapi", failing().into()), ("openai", last)]).await;
        let client = client(ProviderChain::builder(query_keyed(&harness, sourced)));
        let request = client.get(harness.actors[1].url("/models?a=1")).timeout(ms(100));
        let error = request.send().await.unwrap_err();
        harness.hear(shown(&error));
        let Error::Reqwest(error) = error else { panic!("not a reqwest::Error") };
        assert_eq!(error.url().and_then(Url::query), None);
        assert!(harness.requests(1)[0].target.contains("key=sk-"));
    }
}

#[tokio::test]
async fn the_failover_error_shows_no_query_key() {
    let echo = |request: &Received| Answer::error(400, &format!("no: GET {}", request.target));
    for sourced in [false, true] {
        let harness = WireHarness::two(echo, Answer::reset()).await;
        let providers = query_keyed(&harness, sourced);
        let chain = ProviderChain::builder(providers).on_exhausted(Exhausted::Error);
        let error = client(chain).get(harness.actors[1].url("/models")).send().await.unwrap_err();
        harness.hear(shown(&error));
        assert!(FailoverError::find(&error).is_some());
    }
}

/// A layer whose errors show all of those below.
struct Wraps;

#[async_trait::async_trait]
impl reqwest_middleware::Middleware for Wraps {
    async fn handle(
        &self,
        request: Request,
        extensions: &mut http::Extensions,
        next: reqwest_middleware::Next<'_>,
    ) -> reqwest_middleware::Result<reqwest::Response> {
        let wrapped = |error| Error::middleware(std::io::Error::other(format!("inner: {error:?}")));
        next.run(request, extensions).await.map_err(wrapped)
    }
}

#[tokio::test]
async fn a_url_that_an_inner_layer_hides_in_its_error_shows_no_query_key() {
    let endings = [Exhausted::LastOutcome, Exhausted::Error];
    for (exhausted, sourced) in endings.into_iter().flat_map(|end| [(end, false), (end, true)]) {
        let harness = WireHarness::two(Answer::reset(), Answer::fin()).await;
        let chain = ProviderChain::builder(query_keyed(&harness, sourced)).on_exhausted(exhausted);
        let client = ClientBuilder::new(plain()).with(chain.build().unwrap()).with(Wraps).build();
        let error = client.get(harness.actors[1].url("/models")).send().await.unwrap_err();
        harness.hear(shown(&error));
    }
}

// Keys in the path.

fn path_keyed(harness: &WireHarness) -> Vec<Provider> {
    let provider = |actor: &support::harness::Actor| {
        Provider::new(actor.name, actor.server.base_url("/v2/{key}/rpc")).api_key_path(&actor.key)
    };
    harness.actors.iter().map(provider).collect()
}

/// What a server was asked for, with a key in its path.
fn keyed_target(key: &str) -> String {
    format!("/v2/{}/rpc/models?a=1", key.replace('/', "%2F"))
}

#[tokio::test]
async fn a_key_in_the_path_arrives_and_is_in_no_url_that_is_handed_out() {
    for (first, status, asked) in [(Answer::ok(), 200, [1, 0]), (failing(), 503, [1, 1])] {
        let harness = WireHarness::two(first, Answer::error(503, "closed")).await;
        let chain = ProviderChain::builder(path_keyed(&harness)).claim("http://rpc.test");
        let client = client(chain);
        harness.hear(format!("{client:?}"));
        let response = client.get("http://rpc.test/models?a=1").send().await.unwrap();
        assert_eq!(response.status(), status);
        assert_eq!(response.url().path(), "/v2/%7Bkey%7D/rpc/models");
        assert_eq!(response.url().query(), Some("a=1"));
        harness.hear(format!("{response:?}"));
        if let Err(error) = response.error_for_status() {
            harness.hear(shown(&error));
        }
        for (actor, asked) in asked.into_iter().enumerate() {
            assert_eq!(harness.requests(actor).len(), asked);
            for request in harness.requests(actor) {
                assert_eq!(request.target, keyed_target(&harness.actors[actor].key));
            }
        }
    }
}

#[tokio::test]
async fn a_key_in_the_path_is_in_no_error() {
    let echo = |request: &Received| Answer::error(401, &format!("no route {}", request.target));
    for last in [Script::from(echo), Answer::fin().into(), Answer::reset().into()] {
        for exhausted in [Exhausted::LastOutcome, Exhausted::Error] {
            let harness =
                WireHarness::of([("cometapi", echo.into()), ("openai", last.clone())]).await;
            let chain = ProviderChain::builder(path_keyed(&harness)).claim("http://rpc.test");
            let client = client(chain.on_exhausted(exhausted));
            match client.get("http://rpc.test/models?a=1").send().await {
                Ok(response) => harness.hear(format!("{response:?}")),
                Err(error) => harness.hear(shown(&error)),
            };
            assert_eq!(harness.requests(1).len(), 1);
        }
    }
}

#[tokio::test]
async fn a_request_may_be_addressed_to_a_base_with_its_key_left_out() {
    let harness = WireHarness::two(failing(), Answer::ok()).await;
    let client = client(ProviderChain::builder(path_keyed(&harness)));
    let url = harness.actors[1].server.base_url("/v2/{key}/rpc/models?a=1");
    let response = client.get(url).send().await.unwrap();
    assert_eq!(Report::of(&response).unwrap().served_by(), Some("openai"));
    // The URL that was handed out is below the base again.
    let again = client.get(response.url().clone()).send().await.unwrap();
    assert_eq!(Report::of(&again).unwrap().served_by(), Some("openai"));
    for actor in &harness.actors {
        let targets: Vec<_> = actor.server.requests().into_iter().map(|r| r.target).collect();
        assert_eq!(targets, [keyed_target(&actor.key), keyed_target(&actor.key)]);
    }
}

// Redirects.

fn with_chain(plain: reqwest::ClientBuilder, chain: ProviderChain) -> ClientWithMiddleware {
    ClientBuilder::new(local(plain)).with(chain).build()
}

/// The first provider redirects to `location`, the second answers; the report, and what the first
/// was asked.
async fn redirected(
    hardened: bool,
    method: Method,
    status: u16,
    location: impl Fn(&WireHarness) -> String,
) -> (WireHarness, reqwest::Response) {
    let target = Arc::new(std::sync::Mutex::new(String::new()));
    let script = {
        let target = target.clone();
        move |request: &Received| match request.target.as_str() {
            target if target.ends_with("/elsewhere") => Answer::ok().header("x-from", "elsewhere"),
            _ => Answer::status(status).header("location", &*target.lock().unwrap()),
        }
    };
    let harness = WireHarness::two(script, Answer::ok()).await;
    *target.lock().unwrap() = location(&harness);
    let builder = reqwest::Client::builder();
    let builder = if hardened { harden(builder) } else { builder };
    let client = with_chain(builder, harness.chain().build().unwrap());
    let url = harness.actors[1].url("/chat/completions");
    let body = if method == Method::POST { BODY } else { "" };
    let response = client.request(method, url).body(body).send().await.unwrap();
    harness.hear(format!("{response:?}"));
    (harness, response)
}

#[tokio::test]
async fn a_redirect_to_another_origin_is_a_failure_and_takes_no_key_along() {
    for hardened in [false, true] {
        for status in [301, 302, 303, 307, 308] {
            for method in [Method::POST, Method::GET] {
                let evil = Server::start(Answer::ok()).await;
                let location = evil.base_url("/v1/elsewhere");
                let (harness, response) =
                    redirected(hardened, method.clone(), status, |_| location.clone()).await;
                let report = Report::of(&response).unwrap();
                assert_eq!(report.attempts()[0].reason(), Reason::Redirected, "{status} {method}");
                // Where it was followed, what it led to answered.
                let answered = report.attempts()[0].status().map(|status| status.as_u16());
                assert_eq!(answered, Some(if hardened { status } else { 200 }));
                assert_eq!(report.served_by(), Some("openai"), "{status} {method}");
                harness.assert_asked(&[1, 1]);
                assert_eq!(evil.requests().len(), usize::from(!hardened), "{status} {method}");
                let keys = [&*harness.actors[0].key, &*harness.actors[1].key];
                assert_no_foreign_keys(&[(&evil, "")], &keys);
            }
        }
    }
}

/// Whether the message of a redirected attempt names the ways out.
fn says_what_to_do(message: &str) -> bool {
    message.contains("`harden`") && message.contains("`map_request`")
}

#[tokio::test]
async fn a_redirect_within_the_origin_is_a_failure_of_a_post() {
    for (hardened, asked) in [(false, 2), (true, 1)] {
        for status in [301, 302, 303, 307, 308] {
            let (harness, response) =
                redirected(hardened, Method::POST, status, |_| "/elsewhere".into()).await;
            let report = Report::of(&response).unwrap();
            let attempt = &report.attempts()[0];
            assert_eq!(attempt.reason(), Reason::Redirected, "{status}");
            assert_eq!(attempt.message().is_some_and(says_what_to_do), !hardened, "{report:?}");
            assert_eq!(report.served_by(), Some("openai"), "{status}");
            assert_eq!(harness.requests(1)[0].text(), BODY);
            harness.assert_asked(&[asked, 1]);
        }
    }
}

#[tokio::test]
async fn a_redirect_below_the_base_is_followed_for_a_get_where_the_client_follows() {
    for method in [Method::GET, Method::HEAD] {
        let (harness, response) =
            redirected(false, method.clone(), 302, |_| "/v1/elsewhere".into()).await;
        assert_eq!(Report::of(&response).unwrap().served_by(), Some("cometapi"));
        assert_eq!(response.headers()["x-from"], "elsewhere");
        harness.assert_asked(&[2, 0]);

        let (harness, response) = redirected(true, method, 302, |_| "/v1/elsewhere".into()).await;
        assert_eq!(Report::of(&response).unwrap().served_by(), Some("openai"));
        harness.assert_asked(&[1, 1]);
    }
}

#[tokio::test]
async fn a_redirect_of_a_get_to_a_path_outside_the_base_is_a_failure() {
    for method in [Method::GET, Method::HEAD] {
        for outside in ["/elsewhere", "/v10/elsewhere"] {
            let (harness, response) =
                redirected(false, method.clone(), 302, |_| outside.into()).await;
            let report = Report::of(&response).unwrap();
            assert_eq!(report.attempts()[0].reason(), Reason::Redirected, "{outside}");
            assert_eq!(report.served_by(), Some("openai"), "{outside}");
            harness.assert_asked(&[2, 1]);
        }
    }
}

#[tokio::test]
async fn a_query_that_a_layer_below_signs_is_no_redirect() {
    struct Signs;
    #[async_trait::async_trait]
    impl reqwest_middleware::Middleware for Signs {
        async fn handle(
            &self,
            mut request: Request,
            extensions: &mut http::Extensions,
            next: reqwest_middleware::Next<'_>,
        ) -> reqwest_middleware::Result<reqwest::Response> {
            request.url_mut().query_pairs_mut().append_pair("nonce", "1");
            next.run(request, extensions).await
        }
    }
    let harness = WireHarness::two(Answer::ok(), Answer::ok()).await;
    let chain = harness.chain().build().unwrap();
    let client = ClientBuilder::new(plain()).with(chain).with(Signs).build();
    let response = harness.post(&client).send().await.unwrap();
    assert_eq!(Report::of(&response).unwrap().served_by(), Some("cometapi"));
    assert_eq!(harness.requests(0)[0].target, "/v1/chat/completions?nonce=1");
    harness.assert_asked(&[1, 0]);
}

#[tokio::test]
async fn a_layer_below_that_edits_the_path_is_told_what_to_do_and_map_request_is_the_way() {
    struct Edits;
    #[async_trait::async_trait]
    impl reqwest_middleware::Middleware for Edits {
        async fn handle(
            &self,
            mut request: Request,
            extensions: &mut http::Extensions,
            next: reqwest_middleware::Next<'_>,
        ) -> reqwest_middleware::Result<reqwest::Response> {
            request.url_mut().set_path("/v1/edited");
            next.run(request, extensions).await
        }
    }
    let harness = WireHarness::two(Answer::ok(), Answer::ok()).await;
    let chain = harness.chain().build().unwrap();
    let client = ClientBuilder::new(plain()).with(chain).with(Edits).build();
    let error = harness.post(&client).send().await.unwrap_err();
    let failed = FailoverError::find(&error).expect("a FailoverError");
    for attempt in failed.report().attempts() {
        assert_eq!(attempt.reason(), Reason::Redirected);
        assert!(attempt.message().is_some_and(says_what_to_do), "{failed}");
    }
    let edit = |request: &mut Request| {
        request.url_mut().set_path("/v1/edited");
        Ok::<_, Infallible>(())
    };
    let client = self::client(ProviderChain::builder([
        harness.actors[0].provider().map_request(edit),
        harness.actors[1].provider(),
    ]));
    let response = harness.post(&client).send().await.unwrap();
    assert_eq!(Report::of(&response).unwrap().served_by(), Some("cometapi"));
    harness.assert_asked(&[2, 1]);
    assert_eq!(harness.requests(0)[1].target, "/v1/edited");
}

#[tokio::test]
async fn a_key_that_a_provider_puts_into_a_redirect_is_in_no_url_that_is_handed_out() {
    for (in_path, ends) in [(false, true), (true, true), (false, false), (true, false)] {
        let script = move |request: &Received| {
            let all = percent_encoding::NON_ALPHANUMERIC;
            let key = request.header("authorization").unwrap_or_default().replace("Bearer ", "");
            let key = percent_encoding::utf8_percent_encode(&key, all);
            let place = if in_path { format!("{key}?a=1") } else { format!("more?a={key}") };
            match ends && request.target.starts_with("/v1/x/") {
                true => Answer::ok(),
                false => Answer::status(302).header("location", format!("/v1/x/{place}")),
            }
        };
        let harness = WireHarness::of([("cometapi", script.into())]).await;
        let client = client(harness.chain());
        match client.get(harness.actors[0].url("/models?b=2")).send().await {
            Ok(response) => {
                assert!(ends && response.status() == 200);
                let path = if in_path { "/" } else { "/v1/x/more" };
                assert_eq!((response.url().path(), response.url().query()), (path, None));
                harness.hear(format!("{response:?}"));
            }
            Err(error) => {
                assert!(!ends);
                harness.hear(shown(&error));
                let Error::Reqwest(error) = error else { panic!("not a reqwest::Error: {error}") };
                assert!(error.is_redirect() && error.url().is_some());
            }
        }
        assert!(harness.requests(0).len() > 1);
    }
}

#[tokio::test]
async fn a_body_of_the_callers_that_fails_shows_no_key_of_the_providers_url() {
    for wraps in [false, true] {
        let harness = WireHarness::two(Answer::ok(), Answer::ok()).await;
        let chain = ProviderChain::builder(query_keyed(&harness, false)).build().unwrap();
        let builder = ClientBuilder::new(plain()).with(chain);
        let client = if wraps { builder.with(Wraps).build() } else { builder.build() };
        let chunks = [Ok("begun"), Err(std::io::Error::other("the disk is gone"))];
        let body = reqwest::Body::wrap_stream(futures_util::stream::iter(chunks));
        let request = client.post(harness.actors[1].url("/files")).body(body);
        let error = request.send().await.unwrap_err();
        let text = harness.hear(shown(&error));
        assert!(text.contains("127.0.0.1") || FailoverError::find(&error).is_some(), "{text}");
    }
}

#[tokio::test]
async fn a_redirect_to_the_next_provider_takes_no_key_along() {
    for hardened in [false, true] {
        let (harness, response) =
            redirected(hardened, Method::GET, 302, |harness| harness.actors[1].url("/models"))
                .await;
        let report = Report::of(&response).unwrap();
        assert_eq!(report.attempts()[0].reason(), Reason::Redirected);
        assert_eq!(report.served_by(), Some("openai"));
        let with_key = |request: &&Received| request.header("authorization").is_some();
        assert_eq!(harness.requests(1).iter().filter(with_key).count(), 1);
        assert_eq!(harness.requests(1).len(), if hardened { 1 } else { 2 });
    }
}

#[tokio::test]
async fn a_redirect_at_the_end_is_a_failover_error_or_the_302_itself() {
    let evil = Server::start(Answer::ok()).await;
    let leads = Answer::status(302).header("location", evil.base_url("/v1/elsewhere"));
    for hardened in [false, true] {
        let harness = WireHarness::two(failing(), leads.clone()).await;
        let builder = reqwest::Client::builder();
        let builder = if hardened { harden(builder) } else { builder };
        let client = with_chain(builder, harness.chain().build().unwrap());
        match harness.post(&client).send().await {
            Ok(response) => {
                assert!(hardened, "{response:?}");
                assert_eq!(response.status(), 302);
                assert_eq!(Report::of(&response).unwrap().served_by(), None);
            }
            Err(error) => {
                assert!(!hardened, "{error:?}");
                harness.hear(shown(&error));
                let failed = FailoverError::find(&error).expect("a FailoverError");
                let last = failed.report().attempts().last().unwrap();
                assert_eq!(last.reason(), Reason::Redirected);
            }
        }
        harness.assert_asked(&[1, 1]);
    }
}

#[tokio::test]
async fn classify_has_no_say_in_a_redirect_that_was_followed() {
    let evil = Server::start(Answer::ok()).await;
    let leads = Answer::status(307).header("location", evil.base_url("/v1/elsewhere"));
    let harness = WireHarness::two(leads, Answer::ok()).await;
    let chain = harness.chain().classify(|_| Verdict::Accept).build().unwrap();
    let client = with_chain(reqwest::Client::builder(), chain);
    let response = harness.post(&client).send().await.unwrap();
    assert_eq!(Report::of(&response).unwrap().served_by(), Some("openai"));
    assert_eq!(response.url().as_str(), harness.actors[1].url("/chat/completions"));
}

#[tokio::test]
async fn an_endless_redirect_fails_over() {
    let (harness, response) =
        redirected(false, Method::GET, 302, |harness| harness.actors[0].url("/chat/completions"))
            .await;
    let report = Report::of(&response).unwrap();
    assert_eq!(report.served_by(), Some("openai"), "{report}");
    let message = report.attempts()[0].message().unwrap();
    assert!(says_what_to_do(message) && message.contains("redirect"), "{message}");
    assert!(harness.requests(0).len() > 2);
}

// Tokens from a source.

#[tokio::test]
async fn a_source_that_fails_sends_nothing_and_fails_over() {
    let harness = WireHarness::two(Answer::ok(), Answer::ok()).await;
    let secret = harness.secret("vault");
    let wrong = format!("vault says no to {secret}").replace(&secret, "a caller");
    let failing = move || {
        let error = std::io::Error::other(wrong.clone());
        async move { Err::<String, _>(error) }
    };
    let first = harness.actors[0].keyless().bearer_auth_with(failing);
    let client = client(ProviderChain::builder([first, harness.actors[1].provider()]));
    let response = harness.post(&client).send().await.unwrap();
    let report = Report::of(&response).unwrap();
    assert_eq!(line(report), "cometapi failed (credential) in # ms → openai 200 in # ms");
    assert_eq!(report.attempts()[0].reason(), Reason::Credential);
    assert!(!report.attempts()[0].maybe_processed());
    assert_eq!(report.attempts()[0].message(), Some("vault says no to a caller"));
    assert_eq!(harness.actors[0].server.connections(), 0);
    harness.assert_asked(&[0, 1]);
}

#[tokio::test]
async fn a_source_that_fails_at_the_end_is_a_failover_error() {
    let harness = WireHarness::two(failing(), Answer::ok()).await;
    let last =
        harness.actors[1].keyless().bearer_auth_with(|| async { Err::<String, _>("no token") });
    let client = client(ProviderChain::builder([harness.actors[0].provider(), last]));
    let error = harness.post(&client).send().await.unwrap_err();
    harness.hear(shown(&error));
    let failed = FailoverError::find(&error).expect("a FailoverError");
    assert!(failed.to_string().contains("no token"), "{failed}");
    harness.assert_asked(&[1, 0]);
}

#[tokio::test]
async fn a_source_that_hangs_ends_with_the_attempts_time() {
    let harness = WireHarness::two(Answer::ok(), Answer::ok()).await;
    let hangs = || std::future::pending::<Result<String, Infallible>>();
    let first = harness.actors[0].keyless().bearer_auth_with(hangs).attempt_timeout(ms(60));
    let client = client(ProviderChain::builder([first, harness.actors[1].provider()]));
    let response = harness.post(&client).send().await.unwrap();
    let report = Report::of(&response).unwrap();
    assert_eq!(report.served_by(), Some("openai"));
    let reason = report.attempts()[0].reason();
    assert!(matches!(reason, Reason::Timeout | Reason::Credential), "{report}");
    assert!(!report.attempts()[0].maybe_processed(), "nothing was sent: {report}");
    assert!((ms(60)..ms(1000)).contains(&report.attempts()[0].elapsed()), "{report}");
    assert_eq!(harness.actors[0].server.connections(), 0);
    harness.assert_asked(&[0, 1]);
}

#[tokio::test]
async fn a_source_that_panics_fails_over() {
    let harness = WireHarness::two(Answer::ok(), Answer::ok()).await;
    let panics = || async { panic!("the vault burst") as Result<String, Infallible> };
    let first = harness.actors[0].keyless().bearer_auth_with(panics);
    let client = client(ProviderChain::builder([first, harness.actors[1].provider()]));
    let response = harness.post(&client).send().await.unwrap();
    assert_eq!(Report::of(&response).unwrap().served_by(), Some("openai"));
    harness.assert_asked(&[0, 1]);
}

#[tokio::test]
async fn a_source_is_asked_on_every_attempt_and_its_token_is_not_kept() {
    let tokens: Arc<Vec<String>> = Arc::new((0..3).map(|_| canary("token")).collect());
    let echo = |request: &Received| {
        Answer::error(401, &format!("wrong: {}", request.header("authorization").unwrap()))
    };
    let harness = WireHarness::two(echo, Answer::ok().headers_after(ms(10))).await;
    let source = {
        let (tokens, count) = (tokens.clone(), Arc::new(AtomicUsize::new(0)));
        move || {
            // A file's last newline is none of the token's.
            let token = format!("{}\n", tokens[count.fetch_add(1, Ordering::Relaxed)]);
            async move { Ok::<_, Infallible>(token) }
        }
    };
    let first = harness.actors[0].keyless().bearer_auth_with(source);
    let client = client(ProviderChain::builder([first, harness.actors[1].provider()]));
    for _ in 0..3 {
        let response = harness.post(&client).send().await.unwrap();
        let report = Report::of(&response).unwrap();
        assert_eq!(report.served_by(), Some("openai"));
        let keys: Vec<_> = tokens.iter().map(String::as_str).collect();
        assert_no_key(&format!("{report:?} {:?}", client), &keys);
    }
    let sent: Vec<_> =
        harness.requests(0).iter().map(|r| r.header("authorization").unwrap().to_owned()).collect();
    let expected: Vec<_> = tokens.iter().map(|token| format!("Bearer {token}")).collect();
    assert_eq!(sent, expected);
    let keys: Vec<_> = tokens.iter().map(String::as_str).collect();
    assert_no_foreign_keys(&[(&harness.actors[1].server, "")], &keys);
    assert_no_key(&logs(), &keys);
    assert_eq!(
        harness.requests(1)[0].header("authorization"),
        Some(&*format!("Bearer {}", harness.actors[1].key))
    );
}

#[tokio::test]
async fn a_malformed_token_sends_nothing_and_is_not_shown() {
    let harness = WireHarness::two(Answer::ok(), Answer::ok()).await;
    let core = harness.secret("token");
    for (at, token) in [
        String::new(),
        " \n".to_owned(),
        format!("{core}\r\nx-evil: 1"),
        format!("{core}\nmore"),
        format!("{core}\0"),
        format!("Bearer {core}"),
        format!("bearer {core}"),
        format!("\"{core}\""),
        format!("{core}'"),
        format!("{core}é"),
    ]
    .into_iter()
    .flat_map(|token| [(0, token.clone()), (1, token.clone()), (2, token)])
    {
        let shown_token = token.escape_debug().to_string();
        let source = move || {
            let token = token.clone();
            async move { Ok::<_, Infallible>(token) }
        };
        let first = harness.actors[0].keyless();
        let first = match at {
            0 => first.bearer_auth_with(source),
            1 => first.api_key_header_with("x-key", source),
            _ => first.api_key_query_with("key", source),
        };
        let client = client(ProviderChain::builder([first, harness.actors[1].provider()]));
        let response = harness.post(&client).send().await.unwrap();
        let report = Report::of(&response).unwrap();
        assert_eq!(report.attempts()[0].reason(), Reason::Credential, "{shown_token}: {report}");
        harness.hear(format!("{report} {report:?}"));
        assert_eq!(harness.actors[0].server.connections(), 0, "{shown_token}");
    }
}

#[tokio::test]
async fn a_provider_with_two_sources_is_asked_with_both_keys_or_not_at_all() {
    let harness = WireHarness::two(Answer::ok(), Answer::ok()).await;
    let [first, second] = [&harness.actors[0], &harness.actors[1]];
    let both = first
        .keyless()
        .api_key_header_with("x-vendor-id", source_of(&first.key))
        .api_key_query_with("sign", source_of(&first.key))
        .map_request(|request| {
            assert!(request.headers()["x-vendor-id"].is_sensitive());
            assert!(request.url().query_pairs().any(|(name, _)| name == "sign"));
            Ok::<_, Infallible>(())
        });
    let client_of = |first| client(ProviderChain::builder([first, second.provider()]));
    let url = second.url("/models?a=%2f");
    let response = client_of(both.clone()).get(&url).send().await.unwrap();
    assert_eq!(Report::of(&response).unwrap().served_by(), Some("cometapi"));
    let request = first.server.only_request();
    assert_eq!(request.header("x-vendor-id"), Some(&*first.key));
    assert!(request.target.starts_with("/v1/models?a=%2f&sign=sk-"), "{}", request.target);

    let key = first.key.clone();
    let failing = move || {
        let error = std::io::Error::other(format!("no second key after {key}"));
        async move { Err::<String, _>(error) }
    };
    let response = client_of(both.api_key_header_with("x-third", failing)).get(&url);
    let response = response.send().await.unwrap();
    let attempt = &Report::of(&response).unwrap().attempts()[0];
    assert_eq!(attempt.reason(), Reason::Credential);
    assert_eq!(attempt.message(), Some("no second key after [redacted]"));
    assert_eq!(first.server.requests().len(), 1, "nothing more was sent");
    assert_eq!(second.server.requests().len(), 1);
}

// Prepare.

#[tokio::test]
async fn what_prepare_does_is_sent_and_only_there() {
    let harness = WireHarness::two(failing(), Answer::ok()).await;
    let first = harness.actors[0].provider().map_request(|request| {
        request.headers_mut().insert("x-prepared", "yes".parse()?);
        let path = format!("{}/more", request.url().path());
        request.url_mut().set_path(&path);
        Ok::<_, reqwest::header::InvalidHeaderValue>(())
    });
    let client = client(ProviderChain::builder([first, harness.actors[1].provider()]));
    assert_eq!(harness.post(&client).send().await.unwrap().status(), 200);
    let request = harness.actors[0].server.only_request();
    assert_eq!(request.header("x-prepared"), Some("yes"));
    assert_eq!(request.target, "/v1/chat/completions/more");
    let request = harness.actors[1].server.only_request();
    assert_eq!(request.header("x-prepared"), None);
    assert_eq!(request.target, "/v1/chat/completions");
}

#[tokio::test]
async fn a_key_that_map_request_sets_is_shown_nowhere() {
    let echo = |request: &Received| {
        let values: Vec<_> = request.headers.iter().map(|(_, value)| &**value).collect();
        Answer::error(401, &format!("no: {} {}", request.target, values.join(" ")))
    };
    let harness = WireHarness::two(echo, echo).await;
    let [header, sensitive, query] = ["header", "sensitive", "query"].map(canary);
    let keys = [header.clone(), sensitive.clone(), query.clone()];
    let first = harness.actors[0].provider().map_request(move |request| {
        let headers = request.headers_mut();
        headers.insert("x-vendor-token", header.parse()?);
        let mut value: HeaderValue = sensitive.parse()?;
        value.set_sensitive(true);
        headers.insert("x-plain", value);
        request.url_mut().query_pairs_mut().append_pair("sig", &query);
        Ok::<_, reqwest::header::InvalidHeaderValue>(())
    });
    for last in [false, true] {
        let mut providers = vec![first.clone(), harness.actors[1].provider()];
        providers.truncate(if last { 1 } else { 2 });
        let chain = ProviderChain::builder(providers).claim("http://claimed.test");
        let client = client(chain.on_exhausted(Exhausted::Error));
        let error = client.get("http://claimed.test/models").send().await.unwrap_err();
        let text = harness.hear(shown(&error));
        assert_no_key(&text, &keys.each_ref().map(String::as_str));
        assert!(text.contains("[redacted]"), "{text}");
    }
    let chain = ProviderChain::builder([first]).claim("http://claimed.test");
    let response = client(chain).get("http://claimed.test/models").send().await.unwrap();
    assert_eq!(response.url().query(), None);
    assert_no_key(&logs(), &keys.each_ref().map(String::as_str));
}

#[tokio::test]
async fn a_prepare_that_fails_or_panics_sends_nothing_and_fails_over() {
    for panics in [false, true] {
        let harness = WireHarness::two(Answer::ok(), Answer::ok()).await;
        let first = harness.actors[0].provider().map_request(move |_| match panics {
            true => panic!("unprepared"),
            false => Err("unprepared"),
        });
        let client = client(ProviderChain::builder([first, harness.actors[1].provider()]));
        let response = harness.post(&client).send().await.unwrap();
        let report = Report::of(&response).unwrap();
        assert_eq!(report.served_by(), Some("openai"));
        assert_eq!(report.attempts().len(), 2, "{report}");
        assert_eq!(report.attempts()[0].status(), None);
        assert!(!report.attempts()[0].maybe_processed());
        assert_eq!(harness.requests(1)[0].text(), BODY);
        harness.assert_asked(&[0, 1]);
    }
}

#[tokio::test]
async fn a_prepare_that_leads_elsewhere_is_not_followed() {
    let evil = Server::start(Answer::ok()).await;
    let harness = WireHarness::two(Answer::ok(), Answer::ok()).await;
    let home = harness.actors[0].server.base_url("");
    for url in [
        evil.base_url("/v1/chat/completions"),
        format!("{home}/v10/chat/completions"),
        format!("{home}/"),
        format!("{home}/v1/..%2fadmin"),
        format!("{home}/v1/%252e%252e/admin"),
        home.replace("http:", "https:") + "/v1/chat/completions",
        home.replace("://", "://me:pw@") + "/v1/chat/completions",
    ] {
        let first = {
            let url = Url::parse(&url).unwrap();
            harness.actors[0].provider().map_request(move |request| {
                *request.url_mut() = url.clone();
                Ok::<_, Infallible>(())
            })
        };
        let client = client(ProviderChain::builder([first, harness.actors[1].provider()]));
        let response = harness.post(&client).send().await.unwrap();
        assert_eq!(Report::of(&response).unwrap().served_by(), Some("openai"), "{url}");
        assert_eq!(harness.actors[0].server.connections(), 0, "{url}");
    }
    assert_eq!(evil.connections(), 0);
}

// Keys that a provider says aloud.

/// What everyone is shown of a first provider that answers 401 with `body`: the report, the error of
/// `Exhausted::Error`, and the log. No beginning of any key is in it.
async fn echoed(provider: fn(Provider, &str) -> Provider, body: impl Fn(&str) -> Answer) -> String {
    let key = canary("echo");
    // The other's key too: it may have been told it by a caller's mistake.
    let second_key = canary("second");
    let answer = body(&key);
    let second = Answer::error(503, &format!("not {second_key}, nor {key}")).headers_after(ms(30));
    let harness = WireHarness::two(answer, second).await;
    let chain = ProviderChain::builder([
        provider(harness.actors[0].keyless(), &key),
        harness.actors[1].keyless().bearer_auth(&second_key),
    ]);
    let client = client(chain.on_exhausted(Exhausted::Error));
    let error = harness.post(&client).send().await.unwrap_err();
    let failed = FailoverError::find(&error).expect("a FailoverError");
    let report = failed.report();
    assert_eq!(report.attempts().len(), 2, "{report}");
    assert!(harness.actors[0].server.requests().len() == 1);
    let text = format!("{} {report} {report:?} {:?}", shown(&error), client);
    assert!(!text.contains(CORE), "{text}");
    assert_no_key(&text, &[&key, &second_key]);
    assert_no_key(&logs(), &[&key, &second_key]);
    assert_eq!(report.attempts()[1].message(), Some("not [redacted], nor [redacted]"));
    report.attempts()[0].message().unwrap_or_default().to_owned()
}

fn bearer(provider: Provider, key: &str) -> Provider {
    provider.bearer_auth(key)
}

#[tokio::test]
async fn a_key_in_an_error_is_redacted() {
    let message = echoed(bearer, |key| Answer::error(401, &format!("wrong key {key}!"))).await;
    assert!(message.contains("wrong key [redacted]!"), "{message}");
    let message =
        echoed(bearer, |key| Answer::status(401).body(format!("<p>{key}{key}</p>"))).await;
    assert_eq!(message, "<p>[redacted][redacted]</p>");
}

/// A 401 with each of these as its body, in turn; the messages that show any of the key.
async fn messages_that_show(key: &str, bodies: Vec<String>) -> Vec<String> {
    let count = bodies.len();
    let answers = bodies.into_iter().map(|body| Answer::status(401).body(body));
    let second = Answer::ok().headers_after(ms(10));
    let harness = WireHarness::two(answers.collect::<Vec<_>>(), second).await;
    let first = harness.actors[0].keyless().bearer_auth(key);
    let client =
        client(ProviderChain::builder([first, harness.actors[1].provider()]).without_health());
    let mut shown = Vec::new();
    for _ in 0..count {
        let response = harness.post(&client).send().await.unwrap();
        let attempt = &Report::of(&response).unwrap().attempts()[0];
        let message = attempt.message().expect("it had the time to be read");
        shown.extend(message.contains(CORE).then(|| message.to_owned()));
    }
    assert_eq!(harness.requests(0).len(), count);
    shown
}

/// As a page, as JSON, and as JSON that a gateway cut, which none can parse.
fn bodies_with(words: &[String]) -> Vec<String> {
    let json = |word: &String| format!("{{\"error\":{{\"message\":\"no {word}\"}}}}");
    let bodies = words.iter().flat_map(|word| {
        [format!("<p>{word}</p>"), json(word), json(word).trim_end_matches('}').to_owned()]
    });
    bodies.collect()
}

#[tokio::test]
async fn a_key_in_an_error_is_redacted_also_where_it_is_percent_encoded() {
    let key = canary("echo");
    let all = percent_encoding::NON_ALPHANUMERIC;
    let encoded = percent_encoding::utf8_percent_encode(&key, all).to_string();
    let words = [
        key.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D"),
        key.replace('+', "%2b").replace('/', "%2f").replace('=', "%3d"),
        key.replace('+', "%2B").replace('=', "%3D"),
        key.replace('+', "%2B"),
        key.replace('=', "%3D"),
        encoded,
    ];
    let shown = messages_that_show(&key, bodies_with(&words)).await;
    assert!(shown.is_empty(), "{shown:#?}");
}

#[tokio::test]
async fn a_key_in_an_error_is_redacted_also_where_it_is_escaped_as_json() {
    let key = canary("echo");
    let words = [
        key.replace('/', "\\/"),
        key.replace('+', "\\u002b"),
        key.replace('+', "\\u002B").replace('=', "\\u003D"),
        key.replace('/', "\\u002F"),
        key.replace('-', "\\u002d"),
    ];
    let shown = messages_that_show(&key, bodies_with(&words)).await;
    assert!(shown.is_empty(), "{shown:#?}");
}

#[tokio::test]
async fn a_key_in_an_error_is_redacted_also_where_it_is_escaped_as_html() {
    let key = canary("echo");
    let words = [
        key.replace('/', "&#x2F;").replace('=', "&#x3D;"),
        key.replace('+', "&#43;").replace('/', "&#47;").replace('=', "&#61;"),
    ];
    let shown = messages_that_show(&key, bodies_with(&words)).await;
    assert!(shown.is_empty(), "{shown:#?}");
}

#[tokio::test]
async fn a_key_in_base64_is_redacted_where_it_was_sent_so() {
    fn basic(provider: Provider, key: &str) -> Provider {
        provider.basic_auth("me", key)
    }
    let sent = |key: &str| BASE64.encode(format!("me:{key}"));
    echoed(basic, |key| Answer::error(401, &format!("wrong: Basic {}", sent(key)))).await;
    echoed(basic, |key| Answer::error(401, &format!("wrong: {key} of me"))).await;
}

#[tokio::test]
async fn other_kinds_of_credentials_are_redacted_too() {
    let wrong = |key: &str| Answer::error(401, &format!("wrong key {key}!"));
    let header = echoed(|provider, key| provider.api_key_header("api-key", key), wrong).await;
    let query = echoed(|provider, key| provider.api_key_query("key", key), wrong).await;
    let bearer = |provider: Provider, key: &str| provider.bearer_auth_with(source_of(key));
    let bearer = echoed(bearer, wrong).await;
    let with = |provider: Provider, key: &str| provider.api_key_header_with("k", source_of(key));
    let header_with = echoed(with, wrong).await;
    let with = |provider: Provider, key: &str| provider.api_key_query_with("k", source_of(key));
    let query_with = echoed(with, wrong).await;
    for message in [header, query, bearer, header_with, query_with] {
        assert!(message.contains("wrong key [redacted]!"), "{message}");
    }
}

#[tokio::test]
async fn a_key_that_a_limit_cuts_is_redacted() {
    for limit in [2 * 1024, 64 * 1024] {
        for within in [3, 8, 15, 20] {
            // Spaces are trimmed off a message, so that its end is where the reading ended.
            for filler in [" ", "x"] {
                let before = filler.repeat(limit - within);
                let after = "y".repeat(8 * 1024);
                echoed(bearer, |key| Answer::status(401).body(format!("{before}{key}{after}")))
                    .await;
            }
            let before = "x".repeat(limit - within);
            let after = "y".repeat(8 * 1024);
            echoed(bearer, |key| Answer::error(401, &format!("{before}{key}{after}"))).await;
        }
    }
}

#[tokio::test]
async fn a_key_that_a_stall_cuts_is_redacted() {
    // The body's first half ends within the key.
    let cut = |key: &str| {
        let body = format!("{}key: {key}", " ".repeat(key.len() - 20));
        Answer::status(401).body(body).at(Place::WithinBody, Step::Stall)
    };
    let message = echoed(bearer, cut).await;
    assert!(message.is_empty() || message.starts_with("key:"), "{message}");
}

#[tokio::test]
async fn the_error_of_a_source_is_redacted() {
    let harness = WireHarness::two(failing(), Answer::ok()).await;
    let key = harness.actors[1].key.clone();
    let text = format!("PUT /lease refused for {key}");
    let source = move || {
        let error = std::io::Error::other(text.clone());
        async move { Err::<String, _>(error) }
    };
    let first = harness.actors[0].keyless().bearer_auth_with(source);
    let chain = ProviderChain::builder([harness.actors[1].provider(), first]);
    let chain = chain.classify(|_| Verdict::FailOver(reqwest_failover::Fault::None));
    let error = harness.post(&client(chain)).send().await.unwrap_err();
    let text = harness.hear(shown(&error));
    assert!(text.contains("PUT /lease refused for [redacted]"), "{text}");
}

// What is shown of everything.

#[tokio::test]
async fn no_debug_and_no_display_of_a_public_type_shows_a_key() {
    let harness = WireHarness::two(failing(), Answer::ok()).await;
    let [first, second] = [&harness.actors[0], &harness.actors[1]];
    let secret = |name| harness.secret(name);
    let sourced = {
        let token = secret("source");
        move || {
            let token = token.clone();
            async move { Ok::<_, Infallible>(token) }
        }
    };
    let providers = [
        first
            .provider()
            .header("x-plain", secret("header value"))
            .query("q", secret("query value")),
        second.keyless().basic_auth(secret("user"), secret("password")),
        Provider::new("a", "https://a.test").api_key_header("x-key", secret("header key")),
        Provider::new("b", "https://b.test").api_key_query("key", secret("query key")),
        Provider::new("c", "https://c.test").bearer_auth_with(sourced.clone()),
        Provider::new("f", "https://f.test")
            .api_key_header_with("x-key", sourced.clone())
            .api_key_query_with("key", sourced),
        Provider::new("d", format!("https://me:{}@d.test", secret("userinfo"))),
        Provider::new("e", format!("https://e.test/?key={}", secret("base query"))),
        Provider::cometapi(secret("comet")),
        Provider::openai(secret("openai")),
    ];
    for provider in &providers {
        harness.hear(format!("{provider:?} {provider:#?}"));
    }
    harness.hear(format!("{:?}", ProviderChain::builder(providers.clone())));
    for provider in providers {
        match ProviderChain::builder([provider]).build() {
            Ok(chain) => harness.hear(format!("{chain:?} {chain:#?}")),
            Err(error) => harness.hear(shown(&error)),
        };
    }
    let chain = harness.chain().classify({
        |outcome| {
            assert!(!format!("{outcome:?} {outcome:#?}").contains(CORE), "{outcome:?}");
            Verdict::standard(outcome)
        }
    });
    let chain = chain.observe(|event| {
        assert!(!format!("{event:?} {event:#?}").contains(CORE), "{event:?}");
    });
    let chain = chain.build().unwrap();
    let client = ClientBuilder::new(plain()).with(chain.clone()).build();
    let response = harness.post(&client).send().await.unwrap();
    let report = Report::of(&response).unwrap();
    harness.hear(format!("{report} {report:?} {:?} {response:?} {chain:?}", chain.snapshot()));
    for attempt in report.attempts() {
        harness.hear(format!("{attempt} {attempt:?}"));
    }
    // A panic in a closure is counted; none of those above did.
    assert_eq!(chain.snapshot().callback_panics(), 0);
}
