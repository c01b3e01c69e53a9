//! `POST /v1/chat/completions`.

pub mod compose;
pub mod lower;
pub mod messages;
pub mod response;
mod stream;
mod tools;
mod truncate;
pub mod types;

use crate::app::App;
use crate::error::ApiError;
use crate::openai::answer::Answers;
use crate::openai::chat::response::{ChatCompletion, ResponseHead};
use crate::openai::chat::stream::ChatChunks;
use crate::openai::chat::types::ChatCompletionRequest;
use crate::openai::exchange::Exchange;
use crate::openai::fields::Ignored;
use crate::openai::generation::ReportOptions;
use crate::openai::report::TokenNames;
use crate::request::ApiRequest;
use axum::extract::State;
use axum::response::Response;
use scheduler::TokenId;
use std::sync::Arc;

/// A conversation's answer, begun: what every dialect of chat goes on with.
pub struct Started {
    pub head: ResponseHead,
    pub answers: Answers,
    pub report: ReportOptions,
    pub num_choices: usize,
    pub prompt: Arc<[TokenId]>,
    pub ignored: Ignored,
}

/// What becomes of a conversation that does not fit the context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overflow {
    IsRefused,
    /// Its oldest messages are left out.
    DropsOldest,
}

impl Started {
    /// `prefix` is that of the answer's id.
    pub async fn of(
        exchange: &Exchange,
        request: ChatCompletionRequest,
        prefix: &str,
    ) -> Result<Self, ApiError> {
        Self::with(exchange, request, prefix, Overflow::IsRefused).await
    }

    pub async fn with(
        exchange: &Exchange,
        request: ChatCompletionRequest,
        prefix: &str,
        overflow: Overflow,
    ) -> Result<Self, ApiError> {
        let service = &exchange.service;
        let ChatCompletionRequest { chat, generation, mut ignored } = request;
        let (chat, mut generation) =
            chat.lower(generation, service.defaults(), &exchange.app.limits.request)?;
        if chat.effort.is_some_and(|effort| !service.follows_effort(effort)) {
            ignored.0.push("reasoning_effort".to_owned());
        }
        let head = exchange.head(prefix, &generation)?;
        let prompt = match overflow {
            Overflow::IsRefused => service.chat_prompt(chat).await?,
            Overflow::DropsOldest => {
                truncate::prompt_that_fits(service, chat, generation.max_tokens.unwrap_or(1)).await?
            }
        };
        let tokens: Arc<[TokenId]> = prompt.tokens.as_slice().into();
        service.constrain(&mut generation, service.reasoning_markers(&prompt)).await?;
        let answers = service.start(&[prompt], &generation, "messages")?;
        let (report, num_choices) = (generation.report, generation.n);
        Ok(Self { head, answers, report, num_choices, prompt: tokens, ignored })
    }
}

pub async fn create(State(app): State<Arc<App>>, request: ApiRequest) -> Result<Response, ApiError> {
    let (exchange, body) = Exchange::begin(app, request)?;
    let service = exchange.service.clone();
    let request = ChatCompletionRequest::parse(&body)?;
    let held = body.parsed();
    let Started { head, mut answers, report, num_choices, prompt, ignored } =
        Started::of(&exchange, request, "chatcmpl-").await?;
    drop(held);
    if report.stream.is_some() {
        let chunks = ChatChunks::new(&head, service.tokenizer().clone(), report, prompt, num_choices);
        return exchange.stream(answers, chunks, &ignored).await;
    }
    answers.collect().await?;
    let names = TokenNames { tokenizer: service.tokenizer(), as_ids: report.tokens_as_ids };
    let completion = ChatCompletion::new(&head, &answers, &report, names, &prompt);
    Ok(exchange.respond(&answers, &completion, &ignored))
}
