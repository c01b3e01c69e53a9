//! Attention over pages: against the f64 twin, in chunks, in company, in graphs, with bugs planted.

use crate::common::*;
use crate::device::{SEEDS, emulated};
use crate::mutants::{Run, assert_noticed};
use crate::naive;
use crate::packed::Packed;
use crate::pages::Pages;
use kernels::ops::*;
use kernels::*;
use std::ops::Range;

/// Slots of a block of memory.
const BLOCK: usize = 5;

/// Sequences and what they attend with.
#[derive(Clone)]
struct Case {
    dtype: DType,
    heads: usize,
    kv_heads: usize,
    d: usize,
    dv: usize,
    /// How many positions of each sequence are cached, how many tokens are new.
    items: Vec<[usize; 2]>,
    /// Within this of the twin.
    tolerance: f64,
    /// Keys that a row sees at most, where not all.
    window: Option<usize>,
    /// Of each head, where there are any.
    sinks: Option<Vec<f32>>,
}

/// One latent for all heads where there is one key head and values are shorter than keys.
struct Data {
    pages: Pages,
    q: Host,
    keys: Host,
    /// None: the first values of a key.
    values: Option<Host>,
}

pub const SCALE: f32 = 0.3;

impl Case {
    fn is_latent(&self) -> bool {
        self.d != self.dv
    }

    fn num_tokens(&self) -> usize {
        self.items.iter().map(|[_, new]| new).sum()
    }

    fn data(&self) -> Data {
        let pages = Pages::new(&self.items, BLOCK);
        let shape = [self.num_tokens(), self.heads, self.d];
        // Queries that are sure of some keys.
        let q: Vec<f32> = values(1, shape.iter().product()).iter().map(|v| 1.5 * v).collect();
        Data {
            q: Host::new(DType::F32, &shape, &q),
            keys: self.cache(&pages, self.d, 2),
            values: (!self.is_latent()).then(|| self.cache(&pages, self.dv, 3)),
            pages,
        }
    }

    /// Drawn by slot; slots that no position uses hold NaN, which must not show.
    fn cache(&self, pages: &Pages, width: usize, seed: u64) -> Host {
        let row = self.kv_heads * width;
        let mut numbers = values(seed, pages.num_slots * row);
        let ragged = pages.ragged(BLOCK);
        let mut unused: std::collections::BTreeSet<usize> = (0..pages.num_slots).collect();
        for (item, [old, new]) in self.items.iter().enumerate() {
            (0..old + new).for_each(|p| {
                unused.remove(&ragged.slot(item, p));
            });
        }
        for slot in unused {
            numbers[slot * row..(slot + 1) * row].fill(f32::NAN);
        }
        Host::new(self.dtype, &[pages.num_slots, self.kv_heads, width], &numbers)
    }

    /// What the rows of some tokens of an item should be.
    fn twin(&self, data: &Data, item: usize, tokens: Range<usize>) -> Vec<f64> {
        let Self { heads, kv_heads, d, dv, .. } = *self;
        let ragged = data.pages.ragged(BLOCK);
        let values = data.values.as_ref().unwrap_or(&data.keys);
        let value_width = if self.is_latent() { d } else { dv };
        let start = data.pages.cu_seqlens[item] as usize;
        let mut out = Vec::new();
        for (token, head) in tokens.flat_map(|t| (0..heads).map(move |h| (t, h))) {
            let seen = self.items[item][0] + token + 1;
            let seen = seen.saturating_sub(self.window.unwrap_or(seen))..seen;
            let at = |p: usize| ragged.slot(item, p) * kv_heads + head / (heads / kv_heads);
            let key_rows: Vec<&[f64]> = seen.clone().map(|p| &data.keys.values[at(p) * d..][..d]).collect();
            let value_rows: Vec<&[f64]> = seen.map(|p| &values.values[at(p) * value_width..][..dv]).collect();
            let q = self.as_taken(&data.q.values[((start + token) * heads + head) * d..][..d]);
            let sink = self.sinks.as_ref().map(|sinks| f64::from(sinks[head]));
            out.extend(naive::attend_with_sink(&q, &key_rows, &value_rows, f64::from(SCALE), sink));
        }
        out
    }

