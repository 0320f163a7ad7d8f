//! A scripted provider on a real socket.
//!
//! `wiremock` answers well-formed requests with well-formed responses. What a failover layer meets
//! is a connection that ends in the middle of a header, so this server can stop, stall, close and
//! reset anywhere, and it keeps every byte that ever arrived, whether it parsed or not.

mod answer;
pub mod canary;
pub mod harness;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

pub use answer::{Answer, Part, Place, Step};

/// A server that answers by a script and remembers every byte. It stops when it is dropped.
pub struct Server {
    addr: SocketAddr,
    seen: Arc<Seen>,
    accept: JoinHandle<()>,
}

impl Server {
    /// On 127.0.0.1. The script is one answer, a list of them (the last one repeats), or a closure
    /// of the request.
    pub async fn start(script: impl Into<Script>) -> Self {
        canary::keep_logs();
        Self::quiet(script).await.expect("127.0.0.1 is there")
    }

    /// As [`start`](Self::start), in a program that has a log of its own: none is kept for
    /// [`canary::logs`].
    pub async fn quiet(script: impl Into<Script>) -> io::Result<Self> {
        Self::bind(Ipv4Addr::LOCALHOST.into(), script).await
    }

    /// On `[::1]`; `None`, and a line that says so, where this machine has no IPv6.
    pub async fn start_v6(script: impl Into<Script>) -> Option<Self> {
        canary::keep_logs();
        match Self::bind(Ipv6Addr::LOCALHOST.into(), script).await {
            Ok(server) => Some(server),
            Err(error) => {
                println!("skipped: no [::1] on this machine: {error}");
                None
            }
        }
    }

    async fn bind(ip: IpAddr, script: impl Into<Script>) -> io::Result<Self> {
        let listener = TcpListener::bind((ip, 0)).await?;
        let addr = listener.local_addr()?;
        let seen = Arc::new(Seen::default());
        let script = script.into();
        let accept = tokio::spawn({
            let seen = seen.clone();
            async move {
                let mut connections = JoinSet::new();
                while let Ok((socket, _)) = listener.accept().await {
                    let connection = seen.open();
                    let (seen, script) = (seen.clone(), script.clone());
                    connections.spawn(async move {
                        let _ = serve(socket, connection, &seen, &script).await;
                    });
                }
            }
        });
        Ok(Self { addr, seen, accept })
    }

    /// `http://127.0.0.1:port` and the prefix, as it is.
    pub fn base_url(&self, prefix: &str) -> String {
        format!("http://{}{prefix}", self.addr)
    }

    pub fn port(&self) -> u16 {
        self.addr.port()
    }

    /// How many connections were ever accepted.
    pub fn connections(&self) -> usize {
        lock(&self.seen.raw).len()
    }

    /// The requests that arrived whole, in order of arrival.
    pub fn requests(&self) -> Vec<Received> {
        lock(&self.seen.requests).clone()
    }

    /// The one request that arrived whole.
    pub fn only_request(&self) -> Received {
        let requests = self.requests();
        assert_eq!(requests.len(), 1, "requests at {}: {requests:?}", self.addr);
        requests.into_iter().next().unwrap()
    }

    /// Every byte that arrived, per connection.
    pub fn raw(&self) -> Vec<Vec<u8>> {
        lock(&self.seen.raw).clone()
    }

    /// Closes every connection and accepts no more.
    pub fn hang_up(&self) {
        self.accept.abort();
    }

    /// Waits, at most two seconds, until `condition` holds.
    pub async fn until(&self, condition: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(2);
        while !condition(self) {
            assert!(Instant::now() < deadline, "waited in vain; requests: {:?}", self.requests());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.hang_up();
    }
}

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Received {
    /// The how-manieth request of its server, from 0.
    pub index: usize,
    pub method: String,
    /// Path and query, byte for byte.
    pub target: String,
    pub headers: Vec<(String, String)>,
    /// Without the framing of a chunked body.
    pub body: Vec<u8>,
}

impl Received {
    /// The values of a header, in order.
    pub fn all(&self, name: &str) -> Vec<&str> {
        let same = |found: &&(String, String)| found.0.eq_ignore_ascii_case(name);
        self.headers.iter().filter(same).map(|(_, value)| value.as_str()).collect()
    }

