//! All but the model's span stays, byte for byte; what is JSON with a model is spliced.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::Value;

#[path = "../../src/splice.rs"]
#[allow(dead_code)]
mod splice;

const NEW: &str = "open/\"new\"\u{1f600}";

fuzz_target!(|body: &[u8]| {
    let parsed = str::from_utf8(body).ok().and_then(|text| {
        serde_json::from_str::<Value>(text.strip_prefix('\u{feff}').unwrap_or(text)).ok()
    });
    assert_eq!(splice::splice_model(body, |_| None), None);
    let Some(spliced) = splice::splice_model(body, |_| Some(NEW)) else {
        let model = parsed.as_ref().and_then(|parsed| parsed.get("model")?.as_str());
        assert!(model.is_none_or(|model| model == NEW));
        return;
    };
    let (old, new) = (entries(body), entries(&spliced));
    assert_eq!(old.len(), new.len());
    let mut expected = body.to_vec();
    for ((key, old), (new_key, new)) in old.iter().zip(&new).rev() {
        assert_eq!(key, new_key);
        let renamed = key == "model" && serde_json::from_str::<String>(&old.1).is_ok();
        if renamed {
            assert_eq!(serde_json::from_str::<String>(&new.1).unwrap(), NEW);
            if old.1 != new.1 && serde_json::from_str::<String>(&old.1).unwrap() != NEW {
                expected.splice(old.0..old.0 + old.1.len(), new.1.bytes());
            }
        } else {
            assert_eq!(old.1, new.1);
        }
    }
    assert_eq!(expected, spliced);
});

type Entry = (String, (usize, String));

/// Each key with its value's place and text.
fn entries(body: &[u8]) -> Vec<Entry> {
    let text = str::from_utf8(body).unwrap();
    let mut entries = Vec::new();
    splice::for_each_entry(text, |key, value| {
        let at = value.get().as_ptr().addr() - text.as_ptr().addr();
        entries.push((key.to_owned(), (at, value.get().to_owned())));
    })
    .unwrap();
    entries
}
