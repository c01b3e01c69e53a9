//! The ops at sizes of Moonlight and MoonViT: D 2048, 16 heads of 128 + 64 over a latent of 512, experts of 1408.

use crate::{Bench, Work};
use kernels::cuda::Matmul;
use kernels::ops::*;
use kernels::*;

pub fn all(bench: &Bench) {
    linears(bench);
    heads(bench);
    experts(bench);
    with_shared(bench);
    prepared(bench);
    latent(bench);
    expanded(bench);
    decoding(bench);
    grouped(bench);
    pictures(bench);
    rows(bench);
    samples(bench, 163_840, &[1, 32, 256]);
}

/// What the emulator can do: each kind of line once.
pub fn tiny(bench: &Bench) {
    let (x, mut y) = (random(bench, &[3, 24]), zeros(bench, &[3, 24]));
    bench.line("add", "T 3 D 24", Work::Bytes(12.0 * 72.0), || add(&mut y, &x));
    let w = Matrix::random(&bench.device, DType::BF16, 40, 24, 0.02, 2);
    let mut out = zeros(bench, &[3, 40]);
    bench.line("linear", "bfloat16 T 3 N 40 K 24", Work::Flop(2.0 * (3 * 40 * 24) as f64), || {
        linear(&x, &w, None, Activation::None, &mut out);
    });
    let (x, mut out) = (random(bench, &[200, 24]), zeros(bench, &[200, 40]));
    let work = || Work::Flop(2.0 * (200 * 40 * 24) as f64);
    let mut room = TokenRoom::new(&bench.device, &[[200, 24]]);
    with_wgmma(bench, || {
        bench.line("linear", "bfloat16 T 200 N 40 K 24 wgmma", work(), || {
            room.hold(&x).linear(&w, None, Activation::None, &mut out);
        });
    });
    expanded_line(bench, [2, 24, 8, 4, 8], [3, 5]);
    samples(bench, 131, &[2]);
}

/// The lines of `run` by wgmma, where the device has it.
fn with_wgmma(bench: &Bench, run: impl FnOnce()) {
    let Device::Cuda(cuda) = &bench.device else { return };
    if cuda.choose_matmul(Matmul::Wgmma) {
        run();
        cuda.choose_matmul(Matmul::Auto);
    }
}

fn zeros(bench: &Bench, shape: &[usize]) -> Tensor {
    Tensor::zeros(&bench.device, DType::F32, shape)
}

fn random(bench: &Bench, shape: &[usize]) -> Tensor {
    Tensor::random(&bench.device, shape, 1.0, 1)
}

/// Those that the device has products with.
fn known(bench: &Bench, types: &[WeightType]) -> Vec<WeightType> {
    let on_gpu = matches!(bench.device, Device::Cuda(_));
    types.iter().copied().filter(|stored_as| !on_gpu || WeightType::ON_GPU.contains(stored_as)).collect()
}

