//! Latent attention in its expanded form, causal, over a paged cache.
//!
//! expanded_attention: q [T, H, N + P] f32, rotated · cache [S, R + P] f32 | bf16 | f16 | int8 · key_up [H, N, R], value_up [H, V, R] ·
//!                     out [T, H, V] f32
//! key[p, h] = [key_up[h] · latent[p] | rotated[p]], value[p, h] = value_up[h] · latent[p]
//! out[t, h] = Σ_p softmax_p(scale · q[t, h] · key[p, h]) value[p, h]
//!
//! Only rows of items that `ragged` has selected are written. It computes what `mla_attention` computes between two `heads_linear`, with other
//! roundings: 2·(N + P + V) FLOP per row, head and key instead of 2·(2·R + P), and 2·R·(N + V) per key and head of each item.
//! On the processor only.

use super::{KvRows, Ragged};
use crate::cpu::attention_expanded::{self, Expansion};
use crate::{DType, Device, MatrixBatch, Tensor};

/// Sizes that a scratch serves.
#[derive(Clone, Copy, Debug)]
pub struct ExpandedSizes {
    pub heads: usize,
    /// R, of the latent.
    pub rank: usize,
    /// N, of the part of a key that comes from the latent.
    pub nope: usize,
    /// P, of the part that all heads share.
    pub rotated: usize,
    /// V
    pub value_dim: usize,
    /// Most tokens of an item.
    pub max_tokens: usize,
}

/// Keys and values of 512 positions, tiles of each thread, and sums of all rows of an item.
#[derive(Debug)]
pub struct ExpandedScratch {
    buffer: Tensor,
    sizes: ExpandedSizes,
}

impl ExpandedScratch {
    pub fn new(device: &Device, sizes: ExpandedSizes) -> Self {
        let len = attention_expanded::scratch_len(&sizes, device.num_threads());
        Self { buffer: Tensor::zeros(device, DType::F32, &[len]), sizes }
    }

    /// What `new` will allocate.
    pub fn bytes(device: &Device, sizes: ExpandedSizes) -> u64 {
        Tensor::bytes_of(DType::F32, &[attention_expanded::scratch_len(&sizes, device.num_threads())])
    }
}

/// The cached latents, and how keys and values come of them.
#[derive(Clone, Copy, Debug)]
pub struct Latents<'a> {
    pub cache: KvRows<'a>,
    pub key_up: &'a MatrixBatch,
    pub value_up: &'a MatrixBatch,
}

pub fn expanded_attention(
    q: &Tensor,
    latents: Latents,
    ragged: &Ragged,
    scale: f32,
    scratch: &mut ExpandedScratch,
    out: &mut Tensor,
) {
    let ExpandedSizes { heads, rank, nope, rotated, value_dim, max_tokens } = scratch.sizes;
    let Latents { cache, key_up, value_up } = latents;
    let t = q.rows();
    assert_eq!(q.shape(), [t, heads, nope + rotated], "expanded_attention: q");
    assert_eq!(out.shape(), [t, heads, value_dim], "expanded_attention: out");
    assert_eq!(cache.rows.row_len(), rank + rotated, "expanded_attention: width of the cache");
    assert_eq!([key_up.count(), key_up.n(), key_up.k()], [heads, nope, rank], "expanded_attention: key_up");
    assert_eq!(
        [value_up.count(), value_up.n(), value_up.k()],
        [heads, value_dim, rank],
        "expanded_attention: value_up"
    );
    cache.check("expanded_attention", 2);
    ragged.check(t, cache.rows.rows());
    let Device::Cpu(cpu) = &out.device().clone() else { panic!("expanded_attention: on a GPU") };
    let expansion = Expansion { q, cache, key_up, value_up, ragged, scale };
    for item in (0..ragged.num_items()).filter(|&item| ragged.is_selected(item)) {
        let num_tokens = ragged.tokens(item).len();
        assert!(num_tokens <= max_tokens, "expanded_attention: {num_tokens} tokens exceed the scratch");
        let sizes = scratch.sizes;
        attention_expanded::item(cpu, &expansion, item, &sizes, scratch.buffer.as_f32_mut(), out);
    }
}
