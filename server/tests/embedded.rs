//! The embedded model over HTTP: the same request gives the same tokens and log-probabilities alone and in any company, streamed or
//! not, found in the cache or computed, with pictures and without.

use crate::harness;

use base64::Engine;
use harness::TestServer;
use models::{LoadOptions, MemoryLimit};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";

fn options(max_num_batched_tokens: usize) -> LoadOptions {
    LoadOptions {
        max_model_len: Some(512),
        max_num_seqs: 40,
        max_num_batched_tokens,
        memory: MemoryLimit::Bytes(200 << 20),
        threads: Some(2),
        ..LoadOptions::default()
    }
}

/// A picture of two colours as BMP, its rows split at `split`.
fn picture(width: usize, height: usize, split: usize) -> String {
    let stride = (3 * width).next_multiple_of(4);
    let mut pixels = Vec::new();
    for y in 0..height {
        let colour = if y < split { [30, 30, 220] } else { [250, 250, 250] };
        let mut row: Vec<u8> = colour.repeat(width);
        row.resize(stride, 0);
        pixels.extend(row);
    }
    let mut file = b"BM".to_vec();
    let len = pixels.len() as u32;
    for value in [54 + len, 0, 54, 40, width as u32, height as u32, 0x0018_0001, 0, len, 0, 0, 0, 0] {
        file.extend(value.to_le_bytes());
    }
    file.extend(pixels);
    format!("data:image/bmp;base64,{}", base64::engine::general_purpose::STANDARD.encode(file))
}

/// Request number `i`: some with a picture, some greedy, of different lengths.
fn request(i: usize) -> Value {
    let text =
        json!({"type": "text", "text": format!("How many shapes are there, {}?", "please ".repeat(i % 7))});
    let mut content = vec![text];
    if i.is_multiple_of(3) {
        let url = picture(57 + i, 83 + 2 * i, 20 + i);
        content.insert(0, json!({"type": "image_url", "image_url": {"url": url}}));
    }
    json!({
        "messages": [{"role": "user", "content": content}], "max_tokens": 9 + i % 5, "ignore_eos": true, "seed": i,
        "temperature": if i.is_multiple_of(2) { 0.0 } else { 0.8 }, "logprobs": true, "top_logprobs": 3, "return_token_ids": true,
    })
}

fn answer(server: &TestServer, request: &Value) -> Value {
    server.ask(CHAT, request)["choices"][0].clone()
}

#[test]
fn the_same_in_any_company() {
    if perilune::source::embedded::FILES.is_empty() {
        return;
    }
    const NUM: usize = 33;
    let requests: Vec<Value> = (0..NUM).map(request).collect();
    let alone: Vec<Value> = {
        let server = TestServer::embedded(options(256));
        requests.iter().map(|request| answer(&server, request)).collect()
    };
    assert!(alone.iter().all(|choice| choice["finish_reason"] == "length"));
    // Small steps cut the prompts in pieces; all at once fill the batches.
    for max_batched in [41, 512] {
        let server = TestServer::embedded(options(max_batched));
        for round in ["cold", "warm"] {
            let together: Vec<Value> = std::thread::scope(|scope| {
                let asked: Vec<_> =
                    requests.iter().map(|request| scope.spawn(|| answer(&server, request))).collect();
                asked.into_iter().map(|asked| asked.join().expect("answers")).collect()
            });
            for (i, (together, alone)) in together.iter().zip(&alone).enumerate() {
                assert_eq!(together, alone, "request {i}, {round}, {max_batched} tokens a step");
            }
        }
    }
}

#[test]
fn the_first_of_several_answers_is_the_only_one() {
    if perilune::source::embedded::FILES.is_empty() {
        return;
    }
    let server = TestServer::embedded(options(256));
    for i in [0, 1, 3, 5] {
        let one = answer(&server, &request(i));
        let mut several = request(i);
        several["n"] = 3.into();
        assert_eq!(server.ask(CHAT, &several)["choices"][0], one, "request {i}");
        let events = server.stream(CHAT, &request(i));
        let text: String =
            events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str()).collect();
        assert_eq!(one["message"]["content"], text, "request {i}");
    }
}
