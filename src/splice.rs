//! Edits at the top level of a JSON body: another model name, other values, and nothing else.
//!
//! Parsing a body and writing it anew would change key order, whitespace and the form of numbers,
//! and a provider may sign, cache or simply dislike the result. So only the spans of the values are
//! looked for, which `RawValue` borrows from the body, and the bytes around them are copied as they
//! are. Whatever is not plainly a JSON object with something to change is left alone.

mod find;

use std::fmt;
use std::ops::Range;

use http::{HeaderMap, HeaderName};
use serde::Deserializer as _;
use serde::de::{MapAccess, Visitor};
use serde_json::value::RawValue;

pub(crate) use self::find::top_level_string;

/// What is to be changed at the top level of a JSON object. A key is in `set` or in `remove` once.
pub(crate) struct Edits<'e, R> {
    /// Keys, and their values as JSON. They take the place of the values that are there; what is not
    /// there is added at the end, in this order.
    pub(crate) set: &'e [(String, String)],
    pub(crate) remove: &'e [String],
    /// The new name of the model, where it is neither set nor removed.
    pub(crate) rename: R,
}

/// What becomes of one entry.
enum Edit {
    Keep,
    Remove,
    /// It gets this value, as JSON.
    Replace(String),
}

impl<R: Fn(&str) -> Option<String>> Edits<'_, R> {
    fn of(&self, key: &str, value: &RawValue) -> Edit {
        if self.remove.iter().any(|removed| removed == key) {
            return Edit::Remove;
        }
        let new = match self.set.iter().find(|(set, _)| set == key) {
            Some((_, new)) => Some(new.clone()),
            None if key == "model" => self.renamed(value),
            None => None,
        };
        match new {
            Some(new) if new != value.get() => Edit::Replace(new),
            _ => Edit::Keep,
        }
    }

    fn renamed(&self, value: &RawValue) -> Option<String> {
        let model = serde_json::from_str::<String>(value.get()).ok()?;
        let renamed = (self.rename)(&model).filter(|renamed| *renamed != model)?;
        serde_json::to_string(&renamed).ok()
    }
}

/// The body with these edits, or `None` to leave it as it is: it is no JSON object, or there is nothing
/// to change.
///
/// Of duplicate keys each is edited: some parsers take the first, most the last, and each of them must
/// find what was meant. An entry is removed with the whitespace before it and the comma after it, or
/// before it if it is the last.
pub(crate) fn splice<R>(body: &[u8], edits: &Edits<'_, R>) -> Option<Vec<u8>>
where
    R: Fn(&str) -> Option<String>,
{
    let text = str::from_utf8(body).ok()?;
    let mut entries: Vec<(Range<usize>, Edit)> = Vec::new();
    let mut missing: Vec<&(String, String)> = edits.set.iter().collect();
    for_each_entry(text, |key, value| {
        missing.retain(|(set, _)| set != key);
        // A raw value is a part of the text that it was read from.
        let begin = value.get().as_ptr().addr() - text.as_ptr().addr();
        entries.push((begin..begin + value.get().len(), edits.of(key, value)));
    })
    .ok()?;
    let is_same = |(_, edit): &(_, Edit)| matches!(edit, Edit::Keep);
    if missing.is_empty() && entries.iter().all(is_same) {
        return None;
    }

    let mut spliced = Vec::with_capacity(body.len() + 64);
    // Behind the bracket, and then behind the comma that ends an entry.
    let mut at = text.find('{')? + 1;
    spliced.extend_from_slice(&body[..at]);
    let mut separator = "";
    for (value, edit) in entries {
        // Behind the last one there is none, and its whitespace stays before the bracket.
        let comma = text[value.end..].find(',');
        let end = value.end + comma.unwrap_or(0);
        match edit {
            Edit::Remove => {}
            Edit::Keep => {
                spliced.extend_from_slice(separator.as_bytes());
                spliced.extend_from_slice(&body[at..end]);
                separator = ",";
            }
            Edit::Replace(new) => {
                spliced.extend_from_slice(separator.as_bytes());
                spliced.extend_from_slice(&body[at..value.start]);
                spliced.extend_from_slice(new.as_bytes());
                spliced.extend_from_slice(&body[value.end..end]);
                separator = ",";
            }
        }
        at = end + usize::from(comma.is_some());
    }
    for (key, value) in missing {
        spliced.extend_from_slice(separator.as_bytes());
        spliced.extend_from_slice(serde_json::to_string(key).ok()?.as_bytes());
        spliced.push(b':');
        spliced.extend_from_slice(value.as_bytes());
        separator = ",";
    }
    spliced.extend_from_slice(&body[at..]);
    Some(spliced)
}

/// Removes the headers that spoke of the body as it was: its length, its digests, and signatures
/// over them.
pub(crate) fn drop_stale_headers(headers: &mut HeaderMap) {
    const STALE: [HeaderName; 9] = [
        http::header::CONTENT_LENGTH,
        HeaderName::from_static("content-digest"),
        HeaderName::from_static("content-md5"),
        HeaderName::from_static("digest"),
        HeaderName::from_static("repr-digest"),
        HeaderName::from_static("signature"),
        HeaderName::from_static("signature-input"),
        HeaderName::from_static("x-amz-content-sha256"),
        HeaderName::from_static("x-content-sha256"),
    ];
    for name in STALE {
        headers.remove(name);
    }
    let checksums: Vec<_> = headers
        .keys()
        .filter(|name| name.as_str().starts_with("x-amz-checksum-"))
        .cloned()
        .collect();
    for name in checksums {
        headers.remove(name);
    }
}

/// Tells every entry of a top-level JSON object, duplicates too, in their order; a byte order mark
/// is skipped. What is told before an error was well-formed so far.
pub(crate) fn for_each_entry<'t>(
    text: &'t str,
    each: impl FnMut(&str, &'t RawValue),
) -> serde_json::Result<()> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut deserializer = serde_json::Deserializer::from_str(text);
    deserializer.deserialize_map(Members(each))?;
    deserializer.end()
}

