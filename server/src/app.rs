//! The routes and what stands around them.

use crate::anthropic;
use crate::auth::ApiKeys;
use crate::batch::store::Store;
use crate::error::ApiError;
use crate::lifecycle::Lifecycle;
use crate::metrics::HttpMetrics;
use crate::openai::generation::RequestLimits;
use crate::openai::responses::store::{ResponseStore, StoreLimits};
use crate::openai::{
    batches, chat, completions, embeddings, files, health, models, render, responses, score, tokenize,
};
use crate::openapi;
use crate::page;
use crate::request::{catch_panics, observe, require_key};
use crate::service::Service;
use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{MethodRouter, delete, get, post};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

#[derive(Debug, Clone, Copy)]
pub struct AppLimits {
    pub body_len_max: usize,
    pub body_timeout: Duration,
    pub request: RequestLimits,
    /// `None`: streams carry no comments.
    pub keep_alive: Option<Duration>,
    pub responses: StoreLimits,
    /// Whether `/` serves the page to try the model on.
    pub page: bool,
    /// Whether `/tokenizer_info` answers: it shows the chat template.
    pub tokenizer_info: bool,
}

impl Default for AppLimits {
    fn default() -> Self {
        Self {
            body_len_max: 32 << 20,
            body_timeout: Duration::from_secs(60),
            request: RequestLimits::default(),
            keep_alive: Some(Duration::from_secs(5)),
            responses: StoreLimits::default(),
            page: true,
            tokenizer_info: false,
        }
    }
}

/// What handlers share.
pub struct App {
    pub keys: ApiKeys,
    pub limits: AppLimits,
    pub http_metrics: Arc<HttpMetrics>,
    pub lifecycle: Lifecycle,
    /// Files and batches; empty without `--data-dir`.
    pub store: OnceLock<Arc<Store>>,
    pub responses: Arc<ResponseStore>,
    /// Empty while the model is being loaded.
    pub service: OnceLock<Arc<Service>>,
}

impl App {
    pub fn new(keys: ApiKeys, limits: AppLimits) -> Self {
        let http_metrics = Arc::new(HttpMetrics::new());
        for route in route_table() {
            http_metrics.announce(route.method, route.path);
        }
        Self {
            keys,
            limits,
            http_metrics,
            lifecycle: Lifecycle::new(),
            store: OnceLock::new(),
            responses: Arc::new(ResponseStore::new(limits.responses)),
            service: OnceLock::new(),
        }
    }

    pub fn service(&self) -> Result<&Arc<Service>, ApiError> {
        self.service.get().ok_or(ApiError::Loading)
    }

    pub fn store(&self) -> Result<&Arc<Store>, ApiError> {
        self.store.get().ok_or(ApiError::NoDataDir)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Probes and metrics, for machines that have no key; the page, which holds no secret.
    Open,
    /// One of the configured keys, where there are any.
    Key,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    pub method: &'static str,
    pub path: &'static str,
    pub access: Access,
}

type Entry = (Access, &'static str, [&'static str; 2], fn() -> MethodRouter<Arc<App>>);

