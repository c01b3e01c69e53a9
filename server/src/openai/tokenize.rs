//! `POST /tokenize` and `/detokenize`, and `GET /tokenizer_info`, in vLLM's shapes.

use crate::app::App;
use crate::chat::{ChatTemplate, Shown, SpecialNames};
use crate::error::ApiError;
use crate::openai::chat::lower::lower_ending;
use crate::openai::chat::messages;
use crate::openai::exchange::json_response;
use crate::openai::fields::{Fields, request_fields};
use crate::raw_prompt::{ChatPrompt, RawPrompt};
use crate::request::ApiRequest;
use axum::extract::State;
use axum::response::Response;
use scheduler::{Digest, TokenId};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};
use std::sync::Arc;

request_fields! {
    pub struct TokenizeFields {
        model: String,
        /// Either a prompt as in completions …
        prompt: String,
        /// … or messages as in chat completions.
        messages: Vec<Value>,
        add_special_tokens: bool,
        add_generation_prompt: bool,
        continue_final_message: bool,
        chat_template_kwargs: Map<String, Value>,
        /// Shown by the template as in chat completions.
        tools: Vec<Value>,
        return_token_strs: bool,
    }
}

request_fields! {
    pub struct DetokenizeFields {
        model: String,
        tokens: Vec<TokenId>,
    }
}

#[derive(Serialize, JsonSchema)]
pub struct Tokenized {
    count: usize,
    max_model_len: usize,
    tokens: Vec<TokenId>,
    token_strs: Option<Vec<String>>,
}

#[derive(Serialize, JsonSchema)]
pub struct Detokenized {
    prompt: String,
}

/// What tokenizer_config.json says of the special tokens, with the template that is in use.
#[derive(Serialize, JsonSchema)]
pub struct TokenizerInfo {
    /// As the checkpoint names it, though the tokenizer is our own.
    tokenizer_class: String,
    bos_token: Option<String>,
    eos_token: Option<String>,
    unk_token: Option<String>,
    pad_token: Option<String>,
    vocab_size: usize,
    model_max_length: usize,
    chat_template: Option<String>,
}

pub async fn tokenizer_info(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    if !app.limits.tokenizer_info {
        return Err(ApiError::RouteOff { flag: "--enable-tokenizer-info-endpoint" });
    }
    let service = app.service()?;
    let tokenizer = service.tokenizer();
    let SpecialNames { bos, eos, unk, pad, class } = tokenizer.names().clone();
    Ok(json_response(&TokenizerInfo {
        tokenizer_class: class.unwrap_or_else(|| "PreTrainedTokenizerFast".to_string()),
        bos_token: bos,
        eos_token: eos,
        unk_token: unk,
        pad_token: pad,
        vocab_size: tokenizer.vocab_size(),
        model_max_length: service.info().max_model_len,
        chat_template: service.prompts().template().and_then(ChatTemplate::source),
    }))
}

pub async fn tokenize(State(app): State<Arc<App>>, request: ApiRequest) -> Result<Response, ApiError> {
    let service = app.service()?;
    let mut fields = Fields::parse(&request.body)?;
    let TokenizeFields {
        model,
        prompt,
        messages,
        add_special_tokens,
        add_generation_prompt,
        continue_final_message,
        chat_template_kwargs,
        tools,
        return_token_strs,
    } = TokenizeFields::take(&mut fields)?;
    fields.into_ignored()?;
    service.find_model(model.as_deref())?;
    let tokens = match (prompt, messages) {
        (Some(text), None) => {
            let prompts = vec![RawPrompt::Text(text)];
            service.completion_prompts(prompts, add_special_tokens.unwrap_or(true)).await?.concat()
        }
        (None, Some(messages)) => {
            let chat = ChatPrompt {
                messages: messages::lower(messages)?,
                tools: tools.filter(|tools| !tools.is_empty()).map(Value::Array),
                effort: None,
                kwargs: chat_template_kwargs.unwrap_or_default(),
                ending: lower_ending(add_generation_prompt, continue_final_message.unwrap_or(false))?,
                salt: Digest::default(),
            };
            service.chat_prompt(chat).await?.tokens
        }
        (Some(_), Some(_)) => {
            return Err(ApiError::invalid("prompt", "cannot be given together with messages"));
        }
        (None, None) => return Err(ApiError::invalid("prompt", "either it or messages is needed")),
    };
    let tokenizer = service.tokenizer();
    let name = |&token: &TokenId| tokenizer.token_text(token).unwrap_or_default();
    Ok(json_response(&Tokenized {
        count: tokens.len(),
        max_model_len: service.info().max_model_len,
        token_strs: return_token_strs.unwrap_or(false).then(|| tokens.iter().map(name).collect()),
        tokens,
    }))
}

pub async fn detokenize(State(app): State<Arc<App>>, request: ApiRequest) -> Result<Response, ApiError> {
    let service = app.service()?;
    let mut fields = Fields::parse(&request.body)?;
    let DetokenizeFields { model, tokens } = DetokenizeFields::take(&mut fields)?;
    fields.into_ignored()?;
    service.find_model(model.as_deref())?;
    let tokens = tokens.ok_or_else(|| ApiError::invalid("tokens", "is missing"))?;
    let vocab_size = service.info().vocab_size;
    if let Some(at) = tokens.iter().position(|&token| token as usize >= vocab_size) {
        let message = format!("token {} is not below the vocabulary size {vocab_size}", tokens[at]);
        return Err(ApiError::invalid(format!("tokens[{at}]"), message));
    }
    Ok(json_response(&Detokenized { prompt: service.tokenizer().decode(&tokens, Shown::All) }))
}
