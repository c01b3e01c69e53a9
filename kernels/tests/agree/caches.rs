//! Attention over caches of eight bits, and latent attention in its expanded form: against f64 twins, and each row in any company.

use crate::attention::{BLOCK, ITEMS, expected, sizes_of, used};
use crate::common::*;
use crate::naive;
use crate::pages::Pages;
use kernels::ops::*;
use kernels::*;

const SCALE: f32 = 0.3;

/// What an int8 cache holds of a part: levels of the largest magnitude / 127.
fn kept_part(part: &[f32]) -> Vec<f64> {
    let scale = part.iter().fold(0.0, |max: f32, v| max.max(v.abs())) / 127.0;
    part.iter().map(|v| f64::from(scale) * f64::from((v * (1.0 / scale)).round_ties_even())).collect()
}

/// A row for each slot: the rows themselves, and what an int8 cache holds. Slots that no position uses are not numbers.
struct Rows {
    values: Vec<f32>,
    kept: Vec<Vec<f64>>,
}

impl Rows {
    fn new(pages: &Pages, parts: &[usize], seed: u64) -> Self {
        let width: usize = parts.iter().sum();
        let mut values = values(seed, pages.num_slots * width);
        let used = used(pages);
        for (slot, row) in values.chunks_mut(width).enumerate() {
            // Parts of different sizes, so that their scales differ.
            let mut rest = &mut row[..];
            for (i, &len) in parts.iter().enumerate() {
                let (part, after) = rest.split_at_mut(len);
                part.iter_mut().for_each(|v| *v *= 1.0 + i as f32);
                rest = after;
            }
            if !used.contains(&slot) {
                row.fill(f32::NAN);
            }
        }
        let kept = values.chunks(width).map(|row| {
            let mut rest = row;
            let parts = parts.iter().map(|&len| {
                let (part, after) = rest.split_at(len);
                rest = after;
                kept_part(part)
            });
            parts.collect::<Vec<_>>().concat()
        });
        Self { kept: kept.collect(), values }
    }

    fn store(&self, device: &Device, stored_as: KvType, shape: KvShape) -> KvTensor {
        let slots = self.kept.len();
        let before = device.allocated_bytes();
        let mut cache = KvTensor::zeros(device, stored_as, slots, shape);
        assert_eq!(
            device.allocated_bytes() - before,
            slots as u64 * KvTensor::bytes_per_slot(stored_as, shape)
        );
        let rows = Tensor::from_f32(device, &[slots, shape.row_len()], &self.values);
        store_kv(&rows, &mut cache, &(0..slots as u32).collect::<Vec<_>>());
        // A row that goes nowhere changes nothing.
        let nothing = Tensor::zeros(device, DType::F32, &[1, shape.row_len()]);
        store_kv(&nothing, &mut cache, &[NOWHERE]);
        cache
    }

    /// What a cache of this type holds of a slot.
    fn row(&self, stored_as: KvType, slot: usize) -> Vec<f64> {
        let width = self.kept[0].len();
        match stored_as {
            KvType::Int8 => self.kept[slot].clone(),
            KvType::Float(dtype) => Host::new(dtype, &[width], &self.values[slot * width..][..width]).values,
        }
    }
}

#[test]
fn grouped_queries_over_eight_bits() {
    let pages = Pages::new(&ITEMS, BLOCK);
    let t = *pages.cu_seqlens.last().unwrap() as usize;
    for (heads, kv_heads, d, dv) in [(6, 2, 40, 24), (5, 1, 33, 35), (12, 2, 17, 64)] {
        let q = Host::random(DType::F32, &[t, heads, d], 1);
        let (keys, values) =
            (Rows::new(&pages, &vec![d; kv_heads], 2), Rows::new(&pages, &vec![dv; kv_heads], 3));
        let expected = expected(&pages, &q.rows(), [heads, kv_heads], f64::from(SCALE), |slot, head| {
            (keys.kept[slot][head * d..][..d].to_vec(), values.kept[slot][head * dv..][..dv].to_vec())
        });
        for device in devices() {
            let sizes = sizes_of([heads, kv_heads, d, dv], t);
            let mut scratch = AttentionScratch::new(&device, sizes);
            let mut out = Tensor::zeros(&device, DType::F32, &[t, heads, dv]);
            let keys = keys.store(&device, KvType::Int8, KvShape::Heads { count: kv_heads, dim: d });
            let values = values.store(&device, KvType::Int8, KvShape::Heads { count: kv_heads, dim: dv });
            gqa_attention(
                &q.tensor(&device),
                &keys,
                &values,
                &pages.ragged(BLOCK),
                SCALE,
                &mut scratch,
                &mut out,
            );
            assert_close(out.as_f32(), &expected, 3e-6, &format!("{device:?} {heads} heads"));
        }
    }
}

