//! Anthropic's dialect with pictures, and with clients that leave before the end.

use crate::harness;

use base64::Engine;
use harness::TestServer;
use harness::client::Connection;
use serde_json::{Value, json};
use std::io::Cursor;

const CHAT: &str = "/v1/chat/completions";
const MESSAGES: &str = "/v1/messages";

fn png(shade: u8) -> String {
    let mut bytes = Cursor::new(Vec::new());
    let picture = image::RgbImage::from_pixel(20, 40, image::Rgb([shade, 7, 9]));
    picture.write_to(&mut bytes, image::ImageFormat::Png).expect("encodes");
    base64::engine::general_purpose::STANDARD.encode(bytes.into_inner())
}

fn data_url(data: &str) -> String {
    format!("data:image/png;base64,{data}")
}

fn in_base64(data: &str) -> Value {
    json!({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}})
}

fn by_url(url: &str) -> Value {
    json!({"type": "image", "source": {"type": "url", "url": url}})
}

fn text(text: &str) -> Value {
    json!({"type": "text", "text": text})
}

fn request(content: Value) -> Value {
    json!({"max_tokens": 9, "temperature": 0, "messages": [{"role": "user", "content": content}]})
}

/// The text and the tokens of the prompt.
fn answer(message: &Value) -> (String, u64) {
    let usage = &message["usage"];
    let prompt = usage["input_tokens"].as_u64().zip(usage["cache_read_input_tokens"].as_u64());
    let text = message["content"][0]["text"].as_str().unwrap_or_default().to_owned();
    (text, prompt.map(|(new, cached)| new + cached).expect("numbers"))
}

#[test]
fn a_picture_is_what_it_is_in_a_chat() {
    let server = TestServer::start();
    let mut answers = Vec::new();
    for shade in [1, 200] {
        let data = png(shade);
        let chat = json!({"max_tokens": 9, "temperature": 0, "messages": [{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": data_url(&data)}}, text("what?"),
        ]}]});
        let chat = server.ask(CHAT, &chat);
        let expected = (
            chat["choices"][0]["message"]["content"].as_str().expect("text").to_owned(),
            chat["usage"]["prompt_tokens"].as_u64().expect("a number"),
        );
        for picture in [in_base64(&data), by_url(&data_url(&data))] {
            let body = request(json!([picture, text("what?")]));
            assert_eq!(answer(&server.ask(MESSAGES, &body)), expected, "shade {shade}");
            let counted = json!({"messages": body["messages"]});
            let count = server.ask("/v1/messages/count_tokens", &counted);
            assert_eq!(count["input_tokens"].as_u64(), Some(expected.1));
        }
        answers.push(expected.0);
    }
    assert_ne!(answers[0], answers[1], "the model sees which picture it is");
}

#[test]
fn a_picture_may_be_the_result_of_a_tool() {
    let server = TestServer::start();
    let with = |result: Value| {
        json!({"max_tokens": 9, "temperature": 0, "messages": [
            {"role": "user", "content": "look"},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "look", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": result}]},
        ]})
    };
    let answers = [png(1), png(200)].map(|data| {
        let result = json!([text("seen:"), in_base64(&data)]);
        answer(&server.ask(MESSAGES, &with(result)))
    });
    let (_, without) = answer(&server.ask(MESSAGES, &with(json!([text("seen:")]))));
    assert_ne!(answers[0].0, answers[1].0);
    assert_eq!((answers[0].1, answers[1].1), (without + 3, without + 3), "40 rows of pixels are 3 tokens");
}

#[test]
fn errors_of_pictures_name_the_block() {
    let server = TestServer::start();
    let broken = in_base64("AAAA");
    let no_kind = json!({"type": "image", "source": {"type": "base64", "data": png(1)}});
    for (picture, words) in [
        (broken, "`messages[0].content[1].source`: picture is none of"),
        (
            by_url("https://example.org/a.png"),
            "`messages[0].content[1].source`: remote images are not enabled",
        ),
        (no_kind, "`messages[0].content[1].source.media_type`"),
        (
            json!({"type": "image", "source": {"type": "file", "file_id": "a"}}),
            "`messages[0].content[1].source.type`",
        ),
    ] {
        for stream in [false, true] {
            let mut body = request(json!([text("what?"), picture]));
            body["stream"] = stream.into();
            let response = server.post(MESSAGES, &body);
            let message = response.json()["error"]["message"].as_str().unwrap_or_default().to_owned();
            assert_eq!(response.status, 400, "{}", response.text());
            assert!(message.replace(['`', ':'], "").contains(&words.replace(['`', ':'], "")), "{message}");
        }
    }
}

fn endless(prompt: &str, stream: bool) -> Value {
    json!({"max_tokens": 900, "temperature": 0, "stream": stream, "messages": [{"role": "user", "content": prompt}]})
}

fn held(server: &TestServer, body: &Value) -> Connection {
    server.control.close();
    let mut connection = server.connect();
    connection.send_json(MESSAGES, body);
    server.control.wait_until_blocked();
    connection
}

/// The step under way ends, no other is made for it, and its memory is free.
fn check_freed(server: &TestServer) {
    server.wait_for_metric("perilune:http_connections", 1.0);
    let steps = server.control.batches().len();
    server.control.open();
    server.wait_for_ended("abort", 1.0);
    server.wait_for_metric("vllm:num_requests_running", 0.0);
    server.wait_for_metric("vllm:kv_cache_usage_perc", 0.0);
    assert_eq!(server.control.batches().len(), steps, "no step after the one under way");
}

#[test]
fn a_client_that_leaves_its_stream_is_gone_before_the_next_step() {
    let server = TestServer::start();
    let mut leaver = held(&server, &endless("the one that leaves", true));
    server.control.permit(1);
    assert_eq!(leaver.head().status, 200);
    let begun = String::from_utf8(leaver.chunk()).expect("UTF-8");
    assert!(begun.starts_with("event: message_start\n"), "{begun}");
    server.control.wait_until_blocked();
    drop(leaver);
    check_freed(&server);
}

#[test]
fn a_client_that_leaves_before_a_whole_message_is_gone_too() {
    let server = TestServer::start();
    let leaver = held(&server, &endless("not streamed", false));
    drop(leaver);
    check_freed(&server);
}
