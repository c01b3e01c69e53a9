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

/// A cache of one full-length sequence: the next prompt takes the blocks of the one before.
#[test]
fn a_prefix_comes_back_from_the_host() {
    let prompt = |seed: usize| -> Vec<usize> { (0..200).map(|i| 1 + (i * 37 + seed * 11) % 200).collect() };
    let ask = |server: &Server, seed: usize| {
        let body = json!({
            "model": "perilune-demo", "prompt": prompt(seed), "max_tokens": 5, "seed": seed, "logprobs": 3, "ignore_eos": true,
        });
        let reply = server.client().post("/v1/completions", &body).json();
        let cached = reply["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
        (json!([reply["choices"][0]["text"], reply["choices"][0]["logprobs"]]).to_string(), cached)
    };
    let flags = ["--max-num-seqs", "1", "--max-model-len", "256", "--block-size", "16"];
    let turns = |server: &Server| -> Vec<_> { [0, 1, 2, 0, 1, 2].map(|seed| ask(server, seed)).into() };
    let server = Server::start(&flags);
    let without = turns(&server);
    assert!(without.iter().all(|(_, cached)| *cached == 0), "{without:?}");
    drop(server);

    let server = Server::start(&[&flags[..], &["--kv-offloading-size", "64MiB"]].concat());
    let with = turns(&server);
    let cached: Vec<u64> = with.iter().map(|(_, cached)| *cached).collect();
    assert_eq!(cached, [0, 0, 0, 192, 192, 192]);
    let said = |turns: Vec<(String, u64)>| turns.into_iter().map(|(said, _)| said).collect::<Vec<_>>();
    assert_eq!(said(with), said(without));
    let client = server.client();
    let metric = |name: &str| client.metric(name);
    assert_eq!(metric("vllm:external_prefix_cache_hits_total"), 3.0 * 192.0);
    assert_eq!(metric("vllm:prefix_cache_hits_total"), 0.0);
    let block_bytes = metric("vllm:kv_offload_load_bytes_total") / 36.0;
    assert!(block_bytes > 0.0 && metric("vllm:kv_offload_store_bytes_total") >= 36.0 * block_bytes);
    assert!(metric("vllm:kv_offload_cpu_cache_usage_perc") > 0.0);
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