    /// Tensor cores take queries in the type of the cache.
    fn as_taken(&self, q: &[f64]) -> Vec<f64> {
        let q: Vec<f32> = q.iter().map(|&v| v as f32).collect();
        Host::new(self.dtype, &[q.len()], &q).values
    }

    fn sizes(&self, max_context: usize) -> AttentionSizes {
        let Self { heads, kv_heads, d: key_dim, dv: value_dim, .. } = *self;
        AttentionSizes { heads, kv_heads, key_dim, value_dim, max_context, max_tokens: self.num_tokens() }
    }

    fn scratch(&self, device: &Device, max_context: usize) -> AttentionScratch {
        let scratch = AttentionScratch::new(device, self.sizes(max_context));
        if self.window.is_some() { scratch.with_window(device) } else { scratch }
    }

    /// Some tokens of one item, or of all items: their rows as bytes.
    fn run(
        &self,
        device: &Device,
        data: &Data,
        part: Option<(usize, Range<usize>)>,
    ) -> Result<Vec<u8>, Error> {
        let pages = &data.pages;
        let longest = self.items.iter().map(|[old, new]| old + new).max().expect("items");
        let mut scratch = self.scratch(device, longest);
        let Some((item, tokens)) = part else {
            return self.attend(device, data, &pages.ragged(BLOCK), 0..self.num_tokens(), &mut scratch);
        };
        let start = pages.cu_seqlens[item] as usize;
        let blocks = pages.cu_blocks[item] as usize..pages.cu_blocks[item + 1] as usize;
        let (cu_seqlens, cu_blocks) = ([0, tokens.len() as u32], [0, blocks.len() as u32]);
        let context_lens = [(self.items[item][0] + tokens.start) as u32];
        let ragged = Ragged {
            cu_seqlens: (&cu_seqlens).into(),
            context_lens: (&context_lens).into(),
            block_tables: (&pages.block_tables[blocks]).into(),
            cu_blocks: (&cu_blocks).into(),
            block_size: BLOCK,
            selected: None,
        };
        self.attend(device, data, &ragged, start + tokens.start..start + tokens.end, &mut scratch)
    }

    fn attend(
        &self,
        device: &Device,
        data: &Data,
        ragged: &Ragged,
        tokens: Range<usize>,
        scratch: &mut AttentionScratch,
    ) -> Result<Vec<u8>, Error> {
        let width = self.heads * self.d;
        let q: Vec<f32> =
            data.q.values[tokens.start * width..tokens.end * width].iter().map(|&v| v as f32).collect();
        let q = Tensor::from_f32(device, &[tokens.len(), self.heads, self.d], &q);
        let mut out = Tensor::unwritten(device, DType::F32, &[tokens.len(), self.heads, self.dv]);
        let mut keys = data.keys.tensor(device);
        match &data.values {
            Some(values) => {
                let sinks = self.sinks.as_ref().map(|sinks| Tensor::from_f32(device, &[self.heads], sinks));
                let softmax = Softmax { scale: SCALE, window: self.window, sinks: sinks.as_ref() };
                gqa_attention(&q, &keys, &values.tensor(device), ragged, softmax, scratch, &mut out)
            }
            None => {
                keys.reshape(&[data.pages.num_slots, self.d]);
                mla_attention(&q, &keys, self.dv, ragged, SCALE, scratch, &mut out);
            }
        }
        out.read()
    }

