//! A real Redis or Valkey on loopback, and a proxy before it that can fail as networks do.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::support::lock;

/// A server of its own, without a disk. It is killed when it is dropped.
pub struct RedisServer {
    child: Child,
    port: u16,
    settings: Vec<String>,
}

impl RedisServer {
    /// On a free port of 127.0.0.1, with these settings besides: `["--requirepass", "secret"]`. The
    /// variable `REDIS_SERVER` names the program, which is else `redis-server`.
    ///
    /// `None`, and a line that says so, where there is no such program; that is a failure where `CI` is set.
    pub fn start(settings: &[&str]) -> Option<Self> {
        let settings: Vec<String> = settings.iter().map(|word| (*word).to_owned()).collect();
        // A port is free until its server listens, and so one server starts after the other.
        static STARTING: Mutex<()> = Mutex::new(());
        let _starting = lock(&STARTING);
        for _ in 0..5 {
            let port = free_port();
            match spawn(port, &settings) {
                // Another program may have taken the port meanwhile.
                Ok(child) => {
                    let mut server = Self { child, port, settings: settings.clone() };
                    if server.is_ready() {
                        return Some(server);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    let name = program();
                    assert!(std::env::var_os("CI").is_none(), "{name} must be installed in CI");
                    println!("SKIPPED: {name} is not installed");
                    return None;
                }
                Err(error) => panic!("{}: {error}", program()),
            }
        }
        panic!("{} does not answer with {settings:?}", program())
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn addr(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// With SIGKILL, as a machine that is gone.
    pub fn kill(&mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it was started here");
    }

    /// Starts it again at its port after it was killed: empty.
    pub fn restart(&mut self) {
        self.child = spawn(self.port, &self.settings).expect("it was started before");
        assert!(self.is_ready(), "it does not answer after a restart");
    }

    /// It keeps its connections and answers nothing.
    pub fn pause(&self) {
        self.signal("-STOP");
    }

    pub fn resume(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.child.id().to_string()]).status();
        assert!(sent.expect("kill is there").success());
    }

    fn is_ready(&mut self) -> bool {
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline && matches!(self.child.try_wait(), Ok(None)) {
            if is_answered(self.addr()).unwrap_or(false) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        false
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        // It may have been killed before.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// What [`RedisServer::start`] starts.
pub fn program() -> String {
    std::env::var("REDIS_SERVER").unwrap_or_else(|_| "redis-server".into())
}

/// One to which a node of a cluster can add 10,000.
pub fn free_port() -> u16 {
    loop {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("127.0.0.1 is there");
        let port = listener.local_addr().expect("it is bound").port();
        if port < 55_000 {
            return port;
        }
    }
}

fn spawn(port: u16, settings: &[String]) -> io::Result<Child> {
    Command::new(program())
        // A file of settings must come first.
        .args(settings)
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
        .args(["--save", "", "--appendonly", "no", "--loglevel", "warning"])
        .current_dir(std::env::temp_dir())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
}

/// Whether it answers to PING, be it that a password is missing.
fn is_answered(addr: SocketAddr) -> io::Result<bool> {
    let mut socket = TcpStream::connect_timeout(&addr, Duration::from_secs(1))?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    socket.write_all(b"PING\r\n")?;
    let mut answer = [0; 5];
    socket.read_exact(&mut answer)?;
    Ok(matches!(&answer, b"+PONG" | b"-NOAU"))
}

/// A TCP proxy on loopback. It stops when it is dropped.
pub struct Proxy {
    addr: SocketAddr,
    mode: watch::Sender<Mode>,
    accept: JoinHandle<()>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Pass,
    /// What the server sends arrives this much later.
    Delay(Duration),
    /// Connections are accepted, and nothing passes in either direction.
    BlackHole,
    /// Nothing passes on the connections that there are; new ones are well.
    HalfOpen,
    /// The connections that there are, and new ones, are reset.
    Reset,
}

impl Proxy {
    pub async fn start(to: SocketAddr) -> Self {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.expect("127.0.0.1 is there");
        let addr = listener.local_addr().expect("it is bound");
        let (mode, modes) = watch::channel(Mode::Pass);
        let accept = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let modes = modes.clone();
                connections.spawn(async move {
                    // An error is how a connection ends.
                    _ = forward(client, to, modes).await;
                });
            }
        });
        Self { addr, mode, accept }
    }

    pub fn url(&self) -> String {
        format!("redis://{}", self.addr)
    }

    pub fn port(&self) -> u16 {
        self.addr.port()
    }

    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accept.abort();
    }
}

async fn forward(
    mut client: tokio::net::TcpStream,
    to: SocketAddr,
    mut modes: watch::Receiver<Mode>,
) -> io::Result<()> {
    client.set_nodelay(true)?;
    let mut server = tokio::net::TcpStream::connect(to).await?;
    server.set_nodelay(true)?;
    let (mut asked, mut answered) = ([0; 16 * 1024], [0; 16 * 1024]);
    // A connection that begins while others are half open is well.
    let mut mode = match *modes.borrow_and_update() {
        Mode::HalfOpen => Mode::Pass,
        mode => mode,
    };
    loop {
        if mode == Mode::Reset {
            return client.set_zero_linger();
        }
        let is_silent = matches!(mode, Mode::BlackHole | Mode::HalfOpen);
        tokio::select! {
            changed = modes.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                // A connection that was lost stays lost: what was swallowed is missing.
                let next = *modes.borrow_and_update();
                if !is_silent || next == Mode::Reset {
                    mode = next;
                }
            }
            read = client.read(&mut asked), if !is_silent => match read? {
                0 => return Ok(()),
                length => server.write_all(&asked[..length]).await?,
            },
            read = server.read(&mut answered), if !is_silent => match read? {
                0 => return Ok(()),
                length => {
                    if let Mode::Delay(by) = mode {
                        tokio::time::sleep(by).await;
                    }
                    client.write_all(&answered[..length]).await?;
                }
            },
        }
    }
}
