//! Each provider is asked once, apart from all requests.

use reqwest_failover_testing::support;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http::Method;
use reqwest::{Body, Request, Url};
use reqwest_failover::{Attempt, Inspect, Provider, ProviderChain, Reason, State, Verdict, harden};
use reqwest_middleware::ClientBuilder;

use support::harness::{BODY, WireHarness, local, plain};
use support::{Answer, Received, Server};

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// A GET below the last provider's base.
fn get(harness: &WireHarness) -> Request {
    let url = harness.actors.last().unwrap().url("/models");
    Request::new(Method::GET, Url::parse(&url).unwrap())
}

/// Each attempt's provider, reason and status.
fn lines(harness: &WireHarness, said: &[Attempt]) -> Vec<String> {
    let line = |attempt: &Attempt| {
        harness.hear(format!("{attempt} {attempt:?} {:?}", attempt.message()));
        let status = attempt.status().map_or("-".to_owned(), |status| status.as_u16().to_string());
        format!("{} {} {status}", attempt.provider(), attempt.reason())
    };
    said.iter().map(line).collect()
}

#[tokio::test]
async fn each_provider_says_its_own_and_all_are_asked() {
    let echo = |request: &Received| {
        Answer::error(401, &format!("wrong key {}", request.header("authorization").unwrap()))
    };
    let harness = WireHarness::of([
        ("well", Answer::ok().into()),
        ("limited", Answer::error(429, "slow down").header("retry-after", "7").into()),
        ("keyless", echo.into()),
        ("down", Answer::error(500, "down").into()),
        ("resets", Answer::reset().into()),
        ("moved", Answer::status(302).header("location", "/elsewhere").into()),
        ("hangs", Answer::stall().into()),
        ("lies", Answer::status(200).json(serde_json::json!({"error": {"code": "x"}})).into()),
    ])
    .await;
    let chain = harness.chain().inspect(Inspect::errors_in_success()).attempt_timeout(ms(300));
    let mut request = get(&harness);
    *request.method_mut() = Method::POST;
    *request.body_mut() = Some("{}".into());
    let chain = chain.max_attempts(1).build().unwrap();
    let said = chain.check(&local(harden(reqwest::Client::builder())), request).await;
    assert_eq!(
        lines(&harness, &said),
        [
            "well ok 200",
            "limited rate_limited 429",
            "keyless auth 401",
            "down server_error 500",
            "resets reset -",
            "moved redirected 302",
            "hangs timeout -",
            "lies error_in_success 200",
        ]
    );
    assert_eq!(said[0].message(), None);
    assert_eq!(said[2].message(), Some("wrong key Bearer [redacted]"));
    assert_eq!(said[3].message(), Some("down"));
    assert!((ms(300)..ms(2_000)).contains(&said[6].elapsed()), "{:?}", said[6].elapsed());
    assert!(said[6].maybe_processed() && !said[0].maybe_processed());
    harness.assert_asked(&[1; 8]);
}

/// All that is counted and known of the providers, without the clock's part.
fn standing(chain: &ProviderChain) -> String {
    format!("{:?}", chain.snapshot())
}

#[tokio::test]
async fn no_health_moves_and_nothing_is_counted_or_told() {
    let harness = WireHarness::of([
        ("open", Answer::error(500, "down").into()),
        ("cooling", Answer::error(429, "slow down").header("retry-after", "60").into()),
        ("isolated", Answer::ok().into()),
        ("standby", Answer::error(401, "expired").into()),
    ])
    .await;
    let events = Arc::new(AtomicUsize::new(0));
    let counting = events.clone();
    let chain = harness.chain().observe(move |_| _ = counting.fetch_add(1, Ordering::Relaxed));
    let chain = chain.build().unwrap();
    chain.isolate("isolated").unwrap();
    let client = ClientBuilder::new(plain()).with(chain.clone()).build();
    for _ in 0..5 {
        harness.post(&client).send().await.unwrap();
    }
    let states = |chain: &ProviderChain| -> Vec<State> {
        chain.snapshot().providers().iter().map(|provider| provider.state()).collect()
    };
    assert!(matches!(
        states(&chain)[..],
        [State::Open { .. }, State::CoolingDown { .. }, State::Isolated, State::Open { .. }]
    ));
    let before = standing(&chain);
    let told = events.load(Ordering::Relaxed);
    let asked = |harness: &WireHarness| -> Vec<usize> {
        (0..4).map(|actor| harness.requests(actor).len()).collect()
    };
    let counts = asked(&harness);
    for round in 1..=20 {
        let said = chain.check(&plain(), get(&harness)).await;
        assert_eq!(
            lines(&harness, &said),
            [
                "open server_error 500",
                "cooling rate_limited 429",
                "isolated ok 200",
                "standby auth 401"
            ]
        );
        assert_eq!(standing(&chain), before);
        let expected: Vec<_> = counts.iter().map(|count| count + round).collect();
        assert_eq!(asked(&harness), expected);
    }
    assert_eq!(events.load(Ordering::Relaxed), told);
}

