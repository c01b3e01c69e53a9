//! Attention that sees the last keys only, and heads with a sink: against the f64 twin, and the bits of a row in chunks and in company.

use crate::attention::{BLOCK, ITEMS, cache, sizes_of};
use crate::common::*;
use crate::naive;
use crate::pages::Pages;
use kernels::ops::*;
use kernels::*;
use std::ops::Range;

/// Shorter than a tile, just a tile, more than a tile, more than a range.
const WINDOWS: [usize; 6] = [1, 3, 64, 65, 130, 600];

#[test]
fn rows_see_their_window() {
    let pages = Pages::new(&ITEMS, BLOCK);
    let t = *pages.cu_seqlens.last().unwrap() as usize;
    let shapes = [(DType::F32, 3, 3, 7, 5), (DType::BF16, 6, 2, 40, 24), (DType::BF16, 8, 2, 64, 64)];
    for (number, (dtype, heads, kv_heads, d, dv)) in shapes.into_iter().enumerate() {
        let numbers: Vec<f32> = values(1, t * heads * d).iter().map(|v| 4.0 * v).collect();
        let q = Host::new(DType::F32, &[t, heads, d], &numbers);
        let (keys, values) = (cache(dtype, &pages, kv_heads, d, 2), cache(dtype, &pages, kv_heads, dv, 3));
        // Below and far above all scores.
        let sinks: Vec<f32> = (0..heads).map(|head| [-40.0, 0.5, 3.0, 200.0][head % 4]).collect();
        for window in WINDOWS.into_iter().skip(number % 2).step_by(2) {
            for sinks in [None, Some(&sinks)] {
                let scale = 0.3;
                for device in rounding_devices().into_iter().chain(devices()) {
                    let rounds = dtype == DType::BF16
                        && device.activation_type(WeightType::BF16) == ActivationType::BF16;
                    let round = |&x: &f64| if rounds { half::bf16::from_f64(x).to_f64() } else { x };
                    let ragged = pages.ragged(BLOCK);
                    let mut expected = Vec::new();
                    for (item, [old, new]) in ITEMS.into_iter().enumerate() {
                        for (token, head) in (0..new).flat_map(|i| (0..heads).map(move |h| (i, h))) {
                            let seen = old + token + 1;
                            let seen = seen.saturating_sub(window)..seen;
                            let at = |p: usize| ragged.slot(item, p) * kv_heads + head / (heads / kv_heads);
                            let key_rows: Vec<&[f64]> =
                                seen.clone().map(|p| &keys.values[at(p) * d..][..d]).collect();
                            let value_rows: Vec<&[f64]> =
                                seen.map(|p| &values.values[at(p) * dv..][..dv]).collect();
                            let row = (pages.cu_seqlens[item] as usize + token) * heads + head;
                            let query: Vec<f64> = q.values[row * d..][..d]
                                .iter()
                                .map(|x| round(&(f64::from(scale) * x)))
                                .collect();
                            let sink = sinks.map(|sinks| f64::from(sinks[head]));
                            expected.extend(naive::attend_with_sink(
                                &query,
                                &key_rows,
                                &value_rows,
                                1.0,
                                sink,
                            ));
                        }
                    }
                    let mut scratch = AttentionScratch::new(&device, sizes_of([heads, kv_heads, d, dv], t))
                        .with_window(&device);
                    let sink_tensor = sinks.map(|sinks| Tensor::from_f32(&device, &[heads], sinks));
                    let softmax = Softmax { scale, window: Some(window), sinks: sink_tensor.as_ref() };
                    let mut out = Tensor::zeros(&device, DType::F32, &[t, heads, dv]);
                    let (q, k, v) = (q.tensor(&device), keys.tensor(&device), values.tensor(&device));
                    gqa_attention(&q, &k, &v, &ragged, softmax, &mut scratch, &mut out);
                    let tolerance = if rounds { 1.0 / 256.0 } else { 3e-6 };
                    let what = format!(
                        "{device:?} {dtype} {heads} heads, window {window}, sinks {}",
                        sinks.is_some()
                    );
                    assert_close(out.as_f32(), &expected, tolerance, &what);
                }
            }
        }
    }
}

