//! Which provider a run asks next.

use std::time::Instant;

use super::{ProviderSet, Run};
use crate::health::{Admission, HealthTable};

/// The provider that is asked next.
pub(super) struct NextProvider {
    pub(super) provider: usize,
    /// Whether this may be a probe, whose lease lasts a little longer than its request.
    pub(super) may_probe: bool,
    /// Whether any other provider could be asked at all.
    pub(super) leaves_any: bool,
    /// The providers that were passed over at their limit.
    pub(super) full: ProviderSet,
}

impl Run {
    /// The first available provider in order; else, when none is left, the unavailable one that
    /// reopens first, and those at their limit last. A hedge is sent to an available one only.
    #[inline]
    pub(super) fn choose(&self, health: &HealthTable, now: Instant) -> Option<NextProvider> {
        let is_hedge = self.in_flight > 0;
        let may_probe = !is_hedge && self.replayable;
        let mut passed_over = false;
        let mut full = ProviderSet::default();
        let mut order = self.order.iter();
        while let Some(&provider) = order.next() {
            if self.excluded.contains(provider) {
                continue;
            }
            let admission = health.admission(provider, self.key(), now);
            let is_probe = admission == Admission::ProbeDue;
            if admission == Admission::Available || is_probe && may_probe {
                let leaves_any = passed_over || order.any(|other| self.is_usable(*other, health));
                return Some(NextProvider { provider, may_probe: is_probe, leaves_any, full });
            }
            passed_over |= admission != Admission::Isolated;
            if admission == Admission::AtCapacity {
                full.insert(provider);
            }
        }
        if is_hedge || !self.allow_unhealthy {
            return None;
        }
        self.choose_unavailable(health, full, now)
    }

    #[cold]
    fn choose_unavailable(
        &self,
        health: &HealthTable,
        full: ProviderSet,
        now: Instant,
    ) -> Option<NextProvider> {
        // A limit that its user has set is worth more than a provider's own wish.
        let order = |provider: &usize| match health.admission(*provider, self.key(), now) {
            Admission::AtCapacity => (true, now),
            Admission::Unavailable(until) => (false, until),
            _ => (false, now),
        };
        let provider = self.usable(health).min_by_key(order)?;
        let leaves_any = self.usable(health).nth(1).is_some();
        // A provider that is shut may be one whose key is not.
        Some(NextProvider { provider, may_probe: true, leaves_any, full })
    }
}

/// Which of these providers it is news of that they were passed over at their limit.
#[cold]
pub(super) fn pass_over(
    full: ProviderSet,
    health: &mut HealthTable,
    now: Instant,
) -> Option<Box<ProviderSet>> {
    let mut news = ProviderSet::default();
    full.iter().filter(|it| health.pass_over(*it, now)).for_each(|it| news.insert(it));
    (!news.is_empty()).then(|| Box::new(news))
}
