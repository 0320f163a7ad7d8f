//! Looks for keys in everything that anyone can see, while it is written: a log that is searched
//! line by line need not be kept.

use std::io::{self, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tracing_subscriber::filter::LevelFilter;

use crate::support::canary::holds_key;
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
    pub(crate) fn lines(&self) -> usize {
        self.lines.load(Ordering::SeqCst)
    }

    pub(crate) fn look_at(&self, place: &str, text: &str) {
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
