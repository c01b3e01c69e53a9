//! Attention over caches, and what makes queries and latents ready for it.

use super::{on_gpu, random, zeros};
use crate::{Bench, Work};
use kernels::ops::*;
use kernels::*;

/// Queries and latents of a step, and what makes them ready.
pub fn prepared(bench: &Bench) {
    let (hidden, heads, rank, rotated) = (2048, 16, 512, 64);
    let (query, row) = (heads * (128 + rotated), rank + rotated);
    if bench.wants("linear_pair") {
        let [first, second] =
            [query, row].map(|n| Matrix::random(&bench.device, DType::BF16, n, hidden, 0.02, 6));
        for t in [1, 8] {
            let x = random(bench, &[t, hidden]);
            let [mut q, mut kv] = [query, row].map(|width| zeros(bench, &[t, width]));
            let work = Work::Bytes((first.bytes() + second.bytes()) as f64);
            let line = format!("bfloat16 T {t} N {query} and {row} K {hidden}");
            bench.line("linear_pair", &line, work, || {
                let first = LinearPart { weight: &first, bias: None, out: &mut q };
                linear_pair(&x, [first, LinearPart { weight: &second, bias: None, out: &mut kv }]);
            });
        }
    }
    if !bench.wants("prepare_latents") {
        return;
    }
    let device = &bench.device;
    let norm = &random(bench, &[rank]);
    let angle = |p: usize, i: usize| ((p as f32 + i as f32).cos(), (p as f32 + i as f32).sin());
    let table = &RopeTable::new(device, 1024, rotated / 2, &angle);
    for t in [1, 8, 512] {
        let [mut kv, mut scratch] = [row, rank].map(|width| random(bench, &[t, width]));
        let mut q = random(bench, &[t, heads, 128 + rotated]);
        let mut absorbed = zeros(bench, &[t, heads, row]);
        let stored_as = KvType::Float(DType::BF16);
        let mut cache = KvTensor::zeros(device, stored_as, 1024, KvShape::Latent { rank, rotated });
        let mut places = Indices::new(device, t);
        places.set(&(0..t as u32).collect::<Vec<_>>());
        let rotation = Rotation { table, positions: (&places).into(), layout: RopeLayout::Interleaved };
        let work = Work::Bytes((t * (6 * row + 12 * heads * rotated)) as f64);
        let line = format!("bfloat16 T {t} H {heads} R {rank} P {rotated}");
        bench.line("prepare_latents", &line, work, || {
            let (kv, q, absorbed, scratch) = (&mut kv, &mut q, &mut absorbed, &mut scratch);
            let rows = LatentRows { kv, norm, eps: 1e-6, q, absorbed, scratch };
            prepare_latents(rows, &rotation, &mut cache, &places);
        });
    }
}

/// Sequences, each of `t` new tokens after `context` cached ones.
pub(super) struct Sequences {
    cu_seqlens: Vec<u32>,
    context_lens: Vec<u32>,
    block_tables: Vec<u32>,
    cu_blocks: Vec<u32>,
}

const BLOCK: usize = 16;

impl Sequences {
    fn one(t: usize, context: usize) -> Self {
        Self::several(1, t, context)
    }

    pub(super) fn several(n: usize, t: usize, context: usize) -> Self {
        let (n, blocks) = (n as u32, (t + context).div_ceil(BLOCK) as u32);
        Self {
            cu_seqlens: (0..=n).map(|i| i * t as u32).collect(),
            context_lens: vec![context as u32; n as usize],
            block_tables: (0..n * blocks).rev().collect(),
            cu_blocks: (0..=n).map(|i| i * blocks).collect(),
        }
    }

    pub(super) fn ragged(&self) -> Ragged<'_> {
        Ragged {
            cu_seqlens: (&self.cu_seqlens).into(),
            context_lens: (&self.context_lens).into(),
            block_tables: (&self.block_tables).into(),
            cu_blocks: (&self.cu_blocks).into(),
            block_size: BLOCK,
            selected: None,
        }
    }

    pub(super) fn slots(&self) -> usize {
        self.block_tables.len() * BLOCK
    }

    /// Pairs of query and key.
    pub(super) fn pairs(&self) -> f64 {
        let (t, context) = (f64::from(self.cu_seqlens[1]), f64::from(self.context_lens[0]));
        self.context_lens.len() as f64 * (t * context + t * (t + 1.0) / 2.0)
    }
}

