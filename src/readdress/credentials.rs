//! What a credential's value gives away. A provider may echo any part of it: the key without its
//! scheme, a decoded password, one cookie of many. So a secret is what the value holds, and not the
//! string that was typed.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD as BASE64, STANDARD_NO_PAD};

/// The value itself, its last word and every long one, what follows a `=` in it, the long parts of
/// a dotted one, and a Basic value's user and password.
pub(crate) fn secrets_in(value: &str) -> Vec<String> {
    /// Cookies hold a `1` or an `en` that stands in every message.
    const SHORTEST_VALUE: usize = 6;
    const LONG_WORD: usize = 8;
    const LONG_PART: usize = 16;

    let value = value.trim();
    let mut secrets = vec![value.to_owned()];
    let words: Vec<&str> =
        value.split_whitespace().map(|word| word.trim_end_matches([',', ';'])).collect();
    for (at, word) in words.iter().enumerate() {
        let is_scheme = at == 0 && words.len() > 1;
        if at + 1 == words.len() || (word.len() >= LONG_WORD && !is_scheme) {
            secrets.push((*word).to_owned());
        }
        for part in word.split([',', ';']) {
            let (_, assigned) = part.split_once('=').unwrap_or_default();
            let assigned = assigned.trim_matches('"');
            if assigned.len() >= SHORTEST_VALUE {
                secrets.push(assigned.to_owned());
            }
            let parts =
                part.split('.').filter(|dotted| dotted.len() >= LONG_PART && *dotted != part);
            secrets.extend(parts.map(str::to_owned));
        }
    }
    // Also where a header of a vendor's own takes the pair without the scheme.
    if let Some((user, password)) = words.last().and_then(|encoded| decoded_pair(encoded)) {
        secrets.extend(secrets_in_pair(&user, &password));
    }
    secrets.retain(|secret| !secret.is_empty());
    secrets.sort_unstable();
    secrets.dedup();
    secrets
}

/// What a Basic credential gives away: its Base64, the password, and the user where that is the key,
/// as at Stripe, or as long as one.
pub(crate) fn secrets_in_pair(user: &str, password: &str) -> Vec<String> {
    const LONG_USER: usize = 16;

    let mut secrets = vec![BASE64.encode(format!("{user}:{password}")), password.to_owned()];
    if password.is_empty() || user.len() >= LONG_USER {
        secrets.push(user.to_owned());
    }
    secrets.retain(|secret| !secret.is_empty());
    secrets
}

/// A user and a password in Base64, of either alphabet, with its padding or without.
fn decoded_pair(encoded: &str) -> Option<(String, String)> {
    let encoded = encoded.trim_end_matches('=').replace('-', "+").replace('_', "/");
    let decoded = String::from_utf8(STANDARD_NO_PAD.decode(encoded).ok()?).ok()?;
    if decoded.contains(char::is_control) {
        return None;
    }
    decoded.split_once(':').map(|(user, password)| (user.to_owned(), password.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_gives_its_parts_away() {
        let table: [(&str, &[&str]); 12] = [
            ("KEY", &["KEY"]),
            ("Bearer KEY", &["Bearer KEY", "KEY"]),
            ("Token key-of-some-length", &["Token key-of-some-length", "key-of-some-length"]),
            ("Basic bWU6aHVudGVyMg==", &["Basic bWU6aHVudGVyMg==", "bWU6aHVudGVyMg==", "hunter2"]),
            (
                "basic c2tfdGVzdF80MjQyOg==",
                &["basic c2tfdGVzdF80MjQyOg==", "c2tfdGVzdF80MjQyOg==", "sk_test_4242"],
            ),
            (
                "Basic bWU6aHVudGVyMg",
                &["Basic bWU6aHVudGVyMg", "bWU6aHVudGVyMg", "bWU6aHVudGVyMg==", "hunter2"],
            ),
            ("bWU6aHVudGVyMg==", &["bWU6aHVudGVyMg==", "hunter2"]),
            (
                "Basic bWU6Pz8_fn5-",
                &["???~~~", "Basic bWU6Pz8_fn5-", "bWU6Pz8/fn5+", "bWU6Pz8_fn5-"],
            ),
            ("session=KEYKEY", &["KEYKEY", "session=KEYKEY"]),
            (
                "a=1; session=KEYKEY; lang=en",
                &["KEYKEY", "a=1; session=KEYKEY; lang=en", "lang=en", "session=KEYKEY"],
            ),
            ("id.sixteen-and-more.x", &["id.sixteen-and-more.x", "sixteen-and-more"]),
            (" ", &[]),
        ];
        for (value, expected) in table {
            assert_eq!(secrets_in(value), expected, "{value}");
        }
        let signed =
            "AWS4-HMAC-SHA256 Credential=AKIA/2024/s3, SignedHeaders=host, Signature=f00d1234";
        assert!(secrets_in(signed).contains(&"f00d1234".to_owned()));
    }

    #[test]
    fn a_user_is_a_secret_where_it_is_the_key() {
        for (user, password, expected) in [
            ("me", "pa:ss", &["bWU6cGE6c3M=", "pa:ss"][..]),
            ("sk_live", "", &["c2tfbGl2ZTo=", "sk_live"]),
            ("sixteen-and-more", "x", &["c2l4dGVlbi1hbmQtbW9yZTp4", "x", "sixteen-and-more"]),
        ] {
            assert_eq!(secrets_in_pair(user, password), expected, "{user}");
        }
        for none in ["dXNlcg==", "", "no base64", "/////w=="] {
            assert_eq!(decoded_pair(none), None, "{none}");
        }
    }
}
