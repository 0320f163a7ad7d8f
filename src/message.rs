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
    let text = redact(text, complete, secrets);
    let text = tidy(text.trim());
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
    tidy(&redact(text, true, secrets)).into_boxed_str()
}

/// Whether an error shows a secret to whoever prints it.
pub(crate) fn shows_secret(error: &(dyn StdError + 'static), secrets: &[String]) -> bool {
    let mut text = format!("{error:?}");
    for error in sources(error) {
        text.push_str(&error.to_string());
    }
    secrets.iter().any(|secret| text.contains(secret.as_str()))
}

fn sources<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

#[cfg(feature = "json")]
fn from_json(body: &[u8]) -> Option<String> {
    use serde_json::Value;

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

#[cfg(not(feature = "json"))]
fn from_json(_: &[u8]) -> Option<String> {
    None
}

fn redact(mut text: String, complete: bool, secrets: &[String]) -> String {
    const REDACTED: &str = "[redacted]";
    for secret in secrets.iter().filter(|secret| !secret.is_empty()) {
        if text.contains(secret.as_str()) {
            text = text.replace(secret.as_str(), REDACTED);
        }
    }
    if !complete {
        // The text may end in the middle of a key.
        let begun = |secret: &String| {
            let ends = secret.char_indices().skip(1).map(|(end, _)| end);
            ends.filter(|end| text.ends_with(&secret[..*end])).max()
        };
        if let Some(cut) = secrets.iter().filter_map(begun).max() {
            text.truncate(text.len() - cut);
        }
    }
    text
}

/// Escapes what would break a line or turn its direction, and cuts what is too long.
fn tidy(text: &str) -> String {
    let mut tidy = String::with_capacity(text.len().min(LONGEST));
    for character in text.chars() {
        let hidden = character.is_control()
            || matches!(character, '\u{2028}'..='\u{202E}' | '\u{2066}'..='\u{2069}');
        let length = tidy.len();
        if hidden {
            tidy.extend(character.escape_default());
        } else {
            tidy.push(character);
        }
        if tidy.len() > LONGEST - '…'.len_utf8() {
            tidy.truncate(length);
            tidy.push('…');
            break;
        }
    }
    tidy
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

    #[cfg(feature = "json")]
    #[test]
    fn finds_the_message_in_the_usual_json_shapes() {
        for text in [
            r#"{"error":{"message":"no such model","code":null}}"#,
            r#"{"error":"no such model"}"#,
            r#"{"message":"no such model"}"#,
            r#"{"detail":"no such model"}"#,
            r#""no such model""#,
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
    fn is_never_longer_than_it_may_be() {
        for text in ["x", "é", "\u{1}", "𝄞"] {
            let message = body(&text.repeat(10_000)).unwrap();
            assert!(message.len() <= LONGEST && message.ends_with('…'), "{text}");
        }
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
