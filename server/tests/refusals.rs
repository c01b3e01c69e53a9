//! What is not answered: every wrong request is a 4xx with OpenAI's error object, naming the field, and the server goes on.

use crate::harness;

use harness::client::Response;
use harness::{Setup, TestServer, patient_limits};
use perilune::app::AppLimits;
use perilune::router::route_table;
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/completions";

/// Status, `param` and `code` of an error, with its shape checked.
fn error(response: &Response) -> (u16, Value, Value) {
    assert_eq!(response.header("content-type"), Some("application/json"), "{}", response.text());
    let body = response.json();
    let error = body["error"].as_object().unwrap_or_else(|| panic!("no error object: {body}"));
    let mut keys: Vec<&str> = error.keys().map(String::as_str).collect();
    keys.sort_unstable();
    assert_eq!(keys, ["code", "message", "param", "type"]);
    assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{body}");
    assert!(error["type"].is_string(), "{body}");
    (response.status, error["param"].clone(), error["code"].clone())
}

fn with(base: &Value, more: &Value) -> Value {
    let mut body = base.clone();
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    body
}

fn check(server: &TestServer, path: &str, body: &Value, param: &str, code: &str) {
    let found = error(&server.post(path, body));
    assert_eq!(found, (400, json!(param), json!(code)), "{body}");
}

const INVALID: &str = "invalid_value";
const UNSUPPORTED: &str = "unsupported_parameter";

