//! What a chat request means.

use crate::chat::Ending;
use crate::chat::effort::Effort;
use crate::defaults::GenerationDefaults;
use crate::error::ApiError;
use crate::openai::chat::messages;
use crate::openai::chat::tools::{self, ToolFields};
use crate::openai::chat::types::ChatFields;
use crate::openai::generation::{
    Dialect, Generation, GenerationFields, OutputOptions, RequestLimits, check_top,
};
use crate::raw_prompt::ChatPrompt;
use std::sync::Arc;

impl ChatFields {
    pub fn lower(
        self,
        generation: GenerationFields,
        defaults: &GenerationDefaults,
        limits: &RequestLimits,
    ) -> Result<(ChatPrompt, Generation), ApiError> {
        let ChatFields {
            messages,
            max_tokens,
            max_completion_tokens,
            logprobs,
            top_logprobs,
            echo,
            add_generation_prompt,
            continue_final_message,
            add_special_tokens,
            chat_template_kwargs,
            tools,
            tool_choice,
            parallel_tool_calls,
            functions,
            function_call,
            reasoning_effort,
            include_reasoning,
        } = self;
        if echo == Some(true) {
            return Err(ApiError::unsupported("echo", "chat answers do not repeat messages"));
        }
        if add_special_tokens == Some(true) {
            return Err(ApiError::unsupported(
                "add_special_tokens",
                "the chat template writes all special tokens",
            ));
        }
        let messages = messages.ok_or_else(|| ApiError::invalid("messages", "is missing"))?;
        let dialect = Dialect {
            max_tokens: max_completion_tokens
                .map(|max| ("max_completion_tokens", max))
                .or(max_tokens.map(|max| ("max_tokens", max))),
            logprobs: lower_logprobs(logprobs.unwrap_or(false), top_logprobs)?,
        };
        let fields = ToolFields { tools, tool_choice, parallel_tool_calls, functions, function_call };
        let (tools, is_legacy) = tools::lower(fields)?;
        let effort = reasoning_effort.map(|word| lower_effort(&word)).transpose()?;
        let mut generation = generation.lower(dialect, defaults, limits)?;
        let prompt = ChatPrompt {
            messages: messages::lower(messages)?,
            tools: tools.as_ref().map(|tools| tools.shown()),
            effort,
            kwargs: chat_template_kwargs.unwrap_or_default(),
            ending: lower_ending(add_generation_prompt, continue_final_message.unwrap_or(false))?,
            salt: generation.salt,
        };
        generation.output = OutputOptions {
            is_framed: true,
            continues: prompt.ending == Ending::ContinueLast,
            splits_reasoning: true,
            hides_reasoning: include_reasoning == Some(false),
            tools: tools.map(Arc::new),
        };
        generation.report.legacy_calls = is_legacy;
        Ok((prompt, generation))
    }
}

fn lower_effort(word: &str) -> Result<Effort, ApiError> {
    Effort::named(word).ok_or_else(|| {
        ApiError::invalid("reasoning_effort", format!("`{word}` is not one of {}", Effort::names()))
    })
}

pub fn lower_ending(add_generation_prompt: Option<bool>, continue_final: bool) -> Result<Ending, ApiError> {
    match (add_generation_prompt, continue_final) {
        (Some(true), true) => Err(ApiError::invalid(
            "continue_final_message",
            "cannot be set together with add_generation_prompt",
        )),
        (_, true) => Ok(Ending::ContinueLast),
        (Some(false), false) => Ok(Ending::Nothing),
        (_, false) => Ok(Ending::Answer),
    }
}

fn lower_logprobs(logprobs: bool, top: Option<i64>) -> Result<Option<usize>, ApiError> {
    match (logprobs, top) {
        (false, None | Some(0)) => Ok(None),
        (false, Some(_)) => Err(ApiError::invalid("top_logprobs", "is only allowed when `logprobs` is true")),
        (true, top) => check_top("top_logprobs", top.unwrap_or(0)).map(Some),
    }
}
