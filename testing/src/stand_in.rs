//! A stand-in for a provider of chat completions and files on loopback.
//!
//! It answers in one piece or, when the request says `"stream":true`, event by event; it keeps what
//! is posted to `/files`, fails when told to, and remembers every request it received, head and
//! body, as it came off the wire.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::support::{Answer, Part, Received, Server, Step, lock};

/// A provider on loopback that has one key and knows one sentence. It stops when it is dropped.
pub struct StandIn {
    server: Server,
    base_url: String,
    state: Arc<Mutex<State>>,
}

impl StandIn {
    /// Listens on a free port. Every answer to a request with `key` is `sentence`.
    pub async fn start(key: &'static str, sentence: &'static str) -> io::Result<Self> {
        let state = Arc::new(Mutex::new(State::default()));
        let told = Arc::clone(&state);
        let server = Server::quiet(move |request: &Received| {
            let own_key = request.all("authorization") == [format!("Bearer {key}")];
            lock(&told).failing(request.index).unwrap_or_else(|| answer(request, own_key, sentence))
        })
        .await?;
        Ok(Self { base_url: server.base_url("/v1"), server, state })
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
        lock(&self.state).failure = Some(Failure { left: times, status, message });
    }

    /// From now on every request is answered again.
    pub fn recover(&self) {
        *lock(&self.state) = State::default();
    }

    /// From now on one request of so many fails.
    pub fn brown_out(&self, of: usize) {
        lock(&self.state).mood = Mood::Brown { of };
    }

    /// From now on it closes every connection without an answer.
    pub fn die(&self) {
        lock(&self.state).mood = Mood::Dead;
    }

    /// From now on every request is answered with 200, and with a stream of which the first event is
    /// this error.
    pub fn fail_in_stream(&self, message: &'static str) {
        lock(&self.state).mood = Mood::Late { message };
    }

    /// From now on it says that there were too many requests, and how long to wait.
    pub fn limit_rate(&self, wait: Duration) {
        lock(&self.state).mood = Mood::Limited { wait };
    }

    /// Every request so far, head and body.
    pub fn received(&self) -> Vec<String> {
        self.server.requests().iter().map(written).collect()
    }
}

/// The base URL of a provider that is not there: its port is closed.
pub async fn closed_port() -> io::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    Ok(format!("http://{}/v1", listener.local_addr()?))
}

#[derive(Default)]
struct State {
    failure: Option<Failure>,
    mood: Mood,
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

impl State {
    /// What the request with this index is answered with, where it fails.
    fn failing(&mut self, index: usize) -> Option<Answer> {
        match self.mood {
            Mood::Dead => Some(Answer::fin()),
            Mood::Limited { wait } => {
                let hint = wait.as_millis().to_string();
                Some(error(429, "Too many requests.").header("retry-after-ms", hint))
            }
            Mood::Brown { of } if (index + 1).is_multiple_of(of) => {
                Some(error(500, "The server had an error."))
            }
            Mood::Late { message } => {
                let event = format!("data: {}\n\n", error_body(503, message));
                Some(event_stream().body(event))
            }
            Mood::Well | Mood::Brown { .. } => {
                let failure = self.failure.as_mut()?;
                failure.left = failure.left.checked_sub(1)?;
                Some(error(failure.status, failure.message))
            }
        }
    }
}

fn answer(request: &Received, own_key: bool, sentence: &str) -> Answer {
    let body = String::from_utf8_lossy(&request.body);
    match () {
        () if !own_key => error(401, "Incorrect API key."),
        () if request.method == "POST" && request.target == "/v1/files" => {
            Answer::status(200).json(file(&body))
        }
        () if body.contains(r#""stream":true"#) => stream(sentence),
        () => Answer::status(200).json(completion(sentence)),
    }
}

/// The request as it came, without the framing of a chunked body.
fn written(request: &Received) -> String {
    let mut text = format!("{} {} HTTP/1.1\r\n", request.method, request.target);
    for (name, value) in &request.headers {
        text += &format!("{name}: {value}\r\n");
    }
    text + "\r\n" + &String::from_utf8_lossy(&request.body)
}

fn event_stream() -> Answer {
    Answer::status(200).header("content-type", "text/event-stream")
}

/// One server-sent event per word, with a pause before each.
fn stream(sentence: &str) -> Answer {
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
    let events = words.chain([last, "[DONE]".to_owned()]).flat_map(|data| {
        let pause = Step::Wait(Duration::from_millis(100));
        [Part::Then(pause), Part::Data(format!("data: {data}\n\n").into())]
    });
    event_stream().chunked(events)
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

fn error(status: u16, message: &str) -> Answer {
    Answer::status(status).json(error_body(status, message))
}

fn error_body(status: u16, message: &str) -> Value {
    let code = match status {
        400 => "unsupported_parameter",
        401 => "invalid_api_key",
        429 => "insufficient_quota",
        _ => "server_error",
    };
    json!({"error": {"message": message, "type": "stand_in_error", "param": null, "code": code}})
}
