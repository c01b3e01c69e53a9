//! The Responses API over HTTP: a stream put together as its clients do it is the answer in one piece, what is asked is what a chat
//! completion is asked, and everything that is not honoured is named.

use crate::harness;

use harness::client::typed_events;
use harness::fake::Fault;
use harness::responses::{RESPONSES, both_ways, joined, streamed, text};
use harness::scripted::{KIMI, kimi_call};
use harness::{MODEL, Setup, TestServer};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";

fn request(more: Value) -> Value {
    let zone = json!({"type": "object", "properties": {"zone": {"type": "string"}}});
    let mut body =
        json!({"input": "hello", "tools": [{"type": "function", "name": "now", "parameters": zone}]});
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    body
}

/// An item without its names, status first.
fn brief(item: &Value) -> Value {
    match item["type"].as_str() {
        Some("function_call") => json!([item["status"], item["name"], item["call_id"], item["arguments"]]),
        kind => json!([item["status"], kind, item["content"][0]["text"]]),
    }
}

#[test]
fn a_stream_is_the_answer_in_pieces() {
    let (server, script) = TestServer::scripted(&KIMI, Setup::default().options);
    let calls =
        calls_of(&[kimi_call("functions.now:0", "{\"zone\": \"Köln\"}"), kimi_call("functions.now:1", "{}")]);
    let again = calls_of(&[kimi_call("functions.now:2", "{}")]);
    let said = |text: &str| json!(["completed", "message", text]);
    let thought = |text: &str| json!(["completed", "reasoning", text]);
    let called = |id: &str, arguments: &str| json!(["completed", "now", id, arguments]);
    let both = [called("functions.now:0", "{\"zone\": \"Köln\"}"), called("functions.now:1", "{}")];
    for (says, more, output, status) in [
        ("Hello, Köln!".to_owned(), json!({}), json!([said("Hello, Köln!")]), "completed"),
        (String::new(), json!({}), json!([]), "completed"),
        (
            "Hello".to_owned(),
            json!({"max_output_tokens": 3}),
            json!([["incomplete", "message", "Hel"]]),
            "incomplete",
        ),
        ("one two three".to_owned(), json!({"stop": [" two"]}), json!([said("one")]), "completed"),
        (
            "◁think▷Hm, 1 < 2.◁/think▷So it is.".to_owned(),
            json!({}),
            json!([thought("Hm, 1 < 2."), said("So it is.")]),
            "completed",
        ),
        (
            "Hm.◁/think▷Yes.".to_owned(),
            json!({"reasoning": {"effort": "high"}}),
            json!([thought("Hm."), said("Yes.")]),
            "completed",
        ),
        (
            "◁think▷Hm, well".to_owned(),
            json!({"max_output_tokens": 18}),
            json!([["incomplete", "reasoning", "Hm, wel"]]),
            "incomplete",
        ),
        (calls.clone(), json!({}), json!(both), "completed"),
        (format!("I look.{calls}"), json!({}), json!([said("I look."), both[0], both[1]]), "completed"),
        (
            format!("I look.{calls}And{again}"),
            json!({}),
            json!([said("I look."), both[0], both[1], said("And"), called("functions.now:2", "{}")]),
            "completed",
        ),
        (
            format!("◁think▷I call.◁/think▷{calls}"),
            json!({"parallel_tool_calls": false}),
            json!([thought("I call."), both[0]]),
            "completed",
        ),
        (
            calls.clone(),
            json!({"max_output_tokens": 25}),
            json!([["incomplete", "now", "functions.now:0", "{\"zone\""]]),
            "incomplete",
        ),
        (calls.clone(), json!({"tool_choice": "none"}), json!([said(&calls_as_text(&calls))]), "completed"),
        ("plain".to_owned(), json!({"store": false}), json!([said("plain")]), "completed"),
    ] {
        script.set(KIMI.encode(&says));
        let response = both_ways(&server, &request(more.clone()));
        let brief: Vec<Value> = response["output"].as_array().expect("a list").iter().map(brief).collect();
        assert_eq!(Value::Array(brief), output, "{says} {more}");
        assert_eq!(response["status"], status, "{says} {more}");
        let details =
            if status == "incomplete" { json!({"reason": "max_output_tokens"}) } else { json!(null) };
        assert_eq!((&response["incomplete_details"], &response["error"]), (&details, &json!(null)));
        assert_eq!((&response["object"], &response["model"]), (&json!("response"), &json!(MODEL)));
        let usage = &response["usage"];
        let sum = usage["input_tokens"].as_u64().expect("a number")
            + usage["output_tokens"].as_u64().expect("a number");
        assert_eq!(usage["total_tokens"], sum);
        let thinks = usage["output_tokens_details"]["reasoning_tokens"].as_u64() > Some(0);
        assert_eq!(thinks, says.contains("think▷"), "{says}");
    }
}

