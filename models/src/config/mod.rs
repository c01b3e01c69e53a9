//! What config.json says, checked and complete: one description of a decoder whatever its family, and where the vision part is.
//!
//! ```text
//! config.json ─▶ families (names, defaults and traps of each architecture) ─▶ DecoderConfig ─▶ the one decoder
//! ```

mod families;
mod generation;
pub mod json;
mod multimodal;
mod rope;

pub use generation::GenerationDefaults;
pub use rope::{RopeConfig, RopeScaling, Yarn};

use crate::chameleon::config::VqConfig;
use crate::chameleon::vocabulary::{PictureTokens, PictureVocabulary};
use crate::files::CONFIG_FILE;
use crate::parts::Quantization;
use crate::published::Published;
use crate::{LoadError, ModelFiles};
use json::Fields;
use kernels::DType;
use kernels::ops::RouterConfig;
use scheduler::TokenId;
use serde_json::{Map, Value};

/// A whole model as its files describe it, before any weight is read.
#[derive(Debug, Clone)]
pub struct ModelConfig {
    /// From `architectures`, such as `KimiVLForConditionalGeneration`.
    pub architecture: String,
    pub decoder: DecoderConfig,
    /// Present when the model sees pictures as rows of embedding.
    pub vision: Option<VisionPart>,
    /// Present when it sees them as tokens.
    pub codes: Option<PictureCodes>,
    /// The type that the checkpoint says it is stored in.
    pub dtype: DType,
    /// What it says of weights that are quantised in its files.
    pub published: Option<Published>,
    /// What the other weights are to be quantised to: what `quantize` leaves behind.
    pub written_for: Quantization,
    pub bos_token_id: Option<TokenId>,
    /// Of generation_config.json and config.json, each once.
    pub eos_token_ids: Vec<TokenId>,
    pub generation: GenerationDefaults,
}

/// The vision part of a configuration: read further by the code of its architecture.
#[derive(Debug, Clone)]
pub struct VisionPart {
    /// `vision_config` as it stands in the file.
    pub object: Map<String, Value>,
    /// What it describes.
    pub tower: TowerKind,
    /// The placeholder that a picture's rows replace.
    pub image_token_id: TokenId,
    /// The placeholder of a video, where the family has one: no prompt may hold it, as videos are not encoded.
    pub video_token_id: Option<TokenId>,
}

/// The kinds of vision towers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TowerKind {
    /// Of Kimi-VL.
    MoonVit,
    /// Of Qwen2.5-VL.
    Qwen25,
    /// Of Qwen3-VL.
    Qwen3,
}

/// How a picture becomes tokens of the vocabulary.
#[derive(Debug, Clone)]
pub struct PictureCodes {
    pub vq: VqConfig,
    pub tokens: PictureTokens,
}

/// The decoder, written once, and every switch in which the families differ.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub num_layers: usize,
    /// Layers stored after the last one that only speculate (multi-token prediction): skipped.
    pub num_mtp_layers: usize,
    /// Of the file, or what YaRN stretches the original length to if that is more.
    pub max_position_embeddings: usize,
    /// Where attention of some layers does not look back to the first token of the longest sequence.
    pub sliding: Option<SlidingWindow>,
    pub rms_norm_eps: f32,
    /// Of each layer.
    pub norms: NormPlace,
    pub attention: AttentionConfig,
    pub rope: RopeConfig,
    /// Width of a dense layer's MLP.
    pub intermediate_size: usize,
    pub mlp_bias: bool,
    /// The files have gate and up of a dense layer's MLP as one matrix, `gate_up_proj`.
    pub fused_gate_up: bool,
    pub moe: Option<MoeConfig>,
    /// The embedding table is the output matrix as well.
    pub tied_head: bool,
    /// Tokens whose logits are the smallest number, whatever the head says; sorted. For most models there is none.
    pub never_drawn: Vec<TokenId>,
    /// Before every tensor name, such as `language_model.`.
    pub prefix: &'static str,
    /// After it in all names but the head's: `model.`, or `model.language_model.`.
    pub body: &'static str,
    /// What newer versions of the published code have in place of `model.` there. Checkpoints keep the older names; adapters do not.
    pub newer_prefix: Option<&'static str>,
}

