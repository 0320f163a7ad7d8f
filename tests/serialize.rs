//! What a health page reads of a chain: states, snapshots and reports as JSON.

#![cfg(feature = "serde")]

use reqwest_failover_testing::terminal;

use std::time::Duration;

use reqwest_failover::{Breaker, Report, State};
use serde_json::json;
use terminal::{Harness, Script, ms, now, secs};

#[tokio::test(start_paused = true)]
async fn a_snapshot_and_a_report_are_json_with_durations_in_seconds() {
    let breaks = Breaker::default().consecutive(1).breaks(secs(40), secs(40));
    let says = Script::answer(200, &[], || "well".into());
    let slow = Script::hint(500, "x", "y").after(ms(1_500));
    let harness = Harness::with([("a", slow), ("b", says)], |chain| chain.breaker(breaks));
    let response = harness.post().send().await.unwrap();
    let report = Report::of(&response).unwrap();
    assert_eq!(
        serde_json::to_value(report).unwrap(),
        json!({
            "id": 1,
            "served_by": "b",
            "elapsed": 1.5,
            "attempts": [
                {
                    "provider": "a", "status": 500, "reason": "server_error", "code": null,
                    "message": report.attempts()[0].message(), "elapsed": 1.5, "retry_after": null,
                    "maybe_processed": true, "is_replayable": true,
                },
                {
                    "provider": "b", "status": 200, "reason": "ok", "code": null, "message": null,
                    "elapsed": 0.0, "retry_after": null, "maybe_processed": false,
                    "is_replayable": true,
                },
            ],
        })
    );
    let snapshot = harness.chain.snapshot();
    let mut shown = serde_json::to_value(&snapshot).unwrap();
    let remaining = shown["providers"][0]["remaining"].take().as_f64().unwrap();
    assert!((20.0..=40.0).contains(&remaining), "{remaining}");
    assert_eq!(
        shown,
        json!({
            "requests": 1, "served_by_fallback": 1, "fallback_ratio": null, "rejected": 0,
            "exhausted": 0, "passed_through": 0, "callback_panics": 0,
            "providers": [
                {
                    "name": "a", "state": "open", "remaining": null, "attempts": 1, "served": 0,
                    "failures": 1, "in_flight": 0, "resting_keys": [],
                },
                {
                    "name": "b", "state": "closed", "attempts": 1, "served": 1, "failures": 0,
                    "in_flight": 0, "resting_keys": [],
                },
            ],
        })
    );
    assert_eq!(snapshot.provider("b").unwrap().attempts(), 1);
    assert!(snapshot.provider("c").is_none());
}

#[tokio::test(start_paused = true)]
async fn a_request_that_was_not_served_says_why_the_others_were_not_asked() {
    let harness = Harness::of([("a", Script::fail()), ("b", Script::fail())]);
    harness.chain.isolate("b").unwrap();
    let mut extensions = http::Extensions::new();
    let request = harness.post().build().unwrap();
    let (client, _) = harness.post().build_split();
    client.execute_with_extensions(request, &mut extensions).await.unwrap_err();
    let report = serde_json::to_value(Report::from_extensions(&extensions).unwrap()).unwrap();
    assert_eq!(report["not_asked"], "b not asked: isolated");
    assert_eq!(report["served_by"], json!(null));
}

#[tokio::test(start_paused = true)]
async fn a_state_has_a_name_and_what_is_left_of_it() {
    let open = Script::status(500);
    let harness = Harness::with([("a", open)], |chain| {
        chain.breaker(Breaker::default().consecutive(1).breaks(secs(30), secs(30)))
    });
    harness.post().send().await.unwrap();
    let State::Open { until: end, .. } = harness.state("a") else { panic!("it is open") };
    let left = harness.state("a").remaining().unwrap();
    assert_eq!(left, end.saturating_duration_since(now()));
    assert_eq!(
        harness.state("a").to_string(),
        format!("open for {:.0} s", left.as_secs_f64().ceil())
    );
    tokio::time::sleep(secs(31)).await;
    assert_eq!(
        harness.state("a").remaining(),
        Some(Duration::ZERO),
        "the next request is the probe"
    );
    for (state, name) in [
        (State::Closed, "closed"),
        (State::Probing, "probing"),
        (State::AtCapacity, "at_capacity"),
        (State::Isolated, "isolated"),
    ] {
        assert_eq!((state.as_str(), state.remaining()), (name, None));
        assert_eq!(state.to_string(), name);
        assert_eq!(serde_json::to_value(state).unwrap(), json!({ "state": name }));
    }
}
