//! Everything a client can be told went wrong, and the one place where it becomes a status and OpenAI's error object.

use crate::disk::StoreError;
use crate::engine_thread::StopReason;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use scheduler::{Failure, InvalidParam, Reject};
use schemars::JsonSchema;
use serde::Serialize;
use std::borrow::Cow;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ApiError {
    /// The body is not JSON, or not an object.
    InvalidJson(String),
    /// A value of the wrong type or outside its range; `param` is its path, such as `messages[0].role`.
    InvalidParam {
        param: String,
        message: String,
    },
    /// A field that would change the answer and that this server cannot honour.
    Unsupported {
        param: String,
        message: String,
    },
    TooLong {
        /// Where the prompt is.
        param: Cow<'static, str>,
        prompt_tokens: usize,
        max_tokens: usize,
        limit: usize,
    },
    /// Can never be served with this configuration: the numbers say why.
    NeverFits {
        param: Cow<'static, str>,
        message: String,
    },
    ModelNotFound {
        /// Where its name stands.
        param: Cow<'static, str>,
        model: String,
    },
    /// The model was there when the request came, and was unloaded before the engine took it in.
    ModelGone,
    /// What a request to load or unload names is not there.
    AdapterNotFound {
        param: &'static str,
        message: String,
    },
    RouteNotFound {
        path: String,
        /// A route that it may have been meant for.
        meant: Option<&'static str>,
    },
    MethodNotAllowed {
        method: String,
        path: String,
    },
    Unauthorized,
    /// The request calls the server by a name that is not its own.
    HostNotAllowed {
        host: String,
    },
    /// A web page from elsewhere sent what it needs no permission for.
    OriginNotAllowed,
    BodyTooLarge {
        limit: usize,
    },
    /// Its JSON would take more memory than there is for all bodies.
    BodyTooComplex {
        bytes: usize,
        limit: usize,
    },
    /// The bodies of other requests take all the memory that there is for them.
    BodyMemoryFull {
        /// The connection can be used again.
        is_read: bool,
    },
    BodyTooSlow,
    UnsupportedMediaType {
        message: String,
    },
    /// The body has a `content-encoding`.
    CompressedBody,
    /// An object of the API, by its kind, that is not there.
    NotFound {
        kind: &'static str,
        id: String,
    },
    /// What the object's state does not allow.
    Conflict {
        message: String,
    },
    /// A limit on what is kept is reached.
    StorageFull {
        message: String,
    },
    /// Files and batches without a folder for them.
    NoDataDir,
    /// A route that the operator did not turn on.
    RouteOff {
        flag: &'static str,
    },
    TooManyBatches {
        message: String,
    },
    TooManyBackground {
        limit: usize,
    },
    /// A response that is not kept, or not any more.
    ResponseNotFound {
        /// Where its id stands.
        param: &'static str,
        message: String,
    },
    QueueFull {
        waiting: usize,
    },
    Loading,
    Draining,
    /// The engine gave up on this request or on everything.
    Engine(String),
    /// The answer could not go on.
    Failed(Failure),
    Internal,
}

/// What the wire carries of an error.
pub struct Parts {
    pub status: StatusCode,
    code: &'static str,
    param: Option<String>,
    message: String,
    retry_after_s: Option<u32>,
    close: bool,
}

/// OpenAI's error object.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Error")]
pub struct Envelope<'a> {
    error: Object<'a>,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ErrorObject")]
struct Object<'a> {
    message: &'a str,
    r#type: &'a str,
    /// The field that is wrong, such as `messages[0].role`.
    param: Option<&'a str>,
    code: Option<&'a str>,
}

