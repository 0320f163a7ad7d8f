//! Whose turn it is: which provider a call may ask next, and when it may end.

use std::time::Instant;

use reqwest_failover::{ProviderSnapshot, Snapshot};

use crate::answers::Price;
use crate::call::{Call, End, Entry, Left};
use crate::circuit::{Gate, Precision, Shown};
use crate::ledger::Ledger;
use crate::settings::{HEALTH_KEYS, NAMES, Settings};

/// Whether a provider may be asked, as far as the snapshot shows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Standing {
    Admissible,
    /// Until then, or at least until then.
    PassedOver(Instant, Precision),
    /// As many requests are in flight as it may have.
    Full,
    Isolated,
}

/// The moment of a decision.
pub(crate) struct Scene<'a> {
    pub(crate) settings: &'a Settings,
    pub(crate) views: Vec<View>,
    pub(crate) now: Instant,
}

/// What is known of one provider: its state, and that of each health key.
pub(crate) struct View {
    pub(crate) own: Shown,
    pub(crate) keys: [Shown; HEALTH_KEYS.len()],
    /// `None` where the snapshot does not show it.
    pub(crate) in_flight: Option<u64>,
}

impl View {
    /// The state for a key, else the provider's own.
    pub(crate) fn state(&self, key: Option<usize>) -> Shown {
        key.map_or(self.own, |key| self.keys[key])
    }
}

impl Ledger {
    /// What a snapshot shows of the providers. Those that are in no list any more are as the ledger has them;
    /// one may have been `asked` just now, with a key.
    pub(crate) fn views(
        &self,
        snapshot: &Snapshot,
        asked: Option<(usize, Option<usize>)>,
        settings: &Settings,
        now: Instant,
    ) -> Vec<View> {
        let unlisted = |at: usize| {
            let shown = |key: Option<usize>| {
                let circuit = self.providers[at].circuit(key);
                let is_asked =
                    asked.is_some_and(|(asked, of)| asked == at && (key.is_none() || key == of));
                match settings.breaker {
                    None => Shown::Closed,
                    Some(_) if is_asked && circuit.is_probe_due(now) => Shown::Probing,
                    Some(_) => circuit.shown(now),
                }
            };
            let is_isolated = self.providers[at].is_isolated;
            let own = if is_isolated { Shown::Isolated } else { shown(None) };
            View { own, keys: std::array::from_fn(|key| shown(Some(key))), in_flight: None }
        };
        let listed = |provider: &ProviderSnapshot| {
            let mut keys = [Shown::Closed; HEALTH_KEYS.len()];
            for (key, state) in provider.resting_keys() {
                keys[key_index(key)] = state.into();
            }
            View { own: provider.state().into(), keys, in_flight: Some(provider.in_flight()) }
        };
        let view = |at| snapshot.provider(NAMES[at]).map_or_else(|| unlisted(at), listed);
        (0..self.providers.len()).map(view).collect()
    }

    /// The providers that this call may still ask, apart from this one.
    pub(crate) fn others(
        &self,
        call: &Call,
        apart_from: Option<usize>,
        scene: &Scene<'_>,
    ) -> Vec<(usize, Standing)> {
        let host = |provider: usize| scene.settings.providers[provider].host;
        let excluded = |provider: usize| {
            let excludes = |entry: &Entry| {
                entry.provider == provider
                    || entry.is_unreachable() && host(entry.provider) == host(provider)
            };
            call.entries.iter().any(excludes)
        };
        let may_probe = call.replayable && call.in_flight() == 0;
        call.order
            .iter()
            .filter(|provider| Some(**provider) != apart_from && !excluded(**provider))
            .map(|&other| (other, self.standing(other, call.key, may_probe, scene)))
            .filter(|(_, standing)| *standing != Standing::Isolated)
            .collect()
    }

    fn gate(&self, provider: usize, key: Option<usize>, scene: &Scene<'_>) -> Gate {
        let (account, view) = (&self.providers[provider], &scene.views[provider]);
        let gate = |key| account.circuit(key).gate(view.state(key), scene.now);
        key.map_or(gate(None), |key| gate(None).and(gate(Some(key))))
    }

    /// How a provider stands for a request with this key.
    pub(crate) fn standing(
        &self,
        provider: usize,
        key: Option<usize>,
        may_probe: bool,
        scene: &Scene<'_>,
    ) -> Standing {
        match self.gate(provider, key, scene) {
            _ if scene.views[provider].own == Shown::Isolated => Standing::Isolated,
            _ if self.is_full(provider, scene.settings) => Standing::Full,
            Gate::Open => Standing::Admissible,
            Gate::ToProbe if may_probe => Standing::Admissible,
            Gate::ToProbe => Standing::PassedOver(scene.now, Precision::Exact),
            Gate::Shut(until, precision) => Standing::PassedOver(until, precision),
        }
    }

