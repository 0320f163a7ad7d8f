//! The alert rules of the guide, evaluated over scripted outages: they fire when a person is needed,
//! and at no other time.
//!
//! The evaluator knows as much of PromQL as the rules use. An increase is the last sample less the
//! first one in the window: Prometheus also extrapolates to the window's edges, which no rule here
//! depends on. Where `promtool` is found, which comes with Prometheus, it evaluates every outage too and
//! must come to the same.
#![cfg(feature = "metrics")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use http::Extensions;
use metrics_exporter_prometheus::PrometheusBuilder;
use reqwest::{Request, Response};
use reqwest_failover::{Provider, ProviderChain};
use reqwest_middleware::{ClientBuilder, Middleware, Next, Result};
use tokio::time::{sleep, timeout};

const GUIDE: &str = include_str!("../docs/observability.md");
/// What the rules are about, in the guide's order.
const RULES: [&str; 4] =
    ["users see errors", "callers give up", "the first provider is in trouble", "a key is dead"];
const SCRAPE: u64 = 15;

// The evaluator.

type Labels = BTreeMap<String, String>;
/// One value for each set of labels.
type Vector = BTreeMap<Labels, f64>;
/// All series at one scrape, by name and labels.
type Sample = BTreeMap<(String, Labels), f64>;

/// Reads what an exporter shows.
fn parse_sample(text: &str) -> Sample {
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let (series, value) = line.rsplit_once(' ').expect("a series and a value");
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let labels = labels.trim_end_matches('}').split(',').filter(|label| !label.is_empty());
            let labels = labels.map(|label| {
                let (name, value) = label.split_once('=').expect("a label");
                (name.to_owned(), value.trim_matches('"').to_owned())
            });
            ((name.to_owned(), labels.collect()), value.parse().expect("a number"))
        })
        .collect()
}

fn tokens(rule: &str) -> Vec<String> {
    let mut tokens = Vec::new();
    let mut rest = rule.trim_start();
    while let Some(first) = rest.chars().next() {
        let end = if first == '"' {
            rest[1..].find('"').expect("the end of a string") + 2
        } else if first.is_ascii_alphanumeric() || first == '_' {
            rest.find(|c: char| !c.is_ascii_alphanumeric() && !"_.".contains(c))
                .unwrap_or(rest.len())
        } else if ["=~", "!~", "!=", ">="].iter().any(|two| rest.starts_with(two)) {
            2
        } else {
            1
        };
        tokens.push(rest[..end].to_owned());
        rest = rest[end..].trim_start();
    }
    tokens
}

/// Evaluates a rule as of the last of the samples, which are a scrape apart.
struct Evaluator<'a> {
    tokens: std::iter::Peekable<std::vec::IntoIter<String>>,
    samples: &'a [Sample],
}

impl<'a> Evaluator<'a> {
    fn evaluate(rule: &str, samples: &'a [Sample]) -> Vector {
        let mut this = Self { tokens: tokens(rule).into_iter().peekable(), samples };
        let value = this.conjunction();
        assert_eq!(this.tokens.next(), None, "the whole of {rule}");
        value
    }

    fn next(&mut self) -> String {
        self.tokens.next().expect("more")
    }

    fn take(&mut self, wanted: &str) -> bool {
        self.tokens.next_if(|token| token == wanted).is_some()
    }

    fn expect(&mut self, wanted: &str) {
        assert_eq!(self.next(), wanted);
    }

    fn conjunction(&mut self) -> Vector {
        let mut left = self.comparison();
        while self.take("and") {
            let right = self.comparison();
            left.retain(|labels, _| right.contains_key(labels));
        }
        left
    }

    /// A vector, or what of it is beyond a number.
    fn comparison(&mut self) -> Vector {
        let mut left = self.quotient();
        if self.take(">") {
            let limit = self.number();
            left.retain(|_, value| *value > limit);
        } else if self.take(">=") {
            let limit = self.number();
            left.retain(|_, value| *value >= limit);
        }
        left
    }

    fn quotient(&mut self) -> Vector {
        let mut left = self.sum();
        while self.take("/") {
            let right = self.sum();
            let pairs = left.into_iter();
            left = pairs
                .filter_map(|(labels, value)| {
                    let by = *right.get(&labels)?;
                    Some((labels, value / by))
                })
                .collect();
        }
        left
    }

