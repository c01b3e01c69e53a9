//! Anthropic's dialect over HTTP: a stream put together as its clients do it is the answer in one piece, errors have its shape, and
//! everything around an answer is as for a chat completion.

use crate::harness;

use harness::client::{Response, typed_events};
use harness::fake::Fault;
use harness::scripted::{KIMI, Script, kimi_call};
use harness::{MODEL, Setup, TestServer};
use perilune::auth::ApiKeys;
use serde_json::{Value, json};

const MESSAGES: &str = "/v1/messages";

/// The message that a client puts together from a stream, with the order of events checked on the way.
fn joined(events: &[Value]) -> Value {
    let (first, rest) = events.split_first().expect("events");
    assert_eq!(first["type"], "message_start");
    let mut message = first["message"].clone();
    assert_eq!((&message["content"], &message["stop_reason"]), (&json!([]), &Value::Null));
    let mut json_text = String::new();
    let mut open = None;
    for (i, event) in rest.iter().enumerate() {
        let content = message["content"].as_array_mut().expect("a list");
        match event["type"].as_str().expect("a type") {
            "content_block_start" => {
                assert_eq!((open, &event["index"]), (None, &json!(content.len())));
                open = Some(content.len());
                content.push(event["content_block"].clone());
                json_text.clear();
            }
            "content_block_delta" => {
                let index = open.expect("a block is open");
                assert_eq!(event["index"], index);
                let delta = &event["delta"];
                let (field, may_be_empty) = match delta["type"].as_str().expect("a type") {
                    "text_delta" => ("text", false),
                    "thinking_delta" => ("thinking", false),
                    "signature_delta" => ("signature", true),
                    "input_json_delta" => {
                        json_text.push_str(delta["partial_json"].as_str().expect("text"));
                        assert_eq!(content[index]["type"], "tool_use");
                        continue;
                    }
                    other => panic!("{other}"),
                };
                let (old, more) =
                    (content[index][field].as_str().expect("text"), delta[field].as_str().expect("text"));
                assert!(may_be_empty || !more.is_empty());
                content[index][field] = format!("{old}{more}").into();
            }
            "content_block_stop" => {
                let index = open.take().expect("a block is open");
                if content[index]["type"] == "tool_use" {
                    assert_eq!(content[index]["input"], json!({}));
                    content[index]["input"] = serde_json::from_str(&json_text)
                        .unwrap_or_else(|_| json!({"INVALID_JSON": json_text}));
                }
            }
            "message_delta" => {
                assert_eq!(open, None);
                for field in ["stop_reason", "stop_sequence"] {
                    message[field] = event["delta"][field].clone();
                }
                message["usage"] = event["usage"].clone();
            }
            "message_stop" => assert_eq!(i + 1, rest.len(), "the end"),
            other => panic!("{other}"),
        }
    }
    assert_eq!(rest.last().expect("an end")["type"], "message_stop");
    message
}

struct Case {
    server: TestServer,
    script: Script,
}

fn case() -> Case {
    let (server, script) = TestServer::scripted(&KIMI, Setup::default().options);
    Case { server, script }
}

fn request(more: Value) -> Value {
    let tool = json!({"name": "now", "input_schema": {"type": "object", "properties": {"zone": {"type": "string"}}}});
    let mut body =
        json!({"max_tokens": 500, "messages": [{"role": "user", "content": "hello"}], "tools": [tool]});
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    body
}

fn streamed(server: &TestServer, body: &Value) -> Response {
    let mut body = body.clone();
    body["stream"] = true.into();
    let response = server.post(MESSAGES, &body);
    assert_eq!(response.status, 200, "{}", response.text());
    assert_eq!(response.header("content-type"), Some("text/event-stream"));
    response
}

/// What differs between two answers to the same request.
fn without_names(mut message: Value) -> Value {
    let id = message["id"].as_str().expect("an id").to_owned();
    assert!(id.starts_with("msg_"), "{id}");
    message["id"] = Value::Null;
    let usage = &message["usage"];
    let prompt = usage["input_tokens"].as_u64().expect("a number")
        + usage["cache_read_input_tokens"].as_u64().expect("a number");
    message["usage"] = json!({"prompt": prompt, "output_tokens": usage["output_tokens"]});
    message
}

impl Case {
    fn answer(&self, said: &str, body: &Value) -> Value {
        self.script.set(KIMI.encode(said));
        let whole = without_names(self.server.ask(MESSAGES, body));
        let stream = streamed(&self.server, body);
        assert_eq!(without_names(joined(&typed_events(stream.text()))), whole, "{said}");
        whole
    }
}

