//! What a request is about, as far as its provider's health depends on it.

use std::fmt;
use std::sync::Arc;

use reqwest::Request;

use crate::splice::top_level_string;

/// Keeps a provider's health for each key of requests, such as their model.
///
/// An aggregator serves hundreds of models under one API key. Without health keys, a limit on one of
/// them rests the whole provider.
///
/// With [`health_by`](crate::ProviderChainBuilder::health_by), cooldowns, 5xx answers and timeouts count
/// for one key at one provider. A model that the provider does not have rests for 60 s, for that key
/// alone. What concerns the provider as a whole still counts for all of its keys: failed connections,
/// DNS, TLS, credentials, and the account with its balance.
///
/// **When not to use it**: where the keys of one provider fail together, each key has to find that out
/// with five failures of its own. So leave it out for a provider that serves one model, and for
/// keys that hardly ever repeat, such as a user's or a session's.
///
/// A key is cut after 128 bytes. A provider keeps the health of 256 keys; the ones that were used
/// least recently make room, and those whose breaker is open last. A request without a key counts for
/// the provider as a whole. Snapshots, events and log lines show keys, so make none from a secret.
///
/// ```
/// use reqwest_failover::{HealthKey, Provider, ProviderChain};
///
/// let chain = ProviderChain::builder([Provider::cometapi("key-a"), Provider::openai("key-b")])
///     .health_by(HealthKey::model())
///     .build()?;
/// # Ok::<(), reqwest_failover::ConfigError>(())
/// ```
#[derive(Clone)]
pub struct HealthKey {
    read: Read,
}

#[derive(Clone)]
enum Read {
    /// The string under this name, at the top level of a JSON body.
    Json(&'static str),
    Call(Arc<Call>),
}

type Call = dyn Fn(&Request) -> Option<String> + Send + Sync;

impl HealthKey {
    /// The `"model"` at the top level of a JSON body, as the caller wrote it: before a
    /// [`rename_model`](crate::Provider::rename_model). A body that is streamed, or that has no such
    /// string, has no key. The body is read as far as its model.
    pub fn model() -> Self {
        Self { read: Read::Json("model") }
    }

    /// The `"method"` of a JSON-RPC request, for nodes that are slow or limited in single methods. A
    /// batch has no key.
    ///
    /// ```
    /// # use reqwest_failover::{HealthKey, Provider, ProviderChain};
    /// let chain = ProviderChain::builder([
    ///     Provider::new("node-a", "https://a.example.com/rpc").bearer_auth("key-a"),
    ///     Provider::new("node-b", "https://b.example.com/rpc").bearer_auth("key-b"),
    /// ])
    /// .health_by(HealthKey::json_rpc_method())
    /// .build()?;
    /// # Ok::<(), reqwest_failover::ConfigError>(())
    /// ```
    pub fn json_rpc_method() -> Self {
        Self { read: Read::Json("method") }
    }

    /// Any key. It sees the caller's request, before anything is changed. If it panics, the request has
    /// no key. Events and the snapshot show what it returns, so it must be no secret.
    ///
    /// ```
    /// # use reqwest_failover::{HealthKey, Provider, ProviderChain};
    /// let by_region = HealthKey::new(|request| {
    ///     let region = request.headers().get("x-region")?;
    ///     region.to_str().ok().map(str::to_owned)
    /// });
    /// let chain = ProviderChain::builder([Provider::openai("key")]).health_by(by_region).build()?;
    /// # Ok::<(), reqwest_failover::ConfigError>(())
    /// ```
    pub fn new<F>(key: F) -> Self
    where
        F: Fn(&Request) -> Option<String> + Send + Sync + 'static,
    {
        Self { read: Read::Call(Arc::new(key)) }
    }

