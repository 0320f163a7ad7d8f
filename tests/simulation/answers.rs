//! What a provider may do with one request, and what that means by the crate's documentation.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use futures_util::StreamExt;
use http::StatusCode;
use reqwest::{Body, Response, ResponseBuilderExt, Url};
use reqwest_failover::Reason;
use reqwest_middleware::{Error, Result};

use crate::settings::{Mood, chance, ms, pick};

/// One request's fate at a provider.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answer {
    pub(crate) script: Script,
    /// Milliseconds before it is done.
    pub(crate) wait: u64,
    /// How often it is polled in vain after that.
    pub(crate) yields: u8,
    pub(crate) body: Content,
    pub(crate) blames: Blames,
}

/// What the body of an error blames, by its code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blames {
    Nothing,
    TheRequest,
    TheQuota,
    TheModel,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Script {
    Status(u16, Hint),
    /// Answers 200 from another URL than the one that was asked.
    Redirect,
    /// The host's name cannot be resolved.
    Unreachable,
    /// The connection breaks.
    Reset,
    /// A layer below cannot build the request.
    Unbuildable,
    Hang,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hint {
    None,
    Millis(u64),
    Seconds(u64),
    Garbage,
    PastDate,
}

/// What follows the headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Whole,
    /// In pieces, with pauses.
    Dribbled,
    Broken,
    Endless,
}

/// What the provider's health pays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Price {
    Accepted,
    Unhurt,
    Failure,
    Cooldown(Option<Duration>),
}

/// What is documented to come of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Meaning {
    pub(crate) reason: Reason,
    pub(crate) status: Option<u16>,
    pub(crate) price: Price,
    pub(crate) ambiguous: bool,
    /// Whether it concerns the provider, whatever the key.
    pub(crate) concerns_provider: bool,
    /// Whether the provider does not have the model.
    pub(crate) lacks_model: bool,
}

impl Answer {
    pub(crate) const WELL: Self = Self {
        script: Script::Status(200, Hint::None),
        wait: 0,
        yields: 0,
        body: Content::Whole,
        blames: Blames::Nothing,
    };

    pub(crate) const HANGS: Self = Self { script: Script::Hang, ..Self::WELL };

    pub(crate) fn draw(mood: Mood, rng: &mut Rng) -> Self {
        let script = match mood {
            Mood::Well | Mood::Slow => Script::Status(pick(rng, &[200, 200, 200, 204]), Hint::None),
            Mood::Brown(share) if chance(rng, share) => Script::any_failure(rng),
            Mood::Brown(_) => Script::Status(200, Hint::None),
            Mood::Dead => Script::Status(pick(rng, &[500, 502, 503, 504, 521, 529]), Hint::None),
            Mood::Hanging => Script::Hang,
            Mood::Limited => Script::Status(pick(rng, &[429, 429, 503, 529]), Hint::draw(rng)),
            Mood::Breaking => Script::Reset,
            Mood::Unreachable => Script::Unreachable,
            Mood::Refusing => Script::Status(pick(rng, &[400, 404, 422]), Hint::None),
            Mood::Redirecting => {
                let moved = Script::Status(pick(rng, &[302, 307]), Hint::None);
                pick(rng, &[Script::Redirect, moved, Script::Unbuildable])
            }
            Mood::Locked => Script::Status(pick(rng, &[401, 402, 403]), Hint::None),
            Mood::Lacking => Script::Status(404, Hint::None),
        };
        let wait = match mood {
            Mood::Slow => rng.u64(50..5_000),
            _ => pick(rng, &[0, 0, 1, 7, 20, 60]),
        };
        let bodies = [Content::Whole, Content::Whole, Content::Dribbled, Content::Broken];
        let body = if chance(rng, 5) { Content::Endless } else { pick(rng, &bodies) };
        let blames = match script {
            _ if mood == Mood::Lacking => Blames::TheModel,
            Script::Status(429, _) if chance(rng, 30) => Blames::TheQuota,
            Script::Status(400.., _) if chance(rng, 10) => Blames::TheRequest,
            _ => Blames::Nothing,
        };
        Self { script, wait, yields: pick(rng, &[0, 0, 0, 1, 3]), body, blames }
    }

