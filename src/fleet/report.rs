//! Records as text, and back.
//!
//! A report of a provider is `<provider>~<place>/<process>`, where `place` is eight hexadecimal digits of a
//! hash over the provider's name and base URL: a provider of the same name elsewhere is another one. Its
//! body is `1 n=17 f=5 s=2 o=27500/1 c=30000/0 p k a=<process>:4`: the version of the format, the report's
//! number, failures counted and answered, what is left of a break in milliseconds and how many breaks count,
//! the same of a cooldown, a probe in flight, closed just now, and whose failures were answered.
//!
//! An operator's command is `isolate/<provider>~<place>` or `order`, with the body `1 n=3 by=<process> on`,
//! `off` or the names.
//!
//! Unknown words are skipped, so that later versions may add some. Any other first word than `1` is a format
//! that this version does not read.

use std::fmt::Write;
use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::Record;
use crate::health::{HealthReport, Process};

/// What a record says. Providers are as [`provider_key`] writes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    Health { provider: String, process: Process, report: HealthReport },
    Command(Command),
}

/// What an operator wants of all processes. Of two with the same subject the greater version holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Command {
    pub(crate) subject: Subject,
    pub(crate) version: Version,
}

/// Commands of one version come from one process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version {
    pub(crate) number: u64,
    pub(crate) by: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    Isolated {
        provider: String,
        isolated: bool,
    },
    /// The names, as [`provider_name`] writes them.
    Order(Vec<String>),
}

impl Said {
    /// `None` for what this version does not read.
    pub(crate) fn parse(record: &Record) -> Option<Self> {
        let mut words = record.body().split(' ');
        if words.next() != Some(VERSION) {
            return None;
        }
        if record.key() == ORDER || record.key().starts_with(ISOLATE) {
            return Command::parse(record.key(), words).map(Self::Command);
        }
        let (provider, process) = record.key().rsplit_once('/')?;
        let process = parse_process(process)?;
        let report = parse_report(words)?;
        provider.contains('~').then(|| Self::Health { provider: provider.into(), process, report })
    }
}

impl Subject {
    /// Where a command on it is kept.
    pub(crate) fn key(&self) -> String {
        match self {
            Self::Isolated { provider, .. } => format!("{ISOLATE}{provider}"),
            Self::Order(_) => ORDER.into(),
        }
    }
}

impl Command {
    /// An order of more names than a record holds is cut: the others keep their places.
    pub(crate) fn record(&self) -> Option<Record> {
        let Version { number, by } = self.version;
        let mut body = format!("{VERSION} n={number} by={by:016x}");
        match &self.subject {
            Subject::Isolated { isolated: true, .. } => body.push_str(" on"),
            Subject::Isolated { isolated: false, .. } => body.push_str(" off"),
            Subject::Order(names) => {
                for name in names {
                    if body.len() + 1 + name.len() > Record::MAX_BODY {
                        break;
                    }
                    body.push(' ');
                    body.push_str(name);
                }
            }
        }
        Record::new(&self.subject.key(), &body)
    }

    fn parse<'r>(key: &str, mut words: impl Iterator<Item = &'r str>) -> Option<Self> {
        let number = words.next()?.strip_prefix("n=")?.parse().ok()?;
        let by = parse_process(words.next()?.strip_prefix("by=")?)?.0;
        let subject = match key.strip_prefix(ISOLATE) {
            None => Subject::Order(words.map(str::to_owned).collect()),
            Some(provider) => {
                let isolated = match words.next()? {
                    "on" => true,
                    "off" => false,
                    _ => return None,
                };
                Subject::Isolated { provider: provider.into(), isolated }
            }
        };
        Some(Self { subject, version: Version { number, by } })
    }
}

/// The record of what a process says of a provider.
pub(crate) fn health_record(
    provider: &str,
    process: Process,
    report: &HealthReport,
) -> Option<Record> {
    let HealthReport { number, failed, served, open, cooldown, is_probing, has_closed, answers } =
        report;
    let mut body = format!("{VERSION} n={number} f={failed} s={served}");
    for (word, state) in [('o', open), ('c', cooldown)] {
        if let Some((left, level)) = state {
            _ = write!(body, " {word}={}/{level}", millis(*left));
        }
    }
    for (word, holds) in [(" p", is_probing), (" k", has_closed)] {
        body.push_str(if *holds { word } else { "" });
    }
    for (process, failed) in answers {
        _ = write!(body, " a={:016x}:{failed}", process.0);
    }
    Record::new(&format!("{provider}/{:016x}", process.0), &body)
}

