//! Who answers, and what the caller learns, whatever goes wrong at a provider.

use reqwest_failover_testing::support;

use std::error::Error as StdError;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Extensions, StatusCode};
use reqwest::Response;
use reqwest_failover::{
    Exhausted, FailoverError, Provider, ProviderChain, ProviderChainBuilder, Reason, Report, State,
    harden,
};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware, Error};

use support::harness::{BODY, WireHarness, client, line, local, plain};
use support::{Answer, Place, Received, Refusing, Step};

const FINE: &str = "{\"answer\":\"fine\"}";

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// The response is the second provider's, and both were sent the same request, byte for byte.
async fn assert_failed_over(harness: &WireHarness, response: Response) -> Report {
    let report = Report::of(&response).expect("a report").clone();
    harness.hear(format!("{report} {report:?} {response:?}"));
    assert_eq!(response.status(), 200, "{report}");
    assert_eq!(report.served_by(), Some("openai"));
    assert_eq!(report.attempts().len(), 2, "{report}");
    assert_eq!(response.text().await.unwrap(), FINE);
    harness.assert_asked(&[1, 1]);
    let (first, second) = (harness.requests(0).remove(0), harness.requests(1).remove(0));
    assert_eq!(first.body, BODY.as_bytes());
    assert_eq!(second.body, BODY.as_bytes());
    assert_eq!((&*first.method, &*first.target), ("POST", "/v1/chat/completions"));
    assert_eq!((&first.method, &first.target), (&second.method, &second.target));
    let names =
        |request: &Received| request.headers.iter().map(|(k, _)| k.clone()).collect::<Vec<_>>();
    assert_eq!(names(&first), names(&second));
    report
}

/// Sends one POST and keeps the caller's `Extensions`.
async fn execute(
    harness: &WireHarness,
    client: &ClientWithMiddleware,
) -> (reqwest_middleware::Result<Response>, Extensions) {
    let mut extensions = Extensions::new();
    let request = harness.post(client).build().unwrap();
    let result = client.execute_with_extensions(request, &mut extensions).await;
    if let Err(error) = &result {
        harness.hear(format!("{error} {error:?}"));
        let mut source = error.source();
        while let Some(error) = source {
            harness.hear(format!("{error} {error:?}"));
            source = error.source();
        }
    }
    (result, extensions)
}

#[tokio::test]
async fn the_first_provider_answers_and_nobody_else_is_asked() {
    let harness = WireHarness::two(Answer::ok(), Answer::ok()).await;
    let response = harness.post(&harness.client()).send().await.unwrap();
    let report = Report::of(&response).unwrap();
    assert_eq!(line(report), "cometapi 200 in # ms");
    assert_eq!(report.served_by(), Some("cometapi"));
    assert_eq!(report.attempts()[0].reason(), Reason::Ok);
    assert_eq!(report.attempts()[0].message(), None);
    assert_eq!(response.text().await.unwrap(), FINE);
    harness.assert_asked(&[1, 0]);
    assert_eq!(harness.actors[1].server.connections(), 0);
}

macro_rules! statuses {
    ($($name:ident: $status:literal $reason:ident, maybe processed $maybe_processed:literal;)*) => {$(
        #[tokio::test]
        async fn $name() {
            let harness = WireHarness::two(Answer::error($status, "it broke"), Answer::ok()).await;
            let response = harness.post(&harness.client()).send().await.unwrap();
            let report = assert_failed_over(&harness, response).await;
            let redirected = if $status / 100 == 3 { " (redirected)" } else { "" };
            let maybe_processed = if $maybe_processed { " (maybe processed)" } else { "" };
            let expected = format!(
                "cometapi {}{redirected} in # ms{maybe_processed} → openai 200 in # ms",
                $status
            );
            assert_eq!(line(&report), expected);
            let failed = &report.attempts()[0];
            assert_eq!((failed.provider(), failed.reason()), ("cometapi", Reason::$reason));
            assert_eq!(failed.status().unwrap().as_u16(), $status);
            assert_eq!(failed.maybe_processed(), $maybe_processed);
            assert!(failed.is_replayable());
        }
    )*};
}

