#![cfg_attr(docsrs, feature(doc_cfg))]
#![doc = include_str!("../README.md")]

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use redis::aio::{MultiplexedConnection, SendError};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ErrorKind, FromRedisValue, ProtocolVersion, PushInfo,
    PushKind, RedisError, ServerErrorKind, Value,
};
use reqwest_failover::fleet::{HealthStore, HealthWatch, Record, StoreError};
use tokio::sync::{Mutex, broadcast};

/// Health in Redis or Valkey: what [`share`](reqwest_failover::ProviderChainBuilder::share) takes.
///
/// The records of a namespace are one hash, and are published on one channel; both are named
/// `reqwest-failover:{<namespace>}:1`. One connection carries commands and pushes. It is made at the first
/// call, and again at the first call after one that failed.
///
/// Redis 6 or newer pushes what other processes write. An older one, or a user without the right to the
/// channel, is polled only, which is said once at WARN.
pub struct RedisHealth {
    client: Client,
    name: Arc<str>,
    namespace: Box<str>,
    response_timeout: Duration,
    link: Mutex<Link>,
    polls_only: Arc<AtomicBool>,
}

/// What is put into a namespace, as [`HealthStore::watch`] of a [`RedisHealth`] returns it.
#[derive(Debug)]
pub struct RedisWatch(Option<broadcast::Receiver<(Record, Duration)>>);

/// Why a [`RedisHealth`] could not be made, or a call to Redis failed. Its text has neither the URL nor the
/// password.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct RedisHealthError(String);

impl RedisHealth {
    /// Checks the URL and the namespace, and connects to nothing yet.
    ///
    /// The URL is `redis://[<user>[:<password>]@]<host>[:<port>][/<database>]`. With the feature `tls-rustls`
    /// or `tls-native-tls` it may begin with `rediss://`, and `redis+unix://<path>` is a Unix socket.
    ///
    /// Chains with one namespace share their health: give each application its own. It has 1 to 64
    /// characters of `A-Z`, `a-z`, `0-9`, `.`, `_` and `-`.
    ///
    /// ```
    /// use reqwest_failover::{Provider, ProviderChain};
    /// use reqwest_failover_redis::RedisHealth;
    ///
    /// let store = RedisHealth::new("redis://user:password@redis.internal", "payments")?;
    /// let chain = ProviderChain::builder([Provider::openai("key")]).share(store).build()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// If the URL is not one of Redis, asks for TLS without the feature for it, or the namespace is not
    /// as described.
    pub fn new(url: &str, namespace: &str) -> Result<Self, RedisHealthError> {
        let client = Client::open(url).map_err(|error| match error.detail() {
            // It is a part of the URL.
            Some(_) => RedisHealthError("the URL's query is not one of Redis".into()),
            None => RedisHealthError(error.to_string()),
        })?;
        Self::with_client(client, namespace)
    }

    /// As [`new`](Self::new), with a client that has what a URL cannot say, such as TLS certificates of its
    /// own. The protocol that it names is not used.
    ///
    /// ```
    /// use reqwest_failover_redis::RedisHealth;
    ///
    /// let client = redis::Client::open("redis://redis.internal")?;
    /// let store = RedisHealth::with_client(client, "payments")?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// If the namespace is not as described.
    pub fn with_client(client: Client, namespace: &str) -> Result<Self, RedisHealthError> {
        let is_named = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if !(1..=64).contains(&namespace.len()) || !namespace.bytes().all(is_named) {
            let wanted = "a namespace has 1 to 64 characters of A-Z, a-z, 0-9, '.', '_' and '-'";
            return Err(RedisHealthError(wanted.into()));
        }
        Ok(Self {
            client,
            name: format!("reqwest-failover:{{{namespace}}}:1").into(),
            namespace: namespace.into(),
            response_timeout: Duration::from_millis(500),
            link: Mutex::default(),
            polls_only: Arc::default(),
        })
    }

    /// How long Redis may take for one answer. The default is 500 ms. A chain waits no longer than 500 ms
    /// in any case.
    ///
    /// ```
    /// use std::time::Duration;
    /// use reqwest_failover_redis::RedisHealth;
    ///
    /// let store = RedisHealth::new("redis://redis.internal", "payments")?
    ///     .response_timeout(Duration::from_millis(200));
    /// # Ok::<(), reqwest_failover_redis::RedisHealthError>(())
    /// ```
    pub fn response_timeout(mut self, timeout: Duration) -> Self {
        self.response_timeout = timeout;
        self
    }

