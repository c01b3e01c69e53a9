//! Families of experts over attention of heads that differ from Qwen's in small things: OLMoE, MiniMax-M2, ERNIE 4.5 and dots.llm1.

use super::experts::{Experts, SigmoidRouter, check_top_k, num_experts, plain_router};
use super::family::{
    Architecture, Defaults, Family, MAX_EXPERTS, MAX_LAYERS, MAX_WIDTH, OutBias, Window, dense,
};
use super::llama::LLAMA;
use crate::LoadError;
use crate::config::json::Fields;
use crate::config::{CorrectionBias, DecoderConfig, ExpertNames, MoeConfig, QkNorm, SharedConfig};
use kernels::ops::{RopeLayout, RouterConfig, Scoring};

pub(super) const ARCHITECTURES: &[Architecture] = &[
    Architecture::new("OlmoeForCausalLM", |fields| {
        if fields.opt_f64("clip_qkv")?.is_some() {
            return Err(fields.fail("clip_qkv", "clipped queries, keys and values are not supported"));
        }
        Ok(Family { qk_norm: QkNorm::RmsOfAll, moe: olmoe, ..dense(&OLMOE) })
    })
    .ending(&[50_279]),
    Architecture {
        finish: minimax_mtp,
        ..Architecture::new("MiniMaxM2ForCausalLM", minimax_m2).with_tokens(200_034, &[200_020])
    },
    Architecture::new("Ernie4_5ForCausalLM", |fields| {
        Ok(Family { head_dim: Some(128), ..ernie(fields, &ERNIE)? })
    })
    .with_tokens(1, &[2]),
    Architecture::new("Ernie4_5_MoeForCausalLM", |fields| {
        Ok(Family { mtp_layers: 1, moe: ernie_moe, ..ernie(fields, &ERNIE_MOE)? })
    })
    .with_tokens(1, &[2]),
    Architecture::new("Dots1ForCausalLM", |_| {
        Ok(Family {
            qk_norm: QkNorm::Rms,
            window: Window::FromLayer { width: 4096, first: 62 },
            moe: dots,
            ..dense(&DOTS)
        })
    }),
];

const OLMOE: Defaults = Defaults {
    vocab_size: 50_304,
    hidden_size: 2048,
    intermediate_size: 2048,
    num_layers: 16,
    num_heads: 16,
    max_positions: 4096,
    rms_norm_eps: 1e-5,
    ..LLAMA
};
const MINIMAX_M2: Defaults = Defaults {
    vocab_size: 200_064,
    hidden_size: 3072,
    intermediate_size: 1536,
    num_layers: 62,
    num_heads: 48,
    num_kv_heads: Some(8),
    max_positions: 196_608,
    rms_norm_eps: 1e-6,
    theta: 5e6,
};
const ERNIE: Defaults = Defaults {
    vocab_size: 103_424,
    hidden_size: 1024,
    intermediate_size: 3072,
    num_layers: 18,
    num_heads: 16,
    num_kv_heads: Some(2),
    max_positions: 131_072,
    rms_norm_eps: 1e-5,
    theta: 5e5,
};
const ERNIE_MOE: Defaults = Defaults {
    hidden_size: 2560,
    intermediate_size: 12_288,
    num_layers: 28,
    num_heads: 20,
    num_kv_heads: Some(4),
    ..ERNIE
};
const DOTS: Defaults = Defaults {
    vocab_size: 152_064,
    hidden_size: 4608,
    intermediate_size: 10_944,
    num_layers: 62,
    num_kv_heads: Some(32),
    ..LLAMA
};

fn olmoe(fields: &Fields, num_layers: usize) -> Result<Option<MoeConfig>, LoadError> {
    let num_experts = num_experts(fields, ["num_experts", "num_local_experts"], 64)?;
    let top_k = fields.usize_or("num_experts_per_tok", 8, 1..=MAX_EXPERTS)?;
    check_top_k(fields, "num_experts_per_tok", top_k, num_experts)?;
    Ok(Some(MoeConfig {
        num_experts,
        intermediate_size: fields.usize_or("intermediate_size", OLMOE.intermediate_size, 1..=MAX_WIDTH)?,
        shared: None,
        router: plain_router(top_k, fields.bool_or("norm_topk_prob", false)?),
        correction_bias: None,
        glu: None,
        names: ExpertNames::Mlp,
        layers: vec![true; num_layers],
    }))
}

/// The published files have switches that its code, and every file, has in one position.
fn minimax_m2(fields: &Fields) -> Result<Family, LoadError> {
    fields.only("scoring_func", "sigmoid")?;
    fields.only("qk_norm_type", "per_layer")?;
    for key in ["use_qk_norm", "use_routing_bias"] {
        if !fields.bool_or(key, true)? {
            return Err(fields.fail(key, "false is not supported for this architecture"));
        }
    }
    if fields.opt_usize("shared_intermediate_size", 0..=MAX_WIDTH)?.is_some_and(|width| width > 0) {
        return Err(fields.fail("shared_intermediate_size", "only 0 is supported for this architecture"));
    }
    if let Some(kinds) = fields.opt_array("attn_type_list")?
        && kinds.iter().any(|kind| kind.as_u64() != Some(1))
    {
        return Err(fields.fail("attn_type_list", "only 1 for every layer is supported, full attention"));
    }
    Ok(Family {
        qkv_bias: Some(false),
        qk_norm: QkNorm::RmsOfAll,
        head_dim: Some(128),
        rotated: Some(|fields, head_dim| match fields.opt_usize("rotary_dim", 1..=MAX_WIDTH)? {
            None => Ok(1.0),
            Some(dim) if dim <= head_dim => Ok(dim as f64 / head_dim as f64),
            Some(dim) => Err(fields.fail("rotary_dim", format!("{dim} is above head_dim = {head_dim}"))),
        }),
        mtp_layers: 3,
        moe: minimax_experts,
        ..dense(&MINIMAX_M2)
    })
}

