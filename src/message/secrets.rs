//! The secrets that no message may show, and where a text shows them.
//!
//! A provider may echo a key whole, cut at either end, or masked in its middle. So what is looked
//! for is not the key but every run of eight characters of it, of all keys at once: each is an
//! integer, and a table says whether it is known. Whether a text holds any of them is found out
//! without a branch for each byte, since it is asked of every failure's message, and the answer is
//! no for nearly all.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use super::characters::is_wordy;
use super::decoded::Decoded;

/// What takes the place of a secret.
pub(super) const REDACTED: &str = "[redacted]";

/// A set of secrets. Clones share it, and so does a larger set that was made of it.
#[derive(Clone, Default)]
pub(crate) struct Secrets(Option<Arc<Layer>>);

/// Secrets that were added together, and those before them.
struct Layer {
    values: Values,
    /// Made when a text may show one of them.
    index: OnceLock<Index>,
    before: Secrets,
}

impl Layer {
    fn index(&self) -> &Index {
        self.index.get_or_init(|| Index::new(&self.values))
    }
}

impl Secrets {
    /// Those that many texts will be searched for.
    pub(crate) fn new(values: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        Self::default().and(values).for_many()
    }

    /// The same secrets where many texts will be searched for them: one pass over each finds them all.
    pub(crate) fn for_many(&self) -> Self {
        let values: Vec<_> = self.layers().flat_map(|layer| &layer.values.0).cloned().collect();
        if values.is_empty() {
            return Self::default();
        }
        let values = Values::of(values);
        let index = Index::new(&values).into();
        Self(Some(Arc::new(Layer { values, index, before: Self::default() })))
    }

    /// These secrets, and more of them.
    pub(crate) fn and(&self, values: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        let mut values = values.into_iter().peekable();
        if values.peek().is_none() {
            return self.clone();
        }
        let values = Values::new(values);
        Self(Some(Arc::new(Layer { values, index: OnceLock::new(), before: self.clone() })))
    }

    /// Whether a text shows any secret.
    pub(crate) fn is_shown_in(&self, text: &str) -> bool {
        matches!(self.redact(text, true), Cow::Owned(_))
    }

    /// The text without its secrets. `complete` tells whether this is the text to its end: if not,
    /// its last characters may be the beginning of a secret, and go.
    pub(super) fn redact<'t>(&self, text: &'t str, complete: bool) -> Cow<'t, str> {
        if self.0.is_none() {
            return Cow::Borrowed(text);
        }
        let mut found = Vec::new();
        let decoded = Decoded::of(text);
        for layer in self.layers() {
            if layer.may_be_shown_in(text.as_bytes()) {
                layer.index().find(text.as_bytes(), |_| false, |from, to| found.push(from..to));
            }
            if let Some(decoded) = &decoded
                && layer.may_be_shown_in(&decoded.bytes)
            {
                layer.index().find(
                    &decoded.bytes,
                    |at| decoded.is_split_before(at),
                    |from, to| found.push(decoded.source(from, to)),
                );
            }
        }
        let end = if complete { text.len() } else { self.certain_end(text, decoded.as_ref()) };
        if found.is_empty() && end == text.len() {
            return Cow::Borrowed(text);
        }
        Cow::Owned(without(text, found, end))
    }

    fn layers(&self) -> impl Iterator<Item = &Layer> {
        std::iter::successors(self.0.as_deref(), |layer| layer.before.0.as_deref())
    }

    /// Where what may be the beginning of a secret begins, at the end of a text that was cut.
    fn certain_end(&self, text: &str, decoded: Option<&Decoded>) -> usize {
        // Half of a character that the cut parted.
        let whole = text.trim_end_matches(char::REPLACEMENT_CHARACTER).len();
        let begun = |bytes: &[u8]| self.layers().map(|layer| layer.values.begun(bytes)).max();
        let mut end = whole - begun(&text.as_bytes()[..whole]).unwrap_or(0);
        if let Some(decoded) = decoded {
            let certain = decoded.without_broken_escape();
            let certain = certain - begun(&decoded.bytes[..certain]).unwrap_or(0);
            if certain < decoded.bytes.len() {
                end = end.min(decoded.source(certain, certain + 1).start);
            }
        }
        end
    }
}

/// Replaces what was found, and drops what follows `end`.
fn without(text: &str, mut found: Vec<Range<usize>>, end: usize) -> String {
    found.sort_unstable_by_key(|range| (range.start, std::cmp::Reverse(range.end)));
    let mut shown = String::with_capacity(text.len());
    let mut at = 0;
    let mut ranges = found.into_iter().peekable();
    while let Some(mut range) = ranges.next() {
        while let Some(next) = ranges.next_if(|next| next.start < range.end) {
            range.end = range.end.max(next.end);
        }
        // A run may begin within a character.
        while !text.is_char_boundary(range.start) {
            range.start -= 1;
        }
        while !text.is_char_boundary(range.end) {
            range.end += 1;
        }
        if range.start >= end {
            break;
        }
        shown.push_str(&text[at.min(range.start)..range.start]);
        shown.push_str(REDACTED);
        at = range.end.max(at);
    }
    shown.push_str(text.get(at..end).unwrap_or_default());
    shown
}