    async fn call<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, StoreError> {
        let mut connection = self.connection().await?;
        let mut call = Call { failed: &connection.failed, is_answered: false };
        let answer = command.query_async(&mut connection.redis).await;
        call.is_answered = answer.is_ok();
        answer.map_err(|error| self.error(&error).into())
    }

    /// The connection that there is, or a new one.
    async fn connection(&self) -> Result<Connection, RedisHealthError> {
        let mut link = self.link.lock().await;
        link.connection.take_if(|connection| connection.is_lost());
        loop {
            if let Some(connection) = &link.connection {
                return Ok(connection.clone());
            }
            let was_begun = link.connecting.is_some();
            let connecting = link.connecting.get_or_insert_with(|| Box::pin(self.connect()));
            let connected = connecting.await;
            link.connecting = None;
            match connected {
                Ok(connection) => link.connection = Some(connection),
                // It may have failed long ago.
                Err(_) if was_begun => {}
                Err(error) => return Err(self.error(&error)),
            }
        }
    }

    fn connect(&self) -> impl Future<Output = Result<Connection, RedisError>> + Send + use<> {
        let client = self.client.clone();
        let name = self.name.clone();
        let polls_only = self.polls_only.clone();
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(self.response_timeout));
        async move {
            let (sender, pushes) = broadcast::channel(MOST_BEHIND);
            let with_pushes = config.clone().set_push_sender(move |push| {
                if let Some(put) = parse_push(&push) {
                    // It fails where there is no watch.
                    _ = sender.send(put);
                }
                Ok::<(), SendError>(())
            });
            let with_resp3 = with_protocol(&client, ProtocolVersion::RESP3)?;
            let connected = with_resp3.get_multiplexed_async_connection_with_config(&with_pushes);
            let (redis, pushes) = match connected.await {
                Ok(mut redis) => match redis.subscribe(&*name).await {
                    Ok(()) => (redis, Some(pushes)),
                    Err(error) if error.kind() == NO_PERMISSION => {
                        warn_once(&polls_only, "the user may not subscribe to the channel");
                        (redis, None)
                    }
                    Err(error) => return Err(error),
                },
                Err(error) if lacks_resp3(&error) => {
                    let with_resp2 = with_protocol(&client, ProtocolVersion::RESP2)?;
                    let connected =
                        with_resp2.get_multiplexed_async_connection_with_config(&config);
                    let redis = connected.await?;
                    warn_once(&polls_only, "the server does not speak RESP3");
                    (redis, None)
                }
                Err(error) => return Err(error),
            };
            Ok(Connection { redis, pushes: pushes.map(Arc::new), failed: Arc::default() })
        }
    }

    /// The error without the password: servers quote what they do not understand.
    fn error(&self, error: &RedisError) -> RedisHealthError {
        let text = error.to_string();
        let password = self.client.get_connection_info().redis_settings().password();
        RedisHealthError(match password {
            Some(password) if !password.is_empty() => text.replace(password, "..."),
            _ => text,
        })
    }
}

impl HealthStore for RedisHealth {
    type Watch = RedisWatch;

    async fn put(&self, record: &Record, ttl: Duration) -> Result<(), StoreError> {
        let ttl = u64::try_from(ttl.as_nanos().div_ceil(1_000_000)).unwrap_or(LONGEST_TTL);
        let mut put = redis::cmd("EVAL");
        put.arg(PUT).arg(1).arg(&*self.name);
        put.arg(record.key()).arg(ttl.min(LONGEST_TTL)).arg(record.body());
        self.call(&put).await
    }

    async fn list(&self) -> Result<Vec<(Record, Duration)>, StoreError> {
        let mut list = redis::cmd("EVAL");
        list.arg(LIST).arg(1).arg(&*self.name);
        let listed: Vec<Vec<u8>> = self.call(&list).await?;
        Ok(listed.iter().filter_map(|record| parse(record)).collect())
    }

