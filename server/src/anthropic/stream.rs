//! A message as events: each block is begun, continued and ended before the next begins.
//!
//! The thinking comes first; then text and calls as they were said, so that no block is left and taken up again. Text after a call is a
//! block of its own, as it is in a message in one piece.

use super::errors;
use super::response::{UsageJson, stop_reason};
use crate::error::ApiError;
use crate::openai::chat::response::ResponseHead;
use crate::openai::delta::{CallDelta, Delta, Finish, Said, Usage};
use crate::openai::json;
use crate::openai::stream::Dialect;
use bytes::BytesMut;
use serde::Serialize;
use serde_json::{Value, json};

pub struct MessageEvents {
    head: ResponseHead,
    open: Option<Open>,
    num_blocks: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Open {
    Thinking,
    Text,
    /// By its number among the calls.
    Call(usize),
}

fn event<T: Serialize + ?Sized>(out: &mut BytesMut, kind: &str, data: &T) {
    json::raw(out, "event: ");
    json::raw(out, kind);
    json::raw(out, "\ndata: ");
    json::value(out, data);
    json::raw(out, "\n\n");
}

impl MessageEvents {
    pub fn new(head: ResponseHead) -> Self {
        Self { head, open: None, num_blocks: 0 }
    }

    fn start(&mut self, out: &mut BytesMut, open: Open, block: Value) {
        self.stop(out);
        let start =
            json!({ "type": "content_block_start", "index": self.num_blocks, "content_block": block });
        event(out, "content_block_start", &start);
        self.num_blocks += 1;
        self.open = Some(open);
    }

    fn stop(&mut self, out: &mut BytesMut) {
        let Some(open) = self.open.take() else { return };
        let index = self.num_blocks - 1;
        if open == Open::Thinking {
            self.piece(out, "signature_delta", "signature", "");
        }
        event(out, "content_block_stop", &json!({ "type": "content_block_stop", "index": index }));
    }

    /// More of the block that is open.
    fn piece(&self, out: &mut BytesMut, kind: &str, field: &str, text: &str) {
        json::raw(out, "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":");
        json::value(out, &self.num_blocks.saturating_sub(1));
        json::raw(out, ",\"delta\":{\"type\":\"");
        json::raw(out, kind);
        json::raw(out, "\",\"");
        json::raw(out, field);
        json::raw(out, "\":");
        json::value(out, text);
        json::raw(out, "}}\n\n");
    }

    fn call(&mut self, out: &mut BytesMut, call: &CallDelta) {
        if let Some(start) = &call.start {
            let block = json!({ "type": "tool_use", "id": start.id, "name": start.name, "input": {} });
            self.start(out, Open::Call(call.index), block);
        }
        if !call.arguments.is_empty() {
            self.piece(out, "input_json_delta", "partial_json", &call.arguments);
        }
        if call.is_complete {
            self.stop(out);
        }
    }
}

impl Dialect for MessageEvents {
    fn begin(&mut self, out: &mut BytesMut, usage: Usage) {
        let message = json!({
            "id": self.head.id, "type": "message", "role": "assistant", "model": self.head.model, "content": [],
            "stop_reason": null, "stop_sequence": null,
            // What is told with the first event is the prompt; the answer's tokens come with its end.
            "usage": UsageJson::from(Usage { completion_tokens: 0, ..usage }),
        });
        event(out, "message_start", &json!({ "type": "message_start", "message": message }));
    }

    fn delta(&mut self, out: &mut BytesMut, _choice: usize, delta: &Delta, _usage: Usage) {
        if !delta.reasoning.is_empty() {
            if self.open != Some(Open::Thinking) {
                self.start(
                    out,
                    Open::Thinking,
                    json!({ "type": "thinking", "thinking": "", "signature": "" }),
                );
            }
            self.piece(out, "thinking_delta", "thinking", &delta.reasoning);
        }
        for said in delta.said() {
            match said {
                Said::Text(text) => {
                    if self.open != Some(Open::Text) {
                        self.start(out, Open::Text, json!({ "type": "text", "text": "" }));
                    }
                    self.piece(out, "text_delta", "text", text);
                }
                Said::Call(call) => self.call(out, call),
            }
        }
    }

    fn finish(&mut self, out: &mut BytesMut, _choice: usize, _last: &Delta, finish: &Finish, usage: Usage) {
        self.stop(out);
        let (stop_reason, stop_sequence) = stop_reason(finish);
        let delta = json!({
            "type": "message_delta", "delta": { "stop_reason": stop_reason, "stop_sequence": stop_sequence },
            "usage": UsageJson::from(usage),
        });
        event(out, "message_delta", &delta);
        event(out, "message_stop", &json!({ "type": "message_stop" }));
    }

