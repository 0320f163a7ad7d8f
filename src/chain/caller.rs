//! What the caller put on a request that no message may show.

use std::sync::{Mutex, PoisonError};

use http::{HeaderName, HeaderValue};

use crate::message::Secrets;
use crate::readdress::{KeptHeaders, StripList};

/// The credentials that the last caller sent of whose request a message was made. Programs send the same
/// ones over and over, and to find out what they give away takes longer than to look for it in a message.
#[derive(Default)]
pub(super) struct LastCaller(Mutex<Option<CallerSecrets>>);

struct CallerSecrets {
    headers: KeptHeaders,
    secrets: Secrets,
    /// How often they were asked for.
    asked: u8,
}

impl LastCaller {
    /// These secrets, which must be the same each time, and those that are in the caller's headers.
    pub(super) fn and_of<'h>(
        &self,
        headers: impl IntoIterator<Item = (&'h HeaderName, &'h HeaderValue)> + Copy,
        strip: &StripList,
        secrets: &Secrets,
    ) -> Secrets {
        /// So many texts are worth that the search for all of them is prepared.
        const MANY: u8 = 4;

        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = &mut *last
            && known.headers.are_secret_ones_of(headers, strip)
        {
            known.asked = known.asked.saturating_add(1);
            if known.asked == MANY {
                known.secrets = known.secrets.for_many();
            }
            return known.secrets.clone();
        }
        let secrets = secrets.and(strip.secrets_of_headers(headers));
        let headers = KeptHeaders::secret_ones(headers, strip);
        *last = Some(CallerSecrets { headers, secrets: secrets.clone(), asked: 1 });
        secrets
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;
    use http::header::{AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL};

    use super::*;

    fn headers(name: HeaderName, value: &'static str, sensitive: bool) -> HeaderMap {
        let mut value = HeaderValue::from_static(value);
        value.set_sensitive(sensitive);
        HeaderMap::from_iter([(name, value)])
    }

    #[test]
    fn each_caller_is_told_from_the_last() {
        let (strip, of_chain) = (StripList::new([], []), Secrets::new(["key-of-chain"]));
        let last = LastCaller::default();
        let callers = [
            (HeaderMap::new(), ""),
            (headers(AUTHORIZATION, "Bearer first-key", false), "first-key"),
            (headers(AUTHORIZATION, "Bearer other-key", false), "other-key"),
            // A name without a key, which only the mark makes a secret; and a part of a value.
            (headers(SEC_WEBSOCKET_PROTOCOL, "realtime-v1", false), ""),
            (headers(SEC_WEBSOCKET_PROTOCOL, "realtime-v1", true), "realtime-v1"),
            (headers(SEC_WEBSOCKET_PROTOCOL, "realtime-v1", false), ""),
            (headers(HeaderName::from_static("x-id"), "visible-value", false), ""),
        ];
        let all = ["key-of-chain", "first-key", "other-key", "realtime-v1", "visible-value"];
        // As often as it takes to prepare the search, and once.
        for times in [6, 1] {
            for (headers, own) in &callers {
                for _ in 0..times {
                    let secrets = last.and_of(headers, &strip, &of_chain);
                    for secret in all {
                        let expected = secret == "key-of-chain" || secret == *own;
                        assert_eq!(secrets.is_shown_in(secret), expected, "{headers:?}: {secret}");
                    }
                }
            }
        }
    }
}