/// Fields that both dialects have.
fn common_mistakes() -> Vec<(Value, &'static str, &'static str)> {
    vec![
        (json!({"temperature": "hot"}), "temperature", INVALID),
        (json!({"temperature": -0.1}), "temperature", INVALID),
        (json!({"temperature": true}), "temperature", INVALID),
        (json!({"top_p": 0}), "top_p", INVALID),
        (json!({"top_p": 1.01}), "top_p", INVALID),
        (json!({"top_k": -2}), "top_k", INVALID),
        (json!({"top_k": 1.5}), "top_k", INVALID),
        (json!({"min_p": 2}), "min_p", INVALID),
        (json!({"frequency_penalty": 2.1}), "frequency_penalty", INVALID),
        (json!({"presence_penalty": -2.1}), "presence_penalty", INVALID),
        (json!({"repetition_penalty": 0}), "repetition_penalty", INVALID),
        (json!({"max_tokens": 0}), "max_tokens", INVALID),
        (json!({"max_tokens": -1}), "max_tokens", INVALID),
        (json!({"max_tokens": 9_007_199_254_740_993_u64}), "", "context_length_exceeded"),
        (json!({"max_tokens": u64::MAX}), "", "context_length_exceeded"),
        (json!({"min_tokens": 9, "max_tokens": 8}), "min_tokens", INVALID),
        (json!({"n": 0}), "n", INVALID),
        (json!({"n": 129}), "n", INVALID),
        (json!({"n": "1"}), "n", INVALID),
        (json!({"seed": 1.5}), "seed", INVALID),
        (json!({"stop": 1}), "stop", INVALID),
        (json!({"stop": [""]}), "stop[0]", INVALID),
        (json!({"stop": vec!["a"; 65]}), "stop", INVALID),
        (json!({"stop": ["a".repeat(1025)]}), "stop[0]", INVALID),
        (json!({"stop": vec!["a".repeat(1000); 17]}), "stop", INVALID),
        (json!({"stop_token_ids": [-1]}), "stop_token_ids[0]", INVALID),
        (json!({"stop_token_ids": [272]}), "stop_token_ids", INVALID),
        (json!({"stop_token_ids": [4_294_967_296_u64]}), "stop_token_ids[0]", INVALID),
        (json!({"logit_bias": {"272": 1}}), "logit_bias", INVALID),
        (json!({"logit_bias": {"x": 1}}), "logit_bias", INVALID),
        (json!({"logit_bias": {"-1": 1}}), "logit_bias", INVALID),
        (json!({"logit_bias": {"1": 101}}), "logit_bias", INVALID),
        (json!({"logit_bias": {"1": 1, "01": 1}}), "logit_bias", INVALID),
        (json!({"stream": "yes"}), "stream", INVALID),
        (json!({"stream_options": {"include_usage": true}}), "stream_options", INVALID),
        (
            json!({"stream": true, "stream_options": {"include_usage": 1}}),
            "stream_options.include_usage",
            INVALID,
        ),
        (json!({"cache_salt": ""}), "cache_salt", INVALID),
        (json!({"priority": "high"}), "priority", INVALID),
        (json!({"request_id": "a b"}), "request_id", INVALID),
        (json!({"spaces_between_special_tokens": false}), "spaces_between_special_tokens", UNSUPPORTED),
        (json!({"response_format": "text"}), "response_format", INVALID),
        (json!({"response_format": {}}), "response_format.type", INVALID),
        (json!({"response_format": {"type": "xml"}}), "response_format.type", UNSUPPORTED),
        (json!({"response_format": {"type": "json_schema"}}), "response_format.json_schema", INVALID),
        (
            json!({"response_format": {"type": "json_object", "strict": true}}),
            "response_format.strict",
            UNSUPPORTED,
        ),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"not": {}}}}}),
            "response_format.json_schema.schema",
            UNSUPPORTED,
        ),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "strin"}}}}),
            "response_format.json_schema.schema",
            INVALID,
        ),
        (json!({"structured_outputs": {}}), "structured_outputs", INVALID),
        (json!({"structured_outputs": []}), "structured_outputs", INVALID),
        (json!({"structured_outputs": {"choice": "a"}}), "structured_outputs.choice", INVALID),
        (json!({"structured_outputs": {"choice": []}}), "structured_outputs.choice", INVALID),
        (json!({"structured_outputs": {"regex": "("}}), "structured_outputs.regex", INVALID),
        (
            json!({"structured_outputs": {"grammar": "root ::= \"a\""}}),
            "structured_outputs.grammar",
            UNSUPPORTED,
        ),
        (json!({"structured_outputs": {"json": "{"}}), "structured_outputs.json", INVALID),
        (json!({"structured_outputs": {"json": {}, "regex": "a"}}), "structured_outputs.regex", INVALID),
        (
            json!({"structured_outputs": {"json": {}, "whitespace_pattern": " "}}),
            "structured_outputs.whitespace_pattern",
            UNSUPPORTED,
        ),
        (
            json!({"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}}),
            "structured_outputs",
            INVALID,
        ),
        (json!({"guided_json": {"uniqueItems": true}}), "guided_json", UNSUPPORTED),
        (json!({"guided_regex": "a", "guided_choice": ["a"]}), "guided_choice", INVALID),
        (json!({"json_schema": 1}), "json_schema", INVALID),
        (json!({"grammar": "start: nowhere"}), "grammar", INVALID),
        (json!({"guided_whitespace_pattern": " "}), "guided_whitespace_pattern", UNSUPPORTED),
        (json!({"guided_anything": 1}), "guided_anything", UNSUPPORTED),
        (json!({"json_schemas": 1}), "json_schemas", UNSUPPORTED),
        (json!({"best_of": 2}), "best_of", UNSUPPORTED),
        (json!({"prompt_logprobs": -1}), "prompt_logprobs", INVALID),
        (json!({"prompt_logprobs": 21}), "prompt_logprobs", INVALID),
        (json!({"prompt_logprobs": "all"}), "prompt_logprobs", INVALID),
        (json!({"prompt_logprobs": 0, "stream": true}), "prompt_logprobs", INVALID),
        (json!({"use_beam_search": true}), "use_beam_search", UNSUPPORTED),
        (json!({"regex": "[ab]{4}", "stop_token_ids": [97]}), "stop_token_ids", INVALID),
        (json!({"bad_words": [" "]}), "bad_words[0]", INVALID),
        (json!({"bad_words": ["a"], "guided_regex": "a"}), "bad_words", INVALID),
        (json!({"allowed_token_ids": []}), "allowed_token_ids", INVALID),
        (json!({"allowed_token_ids": [272]}), "allowed_token_ids", INVALID),
        (json!({"thinking_token_budget": -1}), "thinking_token_budget", INVALID),
        (json!({"thinking_token_budget": 5}), "thinking_token_budget", UNSUPPORTED),
        (json!({"reasoning_budget_tokens": -2}), "reasoning_budget_tokens", INVALID),
        (json!({"truncate_prompt_tokens": 5}), "truncate_prompt_tokens", UNSUPPORTED),
    ]
}