/// A token of some layers sees the last tokens only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlidingWindow {
    /// Tokens that one sees: itself and those before it.
    pub width: usize,
    /// For each layer whether it has the window.
    pub layers: Vec<bool>,
}

/// Where the norms of attention and MLP are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormPlace {
    /// `x + f(norm(x))`
    Before,
    /// `x + norm(f(x))`, as in Swin Transformer V2; in layers without experts.
    After,
    /// `x + norm(f(norm(x)))`, the norms of a sandwich; in layers without experts.
    Both,
}

#[derive(Debug, Clone, PartialEq)]
pub enum AttentionConfig {
    /// Grouped queries: multi-head and multi-query attention are its ends.
    Gqa(GqaConfig),
    /// A latent vector for all heads in place of keys and values.
    Mla(MlaConfig),
}

#[derive(Debug, Clone, PartialEq)]
pub struct GqaConfig {
    pub num_heads: usize,
    pub num_kv_heads: usize,
    pub head_dim: usize,
    pub qkv_bias: bool,
    pub out_bias: bool,
    pub qk_norm: QkNorm,
    pub scale: f32,
    /// Whether each head has a learned logit that takes weight and has no value.
    pub sinks: bool,
}

/// What the heads of q and k go through before the rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNorm {
    None,
    /// RMS norm with one weight `[head_dim]` for all heads.
    Rms,
    /// RMS norm of all heads together, with a weight `[heads * head_dim]`.
    RmsOfAll,
    /// Layer norm, where each head has its own weight and bias: `[heads, head_dim]`.
    LayerPerHead,
}

/// The published code has it in its layer norms of heads, whatever `rms_norm_eps` says.
pub const HEAD_NORM_EPS: f32 = 1e-5;

#[derive(Debug, Clone, PartialEq)]
pub struct MlaConfig {
    pub num_heads: usize,
    /// `None`: queries come from the hidden state in one step.
    pub q_lora_rank: Option<usize>,
    pub kv_lora_rank: usize,
    pub nope_dim: usize,
    pub rope_dim: usize,
    pub value_dim: usize,
    /// On the projections into q and kv latents and out of attention.
    pub bias: bool,
    pub scale: f32,
    /// Rows of prompts at this position and beyond are attended to in the expanded form; `None`: no row is. Not from the model but
    /// from the options.
    pub expand_from: Option<usize>,
}

impl MlaConfig {
    /// Values cached for a token in a layer: the normalised latent, then the rotated part shared by all heads.
    pub fn row(&self) -> usize {
        self.kv_lora_rank + self.rope_dim
    }

    pub fn query_dim(&self) -> usize {
        self.nope_dim + self.rope_dim
    }
}

/// The published code builds the norms of latents with its class default, whatever `rms_norm_eps` says.
pub const LATENT_NORM_EPS: f32 = 1e-6;

#[derive(Debug, Clone, PartialEq)]
pub struct MoeConfig {
    pub num_experts: usize,
    pub intermediate_size: usize,
    /// The expert that every token takes.
    pub shared: Option<SharedConfig>,
    pub router: RouterConfig,
    /// What is added to the scores for the choice of experts.
    pub correction_bias: Option<CorrectionBias>,
    /// Where the router and the experts have biases, and a function of their own between gate, up and down; `None`: silu(gate) · up.
    pub glu: Option<GluConfig>,
    pub names: ExpertNames,
    /// For each layer whether it has experts.
    pub layers: Vec<bool>,
}

/// (u + 1) · g · sigmoid(alpha · g), with g = min(gate, limit) and u = up within ±limit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GluConfig {
    pub alpha: f32,
    pub limit: f32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SharedConfig {
    pub intermediate_size: usize,
    /// What it makes of a token is multiplied with `sigmoid(shared_expert_gate · x)`. Such a family has one: its name is in the singular.
    pub is_gated: bool,
}

