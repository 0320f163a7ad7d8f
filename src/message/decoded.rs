//! A text without its escapes.
//!
//! A key comes back percent-encoded, escaped as in JSON or HTML, or several of these within each
//! other, and split by line breaks and characters that are not seen. Decoding it pass by pass would
//! let a hostile text ask for as many passes as it has characters. So there is one pass, with a
//! stack: whenever the last characters are an escape, what it stands for takes their place, which
//! may be the end of another escape.

use super::characters::is_hidden;

/// A text with every escape decoded, to any depth, and without line breaks and hidden characters.
/// A `+` has become a space, since forms write the one for the other.
pub(super) struct Decoded {
    pub(super) bytes: Vec<u8>,
    /// Where each byte's source begins and ends in the text.
    begins: Vec<usize>,
    ends: Vec<usize>,
    /// Whether spaces are skipped, because a line has begun.
    at_line_start: bool,
    /// From here on nothing that was read can be the beginning of an escape.
    plain_from: usize,
}

impl Decoded {
    /// `None` where there is nothing to decode.
    pub(super) fn of(text: &str) -> Option<Self> {
        // Without a branch for each byte: most messages are plain.
        let special = text.bytes().fold(false, |special, byte| special | is_special(byte));
        special.then(|| Self::of_special(text))
    }

    /// Where in the text these bytes come from.
    pub(super) fn source(&self, from: usize, to: usize) -> std::ops::Range<usize> {
        self.begins[from]..self.ends[to - 1]
    }

    /// Whether something was left out before this byte.
    pub(super) fn is_split_before(&self, at: usize) -> bool {
        at > 0 && self.begins.get(at).is_some_and(|begin| *begin != self.ends[at - 1])
    }

