//! Who calls: at random moments, with requests of every kind, and not always to the end.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use fastrand::Rng;
use http::Extensions;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use reqwest::{Body, Method, Request, Response, Url};
use reqwest_failover::{Ambiguous, Replay, Report, Route, State};
use reqwest_middleware::Result;
use tokio::time::{Sleep, sleep, timeout};

use crate::answers::pause;
use crate::call::Call;
use crate::harness::{CALLERS_KEY, Harness, body_of, now};
use crate::list::List;
use crate::outcomes::{check_dropped, check_outcome};
use crate::settings::{HEALTH_KEYS, NAMES, Settings, chance, ms, pick};
use crate::turn::index;

/// What one call is to be.
pub(crate) struct Plan {
    id: u64,
    method: Method,
    body: Kind,
    keyed: bool,
    /// Whether it has the extension that allows it to be processed twice.
    replay: bool,
    /// Its own timeout.
    timeout: Option<Duration>,
    route: Way,
    cut: Cut,
    /// Its health key.
    key: Option<usize>,
    reading: Reading,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    None,
    Bytes,
    /// A stream of known length.
    Declared,
    Stream,
}

/// Where a request may go: slots of the list, and providers once the call has begun.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Way {
    Any,
    Only(Vec<usize>),
    Skip(Vec<usize>),
    First(Vec<usize>),
    Once,
}

/// What the caller does with the answer's body.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reading {
    /// Reads its beginning.
    Begun,
    /// Reads it to its end, where that comes soon.
    Whole,
    /// Keeps it for a while, unread.
    Unread(u64),
}

/// When the caller gives up.
#[derive(Clone, Copy)]
enum Cut {
    Never,
    After(Duration),
    Polls(u32),
}

impl Plan {
    pub(crate) fn draw(id: u64, settings: &Settings, rng: &mut Rng) -> Self {
        let method = pick(rng, &["GET", "POST", "POST", "PUT"]);
        let bodies = [Kind::Bytes, Kind::Bytes, Kind::Bytes, Kind::Declared, Kind::Stream];
        let cut = match chance(rng, settings.dropped) {
            false => Cut::Never,
            true if rng.bool() => Cut::Polls(rng.u32(..6)),
            true => Cut::After(ms(pick(rng, &[0, 1, 5, 50, 1_000, 30_000]))),
        };
        let mut plan = Self {
            id,
            method: method.parse().unwrap(),
            body: if method == "GET" { Kind::None } else { pick(rng, &bodies) },
            keyed: chance(rng, 20),
            replay: chance(rng, 20),
            timeout: chance(rng, 15)
                .then(|| ms(pick(rng, &[1, 50, 1_001, 5_000, 30_000, 700_000]))),
            route: Way::draw(settings.slots, rng),
            cut,
            key: None,
            reading: Reading::Begun,
        };
        // Last, so that the rest is the same without it.
        if settings.keys > 0 {
            plan.key = chance(rng, 90).then(|| rng.usize(..settings.keys));
        }
        if settings.is_limited() {
            let length = pick(rng, &[0, 10, 400, 5_000]);
            let readings = [Reading::Begun, Reading::Whole, Reading::Whole];
            plan.reading =
                if chance(rng, 30) { Reading::Unread(length) } else { pick(rng, &readings) };
        }
        plan
    }

    /// A request that some provider must answer when all are well.
    pub(crate) fn plain(id: u64, route: Way, key: Option<usize>) -> Self {
        Self {
            id,
            method: Method::POST,
            body: Kind::Bytes,
            keyed: false,
            replay: false,
            timeout: None,
            route,
            cut: Cut::Never,
            key,
            reading: Reading::Begun,
        }
    }

    fn request(&self) -> Request {
        let url = Url::parse("https://caller.test/v1/chat/completions").unwrap();
        let mut request = Request::new(self.method.clone(), url);
        let headers = request.headers_mut();
        headers.insert("x-call", HeaderValue::from(self.id));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let own = format!("Bearer {CALLERS_KEY}");
        headers.insert(AUTHORIZATION, HeaderValue::from_str(&own).unwrap());
        if self.keyed {
            // It changes nothing.
            headers.insert("idempotency-key", HeaderValue::from(self.id));
        }
        if let Some(key) = self.key {
            headers.insert("x-model", HeaderValue::from_static(HEALTH_KEYS[key]));
        }
        let body = body_of(self.id);
        if self.body == Kind::Declared {
            headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        }
        *request.body_mut() = match self.body {
            Kind::None => None,
            Kind::Bytes => Some(body.into()),
            Kind::Declared | Kind::Stream => {
                let pieces: Vec<_> =
                    body.as_bytes().chunks(4).map(Bytes::copy_from_slice).collect();
                let pieces = pieces.into_iter().map(Ok::<_, std::io::Error>);
                Some(Body::wrap_stream(futures_util::stream::iter(pieces)))
            }
        };
        *request.timeout_mut() = self.timeout;
        request
    }

