//! Tools and thinking over HTTP: what a model writes reaches the client as calls, thinking and text, streamed or not, and what a
//! client sends reaches the model.

use crate::harness;

use harness::scripted::{KIMI, Script, Scripted, kimi_call, plain, special};
use harness::{Setup, TestServer};
use perilune::chat::parse::{Choice, Parsers, ReasoningFormat, ToolFormat};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";

/// In Qwen's manner; its tags are tokens that are not special.
const QWEN: Scripted = Scripted {
    template: "{%- if tools -%}<tools>{%- for t in tools -%}{{ t | tojson }}{%- endfor -%}</tools> <tool_call></tool_call>{%- endif -%}\
{%- for m in messages -%}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{%- endfor -%}\
{%- if add_generation_prompt -%}<|im_start|>assistant\n{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{%- endif -%}",
    controls: &[
        special("<|im_start|>"),
        plain("<think>"),
        plain("</think>"),
        plain("<tool_call>"),
        plain("</tool_call>"),
    ],
};

/// Shows no tools.
const PLAIN: Scripted = Scripted {
    template: "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
    controls: &[],
};

struct Case {
    server: TestServer,
    script: Script,
    model: &'static Scripted,
}

fn case(model: &'static Scripted) -> Case {
    with(model, Parsers::default())
}

fn with(model: &'static Scripted, parsers: Parsers) -> Case {
    let (server, script) = TestServer::scripted(model, harness_options(parsers));
    Case { server, script, model }
}

fn harness_options(parsers: Parsers) -> perilune::serve::ServeOptions {
    perilune::serve::ServeOptions { parsers, ..Setup::default().options }
}

fn weather() -> Value {
    json!({"type": "function", "function": {"name": "get_weather", "description": "The weather", "parameters": {
        "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": false,
    }}})
}

fn now() -> Value {
    json!({"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}, "additionalProperties": false}}})
}

fn ask(more: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "hello"}], "tools": [weather(), now()]});
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    body
}

/// A message put together from a stream, as clients do it, with the rules of the stream checked on the way.
fn joined(events: &[Value]) -> (Value, Value) {
    let mut message = json!({"role": null, "content": null});
    let mut finish = Value::Null;
    for event in events {
        let Some(choice) = event["choices"].get(0) else { continue };
        assert_eq!(finish, Value::Null, "nothing comes after the finish reason");
        finish = choice["finish_reason"].clone();
        let delta = choice["delta"].as_object().expect("a delta");
        assert_eq!(
            delta.contains_key("role"),
            message["role"].is_null(),
            "the role comes first, once: {delta:?}"
        );
        assert!(!delta.is_empty() || !finish.is_null(), "an empty delta");
        for (key, value) in delta {
            match (key.as_str(), value) {
                (_, Value::Null) => {}
                ("role", role) => message["role"] = role.clone(),
                ("content" | "reasoning" | "reasoning_content", Value::String(text)) => {
                    assert!(!text.is_empty() || !finish.is_null());
                    message[key] = format!("{}{text}", message[key].as_str().unwrap_or("")).into();
                }
                ("tool_calls", Value::Array(calls)) => {
                    calls.iter().for_each(|call| add_call(&mut message, call))
                }
                ("function_call", call) => {
                    if call.get("name").is_some() {
                        assert_eq!(call["arguments"], "");
                        message["function_call"] = call.clone();
                    } else {
                        extend(&mut message["function_call"]["arguments"], &call["arguments"]);
                    }
                }
                other => panic!("unexpected {other:?}"),
            }
        }
    }
    (message, finish)
}

fn add_call(message: &mut Value, call: &Value) {
    if message.get("tool_calls").is_none() {
        message["tool_calls"] = json!([]);
    }
    let calls = message["tool_calls"].as_array_mut().expect("a list");
    let index = call["index"].as_u64().expect("an index") as usize;
    if call.get("id").is_some() {
        assert_eq!(
            (index, &call["type"], &call["function"]["arguments"]),
            (calls.len(), &json!("function"), &json!(""))
        );
        let mut call = call.clone();
        call.as_object_mut().expect("an object").remove("index");
        calls.push(call);
    } else {
        assert_eq!(index + 1, calls.len(), "one call after the other");
        assert_eq!(call["function"].as_object().expect("a function").len(), 1, "arguments and nothing else");
        extend(&mut calls[index]["function"]["arguments"], &call["function"]["arguments"]);
    }
}

