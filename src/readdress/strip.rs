//! What of the caller's request does not travel, and what a provider puts in its place.

use http::header::{HOST, SEC_WEBSOCKET_PROTOCOL};
use http::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::percent_decode_str;
use reqwest::Url;

use super::credentials::{secrets_in, secrets_in_pair};
use super::names::{
    CALLERS_HEADERS, ENDINGS, KEY_HEADERS, ends_as_key, is_key_query, protocol_items,
};

/// What is removed when a request is readdressed, to any provider: the names that are known to carry
/// keys, and those that any entry of the chain uses for its own.
pub(crate) struct StripList {
    /// What some entry uses as a credential. No `keep_header` makes an exception of these.
    own: Vec<HeaderName>,
    /// These, and the known ones.
    headers: Vec<HeaderName>,
    /// The lengths of the headers, a bit for each.
    lengths: u64,
    /// How the headers and the known endings end: a bit for each pair of last characters.
    last_pairs: [u64; 16],
    /// What some entry uses as a credential. Decoded, compared without ASCII case.
    queries: Vec<String>,
    /// What `remove_header` names, of any entry: it may carry a key that no other rule knows.
    removed: Vec<HeaderName>,
}

impl StripList {
    pub(crate) fn new(
        headers: impl IntoIterator<Item = HeaderName>,
        queries: impl IntoIterator<Item = String>,
    ) -> Self {
        let mut own: Vec<HeaderName> = headers.into_iter().collect();
        own.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
        own.dedup();
        let mut list = Self {
            headers: [&own[..], &KEY_HEADERS[..], &CALLERS_HEADERS[..]].concat(),
            own,
            lengths: 0,
            last_pairs: [0; 16],
            queries: queries.into_iter().collect(),
            removed: Vec::new(),
        };
        let names = list.headers.iter().map(HeaderName::as_str);
        for name in names.chain(ENDINGS) {
            let (word, bit) = last_pair(name);
            list.last_pairs[word] |= bit;
        }
        list.lengths = list.headers.iter().fold(0, |lengths, name| lengths | length_bit(name));
        list
    }

    /// Adds what is removed by name, for some entry or for all.
    pub(crate) fn with_removed(mut self, names: impl IntoIterator<Item = HeaderName>) -> Self {
        self.removed.extend(names);
        self
    }

    /// Whether some entry uses this header for a credential.
    pub(crate) fn is_own(&self, name: &HeaderName) -> bool {
        self.own.contains(name)
    }

    /// Whether this header is removed, or, if it is `sec-websocket-protocol`, a part of it.
    #[inline]
    fn holds(&self, name: &HeaderName) -> bool {
        // This tells most names apart by their last two characters, and saves comparing each header
        // of each request with every name in the list: a tenth of this layer's cost.
        let (word, bit) = last_pair(name.as_str());
        self.last_pairs[word] & bit != 0 && self.lists(name)
    }

    fn lists(&self, name: &HeaderName) -> bool {
        (self.lengths & length_bit(name) != 0 && self.headers.contains(name))
            || ends_as_key(name.as_str())
    }

    /// Whether the pairs of this name are removed from the query.
    pub(super) fn holds_query(&self, name: &[u8]) -> bool {
        str::from_utf8(name).is_ok_and(is_key_query)
            || self.queries.iter().any(|own| name.eq_ignore_ascii_case(own.as_bytes()))
    }

    /// Whether a header may carry a secret of the request that it is in.
    fn carries_secret(&self, name: &HeaderName, value: &HeaderValue) -> bool {
        let is_removed = || self.holds(name) || self.removed.contains(name);
        value.is_sensitive() || (is_removed() && !CALLERS_HEADERS.contains(name))
    }

    /// What a message about a request may not show: the parts of every value that carries a key, by
    /// its name or because it is marked sensitive. For the caller's own request, and for one that
    /// `map_request` has seen.
    pub(crate) fn secrets_of(&self, headers: &HeaderMap, url: &Url) -> Vec<String> {
        let mut secrets = self.secrets_of_headers(headers);
        secrets.extend(self.secrets_of_url(url));
        secrets
    }

