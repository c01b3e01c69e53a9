//! Attention over pages and packed segments: against the f64 twin, in chunks, in company, in graphs, with bugs planted.

use crate::common::*;
use crate::device::{SEEDS, emulated};
use crate::mutants::{Run, assert_noticed};
use crate::naive;
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
}

/// One latent for all heads where there is one key head and values are shorter than keys.
struct Data {
    pages: Pages,
    q: Host,
    keys: Host,
    /// None: the first values of a key.
    values: Option<Host>,
}

const SCALE: f32 = 0.3;

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
            let at = |p: usize| ragged.slot(item, p) * kv_heads + head / (heads / kv_heads);
            let key_rows: Vec<&[f64]> = (0..seen).map(|p| &data.keys.values[at(p) * d..][..d]).collect();
            let value_rows: Vec<&[f64]> =
                (0..seen).map(|p| &values.values[at(p) * value_width..][..dv]).collect();
            let q = self.as_taken(&data.q.values[((start + token) * heads + head) * d..][..d]);
            out.extend(naive::attend(&q, &key_rows, &value_rows, f64::from(SCALE)));
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

    /// Some tokens of one item, or of all items: their rows as bytes.
    fn run(
        &self,
        device: &Device,
        data: &Data,
        part: Option<(usize, Range<usize>)>,
    ) -> Result<Vec<u8>, Error> {
        let pages = &data.pages;
        let longest = self.items.iter().map(|[old, new]| old + new).max().expect("items");
        let mut scratch = AttentionScratch::new(device, self.sizes(longest));
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
                gqa_attention(&q, &keys, &values.tensor(device), ragged, SCALE, scratch, &mut out)
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
        let scratch = AttentionScratch::new(device, self.sizes(1000));
        let allocated = device.allocated_bytes() - before;
        assert_eq!(allocated, AttentionScratch::bytes(device, self.sizes(1000)), "{what}");
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

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

fn rows_case(dtype: DType, [heads, kv_heads, d, dv]: [usize; 4]) -> Case {
    let items = vec![[0, 1], [3, 7], [31, 2], [32, 1], [150, 6]];
    let tolerance = if dtype == DType::F32 { 3e-6 } else { 3e-3 };
    Case { dtype, heads, kv_heads, d, dv, items, tolerance }
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

/// Rows and segments of `[T, 3, H, D]`.
struct Packed {
    heads: usize,
    d: usize,
    cu_seqlens: Vec<u32>,
}

impl Packed {
    fn qkv(&self) -> Host {
        let t = *self.cu_seqlens.last().expect("offsets") as usize;
        Host::random(DType::F32, &[t, 3, self.heads, self.d], 1)
    }

    fn run(&self, device: &Device, qkv: &Host, segments: Range<usize>) -> Result<Vec<u8>, Error> {
        let cu_seqlens = &self.cu_seqlens[segments.start..=segments.end];
        let (start, end) = (cu_seqlens[0], cu_seqlens[cu_seqlens.len() - 1]);
        let t = (end - start) as usize;
        let row = 3 * self.heads * self.d;
        let values: Vec<f32> =
            qkv.values[start as usize * row..end as usize * row].iter().map(|&v| v as f32).collect();
        let qkv = Tensor::from_f32(device, &[t, 3, self.heads, self.d], &values);
        let sizes = AttentionSizes {
            heads: self.heads,
            kv_heads: self.heads,
            key_dim: self.d,
            value_dim: self.d,
            max_context: 0,
            max_tokens: t,
        };
        let mut scratch = AttentionScratch::new(device, sizes);
        let mut out = Tensor::unwritten(device, DType::F32, &[t, self.heads, self.d]);
        let from_zero: Vec<u32> = cu_seqlens.iter().map(|at| at - start).collect();
        packed_attention(&qkv, &from_zero, SCALE, &mut scratch, &mut out);
        out.read()
    }

    fn twin(&self, qkv: &Host) -> Vec<f64> {
        let Self { heads, d, .. } = *self;
        let at = |token: usize, part: usize, head: usize| {
            &qkv.values[((token * 3 + part) * heads + head) * d..][..d]
        };
        let mut out = Vec::new();
        for segment in self.cu_seqlens.windows(2) {
            let tokens = segment[0] as usize..segment[1] as usize;
            for (token, head) in tokens.clone().flat_map(|t| (0..heads).map(move |h| (t, h))) {
                let part = |part| -> Vec<&[f64]> { tokens.clone().map(|p| at(p, part, head)).collect() };
                out.extend(naive::attend(at(token, 0, head), &part(1), &part(2), f64::from(SCALE)));
            }
        }
        out
    }

    fn check(&self, device: &Device, tolerance: f64) {
        let qkv = self.qkv();
        let found = self.run(device, &qkv, 0..self.cu_seqlens.len() - 1).expect("a result");
        assert_close(&floats(&found), &self.twin(&qkv), tolerance, "packed segments");
        let (row, other) = (self.heads * self.d * 4, emulated(SEEDS[1]));
        for (i, segment) in self.cu_seqlens.windows(2).enumerate().filter(|(_, s)| s[0] < s[1]) {
            let alone = self.run(&other, &qkv, i..i + 1).expect("a result");
            assert!(alone == found[segment[0] as usize * row..segment[1] as usize * row], "segment {i}");
        }
    }
}

#[test]
fn packed_segments_in_f32() {
    let device = emulated(SEEDS[0]);
    Packed { heads: 3, d: 9, cu_seqlens: vec![0, 1, 1, 66, 99] }.check(&device, 3e-6);
    Packed { heads: 2, d: 72, cu_seqlens: vec![0, 37] }.check(&device, 3e-6);
}

#[test]
fn bugs_in_rows_are_noticed() {
    let case = rows_case(DType::BF16, [6, 2, 40, 40]);
    let data = case.data();
    let paged = |device: &Device| case.run(device, &data, None);
    let segments = Packed { heads: 3, d: 9, cu_seqlens: vec![0, 1, 40, 66] };
    let qkv = segments.qkv();
    let packed = |device: &Device| segments.run(device, &qkv, 0..3);
    let cases: [(&'static str, &'static str, Run); 7] = [
        ("slots[mine + lane] = slot;\n        __syncwarp();", "slots[mine + lane] = slot;", &paged),
        ("if (row >= s.tokens * s.heads) return;", "if (row > s.tokens * s.heads) return;", &packed),
        ("context_lens[item] + token - start + 1", "context_lens[item] + token - start", &paged),
        ("if (start <= token) low", "if (start < token) low", &packed),
        ("int count = min(32, visible - first);", "int count = 32;", &packed),
        ("acc[i] *= shrink;", "acc[i] *= 1.0f;", &paged),
        ("key_head = head / s.rep;", "key_head = head % (s.heads / s.rep);", &paged),
    ];
    assert_noticed(&cases);
}