fn extend(text: &mut Value, more: &Value) {
    let more = more.as_str().expect("a string");
    assert!(!more.is_empty());
    *text = format!("{}{more}", text.as_str().expect("a string")).into();
}

impl Case {
    /// The answer when the model says this, which must be the same streamed; ids that are made anew are left out.
    fn answer(&self, said: &str, request: &Value) -> Value {
        self.script.set(self.model.encode(said));
        let whole = self.server.ask(CHAT, request);
        let (mut message, finish) = joined(&self.server.stream(CHAT, request));
        let mut choice = whole["choices"][0].clone();
        assert_eq!(choice["finish_reason"], finish, "{said}");
        for message in [&mut message, &mut choice["message"]] {
            for call in message["tool_calls"].as_array_mut().into_iter().flatten() {
                if call["id"].as_str().is_some_and(|id| id.starts_with("call_")) {
                    call["id"] = "call_".into();
                }
            }
            message.as_object_mut().expect("an object").remove("refusal");
            if message["tool_calls"].is_null() {
                message.as_object_mut().expect("an object").remove("tool_calls");
            }
        }
        assert_eq!(choice["message"], message, "{said}");
        choice["usage"] = whole["usage"].clone();
        choice
    }

    fn prompt(&self, request: &Value) -> String {
        self.server.chat_prompt(request)
    }

    fn refused(&self, request: &Value, param: &str) -> String {
        let response = self.server.post(CHAT, request);
        assert_eq!(
            (response.status, &response.json()["error"]["param"]),
            (400, &json!(param)),
            "{}",
            response.text()
        );
        response.json()["error"]["message"].as_str().expect("a message").to_owned()
    }
}

fn kimi_calls(calls: &[(&str, &str)]) -> String {
    let calls: String = calls.iter().map(|(id, arguments)| kimi_call(id, arguments)).collect();
    format!("<|tool_calls_section_begin|>{calls}<|tool_calls_section_end|>")
}