impl ApiError {
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        ApiError::InvalidParam { param: param.into(), message: message.into() }
    }

    pub fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        ApiError::Unsupported { param: param.into(), message: message.into() }
    }

    /// The same of another field: a dialect that lowers its requests to those of another has its own names.
    pub fn with_param(self, rename: impl Fn(&str) -> String) -> Self {
        match self {
            ApiError::InvalidParam { param, message } => {
                Self::InvalidParam { param: rename(&param), message }
            }
            ApiError::Unsupported { param, message } => Self::Unsupported { param: rename(&param), message },
            ApiError::TooLong { param, prompt_tokens, max_tokens, limit } => {
                Self::TooLong { param: rename(&param).into(), prompt_tokens, max_tokens, limit }
            }
            ApiError::NeverFits { param, message } => {
                Self::NeverFits { param: rename(&param).into(), message }
            }
            ApiError::ModelNotFound { param, model } => {
                Self::ModelNotFound { param: rename(&param).into(), model }
            }
            other => other,
        }
    }

    /// The engine ended, and the process with it.
    pub fn engine_failed() -> Self {
        ApiError::Engine("the engine failed, the server restarts".into())
    }

    pub fn parts(&self) -> Parts {
        use StatusCode as Status;
        match self {
            ApiError::InvalidJson(message) => {
                let message = format!("failed to parse the body as a JSON object: {message}");
                Parts::new(Status::BAD_REQUEST, "invalid_json", message)
            }
            ApiError::InvalidParam { param, message } => {
                Parts::new(Status::BAD_REQUEST, "invalid_value", format!("invalid `{param}`: {message}"))
                    .at(param)
            }
            ApiError::Unsupported { param, message } => {
                let message = format!("`{param}` is not supported: {message}");
                Parts::new(Status::BAD_REQUEST, "unsupported_parameter", message).at(param)
            }
            ApiError::TooLong { param, prompt_tokens, max_tokens, limit } => {
                // Opens as OpenAI's and vLLM's do: clients know by these words that a shorter prompt would help.
                let message = format!(
                    "This model's maximum context length is {limit} tokens, but {prompt_tokens} in the prompt and {max_tokens} for the answer are {} tokens",
                    prompt_tokens.saturating_add(*max_tokens)
                );
                Parts::new(Status::BAD_REQUEST, "context_length_exceeded", message).at(param)
            }
            ApiError::NeverFits { param, message } => {
                Parts::new(Status::BAD_REQUEST, "never_fits", message).at(param)
            }
            ApiError::ModelNotFound { param, model } => {
                let message = format!("the model `{model}` does not exist");
                Parts::new(Status::NOT_FOUND, "model_not_found", message).at(param)
            }
            ApiError::ModelGone => {
                let message = "the model was unloaded before the request began";
                Parts::new(Status::NOT_FOUND, "model_not_found", message).at("model")
            }
            ApiError::AdapterNotFound { param, message } | ApiError::ResponseNotFound { param, message } => {
                Parts::new(Status::NOT_FOUND, "not_found", message).at(param)
            }
            ApiError::RouteNotFound { path, meant } => {
                let hint = meant.map(|meant| format!("; did you mean {meant}?")).unwrap_or_default();
                Parts::new(Status::NOT_FOUND, "not_found", format!("no route {path}{hint}"))
            }
            ApiError::RouteOff { flag } => {
                let message = format!("this route is off; the server's flag {flag} turns it on");
                Parts::new(Status::NOT_FOUND, "not_found", message)
            }
            ApiError::MethodNotAllowed { method, path } => {
                let message = format!("{method} is not allowed for {path}");
                Parts::new(Status::METHOD_NOT_ALLOWED, "method_not_allowed", message)
            }
            ApiError::Unauthorized => Parts::new(
                Status::UNAUTHORIZED,
                "invalid_api_key",
                "missing or wrong API key, expected `Authorization: Bearer KEY` or `x-api-key: KEY`",
            ),
            ApiError::HostNotAllowed { host } => {
                let message = format!(
                    "`{host}` is no name of this server; its flag --allowed-hosts {host} makes it one"
                );
                Parts::new(Status::FORBIDDEN, "host_not_allowed", message).closing()
            }
            ApiError::OriginNotAllowed => {
                let message =
                    "web pages from elsewhere may not do this; the server's flag --allowed-origins lets them";
                Parts::new(Status::FORBIDDEN, "origin_not_allowed", message).closing()
            }
            // The rest of the body is unread, so the connection cannot be used again.
            ApiError::BodyTooLarge { limit } => {
                let message = format!("the body is larger than {limit} bytes");
                Parts::new(Status::PAYLOAD_TOO_LARGE, "request_too_large", message).closing()
            }
            ApiError::BodyTooComplex { bytes, limit } => {
                let message = format!(
                    "the body's JSON would take about {bytes} bytes, and the server's flag --max-body-memory leaves {limit} for all requests"
                );
                Parts::new(Status::PAYLOAD_TOO_LARGE, "request_too_large", message)
            }
            ApiError::BodyMemoryFull { is_read } => {
                let message = "the bodies of other requests take all the memory that there is for them";
                let parts = Parts::new(Status::TOO_MANY_REQUESTS, "body_memory_full", message).retry_after(1);
                if *is_read { parts } else { parts.closing() }
            }
            ApiError::BodyTooSlow => {
                let message = "the body did not arrive in time";
                Parts::new(Status::REQUEST_TIMEOUT, "request_timeout", message).closing()
            }
            ApiError::UnsupportedMediaType { message } => {
                Parts::new(Status::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message).closing()
            }
            ApiError::CompressedBody => {
                let message = "the body is compressed (content-encoding), and only plain ones are read";
                Parts::new(Status::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message).closing()
            }
            ApiError::NotFound { kind, id } => {
                Parts::new(Status::NOT_FOUND, "not_found", format!("no such {kind} object: {id}")).at("id")
            }
            ApiError::Conflict { message } => Parts::new(Status::CONFLICT, "conflict", message),
            ApiError::StorageFull { message } => {
                Parts::new(Status::BAD_REQUEST, "storage_limit_exceeded", message)
            }
            ApiError::NoDataDir => {
                let message =
                    "files and batches are kept on disk, and this server was started without --data-dir";
                Parts::new(Status::NOT_IMPLEMENTED, "no_data_dir", message)
            }
            ApiError::TooManyBatches { message } => {
                Parts::new(Status::TOO_MANY_REQUESTS, "batch_limit_exceeded", message).retry_after(30)
            }
            ApiError::TooManyBackground { limit } => {
                let message =
                    format!("{limit} responses are being made in the background, which is the limit");
                Parts::new(Status::TOO_MANY_REQUESTS, "rate_limit_exceeded", message).retry_after(5)
            }
            ApiError::QueueFull { waiting } => {
                let message = format!("the queue is full with {waiting} requests waiting");
                Parts::new(Status::TOO_MANY_REQUESTS, "rate_limit_exceeded", message).retry_after(1)
            }
            ApiError::Loading => {
                Parts::new(Status::SERVICE_UNAVAILABLE, "loading", "the model is being loaded").retry_after(1)
            }
            ApiError::Draining => {
                let message = "the server is shutting down";
                Parts::new(Status::SERVICE_UNAVAILABLE, "shutting_down", message).retry_after(5).closing()
            }
            ApiError::Engine(message) => Parts::new(Status::INTERNAL_SERVER_ERROR, "engine_error", message),
            ApiError::Failed(Failure::NonFiniteLogits) => {
                let message = "the model computed logits that are not finite";
                Parts::new(Status::INTERNAL_SERVER_ERROR, "numerical_error", message)
            }
            // What the request asks for leads there each time: to send it again would not help.
            ApiError::Failed(Failure::NothingToSample) => {
                let message =
                    "the request's biases, penalties, limits and constraints left no token to choose from";
                Parts::new(Status::BAD_REQUEST, "no_valid_token", message)
            }
            ApiError::Failed(Failure::Constraint) => {
                let message =
                    "the constraint on the answer reached a limit of time or memory; a simpler one is needed";
                Parts::new(Status::BAD_REQUEST, "constraint_too_complex", message)
            }
            ApiError::Internal => {
                let message = "the server made a mistake; the log has more under this request's id";
                Parts::new(Status::INTERNAL_SERVER_ERROR, "internal_error", message)
            }
        }
    }

    /// The error object as JSON, for a response body or an event of a stream.
    pub fn json(&self) -> String {
        self.parts().json()
    }
}

