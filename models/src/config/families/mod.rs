//! The names, defaults and traps of each architecture, a file for each group of families. Defaults are those of the published
//! configuration classes, so that a file that leaves a key out means here what it means there.

mod attention;
mod deepseek;
mod experts;
mod family;
mod glm;
mod gpt_oss;
mod llama;
mod qwen;
mod sparse;
#[cfg(test)]
mod tests;

use super::DecoderConfig;
use super::json::Fields;
use crate::LoadError;
use family::{Architecture, Family, MAX_LAYERS, MAX_POSITIONS, MAX_VOCAB, MAX_WIDTH, SpecialTokens};

pub(super) use deepseek::KIMI_VL;
pub(super) use gpt_oss::GPT_OSS;
pub(super) use llama::CHAMELEON;
pub(super) use qwen::{QWEN_2_5_VL, QWEN_3_VL, QWEN_3_VL_MOE};

/// Each group's, in the order that messages name them.
const GROUPS: &[&[Architecture]] = &[
    deepseek::ARCHITECTURES,
    llama::ARCHITECTURES,
    qwen::ARCHITECTURES,
    gpt_oss::ARCHITECTURES,
    glm::ARCHITECTURES,
    sparse::ARCHITECTURES,
];

/// The names of all.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    GROUPS.iter().flat_map(|group| group.iter()).map(|architecture| architecture.name)
}

fn find(name: &str) -> &'static Architecture {
    let mut all = GROUPS.iter().flat_map(|group| group.iter());
    all.find(|architecture| architecture.name == name)
        .unwrap_or_else(|| unreachable!("{name} is not in the list of architectures"))
}

pub(super) fn special_tokens(architecture: &str) -> SpecialTokens {
    find(architecture).special_tokens
}

pub(super) fn decoder(
    architecture: &str,
    fields: &Fields,
    prefix: &'static str,
) -> Result<DecoderConfig, LoadError> {
    fields.only("hidden_act", "silu")?;
    let architecture = find(architecture);
    let family = (architecture.family)(fields)?;
    (architecture.finish)(fields, build(fields, &family, prefix)?)
}

fn build(fields: &Fields, family: &Family, prefix: &'static str) -> Result<DecoderConfig, LoadError> {
    let default = family.defaults;
    let hidden_size = fields.usize_or("hidden_size", default.hidden_size, 1..=MAX_WIDTH)?;
    let num_layers = fields.usize_or("num_hidden_layers", default.num_layers, 1..=MAX_LAYERS)?;
    let max_position_embeddings =
        fields.usize_or("max_position_embeddings", default.max_positions, 1..=MAX_POSITIONS)?;
    let (attention, rope) = match family.latent {
        true => attention::latent(fields, family, max_position_embeddings)?,
        false => attention::grouped(fields, family, hidden_size, max_position_embeddings)?,
    };
    let max_position_embeddings = max_position_embeddings.max(rope.scaling.reach()).min(MAX_POSITIONS);
    let sliding = attention::sliding_window(fields, family.window, [num_layers, max_position_embeddings])?;
    Ok(DecoderConfig {
        vocab_size: fields.usize_or("vocab_size", default.vocab_size, 1..=MAX_VOCAB)?,
        hidden_size,
        num_layers,
        num_mtp_layers: match fields.opt_usize("num_nextn_predict_layers", 0..=MAX_LAYERS)? {
            Some(layers) => layers,
            None => fields.usize_or("num_mtp_layers", family.mtp_layers, 0..=MAX_LAYERS)?,
        },
        max_position_embeddings,
        sliding,
        rms_norm_eps: fields.f64_in("rms_norm_eps", Some(default.rms_norm_eps), 1e-12..=1.0)? as f32,
        norms: family.norms,
        attention,
        rope,
        intermediate_size: fields.usize_or("intermediate_size", default.intermediate_size, 1..=MAX_WIDTH)?,
        mlp_bias: family.mlp_bias && fields.bool_or("mlp_bias", false)?,
        fused_gate_up: family.fused_gate_up,
        moe: (family.moe)(fields, num_layers)?,
        tied_head: fields.bool_or("tie_word_embeddings", family.tied_head)?,
        never_drawn: Vec::new(),
        prefix,
        body: "model.",
        newer_prefix: None,
    })
}
