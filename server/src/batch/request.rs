//! One line of a batch through the router, as an internal request: authorised, behind interactive ones, and patient.

use super::lines::Line;
use super::results::{LineResult, failed_with};
use crate::http::Phase;
use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use axum::response::Response;
use bytes::Bytes;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::sync::watch;
use tower::ServiceExt;

/// Marks a request that this process made itself: it needs no key. No client can set it, for it is not a header.
#[derive(Debug, Clone, Copy)]
pub struct Internal;

/// Interactive requests run first: those with lower numbers do, and theirs is 0 unless they say otherwise.
const PRIORITY: i64 = 1 << 20;
/// How far a line may move among the lines.
const PRIORITY_RANGE: i64 = 1 << 19;
const WAIT_MIN: Duration = Duration::from_millis(250);
const WAIT_MAX: Duration = Duration::from_secs(30);

pub struct LineRunner {
    router: Router,
    phase: watch::Receiver<Phase>,
    takes_field: TakesField,
}

/// Whether the requests of `POST path` have a field of this name.
pub type TakesField = fn(path: &str, field: &str) -> bool;

/// How a line came out.
#[derive(Debug)]
pub enum Outcome {
    Done(LineResult),
    /// The server goes down: the line is for the next one.
    Abandoned,
    /// The engine broke while the line ran, perhaps because of it.
    EngineFailed(LineResult),
}

impl LineRunner {
    pub fn new(router: Router, phase: watch::Receiver<Phase>, takes_field: TakesField) -> Self {
        Self { router, phase, takes_field }
    }

    pub async fn run(&self, line: Line) -> Outcome {
        let id = format!("batch_req_{}", uuid::Uuid::new_v4().simple());
        let Line { custom_id, url, mut body, .. } = line;
        if body.get("stream").is_some_and(|stream| *stream != Value::Bool(false) && !stream.is_null()) {
            let error =
                crate::error::ApiError::unsupported("stream", "an answer in a batch comes in one piece");
            return Outcome::Done(failed_with(id, custom_id, &error));
        }
        if (self.takes_field)(&url, "priority") {
            let asked = body.get("priority").map(|priority| priority.as_i64().ok_or(priority));
            // A value of a wrong type is left for the route to refuse.
            if let Ok(asked) = asked.transpose() {
                let asked = asked.unwrap_or(0).clamp(-PRIORITY_RANGE, PRIORITY_RANGE);
                body.insert("priority".into(), json!(PRIORITY + asked));
            }
        }
        // A batch's answers are in its file: kept as well, they would push out those that somebody asks for later.
        if (self.takes_field)(&url, "store") && body.get("store").is_none_or(Value::is_null) {
            body.insert("store".into(), false.into());
        }
        let body = Bytes::from(Value::Object(body).to_string());
        let mut wait = WAIT_MIN;
        loop {
            let response = self.send(&id, &url, body.clone()).await;
            let status = response.status();
            let is_busy = matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
            if !is_busy {
                return finish(id, custom_id, response).await;
            }
            let asked = response
                .headers()
                .get(header::RETRY_AFTER)
                .and_then(|value| value.to_str().ok()?.parse().ok());
            let asked = Duration::from_secs(asked.unwrap_or(0)).min(WAIT_MAX);
            if self.sleep(asked.max(wait)).await {
                return Outcome::Abandoned;
            }
            wait = (wait * 2).min(WAIT_MAX);
        }
    }

    async fn send(&self, id: &str, url: &str, body: Bytes) -> Response {
        let request = Request::post(url)
            .header(header::CONTENT_TYPE, "application/json")
            .header("x-request-id", id)
            .extension(Internal)
            .body(Body::from(body))
            .expect("routes and ids are fit for a request");
        match self.router.clone().oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }

    /// Says whether the server began to go down.
    async fn sleep(&self, duration: Duration) -> bool {
        let mut phase = self.phase.clone();
        let down = async move {
            let _ = phase.wait_for(|phase| *phase >= Phase::Draining).await.map(drop);
        };
        tokio::time::timeout(duration, down).await.is_ok()
    }
}

async fn finish(id: String, custom_id: String, response: Response) -> Outcome {
    let status = response.status();
    let bytes = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap_or_default();
    // Everything that the routes answer is JSON; should one not be, its text is kept.
    let body: Value = serde_json::from_slice(&bytes)
        .unwrap_or_else(|_| String::from_utf8_lossy(&bytes).into_owned().into());
    let engine_failed =
        status == StatusCode::INTERNAL_SERVER_ERROR && body["error"]["code"] == "engine_error";
    let result = LineResult::answered(id, custom_id, status.as_u16(), body);
    if engine_failed { Outcome::EngineFailed(result) } else { Outcome::Done(result) }
}
