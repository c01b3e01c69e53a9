//! A completion in one piece.

use crate::openai::answer::Answers;
use crate::openai::chat::response::ResponseHead;
use crate::openai::delta::{Delta, StopCause, TokenLogprob};
use crate::openai::generation::ReportOptions;
use crate::openai::prompt_report::{Echoed, PromptLogprobsJson};
use crate::openai::report::{CompletionLogprobs, TimingsJson, TokenNames, UsageJson};
use scheduler::{PromptLogprob, TokenId};
use schemars::JsonSchema;
use serde::Serialize;
use std::sync::Arc;

/// A prompt as its choices repeat it.
pub struct Echo {
    pub tokens: Arc<[TokenId]>,
    /// `None` where the request does not ask for an echo.
    pub text: Option<String>,
    /// Of `text`.
    pub num_chars: usize,
    /// Characters of `text` before each token, where they are reported.
    pub offsets: Vec<usize>,
}

impl Echo {
    /// The log-probabilities of a choice, with the prompt's before them where it is repeated.
    pub fn logprobs(
        &self,
        names: TokenNames<'_>,
        top: usize,
        prompt: &[PromptLogprob],
        answer: &[TokenLogprob],
    ) -> CompletionLogprobs {
        let logprobs = names.completion(answer, self.num_chars);
        if self.text.is_none() {
            return logprobs;
        }
        let (tokens, offsets) = (&self.tokens[..], &self.offsets[..]);
        logprobs.after(names.echoed(Echoed { tokens, offsets, logprobs: prompt, top }))
    }
}

#[derive(Serialize, JsonSchema)]
pub struct Completion<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    system_fingerprint: &'a str,
    choices: Vec<CompletionChoice<'a>>,
    usage: UsageJson,
}

#[derive(Serialize, JsonSchema)]
struct CompletionChoice<'a> {
    index: usize,
    text: String,
    logprobs: Option<CompletionLogprobs>,
    finish_reason: &'static str,
    stop_reason: Option<&'a StopCause>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<&'a [TokenId]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<&'a [TokenId]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timings: Option<TimingsJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<PromptLogprobsJson>,
}

impl<'a> Completion<'a> {
    pub fn new(
        head: &'a ResponseHead,
        answers: &'a Answers,
        report: &ReportOptions,
        names: TokenNames<'_>,
        prompts: &'a [Echo],
    ) -> Self {
        let n = answers.deltas.len() / prompts.len();
        let choice = |(index, delta): (usize, &'a Delta)| {
            let finish = delta.finish.as_ref().expect("a complete answer has a finish");
            let prompt = &prompts[index / n];
            // The first answer to a prompt tells of it.
            let of_prompt = &answers.deltas[index / n * n].prompt_logprobs;
            CompletionChoice {
                index,
                text: format!("{}{}", prompt.text.as_deref().unwrap_or(""), delta.text),
                logprobs: report.logprobs.map(|top| prompt.logprobs(names, top, of_prompt, &delta.logprobs)),
                finish_reason: finish.reason,
                stop_reason: finish.cause.as_ref(),
                token_ids: report.token_ids.then_some(&delta.tokens),
                prompt_token_ids: report.token_ids.then_some(&prompt.tokens),
                timings: report.timings.then(|| finish.timings.into()),
                prompt_logprobs: report.prompt_logprobs.map(|top| names.prompt(of_prompt, top)),
            }
        };
        Self {
            id: &head.id,
            object: "text_completion",
            created: head.created,
            model: &head.model,
            system_fingerprint: &head.system_fingerprint,
            choices: answers.deltas.iter().enumerate().map(choice).collect(),
            usage: answers.usage().into(),
        }
    }
}