    /// Those of the headers.
    pub(crate) fn secrets_of_headers<'h>(
        &self,
        headers: impl IntoIterator<Item = (&'h HeaderName, &'h HeaderValue)>,
    ) -> Vec<String> {
        let mut secrets = Vec::new();
        for (name, value) in
            headers.into_iter().filter(|(name, value)| self.carries_secret(name, value))
        {
            let Ok(value_text) = str::from_utf8(value.as_bytes()) else { continue };
            if *name == SEC_WEBSOCKET_PROTOCOL && !value.is_sensitive() && !self.is_own(name) {
                let keys = protocol_items(value_text).filter(|(_, holds_key)| *holds_key);
                secrets.extend(keys.flat_map(|(item, _)| secrets_in(item)));
            } else {
                secrets.extend(secrets_in(value_text));
            }
        }
        secrets.retain(is_told_apart);
        secrets
    }

    /// Those of the URL.
    pub(crate) fn secrets_of_url(&self, url: &Url) -> Vec<String> {
        let mut secrets = Vec::new();
        for (name, value) in url.query_pairs() {
            if self.holds_query(name.as_bytes()) {
                secrets.extend(secrets_in(&value));
            }
        }
        if !url.username().is_empty() || url.password().is_some() {
            let decoded = |text| percent_decode_str(text).decode_utf8_lossy().into_owned();
            let password = decoded(url.password().unwrap_or_default());
            secrets.extend(secrets_in_pair(&decoded(url.username()), &password));
        }
        secrets.retain(is_told_apart);
        secrets
    }
}

/// What is shorter stands in every message.
#[expect(clippy::ptr_arg, reason = "it is what `retain` gives")]
fn is_told_apart(secret: &String) -> bool {
    secret.len() >= 4
}

/// What a provider does to the caller's headers.
pub(crate) struct HeaderRules {
    /// Removed for this provider.
    pub(crate) remove: Vec<HeaderName>,
    /// Not removed for this provider, though their names may carry keys.
    pub(crate) keep: Vec<HeaderName>,
    /// The fixed ones, then the credentials, which alone are sensitive.
    pub(crate) set: Vec<(HeaderName, HeaderValue)>,
}

impl HeaderRules {
    /// Removes from a copy of the caller's headers what must not travel, and sets the provider's
    /// own. With `keep_caller_auth` only `host` and what the provider removes are removed. One pass;
    /// allocates only if there is something to remove.
    pub(crate) fn apply(&self, headers: &mut HeaderMap, strip: &StripList, keep_caller_auth: bool) {
        let mut to_remove = Vec::new();
        let mut has_protocols = false;
        for (name, value) in headers.iter() {
            let mut remove = match keep_caller_auth {
                true => *name == HOST,
                // The host is in the list, too.
                false => value.is_sensitive() || strip.holds(name),
            };
            if remove && self.keep.contains(name) {
                remove = false;
            } else if remove && *name == SEC_WEBSOCKET_PROTOCOL {
                has_protocols = true;
                remove = value.is_sensitive() || strip.is_own(name);
            }
            remove |= self.remove.contains(name);
            // What is set takes the place of all the caller's values.
            if remove && !self.set.iter().any(|(own, _)| own == name) {
                to_remove.push(name.clone());
            }
        }
        for name in to_remove {
            headers.remove(name);
        }
        if has_protocols {
            remove_protocol_keys(headers);
        }
        for (name, value) in &self.set {
            headers.insert(name, value.clone());
        }
    }
}

/// Leaves of the sub-protocols only those that hold no key.
fn remove_protocol_keys(headers: &mut HeaderMap) {
    let mut items: Vec<&str> = Vec::new();
    for value in headers.get_all(SEC_WEBSOCKET_PROTOCOL) {
        let value = value.to_str().unwrap_or_default();
        items.extend(
            protocol_items(value).filter(|(_, holds_key)| !holds_key).map(|(item, _)| item),
        );
    }
    let kept = items.join(", ");
    match HeaderValue::from_str(&kept) {
        Ok(value) if !kept.is_empty() => drop(headers.insert(SEC_WEBSOCKET_PROTOCOL, value)),
        _ => drop(headers.remove(SEC_WEBSOCKET_PROTOCOL)),
    }
}

/// The caller's headers, kept for a second attempt. A list, since a map takes two allocations where
/// this takes one.
#[derive(Clone)]
pub(crate) struct KeptHeaders(Vec<(HeaderName, HeaderValue)>);