    fn sum(&mut self) -> Vector {
        self.expect("sum");
        let mut by = BTreeSet::new();
        if self.take("by") {
            self.expect("(");
            while !self.take(")") {
                by.insert(self.next());
                self.take(",");
            }
        }
        self.expect("(");
        let mut sums = Vector::new();
        for (mut labels, value) in self.increase() {
            labels.retain(|name, _| by.contains(name));
            *sums.entry(labels).or_default() += value;
        }
        self.expect(")");
        sums
    }

    fn increase(&mut self) -> Vector {
        let per_second = match &*self.next() {
            "rate" => true,
            "increase" => false,
            other => panic!("unknown function {other}"),
        };
        self.expect("(");
        let name = self.next();
        let mut matchers = Vec::new();
        if self.take("{") {
            while !self.take("}") {
                let (label, operator, values) = (self.next(), self.next(), self.next());
                let values: Vec<_> =
                    values.trim_matches('"').split('|').map(str::to_owned).collect();
                assert!(values.len() == 1 || operator.ends_with('~'));
                matchers.push((label, operator.starts_with('='), values));
                self.take(",");
            }
        }
        self.expect("[");
        let minutes = self.next();
        let minutes: u64 = minutes.strip_suffix('m').expect("minutes").parse().unwrap();
        self.expect("]");
        self.expect(")");
        let seconds = minutes * 60;
        let window = (seconds / SCRAPE) as usize;
        let window = &self.samples[self.samples.len().saturating_sub(window)..];
        let divisor = if per_second { seconds as f64 } else { 1.0 };
        let selects = |labels: &Labels| {
            matchers.iter().all(|(label, wanted, values)| {
                let value = labels.get(label).map_or("", String::as_str);
                values.iter().any(|known| known == value) == *wanted
            })
        };
        let last = window.last().into_iter().flatten();
        last.filter(|((of, labels), _)| *of == name && selects(labels))
            .filter_map(|(series, last)| {
                let mut seen = window.iter().filter_map(|sample| sample.get(series));
                let first = seen.next()?;
                // One sample says nothing of an increase.
                seen.next()?;
                Some((series.1.clone(), (last - first) / divisor))
            })
            .collect()
    }

    fn number(&mut self) -> f64 {
        self.next().parse().expect("a number")
    }
}

#[test]
fn the_evaluator_reads_series_selectors_and_operators() {
    let text = |count: u64| {
        format!("# HELP a\na{{x=\"1\",y=\"u\"}} {count}\na{{x=\"2\",y=\"v\"}} 7\nb {count}\n")
    };
    let samples: Vec<_> = (0..=20).map(|at| parse_sample(&text(at * 15))).collect();
    let value = |rule: &str| Evaluator::evaluate(rule, &samples);
    let only = |value: f64| Vector::from([(Labels::new(), value)]);
    // Twenty samples are in a window of five minutes.
    assert_eq!(value("sum(increase(b[5m]))"), only(285.0));
    assert_eq!(value("sum(rate(b[5m]))"), only(0.95));
    assert_eq!(value("sum(increase(a[5m])) / sum(increase(b[5m])) > 0.99"), only(1.0));
    assert_eq!(value("sum(increase(a[5m])) > 285"), Vector::new());
    assert_eq!(value("sum(increase(a[5m])) >= 285 and sum(rate(b[5m])) > 1"), Vector::new());
    assert_eq!(value("sum(increase(a{x!~\"1|3\"}[5m]))"), only(0.0));
    assert_eq!(value("sum(increase(a{x=~\"1|3\", y!=\"v\"}[5m]))"), only(285.0));
    assert_eq!(value("sum(increase(a{x=\"3\"}[5m])) > 0"), Vector::new());
    let by = value("sum by (x) (increase(a[5m])) > 0");
    assert_eq!(by, [([("x".to_owned(), "1".to_owned())].into(), 285.0)].into());
}

// The outages.

