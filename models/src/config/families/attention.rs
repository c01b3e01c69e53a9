//! What the file says of attention: heads, latents, rotation, and the window of some layers.

use super::family::{Family, MAX_HEADS, MAX_WIDTH, OutBias, Window};
use crate::LoadError;
use crate::config::json::Fields;
use crate::config::rope::{self, RopeRule};
use crate::config::{AttentionConfig, GqaConfig, MlaConfig, SlidingWindow};
use kernels::ops::RopeLayout;
use serde_json::Value;

/// The configuration class of the families that have this key where the file has not.
const MAX_WINDOW_LAYERS: usize = 28;

/// The window of some layers: a token sees itself and those before it, so many in all. `None` where it hides nothing.
pub(super) fn sliding_window(
    fields: &Fields,
    window: Window,
    [num_layers, max_positions]: [usize; 2],
) -> Result<Option<SlidingWindow>, LoadError> {
    let (on, default) = match window {
        Window::Never => return Ok(None),
        Window::Switched | Window::SwitchedForAll => {
            (fields.bool_or("use_sliding_window", false)?, Some(4096))
        }
        Window::Always(default) => (true, default),
        Window::OfTypes(default)
        | Window::Alternating(default)
        | Window::FromLayer { width: default, .. } => (true, Some(default)),
    };
    let layers = match window {
        Window::Switched => sliding_layers(fields, num_layers, MAX_WINDOW_LAYERS)?,
        Window::FromLayer { first, .. } => sliding_layers(fields, num_layers, first)?,
        Window::OfTypes(_) | Window::Alternating(_) if fields.get("layer_types").is_some() => {
            sliding_layers(fields, num_layers, MAX_WINDOW_LAYERS)?
        }
        Window::Alternating(_) => (0..num_layers).map(|layer| layer % 2 == 0).collect(),
        _ => vec![true; num_layers],
    };
    let width = match fields.has("sliding_window") {
        true if on => fields.opt_usize("sliding_window", 1..=usize::MAX)?,
        _ => default,
    };
    let hides = |width: &usize| on && *width < max_positions && layers.contains(&true);
    Ok(width.filter(hides).map(|width| SlidingWindow { width, layers }))
}

/// For each layer whether it has the window, if there is one. Where the file does not say which, it is of those from `first` on.
fn sliding_layers(fields: &Fields, num_layers: usize, first: usize) -> Result<Vec<bool>, LoadError> {
    let Some(types) = fields.opt_array("layer_types")? else {
        let first = fields.usize_or("max_window_layers", first, 0..=usize::MAX)?;
        return Ok((0..num_layers).map(|layer| layer >= first).collect());
    };
    if types.len() != num_layers {
        let message = format!("has {} entries, not one for each of {num_layers} layers", types.len());
        return Err(fields.fail("layer_types", message));
    }
    let is_sliding = |layer: &Value| match layer.as_str() {
        Some("full_attention") => Ok(false),
        Some("sliding_attention") => Ok(true),
        _ => Err(fields.fail("layer_types", format!("{layer} is not supported"))),
    };
    types.iter().map(is_sliding).collect()
}

pub(super) fn grouped(
    fields: &Fields,
    family: &Family,
    hidden_size: usize,
    max_position_embeddings: usize,
) -> Result<(AttentionConfig, rope::RopeConfig), LoadError> {
    let default = family.defaults;
    let num_heads = fields.usize_or("num_attention_heads", default.num_heads, 1..=MAX_HEADS)?;
    // Null means as many as heads; a key that is not there means the default of the class.
    let num_kv_heads = match fields.has("num_key_value_heads") {
        true => fields.opt_usize("num_key_value_heads", 1..=MAX_HEADS)?.unwrap_or(num_heads),
        false => default.num_kv_heads.unwrap_or(num_heads),
    };
    if !num_heads.is_multiple_of(num_kv_heads) {
        let message = format!("{num_kv_heads} does not divide num_attention_heads = {num_heads}");
        return Err(fields.fail("num_key_value_heads", message));
    }
    let head_dim = match (fields.opt_usize("head_dim", 1..=MAX_WIDTH)?, family.head_dim) {
        (Some(dim), _) => dim,
        (None, Some(dim)) if !fields.has("head_dim") => dim,
        _ if hidden_size.is_multiple_of(num_heads) => hidden_size / num_heads,
        _ => {
            let message = format!("{num_heads} does not divide hidden_size = {hidden_size}");
            return Err(fields.fail("num_attention_heads", message));
        }
    };
    let attention_bias = fields.bool_or("attention_bias", family.bias_default)?;
    let qkv_bias = family.qkv_bias.unwrap_or(attention_bias);
    let out_bias = match (family.out_bias, family.qkv_bias) {
        (OutBias::OwnKey, _) => fields.bool_or("attention_out_bias", false)?,
        (OutBias::AsQkv, None) => attention_bias,
        (OutBias::AsQkv, Some(_)) | (OutBias::Never, _) => false,
    };
    let rotated = match family.rotated {
        None => None,
        Some(share) => Some(share(fields, head_dim)?),
    };
    let rule = RopeRule {
        default_theta: default.theta,
        head_dim,
        rotated,
        layout: family.layout,
        sections: family.sections,
        max_position_embeddings,
    };
    let scale = (head_dim as f64).powf(-0.5) as f32;
    let (qk_norm, sinks) = (family.qk_norm, family.sinks);
    let attention =
        GqaConfig { num_heads, num_kv_heads, head_dim, qkv_bias, out_bias, qk_norm, scale, sinks };
    Ok((AttentionConfig::Gqa(attention), rope::parse(fields, rule)?))
}

pub(super) fn latent(
    fields: &Fields,
    family: &Family,
    max_position_embeddings: usize,
) -> Result<(AttentionConfig, rope::RopeConfig), LoadError> {
    let default = family.defaults;
    let num_heads = fields.usize_or("num_attention_heads", default.num_heads, 1..=MAX_HEADS)?;
    // Null switches the two-step query off; a key that is not there means 1536.
    let q_lora_rank = match fields.has("q_lora_rank") {
        true => fields.opt_usize("q_lora_rank", 1..=MAX_WIDTH)?,
        false => Some(1536),
    };
    let nope_dim = fields.usize_or("qk_nope_head_dim", 128, 1..=MAX_WIDTH)?;
    let rope_dim = fields.usize_or("qk_rope_head_dim", 64, 1..=MAX_WIDTH)?;
    let interleaved = !family.halves || fields.bool_or("rope_interleave", true)?;
    let rule = RopeRule {
        default_theta: default.theta,
        head_dim: rope_dim,
        rotated: None,
        layout: if interleaved { RopeLayout::Interleaved } else { RopeLayout::Half },
        sections: None,
        max_position_embeddings,
    };
    let rope = rope::parse(fields, rule)?;
    let mscale = rope::softmax_mscale(fields, &rope.scaling)?;
    let scale = ((nope_dim + rope_dim) as f64).powf(-0.5) * mscale * mscale;
    let attention = MlaConfig {
        num_heads,
        q_lora_rank,
        kv_lora_rank: fields.usize_or("kv_lora_rank", 512, 1..=MAX_WIDTH)?,
        nope_dim,
        rope_dim,
        value_dim: fields.usize_or("v_head_dim", 128, 1..=MAX_WIDTH)?,
        bias: fields.bool_or("attention_bias", false)?,
        scale: scale as f32,
        expand_from: None,
    };
    Ok((AttentionConfig::Mla(attention), rope))
}
