//! The three servers of a cell: TCP or TLS, with every byte that arrived, and with faults that end
//! when the cell says so.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use crate::cell::UPLOADED;
use crate::http2::{self, Http2};
use crate::script::{Act, Asked, End, perform};
use crate::support::{Received, lock};
use crate::tls::{self, Certificate};

/// What goes wrong at a server.
#[derive(Clone)]
pub(crate) enum Fault {
    /// Nothing listens.
    Refuses,
    /// The server's name leads nowhere.
    Nameless,
    Certificate(Certificate),
    /// In place of a TLS handshake.
    Handshake(Vec<Act>),
    /// As soon as the headers and some of the body have arrived.
    Upload(Acts),
    /// Once the whole request has arrived.
    Reply(Acts),
    Http2(Http2),
}

pub(crate) type Acts = Arc<dyn Fn(&Asked) -> Vec<Act> + Send + Sync>;

/// What the servers of a cell speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wire {
    Http1,
    Tls,
    Http2,
}

/// One provider's server. It stops when it is dropped.
pub(crate) struct Server {
    pub(crate) seen: Arc<Seen>,
    addr: SocketAddr,
    /// Until there is a listener.
    idle: Mutex<Option<TcpSocket>>,
    accept: Mutex<Option<JoinHandle<()>>>,
}

/// What a server saw and did.
pub(crate) struct Seen {
    pub(crate) asked: Asked,
    wire: Wire,
    /// `None` for a server that is healthy throughout.
    fault: Option<Fault>,
    healthy: AtomicBool,
    raw: Mutex<Vec<Vec<u8>>>,
    heads: AtomicUsize,
    requests: Mutex<Vec<Received>>,
    open: AtomicUsize,
    sent: AtomicU64,
}

impl Server {
    /// Must be called on the runtime that serves.
    pub(crate) fn start(asked: Asked, wire: Wire, fault: Option<Fault>) -> io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        // So that it soon shows when nothing is read.
        socket.set_send_buffer_size(64 * 1024)?;
        socket.set_recv_buffer_size(64 * 1024)?;
        socket.bind((Ipv4Addr::LOCALHOST, 0).into())?;
        let addr = socket.local_addr()?;
        let refuses = matches!(fault, Some(Fault::Refuses));
        let seen = Seen {
            asked,
            wire,
            fault,
            healthy: AtomicBool::new(false),
            raw: Mutex::default(),
            heads: AtomicUsize::new(0),
            requests: Mutex::default(),
            open: AtomicUsize::new(0),
            sent: AtomicU64::new(0),
        };
        let server = Self {
            seen: Arc::new(seen),
            addr,
            idle: Mutex::new(Some(socket)),
            accept: Mutex::default(),
        };
        if !refuses {
            server.listen()?;
        }
        Ok(server)
    }

    /// Begins or ends the fault.
    pub(crate) fn set_healthy(&self, healthy: bool) -> io::Result<()> {
        self.seen.healthy.store(healthy, Ordering::SeqCst);
        if healthy { self.listen() } else { Ok(()) }
    }

    pub(crate) fn base_url(&self) -> String {
        let (name, port) = (self.seen.asked.server, self.addr.port());
        match (&self.seen.fault, self.seen.wire) {
            (Some(Fault::Nameless), _) => format!("http://{name}.invalid:{port}/v1"),
            (_, Wire::Tls) => format!("https://127.0.0.1:{port}/v1"),
            _ => format!("http://127.0.0.1:{port}/v1"),
        }
    }

    fn listen(&self) -> io::Result<()> {
        let Some(socket) = lock(&self.idle).take() else { return Ok(()) };
        let listener = socket.listen(64)?;
        let seen = self.seen.clone();
        *lock(&self.accept) = Some(tokio::spawn(accept(listener, seen)));
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(accept) = lock(&self.accept).take() {
            accept.abort();
        }
    }
}

impl Seen {
    /// Whether this server has the cell's fault, now or at another time.
    pub(crate) fn is_faulty(&self) -> bool {
        self.fault.is_some()
    }

    pub(crate) fn is_healthy(&self) -> bool {
        self.fault.is_none() || self.healthy.load(Ordering::SeqCst)
    }

    /// How many requests' headers have arrived.
    pub(crate) fn heads(&self) -> usize {
        self.heads.load(Ordering::SeqCst)
    }

    /// The requests that arrived whole.
    pub(crate) fn requests(&self) -> Vec<Received> {
        lock(&self.requests).clone()
    }

    /// All that arrived, decrypted, and from HTTP/2 decompressed.
    pub(crate) fn raw(&self) -> Vec<u8> {
        lock(&self.raw).concat()
    }

