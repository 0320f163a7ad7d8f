//! What the metrics say of a cell: as much as its reports, and no key.

use metrics_util::debugging::DebuggingRecorder;
use reqwest_failover::{Attempt, Report};

use crate::cell::{Cell, NAMES, Observed};
use crate::checks::{Checks, unserved};
use crate::readings::Readings;
use crate::support::canary::holds_key;

pub(crate) fn check(
    checks: &mut Checks,
    cell: &Cell,
    observed: &Observed,
    recorder: &DebuggingRecorder,
) {
    let readings = Readings::take(&recorder.snapshotter());
    let text = format!("{readings:?}");
    for key in observed.sightings.keys() {
        checks.that(!holds_key(&text, key), || format!("{key} is in the metrics: {text}"));
    }
    let reports = [&observed.faulty.report, &observed.healed.report];
    let attempts = || reports.iter().copied().flatten().flat_map(Report::attempts);
    let before = if cell.kind.reused { NAMES.len() } else { 0 };
    let ambiguous = |attempt: &&Attempt| attempt.maybe_processed();
    let [rejected, exhausted] = unserved(cell).map(usize::from);
    for (name, wanted) in [
        ("failover_requests_total", before + reports.len()),
        ("failover_attempts_total", before + attempts().count()),
        ("failover_maybe_processed_total", attempts().filter(ambiguous).count()),
        ("failover_rejected_total", rejected),
        ("failover_exhausted_total", exhausted),
        ("failover_passed_through_total", 0),
    ] {
        let counted = readings.total(name);
        checks.that(counted == wanted as u64, || format!("{name} is {counted}, not {wanted}"));
    }
}
