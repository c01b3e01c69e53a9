//! The names, defaults and traps of each architecture. Defaults are those of the published configuration classes, so that a
//! file that leaves a key out means here what it means there.

use super::json::Fields;
use super::rope::{self, RopeRule};
use super::{
    AttentionConfig, DecoderConfig, ExpertNames, GqaConfig, MlaConfig, MoeConfig, NormPlace, QkNorm,
    SharedConfig,
};
use crate::LoadError;
use crate::chameleon::vocabulary::PictureVocabulary;
use kernels::ops::{GroupScore, RopeLayout, RopeSections, RouterConfig, Scoring};

pub(super) const ARCHITECTURES: &[&str] = &[
    KIMI_VL,
    "DeepseekV3ForCausalLM",
    "DeepseekV2ForCausalLM",
    "LlamaForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen2MoeForCausalLM",
    "Qwen3ForCausalLM",
    "Qwen3MoeForCausalLM",
    "MistralForCausalLM",
    "MinistralForCausalLM",
    "MixtralForCausalLM",
    "SeedOssForCausalLM",
    CHAMELEON,
    QWEN_2_5_VL,
];

pub(super) const CHAMELEON: &str = "ChameleonForConditionalGeneration";

pub(super) const KIMI_VL: &str = "KimiVLForConditionalGeneration";
pub(super) const QWEN_2_5_VL: &str = "Qwen2_5_VLForConditionalGeneration";

const MAX_LAYERS: usize = 1024;
const MAX_WIDTH: usize = 1 << 20;
const MAX_VOCAB: usize = 1 << 24;
const MAX_HEADS: usize = 4096;
const MAX_EXPERTS: usize = 4096;
const MAX_POSITIONS: usize = 1 << 28;

/// Sizes that the configuration classes take when the file names none.
struct Defaults {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_layers: usize,
    num_heads: usize,
    /// `None`: as many as heads.
    num_kv_heads: Option<usize>,
    max_positions: usize,
    rms_norm_eps: f64,
    theta: f64,
}

