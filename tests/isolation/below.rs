//! What happens below every middleware, with a client that is not set up as the documentation says.
//! No layer can prevent it, so the table says what it comes to.

use reqwest::header::{HeaderMap, HeaderValue};
use reqwest_middleware::ClientBuilder;

use crate::forms::Form;
use crate::harness::{BYSTANDER, Harness, PLACES, built};
use crate::scenarios::{Behaviour, Scenario, send};
use crate::support::canary::{canary, holds_key};
use crate::support::harness::{local, trusting};
use crate::table::{Row, Table};

use Behaviour::{Fails, LeadsAway, LeadsToTheThird, Serves};

/// A client without `harden` follows redirects: the answer is refused, and the next provider asked,
/// but by then the request was sent on. Who redirects, and to whom.
const FOLLOWED: [(Scenario, usize, usize); 3] = [
    (
        Scenario::new(
            "a redirect elsewhere, followed",
            [LeadsAway, Serves, Serves],
            [true, true, false, true],
        ),
        0,
        BYSTANDER,
    ),
    (
        Scenario::new(
            "a redirect to another provider, followed",
            [LeadsToTheThird, Serves, Serves],
            [true, true, true, false],
        ),
        0,
        2,
    ),
    (
        Scenario::new(
            "a redirect by the last one, followed",
            [Fails, Fails, LeadsAway],
            [true, true, true, true],
        ),
        2,
        BYSTANDER,
    ),
];

const DEFAULT_HEADERS: Scenario = Scenario::new(
    "a key in `default_headers`",
    [Fails, Serves, Serves],
    [true, true, false, false],
);

/// A proxy reads what is not encrypted on its way, to loopback as well.
const PROXIED: Scenario = Scenario::new(
    "a proxy of the client's, over http",
    [Serves, Serves, Serves],
    [false, false, false, true],
);

pub(crate) async fn table() -> Table {
    let mut table = Table::default();
    for form in Form::EACH {
        for (scenario, from, to) in &FOLLOWED {
            table.add(followed(form, scenario, *from, *to).await);
        }
        table.add(default_headers(form).await);
        table.add(proxied(form).await);
    }
    table
}

/// Whose key goes along. `reqwest` takes `authorization` and cookies off on the way to another host,
/// and leaves any other header; and it sends the URL on, with its query, as the `Referer`.
fn carried_along(form: Form, from: usize) -> Option<String> {
    match form {
        Form::HeaderKey
        | Form::QueryKey
        | Form::HeaderFrom
        | Form::QueryFrom
        | Form::SubProtocol
        | Form::MapRequest => Some(format!("the {}'s", PLACES[from])),
        // Its `x-api-key` and its query.
        Form::Forwarded if from == 2 => Some("the caller's".to_owned()),
        _ => None,
    }
}

async fn followed(form: Form, scenario: &Scenario, from: usize, to: usize) -> Row {
    let harness = Harness::of(form, scenario).await;
    let http = local(reqwest::Client::builder());
    let client = ClientBuilder::new(http).with(built(harness.chain())).build();
    send(&harness, harness.post(&client, 2, "/v1/chat/completions")).await;
    let mut row = harness.into_row(form.name(), scenario);
    // The server that it led to was asked by `reqwest`, not by the chain: it has no key of its own.
    let place = PLACES[to];
    let keyless = (to < 3).then(|| format!("{place} was sent its own key: false"));
    let carried = carried_along(form, from).map(|whose| format!("{place} was sent {whose}"));
    let expected: Vec<_> = keyless.into_iter().chain(carried).collect();
    for expected in &expected {
        if !row.wrong.contains(expected) {
            row.wrong.push(format!("no longer so: {expected}"));
        }
    }
    row.wrong.retain(|wrong| !expected.contains(wrong));
    row
}

async fn proxied(form: Form) -> Row {
    let harness = Harness::of(form, &PROXIED).await;
    let proxy = reqwest::Proxy::http(harness.servers[BYSTANDER].base_url("")).expect("a proxy");
    let http = reqwest_failover::harden(reqwest::Client::builder()).proxy(proxy);
    let http = trusting(http.no_gzip(), []).build().expect("a client");
    let client = ClientBuilder::new(http).with(built(harness.chain())).build();
    send(&harness, harness.post(&client, 2, "/v1/chat/completions")).await;
    let mut row = harness.into_row(form.name(), &PROXIED);
    let expected = "bystander was sent the first's";
    if !row.wrong.iter().any(|wrong| wrong == expected) {
        row.wrong.push(format!("no longer so: {expected}"));
    }
    row.wrong.retain(|wrong| wrong != expected);
    row
}

async fn default_headers(form: Form) -> Row {
    let harness = Harness::of(form, &DEFAULT_HEADERS).await;
    let key = canary("default");
    let mut headers = HeaderMap::new();
    headers.insert("x-mine-by-default", HeaderValue::from_str(&key).expect("a header's value"));
    let http = local(reqwest_failover::harden(reqwest::Client::builder()).default_headers(headers));
    let client = ClientBuilder::new(http).with(built(harness.chain())).build();
    send(&harness, harness.post(&client, 2, "/v1/chat/completions")).await;
    let raw = [0, 1, 2, 3].map(|at| harness.servers[at].raw().concat());
    let mut row = harness.into_row(form.name(), &DEFAULT_HEADERS);
    for (at, raw) in raw.iter().enumerate() {
        let found = holds_key(&String::from_utf8_lossy(raw), &key);
        if found != DEFAULT_HEADERS.asked[at] {
            row.wrong.push(format!("{} was sent the default: {found}", PLACES[at]));
        }
        if found {
            row.arrived[at].foreign.push("the default".to_owned());
        }
    }
    row
}
