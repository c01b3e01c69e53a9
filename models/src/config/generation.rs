//! generation_config.json: end tokens, and the sampling values that the authors recommend. The server may take them as defaults.

use super::json::{self, Fields};
use crate::{LoadError, ModelFiles};

const GENERATION_FILE: &str = "generation_config.json";

/// Sampling values named by the model's authors; `None` where they name none.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct GenerationDefaults {
    pub temperature: Option<f32>,
    pub top_p: Option<f32>,
    pub top_k: Option<usize>,
    pub min_p: Option<f32>,
    pub repetition_penalty: Option<f32>,
}

/// What the file says.
pub(super) struct Generation {
    pub eos_token_ids: Vec<u32>,
    pub bos_token_id: Option<u32>,
    pub defaults: GenerationDefaults,
}

/// `None` where there is no such file. A first token that config.json named stays.
pub(super) fn read(
    files: &ModelFiles,
    vocab_size: usize,
    bos_token_id: Option<u32>,
) -> Result<Option<Generation>, LoadError> {
    let Some(object) = json::read_object(files, GENERATION_FILE)? else { return Ok(None) };
    let file = files.describe(GENERATION_FILE);
    let fields = Fields::new(&file, "", &object);
    let number = |key, range: std::ops::RangeInclusive<f64>| match fields.get(key) {
        None => Ok(None),
        Some(_) => fields.f64_in(key, None, range).map(|x| Some(x as f32)),
    };
    let defaults = GenerationDefaults {
        temperature: number("temperature", 0.0..=100.0)?,
        top_p: number("top_p", 1e-6..=1.0)?,
        // Zero and, in the words of some servers, -1 mean all tokens.
        top_k: match fields.get("top_k").and_then(serde_json::Value::as_i64) {
            Some(-1) => Some(0),
            _ => fields.opt_usize("top_k", 0..=usize::MAX)?,
        },
        min_p: number("min_p", 0.0..=1.0)?,
        repetition_penalty: number("repetition_penalty", 1e-6..=100.0)?,
    };
    Ok(Some(Generation {
        eos_token_ids: fields.token_ids("eos_token_id", vocab_size)?,
        bos_token_id: match bos_token_id {
            Some(known) => Some(known),
            None => fields.opt_token_id("bos_token_id", vocab_size)?,
        },
        defaults,
    }))
}

/// All of both, the first of each.
pub(super) fn first_of_each(mut ids: Vec<u32>, others: &[u32]) -> Vec<u32> {
    ids.extend(others);
    let mut seen = Vec::with_capacity(ids.len());
    for id in ids {
        if !seen.contains(&id) {
            seen.push(id);
        }
    }
    seen
}
