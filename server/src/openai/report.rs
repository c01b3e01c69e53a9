//! What responses say besides text, in the shapes that both dialects share: usage, timings, and how tokens are named.

use crate::chat::Tokenizer;
use crate::engine_thread::Timings;
use crate::openai::answer::{TokenLogprob, Usage};
use scheduler::TokenId;
use serde::Serialize;
use std::time::Duration;

#[derive(Serialize)]
pub struct UsageJson {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
    prompt_tokens_details: PromptDetails,
    completion_tokens_details: CompletionDetails,
}

#[derive(Serialize)]
struct CompletionDetails {
    reasoning_tokens: usize,
}

#[derive(Serialize)]
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
#[derive(Serialize)]
pub struct TimingsJson {
    queue_ms: f64,
    prefill_ms: f64,
    decode_ms: f64,
    /// This choice's share, by tokens, of the time in which the device worked.
    device_ms: f64,
    cached_tokens: usize,
}

fn ms(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}

impl From<Timings> for TimingsJson {
    fn from(Timings { queue, prefill, decode, device, cached_tokens }: Timings) -> Self {
        Self {
            queue_ms: ms(queue),
            prefill_ms: ms(prefill),
            decode_ms: ms(decode),
            device_ms: ms(device),
            cached_tokens,
        }
    }
}

/// The value of the `Server-Timing` header: of several choices the longest times, and the sum of the device's.
pub fn server_timing(timings: &[Timings], total: Duration) -> String {
    let longest = |get: fn(&Timings) -> Duration| ms(timings.iter().map(get).max().unwrap_or_default());
    let device: Duration = timings.iter().map(|timings| timings.device).sum();
    format!(
        "queue;dur={:.3}, prefill;dur={:.3}, decode;dur={:.3}, device;dur={:.3}, total;dur={:.3}",
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
const LOWEST: f32 = -9999.0;

#[derive(Serialize)]
struct ChatLogprob {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_logprobs: Option<Vec<ChatLogprob>>,
}

#[derive(Serialize)]
pub struct ChatLogprobs {
    content: Vec<ChatLogprob>,
}

#[derive(Serialize)]
pub struct CompletionLogprobs {
    text_offset: Vec<usize>,
    token_logprobs: Vec<f32>,
    tokens: Vec<String>,
    top_logprobs: Vec<TopLogprobs>,
}

impl TokenNames<'_> {
    fn name(&self, token: TokenId) -> String {
        if self.as_ids {
            return format!("token_id:{token}");
        }
        self.tokenizer.token_text(token).unwrap_or_default()
    }

    fn bytes(&self, token: TokenId) -> Vec<u8> {
        self.tokenizer.token_bytes(token).unwrap_or_default().to_vec()
    }

    pub fn chat(&self, logprobs: &[TokenLogprob]) -> ChatLogprobs {
        let one = |token, logprob: f32, top_logprobs| ChatLogprob {
            token: self.name(token),
            logprob: logprob.max(LOWEST),
            bytes: self.bytes(token),
            top_logprobs,
        };
        let content = logprobs
            .iter()
            .map(|entry| {
                let top = entry.top.iter().map(|&(token, logprob)| one(token, logprob, None)).collect();
                one(entry.token, entry.logprob, Some(top))
            })
            .collect();
        ChatLogprobs { content }
    }

    /// `shift` is the length of the text before the answer, where the answer repeats the prompt.
    pub fn completion(&self, logprobs: &[TokenLogprob], shift: usize) -> CompletionLogprobs {
        CompletionLogprobs {
            text_offset: logprobs.iter().map(|entry| shift + entry.text_offset).collect(),
            token_logprobs: logprobs.iter().map(|entry| entry.logprob.max(LOWEST)).collect(),
            tokens: logprobs.iter().map(|entry| self.name(entry.token)).collect(),
            top_logprobs: logprobs.iter().map(|entry| self.top(entry)).collect(),
        }
    }

    /// By name, most probable first, with the sampled token among them. Of tokens with the same text the most probable counts.
    fn top(&self, entry: &TokenLogprob) -> TopLogprobs {
        let mut named: Vec<(String, f32)> = Vec::with_capacity(entry.top.len() + 1);
        for &(token, logprob) in entry.top.iter().chain(std::iter::once(&(entry.token, entry.logprob))) {
            let name = self.name(token);
            if named.iter().all(|(earlier, _)| *earlier != name) {
                named.push((name, logprob.max(LOWEST)));
            }
        }
        TopLogprobs(named)
    }
}

/// A JSON object in the order of its pairs.
struct TopLogprobs(Vec<(String, f32)>);

impl Serialize for TopLogprobs {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, logprob)| (name, logprob)))
    }
}
