//! What a call's caller was given, held against what the providers wrote down.

use std::time::{Duration, Instant};

use http::Extensions;
use reqwest::Response;
use reqwest_failover::{Attempt, Exhausted, FailoverError, Reason, Report};
use reqwest_middleware::Result;

use crate::answers::{Meaning, Price, number};
use crate::call::Call;
use crate::harness::ANY_KEY;
use crate::ledger::Ledger;
use crate::settings::{CLIENTS_TIMEOUT_FIRST, NAMES, Settings};
use crate::turn::index;

/// No answer was given, and the report that the observer saw says so.
pub(crate) fn check_dropped(ledger: &mut Ledger, settings: &Settings, call: &Call) {
    if settings.watched {
        let reports = call.reports.len();
        ledger.check(reports == 1, || format!("{reports} reports of a dropped call"));
        check_told(ledger, call, (0, 0));
    }
    for report in &call.reports {
        check_report(ledger, call, report);
    }
}

/// The request was told to be rejected, and to be exhausted, so often.
fn check_told(ledger: &mut Ledger, call: &Call, expected: (usize, usize)) {
    let told = (call.rejections, call.exhaustions);
    ledger.check(told == expected, || format!("rejected, exhausted: {told:?}, not {expected:?}"));
}

fn check_report(ledger: &mut Ledger, call: &Call, report: &Report) {
    let (told, made) = (sent(report).count(), call.entries.len());
    ledger.check(told == made, || format!("reports {told} attempts of {made}: {report}"));
    // In the order in which they ended, and the one that served at the end.
    let served = call.served().filter(|_| !call.dropped);
    let losers = call.ended.iter().copied().filter(|at| Some(*at) != served);
    let ended = losers.chain(served).map(|at| &call.entries[at]);
    for (attempt, entry) in sent(report).zip(ended) {
        let told = (
            attempt.reason(),
            number(attempt.status()),
            attempt.elapsed(),
            attempt.maybe_processed(),
        );
        let holds = attempt.provider() == NAMES[entry.provider]
            && Some(told) == entry.expected()
            && attempt.is_replayable() == call.replayable;
        ledger.check(holds, || format!("{report}: {told:?} is not {:?}", entry.expected()));
    }
    if ledger.current.is_multiple_of(16) {
        let text = format!("{report:?} {report}");
        ledger.check(!text.contains(ANY_KEY), || format!("a key in {text}"));
    }
}

/// The attempts of a report that were sent. One that was made at the very moment in which another one
/// served was not.
fn sent(report: &Report) -> impl Iterator<Item = &Attempt> {
    report.attempts().iter().filter(|attempt| !is_unsent(attempt))
}

fn is_unsent(attempt: &Attempt) -> bool {
    attempt.reason() == Reason::Abandoned
        && attempt.elapsed().is_zero()
        && !attempt.maybe_processed()
}

pub(crate) fn check_outcome(
    ledger: &mut Ledger,
    settings: &Settings,
    call: &Call,
    result: &Result<Response>,
    extensions: &Extensions,
    now: Instant,
) {
    let Some(report) = Report::from_extensions(extensions) else {
        return ledger.check(false, || "leaves no report".to_owned());
    };
    check_report(ledger, call, report);
    let elapsed = now.saturating_duration_since(call.begun);
    let grace = if call.is_short { CLIENTS_TIMEOUT_FIRST } else { Duration::ZERO };
    let time = call.deadline - call.begun + grace;
    ledger.check(elapsed <= time, || format!("takes {elapsed:?} of {time:?}"));
    ledger.check(report.elapsed() == elapsed, || {
        format!("reports {:?} of {elapsed:?}", report.elapsed())
    });
    if settings.watched {
        let told = (call.started, call.finished, call.reports.len());
        let made = report.attempts().len();
        ledger.check(told == (made, made, 1), || format!("{made} attempts are told as {told:?}"));
    }
    for unsent in report.attempts().iter().filter(|attempt| is_unsent(attempt)) {
        let served = call.served().is_some();
        ledger.check(served && settings.hedge.is_some(), || format!("{unsent} is not sent"));
        ledger.providers[index(unsent.provider())].attempts += 1;
    }
    let last = call.last_ended().and_then(|entry| entry.end);
    let ended = last.map_or(call.begun, |end| end.at);
    let late = now.saturating_duration_since(ended);
    ledger.check(late.is_zero(), || format!("{report}: is answered {late:?} late"));
    let status = result.as_ref().ok().map(|response| response.status().as_u16());
    let served = call.served().map(|at| &call.entries[at]);
    let server = served.map(|entry| NAMES[entry.provider]);
    ledger.check(report.served_by() == server, || format!("{report}: served by {server:?}"));
    if let Some(entry) = served {
        ledger.by_fallback += u64::from(call.order.first() != Some(&entry.provider));
        check_told(ledger, call, (0, 0));
        let expected = entry.end.and_then(|end| end.meaning?.status);
        return ledger.check(status == expected, || format!("{report}: is given {status:?}"));
    }
    let reason = Ledger::reason_to_stop(call);
    ledger.check(reason.is_some(), || format!("{report}: gives up too soon"));
    let is_refusal = |meaning: Meaning| meaning.price == Price::Unhurt && meaning.status.is_some();
    let refuses =
        |at: &usize| call.entries[*at].end.and_then(|end| end.meaning).is_some_and(is_refusal);
    let rejected = !call.ended.is_empty() && call.ended.iter().all(refuses);
    ledger.rejected += u64::from(rejected);
    ledger.exhausted += u64::from(!rejected);
    if settings.watched {
        check_told(ledger, call, (usize::from(rejected), usize::from(!rejected)));
    }
    let own = result.as_ref().err().and_then(|error| FailoverError::find(error));
    let left = last.and_then(|end| end.meaning).map(|meaning| (meaning.reason, meaning.status));
    let untouched = match left {
        _ if settings.exhausted == Exhausted::Error => false,
        None => false,
        Some((Reason::Redirected, Some(200))) => false,
        Some((reason, None)) => matches!(reason, Reason::Other | Reason::Connect),
        Some(_) => true,
    };
    let expected = match untouched {
        true => own.is_none() && status == left.and_then(|(_, status)| status),
        false => own.is_some(),
    };
    ledger.check(expected, || format!("{report}: not served, is given {status:?}, {own:?}"));
    if let Some(own) = own {
        check_report(ledger, call, own.report());
    }
}
