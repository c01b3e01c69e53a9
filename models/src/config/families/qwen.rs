//! Qwen 2, 2.5 and 3, dense and with experts, and the decoders of Qwen2.5-VL and Qwen3-VL.

use super::experts::{check_top_k, num_experts, plain_router};
use super::family::{Architecture, Defaults, Family, MAX_EXPERTS, MAX_LAYERS, MAX_WIDTH, Window, dense};
use super::llama::LLAMA;
use crate::LoadError;
use crate::config::json::Fields;
use crate::config::{ExpertNames, MoeConfig, QkNorm, SharedConfig};
use kernels::ops::RopeSections;

pub(in crate::config) const QWEN_2_5_VL: &str = "Qwen2_5_VLForConditionalGeneration";
pub(in crate::config) const QWEN_3_VL: &str = "Qwen3VLForConditionalGeneration";
pub(in crate::config) const QWEN_3_VL_MOE: &str = "Qwen3VLMoeForConditionalGeneration";

pub(super) const ARCHITECTURES: &[Architecture] = &[
    Architecture::new("Qwen2ForCausalLM", |_| {
        Ok(Family { qkv_bias: Some(true), window: Window::Switched, ..dense(&QWEN) })
    }),
    Architecture::new("Qwen2MoeForCausalLM", |fields| {
        Ok(Family {
            qkv_bias: Some(fields.bool_or("qkv_bias", true)?),
            window: Window::SwitchedForAll,
            moe: qwen2_moe,
            ..dense(&QWEN2_MOE)
        })
    }),
    Architecture::new("Qwen3ForCausalLM", |_| {
        Ok(Family { qk_norm: QkNorm::Rms, head_dim: Some(128), window: Window::Switched, ..dense(&QWEN) })
    }),
    Architecture::new("Qwen3MoeForCausalLM", |_| {
        Ok(Family {
            qk_norm: QkNorm::Rms,
            window: Window::SwitchedForAll,
            moe: qwen3_moe,
            ..dense(&QWEN3_MOE)
        })
    }),
    Architecture::new(QWEN_2_5_VL, |_| {
        Ok(Family {
            qkv_bias: Some(true),
            window: Window::Switched,
            sections: Some(RopeSections::Consecutive([16, 24, 24])),
            ..dense(&QWEN_2_5_VL_72B)
        })
    })
    .with_tokens(151_643, &[151_645]),
    Architecture::new(QWEN_3_VL, |_| {
        Ok(Family {
            qk_norm: QkNorm::Rms,
            head_dim: Some(128),
            sections: Some(RopeSections::Interleaved([24, 20, 20])),
            ..dense(&QWEN_3_VL_DENSE)
        })
    }),
    Architecture::new(QWEN_3_VL_MOE, |_| {
        Ok(Family {
            qk_norm: QkNorm::Rms,
            sections: Some(RopeSections::Interleaved([24, 20, 20])),
            moe: qwen3_vl_moe,
            ..dense(&QWEN_3_VL_EXPERTS)
        })
    }),
];

const QWEN: Defaults = Defaults {
    vocab_size: 151_936,
    intermediate_size: 22_016,
    num_kv_heads: Some(32),
    max_positions: 32_768,
    ..LLAMA
};
const QWEN2_MOE: Defaults = Defaults {
    hidden_size: 2048,
    intermediate_size: 5632,
    num_layers: 24,
    num_heads: 16,
    num_kv_heads: Some(16),
    ..QWEN
};
const QWEN_3_VL_DENSE: Defaults = Defaults { max_positions: 128_000, theta: 5e5, ..QWEN };
const QWEN_3_VL_EXPERTS: Defaults = Defaults { max_positions: 128_000, theta: 5e5, ..QWEN2_MOE };
const QWEN3_MOE: Defaults =
    Defaults { hidden_size: 2048, intermediate_size: 6144, num_layers: 24, num_kv_heads: Some(4), ..QWEN };
const QWEN_2_5_VL_72B: Defaults = Defaults {
    vocab_size: 152_064,
    hidden_size: 8192,
    intermediate_size: 29_568,
    num_layers: 80,
    num_heads: 64,
    num_kv_heads: Some(8),
    max_positions: 32_768,
    rms_norm_eps: 1e-5,
    theta: 1e6,
};

fn qwen3_moe(fields: &Fields, num_layers: usize) -> Result<Option<MoeConfig>, LoadError> {
    qwen_moe(fields, num_layers, QwenMoe { num_experts: 128, top_k: 8, intermediate_size: 768 })
}

/// The published code gives chosen experts weights that sum to 1 whatever the file says.
fn qwen3_vl_moe(fields: &Fields, num_layers: usize) -> Result<Option<MoeConfig>, LoadError> {
    if !fields.bool_or("norm_topk_prob", true)? {
        return Err(fields.fail("norm_topk_prob", "false is not supported for this architecture"));
    }
    let defaults = QwenMoe { num_experts: 60, top_k: 4, intermediate_size: 1408 };
    let with_sum = |moe: MoeConfig| MoeConfig { router: plain_router(moe.router.top_k, true), ..moe };
    Ok(qwen_moe(fields, num_layers, defaults)?.map(with_sum))
}

fn qwen2_moe(fields: &Fields, num_layers: usize) -> Result<Option<MoeConfig>, LoadError> {
    let defaults = QwenMoe { num_experts: 60, top_k: 4, intermediate_size: 1408 };
    let intermediate_size = fields.usize_or("shared_expert_intermediate_size", 5632, 1..=MAX_WIDTH)?;
    let shared = Some(SharedConfig { intermediate_size, is_gated: true });
    Ok(qwen_moe(fields, num_layers, defaults)?.map(|moe| MoeConfig { shared, ..moe }))
}

struct QwenMoe {
    num_experts: usize,
    top_k: usize,
    intermediate_size: usize,
}

fn qwen_moe(fields: &Fields, num_layers: usize, defaults: QwenMoe) -> Result<Option<MoeConfig>, LoadError> {
    let num_experts = num_experts(fields, ["num_experts", "num_local_experts"], defaults.num_experts)?;
    let top_k = fields.usize_or("num_experts_per_tok", defaults.top_k, 1..=MAX_EXPERTS)?;
    check_top_k(fields, "num_experts_per_tok", top_k, num_experts)?;
    let step = fields.usize_or("decoder_sparse_step", 1, 1..=MAX_LAYERS)?;
    let mut dense = Vec::new();
    for value in fields.opt_array("mlp_only_layers")?.unwrap_or_default() {
        match value.as_u64() {
            Some(layer) if layer < num_layers as u64 => dense.push(layer as usize),
            _ => return Err(fields.fail("mlp_only_layers", format!("{value} is not a layer of the model"))),
        }
    }
    let default = defaults.intermediate_size;
    Ok(Some(MoeConfig {
        num_experts,
        intermediate_size: fields.usize_or("moe_intermediate_size", default, 1..=MAX_WIDTH)?,
        shared: None,
        router: plain_router(top_k, fields.bool_or("norm_topk_prob", false)?),
        glu: None,
        correction_bias: None,
        names: ExpertNames::Mlp,
        layers: (0..num_layers).map(|i| !dense.contains(&i) && (i + 1).is_multiple_of(step)).collect(),
    }))
}
