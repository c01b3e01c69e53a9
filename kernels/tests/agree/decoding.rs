//! Tokens of few heads to a key head go another way than rows of a prompt, and all key heads together: with the same bits, over every
//! kind of cache, on any number of threads, alone and in company.

use crate::attention::sizes_of;
use crate::common::{Host, bits};
use crate::pages::Pages;
use kernels::ops::*;
use kernels::*;
use std::ops::Range;

const BLOCK: usize = 5;
/// Tokens that are computed, after some others.
const NEW: usize = 21;

/// Heads, key heads, and widths of keys and of values: whole vectors, and whole pairs of them or not.
const SHAPES: [[usize; 4]; 6] =
    [[6, 2, 32, 32], [8, 8, 64, 32], [16, 2, 96, 64], [5, 1, 128, 160], [14, 2, 80, 48], [4, 4, 48, 80]];

struct Case<'a> {
    shape: [usize; 4],
    /// `[NEW, heads, D]`
    q: &'a [f32],
    old: usize,
    pages: &'a Pages,
    /// Of keys and values.
    rows: [&'a Host; 2],
    stored_as: KvType,
    /// Beside those that see all, some see so many keys, and have sinks.
    window: Option<usize>,
}

impl Case<'_> {
    fn cache(&self, device: &Device) -> [KvTensor; 2] {
        let [_, kv_heads, d, dv] = self.shape;
        [(d, self.rows[0]), (dv, self.rows[1])].map(|(dim, rows)| {
            let slots = self.pages.num_slots;
            let mut cache =
                KvTensor::zeros(device, self.stored_as, slots, KvShape::Heads { count: kv_heads, dim });
            let mut rows = rows.tensor(device);
            rows.reshape(&[slots, kv_heads * dim]);
            store_kv(&rows, &mut cache, &(0..slots as u32).collect::<Vec<_>>());
            cache
        })
    }

    /// Bits of some of the new tokens: each item is of one or of several that follow each other.
    fn run(&self, device: &Device, [keys, values]: &[KvTensor; 2], items: &[Range<usize>]) -> Vec<u32> {
        let [heads, kv_heads, d, dv] = self.shape;
        let num_tokens = items.iter().map(|item| item.len()).sum();
        let sizes = sizes_of([heads, kv_heads, d, dv], num_tokens);
        let mut scratch = AttentionScratch::new(device, sizes).with_window(device);
        let sinks: Vec<f32> = (0..heads).map(|head| 1.5 * head as f32 - 3.0).collect();
        let sinks = self.window.map(|_| Tensor::from_f32(device, &[heads], &sinks));
        let softmax = Softmax { scale: 0.2, window: self.window, sinks: sinks.as_ref() };
        let q: Vec<f32> = items
            .iter()
            .flat_map(|item| &self.q[item.start * heads * d..item.end * heads * d])
            .copied()
            .collect();
        let q = Tensor::from_f32(device, &[num_tokens, heads, d], &q);
        let mut out = Tensor::zeros(device, DType::F32, &[num_tokens, heads, dv]);
        let mut cu_seqlens = vec![0];
        for item in items {
            cu_seqlens.push(cu_seqlens[cu_seqlens.len() - 1] + item.len() as u32);
        }
        let context_lens: Vec<u32> = items.iter().map(|item| (self.old + item.start) as u32).collect();
        // All are the same sequence, whose table is that of the second item of the pages.
        let table = &self.pages.block_tables[self.pages.cu_blocks[1] as usize..];
        let tables = table.repeat(items.len());
        let cu_blocks: Vec<u32> = (0..=items.len()).map(|i| (i * table.len()) as u32).collect();
        let ragged = Ragged {
            cu_seqlens: (&cu_seqlens).into(),
            context_lens: (&context_lens).into(),
            block_tables: (&tables).into(),
            cu_blocks: (&cu_blocks).into(),
            block_size: BLOCK,
            selected: None,
        };
        gqa_attention(&q, keys, values, &ragged, softmax, &mut scratch, &mut out);
        bits(out.as_f32())
    }

    #[allow(clippy::single_range_in_vec_init, reason = "an item is a range of tokens")]
    fn check(&self, devices: &[Device; 3]) {
        let row_len = self.shape[0] * self.shape[3];
        let caches = devices.each_ref().map(|device| self.cache(device));
        let prompt = self.run(&devices[0], &caches[0], std::slice::from_ref(&(0..NEW)));
        let part = |item: &Range<usize>| &prompt[item.start * row_len..item.end * row_len];
        for (device, cache) in devices.iter().zip(&caches) {
            for items in [
                vec![NEW - 1..NEW],
                vec![3..5],
                vec![0..1, 9..10, 13..15, NEW - 1..NEW],
                (0..9).map(|token| token..token + 1).collect(),
                vec![4..5, 0..NEW],
            ] {
                let expected: Vec<u32> = items.iter().flat_map(part).copied().collect();
                let Self { shape, old, stored_as, window, .. } = self;
                assert!(
                    self.run(device, cache, &items) == expected,
                    "{shape:?} after {old} in {}, window {window:?}: {items:?} on {device:?}",
                    stored_as.name()
                );
            }
        }
    }
}

/// Each instruction set that goes another way, with one, two and three threads; the best with rounded activations as well.
fn devices() -> Vec<[Device; 3]> {
    let with = |isa, activations| {
        let options = |threads| CpuOptions {
            threads: Some(threads),
            isa: Some(isa),
            activations,
            ..CpuOptions::default()
        };
        [1, 2, 3].map(|threads| Device::cpu_with(options(threads)).unwrap())
    };
    let isas = Isa::ALL.into_iter().filter(|&isa| isa.is_available() && isa != Isa::Portable);
    isas.map(|isa| with(isa, ActivationChoice::F32))
        .chain([with(Isa::best(), ActivationChoice::Auto)])
        .collect()
}

#[test]
fn tokens_have_the_bits_of_a_prompt() {
    let devices = devices();
    let types = [DType::BF16, DType::F16, DType::F32].map(KvType::Float);
    for (number, shape @ [heads, kv_heads, d, dv]) in SHAPES.into_iter().enumerate() {
        let q = Host::random(DType::F32, &[NEW, heads, d], 1);
        let q: Vec<f32> = q.values.iter().map(|&v| v as f32).collect();
        for old in [[0, 508], [50, 1040]][number % 2] {
            let pages = Pages::new(&[[7, 1], [old, NEW]], BLOCK);
            let rows = [(d, 2), (dv, 3)]
                .map(|(dim, seed)| Host::random(DType::F32, &[pages.num_slots, kv_heads, dim], seed));
            for stored_as in types.into_iter().chain([KvType::Int8]) {
                let rows = [&rows[0], &rows[1]];
                for window in [None, Some([5, 70, 520][number % 3])] {
                    let case = Case { shape, q: &q, old, pages: &pages, rows, stored_as, window };
                    devices.iter().for_each(|devices| case.check(devices));
                }
            }
        }
    }
}
