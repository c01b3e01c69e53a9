//! gpt-oss's format over HTTP: thinking, text and calls of a model that frames all that it says, streamed or not, with tools or without, free and held.

use crate::harness;

use harness::framed::{Framed, Said, ask, tools};
use harness::scripted::{Scripted, special};
use serde_json::{Value, json};

/// In the manner of gpt-oss.
const HARMONY: Scripted = Scripted {
    template: "<|start|>system<|message|>Reasoning: {{ reasoning_effort | default('medium') }}<|end|>\
{%- if tools -%}<|start|>developer<|message|>{{ tools | tojson }}<|end|>{%- endif -%}\
{%- for m in messages -%}\
{%- if m.role == 'assistant' and '<|channel|>' in m.content -%}{{ raise_exception('a channel') }}{%- endif -%}\
{%- if m.thinking -%}<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>{%- endif -%}\
{%- if m.tool_calls -%}{%- for c in m.tool_calls -%}<|start|>assistant<|channel|>commentary to=functions.{{ c.function.name }} \
<|constrain|>json<|message|>{{ c.function.arguments | tojson }}<|call|>{%- endfor -%}\
{%- elif m.role == 'assistant' -%}<|start|>assistant<|channel|>final<|message|>{{ m.content }}<|end|>\
{%- else -%}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{%- endif -%}\
{%- endfor -%}\
{%- if add_generation_prompt -%}<|start|>assistant{%- endif -%}",
    controls: &[
        special("<|start|>"),
        special("<|end|>"),
        special("<|message|>"),
        special("<|channel|>"),
        special("<|constrain|>"),
        special("<|call|>"),
    ],
};

const THOUGHT: &str = "<|channel|>analysis<|message|>Hm, 1 < 2.<|end|><|start|>assistant";
const CALL: &str =
    "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{\"city\": \"Köln\"}";

#[test]
fn messages_reach_the_client() {
    let case = Framed::new(&HARMONY);
    let answer = format!("{THOUGHT}<|channel|>final<|message|>Yes, it is.");
    let told: Said = (json!("Hm, 1 < 2."), json!("Yes, it is."), Vec::new(), json!("stop"));
    assert_eq!(case.answer(&answer, &ask(json!({}))), told);
    assert_eq!(case.answer(&answer, &ask(json!({"tools": tools()}))), told);
    assert_eq!(case.answer(&answer, &ask(json!({"tools": tools(), "tool_choice": "none"}))), told);
    let weather = vec![("get_weather".to_owned(), "{\"city\": \"Köln\"}".to_owned())];
    let with_tools = ask(json!({"tools": tools()}));
    for end in ["", "<|call|>"] {
        let called: Said = (json!("Hm, 1 < 2."), Value::Null, weather.clone(), json!("tool_calls"));
        assert_eq!(case.answer(&format!("{THOUGHT}{CALL}{end}"), &with_tools), called);
    }
    let preamble =
        format!("{THOUGHT}<|channel|>commentary<|message|>I look.<|end|><|start|>assistant{CALL}<|call|>");
    let called: Said = (json!("Hm, 1 < 2."), json!("I look."), weather, json!("tool_calls"));
    assert_eq!(case.answer(&preamble, &with_tools), called);
    // Cut in the thinking, and in a header.
    let (thought, content, calls, finish) = case.answer(&answer, &ask(json!({"max_tokens": 14})));
    assert_eq!((thought, content, calls.len(), finish), (json!("Hm, "), Value::Null, 0, json!("length")));
    let header = HARMONY.encode(THOUGHT).len() + 3;
    let (_, content, calls, finish) = case.answer(&answer, &ask(json!({"max_tokens": header})));
    assert_eq!((content, calls.len(), finish), (Value::Null, 0, json!("length")));
}

#[test]
fn what_the_model_is_shown() {
    let case = Framed::new(&HARMONY);
    for (effort, word) in [("low", "low"), ("none", "low"), ("max", "high"), ("medium", "medium")] {
        let prompt = case.prompt(&ask(json!({"reasoning_effort": effort})));
        assert!(
            prompt.contains(&format!("Reasoning: {word}<")) || prompt.contains(&format!("Reasoning: {word}"))
        );
    }
    let call = json!({"id": "a", "type": "function", "function": {"name": "get_weather", "arguments": "{\"city\": \"Rome\"}"}});
    let messages = json!([
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": null, "reasoning_content": "I look it up.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "a", "content": "sunny"},
    ]);
    let prompt = case.prompt(&ask(json!({"messages": messages, "tools": tools()})));
    for part in ["I look it up.", "to=functions.get_weather", "{\"city\": \"Rome\"}", "sunny"] {
        assert!(prompt.contains(part), "{part}: {prompt}");
    }
    // Its template takes thinking or text beside a call, not both.
    let said = |content: Value| {
        let messages = json!([
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": content, "reasoning_content": "I look it up.", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "a", "content": "sunny"},
        ]);
        case.prompt(&ask(json!({"messages": messages, "tools": tools()})))
    };
    for (content, shows) in
        [(json!(""), true), (json!("Wait."), false), (json!([{"type": "text", "text": "Wait."}]), false)]
    {
        assert_eq!(said(content.clone()).contains("I look it up."), shows, "{content}");
    }
    let parts = json!([{"type": "thinking", "thinking": "I look it up."}]);
    let messages = json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": parts, "tool_calls": [call]},
                          {"role": "tool", "tool_call_id": "a", "content": "sunny"}]);
    let prompt = case.prompt(&ask(json!({"messages": messages, "tools": tools()})));
    assert!(prompt.contains("analysis<|message|>I look it up.<|end|>"), "{prompt}");
}

#[test]
fn answers_that_are_held() {
    let case = Framed::new(&HARMONY);
    let schema = json!({"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"], "additionalProperties": false});
    let format = json!({"type": "json_schema", "json_schema": {"name": "a", "schema": schema}});
    for tools in [Value::Null, tools()] {
        let request = ask(json!({"response_format": format, "tools": tools, "max_tokens": 200}));
        for thought in ["", THOUGHT] {
            let (_, content, calls, finish) =
                case.answer(&format!("{thought}<|channel|>final<|message|>{{\"x\": 1}}"), &request);
            assert_eq!((content, calls.len(), finish), (json!("{\"x\": 1}"), 0, json!("stop")));
        }
    }
    let request = ask(json!({"tools": tools(), "tool_choice": "required", "max_tokens": 600}));
    case.check_forced_calls(&request, 1);
    case.check_frames_of_held_answers();
}