/// Every route, with and without `/v1`.
#[rustfmt::skip]
const ROUTES: &[Entry] = &[
    (Access::Key, "POST", ["/v1/chat/completions", "/chat/completions"], || post(chat::create)),
    (Access::Key, "POST", ["/v1/completions", "/completions"], || post(completions::create)),
    (Access::Key, "POST", ["/v1/messages", "/messages"], || post(anthropic::create)),
    (Access::Key, "POST", ["/v1/messages/count_tokens", "/messages/count_tokens"], || post(anthropic::count_tokens)),
    (Access::Key, "POST", ["/v1/responses", "/responses"], || post(responses::create)),
    (Access::Key, "POST", ["/v1/responses/input_tokens", "/responses/input_tokens"], || post(responses::count_tokens)),
    (Access::Key, "GET", ["/v1/responses/{id}", "/responses/{id}"], || get(responses::stored::retrieve)),
    (Access::Key, "DELETE", ["/v1/responses/{id}", "/responses/{id}"], || delete(responses::stored::remove)),
    (Access::Key, "POST", ["/v1/responses/{id}/cancel", "/responses/{id}/cancel"], || post(responses::stored::cancel)),
    (Access::Key, "GET", ["/v1/responses/{id}/input_items", "/responses/{id}/input_items"], || get(responses::stored::input_items)),
    (Access::Key, "POST", ["/v1/embeddings", "/embeddings"], || post(embeddings::create)),
    (Access::Key, "POST", ["/v1/score", "/score"], || post(score::score)),
    (Access::Key, "POST", ["/v1/rerank", "/rerank"], || post(score::rerank)),
    // Cohere's client asks for the second version, behind whatever address it was given.
    (Access::Key, "POST", ["/v1/v2/rerank", "/v2/rerank"], || post(score::rerank)),
    (Access::Key, "POST", ["/v1/chat/completions/render", "/chat/completions/render"], || post(render::chat)),
    (Access::Key, "POST", ["/v1/completions/render", "/completions/render"], || post(render::completion)),
    (Access::Key, "GET", ["/v1/models", "/models"], || get(models::list)),
    (Access::Key, "GET", ["/v1/models/{*id}", "/models/{*id}"], || get(models::retrieve)),
    (Access::Key, "POST", ["/v1/tokenize", "/tokenize"], || post(tokenize::tokenize)),
    (Access::Key, "POST", ["/v1/detokenize", "/detokenize"], || post(tokenize::detokenize)),
    (Access::Key, "GET", ["/v1/tokenizer_info", "/tokenizer_info"], || get(tokenize::tokenizer_info)),
    // An upload has a limit of its own.
    (Access::Key, "POST", ["/v1/files", "/files"], || post(files::upload).layer(DefaultBodyLimit::disable())),
    (Access::Key, "GET", ["/v1/files", "/files"], || get(files::list)),
    (Access::Key, "GET", ["/v1/files/{id}", "/files/{id}"], || get(files::retrieve)),
    (Access::Key, "DELETE", ["/v1/files/{id}", "/files/{id}"], || delete(files::remove)),
    (Access::Key, "GET", ["/v1/files/{id}/content", "/files/{id}/content"], || get(files::content)),
    (Access::Key, "POST", ["/v1/batches", "/batches"], || post(batches::create)),
    (Access::Key, "GET", ["/v1/batches", "/batches"], || get(batches::list)),
    (Access::Key, "GET", ["/v1/batches/{id}", "/batches/{id}"], || get(batches::retrieve)),
    (Access::Key, "POST", ["/v1/batches/{id}/cancel", "/batches/{id}/cancel"], || post(batches::cancel)),
    (Access::Open, "GET", ["/v1/health", "/health"], || get(health::health)),
    (Access::Open, "GET", ["/v1/ping", "/ping"], || get(health::health)),
    (Access::Open, "GET", ["/v1/livez", "/livez"], || get(health::live)),
    (Access::Open, "GET", ["/v1/live", "/live"], || get(health::live)),
    (Access::Open, "GET", ["/v1/readyz", "/readyz"], || get(health::ready)),
    (Access::Open, "GET", ["/v1/ready", "/ready"], || get(health::ready)),
    (Access::Open, "GET", ["/v1/version", "/version"], || get(health::version)),
    (Access::Open, "GET", ["/v1/metrics", "/metrics"], || get(health::metrics)),
    (Access::Open, "GET", ["/v1/openapi.json", "/openapi.json"], || get(openapi::json_document)),
    (Access::Open, "GET", ["/v1/docs", "/docs"], || get(openapi::docs_page)),
];

pub fn route_table() -> Vec<Route> {
    ROUTES
        .iter()
        .flat_map(|&(access, method, paths, _)| paths.map(|path| Route { method, path, access }))
        .chain(page::ASSETS.iter().map(|asset| Route {
            method: "GET",
            path: asset.path,
            access: Access::Open,
        }))
        .collect()
}

/// Both paths of the route that has this one.
pub fn paths_of(path: &str) -> Option<[&'static str; 2]> {
    ROUTES.iter().find(|(_, _, paths, _)| paths.contains(&path)).map(|&(_, _, paths, _)| paths)
}

pub fn router(app: Arc<App>) -> Router {
    let mut router = Router::new();
    for &(access, _, paths, handler) in ROUTES {
        for path in paths {
            let handler = match access {
                Access::Open => handler(),
                Access::Key => handler().route_layer(from_fn_with_state(app.clone(), require_key)),
            };
            router = router.route(path, handler);
        }
    }
    if app.limits.page {
        router = router.merge(page::routes());
    }
    router
        .fallback(no_route)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn(catch_panics))
        .layer(from_fn(anthropic::errors::in_their_shape))
        .layer(from_fn_with_state(app.clone(), observe))
        .with_state(app)
}

async fn no_route(request: Request) -> ApiError {
    ApiError::RouteNotFound { path: request.uri().path().to_owned() }
}

async fn wrong_method(request: Request) -> ApiError {
    ApiError::MethodNotAllowed { method: request.method().to_string(), path: request.uri().path().to_owned() }
}
