//! The guide to observability and the dashboard name metrics that are there, and all of them.
#![cfg(all(feature = "metrics", feature = "fleet"))]

mod readings;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use http::Extensions;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};
use metrics_util::debugging::DebuggingRecorder;
use reqwest::{Body, Request, Response};
use reqwest_failover::fleet::{HealthStore, MemoryStore, MemoryWatch, Record, StoreError};
use reqwest_failover::{Hedge, Provider, ProviderChain, ProviderChainBuilder, Reason};
use reqwest_middleware::{ClientBuilder, Middleware, Next, Result};
use serde_json::Value;

use readings::Readings;

const GUIDE: &str = include_str!("../docs/observability.md");
const SOURCE: &str = include_str!("../src/observe/event.rs");
const DASHBOARD: &str = include_str!("../docs/grafana.json");

/// Fails a few times in different ways, and then no more.
struct Recovering(AtomicUsize);

#[async_trait]
impl Middleware for Recovering {
    async fn handle(&self, _: Request, _: &mut Extensions, _: Next<'_>) -> Result<Response> {
        let status = match self.0.fetch_add(1, Ordering::Relaxed) {
            0 | 1 => 500,
            2 => 401,
            3 => std::future::pending().await,
            _ => 200,
        };
        Ok(http::Response::builder().status(status).body("").unwrap().into())
    }
}

/// Has everything happen that is counted.
async fn everything() {
    let chain = || {
        ProviderChain::builder([
            Provider::new("cometapi", "https://cometapi.test/v1").bearer_auth("key-a"),
            Provider::new("openai", "https://openai.test/v1").bearer_auth("key-b"),
        ])
    };
    let client = |chain: ProviderChainBuilder, asked| {
        let chain = chain.attempt_timeout(Duration::from_secs(5)).build().unwrap();
        let recovering = Recovering(AtomicUsize::new(asked));
        ClientBuilder::new(reqwest::Client::new()).with(chain).with(recovering).build()
    };
    let hedged = client(chain().hedge(Hedge::after(Duration::from_secs(1)).max_extra(1.0)), 3);
    hedged.get("https://openai.test/v1/files").send().await.expect("the second one's answer");
    let client = client(chain(), 0);
    let url = "https://openai.test/v1/files";
    client.get(url).send().await.expect("what the last provider answered");
    client.get("https://elsewhere.test/").send().await.expect("passed through");
    for _ in 0..20 {
        client.get(url).send().await.expect("an answer");
    }
    let stream = futures_util::stream::iter([Ok::<_, std::io::Error>("{}")]);
    client.post(url).body(Body::wrap_stream(stream)).send().await.expect("an answer");
    shared_health(chain).await;
}

/// One chain tells another about an operator's command, there is a record that neither reads, and a third
/// one's store is down.
async fn shared_health(chain: impl Fn() -> ProviderChainBuilder) {
    let store = MemoryStore::new();
    let unread = Record::new("of/another/version", "2").unwrap();
    store.put(&unread, Duration::from_secs(60)).await.unwrap();
    let [one, other] = [(); 2].map(|()| chain().share(store.clone()).build().unwrap());
    assert!(other.synced(Duration::from_secs(1)).await);
    one.isolate("cometapi").unwrap();
    assert!(one.synced(Duration::from_secs(1)).await && other.synced(Duration::from_secs(1)).await);
    let lost = chain().share(Down).build().unwrap();
    assert!(!lost.synced(Duration::from_secs(1)).await);
}

struct Down;

impl HealthStore for Down {
    type Watch = MemoryWatch;

    async fn put(&self, _: &Record, _: Duration) -> std::result::Result<(), StoreError> {
        Err("it is down".into())
    }

    async fn list(&self) -> std::result::Result<Vec<(Record, Duration)>, StoreError> {
        Err("it is down".into())
    }

    async fn watch(&self) -> std::result::Result<MemoryWatch, StoreError> {
        Err("it is down".into())
    }
}

