//! What requests in this dialect become.

use super::*;
use crate::openai::chat::compose;

fn lower(request: Value, purpose: Purpose) -> Result<Lowered, ApiError> {
    let mut fields = crate::openai::fields::Fields::parse(request.to_string().as_bytes())?;
    let message = MessageFields::take(&mut fields)?;
    message.lower(purpose, fields.into_ignored()?.0)
}

fn user(content: Value) -> Value {
    json!({ "role": "user", "content": content })
}

#[test]
fn messages_become_those_of_a_chat() {
    let image =
        json!({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}});
    for (system, messages, expected, continues) in [
        (json!(null), json!([user(json!("hi"))]), json!([{"role": "user", "content": "hi"}]), false),
        (
            json!([{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]),
            json!([user(json!([image, {"type": "text", "text": "What?"}]))]),
            json!([
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": [
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
                    {"type": "text", "text": "What?"},
                ]},
            ]),
            false,
        ),
        (
            json!(null),
            json!([
                user(json!("hi")),
                {"role": "assistant", "content": [
                    {"type": "thinking", "thinking": "Hm.", "signature": "x"},
                    {"type": "redacted_thinking", "data": "x"},
                    {"type": "text", "text": "I look."},
                    {"type": "tool_use", "id": "t1", "name": "now", "input": {}},
                    {"type": "tool_use", "id": "t2", "name": "now", "input": {"a": 1}},
                ]},
                user(json!([
                    {"type": "tool_result", "tool_use_id": "t1", "content": "noon"},
                    {"type": "tool_result", "tool_use_id": "t2", "is_error": true, "content": [{"type": "text", "text": "no"}]},
                    {"type": "tool_result", "tool_use_id": "t3"},
                    {"type": "text", "text": "And?"},
                ])),
                {"role": "assistant", "content": "It"},
            ]),
            json!([
                {"role": "user", "content": "hi"},
                {"role": "assistant", "content": "I look.", "reasoning_content": "Hm.", "tool_calls": [
                    {"id": "t1", "type": "function", "function": {"name": "now", "arguments": {}}},
                    {"id": "t2", "type": "function", "function": {"name": "now", "arguments": {"a": 1}}},
                ]},
                {"role": "tool", "tool_call_id": "t1", "content": "noon"},
                {"role": "tool", "tool_call_id": "t2", "content": "Error: no"},
                {"role": "tool", "tool_call_id": "t3", "content": ""},
                {"role": "user", "content": "And?"},
                {"role": "assistant", "content": "It"},
            ]),
            true,
        ),
    ] {
        let request = json!({"max_tokens": 1, "system": system, "messages": messages});
        let Lowered { request, .. } = lower(request, Purpose::Answer).expect("valid");
        assert_eq!(Value::Array(request.chat.messages.expect("messages")), expected);
        assert_eq!(request.chat.continue_final_message, continues.then_some(true), "{messages}");
        let has_cache_control = system.is_array();
        assert_eq!(request.ignored.0.contains(&"cache_control".to_owned()), has_cache_control);
    }
}

#[test]
fn fields_become_those_of_a_chat() {
    let lower = |more: Value| {
        let mut request = json!({"max_tokens": 7, "messages": [user(json!("hi"))]});
        request.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        lower(request, Purpose::Answer).expect("valid").request
    };
    let tool =
        json!({"name": "now", "description": "d", "input_schema": {"type": "object"}, "cache_control": {}});
    let request =
        lower(json!({"tools": [tool], "metadata": {"user_id": "u"}, "tool_choice": {"type": "any"}}));
    let shown = json!({"type": "function", "function": {"name": "now", "description": "d", "parameters": {"type": "object"}}});
    assert_eq!((request.chat.tools, request.chat.max_tokens), (Some(vec![shown]), Some(7)));
    assert_eq!(request.ignored.0, ["metadata", "cache_control"]);
    for (choice, expected, parallel) in [
        (json!({"type": "auto"}), json!("auto"), None),
        (json!({"type": "any", "disable_parallel_tool_use": true}), json!("required"), Some(false)),
        (json!({"type": "none"}), json!("none"), None),
        (
            json!({"type": "tool", "name": "now"}),
            json!({"type": "function", "function": {"name": "now"}}),
            None,
        ),
    ] {
        let request = lower(json!({"tools": [tool], "tool_choice": choice}));
        assert_eq!((request.chat.tool_choice, request.chat.parallel_tool_calls), (Some(expected), parallel));
    }
    let thinks = lower(json!({"thinking": {"type": "enabled", "budget_tokens": 9}}));
    assert_eq!(thinks.generation.thinking_token_budget, Some(9));
    let silent = lower(json!({"thinking": {"type": "disabled"}, "output_config": {"effort": "high"}}));
    assert_eq!(silent.chat.reasoning_effort.as_deref(), Some("none"));
    let schema = json!({"type": "object"});
    let held = lower(json!({"output_config": {"format": {"type": "json_schema", "schema": schema}}}));
    assert_eq!(held.generation.response_format.expect("a format")["json_schema"]["schema"], schema);
}

