//! What a provider's circuit tells other processes, and what it takes from their reports.
//!
//! Processes that share their health behave like one that carries all their traffic. The rules:
//!
//! - **The row of failures is counted over all processes.** No other process counts for more than half of
//!   what opens a breaker, so that one with a broken network opens only its own. A success
//!   anywhere ends the row everywhere: a process reports which failures of others it has answered.
//! - **What a process has seen itself opens its own breaker as if it were alone**, whatever others say: its
//!   network may be the one that is broken.
//! - **A process reports only what it has seen itself.** What it has heard is not passed on.
//! - **Each draws its own jitter.** The first whose break ends probes, and says so; the others wait for
//!   what it finds. No lock is needed for that: a probe elsewhere is a lease that no own permit holds.
//! - **A close that is heard ends the break and no more**: the next request probes. So a report that is
//!   wrong or late costs one attempt, and reports need no common clock.
//! - **A cooldown that is heard is obeyed**: it is the provider's own word.
//! - **After an hour** in which reports have kept a provider unasked they are ignored until it was asked.
//!
//! Only durations are exchanged, and each report replaces the one before it, so that lost, repeated and
//! reordered reports do no harm.

mod rules;

use std::time::{Duration, Instant};

use super::circuit::{MOST_BREAKS, Rules};
use super::ring::after;
use super::{Changes, HealthTable, UNMOVED};

/// One of the chains that share their health, by a number that it has drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Process(pub(crate) u64);

/// What one process says of one provider, as of when it was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HealthReport {
    /// A process numbers its reports on a provider from 1 on.
    pub(crate) number: u64,
    /// How many failures it has counted; never fewer than before.
    pub(crate) failed: u32,
    /// How many of them came before a success.
    pub(crate) served: u32,
    /// While its breaker is open by what it has seen itself: what is left of the break, and how many breaks
    /// count toward its length.
    pub(crate) open: Option<(Duration, u32)>,
    /// While it was asked for a cooldown itself: what is left of it, and how many came before.
    pub(crate) cooldown: Option<(Duration, u32)>,
    /// Whether it has a probe in flight.
    pub(crate) is_probing: bool,
    /// Whether its own probe has closed its breaker just now.
    pub(crate) has_closed: bool,
    /// Up to which failure each of these processes was answered.
    pub(crate) answers: Vec<(Process, u32)>,
}

/// What other processes have not been told of a provider.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Untold {
    #[default]
    Nothing,
    /// How many failures were counted or answered.
    Counts,
    /// That it opened, closed, cools down or is being probed.
    State,
}

/// What became of a report.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// It is older than what its process has said since, or known.
    Old,
    Applied(Changes),
}

/// What a circuit knows of other processes; nothing where its chain shares no health.
#[derive(Debug, Default)]
pub(super) struct Peers(Option<Box<KnownPeers>>);

#[derive(Debug)]
struct KnownPeers {
    own: Process,
    /// That of the last own report.
    number: u64,
    /// Whether that said something.
    has_said: bool,
    /// How many failures were counted here.
    failed: u32,
    /// How many of them came before a success elsewhere.
    answered: u32,
    /// Whether a success would answer something.
    is_unanswered: bool,
    /// What is to be reported.
    untold: Untold,
    /// The failures of others that were answered here, the latest last.
    answers: Vec<(Process, u32)>,
    answered_at: Option<Instant>,
    closed_at: Option<Instant>,
    /// Since the start of the current break, half of which is never cut short by a failed probe elsewhere.
    half_break: Option<Instant>,
    /// Whether the current cooldown was asked for here.
    owns_cooldown: bool,
    /// Who holds the lease, where it is another process.
    prober: Option<Process>,
    /// Since when reports keep the provider unasked.
    on_trust_since: Option<Instant>,
    list: Vec<Peer>,
}

/// What another process has said.
#[derive(Debug)]
struct Peer {
    process: Process,
    number: u64,
    failed: u32,
    /// How many of its failures came before a success, there or elsewhere.
    answered: u32,
    /// What it says of its own breaker: when the break ends, and how many count.
    open: Option<(Instant, u32)>,
    has_closed: bool,
    /// After this, what it has said counts no more.
    until: Instant,
}

