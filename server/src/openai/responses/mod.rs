//! OpenAI's Responses API: `/v1/responses` and what is below it. A request becomes one of `openai::chat` before anything is made of it;
//! an answer is a list of items, and may be kept and gone on with.

mod assembly;
mod conversation;
mod events;
mod input;
pub mod item;
mod kept;
mod lower;
mod names;
pub mod response;
pub mod store;
pub mod stored;
mod tools;
pub mod types;

use crate::app::App;
use crate::error::ApiError;
use crate::openai::chat::{Overflow, Started};
use crate::openai::exchange::{Exchange, add_ignored, json_response, json_text};
use crate::openai::fields::{Fields, Ignored};
use crate::openai::stream::event_stream;
use crate::request::ApiRequest;
use assembly::Assembly;
use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use events::{Keeping, Making, ResponseEvents};
use http_body_util::BodyExt;
use kept::Kept;
use lower::{Lowered, Surroundings};
use names::Names;
use response::Outline;
use schemars::JsonSchema;
use serde::Serialize;
use std::sync::Arc;
use tokio::sync::OwnedSemaphorePermit;
use types::ResponseFields;

fn lower(exchange: &Exchange, body: &[u8]) -> Result<Lowered, ApiError> {
    let mut fields = Fields::parse(body)?;
    let response = ResponseFields::take(&mut fields)?;
    let Ignored(ignored) = fields.into_ignored()?;
    let surroundings = Surroundings { store: &exchange.app.responses, defaults: exchange.service.defaults() };
    response.lower(ignored, surroundings)
}

/// An answer, begun.
struct Begun {
    exchange: Exchange,
    started: Started,
    making: Making,
    names: Names,
}

pub async fn create(State(app): State<Arc<App>>, request: ApiRequest) -> Result<Response, ApiError> {
    let (exchange, body) = Exchange::begin(app, request)?;
    let Lowered { request, names, echo, context, truncates } = lower(&exchange, &body)?;
    let held = body.parsed();
    let (is_kept, store) = (echo.store, exchange.app.responses.clone());
    let place = echo.background.then(|| store.begin_background()).transpose()?;
    let overflow = if truncates { Overflow::DropsOldest } else { Overflow::IsRefused };
    let mut started =
        Started::with(&exchange, request, "resp_", overflow).await.map_err(|error| names.name(error))?;
    drop(held);
    Names::rename_ignored(&mut started.ignored.0);
    let outline = Arc::new(Outline { head: started.head.clone(), echo });
    let assembly = Assembly::new(exchange.service.tokenizer().clone());
    let streams = started.report.stream.is_some();
    let keeping = match (is_kept, &place) {
        (false, _) => Keeping::Nowhere,
        (true, None) => Keeping::Later(store, context),
        (true, Some(_)) => {
            let kept = Arc::new(Kept::running(outline.clone(), context, streams));
            store.insert(kept.clone());
            Keeping::Already(store, kept)
        }
    };
    let making = Making::new(outline, assembly, keeping);
    let begun = Begun { exchange, started, making, names };
    match (place, streams) {
        (Some(place), _) => Ok(begun.in_background(place)),
        (None, true) => begun.stream().await,
        (None, false) => begun.whole().await,
    }
}

impl Begun {
    async fn whole(self) -> Result<Response, ApiError> {
        let Self { exchange, started: Started { mut answers, ignored, .. }, mut making, names } = self;
        answers.collect().await.map_err(|error| names.name(error))?;
        let state = making.take_all(&answers.deltas[0], answers.usage());
        let json = making.end(state);
        Ok(exchange.respond_text(&answers, json, &ignored))
    }

    async fn stream(self) -> Result<Response, ApiError> {
        let Self { exchange, started: Started { answers, ignored, .. }, making, names } = self;
        let streamed = exchange.stream(answers, ResponseEvents::new(making), &ignored).await;
        streamed.map_err(|error| names.name(error))
    }

    /// Answers with the response as it is; the answer is made by a task of its own, which goes on when the client has gone.
    fn in_background(self, place: OwnedSemaphorePermit) -> Response {
        let Self { exchange, started: Started { answers, ignored, .. }, making, .. } = self;
        let Keeping::Already(_, kept) = &making.keeping else {
            unreachable!("it is kept from its beginning")
        };
        let (app, kept) = (exchange.app.clone(), kept.clone());
        let mut response = match kept.can_be_followed() {
            true => event_stream(Body::from_stream(kept.clone().follow(0, app.limits.keep_alive))),
            false => json_text(kept.json().into()),
        };
        add_ignored(&app, &ignored, &mut response);
        let mut events = exchange.detached(answers, ResponseEvents::new(making));
        tokio::spawn(async move {
            let _place = place;
            loop {
                tokio::select! {
                    biased;
                    () = kept.stopped() => {
                        kept.tell(events.stop(ResponseEvents::cancel));
                        break;
                    }
                    frame = events.frame() => match frame.and_then(Result::ok) {
                        Some(frame) => kept.tell(frame.into_data().unwrap_or_default()),
                        None => break,
                    },
                }
            }
            kept.close();
        });
        response
    }
}

#[derive(Serialize, JsonSchema)]
pub struct InputTokens {
    /// `response.input_tokens`.
    object: &'static str,
    input_tokens: usize,
}

pub async fn count_tokens(State(app): State<Arc<App>>, request: ApiRequest) -> Result<Response, ApiError> {
    let (exchange, body) = Exchange::begin(app, request)?;
    let Lowered { request, names, .. } = lower(&exchange, &body)?;
    let _held = body.parsed();
    let (app, service) = (&exchange.app, &exchange.service);
    let lowered = request.chat.lower(request.generation, service.defaults(), &app.limits.request);
    let (chat, generation) = lowered.map_err(|error| names.name(error))?;
    service.find_model(generation.model.as_deref())?;
    let prompt = service.chat_prompt(chat).await.map_err(|error| names.name(error))?;
    let counted = InputTokens { object: "response.input_tokens", input_tokens: prompt.tokens.len() };
    let mut response = json_response(&counted);
    let mut ignored = request.ignored;
    Names::rename_ignored(&mut ignored.0);
    add_ignored(app, &ignored, &mut response);
    Ok(response)
}