fn parse_report<'r>(words: impl Iterator<Item = &'r str>) -> Option<HealthReport> {
    let mut report = HealthReport::default();
    let state = |value: &str| -> Option<(Duration, u32)> {
        let (left, level) = value.split_once('/')?;
        Some((Duration::from_millis(left.parse().ok()?), level.parse().ok()?))
    };
    for word in words {
        match word.split_once('=') {
            Some(("n", value)) => report.number = value.parse().ok()?,
            Some(("f", value)) => report.failed = value.parse().ok()?,
            Some(("s", value)) => report.served = value.parse().ok()?,
            Some(("o", value)) => report.open = Some(state(value)?),
            Some(("c", value)) => report.cooldown = Some(state(value)?),
            Some(("a", value)) => {
                let (process, failed) = value.split_once(':')?;
                report.answers.push((parse_process(process)?, failed.parse().ok()?));
            }
            None if word == "p" => report.is_probing = true,
            None if word == "k" => report.has_closed = true,
            _ => {}
        }
    }
    (report.number > 0 && report.served <= report.failed).then_some(report)
}

/// Sixteen hexadecimal digits.
fn parse_process(text: &str) -> Option<Process> {
    let is_one = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_one.then(|| u64::from_str_radix(text, 16).ok())?.map(Process)
}

/// A provider's part of a key: its name, and a hash of its name and of where it is.
pub(crate) fn provider_key(name: &str, base: &str) -> String {
    format!("{}~{:08x}", provider_name(name), hash([name, "\n", base]))
}

/// A provider's name in a record: without spaces, slashes and tildes, and not longer than a record has room
/// for.
pub(crate) fn provider_name(name: &str) -> String {
    let mut encoded = utf8_percent_encode(name, &ENCODED).to_string();
    encoded.truncate(LONGEST_NAME);
    encoded
}