const LLAMA: Defaults = Defaults {
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
const QWEN3_MOE: Defaults =
    Defaults { hidden_size: 2048, intermediate_size: 6144, num_layers: 24, num_kv_heads: Some(4), ..QWEN };
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

/// Special tokens that the configuration classes name when the files do not.
pub(super) struct SpecialTokens {
    pub bos: Option<u32>,
    pub eos: Option<u32>,
}

pub(super) fn special_tokens(architecture: &str) -> SpecialTokens {
    let (bos, eos) = match architecture {
        "LlamaForCausalLM"
        | "MistralForCausalLM"
        | "MinistralForCausalLM"
        | "MixtralForCausalLM"
        | "DeepseekV2ForCausalLM"
        | CHAMELEON => (Some(1), Some(2)),
        "DeepseekV3ForCausalLM" | KIMI_VL => (Some(0), Some(1)),
        "SeedOssForCausalLM" => (Some(0), Some(2)),
        QWEN_2_5_VL => (Some(151_643), Some(151_645)),
        _ => (None, None),
    };
    SpecialTokens { bos, eos }
}

pub(super) fn decoder(
    architecture: &str,
    fields: &Fields,
    prefix: &'static str,
) -> Result<DecoderConfig, LoadError> {
    fields.only("hidden_act", "silu")?;
    let family = match architecture {
        "LlamaForCausalLM" => Family { mlp_bias: true, ..dense(&LLAMA) },
        "Qwen2ForCausalLM" => Family { qkv_bias: Some(true), window: Window::Switched, ..dense(&QWEN) },
        QWEN_2_5_VL => Family {
            qkv_bias: Some(true),
            window: Window::Switched,
            sections: Some(RopeSections::Consecutive([16, 24, 24])),
            ..dense(&QWEN_2_5_VL_72B)
        },
        "Qwen3ForCausalLM" => {
            Family { qk_norm: QkNorm::Rms, head_dim: Some(128), window: Window::Switched, ..dense(&QWEN) }
        }
        "Qwen2MoeForCausalLM" => Family {
            qkv_bias: Some(fields.bool_or("qkv_bias", true)?),
            window: Window::SwitchedForAll,
            moe: qwen2_moe,
            ..dense(&QWEN2_MOE)
        },
        "Qwen3MoeForCausalLM" => Family {
            qk_norm: QkNorm::Rms,
            window: Window::SwitchedForAll,
            moe: qwen3_moe,
            ..dense(&QWEN3_MOE)
        },
        "MistralForCausalLM" => {
            Family { qkv_bias: Some(false), window: Window::Always(Some(4096)), ..dense(&MISTRAL) }
        }
        "MinistralForCausalLM" => {
            Family { qkv_bias: Some(false), window: Window::OfTypes(4096), ..dense(&MISTRAL) }
        }
        "MixtralForCausalLM" => {
            Family { qkv_bias: Some(false), window: Window::Always(None), moe: mixtral, ..dense(&MIXTRAL) }
        }
        "SeedOssForCausalLM" => Family {
            bias_default: true,
            separate_out_bias: true,
            head_dim: Some(128),
            mlp_bias: true,
            ..dense(&SEED_OSS)
        },
        CHAMELEON => Family { qk_norm: QkNorm::LayerPerHead, mlp_bias: true, ..dense(&CHAMELEON_7B) },
        "DeepseekV2ForCausalLM" => Family { latent: true, moe: deepseek_v2, ..dense(&DEEPSEEK_V2) },
        "DeepseekV3ForCausalLM" => {
            Family { latent: true, halves: true, moe: deepseek_v3, ..dense(&DEEPSEEK_V3) }
        }
        other => unreachable!("{other} is not in the list of architectures"),
    };
    let decoder = build(fields, &family, prefix)?;
    match architecture {
        CHAMELEON => chameleon(fields, decoder),
        _ => Ok(decoder),
    }
}

/// Where the norms of layers are, and the tokens that no answer has.
fn chameleon(fields: &Fields, decoder: DecoderConfig) -> Result<DecoderConfig, LoadError> {
    let norms = match fields.bool_or("swin_norm", false)? {
        true => NormPlace::After,
        false => NormPlace::Before,
    };
    let never_drawn = PictureVocabulary::read(fields, decoder.vocab_size)?.never_drawn();
    Ok(DecoderConfig { norms, never_drawn, ..decoder })
}

/// The switches of a family.
struct Family {
    defaults: &'static Defaults,
    /// Multi-head latent attention, and the keys of DeepSeek.
    latent: bool,
    /// `rope_interleave` may say that latent attention rotates halves, not neighbours.
    halves: bool,
    /// Fixed by the code; `None`: `attention_bias` says it.
    qkv_bias: Option<bool>,
    bias_default: bool,
    /// `attention_out_bias` says whether the output has a bias.
    separate_out_bias: bool,
    qk_norm: QkNorm,
    head_dim: Option<usize>,
    mlp_bias: bool,
    window: Window,
    /// Of tokens with three positions, where the file does not say it.
    sections: Option<RopeSections>,
    moe: fn(&Fields, usize) -> Result<Option<MoeConfig>, LoadError>,
}

#[derive(Clone, Copy, PartialEq)]
enum Window {
    /// The family has none.
    Never,
    /// `sliding_window`, when `use_sliding_window` is true, of the layers that `layer_types` says, or else from `max_window_layers` on.
    Switched,
    /// `sliding_window`, when `use_sliding_window` is true.
    SwitchedForAll,
    /// `sliding_window`, when it is not null; with the default of the class.
    Always(Option<usize>),
    /// The same, of the layers that `layer_types` says, or else of all.
    OfTypes(usize),
}

fn dense(defaults: &'static Defaults) -> Family {
    Family {
        defaults,
        latent: false,
        halves: false,
        qkv_bias: None,
        bias_default: false,
        separate_out_bias: false,
        qk_norm: QkNorm::None,
        head_dim: None,
        mlp_bias: false,
        window: Window::Never,
        sections: None,
        moe: |_, _| Ok(None),
    }
}

fn build(fields: &Fields, family: &Family, prefix: &'static str) -> Result<DecoderConfig, LoadError> {
    let default = family.defaults;
    let hidden_size = fields.usize_or("hidden_size", default.hidden_size, 1..=MAX_WIDTH)?;
    let num_layers = fields.usize_or("num_hidden_layers", default.num_layers, 1..=MAX_LAYERS)?;
    let max_position_embeddings =
        fields.usize_or("max_position_embeddings", default.max_positions, 1..=MAX_POSITIONS)?;
    let (attention, rope) = match family.latent {
        true => latent_attention(fields, family, max_position_embeddings)?,
        false => grouped_attention(fields, family, hidden_size, max_position_embeddings)?,
    };
    let max_position_embeddings = max_position_embeddings.max(rope.scaling.reach()).min(MAX_POSITIONS);
    let sliding_window =
        sliding_window(fields, family.window, num_layers)?.filter(|&width| width < max_position_embeddings);
    let mtp_default = if family.latent && default.vocab_size == DEEPSEEK_V3.vocab_size { 1 } else { 0 };
    Ok(DecoderConfig {
        vocab_size: fields.usize_or("vocab_size", default.vocab_size, 1..=MAX_VOCAB)?,
        hidden_size,
        num_layers,
        num_mtp_layers: match fields.opt_usize("num_nextn_predict_layers", 0..=MAX_LAYERS)? {
            Some(layers) => layers,
            None => fields.usize_or("num_mtp_layers", mtp_default, 0..=MAX_LAYERS)?,
        },
        max_position_embeddings: sliding_window.unwrap_or(max_position_embeddings),
        sliding_window,
        rms_norm_eps: fields.f64_in("rms_norm_eps", Some(default.rms_norm_eps), 1e-12..=1.0)? as f32,
        norms: NormPlace::Before,
        attention,
        rope,
        intermediate_size: fields.usize_or("intermediate_size", default.intermediate_size, 1..=MAX_WIDTH)?,
        mlp_bias: family.mlp_bias && fields.bool_or("mlp_bias", false)?,
        moe: (family.moe)(fields, num_layers)?,
        tied_head: fields.bool_or("tie_word_embeddings", false)?,
        never_drawn: Vec::new(),
        prefix,
        newer_prefix: None,
    })
}

/// The configuration class of the families that have this key where the file has not.
const MAX_WINDOW_LAYERS: usize = 28;

/// The window of some layer: a token sees itself and those before it, so many in all. One that hides tokens is not implemented, and a sequence
/// that is no longer has nothing to hide.
fn sliding_window(fields: &Fields, window: Window, num_layers: usize) -> Result<Option<usize>, LoadError> {
    let (on, default) = match window {
        Window::Never => return Ok(None),
        Window::Switched | Window::SwitchedForAll => {
            (fields.bool_or("use_sliding_window", false)?, Some(4096))
        }
        Window::Always(default) => (true, default),
        Window::OfTypes(default) => (true, Some(default)),
    };
    let any_layer = match window {
        Window::Switched => any_sliding_layer(fields, num_layers)?,
        Window::OfTypes(_) if fields.get("layer_types").is_some() => any_sliding_layer(fields, num_layers)?,
        _ => true,
    };
    if !on || !any_layer {
        return Ok(None);
    }
    match fields.has("sliding_window") {
        true => fields.opt_usize("sliding_window", 1..=usize::MAX),
        false => Ok(default),
    }
}

/// Whether a window would be of any layer, if there is one.
fn any_sliding_layer(fields: &Fields, num_layers: usize) -> Result<bool, LoadError> {
    let Some(types) = fields.opt_array("layer_types")? else {
        let first = fields.usize_or("max_window_layers", MAX_WINDOW_LAYERS, 0..=usize::MAX)?;
        return Ok(first < num_layers);
    };
    let mut any = false;
    for layer in types {
        match layer.as_str() {
            Some("full_attention") => {}
            Some("sliding_attention") => any = true,
            _ => return Err(fields.fail("layer_types", format!("{layer} is not supported"))),
        }
    }
    Ok(any)
}

fn grouped_attention(
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
    let out_bias = match (family.separate_out_bias, family.qkv_bias) {
        (true, _) => fields.bool_or("attention_out_bias", false)?,
        (false, None) => attention_bias,
        (false, Some(_)) => false,
    };
    let rule = RopeRule {
        default_theta: default.theta,
        dim: head_dim,
        layout: RopeLayout::Half,
        sections: family.sections,
        max_position_embeddings,
    };
    let scale = (head_dim as f64).powf(-0.5) as f32;
    let attention =
        GqaConfig { num_heads, num_kv_heads, head_dim, qkv_bias, out_bias, qk_norm: family.qk_norm, scale };
    Ok((AttentionConfig::Gqa(attention), rope::parse(fields, rule)?))
}

fn latent_attention(
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
        dim: rope_dim,
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

fn check_top_k(fields: &Fields, key: &str, top_k: usize, available: usize) -> Result<(), LoadError> {
    match top_k > available {
        true => Err(fields.fail(key, format!("{top_k} is more than the {available} experts to choose from"))),
        false => Ok(()),
    }
}

/// The number of experts, under the name that most files have or the other one that the configuration class takes for it, and that newer
/// versions of it write.
fn num_experts(fields: &Fields, [name, other]: [&str; 2], default: usize) -> Result<usize, LoadError> {
    let name = if fields.get(name).is_none() && fields.get(other).is_some() { other } else { name };
    fields.usize_or(name, default, 1..=MAX_EXPERTS)
}

/// Softmax over all experts, the best ones taken, no groups, no bias.
fn plain_router(top_k: usize, normalize: bool) -> RouterConfig {
    RouterConfig {
        scoring: Scoring::Softmax,
        top_k,
        num_groups: 1,
        top_groups: 1,
        group_score: GroupScore::Max,
        normalize,
        scale: 1.0,
    }
}

fn qwen3_moe(fields: &Fields, num_layers: usize) -> Result<Option<MoeConfig>, LoadError> {
    qwen_moe(fields, num_layers, QwenMoe { num_experts: 128, top_k: 8, intermediate_size: 768 })
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
        correction_bias: false,
        names: ExpertNames::Mlp,
        layers: (0..num_layers).map(|i| !dense.contains(&i) && (i + 1).is_multiple_of(step)).collect(),
    }))
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
        correction_bias: false,
        names: ExpertNames::BlockSparse,
        layers: vec![true; num_layers],
    }))
}

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
