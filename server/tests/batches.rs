//! `/v1/batches`: each line is answered as a request is, exactly once, whatever happens meanwhile.

use crate::harness;

use harness::batches::{Folder, line, setup, with_limits};
use harness::{TestServer, find_metric, wait_until};
use perilune::auth::ApiKeys;
use perilune::batch::store::BatchLimits;
use perilune::disk::files::FileLimits;
use serde_json::{Value, json};
use std::collections::BTreeMap;

fn body(i: usize) -> Value {
    json!({"prompt": format!("prompt {i}"), "max_tokens": 3 + i % 5, "temperature": 0, "ignore_eos": true})
}

fn lines(count: usize) -> String {
    (0..count).map(|i| line(&format!("id{i}"), body(i))).collect()
}

fn long_lines(count: usize) -> String {
    let body = json!({"prompt": "a", "max_tokens": 400, "ignore_eos": true});
    (0..count).map(|i| line(&format!("id{i}"), body.clone())).collect()
}

/// Waits until so many requests were handed to the held engine, and lets it take them in, which it does between two steps. What its metrics then
/// say of them they say after the second.
fn take_in(server: &TestServer, count: usize) {
    server.control.wait_until_blocked();
    wait_until("the requests are there", || server.metric("vllm:request_params_n_count", "") >= count as f64);
    for _ in 0..2 {
        server.control.permit(1);
        server.control.wait_until_blocked();
    }
}

/// Results by custom_id, each of which is there once.
fn by_id(results: &[Value]) -> BTreeMap<String, Value> {
    let mut found = BTreeMap::new();
    for result in results {
        let id = result["custom_id"].as_str().expect("an id").to_owned();
        assert!(found.insert(id, result.clone()).is_none(), "twice: {result}");
    }
    found
}

#[test]
fn answers_are_those_of_requests() {
    let folder = Folder::new("answers");
    let server = TestServer::with(setup(&folder.0));
    let mut text = lines(40);
    text += &line("bad", json!({"prompt": "a", "temperature": -1}));
    text += &line("stream", json!({"prompt": "a", "stream": true}));
    text += &line("priority", json!({"prompt": "a", "max_tokens": 1, "priority": "high"}));
    text += &line("other", json!({"prompt": "a", "model": "other"}));
    let file = server.upload(&text);
    let request = json!({
        "input_file_id": file["id"], "endpoint": "/v1/completions", "completion_window": "24h",
        "metadata": {"name": "nightly"},
    });
    let created = server.ask("/v1/batches", &request);
    assert_eq!((&created["object"], &created["metadata"]), (&json!("batch"), &request["metadata"]));
    let batch = server.wait_for_status(created["id"].as_str().expect("an id"), "completed");
    assert_eq!(batch["request_counts"], json!({"total": 44, "completed": 40, "failed": 4}));
    for name in ["in_progress_at", "finalizing_at", "completed_at", "expires_at"] {
        assert!(batch[name].is_u64(), "{name}: {batch}");
    }
    for name in ["errors", "failed_at", "expired_at", "cancelling_at", "cancelled_at"] {
        assert!(batch[name].is_null(), "{name}: {batch}");
    }
    let output = by_id(&server.results(&batch["output_file_id"]));
    assert_eq!(output.len(), 40);
    for i in 0..40 {
        let result = &output[&format!("id{i}")];
        assert_eq!((&result["error"], &result["response"]["status_code"]), (&Value::Null, &json!(200)));
        let answer = server.ask("/v1/completions", &body(i));
        assert_eq!(result["response"]["body"]["choices"], answer["choices"]);
        let id = result["id"].as_str().expect("an id");
        assert_eq!(result["response"]["body"]["id"], format!("cmpl-{id}"));
    }
    let errors = by_id(&server.results(&batch["error_file_id"]));
    for (id, status, param) in [
        ("bad", 400, "temperature"),
        ("stream", 400, "stream"),
        ("priority", 400, "priority"),
        ("other", 404, "model"),
    ] {
        let response = &errors[id]["response"];
        assert_eq!(
            (&response["status_code"], &response["body"]["error"]["param"]),
            (&json!(status), &json!(param))
        );
    }
    let of_file =
        server.get(&format!("/v1/files/{}", batch["output_file_id"].as_str().expect("an id"))).json();
    assert_eq!(of_file["purpose"], "batch_output");
    // Nothing is left over. Empty logs are removed after the batch has ended.
    wait_until("nothing but the batch is left", || {
        std::fs::read_dir(folder.0.join("batches")).expect("reads").count() == 1
    });
    let cancel =
        server.post(&format!("/v1/batches/{}/cancel", batch["id"].as_str().expect("an id")), &json!({}));
    assert_eq!((cancel.status, &cancel.json()["error"]["code"]), (409, &json!("conflict")));
}