fn linears(bench: &Bench) {
    if !bench.wants("linear") {
        return;
    }
    // The one that is read from memory, not from a cache, is larger than the caches of the machine.
    for (t, n, k) in [(1, 65536, 2048), (1, 16384, 8192), (4, 65536, 2048), (8, 65536, 2048)] {
        for dtype in known(bench, &WeightType::ALL) {
            let w = Matrix::random(&bench.device, dtype, n, k, 0.02, 2);
            let (x, mut out) = (random(bench, &[t, k]), zeros(bench, &[t, n]));
            let sizes = format!("{} T {t} N {n} K {k}", dtype.name());
            bench.line("linear", &sizes, Work::Bytes(w.bytes() as f64), || {
                linear(&x, &w, None, Activation::None, &mut out);
            });
        }
    }
    for (t, n, k) in
        [(64, 2816, 2048), (256, 2048, 2048), (512, 2816, 2048), (512, 2048, 1408), (1024, 3456, 1152)]
    {
        for dtype in known(
            bench,
            &[
                WeightType::BF16,
                WeightType::CompactBf16,
                WeightType::F32,
                WeightType::Int8,
                WeightType::Int4,
                WeightType::Int4Zero,
            ],
        ) {
            let w = Matrix::random(&bench.device, dtype, n, k, 0.02, 2);
            let (x, mut out) = (random(bench, &[t, k]), zeros(bench, &[t, n]));
            let sizes = format!("{} T {t} N {n} K {k}", dtype.name());
            let work = || Work::Flop(2.0 * (t * n * k) as f64);
            bench.line("linear", &sizes, work(), || linear(&x, &w, None, Activation::None, &mut out));
            if matches!(bench.device, Device::Cuda(_)) {
                // As layers run: rounded once, by a pass that the first line has and the second has not.
                let mut room = TokenRoom::new(&bench.device, &[[t, k]]);
                bench.line("linear", &format!("{sizes} rounded before"), work(), || {
                    room.hold(&x).linear(&w, None, Activation::None, &mut out);
                });
                let mut tokens = room.hold(&x);
                bench.line("linear", &format!("{sizes} rounded"), work(), || {
                    tokens.linear(&w, None, Activation::None, &mut out);
                });
            }
        }
    }
    if matches!(bench.device, Device::Cuda(_)) {
        prompts(bench);
    }
    let w = Matrix::random(&bench.device, DType::BF16, 4304, 1152, 0.02, 2);
    let (x, mut out) = (random(bench, &[1024, 1152]), zeros(bench, &[1024, 4304]));
    for act in [Activation::GeluTanh, Activation::GeluErf] {
        let sizes = format!("bfloat16 T 1024 N 4304 K 1152 {act:?}");
        bench.line("linear", &sizes, Work::Flop(2.0 * 1024.0 * 4304.0 * 1152.0), || {
            linear(&x, &w, None, act, &mut out);
        });
    }
}

fn heads(bench: &Bench) {
    if !bench.wants("heads_linear") {
        return;
    }
    let w = MatrixBatch::random(&bench.device, DType::BF16, [16, 512, 128], 0.02, 2);
    for t in [1, 256] {
        let (x, mut out) = (random(bench, &[t, 16, 128]), zeros(bench, &[t, 16, 512]));
        let work = if t == 1 {
            Work::Bytes(w.bytes() as f64)
        } else {
            Work::Flop(2.0 * (t * 16 * 512 * 128) as f64)
        };
        bench.line("heads_linear", &format!("bfloat16 T {t} H 16 N 512 K 128"), work, || {
            heads_linear(&x, &w, &mut out);
        });
    }
}

fn experts(bench: &Bench) {
    if !bench.wants("moe") {
        return;
    }
    for stored_as in
        known(bench, &[WeightType::BF16, WeightType::CompactBf16, WeightType::Int8, WeightType::Int4])
    {
        experts_of(bench, stored_as);
    }
}

/// Layers of prompts that fill a GPU, by mma.sync and by wgmma, of tokens that were rounded before.
fn prompts(bench: &Bench) {
    for (t, n, k) in [(512, 2816, 2048), (4096, 3072, 2048), (4096, 2048, 2048), (4096, 2048, 11_264)] {
        let w = Matrix::random(&bench.device, DType::BF16, n, k, 0.02, 2);
        let (x, mut out) = (random(bench, &[t, k]), zeros(bench, &[t, n]));
        let mut room = TokenRoom::new(&bench.device, &[[t, k]]);
        let mut tokens = room.hold(&x);
        let sizes = format!("bfloat16 T {t} N {n} K {k} rounded");
        let work = || Work::Flop(2.0 * (t * n * k) as f64);
        // The first call rounds.
        tokens.linear(&w, None, Activation::None, &mut out);
        bench.line("linear", &sizes, work(), || tokens.linear(&w, None, Activation::None, &mut out));
        with_wgmma(bench, || {
            bench.line("linear", &format!("{sizes} wgmma"), work(), || {
                tokens.linear(&w, None, Activation::None, &mut out);
            });
        });
    }
}

