//! Keys that are recognised wherever they turn up, and a log that keeps every line.

use std::io::{self, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tracing_subscriber::filter::LevelFilter;

use super::{Server, lock};

/// A key like no other in this process. Whatever is done to it, cut, percent-encoded or embedded,
/// its core stays recognisable.
pub fn canary(owner: &str) -> String {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    format!("sk-{CORE}{:06x}Zz-{owner}+/9==", COUNT.fetch_add(1, Ordering::Relaxed))
}

/// The beginning of every canary's core.
pub const CORE: &str = "Kq7x";

/// Whether `text` holds the key: its core in plain (which percent-encoding leaves alone), or base64
/// of anything that holds the core.
pub fn holds_key(text: &str, key: &str) -> bool {
    let core = key.find(CORE).map_or(key, |at| &key[at..at + CORE.len() + 8]);
    let encoded = |shift: usize| {
        // Six bits a letter: those that share bits with a neighbour of the core are left out.
        let encoded = STANDARD.encode([&b"\0\0"[..shift], core.as_bytes()].concat());
        encoded[(shift * 8).div_ceil(6)..(shift + core.len()) * 8 / 6].to_owned()
    };
    text.contains(core) || (0..3).any(|shift| text.contains(&encoded(shift)))
}

/// No server was ever sent a key that is not its own.
#[track_caller]
pub fn assert_no_foreign_keys(servers: &[(&Server, &str)], keys: &[&str]) {
    for (server, own) in servers {
        for bytes in server.raw() {
            let text = String::from_utf8_lossy(&bytes);
            for key in keys.iter().filter(|key| *key != own) {
                assert!(!holds_key(&text, key), "{} was sent {key}: {text}", server.base_url(""));
            }
        }
    }
}

/// No text shows a key.
#[track_caller]
pub fn assert_no_key(text: &str, keys: &[&str]) {
    for key in keys {
        assert!(!holds_key(text, key), "{key} is shown in {text}");
    }
}

/// Every line that was logged in this process, at any level.
pub fn logs() -> String {
    String::from_utf8_lossy(&lock(keep_logs())).into_owned()
}

pub fn keep_logs() -> &'static Mutex<Vec<u8>> {
    static LOGS: OnceLock<&'static Mutex<Vec<u8>>> = OnceLock::new();
    LOGS.get_or_init(|| {
        let logs: &'static Mutex<Vec<u8>> = Box::leak(Box::default());
        tracing_subscriber::fmt()
            .with_ansi(false)
            .with_max_level(LevelFilter::TRACE)
            .with_writer(move || Appender(logs))
            .init();
        logs
    })
}

struct Appender(&'static Mutex<Vec<u8>>);

impl Write for Appender {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        lock(self.0).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
