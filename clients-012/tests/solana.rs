//! The official client of Solana over a chain of two stand-ins on loopback. Each test counts what each received.

use std::time::Duration;

use reqwest_failover::{
    Exhausted, FailoverError, HealthKey, Inspect, Provider, ProviderChain, harden,
};
use reqwest_failover_testing::support::{Answer, Received, Refusing, Server};
use reqwest_middleware::ClientBuilder;
use serde_json::{Value, json};
use solana_rpc_client::api::client_error::{Error, ErrorKind};
use solana_rpc_client::api::request::{RpcError, RpcRequest, RpcResponseErrorData};
use solana_rpc_client::http_sender::HttpSender;
use solana_rpc_client::nonblocking::rpc_client::RpcClient;
use solana_rpc_client::rpc_client::{self, RpcClientConfig};

/// What the client is configured with. No request leaves for it.
const URL: &str = "https://rpc.internal.example/";
const KEYS: [&str; 2] = ["key-of-the-first-node", "key-of-the-second-node"];

fn sent(request: &Received) -> Value {
    serde_json::from_slice(&request.body).expect("JSON")
}

/// A node that answers every method with this.
fn serves(result: Value) -> impl Fn(&Received) -> Answer + Send + Sync + 'static {
    move |request| {
        let id = &sent(request)["id"];
        Answer::status(200).json(json!({"jsonrpc": "2.0", "id": id, "result": result}))
    }
}

/// A node that answers every method with this error, in a 200.
fn refuses(error: Value) -> impl Fn(&Received) -> Answer + Send + Sync + 'static {
    move |request| {
        let id = &sent(request)["id"];
        Answer::status(200).json(json!({"jsonrpc": "2.0", "id": id, "error": error}))
    }
}

/// The first node has its key in the path, the second in the query.
fn sender(first: String, second: &Server, exhausted: Exhausted) -> HttpSender {
    let chain = ProviderChain::builder([
        Provider::new("first", first + "/v2/{key}").api_key_path(KEYS[0]),
        Provider::new("second", second.base_url("/")).api_key_query("api-key", KEYS[1]),
    ])
    .claim(URL)
    .inspect(Inspect::errors_in_success().json_rpc())
    .health_by(HealthKey::json_rpc_method())
    .on_exhausted(exhausted)
    .build()
    .expect("a sound chain");
    let http = harden(reqwest::Client::builder())
        .default_headers(HttpSender::default_headers())
        .no_proxy()
        .build()
        .expect("a TLS stack");
    let http = ClientBuilder::new(http).with(chain).build();
    HttpSender::new_with_client_with_middleware(URL, http)
}

fn client(first: &Server, second: &Server) -> RpcClient {
    let sender = sender(first.base_url(""), second, Exhausted::LastOutcome);
    RpcClient::new_sender(sender, RpcClientConfig::default())
}

/// What each received: its own key and not the other's, the client's header, and the same body.
fn methods(first: &Server, second: &Server) -> [Vec<String>; 2] {
    [(first, "/v2/key-of-the-first-node/", 1), (second, "/?api-key=key-of-the-second-node", 0)].map(
        |(node, target, other)| {
            let requests = node.requests().into_iter().map(|request| {
                assert_eq!(request.target, target);
                assert!(!format!("{request:?}").contains(KEYS[other]), "{request:?}");
                assert!(request.header("solana-client").is_some_and(|it| it.starts_with("rust/")));
                sent(&request)["method"].as_str().expect("a method").to_owned()
            });
            requests.collect()
        },
    )
}

#[tokio::test]
async fn a_node_that_is_down_is_passed_over() {
    let second = Server::start(serves(json!(42))).await;
    let refusing = Refusing::start();
    let sender = sender(refusing.base_url(""), &second, Exhausted::LastOutcome);
    let client = RpcClient::new_sender(sender, RpcClientConfig::default());
    assert_eq!(client.get_slot().await.expect("a slot"), 42);

    for broken in [Answer::error(503, "no healthy upstream"), Answer::reset()] {
        let first = Server::start(broken).await;
        let second = Server::start(serves(json!(42))).await;
        assert_eq!(self::client(&first, &second).get_slot().await.expect("a slot"), 42);
        assert_eq!(methods(&first, &second), [["getSlot"], ["getSlot"]]);
        assert_eq!(first.only_request().body, second.only_request().body);
    }
}

#[tokio::test]
async fn a_node_at_its_limit_is_left_alone_without_a_wait_and_for_that_method_only() {
    let first = Server::start(|request: &Received| match sent(request)["method"].as_str() {
        Some("getSlot") => Answer::error(429, "slow down").header("retry-after", "30"),
        _ => serves(json!(7))(request),
    })
    .await;
    let second = Server::start(serves(json!(42))).await;
    let client = client(&first, &second);
    assert_eq!(client.get_slot().await.expect("a slot"), 42);
    assert_eq!(client.get_slot().await.expect("a slot"), 42);
    assert_eq!(client.get_block_height().await.expect("a height"), 7);
    let [at_first, at_second] = methods(&first, &second);
    assert_eq!(at_first, ["getSlot", "getBlockHeight"]);
    assert_eq!(at_second, ["getSlot", "getSlot"]);
    // Alone, the client waits for half a second at least, or for as long as the node says.
    assert_eq!(client.get_transport_stats().rate_limited_time, Duration::ZERO);
}