pub fn latent(bench: &Bench) {
    if !bench.wants("mla_attention") {
        return;
    }
    for rows in [[1, 1023], [1, 4095], [1, 8191], [256, 0], [512, 1536]] {
        latent_line(bench, rows);
    }
    ranges_line(bench, 8, [1, 127], None);
    // One sequence of a long context has to fill a whole GPU, and chunks of prompts pay for the merging of short ranges.
    if on_gpu(bench) {
        for rows in [[1, 4095], [1, 32_767], [1, 131_071], [2048, 30_720]] {
            for (shortest, most) in [(512, 64), (256, 128), (128, 128)] {
                ranges_line(bench, 1, rows, Some(RangeRule { shortest, most }));
            }
        }
        // What it costs that rows are cut by their own length alone: many sequences would be left whole by a rule that knows of them.
        for shortest in [512, 1 << 20] {
            ranges_line(bench, 128, [1, 8191], Some(RangeRule { shortest, most: 64 }));
        }
    }
}

/// Tokens after some context.
fn latent_line(bench: &Bench, rows: [usize; 2]) {
    ranges_line(bench, 1, rows, None);
}

fn ranges_line(bench: &Bench, n: usize, [t, context]: [usize; 2], rule: Option<RangeRule>) {
    let (h, d, r) = (16, 576, 512);
    let sequences = Sequences::several(n, t, context);
    let cache = Tensor::random_as(&bench.device, DType::BF16, &[sequences.slots(), d], 1.0, 2);
    let (q, mut out) = (random(bench, &[n * t, h, d]), zeros(bench, &[n * t, h, r]));
    let sizes = AttentionSizes {
        heads: h,
        kv_heads: 1,
        key_dim: d,
        value_dim: r,
        max_context: (t + context).max(16384),
        max_tokens: n * t,
    };
    let mut scratch = AttentionScratch::with_ranges(&bench.device, sizes, rule.unwrap_or_default());
    let work = Work::Flop(2.0 * sequences.pairs() * (h * (d + r)) as f64);
    let of = rule.map_or(String::new(), |rule| format!(" in {} of {}", rule.most, rule.shortest));
    let many = if n > 1 { format!("{n} x ") } else { String::new() };
    bench.line("mla_attention", &format!("bfloat16 {many}T {t} after {context} H {h}{of}"), work, || {
        mla_attention(&q, &cache, r, &sequences.ragged(), 0.07, &mut scratch, &mut out);
    });
}

/// The same rows as `latent`, between queries and values of heads: what `heads_linear` does on both sides of the absorbed form is in it.
pub fn expanded(bench: &Bench) {
    if !bench.wants("expanded_attention") {
        return;
    }
    for (t, context) in [(1, 1023), (256, 0), (512, 1536), (512, 7680), (2048, 2048)] {
        expanded_line(bench, [16, 512, 128, 64, 128], [t, context]);
    }
    // Chunks of long prompts, and the absorbed form of the same rows beside them.
    for (t, context) in
        if on_gpu(bench) { [(2048, 30_720), (8192, 0), (8192, 24_576)].as_slice() } else { &[] }
    {
        expanded_line(bench, [16, 512, 128, 64, 128], [*t, *context]);
        latent_line(bench, [*t, *context]);
    }
}

/// Heads, rank, and the widths of a key's parts and of a value; tokens after some context.
pub fn expanded_line(bench: &Bench, widths: [usize; 5], [t, context]: [usize; 2]) {
    let [heads, rank, nope, rotated, value_dim] = widths;
    let up = |n: usize| MatrixBatch::random(&bench.device, DType::BF16, [heads, n, rank], 0.02, 2);
    let (key_up, value_up) = (up(nope), up(value_dim));
    let sequence = Sequences::one(t, context);
    let cache = Tensor::zeros(&bench.device, DType::BF16, &[sequence.slots(), rank + rotated]);
    let (q, mut out) = (random(bench, &[t, heads, nope + rotated]), zeros(bench, &[t, heads, value_dim]));
    let sizes = ExpandedSizes {
        heads,
        rank,
        nope,
        rotated,
        value_dim,
        max_tokens: t,
        max_context: t + context,
        cache: DType::BF16,
    };
    let mut scratch = ExpandedScratch::new(&bench.device, sizes);
    let latents = Latents { cache: (&cache).into(), key_up: &key_up, value_up: &value_up };
    let pairs = 2.0 * sequence.pairs() * (heads * (nope + rotated + value_dim)) as f64;
    let keys = 2.0 * ((t + context) * heads * rank * (nope + value_dim)) as f64;
    let sizes = format!("bfloat16 T {t} after {context} H {heads}");
    bench.line("expanded_attention", &sizes, Work::Flop(pairs + keys), || {
        expanded_attention(&q, latents, &sequence.ragged(), 0.07, &mut scratch, &mut out);
    });
}

