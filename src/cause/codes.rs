//! What vendors' codes mean.

use std::sync::LazyLock;

use super::Blame;
use super::envelope::Envelope;
use super::found::Word;

/// A code as its vendor spells it, and what it means. Case and the signs `_`, `-`, `.` make no
/// difference: `rate_limit_exceeded` is `RateLimitExceeded`.
pub(super) type Code = (&'static str, Means);

/// What a code means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Means {
    /// The request cannot be served: too long, its content refused, a parameter that is not there.
    Request,
    /// The request is wrong somehow. Vendors say this of keys and models, too.
    Malformed,
    /// There is no such thing: the model if the message speaks of one, else something that was asked for.
    Missing,
    Model,
    /// The key is wrong or missing.
    Key,
    /// The key is right, and may not do this.
    Denied,
    /// The account has used up what it may use, or has paid for.
    Quota,
    /// Too many requests or tokens at a time.
    Limit,
    Overloaded,
    TimedOut,
    Failed,
    /// Known from a status alone that stands among the codes.
    Status(Blame),
    Unknown,
}

impl Means {
    pub(super) fn blame(self, message: &str) -> Blame {
        match self {
            Self::Request | Self::Malformed => Blame::Request,
            Self::Missing if speaks_of_a_model(message) => Blame::Model,
            Self::Missing => Blame::Request,
            Self::Model => Blame::Model,
            Self::Key | Self::Denied | Self::Quota => Blame::Account,
            Self::Limit | Self::Overloaded | Self::TimedOut | Self::Failed => Blame::Provider,
            Self::Status(blame) => blame,
            Self::Unknown => Blame::Unknown,
        }
    }

    /// The status that vendors answer with such a code.
    pub(super) fn status(self) -> Option<u16> {
        match self {
            Self::Request | Self::Malformed => Some(400),
            Self::Missing | Self::Model => Some(404),
            Self::Key => Some(401),
            Self::Denied => Some(403),
            Self::Quota | Self::Limit => Some(429),
            Self::Failed => Some(500),
            Self::Overloaded => Some(503),
            Self::TimedOut => Some(504),
            Self::Status(_) | Self::Unknown => None,
        }
    }
}

/// What a code means at the place of this rank. `None` for what no table knows.
pub(super) fn means(rank: usize, word: &Word<'_>) -> Option<Means> {
    static SORTED: LazyLock<Sorted> = LazyLock::new(|| Sorted::of(CODES));

    let own = Envelope::of_rank(rank).map_or(&[][..], |envelope| envelope.own);
    if own.is_empty() {
        let Word::Text(text) = word else { return None };
        // AWS puts a namespace before a `#`, or a URL behind a `:`.
        let text = text.rsplit('#').next().unwrap_or_default();
        let text = text.split(":http").next().unwrap_or_default();
        return SORTED.look_up(text);
    }
    Sorted::of(own).look_up(&word.shown())
}

/// A table that is sorted once, since every failover looks something up in it.
struct Sorted(Vec<(Plain, Means)>);

impl Sorted {
    fn of(table: &[Code]) -> Self {
        let plain = |(code, means): &Code| Some((Plain::of(code)?, *means));
        let mut sorted: Vec<_> = table.iter().filter_map(plain).collect();
        sorted.sort_unstable_by_key(|(code, _)| *code);
        Self(sorted)
    }

    fn look_up(&self, text: &str) -> Option<Means> {
        let text = Plain::of(text)?;
        let at = self.0.binary_search_by_key(&text, |(code, _)| *code).ok()?;
        Some(self.0[at].1)
    }
}

/// A code in lower case and without its separators.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Plain([u8; Plain::LONGEST]);

impl Plain {
    const LONGEST: usize = 40;

    /// `None` for what is longer than any code in the tables.
    fn of(code: &str) -> Option<Self> {
        let (mut plain, mut length) = ([0; Self::LONGEST], 0);
        for byte in code.bytes().filter(|byte| !matches!(byte, b'_' | b'-' | b'.')) {
            *plain.get_mut(length)? = byte.to_ascii_lowercase();
            length += 1;
        }
        Some(Self(plain))
    }
}

