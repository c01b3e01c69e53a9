//! What requests become, and what is refused.

use super::*;
use crate::openai::fields::Fields;
use crate::openai::responses::store::StoreLimits;

fn defaults() -> GenerationDefaults {
    GenerationDefaults {
        temperature: 0.6,
        top_p: 0.9,
        top_k: 0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        eos_token_ids: vec![1],
        vocab_size: 10,
        speculation: Default::default(),
    }
}

fn lower_into(store: &ResponseStore, request: &Value) -> Result<Lowered, ApiError> {
    let mut fields = Fields::parse(request.to_string().as_bytes())?;
    let response = ResponseFields::take(&mut fields)?;
    response.lower(fields.into_ignored()?.0, Surroundings { store, defaults: &defaults() })
}

fn lower(request: &Value) -> Result<Lowered, ApiError> {
    lower_into(&ResponseStore::new(StoreLimits::default()), request)
}

fn with(more: Value) -> Value {
    let mut request = json!({"input": "hi"});
    request.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    request
}

#[test]
fn items_become_messages() {
    let call = |id: &str, name: &str| json!({"type": "function_call", "call_id": id, "name": name, "arguments": "{\"a\": 1}", "id": "fc_1"});
    let called = |id: &str, name: &str| json!({"id": id, "type": "function", "function": {"name": name, "arguments": "{\"a\": 1}"}});
    let thought = |text: &str| json!({"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": text}]});
    let said = |text: &str| json!({"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}]});
    for (instructions, input, expected) in [
        (json!(null), json!("hi"), json!([{"role": "user", "content": "hi"}])),
        (
            json!("Be brief."),
            json!([
                {"role": "developer", "content": "In German."},
                {"role": "user", "content": [
                    {"type": "input_image", "image_url": "data:x", "detail": "auto"},
                    {"type": "input_text", "text": "What?"},
                ]},
            ]),
            json!([
                {"role": "system", "content": "Be brief.\n\nIn German."},
                {"role": "user", "content": [
                    {"type": "image_url", "image_url": {"url": "data:x"}},
                    {"type": "text", "text": "What?"},
                ]},
            ]),
        ),
        (
            json!(null),
            json!([
                {"role": "user", "content": "a"},
                thought("Hm."), said("I look."), call("t1", "now"), call("t2", "then"),
                {"type": "function_call_output", "call_id": "t1", "output": "noon"},
                {"type": "function_call_output", "call_id": "t2", "output": [{"type": "input_text", "text": "later"}]},
                thought("So."), call("t3", "now"),
                {"type": "function_call_output", "call_id": "t3", "output": ""},
                said("One."), said("Two."),
                {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
                {"role": "user", "content": "b"},
                {"role": "system", "content": "c"},
            ]),
            json!([
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "I look.", "reasoning_content": "Hm.", "tool_calls": [called("t1", "now"), called("t2", "then")]},
                {"role": "tool", "tool_call_id": "t1", "content": "noon"},
                {"role": "tool", "tool_call_id": "t2", "content": "later"},
                {"role": "assistant", "content": null, "reasoning_content": "So.", "tool_calls": [called("t3", "now")]},
                {"role": "tool", "tool_call_id": "t3", "content": ""},
                {"role": "assistant", "content": "One."},
                {"role": "assistant", "content": "Two."},
                {"role": "assistant", "content": "No."},
                {"role": "user", "content": "b"},
                {"role": "system", "content": "c"},
            ]),
        ),
        (
            json!(null),
            json!([
                {"type": "reasoning", "summary": [{"type": "summary_text", "text": "short"}]},
                {"role": "user", "content": "a"},
                call("t1", "now"), said("after"),
            ]),
            json!([
                {"role": "assistant", "content": null, "reasoning_content": "short"},
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": null, "tool_calls": [called("t1", "now")]},
                {"role": "assistant", "content": "after"},
            ]),
        ),
    ] {
        let request = json!({"instructions": instructions, "input": input});
        let lowered = lower(&request).unwrap_or_else(|error| panic!("{request}: {error}"));
        let messages = lowered.request.chat.messages.expect("messages");
        assert_eq!(Value::Array(messages), expected, "{request}");
    }
}

#[test]
fn items_are_kept_in_one_form() {
    let request = json!({"input": [
        {"role": "user", "content": "a", "id": "msg_mine"},
        {"role": "assistant", "content": "b"},
        {"type": "function_call", "call_id": "t", "name": "n", "arguments": ""},
    ]});
    let context = lower(&request).expect("valid").context;
    let items: Vec<Value> = context.iter().map(|item| item.value()).collect();
    assert_eq!(
        items[0],
        json!({"role": "user", "content": [{"type": "input_text", "text": "a"}], "type": "message", "id": "msg_mine", "status": "completed"})
    );
    assert_eq!(items[1]["content"], json!([{"type": "output_text", "text": "b"}]));
    for (item, prefix) in items[1..].iter().zip(["msg_", "fc_"]) {
        assert!(item["id"].as_str().is_some_and(|id| id.starts_with(prefix)), "{item}");
    }
}

#[test]
fn fields_become_those_of_a_chat() {
    let tool = json!({"type": "function", "name": "now", "description": "d", "parameters": {"type": "object"}, "strict": true});
    let chat_tool = json!({"type": "function", "function": {"name": "now", "description": "d", "parameters": {"type": "object"}, "strict": true}});
    let lowered =
        lower(&with(json!({"tools": [tool], "max_output_tokens": 7, "parallel_tool_calls": false})))
            .expect("valid");
    let chat = lowered.request.chat;
    assert_eq!(
        (chat.tools, chat.max_tokens, chat.parallel_tool_calls),
        (Some(vec![chat_tool]), Some(7), Some(false))
    );
    assert_eq!(lowered.echo.tools, std::slice::from_ref(&tool));
    for (choice, expected) in [
        (json!("required"), json!("required")),
        (
            json!({"type": "function", "name": "now"}),
            json!({"type": "function", "function": {"name": "now"}}),
        ),
        (
            json!({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "now"}]}),
            json!({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "now"}}]}}),
        ),
    ] {
        let lowered = lower(&with(json!({"tools": [tool], "tool_choice": choice}))).expect("valid");
        assert_eq!((lowered.request.chat.tool_choice, lowered.echo.tool_choice), (Some(expected), choice));
    }
    let schema = json!({"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": true});
    for (format, expected) in [
        (json!({"type": "text"}), None),
        (json!({"type": "json_object"}), Some(json!({"type": "json_object"}))),
        (
            schema,
            Some(
                json!({"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": true}}),
            ),
        ),
    ] {
        let lowered =
            lower(&with(json!({"text": {"format": format, "verbosity": "medium"}}))).expect("valid");
        assert_eq!(
            (lowered.request.generation.response_format, lowered.echo.text.format),
            (expected, format)
        );
    }
    let lowered =
        lower(&with(json!({"include": ["message.output_text.logprobs"], "top_logprobs": 3}))).expect("valid");
    assert_eq!((lowered.request.chat.logprobs, lowered.request.chat.top_logprobs), (Some(true), Some(3)));
    let lowered = lower(&with(json!({"reasoning": {"effort": "low"}, "temperature": 0.5}))).expect("valid");
    assert_eq!(lowered.request.chat.reasoning_effort.as_deref(), Some("low"));
    assert_eq!((lowered.echo.temperature, lowered.echo.top_p), (0.5, 0.9));
}

