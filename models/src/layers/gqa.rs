//! Attention with grouped queries over cached keys and values.
//!
//! ```text
//! normed ─▶ q [T, Hq, D] ─▶ (norm) ─▶ rotate ──────────────▶ attention over the cache ─▶ out
//!        ─▶ k [T, Hk, D] ─▶ (norm) ─▶ rotate ─▶ cache          ▲
//!        ─▶ v [T, Hk, D] ─────────────────────▶ cache ─────────┘
//! ```
//! With a window a token attends to the last keys only; those before stay in the cache, whose blocks layers without a window need.

use super::{Linear, Loader, Names, Step, WeightSize};
use crate::LoadError;
use crate::config::{GqaConfig, HEAD_NORM_EPS, QkNorm};
use crate::kv_cache::LayerCache;
use crate::lora::Target;
use crate::scratch::{HeadBuffers, Scratch};
use kernels::ops::{self, ReadPlan, Softmax};
use kernels::{Matrix, Tensor, WeightType};

pub struct Gqa {
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    norms: Option<HeadNorms>,
    /// `[Hq]`: of each head a logit that takes weight and has no value.
    sinks: Option<Tensor>,
    config: GqaConfig,
    /// Tokens that one sees, where not all before it.
    window: Option<usize>,
}

/// Of queries, and of keys.
struct HeadNorms {
    q: HeadNorm,
    k: HeadNorm,
}

struct HeadNorm {
    /// `[head_dim]` of one RMS norm for all heads, `[heads * head_dim]` of one of all heads together, `[heads, head_dim]` of layer norms.
    weight: Tensor,
    /// Of a layer norm; `None`: an RMS norm.
    bias: Option<Tensor>,
    eps: f32,
}

impl HeadNorm {
    /// `[T, heads, head_dim]` to a buffer of the same values, which has that shape afterwards.
    fn run(&self, x: &mut Tensor, [t, heads, head_dim]: [usize; 3], out: &mut Tensor) {
        let groups = if self.weight.shape() == [heads * head_dim] { 1 } else { heads };
        let shape = [t, groups, heads / groups * head_dim];
        x.reshape(&shape);
        out.reshape(&shape);
        match &self.bias {
            None => ops::rms_norm(x, &self.weight, self.eps, out),
            Some(bias) => ops::layer_norm_heads(x, &self.weight, bias, self.eps, out),
        }
        out.reshape(&[t, heads, head_dim]);
    }
}

impl HeadNorms {
    fn load(loader: &Loader, config: &GqaConfig, eps: f32) -> Result<Option<Self>, LoadError> {
        let GqaConfig { num_heads, num_kv_heads, head_dim, .. } = *config;
        let rms = |name: &str, width: usize| -> Result<HeadNorm, LoadError> {
            let weight = loader.vector(&format!("self_attn.{name}.weight"), width)?;
            Ok(HeadNorm { weight, bias: None, eps })
        };
        let layer = |name: &str, heads: usize| -> Result<HeadNorm, LoadError> {
            let rows = |what: &str| loader.rows(&format!("self_attn.{name}.{what}"), [heads, head_dim]);
            Ok(HeadNorm { weight: rows("weight")?, bias: Some(rows("bias")?), eps: HEAD_NORM_EPS })
        };
        Ok(match config.qk_norm {
            QkNorm::None => None,
            QkNorm::Rms => Some(Self { q: rms("q_norm", head_dim)?, k: rms("k_norm", head_dim)? }),
            QkNorm::RmsOfAll => Some(Self {
                q: rms("q_norm", num_heads * head_dim)?,
                k: rms("k_norm", num_kv_heads * head_dim)?,
            }),
            QkNorm::LayerPerHead => {
                Some(Self { q: layer("q_norm", num_heads)?, k: layer("k_norm", num_kv_heads)? })
            }
        })
    }

    fn size(config: &GqaConfig) -> WeightSize {
        let GqaConfig { num_heads, num_kv_heads, head_dim, .. } = *config;
        match config.qk_norm {
            QkNorm::None => WeightSize::default(),
            QkNorm::Rms => WeightSize::vector(head_dim).times(2),
            QkNorm::RmsOfAll => {
                WeightSize::vector(num_heads * head_dim) + WeightSize::vector(num_kv_heads * head_dim)
            }
            QkNorm::LayerPerHead => {
                WeightSize::vector(num_heads * head_dim).times(2)
                    + WeightSize::vector(num_kv_heads * head_dim).times(2)
            }
        }
    }
}