/// Where the bias of a router is, within the module of the experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CorrectionBias {
    /// `gate.e_score_correction_bias` `[E]`
    Gate,
    /// `e_score_correction_bias` `[E]`
    Module,
    /// `moe_statics.e_score_correction_bias` `[1, E]`
    Statics,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpertNames {
    /// `mlp.experts.N.{gate_proj, up_proj, down_proj}`
    Mlp,
    /// `block_sparse_moe.experts.N.{w1, w3, w2}`
    BlockSparse,
    /// `mlp.experts.{gate_up_proj, down_proj}`, each of all experts; rows of gate and of up take turns. The router is `mlp.router`.
    Fused,
}

impl MoeConfig {
    /// The module of the router and the experts, within a layer.
    pub fn module(&self) -> &'static str {
        match self.names {
            ExpertNames::Mlp | ExpertNames::Fused => "mlp",
            ExpertNames::BlockSparse => "block_sparse_moe",
        }
    }

    /// The router's module.
    pub fn router_module(&self) -> String {
        format!("{}.{}", self.module(), if self.names == ExpertNames::Fused { "router" } else { "gate" })
    }

    /// The module of the expert that every token takes.
    pub fn shared_module(&self) -> String {
        let is_gated = self.shared.is_some_and(|shared| shared.is_gated);
        format!("{}.{}", self.module(), if is_gated { "shared_expert" } else { "shared_experts" })
    }
}

impl DecoderConfig {
    pub fn is_moe(&self, layer: usize) -> bool {
        self.moe.as_ref().is_some_and(|moe| moe.layers[layer])
    }

    /// Tokens that one of a layer sees, where not all before it.
    pub fn window(&self, layer: usize) -> Option<usize> {
        self.sliding.as_ref().filter(|sliding| sliding.layers[layer]).map(|sliding| sliding.width)
    }

    /// Where the expanded form of latent attention begins, if there is one.
    pub fn expand_from(&self) -> Option<usize> {
        match &self.attention {
            AttentionConfig::Gqa(_) => None,
            AttentionConfig::Mla(a) => a.expand_from,
        }
    }
}

impl ModelConfig {
    pub fn read(files: &ModelFiles) -> Result<Self, LoadError> {
        let file = files.describe(CONFIG_FILE);
        let object = json::require_object(files, CONFIG_FILE)?;
        let mut config = Self::parse(&file, &object)?;
        if let ModelFiles::Gguf(files) = files {
            config.published = Some(Published::gguf(&files.gguf));
        }
        let vocab_size = config.decoder.vocab_size;
        if let Some(generation) = generation::read(files, vocab_size, config.bos_token_id)? {
            config.eos_token_ids = generation::first_of_each(generation.eos_token_ids, &config.eos_token_ids);
            config.bos_token_id = generation.bos_token_id;
            config.generation = generation.defaults;
        }
        Ok(config)
    }

    fn parse(file: &str, object: &Map<String, Value>) -> Result<Self, LoadError> {
        let top = Fields::new(file, "", object);
        let architecture = architecture(&top)?;
        let Some(parts) = multimodal::parse(&architecture, file, &top)? else {
            let decoder = families::decoder(&architecture, &top, "")?;
            let published = Published::read(file, &top)?;
            let config = Self::assemble(architecture, &top, &top, decoder, (None, published))?;
            return match config.architecture == families::CHAMELEON {
                true => config.with_codes(file, &top),
                false => Ok(config),
            };
        };
        let multimodal::Multimodal { text, decoder, vision } = parts;
        let published = match Published::read(file, &text)? {
            Some(published) => Some(published),
            None => Published::read(file, &top)?,
        };
        Self::assemble(architecture, &top, &text, decoder, (Some(vision), published))
    }

