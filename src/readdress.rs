//! Makes a request the provider's own: which URLs may be touched at all, what a URL becomes under
//! another base, and which of the caller's headers and query keys stay behind.
//!
//! One promise rules this file: a key never leaves home. So nothing here edits a URL in place. A
//! target is written out as text (origin, prefix, the caller's suffix, the query), parsed once, and
//! thrown away unless the parser read exactly what was meant.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::header::{AUTHORIZATION, COOKIE, HOST, PROXY_AUTHORIZATION};
use http::{HeaderMap, HeaderName};
use percent_encoding::{
    AsciiSet, NON_ALPHANUMERIC, percent_decode, percent_decode_str, utf8_percent_encode,
};
use reqwest::{Request, Url};

/// A checked base URL: an origin and a path prefix without a trailing slash.
#[derive(Clone)]
pub(crate) struct Base {
    url: Url,
    origin: String,
    prefix: String,
}

impl Base {
    /// Parses `https://host[:port][/prefix]`. The error says what would be right and never repeats
    /// the text, which may hold a password.
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
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
        Ok(Self { url, origin, prefix })
    }

    pub(crate) fn is_plaintext(&self) -> bool {
        self.url.scheme() == "http"
    }

    /// 127.0.0.0/8, `::1` and `localhost`.
    pub(crate) fn is_loopback(&self) -> bool {
        let host = self.host_str().trim_matches(['[', ']']);
        host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
    }

    pub(crate) fn url(&self) -> &Url {
        &self.url
    }

    pub(crate) fn host_str(&self) -> &str {
        self.url.host_str().unwrap_or_default()
    }

    /// Whether `url` lies below this base: the same origin, whole path segments. Userinfo is
    /// ignored.
    pub(crate) fn contains(&self, url: &Url) -> bool {
        self.shares_origin(url) && self.suffix(url).is_some()
    }

    fn shares_origin(&self, url: &Url) -> bool {
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
        write!(f, "{}{}", self.origin, self.prefix)
    }
}

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

/// What remove behind when a request is readdressed, whoever it goes to: the names that are known to
/// carry keys, and those that any entry of the chain uses for its own.
pub(crate) struct StripList {
    pub(crate) headers: Vec<HeaderName>,
    /// Their lengths, a bit for each.
    lengths: u64,
    /// Decoded, compared without ASCII case.
    pub(crate) queries: Vec<String>,
}

impl StripList {
    pub(crate) fn new(
        headers: impl IntoIterator<Item = HeaderName>,
        queries: impl IntoIterator<Item = String>,
    ) -> Self {
        let mut list = Self {
            headers: [&CREDENTIAL_HEADERS[..], &CALLERS_HEADERS[..]].concat(),
            lengths: 0,
            queries: CREDENTIAL_QUERIES.map(str::to_owned).into(),
        };
        for header in headers {
            if !list.headers.contains(&header) {
                list.headers.push(header);
            }
        }
        for query in queries {
            if !list.queries.iter().any(|known| known.eq_ignore_ascii_case(&query)) {
                list.queries.push(query);
            }
        }
        list.lengths = list.headers.iter().fold(0, |lengths, name| lengths | length_bit(name));
        list
    }

    /// Whether this header remove behind.
    fn holds(&self, name: &HeaderName) -> bool {
        self.has_one_as_long_as(name) && self.headers.contains(name)
    }

    /// This tells most others apart, and saves comparing each header of each request with every name
    /// in the list: a tenth of this layer's cost.
    fn has_one_as_long_as(&self, name: &HeaderName) -> bool {
        self.lengths & length_bit(name) != 0
    }

    /// What a provider that is given the caller's own credentials could echo.
    pub(crate) fn secrets_of(&self, request: &Request) -> Vec<String> {
        let mut secrets = Vec::new();
        for (name, value) in request.headers() {
            let value = if value.is_sensitive() || self.holds(name) { value } else { continue };
            let Ok(value) = value.to_str() else { continue };
            let bare = value.rsplit(' ').next().unwrap_or_default();
            secrets.extend([value, bare].map(str::to_owned));
            secrets.extend(value.strip_prefix("Basic ").and_then(password));
            if name == COOKIE {
                let values = value.split(';').filter_map(|pair| pair.split_once('='));
                secrets.extend(values.map(|(_, value)| value.trim().to_owned()));
            }
        }
        for (name, value) in request.url().query_pairs() {
            if self.queries.iter().any(|known| known.eq_ignore_ascii_case(&name)) {
                secrets.push(value.into_owned());
            }
        }
        secrets
    }
}

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
}