struct Members<F>(F);

impl<'de, F: FnMut(&str, &'de RawValue)> Visitor<'de> for Members<F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            (self.0)(&key, map.next_value()?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    /// The body with another model name, and nothing else.
    fn splice_model(body: &[u8], rename: impl Fn(&str) -> Option<&'static str>) -> Option<Vec<u8>> {
        let rename = |model: &str| rename(model).map(str::to_owned);
        splice(body, &Edits { set: &[], remove: &[], rename })
    }

    fn spliced(body: &str) -> Option<String> {
        let rename = |model: &str| (model == "gpt").then_some("open/\"gpt\"\u{1f600}");
        splice_model(body.as_bytes(), rename).map(|body| String::from_utf8(body).unwrap())
    }

    const NEW: &str = r#""open/\"gpt\"😀""#;

    #[test]
    fn renames_the_model_and_nothing_else() {
        for (before, after) in [
            (r#"{"model":"gpt"}"#, r#"{"model":@}"#),
            (
                "\n{ \"model\" :\t\"gpt\" , \"n\": 1.0 }\r\n",
                "\n{ \"model\" :\t@ , \"n\": 1.0 }\r\n",
            ),
            (r#"{"z":1e400,"a":-0,"model":"gpt","z":2}"#, r#"{"z":1e400,"a":-0,"model":@,"z":2}"#),
            (r#"{"mod\u0065l":"g\u0070t"}"#, r#"{"mod\u0065l":@}"#),
            (r#"{"a":{"model":"gpt"},"model":"gpt"}"#, r#"{"a":{"model":"gpt"},"model":@}"#),
            (r#"{"s":"\ud800","model":"gpt"}"#, r#"{"s":"\ud800","model":@}"#),
            ("\u{feff}{\"model\":\"gpt\"}", "\u{feff}{\"model\":@}"),
            (
                r#"{"s":"\"model\":\"gpt\"","é":"model","model":"gpt"}"#,
                r#"{"s":"\"model\":\"gpt\"","é":"model","model":@}"#,
            ),
        ] {
            assert_eq!(spliced(before), Some(after.replace('@', NEW)), "{before}");
        }
    }

    #[test]
    fn of_duplicate_models_each_is_renamed_for_itself() {
        assert_eq!(
            spliced(r#"{"model":"gpt","model":"other","model":"gpt"}"#),
            Some(r#"{"model":@,"model":"other","model":@}"#.replace('@', NEW))
        );
    }

    #[test]
    fn leaves_alone_what_has_no_model_to_rename() {
        for body in [
            "",
            " ",
            "\u{feff}",
            "null",
            "\"gpt\"",
            "[{\"model\":\"gpt\"}]",
            "{}",
            r#"{"model":"other"}"#,
            r#"{"model":"GPT"}"#,
            r#"{"Model":"gpt"}"#,
            r#"{"model":null}"#,
            r#"{"model":["gpt"]}"#,
            r#"{"model":{"name":"gpt"}}"#,
            r#"{"a":{"model":"gpt"}}"#,
            r#"{"model":"gpt"} x"#,
            r#"{"model":"gpt"}{"model":"gpt"}"#,
            r#"{"model":"gpt","#,
            r#"{"model":"gpt",}"#,
            r#"{"model":"gpt""#,
            r#"{"model":'gpt'}"#,
            r#"{model:"gpt"}"#,
            r#"{"model":"gpt","n":01}"#,
            "{\"model\":\"gpt\",\"s\":\"\n\"}",
            "model=gpt&n=1",
        ] {
            assert_eq!(spliced(body), None, "{body}");
        }
        let rename = |_: &str| Some("new");
        assert_eq!(splice_model(b"{\"model\":\"gpt\",\"s\":\"\xff\"}", rename), None);
        assert_eq!(splice_model(b"{\"model\":\"g\xc3\"}", rename), None);
        assert_eq!(splice_model(b"{\"model\":\"new\"}", rename), None);
        assert_eq!(splice_model(&[0x1f, 0x8b, 8, 0], rename), None);
    }

    #[test]
    fn depth_is_no_limit() {
        let deep = format!(r#"{{"a":{}{},"model":"gpt"}}"#, "[".repeat(9999), "]".repeat(9999));
        assert!(spliced(&deep).unwrap().ends_with(&format!("],\"model\":{NEW}}}")));
    }

    #[test]
    fn headers_that_spoke_of_the_old_body_are_dropped() {
        let mut headers = HeaderMap::new();
        for name in [
            "content-length",
            "digest",
            "content-md5",
            "content-digest",
            "repr-digest",
            "signature",
            "signature-input",
            "x-amz-content-sha256",
            "x-amz-checksum-crc32c",
        ] {
            headers.append(name, "1".parse().unwrap());
            headers.append(name, "2".parse().unwrap());
        }
        headers.insert("content-type", "application/json".parse().unwrap());
        drop_stale_headers(&mut headers);
        assert_eq!(headers.keys().collect::<Vec<_>>(), ["content-type"]);
    }

    fn owned(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn edited(body: &str, set: &[(&str, &str)], remove: &[&str]) -> Option<String> {
        let set = owned(set);
        let remove: Vec<_> = remove.iter().map(|key| (*key).to_owned()).collect();
        let edits = Edits { set: &set, remove: &remove, rename: |_: &str| Some("new".to_owned()) };
        splice(body.as_bytes(), &edits).map(|body| String::from_utf8(body).unwrap())
    }

    #[test]
    fn a_value_is_set_in_its_place_or_at_the_end() {
        for (before, after) in [
            ("{}", r#"{"n":2}"#),
            (" { \n} \n", " {\"n\":2 \n} \n"),
            (r#"{"a":1}"#, r#"{"a":1,"n":2}"#),
            ("{\n  \"a\": 1\n}\n", "{\n  \"a\": 1,\"n\":2\n}\n"),
            (r#"{"n":1}"#, r#"{"n":2}"#),
            (r#"{ "n" : [1,{"n":3}] , "a":{"n":1}}"#, r#"{ "n" : 2 , "a":{"n":1}}"#),
            (r#"{"n":1,"a":"n","\u006e":null}"#, r#"{"n":2,"a":"n","\u006e":2}"#),
            ("\u{feff}{\"a\":1}", "\u{feff}{\"a\":1,\"n\":2}"),
            (r#"{"n":2.0}"#, r#"{"n":2}"#),
        ] {
            assert_eq!(edited(before, &[("n", "2")], &[]).as_deref(), Some(after), "{before}");
        }
        assert_eq!(edited(r#"{"n":2, "a":1}"#, &[("n", "2")], &[]), None);
        assert_eq!(
            edited("{}", &[("b", "{}"), ("a", "\"x\"")], &[]).as_deref(),
            Some(r#"{"b":{},"a":"x"}"#)
        );
        assert_eq!(edited("{}", &[("\"\n", "1")], &[]).as_deref(), Some(r#"{"\"\n":1}"#));
    }

    #[test]
    fn an_entry_is_removed_with_one_comma() {
        for (before, after) in [
            (r#"{"n":1}"#, "{}"),
            ("{ \"n\" : 1 } ", "{ } "),
            (r#"{"n":1,"a":2}"#, r#"{"a":2}"#),
            (r#"{"a":2,"n":1}"#, r#"{"a":2}"#),
            (r#"{"a":2,"n":"}, ,","b":3}"#, r#"{"a":2,"b":3}"#),
            (r#"{"n":1,"a":2,"n":[1,2],"b":3,"n":{}}"#, r#"{"a":2,"b":3}"#),
            (r#"{"n":1,"n":2}"#, "{}"),
            ("{\n  \"a\": 1,\n  \"n\": 2\n}", "{\n  \"a\": 1\n}"),
            ("{\n  \"n\": 2,\n  \"a\": 1\n}", "{\n  \"a\": 1\n}"),
            (r#"{"\u006e":{"n":1}}"#, "{}"),
        ] {
            assert_eq!(edited(before, &[], &["n"]).as_deref(), Some(after), "{before}");
        }
        for body in ["{}", r#"{"a":{"n":1}}"#, r#"{"N":1}"#, r#"[{"n":1}]"#, r#"{"n":1"#, "n", ""] {
            assert_eq!(edited(body, &[], &["n"]), None, "{body}");
        }
    }

    #[test]
    fn what_is_set_or_removed_is_not_renamed() {
        let body = r#"{"model":"old"}"#;
        assert_eq!(edited(body, &[], &[]).as_deref(), Some(r#"{"model":"new"}"#));
        assert_eq!(edited(body, &[], &["model"]).as_deref(), Some("{}"));
        assert_eq!(edited(body, &[("model", "1")], &[]).as_deref(), Some(r#"{"model":1}"#));
    }

    #[test]
    fn what_is_no_json_object_is_told_as_such() {
        let error = for_each_entry("[]", |_, _| panic!("it has no entry")).unwrap_err();
        assert!(error.to_string().contains("expected an object"), "{error}");
    }

    #[test]
    fn what_is_no_json_object_is_not_edited() {
        for body in
            ["", "null", "[]", "{\"a\":1} x", "{\"a\":1,}", "{a:1}", "{", "a=1", "{\"a\":01}"]
        {
            assert_eq!(edited(body, &[("n", "2")], &["a"]), None, "{body}");
        }
        let edits = Edits { set: &owned(&[("n", "2")]), remove: &[], rename: |_: &str| None };
        assert_eq!(splice(b"{\"a\":\"\xff\"}", &edits), None);
        assert_eq!(splice(&[0x1f, 0x8b, 8, 0], &edits), None);
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            prop_oneof!["gpt", "model", ".{0,12}"].prop_map(Value::from),
        ];
        let key = || prop_oneof!["model", ".{0,6}"];
        leaf.prop_recursive(3, 24, 6, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::vec((key(), inner), 0..5)
                    .prop_map(|entries| Value::Object(entries.into_iter().collect())),
            ]
        })
    }

    fn space() -> impl Strategy<Value = String> {
        "[ \t\r\n]{0,2}"
    }

    fn key() -> impl Strategy<Value = String> {
        prop_oneof!["[nma]", "[a-z\"\\\\,{}: é😀]{0,4}"]
    }

    proptest! {
        #[test]
        fn any_document_is_unchanged_but_for_the_one_span(
            before in prop::collection::vec(("[a-z\"\\\\é]{0,5}", json()), 0..5),
            model in prop::option::of(prop_oneof!["gpt", "[a-z]{0,4}"]),
            after in prop::collection::vec(("[a-z\"\\\\é]{0,5}", json()), 0..5),
            pretty in any::<bool>(),
        ) {
            let shown = |value: &Value| match pretty {
                true => serde_json::to_string_pretty(value).unwrap(),
                false => value.to_string(),
            };
            let pairs = |pairs: Vec<(String, Value)>| -> Vec<String> {
                let pair = |(key, value)| format!("{} : {}", Value::from(key), shown(&value));
                pairs.into_iter().map(pair).collect()
            };
            let (before, after) = (pairs(before), pairs(after));
            let with = |model: Option<&str>| {
                let model = model.map(|model| format!("\"model\":{model}"));
                let all = before.iter().chain(&model).chain(&after);
                format!(" {{{}}}", all.cloned().collect::<Vec<_>>().join(" ,\n"))
            };
            let body = with(model.as_deref().map(|model| Value::from(model).to_string()).as_deref());
            let expected = (model.as_deref() == Some("gpt")).then(|| with(Some(NEW)));
            prop_assert_eq!(spliced(&body), expected);
        }

        #[test]
        fn any_value_is_either_left_alone_or_renamed_at_the_top(value in json()) {
            let mut expected = value.clone();
            match expected.get_mut("model") {
                Some(model) if model == "gpt" => *model = "open/\"gpt\"\u{1f600}".into(),
                _ => expected = Value::Null,
            }
            let spliced = spliced(&value.to_string());
            let found = spliced.map_or(Value::Null, |body| serde_json::from_str(&body).unwrap());
            // Through text, since a number may be read back one bit off.
            prop_assert_eq!(found.to_string(), serde_json::from_str::<Value>(&expected.to_string()).unwrap().to_string());
        }

        /// A document is put together of entries and the whitespace around them, edited, and compared with
        /// what is put together of the edited entries. Then a parser reads both.
        #[test]
        fn any_document_is_edited_as_a_parser_sees_it_and_every_other_byte_stays(
            entries in prop::collection::vec(
                ((space(), key(), space()), (space(), json(), space())),
                0..6,
            ),
            (around, tail) in ((space(), space()), space()),
            set in prop::collection::btree_map(key(), json(), 0..3),
            remove in prop::collection::btree_set(key(), 0..3),
        ) {
            let removed = |key: &str| remove.contains(key) && !set.contains_key(key);
            let set: Vec<_> =
                set.iter().map(|(key, value)| (key.clone(), value.to_string())).collect();
            let remove: Vec<_> = remove.iter().filter(|key| removed(key)).cloned().collect();
            let set_to = |key: &str| set.iter().find(|(set, _)| set == key).map(|(_, value)| value);

            let count = entries.len();
            let (mut before, mut after) = (Vec::new(), Vec::new());
            for (at, ((lead, key, colon), (gap, value, behind))) in entries.iter().enumerate() {
                // The whitespace behind the last value is the object's.
                let behind = if at + 1 == count { "" } else { behind };
                let entry = |value: &str| {
                    format!("{lead}{}{colon}:{gap}{value}{behind}", Value::from(key.as_str()))
                };
                let value = value.to_string();
                before.push(entry(&value));
                if !removed(key) {
                    after.push(entry(set_to(key).unwrap_or(&value)));
                }
            }
            let added = set.iter().filter(|(key, _)| !entries.iter().any(|((_, had, _), _)| had == key));
            after.extend(added.map(|(key, value)| format!("{}:{value}", Value::from(key.as_str()))));
            let object = |entries: &[String]| {
                format!("{}{{{}{tail}}}{}", around.0, entries.join(","), around.1)
            };
            let (before, after) = (object(&before), object(&after));

            let edits = Edits { set: &set, remove: &remove, rename: |_: &str| None };
            let spliced = splice(before.as_bytes(), &edits);
            prop_assert_eq!(spliced.is_none(), before == after);
            let spliced = spliced.map_or(before.clone(), |body| String::from_utf8(body).unwrap());
            prop_assert_eq!(&spliced, &after);

            let parse = |text: &str| -> serde_json::Map<String, Value> {
                serde_json::from_str(text).unwrap()
            };
            let mut expected = parse(&before);
            expected.retain(|key, _| !removed(key));
            for (key, value) in &set {
                expected.insert(key.clone(), serde_json::from_str(value).unwrap());
            }
            prop_assert_eq!(parse(&spliced), expected);
        }

        #[test]
        fn any_bytes_are_survived(body in prop::collection::vec(any::<u8>(), 0..64)) {
            prop_assert_eq!(splice_model(&body, |_| None), None);
            let _ = splice_model(&body, |_| Some("new"));
            let text = String::from_utf8_lossy(&body);
            for body in [&*text, &format!("{{\"{text}"), &format!("{{{text}}}")] {
                let spliced = edited(body, &[("n", "2")], &["a"]);
                let parsed = serde_json::from_str::<serde_json::Map<String, Value>>(body);
                prop_assert!(spliced.is_none() || parsed.is_ok());
            }
        }
    }
}