    /// The answer to the request that had this URL.
    pub(crate) fn give(
        &self,
        url: Url,
        wrap: impl FnOnce(Body) -> Body,
        said: String,
    ) -> Result<Response> {
        let (status, hint, url) = match self.script {
            Script::Status(status, hint) => (status, hint, url),
            Script::Redirect => (200, Hint::None, Url::parse("https://elsewhere.test/v1").unwrap()),
            Script::Reset => return Err(Error::middleware(std::io::Error::other("scripted"))),
            Script::Unbuildable => return Err(Error::Reqwest(unbuildable())),
            Script::Hang | Script::Unreachable => unreachable!("never answers"),
        };
        let mut response = http::Response::builder().status(status).url(url);
        if let Some((name, value)) = hint.header() {
            response = response.header(name, value);
        }
        Ok(response.body(wrap(self.body.of(said))).unwrap().into())
    }

    /// What is in the answer's body.
    pub(crate) fn words(&self, id: u64, name: &str) -> String {
        let code = match self.blames {
            Blames::Nothing => return format!("call {id} at {name}"),
            Blames::TheRequest => "context_length_exceeded",
            Blames::TheQuota => "insufficient_quota",
            Blames::TheModel => "model_not_found",
        };
        format!(r#"{{"error":{{"message":"call {id} at {name}","code":"{code}"}}}}"#)
    }

    /// Whether there is a body, also one that no caller is given.
    pub(crate) fn has_body(&self) -> bool {
        matches!(self.script, Script::Status(..) | Script::Redirect)
    }

    /// Whether the body is read for its verdict, where there is time for that.
    pub(crate) fn is_read(&self) -> bool {
        matches!(self.script, Script::Status(status, _) if !matches!(status, 200..=299 | 304))
    }

    /// What is documented to come of it. What it blames is known if its body was `heard`.
    pub(crate) fn meaning(&self, transient: bool, heard: bool) -> Meaning {
        let blames = if heard { self.blames } else { Blames::Nothing };
        self.script.meaning(transient, blames)
    }
}

/// A `reqwest::Error` of a connection that was never there.
pub(crate) async fn unreachable() -> reqwest::Error {
    let error = NOWHERE.get("http://nowhere.test/").send().await.unwrap_err();
    assert!(error.is_connect(), "{error:?}");
    error
}

/// A client to which no host has an address. It is slow to make.
static NOWHERE: LazyLock<reqwest::Client> = LazyLock::new(|| {
    let client = reqwest::Client::builder().no_proxy().dns_resolver(Arc::new(NoAddress));
    client.build().unwrap()
});

struct NoAddress;

impl reqwest::dns::Resolve for NoAddress {
    fn resolve(&self, _: reqwest::dns::Name) -> reqwest::dns::Resolving {
        Box::pin(async { Err("no such host".into()) })
    }
}

/// A `reqwest::Error` of the kind that says that nothing was sent.
fn unbuildable() -> reqwest::Error {
    reqwest::Proxy::all("http://[").expect_err("no URL")
}

impl Script {
    fn any_failure(rng: &mut Rng) -> Self {
        match rng.u8(..10) {
            0 => Self::Hang,
            1 => Self::Reset,
            2 => Self::Redirect,
            3 => Self::Status(pick(rng, &[429, 503]), Hint::draw(rng)),
            4 => Self::Status(pick(rng, &[400, 404, 409, 418, 499]), Hint::None),
            5 => Self::Status(pick(rng, &[401, 402, 403]), Hint::draw(rng)),
            6 => Self::Unreachable,
            _ => Self::Status(pick(rng, &[408, 425, 500, 504, 522, 524, 599]), Hint::draw(rng)),
        }
    }