#[test]
fn calls_reach_the_client() {
    let case = case(&KIMI);
    let two = kimi_calls(&[("functions.get_weather:0", "{\"city\": \"Köln\"}"), ("functions.now:1", "{}")]);
    let choice = case.answer(&two, &ask(json!({})));
    let call = |id: &str, name: &str, arguments: &str| json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}});
    let both = [
        call("functions.get_weather:0", "get_weather", "{\"city\": \"Köln\"}"),
        call("functions.now:1", "now", "{}"),
    ];
    assert_eq!(choice["finish_reason"], "tool_calls");
    assert_eq!(choice["message"], json!({"role": "assistant", "content": null, "tool_calls": both}));
    let choice = case.answer(&format!("I look.{two}"), &ask(json!({"tool_choice": "auto"})));
    assert_eq!(choice["message"]["content"], "I look.");
    assert_eq!(choice["message"]["tool_calls"], json!(both));
    // The answer ends with its first call; nothing is dropped afterwards.
    let choice = case.answer(&two, &ask(json!({"parallel_tool_calls": false})));
    assert_eq!(
        (&choice["finish_reason"], &choice["message"]["tool_calls"]),
        (&json!("tool_calls"), &json!(both[..1]))
    );
    let tokens = case.model.encode(&kimi_call("functions.get_weather:0", "{\"city\": \"Köln\"}")).len() + 1;
    assert_eq!(choice["usage"]["completion_tokens"], tokens);
    // Cut off in the middle of a call.
    let choice = case.answer(&two, &ask(json!({"max_tokens": 40})));
    assert_eq!(choice["finish_reason"], "length");
    let arguments = &choice["message"]["tool_calls"][0]["function"]["arguments"];
    assert!("{\"city\": \"Köln\"}".starts_with(arguments.as_str().expect("a string")), "{arguments}");
    // Cut off before a name was there: nothing of the markup is content, wherever it is cut, by a limit or by a stop.
    let heard = format!("I look.{two}");
    for max_tokens in 1..40 {
        let choice = case.answer(&heard, &ask(json!({"max_tokens": max_tokens})));
        let (message, reason) = (&choice["message"], &choice["finish_reason"]);
        let content = message["content"].as_str().unwrap_or("");
        assert!("I look.".starts_with(content) && reason == "length", "{max_tokens}: {choice}");
        assert_eq!(message.get("tool_calls").is_some(), max_tokens > 32, "{max_tokens}: {choice}");
    }
    let choice = case.answer(&heard, &ask(json!({"stop": ["weath"]})));
    assert_eq!(choice["message"], json!({"role": "assistant", "content": "I look."}));
    assert_eq!(choice["finish_reason"], "stop");
    // Of a malformed call the text is shown, its control tokens are not.
    let choice = case
        .answer("<|tool_calls_section_begin|>Hm, <|tool_call_begin|>a b<|tool_call_end|>.", &ask(json!({})));
    assert_eq!(
        (&choice["message"]["content"], &choice["finish_reason"]),
        (&json!("Hm, a b."), &json!("stop"))
    );
    let shown = case.answer("<|tool_calls_section_begin|>Hm", &ask(json!({"skip_special_tokens": false})));
    assert_eq!(
        shown["message"]["content"],
        "<|tool_calls_section_begin|>Hm<|im_end|>".trim_end_matches("<|im_end|>")
    );
    // Without tools nothing is a call.
    let none = case.answer(&two, &ask(json!({"tool_choice": "none"})));
    assert_eq!(none["finish_reason"], "stop");
    assert_eq!(none["message"]["content"], "functions.get_weather:0{\"city\": \"Köln\"}functions.now:1{}");
}

#[test]
fn the_deprecated_form_is_answered_in_the_deprecated_form() {
    let case = case(&KIMI);
    let request = json!({
        "messages": [
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": null, "function_call": {"name": "now", "arguments": "{}"}},
            {"role": "function", "name": "now", "content": "noon"},
        ],
        "functions": [weather()["function"], now()["function"]],
    });
    let two = kimi_calls(&[("functions.now:1", "{}"), ("functions.now:2", "{}")]);
    let choice = case.answer(&two, &request);
    assert_eq!(choice["finish_reason"], "function_call");
    assert_eq!(choice["message"]["function_call"], json!({"name": "now", "arguments": "{}"}));
    assert_eq!(choice["message"].get("tool_calls"), None);
    let prompt = case.prompt(&request);
    let expected = "<|im_assistant|>assistant<|im_middle|><|tool_calls_section_begin|><|tool_call_begin|>functions.now:0\
                    <|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|><|im_end|>\
                    <|im_tool|>tool<|im_middle|>## Return of functions.now:0\nnoon<|im_end|>";
    assert!(prompt.contains(expected), "{prompt}");
}

