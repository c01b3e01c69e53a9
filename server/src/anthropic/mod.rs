//! Anthropic's dialect: `POST /v1/messages` and `/v1/messages/count_tokens`. A request becomes one of `openai::chat` before anything is
//! made of it, so that both are understood, limited and answered alike; only names and shapes are this module's.

mod conversation;
pub mod errors;
mod lower;
mod places;
pub mod response;
mod stream;
pub mod types;

use crate::app::App;
use crate::error::ApiError;
use crate::openai::chat::Started;
use crate::openai::exchange::{Exchange, add_ignored, json_response};
use crate::openai::fields::{Fields, Ignored};
use crate::request::ApiRequest;
use axum::extract::State;
use axum::response::Response;
use lower::{Lowered, Purpose};
use response::{Message, TokenCount};
use std::sync::Arc;
use stream::MessageEvents;
use types::MessageFields;

fn lower(body: &[u8], purpose: Purpose) -> Result<Lowered, ApiError> {
    let mut fields = Fields::parse(body)?;
    let message = MessageFields::take(&mut fields)?;
    let Ignored(ignored) = fields.into_ignored()?;
    message.lower(purpose, ignored)
}

pub async fn create(State(app): State<Arc<App>>, request: ApiRequest) -> Result<Response, ApiError> {
    let (exchange, body) = Exchange::begin(app, request)?;
    let Lowered { request, places } = lower(&body, Purpose::Answer)?;
    let held = body.parsed();
    let started = Started::of(&exchange, request, "msg_").await.map_err(|error| places.name(error))?;
    drop(held);
    let Started { head, mut answers, report, mut ignored, .. } = started;
    lower::name_ignored(&mut ignored);
    if report.stream.is_some() {
        let streamed = exchange.stream(answers, MessageEvents::new(head), &ignored).await;
        return streamed.map_err(|error| places.name(error));
    }
    answers.collect().await.map_err(|error| places.name(error))?;
    let message = Message::new(&head, &answers);
    Ok(exchange.respond(&answers, &message, &ignored))
}

pub async fn count_tokens(State(app): State<Arc<App>>, request: ApiRequest) -> Result<Response, ApiError> {
    let (exchange, body) = Exchange::begin(app, request)?;
    let Lowered { request, places } = lower(&body, Purpose::Count)?;
    let _held = body.parsed();
    let (app, service) = (&exchange.app, &exchange.service);
    let lowered = request.chat.lower(request.generation, service.defaults(), &app.limits.request);
    let (chat, generation) = lowered.map_err(|error| places.name(error))?;
    service.find_model(generation.model.as_deref())?;
    let prompt = service.chat_prompt(chat).await.map_err(|error| places.name(error))?;
    let mut response = json_response(&TokenCount { input_tokens: prompt.tokens.len() });
    let mut ignored = request.ignored;
    lower::name_ignored(&mut ignored);
    add_ignored(app, &ignored, &mut response);
    Ok(response)
}