/// The length of a run of characters that tells a secret.
const RUN: usize = 8;

/// A run that begins anywhere holds four characters that begin at a multiple of four.
const GRAM: usize = 4;

/// As many bytes as the filter is asked about at once.
const BLOCK: usize = 64;

/// Secrets, and what their escapes stand for.
struct Values(Vec<Vec<u8>>);

impl Values {
    fn new(values: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        let mut secrets: Vec<Vec<u8>> = Vec::new();
        for value in values {
            let value = value.as_ref();
            secrets.extend(Decoded::of(value).map(|decoded| decoded.bytes));
            secrets.push(value.as_bytes().to_vec());
        }
        Self::of(secrets)
    }

    fn of(mut secrets: Vec<Vec<u8>>) -> Self {
        secrets.retain(|secret| !secret.is_empty());
        secrets.sort_unstable();
        secrets.dedup();
        Self(secrets)
    }

    /// How many bytes at the end of a text are the beginning of a secret.
    fn begun(&self, text: &[u8]) -> usize {
        const LONGEST_HEAD: usize = 32;
        let begun = |secret: &[u8]| {
            let head = &secret[..secret.len().min(LONGEST_HEAD)];
            let ends = |length: &usize| {
                text.last() == Some(&head[length - 1]) && text.ends_with(&head[..*length])
            };
            (1..=head.len()).rev().find(ends).unwrap_or(0)
        };
        self.0.iter().map(|secret| begun(secret)).max().unwrap_or(0)
    }
}

impl Layer {
    /// Whether a text may show a secret. An index is dear to make, and those of one request are asked of
    /// one text.
    fn may_be_shown_in(&self, text: &[u8]) -> bool {
        /// More secrets than this are worth an index in any case.
        const FEW: usize = 4;
        let secrets = &self.values.0;
        if self.index.get().is_some()
            || secrets.len() > FEW
            || secrets.iter().any(|secret| secret.len() < RUN)
        {
            return true;
        }
        let mut grams = [0u64; FEW_WORDS];
        for gram in secrets.iter().flat_map(|secret| secret.windows(GRAM)) {
            let (word, bit) = gram_bit(gram);
            grams[word % FEW_WORDS] |= 1 << bit;
        }
        let is_shown =
            |run: &[u8]| secrets.iter().any(|secret| secret.windows(RUN).any(|known| known == run));
        text.chunks(BLOCK).enumerate().any(|(number, block)| {
            may_hold(&grams, block)
                && block.chunks_exact(GRAM).enumerate().any(|(at, gram)| {
                    let (word, bit) = gram_bit(gram);
                    let at = number * BLOCK + at * GRAM;
                    grams[word % FEW_WORDS] >> bit & 1 != 0
                        && (at.saturating_sub(RUN - GRAM)..=at)
                            .any(|at| text.get(at..at + RUN).is_some_and(is_shown))
                })
        })
    }
}

/// Secrets, as they are looked for.
struct Index {
    /// A bit for each hash of four characters that some secret holds.
    grams: Box<[u64; GRAM_WORDS]>,
    /// The runs, each at its hash or behind it; zero is a free place.
    runs: Vec<u64>,
    /// For each run: zero, or, if it reads as words, the length of the shortest secret it is in.
    /// Half of that secret must be there: a key such as `project-production-key` would otherwise
    /// take the words out of every sentence.
    wordy: Vec<u16>,
    /// Secrets shorter than a run, packed.
    short: Vec<u64>,
    /// For each byte, the lengths of the short secrets that it begins: a bit for each.
    short_lengths: [u8; 256],
}

const GRAM_WORDS: usize = 1024;
/// The same of a few secrets.
const FEW_WORDS: usize = 512;

impl Index {
    fn new(values: &Values) -> Self {
        let secrets = &values.0;
        let count: usize = secrets.iter().map(|secret| secret.len().saturating_sub(RUN - 1)).sum();
        let places = if count == 0 { 0 } else { (2 * count).next_power_of_two() };
        let mut index = Self {
            grams: Box::new([0; GRAM_WORDS]),
            runs: vec![0; places],
            wordy: vec![0; places],
            short: Vec::new(),
            short_lengths: [0; 256],
        };
        secrets.iter().for_each(|secret| index.add(secret));
        index.short.sort_unstable();
        index
    }

    fn add(&mut self, secret: &[u8]) {
        if secret.len() < RUN {
            self.short.push(packed(secret));
            self.short_lengths[usize::from(secret[0])] |= 1 << secret.len();
            return;
        }
        for gram in secret.windows(GRAM) {
            let (word, bit) = gram_bit(gram);
            self.grams[word] |= 1 << bit;
        }
        let length = u16::try_from(secret.len()).unwrap_or(u16::MAX);
        for run in secret.windows(RUN) {
            let wordy = if is_wordy(run) { length } else { 0 };
            let run = packed(run);
            let mut at = self.place_of(run);
            while self.runs[at] != 0 && self.runs[at] != run {
                at = (at + 1) & (self.runs.len() - 1);
            }
            let known = self.runs[at] == run;
            self.wordy[at] = if known { self.wordy[at].min(wordy) } else { wordy };
            self.runs[at] = run;
        }
    }