    /// Against the twin, and then: every part of every item has the bits that it has in company.
    fn check(&self, device: &Device, parts: &[(usize, Range<usize>)]) {
        let what = format!("{} {} heads over {} of {}", self.dtype, self.heads, self.kv_heads, self.d);
        let data = self.data();
        let before = device.allocated_bytes();
        let scratch = self.scratch(device, 1000);
        let allocated = device.allocated_bytes() - before;
        let sizes = self.sizes(1000);
        let of_window = self.window.map_or(0, |_| AttentionScratch::window_bytes(device, sizes));
        assert_eq!(allocated, AttentionScratch::bytes(device, sizes) + of_window, "{what}");
        drop(scratch);
        let found = self.run(device, &data, None).expect("a result");
        let twin: Vec<f64> =
            (0..self.items.len()).flat_map(|item| self.twin(&data, item, 0..self.items[item][1])).collect();
        assert_close(&floats(&found), &twin, self.tolerance, &what);
        let row = self.heads * self.dv * 4;
        let other = emulated(SEEDS[1]);
        for (item, tokens) in parts {
            let alone = self.run(&other, &data, Some((*item, tokens.clone()))).expect("a result");
            let start = data.pages.cu_seqlens[*item] as usize + tokens.start;
            assert!(
                alone == found[start * row..(start + tokens.len()) * row],
                "{what}: {tokens:?} of {item}"
            );
        }
    }
}

pub fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

fn rows_case(dtype: DType, [heads, kv_heads, d, dv]: [usize; 4]) -> Case {
    let items = vec![[0, 1], [3, 7], [31, 2], [32, 1], [150, 6]];
    let tolerance = if dtype == DType::F32 { 3e-6 } else { 3e-3 };
    Case { dtype, heads, kv_heads, d, dv, items, tolerance, window: None, sinks: None }
}

/// Widths that no tensor core takes, and caches in f32.
#[test]
fn rows_of_any_width() {
    let device = emulated(SEEDS[0]);
    let parts = [(0, 0..1), (1, 0..7), (1, 2..3), (2, 1..2), (4, 0..4), (4, 4..6)];
    for (dtype, sizes) in [
        (DType::F32, [3, 3, 7, 7]),
        (DType::BF16, [6, 2, 40, 40]),
        (DType::F16, [4, 1, 33, 33]),
        (DType::F32, [3, 1, 21, 17]),
        (DType::F16, [5, 1, 72, 65]),
    ] {
        rows_case(dtype, sizes).check(&device, &parts);
    }
}

/// Grouped queries on tensor cores: blocks of 16 rows and of 64, whole and cut into ranges.
#[test]
fn grouped_queries_on_tensor_cores() {
    let device = emulated(SEEDS[0]);
    let case = |dtype, sizes: [usize; 3], items: &[[usize; 2]]| {
        let [heads, kv_heads, d] = sizes;
        Case {
            dtype,
            heads,
            kv_heads,
            d,
            dv: d,
            items: items.to_vec(),
            tolerance: 4e-3,
            window: None,
            sinks: None,
        }
    };
    // One token each, of which the third has three ranges; then chunks.
    let items = [[0, 1], [63, 1], [1100, 1], [64, 1]];
    case(DType::BF16, [6, 2, 64], &items).check(&device, &[(0, 0..1), (2, 0..1), (3, 0..1)]);
    let items = [[3, 40], [0, 1], [501, 29], [62, 5]];
    let parts = [(0, 0..13), (0, 13..40), (0, 39..40), (2, 0..11), (2, 11..12), (2, 10..29), (3, 1..4)];
    case(DType::F16, [4, 1, 128], &items).check(&device, &parts);
    // Heads that do not fit into a block side by side, and more than a block.
    case(DType::BF16, [21, 3, 64], &[[5, 11], [130, 2]]).check(&device, &[(0, 3..4), (0, 4..11), (1, 1..2)]);
    case(DType::F16, [70, 1, 64], &[[5, 2], [80, 1]]).check(&device, &[(0, 0..1), (1, 0..1)]);
}