    /// The value of a header that came at most once.
    pub fn header(&self, name: &str) -> Option<&str> {
        let all = self.all(name);
        assert!(all.len() < 2, "{name} came more than once: {all:?}");
        all.first().copied()
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("a body in UTF-8")
    }
}

/// What a server does with each request.
#[derive(Clone)]
pub struct Script(Arc<dyn Fn(&Received) -> Answer + Send + Sync>);

impl From<Answer> for Script {
    fn from(answer: Answer) -> Self {
        Self(Arc::new(move |_| answer.clone()))
    }
}

impl From<Vec<Answer>> for Script {
    fn from(answers: Vec<Answer>) -> Self {
        Self(Arc::new(move |request| answers[request.index.min(answers.len() - 1)].clone()))
    }
}

impl<F: Fn(&Received) -> Answer + Send + Sync + 'static> From<F> for Script {
    fn from(script: F) -> Self {
        Self(Arc::new(script))
    }
}

#[derive(Default)]
struct Seen {
    raw: Mutex<Vec<Vec<u8>>>,
    requests: Mutex<Vec<Received>>,
}

impl Seen {
    fn open(&self) -> usize {
        let mut raw = lock(&self.raw);
        raw.push(Vec::new());
        raw.len() - 1
    }
}

/// Serves one connection until either side has had enough; an error is how it ends.
async fn serve(
    mut socket: TcpStream,
    connection: usize,
    seen: &Seen,
    script: &Script,
) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let mut reader = Reader { unread: Vec::new(), connection, seen };
    loop {
        let head = reader.through(&mut socket, b"\r\n\r\n").await?;
        let head = String::from_utf8_lossy(&head).into_owned();
        let mut lines = head.trim_end().split("\r\n");
        let mut first = lines.next().unwrap_or_default().split(' ').map(str::to_owned);
        let headers = lines.filter_map(|line| line.split_once(':'));
        let mut received = Received {
            index: 0,
            method: first.next().unwrap_or_default(),
            target: first.next().unwrap_or_default(),
            headers: headers.map(|(k, v)| (k.to_owned(), v.trim().to_owned())).collect(),
            body: Vec::new(),
        };
        if received.header("transfer-encoding") == Some("chunked") {
            loop {
                let size = reader.through(&mut socket, b"\r\n").await?;
                let size = String::from_utf8_lossy(&size);
                let size = usize::from_str_radix(size.trim(), 16).map_err(io::Error::other)?;
                let chunk = reader.exactly(&mut socket, size + 2).await?;
                received.body.extend_from_slice(&chunk[..size]);
                if size == 0 {
                    break;
                }
            }
        } else if let Some(length) = received.header("content-length") {
            let length = length.parse().map_err(io::Error::other)?;
            received.body = reader.exactly(&mut socket, length).await?;
        }
        {
            let mut requests = lock(&seen.requests);
            received.index = requests.len();
            requests.push(received.clone());
        }
        (script.0)(&received).give(&mut socket, received.method == "HEAD").await?;
    }
}

struct Reader<'a> {
    unread: Vec<u8>,
    connection: usize,
    seen: &'a Seen,
}

impl Reader<'_> {
    async fn through(&mut self, socket: &mut TcpStream, end: &[u8]) -> io::Result<Vec<u8>> {
        loop {
            if let Some(at) = find(&self.unread, end) {
                return Ok(self.unread.drain(..at + end.len()).collect());
            }
            self.more(socket).await?;
        }
    }

    async fn exactly(&mut self, socket: &mut TcpStream, length: usize) -> io::Result<Vec<u8>> {
        while self.unread.len() < length {
            self.more(socket).await?;
        }
        Ok(self.unread.drain(..length).collect())
    }

    async fn more(&mut self, socket: &mut TcpStream) -> io::Result<()> {
        let mut buffer = [0; 16 * 1024];
        let read = socket.read(&mut buffer).await?;
        self.unread.extend_from_slice(&buffer[..read]);
        lock(&self.seen.raw)[self.connection].extend_from_slice(&buffer[..read]);
        if read == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }
}

/// An address of 127.0.0.1 that refuses connections for as long as this lives: bound, so that
/// no other test is given it, and never listening.
pub struct Refusing(TcpSocket);

impl Refusing {
    pub fn start() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        Self(socket)
    }

    pub fn base_url(&self, prefix: &str) -> String {
        format!("http://{}{prefix}", self.0.local_addr().unwrap())
    }
}

fn find(hay: &[u8], needle: &[u8]) -> Option<usize> {
    hay.windows(needle.len()).position(|window| window == needle)
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
