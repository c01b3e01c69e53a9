//! Sampling parameters of requests that leave them out: the model's own, from generation_config.json, or the API's.

use crate::speculation::Speculation;
use models::ModelInfo;
use scheduler::TokenId;

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
    /// Of requests that do not say whether they draft.
    pub speculation: Speculation,
}

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
            speculation: Speculation::default(),
        }
    }

    /// The model's, where it has any. The loader checked their ranges.
    pub fn of_model(info: &ModelInfo, model: &models::GenerationDefaults) -> Self {
        let models::GenerationDefaults { temperature, top_p, top_k, min_p, repetition_penalty } = *model;
        let api = Self::of_api(info);
        Self {
            temperature: temperature.unwrap_or(api.temperature),
            top_p: top_p.unwrap_or(api.top_p),
            top_k: top_k.unwrap_or(api.top_k),
            min_p: min_p.unwrap_or(api.min_p),
            repetition_penalty: repetition_penalty.unwrap_or(api.repetition_penalty),
            ..api
        }
    }
}