/// What a status means that stands among the codes.
pub(super) fn of_status(status: i64) -> Option<Means> {
    Some(match status {
        401 => Means::Key,
        402 | 403 => Means::Status(Blame::Account),
        404 => Means::Missing,
        408 | 425 => Means::Status(Blame::Provider),
        429 => Means::Limit,
        400..=499 => Means::Malformed,
        500..=599 => Means::Failed,
        _ => return None,
    })
}

fn speaks_of_a_model(message: &str) -> bool {
    let holds = |word: &[u8]| {
        message.as_bytes().windows(word.len()).any(|part| part.eq_ignore_ascii_case(word))
    };
    holds(b"model") || holds(b"deployment")
}

/// The codes that mean the same wherever they are said.
const CODES: &[Code] = &[
    // OpenAI and vendors that took over its codes <https://platform.openai.com/docs/guides/error-codes>,
    // <https://platform.openai.com/docs/api-reference/responses/object>.
    ("invalid_request_error", Means::Malformed),
    ("invalid_api_key", Means::Key),
    ("invalid_authentication", Means::Key),
    ("incorrect_api_key", Means::Key),
    ("account_deactivated", Means::Key),
    ("organization_deactivated", Means::Key),
    ("insufficient_permissions", Means::Denied),
    ("unsupported_country_region_territory", Means::Denied),
    ("model_not_found", Means::Model),
    ("context_length_exceeded", Means::Request),
    ("string_above_max_length", Means::Request),
    ("array_above_max_length", Means::Request),
    ("unsupported_parameter", Means::Request),
    ("unsupported_value", Means::Request),
    ("unknown_parameter", Means::Request),
    ("missing_required_parameter", Means::Request),
    ("invalid_type", Means::Request),
    ("invalid_value", Means::Request),
    ("invalid_prompt", Means::Request),
    ("invalid_json", Means::Request),
    ("invalid_image", Means::Request),
    ("invalid_image_format", Means::Request),
    ("invalid_image_url", Means::Request),
    ("image_too_large", Means::Request),
    ("image_parse_error", Means::Request),
    ("content_policy_violation", Means::Request),
    ("moderation_blocked", Means::Request),
    ("insufficient_quota", Means::Quota),
    ("billing_hard_limit_reached", Means::Quota),
    ("billing_not_active", Means::Quota),
    ("rate_limit_exceeded", Means::Limit),
    ("rate_limit_error", Means::Limit),
    ("requests", Means::Limit),
    ("tokens", Means::Limit),
    ("server_error", Means::Failed),
    ("vector_store_timeout", Means::TimedOut),
    ("engine_overloaded", Means::Overloaded),
    ("slow_down", Means::Overloaded),
    // Anthropic <https://docs.anthropic.com/en/api/errors>.
    ("authentication_error", Means::Key),
    ("permission_error", Means::Denied),
    ("billing_error", Means::Quota),
    ("not_found_error", Means::Missing),
    ("request_too_large", Means::Request),
    ("api_error", Means::Failed),
    ("timeout_error", Means::TimedOut),
    ("overloaded_error", Means::Overloaded),
    // Google <https://github.com/googleapis/googleapis/blob/master/google/rpc/code.proto>,
    // <https://ai.google.dev/gemini-api/docs/troubleshooting>.
    ("INVALID_ARGUMENT", Means::Malformed),
    ("FAILED_PRECONDITION", Means::Malformed),
    ("OUT_OF_RANGE", Means::Request),
    ("UNAUTHENTICATED", Means::Key),
    ("API_KEY_INVALID", Means::Key),
    ("API_KEY_EXPIRED", Means::Key),
    ("ACCESS_TOKEN_EXPIRED", Means::Key),
    ("PERMISSION_DENIED", Means::Denied),
    ("SERVICE_DISABLED", Means::Denied),
    ("BILLING_DISABLED", Means::Quota),
    ("NOT_FOUND", Means::Missing),
    ("RESOURCE_EXHAUSTED", Means::Limit),
    ("INTERNAL", Means::Failed),
    ("UNAVAILABLE", Means::Overloaded),
    ("DEADLINE_EXCEEDED", Means::TimedOut),
    // CometAPI <https://apidoc.cometapi.com/errors/error-codes-handling>, and New API, which it shares
    // its envelope with <https://github.com/QuantumNous/new-api/blob/main/types/error.go>.
    ("invalid_request", Means::Malformed),
    ("invalid_token", Means::Key),
    ("insufficient_user_quota", Means::Quota),
    ("pre_consume_token_quota_failed", Means::Quota),
    ("sensitive_words_detected", Means::Request),
    ("prompt_blocked", Means::Request),
    ("bad_request_body", Means::Request),
    ("convert_request_failed", Means::Request),
    ("channel:no_available_key", Means::Failed),
    ("channel:invalid_key", Means::Failed),
    ("channel:response_time_exceeded", Means::TimedOut),
    ("get_channel_failed", Means::Failed),
    ("empty_response", Means::Failed),
    ("do_request_failed", Means::Failed),
    ("bad_response_status_code", Means::Failed),
    ("bad_response", Means::Failed),
    ("upstream_error", Means::Failed),
    // Azure <https://learn.microsoft.com/azure/ai-services/openai/concepts/content-filter>,
    // <https://learn.microsoft.com/azure/ai-services/openai/how-to/quota>.
    ("content_filter", Means::Request),
    ("ResponsibleAIPolicyViolation", Means::Request),
    ("OperationNotSupported", Means::Request),
    ("DeploymentNotFound", Means::Model),
    ("RateLimitReached", Means::Limit),
    ("TooManyRequests", Means::Limit),
    ("InternalServerError", Means::Failed),
    ("ServiceUnavailable", Means::Overloaded),
    // Groq <https://console.groq.com/docs/errors>.
    ("json_validate_failed", Means::Request),
    ("tool_use_failed", Means::Request),
    ("model_decommissioned", Means::Model),
    ("over_capacity", Means::Overloaded),
    ("capacity_exceeded", Means::Overloaded),
    // xAI <https://docs.x.ai/docs/key-information/debugging> and DeepSeek
    // <https://api-docs.deepseek.com/quick_start/error_codes>.
    ("insufficient_balance", Means::Quota),
    ("unknown_error", Means::Failed),
    ("service_unavailable_error", Means::Overloaded),
    // Mistral <https://docs.mistral.ai/api/> and vLLM
    // <https://github.com/vllm-project/vllm/blob/main/vllm/entrypoints/openai/protocol.py>.
    ("rate_limited", Means::Limit),
    ("service_tier_capacity_exceeded", Means::Overloaded),
    ("invalid_model", Means::Model),
    ("unauthorized", Means::Key),
    ("BadRequestError", Means::Malformed),
    ("UnprocessableEntityError", Means::Malformed),
    // Moonshot <https://platform.moonshot.ai/docs/api/errors>.
    ("invalid_authentication_error", Means::Key),
    ("incorrect_api_key_error", Means::Key),
    ("exceeded_current_quota_error", Means::Quota),
    ("rate_limit_reached_error", Means::Limit),
    ("engine_overloaded_error", Means::Overloaded),
    ("resource_not_found_error", Means::Missing),
    ("permission_denied_error", Means::Denied),
    // Together <https://docs.together.ai/docs/rate-limits>.
    ("dynamic_request_limited", Means::Limit),
    ("dynamic_token_limited", Means::Limit),
    ("overloaded", Means::Overloaded),
    // DashScope <https://help.aliyun.com/zh/dashscope/return-status-code-description>.
    ("InvalidParameter", Means::Malformed),
    ("DataInspectionFailed", Means::Request),
    ("InvalidParameter.DataInspection", Means::Request),
    ("invalid_parameter_error", Means::Malformed),
    ("AccessDenied", Means::Denied),
    ("AccessDenied.Unpurchased", Means::Denied),
    ("Arrearage", Means::Quota),
    ("Throttling", Means::Limit),
    ("Throttling.RateQuota", Means::Limit),
    ("Throttling.AllocationQuota", Means::Limit),
    ("Throttling.BurstRate", Means::Limit),
    ("InternalError", Means::Failed),
    ("InternalError.Algo", Means::Failed),
    ("RequestTimeOut", Means::TimedOut),
    ("SystemError", Means::Failed),
    // Bedrock <https://docs.aws.amazon.com/bedrock/latest/userguide/troubleshooting-api-error-codes.html>.
    ("ValidationException", Means::Malformed),
    ("AccessDeniedException", Means::Denied),
    ("UnrecognizedClientException", Means::Key),
    ("ExpiredTokenException", Means::Key),
    ("InvalidSignatureException", Means::Key),
    ("ResourceNotFoundException", Means::Missing),
    ("ThrottlingException", Means::Limit),
    ("ServiceQuotaExceededException", Means::Limit),
    ("ModelNotReadyException", Means::Overloaded),
    ("ModelTimeoutException", Means::TimedOut),
    ("ModelErrorException", Means::Failed),
    ("ModelStreamErrorException", Means::Failed),
    ("InternalServerException", Means::Failed),
    ("ServiceUnavailableException", Means::Overloaded),
    // ElevenLabs <https://elevenlabs.io/docs/developers/resources/error-messages>.
    ("quota_exceeded", Means::Quota),
    ("too_many_concurrent_requests", Means::Limit),
    ("system_busy", Means::Overloaded),
    ("max_character_limit_exceeded", Means::Request),
    ("text_too_long", Means::Request),
    ("voice_not_found", Means::Request),
    ("needs_authorization", Means::Key),
    // OpenRouter's key limits, and several gateways <https://openrouter.ai/docs/api-reference/limits>.
    ("insufficient_credits", Means::Quota),
    ("payment_required", Means::Quota),
    // OAuth (RFC 6749 and RFC 6750).
    ("invalid_client", Means::Key),
    ("unauthorized_client", Means::Key),
    ("insufficient_scope", Means::Denied),
    ("temporarily_unavailable", Means::Overloaded),
    // Zhipu, in quotes <https://docs.bigmodel.cn/cn/api/api-code>.
    ("1113", Means::Quota),
    ("1211", Means::Model),
    ("1210", Means::Request),
    ("1261", Means::Request),
    ("1301", Means::Request),
    ("1302", Means::Limit),
    ("1303", Means::Limit),
    ("1304", Means::Quota),
    ("1305", Means::Overloaded),
];

