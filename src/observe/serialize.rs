//! Snapshots and reports for health pages and logs, with the feature `serde`. Durations are seconds.

use serde::ser::{Serialize, SerializeMap, Serializer};

use super::{ProviderSnapshot, Snapshot};
use crate::health::State;
use crate::report::{Attempt, Report};

impl Serialize for State {
    /// A map of `state` and, for a break or a cooldown, `remaining`.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        state(&mut map, *self)?;
        map.end()
    }
}

impl Serialize for Snapshot {
    /// A map whose keys are the names of the methods.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("requests", &self.requests())?;
        map.serialize_entry("served_by_fallback", &self.served_by_fallback())?;
        map.serialize_entry("fallback_ratio", &self.fallback_ratio())?;
        map.serialize_entry("rejected", &self.rejected())?;
        map.serialize_entry("exhausted", &self.exhausted())?;
        map.serialize_entry("passed_through", &self.passed_through())?;
        map.serialize_entry("callback_panics", &self.callback_panics())?;
        #[cfg(feature = "fleet")]
        if let Some(fleet) = self.fleet() {
            map.serialize_entry("fleet", &fleet)?;
        }
        map.serialize_entry("providers", self.providers())?;
        map.end()
    }
}

#[cfg(feature = "fleet")]
impl Serialize for super::FleetSnapshot {
    /// A map whose keys are the names of the methods, without `last_heard`.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("is_joined", &self.is_joined())?;
        map.serialize_entry("processes_heard", &self.processes_heard())?;
        map.serialize_entry("ignored", &self.ignored())?;
        map.serialize_entry("errors", &self.errors())?;
        map.end()
    }
}

impl Serialize for ProviderSnapshot {
    /// A map whose keys are the names of the methods; `remaining` stands next to `state`.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("name", self.name())?;
        state(&mut map, self.state())?;
        map.serialize_entry("attempts", &self.attempts())?;
        map.serialize_entry("served", &self.served())?;
        map.serialize_entry("failures", &self.failures())?;
        map.serialize_entry("in_flight", &self.in_flight())?;
        let resting: Vec<_> =
            self.resting_keys().map(|(key, state)| RestingKey { key, state }).collect();
        map.serialize_entry("resting_keys", &resting)?;
        map.end()
    }
}

struct RestingKey<'a> {
    key: &'a str,
    state: State,
}

impl Serialize for RestingKey<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("key", self.key)?;
        state(&mut map, self.state)?;
        map.end()
    }
}

impl Serialize for Report {
    /// A map whose keys are the names of the methods; `not_asked` says why the other providers were not
    /// asked, where no provider served.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("id", &self.id())?;
        map.serialize_entry("served_by", &self.served_by())?;
        map.serialize_entry("elapsed", &self.elapsed().as_secs_f64())?;
        map.serialize_entry("attempts", self.attempts())?;
        if let Some(unasked) = self.unasked() {
            map.serialize_entry("not_asked", unasked)?;
        }
        map.end()
    }
}

impl Serialize for Attempt {
    /// A map whose keys are the names of the methods.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("provider", self.provider())?;
        map.serialize_entry("status", &self.status().map(|status| status.as_u16()))?;
        map.serialize_entry("reason", self.reason().as_str())?;
        map.serialize_entry("code", &self.code())?;
        map.serialize_entry("message", &self.message())?;
        map.serialize_entry("elapsed", &self.elapsed().as_secs_f64())?;
        map.serialize_entry("retry_after", &self.retry_after().map(|hint| hint.as_secs_f64()))?;
        map.serialize_entry("maybe_processed", &self.maybe_processed())?;
        map.serialize_entry("is_replayable", &self.is_replayable())?;
        map.end()
    }
}

fn state<M: SerializeMap>(map: &mut M, state: State) -> Result<(), M::Error> {
    map.serialize_entry("state", state.as_str())?;
    match state.remaining() {
        Some(left) => map.serialize_entry("remaining", &left.as_secs_f64()),
        None => Ok(()),
    }
}
