//! An entry of a chain as `build()` checked it.
//!
//! [`check`] parses all of it, and an [`Entry`] holds only what can no longer be wrong: every header
//! value is built and marked sensitive before the first request.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, EXPECT, HOST, TE, TRAILER, TRANSFER_ENCODING,
    UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue};
use reqwest::Request;
use reqwest::Url;

use super::{Credential, MapRequest, Provider, TokenSource};
use crate::error::ConfigError;
use crate::readdress::{
    Base, Claim, QueryPair, QueryRewrite, Scope, StripList, is_credential_header,
    is_credential_query, strip_headers, target_url,
};
use crate::splice::{drop_stale_headers, splice_model};

/// What `build()` makes of a list of providers.
pub(crate) struct Checked {
    /// In the order of the list.
    pub(crate) entries: Vec<Entry>,
    pub(crate) scope: Scope,
    pub(crate) strip: StripList,
}

/// Checks the providers and the URLs given to `.claim(..)`, and computes what depends on all.
pub(crate) fn check(providers: Vec<Provider>, claims: Vec<String>) -> Result<Checked, ConfigError> {
    if providers.is_empty() {
        return Err(ConfigError::new(None, "providers", "must name at least one"));
    }
    if providers.len() > MAX_PROVIDERS {
        let problem = format!("must be at most {MAX_PROVIDERS}");
        return Err(ConfigError::new(None, "providers", problem));
    }
    let mut entries: Vec<Entry> = Vec::with_capacity(providers.len());
    for (n, provider) in providers.into_iter().enumerate() {
        let name = provider.name.clone();
        if name.trim().is_empty() || name.contains(char::is_control) {
            let problem =
                format!("of provider {} must not be empty or hold control characters", n + 1);
            return Err(ConfigError::new(None, "name", problem));
        }
        if entries.iter().any(|entry| *entry.name == *name) {
            let problem = "is used twice: give each provider a name of its own";
            return Err(ConfigError::new(Some(&name), "name", problem));
        }
        let entry = Entry::parse(provider)
            .map_err(|Problem(field, problem)| ConfigError::new(Some(&name), field, problem))?;
        entries.push(entry);
    }
    let mut bases: Vec<Base> = entries.iter().map(|entry| entry.base.clone()).collect();
    for (n, claim) in claims.iter().enumerate() {
        let base = Base::parse(claim).map_err(|problem| {
            ConfigError::new(None, "claim", format!("URL {} {problem}", n + 1))
        })?;
        bases.push(base);
    }
    let strip = StripList::new(
        entries.iter().flat_map(Entry::credential_headers).cloned(),
        entries.iter().flat_map(Entry::credential_queries).map(str::to_owned),
    );
    Ok(Checked { entries, scope: Scope::new(bases), strip })
}

/// A provider that `build()` found sound.
pub(crate) struct Entry {
    pub(crate) name: Arc<str>,
    pub(crate) base: Base,
    /// As set on the provider; the chain's default is not in here.
    pub(crate) attempt_timeout: Option<Duration>,
    /// Asked on each attempt; its token is held to [`checked_key`] and sent as [`bearer_value`].
    pub(crate) source: Option<TokenSource>,
    pub(crate) map_request: Option<MapRequest>,
    /// What no message may show, the longest first.
    pub(crate) secrets: Vec<String>,
    /// The fixed ones, then the credentials, which alone are sensitive.
    headers: Vec<(HeaderName, HeaderValue)>,
    /// The fixed ones, then the credentials.
    queries: Vec<QueryPair>,
    strip: Vec<HeaderName>,
    models: Vec<(String, String)>,
    forward_caller_auth: bool,
}

impl Entry {
    /// The URL that the caller's becomes here. `None` where none is safe, see [`target_url`].
    pub(crate) fn target(
        &self,
        caller: &Url,
        claim: &Claim,
        strip: &StripList,
        scope: &Scope,
    ) -> Option<Url> {
        let keep = self.keeps_caller_auth(scope.base(claim.base));
        let strip: &[String] = if keep { &[] } else { &strip.queries };
        target_url(&self.base, caller, claim, &QueryRewrite { strip, set: &self.queries })
    }

    /// Takes off a copy's headers what is not for this provider, then puts on its own.
    pub(crate) fn apply_headers(
        &self,
        headers: &mut HeaderMap,
        strip: &StripList,
        keep_caller_auth: bool,
    ) {
        strip_headers(headers, strip, &self.strip, keep_caller_auth);
        for (name, value) in &self.headers {
            headers.insert(name, value.clone());
        }
    }

