//! Responses that are kept: gone on with, listed, followed, cancelled, deleted and pushed out.

use crate::harness;

use harness::batches::{Folder, line, setup};
use harness::client::{Response, typed_events};
use harness::fake::Fault;
use harness::responses::{RESPONSES, both_ways, joined, path, streamed, text};
use harness::scripted::{KIMI, kimi_call};
use harness::{PATIENCE, Setup, TestServer, wait_until};
use perilune::openai::responses::store::StoreLimits;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const IMAGE: &str =
    "data:image/bmp;base64,Qk06AAAAAAAAADYAAAAoAAAAAQAAAAEAAAABABgAAAAAAAQAAAAAAAAAAAAAAAAAAAAAAAAACQAAAA==";

fn with_limits(responses: StoreLimits) -> TestServer {
    let mut setup = Setup::default();
    setup.options.limits.responses = responses;
    TestServer::with(setup)
}

fn is_error(response: &Response, status: u16, param: &str, words: &str) {
    let error = response.json()["error"].clone();
    assert_eq!((response.status, error["param"].as_str()), (status, Some(param)), "{error}");
    assert!(error["message"].as_str().is_some_and(|message| message.contains(words)), "{error}");
}

/// Until a response has ended.
fn ended(server: &TestServer, path: &str) -> Value {
    let start = Instant::now();
    loop {
        let response = server.get(path).json();
        if !["queued", "in_progress"].contains(&response["status"].as_str().expect("a status")) {
            return response;
        }
        assert!(start.elapsed() < PATIENCE, "{response}");
        std::thread::yield_now();
    }
}

/// The fake model's answer is a function of every token before it: equal answers mean equal prompts.
#[test]
fn a_conversation_goes_on() {
    let server = TestServer::start();
    let ask = |more: Value| {
        let mut body = json!({"max_output_tokens": 12, "temperature": 0});
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        both_ways(&server, &body)
    };
    let picture = json!({"role": "user", "content": [{"type": "input_text", "text": "what?"}, {"type": "input_image", "image_url": IMAGE}]});
    let first = ask(json!({"input": [picture], "instructions": "Not carried over."}));
    let second = ask(json!({"input": "and?", "previous_response_id": first["id"]}));
    assert_eq!(second["previous_response_id"], first["id"]);
    let third = ask(
        json!({"input": [{"role": "user", "content": "so?"}], "previous_response_id": second["id"], "instructions": "Now."}),
    );
    let said = |response: &Value| json!({"role": "assistant", "content": text(response)});
    let written_out = json!([picture, said(&first), {"role": "user", "content": "and?"}, said(&second), {"role": "user", "content": "so?"}]);
    let expected = ask(json!({"input": written_out, "instructions": "Now."}));
    assert_eq!(text(&third), text(&expected));
    assert_eq!(third["usage"]["input_tokens"], expected["usage"]["input_tokens"]);
    // The output of one is the input of the next, as clients without a store do it.
    let mut resent = vec![picture.clone()];
    resent.extend(first["output"].as_array().expect("a list").iter().cloned());
    resent.push(json!({"role": "user", "content": "and?"}));
    assert_eq!(text(&ask(json!({"input": resent}))), text(&second));
    // Nothing new to say is said in the earlier response's own words.
    let silent = ask(json!({"previous_response_id": first["id"]}));
    let alone = ask(json!({"input": [picture, said(&first)]}));
    assert_eq!(text(&silent), text(&alone));
    // A branch from the middle, and items by their names.
    let branch = ask(json!({"input": "and?", "previous_response_id": first["id"]}));
    assert_eq!(text(&branch), text(&second));
    let listed = server.get(&format!("{}/input_items?order=asc", path(&third))).json();
    let ids: Vec<&Value> =
        listed["data"].as_array().expect("a list").iter().map(|item| &item["id"]).collect();
    assert_eq!(ids[1], &first["output"][0]["id"]);
    let references: Vec<Value> = ids.iter().map(|id| json!({"type": "item_reference", "id": id})).collect();
    assert_eq!(text(&ask(json!({"input": references, "instructions": "Now."}))), text(&third));
    // What a later response needs outlives the earlier ones.
    for response in [&first, &second] {
        assert_eq!(server.delete(&path(response)).status, 200);
    }
    let fourth = ask(json!({"input": "x", "previous_response_id": third["id"]}));
    assert!(!text(&fourth).is_empty());
    is_error(
        &server.post(RESPONSES, &json!({"input": "x", "previous_response_id": second["id"]})),
        404,
        "previous_response_id",
        "no response",
    );
}

