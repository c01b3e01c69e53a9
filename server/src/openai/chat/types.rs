//! The wire form of a chat completion's request.

use crate::error::ApiError;
use crate::openai::fields::{Fields, Ignored, request_fields};
use crate::openai::generation::GenerationFields;
use serde_json::{Map, Value};

request_fields! {
    pub struct ChatFields {
        messages: Vec<Value>,
        max_tokens: usize,
        max_completion_tokens: usize,
        logprobs: bool,
        top_logprobs: i64,
        /// Would repeat the last message in the answer.
        echo: bool,
        add_generation_prompt: bool,
        continue_final_message: bool,
        add_special_tokens: bool,
        chat_template_kwargs: Map<String, Value>,
        tools: Vec<Value>,
        /// `auto`, `none`, `required`, or an object that names a function or the functions that are allowed.
        tool_choice: Value,
        parallel_tool_calls: bool,
        /// What tools were called before.
        functions: Vec<Value>,
        /// `auto`, `none`, or an object that names a function.
        function_call: Value,
        reasoning_effort: String,
        /// False: thinking is not told.
        include_reasoning: bool,
    }
}

#[derive(Debug)]
pub struct ChatCompletionRequest {
    pub chat: ChatFields,
    pub generation: GenerationFields,
    pub ignored: Ignored,
}

impl ChatCompletionRequest {
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let chat = ChatFields::take(&mut fields)?;
        let generation = GenerationFields::take(&mut fields)?;
        Ok(Self { chat, generation, ignored: fields.into_ignored()? })
    }
}
