//! The buffers of a step, by name, allocated once for the largest step. An op reads some and writes others; nothing is allocated
//! while serving.

use crate::config::{AttentionConfig, DecoderConfig, GqaConfig, MlaConfig, MoeConfig, QkNorm, SharedConfig};
use crate::lora::LoraBuffers;
use kernels::ops::{AttentionScratch, AttentionSizes, ExpandedScratch, ExpandedSizes, MoeScratch, TokenRoom};
use kernels::{DType, Device, Tensor};

/// The largest step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepLimits {
    pub num_tokens: usize,
    pub context_len: usize,
    /// What keys and values are kept in where the device is a GPU, which has no other floats.
    pub cache: DType,
}

/// Logits are made for so many rows at a time that they take about this much.
const LOGITS_BYTES: usize = 32 << 20;

pub struct Scratch {
    /// The stream that layers add to.
    pub residual: Tensor,
    /// What a layer reads: the residual, normalised.
    pub normed: Tensor,
    /// What a layer made.
    pub out: Tensor,
    pub heads: HeadBuffers,
    pub attention: AttentionScratch,
    pub gate_up: Tensor,
    pub activated: Tensor,
    /// What the expert that every token takes made.
    pub shared_out: Tensor,
    pub moe: Option<MoeBuffers>,
    /// Where there is room for adapters.
    pub lora: Option<LoraBuffers>,
    /// Of a linear layer that runs, rounded.
    pub tokens: TokenRoom,
    /// Rows that go through the head, some at a time: those after which something is sampled, and those of prompts whose
    /// log-probabilities are wanted.
    pub sampled: Tensor,
    pub logits: Tensor,
    /// Rows of these two.
    pub logit_rows: usize,
}

pub enum HeadBuffers {
    Gqa(Box<GqaBuffers>),
    Mla(Box<MlaBuffers>),
}

pub struct GqaBuffers {
    pub q: Tensor,
    pub k: Tensor,
    pub v: Tensor,
    /// Queries and keys after their norms, in models that have them.
    pub normed: Option<(Tensor, Tensor)>,
    pub attended: Tensor,
}

pub struct MlaBuffers {
    /// Before and after the norm, in models whose queries come in two steps.
    pub q_latents: Option<(Tensor, Tensor)>,
    pub q: Tensor,
    pub absorbed: Tensor,
    pub kv: Tensor,
    /// Latents before their norm, on the processor.
    pub latent: Tensor,
    pub attended: Tensor,
    pub values: Tensor,
    /// Where there is an expanded form.
    pub expanded: Option<ExpandedScratch>,
}

pub struct MoeBuffers {
    pub logits: Tensor,
    pub ids: Tensor,
    pub weights: Tensor,
    /// Of the expert that every token takes, before the sigmoid, in models that have them.
    pub shared_gates: Option<Tensor>,
    pub experts: MoeScratch,
}

/// Rows of logits computed at a time: every row of a step may want its own.
pub fn logit_rows(config: &DecoderConfig, num_tokens: usize) -> usize {
    (LOGITS_BYTES / (4 * config.vocab_size)).clamp(1, num_tokens)
}

/// Values of a token in the two buffers of an MLP.
fn mlp_widths(config: &DecoderConfig) -> (usize, usize) {
    let has_dense = (0..config.num_layers).any(|layer| !config.is_moe(layer));
    let dense = if has_dense { config.intermediate_size } else { 0 };
    let shared = shared_config(config).map_or(0, |shared| shared.intermediate_size);
    // At least one, so that no buffer is empty.
    let width = dense.max(shared).max(1);
    (2 * width, width)
}

fn attention_sizes(config: &DecoderConfig, limits: &StepLimits) -> AttentionSizes {
    let (heads, kv_heads, key_dim, value_dim) = match &config.attention {
        AttentionConfig::Gqa(a) => (a.num_heads, a.num_kv_heads, a.head_dim, a.head_dim),
        AttentionConfig::Mla(a) => (a.num_heads, 1, a.row(), a.kv_lora_rank),
    };
    let StepLimits { num_tokens: max_tokens, context_len: max_context, .. } = *limits;
    AttentionSizes { heads, kv_heads, key_dim, value_dim, max_context, max_tokens }
}

