//! A set of providers.

/// One bit for each provider; `build()` allows no more than fit.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ProviderSet([u64; 2]);

impl ProviderSet {
    #[inline]
    pub(super) fn insert(&mut self, provider: usize) {
        self.0[provider / 64 % 2] |= 1 << (provider % 64);
    }

    #[inline]
    pub(super) fn contains(&self, provider: usize) -> bool {
        self.0[provider / 64 % 2] & 1 << (provider % 64) != 0
    }

    #[inline]
    pub(super) fn is_empty(self) -> bool {
        self.0 == [0, 0]
    }

    pub(crate) fn iter(self) -> impl Iterator<Item = usize> {
        (0..128).filter(move |provider| self.contains(*provider))
    }
}
