//! A credential as it was typed.

use super::TokenSource;

#[derive(Clone)]
pub(super) enum Credential {
    Bearer(String),
    Env(&'static str, Result<String, &'static str>),
    Basic(String, String),
    Header(String, String),
    Query(String, String),
    Path(String),
    Source(TokenSource),
}

impl Credential {
    /// The method that sets it, or the variable that it is read from.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Bearer(_) => "bearer_auth",
            Self::Env(variable, _) => variable,
            Self::Basic(..) => "basic_auth",
            Self::Header(..) => "api_key_header",
            Self::Query(..) => "api_key_query",
            Self::Path(_) => "api_key_path",
            Self::Source(_) => "bearer_auth_with",
        }
    }
}