#[test]
fn thinking_is_told_apart() {
    let case = case(&KIMI);
    let thought = "◁think▷Hm, 1 < 2.◁/think▷So it is.";
    let choice = case.answer(thought, &ask(json!({})));
    let expected = json!({"role": "assistant", "content": "So it is.", "reasoning_content": "Hm, 1 < 2.", "reasoning": "Hm, 1 < 2."});
    assert_eq!((&choice["message"], &choice["finish_reason"]), (&expected, &json!("stop")));
    assert_eq!(choice["usage"]["completion_tokens_details"]["reasoning_tokens"], "Hm, 1 < 2.".len());
    // The prompt begins it.
    let open = ask(json!({"chat_template_kwargs": {"thinking": true}}));
    let choice = case.answer("Hm, 1 < 2.◁/think▷So it is.", &open);
    assert_eq!(choice["message"], expected);
    assert_eq!(choice["usage"]["completion_tokens_details"]["reasoning_tokens"], "Hm, 1 < 2.".len());
    // Never finished: cut off, or not.
    let choice =
        case.answer("Hm, 1 < 2.", &ask(json!({"chat_template_kwargs": {"thinking": true}, "max_tokens": 5})));
    assert_eq!(
        choice["message"],
        json!({"role": "assistant", "content": null, "reasoning_content": "Hm, 1", "reasoning": "Hm, 1"})
    );
    assert_eq!(
        (&choice["finish_reason"], &choice["usage"]["completion_tokens_details"]["reasoning_tokens"]),
        (&json!("length"), &json!(5))
    );
    // A call without the end of the thinking.
    let choice =
        case.answer(&format!("◁think▷I call.{}", kimi_calls(&[("functions.now:0", "{}")])), &ask(json!({})));
    assert_eq!(
        (&choice["message"]["reasoning"], &choice["finish_reason"]),
        (&json!("I call."), &json!("tool_calls"))
    );
    assert_eq!(choice["usage"]["completion_tokens_details"]["reasoning_tokens"], "I call.".len());
    // Not told, and counted all the same.
    let choice = case.answer(thought, &ask(json!({"include_reasoning": false, "logprobs": true})));
    assert_eq!(choice["message"], json!({"role": "assistant", "content": "So it is."}));
    assert_eq!(choice["usage"]["completion_tokens_details"]["reasoning_tokens"], "Hm, 1 < 2.".len());
    // A stop string counts in thinking too, and what is held for it is not lost to a marker.
    let choice = case.answer(thought, &ask(json!({"stop": ["2."]})));
    assert_eq!(
        (&choice["message"]["reasoning"], &choice["message"]["content"]),
        (&json!("Hm, 1 < "), &Value::Null)
    );
    assert_eq!(choice["finish_reason"], "stop");
}

#[test]
fn every_token_is_reported_once() {
    let case = case(&KIMI);
    let said = format!(
        "◁think▷Hm.◁/think▷I look. {}",
        kimi_calls(&[("functions.now:0", "{}"), ("functions.get_weather:1", "{}")])
    );
    case.script.set(KIMI.encode(&said));
    let request = ask(json!({"logprobs": true, "return_token_ids": true}));
    let whole = case.server.ask(CHAT, &request)["choices"][0].clone();
    let events = case.server.stream(CHAT, &request);
    let join = |field: fn(&Value) -> &Value| -> Vec<Value> {
        let choices = events.iter().flat_map(|event| event["choices"].as_array().expect("choices"));
        choices.flat_map(|choice| field(choice).as_array().cloned().unwrap_or_default()).collect()
    };
    assert_eq!(json!(join(|choice| &choice["token_ids"])), whole["token_ids"]);
    assert_eq!(json!(join(|choice| &choice["logprobs"]["content"])), whole["logprobs"]["content"]);
    assert_eq!(whole["token_ids"].as_array().map(Vec::len), Some(KIMI.encode(&said).len() + 1));
}

#[test]
fn effort_turns_thinking_on_and_off() {
    let kimi = case(&KIMI);
    let prompt = |effort: &str| {
        kimi.prompt(&json!({"messages": [{"role": "user", "content": "a"}], "reasoning_effort": effort}))
    };
    assert!(prompt("high").ends_with("◁think▷") && !prompt("none").ends_with("◁think▷"));
    let own = json!({"messages": [{"role": "user", "content": "a"}], "reasoning_effort": "none", "chat_template_kwargs": {"thinking": true}});
    assert!(kimi.prompt(&own).ends_with("◁think▷"), "the request's own variable stays");
    kimi.refused(
        &json!({"messages": [{"role": "user", "content": "a"}], "reasoning_effort": "much"}),
        "reasoning_effort",
    );
    let qwen = case(&QWEN);
    let request = json!({"messages": [{"role": "user", "content": "a"}], "reasoning_effort": "none"});
    assert!(qwen.prompt(&request).ends_with("<think>\n\n</think>\n\n"));
    // Where nothing follows it, the client is told.
    let deaf = case(&PLAIN);
    let response = deaf.server.post(CHAT, &request);
    assert_eq!(response.header("x-ignored-params"), Some("reasoning_effort"));
}

