//! The store's bounds, with a clock of the tests' own.

use super::*;
use crate::openai::chat::response::ResponseHead;
use crate::openai::responses::response::{Echo, Outline, ReasoningEcho, Status, TextEcho};
use serde_json::{Map, Value};

const SECOND: Duration = Duration::from_secs(1);

fn outline(id: &str) -> Arc<Outline> {
    let head =
        ResponseHead { id: id.into(), created: 0, model: "m".into(), system_fingerprint: String::new() };
    let echo = Echo {
        background: false,
        instructions: None,
        max_output_tokens: None,
        max_tool_calls: None,
        metadata: Map::new(),
        parallel_tool_calls: true,
        previous_response_id: None,
        prompt_cache_key: None,
        reasoning: ReasoningEcho { effort: None, summary: None },
        safety_identifier: None,
        service_tier: "default",
        store: true,
        temperature: 1.0,
        text: TextEcho { format: Value::Null },
        tool_choice: Value::Null,
        tools: Vec::new(),
        top_logprobs: 0,
        top_p: 1.0,
        truncation: "disabled",
        user: None,
    };
    Arc::new(Outline { head, echo })
}

fn item(id: &str, len: usize) -> Arc<Item> {
    Arc::new(Item::new(id.into(), "x".repeat(len)))
}

fn outcome(output: Vec<Arc<Item>>) -> Outcome {
    Outcome { status: Status::Completed, json: "{}".into(), output }
}

fn ended(id: &str, context: Vec<Arc<Item>>, output: Vec<Arc<Item>>) -> Arc<Kept> {
    Arc::new(Kept::ended(outline(id), context, outcome(output)))
}

fn store(limits: StoreLimits) -> ResponseStore {
    ResponseStore::new(limits)
}

/// Which of the responses `r0`, `r1`, … are there.
fn present(store: &ResponseStore, num: usize, now: Instant) -> Vec<usize> {
    (0..num).filter(|i| store.get_at(&format!("r{i}"), now).is_ok()).collect()
}

/// What the bytes should be, counted anew.
fn check_bytes(store: &ResponseStore) {
    let inner = store.lock();
    let mut items = HashMap::new();
    let mut bytes = 0;
    for resident in inner.responses.values() {
        bytes += resident.kept.num_bytes();
        let output = resident.kept.outcome().map_or(&[][..], |outcome| &outcome.output);
        for item in resident.kept.context.iter().chain(output) {
            items.insert(item.key, item.num_bytes());
        }
    }
    assert_eq!(inner.bytes, bytes + items.values().sum::<u64>());
    assert_eq!(inner.items.len(), items.len());
    assert_eq!(inner.numbers.len(), inner.responses.len());
}

#[test]
fn the_oldest_go_first() {
    let now = Instant::now();
    let big = |count| StoreLimits { bytes_max: count * 100_000_u64 + 50_000, ..StoreLimits::default() };
    let num = |count| StoreLimits { num_responses_max: count, ..StoreLimits::default() };
    for (limits, expected) in [
        (StoreLimits::default(), vec![0, 1, 2, 3]),
        (num(4), vec![0, 1, 2, 3]),
        (num(3), vec![1, 2, 3]),
        (num(1), vec![3]),
        (num(0), vec![]),
        (big(4), vec![0, 1, 2, 3]),
        (big(2), vec![2, 3]),
        (big(0), vec![]),
    ] {
        let store = store(limits);
        for i in 0..4 {
            store.insert_at(ended(&format!("r{i}"), vec![item("i", 100_000)], vec![]), now);
            check_bytes(&store);
        }
        assert_eq!(present(&store, 4, now), expected, "{limits:?}");
        for i in 0..4 {
            let Err(error) = store.get_at(&format!("r{i}"), now) else { continue };
            assert!(error.to_string().contains("was pushed out"), "{error}");
        }
        let unknown = store.get_at("r9", now).err().expect("not there").to_string();
        assert!(unknown.contains("there is no response r9"), "{unknown}");
    }
}

