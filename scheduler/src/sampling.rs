//! How the next token is chosen: numbers that are all present and all checked.

use crate::TokenId;

/// Sampling parameters of one sequence. Fields are public to read; [`SamplingParams::check`] is what makes them valid,
/// and [`crate::Sequence::new`] calls it, so that nothing unchecked reaches a model.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// How many tokens may be generated. With 0 a sequence ends when its prompt is computed.
    pub max_tokens: usize,
    /// The end and stop tokens are masked until this many tokens were generated.
    pub min_tokens: usize,
    /// 0 is greedy.
    pub temperature: f32,
    /// In (0, 1]; 1 is off.
    pub top_p: f32,
    /// 0 is off.
    pub top_k: usize,
    /// In [0, 1]; 0 is off.
    pub min_p: f32,
    /// Key of the counter-based random numbers; the counter is the position.
    pub seed: u64,
    pub frequency_penalty: f32,
    pub presence_penalty: f32,
    /// Above 0; 1 is off. Counts prompt and output, as vLLM does; the two above count output only.
    pub repetition_penalty: f32,
    /// Added to the logits, sorted by token.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// Tokens that end the sequence: those of the request and, unless `ignore_eos`, those of the model. Sorted.
    pub stop_token_ids: Vec<TokenId>,
    /// `Some(k)`: report the log-probability of the sampled token and of the `k` most probable ones.
    pub logprobs: Option<usize>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            max_tokens: 16,
            min_tokens: 0,
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            seed: 0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            repetition_penalty: 1.0,
            logit_bias: Vec::new(),
            stop_token_ids: Vec::new(),
            logprobs: None,
        }
    }
}

/// A parameter outside its range, by its name in the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidParam {
    pub param: &'static str,
    pub message: String,
}

impl std::fmt::Display for InvalidParam {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.param, self.message)
    }
}

impl std::error::Error for InvalidParam {}

/// Most alternatives that a request may ask for, as in OpenAI's API.
pub const MAX_LOGPROBS: usize = 20;

impl SamplingParams {
    /// Checks every range. `vocab_size` is the number of embedding rows of the model, which every token id must be below.
    pub fn check(&self, vocab_size: usize) -> Result<(), InvalidParam> {
        let fail = |param, message: String| Err(InvalidParam { param, message });
        let finite = |x: f32, low: f32, high: f32| x.is_finite() && x >= low && x <= high;
        if self.min_tokens > self.max_tokens {
            return fail(
                "min_tokens",
                format!("{} is above max_tokens = {}", self.min_tokens, self.max_tokens),
            );
        }
        if !finite(self.temperature, 0.0, 100.0) {
            return fail("temperature", format!("{} is not in [0, 100]", self.temperature));
        }
        if !finite(self.top_p, 0.0, 1.0) || self.top_p == 0.0 {
            return fail("top_p", format!("{} is not in (0, 1]", self.top_p));
        }
        if !finite(self.min_p, 0.0, 1.0) {
            return fail("min_p", format!("{} is not in [0, 1]", self.min_p));
        }
        if !finite(self.frequency_penalty, -2.0, 2.0) {
            return fail("frequency_penalty", format!("{} is not in [-2, 2]", self.frequency_penalty));
        }
        if !finite(self.presence_penalty, -2.0, 2.0) {
            return fail("presence_penalty", format!("{} is not in [-2, 2]", self.presence_penalty));
        }
        if !finite(self.repetition_penalty, f32::MIN_POSITIVE, 100.0) {
            return fail("repetition_penalty", format!("{} is not in (0, 100]", self.repetition_penalty));
        }
        if self.logprobs.is_some_and(|k| k > MAX_LOGPROBS) {
            return fail("logprobs", format!("at most {MAX_LOGPROBS} alternatives can be reported"));
        }
        for &(token, bias) in &self.logit_bias {
            if token as usize >= vocab_size {
                return fail(
                    "logit_bias",
                    format!("token {token} is not below the vocabulary size {vocab_size}"),
                );
            }
            if !finite(bias, -100.0, 100.0) {
                return fail("logit_bias", format!("{bias} for token {token} is not in [-100, 100]"));
            }
        }
        if let Some(token) = self.stop_token_ids.iter().find(|&&t| t as usize >= vocab_size) {
            return fail(
                "stop_token_ids",
                format!("token {token} is not below the vocabulary size {vocab_size}"),
            );
        }
        Ok(())
    }

    /// Whether sampling needs to know the tokens so far, and not only the logits.
    pub fn needs_history(&self) -> bool {
        self.frequency_penalty != 0.0 || self.presence_penalty != 0.0 || self.repetition_penalty != 1.0
    }
}
