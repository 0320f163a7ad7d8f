//! How long a provider asks to be left alone: in headers, in the body, in whichever form.

use std::time::{Duration, SystemTime};

use http::header::{AsHeaderName, RETRY_AFTER};
use http::{HeaderMap, HeaderName, StatusCode};

/// The hint of an answer, if its status is one that may have a hint. `said` is the body's.
///
/// Zero and dates in the past are 1 s.
pub(crate) fn retry_after(
    status: StatusCode,
    headers: &HeaderMap,
    said: Option<Duration>,
    wall: impl FnOnce() -> SystemTime,
) -> Option<Duration> {
    let status = status.as_u16();
    if !matches!(status, 402 | 429 | 503 | 529) {
        return None;
    }
    let mut clock = Clock::Unread(wall);
    let hint = WAITS
        .iter()
        .find_map(|(name, unit)| unit.read(text(headers, name)?, &mut clock))
        .or(said)
        // Vendors send these with every answer, so only a limit makes a hint of them.
        .or_else(|| (status == 429).then(|| reset(headers, &mut clock)).flatten());
    hint.map(at_least)
}

/// The headers that say how long to wait.
static WAITS: [(HeaderName, TimeUnit); 2] = [
    // OpenAI and Azure <https://github.com/openai/openai-python/blob/main/src/openai/_base_client.py>.
    (HeaderName::from_static("retry-after-ms"), TimeUnit::Millis),
    // RFC 9110, section 10.2.3: seconds or a date. A fraction is not allowed there, and comes.
    (RETRY_AFTER, TimeUnit::SecondsOrDate),
];

/// The headers that say when a limit is lifted, and those that say what is left of it.
const RESETS: [(&str, &str); 12] = [
    // OpenAI `1s`, `6m0s`, `17ms` <https://platform.openai.com/docs/guides/rate-limits>; Groq `2m59.56s`
    // <https://console.groq.com/docs/rate-limits>; Azure in seconds.
    ("x-ratelimit-reset-requests", "x-ratelimit-remaining-requests"),
    ("x-ratelimit-reset-tokens", "x-ratelimit-remaining-tokens"),
    // Anthropic, RFC 3339 <https://docs.anthropic.com/en/api/rate-limits#response-headers>.
    ("anthropic-ratelimit-requests-reset", "anthropic-ratelimit-requests-remaining"),
    ("anthropic-ratelimit-tokens-reset", "anthropic-ratelimit-tokens-remaining"),
    ("anthropic-ratelimit-input-tokens-reset", "anthropic-ratelimit-input-tokens-remaining"),
    ("anthropic-ratelimit-output-tokens-reset", "anthropic-ratelimit-output-tokens-remaining"),
    // Cerebras, in seconds <https://inference-docs.cerebras.ai/support/rate-limits>.
    ("x-ratelimit-reset-requests-day", "x-ratelimit-remaining-requests-day"),
    ("x-ratelimit-reset-tokens-minute", "x-ratelimit-remaining-tokens-minute"),
    // OpenRouter in milliseconds since 1970, GitHub in seconds since 1970, Together in seconds from now
    // <https://docs.together.ai/docs/rate-limits>.
    ("x-ratelimit-reset", "x-ratelimit-remaining"),
    ("x-rate-limit-reset", "x-rate-limit-remaining"),
    // The draft of the IETF, in seconds from now
    // <https://datatracker.ietf.org/doc/html/draft-ietf-httpapi-ratelimit-headers-06>.
    ("ratelimit-reset", "ratelimit-remaining"),
    // Mistral <https://docs.mistral.ai/deployment/laplateforme/tier/>.
    ("ratelimitbysize-reset", "ratelimitbysize-remaining"),
];

