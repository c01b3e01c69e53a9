//! The wire form of a request for a message.

use crate::openai::fields::request_fields;
use serde_json::Value;

request_fields! {
    pub struct MessageFields {
        model: String,
        /// Of the answer, thinking counted. Not needed to count tokens.
        max_tokens: usize,
        /// Of the roles user and assistant. Where the last one is the assistant's, the answer goes on with it.
        messages: Vec<Value>,
        /// A string, or blocks of text.
        system: Value,
        stop_sequences: Vec<String>,
        temperature: f32,
        top_p: f32,
        top_k: i64,
        stream: bool,
        tools: Vec<Value>,
        /// `auto`, `any`, `tool` with a `name`, or `none`, as `type`; `disable_parallel_tool_use`.
        tool_choice: Value,
        /// `enabled` with `budget_tokens`, `disabled`, or `adaptive`, which leaves it to the model.
        thinking: Value,
        /// `effort`, and `format` with a JSON schema.
        output_config: Value,
    }
}