/// Chunks of one sequence, of tokens that lie in other tiles and other ranges.
const CHUNKS: [Range<usize>; 8] =
    [0..1, 60..70, 127..128, 128..129, 511..514, 700..701, 600..1001, 1300..1301];

/// What all new tokens of a sequence get in one chunk, they get in any, on any number of threads; keys that no row sees in whole tiles before the
/// first window may be anything.
#[test]
fn windows_in_chunks() {
    let (len, block) = (1301, 7);
    let pages = Pages::new(&[[0, len]], block);
    let families = Isa::ALL.into_iter().filter(|isa| isa.is_available()).flat_map(|isa| {
        [ActivationChoice::F32, ActivationChoice::BF16].into_iter().filter_map(move |activations| {
            let options = |threads| CpuOptions {
                threads: Some(threads),
                isa: Some(isa),
                activations,
                ..CpuOptions::default()
            };
            [1, 2, 3].map(|threads| Device::cpu_with(options(threads)).ok()).into_iter().collect()
        })
    });
    let families: Vec<Vec<Device>> = families.collect();
    for (number, ([heads, kv_heads, d, dv], window)) in
        [([6, 2, 20, 18], 130), ([4, 2, 64, 64], 128), ([8, 1, 32, 32], 600), ([40, 1, 32, 32], 5)]
            .into_iter()
            .enumerate()
    {
        let q = Host::random(DType::F32, &[len, heads, d], 1);
        let dtype = [DType::BF16, DType::BF16, DType::F16, DType::BF16][number];
        let [keys, values] =
            [(d, 2), (dv, 3)].map(|(d, seed)| Host::random(dtype, &[pages.num_slots, kv_heads, d], seed));
        for family in &families {
            let mut together: Vec<u32> = Vec::new();
            for (device, rows) in family
                .iter()
                .flat_map(|device| std::iter::once(0..len).chain(CHUNKS).map(move |rows| (device, rows)))
            {
                let unseen = (rows.start + 1).saturating_sub(window) / 64 * 64;
                let ragged = pages.ragged(block);
                let spoilt = |host: &Host| {
                    let mut numbers: Vec<f32> = host.values.iter().map(|&v| v as f32).collect();
                    let row = numbers.len() / pages.num_slots;
                    for slot in (0..unseen).map(|p| ragged.slot(0, p)) {
                        numbers[slot * row..(slot + 1) * row].fill(f32::NAN);
                    }
                    Host::new(dtype, &host.shape, &numbers).tensor(device)
                };
                let (keys, values) = (spoilt(&keys), spoilt(&values));
                let numbers: Vec<f32> = q.values[rows.start * heads * d..rows.end * heads * d]
                    .iter()
                    .map(|&v| v as f32)
                    .collect();
                let q = Tensor::from_f32(device, &[rows.len(), heads, d], &numbers);
                let sinks: Vec<f32> = (0..heads).map(|head| head as f32 - 2.0).collect();
                let sinks = Tensor::from_f32(device, &[heads], &sinks);
                let softmax = Softmax { scale: 0.3, window: Some(window), sinks: Some(&sinks) };
                let (cu_seqlens, context_lens) = ([0, rows.len() as u32], [rows.start as u32]);
                let ragged = Ragged {
                    cu_seqlens: (&cu_seqlens).into(),
                    context_lens: (&context_lens).into(),
                    ..ragged
                };
                let sizes = AttentionSizes {
                    heads,
                    kv_heads,
                    key_dim: d,
                    value_dim: dv,
                    max_context: len,
                    max_tokens: len,
                };
                let mut scratch = AttentionScratch::new(device, sizes).with_window(device);
                let mut out = Tensor::zeros(device, DType::F32, &[rows.len(), heads, dv]);
                gqa_attention(&q, &keys, &values, &ragged, softmax, &mut scratch, &mut out);
                let found = bits(out.as_f32());
                if together.is_empty() {
                    together = found;
                    continue;
                }
                let expected = &together[rows.start * heads * dv..rows.end * heads * dv];
                assert!(found == expected, "{heads} heads, window {window}: {rows:?} on {device:?}");
            }
        }
    }
}
