//! Latent attention in its expanded form: against the f64 twin, alone and in company, in chunks, with bugs planted.

use crate::attention::{SCALE, floats};
use crate::common::*;
use crate::device::{SEEDS, emulated, sized};
use crate::mutants::{Run, assert_noticed};
use crate::naive;
use crate::pages::Pages;
use kernels::ops::*;
use kernels::*;
use std::ops::Range;

/// Slots of a block of memory.
const BLOCK: usize = 5;
/// Keys of a range: small, so that short sequences have several.
const RANGE: usize = 128;

#[derive(Clone)]
struct Case {
    cache: DType,
    weights: WeightType,
    sizes: ExpandedSizes,
    /// How many positions of each sequence are cached, how many tokens are new.
    items: Vec<[usize; 2]>,
    /// Within this of the twin.
    tolerance: f64,
}

struct Data {
    pages: Pages,
    q: Host,
    rows: Host,
    /// Of each head.
    key_up: Vec<Host>,
    value_up: Vec<Host>,
    /// Of each slot and head, as the kernels have them.
    keys: Vec<Vec<f64>>,
    values: Vec<Vec<f64>>,
}

impl Case {
    fn new(cache: DType, weights: WeightType, widths: [usize; 5], items: &[[usize; 2]]) -> Self {
        let [heads, rank, nope, rotated, value_dim] = widths;
        let max_tokens = items.iter().map(|[_, new]| new).sum();
        let max_context = items.iter().map(|[old, new]| old + new).max().expect("items");
        let sizes = ExpandedSizes { heads, rank, nope, rotated, value_dim, max_tokens, max_context, cache };
        let tolerance = if cache == DType::F32 { 1e-5 } else { 4e-3 };
        Self { cache, weights, sizes, items: items.to_vec(), tolerance }
    }

    /// Tensor cores take queries, keys and values in the type of the cache.
    fn is_tiled(&self) -> bool {
        let ExpandedSizes { nope, rotated, value_dim, .. } = self.sizes;
        self.cache != DType::F32 && [nope, rotated, value_dim] == [128, 64, 128]
    }

    fn as_taken(&self, numbers: &[f64]) -> Vec<f64> {
        let narrow: Vec<f32> = numbers.iter().map(|&v| v as f32).collect();
        let dtype = if self.is_tiled() { self.cache } else { DType::F32 };
        Host::new(dtype, &[numbers.len()], &narrow).values
    }

    fn data(&self) -> Data {
        let ExpandedSizes { heads, rank, nope, rotated, value_dim, max_tokens, .. } = self.sizes;
        let pages = Pages::new(&self.items, BLOCK);
        let ragged = pages.ragged(BLOCK);
        let width = rank + rotated;
        let mut numbers = values(2, pages.num_slots * width);
        let used: std::collections::BTreeSet<usize> = (0..self.items.len())
            .flat_map(|item| (0..self.items[item].iter().sum()).map(move |p| (item, p)))
            .map(|(item, p)| ragged.slot(item, p))
            .collect();
        // Slots that no position uses hold NaN, which must not show.
        for slot in (0..pages.num_slots).filter(|slot| !used.contains(slot)) {
            numbers[slot * width..(slot + 1) * width].fill(f32::NAN);
        }
        let rows = Host::new(self.cache, &[pages.num_slots, width], &numbers);
        let float = self.weights.float().unwrap_or(DType::F32);
        let up = |n: usize, seed: u64| -> Vec<Host> {
            let scaled =
                |head: u64| values(seed + head, n * rank).iter().map(|v| v * 0.4).collect::<Vec<f32>>();
            (0..heads as u64).map(|head| Host::new(float, &[n, rank], &scaled(head))).collect()
        };
        let (key_up, value_up) = (up(nope, 100), up(value_dim, 200));
        let product = |latent: &[f64], w: &Host| {
            let w = kept(self.weights, &w.values, rank);
            // Levels of 8 bits meet latents in bf16.
            let narrow: Vec<f32> = latent.iter().map(|&v| v as f32).collect();
            let entered = if self.weights.is_quantised() { DType::BF16 } else { DType::F32 };
            let latent = Host::new(entered, &[rank], &narrow).values;
            naive::linear(&vec![latent], &w, None, Activation::None).remove(0)
        };
        let expanded = |slot: usize, head: usize, w: &[Host], rest: bool| {
            if !used.contains(&slot) {
                return Vec::new();
            }
            let row = &rows.values[slot * width..(slot + 1) * width];
            let mut numbers = self.as_taken(&product(&row[..rank], &w[head]));
            numbers.extend_from_slice(if rest { &row[rank..] } else { &[] });
            numbers
        };
        let all = |w: &[Host], rest: bool| -> Vec<Vec<f64>> {
            let places = (0..pages.num_slots).flat_map(|slot| (0..heads).map(move |head| (slot, head)));
            places.map(|(slot, head)| expanded(slot, head, w, rest)).collect()
        };
        let (keys, values_of) = (all(&key_up, true), all(&value_up, false));
        let q = Host::random(DType::F32, &[max_tokens, heads, nope + rotated], 1);
        Data { q, rows, key_up, value_up, keys, values: values_of, pages }
    }

