//! The URL stays below its base: origin, prefix, suffix, no dot segment, no key.
#![no_main]

use libfuzzer_sys::fuzz_target;
use reqwest::Url;

#[path = "../../src"]
#[allow(dead_code, unused_imports)]
mod crate_source {
    pub(crate) mod readdress;
}

use crate_source::readdress::{
    Base, QueryPair, QueryRewrite, Scope, StripList, still_inside, target_url,
};

const BASES: [&str; 4] = [
    "https://api.openai.com/v1",
    "https://api.cometapi.com",
    "http://127.0.0.1:8080/a/b%20c",
    "https://[2001:db8::1]:444/openai/v1",
];

fuzz_target!(|input: (u8, u8, bool, &str)| {
    let (from, to, sets, text) = input;
    if let Ok(base) = Base::parse(text) {
        let shown = format!("{base:?}");
        let authority = shown.split('/').nth(2).unwrap_or_default();
        assert!(!shown.contains(['?', '#']) && !authority.contains('@'), "{shown}");
    }

    let [from, to] = [from, to].map(|index| BASES[usize::from(index) % BASES.len()]);
    let scope = Scope::new(BASES.map(|base| Base::parse(base).unwrap()));
    let caller = format!("{from}{text}");
    let Ok(caller) = Url::parse(&caller) else { return };
    let Some(claim) = scope.claim(&caller) else { return };
    let strip = StripList::new([], []);
    let set = if sets { vec![QueryPair::new("version", "2&3", false)] } else { Vec::new() };
    let base = Base::parse(to).unwrap();
    let rewrite = QueryRewrite { strip: Some(&strip), set: &set };
    let Some(url) = target_url(&base, &caller, &claim, &rewrite) else { return };

    let home = Url::parse(to).unwrap();
    assert_eq!(url.origin(), home.origin());
    assert_eq!((url.username(), url.password(), url.fragment()), ("", None, None));
    let suffix = claim.suffix(&caller).unwrap();
    let prefix = home.path().trim_end_matches('/');
    let path = format!("{prefix}{suffix}");
    assert_eq!(url.path(), if path.is_empty() { "/" } else { &path });
    assert!(still_inside(&base, &url));

    let once: Vec<u8> = percent_encoding::percent_decode_str(suffix).collect();
    let twice: Vec<u8> = percent_encoding::percent_decode(&once).collect();
    for path in [suffix.as_bytes(), &once, &twice] {
        let mut segments = path.split(|byte| matches!(byte, b'/' | b'\\' | b';'));
        assert!(!segments.any(|segment| segment == b"." || segment == b".."), "{url}");
    }
    for (name, value) in url.query_pairs() {
        for key in ["key", "api_key", "token", "sig"] {
            assert!(!name.eq_ignore_ascii_case(key), "{url}");
        }
        assert!(!sets || !name.eq_ignore_ascii_case("version") || value == "2&3", "{url}");
    }
});