#[test]
fn fields_of_both_dialects() {
    let server = TestServer::start();
    let chat = json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3});
    let completion = json!({"prompt": "hi", "max_tokens": 3});
    for (path, base, prompt) in [(CHAT, &chat, "messages"), (COMPLETIONS, &completion, "prompt")] {
        assert_eq!(server.post(path, base).status, 200);
        for (more, param, code) in common_mistakes() {
            let param = if param.is_empty() { prompt } else { param };
            check(&server, path, &with(base, &more), param, code);
            // The refusal of a stream has a status too.
            if more.get("stream").is_none() && more.get("stream_options").is_none() {
                check(&server, path, &with(&with(base, &more), &json!({"stream": true})), param, code);
            }
        }
    }
    assert_eq!(server.post(CHAT, &chat).status, 200, "the server goes on");
}

#[test]
fn fields_of_chat() {
    let server = TestServer::start();
    let message = |message: Value| json!({"messages": [message], "max_tokens": 3});
    let part =
        |part: Value| message(json!({"role": "user", "content": [{"type": "text", "text": "a"}, part]}));
    let thought =
        |part: Value| message(json!({"role": "assistant", "content": [{"type": "text", "text": "a"}, part]}));
    let image = |url: &str| part(json!({"type": "image_url", "image_url": {"url": url}}));
    let fine = message(json!({"role": "user", "content": "hi"}));
    #[rustfmt::skip]
    let cases = [
        (json!({}), "messages", INVALID),
        (json!({"messages": "hi"}), "messages", INVALID),
        (json!({"messages": []}), "messages", INVALID),
        (message(json!("hi")), "messages[0]", INVALID),
        (message(json!({"content": "hi"})), "messages[0].role", INVALID),
        (message(json!({"role": 1, "content": "hi"})), "messages[0].role", INVALID),
        (message(json!({"role": "emperor", "content": "hi"})), "messages[0].role", INVALID),
        (message(json!({"role": "user"})), "messages[0].content", INVALID),
        (message(json!({"role": "user", "content": null})), "messages[0].content", INVALID),
        (message(json!({"role": "user", "content": 5})), "messages[0].content", INVALID),
        (message(json!({"role": "user", "content": []})), "messages[0].content", INVALID),
        (message(json!({"role": "user", "name": 5, "content": "hi"})), "messages[0].name", INVALID),
        (part(json!(5)), "messages[0].content[1]", INVALID),
        (part(json!({"text": "a"})), "messages[0].content[1].type", INVALID),
        (part(json!({"type": "text"})), "messages[0].content[1].text", INVALID),
        (part(json!({"type": "text", "text": 5})), "messages[0].content[1].text", INVALID),
        (part(json!({"type": "input_audio", "input_audio": {}})), "messages[0].content[1].type", UNSUPPORTED),
        (part(json!({"type": "file", "file": {}})), "messages[0].content[1].type", UNSUPPORTED),
        (part(json!({"type": "thinking", "thinking": "a"})), "messages[0].content[1].type", UNSUPPORTED),
        (thought(json!({"type": "thinking"})), "messages[0].content[1].thinking", INVALID),
        (thought(json!({"type": "thinking", "thinking": 1})), "messages[0].content[1].thinking", INVALID),
        (thought(json!({"type": "thought", "thinking": "a"})), "messages[0].content[1].type", UNSUPPORTED),
        (part(json!({"type": "image_url"})), "messages[0].content[1].image_url", INVALID),
        (part(json!({"type": "image_url", "image_url": {}})), "messages[0].content[1].image_url.url", INVALID),
        (image("http://169.254.169.254/"), "messages[0].content[1].image_url", INVALID),
        (image("file:///etc/passwd"), "messages[0].content[1].image_url", INVALID),
        (image("data:image/png;base64,!!!!"), "messages[0].content[1].image_url", INVALID),
        (image("data:image/png;base64,AAAA"), "messages[0].content[1].image_url", INVALID),
        (image("data:image/png;base64,"), "messages[0].content[1].image_url", INVALID),
        (image("data:video/mp4;base64,AAAA"), "messages[0].content[1].image_url", INVALID),
        (with(&fine, &json!({"tools": [{"type": "function"}]})), "tools[0].function", INVALID),
        (with(&fine, &json!({"tool_choice": "required"})), "tool_choice", INVALID),
        (with(&fine, &json!({"functions": []})), "functions", INVALID),
        (with(&fine, &json!({"audio": {}})), "audio", UNSUPPORTED),
        (with(&fine, &json!({"modalities": ["text", "audio"]})), "modalities", UNSUPPORTED),
        (with(&fine, &json!({"echo": true})), "echo", UNSUPPORTED),
        (with(&fine, &json!({"chat_template": "x"})), "chat_template", UNSUPPORTED),
        (with(&fine, &json!({"chat_template_kwargs": 1})), "chat_template_kwargs", INVALID),
        (with(&fine, &json!({"chat_template_kwargs": {"messages": 1}})), "chat_template_kwargs.messages", INVALID),
        (with(&fine, &json!({"logprobs": 5})), "logprobs", INVALID),
        (with(&fine, &json!({"top_logprobs": 5})), "top_logprobs", INVALID),
        (with(&fine, &json!({"logprobs": true, "top_logprobs": 21})), "top_logprobs", INVALID),
        (with(&fine, &json!({"logprobs": true, "top_logprobs": -1})), "top_logprobs", INVALID),
        (with(&fine, &json!({"max_completion_tokens": 0})), "max_completion_tokens", INVALID),
        (with(&fine, &json!({"continue_final_message": true, "add_generation_prompt": true})), "continue_final_message", INVALID),
    ];
    for (body, param, code) in cases {
        check(&server, CHAT, &body, param, code);
    }
    assert_eq!(server.post(CHAT, &fine).status, 200, "the server goes on");
}