#[test]
fn the_old_go_by_time() {
    let start = Instant::now();
    let store = store(StoreLimits { age_max: 10 * SECOND, ..StoreLimits::default() });
    for i in 0..3 {
        store.insert_at(ended(&format!("r{i}"), vec![], vec![item("o", 10)]), start + 4 * SECOND * i);
    }
    for (after, expected) in
        [(8, vec![0, 1, 2]), (10, vec![0, 1, 2]), (11, vec![1, 2]), (18, vec![2]), (19, vec![])]
    {
        assert_eq!(present(&store, 3, start + after * SECOND), expected, "{after}");
        check_bytes(&store);
    }
    assert_eq!(store.lock().bytes, 0);
}

#[test]
fn a_conversation_is_counted_once() {
    let now = Instant::now();
    let store = store(StoreLimits::default());
    let mut context = Vec::new();
    for turn in 0..20 {
        context.push(item(&format!("in{turn}"), 10_000));
        let output = item(&format!("out{turn}"), 10_000);
        store.insert_at(ended(&format!("r{turn}"), context.clone(), vec![output.clone()]), now);
        context.push(output);
        check_bytes(&store);
    }
    let bytes = store.lock().bytes;
    assert!((400_000..500_000).contains(&bytes), "{bytes}");
    // What a later response needs outlives the response that it came from.
    for turn in 0..19 {
        store.remove(&format!("r{turn}")).expect("there");
        check_bytes(&store);
    }
    assert!(store.item("in0").is_some());
    store.remove("r19").expect("there");
    assert_eq!(store.lock().bytes, 0);
    assert!(store.item("in0").is_none());
    assert!(store.remove("r19").is_err());
}

#[test]
fn the_latest_item_of_an_id_is_found() {
    let now = Instant::now();
    let store = store(StoreLimits::default());
    let (old, new) = (item("i", 1), item("i", 2));
    store.insert_at(ended("r0", vec![old.clone()], vec![]), now);
    store.insert_at(ended("r1", vec![new.clone()], vec![]), now);
    assert_eq!(store.item("i").map(|item| item.key), Some(new.key));
    store.remove("r0").expect("there");
    assert_eq!(store.item("i").map(|item| item.key), Some(new.key));
    store.remove("r1").expect("there");
    assert!(store.item("i").is_none());
}

#[test]
fn what_runs_stays() {
    let now = Instant::now();
    let store = store(StoreLimits { num_responses_max: 1, num_background_max: 1, ..StoreLimits::default() });
    let place = store.begin_background().expect("a place");
    assert!(store.begin_background().is_err());
    let running = Arc::new(Kept::running(outline("r0"), vec![item("i", 10)], true));
    store.insert_at(running.clone(), now);
    store.insert_at(ended("r1", vec![], vec![]), now);
    assert_eq!(present(&store, 2, now), [0], "the one that has ended makes room");
    running.tell(axum::body::Bytes::from_static(b"data: 0\n\ndata: 1\n\n"));
    store.settle(&running, outcome(vec![item("o", 10)]));
    store.settle(&running, outcome(vec![item("again", 10)]));
    check_bytes(&store);
    assert!(store.item("o").is_some() && store.item("again").is_none());
    drop(place);
    assert!(store.begin_background().is_ok());
    // Deleted while it ran: it does not come back.
    let gone = Arc::new(Kept::running(outline("r2"), vec![], false));
    store.insert_at(gone.clone(), now);
    store.remove("r2").expect("there");
    store.settle(&gone, outcome(vec![item("lost", 10)]));
    assert!(store.get_at("r2", now).is_err() && store.item("lost").is_none());
    check_bytes(&store);
}

#[test]
fn few_ids_are_remembered() {
    let mut pushed_out = PushedOut::default();
    pushed_out.extend((0..NUM_PUSHED_OUT_KNOWN + 2).map(|i| i.to_string()));
    assert_eq!((pushed_out.ids.len(), pushed_out.order.len()), (NUM_PUSHED_OUT_KNOWN, NUM_PUSHED_OUT_KNOWN));
    assert!(!pushed_out.ids.contains("1") && pushed_out.ids.contains("2"));
}