#[test]
fn a_stream_is_the_answer_in_pieces() {
    let case = case();
    let calls = format!(
        "<|tool_calls_section_begin|>{}{}<|tool_calls_section_end|>",
        kimi_call("functions.now:0", "{\"zone\": \"Köln\"}"),
        kimi_call("functions.now:1", "{}")
    );
    let text = |text: &str| json!({"type": "text", "text": text});
    let thinking = |text: &str| json!({"type": "thinking", "thinking": text, "signature": ""});
    let tool_use =
        |id: &str, input: Value| json!({"type": "tool_use", "id": id, "name": "now", "input": input});
    let both = [tool_use("functions.now:0", json!({"zone": "Köln"})), tool_use("functions.now:1", json!({}))];
    for (said, more, content, stop_reason, stop_sequence) in [
        ("Hello, Köln!".to_owned(), json!({}), json!([text("Hello, Köln!")]), "end_turn", json!(null)),
        (String::new(), json!({}), json!([]), "end_turn", json!(null)),
        ("Hello".to_owned(), json!({"max_tokens": 3}), json!([text("Hel")]), "max_tokens", json!(null)),
        (
            "one two three".to_owned(),
            json!({"stop_sequences": ["four", " two"]}),
            json!([text("one")]),
            "stop_sequence",
            json!(" two"),
        ),
        (
            "◁think▷Hm, 1 < 2.◁/think▷So it is.".to_owned(),
            json!({}),
            json!([thinking("Hm, 1 < 2."), text("So it is.")]),
            "end_turn",
            json!(null),
        ),
        (
            "Hm.◁/think▷Yes.".to_owned(),
            json!({"thinking": {"type": "enabled", "budget_tokens": 100}}),
            json!([thinking("Hm."), text("Yes.")]),
            "end_turn",
            json!(null),
        ),
        (calls.clone(), json!({}), json!(both), "tool_use", json!(null)),
        (
            format!("I look.{calls}"),
            json!({}),
            json!([text("I look."), both[0], both[1]]),
            "tool_use",
            json!(null),
        ),
        (
            format!("I look.{calls}Done.{}", calls.replace(":1", ":3").replace(":0", ":2")),
            json!({}),
            json!([
                text("I look."),
                both[0],
                both[1],
                text("Done."),
                json!({"type": "tool_use", "id": "functions.now:2", "name": "now", "input": {"zone": "Köln"}}),
                json!({"type": "tool_use", "id": "functions.now:3", "name": "now", "input": {}}),
            ]),
            "tool_use",
            json!(null),
        ),
        (
            format!("◁think▷I call.◁/think▷{calls}"),
            json!({"tool_choice": {"type": "auto", "disable_parallel_tool_use": true}}),
            json!([thinking("I call."), both[0]]),
            "tool_use",
            json!(null),
        ),
        (
            calls.clone(),
            json!({"max_tokens": 25}),
            json!([tool_use("functions.now:0", json!({"INVALID_JSON": "{\"zone\""}))]),
            "max_tokens",
            json!(null),
        ),
    ] {
        let message = case.answer(&said, &request(more.clone()));
        assert_eq!(message["content"], content, "{said} {more}");
        assert_eq!(
            (&message["stop_reason"], &message["stop_sequence"]),
            (&json!(stop_reason), &stop_sequence),
            "{said}"
        );
        assert_eq!(
            (&message["type"], &message["role"], &message["model"]),
            (&json!("message"), &json!("assistant"), &json!(MODEL))
        );
    }
}

#[test]
fn prompts_are_counted() {
    let case = case();
    case.script.set(KIMI.encode("x"));
    let body = request(json!({"system": "Be brief.", "max_tokens": 1}));
    let first = case.server.ask(MESSAGES, &body);
    let mut counted = body.clone();
    counted.as_object_mut().expect("an object").remove("max_tokens");
    let count = case.server.ask("/v1/messages/count_tokens", &counted);
    assert_eq!(count, json!({"input_tokens": first["usage"]["input_tokens"]}));
    let again = case.server.ask(MESSAGES, &body);
    let usage = &again["usage"];
    assert!(usage["cache_read_input_tokens"].as_u64() > Some(0), "{usage}");
    assert_eq!(without_names(again.clone()), without_names(first));
}

