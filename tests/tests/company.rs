//! The same request gives the same bytes alone, in company, on a prefix hit and streamed, over HTTP and on the real model.

use perilune_tests::tree::{read, root};
use perilune_tests::{Server, user};
use serde_json::{Value, json};

fn request(index: usize, picture: Option<&str>) -> Value {
    let text =
        ["Describe the picture.", "How many shapes are there?", "What colour is the background?"][index % 3];
    let pictures: Vec<String> = picture.iter().map(|png| format!("data:image/png;base64,{png}")).collect();
    json!({
        "model": "perilune-demo", "messages": [user(text, &pictures)], "max_tokens": 24, "seed": index,
        "temperature": if index.is_multiple_of(2) { 0.0 } else { 1.0 }, "logprobs": true, "top_logprobs": 5, "ignore_eos": true,
    })
}

fn pictures() -> Vec<String> {
    let fixture = read(&root().join("tests/fixtures/demo/pictures.jsonl"));
    let line = |line: &str| serde_json::from_str::<Value>(line).unwrap()["png"].as_str().unwrap().to_string();
    fixture.lines().take(8).map(line).collect()
}

/// Text and log-probabilities, to the last digit.
fn outcome(reply: &Value) -> String {
    json!([
        reply["choices"][0]["message"],
        reply["choices"][0]["logprobs"],
        reply["choices"][0]["finish_reason"]
    ])
    .to_string()
}

#[test]
fn alone_in_company_and_again() {
    let pictures = pictures();
    let requests: Vec<Value> =
        (0..33).map(|i| request(i, (i % 3 != 2).then(|| pictures[i % pictures.len()].as_str()))).collect();

    let server = Server::start(&["--max-num-seqs", "1", "--no-enable-prefix-caching"]);
    let alone: Vec<String> = requests
        .iter()
        .map(|body| outcome(&server.client().post("/v1/chat/completions", body).json()))
        .collect();
    drop(server);

    // A small token budget also splits the prompts.
    let server = Server::start(&["--max-num-seqs", "33", "--max-num-batched-tokens", "64"]);
    for round in ["together", "together again, on prefix hits"] {
        let together: Vec<String> = std::thread::scope(|scope| {
            let threads: Vec<_> = requests
                .iter()
                .map(|body| {
                    let client = server.client();
                    scope.spawn(move || outcome(&client.post("/v1/chat/completions", body).json()))
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        for (index, (alone, together)) in alone.iter().zip(&together).enumerate() {
            assert_eq!(alone, together, "request {index}, {round}");
        }
    }
    assert!(server.client().metric("vllm:prefix_cache_hits_total") > 0.0);
}

#[test]
fn streamed_text_is_the_whole_text() {
    let server = Server::start(&[]);
    let client = server.client();
    for index in 0..6 {
        let body = request(index, None);
        let whole = client.post("/v1/chat/completions", &body).json();
        let events = client.stream("/v1/chat/completions", &body);
        assert_eq!(events.last().unwrap(), "[DONE]");
        let mut text = String::new();
        let mut reason = Value::Null;
        for event in &events[..events.len() - 1] {
            let event: Value = serde_json::from_str(event).unwrap();
            text += event["choices"][0]["delta"]["content"].as_str().unwrap_or_default();
            if !event["choices"][0]["finish_reason"].is_null() {
                reason = event["choices"][0]["finish_reason"].clone();
            }
        }
        assert_eq!(text, whole["choices"][0]["message"]["content"].as_str().unwrap());
        assert_eq!(reason, whole["choices"][0]["finish_reason"]);
    }
}