/// What a provider does with every request.
#[derive(Clone, Copy)]
enum Does {
    Answers(u16),
    /// Answers with this code in its body.
    Says(u16, &'static str),
    Hangs,
}

/// What both providers do as the seconds go by.
struct Outage {
    does: fn(second: u64, provider: usize) -> Does,
    begun: tokio::time::Instant,
}

#[async_trait]
impl Middleware for Outage {
    async fn handle(&self, request: Request, _: &mut Extensions, _: Next<'_>) -> Result<Response> {
        let provider = usize::from(request.url().host_str() == Some("openai.test"));
        let (status, code) = match (self.does)(self.begun.elapsed().as_secs(), provider) {
            Does::Answers(status) => (status, ""),
            Does::Says(status, code) => (status, code),
            Does::Hangs => std::future::pending().await,
        };
        let body = format!(r#"{{"error":{{"message":"x","code":"{code}"}}}}"#);
        Ok(http::Response::builder().status(status).body(body).unwrap().into())
    }
}

/// One request a second for half an hour, from callers who wait for a minute: the rules that fire.
fn fire(does: fn(u64, usize) -> Does) -> Vec<&'static str> {
    let recorder = PrometheusBuilder::new().build_recorder();
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_time().start_paused(true).build().unwrap();
    let samples = metrics::with_local_recorder(&recorder, || {
        runtime.block_on(async {
            let chain = ProviderChain::builder([
                Provider::new("cometapi", "https://cometapi.test/v1").bearer_auth("key-a"),
                Provider::new("openai", "https://openai.test/v1").bearer_auth("key-b"),
            ]);
            let outage = Outage { does, begun: tokio::time::Instant::now() };
            let client = ClientBuilder::new(reqwest::Client::new())
                .with(chain.build().unwrap())
                .with(outage)
                .build();
            let mut samples = Vec::new();
            for second in 0..1_800 {
                if second % SCRAPE == 0 {
                    samples.push(parse_sample(&recorder.handle().render()));
                }
                let request = client.get("https://openai.test/v1/files").send();
                tokio::spawn(timeout(Duration::from_secs(60), request));
                sleep(Duration::from_secs(1)).await;
            }
            samples
        })
    });
    let rules: Vec<_> = GUIDE.split("```promql\n").skip(1).collect();
    assert_eq!(rules.len(), RULES.len());
    let rules: Vec<_> = rules.iter().map(|rule| rule.split("```").next().unwrap()).collect();
    let fires = |rule: &str| {
        (1..=samples.len()).any(|now| !Evaluator::evaluate(rule, &samples[..now]).is_empty())
    };
    let named = RULES.into_iter().zip(&rules);
    let fire: Vec<_> = named.filter(|(_, rule)| fires(rule)).map(|(name, _)| name).collect();
    promtool_agrees(&rules, &samples, &fire);
    fire
}

/// Has the real thing evaluate the rules, if it is here.
fn promtool_agrees(rules: &[&str], samples: &[Sample], fire: &[&str]) {
    static RUNS: AtomicUsize = AtomicUsize::new(0);
    let run = RUNS.fetch_add(1, Ordering::Relaxed);
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("alerts-{run}"));
    std::fs::create_dir_all(&folder).unwrap();
    let named = || RULES.into_iter().zip(rules);
    let alerts = named().map(|(name, rule)| serde_json::json!({ "alert": name, "expr": rule }));
    let alerts: Vec<_> = alerts.collect();
    let rules = serde_json::json!({ "groups": [{ "name": "guide", "rules": alerts }] });
    let series: BTreeSet<_> = samples
        .iter()
        .flat_map(Sample::keys)
        .filter(|(name, _)| name.ends_with("_total"))
        .collect();
    let series = series.into_iter().map(|of| {
        let values = samples
            .iter()
            .map(|sample| sample.get(of).map_or("_".to_owned(), |value| value.to_string()));
        let labels: Vec<_> = of.1.iter().map(|(name, value)| format!("{name}={value:?}")).collect();
        serde_json::json!({
            "series": format!("{}{{{}}}", of.0, labels.join(",")),
            "values": values.collect::<Vec<_>>().join(" "),
        })
    });
    let fired = fire
        .iter()
        .map(|name| serde_json::json!({ "labels": format!("{{alertname={name:?}}}"), "value": 1 }));
    let interval = format!("{SCRAPE}s");
    let tests = serde_json::json!({
        "rule_files": ["rules.yml"],
        "evaluation_interval": interval,
        "tests": [{
            "interval": interval,
            "input_series": series.collect::<Vec<_>>(),
            "promql_expr_test": [{
                "expr": "group by (alertname) (count_over_time(ALERTS[1h]))",
                "eval_time": "30m",
                "exp_samples": fired.collect::<Vec<_>>(),
            }],
        }],
    });
    // JSON is YAML.
    std::fs::write(folder.join("rules.yml"), rules.to_string()).unwrap();
    std::fs::write(folder.join("tests.yml"), tests.to_string()).unwrap();
    let mut promtool = Command::new("promtool");
    match promtool.args(["test", "rules", "tests.yml"]).current_dir(&folder).output() {
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).into_owned()
                + &String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success(), "promtool: {said}");
            println!("promtool agrees: {fire:?}");
        }
        Err(error) => println!("skipped: no promtool here: {error}"),
    }
}

