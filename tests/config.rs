//! Bad input is refused by `build()`, with the provider and the field, and without the key.

use reqwest_failover_testing::support;

use std::time::Duration;

use reqwest_failover::{ConfigError, Provider, ProviderChain, ProviderChainBuilder};

use support::canary::{assert_no_key, canary};

const BASE: &str = "https://api.example.test/v1";

fn mine() -> Provider {
    Provider::new("mine", BASE)
}

/// What `build()` says of a chain that it must refuse.
#[track_caller]
fn refused(chain: ProviderChainBuilder) -> ConfigError {
    match chain.build() {
        Ok(chain) => panic!("built {chain:?}"),
        Err(error) => error,
    }
}

/// The error names the provider and the field, and shows no key.
#[track_caller]
fn assert_names(chain: ProviderChainBuilder, provider: &str, field: &str, keys: &[&str]) {
    let error = refused(chain);
    let text = error.to_string();
    assert_eq!(error.provider(), Some(provider), "{text}");
    assert!(text.contains(provider), "{provider} is missing in {text}");
    assert!(text.contains(field), "{field} is missing in {text}");
    assert_no_key(&format!("{text} {error:?} {error:#?}"), keys);
}

/// `mine`, refused, in the middle of providers that are fine.
#[track_caller]
fn assert_refused(provider: Provider, field: &str, keys: &[&str]) {
    let chain =
        ProviderChain::builder([Provider::openai("key"), provider, Provider::cometapi("key")]);
    assert_names(chain, "mine", field, keys);
}

/// The error is about the chain as a whole.
#[track_caller]
fn assert_chain_refused(chain: ProviderChainBuilder, field: &str) {
    let error = refused(chain);
    assert_eq!(error.provider(), None, "{error}");
    assert!(error.to_string().contains(field), "{field} is missing in {error}");
}

#[test]
fn an_empty_list_is_refused() {
    assert_chain_refused(ProviderChain::builder([]), "providers");
}

#[test]
fn two_providers_of_one_name_are_refused() {
    let chain = ProviderChain::builder([mine(), Provider::openai("key"), mine()]);
    assert_names(chain, "mine", "name", &[]);
    let chain = ProviderChain::builder([Provider::openai("key-1"), Provider::openai("key-2")]);
    assert_names(chain, "openai", "name", &[]);
}

#[test]
fn an_empty_name_is_refused() {
    for name in ["", " ", "a\nb"] {
        let error = refused(ProviderChain::builder([Provider::new(name, BASE)]));
        assert!(error.to_string().contains("name"), "{error}");
        assert!(!error.to_string().contains('\n'), "{error}");
    }
}

#[test]
fn a_base_that_is_no_absolute_http_url_is_refused() {
    for base in [
        "",
        " ",
        "api.example.test/v1",
        "/v1",
        "//api.example.test/v1",
        "v1",
        "https://",
        "https:///v1",
        "http://[::1",
        "https://a b/",
        "https://example.test:99999/v1",
        "ftp://example.test/v1",
        "file:///etc/passwd",
        "ws://example.test/v1",
        "mailto:me@example.test",
        "data:,x",
        "unix:/run/socket",
    ] {
        let base_url = Provider::new("mine", base).bearer_auth("key");
        if base == "https:///v1" {
            // `url` takes `v1` for the host, as browsers do; either is fine, but not a panic.
            let _ = ProviderChain::builder([base_url]).build();
            continue;
        }
        assert_refused(base_url, "base_url", &[]);
    }
}

#[test]
fn a_base_with_userinfo_query_or_fragment_is_refused_and_not_shown() {
    // A slash would end the authority, and with it the userinfo.
    let key = canary("base").replace('/', "");
    for base in [
        format!("https://{key}@api.example.test/v1"),
        format!("https://me:{key}@api.example.test/v1"),
        format!("https://:{key}@api.example.test/v1"),
        format!("https://api.example.test/v1?key={key}"),
        format!("https://api.example.test/v1#{key}"),
        format!("ftp://me:{key}@api.example.test/v1"),
        format!("https://me:{key}@api.example.test:99999/v1"),
    ] {
        assert_refused(Provider::new("mine", &base), "base_url", &[&key]);
    }
    for base in ["https://api.example.test/v1?", "https://api.example.test/v1#"] {
        assert_refused(Provider::new("mine", base), "base_url", &[]);
    }
}

