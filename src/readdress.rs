//! Makes a request the provider's own: which URLs may be touched at all, what a URL becomes under
//! another base, and which of the caller's headers and query pairs are removed.
//!
//! One promise rules this file: a key is sent to its own provider only. So nothing here edits a URL
//! in place. A target is written out as text (origin, prefix, the caller's suffix, the query), parsed once, and
//! thrown away unless the parser read exactly what was meant.

mod credentials;
mod names;
mod nearest;
mod query;
mod strip;

use std::fmt;
use std::net::IpAddr;
use std::ops::Range;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode, utf8_percent_encode};
use reqwest::Url;

pub(crate) use self::credentials::{secrets_in, secrets_in_pair};
pub(crate) use self::names::{is_key_header, is_key_query};
pub(crate) use self::query::{QueryPair, QueryRewrite};
pub(crate) use self::strip::{HeaderRules, KeptHeaders, StripList};

/// A checked base URL: an origin and a path prefix without a trailing slash.
#[derive(Clone)]
pub(crate) struct Base {
    /// Without the key of its path.
    url: Url,
    origin: String,
    prefix: String,
    /// Where in the prefix the key is, if it holds one.
    key: Option<Range<usize>>,
}

impl Base {
    /// Parses `https://host[:port][/prefix]`. The error says what would be right and never repeats
    /// the text, which may hold a password.
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        if text.contains(PLACEHOLDER) {
            return Err("holds `{key}`: set the key with .api_key_path(..)");
        }
        Self::parse_url(text)
    }

    /// Parses a base whose path holds `{key}`, and puts the key there.
    pub(crate) fn parse_with_key(text: &str, key: &str) -> Result<Self, &'static str> {
        // The parser leaves this as it is, wherever it moves it to.
        const MARK: &str = "reqwest-failover-key";
        const ONCE: &str =
            "must hold `{key}` once in its path, where .api_key_path(..) puts the key";
        /// What a path segment may hold as it is.
        const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
            .remove(b'-')
            .remove(b'.')
            .remove(b'_')
            .remove(b'~')
            .remove(b':')
            .remove(b'=')
            .remove(b'@')
            .remove(b'+')
            .remove(b',')
            .remove(b'!')
            .remove(b'$')
            .remove(b'*');

        if text.matches(PLACEHOLDER).count() != 1 {
            return Err(ONCE);
        }
        let mut base = Self::parse_url(&text.replace(PLACEHOLDER, MARK))?;
        let begin = base.prefix.find(MARK).ok_or(ONCE)?;
        if base.prefix.matches(MARK).count() > 1 {
            return Err(ONCE);
        }
        base.url.set_path(&base.prefix.replace(MARK, PLACEHOLDER));
        let key = utf8_percent_encode(key, ENCODED).to_string();
        base.prefix = base.prefix.replace(MARK, &key);
        // The key may be a dot segment, or a part of one.
        let target = Url::parse(&[&*base.origin, &base.prefix].concat()).map_err(|_| ONCE)?;
        if target.path() != base.prefix || hides_dot_segment(&base.prefix) {
            return Err("must not hold a `.` or `..` segment");
        }
        base.key = Some(begin..begin + key.len());
        Ok(base)
    }

    fn parse_url(text: &str) -> Result<Self, &'static str> {
        const SHAPE: &str = "must be an absolute URL such as https://api.example.com/v1";

        let text = text.trim();
        if text.contains(|c: char| c.is_control() || c.is_whitespace()) {
            return Err("must not hold whitespace or control characters");
        }
        let url = Url::parse(text).map_err(|_| SHAPE)?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err("must begin with https:// (or http://)");
        }
        // The parser would read `https:///v1` as the host `v1`, and drop an empty userinfo.
        let (_, rest) = text.split_once("://").ok_or(SHAPE)?;
        let authority = rest.split(['/', '\\', '?', '#']).next().unwrap_or_default();
        if authority.is_empty() {
            return Err("must name a host, as in https://api.example.com/v1");
        }
        if authority.contains('@') {
            return Err("must not hold a user or password: set a credential instead");
        }
        if url.query().is_some() {
            return Err("must not hold a query: use .query(..) or .api_key_query(..)");
        }
        if url.fragment().is_some() {
            return Err("must not hold a fragment (`#`)");
        }
        let prefix = url.path().trim_end_matches('/').to_owned();
        if hides_dot_segment(&prefix) {
            return Err("must not hold an encoded `.` or `..` segment");
        }
        let origin = url.origin().ascii_serialization();
        Ok(Self { url, origin, prefix, key: None })
    }

    pub(crate) fn is_plaintext(&self) -> bool {
        self.url.scheme() == "http"
    }

    /// 127.0.0.0/8, `::1` and `localhost`.
    pub(crate) fn is_loopback(&self) -> bool {
        let host = self.host_str().trim_matches(['[', ']']);
        host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
    }

    /// The URL as it may be shown: with `{key}` in place of a key.
    pub(crate) fn url(&self) -> &Url {
        &self.url
    }

    /// Whether the path holds a key.
    pub(crate) fn has_key(&self) -> bool {
        self.key.is_some()
    }

    /// The base as it was typed, with `{key}`: callers may address requests below it.
    pub(crate) fn template(&self) -> Option<Self> {
        self.has_key().then(|| Self {
            prefix: self.url.path().trim_end_matches('/').to_owned(),
            key: None,
            ..self.clone()
        })
    }

    /// Whether both are the same, apart from the keys in their paths.
    pub(crate) fn is_same_place(&self, other: &Self) -> bool {
        let (own, others) = (self.template(), other.template());
        own.as_ref().unwrap_or(self) == others.as_ref().unwrap_or(other)
    }

    /// Puts `{key}` in place of the key, in the path of a URL that is handed out.
    pub(crate) fn clean_path(&self, url: &mut Url) {
        let Some(range) = &self.key else { return };
        let key = &self.prefix[range.clone()];
        let (begin, end) = (&self.prefix[..range.start], &self.prefix[range.end..]);
        let mut path = match url.path().strip_prefix(&self.prefix) {
            Some(rest) => [begin, PLACEHOLDER, end, rest].concat(),
            None => url.path().to_owned(),
        };
        // A redirect may have put it anywhere. A short one is a part of any path.
        if key.len() >= 8 {
            path = path.replace(key, PLACEHOLDER);
            let decoded =
                |text: &str| percent_decode(text.as_bytes()).decode_utf8_lossy().into_owned();
            if decoded(&path).contains(&decoded(key)) {
                path.clear();
            }
        }
        url.set_path(&path);
    }

    pub(crate) fn host_str(&self) -> &str {
        self.url.host_str().unwrap_or_default()
    }

    /// Whether `url` lies below this base: the same origin, whole path segments. Userinfo is
    /// ignored.
    pub(crate) fn contains(&self, url: &Url) -> bool {
        self.shares_origin(url) && self.suffix(url).is_some()
    }

    pub(crate) fn shares_origin(&self, url: &Url) -> bool {
        url.scheme() == self.url.scheme()
            && url.host_str() == self.url.host_str()
            && url.port_or_known_default() == self.url.port_or_known_default()
    }

    fn suffix<'u>(&self, url: &'u Url) -> Option<&'u str> {
        let suffix = url.path().strip_prefix(self.prefix.as_str())?;
        is_whole(suffix).then_some(suffix)
    }
}