fn calls_of(calls: &[String]) -> String {
    format!("<|tool_calls_section_begin|>{}<|tool_calls_section_end|>", calls.concat())
}

/// Control tokens are hidden from clients.
fn calls_as_text(calls: &str) -> String {
    let mut text = calls.to_owned();
    for marker in
        ["calls_section_begin", "calls_section_end", "call_begin", "call_argument_begin", "call_end"]
    {
        text = text.replace(&format!("<|tool_{marker}|>"), "");
    }
    text
}

#[test]
fn the_request_is_repeated() {
    let (server, script) = TestServer::scripted(&KIMI, Setup::default().options);
    script.set(KIMI.encode("{}"));
    let tool = json!({"type": "function", "name": "now", "description": null, "parameters": {"type": "object"}, "strict": false});
    let given = json!({
        "instructions": "Be brief.", "max_output_tokens": 50, "metadata": {"a": "b"}, "parallel_tool_calls": false,
        "temperature": 0.5, "top_p": 0.25, "tool_choice": "auto", "tools": [tool], "user": "u", "store": false,
        "text": {"format": {"type": "json_object"}}, "max_tool_calls": 2, "prompt_cache_key": "k", "safety_identifier": "s",
        "truncation": "auto",
    });
    let response = both_ways(&server, &request(given.clone()));
    for (field, value) in given.as_object().expect("an object") {
        assert_eq!(response[field], *value, "{field}");
    }
    let bare = both_ways(&server, &json!({"input": "a"}));
    for (field, value) in [
        ("instructions", json!(null)),
        ("previous_response_id", json!(null)),
        ("background", json!(false)),
        ("store", json!(true)),
        ("metadata", json!({})),
        ("parallel_tool_calls", json!(true)),
        ("tool_choice", json!("auto")),
        ("tools", json!([])),
        ("temperature", json!(1.0)),
        ("top_p", json!(1.0)),
        ("text", json!({"format": {"type": "text"}})),
        ("reasoning", json!({"effort": null, "summary": null})),
        ("truncation", json!("disabled")),
        ("service_tier", json!("default")),
        ("top_logprobs", json!(0)),
    ] {
        assert_eq!(bare[field], value, "{field}");
    }
}

#[test]
fn log_probabilities_are_those_of_the_text() {
    let (server, script) = TestServer::scripted(&KIMI, Setup::default().options);
    let calls = format!(
        "<|tool_calls_section_begin|>{}<|tool_calls_section_end|>",
        kimi_call("functions.now:0", "{}")
    );
    for says in ["Köln", "◁think▷Hm.◁/think▷Köln, ◁ and", &format!("Ah!{calls}Köln"), "one stop"]
    {
        script.set(KIMI.encode(says));
        let more = json!({"include": ["message.output_text.logprobs"], "top_logprobs": 1, "stop": "stop"});
        let response = both_ways(&server, &request(more));
        let items = response["output"].as_array().expect("a list");
        let messages: Vec<&Value> = items.iter().filter(|item| item["type"] == "message").collect();
        assert!(!messages.is_empty());
        for message in messages {
            let part = &message["content"][0];
            let logprobs = part["logprobs"].as_array().expect("a list");
            let bytes = logprobs.iter().flat_map(|entry| entry["bytes"].as_array().expect("bytes"));
            let bytes: Vec<u8> = bytes.map(|byte| byte.as_u64().expect("a byte") as u8).collect();
            assert_eq!(
                String::from_utf8(bytes).as_deref(),
                Ok(part["text"].as_str().expect("text")),
                "{says}"
            );
            assert!(
                logprobs.iter().all(|entry| entry["logprob"] == -0.5 && entry["top_logprobs"].is_array())
            );
        }
    }
    script.set(KIMI.encode("Köln"));
    assert_eq!(both_ways(&server, &request(json!({})))["output"][0]["content"][0]["logprobs"], json!([]));
}

