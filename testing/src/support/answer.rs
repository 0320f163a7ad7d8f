//! What a scripted server says, and where it stops.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::Notify;

/// One answer, and what goes wrong while it is given.
#[derive(Clone, Debug)]
pub struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    declared: Option<usize>,
    steps: Vec<(Place, Step)>,
    /// A body of unknown length, in place of `body`.
    parts: Option<Vec<Part>>,
}

/// Where in an answer a [`Step`] is taken: always after one half of what is named, before the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    BeforeHeaders,
    WithinHeaders,
    AfterHeaders,
    WithinBody,
    AfterBody,
}

/// A part of a chunked body.
#[derive(Clone, Debug)]
pub enum Part {
    /// One chunk, written at once.
    Data(Vec<u8>),
    /// Waits until the test says so.
    Until(Arc<Notify>),
    /// The same chunk again and again for as long as anyone listens.
    Forever(Vec<u8>, Duration),
    /// Ends the body with a trailer.
    Trailer(&'static str, &'static str),
    Then(Step),
}

#[derive(Clone, Copy, Debug)]
pub enum Step {
    Wait(Duration),
    /// Says nothing more, and keeps the connection open.
    Stall,
    /// Sends a byte every millisecond for as long as anyone listens.
    Drip,
    Fin,
    Rst,
}

impl Answer {
    pub fn status(status: u16) -> Self {
        let (headers, body, steps) = Default::default();
        Self { status, headers, body, declared: None, steps, parts: None }
    }

    /// A 200 with a small JSON body.
    pub fn ok() -> Self {
        Self::status(200).json(serde_json::json!({"answer": "fine"}))
    }

    /// A failure in the form that the vendors use.
    pub fn error(status: u16, message: &str) -> Self {
        Self::status(status)
            .json(serde_json::json!({"error": {"message": message, "code": status}}))
    }

    /// Reads the request and never answers.
    pub fn stall() -> Self {
        Self::ok().at(Place::BeforeHeaders, Step::Stall)
    }

    /// Reads the request and closes the connection.
    pub fn fin() -> Self {
        Self::ok().at(Place::BeforeHeaders, Step::Fin)
    }

    /// Reads the request and resets the connection.
    pub fn reset() -> Self {
        Self::ok().at(Place::BeforeHeaders, Step::Rst)
    }

    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    pub fn json(self, json: serde_json::Value) -> Self {
        self.header("content-type", "application/json").body(json.to_string())
    }

    /// Says another `Content-Length` than the body has.
    pub fn declare(mut self, length: usize) -> Self {
        self.declared = Some(length);
        self
    }

    pub fn at(mut self, place: Place, step: Step) -> Self {
        self.steps.push((place, step));
        self
    }

    pub fn headers_after(self, wait: Duration) -> Self {
        self.at(Place::BeforeHeaders, Step::Wait(wait))
    }

    pub fn body_after(self, wait: Duration) -> Self {
        self.at(Place::AfterHeaders, Step::Wait(wait))
    }

    /// A body that never ends.
    pub fn endless(self) -> Self {
        self.declare(usize::MAX >> 8).at(Place::AfterBody, Step::Drip)
    }

    /// A chunked body, part by part.
    pub fn chunked(mut self, parts: impl IntoIterator<Item = Part>) -> Self {
        self.parts = Some(parts.into_iter().collect());
        self.header("transfer-encoding", "chunked")
    }

    pub(super) async fn give(&self, socket: &mut TcpStream, head_only: bool) -> io::Result<()> {
        let bodiless = head_only || matches!(self.status, 100..=199 | 204 | 304);
        let mut head = format!("HTTP/1.1 {} Scripted\r\n", self.status);
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        if !matches!(self.status, 100..=199 | 204) && self.parts.is_none() {
            head += &format!("content-length: {}\r\n", self.declared.unwrap_or(self.body.len()));
        }
        head += "\r\n";
        let (head1, head2) = head.as_bytes().split_at(head.len() / 2);
        let (body1, body2) = match bodiless {
            true => (&[][..], &[][..]),
            false => self.body.split_at(self.body.len() / 2),
        };
        self.take(Place::BeforeHeaders, socket).await?;
        // In one piece where nothing happens between the pieces, as real servers do.
        let mut pending = Vec::new();
        for (bytes, place) in [
            (head1, Place::WithinHeaders),
            (head2, Place::AfterHeaders),
            (body1, Place::WithinBody),
            (body2, Place::AfterBody),
        ] {
            pending.extend_from_slice(bytes);
            if place == Place::AfterBody || self.steps.iter().any(|step| step.0 == place) {
                socket.write_all(&pending).await?;
                pending.clear();
                self.take(place, socket).await?;
            }
        }
        match &self.parts {
            Some(parts) if !bodiless => give_parts(parts, socket).await,
            _ => Ok(()),
        }
    }

    async fn take(&self, place: Place, socket: &mut TcpStream) -> io::Result<()> {
        for (_, step) in self.steps.iter().filter(|step| step.0 == place) {
            step.take(socket).await?;
        }
        Ok(())
    }
}

impl Step {
    async fn take(self, socket: &mut TcpStream) -> io::Result<()> {
        match self {
            Self::Wait(wait) => tokio::time::sleep(wait).await,
            Self::Stall => std::future::pending().await,
            Self::Drip => loop {
                socket.write_all(b".").await?;
                tokio::time::sleep(Duration::from_millis(1)).await;
            },
            Self::Fin => return Err(io::ErrorKind::ConnectionAborted.into()),
            Self::Rst => {
                socket.set_zero_linger()?;
                return Err(io::ErrorKind::ConnectionReset.into());
            }
        }
        Ok(())
    }
}

async fn give_parts(parts: &[Part], socket: &mut TcpStream) -> io::Result<()> {
    let mut trailers = String::new();
    for part in parts {
        match part {
            Part::Data(data) => give_chunk(data, socket).await?,
            Part::Until(told) => told.notified().await,
            Part::Forever(data, every) => loop {
                give_chunk(data, socket).await?;
                tokio::time::sleep(*every).await;
            },
            Part::Trailer(name, value) => trailers += &format!("{name}: {value}\r\n"),
            Part::Then(step) => step.take(socket).await?,
        }
    }
    socket.write_all(format!("0\r\n{trailers}\r\n").as_bytes()).await
}

async fn give_chunk(data: &[u8], socket: &mut TcpStream) -> io::Result<()> {
    // An empty chunk would be the last.
    if data.is_empty() {
        return Ok(());
    }
    let head = format!("{:x}\r\n", data.len());
    socket.write_all(&[head.as_bytes(), data, b"\r\n"].concat()).await
}