impl KeptHeaders {
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let mut kept = Vec::with_capacity(headers.len());
        kept.extend(headers.iter().map(|(name, value)| (name.clone(), value.clone())));
        Self(kept)
    }

    /// Those that may carry a secret.
    pub(crate) fn secret_ones<'h>(
        headers: impl IntoIterator<Item = (&'h HeaderName, &'h HeaderValue)>,
        strip: &StripList,
    ) -> Self {
        let secret = headers.into_iter().filter(|(name, value)| strip.carries_secret(name, value));
        Self(secret.map(|(name, value)| (name.clone(), value.clone())).collect())
    }

    /// Whether these are the headers that may carry a secret, of the same values and marks.
    pub(crate) fn are_secret_ones_of<'h>(
        &self,
        headers: impl IntoIterator<Item = (&'h HeaderName, &'h HeaderValue)>,
        strip: &StripList,
    ) -> bool {
        let secret = headers.into_iter().filter(|(name, value)| strip.carries_secret(name, value));
        let marked = |(name, value): (_, &'h HeaderValue)| (name, value, value.is_sensitive());
        secret
            .map(marked)
            .eq(self.0.iter().map(|(name, value)| (name, value, value.is_sensitive())))
    }

    pub(crate) fn into_map(self) -> HeaderMap {
        /// For the headers that the provider sets: else the map grows, and is hashed anew.
        const ROOM: usize = 2;
        // Too many to make room for at once are still not too many to be there.
        let capacity = self.0.len() + ROOM;
        let mut headers = HeaderMap::try_with_capacity(capacity).unwrap_or_default();
        for (name, value) in self.0 {
            headers.append(name, value);
        }
        headers
    }
}

impl<'h> IntoIterator for &'h KeptHeaders {
    type Item = (&'h HeaderName, &'h HeaderValue);
    type IntoIter = std::iter::Map<
        std::slice::Iter<'h, (HeaderName, HeaderValue)>,
        fn(&'h (HeaderName, HeaderValue)) -> Self::Item,
    >;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter().map(|(name, value)| (name, value))
    }
}

/// A bit that tells the length; all long names share one.
fn length_bit(name: &HeaderName) -> u64 {
    1 << name.as_str().len().min(63)
}

