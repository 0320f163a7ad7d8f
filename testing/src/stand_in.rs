//! A stand-in for a provider of chat completions and files on loopback.
//!
//! It answers in one piece or, when the request says `"stream":true`, event by event; it keeps what
//! is posted to `/files`, fails when told to, and remembers every request it received, head and
//! body, as it came off the wire.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufStream};
use tokio::net::{TcpListener, TcpStream};

/// A provider on loopback that has one key and knows one sentence.
pub struct StandIn {
    base_url: String,
    script: Arc<Script>,
}

impl StandIn {
    /// Listens on a free port. Every answer to a request with `key` is `sentence`.
    pub async fn start(key: &'static str, sentence: &'static str) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let base_url = format!("http://{}/v1", listener.local_addr()?);
        let script = Arc::new(Script { key, sentence, state: Mutex::default() });
        let played = Arc::clone(&script);
        tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                tokio::spawn(serve(connection, Arc::clone(&played)));
            }
        });
        Ok(Self { base_url, script })
    }

    pub fn base_url(&self) -> &str {
        &self.base_url
    }

    /// From now on every request fails, with this status and message.
    pub fn fail(&self, status: u16, message: &'static str) {
        self.fail_times(usize::MAX, status, message);
    }

    /// This many requests fail, then they are answered again.
    pub fn fail_times(&self, times: usize, status: u16, message: &'static str) {
        self.script.locked(|state| state.failure = Some(Failure { left: times, status, message }));
    }

    /// From now on every request is answered again.
    pub fn recover(&self) {
        self.script.locked(|state| (state.failure, state.mood) = (None, Mood::Well));
    }

    /// From now on one request of so many fails.
    pub fn brown_out(&self, of: usize) {
        self.script.locked(|state| state.mood = Mood::Brown { of });
    }

    /// From now on it closes every connection without an answer.
    pub fn die(&self) {
        self.script.locked(|state| state.mood = Mood::Dead);
    }

    /// From now on every request is answered with 200, and with a stream of which the first event is
    /// this error.
    pub fn fail_in_stream(&self, message: &'static str) {
        self.script.locked(|state| state.mood = Mood::Late { message });
    }

    /// From now on it says that there were too many requests, and how long to wait.
    pub fn limit_rate(&self, wait: Duration) {
        self.script.locked(|state| state.mood = Mood::Limited { wait });
    }

    /// Every request so far, head and body.
    pub fn received(&self) -> Vec<String> {
        self.script.locked(|state| state.received.clone())
    }
}

/// The base URL of a provider that is not there: its port is closed.
pub async fn closed_port() -> io::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    Ok(format!("http://{}/v1", listener.local_addr()?))
}

struct Script {
    key: &'static str,
    sentence: &'static str,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    failure: Option<Failure>,
    mood: Mood,
    received: Vec<String>,
}

#[derive(Clone, Copy, Default)]
enum Mood {
    #[default]
    Well,
    Brown {
        of: usize,
    },
    Dead,
    Late {
        message: &'static str,
    },
    Limited {
        wait: Duration,
    },
}

#[derive(Clone, Copy)]
struct Failure {
    left: usize,
    status: u16,
    message: &'static str,
}

impl Script {
    fn next_failure(&self) -> Option<Failure> {
        self.locked(|state| {
            let failure = state.failure.as_mut()?;
            failure.left = failure.left.checked_sub(1)?;
            Some(*failure)
        })
    }

    /// A brown-out is one only for every so-manieth request.
    fn mood(&self) -> Mood {
        self.locked(|state| match state.mood {
            Mood::Brown { of } if state.received.len() % of != 0 => Mood::Well,
            mood => mood,
        })
    }

