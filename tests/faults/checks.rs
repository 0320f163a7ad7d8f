//! What must hold in every cell.

mod hedged;

use std::time::Duration;

use reqwest_failover::{Attempt, Reason, Report, State};

use crate::caller::{Ending, Exchange, Told};
use crate::cell::{Cell, HOLD, NAMES, Observed, READ, Setup, TOTAL};
use crate::kinds::{BodyEnd, Clock, Cost, Expected, Failure};
use crate::script::ms;
use crate::server::{Server, Wire};
use crate::support::Received;
use crate::support::canary::holds_key;

/// How much later than its deadline anything may be, on sockets.
pub(crate) const SLACK: Duration = ms(50);
/// The most memory that a cell's client may hold at once, the transport's buffers included: of a
/// failed answer 64 KiB are kept, of one that is looked into as many. A whole one would be more.
const MOST_MEMORY: u64 = 2 << 20;
/// The most that a server can get rid of by a failed answer: 64 KiB are read, or as much of the
/// headers as the transport allows, and the rest is in the buffers of two sockets.
const MOST_OF_A_BODY: u64 = 1 << 20;
const MOST_OF_HEADERS: u64 = 2 << 20;

/// Counts assertions, and keeps those that failed.
#[derive(Default)]
pub(crate) struct Checks {
    pub(crate) count: usize,
    pub(crate) failed: Vec<String>,
    /// Whether a hedge was sent while the fault lasted.
    pub(crate) hedged: bool,
}

impl Checks {
    pub(crate) fn that(&mut self, holds: bool, otherwise: impl FnOnce() -> String) {
        self.count += 1;
        if !holds {
            self.failed.push(otherwise());
        }
    }
}

/// An attempt as it is expected.
struct Wanted {
    provider: usize,
    reason: Reason,
    status: Option<u16>,
    maybe_processed: bool,
}

/// What is expected of a cell's first request.
struct Plan {
    attempts: Vec<Wanted>,
    served: bool,
    /// Every provider that was asked refused the request itself.
    rejected: bool,
}

impl Plan {
    fn of(cell: &Cell) -> Self {
        let fine = |provider| Wanted {
            provider,
            reason: Reason::Ok,
            status: Some(200),
            maybe_processed: false,
        };
        match cell.kind.expected {
            Expected::Served { .. } => {
                Self { attempts: vec![fine(0)], served: true, rejected: false }
            }
            Expected::Failure(Failure { reason, status, ambiguous, cost, .. }) => {
                let once = ambiguous && cell.setup == Setup::Careful;
                let asked = if once { 1 } else { cell.position.faulty() };
                let failed =
                    |provider| Wanted { provider, reason, status, maybe_processed: ambiguous };
                let mut attempts: Vec<_> = (0..asked).map(failed).collect();
                let served = !once && asked < NAMES.len();
                attempts.extend(served.then(|| fine(asked)));
                let rejected = !served && status.is_some() && cost == Cost::Nothing;
                Self { attempts, served, rejected }
            }
        }
    }
}

/// Whether the cell's first request is rejected, and whether it is exhausted.
pub(crate) fn unserved(cell: &Cell) -> [bool; 2] {
    let plan = Plan::of(cell);
    [!plan.served && plan.rejected, !plan.served && !plan.rejected]
}

