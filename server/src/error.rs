//! Everything a client can be told went wrong, and the one place where it becomes a status and OpenAI's error object.

use crate::disk::StoreError;
use crate::engine_thread::StopReason;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use scheduler::{Failure, InvalidParam, Reject};
use schemars::JsonSchema;
use serde::Serialize;
use std::borrow::Cow;
use std::io::ErrorKind;

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
    /// The disk of the data folder is full, which is none of this server's limits.
    DiskFull,
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
    kind: &'static str,
    code: Option<&'static str>,
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

const INVALID: &str = "invalid_request_error";

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
        let mut parts = self.whole_parts();
        shorten(&mut parts.message);
        if let Some(param) = &mut parts.param {
            shorten(param);
        }
        parts
    }

    fn whole_parts(&self) -> Parts {
        let parts = |status, kind, code, message: String| Parts {
            status,
            kind,
            code,
            param: None,
            message,
            retry_after_s: None,
            close: false,
        };
        match self {
            ApiError::InvalidJson(message) => parts(
                StatusCode::BAD_REQUEST,
                INVALID,
                Some("invalid_json"),
                format!("failed to parse the body as a JSON object: {message}"),
            ),
            ApiError::InvalidParam { param, message } => Parts {
                param: Some(param.clone()),
                ..parts(
                    StatusCode::BAD_REQUEST,
                    INVALID,
                    Some("invalid_value"),
                    format!("invalid `{param}`: {message}"),
                )
            },
            ApiError::Unsupported { param, message } => Parts {
                param: Some(param.clone()),
                ..parts(
                    StatusCode::BAD_REQUEST,
                    INVALID,
                    Some("unsupported_parameter"),
                    format!("`{param}` is not supported: {message}"),
                )
            },
            ApiError::TooLong { param, prompt_tokens, max_tokens, limit } => Parts {
                param: Some(param.to_string()),
                ..parts(
                    StatusCode::BAD_REQUEST,
                    INVALID,
                    Some("context_length_exceeded"),
                    // Opens as OpenAI's and vLLM's do: clients know by these words that a shorter prompt would help.
                    format!(
                        "This model's maximum context length is {limit} tokens, but {prompt_tokens} in the prompt and {max_tokens} for the answer are {} tokens",
                        prompt_tokens.saturating_add(*max_tokens)
                    ),
                )
            },
            ApiError::NeverFits { param, message } => Parts {
                param: Some(param.to_string()),
                ..parts(StatusCode::BAD_REQUEST, INVALID, Some("never_fits"), message.clone())
            },
            ApiError::ModelNotFound { param, model } => Parts {
                param: Some(param.to_string()),
                ..parts(
                    StatusCode::NOT_FOUND,
                    INVALID,
                    Some("model_not_found"),
                    format!("the model `{model}` does not exist"),
                )
            },
            ApiError::ModelGone => Parts {
                param: Some("model".into()),
                ..parts(
                    StatusCode::NOT_FOUND,
                    INVALID,
                    Some("model_not_found"),
                    "the model was unloaded before the request began".into(),
                )
            },
            ApiError::AdapterNotFound { param, message } => Parts {
                param: Some((*param).into()),
                ..parts(StatusCode::NOT_FOUND, INVALID, Some("not_found"), message.clone())
            },
            ApiError::RouteNotFound { path, meant } => {
                let hint = meant.map(|meant| format!("; did you mean {meant}?")).unwrap_or_default();
                parts(StatusCode::NOT_FOUND, INVALID, Some("not_found"), format!("no route {path}{hint}"))
            }
            ApiError::RouteOff { flag } => parts(
                StatusCode::NOT_FOUND,
                INVALID,
                Some("not_found"),
                format!("this route is off; the server's flag {flag} turns it on"),
            ),
            ApiError::MethodNotAllowed { method, path } => parts(
                StatusCode::METHOD_NOT_ALLOWED,
                INVALID,
                Some("method_not_allowed"),
                format!("{method} is not allowed for {path}"),
            ),
            ApiError::Unauthorized => parts(
                StatusCode::UNAUTHORIZED,
                INVALID,
                Some("invalid_api_key"),
                "missing or wrong API key, expected `Authorization: Bearer KEY` or `x-api-key: KEY`".into(),
            ),
            ApiError::HostNotAllowed { host } => Parts {
                close: true,
                ..parts(
                    StatusCode::FORBIDDEN,
                    INVALID,
                    Some("host_not_allowed"),
                    format!(
                        "`{host}` is no name of this server; its flag --allowed-hosts {host} makes it one"
                    ),
                )
            },
            ApiError::OriginNotAllowed => Parts {
                close: true,
                ..parts(
                    StatusCode::FORBIDDEN,
                    INVALID,
                    Some("origin_not_allowed"),
                    "web pages from elsewhere may not do this; the server's flag --allowed-origins lets them"
                        .into(),
                )
            },
            // The rest of the body is unread, so the connection cannot be used again.
            ApiError::BodyTooLarge { limit } => Parts {
                close: true,
                ..parts(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    INVALID,
                    Some("request_too_large"),
                    format!("the body is larger than {limit} bytes"),
                )
            },
            ApiError::BodyTooComplex { bytes, limit } => parts(
                StatusCode::PAYLOAD_TOO_LARGE,
                INVALID,
                Some("request_too_large"),
                format!(
                    "the body's JSON would take about {bytes} bytes, and the server's flag --max-body-memory leaves {limit} for all requests"
                ),
            ),
            ApiError::BodyMemoryFull { is_read } => Parts {
                retry_after_s: Some(1),
                close: !is_read,
                ..parts(
                    StatusCode::TOO_MANY_REQUESTS,
                    "rate_limit_error",
                    Some("body_memory_full"),
                    "the bodies of other requests take all the memory that there is for them".into(),
                )
            },
            ApiError::BodyTooSlow => Parts {
                close: true,
                ..parts(
                    StatusCode::REQUEST_TIMEOUT,
                    INVALID,
                    Some("request_timeout"),
                    "the body did not arrive in time".into(),
                )
            },
            ApiError::UnsupportedMediaType { message } => Parts {
                close: true,
                ..parts(
                    StatusCode::UNSUPPORTED_MEDIA_TYPE,
                    INVALID,
                    Some("unsupported_media_type"),
                    message.clone(),
                )
            },
            ApiError::CompressedBody => Parts {
                close: true,
                ..parts(
                    StatusCode::UNSUPPORTED_MEDIA_TYPE,
                    INVALID,
                    Some("unsupported_media_type"),
                    "the body is compressed (content-encoding), and only plain ones are read".into(),
                )
            },
            ApiError::NotFound { kind, id } => Parts {
                param: Some("id".into()),
                ..parts(
                    StatusCode::NOT_FOUND,
                    INVALID,
                    Some("not_found"),
                    format!("no such {kind} object: {id}"),
                )
            },
            ApiError::Conflict { message } => {
                parts(StatusCode::CONFLICT, INVALID, Some("conflict"), message.clone())
            }
            ApiError::StorageFull { message } => {
                parts(StatusCode::BAD_REQUEST, INVALID, Some("storage_limit_exceeded"), message.clone())
            }
            ApiError::DiskFull => parts(
                StatusCode::INSUFFICIENT_STORAGE,
                "server_error",
                Some("disk_full"),
                "the disk of the server's data folder (--data-dir) is full".into(),
            ),
            ApiError::NoDataDir => parts(
                StatusCode::NOT_IMPLEMENTED,
                INVALID,
                Some("no_data_dir"),
                "files and batches are kept on disk, and this server was started without --data-dir".into(),
            ),
            ApiError::TooManyBatches { message } => Parts {
                retry_after_s: Some(30),
                ..parts(
                    StatusCode::TOO_MANY_REQUESTS,
                    "rate_limit_error",
                    Some("batch_limit_exceeded"),
                    message.clone(),
                )
            },
            ApiError::TooManyBackground { limit } => Parts {
                retry_after_s: Some(5),
                ..parts(
                    StatusCode::TOO_MANY_REQUESTS,
                    "rate_limit_error",
                    Some("rate_limit_exceeded"),
                    format!("{limit} responses are being made in the background, which is the limit"),
                )
            },
            ApiError::ResponseNotFound { param, message } => Parts {
                param: Some((*param).into()),
                ..parts(StatusCode::NOT_FOUND, INVALID, Some("not_found"), message.clone())
            },
            ApiError::QueueFull { waiting } => Parts {
                retry_after_s: Some(1),
                ..parts(
                    StatusCode::TOO_MANY_REQUESTS,
                    "rate_limit_error",
                    Some("rate_limit_exceeded"),
                    format!("the queue is full with {waiting} requests waiting"),
                )
            },
            ApiError::Loading => Parts {
                retry_after_s: Some(1),
                ..parts(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "service_unavailable_error",
                    Some("loading"),
                    "the model is being loaded".into(),
                )
            },
            ApiError::Draining => Parts {
                retry_after_s: Some(5),
                close: true,
                ..parts(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "service_unavailable_error",
                    Some("shutting_down"),
                    "the server is shutting down".into(),
                )
            },
            ApiError::Engine(message) => parts(
                StatusCode::INTERNAL_SERVER_ERROR,
                "server_error",
                Some("engine_error"),
                message.clone(),
            ),
            ApiError::Failed(Failure::NonFiniteLogits) => parts(
                StatusCode::INTERNAL_SERVER_ERROR,
                "server_error",
                Some("numerical_error"),
                "the model computed logits that are not finite".into(),
            ),
            // What the request asks for leads there each time: to send it again would not help.
            ApiError::Failed(Failure::NothingToSample) => parts(
                StatusCode::BAD_REQUEST,
                INVALID,
                Some("no_valid_token"),
                "the request's biases, penalties, limits and constraints left no token to choose from".into(),
            ),
            ApiError::Failed(Failure::Constraint) => parts(
                StatusCode::BAD_REQUEST,
                INVALID,
                Some("constraint_too_complex"),
                "the constraint on the answer reached a limit of time or memory; a simpler one is needed"
                    .into(),
            ),
            ApiError::Internal => parts(
                StatusCode::INTERNAL_SERVER_ERROR,
                "server_error",
                Some("internal_error"),
                "the server made a mistake; the log has more under this request's id".into(),
            ),
        }
    }

    /// The error object as JSON, for a response body or an event of a stream.
    pub fn json(&self) -> String {
        self.parts().json()
    }
}

