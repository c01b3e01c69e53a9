//! LLaMA, and the families that changed little of it: Mistral, Mixtral, Seed-OSS, Chameleon.

use super::experts::{check_top_k, num_experts, plain_router};
use super::family::{Architecture, Defaults, Family, MAX_EXPERTS, MAX_WIDTH, OutBias, Window, dense};
use crate::LoadError;
use crate::chameleon::vocabulary::PictureVocabulary;
use crate::config::json::Fields;
use crate::config::{DecoderConfig, ExpertNames, MoeConfig, NormPlace, QkNorm};

pub(in crate::config) const CHAMELEON: &str = "ChameleonForConditionalGeneration";

pub(super) const ARCHITECTURES: &[Architecture] = &[
    Architecture::new("LlamaForCausalLM", |_| Ok(Family { mlp_bias: true, ..dense(&LLAMA) }))
        .with_tokens(1, &[2]),
    Architecture::new("MistralForCausalLM", |_| {
        Ok(Family { qkv_bias: Some(false), window: Window::Always(Some(4096)), ..dense(&MISTRAL) })
    })
    .with_tokens(1, &[2]),
    Architecture::new("MinistralForCausalLM", |_| {
        Ok(Family { qkv_bias: Some(false), window: Window::OfTypes(4096), ..dense(&MISTRAL) })
    })
    .with_tokens(1, &[2]),
    Architecture::new("MixtralForCausalLM", |_| {
        Ok(Family { qkv_bias: Some(false), window: Window::Always(None), moe: mixtral, ..dense(&MIXTRAL) })
    })
    .with_tokens(1, &[2]),
    Architecture::new("SeedOssForCausalLM", |_| {
        Ok(Family {
            bias_default: true,
            out_bias: OutBias::OwnKey,
            head_dim: Some(128),
            mlp_bias: true,
            ..dense(&SEED_OSS)
        })
    })
    .with_tokens(0, &[2]),
    Architecture {
        finish: chameleon,
        ..Architecture::new(CHAMELEON, |_| {
            Ok(Family { qk_norm: QkNorm::LayerPerHead, mlp_bias: true, ..dense(&CHAMELEON_7B) })
        })
        .with_tokens(1, &[2])
    },
];

pub(super) const LLAMA: Defaults = Defaults {
    vocab_size: 32_000,
    hidden_size: 4096,
    intermediate_size: 11_008,
    num_layers: 32,
    num_heads: 32,
    num_kv_heads: None,
    max_positions: 2048,
    rms_norm_eps: 1e-6,
    theta: 1e4,
};
const MISTRAL: Defaults =
    Defaults { intermediate_size: 14_336, num_kv_heads: Some(8), max_positions: 131_072, ..LLAMA };
const MIXTRAL: Defaults = Defaults { rms_norm_eps: 1e-5, theta: 1e6, ..MISTRAL };
const SEED_OSS: Defaults = Defaults {
    vocab_size: 155_136,
    intermediate_size: 27_648,
    num_layers: 64,
    num_heads: 80,
    num_kv_heads: Some(8),
    max_positions: 524_288,
    ..LLAMA
};
const CHAMELEON_7B: Defaults =
    Defaults { vocab_size: 65_536, num_kv_heads: Some(32), max_positions: 4096, rms_norm_eps: 1e-5, ..LLAMA };

/// Where the norms of layers are, and the tokens that no answer has.
fn chameleon(fields: &Fields, decoder: DecoderConfig) -> Result<DecoderConfig, LoadError> {
    let norms = match fields.bool_or("swin_norm", false)? {
        true => NormPlace::After,
        false => NormPlace::Before,
    };
    let never_drawn = PictureVocabulary::read(fields, decoder.vocab_size)?.never_drawn();
    Ok(DecoderConfig { norms, never_drawn, ..decoder })
}

fn mixtral(fields: &Fields, num_layers: usize) -> Result<Option<MoeConfig>, LoadError> {
    let num_experts = num_experts(fields, ["num_local_experts", "num_experts"], 8)?;
    let top_k = fields.usize_or("num_experts_per_tok", 2, 1..=MAX_EXPERTS)?;
    check_top_k(fields, "num_experts_per_tok", top_k, num_experts)?;
    Ok(Some(MoeConfig {
        num_experts,
        intermediate_size: fields.usize_or("intermediate_size", MIXTRAL.intermediate_size, 1..=MAX_WIDTH)?,
        shared: None,
        router: plain_router(top_k, true),
        glu: None,
        correction_bias: None,
        names: ExpertNames::BlockSparse,
        layers: vec![true; num_layers],
    }))
}
