//! The list of models: one model, under each of its names.

use crate::app::App;
use crate::error::ApiError;
use crate::service::Service;
use axum::Json;
use axum::extract::{Path, State};
use schemars::JsonSchema;
use serde::Serialize;
use std::sync::Arc;

#[derive(Serialize, JsonSchema)]
pub struct ModelList {
    object: &'static str,
    data: Vec<ModelCard>,
}

#[derive(Serialize, JsonSchema)]
pub struct ModelCard {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    root: String,
    parent: Option<String>,
    max_model_len: usize,
}

fn card(service: &Service, name: &str) -> ModelCard {
    ModelCard {
        id: name.to_owned(),
        object: "model",
        created: service.created(),
        owned_by: "perilune",
        root: service.root().to_owned(),
        parent: None,
        max_model_len: service.info().max_model_len,
    }
}

pub async fn list(State(app): State<Arc<App>>) -> Result<Json<ModelList>, ApiError> {
    let service = app.service()?;
    let data = service.names().iter().map(|name| card(service, name)).collect();
    Ok(Json(ModelList { object: "list", data }))
}

/// Names may hold slashes, as those on the hub do.
pub async fn retrieve(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
) -> Result<Json<ModelCard>, ApiError> {
    let service = app.service()?;
    let name = service.check_model(Some(&id))?;
    Ok(Json(card(service, name)))
}