fn experts_of(bench: &Bench, stored_as: WeightType) {
    let sizes = [64, 2048, 1408];
    let [e, h, i] = sizes;
    let experts = Experts::random(&bench.device, stored_as, sizes, 0.02, 3);
    let k = 6;
    // The last is for wgmma, which leaves fewer rows of an expert to mma.sync.
    let is_gpu = matches!(bench.device, Device::Cuda(_)) && stored_as == WeightType::BF16;
    for t in [1, 8, 64, 512].into_iter().chain(is_gpu.then_some(4096)) {
        let (x, mut out) = (random(bench, &[t, h]), zeros(bench, &[t, h]));
        let mut ids = Tensor::zeros(&bench.device, DType::I32, &[t, k]);
        let chosen: Vec<i32> = (0..t * k).map(|pair| ((pair * 11 + pair / 64 * 5) % e) as i32).collect();
        ids.write_i32(0, &chosen);
        let weights = random(bench, &[t, k]);
        let mut scratch = MoeScratch::new(&bench.device, t, sizes, k);
        let distinct = (t * k).min(e);
        let work = || match t {
            1 | 8 => Work::Bytes(experts.bytes() as f64 * distinct as f64 / e as f64),
            _ => Work::Flop(6.0 * (t * k * h * i) as f64),
        };
        let line = format!("{stored_as} T {t} E {e} k {k} H {h} I {i}");
        bench.line("moe", &line, work(), || moe(&x, &experts, &ids, &weights, &mut scratch, &mut out));
        if t == 4096 {
            with_wgmma(bench, || {
                bench.line("moe", &format!("{line} wgmma"), work(), || {
                    moe(&x, &experts, &ids, &weights, &mut scratch, &mut out);
                });
            });
        }
        if stored_as != WeightType::BF16 {
            continue;
        }
        let logits = random(bench, &[t, e]);
        let config = RouterConfig {
            scoring: Scoring::Sigmoid,
            top_k: k,
            num_groups: 1,
            top_groups: 1,
            group_score: GroupScore::Max,
            normalize: true,
            scale: 2.446,
        };
        let mut weights = zeros(bench, &[t, k]);
        bench.line("route", &format!("T {t} E {e} k {k}"), Work::Bytes((4 * t * e) as f64), || {
            route(&logits, None, &config, &mut ids, &mut weights);
        });
    }
}

/// With the expert that every token takes, twice as wide as the others.
fn with_shared(bench: &Bench) {
    if !bench.wants("moe_and_shared") {
        return;
    }
    let sizes = [64, 2048, 1408];
    let ([e, h, _], i, k) = (sizes, 2816, 6);
    let experts = Experts::random(&bench.device, DType::BF16, sizes, 0.02, 3);
    let gate_up = &Matrix::random(&bench.device, DType::BF16, 2 * i, h, 0.02, 4);
    let down = &Matrix::random(&bench.device, DType::BF16, h, i, 0.02, 5);
    for t in [1, 8, 32] {
        let [x, weights] = [h, k].map(|width| random(bench, &[t, width]));
        let mut ids = Tensor::zeros(&bench.device, DType::I32, &[t, k]);
        ids.write_i32(0, &(0..t * k).map(|pair| (pair * 11 % e) as i32).collect::<Vec<_>>());
        let mut scratch = MoeScratch::new(&bench.device, t, sizes, k);
        let [mut both, mut inner, mut of_shared, mut out] =
            [2 * i, i, h, h].map(|width| zeros(bench, &[t, width]));
        let of_chosen = experts.bytes() as f64 * (t * k).min(e) as f64 / e as f64;
        let work = Work::Bytes(of_chosen + (gate_up.bytes() + down.bytes()) as f64);
        let line = format!("bfloat16 T {t} E {e} k {k} H {h} I 1408 and {i}");
        let mut tokens = TokenRoom::new(&bench.device, &[[t, h.max(i)]]);
        bench.line("moe_and_shared", &line, work, || {
            let (both, inner, tokens) = (&mut both, &mut inner, &mut tokens);
            let shared = SharedExpert { gate_up, down, both, inner, out: &mut of_shared };
            moe_and_shared(&x, &experts, [&ids, &weights], &mut scratch, Some((shared, tokens)), &mut out);
        });
    }
}

