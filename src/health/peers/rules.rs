//! The rules: what a circuit reports, and how reports move it.

use std::time::{Duration, Instant};

use super::{HealthReport, LEASE, MOST_ANSWERS, Process, Untold};
use crate::health::circuit::{Circuit, Lease, MOST_BREAKS, Rules};
use crate::health::ring::after;
use crate::health::{Change, Moves, OpenCause, UNMOVED};

impl Circuit {
    pub(super) fn own_report(&mut self, now: Instant) -> Option<(HealthReport, Duration)> {
        let left = |until: Instant| until.saturating_duration_since(now);
        let is_probing = self.has_own_probe(now);
        let unanswered = self.peers.unanswered(self.consecutive);
        let known = self.peers.0.as_deref_mut()?;
        known.untold = Untold::Nothing;
        let is_recent = |at: Option<Instant>, for_: Duration| {
            at.map(|at| after(at, for_)).filter(|end| *end > now).map(left)
        };
        let open = self.open_until.filter(|_| unanswered > 0);
        let rest = self.rest.filter(|rest| known.owns_cooldown && rest.until > now);
        let answers_for = is_recent(known.answered_at, ANSWERS_COUNT_FOR);
        let says_something =
            known.failed > 0 || rest.is_some() || answers_for.is_some() || is_probing;
        // What was said is taken back with a report that says nothing.
        if !std::mem::replace(&mut known.has_said, says_something) && !says_something {
            return None;
        }
        known.number += 1;
        let report = HealthReport {
            number: known.number,
            failed: known.failed,
            served: known.failed.saturating_sub(unanswered),
            open: open.map(|until| (left(until), self.level)),
            cooldown: rest.map(|rest| (left(rest.until), rest.level)),
            is_probing,
            has_closed: is_recent(known.closed_at, REPORT_COUNTS_FOR).is_some(),
            answers: answers_for.map(|_| known.answers.clone()).unwrap_or_default(),
        };
        let open_for = open.map(|until| left(until).saturating_add(LEASE));
        let rest_for = rest.map(|rest| left(rest.until));
        let longest = [open_for, rest_for, answers_for].into_iter().flatten().max();
        Some((report, longest.unwrap_or_default().max(REPORT_COUNTS_FOR)))
    }

    pub(super) fn apply_report(
        &mut self,
        from: Process,
        report: &HealthReport,
        counts_for: Duration,
        rules: &mut Rules<'_>,
    ) -> Option<Moves> {
        let now = rules.now;
        let known = self.peers.0.as_deref_mut()?;
        if from == known.own {
            return None;
        }
        let peer = known.peer(from, now);
        if report.number <= peer.number {
            return None;
        }
        let rose = report.failed > peer.failed;
        let closes = report.has_closed && !peer.has_closed;
        peer.take(report, counts_for, now);
        self.take_answers(report, now);
        self.take_probe(from, report, now);
        if self.is_distrusted(now) {
            return Some(UNMOVED);
        }
        let opened = match self.open_until {
            None if rose && self.row(rules) >= rules.breaker.consecutive => {
                self.open_as_heard(rules)
            }
            Some(_) if closes => {
                self.end_break(now);
                None
            }
            Some(_) if rose => self.reopen_as_heard(report, rules),
            _ => None,
        };
        let rested = report
            .cooldown
            .and_then(|(left, level)| self.rest_as_heard(left.min(counts_for), level, rules));
        let waits = self.lease.is_some_and(|lease| lease.sequence == HEARD && lease.until > now);
        let known = self.peers.0.as_deref_mut()?;
        if opened.is_some() || rested.is_some() || waits {
            known.on_trust_since.get_or_insert(now);
        }
        Some([opened, rested])
    }

    /// What was answered elsewhere is answered here, also of one's own failures.
    fn take_answers(&mut self, report: &HealthReport, now: Instant) {
        let Some(known) = self.peers.0.as_deref_mut() else { return };
        for (process, answered) in report.answers.iter().take(MOST_ANSWERS) {
            if *process == known.own {
                known.answered = known.answered.max(known.failed.min(*answered));
            } else {
                let peer = known.peer(*process, now);
                peer.answered = peer.answered.max(*answered);
            }
        }
        let heard = known.list.iter().any(|peer| peer.failed > peer.answered);
        let own = self.consecutive.min(known.failed - known.answered);
        known.is_unanswered = own > 0 || heard;
    }

