//! Items as the messages of a chat. What an assistant thought, said and called between two other items is one message of its.

use super::input::missing;
use crate::error::ApiError;
use crate::openai::chat::compose::{Composed, Part, text};
use serde_json::{Map, Value, json};
use std::collections::HashSet;

/// An item in its normal form, and where it stands in the request.
pub type Placed = (String, Value);

pub fn lower(instructions: Option<&str>, items: Vec<Placed>) -> Result<Composed, ApiError> {
    let mut lowering = Lowering::default();
    if let Some(instructions) = instructions {
        lowering.system(vec![("instructions".to_owned(), text(instructions))]);
    }
    for (path, item) in items {
        lowering.item(path, item)?;
    }
    lowering.end_turn();
    Ok(lowering.composed)
}

#[derive(Default)]
struct Lowering {
    composed: Composed,
    turn: Turn,
    calls: HashSet<String>,
}

/// An assistant's message that may go on.
#[derive(Default)]
struct Turn {
    /// Where it began; `None` while there is none.
    path: Option<String>,
    thinking: String,
    parts: Vec<Part>,
    calls: Vec<Value>,
}

impl Lowering {
    fn item(&mut self, path: String, mut item: Value) -> Result<(), ApiError> {
        match item["type"].as_str().unwrap_or_default() {
            "message" => {
                let parts = parts(&format!("{path}.content"), item["content"].take());
                match item["role"].as_str().unwrap_or_default() {
                    "assistant" => self.say(path, parts),
                    "user" => {
                        self.end_turn();
                        self.composed.add("user", parts, Map::new());
                    }
                    // Templates know one name for both.
                    _ => self.system(parts),
                }
            }
            "reasoning" => self.think(path, &item),
            "function_call" => self.call(path, item),
            "function_call_output" => return self.output(path, item),
            kind => unreachable!("`{kind}` is not a normal item"),
        }
        Ok(())
    }

    /// Templates know one system message at the beginning, some of them no other.
    fn system(&mut self, parts: Vec<Part>) {
        self.end_turn();
        let last = self.composed.messages.last_mut().filter(|last| last["role"] == "system");
        let (Some(Value::String(earlier)), true) = (
            last.and_then(|last| last.get_mut("content")),
            parts.iter().all(|(_, part)| part["type"] == "text"),
        ) else {
            return self.composed.add("system", parts, Map::new());
        };
        for (_, part) in &parts {
            earlier.push_str("\n\n");
            earlier.push_str(part["text"].as_str().unwrap_or_default());
        }
    }

    fn think(&mut self, path: String, item: &Value) {
        if !(self.turn.parts.is_empty() && self.turn.calls.is_empty()) {
            self.end_turn();
        }
        self.turn.path.get_or_insert(path);
        let texts = |field: &str| -> String {
            let texts = item[field].as_array().into_iter().flatten();
            texts.filter_map(|part| part["text"].as_str()).collect()
        };
        let content = texts("content");
        self.turn.thinking.push_str(&if content.is_empty() { texts("summary") } else { content });
    }

    fn say(&mut self, path: String, parts: Vec<Part>) {
        if !(self.turn.parts.is_empty() && self.turn.calls.is_empty()) {
            self.end_turn();
        }
        self.turn.path.get_or_insert(path);
        self.turn.parts = parts;
    }

    fn call(&mut self, path: String, mut item: Value) {
        self.turn.path.get_or_insert(path);
        self.calls.extend(item["call_id"].as_str().map(str::to_owned));
        self.turn.calls.push(json!({
            "id": item["call_id"].take(), "type": "function",
            "function": { "name": item["name"].take(), "arguments": item["arguments"].take() },
        }));
    }

    fn output(&mut self, path: String, mut item: Value) -> Result<(), ApiError> {
        self.end_turn();
        let call_id = item["call_id"].as_str().ok_or_else(|| missing(&path, "call_id"))?.to_owned();
        if !self.calls.contains(&call_id) {
            let message = format!("there is no function_call `{call_id}` before it");
            return Err(ApiError::invalid(format!("{path}.call_id"), message));
        }
        let parts = match item["output"].take() {
            Value::String(words) => vec![(format!("{path}.output"), text(&words))],
            output => parts(&format!("{path}.output"), output),
        };
        self.composed.add("tool", parts, Map::from_iter([("tool_call_id".to_owned(), call_id.into())]));
        Ok(())
    }

    fn end_turn(&mut self) {
        let Turn { path, thinking, parts, calls } = std::mem::take(&mut self.turn);
        let Some(path) = path else { return };
        let mut fields = Map::new();
        if !thinking.is_empty() {
            fields.insert("reasoning_content".to_owned(), thinking.into());
        }
        let says_nothing = parts.is_empty();
        if !calls.is_empty() {
            fields.insert("tool_calls".to_owned(), calls.into());
        }
        self.composed.add("assistant", parts, fields);
        if says_nothing && let Some(places) = self.composed.places.0.last_mut() {
            places.push(path);
        }
    }
}

/// The parts of a normal item, as a chat has them.
fn parts(path: &str, parts: Value) -> Vec<Part> {
    let Value::Array(parts) = parts else { return Vec::new() };
    let lower_part = |(i, mut part): (usize, Value)| {
        let lowered = match part["type"].as_str() {
            Some("input_image") => {
                json!({ "type": "image_url", "image_url": { "url": part["image_url"].take() } })
            }
            Some("refusal") => json!({ "type": "text", "text": part["refusal"].take() }),
            _ => json!({ "type": "text", "text": part["text"].take() }),
        };
        (format!("{path}[{i}]"), lowered)
    };
    parts.into_iter().enumerate().map(lower_part).collect()
}