statuses! {
    fails_over_when_the_first_provider_answers_400: 400 ClientError, maybe processed false;
    fails_over_when_the_first_provider_answers_401: 401 Auth, maybe processed false;
    fails_over_when_the_first_provider_answers_402: 402 Auth, maybe processed false;
    fails_over_when_the_first_provider_answers_403: 403 Auth, maybe processed false;
    fails_over_when_the_first_provider_answers_404: 404 ClientError, maybe processed false;
    fails_over_when_the_first_provider_answers_408: 408 ServerError, maybe processed true;
    fails_over_when_the_first_provider_answers_409: 409 ClientError, maybe processed false;
    fails_over_when_the_first_provider_answers_413: 413 ClientError, maybe processed false;
    fails_over_when_the_first_provider_answers_415: 415 ClientError, maybe processed false;
    fails_over_when_the_first_provider_answers_418: 418 ClientError, maybe processed false;
    fails_over_when_the_first_provider_answers_422: 422 ClientError, maybe processed false;
    fails_over_when_the_first_provider_answers_425: 425 ServerError, maybe processed false;
    fails_over_when_the_first_provider_answers_429: 429 RateLimited, maybe processed false;
    fails_over_when_the_first_provider_answers_500: 500 ServerError, maybe processed true;
    fails_over_when_the_first_provider_answers_502: 502 ServerError, maybe processed true;
    fails_over_when_the_first_provider_answers_503: 503 ServerError, maybe processed false;
    fails_over_when_the_first_provider_answers_504: 504 ServerError, maybe processed true;
    fails_over_when_the_first_provider_answers_520: 520 ServerError, maybe processed true;
    fails_over_when_the_first_provider_answers_524: 524 ServerError, maybe processed true;
    fails_over_when_the_first_provider_answers_529: 529 ServerError, maybe processed true;
    fails_over_when_the_first_provider_answers_300: 300 Redirected, maybe processed true;
    fails_over_when_the_first_provider_answers_302_to_nowhere: 302 Redirected, maybe processed true;
    fails_over_when_the_first_provider_answers_999: 999 Other, maybe processed true;
    fails_over_when_the_first_provider_answers_301: 301 Redirected, maybe processed true;
    fails_over_when_the_first_provider_answers_303: 303 Redirected, maybe processed true;
    fails_over_when_the_first_provider_answers_307: 307 Redirected, maybe processed false;
    fails_over_when_the_first_provider_answers_308: 308 Redirected, maybe processed false;
    fails_over_when_the_first_provider_answers_499: 499 ClientError, maybe processed true;
    fails_over_when_the_first_provider_answers_521: 521 ServerError, maybe processed false;
    fails_over_when_the_first_provider_answers_523: 523 ServerError, maybe processed false;
}

#[tokio::test]
async fn every_success_is_handed_on() {
    for status in [200, 201, 202, 204, 206, 304] {
        let harness =
            WireHarness::two(Answer::status(status).header("x-kept", "yes"), Answer::ok()).await;
        let response = harness.post(&harness.client()).send().await.unwrap();
        assert_eq!(response.status().as_u16(), status);
        assert_eq!(response.headers()["x-kept"], "yes");
        harness.assert_asked(&[1, 0]);
    }
}

#[tokio::test]
async fn a_switch_of_protocols_is_a_success_only_where_it_was_asked_for() {
    let upgrade =
        Answer::status(101).header("connection", "upgrade").header("upgrade", "websocket");
    let harness = WireHarness::two(upgrade.clone(), Answer::ok()).await;
    let request = harness.client().get(harness.actors[1].url("/realtime"));
    let request = request.header("connection", "upgrade").header("upgrade", "websocket");
    assert_eq!(request.send().await.unwrap().status(), 101);
    harness.assert_asked(&[1, 0]);

    let harness = WireHarness::two(upgrade, Answer::ok()).await;
    let response = harness.client().get(harness.actors[1].url("/realtime")).send().await.unwrap();
    assert_eq!(response.status(), 200);
    harness.assert_asked(&[1, 1]);
}

#[tokio::test]
async fn every_method_fails_over_with_its_path_and_query_as_they_were() {
    for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "QUERY"] {
        let harness = WireHarness::two(Answer::error(500, "broken"), Answer::ok()).await;
        let suffix = "/files/a%20b?after=%2Fx&limit=1&empty&plus=a+b&again=1&again=2";
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        let url = harness.actors[1].url(suffix);
        let response = harness.client().request(method.clone(), url).send().await.unwrap();
        assert_eq!(response.status(), 200, "{method}");
        harness.assert_asked(&[1, 1]);
        for actor in 0..2 {
            let request = harness.requests(actor).remove(0);
            assert_eq!(request.method, method.as_str());
            assert_eq!(request.target, format!("/v1{suffix}"));
            assert!(request.body.is_empty());
        }
    }
}

#[tokio::test]
async fn the_request_may_be_addressed_to_any_base_of_the_chain() {
    let harness = WireHarness::two(Answer::error(500, "broken"), Answer::ok()).await;
    let client = harness.client();
    for actor in &harness.actors {
        let response = client.get(actor.url("/models")).send().await.unwrap();
        assert_eq!(Report::of(&response).unwrap().served_by(), Some("openai"));
    }
    harness.assert_asked(&[2, 2]);
}

#[tokio::test]
async fn a_body_of_a_mebibyte_arrives_byte_for_byte_at_both() {
    let harness = WireHarness::two(Answer::error(500, "broken"), Answer::ok()).await;
    let body: Vec<u8> = (0..1 << 20).map(|at: u32| (at.wrapping_mul(at) >> 7) as u8).collect();
    let url = harness.actors[1].url("/files");
    let response = harness.client().put(url).body(body.clone()).send().await.unwrap();
    assert_eq!(response.status(), 200);
    for actor in 0..2 {
        assert!(harness.requests(actor)[0].body == body, "body at {actor}");
    }
}

#[tokio::test]
async fn fifty_requests_at_once_all_fail_over() {
    let harness = WireHarness::two(Answer::error(400, "broken"), Answer::ok()).await;
    let client = harness.client();
    let requests = (0..50).map(|_| harness.post(&client).send());
    for response in futures_util::future::join_all(requests).await {
        assert_eq!(
            line(Report::of(&response.unwrap()).unwrap()),
            "cometapi 400 in # ms → openai 200 in # ms"
        );
    }
    harness.assert_asked(&[50, 50]);
}