    pub(crate) fn open_connections(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    /// How many bytes were handed to the sockets.
    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::SeqCst)
    }

    pub(crate) fn count_sent(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Ordering::SeqCst);
    }

    pub(crate) fn open_log(&self) -> usize {
        let mut raw = lock(&self.raw);
        raw.push(Vec::new());
        raw.len() - 1
    }

    pub(crate) fn log(&self, connection: usize, bytes: &[u8]) {
        // A large upload is one letter again and again, which no key is.
        if !UPLOADED.starts_with(bytes) {
            lock(&self.raw)[connection].extend_from_slice(bytes);
        }
    }

    pub(crate) fn count_head(&self) {
        self.heads.fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn keep(&self, received: Received) {
        lock(&self.requests).push(received);
    }

    /// What goes wrong at this moment.
    pub(crate) fn fault(&self) -> Option<&Fault> {
        self.fault.as_ref().filter(|_| !self.is_healthy())
    }
}

async fn accept(listener: TcpListener, seen: Arc<Seen>) {
    let mut connections = JoinSet::new();
    while let Ok((socket, _)) = listener.accept().await {
        let seen = seen.clone();
        connections.spawn(async move {
            let open = Open::count(&seen);
            let _ = connection(socket, &seen).await;
            drop(open);
        });
    }
}

/// Counts a connection for as long as it lives.
struct Open<'a>(&'a Seen);

impl<'a> Open<'a> {
    fn count(seen: &'a Seen) -> Self {
        seen.open.fetch_add(1, Ordering::SeqCst);
        Self(seen)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn connection(mut socket: TcpStream, seen: &Arc<Seen>) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let end = match seen.wire {
        Wire::Http1 => serve(&mut socket, seen).await,
        Wire::Http2 => http2::serve(&mut socket, seen).await,
        Wire::Tls => match seen.fault() {
            Some(Fault::Handshake(acts)) => {
                let count = |bytes| seen.count_sent(bytes);
                perform(acts, &mut socket, &count).await.err().unwrap_or(End::Fin)
            }
            fault => {
                let certificate = match fault {
                    Some(Fault::Certificate(certificate)) => *certificate,
                    _ => Certificate::Good,
                };
                let acceptor = TlsAcceptor::from(tls::server(certificate));
                let mut stream = acceptor.accept(socket).await?;
                let end = serve(&mut stream, seen).await;
                socket = stream.into_inner().0;
                end
            }
        },
    };
    match end {
        End::Rst => socket.set_zero_linger(),
        End::Fin => Ok(()),
    }
}

/// Serves HTTP/1.1 until either side has had enough.
async fn serve<S: AsyncRead + AsyncWrite + Unpin>(io: &mut S, seen: &Seen) -> End {
    let reader = Reader { unread: Vec::new(), connection: seen.open_log(), seen };
    match requests(io, reader).await {
        Err(end) => end,
        Ok(never) => match never {},
    }
}

async fn requests<S: AsyncRead + AsyncWrite + Unpin>(
    io: &mut S,
    mut reader: Reader<'_>,
) -> Result<std::convert::Infallible, End> {
    let seen = reader.seen;
    let count = |bytes| seen.count_sent(bytes);
    loop {
        let mut received = reader.head(io).await?;
        seen.count_head();
        if let Some(Fault::Upload(acts)) = seen.fault() {
            reader.more(io).await?;
            perform(&acts(&seen.asked), io, &count).await?;
        }
        let length = received.header("content-length").and_then(|length| length.parse().ok());
        received.body = reader.exactly(io, length.unwrap_or(0)).await?;
        seen.keep(received);
        let acts = match seen.fault() {
            Some(Fault::Reply(acts)) => acts(&seen.asked),
            _ => seen.asked.fine(),
        };
        perform(&acts, io, &count).await?;
    }
}

struct Reader<'a> {
    unread: Vec<u8>,
    connection: usize,
    seen: &'a Seen,
}

impl Reader<'_> {
    async fn head<S: AsyncRead + Unpin>(&mut self, io: &mut S) -> io::Result<Received> {
        let end = loop {
            match self.unread.windows(4).position(|window| window == b"\r\n\r\n") {
                Some(at) => break at + 4,
                None => self.more(io).await?,
            }
        };
        let head: Vec<u8> = self.unread.drain(..end).collect();
        let head = String::from_utf8_lossy(&head).into_owned();
        let mut lines = head.trim_end().split("\r\n");
        let mut first = lines.next().unwrap_or_default().split(' ').map(str::to_owned);
        let headers = lines.filter_map(|line| line.split_once(':'));
        Ok(Received {
            index: 0,
            method: first.next().unwrap_or_default(),
            target: first.next().unwrap_or_default(),
            headers: headers.map(|(k, v)| (k.to_owned(), v.trim().to_owned())).collect(),
            body: Vec::new(),
        })
    }

    async fn exactly<S: AsyncRead + Unpin>(
        &mut self,
        io: &mut S,
        length: usize,
    ) -> io::Result<Vec<u8>> {
        while self.unread.len() < length {
            self.more(io).await?;
        }
        Ok(self.unread.drain(..length).collect())
    }

    async fn more<S: AsyncRead + Unpin>(&mut self, io: &mut S) -> io::Result<()> {
        let mut buffer = [0; 16 * 1024];
        let read = io.read(&mut buffer).await?;
        self.unread.extend_from_slice(&buffer[..read]);
        self.seen.log(self.connection, &buffer[..read]);
        if read == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }
}