impl PartialEq for Base {
    fn eq(&self, other: &Self) -> bool {
        self.origin == other.origin && self.prefix == other.prefix
    }
}

impl fmt::Debug for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.key {
            Some(key) => {
                let (begin, end) = (&self.prefix[..key.start], &self.prefix[key.end..]);
                write!(f, "{}{begin}{PLACEHOLDER}{end}", self.origin)
            }
            None => write!(f, "{}{}", self.origin, self.prefix),
        }
    }
}

/// Where a base's path holds its key, as it is typed and shown.
const PLACEHOLDER: &str = "{key}";

/// Every base below which a request is the chain's business.
pub(crate) struct Scope {
    bases: Vec<Base>,
}

impl Scope {
    pub(crate) fn new(bases: impl IntoIterator<Item = Base>) -> Self {
        let mut scope = Self { bases: Vec::new() };
        for base in bases {
            if !scope.bases.contains(&base) {
                scope.bases.push(base);
            }
        }
        scope
    }

    /// The longest base that `url` lies below. `None`: not ours, it passes through untouched.
    pub(crate) fn claim(&self, url: &Url) -> Option<Claim> {
        self.bases
            .iter()
            .enumerate()
            .filter(|(_, base)| base.contains(url))
            .map(|(at, base)| Claim { base: at, suffix_at: base.prefix.len() })
            .max_by_key(|claim| claim.suffix_at)
    }