#[test]
fn plaintext_with_a_credential_is_refused_except_on_loopback_or_where_it_is_allowed() {
    let key = canary("plain");
    for base in [
        "http://api.example.test/v1",
        "http://10.0.0.7:8080",
        "http://192.168.1.1/v1",
        "http://0.0.0.0/v1",
        "http://128.0.0.1/v1",
        "http://[2001:db8::1]/v1",
        "http://localhost.example.test/v1",
        "http://notlocalhost/v1",
        "http://127.0.0.1.example.test/v1",
    ] {
        let provider = || Provider::new("mine", base);
        let source = || async { Ok::<_, std::convert::Infallible>("token".to_owned()) };
        for with_credential in [
            provider().bearer_auth(&key),
            provider().basic_auth("me", &key),
            provider().api_key_header("api-key", &key),
            provider().api_key_query("key", &key),
            provider().bearer_auth_with(source),
            provider().api_key_header_with("api-key", source),
            provider().api_key_query_with("key", source),
            provider().forward_caller_auth(),
        ] {
            assert_refused(with_credential.clone(), "http", &[&key]);
            ProviderChain::builder([with_credential.danger_allow_plaintext()]).build().expect(base);
        }
        ProviderChain::builder([provider()]).build().expect(base);
    }
    for base in [
        "http://localhost/v1",
        "http://LOCALHOST:80",
        "http://127.0.0.1:8080/v1",
        "http://127.1.2.3",
        "http://[::1]:8080/v1",
        "https://api.example.test/v1",
    ] {
        ProviderChain::builder([Provider::new("mine", base).bearer_auth(&key)])
            .build()
            .expect(base);
    }
}

#[test]
fn an_empty_or_malformed_key_is_refused_and_not_shown() {
    let key = canary("bad");
    for bad in [
        String::new(),
        " \t\r\n".into(),
        format!("{key}\nmore"),
        format!("{key}\r\nx-evil: 1"),
        format!("{key}\0"),
        format!("{key}\u{7f}x"),
        format!("{key}é"),
        format!("\u{feff}{key}"),
        format!("\"{key}\""),
        format!("'{key}'"),
        format!("{key}\"x"),
        format!("Bearer {key}"),
        format!("bearer {key}"),
        format!(" BEARER  {key}"),
    ] {
        assert_refused(mine().bearer_auth(&bad), "bearer", &[&key]);
        assert_refused(mine().api_key_header("api-key", &bad), "api_key_header", &[&key]);
        assert_refused(mine().api_key_query("key", &bad), "api_key_query", &[&key]);
        let error = refused(ProviderChain::builder([Provider::openai(&bad)]));
        assert_eq!(error.provider(), Some("openai"));
        assert_no_key(&format!("{error} {error:?}"), &[&key]);
        let error = refused(ProviderChain::builder([Provider::cometapi(&bad)]));
        assert_eq!(error.provider(), Some("cometapi"));
        assert_no_key(&format!("{error} {error:?}"), &[&key]);
    }
}

#[test]
fn a_placeholder_or_a_key_with_a_space_is_refused() {
    let key = canary("spaced");
    let spaced = format!("{key} {key}");
    for bad in ["${OPENAI_API_KEY}", "<your-api-key>", "{{key}}", "your-api-key", "sk-...", &spaced]
    {
        assert_refused(mine().bearer_auth(bad), "bearer_auth", &[&key]);
        assert_refused(mine().api_key_header("x-api-key", bad), "api_key_header", &[&key]);
        assert_refused(mine().api_key_query("key", bad), "api_key_query", &[&key]);
        assert_refused(mine().api_key_path(bad), "api_key_path", &[&key]);
        let error = refused(ProviderChain::builder([Provider::openai(bad)]));
        assert_no_key(&format!("{error} {error:?}"), &[&key]);
    }
}

