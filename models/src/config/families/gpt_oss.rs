//! gpt-oss: windows in every second layer where the file says nothing, sinks, experts with biases, and published weights in bf16 whose type the files do
//! not name.

use super::experts::{check_top_k, plain_router};
use super::family::{Architecture, Defaults, Family, MAX_EXPERTS, MAX_WIDTH, Window, dense};
use crate::LoadError;
use crate::config::json::Fields;
use crate::config::{ExpertNames, GluConfig, MoeConfig};

pub(in crate::config) const GPT_OSS: &str = "GptOssForCausalLM";

pub(super) const ARCHITECTURES: &[Architecture] = &[Architecture::new(GPT_OSS, |_| {
    Ok(Family {
        bias_default: true,
        head_dim: Some(64),
        window: Window::Alternating(128),
        sinks: true,
        moe,
        ..dense(&GPT_OSS_120B)
    })
})];

const GPT_OSS_120B: Defaults = Defaults {
    vocab_size: 201_088,
    hidden_size: 2880,
    intermediate_size: 2880,
    num_layers: 36,
    num_heads: 64,
    num_kv_heads: Some(8),
    max_positions: 131_072,
    rms_norm_eps: 1e-5,
    theta: 150_000.0,
};
const NUM_EXPERTS: usize = 128;
const TOP_K: usize = 4;
const ALPHA: f64 = 1.702;
const LIMIT: f64 = 7.0;

fn moe(fields: &Fields, num_layers: usize) -> Result<Option<MoeConfig>, LoadError> {
    // Without it the published class takes a YaRN of its own, and published files all have it.
    if fields.get("rope_scaling").is_none() && fields.get("rope_parameters").is_none() {
        return Err(fields.fail("rope_scaling", "is missing"));
    }
    let num_experts = fields.usize_or("num_local_experts", NUM_EXPERTS, 1..=MAX_EXPERTS)?;
    let top_k = fields.usize_or("num_experts_per_tok", TOP_K, 1..=MAX_EXPERTS)?;
    check_top_k(fields, "num_experts_per_tok", top_k, num_experts)?;
    let number = |key, default: f64| fields.f64_in(key, Some(default), 1e-3..=1e3).map(|value| value as f32);
    let default = GPT_OSS_120B.intermediate_size;
    Ok(Some(MoeConfig {
        num_experts,
        intermediate_size: fields.usize_or("intermediate_size", default, 1..=MAX_WIDTH)?,
        shared: None,
        // A softmax over those that are chosen is one over all, normalised.
        router: plain_router(top_k, true),
        correction_bias: None,
        glu: Some(GluConfig { alpha: number("swiglu_alpha", ALPHA)?, limit: number("swiglu_limit", LIMIT)? }),
        names: ExpertNames::Fused,
        layers: vec![true; num_layers],
    }))
}