    /// The base at the index of a [`Claim`] of this scope.
    pub(crate) fn base(&self, at: usize) -> &Base {
        &self.bases[at]
    }
}

/// A URL's place in a [`Scope`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    /// The index of the base in the scope.
    pub(crate) base: usize,
    /// Where, in bytes of the URL's path, that base ends.
    pub(crate) suffix_at: usize,
}

impl Claim {
    /// What follows the base in the claimed URL's path: empty, or beginning with `/`. `None` for a
    /// URL that this claim was not made for.
    pub(crate) fn suffix<'u>(&self, url: &'u Url) -> Option<&'u str> {
        url.path().get(self.suffix_at..).filter(|suffix| is_whole(suffix))
    }
}

/// The URL that `caller` becomes at `base`: origin, prefix, then the claimed suffix and what the
/// rewrite leaves of the query, byte for byte. The fragment is dropped.
///
/// `None` where the result would not be exactly that, or where the suffix hides a dot segment. A
/// pure function of its arguments, so that callers may cache it.
pub(crate) fn target_url(
    base: &Base,
    caller: &Url,
    claim: &Claim,
    rewrite: &QueryRewrite<'_>,
) -> Option<Url> {
    let suffix = claim.suffix(caller)?;
    if hides_dot_segment(suffix) {
        return None;
    }
    let mut text = [&base.origin, &base.prefix, suffix].concat();
    let path = base.origin.len()..text.len();
    rewrite.append_to(&mut text, caller.query());

    let url = Url::parse(&text).ok()?;
    is_as_meant(base, &url, &text[path]).then_some(url)
}

/// Whether the parser read the origin and path that were written, and nothing else before the query.
fn is_as_meant(base: &Base, url: &Url, path: &str) -> bool {
    let path = if path.is_empty() { "/" } else { path };
    base.shares_origin(url) && !has_userinfo(url) && url.path() == path
}

/// Whether a URL that the user's `map_request` may have changed is still the provider's own.
pub(crate) fn still_inside(base: &Base, url: &Url) -> bool {
    base.shares_origin(url)
        && !has_userinfo(url)
        && base.suffix(url).is_some_and(|suffix| !hides_dot_segment(suffix))
}

/// Whether a path, as it is or percent-decoded once or twice, holds a `.` or `..` segment between
/// `/`, `\` or `;`. The URL parser has resolved the plain ones; what is left is meant for a server
/// that decodes later than we do.
pub(crate) fn hides_dot_segment(suffix: &str) -> bool {
    let raw = suffix.as_bytes();
    if !raw.iter().any(|byte| matches!(byte, b'.' | b'%')) {
        return false;
    }
    if has_dot_segment(raw) {
        return true;
    }
    if !raw.contains(&b'%') {
        return false;
    }
    let once: Vec<u8> = percent_decode(raw).collect();
    let twice: Vec<u8> = percent_decode(&once).collect();
    has_dot_segment(&once) || has_dot_segment(&twice)
}

/// Whether an answer came from another place than the one that was asked: a redirect was followed
/// below this layer, which may turn a POST into a GET and answer 200.
///
/// Origin and path are compared. A query that changed is no redirect, since a layer below may sign
/// the URL there. With `may_move`, for a GET or HEAD, another place below the base is none either.
pub(crate) fn is_redirected(asked: &Url, answered: &Url, may_move: bool, base: &Base) -> bool {
    let same_origin = asked.scheme() == answered.scheme()
        && asked.host_str() == answered.host_str()
        && asked.port_or_known_default() == answered.port_or_known_default();
    if same_origin && asked.path() == answered.path() {
        return false;
    }
    !(may_move && still_inside(base, answered))
}