#[test]
fn a_key_in_the_path_needs_its_place_and_an_encrypted_connection() {
    let key = canary("path");
    let keyed = |base: &str| Provider::new("mine", base).api_key_path(&key);
    for base in [
        "https://rpc.example.com/v2",
        "https://rpc.example.com/{key}/{key}",
        "https://{key}.example.com/v2",
        "https://rpc.example.com/v2?key={key}",
        "http://rpc.example.com/v2/{key}",
    ] {
        assert_refused(keyed(base), "base_url", &[&key]);
    }
    assert_refused(Provider::new("mine", "https://rpc.example.com/{key}"), "api_key_path", &[]);
    for base in ["https://rpc.example.com/v2/{key}", "http://localhost/bot{key}"] {
        let chain = ProviderChain::builder([keyed(base)]).build().expect(base);
        assert_no_key(&format!("{chain:?} {:?}", keyed(base)), &[&key]);
    }
}

#[test]
fn a_header_that_carries_a_credential_in_the_chain_cannot_be_kept() {
    let other = Provider::new("other", "https://other.test").api_key_header("x-vendor", "key");
    let error = refused(ProviderChain::builder([mine().keep_header("x-vendor"), other]));
    assert_eq!(error.provider(), Some("mine"), "{error}");
    assert!(error.to_string().contains("keep_header"), "{error}");
}

#[test]
fn a_provider_is_not_named_as_metrics_name_none() {
    let chain = ProviderChain::builder([Provider::new("None", "https://example.test")]);
    assert_eq!(refused(chain).provider(), Some("None"));
}

#[test]
fn whitespace_around_a_key_is_trimmed() {
    for key in ["key\n", "key\r\n", " key ", "\tkey", "\n\nkey\n\n"] {
        for provider in [
            mine().bearer_auth(key),
            mine().api_key_header("api-key", key),
            mine().api_key_query("key", key),
            Provider::openai(key),
            Provider::cometapi(key),
        ] {
            ProviderChain::builder([provider]).build().expect("a key is trimmed");
        }
    }
}

#[test]
fn basic_takes_any_user_and_password_without_control_characters() {
    for (user, password) in
        [("me", ""), ("", "pw"), ("mé", "pä \"ss'"), ("me", " pw "), ("me", "a:b")]
    {
        ProviderChain::builder([mine().basic_auth(user, password)]).build().expect(user);
    }
    let key = canary("basic");
    assert_refused(mine().basic_auth("me", format!("{key}\n")), "basic", &[&key]);
    assert_refused(mine().basic_auth("me\0", &key), "basic", &[&key]);
    assert_refused(mine().basic_auth("me:you", &key), "basic", &[&key]);
}

#[test]
fn reserved_header_names_are_refused() {
    let key = canary("reserved");
    for name in [
        "host",
        "Host",
        "content-length",
        "transfer-encoding",
        "connection",
        "keep-alive",
        "te",
        "trailer",
        "upgrade",
        "proxy-connection",
    ] {
        assert_refused(mine().header(name, &key), "header", &[&key]);
        assert_refused(mine().api_key_header(name, &key), "api_key_header", &[&key]);
    }
    for name in
        ["authorization", "Proxy-Authorization", "cookie", "x-api-key", "api-key", "x-goog-api-key"]
    {
        assert_refused(mine().header(name, &key), "header", &[&key]);
    }
}