    /// The key of a request, if it has one. It runs the user's closure, which may panic.
    pub(crate) fn of(&self, request: &Request) -> Option<Box<[u8]>> {
        let key = match &self.read {
            Read::Json(name) => top_level_string(request.body()?.as_bytes()?, name)?,
            Read::Call(call) => call(request)?.into_bytes().into(),
        };
        match key.len() {
            1..=LONGEST => Some(key),
            0 => None,
            _ => Some(key[..LONGEST].into()),
        }
    }
}

const LONGEST: usize = 128;

impl fmt::Debug for HealthKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let read = match self.read {
            Read::Json(name) => name,
            Read::Call(_) => "closure",
        };
        f.debug_tuple("HealthKey").field(&read).finish()
    }
}

#[cfg(test)]
mod tests {
    use reqwest::{Body, Method, Url};

    use super::*;

    fn request(body: impl Into<Body>) -> Request {
        let url = Url::parse("https://api.example.com/v1/chat/completions").unwrap();
        let mut request = Request::new(Method::POST, url);
        *request.body_mut() = Some(body.into());
        request
    }

    fn model(body: &str) -> Option<String> {
        let key = HealthKey::model().of(&request(body.to_owned()))?;
        Some(String::from_utf8(key.into()).unwrap())
    }

    #[test]
    fn a_model_is_the_string_at_the_top_of_a_json_body() {
        for (body, key) in [
            (r#"{"model":"gpt"}"#, Some("gpt")),
            (r#"{"messages":[{"model":"x"}],"n":1.0,"model":"gpt"}"#, Some("gpt")),
            ("\u{feff} {\n\t\"model\" : \"gpt\" }", Some("gpt")),
            (r#"{"mod\u0065l":"g\u0070t\n"}"#, Some("gpt\n")),
            (r#"{"model":"first","model":"second"}"#, Some("first")),
            // What follows the model is not looked at.
            (r#"{"model":"gpt",..."#, Some("gpt")),
            (r#"{"model":""}"#, None),
            (r#"{"model":null}"#, None),
            (r#"{"model":["gpt"]}"#, None),
            (r#"{"Model":"gpt"}"#, None),
            (r#"[{"model":"gpt"}]"#, None),
            (r#"{"model":"gpt"#, None),
            ("model=gpt", None),
            ("", None),
        ] {
            assert_eq!(model(body).as_deref(), key, "{body}");
        }
        let invalid = request(b"{\"model\":\"g\xff\"}".to_vec());
        assert_eq!(HealthKey::model().of(&invalid).as_deref(), Some(&b"g\xff"[..]));
        let stream = futures_util::stream::iter([Ok::<_, std::io::Error>(r#"{"model":"gpt"}"#)]);
        let streamed = request(Body::wrap_stream(stream));
        assert_eq!(HealthKey::model().of(&streamed), None);
    }

    #[test]
    fn a_health_key_shows_what_it_reads() {
        assert_eq!(format!("{:?}", HealthKey::model()), r#"HealthKey("model")"#);
        assert_eq!(format!("{:?}", HealthKey::new(|_| None)), r#"HealthKey("closure")"#);
    }

    #[test]
    fn a_json_rpc_request_is_known_by_its_method() {
        let method = |body: &'static str| HealthKey::json_rpc_method().of(&request(body));
        let call = r#"{"jsonrpc":"2.0","id":1,"params":[],"method":"eth_call"}"#;
        assert_eq!(method(call).as_deref(), Some(&b"eth_call"[..]));
        assert_eq!(method(r#"[{"method":"eth_call"}]"#), None);
    }

    #[test]
    fn a_key_is_cut_after_128_bytes() {
        for length in [1, 127, 128, 129, 10_000] {
            let key = HealthKey::new(move |_| Some("a".repeat(length)));
            assert_eq!(key.of(&request("")).unwrap().len(), length.min(128));
        }
        assert_eq!(HealthKey::new(|_| Some(String::new())).of(&request("")), None);
        assert_eq!(HealthKey::new(|_| None).of(&request("")), None);
    }
}
