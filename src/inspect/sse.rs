//! Server-sent events out of chunks of bytes, in bounded memory.
//!
//! The ready-made parsers were looked at. `eventsource-stream` and `sse-stream` own the body and
//! buffer without bound; `sse-core` has the right shape, but throws an event that is too long away
//! together with its name, and that of a `response.completed`, which repeats the whole answer, is
//! what tells a finished stream from a broken one; none gives out an `event: error` that has no
//! data. What is needed here is less than what they do (no ids, no retry, no text), so it is done
//! here.

/// Cuts a stream into events.
pub(crate) struct Decoder {
    /// The most that is kept of an event's data, and of one line.
    cap: usize,
    /// The part of a line that has arrived.
    line: Vec<u8>,
    name: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
    /// Whether the event is longer than what was kept of it.
    cut: bool,
    /// Whether the last byte was a CR, so that an LF belongs to it.
    after_cr: bool,
    at_start: bool,
    /// Whether the event was given out and makes room for the next.
    given: bool,
}

/// An event with a name or data.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SseEvent<'a> {
    /// Empty where it has none.
    pub(crate) name: &'a [u8],
    /// The lines of its data.
    pub(crate) data: &'a [u8],
    /// Whether the event was too long and this is its beginning.
    pub(crate) cut: bool,
}

impl Decoder {
    pub(crate) fn new(cap: usize) -> Self {
        Self {
            cap,
            line: Vec::new(),
            name: Vec::new(),
            data: Vec::new(),
            has_data: false,
            cut: false,
            after_cr: false,
            at_start: true,
            given: false,
        }
    }

    /// The next event that ends within `bytes`, which are consumed up to its end.
    pub(crate) fn next(&mut self, bytes: &mut &[u8]) -> Option<SseEvent<'_>> {
        if std::mem::take(&mut self.given) {
            self.clear();
        }
        loop {
            if self.after_cr && !bytes.is_empty() {
                self.after_cr = false;
                *bytes = bytes.strip_prefix(b"\n").unwrap_or(bytes);
            }
            let Some(end) = bytes.iter().position(|byte| matches!(byte, b'\n' | b'\r')) else {
                self.keep(bytes);
                *bytes = &[];
                return None;
            };
            let (line, rest) = bytes.split_at(end);
            self.after_cr = rest[0] == b'\r';
            *bytes = &rest[1..];
            if self.end_line(line) {
                self.given = true;
                return Some(self.event());
            }
        }
    }

    /// The event that the stream ended in the midst of. The standard drops it; but many a stream
    /// ends in `data: [DONE]` without a blank line, or without any.
    pub(crate) fn finish(&mut self) -> Option<SseEvent<'_>> {
        if std::mem::take(&mut self.given) {
            self.clear();
        }
        // What has arrived of a line, then the blank line that never came.
        (self.end_line(b"") || self.end_line(b"")).then(|| self.event())
    }

    /// From here on keeps no more than this of an event.
    pub(crate) fn keep_at_most(&mut self, cap: usize) {
        self.cap = cap;
    }

    /// Ends a line with its last part. `true` if an event ends with it.
    fn end_line(&mut self, part: &[u8]) -> bool {
        if self.line.is_empty() && !self.at_start && part.len() <= self.cap {
            return self.take_line(part);
        }
        self.keep(part);
        let line = std::mem::take(&mut self.line);
        let bare = if std::mem::take(&mut self.at_start) {
            line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&line)
        } else {
            &line
        };
        let ended = self.take_line(bare);
        self.line = line;
        self.line.clear();
        ended
    }

    /// Takes a whole line. `true` if it is the blank one behind an event.
    fn take_line(&mut self, line: &[u8]) -> bool {
        if line.is_empty() {
            if self.name.is_empty() && !self.has_data {
                // Comments, ids and retries are no event.
                self.clear();
                return false;
            }
            return true;
        }
        let (field, value) = match line.iter().position(|byte| *byte == b':') {
            Some(colon) => (&line[..colon], &line[colon + 1..]),
            None => (line, &[][..]),
        };
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match field {
            b"event" => {
                self.name.clear();
                self.name.extend_from_slice(value);
            }
            b"data" => {
                if std::mem::replace(&mut self.has_data, true) {
                    self.cut |= !append(&mut self.data, b"\n", self.cap);
                }
                self.cut |= !append(&mut self.data, value, self.cap);
            }
            _ => {}
        }
        false
    }

    /// Keeps the part of a line that has arrived, as much as there is room for.
    fn keep(&mut self, part: &[u8]) {
        self.cut |= !append(&mut self.line, part, self.cap);
    }

    fn event(&self) -> SseEvent<'_> {
        SseEvent { name: &self.name, data: &self.data, cut: self.cut }
    }

    fn clear(&mut self) {
        self.name.clear();
        self.data.clear();
        self.has_data = false;
        self.cut = false;
    }
}

