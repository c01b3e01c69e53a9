//! What a completion request means.

use crate::defaults::GenerationDefaults;
use crate::error::ApiError;
use crate::openai::completions::types::{CompletionFields, PromptField};
use crate::openai::generation::check_top;
use crate::openai::generation::{Dialect, Generation, GenerationFields, RequestLimits};
use crate::raw_prompt::RawPrompt;

/// As in OpenAI's API.
const MAX_TOKENS: usize = 16;

pub struct Lowered {
    pub prompts: Vec<RawPrompt>,
    pub echo: bool,
    pub add_special_tokens: bool,
    pub generation: Generation,
}

impl CompletionFields {
    pub fn lower(
        self,
        generation: GenerationFields,
        defaults: &GenerationDefaults,
        limits: &RequestLimits,
    ) -> Result<Lowered, ApiError> {
        let CompletionFields { prompt, max_tokens, logprobs, echo, add_special_tokens } = self;
        let echo = echo.unwrap_or(false);
        let prompts = lower_prompt(prompt.ok_or_else(|| ApiError::invalid("prompt", "is missing"))?);
        if prompts.is_empty() {
            return Err(ApiError::invalid("prompt", "is empty"));
        }
        if prompts.len() > limits.num_prompts_max {
            let message = format!("{} prompts are above {}", prompts.len(), limits.num_prompts_max);
            return Err(ApiError::invalid("prompt", message));
        }
        let max_tokens = max_tokens.unwrap_or(MAX_TOKENS);
        // Nothing but the prompt: only where something of the prompt is asked for.
        let reads_only = max_tokens == 0 && (echo || generation.prompt_logprobs.is_some());
        let dialect = Dialect {
            max_tokens: Some(("max_tokens", if reads_only { 1 } else { max_tokens })),
            logprobs: logprobs.map(|top| check_top("logprobs", top)).transpose()?,
        };
        let mut generation = generation.lower(dialect, defaults, limits)?;
        generation.max_tokens = Some(max_tokens);
        if echo {
            generation.prompt_top = generation.prompt_top.max(generation.report.logprobs);
        }
        Ok(Lowered { prompts, echo, add_special_tokens: add_special_tokens.unwrap_or(true), generation })
    }
}

pub fn lower_prompt(prompt: PromptField) -> Vec<RawPrompt> {
    match prompt {
        PromptField::Text(text) => vec![RawPrompt::Text(text)],
        PromptField::Tokens(tokens) if tokens.is_empty() => Vec::new(),
        PromptField::Tokens(tokens) => vec![RawPrompt::Tokens(tokens)],
        PromptField::Texts(texts) => texts.into_iter().map(RawPrompt::Text).collect(),
        PromptField::TokenLists(lists) => lists.into_iter().map(RawPrompt::Tokens).collect(),
    }
}
