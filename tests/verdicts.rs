//! What each outcome means for the request: every status and every flaw of a success, whether the
//! provider may have processed it, and whether the next one is asked. And what a hedge may replace: never
//! a healthy answer by an error, whatever the judge accepts.

use reqwest_failover_testing::terminal;

use std::fs;
use std::path::Path;

use futures_util::stream;
use reqwest::Body;
use reqwest_failover::{
    Ambiguous, Breaker, Fault, Flaw, Hedge, Inspect, Outcome, ProviderChainBuilder, Replay, Report,
    State, Verdict,
};

use terminal::{Harness, Script, lock, ms, provider, secs, silence};

// Processed or not, and the next provider.

/// How a chain and a request treat what may have been processed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Caution {
    Default,
    IdempotentOnly,
    /// The same, and the request has the extension [`Replay::allowed`].
    ReplayAllowed,
}

use Caution::{Default, IdempotentOnly, ReplayAllowed};

impl Caution {
    const EACH: [Self; 3] = [Default, IdempotentOnly, ReplayAllowed];

    fn set(self, chain: ProviderChainBuilder) -> ProviderChainBuilder {
        match self {
            Default => chain,
            IdempotentOnly | ReplayAllowed => chain.on_ambiguous(Ambiguous::IdempotentOnly),
        }
    }

    /// Whether the next provider is asked after a failure.
    fn asks_next(self, maybe_processed: bool) -> bool {
        self != IdempotentOnly || !maybe_processed
    }
}

/// A chain that looks into its answers and forgets what it has seen of its providers' health.
fn inspecting(caution: Caution) -> Harness {
    Harness::with([("a", Script::status(200)), ("b", healthy())], |chain| {
        let inspect = Inspect::errors_in_success()
            .empty_answers()
            .first_content_timeout(secs(1))
            .also(|answer| (answer.body() == APOLOGY.as_bytes()).then(|| Flaw::new("an apology")));
        caution.set(chain).inspect(inspect).attempt_timeout(secs(5)).without_health()
    })
}

const APOLOGY: &str = r#"{"choices":[{"message":{"content":"Sorry!"},"finish_reason":"stop"}]}"#;

