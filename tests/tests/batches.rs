//! Batches with the real binary: killed in the middle, it goes on where it was, and every line has one result.

use perilune_tests::{Client, Server, binary, run};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const NUM_LINES: usize = 24;
const NUM_TOKENS: usize = 24;

/// A folder of one test, gone when it is dropped.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("perilune-batches-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn lines() -> String {
    let line = |i: usize| {
        let body = json!({"prompt": format!("{i} red"), "max_tokens": NUM_TOKENS, "ignore_eos": true, "temperature": 0});
        json!({"custom_id": format!("line {i}"), "method": "POST", "url": "/v1/completions", "body": body})
            .to_string()
    };
    (0..NUM_LINES).map(|i| line(i) + "\n").collect()
}

fn parse(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Every line has one result, and it is an answer.
fn check(results: &[Value]) {
    let mut found = BTreeMap::new();
    for result in results {
        assert_eq!(result["response"]["status_code"], 200, "{result}");
        assert_eq!(result["response"]["body"]["usage"]["completion_tokens"], NUM_TOKENS);
        let id = result["custom_id"].as_str().unwrap();
        assert!(found.insert(id, result).is_none(), "{id} ran twice");
    }
    assert_eq!(found.len(), NUM_LINES);
}

fn wait_for(client: &Client, id: &str, is_reached: impl Fn(&Value) -> bool) -> Value {
    let start = Instant::now();
    loop {
        let batch = client.get(&format!("/v1/batches/{id}")).json();
        if is_reached(&batch) {
            return batch;
        }
        assert!(start.elapsed() < Duration::from_secs(240), "{batch}");
        std::thread::yield_now();
    }
}

#[test]
fn a_killed_server_goes_on() {
    let folder = Folder::new("server");
    let data = folder.path("data");
    let flags = ["--data-dir", &data, "--batch-concurrency", "2"];
    let mut server = Server::start(&flags);
    let client = server.client();
    let file = client.upload("batch", "in.jsonl", &lines()).json();
    let request =
        json!({"input_file_id": file["id"], "endpoint": "/v1/completions", "completion_window": "24h"});
    let id = client.post("/v1/batches", &request).json()["id"].as_str().unwrap().to_string();
    let done = |batch: &Value| batch["request_counts"]["completed"].as_u64().unwrap();
    wait_for(&client, &id, |batch| done(batch) > 2);
    server.signal(libc::SIGKILL);
    assert_eq!(server.wait(), None, "it was killed");
    let log = std::fs::read_to_string(Path::new(&data).join(format!("batches/{id}.output.jsonl"))).unwrap();
    let kept = parse(log.rsplit_once('\n').map_or("", |(whole, _)| whole));
    assert!((3..NUM_LINES).contains(&kept.len()), "{} lines were done when it was killed", kept.len());
    let server = Server::start(&flags);
    let client = server.client();
    let batch = wait_for(&client, &id, |batch| batch["status"] == "completed");
    assert_eq!(batch["request_counts"], json!({"total": NUM_LINES, "completed": NUM_LINES, "failed": 0}));
    let output = batch["output_file_id"].as_str().unwrap();
    let results = parse(&client.get(&format!("/v1/files/{output}/content")).text);
    assert_eq!(results[..kept.len()], kept, "what was done was done again");
    check(&results);
}

#[test]
fn a_killed_run_goes_on() {
    let folder = Folder::new("run");
    let (input, output) = (folder.path("in.jsonl"), folder.path("out.jsonl"));
    std::fs::write(&input, lines()).unwrap();
    let args = ["run-batch", "-i", &input, "-o", &output, "--batch-concurrency", "2"];
    let mut child =
        Command::new(binary()).args(args).stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let written = || std::fs::read_to_string(&output).unwrap_or_default();
    while written().lines().count() < 4 {
        assert_eq!(child.try_wait().unwrap(), None, "it ended early");
        std::thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let text = written();
    let kept = parse(text.rsplit_once('\n').map_or("", |(whole, _)| whole));
    assert!((3..NUM_LINES).contains(&kept.len()), "{} lines were done when it was killed", kept.len());
    // Cut in the middle of a line, as a full disk leaves it.
    std::fs::write(&output, &text[..text.trim_end().len() - 7]).unwrap();
    let done = run(&args);
    assert_eq!(done.status.code(), Some(0), "{}", String::from_utf8_lossy(&done.stderr));
    let results = parse(&written());
    assert_eq!(results[..kept.len() - 1], kept[..kept.len() - 1]);
    check(&results);
    // Nothing is left to do.
    let before = written();
    assert_eq!(run(&args).status.code(), Some(0));
    assert_eq!(written(), before);
}

#[test]
fn exit_codes_tell_what_went_wrong() {
    let folder = Folder::new("codes");
    let file = |name: &str, content: &str| {
        std::fs::write(folder.0.join(name), content).unwrap();
        folder.path(name)
    };
    let line = |id: &str, url: &str, body: Value| {
        json!({"custom_id": id, "method": "POST", "url": url, "body": body}).to_string() + "\n"
    };
    let good = line("good", "/v1/completions", json!({"prompt": "a", "max_tokens": 1}));
    let chat = json!({"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 1});
    let mixed = file("mixed", &(good.clone() + &line("chat", "/v1/chat/completions", chat)));
    let failing = file("failing", &(good.clone() + &line("bad", "/v1/completions", json!({}))));
    let twice = file("twice", &(good.clone() + &good));
    let foreign = file("foreign", "my notes\n");
    let torn = file("torn", "my notes");
    let out = folder.path("out");
    let cases = [
        (mixed.as_str(), out.as_str(), 0, "2 lines: 2 answered, 0 failed"),
        (&failing, &folder.path("out2"), 5, "2 lines: 1 answered, 1 failed"),
        (&twice, &folder.path("out3"), 2, "line 2: "),
        ("/nowhere", &folder.path("out4"), 2, "/nowhere"),
        (&mixed, &mixed, 2, "the output is the input"),
        (&mixed, &foreign, 2, "line 1 is not the result of a batch"),
        (&mixed, &torn, 2, "no results of a batch"),
    ];
    for (input, output, code, words) in cases {
        let done = run(&["run-batch", "-i", input, "-o", output]);
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert_eq!(done.status.code(), Some(code), "{input} {output}: {said}");
        assert!(said.contains(words), "{input} {output}: {said}");
    }
    assert_eq!(std::fs::read_to_string(&foreign).unwrap(), "my notes\n");
    assert_eq!(std::fs::read_to_string(&torn).unwrap(), "my notes");
}
