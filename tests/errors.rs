//! What a request that no provider served says of the providers that were not asked.

use reqwest_failover_testing::terminal;

use std::net::TcpListener;

use reqwest_failover::{
    Ambiguous, Breaker, Exhausted, FailoverError, Provider, ProviderChain, ProviderChainBuilder,
    Report, Route,
};
use reqwest_middleware::{ClientBuilder, RequestBuilder};
use terminal::{Harness, Script, ms, secs};

/// What the error says, and the log, after the first attempt.
async fn unasked(mut request: RequestBuilder) -> String {
    let mut extensions = std::mem::take(request.extensions());
    let (client, request) = request.build_split();
    let error =
        client.execute_with_extensions(request.unwrap(), &mut extensions).await.unwrap_err();
    let failed = FailoverError::find(&error).unwrap().to_string();
    let report = Report::from_extensions(&extensions).unwrap().to_string();
    let after = |text: &str| text.split_once("; ").map_or("", |(_, after)| after).to_owned();
    assert!(failed.ends_with(&after(&report)), "{failed}\n{report}");
    after(&report)
}

fn three(
    first: Script,
    change: impl FnOnce(ProviderChainBuilder) -> ProviderChainBuilder,
) -> Harness {
    let says = || Script::answer(200, &[], || "well".into());
    Harness::with([("a", first), ("b", says()), ("c", says())], |chain| {
        change(chain).on_exhausted(Exhausted::Error)
    })
}

#[tokio::test(start_paused = true)]
async fn says_why_the_others_were_not_asked() {
    let harness = three(Script::fail(), |chain| chain);
    let alone = harness.post().with_extension(Route::no_failover());
    assert_eq!(unasked(alone).await, "b, c not asked: the request may be sent only once");

    let harness = three(Script::fail(), |chain| chain);
    harness.chain.isolate("b").unwrap();
    let routed = harness.post().with_extension(Route::only(["a", "b"]));
    let said = unasked(routed).await;
    assert_eq!(said, "b not asked: isolated; c not asked: left out by the route");

    let harness = three(Script::fail(), |chain| chain.on_ambiguous(Ambiguous::IdempotentOnly));
    let said = unasked(harness.post()).await;
    assert_eq!(said, "b, c not asked: the request may have been processed");

    let stream = futures_util::stream::iter([Ok::<_, std::io::Error>("{}")]);
    let harness = three(Script::fail(), |chain| chain);
    let upload = harness.post().body(reqwest::Body::wrap_stream(stream));
    assert_eq!(unasked(upload).await, "b, c not asked: the body could be sent only once");

    let harness = three(Script::fail(), |chain| chain.max_attempts(2));
    harness.tell("b", Script::fail());
    let said = unasked(harness.post()).await;
    assert_eq!(
        said.rsplit_once("; ").map_or(&*said, |(_, last)| last),
        "c not asked: the limit is 2 attempts"
    );
}

#[tokio::test(start_paused = true)]
async fn says_which_limit_left_no_time_for_the_others() {
    let limits =
        |chain: ProviderChainBuilder| chain.attempt_timeout(secs(4)).total_timeout(secs(4));
    let harness = three(Script::hang(), limits);
    let said = unasked(harness.post()).await;
    assert_eq!(said, "b, c not asked: the total timeout of 4s was over");

    let harness = three(Script::hang(), |chain| chain.attempt_timeout(secs(9)));
    let said = unasked(harness.post().timeout(ms(1_500))).await;
    assert_eq!(said, "b, c not asked: the request's timeout of 1.5s was over");
}

#[tokio::test(start_paused = true)]
async fn says_that_a_refused_request_was_not_sent_to_unhealthy_providers() {
    let harness =
        three(Script::status(500), |chain| chain.breaker(Breaker::default().consecutive(1)));
    harness.post().send().await.unwrap();
    harness.tell("b", Script::status(404));
    harness.tell("c", Script::status(404));
    let said = unasked(harness.post()).await;
    assert!(said.ends_with("a not asked: not healthy, and the request was refused"), "{said}");
}

#[tokio::test]
async fn says_that_a_host_could_not_be_reached() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let provider = |name| Provider::new(name, format!("http://127.0.0.1:{port}/{name}"));
    let chain = ProviderChain::builder([provider("a"), provider("b")])
        .on_exhausted(Exhausted::Error)
        .build()
        .unwrap();
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let client = ClientBuilder::new(http).with(chain).build();
    let error = client.get(format!("http://127.0.0.1:{port}/a")).send().await.unwrap_err();
    let said = FailoverError::find(&error).unwrap().to_string();
    assert!(said.ends_with("; b not asked: at a host that could not be reached"), "{said}");
}

#[tokio::test(start_paused = true)]
async fn a_served_request_explains_nothing() {
    let harness = three(Script::fail(), |chain| chain);
    let response = harness.post().send().await.unwrap();
    let report = Report::of(&response).unwrap();
    assert!(report.failed_over());
    assert_eq!(report.to_string(), "a failed (other) in 0 ms (maybe processed) → b 200 in 0 ms");
}
