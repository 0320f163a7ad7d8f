//! A request with limits of its own, in virtual time.

use reqwest_failover_testing::terminal;

use std::time::Duration;

use http::Extensions;
use proptest::prelude::*;
use reqwest::{Body, Request, Response};
use reqwest_failover::{
    FailoverError, Hedge, Inspect, Limits, Provider, ProviderChain, Reason, Report, Route, State,
};
use reqwest_middleware::{ClientBuilder, Middleware, Next, Result};
use terminal::{Harness, Script, Told, dribble, ms, provider, secs, silence};
use tokio::time::Instant;

/// Sends one request with these limits: its outcome, and how long it took.
async fn ask(harness: &Harness, limits: Limits) -> (Result<Response>, Duration) {
    let began = Instant::now();
    let result = harness.post().with_extension(limits).send().await;
    (result, began.elapsed())
}

fn hanging() -> [(&'static str, Script); 3] {
    ["a", "b", "c"].map(|name| (name, Script::hang()))
}

#[tokio::test(start_paused = true)]
async fn the_caller_has_an_error_exactly_when_the_total_is_over() {
    for total in [ms(1), ms(7), secs(5), secs(900)] {
        let harness = Harness::of(hanging());
        let (result, took) = ask(&harness, Limits::new().total(total)).await;
        let error = result.unwrap_err();
        assert!(FailoverError::find(&error).unwrap().is_timeout(), "{error}");
        assert_eq!(took, total);
    }
}

#[tokio::test(start_paused = true)]
async fn the_error_says_that_the_requests_own_limit_was_over() {
    let harness = Harness::of([("a", Script::hang()), ("b", Script::status(200))]);
    let limits = Limits::new().total(secs(5)).attempt(secs(9));
    let error = harness.post().with_extension(limits).send().await.unwrap_err().to_string();
    assert!(error.contains("b") && error.contains("the request's limit of 5s was over"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_shorter_total_leaves_time_for_the_second_provider() {
    let harness = Harness::of([("a", Script::hang()), ("b", Script::status(200).after(ms(100)))]);
    let (result, took) = ask(&harness, Limits::new().total(secs(2))).await;
    assert_eq!(terminal::served_by(result), "b");
    assert_eq!(took, secs(1) + ms(100));
}

#[tokio::test(start_paused = true)]
async fn a_longer_total_outlasts_the_chains() {
    let slow = || Script::status(200).after(secs(30));
    let harness = Harness::with([("a", slow())], |chain| chain.total_timeout(secs(10)));
    let (result, took) = ask(&harness, Limits::new()).await;
    assert!(result.is_err() && took == secs(10), "{took:?}");
    let (result, took) = ask(&harness, Limits::new().total(secs(60))).await;
    assert!(result.is_ok() && took == secs(30), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn the_requests_timeout_bounds_its_limits() {
    let harness = Harness::of(hanging());
    let began = Instant::now();
    let limits = Limits::new().total(secs(60)).attempt(secs(50));
    let result = harness.post().timeout(secs(3)).with_extension(limits).send().await;
    assert!(result.is_err());
    // The client below has the same timeout, and is waited for.
    assert_eq!(began.elapsed(), secs(3) + ms(5));
}

#[tokio::test(start_paused = true)]
async fn an_attempt_limit_holds_for_every_provider_in_place_of_its_own() {
    let providers = vec![
        provider("a").attempt_timeout(secs(1)),
        provider("b").attempt_timeout(secs(60)),
        provider("c"),
    ];
    let harness = Harness::of_providers(providers, hanging(), |chain| chain);
    let (result, took) = ask(&harness, Limits::new().attempt(secs(2))).await;
    let error = result.unwrap_err();
    assert_eq!(took, secs(6));
    let report = FailoverError::find(&error).unwrap().report();
    for attempt in report.attempts() {
        assert_eq!((attempt.reason(), attempt.elapsed()), (Reason::Timeout, secs(2)), "{report}");
    }
}

#[tokio::test(start_paused = true)]
async fn as_many_providers_are_asked_as_the_request_says() {
    for (attempts, asked) in [(0, 1), (1, 1), (2, 2), (3, 3), (usize::MAX, 3)] {
        let failing = ["a", "b", "c"].map(|name| (name, Script::status(503)));
        let harness = Harness::with(failing, |chain| chain.max_attempts(2));
        let (result, _) = ask(&harness, Limits::new().attempts(attempts)).await;
        assert_eq!(result.unwrap().status(), 503);
        assert_eq!(harness.all_asked().len(), asked, "{attempts}");
    }
    let harness = Harness::of(["a", "b", "c"].map(|name| (name, Script::status(503))));
    let request = harness.post().with_extension(Limits::new().attempts(3));
    assert!(request.with_extension(Route::no_failover()).send().await.is_ok());
    assert_eq!(harness.all_asked(), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn limits_of_zero_are_over_at_once_and_the_longest_never() {
    let harness = Harness::of([("a", Script::status(200)), ("b", Script::hang())]);
    let (result, took) = ask(&harness, Limits::new().total(Duration::ZERO)).await;
    assert!(result.is_err() && took.is_zero());
    assert_eq!(harness.all_asked(), [""; 0]);

    let harness = Harness::of(hanging());
    let (result, took) = ask(&harness, Limits::new().attempt(Duration::ZERO)).await;
    assert!(result.is_err() && took < ms(5), "{took:?}");
    assert_eq!(harness.all_asked().len(), 3);

    let slow = Script::status(200).after(secs(100_000));
    let harness = Harness::of([("a", slow)]);
    let endless = Limits::new().total(Duration::MAX).attempt(Duration::MAX).attempts(usize::MAX);
    let (result, took) = ask(&harness, endless).await;
    assert!(result.is_ok() && took == secs(100_000), "{took:?}");
    let (result, _) = ask(&harness, endless.total(secs(1))).await;
    assert!(result.is_err());
}

#[tokio::test(start_paused = true)]
async fn impatient_requests_open_no_breaker() {
    for limits in [Limits::new().total(ms(300)), Limits::new().attempt(ms(200))] {
        let slow = ["a", "b", "c"].map(|name| (name, Script::status(200).after(ms(900))));
        let harness = Harness::of(slow);
        for _ in 0..50 {
            assert!(ask(&harness, limits).await.0.is_err());
        }
        for name in ["a", "b", "c"] {
            assert_eq!(
                (harness.state(name), harness.of_provider(name).failures()),
                (State::Closed, 0)
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_is_silent_beyond_the_requests_limits_is_still_found_out() {
    let harness = Harness::of([("a", Script::hang()), ("b", Script::status(200))]);
    for _ in 0..5 {
        let (result, took) = ask(&harness, Limits::new().attempt(secs(3))).await;
        assert!(result.is_ok() && took == secs(3));
    }
    assert!(matches!(harness.state("a"), State::Open { .. }));
}

#[tokio::test(start_paused = true)]
async fn a_body_may_stream_beyond_the_total() {
    const CHUNKS: &[&str] = &["a", "b", "c"];
    let slow = || {
        let chunks = futures_util::stream::unfold(CHUNKS.iter(), |mut chunks| async move {
            tokio::time::sleep(secs(10)).await;
            Some((Ok::<_, std::io::Error>(*chunks.next()?), chunks))
        });
        Body::wrap_stream(chunks)
    };
    let harness = Harness::of([("a", Script::status(500)), ("b", Script::answer(200, &[], slow))]);
    let (result, took) = ask(&harness, Limits::new().total(secs(1))).await;
    assert!(took.is_zero());
    assert_eq!(result.unwrap().text().await.unwrap(), "abc");
}

/// Records the timeout that each attempt's client is given.
struct Timeouts(std::sync::Mutex<Vec<Option<Duration>>>);

#[async_trait::async_trait]
impl Middleware for Timeouts {
    async fn handle(
        &self,
        request: Request,
        extensions: &mut Extensions,
        next: Next<'_>,
    ) -> Result<Response> {
        assert!(extensions.get::<Limits>().is_none(), "they are not for an inner chain");
        terminal::lock(&self.0).push(request.timeout().copied());
        next.run(request, extensions).await
    }
}

/// The total bounds what comes before the headers, the request's timeout the body, too.
#[tokio::test(start_paused = true)]
async fn a_later_attempt_has_what_is_left_of_the_requests_timeout_and_not_of_the_total() {
    let harness =
        Harness::of([("a", Script::status(500).after(secs(2))), ("b", Script::status(200))]);
    let timeouts = std::sync::Arc::new(Timeouts(Default::default()));
    let client = ClientBuilder::new(reqwest::Client::builder().no_proxy().build().unwrap())
        .with(harness.chain.clone())
        .with_arc(timeouts.clone())
        .with(harness.terminal())
        .build();
    let mut extensions = Extensions::new();
    let limits = Limits::new().total(secs(10));
    extensions.insert(limits);
    let mut request = client.post(terminal::URL).body("{}").build().unwrap();
    *request.timeout_mut() = Some(secs(100));
    client.execute_with_extensions(request, &mut extensions).await.unwrap();
    assert_eq!(*terminal::lock(&timeouts.0), [Some(secs(100)), Some(secs(98))]);
    assert_eq!(extensions.get(), Some(&limits), "the caller has its own back");
}

#[test]
fn limits_can_be_printed_and_compared() {
    let limits = Limits::new().attempts(2);
    assert_eq!(limits, Limits::default().attempts(2));
    assert_ne!(limits, Limits::new());
    assert!(format!("{limits:?}").contains('2'));
}

// However the providers answer, the caller is not kept waiting.

#[derive(Clone, Debug)]
enum Does {
    Status(u16, u64),
    SlowBody(u16, u64),
    Stream(u64),
    Hang,
    Fail(u64),
}

impl Does {
    fn script(&self) -> Script {
        let events = |header: &str| vec![("content-type", header.to_owned())];
        match self {
            Self::Status(status, after) => Script::status(*status).after(ms(*after)),
            Self::SlowBody(status, after) => {
                let json = events("application/json");
                Script::answer(*status, &json, silence).after(ms(*after))
            }
            Self::Stream(after) => {
                let sse = events("text/event-stream");
                let body =
                    || dribble(&["data: {}\n\n", ": wait\n\n", "data: {\"choices\":[]}\n\n"], 3);
                Script::answer(200, &sse, body).after(ms(*after))
            }
            Self::Hang => Script::hang(),
            Self::Fail(after) => Script::fail().after(ms(*after)),
        }
    }
}

fn does() -> impl Strategy<Value = Does> {
    let status = || prop::sample::select(vec![200, 201, 304, 400, 404, 429, 500, 503]);
    prop_oneof![
        (status(), 0..4000u64).prop_map(|(status, after)| Does::Status(status, after)),
        (status(), 0..4000u64).prop_map(|(status, after)| Does::SlowBody(status, after)),
        (0..4000u64).prop_map(Does::Stream),
        Just(Does::Hang),
        (0..4000u64).prop_map(Does::Fail),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn however_the_providers_answer_the_caller_waits_no_longer_than_the_total(
        scripts in (does(), does(), does()),
        total in 0..5000u64,
        attempt in prop::option::of(0..5000u64),
        attempts in prop::option::of(0..5usize),
        hedged in any::<bool>(),
        inspects in any::<bool>(),
        requests in 1..8usize,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        let scripts = [("a", &scripts.0), ("b", &scripts.1), ("c", &scripts.2)];
        runtime.block_on(async {
            let scripts = scripts.map(|(name, does)| (name, does.script()));
            let harness = Harness::with(scripts, |chain| {
                let chain = match hedged {
                    true => chain.hedge(Hedge::after(ms(300)).max_extra(1.0)),
                    false => chain,
                };
                match inspects {
                    true => chain.inspect(Inspect::errors_in_success()),
                    false => chain,
                }
            });
            let mut limits = Limits::new().total(ms(total));
            if let Some(attempt) = attempt {
                limits = limits.attempt(ms(attempt));
            }
            if let Some(attempts) = attempts {
                limits = limits.attempts(attempts);
            }
            for _ in 0..requests {
                let (result, took) = ask(&harness, limits).await;
                prop_assert!(took <= ms(total), "{took:?} of {total} ms: {result:?}");
                let report = match &result {
                    Ok(response) => Report::of(response).cloned(),
                    Err(error) => FailoverError::find(error).map(|error| error.report().clone()),
                };
                if let (Some(report), Some(attempts)) = (report, attempts) {
                    prop_assert!(report.attempts().len() <= attempts.max(1), "{report}");
                }
            }
            let ended = harness.told().iter().filter(|told| matches!(told, Told::Finished(_))).count();
            prop_assert_eq!(ended, requests);
            Ok(())
        })?;
    }
}

/// A chain that is stacked inside takes its own limits.
#[tokio::test(start_paused = true)]
async fn an_inner_chain_has_its_own_limits() {
    let harness = Harness::of([("a", Script::status(503)), ("b", Script::status(503))]);
    let inner = ProviderChain::builder([
        provider("a"),
        Provider::new("a2", "https://a2.test/v1").bearer_auth("key-of-a2"),
    ])
    .nested()
    .build()
    .unwrap();
    let client = ClientBuilder::new(reqwest::Client::builder().no_proxy().build().unwrap())
        .with(harness.chain.clone())
        .with(inner)
        .with(harness.terminal())
        .build();
    let request = client.post(terminal::URL).body("{}").with_extension(Limits::new().attempts(1));
    assert_eq!(request.send().await.unwrap().status(), 200);
    assert_eq!(harness.all_asked(), ["a", "a2"]);
}
