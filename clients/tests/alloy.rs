//! A provider of `alloy` over a chain of two stand-ins on loopback. Each test counts what each received.

use std::task::{Context, Poll};

use alloy::primitives::{Address, U256};
use alloy::providers::{Provider as _, ProviderBuilder};
use alloy::rpc::client::RpcClient;
use alloy::rpc::json_rpc::{RequestPacket, ResponsePacket};
use alloy::transports::{RpcError, TransportError, TransportErrorKind, TransportFut};
use reqwest_failover::{HealthKey, Inspect, Provider, ProviderChain, Route, harden};
use reqwest_failover_testing::support::{Answer, Received, Script, Server};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware};
use serde_json::{Value, json};
use tower::Service;

const URL: &str = "https://rpc.internal.example/";
const KEYS: [&str; 2] = ["key-of-the-first-node", "key-of-the-second-node"];

/// The transport of `docs/recipes.md`.
#[derive(Clone)]
struct Nodes {
    client: ClientWithMiddleware,
    url: reqwest::Url,
}

impl Service<RequestPacket> for Nodes {
    type Response = ResponsePacket;
    type Error = TransportError;
    type Future = TransportFut<'static>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, packet: RequestPacket) -> Self::Future {
        let mut request =
            self.client.post(self.url.clone()).headers(packet.headers()).json(&packet);
        if packet.method_names().any(|method| method.starts_with("eth_sendRawTransaction")) {
            request = request.with_extension(Route::no_failover());
        }
        Box::pin(async move {
            let response = request.send().await.map_err(TransportErrorKind::custom)?;
            let status = response.status();
            let body = response.bytes().await.map_err(TransportErrorKind::custom)?;
            let text = || String::from_utf8_lossy(&body).into_owned();
            serde_json::from_slice(&body).map_err(|error| match status.is_success() {
                true => TransportError::deser_err(error, text()),
                false => TransportErrorKind::http_error(status.as_u16(), text()),
            })
        })
    }
}

fn sent(request: &Received) -> Value {
    serde_json::from_slice(&request.body).expect("JSON")
}

/// A node that answers each method with this.
fn serves(result: Value) -> impl Fn(&Received) -> Answer + Send + Sync + 'static {
    said(json!({"result": result}))
}

/// A node that answers each method with this error, in a 200.
fn refuses(code: i64, message: &str) -> impl Fn(&Received) -> Answer + Send + Sync + 'static {
    said(json!({"error": {"code": code, "message": message}}))
}

fn said(content: Value) -> impl Fn(&Received) -> Answer + Send + Sync + 'static {
    move |request| {
        let one = |call: &Value| {
            let mut answer = content.clone();
            answer["jsonrpc"] = json!("2.0");
            answer["id"] = call["id"].clone();
            answer
        };
        let call = sent(request);
        let answer = call.as_array().map(|calls| calls.iter().map(one).collect::<Value>());
        Answer::status(200).json(answer.unwrap_or_else(|| one(&call)))
    }
}

#[test]
fn the_page_shows_this_transport() {
    let source = include_str!("alloy.rs");
    let begin = source.find("#[derive(Clone)]").expect("its begin");
    let end = source.find("fn sent(").expect("its end");
    assert!(include_str!("../../docs/recipes.md").contains(source[begin..end].trim_end()));
}

struct Pair {
    nodes: [Server; 2],
    client: RpcClient,
}

impl Pair {
    async fn start(first: impl Into<Script>, second: impl Into<Script>) -> Self {
        let nodes = [Server::start(first).await, Server::start(second).await];
        let chain = ProviderChain::builder([
            Provider::new("first", nodes[0].base_url("/v2/{key}")).api_key_path(KEYS[0]),
            Provider::new("second", nodes[1].base_url("/v3/{key}")).api_key_path(KEYS[1]),
        ])
        .claim(URL)
        .inspect(Inspect::errors_in_success().json_rpc())
        .health_by(HealthKey::json_rpc_method())
        .build()
        .expect("a sound chain");
        let http = harden(reqwest::Client::builder()).no_proxy().build().expect("a TLS stack");
        let client = ClientBuilder::new(http).with(chain).build();
        let transport = Nodes { client, url: URL.parse().expect("a URL") };
        Self { nodes, client: RpcClient::new(transport, false) }
    }

    fn provider(&self) -> impl alloy::providers::Provider {
        ProviderBuilder::new().connect_client(self.client.clone())
    }

    /// The bodies that each received, below its own key and without the other's.
    fn received(&self) -> [Vec<Value>; 2] {
        let targets = ["/v2/key-of-the-first-node/", "/v3/key-of-the-second-node/"];
        [0, 1].map(|at| {
            let requests = self.nodes[at].requests().into_iter().map(|request| {
                assert_eq!(request.target, targets[at]);
                assert!(!format!("{request:?}").contains(KEYS[1 - at]), "{request:?}");
                sent(&request)
            });
            requests.collect()
        })
    }