/// Single tokens over caches of heads: bytes are the caches'.
pub fn decoding(bench: &Bench) {
    let types = [KvType::Int8, KvType::Float(DType::F16), KvType::Float(DType::BF16)];
    for stored_as in
        types.into_iter().filter(|stored_as| *stored_as == KvType::Float(DType::BF16) || !on_gpu(bench))
    {
        let op = format!("gqa_attention {}", stored_as.name());
        if !bench.wants(&op) {
            continue;
        }
        for (heads, rows) in
            [([32, 8], [1, 4095]), ([32, 32], [1, 4095]), ([64, 8], [1, 4095]), ([32, 8], [8, 127])]
        {
            decoding_line(bench, &op, stored_as, heads, rows);
        }
    }
}

/// `n` sequences of one new token each.
fn decoding_line(bench: &Bench, op: &str, stored_as: KvType, [h, kv]: [usize; 2], [n, context]: [usize; 2]) {
    let d = 128;
    let sequences = Sequences::several(n, 1, context);
    let (slots, shape) = (sequences.slots(), KvShape::Heads { count: kv, dim: d });
    let bytes = 2 * slots as u64 * KvTensor::bytes_per_slot(stored_as, shape);
    // Layers in turns, so that the last one's keys are no longer in a cache when it is there again.
    let layers: Vec<[KvTensor; 2]> =
        (0..(96 << 20) / bytes + 1).map(|_| [0; 2].map(|_| filled(bench, stored_as, slots, shape))).collect();
    let (q, mut out) = (random(bench, &[n, h, d]), zeros(bench, &[n, h, d]));
    let sizes =
        AttentionSizes { heads: h, kv_heads: kv, key_dim: d, value_dim: d, max_context: 8192, max_tokens: n };
    let mut scratch = AttentionScratch::new(&bench.device, sizes);
    let many = if n > 1 { format!("{n} x ") } else { String::new() };
    let mut turns = layers.iter().cycle();
    bench.line(op, &format!("{many}T 1 after {context} Hq {h} Hkv {kv}"), Work::Bytes(bytes as f64), || {
        let [keys, values] = turns.next().expect("a layer");
        gqa_attention(&q, keys, values, &sequences.ragged(), 0.09, &mut scratch, &mut out);
    });
}

/// Pages that were never written would all be the same one.
fn filled(bench: &Bench, stored_as: KvType, slots: usize, shape: KvShape) -> KvTensor {
    let mut cache = KvTensor::zeros(&bench.device, stored_as, slots, shape);
    let places: Vec<u32> = (0..slots as u32).collect();
    store_kv(&random(bench, &[slots, shape.row_len()]), &mut cache, &places);
    cache
}

pub fn grouped(bench: &Bench) {
    if !bench.wants("gqa_attention") {
        return;
    }
    let (d, h, kv) = (128, 32, 8);
    for (t, context) in [(512, 0), (256, 2048)] {
        let sequence = Sequences::one(t, context);
        let shape = [sequence.slots(), kv, d];
        let [keys, values] = [0; 2].map(|_| Tensor::zeros(&bench.device, DType::BF16, &shape));
        let (q, mut out) = (random(bench, &[t, h, d]), zeros(bench, &[t, h, d]));
        let sizes = AttentionSizes {
            heads: h,
            kv_heads: kv,
            key_dim: d,
            value_dim: d,
            max_context: 8192,
            max_tokens: t,
        };
        let mut scratch = AttentionScratch::new(&bench.device, sizes);
        let work = Work::Flop(2.0 * sequence.pairs() * (h * 2 * d) as f64);
        bench.line("gqa_attention", &format!("bfloat16 T {t} after {context} Hq {h} Hkv {kv}"), work, || {
            gqa_attention(&q, &keys, &values, &sequence.ragged(), 0.09, &mut scratch, &mut out);
        });
    }
}
