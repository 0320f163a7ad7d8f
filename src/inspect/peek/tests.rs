use super::*;

const ROLE: &str = r#"{"object":"chat.completion.chunk","choices":[{"index":0,"delta":{"role":"assistant","content":"","refusal":null},"finish_reason":null}]}"#;
const HELLO: &str =
    r#"{"object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"Hello"}}]}"#;
const STOP: &str = r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#;
const USAGE: &str = r#"{"choices":[],"usage":{"total_tokens":9}}"#;

fn peek() -> Peek {
    Peek::new(64 * 1024, 64, ContentRules::default())
}

/// The phase after each event, in initials, and the one after the end.
fn phases(stream: &str) -> String {
    phases_under(ContentRules::default(), stream)
}

fn phases_under(rules: ContentRules, stream: &str) -> String {
    let initial = |phase: &Phase| match phase {
        Phase::Preamble => 'p',
        Phase::Refused(_) => 'R',
        Phase::Content => 'c',
        Phase::Complete => 'C',
        Phase::Broken(_) => 'B',
    };
    let mut peek = Peek::new(64 * 1024, 64, rules);
    let mut phases = String::new();
    for event in stream.split_inclusive("\n\n") {
        peek.push(event.as_bytes());
        phases.push(initial(peek.phase()));
    }
    peek.end();
    phases.push(initial(peek.phase()));
    phases
}

fn data(events: &[&str]) -> String {
    events.iter().map(|event| format!("data: {event}\n\n")).collect()
}

/// Events of an API that names its events as in their data.
fn named(kinds: &[(&str, &str)]) -> String {
    let event = |(kind, more): &(&str, &str)| {
        format!("event: {kind}\ndata: {{\"type\":\"{kind}\"{more}}}\n\n")
    };
    kinds.iter().map(event).collect()
}

