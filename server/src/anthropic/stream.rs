//! A message as events: each block is begun, continued and ended before the next begins.
//!
//! The thinking comes first; a call that goes on comes before text that follows it, so that no block is left and taken up again. Text
//! after a call is a block of its own.

use super::errors;
use super::response::{UsageJson, stop_reason};
use crate::error::ApiError;
use crate::openai::answer::{CallDelta, Delta, Finish, Usage};
use crate::openai::chat::response::ResponseHead;
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
        let mut calls = &delta.calls[..];
        if let [call, rest @ ..] = calls
            && call.start.is_none()
        {
            self.call(out, call);
            calls = rest;
        }
        if !delta.text.is_empty() {
            if self.open != Some(Open::Text) {
                self.start(out, Open::Text, json!({ "type": "text", "text": "" }));
            }
            self.piece(out, "text_delta", "text", &delta.text);
        }
        for call in calls {
            self.call(out, call);
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