#[test]
fn a_bad_file_fails_with_its_lines() {
    let folder = Folder::new("bad");
    let server = TestServer::with(setup(&folder.0));
    let text = format!("{}nonsense\n{}{}", lines(1), lines(1), line("chat", body(0)).replace("/v1/", "/v2/"));
    let batch = server.wait_for_status(&server.batch(&text, "24h"), "failed");
    let errors: Vec<(Value, Value)> = batch["errors"]["data"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|error| (error["line"].clone(), error["code"].clone()))
        .collect();
    let expected = [(2, "invalid_json_line"), (3, "duplicate_custom_id"), (4, "mismatched_url")];
    assert_eq!(errors, expected.map(|(line, code)| (json!(line), json!(code))));
    assert!(batch["failed_at"].is_u64() && batch["output_file_id"].is_null(), "{batch}");
    let empty = server.wait_for_status(&server.batch("", "24h"), "failed");
    assert_eq!(empty["errors"]["data"][0]["code"], "empty_file");
}

#[test]
fn requests_that_are_refused() {
    let folder = Folder::new("refused-batches");
    let server = TestServer::with(setup(&folder.0));
    let file = server.upload(&lines(1))["id"].clone();
    let other =
        server.post_form(&[("purpose", None, b"vision"), ("file", Some("a"), b"x")]).json()["id"].clone();
    let base = json!({"input_file_id": file, "endpoint": "/v1/completions", "completion_window": "24h"});
    let pairs: BTreeMap<String, &str> = (0..17).map(|i| (i.to_string(), "x")).collect();
    let cases = [
        (json!({"input_file_id": null}), "input_file_id"),
        (json!({"input_file_id": "file-1"}), "input_file_id"),
        (json!({"input_file_id": "../lock"}), "input_file_id"),
        (json!({"input_file_id": other}), "input_file_id"),
        (json!({"endpoint": null}), "endpoint"),
        (json!({"endpoint": "/v1/files"}), "endpoint"),
        (json!({"endpoint": "/metrics"}), "endpoint"),
        (json!({"completion_window": null}), "completion_window"),
        (json!({"completion_window": "soon"}), "completion_window"),
        (json!({"metadata": {"a": 1}}), "metadata"),
        (json!({"metadata": pairs}), "metadata"),
    ];
    for (change, param) in cases {
        let mut request = base.clone();
        request.as_object_mut().expect("an object").extend(change.as_object().expect("an object").clone());
        let response = server.post("/v1/batches", &request);
        assert_eq!((response.status, &response.json()["error"]["param"]), (400, &json!(param)), "{change}");
    }
    for id in ["batch_1", "..", "%2e%2e%2flock"] {
        assert_eq!(server.get(&format!("/v1/batches/{id}")).status, 404);
    }
    assert_eq!(server.post("/v1/batches/batch_1/cancel", &json!({})).status, 404);
    // A cancellation needs no body.
    assert_eq!(server.send("POST", "/v1/batches/batch_1/cancel", &[], b"").status, 404);
}

