//! One request and its answer, whatever the dialect: from the started answers to a response with its headers.

use crate::app::App;
use crate::body::RequestBody;
use crate::engine_thread::Timings;
use crate::error::ApiError;
use crate::lifecycle::InFlight;
use crate::openai::answer::Answers;
use crate::openai::chat::response::ResponseHead;
use crate::openai::fields::Ignored;
use crate::openai::generation::Generation;
use crate::openai::report::server_timing;
use crate::openai::stream::{Dialect, EventBody};
use crate::request::{ApiRequest, RequestId, UsedAdapter, is_clean};
use crate::service::{Found, Service, unix_time};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub struct Exchange {
    pub app: Arc<App>,
    pub service: Arc<Service>,
    id: RequestId,
    /// Where the line in the log has its name from.
    used: UsedAdapter,
    arrived: Instant,
    in_flight: InFlight,
}

impl Exchange {
    /// Takes a request in, or says why none is taken.
    pub fn begin(app: Arc<App>, request: ApiRequest) -> Result<(Self, RequestBody), ApiError> {
        let in_flight = app.lifecycle.admit()?;
        let service = app.service()?.clone();
        let ApiRequest { id, used, body, arrived } = request;
        Ok((Self { app, service, id, used, arrived, in_flight }, body))
    }

    /// `prefix` is the dialect's, such as `chatcmpl-`. The id in the body is the one in the header, unless the body brought its own.
    pub fn head(&self, prefix: &str, generation: &Generation) -> Result<ResponseHead, ApiError> {
        self.head_for(prefix, generation.model.as_deref(), generation.request_id.as_deref())
    }

    /// The same for requests that generate nothing.
    pub fn head_for(
        &self,
        prefix: &str,
        model: Option<&str>,
        request_id: Option<&str>,
    ) -> Result<ResponseHead, ApiError> {
        let id = match request_id {
            Some(id) if !is_clean(id) => {
                return Err(ApiError::invalid("request_id", "expected up to 128 visible ASCII characters"));
            }
            Some(id) => id,
            None => &*self.id.0,
        };
        let Found { name, adapter, fingerprint } = self.service.find_model(model)?;
        if adapter.is_some() {
            self.used.note(&name);
        }
        Ok(ResponseHead {
            id: format!("{prefix}{id}"),
            created: unix_time(),
            model: name,
            system_fingerprint: fingerprint,
        })
    }

    /// Waits for the first event before the status goes out, so that what goes wrong until then has one; but not longer than a client
    /// may have to wait for a sign of life.
    pub async fn stream<D: Dialect>(
        self,
        mut answers: Answers,
        dialect: D,
        ignored: &Ignored,
    ) -> Result<Response, ApiError> {
        let keep_alive = self.app.limits.keep_alive;
        answers.first(keep_alive).await?;
        let mut response =
            EventBody::new(answers, dialect, keep_alive, Box::new(self.in_flight)).into_response();
        add_ignored(&self.app, ignored, &mut response);
        Ok(response)
    }

    /// The answer as events that somebody else takes, without signs of life between them.
    pub fn detached<D: Dialect>(self, answers: Answers, dialect: D) -> EventBody<D> {
        EventBody::new(answers, dialect, None, Box::new(self.in_flight))
    }

    /// The response of an answer in one piece.
    pub fn respond<T: Serialize>(self, answers: &Answers, body: &T, ignored: &Ignored) -> Response {
        let timings: Vec<_> =
            answers.deltas.iter().filter_map(|delta| Some(delta.finish.as_ref()?.timings)).collect();
        self.respond_timed(&timings, body, ignored)
    }

    /// The same of a body that is JSON already.
    pub fn respond_text(self, answers: &Answers, json: String, ignored: &Ignored) -> Response {
        let timings: Vec<_> =
            answers.deltas.iter().filter_map(|delta| Some(delta.finish.as_ref()?.timings)).collect();
        self.with_timings(&timings, json_text(json.into()), ignored)
    }

    pub fn respond_timed<T: Serialize>(self, timings: &[Timings], body: &T, ignored: &Ignored) -> Response {
        self.with_timings(timings, json_response(body), ignored)
    }

    fn with_timings(self, timings: &[Timings], mut response: Response, ignored: &Ignored) -> Response {
        if let Ok(value) = HeaderValue::try_from(server_timing(timings, self.elapsed())) {
            response.headers_mut().insert("server-timing", value);
        }
        add_ignored(&self.app, ignored, &mut response);
        response
    }

    fn elapsed(&self) -> Duration {
        self.arrived.elapsed()
    }
}

pub fn add_ignored(app: &App, ignored: &Ignored, response: &mut Response) {
    app.http_metrics.ignored(ignored.0.len());
    if let Some(value) = ignored.header().and_then(|names| HeaderValue::try_from(names).ok()) {
        response.headers_mut().insert("x-ignored-params", value);
    }
}

pub fn json_response<T: Serialize>(body: &T) -> Response {
    json_text(serde_json::to_vec(body).expect("responses serialise"))
}

pub fn json_text(body: Vec<u8>) -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response()
}
