//! A message in one piece.

use crate::openai::answer::Answers;
use crate::openai::chat::response::ResponseHead;
use crate::openai::delta::{CallDelta, Delta, Finish, Said, StopCause, Usage};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Value, json};

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "AnthropicMessage")]
pub struct Message<'a> {
    id: &'a str,
    r#type: &'static str,
    role: &'static str,
    model: &'a str,
    content: Vec<Block<'a>>,
    stop_reason: &'static str,
    stop_sequence: Option<&'a str>,
    usage: UsageJson,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "AnthropicBlock")]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Block<'a> {
    /// Nothing is signed here: the signature is always empty.
    Thinking {
        thinking: &'a str,
        signature: &'static str,
    },
    Text {
        text: &'a str,
    },
    ToolUse {
        id: &'a str,
        name: &'a str,
        input: Value,
    },
}

/// The prompt's tokens are `input_tokens` and `cache_read_input_tokens` together.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "AnthropicUsage")]
pub struct UsageJson {
    input_tokens: usize,
    output_tokens: usize,
    cache_read_input_tokens: usize,
    /// Always 0: nothing is charged for what stays in the cache.
    cache_creation_input_tokens: usize,
}

#[derive(Serialize, JsonSchema)]
pub struct TokenCount {
    pub input_tokens: usize,
}

impl From<Usage> for UsageJson {
    fn from(Usage { prompt_tokens, completion_tokens, cached_tokens, .. }: Usage) -> Self {
        Self {
            input_tokens: prompt_tokens.saturating_sub(cached_tokens),
            output_tokens: completion_tokens,
            cache_read_input_tokens: cached_tokens,
            cache_creation_input_tokens: 0,
        }
    }
}

/// Anthropic's words for the end of an answer.
pub fn stop_reason(finish: &Finish) -> (&'static str, Option<&str>) {
    match (finish.reason, &finish.cause) {
        ("length", _) => ("max_tokens", None),
        ("tool_calls", _) => ("tool_use", None),
        (_, Some(StopCause::Text(text))) => ("stop_sequence", Some(text)),
        _ => ("end_turn", None),
    }
}

/// What a client that puts a stream together makes of the arguments: an object. Anthropic's name for what is none, such as a call that
/// was cut off, is `INVALID_JSON`.
fn input(call: &CallDelta) -> Value {
    match serde_json::from_str(&call.arguments) {
        Ok(input @ Value::Object(_)) => input,
        _ => json!({ "INVALID_JSON": call.arguments }),
    }
}

pub(super) fn blocks(delta: &Delta) -> Vec<Block<'_>> {
    let thinking = (!delta.reasoning.is_empty())
        .then_some(Block::Thinking { thinking: &delta.reasoning, signature: "" });
    let said = delta.said().map(|said| match said {
        Said::Text(text) => Block::Text { text },
        Said::Call(call) => {
            let start = call.start.as_ref().expect("a whole call has its beginning");
            Block::ToolUse { id: &start.id, name: &start.name, input: input(call) }
        }
    });
    thinking.into_iter().chain(said).collect()
}

impl<'a> Message<'a> {
    pub fn new(head: &'a ResponseHead, answers: &'a Answers) -> Self {
        let delta = &answers.deltas[0];
        let finish = delta.finish.as_ref().expect("a complete answer has a finish");
        let (stop_reason, stop_sequence) = stop_reason(finish);
        Self {
            id: &head.id,
            r#type: "message",
            role: "assistant",
            model: &head.model,
            content: blocks(delta),
            stop_reason,
            stop_sequence,
            usage: answers.usage().into(),
        }
    }
}
