//! Keys from the user's own sources, which are asked for one on every attempt.
//!
//! Such a key is held to the rules of one that was typed: the same checks, a sensitive header, and its
//! parts are secrets.

use http::header::AUTHORIZATION;
use http::{HeaderName, HeaderValue};
use reqwest::Request;

use super::key::{bearer_value, checked_key, checked_value, sensitive};
use super::{TokenFuture, TokenSource};
use crate::readdress::{QueryPair, secrets_in};

/// Where the key of a source goes.
pub(super) enum KeyPlace {
    Bearer,
    Header(HeaderName),
    Query(String),
}

/// A source that `build()` found sound.
pub(crate) struct KeySource {
    /// The method that set it.
    pub(crate) method: &'static str,
    pub(super) place: KeyPlace,
    pub(super) source: TokenSource,
}

impl KeySource {
    /// Asks for a key.
    pub(crate) fn ask(&self) -> TokenFuture {
        (self.source)()
    }

    /// What the source returned, ready to be set; or what is wrong with it, without repeating it.
    pub(crate) fn check(&self, raw: &str) -> Result<FreshKey, &'static str> {
        const UNFIT: &str = "is no header value";
        Ok(match &self.place {
            KeyPlace::Bearer => {
                let key = checked_key(raw)?;
                let value = bearer_value(key).ok_or(UNFIT)?;
                FreshKey { set: Set::Header(AUTHORIZATION, value), secrets: vec![key.to_owned()] }
            }
            KeyPlace::Header(name) => {
                let value = checked_value(name, raw)?;
                let secrets = secrets_in(value);
                let value = sensitive(value).ok_or(UNFIT)?;
                FreshKey { set: Set::Header(name.clone(), value), secrets }
            }
            KeyPlace::Query(name) => {
                let key = checked_key(raw)?;
                let pair = QueryPair::new(name, key, true);
                FreshKey { set: Set::Query(pair), secrets: vec![key.to_owned()] }
            }
        })
    }

    /// The header that holds its key.
    pub(super) fn header(&self) -> Option<&HeaderName> {
        match &self.place {
            KeyPlace::Bearer => Some(&AUTHORIZATION),
            KeyPlace::Header(name) => Some(name),
            KeyPlace::Query(_) => None,
        }
    }

    /// The query name that holds its key.
    pub(super) fn query(&self) -> Option<&str> {
        match &self.place {
            KeyPlace::Query(name) => Some(name),
            KeyPlace::Bearer | KeyPlace::Header(_) => None,
        }
    }
}

/// A key for one attempt.
pub(crate) struct FreshKey {
    set: Set,
    /// What no message may show.
    pub(crate) secrets: Vec<String>,
}

enum Set {
    Header(HeaderName, HeaderValue),
    Query(QueryPair),
}

impl FreshKey {
    /// Sets the key on a request that is free of others.
    pub(crate) fn apply(self, request: &mut Request) {
        match self.set {
            Set::Header(name, value) => drop(request.headers_mut().insert(name, value)),
            Set::Query(pair) => pair.append_to(request.url_mut()),
        }
    }
}