fn run<T>(recorder: &impl metrics::Recorder, then: impl FnOnce() -> T) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).build().unwrap();
    metrics::with_local_recorder(recorder, || runtime.block_on(everything()));
    then()
}

/// What Prometheus is told: each metric with its suffix, and its labels.
fn exposed() -> BTreeMap<String, BTreeSet<String>> {
    let buckets = Matcher::Suffix("_seconds".to_owned());
    let builder = PrometheusBuilder::new().set_buckets_for_metric(buckets, &[0.1, 1.0]).unwrap();
    let recorder = builder.build_recorder();
    let text = run(&recorder, || recorder.handle().render());
    let mut exposed: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (series, _) = line.rsplit_once(' ').expect("a series and a value");
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let names = labels.split(',').filter_map(|label| Some(label.split_once('=')?.0.to_owned()));
        exposed.entry(name.to_owned()).or_default().extend(names);
    }
    exposed
}

fn readings() -> Readings {
    let recorder = DebuggingRecorder::new();
    run(&recorder, || Readings::take(&recorder.snapshotter()))
}

#[test]
fn every_metric_is_in_the_guide_with_its_kind_unit_and_labels() {
    let readings = readings();
    let mut labels: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    let all = readings.counters.keys().chain(readings.gauges.keys());
    for shown in all.chain(readings.histograms.keys()) {
        let (name, rest) = shown.split_once('{').unwrap_or((shown, ""));
        let names = rest.split(',').filter_map(|label| Some(label.split_once('=')?.0));
        labels.entry(name).or_default().extend(names.map(|name| format!("`{name}`")));
    }
    assert_eq!(readings.described.len(), 18, "{:#?}", readings.described);
    for (name, (kind, unit, text)) in &readings.described {
        assert!(!text.is_empty(), "{name} has no description");
        let begins = format!("| `{name}` |");
        let row = GUIDE.lines().find(|line| line.starts_with(&begins));
        let cells: Vec<_> = row
            .unwrap_or_else(|| panic!("{name} is not in the guide"))
            .split('|')
            .map(str::trim)
            .collect();
        assert_eq!((cells[2], cells[3]), (*kind, unit.as_str()), "{name}");
        let documented = cells[4].split(", ").filter(|label| !label.is_empty());
        let documented: BTreeSet<_> = documented.map(str::to_owned).collect();
        assert_eq!(documented, labels[name.as_str()], "{name}");
    }
}

#[test]
fn every_metric_that_the_guide_or_the_dashboard_names_is_there() {
    let exposed = exposed();
    for (page, text) in [("the guide", GUIDE), ("the dashboard", DASHBOARD)] {
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let named: BTreeSet<_> = words.filter(|word| word.starts_with("failover_")).collect();
        assert!(named.len() > 10, "{named:?}");
        for name in named {
            let there = |suffix: &str| exposed.contains_key(&format!("{name}{suffix}"));
            assert!(there("") || there("_bucket"), "{page} names {name}: {exposed:?}");
        }
    }
}

#[test]
fn every_query_is_made_of_metrics_and_of_their_labels() {
    let exposed = exposed();
    let dashboard: Value = serde_json::from_str(DASHBOARD).expect("JSON");
    let mut queries = Vec::new();
    collect_queries(&dashboard, &mut queries);
    assert!(queries.len() > 10, "{queries:?}");
    let rules: Vec<_> = GUIDE.split("```promql\n").skip(1).collect();
    let rules = rules.iter().map(|rule| rule.split("```").next().unwrap().to_owned());
    let rules: Vec<_> = rules.collect();
    assert_eq!(rules.len(), 4);
    for query in queries.iter().chain(&rules) {
        check_query(query, &exposed);
    }
}

/// What is used of PromQL.
const WORDS: [&str; 10] =
    ["sum", "max", "by", "rate", "increase", "histogram_quantile", "and", "m", "le", "or"];

