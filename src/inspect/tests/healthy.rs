//! Streams that are well, as vendors send them. Each is handed on byte for byte, no later than with its
//! first content, and ends well.

use super::*;

/// A name, the kind it is said to be, the events before the first content, and the others.
type Shape =
    (&'static str, (&'static str, &'static str), &'static [&'static str], &'static [&'static str]);

const LINES: (&str, &str) = ("content-type", "application/x-ndjson");
const PLAIN: (&str, &str) = ("content-type", "text/plain; charset=utf-8");

/// OpenAI <https://platform.openai.com/docs/api-reference/chat-streaming> and
/// <https://platform.openai.com/docs/api-reference/responses-streaming>; Anthropic
/// <https://docs.anthropic.com/en/docs/build-with-claude/streaming>; Azure
/// <https://learn.microsoft.com/azure/ai-services/openai/concepts/content-streaming>; Gemini
/// <https://ai.google.dev/api/generate-content>; Ollama
/// <https://github.com/ollama/ollama/blob/main/docs/api.md>; Groq <https://console.groq.com/docs/api-reference>;
/// DeepSeek <https://api-docs.deepseek.com>; OpenRouter <https://openrouter.ai/docs/api-reference/streaming>;
/// vLLM <https://docs.vllm.ai>; Mistral <https://docs.mistral.ai/api>; Cohere
/// <https://docs.cohere.com/docs/streaming>; MCP <https://modelcontextprotocol.io/specification>.
#[rustfmt::skip]
const SHAPES: &[Shape] = &[
    ("OpenAI chat", SSE, &[
        r#"data: {"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"role":"assistant","content":"","refusal":null},"logprobs":null,"finish_reason":null}]}"#,
    ], &[
        r#"data: {"id":"c","choices":[{"index":0,"delta":{"content":"Hé"},"finish_reason":null}]}"#,
        r#"data: {"id":"c","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#,
        "data: [DONE]",
    ]),
    ("OpenAI chat with usage", SSE, &[
        r#"data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}],"usage":null}"#,
    ], &[
        r#"data: {"choices":[{"index":0,"delta":{"content":"H"},"finish_reason":null}],"usage":null}"#,
        r#"data: {"choices":[{"index":0,"delta":{},"finish_reason":"length"}],"usage":null}"#,
        r#"data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}"#,
        "data: [DONE]",
    ]),
    ("OpenAI chat with padding", SSE, &[
        r#"data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}],"obfuscation":"x9"}"#,
    ], &[
        r#"data: {"choices":[{"index":0,"delta":{"content":"H"}}],"obfuscation":"x"}"#,
        r#"data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"obfuscation":""}"#,
        "data: [DONE]",
    ]),
    ("OpenAI chat with a tool", SSE, &[], &[
        r#"data: {"choices":[{"index":0,"delta":{"role":"assistant","content":null,"tool_calls":[{"index":0,"id":"call_1","type":"function","function":{"name":"f","arguments":""}}]},"finish_reason":null}]}"#,
        r#"data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{}"}}]}}]}"#,
        r#"data: {"choices":[{"index":0,"delta":{},"finish_reason":"tool_calls"}]}"#,
        "data: [DONE]",
    ]),
    ("OpenAI chat with two choices", SSE, &[
        r#"data: {"choices":[{"index":0,"delta":{"role":"assistant"}},{"index":1,"delta":{"role":"assistant"}}]}"#,
    ], &[
        r#"data: {"choices":[{"index":1,"delta":{"content":"b"}}]}"#,
        r#"data: {"choices":[{"index":0,"delta":{"content":"a"}}]}"#,
        r#"data: {"choices":[{"index":1,"delta":{},"finish_reason":"stop"}]}"#,
        r#"data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#,
        "data: [DONE]",
    ]),
    ("OpenAI chat with a refusal", SSE, &[], &[
        r#"data: {"choices":[{"index":0,"delta":{"role":"assistant","refusal":"No."}}]}"#,
        r#"data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#,
        "data: [DONE]",
    ]),
    ("OpenAI chat with sound", SSE, &[
        r#"data: {"choices":[{"index":0,"delta":{"role":"assistant","audio":{"id":"audio_1"}}}]}"#,
    ], &[
        r#"data: {"choices":[{"index":0,"delta":{"audio":{"data":"UklG"}}}]}"#,
        r#"data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#,
        "data: [DONE]",
    ]),
    ("older completions", SSE, &[], &[
        r#"data: {"object":"text_completion","choices":[{"text":"H","index":0,"finish_reason":null}]}"#,
        r#"data: {"object":"text_completion","choices":[{"text":"","index":0,"finish_reason":"stop"}]}"#,
        "data: [DONE]",
    ]),
    ("Responses", SSE, &[
        "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"id\":\"r\",\"object\":\"response\",\"status\":\"in_progress\",\"error\":null,\"output\":[]}}",
        "event: response.in_progress\ndata: {\"type\":\"response.in_progress\",\"response\":{\"error\":null}}",
        "event: response.output_item.added\ndata: {\"type\":\"response.output_item.added\",\"output_index\":0,\"item\":{\"id\":\"m\",\"type\":\"message\",\"status\":\"in_progress\",\"role\":\"assistant\",\"content\":[]}}",
        "event: response.content_part.added\ndata: {\"type\":\"response.content_part.added\",\"item_id\":\"m\",\"part\":{\"type\":\"output_text\",\"text\":\"\",\"annotations\":[]}}",
    ], &[
        "event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"item_id\":\"m\",\"delta\":\"Hi\"}",
        "event: response.output_text.done\ndata: {\"type\":\"response.output_text.done\",\"text\":\"Hi\"}",
        "event: response.content_part.done\ndata: {\"type\":\"response.content_part.done\",\"part\":{\"type\":\"output_text\",\"text\":\"Hi\"}}",
        "event: response.output_item.done\ndata: {\"type\":\"response.output_item.done\",\"item\":{\"type\":\"message\"}}",
        "event: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{\"status\":\"completed\",\"error\":null}}",
    ]),
    ("Responses with thoughts", SSE, &[
        r#"data: {"type":"response.created","response":{"status":"in_progress"}}"#,
        r#"data: {"type":"response.output_item.added","item":{"id":"rs","type":"reasoning","summary":[]}}"#,
        r#"data: {"type":"response.reasoning_summary_part.added","part":{"type":"summary_text","text":""}}"#,
    ], &[
        r#"data: {"type":"response.reasoning_summary_text.delta","delta":"**Think"}"#,
        r#"data: {"type":"response.output_text.delta","delta":"Hi"}"#,
        r#"data: {"type":"response.completed","response":{"status":"completed"}}"#,
    ]),
    ("Responses with a function", SSE, &[
        r#"data: {"type":"response.created","response":{}}"#,
    ], &[
        r#"data: {"type":"response.output_item.added","item":{"type":"function_call","id":"fc","call_id":"call_1","name":"f","arguments":""}}"#,
        r#"data: {"type":"response.function_call_arguments.delta","delta":"{}"}"#,
        r#"data: {"type":"response.completed","response":{"status":"completed"}}"#,
    ]),
    ("Responses with a search", SSE, &[
        r#"data: {"type":"response.created","response":{}}"#,
        r#"data: {"type":"response.output_item.added","item":{"id":"ws","type":"web_search_call","status":"in_progress"}}"#,
    ], &[
        r#"data: {"type":"response.web_search_call.searching","item_id":"ws"}"#,
        r#"data: {"type":"response.output_text.delta","delta":"Hi"}"#,
        r#"data: {"type":"response.completed","response":{"status":"completed"}}"#,
    ]),
    ("Responses, cut short by max_output_tokens", SSE, &[
        r#"data: {"type":"response.created","response":{}}"#,
    ], &[
        r#"data: {"type":"response.output_text.delta","delta":"Hi"}"#,
        r#"data: {"type":"response.incomplete","response":{"status":"incomplete","incomplete_details":{"reason":"max_output_tokens"}}}"#,
    ]),
    ("Responses, queued in the background", SSE, &[
        r#"data: {"type":"response.created","response":{"status":"queued"}}"#,
        r#"data: {"type":"response.queued","response":{"status":"queued"}}"#,
        r#"data: {"type":"keepalive","sequence_number":3}"#,
        r#"data: {"type":"response.in_progress","response":{}}"#,
    ], &[
        r#"data: {"type":"response.output_text.delta","delta":"Hi"}"#,
        r#"data: {"type":"response.completed","response":{"status":"completed"}}"#,
    ]),
    ("Anthropic", SSE, &[
        "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"m\",\"type\":\"message\",\"role\":\"assistant\",\"content\":[],\"stop_reason\":null,\"usage\":{\"input_tokens\":1}}}",
        "event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":\"text\",\"text\":\"\"}}",
        "event: ping\ndata: {\"type\": \"ping\"}",
    ], &[
        "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"Hi\"}}",
        "event: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":0}",
        "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\",\"stop_sequence\":null},\"usage\":{\"output_tokens\":1}}",
        "event: message_stop\ndata: {\"type\":\"message_stop\"}",
    ]),
    ("Anthropic with thoughts", SSE, &[
        "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"content\":[]}}",
        "event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":\"thinking\",\"thinking\":\"\",\"signature\":\"\"}}",
    ], &[
        "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"thinking_delta\",\"thinking\":\"Hm\"}}",
        "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"signature_delta\",\"signature\":\"Eq\"}}",
        "event: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":0}",
        "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":1,\"delta\":{\"type\":\"text_delta\",\"text\":\"Hi\"}}",
        "event: message_stop\ndata: {\"type\":\"message_stop\"}",
    ]),
    ("Anthropic with a tool", SSE, &[
        "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"content\":[]}}",
    ], &[
        "event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":\"tool_use\",\"id\":\"t\",\"name\":\"f\",\"input\":{}}}",
        "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"delta\":{\"type\":\"input_json_delta\",\"partial_json\":\"\"}}",
        "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"tool_use\"}}",
        "event: message_stop\ndata: {\"type\":\"message_stop\"}",
    ]),
    ("Anthropic, nothing to say", SSE, &[
        "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"content\":[]}}",
    ], &[
        "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"}}",
        "event: message_stop\ndata: {\"type\":\"message_stop\"}",
    ]),
    ("Azure with filter results", SSE, &[
        r#"data: {"choices":[],"created":0,"id":"","model":"","object":"","prompt_filter_results":[{"prompt_index":0,"content_filter_results":{"hate":{"filtered":false,"severity":"safe"}}}]}"#,
        r#"data: {"choices":[{"content_filter_results":{},"delta":{"content":"","refusal":null,"role":"assistant"},"finish_reason":null,"index":0}]}"#,
    ], &[
        r#"data: {"choices":[{"content_filter_results":{"hate":{"filtered":false,"severity":"safe"}},"delta":{"content":"Hi"},"finish_reason":null,"index":0}]}"#,
        r#"data: {"choices":[{"content_filter_results":{},"delta":{},"finish_reason":"stop","index":0}]}"#,
        "data: [DONE]",
    ]),
    ("Azure with an asynchronous filter", SSE, &[
        r#"data: {"choices":[{"delta":{"role":"assistant"},"finish_reason":null,"index":0}]}"#,
    ], &[
        r#"data: {"choices":[{"delta":{"content":"Hi"},"finish_reason":null,"index":0}]}"#,
        r#"data: {"choices":[{"content_filter_offsets":{"check_offset":2,"start_offset":2},"content_filter_results":{"error":{"code":"","message":""}},"delta":{},"finish_reason":null,"index":0}]}"#,
        r#"data: {"choices":[{"delta":{},"finish_reason":"content_filter","index":0}]}"#,
        "data: [DONE]",
    ]),
    ("Gemini by events", SSE, &[], &[
        r#"data: {"candidates":[{"content":{"parts":[{"text":"H"}],"role":"model"},"index":0}],"usageMetadata":{"promptTokenCount":1}}"#,
        r#"data: {"candidates":[{"content":{"parts":[{"text":"i"}],"role":"model"},"finishReason":"STOP"}]}"#,
    ]),
    ("Gemini in a list", JSON, &[], &[
        "[{\"candidates\": [{\"content\": {\"parts\": [{\"text\": \"H\"}]}}]}\n",
        ",\r\n{\"candidates\": [{\"finishReason\": \"STOP\"}]}\n]",
    ]),
    ("Ollama in lines", LINES, &[], &[
        "{\"model\":\"m\",\"message\":{\"role\":\"assistant\",\"content\":\"H\"},\"done\":false}\n",
        "{\"model\":\"m\",\"message\":{\"role\":\"assistant\",\"content\":\"\"},\"done_reason\":\"stop\",\"done\":true}\n",
    ]),
    ("lines that are said to be JSON", JSON, &[], &[
        "{\"model\":\"m\",\"response\":\"H\",\"done\":false}\n",
        "{\"model\":\"m\",\"response\":\"\",\"done\":true}\n",
    ]),
    ("Ollama in OpenAI's language", SSE, &[], &[
        r#"data: {"choices":[{"index":0,"delta":{"role":"assistant","content":"H"},"finish_reason":null}]}"#,
        r#"data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":"stop"}]}"#,
        "data: [DONE]",
    ]),
    ("Groq", SSE, &[
        r#"data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}],"x_groq":{"id":"req_1"}}"#,
    ], &[
        r#"data: {"choices":[{"index":0,"delta":{"content":"H"},"finish_reason":null}]}"#,
        r#"data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"x_groq":{"id":"req_1","error":null,"usage":{"total_tokens":2}}}"#,
        "data: [DONE]",
    ]),
    ("DeepSeek with comments and thoughts", SSE, &[
        ": keep-alive", ": keep-alive",
        r#"data: {"choices":[{"index":0,"delta":{"role":"assistant","content":null,"reasoning_content":""},"finish_reason":null}]}"#,
    ], &[
        r#"data: {"choices":[{"index":0,"delta":{"content":null,"reasoning_content":"Hm"},"finish_reason":null}]}"#,
        r#"data: {"choices":[{"index":0,"delta":{"content":"Hi","reasoning_content":null},"finish_reason":null}]}"#,
        r#"data: {"choices":[{"index":0,"delta":{"content":""},"finish_reason":"stop"}]}"#,
        "data: [DONE]",
    ]),
    ("OpenRouter with comments", SSE, &[
        ": OPENROUTER PROCESSING", ": OPENROUTER PROCESSING",
        r#"data: {"provider":"P","choices":[{"index":0,"delta":{"role":"assistant","content":"","reasoning":null},"finish_reason":null,"native_finish_reason":null}]}"#,
    ], &[
        r#"data: {"provider":"P","choices":[{"index":0,"delta":{"role":"assistant","content":"H"},"finish_reason":null,"native_finish_reason":null}]}"#,
        r#"data: {"provider":"P","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":"stop","native_finish_reason":"end_turn"}]}"#,
        r#"data: {"provider":"P","choices":[],"usage":{"cost":0.1}}"#,
        "data: [DONE]",
    ]),
    ("OpenRouter with thoughts", SSE, &[
        r#"data: {"choices":[{"index":0,"delta":{"role":"assistant","content":"","reasoning":"\n","reasoning_details":[{"type":"reasoning.text","text":"\n","format":"f","index":0}]}}]}"#,
    ], &[
        r#"data: {"choices":[{"index":0,"delta":{"content":"","reasoning":"Hm","reasoning_details":[{"type":"reasoning.text","text":"Hm"}]}}]}"#,
        r#"data: {"choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":"stop"}]}"#,
        "data: [DONE]",
    ]),
    ("an empty error next to an answer", SSE, &[
        r#"data: {"choices":[{"index":0,"delta":{"role":"assistant"}}],"error":{"message":"","type":"","param":"","code":null}}"#,
    ], &[
        r#"data: {"choices":[{"index":0,"delta":{"content":"H"}}],"error":{"message":"","type":"","param":"","code":null}}"#,
        r#"data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"error":null}"#,
        "data: [DONE]",
    ]),
    ("no last word", SSE, &[], &[
        r#"data: {"choices":[{"index":0,"delta":{"role":"assistant","content":"H"}}]}"#,
        r#"data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#,
    ]),
    ("usage at the end and no last word", SSE, &[], &[
        r#"data: {"choices":[{"index":0,"delta":{"role":"assistant","content":"H"}}]}"#,
        r#"data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#,
        r#"data: {"choices":[],"usage":{"total_tokens":2}}"#,
    ]),
    ("a last word and no reason", SSE, &[], &[
        r#"data: {"choices":[{"index":0,"delta":{"content":"H"}}]}"#,
        "data: [DONE]",
    ]),
    ("all in one event", SSE, &[], &[
        r#"data: {"choices":[{"index":0,"delta":{"role":"assistant","content":"Hi"},"finish_reason":"stop"}]}"#,
        "data: [DONE]",
    ]),
    ("nothing to say", SSE, &[
        r#"data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}"#,
    ], &[
        r#"data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#,
        "data: [DONE]",
    ]),
    ("vLLM with stop_reason", SSE, &[
        r#"data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}"#,
    ], &[
        r#"data: {"choices":[{"index":0,"delta":{"content":"H"},"logprobs":null,"finish_reason":null,"stop_reason":null}]}"#,
        r#"data: {"choices":[{"index":0,"delta":{"content":""},"finish_reason":"length","stop_reason":null}]}"#,
        "data: [DONE]",
    ]),
    ("Mistral", SSE, &[
        r#"data: {"id":"c","model":"m","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#,
    ], &[
        r#"data: {"id":"c","model":"m","choices":[{"index":0,"delta":{"content":"H"},"finish_reason":null}]}"#,
        r#"data: {"id":"c","model":"m","choices":[{"index":0,"delta":{"content":""},"finish_reason":"stop"}],"usage":{"total_tokens":2}}"#,
        "data: [DONE]",
    ]),
    ("Cohere", SSE, &[], &[
        "event: message-start\ndata: {\"id\":\"m\",\"type\":\"message-start\",\"delta\":{\"message\":{\"role\":\"assistant\"}}}",
        "event: content-delta\ndata: {\"type\":\"content-delta\",\"index\":0,\"delta\":{\"message\":{\"content\":{\"text\":\"H\"}}}}",
        "event: message-end\ndata: {\"type\":\"message-end\",\"delta\":{\"finish_reason\":\"COMPLETE\"}}",
    ]),
    ("MCP", SSE, &[": hi"], &[
        "event: message\ndata: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/progress\",\"params\":{}}",
        "event: message\ndata: {\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{\"isError\":false}}",
    ]),
    ("events that are said to be plain text", PLAIN, &[
        r#"data: {"choices":[{"index":0,"delta":{"role":"assistant"}}]}"#,
    ], &[
        r#"data: {"choices":[{"index":0,"delta":{"content":"H"}}]}"#,
        "data: [DONE]",
    ]),
    ("an unknown API", SSE, &[": hi", "retry: 9", "id: 4"], &[
        "event: tick\ndata: 1",
        "data: <b>",
    ]),
];

