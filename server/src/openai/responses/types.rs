//! The wire form of a request for a response.

use crate::openai::fields::request_fields;
use crate::openai::generation::Stop;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

request_fields! {
    pub struct ResponseFields {
        model: String,
        /// A string, or items: messages, `function_call`, `function_call_output`, `reasoning`, `item_reference`. May be
        /// absent with `previous_response_id`.
        input: Value,
        /// Goes before the input as a system message; not carried over by `previous_response_id`.
        instructions: String,
        /// A stored response that has ended: the conversation goes on after its output.
        previous_response_id: String,
        /// False: the response cannot be asked for later. Default: true, where the server keeps any.
        store: bool,
        /// The answer is made without its client, who asks for it later; needs `store`.
        background: bool,
        stream: bool,
        stream_options: ResponseStreamOptions,
        /// Of type `function`.
        tools: Vec<Value>,
        /// `auto`, `none`, `required`, or an object of type `function` or `allowed_tools`.
        tool_choice: Value,
        parallel_tool_calls: bool,
        /// `format` of type `text`, `json_object` or `json_schema`.
        text: Map<String, Value>,
        /// `effort`.
        reasoning: Map<String, Value>,
        /// Of the answer, thinking counted.
        max_output_tokens: usize,
        temperature: f32,
        top_p: f32,
        /// From 0 to 20; with `message.output_text.logprobs` in `include`.
        top_logprobs: i64,
        /// `message.output_text.logprobs`.
        include: Vec<String>,
        /// Up to 16 pairs of strings, given back as they are.
        metadata: Map<String, Value>,
        /// `disabled`; `auto` drops the oldest items of a conversation that does not fit.
        truncation: String,
        /// Has no effect here: there are no built-in tools.
        max_tool_calls: usize,
        user: String,
        safety_identifier: String,
        prompt_cache_key: String,
        service_tier: String,
        /// A conversation kept by the server, which there is none of here.
        conversation: Value,
        /// A prompt kept by the server, which there is none of here.
        prompt: Value,
        /// Compaction, which there is none of here.
        context_management: Value,
        /// Other than a background answer's own terms there are none here.
        background_options: Value,
        /// `context_compression`, which there is none of here.
        image: Map<String, Value>,
        /// Not OpenAI's, as in chat completions.
        top_k: i64,
        /// Not OpenAI's, as in chat completions.
        seed: i64,
        /// Not OpenAI's here, as in chat completions.
        stop: Stop,
        /// Not OpenAI's, as in chat completions.
        ignore_eos: bool,
        /// Not OpenAI's here, as in chat completions.
        frequency_penalty: f32,
        /// Not OpenAI's here, as in chat completions.
        presence_penalty: f32,
        /// Not OpenAI's, as in chat completions.
        priority: i32,
        /// Not OpenAI's, as in chat completions.
        cache_salt: String,
        /// Not OpenAI's, as in chat completions.
        chat_template_kwargs: Map<String, Value>,
        /// Not OpenAI's, as in chat completions.
        thinking_token_budget: usize,
    }
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
pub struct ResponseStreamOptions {
    /// Nothing is obfuscated here.
    #[serde(default)]
    pub include_obfuscation: Option<bool>,
}

#[derive(Debug, Deserialize, JsonSchema)]
pub struct RetrieveQuery {
    /// Events from the first one on; of a background response that was made with `stream`.
    pub stream: Option<bool>,
    /// Only events after the one with this number.
    pub starting_after: Option<usize>,
    /// Accepted, and without effect: everything that is known is told anyway.
    #[allow(dead_code, reason = "part of the schema")]
    pub include: Option<String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
pub struct ItemsQuery {
    /// Most items to list, up to 100; 20 where it is absent.
    pub limit: Option<usize>,
    /// `asc` or `desc`, which is the default.
    pub order: Option<String>,
    /// Go on after the item with this id.
    pub after: Option<String>,
}