// Connections that fail.

/// `openai` alone on the harness, and another provider before it.
async fn behind(
    first: impl FnOnce(&WireHarness) -> Provider,
) -> (WireHarness, ClientWithMiddleware) {
    let harness = WireHarness::of([("openai", Answer::ok().into())]).await;
    let client = client(ProviderChain::builder([first(&harness), harness.actors[0].provider()]));
    (harness, client)
}

async fn assert_connects_elsewhere(harness: &WireHarness, client: &ClientWithMiddleware) {
    let response = harness.post(client).send().await.unwrap();
    let report = Report::of(&response).unwrap();
    assert_eq!(line(report), "cometapi failed (connect) in # ms → openai 200 in # ms");
    assert_eq!(report.attempts()[0].reason(), Reason::Connect);
    assert_eq!(report.attempts()[0].status(), None);
    assert!(!report.attempts()[0].maybe_processed());
    assert_eq!(harness.requests(0)[0].text(), BODY);
    harness.assert_asked(&[1]);
}

#[tokio::test]
async fn fails_over_when_the_first_provider_refuses_connections() {
    let closed = Refusing::start();
    let first = |harness: &WireHarness| {
        Provider::new("cometapi", closed.base_url("/v1")).bearer_auth(harness.secret("cometapi"))
    };
    let (harness, client) = behind(first).await;
    assert_connects_elsewhere(&harness, &client).await;
}

#[tokio::test]
async fn fails_over_when_the_first_provider_speaks_no_tls() {
    let mute = support::Server::start(Answer::ok()).await;
    let first = |harness: &WireHarness| {
        let base = mute.base_url("/v1").replace("http:", "https:");
        Provider::new("cometapi", base).bearer_auth(harness.secret("cometapi"))
    };
    let (harness, client) = behind(first).await;
    // It takes the handshake for a request without an end; closing the connection ends it.
    let client_hello = async {
        mute.until(|mute| mute.raw().iter().any(|bytes| !bytes.is_empty())).await;
        mute.hang_up();
    };
    tokio::join!(assert_connects_elsewhere(&harness, &client), client_hello);
    assert_eq!(mute.requests().len(), 0);
}

#[tokio::test]
async fn fails_over_when_the_first_providers_name_cannot_be_resolved() {
    struct Nowhere;
    impl reqwest::dns::Resolve for Nowhere {
        fn resolve(&self, _: reqwest::dns::Name) -> reqwest::dns::Resolving {
            Box::pin(async { Err("no such host".into()) })
        }
    }
    let harness = WireHarness::of([("openai", Answer::ok().into())]).await;
    let first = Provider::new("cometapi", "https://api.example.invalid/v1");
    let chain = ProviderChain::builder([
        first.bearer_auth(harness.secret("cometapi")),
        harness.actors[0].provider(),
    ]);
    let plain = local(reqwest::Client::builder().dns_resolver(Arc::new(Nowhere)));
    let client = ClientBuilder::new(plain).with(chain.build().unwrap()).build();
    assert_connects_elsewhere(&harness, &client).await;
}

#[tokio::test]
async fn a_host_that_refuses_connections_is_not_asked_again_under_another_name() {
    let closed = Refusing::start();
    let harness = WireHarness::of([("openai", Answer::ok().into())]).await;
    let at = |name: &'static str, prefix: &str| {
        Provider::new(name, closed.base_url(prefix)).bearer_auth(harness.secret(name))
    };
    let [eu, us] = [at("eu", "/eu"), at("us", "/us")];
    let chain = ProviderChain::builder([eu, us, harness.actors[0].provider()]);
    let response = harness.post(&client(chain)).send().await.unwrap();
    let expected = "eu failed (connect) in # ms → openai 200 in # ms";
    assert_eq!(line(Report::of(&response).unwrap()), expected);
    harness.assert_asked(&[1]);

    // A host that answers is asked again under its other name.
    let harness = WireHarness::two(Answer::error(503, "busy"), Answer::ok()).await;
    let base = harness.actors[0].server.base_url("/us");
    let us = Provider::new("us", base).bearer_auth(&harness.actors[0].key);
    let chain =
        ProviderChain::builder([harness.actors[0].provider(), us, harness.actors[1].provider()]);
    let response = harness.post(&client(chain)).send().await.unwrap();
    let expected = "cometapi 503 in # ms → us 503 in # ms → openai 200 in # ms";
    assert_eq!(line(Report::of(&response).unwrap()), expected);
    harness.assert_asked(&[2, 1]);
}

macro_rules! broken_connections {
    ($($name:ident: $place:ident $step:ident,)*) => {$(
        #[tokio::test]
        async fn $name() {
            let broken = Answer::ok().at(Place::$place, Step::$step);
            let harness = WireHarness::two(broken, Answer::ok()).await;
            let response = harness.post(&harness.client()).send().await.unwrap();
            let report = assert_failed_over(&harness, response).await;
            assert_eq!(report.attempts()[0].reason(), Reason::Reset);
            assert_eq!(report.attempts()[0].status(), None);
            assert!(report.attempts()[0].maybe_processed());
            let expected = "cometapi failed (reset) in # ms (maybe processed) → openai 200 in # ms";
            assert_eq!(line(&report), expected);
        }
    )*};
}