fn check_query(query: &str, exposed: &BTreeMap<String, BTreeSet<String>>) {
    let count = |c: char| query.matches(c).count();
    for (open, close) in [('(', ')'), ('{', '}'), ('[', ']')] {
        assert_eq!(count(open), count(close), "{query}");
    }
    // The values of labels are quoted, and Grafana's variables begin with a dollar.
    let unquoted: String = query.split('"').step_by(2).collect::<Vec<_>>().join(" ");
    let mut words = Vec::new();
    for word in unquoted.split(|c: char| !c.is_ascii_alphanumeric() && !"_$".contains(c)) {
        if !word.starts_with('$') && word.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        {
            words.push(word);
        }
    }
    let used: Vec<_> = words.iter().filter_map(|word| exposed.get(*word)).collect();
    assert!(!used.is_empty(), "no metric in {query}");
    for word in words {
        let is_label = used.iter().any(|labels| labels.contains(word));
        let known = exposed.contains_key(word) || is_label || WORDS.contains(&word);
        assert!(known, "`{word}` in {query}");
    }
}

fn collect_queries(value: &Value, queries: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            queries.extend(fields.get("expr").map(|query| query.as_str().unwrap().to_owned()));
            fields.values().for_each(|value| collect_queries(value, queries));
        }
        Value::Array(values) => values.iter().for_each(|value| collect_queries(value, queries)),
        _ => {}
    }
}

#[test]
fn the_panels_of_the_dashboard_are_told_apart_and_do_not_overlap() {
    let dashboard: Value = serde_json::from_str(DASHBOARD).expect("JSON");
    let panels = dashboard["panels"].as_array().unwrap();
    let (mut ids, mut titles, mut taken) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for panel in panels {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{panel}");
        assert!(titles.insert(panel["title"].as_str().unwrap()), "{panel}");
        assert!(panel["description"].as_str().is_some_and(|text| !text.is_empty()), "{panel}");
        assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{panel}");
        for target in panel["targets"].as_array().unwrap() {
            assert!(target["legendFormat"].is_string(), "{panel}");
        }
        let at = |field: &str| panel["gridPos"][field].as_u64().unwrap();
        assert!(at("x") + at("w") <= 24, "{panel}");
        for x in at("x")..at("x") + at("w") {
            for y in at("y")..at("y") + at("h") {
                assert!(taken.insert((x, y)), "{panel} overlaps another");
            }
        }
    }
}

#[test]
fn the_guide_lists_every_reason() {
    let reasons = [
        Reason::Ok,
        Reason::ClientError,
        Reason::Auth,
        Reason::Quota,
        Reason::RateLimited,
        Reason::ServerError,
        Reason::Redirected,
        Reason::Connect,
        Reason::Timeout,
        Reason::Reset,
        Reason::ErrorInSuccess,
        Reason::Credential,
        Reason::Abandoned,
        Reason::Other,
    ];
    let listed: BTreeSet<_> = GUIDE
        .lines()
        .skip_while(|line| !line.starts_with("| reason |"))
        .skip(2)
        .map_while(|line| line.strip_prefix("| `")?.split('`').next())
        .collect();
    assert_eq!(listed, reasons.iter().map(|reason| reason.as_str()).collect());
}

#[test]
fn the_guide_lists_every_event() {
    let events = SOURCE.split("pub enum Event").nth(1).expect("the enum");
    let events = events.split("\n}\n").next().unwrap();
    let variants: BTreeSet<_> = events
        .lines()
        .filter_map(|line| line.strip_prefix("    ")?.strip_suffix([',', '{']))
        .map(str::trim_end)
        .filter(|name| name.chars().all(|c| c.is_ascii_alphabetic()))
        .collect();
    assert!(variants.contains("Rejected") && variants.len() > 10, "{variants:?}");
    let listed: BTreeSet<_> = GUIDE
        .lines()
        .skip_while(|line| !line.starts_with("| event |"))
        .skip(2)
        .map_while(|line| line.strip_prefix("| `")?.split('`').next())
        .collect();
    assert_eq!(listed, variants);
}
