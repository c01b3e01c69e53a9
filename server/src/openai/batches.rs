//! `/v1/batches`: many requests from one file, in OpenAI's objects and states. Batches belong to the server: every key sees all of them.

use crate::app::App;
use crate::batch::lines::{endpoints, unknown_endpoint};
use crate::batch::record::{BatchObject, NewBatch, parse_window};
use crate::batch::store::CreateError;
use crate::disk::io_error;
use crate::error::ApiError;
use crate::openai::exchange::{add_ignored, json_response};
use crate::openai::fields::{Fields, request_fields};
use crate::openai::files::{List, check_limit, on_disk};
use crate::openai::metadata::check_metadata;
use crate::request::{ApiRequest, Id, bad_query};
use axum::Json;
use axum::extract::{Query, State};
use axum::response::Response;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::sync::Arc;

request_fields! {
    pub struct BatchFields {
        /// A file of JSON lines, uploaded with the purpose `batch`.
        input_file_id: String,
        /// The route that all lines name, such as `/v1/chat/completions`.
        endpoint: String,
        /// How long lines may wait to run: `24h`, or another number with `s`, `m`, `h` or `d`, up to `30d`.
        completion_window: String,
        /// Up to 16 pairs of strings, given back as they are.
        metadata: Map<String, Value>,
    }
}

#[derive(Deserialize, JsonSchema)]
pub struct BatchQuery {
    /// Most batches to list, up to 100; 20 where it is absent.
    limit: Option<usize>,
    /// Go on after the batch with this id.
    after: Option<String>,
}

pub async fn create(State(app): State<Arc<App>>, request: ApiRequest) -> Result<Response, ApiError> {
    let store = app.store()?.clone();
    let mut fields = Fields::parse(&request.body)?;
    let batch = BatchFields::take(&mut fields)?;
    let ignored = fields.into_ignored()?;
    let new = batch.lower()?;
    let file = store.files.get(&new.input_file_id);
    let purpose = file.map(|file| file.purpose).ok_or_else(no_file)?;
    if purpose != "batch" {
        let message = format!("the file's purpose is {purpose:?}, expected \"batch\"");
        return Err(ApiError::invalid("input_file_id", message));
    }
    let created = store.clone();
    let batch = on_disk(move || created.create(new)).await?;
    store.spawn(&batch.id);
    let mut response = json_response(&batch);
    add_ignored(&app, &ignored, &mut response);
    Ok(response)
}

fn no_file() -> ApiError {
    ApiError::invalid("input_file_id", "there is no such file")
}

impl From<CreateError> for ApiError {
    fn from(error: CreateError) -> Self {
        match error {
            CreateError::Loading => ApiError::Loading,
            CreateError::NoFile => no_file(),
            CreateError::TooMany(_) => ApiError::TooManyBatches { message: error.to_string() },
            CreateError::Store(error) => error.into(),
        }
    }
}

impl BatchFields {
    fn lower(self) -> Result<NewBatch, ApiError> {
        let BatchFields { input_file_id, endpoint, completion_window, metadata } = self;
        let missing = |param: &str| ApiError::invalid(param, "is missing");
        let input_file_id = input_file_id.ok_or_else(|| missing("input_file_id"))?;
        let endpoint = endpoint.ok_or_else(|| missing("endpoint"))?;
        if !endpoints().any(|known| known == endpoint) {
            return Err(ApiError::invalid("endpoint", unknown_endpoint(&endpoint)));
        }
        let completion_window = completion_window.ok_or_else(|| missing("completion_window"))?;
        let window_s = parse_window(&completion_window).ok_or_else(|| {
            ApiError::invalid(
                "completion_window",
                format!("{completion_window:?} is no time such as 24h, up to 30d"),
            )
        })?;
        check_metadata(metadata.as_ref())?;
        Ok(NewBatch { input_file_id, endpoint, completion_window, window_s, metadata })
    }
}

fn missing(id: &str) -> ApiError {
    ApiError::NotFound { kind: "Batch", id: id.chars().take(64).collect() }
}

pub async fn list(
    State(app): State<Arc<App>>,
    query: Result<Query<BatchQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<List<BatchObject>>, ApiError> {
    let Query(BatchQuery { limit, after }) = query.map_err(bad_query)?;
    let page = app.store()?.page(after.as_deref(), check_limit(limit, 20, 100)?);
    let page = page.ok_or_else(|| ApiError::invalid("after", "there is no such batch"))?;
    Ok(Json(List::new(page.items, page.has_more, |batch| &batch.id)))
}

pub async fn retrieve(State(app): State<Arc<App>>, Id(id): Id) -> Result<Json<BatchObject>, ApiError> {
    app.store()?.get(&id).map(Json).ok_or_else(|| missing(&id))
}

/// Lines that run are given up; what they and those before them gave stays.
pub async fn cancel(State(app): State<Arc<App>>, Id(id): Id) -> Result<Json<BatchObject>, ApiError> {
    let (store, asked) = (app.store()?.clone(), id.clone());
    let done =
        on_disk(move || store.cancel(&asked).map_err(io_error("failed to keep a cancellation"))).await?;
    match done {
        Some((batch, true)) => Ok(Json(batch)),
        Some((batch, false)) => {
            let message = format!("a batch that is {} cannot be cancelled", batch.status.name());
            Err(ApiError::Conflict { message })
        }
        None => Err(missing(&id)),
    }
}
