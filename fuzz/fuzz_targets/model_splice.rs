//! All but what is edited stays, byte for byte; what is a JSON object is edited as a parser sees it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value};

#[path = "../../src"]
#[allow(dead_code, unused_imports)]
mod library {
    pub(crate) mod splice;
}

use library::splice::{Edits, for_each_entry, splice};

const NEW: &str = "open/\"new\"\u{1f600}";

type Rename = fn(&str) -> Option<String>;
type Case = (&'static [(&'static str, &'static str)], &'static [&'static str], Rename);

const CASES: [Case; 5] = [
    (&[], &[], |_| Some(NEW.to_owned())),
    (&[("n", "2"), ("a\"\n", "{\"n\":[1.0]}")], &[], |_| None),
    (&[], &["n", "a"], |_| None),
    (&[("n", "2")], &["a", ""], |_| Some(NEW.to_owned())),
    (&[("model", "null")], &["n"], |_| Some(NEW.to_owned())),
];

fuzz_target!(|body: &[u8]| {
    for (set, remove, rename) in CASES {
        let set: Vec<_> =
            set.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        let remove: Vec<_> = remove.iter().map(|key| key.to_string()).collect();
        let edits = Edits { set: &set, remove: &remove, rename };
        check(body, splice(body, &edits), &edits);
    }
});

fn check(body: &[u8], spliced: Option<Vec<u8>>, edits: &Edits<'_, Rename>) {
    let Some(old) = entries(body) else {
        assert!(spliced.is_none(), "what is no object is left alone");
        return;
    };
    let expected: Vec<_> = old.iter().filter_map(|entry| edited(entry, edits)).collect();
    let is_there = |key: &str| old.iter().any(|(there, ..)| there == key);
    let added: Vec<_> = edits.set.iter().filter(|(key, _)| !is_there(key)).collect();
    let Some(spliced) = spliced else {
        assert!(added.is_empty() && expected.len() == old.len());
        assert!(old.iter().zip(&expected).all(|((_, value, _), (_, new))| value == new));
        return;
    };
    assert_ne!(spliced, body);
    let new = entries(&spliced).expect("an object stays one");
    let values: Vec<_> = new.iter().map(|(key, value, _)| (key.clone(), value.clone())).collect();
    let all: Vec<_> =
        expected.into_iter().chain(added.iter().map(|added| (*added).clone())).collect();
    assert_eq!(values, all);
    // As other parsers see it: of duplicates the last.
    let read = |body: &[u8]| serde_json::from_slice::<Map<String, Value>>(without_mark(body));
    if read(body).is_ok() {
        read(&spliced).expect("what a parser reads stays readable");
    }

    // Where nothing is removed, every byte between the values stays.
    if new.len() == old.len() + added.len() {
        let mut expected = body.to_vec();
        for ((_, old, at), (_, new)) in old.iter().zip(&all).rev() {
            expected.splice(*at..at + old.len(), new.bytes());
        }
        let end = new.iter().take(old.len()).last().map(|(_, value, at)| at + value.len());
        let end = end.unwrap_or_else(|| body.iter().position(|byte| *byte == b'{').unwrap() + 1);
        let tail = spliced.len() + end - expected.len();
        assert_eq!(spliced[..end], expected[..end]);
        assert_eq!(spliced[tail..], expected[end..]);
    }
}

fn edited((key, value, _): &Entry, edits: &Edits<'_, Rename>) -> Option<(String, String)> {
    let set = edits.set.iter().find(|(set, _)| set == key).map(|(_, value)| value.clone());
    let renamed = || {
        let model = serde_json::from_str::<String>(value).ok().filter(|_| key == "model")?;
        let renamed = (edits.rename)(&model).filter(|renamed| *renamed != model)?;
        Some(Value::from(renamed).to_string())
    };
    let value = set.or_else(renamed).unwrap_or_else(|| value.clone());
    (!edits.remove.contains(key)).then(|| (key.clone(), value))
}

fn without_mark(body: &[u8]) -> &[u8] {
    body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body)
}

/// A key, its value, and where that is.
type Entry = (String, String, usize);

/// The entries of an object, in order.
fn entries(body: &[u8]) -> Option<Vec<Entry>> {
    let text = str::from_utf8(body).ok()?;
    let mut entries = Vec::new();
    for_each_entry(text, |key, value| {
        let at = value.get().as_ptr().addr() - text.as_ptr().addr();
        entries.push((key.to_owned(), value.get().to_owned(), at));
    })
    .ok()?;
    Some(entries)
}