/// Queries and latents of a step, and what makes them ready.
fn prepared(bench: &Bench) {
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
struct Sequences {
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

    fn several(n: usize, t: usize, context: usize) -> Self {
        let (n, blocks) = (n as u32, (t + context).div_ceil(BLOCK) as u32);
        Self {
            cu_seqlens: (0..=n).map(|i| i * t as u32).collect(),
            context_lens: vec![context as u32; n as usize],
            block_tables: (0..n * blocks).rev().collect(),
            cu_blocks: (0..=n).map(|i| i * blocks).collect(),
        }
    }

    fn ragged(&self) -> Ragged<'_> {
        Ragged {
            cu_seqlens: (&self.cu_seqlens).into(),
            context_lens: (&self.context_lens).into(),
            block_tables: (&self.block_tables).into(),
            cu_blocks: (&self.cu_blocks).into(),
            block_size: BLOCK,
            selected: None,
        }
    }

    fn slots(&self) -> usize {
        self.block_tables.len() * BLOCK
    }

    /// Pairs of query and key.
    fn pairs(&self) -> f64 {
        let (t, context) = (f64::from(self.cu_seqlens[1]), f64::from(self.context_lens[0]));
        self.context_lens.len() as f64 * (t * context + t * (t + 1.0) / 2.0)
    }
}