    fn twin(&self, data: &Data, item: usize) -> Vec<f64> {
        let ExpandedSizes { heads, nope, rotated, .. } = self.sizes;
        let (ragged, d) = (data.pages.ragged(BLOCK), nope + rotated);
        let start = data.pages.cu_seqlens[item] as usize;
        let [old, new] = self.items[item];
        let rows = (0..new).flat_map(|token| (0..heads).map(move |head| (token, head)));
        let row = |(token, head): (usize, usize)| {
            let of = |table: &'_ Vec<Vec<f64>>| -> Vec<Vec<f64>> {
                (0..old + token + 1).map(|p| table[ragged.slot(item, p) * heads + head].clone()).collect()
            };
            let (keys, values) = (of(&data.keys), of(&data.values));
            let q = self.as_taken(&data.q.values[((start + token) * heads + head) * d..][..d]);
            let keys: Vec<&[f64]> = keys.iter().map(Vec::as_slice).collect();
            let values: Vec<&[f64]> = values.iter().map(Vec::as_slice).collect();
            naive::attend(&q, &keys, &values, f64::from(SCALE))
        };
        rows.flat_map(row).collect()
    }

    /// The rows of some tokens, as bytes.
    fn attend(
        &self,
        device: &Device,
        data: &Data,
        ragged: &Ragged,
        tokens: Range<usize>,
    ) -> Result<Vec<u8>, Error> {
        let ExpandedSizes { heads, nope, rotated, value_dim, .. } = self.sizes;
        let width = heads * (nope + rotated);
        let q: Vec<f32> =
            data.q.values[tokens.start * width..tokens.end * width].iter().map(|&v| v as f32).collect();
        let q = Tensor::from_f32(device, &[tokens.len(), heads, nope + rotated], &q);
        let pack = |parts: &[Host]| {
            let views: Vec<HostTensor> = parts.iter().map(Host::view).collect();
            MatrixBatch::pack(device, self.weights, &views)
        };
        let (cache, key_up, value_up) = (data.rows.tensor(device), pack(&data.key_up), pack(&data.value_up));
        let latents = Latents { cache: (&cache).into(), key_up: &key_up, value_up: &value_up };
        // Rows of items that take no part stay as they are.
        let mut out = Tensor::from_f32(
            device,
            &[tokens.len(), heads, value_dim],
            &vec![0.5; tokens.len() * heads * value_dim],
        );
        let mut scratch = ExpandedScratch::with_ranges(device, self.sizes, RANGE);
        expanded_attention(&q, latents, ragged, SCALE, &mut scratch, &mut out);
        out.read()
    }

    fn together(&self, device: &Device, data: &Data) -> Result<Vec<u8>, Error> {
        self.attend(device, data, &data.pages.ragged(BLOCK), 0..self.sizes.max_tokens)
    }

    fn alone(&self, device: &Device, data: &Data, item: usize, tokens: Range<usize>) -> Vec<u8> {
        let pages = &data.pages;
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
        let start = pages.cu_seqlens[item] as usize;
        self.attend(device, data, &ragged, start + tokens.start..start + tokens.end).expect("a result")
    }

    /// Against the twin, and then: every part of every item has the bits that it has in company, and those of others stay.
    fn check(&self, parts: &[(usize, Range<usize>)]) {
        let what = format!("{} of {} in {:?}", self.weights, self.cache, self.sizes);
        let (device, other, data) = (emulated(SEEDS[0]), sized(SEEDS[1], 2), self.data());
        let before = device.allocated_bytes();
        let scratch = ExpandedScratch::new(&device, self.sizes);
        assert_eq!(device.allocated_bytes() - before, ExpandedScratch::bytes(&device, self.sizes), "{what}");
        drop(scratch);
        let found = self.together(&device, &data).expect("a result");
        let twin: Vec<f64> = (0..self.items.len()).flat_map(|item| self.twin(&data, item)).collect();
        assert_close(&floats(&found), &twin, self.tolerance, &what);
        let row = self.sizes.heads * self.sizes.value_dim * 4;
        let place = |item: usize, tokens: Range<usize>| {
            let start = data.pages.cu_seqlens[item] as usize;
            (start + tokens.start) * row..(start + tokens.end) * row
        };
        for (item, tokens) in parts {
            let alone = self.alone(&other, &data, *item, tokens.clone());
            assert!(alone == found[place(*item, tokens.clone())], "{what}: {tokens:?} of {item}");
        }
        let selected: Vec<bool> = (0..self.items.len()).map(|item| item % 2 == 1).collect();
        let ragged = Ragged { selected: Some(&selected), ..data.pages.ragged(BLOCK) };
        let mixed = self.attend(&other, &data, &ragged, 0..self.sizes.max_tokens).expect("a result");
        for (item, &selected) in selected.iter().enumerate() {
            let place = place(item, 0..self.items[item][1]);
            match selected {
                true => assert!(mixed[place.clone()] == found[place], "{what}: {item} among others"),
                false => assert!(floats(&mixed[place]).iter().all(|&v| v == 0.5), "{what}: {item} stays"),
            }
        }
    }
}