#[test]
fn malformed_names_and_values_are_refused_and_not_shown() {
    let key = canary("swapped");
    // A user who mixes up name and value puts the key into the name.
    let in_name = format!("{key} ");
    assert_refused(mine().header(&in_name, "x"), "header", &[&key]);
    assert_refused(mine().api_key_header(&in_name, "api-key"), "api_key_header", &[&key]);
    assert_refused(mine().remove_header(&in_name), "remove_header", &[&key]);
    for name in ["", " ", "a b", "a:b", "a\nb", "é"] {
        assert_refused(mine().header(name, "x"), "header", &[]);
        assert_refused(mine().api_key_header(name, "key"), "api_key_header", &[]);
        assert_refused(mine().remove_header(name), "remove_header", &[]);
    }
    assert_refused(mine().header("x-a", format!("{key}\nx")), "header", &[&key]);
    assert_refused(mine().query("", &key), "query", &[&key]);
    assert_refused(mine().api_key_query("", &key), "api_key_query", &[&key]);
    assert_refused(mine().query("api_key", &key), "query", &[&key]);
}

#[test]
fn credentials_that_exclude_each_other_are_refused() {
    let key = canary("twice");
    assert_refused(mine().bearer_auth(&key).bearer_auth(&key), "bearer", &[&key]);
    assert_refused(mine().bearer_auth(&key).basic_auth("me", &key), "basic", &[&key]);
    assert_refused(
        mine().bearer_auth(&key).api_key_header("Authorization", &key),
        "api_key_header",
        &[&key],
    );
    assert_refused(
        mine().api_key_query("key", &key).api_key_query("key", &key),
        "api_key_query",
        &[&key],
    );
    let forwards = || mine().forward_caller_auth();
    for both in [
        forwards().bearer_auth(&key),
        forwards().basic_auth("me", &key),
        forwards().api_key_header("x-key", &key),
        forwards().api_key_query("k", &key),
        mine().bearer_auth(&key).forward_caller_auth(),
    ] {
        assert_refused(both, "forward_caller_auth", &[&key]);
    }
    ProviderChain::builder([mine().api_key_header("x-a", &key).api_key_query("b", &key)])
        .build()
        .unwrap();
}

#[test]
fn settings_out_of_range_are_refused() {
    let chain = || ProviderChain::builder([mine().bearer_auth("key")]);
    let second = Duration::from_secs(1);
    assert_chain_refused(chain().max_attempts(0), "max_attempts");
    assert_chain_refused(
        chain().attempt_timeout(second * 2).total_timeout(second),
        "attempt_timeout",
    );
    assert_chain_refused(chain().attempt_timeout(second * 601), "attempt_timeout");
    assert_chain_refused(chain().attempt_timeout(Duration::MAX), "attempt_timeout");
    assert_chain_refused(chain().attempt_timeout(Duration::ZERO), "attempt_timeout");
    assert_chain_refused(chain().total_timeout(Duration::ZERO), "total_timeout");
    assert_refused(mine().attempt_timeout(second * 601), "attempt_timeout", &[]);
    assert_refused(mine().attempt_timeout(Duration::ZERO), "attempt_timeout", &[]);
    let own = ProviderChain::builder([mine().attempt_timeout(second * 2)]).total_timeout(second);
    assert_names(own, "mine", "attempt_timeout", &[]);
    for fine in [
        chain().max_attempts(1),
        chain().max_attempts(usize::MAX),
        chain().attempt_timeout(second).total_timeout(second),
        chain().total_timeout(second),
        chain().attempt_timeout(Duration::MAX).total_timeout(Duration::MAX),
        chain().replay_buffer(0),
    ] {
        fine.build().unwrap();
    }
}

#[test]
fn a_claim_that_is_no_base_is_refused_and_not_shown() {
    let key = canary("claim");
    for claim in [
        String::new(),
        "/v1".into(),
        "ftp://example.test".into(),
        format!("https://me:{key}@example.test/v1"),
        format!("https://example.test/v1?key={key}"),
        format!("https://example.test/v1#{key}"),
    ] {
        let error = refused(ProviderChain::builder([mine()]).claim(&claim));
        assert!(error.to_string().contains("claim"), "{error}");
        assert_no_key(&format!("{error} {error:?}"), &[&key]);
    }
}

