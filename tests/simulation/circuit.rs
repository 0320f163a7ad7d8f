//! A model of one circuit breaker and one cooldown: a provider's own, or those of one of its health keys.

use std::time::{Duration, Instant};

use reqwest_failover::State;

use crate::settings::{BreakerSettings, CooldownSettings, LENT_FROM, UNKNOWN_MODEL};

#[derive(Default)]
pub(crate) struct Circuit {
    pub(crate) lease: Option<Lease>,
    /// The end of the break, while the breaker is open. As the events have it, since it has jitter.
    pub(crate) open_until: Option<Instant>,
    /// Failures since the breaker last moved.
    failed_since: u64,
    /// The length of the row.
    row: u32,
    /// How often the breaker moved.
    pub(crate) moves: u64,
    /// The last cooldown that no success has followed.
    rest: Option<Rest>,
    /// How many cooldowns began.
    pub(crate) rests: u64,
    /// How many requests were lent the end of one.
    pub(crate) lent: u64,
    /// What the breaker must do before anything else happens.
    due: Option<Due>,
    /// The end of the cooldown that must be emitted before anything else happens.
    rest_due: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    Open,
    Close,
}

/// A probe that is out: whose, and until when it may be.
#[derive(Clone, Copy)]
pub(crate) struct Lease {
    pub(crate) call: u64,
    pub(crate) until: Instant,
}

#[derive(Clone, Copy)]
struct Rest {
    until: Instant,
    /// How many came before it without a success between.
    number: u32,
    /// Whether its end is lent to one request, and none was answered well yet.
    is_lent: bool,
}

/// How an attempt was admitted, and what had happened before it.
#[derive(Clone, Copy)]
pub(crate) struct Admitted {
    pub(crate) is_probe: bool,
    /// Whether it was asked during a cooldown.
    is_hurried: bool,
    moves: u64,
    rests: u64,
}

/// What an attempt says about the health of its provider, or of one of its keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum News {
    Success,
    /// An answer that is neither success nor failure.
    Alive,
    Failure,
    Cooldown(Option<Duration>),
    /// It does not have the model.
    UnknownModel,
    /// It was silent for long, or overtaken.
    Silence,
    None,
}

/// Whether a circuit lets a request through.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Gate {
    Open,
    /// To one request.
    ToProbe,
    /// Not until then.
    Shut(Instant, Precision),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Precision {
    Exact,
    /// A cooldown may hide behind a probe.
    AtLeast,
}

/// The settings that a circuit is moved by.
#[derive(Clone, Copy)]
pub(crate) struct Rules {
    pub(crate) breaker: BreakerSettings,
    pub(crate) cooldown: CooldownSettings,
}

/// A state, for what must be shown: the chain's own cannot be made here.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Shown {
    Closed,
    Open(Instant),
    Probing,
    CoolingDown(Instant),
    AtCapacity,
    Isolated,
}

impl From<State> for Shown {
    fn from(state: State) -> Self {
        match state {
            State::Closed => Self::Closed,
            State::Open { until, .. } => Self::Open(until),
            State::Probing => Self::Probing,
            State::CoolingDown { until, .. } => Self::CoolingDown(until),
            State::AtCapacity => Self::AtCapacity,
            State::Isolated => Self::Isolated,
            _ => panic!("{state:?} is not known"),
        }
    }
}

impl Circuit {
    pub(crate) fn admit(&mut self, probe: Option<Lease>, now: Instant) -> Admitted {
        self.lease = probe.or(self.lease);
        self.lent += u64::from(probe.is_some() && self.open_until.is_none());
        Admitted {
            is_probe: probe.is_some(),
            is_hurried: self.rest.is_some_and(|rest| rest.until > now),
            moves: self.moves,
            rests: self.rests,
        }
    }

    /// What is not being probed has no probe, whichever request had been one.
    pub(crate) fn forget_lease_unless(&mut self, probing: Shown) {
        if !matches!(probing, Shown::Probing | Shown::Isolated) {
            self.lease = None;
        }
    }

    pub(crate) fn is_leased(&self, now: Instant) -> bool {
        self.lease.is_some_and(|lease| lease.until > now)
    }

    /// Ends a call's lease. Whether it had one.
    pub(crate) fn end_lease(&mut self, call: u64) -> bool {
        self.lease.take_if(|lease| lease.call == call).is_some()
    }

    /// What has to be made of an attempt.
    pub(crate) fn hear(
        &mut self,
        admitted: &Admitted,
        had_lease: bool,
        news: News,
        rules: &Rules,
        now: Instant,
    ) {
        let is_new = admitted.rests == self.rests;
        let asks_again = is_new && self.rest.is_some_and(|rest| rest.until <= now);
        let is_probe = admitted.is_probe && had_lease;
        self.failed_since += u64::from(news == News::Failure);
        if admitted.moves == self.moves {
            self.move_breaker(admitted, is_probe, news, asks_again, rules);
        }
        if is_new {
            self.move_rest(admitted, is_probe, news, rules, now);
        }
    }

    fn move_breaker(
        &mut self,
        admitted: &Admitted,
        is_probe: bool,
        news: News,
        asks_again: bool,
        rules: &Rules,
    ) {
        if self.open_until.is_some() {
            self.due = match news {
                News::None => None,
                News::Success => Some(Due::Close),
                _ if !is_probe => None,
                News::Failure | News::Silence => Some(Due::Open),
                News::Alive | News::Cooldown(_) | News::UnknownModel => Some(Due::Close),
            };
            return;
        }
        let lengthens = match news {
            News::Success => {
                self.row = 0;
                false
            }
            News::Failure | News::Silence => true,
            // A rest did not help.
            News::Cooldown(_) => asks_again,
            News::Alive | News::UnknownModel | News::None => false,
        };
        if lengthens && !admitted.is_hurried {
            self.row += 1;
            self.due = (self.row >= rules.breaker.consecutive).then_some(Due::Open);
        }
    }