    /// How many bytes there are before an escape that the text's end breaks off.
    pub(super) fn without_broken_escape(&self) -> usize {
        const LONGEST: usize = 9;
        let tail = self.bytes.len().saturating_sub(LONGEST);
        let begins =
            self.bytes[tail..].iter().rposition(|byte| matches!(byte, b'%' | b'\\' | b'&'));
        let Some(at) = begins.map(|at| tail + at) else { return self.bytes.len() };
        let rest = &self.bytes[at + 1..];
        let broken = match self.bytes[at] {
            b'%' => rest.len() < 2 && rest.iter().all(u8::is_ascii_hexdigit),
            b'\\' => match rest {
                [] => true,
                [b'u' | b'U' | b'x' | b'X', digits @ ..] => {
                    let digits = digits.strip_prefix(b"{").unwrap_or(digits);
                    digits.iter().all(u8::is_ascii_hexdigit)
                }
                _ => false,
            },
            _ => {
                rest.len() < LONGEST - 2
                    && rest.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'#')
            }
        };
        if broken { at } else { self.bytes.len() }
    }

    fn of_special(text: &str) -> Self {
        let mut decoded = Self {
            bytes: Vec::with_capacity(text.len()),
            begins: Vec::with_capacity(text.len()),
            ends: Vec::with_capacity(text.len()),
            at_line_start: false,
            plain_from: 0,
        };
        let mut at = 0;
        while at < text.len() {
            if !decoded.at_line_start && decoded.bytes.len() >= decoded.plain_from {
                at = decoded.copy_plain(text.as_bytes(), at);
            }
            let Some(character) = text[at..].chars().next() else { break };
            let end = at + character.len_utf8();
            decoded.push(Unit::Character(character), at, end);
            at = end;
        }
        decoded
    }

    /// Copies what no escape can begin in; returns where that ends.
    fn copy_plain(&mut self, text: &[u8], from: usize) -> usize {
        let length = text[from..].iter().position(|byte| is_special(*byte));
        let to = length.map_or(text.len(), |length| from + length);
        self.bytes.extend_from_slice(&text[from..to]);
        self.begins.extend(from..to);
        self.ends.extend(from + 1..=to);
        to
    }

    /// Puts this on the stack, and what the escape stands for that it ends, if it ends one.
    fn push(&mut self, unit: Unit, begin: usize, end: usize) {
        let mut next = Some((unit, begin, end));
        while let Some((unit, begin, end)) = next.take() {
            let last = match unit {
                Unit::Character(character) if is_hidden(character) => {
                    self.skip(character);
                    return;
                }
                Unit::Character(' ') if self.at_line_start => return,
                Unit::Character(character) if character.is_ascii() => character as u8,
                Unit::Character(character) => {
                    let mut utf8 = [0; 4];
                    for byte in character.encode_utf8(&mut utf8).bytes() {
                        self.place(byte, begin, end);
                    }
                    return;
                }
                Unit::Byte(byte @ 0x80..) => {
                    self.place(byte, begin, end);
                    self.skip_hidden_tail();
                    return;
                }
                Unit::Byte(byte) if is_hidden(char::from(byte)) => {
                    self.skip(char::from(byte));
                    return;
                }
                Unit::Byte(byte) => byte,
            };
            self.place(if last == b'+' { b' ' } else { last }, begin, end);
            if let Some((unit, length)) = self.escape_that_ends_with(last) {
                let from = self.bytes.len() - length;
                let begin = self.begins[from];
                self.truncate(from);
                next = Some((unit, begin, end));
            }
        }
    }

    fn place(&mut self, byte: u8, begin: usize, end: usize) {
        /// What follows the first character of the longest escape that is known, `\u{10FFFF}`.
        const LONGEST: usize = 10;
        self.at_line_start = false;
        self.bytes.push(byte);
        self.begins.push(begin);
        self.ends.push(end);
        if is_special(byte) {
            self.plain_from = self.bytes.len() + LONGEST;
        }
    }

    fn truncate(&mut self, length: usize) {
        self.bytes.truncate(length);
        self.begins.truncate(length);
        self.ends.truncate(length);
    }

    fn skip(&mut self, hidden: char) {
        self.at_line_start |= matches!(hidden, '\n' | '\r' | '\u{85}' | '\u{2028}' | '\u{2029}');
    }

    /// Takes a hidden character off the stack whose bytes were escaped one by one.
    fn skip_hidden_tail(&mut self) {
        for length in 2..=4.min(self.bytes.len()) {
            let from = self.bytes.len() - length;
            let Ok(tail) = str::from_utf8(&self.bytes[from..]) else { continue };
            if let Some(hidden) = tail.chars().next().filter(|hidden| is_hidden(*hidden)) {
                self.truncate(from);
                self.skip(hidden);
            }
            return;
        }
    }

    /// What the escape stands for that ends here, and its length.
    fn escape_that_ends_with(&self, last: u8) -> Option<(Unit, usize)> {
        if let [.., b'\\', _] = *self.bytes {
            return match last {
                b'u' | b'U' | b'x' | b'X' => None,
                b'n' => Some((Unit::Character('\n'), 2)),
                b'r' => Some((Unit::Character('\r'), 2)),
                b't' => Some((Unit::Character('\t'), 2)),
                _ => Some((Unit::Byte(last), 2)),
            };
        }
        match last {
            b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F' => match *self.bytes {
                [.., b'%', high, low] => Some((Unit::Byte(number(&[high, low])? as u8), 3)),
                [.., b'\\', b'x' | b'X', high, low] => {
                    Some((Unit::Byte(number(&[high, low])? as u8), 4))
                }
                [.., b'\\', b'u' | b'U', a, b, c, d] => {
                    Some((character(number(&[a, b, c, d])?), 6))
                }
                _ => None,
            },
            b'}' => self.bracketed(b"{", |digits| {
                (self.bytes.len() >= digits.len() + 4).then_some(())?;
                Some((character(number(digits)?), digits.len() + 4))
            }),
            b';' => self.bracketed(b"&", |name| Some((entity(name)?, name.len() + 2))),
            b'>' => self.bracketed(b"<", |tag| {
                let tag = tag.trim_ascii_end();
                let tag = tag.strip_suffix(b"/").unwrap_or(tag).trim_ascii_end();
                let breaks = tag.eq_ignore_ascii_case(b"br") || tag.eq_ignore_ascii_case(b"wbr");
                breaks.then_some(())?;
                let opened = self.bytes.iter().rposition(|byte| *byte == b'<')?;
                Some((Unit::Character('\n'), self.bytes.len() - opened))
            }),
            _ => None,
        }
    }

    /// Looks at what lies between an opening character and the last one, if it is short.
    fn bracketed(
        &self,
        open: &[u8; 1],
        read: impl FnOnce(&[u8]) -> Option<(Unit, usize)>,
    ) -> Option<(Unit, usize)> {
        const LONGEST: usize = 9;
        let inner = &self.bytes[..self.bytes.len() - 1];
        let tail = &inner[inner.len().saturating_sub(LONGEST + 1)..];
        let at = tail.iter().rposition(|byte| *byte == open[0])?;
        // `{` opens an escape only after `\u`.
        let is_unicode = || {
            let before = inner.len() - (tail.len() - at);
            inner[..before].ends_with(b"\\u") || inner[..before].ends_with(b"\\U")
        };
        (open != b"{" || is_unicode()).then(|| read(&tail[at + 1..])).flatten()
    }
}

/// What stands in a text, or what an escape in it stands for.
#[derive(Clone, Copy)]
enum Unit {
    Byte(u8),
    Character(char),
}

/// What an escape may begin or consist of, and what is left out or changed.
fn is_special(byte: u8) -> bool {
    !matches!(byte, b' '..=b'~') | matches!(byte, b'%' | b'\\' | b'&' | b'+' | b'<')
}