broken_connections! {
    fails_over_when_the_connection_is_closed_before_the_headers: BeforeHeaders Fin,
    fails_over_when_the_connection_is_closed_within_the_headers: WithinHeaders Fin,
    fails_over_when_the_connection_is_reset_before_the_headers: BeforeHeaders Rst,
    fails_over_when_the_connection_is_reset_within_the_headers: WithinHeaders Rst,
}

macro_rules! broken_bodies {
    ($($name:ident: $status:literal $place:ident $step:ident,)*) => {$(
        #[tokio::test]
        async fn $name() {
            // The pause lets the headers arrive before the connection ends.
            let answer = Answer::error($status, "it broke");
            let broken = answer.at(Place::$place, Step::Wait(ms(5))).at(Place::$place, Step::$step);
            let harness = WireHarness::two(broken, Answer::ok()).await;
            let response = harness.post(&harness.client()).send().await.unwrap();
            if $status >= 400 {
                let report = assert_failed_over(&harness, response).await;
                assert_eq!(report.attempts()[0].reason(), Reason::ServerError);
            } else {
                assert_eq!(Report::of(&response).unwrap().served_by(), Some("cometapi"));
                assert!(response.bytes().await.unwrap_err().is_decode());
                harness.assert_asked(&[1, 0]);
            }
        }
    )*};
}

broken_bodies! {
    fails_over_when_an_error_is_closed_after_its_headers: 500 AfterHeaders Fin,
    fails_over_when_an_error_is_closed_within_its_body: 500 WithinBody Fin,
    fails_over_when_an_error_is_reset_after_its_headers: 500 AfterHeaders Rst,
    fails_over_when_an_error_is_reset_within_its_body: 500 WithinBody Rst,
    hands_on_a_success_that_is_closed_after_its_headers: 200 AfterHeaders Fin,
    hands_on_a_success_that_is_closed_within_its_body: 200 WithinBody Fin,
    hands_on_a_success_that_is_reset_after_its_headers: 200 AfterHeaders Rst,
    hands_on_a_success_that_is_reset_within_its_body: 200 WithinBody Rst,
}

// Time.

async fn assert_times_out_elsewhere(
    harness: &WireHarness,
    client: &ClientWithMiddleware,
    limit: Duration,
) {
    let started = Instant::now();
    let response = harness.post(client).send().await.unwrap();
    let report = assert_failed_over(harness, response).await;
    assert_eq!(report.attempts()[0].reason(), Reason::Timeout);
    assert_eq!(report.attempts()[0].status(), None);
    assert!(report.attempts()[0].maybe_processed());
    assert!(report.attempts()[0].elapsed() >= limit, "{report}");
    assert!(started.elapsed() < limit + ms(2000), "{report}");
}

#[tokio::test]
async fn fails_over_when_the_headers_stall_past_the_chains_attempt_timeout() {
    let harness = WireHarness::two(Answer::stall(), Answer::ok()).await;
    let client = client(harness.chain().attempt_timeout(ms(80)));
    assert_times_out_elsewhere(&harness, &client, ms(80)).await;
}

#[tokio::test]
async fn fails_over_when_the_headers_stall_past_the_providers_attempt_timeout() {
    let harness = WireHarness::two(Answer::stall(), Answer::ok().headers_after(ms(120))).await;
    let [first, second] = [harness.actors[0].provider(), harness.actors[1].provider()];
    let client = client(ProviderChain::builder([first.attempt_timeout(ms(80)), second]));
    assert_times_out_elsewhere(&harness, &client, ms(80)).await;
}

#[tokio::test]
async fn fails_over_when_the_headers_stall_half_way() {
    let stalls = Answer::ok().at(Place::WithinHeaders, Step::Stall);
    let harness = WireHarness::two(stalls, Answer::ok()).await;
    let client = client(harness.chain().attempt_timeout(ms(80)));
    assert_times_out_elsewhere(&harness, &client, ms(80)).await;
}

#[tokio::test]
async fn the_requests_own_timeout_is_shared_out_to_the_attempts() {
    let harness = WireHarness::two(Answer::stall(), Answer::ok().headers_after(ms(100))).await;
    let client = harness.client();
    let response = harness.post(&client).timeout(ms(600)).send().await.unwrap();
    let report = assert_failed_over(&harness, response).await;
    assert_eq!(report.attempts()[0].reason(), Reason::Timeout);
}

#[tokio::test]
async fn the_requests_own_timeout_bounds_all_attempts_together() {
    let harness = WireHarness::two(Answer::stall(), Answer::stall()).await;
    let client = harness.client();
    let started = Instant::now();
    let error = harness.post(&client).timeout(ms(600)).send().await.unwrap_err();
    let took = started.elapsed();
    // 50 ms is what is promised; a busy machine needs more.
    assert!(took >= ms(600) && took < ms(900), "{took:?}");
    let is_timeout = match &error {
        Error::Reqwest(error) => error.is_timeout(),
        error => FailoverError::find(error).is_some_and(FailoverError::is_timeout),
    };
    assert!(is_timeout, "{error:?}");
    harness.assert_asked(&[1, 1]);
}