    /// Finds every secret, by where it begins and ends. `splits` tells whether something was left
    /// out before a byte.
    fn find(
        &self,
        text: &[u8],
        splits: impl Fn(usize) -> bool,
        mut found: impl FnMut(usize, usize),
    ) {
        if !self.runs.is_empty() {
            self.find_runs(text, &mut found);
        }
        if !self.short.is_empty() {
            self.find_short(text, splits, &mut found);
        }
    }

    fn find_runs(&self, text: &[u8], found: &mut impl FnMut(usize, usize)) {
        let mut shared = CommonRun::default();
        let mut next = 0;
        for (number, block) in text.chunks(BLOCK).enumerate() {
            if !may_hold(&self.grams, block) {
                continue;
            }
            let begin = number * BLOCK;
            let end = (begin + BLOCK).min((text.len() + 1).saturating_sub(RUN));
            for at in next.max(begin.saturating_sub(GRAM))..end {
                let Some(run) = text.get(at..at + RUN) else { break };
                let Some(wordy) = self.run(packed(run)) else { continue };
                if !shared.goes_on(at) {
                    shared.report(found);
                    shared = CommonRun::default();
                }
                shared.add(at, wordy);
            }
            next = end;
        }
        shared.report(found);
    }

    /// Whether the run is known, and if it reads as words, the length that it is held against.
    fn run(&self, run: u64) -> Option<u16> {
        let mut at = self.place_of(run);
        loop {
            match self.runs[at] {
                0 => return None,
                known if known == run => return Some(self.wordy[at]),
                _ => at = (at + 1) & (self.runs.len() - 1),
            }
        }
    }

    fn place_of(&self, run: u64) -> usize {
        let hash = run.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
        hash as usize & (self.runs.len() - 1)
    }

    /// Short secrets are found as whole words only: `key` is a part of many words.
    fn find_short(
        &self,
        text: &[u8],
        splits: impl Fn(usize) -> bool,
        found: &mut impl FnMut(usize, usize),
    ) {
        let joins = |at: usize| {
            let is_word = |at: usize| {
                text.get(at)
                    .is_some_and(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | 0x80..))
            };
            at > 0 && is_word(at - 1) && is_word(at) && !splits(at)
        };
        for at in 0..text.len() {
            let lengths = self.short_lengths[usize::from(text[at])];
            if lengths == 0 || joins(at) {
                continue;
            }
            for length in (1..RUN).filter(|length| lengths & (1 << length) != 0) {
                let Some(word) = text.get(at..at + length) else { break };
                if !joins(at + length) && self.short.binary_search(&packed(word)).is_ok() {
                    found(at, at + length);
                }
            }
        }
    }
}

/// What a text has in common with a secret: a run, and those that begin at the next characters.
#[derive(Default)]
struct CommonRun {
    begin: usize,
    end: usize,
    /// Whether any of it does not read as words.
    distinctive: bool,
    /// The length of the shortest secret.
    secret: u16,
}

impl CommonRun {
    fn goes_on(&self, at: usize) -> bool {
        self.end != 0 && at + RUN == self.end + 1
    }

    fn add(&mut self, at: usize, wordy: u16) {
        if self.end == 0 {
            self.begin = at;
            self.secret = u16::MAX;
        }
        self.end = at + RUN;
        self.distinctive |= wordy == 0;
        self.secret = self.secret.min(wordy);
    }

    fn report(&self, found: &mut impl FnMut(usize, usize)) {
        let length = self.end - self.begin;
        if length > 0 && (self.distinctive || 2 * length > usize::from(self.secret)) {
            found(self.begin, self.end);
        }
    }
}

/// Up to eight bytes as an integer. No secret holds a NUL, so none of these are alike.
fn packed(bytes: &[u8]) -> u64 {
    match bytes.try_into() {
        Ok(bytes) => u64::from_le_bytes(bytes),
        Err(_) => bytes.iter().rev().fold(0, |packed, byte| (packed << 8) | u64::from(*byte)),
    }
}

/// Whether a block of text may hold a part of a run.
#[inline]
fn may_hold<const WORDS: usize>(grams: &[u64; WORDS], block: &[u8]) -> bool {
    let mut bits = 0;
    for gram in block.chunks_exact(GRAM) {
        let (word, bit) = gram_bit(gram);
        bits |= grams[word % WORDS] >> bit;
    }
    bits & 1 != 0
}

/// The place of four characters in the filter.
fn gram_bit(gram: &[u8]) -> (usize, u32) {
    let gram = gram.try_into().map_or(0, u32::from_le_bytes);
    let hash = gram.wrapping_mul(0x9E37_79B1);
    ((hash >> 22) as usize, (hash >> 16) & 63)
}
