//! The network, the provider and the caller at their worst: what none of them may achieve.

use reqwest_failover_testing::{support, terminal};

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream;
use http::{Extensions, HeaderName, HeaderValue, Method};
use reqwest::{Body, Request, Response};
use reqwest_failover::{
    Ambiguous, Event, Exhausted, FailoverError, Hedge, Inspect, Provider, ProviderChain,
    ProviderChainBuilder, Reason, Report, Route, State,
};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware, Middleware, Next};
use tokio::sync::Notify;

use support::harness::{WireHarness, client, plain};
use support::{Answer, Server};
use terminal::{Harness, Script, URL, keyless, ms, provider, secs, sleep_until};

/// All that anyone can read of an exchange.
fn shown(result: &reqwest_middleware::Result<Response>, extensions: &Extensions) -> String {
    let mut text = format!("{:?}", Report::from_extensions(extensions));
    if let Err(error) = result {
        text += &format!("{error} {error:?}");
    }
    text
}

async fn said_by(harness: &Harness) -> String {
    let mut extensions = Extensions::new();
    let request = harness.post().build().unwrap();
    let result = harness.client.execute_with_extensions(request, &mut extensions).await;
    shown(&result, &extensions)
}

// Bodies on their way out.

/// Three bytes, by a stream that must not be asked again once it has ended, as many are.
fn short() -> Body {
    Body::wrap_stream(stream::unfold(0, |at| async move {
        (at < 3).then(|| (Ok::<_, io::Error>(Bytes::from_static(b"x")), at + 1))
    }))
}

#[tokio::test]
async fn a_stream_that_ended_is_not_asked_again() {
    struct Collect;
    #[async_trait::async_trait]
    impl Middleware for Collect {
        async fn handle(
            &self,
            mut request: Request,
            _: &mut Extensions,
            _: Next<'_>,
        ) -> reqwest_middleware::Result<Response> {
            use http_body_util::BodyExt;
            let body = request.body_mut().take().unwrap().collect().await?.to_bytes();
            Ok(http::Response::new(body).into())
        }
    }
    let chain = ProviderChain::builder([provider("a"), provider("b")]);
    let chain = chain.claim("https://caller.test/v1").build().unwrap();
    let client = ClientBuilder::new(plain()).with(chain).with(Collect).build();
    let request = client.post(URL).header("content-length", "10").body(short());
    // A panic here is the stream's, which was polled after its end.
    let response = request.send().await.unwrap();
    assert_eq!(response.bytes().await.unwrap(), "xxx");
}

#[tokio::test]
async fn bodies_shorter_than_they_said_open_no_breaker() {
    let harness = WireHarness::two(Answer::ok(), Answer::ok()).await;
    let chain = harness.chain().build().unwrap();
    let client = ClientBuilder::new(plain()).with(chain.clone()).build();
    for _ in 0..6 {
        let short = Body::wrap_stream(stream::iter([Ok::<_, io::Error>("xxx")]));
        let request = client.post(harness.actors[0].url("/files")).header("content-length", "10");
        request.body(short).send().await.unwrap_err();
    }
    let snapshot = chain.snapshot();
    let states: Vec<_> = snapshot.providers().iter().map(|one| one.state()).collect();
    assert_eq!(states, [State::Closed, State::Closed]);
}

// Bodies on their way in.

/// A body that always has a frame, and never a byte: an HTTP/2 peer may send empty DATA frames
/// without end. It script end, later than any caller should wait.
fn hollow(length: Duration) -> Body {
    let end = Instant::now() + length;
    Body::wrap_stream(stream::poll_fn(move |_| {
        let more = Instant::now() < end;
        std::task::Poll::Ready(more.then(|| Ok::<_, io::Error>(Bytes::new())))
    }))
}

const HOLLOW: Duration = Duration::from_millis(1500);

