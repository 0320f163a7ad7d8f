//! Looks for keys in everything that anyone can see, while it is written: a log that is searched
//! line by line need not be kept.

use std::io::{self, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tracing_subscriber::filter::LevelFilter;

use crate::support::canary::{CORE, canary, holds_key};
use crate::support::lock;

/// The keys of one cell, and where any of them was seen.
pub(crate) struct Sightings {
    keys: Vec<String>,
    callers: [String; 3],
    seen: Mutex<Vec<String>>,
    lines: AtomicUsize,
}

impl Sightings {
    pub(crate) fn of(keys: &[String], callers: &[String; 3]) -> Self {
        Self {
            keys: [keys, callers].concat(),
            callers: callers.clone(),
            seen: Mutex::default(),
            lines: AtomicUsize::new(0),
        }
    }

    /// Every provider's key, then the caller's own credentials.
    pub(crate) fn keys(&self) -> &[String] {
        &self.keys
    }

    pub(crate) fn callers(&self) -> &[String; 3] {
        &self.callers
    }

    /// Where a key was seen.
    pub(crate) fn seen(&self) -> Vec<String> {
        lock(&self.seen).clone()
    }

    /// How many lines were logged.
    #[cfg_attr(not(feature = "tracing"), expect(dead_code, reason = "there are none"))]
    pub(crate) fn lines(&self) -> usize {
        self.lines.load(Ordering::SeqCst)
    }

    pub(crate) fn look_at(&self, place: &str, text: &str) {
        // Most lines show no key of any cell, and there are many of them.
        if !marks().iter().any(|mark| text.contains(mark)) {
            return;
        }
        for key in &self.keys {
            if holds_key(text, key) {
                lock(&self.seen).push(format!("{key} in {place}: {text}"));
            }
        }
    }

    /// Whatever this thread logs is looked at until the guard is dropped.
    pub(crate) fn watch_log(self: &Arc<Self>) -> tracing::subscriber::DefaultGuard {
        let sightings = self.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_max_level(LevelFilter::TRACE)
            .with_writer(move || Lines(sightings.clone()))
            .finish();
        tracing::subscriber::set_default(subscriber)
    }
}

/// What every text that shows a key holds: the beginning of all of them, in plain or in base64.
fn marks() -> &'static [String; 4] {
    static MARKS: OnceLock<[String; 4]> = OnceLock::new();
    MARKS.get_or_init(|| {
        let encoded = |shift: usize| {
            let encoded = STANDARD.encode([&b"\0\0"[..shift], CORE.as_bytes()].concat());
            // Letters that share bits with a neighbour are left out.
            encoded[(shift * 8).div_ceil(6)..(shift + CORE.len()) * 8 / 6].to_owned()
        };
        [CORE.to_owned(), encoded(0), encoded(1), encoded(2)]
    })
}

struct Lines(Arc<Sightings>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lines.fetch_add(1, Ordering::SeqCst);
        self.0.look_at("a log line", &String::from_utf8_lossy(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_key_is_seen_in_plain_and_in_base64() {
    let keys = [canary("seen")];
    for before in ["", "a", "ab", "abc"] {
        let sightings = Sightings::of(&keys, &["bearer", "cookie", "query"].map(canary));
        sightings.look_at("nothing", "sk-something-else, a2V5");
        assert_eq!(sightings.seen().len(), 0);
        sightings.look_at("plain", &format!("{before}{}", keys[0]));
        sightings.look_at("base64", &STANDARD.encode(format!("{before}{}", keys[0])));
        assert_eq!(sightings.seen().len(), 2, "{before}");
    }
}
