//! The request for embeddings: its fields and what they mean.

use crate::chat::Ending;
use crate::error::ApiError;
use crate::openai::chat::lower::lower_ending;
use crate::openai::chat::messages;
use crate::openai::completions::lower::lower_prompt;
use crate::openai::completions::types::PromptField;
use crate::openai::fields::request_fields;
use crate::openai::generation::{RequestLimits, lower_salt};
use crate::raw_prompt::{ChatPrompt, RawPrompt};
use crate::reading::ReadOptions;
use scheduler::Pooling;
use serde_json::{Map, Value};

request_fields! {
    pub struct EmbeddingFields {
        model: String,
        /// A string, strings, token ids, or lists of token ids …
        input: PromptField,
        /// … or messages as in chat completions, pictures included.
        messages: Vec<Value>,
        encoding_format: String,
        dimensions: i64,
        pooling_type: String,
        normalize: bool,
        add_special_tokens: bool,
        add_generation_prompt: bool,
        continue_final_message: bool,
        chat_template_kwargs: Map<String, Value>,
        priority: i32,
        cache_salt: String,
        request_id: String,
    }
}

pub struct Lowered {
    pub model: Option<String>,
    pub request_id: Option<String>,
    pub input: Input,
    pub form: Form,
    pub pooling: Pooling,
    pub options: ReadOptions,
}

pub enum Input {
    Texts { prompts: Vec<RawPrompt>, add_special_tokens: bool },
    Chat(ChatPrompt),
}

/// What is made of a pooled vector.
#[derive(Debug, Clone, Copy)]
pub struct Form {
    pub encoding: Encoding,
    /// Only the first so many values.
    pub dimensions: Option<usize>,
    pub normalise: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    Float,
    Base64,
}

impl EmbeddingFields {
    pub fn lower(self, hidden_size: usize, limits: &RequestLimits) -> Result<Lowered, ApiError> {
        let EmbeddingFields {
            model,
            input,
            messages,
            encoding_format,
            dimensions,
            pooling_type,
            normalize,
            add_special_tokens,
            add_generation_prompt,
            continue_final_message,
            chat_template_kwargs,
            priority,
            cache_salt,
            request_id,
        } = self;
        let salt = lower_salt(cache_salt)?;
        let (input, param) = match (input, messages) {
            (Some(input), None) => {
                let prompts = lower_inputs(input, limits.num_inputs_max)?;
                (Input::Texts { prompts, add_special_tokens: add_special_tokens.unwrap_or(true) }, "input")
            }
            (None, Some(messages)) => {
                if add_special_tokens == Some(true) {
                    let why = "the chat template writes all special tokens";
                    return Err(ApiError::unsupported("add_special_tokens", why));
                }
                let chat = ChatPrompt {
                    tools: None,
                    effort: None,
                    messages: messages::lower(messages)?,
                    kwargs: chat_template_kwargs.unwrap_or_default(),
                    ending: ending(add_generation_prompt, continue_final_message.unwrap_or(false))?,
                    salt,
                };
                (Input::Chat(chat), "messages")
            }
            (Some(_), Some(_)) => {
                return Err(ApiError::invalid("input", "cannot be given together with messages"));
            }
            (None, None) => return Err(ApiError::invalid("input", "is missing")),
        };
        let form = Form {
            encoding: lower_encoding(encoding_format.as_deref())?,
            dimensions: dimensions.map(|dimensions| lower_dimensions(dimensions, hidden_size)).transpose()?,
            normalise: normalize.unwrap_or(true),
        };
        let pooling = lower_pooling(pooling_type.as_deref())?;
        let options = ReadOptions { param, priority: priority.unwrap_or(0), salt };
        Ok(Lowered { model, request_id, input, form, pooling, options })
    }
}

/// Nothing is to be generated, so without a word about it nothing is opened for it.
fn ending(add_generation_prompt: Option<bool>, continue_final: bool) -> Result<Ending, ApiError> {
    let add_generation_prompt = add_generation_prompt.or((!continue_final).then_some(false));
    lower_ending(add_generation_prompt, continue_final)
}

fn lower_inputs(input: PromptField, limit: usize) -> Result<Vec<RawPrompt>, ApiError> {
    let single = matches!(input, PromptField::Text(_) | PromptField::Tokens(_));
    let prompts = lower_prompt(input);
    if prompts.is_empty() {
        return Err(ApiError::invalid("input", "is empty"));
    }
    if prompts.len() > limit {
        return Err(ApiError::invalid("input", format!("{} inputs are above {limit}", prompts.len())));
    }
    let is_empty = |prompt: &RawPrompt| match prompt {
        RawPrompt::Text(text) => text.is_empty(),
        RawPrompt::Tokens(tokens) => tokens.is_empty(),
    };
    match prompts.iter().position(is_empty) {
        Some(_) if single => Err(ApiError::invalid("input", "is empty")),
        Some(at) => Err(ApiError::invalid(format!("input[{at}]"), "is empty")),
        None => Ok(prompts),
    }
}

fn lower_encoding(format: Option<&str>) -> Result<Encoding, ApiError> {
    match format {
        None | Some("float") => Ok(Encoding::Float),
        Some("base64") => Ok(Encoding::Base64),
        Some(other) => {
            let message = format!("`{other}` is not one of `float`, `base64`");
            Err(ApiError::invalid("encoding_format", message))
        }
    }
}

fn lower_dimensions(dimensions: i64, hidden_size: usize) -> Result<usize, ApiError> {
    match usize::try_from(dimensions) {
        Ok(dimensions) if (1..=hidden_size).contains(&dimensions) => Ok(dimensions),
        _ => {
            let message = format!("{dimensions} is not in [1, {hidden_size}]");
            Err(ApiError::invalid("dimensions", message))
        }
    }
}

pub fn lower_pooling(kind: Option<&str>) -> Result<Pooling, ApiError> {
    match kind.map(str::to_ascii_lowercase).as_deref() {
        None | Some("last") => Ok(Pooling::Last),
        Some("mean") => Ok(Pooling::Mean),
        Some(other) => {
            let message = format!("`{other}` is not one of `last`, `mean`");
            Err(ApiError::invalid("pooling_type", message))
        }
    }
}
