//! Start, drain, hang-ups, and what a broken checkpoint says.

use perilune_tests::tree::root;
use perilune_tests::{Server, run, user};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};

#[test]
fn sigterm_finishes_what_runs_and_ends_with_0() {
    // As long as a busy machine may need for what runs.
    let mut server = Server::start(&["--shutdown-timeout", "600"]);
    let client = server.client();
    let body = json!({
        "model": "perilune-demo", "messages": [user("Hello!", &[])], "max_tokens": 400, "ignore_eos": true, "temperature": 0,
    });
    std::thread::scope(|scope| {
        let (first, second) = (client.clone(), client.clone());
        let running = scope.spawn({
            let body = body.clone();
            move || first.post("/v1/chat/completions", &body)
        });
        while second.metric("vllm:num_requests_running") == 0.0
            && second.metric("vllm:request_success_total") == 0.0
        {
            std::thread::yield_now();
        }
        server.signal(libc::SIGTERM);
        let reply = running.join().unwrap();
        assert_eq!(reply.status, 200, "{}", reply.text);
        assert_eq!(reply.json()["usage"]["completion_tokens"], 400);
    });
    assert_eq!(server.wait(), Some(0));
}

#[test]
fn a_client_that_hangs_up_frees_its_memory() {
    let server = Server::start(&[]);
    let client = server.client();
    let address = server.url().strip_prefix("http://").unwrap();
    let aborted = || {
        let text = client.get("/metrics").text;
        let mut series = text.lines().filter(|line| line.starts_with("vllm:request_success_total{"));
        let line = series.find(|line| line.contains("finished_reason=\"abort\"")).expect("a series");
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    let all_are_aborted = || {
        let before = aborted();
        for _ in 0..5 {
            let body = json!({
                "model": "perilune-demo", "prompt": "red", "max_tokens": 1500, "ignore_eos": true, "stream": true,
            })
            .to_string();
            let mut socket = TcpStream::connect(address).unwrap();
            write!(
                socket,
                "POST /v1/completions HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            )
            .unwrap();
            let mut start = [0; 64];
            assert!(socket.read(&mut start).unwrap() > 0);
            drop(socket);
        }
        while client.metric("vllm:num_requests_running") > 0.0 {
            std::thread::yield_now();
        }
        assert_eq!(client.metric("vllm:num_requests_waiting"), 0.0);
        aborted() == before + 5.0
    };
    // What must not happen is that the sequences run to their end. The watch over the sockets runs on its own clock, and so does this test: on a
    // busy machine a sequence may be faster than both, but not every time.
    assert!((0..20).any(|_| all_are_aborted()));
}

fn broken_copy(name: &str, damage: impl Fn(&Path)) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("perilune-broken-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    for entry in std::fs::read_dir(root().join("server/demo")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
    }
    damage(&folder);
    folder
}

fn edit_config(folder: &Path, edit: impl Fn(&mut Value)) {
    let path = folder.join("config.json");
    let mut config: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    edit(&mut config);
    std::fs::write(path, config.to_string()).unwrap();
}

#[test]
fn a_broken_checkpoint_is_one_clear_line() {
    let weights = |folder: &Path| folder.join("model.safetensors");
    let truncate = |folder: &Path| {
        let content = std::fs::read(weights(folder)).unwrap();
        std::fs::write(weights(folder), &content[..content.len() / 2]).unwrap();
    };
    let garbage = |folder: &Path| std::fs::write(weights(folder), vec![0xff; 4096]).unwrap();
    let missing = |folder: &Path| std::fs::remove_file(weights(folder)).unwrap();
    let no_config = |folder: &Path| std::fs::remove_file(folder.join("config.json")).unwrap();
    let no_json = |folder: &Path| std::fs::write(folder.join("config.json"), "{").unwrap();
    let unknown = |folder: &Path| edit_config(folder, |c| c["architectures"] = json!(["MysteryForCausalLM"]));
    let mismatch = |folder: &Path| edit_config(folder, |c| c["text_config"]["hidden_size"] = json!(96));
    let heads = |folder: &Path| edit_config(folder, |c| c["text_config"]["num_attention_heads"] = json!(0));
    let tokenizer = |folder: &Path| std::fs::write(folder.join("tokenizer.json"), "{}").unwrap();
    type Damage<'a> = (&'a str, &'a dyn Fn(&Path), &'a str);
    let cases: [Damage; 9] = [
        ("truncated", &truncate, "model.safetensors"),
        ("garbage", &garbage, "model.safetensors"),
        ("missing", &missing, "model.safetensors"),
        ("no-config", &no_config, "config.json"),
        ("no-json", &no_json, "config.json"),
        ("unknown", &unknown, "MysteryForCausalLM"),
        ("mismatch", &mismatch, "expected"),
        ("heads", &heads, "num_attention_heads"),
        ("tokenizer", &tokenizer, "tokenizer.json"),
    ];
    for (name, damage, named) in cases {
        let folder = broken_copy(name, damage);
        let output = run(&["serve", folder.to_str().unwrap(), "--port", "0"]);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(3), "{name}: {stderr}");
        let last = stderr.lines().last().unwrap_or_default();
        assert!(last.contains(named), "{name}: the last line does not name {named}: {stderr}");
        assert!(!stderr.contains("panicked"), "{name}: {stderr}");
        std::fs::remove_dir_all(folder).unwrap();
    }
}

#[test]
fn a_model_that_is_not_there_is_one_clear_line() {
    let output = run(&["serve", "/nowhere/at/all", "--port", "0"]);
    assert_eq!(output.status.code(), Some(3));
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(stderr.lines().last().unwrap_or_default().contains("/nowhere/at/all"), "{stderr}");
}

#[test]
fn wrong_arguments_end_with_2() {
    for args in [
        &["serve", "--port", "high"][..],
        &["serve", "--dtype", "int3"],
        &["fly"],
        &["serve", "--max-model-len", "-3"],
    ] {
        assert_eq!(run(args).status.code(), Some(2), "{args:?}");
    }
}

#[test]
fn the_plan_is_what_is_allocated() {
    let output = run(&["plan", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let plan: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let planned = plan["memory"]["total"].as_u64().expect("memory.total");
    let server = Server::start(&[]);
    assert_eq!(server.client().metric("perilune:device_memory_allocated_bytes"), planned as f64);
}
