//! `POST /v1/chat/completions`.

pub mod lower;
pub mod messages;
pub mod response;
mod stream;
mod tools;
pub mod types;

use crate::app::App;
use crate::error::ApiError;
use crate::openai::chat::response::ChatCompletion;
use crate::openai::chat::stream::ChatChunks;
use crate::openai::chat::types::ChatCompletionRequest;
use crate::openai::exchange::Exchange;
use crate::openai::report::TokenNames;
use crate::request::ApiRequest;
use axum::extract::State;
use axum::response::Response;
use scheduler::TokenId;
use std::sync::Arc;

pub async fn create(State(app): State<Arc<App>>, request: ApiRequest) -> Result<Response, ApiError> {
    let (exchange, body) = Exchange::begin(app, request)?;
    let service = exchange.service.clone();
    let ChatCompletionRequest { chat, generation, mut ignored } = ChatCompletionRequest::parse(&body)?;
    drop(body);
    let (chat, mut generation) = chat.lower(generation, service.defaults(), &exchange.app.limits.request)?;
    if chat.effort.is_some_and(|effort| !service.follows_effort(effort)) {
        ignored.0.push("reasoning_effort".to_owned());
    }
    let head = exchange.head("chatcmpl-", &generation)?;
    let prompt = service.chat_prompt(chat).await?;
    let tokens: Arc<[TokenId]> = prompt.tokens.as_slice().into();
    service.constrain(&mut generation, service.reasoning_markers(&prompt)).await?;
    let mut answers = service.start(&[prompt], &generation, "messages")?;
    let report = generation.report;
    if report.stream.is_some() {
        let chunks = ChatChunks::new(&head, service.tokenizer().clone(), report, tokens, generation.n);
        return exchange.stream(answers, chunks, &ignored).await;
    }
    answers.collect().await?;
    let names = TokenNames { tokenizer: service.tokenizer(), as_ids: report.tokens_as_ids };
    let completion = ChatCompletion::new(&head, &answers, &report, names, &tokens);
    Ok(exchange.respond(&answers, &completion, &ignored))
}
