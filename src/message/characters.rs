//! Which characters are not seen, and which letters follow each other in words.

/// Whether a character is not seen, or moves what is: the general categories Cc, Cf, Zl and Zp, and
/// the variation selectors, of Unicode 16.0.
pub(super) fn is_hidden(character: char) -> bool {
    let code = u32::from(character);
    let after = HIDDEN.partition_point(|(first, _)| *first <= code);
    after > 0 && code <= HIDDEN[after - 1].1
}

/// First and last, in order.
const HIDDEN: [(u32, u32); 25] = [
    (0x0, 0x1F),
    (0x7F, 0x9F),
    (0xAD, 0xAD),
    (0x600, 0x605),
    (0x61C, 0x61C),
    (0x6DD, 0x6DD),
    (0x70F, 0x70F),
    (0x890, 0x891),
    (0x8E2, 0x8E2),
    (0x180B, 0x180F),
    (0x200B, 0x200F),
    (0x2028, 0x202E),
    (0x2060, 0x2064),
    (0x2066, 0x206F),
    (0xFE00, 0xFE0F),
    (0xFEFF, 0xFEFF),
    (0xFFF9, 0xFFFB),
    (0x110BD, 0x110BD),
    (0x110CD, 0x110CD),
    (0x13430, 0x1343F),
    (0x1BCA0, 0x1BCA3),
    (0x1D173, 0x1D17A),
    (0xE0001, 0xE0001),
    (0xE0020, 0xE007F),
    (0xE0100, 0xE01EF),
];

/// Whether a run of characters could stand in a sentence: words of pairs of letters that are common
/// in English, or one or two characters over and over. Of eight random lower-case letters three in a
/// hundred pass, of English words nearly all.
pub(super) fn is_wordy(run: &[u8]) -> bool {
    is_monotonous(run) || reads_as_words(run)
}

fn is_monotonous(run: &[u8]) -> bool {
    let Some(first) = run.first() else { return true };
    let Some(other) = run.iter().find(|byte| *byte != first) else { return true };
    run.iter().all(|byte| byte == first || byte == other)
}

fn reads_as_words(run: &[u8]) -> bool {
    let mut before: Option<u8> = None;
    for (at, byte) in run.iter().enumerate() {
        if matches!(byte, b'-' | b'_' | b'.' | b' ' | b'/' | b':' | b'=') {
            before = None;
            continue;
        }
        if !byte.is_ascii_alphabetic() {
            return false;
        }
        if let Some(before) = before {
            let begins = at == 1 || !run[at - 2].is_ascii_alphabetic();
            let same_case = before.is_ascii_uppercase() == byte.is_ascii_uppercase();
            let capital = begins && before.is_ascii_uppercase();
            if !(same_case || capital) || !follows(before, *byte) {
                return false;
            }
        }
        before = Some(*byte);
    }
    true
}

/// Whether the second letter is common after the first.
fn follows(first: u8, second: u8) -> bool {
    let index = |letter: u8| letter.to_ascii_lowercase() - b'a';
    COMMON_PAIRS[usize::from(index(first))] & (1 << index(second)) != 0
}

/// For each letter, those that follow it: the 360 pairs that make up 99.7 % of the pairs in the
/// words of some 400 crates' documentation.
const COMMON_PAIRS: [u32; 26] = [
    0x3FEBD6E, 0x11EDB15, 0x11ECDB5, 0x17EF9D9, 0x1FFFBFF, 0x11E5971, 0x01E79D1, 0x11E5911,
    0x2BEFC7F, 0x0144010, 0x01C2111, 0x17ED97F, 0x03CD95B, 0x13CFD7F, 0x1FEFF7F, 0x11EDDB9,
    0x0500000, 0x17EFD7F, 0x15EFDB5, 0x17ED9BD, 0x29EF97F, 0x0004111, 0x0066191, 0x0088115,
    0x00CF910, 0x2000911,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_seen_is_hidden() {
        for hidden in [
            '\0',
            '\n',
            '\u{7f}',
            '\u{85}',
            '\u{ad}',
            '\u{200b}',
            '\u{200d}',
            '\u{202e}',
            '\u{2028}',
            '\u{2029}',
            '\u{2060}',
            '\u{2066}',
            '\u{feff}',
            '\u{fe0f}',
            '\u{180e}',
            '\u{e0001}',
            '\u{e0041}',
            '\u{e0100}',
            '\u{1343f}',
        ] {
            assert!(is_hidden(hidden), "{hidden:?}");
        }
        for seen in [' ', '~', '\u{a0}', 'é', '中', '\u{2027}', '\u{2065}', '😀', '\u{10ffff}']
        {
            assert!(!is_hidden(seen), "{seen:?}");
        }
        assert!(HIDDEN.is_sorted() && HIDDEN.iter().all(|(first, last)| first <= last));
    }

    #[test]
    fn words_are_told_from_random_letters() {
        for words in
            ["producti", "service-", "Bearer t", "the proj", "customer", "TEST-KEY", "--------"]
        {
            assert!(is_wordy(words.as_bytes()), "{words}");
        }
        for random in
            ["sk-proj1", "xkqjzwvb", "AbCdEfGh", "3f9a1c77", "qzvtkwpx", "+/8fjKq7", "Kq7x0000"]
        {
            assert!(!is_wordy(random.as_bytes()), "{random}");
        }
    }
}