#[test]
fn latents_of_eight_bits() {
    let pages = Pages::new(&ITEMS, BLOCK);
    let t = *pages.cu_seqlens.last().unwrap() as usize;
    for (heads, rank, rotated) in [(3, 17, 4), (16, 64, 8), (7, 5, 19)] {
        let d = rank + rotated;
        let q = Host::random(DType::F32, &[t, heads, d], 1);
        let rows = Rows::new(&pages, &[rank, rotated], 2);
        let expected = expected(&pages, &q.rows(), [heads, 1], f64::from(SCALE), |slot, _| {
            (rows.kept[slot].clone(), rows.kept[slot][..rank].to_vec())
        });
        for device in devices() {
            let sizes = sizes_of([heads, 1, d, rank], t);
            let mut scratch = AttentionScratch::new(&device, sizes);
            let mut out = Tensor::zeros(&device, DType::F32, &[t, heads, rank]);
            let cache = rows.store(&device, KvType::Int8, KvShape::Latent { rank, rotated });
            let ragged = pages.ragged(BLOCK);
            mla_attention(&q.tensor(&device), &cache, rank, &ragged, SCALE, &mut scratch, &mut out);
            assert_close(out.as_f32(), &expected, 3e-6, &format!("{device:?} {heads} heads"));
        }
    }
}

/// Weights of latent attention, and what is cached.
struct Latent {
    sizes: ExpandedSizes,
    rows: Rows,
    key_up: Vec<Host>,
    value_up: Vec<Host>,
}

impl Latent {
    fn new(pages: &Pages, [heads, rank, nope, rotated, value_dim]: [usize; 5]) -> Self {
        let max_tokens = *pages.cu_seqlens.last().unwrap() as usize;
        let up = |n: usize, seed: u64| -> Vec<Host> {
            (0..heads as u64).map(|head| Host::random(DType::BF16, &[n, rank], seed + head)).collect()
        };
        Self {
            sizes: ExpandedSizes {
                heads,
                rank,
                nope,
                rotated,
                value_dim,
                max_tokens,
                max_context: 0,
                cache: DType::F32,
            },
            rows: Rows::new(pages, &[rank, rotated], 2),
            key_up: up(nope, 100),
            value_up: up(value_dim, 200),
        }
    }

    fn query_dim(&self) -> usize {
        self.sizes.nope + self.sizes.rotated
    }

    /// Key and value of a head.
    fn expanded(&self, stored_as: KvType, slot: usize, head: usize) -> (Vec<f64>, Vec<f64>) {
        let row = self.rows.row(stored_as, slot);
        let (latent, rotated) = row.split_at(self.sizes.rank);
        let up =
            |w: &Host| naive::linear(&vec![latent.to_vec()], &w.rows(), None, Activation::None).remove(0);
        ([up(&self.key_up[head]), rotated.to_vec()].concat(), up(&self.value_up[head]))
    }

    fn run(&self, device: &Device, stored_as: KvType, q: &Tensor, ragged: &Ragged, out: &mut Tensor) {
        let ExpandedSizes { rank, rotated, .. } = self.sizes;
        let pack = |parts: &[Host]| {
            let views: Vec<HostTensor> = parts.iter().map(Host::view).collect();
            MatrixBatch::pack(device, DType::BF16, &views)
        };
        let (key_up, value_up) = (pack(&self.key_up), pack(&self.value_up));
        let cache = self.rows.store(device, stored_as, KvShape::Latent { rank, rotated });
        let before = device.allocated_bytes();
        let mut scratch = ExpandedScratch::new(device, self.sizes);
        assert_eq!(device.allocated_bytes() - before, ExpandedScratch::bytes(device, self.sizes));
        let latents = Latents { cache: cache.as_rows(), key_up: &key_up, value_up: &value_up };
        expanded_attention(q, latents, ragged, SCALE, &mut scratch, out);
    }
}

const TYPES: [KvType; 3] = [KvType::Float(DType::BF16), KvType::Float(DType::F32), KvType::Int8];

#[test]
fn expanded_latents() {
    let pages = Pages::new(&ITEMS, BLOCK);
    let t = *pages.cu_seqlens.last().unwrap() as usize;
    for (stored_as, sizes) in TYPES.into_iter().zip([[3, 17, 9, 4, 11], [2, 33, 24, 8, 40], [1, 5, 3, 7, 2]])
    {
        let latent = Latent::new(&pages, sizes);
        let (heads, value_dim) = (latent.sizes.heads, latent.sizes.value_dim);
        let q = Host::random(DType::F32, &[t, heads, latent.query_dim()], 1);
        let table: Vec<Vec<_>> = (0..pages.num_slots)
            .map(|slot| (0..heads).map(|head| latent.expanded(stored_as, slot, head)).collect())
            .collect();
        let expected = expected(&pages, &q.rows(), [heads, heads], f64::from(SCALE), |slot, head| {
            table[slot][head].clone()
        });
        for device in devices() {
            let mut out = Tensor::zeros(&device, DType::F32, &[t, heads, value_dim]);
            latent.run(&device, stored_as, &q.tensor(&device), &pages.ragged(BLOCK), &mut out);
            assert_close(out.as_f32(), &expected, 1e-5, &format!("{device:?} {stored_as:?}"));
        }
    }
}