    /// Gives the body's model the name that it has here.
    pub(crate) fn rename_model(&self, request: &mut Request) {
        if self.models.is_empty() {
            return;
        }
        let rename = |model: &str| {
            let (_, to) = self.models.iter().find(|(from, _)| from == model)?;
            Some(to.as_str())
        };
        let body = request.body().and_then(reqwest::Body::as_bytes);
        if let Some(renamed) = body.and_then(|body| splice_model(body, rename)) {
            *request.body_mut() = Some(renamed.into());
            drop_stale_headers(request.headers_mut());
        }
    }

    /// Whether a request that was addressed below `claimed` keeps its caller's credentials here.
    pub(crate) fn keeps_caller_auth(&self, claimed: &Base) -> bool {
        self.forward_caller_auth && *claimed == self.base
    }

    /// Whether this entry's URLs hold a key, and so must be cleaned before they are handed out.
    pub(crate) fn has_query_key(&self) -> bool {
        self.credential_queries().next().is_some()
    }

    fn credential_headers(&self) -> impl Iterator<Item = &HeaderName> {
        self.headers.iter().filter(|(_, value)| value.is_sensitive()).map(|(name, _)| name)
    }

    fn credential_queries(&self) -> impl Iterator<Item = &str> {
        self.queries.iter().filter(|pair| pair.secret).map(|pair| pair.name.as_str())
    }

    fn parse(provider: Provider) -> Result<Self, Problem> {
        let base =
            Base::parse(&provider.base_url).map_err(|problem| Problem::new("base_url", problem))?;
        if provider.attempt_timeout == Some(Duration::ZERO) {
            return Err(Problem::new("attempt_timeout", "must be longer than zero"));
        }
        let authenticates = !provider.credentials.is_empty();
        if provider.forward_caller_auth && authenticates {
            let problem =
                "does not go with a credential of the provider's own: keep one of the two";
            return Err(Problem::new("forward_caller_auth", problem));
        }
        let exposed =
            base.is_plaintext() && !base.is_loopback() && !provider.danger_allow_plaintext;
        if exposed && (authenticates || provider.forward_caller_auth) {
            let problem = "would show a credential to anyone on the way: \
                           use https://, or .danger_allow_plaintext()";
            return Err(Problem::new("base_url", problem));
        }

        let mut keys = Keyring::default();
        for credential in provider.credentials {
            keys.add(credential)?;
        }
        let mut headers = Vec::with_capacity(provider.headers.len() + keys.headers.len());
        for (name, value) in &provider.headers {
            headers.push(keys.fixed_header(name, value)?);
        }
        let mut queries = Vec::with_capacity(provider.queries.len() + keys.queries.len());
        for (name, value) in &provider.queries {
            queries.push(keys.fixed_query(name, value)?);
        }
        let strip = provider.strip.iter().map(|name| header_name("remove_header", name));
        for (at, (from, to)) in provider.models.iter().enumerate() {
            if from.is_empty() || to.is_empty() {
                return Err(Problem::new("rename_model", "must name two models"));
            }
            if provider.models[..at].iter().any(|(other, _)| other == from) {
                let problem = format!("`{from}` is renamed twice: keep one name for it");
                return Err(Problem::new("rename_model", problem));
            }
        }

        Ok(Self {
            name: provider.name.into(),
            base,
            attempt_timeout: provider.attempt_timeout,
            source: keys.source,
            map_request: provider.map_request,
            models: provider.models,
            secrets: longest_first(keys.secrets),
            strip: strip.collect::<Result<_, _>>()?,
            headers: [headers, keys.headers].concat(),
            queries: queries.into_iter().chain(keys.queries).collect(),
            forward_caller_auth: provider.forward_caller_auth,
        })
    }
}

/// Shows what identifies the entry, and nothing of its keys.
impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("name", &self.name)
            .field("base", &self.base)
            .finish_non_exhaustive()
    }
}

/// A key without the whitespace around it, or what is wrong with it, without repeating it. Tokens
/// from [`Provider::bearer_auth_with`] are held to the same.
pub(crate) fn checked_key(raw: &str) -> Result<&str, &'static str> {
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
    } else {
        Ok(key)
    }
}

/// `Bearer <key>`, sensitive. `None` for a key that [`checked_key`] would refuse.
pub(crate) fn bearer_value(key: &str) -> Option<HeaderValue> {
    sensitive(&format!("Bearer {}", checked_key(key).ok()?))
}

/// Generous for a list that is tried one by one.
pub(crate) const MAX_PROVIDERS: usize = 128;