#[tokio::test]
async fn a_provider_that_is_well_stays_closed_after_a_hundred_bad_checks() {
    let harness = WireHarness::two(Answer::error(500, "down"), Answer::ok()).await;
    let chain = harness.chain().build().unwrap();
    for _ in 0..100 {
        assert_eq!(chain.check(&plain(), get(&harness)).await[0].reason(), Reason::ServerError);
    }
    let snapshot = chain.snapshot();
    assert_eq!((snapshot.requests(), snapshot.exhausted()), (0, 0));
    for provider in snapshot.providers() {
        assert_eq!(provider.state(), State::Closed);
        assert_eq!((provider.attempts(), provider.failures(), provider.in_flight()), (0, 0, 0));
    }
}

#[cfg(feature = "metrics")]
#[tokio::test]
async fn no_metric_counts_a_check() {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    let _recording = metrics::set_default_local_recorder(&recorder);
    let harness = WireHarness::two(Answer::error(500, "down"), Answer::ok()).await;
    let chain = harness.chain().build().unwrap();
    let client = ClientBuilder::new(plain()).with(chain.clone()).build();
    harness.post(&client).send().await.unwrap();
    let rendered = || {
        let mut lines: Vec<_> = handle.render().lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let before = rendered();
    assert!(before.iter().any(|line| line.starts_with("failover_attempts_total{")), "{before:?}");
    assert_eq!(chain.check(&plain(), get(&harness)).await.len(), 2);
    assert_eq!(rendered(), before);
}

#[tokio::test]
async fn each_attempt_is_the_providers_own() {
    let mut harness = WireHarness::two(Answer::ok(), Answer::ok()).await;
    let token = harness.secret("token");
    let mine = harness.secret("callers");
    harness.actors[1].key = token.clone();
    let chain = ProviderChain::builder([
        harness.actors[0].provider().rename_model("gpt-5", "comet/gpt-5").json_remove("b"),
        harness.actors[1].keyless().api_key_header_with("x-own", move || {
            let token = token.clone();
            async move { Ok::<_, Infallible>(token) }
        }),
    ])
    .build()
    .unwrap();
    let mut request = get(&harness);
    *request.method_mut() = Method::POST;
    *request.body_mut() = Some(BODY.into());
    request.headers_mut().insert("authorization", format!("Bearer {mine}").parse().unwrap());
    request.headers_mut().insert("x-trace", "7".parse().unwrap());
    let said = chain.check(&plain(), request).await;
    assert_eq!(lines(&harness, &said), ["cometapi ok 200", "openai ok 200"]);
    let first = harness.requests(0).remove(0);
    assert!(first.text().contains("\"model\": \"comet/gpt-5\"") && !first.text().contains("\"b\""));
    assert_eq!(first.header("authorization"), Some(&*format!("Bearer {}", harness.actors[0].key)));
    let second = harness.requests(1).remove(0);
    assert_eq!(second.text(), BODY);
    assert_eq!(second.header("authorization"), None);
    assert_eq!(second.header("x-own"), Some(&*harness.actors[1].key));
    assert_eq!((first.header("x-trace"), second.header("x-trace")), (Some("7"), Some("7")));
}

#[tokio::test]
async fn the_answers_come_in_the_chains_order_however_long_each_takes() {
    let harness = WireHarness::of([
        ("slow", Answer::ok().headers_after(ms(200)).into()),
        ("quick", Answer::ok().into()),
        ("slower", Answer::ok().headers_after(ms(300)).into()),
    ])
    .await;
    let chain = harness.chain().build().unwrap();
    chain.set_order(["slower", "quick", "slow"]).unwrap();
    let began = Instant::now();
    let said = chain.check(&plain(), get(&harness)).await;
    assert_eq!(lines(&harness, &said), ["slower ok 200", "quick ok 200", "slow ok 200"]);
    assert!((ms(300)..ms(480)).contains(&began.elapsed()), "at once: {:?}", began.elapsed());
    assert!(said[1].elapsed() < ms(150), "{:?}", said[1].elapsed());
}

#[tokio::test]
async fn the_requests_timeout_bounds_each_attempt() {
    let stalls = || Answer::stall().into();
    let harness = WireHarness::of([("a", stalls()), ("b", stalls()), ("c", stalls())]).await;
    let chain = harness.chain().build().unwrap();
    let mut request = get(&harness);
    *request.timeout_mut() = Some(ms(150));
    let began = Instant::now();
    let said = chain.check(&plain(), request).await;
    assert_eq!(lines(&harness, &said), ["a timeout -", "b timeout -", "c timeout -"]);
    assert!((ms(150)..ms(1_000)).contains(&began.elapsed()), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_provider_at_its_limit_is_asked_and_its_places_stay_taken() {
    let server = Server::start(Answer::ok()).await;
    let provider = Provider::new("a", server.base_url("/v1")).bearer_auth("key-1").max_in_flight(1);
    let chain = ProviderChain::builder([provider]).build().unwrap();
    let client = ClientBuilder::new(plain()).with(chain.clone()).build();
    let held = client.get(server.base_url("/v1/models")).send().await.unwrap();
    assert_eq!(chain.snapshot().providers()[0].state(), State::AtCapacity);
    let request = plain().get(server.base_url("/v1/models")).build().unwrap();
    assert_eq!(chain.check(&plain(), request).await[0].reason(), Reason::Ok);
    assert_eq!(chain.snapshot().providers()[0].state(), State::AtCapacity);
    drop(held);
    assert_eq!(chain.snapshot().providers()[0].in_flight(), 0);
}

#[tokio::test]
async fn what_fails_before_it_is_sent_is_said() {
    let harness = WireHarness::of([
        ("vault", Answer::ok().into()),
        ("prepared", Answer::ok().into()),
        ("panics", Answer::ok().into()),
    ])
    .await;
    let failing = || async { Err::<String, _>("the vault is shut") };
    let chain = ProviderChain::builder([
        harness.actors[0].keyless().bearer_auth_with(failing),
        harness.actors[1].provider().map_request(|_| Err::<(), _>("not today")),
        harness.actors[2]
            .provider()
            .map_request(|_| -> Result<(), Infallible> { panic!("scripted") }),
    ])
    .classify(|_| Verdict::Accept)
    .build()
    .unwrap();
    let said = chain.check(&plain(), get(&harness)).await;
    assert_eq!(
        lines(&harness, &said),
        ["vault credential -", "prepared other -", "panics other -"]
    );
    let messages: Vec<_> = said.iter().map(|attempt| attempt.message().unwrap()).collect();
    assert_eq!(messages, ["the vault is shut", "not today", "`map_request` panicked"]);
    harness.assert_asked(&[0, 0, 0]);
    // A panic is news wherever it is.
    assert_eq!(chain.snapshot().callback_panics(), 1);
}

#[tokio::test]
async fn where_nothing_can_be_sent_each_attempt_says_so() {
    let harness = WireHarness::two(Answer::ok(), Answer::ok()).await;
    let chain = harness.chain().build().unwrap();
    let request = |url: &str| Request::new(Method::GET, Url::parse(url).unwrap());
    let mut streamed = get(&harness);
    let pieces = futures_util::stream::iter([Ok::<_, std::io::Error>("{}")]);
    *streamed.body_mut() = Some(Body::wrap_stream(pieces));
    let secret = harness.secret("elsewhere");
    for (request, problem) in [
        (request(&format!("http://elsewhere.test/v1?key={secret}")), "below no base URL"),
        (request(&harness.actors[0].url("/..%2fadmin")), "hides a dot segment"),
        (streamed, "the body is a stream"),
    ] {
        let said = chain.check(&plain(), request).await;
        assert_eq!(lines(&harness, &said), ["cometapi other -", "openai other -"]);
        assert!(said.iter().all(|attempt| attempt.message().unwrap().contains(problem)));
        assert!(said.iter().all(|attempt| !attempt.maybe_processed()));
    }
    harness.assert_untouched();
    assert_eq!(chain.snapshot().passed_through(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_runs_in_a_task_and_can_be_dropped() {
    let harness = WireHarness::two(Answer::stall(), Answer::ok()).await;
    let chain = harness.chain().build().unwrap();
    let before = standing(&chain);
    let task = tokio::spawn({
        let (chain, request) = (chain.clone(), get(&harness));
        async move { chain.check(&plain(), request).await }
    });
    harness.actors[0].server.until(|server| !server.requests().is_empty()).await;
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    assert_eq!(standing(&chain), before);
}
