//! Edits of JSON bodies, over real sockets: each provider is asked for the model by its own name and
//! with its own parameters, and every other byte is the caller's.

use reqwest_failover_testing::support;

use bytes::Bytes;
use futures_util::stream;
use reqwest::{Body, Response};
use reqwest_failover::{ConfigError, Provider, ProviderChain, Report, Route};
use reqwest_middleware::{ClientWithMiddleware, RequestBuilder};

use support::harness::{BODY, WireHarness, client, line};
use support::{Answer, Received};

/// `cometapi` fails and knows `gpt-5` as `comet/gpt-5`; `openai` answers and knows no other name.
async fn set() -> (WireHarness, ClientWithMiddleware) {
    let harness = WireHarness::two(Answer::error(500, "down"), Answer::ok()).await;
    let client = client(ProviderChain::builder([
        harness.actors[0].provider().rename_model("gpt-5", "comet/gpt-5"),
        harness.actors[1].provider(),
    ]));
    (harness, client)
}

fn post(harness: &WireHarness, client: &ClientWithMiddleware) -> RequestBuilder {
    client.post(harness.actors[1].url("/x"))
}

#[track_caller]
fn assert_served_by_the_second(response: &Response) {
    let report = Report::of(response).unwrap();
    assert_eq!(line(report), "cometapi 500 in # ms (maybe processed) → openai 200 in # ms");
}

/// Both got a body of the length that its header says; what the first got, and the second.
fn sent(harness: &WireHarness) -> (Received, Received) {
    harness.assert_asked(&[1, 1]);
    let both = (harness.requests(0).remove(0), harness.requests(1).remove(0));
    for request in [&both.0, &both.1] {
        assert_eq!(request.all("content-length"), [request.body.len().to_string()]);
        assert_eq!(request.header("transfer-encoding"), None);
    }
    both
}

#[tokio::test]
async fn each_provider_is_asked_for_the_model_by_its_own_name() {
    let (harness, client) = set().await;
    let response = harness.post(&client).send().await.unwrap();
    assert_served_by_the_second(&response);
    let (first, second) = sent(&harness);
    assert_eq!(first.text(), BODY.replacen("gpt-5", "comet/gpt-5", 1));
    assert_eq!(second.text(), BODY);
    assert_eq!(first.header("content-type"), Some("application/json"));
}

#[tokio::test]
async fn every_name_has_its_own_rename() {
    let harness = WireHarness::two(Answer::error(500, "down"), Answer::ok()).await;
    let client = client(ProviderChain::builder([
        harness.actors[0].provider().rename_model("gpt-5", "one").rename_model("gpt-5-mini", "two"),
        harness.actors[1].provider().rename_model("gpt-5", "three").rename_model("one", "never"),
    ]));
    for (asked, names) in [
        ("gpt-5", ["one", "three"]),
        ("gpt-5-mini", ["two", "gpt-5-mini"]),
        ("gpt-4", ["gpt-4", "gpt-4"]),
    ] {
        let body = |model: &str| format!("{{ \"n\":1.00, \"model\" :\"{model}\"}}");
        post(&harness, &client).body(body(asked)).send().await.unwrap();
        for (actor, name) in names.iter().enumerate() {
            assert_eq!(harness.requests(actor).pop().unwrap().text(), body(name));
        }
    }
}

#[tokio::test]
async fn a_body_changes_in_its_models_span_or_not_at_all() {
    let changed: &[(&str, &str)] = &[
        ("{\"model\":\"gpt-5\"}", "{\"model\":\"comet/gpt-5\"}"),
        (
            "{\"a\":{\"model\":\"gpt-5\"},\"model\":\"gpt-5\"}",
            "{\"a\":{\"model\":\"gpt-5\"},\"model\":\"comet/gpt-5\"}",
        ),
        (
            "{\"model\":\"gpt-5\",\"x\":1e400,\"model\":\"gpt-5\"}",
            "{\"model\":\"comet/gpt-5\",\"x\":1e400,\"model\":\"comet/gpt-5\"}",
        ),
        ("{\"mod\\u0065l\":\"g\\u0070t-5\"}", "{\"mod\\u0065l\":\"comet/gpt-5\"}"),
        ("\u{feff}{\"model\":\"gpt-5\"}\r\n", "\u{feff}{\"model\":\"comet/gpt-5\"}\r\n"),
        (
            "{\"s\":\"\\\"model\\\":\\\"gpt-5\\\"\",\"model\":\"gpt-5\"}",
            "{\"s\":\"\\\"model\\\":\\\"gpt-5\\\"\",\"model\":\"comet/gpt-5\"}",
        ),
    ];
    let unchanged: &[&[u8]] = &[
        b"{\"a\":{\"model\":\"gpt-5\"}}",
        b"[{\"model\":\"gpt-5\"}]",
        b"{\"model\":\"gpt-5 \"}",
        b"{\"model\":[\"gpt-5\"]}",
        b"{\"model\":\"gpt-5\"",
        b"{\"model\":\"gpt-5\"} and more",
        b"{\"model\":\"gpt-5\",\"s\":\"\xff\"}",
        b"\xff\xfe{\0\"\0m\0",
        b"model=gpt-5",
        b"\x1f\x8b\x08\0",
        b"--x\r\n\r\n{\"model\":\"gpt-5\"}\r\n--x--",
        b" ",
    ];
    let changed = changed.iter().map(|(body, renamed)| (body.as_bytes(), renamed.as_bytes()));
    for (body, renamed) in changed.chain(unchanged.iter().map(|body| (*body, *body))) {
        let (harness, client) = set().await;
        let response = post(&harness, &client).body(body.to_vec()).send().await.unwrap();
        assert_served_by_the_second(&response);
        let (first, second) = sent(&harness);
        let shown = String::from_utf8_lossy(&first.body);
        assert!(first.body == renamed, "{shown}");
        assert!(second.body == body, "{shown}");
    }
    let (harness, client) = set().await;
    let response = post(&harness, &client).send().await.unwrap();
    assert_served_by_the_second(&response);
    assert!(harness.requests(0)[0].body.is_empty() && harness.requests(1)[0].body.is_empty());
}