impl Gqa {
    pub fn load(
        loader: &Loader,
        config: &GqaConfig,
        hidden_size: usize,
        eps: f32,
    ) -> Result<Self, LoadError> {
        let GqaConfig { num_heads, num_kv_heads, head_dim, qkv_bias, out_bias, .. } = *config;
        let kv_width = num_kv_heads * head_dim;
        let norms = HeadNorms::load(loader, config, eps)?;
        Ok(Self {
            q: loader.linear("self_attn.q_proj", num_heads * head_dim, hidden_size, qkv_bias)?,
            k: loader.linear("self_attn.k_proj", kv_width, hidden_size, qkv_bias)?,
            v: loader.linear("self_attn.v_proj", kv_width, hidden_size, qkv_bias)?,
            out: loader.linear("self_attn.o_proj", hidden_size, num_heads * head_dim, out_bias)?,
            norms,
            sinks: match config.sinks {
                true => Some(loader.vector("self_attn.sinks", num_heads)?),
                false => None,
            },
            config: config.clone(),
            window: None,
        })
    }

    /// A token sees so many, itself and those before it.
    pub fn within(self, window: Option<usize>) -> Self {
        Self { window, ..self }
    }

    pub fn size(names: &Names, config: &GqaConfig, hidden_size: usize) -> WeightSize {
        let GqaConfig { num_heads, num_kv_heads, head_dim, qkv_bias, out_bias, .. } = *config;
        let kv_width = num_kv_heads * head_dim;
        names.linear("self_attn.q_proj", num_heads * head_dim, hidden_size, qkv_bias)
            + names.linear("self_attn.k_proj", kv_width, hidden_size, qkv_bias)
            + names.linear("self_attn.v_proj", kv_width, hidden_size, qkv_bias)
            + names.linear("self_attn.o_proj", hidden_size, num_heads * head_dim, out_bias)
            + HeadNorms::size(config)
            + if config.sinks { WeightSize::vector(num_heads) } else { WeightSize::default() }
    }

    /// What the first layer keeps its weights as.
    pub fn takes(&self) -> WeightType {
        self.q.stored_as()
    }

    /// `early` as with latent attention.
    pub fn plan_reads(&self, early: Option<&Matrix>, plan: &mut ReadPlan) {
        self.q.plan_reads(plan);
        Linear::plan_pair([&self.k, &self.v], plan);
        early.into_iter().for_each(|early| plan.early(early));
        self.out.plan_reads(plan);
    }

    /// Reads `normed`, writes `out`.
    pub fn run(&self, step: &Step, cache: &mut LayerCache, scratch: &mut Scratch) {
        let LayerCache::Gqa { keys, values } = cache else {
            unreachable!("the cache is of another attention")
        };
        let Scratch { normed, out, heads, attention, tokens, lora, .. } = scratch;
        let HeadBuffers::Gqa(b) = heads else { unreachable!("the buffers are of another attention") };
        let GqaConfig { num_heads, num_kv_heads, head_dim, scale, .. } = self.config;
        let (t, width, kv_width) = (step.num_tokens(), num_heads * head_dim, num_kv_heads * head_dim);
        b.q.reshape(&[t, width]);
        b.k.reshape(&[t, kv_width]);
        b.v.reshape(&[t, kv_width]);
        let mut x = tokens.hold_made(normed);
        self.q.run(&mut x, &mut b.q);
        Linear::run_pair([&self.k, &self.v], &mut x, [&mut b.k, &mut b.v]);
        if let Some((loras, room)) = step.adapters(lora) {
            for (target, out) in [(Target::Q, &mut b.q), (Target::K, &mut b.k), (Target::V, &mut b.v)] {
                loras.add_to((step.layer, target), normed, (out, 0), room);
            }
        }
        let (q_shape, k_shape) = ([t, num_heads, head_dim], [t, num_kv_heads, head_dim]);
        b.q.reshape(&q_shape);
        b.k.reshape(&k_shape);
        // Normed heads lie in buffers of their own; without norms the projections are used as they are.
        let (q, k) = match (&self.norms, &mut b.normed) {
            (Some(norms), Some((q, k))) => {
                norms.q.run(&mut b.q, q_shape, q);
                norms.k.run(&mut b.k, k_shape, k);
                (q, k)
            }
            _ => (&mut b.q, &mut b.k),
        };
        for heads in [&mut *q, &mut *k] {
            let positions = &step.input.positions;
            match &step.sections {
                None => ops::rope(heads, 0, step.rope, positions, step.layout),
                Some(sections) => ops::rope_sections(heads, step.rope, positions, sections),
            }
        }
        k.reshape(&[t, kv_width]);
        ops::store_kv(k, keys, &step.input.slots);
        ops::store_kv(&b.v, values, &step.input.slots);
        b.attended.reshape(&[t, num_heads, head_dim]);
        let readers = self.out.reader(step.changes(&[Target::Out]));
        let makers = [attention.packs_as(keys.as_rows().rows.dtype())];
        let mut made = tokens.make(&mut b.attended, readers, &makers);
        let softmax = Softmax { scale, window: self.window, sinks: self.sinks.as_ref() };
        made.gqa_attention(q, [&*keys, &*values], (&step.ragged, softmax), attention);
        self.out.run(&mut made.done(), out);
        b.attended.reshape(&[t, width]);
        if let Some((loras, room)) = step.adapters(lora) {
            loras.add_to((step.layer, Target::Out), &b.attended, (out, 0), room);
        }
    }
}