#[test]
fn batches_are_listed_newest_first_and_bounded() {
    let folder = Folder::new("bounded");
    let limits = BatchLimits { num_active_max: 2, num_batches_max: 3, ..BatchLimits::default() };
    let server = TestServer::with(with_limits(&folder.0, FileLimits::default(), limits));
    let fail = |_| {
        let id = server.batch("", "24h");
        server.wait_for_status(&id, "failed");
        id
    };
    let ended: Vec<String> = (0..4).map(fail).collect();
    let list = server.get("/v1/batches?limit=2").json();
    let ids: Vec<&str> =
        list["data"].as_array().expect("a list").iter().filter_map(|b| b["id"].as_str()).collect();
    assert_eq!((ids, &list["has_more"]), (vec![ended[3].as_str(), ended[2].as_str()], &json!(true)));
    let rest = server.get(&format!("/v1/batches?after={}", ended[2])).json();
    assert_eq!((&rest["data"][0]["id"], &rest["has_more"]), (&json!(ended[1]), &json!(false)));
    assert_eq!(server.get(&format!("/v1/batches/{}", ended[0])).status, 404, "the oldest is forgotten");
    server.control.close();
    let running = [server.batch(&lines(1), "24h"), server.batch(&lines(1), "24h")];
    let file = server.upload(&lines(1));
    let request =
        json!({"input_file_id": file["id"], "endpoint": "/v1/completions", "completion_window": "24h"});
    let refused = server.post("/v1/batches", &request);
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (429, &json!("batch_limit_exceeded")));
    let used = server.batch_object(&running[0])["input_file_id"].as_str().expect("an id").to_owned();
    assert_eq!(server.send("DELETE", &format!("/v1/files/{used}"), &[], b"").status, 409);
    server.control.open();
    server.wait_for_status(&running[0], "completed");
    assert_eq!(server.send("DELETE", &format!("/v1/files/{used}"), &[], b"").status, 200);
}

#[test]
fn cancelling_keeps_what_there_is() {
    let folder = Folder::new("cancel");
    let limits = BatchLimits { concurrency: 1, ..BatchLimits::default() };
    let server = TestServer::with(with_limits(&folder.0, FileLimits::default(), limits));
    server.control.close();
    let id = server.batch(&lines(10), "24h");
    server.control.wait_until_blocked();
    // Enough for the first line.
    server.control.permit(4);
    server.wait_for_batch(&id, |batch| batch["request_counts"]["completed"] == 1);
    server.control.wait_until_blocked();
    assert_eq!(server.get("/load").json(), json!({"server_load": 1}), "a line is one request");
    let path = format!("/v1/batches/{id}/cancel");
    let cancelled = server.ask(&path, &json!({}));
    assert!(
        ["cancelling", "cancelled"].contains(&cancelled["status"].as_str().expect("a status")),
        "{cancelled}"
    );
    let batch = server.wait_for_status(&id, "cancelled");
    assert!(batch["cancelling_at"].is_u64() && batch["cancelled_at"].is_u64(), "{batch}");
    assert_eq!(batch["request_counts"], json!({"total": 10, "completed": 1, "failed": 9}));
    assert_eq!(by_id(&server.results(&batch["output_file_id"])).len(), 1);
    let errors = by_id(&server.results(&batch["error_file_id"]));
    assert!(errors.len() == 9 && errors.values().all(|line| line["error"]["code"] == "batch_cancelled"));
    server.control.open();
    server.wait_for_metric("vllm:num_requests_running", 0.0);
}

#[test]
fn a_window_ends() {
    let folder = Folder::new("window");
    let server = TestServer::with(setup(&folder.0));
    server.control.close();
    let batch = server.wait_for_status(&server.batch(&lines(3), "1s"), "expired");
    assert!(batch["expired_at"].as_u64() >= batch["expires_at"].as_u64(), "{batch}");
    let errors = by_id(&server.results(&batch["error_file_id"]));
    assert!(errors.len() == 3 && errors.values().all(|line| line["error"]["code"] == "batch_expired"));
    assert!(batch["output_file_id"].is_null());
}

#[test]
fn a_restart_runs_no_line_twice() {
    let folder = Folder::new("restart");
    let limits = || BatchLimits { concurrency: 2, ..BatchLimits::default() };
    let server = TestServer::with(with_limits(&folder.0, FileLimits::default(), limits()));
    server.control.close();
    let id = server.batch(&lines(20), "24h");
    server.control.permit(20);
    let before = server.wait_for_batch(&id, |batch| batch["request_counts"]["completed"].as_u64() > Some(2));
    // The server stops with lines in the middle of their answers.
    let mut server = server;
    let stopped = server.stop_at_once();
    server.control.open();
    server.runtime.block_on(stopped).expect("it stops");
    drop(server);
    let log = folder.0.join(format!("batches/{id}.output.jsonl"));
    let kept = std::fs::read_to_string(&log).expect("a log");
    // A process that was killed while it wrote.
    std::fs::write(&log, format!("{kept}{{\"id\":\"torn\",\"custom_id\":\"id19\"")).expect("writes");
    let server = TestServer::with(with_limits(&folder.0, FileLimits::default(), limits()));
    let batch = server.wait_for_status(&id, "completed");
    assert_eq!(batch["request_counts"], json!({"total": 20, "completed": 20, "failed": 0}));
    assert_eq!(batch["in_progress_at"], before["in_progress_at"]);
    let results = server.results(&batch["output_file_id"]);
    assert_eq!(by_id(&results).len(), 20);
    for (line, result) in kept.lines().zip(&results) {
        assert_eq!(&serde_json::from_str::<Value>(line).expect("JSON"), result, "it was run again");
    }
    assert!(kept.lines().count() > 2 && kept.lines().count() < 20, "{kept}");
}

