//! What a provider or the transport said went wrong, made safe to show: keys redacted, characters
//! that are not seen escaped, and short.
//!
//! Vendors echo keys in their error bodies, and a URL's query may hold one, so nothing that comes
//! from outside is shown before every secret that the chain and the request know was looked for
//! in it.

mod characters;
mod decoded;
mod secrets;

use std::borrow::Cow;
use std::error::Error as StdError;

use self::characters::is_hidden;
pub(crate) use self::secrets::Secrets;

/// The most that a message says, in bytes.
const LONGEST: usize = 2 * 1024;

/// A text that came from outside, made safe to show; `None` if nothing is left of it. `complete`
/// tells whether this is the text to its end: where it was cut, it may end within a key.
pub(crate) fn make_safe(text: &str, complete: bool, secrets: &Secrets) -> Option<Box<str>> {
    // UTF-16 would part a key's letters.
    // As below, without a branch for each byte.
    let has_nul = text.bytes().fold(false, |has_nul, byte| has_nul | (byte == 0));
    let without_nul = has_nul.then(|| text.replace('\0', ""));
    let text = without_nul.as_deref().unwrap_or(text);
    let redacted = |most: usize| {
        let (begun, whole) = cut(text, most);
        (secrets.redact(begun, complete && whole), whole)
    };
    // More than is shown: a key of which a half tells it must be seen so far beyond the cut.
    let text = match redacted(LONGEST + LONGEST / 4) {
        // What was redacted makes room for what follows.
        (Cow::Owned(_), false) => redacted(2 * LONGEST).0,
        (text, _) => text,
    };
    let text = escape_and_truncate(text.trim());
    (!text.is_empty()).then(|| text.into_boxed_str())
}

