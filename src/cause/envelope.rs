//! The shapes in which vendors answer that something went wrong.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::codes::{self, Code};
use super::hint;

/// One place in an answer where vendors say what went wrong.
///
/// To teach the reader a shape, add a row with its path, or a name to a row that has the path. Rows that
/// come first win, and so do names within a row. Lists are looked through: a row for `errors` covers
/// `{"errors":[{"message":"x"}]}`, and every row covers an answer that is a list of such objects.
pub(super) struct Envelope {
    /// The keys that lead from the top to the place.
    at: &'static [&'static str],
    /// The names of codes: words or numbers.
    codes: &'static [&'static str],
    /// The names of messages.
    messages: &'static [&'static str],
    /// The names of a duration to wait.
    waits: &'static [&'static str],
    /// What the codes mean here, where it is not what they mean elsewhere.
    pub(super) own: &'static [Code],
}

const NOTHING: Envelope = Envelope { at: &[], codes: &[], messages: &[], waits: &[], own: &[] };

/// The first rows are the innermost: a gateway wraps what it was told in words of its own.
pub(super) const ENVELOPES: &[Envelope] = &[
    // `{"error":{"code":"..","message":"..","type":".."}}`: OpenAI and what is compatible with it
    // <https://platform.openai.com/docs/guides/error-codes>, CometAPI
    // <https://apidoc.cometapi.com/errors/error-codes-handling>, Azure, Groq, DeepSeek, OpenRouter.
    // `{"type":"error","error":{"type":"..","message":".."}}`: Anthropic
    // <https://docs.anthropic.com/en/api/errors>.
    // `{"error":{"code":429,"status":"RESOURCE_EXHAUSTED",..}}`: Google
    // <https://cloud.google.com/apis/design/errors>.
    // `{"error":{"root_cause":[..],"type":"..","reason":".."}}`: Elasticsearch.
    Envelope {
        at: &["error"],
        codes: &["code", "status", "type", "error_code", "error_type"],
        messages: &["message", "msg", "detail", "reason", "error"],
        waits: &["retry_after", "retry_after_seconds"],
        ..NOTHING
    },
    // Azure's content filter: `{"error":{"code":null,"innererror":{"code":"ResponsibleAIPolicyViolation"}}}`
    // <https://learn.microsoft.com/azure/ai-services/openai/concepts/content-filter>.
    Envelope { at: &["error", "innererror"], codes: &["code"], ..NOTHING },
    // Google's RetryInfo, `"details":[{"@type":"..RetryInfo","retryDelay":"34s"}]`, and ErrorInfo's
    // `reason` <https://github.com/googleapis/googleapis/blob/master/google/rpc/error_details.proto>.
    Envelope { at: &["error", "details"], codes: &["reason"], waits: &["retryDelay"], ..NOTHING },
    // OpenRouter, of a provider behind it: `"metadata":{"retry_after_seconds":17}`
    // <https://openrouter.ai/docs/api-reference/errors>.
    Envelope { at: &["error", "metadata"], waits: &["retry_after_seconds"], ..NOTHING },
    // Infura's limits: `"data":{"backoff_seconds":30.0}`
    // <https://docs.infura.io/api/networks/ethereum/how-to/avoid-rate-limiting>.
    Envelope { at: &["error", "data"], waits: &["backoff_seconds"], ..NOTHING },
    // `response.failed` of OpenAI's Responses
    // <https://platform.openai.com/docs/api-reference/responses-streaming>.
    Envelope {
        at: &["response", "error"],
        codes: &["code", "type"],
        messages: &["message"],
        ..NOTHING
    },
    // OpenRouter, of an answer that broke off: `"choices":[{"error":{"code":502,"message":".."}}]`
    // <https://openrouter.ai/docs/api-reference/errors>.
    Envelope {
        at: &["choices", "error"],
        codes: &["code", "type"],
        messages: &["message"],
        ..NOTHING
    },
    // Groq, in the last chunk of a stream: `"x_groq":{"error":".."}`
    // <https://console.groq.com/docs/api-reference>.
    Envelope { at: &["x_groq"], messages: &["error"], ..NOTHING },
    // MiniMax: `"base_resp":{"status_code":1008,"status_msg":"insufficient balance"}`
    // <https://platform.minimax.io/docs/api-reference/errorcode>.
    Envelope {
        at: &["base_resp"],
        codes: &["status_code"],
        messages: &["status_msg"],
        own: codes::MINIMAX,
        ..NOTHING
    },
    // FastAPI, and so vLLM, Voyage, Jina: `{"detail":"Not Found"}` (the last row) and
    // `{"detail":[{"loc":[..],"msg":"..","type":"missing"}]}`
    // <https://fastapi.tiangolo.com/tutorial/handling-errors/>.
    // ElevenLabs: `{"detail":{"status":"quota_exceeded","message":".."}}`
    // <https://elevenlabs.io/docs/developers/resources/error-messages>.
    Envelope {
        at: &["detail"],
        codes: &["code", "status", "type"],
        messages: &["message", "msg"],
        ..NOTHING
    },
    // Cloudflare `{"errors":[{"code":10000,"message":".."}],"success":false}`
    // <https://developers.cloudflare.com/api/>, JSON:API <https://jsonapi.org/format/#errors>, GraphQL.
    Envelope {
        at: &["errors"],
        codes: &["code", "status", "type"],
        messages: &["message", "detail", "title"],
        ..NOTHING
    },
    // GraphQL: `"errors":[{"message":"..","extensions":{"code":"UNAUTHENTICATED"}}]`
    // <https://www.apollographql.com/docs/apollo-server/data/errors>.
    Envelope { at: &["errors", "extensions"], codes: &["code"], ..NOTHING },
    // Apigee: `{"fault":{"faultstring":"..","detail":{"errorcode":".."}}}`
    // <https://cloud.google.com/apigee/docs/api-platform/fundamentals/fault-handling>.
    Envelope { at: &["fault"], messages: &["faultstring"], ..NOTHING },
    Envelope { at: &["fault", "detail"], codes: &["errorcode"], ..NOTHING },
    // At the top: vLLM and Mistral `{"object":"error","message":"..","type":"..","code":404}`, DashScope
    // `{"code":"Throttling.RateQuota","message":".."}`, AWS `{"__type":"ThrottlingException","message":".."}`,
    // OAuth `{"error":"invalid_client","error_description":".."}` (RFC 6749), problem details
    // `{"type":"..","title":"..","detail":".."}` (RFC 9457), Ollama `{"error":".."}`, Baidu
    // `{"error_code":18,"error_msg":".."}`, Deepgram `{"err_code":"..","err_msg":".."}`, Stability
    // `{"name":"..","errors":[".."]}`, Azure API Management `{"statusCode":429,"message":".."}`.
    Envelope {
        at: &[],
        codes: &[
            "code",
            "error_code",
            "errorCode",
            "__type",
            "err_code",
            "type",
            "name",
            "error",
            "status",
            "statusCode",
            "status_code",
            "raw_status_code",
        ],
        messages: &[
            "message",
            "error_description",
            "detail",
            "msg",
            "error_msg",
            "err_msg",
            "errorMessage",
            "Message",
            "error",
            "errors",
            "title",
        ],
        waits: &["retry_after", "retry_after_seconds"],
        ..NOTHING
    },
];

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
            Self::Text(text) if text.len() < 10 => text.parse().ok(),
            Self::Text(_) => None,
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
        top.deserialize(&mut deserializer).is_ok() && deserializer.end().is_ok()
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

/// What a value is, by its name.
#[derive(Clone, Copy)]
enum Field {
    Nothing,
    Code(usize),
    Message(usize),
    /// `"error":"invalid_client"`, or `"error":"Out of credit."`
    CodeOrMessage(usize, usize),
    Wait,
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

impl Envelope {
    /// More than any row has names.
    const RANKS: usize = 32;

    /// The row of a rank.
    pub(super) fn of_rank(rank: usize) -> Option<&'static Self> {
        ENVELOPES.get(rank / Self::RANKS)
    }

    fn field(&self, row: usize, name: &str) -> Field {
        let rank = |names: &[&str]| {
            names.iter().position(|known| *known == name).map(|at| row * Self::RANKS + at)
        };
        match (rank(self.codes), rank(self.messages)) {
            (Some(code), Some(message)) => Field::CodeOrMessage(code, message),
            (Some(code), None) => Field::Code(code),
            (None, Some(message)) => Field::Message(message),
            (None, None) if self.waits.contains(&name) => Field::Wait,
            (None, None) => Field::Nothing,
        }
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