impl Peers {
    /// A probe begins or ends.
    pub(super) fn tell(&mut self) {
        if let Some(known) = &mut self.0 {
            known.untold = Untold::State;
        }
    }

    /// Whether there is something to report.
    #[inline]
    pub(super) fn is_untold(&self) -> bool {
        self.0.as_ref().is_some_and(|known| known.untold != Untold::Nothing)
    }

    /// Whether a success answers failures, here or elsewhere.
    #[inline]
    pub(super) fn is_unanswered(&self) -> bool {
        self.0.as_ref().is_some_and(|known| known.is_unanswered)
    }

    /// A success here ends the row of all.
    #[cold]
    pub(super) fn answer(&mut self, now: Instant) {
        let Some(known) = &mut self.0 else { return };
        known.is_unanswered = false;
        known.untold = known.untold.max(Untold::Counts);
        let KnownPeers { list, answers, answered_at, .. } = &mut **known;
        for peer in list.iter_mut().filter(|peer| peer.failed > peer.answered) {
            peer.answered = peer.failed;
            answers.retain(|(process, _)| *process != peer.process);
            answers.push((peer.process, peer.failed));
            *answered_at = Some(now);
        }
        answers.drain(..answers.len().saturating_sub(MOST_ANSWERS));
    }

    /// How many failures of others count toward a row that must be this long.
    pub(super) fn failures(&self, row: u32, now: Instant) -> u32 {
        let Some(known) = &self.0 else { return 0 };
        let half = row.div_ceil(2);
        let counted = |peer: &Peer| peer.failed.saturating_sub(peer.answered).min(half);
        let heard = known.list.iter().filter(|peer| peer.until > now);
        heard.map(counted).fold(0, u32::saturating_add)
    }

    /// How many breaks count toward the one that others are in.
    pub(super) fn breaks(&self, now: Instant) -> u32 {
        let breaks = self.open_elsewhere(now).map(|(_, breaks)| breaks.min(MOST_BREAKS));
        breaks.max().unwrap_or(0)
    }

    /// The breaks that others are in by what they have seen themselves.
    fn open_elsewhere(&self, now: Instant) -> impl Iterator<Item = (Instant, u32)> {
        let open = self.0.iter().flat_map(|known| &known.list).filter_map(|peer| peer.open);
        open.filter(move |(until, _)| *until > now)
    }

    /// How many of the last failures here no success elsewhere has followed: of a row of this length.
    pub(super) fn unanswered(&self, own: u32) -> u32 {
        let known = self.0.as_ref();
        known.map_or(own, |known| own.min(known.failed.saturating_sub(known.answered)))
    }

    pub(super) fn count_failures(&mut self, failures: u32) {
        let Some(known) = &mut self.0 else { return };
        known.failed = known.failed.saturating_add(failures);
        known.is_unanswered = true;
        known.untold = known.untold.max(Untold::Counts);
    }

    /// The provider was asked here: what was taken on trust is known.
    pub(super) fn record_own_outcome(&mut self) {
        if let Some(known) = &mut self.0 {
            known.on_trust_since = None;
        }
    }

    /// A break has begun, half of which is over then. Others are told where it is for what was seen here.
    pub(super) fn record_opening(&mut self, half_break: Instant, was_seen: bool) {
        let Some(known) = &mut self.0 else { return };
        known.half_break = Some(half_break);
        known.closed_at = None;
        known.prober = None;
        if was_seen {
            known.untold = Untold::State;
        }
    }

    pub(super) fn record_close(&mut self, now: Instant) {
        let Some(known) = &mut self.0 else { return };
        known.closed_at = Some(now);
        known.prober = None;
        known.is_unanswered = true;
        known.untold = Untold::State;
    }

    pub(super) fn record_cooldown(&mut self) {
        let Some(known) = &mut self.0 else { return };
        known.owns_cooldown = true;
        known.untold = Untold::State;
    }
}

impl HealthTable {
    /// Shares this provider's health with other processes from now on.
    pub(crate) fn share(&mut self, provider: usize, own: Process) {
        // It may have been shared before, and removed since: others know its numbers, which never fall.
        let known = self.providers.iter().filter_map(|provider| provider.circuit.peers.0.as_ref());
        let said = known.map(|known| (known.number, known.failed));
        let (number, failed) =
            said.fold((0, 0), |most, said| (most.0.max(said.0), most.1.max(said.1)));
        let known = KnownPeers { number, failed, ..KnownPeers::new(own) };
        self.providers[provider].circuit.peers = Peers(Some(Box::new(known)));
    }

