//! What a call's caller was given, held against what the providers wrote down.

use std::time::Instant;

use http::Extensions;
use reqwest::Response;
use reqwest_failover::{Exhausted, FailoverError, Reason, Report};
use reqwest_middleware::Result;

use crate::answers::{Price, number};
use crate::harness::CALLERS_KEY;
use crate::ledger::{Call, Ledger};
use crate::settings::{KEYS, LONGEST_DRAIN, NAMES, Settings};

/// Nobody was answered, and the report that the observer saw says so.
pub(crate) fn check_dropped(ledger: &mut Ledger, settings: &Settings, call: &Call) {
    if settings.watched {
        let reports = call.reports.len();
        ledger.check(reports == 1, || format!("{reports} reports of a dropped call"));
    }
    for report in &call.reports {
        check_report(ledger, call, report);
    }
}

fn check_report(ledger: &mut Ledger, call: &Call, report: &Report) {
    let (told, sent) = (report.attempts().len(), call.entries.len());
    ledger.check(told == sent, || format!("reports {told} attempts of {sent}: {report}"));
    for (attempt, entry) in report.attempts().iter().zip(&call.entries) {
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
        let shown = KEYS.iter().any(|key| text.contains(key));
        ledger.check(!shown && !text.contains(CALLERS_KEY), || format!("a key in {text}"));
    }
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
    ledger.check(elapsed <= settings.total_timeout, || format!("takes {elapsed:?}"));
    ledger.check(report.elapsed() == elapsed, || {
        format!("reports {:?} of {elapsed:?}", report.elapsed())
    });
    if settings.watched {
        let told = (call.started, call.finished, call.reports.len());
        let sent = call.entries.len();
        ledger.check(told == (sent, sent, 1), || format!("{sent} attempts are told as {told:?}"));
    }
    let last = call.entries.last();
    let end = last.and_then(|entry| entry.end);
    let meaning = end.and_then(|end| end.meaning);
    let ended = end.map_or(call.begun, |end| end.at);
    let status = result.as_ref().ok().map(|response| response.status().as_u16());
    let late = now.saturating_duration_since(ended);
    let served = last.filter(|_| meaning.is_some_and(|meaning| meaning.price == Price::Accepted));
    let server = served.map(|entry| NAMES[entry.provider]);
    ledger.check(report.served_by() == server, || format!("{report}: served by {server:?}"));
    let own = result.as_ref().err().and_then(|error| FailoverError::find(error));
    if let Some(entry) = served {
        ledger.switched += u64::from(call.order.first() != Some(&entry.provider));
        let expected = meaning.and_then(|meaning| meaning.status);
        let holds = status == expected && late.is_zero();
        return ledger.check(holds, || format!("{report}: is given {status:?} {late:?} late"));
    }
    ledger.exhausted += 1;
    let reason = Ledger::reason_to_stop(call, settings);
    ledger.check(reason.is_some(), || format!("{report}: gives up too soon"));
    let left = meaning.map(|meaning| (meaning.reason, meaning.status));
    let untouched = match left {
        _ if settings.exhausted == Exhausted::Error => false,
        None => false,
        Some((Reason::Redirected, Some(200))) => false,
        Some((reason, None)) => reason == Reason::Other,
        Some(_) => true,
    };
    let expected = match untouched {
        true => own.is_none() && late.is_zero() && status == left.and_then(|(_, status)| status),
        false => own.is_some() && late <= LONGEST_DRAIN,
    };
    ledger.check(expected, || {
        format!("{report}: exhausted, is given {status:?}, {own:?}, {late:?} late")
    });
    if let Some(own) = own {
        check_report(ledger, call, own.report());
    }
}
