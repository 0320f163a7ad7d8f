//! What a server does to a connection in place of answering as it should: bytes, pauses and ends.

use std::io;
use std::sync::LazyLock;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// One thing that is done to a connection.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    Send(Vec<u8>),
    Wait(Duration),
    /// Says nothing more, and keeps the connection open until the client has had enough.
    Stall,
    /// The same bytes again and again for as long as anyone listens.
    Again(Vec<u8>, Duration),
    Fin,
    Rst,
}

/// How a connection ends.
#[derive(Debug)]
pub(crate) enum End {
    Fin,
    Rst,
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> Self {
        Self::Fin
    }
}

/// Whom a request came to: what its answers may speak of.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) server: &'static str,
    pub(crate) key: String,
}

impl Asked {
    /// A status line, the server's name, these header lines, and the end of the headers.
    pub(crate) fn head(&self, status: impl ToString, lines: &[&str]) -> Vec<u8> {
        let mut head = self.unfinished_head(status, lines);
        head.extend_from_slice(b"\r\n");
        head
    }

    /// The same without the empty line that ends the headers.
    pub(crate) fn unfinished_head(&self, status: impl ToString, lines: &[&str]) -> Vec<u8> {
        let mut head =
            format!("HTTP/1.1 {} Scripted\r\nx-server: {}\r\n", status.to_string(), self.server);
        for line in lines {
            head += &format!("{line}\r\n");
        }
        head.into_bytes()
    }

    /// A complete answer whose body has a known length.
    pub(crate) fn answer(&self, status: u16, lines: &[&str], body: impl AsRef<[u8]>) -> Vec<Act> {
        let body = body.as_ref();
        let length = format!("content-length: {}", body.len());
        let mut bytes = self.head(status, &[lines, &[&length]].concat());
        bytes.extend_from_slice(body);
        vec![Act::Send(bytes)]
    }

    /// An error in the vendors' form, which says the key aloud.
    pub(crate) fn refusal(&self, status: u16, lines: &[&str]) -> Vec<Act> {
        let body = self.said(status);
        self.answer(status, &[lines, &[JSON]].concat(), body)
    }

    /// The body of a refusal.
    pub(crate) fn said(&self, code: u16) -> String {
        let (server, key) = (self.server, &self.key);
        format!(r#"{{"error":{{"message":"{server} says no to {key}","code":{code}}}}}"#)
    }

    pub(crate) fn fine(&self) -> Vec<Act> {
        self.answer(200, &[JSON], self.fine_body())
    }

    pub(crate) fn fine_body(&self) -> String {
        format!(r#"{{"answer":"fine","server":"{}"}}"#, self.server)
    }

    /// The headers of a chunked body, then these chunks, without the last one.
    pub(crate) fn chunked(&self, status: u16, kind: &str, chunks: &[&[u8]]) -> Vec<u8> {
        let mut bytes = self.head(status, &[kind, "transfer-encoding: chunked"]);
        chunks.iter().for_each(|data| bytes.extend(chunk(data)));
        bytes
    }
}

pub(crate) const JSON: &str = "content-type: application/json";
pub(crate) const EVENTS: &str = "content-type: text/event-stream";

pub(crate) fn chunk(data: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", data.len()).as_bytes(), data, b"\r\n"].concat()
}

pub(crate) const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Does all of it. Tells `sent` of every byte that went out.
pub(crate) async fn perform<S: AsyncRead + AsyncWrite + Unpin>(
    acts: &[Act],
    io: &mut S,
    sent: &(dyn Fn(usize) + Sync),
) -> Result<(), End> {
    for act in acts {
        match act {
            Act::Send(bytes) => send(bytes, io, sent).await?,
            Act::Wait(length) => tokio::time::sleep(*length).await,
            Act::Stall => return Err(sink(io).await),
            Act::Again(bytes, every) => loop {
                send(bytes, io, sent).await?;
                tokio::time::sleep(*every).await;
            },
            Act::Fin => return Err(End::Fin),
            Act::Rst => return Err(End::Rst),
        }
    }
    Ok(())
}

async fn send<S: AsyncWrite + Unpin>(
    mut bytes: &[u8],
    io: &mut S,
    sent: &(dyn Fn(usize) + Sync),
) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = io.write(bytes).await?;
        sent(written);
        bytes = &bytes[written..];
    }
    io.flush().await
}

/// Reads and forgets until the client goes.
async fn sink<S: AsyncRead + Unpin>(io: &mut S) -> End {
    let mut buffer = [0; 16 * 1024];
    while let Ok(1..) = io.read(&mut buffer).await {}
    End::Fin
}

/// A gzip stream without an end that inflates to 64 MiB: 258 bytes for every 13 bits.
pub(crate) fn gzip_bomb() -> &'static [u8] {
    static BOMB: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let mut bits = Bits::default();
        // A block with the fixed codes, not the last one; the letter `a`.
        bits.push_low_first(0b010, 3);
        bits.push_high_first(0b1001_0001, 8);
        for _ in 0..(64 << 20) / 258 {
            // "The last byte 258 times": a length and a distance.
            bits.push_high_first(0b1100_0101, 8);
            bits.push_high_first(0, 5);
        }
        [&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255], &*bits.bytes].concat()
    });
    &BOMB
}

#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    used: usize,
}

impl Bits {
    fn push(&mut self, bit: bool) {
        if self.used.is_multiple_of(8) {
            self.bytes.push(0);
        }
        if let Some(last) = self.bytes.last_mut() {
            *last |= u8::from(bit) << (self.used % 8);
        }
        self.used += 1;
    }

    fn push_low_first(&mut self, value: u32, length: u32) {
        (0..length).for_each(|at| self.push(value >> at & 1 == 1));
    }

    fn push_high_first(&mut self, value: u32, length: u32) {
        (0..length).rev().for_each(|at| self.push(value >> at & 1 == 1));
    }
}
