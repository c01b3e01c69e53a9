//! generation_config.json: end tokens, and the sampling values that the authors recommend. The server may take them as defaults.

use super::ModelConfig;
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

/// Adds what the file says to what config.json said; the file may be absent.
pub(super) fn read(files: &ModelFiles, config: &mut ModelConfig) -> Result<(), LoadError> {
    let Some(object) = json::read_object(files, GENERATION_FILE)? else { return Ok(()) };
    let file = files.describe(GENERATION_FILE);
    let fields = Fields::new(&file, "", &object);
    let vocab_size = config.decoder.vocab_size;
    let mut eos = fields.token_ids("eos_token_id", vocab_size)?;
    eos.append(&mut config.eos_token_ids);
    config.eos_token_ids = unique(eos);
    if config.bos_token_id.is_none() {
        config.bos_token_id = fields.opt_token_id("bos_token_id", vocab_size)?;
    }
    let number = |key, range: std::ops::RangeInclusive<f64>| match fields.get(key) {
        None => Ok(None),
        Some(_) => fields.f64_in(key, None, range).map(|x| Some(x as f32)),
    };
    config.generation = GenerationDefaults {
        temperature: number("temperature", 0.0..=100.0)?,
        top_p: number("top_p", 1e-6..=1.0)?,
        top_k: fields.opt_usize("top_k", 0..=usize::MAX)?,
        min_p: number("min_p", 0.0..=1.0)?,
        repetition_penalty: number("repetition_penalty", 1e-6..=100.0)?,
    };
    Ok(())
}

fn unique(ids: Vec<u32>) -> Vec<u32> {
    let mut seen = Vec::with_capacity(ids.len());
    for id in ids {
        if !seen.contains(&id) {
            seen.push(id);
        }
    }
    seen
}
