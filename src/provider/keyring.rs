//! The credentials of one provider, as they are checked.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, HOST, SEC_WEBSOCKET_PROTOCOL, TE,
    TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderName, HeaderValue};

use super::{Credential, TokenSource};
use crate::readdress::{QueryPair, is_key_header, is_key_query, secrets_in, secrets_in_pair};

/// A key without the whitespace around it, or what is wrong with it, without repeating it. Tokens
/// from [`Provider::bearer_auth_with`](super::Provider::bearer_auth_with) are held to the same.
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
fn checked_value<'k>(name: &HeaderName, raw: &'k str) -> Result<&'k str, &'static str> {
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

const PLACEHOLDER: &str = "is a placeholder: put the key itself in its place";

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
pub(crate) fn bearer_value(key: &str) -> Option<HeaderValue> {
    sensitive(&format!("Bearer {}", checked_key(key).ok()?))
}

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
    pub(super) source: Option<TokenSource>,
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
                let name = header_name(field, &name)?;
                if FRAMING_HEADERS.contains(&name) {
                    return Err(Problem::new(
                        field,
                        format!("`{name}` is set by the HTTP client: leave it out"),
                    ));
                }
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