fn number(digits: &[u8]) -> Option<u32> {
    let hexadecimal = !digits.is_empty() && digits.iter().all(u8::is_ascii_hexdigit);
    hexadecimal.then(|| u32::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()).flatten()
}

/// A half of a surrogate pair is no character, and part of no key.
fn character(code: u32) -> Unit {
    Unit::Character(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER))
}

fn entity(name: &[u8]) -> Option<Unit> {
    let byte = match name {
        [b'#', b'x' | b'X', digits @ ..] => return Some(character(number(digits)?)),
        [b'#', digits @ ..] => {
            let decimal = digits.iter().all(u8::is_ascii_digit).then_some(digits)?;
            return Some(character(str::from_utf8(decimal).ok()?.parse().ok()?));
        }
        b"amp" => b'&',
        b"lt" => b'<',
        b"gt" => b'>',
        b"quot" => b'"',
        b"apos" => b'\'',
        b"sol" => b'/',
        b"bsol" => b'\\',
        b"plus" => b'+',
        b"equals" => b'=',
        b"colon" => b':',
        b"period" => b'.',
        b"lowbar" => b'_',
        b"percnt" => b'%',
        b"nbsp" => b' ',
        b"shy" | b"zwj" | b"zwnj" | b"NewLine" => b'\n',
        _ => return None,
    };
    Some(Unit::Byte(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(text: &str) -> String {
        Decoded::of(text)
            .map_or_else(|| text.to_owned(), |decoded| String::from_utf8(decoded.bytes).unwrap())
    }

    #[test]
    fn escapes_are_decoded_to_any_depth() {
        for (text, expected) in [
            ("plain", "plain"),
            ("%41%62", "Ab"),
            ("%2541", "A"),
            ("%25%34%31", "A"),
            ("%2525252541", "A"),
            ("%3%3%31", "1"),
            (r"\u0041", "A"),
            (r"\\u0041", "A"),
            (r"\\\\u0041 \\\\x42", "A B"),
            (r"\u{41}\U{1F600}", "A😀"),
            (r"%5Cu0041", "A"),
            (r"\u00254\u0031", "A"),
            ("&#x41;&#65;&amp;#65;&amp;amp;#65;", "AAAA"),
            ("&quot;&lt;&bogus;", "\"<&bogus;"),
            (r"a\/b\+c\\d", "a/b cd"),
            ("a+b%2Bc%20d", "a b c d"),
            (r"one\ntwo\r\n  three\tfour", "onetwothreefour"),
            ("one\n   two\u{200b}three\u{2028}four", "onetwothreefour"),
            ("a%E2%80%8Bb%0Ac%C3%A9", "abcé"),
            (r"a\u200bb&#8203;c&shy;d", "abcd"),
            ("a<br>b<BR />c<wbr/>d<b>", "abcd<b>"),
            (
                "100 % and \\ and & and %zz &; &#; \\u00 {} }",
                "100 % and  and & and %zz &; &#; \\u00 {} }",
            ),
            (r"\ud83d\ude00", "\u{fffd}\u{fffd}"),
            ("&#99999999999;", "&#99999999999;"),
        ] {
            assert_eq!(decoded(text), expected, "{text}");
        }
    }

    #[test]
    fn every_byte_knows_where_it_comes_from() {
        let text = "a%2541\u{200b}é&amp;#x62;c";
        let decoded = Decoded::of(text).unwrap();
        let sources: Vec<_> =
            (0..decoded.bytes.len()).map(|at| &text[decoded.source(at, at + 1)]).collect();
        assert_eq!(sources, ["a", "%2541", "é", "é", "&amp;#x62;", "c"]);
        let split: Vec<_> = (0..6).map(|at| decoded.is_split_before(at)).collect();
        assert_eq!(split, [false, false, true, true, false, false]);
    }

    #[test]
    fn an_escape_that_breaks_off_is_known() {
        for (text, kept) in [
            ("a%", 1),
            ("a%2", 1),
            (r"a\", 1),
            (r"a\u", 1),
            (r"a\u00", 1),
            (r"a\x4", 1),
            (r"a\u{4", 1),
            ("a&", 1),
            ("a&#x4", 1),
            ("a&quo", 1),
            ("a%zz", 4),
            ("a&bcdefghi", 10),
            ("%a plain", 8),
            ("é", 2),
        ] {
            assert_eq!(Decoded::of(text).unwrap().without_broken_escape(), kept, "{text}");
        }
    }

    #[test]
    fn a_chain_of_escapes_that_end_each_other_is_no_recursion() {
        let text = "%3".repeat(100_000) + "1";
        assert_eq!(decoded(&text), "1");
    }
}