#[tokio::test]
async fn a_large_body_keeps_every_other_byte() {
    let (harness, client) = set().await;
    let text = "é\\n\\u0000 \\\"model\\\":\\\"gpt-5\\\" ".repeat(40_000);
    let body = |model: &str| {
        format!("{{\"messages\":[{{\"content\":\"{text}\"}}],\"model\":\"{model}\",\"n\":1.0}}")
    };
    post(&harness, &client).body(body("gpt-5")).send().await.unwrap();
    let (first, second) = sent(&harness);
    assert!(
        first.body == body("comet/gpt-5").as_bytes() && second.body == body("gpt-5").as_bytes()
    );
}

#[tokio::test]
async fn what_speaks_of_the_old_body_is_gone_only_where_the_body_changed() {
    // Signatures are the caller's own, and go to no provider.
    const STALE: [&str; 5] =
        ["digest", "content-md5", "content-digest", "repr-digest", "x-amz-content-sha256"];
    let (harness, client) = set().await;
    let mut request = harness.post(&client).header("content-length", BODY.len());
    for name in STALE {
        request = request.header(name, "sum=:abc:");
    }
    let response = request.header("x-other", "1").send().await.unwrap();
    assert_served_by_the_second(&response);
    let (first, second) = sent(&harness);
    for name in STALE {
        assert_eq!(first.header(name), None);
        assert_eq!(second.header(name), Some("sum=:abc:"));
    }
    assert_eq!((first.header("x-other"), second.header("x-other")), (Some("1"), Some("1")));
}

#[tokio::test]
async fn prepare_sees_the_renamed_body() {
    let harness = WireHarness::two(Answer::ok(), Answer::ok()).await;
    let first =
        harness.actors[0].provider().rename_model("gpt-5", "comet/gpt-5").map_request(|request| {
            let body = request.body().and_then(Body::as_bytes).unwrap_or_default();
            let length = body.len().to_string();
            request.headers_mut().insert("x-length", length.parse().unwrap());
            Ok::<_, std::convert::Infallible>(())
        });
    let client = client(ProviderChain::builder([first, harness.actors[1].provider()]));
    harness.post(&client).send().await.unwrap();
    let length = (BODY.len() + "comet/".len()).to_string();
    assert_eq!(harness.requests(0)[0].header("x-length"), Some(&*length));
}

// Other values.

#[tokio::test]
async fn a_parameter_is_set_for_the_provider_that_needs_it_and_removed_for_the_one_that_refuses_it()
{
    let harness = WireHarness::two(Answer::error(500, "down"), Answer::ok()).await;
    let client = client(ProviderChain::builder([
        harness.actors[0].provider().json_set("a", 2).json_set("tier", "flex"),
        harness.actors[1].provider().json_remove("b").rename_model_with(|model| {
            model.starts_with("gpt-").then(|| format!("openai/{model}"))
        }),
    ]));
    let response = harness
        .post(&client)
        .header("content-length", BODY.len())
        .header("content-digest", "sha-256=:abc:")
        .send()
        .await
        .unwrap();
    assert_served_by_the_second(&response);
    let (first, second) = sent(&harness);
    assert_eq!(
        first.text(),
        "{\"model\": \"gpt-5\",  \"b\":1,\"a\":2, \"text\":\"\\u00e9 é \\/\",\"tier\":\"flex\" }\n"
    );
    assert_eq!(
        second.text(),
        "{\"model\": \"openai/gpt-5\",\"a\":1.0, \"text\":\"\\u00e9 é \\/\" }\n"
    );
    assert_eq!((first.header("content-digest"), second.header("content-digest")), (None, None));
}

