//! What is known of an attempt apart from its future. Dropping it gives its permit back.

use std::time::Instant;

use super::shared::Shared;
use crate::health::Permit;
use crate::observe::Trace;
use crate::run::Until;

/// A permit, if there is one, that is given back when it is dropped.
pub(super) struct Guard<'a> {
    shared: &'a Shared,
    permit: Option<Permit>,
}

impl<'a> Guard<'a> {
    pub(super) fn new(shared: &'a Shared, permit: Permit) -> Self {
        Self { shared, permit: Some(permit) }
    }

    /// For an attempt that its provider's health does not know of.
    pub(super) fn empty(shared: &'a Shared) -> Self {
        Self { shared, permit: None }
    }

    pub(super) fn get_mut(&mut self) -> Option<&mut Permit> {
        self.permit.as_mut()
    }

    /// The permit, for the health table to take back.
    pub(super) fn take(&mut self) -> Option<Permit> {
        self.permit.take()
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if let Some(permit) = self.permit.take() {
            self.shared.lock().health.cancel(&permit);
        }
    }
}

/// What is known of an attempt apart from its future.
pub(super) struct AttemptState<'a> {
    pub(super) permit: Guard<'a>,
    /// In a size that keeps a request's state small.
    provider: u32,
    pub(super) trace: Trace,
    pub(super) started: Instant,
    pub(super) until: Until,
    pub(super) is_sent: bool,
    /// When its headers came, if they did and the answer is read.
    pub(super) answered: Option<Instant>,
    /// Whether the caller's own body was pending when the time was up.
    pub(super) upload_pending: bool,
    /// What this attempt must not show: the keys of its sources, and what `map_request` set.
    pub(super) secrets: Vec<String>,
}

impl<'a> AttemptState<'a> {
    pub(super) fn new(
        permit: Guard<'a>,
        provider: usize,
        trace: Trace,
        started: Instant,
        until: Until,
    ) -> Self {
        Self {
            permit,
            provider: provider as u32,
            trace,
            started,
            until,
            is_sent: false,
            answered: None,
            upload_pending: false,
            secrets: Vec::new(),
        }
    }

    pub(super) fn provider(&self) -> usize {
        self.provider as usize
    }

    /// Since when the provider has been silent: since it has the request, or since its headers came.
    pub(super) fn quiet_since(&mut self) -> Option<Instant> {
        let since = self.permit.get_mut().map(|permit| permit.since());
        let is_silent = self.is_sent && !self.upload_pending;
        self.answered.or(since.filter(|_| is_silent))
    }
}
