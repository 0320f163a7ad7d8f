//! The forms of credentials: what a provider is given, and what a caller puts on a request.

use std::convert::Infallible;
use std::future::{Ready, ready};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::HeaderValue;
use reqwest_failover::Provider;
use reqwest_middleware::RequestBuilder;

/// In the first ones every provider has a key of its own in that form. In the others each has a
/// bearer key, and the credential is the caller's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Bearer,
    Basic,
    HeaderKey,
    QueryKey,
    BearerFrom,
    HeaderFrom,
    QueryFrom,
    /// Basic with the key as the user and no password, as at Stripe.
    UserKey,
    /// `Token KEY`, `Basic b64`, a cookie and a sub-protocol in headers of `api_key_header`.
    Token,
    BasicHeader,
    Cookie,
    SubProtocol,
    /// A header that `map_request` sets, as one that is renewed must be.
    MapRequest,
    /// `forward_caller_auth`, at the last provider.
    Forwarded,
    CallersAuthorization,
    CallersApiKey,
    CallersCookie,
    CallersSensitiveHeader,
    CallersQueryKey,
}

/// A source of this key.
fn source(key: &str) -> impl Fn() -> Ready<Result<String, Infallible>> + use<> {
    let key = key.to_owned();
    move || ready(Ok(key.clone()))
}

impl Form {
    pub(crate) const EACH: [Self; 19] = [
        Self::Bearer,
        Self::Basic,
        Self::HeaderKey,
        Self::QueryKey,
        Self::BearerFrom,
        Self::HeaderFrom,
        Self::QueryFrom,
        Self::UserKey,
        Self::Token,
        Self::BasicHeader,
        Self::Cookie,
        Self::SubProtocol,
        Self::MapRequest,
        Self::Forwarded,
        Self::CallersAuthorization,
        Self::CallersApiKey,
        Self::CallersCookie,
        Self::CallersSensitiveHeader,
        Self::CallersQueryKey,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bearer => "bearer",
            Self::Basic => "basic",
            Self::HeaderKey => "api_key_header",
            Self::QueryKey => "api_key_query",
            Self::BearerFrom => "bearer_auth_with",
            Self::HeaderFrom => "api_key_header_with",
            Self::QueryFrom => "api_key_query_with",
            Self::UserKey => "basic_auth, the user",
            Self::Token => "header, Token KEY",
            Self::BasicHeader => "header, Basic b64",
            Self::Cookie => "header, a cookie",
            Self::SubProtocol => "header, a sub-protocol",
            Self::MapRequest => "map_request",
            Self::Forwarded => "forward_caller_auth",
            Self::CallersAuthorization => "caller's authorization",
            Self::CallersApiKey => "caller's x-api-key",
            Self::CallersCookie => "caller's cookie",
            Self::CallersSensitiveHeader => "caller's sensitive header",
            Self::CallersQueryKey => "caller's query key",
        }
    }

    /// Whether the credential is the caller's.
    pub(crate) fn is_callers(self) -> bool {
        matches!(
            self,
            Self::Forwarded
                | Self::CallersAuthorization
                | Self::CallersApiKey
                | Self::CallersCookie
                | Self::CallersSensitiveHeader
                | Self::CallersQueryKey
        )
    }

    /// Gives a provider its key. `last`: it is the last one of the chain.
    pub(crate) fn dress(self, provider: Provider, key: &str, last: bool) -> Provider {
        match self {
            Self::Basic => provider.basic_auth("me", key),
            Self::HeaderKey => provider.api_key_header("x-vendor-key", key),
            Self::QueryKey => provider.api_key_query("vendor_key", key),
            Self::BearerFrom => provider.bearer_auth_with(source(key)),
            Self::HeaderFrom => provider.api_key_header_with("x-vendor-key", source(key)),
            Self::QueryFrom => provider.api_key_query_with("vendor_key", source(key)),
            Self::UserKey => provider.basic_auth(key, ""),
            Self::Token => provider.api_key_header("authorization", format!("Token {key}")),
            Self::BasicHeader => {
                let encoded = BASE64.encode(format!("me:{key}"));
                provider.api_key_header("authorization", format!("Basic {encoded}"))
            }
            Self::Cookie => provider.api_key_header("cookie", format!("a=1; session={key}")),
            Self::SubProtocol => provider.api_key_header(
                "sec-websocket-protocol",
                format!("realtime, openai-insecure-api-key.{key}"),
            ),
            Self::MapRequest => {
                let mut value = HeaderValue::from_str(key).expect("a header's value");
                value.set_sensitive(true);
                provider.map_request(move |request| {
                    request.headers_mut().insert("x-rotating", value.clone());
                    Ok::<_, Infallible>(())
                })
            }
            Self::Forwarded if last => provider.forward_caller_auth(),
            _ => provider.bearer_auth(key),
        }
    }

    /// The URL with the caller's credential, where it is in the query.
    pub(crate) fn url(self, url: String, key: &str) -> String {
        match self {
            Self::CallersQueryKey | Self::Forwarded => {
                format!("{url}?key={}", utf8_percent_encode(key, NON_ALPHANUMERIC))
            }
            _ => url,
        }
    }

    /// Puts the caller's credential on a request, where it is in a header.
    pub(crate) fn sign(self, request: RequestBuilder, key: &str) -> RequestBuilder {
        match self {
            Self::CallersAuthorization => request.header("authorization", format!("Bearer {key}")),
            Self::CallersApiKey => request.header("x-api-key", key),
            Self::CallersCookie => request.header("cookie", format!("session={key}")),
            Self::CallersSensitiveHeader => {
                let mut value = HeaderValue::from_str(key).expect("a header's value");
                value.set_sensitive(true);
                request.header("x-mine", value)
            }
            Self::Forwarded => request
                .header("authorization", format!("Bearer {key}"))
                .header("x-api-key", key)
                .header("cookie", format!("session={key}")),
            _ => request,
        }
    }
}
