//! Attention over paged keys and values, and over packed segments.

use crate::{Device, Tensor};

/// Where the tokens of a step and their keys are. Item `i` has tokens `cu_seqlens[i] .. cu_seqlens[i + 1]` at positions from
/// `context_lens[i]`; position `p` is slot `block_tables[cu_blocks[i] + p / B] * B + p % B`. Keys of this step are stored already.
#[derive(Debug, Clone, Copy)]
pub struct Ragged<'a> {
    pub cu_seqlens: &'a [u32],
    pub context_lens: &'a [u32],
    pub block_tables: &'a [u32],
    pub cu_blocks: &'a [u32],
    pub block_size: usize,
}

impl Ragged<'_> {
    pub fn num_items(&self) -> usize {
        self.context_lens.len()
    }

    pub fn slot(&self, item: usize, position: usize) -> usize {
        let block = self.block_tables[self.cu_blocks[item] as usize + position / self.block_size];
        block as usize * self.block_size + position % self.block_size
    }
}

/// Buffers of the attention ops, for the largest step.
#[derive(Debug)]
pub struct AttentionScratch {
    scores: Tensor,
}

impl AttentionScratch {
    /// For up to `max_tokens` tokens a step, `heads` query heads of `value_dim` values, and contexts up to `max_len`.
    pub fn new(
        device: &Device,
        _max_tokens: usize,
        _heads: usize,
        _value_dim: usize,
        max_len: usize,
    ) -> Self {
        Self { scores: Tensor::zeros(device, crate::DType::F32, &[max_len]) }
    }

    pub fn bytes(
        _device: &Device,
        _max_tokens: usize,
        _heads: usize,
        _value_dim: usize,
        max_len: usize,
    ) -> u64 {
        (max_len * 4) as u64
    }
}

fn softmax(scores: &mut [f32]) {
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for s in scores.iter_mut() {
        *s = (*s - max).exp();
        sum += *s;
    }
    for s in scores.iter_mut() {
        *s /= sum;
    }
}

/// Causal attention with grouped queries. `q` `[T, Hq, D]` f32, `k_cache` `[S, Hkv, D]`, `v_cache` `[S, Hkv, Dv]`, `out` `[T, Hq, Dv]`.
pub fn gqa_attention(
    q: &Tensor,
    k_cache: &Tensor,
    v_cache: &Tensor,
    ragged: &Ragged,
    scale: f32,
    scratch: &mut AttentionScratch,
    out: &mut Tensor,
) {
    let [_, hq, d] = *q.shape() else { panic!("gqa_attention: q") };
    let [_, hkv, _] = *k_cache.shape() else { panic!("gqa_attention: k_cache") };
    let [_, _, dv] = *v_cache.shape() else { panic!("gqa_attention: v_cache") };
    paged(
        q,
        [hq, hkv, d, dv],
        &|i| k_cache.get(i),
        &|i| v_cache.get(i),
        [hkv * d, hkv * dv],
        ragged,
        scale,
        scratch,
        out,
    );
}

/// Causal attention over one latent for all heads (MLA, absorbed). `q` `[T, H, R + P]` f32, `cache` `[S, R + P]`; values are the first
/// `value_dim` = R of each cached row; `out` `[T, H, R]`.
pub fn mla_attention(
    q: &Tensor,
    cache: &Tensor,
    value_dim: usize,
    ragged: &Ragged,
    scale: f32,
    scratch: &mut AttentionScratch,
    out: &mut Tensor,
) {
    let [_, h, d] = *q.shape() else { panic!("mla_attention: q") };
    paged(q, [h, 1, d, value_dim], &|i| cache.get(i), &|i| cache.get(i), [d, d], ragged, scale, scratch, out);
}

#[expect(clippy::too_many_arguments)]
fn paged(
    q: &Tensor,
    [hq, hkv, d, dv]: [usize; 4],
    key: &dyn Fn(usize) -> f32,
    value: &dyn Fn(usize) -> f32,
    [k_row, v_row]: [usize; 2],
    ragged: &Ragged,
    scale: f32,
    scratch: &mut AttentionScratch,
    out: &mut Tensor,
) {
    let q = q.as_f32();
    let out = out.as_f32_mut();
    for item in 0..ragged.num_items() {
        let (from, to) = (ragged.cu_seqlens[item] as usize, ragged.cu_seqlens[item + 1] as usize);
        for t in from..to {
            let len = ragged.context_lens[item] as usize + t - from + 1;
            for head in 0..hq {
                let group = head / (hq / hkv);
                let scores = &mut scratch.scores.as_f32_mut()[..len];
                for (p, score) in scores.iter_mut().enumerate() {
                    let at = ragged.slot(item, p) * k_row + group * d;
                    let row = &q[(t * hq + head) * d..][..d];
                    *score = scale * row.iter().enumerate().fold(0.0, |sum, (i, x)| sum + x * key(at + i));
                }
                softmax(scores);
                let out = &mut out[(t * hq + head) * dv..][..dv];
                out.fill(0.0);
                for (p, weight) in scores.iter().enumerate() {
                    let at = ragged.slot(item, p) * v_row + group * dv;
                    for (i, out) in out.iter_mut().enumerate() {
                        *out += weight * value(at + i);
                    }
                }
            }
        }
    }
}

/// Attention in both directions inside each segment. `qkv` `[T, 3, H, D]` f32, `cu_seqlens` the segments' borders, `out` `[T, H, D]`.
pub fn packed_attention(
    qkv: &Tensor,
    cu_seqlens: &[u32],
    scale: f32,
    scratch: &mut AttentionScratch,
    out: &mut Tensor,
) {
    let [_, 3, h, d] = *qkv.shape() else { panic!("packed_attention: qkv") };
    let x = qkv.as_f32();
    let out = out.as_f32_mut();
    let row = |t: usize, part: usize, head: usize| &x[((t * 3 + part) * h + head) * d..][..d];
    for segment in cu_seqlens.windows(2) {
        let (from, to) = (segment[0] as usize, segment[1] as usize);
        for t in from..to {
            for head in 0..h {
                let scores = &mut scratch.scores.as_f32_mut()[..to - from];
                for (p, score) in scores.iter_mut().enumerate() {
                    *score = scale
                        * row(t, 0, head).iter().zip(row(from + p, 1, head)).fold(0.0, |s, (a, b)| s + a * b);
                }
                softmax(scores);
                let out = &mut out[(t * h + head) * d..][..d];
                out.fill(0.0);
                for (p, weight) in scores.iter().enumerate() {
                    for (out, v) in out.iter_mut().zip(row(from + p, 2, head)) {
                        *out += weight * v;
                    }
                }
            }
        }
    }
}
