//! What the real model says of prompts that it reads: log-probabilities that are those of generating, and vectors that do not depend
//! on company.

use perilune_tests::{Client, Server};
use serde_json::{Value, json};

const COMPLETIONS: &str = "/v1/completions";

fn ask(client: &Client, path: &str, body: &Value) -> Value {
    let reply = client.post(path, body);
    assert_eq!(reply.status, 200, "{body}: {}", reply.text);
    reply.json()
}

fn texts() -> Vec<String> {
    let subjects = ["a red circle", "the blue square", "two green triangles", "a picture", "nothing at all"];
    let ends = ["", " on a white background", " and something else, and again something else, and so on"];
    subjects.iter().flat_map(|subject| ends.map(|end| format!("{subject}{end}"))).collect()
}

/// The rows of one answer in one list, numbers as they were printed.
fn rows(choice: &Value) -> Vec<String> {
    let logprobs = &choice["logprobs"];
    let list =
        |name: &str| logprobs[name].as_array().unwrap_or_else(|| panic!("no {name}: {choice}")).clone();
    let (tokens, own, top) = (list("tokens"), list("token_logprobs"), list("top_logprobs"));
    assert!(tokens.len() == own.len() && own.len() == top.len());
    (0..tokens.len()).map(|i| json!([tokens[i], own[i], top[i]]).to_string()).collect()
}

#[test]
fn reading_agrees_with_generating() {
    let server = Server::start(&[]);
    let small = Server::start(&["--max-num-seqs", "2", "--max-num-batched-tokens", "5"]);
    let (client, small) = (server.client(), small.client());
    for (index, text) in texts().iter().enumerate().step_by(4) {
        let request = json!({
            "prompt": text, "max_tokens": 16, "temperature": 0, "ignore_eos": true, "logprobs": 5, "return_token_ids": true,
            "skip_special_tokens": false,
        });
        let generated = ask(&client, COMPLETIONS, &request)["choices"][0].clone();
        let mut all = generated["prompt_token_ids"].as_array().expect("ids").clone();
        let prompt_len = all.len();
        all.extend(generated["token_ids"].as_array().expect("ids").iter().cloned());
        let echo = json!({"prompt": all, "max_tokens": 0, "echo": true, "logprobs": 5});
        let read = ask(&client, COMPLETIONS, &echo)["choices"][0].clone();
        assert_eq!(rows(&read)[prompt_len..], rows(&generated)[..], "prompt {index}");
        // Token by token in small steps, and with half of it generated: the same numbers.
        assert_eq!(rows(&ask(&small, COMPLETIONS, &echo)["choices"][0]), rows(&read));
        let half = json!({
            "prompt": all[..prompt_len + 6], "max_tokens": 10, "temperature": 0, "ignore_eos": true, "echo": true, "logprobs": 5,
            "skip_special_tokens": false,
        });
        assert_eq!(rows(&ask(&small, COMPLETIONS, &half)["choices"][0]), rows(&read));
        // The same numbers by their other name.
        let named = json!({"prompt": all, "max_tokens": 1, "prompt_logprobs": 0});
        let named = ask(&client, COMPLETIONS, &named)["choices"][0]["prompt_logprobs"].clone();
        for (position, id) in all.iter().enumerate().skip(1) {
            let own = &named[position][id.to_string()]["logprob"];
            assert_eq!(*own, read["logprobs"]["token_logprobs"][position], "position {position}");
        }
    }
}

#[test]
fn vectors_are_the_same_in_any_company() {
    let server = Server::start(&[]);
    let small = Server::start(&["--max-num-seqs", "3", "--max-num-batched-tokens", "7"]);
    let (client, small) = (server.client(), small.client());
    let texts = texts();
    for pooling in ["last", "mean"] {
        let body =
            |input: Value| json!({"input": input, "pooling_type": pooling, "encoding_format": "base64"});
        let batch = ask(&client, "/v1/embeddings", &body(json!(texts)));
        assert_eq!(ask(&small, "/v1/embeddings", &body(json!(texts)))["data"], batch["data"]);
        for (index, text) in texts.iter().enumerate() {
            let alone = ask(&client, "/v1/embeddings", &body(json!(text)));
            assert_eq!(
                alone["data"][0]["embedding"], batch["data"][index]["embedding"],
                "{pooling} of {text}"
            );
        }
        let score = |a: &str, b: &str| {
            let body = json!({"text_1": a, "text_2": b, "pooling_type": pooling});
            ask(&client, "/v1/score", &body)["data"][0]["score"].as_f64().expect("a number")
        };
        let (same, other) = (score(&texts[0], &texts[0]), score(&texts[0], &texts[4]));
        assert_eq!(same, 1.0);
        assert!(other < 1.0 && other == score(&texts[4], &texts[0]), "{other}");
    }
    let query = json!({"query": texts[3], "documents": texts});
    let ranked = ask(&client, "/v1/rerank", &query);
    assert_eq!(
        (&ranked["results"][0]["index"], &ranked["results"][0]["relevance_score"]),
        (&json!(3), &json!(1.0))
    );
    assert_eq!(ask(&small, "/v2/rerank", &query)["results"], ranked["results"]);
}