#[test]
fn refusals_name_the_field() {
    let hi = json!([user(json!("hi"))]);
    for (request, param) in [
        (json!({"messages": hi}), "max_tokens"),
        (json!({"max_tokens": 1}), "messages"),
        (json!({"max_tokens": 1, "messages": []}), "messages"),
        (json!({"max_tokens": 1, "messages": [1]}), "messages[0]"),
        (json!({"max_tokens": 1, "messages": [{"role": "user"}]}), "messages[0].content"),
        (json!({"max_tokens": 1, "messages": [{"role": "system", "content": "x"}]}), "messages[0].role"),
        (json!({"max_tokens": 1, "messages": [user(json!([{"text": "x"}]))]}), "messages[0].content[0].type"),
        (
            json!({"max_tokens": 1, "messages": [user(json!([{"type": "document"}]))]}),
            "messages[0].content[0].type",
        ),
        (
            json!({"max_tokens": 1, "messages": [user(json!([{"type": "image", "source": {"type": "file"}}]))]}),
            "messages[0].content[0].source.type",
        ),
        (
            json!({"max_tokens": 1, "messages": [user(json!([{"type": "tool_result"}]))]}),
            "messages[0].content[0].tool_use_id",
        ),
        (json!({"max_tokens": 1, "messages": hi, "system": [{"type": "image"}]}), "system[0].type"),
        (
            json!({"max_tokens": 1, "messages": hi, "tools": [{"type": "web_search_20250305"}]}),
            "tools[0].type",
        ),
        (json!({"max_tokens": 1, "messages": hi, "tools": [{"name": "a"}]}), "tools[0].input_schema"),
        (json!({"max_tokens": 1, "messages": hi, "tool_choice": {"type": "some"}}), "tool_choice.type"),
        (json!({"max_tokens": 1, "messages": hi, "tool_choice": {"type": "tool"}}), "tool_choice.name"),
        (json!({"max_tokens": 1, "messages": hi, "thinking": {"type": "enabled"}}), "thinking.budget_tokens"),
        (json!({"max_tokens": 1, "messages": hi, "thinking": {}}), "thinking.type"),
        (json!({"max_tokens": 1, "messages": hi, "output_config": {"x": 1}}), "output_config.x"),
        (json!({"max_tokens": 1, "messages": hi, "output_format": {}}), "output_format"),
    ] {
        let error = lower(request.clone(), Purpose::Answer).expect_err("refused").json();
        assert!(error.contains(&format!("\"param\":\"{param}\"")), "{request}: {error}");
    }
    assert!(lower(json!({"messages": hi}), Purpose::Count).is_ok());
}

#[test]
fn what_is_found_later_has_the_names_of_the_request() {
    let places = Places(compose::Places(vec![
        vec!["system".into()],
        vec!["messages[0].content[0]".into(), "messages[0].content[1]".into()],
    ]));
    for (theirs, ours) in [
        ("messages[1].content[1].image_url", "messages[0].content[1].source"),
        ("messages[9].content[1].image_url", "messages[9].content[1].image_url"),
        ("messages", "messages"),
        ("tools[2].function.name", "tools[2].name"),
        ("tools[2].function.parameters", "tools[2].input_schema"),
        ("tools", "tools"),
        ("stop[1]", "stop_sequences[1]"),
        ("stop_token_ids", "stop_token_ids"),
        ("tool_choice.function.name", "tool_choice.name"),
        ("thinking_token_budget", "thinking.budget_tokens"),
        ("response_format.json_schema.schema", "output_config.format.schema"),
        ("max_tokens", "max_tokens"),
    ] {
        assert_eq!(places.name(ApiError::invalid(theirs, "x")), ApiError::invalid(ours, "x"));
    }
}