fn latent(bench: &Bench) {
    if !bench.wants("mla_attention") {
        return;
    }
    for rows in [[1, 1023], [1, 4095], [1, 8191], [256, 0], [512, 1536]] {
        latent_line(bench, rows);
    }
    ranges_line(bench, 8, [1, 127], None);
    // One sequence of a long context has to fill a whole GPU, and chunks of prompts pay for the merging of short ranges.
    if !matches!(bench.device, Device::Cpu(_)) {
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
fn expanded(bench: &Bench) {
    if !bench.wants("expanded_attention") {
        return;
    }
    let on_gpu = !matches!(bench.device, Device::Cpu(_));
    for (t, context) in [(1, 1023), (256, 0), (512, 1536), (512, 7680), (2048, 2048)] {
        expanded_line(bench, [16, 512, 128, 64, 128], [t, context]);
    }
    // Chunks of long prompts, and the absorbed form of the same rows beside them.
    for (t, context) in if on_gpu { [(2048, 30_720), (8192, 0), (8192, 24_576)].as_slice() } else { &[] } {
        expanded_line(bench, [16, 512, 128, 64, 128], [*t, *context]);
        latent_line(bench, [*t, *context]);
    }
}

/// Heads, rank, and the widths of a key's parts and of a value; tokens after some context.
fn expanded_line(bench: &Bench, widths: [usize; 5], [t, context]: [usize; 2]) {
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
fn decoding(bench: &Bench) {
    let types = [KvType::Int8, KvType::Float(DType::F16), KvType::Float(DType::BF16)];
    for stored_as in types.into_iter().filter(|stored_as| {
        *stored_as == KvType::Float(DType::BF16) || matches!(bench.device, Device::Cpu(_))
    }) {
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

fn grouped(bench: &Bench) {
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

fn pictures(bench: &Bench) {
    if !bench.wants("packed_attention") {
        return;
    }
    let (h, d) = (16, 72);
    for t in [256, 1024, 4096] {
        let (qkv, mut out) = (random(bench, &[t, 3, h, d]), zeros(bench, &[t, h, d]));
        let sizes =
            AttentionSizes { heads: h, kv_heads: h, key_dim: d, value_dim: d, max_context: 0, max_tokens: t };
        for multiply_as in [DType::F32, DType::BF16] {
            let mut scratch = AttentionScratch::new(&bench.device, sizes).multiplying_as(multiply_as);
            let work = Work::Flop(4.0 * (t * t * h * d) as f64);
            bench.line("packed_attention", &format!("{multiply_as} T {t} H {h} D {d}"), work, || {
                packed_attention(&qkv, &[0, t as u32], 0.12, &mut scratch, &mut out);
            });
        }
    }
}

/// What only moves data: bytes read and written once.
fn rows(bench: &Bench) {
    let (t, d) = (2048, 2048);
    let bytes = |per_element: usize| Work::Bytes((per_element * t * d) as f64);
    let x = random(bench, &[t, d]);
    let (w, mut a, mut b) = (random(bench, &[d]), zeros(bench, &[t, d]), zeros(bench, &[t, d]));
    let sizes = format!("T {t} D {d}");
    if bench.wants("norm") {
        bench.line("rms_norm", &sizes, bytes(8), || rms_norm(&x, &w, 1e-5, &mut a));
        bench.line("add_rms_norm", &sizes, bytes(16), || add_rms_norm(&mut b, &x, &w, 1e-5, &mut a));
        bench.line("layer_norm", &sizes, bytes(8), || layer_norm(&x, &w, &w, 1e-5, &mut a));
    }
    if bench.wants("add") {
        bench.line("add", &sizes, bytes(12), || add(&mut a, &x));
    }
    if bench.wants("silu_mul") {
        let mut half = zeros(bench, &[t, d / 2]);
        bench.line("silu_mul", &sizes, bytes(6), || silu_mul(&x, &mut half));
    }
    let mut ids = Indices::new(&bench.device, t);
    ids.set(&(0..t as u32).map(|i| i * 7 % t as u32).collect::<Vec<_>>());
    if bench.wants("rope") {
        let table = RopeTable::new(&bench.device, t, 32, &|p, i| ((p as f32).cos(), (i as f32).sin()));
        for layout in [RopeLayout::Half, RopeLayout::Interleaved] {
            a.reshape(&[t, 16, 128]);
            let sizes = format!("T {t} H 16 D 128 R 64 {layout:?}");
            bench.line("rope", &sizes, Work::Bytes((8 * t * 16 * 64) as f64), || {
                rope(&mut a, 64, &table, &ids, layout);
            });
            a.reshape(&[t, d]);
        }
    }
    if bench.wants("rows") {
        let table = Tensor::zeros(&bench.device, DType::BF16, &[t, d]);
        bench.line("embedding", &format!("bfloat16 {sizes}"), bytes(6), || embedding(&table, &ids, &mut a));
        bench.line("gather_rows", &sizes, bytes(8), || gather_rows(&x, &ids, &mut a));
        bench.line("scatter_rows", &sizes, bytes(8), || scatter_rows(&x, &ids, &mut a, &ids));
        let mut cache = Tensor::zeros(&bench.device, DType::BF16, &[t, d]);
        bench.line("store_rows", &format!("bfloat16 {sizes}"), bytes(6), || store_rows(&x, &mut cache, &ids));
        let x = random(bench, &[t, 16, 128]);
        a.reshape(&[t, 16, 128]);
        bench.line("copy_slice", &format!("T {t} H 16 64 of 128"), bytes(4), || {
            copy_slice(&x, 0, &mut a, 64, 64)
        });
    }
    if bench.wants("interpolate") {
        let (table, mut out) = (random(bench, &[64, 64, 1152]), zeros(bench, &[48 * 40, 1152]));
        bench.line(
            "interpolate",
            "64 x 64 to 48 x 40, D 1152",
            Work::Flop(40.0 * (48 * 40 * 1152) as f64),
            || {
                interpolate_positions(&table, 48, 40, &mut out);
            },
        );
    }
}

/// Rows of logits: greedy, drawn, and drawn from the most probable with log-probabilities. The processor samples elsewhere.
fn samples(bench: &Bench, vocab: usize, rows: &[usize]) {
    if !bench.wants("sample") || matches!(bench.device, Device::Cpu(_)) {
        return;
    }
    let drawn = Draw { temperature: 0.8, seed: 7, position: 3, ..Draw::GREEDY };
    let kinds = [
        ("greedy", Draw::GREEDY, None),
        ("drawn", drawn, None),
        ("top_p 0.9 and 20 logprobs", Draw { top_p: 0.9, ..drawn }, Some(20)),
    ];
    for &t in rows {
        let logits = Tensor::random(&bench.device, &[t, vocab], 3.0, 1);
        let sizes = SampleSizes { max_rows: t, vocab };
        let mut scratch = SampleScratch::new(&bench.device, sizes).expect("pinned memory");
        for (kind, draw, top) in kinds {
            let requests = vec![RowRequest { top, want: Want::Draw(draw) }; t];
            let work = Work::Bytes((4 * t * vocab) as f64);
            bench.line("sample", &format!("T {t} V {vocab} {kind}"), work, || {
                sample(&logits, &requests, &mut scratch);
            });
        }
    }
}