    fn locked<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn serve(connection: TcpStream, script: Arc<Script>) -> io::Result<()> {
    let mut connection = BufStream::new(connection);
    while let Some((head, body)) = receive(&mut connection).await? {
        script.locked(|state| state.received.push(format!("{head}{body}")));
        let own_key = head.contains(&format!("authorization: Bearer {}\r\n", script.key));
        match script.mood() {
            Mood::Dead => return Ok(()),
            Mood::Limited { wait } => {
                let hint = format!("retry-after-ms: {}\r\n", wait.as_millis());
                let body = error(429, "Too many requests.");
                reply_with(&mut connection, 429, &hint, &body).await?;
                continue;
            }
            Mood::Brown { .. } => {
                let body = error(500, "The server had an error.");
                reply(&mut connection, 500, &body).await?;
                continue;
            }
            Mood::Late { message } => {
                let event = format!("data: {}\n\n", error(503, message));
                let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n";
                let length = event.len();
                let answer = format!("{head}content-length: {length}\r\n\r\n{event}");
                connection.write_all(answer.as_bytes()).await?;
                connection.flush().await?;
                continue;
            }
            Mood::Well => {}
        }
        match script.next_failure() {
            Some(Failure { status, message, .. }) => {
                reply(&mut connection, status, &error(status, message)).await?;
            }
            None if !own_key => {
                reply(&mut connection, 401, &error(401, "Incorrect API key.")).await?;
            }
            None if head.starts_with("POST /v1/files ") => {
                reply(&mut connection, 200, &file(&body)).await?;
            }
            None if body.contains(r#""stream":true"#) => {
                stream(&mut connection, script.sentence).await?;
            }
            None => reply(&mut connection, 200, &completion(script.sentence)).await?,
        }
    }
    Ok(())
}

/// The next request's head, with lower-case header names as `reqwest` sends them, and its body.
async fn receive(connection: &mut BufStream<TcpStream>) -> io::Result<Option<(String, String)>> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if connection.read_line(&mut head).await? == 0 {
            return Ok(None);
        }
    }
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let length = length.and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    connection.read_exact(&mut body).await?;
    Ok(Some((head, String::from_utf8_lossy(&body).into_owned())))
}

async fn reply(connection: &mut BufStream<TcpStream>, status: u16, body: &Value) -> io::Result<()> {
    reply_with(connection, status, "", body).await
}

/// As [`reply`], with one header more: a whole line, or nothing.
async fn reply_with(
    connection: &mut BufStream<TcpStream>,
    status: u16,
    header: &str,
    body: &Value,
) -> io::Result<()> {
    let body = body.to_string();
    let length = body.len();
    let answer = format!(
        "HTTP/1.1 {status} \r\n{header}content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    connection.write_all(answer.as_bytes()).await?;
    connection.flush().await
}

/// One server-sent event per word, with a pause before each.
#[expect(clippy::disallowed_methods, reason = "a server on a real socket has real pauses")]
async fn stream(connection: &mut BufStream<TcpStream>, sentence: &str) -> io::Result<()> {
    let head =
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    connection.write_all(head.as_bytes()).await?;
    let chunk = |choice: Value| {
        json!({
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 1_700_000_000,
            "model": "gpt-4o-mini",
            "choices": [choice],
        })
        .to_string()
    };
    let words = sentence
        .split_inclusive(' ')
        .map(|word| chunk(json!({"index": 0, "delta": {"content": word}, "finish_reason": null})));
    let last = chunk(json!({"index": 0, "delta": {}, "finish_reason": "stop"}));
    for data in words.chain([last, "[DONE]".to_owned()]) {
        connection.flush().await?;
        tokio::time::sleep(Duration::from_millis(100)).await;
        let event = format!("data: {data}\n\n");
        let chunk = format!("{:x}\r\n{event}\r\n", event.len());
        connection.write_all(chunk.as_bytes()).await?;
    }
    connection.write_all(b"0\r\n\r\n").await?;
    connection.flush().await
}

fn completion(sentence: &str) -> Value {
    json!({
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "gpt-4o-mini",
        "choices": [{
            "index": 0,
            "message": {"role": "assistant", "content": sentence, "refusal": null},
            "finish_reason": "stop",
            "logprobs": null,
        }],
        "usage": {"prompt_tokens": 9, "completion_tokens": 6, "total_tokens": 15},
    })
}

/// What OpenAI says of a file that it has stored; `bytes` is the whole form's length.
fn file(form: &str) -> Value {
    json!({
        "id": "file-1",
        "object": "file",
        "bytes": form.len(),
        "created_at": 1_700_000_000,
        "filename": "questions.jsonl",
        "purpose": "batch",
        "status": "processed",
    })
}

fn error(status: u16, message: &str) -> Value {
    let code = match status {
        400 => "unsupported_parameter",
        401 => "invalid_api_key",
        429 => "insufficient_quota",
        _ => "server_error",
    };
    json!({"error": {"message": message, "type": "stand_in_error", "param": null, "code": code}})
}
