//! The routes and what stands around them.

use crate::anthropic;
use crate::app::App;
use crate::error::ApiError;
use crate::openai::{
    batches, chat, completions, embeddings, files, health, lora, models, render, responses, rewards, score,
    tokenize,
};
use crate::openapi;
use crate::page;
use crate::request::{catch_panics, guard, observe, require_key};
use crate::route::{Access, Route};
use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::Response;
use axum::routing::{MethodRouter, delete, get, post};
use std::sync::Arc;

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
    (Access::Key, "POST", ["/v1/rewards", "/rewards"], || post(rewards::create)),
    (Access::Key, "POST", ["/v1/load_lora_adapter", "/load_lora_adapter"], || post(lora::load)),
    (Access::Key, "POST", ["/v1/unload_lora_adapter", "/unload_lora_adapter"], || post(lora::unload)),
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
    // SageMaker's.
    (Access::Open, "POST", ["/v1/ping", "/ping"], || post(health::health)),
    (Access::Open, "GET", ["/v1/load", "/load"], || get(health::load)),
    (Access::Open, "GET", ["/v1/livez", "/livez"], || get(health::live)),
    (Access::Open, "GET", ["/v1/live", "/live"], || get(health::live)),
    (Access::Open, "GET", ["/v1/readyz", "/readyz"], || get(health::ready)),
    (Access::Open, "GET", ["/v1/ready", "/ready"], || get(health::ready)),
    (Access::Open, "GET", ["/v1/version", "/version"], || get(health::version)),
    (Access::Open, "GET", ["/v1/metrics", "/metrics"], || get(health::metrics)),
    (Access::Open, "GET", ["/v1/openapi.json", "/openapi.json"], || get(openapi_document)),
    (Access::Open, "GET", ["/v1/docs", "/docs"], || get(docs_page)),
];

pub fn route_table() -> Vec<Route> {
    ROUTES
        .iter()
        .flat_map(|&(access, method, paths, _)| paths.map(|path| Route { method, path, pair: paths, access }))
        .chain(page::ASSETS.iter().map(|asset| Route {
            method: "GET",
            path: asset.path,
            pair: [asset.path; 2],
            access: Access::Open,
        }))
        .collect()
}

pub fn router(app: Arc<App>) -> Router {
    for route in route_table() {
        app.http_metrics.announce(route.method, route.path);
    }
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
        .layer(from_fn_with_state(app.clone(), guard))
        .layer(from_fn(anthropic::errors::in_their_shape))
        .layer(from_fn_with_state(app.clone(), observe))
        .with_state(app)
}

async fn no_route(request: Request) -> ApiError {
    let path = request.uri().path();
    ApiError::RouteNotFound { path: path.chars().take(PATH_CHARS_TOLD).collect(), meant: meant(path) }
}

const PATH_CHARS_TOLD: usize = 256;

/// The route of a path with a slash or a `/v1` too many, as they come from base addresses that end in one.
fn meant(path: &str) -> Option<&'static str> {
    let mut parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    while let ["v1", "v1", ..] = parts[..] {
        parts.remove(0);
    }
    let fixed = format!("/{}", parts.join("/"));
    let paths = ROUTES.iter().flat_map(|&(_, _, paths, _)| paths);
    paths.filter(|&known| known != path).find(|&known| known == fixed)
}

async fn wrong_method(request: Request) -> ApiError {
    ApiError::MethodNotAllowed { method: request.method().to_string(), path: request.uri().path().to_owned() }
}

async fn openapi_document(State(app): State<Arc<App>>) -> Response {
    openapi::json_document(route_table, &app.root_path)
}

async fn docs_page() -> Response {
    openapi::docs_page(route_table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_with_something_too_many_are_told_what_was_meant() {
        for (path, route) in [
            ("/v1/chat/completions/", Some("/v1/chat/completions")),
            ("//v1//chat/completions", Some("/v1/chat/completions")),
            ("/v1/v1/models", Some("/v1/models")),
            ("/models/", Some("/models")),
            ("/v1", None),
            ("/", None),
            ("/v1/chat/completion", None),
        ] {
            assert_eq!(meant(path), route, "{path}");
        }
    }

    #[test]
    fn what_can_be_batched_is_served() {
        let routes = route_table();
        for path in crate::batch::lines::endpoints() {
            assert!(routes.iter().any(|route| route.method == "POST" && route.path == path), "{path}");
        }
    }
}
