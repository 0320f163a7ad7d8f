//! A credential as it was typed.

use std::borrow::Cow;

use super::TokenSource;

#[derive(Clone)]
pub(super) enum Credential {
    Bearer(String),
    /// The method or the variable, and what the variable held or what is wrong with it.
    Env(&'static str, Result<String, Cow<'static, str>>),
    Basic(String, String),
    Header(String, String),
    Query(String, String),
    Path(String),
    BearerSource(TokenSource),
    HeaderSource(String, TokenSource),
    QuerySource(String, TokenSource),
}

impl Credential {
    /// The method that sets it, or the variable that it is read from.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Bearer(_) => "bearer_auth",
            Self::Env(field, _) => field,
            Self::Basic(..) => "basic_auth",
            Self::Header(..) => "api_key_header",
            Self::Query(..) => "api_key_query",
            Self::Path(_) => "api_key_path",
            Self::BearerSource(_) => "bearer_auth_with",
            Self::HeaderSource(..) => "api_key_header_with",
            Self::QuerySource(..) => "api_key_query_with",
        }
    }
}