/// The place of a name's last two characters among 1024: exact for letters.
fn last_pair(name: &str) -> (usize, u64) {
    let [.., before, last] = *name.as_bytes() else {
        let only = name.bytes().next().unwrap_or_default() & 31;
        return (0, 1 << only);
    };
    let pair = (usize::from(before & 31) << 5) | usize::from(last & 31);
    (pair >> 6, 1 << (pair & 63))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::{AUTHORIZATION, COOKIE, PROXY_AUTHORIZATION};

    fn name(name: &str) -> HeaderName {
        HeaderName::from_bytes(name.as_bytes()).unwrap()
    }

    fn callers_headers() -> HeaderMap {
        let mut headers = HeaderMap::new();
        for header in [
            "host",
            "authorization",
            "Proxy-Authorization",
            "cookie",
            "X-API-Key",
            "api-key",
            "x-goog-api-key",
            "helicone-auth",
            "x-some-token",
            "openai-organization",
            "openai-project",
            "x-vendor",
            "content-type",
            "idempotency-key",
            "sec-websocket-key",
            "x-own",
        ] {
            headers.append(name(header), HeaderValue::from_static("canary"));
        }
        let mut sensitive = HeaderValue::from_static("canary");
        sensitive.set_sensitive(true);
        headers.append("x-mixed", HeaderValue::from_static("plain"));
        headers.append("x-mixed", sensitive);
        headers
    }

    fn rules(remove: &[&str], keep: &[&str], set: &[(&str, &str)]) -> HeaderRules {
        let names = |names: &[&str]| names.iter().map(|header| name(header)).collect();
        let set = set.iter().map(|(header, value)| (name(header), value.parse().unwrap()));
        HeaderRules { remove: names(remove), keep: names(keep), set: set.collect() }
    }

    fn left(rules: &HeaderRules, keep_caller_auth: bool) -> Vec<String> {
        let strip = StripList::new([name("x-vendor")], []);
        let mut headers = callers_headers();
        rules.apply(&mut headers, &strip, keep_caller_auth);
        let mut names: Vec<_> = headers.keys().map(ToString::to_string).collect();
        names.sort();
        names
    }

    #[test]
    fn headers_that_may_carry_a_key_are_removed() {
        let plain = ["content-type", "idempotency-key", "sec-websocket-key", "x-own"];
        assert_eq!(left(&rules(&[], &[], &[]), false), plain);
        assert_eq!(left(&rules(&["x-own"], &[], &[]), false), plain[..3]);
    }

    #[test]
    fn a_kept_header_stays_and_a_removed_one_goes_all_the_same() {
        let kept = rules(&["x-some-token"], &["helicone-auth", "x-some-token", "x-mixed"], &[]);
        assert_eq!(
            left(&kept, false),
            [
                "content-type",
                "helicone-auth",
                "idempotency-key",
                "sec-websocket-key",
                "x-mixed",
                "x-own"
            ]
        );
    }

    #[test]
    fn what_is_set_takes_the_place_of_all_values() {
        let own = rules(
            &["x-own"],
            &[],
            &[("authorization", "mine"), ("x-own", "mine"), ("x-new", "mine")],
        );
        let strip = StripList::new([], []);
        let mut headers = callers_headers();
        headers.append(AUTHORIZATION, HeaderValue::from_static("canary"));
        own.apply(&mut headers, &strip, false);
        for set in ["authorization", "x-own", "x-new"] {
            let values: Vec<_> = headers.get_all(set).iter().collect();
            assert_eq!(values, ["mine"], "{set}");
        }
    }

    #[test]
    fn kept_caller_auth_loses_only_host_and_what_the_provider_removes() {
        let kept = left(&rules(&["x-own"], &[], &[]), true);
        assert_eq!(kept.len(), callers_headers().keys_len() - 2);
        assert!(!kept.iter().any(|name| name == "host" || name == "x-own"));
        assert!(kept.iter().any(|name| name == "authorization"));
    }

    #[test]
    fn of_the_sub_protocols_only_those_with_a_key_are_removed() {
        let apply = |values: &[&'static str], own: bool, sensitive: bool| {
            let strip = StripList::new(own.then_some(SEC_WEBSOCKET_PROTOCOL), []);
            let mut headers = HeaderMap::new();
            for value in values {
                let mut value = HeaderValue::from_static(value);
                value.set_sensitive(sensitive);
                headers.append(SEC_WEBSOCKET_PROTOCOL, value);
            }
            rules(&[], &[], &[]).apply(&mut headers, &strip, false);
            headers.get(SEC_WEBSOCKET_PROTOCOL).map(|value| value.to_str().unwrap().to_owned())
        };
        let values = ["realtime, openai-insecure-api-key.canary", "openai-beta.realtime-v1"];
        let kept = Some("realtime, openai-beta.realtime-v1".to_owned());
        assert_eq!(apply(&values, false, false), kept);
        assert_eq!(apply(&["token, canary"], false, false), None);
        assert_eq!(apply(&values, true, false), None);
        assert_eq!(apply(&values, false, true), None);
    }

    #[test]
    fn what_the_caller_hands_over_is_found_whole_and_in_parts() {
        let address = "https://me:in%20url@h/v1?KEY=in%20query&own=in+query+too&plain=visible";
        let mut sensitive = HeaderValue::from_static("marked");
        sensitive.set_sensitive(true);
        let headers = [
            (HOST, HeaderValue::from_static("h.example")),
            (AUTHORIZATION, HeaderValue::from_static("Bearer bare")),
            (PROXY_AUTHORIZATION, HeaderValue::from_static("Basic dXNlcjpwYXNz")),
            (COOKIE, HeaderValue::from_static("a=1; b=two=twotwo")),
            (name("x-marked"), sensitive),
            (name("x-plain"), HeaderValue::from_static("visible=visible")),
            (SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("realtime, token, inprotocol")),
        ];
        let headers = HeaderMap::from_iter(headers);
        let url = Url::parse(address).unwrap();

        let strip = StripList::new([], ["own".to_owned()]);
        let mut found = strip.secrets_of(&headers, &url);
        let kept =
            [strip.secrets_of_headers(&KeptHeaders::of(&headers)), strip.secrets_of_url(&url)];
        assert_eq!(kept.concat(), found);
        found.sort();

        let mut expected = [
            &["Bearer bare", "bare"][..],
            &["Basic dXNlcjpwYXNz", "dXNlcjpwYXNz", "pass"],
            &["a=1; b=two=twotwo", "b=two=twotwo", "two=twotwo"],
            &["marked", "token", "inprotocol"],
            &["in query", "query", "in query too", "in url", "bWU6aW4gdXJs"],
        ]
        .concat();
        expected.sort_unstable();
        assert_eq!(found, expected);
    }

    #[test]
    fn what_an_entry_uses_is_removed_though_its_name_carries_no_key() {
        let list =
            StripList::new([name("idempotency-key"), name("x-a"), name("q")], ["Own".to_owned()]);
        for own in ["idempotency-key", "x-a", "q"] {
            assert!(list.holds(&name(own)) && list.is_own(&name(own)), "{own}");
        }
        assert!(list.holds(&AUTHORIZATION) && !list.is_own(&AUTHORIZATION));
        assert!(list.holds_query(b"oWN") && list.holds_query(b"KEY") && !list.holds_query(b"\xff"));
        let long = name(&"x".repeat(200));
        assert!(!list.holds(&long));
        assert!(StripList::new([long.clone()], []).holds(&long));
    }

    #[test]
    fn kept_headers_keep_their_order_and_repeats() {
        let headers = callers_headers();
        let kept = KeptHeaders::of(&headers).clone().into_map();
        assert_eq!(kept, headers);
        assert_eq!(kept.get_all("x-mixed").iter().count(), 2);
    }
}