    async fn watch(&self) -> Result<RedisWatch, StoreError> {
        let connection = self.connection().await?;
        Ok(RedisWatch(connection.pushes.map(|pushes| pushes.resubscribe())))
    }
}

impl HealthWatch for RedisWatch {
    async fn next(&mut self) -> Result<(Record, Duration), StoreError> {
        let Some(pushes) = &mut self.0 else { return std::future::pending().await };
        loop {
            match pushes.recv().await {
                Ok(put) => return Ok(put),
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => {
                    return Err("the connection to Redis is lost".into());
                }
            }
        }
    }
}

impl fmt::Debug for RedisHealth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisHealth").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

type Connecting = Pin<Box<dyn Future<Output = Result<Connection, RedisError>> + Send>>;

#[derive(Default)]
struct Link {
    connection: Option<Connection>,
    /// It goes on with the next call where the one that began it was dropped, as a chain does after 500 ms.
    connecting: Option<Connecting>,
}

#[derive(Clone)]
struct Connection {
    redis: MultiplexedConnection,
    /// What each watch begins from. The sender is gone when the connection is.
    pushes: Option<Arc<broadcast::Receiver<(Record, Duration)>>>,
    /// Whether a call failed, after which another connection is made.
    failed: Arc<AtomicBool>,
}

impl Connection {
    fn is_lost(&self) -> bool {
        let is_closed = self.pushes.as_ref().is_some_and(|pushes| pushes.is_closed());
        is_closed || self.failed.load(Ordering::Relaxed)
    }
}

/// A call that has failed unless it is answered: also if it is dropped.
struct Call<'c> {
    failed: &'c AtomicBool,
    is_answered: bool,
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        if !self.is_answered {
            self.failed.store(true, Ordering::Relaxed);
        }
    }
}

fn with_protocol(client: &Client, protocol: ProtocolVersion) -> Result<Client, RedisError> {
    let info = client.get_connection_info();
    // To say the library's name takes another right.
    let settings = info.redis_settings().clone().set_protocol(protocol).set_skip_set_lib_name();
    Client::open(info.clone().set_redis_settings(settings))
}

fn lacks_resp3(error: &RedisError) -> bool {
    let is_unknown = |detail: &str| detail.starts_with("unknown command");
    error.kind() == ErrorKind::RESP3NotSupported
        || error.code() == Some("NOPROTO")
        || error.detail().is_some_and(is_unknown)
}

fn warn_once(is_said: &AtomicBool, reason: &str) {
    let was_said = is_said.swap(true, Ordering::Relaxed);
    #[cfg(feature = "tracing")]
    if !was_said {
        tracing::warn!(reason, "Redis pushes nothing: shared health is polled only");
    }
    #[cfg(not(feature = "tracing"))]
    let _ = (was_said, reason);
}

fn parse_push(push: &PushInfo) -> Option<(Record, Duration)> {
    match (&push.kind, push.data.as_slice()) {
        (PushKind::Message, [_, Value::BulkString(message)]) => parse(message),
        _ => None,
    }
}

/// `<key> <time to live in ms> <body>`.
fn parse(text: &[u8]) -> Option<(Record, Duration)> {
    let mut words = str::from_utf8(text).ok()?.splitn(3, ' ');
    let (key, ttl, body) = (words.next()?, words.next()?, words.next()?);
    Some((Record::new(key, body)?, Duration::from_millis(ttl.parse().ok()?)))
}

/// Of the record's key, its time to live in milliseconds and its body. Where a thousand records are there,
/// another one is published and not kept, unless it is for more than a day: an operator's command is.
const PUT: &str = include_str!("put.lua");
/// Returns the records as [`parse`] reads them, and removes what has expired or is none.
const LIST: &str = include_str!("list.lua");
const NO_PERMISSION: ErrorKind = ErrorKind::Server(ServerErrorKind::NoPerm);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// In milliseconds: a thousand years, which Redis can still add to the time.
const LONGEST_TTL: u64 = 1000 * 366 * 24 * 60 * 60 * 1000;
/// A watch that is further behind loses the oldest records.
const MOST_BEHIND: usize = 256;

#[cfg(doctest)]
#[doc = include_str!("../../docs/fleet.md")]
struct Guide;
