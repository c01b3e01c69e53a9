//! The metrics: all there from the start, and consistent with each other and with what clients saw.

use crate::harness;

use harness::{MODEL, TestServer, find_metric, wait_until};
use serde_json::json;

/// The names that dashboards, routers and autoscalers made for vLLM read, and some that only this server has.
const NAMES: [&str; 40] = [
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "vllm:cache_config_info",
    "vllm:prompt_tokens_total",
    "vllm:prompt_tokens_cached_total",
    "vllm:generation_tokens_total",
    "vllm:num_preemptions_total",
    "vllm:prefix_cache_queries_total",
    "vllm:prefix_cache_hits_total",
    "vllm:mm_cache_queries_total",
    "vllm:mm_cache_hits_total",
    "vllm:request_success_total",
    "vllm:time_to_first_token_seconds_count",
    "vllm:inter_token_latency_seconds_count",
    "vllm:request_time_per_output_token_seconds_count",
    "vllm:e2e_request_latency_seconds_count",
    "vllm:request_queue_time_seconds_count",
    "vllm:request_prefill_time_seconds_count",
    "vllm:request_decode_time_seconds_count",
    "vllm:request_inference_time_seconds_count",
    "vllm:request_prompt_tokens_count",
    "vllm:request_generation_tokens_count",
    "vllm:request_max_num_generation_tokens_count",
    "vllm:request_params_n_count",
    "vllm:request_params_max_tokens_count",
    "vllm:iteration_tokens_total_count",
    "vllm:admission_rejections_total",
    "vllm:spec_decode_num_drafts_total",
    "vllm:spec_decode_num_draft_tokens_total",
    "vllm:spec_decode_num_accepted_tokens_total",
    "vllm:spec_decode_num_accepted_tokens_per_pos_total",
    "perilune:image_cache_bytes",
    "perilune:embedding_cache_queries_total",
    "perilune:embedding_cache_hits_total",
    "perilune:media_fetches_total",
    "perilune:device_seconds_total",
    "perilune:deferred_tokens_total",
    "perilune:steps_ahead_total",
    "perilune:dropped_tokens_total",
];

#[test]
fn everything_is_there_from_the_start() {
    let server = TestServer::start();
    let response = server.get("/metrics");
    assert!(response.header("content-type").is_some_and(|kind| kind.starts_with("text/plain")));
    let text = response.text();
    for name in NAMES {
        let value = find_metric(text, name, "engine=\"0\"").unwrap_or_else(|| panic!("no {name}"));
        assert_eq!(value, if name == "vllm:cache_config_info" { 1.0 } else { 0.0 }, "{name}");
        assert!(text.contains(&format!("model_name=\"{}\"", MODEL)));
    }
    assert_eq!(find_metric(text, "perilune:device_info", "device=\"fake\""), Some(1.0));
    for reason in ["stop", "length", "abort", "error"] {
        let label = format!("finished_reason=\"{reason}\"");
        assert_eq!(find_metric(text, "vllm:request_success_total", &label), Some(0.0));
    }
    for phase in ["tokenizer", "model", "total"] {
        let label = format!("phase=\"{phase}\"");
        assert!(find_metric(text, "perilune:startup_seconds", &label).is_some(), "{phase}");
    }
    assert!(find_metric(text, "process_open_fds", "").is_some_and(|fds| fds > 0.0));
    assert_eq!(find_metric(text, "http_requests_total", "handler=\"/v1/chat/completions\""), Some(0.0));
}

/// What is drawn, and what alarms are made of, exists under that name.
#[test]
fn dashboards_and_alerts_name_metrics_that_exist() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/");
    let read = |path: &str| std::fs::read_to_string(format!("{root}{path}")).expect("a file");
    let dashboard = read("grafana/perilune.json");
    let parsed: serde_json::Value = serde_json::from_str(&dashboard).expect("JSON");
    let panels = parsed["panels"].as_array().expect("panels");
    assert!(panels.iter().all(|panel| panel["targets"].as_array().is_some_and(|t| !t.is_empty())));
    let server = TestServer::start();
    // Histograms have buckets once something was measured.
    server.ask("/v1/completions", &json!({ "model": MODEL, "prompt": "a", "max_tokens": 3 }));
    let response = server.get("/metrics");
    let metrics = response.text();
    let exist: Vec<&str> = metrics.lines().filter_map(|line| line.split(['{', ' ']).next()).collect();
    let name = regex::Regex::new(r"\b(vllm:|perilune:|http_|process_)[a-z0-9_]+").expect("a pattern");
    for text in [dashboard, read("prometheus/alerts.yml")] {
        let named: Vec<&str> = name.find_iter(&text).map(|found| found.as_str()).collect();
        assert!(named.len() > 4, "{named:?}");
        for name in named {
            assert!(exist.contains(&name), "{name}");
        }
    }
}

