//! Reads the envelopes in a body, in one pass and without a tree.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::envelope::{ENVELOPES, Field};
use super::hint;

/// What the envelopes in a body hold.
#[derive(Default)]
pub(super) struct Found<'de> {
    /// Every code, with its rank in the table.
    pub(super) codes: Vec<(usize, Word<'de>)>,
    /// The message of the lowest rank.
    pub(super) message: Option<(usize, Cow<'de, str>)>,
    pub(super) wait: Option<Duration>,
    /// Whether this is an answer of JSON-RPC, whose codes mean something else.
    pub(super) is_rpc: bool,
}

/// A code.
pub(super) enum Word<'de> {
    Text(Cow<'de, str>),
    Number(i64),
}

impl Word<'_> {
    /// The number that it is; many vendors put one in quotes.
    pub(super) fn number(&self) -> Option<i64> {
        match self {
            Self::Number(number) => Some(*number),
            Self::Text(text) => text.parse().ok(),
        }
    }

    pub(super) fn shown(&self) -> Box<str> {
        match self {
            Self::Number(number) => number.to_string().into(),
            Self::Text(text) => text.as_ref().into(),
        }
    }
}

impl<'de> Found<'de> {
    /// How many values one answer may hold that are looked at: enough for any list of errors, and few
    /// enough to sort.
    const MOST: usize = 64;

    /// Takes in what is found up to the end, or up to where the JSON is cut or broken. Whether it is
    /// whole.
    pub(super) fn read(&mut self, json: &'de [u8]) -> bool {
        let mut deserializer = serde_json::Deserializer::from_slice(json);
        let every = (1 << ENVELOPES.len()) - 1;
        let top = Place { found: self, depth: 0, rows: every, field: Field::Message(usize::MAX) };
        top.deserialize(&mut deserializer).and_then(|()| deserializer.end()).is_ok()
    }

    fn put(&mut self, field: Field, word: Word<'de>) {
        match field {
            Field::Nothing => {}
            Field::Code(rank) => {
                if word.is_code() && self.codes.len() < Self::MOST {
                    self.codes.push((rank, word));
                }
            }
            Field::Message(rank) => {
                if let Word::Text(text) = word
                    && !text.trim_ascii().is_empty()
                    && self.message.as_ref().is_none_or(|(before, _)| rank < *before)
                {
                    self.message = Some((rank, text));
                }
            }
            Field::CodeOrMessage(code, message) => {
                if let Word::Text(text) = &word {
                    self.put(Field::Message(message), Word::Text(text.clone()));
                }
                self.put(Field::Code(code), word);
            }
            Field::Wait => {
                let wait = match &word {
                    Word::Text(text) => hint::duration(text),
                    Word::Number(seconds) => u64::try_from(*seconds).ok().map(Duration::from_secs),
                };
                self.wait = self.wait.or(wait).map(hint::at_least);
            }
        }
    }
}

impl Word<'_> {
    fn is_code(&self) -> bool {
        /// What is said where a code might stand, and is none.
        const NONE: [&str; 6] = ["error", "failed", "failure", "fail", "about:blank", "null"];
        match self {
            Self::Number(number) => *number != 0,
            Self::Text(text) => {
                !text.is_empty()
                    && !text.bytes().any(|byte| byte <= b' ')
                    && !NONE.contains(&&**text)
            }
        }
    }
}

/// A value in the JSON, and which rows of the table lead there.
struct Place<'f, 'de> {
    found: &'f mut Found<'de>,
    depth: usize,
    rows: u32,
    field: Field,
}

impl<'de> Place<'_, 'de> {
    /// The field of this name, and the rows that lead into it.
    fn enter(&self, name: &str) -> (Field, u32) {
        let (mut field, mut inside) = (Field::Nothing, 0);
        let mut rows = self.rows;
        while rows != 0 {
            let row = rows.trailing_zeros() as usize;
            rows &= rows - 1;
            let envelope = &ENVELOPES[row];
            match envelope.at.get(self.depth) {
                Some(key) if *key == name => inside |= 1 << row,
                Some(_) => {}
                None => field = envelope.field(row, name),
            }
        }
        (field, inside)
    }
}

impl<'de> DeserializeSeed<'de> for Place<'_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Place<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<(), E> {
        self.found.put(self.field, Word::Text(Cow::Borrowed(text)));
        Ok(())
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        self.found.put(self.field, Word::Text(Cow::Owned(text.to_owned())));
        Ok(())
    }

    fn visit_i64<E>(self, number: i64) -> Result<(), E> {
        self.found.put(self.field, Word::Number(number));
        Ok(())
    }

    fn visit_u64<E>(self, number: u64) -> Result<(), E> {
        self.found.put(self.field, Word::Number(i64::try_from(number).unwrap_or(i64::MAX)));
        Ok(())
    }

    fn visit_f64<E>(self, number: f64) -> Result<(), E> {
        // A duration; a code is no fraction.
        if matches!(self.field, Field::Wait) {
            let text = Word::Text(Cow::Owned(number.to_string()));
            self.found.put(self.field, text);
        }
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let Self { found, depth, rows, field } = self;
        for _ in 0..Found::MOST {
            let element = Place { found: &mut *found, depth, rows, field };
            if list.next_element_seed(element)?.is_none() {
                return Ok(());
            }
        }
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key_seed(Name)? {
            self.found.is_rpc |= self.depth == 0 && name == "jsonrpc";
            let (field, rows) = self.enter(&name);
            if rows == 0 && matches!(field, Field::Nothing) {
                map.next_value::<IgnoredAny>()?;
            } else {
                let depth = self.depth + 1;
                map.next_value_seed(Place { found: &mut *self.found, depth, rows, field })?;
            }
        }
        Ok(())
    }
}

/// A key, without a copy where that is possible.
struct Name;

impl<'de> DeserializeSeed<'de> for Name {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Name {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_borrowed_str<E>(self, name: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(name))
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use serde::de::value::{BytesDeserializer, Error};

    use super::*;

    #[test]
    fn what_is_no_json_is_an_error_that_says_so() {
        let mut found = Found::default();
        let top = Place { found: &mut found, depth: 0, rows: 1, field: Field::Nothing };
        let bytes = || BytesDeserializer::<Error>::new(b"x");
        let error = top.deserialize(bytes()).unwrap_err();
        assert_eq!(error.to_string(), "invalid type: byte array, expected JSON");
        let error = Name.deserialize(bytes()).unwrap_err();
        assert_eq!(error.to_string(), "invalid type: byte array, expected a key");
    }
}
