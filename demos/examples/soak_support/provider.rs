//! A provider that fails a share of its requests, each in a way of its own, and remembers which ones
//! it was sent.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use fastrand::Rng;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::ledger::Ledger;

/// The share of requests that fail, in percent.
pub(crate) const FAULTS: u8 = 30;

/// What every provider's key begins with.
const KEY: &str = "key-of-";

pub(crate) struct StandIn {
    pub(crate) name: &'static str,
    base_url: String,
    pub(crate) book: Arc<Book>,
}

/// What a provider knows at the end.
pub(crate) struct Book {
    own_key: String,
    pub(crate) received: Ledger,
    pub(crate) duplicates: AtomicU64,
    pub(crate) foreign_keys: AtomicU64,
    pub(crate) connections: AtomicU64,
    pub(crate) faults: AtomicU64,
    /// From now on every request is answered.
    pub(crate) well: AtomicBool,
}

#[derive(Clone, Copy)]
enum Does {
    Answer,
    Status(u16),
    LongError,
    Reset,
    Stall,
    CutBody,
}

impl StandIn {
    pub(crate) async fn start(name: &'static str, room: u64, seed: u64) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let base_url = format!("http://{}/v1", listener.local_addr()?);
        let book = Arc::new(Book {
            own_key: key_of(name),
            received: Ledger::of(room),
            duplicates: AtomicU64::new(0),
            foreign_keys: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            faults: AtomicU64::new(0),
            well: AtomicBool::new(false),
        });
        let kept = book.clone();
        tokio::spawn(async move {
            let mut rng = Rng::with_seed(seed);
            while let Ok((socket, _)) = listener.accept().await {
                kept.connections.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(serve(socket, kept.clone(), rng.fork()));
            }
        });
        Ok(Self { name, base_url, book })
    }

    pub(crate) fn base_url(&self) -> &str {
        &self.base_url
    }
}

pub(crate) fn key_of(name: &str) -> String {
    format!("{KEY}{name}")
}

impl Does {
    fn draw(rng: &mut Rng) -> Self {
        if rng.u8(..100) >= FAULTS {
            return Self::Answer;
        }
        match rng.u8(..FAULTS) {
            0..8 => Self::Status(500),
            8..11 => Self::Status(429),
            11..16 => Self::Reset,
            16..19 => Self::Stall,
            19..23 => Self::CutBody,
            23..27 => Self::LongError,
            _ => Self::Status(400),
        }
    }
}

async fn serve(mut socket: TcpStream, book: Arc<Book>, mut rng: Rng) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let mut read = Vec::with_capacity(2048);
    while let Some(length) = receive(&mut socket, &mut read).await? {
        let nonce = book.enter(&read[..length]);
        read.drain(..length);
        let does = match book.well.load(Ordering::Relaxed) {
            true => Does::Answer,
            false => Does::draw(&mut rng),
        };
        if !matches!(does, Does::Answer) {
            book.faults.fetch_add(1, Ordering::Relaxed);
        }
        pause(Duration::from_millis(rng.u64(5..50))).await;
        match does {
            Does::Answer => reply(&mut socket, 200, "", &body(nonce, "Hello!"), nonce).await?,
            Does::Status(429) => {
                let hint = "retry-after-ms: 1000\r\n";
                reply(&mut socket, 429, hint, &body(nonce, "Slow down."), nonce).await?;
            }
            Does::Status(status) => {
                reply(&mut socket, status, "", &body(nonce, "No."), nonce).await?;
            }
            Does::LongError => {
                reply(&mut socket, 503, "", &body(nonce, &"no ".repeat(5_000)), nonce).await?;
            }
            Does::CutBody => {
                let head = head(200, "", 1_000, nonce);
                socket.write_all(format!("{head}{}", body(nonce, "Hel")).as_bytes()).await?;
                return reset(&socket);
            }
            Does::Reset => return reset(&socket),
            Does::Stall => {
                // Until the client has had enough.
                while socket.read_buf(&mut read).await.is_ok_and(|length| length > 0) {}
                return reset(&socket);
            }
        }
    }
    Ok(())
}

/// Leaves nothing behind, not even a port that waits.
fn reset(socket: &TcpStream) -> io::Result<()> {
    socket.set_zero_linger()
}

/// Reads until one whole request is there; its length.
async fn receive(socket: &mut TcpStream, read: &mut Vec<u8>) -> io::Result<Option<usize>> {
    loop {
        if let Some(end) = find(read, b"\r\n\r\n") {
            let length = header(&read[..end], "content-length").and_then(|text| text.parse().ok());
            let whole = end + 4 + length.unwrap_or(0_usize);
            if read.len() >= whole {
                return Ok(Some(whole));
            }
        }
        if socket.read_buf(read).await? == 0 {
            return Ok(None);
        }
    }
}

impl Book {
    /// Writes down a request: its number, and whether it shows the key of another provider or caller.
    fn enter(&self, request: &[u8]) -> u64 {
        let text = String::from_utf8_lossy(request);
        let own = format!("Bearer {}", self.own_key);
        let shown = text.matches(KEY).count();
        if shown != 1 || header(request, "authorization").as_deref() != Some(&own) {
            self.foreign_keys.fetch_add(1, Ordering::Relaxed);
        }
        let nonce = header(request, "x-nonce").and_then(|nonce| nonce.parse().ok());
        let nonce = nonce.expect("every request has a number");
        assert!(text.ends_with(&format!(r#""nonce":{nonce}}}"#)), "its body is its own");
        if !self.received.enter(nonce) {
            self.duplicates.fetch_add(1, Ordering::Relaxed);
        }
        nonce
    }
}

fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).position(|window| window == part)
}

/// A header of a request as `reqwest` writes it.
fn header(head: &[u8], name: &str) -> Option<String> {
    let from = find(head, format!("\r\n{name}: ").as_bytes())? + name.len() + 4;
    let length = find(&head[from..], b"\r\n").unwrap_or(head.len() - from);
    String::from_utf8(head[from..from + length].to_vec()).ok()
}

fn body(nonce: u64, said: &str) -> String {
    format!(r#"{{"nonce":{nonce},"error":{{"message":"{said}"}}}}"#)
}

fn head(status: u16, header: &str, length: usize, nonce: u64) -> String {
    format!(
        "HTTP/1.1 {status} \r\n{header}content-type: application/json\r\nx-nonce: {nonce}\r\n\
         content-length: {length}\r\n\r\n"
    )
}

async fn reply(
    socket: &mut TcpStream,
    status: u16,
    header: &str,
    body: &str,
    nonce: u64,
) -> io::Result<()> {
    let head = head(status, header, body.len(), nonce);
    socket.write_all(format!("{head}{body}").as_bytes()).await
}

async fn pause(length: Duration) {
    tokio::time::sleep(length).await;
}