#[test]
fn counts_agree_with_answers() {
    let server = TestServer::start();
    let (mut prompt, mut generated, mut finished) = (0, 0, [0, 0]);
    for i in 0..20u64 {
        let body =
            json!({"prompt": "x".repeat(5 + i as usize), "max_tokens": 1 + i, "n": 1 + i % 3, "seed": i});
        let answer = server.ask("/v1/completions", &body);
        let n = 1 + i % 3;
        prompt += n * answer["usage"]["prompt_tokens"].as_u64().expect("a count");
        generated += answer["usage"]["completion_tokens"].as_u64().expect("a count");
        for choice in answer["choices"].as_array().expect("choices") {
            finished[usize::from(choice["finish_reason"] == "length")] += 1;
        }
        // Whoever has its answer is counted.
        let text = server.get("/metrics").text().to_owned();
        let counted = ["stop", "length"].map(|reason| {
            let label = format!("finished_reason=\"{reason}\"");
            find_metric(&text, "vllm:request_success_total", &label).expect("a series")
        });
        assert_eq!(counted, finished.map(f64::from));
    }
    server.wait_for_metric("vllm:num_requests_running", 0.0);
    let metric = |name: &str| server.metric(name, "");
    assert_eq!(metric("vllm:prompt_tokens_total"), prompt as f64);
    assert_eq!(metric("vllm:generation_tokens_total"), generated as f64);
    assert_eq!(metric("vllm:request_prompt_tokens_sum"), prompt as f64);
    assert_eq!(metric("vllm:request_generation_tokens_sum"), generated as f64);
    let reason =
        |reason: &str| server.metric("vllm:request_success_total", &format!("finished_reason=\"{reason}\""));
    assert_eq!([reason("stop"), reason("length")], finished.map(f64::from));
    let sequences: f64 = finished.map(f64::from).iter().sum();
    for name in ["e2e_request_latency_seconds", "request_queue_time_seconds", "time_to_first_token_seconds"] {
        assert_eq!(metric(&format!("vllm:{name}_count")), sequences, "{name}");
    }
    // Every token but the first of a sequence comes after another.
    assert_eq!(metric("vllm:inter_token_latency_seconds_count"), generated as f64 - sequences);
    assert_eq!(metric("vllm:request_params_n_count"), 20.0);
    assert_eq!(metric("vllm:kv_cache_usage_perc"), 0.0);
    assert_eq!(metric("vllm:num_requests_running"), 0.0);
    assert!(metric("vllm:prefix_cache_hits_total") <= metric("vllm:prefix_cache_queries_total"));
    assert!(metric("vllm:prefix_cache_hits_total") > 0.0, "n > 1 shares the prompt");
}

/// A request without an answer is one as well: its client left before there was any.
#[test]
fn clients_that_leave_are_counted() {
    let server = TestServer::start();
    let clients = |class: &str| {
        let labels = format!("handler=\"/v1/completions\",method=\"POST\",status=\"{class}\"");
        // There is no series before there is something to count.
        find_metric(server.get("/metrics").text(), "http_requests_total", &labels).unwrap_or(0.0)
    };
    server.ask("/v1/completions", &json!({ "model": MODEL, "prompt": "a", "max_tokens": 2 }));
    server.control.close();
    let mut leaver = server.connect();
    leaver.send_json("/v1/completions", &json!({ "prompt": "b", "max_tokens": 100, "ignore_eos": true }));
    server.control.wait_until_blocked();
    drop(leaver);
    wait_until("it is counted", || clients("4xx") == 1.0);
    server.control.open();
    server.wait_for_ended("abort", 1.0);
    assert_eq!((clients("2xx"), clients("4xx")), (1.0, 1.0));
}

#[test]
fn labels_of_http_metrics_are_bounded() {
    let server = TestServer::start();
    for path in ["/v1/models/a", "/v1/models/b", "/nowhere/1", "/nowhere/2"] {
        assert_eq!(server.get(path).status, 404);
    }
    let mut connection = server.connect();
    connection.send("BREW", "/v1/models", &[], b"");
    assert_eq!(connection.receive().status, 405);
    let text = server.get("/metrics").text().to_owned();
    assert_eq!(
        find_metric(
            &text,
            "http_requests_total",
            "handler=\"/v1/models/{*id}\",method=\"GET\",status=\"4xx\""
        ),
        Some(2.0)
    );
    assert_eq!(
        find_metric(&text, "http_requests_total", "handler=\"none\",method=\"GET\",status=\"4xx\""),
        Some(2.0)
    );
    assert!(!text.contains("BREW") && !text.contains("nowhere"));
}