    fn counts(&self) -> [usize; 2] {
        self.received().map(|requests| requests.len())
    }
}

fn shows_no_key(error: &TransportError) {
    let shown = format!("{error} {error:?}");
    assert!(KEYS.iter().all(|key| !shown.contains(key)), "{shown}");
}

#[tokio::test]
async fn reads_fail_over() {
    let broken: [Answer; 3] = [
        Answer::error(503, "no healthy upstream"),
        Answer::error(429, "slow down").header("retry-after", "30"),
        Answer::reset(),
    ];
    for broken in broken {
        let pair = Pair::start(broken, serves(json!("0x2a"))).await;
        assert_eq!(pair.provider().get_block_number().await.expect("a height"), 42);
        let [first, second] = pair.received();
        assert_eq!(first, second);
        assert_eq!(first[0]["method"], "eth_blockNumber");
        assert_eq!(pair.counts(), [1, 1]);
    }
    for (code, message) in [
        (-32005, "daily request count exceeded, request rate limited"),
        (-32000, "header not found"),
        (-32000, "missing trie node 0123 (path )"),
        (-32603, "internal error"),
    ] {
        let pair = Pair::start(refuses(code, message), serves(json!("0x2a"))).await;
        let balance = pair.provider().get_balance(Address::ZERO).await;
        assert_eq!(balance.expect("a balance"), U256::from(42), "{message}");
        assert_eq!(pair.counts(), [1, 1], "{message}");
    }
}

#[tokio::test]
async fn an_error_of_the_request_is_the_answer_and_the_second_node_is_not_asked() {
    for (code, message) in [(3, "execution reverted: no funds"), (-32602, "invalid argument 0")] {
        let pair = Pair::start(refuses(code, message), serves(json!("0x2a"))).await;
        let error = pair.provider().get_balance(Address::ZERO).await.expect_err("it is refused");
        let RpcError::ErrorResp(payload) = error else { panic!("{error:?}") };
        assert_eq!((payload.code, &*payload.message), (code, message));
        assert_eq!(pair.counts(), [1, 0]);
    }
}

#[tokio::test]
async fn a_transaction_goes_to_one_node() {
    let hash = format!("0x{}", "ab".repeat(32));
    let pair = Pair::start(serves(json!(hash)), serves(json!(hash))).await;
    let pending = pair.provider().send_raw_transaction(&[1, 2, 3]).await.expect("a hash");
    assert_eq!(pending.tx_hash().to_string(), hash);
    let [first, second] = pair.received();
    assert_eq!(first[0]["method"], "eth_sendRawTransaction");
    assert_eq!(first[0]["params"], json!(["0x010203"]));
    assert_eq!((first.len(), second.len()), (1, 0));

    for broken in [Answer::error(503, "no healthy upstream"), Answer::reset()] {
        let pair = Pair::start(broken, serves(json!(hash))).await;
        let error = pair.provider().send_raw_transaction(&[1, 2, 3]).await.expect_err("it failed");
        shows_no_key(&error);
        assert_eq!(pair.counts(), [1, 0], "{error}");
        // The next read is not held back by that.
        assert!(pair.provider().get_block_number().await.is_err(), "a hash is no height");
        assert_eq!(pair.counts(), [2, 1]);
    }
}

#[tokio::test]
async fn a_batch_with_a_transaction_goes_to_one_node_and_another_fails_over() {
    for (method, counts) in [("eth_sendRawTransaction", [1, 0]), ("eth_chainId", [1, 1])] {
        let pair = Pair::start(Answer::status(503).body("closed"), serves(json!("0x2a"))).await;
        let mut batch = pair.client.new_batch();
        let height = batch.add_call::<_, Value>("eth_blockNumber", &()).expect("a call");
        let other = batch.add_call::<_, Value>(method, &["0x010203"]).expect("a call");
        let done = batch.send().await;
        assert_eq!(pair.counts(), counts, "{method}");
        if counts[1] == 0 {
            shows_no_key(&done.expect_err("it failed"));
            continue;
        }
        done.expect("an answer");
        assert_eq!(height.await.expect("a height"), "0x2a");
        assert_eq!(other.await.expect("an answer"), "0x2a");
    }
}

#[tokio::test]
async fn when_every_node_fails_the_last_ones_status_and_text_are_the_error() {
    let pair = Pair::start(Answer::error(503, "closed"), Answer::status(502).body("bad")).await;
    let error = pair.provider().get_block_number().await.expect_err("no node is well");
    let RpcError::Transport(TransportErrorKind::HttpError(said)) = &error else {
        panic!("{error:?}")
    };
    assert_eq!((said.status, &*said.body), (502, "bad"));
    shows_no_key(&error);
    assert_eq!(pair.counts(), [1, 1]);
}
