//! Reads what an answer says went wrong: its code, its message, how long to wait, and whom it blames.
//!
//! A status line is not enough. Gateways answer 500 for a request that is malformed, and 200 for a key
//! without credit. What they mean stands in the body, in one of a few shapes. `envelope` is the table of
//! the shapes, `codes` the table of the words in them, `hint` the table of the headers that say how long
//! to wait. A new vendor is one row. `found` is the reader.
//!
//! One reader serves failed statuses and errors inside a 200, so that both get the same verdict. It sees
//! bytes only: no I/O, no clock. A body is read once, without a tree, and what is not looked for is
//! skipped: every failover pays for this.

mod codes;
mod envelope;
mod found;
mod hint;
mod rpc;

use std::fmt;
use std::time::Duration;

use http::StatusCode;

use self::codes::Means;
use self::found::{Found, Word};
pub(crate) use self::hint::retry_after;

/// What an answer says went wrong.
///
/// `code` and `message` are the vendor's own words. They may hold a key, so nothing of this is shown
/// before `message` has made it safe.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Cause {
    pub(crate) code: Option<Box<str>>,
    pub(crate) message: Option<Box<str>>,
    /// How long to wait, as the body says it.
    pub(crate) retry_after: Option<Duration>,
    pub(crate) blames: Blame,
    status: Option<u16>,
    quota: bool,
    surely: bool,
}

/// Whom an answer blames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Blame {
    /// The request: it is malformed, too long, or its content is refused.
    Request,
    /// The model: the provider does not have it.
    Model,
    /// The key, its rights, or the account's balance.
    Account,
    /// The provider: it is at a limit, overloaded or broken.
    Provider,
    /// What was said does not tell.
    #[default]
    Unknown,
}

impl Cause {
    /// The most of a body that is looked at.
    pub(crate) const LOOKED_AT: usize = 16 * 1024;
    /// A code is a word. What is longer is none.
    const LONGEST_CODE: usize = 64;

    /// Reads a body. Whatever it is, something is made of it: the text of a body that is no JSON is its
    /// message.
    pub(crate) fn read(body: &[u8]) -> Self {
        let body = &body[..body.len().min(Self::LOOKED_AT)];
        let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body).trim_ascii();
        let json = event_data(body).unwrap_or(body);
        match json.first() {
            Some(b'{' | b'[' | b'"') => {
                let mut found = Found::default();
                let is_json = found.read(json);
                let mut cause = Self::of(found);
                if cause.message.is_none() {
                    let rewritten = if is_json { rewrite(json) } else { None };
                    cause.message = rewritten.or_else(|| text(json));
                }
                cause
            }
            _ => Self { message: text(json), ..Self::default() },
        }
    }

    /// What a caller's own check says, in the same terms.
    pub(crate) fn said(message: &str, code: Option<&str>) -> Self {
        let mut found = Found::default();
        if let Some(code) = code {
            found.codes.push((0, Word::Text(code.into())));
        }
        found.message = Some((0, message.into()));
        Self::of(found)
    }

    fn of(mut found: Found<'_>) -> Self {
        found.codes.sort_by_key(|(rank, _)| *rank);
        let message = found.message.take().map(|(_, text)| text);
        let message = message.filter(|text| !text.is_empty());
        let text = message.as_deref().unwrap_or_default();
        // What is too long for a code is an identifier, and hides no status behind it.
        let is_code = |number: &i64| i32::try_from(*number).is_ok();
        let number = found.codes.iter().filter_map(|(_, word)| word.number()).find(is_code);

        let (known, means) = if found.is_rpc {
            (None, number.map(|code| rpc::means(code, text)))
        } else {
            let (word, means) = known(&found).unzip();
            (word, weigh(means, number))
        };
        let http = number.and_then(|code| u16::try_from(code).ok());
        let http = http.filter(|status| !found.is_rpc && (400..600).contains(status));

        // A number says less than a word of the same answer.
        let code = found.codes.first().map(|(_, first)| match (first.number(), known) {
            (Some(_), Some(word)) => word.shown(),
            _ => first.shown(),
        });
        let means = means.unwrap_or(Means::Unknown);
        Self {
            code: code.filter(|code| code.len() <= Self::LONGEST_CODE),
            blames: means.blame(text),
            status: http.or(means.status()),
            quota: means == Means::Quota,
            surely: !matches!(means, Means::Malformed | Means::Status(_)),
            retry_after: found.wait,
            message: message.map(Into::into),
        }
    }

    /// The status that an answer with this code would have.
    pub(crate) fn status(&self) -> Option<StatusCode> {
        self.status.and_then(|status| StatusCode::from_u16(status).ok())
    }

    /// Whether the account has used up what it may use, or has paid for.
    pub(crate) fn is_quota(&self) -> bool {
        self.quota
    }

    /// Whether the request is blamed by a code of its own. `invalid_request_error` and a bare number are
    /// none: vendors say them of keys, too.
    pub(crate) fn surely_blames_request(&self) -> bool {
        self.blames == Blame::Request && self.surely
    }

    #[cfg(test)]
    pub(crate) fn with_code(code: &str) -> Self {
        Self::said("", Some(code))
    }
}

impl fmt::Debug for Cause {
    /// Leaves out the message and the code, which may hold what must not be logged.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cause")
            .field("blames", &self.blames)
            .field("status", &self.status)
            .field("retry_after", &self.retry_after)
            .finish_non_exhaustive()
    }
}

/// The first word that the table knows; one that says little only where no other is known.
fn known<'f, 'de>(found: &'f Found<'de>) -> Option<(&'f Word<'de>, Means)> {
    let words =
        || found.codes.iter().filter_map(|(rank, word)| Some((word, codes::means(*rank, word)?)));
    words().find(|(_, means)| *means != Means::Malformed).or_else(|| words().next())
}

/// A status among the codes counts where no word is known, or one that says little and disagrees.
fn weigh(word: Option<Means>, number: Option<i64>) -> Option<Means> {
    let status = number.and_then(codes::of_status);
    match (word, status) {
        (None, status) => status,
        (Some(Means::Malformed), Some(Means::Limit | Means::Failed)) => status,
        (word, _) => word,
    }
}

/// The data of the first event that has any, where a body is an event stream in spite of its status.
fn event_data(body: &[u8]) -> Option<&[u8]> {
    if !(body.starts_with(b"data:") || body.starts_with(b"event:")) {
        return None;
    }
    let mut lines = body.split(|byte| matches!(byte, b'\n' | b'\r'));
    lines.find_map(|line| line.strip_prefix(b"data:")).map(<[u8]>::trim_ascii)
}

fn text(body: &[u8]) -> Option<Box<str>> {
    (!body.is_empty()).then(|| String::from_utf8_lossy(body).into())
}

/// JSON without a message, written anew, so that no escape hides a key from the search for keys.
fn rewrite(json: &[u8]) -> Option<Box<str>> {
    let value: serde_json::Value = serde_json::from_slice(json).ok()?;
    Some(value.to_string().into())
}

#[cfg(test)]
mod tests;