fn is_events(events: &[&str]) -> bool {
    !events[0].starts_with(['{', '['])
}

fn bytes(event: &str, ending: &str, events: bool) -> Vec<u8> {
    match events {
        true => format!("{event}\n\n").replace('\n', ending).into_bytes(),
        false => event.into(),
    }
}

fn asks_for_a_stream() -> Asked {
    let url = Url::parse("https://a.example/v1/chat/completions").unwrap();
    let mut request = Request::new(Method::POST, url);
    request.headers_mut().insert(CONTENT_TYPE, "application/json".parse().unwrap());
    *request.body_mut() = Some(r#"{"model":"m","messages":[],"stream":true}"#.into());
    Asked::of(&request)
}

/// Everything is on that might take a healthy stream for a flawed one, except `empty_answers`.
fn everything_on() -> Inspect {
    Inspect::errors_in_success()
        .json_rpc()
        .also(|_| None)
        .first_content_timeout(Duration::from_secs(5))
        .idle_timeout(Duration::from_secs(5))
}

#[tokio::test(start_paused = true)]
async fn every_healthy_stream_is_handed_on_with_its_first_content_and_ends_well() {
    assert!(SHAPES.len() >= 30, "{}", SHAPES.len());
    for (name, kind, before, after) in SHAPES {
        for (settings, ending) in [
            (Inspect::errors_in_success(), "\n"),
            (everything_on(), "\n"),
            (everything_on(), "\r\n"),
            (everything_on(), "\r"),
        ] {
            let events = is_events(after);
            let steps: Vec<_> = before
                .iter()
                .chain(*after)
                .flat_map(|event| [Step::Data(bytes(event, ending, events)), Step::Wait(1000)])
                .collect();
            let since = now();
            let response = response(200, &[*kind], steps.clone());
            let seen = look_for(response, asks_for_a_stream(), &settings).await;
            assert_eq!(flaw(&seen), None, "{name}");
            // With the first content, and not before.
            let waited = now() - since;
            assert_eq!(waited, Duration::from_secs(before.len() as u64), "{name} {ending:?}");
            let is_watched = matches!(seen, Inspected::Stream(_));
            assert_eq!(is_watched, events, "{name}");
            let (mut response, told) = into_response(seen);
            let (chunks, failed) = chunks(&mut response).await;
            let sent: Vec<_> = steps
                .into_iter()
                .filter_map(|step| match step {
                    Step::Data(data) => Some(data),
                    _ => None,
                })
                .collect();
            assert_eq!((chunks, failed), (sent, false), "{name}");
            let ends = if is_watched { &[StreamEnd::Complete][..] } else { &[] };
            assert_eq!(*told.lock().unwrap(), ends, "{name}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn every_healthy_stream_is_well_however_it_is_cut() {
    for (name, kind, before, after) in SHAPES {
        let events = is_events(after);
        let whole: Vec<u8> =
            before.iter().chain(*after).flat_map(|event| bytes(event, "\n", events)).collect();
        for size in [1, 7, 64, 4096] {
            let steps: Vec<_> = whole.chunks(size).map(|part| Step::Data(part.into())).collect();
            let response = response(200, &[*kind], steps);
            let seen = look_for(response, asks_for_a_stream(), &everything_on()).await;
            assert_eq!(flaw(&seen), None, "{name}");
            let (mut response, told) = into_response(seen);
            let (chunks, failed) = chunks(&mut response).await;
            assert!(!failed && chunks.concat() == whole, "{name}");
            drop(response);
            assert!(told.lock().unwrap().iter().all(|end| *end == StreamEnd::Complete), "{name}");
        }
    }
}