/// Windows and sinks on tensor cores and without them: one token each, chunks, ranges that are cut; windows that begin within a tile and a range, and
/// rows of a unit of which some see nothing of its first tile or range.
#[test]
fn windows_and_sinks() {
    let device = emulated(SEEDS[0]);
    let case = |dtype, [heads, kv_heads, d]: [usize; 3], window, items: &[[usize; 2]]| {
        let tolerance = if dtype == DType::F32 { 3e-6 } else { 4e-3 };
        let sinks = Some((0..heads).map(|head| [-30.0, 0.7, 4.0, 60.0][head % 4]).collect());
        let items = items.to_vec();
        Case { dtype, heads, kv_heads, d, dv: d, items, tolerance, window, sinks }
    };
    let items = [[0, 1], [130, 1], [1100, 1], [63, 1]];
    let parts = [(0, 0..1), (1, 0..1), (2, 0..1), (3, 0..1)];
    case(DType::BF16, [6, 2, 64], Some(65), &items).check(&device, &parts);
    case(DType::F16, [4, 2, 128], Some(700), &items).check(&device, &parts);
    case(DType::BF16, [6, 2, 64], None, &items).check(&device, &parts);
    let items = [[3, 40], [630, 29], [62, 5]];
    let parts = [(0, 0..13), (0, 39..40), (1, 0..11), (1, 11..12), (1, 10..29), (2, 1..4)];
    case(DType::BF16, [4, 1, 64], Some(128), &items).check(&device, &parts);
    case(DType::F16, [8, 1, 64], Some(1), &[[3, 9], [70, 4]]).check(&device, &[(0, 2..3), (1, 0..4)]);
    case(DType::F32, [3, 1, 21], Some(37), &[[0, 40], [100, 3]])
        .check(&device, &[(0, 30..34), (0, 39..40), (1, 1..2)]);
}

/// As below, where most rows of units see nothing of their first range.
#[test]
fn how_windows_are_cut_changes_nothing() {
    let case = Case {
        dtype: DType::BF16,
        heads: 2,
        kv_heads: 1,
        d: 64,
        dv: 64,
        items: vec![[1530, 1], [1140, 30], [513, 1], [1600, 4]],
        tolerance: 4e-3,
        window: Some(640),
        sinks: Some(vec![0.5, 2.0]),
    };
    let data = case.data();
    let of = |num_sms| case.run(&crate::device::sized(1, num_sms), &data, None).expect("a result");
    let whole = of(1);
    let twin: Vec<f64> = (0..4).flat_map(|item| case.twin(&data, item, 0..case.items[item][1])).collect();
    assert_close(&floats(&whole), &twin, case.tolerance, "windows of 640");
    assert!(of(64) == whole);
    assert!(of(2) == whole);
}

/// One latent for 16 heads, and for as many as no block holds.
#[test]
fn latents_on_tensor_cores() {
    let device = emulated(SEEDS[0]);
    let case = |dtype, heads, items: &[[usize; 2]]| Case {
        dtype,
        heads,
        kv_heads: 1,
        d: 576,
        dv: 512,
        items: items.to_vec(),
        tolerance: 4e-3,
        window: None,
        sinks: None,
    };
    case(DType::BF16, 16, &[[530, 1], [0, 1], [70, 7]]).check(&device, &[(0, 0..1), (2, 0..1), (2, 2..7)]);
    case(DType::F16, 3, &[[510, 6]]).check(&device, &[(0, 0..1), (0, 2..3), (0, 1..6)]);
}

