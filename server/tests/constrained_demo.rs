//! The embedded model under schemas, through the API: its own tokenizer, its own weights, greedy and sampled. Every answer that ends by
//! itself is valid to a JSON schema validator, and nearly all end.

use crate::harness;
use crate::random;

use harness::{TestServer, small_load};
use random::parse_json;
use random::schemas::generated;
use serde_json::{Value, json};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

const NUM_GENERATED: u64 = 160;
/// Schemas that must have got a whole answer, of the 97 realistic and the generated ones.
const NUM_WANTED: usize = 200;
const NUM_CLIENTS: usize = 16;

fn schemas() -> Vec<(String, Value)> {
    let listed: Vec<Value> =
        serde_json::from_str(include_str!("fixtures/schemas.json")).expect("the list is JSON");
    let listed = listed.into_iter().map(|entry| {
        let name = entry["name"].as_str().expect("a name").to_owned();
        (name, entry["schema"].clone())
    });
    listed.chain((0..NUM_GENERATED).map(|seed| (format!("generated {seed}"), generated(seed)))).collect()
}

/// Whether the answer ended by itself; what is wrong with it, if anything is.
fn check(server: &TestServer, schema: &Value, temperature: f64, seed: usize) -> Result<bool, String> {
    let request = json!({
        "messages": [{"role": "user", "content": "What does the picture show? Answer in JSON."}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}},
        "temperature": temperature, "seed": seed, "max_tokens": 300,
    });
    let response = server.post("/v1/chat/completions", &request);
    if response.status != 200 {
        return Err(format!("status {}: {}", response.status, response.text()));
    }
    let choice = response.json()["choices"][0].clone();
    let text = choice["message"]["content"].as_str().unwrap_or_default();
    match choice["finish_reason"].as_str() {
        Some("length") => return Ok(false),
        Some("stop") => {}
        _ => return Err(format!("an end of another kind: {choice}")),
    }
    let value = parse_json(text).map_err(|error| format!("{error}: {text}"))?;
    let validator = jsonschema::options()
        .should_validate_formats(true)
        .build(schema)
        .map_err(|error| format!("no schema: {error}"))?;
    validator.validate(&value).map(|()| true).map_err(|error| format!("{error}: {text}"))
}

#[test]
fn every_whole_answer_of_the_embedded_model_validates() {
    if perilune::source::embedded::FILES.is_empty() {
        return;
    }
    let server = TestServer::embedded(small_load());
    let schemas = schemas();
    for temperature in [0.0, 1.0] {
        let (next, whole) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let wrong = Mutex::new(Vec::new());
        let client = || {
            while let Some((i, (name, schema))) = {
                let i = next.fetch_add(1, Ordering::Relaxed);
                schemas.get(i).map(|entry| (i, entry))
            } {
                match check(&server, schema, temperature, i) {
                    Ok(is_whole) => drop(whole.fetch_add(usize::from(is_whole), Ordering::Relaxed)),
                    Err(error) => {
                        let context = format!("{name}, temperature {temperature}: {error}\n{schema}");
                        wrong.lock().expect("no client panics").push(context);
                    }
                }
            }
        };
        std::thread::scope(|scope| (0..NUM_CLIENTS).for_each(|_| drop(scope.spawn(client))));
        let (whole, wrong) = (whole.into_inner(), wrong.into_inner().expect("no client panics"));
        println!("temperature {temperature}: {whole} of {} answers are whole", schemas.len());
        assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
        assert!(whole >= NUM_WANTED, "only {whole} of {} answers are whole", schemas.len());
    }
}
