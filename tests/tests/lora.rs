//! Adapters of the real model, made here: each is the same alone and in company, and changes nothing for the base beside it.

use perilune_tests::{Client, Server, run, user};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

const CHAT: &str = "/v1/chat/completions";
const REWARDS: &str = "/v1/rewards";
const BASE: &str = "perilune-demo";

/// Linear layers of the embedded model's attention: outputs and inputs.
const MODULES: [(&str, usize, usize); 4] =
    [("q_proj", 192, 128), ("kv_a_proj_with_mqa", 80, 128), ("kv_b_proj", 256, 64), ("o_proj", 128, 128)];
const NUM_LAYERS: usize = 4;

/// A folder of adapters, gone when it is dropped.
struct Folder(PathBuf);

impl Folder {
    /// With the adapters `red` and `blue`, of ranks 4 and 3, and `still`, whose B is 0.
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("perilune-lora-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        write_adapter(&path.join("red"), Some(1), 4);
        write_adapter(&path.join("blue"), Some(2), 3);
        write_adapter(&path.join("still"), None, 4);
        Self(path)
    }

    fn module(&self, name: &str) -> String {
        format!("{name}={}", self.0.join(name).display())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// In the format of PEFT, in float32: A and, with a seed, B at random.
fn write_adapter(folder: &Path, seed: Option<u64>, rank: usize) {
    std::fs::create_dir_all(folder).expect("a folder");
    let names: Vec<&str> = MODULES.iter().map(|(name, ..)| *name).collect();
    let config = json!({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 2 * rank, "target_modules": names, "bias": "none",
        "base_model_name_or_path": BASE, "lora_dropout": 0.0,
    });
    std::fs::write(folder.join("adapter_config.json"), config.to_string()).expect("writes");
    let mut state = seed.unwrap_or(0).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 0.4
    };
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for layer in 0..NUM_LAYERS {
        for (name, outputs, inputs) in MODULES {
            for (half, rows, columns) in [("A", rank, inputs), ("B", outputs, rank)] {
                let begin = data.len();
                for _ in 0..rows * columns {
                    let value = if half == "B" && seed.is_none() { 0.0 } else { random() };
                    data.extend(value.to_le_bytes());
                }
                let path = format!(
                    "base_model.model.language_model.model.layers.{layer}.self_attn.{name}.lora_{half}.weight"
                );
                let offsets = [begin, data.len()];
                header
                    .insert(path, json!({"dtype": "F32", "shape": [rows, columns], "data_offsets": offsets}));
            }
        }
    }
    let header = Value::Object(header).to_string();
    let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat();
    std::fs::write(folder.join("adapter_model.safetensors"), file).expect("writes");
}

fn request(index: usize, model: &str) -> Value {
    let text = ["Where is the red circle?", "What is 3 + 4?", "Name a colour."][index % 3];
    json!({
        "model": model, "messages": [user(text, &[])], "max_tokens": 12, "seed": index, "n": 1 + index % 2,
        "temperature": if index.is_multiple_of(3) { 0.0 } else { 1.0 }, "logprobs": true, "top_logprobs": 3, "ignore_eos": true,
    })
}

/// Texts and log-probabilities, to the last digit.
fn outcome(client: &Client, body: &Value) -> String {
    let reply = client.post(CHAT, body);
    assert_eq!(reply.status, 200, "{}", reply.text);
    let reply = reply.json();
    assert_eq!(reply["model"], body["model"]);
    let choices = reply["choices"].as_array().expect("choices");
    json!(choices.iter().map(|choice| json!([choice["message"], choice["logprobs"]])).collect::<Vec<_>>())
        .to_string()
}

fn ask(client: &Client, path: &str, body: &Value) -> Value {
    let reply = client.post(path, body);
    assert_eq!(reply.status, 200, "{body}: {}", reply.text);
    reply.json()
}

#[test]
fn an_adapter_is_the_same_alone_and_in_company() {
    let folder = Folder::new("company");
    let modules = ["red", "blue", "still"].map(|name| folder.module(name));
    let lora: Vec<&str> =
        ["--enable-lora", "--lora-modules"].into_iter().chain(modules.iter().map(String::as_str)).collect();
    let models = [BASE, "red", "blue", "still"];
    let requests: Vec<Value> = (0..24).map(|index| request(index / 4, models[index % 4])).collect();

    let plain = Server::start(&[]);
    let small = Server::start(&[&["--max-num-seqs", "1", "--no-enable-prefix-caching"], &lora[..]].concat());
    let (plain, small) = (plain.client(), small.client());
    let alone: Vec<String> = requests.iter().map(|body| outcome(&small, body)).collect();
    for (group, bodies) in alone.chunks(4).zip(requests.chunks(4)) {
        // Room for adapters changes nothing for the base, and neither does an adapter whose B is 0.
        assert_eq!(group[0], outcome(&plain, &bodies[0]));
        assert_eq!(group[0], group[3]);
        assert!(group[0] != group[1] && group[0] != group[2] && group[1] != group[2]);
    }

    let large =
        Server::start(&[&["--max-num-seqs", "33", "--max-num-batched-tokens", "40"], &lora[..]].concat());
    for round in ["together", "together again, on prefix hits"] {
        let together: Vec<String> = std::thread::scope(|scope| {
            let ask = |body| {
                let client = large.client();
                scope.spawn(move || outcome(&client, body))
            };
            let threads: Vec<_> = requests.iter().map(ask).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });
        for (index, (alone, together)) in alone.iter().zip(&together).enumerate() {
            assert_eq!(alone, together, "request {index}, {round}");
        }
    }
    // Streamed, the same text.
    for body in &requests[..4] {
        let whole = ask(&large.client(), CHAT, body)["choices"][0]["message"]["content"].clone();
        let mut text = String::new();
        for event in large.client().stream(CHAT, body).iter().filter(|event| *event != "[DONE]") {
            let event: Value = serde_json::from_str(event).expect("JSON");
            assert_eq!(event["model"], body["model"]);
            text += event["choices"][0]["delta"]["content"].as_str().unwrap_or_default();
        }
        assert_eq!(text, whole.as_str().unwrap_or_default());
    }
}

#[test]
fn rewards_are_sums_of_log_probabilities() {
    let folder = Folder::new("rewards");
    let modules = ["red", "still"].map(|name| folder.module(name));
    let server =
        Server::start(&["--enable-lora", "--lora-modules", &modules[0], &modules[1], "--max-loras", "2"]);
    let client = server.client();
    let answers = ["The red circle is at the top left.", "No.", "I see two green squares."];
    let body = |model: &str, answers: &[&str]| {
        json!({
            "model": model, "messages": [user("Where is the red circle?", &[])], "completions": answers, "return_token_ids": true,
        })
    };
    let rewards = ask(&client, REWARDS, &body("red", &answers));
    for (index, (reward, answer)) in
        rewards["data"].as_array().expect("a list").iter().zip(answers).enumerate()
    {
        let tokens = |value: &Value| value.as_array().expect("ids").clone();
        let (prompt, own) = (tokens(&rewards["prompt_token_ids"]), tokens(&reward["token_ids"]));
        for (model, name) in [("red", "logprob"), (BASE, "reference_logprob")] {
            let all = [&prompt[..], &own].concat();
            let told = json!({"model": model, "prompt": all, "max_tokens": 1, "prompt_logprobs": 0});
            let told = ask(&client, "/v1/completions", &told)["choices"][0]["prompt_logprobs"].clone();
            let of = |at: usize| told[at][all[at].to_string()]["logprob"].as_f64().expect("a number");
            let sum: f64 = (prompt.len()..all.len()).map(|at| f64::from(of(at) as f32)).sum();
            assert_eq!(reward[name].as_f64(), Some(sum), "{name} of answer {index}");
        }
        let alone = ask(&client, REWARDS, &body("red", &[answer]));
        assert_eq!(alone["data"][0]["reward"], reward["reward"]);
        assert_ne!(reward["reward"], 0.0);
    }
    // B = 0: the policy is its reference.
    let still = ask(&client, REWARDS, &body("still", &answers));
    for reward in still["data"].as_array().expect("a list") {
        assert_eq!(reward["reward"], 0.0);
    }
    assert_eq!(still["margins"][0]["probability"], 0.5);
}

#[test]
fn adapters_come_and_go() {
    let folder = Folder::new("come-and-go");
    let root = folder.0.display().to_string();
    let server = Server::start(&[
        "--enable-lora",
        "--max-loras",
        "1",
        "--enable-runtime-lora-updating",
        "--lora-root",
        &root,
    ]);
    let client = server.client();
    let base = outcome(&client, &request(0, BASE));
    let change = |path: &str, body: Value| client.post(path, &body).status;
    let mut before = None;
    for _ in 0..2 {
        for (name, is_other) in [("red", true), ("still", false)] {
            assert_eq!(change("/v1/load_lora_adapter", json!({"lora_name": "it", "lora_path": name})), 200);
            let it = outcome(&client, &request(0, "it"));
            assert_eq!(it != base, is_other, "{name}");
            if is_other {
                assert_eq!(*before.get_or_insert(it.clone()), it);
            }
            assert_eq!(change("/v1/unload_lora_adapter", json!({"lora_name": "it"})), 200);
            assert_eq!(client.post(CHAT, &request(0, "it")).status, 404);
        }
    }
    assert_eq!(outcome(&client, &request(0, BASE)), base);
    let lines = server.log_lines();
    assert!(
        lines.iter().any(|line| line.contains("\"adapter\":\"it\"") && line.contains("chat/completions"))
    );
}

#[test]
fn what_cannot_be_loaded_ends_the_start() {
    let folder = Folder::new("start");
    std::fs::remove_file(folder.0.join("red/adapter_model.safetensors")).expect("it is there");
    let module = folder.module("red");
    let output = run(&["serve", "--port", "0", "--enable-lora", "--lora-modules", &module]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(text.contains("adapter_model.safetensors") && text.contains("red"), "{text}");
    // The rank is a limit.
    let module = folder.module("blue");
    let lora = ["--enable-lora", "--lora-modules", &module, "--max-lora-rank", "2"];
    let output = run(&[&["serve", "--port", "0"], &lora[..]].concat());
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(text.contains("blue"), "{text}");
}
