//! Finds one string at the top level of a JSON object, in as few steps as possible.
//!
//! This runs for every request of a chain with health keys, over bodies that hold long strings before
//! what is looked for, so it looks at many bytes at once, and at none behind what it finds. It does not
//! check what it skips: a body that is no JSON has no string here, or one that means nothing.

/// The string under this name, as bytes; of duplicates the first.
pub(crate) fn top_level_string(body: &[u8], name: &str) -> Option<Box<[u8]>> {
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    let mut at = behind(body, 0, b'{')?;
    loop {
        at = behind(body, at, b'"')?;
        let end = end_of_string(body, at)?;
        let key = &body[at..end];
        at = behind(body, end + 1, b':')?;
        if is_named(key, name.as_bytes()) {
            at = behind(body, at, b'"')?;
            return unescape(&body[at..end_of_string(body, at)?]);
        }
        at = behind(body, end_of_value(body, at)?, b',')?;
    }
}

#[inline]
fn is_named(key: &[u8], name: &[u8]) -> bool {
    // Shorter than `\\u006d` no letter is escaped.
    let is_long = key.len() >= name.len() + 5;
    key == name || is_long && key.contains(&b'\\') && unescape(key).is_some_and(|key| *key == *name)
}

/// What a string says that stands between these quotes.
fn unescape(string: &[u8]) -> Option<Box<[u8]>> {
    let (words, rest) = string.as_chunks();
    let mut words = words.iter();
    match words.any(|word| find_in(word, b'\\').is_some()) || rest.contains(&b'\\') {
        false => Some(string.into()),
        true => {
            let string: String = serde_json::from_slice(&[b"\"", string, b"\""].concat()).ok()?;
            Some(string.into_bytes().into())
        }
    }
}

/// The place behind this byte, which is the first from `at` on that is no whitespace.
#[inline]
fn behind(body: &[u8], mut at: usize, byte: u8) -> Option<usize> {
    loop {
        match *body.get(at)? {
            found if found == byte => return Some(at + 1),
            b' ' | b'\t' | b'\n' | b'\r' => at += 1,
            _ => return None,
        }
    }
}

/// The comma or the bracket behind the value that begins at `at`.
#[inline]
fn end_of_value(body: &[u8], mut at: usize) -> Option<usize> {
    let mut depth = 0usize;
    loop {
        match *body.get(at)? {
            b'"' => at = end_of_string(body, at + 1)?,
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.checked_sub(1)?,
            b',' if depth == 0 => return Some(at),
            _ => {}
        }
        at += 1;
    }
}

/// The quote that ends the string that begins at `begin`: the first that is not escaped.
#[inline]
fn end_of_string(body: &[u8], begin: usize) -> Option<usize> {
    // Most strings are short.
    let length = body.get(begin..)?.first_chunk().and_then(|words: &[u8; 2 * WORD]| {
        let (words, _) = words.as_chunks();
        find_in(&words[0], b'"').or_else(|| Some(WORD + find_in(&words[1], b'"')?))
    });
    match length {
        Some(0) => Some(begin),
        Some(length) if body[begin + length - 1] != b'\\' => Some(begin + length),
        _ => end_of_long_string(body, begin),
    }
}

#[inline(never)]
fn end_of_long_string(body: &[u8], begin: usize) -> Option<usize> {
    let mut at = begin;
    loop {
        at = next_quote(body, at)?;
        let before = body[begin..at].iter().rev();
        if before.take_while(|byte| **byte == b'\\').count() % 2 == 0 {
            return Some(at);
        }
        at += 1;
    }
}

/// The first quote from `at` on.
#[inline]
fn next_quote(body: &[u8], mut at: usize) -> Option<usize> {
    at += length_without_quotes::<128>(body.get(at..)?);
    at += length_without_quotes::<16>(&body[at..]);
    while let Some(word) = body[at..].first_chunk() {
        if let Some(quote) = find_in(word, b'"') {
            return Some(at + quote);
        }
        at += WORD;
    }
    Some(at + body[at..].iter().position(|byte| *byte == b'"')?)
}