    /// A probe elsewhere is a lease that no own permit holds. It ends by itself, and with the prober's next
    /// report.
    fn take_probe(&mut self, from: Process, report: &HealthReport, now: Instant) {
        let has_own = self.has_own_probe(now);
        let is_distrusted = self.is_distrusted(now);
        let Some(known) = self.peers.0.as_deref_mut() else { return };
        let shut_until = self.open_until.max(self.rest.map(|rest| rest.until));
        if !report.is_probing {
            if known.prober == Some(from) {
                known.prober = None;
                self.forget_heard_probe();
            }
        } else if let Some(shut_until) = shut_until.filter(|_| !has_own && !is_distrusted) {
            known.prober = Some(from);
            let until = after(now, LEASE).min(after(shut_until, LONGEST_WAIT));
            self.lease = Some(Lease { sequence: HEARD, until });
        }
    }

    /// No probe elsewhere is waited for any more.
    fn forget_heard_probe(&mut self) {
        self.lease = self.lease.filter(|lease| lease.sequence != HEARD);
    }

    pub(super) fn has_own_probe(&self, now: Instant) -> bool {
        self.lease.is_some_and(|lease| lease.sequence != HEARD && lease.until > now)
    }

    /// Whether reports have kept the provider unasked for so long that it must be asked.
    fn is_distrusted(&self, now: Instant) -> bool {
        let since = self.peers.0.as_ref().and_then(|known| known.on_trust_since);
        since.is_some_and(|since| now.saturating_duration_since(since) >= TRUST)
    }

    /// Other processes' failures complete the row.
    #[cold]
    fn open_as_heard(&mut self, rules: &mut Rules<'_>) -> Option<Change> {
        let longest = self.peers.open_elsewhere(rules.now).map(|(until, _)| until).max();
        let cause = OpenCause::Consecutive;
        self.open(cause, rules);
        // A process that comes to it late need not wait for longer than the others.
        let own = self.open_until?;
        let until = longest.map_or(own, |longest| after(longest, rules.jitter()).min(own));
        if until != own {
            self.open_until = Some(until);
            let half = until.saturating_duration_since(rules.now) / 2;
            self.peers.0.as_deref_mut()?.half_break = Some(after(rules.now, half));
        }
        Some(Change::Opened { until, breaks: self.level, cause })
    }

    /// A probe elsewhere has failed.
    fn reopen_as_heard(&mut self, report: &HealthReport, rules: &mut Rules<'_>) -> Option<Change> {
        let half_break = self.peers.0.as_ref()?.half_break?;
        let (_, breaks) = report.open?;
        // That one's break is not the one that this circuit is in.
        let is_next = breaks > self.level || self.level == MOST_BREAKS;
        if !is_next || self.has_own_probe(rules.now) || rules.now < half_break {
            return None;
        }
        Some(self.open(OpenCause::Probe, rules))
    }

    /// A probe elsewhere has closed the breaker there: the next request here probes.
    fn end_break(&mut self, now: Instant) {
        self.open_until = self.open_until.map(|until| until.min(now));
        self.level = self.level.saturating_sub(1);
        self.forget_heard_probe();
    }

    /// The provider has asked another process for a pause.
    fn rest_as_heard(
        &mut self,
        left: Duration,
        level: u32,
        rules: &mut Rules<'_>,
    ) -> Option<Change> {
        let length = rules.cooldown.hinted(left).min(LONGEST_HEARD_COOLDOWN);
        let until = after(rules.now, length);
        if left.is_zero() || self.rest.is_some_and(|rest| rest.until >= until) {
            return None;
        }
        let until = after(until, rules.jitter());
        let level = self.rest.map_or(0, |own| own.level).max(level.min(MOST_COOLDOWNS));
        self.rest(until, level, length, rules);
        self.peers.0.as_deref_mut()?.owns_cooldown = false;
        Some(Change::CoolingDown { until })
    }
}

impl Rules<'_> {
    /// So that one process asks before the others.
    fn jitter(&mut self) -> Duration {
        JITTER.mul_f64(self.random.f64())
    }
}

/// No permit has this number.
const HEARD: u64 = 0;
/// A probe elsewhere is never waited for longer than this after the own break or cooldown is over: the longest that an attempt takes
/// by default.
const LONGEST_WAIT: Duration = Duration::from_secs(120);
const LONGEST_HEARD_COOLDOWN: Duration = Duration::from_secs(300);
/// The most doublings of a cooldown that are taken from a report.
const MOST_COOLDOWNS: u32 = 6;
/// For so long a provider is left alone on the word of others.
const TRUST: Duration = Duration::from_secs(60 * 60);
const JITTER: Duration = Duration::from_secs(1);
const REPORT_COUNTS_FOR: Duration = Duration::from_secs(10);
const ANSWERS_COUNT_FOR: Duration = Duration::from_secs(300);