#[test]
fn keys_guard_the_routes_and_not_the_lines() {
    let folder = Folder::new("keyed");
    let mut keyed = setup(&folder.0);
    keyed.options.keys = ApiKeys::new(&["a-key"]);
    let server = TestServer::with(keyed);
    let with_key = |method: &str, path: &str, kind: &str, body: &[u8]| {
        server.send(method, path, &[("content-type", kind), ("authorization", "Bearer a-key")], body)
    };
    assert_eq!(server.post("/v1/batches", &json!({})).status, 401);
    let form =
        harness::batches::form(&[("purpose", None, b"batch"), ("file", Some("a"), lines(2).as_bytes())]);
    let file = with_key("POST", "/v1/files", "multipart/form-data; boundary=a-boundary", &form).json();
    let request =
        json!({"input_file_id": file["id"], "endpoint": "/v1/completions", "completion_window": "24h"});
    let made = with_key("POST", "/v1/batches", "application/json", request.to_string().as_bytes()).json();
    let path = format!("/v1/batches/{}", made["id"].as_str().expect("an id"));
    let batch = loop {
        let batch = with_key("GET", &path, "application/json", b"").json();
        if batch["status"] == "completed" {
            break batch;
        }
        std::thread::yield_now();
    };
    assert_eq!(batch["request_counts"]["completed"], 2);
}

#[test]
fn a_full_queue_is_waited_for() {
    let folder = Folder::new("full");
    let limits = BatchLimits { concurrency: 8, ..BatchLimits::default() };
    let mut full = with_limits(&folder.0, FileLimits::default(), limits);
    full.options.scheduling.max_waiting = 1;
    full.config.max_running = 1;
    let server = TestServer::with(full);
    server.control.close();
    let id = server.batch(&long_lines(8), "24h");
    take_in(&server, 8);
    // One runs and one waits.
    wait_until("others are refused", || {
        let metrics = server.get("/metrics").text().to_owned();
        find_metric(
            &metrics,
            "http_requests_total",
            "handler=\"/v1/completions\",method=\"POST\",status=\"4xx\"",
        )
        .is_some_and(|count| count > 0.0)
    });
    server.control.open();
    let batch = server.wait_for_status(&id, "completed");
    assert_eq!(batch["request_counts"], json!({"total": 8, "completed": 8, "failed": 0}));
}

#[test]
fn interactive_requests_go_first() {
    let folder = Folder::new("priority");
    let mut one = setup(&folder.0);
    one.config.max_running = 1;
    let server = TestServer::with(one);
    server.control.close();
    let id = server.batch(&long_lines(6), "24h");
    take_in(&server, 6);
    server.wait_for_metric("vllm:num_requests_waiting", 5.0);
    let mut interactive = server.connect();
    interactive
        .send_json("/v1/completions", &json!({"prompt": "me first", "max_tokens": 2, "ignore_eos": true}));
    take_in(&server, 7);
    server.wait_for_metric("vllm:num_requests_waiting", 6.0);
    server.control.open();
    assert_eq!(interactive.receive().status, 200);
    server.wait_for_status(&id, "completed");
    let mut order = Vec::new();
    for sequence in server.control.batches().into_iter().flatten() {
        if !order.contains(&sequence) {
            order.push(sequence);
        }
    }
    // It came last, and ran right after the line that was running.
    assert_eq!(Some(&order[1]), order.iter().max(), "{order:?}");
}
