//! Names that carry keys: of headers, of query pairs, and of WebSocket sub-protocols.
//!
//! A list can't know every vendor, so the usual endings of such names count too, with the
//! exceptions that protocols need.

use http::HeaderName;
use http::header::{AUTHORIZATION, COOKIE, HOST, PROXY_AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL};

/// Headers that carry keys, with the examples of the endings that vendors ask for most.
pub(super) static KEY_HEADERS: [HeaderName; 51] = [
    AUTHORIZATION,
    PROXY_AUTHORIZATION,
    COOKIE,
    // Only the items that hold a key are removed.
    SEC_WEBSOCKET_PROTOCOL,
    // OpenAI-compatible gateways, Azure, Google, Anthropic, ElevenLabs.
    HeaderName::from_static("api-key"),
    HeaderName::from_static("apikey"),
    HeaderName::from_static("api_key"),
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("x-api-token"),
    HeaderName::from_static("x-api-secret"),
    HeaderName::from_static("xi-api-key"),
    HeaderName::from_static("x-goog-api-key"),
    HeaderName::from_static("x-goog-iam-authorization-token"),
    HeaderName::from_static("x-goog-iap-jwt-assertion"),
    HeaderName::from_static("ocp-apim-subscription-key"),
    HeaderName::from_static("x-functions-key"),
    HeaderName::from_static("x-ms-client-principal"),
    HeaderName::from_static("cf-aig-authorization"),
    HeaderName::from_static("cf-access-client-id"),
    HeaderName::from_static("cf-access-client-secret"),
    HeaderName::from_static("cf-access-jwt-assertion"),
    HeaderName::from_static("helicone-auth"),
    HeaderName::from_static("x-litellm-api-key"),
    HeaderName::from_static("x-portkey-api-key"),
    HeaderName::from_static("x-rapidapi-key"),
    HeaderName::from_static("x-honeycomb-team"),
    HeaderName::from_static("x-sentry-auth"),
    HeaderName::from_static("x-amz-security-token"),
    HeaderName::from_static("x-amzn-oidc-data"),
    HeaderName::from_static("private-token"),
    HeaderName::from_static("x-vault-token"),
    // Without a vendor.
    HeaderName::from_static("auth"),
    HeaderName::from_static("authentication"),
    HeaderName::from_static("x-auth"),
    HeaderName::from_static("x-auth-token"),
    HeaderName::from_static("x-access-token"),
    HeaderName::from_static("x-csrftoken"),
    HeaderName::from_static("x-jwt"),
    HeaderName::from_static("x-jwt-assertion"),
    HeaderName::from_static("x-session"),
    HeaderName::from_static("x-password"),
    HeaderName::from_static("password"),
    HeaderName::from_static("token"),
    HeaderName::from_static("access_token"),
    HeaderName::from_static("accesstoken"),
    HeaderName::from_static("authtoken"),
    HeaderName::from_static("x-authtoken"),
    // Proofs that are good for one request to one server.
    HeaderName::from_static("dpop"),
    HeaderName::from_static("signature"),
    HeaderName::from_static("signature-input"),
    HeaderName::from_static("x-hub-signature-256"),
];

/// No keys, but true of the caller's own provider only.
pub(super) static CALLERS_HEADERS: [HeaderName; 4] = [
    HOST,
    HeaderName::from_static("openai-organization"),
    HeaderName::from_static("openai-project"),
    HeaderName::from_static("x-goog-user-project"),
];

/// How names end that carry keys.
pub(super) const ENDINGS: [&str; 6] =
    ["-key", "-token", "-secret", "apikey", "authorization", "-signature"];

/// Names that end so and carry none.
const NO_KEYS: [&str; 5] = [
    // Tells a server that a request comes again. It opens nothing, and without it a request could
    // be processed twice.
    "idempotency-key",
    "x-idempotency-key",
    // A random number of the WebSocket handshake, which fails without it.
    "sec-websocket-key",
    // Names of what a cache holds.
    "surrogate-key",
    "x-cache-key",
];

/// Names of query pairs that carry keys, in small letters.
const KEY_QUERIES: [&str; 46] = [
    "key",
    "api_key",
    "apikey",
    "access_key",
    "access_token",
    "accesskey",
    "api_secret",
    "api_token",
    "app_key",
    "app_secret",
    "app_token",
    "appid",
    "appkey",
    "auth",
    "auth_key",
    "auth_token",
    "authkey",
    "authtoken",
    "awsaccesskeyid",
    "bearer_token",
    "client_assertion",
    "client_secret",
    "code",
    "googleaccessid",
    "id_token",
    "jwt",
    "license_key",
    "oauth_signature",
    "oauth_token",
    "passwd",
    "password",
    "private_token",
    "pwd",
    "refresh_token",
    "secret",
    "secret_key",
    "session_key",
    "session_token",
    "sig",
    "signature",
    "subscription_key",
    "token",
    "user_key",
    // The other names of a URL that AWS or Google has signed end as names of keys do.
    "x-amz-credential",
    "x-goog-credential",
    "x-ms-signature",
];

/// Query names that end as names of keys do and carry none: places in lists.
const NO_KEY_QUERIES: [&str; 9] = [
    "continuation-token",
    "next-token",
    "page-token",
    "sync-token",
    "idempotency-key",
    "partition-key",
    "sort-key",
    "start-key",
    "end-key",
];

