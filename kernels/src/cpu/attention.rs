//! Attention, one row and head after the other.

use super::SharedMut;
use super::rows::read_row;
use crate::Tensor;
use crate::device::Cpu;
use crate::ops::{AttentionScratch, AttentionSizes, Ragged};

pub(crate) fn scratch_len(sizes: &AttentionSizes, num_threads: usize) -> usize {
    num_threads * (sizes.key_dim + sizes.value_dim)
}

pub(crate) fn gqa(
    cpu: &Cpu,
    q: &Tensor,
    cache: [&Tensor; 2],
    ragged: &Ragged,
    scale: f32,
    scratch: &mut AttentionScratch,
    out: &mut Tensor,
) {
    let AttentionSizes { heads, key_dim, value_dim, .. } = scratch.sizes;
    let kv_heads = cache[0].shape()[1];
    let buffer = SharedMut::new(scratch.buffer.as_f32_mut());
    let q = q.as_f32();
    let total = out.rows() * heads;
    let out = SharedMut::new(out.as_f32_mut());
    cpu.pool.run(total, &|row, worker| {
        let (token, kv_head) = (row / heads, row % heads / (heads / kv_heads));
        let item = ragged.cu_seqlens.partition_point(|&start| start as usize <= token) - 1;
        let len = ragged.context_lens[item] as usize + token - ragged.tokens(item).start + 1;
        // SAFETY: each worker has its own part, each row its own output.
        let (tile, out) = unsafe {
            (
                buffer.slice(worker * (key_dim + value_dim), key_dim + value_dim),
                out.slice(row * value_dim, value_dim),
            )
        };
        let (key, value) = tile.split_at_mut(key_dim);
        online(&q[row * key_dim..][..key_dim], scale, len, out, |p, run| {
            let slot = ragged.slot(item, p) * kv_heads + kv_head;
            read_row(cache[0], slot, key);
            read_row(cache[1], slot, value);
            run(key, value);
        });
    });
}

pub(crate) fn mla(
    cpu: &Cpu,
    q: &Tensor,
    cache: &Tensor,
    ragged: &Ragged,
    scale: f32,
    scratch: &mut AttentionScratch,
    out: &mut Tensor,
) {
    let AttentionSizes { heads, key_dim, value_dim, .. } = scratch.sizes;
    let q = q.as_f32();
    let buffer = SharedMut::new(scratch.buffer.as_f32_mut());
    cpu.for_blocks(out.as_f32_mut(), value_dim, |row, out| {
        let token = row / heads;
        let item = ragged.cu_seqlens.partition_point(|&start| start as usize <= token) - 1;
        let len = ragged.context_lens[item] as usize + token - ragged.tokens(item).start + 1;
        let mut key = [0.0; 1024];
        let key = &mut key[..key_dim];
        let _ = buffer;
        online(&q[row * key_dim..][..key_dim], scale, len, out, |p, run| {
            read_row(cache, ragged.slot(item, p), key);
            run(key, &key[..value_dim]);
        });
    });
}

pub(crate) fn packed(
    cpu: &Cpu,
    qkv: &Tensor,
    cu_seqlens: &[u32],
    scale: f32,
    scratch: &mut AttentionScratch,
    out: &mut Tensor,
) {
    let AttentionSizes { heads, key_dim: d, .. } = scratch.sizes;
    let qkv = qkv.as_f32();
    let at = |token: usize, part: usize, head: usize| &qkv[((token * 3 + part) * heads + head) * d..][..d];
    cpu.for_blocks(out.as_f32_mut(), d, |row, out| {
        let (token, head) = (row / heads, row % heads);
        let segment = cu_seqlens.partition_point(|&start| start as usize <= token) - 1;
        let (start, end) = (cu_seqlens[segment] as usize, cu_seqlens[segment + 1] as usize);
        online(at(token, 0, head), scale, end - start, out, |p, run| {
            run(at(start + p, 1, head), at(start + p, 2, head));
        });
    });
}

/// Softmax over `len` keys with a running maximum.
fn online(
    q: &[f32],
    scale: f32,
    len: usize,
    out: &mut [f32],
    mut visit: impl FnMut(usize, &mut dyn FnMut(&[f32], &[f32])),
) {
    let (mut max, mut sum) = (f32::NEG_INFINITY, 0.0);
    out.fill(0.0);
    for p in 0..len {
        visit(p, &mut |key, value| {
            let score = scale * q.iter().zip(key).map(|(q, k)| q * k).sum::<f32>();
            let new = max.max(score);
            let (keep, weight) = ((max - new).exp(), (score - new).exp());
            sum = sum * keep + weight;
            out.iter_mut().zip(value).for_each(|(out, v)| *out = *out * keep + weight * v);
            max = new;
        });
    }
    out.iter_mut().for_each(|out| *out /= sum);
}