/// What a provider does to the caller's query. The pairs that are left keep their bytes and order.
pub(crate) struct QueryRewrite<'a> {
    /// Names whose pairs are removed.
    pub(crate) strip: &'a [String],
    /// Pairs that replace the caller's of the same name, and are appended in this order.
    pub(crate) set: &'a [QueryPair],
}

impl QueryRewrite<'_> {
    fn append_to(&self, text: &mut String, query: Option<&str>) {
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
        let same = |other: &str| name.eq_ignore_ascii_case(other.as_bytes());
        self.strip.iter().any(|other| same(other)) || self.set.iter().any(|set| same(&set.name))
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

/// A bit that tells the length; all long names share one.
fn length_bit(name: &HeaderName) -> u64 {
    1 << name.as_str().len().min(63)
}

/// Removes from a copy what must not travel: headers in `strip` or `own`, sensitive values, `host`.
/// With `keep_caller_auth` only `own` and `host`. Allocates only if there is something to remove.
pub(crate) fn strip_headers(
    headers: &mut HeaderMap,
    strip: &StripList,
    own: &[HeaderName],
    keep_caller_auth: bool,
) {
    let mut to_remove = Vec::new();
    for (name, value) in headers.iter() {
        let remove = match keep_caller_auth {
            true => name == HOST,
            // The host's header is in the list, too.
            false => value.is_sensitive() || strip.holds(name),
        };
        if remove || own.contains(name) {
            to_remove.push(name.clone());
        }
    }
    for name in to_remove {
        headers.remove(name);
    }
}

/// Drops a URL's query and fragment, for URLs that are handed out and may hold a key.
pub(crate) fn clean_url(url: &mut Url) {
    url.set_query(None);
    url.set_fragment(None);
}

/// Whether the header is known to carry keys.
pub(crate) fn is_credential_header(name: &HeaderName) -> bool {
    CREDENTIAL_HEADERS.contains(name)
}

/// Whether the query key is known to carry keys.
pub(crate) fn is_credential_query(name: &str) -> bool {
    CREDENTIAL_QUERIES.iter().any(|known| known.eq_ignore_ascii_case(name))
}

/// `text` as `application/x-www-form-urlencoded` writes it.
pub(crate) fn form_encoded(text: &str) -> String {
    const ENCODED: &AsciiSet =
        &NON_ALPHANUMERIC.remove(b'*').remove(b'-').remove(b'.').remove(b'_').remove(b' ');
    utf8_percent_encode(text, ENCODED).to_string().replace(' ', "+")
}

static CREDENTIAL_HEADERS: [HeaderName; 6] = [
    AUTHORIZATION,
    PROXY_AUTHORIZATION,
    COOKIE,
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("api-key"),
    HeaderName::from_static("x-goog-api-key"),
];

/// Not keys, but true of the caller's own provider only.
static CALLERS_HEADERS: [HeaderName; 3] = [
    HOST,
    HeaderName::from_static("openai-organization"),
    HeaderName::from_static("openai-project"),
];

const CREDENTIAL_QUERIES: [&str; 4] = ["key", "api_key", "api-key", "access_token"];

/// The password in a basic credential.
fn password(encoded: &str) -> Option<String> {
    let decoded = String::from_utf8(BASE64.decode(encoded.trim()).ok()?).ok()?;
    Some(decoded.split_once(':')?.1.to_owned()).filter(|password| !password.is_empty())
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

fn form_decoded(name: &str) -> Cow<'_, [u8]> {
    if !name.contains('+') {
        return percent_decode_str(name).into();
    }
    percent_decode_str(&name.replace('+', " ")).collect::<Vec<_>>().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

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
        with_query(from, to, caller, &StripList::new([], []).queries, &[])
    }

    fn with_query(
        from: &str,
        to: &str,
        caller: &str,
        strip: &[String],
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
        let rewrite = QueryRewrite { strip: &[], set: &[] };
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
            let target = with_query("https://h/v1", "https://t", &caller, &strip.queries, &[]);
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
            for strip in [&StripList::new([], []).queries[..], &[]] {
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

    fn callers_headers() -> HeaderMap {
        let mut headers = HeaderMap::new();
        for name in [
            "host",
            "authorization",
            "Proxy-Authorization",
            "cookie",
            "X-API-Key",
            "api-key",
            "x-goog-api-key",
            "openai-organization",
            "openai-project",
            "x-vendor-key",
            "content-type",
            "x-own",
        ] {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            headers.append(name, HeaderValue::from_static("canary"));
        }
        let mut sensitive = HeaderValue::from_static("canary");
        sensitive.set_sensitive(true);
        headers.append("x-mixed", HeaderValue::from_static("plain"));
        headers.append("x-mixed", sensitive);
        headers
    }

    fn left(own: &[HeaderName], keep_caller_auth: bool) -> Vec<String> {
        let strip = StripList::new([HeaderName::from_static("x-vendor-key")], []);
        let mut headers = callers_headers();
        strip_headers(&mut headers, &strip, own, keep_caller_auth);
        let mut names: Vec<_> = headers.keys().map(ToString::to_string).collect();
        names.sort();
        names
    }

    #[test]
    fn headers_that_may_carry_a_key_are_removed() {
        assert_eq!(left(&[], false), ["content-type", "x-own"]);
        assert_eq!(left(&[HeaderName::from_static("x-own")], false), ["content-type"]);
    }

    #[test]
    fn kept_caller_auth_loses_only_host_and_what_the_provider_strips() {
        let kept = left(&[HeaderName::from_static("x-own")], true);
        assert_eq!(kept.len(), callers_headers().keys_len() - 2);
        assert!(!kept.iter().any(|name| name == "host" || name == "x-own"));
        assert!(kept.iter().any(|name| name == "authorization"));
    }

    #[test]
    fn what_the_caller_hands_over_is_found_whole_and_in_parts() {
        let address = url("https://h/v1?KEY=in%20query&token=in+query+too&plain=visible");
        let mut request = Request::new(http::Method::GET, address);
        let mut sensitive = HeaderValue::from_static("marked");
        sensitive.set_sensitive(true);
        let headers = [
            (AUTHORIZATION, HeaderValue::from_static("Bearer bare")),
            (PROXY_AUTHORIZATION, HeaderValue::from_static("Basic dXNlcjpwYXNz")),
            (COOKIE, HeaderValue::from_static("a=one; b=two=2")),
            (HeaderName::from_static("x-marked"), sensitive),
            (HeaderName::from_static("x-plain"), HeaderValue::from_static("visible=visible")),
        ];
        request.headers_mut().extend(headers);

        let mut found = StripList::new([], ["token".to_owned()]).secrets_of(&request);

        let mut expected = [
            &["Bearer bare", "bare"][..],
            &["Basic dXNlcjpwYXNz", "dXNlcjpwYXNz", "pass"],
            &["a=one; b=two=2", "b=two=2", "one", "two=2"],
            &["marked", "marked"],
            &["in query", "in query too"],
        ]
        .concat();
        found.sort();
        expected.sort();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_password_is_what_follows_the_user_if_it_is_anything() {
        assert_eq!(password(" dXNlcjpwYTpzcw== ").as_deref(), Some("pa:ss"));
        for none in ["dXNlcjo=", "dXNlcg==", "", "no base64", "/////w=="] {
            assert_eq!(password(none), None, "{none}");
        }
    }

    #[test]
    fn the_strip_list_is_the_union_without_repeats() {
        let plain = StripList::new([], []);
        let list = StripList::new(
            [AUTHORIZATION, HeaderName::from_static("x-a"), HeaderName::from_static("x-a")],
            ["KEY", "token", "Token"].map(str::to_owned),
        );
        assert_eq!(list.headers.len(), plain.headers.len() + 1);
        assert_eq!(list.queries, ["key", "api_key", "api-key", "access_token", "token"]);
    }

    #[test]
    fn a_header_of_a_length_that_no_name_in_the_list_has_is_told_apart_by_that() {
        let list = StripList::new([HeaderName::from_static("x-a")], []);
        for (name, as_long) in [("x-b", true), ("host", true), ("te", false), ("accept-x", false)] {
            let name = HeaderName::from_static(name);
            assert_eq!(list.has_one_as_long_as(&name), as_long, "{name}");
        }
        let long = HeaderName::try_from("x".repeat(63)).unwrap();
        let longer = HeaderName::try_from("x".repeat(200)).unwrap();
        assert!(!list.has_one_as_long_as(&longer));
        assert!(
            StripList::new([long], []).has_one_as_long_as(&longer),
            "all long ones share a bit"
        );
        assert!(StripList::new([longer.clone()], []).holds(&longer));
    }

    #[test]
    fn a_cleaned_url_has_neither_query_nor_fragment() {
        let mut cleaned = url("https://t/v1/x?key=canary#frag");
        clean_url(&mut cleaned);
        assert_eq!(cleaned.as_str(), "https://t/v1/x");
    }
}
