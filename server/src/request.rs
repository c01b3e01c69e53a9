//! What every request goes through before its handler: an id, a body read within limits, a key where one is asked for; and after
//! it: the metrics and a line in the log.

use crate::app::{App, AppLimits};
use crate::batch::request::Internal;
use crate::body::{self, BodyLimits, RequestBody};
use crate::error::ApiError;
use crate::web::{is_json, is_question, media_type, yes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{FromRequest, FromRequestParts, MatchedPath, Path, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock};
use std::time::Instant;
use tracing::Instrument;

/// The client's `x-request-id`, or a new one.
#[derive(Debug, Clone)]
pub struct RequestId(pub Arc<str>);

/// The adapter that a request used, which its handler finds out, for its line in the log.
#[derive(Debug, Clone, Default)]
pub struct UsedAdapter(Arc<OnceLock<String>>);

impl UsedAdapter {
    pub fn note(&self, name: &str) {
        let _ = self.0.set(name.to_owned());
    }

    fn name(&self) -> Option<&str> {
        self.0.get().map(String::as_str)
    }
}

const REQUEST_ID: &str = "x-request-id";
const REQUEST_ID_LEN_MAX: usize = 128;

impl RequestId {
    fn of(headers: &HeaderMap) -> Self {
        let given = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok());
        match given.filter(|id| is_clean(id)) {
            Some(id) => Self(id.into()),
            None => Self(uuid::Uuid::new_v4().simple().to_string().into()),
        }
    }
}

/// Fit for a header and a log line.
pub fn is_clean(id: &str) -> bool {
    !id.is_empty() && id.len() <= REQUEST_ID_LEN_MAX && id.bytes().all(|byte| byte.is_ascii_graphic())
}

/// A JSON body, read whole, with the request's id and when it came.
pub struct ApiRequest {
    pub id: RequestId,
    pub used: UsedAdapter,
    pub body: RequestBody,
    pub arrived: Instant,
}

impl FromRequest<Arc<App>> for ApiRequest {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, ApiError> {
        let arrived = Instant::now();
        let (parts, body) = request.into_parts();
        check_headers(&parts.headers)?;
        let id =
            parts.extensions.get::<RequestId>().cloned().unwrap_or_else(|| RequestId::of(&parts.headers));
        let used = parts.extensions.get::<UsedAdapter>().cloned().unwrap_or_default();
        let AppLimits { body_len_max: len_max, body_timeout: timeout, .. } = app.limits;
        let body = match parts.extensions.get::<Internal>() {
            Some(Internal) => body::own(body, len_max).await?,
            None => {
                body::read(body, &parts.headers, BodyLimits { len_max, timeout }, &app.body_memory).await?
            }
        };
        Ok(Self { id, used, body, arrived })
    }
}

/// The object that a path names.
pub struct Id(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let id = Path::<String>::from_request_parts(parts, state).await;
        let Path(id) = id.map_err(|_| ApiError::invalid("id", "is not UTF-8"))?;
        Ok(Self(id))
    }
}

/// By the name of the parameter, where there is one.
pub fn bad_query(error: QueryRejection) -> ApiError {
    let text = error.body_text();
    let text = text.strip_prefix("Failed to deserialize query string: ").unwrap_or(&text);
    match text.split_once(": ") {
        Some((name, message)) if !name.contains(' ') => ApiError::invalid(name, message),
        _ => ApiError::invalid("query", text),
    }
}

/// JSON must be called JSON: a web page can send other types, or none, to a server on the reader's own machine without asking it.
fn check_headers(headers: &HeaderMap) -> Result<(), ApiError> {
    if !is_json(headers) {
        let message = match media_type(headers).is_empty() {
            true => "the content-type header is missing, expected application/json".into(),
            false => "the content-type header must be application/json".into(),
        };
        return Err(ApiError::UnsupportedMediaType { message });
    }
    let is_plain =
        |value: &HeaderValue| value.is_empty() || value.as_bytes().eq_ignore_ascii_case(b"identity");
    if headers.get_all(header::CONTENT_ENCODING).iter().any(|value| !is_plain(value)) {
        return Err(ApiError::CompressedBody);
    }
    Ok(())
}

/// Around all routes: refuses what web pages may not do, and lets those do more that the operator allows.
pub async fn guard(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    if let Err(error) = app.web.check(&request) {
        return error.into_response();
    }
    let allowed = app.web.allows(&request);
    let mut response = match allowed.is_some() && is_question(&request) {
        // The key comes with the request itself.
        true => yes(request.headers()),
        false => next.run(request).await,
    };
    app.web.mark(allowed, response.headers_mut());
    response
}

pub async fn require_key(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let is_internal = request.extensions().get::<Internal>().is_some();
    if is_internal || app.keys.allow(request.headers()) {
        next.run(request).await
    } else {
        ApiError::Unauthorized.into_response()
    }
}

/// Around everything: gives the request its id, and counts and logs how it went.
pub async fn observe(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let id = RequestId::of(request.headers());
    let used = UsedAdapter::default();
    let mut observed = Observed {
        app,
        id: id.clone(),
        used: used.clone(),
        method: known_method(request.method()),
        handler: request.extensions().get::<MatchedPath>().cloned(),
        start: Instant::now(),
        status: HUNG_UP,
    };
    request.extensions_mut().insert(id.clone());
    request.extensions_mut().insert(used);
    let span = tracing::info_span!("request", request_id = &*id.0);
    let mut response = next.run(request).instrument(span).await;
    observed.status = response.status().as_u16();
    if let Ok(value) = HeaderValue::from_str(&id.0) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

/// The status of a request whose client left before its answer began, as proxies log it. It is never sent.
const HUNG_UP: u16 = 499;

/// A request until its answer begins, or until nobody waits for one any more, when its handler is dropped.
struct Observed {
    app: Arc<App>,
    id: RequestId,
    used: UsedAdapter,
    method: &'static str,
    handler: Option<MatchedPath>,
    start: Instant,
    status: u16,
}

impl Drop for Observed {
    fn drop(&mut self) {
        let Self { app, id, used, method, handler, start, status } = self;
        let handler = handler.as_ref().map_or("none", |path| path.as_str());
        app.http_metrics.request(method, handler, *status, start.elapsed());
        let ms = start.elapsed().as_micros() as f64 / 1000.0;
        if QUIET.iter().any(|quiet| handler.ends_with(quiet)) {
            tracing::debug!(request_id = &*id.0, method, handler, status, ms, "request");
        } else {
            let adapter = used.name();
            tracing::info!(request_id = &*id.0, method, handler, adapter, status, ms, "request");
        }
    }
}

/// Polled by machines: not worth a line each.
const QUIET: &[&str] = &["/health", "/livez", "/live", "/readyz", "/ready", "/ping", "/metrics"];

fn known_method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::PATCH => "PATCH",
        _ => "other",
    }
}

/// A handler's panic becomes an answer. The body of any other answer stays as it is, without one more box around it, which each of its
/// frames would have to go through.
pub async fn catch_panics(request: Request, next: Next) -> Response {
    match AssertUnwindSafe(next.run(request)).catch_unwind().await {
        Ok(response) => response,
        Err(panic) => {
            let message =
                panic.downcast_ref::<&str>().copied().or(panic.downcast_ref::<String>().map(String::as_str));
            tracing::error!(message, "a handler panicked");
            ApiError::Internal.into_response()
        }
    }
}
