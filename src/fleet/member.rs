//! One process's part in its fleet: what it writes and when, and what it makes of what it reads.
//!
//! A pure state machine, which is told `now`. The task does what it says.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::Record;
use super::report::{Command, Said, Subject, Version, health_record};
use crate::health::{HealthReport, HealthTable, Process, Untold, after, doubled};

/// What a process has told its fleet and heard from it.
pub(crate) struct Member {
    own: Process,
    random: fastrand::Rng,
    /// The providers of the current list: their ids, and how records name them.
    providers: Vec<(usize, String)>,
    /// The own records and when they expire, by their keys.
    written: BTreeMap<String, (Record, Instant)>,
    /// The providers whose reports are to be written again.
    again: BTreeSet<usize>,
    /// Those of which something is still to be written before the process is synchronised.
    unsynced: BTreeSet<usize>,
    /// The commands in force, by their keys.
    commands: BTreeMap<String, Command>,
    /// Those of them that are to be written.
    unwritten: BTreeSet<String>,
    /// The others that have reported something, and until when it counts.
    others: BTreeMap<Process, Instant>,
    budget: Budget,
    /// How many watched records are still taken in until the next poll.
    watched_left: u32,
    poll_at: Instant,
    /// How often in a row the store has failed.
    failures: u32,
}

/// What a record that was read is for this process.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    Report {
        provider: usize,
        process: Process,
        report: HealthReport,
    },
    /// An operator of another process wants this of all.
    Command(Subject),
    /// It is this process's own, old, or about a provider that the chain does not have.
    Nothing,
    /// It is in no format that this version reads.
    Unread,
}

/// What is to be written next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Write {
    pub(crate) record: Record,
    pub(crate) ttl: Duration,
}

/// How many records may be written now. Some of them are kept for those that say more than a count.
struct Budget {
    left: f64,
    as_of: Instant,
}

impl Member {
    pub(crate) fn new(own: Process, now: Instant) -> Self {
        Self {
            own,
            random: fastrand::Rng::with_seed(own.0),
            providers: Vec::new(),
            written: BTreeMap::new(),
            again: BTreeSet::new(),
            unsynced: BTreeSet::new(),
            commands: BTreeMap::new(),
            unwritten: BTreeSet::new(),
            others: BTreeMap::new(),
            budget: Budget { left: Budget::MOST, as_of: now },
            watched_left: MOST_WATCHED,
            poll_at: now,
            failures: 0,
        }
    }

    /// The chain has these providers now. Returns the commands that are in force for them.
    pub(crate) fn set_providers(&mut self, providers: Vec<(usize, String)>) -> Vec<Subject> {
        let has = |id: &usize| providers.iter().any(|(known, _)| known == id);
        self.again.retain(has);
        self.unsynced.retain(has);
        self.providers = providers;
        let in_force = self.commands.values().map(|command| command.subject.clone());
        in_force.filter(|subject| matches!(subject, Subject::Isolated { .. })).collect()
    }

    /// An operator of this process wants this of all.
    pub(crate) fn command(&mut self, subject: Subject) {
        let mut command = Command { subject, version: Version::default() };
        let key = command.subject.key();
        let known = self.commands.get(&key).map_or(0, |known| known.version.number);
        command.version = Version { number: known.saturating_add(1), by: self.own.0 };
        self.commands.insert(key.clone(), command);
        self.unwritten.insert(key);
    }

