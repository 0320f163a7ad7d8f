//! The credentials of one provider, as they are checked.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, EXPECT, HOST, TE, TRAILER, TRANSFER_ENCODING,
    UPGRADE,
};
use http::{HeaderName, HeaderValue};

use super::key::{
    PLACEHOLDER, bearer_value, checked_key, checked_value, is_placeholder, sensitive,
};
use super::source::{KeyPlace, KeySource};
use super::{Credential, TokenSource};
use crate::readdress::{QueryPair, is_key_header, is_key_query, secrets_in, secrets_in_pair};

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
pub(super) struct Problem(pub(super) &'static str, pub(super) Cow<'static, str>);

impl Problem {
    pub(super) fn new(field: &'static str, problem: impl Into<Cow<'static, str>>) -> Self {
        Self(field, problem.into())
    }
}

/// The credentials of one entry, as they are checked.
#[derive(Default)]
pub(super) struct Keyring {
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) queries: Vec<QueryPair>,
    pub(super) sources: Vec<KeySource>,
    /// The key of the base URL's path.
    pub(super) path: Option<String>,
    /// What no message may show.
    pub(super) secrets: Vec<String>,
}

impl Keyring {
    pub(super) fn add(&mut self, credential: Credential) -> Result<(), Problem> {
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
                if is_placeholder(&password) || is_placeholder(&user) {
                    return Err(Problem::new(field, PLACEHOLDER));
                }
                let encoded = BASE64.encode(format!("{user}:{password}"));
                self.add_header(field, AUTHORIZATION, sensitive(&format!("Basic {encoded}")))?;
                self.secrets.extend(secrets_in_pair(&user, &password));
            }
            Credential::Header(name, key) => {
                let name = key_header(field, &name)?;
                let key =
                    checked_value(&name, &key).map_err(|problem| Problem::new(field, problem))?;
                self.add_header(field, name, sensitive(key))?;
                self.secrets.extend(secrets_in(key));
            }
            Credential::Path(key) => {
                let key = check(&key)?.to_owned();
                if self.path.is_some() {
                    return Err(Problem::new(field, "sets the key twice: a path holds one"));
                }
                self.secrets.push(key.clone());
                self.path = Some(key);
            }
            Credential::Query(name, key) => {
                let key = check(&key)?;
                self.ensure_query_unset(field, &name)?;
                self.queries.push(QueryPair::new(&name, key, true));
                self.secrets.push(key.to_owned());
            }
            Credential::BearerSource(source) => {
                self.ensure_unset(field, &AUTHORIZATION)?;
                self.add_source(field, KeyPlace::Bearer, source);
            }
            Credential::HeaderSource(name, source) => {
                let name = key_header(field, &name)?;
                self.ensure_unset(field, &name)?;
                self.add_source(field, KeyPlace::Header(name), source);
            }
            Credential::QuerySource(name, source) => {
                self.ensure_query_unset(field, &name)?;
                self.add_source(field, KeyPlace::Query(name), source);
            }
        }
        Ok(())
    }

    fn add_source(&mut self, method: &'static str, place: KeyPlace, source: TokenSource) {
        self.sources.push(KeySource { method, place, source });
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
            || self.sources.iter().any(|source| source.header() == Some(name))
    }

    fn ensure_query_unset(&self, field: &'static str, name: &str) -> Result<(), Problem> {
        query_name(field, name)?;
        match self.has_query(name) {
            true => Err(Problem::new(field, "sets the same name twice: keep one key per name")),
            false => Ok(()),
        }
    }

    fn has_query(&self, name: &str) -> bool {
        let set = self.queries.iter().map(|pair| pair.name.as_str());
        let sourced = self.sources.iter().filter_map(KeySource::query);
        set.chain(sourced).any(|taken| taken.eq_ignore_ascii_case(name))
    }

    /// Checks a fixed header. `kept`: what `keep_header` says carries no key.
    pub(super) fn fixed_header(
        &self,
        name: HeaderName,
        value: HeaderValue,
        kept: &[HeaderName],
    ) -> Result<(HeaderName, HeaderValue), Problem> {
        const FIELD: &str = "header";
        let refuse = |problem: String| Err(Problem::new(FIELD, problem));
        if FRAMING_HEADERS.contains(&name) {
            return refuse(format!("`{name}` is set by the HTTP client: leave it out"));
        }
        if is_key_header(&name) && !kept.contains(&name) {
            return refuse(format!(
                "`{name}` is a credential: use bearer_auth, basic_auth or api_key_header"
            ));
        }
        if self.has_header(&name) {
            return refuse(format!("`{name}` holds this provider's credential already"));
        }
        Ok((name, value))
    }

    pub(super) fn fixed_query(&self, name: &str, value: &str) -> Result<QueryPair, Problem> {
        const FIELD: &str = "query";
        query_name(FIELD, name)?;
        if is_key_query(name) {
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

// Neither of these repeats the name: a user who mixes up name and value put a key there.

pub(super) fn header_name(field: &'static str, name: &str) -> Result<HeaderName, Problem> {
    HeaderName::from_bytes(name.as_bytes())
        .map_err(|_| Problem::new(field, "the name must be a header name: letters, digits, `-`"))
}

/// The name of a header that may hold a key.
fn key_header(field: &'static str, name: &str) -> Result<HeaderName, Problem> {
    let name = header_name(field, name)?;
    if FRAMING_HEADERS.contains(&name) {
        let problem = format!("`{name}` is set by the HTTP client: leave it out");
        return Err(Problem::new(field, problem));
    }
    Ok(name)
}

fn query_name(field: &'static str, name: &str) -> Result<(), Problem> {
    if name.is_empty() {
        return Err(Problem::new(field, "the name must not be empty"));
    }
    Ok(())
}