fn healthy() -> Script {
    json(200, r#"{"choices":[{"message":{"content":"Hello"},"finish_reason":"stop"}]}"#)
}

fn json(status: u16, body: &'static str) -> Script {
    Script::answer(status, &[("content-type", "application/json".into())], || body.into())
}

/// The first provider does this with a POST: is the request marked as maybe processed, and is the next
/// provider asked? Checks that this follows from what is expected: `None` for a success.
async fn check(harness: &Harness, caution: Caution, name: &str, a: Script, maybe: Option<bool>) {
    harness.tell("a", a);
    let asked = harness.asked("b");
    let request = harness.post().header("content-type", "application/json").build().unwrap();
    let mut extensions = http::Extensions::new();
    if caution == ReplayAllowed {
        extensions.insert(Replay::allowed());
    }
    let result = harness.client.execute_with_extensions(request, &mut extensions).await;
    let report = Report::from_extensions(&extensions).unwrap();
    let first = &report.attempts()[0];
    assert_eq!(first.provider(), "a");
    assert_eq!(first.maybe_processed(), maybe == Some(true), "{name}, {caution:?}: {report}");
    let goes_on = maybe.is_some_and(|maybe| caution.asks_next(maybe));
    let next_asked = harness.asked("b") - asked == 1;
    assert_eq!(next_asked, goes_on, "{name}, {caution:?}: {report}");
    let server = match (goes_on, maybe) {
        (true, _) => Some("b"),
        (false, None) => Some("a"),
        (false, Some(_)) => None,
    };
    assert_eq!(report.served_by(), server, "{name}, {caution:?}: {report}");
    drop(result);
}

/// What proves that nothing was processed, as the guide lists it.
fn proves_unprocessed(status: u16) -> bool {
    const LISTED: [u16; 7] = [307, 308, 429, 503, 521, 522, 523];
    LISTED.contains(&status) || (400..500).contains(&status) && ![408, 499].contains(&status)
}

#[tokio::test(start_paused = true)]
async fn every_status_is_marked_and_sent_on_by_the_list_of_what_proves_nothing_was_processed() {
    let mut counts = [0; 3];
    for caution in Caution::EACH {
        let harness = inspecting(caution);
        for status in 100..=599 {
            let (script, maybe) = match status {
                200..=299 | 304 => (healthy_with(status), None),
                _ => (json(status, "{}"), Some(!proves_unprocessed(status))),
            };
            check(&harness, caution, &format!("{status}"), script, maybe).await;
            counts[maybe.map_or(0, |maybe| 1 + usize::from(maybe))] += 1;
        }
    }
    let [good, unprocessed, maybe] = counts.map(|count| count / 3);
    println!(
        "statuses: {good} good, {unprocessed} prove that nothing was processed, {maybe} do not"
    );
    assert_eq!((good, unprocessed, maybe), (101, 104, 295));
}

/// A success with this status, in which nothing is wrong.
fn healthy_with(status: u16) -> Script {
    match status {
        204 | 205 | 304 => Script::status(status),
        _ => json(status, r#"{"choices":[{"message":{"content":"Hello"}}]}"#),
    }
}

/// A 2xx in which something is wrong, each kind that the guide knows.
fn flaws() -> Vec<(&'static str, Script)> {
    let typed = |kind: &'static str, body: fn() -> Body| {
        Script::answer(200, &[("content-type", kind.into())], body)
    };
    let events = |body| typed("text/event-stream", body);
    vec![
        ("an error", json(200, r#"{"error":{"message":"no"}}"#)),
        ("a rate limit", json(200, r#"{"error":{"code":429,"message":"slow down"}}"#)),
        ("a refusal", json(200, r#"{"error":{"code":"context_length_exceeded"}}"#)),
        ("a dead key", json(200, r#"{"error":{"code":"invalid_api_key"}}"#)),
        ("an empty body", json(200, "")),
        ("an answer without content", json(200, r#"{"choices":[]}"#)),
        ("a web page", typed("text/html", || "<h1>Welcome</h1>".into())),
        ("a body that breaks off", typed("application/json", || broken("{\"choices\":"))),
        ("a check of one's own", json(200, APOLOGY)),
        ("an error in a stream", events(|| "data: {\"error\":{\"message\":\"no\"}}\n\n".into())),
        ("a stream without content", events(|| "data: [DONE]\n\n".into())),
        ("a stream that breaks off", events(|| broken(": hello\n\n"))),
        ("a silent stream", events(silence)),
    ]
}

/// This much of a body, and then a failure of the transport.
fn broken(text: &'static str) -> Body {
    Body::wrap_stream(stream::iter([Ok(text), Err(std::io::Error::other("scripted"))]))
}

#[tokio::test(start_paused = true)]
async fn every_flaw_of_a_success_may_have_been_processed() {
    for caution in Caution::EACH {
        let harness = inspecting(caution);
        for (name, script) in flaws() {
            check(&harness, caution, name, script, Some(true)).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_silence_and_a_reset_may_have_been_processed_and_what_was_not_sent_was_not() {
    for caution in Caution::EACH {
        let harness = inspecting(caution);
        check(&harness, caution, "a silence", Script::hang(), Some(true)).await;
        check(&harness, caution, "a reset", Script::fail(), Some(true)).await;

        let unsent = provider("a").map_request(|_| Err("not today"));
        let scripts = [("a", Script::status(200)), ("b", healthy())];
        let harness = Harness::of_providers(vec![unsent, provider("b")], scripts, |chain| {
            caution.set(chain).without_health()
        });
        check(&harness, caution, "not sent", Script::status(200), Some(false)).await;
        assert_eq!(harness.asked("a"), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_of_an_idempotent_method_goes_on_in_any_case() {
    let harness = inspecting(IdempotentOnly);
    for status in [301, 408, 499, 500, 502, 504, 524] {
        harness.tell("a", json(status, "{}"));
        let request = harness.client.get(terminal::URL).header("accept", "application/json");
        let answer = request.send().await.unwrap();
        let report = Report::of(&answer).unwrap();
        assert!(report.attempts()[0].maybe_processed(), "{report}");
        assert_eq!(report.served_by(), Some("b"), "{report}");
    }
}

// Hedges and judges.

type Judge = fn(&Outcome<'_>) -> Verdict;

/// The presets, and every judge that the documentation shows.
const JUDGES: [(&str, Option<Judge>); 6] = [
    ("none", None),
    ("Verdict::standard", Some(Verdict::standard)),
    ("Verdict::transient", Some(Verdict::transient)),
    ("docs/recipes.md", Some(judge_of_the_recipe)),
    ("src/verdict.rs", Some(judge_of_the_verdict)),
    ("src/verdict/outcome.rs", Some(judge_of_the_outcome)),
];

fn judge_of_the_recipe(outcome: &Outcome<'_>) -> Verdict {
    match (outcome.provider(), outcome.status().map(|status| status.as_u16())) {
        ("azure", Some(400)) => Verdict::Accept,
        _ => Verdict::standard(outcome),
    }
}

fn judge_of_the_verdict(outcome: &Outcome<'_>) -> Verdict {
    match outcome.status().map(|status| status.as_u16()) {
        Some(404) => Verdict::Accept,
        Some(418) => Verdict::FailOver(Fault::Failure),
        _ => Verdict::standard(outcome),
    }
}

fn judge_of_the_outcome(outcome: &Outcome<'_>) -> Verdict {
    match outcome.code() {
        Some("context_length_exceeded") => Verdict::Accept,
        Some("content_filter" | "content_policy_violation") => Verdict::FailOver(Fault::None),
        Some("insufficient_quota") => Verdict::FailOver(Fault::Failure),
        _ => Verdict::standard(outcome),
    }
}

#[test]
fn every_judge_of_the_documentation_is_among_those_above() {
    // The package for reqwest 0.12 has a link to this folder.
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").canonicalize().unwrap();
    let root = tests.parent().unwrap();
    let mut found = Vec::new();
    let mut folders = vec![root.join("docs"), root.join("src"), root.join("examples")];
    let mut files = vec![root.join("README.md")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    for file in files {
        let Ok(text) = fs::read_to_string(&file) else { continue };
        let is_page = file.extension().is_some_and(|kind| kind == "md");
        let is_example = file.starts_with(root.join("examples"));
        let shown = |line: &&str| {
            is_page || is_example || ["///", "//!"].iter().any(|sign| line.trim().starts_with(sign))
        };
        let judges = text.lines().filter(shown).any(|line| line.contains("=> Verdict::Accept"));
        if judges {
            found.push(file.strip_prefix(root).unwrap().to_string_lossy().into_owned());
        }
    }
    found.sort();
    let names = JUDGES.iter().map(|(name, _)| *name);
    let mut known: Vec<_> = names.filter(|name| name.contains('.')).collect();
    known.sort();
    assert_eq!(found, known);
}

/// Of two attempts at once, the faster one gives this status, and the slower one 200.
struct Race {
    /// Whether the faster is the hedge, or the first.
    hedge_is_faster: bool,
    coded: bool,
    status: u16,
}

impl Race {
    /// Runs it under a judge. Returns whether the judge accepted what the faster one gave.
    async fn run(&self, name: &str, judge: Option<Judge>) -> bool {
        let Self { hedge_is_faster, coded, status } = *self;
        let body = if coded { r#"{"error":{"code":"context_length_exceeded"}}"# } else { "" };
        let faster = json(status, body);
        let slower = Script::status(200).after(ms(250));
        let scripts = match hedge_is_faster {
            true => [("slow", slower), ("azure", faster)],
            // Once the hedge is out.
            false => [("azure", faster.after(ms(150))), ("slow", slower)],
        };
        let accepted = std::sync::Arc::new(std::sync::Mutex::new(false));
        let seen = accepted.clone();
        let harness = Harness::with(scripts, |chain| {
            let chain = chain
                .hedge(Hedge::after(ms(100)).max_extra(1.0))
                // To be overtaken once would open it.
                .breaker(Breaker::default().consecutive(1));
            match judge {
                Some(judge) => chain.classify(move |outcome| {
                    let verdict = judge(outcome);
                    *lock(&seen) |= outcome.provider() == "azure" && verdict == Verdict::Accept;
                    verdict
                }),
                None => chain,
            }
        });
        let answer = harness.post().send().await.unwrap();
        let report = Report::of(&answer).unwrap();
        let what = format!("{name}, {status}, hedge faster: {hedge_is_faster}, coded: {coded}");
        let given = answer.status().as_u16();
        let is_good = *lock(&accepted) || matches!(status, 200..=299 | 304);
        if status >= 400 {
            assert_eq!(given, 200, "{what}: {report}");
            assert_eq!(report.served_by(), Some("slow"), "{what}: {report}");
            assert_eq!(harness.state("slow"), State::Closed, "{what}: it was not overtaken");
        } else {
            // A good answer may well be the faster one.
            assert!(given == 200 || given == status && is_good, "{what}: {report}");
        }
        assert_eq!(harness.asked("slow"), 1, "{what}");
        assert_eq!(harness.asked("azure"), 1, "{what}");
        *lock(&accepted)
    }
}

#[tokio::test(start_paused = true)]
async fn no_judge_lets_an_error_of_the_faster_replace_a_healthy_answer() {
    let (mut races, mut accepted) = (0, 0);
    for (name, judge) in JUDGES {
        let mut of_judge = 0;
        for status in 100..=599 {
            for (hedge_is_faster, coded) in
                [(true, false), (true, true), (false, false), (false, true)]
            {
                let race = Race { hedge_is_faster, coded, status };
                races += 1;
                of_judge += usize::from(race.run(name, judge).await && status >= 400);
            }
        }
        println!("{name}: accepted {of_judge} errors of the faster, replaced no answer");
        accepted += of_judge;
    }
    println!("races {races}, accepted errors {accepted}, replaced answers 0");
    // It proves something only where judges accept errors.
    assert!(accepted > 500, "{accepted}");
}
