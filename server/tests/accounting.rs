//! The books agree after mixed load: what clients were told, what the metrics count, and what these say of each other.

use crate::harness;

use harness::{TestServer, wait_until};
use serde_json::{Value, json};

/// What answered clients were told, in the metrics' terms: a prompt counts for each of its answers.
#[derive(Debug, Default, PartialEq)]
struct Told {
    requests: u64,
    sequences: u64,
    prompt_tokens: u64,
    completion_tokens: u64,
    cached_tokens: u64,
}

impl Told {
    fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.sequences += other.sequences;
        self.prompt_tokens += other.prompt_tokens;
        self.completion_tokens += other.completion_tokens;
        self.cached_tokens += other.cached_tokens;
    }
}

/// The sum of a metric's series whose labels contain `label`.
fn sum(text: &str, name: &str, label: &str) -> f64 {
    let series = text.lines().filter_map(|line| line.strip_prefix(name));
    let values = series.filter(|rest| rest.starts_with(['{', ' ']) && rest.contains(label));
    values
        .map(|rest| rest.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok()).expect("a number"))
        .sum()
}

/// Numbers that follow from a seed.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % limit
    }
}

/// One request of a kind that the seed chooses, and what its answer tells.
fn answered(server: &TestServer, seed: u64) -> Told {
    let mut numbers = Numbers(seed);
    let words = |numbers: &mut Numbers| {
        let count = 1 + numbers.below(40);
        // Some begin like others: they find cached blocks.
        (0..count).map(|i| ["red ", "blue ", "green "][(i / 20 * seed % 3) as usize]).collect::<String>()
    };
    let (text, other) = (words(&mut numbers), words(&mut numbers));
    let (n, max_tokens) = (1 + numbers.below(3), 1 + numbers.below(30));
    let sampled = |mut body: Value| {
        body["max_tokens"] = max_tokens.into();
        body["seed"] = seed.into();
        body
    };
    let messages = json!([{ "role": "user", "content": text }]);
    let usage_of_stream = |path: &str, mut body: Value| {
        body["stream_options"] = json!({ "include_usage": true });
        server.stream(path, &body).pop().expect("an event")["usage"].clone()
    };
    let (usage, prompts, n) = match numbers.below(6) {
        0 => (
            server.ask("/v1/chat/completions", &sampled(json!({ "messages": messages, "n": n })))["usage"]
                .clone(),
            1,
            n,
        ),
        1 => {
            (usage_of_stream("/v1/chat/completions", sampled(json!({ "messages": messages, "n": n }))), 1, n)
        }
        2 => (
            server.ask("/v1/completions", &sampled(json!({ "prompt": [text, other], "n": n })))["usage"]
                .clone(),
            2,
            n,
        ),
        3 => (
            usage_of_stream("/v1/completions", sampled(json!({ "prompt": text, "n": n, "echo": true }))),
            1,
            n,
        ),
        4 => (server.ask("/v1/embeddings", &json!({ "input": [text, other] }))["usage"].clone(), 2, 1),
        _ => {
            let usage = &server
                .ask("/v1/messages", &sampled(json!({ "messages": messages, "model": harness::MODEL })))["usage"];
            let count = |name: &str| usage[name].as_u64().expect("a count");
            let cached = count("cache_read_input_tokens");
            let in_their_terms = json!({
                "prompt_tokens": count("input_tokens") + cached,
                "completion_tokens": count("output_tokens"),
                "prompt_tokens_details": { "cached_tokens": cached },
            });
            (in_their_terms, 1, 1)
        }
    };
    let count = |value: &Value| value.as_u64().unwrap_or_else(|| panic!("no count in {usage}"));
    Told {
        requests: 1,
        sequences: prompts * n,
        prompt_tokens: n * count(&usage["prompt_tokens"]),
        completion_tokens: count(&usage["completion_tokens"]),
        cached_tokens: count(&usage["prompt_tokens_details"]["cached_tokens"]),
    }
}

/// A client that is told nothing: refused, or gone after the first piece of an answer.
fn unanswered(server: &TestServer, seed: u64) {
    let mut numbers = Numbers(seed);
    let body = json!({ "prompt": "red ".repeat(1 + seed as usize % 50), "max_tokens": 100 + numbers.below(400), "n": 1 + seed % 2, "ignore_eos": true, "stream": true });
    match numbers.below(3) {
        0 => assert_eq!(server.post("/v1/completions", &json!({ "prompt": [] })).status, 400),
        _ => {
            let mut leaver = server.connect();
            leaver.send_json("/v1/completions", &body);
            assert_eq!(leaver.head().status, 200);
        }
    }
}