#[test]
fn everything_around_is_as_for_a_chat() {
    let case = case();
    case.script.set(KIMI.encode("x"));
    let mut body = request(json!({"metadata": {"user_id": "u"}, "service_tier": "auto"}));
    body["messages"][0]["content"] =
        json!([{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]);
    let mut connection = case.server.connect();
    let headers =
        [("content-type", "application/json"), ("x-request-id", "mine"), ("anthropic-version", "2023-06-01")];
    connection.send("POST", MESSAGES, &headers, body.to_string().as_bytes());
    let response = connection.receive();
    assert_eq!((response.status, &response.json()["id"]), (200, &json!("msg_mine")));
    for name in ["x-request-id", "request-id"] {
        assert_eq!(response.header(name), Some("mine"));
    }
    assert_eq!(response.header("x-ignored-params"), Some("metadata, service_tier, cache_control"));
    assert!(response.header("server-timing").is_some_and(|value| value.contains("prefill;dur=")));
    assert_eq!(streamed(&case.server, &body).header("x-ignored-params"), response.header("x-ignored-params"));
}

fn is_error(response: &Response, status: u16, kind: &str, words: &str) {
    assert_eq!(response.status, status, "{}", response.text());
    let body = response.json();
    assert_eq!((&body["type"], &body["error"]["type"]), (&json!("error"), &json!(kind)), "{body}");
    assert!(body["error"]["message"].as_str().is_some_and(|message| message.contains(words)), "{body}");
    assert_eq!(body["request_id"].as_str(), response.header("request-id"));
    assert_eq!(body["error"].as_object().map(|error| error.len()), Some(2));
}

#[test]
fn errors_have_their_shape() {
    let case = case();
    for (more, words) in [
        (json!({"max_tokens": null}), "`max_tokens`"),
        (json!({"max_tokens": 0}), "`max_tokens`"),
        (json!({"stop_sequences": [""]}), "`stop_sequences[0]`"),
        (json!({"temperature": -1.0}), "`temperature`"),
        (json!({"tools": [{"name": "a b", "input_schema": {}}]}), "`tools[0].name`"),
        (json!({"tools": [{"name": "a", "input_schema": []}]}), "`tools[0].input_schema`"),
        (json!({"tool_choice": {"type": "tool", "name": "other"}}), "`tool_choice.name`"),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "ftp://x"}}]}]}),
            "`messages[0].content[0].source`",
        ),
        // What Anthropic says of a context that is full: clients compact the conversation, or ask for less.
        (json!({"messages": [{"role": "user", "content": "a".repeat(20_000)}]}), "prompt is too long: "),
        (json!({"max_tokens": 16_384}), "input length and `max_tokens` exceed context limit: "),
    ] {
        for stream in [false, true] {
            let mut body = request(more.clone());
            body["stream"] = stream.into();
            is_error(&case.server.post(MESSAGES, &body), 400, "invalid_request_error", words);
        }
    }
    is_error(&case.server.post(MESSAGES, &request(json!({"model": "no"}))), 404, "not_found_error", "`no`");
    is_error(&case.server.get(MESSAGES), 405, "invalid_request_error", "GET");
    let mut connection = case.server.connect();
    connection.send("POST", MESSAGES, &[("content-type", "text/plain")], b"{}");
    is_error(&connection.receive(), 415, "invalid_request_error", "content-type");
    let mut setup = Setup::default();
    setup.options.keys = ApiKeys::new(&["key"]);
    is_error(&TestServer::with(setup).post(MESSAGES, &json!({})), 401, "authentication_error", "x-api-key");
}

#[test]
fn an_error_ends_a_stream() {
    let server = TestServer::start();
    server.control.close();
    server.control.permit(3);
    let body = json!({"max_tokens": 200, "messages": [{"role": "user", "content": "hi"}], "stream": true});
    let mut connection = server.connect();
    connection.send_json(MESSAGES, &body);
    let head = connection.head();
    assert_eq!(head.status, 200);
    server.control.wait_until_blocked();
    server.fail_next(Fault::Error);
    server.control.open();
    let text = connection.receive_rest();
    let events = typed_events(&text);
    assert_eq!(events[0]["type"], "message_start");
    let last = events.last().expect("events");
    assert_eq!((&last["type"], &last["error"]["type"]), (&json!("error"), &json!("api_error")), "{text}");
    assert_eq!(events.iter().filter(|event| event["type"] == "error").count(), 1);
}
