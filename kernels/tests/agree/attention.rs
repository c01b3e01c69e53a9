//! Attention over paged caches and packed segments.

use crate::common::*;
use crate::naive;
use crate::pages::Pages;
use kernels::ops::*;
use kernels::*;
use std::collections::HashSet;

/// Sequences of a step: how many positions are cached, how many tokens are new.
pub const ITEMS: [[usize; 2]; 5] = [[0, 1], [3, 7], [63, 2], [64, 1], [1100, 38]];
pub const BLOCK: usize = 5;

/// Of a scratch for these: heads, key heads, and the widths of keys and values.
pub fn sizes_of([heads, kv_heads, key_dim, value_dim]: [usize; 4], max_tokens: usize) -> AttentionSizes {
    AttentionSizes { heads, kv_heads, key_dim, value_dim, max_context: 1200, max_tokens }
}

/// Slots that positions use.
pub fn used(pages: &Pages) -> HashSet<usize> {
    let ragged = pages.ragged(BLOCK);
    let positions = ITEMS.iter().enumerate();
    let positions = positions.flat_map(|(item, [old, new])| (0..old + new).map(move |p| (item, p)));
    positions.map(|(item, p)| ragged.slot(item, p)).collect()
}

/// Keys and values are drawn by slot; slots that no position uses hold NaN, which must not show.
pub fn cache(dtype: DType, pages: &Pages, heads: usize, dim: usize, seed: u64) -> Host {
    let row = heads * dim;
    let mut numbers = values(seed, pages.num_slots * row);
    let used = used(pages);
    for slot in (0..pages.num_slots).filter(|slot| !used.contains(slot)) {
        numbers[slot * row..(slot + 1) * row].fill(f32::NAN);
    }
    Host::new(dtype, &[pages.num_slots, heads, dim], &numbers)
}

/// What each row should be: keys and values by (slot, key head).
pub fn expected(
    pages: &Pages,
    q: &[Vec<f64>],
    [heads, kv_heads]: [usize; 2],
    scale: f64,
    row: impl Fn(usize, usize) -> (Vec<f64>, Vec<f64>),
) -> Vec<f64> {
    let ragged = pages.ragged(BLOCK);
    let mut out = Vec::new();
    for (item, [old, new]) in ITEMS.into_iter().enumerate() {
        for i in 0..new {
            for head in 0..heads {
                let rows: Vec<_> =
                    (0..=old + i).map(|p| row(ragged.slot(item, p), head / (heads / kv_heads))).collect();
                let keys: Vec<&[f64]> = rows.iter().map(|(key, _)| &key[..]).collect();
                let values: Vec<&[f64]> = rows.iter().map(|(_, value)| &value[..]).collect();
                let token = pages.cu_seqlens[item] as usize + i;
                out.extend(naive::attend(&q[token * heads + head], &keys, &values, scale));
            }
        }
    }
    out
}

#[test]
fn grouped_queries() {
    let pages = Pages::new(&ITEMS, BLOCK);
    let t = *pages.cu_seqlens.last().unwrap() as usize;
    for (dtype, heads, kv_heads, d, dv) in
        [(DType::F32, 3, 3, 7, 5), (DType::BF16, 6, 2, 40, 24), (DType::F16, 4, 1, 33, 35)]
    {
        let q = Host::new(
            DType::F32,
            &[t, heads, d],
            &values(1, t * heads * d).iter().map(|v| 4.0 * v).collect::<Vec<_>>(),
        );
        let (keys, values) = (cache(dtype, &pages, kv_heads, d, 2), cache(dtype, &pages, kv_heads, dv, 3));
        let scale = 0.3;
        let expected = expected(&pages, &q.rows(), [heads, kv_heads], f64::from(scale), |slot, head| {
            let at = slot * kv_heads + head;
            (keys.values[at * d..][..d].to_vec(), values.values[at * dv..][..dv].to_vec())
        });
        for device in devices() {
            let sizes = sizes_of([heads, kv_heads, d, dv], t);
            let before = device.allocated_bytes();
            let mut scratch = AttentionScratch::new(&device, sizes);
            assert_eq!(device.allocated_bytes() - before, AttentionScratch::bytes(&device, sizes));
            let mut out = Tensor::from_f32(&device, &[t, heads, dv], &vec![5.0; t * heads * dv]);
            let (q, k, v) = (q.tensor(&device), keys.tensor(&device), values.tensor(&device));
            gqa_attention(&q, &k, &v, &pages.ragged(BLOCK), scale, &mut scratch, &mut out);
            assert_close(out.as_f32(), &expected, 3e-6, &format!("{device:?} {dtype} {heads} heads"));
        }
    }
}

#[test]
fn one_latent_for_all_heads() {
    let pages = Pages::new(&ITEMS, BLOCK);
    let t = *pages.cu_seqlens.last().unwrap() as usize;
    for (dtype, heads, d, dv) in
        [(DType::F32, 3, 21, 17), (DType::BF16, 16, 72, 64), (DType::F16, 37, 19, 19)]
    {
        let q = Host::random(DType::F32, &[t, heads, d], 1);
        let cache = cache(dtype, &pages, 1, d, 2);
        let expected = expected(&pages, &q.rows(), [heads, 1], 0.5, |slot, _| {
            let row = cache.values[slot * d..][..d].to_vec();
            let value = row[..dv].to_vec();
            (row, value)
        });
        for device in devices() {
            let sizes = sizes_of([heads, 1, d, dv], t);
            let mut scratch = AttentionScratch::new(&device, sizes);
            let mut out = Tensor::zeros(&device, DType::F32, &[t, heads, dv]);
            let mut rows = cache.tensor(&device);
            rows.reshape(&[pages.num_slots, d]);
            let ragged = pages.ragged(BLOCK);
            mla_attention(&q.tensor(&device), &rows, dv, &ragged, 0.5, &mut scratch, &mut out);
            assert_close(out.as_f32(), &expected, 3e-6, &format!("{device:?} {dtype} {heads} heads"));
        }
    }
}

#[test]
fn packed_segments() {
    let cu_seqlens = [0, 1, 1, 66, 199];
    let (t, heads, d) = (199, 3, 9);
    let qkv = Host::random(DType::F32, &[t, 3, heads, d], 1);
    let at =
        |token: usize, part: usize, head: usize| &qkv.values[((token * 3 + part) * heads + head) * d..][..d];
    let mut expected = Vec::new();
    for segment in cu_seqlens.windows(2) {
        let tokens = segment[0] as usize..segment[1] as usize;
        for token in tokens.clone() {
            for head in 0..heads {
                let keys: Vec<&[f64]> = tokens.clone().map(|p| at(p, 1, head)).collect();
                let values: Vec<&[f64]> = tokens.clone().map(|p| at(p, 2, head)).collect();
                expected.extend(naive::attend(at(token, 0, head), &keys, &values, 0.25));
            }
        }
    }
    for device in devices() {
        let sizes = AttentionSizes {
            heads,
            kv_heads: heads,
            key_dim: d,
            value_dim: d,
            max_context: 0,
            max_tokens: t,
        };
        let mut scratch = AttentionScratch::new(&device, sizes);
        let mut out = Tensor::zeros(&device, DType::F32, &[t, heads, d]);
        packed_attention(&qkv.tensor(&device), &cu_seqlens, 0.25, &mut scratch, &mut out);
        assert_close(out.as_f32(), &expected, 3e-6, &format!("{device:?}"));
    }
}