/// Runs one of this file's tests in a process of its own, with these variables and no others of
/// theirs.
fn in_child(test: &str, variables: &[(&str, &str)]) {
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", test, "--ignored", "--nocapture"]);
    child.env_remove("COMETAPI_KEY").env_remove("OPENAI_API_KEY");
    for proxy in
        ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"]
    {
        child.env_remove(proxy);
    }
    child.env_remove("NO_PROXY").env_remove("no_proxy").envs(variables.iter().copied());
    let output = child.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{output:?}");
}

fn from_env() -> [(&'static str, &'static str, Provider); 2] {
    [
        ("cometapi", "COMETAPI_KEY", Provider::cometapi_from_env()),
        ("openai", "OPENAI_API_KEY", Provider::openai_from_env()),
    ]
}

#[test]
fn a_key_may_come_from_the_environment_with_its_newline() {
    in_child("child_builds", &[("COMETAPI_KEY", "key-a\n"), ("OPENAI_API_KEY", " key-b")]);
}

#[test]
#[ignore = "run by the test above"]
fn child_builds() {
    let providers = from_env().map(|(_, _, provider)| provider);
    ProviderChain::builder(providers).build().expect("both keys are set");
}

#[test]
fn a_missing_or_malformed_variable_is_named() {
    in_child("child_is_refused", &[]);
    in_child("child_is_refused", &[("COMETAPI_KEY", ""), ("OPENAI_API_KEY", "\n")]);
    let bad = [("COMETAPI_KEY", "Kq7xfffffeZz\nx"), ("OPENAI_API_KEY", "\"Kq7xfffffeZz\"")];
    in_child("child_is_refused", &bad);
}

#[test]
#[ignore = "run by the test above"]
fn child_is_refused() {
    for (name, variable, provider) in from_env() {
        assert_names(ProviderChain::builder([provider]), name, variable, &["Kq7xfffffeZz"]);
    }
}

#[test]
fn a_connect_failure_names_the_variable_of_a_proxy() {
    in_child(
        "child_cannot_connect",
        &[("HTTP_PROXY", "http://127.0.0.1:1"), ("EXPECTED", "HTTP_PROXY")],
    );
    in_child(
        "child_cannot_connect",
        &[("all_proxy", "http://127.0.0.1:1"), ("EXPECTED", "all_proxy")],
    );
    in_child("child_cannot_connect", &[("HTTPS_PROXY", "http://127.0.0.1:1"), ("EXPECTED", "")]);
}

#[tokio::test]
#[ignore = "run by the test above"]
async fn child_cannot_connect() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let base = format!("http://127.0.0.1:{port}/v1");
    let chain = ProviderChain::builder([Provider::new("a", &*base)]).build().unwrap();
    let client = reqwest_middleware::ClientBuilder::new(reqwest::Client::new()).with(chain).build();
    let mut extensions = http::Extensions::new();
    let request = client.get(base).build().unwrap();
    client.execute_with_extensions(request, &mut extensions).await.unwrap_err();
    let report = reqwest_failover::Report::from_extensions(&extensions).unwrap();
    let message = report.attempts()[0].message().unwrap();
    match &*std::env::var("EXPECTED").unwrap() {
        "" => assert!(!message.contains("is set"), "{message}"),
        name => assert!(message.contains(&format!("({name} is set: a proxy")), "{message}"),
    }
}

#[test]
fn the_debug_of_a_chain_and_of_its_builder_names_the_providers() {
    let builder = ProviderChain::builder([mine(), Provider::openai("key")]);
    let of_builder = format!("{builder:?}");
    let of_chain = format!("{:?}", builder.build().unwrap());
    for (text, name) in [(of_builder, "ProviderChainBuilder"), (of_chain, "ProviderChain")] {
        assert!(text.starts_with(&format!("{name} ")), "{text}");
        assert!(text.contains("mine") && text.contains("openai"), "{text}");
    }
}