#[test]
fn what_has_no_effect_is_named() {
    for (more, names) in [
        (
            json!({"user": null, "metadata": {"a": "b"}, "truncation": "disabled", "text": {"format": null}}),
            vec![],
        ),
        (
            json!({"user": "u", "safety_identifier": "s", "prompt_cache_key": "k", "service_tier": "auto", "max_tool_calls": 3}),
            vec!["max_tool_calls", "prompt_cache_key", "safety_identifier", "service_tier", "user"],
        ),
        (
            json!({"prompt_cache_retention": "24h", "prompt_cache_options": {}, "access_programs": {}}),
            vec!["access_programs", "prompt_cache_options", "prompt_cache_retention"],
        ),
        (
            json!({"reasoning": {"summary": "auto", "generate_summary": "auto", "context": "all_turns", "mode": "standard"}}),
            vec!["reasoning.context", "reasoning.generate_summary", "reasoning.summary"],
        ),
        (
            json!({"text": {"verbosity": "low"}, "image": {"context_compression": "auto"}}),
            vec!["text.verbosity"],
        ),
        (json!({"stream": true, "stream_options": {"include_obfuscation": false}}), vec![]),
        (
            json!({"stream": true, "stream_options": {"include_obfuscation": true}}),
            vec!["stream_options.include_obfuscation"],
        ),
        (
            json!({"include": ["message.input_image.image_url", "reasoning.encrypted_content", "web_search_call.results"]}),
            vec!["include.reasoning.encrypted_content", "include.web_search_call.results"],
        ),
        (
            json!({"tools": [{"type": "function", "name": "a", "defer_loading": true, "async": false, "output_schema": {}}]}),
            vec!["tools.defer_loading", "tools.output_schema"],
        ),
        (
            json!({"input": [
                {"role": "user", "content": [{"type": "input_image", "image_url": "x", "detail": "high", "prompt_cache_breakpoint": {}}]},
                {"role": "user", "content": "a", "phase": "commentary", "namespace": null},
                {"type": "reasoning", "encrypted_content": "x"},
            ]}),
            vec!["input.detail", "input.encrypted_content", "input.phase", "input.prompt_cache_breakpoint"],
        ),
    ] {
        let lowered = lower(&with(more.clone())).unwrap_or_else(|error| panic!("{more}: {error}"));
        assert_eq!(lowered.request.ignored.0, names, "{more}");
    }
}