/// Runs `one` for the seeds from `first` on, in threads beside each other.
fn beside_each_other<T: Send>(first: u64, one: impl Fn(u64) -> T + Sync) -> Vec<T> {
    const THREADS: u64 = 6;
    let one = &one;
    std::thread::scope(|scope| {
        let seeds = |thread| (0..8).map(move |i| first + THREADS * i + thread);
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| scope.spawn(move || seeds(thread).map(one).collect::<Vec<T>>()))
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect()
    })
}

/// The metrics once everything has ended. Gauges are as in the beginning.
fn settled(server: &TestServer) -> String {
    let metrics = || server.get("/metrics").text().to_owned();
    wait_until("all has ended", || {
        let text = metrics();
        let gauges = ["vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"];
        // The question itself is a connection.
        gauges.iter().all(|name| sum(&text, name, "") == 0.0)
            && sum(&text, "perilune:http_connections", "") == 1.0
    });
    let text = metrics();
    assert_eq!(sum(&text, "perilune:http_body_bytes", ""), 0.0);
    text
}

/// What counters say of each other, whatever happened.
fn check_that_they_agree(text: &str) {
    let total = |name: &str| sum(text, &format!("vllm:{name}"), "");
    let ended = total("request_success_total");
    for name in [
        "e2e_request_latency_seconds",
        "request_generation_tokens",
        "request_params_max_tokens",
        "request_num_preemptions",
    ] {
        assert_eq!(total(&format!("{name}_count")), ended, "{name}");
    }
    assert_eq!(total("request_prompt_tokens_sum"), total("prompt_tokens_total"));
    assert_eq!(total("request_generation_tokens_sum"), total("generation_tokens_total"));
    assert_eq!(total("request_prefill_time_seconds_count"), total("request_prompt_tokens_count"));
    // Every token but the first of an answer comes after another.
    let (first, next) =
        (total("time_to_first_token_seconds_count"), total("inter_token_latency_seconds_count"));
    assert_eq!(first + next, total("generation_tokens_total"));
    assert_eq!(total("prefix_cache_hits_total"), total("prompt_tokens_cached_total"));
    assert!(total("prompt_tokens_cached_total") <= total("prompt_tokens_total"));
    for histogram in ["e2e_request_latency_seconds", "request_prompt_tokens", "request_generation_tokens"] {
        let all = sum(text, &format!("vllm:{histogram}_bucket"), "le=\"+Inf\"");
        assert_eq!(all, total(&format!("{histogram}_count")), "{histogram}");
    }
}

#[test]
fn metrics_agree_with_what_clients_were_told() {
    let server = TestServer::start();
    let mut told = Told::default();
    beside_each_other(1, |seed| answered(&server, seed)).iter().for_each(|one| told.add(one));
    let text = settled(&server);
    check_that_they_agree(&text);
    let total = |name: &str| sum(&text, &format!("vllm:{name}"), "") as u64;
    let counted = Told {
        requests: sum(&text, "http_requests_total", "method=\"POST\",status=\"2xx\"") as u64,
        sequences: total("request_success_total"),
        prompt_tokens: total("prompt_tokens_total"),
        completion_tokens: total("generation_tokens_total"),
        cached_tokens: total("prompt_tokens_cached_total"),
    };
    // Of answers that share a prompt, only the first one's cached tokens are told, and the others find what it left.
    assert!(counted.cached_tokens >= told.cached_tokens, "{counted:?} {told:?}");
    assert_eq!(counted, Told { cached_tokens: counted.cached_tokens, ..told });
    assert_eq!(sum(&text, "vllm:request_success_total", "abort"), 0.0);

    // Those who leave change what is counted, and nothing of how it adds up.
    let before = counted;
    let mut told = Told::default();
    let mixed = beside_each_other(1000, |seed| match seed % 2 {
        0 => Some(answered(&server, seed)),
        _ => {
            unanswered(&server, seed);
            None
        }
    });
    mixed.iter().flatten().for_each(|one| told.add(one));
    let text = settled(&server);
    check_that_they_agree(&text);
    let aborted = sum(&text, "vllm:request_success_total", "abort");
    assert!(aborted > 0.0);
    let ended = sum(&text, "vllm:request_success_total", "") - aborted;
    assert!(ended >= (before.sequences + told.sequences) as f64);
    // Every request has one line: 48 of each half.
    assert_eq!(sum(&text, "http_requests_total", "method=\"POST\""), 96.0);
}
