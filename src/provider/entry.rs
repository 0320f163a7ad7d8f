//! An entry of a chain as `build()` checked it.
//!
//! An [`Entry`] holds only what can no longer be wrong: every header value is built and marked
//! sensitive before the first request.

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use reqwest::Request;
use reqwest::Url;

use super::edits::CheckedEdits;
use super::keyring::{Keyring, Problem, header_name};
use super::source::KeySource;
use super::{MapRequest, Provider};
use crate::readdress::{
    Base, Claim, HeaderRules, QueryPair, QueryRewrite, Scope, StripList, is_key_query, secrets_in,
    target_url,
};

/// A provider that `build()` found sound.
pub(crate) struct Entry {
    pub(crate) name: Arc<str>,
    pub(crate) base: Base,
    /// As set on the provider; the chain's default is not in here.
    pub(crate) attempt_timeout: Option<Duration>,
    /// How many requests it may have at once.
    pub(crate) max_in_flight: Option<NonZeroUsize>,
    /// Asked on each attempt, in this order.
    pub(crate) sources: Vec<KeySource>,
    pub(crate) map_request: Option<MapRequest>,
    /// What no message may show.
    pub(crate) secrets: Vec<String>,
    /// What becomes of the caller's headers.
    pub(super) rules: HeaderRules,
    /// The fixed ones, then the credentials.
    queries: Vec<QueryPair>,
    edits: CheckedEdits,
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
        let strip = (!keep).then_some(strip);
        target_url(&self.base, caller, claim, &QueryRewrite { strip, set: &self.queries })
    }

    /// How many requests it may have at once: without a limit, more than there can be.
    pub(crate) fn most_in_flight(&self) -> u64 {
        self.max_in_flight.map_or(u64::MAX, |most| most.get() as u64)
    }

    /// Removes from a copy's headers what is not for this provider, and sets its own.
    pub(crate) fn apply_headers(
        &self,
        headers: &mut HeaderMap,
        strip: &StripList,
        keep_caller_auth: bool,
    ) {
        self.rules.apply(headers, strip, keep_caller_auth);
    }

    /// Edits the body as the provider has it. `call` calls the user's closure.
    pub(crate) fn edit_body(
        &self,
        request: &mut Request,
        call: impl Fn(&dyn Fn() -> Option<String>) -> Option<String>,
    ) {
        self.edits.apply(request, call);
    }

    /// Whether a request that was addressed below `claimed` keeps its caller's credentials here.
    pub(crate) fn keeps_caller_auth(&self, claimed: &Base) -> bool {
        self.forward_caller_auth && *claimed == self.base
    }

    /// Whether this entry's URLs may hold a key, and so must be cleaned before they are handed out.
    pub(crate) fn has_url_key(&self) -> bool {
        self.base.has_key() || self.map_request.is_some() || self.has_query_key()
    }

    /// Removes from a URL that is handed out what may be a key: the key of the path, and the query
    /// if this entry's key, or one that `map_request` set, is in it.
    pub(crate) fn clean_url(&self, url: &mut Url) {
        let sets_key = || url.query_pairs().any(|(name, _)| is_key_query(&name));
        if self.has_query_key() || (self.map_request.is_some() && sets_key()) {
            url.set_query(None);
            url.set_fragment(None);
        }
        self.base.clean_path(url);
    }

    /// The headers that hold this entry's credentials.
    pub(super) fn credential_headers(&self) -> impl Iterator<Item = &HeaderName> {
        let set = self.rules.set.iter().filter(|(_, value)| value.is_sensitive());
        set.map(|(name, _)| name).chain(self.sources.iter().filter_map(KeySource::header))
    }

    pub(super) fn has_query_key(&self) -> bool {
        self.credential_queries().next().is_some()
    }

    /// The query names that hold this entry's credentials.
    pub(super) fn credential_queries(&self) -> impl Iterator<Item = &str> {
        let set = self.queries.iter().filter(|pair| pair.secret).map(|pair| pair.name.as_str());
        set.chain(self.sources.iter().filter_map(KeySource::query))
    }

    /// Checks a provider by itself.
    pub(super) fn parse(provider: Provider) -> Result<Self, Problem> {
        let is_sensitive = |(_, value): &(HeaderName, HeaderValue)| value.is_sensitive();
        let authenticates =
            !provider.credentials.is_empty() || provider.headers.iter().flatten().any(is_sensitive);
        let mut keys = Keyring::default();
        for credential in provider.credentials {
            keys.add(credential)?;
        }
        let base = match &keys.path {
            Some(key) => Base::parse_with_key(&provider.base_url, key),
            None => Base::parse(&provider.base_url),
        };
        let base = base.map_err(|problem| Problem::new("base_url", problem))?;
        if provider.attempt_timeout == Some(Duration::ZERO) {
            return Err(Problem::new("attempt_timeout", "must be longer than zero"));
        }
        let max_in_flight = match provider.max_in_flight.map(NonZeroUsize::new) {
            Some(None) => return Err(Problem::new("max_in_flight", "must be at least 1")),
            most => most.flatten(),
        };
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

        let names = |field, names: &[String]| {
            names.iter().map(|name| header_name(field, name)).collect::<Result<Vec<_>, _>>()
        };
        let remove = names("remove_header", &provider.remove_headers)?;
        let keep = names("keep_header", &provider.keep_headers)?;
        let mut set = Vec::with_capacity(provider.headers.len() + keys.headers.len());
        for header in provider.headers {
            let (name, value) = header.map_err(|problem| Problem::new("header", problem))?;
            if value.is_sensitive() {
                let value = String::from_utf8_lossy(value.as_bytes());
                keys.secrets.extend(secrets_in(&value));
            }
            set.push(keys.fixed_header(name, value, &keep)?);
        }
        let mut queries = Vec::with_capacity(provider.queries.len() + keys.queries.len());
        for (name, value) in &provider.queries {
            queries.push(keys.fixed_query(name, value)?);
        }
        set.extend(keys.headers);

        Ok(Self {
            name: provider.name.into(),
            base,
            attempt_timeout: provider.attempt_timeout,
            max_in_flight,
            sources: keys.sources,
            map_request: provider.map_request,
            edits: provider.edits.check()?,
            secrets: keys.secrets,
            rules: HeaderRules { remove, keep, set },
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