#[test]
fn fields_of_completions() {
    let server = TestServer::start();
    #[rustfmt::skip]
    let cases = [
        (json!({}), "prompt", INVALID),
        (json!({"prompt": 5}), "prompt", INVALID),
        (json!({"prompt": ""}), "prompt", INVALID),
        (json!({"prompt": []}), "prompt", INVALID),
        (json!({"prompt": [[]]}), "prompt", INVALID),
        (json!({"prompt": ["a", ""]}), "prompt", INVALID),
        (json!({"prompt": ["a", 1]}), "prompt", INVALID),
        (json!({"prompt": [-1]}), "prompt", INVALID),
        (json!({"prompt": [272]}), "prompt", INVALID),
        (json!({"prompt": [4_294_967_296_u64]}), "prompt", INVALID),
        (json!({"prompt": vec!["a"; 257]}), "prompt", INVALID),
        (json!({"prompt": "a", "logprobs": 21}), "logprobs", INVALID),
        (json!({"prompt": "a", "logprobs": -1}), "logprobs", INVALID),
        (json!({"prompt": "a", "logprobs": 1, "max_tokens": 0}), "max_tokens", INVALID),
        (json!({"prompt": "a", "echo": true, "max_tokens": 0, "min_tokens": 1}), "min_tokens", INVALID),
        (json!({"prompt": "a", "suffix": "b"}), "suffix", UNSUPPORTED),
    ];
    for (body, param, code) in cases {
        check(&server, COMPLETIONS, &body, param, code);
    }
    for path in ["/tokenize", "/v1/tokenize"] {
        check(&server, path, &json!({}), "prompt", INVALID);
        check(&server, path, &json!({"prompt": "a", "messages": []}), "prompt", INVALID);
    }
    check(&server, "/detokenize", &json!({"tokens": [1, 272]}), "tokens[1]", INVALID);
    check(&server, "/detokenize", &json!({}), "tokens", INVALID);
}

