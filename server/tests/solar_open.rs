//! Solar Open's format over HTTP: thinking, text and calls of a model that frames all that it says, streamed or not, with tools or without, free
//! and held, and what its template is given of a conversation.

use crate::harness;

use harness::framed::{CHAT, Framed, Said, ask, tools};
use harness::scripted::{Scripted, special};
use serde_json::{Value, json};

/// In the manner of Solar Open: it reads thinking as `reasoning` only, and joins strings.
const SOLAR: Scripted = Scripted {
    template: "{%- set reasoning_effort = reasoning_effort if reasoning_effort is defined else 'high' -%}\
{%- if tools -%}<|begin|>system<|content|>{{ tools | tojson }}<|end|>{%- endif -%}\
{%- for m in messages -%}\
{%- if m.role == 'tool' -%}<|begin|>tool<|tool_response|>{{ m.tool_call_id + '=' + m.content }}<|end|>\
{%- elif m.role == 'assistant' -%}\
{%- if m.reasoning -%}{{ '<|begin|>assistant<|think|>' + m.reasoning + '<|end|>' }}{%- endif -%}\
{%- if m.tool_calls -%}<|begin|>assistant<|tool_calls|>{%- for c in m.tool_calls -%}\
{{ '<|tool_call:begin|>' + c.id + '<|tool_call:name|>' + c.function.name + '<|tool_call:args|>' }}\
{%- if c.function.arguments is mapping -%}{{ c.function.arguments | tojson }}{%- endif -%}<|tool_call:end|>{%- endfor -%}<|calls|>\
{%- else -%}{{ '<|begin|>assistant<|content|>' + m.content + '<|end|>' }}{%- endif -%}\
{%- else -%}{{ '<|begin|>' + m.role + '<|content|>' + m.content + '<|end|>' }}{%- endif -%}\
{%- endfor -%}\
{%- if add_generation_prompt -%}\
{%- if reasoning_effort in ['low', 'minimal'] -%}<|begin|>assistant<|think|><|end|>{%- endif -%}<|begin|>assistant\
{%- endif -%}",
    controls: &[
        special("<|begin|>"),
        special("<|think|>"),
        special("<|content|>"),
        special("<|tool_calls|>"),
        special("<|tool_call:begin|>"),
        special("<|tool_call:name|>"),
        special("<|tool_call:args|>"),
        special("<|tool_call:end|>"),
        special("<|calls|>"),
        special("<|end|>"),
        special("<|flush|>"),
        special("<|tool_response|>"),
    ],
};

const THOUGHT: &str = "<|think|>Hm, 1 < 2.<|end|><|begin|>assistant";
const CALL: &str = "<|tool_call:begin|>a1b2c3d4e5<|tool_call:name|>get_weather<|tool_call:args|>{\"city\": \"Köln\"}<|tool_call:end|>";
const SECOND: &str = "<|tool_call:begin|>f6g7h8i9j0<|tool_call:name|>get_weather<|tool_call:args|>{\"city\": \"Rom\"}<|tool_call:end|>";

fn weather(cities: &[&str]) -> Vec<(String, String)> {
    cities.iter().map(|city| ("get_weather".to_owned(), format!("{{\"city\": \"{city}\"}}"))).collect()
}