    fn extensions(&self) -> Extensions {
        let names = |providers: &[usize]| {
            providers.iter().map(|provider| NAMES[*provider]).collect::<Vec<_>>()
        };
        let mut extensions = Extensions::new();
        match &self.route {
            Way::Any => None,
            Way::Only(providers) => extensions.insert(Route::only(names(providers))),
            Way::Skip(providers) => extensions.insert(Route::skip(names(providers))),
            Way::First(providers) => extensions.insert(Route::order(names(providers))),
            Way::Once => extensions.insert(Route::no_failover()),
        };
        if self.replay {
            extensions.insert(Replay::allowed());
        }
        extensions
    }

    /// What is known of the call when it begins.
    fn call(&self, harness: &Harness) -> Call {
        let snapshot = harness.chain.snapshot();
        let order = snapshot.providers().iter().map(|provider| index(provider.name())).collect();
        let order = self.route.order(order);
        let settings = &harness.settings;
        let max_attempts = match self.route {
            Way::Once => 1,
            _ => settings.max_attempts.unwrap_or(usize::MAX),
        };
        let state = |at: usize| snapshot.provider(NAMES[at]).map(|provider| provider.state());
        let usable = order.iter().filter(|at| state(**at) != Some(State::Isolated)).count();
        let replayable = match self.body {
            Kind::None | Kind::Bytes => true,
            // No copy is kept where no other provider could be asked.
            Kind::Declared => max_attempts > 1 && usable > 1,
            Kind::Stream => false,
        };
        let begun = now();
        let is_short = self.timeout.is_some_and(|timeout| timeout < settings.total_timeout);
        let time = self.timeout.filter(|_| is_short).unwrap_or(settings.total_timeout);
        let list = harness.ledger().list.clone();
        Call {
            order,
            keys: list.keys,
            list: list.number,
            max_attempts,
            replayable,
            idempotent: settings.ambiguous == Ambiguous::FailOver
                || self.replay
                || self.method != Method::POST,
            timeout: self.timeout,
            is_short,
            hopeless: usable == 0,
            key: self.key,
            ..Call::new(self.id, begun, begun + time)
        }
    }
}

impl Way {
    fn draw(providers: usize, rng: &mut Rng) -> Self {
        let mut some: Vec<usize> = (0..providers).collect();
        rng.shuffle(&mut some);
        some.truncate(1 + rng.usize(..providers));
        match rng.u8(..20) {
            0 => Self::Only(some),
            1 if some.len() < providers => Self::Skip(some),
            2 => Self::First(some),
            3 => Self::Once,
            _ => Self::Any,
        }
    }

    pub(crate) fn only(provider: usize) -> Self {
        Self::Only(vec![provider])
    }

    /// The same with the providers that are in these slots. One that would name none of them is any way.
    fn among(self, list: &List) -> Self {
        let listed = |some: Vec<usize>| -> Vec<usize> {
            some.into_iter().filter_map(|slot| list.at(slot)).collect()
        };
        match self {
            Self::Only(some) => Some(listed(some)).filter(|it| !it.is_empty()).map(Self::Only),
            Self::Skip(some) => {
                Some(listed(some)).filter(|it| it.len() < list.len()).map(Self::Skip)
            }
            Self::First(some) => Some(Self::First(listed(some))),
            Self::Any | Self::Once => Some(self),
        }
        .unwrap_or(Self::Any)
    }

    fn order(&self, order: Vec<usize>) -> Vec<usize> {
        let is_in = |some: &[usize], provider: &usize| some.contains(provider);
        match self {
            Self::Any | Self::Once => order,
            Self::Only(some) => order.into_iter().filter(|at| is_in(some, at)).collect(),
            Self::Skip(some) => order.into_iter().filter(|at| !is_in(some, at)).collect(),
            Self::First(some) => {
                let rest = order.into_iter().filter(|at| !is_in(some, at));
                some.iter().copied().chain(rest).collect()
            }
        }
    }
}

/// Makes the call, and checks all that came of it.
pub(crate) async fn call(harness: &Arc<Harness>, mut plan: Plan) {
    // The call begins before anything else happens.
    plan.route = plan.route.among(&harness.ledger().list);
    let client = harness.client.clone();
    let (request, mut extensions) = (plan.request(), plan.extensions());
    let (id, cut, reading) = (plan.id, plan.cut, plan.reading);
    let inner = Box::pin(async move {
        let result = client.execute_with_extensions(request, &mut extensions).await;
        (result, extensions)
    });
    let (timer, polls) = match cut {
        Cut::Never => (None, None),
        Cut::After(length) => (Some(Box::pin(sleep_for(length))), None),
        Cut::Polls(polls) => (None, Some(polls)),
    };
    let caller =
        Caller { harness: harness.clone(), plan, inner: Some(inner), begun: false, timer, polls };
    let outcome = caller.await;
    let now = now();
    let Some(call) = harness.ledger().calls.remove(&id) else { return };
    let Some((mut result, extensions)) = outcome else {
        return check_dropped(&mut harness.ledger(), &harness.settings, &call);
    };
    let said = match &mut result {
        Ok(response) if !matches!(reading, Reading::Unread(_)) => {
            response.chunk().await.ok().flatten()
        }
        _ => None,
    };
    check(harness, &call, (&result, &extensions), said, now);
    match (reading, &mut result) {
        (Reading::Whole, Ok(response)) => {
            let rest = async { while let Ok(Some(_)) = response.chunk().await {} };
            let _ = timeout(PATIENCE, rest).await;
        }
        (Reading::Unread(millis), Ok(_)) => pause(millis).await,
        _ => {}
    }
}

