//! The chain among other layers, and what a user can tell it: routes, verdicts, limits.

use reqwest_failover_testing::support;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use http::Extensions;
use reqwest::{Method, Request, Response};
use reqwest_failover::{
    Ambiguous, Exhausted, FailoverError, Fault, Provider, ProviderChain, ProviderChainBuilder,
    Reason, Replay, Report, Route, Verdict,
};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware, Error, Middleware, Next, Result};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use support::canary::canary;
use support::harness::{BODY, WireHarness, client, line, plain};
use support::{Answer, Refusing};

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn failing() -> Answer {
    Answer::error(500, "broken")
}

async fn three(first: Answer, second: Answer, third: Answer) -> WireHarness {
    let scripts = [("cometapi", first.into()), ("openai", second.into()), ("spare", third.into())];
    WireHarness::of(scripts).await
}

fn served_by(response: &Response) -> Option<&str> {
    Report::of(response).expect("a report").served_by()
}

/// The middleware that a closure is, which may look at the request and the result.
struct Layer<B, A>(B, A);

#[async_trait]
impl<B, A> Middleware for Layer<B, A>
where
    B: Fn(&Request, &mut Extensions) + Send + Sync + 'static,
    A: Fn(Result<Response>, &mut Extensions) -> Result<Response> + Send + Sync + 'static,
{
    async fn handle(
        &self,
        request: Request,
        extensions: &mut Extensions,
        next: Next<'_>,
    ) -> Result<Response> {
        (self.0)(&request, extensions);
        let result = next.run(request, extensions).await;
        (self.1)(result, extensions)
    }
}

fn unseen(_: &Request, _: &mut Extensions) {}

// Layers around it.