/// Headers that belong to the connection or to the message's framing, not to the user.
static FRAMING_HEADERS: [HeaderName; 10] = [
    HOST,
    CONTENT_LENGTH,
    TRANSFER_ENCODING,
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    TE,
    TRAILER,
    UPGRADE,
    EXPECT,
];

/// What is wrong with an entry: which method, and what would be right.
struct Problem(&'static str, Cow<'static, str>);

impl Problem {
    fn new(field: &'static str, problem: impl Into<Cow<'static, str>>) -> Self {
        Self(field, problem.into())
    }
}

/// The credentials of one entry, as they are checked.
#[derive(Default)]
struct Keyring {
    headers: Vec<(HeaderName, HeaderValue)>,
    queries: Vec<QueryPair>,
    source: Option<TokenSource>,
    secrets: Vec<String>,
}

impl Keyring {
    fn add(&mut self, credential: Credential) -> Result<(), Problem> {
        let field = credential.kind();
        let check = |key| checked_key(key).map_err(|problem| Problem::new(field, problem));
        match credential {
            Credential::Bearer(key) | Credential::Env(_, Ok(key)) => {
                let key = check(&key)?;
                self.add_header(field, AUTHORIZATION, bearer_value(key))?;
                self.secrets.push(key.to_owned());
            }
            Credential::Env(_, Err(problem)) => return Err(Problem::new(field, problem)),
            Credential::Basic(user, password) => {
                if user.contains(char::is_control) || password.contains(char::is_control) {
                    return Err(Problem::new(field, "must hold no control characters"));
                }
                if user.contains(':') {
                    return Err(Problem::new(field, "the user must hold no `:`, which ends it"));
                }
                let encoded = BASE64.encode(format!("{user}:{password}"));
                self.add_header(field, AUTHORIZATION, sensitive(&format!("Basic {encoded}")))?;
                self.secrets.push(encoded);
                self.secrets.extend(Some(password).filter(|password| !password.is_empty()));
            }
            Credential::Header(name, key) => {
                let name = header_name(field, &name)?;
                if FRAMING_HEADERS.contains(&name) {
                    return Err(Problem::new(
                        field,
                        format!("`{name}` is set by the HTTP client: leave it out"),
                    ));
                }
                let key = check(&key)?;
                self.add_header(field, name, sensitive(key))?;
                self.secrets.push(key.to_owned());
            }
            Credential::Query(name, key) => {
                let key = check(&key)?;
                query_name(field, &name)?;
                if self.has_query(&name) {
                    return Err(Problem::new(
                        field,
                        "sets the same name twice: keep one key per name",
                    ));
                }
                self.queries.push(QueryPair::new(&name, key, true));
                self.secrets.push(key.to_owned());
            }
            Credential::Source(source) => {
                self.ensure_unset(field, &AUTHORIZATION)?;
                self.source = Some(source);
            }
        }
        Ok(())
    }

    fn add_header(
        &mut self,
        field: &'static str,
        name: HeaderName,
        value: Option<HeaderValue>,
    ) -> Result<(), Problem> {
        self.ensure_unset(field, &name)?;
        let value = value.ok_or_else(|| Problem::new(field, "must be fit for a header"))?;
        self.headers.push((name, value));
        Ok(())
    }

    fn ensure_unset(&self, field: &'static str, name: &HeaderName) -> Result<(), Problem> {
        if !self.has_header(name) {
            return Ok(());
        }
        let problem = format!("`{name}` is set twice: keep one credential per header");
        Err(Problem::new(field, problem))
    }

    fn has_header(&self, name: &HeaderName) -> bool {
        self.headers.iter().any(|(taken, _)| taken == name)
            || (self.source.is_some() && name == AUTHORIZATION)
    }

    fn has_query(&self, name: &str) -> bool {
        self.queries.iter().any(|pair| pair.name.eq_ignore_ascii_case(name))
    }

    fn fixed_header(&self, name: &str, value: &str) -> Result<(HeaderName, HeaderValue), Problem> {
        const FIELD: &str = "header";
        let name = header_name(FIELD, name)?;
        let refuse = |problem: String| Err(Problem::new(FIELD, problem));
        if FRAMING_HEADERS.contains(&name) {
            return refuse(format!("`{name}` is set by the HTTP client: leave it out"));
        }
        if is_credential_header(&name) {
            return refuse(format!(
                "`{name}` is a credential: use bearer_auth, basic_auth or api_key_header"
            ));
        }
        if self.has_header(&name) {
            return refuse(format!("`{name}` holds this provider's credential already"));
        }
        match HeaderValue::from_str(value) {
            Ok(value) => Ok((name, value)),
            Err(_) => refuse(format!("the value of `{name}` must hold no control characters")),
        }
    }

