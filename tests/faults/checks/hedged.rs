//! What must hold where a hedge was sent: who is the faster of two is the machine's to say, and what
//! each of them is and costs is not.

use reqwest_failover::{Reason, Report};

use super::{Checks, Plan, Wanted, check_line};
use crate::caller::{Exchange, Told};
use crate::cell::{Cell, NAMES};
use crate::kinds::{Expected, Failure};

/// The attempts that were made, each of which must be one that its provider can have, and the request is
/// served if any provider can serve it. Returns the plan that was followed.
pub(super) fn plan(checks: &mut Checks, cell: &Cell, report: &Report, strict: Plan) -> Plan {
    let mut attempts = Vec::new();
    for attempt in report.attempts() {
        let provider =
            NAMES.iter().position(|name| *name == attempt.provider()).unwrap_or_default();
        let is_faulty = provider < cell.position.faulty();
        let (reason, status, ambiguous) = match cell.kind.expected {
            _ if attempt.reason() == Reason::Abandoned => (Reason::Abandoned, None, true),
            Expected::Failure(Failure { reason, status, ambiguous, .. }) if is_faulty => {
                (reason, status, ambiguous)
            }
            _ => (Reason::Ok, Some(200), false),
        };
        let status_told = attempt.status().map(|status| status.as_u16());
        let told = (attempt.reason(), status_told, attempt.maybe_processed());
        checks.that(told == (reason, status, ambiguous), || {
            format!("{} was to be {reason}, {status:?}, {ambiguous}: {report}", NAMES[provider])
        });
        checks.that(attempt.is_replayable(), || format!("is not replayable: {report}"));
        let wanted = Wanted { provider, reason, status, maybe_processed: ambiguous };
        check_line(checks, attempt, &wanted);
        attempts.push(wanted);
    }
    let abandoned = attempts.iter().filter(|one| one.reason == Reason::Abandoned).count();
    checks.that(abandoned <= 1, || format!("{abandoned} were abandoned: {report}"));
    let served = report.served_by().is_some();
    checks.that(served == strict.served, || format!("served is {served}: {report}"));
    Plan { attempts, served: strict.served, rejected: strict.rejected }
}

/// Each attempt begins and ends, and the request ends once; one hedge at most.
pub(super) fn check_events(
    checks: &mut Checks,
    exchange: &Exchange,
    report: &Report,
    [rejected, exhausted]: [bool; 2],
) {
    let told = &exchange.events;
    let count = |is: &dyn Fn(&Told) -> bool| told.iter().filter(|told| is(told)).count();
    for attempt in report.attempts() {
        let name = attempt.provider();
        let started = count(&|told| matches!(told, Told::Started(own, _) if own == name));
        let ended = count(&|told| matches!(told, Told::Ended(own) if own == name));
        checks.that((started, ended) == (1, 1), || format!("{name} in {told:?}"));
    }
    let made = report.attempts().len();
    let started = count(&|told| matches!(told, Told::Started(..)));
    checks.that(started == made, || format!("{made} attempts in {told:?}"));
    let hedges = count(&|told| matches!(told, Told::Hedged(..)));
    checks.that(hedges == 1, || format!("{hedges} hedges in {told:?}"));
    let unserved = [Told::Rejected, Told::Exhausted].map(|end| count(&|told| *told == end));
    let wanted = [rejected, exhausted].map(usize::from);
    checks.that(unserved == wanted, || format!("the end of {told:?}, not {wanted:?}"));
    let finished = count(&|told| *told == Told::Finished);
    checks.that(finished == 1, || format!("{finished} ends in {told:?}"));
}
