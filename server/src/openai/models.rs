//! The list of models: the base, under each of its names, and the adapters on it.

use crate::adapters::Adapter;
use crate::app::App;
use crate::error::ApiError;
use crate::request::Id;
use crate::service::Service;
use axum::Json;
use axum::extract::State;
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
    /// Where it came from.
    root: String,
    /// Of an adapter: the model that it is one of.
    parent: Option<String>,
    max_model_len: usize,
    architecture: Modalities,
}

/// What goes into a model and what comes out, as OpenRouter names it, and llama-server after it.
#[derive(Serialize, JsonSchema)]
struct Modalities {
    /// Such as `text+image->text`.
    modality: &'static str,
    input_modalities: &'static [&'static str],
    output_modalities: &'static [&'static str],
}

fn modalities(service: &Service) -> Modalities {
    let (modality, input_modalities) = match service.info().image_token_id {
        None => ("text->text", &["text"][..]),
        Some(_) => ("text+image->text", &["text", "image"][..]),
    };
    Modalities { modality, input_modalities, output_modalities: &["text"] }
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
        architecture: modalities(service),
    }
}

fn adapter_card(service: &Service, name: &str, adapter: Adapter) -> ModelCard {
    let Adapter { path, parent, created, .. } = adapter;
    ModelCard {
        created,
        root: path.to_string_lossy().into_owned(),
        parent: Some(parent.unwrap_or_else(|| service.names()[0].clone())),
        ..card(service, name)
    }
}

pub async fn list(State(app): State<Arc<App>>) -> Result<Json<ModelList>, ApiError> {
    let service = app.service()?;
    let base = service.names().iter().map(|name| card(service, name));
    let adapters = service.adapters().list();
    let adapters = adapters.into_iter().map(|(name, adapter)| adapter_card(service, &name, adapter));
    let data = base.chain(adapters).collect();
    Ok(Json(ModelList { object: "list", data }))
}

/// Names may hold slashes, as those on the hub do.
pub async fn retrieve(State(app): State<Arc<App>>, Id(id): Id) -> Result<Json<ModelCard>, ApiError> {
    let service = app.service()?;
    if let Some(adapter) = service.adapters().find(&id) {
        return Ok(Json(adapter_card(service, &id, adapter)));
    }
    let found = service.find_model(Some(&id))?;
    Ok(Json(card(service, &found.name)))
}
