//! What is fit to be a key, and how it is written in a header.

use http::header::{AUTHORIZATION, COOKIE, SEC_WEBSOCKET_PROTOCOL};
use http::{HeaderName, HeaderValue};

/// A key without the whitespace around it, or what is wrong with it, without repeating it. Tokens
/// from [`Provider::bearer_auth_with`](super::Provider::bearer_auth_with) are held to the same.
pub(super) fn checked_key(raw: &str) -> Result<&str, &'static str> {
    let key = raw.trim();
    let scheme = key.as_bytes().get(.."bearer".len());
    let is_bearer = scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"bearer"))
        && key.as_bytes().get("bearer".len()).is_none_or(u8::is_ascii_whitespace);
    if key.is_empty() {
        Err("is empty: pass the key itself")
    } else if !key.is_ascii() {
        Err("holds characters that are not ASCII: pass the key as the provider issued it")
    } else if is_bearer {
        Err("begins with `Bearer `: pass the key alone, .bearer_auth(..) adds the word")
    } else if key.contains(|c: char| c.is_ascii_control()) {
        Err("holds control characters: pass the key alone, on one line")
    } else if key.contains(['"', '\'']) {
        Err("holds quotes: pass the key without them")
    } else if is_placeholder(key) {
        Err(PLACEHOLDER)
    } else if key.contains(' ') {
        Err("holds a space: pass the key alone; a scheme other than `Bearer` goes into \
             .api_key_header(\"authorization\", ..), with the key")
    } else {
        Ok(key)
    }
}

/// A value of [`Provider::api_key_header`](super::Provider::api_key_header): a key, or where the
/// header takes such, a scheme and a key, cookies, or sub-protocols.
pub(super) fn checked_value<'k>(name: &HeaderName, raw: &'k str) -> Result<&'k str, &'static str> {
    let takes_words =
        name.as_str().contains("auth") || matches!(*name, COOKIE | SEC_WEBSOCKET_PROTOCOL);
    let value = raw.trim();
    let Some((scheme, rest)) = value.split_once(' ').filter(|_| takes_words) else {
        return checked_key(raw);
    };
    // Some gateways take a second `Bearer` key in a header of their own.
    if *name == AUTHORIZATION && scheme.eq_ignore_ascii_case("bearer") {
        return checked_key(raw);
    }
    // A quoted string may be a part of such a value.
    if !value.is_ascii() || value.contains(|c: char| c.is_ascii_control()) {
        return Err("holds control characters or characters that are not ASCII");
    }
    let mut keys = rest.rsplit(' ').take(1).chain([rest]);
    if keys.any(is_placeholder) { Err(PLACEHOLDER) } else { Ok(value) }
}

pub(super) const PLACEHOLDER: &str = "is a placeholder: put the key itself in its place";

/// Whether a key is what a template or an example holds in place of one, or what a program writes
/// for a variable that is missing.
pub(super) fn is_placeholder(key: &str) -> bool {
    let holds = |open: &str, close: &str| {
        key.split_once(open).is_some_and(|(_, rest)| rest.contains(close))
    };
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b' ');
    let between = |open: char, close: char| {
        let inner = key.strip_prefix(open).and_then(|rest| rest.strip_suffix(close));
        inner.is_some_and(|inner| !inner.is_empty() && inner.bytes().all(is_word))
    };
    let is_variable = || {
        let name = key.strip_prefix('$').unwrap_or_default();
        !name.is_empty()
            && name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
    };
    let letters: String =
        key.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect();
    let says = [
        "yourapikey",
        "yourkey",
        "yoursecret",
        "yourtoken",
        "keyhere",
        "tokenhere",
        "replaceme",
        "changeme",
    ];
    holds("${", "}")
        || holds("{{", "}}")
        || between('<', '>')
        || between('{', '}')
        || between('[', ']')
        || between('%', '%')
        || is_variable()
        || key.contains("...")
        || says.iter().any(|says| letters.contains(says))
        || matches!(&*letters, "undefined" | "null" | "none" | "todo" | "apikey")
        || (letters.len() > 2 && letters.bytes().all(|letter| letter == b'x'))
}

/// `Bearer <key>`, sensitive. `None` for a key that [`checked_key`] would refuse.
pub(super) fn bearer_value(key: &str) -> Option<HeaderValue> {
    sensitive(&format!("Bearer {}", checked_key(key).ok()?))
}

/// A header's value, marked sensitive. `None` where it is fit for none.
pub(super) fn sensitive(value: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(value).ok()?;
    value.set_sensitive(true);
    Some(value)
}
