//! Attention with grouped queries over cached keys and values.
//!
//! ```text
//! normed ─▶ q [T, Hq, D] ─▶ (norm) ─▶ rotate ──────────────▶ attention over the cache ─▶ out
//!        ─▶ k [T, Hk, D] ─▶ (norm) ─▶ rotate ─▶ cache          ▲
//!        ─▶ v [T, Hk, D] ─────────────────────▶ cache ─────────┘
//! ```

use super::{Linear, Loader, Names, Step, WeightSize};
use crate::LoadError;
use crate::config::GqaConfig;
use crate::kv_cache::LayerCache;
use crate::lora::Target;
use crate::scratch::{HeadBuffers, Scratch};
use kernels::ops::{self, ReadPlan};
use kernels::{Matrix, Tensor};

pub struct Gqa {
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    norms: Option<HeadNorms>,
    config: GqaConfig,
}

struct HeadNorms {
    q: Tensor,
    k: Tensor,
    eps: f32,
}

impl Gqa {
    pub fn load(
        loader: &Loader,
        config: &GqaConfig,
        hidden_size: usize,
        eps: f32,
    ) -> Result<Self, LoadError> {
        let GqaConfig { num_heads, num_kv_heads, head_dim, qkv_bias, out_bias, qk_norm, .. } = *config;
        let kv_width = num_kv_heads * head_dim;
        let norms = match qk_norm {
            false => None,
            true => Some(HeadNorms {
                q: loader.vector("self_attn.q_norm.weight", head_dim)?,
                k: loader.vector("self_attn.k_norm.weight", head_dim)?,
                eps,
            }),
        };
        Ok(Self {
            q: loader.linear("self_attn.q_proj", num_heads * head_dim, hidden_size, qkv_bias)?,
            k: loader.linear("self_attn.k_proj", kv_width, hidden_size, qkv_bias)?,
            v: loader.linear("self_attn.v_proj", kv_width, hidden_size, qkv_bias)?,
            out: loader.linear("self_attn.o_proj", hidden_size, num_heads * head_dim, out_bias)?,
            norms,
            config: config.clone(),
        })
    }

    pub fn size(names: &Names, config: &GqaConfig, hidden_size: usize) -> WeightSize {
        let GqaConfig { num_heads, num_kv_heads, head_dim, qkv_bias, out_bias, qk_norm, .. } = *config;
        let kv_width = num_kv_heads * head_dim;
        let norms = if qk_norm { WeightSize::vector(head_dim).times(2) } else { WeightSize::default() };
        names.linear("self_attn.q_proj", num_heads * head_dim, hidden_size, qkv_bias)
            + names.linear("self_attn.k_proj", kv_width, hidden_size, qkv_bias)
            + names.linear("self_attn.v_proj", kv_width, hidden_size, qkv_bias)
            + names.linear("self_attn.o_proj", hidden_size, num_heads * head_dim, out_bias)
            + norms
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
        let mut x = tokens.hold(normed);
        self.q.run(&mut x, &mut b.q);
        Linear::run_pair([&self.k, &self.v], &mut x, [&mut b.k, &mut b.v]);
        if let Some((loras, room)) = step.adapters(lora) {
            for (target, out) in [(Target::Q, &mut b.q), (Target::K, &mut b.k), (Target::V, &mut b.v)] {
                loras.add_to((step.layer, target), normed, (out, 0), room);
            }
        }
        b.q.reshape(&[t, num_heads, head_dim]);
        b.k.reshape(&[t, num_kv_heads, head_dim]);
        // Normed heads lie in buffers of their own; without norms the projections are used as they are.
        let (q, k) = match (&self.norms, &mut b.normed) {
            (Some(norms), Some((q, k))) => {
                q.reshape(&[t, num_heads, head_dim]);
                k.reshape(&[t, num_kv_heads, head_dim]);
                ops::rms_norm(&b.q, &norms.q, norms.eps, q);
                ops::rms_norm(&b.k, &norms.k, norms.eps, k);
                (q, k)
            }
            _ => (&mut b.q, &mut b.k),
        };
        ops::rope(q, 0, step.rope, &step.input.positions, step.layout);
        ops::rope(k, 0, step.rope, &step.input.positions, step.layout);
        k.reshape(&[t, kv_width]);
        ops::store_kv(k, keys, &step.input.slots);
        ops::store_kv(&b.v, values, &step.input.slots);
        b.attended.reshape(&[t, num_heads, head_dim]);
        ops::gqa_attention(q, &*keys, &*values, &step.ragged, scale, attention, &mut b.attended);
        b.attended.reshape(&[t, width]);
        self.out.run(&mut tokens.hold(&b.attended), out);
        if let Some((loras, room)) = step.adapters(lora) {
            loras.add_to((step.layer, Target::Out), &b.attended, (out, 0), room);
        }
    }
}