impl Parts {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, param: None, message: message.into(), retry_after_s: None, close: false }
    }

    /// The field that is wrong.
    fn at(self, param: &str) -> Self {
        Self { param: Some(param.into()), ..self }
    }

    fn retry_after(self, seconds: u32) -> Self {
        Self { retry_after_s: Some(seconds), ..self }
    }

    /// The connection cannot be used again, or should not.
    fn closing(self) -> Self {
        Self { close: true, ..self }
    }

    /// OpenAI's `type`.
    fn kind(&self) -> &'static str {
        match self.status {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            StatusCode::SERVICE_UNAVAILABLE => "service_unavailable_error",
            StatusCode::INTERNAL_SERVER_ERROR => "server_error",
            _ => "invalid_request_error",
        }
    }

    fn json(&self) -> String {
        let object = Object {
            message: &self.message,
            r#type: self.kind(),
            param: self.param.as_deref(),
            code: Some(self.code),
        };
        serde_json::to_string(&Envelope { error: object }).expect("strings serialise")
    }
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.parts().message)
    }
}

impl std::error::Error for ApiError {}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let parts = self.parts();
        let mut response = (parts.status, parts.json()).into_response();
        // For dialects that write errors in another shape.
        response.extensions_mut().insert(self.clone());
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(seconds) = parts.retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if parts.close {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if matches!(self, ApiError::CompressedBody) {
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        }
        if parts.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<InvalidParam> for ApiError {
    fn from(InvalidParam { param, message }: InvalidParam) -> Self {
        ApiError::invalid(param, message)
    }
}

impl From<StopReason> for ApiError {
    fn from(reason: StopReason) -> Self {
        match reason {
            StopReason::Shutdown => ApiError::Draining,
            StopReason::Failure(_) => ApiError::engine_failed(),
            StopReason::AdapterGone => ApiError::ModelGone,
        }
    }
}

impl From<Reject> for ApiError {
    fn from(reject: Reject) -> Self {
        match reject {
            Reject::TooLong { prompt_tokens, max_tokens, limit } => {
                ApiError::TooLong { param: "max_tokens".into(), prompt_tokens, max_tokens, limit }
            }
            Reject::NeverFits { tokens, capacity } => ApiError::NeverFits {
                param: "max_tokens".into(),
                message: format!(
                    "{tokens} tokens of prompt and answer need more than the {capacity} tokens of KV memory"
                ),
            },
            Reject::ImageTooLarge { tokens, capacity } => ApiError::NeverFits {
                param: "messages".into(),
                message: format!("a picture takes {tokens} tokens, the image cache holds {capacity}"),
            },
            Reject::ImageTooCostly { patches, limit } => ApiError::NeverFits {
                param: "messages".into(),
                message: format!("a picture has {patches} patches, a step may encode {limit}"),
            },
            Reject::QueueFull { waiting } => ApiError::QueueFull { waiting },
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Full(message) => ApiError::StorageFull { message },
            StoreError::Io { .. } => {
                tracing::error!(%error, "the data folder failed");
                ApiError::Internal
            }
        }
    }
}