#[tokio::test]
async fn a_short_timeout_of_the_requests_own_is_no_failure_of_its_provider() {
    let harness = WireHarness::of([("cometapi", Answer::stall().into())]).await;
    let chain = harness.chain().build().unwrap();
    let client = ClientBuilder::new(plain()).with(chain.clone()).build();
    for _ in 0..6 {
        let error = harness.post(&client).timeout(ms(60)).send().await.unwrap_err();
        assert!(matches!(&error, Error::Reqwest(error) if error.is_timeout()), "{error:?}");
    }
    let snapshot = chain.snapshot();
    let provider = &snapshot.providers()[0];
    assert_eq!((provider.attempts(), provider.failures()), (6, 0));
    assert_eq!(provider.state(), State::Closed);
}

#[tokio::test]
async fn the_clients_timeout_ends_an_attempt_and_the_next_has_as_much() {
    let harness = WireHarness::two(Answer::stall(), Answer::ok().headers_after(ms(100))).await;
    let plain = local(reqwest::Client::builder().timeout(ms(150)));
    let client = ClientBuilder::new(plain).with(harness.chain().build().unwrap()).build();
    let response = harness.post(&client).send().await.unwrap();
    let report = assert_failed_over(&harness, response).await;
    assert_eq!(report.attempts()[0].reason(), Reason::Timeout);
}

#[tokio::test]
async fn the_total_timeout_ends_the_request_wherever_it_is() {
    let harness = WireHarness::two(Answer::stall(), Answer::stall()).await;
    let client = client(harness.chain().attempt_timeout(ms(100)).total_timeout(ms(150)));
    let started = Instant::now();
    let (result, extensions) = execute(&harness, &client).await;
    let error = result.unwrap_err();
    assert!((ms(150)..ms(1500)).contains(&started.elapsed()));
    let failed = FailoverError::find(&error).expect("a FailoverError");
    assert!(failed.is_timeout() && !failed.is_connect());
    assert_eq!(failed.last_status(), None);
    assert_eq!(failed.report().attempts().len(), 2);
    assert_eq!(Report::from_extensions(&extensions).unwrap().served_by(), None);
    harness.assert_asked(&[1, 1]);
}

#[tokio::test]
async fn no_timeout_binds_the_body() {
    let slow = Answer::ok().at(Place::WithinBody, Step::Wait(ms(200)));
    let harness = WireHarness::two(slow, Answer::ok()).await;
    let client = client(harness.chain().attempt_timeout(ms(100)).total_timeout(ms(100)));
    let response = harness.post(&client).send().await.unwrap();
    assert_eq!(response.text().await.unwrap(), FINE);
    harness.assert_asked(&[1, 0]);
}

#[tokio::test]
async fn an_answer_is_handed_on_with_its_headers_and_streams_on() {
    let slow = Answer::ok().at(Place::WithinBody, Step::Wait(ms(300)));
    let harness = WireHarness::two(Answer::error(503, "busy"), slow).await;
    let started = Instant::now();
    let mut response = harness.post(&harness.client()).send().await.unwrap();
    let first = response.chunk().await.unwrap().unwrap();
    assert!(started.elapsed() < ms(250), "the first half came after {:?}", started.elapsed());
    let rest = response.chunk().await.unwrap().unwrap();
    assert_eq!([first, rest].concat(), FINE.as_bytes());
    assert_eq!(response.chunk().await.unwrap(), None);
}

#[tokio::test]
async fn a_request_that_is_dropped_asks_nobody_else() {
    let harness = WireHarness::two(Answer::stall(), Answer::ok()).await;
    let client = client(harness.chain().attempt_timeout(ms(200)));
    let request = tokio::spawn(harness.post(&client).send());
    harness.actors[0].server.until(|server| server.requests().len() == 1).await;
    request.abort();
    assert!(request.await.unwrap_err().is_cancelled());
    tokio::time::sleep(ms(250)).await;
    harness.assert_asked(&[1, 0]);
    // The chain is as good as new.
    let response = harness.post(&client).send().await.unwrap();
    assert_eq!(Report::of(&response).unwrap().served_by(), Some("openai"));
}

// Everybody fails.

