//! Prompts that are read and not answered: embeddings, scores, rankings.

use crate::harness;

use base64::Engine;
use harness::fake::HIDDEN_SIZE;
use harness::{Setup, TestServer};
use serde_json::{Value, json};

const EMBEDDINGS: &str = "/v1/embeddings";
const SCORE: &str = "/v1/score";
const RERANK: &str = "/v1/rerank";

fn vectors(answer: &Value) -> Vec<Vec<f64>> {
    let data = answer["data"].as_array().expect("data");
    for (index, entry) in data.iter().enumerate() {
        assert_eq!((&entry["object"], &entry["index"]), (&json!("embedding"), &json!(index)));
    }
    let vector = |entry: &Value| {
        let values = entry["embedding"].as_array().expect("numbers");
        values.iter().map(|x| x.as_f64().expect("a number")).collect()
    };
    data.iter().map(vector).collect()
}

fn embed(server: &TestServer, input: Value, more: Value) -> Vec<Vec<f64>> {
    let mut body = json!({"model": harness::MODEL, "input": input});
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    vectors(&server.ask(EMBEDDINGS, &body))
}

fn norm(vector: &[f64]) -> f64 {
    vector.iter().map(|x| x * x).sum::<f64>().sqrt()
}

#[test]
fn shapes_and_usage() {
    let server = TestServer::start();
    let answer = server.ask(EMBEDDINGS, &json!({"input": ["hello", "moon!!"], "user": "somebody"}));
    assert_eq!((&answer["object"], &answer["model"]), (&json!("list"), &json!(harness::MODEL)));
    assert!(answer["id"].as_str().expect("an id").starts_with("embd-"));
    let usage = &answer["usage"];
    assert_eq!((&usage["prompt_tokens"], &usage["total_tokens"]), (&json!(11), &json!(11)));
    let vectors = vectors(&answer);
    assert!(vectors.iter().all(|vector| vector.len() == HIDDEN_SIZE && (norm(vector) - 1.0).abs() < 1e-6));
    assert_ne!(vectors[0], vectors[1]);
    let response = server.post(EMBEDDINGS, &json!({"input": "hello", "user": "somebody"}));
    assert_eq!(response.header("x-ignored-params"), Some("user"));
    assert!(response.header("server-timing").is_some_and(|timing| timing.contains("prefill;dur=")));
    for path in ["/embeddings", "/v1/embeddings"] {
        assert_eq!(
            server.post(path, &json!({"input": "hello"})).json()["data"],
            answer["data"].as_array().map(|data| json!([data[0]])).expect("data")
        );
    }
}

#[test]
fn a_batch_is_its_texts_alone() {
    let texts: Vec<String> = (0..40).map(|i| format!("text {i} {}", "of the moon ".repeat(i % 9))).collect();
    for pooling in ["last", "mean"] {
        let more = json!({"pooling_type": pooling, "normalize": pooling == "last"});
        let server = TestServer::start();
        let batch = embed(&server, json!(texts), more.clone());
        let mut small = Setup::default();
        (small.config.max_batched_tokens, small.config.max_running) = (11, 4);
        let small = TestServer::with(small);
        assert_eq!(embed(&small, json!(texts), more.clone()), batch, "{pooling} in small steps");
        for (text, expected) in texts.iter().zip(&batch).step_by(5) {
            let ids: Vec<u8> = text.bytes().collect();
            assert_eq!(embed(&server, json!(text), more.clone())[0], *expected, "{pooling}");
            assert_eq!(embed(&server, json!(ids), more.clone())[0], *expected, "{pooling} by ids");
            assert_eq!(embed(&server, json!([ids, ids]), more.clone())[1], *expected, "{pooling} by lists");
        }
    }
}

