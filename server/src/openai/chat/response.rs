//! A chat completion in one piece.

use crate::openai::answer::Answers;
use crate::openai::delta::{CallDelta, Delta, StopCause};
use crate::openai::generation::ReportOptions;
use crate::openai::prompt_report::PromptLogprobsJson;
use crate::openai::report::{ChatLogprobs, TimingsJson, TokenNames, UsageJson};
use scheduler::TokenId;
use schemars::JsonSchema;
use serde::Serialize;

/// What all responses begin with, in both dialects, streamed or not.
#[derive(Debug, Clone)]
pub struct ResponseHead {
    /// With the dialect's prefix.
    pub id: String,
    /// Unix time in seconds.
    pub created: u64,
    pub model: String,
    pub system_fingerprint: String,
}

impl ResponseHead {
    /// The JSON object's beginning, without its end.
    pub fn opened(&self, object: &str) -> String {
        let Self { id, created, model, system_fingerprint } = self;
        let json = serde_json::json!({
            "id": id, "object": object, "created": created, "model": model, "system_fingerprint": system_fingerprint,
        });
        let mut text = json.to_string();
        text.pop();
        text
    }
}

#[derive(Serialize, JsonSchema)]
pub struct ChatCompletion<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    system_fingerprint: &'a str,
    choices: Vec<ChatChoice<'a>>,
    usage: UsageJson,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<&'a [TokenId]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<PromptLogprobsJson>,
}

#[derive(Serialize, JsonSchema)]
struct ChatChoice<'a> {
    index: usize,
    message: Message<'a>,
    logprobs: Option<ChatLogprobs>,
    finish_reason: &'static str,
    stop_reason: Option<&'a StopCause>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<&'a [TokenId]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<&'a [TokenId]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timings: Option<TimingsJson>,
}

#[derive(Serialize, JsonSchema)]
struct Message<'a> {
    role: &'static str,
    /// `null` where the model thought or called and said nothing.
    content: Option<&'a str>,
    refusal: Option<&'a str>,
    /// The field's two names: some clients read the one, some the other.
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCall<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    function_call: Option<FunctionCall<'a>>,
}

#[derive(Serialize, JsonSchema)]
struct ToolCall<'a> {
    id: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    function: FunctionCall<'a>,
}

#[derive(Serialize, JsonSchema)]
struct FunctionCall<'a> {
    name: &'a str,
    arguments: &'a str,
}

impl<'a> Message<'a> {
    fn new(delta: &'a Delta, legacy_calls: bool) -> Self {
        let reasoning = (!delta.reasoning.is_empty()).then_some(delta.reasoning.as_str());
        let is_silent = delta.text.is_empty() && (reasoning.is_some() || !delta.calls.is_empty());
        let function_call = delta.calls.first().filter(|_| legacy_calls).map(|call| tool_call(call).function);
        Self {
            role: "assistant",
            content: (!is_silent).then_some(&delta.text),
            refusal: None,
            reasoning_content: reasoning,
            reasoning,
            tool_calls: if legacy_calls { Vec::new() } else { delta.calls.iter().map(tool_call).collect() },
            function_call,
        }
    }
}

fn tool_call(call: &CallDelta) -> ToolCall<'_> {
    let start = call.start.as_ref().expect("a whole call has its beginning");
    ToolCall {
        id: &start.id,
        kind: "function",
        function: FunctionCall { name: &start.name, arguments: &call.arguments },
    }
}

/// OpenAI's word for the end of an answer.
pub fn finish_reason(reason: &'static str, legacy_calls: bool) -> &'static str {
    if legacy_calls && reason == "tool_calls" { "function_call" } else { reason }
}

impl<'a> ChatCompletion<'a> {
    pub fn new(
        head: &'a ResponseHead,
        answers: &'a Answers,
        report: &ReportOptions,
        names: TokenNames<'_>,
        prompt: &'a [TokenId],
    ) -> Self {
        let prompt = report.token_ids.then_some(prompt);
        let choice = |(index, delta): (usize, &'a Delta)| {
            let finish = delta.finish.as_ref().expect("a complete answer has a finish");
            ChatChoice {
                index,
                message: Message::new(delta, report.legacy_calls),
                logprobs: report.logprobs.map(|_| names.chat(&delta.logprobs)),
                finish_reason: finish_reason(finish.reason, report.legacy_calls),
                stop_reason: finish.cause.as_ref(),
                token_ids: report.token_ids.then_some(&delta.tokens),
                prompt_token_ids: prompt,
                timings: report.timings.then(|| finish.timings.into()),
            }
        };
        Self {
            id: &head.id,
            object: "chat.completion",
            created: head.created,
            model: &head.model,
            system_fingerprint: &head.system_fingerprint,
            choices: answers.deltas.iter().enumerate().map(choice).collect(),
            usage: answers.usage().into(),
            prompt_token_ids: prompt,
            prompt_logprobs: report
                .prompt_logprobs
                .map(|top| names.prompt(&answers.deltas[0].prompt_logprobs, top)),
        }
    }
}
