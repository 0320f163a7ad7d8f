//! What a provider may do with one request, and what that means by the crate's documentation.

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
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Script {
    Status(u16, Hint),
    /// Answers 200 from another URL than the one that was asked.
    Redirect,
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
}

impl Answer {
    pub(crate) const WELL: Self =
        Self { script: Script::Status(200, Hint::None), wait: 0, yields: 0, body: Content::Whole };

    pub(crate) fn draw(mood: Mood, rng: &mut Rng) -> Self {
        let script = match mood {
            Mood::Well | Mood::Slow => Script::Status(pick(rng, &[200, 200, 200, 204]), Hint::None),
            Mood::Brown(share) if chance(rng, share) => Script::any_failure(rng),
            Mood::Brown(_) => Script::Status(200, Hint::None),
            Mood::Dead => Script::Status(pick(rng, &[500, 502, 503, 504, 529]), Hint::None),
            Mood::Hanging => Script::Hang,
            Mood::Limited => Script::Status(pick(rng, &[429, 429, 503]), Hint::draw(rng)),
            Mood::Breaking => Script::Reset,
            Mood::Refusing => Script::Status(pick(rng, &[400, 404, 422]), Hint::None),
            Mood::Redirecting => {
                pick(rng, &[Script::Redirect, Script::Status(302, Hint::None), Script::Unbuildable])
            }
            Mood::Locked => Script::Status(pick(rng, &[401, 403]), Hint::None),
        };
        let wait = match mood {
            Mood::Slow => rng.u64(50..5_000),
            _ => pick(rng, &[0, 0, 1, 7, 20, 60]),
        };
        let bodies = [Content::Whole, Content::Whole, Content::Dribbled, Content::Broken];
        let body = if chance(rng, 5) { Content::Endless } else { pick(rng, &bodies) };
        Self { script, wait, yields: pick(rng, &[0, 0, 0, 1, 3]), body }
    }

    /// The answer to the request that had this URL.
    pub(crate) fn give(&self, url: Url, body: &'static str, said: String) -> Result<Response> {
        let (status, hint, url) = match self.script {
            Script::Status(status, hint) => (status, hint, url),
            Script::Redirect => (200, Hint::None, Url::parse("https://elsewhere.test/v1").unwrap()),
            Script::Reset => return Err(Error::middleware(std::io::Error::other(body))),
            Script::Unbuildable => {
                return Err(Error::Reqwest(unbuildable()));
            }
            Script::Hang => unreachable!("never answers"),
        };
        let mut response = http::Response::builder().status(status).url(url);
        if let Some((name, value)) = hint.header() {
            response = response.header(name, value);
        }
        Ok(response.body(self.body.of(said)).unwrap().into())
    }
}

/// A `reqwest::Error` of the kind that says that nothing was sent.
fn unbuildable() -> reqwest::Error {
    reqwest::Proxy::all("http://[").expect_err("no URL")
}

impl Script {
    fn any_failure(rng: &mut Rng) -> Self {
        match rng.u8(..9) {
            0 => Self::Hang,
            1 => Self::Reset,
            2 => Self::Redirect,
            3 => Self::Status(pick(rng, &[429, 503]), Hint::draw(rng)),
            4 => Self::Status(pick(rng, &[400, 404, 409, 418]), Hint::None),
            5 => Self::Status(pick(rng, &[401, 402, 403]), Hint::None),
            _ => Self::Status(pick(rng, &[408, 425, 500, 504, 524, 599]), Hint::draw(rng)),
        }
    }

    pub(crate) fn meaning(self, transient: bool) -> Meaning {
        let (reason, status, price, ambiguous) = match self {
            Self::Status(status, hint) => {
                let (reason, price) = price_of(status, hint, transient);
                let accepted = price == Price::Accepted;
                (reason, Some(status), price, matches!(status, 504 | 524) && !accepted)
            }
            Self::Redirect => (Reason::Redirected, Some(200), Price::Unhurt, true),
            Self::Reset => (Reason::Other, None, Price::Failure, true),
            Self::Unbuildable => (Reason::Other, None, Price::Unhurt, false),
            Self::Hang => (Reason::Timeout, None, Price::Failure, true),
        };
        Meaning { reason, status, price, ambiguous }
    }
}

fn price_of(status: u16, hint: Hint, transient: bool) -> (Reason, Price) {
    let (reason, price) = match status {
        200..=299 | 304 => (Reason::Ok, Price::Accepted),
        300..=399 => (Reason::Redirected, Price::Unhurt),
        401..=403 => (Reason::Auth, Price::Failure),
        429 => (Reason::RateLimited, Price::Cooldown(hint.length())),
        503 if hint.length().is_some() => (Reason::ServerError, Price::Cooldown(hint.length())),
        408 | 425 | 500..=599 => (Reason::ServerError, Price::Failure),
        _ => (Reason::ClientError, Price::Unhurt),
    };
    let retried = matches!(reason, Reason::RateLimited | Reason::ServerError);
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

    /// How long it asks for, within the limits.
    fn length(self) -> Option<Duration> {
        let asked = match self {
            Self::None | Self::Garbage => return None,
            Self::PastDate => ms(1_000),
            Self::Millis(millis) => ms(millis),
            Self::Seconds(seconds) => Duration::from_secs(seconds),
        };
        Some(asked.clamp(ms(1_000), ms(300_000)))
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
