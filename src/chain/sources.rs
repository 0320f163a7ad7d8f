//! Asks the closures that a provider's keys come from.

use std::task::Poll;

use super::outcome::Unsent;
use super::shared::Shared;
use crate::observe::{Event, catch_panic};
use crate::provider::{BoxError, FreshKey, KeySource};
use crate::verdict::Reason;

/// Asks a provider's sources for its keys, one after the other.
pub(super) async fn ask_for_keys(
    shared: &Shared,
    provider: usize,
    sources: &[KeySource],
) -> Result<Vec<FreshKey>, Unsent> {
    let mut keys = Vec::with_capacity(sources.len());
    let mut secrets = Vec::new();
    for source in sources {
        let key = ask_for_key(shared, source).await?;
        secrets.extend_from_slice(&key.secrets);
        shared.lock_tokens()[provider].clone_from(&secrets);
        keys.push(key);
    }
    Ok(keys)
}

async fn ask_for_key(shared: &Shared, source: &KeySource) -> Result<FreshKey, Unsent> {
    let failed = |error: BoxError| Unsent { reason: Reason::Credential, error };
    let panicked = || {
        shared.observer.emit(&Event::CallbackPanicked { callback: source.method });
        failed(format!("`{}` panicked", source.method).into())
    };
    let mut asked = catch_panic(|| source.ask()).ok_or_else(panicked)?;
    let answer = std::future::poll_fn(|context| {
        catch_panic(|| asked.as_mut().poll(context))
            .map_or(Poll::Ready(None), |poll| poll.map(Some))
    });
    let key = answer.await.ok_or_else(panicked)?.map_err(failed)?;
    source.check(&key).map_err(|problem| failed(format!("the token {problem}").into()))
}