#[test]
fn refusals_name_the_field() {
    let item = |item: Value| json!({"input": [{"role": "user", "content": "a"}, item]});
    let part = |part: Value| item(json!({"role": "user", "content": [part]}));
    let output = |output: Value| {
        json!({"input": [
            {"type": "function_call", "call_id": "t", "name": "n", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "t", "output": output},
        ]})
    };
    for (more, param) in [
        (json!({"input": null}), "input"),
        (json!({"input": []}), "input"),
        (json!({"input": 1}), "input"),
        (json!({"input": [1]}), "input[0]"),
        (item(json!({})), "input[1].type"),
        (item(json!({"type": "web_search_call"})), "input[1].type"),
        (item(json!({"type": "item_reference"})), "input[1].id"),
        (item(json!({"type": "item_reference", "id": "msg_0"})), "input[1].id"),
        (item(json!({"type": "message", "content": "a"})), "input[1].role"),
        (item(json!({"role": "tool", "content": "a"})), "input[1].role"),
        (item(json!({"role": "user"})), "input[1].content"),
        (item(json!({"role": "user", "content": []})), "input[1].content"),
        (item(json!({"role": "user", "content": 1})), "input[1].content"),
        (item(json!({"role": "user", "content": "a", "id": 1})), "input[1].id"),
        (part(json!("a")), "input[1].content[0]"),
        (part(json!({"text": "a"})), "input[1].content[0].type"),
        (part(json!({"type": "input_text"})), "input[1].content[0].text"),
        (part(json!({"type": "input_file", "file_id": "f"})), "input[1].content[0].type"),
        (part(json!({"type": "input_audio"})), "input[1].content[0].type"),
        (part(json!({"type": "input_image"})), "input[1].content[0].image_url"),
        (part(json!({"type": "input_image", "file_id": "f"})), "input[1].content[0].file_id"),
        (
            item(json!({"role": "assistant", "content": [{"type": "input_image", "image_url": "x"}]})),
            "input[1].content[0].type",
        ),
        (item(json!({"type": "reasoning", "summary": "a"})), "input[1].summary"),
        (item(json!({"type": "reasoning", "content": [{"type": "text"}]})), "input[1].content[0].type"),
        (item(json!({"type": "function_call", "name": "n", "arguments": ""})), "input[1].call_id"),
        (item(json!({"type": "function_call", "call_id": "t", "arguments": ""})), "input[1].name"),
        (item(json!({"type": "function_call", "call_id": "t", "name": "n"})), "input[1].arguments"),
        (item(json!({"type": "function_call_output", "call_id": "t", "output": "a"})), "input[1].call_id"),
        (output(json!(null)), "input[1].output"),
        (output(json!([{"type": "input_file"}])), "input[1].output[0].type"),
        (json!({"instructions": 1}), "instructions"),
        (json!({"tools": [{"name": "a"}]}), "tools[0].type"),
        (json!({"tools": [{"type": "web_search"}]}), "tools[0].type"),
        (json!({"tools": [{"type": "custom", "name": "a"}]}), "tools[0].type"),
        (json!({"tools": [{"type": "mcp", "server_label": "a"}]}), "tools[0].type"),
        (json!({"tool_choice": {"type": "web_search"}}), "tool_choice.type"),
        (json!({"tool_choice": {"type": "function"}}), "tool_choice.name"),
        (json!({"tool_choice": {"type": "allowed_tools", "mode": "auto"}}), "tool_choice.tools"),
        (
            json!({"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "mcp"}]}}),
            "tool_choice.tools[0].type",
        ),
        (json!({"text": {"format": {"type": "grammar"}}}), "text.format.type"),
        (json!({"text": {"format": {}}}), "text.format.type"),
        (json!({"text": {"format": "text"}}), "text.format"),
        (json!({"text": {"verbosity": "loud"}}), "text.verbosity"),
        (json!({"text": {"stop": 1}}), "text.stop"),
        (json!({"reasoning": {"effort": 1}}), "reasoning.effort"),
        (json!({"reasoning": {"summary": "none"}}), "reasoning.summary"),
        (json!({"reasoning": {"mode": "pro"}}), "reasoning.mode"),
        (json!({"reasoning": {"budget": 1}}), "reasoning.budget"),
        (json!({"include": ["everything"]}), "include[0]"),
        (json!({"metadata": {"a": 1}}), "metadata"),
        (json!({"truncation": "some"}), "truncation"),
        (json!({"stream_options": {}}), "stream_options"),
        (json!({"conversation": "c"}), "conversation"),
        (json!({"prompt": {"id": "p"}}), "prompt"),
        (json!({"context_management": []}), "context_management"),
        (json!({"background_options": {}}), "background_options"),
        (json!({"image": {"context_compression": "enabled"}}), "image.context_compression"),
        (json!({"moderation": {}}), "moderation"),
        (json!({"background": true, "store": false}), "background"),
        (json!({"previous_response_id": "resp_0"}), "previous_response_id"),
        (json!({"response_format": {"type": "json_object"}}), "response_format"),
    ] {
        let error = lower(&with(more.clone())).err().unwrap_or_else(|| panic!("{more} is taken")).json();
        assert!(error.contains(&format!("\"param\":\"{param}\"")), "{more}: {error}");
    }
    let nothing = ResponseStore::new(StoreLimits { num_responses_max: 0, ..StoreLimits::default() });
    assert!(!lower_into(&nothing, &with(json!({}))).expect("valid").echo.store);
    for (more, param) in [(json!({"store": true}), "store"), (json!({"background": true}), "background")] {
        let error = lower_into(&nothing, &with(more)).err().expect("refused").json();
        assert!(error.contains(&format!("\"param\":\"{param}\"")), "{error}");
    }
}

#[test]
fn what_is_found_later_has_the_names_of_the_request() {
    let request = json!({"instructions": "a", "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_image", "image_url": "x"}]},
        {"type": "function_call", "call_id": "t", "name": "n", "arguments": "x"},
    ]});
    let of_items = lower(&request).expect("valid").names;
    let of_text = lower(&with(json!({}))).expect("valid").names;
    for (names, theirs, ours) in [
        (&of_items, "messages[1].content[1].image_url", "input[0].content[1].image_url"),
        (&of_items, "messages[0].content", "instructions"),
        (&of_items, "messages[2].tool_calls[0].function.arguments", "input[1]"),
        (&of_items, "messages", "input"),
        (&of_text, "messages[0].content", "input"),
        (&of_text, "max_tokens", "max_output_tokens"),
        (&of_text, "tools[2].function.name", "tools[2].name"),
        (&of_text, "tools[2].function.parameters", "tools[2].parameters"),
        (&of_text, "tool_choice.function.name", "tool_choice.name"),
        (&of_text, "tool_choice.allowed_tools.mode", "tool_choice.mode"),
        (&of_text, "tool_choice.allowed_tools.tools[1].function.name", "tool_choice.tools[1].name"),
        (&of_text, "response_format.json_schema.schema", "text.format.schema"),
        (&of_text, "reasoning_effort", "reasoning.effort"),
        (&of_text, "top_logprobs", "top_logprobs"),
        (&of_text, "stop[0]", "stop[0]"),
    ] {
        assert_eq!(names.name(ApiError::invalid(theirs, "x")), ApiError::invalid(ours, "x"), "{theirs}");
    }
    let too_long = |param: &'static str| ApiError::NeverFits { param: param.into(), message: "x".into() };
    assert_eq!(of_text.name(too_long("messages")), too_long("input"));
}
