//! Checks a chain's providers as a list, and computes what depends on all of them.

use http::HeaderName;
use http::header::HOST;

use super::Provider;
use super::entry::Entry;
use super::keyring::{Problem, header_name};
use crate::error::ConfigError;
use crate::readdress::{Base, Scope, StripList};

/// What `build()` makes of a list of providers.
pub(crate) struct Checked {
    /// In the order of the list.
    pub(crate) entries: Vec<Entry>,
    pub(crate) scope: Scope,
    pub(crate) strip: StripList,
}

/// The chain's own `remove_header(..)` and `keep_header(..)`: they hold for every provider.
#[derive(Clone, Default)]
pub(crate) struct ChainHeaders {
    pub(crate) remove: Vec<String>,
    pub(crate) keep: Vec<String>,
}

/// Generous for a list that is tried one by one.
pub(crate) const MAX_PROVIDERS: usize = 128;

/// Checks the providers and the URLs given to `.claim(..)`, and computes what depends on all.
pub(crate) fn check(
    providers: Vec<Provider>,
    claims: &[String],
    headers: &ChainHeaders,
) -> Result<Checked, ConfigError> {
    if providers.is_empty() {
        return Err(ConfigError::new(None, "providers", "must name at least one"));
    }
    if providers.len() > MAX_PROVIDERS {
        let problem = format!("must be at most {MAX_PROVIDERS}");
        return Err(ConfigError::new(None, "providers", problem));
    }
    let remove = chain_headers("remove_header", &headers.remove)?;
    let keep = chain_headers("keep_header", &headers.keep)?;
    let mut entries: Vec<Entry> = Vec::with_capacity(providers.len());
    for (n, provider) in providers.into_iter().enumerate() {
        let name = provider.name.clone();
        check_name(&name, n, &entries)?;
        let mut entry = Entry::parse(provider)
            .map_err(|Problem(field, problem)| ConfigError::new(Some(&name), field, problem))?;
        entry.rules.remove.extend_from_slice(&remove);
        entry.rules.keep.extend_from_slice(&keep);
        entries.push(entry);
    }
    let mut bases: Vec<Base> = entries.iter().map(|entry| entry.base.clone()).collect();
    bases.extend(entries.iter().filter_map(|entry| entry.base.template()));
    for (n, claim) in claims.iter().enumerate() {
        let base = Base::parse(claim).map_err(|problem| {
            ConfigError::new(None, "claim", format!("URL {} {problem}", n + 1))
        })?;
        bases.push(base);
    }
    let strip = StripList::new(
        entries.iter().flat_map(Entry::credential_headers).cloned(),
        entries.iter().flat_map(Entry::credential_queries).map(str::to_owned),
    );
    let strip = strip.with_removed(entries.iter().flat_map(|entry| entry.rules.remove.clone()));
    check_kept(&entries, &keep, &strip)?;
    Ok(Checked { entries, scope: Scope::new(bases), strip })
}

fn check_name(name: &str, at: usize, before: &[Entry]) -> Result<(), ConfigError> {
    if name.trim().is_empty() || name.contains(char::is_control) {
        let problem =
            format!("of provider {} must not be empty or hold control characters", at + 1);
        return Err(ConfigError::new(None, "name", problem));
    }
    if name.trim().eq_ignore_ascii_case("none") {
        let problem = "is what metrics say where no provider served: choose another";
        return Err(ConfigError::new(Some(name), "name", problem));
    }
    if before.iter().any(|entry| *entry.name == *name) {
        let problem = "is used twice: give each provider a name of its own";
        return Err(ConfigError::new(Some(name), "name", problem));
    }
    Ok(())
}

fn chain_headers(field: &'static str, names: &[String]) -> Result<Vec<HeaderName>, ConfigError> {
    names
        .iter()
        .map(|name| header_name(field, name))
        .collect::<Result<_, _>>()
        .map_err(|Problem(field, problem)| ConfigError::new(None, field, problem))
}

/// What an entry uses as a credential is always removed from the caller's request, and `host` must
/// be the provider's own.
fn check_kept(
    entries: &[Entry],
    of_chain: &[HeaderName],
    strip: &StripList,
) -> Result<(), ConfigError> {
    let wrong = |name: &HeaderName| {
        if *name == HOST {
            return Some("`host` is set by the HTTP client: leave it out".to_owned());
        }
        strip.is_own(name).then(|| {
            format!("`{name}` carries a provider's credential in this chain, so it never stays")
        })
    };
    if let Some(problem) = of_chain.iter().find_map(wrong) {
        return Err(ConfigError::new(None, "keep_header", problem));
    }
    for entry in entries {
        if let Some(problem) = entry.rules.keep.iter().find_map(wrong) {
            return Err(ConfigError::new(Some(&entry.name), "keep_header", problem));
        }
    }
    Ok(())
}
