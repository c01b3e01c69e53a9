//! A step allocates nothing: every op runs once to warm up and then again under an allocator that counts. Without the usual
//! harness, whose own thread allocates when it likes.

use kernels::ops::*;
use kernels::*;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all calls go to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static GLOBAL: Counting = Counting;

/// One layer of everything, for `t` tokens.
struct Step {
    table: Tensor,
    ids: Vec<u32>,
    x: Tensor,
    normed: Tensor,
    weight: Tensor,
    heads: [Tensor; 2],
    matrix: Matrix,
    batch: MatrixBatch,
    wide: Tensor,
    narrow: Tensor,
    rope: RopeTable,
    positions: Vec<u32>,
    cache: Tensor,
    attention: AttentionScratch,
    latent: AttentionScratch,
    qkv: Tensor,
    picture: AttentionScratch,
    experts: Experts,
    scratch: MoeScratch,
    chosen: Tensor,
    weights: Tensor,
    logits: Tensor,
    places: Tensor,
    /// A latent of 8 with a rotated part of 16, its norm, and room for it.
    kv: Tensor,
    latent_norm: Tensor,
    latents: Tensor,
    latent_cache: KvTensor,
}

const H: usize = 3;
const D: usize = 24;
const WIDTH: usize = H * D;

impl Step {
    fn new(device: &Device, stored_as: WeightType, t: usize) -> Self {
        let zeros = |shape: &[usize]| Tensor::zeros(device, DType::F32, shape);
        let sizes = AttentionSizes {
            heads: H,
            kv_heads: H,
            key_dim: D,
            value_dim: D,
            max_context: 2000,
            max_tokens: t,
        };
        Self {
            table: Tensor::random(device, &[50, WIDTH], 1.0, 1),
            ids: (0..t as u32).map(|t| t % 50).collect(),
            x: zeros(&[t, WIDTH]),
            normed: zeros(&[t, WIDTH]),
            weight: Tensor::random(device, &[WIDTH], 1.0, 2),
            heads: [zeros(&[t, H, D]), zeros(&[t, H, D])],
            matrix: Matrix::random(device, stored_as, 2 * WIDTH, WIDTH, 0.1, 3),
            batch: MatrixBatch::random(device, stored_as, [H, D, D], 0.1, 4),
            wide: zeros(&[t, 2 * WIDTH]),
            narrow: zeros(&[t, WIDTH]),
            rope: RopeTable::new(device, 2000, 8, &|p, i| {
                ((p as f32 + i as f32).cos(), (p as f32 + i as f32).sin())
            }),
            positions: (1900..1900 + t as u32).collect(),
            cache: Tensor::zeros(device, DType::BF16, &[2000, H, D]),
            attention: AttentionScratch::new(device, sizes),
            latent: AttentionScratch::new(device, AttentionSizes { kv_heads: 1, ..sizes }),
            qkv: Tensor::random(device, &[t, 3, H, D], 1.0, 5),
            picture: AttentionScratch::new(device, AttentionSizes { max_context: 0, ..sizes }),
            experts: Experts::random(device, stored_as, [8, WIDTH, 40], 0.1, 6),
            scratch: MoeScratch::new(device, t, [8, WIDTH, 40], 2),
            chosen: Tensor::zeros(device, DType::I32, &[t, 2]),
            weights: zeros(&[t, 2]),
            logits: Tensor::random(device, &[t, 8], 1.0, 7),
            places: Tensor::random(device, &[3, 3, WIDTH], 1.0, 8),
            kv: Tensor::random(device, &[t, D], 1.0, 9),
            latent_norm: Tensor::random(device, &[8], 1.0, 10),
            latents: zeros(&[t, 8]),
            latent_cache: KvTensor::zeros(
                device,
                KvType::Int8,
                2000,
                KvShape::Latent { rank: 8, rotated: 16 },
            ),
        }
    }

    fn run(&mut self) {
        let t = self.ids.len();
        embedding(&self.table, &self.ids, &mut self.x);
        rms_norm(&self.x, &self.weight, 1e-6, &mut self.normed);
        add_rms_norm(&mut self.x, &self.normed, &self.weight, 1e-6, &mut self.narrow);
        layer_norm(&self.x, &self.weight, &self.weight, 1e-6, &mut self.normed);
        linear(&self.normed, &self.matrix, None, Activation::GeluErf, &mut self.wide);
        silu_mul(&self.wide, &mut self.narrow);
        add(&mut self.x, &self.narrow);
        let [q, k] = &mut self.heads;
        heads_linear(&*k, &self.batch, &mut *q);
        copy_slice(q, 0, k, 4, 9);
        rope(q, 3, &self.rope, &self.positions, RopeLayout::Half);
        rope_heads(k, 1..2, &self.rope, &self.positions, RopeLayout::Interleaved);
        store_rows(k, &mut self.cache, &self.positions);
        let rows = LatentRows {
            kv: &mut self.kv,
            norm: &self.latent_norm,
            eps: 1e-6,
            q,
            absorbed: k,
            scratch: &mut self.latents,
        };
        let rotation =
            Rotation { table: &self.rope, positions: (&self.positions).into(), layout: RopeLayout::Half };
        prepare_latents(rows, &rotation, &mut self.latent_cache, &self.positions);
        let (cu_seqlens, blocks) = ([0, t as u32], std::array::from_fn::<u32, 40, _>(|i| i as u32));
        let ragged = Ragged {
            cu_seqlens: (&cu_seqlens).into(),
            context_lens: (&[1900]).into(),
            block_tables: (&blocks).into(),
            cu_blocks: (&[0, 40]).into(),
            block_size: 50,
            selected: None,
        };
        gqa_attention(q, &self.cache, &self.cache, &ragged, 0.2, &mut self.attention, k);
        self.cache.reshape(&[2000 * H, D]);
        mla_attention(q, &self.cache, D, &ragged, 0.2, &mut self.latent, k);
        self.cache.reshape(&[2000, H, D]);
        packed_attention(&self.qkv, &cu_seqlens, 0.2, &mut self.picture, q);
        let config = RouterConfig {
            scoring: Scoring::Sigmoid,
            top_k: 2,
            num_groups: 4,
            top_groups: 2,
            group_score: GroupScore::SumOfTopTwo,
            normalize: true,
            scale: 1.0,
        };
        route(&self.logits, None, &config, &mut self.chosen, &mut self.weights);
        moe(&self.x, &self.experts, &self.chosen, &self.weights, &mut self.scratch, &mut self.narrow);
        gather_rows(&self.table, &self.ids, &mut self.normed);
        scatter_rows(&self.table, &[1], &mut self.normed, &[0]);
        self.narrow.set_rows(1);
        interpolate_positions(&self.places, 1, 1, &mut self.narrow);
        interpolate_corners(&self.places, 1, 1, &mut self.narrow);
        self.narrow.set_rows(t);
    }
}

fn main() {
    for threads in [1, 3] {
        let device = Device::cpu(Some(threads));
        for (t, stored_as) in [1, 13, 99].into_iter().flat_map(|t| WeightType::ALL.map(|ty| (t, ty))) {
            let mut step = Step::new(&device, stored_as, t);
            step.run();
            let before = ALLOCATIONS.load(Ordering::SeqCst);
            step.run();
            assert_eq!(
                ALLOCATIONS.load(Ordering::SeqCst) - before,
                0,
                "{threads} threads, {t} tokens, {stored_as}"
            );
        }
    }
}
