//! A set of providers.

/// One bit for each provider; `build()` allows no more than fit.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ProviderSet([u64; 2]);

impl ProviderSet {
    #[inline]
    pub(super) fn insert(&mut self, provider: usize) {
        self.0[provider / 64] |= 1 << (provider % 64);
    }

    #[inline]
    pub(super) fn contains(&self, provider: usize) -> bool {
        self.0[provider / 64] & 1 << (provider % 64) != 0
    }

    #[inline]
    fn is_empty(self) -> bool {
        self.0 == [0, 0]
    }

    pub(crate) fn iter(self) -> impl Iterator<Item = usize> {
        let all = if self.is_empty() { 0..0 } else { 0..128 };
        all.filter(move |provider| self.contains(*provider))
    }

    #[inline]
    pub(super) fn filter(self, mut keep: impl FnMut(usize) -> bool) -> Self {
        let mut kept = Self::default();
        if !self.is_empty() {
            self.iter().filter(|provider| keep(*provider)).for_each(|it| kept.insert(it));
        }
        kept
    }
}
