use http::header::{AUTHORIZATION, CONTENT_LENGTH};
use http::{HeaderMap, HeaderValue};
use reqwest::Url;

use super::check::ChainHeaders;
use super::key::{bearer_value, checked_key};
use super::*;

fn here() -> Provider {
    Provider::new("here", "https://h/v1")
}

fn checked(providers: impl IntoIterator<Item = Provider>) -> Checked {
    match check(providers.into_iter().collect(), &[], &ChainHeaders::default()) {
        Ok(checked) => checked,
        Err(error) => panic!("{error}"),
    }
}

fn refusal(providers: impl IntoIterator<Item = Provider>) -> String {
    match check(providers.into_iter().collect(), &[], &ChainHeaders::default()) {
        Ok(_) => panic!("was accepted"),
        Err(error) => format!("{error} {error:?}"),
    }
}

/// The request that arrives at the entry at `at`: its URL and its headers.
fn arrives(chain: &Checked, at: usize, caller: &str, headers: &HeaderMap) -> (Url, HeaderMap) {
    let caller = Url::parse(caller).unwrap();
    let claim = chain.scope.claim(&caller).unwrap();
    let entry = &chain.entries[at];
    let keep = entry.keeps_caller_auth(chain.scope.base(claim.base));
    let mut headers = headers.clone();
    entry.apply_headers(&mut headers, &chain.strip, keep);
    (entry.target(&caller, &claim, &chain.strip, &chain.scope).unwrap(), headers)
}

fn header<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name).map(|value| value.to_str().unwrap())
}

#[test]
fn the_presets_know_their_names_and_bases() {
    let chain = checked([Provider::cometapi("one"), Provider::openai(" two\r\n")]);
    let table = [
        ("cometapi", "https://api.cometapi.com/v1", "Bearer one"),
        ("openai", "https://api.openai.com/v1", "Bearer two"),
    ];
    for (at, (name, base, key)) in table.into_iter().enumerate() {
        let entry = &chain.entries[at];
        assert_eq!((&*entry.name, format!("{:?}", entry.base)), (name, base.to_owned()));
        for (caller, _) in
            [("https://api.cometapi.com/v1/x", 0), ("https://api.openai.com/v1/x", 1)]
        {
            let (url, headers) = arrives(&chain, at, caller, &HeaderMap::new());
            assert_eq!(url.as_str(), format!("{base}/x"));
            assert_eq!(header(&headers, "authorization"), Some(key));
            assert!(headers["authorization"].is_sensitive());
        }
    }
}

#[test]
fn each_kind_of_credential_goes_where_it_belongs() {
    let chain = checked([Provider::new("all", "https://h")
        .basic_auth("user", "p:ä\"")
        .api_key_header("X-Vendor-Key", "canary-1")
        .api_key_query("token", "canary/2")
        .header("openai-organization", "org")
        .header("x-twice", "first")
        .header("X-Twice", "second")
        .query("a", "1")
        .query("a", "2")]);
    let (url, headers) = arrives(&chain, 0, "https://h/x?Token=theirs&b=%7e", &HeaderMap::new());
    assert_eq!(url.as_str(), "https://h/x?b=%7e&a=1&a=2&token=canary%2F2");
    assert_eq!(header(&headers, "authorization"), Some("Basic dXNlcjpwOsOkIg=="));
    assert_eq!(header(&headers, "x-vendor-key"), Some("canary-1"));
    assert_eq!(header(&headers, "openai-organization"), Some("org"));
    assert_eq!(header(&headers, "x-twice"), Some("second"));
    assert!(headers["authorization"].is_sensitive() && headers["x-vendor-key"].is_sensitive());
    assert!(!headers["x-twice"].is_sensitive());

    let entry = &chain.entries[0];
    assert!(entry.has_query_key());
    for secret in ["p:ä\"", "dXNlcjpwOsOkIg==", "canary-1", "canary/2"] {
        assert!(entry.secrets.iter().any(|known| known == secret), "{secret}");
    }
}

#[test]
fn a_user_with_an_empty_password_is_the_secret() {
    let chain = checked([here().basic_auth("canary", "")]);
    assert_eq!(chain.entries[0].secrets, ["Y2FuYXJ5Og==", "canary"]);
    assert!(!chain.entries[0].has_query_key());
}