    /// Whether there is something that other processes have not been told. It is asked once.
    #[inline]
    pub(crate) fn take_untold(&mut self) -> bool {
        std::mem::take(&mut self.untold)
    }

    /// What is to be reported of this provider.
    pub(crate) fn untold(&self, provider: usize) -> Untold {
        let known =
            self.providers.get(provider).and_then(|provider| provider.circuit.peers.0.as_ref());
        known.map_or(Untold::Nothing, |known| known.untold)
    }

    /// Whether a probe of this process is in flight.
    pub(crate) fn is_probing(&self, provider: usize, now: Instant) -> bool {
        let circuit = self.providers.get(provider).map(|provider| &provider.circuit);
        circuit.is_some_and(|circuit| circuit.has_own_probe(now))
    }

    /// What this process has to say of a provider, and for how long it counts. `None` where it has seen
    /// nothing that others should know.
    pub(crate) fn own_report(
        &mut self,
        provider: usize,
        now: Instant,
    ) -> Option<(HealthReport, Duration)> {
        self.providers.get_mut(provider)?.circuit.own_report(now)
    }

    /// Takes in what another process reports, which counts for this long.
    pub(crate) fn apply_report(
        &mut self,
        provider: usize,
        from: Process,
        report: &HealthReport,
        counts_for: Duration,
        now: Instant,
    ) -> Received {
        let Self { breaker, cooldown, providers, sequence, random, ticks, .. } = self;
        let (Some(breaker), Some(provider)) = (breaker, providers.get_mut(provider)) else {
            return Received::Old;
        };
        let tick = ticks.at(now);
        let mut rules = Rules { breaker, cooldown, random, tick, sequence: *sequence, now };
        match provider.circuit.apply_report(from, report, counts_for, &mut rules) {
            Some(moves) => Received::Applied(Changes::of(moves, UNMOVED)),
            None => Received::Old,
        }
    }
}

impl KnownPeers {
    fn new(own: Process) -> Self {
        Self {
            own,
            number: 0,
            has_said: false,
            failed: 0,
            answered: 0,
            is_unanswered: false,
            untold: Untold::Nothing,
            answers: Vec::new(),
            answered_at: None,
            closed_at: None,
            half_break: None,
            owns_cooldown: false,
            prober: None,
            on_trust_since: None,
            list: Vec::new(),
        }
    }

    /// That process, which takes the place of the one that has been quiet for longest where there are many.
    fn peer(&mut self, process: Process, now: Instant) -> &mut Peer {
        let known = self.list.iter().position(|peer| peer.process == process);
        let at = known.unwrap_or_else(|| {
            let new = Peer {
                process,
                number: 0,
                failed: 0,
                answered: 0,
                open: None,
                has_closed: false,
                until: now,
            };
            if self.list.len() < MOST_PEERS {
                self.list.push(new);
                return self.list.len() - 1;
            }
            let quiet = (0..MOST_PEERS).min_by_key(|at| self.list[*at].until).unwrap_or(0);
            self.list[quiet] = new;
            quiet
        });
        &mut self.list[at]
    }
}

impl Peer {
    /// The report may have been in the store for a while: it says what was left when it was made.
    fn take(&mut self, report: &HealthReport, counts_for: Duration, now: Instant) {
        let most_left = counts_for.saturating_sub(LEASE);
        self.number = report.number;
        self.failed = self.failed.max(report.failed);
        self.answered = self.answered.max(report.served);
        self.open = report.open.map(|(left, breaks)| (after(now, left.min(most_left)), breaks));
        self.has_closed = report.has_closed;
        self.until = after(now, counts_for);
    }
}

/// How many other processes a provider's health knows, the latest heard: as many as a store has records of.
/// One that is forgotten while its record is still there is heard again, with what was answered before.
const MOST_PEERS: usize = 1_000;
const MOST_ANSWERS: usize = 16;
/// A probe elsewhere is waited for this long after it was last heard of.
const LEASE: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests;
