//! The server on a GPU's code, run by the emulator: one chat with a picture, told as the processor tells it. And the script for machines
//! with a GPU, as far as a machine without one can show.

use perilune_tests::{Server, binary, chat, data_url, tree, user};
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, Output};

/// Kernels that were compiled are kept between runs.
const KERNEL_CACHE: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/emulated");
/// As long as the prompt and the answer, and no longer: the emulator is slow.
const SIZES: [&str; 8] = [
    "--memory=200MB",
    "--max-num-seqs=2",
    "--max-model-len=256",
    "--max-num-batched-tokens=64",
    "--dtype=float32",
    "--threads=2",
    "--no-page",
    "--kernel-cache",
];

/// Text and log-probabilities of a greedy answer about a picture of one pixel, and the text of one that a grammar holds, with how many steps were
/// begun for it before the last token was read.
fn answer(device: &str, described: &str) -> (String, Vec<f64>, String, f64) {
    let server = Server::start(&[&["--device", device][..], &SIZES, &[KERNEL_CACHE]].concat());
    let metrics = server.client().get("/metrics").text;
    let info = format!("perilune:device_info{{device=\"{described}");
    assert!(metrics.lines().any(|line| line.starts_with(&info)), "no {info} in {metrics}");
    let dot =
        std::fs::read(tree::root().join("models/tests/fixtures/kimi_vl/images/dot.png")).expect("a picture");
    let mut request = chat(vec![user("What?", &[data_url(&dot)])], 3);
    request["logprobs"] = true.into();
    let reply = server.client().post("/v1/chat/completions", &request);
    assert_eq!(reply.status, 200, "{}", reply.text);
    let choice = reply.json()["choices"][0].clone();
    let tokens = choice["logprobs"]["content"].as_array().expect("log-probabilities").clone();
    let logprobs = tokens.iter().map(|token| token["logprob"].as_f64().expect("a number")).collect();
    let steps_ahead = || server.client().metric("perilune:steps_ahead_total");
    let before = steps_ahead();
    let held = json!({"prompt": "A", "max_tokens": 3, "temperature": 0, "presence_penalty": 0.5,
                      "structured_outputs": {"regex": "[0-9]{8,20}"}});
    let reply = server.client().post("/v1/completions", &held);
    assert_eq!(reply.status, 200, "{}", reply.text);
    let text = reply.json()["choices"][0]["text"].as_str().expect("text").to_string();
    assert!(!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()), "{text}");
    let ahead = steps_ahead() - before;
    (choice["message"]["content"].as_str().expect("text").to_string(), logprobs, text, ahead)
}

#[test]
fn a_gpus_code_answers_as_the_processor_does() {
    let (text, logprobs, held, none_ahead) = answer("cpu", "cpu (");
    let (emulated_text, emulated_logprobs, emulated_held, ahead) =
        answer("cuda-emulated", "cuda (emulated, sm_90a)");
    assert_eq!((emulated_text, emulated_held), (text, held));
    // All but the first.
    assert_eq!((none_ahead, ahead), (0.0, 2.0));
    assert_eq!(emulated_logprobs.len(), logprobs.len());
    for (emulated, expected) in emulated_logprobs.iter().zip(&logprobs) {
        assert!((emulated - expected).abs() < 1e-3, "{emulated_logprobs:?} are not {logprobs:?}");
    }
}

fn script(words: &[&str]) -> Output {
    Command::new("python3")
        .arg(tree::root().join("tests/gpu/run"))
        .args(words)
        .output()
        .expect("python3 runs")
}

#[test]
fn the_script_for_gpus_runs_what_it_has_and_says_what_is_missing() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let results = folder.join("gpu.json");
    let path = |path: &Path| path.to_str().expect("UTF-8").to_string();
    let output = script(&[
        "--device=cuda-emulated",
        "--folder",
        &path(folder),
        "--perilune",
        &path(&binary()),
        "--only=ops,sanitizer,engine",
        "--json",
        &path(&results),
    ]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("no GPU: emulated, times say nothing"), "{said}");
    let found: Value = serde_json::from_slice(&std::fs::read(results).expect("results")).expect("JSON");
    let parts = &found["parts"];
    assert_eq!(
        (&parts["ops"]["outcome"], &parts["sanitizer"]["outcome"]),
        (&"skipped".into(), &"skipped".into())
    );
    assert!(
        parts["ops"]["reason"].as_str().is_some_and(|reason| reason.contains("tests/gpu/build")),
        "{parts}"
    );
    let jobs = parts["engine"]["found"]["jobs"].as_array().expect("jobs");
    assert_eq!(jobs.len(), 2, "{parts}");
    assert!(jobs.iter().all(|job| job["tokens_per_s"].as_f64().is_some_and(|rate| rate > 0.0)), "{parts}");
}

/// `bench-engine` begins a step while one runs, as the server does it, and the model says the same.
#[test]
fn a_timed_decode_has_steps_ahead() {
    let run = |more: &[&str]| {
        let output = Command::new(binary())
            .arg("bench-engine")
            .arg(tree::root().join("models/tests/fixtures/kimi_vl"))
            .args(["--device=cuda-emulated", "--json", "--seconds=0", "--job=decode:2@9"])
            .args(["--load-format=dummy", "--memory=64MB", "--max-num-seqs=2", "--max-model-len=64"])
            .args(["--dtype=bfloat16", "--threads=2", "--kernel-cache", KERNEL_CACHE])
            .args(more)
            .output()
            .expect("the binary starts");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        let job: Value = serde_json::from_str(said.lines().nth(1).expect("a job")).expect("JSON");
        (job["tokens"].clone(), job["steps_ahead"].clone())
    };
    let ((ahead, num_ahead), (one_by_one, none)) = (run(&[]), run(&["--no-async-scheduling"]));
    assert_eq!(ahead.as_array().map(Vec::len), Some(64));
    assert_eq!(ahead, one_by_one);
    assert_eq!([num_ahead, none], [31, 0]);
}

/// On a machine with a driver the script would do its work instead.
#[test]
fn the_script_for_gpus_says_when_there_is_none() {
    if Command::new("nvidia-smi").output().is_ok() {
        return;
    }
    let output = script(&["--only=ops"]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.starts_with("error: there is no GPU here") && said.lines().count() == 1, "{said}");
    assert_eq!(script(&["--only=speed"]).status.code(), Some(2));
}
