//! Structured output over HTTP: every spelling reaches the same grammar, in both dialects, streamed and not, alone and in company.

use crate::harness;

use harness::{TestServer, fake};
use serde_json::{Value, json};
use std::sync::atomic::Ordering::Relaxed;

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

fn schema() -> Value {
    json!({"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}, "ok": {"type": "boolean"}},
           "required": ["n", "ok"], "additionalProperties": false})
}

/// One of the dialects with fields added; long enough for any of the answers here.
fn body(path: &str, more: &Value) -> Value {
    let mut body = match path {
        CHAT => json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 300, "seed": 11}),
        _ => json!({"prompt": "hi", "max_tokens": 300, "seed": 11}),
    };
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    body
}

fn content(answer: &Value) -> (String, String) {
    let choice = &answer["choices"][0];
    let text = choice["message"]["content"].as_str().or(choice["text"].as_str()).unwrap_or_default();
    (text.to_owned(), choice["finish_reason"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn every_spelling_of_a_schema_is_enforced() {
    let server = TestServer::start();
    let named = json!({"name": "result", "strict": true, "schema": schema()});
    let spellings = [
        json!({"response_format": {"type": "json_schema", "json_schema": named}}),
        json!({"response_format": {"type": "json_schema", "json_schema": schema()}}),
        json!({"response_format": {"type": "json_schema", "schema": schema()}}),
        json!({"response_format": {"type": "json_object", "schema": schema()}}),
        json!({"structured_outputs": {"json": schema()}}),
        json!({"structured_outputs": {"json": schema().to_string()}}),
        json!({"structured_outputs": {"json": schema(), "disable_any_whitespace": true}}),
        json!({"guided_json": schema()}),
        json!({"json_schema": schema()}),
    ];
    for path in [CHAT, COMPLETIONS] {
        for spelling in &spellings {
            let request = body(path, spelling);
            let (text, finish) = content(&server.ask(path, &request));
            assert_eq!(finish, "stop", "{spelling}: {text}");
            let value: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
            assert!(value["n"].as_u64().is_some_and(|n| n < 100) && value["ok"].is_boolean(), "{text}");
            assert_eq!(value.as_object().map(serde_json::Map::len), Some(2), "{text}");
            let is_compact = spelling["structured_outputs"]["disable_any_whitespace"] == true;
            assert!(!is_compact || !text.contains(' '), "{text:?}");
            let streamed: String = server
                .stream(path, &request)
                .iter()
                .filter_map(|event| {
                    let choice = event["choices"].get(0)?;
                    choice["delta"]["content"].as_str().or(choice["text"].as_str()).map(str::to_owned)
                })
                .collect();
            assert_eq!(streamed, text);
        }
    }
}

#[test]
fn expressions_choices_and_grammars_are_enforced() {
    let server = TestServer::start();
    let cases = [
        (json!({"structured_outputs": {"regex": "^[ab]{3}$"}}), "^[ab]{3}$"),
        (json!({"guided_regex": "x[0-9]"}), "^x[0-9]$"),
        (json!({"regex": "x[0-9]"}), "^x[0-9]$"),
        (json!({"structured_outputs": {"choice": ["red", "green"]}}), "^(red|green)$"),
        (json!({"guided_choice": ["\u{1F312}"]}), "^\u{1F312}$"),
        (json!({"structured_outputs": {"grammar": "start: \"a\" (\"b\" | \"c\")"}}), "^a[bc]$"),
        (json!({"guided_grammar": "start: \"a\" \"b\""}), "^ab$"),
        (json!({"grammar": "start: /[0-9]/ \"b\""}), "^[0-9]b$"),
        (json!({"response_format": {"type": "text"}, "regex": "a"}), "^a$"),
        (json!({"response_format": null, "grammar": "", "regex": "a"}), "^a$"),
    ];
    for path in [CHAT, COMPLETIONS] {
        for (more, expected) in &cases {
            let (text, finish) = content(&server.ask(path, &body(path, more)));
            let expected = regex::Regex::new(expected).expect("an expression");
            assert!(expected.is_match(&text) && finish == "stop", "{more}: {text:?} {finish}");
        }
    }
}

#[test]
fn errors_name_the_place_in_the_schema() {
    let server = TestServer::start();
    let schema = json!({"type": "object", "properties": {"a/b": {"items": {"uniqueItems": true}}}});
    let more =
        json!({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}});
    let response = server.post(CHAT, &body(CHAT, &more));
    assert_eq!(response.status, 400);
    let error = &response.json()["error"];
    assert_eq!(error["param"], "response_format.json_schema.schema");
    let message = error["message"].as_str().expect("a message");
    assert!(message.contains("#/properties/a~1b/items/uniqueItems"), "{message}");
}

#[test]
fn the_end_is_where_the_grammar_ends_whatever_else_is_asked() {
    let server = TestServer::start();
    for more in [
        json!({"regex": "ab?", "ignore_eos": true}),
        json!({"regex": "ab?", "min_tokens": 200}),
        json!({"regex": "[ab]{4}", "stop_token_ids": [264]}),
        json!({"regex": "ab", "n": 3}),
        json!({"regex": "ab", "temperature": 0}),
        json!({"regex": "ab", "logprobs": true, "top_logprobs": 5}),
    ] {
        let answer = server.ask(CHAT, &body(CHAT, &more));
        for choice in answer["choices"].as_array().expect("choices") {
            assert_eq!(choice["finish_reason"], "stop", "{more}");
            let text = choice["message"]["content"].as_str().expect("text");
            assert!(["a", "ab"].contains(&text) || text.len() == 4, "{more}: {text}");
        }
    }
    // An unfinished answer says so.
    let (text, finish) =
        content(&server.ask(CHAT, &body(CHAT, &json!({"regex": "[a-c]{9}", "max_tokens": 4}))));
    assert_eq!((text.len(), finish.as_str()), (4, "length"));
}

#[test]
fn words_and_tokens_can_be_kept_out() {
    let server = TestServer::start();
    let more = json!({"allowed_token_ids": [97, 98, 99], "max_tokens": 50, "temperature": 1, "seed": 3});
    let (text, finish) = content(&server.ask(CHAT, &body(CHAT, &more)));
    assert!(text.len() == 50 && text.bytes().all(|byte| (b'a'..=b'c').contains(&byte)) && finish == "length");
    // One token, and a run of two: the second is kept out after the first only.
    let more = json!({"bad_words": ["a", "bc"], "max_tokens": 300, "ignore_eos": true, "temperature": 1, "return_token_ids": true});
    let answer = server.ask(CHAT, &body(CHAT, &more));
    let tokens: Vec<u64> = answer["choices"][0]["token_ids"]
        .as_array()
        .expect("tokens")
        .iter()
        .filter_map(Value::as_u64)
        .collect();
    assert_eq!(tokens.len(), 300);
    assert!(!tokens.contains(&97) && !tokens.windows(2).any(|pair| pair == [98, 99]), "{tokens:?}");
}

/// A request with a grammar and requests without run in the same steps, and none changes what another says.
#[test]
fn the_free_and_the_constrained_do_not_disturb_each_other() {
    let server = TestServer::start();
    let free = |seed: u64| {
        body(CHAT, &json!({"seed": seed, "temperature": 1, "max_tokens": 40, "ignore_eos": true}))
    };
    let held = body(
        CHAT,
        &json!({"response_format": {"type": "json_object"}, "max_tokens": 60, "seed": 1, "temperature": 1}),
    );
    let alone: Vec<Value> = (0..4).map(|seed| server.ask(CHAT, &free(seed))["choices"].clone()).collect();
    let held_alone = server.ask(CHAT, &held)["choices"].clone();
    server.control.close();
    let mut connections: Vec<_> = (0..4)
        .map(free)
        .chain([held])
        .map(|request| {
            let mut connection = server.connect();
            connection.send_json(CHAT, &request);
            connection
        })
        .collect();
    server.wait_for_metric("vllm:request_params_n_count", 10.0);
    let steps_before = server.control.batches().len();
    server.control.open();
    let together: Vec<Value> =
        connections.iter_mut().map(|c| c.receive().json()["choices"].clone()).collect();
    assert_eq!(together[..4], alone[..]);
    assert_eq!(together[4], held_alone);
    let most = server.control.batches()[steps_before..].iter().map(Vec::len).max();
    assert_eq!(most, Some(5), "all of them were in one step");
}

/// The next step is begun before it is known whether a grammar is complete; while it runs its client is told.
#[test]
fn an_answer_ends_while_the_next_step_runs() {
    let server = TestServer::working_alone();
    // A mask that is late is a step more, of which the other answer has not enough for a busy machine.
    server.control.waits_for_masks.store(true, Relaxed);
    let free = body(COMPLETIONS, &json!({"max_tokens": 200, "ignore_eos": true}));
    let held = body(COMPLETIONS, &json!({"structured_outputs": {"choice": ["some", "none"]}}));
    let alone = [&free, &held].map(|request| server.ask(COMPLETIONS, request)["choices"].clone());
    assert_eq!(alone[1][0]["finish_reason"], "stop");
    let ended = || server.metric("vllm:request_success_total", "finished_reason=\"stop\"");
    server.control.close();
    let mut connections = [&free, &held].map(|request| {
        let mut connection = server.connect();
        connection.send_json(COMPLETIONS, request);
        connection
    });
    server.control.wait_until_blocked();
    server.wait_for_metric("vllm:request_params_n_count", 4.0);
    for _ in 0..150 {
        server.control.permit(1);
        server.control.wait_until_blocked();
        // The one that was alone is counted by the thread that makes the steps.
        if ended() == 2.0 {
            break;
        }
    }
    assert_eq!(ended(), 2.0, "it was not told before the end of the step that runs");
    let running = server.control.batches().last().expect("a step runs").len();
    assert_eq!(running, 2, "a row that nobody wants any more");
    let [for_free, for_held] = &mut connections;
    assert_eq!(for_held.receive().json()["choices"], alone[1]);
    server.control.open();
    assert_eq!(for_free.receive().json()["choices"], alone[0]);
    assert_eq!(server.metric("perilune:dropped_tokens_total", ""), 1.0);
}

#[test]
fn a_device_that_works_alone_is_held_to_the_same() {
    let [usual, alone] = [TestServer::start(), TestServer::working_alone()];
    let json =
        json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema()}}});
    for more in [json, json!({"structured_outputs": {"regex": "[a-f]{3,20}"}, "n": 4, "temperature": 1})] {
        let request = body(CHAT, &more);
        let [usual, alone] = [&usual, &alone].map(|server| server.ask(CHAT, &request)["choices"].clone());
        assert_eq!(usual, alone);
    }
}

#[test]
fn a_request_that_holds_nothing_has_no_mask() {
    let server = TestServer::start();
    let plain = server.ask(CHAT, &body(CHAT, &json!({"seed": 5, "max_tokens": 20})));
    let text = server
        .ask(CHAT, &body(CHAT, &json!({"seed": 5, "max_tokens": 20, "response_format": {"type": "text"}})));
    assert_eq!(plain["choices"], text["choices"]);
    const { assert!(fake::VOCAB_SIZE < fake::MODEL_VOCAB_SIZE) };
}

/// Not the server's failure: no client should try again, and nobody should be woken.
#[test]
fn a_request_that_leaves_no_token_is_at_fault_itself() {
    let server = TestServer::start();
    let body = json!({"prompt": "a", "allowed_token_ids": [fake::EOS], "min_tokens": 2, "max_tokens": 4});
    let response = server.post("/v1/completions", &body);
    assert_eq!(response.status, 400, "{}", response.text());
    assert_eq!(response.json()["error"]["code"], "no_valid_token");
    assert_eq!(response.json()["error"]["type"], "invalid_request_error");
    assert_eq!(server.metric("vllm:corrupted_requests_total", ""), 0.0);
}
