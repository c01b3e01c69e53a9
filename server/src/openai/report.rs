//! What responses say besides text, in the shapes that both dialects share: usage, timings, and how tokens are named.

use crate::chat::Tokenizer;
use crate::engine_thread::Timings;
use crate::openai::delta::{TokenLogprob, Usage};
use scheduler::TokenId;
use schemars::JsonSchema;
use serde::Serialize;
use std::time::Duration;

#[derive(Serialize, JsonSchema)]
pub struct UsageJson {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
    prompt_tokens_details: PromptDetails,
    completion_tokens_details: CompletionDetails,
}

#[derive(Serialize, JsonSchema)]
struct CompletionDetails {
    reasoning_tokens: usize,
}

#[derive(Serialize, JsonSchema)]
struct PromptDetails {
    cached_tokens: usize,
}

impl From<Usage> for UsageJson {
    fn from(Usage { prompt_tokens, completion_tokens, reasoning_tokens, cached_tokens }: Usage) -> Self {
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            prompt_tokens_details: PromptDetails { cached_tokens },
            completion_tokens_details: CompletionDetails { reasoning_tokens },
        }
    }
}

/// Of one choice, in milliseconds; given where the request has `"timings": true`. A choice ended by a stop string was computed
/// until the step before it was found.
#[derive(Serialize, JsonSchema)]
pub struct TimingsJson {
    /// Until the request's pictures were ready: fetched, decoded, resized. 0 without pictures.
    vision_ms: f64,
    queue_ms: f64,
    prefill_ms: f64,
    decode_ms: f64,
    /// This choice's share of the time in which the device worked: of pictures by patches, of all else by tokens.
    device_ms: f64,
    cached_tokens: usize,
    /// Tokens that were guessed for it, and those of them that the model said.
    draft_tokens: usize,
    accepted_tokens: usize,
}

fn ms(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}

impl From<Timings> for TimingsJson {
    fn from(timings: Timings) -> Self {
        let Timings { vision, queue, prefill, decode, device, cached_tokens, draft_tokens, accepted_tokens } =
            timings;
        Self {
            vision_ms: ms(vision),
            queue_ms: ms(queue),
            prefill_ms: ms(prefill),
            decode_ms: ms(decode),
            device_ms: ms(device),
            cached_tokens,
            draft_tokens,
            accepted_tokens,
        }
    }
}

/// The value of the `Server-Timing` header: of several choices the longest times, and the sum of the device's.
pub fn server_timing(timings: &[Timings], total: Duration) -> String {
    let longest = |get: fn(&Timings) -> Duration| ms(timings.iter().map(get).max().unwrap_or_default());
    let device: Duration = timings.iter().map(|timings| timings.device).sum();
    format!(
        "vision;dur={:.3}, queue;dur={:.3}, prefill;dur={:.3}, decode;dur={:.3}, device;dur={:.3}, total;dur={:.3}",
        longest(|t| t.vision),
        longest(|t| t.queue),
        longest(|t| t.prefill),
        longest(|t| t.decode),
        ms(device),
        ms(total)
    )
}

/// How tokens are written in log-probabilities.
#[derive(Clone, Copy)]
pub struct TokenNames<'a> {
    pub tokenizer: &'a Tokenizer,
    /// `token_id:123` instead of text.
    pub as_ids: bool,
}

/// JSON has no infinity; vLLM writes this for a token without probability.
pub const LOWEST: f32 = -9999.0;

#[derive(Debug, Serialize, JsonSchema)]
pub struct ChatLogprob {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_logprobs: Option<Vec<ChatLogprob>>,
}

#[derive(Serialize, JsonSchema)]
pub struct ChatLogprobs {
    content: Vec<ChatLogprob>,
}

#[derive(Serialize, JsonSchema)]
pub struct CompletionLogprobs {
    pub text_offset: Vec<usize>,
    /// `null` for the first token of a prompt that is repeated.
    pub token_logprobs: Vec<Option<f32>>,
    pub tokens: Vec<String>,
    /// For each token an object from names to log-probabilities, most probable first.
    #[schemars(with = "Vec<Option<std::collections::BTreeMap<String, f32>>>")]
    pub top_logprobs: Vec<Option<TopLogprobs>>,
}

impl CompletionLogprobs {
    /// Puts the prompt's part before the answer's.
    pub fn after(self, mut prompt: CompletionLogprobs) -> Self {
        let CompletionLogprobs { text_offset, token_logprobs, tokens, top_logprobs } = self;
        prompt.text_offset.extend(text_offset);
        prompt.token_logprobs.extend(token_logprobs);
        prompt.tokens.extend(tokens);
        prompt.top_logprobs.extend(top_logprobs);
        prompt
    }
}

impl TokenNames<'_> {
    pub fn name(&self, token: TokenId) -> String {
        if self.as_ids {
            return format!("token_id:{token}");
        }
        self.tokenizer.token_text(token).unwrap_or_default()
    }

    fn bytes(&self, token: TokenId) -> Vec<u8> {
        self.tokenizer.token_bytes(token).unwrap_or_default().to_vec()
    }

    pub fn chat(&self, logprobs: &[TokenLogprob]) -> ChatLogprobs {
        ChatLogprobs { content: logprobs.iter().map(|entry| self.with_top(entry)).collect() }
    }

    pub fn with_top(&self, entry: &TokenLogprob) -> ChatLogprob {
        let one = |token, logprob: f32, top_logprobs| ChatLogprob {
            token: self.name(token),
            logprob: logprob.max(LOWEST),
            bytes: self.bytes(token),
            top_logprobs,
        };
        let top = entry.top.iter().map(|&(token, logprob)| one(token, logprob, None)).collect();
        one(entry.token, entry.logprob, Some(top))
    }

    /// `shift` is the length of the text before the answer, where the answer repeats the prompt.
    pub fn completion(&self, logprobs: &[TokenLogprob], shift: usize) -> CompletionLogprobs {
        CompletionLogprobs {
            text_offset: logprobs.iter().map(|entry| shift + entry.text_offset).collect(),
            token_logprobs: logprobs.iter().map(|entry| Some(entry.logprob.max(LOWEST))).collect(),
            tokens: logprobs.iter().map(|entry| self.name(entry.token)).collect(),
            top_logprobs: logprobs
                .iter()
                .map(|entry| Some(self.top(&entry.top, (entry.token, entry.logprob))))
                .collect(),
        }
    }

    /// By name, most probable first, with the token itself among them. Of tokens with the same text the most probable counts.
    pub fn top(&self, top: &[(TokenId, f32)], own: (TokenId, f32)) -> TopLogprobs {
        let mut named: Vec<(String, f32)> = Vec::with_capacity(top.len() + 1);
        for &(token, logprob) in top.iter().chain(std::iter::once(&own)) {
            let name = self.name(token);
            if named.iter().all(|(earlier, _)| *earlier != name) {
                named.push((name, logprob.max(LOWEST)));
            }
        }
        TopLogprobs(named)
    }
}

/// A JSON object in the order of its pairs.
pub struct TopLogprobs(Vec<(String, f32)>);

impl Serialize for TopLogprobs {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, logprob)| (name, logprob)))
    }
}