#[test]
fn no_entry_receives_another_entrys_or_the_callers_key() {
    let chain = checked([
        Provider::new("a", "https://a/v1").bearer_auth("canary-a"),
        Provider::new("b", "https://b/v1")
            .api_key_header("x-b", "canary-b")
            .api_key_query("b-key", "canary-b"),
        Provider::new("c", "https://c/v1")
            .basic_auth("c", "canary-c")
            .api_key_query("key", "canary-c"),
        Provider::new("d", "https://d/v1").remove_header("x-d").header("x-fixed", "d"),
    ]);
    let mut sensitive = HeaderValue::from_static("canary-caller");
    sensitive.set_sensitive(true);
    let mut theirs = HeaderMap::new();
    theirs.insert("x-sensitive", sensitive);
    for name in ["authorization", "cookie", "x-b", "host", "openai-organization"] {
        theirs.insert(name, HeaderValue::from_static("canary-caller"));
    }
    theirs.insert("x-d", HeaderValue::from_static("plain"));
    theirs.insert("content-type", HeaderValue::from_static("application/json"));

    for from in ["a", "b", "c", "d"] {
        let caller = format!(
            "https://canary-caller@{from}/v1/x?key=canary-caller&B-Key=canary-caller&m=1#canary-caller"
        );
        for (at, to) in ["a", "b", "c", "d"].into_iter().enumerate() {
            let (url, headers) = arrives(&chain, at, &caller, &theirs);
            assert_eq!((url.host_str(), url.path()), (Some(to), "/v1/x"));
            let mut sent = url.to_string();
            for (name, value) in &headers {
                sent += &format!("\n{name}: {}", value.to_str().unwrap());
            }
            for whose in ["a", "b", "c", "caller"].into_iter().filter(|whose| *whose != to) {
                assert!(!sent.contains(&format!("canary-{whose}")), "{from} to {to}: {sent}");
            }
            assert_eq!(header(&headers, "content-type"), Some("application/json"));
            assert_eq!(headers.contains_key("x-d"), to != "d");
            assert!(url.query().unwrap().starts_with("m=1"));
        }
    }
}