#[test]
fn calls_and_thinking_go_on() {
    let (server, script) = TestServer::scripted(&KIMI, Setup::default().options);
    let tools = json!([{"type": "function", "name": "now", "parameters": {"type": "object"}}]);
    let call = format!(
        "<|tool_calls_section_begin|>{}<|tool_calls_section_end|>",
        kimi_call("functions.now:0", "{}")
    );
    script.set(KIMI.encode(&format!("◁think▷I ask.◁/think▷{call}")));
    let first = both_ways(&server, &json!({"input": "time?", "tools": tools}));
    let kinds: Vec<&Value> =
        first["output"].as_array().expect("a list").iter().map(|item| &item["type"]).collect();
    assert_eq!(kinds, ["reasoning", "function_call"]);
    script.set(KIMI.encode("◁think▷It is told.◁/think▷Noon."));
    let output =
        json!({"type": "function_call_output", "call_id": first["output"][1]["call_id"], "output": "12:00"});
    let second =
        both_ways(&server, &json!({"input": [output], "tools": tools, "previous_response_id": first["id"]}));
    assert_eq!(text(&second), "Noon.");
    // The same as a chat with all of it written out.
    let chat_tool =
        json!({"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}});
    let messages = json!([
        {"role": "user", "content": "time?"},
        {"role": "assistant", "content": null, "reasoning_content": "I ask.", "tool_calls": [
            {"id": "functions.now:0", "type": "function", "function": {"name": "now", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "functions.now:0", "content": "12:00"},
    ]);
    let rendered =
        server.ask("/v1/chat/completions/render", &json!({"messages": messages, "tools": [chat_tool]}));
    let num_tokens = rendered["token_ids"].as_array().expect("a list").len();
    assert_eq!(second["usage"]["input_tokens"], num_tokens);
    let third =
        both_ways(&server, &json!({"input": "thanks", "tools": tools, "previous_response_id": second["id"]}));
    assert!(
        third["usage"]["input_tokens"].as_u64() > Some(num_tokens as u64),
        "the second turn's thinking is there"
    );
    // A result of a call that nobody made, and a call that was cut off, which nobody can answer.
    let lost = json!({"type": "function_call_output", "call_id": "functions.now:7", "output": "x"});
    is_error(
        &server.post(RESPONSES, &json!({"input": [lost], "previous_response_id": first["id"]})),
        400,
        "input[0].call_id",
        "functions.now:7",
    );
    script.set(KIMI.encode(&call.replace("{}", "{\"zone\": 1}")));
    let cut = both_ways(&server, &json!({"input": "time?", "tools": tools, "max_output_tokens": 20}));
    assert_eq!(cut["output"][0]["status"], "incomplete");
    let after =
        both_ways(&server, &json!({"input": "and?", "tools": tools, "previous_response_id": cut["id"]}));
    let listed = server.get(&format!("{}/input_items", path(&after))).json();
    assert_eq!(listed["data"].as_array().map(Vec::len), Some(2));
}

#[test]
fn what_is_kept_can_be_asked_for() {
    let server = TestServer::start();
    let body = json!({"input": "hi", "max_output_tokens": 5, "metadata": {"a": "b"}});
    let whole = server.ask(RESPONSES, &body);
    assert_eq!(server.get(&path(&whole)).json(), whole);
    assert_eq!(server.get(&path(&whole).replace("/v1", "")).json(), whole);
    let of_stream = joined(&typed_events(streamed(&server, &body).text()));
    assert_eq!(server.get(&path(&of_stream)).json(), of_stream);
    is_error(&server.get(&format!("{}?stream=true", path(&whole))), 400, "stream", "background");
    is_error(&server.get(&format!("{}?starting_after=1", path(&whole))), 400, "starting_after", "stream");
    let mut connection = server.connect();
    connection.send_json(&format!("{}/cancel", path(&whole)), &json!({}));
    is_error(&connection.receive(), 400, "id", "background");
    let deleted = server.delete(&path(&whole));
    assert_eq!(
        (deleted.status, deleted.json()),
        (200, json!({"id": whole["id"], "object": "response", "deleted": true}))
    );
    for response in [
        server.get(&path(&whole)),
        server.delete(&path(&whole)),
        server.get(&format!("{}/input_items", path(&whole))),
    ] {
        is_error(&response, 404, "id", "there is no response");
    }
    let unkept = server.ask(RESPONSES, &json!({"input": "hi", "max_output_tokens": 5, "store": false}));
    assert_eq!((server.get(&path(&unkept)).status, &unkept["store"]), (404, &json!(false)));
    // A client that went away gets nothing kept.
    server.control.close();
    let mut connection = server.connect();
    connection.send_json(RESPONSES, &json!({"input": "hi", "max_output_tokens": 50, "stream": true}));
    server.control.wait_until_blocked();
    drop(connection);
    server.control.open();
    server.wait_for_metric("vllm:num_requests_running", 0.0);
}

#[test]
fn input_items_come_in_pages() {
    let server = TestServer::start();
    let input: Vec<Value> = (0..25).map(|i| json!({"role": "user", "content": i.to_string()})).collect();
    let path = path(&server.ask(RESPONSES, &json!({"input": input, "max_output_tokens": 1})));
    let list = |query: &str| server.get(&format!("{path}/input_items{query}")).json();
    let numbers = |page: &Value| -> Vec<usize> {
        let items = page["data"].as_array().expect("a list").iter();
        items
            .map(|item| item["content"][0]["text"].as_str().expect("text").parse().expect("a number"))
            .collect()
    };
    let newest = list("");
    assert_eq!(
        (numbers(&newest), &newest["has_more"], &newest["object"]),
        ((5..25).rev().collect(), &json!(true), &json!("list"))
    );
    assert_eq!(
        (&newest["first_id"], &newest["last_id"]),
        (&newest["data"][0]["id"], &newest["data"][19]["id"])
    );
    let after = list(&format!("?after={}", newest["last_id"].as_str().expect("an id")));
    assert_eq!((numbers(&after), &after["has_more"]), ((0..5).rev().collect(), &json!(false)));
    assert_eq!(numbers(&list("?order=asc&limit=3")), [0, 1, 2]);
    assert_eq!(numbers(&list("?order=asc&limit=100")).len(), 25);
    for (query, param) in
        [("?limit=0", "limit"), ("?limit=101", "limit"), ("?order=up", "order"), ("?after=x", "after")]
    {
        is_error(&server.get(&format!("{path}/input_items{query}")), 400, param, "");
    }
}

#[test]
fn the_store_has_bounds() {
    let ask = |server: &TestServer| server.ask(RESPONSES, &json!({"input": "hi", "max_output_tokens": 1}));
    let server = with_limits(StoreLimits { num_responses_max: 2, ..StoreLimits::default() });
    let kept: Vec<Value> = (0..4).map(|_| ask(&server)).collect();
    let statuses: Vec<u16> = kept.iter().map(|response| server.get(&path(response)).status).collect();
    assert_eq!(statuses, [404, 404, 200, 200]);
    is_error(&server.get(&path(&kept[0])), 404, "id", "was pushed out of the store: at most 2 responses");
    let body = json!({"input": "x", "previous_response_id": kept[1]["id"]});
    is_error(&server.post(RESPONSES, &body), 404, "previous_response_id", "was pushed out");

    let server = with_limits(StoreLimits { bytes_max: 6000, ..StoreLimits::default() });
    let first = ask(&server);
    assert_eq!(server.get(&path(&first)).status, 200);
    // Metadata is a part of the response, and of what it repeats.
    let with_metadata = |num: usize| {
        let metadata: serde_json::Map<_, _> =
            (0..num).map(|i| (i.to_string(), "x".repeat(500).into())).collect();
        server.ask(RESPONSES, &json!({"input": "hi", "max_output_tokens": 1, "metadata": metadata}))
    };
    let big = with_metadata(2);
    assert_eq!([&first, &big].map(|response| server.get(&path(response)).status), [404, 200]);
    is_error(&server.get(&path(&with_metadata(16))), 404, "id", "together 6000 bytes");

    let server = with_limits(StoreLimits { age_max: Duration::ZERO, ..StoreLimits::default() });
    is_error(&server.get(&path(&ask(&server))), 404, "id", "for at most 0 s");

    let server = with_limits(StoreLimits { num_responses_max: 0, ..StoreLimits::default() });
    let unkept = ask(&server);
    assert_eq!((&unkept["store"], server.get(&path(&unkept)).status), (&json!(false), 404));
    is_error(
        &server.post(RESPONSES, &json!({"input": "x", "store": true})),
        400,
        "store",
        "keeps no responses",
    );
    is_error(&server.post(RESPONSES, &json!({"input": "x", "background": true})), 400, "background", "store");
}

#[test]
fn background_responses_are_made_without_their_client() {
    let server = TestServer::start();
    let body = json!({"input": "hi", "max_output_tokens": 20, "temperature": 0});
    let expected = text(&server.ask(RESPONSES, &body));
    server.control.close();
    let mut in_background = body.clone();
    in_background["background"] = true.into();
    let begun = server.ask(RESPONSES, &in_background);
    assert_eq!(
        (&begun["status"], &begun["output"], &begun["usage"]),
        (&json!("queued"), &json!([]), &json!(null))
    );
    is_error(
        &server.post(RESPONSES, &json!({"input": "x", "previous_response_id": begun["id"]})),
        400,
        "previous_response_id",
        "not ended",
    );
    is_error(&server.get(&format!("{}?stream=true", path(&begun))), 400, "stream", "background");
    server.control.open();
    let response = ended(&server, &path(&begun));
    assert_eq!((&response["status"], text(&response)), (&json!("incomplete"), expected.clone()));
    assert_eq!(response["id"], begun["id"]);
    // Followed from the beginning, by two, from the middle, and after its end.
    in_background["stream"] = true.into();
    let first = server.post(RESPONSES, &in_background);
    let events = typed_events(first.text());
    let followed = joined(&events);
    assert_eq!(text(&followed), expected);
    assert_eq!(events[1]["type"], "response.queued");
    let path = path(&followed);
    assert_eq!(server.get(&path).json(), followed);
    assert_eq!(typed_events(server.get(&format!("{path}?stream=true")).text()), events);
    let rest = server.get(&format!("{path}?stream=true&starting_after=4"));
    assert_eq!(typed_events(rest.text()), events[5..]);
    let nothing = server.get(&format!("{path}?stream=true&starting_after=1000000"));
    assert_eq!((nothing.status, nothing.text()), (200, ""));
    let mut connection = server.connect();
    connection.send_json(&format!("{path}/cancel"), &json!({}));
    assert_eq!(connection.receive().json(), followed, "one that has ended stays as it is");
}

#[test]
fn a_background_response_can_be_followed_while_it_runs_and_cancelled() {
    let server = TestServer::start();
    server.control.close();
    server.control.permit(4);
    let body = json!({"input": "hi", "max_output_tokens": 200, "background": true, "stream": true, "ignore_eos": true});
    let mut client = server.connect();
    client.send_json(RESPONSES, &body);
    assert_eq!(client.head().status, 200);
    let mut told = String::new();
    // Its first text is there, and the engine waits.
    while !told.contains("response.output_text.delta") {
        told += std::str::from_utf8(&client.chunk()).expect("UTF-8");
    }
    let id = typed_events(&told)[0]["response"]["id"].as_str().expect("an id").to_owned();
    let path = format!("{RESPONSES}/{id}");
    assert_eq!(server.get(&path).json()["status"], "in_progress");
    // The client goes away, another comes; nobody stops the answer but the one who says so.
    drop(client);
    let mut follower = server.connect();
    follower.send("GET", &format!("{path}?stream=true"), &[], b"");
    assert_eq!(follower.head().status, 200);
    let mut again = String::new();
    while !again.contains("response.output_text.delta") {
        again += std::str::from_utf8(&follower.chunk()).expect("UTF-8");
    }
    server.control.wait_until_blocked();
    let cancelled = server.post(&format!("{path}/cancel"), &json!({}));
    let response = cancelled.json();
    assert_eq!((cancelled.status, &response["status"]), (200, &json!("cancelled")), "{response}");
    assert!(!text(&response).is_empty());
    again += &follower.receive_rest();
    assert_eq!(joined(&typed_events(&again)), response);
    assert_eq!(server.get(&path).json(), response);
    server.control.open();
    server.wait_for_metric("vllm:num_requests_running", 0.0);
    assert_eq!(server.post(&format!("{path}/cancel"), &json!({})).json(), response);
    assert_eq!(server.delete(&path).status, 200);
}

#[test]
fn background_responses_are_few() {
    let server = with_limits(StoreLimits { num_background_max: 2, ..StoreLimits::default() });
    server.control.close();
    let body = json!({"input": "hi", "max_output_tokens": 5, "background": true});
    let begun: Vec<Value> = (0..2).map(|_| server.ask(RESPONSES, &body)).collect();
    let refused = server.post(RESPONSES, &body);
    assert_eq!((refused.status, refused.header("retry-after")), (429, Some("5")), "{}", refused.text());
    // A refused request takes no place.
    let wrong = json!({"input": "hi", "background": true, "temperature": -1.0});
    assert_eq!(server.delete(&path(&begun[0])).status, 200, "also stops it");
    wait_until("a place is free", || server.post(RESPONSES, &wrong).status == 400);
    let third = server.ask(RESPONSES, &body);
    server.control.open();
    for response in [&begun[1], &third] {
        assert!(
            ["completed", "incomplete"]
                .contains(&ended(&server, &path(response))["status"].as_str().expect("a status"))
        );
    }
}

#[test]
fn background_responses_fail_and_are_told() {
    let server = TestServer::start();
    server.control.close();
    let begun = server.ask(RESPONSES, &json!({"input": "hi", "max_output_tokens": 50, "background": true}));
    server.control.wait_until_blocked();
    server.fail_next(Fault::Error);
    server.control.open();
    let response = ended(&server, &path(&begun));
    assert_eq!((&response["status"], &response["error"]["code"]), (&json!("failed"), &json!("server_error")));
}

#[test]
fn background_responses_end_with_the_server() {
    let mut server = TestServer::start();
    server.control.close();
    server.control.permit(2);
    let body = json!({"input": "hi", "max_output_tokens": 500, "background": true, "stream": true, "ignore_eos": true});
    let mut client = server.connect();
    client.send_json(RESPONSES, &body);
    assert_eq!(client.head().status, 200);
    server.control.wait_until_blocked();
    let stopped = server.stop_at_once();
    server.control.open();
    server.runtime.block_on(stopped).expect("it stops");
    let response = joined(&typed_events(&client.receive_rest()));
    assert_eq!(response["status"], "failed", "{response}");
    assert!(
        response["error"]["message"].as_str().is_some_and(|message| message.contains("shutting down")),
        "{response}"
    );
}

/// They would push out what somebody asks for later.
#[test]
fn answers_of_batches_are_kept_only_where_they_ask_for_it() {
    let folder = Folder::new("responses-batch");
    let server = TestServer::with(setup(&folder.0));
    let lines: String = [json!(null), json!(true)]
        .iter()
        .enumerate()
        .map(|(i, store)| {
            line(&i.to_string(), json!({"input": "hi", "max_output_tokens": 1, "store": store}))
        })
        .collect();
    let file = server.upload(&lines.replace("/v1/completions", RESPONSES));
    let request = json!({"input_file_id": file["id"], "endpoint": RESPONSES, "completion_window": "24h"});
    let batch = server.ask("/v1/batches", &request);
    let batch = server.wait_for_status(batch["id"].as_str().expect("an id"), "completed");
    let mut kept: Vec<Value> = Vec::new();
    for result in server.results(&batch["output_file_id"]) {
        let body = &result["response"]["body"];
        kept.push(json!([result["custom_id"], body["store"], server.get(&path(body)).status]));
    }
    kept.sort_by_key(Value::to_string);
    assert_eq!(kept, [json!(["0", false, 404]), json!(["1", true, 200])]);
}