    fn fixed_query(&self, name: &str, value: &str) -> Result<QueryPair, Problem> {
        const FIELD: &str = "query";
        query_name(FIELD, name)?;
        if is_credential_query(name) {
            return Err(Problem::new(
                FIELD,
                format!("`{name}` is a credential: use api_key_query"),
            ));
        }
        if self.has_query(name) {
            return Err(Problem::new(
                FIELD,
                "sets a name that holds this provider's api_key_query already",
            ));
        }
        Ok(QueryPair::new(name, value, false))
    }
}

// Neither of these repeats the name: whoever mixes up name and value put a key there.

fn header_name(field: &'static str, name: &str) -> Result<HeaderName, Problem> {
    HeaderName::from_bytes(name.as_bytes())
        .map_err(|_| Problem::new(field, "the name must be a header name: letters, digits, `-`"))
}

fn query_name(field: &'static str, name: &str) -> Result<(), Problem> {
    if name.is_empty() {
        return Err(Problem::new(field, "the name must not be empty"));
    }
    Ok(())
}

fn sensitive(value: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(value).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn longest_first(mut texts: Vec<String>) -> Vec<String> {
    texts.sort_unstable_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
    texts.dedup();
    texts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn here() -> Provider {
        Provider::new("here", "https://h/v1")
    }

    fn checked(providers: impl IntoIterator<Item = Provider>) -> Checked {
        match check(providers.into_iter().collect(), Vec::new()) {
            Ok(checked) => checked,
            Err(error) => panic!("{error}"),
        }
    }

    fn refusal(providers: impl IntoIterator<Item = Provider>) -> String {
        match check(providers.into_iter().collect(), Vec::new()) {
            Ok(_) => panic!("was accepted"),
            Err(error) => format!("{error} {error:?}"),
        }
    }

    /// The request that arrives at the entry at `at`: its URL and its headers.
    fn arrives(chain: &Checked, at: usize, caller: &str, headers: &HeaderMap) -> (Url, HeaderMap) {
        let caller = Url::parse(caller).unwrap();
        let claim = chain.scope.claim(&caller).unwrap();
        let entry = &chain.entries[at];
        let keep = entry.keeps_caller_auth(chain.scope.base(claim.base));
        let mut headers = headers.clone();
        entry.apply_headers(&mut headers, &chain.strip, keep);
        (entry.target(&caller, &claim, &chain.strip, &chain.scope).unwrap(), headers)
    }

    fn header<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
        headers.get(name).map(|value| value.to_str().unwrap())
    }

    #[test]
    fn the_presets_know_their_names_and_bases() {
        let chain = checked([Provider::cometapi("one"), Provider::openai(" two\r\n")]);
        let table = [
            ("cometapi", "https://api.cometapi.com/v1", "Bearer one"),
            ("openai", "https://api.openai.com/v1", "Bearer two"),
        ];
        for (at, (name, base, key)) in table.into_iter().enumerate() {
            let entry = &chain.entries[at];
            assert_eq!((&*entry.name, format!("{:?}", entry.base)), (name, base.to_owned()));
            for (caller, _) in
                [("https://api.cometapi.com/v1/x", 0), ("https://api.openai.com/v1/x", 1)]
            {
                let (url, headers) = arrives(&chain, at, caller, &HeaderMap::new());
                assert_eq!(url.as_str(), format!("{base}/x"));
                assert_eq!(header(&headers, "authorization"), Some(key));
                assert!(headers["authorization"].is_sensitive());
            }
        }
    }

    #[test]
    fn each_kind_of_credential_goes_where_it_belongs() {
        let chain = checked([Provider::new("all", "https://h")
            .basic_auth("user", "p:ä\"")
            .api_key_header("X-Vendor-Key", "canary-1")
            .api_key_query("token", "canary/2")
            .header("openai-organization", "org")
            .header("x-twice", "first")
            .header("X-Twice", "second")
            .query("a", "1")
            .query("a", "2")]);
        let (url, headers) =
            arrives(&chain, 0, "https://h/x?Token=theirs&b=%7e", &HeaderMap::new());
        assert_eq!(url.as_str(), "https://h/x?b=%7e&a=1&a=2&token=canary%2F2");
        assert_eq!(header(&headers, "authorization"), Some("Basic dXNlcjpwOsOkIg=="));
        assert_eq!(header(&headers, "x-vendor-key"), Some("canary-1"));
        assert_eq!(header(&headers, "openai-organization"), Some("org"));
        assert_eq!(header(&headers, "x-twice"), Some("second"));
        assert!(headers["authorization"].is_sensitive() && headers["x-vendor-key"].is_sensitive());
        assert!(!headers["x-twice"].is_sensitive());

        let entry = &chain.entries[0];
        assert!(entry.has_query_key());
        for secret in ["p:ä\"", "dXNlcjpwOsOkIg==", "canary-1", "canary/2"] {
            assert!(entry.secrets.iter().any(|known| known == secret), "{secret}");
        }
        assert!(entry.secrets.is_sorted_by_key(|secret| std::cmp::Reverse(secret.len())));
    }

    #[test]
    fn an_empty_basic_password_is_no_secret_to_search_for() {
        let chain = checked([here().basic_auth("canary", "")]);
        assert_eq!(chain.entries[0].secrets, ["Y2FuYXJ5Og=="]);
        assert!(!chain.entries[0].has_query_key());
    }

    #[test]
    fn no_entry_receives_another_entrys_or_the_callers_key() {
        let chain = checked([
            Provider::new("a", "https://a/v1").bearer_auth("canary-a"),
            Provider::new("b", "https://b/v1")
                .api_key_header("x-b", "canary-b")
                .api_key_query("b-key", "canary-b"),
            Provider::new("c", "https://c/v1")
                .basic_auth("c", "canary-c")
                .api_key_query("key", "canary-c"),
            Provider::new("d", "https://d/v1").remove_header("x-d").header("x-fixed", "d"),
        ]);
        let mut sensitive = HeaderValue::from_static("canary-caller");
        sensitive.set_sensitive(true);
        let mut theirs = HeaderMap::new();
        theirs.insert("x-sensitive", sensitive);
        for name in ["authorization", "cookie", "x-b", "host", "openai-organization"] {
            theirs.insert(name, HeaderValue::from_static("canary-caller"));
        }
        theirs.insert("x-d", HeaderValue::from_static("plain"));
        theirs.insert("content-type", HeaderValue::from_static("application/json"));

        for from in ["a", "b", "c", "d"] {
            let caller = format!(
                "https://canary-caller@{from}/v1/x?key=canary-caller&B-Key=canary-caller&m=1#canary-caller"
            );
            for (at, to) in ["a", "b", "c", "d"].into_iter().enumerate() {
                let (url, headers) = arrives(&chain, at, &caller, &theirs);
                assert_eq!((url.host_str(), url.path()), (Some(to), "/v1/x"));
                let mut sent = url.to_string();
                for (name, value) in &headers {
                    sent += &format!("\n{name}: {}", value.to_str().unwrap());
                }
                for whose in ["a", "b", "c", "caller"].into_iter().filter(|whose| *whose != to) {
                    assert!(!sent.contains(&format!("canary-{whose}")), "{from} to {to}: {sent}");
                }
                assert_eq!(header(&headers, "content-type"), Some("application/json"));
                assert_eq!(headers.contains_key("x-d"), to != "d");
                assert!(url.query().unwrap().starts_with("m=1"));
            }
        }
    }

    #[test]
    fn a_model_has_the_name_that_it_has_here_and_only_then_the_body_changes() {
        let chain = checked([here()
            .rename_model("small", "vendor/small")
            .rename_model("large", "vendor/large")]);
        let table = [
            (r#"{"model": "small", "n": 1}"#, Some(r#"{"model": "vendor/small", "n": 1}"#)),
            (r#"{"model": "large"}"#, Some(r#"{"model": "vendor/large"}"#)),
            (r#"{"model": "other"}"#, None),
            ("small", None),
        ];
        for (before, after) in table {
            let mut request = Request::new(http::Method::POST, Url::parse("https://h").unwrap());
            *request.body_mut() = Some(before.into());
            request.headers_mut().insert(CONTENT_LENGTH, before.len().into());
            chain.entries[0].rename_model(&mut request);
            let body = request.body().unwrap().as_bytes().unwrap();
            assert_eq!(body, after.unwrap_or(before).as_bytes());
            assert_eq!(request.headers().contains_key(CONTENT_LENGTH), after.is_none(), "{before}");
        }
    }

    #[test]
    fn a_model_needs_two_names_and_is_renamed_once() {
        for (from, to) in [("", "to"), ("from", ""), ("", "")] {
            let error = refusal([here().rename_model(from, to)]);
            assert!(
                error.starts_with("provider `here`: rename_model: must name two models"),
                "{error}"
            );
        }
        let error =
            refusal([here().rename_model("a", "x").rename_model("b", "x").rename_model("a", "y")]);
        assert!(error.contains("rename_model: `a` is renamed twice"), "{error}");
        checked([here().rename_model("a", "x").rename_model("b", "x").rename_model("x", "a")]);
    }

    #[test]
    fn forwarded_auth_stays_at_home() {
        let chain = checked([
            Provider::new("mine", "https://mine/v1")
                .forward_caller_auth()
                .remove_header("x-strip")
                .query("q", "own"),
            Provider::new("other", "https://other/v1").forward_caller_auth(),
            Provider::new("keyed", "https://keyed/v1").bearer_auth("own"),
        ]);
        let mut theirs = HeaderMap::new();
        for name in ["authorization", "x-api-key", "host", "x-strip"] {
            theirs.insert(name, HeaderValue::from_static("theirs"));
        }
        let caller = "https://mine/v1/x?key=theirs&q=theirs";

        let (url, headers) = arrives(&chain, 0, caller, &theirs);
        assert_eq!(url.as_str(), "https://mine/v1/x?key=theirs&q=own");
        assert_eq!(headers.len(), 2);
        assert_eq!(header(&headers, "authorization"), Some("theirs"));

        for (at, caller) in
            [(1, caller), (2, caller), (0, "https://other/v1/x?key=theirs&q=theirs")]
        {
            let (url, headers) = arrives(&chain, at, caller, &theirs);
            assert!(!url.as_str().contains("key=theirs"), "{url}");
            assert_ne!(header(&headers, "authorization"), Some("theirs"));
            assert!(!headers.contains_key("x-api-key"));
        }
    }

    #[test]
    fn a_claimed_url_is_in_scope_and_belongs_to_nobody() {
        let claims = vec!["https://gateway.example.com/llm/".to_owned()];
        let providers = vec![here().forward_caller_auth()];
        let Ok(chain) = check(providers, claims) else { panic!("was refused") };
        let mut theirs = HeaderMap::new();
        theirs.insert(AUTHORIZATION, HeaderValue::from_static("theirs"));
        let (url, headers) = arrives(&chain, 0, "https://gateway.example.com/llm/x", &theirs);
        assert_eq!(url.as_str(), "https://h/v1/x");
        assert!(headers.is_empty());
    }

    #[test]
    fn every_mistake_names_the_provider_and_the_method_and_never_the_key() {
        #[rustfmt::skip]
        let table: Vec<(Provider, &str)> = vec![
            (Provider::new("here", "h/canary"), "base_url: must be an absolute URL"),
            (Provider::new("here", "https://u:canary@h"), "base_url: must not hold a user"),
            (Provider::new("here", "https://h?canary"), "base_url: must not hold a query"),
            (Provider::new("here", "https://h#canary"), "base_url: must not hold a fragment"),
            (Provider::new("here", "ftp://h/canary"), "base_url: must begin with https://"),
            (Provider::new("here", "http://h").bearer_auth("canary"), "base_url: would show"),
            (Provider::new("here", "http://h").basic_auth("u", "canary"), "base_url: would show"),
            (Provider::new("here", "http://h").api_key_query("k", "canary"), "base_url: would show"),
            (Provider::new("here", "http://h").bearer_auth_with(token), "base_url: would show"),
            (Provider::new("here", "http://h").forward_caller_auth(), "base_url: would show"),
            (here().bearer_auth(""), "bearer_auth: is empty"),
            (here().bearer_auth(" \r\n"), "bearer_auth: is empty"),
            (here().bearer_auth("can\nary"), "bearer_auth: holds control"),
            (here().bearer_auth("canary\u{7f}x"), "bearer_auth: holds control"),
            (here().bearer_auth("canary\0"), "bearer_auth: holds control"),
            (here().bearer_auth("canaryé"), "bearer_auth: holds characters that are not ASCII"),
            (here().bearer_auth("\u{feff}canary"), "bearer_auth: holds characters that are not ASCII"),
            (here().bearer_auth("\"canary\""), "bearer_auth: holds quotes"),
            (here().bearer_auth("'canary'"), "bearer_auth: holds quotes"),
            (here().bearer_auth("Bearer canary"), "bearer_auth: begins with `Bearer `"),
            (here().bearer_auth(" bEARER\tcanary"), "bearer_auth: begins with `Bearer `"),
            (here().bearer_auth("bearer "), "bearer_auth: begins with `Bearer `"),
            (here().api_key_header("x-k", "Bearer canary"), "api_key_header: begins with"),
            (here().api_key_header("x-k", ""), "api_key_header: is empty"),
            (here().api_key_header("canary canary", "k"), "api_key_header: the name must be"),
            (here().api_key_header("Host", "canary"), "api_key_header: `host` is set by"),
            (here().api_key_header("TE", "canary"), "api_key_header: `te` is set by"),
            (here().api_key_query("k", "'canary"), "api_key_query: holds quotes"),
            (here().api_key_query("", "canary"), "api_key_query: the name must not be empty"),
            (here().api_key_query("k", "canary").api_key_query("K", "canary"), "api_key_query: sets the same name twice"),
            (here().basic_auth("u\n", "canary"), "basic_auth: must hold no control"),
            (here().basic_auth("u", "canary\n"), "basic_auth: must hold no control"),
            (here().basic_auth("u:canary", "canary"), "basic_auth: the user must hold no `:`"),
            (here().bearer_auth("canary").bearer_auth("canary"), "bearer_auth: `authorization` is set twice"),
            (here().bearer_auth("canary").basic_auth("u", "canary"), "basic_auth: `authorization` is set twice"),
            (here().bearer_auth("canary").bearer_auth_with(token), "bearer_auth_with: `authorization` is set twice"),
            (here().bearer_auth_with(token).bearer_auth_with(token), "bearer_auth_with: `authorization` is set twice"),
            (here().bearer_auth_with(token).api_key_header("Authorization", "canary"), "api_key_header: `authorization` is set twice"),
            (here().api_key_header("x-k", "canary").api_key_header("X-K", "canary"), "api_key_header: `x-k` is set twice"),
            (here().header("canary canary", "v"), "header: the name must be"),
            (here().header("", "canary"), "header: the name must be"),
            (here().header("x-a", "canary\n"), "header: the value of `x-a` must hold"),
            (here().header("x-a", "canary\0"), "header: the value of `x-a` must hold"),
            (here().header("x-k", "canary").api_key_header("X-K", "canary"), "header: `x-k` holds this provider's"),
            (here().query("", "canary"), "query: the name must not be empty"),
            (here().query("Key", "canary"), "query: `Key` is a credential: use api_key_query"),
            (here().query("access_token", "canary"), "query: `access_token` is a credential: use api_key_query"),
            (here().query("T", "canary").api_key_query("t", "canary"), "query: sets a name that holds"),
            (here().remove_header("canary canary"), "remove_header: the name must be"),
            (here().attempt_timeout(Duration::ZERO), "attempt_timeout: must be longer"),
            (here().forward_caller_auth().bearer_auth("canary"), "forward_caller_auth: does not go with"),
            (here().bearer_auth_with(token).forward_caller_auth(), "forward_caller_auth: does not go with"),
        ];
        for (provider, problem) in table {
            let debug = format!("{provider:?}");
            let Err(error) = check(vec![provider], Vec::new()) else {
                panic!("{problem}: accepted")
            };
            let error = format!("{error} {error:?}");
            assert!(
                error.starts_with(&format!("provider `here`: {problem}")),
                "{problem}: {error}"
            );
            assert!(!error.contains("canary"), "{error}");
            // A name is shown as typed, a value or key is not.
            assert!(!debug.contains("canary") || debug.contains("canary canary"), "{debug}");
        }
    }

    #[test]
    fn reserved_headers_are_refused_and_say_what_to_use() {
        for name in [
            "Host",
            "content-length",
            "transfer-encoding",
            "connection",
            "keep-alive",
            "proxy-connection",
            "te",
            "trailer",
            "upgrade",
            "expect",
        ] {
            assert!(refusal([here().header(name, "canary")]).contains("is set by the HTTP client"));
            assert!(
                refusal([here().api_key_header(name, "k")]).contains("is set by the HTTP client")
            );
        }
        for name in [
            "Authorization",
            "proxy-authorization",
            "cookie",
            "x-api-key",
            "api-key",
            "X-Goog-Api-Key",
        ] {
            let error = refusal([here().header(name, "canary")]);
            assert!(error.contains("use bearer_auth, basic_auth or api_key_header"), "{error}");
            checked([here().api_key_header(name, "key")]);
        }
    }

    async fn token() -> Result<String, std::io::Error> {
        panic!("a source is not asked at build")
    }

    #[test]
    fn what_is_unusual_but_right_is_accepted() {
        checked([
            Provider::new("1", "http://127.0.0.1:1").bearer_auth("k"),
            Provider::new("2", "http://[::1]:1/v1").bearer_auth_with(token),
            Provider::new("3", "http://localhost").forward_caller_auth(),
            Provider::new("4", "http://h").bearer_auth("k").danger_allow_plaintext(),
            Provider::new("5", "http://h").header("openai-project", "p").query("a", "b"),
            Provider::new("6", "https://h").basic_auth("", ""),
            Provider::new("7", "https://h").basic_auth("ü", "\"':"),
            Provider::new("8", "https://h").api_key_header("authorization", "Token k"),
            Provider::new("9", "https://h")
                .bearer_auth("bearer-k")
                .api_key_header("x-a", "k")
                .api_key_query("a", "k"),
            Provider::new("ten ", "https://h").header("x-empty", "").query("a", ""),
        ]);
    }

    #[test]
    fn the_list_as_a_whole_is_checked() {
        let many = |count: usize| (0..count).map(|n| Provider::new(n.to_string(), "https://h"));
        assert!(refusal([]).starts_with("providers: must name at least one"));
        checked(many(128));
        assert!(refusal(many(129)).starts_with("providers: must be at most 128"));
        assert!(refusal([here(), here()]).starts_with("provider `here`: name: is used twice"));
        checked([here(), Provider::new("Here", "https://h/v1")]);
        for name in ["", " \t", "a\nb"] {
            let error = refusal([here(), Provider::new(name, "https://h")]);
            assert!(error.starts_with("name: of provider 2 must not be empty"), "{error}");
        }
        for claim in ["/v1", "https://u:canary@h", "https://h?canary"] {
            let claims = vec!["https://fine".to_owned(), claim.to_owned()];
            let Err(error) = check(vec![here()], claims) else { panic!("was accepted") };
            assert!(error.to_string().starts_with("claim: URL 2 must"), "{error}");
            assert!(!error.to_string().contains("canary"));
        }
    }

    #[test]
    fn a_missing_variable_is_named() {
        let error = refusal([here().bearer_env("REQWEST_FAILOVER_UNSET")]);
        assert!(
            error.starts_with("provider `here`: REQWEST_FAILOVER_UNSET: is not set"),
            "{error}"
        );
        let set = checked([here().bearer_env("CARGO_PKG_NAME")]);
        let (_, headers) = arrives(&set, 0, "https://h/v1", &HeaderMap::new());
        assert_eq!(
            header(&headers, "authorization"),
            Some(concat!("Bearer ", env!("CARGO_PKG_NAME")))
        );
        for (provider, variable) in [
            (Provider::cometapi_from_env(), "COMETAPI_KEY"),
            (Provider::openai_from_env(), "OPENAI_API_KEY"),
        ] {
            assert!(format!("{provider:?}").contains(variable));
        }
    }

    #[test]
    fn debug_shows_names_and_no_values() {
        let provider = Provider::new("here", "https://h/v1?canary")
            .bearer_auth("canary")
            .basic_auth("canary", "canary")
            .api_key_header("x-k", "canary")
            .api_key_query("k", "canary")
            .bearer_auth_with(token)
            .header("x-a", "canary")
            .query("q", "canary");
        let debug = format!("{provider:?} {:#?}", provider.clone());
        assert!(!debug.contains("canary"), "{debug}");
        for shown in ["here", "<invalid>", "bearer_auth", "api_key_header", "x-a", "\"q\""] {
            assert!(debug.contains(shown), "{shown}: {debug}");
        }
        let entry = format!("{:?}", checked([here().bearer_auth("canary")]).entries[0]);
        assert_eq!(entry, r#"Entry { name: "here", base: https://h/v1, .. }"#);
    }

    #[test]
    fn tokens_are_held_to_the_rules_of_keys() {
        let value = bearer_value(" token\n").unwrap();
        assert!(value.is_sensitive());
        assert_eq!(value, "Bearer token");
        for bad in ["", "Bearer x", "a\nb", "é", "'x'"] {
            assert!(bearer_value(bad).is_none(), "{bad}");
            assert!(checked_key(bad).is_err(), "{bad}");
        }
        assert_eq!(checked_key("\tsk-a b\r\n"), Ok("sk-a b"));
        assert_eq!(checked_key("bearerish"), Ok("bearerish"));
    }

    #[test]
    fn a_source_and_prepare_keep_their_errors() {
        let chain = checked([here()
            .bearer_auth_with(|| async { Err("no token") })
            .map_request(|_| Err::<(), _>("not today"))]);
        let entry = &chain.entries[0];
        let mut request =
            reqwest::Request::new(http::Method::GET, Url::parse("https://h").unwrap());
        let prepared = entry.map_request.as_ref().unwrap()(&mut request);
        assert_eq!(prepared.unwrap_err().to_string(), "not today");

        let mut token = entry.source.as_ref().unwrap()();
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        match token.as_mut().poll(&mut cx) {
            std::task::Poll::Ready(Err(error)) => assert_eq!(error.to_string(), "no token"),
            _ => panic!("the source did not fail"),
        }
    }
}