pub(crate) fn check(checks: &mut Checks, cell: &Cell, observed: &Observed, memory: u64) {
    let mut plan = Plan::of(cell);
    let Observed { faulty, healed, .. } = observed;
    checks.hedged = faulty.is_hedged();
    match &faulty.report {
        Some(report) if faulty.is_hedged() => {
            plan = hedged::plan(checks, cell, report, plan);
            hedged::check_events(checks, faulty, report, unserved(cell));
            check_time(checks, cell, faulty, report);
            check_wire(checks, cell, observed, report);
        }
        Some(report) => {
            check_report(checks, report, &plan);
            check_time(checks, cell, faulty, report);
            check_events(checks, cell, faulty, report, &plan);
            check_wire(checks, cell, observed, report);
        }
        None => checks.that(false, || "no report".into()),
    }
    check_ending(checks, cell, faulty, &plan);
    check_health(checks, cell, faulty, &plan);
    check_requests(checks, cell, observed);
    check_keys(checks, observed);
    check_healed(checks, cell, healed);
    let tasks = observed.tasks;
    checks.that(tasks[0] == tasks[1], || format!("tasks before and after: {tasks:?}"));
    checks.that(observed.left_open == 0, || format!("{} open connections", observed.left_open));
    checks.that(memory <= MOST_MEMORY, || format!("{memory} bytes of memory at once"));
    let Some(failure) = cell.kind.expected.failure() else { return };
    let most = if failure.status.is_some() { MOST_OF_A_BODY } else { MOST_OF_HEADERS };
    for (server, sent) in observed.servers.iter().zip(&faulty.bytes_sent) {
        let name = server.seen.asked.server;
        // The last answer may be the caller's, who reads as much of it as they like.
        if matches!(&faulty.ending, Ending::Answered { server, .. } if server.as_deref() == Some(name))
        {
            continue;
        }
        checks.that(*sent <= most, || format!("{name} got rid of {sent} bytes"));
    }
}

/// The attempts, in their order, each with its outcome.
fn check_report(checks: &mut Checks, report: &Report, plan: &Plan) {
    let attempts = report.attempts();
    let wanted = plan.attempts.len();
    checks.that(attempts.len() == wanted, || format!("{wanted} attempts expected: {report}"));
    for (attempt, wanted) in attempts.iter().zip(&plan.attempts) {
        let name = NAMES[wanted.provider];
        checks.that(attempt.provider() == name, || format!("{name} was to be asked: {report}"));
        checks.that(attempt.reason() == wanted.reason, || {
            format!("{name} was to fail by {}, not {}: {report}", wanted.reason, attempt.reason())
        });
        let status = attempt.status().map(|status| status.as_u16());
        checks.that(status == wanted.status, || {
            format!("{name} was to answer {:?}: {report}", wanted.status)
        });
        checks.that(attempt.maybe_processed() == wanted.maybe_processed, || {
            format!("{name}: maybe processed should be {}: {report}", wanted.maybe_processed)
        });
        checks.that(attempt.is_replayable(), || format!("{name} is not replayable: {report}"));
        check_line(checks, attempt, wanted);
    }
    let server = plan.attempts.last().filter(|_| plan.served).map(|last| NAMES[last.provider]);
    checks.that(report.served_by() == server, || format!("{server:?} was to serve: {report}"));
}

/// What the attempt's part of the report's line says.
fn check_line(checks: &mut Checks, attempt: &Attempt, wanted: &Wanted) {
    let (name, reason) = (NAMES[wanted.provider], wanted.reason);
    let what = match (wanted.status, reason) {
        (None, _) => format!("failed ({reason})"),
        (Some(status), Reason::Redirected) => format!("{status} (redirected)"),
        // The status alone would look like a success.
        (Some(status @ 200..=299), reason) if reason != Reason::Ok => format!("{status} {reason}"),
        (Some(status), _) => status.to_string(),
    };
    let mark = if wanted.maybe_processed { " (maybe processed)" } else { "" };
    let line = format!("{name} {what} in {} ms{mark}", attempt.elapsed().as_millis());
    checks.that(attempt.to_string() == line, || format!("{attempt} was to be {line}"));
}