#[test]
fn too_long_says_how_long() {
    let server = TestServer::start();
    for body in [
        json!({"prompt": "a".repeat(990), "max_tokens": 11}),
        json!({"prompt": "a".repeat(1000), "max_tokens": 1}),
    ] {
        let response = server.post(COMPLETIONS, &body);
        assert_eq!(error(&response), (400, json!("prompt"), json!("context_length_exceeded")));
        let message = response.json()["error"]["message"].as_str().expect("a message").to_owned();
        // LiteLLM and others look for these words.
        assert!(message.starts_with("This model's maximum context length is 1000 tokens"), "{message}");
        assert!(message.contains("1001 tokens"), "{message}");
    }
    assert_eq!(server.post(COMPLETIONS, &json!({"prompt": "a".repeat(990), "max_tokens": 10})).status, 200);
    // Without a number a chat takes what is left.
    let body = json!({"messages": [{"role": "user", "content": "a".repeat(900)}], "ignore_eos": true, "stop": ["the"]});
    assert_eq!(server.post(CHAT, &body).status, 200);
}

#[test]
fn unknown_models() {
    let server = TestServer::start();
    for (path, body) in [
        (CHAT, json!({"model": "other", "messages": [{"role": "user", "content": "hi"}]})),
        (COMPLETIONS, json!({"model": "other", "prompt": "hi"})),
        ("/tokenize", json!({"model": "other", "prompt": "hi"})),
    ] {
        assert_eq!(error(&server.post(path, &body)), (404, json!("model"), json!("model_not_found")));
    }
    assert_eq!(error(&server.get("/v1/models/other/model")), (404, json!("model"), json!("model_not_found")));
    for name in [harness::MODEL, "alias"] {
        assert_eq!(server.get(&format!("/v1/models/{name}")).json()["id"], name);
        assert_eq!(server.ask(COMPLETIONS, &json!({"model": name, "prompt": "hi"}))["model"], name);
    }
    let list = server.get("/models").json();
    assert_eq!(list["data"].as_array().expect("a list").len(), 2);
    assert_eq!(list["data"][0]["max_model_len"], 1000);
}

#[test]
fn routes_and_methods() {
    let server = TestServer::start();
    for path in [
        "/v1",
        "/page",
        "/page/",
        "/page/mod.rs",
        "//v1/models",
        "/v1/../metrics",
        "/v2/completions",
        "/v1/chat",
        "/V1/models",
    ] {
        assert_eq!(error(&server.get(path)).0, 404, "{path}");
    }
    let table = route_table();
    for route in &table {
        let path = route.path.replace("{*id}", harness::MODEL).replace("{id}", "unknown");
        let is_taken = |method: &str| table.iter().any(|r| r.path == route.path && r.method == method);
        let other = ["GET", "DELETE", "PUT"]
            .into_iter()
            .find(|method| !is_taken(method))
            .expect("three are not taken");
        let mut connection = server.connect();
        connection.send(other, &path, &[], b"");
        // Each dialect has its own shape of errors.
        assert_eq!(connection.receive().status, 405, "{other} {path}");
        // Every route is there, with and without its prefix, and none answers with a mistake of ours.
        let mut connection = server.connect();
        connection.send(route.method, &path, &[("content-type", "application/json")], b"{}");
        let expected = match route.path {
            // This server has no folder for them.
            path if path.contains("/files") || path.contains("/batches") => 501,
            path if path.contains("{id}") => 404,
            // Off unless the operator turns them on.
            path if path.ends_with("/tokenizer_info") || path.ends_with("_lora_adapter") => 404,
            path if path.ends_with("/ping") => 200,
            _ if route.method == "GET" => 200,
            _ => 400,
        };
        assert_eq!(connection.receive().status, expected, "{} {path}", route.method);
    }
    // What differs from a route by a slash or a version is told which.
    for (path, meant) in
        [("/v1/models/", "/v1/models"), ("//v1/models", "/v1/models"), ("/v1/v1/models", "/v1/models")]
    {
        let message = server.get(path).json()["error"]["message"].clone();
        assert_eq!(message, format!("no route {path}; did you mean {meant}?"));
    }
    // Paths and queries that cannot be read are errors of the API as well.
    for (path, param) in [
        ("/v1/models/%ff", "id"),
        ("/v1/responses/%ff%fe", "id"),
        ("/v1/files/%ff", "id"),
        ("/v1/responses/x?stream=maybe", "stream"),
        ("/v1/responses/x/input_items?limit=many", "limit"),
        ("/v1/files?limit=-1", "limit"),
    ] {
        assert_eq!(error(&server.get(path)), (400, json!(param), json!("invalid_value")), "{path}");
    }
    let version = server.get("/version").json();
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn bodies_that_are_not_json_objects() {
    let server = TestServer::start();
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(5000), "]".repeat(5000));
    for body in [
        "",
        "{",
        "[]",
        "5",
        "null",
        "\"a\"",
        "{\"a\":1e400}",
        "{}{}",
        "\u{0}",
        deep.as_str(),
        "{\"prompt\": \"\\ud800\"}",
    ] {
        let mut connection = server.connect();
        connection.send("POST", CHAT, &[("content-type", "application/json")], body.as_bytes());
        assert_eq!(error(&connection.receive()), (400, Value::Null, json!("invalid_json")), "{body:.40}");
    }
    // A text that was cut in the middle of an emoji.
    for half in ["\\ud83d", "\\ude00", "\\ud83d\\n"] {
        let mut connection = server.connect();
        let body = format!("{{\"prompt\": \"{half}\"}}");
        connection.send("POST", CHAT, &[("content-type", "application/json")], body.as_bytes());
        let message = connection.receive().json()["error"]["message"].to_string();
        assert!(message.contains("lone surrogate"), "{half}: {message}");
    }
    let mut connection = server.connect();
    connection.send("POST", CHAT, &[("content-type", "application/json")], b"\xff\xfe");
    assert_eq!(error(&connection.receive()).0, 400);
}

