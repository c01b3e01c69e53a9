//! DeepSeek-V2 and V3, and the families that are V3 in all but name.

use super::experts::{check_top_k, num_experts, plain_router};
use super::family::{Architecture, Defaults, Family, MAX_EXPERTS, MAX_LAYERS, MAX_WIDTH, dense};
use super::llama::LLAMA;
use crate::LoadError;
use crate::config::json::Fields;
use crate::config::{ExpertNames, MoeConfig, SharedConfig};
use kernels::ops::{GroupScore, RouterConfig, Scoring};

pub(in crate::config) const KIMI_VL: &str = "KimiVLForConditionalGeneration";

pub(super) const ARCHITECTURES: &[Architecture] = &[
    Architecture::new(KIMI_VL, v3).with_tokens(0, 1),
    Architecture::new("DeepseekV3ForCausalLM", v3).with_tokens(0, 1),
    Architecture::new("DeepseekV2ForCausalLM", |_| {
        Ok(Family { latent: true, moe: deepseek_v2, ..dense(&DEEPSEEK_V2) })
    })
    .with_tokens(1, 2),
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

/// What the two DeepSeek routers share: sizes, groups, and which layers have experts.
fn deepseek_moe(
    fields: &Fields,
    num_layers: usize,
    defaults: DeepseekMoe,
    router: RouterConfig,
) -> Result<Option<MoeConfig>, LoadError> {
    let num_experts = num_experts(fields, ["n_routed_experts", defaults.other_name], defaults.num_experts)?;
    let RouterConfig { top_k, num_groups, top_groups, .. } = router;
    if !num_experts.is_multiple_of(num_groups) {
        return Err(
            fields.fail("n_group", format!("{num_groups} does not divide n_routed_experts = {num_experts}"))
        );
    }
    if top_groups > num_groups {
        return Err(fields.fail("topk_group", format!("{top_groups} is above n_group = {num_groups}")));
    }
    let group_size = num_experts / num_groups;
    if router.group_score == GroupScore::SumOfTopTwo && num_groups > 1 && group_size < 2 {
        return Err(fields.fail("n_group", format!("groups of {group_size} expert have no best two")));
    }
    check_top_k(fields, "num_experts_per_tok", top_k, top_groups * group_size)?;
    let width = fields.usize_or("moe_intermediate_size", defaults.intermediate_size, 1..=MAX_WIDTH)?;
    // Null means none; a key that is not there means the default of the class.
    let num_shared = match fields.has("n_shared_experts") {
        true => fields.opt_usize("n_shared_experts", 0..=MAX_EXPERTS)?.unwrap_or(0),
        false => defaults.num_shared,
    };
    let first = fields.usize_or("first_k_dense_replace", defaults.first_dense, 0..=MAX_LAYERS)?;
    let step = fields.usize_or("moe_layer_freq", 1, 1..=MAX_LAYERS)?;
    let layers: Vec<bool> = (0..num_layers).map(|i| i >= first && i.is_multiple_of(step)).collect();
    Ok(layers.contains(&true).then_some(MoeConfig {
        num_experts,
        intermediate_size: width,
        shared: (num_shared > 0)
            .then_some(SharedConfig { intermediate_size: width * num_shared, is_gated: false }),
        correction_bias: router.scoring == Scoring::Sigmoid,
        glu: None,
        router,
        names: ExpertNames::Mlp,
        layers,
    }))
}

struct DeepseekMoe {
    num_experts: usize,
    /// That the configuration class takes for `n_routed_experts`.
    other_name: &'static str,
    intermediate_size: usize,
    num_shared: usize,
    first_dense: usize,
}

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
    let defaults = DeepseekMoe {
        num_experts: 64,
        other_name: "num_experts",
        intermediate_size: 1407,
        num_shared: 2,
        first_dense: 0,
    };
    deepseek_moe(fields, num_layers, defaults, router)
}

fn deepseek_v3(fields: &Fields, num_layers: usize) -> Result<Option<MoeConfig>, LoadError> {
    fields.only("scoring_func", "sigmoid")?;
    fields.only("topk_method", "noaux_tc")?;
    // Null means no groups, and no norm; a key that is not there means the default of the class.
    let groups =
        |key, default| fields.usize_or(key, if fields.has(key) { 1 } else { default }, 1..=MAX_EXPERTS);
    let router = RouterConfig {
        scoring: Scoring::Sigmoid,
        top_k: fields.usize_or("num_experts_per_tok", 8, 1..=MAX_EXPERTS)?,
        num_groups: groups("n_group", 8)?,
        top_groups: groups("topk_group", 4)?,
        group_score: GroupScore::SumOfTopTwo,
        normalize: fields.bool_or("norm_topk_prob", !fields.has("norm_topk_prob"))?,
        scale: fields.f64_in("routed_scaling_factor", Some(2.5), 1e-6..=1e6)? as f32,
    };
    let defaults = DeepseekMoe {
        num_experts: 256,
        other_name: "num_local_experts",
        intermediate_size: 2048,
        num_shared: 1,
        first_dense: 3,
    };
    deepseek_moe(fields, num_layers, defaults, router)
}
