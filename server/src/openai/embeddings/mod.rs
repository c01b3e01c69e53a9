//! `POST /v1/embeddings`: the states of the served model, pooled.

pub mod lower;
pub mod response;
pub mod vector;

use crate::app::App;
use crate::chat::Prompt;
use crate::error::ApiError;
use crate::openai::embeddings::lower::{EmbeddingFields, Input, Lowered};
use crate::openai::embeddings::response::EmbeddingList;
use crate::openai::exchange::Exchange;
use crate::openai::fields::Fields;
use crate::reading::ToRead;
use crate::request::ApiRequest;
use axum::extract::State;
use axum::response::Response;
use scheduler::PromptOutput;
use std::sync::Arc;

pub async fn create(State(app): State<Arc<App>>, request: ApiRequest) -> Result<Response, ApiError> {
    let (exchange, body) = Exchange::begin(app, request)?;
    let service = exchange.service.clone();
    let mut fields = Fields::parse(&body)?;
    let held = body.parsed();
    let embedding = EmbeddingFields::take(&mut fields)?;
    let ignored = fields.into_ignored()?;
    let Lowered { model, request_id, input, form, pooling, options } =
        embedding.lower(service.info().hidden_size, &exchange.app.limits.request)?;
    let head = exchange.head_for("embd-", model.as_deref(), request_id.as_deref())?;
    let prompts = match input {
        Input::Texts { prompts, add_special_tokens } => {
            let tokens = service.completion_prompts(prompts, add_special_tokens).await?;
            tokens.into_iter().map(|tokens| Prompt { tokens, ..Prompt::default() }).collect()
        }
        Input::Chat(chat) => vec![service.chat_prompt(chat).await?],
    };
    let output = PromptOutput::Pooled(pooling);
    let adapter = service.find_model(model.as_deref())?.adapter;
    let prompts: Vec<_> = prompts.into_iter().map(|prompt| ToRead { prompt, output, adapter }).collect();
    let prompt_tokens = prompts.iter().map(|read| read.prompt.tokens.len()).sum();
    let readings = service.read(&prompts, options)?;
    drop((prompts, held));
    let reads = readings.collect().await?;
    let timings: Vec<_> = reads.iter().map(|read| read.timings).collect();
    let list = EmbeddingList::new(&head, &reads, form, prompt_tokens);
    Ok(exchange.respond_timed(&timings, &list, &ignored))
}