/// How long the rest of an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// Checks what the caller was given.
fn check(
    harness: &Harness,
    call: &Call,
    (result, extensions): (&Result<Response>, &Extensions),
    said: Option<Bytes>,
    now: Instant,
) {
    let id = call.id;
    let mut ledger = harness.ledger();
    ledger.current = id;
    check_outcome(&mut ledger, &harness.settings, call, result, extensions, now);
    let given = call.served().map(|at| &call.entries[at]).or(call.last_ended());
    if let (Ok(_), Some(said), Some(given)) = (result, said, given) {
        let expected = given.answer.words(id, NAMES[given.provider]);
        ledger.check(*said == *expected.as_bytes(), || format!("is answered {said:?}"));
    }
}

fn sleep_for(length: Duration) -> Sleep {
    sleep(length)
}

/// A call as it is polled, until it ends or its caller gives up.
struct Caller<F> {
    harness: Arc<Harness>,
    plan: Plan,
    inner: Option<Pin<Box<F>>>,
    begun: bool,
    timer: Option<Pin<Box<Sleep>>>,
    polls: Option<u32>,
}

impl<F: Future> Future for Caller<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let id = this.plan.id;
        let timed_out =
            this.timer.as_mut().is_some_and(|timer| timer.as_mut().poll(context).is_ready());
        if timed_out || this.polls == Some(0) {
            let mut ledger = this.harness.ledger();
            ledger.current = id;
            if let Some(call) = ledger.calls.get_mut(&id) {
                call.dropped = true;
            }
            drop(ledger);
            this.inner = None;
            return Poll::Ready(None);
        }
        this.polls = this.polls.map(|polls| polls - 1);
        if !std::mem::replace(&mut this.begun, true) {
            let call = this.plan.call(&this.harness);
            let mut ledger = this.harness.ledger();
            ledger.requests += 1;
            ledger.calls.insert(id, call);
        }
        this.harness.ledger().current = id;
        let Some(inner) = &mut this.inner else { return Poll::Ready(None) };
        inner.as_mut().poll(context).map(Some)
    }
}

/// One caller of many: calls until all calls are made.
pub(crate) async fn keep_calling(harness: Arc<Harness>, next: Arc<std::sync::atomic::AtomicU64>) {
    loop {
        let id = next.fetch_add(1, Ordering::Relaxed);
        if id > harness.settings.calls {
            return;
        }
        let (plan, wait, stray) = {
            let rng = &mut harness.ledger().rng;
            let plan = Plan::draw(id, &harness.settings, rng);
            (plan, rng.u64(..=harness.settings.pause), chance(rng, 1))
        };
        pause(wait).await;
        if stray {
            pass_through(&harness).await;
        }
        call(&harness, plan).await;
    }
}

/// A request that is none of the chain's business.
async fn pass_through(harness: &Harness) {
    let own = format!("Bearer {CALLERS_KEY}");
    let request = harness.client.get("https://other.test/v1/x").header(AUTHORIZATION, own);
    let answered = request.send().await.is_ok_and(|answer| Report::of(&answer).is_none());
    harness.ledger().check(answered, || "a stray request is not passed through".to_owned());
}

/// Isolates, restores, reorders and replaces providers, for as long as it is let.
pub(crate) async fn steer(harness: Arc<Harness>) {
    loop {
        let settings = &harness.settings;
        let (wait, action, slot, order) = {
            let rng = &mut harness.ledger().rng;
            let slot = rng.usize(..settings.slots);
            let mut order: Vec<_> = (0..settings.slots).collect();
            rng.shuffle(&mut order);
            let actions = if settings.replaced { 5 } else { 4 };
            (pick(rng, &[1, 50, 1_000, 20_000]), rng.u8(..actions), slot, order)
        };
        pause(wait).await;
        let list = harness.ledger().list.clone();
        let name = |slot: usize| list.at(slot).map(|provider| NAMES[provider]);
        let done = match (action, name(slot)) {
            (..3, None) => Ok(()),
            (0, Some(name)) => harness.chain.isolate(name),
            (1 | 2, Some(name)) => harness.chain.restore(name),
            (3, _) => harness.chain.set_order(order.into_iter().filter_map(name)),
            _ => harness.replace(),
        };
        harness.ledger().check(done.is_ok(), || format!("{done:?}"));
    }
}
