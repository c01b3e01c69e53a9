//! Sampling parameters of requests that leave them out: the model's own, from generation_config.json, or the API's.

use models::{ModelFiles, ModelInfo};
use scheduler::TokenId;
use serde::Deserialize;

#[derive(Debug, Clone, PartialEq)]
pub struct GenerationDefaults {
    pub temperature: f32,
    pub top_p: f32,
    pub top_k: usize,
    pub min_p: f32,
    pub repetition_penalty: f32,
    /// What ends an answer unless the request says `ignore_eos`.
    pub eos_token_ids: Vec<TokenId>,
    /// Every token id of a request must be below.
    pub vocab_size: usize,
}

/// The part of generation_config.json that vLLM takes over.
#[derive(Debug, Default, Deserialize)]
struct GenerationConfig {
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<usize>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
}

#[derive(Debug, thiserror::Error)]
pub enum DefaultsError {
    #[error(transparent)]
    Read(#[from] models::FileError),
    #[error("failed to parse {path}: {source}")]
    Parse { path: String, source: serde_json::Error },
    #[error("{path}: {message}")]
    Range { path: String, message: String },
}

const FILE: &str = "generation_config.json";

impl GenerationDefaults {
    /// The API's own.
    pub fn of_api(info: &ModelInfo) -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            eos_token_ids: info.eos_token_ids.clone(),
            vocab_size: info.vocab_size,
        }
    }

    /// The model's, where it has any.
    pub fn of_model(info: &ModelInfo, files: &ModelFiles) -> Result<Self, DefaultsError> {
        let Some(content) = files.read(FILE)? else { return Ok(Self::of_api(info)) };
        let path = || files.describe(FILE);
        let config: GenerationConfig = serde_json::from_slice(&content)
            .map_err(|source| DefaultsError::Parse { path: path(), source })?;
        let GenerationConfig { temperature, top_p, top_k, min_p, repetition_penalty } = config;
        let api = Self::of_api(info);
        let defaults = Self {
            temperature: temperature.unwrap_or(api.temperature),
            top_p: top_p.unwrap_or(api.top_p),
            top_k: top_k.unwrap_or(api.top_k),
            min_p: min_p.unwrap_or(api.min_p),
            repetition_penalty: repetition_penalty.unwrap_or(api.repetition_penalty),
            ..api
        };
        // Or every request that leaves them out would be refused.
        let params = scheduler::SamplingParams {
            temperature: defaults.temperature,
            top_p: defaults.top_p,
            top_k: defaults.top_k,
            min_p: defaults.min_p,
            repetition_penalty: defaults.repetition_penalty,
            ..Default::default()
        };
        params
            .check(info.vocab_size)
            .map_err(|error| DefaultsError::Range { path: path(), message: error.to_string() })?;
        Ok(defaults)
    }
}