    fn meaning(self, transient: bool, blames: Blames) -> Meaning {
        let (reason, status, price, ambiguous) = match self {
            Self::Status(status, hint) => {
                let (reason, price) = price_of(status, hint, transient, blames);
                let ambiguous = price != Price::Accepted && !proves_unprocessed(status);
                (reason, Some(status), price, ambiguous)
            }
            Self::Redirect => (Reason::Redirected, Some(200), Price::Unhurt, true),
            Self::Unreachable => (Reason::Connect, None, Price::Failure, false),
            Self::Reset => (Reason::Other, None, Price::Failure, true),
            Self::Unbuildable => (Reason::Other, None, Price::Unhurt, false),
            Self::Hang => (Reason::Timeout, None, Price::Failure, true),
        };
        let accepted = price == Price::Accepted;
        let concerns_provider = matches!(reason, Reason::Connect | Reason::Auth | Reason::Quota);
        let lacks_model = blames == Blames::TheModel && !accepted;
        Meaning { reason, status, price, ambiguous, concerns_provider, lacks_model }
    }
}

/// The list of what proves that nothing was processed; what is not on it may have been.
fn proves_unprocessed(status: u16) -> bool {
    let too_late = [408, 499].contains(&status);
    [307, 308, 429, 503, 521, 522, 523].contains(&status) || status / 100 == 4 && !too_late
}

fn price_of(status: u16, hint: Hint, transient: bool, blames: Blames) -> (Reason, Price) {
    let unless_blamed = match blames {
        Blames::TheRequest => Price::Unhurt,
        Blames::Nothing | Blames::TheQuota | Blames::TheModel => Price::Failure,
    };
    let (reason, price) = match (status, hint.length()) {
        (200..=299 | 304, _) => (Reason::Ok, Price::Accepted),
        (300..=399, _) => (Reason::Redirected, Price::Unhurt),
        (402, length @ Some(_)) => (Reason::Auth, Price::Cooldown(length)),
        (401..=403, _) => (Reason::Auth, unless_blamed),
        (429, length) if blames == Blames::TheQuota => (Reason::Quota, Price::Cooldown(length)),
        (429, length) => (Reason::RateLimited, Price::Cooldown(length)),
        (503 | 529, length @ Some(_)) => (Reason::ServerError, Price::Cooldown(length)),
        (408 | 425 | 500..=599, _) => (Reason::ServerError, unless_blamed),
        _ => (Reason::ClientError, Price::Unhurt),
    };
    let retried = matches!(reason, Reason::RateLimited | Reason::Quota | Reason::ServerError);
    (reason, if transient && !retried { Price::Accepted } else { price })
}

impl Hint {
    fn draw(rng: &mut Rng) -> Self {
        match rng.u8(..7) {
            0 => Self::Millis(pick(rng, &[0, 200, 1_500, 20_000, 1_000_000])),
            1 => Self::Seconds(pick(rng, &[0, 1, 30, 9_000])),
            2 => Self::Garbage,
            3 => Self::PastDate,
            _ => Self::None,
        }
    }

    fn header(self) -> Option<(&'static str, String)> {
        Some(match self {
            Self::None => return None,
            Self::Millis(millis) => ("retry-after-ms", millis.to_string()),
            Self::Seconds(seconds) => ("retry-after", seconds.to_string()),
            Self::Garbage => ("retry-after", "soon".to_owned()),
            Self::PastDate => ("retry-after", "Thu, 01 Jan 1970 00:00:01 GMT".to_owned()),
        })
    }

    /// How long it asks for: to the millisecond, and one second where that is no time at all.
    fn length(self) -> Option<Duration> {
        Some(match self {
            Self::None | Self::Garbage => return None,
            Self::PastDate | Self::Millis(0) | Self::Seconds(0) => ms(1_000),
            Self::Millis(millis) => ms(millis),
            Self::Seconds(seconds) => Duration::from_secs(seconds),
        })
    }
}

impl Content {
    fn of(self, said: String) -> Body {
        let first = futures_util::stream::iter([Ok::<_, std::io::Error>(Bytes::from(said))]);
        match self {
            Self::Whole => Body::wrap_stream(first),
            Self::Dribbled => {
                let pieces = (0..4).map(|_| Bytes::from_static(b" "));
                let rest = futures_util::stream::iter(pieces).then(|piece| async move {
                    pause(30).await;
                    Ok(piece)
                });
                Body::wrap_stream(first.chain(rest))
            }
            Self::Broken => {
                let broken = futures_util::stream::iter([Err(std::io::Error::other("cut"))]);
                Body::wrap_stream(first.chain(broken))
            }
            Self::Endless => Body::wrap_stream(first.chain(futures_util::stream::pending())),
        }
    }
}

pub(crate) async fn pause(millis: u64) {
    tokio::time::sleep(ms(millis)).await;
}

/// The status, where there is one.
pub(crate) fn number(status: Option<StatusCode>) -> Option<u16> {
    status.map(|status| status.as_u16())
}