fn attention_scratch(device: &Device, config: &DecoderConfig, limits: &StepLimits) -> AttentionScratch {
    let scratch = AttentionScratch::new(device, attention_sizes(config, limits));
    if config.sliding.is_some() { scratch.with_window(device) } else { scratch }
}

/// Where there is an expanded form.
fn expanded_sizes(config: &DecoderConfig, limits: &StepLimits) -> Option<ExpandedSizes> {
    match &config.attention {
        AttentionConfig::Mla(a) if a.expand_from.is_some() => Some(ExpandedSizes {
            heads: a.num_heads,
            rank: a.kv_lora_rank,
            nope: a.nope_dim,
            rotated: a.rope_dim,
            value_dim: a.value_dim,
            max_tokens: limits.num_tokens,
            max_context: limits.context_len,
            cache: limits.cache,
        }),
        _ => None,
    }
}

/// The largest step, as wide as the widest input of a linear layer.
fn token_sizes(config: &DecoderConfig, limits: &StepLimits) -> [[usize; 2]; 1] {
    let attention = match &config.attention {
        AttentionConfig::Gqa(a) => a.num_heads * a.head_dim,
        AttentionConfig::Mla(a) => (a.num_heads * a.value_dim).max(a.q_lora_rank.unwrap_or(0)),
    };
    let (_, activated) = mlp_widths(config);
    [[limits.num_tokens, config.hidden_size.max(attention).max(activated)]]
}

fn shared_width(config: &DecoderConfig) -> usize {
    if shared_config(config).is_some() { config.hidden_size } else { 1 }
}

fn shared_config(config: &DecoderConfig) -> Option<SharedConfig> {
    config.moe.as_ref().and_then(|moe| moe.shared)
}

impl Scratch {
    /// At most: all that is not weights or KV cache, with the arrays of a step.
    pub const NUM_TENSORS: u64 = 50;

    pub fn new(device: &Device, config: &DecoderConfig, limits: &StepLimits) -> Self {
        let t = limits.num_tokens;
        let buffer = |width: usize| Tensor::zeros(device, DType::F32, &[t, width]);
        let (gate_up, activated) = mlp_widths(config);
        let rows = logit_rows(config, limits.num_tokens);
        Self {
            residual: buffer(config.hidden_size),
            normed: buffer(config.hidden_size),
            out: buffer(config.hidden_size),
            heads: match &config.attention {
                AttentionConfig::Gqa(a) => HeadBuffers::Gqa(Box::new(GqaBuffers::new(a, &buffer))),
                AttentionConfig::Mla(a) => {
                    let expanded =
                        expanded_sizes(config, limits).map(|sizes| ExpandedScratch::new(device, sizes));
                    HeadBuffers::Mla(Box::new(MlaBuffers { expanded, ..MlaBuffers::new(a, &buffer) }))
                }
            },
            attention: attention_scratch(device, config, limits),
            gate_up: buffer(gate_up),
            activated: buffer(activated),
            shared_out: buffer(shared_width(config)),
            moe: config.moe.as_ref().map(|moe| MoeBuffers::new(device, moe, config.hidden_size, t)),
            lora: None,
            tokens: TokenRoom::new(device, &token_sizes(config, limits)),
            sampled: Tensor::zeros(device, DType::F32, &[rows, config.hidden_size]),
            logits: Tensor::zeros(device, DType::F32, &[rows, config.vocab_size]),
            logit_rows: rows,
        }
    }

    /// Of all buffers but the logits.
    pub fn activation_bytes(device: &Device, config: &DecoderConfig, limits: &StepLimits) -> u64 {
        let heads: usize = match &config.attention {
            AttentionConfig::Gqa(a) => GqaBuffers::widths(a).iter().sum(),
            AttentionConfig::Mla(a) => MlaBuffers::widths(a).iter().sum(),
        };
        let expanded =
            expanded_sizes(config, limits).map_or(0, |sizes| ExpandedScratch::bytes(device, sizes));
        let (gate_up, activated) = mlp_widths(config);
        let width = 3 * config.hidden_size + heads + gate_up + activated + shared_width(config);
        let moe =
            config.moe.as_ref().map(|moe| MoeBuffers::bytes(moe, config.hidden_size, limits.num_tokens));
        let t = limits.num_tokens;
        let sizes = attention_sizes(config, limits);
        let of_window = config.sliding.as_ref().map_or(0, |_| AttentionScratch::window_bytes(device, sizes));
        let attention = AttentionScratch::bytes(device, sizes) + of_window;
        let tokens = TokenRoom::bytes(device, &token_sizes(config, limits));
        4 * (t * width) as u64 + attention + expanded + moe.unwrap_or(0) + tokens
    }

