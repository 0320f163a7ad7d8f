//! What the chain emits, held against the ledger.

use reqwest_failover::Event;

use crate::circuit::{Circuit, Rules};
use crate::harness::{Shared, now};
use crate::ledger::Ledger;
use crate::settings::NAMES;
use crate::turn::{index, key_index};

impl Shared {
    /// Holds an event against the ledger.
    pub(crate) fn see(&self, event: &Event<'_>, rules: Option<&Rules>) {
        let now = now();
        let mut ledger = self.ledger();
        let ledger = &mut *ledger;
        ledger.note(|| format!("{:>9} {event:?}", ledger.since(now)));
        let current = ledger.current;
        match event {
            Event::AttemptStarted { number, .. } => {
                let call = ledger.calls.get_mut(&current);
                let expected = call.map(|call| {
                    call.started += 1;
                    call.started
                });
                ledger.check(expected == Some(*number), || {
                    format!("emits the start of attempt {number}, not of {expected:?}")
                });
            }
            Event::AttemptFinished { .. } => {
                if let Some(call) = ledger.calls.get_mut(&current) {
                    call.finished += 1;
                }
            }
            Event::HedgeSent { from, to, waited, .. } => {
                let call = ledger.calls.get(&current);
                let silent = call.and_then(|call| call.entries.last());
                let told = silent.map(|silent| (NAMES[silent.provider], now - silent.started));
                // It is emitted before the request is sent.
                ledger.check(told == Some((from, *waited)) && from != to, || {
                    format!("hedges {from} by {to} after {waited:?}, not {told:?}")
                });
                ledger.hedges_told += 1;
            }
            Event::Exhausted { .. } => {
                if let Some(call) = ledger.calls.get_mut(&current) {
                    call.exhaustions += 1;
                }
            }
            Event::Rejected { .. } => {
                if let Some(call) = ledger.calls.get_mut(&current) {
                    call.rejections += 1;
                }
            }
            Event::Finished { report, .. } => {
                if let Some(call) = ledger.calls.get_mut(&current) {
                    call.reports.push((*report).clone());
                }
            }
            Event::BreakerProbing { provider, key, .. } => {
                let is_due = ledger.circuit(provider, *key).is_probe_due(now);
                ledger.check(is_due, || format!("no probe of {provider} {key:?} is due"));
            }
            Event::BreakerOpened { provider, key, until, breaks, .. } => {
                let Some(rules) = rules else { return };
                let may_open = ledger.circuit(provider, *key).opened(*until, rules);
                ledger.check(may_open, || format!("{provider} {key:?} opens"));
                let length = until.saturating_duration_since(now);
                let longest = rules.breaker.break_length(*breaks);
                ledger.check(length <= longest && length >= longest / 2, || {
                    format!("the {breaks}th break of {provider} is {length:?}, not {longest:?}")
                });
            }
            Event::BreakerClosed { provider, key, .. } => {
                let may_close = ledger.circuit(provider, *key).closed();
                ledger.check(may_close, || format!("{provider} {key:?} closes"));
            }
            Event::CoolingDown { provider, key, until, .. } => {
                let length = until.saturating_duration_since(now);
                let is_due = ledger.circuit(provider, *key).rests_until(*until);
                ledger.check(is_due, || format!("{provider} {key:?} cools down for {length:?}"));
            }
            Event::AtCapacity { provider, .. } => {
                ledger.providers[index(provider)].crossings_told += 1;
            }
            Event::CallbackPanicked { callback, .. } => {
                ledger.check(false, || format!("`{callback}` panicked"));
            }
            _ => {}
        }
    }
}

impl Ledger {
    /// The circuit of a provider, or of one of its keys, that an event names.
    fn circuit(&mut self, provider: &str, key: Option<&str>) -> &mut Circuit {
        self.providers[index(provider)].circuit_mut(key.map(key_index))
    }
}