const WORD: usize = 8;

/// Where a byte is first in a word.
#[inline]
fn find_in(word: &[u8; WORD], byte: u8) -> Option<usize> {
    const ONES: u64 = u64::MAX / 0xff;
    let zero_if_it = u64::from_le_bytes(*word) ^ (ONES * u64::from(byte));
    // A zero less one borrows its highest bit. Above the first zero, other bytes may do so, too.
    let found = zero_if_it.wrapping_sub(ONES) & !zero_if_it & ONES << 7;
    (found != 0).then_some(found.trailing_zeros() as usize / 8)
}

/// The length of the blocks of so many bytes at the beginning that have no quote.
#[inline]
fn length_without_quotes<const BLOCK: usize>(bytes: &[u8]) -> usize {
    let (blocks, _) = bytes.as_chunks::<BLOCK>();
    // Without a way out of it, the compiler makes a few vector operations of this.
    let is_without =
        |block: &&[u8; BLOCK]| block.iter().fold(0, |any, byte| any | u8::from(*byte == b'"')) == 0;
    BLOCK * blocks.iter().take_while(is_without).count()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Map, Value};

    use super::*;

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            prop_oneof!["name", "[\"\\\\{}\\[\\],: a-z\\n😀]{0,80}"].prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 6, |inner| {
            let key = prop_oneof!["name", "[\"\\\\{}a-z]{0,40}"];
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::vec((key, inner), 0..6)
                    .prop_map(|entries| Value::Object(entries.into_iter().collect::<Map<_, _>>())),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

        #[test]
        fn what_is_found_is_what_a_parser_finds(value in json(), pretty in any::<bool>()) {
            let text = match pretty {
                true => serde_json::to_string_pretty(&value).unwrap(),
                false => value.to_string(),
            };
            let expected = value.get("name").and_then(Value::as_str);
            let found = top_level_string(text.as_bytes(), "name");
            prop_assert_eq!(found.as_deref(), expected.map(str::as_bytes));
        }

        #[test]
        fn any_bytes_are_survived(body in prop::collection::vec(
            prop_oneof![any::<u8>(), prop::sample::select(b"{}[]\",:\\ name".to_vec())],
            0..200,
        )) {
            top_level_string(&body, "name");
            let in_object = [b"{\"", &*body].concat();
            top_level_string(&in_object, "name");
        }
    }

    #[test]
    fn a_name_is_found_in_whichever_way_it_is_escaped() {
        for (key, is_name) in [
            ("name", true),
            (r"\u006eame", true),
            (r"nam\u0065", true),
            (r"\u006e\u0061\u006d\u0065", true),
            (r"\u006eame\n", false),
            (r"\n\n\n\n\n\n", false),
            ("a_longer_name", false),
            ("nam", false),
        ] {
            let body = format!(r#"{{"{key}":"x"}}"#);
            let found = top_level_string(body.as_bytes(), "name");
            assert_eq!(found.as_deref(), is_name.then_some(&b"x"[..]), "{key}");
        }
    }

    #[test]
    fn the_end_of_a_string_is_found_wherever_it_is() {
        for length in 0..200 {
            let plain = "x".repeat(length);
            let quotes = "\"".repeat(300);
            for behind in ["", "\\", "\"", "y", &quotes] {
                let text = format!("{plain}\"{behind}");
                assert_eq!(end_of_string(text.as_bytes(), 0), Some(length));
            }
            let text = format!("{plain}\\\"{quotes}");
            assert_eq!(end_of_string(text.as_bytes(), 0), Some(length + 2));
            assert_eq!(end_of_string(plain.as_bytes(), 0), None);
            for escaped in 0..length {
                let (before, after) = plain.split_at(escaped);
                let text = format!("{before}\\\"{after}\\\\\"");
                assert_eq!(end_of_string(text.as_bytes(), 0), Some(length + 4), "{text}");
                let cut = format!("{before}\\\"{after}\\");
                assert_eq!(end_of_string(cut.as_bytes(), 0), None, "{cut}");
            }
        }
    }
}
