//! A response as a JSON object, at any time of its life.

use super::item::OutputItem;
use crate::error::ApiError;
use crate::openai::chat::response::ResponseHead;
use crate::openai::delta::{Finish, Usage};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

/// What a response says from the first to the last: who it is, and what was asked for.
#[derive(Debug)]
pub struct Outline {
    pub head: ResponseHead,
    pub echo: Echo,
}

/// The request's fields, with the values that are used.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Echo {
    pub background: bool,
    pub instructions: Option<String>,
    pub max_output_tokens: Option<usize>,
    pub max_tool_calls: Option<usize>,
    pub metadata: Map<String, Value>,
    pub parallel_tool_calls: bool,
    pub previous_response_id: Option<String>,
    pub prompt_cache_key: Option<String>,
    pub reasoning: ReasoningEcho,
    pub safety_identifier: Option<String>,
    /// Always `default`.
    pub service_tier: &'static str,
    pub store: bool,
    pub temperature: f32,
    pub text: TextEcho,
    pub tool_choice: Value,
    pub tools: Vec<Value>,
    pub top_logprobs: usize,
    pub top_p: f32,
    pub truncation: &'static str,
    pub user: Option<String>,
}

impl Echo {
    /// Bytes of memory, roughly.
    pub fn num_bytes(&self) -> usize {
        serde_json::to_string(self).map_or(0, |json| json.len())
    }
}

#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct ReasoningEcho {
    pub effort: Option<String>,
    /// Always `null`: there are no summaries.
    pub summary: Option<String>,
}

#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(rename = "ResponseText")]
pub struct TextEcho {
    pub format: Value,
}

#[derive(Debug, Clone, Copy)]
pub enum State<'a> {
    Queued,
    InProgress,
    Completed,
    /// The answer reached its limit.
    Incomplete,
    Cancelled,
    Failed(&'a ApiError),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "ResponseStatus")]
pub enum Status {
    Queued,
    InProgress,
    Completed,
    Incomplete,
    Cancelled,
    Failed,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Response")]
pub struct ResponseObject<'a> {
    id: &'a str,
    /// `response`.
    object: &'static str,
    created_at: u64,
    /// Of a response that has ended.
    completed_at: Option<u64>,
    status: Status,
    error: Option<ResponseError>,
    incomplete_details: Option<IncompleteDetails>,
    model: &'a str,
    output: &'a [OutputItem],
    usage: Option<ResponseUsage>,
    #[serde(flatten)]
    echo: &'a Echo,
}

#[derive(Serialize, JsonSchema)]
struct ResponseError {
    /// `server_error`; the message says more.
    code: &'static str,
    message: String,
}

#[derive(Serialize, JsonSchema)]
struct IncompleteDetails {
    /// `max_output_tokens`, which is also the end of the context.
    reason: &'static str,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct ResponseUsage {
    input_tokens: usize,
    input_tokens_details: InputDetails,
    output_tokens: usize,
    output_tokens_details: OutputDetails,
    total_tokens: usize,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ResponseInputDetails")]
struct InputDetails {
    cached_tokens: usize,
    /// Always 0: nothing is charged for what stays in the cache.
    cache_write_tokens: usize,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ResponseOutputDetails")]
struct OutputDetails {
    reasoning_tokens: usize,
}

impl From<Usage> for ResponseUsage {
    fn from(Usage { prompt_tokens, completion_tokens, reasoning_tokens, cached_tokens }: Usage) -> Self {
        Self {
            input_tokens: prompt_tokens,
            input_tokens_details: InputDetails { cached_tokens, cache_write_tokens: 0 },
            output_tokens: completion_tokens,
            output_tokens_details: OutputDetails { reasoning_tokens },
            total_tokens: prompt_tokens + completion_tokens,
        }
    }
}

impl State<'_> {
    pub fn of(finish: &Finish) -> Self {
        if finish.reason == "length" { State::Incomplete } else { State::Completed }
    }

    pub fn status(self) -> Status {
        match self {
            State::Queued => Status::Queued,
            State::InProgress => Status::InProgress,
            State::Completed => Status::Completed,
            State::Incomplete => Status::Incomplete,
            State::Cancelled => Status::Cancelled,
            State::Failed(_) => Status::Failed,
        }
    }

    fn has_ended(self) -> bool {
        !matches!(self, State::Queued | State::InProgress)
    }
}

impl Outline {
    pub fn object<'a>(
        &'a self,
        state: State<'_>,
        output: &'a [OutputItem],
        usage: Option<Usage>,
    ) -> ResponseObject<'a> {
        ResponseObject {
            id: &self.head.id,
            object: "response",
            created_at: self.head.created,
            completed_at: state.has_ended().then(crate::service::unix_time),
            status: state.status(),
            error: match state {
                State::Failed(error) => {
                    Some(ResponseError { code: "server_error", message: error.to_string() })
                }
                _ => None,
            },
            incomplete_details: match state {
                State::Incomplete => Some(IncompleteDetails { reason: "max_output_tokens" }),
                _ => None,
            },
            model: &self.head.model,
            output,
            usage: usage.map(ResponseUsage::from),
            echo: &self.echo,
        }
    }
}