#[test]
fn a_model_has_the_name_that_it_has_here_and_only_then_the_body_changes() {
    let chain = checked([here()
        .rename_model("small", "vendor/small")
        .rename_model("large", "vendor/large")]);
    let table = [
        (r#"{"model": "small", "n": 1}"#, Some(r#"{"model": "vendor/small", "n": 1}"#)),
        (r#"{"model": "large"}"#, Some(r#"{"model": "vendor/large"}"#)),
        (r#"{"model": "other"}"#, None),
        ("small", None),
    ];
    for (before, after) in table {
        let mut request = Request::new(http::Method::POST, Url::parse("https://h").unwrap());
        *request.body_mut() = Some(before.into());
        request.headers_mut().insert(CONTENT_LENGTH, before.len().into());
        chain.entries[0].edit_body(&mut request, |rename| rename());
        let body = request.body().unwrap().as_bytes().unwrap();
        assert_eq!(body, after.unwrap_or(before).as_bytes());
        assert_eq!(request.headers().contains_key(CONTENT_LENGTH), after.is_none(), "{before}");
    }
}

#[test]
fn a_model_needs_two_names_and_is_renamed_once() {
    for (from, to) in [("", "to"), ("from", ""), ("", "")] {
        let error = refusal([here().rename_model(from, to)]);
        assert!(
            error.starts_with("provider `here`: rename_model: must name two models"),
            "{error}"
        );
    }
    let error =
        refusal([here().rename_model("a", "x").rename_model("b", "x").rename_model("a", "y")]);
    assert!(error.contains("rename_model: `a` is renamed twice"), "{error}");
    checked([here().rename_model("a", "x").rename_model("b", "x").rename_model("x", "a")]);
}

#[test]
fn a_body_is_edited_and_what_speaks_of_it_goes_only_if_it_changes() {
    let chain = checked([here()
        .rename_model("small", "table")
        .rename_model_with(|model| model.strip_prefix("old-").map(|model| format!("new-{model}")))
        .json_set("n", 2)
        .json_set("o", serde_json::json!({"a": [1.5, null]}))
        .json_remove("r")]);
    let table = [
        (r#"{"model":"small"}"#, Some(r#"{"model":"table","n":2,"o":{"a":[1.5,null]}}"#)),
        (
            r#"{"o":1,"r":2,"model":"old-a","n":7 }"#,
            Some(r#"{"o":{"a":[1.5,null]},"model":"new-a","n":2 }"#),
        ),
        (r#"{"model":"other", "n":2,"o":{"a":[1.5,null]}}"#, None),
        ("[1]", None),
    ];
    for (before, after) in table {
        let mut request = Request::new(http::Method::POST, Url::parse("https://h").unwrap());
        *request.body_mut() = Some(before.into());
        request.headers_mut().insert(CONTENT_LENGTH, before.len().into());
        request.headers_mut().insert("content-digest", HeaderValue::from_static("sum"));
        chain.entries[0].edit_body(&mut request, |rename| rename());
        let body = request.body().unwrap().as_bytes().unwrap();
        assert_eq!(str::from_utf8(body).unwrap(), after.unwrap_or(before));
        assert_eq!(request.headers().is_empty(), after.is_some(), "{before}");
    }
    let mut request = Request::new(http::Method::GET, Url::parse("https://h").unwrap());
    chain.entries[0].edit_body(&mut request, |rename| rename());
    assert!(request.body().is_none());
}

#[test]
fn edits_that_contradict_each_other_are_refused() {
    use std::collections::HashMap;
    let no_json: HashMap<Vec<u8>, &str> = [(vec![1], "canary")].into();
    for (provider, problem) in [
        (here().json_set("a", 1).json_set("a", 1), "json_set: `a` is set twice"),
        (here().json_set("a", 1).json_remove("a"), "json_remove: `a` is set, too"),
        (here().json_remove("a").json_remove("a"), "json_remove: `a` is removed twice"),
        (here().json_set("model", "x").rename_model("a", "b"), "json_set: `model` is renamed, too"),
        (
            here().rename_model_with(|_| None).json_remove("model"),
            "json_remove: `model` is renamed, too",
        ),
        (here().json_set("a", no_json), "json_set: the value of `a` cannot be written as JSON"),
    ] {
        let error = refusal([provider]);
        assert!(error.starts_with(&format!("provider `here`: {problem}")), "{error}");
        assert!(!error.contains("canary"));
    }
    checked([here().json_set("model", "x").json_set("", 1).json_remove("b")]);
}

#[test]
fn forwarded_auth_stays_at_home() {
    let chain = checked([
        Provider::new("mine", "https://mine/v1")
            .forward_caller_auth()
            .remove_header("x-strip")
            .query("q", "own"),
        Provider::new("other", "https://other/v1").forward_caller_auth(),
        Provider::new("keyed", "https://keyed/v1").bearer_auth("own"),
    ]);
    let mut theirs = HeaderMap::new();
    for name in ["authorization", "x-api-key", "host", "x-strip"] {
        theirs.insert(name, HeaderValue::from_static("theirs"));
    }
    let caller = "https://mine/v1/x?key=theirs&q=theirs";

    let (url, headers) = arrives(&chain, 0, caller, &theirs);
    assert_eq!(url.as_str(), "https://mine/v1/x?key=theirs&q=own");
    assert_eq!(headers.len(), 2);
    assert_eq!(header(&headers, "authorization"), Some("theirs"));

    for (at, caller) in [(1, caller), (2, caller), (0, "https://other/v1/x?key=theirs&q=theirs")] {
        let (url, headers) = arrives(&chain, at, caller, &theirs);
        assert!(!url.as_str().contains("key=theirs"), "{url}");
        assert_ne!(header(&headers, "authorization"), Some("theirs"));
        assert!(!headers.contains_key("x-api-key"));
    }
}

#[test]
fn a_claimed_url_is_in_scope_and_no_providers_own() {
    let claims = vec!["https://gateway.example.com/llm/".to_owned()];
    let providers = vec![here().forward_caller_auth()];
    let Ok(chain) = check(providers, &claims, &ChainHeaders::default()) else {
        panic!("was refused")
    };
    let mut theirs = HeaderMap::new();
    theirs.insert(AUTHORIZATION, HeaderValue::from_static("theirs"));
    let (url, headers) = arrives(&chain, 0, "https://gateway.example.com/llm/x", &theirs);
    assert_eq!(url.as_str(), "https://h/v1/x");
    assert!(headers.is_empty());
}

#[test]
fn every_mistake_names_the_provider_and_the_method_and_never_the_key() {
    #[rustfmt::skip]
    let table: Vec<(Provider, &str)> = vec![
        (Provider::new("here", "h/canary"), "base_url: must be an absolute URL"),
        (Provider::new("here", "https://u:canary@h"), "base_url: must not hold a user"),
        (Provider::new("here", "https://h?canary"), "base_url: must not hold a query"),
        (Provider::new("here", "https://h#canary"), "base_url: must not hold a fragment"),
        (Provider::new("here", "ftp://h/canary"), "base_url: must begin with https://"),
        (Provider::new("here", "http://h").bearer_auth("canary"), "base_url: would show"),
        (Provider::new("here", "http://h").basic_auth("u", "canary"), "base_url: would show"),
        (Provider::new("here", "http://h").api_key_query("k", "canary"), "base_url: would show"),
        (Provider::new("here", "http://h").bearer_auth_with(token), "base_url: would show"),
        (Provider::new("here", "http://h").forward_caller_auth(), "base_url: would show"),
        (here().bearer_auth(""), "bearer_auth: is empty"),
        (here().bearer_auth(" \r\n"), "bearer_auth: is empty"),
        (here().bearer_auth("can\nary"), "bearer_auth: holds control"),
        (here().bearer_auth("canary\u{7f}x"), "bearer_auth: holds control"),
        (here().bearer_auth("canary\0"), "bearer_auth: holds control"),
        (here().bearer_auth("canaryé"), "bearer_auth: holds characters that are not ASCII"),
        (here().bearer_auth("\u{feff}canary"), "bearer_auth: holds characters that are not ASCII"),
        (here().bearer_auth("\"canary\""), "bearer_auth: holds quotes"),
        (here().bearer_auth("'canary'"), "bearer_auth: holds quotes"),
        (here().bearer_auth("Bearer canary"), "bearer_auth: begins with `Bearer `"),
        (here().bearer_auth(" bEARER\tcanary"), "bearer_auth: begins with `Bearer `"),
        (here().bearer_auth("bearer "), "bearer_auth: begins with `Bearer `"),
        (here().api_key_header("x-k", "Bearer canary"), "api_key_header: begins with"),
        (here().api_key_header("x-k", ""), "api_key_header: is empty"),
        (here().api_key_header("canary canary", "k"), "api_key_header: the name must be"),
        (here().api_key_header("Host", "canary"), "api_key_header: `host` is set by"),
        (here().api_key_header("TE", "canary"), "api_key_header: `te` is set by"),
        (here().api_key_query("k", "'canary"), "api_key_query: holds quotes"),
        (here().api_key_query("", "canary"), "api_key_query: the name must not be empty"),
        (here().api_key_query("k", "canary").api_key_query("K", "canary"), "api_key_query: sets the same name twice"),
        (here().basic_auth("u\n", "canary"), "basic_auth: must hold no control"),
        (here().basic_auth("u", "canary\n"), "basic_auth: must hold no control"),
        (here().basic_auth("u:canary", "canary"), "basic_auth: the user must hold no `:`"),
        (here().bearer_auth("canary").bearer_auth("canary"), "bearer_auth: `authorization` is set twice"),
        (here().bearer_auth("canary").basic_auth("u", "canary"), "basic_auth: `authorization` is set twice"),
        (here().bearer_auth("canary").bearer_auth_with(token), "bearer_auth_with: `authorization` is set twice"),
        (here().bearer_auth_with(token).bearer_auth_with(token), "bearer_auth_with: `authorization` is set twice"),
        (here().bearer_auth_with(token).api_key_header("Authorization", "canary"), "api_key_header: `authorization` is set twice"),
        (here().api_key_header("x-k", "canary").api_key_header("X-K", "canary"), "api_key_header: `x-k` is set twice"),
        (here().header("canary canary", "v"), "header: the name must be"),
        (here().header("", "canary"), "header: the name must be"),
        (here().header("x-a", "canary\n"), "header: the value of `x-a` must hold"),
        (here().header("x-a", "canary\0"), "header: the value of `x-a` must hold"),
        (here().header("x-k", "canary").api_key_header("X-K", "canary"), "header: `x-k` holds this provider's"),
        (here().query("", "canary"), "query: the name must not be empty"),
        (here().query("Key", "canary"), "query: `Key` is a credential: use api_key_query"),
        (here().query("access_token", "canary"), "query: `access_token` is a credential: use api_key_query"),
        (here().query("T", "canary").api_key_query("t", "canary"), "query: sets a name that holds"),
        (here().remove_header("canary canary"), "remove_header: the name must be"),
        (here().attempt_timeout(Duration::ZERO), "attempt_timeout: must be longer"),
        (Provider::new("here", "http://h").api_key_header_with("x-k", token), "base_url: would show"),
        (Provider::new("here", "http://h").api_key_query_with("k", token), "base_url: would show"),
        (here().bearer_auth_with(token).api_key_header_with("authorization", token), "api_key_header_with: `authorization` is set twice"),
        (here().api_key_header("x-k", "canary").api_key_header_with("X-K", token), "api_key_header_with: `x-k` is set twice"),
        (here().api_key_header_with("x-k", token).api_key_header("x-k", "canary"), "api_key_header: `x-k` is set twice"),
        (here().api_key_header_with("canary canary", token), "api_key_header_with: the name must be"),
        (here().api_key_header_with("Host", token), "api_key_header_with: `host` is set by"),
        (here().api_key_query_with("", token), "api_key_query_with: the name must not be empty"),
        (here().api_key_query("k", "canary").api_key_query_with("K", token), "api_key_query_with: sets the same name twice"),
        (here().api_key_query_with("k", token).api_key_query("K", "canary"), "api_key_query: sets the same name twice"),
        (here().header("x-k", "canary").api_key_header_with("X-K", token), "header: `x-k` holds this provider's"),
        (here().query("T", "canary").api_key_query_with("t", token), "query: sets a name that holds"),
        (here().api_key_header_with("x-k", token).forward_caller_auth(), "forward_caller_auth: does not go with"),
        (here().api_key_query_with("k", token).forward_caller_auth(), "forward_caller_auth: does not go with"),
        (here().forward_caller_auth().bearer_auth("canary"), "forward_caller_auth: does not go with"),
        (here().bearer_auth_with(token).forward_caller_auth(), "forward_caller_auth: does not go with"),
    ];
    for (provider, problem) in table {
        let debug = format!("{provider:?}");
        let Err(error) = check(vec![provider], &[], &ChainHeaders::default()) else {
            panic!("{problem}: accepted")
        };
        let error = format!("{error} {error:?}");
        assert!(error.starts_with(&format!("provider `here`: {problem}")), "{problem}: {error}");
        assert!(!error.contains("canary"), "{error}");
        // A name is shown as typed, a value or key is not.
        assert!(!debug.contains("canary") || debug.contains("canary canary"), "{debug}");
    }
}

#[test]
fn reserved_headers_are_refused_and_say_what_to_use() {
    for name in [
        "Host",
        "content-length",
        "transfer-encoding",
        "connection",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "upgrade",
        "expect",
    ] {
        assert!(refusal([here().header(name, "canary")]).contains("is set by the HTTP client"));
        assert!(refusal([here().api_key_header(name, "k")]).contains("is set by the HTTP client"));
    }
    for name in
        ["Authorization", "proxy-authorization", "cookie", "x-api-key", "api-key", "X-Goog-Api-Key"]
    {
        let error = refusal([here().header(name, "canary")]);
        assert!(error.contains("use bearer_auth, basic_auth or api_key_header"), "{error}");
        checked([here().api_key_header(name, "key")]);
    }
}

async fn token() -> Result<String, std::io::Error> {
    panic!("a source is not asked at build")
}

#[test]
fn what_is_unusual_but_right_is_accepted() {
    checked([
        Provider::new("1", "http://127.0.0.1:1").bearer_auth("k"),
        Provider::new("2", "http://[::1]:1/v1").bearer_auth_with(token),
        Provider::new("3", "http://localhost").forward_caller_auth(),
        Provider::new("4", "http://h").bearer_auth("k").danger_allow_plaintext(),
        Provider::new("5", "http://h").header("openai-project", "p").query("a", "b"),
        Provider::new("6", "https://h").basic_auth("", ""),
        Provider::new("7", "https://h").basic_auth("ü", "\"':"),
        Provider::new("8", "https://h").api_key_header("authorization", "Token k"),
        Provider::new("9", "https://h")
            .bearer_auth("bearer-k")
            .api_key_header("x-a", "k")
            .api_key_query("a", "k"),
        Provider::new("ten ", "https://h").header("x-empty", "").query("a", ""),
    ]);
}

#[test]
fn the_list_as_a_whole_is_checked() {
    let many = |count: usize| (0..count).map(|n| Provider::new(n.to_string(), "https://h"));
    assert!(refusal([]).starts_with("providers: must name at least one"));
    checked(many(128));
    assert!(refusal(many(129)).starts_with("providers: must be at most 128"));
    assert!(refusal([here(), here()]).starts_with("provider `here`: name: is used twice"));
    checked([here(), Provider::new("Here", "https://h/v1")]);
    for name in ["", " \t", "a\nb"] {
        let error = refusal([here(), Provider::new(name, "https://h")]);
        assert!(error.starts_with("name: of provider 2 must not be empty"), "{error}");
    }
    for claim in ["/v1", "https://u:canary@h", "https://h?canary"] {
        let claims = vec!["https://fine".to_owned(), claim.to_owned()];
        let Err(error) = check(vec![here()], &claims, &ChainHeaders::default()) else {
            panic!("was accepted")
        };
        assert!(error.to_string().starts_with("claim: URL 2 must"), "{error}");
        assert!(!error.to_string().contains("canary"));
    }
}

#[test]
fn a_missing_variable_is_named() {
    let error = refusal([here().bearer_env("REQWEST_FAILOVER_UNSET")]);
    assert!(error.starts_with("provider `here`: REQWEST_FAILOVER_UNSET: is not set"), "{error}");
    let set = checked([here().bearer_env("CARGO_PKG_NAME")]);
    let (_, headers) = arrives(&set, 0, "https://h/v1", &HeaderMap::new());
    assert_eq!(header(&headers, "authorization"), Some(concat!("Bearer ", env!("CARGO_PKG_NAME"))));
    for (provider, variable) in [
        (Provider::cometapi_from_env(), "COMETAPI_KEY"),
        (Provider::openai_from_env(), "OPENAI_API_KEY"),
    ] {
        assert!(format!("{provider:?}").contains(variable));
    }
}

#[test]
fn a_variable_that_holds_no_key_is_named_and_what_may_be_a_key_itself_is_not() {
    let set = checked([here().bearer_auth_env("CARGO_PKG_NAME")]);
    let (_, headers) = arrives(&set, 0, "https://h/v1", &HeaderMap::new());
    assert_eq!(header(&headers, "authorization"), Some(concat!("Bearer ", env!("CARGO_PKG_NAME"))));
    assert_eq!(set.entries[0].secrets, [env!("CARGO_PKG_NAME")]);

    let error = refusal([here().bearer_auth_env("REQWEST_FAILOVER_UNSET")]);
    let named = "bearer_auth_env: `REQWEST_FAILOVER_UNSET` is not set in the environment";
    assert!(error.starts_with(&format!("provider `here`: {named}")), "{error}");
    // The description of this crate has spaces.
    let error = refusal([here().bearer_auth_env("CARGO_PKG_DESCRIPTION")]);
    assert!(error.contains("bearer_auth_env: `CARGO_PKG_DESCRIPTION` holds a space"), "{error}");

    for key in ["sk-proj-canary", "CANARY", "CANARY_8F3A9C01", "canary_key", "", "A=CANARY", "C\0"]
    {
        let provider = here().bearer_auth_env(key);
        assert!(!format!("{provider:?}").to_lowercase().contains("canary"));
        let error = refusal([provider]);
        assert!(error.contains("bearer_auth_env: the variable of that name is not set"), "{error}");
        assert!(!error.to_lowercase().contains("canary"), "{error}");
    }
    let taken = refusal([here().bearer_auth_env("CARGO_PKG_NAME").bearer_auth("other")]);
    assert!(taken.contains("bearer_auth: `authorization` is set twice"), "{taken}");
    let exposed = refusal([Provider::new("here", "http://h").bearer_auth_env("CARGO_PKG_NAME")]);
    assert!(exposed.contains("base_url: would show a credential"), "{exposed}");
}

#[test]
fn debug_shows_names_and_no_values() {
    let provider = Provider::new("here", "https://h/v1?canary")
        .bearer_auth("canary")
        .basic_auth("canary", "canary")
        .api_key_header("x-k", "canary")
        .api_key_query("k", "canary")
        .bearer_auth_with(token)
        .api_key_header_with("x-s", token)
        .api_key_query_with("s", token)
        .header("x-a", "canary")
        .query("q", "canary");
    let debug = format!("{provider:?} {:#?}", provider.clone());
    assert!(!debug.contains("canary"), "{debug}");
    for shown in [
        "here",
        "<invalid>",
        "bearer_auth",
        "api_key_header_with",
        "api_key_query_with",
        "x-a",
        "\"q\"",
    ] {
        assert!(debug.contains(shown), "{shown}: {debug}");
    }
    let entry = format!("{:?}", checked([here().bearer_auth("canary")]).entries[0]);
    assert_eq!(entry, r#"Entry { name: "here", base: https://h/v1, .. }"#);
}

#[test]
fn tokens_are_held_to_the_rules_of_keys() {
    let source = |provider: Provider| checked([provider]).entries.remove(0).sources.remove(0);
    let bearer = source(here().bearer_auth_with(token));
    let header = source(here().api_key_header_with("x-k", token));
    let auth = source(here().api_key_header_with("authorization", token));
    let query = source(here().api_key_query_with("k", token));
    for bad in ["", " \n", "Bearer x", "a\nb", "é", "'x'", "sk-...", "${KEY}"] {
        for source in [&bearer, &header, &auth, &query] {
            assert!(source.check(bad).is_err(), "{bad}");
        }
    }
    for source in [&bearer, &header, &query] {
        assert!(source.check("Token key").is_err());
    }
    let set = |source: &KeySource, key: &str| {
        let key = source.check(key).unwrap_or_else(|problem| panic!("{problem}"));
        let url = Url::parse("https://h/v1?a=%2f&b").unwrap();
        let mut request = reqwest::Request::new(http::Method::GET, url);
        let secrets = key.secrets.clone();
        key.apply(&mut request);
        (request, secrets)
    };
    for (source, key, name, value, secrets) in [
        (&bearer, " key-1\n", "authorization", "Bearer key-1", &["key-1"][..]),
        (&header, " key-1\n", "x-k", "key-1", &["key-1"]),
        (&auth, "Token key-1", "authorization", "Token key-1", &["Token key-1", "key-1"]),
    ] {
        let (request, of_key) = set(source, key);
        assert_eq!(request.headers()[name], value);
        assert!(request.headers()[name].is_sensitive());
        assert_eq!(of_key, secrets);
        assert_eq!(request.url().query(), Some("a=%2f&b"));
    }
    let (request, of_key) = set(&query, " k&y+1\n");
    assert_eq!(request.url().query(), Some("a=%2f&b&k=k%26y%2B1"));
    assert_eq!((request.headers().len(), of_key), (0, vec!["k&y+1".to_owned()]));
    let value = bearer_value(" token\n").unwrap();
    assert!(value.is_sensitive());
    assert_eq!(value, "Bearer token");
    for bad in ["", "Bearer x", "a\nb", "é", "'x'"] {
        assert!(bearer_value(bad).is_none(), "{bad}");
        assert!(checked_key(bad).is_err(), "{bad}");
    }
    assert_eq!(checked_key("\tsk-a-b\r\n"), Ok("sk-a-b"));
    assert!(checked_key("sk-a b").unwrap_err().contains("space"));
    assert_eq!(checked_key("bearerish"), Ok("bearerish"));
}

#[test]
fn a_source_and_prepare_keep_their_errors() {
    let chain = checked([here()
        .bearer_auth_with(|| async { Err("no token") })
        .map_request(|_| Err::<(), _>("not today"))]);
    let entry = &chain.entries[0];
    let mut request = reqwest::Request::new(http::Method::GET, Url::parse("https://h").unwrap());
    let prepared = entry.map_request.as_ref().unwrap()(&mut request);
    assert_eq!(prepared.unwrap_err().to_string(), "not today");

    let mut token = entry.sources[0].ask();
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    match token.as_mut().poll(&mut cx) {
        std::task::Poll::Ready(Err(error)) => assert_eq!(error.to_string(), "no token"),
        _ => panic!("the source did not fail"),
    }
}

#[test]
fn a_placeholder_is_no_key() {
    for placeholder in [
        "${OPENAI_API_KEY}",
        "$OPENAI_API_KEY",
        "%OPENAI_API_KEY%",
        "{{ openai_key }}",
        "<your-api-key>",
        "<key>",
        "{key}",
        "[API KEY]",
        "your-api-key",
        "YOUR_API_KEY_HERE",
        "sk-your-key",
        "sk-...",
        "sk-ab...yz",
        "undefined",
        "null",
        "None",
        "xxxxxxxx",
        "XXXX-XXXX",
        "changeme",
    ] {
        let error = refusal([here().bearer_auth(placeholder)]);
        assert!(error.contains("is a placeholder"), "{placeholder}: {error}");
        let error = refusal([here().basic_auth("me", placeholder)]);
        assert!(error.contains("is a placeholder"), "{placeholder}: {error}");
        let error =
            refusal([here().api_key_header("authorization", format!("Token {placeholder}"))]);
        assert!(error.contains("is a placeholder"), "{placeholder}: {error}");
    }
    for key in
        ["k", "key", "test", "sk-ant-api03-x_y-z", "a.b.c", "x", "xx", "$2y$10$abc", "AIza<x"]
    {
        checked([here().bearer_auth(key)]);
    }
}

#[test]
fn a_header_may_take_more_than_a_key_where_such_are_taken() {
    for (name, value, secret) in [
        ("authorization", "Token canary-1", "canary-1"),
        ("authorization", "Basic bWU6Y2FuYXJ5LTE=", "canary-1"),
        ("cookie", "a=1; session=canary-1", "canary-1"),
        ("helicone-auth", "Bearer canary-1", "canary-1"),
        (
            "sec-websocket-protocol",
            "realtime, openai-insecure-api-key.canary-1",
            "openai-insecure-api-key.canary-1",
        ),
    ] {
        let chain = checked([here().api_key_header(name, value)]);
        let secrets = &chain.entries[0].secrets;
        assert!(secrets.iter().any(|known| known == secret), "{value}: {secrets:?}");
        let (_, headers) = arrives(&chain, 0, "https://h/v1", &HeaderMap::new());
        assert_eq!(header(&headers, name), Some(value));
    }
    for (name, value) in [("x-api-key", "Token canary"), ("authorization", "bearer canary")] {
        let error = refusal([here().api_key_header(name, value)]);
        assert!(error.contains("api_key_header: ") && !error.contains("canary"), "{error}");
    }
}

#[test]
fn a_key_in_the_path_is_a_key_like_any_other() {
    let keyed = |base: &str| Provider::new("here", base).api_key_path("canary-1");
    let chain = checked([keyed("https://h/v2/{key}/rpc")]);
    let entry = &chain.entries[0];
    assert!(entry.has_url_key() && entry.secrets == ["canary-1"]);
    for caller in ["https://h/v2/{key}/rpc/x?a=1", "https://h/v2/canary-1/rpc/x?a=1"] {
        let (url, _) = arrives(&chain, 0, caller, &HeaderMap::new());
        assert_eq!(url.as_str(), "https://h/v2/canary-1/rpc/x?a=1");
        let mut cleaned = url.clone();
        entry.clean_url(&mut cleaned);
        assert_eq!(cleaned.as_str(), "https://h/v2/%7Bkey%7D/rpc/x?a=1");
    }
    assert_eq!(format!("{:?}", entry.base), "https://h/v2/{key}/rpc");
    let debug = format!("{:?}", keyed("https://h/v2/{key}/rpc"));
    assert!(debug.contains("https://h/v2/{key}/rpc") && !debug.contains("canary"), "{debug}");
    for (provider, problem) in [
        (keyed("https://h/v2"), "base_url: must hold `{key}` once"),
        (keyed("https://h/{key}/{key}"), "base_url: must hold `{key}` once"),
        (keyed("http://h/{key}"), "base_url: would show a credential"),
        (keyed("https://h/{key}").api_key_path("canary-2"), "api_key_path: sets the key twice"),
        (keyed("https://h/{key}").forward_caller_auth(), "forward_caller_auth: does not go"),
        (here().api_key_path("canary 1"), "api_key_path: holds a space"),
        (Provider::new("here", "https://h/{key}"), "base_url: holds `{key}`"),
    ] {
        let error = refusal([provider]);
        assert!(error.contains(problem) && !error.contains("canary"), "{problem}: {error}");
    }
    checked([
        keyed("http://127.0.0.1:1/{key}"),
        Provider::new("b", "http://h/{key}").api_key_path("k").danger_allow_plaintext(),
    ]);
}

#[test]
fn a_header_that_is_kept_or_removed_is_so_at_its_provider_or_at_all() {
    let providers = vec![
        Provider::new("a", "https://a")
            .keep_header("x-partition-key")
            .header("x-sort-key", "a")
            .keep_header("x-sort-key"),
        Provider::new("b", "https://b").remove_header("x-tenant"),
    ];
    let headers =
        ChainHeaders { remove: vec!["X-Team".to_owned()], keep: vec!["x-shard-key".to_owned()] };
    let Ok(chain) = check(providers, &[], &headers) else { panic!("was refused") };
    let theirs = HeaderMap::from_iter(
        ["x-partition-key", "x-shard-key", "x-tenant", "x-team"]
            .map(|name| (http::HeaderName::from_static(name), HeaderValue::from_static("v"))),
    );
    for (at, expected) in [
        (0, &["x-partition-key", "x-shard-key", "x-sort-key", "x-tenant"][..]),
        (1, &["x-shard-key"]),
    ] {
        let (_, headers) = arrives(&chain, at, "https://a/x", &theirs);
        let mut names: Vec<_> = headers.keys().map(http::HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, expected);
    }
}

#[test]
fn what_an_entry_uses_as_a_credential_is_not_kept() {
    let keyed = || {
        Provider::new("keyed", "https://k")
            .api_key_header("x-vendor", "canary")
            .bearer_auth_with(token)
            .api_key_header_with("x-sourced", token)
    };
    for name in ["x-vendor", "X-Vendor", "authorization", "host", "X-Sourced"] {
        let error = refusal([here().keep_header(name), keyed()]);
        assert!(error.starts_with("provider `here`: keep_header: `"), "{error}");
        let headers = ChainHeaders { keep: vec![name.to_owned()], ..ChainHeaders::default() };
        let Err(error) = check(vec![here(), keyed()], &[], &headers) else { panic!("{name}") };
        assert!(error.to_string().starts_with("keep_header: `"), "{error}");
    }
    checked([here().keep_header("x-vendor")]);
    let headers = ChainHeaders { remove: vec!["a b".to_owned()], ..ChainHeaders::default() };
    let Err(error) = check(vec![here()], &[], &headers) else { panic!("was accepted") };
    assert!(error.to_string().starts_with("remove_header: the name must be"), "{error}");
    assert!(refusal([here().keep_header("")]).contains("keep_header: the name must be"));
}

#[test]
fn a_header_may_be_given_in_the_types_of_http() {
    let mut sensitive = HeaderValue::from_static("canary-1");
    sensitive.set_sensitive(true);
    let chain = checked([here()
        .header(http::header::ACCEPT, HeaderValue::from_static("x"))
        .header("x-own".to_owned(), sensitive.clone())]);
    let (_, headers) = arrives(&chain, 0, "https://h/v1", &HeaderMap::new());
    assert_eq!(
        (header(&headers, "accept"), header(&headers, "x-own")),
        (Some("x"), Some("canary-1"))
    );
    assert_eq!(chain.entries[0].secrets, ["canary-1"]);
    let error = refusal([Provider::new("here", "http://h").header("x-own", sensitive)]);
    assert!(error.contains("base_url: would show a credential"), "{error}");
}

#[test]
fn no_provider_is_named_none() {
    for name in ["none", "None", " NONE "] {
        assert!(refusal([Provider::new(name, "https://h")]).contains("name: is what metrics say"));
    }
    checked([Provider::new("nonesuch", "https://h")]);
}