#[test]
fn messages_reach_the_client() {
    let case = Framed::new(&SOLAR);
    let thought = || json!("Hm, 1 < 2.");
    // What ends the turn may be the token that ends generation, which is not seen, or not.
    for end in ["", "<|flush|>", "<|end|>", "<|end|><|begin|>assistant"] {
        let answer = format!("{THOUGHT}<|content|>Yes, it is.{end}");
        let told: Said = (thought(), json!("Yes, it is."), Vec::new(), json!("stop"));
        assert_eq!(case.answer(&answer, &ask(json!({}))), told);
        assert_eq!(case.answer(&answer, &ask(json!({"tools": tools()}))), told);
        assert_eq!(case.answer(&answer, &ask(json!({"tools": tools(), "tool_choice": "none"}))), told);
    }
    let with_tools = ask(json!({"tools": tools()}));
    for end in ["", "<|calls|>"] {
        let calls = format!("{THOUGHT}<|tool_calls|>{CALL}{SECOND}{end}");
        let called: Said = (thought(), Value::Null, weather(&["Köln", "Rom"]), json!("tool_calls"));
        assert_eq!(case.answer(&calls, &with_tools), called);
    }
    let preamble =
        format!("{THOUGHT}<|content|>Let me look.<|end|><|begin|>assistant<|tool_calls|>{CALL}<|calls|>");
    let called: Said = (thought(), json!("Let me look."), weather(&["Köln"]), json!("tool_calls"));
    assert_eq!(case.answer(&preamble, &with_tools), called);
    let one = ask(json!({"tools": tools(), "parallel_tool_calls": false}));
    let called: Said = (thought(), Value::Null, weather(&["Köln"]), json!("tool_calls"));
    assert_eq!(case.answer(&format!("{THOUGHT}<|tool_calls|>{CALL}{SECOND}"), &one), called);
    // A prompt that leaves no thinking.
    let at_once = ask(json!({"reasoning_effort": "low"}));
    let told: Said = (Value::Null, json!("Yes."), Vec::new(), json!("stop"));
    assert_eq!(case.answer("<|content|>Yes.", &at_once), told);
}

#[test]
fn answers_that_are_cut() {
    let case = Framed::new(&SOLAR);
    let with_tools = ask(json!({"tools": tools()}));
    let calls = format!("{THOUGHT}<|tool_calls|>{CALL}<|calls|>");
    let cut = |after: &str| {
        let tokens = SOLAR.encode(&calls[..calls.find(after).expect("is in it") + after.len()]).len();
        let mut request = with_tools.clone();
        request["max_tokens"] = tokens.into();
        case.answer(&calls, &request)
    };
    let length = || json!("length");
    assert_eq!(cut("Hm, "), (json!("Hm, "), Value::Null, Vec::new(), length()));
    for after in ["<|end|>", "<|begin|>assist", "assistant", "<|tool_calls|>", "a1b2c", "get_weather"] {
        assert_eq!(cut(after), (json!("Hm, 1 < 2."), Value::Null, Vec::new(), length()), "{after}");
    }
    let begun = vec![("get_weather".to_owned(), "{\"city".to_owned())];
    assert_eq!(cut("{\"city"), (json!("Hm, 1 < 2."), Value::Null, begun, length()));
}

#[test]
fn ids_are_the_models() {
    let case = Framed::new(&SOLAR);
    case.script.set(SOLAR.encode(&format!("{THOUGHT}<|tool_calls|>{CALL}{SECOND}")));
    let answer = case.server.ask(CHAT, &ask(json!({"tools": tools()})));
    let calls = &answer["choices"][0]["message"]["tool_calls"];
    assert_eq!((&calls[0]["id"], &calls[1]["id"]), (&json!("a1b2c3d4e5"), &json!("f6g7h8i9j0")));
    assert_eq!(answer["usage"]["completion_tokens_details"]["reasoning_tokens"], "Hm, 1 < 2.".len());
}

#[test]
fn efforts_turn_thinking_on_and_off() {
    let case = Framed::new(&SOLAR);
    let silent = "<|begin|>assistant<|think|><|end|><|begin|>assistant";
    for (more, thinks) in [
        (json!({}), true),
        (json!({"reasoning_effort": "none"}), false),
        (json!({"reasoning_effort": "minimal"}), false),
        (json!({"reasoning_effort": "low"}), false),
        (json!({"reasoning_effort": "medium"}), true),
        (json!({"reasoning_effort": "high"}), true),
        (json!({"reasoning_effort": "max"}), true),
        (json!({"chat_template_kwargs": {"reasoning_effort": "minimal"}}), false),
        (json!({"reasoning_effort": "none", "chat_template_kwargs": {"reasoning_effort": "high"}}), true),
    ] {
        let prompt = case.prompt(&ask(more.clone()));
        assert!(prompt.ends_with("<|begin|>assistant"), "{more}: {prompt}");
        assert_eq!(!prompt.ends_with(silent), thinks, "{more}: {prompt}");
    }
}

