//! How far a stream has come, by what its events say: preamble, content, an error, the end.

use super::meaning::Meaning;
use super::object::ContentRules;
use super::sse::Decoder;

/// Follows a stream from its first byte to its last. How its bytes are cut into chunks makes no
/// difference.
pub(crate) struct Peek {
    decoder: Decoder,
    bytes_left: usize,
    events_left: usize,
    /// Whether the stream is one of the known APIs', which end in a marker.
    ends_in_marker: bool,
    /// Whether a choice said why it is over. Not every server sends `[DONE]` after that.
    finished: bool,
    /// Whether an answer has ended well before it had any content.
    ended_empty: bool,
    rules: ContentRules,
    phase: Phase,
}

/// How far a stream has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Nothing yet but what precedes content.
    Preamble,
    /// There will be no content.
    Refused(Refusal),
    /// There was content, or a limit was reached.
    Content,
    /// The stream's last word was heard, or it ended as it should.
    Complete,
    /// After its content came an error that said this, or an end without the marker.
    Broken(Option<Vec<u8>>),
}

/// Why there will be no content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// An error came first, and said this.
    Error(Vec<u8>),
    /// The end came first.
    Ended,
    /// The end came first, and was a good one: the answer has no content.
    NoContent,
}

impl Peek {
    /// The most that is kept of an event after the commit.
    const KEPT: usize = 64 * 1024;

    pub(crate) fn new(max_bytes: usize, max_events: usize, rules: ContentRules) -> Self {
        let mut peek = Self {
            decoder: Decoder::new(max_bytes),
            bytes_left: max_bytes,
            events_left: max_events,
            ends_in_marker: false,
            finished: false,
            ended_empty: false,
            rules,
            phase: Phase::Preamble,
        };
        if max_bytes == 0 || max_events == 0 {
            peek.commit();
        }
        peek
    }

    pub(crate) fn phase(&self) -> &Phase {
        &self.phase
    }

    /// Whether a caller who stops reading here has had the whole answer.
    pub(crate) fn may_stop(&self) -> bool {
        self.phase == Phase::Complete || (self.phase == Phase::Content && self.finished)
    }

    /// Reads what has arrived.
    pub(crate) fn push(&mut self, mut bytes: &[u8]) {
        if self.phase == Phase::Preamble {
            let within = bytes.len().min(self.bytes_left);
            let mut peeked = &bytes[..within];
            while self.phase == Phase::Preamble {
                let Some(event) = self.decoder.next(&mut peeked) else { break };
                let meaning = Meaning::of(event, self.rules);
                self.events_left -= 1;
                self.take(meaning);
                if self.events_left == 0 && self.phase == Phase::Preamble {
                    self.commit();
                }
            }
            self.bytes_left -= within;
            if self.bytes_left == 0 && self.phase == Phase::Preamble {
                self.commit();
            }
            bytes = &bytes[within - peeked.len()..];
        }
        while self.phase == Phase::Content {
            let Some(event) = self.decoder.next(&mut bytes) else { break };
            let meaning = Meaning::of(event, self.rules);
            self.take(meaning);
        }
    }

    /// The stream has ended, and not by a failure of the transport.
    pub(crate) fn end(&mut self) {
        if matches!(self.phase, Phase::Preamble | Phase::Content)
            && let Some(event) = self.decoder.finish()
        {
            // What was cut in the middle is no content.
            if Meaning::is_whole(&event) {
                let meaning = Meaning::of(event, self.rules);
                self.take(meaning);
            }
        }
        match self.phase {
            Phase::Preamble => self.refuse_at_end(),
            Phase::Content if self.ends_in_marker && !self.finished => {
                self.phase = Phase::Broken(None);
            }
            Phase::Content => self.phase = Phase::Complete,
            _ => {}
        }
    }

    fn take(&mut self, meaning: Meaning) {
        let preamble = self.phase == Phase::Preamble;
        self.ends_in_marker |= !matches!(meaning, Meaning::Silence | Meaning::Unknown);
        match meaning {
            Meaning::Silence | Meaning::Preamble => {}
            Meaning::Unknown | Meaning::Content => self.commit(),
            Meaning::Finish { speaks: false, good: true, last }
                if preamble && self.rules.empty_answers =>
            {
                self.ended_empty = true;
                self.finished |= last;
            }
            Meaning::Finish { last, .. } => {
                self.commit();
                self.finished |= last;
            }
            Meaning::Answer { empty: true } if preamble && self.rules.empty_answers => {
                self.phase = Phase::Refused(Refusal::NoContent);
            }
            Meaning::Error(said) if preamble => self.phase = Phase::Refused(Refusal::Error(said)),
            Meaning::End if preamble => self.refuse_at_end(),
            Meaning::Error(said) => self.phase = Phase::Broken(Some(said)),
            Meaning::End | Meaning::Answer { .. } => self.phase = Phase::Complete,
        }
    }

    fn refuse_at_end(&mut self) {
        let refusal = if self.ended_empty { Refusal::NoContent } else { Refusal::Ended };
        self.phase = Phase::Refused(refusal);
    }

    fn commit(&mut self) {
        if self.phase == Phase::Preamble {
            self.phase = Phase::Content;
            self.decoder.keep_at_most(Self::KEPT);
        }
    }
}

#[cfg(test)]
mod tests;
