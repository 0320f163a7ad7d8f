//! The outcome of an attempt, as far as decisions need it.

use std::time::Duration;

use crate::health::{Concern, HealthSignal};
use crate::verdict::{Fault, Verdict};

/// What the driver found out about an attempt.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Judgement {
    pub(crate) verdict: Verdict,
    /// The provider may have processed the request.
    pub(crate) ambiguous: bool,
    /// The provider's host could not be reached: no name, no connection or no TLS session.
    pub(crate) unreachable: bool,
    /// What the outcome counts for where the request has a health key.
    pub(crate) concern: Concern,
    /// The provider does not have the model that the request is for.
    pub(crate) unknown_model: bool,
    /// The response's status, if there was a response.
    pub(crate) status: Option<u16>,
    /// How long the provider took to its response's headers.
    pub(crate) time_to_headers: Duration,
    /// Where the caller's time ended the attempt, and not the provider: how long the provider had
    /// been silent then. That is for no time where the caller's own body was pending. The caller's
    /// time is a timeout of the request or of the client, or an [`Until`](super::Until) that is no
    /// failure.
    pub(crate) cut_after: Option<Duration>,
}

/// What is to be done with an outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Settled {
    /// It is the answer.
    Serve,
    /// It is the answer, unless the attempt in flight has a better one.
    Keep,
    /// The outcome that was kept is the answer.
    ServeKept,
    /// It is none: the run's next step says what is.
    FailOver,
}

/// How a run ended that served no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unserved {
    /// Every provider that was asked refused the request itself.
    Rejected,
    Exhausted,
}

impl Judgement {
    /// Whether it is an answer that no other is better than.
    pub(super) fn is_good(&self) -> bool {
        self.status.is_some_and(|status| status < 400)
    }

    pub(super) fn signal(&self) -> HealthSignal {
        match (self.verdict, self.status) {
            (Verdict::FailOver(Fault::Failure), _) => HealthSignal::Failure,
            (Verdict::FailOver(Fault::Cooldown(hint)), _) => HealthSignal::Cooldown(hint),
            (Verdict::FailOver(Fault::None), Some(_)) if self.unknown_model => {
                HealthSignal::UnknownModel
            }
            (Verdict::Accept, Some(..400)) => HealthSignal::Success,
            (_, Some(_)) => HealthSignal::Neutral,
            (_, None) => HealthSignal::Nothing,
        }
    }
}