/// Chunks of one sequence, and the same rows as an item among others, of which some do not take part.
#[test]
fn an_expanded_row_hangs_on_nothing_else() {
    let pages = Pages::new(&ITEMS, BLOCK);
    let t = *pages.cu_seqlens.last().unwrap() as usize;
    let latent = Latent::new(&pages, [3, 17, 9, 4, 11]);
    let (heads, width) = (latent.sizes.heads, latent.sizes.heads * latent.sizes.value_dim);
    let q = Host::random(DType::F32, &[t, heads, latent.query_dim()], 1);
    let rows_of = |device: &Device, rows: std::ops::Range<usize>| {
        let len = heads * latent.query_dim();
        let part: Vec<f32> = q.values[rows.start * len..rows.end * len].iter().map(|&v| v as f32).collect();
        Tensor::from_f32(device, &[rows.len(), heads, latent.query_dim()], &part)
    };
    let run = |device: &Device, rows: std::ops::Range<usize>, ragged: &Ragged| {
        let mut out = Tensor::from_f32(
            device,
            &[rows.len(), heads, latent.sizes.value_dim],
            &vec![0.5; rows.len() * width],
        );
        latent.run(device, KvType::Int8, &rows_of(device, rows), ragged, &mut out);
        bits(out.as_f32())
    };
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        let together = run(&device(isa, 1), 0..t, &pages.ragged(BLOCK));
        for threads in [1, 3] {
            let device = device(isa, threads);
            let selected = [true, false, true, false, true];
            let ragged = Ragged { selected: Some(&selected), ..pages.ragged(BLOCK) };
            let mixed = run(&device, 0..t, &ragged);
            for (item, selected) in selected.into_iter().enumerate() {
                let tokens =
                    pages.cu_seqlens[item] as usize * width..pages.cu_seqlens[item + 1] as usize * width;
                let expected = match selected {
                    true => together[tokens.clone()].to_vec(),
                    false => vec![0.5f32.to_bits(); tokens.len()],
                };
                assert!(mixed[tokens] == expected, "item {item} on {device:?}");
            }
            // The last item, in chunks.
            let (item, [old, new]) = (ITEMS.len() - 1, ITEMS[ITEMS.len() - 1]);
            let start = pages.cu_seqlens[item] as usize;
            let blocks = pages.cu_blocks[item] as usize..pages.cu_blocks[item + 1] as usize;
            for chunk in [0..1, 3..10, 0..new, new - 1..new] {
                let (cu_seqlens, cu_blocks) = ([0, chunk.len() as u32], [0, blocks.len() as u32]);
                let context_lens = [(old + chunk.start) as u32];
                let ragged = Ragged {
                    cu_seqlens: (&cu_seqlens).into(),
                    context_lens: (&context_lens).into(),
                    block_tables: (&pages.block_tables[blocks.clone()]).into(),
                    cu_blocks: (&cu_blocks).into(),
                    block_size: BLOCK,
                    selected: None,
                };
                let rows = start + chunk.start..start + chunk.end;
                let found = run(&device, rows.clone(), &ragged);
                assert!(found == together[rows.start * width..rows.end * width], "{rows:?} on {device:?}");
            }
        }
    }
}

/// Few rows over eight bits take another way than many.
#[test]
fn chunks_over_eight_bits() {
    let pages = Pages::new(&ITEMS, BLOCK);
    let (item, [old, new]) = (ITEMS.len() - 1, ITEMS[ITEMS.len() - 1]);
    let (heads, kv_heads, d) = (6, 2, 40);
    let rows = Rows::new(&pages, &vec![d; kv_heads], 2);
    let q = values(1, new * heads * d);
    let blocks = pages.cu_blocks[item] as usize..pages.cu_blocks[item + 1] as usize;
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        let run = |threads: usize, chunk: std::ops::Range<usize>| {
            let device = device(isa, threads);
            let sizes = sizes_of([heads, kv_heads, d, d], new);
            let mut scratch = AttentionScratch::new(&device, sizes);
            let cache = rows.store(&device, KvType::Int8, KvShape::Heads { count: kv_heads, dim: d });
            let shape = [chunk.len(), heads, d];
            let part = &q[chunk.start * heads * d..chunk.end * heads * d];
            let mut out = Tensor::zeros(&device, DType::F32, &shape);
            let (cu_seqlens, cu_blocks) = ([0, chunk.len() as u32], [0, blocks.len() as u32]);
            let context_lens = [(old + chunk.start) as u32];
            let ragged = Ragged {
                cu_seqlens: (&cu_seqlens).into(),
                context_lens: (&context_lens).into(),
                block_tables: (&pages.block_tables[blocks.clone()]).into(),
                cu_blocks: (&cu_blocks).into(),
                block_size: BLOCK,
                selected: None,
            };
            let q = Tensor::from_f32(&device, &shape, part);
            gqa_attention(&q, &cache, &cache, &ragged, SCALE, &mut scratch, &mut out);
            bits(out.as_f32())
        };
        let together = run(1, 0..new);
        for (threads, chunk) in [(1, 0..1), (3, 0..new), (1, 5..7), (2, 30..new)] {
            let expected = &together[chunk.start * heads * d..chunk.end * heads * d];
            assert!(run(threads, chunk.clone()) == expected, "{chunk:?} on {isa}");
        }
    }
}