#[test]
fn encodings_dimensions_and_lengths() {
    let server = TestServer::start();
    let float = embed(&server, json!("hello"), json!({}))[0].clone();
    let coded = server.ask(EMBEDDINGS, &json!({"input": "hello", "encoding_format": "base64"}));
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(coded["data"][0]["embedding"].as_str().expect("a string"))
        .expect("base64");
    let decoded: Vec<f64> =
        bytes.as_chunks::<4>().0.iter().map(|&b| f64::from(f32::from_le_bytes(b))).collect();
    let shorter: Vec<f64> = float.iter().map(|&x| f64::from(x as f32)).collect();
    assert_eq!(decoded, shorter);
    let raw = embed(&server, json!("hello"), json!({"normalize": false}))[0].clone();
    assert!(norm(&raw) > 2.0);
    for dimensions in 1..=HIDDEN_SIZE {
        let cut = embed(&server, json!("hello"), json!({"dimensions": dimensions}))[0].clone();
        let expected: Vec<f64> =
            raw[..dimensions].iter().map(|x| f64::from((x / norm(&raw[..dimensions])) as f32)).collect();
        assert_eq!(cut.len(), dimensions);
        assert!(cut.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-6), "{cut:?} {expected:?}");
        let more = json!({"dimensions": dimensions, "normalize": false});
        assert_eq!(embed(&server, json!("hello"), more)[0], raw[..dimensions]);
    }
    // The mean of one token is that token.
    let one = |pooling: &str| embed(&server, json!("h"), json!({"pooling_type": pooling}));
    assert_eq!(one("mean"), one("last"));
}

#[test]
fn messages_with_pictures() {
    let server = TestServer::start();
    let embed = |height: u32, more: Value| {
        let mut png = std::io::Cursor::new(Vec::new());
        image::RgbImage::new(20, height).write_to(&mut png, image::ImageFormat::Png).expect("a picture");
        let data = base64::engine::general_purpose::STANDARD.encode(png.into_inner());
        let url = format!("data:image/png;base64,{data}");
        let content =
            json!([{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "a picture"}]);
        let mut body = json!({"messages": [{"role": "user", "content": content}]});
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        vectors(&server.ask(EMBEDDINGS, &body)).remove(0)
    };
    assert_eq!(embed(40, json!({})), embed(40, json!({})));
    assert_ne!(embed(40, json!({})), embed(41, json!({})));
    assert_ne!(embed(40, json!({})), embed(40, json!({"add_generation_prompt": true})));
}

#[test]
fn scores() {
    let server = TestServer::start();
    let score = |body: &Value| -> Vec<f64> {
        let answer = server.ask(SCORE, body);
        let data = answer["data"].as_array().expect("data");
        data.iter().map(|entry| entry["score"].as_f64().expect("a number")).collect()
    };
    assert_eq!(score(&json!({"text_1": "moon", "text_2": "moon"})), [1.0]);
    let texts = json!(["moon", "sun", "a long text about stars"]);
    let many = score(&json!({"text_1": "moon", "text_2": texts}));
    assert_eq!((many.len(), many[0]), (3, 1.0));
    assert_eq!(score(&json!({"queries": "moon", "documents": texts})), many);
    assert_eq!(score(&json!({"text_1": texts, "text_2": texts})), [1.0; 3]);
    for (i, text) in texts.as_array().expect("texts").iter().enumerate() {
        assert_eq!(score(&json!({"text_1": "moon", "text_2": text})), [many[i]], "alone as in company");
    }
    // The cosine of what /v1/embeddings gives.
    let vectors = embed(&server, json!(["moon", "sun"]), json!({"pooling_type": "mean"}));
    let dot: f64 = vectors[0].iter().zip(&vectors[1]).map(|(a, b)| a * b).sum();
    let by_mean = score(&json!({"text_1": "moon", "text_2": "sun", "pooling_type": "mean"}));
    assert!((by_mean[0] - dot).abs() < 1e-6);
}

#[test]
fn scores_by_log_probability() {
    let server = TestServer::start();
    let echo = json!({"prompt": "the moon is round", "echo": true, "logprobs": 0, "max_tokens": 0});
    let told = server.ask("/v1/completions", &echo);
    let told = told["choices"][0]["logprobs"]["token_logprobs"].as_array().expect("a list").clone();
    let sum: f64 = told[8..].iter().map(|x| x.as_f64().expect("a number")).sum();
    let body = |reduction: &str| json!({"text_1": "the moon", "text_2": " is round", "method": "logprob", "reduction": reduction});
    let score = |body: &Value| server.ask(SCORE, body)["data"][0]["score"].as_f64().expect("a number");
    assert!((score(&body("sum")) - sum).abs() < 1e-5);
    assert!((score(&body("mean")) - sum / 9.0).abs() < 1e-5);
    // The same beginning is found in the cache, and nothing changes.
    let long = "a long beginning of a text that many texts have, ";
    let many = json!({"text_1": long, "text_2": ["and", "and", "but it ends"], "method": "logprob"});
    let answer = server.ask(SCORE, &many);
    assert_eq!(answer["data"][0]["score"], answer["data"][1]["score"]);
    assert!(answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().expect("a count") > 0);
}