/// Lists are made again for each replay; arrays lie where they lay.
#[test]
fn replays_follow_their_arrays() {
    let device = emulated(SEEDS[0]);
    let Device::Cuda(cuda) = &device else { panic!("not a GPU") };
    let case = |items: &[[usize; 2]]| Case {
        dtype: DType::BF16,
        heads: 4,
        kv_heads: 2,
        d: 64,
        dv: 64,
        items: items.to_vec(),
        tolerance: 4e-3,
        window: None,
        sinks: None,
    };
    // As many items and tokens, ranges that are cut and others that are not.
    let steps = [[[600, 1], [3, 1]], [[5, 1], [0, 1]], [[80, 1], [1200, 1]]].map(|items| case(&items));
    let capacity = 600;
    let [mut cu_seqlens, mut context_lens, mut block_tables, mut cu_blocks] =
        [3, 2, capacity, 3].map(|len| Indices::new(&device, len));
    let data = steps.each_ref().map(Case::data);
    let slots = data.iter().map(|data| data.pages.num_slots).max().expect("steps");
    let zeros = |dtype, shape: &[usize]| Tensor::zeros(&device, dtype, shape);
    let [mut keys, mut values] = [0; 2].map(|_| zeros(DType::BF16, &[slots, 2, 64]));
    let [mut q, mut out] = [0; 2].map(|_| zeros(DType::F32, &[2, 4, 64]));
    let mut scratch = AttentionScratch::new(&device, steps[0].sizes(1500));
    let mut graph = None;
    for (case, data) in steps.iter().zip(&data) {
        let narrow = |host: &Host| host.values.iter().map(|&v| v as f32).collect::<Vec<_>>();
        q.write_f32(0, &narrow(&data.q));
        keys.write_f32(0, &narrow(&data.keys));
        values.write_f32(0, &narrow(data.values.as_ref().expect("not latent")));
        cu_seqlens.set(&data.pages.cu_seqlens);
        context_lens.set(&data.pages.context_lens);
        block_tables.set(&data.pages.block_tables);
        cu_blocks.set(&data.pages.cu_blocks);
        let ragged = Ragged {
            cu_seqlens: (&cu_seqlens).into(),
            context_lens: (&context_lens).into(),
            block_tables: (&block_tables).into(),
            cu_blocks: (&cu_blocks).into(),
            block_size: BLOCK,
            selected: None,
        };
        let graph = *graph.get_or_insert_with(|| {
            gqa_attention(&q, &keys, &values, &ragged, SCALE, &mut scratch, &mut out);
            let step = || gqa_attention(&q, &keys, &values, &ragged, SCALE, &mut scratch, &mut out);
            cuda.capture(step).expect("a graph")
        });
        scratch.plan(&ragged);
        cuda.replay(graph);
        let eager = case.run(&device, data, None).expect("a result");
        assert!(out.read().expect("a result") == eager, "{:?}", case.items);
    }
}

/// Work that is cut and work that is not, by the size of the device: the same bits.
#[test]
fn how_work_is_cut_changes_nothing() {
    let case = Case {
        dtype: DType::BF16,
        heads: 2,
        kv_heads: 1,
        d: 64,
        dv: 64,
        items: vec![[1500, 1], [700, 30], [513, 1]],
        tolerance: 4e-3,
        window: None,
        sinks: None,
    };
    let data = case.data();
    let of = |num_sms| case.run(&crate::device::sized(1, num_sms), &data, None).expect("a result");
    let whole = of(1);
    assert!(of(64) == whole);
    assert!(of(2) == whole);
}

/// Another rule of ranges is as near the twin, and who computes what changes no bit of it either.
#[test]
fn other_ranges() {
    let case = Case {
        dtype: DType::BF16,
        heads: 2,
        kv_heads: 1,
        d: 64,
        dv: 64,
        items: vec![[1500, 1], [100, 30]],
        tolerance: 4e-3,
        window: None,
        sinks: None,
    };
    let data = case.data();
    let of = |num_sms, rule| {
        let device = crate::device::sized(1, num_sms);
        let mut scratch = AttentionScratch::with_ranges(&device, case.sizes(1501), rule);
        case.attend(&device, &data, &data.pages.ragged(BLOCK), 0..31, &mut scratch).expect("a result")
    };
    // Ranges of 256 and of 128 keys.
    let rule = RangeRule { shortest: 128, most: 8 };
    let whole = of(1, rule);
    let twin: Vec<f64> = (0..2).flat_map(|item| case.twin(&data, item, 0..case.items[item][1])).collect();
    assert_close(&floats(&whole), &twin, case.tolerance, "ranges of 128 and more");
    assert!(of(64, rule) == whole);
    assert!(of(64, RangeRule::default()) != whole, "a rule that decides nothing");
}