#[tokio::test]
async fn a_body_that_is_no_json_object_or_is_compressed_is_sent_as_it_is() {
    let gzip: &[u8] = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff\xabV\xcaS\xb22\xad\x05\x00";
    for body in [gzip, b"[1]", b"a=1&b=2", b"{\"a\":1", b"{\"a\":\"\xff\"}", b" "] {
        let harness = WireHarness::two(Answer::ok(), Answer::ok()).await;
        let first = harness.actors[0].provider().json_set("n", 2).json_remove("a");
        let client = client(ProviderChain::builder([first]).claim(harness.actors[1].url("")));
        let request = post(&harness, &client).header("content-encoding", "x").body(body.to_vec());
        let response = request.header("content-digest", "sum").send().await.unwrap();
        assert_eq!(response.status(), 200);
        let request = harness.requests(0).remove(0);
        assert_eq!(request.body, body);
        assert_eq!(request.header("content-digest"), Some("sum"));
    }
}

#[tokio::test]
async fn a_rule_for_models_that_panics_keeps_the_name() {
    let harness = WireHarness::two(Answer::ok(), Answer::ok()).await;
    let first = harness.actors[0].provider().rename_model_with(|_| panic!("scripted"));
    let chain = ProviderChain::builder([first]).claim(harness.actors[1].url("")).build().unwrap();
    let client = reqwest_middleware::ClientBuilder::new(support::harness::plain())
        .with(chain.clone())
        .build();
    let response = harness.post(&client).send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(harness.requests(0)[0].text(), BODY);
    assert_eq!(chain.snapshot().callback_panics(), 1);
}

// Streams.

fn streamed() -> Body {
    let pieces = BODY.as_bytes().chunks(7).map(|piece| Ok::<_, std::io::Error>(Bytes::from(piece)));
    Body::wrap_stream(stream::iter(pieces.collect::<Vec<_>>()))
}

#[tokio::test]
async fn a_stream_that_was_read_into_memory_is_renamed() {
    let (harness, client) = set().await;
    let request = post(&harness, &client).header("content-length", BODY.len()).body(streamed());
    let response = request.send().await.unwrap();
    assert_served_by_the_second(&response);
    let (first, second) = sent(&harness);
    assert_eq!(first.text(), BODY.replacen("gpt-5", "comet/gpt-5", 1));
    assert_eq!(second.text(), BODY);
}

#[tokio::test]
async fn a_stream_that_can_be_sent_only_once_is_left_alone() {
    // Of unknown length; above the replay buffer; with no provider to fail over to.
    for case in 0..3 {
        let harness = WireHarness::two(Answer::ok(), Answer::ok()).await;
        let first = harness.actors[0].provider().rename_model("gpt-5", "comet/gpt-5");
        let first = first.json_set("a", 2).json_remove("b");
        let chain = ProviderChain::builder([first, harness.actors[1].provider()]);
        let client = client(if case == 1 { chain.replay_buffer(9) } else { chain });
        let mut request = post(&harness, &client).body(streamed());
        if case > 0 {
            request = request.header("content-length", BODY.len());
        }
        if case == 2 {
            request = request.with_extension(Route::only(["cometapi"]));
        }
        let response = request.send().await.unwrap();
        assert_eq!(Report::of(&response).unwrap().served_by(), Some("cometapi"));
        assert_eq!(harness.requests(0)[0].text(), BODY);
        harness.assert_asked(&[1, 0]);
    }
}

// Configuration.

#[track_caller]
fn refused(provider: Provider) -> ConfigError {
    let error = ProviderChain::builder([Provider::openai("key"), provider]).build();
    let error = error.map(|chain| format!("{chain:?}")).expect_err("a ConfigError");
    assert_eq!(error.provider(), Some("mine"), "{error}");
    assert!(error.to_string().contains("model"), "{error}");
    error
}

#[test]
fn a_model_without_a_name_is_refused() {
    let mine = || Provider::new("mine", "https://api.example.test/v1");
    refused(mine().rename_model("", "to"));
    refused(mine().rename_model("from", ""));
    refused(mine().rename_model("a", "b").rename_model("c", ""));
}

#[test]
fn a_model_that_is_renamed_twice_is_refused() {
    let mine = || Provider::new("mine", "https://api.example.test/v1");
    let error = refused(mine().rename_model("a", "b").rename_model("a", "c"));
    assert!(error.to_string().contains("`a`"), "{error}");
    // One name for two models is fine, and so is a swap.
    let swap = mine().rename_model("a", "b").rename_model("b", "a").rename_model("c", "a");
    ProviderChain::builder([swap]).build().unwrap();
}