/// Who really answered, and how its body ended.
fn check_ending(checks: &mut Checks, cell: &Cell, exchange: &Exchange, plan: &Plan) {
    let Some(last) = plan.attempts.last() else { return };
    let told_as_error = !plan.served && cell.setup == Setup::ToldAsError;
    match &exchange.ending {
        Ending::Answered { status, server, reported, body } => {
            checks.that(!told_as_error, || format!("{status} in place of a FailoverError"));
            checks.that(Some(*status) == last.status, || format!("the caller was given {status}"));
            let name = NAMES[last.provider];
            checks.that(server.as_deref() == Some(name), || {
                format!("{name} was to answer, not {server:?}")
            });
            checks.that(*reported, || "the response has no report".into());
            let is_faulty = last.provider < cell.position.faulty();
            let wanted = match cell.kind.expected {
                Expected::Served { body, .. } if is_faulty => Some(body),
                _ => plan.served.then_some(BodyEnd::Whole),
            };
            if let Some(wanted) = wanted {
                checks.that(*body == wanted, || format!("the body ended {body:?}, not {wanted:?}"));
            }
        }
        Ending::FailoverError => {
            let nothing_else = own_timeout(cell) && last.status.is_none();
            checks.that(told_as_error || nothing_else, || "a FailoverError".into());
            checks.that(!plan.served, || "a FailoverError in place of an answer".into());
            for wanted in &plan.attempts {
                let name = NAMES[wanted.provider];
                checks.that(exchange.shown.contains(name), || format!("{name} is not named"));
            }
        }
        Ending::TransportError => {
            let right = !plan.served && !told_as_error && last.status.is_none();
            let right = right && !own_timeout(cell);
            checks.that(right, || format!("a transport error: {}", exchange.shown));
        }
    }
}

/// Whether it is the layer that ends a faulty attempt.
fn own_timeout(cell: &Cell) -> bool {
    let failure = cell.kind.expected.failure();
    failure.is_some_and(|one| one.reason == Reason::Timeout && one.clock == Clock::Layer)
}

/// No attempt, and no request, takes longer than it may; a timeout is not early either.
fn check_time(checks: &mut Checks, cell: &Cell, exchange: &Exchange, report: &Report) {
    let shortest = cell.attempt_timeout();
    let limit = if cell.kind.inspected { shortest + HOLD } else { shortest };
    let mut sum = Duration::ZERO;
    for attempt in report.attempts() {
        let took = attempt.elapsed();
        sum += took;
        let name = attempt.provider();
        checks.that(took <= limit + SLACK, || format!("{name} was given {took:?}: {report}"));
        if attempt.reason() == Reason::Timeout && own_timeout(cell) {
            let least = if attempt.status().is_some() { HOLD } else { shortest };
            checks.that(took >= least, || format!("{name} was given only {took:?}: {report}"));
        }
    }
    let took = exchange.took;
    checks.that(took <= TOTAL + SLACK, || format!("the request took {took:?}: {report}"));
    // The body of a failed answer is read, and so is a successful one where the chain inspects.
    let read = |attempt: &Attempt| match attempt.status().map(|status| status.as_u16()) {
        None => Duration::ZERO,
        Some(200) if cell.kind.inspected => HOLD,
        Some(200) => Duration::ZERO,
        Some(_) => READ,
    };
    let read: Duration = report.attempts().iter().map(read).sum();
    checks.that(took <= sum + read + SLACK, || {
        format!("the request took {took:?}, its attempts {sum:?}: {report}")
    });
}

/// Each attempt begins, ends and leads to the next; the request ends once.
fn check_events(
    checks: &mut Checks,
    cell: &Cell,
    exchange: &Exchange,
    report: &Report,
    plan: &Plan,
) {
    let mut wanted = Vec::new();
    let names: Vec<_> = report.attempts().iter().map(|one| one.provider().to_owned()).collect();
    for (at, name) in names.iter().enumerate() {
        wanted.push(Told::Started(name.clone(), at + 1));
        wanted.push(Told::Ended(name.clone()));
        if let Some(next) = names.get(at + 1) {
            wanted.push(Told::FailedOver(name.clone(), next.clone()));
        }
    }
    let unserved = if plan.rejected { Told::Rejected } else { Told::Exhausted };
    wanted.extend(report.served_by().is_none().then_some(unserved));
    wanted.push(Told::Finished);
    if let Expected::Served { cost: Cost::BrokenStream, .. } = cell.kind.expected {
        wanted.push(Told::StreamBroken(names[0].clone()));
    }
    let told: Vec<_> =
        exchange.events.iter().filter(|told| **told != Told::Other).cloned().collect();
    checks.that(told == wanted, || format!("events {told:?}, not {wanted:?}"));
}