#[test]
fn tags_that_are_not_special_tokens() {
    let case = case(&QWEN);
    let said = "<think>\nHm.\n</think>\n\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Bonn\"}}\n</tool_call>\n\
                <tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>";
    let choice = case.answer(said, &ask(json!({})));
    let message = json!({
        "role": "assistant", "content": null, "reasoning_content": "\nHm.\n", "reasoning": "\nHm.\n",
        "tool_calls": [
            {"id": "call_", "type": "function", "function": {"name": "get_weather", "arguments": "{\"city\": \"Bonn\"}"}},
            {"id": "call_", "type": "function", "function": {"name": "now", "arguments": "{}"}},
        ],
    });
    assert_eq!(choice["message"], message);
    let choice = case.answer("<tool_call>no JSON</tool_call>", &ask(json!({})));
    assert_eq!(choice["message"]["content"], "<tool_call>no JSON</tool_call>");
}

#[test]
fn what_was_called_before_reaches_the_model() {
    let case = case(&KIMI);
    let request = ask(json!({"messages": [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": null, "reasoning": "I ask.", "tool_calls": [
            {"id": "functions.get_weather:0", "type": "function", "function": {"name": "get_weather", "arguments": "{\"city\":\"Bonn\"}"}},
            {"id": "x", "type": "function", "function": {"name": "now", "arguments": ""}},
        ]},
        {"role": "tool", "tool_call_id": "functions.get_weather:0", "content": "rain <|im_end|>"},
        {"role": "tool", "tool_call_id": "x", "content": [{"type": "text", "text": "noon"}]},
    ]}));
    let prompt = case.prompt(&request);
    for part in [
        "tool_declare<|im_middle|>[{\"type\":\"function\",\"function\":{\"name\":\"get_weather\",\"description\":\"The weather\",",
        "<|im_assistant|>assistant<|im_middle|>[[I ask.]]<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0\
         <|tool_call_argument_begin|>{\"city\": \"Bonn\"}<|tool_call_end|><|tool_call_begin|>x<|tool_call_argument_begin|>{}<|tool_call_end|>",
        "## Return of functions.get_weather:0\nrain <|im_end|><|im_end|>",
        "## Return of x\nnoon<|im_end|><|im_assistant|>",
    ] {
        assert!(prompt.contains(part), "{part}\n{prompt}");
    }
    // What must not be called is not shown.
    let hidden = case.prompt(&ask(json!({"tool_choice": "none"})));
    assert!(!hidden.contains("get_weather"), "{hidden}");
}

/// As clients of several MCP servers send them.
#[test]
fn a_thousand_tools() {
    // The prompt shows one of them, so that it is short.
    let template = KIMI.template.replace("{{ tools | tojson", "{{ tools[:1] | tojson").leak();
    let case = case(Box::leak(Box::new(Scripted { template, controls: KIMI.controls })));
    let tool = |i: usize| {
        let mut tool = weather();
        tool["function"]["name"] = format!("get_weather_{i}").into();
        tool
    };
    let tools: Vec<Value> = (0..1000).map(tool).collect();
    let said = kimi_calls(&[("functions.get_weather_999:0", "{\"city\": \"Bonn\"}")]);
    for choice in ["auto", "required"] {
        let choice = case.answer(&said, &ask(json!({"tools": tools, "tool_choice": choice})));
        let called = &choice["message"]["tool_calls"][0]["function"];
        assert_eq!(
            (&called["name"], &choice["finish_reason"]),
            (&json!("get_weather_999"), &json!("tool_calls"))
        );
    }
    case.refused(&ask(json!({"tools": (0..1025).map(tool).collect::<Vec<_>>()})), "tools");
}