    /// What is to be written now, if anything is. It counts as written, until the store
    /// [fails](Self::fail).
    pub(crate) fn next_write(&mut self, health: &mut HealthTable, now: Instant) -> Option<Write> {
        if let Some(key) = self.unwritten.pop_first() {
            let record = self.commands.get(&key)?.record()?;
            return Some(Write { record, ttl: COMMANDS_COUNT_FOR });
        }
        loop {
            let untold = |at: usize| self.untold(self.providers[at].0, health);
            let most_urgent = (0..self.providers.len()).max_by_key(|at| untold(*at))?;
            let untold = untold(most_urgent);
            if untold == Untold::Nothing || !self.budget.has_room(untold, now) {
                return None;
            }
            // It comes last among those that are as urgent: `max_by_key` returns the last of them.
            self.providers[..=most_urgent].rotate_right(1);
            let (id, name) = &self.providers[0];
            self.again.remove(id);
            self.unsynced.remove(id);
            if let Some((report, ttl)) = health.own_report(*id, now) {
                self.budget.left -= 1.0;
                let record = health_record(name, self.own, &report)?;
                self.written.insert(record.key().into(), (record.clone(), after(now, ttl)));
                return Some(Write { record, ttl });
            }
        }
    }

    fn untold(&self, provider: usize, health: &HealthTable) -> Untold {
        match self.again.contains(&provider) {
            true => Untold::State,
            false => health.untold(provider),
        }
    }

    /// What is to be written now must be, before the process is synchronised; what comes later need not.
    pub(crate) fn begin_sync(&mut self, health: &HealthTable) {
        let ids = self.providers.iter().map(|(id, _)| *id);
        self.unsynced = ids.filter(|id| self.untold(*id, health) != Untold::Nothing).collect();
    }

    pub(crate) fn is_synced(&self) -> bool {
        self.unsynced.is_empty() && self.unwritten.is_empty()
    }

    /// When there may be something to write that there is no room for now.
    pub(crate) fn write_at(&self, health: &HealthTable, now: Instant) -> Option<Instant> {
        let mut untold = self.providers.iter().map(|(id, _)| self.untold(*id, health));
        let waits = !self.unwritten.is_empty() || untold.any(|untold| untold != Untold::Nothing);
        waits.then(|| after(now, Budget::EVERY))
    }

    /// What was put since the watch began. `None` if there was too much of it since the last poll, which
    /// makes up for it.
    pub(crate) fn read_watched(
        &mut self,
        record: &Record,
        ttl: Duration,
        now: Instant,
    ) -> Option<Heard> {
        self.watched_left = self.watched_left.checked_sub(1)?;
        Some(self.read(record, ttl, now))
    }

    /// What the store holds. Returns what is news, and begins the time to the next poll.
    pub(crate) fn read_list(
        &mut self,
        list: &[(Record, Duration)],
        is_probing: impl Fn(usize) -> bool,
        now: Instant,
    ) -> Vec<(Heard, Duration)> {
        self.watched_left = MOST_WATCHED;
        self.poll_at = after(now, POLL.mul_f64(0.9 + 0.2 * self.random.f64()));
        self.written.retain(|_, (_, until)| *until > now);
        self.others.retain(|_, until| *until > now);
        let is_missing = |id: &usize, name: &str| {
            let written = self.written.get(&format!("{name}/{:016x}", self.own.0));
            // A write that was given up may have come later than the one after it.
            let is_lost =
                |(written, _): &(Record, _)| list.iter().all(|(record, _)| record != written);
            written.is_some_and(is_lost) || is_probing(*id)
        };
        let again = self.providers.iter().filter(|(id, name)| is_missing(id, name));
        let again: Vec<usize> = again.map(|(id, _)| *id).collect();
        self.again.extend(again);
        self.unwritten.extend(self.commands.keys().cloned());
        let mut heard = Vec::with_capacity(list.len());
        for (record, ttl) in list {
            if self.is_kept(record, *ttl) {
                self.unwritten.remove(record.key());
            }
            heard.push((self.read(record, *ttl, now), *ttl));
        }
        // So that nothing opens by what another record says was answered.
        let answers = |heard: &Heard| matches!(heard, Heard::Report { report, .. } if !report.answers.is_empty());
        heard.sort_by_key(|(heard, _)| !answers(heard));
        heard
    }