/// Whether the header is known to carry keys.
pub(crate) fn is_key_header(name: &HeaderName) -> bool {
    (KEY_HEADERS.contains(name) && *name != SEC_WEBSOCKET_PROTOCOL) || ends_as_key(name.as_str())
}

/// Whether a header's name ends as those of keys do, and is no exception.
pub(super) fn ends_as_key(name: &str) -> bool {
    ENDINGS.iter().any(|ending| name.ends_with(ending)) && !NO_KEYS.contains(&name)
}

/// Whether the query name is known to carry keys. Compared without ASCII case.
pub(crate) fn is_key_query(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    KEY_QUERIES.contains(&&*name)
        || (ENDINGS.iter().any(|ending| name.ends_with(ending))
            && !NO_KEY_QUERIES.contains(&&*name))
}

/// The items of a `sec-websocket-protocol` header, and whether each holds a key, or what is true of
/// the caller's own provider only. A browser can set no other header, so keys travel here, as in
/// `realtime, openai-insecure-api-key.KEY` and `token, KEY`.
pub(super) fn protocol_items(value: &str) -> impl Iterator<Item = (&str, bool)> {
    let mut after_label = false;
    value.split(',').map(str::trim).filter(|item| !item.is_empty()).map(move |item| {
        let label = is_label(item);
        let holds_key = label || after_label || names_key(item) || is_random(item);
        after_label = label;
        (item, holds_key)
    })
}

/// A word that says that the next item is a key.
fn is_label(item: &str) -> bool {
    const LABELS: [&str; 10] = [
        "token",
        "bearer",
        "authorization",
        "auth",
        "access_token",
        "jwt",
        "key",
        "apikey",
        "api_key",
        "password",
    ];
    let item = item.to_ascii_lowercase();
    LABELS.contains(&&*item) || ends_as_key(&item)
}

/// Whether one of an item's parts is such a word, and others follow.
fn names_key(item: &str) -> bool {
    const CALLERS: [&str; 2] = ["openai-organization", "openai-project"];
    let parts: Vec<&str> = item.split('.').collect();
    parts[..parts.len() - 1].iter().any(|part| is_label(part) || CALLERS.contains(part))
}

/// Whether a part is so long, with so many digits, that it is no name.
fn is_random(item: &str) -> bool {
    item.split('.')
        .any(|part| part.len() >= 20 && part.bytes().filter(u8::is_ascii_digit).count() >= 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_carry_keys_are_told_from_those_that_do_not() {
        for name in [
            "apikey",
            "xi-api-key",
            "ocp-apim-subscription-key",
            "x-auth-token",
            "private-token",
            "x-goog-iam-authorization-token",
            "cf-aig-authorization",
            "helicone-auth",
            "dpop",
            "x-litellm-api-key",
            "x-rapidapi-key",
            "x-functions-key",
            "signature",
            "stripe-signature",
            "x-some-vendor-secret",
            "vendorapikey",
            "x-authorization",
            "x-csrf-token",
        ] {
            assert!(is_key_header(&HeaderName::from_static(name)), "{name}");
        }
        for name in [
            "idempotency-key",
            "x-idempotency-key",
            "sec-websocket-key",
            "content-type",
            "accept",
            "user-agent",
            "x-request-id",
            "openai-beta",
            "anthropic-version",
            "x-tokens",
            "keyboard",
            "sec-websocket-protocol",
            "surrogate-key",
        ] {
            assert!(!is_key_header(&HeaderName::from_static(name)), "{name}");
        }
    }

    #[test]
    fn query_names_that_carry_keys_are_told_from_those_that_do_not() {
        for name in [
            "key",
            "Token",
            "sig",
            "apikey",
            "subscription-key",
            "client_secret",
            "password",
            "X-Amz-Signature",
            "X-Amz-Security-Token",
            "X-Amz-Credential",
            "code",
            "api-key",
        ] {
            assert!(is_key_query(name), "{name}");
        }
        for name in [
            "api-version",
            "page_token",
            "pageToken",
            "continuation-token",
            "monkey",
            "keys",
            "max_tokens",
            "model",
            "X-Amz-Date",
            "idempotency-key",
            "q",
            "",
        ] {
            assert!(!is_key_query(name), "{name}");
        }
    }

    #[test]
    fn of_sub_protocols_only_those_hold_a_key_that_name_one_or_look_like_one() {
        for (value, kept) in [
            (
                "realtime, openai-insecure-api-key.sk-1, openai-beta.realtime-v1",
                "realtime openai-beta.realtime-v1",
            ),
            ("realtime,openai-organization.org-1,openai-project.proj_1", "realtime"),
            ("token, abc, chat", "chat"),
            ("Bearer, abc", ""),
            ("base64url.bearer.authorization.k8s.io.dG9r, v4.channel.k8s.io", "v4.channel.k8s.io"),
            ("graphql-transport-ws, sk-9fK2xQ7vLmZt4RwB8nYc", "graphql-transport-ws"),
            (
                "v1.json.wamp.2, mqtt, , soap, com.example.notifications.v2",
                "v1.json.wamp.2 mqtt soap com.example.notifications.v2",
            ),
        ] {
            let left: Vec<_> =
                protocol_items(value).filter(|item| !item.1).map(|item| item.0).collect();
            assert_eq!(left.join(" "), kept, "{value}");
        }
    }
}