/// Some clients keep the thinking of an answer as parts of its content.
#[test]
fn thoughts_between_parts_are_what_was_thought() {
    let case = case(&KIMI);
    let text = |text: &str| json!({"type": "text", "text": text});
    let thought = |text: &str| json!({"type": "thinking", "thinking": text, "signature": "s"});
    let prompt = |message: Value| {
        case.prompt(&json!({"messages": [{"role": "user", "content": "a"}, message, {"role": "user", "content": "b"}]}))
    };
    let plain = prompt(json!({"role": "assistant", "content": "Yes.\nNo.", "reasoning_content": "Hm. Ah."}));
    assert!(plain.contains("[[Hm. Ah.]]Yes.\nNo.<|im_end|>"), "{plain}");
    let parts = json!([thought("Hm. "), text("Yes."), thought("Ah."), text("No.")]);
    assert_eq!(prompt(json!({"role": "assistant", "content": parts})), plain);
    // Told twice, it was thought once.
    assert_eq!(prompt(json!({"role": "assistant", "content": parts, "reasoning": "Hm. Ah."})), plain);
    let silent = prompt(json!({"role": "assistant", "content": [thought("Hm.")]}));
    assert!(silent.contains("[[Hm.]]<|im_end|>"), "{silent}");
}

#[test]
fn refusals_name_the_field() {
    let kimi = case(&KIMI);
    let messages = |message: Value| ask(json!({"messages": [{"role": "user", "content": "a"}, message]}));
    let call = |call: Value| messages(json!({"role": "assistant", "tool_calls": [call]}));
    for (request, param) in [
        (ask(json!({"tools": []})), "tools"),
        (
            ask(json!({"tool_choice": {"type": "function", "function": {"name": "other"}}})),
            "tool_choice.function.name",
        ),
        (messages(json!({"role": "tool", "content": "a"})), "messages[1].tool_call_id"),
        (messages(json!({"role": "function", "content": "a"})), "messages[1].name"),
        (messages(json!({"role": "assistant", "tool_calls": {}})), "messages[1].tool_calls"),
        (call(json!({"function": {"name": "a"}})), "messages[1].tool_calls[0].id"),
        (call(json!({"id": "a"})), "messages[1].tool_calls[0].function"),
        (
            call(json!({"id": "a", "function": {"arguments": "{}"}})),
            "messages[1].tool_calls[0].function.name",
        ),
        (
            call(json!({"id": "a", "function": {"name": "f", "arguments": 1}})),
            "messages[1].tool_calls[0].function.arguments",
        ),
        (call(json!({"id": "a", "type": "custom", "function": {}})), "messages[1].tool_calls[0].type"),
        (messages(json!({"role": "assistant", "reasoning": 1})), "messages[1].reasoning"),
    ] {
        kimi.refused(&request, param);
    }
    let plain = case(&PLAIN);
    assert!(plain.refused(&ask(json!({})), "tools").contains("does not show tools"));
    // Shown, but nobody knows what a call looks like.
    const UNKNOWN: Scripted =
        Scripted { template: "{{ tools }}{% for m in messages %}{{ m.content }}{% endfor %}", controls: &[] };
    assert!(case(&UNKNOWN).refused(&ask(json!({})), "tools").contains("--tool-call-parser"));
    let named = Parsers {
        tools: Choice::Is(ToolFormat::Hermes),
        reasoning: Choice::Is(ReasoningFormat::named("qwen3").expect("a name")),
    };
    let choice = with(&UNKNOWN, named)
        .answer("<think>a</think><tool_call>{\"name\": \"now\"}</tool_call>", &ask(json!({})));
    assert_eq!(
        (&choice["finish_reason"], &choice["message"]["reasoning"]),
        (&json!("tool_calls"), &json!("a"))
    );
    let off = Parsers { tools: Choice::Off, reasoning: Choice::Off };
    let said = "<think>a</think><tool_call>{\"name\": \"now\"}</tool_call>";
    assert_eq!(with(&UNKNOWN, off).answer(said, &ask(json!({})))["message"]["content"], said);
}

