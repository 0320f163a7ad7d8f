//! Servers in a process of their own, so that whatever is counted here is the client's alone.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// How long the servers hold back the body of a slow failure.
pub(crate) const HELD_BACK: Duration = Duration::from_millis(200);

/// Two servers in a child process, which ends with this one.
pub(crate) struct Servers {
    child: Child,
    pub(crate) ports: [u16; 2],
}

impl Servers {
    /// Runs this very program with `--serve`.
    pub(crate) fn start() -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .arg("--serve")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a process of its own");
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let mut ports = line.split_whitespace().map(|port| port.parse().expect("a port"));
        let ports = [ports.next().unwrap(), ports.next().unwrap()];
        Self { child, ports }
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Serves until standard input ends, as it does when the parent is gone.
pub(crate) fn serve() {
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listeners = [listen().await, listen().await];
        let [first, second] = listeners.each_ref().map(|one| one.local_addr().unwrap().port());
        println!("{first} {second}");
        let [first, second] = listeners.map(|listener| tokio::spawn(accept(listener)));
        let _ = tokio::join!(first, second);
    });
}

async fn listen() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.expect("a free port")
}

async fn accept(listener: TcpListener) {
    let accepted = Arc::new(AtomicU64::new(0));
    while let Ok((socket, _)) = listener.accept().await {
        accepted.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(answer(socket, accepted.clone()));
    }
}

/// The path says what is answered: `/fail-{bytes}/`, `/slow/`, `/connections`, or anything else.
async fn answer(mut socket: TcpStream, accepted: Arc<AtomicU64>) -> std::io::Result<()> {
    socket.set_nodelay(true)?;
    let mut read = Vec::with_capacity(4096);
    loop {
        let Some(end) = read.windows(4).position(|window| window == b"\r\n\r\n") else {
            if socket.read_buf(&mut read).await? == 0 {
                return Ok(());
            }
            continue;
        };
        let head = String::from_utf8_lossy(&read[..end]).into_owned();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let whole = end + 4 + length.map_or(0, |length| length.parse().unwrap());
        while read.len() < whole {
            socket.read_buf(&mut read).await?;
        }
        read.drain(..whole);
        let path = head.split(' ').nth(1).unwrap_or_default();
        let failed = path.strip_prefix("/fail-").and_then(|rest| rest.split('/').next());
        if let Some(bytes) = failed {
            write(&mut socket, 503, &error(bytes.parse().unwrap())).await?;
        } else if path.starts_with("/slow/") {
            socket.write_all(b"HTTP/1.1 503 \r\ncontent-length: 2\r\n\r\n").await?;
            tokio::time::sleep(HELD_BACK).await;
            socket.write_all(b"no").await?;
        } else if path == "/connections" {
            write(&mut socket, 200, &accepted.load(Ordering::Relaxed).to_string()).await?;
        } else {
            write(&mut socket, 200, r#"{"choices":[{"message":{"content":"Hello!"}}]}"#).await?;
        }
    }
}

/// An error of so many bytes as vendors write it; nothing at all of 0.
fn error(bytes: usize) -> String {
    let (before, after) = (r#"{"error":{"message":""#, r#""}}"#);
    let said = "The server had an error. ".chars().cycle();
    let said: String = said.take(bytes.saturating_sub(before.len() + after.len())).collect();
    if bytes == 0 { String::new() } else { format!("{before}{said}{after}") }
}

async fn write(socket: &mut TcpStream, status: u16, body: &str) -> std::io::Result<()> {
    let length = body.len();
    let answer = format!(
        "HTTP/1.1 {status} \r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    socket.write_all(answer.as_bytes()).await
}