/// FNV-1a of 32 bits.
fn hash<'t>(parts: impl IntoIterator<Item = &'t str>) -> u32 {
    let bytes = parts.into_iter().flat_map(str::bytes);
    bytes.fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// Rounded up, so that what is left is not zero.
fn millis(duration: Duration) -> u64 {
    let millis = duration.as_nanos().div_ceil(1_000_000);
    u64::try_from(millis).unwrap_or(u64::MAX)
}

const VERSION: &str = "1";
const ISOLATE: &str = "isolate/";
const ORDER: &str = "order";
const LONGEST_NAME: usize = 90;
const ENCODED: AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.');

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(key: &str, body: &str) -> Option<Said> {
        Said::parse(&Record::new(key, body)?)
    }

    fn report() -> HealthReport {
        HealthReport {
            number: 17,
            failed: 5,
            served: 2,
            open: Some((Duration::from_millis(27_500), 1)),
            cooldown: Some((Duration::from_secs(30), 0)),
            is_probing: true,
            has_closed: true,
            answers: vec![(Process(0x9f3c), 4)],
        }
    }

    #[test]
    fn a_report_is_written_and_read_again() {
        let provider = provider_key("a b/c~d", "https://h/v1");
        let record = health_record(&provider, Process(7), &report()).unwrap();
        assert_eq!(record.body(), "1 n=17 f=5 s=2 o=27500/1 c=30000/0 p k a=0000000000009f3c:4");
        assert_eq!(provider, "a%20b%2Fc%7Ed~00c241c7");
        let said = Said::Health { provider, process: Process(7), report: report() };
        assert_eq!(Said::parse(&record), Some(said));
    }

    #[test]
    fn commands_are_written_and_read_again() {
        let version = Version { number: 3, by: 0xabc };
        let provider = provider_key("openai", "https://h/v1");
        for (subject, key, body) in [
            (
                Subject::Isolated { provider: provider.clone(), isolated: true },
                format!("isolate/{provider}"),
                "1 n=3 by=0000000000000abc on",
            ),
            (
                Subject::Isolated { provider: provider.clone(), isolated: false },
                format!("isolate/{provider}"),
                "1 n=3 by=0000000000000abc off",
            ),
            (
                Subject::Order(vec!["b".into(), "a".into()]),
                "order".into(),
                "1 n=3 by=0000000000000abc b a",
            ),
        ] {
            let command = Command { subject, version };
            let record = command.record().unwrap();
            assert_eq!((record.key(), record.body()), (&*key, body));
            assert_eq!(Said::parse(&record), Some(Said::Command(command)));
        }
    }

    #[test]
    fn an_order_that_is_too_long_is_cut_between_names() {
        let names: Vec<_> = (0..128).map(|at| provider_name(&format!("provider {at}"))).collect();
        let version = Version { number: u64::MAX, by: u64::MAX };
        let record = Command { subject: Subject::Order(names.clone()), version }.record().unwrap();
        let Some(Said::Command(Command { subject: Subject::Order(read), .. })) =
            Said::parse(&record)
        else {
            panic!("{record:?}");
        };
        assert!(read.len() > 50 && names.starts_with(&read), "{}", read.len());
    }

    #[test]
    fn an_order_fills_a_record_to_its_last_byte() {
        let version = Version { number: 1, by: 1 };
        let head = "1 n=1 by=0000000000000001".len();
        let read = |last: usize| {
            let mut names = vec!["x".repeat(89); 11];
            names.push("y".repeat(last));
            let record = Command { subject: Subject::Order(names), version }.record().unwrap();
            (record.body().len(), record.body().ends_with('y'))
        };
        let room = Record::MAX_BODY - head - 11 * 90 - 1;
        assert_eq!(read(room), (Record::MAX_BODY, true));
        assert_eq!(read(room + 1), (head + 11 * 90, false));
        assert_eq!(read(1), (head + 11 * 90 + 2, true));
    }

    #[test]
    fn a_provider_elsewhere_or_of_another_name_has_another_key() {
        let long = "ä".repeat(200);
        let keys = [
            provider_key("a", "https://h/v1"),
            provider_key("a", "https://h/v2"),
            provider_key("b", "https://h/v1"),
            provider_key(&long, "https://h/v1"),
            provider_key(&format!("{long}x"), "https://h/v1"),
        ];
        for (at, key) in keys.iter().enumerate() {
            assert!(!keys[..at].contains(key), "{key}");
            assert!(health_record(key, Process(u64::MAX), &report()).is_some(), "{key}");
        }
    }

    #[test]
    fn unknown_words_are_skipped() {
        let key = "a~00000000/0000000000000001";
        let known = parse(key, "1 n=1 f=2 s=1").unwrap();
        for body in ["1 n=1 f=2 s=1 z", "1 n=1 z=9 f=2 s=1", "1  n=1 f=2 s=1 ", "1 n=1 f=2 s=1 pp="]
        {
            assert_eq!(parse(key, body), Some(known.clone()), "{body:?}");
        }
    }

    #[test]
    fn what_is_no_report_is_not_read() {
        let key = "a~00000000/0000000000000001";
        for body in [
            "",
            "2 n=1 f=2 s=1",
            "n=1",
            "1",
            "1 f=2 s=1",
            "1 n=0 f=2 s=1",
            "1 n=1 f=1 s=2",
            "1 n=-1 f=2 s=1",
            "1 n=1 f=4294967296 s=1",
            "1 n=1 f=2 s=1 o=5",
            "1 n=1 f=2 s=1 o=5/x",
            "1 n=1 f=2 s=1 a=1:1",
            "1 n=1 f=2 s=1 a=+000000000000001:1",
        ] {
            assert_eq!(parse(key, body), None, "{body:?}");
        }
        for key in [
            "a~00000000",
            "a~00000000/1",
            "a~00000000/000000000000000g",
            "a/0000000000000001",
            "isolate/a~00000000",
            "order",
        ] {
            assert_eq!(parse(key, "1 n=1 f=2 s=1"), None, "{key:?}");
        }
    }

    #[test]
    fn the_largest_report_fits_in_a_record() {
        let long = provider_key(&"~".repeat(200), "https://h/v1");
        let most = HealthReport {
            number: u64::MAX,
            failed: u32::MAX,
            served: u32::MAX,
            open: Some((Duration::MAX, u32::MAX)),
            cooldown: Some((Duration::MAX, u32::MAX)),
            is_probing: true,
            has_closed: true,
            answers: vec![(Process(u64::MAX), u32::MAX); 16],
        };
        let record = health_record(&long, Process(u64::MAX), &most).unwrap();
        assert!(Said::parse(&record).is_some());
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_not_and_panics_nowhere(key in ".{0,40}", body in ".{0,60}") {
            _ = parse(&key, &body);
            _ = parse("order", &format!("1 {body}"));
            _ = parse("a~00000000/0000000000000001", &format!("1 n=1 f=1 s=0 {body}"));
        }

        #[test]
        fn any_report_is_read_as_it_was_written(
            number in 1u64..,
            failed: u32,
            before in 0u32..9,
            open: Option<(u32, u32)>,
            cooldown: Option<(u32, u32)>,
            is_probing: bool,
            has_closed: bool,
            answers in proptest::collection::vec((any::<u64>(), any::<u32>()), 0..16),
        ) {
            let state = |(left, level)| (Duration::from_millis(u64::from(left)), level);
            let report = HealthReport {
                number,
                failed,
                served: failed.saturating_sub(before),
                open: open.map(state),
                cooldown: cooldown.map(state),
                is_probing,
                has_closed,
                answers: answers.into_iter().map(|(process, to)| (Process(process), to)).collect(),
            };
            let record = health_record("a~00000000", Process(1), &report).unwrap();
            let said = Said::Health { provider: "a~00000000".into(), process: Process(1), report };
            prop_assert_eq!(Said::parse(&record), Some(said));
        }
    }
}
