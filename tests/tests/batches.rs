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
        assert!(start.elapsed() < Duration::from_secs(600), "{batch}");
        std::thread::yield_now();
    }
}

/// What was done and kept when the process was killed. On a busy machine it may have done all lines before this test hears of the first: then it
/// was killed too late, and another one is tried.
fn killed_in_the_middle<T>(name: &str, kill: impl Fn(&Folder) -> (T, Vec<Value>)) -> (Folder, T, Vec<Value>) {
    for _ in 0..20 {
        let folder = Folder::new(name);
        let (killed, kept) = kill(&folder);
        assert!(kept.len() >= 3, "{} lines were done when it was killed", kept.len());
        if kept.len() < NUM_LINES {
            return (folder, killed, kept);
        }
    }
    panic!("each time it was killed too late");
}

/// The whole lines of a file that somebody else may be about to write to.
fn whole_lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    parse(text.rsplit_once('\n').map_or("", |(whole, _)| whole))
}

#[test]
fn a_killed_server_goes_on() {
    let flags = |folder: &Folder| {
        ["--data-dir", &folder.path("data"), "--batch-concurrency", "2"].map(str::to_string)
    };
    let (folder, id, kept) = killed_in_the_middle("server", |folder| {
        let flags = flags(folder);
        let mut server = Server::start(&flags.each_ref().map(String::as_str));
        let client = server.client();
        let file = client.upload("batch", "in.jsonl", &lines()).json();
        let request =
            json!({"input_file_id": file["id"], "endpoint": "/v1/completions", "completion_window": "24h"});
        let id = client.post("/v1/batches", &request).json()["id"].as_str().unwrap().to_string();
        let done = |batch: &Value| batch["request_counts"]["completed"].as_u64().unwrap();
        let batch = wait_for(&client, &id, |batch| done(batch) > 2);
        server.signal(libc::SIGKILL);
        assert_eq!(server.wait(), None, "it was killed");
        // Where all was done the log has become a file.
        let log = Path::new(&folder.path("data")).join(format!("batches/{id}.output.jsonl"));
        let kept = if log.exists() { whole_lines(&log) } else { vec![batch; NUM_LINES] };
        (id, kept)
    });
    let flags = flags(&folder);
    let server = Server::start(&flags.each_ref().map(String::as_str));
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
    let args = |folder: &Folder| {
        [
            "run-batch",
            "-i",
            &folder.path("in.jsonl"),
            "-o",
            &folder.path("out.jsonl"),
            "--batch-concurrency",
            "2",
        ]
        .map(str::to_string)
    };
    let (folder, (), kept) = killed_in_the_middle("run", |folder| {
        std::fs::write(folder.path("in.jsonl"), lines()).unwrap();
        let output = folder.path("out.jsonl");
        let mut child = Command::new(binary())
            .args(args(folder))
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        while std::fs::read_to_string(&output).unwrap_or_default().lines().count() < 4 {
            if let Some(status) = child.try_wait().unwrap() {
                assert!(status.success(), "it ended early");
                break;
            }
            std::thread::yield_now();
        }
        let _ = child.kill();
        child.wait().unwrap();
        ((), whole_lines(Path::new(&output)))
    });
    let (output, args) = (folder.path("out.jsonl"), args(&folder));
    let args = args.each_ref().map(String::as_str);
    // Cut in the middle of a line, as a full disk leaves it.
    let text = std::fs::read_to_string(&output).unwrap();
    std::fs::write(&output, &text[..text.trim_end().len() - 7]).unwrap();
    let done = run(&args);
    assert_eq!(done.status.code(), Some(0), "{}", String::from_utf8_lossy(&done.stderr));
    let results = whole_lines(Path::new(&output));
    assert_eq!(results[..kept.len() - 1], kept[..kept.len() - 1]);
    check(&results);
    // Nothing is left to do.
    let before = std::fs::read_to_string(&output).unwrap();
    assert_eq!(run(&args).status.code(), Some(0));
    assert_eq!(std::fs::read_to_string(&output).unwrap(), before);
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