    /// Told with the end of the only choice.
    fn usage(&mut self, _out: &mut BytesMut, _usage: Usage) {}

    /// Clients take this for the end, and nothing after it.
    fn fail(&mut self, out: &mut BytesMut, error: &ApiError) {
        event(out, "error", &errors::body(error, None));
    }

    /// `message_stop` or `error` was the end.
    fn end(&mut self, _out: &mut BytesMut) {}

    fn keep_alive(&mut self, out: &mut BytesMut) {
        event(out, "ping", &json!({ "type": "ping" }));
    }
}

#[cfg(test)]
mod tests {
    use super::super::response::blocks;
    use super::*;
    use crate::chat::parse::Events;

    fn say(delta: &mut Delta, step: usize) {
        let begin = |delta: &mut Delta, index: usize| {
            delta.call_start(index, format!("id{index}"), "f".to_owned());
        };
        match step {
            0 => delta.reasoning("Hm."),
            1 => delta.text("one "),
            2 => delta.text("two"),
            3 => begin(delta, 0),
            4 => delta.call_arguments(0, "{\"a\":"),
            5 => delta.call_arguments(0, "1}"),
            6 => delta.call_end(0),
            7 => delta.text("between"),
            8 => begin(delta, 1),
            9 => delta.call_arguments(1, "{}"),
            10 => delta.call_end(1),
            11 => delta.text("after"),
            _ => delta.text("wards"),
        }
    }

    const NUM_STEPS: usize = 13;

    /// What a client makes of the events.
    fn joined(text: &str) -> Vec<Value> {
        let mut blocks: Vec<Value> = Vec::new();
        let mut json_text = String::new();
        for event in text.split("\n\n").filter_map(|event| event.split_once("\ndata: ")) {
            let event: Value = serde_json::from_str(event.1).expect("JSON");
            let delta = &event["delta"];
            match event["type"].as_str() {
                Some("content_block_start") => {
                    blocks.push(event["content_block"].clone());
                    json_text.clear();
                }
                Some("content_block_stop")
                    if blocks.last().is_some_and(|block| block["type"] == "tool_use") =>
                {
                    blocks.last_mut().expect("a block")["input"] =
                        serde_json::from_str(&json_text).expect("JSON");
                }
                Some("content_block_delta") => {
                    let block = blocks.last_mut().expect("a block");
                    for field in ["text", "thinking"] {
                        if let Some(more) = delta[field].as_str() {
                            block[field] = format!("{}{more}", block[field].as_str().expect("text")).into();
                        }
                    }
                    json_text.push_str(delta["partial_json"].as_str().unwrap_or_default());
                }
                _ => {}
            }
        }
        blocks
    }

    /// However the answer is cut into deltas, whole calls and what follows them in one of them included.
    #[test]
    fn blocks_are_the_same_in_any_pieces() {
        let mut whole = Delta::default();
        (0..NUM_STEPS).for_each(|step| say(&mut whole, step));
        let expected = serde_json::to_value(blocks(&whole)).expect("JSON");
        let kinds: Vec<_> = expected.as_array().expect("blocks").iter().map(|block| &block["type"]).collect();
        assert_eq!(kinds, ["thinking", "text", "tool_use", "text", "tool_use", "text"]);
        for cuts in 0..1u32 << (NUM_STEPS - 1) {
            let head = ResponseHead {
                id: "a".into(),
                created: 0,
                model: "m".into(),
                system_fingerprint: "f".into(),
            };
            let (mut events, mut out) = (MessageEvents::new(head), BytesMut::new());
            let mut delta = Delta::default();
            for step in 0..NUM_STEPS {
                say(&mut delta, step);
                if cuts >> step & 1 == 1 || step + 1 == NUM_STEPS {
                    let usage = Usage {
                        prompt_tokens: 1,
                        completion_tokens: 1,
                        reasoning_tokens: 0,
                        cached_tokens: 0,
                    };
                    events.delta(&mut out, 0, &delta, usage);
                    delta.clear();
                }
            }
            events.stop(&mut out);
            let text = std::str::from_utf8(&out).expect("UTF-8");
            assert_eq!(Value::from(joined(text)), expected, "cut at {cuts:b}:\n{text}");
        }
    }
}
