//! Errors in Anthropic's shape, with the statuses that they have anyway.

use crate::error::ApiError;
use crate::request::RequestId;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use serde_json::{Value, json};

/// Whether a path is one of this dialect's.
pub fn owns(path: &str) -> bool {
    let path = path.strip_prefix("/v1").unwrap_or(path);
    path == "/messages" || path.starts_with("/messages/")
}

fn kind(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED => "authentication_error",
        StatusCode::FORBIDDEN => "permission_error",
        StatusCode::NOT_FOUND => "not_found_error",
        StatusCode::PAYLOAD_TOO_LARGE => "request_too_large",
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
        StatusCode::SERVICE_UNAVAILABLE => "overloaded_error",
        status if status.is_client_error() => "invalid_request_error",
        _ => "api_error",
    }
}

/// Clients know by these words of Anthropic's that the conversation must be made shorter, or `max_tokens` smaller.
fn message(error: &ApiError) -> String {
    match error {
        ApiError::TooLong { prompt_tokens, limit, .. } if prompt_tokens >= limit => {
            format!("prompt is too long: {prompt_tokens} tokens > {limit} maximum")
        }
        ApiError::TooLong { prompt_tokens, max_tokens, limit, .. } => format!(
            "input length and `max_tokens` exceed context limit: {prompt_tokens} + {max_tokens} > {limit}, decrease input length or `max_tokens` and try again"
        ),
        error => error.to_string(),
    }
}

pub fn body(error: &ApiError, request_id: Option<&RequestId>) -> Value {
    let mut body = json!({
        "type": "error",
        "error": { "type": kind(error.parts().status), "message": message(error) },
    });
    if let Some(RequestId(id)) = request_id {
        body["request_id"] = (**id).into();
    }
    body
}

/// Around all routes: an error of one of this dialect's, wherever it arose, gets the dialect's shape, and every answer the header in
/// which its clients look for the request's id.
pub async fn in_their_shape(request: Request, next: Next) -> Response {
    if !owns(request.uri().path()) {
        return next.run(request).await;
    }
    let id = request.extensions().get::<RequestId>().cloned();
    let mut response = next.run(request).await;
    if let Some(error) = response.extensions_mut().remove::<ApiError>() {
        *response.body_mut() = Body::from(body(&error, id.as_ref()).to_string());
        response.headers_mut().remove(header::CONTENT_LENGTH);
    }
    if let Some(value) = id.and_then(|RequestId(id)| HeaderValue::from_str(&id).ok()) {
        response.headers_mut().insert("request-id", value);
    }
    response
}