/// The first provider does this from the tenth minute on, and all else is well.
fn first(second: u64, provider: usize, does: Does) -> Does {
    if provider == 0 && second >= 600 { does } else { Does::Answers(200) }
}

#[test]
fn nothing_fires_while_all_is_well() {
    assert_eq!(fire(|_, _| Does::Answers(200)), [""; 0]);
    // Nor for a failure now and then.
    let fires = fire(|second, provider| {
        let fails = provider == 0 && second % 60 == 7;
        Does::Answers(if fails { 503 } else { 200 })
    });
    assert_eq!(fires, [""; 0]);
}

#[test]
fn a_first_provider_that_hangs_fires_although_its_callers_give_up() {
    // Those who gave up before its breaker was open are a tenth of five minutes.
    let fires = fire(|second, provider| first(second, provider, Does::Hangs));
    assert_eq!(fires, ["callers give up", "the first provider is in trouble"]);
    let fires = fire(|second, provider| first(second, provider, Does::Answers(500)));
    assert_eq!(fires, ["the first provider is in trouble"]);
    let fires = fire(|second, provider| first(second, provider, Does::Answers(429)));
    assert_eq!(fires, ["the first provider is in trouble"]);
}

#[test]
fn providers_that_all_hang_fire_although_every_caller_gives_up() {
    let fires = fire(|second, _| if second < 600 { Does::Answers(200) } else { Does::Hangs });
    assert_eq!(fires, ["callers give up"]);
}

#[test]
fn a_decay_that_opens_no_breaker_fires_above_a_tenth() {
    let one_in_five = |second, provider| match second % 5 {
        0 => first(second, provider, Does::Answers(503)),
        _ => Does::Answers(200),
    };
    assert_eq!(fire(one_in_five), ["the first provider is in trouble"]);
    let one_in_twelve = |second, provider| match second % 12 {
        0 => first(second, provider, Does::Answers(503)),
        _ => Does::Answers(200),
    };
    assert_eq!(fire(one_in_twelve), [""; 0]);
}

#[test]
fn what_no_provider_has_fires_nothing() {
    for does in [
        (|_, _| Does::Answers(404)) as fn(u64, usize) -> Does,
        |second, _| Does::Answers(if second % 2 == 0 { 404 } else { 200 }),
        |_, provider| Does::Answers([400, 422][provider]),
    ] {
        assert_eq!(fire(does), [""; 0]);
    }
}

#[test]
fn a_dead_key_fires_also_where_the_other_provider_serves() {
    let both = ["the first provider is in trouble", "a key is dead"];
    assert_eq!(fire(|second, provider| first(second, provider, Does::Answers(401))), both);
    let quota = |second, provider| first(second, provider, Does::Says(429, "insufficient_quota"));
    assert_eq!(fire(quota), both);
    // The key of a provider that is hardly ever asked.
    let spare = |second, provider| match (provider, second) {
        (0, 700) => Does::Answers(500),
        (0, _) => Does::Answers(200),
        _ => Does::Answers(403),
    };
    assert_eq!(fire(spare), ["users see errors", "a key is dead"]);
}

#[test]
fn one_request_that_no_provider_served_fires() {
    let fires = fire(|second, _| Does::Answers(if second == 700 { 503 } else { 200 }));
    assert_eq!(fires, ["users see errors"]);
}
