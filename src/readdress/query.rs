//! The query: which of the caller's pairs go along, and which a provider sets.

use std::borrow::Cow;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use reqwest::Url;

use super::strip::StripList;

/// A pair that a provider sets in the query.
pub(crate) struct QueryPair {
    pub(crate) name: String,
    /// `name=value`, form-encoded.
    encoded: String,
    /// Whether the value is a credential.
    pub(crate) secret: bool,
}

impl QueryPair {
    pub(crate) fn new(name: &str, value: &str, secret: bool) -> Self {
        let encoded = format!("{}={}", form_encoded(name), form_encoded(value));
        Self { name: name.to_owned(), encoded, secret }
    }

    /// Appends the pair to a URL's query, whose other bytes stay.
    pub(crate) fn append_to(&self, url: &mut Url) {
        let query = match url.query() {
            Some(query) if !query.is_empty() => format!("{query}&{}", self.encoded),
            _ => self.encoded.clone(),
        };
        url.set_query(Some(&query));
    }
}

/// What a provider does to the caller's query. The pairs that are left keep their bytes and order.
pub(crate) struct QueryRewrite<'a> {
    /// Whose pairs are removed. `None`: the caller's keys stay.
    pub(crate) strip: Option<&'a StripList>,
    /// Pairs that replace the caller's of the same name, and are appended in this order.
    pub(crate) set: &'a [QueryPair],
}

impl QueryRewrite<'_> {
    pub(super) fn append_to(&self, text: &mut String, query: Option<&str>) {
        let mut kept = String::new();
        let mut untouched = self.set.is_empty();
        for pair in query.into_iter().flat_map(|query| query.split('&')) {
            if self.drops(pair) {
                untouched = false;
                continue;
            }
            if !kept.is_empty() {
                kept.push('&');
            }
            kept.push_str(pair);
        }
        for pair in self.set {
            if !kept.is_empty() {
                kept.push('&');
            }
            kept.push_str(&pair.encoded);
        }
        match query {
            Some(query) if untouched => text.extend(["?", query]),
            _ if !kept.is_empty() => text.extend(["?", &kept]),
            _ => {}
        }
    }

    fn drops(&self, pair: &str) -> bool {
        let name = form_decoded(pair.split('=').next().unwrap_or_default());
        self.strip.is_some_and(|strip| strip.holds_query(&name))
            || self.set.iter().any(|set| name.eq_ignore_ascii_case(set.name.as_bytes()))
    }
}

/// `text` as `application/x-www-form-urlencoded` writes it.
fn form_encoded(text: &str) -> String {
    const ENCODED: &AsciiSet =
        &NON_ALPHANUMERIC.remove(b'*').remove(b'-').remove(b'.').remove(b'_').remove(b' ');
    utf8_percent_encode(text, ENCODED).to_string().replace(' ', "+")
}

fn form_decoded(name: &str) -> Cow<'_, [u8]> {
    if !name.contains('+') {
        return percent_decode_str(name).into();
    }
    percent_decode_str(&name.replace('+', " ")).collect::<Vec<_>>().into()
}