#[tokio::test]
async fn a_failed_body_of_empty_frames_holds_nothing_up() {
    let harness = Harness::with(
        [("a", Script::answer(500, &[], || hollow(HOLLOW))), ("b", Script::status(200))],
        |chain| chain.total_timeout(ms(400)),
    );
    let begin = Instant::now();
    assert_eq!(harness.ask().await, "b");
    assert!(begin.elapsed() < ms(800), "took {:?}", begin.elapsed());
}

#[tokio::test]
async fn a_successful_body_of_empty_frames_is_held_no_longer_than_allowed() {
    for kind in ["application/json", "text/event-stream"] {
        let headers = [("content-type", kind.to_owned())];
        let harness = Harness::with(
            [("a", Script::answer(200, &headers, || hollow(HOLLOW))), ("b", Script::status(200))],
            |chain| {
                let inspect = Inspect::errors_in_success();
                chain.total_timeout(ms(400)).inspect(inspect.time_limit(ms(100)))
            },
        );
        let begin = Instant::now();
        let _ = harness.post().send().await;
        assert!(begin.elapsed() < ms(800), "{kind} took {:?}", begin.elapsed());
    }
}

// What is shown.

#[tokio::test(start_paused = true)]
async fn a_token_that_was_renewed_meanwhile_is_still_not_shown() {
    let count = Arc::new(AtomicUsize::new(0));
    let source = move || {
        let number = count.fetch_add(1, Ordering::Relaxed);
        async move { Ok::<_, io::Error>(format!("token-{number}-secret")) }
    };
    let told = Arc::new(Notify::new());
    let echo = || Body::from(r#"{"error":{"message":"bad token: token-0-secret"}}"#);
    let harness = Harness::of_providers(
        vec![keyless("a").bearer_auth_with(source)],
        [("a", Script::answer(401, &[], echo).when(&told))],
        |chain| chain.on_exhausted(Exhausted::Error),
    );
    let (slow, ()) = tokio::join!(said_by(&harness), async {
        tokio::task::yield_now().await;
        harness.tell("a", Script::status(200));
        assert_eq!(harness.ask().await, "a");
        told.notify_one();
    });
    assert!(slow.contains("bad token"), "{slow}");
    assert!(!slow.contains("token-0-secret"), "{slow}");
}

#[tokio::test(start_paused = true)]
async fn a_password_that_looks_escaped_is_redacted_as_it_is() {
    for password in [r"correct\\horse", "correct%25horse", "correct&amp;horse", r"co\u005crrect"] {
        let echo = move || Body::from(format!("no such login: {password} (sorry)"));
        let harness = Harness::of_providers(
            vec![keyless("a").basic_auth("user", password)],
            [("a", Script::answer(403, &[], echo))],
            |chain| chain.on_exhausted(Exhausted::Error),
        );
        let text = said_by(&harness).await;
        assert!(text.contains("no such login: [redacted] (sorry)"), "{password}: {text}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_caller_forwards_is_redacted_in_parts_too() {
    use base64::Engine as _;
    let basic = base64::engine::general_purpose::STANDARD.encode("me:hunter2-secret");
    let echo = || Body::from("no session 0123456789abcdef for password hunter2-secret");
    let harness = Harness::of_providers(
        vec![keyless("a").forward_caller_auth()],
        [("a", Script::answer(403, &[], echo))],
        |chain| chain.on_exhausted(Exhausted::Error),
    );
    let request = harness.client.post("https://a.test/v1/x");
    let request = request.header("cookie", "session=0123456789abcdef; theme=dark");
    let request = request.header("authorization", format!("Basic {basic}")).build().unwrap();
    let mut extensions = Extensions::new();
    let result = harness.client.execute_with_extensions(request, &mut extensions).await;
    let text = shown(&result, &extensions);
    assert!(text.contains("no session"), "{text}");
    let leaked: Vec<_> =
        ["0123456789abcdef", "hunter2-secret"].into_iter().filter(|s| text.contains(s)).collect();
    assert!(leaked.is_empty(), "{leaked:?} in {text}");
}

/// No provider is given them, and yet a layer below may have seen them before, or hold them itself.
#[tokio::test(start_paused = true)]
async fn what_the_caller_put_on_the_request_is_redacted_though_no_provider_is_given_it() {
    const ECHO: &str = "no: 0123bearer4567, 0123cookie4567, 0123marked4567, 0123removed4567, \
                        0123query4567, 0123user4567, 0123protocol4567 end";
    let echo = || Script::answer(401, &[], || Body::from(ECHO));
    let fail = || Script::fail_with(ECHO);
    let slow = || echo().after(secs(2));
    let hedged = |chain: ProviderChainBuilder| {
        let chain = chain.hedge(Hedge::after(secs(1)).max_extra(1.0));
        chain.on_exhausted(Exhausted::Error)
    };
    let whole = |chain: ProviderChainBuilder| chain.on_exhausted(Exhausted::Error);
    let last = |chain: ProviderChainBuilder| chain;
    type Settings = fn(ProviderChainBuilder) -> ProviderChainBuilder;
    let cases: [(&str, Vec<Script>, Settings); 6] = [
        ("the only provider", vec![echo()], whole),
        ("two", vec![echo(), echo()], whole),
        ("three", vec![echo(), fail(), echo()], whole),
        ("hedged", vec![slow(), slow()], hedged),
        ("the only error", vec![fail()], last),
        ("the last error", vec![Script::status(500), fail()], last),
    ];
    for (case, scripts, settings) in cases {
        let names = ["a", "b", "c"];
        let providers = names.iter().take(scripts.len()).map(|name| provider(name));
        let providers = providers.map(|provider| provider.remove_header("x-removed")).collect();
        let harness = Harness::of_providers(providers, [], settings);
        for (name, script) in names.into_iter().zip(scripts) {
            harness.tell(name, script);
        }
        let mut marked = HeaderValue::from_static("0123marked4567");
        marked.set_sensitive(true);
        let url = "https://0123user4567@a.test/v1/x?api_key=0123query4567";
        let mut request = Request::new(Method::POST, url.parse().unwrap());
        let headers = [
            ("authorization", HeaderValue::from_static("Bearer 0123bearer4567")),
            ("cookie", HeaderValue::from_static("a=1; session=0123cookie4567")),
            ("x-marked", marked),
            ("x-removed", HeaderValue::from_static("0123removed4567")),
            ("sec-websocket-protocol", HeaderValue::from_static("chat, token, 0123protocol4567")),
        ];
        let headers = headers.map(|(name, value)| (HeaderName::from_static(name), value));
        request.headers_mut().extend(headers);
        let mut extensions = Extensions::new();
        let result = harness.client.execute_with_extensions(request, &mut extensions).await;
        assert!(result.is_err(), "{case}");
        let text = shown(&result, &extensions);
        assert!(text.contains("[redacted] end"), "{case}: {text}");
        assert!(!text.contains("0123") && !text.contains("4567"), "{case}: {text}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_that_map_request_set_before_it_failed_is_redacted() {
    let fails = |request: &mut Request| {
        request.headers_mut().insert("x-vendor-token", HeaderValue::from_static("key-of-a-vendor"));
        Err("cannot sign with key-of-a-vendor, sorry")
    };
    let harness = Harness::of_providers(vec![provider("a").map_request(fails)], [], |chain| chain);
    let text = said_by(&harness).await;
    assert!(text.contains("[redacted], sorry"), "{text}");
    assert!(!text.contains("key-of-a-vendor"), "{text}");
}

/// As a server may with the data of the frame that closes an HTTP/2 connection.
#[tokio::test(start_paused = true)]
async fn a_key_in_the_cause_of_a_transport_error_is_not_shown() {
    struct Breaks(&'static str);
    #[async_trait::async_trait]
    impl Middleware for Breaks {
        async fn handle(
            &self,
            _: Request,
            _: &mut Extensions,
            _: Next<'_>,
        ) -> reqwest_middleware::Result<Response> {
            let chunk = Err::<Bytes, _>(io::Error::other(self.0));
            let body = Body::wrap_stream(stream::iter([chunk]));
            Ok(Response::from(http::Response::new(body)).bytes().await.map(|_| unreachable!())?)
        }
    }
    for (words, is_shown) in [("closed: bad key-of-a-vendor", true), ("closed", false)] {
        let provider = keyless("a").bearer_auth("key-of-a-vendor");
        let chain = ProviderChain::builder([provider]).claim("https://caller.test/v1");
        let client = ClientBuilder::new(plain()).with(chain.build().unwrap()).with(Breaks(words));
        let request = client.build().post(URL).body("{}");
        let error = request.send().await.unwrap_err();
        let text = format!("{error} {error:?} {error:#?}");
        assert!(!text.contains("vendor") && text.contains("closed"), "{text}");
        assert_eq!(FailoverError::find(&error).is_some(), is_shown, "{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_in_utf_16_is_redacted() {
    let echo = || {
        let text = "bad key: key-of-a!";
        Body::from(text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>())
    };
    let harness = Harness::with([("a", Script::answer(401, &[], echo))], |chain| {
        chain.on_exhausted(Exhausted::Error)
    });
    let text = said_by(&harness).await.replace(r"\u{0}", "").replace(r"\\u{0}", "");
    assert!(!text.contains("key-of-a"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn an_unknown_route_breaks_no_line() {
    let harness = Harness::of([("a", Script::status(200))]);
    let route = Route::only(["x\n2026-01-01 INFO forged"]);
    let error = harness.post().with_extension(route).send().await.unwrap_err();
    assert!(!error.to_string().contains('\n'), "{error}");
}

// Chains in chains.

/// The outer chain's first entry is the inner chain, the harness's, whose providers are `c` and `d`.
fn stacked(
    outer: impl FnOnce(ProviderChainBuilder) -> ProviderChainBuilder,
    c: Script,
    d: Script,
) -> (Harness, ClientWithMiddleware) {
    stacked_on(|chain| chain, outer, c, d)
}

/// The same, with settings of the inner chain.
fn stacked_on(
    inner: impl FnOnce(ProviderChainBuilder) -> ProviderChainBuilder,
    outer: impl FnOnce(ProviderChainBuilder) -> ProviderChainBuilder,
    c: Script,
    d: Script,
) -> (Harness, ClientWithMiddleware) {
    let harness = Harness::with([("c", c), ("d", d)], |chain| {
        inner(chain.claim("https://in.test/v1").nested())
    });
    let above = ProviderChain::builder([
        Provider::new("in", "https://in.test/v1").bearer_auth("outer-key"),
        Provider::new("out", "https://out.test/v1").bearer_auth("other-key"),
    ]);
    let above = outer(above).build().unwrap();
    let client =
        ClientBuilder::new(plain()).with(above).with(Below(harness.client.clone())).build();
    (harness, client)
}

/// A whole client as the last layer of another.
struct Below(ClientWithMiddleware);

#[async_trait::async_trait]
impl Middleware for Below {
    async fn handle(
        &self,
        request: Request,
        extensions: &mut Extensions,
        _: Next<'_>,
    ) -> reqwest_middleware::Result<Response> {
        self.0.execute_with_extensions(request, extensions).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_route_for_the_outer_chain_is_none_of_the_inner_ones_business() {
    let (harness, client) = stacked(|chain| chain, Script::status(500), Script::status(200));
    let request = client.post("https://out.test/v1/x").body("{}");
    let response = request.with_extension(Route::only(["in"])).send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(harness.all_asked(), ["c", "d"]);
}

#[tokio::test(start_paused = true)]
async fn a_key_of_an_inner_chain_is_not_shown_by_the_outer_one() {
    let echo = || Script::answer(401, &[], || Body::from("bad keys: key-of-c, key-of-d"));
    let (harness, client) = stacked(|chain| chain.on_exhausted(Exhausted::Error), echo(), echo());
    harness.tell("out", Script::status(500));
    let mut extensions = Extensions::new();
    let request = client.post("https://out.test/v1/x").body("{}").build().unwrap();
    let result = client.execute_with_extensions(request, &mut extensions).await;
    let text = shown(&result, &extensions);
    assert!(!text.contains("key-of-"), "{text}");

    // Nor one in a success that the outer chain finds to be none.
    let json = ("content-type", "application/json".to_owned());
    let flaw = r#"{"error":{"message":"bad keys: key-of-c, key-of-d"}}"#;
    let echo = || Script::answer(200, std::slice::from_ref(&json), move || flaw.into());
    let outer = |chain: ProviderChainBuilder| {
        chain.inspect(Inspect::errors_in_success()).on_exhausted(Exhausted::Error)
    };
    let (harness, client) = stacked(outer, echo(), echo());
    harness.tell("out", Script::status(500));
    let mut extensions = Extensions::new();
    let request = client.post("https://out.test/v1/x").body("{}").build().unwrap();
    let result = client.execute_with_extensions(request, &mut extensions).await;
    let text = shown(&result, &extensions);
    assert!(text.contains("error_in_success") && !text.contains("key-of-"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn what_an_inner_chain_may_have_had_processed_is_not_sent_again_where_that_is_not_wanted() {
    type Settings = fn(ProviderChainBuilder) -> ProviderChainBuilder;
    let unread: Settings = |chain| chain.error_body_timeout(Duration::ZERO);
    let inspected: Settings = |chain| chain.inspect(Inspect::errors_in_success());
    let flaw = r#"{"error":{"message":"none","code":429}}"#;
    for (settings, status, body) in [
        ((|chain| chain) as Settings, 429, ""),
        // A failed answer whose body is not read, and an error in a success.
        (unread, 429, ""),
        (inspected, 200, flaw),
    ] {
        for (c, processed) in [(Script::fail(), true), (Script::status(429), status == 200)] {
            let json = ("content-type", "application/json".to_owned());
            let d = Script::answer(status, &[json], move || body.into());
            let outer = |chain: ProviderChainBuilder| {
                settings(chain).on_ambiguous(Ambiguous::IdempotentOnly)
            };
            let (harness, client) = stacked(outer, c, d);
            // `c` may have processed it (an error of unknown kind), and `d` says that it did not.
            let sent = client.post("https://out.test/v1/x").body("{}").send().await.unwrap();
            let (asked, report) = (harness.all_asked(), Report::of(&sent).unwrap());
            assert_eq!(report.attempts()[0].maybe_processed(), processed, "{report}");
            let all: &[&str] = if processed { &["c", "d"] } else { &["c", "d", "out"] };
            assert_eq!(asked, all, "{status} {report}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_stacked_chain_that_fails_has_the_reason_of_its_last_attempt() {
    for (script, reason) in
        [(Script::hang(), Reason::Timeout), (Script::status(500), Reason::Other)]
    {
        let inner = |chain: ProviderChainBuilder| {
            chain.attempt_timeout(Duration::from_secs(1)).on_exhausted(Exhausted::Error)
        };
        let (_, client) = stacked_on(inner, |chain| chain, script.clone(), script);
        let response = client.post("https://out.test/v1/x").body("{}").send().await.unwrap();
        let report = Report::of(&response).unwrap();
        assert_eq!(report.attempts()[0].reason(), reason, "{report}");
    }
}

// Redirects.

// What held.

#[tokio::test(start_paused = true)]
async fn a_response_that_is_forgotten_holds_no_lease() {
    const HELLO: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"Hello\"}}]}\n\n";
    let headers = [("content-type", "text/event-stream".to_owned())];
    let harness = Harness::with(
        [("a", Script::answer(200, &headers, || HELLO.into())), ("b", Script::status(200))],
        |chain| chain.inspect(Inspect::errors_in_success()),
    );
    let until = harness.break_it("a").await;
    sleep_until(until).await;
    let probe = harness.post().send().await.unwrap();
    assert_eq!(Report::of(&probe).unwrap().served_by(), Some("a"));
    std::mem::forget(probe);
    assert_eq!(harness.state("a"), State::Closed);
    assert_eq!(harness.ask().await, "a");
    // What is never dropped is in flight for ever, and that is all.
    assert_eq!(harness.of_provider("a").in_flight(), 1);
}

#[tokio::test]
async fn headers_in_any_number_and_case_and_form_stay_behind() {
    let harness = WireHarness::two(Answer::error(500, "no"), Answer::ok()).await;
    let mine = harness.secret("mine");
    let client = harness.client();
    let mut headers = reqwest::header::HeaderMap::new();
    for name in ["X-API-Key", "x-api-key", "Cookie", "COOKIE", "API-KEY", "Authorization"] {
        headers.append(
            reqwest::header::HeaderName::from_bytes(name.as_bytes()).unwrap(),
            mine.parse().unwrap(),
        );
    }
    // Not ASCII; and named as hop-by-hop, which is no way to be kept.
    headers.append("x-goog-api-key", [mine.as_bytes(), b"\xff"].concat().try_into().unwrap());
    headers.append("connection", "x-api-key, authorization".parse().unwrap());
    let mut sensitive = reqwest::header::HeaderValue::from_str(&mine).unwrap();
    sensitive.set_sensitive(true);
    headers.append("x-mixed", "plain".parse().unwrap());
    headers.append("x-mixed", sensitive);
    let url =
        harness.actors[1].url(&format!("/x?K%65y={mine}&API%5FKEY={mine}&%61pi-key={mine}&a=1"));
    let response = client.post(url).headers(headers).send().await.unwrap();
    assert_eq!(response.status(), 200);
    for actor in 0..2 {
        assert_eq!(harness.requests(actor)[0].target, "/v1/x?a=1");
    }
    harness.assert_asked(&[1, 1]);
}

#[tokio::test(start_paused = true)]
async fn a_url_is_never_taken_for_another_that_differs_in_what_is_not_sent() {
    let harness = Harness::of([("a", Script::status(200))]);
    let mut asked = 0;
    for _ in 0..3 {
        for url in [
            "https://caller.test/v1/x",
            "https://caller.test/v1/x#f",
            "https://me@caller.test/v1/x",
            "https://caller.test:443/v1/x",
        ] {
            assert_eq!(terminal::served_by(harness.client.get(url).send().await), "a");
            asked += 1;
        }
        for url in [
            "https://caller.test:444/v1/x",
            "http://caller.test/v1/x",
            "https://caller.test./v1/x",
            "https://caller.test/v1%2Fx",
            "https://caller.test/%761/x",
            "https://caller.test/v1;/x",
        ] {
            let response = harness.client.get(url).send().await.unwrap();
            assert!(Report::of(&response).is_none(), "{url}");
        }
    }
    assert_eq!(harness.asked("a"), asked);
}

#[tokio::test(start_paused = true)]
async fn the_order_may_be_turned_round_from_within_every_event() {
    let chain: Arc<std::sync::OnceLock<ProviderChain>> = Arc::default();
    let seen = chain.clone();
    let count = AtomicUsize::new(0);
    let harness =
        Harness::with([("a", Script::status(500)), ("b", Script::status(200))], |builder| {
            builder.observe(move |event| {
                let Some(chain) = seen.get() else { return };
                let names = if count.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) {
                    ["b", "a"]
                } else {
                    ["a", "b"]
                };
                chain.set_order(names).unwrap();
                if let Event::AttemptStarted { provider, .. } = event {
                    chain.isolate(provider).unwrap();
                    chain.restore(provider).unwrap();
                }
            })
        });
    chain.set(harness.chain.clone()).unwrap();
    for _ in 0..50 {
        assert_eq!(harness.ask().await, "b");
    }
    for name in ["a", "b"] {
        assert_eq!(harness.of_provider(name).in_flight(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_hint_of_any_size_rests_for_five_minutes_at_most() {
    for hint in ["18446744073709551616", &"9".repeat(4000), "1.7976931348623157", "0.0000000001"] {
        let harness = Harness::of([
            ("a", Script::hint(429, "retry-after", hint)),
            ("b", Script::status(200)),
        ]);
        assert_eq!(harness.ask().await, "b");
        let State::CoolingDown { until, .. } = harness.state("a") else { panic!("{hint}") };
        let rest = until - terminal::now();
        assert!((secs(1)..=secs(300)).contains(&rest), "{rest:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_total_timeout_of_a_nanosecond_is_a_timeout_and_leaves_nothing_in_flight() {
    let harness = Harness::with([("a", Script::hang())], |chain| {
        chain.total_timeout(Duration::from_nanos(1))
    });
    let error = harness.post().send().await.unwrap_err();
    assert!(FailoverError::find(&error).unwrap().is_timeout());
    assert_eq!(harness.of_provider("a").in_flight(), 0);
}

#[tokio::test]
async fn a_post_that_was_followed_elsewhere_is_not_sent_again_where_that_is_not_wanted() {
    let elsewhere = Server::start(Answer::ok()).await;
    let to = elsewhere.base_url("/v2/chat/completions");
    let harness = WireHarness::two(Answer::status(307).header("location", to), Answer::ok()).await;
    let client = client(harness.chain().on_ambiguous(Ambiguous::IdempotentOnly));
    let _ = harness.post(&client).send().await;
    // The server that it led to has answered 200: processed twice.
    let times = elsewhere.requests().len() + harness.requests(1).len();
    assert_eq!(times, 1);
}

#[tokio::test(start_paused = true)]
async fn a_query_that_is_cut_in_strange_places_gives_no_key_away() {
    use std::sync::Mutex;
    #[derive(Clone, Default)]
    struct Urls(Arc<Mutex<Vec<String>>>);
    #[async_trait::async_trait]
    impl Middleware for Urls {
        async fn handle(
            &self,
            request: Request,
            _: &mut Extensions,
            _: Next<'_>,
        ) -> reqwest_middleware::Result<Response> {
            self.0.lock().unwrap().push(request.url().to_string());
            Ok(http::Response::new("").into())
        }
    }
    let urls = Urls::default();
    let chain =
        ProviderChain::builder([keyless("a").api_key_query("T o+k", "own-key"), provider("b")]);
    let chain = chain.claim("https://caller.test/v1").build().unwrap();
    let client = ClientBuilder::new(plain()).with(chain).with(urls.clone()).build();
    for query in [
        "&&key=SECRET&&",
        "key=SECRET=SECRET",
        "key==SECRET",
        "KEY=SECRET&key=SECRET",
        "a=1?&key=SECRET",
        "t%20O%2bk=SECRET",
        "t+o%2BK=SECRET",
        "access%5Ftoken=SECRET#key=SECRET",
    ] {
        let response = client.get(format!("https://caller.test/v1/x?{query}")).send().await;
        let response = response.unwrap();
        assert!(!response.url().as_str().contains("own-key"));
        let sent = urls.0.lock().unwrap().pop().unwrap();
        assert!(!sent.contains("SECRET"), "{query}: {sent}");
        assert!(sent.ends_with("T+o%2Bk=own-key"), "{query}: {sent}");
    }
}

#[tokio::test]
async fn a_stream_that_the_callers_own_timeout_cuts_is_no_fault_of_the_provider() {
    const HELLO: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"Hello\"}}]}\n\n";
    let talks = Answer::status(200)
        .header("content-type", "text/event-stream")
        .chunked([support::Part::Forever(HELLO.into(), ms(10))]);
    let harness = WireHarness::two(talks, Answer::ok()).await;
    let inspect = Inspect::errors_in_success();
    let chain = harness.chain().inspect(inspect).build().unwrap();
    let client = ClientBuilder::new(plain()).with(chain.clone()).build();
    for _ in 0..6 {
        // reqwest's timeout of a request includes its body, and this one talks on and on.
        let response = harness.post(&client).timeout(ms(120)).send().await.unwrap();
        let _ = response.bytes().await;
    }
    assert_eq!(chain.snapshot().providers()[0].state(), State::Closed);
}