#[test]
fn follows_chat_completions() {
    for (events, expected) in [
        (&[ROLE, HELLO, STOP, USAGE, "[DONE]"][..], "pcccCC"),
        (&[ROLE, HELLO, STOP], "pccC"),
        (&[ROLE, HELLO], "pcB"),
        (&[ROLE, HELLO, "[DONE]"], "pcCC"),
        (&[ROLE, ROLE, "[DONE]"], "ppRR"),
        (&[ROLE], "pR"),
        (&["[DONE]"], "RR"),
        (&[USAGE, ROLE, HELLO], "ppcB"),
        (&[ROLE, r#"{"error":{"message":"overloaded"}}"#, HELLO], "pRRR"),
        (&[ROLE, HELLO, r#"{"error":{"message":"overloaded"}}"#, "[DONE]"], "pcBBB"),
        (&[r#"{"error":"no quota"}"#], "RR"),
        (&[r#"{"error":null,"choices":[{"delta":{"content":"a"}}]}"#], "cB"),
        (&[r#"{"choices":[{"delta":{"role":"assistant","content":"a"}}]}"#], "cB"),
        (
            &[
                r#"{"choices":[{"delta":{"role":"assistant","content":null,"tool_calls":[{"index":0,"function":{"name":"f","arguments":""}}]}}]}"#,
            ],
            "cB",
        ),
        (&[r#"{"choices":[{"delta":{"reasoning_content":"hm"}}]}"#], "cB"),
        (&[r#"{"choices":[{"delta":{"role":"assistant"},"finish_reason":""}]}"#], "pR"),
        (&[r#"{"choices":[{"text":""}]}"#, r#"{"choices":[{"text":"a"}]}"#], "pcB"),
        (&[r#"{"choices":[{"delta":{}},{"delta":{"content":"b"}}]}"#], "cB"),
    ] {
        assert_eq!(phases(&data(events)), expected, "{events:?}");
    }
}

#[test]
fn follows_responses() {
    let created = ("response.created", r#","response":{"status":"in_progress","error":null}"#);
    let progress = ("response.in_progress", r#","response":{}"#);
    let delta = ("response.output_text.delta", r#","delta":"Hi""#);
    let completed = ("response.completed", r#","response":{"status":"completed"}"#);
    let failed = (
        "response.failed",
        r#","response":{"status":"failed","error":{"code":"server_error","message":"Oh."}}"#,
    );
    let error = ("error", r#","code":"server_error","message":"Oh.""#);
    for (events, expected) in [
        (&[created, progress, delta, completed][..], "ppcCC"),
        (&[created, progress, delta], "ppcB"),
        (&[created, ("response.queued", ""), progress], "pppR"),
        (&[created, failed], "pRR"),
        (&[created, error], "pRR"),
        (&[created, delta, failed], "pcBB"),
        (&[created, delta, error], "pcBB"),
        (&[created, completed], "pCC"),
        (&[created, delta, ("response.incomplete", "")], "pcCC"),
        (&[created, ("response.output_item.added", "")], "pcB"),
    ] {
        let stream = named(events);
        assert_eq!(phases(&stream), expected, "{stream}");
        let unnamed: String =
            stream.split_inclusive('\n').filter(|line| !line.starts_with("event")).collect();
        assert_eq!(phases(&unnamed), expected, "{unnamed}");
    }
}

#[test]
fn follows_anthropic_messages() {
    let start = ("message_start", r#","message":{"content":[],"stop_reason":null}"#);
    let block = ("content_block_start", r#","content_block":{"type":"text","text":""}"#);
    let delta = ("content_block_delta", r#","delta":{"type":"text_delta","text":"Hi"}"#);
    let stop = ("message_stop", "");
    let error = ("error", r#","error":{"type":"overloaded_error","message":"Overloaded"}"#);
    for (events, expected) in [
        (
            &[
                start,
                ("ping", ""),
                block,
                delta,
                ("content_block_stop", ""),
                ("message_delta", ""),
                stop,
            ][..],
            "pppcccCC",
        ),
        (&[start, ("ping", ""), block, delta], "pppcB"),
        (&[start, ("ping", ""), error], "ppRR"),
        (&[error], "RR"),
        (&[start, block, delta, error], "ppcBB"),
        (&[start, stop], "pRR"),
        (&[start, ("ping", ""), ("ping", "")], "pppR"),
    ] {
        assert_eq!(phases(&named(events)), expected, "{events:?}");
    }
}

#[test]
fn passes_an_unknown_stream_on_with_its_first_event() {
    for (stream, expected) in [
        (": hi\n\n: hi\n\ndata: 1\n\ndata: 2\n\n", "ppccC"),
        ("data: hello\n\n", "cC"),
        ("data: {\"candidates\":[]}\n\n", "cC"),
        ("data: [1]\n\n", "cC"),
        ("data: \u{fffd}\n\n", "cC"),
        ("event: tick\ndata: {}\n\n", "cC"),
        ("event: tick\n\n", "pR"),
        ("data:\n\nretry: 9\n\nevent: ping\n\nevent: heartbeat\ndata: {}\n\n", "ppppR"),
        ("event: error\n\n", "RR"),
        ("event: error\ndata: oh\n\n", "RR"),
        ("data: {\"type\":\"error\"}\n\n", "RR"),
        ("data: x\n\nevent: error\ndata: oh\n\n", "cBB"),
        ("data: x\n\ndata: [DONE]", "ccC"),
        ("", "R"),
        (": only\n\n: comments\n\n", "ppR"),
    ] {
        assert_eq!(phases(stream), expected, "{stream:?}");
    }
}

#[test]
fn an_end_without_a_blank_line_is_an_end_too() {
    let begun = data(&[ROLE, HELLO]);
    assert_eq!(phases(&format!("{begun}data: [DONE]")), "pccC");
    assert_eq!(phases(&format!("{begun}data: [DONE]\r\n")), "pccC");
    assert_eq!(phases(&format!("{begun}data: {{\"error\":1}}")), "pccB");
    assert_eq!(phases("data: {\"error\":1}"), "pR");
    // A content that was cut is none.
    assert_eq!(phases(&format!("data: {ROLE}\n\ndata: {}", &HELLO[..60])), "ppR");
    assert_eq!(phases("data: hel"), "pR");
}

#[test]
fn keeps_what_a_refusal_said() {
    for (stream, expected) in [
        ("data: {\"error\":{\"message\":\"no\"}}\n\n", "{\"error\":{\"message\":\"no\"}}"),
        ("event: error\ndata: no\n\n", "no"),
        (
            "data: {\"type\":\"response.failed\",\"response\":{\"error\": {\"message\":\"no\"}}}\n\n",
            "{\"message\":\"no\"}",
        ),
        ("data: {\"type\":\"response.failed\"}\n\n", "{\"type\":\"response.failed\"}"),
        ("data: [DONE]\n\n", ""),
    ] {
        let mut peek = peek();
        peek.push(stream.as_bytes());
        let refusal = match expected {
            "" => Refusal::Ended,
            said => Refusal::Error(said.into()),
        };
        assert_eq!(*peek.phase(), Phase::Refused(refusal), "{stream}");
    }
}

#[test]
fn commits_at_its_limits() {
    let mut peek = Peek::new(100, 64, ContentRules::default());
    peek.push(&b": keep-alive\n\n".repeat(7));
    assert_eq!(*peek.phase(), Phase::Preamble);
    peek.push(b": keep-alive\n\ndata: {\"error\":1}\n\n");
    assert_eq!(*peek.phase(), Phase::Broken(Some(b"{\"error\":1}".to_vec())));

    let mut peek = Peek::new(64 * 1024, 3, ContentRules::default());
    peek.push(b"event: ping\n\nevent: ping\n\n: comment\n\n");
    assert_eq!(*peek.phase(), Phase::Preamble);
    peek.push(b"event: ping\n\n");
    assert_eq!(*peek.phase(), Phase::Content);

    assert_eq!(*Peek::new(0, 1, ContentRules::default()).phase(), Phase::Content);
    assert_eq!(*Peek::new(1, 0, ContentRules::default()).phase(), Phase::Content);
}

#[test]
fn hears_the_last_word_of_an_event_that_is_too_long_to_keep() {
    let begun = named(&[("response.created", ""), ("response.output_text.delta", "")]);
    let text = format!(r#","response":{{"output":"{}"}}"#, "x".repeat(Peek::KEPT));
    for last in [
        named(&[("response.completed", &text)]),
        format!("data: {{\"type\":\"response.completed\"{text}}}\n\n"),
        format!("data: {{\"type\":\"response.completed\"{text}}}"),
    ] {
        assert_eq!(phases(&format!("{begun}{last}")).chars().last(), Some('C'));
    }
    let long = format!("data: {}\n\n", "é".repeat(Peek::KEPT));
    assert_eq!(phases(&format!("{begun}{long}")), "pccB");
}

/// Nothing in these has been seen by a reader yet.
#[test]
fn what_is_empty_is_preamble() {
    for events in [
        &[
            r#"{"choices":[{"delta":{"content":"","reasoning_encrypted":false,"role":"assistant"}}]}"#,
        ][..],
        &[r#"{"choices":[{"delta":{"role":"assistant","audio":{"id":null,"data":""}}}]}"#],
        &[r#"{"choices":[{"delta":{"role":"assistant","audio":{"id":"audio_1"}}}]}"#],
        &[
            r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"id":"c","type":"function","function":{"name":"","arguments":""}}]}}]}"#,
        ],
        &[
            r#"{"choices":[{"delta":{"role":"assistant","reasoning_content":"\n","content":null}}]}"#,
        ],
        &[
            r#"{"choices":[{"delta":{"reasoning":" ","reasoning_details":[{"type":"reasoning.text","text":"\n\n","format":"f","index":0}]}}]}"#,
        ],
        &[r#"{"choices":[{"delta":{"thinking_blocks":[{"type":"thinking","thinking":""}]}}]}"#],
    ] {
        let error = r#"{"error":{"message":"no"}}"#;
        let stream = data(&[events, &[error]].concat());
        assert_eq!(phases(&stream), "pRR", "{stream}");
    }
    for events in [
        &[
            ("message_start", r#","message":{"content":[],"stop_reason":null}"#),
            ("content_block_start", r#","index":0,"content_block":{"type":"text","text":""}"#),
            ("ping", ""),
        ][..],
        &[
            ("message_start", ""),
            (
                "content_block_start",
                r#","content_block":{"type":"thinking","thinking":"","signature":""}"#,
            ),
            ("content_block_delta", r#","delta":{"type":"thinking_delta","thinking":"\n"}"#),
            ("content_block_delta", r#","delta":{"type":"text_delta","text":""}"#),
            ("content_block_stop", ""),
        ],
        &[
            ("response.created", r#","response":{"status":"in_progress"}"#),
            (
                "response.output_item.added",
                r#","item":{"id":"rs_1","type":"reasoning","summary":[],"encrypted_content":null}"#,
            ),
        ],
        &[
            ("response.created", ""),
            (
                "response.output_item.added",
                r#","item":{"id":"m","type":"message","status":"in_progress","content":[],"role":"assistant"}"#,
            ),
            (
                "response.content_part.added",
                r#","part":{"type":"output_text","annotations":[],"logprobs":[],"text":""}"#,
            ),
            ("response.output_text.delta", r#","delta":"""#),
            (
                "response.reasoning_summary_part.added",
                r#","part":{"type":"summary_text","text":""}"#,
            ),
            ("response.reasoning_summary_text.delta", r#","delta":"\n\n""#),
        ],
    ] {
        for error in [
            ("error", r#","error":{"type":"overloaded_error","message":"no"}"#),
            ("response.failed", r#","response":{"error":{"message":"no"}}"#),
        ] {
            let stream = named(&[events, &[error]].concat());
            let expected = format!("{}RR", "p".repeat(events.len()));
            assert_eq!(phases(&stream), expected, "{stream}");
        }
    }
    // What looks alike and is content.
    for event in [
        r#"{"choices":[{"delta":{"content":" "}}]}"#,
        r#"{"choices":[{"delta":{"content":"\n"}}]}"#,
        r#"{"choices":[{"delta":{"refusal":"No."}}]}"#,
        r#"{"choices":[{"delta":{"reasoning":"\nHm"}}]}"#,
        r#"{"choices":[{"delta":{"tool_calls":[{"function":{"arguments":"{"}}]}}]}"#,
        r#"{"type":"content_block_start","content_block":{"type":"tool_use","id":"t","name":"f","input":{}}}"#,
        r#"{"type":"content_block_start","content_block":{"type":"redacted_thinking","data":"x"}}"#,
        r#"{"type":"response.output_item.added","item":{"type":"function_call","name":"f"}}"#,
        r#"{"type":"response.output_text.delta","delta":" "}"#,
        r#"{"type":"response.function_call_arguments.delta","delta":"{"}"#,
    ] {
        assert!(phases(&data(&[event])).starts_with('c'), "{event}");
    }
}

#[test]
fn an_event_that_is_cut_at_the_end_is_no_content() {
    let start = "event: message_start\ndata: {\"type\":\"message_start\"}\n\n";
    for cut in [
        "event: content_block_start\ndata: {\"type\":\"content_bl",
        "event: content_block_delta",
        "event: message_stop\n",
        "data: {\"choices\":[{\"delta\":{\"content\":\"H\"}}]",
    ] {
        assert_eq!(phases(&format!("{start}{cut}")), "ppR", "{cut}");
    }
    assert_eq!(phases(&format!("{start}event: error\ndata: oh")), "ppR");
    // What is whole except for the blank line counts.
    let whole = "data: {\"type\":\"content_block_delta\"}";
    assert_eq!(phases(&format!("{start}{whole}")), "ppB");
}

#[test]
fn an_error_below_the_top_is_one() {
    let failed = r#"{"choices":[{"delta":{"content":""},"finish_reason":"error","error":{"code":502,"message":"x"}}]}"#;
    for event in [
        failed,
        r#"{"choices":[{"finish_reason":"error","delta":{"content":null}}]}"#,
        r#"{"choices":[{"delta":{},"finish_reason":"insufficient_system_resource"}]}"#,
        r#"{"choices":[],"x_groq":{"id":"r","error":"over capacity"}}"#,
        r#"[{"error":{"code":429,"message":"x","status":"RESOURCE_EXHAUSTED"}}]"#,
        r#"{"object":"error","message":"x","type":"NotFoundError","code":404}"#,
        r#"{"error":{"code":null,"message":null}}"#,
        r#"{"base_resp":{"status_code":1008,"status_msg":"no"},"choices":null}"#,
    ] {
        assert_eq!(phases(&data(&[ROLE, event])), "pRR", "{event}");
        assert_eq!(phases(&data(&[HELLO, event, "[DONE]"])), "cBBB", "{event}");
    }
    // One choice of several is left.
    let one =
        r#"{"choices":[{"index":0,"delta":{"content":"a"}},{"index":1,"error":{"message":"x"}}]}"#;
    assert_eq!(phases(&data(&[one])), "cB");
    // `stop` and `length` without content are good ends.
    for end in ["stop", "length", "content_filter", "tool_calls"] {
        let end =
            format!(r#"{{"choices":[{{"delta":{{"content":null}},"finish_reason":"{end}"}}]}}"#);
        assert_eq!(phases(&data(&[ROLE, &end])), "pcC", "{end}");
    }
}

#[test]
fn an_error_that_says_nothing_next_to_an_answer_is_none() {
    let blank = r#""error":{"message":"","type":"","param":"","code":null}"#;
    let chunk = |delta: &str| format!(r#"{{"choices":[{{"delta":{delta}}}],{blank}}}"#);
    let (role, hello) = (chunk(r#"{"role":"assistant"}"#), chunk(r#"{"content":"Hi"}"#));
    let stop = format!(r#"{{"choices":[{{"delta":{{}},"finish_reason":"stop"}}],{blank}}}"#);
    assert_eq!(phases(&data(&[&role, &hello, &stop, "[DONE]"])), "pccCC");
    // Alone it is.
    assert_eq!(phases(&data(&[&format!("{{{blank}}}")])), "RR");
    assert_eq!(phases(&data(&[HELLO, &format!("{{{blank}}}")])), "cBB");
}

#[test]
fn an_answer_without_content_is_refused_where_that_is_asked_for() {
    let rules = ContentRules { empty_answers: true, ..ContentRules::default() };
    let stop = r#"{"choices":[{"delta":{},"finish_reason":"stop"}]}"#;
    let call = r#"{"choices":[{"delta":{},"finish_reason":"tool_calls"}]}"#;
    let whole = r#"{"choices":[{"delta":{"content":"Hi"},"finish_reason":"stop"}]}"#;
    for (events, expected) in [
        (&[ROLE, stop, USAGE, "[DONE]"][..], "pppRR"),
        (&[ROLE, stop], "ppR"),
        (&[ROLE, stop, HELLO, "[DONE]"], "ppcCC"),
        (&[ROLE, call, "[DONE]"], "pcCC"),
        (&[ROLE, whole], "pcC"),
        (&[ROLE, HELLO, stop], "pccC"),
    ] {
        let stream = data(events);
        assert_eq!(phases_under(rules, &stream), expected, "{stream}");
        assert!(phases(&stream).ends_with('C'), "{stream}");
    }
    let start = ("message_start", "");
    let end = ("message_delta", r#","delta":{"stop_reason":"end_turn"}"#);
    let stop = ("message_stop", "");
    assert_eq!(phases_under(rules, &named(&[start, end, stop])), "ppRR");
    assert_eq!(phases(&named(&[start, end, stop])), "pcCC");
    let completed = |output: &str| {
        let response = format!(r#","response":{{"status":"completed","output":{output}}}"#);
        let stream = named(&[("response.created", ""), ("response.completed", &response)]);
        (phases_under(rules, &stream), phases(&stream))
    };
    for (output, expected) in [
        ("[]", "pRR"),
        (r#"[{"type":"reasoning","summary":[{"text":"Hm"}]}]"#, "pRR"),
        (r#"[{"type":"message","content":[{"type":"output_text","text":""}]}]"#, "pRR"),
        (r#"[{"type":"message","content":[{"type":"output_text","text":"Hi"}]}]"#, "pCC"),
        (r#"[{"type":"function_call","name":"f","arguments":"{}"}]"#, "pCC"),
    ] {
        assert_eq!(completed(output), (expected.into(), "pCC".into()), "{output}");
    }
    let mut peek = Peek::new(64 * 1024, 64, rules);
    peek.push(data(&[ROLE, r#"{"choices":[{"delta":{},"finish_reason":"stop"}]}"#]).as_bytes());
    peek.end();
    assert_eq!(*peek.phase(), Phase::Refused(Refusal::NoContent));
}

#[test]
fn a_failed_response_is_the_right_answer_to_one_who_asks_for_its_state() {
    let rules = ContentRules { resource: true, ..ContentRules::default() };
    let failed = ("response.failed", r#","response":{"error":{"message":"no"}}"#);
    let stream = named(&[("response.created", ""), failed]);
    assert_eq!((phases_under(rules, &stream).as_str(), phases(&stream).as_str()), ("pCC", "pRR"));
    assert_eq!(phases_under(rules, &data(&[r#"{"error":{"message":"no"}}"#])), "RR");
}

#[test]
fn errors_of_json_rpc_are_told_apart() {
    let rules = ContentRules { json_rpc: true, ..ContentRules::default() };
    for (code, message, refused) in
        [(3, "execution reverted", false), (-32602, "x", false), (-32005, "x", true)]
    {
        let error = format!(
            r#"{{"jsonrpc":"2.0","id":1,"error":{{"code":{code},"message":"{message}"}}}}"#
        );
        let expected = if refused { "RR" } else { "cC" };
        assert_eq!(phases_under(rules, &data(&[&error])), expected, "{code}");
        assert_eq!(phases(&data(&[&error])), "RR", "{code}");
    }
}