fn is_whole(suffix: &str) -> bool {
    suffix.is_empty() || suffix.starts_with('/')
}

fn has_userinfo(url: &Url) -> bool {
    !url.username().is_empty() || url.password().is_some()
}

fn has_dot_segment(path: &[u8]) -> bool {
    path.split(|byte| matches!(byte, b'/' | b'\\' | b';'))
        .any(|segment| matches!(segment, b"." | b".."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    fn base(text: &str) -> Base {
        Base::parse(text).unwrap()
    }

    fn scope(bases: &[&str]) -> Scope {
        Scope::new(bases.iter().map(|text| base(text)))
    }

    /// The caller's URL, claimed below `from`, at `to`.
    fn readdressed(from: &str, to: &str, caller: &str) -> Option<String> {
        with_query(from, to, caller, Some(&StripList::new([], [])), &[])
    }

    fn with_query(
        from: &str,
        to: &str,
        caller: &str,
        strip: Option<&StripList>,
        set: &[QueryPair],
    ) -> Option<String> {
        let caller = url(caller);
        let claim = scope(&[from]).claim(&caller).expect("in scope");
        target_url(&base(to), &caller, &claim, &QueryRewrite { strip, set }).map(String::from)
    }

    #[test]
    fn a_base_is_an_origin_and_a_prefix() {
        let table = [
            ("https://h", "https://h"),
            ("https://h/", "https://h"),
            ("https://h/v1", "https://h/v1"),
            ("https://h/v1/", "https://h/v1"),
            ("https://h/v1//", "https://h/v1"),
            (" https://h/v1\n", "https://h/v1"),
            ("HTTPS://API.Example.com/V1", "https://api.example.com/V1"),
            ("https://h:443/v1", "https://h/v1"),
            ("http://h:80", "http://h"),
            ("https://h:8443/v1", "https://h:8443/v1"),
            ("http://[::1]:8080/a/b/", "http://[::1]:8080/a/b"),
            ("https://[2001:DB8::1]", "https://[2001:db8::1]"),
            ("https://h/openai/deployments/gpt-4.1", "https://h/openai/deployments/gpt-4.1"),
            ("https://h/a/../b", "https://h/b"),
            ("https://bücher.example", "https://xn--bcher-kva.example"),
        ];
        for (text, shown) in table {
            assert_eq!(format!("{:?}", base(text)), shown, "{text}");
        }
    }

    #[test]
    fn what_is_no_base_is_refused_with_what_would_be_right() {
        let table = [
            ("", "absolute"),
            ("api.example.com/v1", "absolute"),
            ("/v1", "absolute"),
            ("//h/v1", "absolute"),
            ("https:h", "absolute"),
            ("https://", "absolute"),
            ("https:///v1", "host"),
            ("https://h h/v1", "whitespace"),
            ("https://h/v\n1", "whitespace"),
            ("ftp://h/v1", "https://"),
            ("file:///etc", "https://"),
            ("unix:/run/x", "https://"),
            ("https://me:canary@h/v1", "user or password"),
            ("https://canary@h/v1", "user or password"),
            ("https://@h/v1", "user or password"),
            ("https://h/v1?", "query"),
            ("https://h/v1?key=canary", "query"),
            ("https://h/v1#", "fragment"),
            ("https://h/v1#canary", "fragment"),
            ("https://h/v1/%252e%252e", "segment"),
            ("https://h/v1/..;x", "segment"),
            ("https://h/a%2f..%2fb", "segment"),
        ];
        for (text, word) in table {
            let problem = Base::parse(text).unwrap_err();
            assert!(problem.contains(word), "{text}: {problem}");
            assert!(!problem.contains("canary"), "{text}: {problem}");
        }
    }

    #[test]
    fn equal_bases_are_equal_however_they_are_written() {
        assert_eq!(base("https://h:443/v1/"), base("HTTPS://H/v1"));
        for other in
            ["http://h/v1", "https://h:444/v1", "https://g/v1", "https://h", "https://h/V1"]
        {
            assert_ne!(base("https://h/v1"), base(other));
        }
    }

    #[test]
    fn loopback_is_127_and_1_and_localhost() {
        let table = [
            ("http://127.0.0.1:8080", true),
            ("http://127.9.9.9", true),
            ("http://[::1]:1", true),
            ("http://LOCALHOST/v1", true),
            ("http://10.0.0.1", false),
            ("http://[::2]", false),
            ("http://localhost.example.com", false),
            ("http://127.0.0.1.example.com", false),
        ];
        for (text, loopback) in table {
            assert_eq!(base(text).is_loopback(), loopback, "{text}");
        }
        assert!(base("http://h").is_plaintext());
        assert!(!base("https://h").is_plaintext());
        assert_eq!(base("https://h:8443/v1").host_str(), "h");
        assert_eq!(base("https://h:8443/v1").origin, "https://h:8443");
    }

    #[test]
    fn a_base_contains_its_own_origin_and_whole_segments_only() {
        let table = [
            ("https://h/v1", "https://h/v1", true),
            ("https://h/v1", "https://h/v1/", true),
            ("https://h/v1", "https://h/v1?x", true),
            ("https://h/v1", "https://h:443/v1/chat", true),
            ("https://h:443/v1", "https://h/v1/chat", true),
            ("https://h/v1", "https://me:pw@h/v1/chat", true),
            ("https://h", "https://h", true),
            ("https://h", "https://h//x", true),
            ("https://h:8443/v1", "https://h:8443/v1/x", true),
            ("http://[::1]:80/v1", "http://[0:0::1]/v1/x", true),
            ("https://h/v1", "https://h/v10", false),
            ("https://h/v1", "https://h/v10/chat", false),
            ("https://h/v1", "https://h/v1%2fchat", false),
            ("https://h/v1", "https://h/V1/chat", false),
            ("https://h/v1", "https://h/", false),
            ("https://h/v1", "https://h//v1/x", false),
            ("https://h/v1", "https://h/v1/../admin", false),
            ("https://h/v1", "https://h/v1/%2e%2e/admin", false),
            ("https://h/v1", "https://h/v1\\..\\admin", false),
            ("https://h/v1", "http://h/v1/chat", false),
            ("https://h/v1", "https://h:8443/v1/chat", false),
            ("https://h/v1", "https://h.evil.example/v1/chat", false),
            ("https://h/v1", "https://h@evil.example/v1/chat", false),
            ("https://h/v1", "data:text/plain,x", false),
        ];
        for (text, caller, inside) in table {
            assert_eq!(base(text).contains(&url(caller)), inside, "{text} {caller}");
        }
    }

    #[test]
    fn the_longest_base_wins_whatever_the_order() {
        let bases = ["https://h", "https://h/v1/beta", "https://h/v1", "https://g", "https://h/"];
        let scope = scope(&bases);
        let table = [
            ("https://h/v1/beta/x", Some((1, "/x"))),
            ("https://h/v1/betax", Some((2, "/betax"))),
            ("https://h/v10", Some((0, "/v10"))),
            ("https://h", Some((0, "/"))),
            ("https://g/v1", Some((3, "/v1"))),
            ("https://i/v1", None),
        ];
        for (caller, expected) in table {
            let caller = url(caller);
            let claim = scope.claim(&caller);
            let found = claim.map(|claim| (claim.base, claim.suffix(&caller).unwrap()));
            assert_eq!(found, expected, "{caller}");
        }
        assert_eq!(scope.bases.len(), 4);
        assert_eq!(scope.base(1), &base("https://h/v1/beta"));
    }

    #[test]
    fn a_url_moves_to_another_base_byte_for_byte() {
        #[rustfmt::skip]
        let table = [
            ("https://h/v1", "https://t/v1", "https://h/v1/chat", "https://t/v1/chat"),
            ("https://h/v1/", "https://t/v1", "https://h/v1/chat", "https://t/v1/chat"),
            ("https://h/v1", "https://t/v1/", "https://h/v1/chat", "https://t/v1/chat"),
            ("https://h/v1", "https://t", "https://h/v1/chat", "https://t/chat"),
            ("https://h", "https://t/a/b", "https://h/chat", "https://t/a/b/chat"),
            ("https://h/v1", "https://t/v1", "https://h/v1", "https://t/v1"),
            ("https://h/v1", "https://t/v1", "https://h/v1/", "https://t/v1/"),
            ("https://h/v1", "https://t", "https://h/v1", "https://t/"),
            ("https://h", "https://t/v1", "https://h", "https://t/v1/"),
            ("https://h:1/v1", "https://t:2/v1", "https://h:1/v1/x", "https://t:2/v1/x"),
            ("https://h/v1", "http://[::1]:8080", "https://h/v1/x", "http://[::1]:8080/x"),
            ("https://h", "https://t", "https://h//evil.example/x", "https://t//evil.example/x"),
            ("https://h", "https://t", "https://h///x", "https://t///x"),
            ("https://h", "https://t", "https://h/@evil.example/x", "https://t/@evil.example/x"),
            ("https://h", "https://t", "https://h/:8080/x", "https://t/:8080/x"),
            ("https://h/v1", "https://t", "https://h/v1/org%2Fname", "https://t/org%2Fname"),
            ("https://h", "https://t", "https://h/a%20b/%C3%A9|^", "https://t/a%20b/%C3%A9|^"),
            ("https://h", "https://t", "https://h/gpt-4.1/.well-known/...", "https://t/gpt-4.1/.well-known/..."),
            ("https://h", "https://t", "https://me:pw@h/x#frag", "https://t/x"),
            ("https://h", "https://h", "https://h/x?a=1#frag", "https://h/x?a=1"),
        ];
        for (from, to, caller, expected) in table {
            // The parser has its own view of a few bytes; what it made of the caller's counts.
            let expected = url(expected).to_string();
            assert_eq!(readdressed(from, to, caller).as_ref(), Some(&expected), "{caller} at {to}");
        }
    }

    #[test]
    fn a_url_that_the_parser_read_otherwise_is_not_what_was_meant() {
        let base = base("https://t/v1");
        let table = [
            ("https://t/v1/x?a#b", "/v1/x", true),
            ("https://t:443/", "", true),
            ("https://t/v1/y", "/v1/x", false),
            ("https://t/x", "", false),
            ("https://evil.example/v1/x", "/v1/x", false),
            ("http://t/v1/x", "/v1/x", false),
            ("https://t:8443/v1/x", "/v1/x", false),
            ("https://me@t/v1/x", "/v1/x", false),
            ("https://:pw@t/v1/x", "/v1/x", false),
        ];
        for (read, path, meant) in table {
            assert_eq!(is_as_meant(&base, &url(read), path), meant, "{read}");
        }
    }

    #[test]
    fn a_claim_is_of_no_use_for_another_url() {
        let caller = url("https://h/v1/chat");
        let claim = scope(&["https://h/v1"]).claim(&caller).unwrap();
        let rewrite = QueryRewrite { strip: None, set: &[] };
        for other in ["https://h/", "https://h/v1é", "https://h/evil"] {
            assert!(target_url(&base("https://t"), &url(other), &claim, &rewrite).is_none());
        }
    }

    #[test]
    fn every_disguise_of_a_dot_segment_is_refused() {
        #[rustfmt::skip]
        let hidden = [
            "/..", "/.", "/../x", "/x/.", "/%2e%2e/x", "/%2E./x", "/.%2e", "/%2e",
            "/%252e%252e/x", "/%252e", "/%252E%2e/x", "/..;x/y", "/;../x", "/.;/x", "/x;.",
            "/%3b..", "/..%3Bx", "/..%253bx", "/..\\x", "/\\..", "/%5c..", "/..%5Cx",
            "/a%5c..%5cb", "/..%2f", "/..%2Fx", "/a%2f..%2fb", "/a%2f..", "/%2e%2e%2fx",
            "/%252e%252e%252fx", "/a%252f..%252fb", "/..%255cx", "/x/%ff/..",
        ];
        for suffix in hidden {
            assert!(hides_dot_segment(suffix), "{suffix}");
        }
        #[rustfmt::skip]
        let fine = [
            "", "/", "//", "/chat/completions", "/org%2Fname", "/org%252Fname", "/gpt-4.1",
            "/...", "/.well-known", "/..x", "/x..", "/a.b;c=d.e", "/;", "/%2e%2e%2e", "/%",
            "/%2", "/%zz.", "/a%20.b", "/files/report..pdf", "/%ff%fe",
        ];
        for suffix in fine {
            assert!(!hides_dot_segment(suffix), "{suffix}");
        }
    }

    #[test]
    fn a_hidden_dot_segment_has_no_target() {
        for suffix in ["/%252e%252e/x", "/..;x", "/%5c../x", "/..%2fx", "/a%2f../x"] {
            assert_eq!(
                readdressed("https://h/v1", "https://t/v1", &format!("https://h/v1{suffix}")),
                None,
                "{suffix}"
            );
        }
    }

    #[test]
    fn callers_query_keys_stay_behind_and_the_rest_keeps_its_bytes() {
        let table = [
            ("", ""),
            ("?", "?"),
            ("?a=1&b=%7e+x&a=&=&&c", "?a=1&b=%7e+x&a=&=&&c"),
            ("?&a=1", "?&a=1"),
            ("?a=1&", "?a=1&"),
            ("?a=b=c?d/e:f@g", "?a=b=c?d/e:f@g"),
            ("?a='%27", "?a=%27%27"),
            ("?key=canary", ""),
            ("?key", ""),
            ("?key=canary&", ""),
            ("?a=1&key=canary", "?a=1"),
            ("?key=canary&a=%7E", "?a=%7E"),
            ("?a=1&key=canary&b=2&KEY=canary", "?a=1&b=2"),
            ("?%6bey=canary&a=1", "?a=1"),
            ("?%4B%65%79=canary&a=1", "?a=1"),
            ("?Api_Key=canary&api-key=canary&ACCESS_TOKEN=canary", ""),
            ("?my+key=canary&a=1", "?a=1"),
            ("?my%20KEY=canary&a=1", "?a=1"),
            ("?my%2Bkey=1&monkey=2&keys=3&a=key", "?my%2Bkey=1&monkey=2&keys=3&a=key"),
        ];
        let strip = StripList::new([], ["My Key".to_owned()]);
        for (query, left) in table {
            let caller = format!("https://h/v1/x{query}");
            let target = with_query("https://h/v1", "https://t", &caller, Some(&strip), &[]);
            assert_eq!(target, Some(format!("https://t/x{left}")), "{query}");
        }
    }

    #[test]
    fn set_pairs_replace_the_callers_and_the_key_comes_last() {
        let set = [
            QueryPair::new("api-version", "2024 10&x=é", false),
            QueryPair::new("key", "own/canary", true),
        ];
        let appended = "api-version=2024+10%26x%3D%C3%A9&key=own%2Fcanary";
        let table = [
            ("", ""),
            ("?", ""),
            ("?a=1&b=%7e", "a=1&b=%7e&"),
            ("?API-Version=1&a=1", "a=1&"),
            ("?a=1&api%2dversion=1&b&api-version", "a=1&b&"),
            ("?key=canary", ""),
        ];
        for (query, left) in table {
            let caller = format!("https://h/x{query}");
            for strip in [Some(&StripList::new([], [])), None] {
                let target = with_query("https://h", "https://t/v1", &caller, strip, &set);
                assert_eq!(target, Some(format!("https://t/v1/x?{left}{appended}")), "{query}");
            }
        }
    }

    #[test]
    fn only_a_url_within_the_base_is_still_inside() {
        let table = [
            ("https://t/v1/x?a#b", true),
            ("https://t/v1", true),
            ("https://t:443/v1/org%2Fname", true),
            ("https://t/v10", false),
            ("https://t/", false),
            ("http://t/v1/x", false),
            ("https://t:8443/v1/x", false),
            ("https://evil.example/v1/x", false),
            ("https://me@t/v1/x", false),
            ("https://:pw@t/v1/x", false),
            ("https://t/v1/..%2fx", false),
            ("https://t/v1/%252e%252e/x", false),
        ];
        for (changed, inside) in table {
            assert_eq!(still_inside(&base("https://t/v1"), &url(changed)), inside, "{changed}");
        }
    }

    const KEYED: &str = "https://t/v2/{key}/rpc";

    #[test]
    fn a_key_in_a_path_is_put_in_its_place_and_not_shown() {
        for (text, key, prefix, shown) in [
            (KEYED, "s3cr3t", "/v2/s3cr3t/rpc", "https://t/v2/{key}/rpc"),
            ("https://t/bot{key}/", "12:AA-b_c", "/bot12:AA-b_c", "https://t/bot{key}"),
            ("https://t/{key}", "a/b?c#d%", "/a%2Fb%3Fc%23d%25", "https://t/{key}"),
        ] {
            let base = Base::parse_with_key(text, key).unwrap();
            assert_eq!((&*base.prefix, format!("{base:?}")), (prefix, shown.to_owned()), "{text}");
            assert!(!base.url().as_str().contains(key), "{text}");
            let target = Url::parse(&format!("https://t{prefix}/x")).unwrap();
            assert!(still_inside(&base, &target));
        }
        for (text, key) in [
            ("https://t/v2", "canary"),
            ("https://t/{key}/{key}", "canary"),
            ("https://{key}.t/v2", "canary"),
            ("https://t/v2?key={key}", "canary"),
            ("https://t/{key}", ".."),
            ("https://t/{key}/x", "."),
            ("https://t/%2e{key}", "%2e"),
        ] {
            let problem = Base::parse_with_key(text, key).unwrap_err();
            assert!(!problem.contains("canary"), "{text}: {problem}");
        }
        assert!(Base::parse(KEYED).unwrap_err().contains("api_key_path"));
    }

    #[test]
    fn a_request_may_be_addressed_below_a_base_as_it_was_typed() {
        let keyed = Base::parse_with_key(KEYED, "s3cr3t").unwrap();
        let scope = Scope::new([keyed.clone(), keyed.template().unwrap()]);
        let caller = url("https://t/v2/{key}/rpc/x?a=1");
        let claim = scope.claim(&caller).unwrap();
        let rewrite = QueryRewrite { strip: None, set: &[] };
        let target = target_url(&keyed, &caller, &claim, &rewrite).unwrap();
        assert_eq!(target.as_str(), "https://t/v2/s3cr3t/rpc/x?a=1");
        assert!(base("https://t/v2").template().is_none());
    }

    #[test]
    fn a_cleaned_path_holds_no_key() {
        let keyed = Base::parse_with_key(KEYED, "s3cr3t-7").unwrap();
        for (handed_out, cleaned) in [
            ("https://t/v2/s3cr3t-7/rpc/x?a=1", "https://t/v2/%7Bkey%7D/rpc/x?a=1"),
            ("https://t/v2/s3cr3t-7/rpc", "https://t/v2/%7Bkey%7D/rpc"),
            ("https://u/login/s3cr3t-7", "https://u/login/%7Bkey%7D"),
            ("https://u/login/s3cr3t%2D7", "https://u/"),
            ("https://u/plain", "https://u/plain"),
        ] {
            let mut url = url(handed_out);
            keyed.clean_path(&mut url);
            assert_eq!(url.as_str(), cleaned, "{handed_out}");
        }
        let short = Base::parse_with_key("https://t/{key}/v1", "v1").unwrap();
        let mut short_url = url("https://t/v1/v1/v1");
        short.clean_path(&mut short_url);
        assert_eq!(short_url.as_str(), "https://t/%7Bkey%7D/v1/v1");
    }

    #[test]
    fn an_answer_from_another_place_is_redirected() {
        let base = base("https://t/v1");
        let asked = "https://t/v1/x?a=1";
        // Of a POST, and of a GET.
        for (answered, post, get) in [
            (asked, false, false),
            ("https://t/v1/x", false, false),
            ("https://t:443/v1/x?sig=2#frag", false, false),
            ("https://t/v1/y", true, false),
            ("https://t/v1/x/", true, false),
            ("https://t/elsewhere", true, true),
            ("https://t/v10/x", true, true),
            ("https://t/v1/..%2fx", true, true),
            ("http://t/v1/x", true, true),
            ("https://t:8443/v1/x", true, true),
            ("https://evil.example/v1/x", true, true),
        ] {
            let is = |may_move| is_redirected(&url(asked), &url(answered), may_move, &base);
            assert_eq!((is(false), is(true)), (post, get), "{answered}");
        }
    }
}