/// Requests on the wire are those of the report: each provider at most once, and no replay except the
/// transport's own.
fn check_wire(checks: &mut Checks, cell: &Cell, observed: &Observed, report: &Report) {
    let Exchange { before, after, .. } = &observed.faulty;
    for (at, server) in observed.servers.iter().enumerate() {
        let name = NAMES[at];
        let attempts = report.attempts().iter().filter(|one| one.provider() == name).count();
        checks.that(attempts <= 1, || format!("{name} was asked {attempts} times: {report}"));
        let reachable = !server.seen.is_faulty() || Server::can_be_asked(&cell.kind.fault);
        let sent = if server.seen.is_faulty() { cell.kind.sent } else { 1 };
        let wanted = if reachable { attempts * sent } else { 0 };
        let heads = after[at] - before[at];
        // What is abandoned may not have arrived.
        let abandoned = |one: &Attempt| one.provider() == name && one.reason() == Reason::Abandoned;
        let holds = match report.attempts().iter().any(abandoned) {
            true => heads <= wanted,
            false => heads == wanted,
        };
        checks.that(holds, || format!("{name} was sent {heads} requests: {report}"));
    }
}

/// Health as the fault has it, and nothing left in flight.
fn check_health(checks: &mut Checks, cell: &Cell, exchange: &Exchange, plan: &Plan) {
    let snapshot = &exchange.snapshot;
    let served_before = u64::from(cell.kind.reused) * NAMES.len() as u64;
    let requests = snapshot.requests() - served_before;
    checks.that(requests == 1, || format!("{requests} requests were counted"));
    let counted = [snapshot.rejected(), snapshot.exhausted()];
    checks.that(counted == unserved(cell).map(u64::from), || {
        format!("rejected, exhausted: {snapshot:?}")
    });
    checks.that(snapshot.callback_panics() == 0, || "a closure panicked".into());
    let cost = cell.kind.expected.cost();
    for (at, provider) in snapshot.providers().iter().enumerate() {
        let name = provider.name();
        checks.that(provider.in_flight() == 0, || format!("{name}: {provider:?}"));
        let own = plan.attempts.iter().find(|one| one.provider == at);
        if own.is_some_and(|own| own.reason == Reason::Abandoned) {
            // Overtaken: that opens a breaker of one failure, and counts as none.
            let right = matches!(provider.state(), State::Open { .. } | State::Closed);
            checks.that(right, || format!("{name}, overtaken: {provider:?}"));
            checks.that(provider.failures() == 0, || format!("{name}: {provider:?}"));
            continue;
        }
        let failed = at < cell.position.faulty() && own.is_some();
        let right = match (cost, provider.state()) {
            (Cost::Failure, State::Open { .. }) => failed,
            (Cost::Cooldown, State::CoolingDown { .. }) => failed,
            (Cost::Nothing, State::Closed) => true,
            (Cost::BrokenStream, State::Open { .. }) => failed,
            (_, State::Closed) => !failed,
            _ => false,
        };
        checks.that(right, || format!("{name} after {cost:?}: {provider:?}"));
        let failures = u64::from(failed && matches!(cost, Cost::Failure | Cost::BrokenStream));
        checks.that(provider.failures() == failures, || format!("{name}: {provider:?}"));
    }
}

/// Every whole request is the caller's, byte for byte, apart from host and credential.
fn check_requests(checks: &mut Checks, cell: &Cell, observed: &Observed) {
    let mut first: Option<Vec<(String, String)>> = None;
    for server in &observed.servers {
        for request in server.seen.requests() {
            let name = server.seen.asked.server;
            checks.that(request.method == "POST", || format!("{name}: {}", request.method));
            let target = without_key(&request.target);
            checks.that(target == "/v1/chat/completions?trace=1", || format!("{name}: {target}"));
            checks.that(request.body == observed.body, || format!("{name} was sent another body"));
            let headers = without_credential(&request);
            let same = first.get_or_insert_with(|| headers.clone()) == &headers;
            checks.that(same, || format!("{name}: {headers:?}, not {first:?} ({cell})"));
        }
    }
}