    /// Whether the store has this command, or a later one, and for long enough.
    fn is_kept(&self, record: &Record, ttl: Duration) -> bool {
        let Some(Said::Command(stored)) = Said::parse(record) else { return false };
        let is_known = |known: &Command| stored.version >= known.version;
        self.commands.get(record.key()).is_none_or(is_known) && ttl >= COMMANDS_REFRESHED_AT
    }

    /// The store has failed. Returns when to try again; all that this process has to say is written again
    /// then.
    pub(crate) fn fail(&mut self, now: Instant) -> Instant {
        let longest = doubled(FIRST_RETRY, self.failures, LONGEST_RETRY);
        self.failures = self.failures.saturating_add(1);
        self.write_all_again();
        after(now, longest.mul_f64(self.random.f64()))
    }

    pub(crate) fn write_all_again(&mut self) {
        self.again.extend(self.providers.iter().map(|(id, _)| id));
    }

    /// The store has read and written again.
    pub(crate) fn recover(&mut self) {
        self.failures = 0;
    }

    pub(crate) fn poll_at(&self) -> Instant {
        self.poll_at
    }

    /// How many other processes have reported something that still counts.
    pub(crate) fn processes_heard(&self, now: Instant) -> usize {
        self.others.values().filter(|until| **until > now).count()
    }

    fn read(&mut self, record: &Record, ttl: Duration, now: Instant) -> Heard {
        match Said::parse(record) {
            None => Heard::Unread,
            Some(Said::Command(command)) => self.obey(command),
            Some(Said::Health { process, .. }) if process == self.own => Heard::Nothing,
            Some(Said::Health { provider, process, report }) => {
                if self.others.len() < MOST_OTHERS || self.others.contains_key(&process) {
                    let until = self.others.entry(process).or_insert(now);
                    *until = after(now, ttl).max(*until);
                }
                match self.id(&provider) {
                    Some(provider) => Heard::Report { provider, process, report },
                    None => Heard::Nothing,
                }
            }
        }
    }

    /// Takes over a command that is later than the one in force.
    fn obey(&mut self, command: Command) -> Heard {
        let key = command.subject.key();
        if self.commands.get(&key).is_some_and(|known| known.version >= command.version) {
            return Heard::Nothing;
        }
        if self.commands.len() >= MOST_COMMANDS && !self.commands.contains_key(&key) {
            return Heard::Nothing;
        }
        let subject = command.subject.clone();
        self.unwritten.remove(&key);
        self.commands.insert(key, command);
        Heard::Command(subject)
    }

    fn id(&self, name: &str) -> Option<usize> {
        self.providers.iter().find(|(_, known)| known == name).map(|(id, _)| *id)
    }
}

impl Budget {
    const MOST: f64 = 20.0;
    /// What only says counts leaves this much for the rest.
    const KEPT: f64 = 5.0;
    /// The time in which there is room for one more.
    const EVERY: Duration = Duration::from_millis(50);

    fn has_room(&mut self, untold: Untold, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.as_of);
        let more = passed.as_secs_f64() / Self::EVERY.as_secs_f64();
        self.left = (self.left + more).min(Self::MOST);
        self.as_of = now;
        let kept = if untold == Untold::State { 0.0 } else { Self::KEPT };
        self.left >= kept + 1.0
    }
}

/// Between two polls, ±10 %.
const POLL: Duration = Duration::from_millis(800);
const MOST_WATCHED: u32 = 200;
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LONGEST_RETRY: Duration = Duration::from_secs(2);
const COMMANDS_COUNT_FOR: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// A command that has less than this left is written again.
const COMMANDS_REFRESHED_AT: Duration = Duration::from_secs(6 * 24 * 60 * 60);
/// No more commands are kept: as many providers as a chain may have, several times over.
const MOST_COMMANDS: usize = 1_000;
const MOST_OTHERS: usize = 1_000;

#[cfg(test)]
mod tests;
