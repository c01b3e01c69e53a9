//! `perilune chat` and `perilune bench` as processes, against the real server with a fake model.

use crate::harness;

use harness::{MODEL, TestServer};
use serde_json::{Value, json};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

fn perilune(server: &TestServer, subcommand: &str, url_flag: &str, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_perilune"));
    command.arg(subcommand).args([url_flag, &format!("http://{}", server.address)]).args(more);
    for variable in ["PERILUNE_URL", "PERILUNE_API_KEY"] {
        command.env_remove(variable);
    }
    command
}

fn typed(mut command: Command, input: &str) -> Output {
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary starts");
    child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("it reads");
    child.wait_with_output().expect("it ends")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("UTF-8")
}

/// What the API answers to a conversation, without a stream.
fn answer(server: &TestServer, messages: Value) -> String {
    let request = json!({ "model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 9 });
    let answer = server.ask("/v1/chat/completions", &request);
    answer["choices"][0]["message"]["content"].as_str().expect("text").to_owned()
}

fn picture() -> PathBuf {
    let path = std::env::temp_dir().join(format!("perilune-cli-test-{}.png", std::process::id()));
    image::RgbImage::from_fn(23, 17, |x, y| image::Rgb([x as u8, y as u8, 7])).save(&path).expect("a PNG");
    path
}

#[test]
fn chat_prints_what_the_api_answers() {
    let server = TestServer::start();
    let flags = ["--temperature", "0", "--max-tokens", "9"];
    let one_shot = [&flags[..], &["--message", "hi", "--system", "be brief"]].concat();
    let output = perilune(&server, "chat", "--url", &one_shot).output().expect("the binary starts");
    assert!(output.status.success(), "{output:?}");
    let system = json!({ "role": "system", "content": "be brief" });
    let expected = answer(&server, json!([system, { "role": "user", "content": "hi" }]));
    assert_eq!(text(&output.stdout), format!("{expected}\n"));

    // Two turns: the first answer is part of the second question.
    let output = typed(perilune(&server, "chat", "--url", &flags), "hi\nand?\n/quit\n");
    assert!(output.status.success(), "{output:?}");
    let user = |content: &str| json!({ "role": "user", "content": content });
    let first = answer(&server, json!([user("hi")]));
    let second =
        answer(&server, json!([user("hi"), { "role": "assistant", "content": first }, user("and?")]));
    assert_eq!(text(&output.stdout), format!("{first}\n{second}\n"));
}

#[test]
fn chat_shows_pictures() {
    let server = TestServer::start();
    let path = picture();
    let path = path.to_str().expect("UTF-8");
    let ask = |image: &[&str]| {
        let flags = [&["--message", "what?", "--temperature", "0", "--max-tokens", "9"], image].concat();
        perilune(&server, "chat", "--url", &flags).output().expect("the binary starts")
    };
    let [with, without] = [ask(&["--image", path]), ask(&[])];
    std::fs::remove_file(path).expect("it is there");
    assert!(with.status.success() && without.status.success(), "{with:?} {without:?}");
    assert_ne!(text(&with.stdout), text(&without.stdout));
    let missing = ask(&["--image", "/no/such/file"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(&missing.stderr).starts_with("error: failed to read /no/such/file: "), "{missing:?}");
}

#[test]
fn bench_counts_what_the_server_counts() {
    let server = TestServer::start();
    let flags =
        ["--num-prompts", "12", "--concurrency", "4", "--input-len", "20", "--output-len", "5", "--json"];
    for (image, prompt_tokens) in [(&[][..], Some(240)), (&["--image", "30x20"][..], None)] {
        let flags = [&flags[..], image].concat();
        let output = perilune(&server, "bench", "--base-url", &flags).output().expect("the binary starts");
        assert!(output.status.success(), "{output:?}");
        let report: Value = serde_json::from_slice(&output.stdout).expect("JSON and nothing else");
        assert_eq!((report["completed"].as_u64(), report["failed"].as_u64()), (Some(12), Some(0)));
        assert_eq!(report["total_output_tokens"], 60);
        if let Some(prompt_tokens) = prompt_tokens {
            assert_eq!(report["total_input_tokens"], prompt_tokens);
        }
        for name in ["mean_ttft_ms", "p99_ttft_ms", "median_e2el_ms", "output_throughput"] {
            assert!(report[name].as_f64().expect(name) > 0.0, "{name}");
        }
        assert!(text(&output.stderr).contains("Serving Benchmark Result"), "{output:?}");
    }
}

#[test]
fn bench_fails_when_requests_fail() {
    let server = TestServer::start();
    // Longer than the model's context.
    let flags = ["--num-prompts", "2", "--input-len", "5000"];
    let output = perilune(&server, "bench", "--base-url", &flags).output().expect("the binary starts");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).starts_with("error: 2 of 2 requests failed: 400 from "), "{output:?}");
    assert!(
        text(&output.stdout).contains("Failed requests:                                 2\n"),
        "{output:?}"
    );
}
