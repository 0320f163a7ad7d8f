//! Why a response with a good status is no success, and what a check of one's own is shown.

use std::fmt;

use http::{HeaderMap, StatusCode};

use crate::cause::Cause;

/// An answer that [`Inspect`](super::Inspect) found nothing wrong with, for a check of one's own. Shown at
/// [`Inspect::also`](super::Inspect::also).
pub struct Answer<'a> {
    pub(super) status: StatusCode,
    pub(super) headers: &'a HeaderMap,
    pub(super) body: &'a [u8],
    pub(super) is_stream: bool,
}

impl Answer<'_> {
    /// The status, which is a 2xx.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The response's headers.
    pub fn headers(&self) -> &HeaderMap {
        self.headers
    }

    /// The body, whole; or, of a stream, everything up to its first content, and perhaps more.
    pub fn body(&self) -> &[u8] {
        self.body
    }

    /// Whether this is the beginning of a stream, of which the rest is still to come.
    pub fn is_stream(&self) -> bool {
        self.is_stream
    }
}

impl fmt::Debug for Answer<'_> {
    /// Leaves out headers and body, which may hold what must not be logged.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer")
            .field("status", &self.status)
            .field("body", &format_args!("{} bytes", self.body.len()))
            .field("is_stream", &self.is_stream)
            .finish_non_exhaustive()
    }
}

/// Why an answer with a good status is no success. Made by a check of one's own: shown at
/// [`Inspect::also`](super::Inspect::also).
#[derive(PartialEq, Eq)]
pub struct Flaw {
    kind: FlawKind,
    cause: Option<Box<Cause>>,
}

impl Flaw {
    /// A flaw that is described so in reports and logs.
    pub fn new(message: impl AsRef<str>) -> Self {
        Self::of(FlawKind::Error, Cause::said(message.as_ref(), None))
    }

    /// The same with a code. What the code means decides on the verdict, as if the provider had said it:
    /// `"rate_limit_exceeded"` rests the provider, `"content_filter"` is no failure of it, `"503"` counts
    /// like a status of 503. Without a code, and with an unknown one, it is a failure.
    pub fn code(self, code: impl AsRef<str>) -> Self {
        let message = self.cause.and_then(|cause| cause.message).unwrap_or_default();
        Self::of(self.kind, Cause::said(&message, Some(code.as_ref())))
    }
}

impl Flaw {
    fn of(kind: FlawKind, cause: Cause) -> Self {
        Self { kind, cause: Some(Box::new(cause)) }
    }

    /// An error in these words.
    pub(super) fn said(words: &[u8]) -> Self {
        Self::of(FlawKind::Error, Cause::read(words))
    }

    pub(crate) fn kind(&self) -> FlawKind {
        self.kind
    }

    #[cfg(test)]
    pub(super) fn cause(&self) -> Option<&Cause> {
        self.cause.as_deref()
    }

    /// What the provider said went wrong, or else what it is. It may hold a secret.
    pub(crate) fn message(&self) -> &str {
        let said = self.cause.as_ref().and_then(|cause| cause.message.as_deref());
        said.unwrap_or_else(|| self.kind.description())
    }

    /// What the provider said, or the check, for secrets to be removed from it.
    pub(crate) fn cause_mut(&mut self) -> Option<&mut Cause> {
        self.cause.as_deref_mut()
    }
}

impl From<FlawKind> for Flaw {
    fn from(kind: FlawKind) -> Self {
        Self { kind, cause: None }
    }
}

impl fmt::Debug for Flaw {
    /// Leaves out what was said, which may hold what must not be logged.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Flaw").field(&self.kind).finish()
    }
}

/// What is wrong with an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FlawKind {
    /// It says so, or a check does.
    Error,
    /// An empty body.
    Empty,
    /// An answer without content, where those count as flaws.
    NoContent,
    Html,
    /// A stream that ended before any content.
    Ended,
    /// The transport failed before the body was whole, or the stream had content.
    Broken,
    /// A stream without content for too long.
    Silent,
}

impl FlawKind {
    /// What to say about it where the provider said nothing.
    pub(crate) fn description(self) -> &'static str {
        match self {
            Self::Error => "an error in a successful response",
            Self::Empty => "an empty body",
            Self::NoContent => "an answer without content",
            Self::Html => "HTML where data was asked for",
            Self::Ended => "the stream ended before any content",
            Self::Broken => "the body broke off",
            Self::Silent => "no content in time",
        }
    }
}