/// The fake model's answer is a function of every token before it: equal answers mean equal prompts.
#[test]
fn prompts_are_those_of_a_chat() {
    let server = TestServer::start();
    let image = "data:image/bmp;base64,Qk06AAAAAAAAADYAAAAoAAAAAQAAAAEAAAABABgAAAAAAAQAAAAAAAAAAAAAAAAAAAAAAAAACQAAAA==";
    let user = |text: &str| json!({"role": "user", "content": text});
    for (input, instructions, messages) in [
        (json!("hi"), json!(null), json!([user("hi")])),
        (json!("hi"), json!("Be brief."), json!([{"role": "system", "content": "Be brief."}, user("hi")])),
        (
            json!([user("a"), {"role": "assistant", "content": [{"type": "output_text", "text": "b"}]}, {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "c"}]}]),
            json!(null),
            json!([user("a"), {"role": "assistant", "content": "b"}, user("c")]),
        ),
        (
            json!([{"role": "user", "content": [{"type": "input_text", "text": "what?"}, {"type": "input_image", "image_url": image}]}]),
            json!(null),
            json!([{"role": "user", "content": [{"type": "text", "text": "what?"}, {"type": "image_url", "image_url": {"url": image}}]}]),
        ),
    ] {
        let body =
            json!({"input": input, "instructions": instructions, "max_output_tokens": 20, "temperature": 0});
        let response = both_ways(&server, &body);
        let chat = server.ask(CHAT, &json!({"messages": messages, "max_tokens": 20, "temperature": 0}));
        assert_eq!(
            text(&response),
            chat["choices"][0]["message"]["content"].as_str().expect("text"),
            "{body}"
        );
        assert_eq!(response["usage"]["input_tokens"], chat["usage"]["prompt_tokens"]);
        let counted = server.ask("/v1/responses/input_tokens", &body);
        assert_eq!(
            counted,
            json!({"object": "response.input_tokens", "input_tokens": response["usage"]["input_tokens"]})
        );
    }
}

#[test]
fn the_oldest_items_are_left_out_where_that_is_asked_for() {
    let server = TestServer::start();
    let limit =
        server.get("/v1/models").json()["data"][0]["max_model_len"].as_u64().expect("a limit") as usize;
    let long = |c: char| json!({"role": "user", "content": c.to_string().repeat(limit / 3)});
    let items = [long('a'), long('b'), long('c'), json!({"role": "user", "content": "z"})];
    let ask = |input: Value, more: Value| {
        let mut body =
            json!({"input": input, "instructions": "i", "max_output_tokens": 20, "temperature": 0});
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        server.post(RESPONSES, &body)
    };
    let refused = ask(json!(items), json!({}));
    let error = &refused.json()["error"];
    assert_eq!((refused.status, &error["param"]), (400, &json!("input")), "{error}");
    assert_eq!(error["code"], "context_length_exceeded");
    let cut = ask(json!(items), json!({"truncation": "auto"}));
    assert_eq!(cut.status, 200, "{}", cut.text());
    let short = ask(json!(items[1..]), json!({}));
    assert_eq!(text(&cut.json()), text(&short.json()));
    assert_eq!(cut.json()["truncation"], "auto");
    let alone = json!({"role": "user", "content": "a".repeat(limit)});
    assert_eq!(ask(json!([alone]), json!({"truncation": "auto"})).status, 400);
}