#[test]
fn what_the_model_is_shown() {
    let case = Framed::new(&SOLAR);
    let call = json!({"id": "a1b2c3d4e5", "type": "function", "function": {"name": "get_weather", "arguments": "{\"city\": \"Rome\"}"}});
    let shown = |assistant: Value| {
        let mut messages =
            vec![json!({"role": "user", "content": "hello"}), json!({"role": "assistant"}), Value::Null];
        messages[1]
            .as_object_mut()
            .expect("an object")
            .extend(assistant.as_object().cloned().expect("an object"));
        messages[2] = match assistant["tool_calls"].is_array() {
            true => {
                json!({"role": "tool", "tool_call_id": "a1b2c3d4e5", "content": [{"type": "text", "text": "sunny"}]})
            }
            false => json!({"role": "user", "content": "and?"}),
        };
        case.prompt(&ask(json!({"messages": messages, "tools": tools()})))
    };
    let called = "<|begin|>assistant<|tool_calls|><|tool_call:begin|>a1b2c3d4e5<|tool_call:name|>get_weather<|tool_call:args|>{\"city\": \"Rome\"}\
                  <|tool_call:end|><|calls|><|begin|>tool<|tool_response|>a1b2c3d4e5=sunny<|end|><|begin|>assistant";
    let thought = "<|begin|>assistant<|think|>I look it up.<|end|>";
    // Under any name, with content or without; its template takes calls or text.
    for assistant in [
        json!({"content": null, "reasoning": "I look it up."}),
        json!({"content": null, "reasoning_content": "I look it up."}),
        json!({"reasoning_content": "I look it up."}),
        json!({"content": "Wait.", "reasoning_content": "I look it up."}),
        json!({"content": [{"type": "thinking", "thinking": "I look it up."}]}),
    ] {
        let mut with_calls = assistant.clone();
        with_calls["tool_calls"] = json!([call]);
        let prompt = shown(with_calls);
        assert!(prompt.ends_with(&format!("{thought}{called}")), "{assistant}: {prompt}");
    }
    for (assistant, text) in [
        (json!({"content": null}), ""),
        (json!({}), ""),
        (json!({"content": null, "tool_calls": null}), ""),
        (json!({"content": ""}), ""),
        (json!({"content": [{"type": "text", "text": "Yes."}]}), "Yes."),
    ] {
        let prompt = shown(assistant.clone());
        let said = format!("<|begin|>assistant<|content|>{text}<|end|><|begin|>user<|content|>and?<|end|>");
        assert!(prompt.contains(&said), "{assistant}: {prompt}");
    }
}

#[test]
fn answers_that_are_held() {
    let case = Framed::new(&SOLAR);
    let schema = json!({"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"], "additionalProperties": false});
    let format = json!({"type": "json_schema", "json_schema": {"name": "a", "schema": schema}});
    for tools in [Value::Null, tools()] {
        let request = ask(json!({"response_format": format, "tools": tools, "max_tokens": 200}));
        for begin in ["", "<|begin|>assistant", THOUGHT] {
            let (_, content, calls, finish) =
                case.answer(&format!("{begin}<|content|>{{\"x\": 1}}"), &request);
            assert_eq!((content, calls.len(), finish), (json!("{\"x\": 1}"), 0, json!("stop")));
        }
    }
    // It may call instead of answering.
    let either = ask(json!({"response_format": format, "tools": tools(), "max_tokens": 200}));
    let (_, content, calls, _) = case.answer(&format!("{THOUGHT}<|tool_calls|>{CALL}"), &either);
    assert_eq!((content, calls), (Value::Null, weather(&["Köln"])));
    let named = json!({"type": "function", "function": {"name": "get_weather"}});
    for choice in [json!("required"), named] {
        let request = ask(json!({"tools": tools(), "tool_choice": choice, "max_tokens": 600}));
        for begin in ["", "<|begin|>assistant", THOUGHT] {
            let (_, content, calls, finish) =
                case.answer(&format!("{begin}<|tool_calls|>{CALL}{SECOND}"), &request);
            assert_eq!(
                (content, calls, finish),
                (Value::Null, weather(&["Köln", "Rom"]), json!("tool_calls"))
            );
        }
        case.check_forced_calls(&request, usize::MAX);
    }
    case.check_frames_of_held_answers();
}