    pub fn logits_bytes(config: &DecoderConfig, limits: &StepLimits) -> u64 {
        4 * (logit_rows(config, limits.num_tokens) * (config.hidden_size + config.vocab_size)) as u64
    }

    /// Makes the buffers that every layer uses as long as the step.
    pub fn set_tokens(&mut self, num_tokens: usize) {
        for buffer in [&mut self.residual, &mut self.normed, &mut self.out, &mut self.shared_out] {
            buffer.set_rows(num_tokens);
        }
    }
}

impl GqaBuffers {
    /// Of q, k, v, what was attended to, and q and k after their norms.
    fn widths(config: &GqaConfig) -> [usize; 6] {
        let (q, kv) = (config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim);
        let (q_normed, k_normed) = if config.qk_norm == QkNorm::None { (0, 0) } else { (q, kv) };
        [q, kv, kv, q, q_normed, k_normed]
    }

    fn new(config: &GqaConfig, buffer: &dyn Fn(usize) -> Tensor) -> Self {
        let [q, k, v, attended, q_normed, k_normed] = Self::widths(config);
        let normed = (config.qk_norm != QkNorm::None).then(|| (buffer(q_normed), buffer(k_normed)));
        Self { q: buffer(q), k: buffer(k), v: buffer(v), normed, attended: buffer(attended) }
    }
}

impl MlaBuffers {
    /// In the order of the fields; the query's latent counts twice.
    fn widths(config: &MlaConfig) -> [usize; 8] {
        let MlaConfig { num_heads, kv_lora_rank: rank, value_dim, .. } = *config;
        let q_latent = config.q_lora_rank.unwrap_or(0);
        let (q, absorbed) = (num_heads * config.query_dim(), num_heads * config.row());
        [q_latent, q_latent, q, absorbed, config.row(), rank, num_heads * rank, num_heads * value_dim]
    }

    fn new(config: &MlaConfig, buffer: &dyn Fn(usize) -> Tensor) -> Self {
        let [q_latent, q_latent_normed, q, absorbed, kv, latent, attended, values] = Self::widths(config);
        let two_step = config.q_lora_rank.is_some();
        Self {
            q_latents: two_step.then(|| (buffer(q_latent), buffer(q_latent_normed))),
            q: buffer(q),
            absorbed: buffer(absorbed),
            kv: buffer(kv),
            latent: buffer(latent),
            attended: buffer(attended),
            values: buffer(values),
            expanded: None,
        }
    }
}

fn has_gates(config: &MoeConfig) -> bool {
    config.shared.is_some_and(|shared| shared.is_gated)
}

impl MoeBuffers {
    fn new(device: &Device, config: &MoeConfig, hidden_size: usize, t: usize) -> Self {
        let (e, i, k) = (config.num_experts, config.intermediate_size, config.router.top_k);
        Self {
            logits: Tensor::zeros(device, DType::F32, &[t, e]),
            ids: Tensor::zeros(device, DType::I32, &[t, k]),
            weights: Tensor::zeros(device, DType::F32, &[t, k]),
            shared_gates: has_gates(config).then(|| Tensor::zeros(device, DType::F32, &[t, 1])),
            experts: MoeScratch::new(device, t, [e, hidden_size, i], k),
        }
    }

    fn bytes(config: &MoeConfig, hidden_size: usize, t: usize) -> u64 {
        let (e, i, k) = (config.num_experts, config.intermediate_size, config.router.top_k);
        let gates = usize::from(has_gates(config));
        4 * (t * (e + 2 * k + gates)) as u64 + MoeScratch::bytes(t, [e, hidden_size, i], k)
    }
}