#[test]
fn refusals_name_the_field() {
    let (server, _script) = TestServer::scripted(&KIMI, Setup::default().options);
    for (more, param) in [
        (json!({"input": null}), "input"),
        (json!({"max_output_tokens": 0}), "max_output_tokens"),
        (json!({"max_output_tokens": 1_000_000}), "input"),
        (json!({"temperature": -1.0}), "temperature"),
        (json!({"top_p": 2.0}), "top_p"),
        (json!({"top_logprobs": 1}), "top_logprobs"),
        (json!({"include": ["message.output_text.logprobs"], "top_logprobs": 21}), "top_logprobs"),
        (json!({"tools": [{"type": "file_search", "vector_store_ids": []}]}), "tools[0].type"),
        (json!({"tools": [{"type": "function", "name": "a b"}]}), "tools[0].name"),
        (json!({"tools": [{"type": "function", "name": "a", "parameters": []}]}), "tools[0].parameters"),
        (
            json!({"tools": [{"type": "function", "name": "a"}, {"type": "function", "name": "a"}]}),
            "tools[1].name",
        ),
        (json!({"tool_choice": "always"}), "tool_choice"),
        (json!({"tool_choice": {"type": "function", "name": "other"}}), "tool_choice.name"),
        (
            json!({"tool_choice": {"type": "allowed_tools", "tools": [{"type": "function", "name": "now"}]}}),
            "tool_choice.mode",
        ),
        (
            json!({"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "other"}]}}),
            "tool_choice.tools[0].name",
        ),
        (json!({"tools": null, "tool_choice": "required"}), "tool_choice"),
        (json!({"reasoning": {"effort": "much"}}), "reasoning.effort"),
        (json!({"text": {"format": {"type": "json_schema", "name": "a"}}}), "text.format.schema"),
        (json!({"stop": [""]}), "stop[0]"),
        (
            json!({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "ftp://x"}]}]}),
            "input[0].content[0].image_url",
        ),
        (json!({"previous_response_id": "resp_0"}), "previous_response_id"),
        (json!({"guided_json": {}}), "guided_json"),
    ] {
        for stream in [false, true] {
            let mut body = request(more.clone());
            body["stream"] = stream.into();
            let response = server.post(RESPONSES, &body);
            let (status, error) = (response.status, response.json()["error"].clone());
            let expected = if param == "previous_response_id" { 404 } else { 400 };
            assert_eq!((status, error["param"].as_str()), (expected, Some(param)), "{more}: {error}");
        }
    }
    let response = server.post(RESPONSES, &request(json!({"model": "no"})));
    assert_eq!((response.status, &response.json()["error"]["code"]), (404, &json!("model_not_found")));
}

#[test]
fn ids_and_headers() {
    let (server, script) = TestServer::scripted(&KIMI, Setup::default().options);
    script.set(KIMI.encode("x"));
    let mut body = request(json!({"user": "u", "reasoning": {"summary": "auto"}, "service_tier": "auto"}));
    body["input"] = json!([{"role": "user", "content": "a", "phase": "commentary"}]);
    let mut ids = Vec::new();
    for _ in 0..2 {
        let mut connection = server.connect();
        let headers = [("content-type", "application/json"), ("x-request-id", "mine")];
        connection.send("POST", RESPONSES, &headers, body.to_string().as_bytes());
        let response = connection.receive();
        assert_eq!(response.header("x-request-id"), Some("mine"));
        assert_eq!(
            response.header("x-ignored-params"),
            Some("input.phase, reasoning.summary, service_tier, user")
        );
        assert!(response.header("server-timing").is_some_and(|value| value.contains("prefill;dur=")));
        ids.push(response.json()["id"].as_str().expect("an id").to_owned());
    }
    assert!(ids[0] != ids[1] && ids.iter().all(|id| !id.contains("mine")), "{ids:?}");
    let ignored = streamed(&server, &body).header("x-ignored-params").map(str::to_owned);
    assert_eq!(ignored.as_deref(), Some("input.phase, reasoning.summary, service_tier, user"));
}

#[test]
fn an_error_ends_a_stream() {
    let server = TestServer::start();
    server.control.close();
    server.control.permit(3);
    let mut connection = server.connect();
    connection.send_json(RESPONSES, &json!({"input": "hi", "max_output_tokens": 200, "stream": true}));
    assert_eq!(connection.head().status, 200);
    server.control.wait_until_blocked();
    server.fail_next(Fault::Error);
    server.control.open();
    let response = joined(&typed_events(&connection.receive_rest()));
    assert_eq!((&response["status"], &response["error"]["code"]), (&json!("failed"), &json!("server_error")));
    assert!(
        response["error"]["message"].as_str().is_some_and(|message| message.contains("engine")),
        "{response}"
    );
}
