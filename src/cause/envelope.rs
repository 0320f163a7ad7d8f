//! The shapes in which vendors answer that something went wrong.

use super::codes::{self, Code};

/// One place in an answer where vendors say what went wrong.
///
/// To teach the reader a shape, add a row with its path, or a name to a row that has the path. Rows that
/// come first win, and so do names within a row. Lists are looked through: a row for `errors` covers
/// `{"errors":[{"message":"x"}]}`, and every row covers an answer that is a list of such objects.
pub(super) struct Envelope {
    /// The keys that lead from the top to the place.
    pub(super) at: &'static [&'static str],
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

/// The first rows are the innermost: a gateway wraps the vendor's body in one of its own.
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

impl Envelope {
    /// More than any row has names.
    const RANKS: usize = 32;

    /// The row of a rank.
    pub(super) fn of_rank(rank: usize) -> Option<&'static Self> {
        ENVELOPES.get(rank / Self::RANKS)
    }

    pub(super) fn field(&self, row: usize, name: &str) -> Field {
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

/// What a value is, by its name.
#[derive(Clone, Copy)]
pub(super) enum Field {
    Nothing,
    Code(usize),
    Message(usize),
    /// `"error":"invalid_client"`, or `"error":"Out of credit."`
    CodeOrMessage(usize, usize),
    Wait,
}