/// The message of an error: its own words and those of its sources, without those of `reqwest`'s
/// errors, whose words hold the URL.
pub(crate) fn of_error(error: &(dyn StdError + 'static), secrets: &Secrets) -> Box<str> {
    let mut text = String::new();
    for error in sources(error) {
        if error.is::<reqwest::Error>() || error.is::<reqwest_middleware::Error>() {
            continue;
        }
        let words = error.to_string();
        if !text.ends_with(&words) {
            text.push_str(if text.is_empty() { "" } else { ": " });
            text.push_str(&words);
        }
    }
    make_safe(&text, true, secrets).unwrap_or_default()
}

/// Whether an error shows a secret to anyone who prints it.
pub(crate) fn shows_secret(error: &(dyn StdError + 'static), secrets: &Secrets) -> bool {
    let mut text = format!("{error:?}");
    for error in sources(error) {
        text.push('\n');
        text.push_str(&error.to_string());
    }
    secrets.is_shown_in(&text)
}

fn sources<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

/// At most so much of a text, and whether that is all of it.
fn cut(text: &str, most: usize) -> (&str, bool) {
    if text.len() <= most {
        return (text, true);
    }
    let end = (0..=most).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default();
    (&text[..end], false)
}

/// Escapes what is not seen, breaks a line or turns its direction, and cuts what is too long.
fn escape_and_truncate(text: &str) -> String {
    const MOST: usize = LONGEST - '…'.len_utf8();
    let is_plain = |byte: u8| matches!(byte, b' '..=b'~');
    // As most messages are: without a branch for each byte, that takes a tenth of the time.
    let begun = &text.as_bytes()[..text.len().min(MOST)];
    if begun.iter().fold(true, |plain, byte| plain & is_plain(*byte)) {
        let cut = if text.len() > MOST { "…" } else { "" };
        return [&text[..begun.len()], cut].concat();
    }
    let begun = text.bytes().take(MOST).position(|byte| !is_plain(byte));
    let (begun, rest) = text.split_at(begun.unwrap_or(text.len().min(MOST)));
    let mut escaped = String::with_capacity(text.len().min(LONGEST));
    escaped.push_str(begun);
    for character in rest.chars() {
        let length = escaped.len();
        if is_hidden(character) {
            escaped.extend(character.escape_default());
        } else {
            escaped.push(character);
        }
        if escaped.len() > MOST {
            escaped.truncate(length);
            escaped.push('…');
            break;
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secrets() -> Secrets {
        Secrets::new(["sk-secret-123", "hunter2"])
    }

    fn redact(text: &str, complete: bool, secrets: &[&str]) -> String {
        Secrets::new(secrets).redact(text, complete).into_owned()
    }

    const BOTH: [&str; 2] = ["sk-secret-123", "hunter2"];

    fn of_body(body: &[u8], complete: bool, secrets: &Secrets) -> Option<Box<str>> {
        make_safe(&String::from_utf8_lossy(body), complete, secrets)
    }

    fn body(text: &str) -> Option<Box<str>> {
        of_body(text.as_bytes(), true, &secrets())
    }

    #[test]
    fn shows_a_text_as_it_is() {
        assert_eq!(body("upstream is down\n").as_deref(), Some("upstream is down"));
        assert_eq!(
            body("a\r\nb\u{1b}[31m\u{202e}").as_deref(),
            Some("a\\r\\nb\\u{1b}[31m\\u{202e}")
        );
        assert_eq!(body(" \n"), None);
        assert_eq!(
            of_body(b"\xff\xfe", true, &Secrets::default()).as_deref(),
            Some("\u{fffd}\u{fffd}")
        );
    }

    #[test]
    fn redacts_every_secret_also_where_the_text_was_cut() {
        assert_eq!(
            body("sk-secret-123 hunter2 hunter2").as_deref(),
            Some("[redacted] [redacted] [redacted]")
        );
        let long = format!("{}sk-secret-123", "x".repeat(LONGEST - 8));
        assert!(!body(&long).unwrap().contains("sk-s"));
        for end in 1..=BOTH[0].len() {
            let cut = format!("key: {}", &BOTH[0][..end]);
            let shown = of_body(cut.as_bytes(), false, &secrets()).unwrap();
            assert!(["key:", "key: [redacted]"].contains(&&*shown), "{cut}: {shown}");
        }
    }

    #[test]
    fn redacts_a_secret_of_which_the_first_letter_is_escaped() {
        for first in ["%73", "\\u0073", "\\x73", "\\s", "&#115;", "&#x73;"] {
            let text = format!("é {first}k-secret-123 é");
            assert_eq!(redact(&text, true, &BOTH), "é [redacted] é", "{text}");
        }
        assert_eq!(redact("a+word", true, &[" word"]), "a[redacted]");
        assert_eq!(redact("é éa è", true, &["éa"]), "é [redacted] è");
    }

    #[test]
    fn redacts_a_secret_in_every_usual_spelling() {
        let secrets = [r#"a-/+"b"#, r"c\d"];
        for spelling in [
            r#"a-/+"b"#,
            "a%2d%2F%2b%22b",
            "%61-/%2B%22%62",
            r#"a-\/+\"b"#,
            r#"a\u002d\u002F\u002b\u0022b"#,
            r#"a\x2d/+\"b"#,
            "a-&#x2F;&#43;&quot;b",
            "a-/&#x002B;&#34;b",
            r"c\d",
            r"c\\d",
            "c%5cd",
        ] {
            let text = format!("<{spelling}>");
            assert_eq!(redact(&text, true, &secrets), "<[redacted]>", "{spelling}");
            for end in 1..spelling.len() {
                let cut = redact(&text[..=end], false, &secrets);
                assert_eq!(cut, "<", "{spelling} cut at {end}");
            }
        }
        assert_eq!(redact("a-/+ b%2 \\", true, &secrets), "a-/+ b%2 \\");
    }

    #[test]
    fn is_never_longer_than_it_may_be() {
        for text in ["x", "é", "\u{1}", "𝄞"] {
            let message = body(&text.repeat(10_000)).unwrap();
            assert!((2040..=2048).contains(&message.len()) && message.ends_with('…'), "{text}");
        }
    }

    #[test]
    fn what_was_redacted_makes_room_for_what_follows_and_the_cut_shows_no_half_of_a_key() {
        let key = "k".repeat(39) + "!";
        let text = format!("{}{}{key}", key.repeat(100), "x".repeat(90));
        let message = of_body(text.as_bytes(), true, &Secrets::new([key])).unwrap();
        assert_eq!(*message, *format!("{}{}", "[redacted]".repeat(100), "x".repeat(90)));
    }

    #[test]
    fn what_only_begins_like_a_key_is_shown() {
        for (text, complete) in [
            ("key: sk-s", true),
            ("sk-other, and more", false),
            ("s, and more", false),
            ("&abcdefg", false),
            ("%zzzzzzz", false),
        ] {
            let shown = of_body(text.as_bytes(), complete, &secrets());
            assert_eq!(shown.as_deref(), Some(text));
        }
    }

    #[test]
    fn a_secret_is_known_behind_every_entity() {
        let secrets = ["a&b<c>d'e\"f"];
        let echoed = "<a&amp;b&lt;c&gt;d&apos;e&quot;f>";
        assert_eq!(redact(echoed, true, &secrets), "<[redacted]>");
    }

    #[test]
    fn a_message_is_shown_whole_while_there_is_room_for_the_mark_of_a_cut() {
        let shown = |length: usize| body(&"x".repeat(length)).unwrap();
        assert_eq!(*shown(2045), *"x".repeat(2045));
        assert_eq!(*shown(2046), *format!("{}…", "x".repeat(2045)));
    }

    #[test]
    fn a_space_in_a_key_may_come_back_as_a_plus() {
        assert_eq!(redact("<pass+word>", true, &["pass word"]), "<[redacted]>");
    }

    #[test]
    fn the_words_of_reqwests_errors_are_not_told_but_those_of_their_sources_are() {
        let error = || reqwest::Client::new().get("canary").build().unwrap_err();
        let wrapped = reqwest_middleware::Error::from(error());
        let told =
            [of_error(&error(), &Secrets::default()), of_error(&wrapped, &Secrets::default())];
        assert_eq!(told.map(String::from), ["relative URL without a base"; 2]);
    }

    #[test]
    fn an_error_is_told_with_its_sources() {
        #[derive(Debug, thiserror::Error)]
        #[error("refused sk-secret-123")]
        struct Outer(#[source] std::io::Error);

        let error = Outer(std::io::Error::other("port shut"));
        assert_eq!(&*of_error(&error, &secrets()), "refused [redacted]: port shut");
        assert!(shows_secret(&error, &secrets()));
        assert!(!shows_secret(&std::io::Error::other("port shut"), &secrets()));
    }

    /// A key as vendors issue them, and one that is made of words.
    const KEY: &str = "sk-proj-9fK2xQ7vLmZt4RwB8nYc3HdJ6sGpTa1U";
    const WORDY: &str = "project-production-key";

    #[test]
    fn a_key_that_was_cut_or_masked_is_found_at_each_length() {
        for length in 8..=KEY.len() {
            for part in [&KEY[..length], &KEY[KEY.len() - length..]] {
                let text = format!("wrong key {part}.");
                let wordy = part == &KEY[..8];
                let expected =
                    if wordy { text.clone() } else { "wrong key [redacted].".to_owned() };
                assert_eq!(redact(&text, true, &[KEY]), expected, "{part}");
            }
        }
        for masked in 8..KEY.len() - 8 {
            let (begin, end) = (&KEY[..masked], &KEY[masked + 4..]);
            let text = format!("{begin}****{end}");
            let shown = redact(&text, true, &[KEY]);
            for run in KEY.as_bytes().windows(9) {
                assert!(!shown.contains(str::from_utf8(run).unwrap()), "{text}: {shown}");
            }
        }
    }

    #[test]
    fn a_part_of_a_key_is_found_wherever_it_begins_and_ends() {
        let few = Secrets::default().and([KEY]);
        for secrets in [few.for_many(), few] {
            for before in 0..=70 {
                for part in [&KEY[9..17], &KEY[9..]] {
                    for after in 0..=5 {
                        let (before, after) = ("~".repeat(before), "~".repeat(after));
                        let text = format!("{before}{part}{after}");
                        let shown = secrets.redact(&text, true);
                        assert_eq!(shown, format!("{before}[redacted]{after}"), "{text}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_key_is_found_in_nested_escapes_and_across_line_breaks() {
        let percent: String = KEY.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let json: String = KEY.bytes().map(|byte| format!("\\u{byte:04x}")).collect();
        let html: String = KEY.bytes().map(|byte| format!("&#{byte};")).collect();
        let spellings = [
            percent.replace('%', "%25"),
            percent.replace('%', "%2525"),
            json.replace('\\', r"\\"),
            json.replace('\\', "%5C"),
            html.replace('&', "&amp;amp;"),
            percent.replace('%', r"\u0025"),
            KEY.replace("7v", "7\nv"),
            KEY.replace("7v", "7\r\n   v"),
            KEY.replace("7v", r"7\nv"),
            KEY.replace("7v", r"7\r\n    v"),
            KEY.replace("7v", "7\u{200b}v"),
            KEY.replace("7v", r"7\u200bv"),
            KEY.replace("7v", "7&#8203;v"),
            KEY.replace("7v", "7%E2%80%8Bv"),
            KEY.replace("7v", "7<br/>v"),
            KEY.chars().flat_map(|character| [character, '\u{ad}']).collect(),
        ];
        for spelling in spellings {
            let shown = redact(&format!("no {spelling}."), true, &["other", KEY]);
            let shown = shown.replace('\u{ad}', "");
            assert_eq!(shown, "no [redacted].", "{spelling}");
        }
    }

    #[test]
    fn words_that_a_key_is_made_of_stay_in_sentences() {
        for text in [
            "the project is in production",
            "project-x is down, the production cluster too",
            "use the production system, not that project",
            "keys begin with sk-proj-",
        ] {
            assert_eq!(redact(text, true, &[WORDY, KEY]), text);
        }
        for (text, shown) in [
            ("wrong key project-production-key", "wrong key [redacted]"),
            ("wrong key project-production", "wrong key [redacted]"),
            ("wrong key ...oject-production-key", "wrong key ...[redacted]"),
            ("Bearer project-production-key", "Bearer [redacted]"),
        ] {
            assert_eq!(redact(text, true, &[WORDY]), shown);
        }
    }

    #[test]
    fn prose_shows_no_false_alarm() {
        let prose = concat!(include_str!("../README.md"), include_str!("../SECURITY.md"));
        let mut random = 7_u64;
        let mut secrets: Vec<String> = Vec::new();
        for _ in 0..128 {
            let letters = (0..40).map(|_| {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                char::from(b"abcdefghijklmnopqrstuvwxyz0123456789"[(random >> 33) as usize % 36])
            });
            secrets.push(format!("sk-live-{}", letters.collect::<String>()));
        }
        secrets.push(WORDY.to_owned());
        let secrets = Secrets::new(secrets);
        // The page on security names the key itself.
        for line in prose.lines().filter(|line| !line.contains(WORDY)) {
            assert_eq!(secrets.redact(line, true), line);
        }
    }

    #[test]
    fn short_secrets_are_found_as_whole_words_only() {
        for (text, shown) in [
            ("key", "[redacted]"),
            ("the key, the keys, a monkey, api_key", "the [redacted], the keys, a monkey, api_key"),
            ("pass=hunter2;", "pass=[redacted];"),
            ("hunter23 xhunter2", "hunter23 xhunter2"),
            ("so\nkey\nso", "so\n[redacted]\nso"),
            (r"so\nkey\nso", r"so\n[redacted]\nso"),
            ("k%65y", "[redacted]"),
        ] {
            assert_eq!(redact(text, true, &["key", "hunter2"]), shown, "{text}");
        }
    }

    #[test]
    fn secrets_are_found_that_were_added_later() {
        let first = Secrets::new([KEY]);
        let both = first.and(["tok-5Zr8mWq1Xb"]);
        let text = format!("{KEY} tok-5Zr8mWq1Xb");
        assert_eq!(both.redact(&text, true), "[redacted] [redacted]");
        assert_eq!(first.redact(&text, true), "[redacted] tok-5Zr8mWq1Xb");
        assert!(first.is_shown_in(&text) && !first.is_shown_in("tok-5Zr8mWq1Xb"));
        assert_eq!(Secrets::new([""; 0]).redact(&text, false), text);
    }

    #[test]
    fn what_is_not_seen_is_escaped() {
        let shown = make_safe("a\u{200b}b\u{202e}c\u{fe0f}d\u{e0041}e", true, &Secrets::default());
        assert_eq!(shown.as_deref(), Some(r"a\u{200b}b\u{202e}c\u{fe0f}d\u{e0041}e"));
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_survived_and_hides_a_key(
            before in ".{0,40}",
            after in ".{0,40}",
            key in "[!-~]{8,60}",
            complete in proptest::bool::ANY,
        ) {
            let text = format!("{before} {key} {after}");
            let shown = Secrets::new([&key]).redact(&text, complete).into_owned();
            proptest::prop_assert!(!shown.contains(&key) || "[redacted]".contains(&key), "{}", shown);
        }

        #[test]
        fn any_mess_of_escapes_is_survived(text in r"[%&;#xu\\{}<>br0-9a-f\n\u{200b}é+ ]{0,80}", complete in proptest::bool::ANY) {
            let _ = make_safe(&text, complete, &Secrets::new(["41424344", "abc", "é0é1é2é3"]));
        }
    }
}
