//! DeepSeek-V2 and V3, and the families that are V3 in all but name.

use super::experts::{Experts, SigmoidRouter, plain_router};
use super::family::{Architecture, Defaults, Family, MAX_EXPERTS, dense};
use super::llama::LLAMA;
use crate::LoadError;
use crate::config::MoeConfig;
use crate::config::json::Fields;
use kernels::ops::RouterConfig;

pub(in crate::config) const KIMI_VL: &str = "KimiVLForConditionalGeneration";

pub(super) const ARCHITECTURES: &[Architecture] = &[
    Architecture::new(KIMI_VL, v3).with_tokens(0, &[1]),
    Architecture::new("DeepseekV3ForCausalLM", v3).with_tokens(0, &[1]),
    Architecture::new("DeepseekV2ForCausalLM", |_| {
        Ok(Family { latent: true, moe: deepseek_v2, ..dense(&DEEPSEEK_V2) })
    })
    .with_tokens(1, &[2]),
];

fn v3(_: &Fields) -> Result<Family, LoadError> {
    Ok(Family { latent: true, halves: true, mtp_layers: 1, moe: deepseek_v3, ..dense(&DEEPSEEK_V3) })
}

const DEEPSEEK_V2: Defaults = Defaults { vocab_size: 102_400, ..LLAMA };
const DEEPSEEK_V3: Defaults = Defaults {
    vocab_size: 129_280,
    hidden_size: 7168,
    intermediate_size: 18_432,
    num_layers: 61,
    num_heads: 128,
    max_positions: 4096,
    ..LLAMA
};

fn deepseek_v2(fields: &Fields, num_layers: usize) -> Result<Option<MoeConfig>, LoadError> {
    fields.only("scoring_func", "softmax")?;
    let (num_groups, top_groups) = match fields.opt_str("topk_method")?.unwrap_or("greedy") {
        "greedy" => (1, 1),
        "group_limited_greedy" => {
            (fields.usize("n_group", 1..=MAX_EXPERTS)?, fields.usize("topk_group", 1..=MAX_EXPERTS)?)
        }
        other => return Err(fields.fail("topk_method", format!("{other:?} is not supported"))),
    };
    if fields.bool_or("mlp_bias", false)? {
        return Err(fields.fail("mlp_bias", "true is not supported for this architecture"));
    }
    if fields.bool_or("norm_topk_prob", false)? {
        // One published code scales after normalising and the other does not: no reference to agree with.
        return Err(fields.fail("norm_topk_prob", "true is not supported for this architecture"));
    }
    let router = RouterConfig {
        num_groups,
        top_groups,
        scale: fields.f64_in("routed_scaling_factor", Some(1.0), 1e-6..=1e6)? as f32,
        ..plain_router(fields.usize("num_experts_per_tok", 1..=MAX_EXPERTS)?, false)
    };
    let defaults = Experts {
        num_experts: Some(64),
        other_name: "num_experts",
        intermediate_size: 1407,
        num_shared: 2,
        first_dense: 0,
    };
    defaults.read(fields, num_layers, router)
}

fn deepseek_v3(fields: &Fields, num_layers: usize) -> Result<Option<MoeConfig>, LoadError> {
    fields.only("scoring_func", "sigmoid")?;
    fields.only("topk_method", "noaux_tc")?;
    let router =
        SigmoidRouter { top_k: Some(8), groups: [8, 4], normalize: true, scale: 2.5 }.read(fields)?;
    let defaults = Experts {
        num_experts: Some(256),
        other_name: "num_local_experts",
        intermediate_size: 2048,
        num_shared: 1,
        first_dense: 3,
    };
    defaults.read(fields, num_layers, router)
}