/// The model draws its tokens at random, as far as it is let: with control tokens as the marks of calls, through everything that lies
/// between a model and a client.
#[test]
fn random_weights_call_tools_that_fit() {
    for model in [&KIMI, &QWEN] {
        let case = case(model);
        let strict = |mut tool: Value| {
            tool["function"]["strict"] = true.into();
            tool
        };
        let tools = json!([strict(weather()), strict(now())]);
        let validator = jsonschema::validator_for(&weather()["function"]["parameters"]).expect("a schema");
        let mut num_calls = 0;
        for seed in 0..24 {
            case.script.draw(seed);
            let choice = match seed % 3 {
                0 => json!("required"),
                1 => json!({"type": "function", "function": {"name": "get_weather"}}),
                _ => {
                    json!({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [now()]}})
                }
            };
            let request = ask(
                json!({"tools": tools, "tool_choice": choice, "parallel_tool_calls": seed % 2 == 0, "max_tokens": 900}),
            );
            let answer = case.server.ask(CHAT, &request)["choices"][0].clone();
            if answer["finish_reason"] == "length" {
                continue;
            }
            assert_eq!(
                (&answer["finish_reason"], &answer["message"]["content"]),
                (&json!("tool_calls"), &Value::Null),
                "seed {seed}: {answer}"
            );
            let calls = answer["message"]["tool_calls"].as_array().expect("calls");
            assert!(calls.len() == 1 || seed % 2 == 0, "{calls:?}");
            for call in calls {
                let arguments = call["function"]["arguments"].as_str().expect("a string");
                let arguments: Value = serde_json::from_str(arguments).expect("JSON");
                match call["function"]["name"].as_str() {
                    Some("get_weather") if seed % 3 < 2 => validator.validate(&arguments).expect("fits"),
                    Some("now") if seed % 3 != 1 => assert!(arguments.is_object()),
                    other => panic!("{other:?} was not to be called"),
                }
            }
            num_calls += calls.len();
        }
        assert!(num_calls >= 6, "{num_calls}");
    }
}

#[test]
fn constraints_beside_tools() {
    let case = case(&KIMI);
    // A schema of the text does not keep the model from calling.
    let format = json!({"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"], "additionalProperties": false}}});
    let request = ask(json!({"response_format": format, "max_tokens": 200}));
    let call = kimi_calls(&[("functions.now:0", "{}")]);
    assert_eq!(case.answer(&call, &request)["finish_reason"], "tool_calls");
    assert_eq!(case.answer("{\"x\": 1}", &request)["message"]["content"], "{\"x\": 1}");
    // A budget of thinking, forced to its end, and the call after it.
    let budget =
        ask(json!({"thinking_token_budget": 4, "tool_choice": "required", "parallel_tool_calls": false,
                            "chat_template_kwargs": {"thinking": true}, "max_tokens": 400}));
    case.script.draw(3);
    let answer = case.server.ask(CHAT, &budget);
    let reasoning = answer["choices"][0]["message"]["reasoning"].as_str().unwrap_or("");
    assert!(
        answer["usage"]["completion_tokens_details"]["reasoning_tokens"].as_u64().expect("a count") <= 4,
        "{reasoning}"
    );
    case.refused(&ask(json!({"tool_choice": "required", "allowed_token_ids": [1]})), "allowed_token_ids");
    // What only the compiler finds is told where it is, or left out where it need not be enforced.
    let mut never = weather();
    never["function"]["parameters"]["properties"]["city"] =
        json!({"type": "string", "minLength": 3, "maxLength": 2});
    let lenient = ask(
        json!({"tools": [now(), never], "tool_choice": {"type": "function", "function": {"name": "get_weather"}}}),
    );
    let said = kimi_calls(&[("functions.get_weather:0", "{\"city\": \"any\"}")]);
    assert_eq!(case.answer(&said, &lenient)["finish_reason"], "tool_calls");
    never["function"]["strict"] = true.into();
    let message = case.refused(&ask(json!({"tools": [now(), never]})), "tools[1].function.parameters");
    assert!(message.contains("#/properties/city/maxLength"), "{message}");
    let mut odd = weather();
    odd["function"]["strict"] = true.into();
    odd["function"]["parameters"]["properties"]["city"]["not"] = json!({"const": "x"});
    let message = case.refused(&ask(json!({"tools": [odd]})), "tools[0].function.parameters");
    assert!(message.contains("#/properties/city"), "{message}");
}
