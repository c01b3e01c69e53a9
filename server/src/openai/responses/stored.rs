//! Responses that are kept: asked for, followed, stopped, deleted, and what they answered.

use super::kept::Kept;
use super::types::{ItemsQuery, RetrieveQuery};
use crate::app::App;
use crate::error::ApiError;
use crate::openai::exchange::{json_response, json_text};
use crate::openai::files::{List, check_limit};
use crate::openai::stream::event_stream;
use crate::request::{Id, bad_query};
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::Response;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;
use std::sync::Arc;

pub async fn retrieve(
    State(app): State<Arc<App>>,
    Id(id): Id,
    query: Result<Query<RetrieveQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(RetrieveQuery { stream, starting_after, .. }) = query.map_err(bad_query)?;
    let kept = app.responses.get(&id)?;
    if stream != Some(true) {
        return match starting_after {
            Some(_) => Err(ApiError::invalid("starting_after", "is only allowed when `stream` is true")),
            None => Ok(json_text(kept.json().into())),
        };
    }
    if !kept.can_be_followed() {
        let message = "only the events of a response with `background` and `stream` are kept";
        return Err(ApiError::unsupported("stream", message));
    }
    let first = starting_after.map_or(0, |number| number.saturating_add(1));
    Ok(event_stream(Body::from_stream(kept.follow(first, app.limits.keep_alive))))
}

pub type ItemList = List<Value>;

#[derive(Serialize, JsonSchema)]
pub struct DeletedResponse {
    id: String,
    /// `response`.
    object: &'static str,
    deleted: bool,
}

/// Also stops it, where it is being made in the background.
pub async fn remove(State(app): State<Arc<App>>, Id(id): Id) -> Result<Response, ApiError> {
    let kept = app.responses.remove(&id)?;
    kept.stop();
    Ok(json_response(&DeletedResponse { id, object: "response", deleted: true }))
}

/// A response that has ended stays as it is.
pub async fn cancel(State(app): State<Arc<App>>, Id(id): Id) -> Result<Response, ApiError> {
    let kept = app.responses.get(&id)?;
    if !kept.is_background() {
        let message = "only a response that is made in the background can be cancelled; for another, hang up";
        return Err(ApiError::invalid("id", message));
    }
    kept.stop();
    kept.closed().await;
    Ok(json_text(kept.json().into()))
}

/// All items that the response answers, those of the responses before it included.
pub async fn input_items(
    State(app): State<Arc<App>>,
    Id(id): Id,
    query: Result<Query<ItemsQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(ItemsQuery { limit, order, after }) = query.map_err(bad_query)?;
    let limit = check_limit(limit, 20, 100)?;
    let kept = app.responses.get(&id)?;
    let newest_first = match order.as_deref() {
        None | Some("desc") => true,
        Some("asc") => false,
        Some(_) => return Err(ApiError::invalid("order", "expected asc or desc")),
    };
    let (items, has_more) = page(&kept, newest_first, after.as_deref(), limit)?;
    let id_of = |item: &Value| item["id"].as_str().unwrap_or_default().to_owned();
    let (first_id, last_id) = (items.first().map(id_of), items.last().map(id_of));
    Ok(json_response(&List { object: "list", data: items, first_id, last_id, has_more }))
}

fn page(
    kept: &Kept,
    newest_first: bool,
    after: Option<&str>,
    limit: usize,
) -> Result<(Vec<Value>, bool), ApiError> {
    let mut items: Vec<_> = kept.context.iter().collect();
    if newest_first {
        items.reverse();
    }
    let start = match after {
        None => 0,
        Some(after) => {
            let found = items.iter().position(|item| item.id == after);
            found.ok_or_else(|| ApiError::invalid("after", "there is no such item"))? + 1
        }
    };
    let rest = &items[start..];
    Ok((rest.iter().take(limit).map(|item| item.value()).collect(), rest.len() > limit))
}