#[tokio::test]
async fn the_last_response_is_handed_on_untouched() {
    let last =
        Answer::error(503, "closed for today").header("retry-after", "7").header("x-id", "42");
    let harness = WireHarness::two(Answer::error(500, "broken"), last).await;
    let client = harness.client();
    let (result, extensions) = execute(&harness, &client).await;
    let response = result.unwrap();
    assert_eq!(response.status(), 503);
    assert_eq!(response.headers()["retry-after"], "7");
    assert_eq!(response.headers()["x-id"], "42");
    assert_eq!(response.url().as_str(), harness.actors[1].url("/chat/completions"));
    for report in [Report::of(&response), Report::from_extensions(&extensions)] {
        let report = report.expect("a report");
        assert_eq!(report.served_by(), None);
        assert_eq!(line(report), "cometapi 500 in # ms (maybe processed) → openai 503 in # ms");
        // Its body was read for this, and is the caller's all the same.
        assert_eq!(report.attempts()[1].message(), Some("closed for today"));
    }
    let body = response.text().await.unwrap();
    assert_eq!(body, r#"{"error":{"code":503,"message":"closed for today"}}"#);
    harness.assert_asked(&[1, 1]);
}

#[tokio::test]
async fn the_last_transport_error_is_handed_on_as_it_is() {
    let harness = WireHarness::two(Answer::error(500, "broken"), Answer::fin()).await;
    let (result, extensions) = execute(&harness, &harness.client()).await;
    let Error::Reqwest(error) = result.unwrap_err() else { panic!("not a reqwest::Error") };
    assert!(error.is_request() && !error.is_timeout() && !error.is_connect());
    assert_eq!(error.url().unwrap().as_str(), harness.actors[1].url("/chat/completions"));
    let report = Report::from_extensions(&extensions).expect("a report");
    assert_eq!(report.served_by(), None);
    let expected =
        "cometapi 500 in # ms (maybe processed) → openai failed (reset) in # ms (maybe processed)";
    assert_eq!(line(report), expected);
}

#[tokio::test]
async fn a_refused_connection_at_the_end_is_handed_on_as_it_is() {
    let closed = Refusing::start();
    let harness = WireHarness::of([("cometapi", Answer::error(500, "broken").into())]).await;
    let last =
        Provider::new("openai", closed.base_url("/v1")).bearer_auth(harness.secret("openai"));
    let client = client(ProviderChain::builder([harness.actors[0].provider(), last]));
    let (result, _) = execute(&harness, &client).await;
    let Error::Reqwest(error) = result.unwrap_err() else { panic!("not a reqwest::Error") };
    assert!(error.is_connect());
    harness.assert_asked(&[1]);
}

#[tokio::test]
async fn a_timeout_of_this_layer_at_the_end_is_a_failover_error() {
    let harness = WireHarness::two(Answer::error(500, "broken"), Answer::stall()).await;
    let client = client(harness.chain().attempt_timeout(ms(80)));
    let (result, _) = execute(&harness, &client).await;
    let error = result.unwrap_err();
    let failed = FailoverError::find(&error).expect("a FailoverError");
    assert!(failed.is_timeout());
    assert_eq!(failed.last_status(), Some(StatusCode::INTERNAL_SERVER_ERROR));
}

fn exhausted_error(harness: &WireHarness) -> ProviderChainBuilder {
    harness.chain().on_exhausted(Exhausted::Error)
}

#[tokio::test]
async fn the_error_says_what_every_provider_answered() {
    let last =
        Answer::error(503, "closed for today\nall\u{1b}[2Jday \u{202e}").header("retry-after", "7");
    let harness = WireHarness::two(Answer::error(500, "out of order"), last).await;
    let client = client(exhausted_error(&harness));
    let (result, extensions) = execute(&harness, &client).await;
    let error = result.unwrap_err();
    assert!(error.is_middleware());
    let failed = FailoverError::find(&error).expect("a FailoverError");
    let text = failed.to_string();
    assert_eq!(error.to_string(), text);
    for part in ["cometapi", "500", "openai", "503"] {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
    for part in ["out of order", "closed for today"] {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
    assert!(!text.contains(|c: char| c.is_control() || c == '\u{202e}'), "{text:?}");
    assert_eq!(failed.last_status(), Some(StatusCode::SERVICE_UNAVAILABLE));
    assert_eq!(failed.retry_after(), Some(Duration::from_secs(7)));
    assert!(!failed.is_timeout() && !failed.is_connect());
    assert_eq!(
        line(failed.report()),
        "cometapi 500 in # ms (maybe processed) → openai 503 in # ms"
    );
    let report = Report::from_extensions(&extensions).expect("a report");
    assert_eq!(report.to_string(), failed.report().to_string());
    harness.assert_asked(&[1, 1]);
}

#[tokio::test]
async fn the_error_says_so_too_where_the_last_has_not_answered() {
    let harness = WireHarness::two(Answer::error(500, "out of order"), Answer::reset()).await;
    let (result, _) = execute(&harness, &client(exhausted_error(&harness))).await;
    let error = result.unwrap_err();
    let failed = FailoverError::find(&error).expect("a FailoverError");
    assert_eq!(failed.last_status(), Some(StatusCode::INTERNAL_SERVER_ERROR));
    assert_eq!(failed.report().attempts()[1].reason(), Reason::Reset);
    let text = failed.to_string();
    assert!(text.contains("cometapi") && text.contains("500") && text.contains("openai"), "{text}");
}

#[tokio::test]
async fn the_error_knows_that_nobody_could_be_connected_to() {
    let (closed, closed_too) = (Refusing::start(), Refusing::start());
    let harness = WireHarness::of([]).await;
    let provider = |name, refusing: &Refusing| {
        Provider::new(name, refusing.base_url("/v1")).bearer_auth(harness.secret(name))
    };
    let chain =
        ProviderChain::builder([provider("cometapi", &closed), provider("openai", &closed_too)]);
    let client = client(chain.on_exhausted(Exhausted::Error));
    let error = client.get(closed_too.base_url("/v1/models")).send().await.unwrap_err();
    harness.hear(format!("{error} {error:?}"));
    let failed = FailoverError::find(&error).expect("a FailoverError");
    assert!(failed.is_connect() && !failed.is_timeout());
    assert_eq!(failed.last_status(), None);
    assert_eq!(failed.report().attempts().len(), 2);
}

#[tokio::test]
async fn the_error_is_found_behind_another_layers_error() {
    #[derive(Debug, thiserror::Error)]
    #[error("gave up after 3 retries")]
    struct GaveUp(#[source] Error);

    struct Retries;
    #[async_trait::async_trait]
    impl reqwest_middleware::Middleware for Retries {
        async fn handle(
            &self,
            request: reqwest::Request,
            extensions: &mut Extensions,
            next: reqwest_middleware::Next<'_>,
        ) -> reqwest_middleware::Result<Response> {
            next.run(request, extensions).await.map_err(|error| Error::middleware(GaveUp(error)))
        }
    }

    let harness =
        WireHarness::two(Answer::error(500, "broken"), Answer::error(502, "broken")).await;
    let chain = exhausted_error(&harness).build().unwrap();
    let plain = local(harden(reqwest::Client::builder()));
    let client = ClientBuilder::new(plain).with(Retries).with(chain).build();
    let (result, _) = execute(&harness, &client).await;
    let error = result.unwrap_err();
    assert_eq!(error.to_string(), "gave up after 3 retries");
    assert_eq!(FailoverError::find(&error).unwrap().last_status(), Some(StatusCode::BAD_GATEWAY));
    let boxed: Box<dyn StdError + Send + Sync> = Box::new(error);
    assert!(FailoverError::find(&*boxed).is_some());
}

// One provider, three providers.

#[tokio::test]
async fn one_provider_alone_is_readdressed_and_authorized() {
    let harness = WireHarness::of([("openai", Answer::ok().into())]).await;
    let response = harness.post(&harness.client()).send().await.unwrap();
    assert_eq!(line(Report::of(&response).unwrap()), "openai 200 in # ms");
    harness.assert_asked(&[1]);
}

#[tokio::test]
async fn one_provider_alone_that_fails_is_asked_once() {
    let harness = WireHarness::of([("openai", Answer::error(500, "broken").into())]).await;
    let response = harness.post(&harness.client()).send().await.unwrap();
    assert_eq!(response.status(), 500);
    assert_eq!(Report::of(&response).unwrap().served_by(), None);
    assert!(response.text().await.unwrap().contains("broken"));
    harness.assert_asked(&[1]);
}

async fn three(first: Answer, second: Answer, third: Answer) -> WireHarness {
    let scripts = [("cometapi", first.into()), ("openai", second.into()), ("spare", third.into())];
    WireHarness::of(scripts).await
}

#[tokio::test]
async fn of_three_providers_the_second_answers_and_the_third_rests() {
    let harness = three(Answer::fin(), Answer::ok(), Answer::ok()).await;
    let response = harness.post(&harness.client()).send().await.unwrap();
    let expected = "cometapi failed (reset) in # ms (maybe processed) → openai 200 in # ms";
    assert_eq!(line(Report::of(&response).unwrap()), expected);
    harness.assert_asked(&[1, 1, 0]);
}

#[tokio::test]
async fn of_three_providers_the_third_answers() {
    let harness = three(Answer::error(429, "slow down"), Answer::reset(), Answer::ok()).await;
    let response = harness.post(&harness.client()).send().await.unwrap();
    let expected = "cometapi 429 in # ms → openai failed (reset) in # ms (maybe processed) → spare 200 in # ms";
    assert_eq!(line(Report::of(&response).unwrap()), expected);
    harness.assert_asked(&[1, 1, 1]);
    for actor in 0..3 {
        assert_eq!(harness.requests(actor)[0].text(), BODY);
    }
}

#[tokio::test]
async fn of_three_providers_that_fail_the_last_has_the_last_word() {
    let [a, b, c] = [500, 401, 404].map(|status| Answer::error(status, &format!("no {status}")));
    let harness = three(a, b, c).await;
    let response = harness.post(&harness.client()).send().await.unwrap();
    assert_eq!(response.status(), 404);
    let expected =
        "cometapi 500 in # ms (maybe processed) → openai 401 in # ms → spare 404 in # ms";
    assert_eq!(line(Report::of(&response).unwrap()), expected);
    assert!(response.text().await.unwrap().contains("no 404"));
    harness.assert_asked(&[1, 1, 1]);
}

#[tokio::test]
async fn the_order_is_the_lists_order() {
    let harness = WireHarness::two(Answer::ok(), Answer::ok()).await;
    let mut providers = harness.providers();
    providers.reverse();
    let response = harness.post(&client(ProviderChain::builder(providers))).send().await.unwrap();
    assert_eq!(Report::of(&response).unwrap().served_by(), Some("openai"));
    harness.assert_asked(&[0, 1]);
}

// What is said about it.

#[tokio::test]
async fn a_report_tells_each_attempt_its_time_and_its_message() {
    let first = Answer::error(503, "closed\nfor today").headers_after(ms(30));
    let harness = WireHarness::two(first, Answer::ok().headers_after(ms(60))).await;
    let client = harness.client();
    let (result, extensions) = execute(&harness, &client).await;
    let response = result.unwrap();
    let report = Report::of(&response).unwrap();
    let [first, second] = report.attempts() else { panic!("{report}") };
    assert_eq!((first.provider(), second.provider()), ("cometapi", "openai"));
    assert_eq!(first.status(), Some(StatusCode::SERVICE_UNAVAILABLE));
    assert_eq!(second.status(), Some(StatusCode::OK));
    assert!(first.elapsed() >= ms(30) && second.elapsed() >= ms(60), "{report}");
    let sum = first.elapsed() + second.elapsed();
    assert!(report.elapsed() >= sum && report.elapsed() < sum + ms(500), "{report:?}");
    assert_eq!(first.message(), Some("closed\\nfor today"));
    assert_eq!(second.message(), None);
    let shown = format!(
        "cometapi 503 in {} ms → openai 200 in {} ms",
        first.elapsed().as_millis(),
        second.elapsed().as_millis()
    );
    assert_eq!(report.to_string(), shown);
    assert_eq!(Report::from_extensions(&extensions).unwrap().to_string(), shown);
}

#[cfg(feature = "tracing")]
mod log_lines {
    use super::support::canary::logs;
    use super::*;

    /// Sends one request through the harness's chain.
    struct Heard {
        harness: WireHarness,
        /// How much was logged before the request was sent.
        before: usize,
    }

    impl Heard {
        async fn of(first: (&'static str, Answer), second: (&'static str, Answer)) -> Self {
            let scripts = [(first.0, first.1.into()), (second.0, second.1.into())];
            let harness = WireHarness::of(scripts).await;
            let client = harness.client();
            let before = logs().len();
            harness.post(&client).send().await.unwrap();
            Self { harness, before }
        }

        /// The lines of this level that speak of the harness's providers, whose names no other test
        /// uses.
        fn lines(&self, level: &str) -> Vec<String> {
            let level = format!(" {level} ");
            let names = self.harness.actors.iter().map(|actor| actor.name).collect::<Vec<_>>();
            let speaks =
                |line: &&str| line.contains(&level) && names.iter().any(|name| line.contains(name));
            logs()[self.before..].lines().filter(speaks).map(str::to_owned).collect()
        }
    }

    #[tokio::test]
    async fn a_failover_is_a_warning() {
        let first = ("warned-a", Answer::error(503, "closed for today"));
        let heard = Heard::of(first, ("warned-b", Answer::ok())).await;
        let warnings = heard.lines("WARN");
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        for part in ["warned-a", "503", "server_error", "warned-b"] {
            assert!(warnings[0].contains(part), "{part} is missing in {}", warnings[0]);
        }
        assert_eq!(heard.lines("ERROR"), [""; 0]);
    }

    #[tokio::test]
    async fn a_success_warns_of_nothing() {
        let heard = Heard::of(("calm-a", Answer::ok()), ("calm-b", Answer::ok())).await;
        assert_eq!(heard.lines("WARN"), [""; 0]);
        assert_eq!(heard.lines("ERROR"), [""; 0]);
    }

    #[tokio::test]
    async fn exhaustion_is_an_error() {
        let [first, second] = [500, 502].map(|status| Answer::error(status, "broken"));
        let heard = Heard::of(("spent-a", first), ("spent-b", second)).await;
        let errors = heard.lines("ERROR");
        assert_eq!(errors.len(), 1, "{errors:?}");
        for part in ["spent-a", "500", "spent-b", "502"] {
            assert!(errors[0].contains(part), "{part} is missing in {}", errors[0]);
        }
    }

    #[tokio::test]
    async fn a_request_that_every_provider_refused_is_a_warning() {
        let [first, second] = [400, 404].map(|status| Answer::error(status, "yours"));
        let heard = Heard::of(("refuses-a", first), ("refuses-b", second)).await;
        assert_eq!(heard.lines("ERROR"), [""; 0]);
        let warnings = heard.lines("WARN");
        assert_eq!(warnings.len(), 2, "the failover, and the end: {warnings:?}");
        for part in ["refuses-a", "400", "refuses-b", "404", "refused the request"] {
            assert!(warnings[1].contains(part), "{part} is missing in {}", warnings[1]);
        }
    }

    #[tokio::test]
    async fn a_dead_key_is_an_error_although_somebody_else_answers() {
        for (status, name) in [(401, "dead-401"), (402, "dead-402"), (403, "dead-403")] {
            let alive = ("alive", Answer::ok());
            let heard = Heard::of((name, Answer::error(status, "no")), alive).await;
            let errors = heard.lines("ERROR");
            let of_it: Vec<_> = errors.iter().filter(|line| line.contains(name)).collect();
            assert_eq!(of_it.len(), 1, "{errors:?}");
            assert!(of_it[0].contains(&status.to_string()), "{errors:?}");
        }
    }

    #[tokio::test]
    async fn messages_are_logged_only_where_that_is_wanted() {
        for (wanted, name) in [(true, "chatty"), (false, "discreet")] {
            let message = format!("{name} patient data");
            let scripts = [
                (name, Answer::error(500, &message).into()),
                ("b", Answer::error(500, &message).into()),
            ];
            let harness = WireHarness::of(scripts).await;
            let chain = exhausted_error(&harness).log_messages(wanted);
            let (result, _) = execute(&harness, &client(chain)).await;
            assert!(FailoverError::find(&result.unwrap_err()).is_some());
            assert_eq!(logs().contains(&message), wanted, "{name}");
        }
    }
}
