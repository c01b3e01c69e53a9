//! `POST /v1/load_lora_adapter` and `/v1/unload_lora_adapter`, in vLLM's shapes.

use crate::adapters::Load;
use crate::app::App;
use crate::error::ApiError;
use crate::openai::exchange::add_ignored;
use crate::openai::fields::{Fields, request_fields};
use crate::request::ApiRequest;
use crate::service::Service;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use std::sync::Arc;

request_fields! {
    pub struct LoadAdapterFields {
        /// The name under which requests will select it.
        lora_name: String,
        /// A folder with `adapter_config.json` and `adapter_model.safetensors`: whole, or from `--lora-root` on.
        lora_path: String,
        /// Instead of an adapter of that name, whose requests end as they began.
        load_inplace: bool,
        base_model_name: String,
    }
}

request_fields! {
    pub struct UnloadAdapterFields {
        lora_name: String,
        /// Not needed: names are unique.
        lora_int_id: i64,
    }
}

pub async fn load(State(app): State<Arc<App>>, request: ApiRequest) -> Result<Response, ApiError> {
    let service = updatable(&app)?;
    let mut fields = Fields::parse(&request.body)?;
    let LoadAdapterFields { lora_name, lora_path, load_inplace, base_model_name } =
        LoadAdapterFields::take(&mut fields)?;
    let ignored = fields.into_ignored()?;
    let name = given("lora_name", lora_name)?;
    let path = given("lora_path", lora_path)?;
    request.used.note(&name);
    let done = format!("Success: LoRA adapter '{name}' added successfully.");
    change(&app, service, move |service| async move {
        let adapters = service.adapters();
        let folder = adapters.folder(path).await?;
        let in_place = load_inplace.unwrap_or(false);
        adapters.load(Load { name, folder, parent: base_model_name, in_place }).await
    })
    .await?;
    let mut response = done.into_response();
    add_ignored(&app, &ignored, &mut response);
    Ok(response)
}

pub async fn unload(State(app): State<Arc<App>>, request: ApiRequest) -> Result<Response, ApiError> {
    let service = updatable(&app)?;
    let mut fields = Fields::parse(&request.body)?;
    let UnloadAdapterFields { lora_name, lora_int_id: _ } = UnloadAdapterFields::take(&mut fields)?;
    let ignored = fields.into_ignored()?;
    let name = given("lora_name", lora_name)?;
    request.used.note(&name);
    let done = format!("Success: LoRA adapter '{name}' removed successfully.");
    change(&app, service, move |service| async move { service.adapters().unload(&name).await }).await?;
    let mut response = done.into_response();
    add_ignored(&app, &ignored, &mut response);
    Ok(response)
}

/// The service, where requests may change its adapters. Where they may not, the routes are as if they were not there.
fn updatable(app: &App) -> Result<Arc<Service>, ApiError> {
    let service = app.service()?;
    service.adapters().updating()?;
    Ok(service.clone())
}

fn given(param: &str, value: Option<String>) -> Result<String, ApiError> {
    match value {
        Some(value) if !value.is_empty() => Ok(value),
        Some(_) => Err(ApiError::invalid(param, "is empty")),
        None => Err(ApiError::invalid(param, "is missing")),
    }
}

/// Makes a change in a task of its own, which goes on when the client hangs up: half a change would be none that anybody asked for. A drain
/// waits for it.
async fn change<F>(
    app: &App,
    service: Arc<Service>,
    change: impl FnOnce(Arc<Service>) -> F + Send + 'static,
) -> Result<(), ApiError>
where
    F: Future<Output = Result<(), ApiError>> + Send + 'static,
{
    let in_flight = app.lifecycle.admit_work()?;
    let span = tracing::Span::current();
    let task = async move {
        let _in_flight = in_flight;
        change(service).await
    };
    tokio::spawn(tracing::Instrument::instrument(task, span)).await.map_err(|error| {
        tracing::error!(%error, "a change of adapters failed");
        ApiError::Internal
    })?
}
