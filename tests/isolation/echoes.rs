//! What a provider says of the key that it was sent: each form of credential, said in each way, and
//! whether anyone is shown a part of it.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use reqwest_failover::{Exhausted, FailoverError, Provider, ProviderChain};
use reqwest_middleware::RequestBuilder;

use crate::forms::Form;
use crate::harness::client;
use crate::support::canary::{CORE, canary, holds_key, keep_logs};
use crate::support::{Answer, Received, Server, lock};

/// A credential as it is sent, and the key in it.
struct Credential {
    name: &'static str,
    whole: String,
    key: String,
    provider: Provider,
    /// Whether it is the caller's own.
    form: Form,
}

impl Credential {
    /// Every form, at a provider with this base URL.
    fn each(base: impl Fn(&str) -> String) -> Vec<Self> {
        let own = |name, form: Form, whole: fn(&str) -> String| {
            let key = canary("echo");
            let provider = form.dress(Provider::new("echo", base("/v1")), &key, true);
            Self { name, whole: whole(&key), key, provider, form }
        };
        // No provider is given these: what says them is a layer below, or a provider by chance.
        let callers = |name, form: Form, whole: fn(&str) -> String| {
            let key = canary("echo");
            let provider = Provider::new("echo", base("/v1"));
            Self { name, whole: whole(&key), key, provider, form }
        };
        let bearer = |key: &str| format!("Bearer {key}");
        let path_key = canary("echo");
        let path = Self {
            name: "api_key_path",
            whole: format!("/v1/{}/chat", path_key.replace('/', "%2F")),
            provider: Provider::new("echo", base("/v1/{key}")).api_key_path(&path_key),
            key: path_key,
            form: Form::Bearer,
        };
        vec![
            own("bearer_auth", Form::Bearer, bearer),
            own("basic_auth, the password", Form::Basic, |key| {
                format!("Basic {}", BASE64.encode(format!("me:{key}")))
            }),
            own("basic_auth, the user", Form::UserKey, |key| {
                format!("Basic {}", BASE64.encode(format!("{key}:")))
            }),
            own("api_key_header", Form::HeaderKey, str::to_owned),
            own("api_key_header, Token KEY", Form::Token, |key| format!("Token {key}")),
            own("api_key_header, Basic b64", Form::BasicHeader, |key| {
                format!("Basic {}", BASE64.encode(format!("me:{key}")))
            }),
            own("api_key_header, a cookie", Form::Cookie, |key| format!("a=1; session={key}")),
            own("api_key_header, a sub-protocol", Form::SubProtocol, |key| {
                format!("realtime, openai-insecure-api-key.{key}")
            }),
            own("api_key_query", Form::QueryKey, |key| format!("vendor_key={key}")),
            path,
            own("bearer_auth_with", Form::BearerFrom, bearer),
            own("api_key_header_with", Form::HeaderFrom, str::to_owned),
            own("api_key_query_with", Form::QueryFrom, |key| format!("vendor_key={key}")),
            own("map_request", Form::MapRequest, str::to_owned),
            own("forward_caller_auth", Form::Forwarded, bearer),
            callers("caller's authorization", Form::CallersAuthorization, bearer),
            callers("caller's x-api-key", Form::CallersApiKey, str::to_owned),
            callers("caller's cookie", Form::CallersCookie, |key| format!("session={key}")),
            callers("caller's sensitive header", Form::CallersSensitiveHeader, str::to_owned),
            callers("caller's query key", Form::CallersQueryKey, |key| format!("key={key}")),
        ]
    }

    fn sign(&self, request: RequestBuilder) -> RequestBuilder {
        self.form.sign(request, &self.key)
    }
}

/// The ways in which a key is said, and what they make of it.
fn ways(credential: &Credential) -> Vec<(&'static str, Vec<String>)> {
    let Credential { whole, key, .. } = credential;
    let percent = |text: &str| text.bytes().map(|byte| format!("%{byte:02X}")).collect::<String>();
    let json = |text: &str| text.bytes().map(|byte| format!("\\u{byte:04x}")).collect::<String>();
    let html = |text: &str| text.bytes().map(|byte| format!("&#{byte};")).collect::<String>();
    let lengths = 8..key.len();
    let cut = lengths.clone().flat_map(|length| [&key[..length], &key[key.len() - length..]]);
    let masked = |mask: &'static str| {
        lengths.clone().flat_map(move |length| {
            let rest = (length + mask.len()).min(key.len());
            [format!("{}{mask}{}", &key[..length], &key[rest..])]
        })
    };
    let split = |with: &'static str| {
        (1..key.len()).step_by(3).map(move |at| format!("{}{with}{}", &key[..at], &key[at..]))
    };
    vec![
        ("whole", vec![whole.clone(), format!("<{whole}>"), format!("{whole}{whole}")]),
        ("bare", vec![key.clone(), format!("'{key}'"), format!("{key}{key}")]),
        ("cut", cut.map(str::to_owned).collect()),
        ("masked", masked("****").chain(masked("...")).collect()),
        (
            "encoded twice",
            vec![
                percent(key).replace('%', "%25"),
                percent(key).replace('%', "%2525"),
                json(key).replace('\\', "\\\\"),
                json(key).replace('\\', "%5C"),
                html(key).replace('&', "&amp;"),
                html(&percent(key)),
                percent(whole).replace('%', "%25"),
                json(whole).replace('\\', "\\\\\\\\"),
            ],
        ),
        (
            "split",
            ["\n", "\r\n    ", "\u{200b}", "\u{ad}", "\\n", "\\u200b", "<br>", "%0A"]
                .into_iter()
                .flat_map(split)
                .collect(),
        ),
    ]
}

