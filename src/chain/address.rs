//! What the chain knows about a URL: whose it is, and what it becomes at each provider.
//!
//! Programs ask the same few URLs over and over, and to work one out is to look through every base
//! and to parse, where to find it again is to compare and to clone. So the latest are remembered.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use reqwest::Url;

use crate::provider::Entry;
use crate::readdress::{Base, Claim, Scope, StripList, hides_dot_segment};

/// A claimed URL.
pub(super) struct Address {
    caller: Url,
    claim: Claim,
    is_refused: bool,
    targets: Box<[OnceLock<Option<Url>>]>,
}

impl Address {
    /// The URL as the caller gave it.
    pub(super) fn caller(&self) -> &Url {
        &self.caller
    }

    /// Whether the path hides a dot segment.
    pub(super) fn is_refused(&self) -> bool {
        self.is_refused
    }

    /// The base below which the URL lies.
    pub(super) fn claimed<'a>(&self, scope: &'a Scope) -> &'a Base {
        scope.base(self.claim.base)
    }

    /// The URL at a provider; `None` where there is none that is safe.
    pub(super) fn target(
        &self,
        provider: usize,
        entry: &Entry,
        strip: &StripList,
        scope: &Scope,
    ) -> Option<&Url> {
        let target = || entry.target(&self.caller, &self.claim, strip, scope);
        self.targets[provider].get_or_init(target).as_ref()
    }
}

/// The addresses that were asked for lately.
pub(super) struct Addresses {
    slots: Mutex<[Option<Arc<Address>>; SLOTS]>,
    origins: Mutex<Origins>,
}

/// What was found out about the origins of requests.
#[derive(Default)]
struct Origins {
    /// The bases that have claimed a request.
    claiming: BTreeSet<usize>,
    /// Those of which a request was passed through.
    passed: BTreeSet<String>,
}

impl Addresses {
    pub(super) fn new() -> Self {
        Self { slots: Mutex::default(), origins: Mutex::default() }
    }

    /// The address of a URL that is below a base of the scope.
    /// `ids`: the highest id of a provider, plus one.
    pub(super) fn find(&self, url: &Url, scope: &Scope, ids: usize) -> Option<Arc<Address>> {
        let slot = slot(url.as_str());
        let known = self.lock()[slot].clone().filter(|address| address.caller == *url);
        if known.is_some() {
            return known;
        }
        let claim = scope.claim(url)?;
        self.lock_origins().claiming.insert(claim.base);
        let address = Arc::new(Address {
            caller: url.clone(),
            claim,
            is_refused: claim.suffix(url).is_none_or(hides_dot_segment),
            targets: (0..ids).map(|_| OnceLock::new()).collect(),
        });
        if url.as_str().len() <= LONGEST {
            self.lock()[slot] = Some(address.clone());
        }
        Some(address)
    }

    /// Whether a URL that is passed through is the first of its origin, of which no request was ever
    /// claimed. Of too many origins nothing is known.
    pub(super) fn is_unknown_origin(&self, url: &Url, scope: &Scope) -> bool {
        let mut origins = self.lock_origins();
        let is_claimed = origins.claiming.iter().any(|base| scope.base(*base).shares_origin(url));
        !is_claimed
            && origins.passed.len() < MOST_ORIGINS
            && origins.passed.insert(url.origin().ascii_serialization())
    }

    fn lock_origins(&self) -> std::sync::MutexGuard<'_, Origins> {
        self.origins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, [Option<Arc<Address>>; SLOTS]> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const SLOTS: usize = 16;

/// How many origins are remembered of which requests are passed through.
const MOST_ORIGINS: usize = 64;

/// Longer URLs are worked out each time, so that they hold no memory.
const LONGEST: usize = 2048;

/// URLs of one API differ at their ends: these are hashed, in one multiplication.
fn slot(url: &str) -> usize {
    const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
    let tail = url.as_bytes().last_chunk().map_or(0, |tail| u64::from_le_bytes(*tail));
    let hash = (tail ^ url.len() as u64).wrapping_mul(GOLDEN);
    (hash >> (u64::BITS - SLOTS.ilog2())) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::{ChainHeaders, Checked, Provider, check};

    #[test]
    fn a_remembered_address_is_that_of_its_own_url() {
        let providers = vec![Provider::cometapi("key-a"), Provider::openai("key-b")];
        let Checked { entries, scope, strip } =
            check(providers, &[], &ChainHeaders::default()).unwrap();
        let addresses = Addresses::new();
        for _ in 0..3 {
            for path in (0..200).map(|at| format!("/v1/files/{at}")) {
                let url = Url::parse(&format!("https://api.openai.com{path}?q={path}")).unwrap();
                let address = addresses.find(&url, &scope, entries.len()).unwrap();
                for (at, entry) in entries.iter().enumerate() {
                    let target = address.target(at, entry, &strip, &scope).unwrap();
                    assert_eq!((target.path(), target.query()), (url.path(), url.query()));
                    assert!(entry.base.contains(target));
                }
            }
        }
        let elsewhere = Url::parse("https://api.openai.com/v2").unwrap();
        assert!(addresses.find(&elsewhere, &scope, entries.len()).is_none());
    }

    #[test]
    fn a_long_url_is_not_remembered() {
        let Checked { entries, scope, .. } =
            check(vec![Provider::openai("key")], &[], &ChainHeaders::default()).unwrap();
        let addresses = Addresses::new();
        let long = format!("https://api.openai.com/v1/{}", "x".repeat(LONGEST));
        assert!(addresses.find(&Url::parse(&long).unwrap(), &scope, entries.len()).is_some());
        assert!(addresses.lock().iter().all(Option::is_none));
    }

    #[test]
    fn urls_of_one_api_are_remembered_side_by_side() {
        let slots = |urls: Vec<String>| urls.iter().map(|url| slot(url)).collect::<BTreeSet<_>>();
        let path = |at| format!("https://api.openai.com/v1/{at}");
        let ends = slots((0..100).map(|at| path(format!("files/{at:08}"))).collect());
        assert_eq!(ends, (0..SLOTS).collect(), "other ends");
        let lengths = (0..100).map(|at| path(format!("{}/content", "x".repeat(at))));
        assert_eq!(slots(lengths.collect()), (0..SLOTS).collect(), "other lengths, and one end");
        assert_eq!(slots(vec![String::new()]), BTreeSet::from([0]), "shorter than what is hashed");
    }

    #[test]
    fn sixty_four_origins_are_found_unknown_once() {
        let Checked { scope, .. } =
            check(vec![Provider::openai("key")], &[], &ChainHeaders::default()).unwrap();
        let addresses = Addresses::new();
        let origin = |at| Url::parse(&format!("https://host-{at}.test/v1")).unwrap();
        for at in 0..100 {
            let is_unknown = addresses.is_unknown_origin(&origin(at), &scope);
            assert_eq!(is_unknown, at < 64, "{at}");
            assert!(!addresses.is_unknown_origin(&origin(at), &scope), "{at}, again");
        }
    }
}