#[test]
fn rankings() {
    let server = TestServer::start();
    let documents =
        json!(["sun", {"text": "moon"}, "stars", {"content": [{"type": "text", "text": "moon"}]}]);
    let body = json!({"query": "moon", "documents": documents});
    let answer = server.ask(RERANK, &body);
    let results = answer["results"].as_array().expect("results");
    let order: Vec<u64> = results.iter().map(|result| result["index"].as_u64().expect("an index")).collect();
    assert_eq!(order[..2], [1, 3], "equal ones in their order");
    let scores: Vec<f64> = results.iter().map(|r| r["relevance_score"].as_f64().expect("a number")).collect();
    assert!(scores.windows(2).all(|pair| pair[0] >= pair[1]) && scores[0] == 1.0, "{scores:?}");
    assert_eq!(results[0]["document"], json!({"text": "moon"}));
    assert_eq!(answer["model"], harness::MODEL);
    for path in ["/rerank", "/v2/rerank", "/v1/v2/rerank"] {
        assert_eq!(server.ask(path, &body)["results"], answer["results"]);
    }
    let top = json!({"query": "moon", "documents": documents, "top_n": 2, "return_documents": false});
    let top = server.ask(RERANK, &top)["results"].clone();
    assert_eq!(top.as_array().expect("results").len(), 2);
    assert!(top[0].get("document").is_none());
    // The query after the document and a line break.
    let ranked = json!({"query": "moon", "documents": ["sun", "stars"], "method": "logprob"});
    for result in server.ask(RERANK, &ranked)["results"].as_array().expect("results") {
        let document = ["sun\n", "stars\n"][result["index"].as_u64().expect("an index") as usize];
        let score = json!({"text_1": document, "text_2": "moon", "method": "logprob"});
        assert_eq!(server.ask(SCORE, &score)["data"][0]["score"], result["relevance_score"]);
    }
}

#[test]
fn refusals_name_the_field() {
    let mut setup = Setup::default();
    setup.options.scheduling.max_waiting = 30;
    let server = TestServer::with(setup);
    let (invalid, unsupported) = ("invalid_value", "unsupported_parameter");
    let texts = |count: usize| json!(vec!["a"; count]);
    for (path, body, param, code) in [
        (EMBEDDINGS, json!({}), "input", invalid),
        (EMBEDDINGS, json!({"input": ""}), "input", invalid),
        (EMBEDDINGS, json!({"input": []}), "input", invalid),
        (EMBEDDINGS, json!({"input": ["a", ""]}), "input[1]", invalid),
        (EMBEDDINGS, json!({"input": [[1], []]}), "input[1]", invalid),
        (EMBEDDINGS, json!({"input": [272]}), "input", invalid),
        (EMBEDDINGS, json!({"input": 7}), "input", invalid),
        (EMBEDDINGS, json!({"input": texts(31)}), "input", invalid),
        (EMBEDDINGS, json!({"input": "a", "messages": []}), "input", invalid),
        (EMBEDDINGS, json!({"messages": []}), "messages", invalid),
        (EMBEDDINGS, json!({"input": "a", "encoding_format": "int8"}), "encoding_format", invalid),
        (EMBEDDINGS, json!({"input": "a", "dimensions": 0}), "dimensions", invalid),
        (EMBEDDINGS, json!({"input": "a", "dimensions": 9}), "dimensions", invalid),
        (EMBEDDINGS, json!({"input": "a", "pooling_type": "max"}), "pooling_type", invalid),
        (
            EMBEDDINGS,
            json!({"input": "a", "truncate_prompt_tokens": 5}),
            "truncate_prompt_tokens",
            unsupported,
        ),
        (EMBEDDINGS, json!({"input": "a", "model": "other"}), "model", "model_not_found"),
        (EMBEDDINGS, json!({"input": "a".repeat(1001)}), "input", "context_length_exceeded"),
        (SCORE, json!({"text_2": "a"}), "text_1", invalid),
        (SCORE, json!({"text_1": "a"}), "text_2", invalid),
        (SCORE, json!({"text_1": "a", "text_2": ["b", ""]}), "text_2[1]", invalid),
        (SCORE, json!({"text_1": "a", "text_2": []}), "text_2", invalid),
        (SCORE, json!({"text_1": "a", "documents": "b"}), "documents", invalid),
        (SCORE, json!({"text_1": ["a", "b"], "text_2": "c"}), "text_2", invalid),
        (SCORE, json!({"text_1": "a", "text_2": texts(30)}), "text_2", invalid),
        (SCORE, json!({"text_1": "a", "text_2": "b", "method": "dot"}), "method", invalid),
        (SCORE, json!({"text_1": "a", "text_2": "b", "reduction": "sum"}), "reduction", invalid),
        (
            SCORE,
            json!({"text_1": "a", "text_2": "b", "method": "logprob", "pooling_type": "last"}),
            "pooling_type",
            invalid,
        ),
        (RERANK, json!({"documents": ["a"]}), "query", invalid),
        (RERANK, json!({"query": "a"}), "documents", invalid),
        (RERANK, json!({"query": "a", "documents": []}), "documents", invalid),
        (RERANK, json!({"query": "a", "documents": ["b", {"title": "c"}]}), "documents[1]", invalid),
        (
            RERANK,
            json!({"query": "a", "documents": [{"content": [{"type": "image_url"}]}]}),
            "documents[0]",
            invalid,
        ),
        (RERANK, json!({"query": "a", "documents": ["b"], "top_n": -1}), "top_n", invalid),
    ] {
        let response = server.post(path, &body);
        let error = response.json()["error"].clone();
        let status = if param == "model" { 404 } else { 400 };
        assert_eq!(response.status, status, "{body} {error}");
        assert_eq!((&error["param"], &error["code"]), (&json!(param), &json!(code)), "{path} {body} {error}");
    }
    // What is refused for its number can be had with one less.
    assert_eq!(embed(&server, texts(30), json!({})).len(), 30);
}