/// When the limit is lifted that was met: the last of those of which nothing is left. If no header says
/// which that is, the first of all: too short a rest costs one more 429, too long a one costs more.
fn reset<W: FnOnce() -> SystemTime>(headers: &HeaderMap, clock: &mut Clock<W>) -> Option<Duration> {
    let (mut met, mut first) = (None, None);
    for (name, remaining) in RESETS {
        let Some(hint) = text(headers, name).and_then(|text| until(text, clock)) else { continue };
        if text(headers, remaining).is_some_and(|left| left == "0" || left.starts_with("0.")) {
            met = met.max(Some(hint));
        }
        first = Some(first.map_or(hint, |first: Duration| first.min(hint)));
    }
    met.or(first)
}

/// What a header's number counts.
enum TimeUnit {
    Millis,
    SecondsOrDate,
}

impl TimeUnit {
    fn read<W: FnOnce() -> SystemTime>(
        &self,
        text: &str,
        clock: &mut Clock<W>,
    ) -> Option<Duration> {
        match self {
            Self::Millis => decimal(text, 1e-3),
            Self::SecondsOrDate => decimal(text, 1.0).or_else(|| {
                let date = httpdate::parse_http_date(text).ok()?;
                Some(clock.until(date))
            }),
        }
    }
}

/// The wall clock, which is asked once, and only where a hint is a date.
enum Clock<W> {
    Unread(W),
    Read(SystemTime),
    /// Never seen: it stands for a clock that is being read.
    Reading,
}

impl<W: FnOnce() -> SystemTime> Clock<W> {
    fn until(&mut self, date: SystemTime) -> Duration {
        let now = match std::mem::replace(self, Self::Reading) {
            Self::Unread(wall) => wall(),
            Self::Read(now) => now,
            Self::Reading => date,
        };
        *self = Self::Read(now);
        date.duration_since(now).unwrap_or_default()
    }
}

fn text(headers: &HeaderMap, name: impl AsHeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

/// A reset in whichever form: a duration with units, a date, or a number that is too large for a
/// duration and so counts from 1970.
fn until<W: FnOnce() -> SystemTime>(text: &str, clock: &mut Clock<W>) -> Option<Duration> {
    const A_DATE_IN_SECONDS: Duration = Duration::from_secs(1_000_000_000);
    const A_DATE_IN_MILLIS: Duration = Duration::from_secs(1_000_000_000_000);
    if let Some(date) = rfc3339(text) {
        return Some(clock.until(date));
    }
    let span = duration(text)?;
    if span < A_DATE_IN_SECONDS {
        return Some(span);
    }
    let since_1970 = if span < A_DATE_IN_MILLIS { span } else { span / 1000 };
    let date = SystemTime::UNIX_EPOCH.checked_add(since_1970);
    Some(date.map_or(Duration::MAX, |date| clock.until(date)))
}

/// A provider that fails and says zero does not mean "at once".
pub(super) fn at_least(hint: Duration) -> Duration {
    if hint.is_zero() { Duration::from_secs(1) } else { hint }
}

/// Seconds, or numbers with units in a row such as `6m0s`, `17ms`, `34.07s`.
pub(super) fn duration(text: &str) -> Option<Duration> {
    const UNITS: [(&str, f64); 8] = [
        ("ns", 1e-9),
        ("us", 1e-6),
        ("µs", 1e-6),
        ("ms", 1e-3),
        ("s", 1.0),
        ("m", 60.0),
        ("h", 3600.0),
        ("d", 86_400.0),
    ];
    let mut rest = text.trim();
    if let Some(seconds) = decimal(rest, 1.0) {
        return Some(seconds);
    }
    let mut sum = Duration::ZERO;
    loop {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(end);
        let end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit)?;
        sum = sum.checked_add(decimal(number, *factor)?).unwrap_or(Duration::MAX);
        if tail.is_empty() {
            return Some(sum);
        }
        rest = tail;
    }
}