    pub(crate) fn is_full(&self, provider: usize, settings: &Settings) -> bool {
        let most = settings.providers[provider].max_in_flight;
        most.is_some_and(|most| self.providers[provider].in_flight >= most)
    }

    /// The admissible in list order; then the passed-over by the time at which they reopen; then those at
    /// their limit.
    pub(crate) fn check_turn(
        &mut self,
        call: &Call,
        provider: usize,
        own: Standing,
        others: &[(usize, Standing)],
        now: Instant,
    ) {
        use Standing::{Admissible, Full, PassedOver};
        let place = |of: usize| call.order.iter().position(|provider| *provider == of);
        let name = NAMES[provider];
        for (other, standing) in others {
            let is_before = place(*other) < place(provider);
            let better = NAMES[*other];
            let holds = match (own, *standing) {
                (Admissible, Admissible) | (Full, Full) => !is_before,
                (PassedOver(..) | Full, Admissible) | (Full, PassedOver(..)) => false,
                (PassedOver(own, _), PassedOver(until, Precision::Exact)) => {
                    own < until || own == until && !is_before
                }
                _ => true,
            };
            self.check(holds, || format!("asks {name} ({own:?}) before {better} ({standing:?})"));
        }
        // Those at their limit that would have been asked.
        let would_be = |other: usize| own != Admissible || place(other) < place(provider);
        let full = others.iter().copied().chain([(provider, own)]);
        for (full, _) in full.filter(|(other, standing)| *standing == Full && would_be(*other)) {
            self.providers[full].pass_over(now);
        }
    }

    pub(crate) fn check_may_go_on(&mut self, call: &Call, own: Standing, now: Instant) {
        let last = call.last_ended().and_then(|last| last.end);
        let begins = last.map_or(call.begun, |end| end.at);
        self.check(begins == now, || "waits between two attempts".to_owned());
        let Some(last) = last else {
            return self.check(call.entries.is_empty(), || "asks while it is asking".to_owned());
        };
        let Some(meaning) = last.meaning else {
            return self.check(false, || "asks after it was dropped".to_owned());
        };
        self.check(call.served().is_none(), || "asks after an answer".to_owned());
        self.check(call.entries.len() < call.max_attempts, || "asks too often".to_owned());
        self.check(call.replayable, || "sends a stream twice".to_owned());
        let ambiguous = |entry: &Entry| {
            entry.end.and_then(|end| end.meaning).is_some_and(|meaning| meaning.ambiguous)
        };
        let replays = call.idempotent || !call.entries.iter().any(ambiguous);
        self.check(replays, || "may be processed twice, which it forbade".to_owned());
        let desperate = meaning.price != Price::Unhurt || own == Standing::Admissible;
        self.check(desperate, || "storms a provider that rests".to_owned());
    }

    /// Why the call may have ended without an answer, if it may.
    pub(crate) fn reason_to_stop(call: &Call) -> Option<&'static str> {
        let Some(last) = call.last_ended() else {
            return call.hopeless.then_some("none to ask");
        };
        let End { at, meaning, left, .. } = last.end?;
        let meaning = meaning?;
        let reasons = [
            (call.entries.len() >= call.max_attempts, "asked as many as allowed"),
            (at >= call.deadline, "no time left"),
            (meaning.ambiguous && !call.idempotent, "maybe processed"),
            (!call.replayable, "cannot be sent twice"),
            (call.entries.iter().any(|entry| entry.is_last) || !left.any(), "none left"),
            (left.admissible == 0 && meaning.price == Price::Unhurt, "its own fault"),
        ];
        reasons.into_iter().find(|(holds, _)| *holds).map(|(_, reason)| reason)
    }
}

pub(crate) fn left(others: &[(usize, Standing)]) -> Left {
    let admissible =
        others.iter().filter(|(_, standing)| *standing == Standing::Admissible).count();
    Left { admissible, passed_over: others.len() - admissible }
}

pub(crate) fn index(name: &str) -> usize {
    NAMES.iter().position(|known| *known == name).expect("a provider's name")
}

pub(crate) fn key_index(name: &str) -> usize {
    HEALTH_KEYS.iter().position(|known| *known == name).expect("a health key")
}