    fn assemble(
        architecture: String,
        top: &Fields,
        text: &Fields,
        decoder: DecoderConfig,
        (vision, published): (Option<VisionPart>, Option<Published>),
    ) -> Result<Self, LoadError> {
        let vocab_size = decoder.vocab_size;
        let token = |key| match text.has(key) {
            true => text.token_ids(key, vocab_size),
            false => top.token_ids(key, vocab_size),
        };
        let default = families::special_tokens(&architecture);
        let mut eos_token_ids = token("eos_token_id")?;
        if !text.has("eos_token_id") && !top.has("eos_token_id") {
            eos_token_ids.extend(default.eos);
        }
        let mut bos_token_id = token("bos_token_id")?.first().copied();
        if !text.has("bos_token_id") && !top.has("bos_token_id") {
            bos_token_id = default.bos;
        }
        Ok(Self {
            dtype: dtype(top, text, &architecture)?,
            published,
            written_for: written_for(top)?,
            architecture,
            vision,
            codes: None,
            bos_token_id: bos_token_id.filter(|&id| (id as usize) < vocab_size),
            eos_token_ids: eos_token_ids.into_iter().filter(|&id| (id as usize) < vocab_size).collect(),
            generation: GenerationDefaults::default(),
            decoder,
        })
    }
}

impl ModelConfig {
    /// Pictures of Chameleon, where config.json says how they are encoded; and what ends a turn ends an answer.
    fn with_codes(self, file: &str, top: &Fields) -> Result<Self, LoadError> {
        let vocabulary = PictureVocabulary::read(top, self.decoder.vocab_size)?;
        let codes = match top.opt_object("vq_config")? {
            None => None,
            Some(object) => {
                let vq = VqConfig::read(file, object)?;
                let tokens = PictureTokens::new(top, &vocabulary, vq.num_embeddings)?;
                Some(PictureCodes { vq, tokens })
            }
        };
        let mut eos_token_ids = self.eos_token_ids;
        eos_token_ids.extend(vocabulary.separator.filter(|id| !eos_token_ids.contains(id)));
        Ok(Self { codes, eos_token_ids, ..self })
    }
}

/// A key of our own beside those of the published classes, which pass over it.
pub(crate) const OWN_KEY: &str = "perilune";

fn written_for(top: &Fields) -> Result<Quantization, LoadError> {
    let Some(object) = top.opt_object(OWN_KEY)? else { return Ok(Quantization::None) };
    let path = top.nested_path(OWN_KEY);
    let own = top.nested(&path, object);
    match own.opt_str("quantization")? {
        None => Ok(Quantization::None),
        Some("int8") => Ok(Quantization::Int8),
        Some("int4") => Ok(Quantization::Int4),
        Some(other) => {
            Err(own.fail("quantization", format!("{other:?} is not known, only int8 and int4 are")))
        }
    }
}

fn architecture(top: &Fields) -> Result<String, LoadError> {
    let key = "architectures";
    let list = top.opt_array(key)?.ok_or_else(|| top.fail(key, "is missing"))?;
    let names: Vec<&str> = list.iter().filter_map(Value::as_str).collect();
    let supported: Vec<&str> = families::names().collect();
    match names.iter().find(|name| supported.contains(name)) {
        Some(name) => Ok(name.to_string()),
        None => {
            Err(top.fail(key, format!("{names:?} is not supported, these are: {}", supported.join(", "))))
        }
    }
}

/// `dtype` is the new name of `torch_dtype`; neither means f32, as in the published classes, but for gpt-oss, whose files are bf16 and do not say so.
fn dtype(top: &Fields, text: &Fields, architecture: &str) -> Result<DType, LoadError> {
    for (fields, key) in
        [top, text].into_iter().flat_map(|fields| ["dtype", "torch_dtype"].map(|k| (fields, k)))
    {
        match fields.opt_str(key)? {
            None => continue,
            Some("bfloat16" | "torch.bfloat16") => return Ok(DType::BF16),
            Some("float16" | "torch.float16") => return Ok(DType::F16),
            Some("float32" | "torch.float32") => return Ok(DType::F32),
            Some(other) => {
                return Err(fields.fail(
                    key,
                    format!("{other:?} is not supported, only bfloat16, float16 and float32 are"),
                ));
            }
        }
    }
    Ok(if architecture == families::GPT_OSS { DType::BF16 } else { DType::F32 })
}

#[cfg(test)]
mod tests;
