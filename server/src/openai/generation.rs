//! The fields that chat completions and completions share, and what they mean: how tokens are chosen, where the text ends, and
//! what of it is reported.

use crate::constrain::SequenceSpec;
use crate::defaults::GenerationDefaults;
use crate::error::ApiError;
use crate::openai::delta::Usage;
use crate::openai::fields::request_fields;
use crate::openai::json;
use crate::openai::report::UsageJson;
use crate::openai::structured::{ConstraintRequest, StructuredFields};
use crate::openai::tools::ToolUse;
use bytes::BytesMut;
use scheduler::{Digest, NgramConfig, PromptOutput, SamplingParams, TokenId};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::sync::Arc;

request_fields! {
    pub struct GenerationFields {
        model: String,
        temperature: f32,
        top_p: f32,
        top_k: i64,
        min_p: f32,
        frequency_penalty: f32,
        presence_penalty: f32,
        repetition_penalty: f32,
        logit_bias: BTreeMap<String, f32>,
        seed: i64,
        n: usize,
        min_tokens: usize,
        ignore_eos: bool,
        stop: Stop,
        stop_token_ids: Vec<TokenId>,
        include_stop_str_in_output: bool,
        skip_special_tokens: bool,
        /// Only true, which is what happens here, can be honoured.
        spaces_between_special_tokens: bool,
        stream: bool,
        stream_options: StreamOptions,
        return_token_ids: bool,
        return_tokens_as_token_ids: bool,
        timings: bool,
        prompt_logprobs: i64,
        priority: i32,
        cache_salt: String,
        request_id: String,
        /// Of type `text`, `json_object` or `json_schema`.
        response_format: Value,
        /// One of `json`, `regex`, `choice`, `grammar` and `json_object`.
        structured_outputs: Map<String, Value>,
        /// A JSON schema of the whole answer.
        guided_json: Value,
        guided_regex: String,
        guided_choice: Vec<String>,
        guided_grammar: String,
        /// llama-server's name for a schema of the whole answer.
        json_schema: Value,
        /// In llguidance's dialect of Lark.
        grammar: String,
        regex: String,
        bad_words: Vec<String>,
        allowed_token_ids: Vec<TokenId>,
        thinking_token_budget: usize,
        /// llama-server's name; -1 is no budget.
        reasoning_budget_tokens: i64,
        /// Most tokens that are guessed from earlier text and verified in one step; 0 is none. The answer is the same.
        num_speculative_tokens: usize,
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a string or a list of strings")]
pub enum Stop {
    One(String),
    Many(Vec<String>),
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
pub struct StreamOptions {
    #[serde(default)]
    pub include_usage: bool,
    /// Usage so far in every chunk.
    #[serde(default)]
    pub continuous_usage_stats: bool,
}

impl StreamOptions {
    /// Ends a chunk that has a choice open: with the usage so far, or null where it comes in a chunk of its own.
    pub fn close_chunk(self, out: &mut BytesMut, usage: Usage) {
        match self {
            Self { continuous_usage_stats: true, .. } => {
                json::raw(out, "}],\"usage\":");
                json::value(out, &UsageJson::from(usage));
                json::raw(out, "}\n\n");
            }
            Self { include_usage: true, .. } => json::raw(out, "}],\"usage\":null}\n\n"),
            _ => json::raw(out, "}]}\n\n"),
        }
    }

    /// The last chunk, without a choice, where it is asked for; `head` ends where the choices begin.
    pub fn usage_chunk(self, out: &mut BytesMut, head: &str, usage: Usage) {
        if self.include_usage {
            json::raw(out, head);
            json::raw(out, "],\"usage\":");
            json::value(out, &UsageJson::from(usage));
            json::raw(out, "}\n\n");
        }
    }
}

/// Limits that a request is held to, from the configuration.
#[derive(Debug, Clone, Copy)]
pub struct RequestLimits {
    pub n_max: usize,
    pub num_stops_max: usize,
    /// In bytes, of one and of all together: each byte may be a node of the matcher's automaton, which is about a hundred bytes.
    pub stop_len_max: usize,
    pub stops_len_max: usize,
    pub num_biases_max: usize,
    pub num_prompts_max: usize,
    /// Texts of one request that are embedded, scored or ranked.
    pub num_inputs_max: usize,
}

impl Default for RequestLimits {
    fn default() -> Self {
        Self {
            n_max: 128,
            num_stops_max: 64,
            stop_len_max: 1024,
            stops_len_max: 16 << 10,
            num_biases_max: 1024,
            num_prompts_max: 256,
            num_inputs_max: 2048,
        }
    }
}

/// How the answer is made and reported, all present and checked except what depends on the prompt.
#[derive(Debug, Clone)]
pub struct Generation {
    pub model: Option<String>,
    /// What the answer is asked to be held to, and what that became: [`crate::service::Service::constrain`].
    pub asked: ConstraintRequest,
    pub constraint: Option<SequenceSpec>,
    /// `max_tokens` is set when the prompt's length is known, `seed` for each choice.
    pub params: SamplingParams,
    /// `None`: whatever the context leaves.
    pub max_tokens: Option<usize>,
    pub n: usize,
    pub seed: Option<u64>,
    pub text: TextOptions,
    pub output: OutputOptions,
    pub report: ReportOptions,
    /// Alternatives that the engine is to tell for each token of a prompt; `None`: nothing of it.
    pub prompt_top: Option<usize>,
    pub priority: i32,
    pub salt: Digest,
    pub request_id: Option<String>,
    /// How its answers draft; `None`: they do not.
    pub speculation: Option<NgramConfig>,
}

#[derive(Debug, Clone)]
pub struct TextOptions {
    pub stops: Vec<String>,
    pub include_stop: bool,
    pub skip_special_tokens: bool,
}

/// What is looked for in an answer besides text. Nothing, unless it answers a conversation.
#[derive(Debug, Clone, Default)]
pub struct OutputOptions {
    /// It answers a conversation: where a format frames all of an output, its frames are no text.
    pub is_framed: bool,
    /// It goes on with a message that the prompt ends in: that one's frame is there already.
    pub continues: bool,
    /// Thinking is told apart from text.
    pub splits_reasoning: bool,
    /// Thinking is not told at all.
    pub hides_reasoning: bool,
    /// The tools that may be called; `None`: a call is text.
    pub tools: Option<Arc<ToolUse>>,
}

#[derive(Debug, Clone, Copy)]
pub struct ReportOptions {
    /// `None`: one answer in one piece.
    pub stream: Option<StreamOptions>,
    /// Alternatives for each token; `None`: no log-probabilities.
    pub logprobs: Option<usize>,
    /// vLLM's `prompt_logprobs`: the same for each token of the prompt.
    pub prompt_logprobs: Option<usize>,
    pub token_ids: bool,
    /// Names tokens `token_id:123` in log-probabilities, which is exact where text is ambiguous.
    pub tokens_as_ids: bool,
    pub timings: bool,
    /// A call is told as the deprecated `function_call`.
    pub legacy_calls: bool,
}

/// What the two dialects say differently.
pub struct Dialect {
    pub max_tokens: Option<(&'static str, usize)>,
    pub logprobs: Option<usize>,
}

impl GenerationFields {
    pub fn lower(
        self,
        dialect: Dialect,
        defaults: &GenerationDefaults,
        limits: &RequestLimits,
    ) -> Result<Generation, ApiError> {
        let GenerationFields {
            model,
            temperature,
            top_p,
            top_k,
            min_p,
            frequency_penalty,
            presence_penalty,
            repetition_penalty,
            logit_bias,
            seed,
            n,
            min_tokens,
            ignore_eos,
            stop,
            stop_token_ids,
            include_stop_str_in_output,
            skip_special_tokens,
            spaces_between_special_tokens,
            stream,
            stream_options,
            return_token_ids,
            return_tokens_as_token_ids,
            timings,
            prompt_logprobs,
            priority,
            cache_salt,
            request_id,
            response_format,
            structured_outputs,
            guided_json,
            guided_regex,
            guided_choice,
            guided_grammar,
            json_schema,
            grammar,
            regex,
            bad_words,
            allowed_token_ids,
            thinking_token_budget,
            reasoning_budget_tokens,
            num_speculative_tokens,
        } = self;
        let Dialect { max_tokens, logprobs } = dialect;
        if spaces_between_special_tokens == Some(false) {
            return Err(ApiError::unsupported(
                "spaces_between_special_tokens",
                "tokens are joined as they are",
            ));
        }
        let stream = match (stream.unwrap_or(false), stream_options) {
            (true, options) => Some(options.unwrap_or_default()),
            (false, None) => None,
            (false, Some(_)) => {
                return Err(ApiError::invalid("stream_options", "is only allowed when `stream` is true"));
            }
        };
        let prompt_logprobs = lower_prompt_logprobs(prompt_logprobs, stream.is_some())?;
        if let Some((name, 0)) = max_tokens {
            return Err(ApiError::invalid(name, "must be at least 1"));
        }
        if let (Some((_, max)), Some(min)) = (max_tokens, min_tokens)
            && min > max
        {
            return Err(ApiError::invalid("min_tokens", format!("{min} is above max_tokens = {max}")));
        }
        let mut stop_tokens = stop_token_ids.unwrap_or_default();
        if !ignore_eos.unwrap_or(false) {
            stop_tokens.extend(&defaults.eos_token_ids);
        }
        stop_tokens.sort_unstable();
        stop_tokens.dedup();
        let params = SamplingParams {
            max_tokens: 1,
            min_tokens: 0,
            temperature: temperature.unwrap_or(defaults.temperature),
            top_p: top_p.unwrap_or(defaults.top_p),
            top_k: top_k.map_or(Ok(defaults.top_k), lower_top_k)?,
            min_p: min_p.unwrap_or(defaults.min_p),
            seed: 0,
            frequency_penalty: frequency_penalty.unwrap_or(0.0),
            presence_penalty: presence_penalty.unwrap_or(0.0),
            repetition_penalty: repetition_penalty.unwrap_or(defaults.repetition_penalty),
            logit_bias: lower_logit_bias(logit_bias.unwrap_or_default(), limits.num_biases_max)?,
            stop_token_ids: stop_tokens,
            logprobs,
        };
        params.check(defaults.vocab_size)?;
        let structured = StructuredFields {
            response_format,
            structured_outputs,
            guided_json,
            guided_regex,
            guided_choice,
            guided_grammar,
            json_schema,
            grammar,
            regex,
            bad_words,
            allowed_token_ids,
            thinking_token_budget,
            reasoning_budget_tokens,
        };
        Ok(Generation {
            model,
            asked: structured.lower(defaults.vocab_size)?,
            constraint: None,
            params: SamplingParams { min_tokens: min_tokens.unwrap_or(0), ..params },
            max_tokens: max_tokens.map(|(_, max)| max),
            n: in_range("n", n.unwrap_or(1), limits.n_max)?,
            seed: seed.map(|seed| seed as u64),
            text: TextOptions {
                stops: lower_stops(stop, limits)?,
                include_stop: include_stop_str_in_output.unwrap_or(false),
                skip_special_tokens: skip_special_tokens.unwrap_or(true),
            },
            output: OutputOptions::default(),
            report: ReportOptions {
                stream,
                logprobs,
                prompt_logprobs,
                token_ids: return_token_ids.unwrap_or(false),
                tokens_as_ids: return_tokens_as_token_ids.unwrap_or(false),
                timings: timings.unwrap_or(false),
                legacy_calls: false,
            },
            prompt_top: prompt_logprobs,
            priority: priority.unwrap_or(0),
            salt: lower_salt(cache_salt)?,
            request_id,
            speculation: defaults.speculation.of_request(num_speculative_tokens)?,
        })
    }
}

impl Generation {
    /// What answer number `index` to a prompt is to tell of the prompt. One of several answers is enough, but for a stream, in which
    /// any of them may come first.
    pub fn prompt_output(&self, index: usize) -> Option<PromptOutput> {
        let tells = index == 0 || self.report.stream.is_some();
        self.prompt_top.filter(|_| tells).map(|top| PromptOutput::Logprobs { first: 1, top })
    }

    /// The parameters of answer number `index` to one prompt. The first answer has the request's seed itself, so that it is the
    /// answer that `n` = 1 gives; the others have seeds derived from it.
    pub fn params_of(&self, index: usize, seed: u64, max_tokens: usize) -> SamplingParams {
        SamplingParams { max_tokens, seed: derive_seed(seed, index), ..self.params.clone() }
    }
}

fn derive_seed(seed: u64, index: usize) -> u64 {
    if index == 0 {
        return seed;
    }
    let mut x = seed.wrapping_add((index as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// -1 and 0 are off, as in vLLM.
fn lower_top_k(top_k: i64) -> Result<usize, ApiError> {
    match top_k {
        -1 => Ok(0),
        _ => usize::try_from(top_k).map_err(|_| ApiError::invalid("top_k", format!("{top_k} is below -1"))),
    }
}

fn lower_prompt_logprobs(top: Option<i64>, streams: bool) -> Result<Option<usize>, ApiError> {
    if top.is_some() && streams {
        return Err(ApiError::invalid("prompt_logprobs", "is not available when `stream` is true"));
    }
    top.map(|top| check_top("prompt_logprobs", top)).transpose()
}

fn in_range(param: &str, value: usize, max: usize) -> Result<usize, ApiError> {
    if value == 0 || value > max {
        return Err(ApiError::invalid(param, format!("{value} is not in [1, {max}]")));
    }
    Ok(value)
}

fn lower_logit_bias(biases: BTreeMap<String, f32>, max: usize) -> Result<Vec<(TokenId, f32)>, ApiError> {
    if biases.len() > max {
        return Err(ApiError::invalid("logit_bias", format!("{} entries are above {max}", biases.len())));
    }
    let mut lowered = Vec::with_capacity(biases.len());
    for (token, bias) in biases {
        let id = token
            .parse::<TokenId>()
            .map_err(|_| ApiError::invalid("logit_bias", format!("`{token}` is not a token id")))?;
        lowered.push((id, bias));
    }
    lowered.sort_unstable_by_key(|&(id, _)| id);
    if let Some(pair) = lowered.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(ApiError::invalid("logit_bias", format!("token {} is given twice", pair[0].0)));
    }
    Ok(lowered)
}

fn lower_stops(stop: Option<Stop>, limits: &RequestLimits) -> Result<Vec<String>, ApiError> {
    let stops = match stop {
        None => Vec::new(),
        Some(Stop::One(stop)) => vec![stop],
        Some(Stop::Many(stops)) => stops,
    };
    if stops.len() > limits.num_stops_max {
        return Err(ApiError::invalid(
            "stop",
            format!("at most {} strings are allowed", limits.num_stops_max),
        ));
    }
    for (i, stop) in stops.iter().enumerate() {
        if stop.is_empty() || stop.len() > limits.stop_len_max {
            return Err(ApiError::invalid(
                format!("stop[{i}]"),
                format!("{} bytes are not in [1, {}]", stop.len(), limits.stop_len_max),
            ));
        }
    }
    let len: usize = stops.iter().map(String::len).sum();
    if len > limits.stops_len_max {
        let message = format!("{len} bytes in all are above {}", limits.stops_len_max);
        return Err(ApiError::invalid("stop", message));
    }
    Ok(stops)
}

pub fn lower_salt(salt: Option<String>) -> Result<Digest, ApiError> {
    match salt {
        None => Ok(Digest::default()),
        Some(salt) if salt.is_empty() => Err(ApiError::invalid("cache_salt", "is empty")),
        Some(salt) => Ok(Digest(*blake3::hash(salt.as_bytes()).as_bytes())),
    }
}

/// Most alternatives to a token.
const TOP_LOGPROBS_MAX: i64 = 20;

pub fn check_top(param: &str, top: i64) -> Result<usize, ApiError> {
    match usize::try_from(top) {
        Ok(top) if top as i64 <= TOP_LOGPROBS_MAX => Ok(top),
        _ => Err(ApiError::invalid(param, format!("{top} is not in [0, {TOP_LOGPROBS_MAX}]"))),
    }
}