#[derive(Clone, Debug, PartialEq)]
struct FromCaller(&'static str);
#[derive(Clone, Debug, PartialEq)]
struct FromOuter(u8);
#[derive(Clone, Debug, PartialEq)]
struct FromInner(String);

#[tokio::test]
async fn each_attempt_has_its_own_extensions_and_only_the_winners_come_back() {
    let harness = three(failing(), Answer::reset(), Answer::ok()).await;
    let chain = harness.chain().build().unwrap();
    let before = |_: &Request, extensions: &mut Extensions| {
        extensions.insert(FromOuter(7));
    };
    let outer = Layer(before, |result: Result<Response>, extensions: &mut Extensions| {
        let winner = format!(":{}", result.as_ref().unwrap().url().port().unwrap());
        assert!(extensions.get::<FromInner>().unwrap().0.ends_with(&winner));
        assert_eq!(extensions.get(), Some(&FromOuter(7)));
        result
    });
    let seen = Arc::new(Mutex::new(Vec::new()));
    let inner = {
        let seen = seen.clone();
        move |request: &Request, extensions: &mut Extensions| {
            assert_eq!(extensions.get(), Some(&FromCaller("mine")));
            assert_eq!(extensions.get(), Some(&FromOuter(7)));
            assert_eq!(extensions.get::<FromInner>(), None, "an earlier attempt's");
            let port = request.url().port().unwrap();
            extensions.insert(FromInner(format!("attempt:{port}")));
            seen.lock().unwrap().push(port);
        }
    };
    let client = ClientBuilder::new(plain())
        .with(outer)
        .with(chain)
        .with(Layer(inner, |result, _: &mut Extensions| result))
        .build();
    let mut extensions = Extensions::new();
    extensions.insert(FromCaller("mine"));
    let request = harness.post(&client).build().unwrap();
    let response = client.execute_with_extensions(request, &mut extensions).await.unwrap();
    assert_eq!(served_by(&response), Some("spare"));
    let ports: Vec<_> = harness.actors.iter().map(|actor| actor.server.port()).collect();
    assert_eq!(*seen.lock().unwrap(), ports);
    let winner = format!("attempt:{}", ports[2]);
    assert_eq!(extensions.get(), Some(&FromInner(winner)));
    assert_eq!(extensions.get(), Some(&FromCaller("mine")));
    assert_eq!(Report::from_extensions(&extensions).unwrap().served_by(), Some("spare"));
}

/// Held by an attempt's extensions, such as a place in a queue.
#[derive(Clone)]
struct Held(#[expect(dead_code, reason = "it is held")] Arc<OwnedSemaphorePermit>);

#[tokio::test]
async fn what_a_layer_has_put_into_a_failed_attempts_extensions_is_free_before_the_next_is_sent() {
    for first in [Answer::stall(), failing(), Answer::reset()] {
        let harness = WireHarness::two(first, Answer::ok()).await;
        let chain = harness.chain().attempt_timeout(ms(400)).build().unwrap();
        let place = Arc::new(Semaphore::new(1));
        let take = {
            let place = place.clone();
            move |_: &Request, extensions: &mut Extensions| {
                let permit = place.clone().try_acquire_owned().expect("the place is free");
                extensions.insert(Held(Arc::new(permit)));
            }
        };
        let layer = Layer(take, |result, _: &mut Extensions| result);
        let client = ClientBuilder::new(plain()).with(chain).with(layer).build();
        let response = harness.post(&client).send().await.unwrap();
        assert_eq!(served_by(&response), Some("openai"));
    }
}

/// Keeps every attempt as it arrives. The first one fails.
#[derive(Clone, Default)]
struct Keeps(Arc<Mutex<Vec<http::Request<reqwest::Body>>>>, Arc<Mutex<Vec<Option<Duration>>>>);

#[async_trait]
impl Middleware for Keeps {
    async fn handle(
        &self,
        request: Request,
        extensions: &mut Extensions,
        _: Next<'_>,
    ) -> Result<Response> {
        assert_eq!(extensions.get(), Some(&FromCaller("mine")));
        self.1.lock().unwrap().push(request.timeout().copied());
        let mut kept = self.0.lock().unwrap();
        kept.push(http::Request::try_from(request)?);
        let status = if kept.len() == 1 { 503 } else { 200 };
        let response = http::Response::builder().status(status).body("").unwrap();
        Ok(response.into())
    }
}

#[tokio::test]
async fn a_second_attempt_keeps_all_of_a_request_but_its_private_extensions() {
    #[derive(Clone)]
    struct Private;
    let kept = Keeps::default();
    let chain = ProviderChain::builder([
        Provider::new("a", "https://a.test/v1").bearer_auth("key-of-a"),
        Provider::new("b", "https://b.test/api").bearer_auth("key-of-b"),
    ]);
    let client = ClientBuilder::new(plain()).with(chain.build().unwrap()).with(kept.clone());
    let request = http::Request::put("https://a.test/v1/files/org%2Fname?b=1&a=%2F2")
        .header("x-twice", "1")
        .header("content-type", "text/plain")
        .header("x-twice", "2")
        .version(http::Version::HTTP_2)
        .extension(Private)
        .body("the body")
        .unwrap();
    let mut request = Request::try_from(request).unwrap();
    *request.timeout_mut() = Some(secs(30));
    let mut extensions = Extensions::new();
    extensions.insert(FromCaller("mine"));
    let response = client.build().execute_with_extensions(request, &mut extensions).await.unwrap();
    assert_eq!(served_by(&response), Some("b"));

    let attempts = std::mem::take(&mut *kept.0.lock().unwrap());
    let expected =
        [("https://a.test/v1", "Bearer key-of-a"), ("https://b.test/api", "Bearer key-of-b")];
    for (attempt, (base, key)) in attempts.iter().zip(expected) {
        assert_eq!(attempt.method(), Method::PUT);
        assert_eq!(attempt.uri().to_string(), format!("{base}/files/org%2Fname?b=1&a=%2F2"));
        assert_eq!(attempt.version(), http::Version::HTTP_2);
        assert_eq!(attempt.body().as_bytes(), Some(&b"the body"[..]));
        let values = |name| attempt.headers().get_all(name).iter().collect::<Vec<_>>();
        assert_eq!(values("x-twice"), ["1", "2"]);
        assert_eq!(values("content-type"), ["text/plain"]);
        assert_eq!(values("authorization"), [key]);
        assert_eq!(attempt.headers().len(), 4);
    }
    let has_private: Vec<_> =
        attempts.iter().map(|attempt| attempt.extensions().get::<Private>().is_some()).collect();
    assert_eq!(has_private, [true, false]);
    // What is left of it.
    let timeouts = kept.1.lock().unwrap().clone();
    assert_eq!(timeouts[0], Some(secs(30)));
    assert!(timeouts[1].is_some_and(|left| (secs(20)..=secs(30)).contains(&left)), "{timeouts:?}");
}

#[tokio::test]
async fn an_outer_layer_sees_one_request_and_an_inner_one_each_attempt() {
    let harness = WireHarness::two(failing(), Answer::ok()).await;
    let count = |counter: &Arc<Mutex<Vec<String>>>| {
        let counter = counter.clone();
        let note = move |request: &Request, _: &mut Extensions| {
            counter.lock().unwrap().push(request.url().to_string());
        };
        Layer(note, |result, _: &mut Extensions| result)
    };
    let (outer, inner) = (Arc::default(), Arc::default());
    let client = ClientBuilder::new(plain())
        .with(count(&outer))
        .with(harness.chain().build().unwrap())
        .with(count(&inner))
        .build();
    harness.post(&client).send().await.unwrap();
    let [first, second] = [0, 1].map(|actor| harness.actors[actor].url("/chat/completions"));
    assert_eq!(*outer.lock().unwrap(), std::slice::from_ref(&second));
    assert_eq!(*inner.lock().unwrap(), [first, second]);
}

#[tokio::test]
async fn the_report_is_in_the_callers_extensions_whatever_the_end() {
    for (second, exhausted, ends_well) in [
        (Answer::ok(), Exhausted::LastOutcome, true),
        (failing(), Exhausted::LastOutcome, true),
        (Answer::fin(), Exhausted::LastOutcome, false),
        (failing(), Exhausted::Error, false),
    ] {
        let harness = WireHarness::two(failing(), second).await;
        let client = client(harness.chain().on_exhausted(exhausted));
        let mut extensions = Extensions::new();
        let request = harness.post(&client).build().unwrap();
        let result = client.execute_with_extensions(request, &mut extensions).await;
        assert_eq!(result.is_ok(), ends_well);
        let report = Report::from_extensions(&extensions).expect("a report");
        assert_eq!(report.attempts().len(), 2);
        if let Ok(response) = result {
            assert_eq!(Report::of(&response).unwrap().to_string(), report.to_string());
        }
    }
}

#[tokio::test]
async fn an_error_of_unknown_kind_fails_over_like_any_other() {
    let harness = WireHarness::two(Answer::fin(), Answer::ok()).await;
    let hides = |result: Result<Response>, _: &mut Extensions| {
        result.map_err(|_| Error::middleware(std::io::Error::other("something broke")))
    };
    let chain = harness.chain().build().unwrap();
    let client = ClientBuilder::new(plain()).with(chain).with(Layer(unseen, hides)).build();
    let response = harness.post(&client).send().await.unwrap();
    let report = Report::of(&response).unwrap();
    assert_eq!(report.served_by(), Some("openai"));
    assert_eq!(report.attempts()[0].reason(), Reason::Other);
    assert_eq!(report.attempts()[0].message(), Some("something broke"));
    assert!(report.attempts()[0].maybe_processed());
    harness.assert_asked(&[1, 1]);
}

#[tokio::test]
async fn a_request_that_a_layer_below_cannot_build_was_not_sent() {
    let harness = WireHarness::two(Answer::ok(), Answer::ok()).await;
    let fails = |_: Result<Response>, _: &mut Extensions| {
        Err(Error::Reqwest(plain().get("no url").build().unwrap_err()))
    };
    let chain = harness.chain().on_exhausted(Exhausted::Error).build().unwrap();
    let client = ClientBuilder::new(plain()).with(chain).with(Layer(unseen, fails)).build();
    let error = harness.post(&client).send().await.unwrap_err();
    let report = FailoverError::find(&error).unwrap().report();
    for attempt in report.attempts() {
        assert_eq!(
            (attempt.reason(), attempt.maybe_processed()),
            (Reason::Other, false),
            "{report}"
        );
    }
    assert_eq!(report.attempts().len(), 2);
}

#[tokio::test]
async fn a_wrapped_transport_error_is_known_for_what_it_is() {
    let closed = Refusing::start();
    let harness = WireHarness::of([("openai", Answer::ok().into())]).await;
    let wraps = |result: Result<Response>, _: &mut Extensions| {
        result.map_err(|error| match error {
            Error::Reqwest(error) => Error::middleware(error),
            other => other,
        })
    };
    let first =
        Provider::new("cometapi", closed.base_url("/v1")).bearer_auth(harness.secret("cometapi"));
    let chain = ProviderChain::builder([first, harness.actors[0].provider()]).build().unwrap();
    let client = ClientBuilder::new(plain()).with(chain).with(Layer(unseen, wraps)).build();
    let response = harness.post(&client).send().await.unwrap();
    let report = Report::of(&response).unwrap();
    assert_eq!(report.served_by(), Some("openai"));
    assert!(matches!(report.attempts()[0].reason(), Reason::Connect | Reason::Other), "{report}");
}

#[tokio::test]
async fn a_hidden_error_at_the_end_is_handed_on_as_it_is() {
    let harness = WireHarness::two(failing(), Answer::fin()).await;
    let hides = |result: Result<Response>, _: &mut Extensions| {
        result.map_err(|_| Error::middleware(std::io::Error::other("something broke")))
    };
    let chain = harness.chain().build().unwrap();
    let client = ClientBuilder::new(plain()).with(chain).with(Layer(unseen, hides)).build();
    let error = harness.post(&client).send().await.unwrap_err();
    assert_eq!(error.to_string(), "something broke");
    let Error::Middleware(error) = error else { panic!("not a middleware's error") };
    assert!(error.downcast_ref::<std::io::Error>().is_some());
}

#[tokio::test]
async fn an_inner_layer_that_answers_itself_is_believed() {
    let harness = WireHarness::two(failing(), failing()).await;
    let answers = |result: Result<Response>, _: &mut Extensions| {
        result?;
        let cached = http::Response::builder().status(200).body("from the cache").unwrap();
        Ok(Response::from(cached))
    };
    let chain = harness.chain().build().unwrap();
    let client = ClientBuilder::new(plain()).with(chain).with(Layer(unseen, answers)).build();
    let response = harness.post(&client).send().await.unwrap();
    // It has no URL of its own, which is no redirect.
    assert_eq!(served_by(&response), Some("cometapi"));
    assert_eq!(response.text().await.unwrap(), "from the cache");
    harness.assert_asked(&[1, 0]);
}

#[tokio::test]
async fn a_chain_does_not_claim_the_attempts_of_a_chain_above_it() {
    let harness = three(failing(), Answer::ok(), Answer::ok()).await;
    let [first, second, third] = [&harness.actors[0], &harness.actors[1], &harness.actors[2]];
    let outer = ProviderChain::builder([first.provider(), second.provider()]);
    // It would send what is addressed to the second provider to the third, with the third's key.
    let inner = ProviderChain::builder([third.provider()]).claim(second.url(""));
    let (outer, inner) = (outer.build().unwrap(), inner.build().unwrap());
    let client = ClientBuilder::new(plain()).with(outer.clone()).with(inner.clone()).build();
    let response = client.post(first.url("/chat/completions")).body(BODY).send().await.unwrap();
    assert_eq!(Report::of(&response).unwrap().served_by(), Some("openai"));
    assert_eq!(response.url().as_str(), second.url("/chat/completions"));
    harness.assert_asked(&[1, 1, 0]);
    assert_eq!((outer.snapshot().requests(), inner.snapshot().requests()), (1, 0));
    assert_eq!(
        inner.snapshot().passed_through(),
        0,
        "another chain's attempt is no forgotten claim"
    );

    // The caller's own request is claimed by the inner chain, if the outer one passes it through.
    let response = ClientBuilder::new(plain()).with(inner.clone()).build();
    let response = response.post(second.url("/x")).body(BODY).send().await.unwrap();
    assert_eq!(Report::of(&response).unwrap().served_by(), Some("spare"));
    harness.assert_asked(&[1, 1, 1]);
}

#[tokio::test]
async fn a_second_request_with_the_same_extensions_is_claimed_like_the_first() {
    // Attempts are marked where there is more than one chain.
    let _other = ProviderChain::builder([Provider::openai("key")]).build().unwrap();
    let mut own = Extensions::new();
    own.insert(FromCaller("mine"));
    for mut extensions in [Extensions::new(), own] {
        let harness = WireHarness::two(Answer::ok(), Answer::ok()).await;
        let chain = harness.chain().build().unwrap();
        let client = ClientBuilder::new(plain()).with(chain.clone()).build();
        for requests in 1..=2 {
            let request = harness.post(&client).build().unwrap();
            client.execute_with_extensions(request, &mut extensions).await.unwrap();
            assert_eq!(chain.snapshot().requests(), requests);
        }
        harness.assert_asked(&[2, 0]);
    }
}

#[tokio::test]
async fn a_chain_may_be_stacked_in_a_chain() {
    // The outer chain's second entry is the inner one's first; the inner one has a spare.
    let harness = three(failing(), Answer::error(503, "busy"), Answer::ok()).await;
    let [first, second, spare] = [&harness.actors[0], &harness.actors[1], &harness.actors[2]];
    let outer_key = harness.secret("outer");
    let outer =
        ProviderChain::builder([first.provider(), second.keyless().bearer_auth(&outer_key)]);
    let inner = ProviderChain::builder([second.provider(), spare.provider()]).nested();
    let client = ClientBuilder::new(plain())
        .with(outer.build().unwrap())
        .with(inner.build().unwrap())
        .build();
    let response = client.post(second.url("/chat/completions")).body(BODY).send().await.unwrap();
    assert_eq!(response.status(), 200);
    let expected = "cometapi 500 in # ms (maybe processed) → openai 200 in # ms";
    assert_eq!(line(Report::of(&response).unwrap()), expected);
    assert_eq!(harness.requests(2)[0].text(), BODY);
    harness.assert_asked(&[1, 1, 1]);
}

#[tokio::test]
async fn a_stacked_chain_that_fails_is_one_failed_attempt() {
    let harness = three(failing(), failing(), Answer::ok()).await;
    let [first, second, last] = [&harness.actors[0], &harness.actors[1], &harness.actors[2]];
    let inner = ProviderChain::builder([first.provider(), second.provider()])
        .nested()
        .on_exhausted(Exhausted::Error);
    let outer_key = harness.secret("outer");
    let outer = ProviderChain::builder([first.keyless().bearer_auth(outer_key), last.provider()]);
    let client = ClientBuilder::new(plain())
        .with(outer.build().unwrap())
        .with(inner.build().unwrap())
        .build();
    let response = harness.post(&client).send().await.unwrap();
    assert_eq!(served_by(&response), Some("spare"));
    assert_eq!(Report::of(&response).unwrap().attempts().len(), 2);
    harness.assert_asked(&[1, 1, 1]);
}

#[tokio::test]
async fn a_stacked_chain_that_finds_no_connection_is_a_provider_without_one() {
    let closed = Refusing::start();
    let harness = WireHarness::of([("openai", Answer::ok().into())]).await;
    let first = || Provider::new("cometapi", closed.base_url("/v1"));
    let inner = ProviderChain::builder([first()]).nested().on_exhausted(Exhausted::Error);
    let outer = ProviderChain::builder([first(), harness.actors[0].provider()]);
    let client = ClientBuilder::new(plain())
        .with(outer.build().unwrap())
        .with(inner.build().unwrap())
        .build();
    let response = harness.post(&client).send().await.unwrap();
    let report = Report::of(&response).unwrap();
    assert_eq!(report.attempts()[0].reason(), Reason::Connect, "{report}");
    assert!(!report.attempts()[0].maybe_processed(), "nothing was sent");
    assert_eq!(report.served_by(), Some("openai"));
}

#[tokio::test]
async fn a_stacked_chain_is_ambiguous_by_what_any_of_its_providers_may_have_processed() {
    let closed = Refusing::start();
    for (first, last_asked) in [(Answer::error(500, "broken"), 0), (Answer::error(429, "slow"), 1)]
    {
        let harness = WireHarness::two(first, Answer::ok()).await;
        let [first, last] = [&harness.actors[0], &harness.actors[1]];
        let inner = [first.provider(), Provider::new("closed", closed.base_url("/v1"))];
        let inner = ProviderChain::builder(inner).nested().on_exhausted(Exhausted::Error);
        let outer_key = harness.secret("outer");
        let outer =
            ProviderChain::builder([first.keyless().bearer_auth(outer_key), last.provider()])
                .on_ambiguous(Ambiguous::IdempotentOnly);
        let client = ClientBuilder::new(plain())
            .with(outer.build().unwrap())
            .with(inner.build().unwrap())
            .build();
        // The last that the inner chain asked found no connection.
        let _ = harness.post(&client).send().await;
        harness.assert_asked(&[1, last_asked]);
    }
}

#[tokio::test]
async fn two_chains_beside_each_other_keep_to_their_own() {
    let (a, b) = (
        WireHarness::two(failing(), Answer::ok()).await,
        WireHarness::two(failing(), Answer::ok()).await,
    );
    let client = ClientBuilder::new(plain())
        .with(a.chain().build().unwrap())
        .with(b.chain().build().unwrap())
        .build();
    for harness in [&a, &b] {
        let response = harness.post(&client).send().await.unwrap();
        assert_eq!(served_by(&response), Some("openai"));
        harness.assert_asked(&[1, 1]);
    }
    let keys: Vec<_> = b.actors.iter().map(|actor| &*actor.key).collect();
    for actor in &a.actors {
        support::canary::assert_no_foreign_keys(&[(&actor.server, &actor.key)], &keys);
    }
}

#[tokio::test]
async fn clones_of_a_chain_serve_several_clients() {
    let harness = WireHarness::two(failing(), Answer::ok()).await;
    let chain = harness.chain().build().unwrap();
    for _ in 0..2 {
        let client = ClientBuilder::new(plain()).with(chain.clone()).build();
        assert_eq!(served_by(&harness.post(&client).send().await.unwrap()), Some("openai"));
    }
    harness.assert_asked(&[2, 2]);
}

// Routes.

/// Once as an extension, once from the chain's closure.
async fn routed(route: Route, answers: [Answer; 3]) -> Vec<(WireHarness, Result<Response>)> {
    let mut results = Vec::new();
    for by_closure in [false, true] {
        let [first, second, third] = answers.clone();
        let harness = three(first, second, third).await;
        let result = if by_closure {
            let route = route.clone();
            let chain = harness.chain().route(move |request| {
                assert_eq!(request.method(), Method::POST);
                request.url().path().ends_with("/chat/completions").then(|| route.clone())
            });
            harness.post(&client(chain)).send().await
        } else {
            harness.post(&harness.client()).with_extension(route.clone()).send().await
        };
        if let Err(error) = &result {
            harness.hear(format!("{error} {error:?}"));
        }
        results.push((harness, result));
    }
    results
}

#[tokio::test]
async fn only_asks_only_these_in_the_chains_order() {
    let answers = || [Answer::ok(), failing(), Answer::ok()];
    for (harness, result) in routed(Route::only(["spare", "openai"]), answers()).await {
        assert_eq!(served_by(&result.unwrap()), Some("spare"));
        harness.assert_asked(&[0, 1, 1]);
    }
    for (harness, result) in routed(Route::only(["openai"]), answers()).await {
        let response = result.unwrap();
        assert_eq!((response.status().as_u16(), served_by(&response)), (500, None));
        harness.assert_asked(&[0, 1, 0]);
    }
}

#[tokio::test]
async fn order_asks_these_first_and_in_this_order() {
    let answers = [Answer::ok(), failing(), failing()];
    for (harness, result) in routed(Route::order(["spare", "openai", "cometapi"]), answers).await {
        let expected = "spare 500 in # ms (maybe processed) → openai 500 in # ms (maybe processed) → cometapi 200 in # ms";
        assert_eq!(line(Report::of(&result.unwrap()).unwrap()), expected);
        harness.assert_asked(&[1, 1, 1]);
    }
}

#[tokio::test]
async fn skip_asks_all_but_these() {
    let answers = [Answer::ok(), failing(), Answer::ok()];
    for (harness, result) in routed(Route::skip(["cometapi"]), answers).await {
        let expected = "openai 500 in # ms (maybe processed) → spare 200 in # ms";
        assert_eq!(line(Report::of(&result.unwrap()).unwrap()), expected);
        harness.assert_asked(&[0, 1, 1]);
    }
}

#[tokio::test]
async fn no_failover_asks_the_first_and_nobody_else() {
    let answers = [failing(), Answer::ok(), Answer::ok()];
    for (harness, result) in routed(Route::no_failover(), answers).await {
        let response = result.unwrap();
        assert_eq!((response.status().as_u16(), served_by(&response)), (500, None));
        harness.assert_asked(&[1, 0, 0]);
    }
}

#[tokio::test]
async fn a_route_to_an_unknown_name_is_an_error_and_nothing_is_sent() {
    for route in [
        Route::only(["openai", "unknown"]),
        Route::order(["unknown", "openai"]),
        Route::skip(["unknown"]),
        Route::only(["OpenAI", "unknown"]),
    ] {
        for (harness, result) in routed(route, [Answer::ok(), Answer::ok(), Answer::ok()]).await {
            let error = result.unwrap_err();
            let failed = FailoverError::find(&error).expect("a FailoverError");
            let text = failed.to_string();
            assert!(text.contains("unknown") || text.contains("OpenAI"), "{text}");
            assert_eq!(failed.report().attempts().len(), 0);
            harness.assert_untouched();
        }
    }
}

#[tokio::test]
async fn a_route_that_leaves_nobody_is_an_error() {
    let routes = [Route::skip(["cometapi", "openai", "spare"]), Route::only([""; 0])];
    for route in routes {
        for (harness, result) in routed(route, [Answer::ok(), Answer::ok(), Answer::ok()]).await {
            assert!(FailoverError::find(&result.unwrap_err()).is_some());
            harness.assert_untouched();
        }
    }
}

#[tokio::test]
async fn a_routes_extension_wins_over_the_chains_closure() {
    let harness = WireHarness::two(Answer::ok(), Answer::ok()).await;
    let client = client(harness.chain().route(|_| Some(Route::only(["cometapi"]))));
    let response =
        harness.post(&client).with_extension(Route::only(["openai"])).send().await.unwrap();
    assert_eq!(served_by(&response), Some("openai"));
    assert_eq!(served_by(&harness.post(&client).send().await.unwrap()), Some("cometapi"));
}

#[tokio::test]
async fn a_route_without_an_opinion_leaves_the_order() {
    let harness = WireHarness::two(Answer::ok(), Answer::ok()).await;
    let client = client(harness.chain().route(|_| None));
    assert_eq!(served_by(&harness.post(&client).send().await.unwrap()), Some("cometapi"));
}

// Verdicts.

#[tokio::test]
async fn classify_sees_every_outcome() {
    // Each has a port of its own: what is said of a host that refuses is said of all of its entries.
    let [closed, unasked, tokens] = [(); 3].map(|()| Refusing::start());
    let scripts = [
        ("limits", Answer::error(429, "slow down").header("retry-after-ms", "1500").into()),
        ("stalls", Answer::stall().into()),
        ("breaks", Answer::fin().into()),
        ("gateway", Answer::error(504, "upstream").into()),
        ("openai", Answer::ok().header("x-id", "42").into()),
    ];
    let harness = WireHarness::of(scripts).await;
    let mut providers = harness.providers();
    let refuses =
        Provider::new("refuses", closed.base_url("/v1")).bearer_auth(harness.secret("refuses"));
    providers.insert(0, refuses.clone());
    let unprepared =
        Provider::new("unprepared", unasked.base_url("/v2")).map_request(|_| Err("not now"));
    providers.insert(1, unprepared);
    let tokenless = Provider::new("tokenless", tokens.base_url("/v3"))
        .bearer_auth_with(|| async { Err::<String, _>("no token") });
    providers.insert(2, tokenless);
    providers[4] = harness.actors[1].provider().attempt_timeout(ms(80));
    let seen = Arc::new(Mutex::new(Vec::new()));
    let chain = ProviderChain::builder(providers).classify({
        let seen = seen.clone();
        move |outcome| {
            assert_eq!(outcome.status().is_some(), outcome.headers().is_some());
            assert!(outcome.status().is_none() || outcome.error().is_none());
            let header = |name| outcome.headers().is_some_and(|headers| headers.contains_key(name));
            assert_eq!(header("x-id"), outcome.provider() == "openai");
            seen.lock().unwrap().push((
                outcome.provider().to_owned(),
                outcome.status().map_or(0, |status| status.as_u16()),
                outcome.reason().as_str(),
                outcome.is_connect(),
                outcome.is_timeout(),
                outcome.maybe_processed(),
                outcome.retry_after(),
            ));
            assert!(outcome.elapsed() < ms(5000));
            Verdict::standard(outcome)
        }
    });
    let response = harness.post(&client(chain)).send().await.unwrap();
    assert_eq!(served_by(&response), Some("openai"));
    let seen = seen.lock().unwrap();
    let seen: Vec<_> = seen
        .iter()
        .map(|seen| (&*seen.0, seen.1, seen.2, seen.3, seen.4, seen.5, seen.6))
        .collect();
    #[rustfmt::skip]
    let expected = [
        ("refuses", 0, "connect", true, false, false, None),
        ("unprepared", 0, "other", false, false, false, None),
        ("tokenless", 0, "credential", false, false, false, None),
        ("limits", 429, "rate_limited", false, false, false, Some(ms(1500))),
        ("stalls", 0, "timeout", false, true, true, None),
        ("breaks", 0, "reset", false, false, true, None),
        ("gateway", 504, "server_error", false, false, true, None),
        ("openai", 200, "ok", false, false, false, None),
    ];
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn classify_decides_what_is_accepted() {
    let accepts_404 = |outcome: &reqwest_failover::Outcome<'_>| match outcome.status() {
        Some(status) if status == 404 => Verdict::Accept,
        Some(status) if status == 200 => Verdict::FailOver(Fault::None),
        _ => Verdict::standard(outcome),
    };
    let harness = WireHarness::two(Answer::error(404, "no such file"), Answer::ok()).await;
    let response =
        harness.post(&client(harness.chain().classify(accepts_404))).send().await.unwrap();
    assert_eq!((response.status().as_u16(), served_by(&response)), (404, Some("cometapi")));
    assert!(response.text().await.unwrap().contains("no such file"));
    harness.assert_asked(&[1, 0]);

    let harness = WireHarness::two(Answer::ok(), Answer::error(404, "no such file")).await;
    let response =
        harness.post(&client(harness.chain().classify(accepts_404))).send().await.unwrap();
    assert_eq!((response.status().as_u16(), served_by(&response)), (404, Some("openai")));
    harness.assert_asked(&[1, 1]);
}

#[tokio::test]
async fn an_accepted_outcome_without_a_response_is_a_failover_error() {
    let harness = WireHarness::two(Answer::fin(), Answer::ok()).await;
    let client = client(harness.chain().classify(|_| Verdict::Accept));
    let error = harness.post(&client).send().await.unwrap_err();
    let failed = FailoverError::find(&error).expect("a FailoverError");
    assert_eq!(failed.report().attempts().len(), 1);
    assert_eq!(failed.report().served_by(), None, "{}", failed.report());
    harness.assert_asked(&[1, 0]);
}

#[tokio::test]
async fn a_classify_that_panics_changes_nothing() {
    let harness = WireHarness::two(failing(), Answer::ok()).await;
    let client = client(harness.chain().classify(|_| panic!("misjudged")));
    assert_eq!(served_by(&harness.post(&client).send().await.unwrap()), Some("openai"));
    harness.assert_asked(&[1, 1]);
}

#[tokio::test]
async fn transient_hands_on_what_is_the_requests_own_fault() {
    for status in [400, 401, 402, 403, 404, 409, 413, 422, 302] {
        let harness = WireHarness::two(Answer::error(status, "yours"), Answer::ok()).await;
        let client = client(harness.chain().classify(Verdict::transient));
        let response = harness.post(&client).send().await.unwrap();
        assert_eq!((response.status().as_u16(), served_by(&response)), (status, Some("cometapi")));
        assert!(response.text().await.unwrap().contains("yours"));
        harness.assert_asked(&[1, 0]);
    }
}

#[tokio::test]
async fn transient_fails_over_when_the_provider_is_at_fault() {
    for first in [408, 425, 429, 500, 502, 503, 529].map(|status| Answer::error(status, "mine")) {
        let harness = WireHarness::two(first, Answer::ok()).await;
        let client = client(harness.chain().classify(Verdict::transient));
        assert_eq!(served_by(&harness.post(&client).send().await.unwrap()), Some("openai"));
        harness.assert_asked(&[1, 1]);
    }
    for first in [Answer::fin(), Answer::reset(), Answer::stall()] {
        let harness = WireHarness::two(first, Answer::ok()).await;
        let client = client(harness.chain().classify(Verdict::transient).attempt_timeout(ms(80)));
        assert_eq!(served_by(&harness.post(&client).send().await.unwrap()), Some("openai"));
        harness.assert_asked(&[1, 1]);
    }
}

// Requests that may have been processed.

fn cautious(harness: &WireHarness) -> ClientWithMiddleware {
    client(harness.chain().on_ambiguous(Ambiguous::IdempotentOnly).attempt_timeout(ms(80)))
}

fn ambiguous_answers() -> Vec<Answer> {
    let statuses = [300, 302, 408, 499, 500, 502, 504, 520, 524, 529];
    [Answer::stall(), Answer::fin(), Answer::reset()]
        .into_iter()
        .chain(statuses.map(|status| Answer::error(status, "late")))
        .collect()
}

#[tokio::test]
async fn a_post_that_may_have_been_processed_is_not_sent_again_where_that_is_not_wanted() {
    for first in ambiguous_answers() {
        let harness = WireHarness::two(first, Answer::ok()).await;
        let mut extensions = Extensions::new();
        let client = cautious(&harness);
        let request = harness.post(&client).build().unwrap();
        let result = client.execute_with_extensions(request, &mut extensions).await;
        match result {
            Ok(response) => assert_eq!(served_by(&response), None),
            Err(error) => assert!(error.is_middleware() || matches!(error, Error::Reqwest(_))),
        }
        let report = Report::from_extensions(&extensions).unwrap();
        assert_eq!(report.attempts().len(), 1, "{report}");
        assert!(report.attempts()[0].maybe_processed(), "{report}");
        harness.assert_asked(&[1, 0]);
    }
}

#[tokio::test]
async fn an_idempotency_key_does_not_have_a_post_sent_again() {
    for first in ambiguous_answers() {
        let harness = WireHarness::two(first, Answer::ok()).await;
        let request = harness.post(&cautious(&harness)).header("Idempotency-Key", "once");
        if let Ok(response) = request.send().await {
            assert_eq!(served_by(&response), None);
        }
        harness.assert_asked(&[1, 0]);
        assert_eq!(harness.requests(0)[0].header("idempotency-key"), Some("once"));
    }
}

#[tokio::test]
async fn an_idempotent_request_that_may_have_been_processed_is_sent_again() {
    for method in ["GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"] {
        for first in ambiguous_answers() {
            let harness = WireHarness::two(first, Answer::ok()).await;
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            let request =
                cautious(&harness).request(method.clone(), harness.actors[1].url("/files/1"));
            assert_eq!(served_by(&request.send().await.unwrap()), Some("openai"), "{method}");
            harness.assert_asked(&[1, 1]);
        }
    }
}

#[tokio::test]
async fn a_post_that_may_have_been_processed_is_sent_again_where_its_caller_allows_it() {
    for first in ambiguous_answers() {
        let harness = WireHarness::two(first, Answer::ok()).await;
        let request = harness.post(&cautious(&harness)).with_extension(Replay::allowed());
        assert_eq!(served_by(&request.send().await.unwrap()), Some("openai"));
        harness.assert_asked(&[1, 1]);
    }
}

#[tokio::test]
async fn a_post_that_was_surely_not_processed_is_sent_again_anyway() {
    for first in
        [307, 308, 400, 401, 404, 425, 429, 503, 521, 523].map(|status| Answer::error(status, "no"))
    {
        let harness = WireHarness::two(first, Answer::ok()).await;
        assert_eq!(
            served_by(&harness.post(&cautious(&harness)).send().await.unwrap()),
            Some("openai")
        );
        harness.assert_asked(&[1, 1]);
    }
    let hangs = || std::future::pending::<std::result::Result<String, std::convert::Infallible>>();
    let closed = Refusing::start();
    let key = canary("cometapi");
    for first in [
        Provider::new("cometapi", closed.base_url("/v1")).bearer_auth(&key),
        Provider::new("cometapi", closed.base_url("/v1")).map_request(|_| Err("not now")),
        Provider::new("cometapi", closed.base_url("/v1"))
            .bearer_auth_with(|| async { Err::<String, _>("no token") }),
        Provider::new("cometapi", closed.base_url("/v1")).bearer_auth_with(hangs),
    ] {
        let harness = WireHarness::of([("openai", Answer::ok().into())]).await;
        let chain = ProviderChain::builder([first.clone(), harness.actors[0].provider()]);
        let chain = chain.on_ambiguous(Ambiguous::IdempotentOnly).attempt_timeout(ms(80));
        let result = harness.post(&client(chain)).send().await;
        let response = result.unwrap_or_else(|error| panic!("{error} with {first:?}"));
        assert_eq!(served_by(&response), Some("openai"), "{first:?}");
        harness.assert_asked(&[1]);
    }
}

// Limits.

#[tokio::test]
async fn no_more_providers_are_asked_than_allowed() {
    for (allowed, asked) in
        [(1, [1, 0, 0]), (2, [1, 1, 0]), (3, [1, 1, 1]), (usize::MAX, [1, 1, 1])]
    {
        let harness = three(failing(), failing(), failing()).await;
        let response =
            harness.post(&client(harness.chain().max_attempts(allowed))).send().await.unwrap();
        assert_eq!(Report::of(&response).unwrap().attempts().len(), allowed.min(3));
        harness.assert_asked(&asked);
    }
}

#[tokio::test]
async fn a_claimed_url_is_readdressed_without_being_looked_up() {
    let claims = |chain: ProviderChainBuilder| {
        chain.claim("https://llm.example.invalid/openai/v1").claim("http://[2001:db8::1]:8080")
    };
    for (url, target) in [
        ("https://llm.example.invalid/openai/v1/models?x=1", "/v1/models?x=1"),
        ("https://llm.example.invalid:443/openai/v1/models", "/v1/models"),
        ("http://[2001:db8::1]:8080/models", "/v1/models"),
    ] {
        let harness = WireHarness::two(failing(), Answer::ok()).await;
        let response = client(claims(harness.chain())).get(url).send().await.unwrap();
        assert_eq!(served_by(&response), Some("openai"));
        assert_eq!(harness.requests(0)[0].target, target);
        assert_eq!(harness.requests(1)[0].target, target);
        harness.assert_asked(&[1, 1]);
    }
}