#[tokio::test]
async fn a_node_that_lags_or_lacks_a_block_is_passed_over() {
    for error in [
        json!({"code": -32005, "message": "Node is behind by 42 slots", "data": {"numSlotsBehind": 42}}),
        json!({"code": -32005, "message": "Node is unhealthy", "data": {"numSlotsBehind": null}}),
        json!({"code": -32004, "message": "Block not available for slot 5"}),
        json!({"code": -32016, "message": "Minimum context slot has not been reached", "data": {"contextSlot": 1}}),
    ] {
        let first = Server::start(refuses(error)).await;
        let second = Server::start(serves(json!(42))).await;
        assert_eq!(client(&first, &second).get_slot().await.expect("a slot"), 42);
        assert_eq!(methods(&first, &second), [["getSlot"], ["getSlot"]]);
    }
}

#[tokio::test]
async fn the_last_nodes_error_has_its_code_and_data_when_every_node_lags() {
    let behind = |slots: u64| {
        json!({"code": -32005, "message": format!("Node is behind by {slots} slots"),
            "data": {"numSlotsBehind": slots}})
    };
    let first = Server::start(refuses(behind(42))).await;
    let second = Server::start(refuses(behind(43))).await;
    let error = client(&first, &second).get_health().await.expect_err("no node is well");
    let ErrorKind::RpcError(RpcError::RpcResponseError { code, data, .. }) = error.kind() else {
        panic!("{error:?}")
    };
    assert_eq!(*code, -32005);
    let RpcResponseErrorData::NodeUnhealthy { num_slots_behind } = data else { panic!("{data:?}") };
    assert_eq!(*num_slots_behind, Some(43));
    assert_eq!(methods(&first, &second), [["getHealth"], ["getHealth"]]);
}

#[tokio::test]
async fn an_error_of_the_request_is_the_answer_and_the_second_node_is_not_asked() {
    for (code, message) in [
        (-32002, "Transaction simulation failed: Blockhash not found"),
        (-32602, "Invalid param: WrongSize"),
        (-32601, "Method not found"),
        (-32003, "Transaction signature verification failure"),
    ] {
        let first = Server::start(refuses(json!({"code": code, "message": message}))).await;
        let second = Server::start(serves(json!("a signature"))).await;
        let client = client(&first, &second);
        let result = client.send::<String>(RpcRequest::SendTransaction, json!(["AQID"])).await;
        let error = result.expect_err("it is refused");
        let ErrorKind::RpcError(RpcError::RpcResponseError { code: said, .. }) = error.kind()
        else {
            panic!("{error:?}")
        };
        assert_eq!(*said, code);
        assert_eq!(methods(&first, &second), [vec!["sendTransaction"], vec![]]);
    }
}

#[tokio::test]
async fn when_every_node_fails_the_client_has_its_usual_error_or_the_report() {
    let first = Server::start(Answer::error(503, "closed")).await;
    let second = Server::start(Answer::error(500, "broken")).await;
    let error = client(&first, &second).get_slot().await.expect_err("no node is well");
    let ErrorKind::Reqwest(inner) = error.kind() else { panic!("{error:?}") };
    assert_eq!(inner.status().map(|status| status.as_u16()), Some(500));
    shows_no_key(&error);

    let sender = sender(first.base_url(""), &second, Exhausted::Error);
    let client = RpcClient::new_sender(sender, RpcClientConfig::default());
    let error = client.get_slot().await.expect_err("no node is well");
    assert!(FailoverError::find(&error).is_none());
    let ErrorKind::Middleware(inner) = error.kind() else { panic!("{error:?}") };
    let report = FailoverError::find(inner.as_ref()).expect("the chain's").report().to_string();
    assert!(report.starts_with("first 503 in ") && report.contains("→ second 500 in "), "{report}");
    shows_no_key(&error);
}

fn shows_no_key(error: &Error) {
    let shown = format!("{error} {error:?}");
    assert!(KEYS.iter().all(|key| !shown.contains(key)), "{shown}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_blocking_client_fails_over_too() {
    let first = Server::start(Answer::error(503, "closed")).await;
    let second = Server::start(serves(json!(42))).await;
    let sender = sender(first.base_url(""), &second, Exhausted::LastOutcome);
    let slot = tokio::task::spawn_blocking(move || {
        let client = rpc_client::RpcClient::new_sender(sender, RpcClientConfig::default());
        client.get_slot()
    });
    assert_eq!(slot.await.unwrap().expect("a slot"), 42);
    assert_eq!(methods(&first, &second), [["getSlot"], ["getSlot"]]);
}