fn without_key(target: &str) -> &str {
    target.split_once("&key=").map_or(target, |(before, _)| before)
}

fn without_credential(request: &Received) -> Vec<(String, String)> {
    let own = |name: &str| matches!(name, "host" | "authorization" | "x-api-key");
    let headers = request.headers.iter().map(|(name, value)| (name.to_ascii_lowercase(), value));
    headers.filter(|(name, _)| !own(name)).map(|(name, value)| (name, value.clone())).collect()
}

/// Each server was sent its own key and no other; no output shows any.
fn check_keys(checks: &mut Checks, observed: &Observed) {
    let Observed { sightings, servers, faulty, healed, .. } = observed;
    for server in servers {
        let asked = &server.seen.asked;
        let raw = String::from_utf8_lossy(&server.seen.raw()).into_owned();
        for key in sightings.keys() {
            let holds = holds_key(&raw, key);
            let own = *key == asked.key;
            let wanted = own && server.seen.heads() > 0;
            let name = asked.server;
            checks.that(holds == wanted, || match own {
                true => format!("{name} was sent its own key: {holds}"),
                false => format!("{name} was sent {key}"),
            });
        }
    }
    for exchange in [faulty, healed] {
        sightings.look_at("what the caller was given", &exchange.shown);
        checks.that(!exchange.shown.is_empty(), || "nothing was shown".into());
    }
    let seen = sightings.seen();
    checks.that(seen.is_empty(), || format!("keys were shown: {seen:#?}"));
    #[cfg(feature = "tracing")]
    checks.that(sightings.lines() > 0, || "nothing was logged".into());
}

/// Once the fault is over, the next request is served.
fn check_healed(checks: &mut Checks, cell: &Cell, exchange: &Exchange) {
    let report = exchange.report.as_ref();
    let served_by = report.and_then(Report::served_by).map(str::to_owned);
    checks.that(served_by.is_some(), || format!("the next request: {}", exchange.shown));
    match &exchange.ending {
        Ending::Answered { status: 200, server, body: BodyEnd::Whole, .. } => {
            checks.that(*server == served_by, || format!("{server:?}, not {served_by:?}"));
        }
        _ => checks.that(false, || format!("the next request: {}", exchange.shown)),
    }
    let sent: usize =
        exchange.after.iter().zip(&exchange.before).map(|(after, before)| after - before).sum();
    let most = 1 + usize::from(exchange.is_hedged());
    checks.that((1..=most).contains(&sent), || format!("the next request was sent {sent} times"));
    let rested = cell.kind.expected.cost() == Cost::Cooldown;
    // A hedge may serve, and a connection that went silent is noticed later than a hedged request ends.
    let may_be_silent = cell.setup == Setup::Hedged && cell.kind.wire == Wire::Http2;
    let is_back = !rested && !exchange.is_hedged() && !may_be_silent;
    if is_back {
        checks.that(served_by.as_deref() == Some(NAMES[0]), || {
            format!("the next request was served by {served_by:?}")
        });
    }
    for (at, provider) in exchange.snapshot.providers().iter().enumerate() {
        let name = provider.name();
        checks.that(provider.in_flight() == 0, || format!("{name}: {provider:?}"));
        checks.that(provider.state() != State::Probing, || format!("{name}: {provider:?}"));
        if at == 0 && is_back {
            checks.that(provider.state() == State::Closed, || format!("{name}: {provider:?}"));
        }
    }
    let finished = exchange.events.iter().filter(|told| **told == Told::Finished).count();
    checks.that(finished == 1, || format!("the next request ended {finished} times"));
}
