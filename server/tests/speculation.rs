//! Guessed tokens over HTTP: asked for by a request or by the flag, counted, and without a trace in the answer.

use crate::harness;

use harness::scripted::{Script, Scripted, special};
use harness::{Setup, TestServer};
use perilune::serve::ServeOptions;
use perilune::speculation::Speculation;
use serde_json::{Value, json};

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";
const MODEL: Scripted = Scripted {
    template: "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
    controls: &[special("<|im_start|>")],
};
/// What the model says: a text that comes again, one that does not, and the first once more.
const TEXT: &str = "The sea is calm, the sea is calm. Boats: 3 of 7 at home? The sea is calm, the sea is calm, or so it seems.";

fn serve(flag: Option<&str>) -> (TestServer, Script) {
    let mut options = Setup::default().options;
    if let Some(flag) = flag {
        options.scheduling.speculation = Speculation::parse(flag).expect("a configuration");
    }
    start(options)
}

fn start(options: ServeOptions) -> (TestServer, Script) {
    let (server, script) = TestServer::scripted(&MODEL, options);
    script.set(MODEL.encode(TEXT));
    (server, script)
}

fn completion(more: Value) -> Value {
    let mut body = json!({"prompt": "Copy. ", "max_tokens": 500, "timings": true, "return_token_ids": true});
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    body
}

/// Of the first choice: tokens that were guessed, and those that were right.
fn drafts(answer: &Value) -> (u64, u64) {
    let timings = &answer["choices"][0]["timings"];
    let count = |name: &str| timings[name].as_u64().expect("a count");
    (count("draft_tokens"), count("accepted_tokens"))
}

/// Text, tokens, reason and usage.
fn content(answer: &Value) -> [Value; 4] {
    let choice = &answer["choices"][0];
    ["text", "token_ids", "finish_reason"]
        .map(|name| choice[name].clone())
        .into_iter()
        .chain([answer["usage"].clone()])
        .collect::<Vec<_>>()
        .try_into()
        .expect("four")
}

#[test]
fn a_request_asks_for_guesses_and_gets_the_same_answer() {
    let (server, _) = serve(None);
    let without = server.ask(COMPLETIONS, &completion(json!({})));
    assert_eq!((&without["choices"][0]["text"], drafts(&without)), (&json!(TEXT), (0, 0)));
    let with = server.ask(COMPLETIONS, &completion(json!({"num_speculative_tokens": 5})));
    assert_eq!(content(&with), content(&without));
    let (drafted, accepted) = drafts(&with);
    assert!(accepted > 30 && drafted > accepted, "{accepted} of {drafted}");

    server.wait_for_metric("vllm:num_requests_running", 0.0);
    let metric = |name: &str| server.metric(&format!("vllm:{name}"), "");
    assert_eq!(metric("spec_decode_num_draft_tokens_total"), drafted as f64);
    assert_eq!(metric("spec_decode_num_accepted_tokens_total"), accepted as f64);
    let num_drafts = metric("spec_decode_num_drafts_total");
    assert!(num_drafts >= drafted as f64 / 5.0 && num_drafts < drafted as f64);
    let by_position: Vec<f64> = (0..16)
        .map(|position| {
            let label = format!("position=\"{position}\"");
            server.metric("vllm:spec_decode_num_accepted_tokens_per_pos_total", &label)
        })
        .collect();
    assert_eq!(by_position.iter().sum::<f64>(), accepted as f64);
    assert!(by_position.is_sorted_by(|a, b| a >= b) && by_position[0] <= num_drafts);
    assert_eq!(by_position[5..], [0.0; 11]);
    // Tokens that come in one step come at one time.
    let num_tokens = with["usage"]["completion_tokens"].as_f64().expect("a count");
    assert_eq!(metric("generation_tokens_total"), 2.0 * num_tokens);
    assert_eq!(metric("inter_token_latency_seconds_count"), 2.0 * (num_tokens - 1.0) - accepted as f64);
}

#[test]
fn the_flag_is_for_requests_that_do_not_say() {
    let flag = r#"{"method":"ngram","num_speculative_tokens":3,"prompt_lookup_max":3,"prompt_lookup_min":2}"#;
    let (server, _) = serve(Some(flag));
    let by_default = server.ask(COMPLETIONS, &completion(json!({})));
    assert!(drafts(&by_default).1 > 20);
    let off = server.ask(COMPLETIONS, &completion(json!({"num_speculative_tokens": 0})));
    assert_eq!(drafts(&off), (0, 0));
    let few = server.ask(COMPLETIONS, &completion(json!({"num_speculative_tokens": 1})));
    assert!(drafts(&few).1 > 10);
    for answer in [&by_default, &few] {
        assert_eq!(content(answer), content(&off));
    }
    let messages = json!([{"role": "user", "content": "Copy."}]);
    let chat = server.ask(CHAT, &json!({"messages": messages, "timings": true}));
    assert!(drafts(&chat).1 > 20);
    assert_eq!(chat["choices"][0]["message"]["content"], json!(TEXT));
}

#[test]
fn streams_stops_and_limits_are_as_without() {
    let (server, _) = serve(None);
    let mut num_accepted = 0;
    for more in [
        json!({}),
        json!({"stop": ["calm. B"]}),
        json!({"stop": [" is calm, or"]}),
        json!({"stop": ["sea"], "include_stop_str_in_output": true}),
        json!({"max_tokens": 21}),
        json!({"max_tokens": 92}),
        json!({"stop_token_ids": [u32::from(b'.')], "min_tokens": 40}),
        json!({"logprobs": 0, "n": 3, "max_tokens": 60}),
    ] {
        let without = completion(more);
        let mut with = without.clone();
        with["num_speculative_tokens"] = 16.into();
        let (expected, answer) = (server.ask(COMPLETIONS, &without), server.ask(COMPLETIONS, &with));
        assert_eq!(content(&answer), content(&expected), "{with}");
        assert_eq!(answer["choices"][0]["logprobs"], expected["choices"][0]["logprobs"], "{with}");
        num_accepted += drafts(&answer).1;
        let events = server.stream(COMPLETIONS, &with);
        let of_first = events.iter().flat_map(|event| event["choices"].as_array().expect("choices"));
        let text: String = of_first
            .filter(|choice| choice["index"] == 0)
            .map(|choice| choice["text"].as_str().expect("text"))
            .collect();
        assert_eq!(json!(text), expected["choices"][0]["text"], "{with}");
    }
    assert!(num_accepted > 100, "{num_accepted}");
}

#[test]
fn an_answer_under_a_grammar_is_not_guessed() {
    let (server, script) = serve(None);
    let said = format!("{{\"text\":\"{}\"}}", "la ".repeat(20));
    script.set(MODEL.encode(&said));
    let more = json!({"num_speculative_tokens": 4, "response_format": {"type": "json_object"}});
    let answer = server.ask(COMPLETIONS, &completion(more));
    assert_eq!((&answer["choices"][0]["text"], drafts(&answer)), (&json!(said), (0, 0)));
}

#[test]
fn numbers_that_mean_nothing_name_their_field() {
    let (server, _) = serve(None);
    for wrong in [json!(17), json!(-1), json!(1.5), json!("4"), json!(true)] {
        let response = server.post(COMPLETIONS, &completion(json!({"num_speculative_tokens": wrong})));
        assert_eq!(response.status, 400, "{wrong}");
        assert_eq!(response.json()["error"]["param"], "num_speculative_tokens", "{wrong}");
    }
}
