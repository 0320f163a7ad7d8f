//! What a provider or the transport said went wrong, made safe to show: keys redacted, control
//! characters escaped, and short.
//!
//! Vendors echo keys in their error bodies, and a URL's query may hold one, so nothing that comes
//! from outside is shown before every secret that the chain knows was looked for in it.

use std::error::Error as StdError;

/// The most that a message says, in bytes.
const LONGEST: usize = 2 * 1024;

/// The message in an error body: the text that the usual JSON shapes hold, else the body itself.
/// `complete` tells whether this is the body to its end.
pub(crate) fn of_body(body: &[u8], complete: bool, secrets: &[String]) -> Option<Box<str>> {
    let text = from_json(body).unwrap_or_else(|| String::from_utf8_lossy(body).into_owned());
    // UTF-16 would part a key's letters.
    let text = text.replace('\0', "");
    let (text, whole) = cut(&text);
    let text = redact(text, complete && whole, secrets);
    let text = escape_and_truncate(text.trim());
    (!text.is_empty()).then(|| text.into_boxed_str())
}

/// The message of an error: its own words and those of its sources, but for `reqwest`'s errors,
/// whose words hold the URL.
pub(crate) fn of_error(error: &(dyn StdError + 'static), secrets: &[String]) -> Box<str> {
    let mut text = String::new();
    for error in sources(error) {
        if error.is::<reqwest::Error>() || error.is::<reqwest_middleware::Error>() {
            continue;
        }
        let words = error.to_string();
        if !text.ends_with(&words) {
            text.push_str(if text.is_empty() { "" } else { ": " });
            text.push_str(&words);
        }
    }
    let (text, whole) = cut(&text);
    escape_and_truncate(&redact(text, whole, secrets)).into_boxed_str()
}

/// Whether an error shows a secret to whoever prints it.
pub(crate) fn shows_secret(error: &(dyn StdError + 'static), secrets: &[String]) -> bool {
    let mut text = format!("{error:?}");
    for error in sources(error) {
        text.push_str(&error.to_string());
    }
    redact(&text, true, secrets) != text
}

fn sources<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

fn from_json(body: &[u8]) -> Option<String> {
    use serde_json::Value;

    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    let value: Value = serde_json::from_slice(body).ok()?;
    let error = value.get("error").unwrap_or(&value);
    let text =
        ["message", "detail", "error_description", "msg"].iter().find_map(|name| error.get(name));
    match text.unwrap_or(error) {
        Value::String(text) => Some(text.clone()),
        // Written anew, so that no escape sequence hides a key from the search.
        _ => Some(value.to_string()),
    }
}

/// As much of a text as is worth searching, and whether that is all of it.
fn cut(text: &str) -> (&str, bool) {
    if text.len() <= 2 * LONGEST {
        return (text, true);
    }
    let mut boundaries = text.char_indices().map(|(at, _)| at);
    let end = boundaries.find(|at| *at >= 2 * LONGEST).unwrap_or(text.len());
    (&text[..end], end == text.len())
}

/// Replaces every secret, in whichever spelling it comes back.
fn redact(text: &str, complete: bool, secrets: &[String]) -> String {
    // Most of a text begins no secret in any spelling, and is copied as it is: what is searched here
    // is what a failover costs most.
    let mut begins = [false; 256];
    let firsts = secrets.iter().filter_map(|secret| secret.as_bytes().first());
    firsts.chain(ESCAPES).for_each(|byte| begins[usize::from(*byte)] = true);
    let mut redacted = String::with_capacity(text.len());
    let mut rest = text;
    loop {
        let plain = rest.bytes().position(|byte| begins[usize::from(byte)]);
        let (plain, doubtful) = rest.split_at(plain.unwrap_or(rest.len()));
        redacted.push_str(plain);
        rest = doubtful;
        let Some(first) = rest.chars().next() else { break };
        let found = secrets.iter().map(|secret| echo(rest.as_bytes(), secret)).max();
        match found {
            Some(Echo::Whole(length)) => {
                redacted.push_str("[redacted]");
                rest = rest.get(length..).unwrap_or_default();
            }
            // The text ends in the middle of a key.
            Some(Echo::Begun) if !complete => break,
            _ => {
                redacted.push(first);
                rest = &rest[first.len_utf8()..];
            }
        }
    }
    redacted
}

/// How a text begins with a secret.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Echo {
    Not,
    /// The text ends before the secret does.
    Begun,
    /// With all of it, in so many bytes.
    Whole(usize),
}

fn echo(text: &[u8], secret: &str) -> Echo {
    let Some(first) = secret.bytes().next() else { return Echo::Not };
    if spelled(text, first).next().is_none() {
        return if may_go_on(text) { Echo::Begun } else { Echo::Not };
    }
    // Where a spelling can be read in two ways, both are followed.
    let (mut ends, mut begun) = (vec![0], false);
    for byte in secret.bytes() {
        let mut next = Vec::new();
        for end in ends {
            let rest = &text[end..];
            begun |= may_go_on(rest);
            next.extend(spelled(rest, byte).map(|length| end + length));
        }
        next.sort_unstable();
        next.dedup();
        ends = next;
    }
    match ends.last() {
        Some(end) => Echo::Whole(*end),
        None if begun => Echo::Begun,
        None => Echo::Not,
    }
}

/// What [`escape`] may begin with.
const ESCAPES: &[u8] = b"%\\&+";

/// The lengths in which a text may begin with this byte: as it is, percent-encoded, or escaped as in
/// JSON or HTML.
fn spelled(text: &[u8], byte: u8) -> impl Iterator<Item = usize> {
    let literal = text.first().filter(|first| **first == byte).map(|_| 1);
    let escaped = escape(text).filter(|(escaped, _)| *escaped == byte).map(|(_, length)| length);
    literal.into_iter().chain(escaped)
}

/// Whether a text ends before its first character does.
fn may_go_on(text: &[u8]) -> bool {
    const LONGEST_ESCAPE: usize = 8;
    let escapes = matches!(text.first(), Some(b'%' | b'\\' | b'&'));
    text.is_empty() || escapes && text.len() < LONGEST_ESCAPE && escape(text).is_none()
}

/// The byte that an escape at the beginning of a text stands for, and the escape's length.
fn escape(text: &[u8]) -> Option<(u8, usize)> {
    let number = |digits: &[u8], radix| {
        let number = u32::from_str_radix(str::from_utf8(digits).ok()?, radix).ok()?;
        u8::try_from(number).ok()
    };
    match text {
        [b'+', ..] => Some((b' ', 1)),
        [b'%', high, low, ..] => Some((number(&[*high, *low], 16)?, 3)),
        [b'\\', b'u' | b'U', rest @ ..] => Some((number(rest.get(..4)?, 16)?, 6)),
        [b'\\', b'x' | b'X', rest @ ..] => Some((number(rest.get(..2)?, 16)?, 4)),
        [b'\\', escaped, ..] => Some((*escaped, 2)),
        [b'&', rest @ ..] => {
            let end = rest.iter().take(LONGEST_ENTITY).position(|byte| *byte == b';')?;
            let byte = match &rest[..end] {
                [b'#', b'x' | b'X', digits @ ..] => number(digits, 16)?,
                [b'#', digits @ ..] => number(digits, 10)?,
                b"amp" => b'&',
                b"lt" => b'<',
                b"gt" => b'>',
                b"quot" => b'"',
                b"apos" => b'\'',
                _ => return None,
            };
            Some((byte, end + 2))
        }
        _ => None,
    }
}

const LONGEST_ENTITY: usize = 7;

/// Escapes what would break a line or turn its direction, and cuts what is too long.
fn escape_and_truncate(text: &str) -> String {
    const MOST: usize = LONGEST - '…'.len_utf8();
    // As nearly all of a message is, and a tenth of the work.
    let odd = text.bytes().take(MOST).position(|byte| !matches!(byte, b' '..=b'~'));
    let (plain, rest) = text.split_at(odd.unwrap_or(text.len().min(MOST)));
    let mut escape_and_truncate = String::with_capacity(text.len().min(LONGEST));
    escape_and_truncate.push_str(plain);
    for character in rest.chars() {
        let hidden = character.is_control()
            || matches!(character, '\u{2028}'..='\u{202E}' | '\u{2066}'..='\u{2069}');
        let length = escape_and_truncate.len();
        if hidden {
            escape_and_truncate.extend(character.escape_default());
        } else {
            escape_and_truncate.push(character);
        }
        if escape_and_truncate.len() > MOST {
            escape_and_truncate.truncate(length);
            escape_and_truncate.push('…');
            break;
        }
    }
    escape_and_truncate
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secrets() -> Vec<String> {
        vec!["sk-secret-123".to_owned(), "hunter2".to_owned()]
    }

    fn body(text: &str) -> Option<Box<str>> {
        of_body(text.as_bytes(), true, &secrets())
    }

    #[test]
    fn finds_the_message_in_the_usual_json_shapes() {
        for text in [
            r#"{"error":{"message":"no such model","code":null}}"#,
            r#"{"error":"no such model"}"#,
            r#"{"message":"no such model"}"#,
            r#"{"detail":"no such model"}"#,
            r#""no such model""#,
            "\u{feff}{\"error\":\"no such model\"}",
        ] {
            assert_eq!(body(text).as_deref(), Some("no such model"), "{text}");
        }
        assert_eq!(body(r#"{"code": 7}"#).as_deref(), Some(r#"{"code":7}"#));
        assert_eq!(
            body(r#"{"error":{"message":"Incorrect key: sk\u002dsecret-123"}}"#).as_deref(),
            Some("Incorrect key: [redacted]")
        );
        assert_eq!(
            body(r#"{"key":"sk\u002dsecret-123"}"#).as_deref(),
            Some(r#"{"key":"[redacted]"}"#)
        );
    }

    #[test]
    fn shows_other_bodies_as_they_are() {
        assert_eq!(body("upstream is down\n").as_deref(), Some("upstream is down"));
        assert_eq!(
            body("a\r\nb\u{1b}[31m\u{202e}").as_deref(),
            Some("a\\r\\nb\\u{1b}[31m\\u{202e}")
        );
        assert_eq!(body(" \n"), None);
        assert_eq!(of_body(b"\xff\xfe", true, &[]).as_deref(), Some("\u{fffd}\u{fffd}"));
    }

    #[test]
    fn redacts_every_secret_also_where_the_text_was_cut() {
        assert_eq!(
            body("sk-secret-123 hunter2 hunter2").as_deref(),
            Some("[redacted] [redacted] [redacted]")
        );
        let long = format!("{}sk-secret-123", "x".repeat(LONGEST - 8));
        assert!(!body(&long).unwrap().contains("sk-s"));
        for end in 1.."sk-secret-123".len() {
            let cut = format!("key: {}", &"sk-secret-123"[..end]);
            assert_eq!(
                of_body(cut.as_bytes(), false, &secrets()).as_deref(),
                Some("key:"),
                "{cut}"
            );
        }
    }

    #[test]
    fn redacts_a_secret_of_which_the_first_letter_is_escaped() {
        for first in ["%73", "\\u0073", "\\x73", "\\s", "&#115;", "&#x73;"] {
            let text = format!("é {first}k-secret-123 é");
            assert_eq!(redact(&text, true, &secrets()), "é [redacted] é", "{text}");
        }
        assert_eq!(redact("a+word", true, &[" word".to_owned()]), "a[redacted]");
        assert_eq!(redact("é éa è", true, &["éa".to_owned()]), "é [redacted] è");
    }

    #[test]
    fn redacts_a_secret_in_every_usual_spelling() {
        let secrets = [r#"a-/+"b"#.to_owned(), r"c\d".to_owned()];
        for spelling in [
            r#"a-/+"b"#,
            "a%2d%2F%2b%22b",
            "%61-/%2B%22%62",
            r#"a-\/+\"b"#,
            r#"a\u002d\u002F\u002b\u0022b"#,
            r#"a\x2d/+\"b"#,
            "a-&#x2F;&#43;&quot;b",
            "a-/&#x002B;&#34;b",
            r"c\d",
            r"c\\d",
            "c%5cd",
        ] {
            let text = format!("<{spelling}>");
            assert_eq!(redact(&text, true, &secrets), "<[redacted]>", "{spelling}");
            for end in 1..spelling.len() {
                let cut = redact(&text[..=end], false, &secrets);
                assert_eq!(cut, "<", "{spelling} cut at {end}");
            }
        }
        assert_eq!(redact("a-/+ b%2 \\", true, &secrets), "a-/+ b%2 \\");
    }

    #[test]
    fn is_never_longer_than_it_may_be() {
        for text in ["x", "é", "\u{1}", "𝄞"] {
            let message = body(&text.repeat(10_000)).unwrap();
            assert!((2040..=2048).contains(&message.len()) && message.ends_with('…'), "{text}");
        }
    }

    #[test]
    fn what_was_redacted_makes_room_for_what_follows_and_the_cut_shows_no_half_of_a_key() {
        let key = "k".repeat(39) + "!";
        let text = format!("{}{}{key}", key.repeat(100), "x".repeat(90));
        let message = of_body(text.as_bytes(), true, &[key]).unwrap();
        assert_eq!(*message, *format!("{}{}", "[redacted]".repeat(100), "x".repeat(90)));
    }

    #[test]
    fn what_only_begins_like_a_key_is_shown() {
        for (text, complete) in [
            ("key: sk-s", true),
            ("sk-other, and more", false),
            ("s, and more", false),
            ("&abcdefg", false),
            ("%zzzzzzz", false),
        ] {
            let shown = of_body(text.as_bytes(), complete, &secrets());
            assert_eq!(shown.as_deref(), Some(text));
        }
    }

    #[test]
    fn a_secret_is_known_behind_every_entity() {
        let secrets = ["a&b<c>d'e\"f".to_owned()];
        let echoed = "<a&amp;b&lt;c&gt;d&apos;e&quot;f>";
        assert_eq!(redact(echoed, true, &secrets), "<[redacted]>");
    }

    #[test]
    fn a_message_is_shown_whole_while_there_is_room_for_the_mark_of_a_cut() {
        let shown = |length: usize| body(&"x".repeat(length)).unwrap();
        assert_eq!(*shown(2045), *"x".repeat(2045));
        assert_eq!(*shown(2046), *format!("{}…", "x".repeat(2045)));
    }

    #[test]
    fn a_space_in_a_key_may_come_back_as_a_plus() {
        assert_eq!(redact("<pass+word>", true, &["pass word".to_owned()]), "<[redacted]>");
    }

    #[test]
    fn the_words_of_reqwests_errors_are_not_told_but_those_of_their_sources_are() {
        let error = || reqwest::Client::new().get("canary").build().unwrap_err();
        let wrapped = reqwest_middleware::Error::from(error());
        let told = [of_error(&error(), &[]), of_error(&wrapped, &[])];
        assert_eq!(told.map(String::from), ["relative URL without a base"; 2]);
    }

    #[test]
    fn an_error_is_told_with_its_sources() {
        #[derive(Debug, thiserror::Error)]
        #[error("refused sk-secret-123")]
        struct Outer(#[source] std::io::Error);

        let error = Outer(std::io::Error::other("port shut"));
        assert_eq!(&*of_error(&error, &secrets()), "refused [redacted]: port shut");
        assert!(shows_secret(&error, &secrets()));
        assert!(!shows_secret(&std::io::Error::other("port shut"), &secrets()));
    }
}
