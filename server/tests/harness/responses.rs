//! What a client makes of the events of a response.

use super::client::typed_events;
use super::{TestServer, client::Response};
use serde_json::{Value, json};

pub const RESPONSES: &str = "/v1/responses";

/// The response that a client puts together from a stream, with the order of events checked on the way. Each item's and part's last
/// form must be what its pieces make, and the last event's response what all items make.
pub fn joined(events: &[Value]) -> Value {
    for (number, event) in events.iter().enumerate() {
        assert_eq!(event["sequence_number"], number, "{event}");
    }
    let kinds: Vec<&str> = events.iter().map(|event| event["type"].as_str().expect("a type")).collect();
    let num_lifecycle = if kinds.get(1) == Some(&"response.queued") { 3 } else { 2 };
    assert_eq!(kinds[0], "response.created");
    assert_eq!(events[0]["response"]["output"], json!([]));
    let (last, rest) = events.split_last().expect("events");
    let mut items: Vec<Value> = Vec::new();
    let mut is_open = false;
    for (event, kind) in rest.iter().zip(&kinds).skip(1) {
        if ["response.queued", "response.in_progress"].contains(kind) {
            assert_eq!(items.len(), 0);
            continue;
        }
        if *kind == "response.output_item.added" {
            assert!(!is_open, "one item after the other");
            assert_eq!(
                (&event["output_index"], &event["item"]["status"]),
                (&json!(items.len()), &json!("in_progress"))
            );
            items.push(event["item"].clone());
            is_open = true;
            continue;
        }
        assert!(is_open, "{event}");
        let index = items.len() - 1;
        assert_eq!(event["output_index"], index);
        let item = items.last_mut().expect("an item");
        if *kind == "response.output_item.done" {
            let mut ended = event["item"].clone();
            assert_ne!(ended["status"], "in_progress");
            item["status"] = ended["status"].clone();
            assert_eq!(*item, ended, "the pieces make the item");
            *item = ended.take();
            is_open = false;
            continue;
        }
        assert_eq!(event["item_id"], item["id"]);
        part_event(kind, event, item);
    }
    assert!(!is_open);
    assert!(kinds.len() > num_lifecycle);
    let ends = ["response.completed", "response.incomplete", "response.failed"];
    assert!(ends.contains(kinds.last().expect("events")), "{kinds:?}");
    assert_eq!(kinds.iter().filter(|kind| ends.contains(kind)).count(), 1);
    let response = last["response"].clone();
    assert_eq!(response["output"], Value::Array(items));
    response
}

fn part_event(kind: &str, event: &Value, item: &mut Value) {
    if kind.starts_with("response.function_call_arguments.") {
        match kind.rsplit('.').next() {
            Some("delta") => add(&mut item["arguments"], &event["delta"]),
            _ => assert_eq!(item["arguments"], event["arguments"]),
        }
        return;
    }
    assert_eq!(event["content_index"], 0);
    let part_type = if item["type"] == "reasoning" { "reasoning_text" } else { "output_text" };
    match kind {
        "response.content_part.added" => {
            assert_eq!((&item["content"], &event["part"]["text"]), (&json!([]), &json!("")));
            item["content"] = json!([event["part"]]);
        }
        "response.content_part.done" => assert_eq!(item["content"][0], event["part"]),
        _ if kind == format!("response.{part_type}.delta") => {
            add(&mut item["content"][0]["text"], &event["delta"]);
            if let Some(more) = event.get("logprobs") {
                let logprobs = item["content"][0]["logprobs"].as_array_mut().expect("a list");
                logprobs.extend(more.as_array().expect("a list").iter().cloned());
            }
        }
        _ if kind == format!("response.{part_type}.done") => {
            assert_eq!(item["content"][0]["text"], event["text"]);
            assert_eq!(item["content"][0].get("logprobs"), event.get("logprobs"));
        }
        other => panic!("{other}"),
    }
    assert_eq!(item["content"][0]["type"], part_type);
}

fn add(text: &mut Value, more: &Value) {
    let more = more.as_str().expect("text");
    assert!(!more.is_empty());
    *text = format!("{}{more}", text.as_str().expect("text")).into();
}

/// What is the same in all answers to the same request.
pub fn without_names(mut response: Value) -> Value {
    let take_id = |value: &mut Value, prefix: &str| {
        let id = value["id"].take();
        assert!(
            id.as_str().is_some_and(|id| id.starts_with(prefix) && id.len() == prefix.len() + 32),
            "{id}"
        );
    };
    take_id(&mut response, "resp_");
    for field in ["created_at", "completed_at"] {
        assert!(response[field].is_u64(), "{response}");
        response[field].take();
    }
    response["usage"]["input_tokens_details"].take();
    for item in response["output"].as_array_mut().expect("a list") {
        let prefix = match item["type"].as_str().expect("a type") {
            "reasoning" => "rs_",
            "message" => "msg_",
            _ => "fc_",
        };
        take_id(item, prefix);
    }
    response
}

/// The texts of the messages.
pub fn text(response: &Value) -> String {
    let items = response["output"].as_array().expect("a list").iter();
    items
        .filter_map(|item| item["content"][0]["text"].as_str().filter(|_| item["type"] == "message"))
        .collect()
}

pub fn streamed(server: &TestServer, body: &Value) -> Response {
    let mut body = body.clone();
    body["stream"] = true.into();
    let response = server.post(RESPONSES, &body);
    assert_eq!(response.status, 200, "{}", response.text());
    assert_eq!(response.header("content-type"), Some("text/event-stream"));
    response
}

/// The answer in one piece, which is also what a stream makes.
pub fn both_ways(server: &TestServer, body: &Value) -> Value {
    let whole = server.ask(RESPONSES, body);
    let joined = joined(&typed_events(streamed(server, body).text()));
    assert_eq!(without_names(joined), without_names(whole.clone()), "{body}");
    whole
}

pub fn path(response: &Value) -> String {
    format!("{RESPONSES}/{}", response["id"].as_str().expect("an id"))
}
