//! GLM-4: dense, with the norms of a sandwich (0414), and with experts (4.5 and later), and the families that changed little of these.

use super::experts::{Experts, SigmoidRouter};
use super::family::{Architecture, Defaults, Family, OutBias, dense};
use super::llama::LLAMA;
use crate::LoadError;
use crate::config::json::Fields;
use crate::config::{MoeConfig, NormPlace, QkNorm};
use kernels::ops::RopeLayout;
use serde_json::Value;

pub(super) const ARCHITECTURES: &[Architecture] = &[
    Architecture::new("GlmForCausalLM", |_| Ok(GLM)).ending(ENDS),
    Architecture::new("Glm4ForCausalLM", |_| Ok(Family { norms: NormPlace::Both, ..GLM })).ending(ENDS),
    Architecture::new("Glm4MoeForCausalLM", |fields| {
        Ok(Family {
            out_bias: OutBias::Never,
            qk_norm: if fields.bool_or("use_qk_norm", false)? { QkNorm::Rms } else { QkNorm::None },
            rotated: Some(|_, _| Ok(0.5)),
            mtp_layers: 1,
            moe: glm_moe,
            ..dense(&GLM_MOE)
        })
    }),
    Architecture::new("Glm4MoeLiteForCausalLM", |_| {
        Ok(Family { latent: true, halves: true, mtp_layers: 1, moe: glm_moe_lite, ..dense(&GLM_MOE_LITE) })
    })
    .with_tokens(0, &[1]),
    Architecture::new("SolarOpenForCausalLM", |_| {
        Ok(Family {
            out_bias: OutBias::Never,
            rotated: Some(|_, _| Ok(1.0)),
            head_dim: Some(128),
            moe: solar_open,
            ..dense(&SOLAR_OPEN)
        })
    }),
];

const ENDS: &[u32] = &[151_329, 151_336, 151_338];

const GLM: Family = Family {
    bias_default: true,
    out_bias: OutBias::Never,
    head_dim: Some(128),
    layout: RopeLayout::Interleaved,
    rotated: Some(|_, _| Ok(0.5)),
    fused_gate_up: true,
    ..dense(&GLM_9B)
};

const GLM_9B: Defaults = Defaults {
    vocab_size: 151_552,
    intermediate_size: 13_696,
    num_layers: 40,
    num_kv_heads: Some(2),
    max_positions: 131_072,
    rms_norm_eps: 1.5625e-7,
    ..LLAMA
};
const GLM_MOE: Defaults = Defaults {
    intermediate_size: 10_944,
    num_layers: 46,
    num_heads: 96,
    num_kv_heads: Some(8),
    rms_norm_eps: 1e-5,
    ..GLM_9B
};
const GLM_MOE_LITE: Defaults = Defaults {
    vocab_size: 154_880,
    hidden_size: 2048,
    intermediate_size: 10_240,
    num_layers: 47,
    num_heads: 20,
    max_positions: 202_752,
    ..GLM_MOE
};
const SOLAR_OPEN: Defaults =
    Defaults { vocab_size: 196_608, num_layers: 48, num_heads: 64, theta: 1e6, ..GLM_MOE };

const EXPERTS: Experts = Experts {
    num_experts: Some(128),
    other_name: "num_local_experts",
    intermediate_size: 1408,
    num_shared: 1,
    first_dense: 1,
};
const ROUTER: SigmoidRouter = SigmoidRouter { top_k: Some(8), groups: [1, 1], normalize: true, scale: 1.0 };

fn glm_moe(fields: &Fields, num_layers: usize) -> Result<Option<MoeConfig>, LoadError> {
    EXPERTS.read(fields, num_layers, ROUTER.read(fields)?)
}

/// Which layers are dense stands in a list, or it is the first.
fn glm_moe_lite(fields: &Fields, num_layers: usize) -> Result<Option<MoeConfig>, LoadError> {
    let router = SigmoidRouter { top_k: Some(4), scale: 1.8, ..ROUTER }.read(fields)?;
    let experts = Experts { num_experts: Some(64), intermediate_size: 1536, ..EXPERTS };
    let moe = experts.read(fields, num_layers, router)?;
    let key = "mlp_layer_types";
    let (Some(moe), Some(types)) = (moe.clone(), fields.opt_array(key)?) else { return Ok(moe) };
    let kinds: Option<Vec<bool>> = types
        .iter()
        .map(|kind| match kind.as_str() {
            Some("sparse") => Some(true),
            Some("dense") => Some(false),
            _ => None,
        })
        .collect();
    match kinds {
        Some(layers) if layers.len() == num_layers => {
            Ok(layers.contains(&true).then_some(MoeConfig { layers, ..moe }))
        }
        _ => Err(fields.fail(
            key,
            format!(
                "{} is not \"dense\" or \"sparse\" for each of the {num_layers} layers",
                Value::from(types)
            ),
        )),
    }
}

/// All of its layers have experts.
fn solar_open(fields: &Fields, num_layers: usize) -> Result<Option<MoeConfig>, LoadError> {
    let experts = Experts { intermediate_size: 1280, first_dense: 0, ..EXPERTS };
    experts.read(fields, num_layers, ROUTER.read(fields)?)
}
