//! Probes, version and metrics.

use crate::app::App;
use crate::error::ApiError;
use axum::Json;
use axum::extract::State;
use axum::http::{HeaderName, StatusCode, header};
use schemars::JsonSchema;
use serde::Serialize;
use std::sync::Arc;

/// Whether requests can be served; still true while draining, so that a draining server is not taken for a broken one. Not when the
/// engine has failed, as with a GPU that was lost: the process is about to end then.
pub async fn health(State(app): State<Arc<App>>) -> Result<StatusCode, ApiError> {
    let failed = app.service()?.engine_has_failed();
    Ok(if failed { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK })
}

/// Whether the process answers at all.
pub async fn live() -> StatusCode {
    StatusCode::OK
}

/// Whether to send requests here: not while loading, not while draining.
pub async fn ready(State(app): State<Arc<App>>) -> Result<StatusCode, ApiError> {
    app.service()?;
    if app.lifecycle.is_serving() { Ok(StatusCode::OK) } else { Err(ApiError::Draining) }
}

/// As vLLM tells it to load balancers.
#[derive(Serialize, JsonSchema)]
pub struct ServerLoad {
    /// Requests to the model whose answers are not complete: of clients and of batches, waiting or running.
    server_load: usize,
}

pub async fn load(State(app): State<Arc<App>>) -> Json<ServerLoad> {
    Json(ServerLoad { server_load: app.lifecycle.num_requests() })
}

#[derive(Serialize, JsonSchema)]
pub struct Version {
    version: &'static str,
}

pub async fn version() -> Json<Version> {
    Json(Version { version: env!("CARGO_PKG_VERSION") })
}

pub async fn metrics(State(app): State<Arc<App>>) -> ([(HeaderName, &'static str); 1], String) {
    let engine = app.service().ok().map(|service| service.metrics());
    (
        [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
        app.http_metrics.exposition(engine),
    )
}