/// Appends what fits below `cap`; whether that was all.
fn append(buffer: &mut Vec<u8>, more: &[u8], cap: usize) -> bool {
    let room = cap.saturating_sub(buffer.len());
    buffer.extend_from_slice(&more[..more.len().min(room)]);
    more.len() <= room
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Seen = (String, String, bool);

    fn seen(event: SseEvent<'_>) -> Seen {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (text(event.name), text(event.data), event.cut)
    }

    /// The events of a stream that arrives in these chunks, and the one that it ended in.
    fn decode<'a>(
        chunks: impl IntoIterator<Item = &'a [u8]>,
        cap: usize,
    ) -> (Vec<Seen>, Option<Seen>) {
        let mut decoder = Decoder::new(cap);
        let mut events = Vec::new();
        for mut chunk in chunks {
            while let Some(event) = decoder.next(&mut chunk) {
                events.push(seen(event));
            }
            assert!(chunk.is_empty());
        }
        let last = decoder.finish().map(seen);
        (events, last)
    }

    fn shown(stream: &str) -> String {
        let (events, last) = decode([stream.as_bytes()], 64);
        let mut shown: Vec<_> =
            events.iter().map(|(name, data, _)| format!("{name}={data}")).collect();
        shown.extend(last.map(|(name, data, _)| format!("…{name}={data}")));
        shown.join(" ").replace('\n', "\\n")
    }

    #[test]
    fn reads_events_as_the_standard_has_them() {
        for (stream, events) in [
            ("", ""),
            ("data: a\n\n", "=a"),
            ("data:a\n\ndata:  b\n\n", "=a = b"),
            ("data: a\r\rdata: b\r\r", "=a =b"),
            ("data: a\r\n\r\ndata: b\r\n\r\n", "=a =b"),
            ("data: a\r\n\ndata: b\n\r\n", "=a =b"),
            ("\u{feff}data: a\n\n", "=a"),
            ("\u{feff}\u{feff}data: a\n\n", ""),
            ("data: a\ndata\ndata: b\n\n", "=a\\n\\nb"),
            ("event: x\ndata: a\nevent: y\n\ndata: b\n\n", "y=a =b"),
            (": ping\n\n:\n: data: a\n\n\n\n", ""),
            ("id: 1\nretry: 5\n\ndata: a\nid: 2\n\n", "=a"),
            ("data\n\n", "="),
            ("event: error\n\n", "error="),
            ("Data: a\n data: b\ndatas: c\n\n", ""),
            ("data: a", "…=a"),
            ("data: a\n", "…=a"),
            ("data: a\n\nevent: x", "=a …x="),
            ("data: a\n\n: bye", "=a"),
        ] {
            assert_eq!(shown(stream), events, "{stream:?}");
        }
    }

    #[test]
    fn of_an_event_that_is_too_long_keeps_the_name_and_the_beginning() {
        let long = format!("event: x\ndata: {}\n\ndata: b\n\n", "a".repeat(1000));
        let (events, last) = decode([long.as_bytes()], 16);
        assert_eq!(events[0], ("x".into(), "a".repeat(10), true));
        assert_eq!(events[1], (String::new(), "b".into(), false));
        assert_eq!(last, None);

        let mut decoder = Decoder::new(16);
        for _ in 0..10_000 {
            assert_eq!(decoder.next(&mut &b"data: aaaaaa\n"[..]), None);
            assert_eq!(decoder.next(&mut &b"data: aaaaaaaaaaaaaaaa"[..]), None);
        }
        assert!(decoder.line.capacity() + decoder.data.capacity() + decoder.name.capacity() < 200);
    }

    proptest! {
        #[test]
        fn any_cut_gives_the_same_events(
            stream in "(data|event|:|id|x|: |\u{feff}|é|[\r\n]|\n\n|\r\n){0,40}",
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..10),
            cap in 0_usize..20,
        ) {
            let bytes = stream.as_bytes();
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let chunks = cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]);
            prop_assert_eq!(decode(chunks, cap), decode([bytes], cap));
        }
    }
}