/// A way, how many messages there were, and how many show a part of the key.
type Count = (&'static str, usize, usize);

/// How many messages there were of each form and way, and how many show a part of a key.
#[derive(Default)]
pub(crate) struct Echoes {
    rows: Vec<(&'static str, Vec<Count>)>,
    pub(crate) shown: Vec<String>,
}

impl Echoes {
    pub(crate) fn said(&self) -> usize {
        self.rows.iter().flat_map(|(_, ways)| ways).map(|(_, said, _)| said).sum()
    }

    pub(crate) async fn of_each_form() -> Self {
        let bodies = std::sync::Arc::new(std::sync::Mutex::new(Vec::<String>::new()));
        let answers = bodies.clone();
        let server = Server::start(move |request: &Received| {
            Answer::status(401).body(answers.lock().unwrap()[request.index].clone())
        })
        .await;
        let mut echoes = Self::default();
        for credential in Credential::each(|prefix| server.base_url(prefix)) {
            let chain = ProviderChain::builder([credential.provider.clone()])
                .claim("http://claimed.test")
                .without_health()
                .on_exhausted(Exhausted::Error);
            let client = client(chain);
            let url = match credential.form {
                Form::Forwarded => server.base_url("/v1/chat"),
                _ => "http://claimed.test/chat".to_owned(),
            };
            let mut row = Vec::new();
            let logged_before = lock(keep_logs()).len();
            for (way, words) in ways(&credential) {
                if matches!(way, "bare" | "split") {
                    let told = words.iter().all(|word| shows_part(word, &credential.key));
                    assert!(told, "{way} shows the key, if nothing is done: {words:?}");
                }
                let (mut said, mut shown) = (0, 0);
                for body in words.iter().flat_map(|word| as_bodies(word)) {
                    bodies.lock().unwrap().push(body.clone());
                    let url = credential.form.url(url.clone(), &credential.key);
                    let request = credential.sign(client.post(url).body("{}"));
                    let error = request.send().await.expect_err("a 401");
                    let failed = FailoverError::find(&error).expect("a FailoverError");
                    let text = format!("{error} {error:?} {}", failed.report());
                    let message = failed.report().attempts()[0].message();
                    assert!(message.is_some(), "{body} has no message: {text}");
                    said += 1;
                    if shows_part(&text, &credential.key) {
                        shown += 1;
                        echoes.shown.push(format!("{}, {way}: {body}: {text}", credential.name));
                    }
                }
                row.push((way, said, shown));
            }
            let logged = String::from_utf8_lossy(&lock(keep_logs())[logged_before..]).into_owned();
            // Without `tracing` there are no lines.
            let is_logged = logged.contains("[redacted]") == cfg!(feature = "tracing");
            assert!(is_logged, "{} is in no log line", credential.name);
            let lines = logged.lines().filter(|line| shows_part(line, &credential.key));
            echoes.shown.extend(lines.map(|line| format!("{}, logged: {line}", credential.name)));
            echoes.rows.push((credential.name, row));
        }
        echoes
    }
}

/// As a page, and as the message in a JSON body.
fn as_bodies(word: &str) -> [String; 2] {
    let json = serde_json::json!({ "error": { "message": format!("no key {word}, try again") } });
    [format!("<p>{word}</p>"), json.to_string()]
}

/// Whether a text shows eight characters of a key's random part, in plain or in Base64.
fn shows_part(text: &str, key: &str) -> bool {
    let core = key.find(CORE).expect("a canary");
    let parts = key.as_bytes()[core..core + CORE.len() + 8].windows(8);
    // What a key is split by, as it is and as it is escaped when it is shown.
    let mut unsplit: String =
        text.chars().filter(|c| !matches!(c, '\u{200b}' | '\u{ad}')).collect();
    for split in
        ["\\r", "\\n", "<br>", "%0A", "\\", "u200b", "u{200b}", "u{ad}", "\n", "\r", "    "]
    {
        unsplit = unsplit.replace(split, "");
    }
    parts.map(|part| str::from_utf8(part).expect("ASCII")).any(|part| unsplit.contains(part))
        || holds_key(text, key)
}

impl fmt::Display for Echoes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ways = self.rows.first().map(|(_, ways)| ways.as_slice()).unwrap_or_default();
        write!(f, "{:<32}", "credential")?;
        ways.iter().try_for_each(|(way, ..)| write!(f, " {way:>14}"))?;
        writeln!(f)?;
        for (name, ways) in &self.rows {
            write!(f, "{name:<32}")?;
            for (_, said, shown) in ways {
                write!(f, " {:>14}", format!("{shown} of {said}"))?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
