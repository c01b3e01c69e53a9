//! `POST /v1/chat/completions/render` and `/v1/completions/render`: the prompt that a request would run with, and no answer. The
//! requests are those of the routes without `/render`, checked the same way; the shapes are vLLM's, which routers read, and `text`.

use crate::app::App;
use crate::chat::{Prompt, Rendered};
use crate::error::ApiError;
use crate::openai::chat::types::ChatCompletionRequest;
use crate::openai::completions::lower::Lowered;
use crate::openai::completions::{prompt_text, types::CompletionRequest};
use crate::openai::exchange::{add_ignored, json_response};
use crate::request::ApiRequest;
use axum::extract::State;
use axum::response::Response;
use scheduler::{ImageSpan, TokenId};
use schemars::JsonSchema;
use serde::Serialize;
use std::sync::Arc;

#[derive(Serialize, JsonSchema)]
pub struct RenderedPrompt {
    model: String,
    /// What the chat template made of the messages, or the text of the prompt. A picture is one placeholder here, and as many tokens
    /// in `token_ids` as it has embeddings.
    text: String,
    token_ids: Vec<TokenId>,
    /// Of `token_ids`.
    count: usize,
    max_model_len: usize,
    /// `null` without pictures.
    features: Option<Features>,
}

/// The pictures of a prompt, in its order.
#[derive(Serialize, JsonSchema)]
struct Features {
    mm_hashes: PerKind<String>,
    mm_placeholders: PerKind<Placeholder>,
}

#[derive(Serialize, JsonSchema)]
struct PerKind<T> {
    image: Vec<T>,
}

/// The tokens that stand for a picture.
#[derive(Serialize, JsonSchema)]
struct Placeholder {
    /// The first, counted from the beginning of the prompt.
    offset: usize,
    length: usize,
}

impl Features {
    fn of(images: &[ImageSpan]) -> Option<Self> {
        let hash = |span: &ImageSpan| blake3::Hash::from_bytes(span.image.digest.0).to_hex().to_string();
        let place = |span: &ImageSpan| Placeholder { offset: span.start, length: span.image.num_tokens };
        (!images.is_empty()).then(|| Self {
            mm_hashes: PerKind { image: images.iter().map(hash).collect() },
            mm_placeholders: PerKind { image: images.iter().map(place).collect() },
        })
    }
}

pub async fn chat(State(app): State<Arc<App>>, request: ApiRequest) -> Result<Response, ApiError> {
    let service = app.service()?;
    let ChatCompletionRequest { chat, generation, ignored } = ChatCompletionRequest::parse(&request.body)?;
    let (chat, generation) = chat.lower(generation, service.defaults(), &app.limits.request)?;
    let model = service.find_model(generation.model.as_deref())?.name;
    let Rendered { text, prompt: Prompt { tokens, images, .. } } = service.render_chat(chat).await?;
    let mut response = json_response(&RenderedPrompt {
        model,
        text,
        count: tokens.len(),
        token_ids: tokens,
        max_model_len: service.info().max_model_len,
        features: Features::of(&images),
    });
    add_ignored(&app, &ignored, &mut response);
    Ok(response)
}

/// A list, because a request may hold several prompts.
pub async fn completion(State(app): State<Arc<App>>, request: ApiRequest) -> Result<Response, ApiError> {
    let service = app.service()?;
    let CompletionRequest { completion, generation, ignored } = CompletionRequest::parse(&request.body)?;
    let Lowered { prompts: raw, add_special_tokens, generation, .. } =
        completion.lower(generation, service.defaults(), &app.limits.request)?;
    let model = service.find_model(generation.model.as_deref())?.name;
    let tokens = service.completion_prompts(raw.clone(), add_special_tokens).await?;
    let rendered: Vec<RenderedPrompt> = raw
        .iter()
        .zip(tokens)
        .map(|(raw, tokens)| RenderedPrompt {
            model: model.clone(),
            text: prompt_text(service, raw),
            count: tokens.len(),
            token_ids: tokens,
            max_model_len: service.info().max_model_len,
            features: None,
        })
        .collect();
    let mut response = json_response(&rendered);
    add_ignored(&app, &ignored, &mut response);
    Ok(response)
}
