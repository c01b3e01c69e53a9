//! The memory that bodies of requests take together: bounded, whoever sends them, and given back.

use crate::harness;

use harness::client::Connection;
use harness::{Setup, TestServer, wait_until};
use serde_json::{Value, json};

const COMPLETIONS: &str = "/v1/completions";
const MIB: usize = 1 << 20;
const USED: &str = "perilune:http_body_bytes";

/// Bodies of up to 2 MiB, and memory for 4 MiB of them; half a MiB is for short ones.
fn start() -> TestServer {
    let mut setup = Setup::default();
    setup.options.limits.body_len_max = 2 * MIB;
    setup.options.limits.body_memory = 4 * MIB;
    TestServer::with(setup)
}

fn large() -> Vec<u8> {
    json!({"prompt": "hi", "max_tokens": 1, "user": "x".repeat(3 * MIB / 2)}).to_string().into_bytes()
}

fn head(len: usize, more: &str) -> String {
    format!(
        "POST {COMPLETIONS} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len}\r\n{more}\r\n"
    )
}

/// Sends a body but for its last byte.
fn upload(server: &TestServer, body: &[u8]) -> Connection {
    let mut connection = server.connect();
    connection.write(head(body.len(), "").as_bytes());
    connection.write(&body[..body.len() - 1]);
    connection
}

fn wait_for_used(server: &TestServer, is_right: impl Fn(f64) -> bool) {
    wait_until("so many bytes are used", || is_right(server.metric(USED, "")));
}

#[test]
fn bodies_of_all_connections_are_bounded_together() {
    let server = start();
    let body = large();
    let mut kept = [upload(&server, &body), upload(&server, &body)];
    wait_for_used(&server, |used| used >= 2.0 * (body.len() as f64 - 1.0));
    // Two are what there is room for. The others are told so when theirs has come.
    for _ in 0..6 {
        let mut connection = upload(&server, &body);
        connection.write(&body[body.len() - 1..]);
        let response = connection.receive();
        assert_eq!(
            (response.status, response.header("retry-after")),
            (429, Some("1")),
            "{}",
            response.text()
        );
        assert_eq!(response.json()["error"]["code"], "body_memory_full");
        // The body was read, so that the connection goes on; and short ones have room.
        connection.send_json(COMPLETIONS, &json!({"prompt": "hi", "max_tokens": 1}));
        assert_eq!(connection.receive().status, 200);
        assert!(server.metric(USED, "") <= 2.0 * body.len() as f64);
    }
    for connection in &mut kept {
        connection.write(&body[body.len() - 1..]);
        assert_eq!(connection.receive().status, 200);
    }
    wait_for_used(&server, |used| used == 0.0);
    // And then there is room again.
    let mut again = upload(&server, &body);
    again.write(&body[body.len() - 1..]);
    assert_eq!(again.receive().status, 200);
}

#[test]
fn who_asks_first_is_refused_before_the_body_comes() {
    let server = start();
    let body = large();
    let uploads = [upload(&server, &body), upload(&server, &body)];
    wait_for_used(&server, |used| used >= 2.0 * (body.len() as f64 - 1.0));
    let mut asks = server.connect();
    asks.write(head(body.len(), "expect: 100-continue\r\n").as_bytes());
    let response = asks.receive();
    assert_eq!((response.status, response.header("connection")), (429, Some("close")));
    // Who leaves in the middle gives back what was there.
    drop(uploads);
    wait_for_used(&server, |used| used == 0.0);
    let mut asks = server.connect();
    asks.write(head(body.len(), "expect: 100-continue\r\n").as_bytes());
    assert_eq!(asks.head().status, 100);
    asks.write(&body);
    assert_eq!(asks.receive().status, 200);
}

/// The text of a request is gone while it is answered, and counts no more.
#[test]
fn a_request_that_runs_holds_nothing() {
    let server = start();
    server.control.close();
    let mut body: Value = serde_json::from_slice(&large()).expect("JSON");
    for (path, field, text) in [
        (COMPLETIONS, "prompt", json!("hi")),
        ("/v1/chat/completions", "messages", json!([{"role": "user", "content": "hi"}])),
        ("/v1/responses", "input", json!("hi")),
        ("/v1/messages", "messages", json!([{"role": "user", "content": "hi"}])),
        ("/v1/embeddings", "input", json!("hi")),
    ] {
        body.as_object_mut().expect("an object").remove("prompt");
        body[field] = text;
        let mut connection = server.connect();
        connection.send_json(path, &body);
        server.control.wait_until_blocked();
        wait_for_used(&server, |used| used == 0.0);
        server.control.open();
        assert_eq!(connection.receive().status, 200, "{path}");
        server.wait_for_metric("vllm:num_requests_running", 0.0);
        server.control.close();
        body.as_object_mut().expect("an object").remove(field);
    }
    server.control.open();
}

/// A list of small numbers takes many times its text when it is parsed.
#[test]
fn what_json_takes_when_it_is_parsed_counts() {
    let server = start();
    let ids = |count: usize| json!({"prompt": vec![1; count], "max_tokens": 1}).to_string();
    let post = |body: &str| {
        let mut connection = server.connect();
        connection.send("POST", COMPLETIONS, &[("content-type", "application/json")], body.as_bytes());
        connection.receive()
    };
    let long = post(&ids(500_000));
    assert_eq!(
        (long.status, long.json()["error"]["code"].as_str()),
        (413, Some("request_too_large")),
        "{}",
        long.text()
    );
    assert!(long.text().contains("--max-body-memory"), "{}", long.text());
    assert_eq!(post(&ids(100)).status, 200);
    wait_for_used(&server, |used| used == 0.0);
}