    fn move_rest(
        &mut self,
        admitted: &Admitted,
        is_probe: bool,
        news: News,
        rules: &Rules,
        now: Instant,
    ) {
        let longest = rules.cooldown.at_most;
        let hint = match news {
            News::Success => return self.end_rest(),
            // It is back, and was not asked for more.
            News::Alive if is_probe => {
                self.rest.iter_mut().for_each(|rest| rest.is_lent = false);
                return;
            }
            News::Cooldown(hint) => hint.map(|hint| hint.min(longest)),
            News::UnknownModel => Some(UNKNOWN_MODEL.min(longest)),
            _ => return,
        };
        match &mut self.rest {
            // Asked while it rests, it can only ask for more.
            Some(rest) if admitted.is_hurried || rest.until > now => {
                let Some(hint) = hint.filter(|hint| now + *hint > rest.until) else { return };
                rest.until = now + hint;
                rest.is_lent |= hint >= LENT_FROM;
                self.rest_due = Some(rest.until);
            }
            last => {
                let number = last.map_or(0, |last| last.number + 1);
                let length = hint.unwrap_or_else(|| rules.cooldown.unhinted(number));
                let until = now + length;
                self.end_rest();
                self.rest = Some(Rest { until, number, is_lent: length >= LENT_FROM });
                self.rests += 1;
                self.rest_due = Some(until);
            }
        }
    }

    /// The cooldown is over, and so is its probe.
    fn end_rest(&mut self) {
        self.rest = None;
        if self.open_until.is_none() {
            self.lease = None;
        }
    }

    /// The breaker opened until then. Whether it may, after what was heard.
    pub(crate) fn opened(&mut self, until: Instant, rules: &Rules) -> bool {
        let by_share =
            self.open_until.is_none() && self.failed_since >= rules.breaker.fewest_failures();
        let may_open = self.due == Some(Due::Open) || by_share;
        self.moved(Some(until));
        may_open
    }

    /// The breaker closed. Whether it may.
    pub(crate) fn closed(&mut self) -> bool {
        let may_close = self.due == Some(Due::Close);
        self.moved(None);
        may_close
    }

    fn moved(&mut self, open_until: Option<Instant>) {
        (self.open_until, self.due, self.lease) = (open_until, None, None);
        (self.failed_since, self.row) = (0, 0);
        self.moves += 1;
    }

    /// A cooldown until then was emitted. Whether that is what had to be.
    pub(crate) fn rests_until(&mut self, until: Instant) -> bool {
        self.rest_due.take() == Some(until)
    }

    /// What should have happened by now, and did not.
    pub(crate) fn take_due(&mut self) -> Option<String> {
        let breaker = self.due.take().map(|due| format!("the breaker did not {due:?}"));
        let rest = self.rest_due.take();
        breaker.or_else(|| rest.map(|until| format!("no cooldown until {until:?}")))
    }

    /// Whether one request may go through now: a break or a cooldown is over, and no probe is out.
    pub(crate) fn is_probe_due(&self, now: Instant) -> bool {
        let shut = self.open_until.max(self.rest.map(|rest| rest.until));
        self.is_lent() && shut.is_none_or(|until| until <= now) && !self.is_leased(now)
    }

    fn is_lent(&self) -> bool {
        self.open_until.is_some() || self.rest.is_some_and(|rest| rest.is_lent)
    }

    /// The state that a snapshot must show.
    pub(crate) fn shown(&self, now: Instant) -> Shown {
        let rest = self.rest.filter(|rest| rest.is_lent || rest.until > now);
        let resting = rest.map(|rest| rest.until).filter(|until| *until > now);
        match (self.open_until, resting, rest) {
            _ if self.is_lent() && self.is_leased(now) => Shown::Probing,
            (open, Some(until), _) if open < Some(until) => Shown::CoolingDown(until),
            (Some(until), _, _) => Shown::Open(until),
            (None, _, Some(rest)) => Shown::CoolingDown(rest.until),
            (None, _, None) => Shown::Closed,
        }
    }

    /// Whether it lets a request through, as far as a snapshot shows.
    pub(crate) fn gate(&self, state: Shown, now: Instant) -> Gate {
        match state {
            Shown::Open(until) | Shown::CoolingDown(until) if until <= now => Gate::ToProbe,
            Shown::Open(until) | Shown::CoolingDown(until) => Gate::Shut(until, Precision::Exact),
            Shown::Probing => match self.lease.filter(|lease| lease.until > now) {
                Some(lease) => Gate::Shut(lease.until, Precision::AtLeast),
                // It has just been admitted.
                None => Gate::ToProbe,
            },
            _ => Gate::Open,
        }
    }
}

impl Gate {
    /// For a request that has to pass both.
    pub(crate) fn and(self, other: Self) -> Self {
        use Precision::{AtLeast, Exact};
        match (self, other) {
            (Self::Shut(one, Exact), Self::Shut(other, Exact)) => Self::Shut(one.max(other), Exact),
            (Self::Shut(one, _), Self::Shut(other, _)) => Self::Shut(one.max(other), AtLeast),
            (shut @ Self::Shut(..), _) | (_, shut @ Self::Shut(..)) => shut,
            (Self::ToProbe, _) | (_, Self::ToProbe) => Self::ToProbe,
            (Self::Open, Self::Open) => Self::Open,
        }
    }
}