#[test]
fn a_full_queue_is_a_429() {
    let mut setup = Setup::default();
    setup.options.scheduling.max_waiting = 4;
    (setup.config.max_running, setup.config.max_batched_tokens) = (1, 1);
    let server = TestServer::with(setup);
    server.control.close();
    // One of four runs for 900 steps, three wait.
    let mut first = server.connect();
    first.send_json(EMBEDDINGS, &json!({"input": vec!["b".repeat(900); 4]}));
    server.control.wait_until_blocked();
    let mut refused = server.connect();
    refused.send_json(EMBEDDINGS, &json!({"input": ["e", "f"]}));
    server.wait_for_pending(1);
    server.control.permit(1);
    let refused = refused.receive();
    assert_eq!((refused.status, refused.header("retry-after")), (429, Some("1")));
    assert_eq!(refused.json()["error"]["code"], "rate_limit_exceeded");
    assert_eq!(server.metric("vllm:admission_rejections_total", ""), 1.0);
    drop(first);
    server.control.open();
    server.wait_for_metric("vllm:num_requests_waiting", 0.0);
}

#[test]
fn who_hangs_up_is_not_computed_and_all_is_counted() {
    let mut setup = Setup::default();
    (setup.config.max_running, setup.config.max_batched_tokens) = (2, 5);
    let server = TestServer::with(setup);
    server.control.close();
    let mut connection = server.connect();
    connection.send_json(EMBEDDINGS, &json!({"input": ["a text that nobody waits for", "and another one"]}));
    server.control.wait_until_blocked();
    drop(connection);
    server.wait_for_metric("perilune:http_connections", 1.0);
    server.control.open();
    let read = embed(&server, json!(["five5", "six66."]), json!({}));
    assert_eq!(read.len(), 2);
    let ended =
        |reason: &str| server.metric("vllm:request_success_total", &format!("finished_reason=\"{reason}\""));
    assert_eq!((ended("abort"), ended("length")), (2.0, 2.0));
    assert_eq!(server.metric("vllm:prompt_tokens_total", ""), 11.0);
    assert_eq!(server.metric("vllm:generation_tokens_total", ""), 0.0);
    assert_eq!(server.metric("vllm:time_to_first_token_seconds_count", ""), 0.0);
    assert_eq!(server.metric("vllm:request_prefill_time_seconds_count", ""), 2.0);
    let label = "handler=\"/v1/embeddings\",method=\"POST\",status=\"2xx\"";
    assert_eq!(server.metric("http_requests_total", label), 1.0);
}