/// Serde would read the fields of a struct from a list as well.
#[test]
fn lists_are_no_objects() {
    let server = TestServer::start();
    let chat = json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1, "stream": true});
    let response = json!({"input": "hi", "max_output_tokens": 1, "stream": true});
    let tool = |function: Value| json!([{"type": "function", "function": function}]);
    for (path, base, field, param) in [
        (CHAT, &chat, json!({"stream_options": [true]}), "stream_options"),
        (CHAT, &chat, json!({"stream_options": []}), "stream_options"),
        (CHAT, &chat, json!({"logit_bias": [[1, 2]]}), "logit_bias"),
        (CHAT, &chat, json!({"chat_template_kwargs": [1]}), "chat_template_kwargs"),
        (CHAT, &chat, json!({"messages": [["user", "hi"]]}), "messages[0]"),
        (
            CHAT,
            &chat,
            json!({"messages": [{"role": "user", "content": [["text", "hi"]]}]}),
            "messages[0].content[0]",
        ),
        (CHAT, &chat, json!({"tools": [["function", ["f"]]]}), "tools[0]"),
        (CHAT, &chat, json!({"tools": tool(json!(["f"]))}), "tools[0].function"),
        (CHAT, &chat, json!({"tools": tool(json!({"name": "f"})), "tool_choice": ["auto"]}), "tool_choice"),
        (CHAT, &chat, json!({"response_format": ["json_object"]}), "response_format"),
        (
            CHAT,
            &chat,
            json!({"response_format": {"type": "json_schema", "json_schema": ["x"]}}),
            "response_format.json_schema",
        ),
        (CHAT, &chat, json!({"structured_outputs": [{}]}), "structured_outputs"),
        (
            COMPLETIONS,
            &json!({"prompt": "a", "stream": true}),
            json!({"stream_options": [true, true]}),
            "stream_options",
        ),
        ("/v1/responses", &response, json!({"stream_options": [true]}), "stream_options"),
        ("/v1/responses", &response, json!({"text": ["x"]}), "text"),
        ("/v1/responses", &response, json!({"text": {"format": ["x"]}}), "text.format"),
        ("/v1/responses", &response, json!({"reasoning": ["low"]}), "reasoning"),
        ("/v1/responses", &response, json!({"input": [["message"]]}), "input[0]"),
        ("/v1/rerank", &json!({"query": "a"}), json!({"documents": ["b", ["c"]]}), "documents[1]"),
        (
            "/v1/rerank",
            &json!({"query": "a"}),
            json!({"documents": [{"content": [["text", "c"]]}]}),
            "documents[0]",
        ),
    ] {
        check(&server, path, &with(base, &field), param, "invalid_value");
    }
    // In Anthropic's shape, which names no field.
    let message = json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1});
    for (field, named) in [
        (json!({"thinking": ["enabled"]}), "`thinking`"),
        (json!({"tools": [["f"]]}), "`tools[0]`"),
        (json!({"tool_choice": ["auto"]}), "`tool_choice`"),
        (json!({"messages": [["user", "hi"]]}), "`messages[0]`"),
    ] {
        let response = server.post("/v1/messages", &with(&message, &field));
        assert_eq!(response.status, 400, "{field}: {}", response.text());
        assert!(response.text().contains(named), "{field}: {}", response.text());
    }
    // And a document in each of its forms is read as ever.
    let documents = json!(["b", {"text": "c"}, {"content": [{"type": "text", "text": "d"}, {"type": "text", "text": "e"}]}]);
    let ranked = server.ask("/v1/rerank", &json!({"query": "a", "documents": documents}));
    let texts: Vec<&Value> =
        ranked["results"].as_array().expect("a list").iter().map(|r| &r["document"]["text"]).collect();
    assert!(texts.contains(&&json!("d\ne")) && texts.contains(&&json!("c")), "{ranked}");
}