/// How many layers only speculate stands under names of its own.
fn minimax_mtp(fields: &Fields, decoder: DecoderConfig) -> Result<DecoderConfig, LoadError> {
    let Some(modules) = fields.opt_usize("num_mtp_modules", 0..=MAX_LAYERS)? else { return Ok(decoder) };
    let layers = fields.usize_or("mtp_transformer_layers", 1, 0..=MAX_LAYERS)?;
    Ok(DecoderConfig { num_mtp_layers: modules * layers, ..decoder })
}

fn minimax_experts(fields: &Fields, num_layers: usize) -> Result<Option<MoeConfig>, LoadError> {
    let num_experts = num_experts(fields, ["num_local_experts", "num_experts"], 256)?;
    let top_k = fields.usize_or("num_experts_per_tok", 8, 1..=MAX_EXPERTS)?;
    check_top_k(fields, "num_experts_per_tok", top_k, num_experts)?;
    let default = MINIMAX_M2.intermediate_size;
    Ok(Some(MoeConfig {
        num_experts,
        intermediate_size: fields.usize_or("intermediate_size", default, 1..=MAX_WIDTH)?,
        shared: None,
        router: RouterConfig { scoring: Scoring::Sigmoid, ..plain_router(top_k, true) },
        correction_bias: Some(CorrectionBias::Module),
        glu: None,
        names: ExpertNames::BlockSparse,
        layers: vec![true; num_layers],
    }))
}

fn ernie(fields: &Fields, defaults: &'static Defaults) -> Result<Family, LoadError> {
    if fields.bool_or("use_bias", false)? {
        return Err(fields.fail("use_bias", "true is not supported"));
    }
    Ok(Family {
        qkv_bias: Some(false),
        out_bias: OutBias::Never,
        layout: RopeLayout::Interleaved,
        tied_head: true,
        ..dense(defaults)
    })
}

/// The choice is by softmax and a bias, and the weights are normalised.
fn ernie_moe(fields: &Fields, num_layers: usize) -> Result<Option<MoeConfig>, LoadError> {
    let num_experts = num_experts(fields, ["moe_num_experts", "num_experts"], 64)?;
    let key = if fields.get("moe_k").is_none() { "num_experts_per_tok" } else { "moe_k" };
    let top_k = fields.usize_or(key, 6, 1..=MAX_EXPERTS)?;
    check_top_k(fields, key, top_k, num_experts)?;
    // The least that weights are divided by. Softmax of the best few is far above.
    fields.f64_in("moe_norm_min", Some(1e-12), 0.0..=1e-6)?;
    let width = fields.usize_or("moe_intermediate_size", 1536, 1..=MAX_WIDTH)?;
    let num_shared = fields.usize_or("moe_num_shared_experts", 2, 0..=MAX_EXPERTS)?;
    let first = fields.usize_or("moe_layer_start_index", 1, 0..=MAX_LAYERS)?;
    let last = match fields.get("moe_layer_end_index").and_then(|index| index.as_i64()) {
        Some(-1) => num_layers - 1,
        _ => fields.usize_or("moe_layer_end_index", num_layers - 1, 0..=MAX_LAYERS)?,
    };
    let step = fields.usize_or("moe_layer_interval", 1, 1..=MAX_LAYERS)?;
    let has_experts = |layer: usize| (first..=last).contains(&layer) && (layer + 1).is_multiple_of(step);
    let layers: Vec<bool> = (0..num_layers).map(has_experts).collect();
    Ok(layers.contains(&true).then_some(MoeConfig {
        num_experts,
        intermediate_size: width,
        shared: (num_shared > 0)
            .then_some(SharedConfig { intermediate_size: width * num_shared, is_gated: false }),
        router: plain_router(top_k, true),
        correction_bias: Some(CorrectionBias::Statics),
        glu: None,
        names: ExpertNames::Mlp,
        layers,
    }))
}

fn dots(fields: &Fields, num_layers: usize) -> Result<Option<MoeConfig>, LoadError> {
    // The published files have the name of the method there.
    if !matches!(fields.opt_str("scoring_func")?, None | Some("sigmoid" | "noaux_tc")) {
        return Err(fields.fail("scoring_func", "only \"sigmoid\" is supported"));
    }
    fields.only("topk_method", "noaux_tc")?;
    let router = SigmoidRouter { top_k: None, groups: [1, 1], normalize: false, scale: 1.0 }.read(fields)?;
    let experts = Experts {
        num_experts: None,
        other_name: "num_local_experts",
        intermediate_size: 1408,
        num_shared: 0,
        first_dense: 0,
    };
    experts.read(fields, num_layers, router)
}