#[test]
fn bugs_in_tiles_are_noticed() {
    let case = |items: &[[usize; 2]]| Case {
        dtype: DType::BF16,
        heads: 6,
        kv_heads: 2,
        d: 64,
        dv: 64,
        items: items.to_vec(),
        tolerance: 4e-3,
        window: None,
        sinks: None,
    };
    let (one, chunk) = (case(&[[0, 1], [600, 1], [63, 1]]), case(&[[530, 30]]));
    let (one_data, chunk_data) = (one.data(), chunk.data());
    let few = |device: &Device| one.run(device, &one_data, None);
    let many = |device: &Device| chunk.run(device, &chunk_data, None);
    // More units than blocks; few units, whose ranges are cut.
    let several_units = case(&[[600, 130]]);
    let several_data = several_units.data();
    let several = |device: &Device| several_units.run(device, &several_data, None);
    let cut = case(&[[530, 7]]);
    let cut_data = cut.data();
    let chunk_cut = |device: &Device| cut.run(device, &cut_data, None);
    let cases: [(&'static str, &'static str, Run); 15] = [
        // Barriers and waits.
        ("        __syncthreads();\n        block.begin_tiles", "        block.begin_tiles", &several),
        ("cp_async_wait<STAGES - 2>();\n            __syncthreads();", "cp_async_wait<STAGES - 2>();", &many),
        ("cp_async_wait<STAGES - 2>();", "cp_async_wait<STAGES - 1>();", &many),
        (
            "            __syncthreads();\n#pragma unroll\n            for (int other",
            "#pragma unroll\n            for (int other",
            &few,
        ),
        (
            "        soften(first, s, scores);\n        __syncthreads();",
            "        soften(first, s, scores);",
            &many,
        ),
        ("maxima[row + 8] = sums[2];\n        __syncthreads();", "maxima[row + 8] = sums[2];", &many),
        (
            "        __syncthreads();\n        if (thread < M) row_max[parity",
            "        if (thread < M) row_max[parity",
            &several,
        ),
        // Who sees what.
        ("pair + j % 2, seen[j / 2], s);", "pair + j % 2, seen[j / 2] + 1, s);", &many),
        ("bool there = position < end_key;", "bool there = position <= end_key;", &few),
        ("key_head = place / s.head_blocks;", "key_head = place % s.head_blocks;", &few),
        // Softmax.
        ("shrink[row + half * 8] = fast_exp2(before - after);", "shrink[row + half * 8] = 1.0f;", &many),
        ("if (thread < M) row_max[thread] = LOWEST;", "if (thread < M - 1) row_max[thread] = LOWEST;", &few),
        // Places.
        ("key_group * OWN_KEYS * Tile<D>::STRIDE;", "(key_group * OWN_KEYS ^ 8) * Tile<D>::STRIDE;", &few),
        // Ranges.
        (
            "if (tile + 1 < num_tiles && (first + KEYS) % range_len) continue;",
            "if (tile + 1 < num_tiles) continue;",
            &several,
        ),
        ("split.z + range * split.w", "split.z + range", &chunk_cut),
    ];
    assert_noticed(&cases);
}

#[test]
fn bugs_in_rows_are_noticed() {
    let case = rows_case(DType::BF16, [6, 2, 40, 40]);
    let data = case.data();
    let paged = |device: &Device| case.run(device, &data, None);
    let segments = Packed { heads: 3, d: 9, cu_seqlens: vec![0, 1, 40, 66], multiply_as: DType::F32 };
    let qkv = segments.qkv();
    let packed = |device: &Device| segments.run(device, &qkv, 0..3);
    let cases: [(&'static str, &'static str, Run); 7] = [
        ("slots[mine + lane] = slot;\n        __syncwarp();", "slots[mine + lane] = slot;", &paged),
        ("if (row >= s.tokens * s.heads) return;", "if (row > s.tokens * s.heads) return;", &packed),
        ("context_lens[item] + token - start + 1", "context_lens[item] + token - start", &paged),
        ("if (start <= token) low", "if (start < token) low", &packed),
        ("int count = min(32, visible - first);", "int count = 32;", &packed),
        ("values[i] *= shrink;", "values[i] *= 1.0f;", &paged),
        ("key_head = head / s.rep;", "key_head = head % (s.heads / s.rep);", &paged),
    ];
    assert_noticed(&cases);
}