/// An unsigned decimal such as `7`, `0.5` or a number of any size; no exponent, no sign.
fn decimal(text: &str, unit: f64) -> Option<Duration> {
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    if !digits(whole) || !digits(fraction) {
        return None;
    }
    let seconds = text.parse::<f64>().ok()? * unit;
    Some(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
}

/// A date such as `2026-01-27T22:13:09Z`, with a fraction and an offset where it has them.
fn rfc3339(text: &str) -> Option<SystemTime> {
    let bytes = text.as_bytes();
    let number = |from: usize, to: usize| -> Option<u64> {
        let digits = bytes.get(from..to)?;
        digits.iter().try_fold(0, |sum, digit| match digit {
            b'0'..=b'9' => Some(sum * 10 + u64::from(digit - b'0')),
            _ => None,
        })
    };
    let separators = [(4, "-"), (7, "-"), (10, "Tt "), (13, ":"), (16, ":")];
    let separated = |(at, any): &(usize, &str)| {
        bytes.get(*at).is_some_and(|byte| any.as_bytes().contains(byte))
    };
    if !separators.iter().all(separated) {
        return None;
    }
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    if !(1970..=9999).contains(&year)
        || !(1..=12).contains(&month)
        || !(1..=31).contains(&day)
        || hour > 23
        || minute > 59
        || second > 60
    {
        return None;
    }
    // Days since 1970, in years that begin in March, so that the leap day is the last of its year.
    let shifted = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let (year, month) = shifted;
    let leap_days = year / 4 - year / 100 + year / 400;
    let days = 365 * year + leap_days + (153 * month + 2) / 5 + day - 1 - 719_468;

    let rest = text.get(19..)?;
    let zone = rest.find(['Z', 'z', '+', '-'])?;
    let (fraction, zone) = rest.split_at(zone);
    let is_fraction = fraction.is_empty()
        || fraction.len() > 1
            && fraction.starts_with('.')
            && fraction[1..].bytes().all(|byte| byte.is_ascii_digit());
    if !is_fraction {
        return None;
    }
    let seconds = days * 86_400 + hour * 3600 + minute * 60 + second;
    let date = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    if zone.eq_ignore_ascii_case("z") {
        return Some(date);
    }
    let at = text.len() - zone.len() + 1;
    let separated = bytes.get(at + 2) == Some(&b':') && bytes.len() == at + 5;
    let (hours, minutes) = (number(at, at + 2)?, number(at + 3, at + 5)?);
    if !separated || hours > 23 || minutes > 59 {
        return None;
    }
    let offset = Duration::from_secs(hours * 3600 + minutes * 60);
    if zone.starts_with('+') { date.checked_sub(offset) } else { date.checked_add(offset) }
}

#[cfg(test)]
mod tests {
    use http::HeaderName;

    use super::*;

    fn wall() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()))
            .collect()
    }

    fn read(status: u16, pairs: &[(&'static str, &str)]) -> Option<Duration> {
        retry_after(StatusCode::from_u16(status).unwrap(), &headers(pairs), None, wall)
    }

    #[test]
    fn every_form_of_retry_after_is_read_or_refused() {
        let second = Duration::from_secs(1);
        type Row = (&'static [(&'static str, &'static str)], Option<Duration>);
        let table: &[Row] = &[
            (&[("retry-after", "30")], Some(second * 30)),
            (&[("retry-after", " 30 ")], Some(second * 30)),
            (&[("retry-after", "0.5")], Some(second / 2)),
            (&[("retry-after", "0")], Some(second)),
            (&[("retry-after", "0.0")], Some(second)),
            (&[("retry-after", "135734")], Some(second * 135_734)),
            (&[("retry-after", "99999999999999999999999999999")], Some(Duration::MAX)),
            (&[("retry-after", "-10")], None),
            (&[("retry-after", "+10")], None),
            (&[("retry-after", "NaN")], None),
            (&[("retry-after", "inf")], None),
            (&[("retry-after", "1e35")], None),
            (&[("retry-after", "5.")], None),
            (&[("retry-after", ".5")], None),
            (&[("retry-after", "")], None),
            (&[("retry-after", "soon")], None),
            (&[("retry-after", "Thu, 01 Jan 1970 00:00:01 GMT")], Some(second)),
            (&[("retry-after", "Fri, 15 Jan 2027 08:00:30 GMT")], Some(second * 30)),
            (&[("retry-after-ms", "1500"), ("retry-after", "9")], Some(second * 3 / 2)),
            (&[("retry-after-ms", "x"), ("retry-after", "9")], Some(second * 9)),
            (&[("retry-after-ms", "0")], Some(second)),
            (&[], None),
        ];
        for (pairs, hint) in table {
            assert_eq!(read(429, pairs), *hint, "{pairs:?}");
        }
        let far = read(429, &[("retry-after", "Fri, 31 Dec 9999 23:59:59 GMT")]);
        assert!(far.unwrap() > second * 1_000_000_000);
    }

    #[test]
    fn the_reset_headers_of_a_429_are_hints() {
        let millis = Duration::from_millis;
        let table: &[(&[(&'static str, &str)], u64)] = &[
            (&[("x-ratelimit-reset-requests", "1s")], 1000),
            (&[("x-ratelimit-reset-tokens", "6m0s")], 360_000),
            (&[("x-ratelimit-reset-tokens", "17ms")], 17),
            (&[("x-ratelimit-reset-requests", "2m59.56s")], 179_560),
            (&[("x-ratelimit-reset-requests", "0s")], 1000),
            (&[("x-ratelimit-reset-tokens", "60")], 60_000),
            // That of which nothing is left; the longest of several.
            (
                &[
                    ("x-ratelimit-reset-requests", "8s"),
                    ("x-ratelimit-remaining-requests", "59"),
                    ("x-ratelimit-reset-tokens", "20s"),
                    ("x-ratelimit-remaining-tokens", "0"),
                ],
                20_000,
            ),
            (
                &[
                    ("x-ratelimit-reset-requests", "8s"),
                    ("x-ratelimit-remaining-requests", "0"),
                    ("x-ratelimit-reset-tokens", "20s"),
                    ("x-ratelimit-remaining-tokens", "149984"),
                ],
                8000,
            ),
            (&[("x-ratelimit-reset-requests", "8s"), ("x-ratelimit-reset-tokens", "20s")], 8000),
            (&[("anthropic-ratelimit-requests-reset", "2027-01-15T08:00:45Z")], 45_000),
            (&[("anthropic-ratelimit-tokens-reset", "2027-01-15T09:00:45.123+01:00")], 45_000),
            (&[("anthropic-ratelimit-tokens-reset", "2027-01-15T06:30:45-01:30")], 45_000),
            (&[("anthropic-ratelimit-requests-reset", "2020-01-01T00:00:00Z")], 1000),
            (&[("x-ratelimit-reset", "1800000030")], 30_000),
            (&[("x-ratelimit-reset", "1800000030000")], 30_000),
            (&[("x-ratelimit-reset", "30")], 30_000),
            (&[("ratelimit-reset", "30")], 30_000),
            (&[("retry-after", "7"), ("x-ratelimit-reset-requests", "1s")], 7000),
        ];
        for (pairs, hint) in table {
            assert_eq!(read(429, pairs), Some(millis(*hint)), "{pairs:?}");
            let reset_only = !pairs.iter().any(|(name, _)| *name == "retry-after");
            assert_eq!(read(503, pairs).is_none(), reset_only, "{pairs:?}");
        }
        for nonsense in
            ["", "soon", "1x", "1s2", "s", "1..5s", "2027-01-15", "2027-13-15T08:00:45Z"]
        {
            assert_eq!(read(429, &[("x-ratelimit-reset-requests", nonsense)]), None, "{nonsense}");
        }
    }

    #[test]
    fn only_these_statuses_have_a_hint_and_a_header_says_more_than_the_body() {
        let said = Some(Duration::from_secs(34));
        for status in 100..1000 {
            let status = StatusCode::from_u16(status).unwrap();
            let hinted = matches!(status.as_u16(), 402 | 429 | 503 | 529);
            let body = retry_after(status, &HeaderMap::new(), said, wall);
            assert_eq!(body, said.filter(|_| hinted), "{status}");
            let both = retry_after(status, &headers(&[("retry-after", "7")]), said, wall);
            assert_eq!(both, hinted.then_some(Duration::from_secs(7)), "{status}");
        }
    }

    #[test]
    fn the_wall_clock_is_read_only_for_a_date() {
        let unread = || -> SystemTime { panic!("no date") };
        let status = StatusCode::TOO_MANY_REQUESTS;
        for pairs in [&[("retry-after", "7")], &[("x-ratelimit-reset-tokens", "6m0s")]] {
            assert!(retry_after(status, &headers(pairs), None, unread).is_some());
        }
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (text, seconds) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T12:00:00z", 951_825_600),
            ("2027-01-15T08:00:00Z", 1_800_000_000),
            ("2100-03-01T00:00:00Z", 4_107_542_400),
        ] {
            let date = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(rfc3339(text), Some(date), "{text}");
        }
        // Every day of 431 years, counted.
        let mut days = 0;
        for year in 1970..2401 {
            let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let february = if is_leap { 29 } else { 28 };
            let lengths = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
            for (month, length) in (1..).zip(lengths) {
                for day in 1..=length {
                    let date = SystemTime::UNIX_EPOCH + Duration::from_secs(days * 86_400);
                    let text = format!("{year}-{month:02}-{day:02}T00:00:00Z");
                    assert_eq!(rfc3339(&text), Some(date), "{text}");
                    days += 1;
                }
            }
        }
    }

    #[test]
    fn a_date_has_one_form() {
        let at = |seconds| Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        for (text, date) in [
            ("2027-01-15 08:00:00Z", at(1_800_000_000)),
            ("2027-01-15t08:00:00.9z", at(1_800_000_000)),
            ("2027-01-15T08:00:00.123456789+00:00", at(1_800_000_000)),
            ("2027-01-15T23:59:60Z", at(1_800_057_600)),
            ("2027-01-15T08:00:00+23:59", at(1_799_913_660)),
            ("2027-01-15T08:00:00-23:59", at(1_800_086_340)),
            ("9999-12-31T23:59:59Z", at(253_402_300_799)),
            ("1969-12-31T23:59:59Z", None),
            ("2027-00-15T08:00:00Z", None),
            ("2027-13-15T08:00:00Z", None),
            ("2027-01-00T08:00:00Z", None),
            ("2027-01-32T08:00:00Z", None),
            ("2027-01-15T24:00:00Z", None),
            ("2027-01-15T08:60:00Z", None),
            ("2027-01-15T08:00:61Z", None),
            ("2027-01-15T08:00:00+24:00", None),
            ("2027-01-15T08:00:00+01:60", None),
            ("2027-01-15T08:00:00+0100", None),
            ("2027-01-15T08:00:00+01-00", None),
            ("2027-01-15T08:00:00+01:000", None),
            ("2027-01-15T08:00:00+1", None),
            ("2027-01-15T08:00:00+01:0é", None),
            ("2027-01-15T08:00:00", None),
            ("2027-01-15T08:00:00.Z", None),
            ("2027-01-15T08:00:00.xZ", None),
            ("2027-01-15T08:00:00,5Z", None),
            ("2027-01-15T08:00:00Zz", None),
            ("2027/01-15T08:00:00Z", None),
            ("2027-01/15T08:00:00Z", None),
            ("2027-01-15x08:00:00Z", None),
            ("2027-01-15T08-00:00Z", None),
            ("2027-01-15T08:00-00Z", None),
            ("2027-01-1/T08:00:00Z", None),
            ("2027-01-1:T08:00:00Z", None),
            ("2027-1-15T08:00:00Z", None),
            ("x", None),
            ("éééééééééééé", None),
        ] {
            assert_eq!(rfc3339(text), date, "{text}");
        }
    }

    #[test]
    fn a_number_that_is_too_large_for_a_duration_counts_from_1970() {
        for (text, seconds) in [
            ("999999999", 999_999_999),
            ("1000000000", 1),
            ("1800000030", 30),
            ("999999999999", 998_199_999_999),
            ("1000000000000", 1),
            ("1800000030000", 30),
        ] {
            let hint = read(429, &[("x-ratelimit-reset", text)]);
            assert_eq!(hint, Some(Duration::from_secs(seconds)), "{text}");
        }
    }
}