/// The widths of published models, over a short latent.
fn tiled(cache: DType, weights: WeightType, items: &[[usize; 2]]) -> Case {
    Case::new(cache, weights, [2, 48, 128, 64, 128], items)
}

#[test]
fn on_tensor_cores() {
    // Ranges that begin inside and between blocks of rows; a sequence in a second pass; one token.
    let items = [[0, 1], [120, 20], [127, 1], [250, 70], [3, 66]];
    let parts = [(0, 0..1), (1, 0..8), (1, 8..20), (2, 0..1), (3, 5..70), (3, 69..70), (4, 0..61)];
    tiled(DType::BF16, WeightType::BF16, &items).check(&parts);
    tiled(DType::F16, WeightType::F16, &items[..2]).check(&parts[1..2]);
    tiled(DType::BF16, WeightType::Int8, &items[1..3]).check(&[(0, 3..20)]);
}

#[test]
fn of_any_width() {
    let items = [[0, 1], [120, 20], [127, 1], [250, 7]];
    let parts = [(0, 0..1), (1, 0..8), (1, 8..20), (3, 2..7)];
    Case::new(DType::F32, WeightType::F32, [3, 17, 9, 4, 11], &items).check(&parts);
    Case::new(DType::BF16, WeightType::BF16, [2, 40, 24, 8, 40], &items).check(&parts);
    Case::new(DType::F16, WeightType::F16, [1, 5, 3, 7, 33], &items).check(&parts[..2]);
    Case::new(DType::F32, WeightType::Int8, [2, 35, 8, 4, 8], &items[..2]).check(&parts[1..2]);
}

#[test]
fn bugs_are_noticed() {
    let chunk = tiled(DType::BF16, WeightType::BF16, &[[120, 20], [3, 4]]);
    let large = tiled(DType::BF16, WeightType::BF16, &[[190, 70]]);
    let rows = Case::new(DType::F32, WeightType::F32, [3, 17, 9, 4, 11], &[[120, 20], [3, 4]]);
    let [chunk_data, large_data, rows_data] = [&chunk, &large, &rows].map(Case::data);
    let chunk = |device: &Device| chunk.together(device, &chunk_data);
    let large = |device: &Device| large.together(device, &large_data);
    let rows = |device: &Device| rows.together(device, &rows_data);
    let cases: [(&'static str, &'static str, Run); 13] = [
        // Barriers and waits.
        (
            "cp_async_wait<STAGES - 2>();\n            __syncthreads();",
            "cp_async_wait<STAGES - 2>();",
            &large,
        ),
        ("cp_async_wait<STAGES - 2>();", "cp_async_wait<STAGES - 1>();", &chunk),
        (
            "        soften(first, s, scores);\n        __syncthreads();",
            "        soften(first, s, scores);",
            &large,
        ),
        (
            "        __syncthreads();\n#pragma unroll\n        for (int i = 0; i < ROW_GROUPS * 2; i++) {\n            int g",
            "#pragma unroll\n        for (int i = 0; i < ROW_GROUPS * 2; i++) {\n            int g",
            &chunk,
        ),
        ("sums.weigh(score, is_there);\n        __syncwarp();", "sums.weigh(score, is_there);", &rows),
        // Who sees what, and where it lies.
        ("if (place >= 0 && place < segment.count)", "if (place >= 0 && place + 1 < segment.count)", &chunk),
        (
            "int place = row - segment.row, position = segment.first + place;",
            "int place = row - segment.row, position = place;",
            &large,
        ),
        ("from[s.rank + column]", "from[column]", &chunk),
        ("min(unit.first_visible + token, unit.end_range", "min(unit.first_visible, unit.end_range", &rows),
        // Sums of ranges.
        (
            "sum = merged(m, old.y, sum);\n        }\n        long long place = place_of",
            "}\n        long long place = place_of",
            &chunk,
        ),
        (
            "v = make_float2(merged(m, before.x, v.x), merged(m, before.y, v.y));\n                }\n                if (is_last)",
            "}\n                if (is_last)",
            &chunk,
        ),
        ("else store_vec(at, v);", "else store_vec(at, make_float2(v.x / sum, v.y / sum));", &large),
        ("if (unit.first_range) v = merged(m, *at, v);", "", &rows),
    ];
    assert_noticed(&cases);
}
