//! What it costs to look for keys in what a provider said: CPU time for each message, by the number
//! of keys, for messages as they usually are and for bodies made to be slow.
//!
//! `cargo bench -p reqwest-failover-bench --bench messages` prints the table; with `-- --check` it fails
//! where a body of 64 KiB costs more than [`MOST`].

use std::hint::black_box;
use std::time::{Duration, Instant};

#[path = "../../src"]
#[allow(dead_code, unreachable_pub, unused_imports)]
mod crate_source {
    pub(crate) mod message;
}

use crate_source::message::{Secrets, make_safe};

/// The most that 64 KiB may cost, looked through to their end, with 128 keys.
const MOST: Duration = Duration::from_millis(5);
const KEYS: [usize; 3] = [2, 16, 128];

fn main() {
    let check = std::env::args().any(|argument| argument == "--check");
    println!("{:<34} {:>10} {:>10} {:>10}", "time per message", "2 keys", "16 keys", "128 keys");
    println!("as a message is made, which looks at its first 4 KiB:");
    for (name, text) in usual().into_iter().chain(hostile()) {
        let times = KEYS.map(|count| {
            let secrets = Secrets::new(keys(count));
            time(|| drop(black_box(make_safe(black_box(&text), true, &secrets))))
        });
        print(name, times);
    }
    println!("all of 64 KiB looked through:");
    let mut slow = Vec::new();
    for (name, text) in hostile() {
        let times = KEYS.map(|count| {
            let secrets = Secrets::new(keys(count));
            time(|| _ = black_box(secrets.is_shown_in(black_box(&text))))
        });
        print(name, times);
        slow.extend(times.iter().any(|time| *time > MOST).then_some(name));
    }
    assert!(!check || slow.is_empty(), "more than {MOST:?}: {slow:?}");
}

fn print(name: &str, times: [Duration; 3]) {
    let [two, sixteen, all] = times.map(|time| format!("{:.2} µs", time.as_secs_f64() * 1e6));
    println!("{name:<34} {two:>10} {sixteen:>10} {all:>10}");
}

/// The least of several rounds: what else runs on the machine only adds to it.
fn time(mut call: impl FnMut()) -> Duration {
    let mut best = Duration::MAX;
    for _ in 0..7 {
        let (begun, mut calls) = (Instant::now(), 0);
        while calls < 3 || begun.elapsed() < Duration::from_millis(4) {
            call();
            calls += 1;
        }
        best = best.min(begun.elapsed() / calls);
    }
    best
}

/// Keys as vendors issue them: 51 random characters behind a word that all share.
fn keys(count: usize) -> Vec<String> {
    let mut random = 42_u64;
    let mut letter = move || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let all = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
        char::from(all[(random >> 33) as usize % all.len()])
    };
    (0..count)
        .map(|_| format!("sk-proj-{}", (0..43).map(|_| letter()).collect::<String>()))
        .collect()
}

fn usual() -> [(&'static str, String); 4] {
    let prose =
        "The model is overloaded with other requests at the moment: please try again later. ";
    let sized = |length: usize| prose.repeat(length / prose.len() + 1)[..length].to_owned();
    let page = "<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>\r\n<center>nginx</center>\r\n";
    [
        ("160 B of prose", sized(160)),
        ("1 KiB of prose", sized(1024)),
        ("4 KiB of prose", sized(4096)),
        ("1 KiB of HTML", page.repeat(16)[..1024].to_owned()),
    ]
}

fn hostile() -> [(&'static str, String); 7] {
    const SIZE: usize = 64 * 1024;
    let filled = |part: &str| part.repeat(SIZE / part.len());
    let key = &keys(1)[0];
    [
        ("its own key, over and over", filled(key)),
        ("parts of its key", filled(&format!("{} {} ", &key[..9], &key[20..31]))),
        ("beginnings of its key", filled("sk-proj-")),
        ("percent signs", filled("%25")),
        ("escapes within escapes", filled(r"%5Cu00252525&amp;#x25;\\\\u0073")),
        ("ampersands", filled("&")),
        ("characters that are not seen", filled("\u{200b}")),
    ]
}