/// <https://platform.minimax.io/docs/api-reference/errorcode>
pub(super) const MINIMAX: &[Code] = &[
    ("1000", Means::Failed),
    ("1001", Means::TimedOut),
    ("1002", Means::Limit),
    ("1004", Means::Key),
    ("1008", Means::Quota),
    ("1013", Means::Failed),
    ("1024", Means::Failed),
    ("1026", Means::Request),
    ("1027", Means::Request),
    ("1033", Means::Failed),
    ("1039", Means::Limit),
    ("1042", Means::Request),
    ("2013", Means::Request),
    ("2045", Means::Limit),
    ("2049", Means::Key),
    ("2056", Means::Quota),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_found_and_none_is_in_its_table_twice() {
        for table in [CODES, MINIMAX] {
            let sorted = Sorted::of(table);
            assert_eq!(sorted.0.len(), table.len());
            for (code, means) in table {
                assert_eq!(sorted.look_up(code), Some(*means), "{code}");
            }
            assert!(sorted.0.windows(2).all(|pair| pair[0].0 != pair[1].0));
        }
    }

    #[test]
    fn a_code_is_known_in_any_case_and_with_any_separators() {
        let sorted = Sorted::of(&[("rate_limit_exceeded", Means::Limit)]);
        for (said, known) in [
            ("RateLimitExceeded", true),
            ("RATE-LIMIT.EXCEEDED", true),
            ("rate_limit_exceeded_", true),
            ("rate_limit_exceede", false),
            ("rate_limit_exceeded2", false),
            ("", false),
            (&"x".repeat(99), false),
        ] {
            assert_eq!(sorted.look_up(said).is_some(), known, "{said}");
        }
    }
}