/// What a client sent may stand in what it is told, and be megabytes long: its beginning and its end are left.
fn shorten(text: &mut String) {
    const KEPT: usize = 1024;
    if text.len() <= 2 * KEPT {
        return;
    }
    let boundary_from = |at: usize| (at..).find(|&at| text.is_char_boundary(at)).expect("the end is one");
    let (start, end) = (boundary_from(KEPT), boundary_from(text.len() - KEPT));
    text.replace_range(start..end, " … ");
}

impl Parts {
    fn json(&self) -> String {
        let object = Object {
            message: &self.message,
            r#type: self.kind,
            param: self.param.as_deref(),
            code: self.code,
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
            StoreError::Io { ref source, .. } => {
                tracing::error!(%error, "the data folder failed");
                match source.kind() {
                    ErrorKind::StorageFull | ErrorKind::QuotaExceeded => ApiError::DiskFull,
                    _ => ApiError::Internal,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clients_sent_is_repeated_in_part() {
        let model_of = |model: &str| {
            let error = ApiError::ModelNotFound { param: "model".into(), model: model.into() };
            error.parts().message
        };
        assert_eq!(model_of("é"), "the model `é` does not exist");
        for len in [1000, 1024, 1025, 2000, 1 << 20] {
            for start in ["", "a"] {
                let message = model_of(&(start.to_owned() + &"é".repeat(len)));
                assert!(message.starts_with("the model `") && message.ends_with("` does not exist"), "{len}");
                assert!(message.len() < 2060, "{len}: {}", message.len());
                assert_eq!(message.contains(" … "), len > 1000, "{len}");
            }
        }
        let error = ApiError::unsupported("x".repeat(1 << 20), "no");
        assert!(error.json().len() < 4400);
    }

    #[test]
    fn a_full_disk_is_called_that() {
        let error_of = |kind: ErrorKind| {
            ApiError::from(StoreError::Io { context: "failed to write a file", source: kind.into() })
        };
        assert_eq!(error_of(ErrorKind::StorageFull), ApiError::DiskFull);
        assert_eq!(error_of(ErrorKind::QuotaExceeded), ApiError::DiskFull);
        assert_eq!(error_of(ErrorKind::PermissionDenied), ApiError::Internal);
        assert_eq!(ApiError::DiskFull.parts().status, StatusCode::INSUFFICIENT_STORAGE);
    }
}