#[test]
fn a_byte_order_mark_is_no_part_of_a_body() {
    let server = TestServer::start();
    let mut connection = server.connect();
    let body = "\u{feff}{\"prompt\": \"hi\", \"max_tokens\": 1}";
    connection.send("POST", COMPLETIONS, &[("content-type", "application/json")], body.as_bytes());
    assert_eq!(connection.receive().status, 200);
}

#[test]
fn content_types() {
    let server = TestServer::start();
    let post = |headers: &[(&str, &str)]| {
        let mut connection = server.connect();
        connection.send("POST", COMPLETIONS, headers, b"{\"prompt\": \"hi\"}");
        connection.receive()
    };
    for good in [
        "application/json",
        "application/json; charset=utf-8",
        "Application/JSON",
        "application/problem+json",
    ] {
        assert_eq!(post(&[("content-type", good)]).status, 200, "{good}");
    }
    for bad in ["text/plain", "application/x-www-form-urlencoded", "json", "application/jsonx", ""] {
        assert_eq!(error(&post(&[("content-type", bad)])).0, 415, "{bad}");
    }
    assert_eq!(error(&post(&[])).0, 415);
    for (encoding, status) in
        [("gzip", 415), ("zstd", 415), ("gzip, identity", 415), ("identity", 200), ("", 200)]
    {
        let response = post(&[("content-type", "application/json"), ("content-encoding", encoding)]);
        assert_eq!(response.status, status, "{encoding}");
        assert_eq!(response.header("accept-encoding"), (status == 415).then_some("identity"));
    }
}

#[test]
fn bodies_that_are_too_large() {
    let limits = AppLimits { body_len_max: 1000, ..patient_limits() };
    let mut setup = Setup::default();
    setup.options.limits = limits;
    let server = TestServer::with(setup);
    let body = json!({"prompt": "a".repeat(2000)}).to_string();
    // Refused by its length alone, before any of it is sent.
    let mut connection = server.connect();
    let head = format!(
        "POST {COMPLETIONS} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    connection.write(head.as_bytes());
    assert_eq!(error(&connection.receive()).0, 413);
    // Of unknown length.
    let mut connection = server.connect();
    let head = format!(
        "POST {COMPLETIONS} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    );
    connection.write(head.as_bytes());
    connection.write(format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len()).as_bytes());
    assert_eq!(error(&connection.receive()).0, 413);
}

#[test]
fn request_ids_are_taken_over_or_made() {
    let server = TestServer::start();
    let id = |sent: &str| {
        let mut connection = server.connect();
        let headers = [("content-type", "application/json"), ("x-request-id", sent)];
        connection.send(
            "POST",
            CHAT,
            &headers,
            br#"{"messages":[{"role":"user","content":"hi"}],"max_tokens":1}"#,
        );
        let response = connection.receive();
        let id = response.header("x-request-id").expect("an id").to_owned();
        assert_eq!(response.json()["id"], format!("chatcmpl-{id}"));
        id
    };
    assert_eq!(id("abc-123"), "abc-123");
    for bad in ["", "with space", &"x".repeat(129)] {
        assert_eq!(id(bad).len(), 32, "{bad}");
    }
    let response = server.get("/nowhere");
    assert!(response.header("x-request-id").is_some());
}
