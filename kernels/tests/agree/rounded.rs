//! Products over rounded activations: against f64 over what they were rounded to, and experts against the linear layers they consist
//! of, bit for bit.

use crate::attention::{BLOCK, ITEMS, cache, expected, sizes_of};
use crate::common::*;
use crate::expert_rows;
use crate::matrices::chosen;
use crate::naive;
use crate::pages::Pages;
use kernels::ops::*;
use kernels::*;

/// What a row counts as beside weights of this type.
fn rounded(device: &Device, weights: WeightType, row: &[f64]) -> Vec<f64> {
    match device.activation_type(weights) {
        ActivationType::F32 => row.to_vec(),
        ActivationType::BF16 => row.iter().map(|&x| half::bf16::from_f64(x).to_f64()).collect(),
        ActivationType::Int16 => row.chunks(GROUP).flat_map(|group| rounded_group(group, 8191.0)).collect(),
        ActivationType::Int8 => row.chunks(GROUP).flat_map(|group| rounded_group(group, 127.0)).collect(),
    }
}

/// A group as whole numbers up to `most`, in steps of its scale.
pub fn rounded_group(group: &[f64], most: f32) -> Vec<f64> {
    let largest = group.iter().fold(0.0f32, |max, &x| max.max((x as f32).abs()));
    let (scale, by) = if largest == 0.0 { (0.0, 0.0) } else { (largest * (1.0 / most), most / largest) };
    group.iter().map(|&x| f64::from(scale) * f64::from((x as f32 * by).round_ties_even())).collect()
}

#[test]
fn devices_round_as_they_were_told() {
    let devices = rounding_devices();
    assert!(!devices.is_empty(), "bytes are multiplied everywhere");
    let with = |isa, activations| {
        Device::cpu_with(CpuOptions {
            threads: Some(1),
            isa: Some(isa),
            activations,
            ..CpuOptions::default()
        })
    };
    let quantised = [WeightType::Int8, WeightType::Int4, WeightType::Int4Zero];
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        for weights in WeightType::ALL {
            let device = with(isa, ActivationChoice::F32).unwrap();
            assert_eq!(device.activation_type(weights), ActivationType::F32);
            let auto = with(isa, ActivationChoice::Auto).unwrap().activation_type(weights);
            if matches!(weights, WeightType::F32 | WeightType::F16) || isa == Isa::Portable {
                assert_eq!(auto, ActivationType::F32, "{isa} {weights}");
            }
            let expected = isa == Isa::Avx2 && weights == WeightType::CompactBf16;
            assert_eq!(auto == ActivationType::Int16, expected, "{isa} {weights}");
            match with(isa, ActivationChoice::BF16) {
                Ok(device) => {
                    assert!(isa.has_bf16_dots());
                    let to_bf16 = device.activation_type(weights) == ActivationType::BF16;
                    let expected = matches!(weights, WeightType::BF16 | WeightType::CompactBf16);
                    assert_eq!(to_bf16, expected, "{isa} {weights}");
                }
                Err(error) => {
                    assert!(!isa.has_bf16_dots());
                    assert!(error.to_string().contains("bfloat16"), "{error}");
                }
            }
            if let Ok(device) = with(isa, ActivationChoice::Int8) {
                let to_int8 = device.activation_type(weights) == ActivationType::Int8;
                assert_eq!(to_int8, quantised.contains(&weights), "{isa} {weights}");
            }
        }
    }
}

/// At most 3e-6 of the largest value apart.
#[test]
fn linear_layers_over_rounded_rows() {
    let sizes =
        [(1, 1, 1), (1, 33, 257), (2, 31, 3), (5, 67, 300), (13, 32, 256), (29, 97, 1313), (151, 65, 270)];
    for device in rounding_devices() {
        for (t, n, k) in sizes {
            for dtype in WeightType::ALL {
                let what = format!("{device:?} {dtype} T {t} N {n} K {k}");
                let x = Host::random(DType::F32, &[t, k], 1);
                let w = Host::random(DType::F32, &[n, k], 3);
                let packed = Matrix::pack(&device, dtype, &[w.view()]);
                let mut out = Tensor::zeros(&device, DType::F32, &[t, n]);
                linear(&x.tensor(&device), &packed, None, Activation::QuickGelu, &mut out);
                let x: Vec<_> = x.rows().iter().map(|row| rounded(&device, dtype, row)).collect();
                let expected =
                    naive::linear(&x, &multiplied(&device, dtype, &w.values, k), None, Activation::QuickGelu);
                assert_close(out.as_f32(), &expected.concat(), 3e-6, &what);
            }
        }
    }
}

#[test]
fn heads_over_rounded_rows() {
    let (t, h, k, n) = (5, 3, 71, 37);
    for device in rounding_devices() {
        for dtype in [WeightType::BF16, WeightType::CompactBf16, WeightType::Int8, WeightType::Int4Zero] {
            let x = Host::random(DType::F32, &[t, h, 75], 1);
            let w = Host::random(DType::F32, &[h * n, k], 2);
            let value = |h: usize, i: usize, c: usize| w.view().get((h * n + i) * k + c);
            let packed = MatrixBatch::pack_f32(&device, dtype, [h, n, k], &value);
            let mut out = Tensor::from_f32(&device, &[t, h, 40], &vec![9.0; t * h * 40]);
            let from = x.tensor(&device);
            let x_slice = HeadSlice { tensor: &from, rows: 0..t, offset: 3, len: k };
            heads_linear(x_slice, &packed, HeadSliceMut { tensor: &mut out, rows: 0..t, offset: 2, len: n });
            for (i, (out, x)) in out.as_f32().chunks(40).zip(x.rows()).enumerate() {
                let weights = multiplied(&device, dtype, &w.values[i % h * n * k..][..n * k], k);
                let x = rounded(&device, dtype, &x[3..3 + k]);
                let expected = naive::linear(&vec![x], &weights, None, Activation::None);
                assert_close(&out[2..39], &expected[0], 3e-6, &format!("{device:?} {dtype} row {i}"));
                assert_eq!([out[0], out[1], out[39]], [9.0; 3], "outside the slice");
            }
        }
    }
}

/// Queries count as what they are rounded to, scaled, beside a cache in bf16; and a weight may be off by one part in 512 of itself.
#[test]
fn latent_attention_over_rounded_queries() {
    let pages = Pages::new(&ITEMS, BLOCK);
    let t = *pages.cu_seqlens.last().unwrap() as usize;
    for (dtype, heads, d, dv) in [
        (DType::BF16, 16, 72, 64),
        (DType::BF16, 3, 21, 17),
        (DType::BF16, 37, 48, 48),
        (DType::F16, 16, 72, 64),
    ] {
        let numbers: Vec<f32> = values(1, t * heads * d).iter().map(|v| 8.0 * v).collect();
        let q = Host::new(DType::F32, &[t, heads, d], &numbers);
        let cache = cache(dtype, &pages, 1, d, 2);
        for device in rounding_devices() {
            let rounds = device.activation_type(dtype.into()) == ActivationType::BF16;
            let round = |&x: &f64| if rounds { half::bf16::from_f64(x).to_f64() } else { x };
            let rows: Vec<Vec<f64>> =
                q.rows().iter().map(|row| row.iter().map(|x| round(&(0.5 * x))).collect()).collect();
            let expected = expected(&pages, &rows, [heads, 1], 1.0, |slot, _| {
                let row = cache.values[slot * d..][..d].to_vec();
                let value = row[..dv].to_vec();
                (row, value)
            });
            let sizes = sizes_of([heads, 1, d, dv], t);
            let mut scratch = AttentionScratch::new(&device, sizes);
            let mut out = Tensor::zeros(&device, DType::F32, &[t, heads, dv]);
            let mut latents = cache.tensor(&device);
            latents.reshape(&[pages.num_slots, d]);
            let ragged = pages.ragged(BLOCK);
            mla_attention(&q.tensor(&device), &latents, dv, &ragged, 0.5, &mut scratch, &mut out);
            // Scores are large, and so are the last bits of their sums.
            let tolerance = if rounds { 1.0 / 512.0 } else { 3e-5 };
            assert_close(out.as_f32(), &expected, tolerance, &format!("{device:?} {dtype} {heads} heads"));
        }
    }
}

/// As above, with keys and values apart: few rows and many to a key head, widths of whole vectors and others.
#[test]
fn grouped_attention_over_rounded_queries() {
    let pages = Pages::new(&ITEMS, BLOCK);
    let t = *pages.cu_seqlens.last().unwrap() as usize;
    for (heads, kv_heads, d, dv) in [(6, 2, 40, 24), (3, 3, 7, 5), (40, 1, 64, 64), (4, 1, 33, 35)] {
        let numbers: Vec<f32> = values(1, t * heads * d).iter().map(|v| 8.0 * v).collect();
        let q = Host::new(DType::F32, &[t, heads, d], &numbers);
        let [keys, values] =
            [(d, 2), (dv, 3)].map(|(dim, seed)| cache(DType::BF16, &pages, kv_heads, dim, seed));
        for device in rounding_devices() {
            let rounds = device.activation_type(WeightType::BF16) == ActivationType::BF16;
            let round = |&x: &f64| if rounds { half::bf16::from_f64(x).to_f64() } else { x };
            let rows: Vec<Vec<f64>> =
                q.rows().iter().map(|row| row.iter().map(|x| round(&(0.5 * x))).collect()).collect();
            let expected = expected(&pages, &rows, [heads, kv_heads], 1.0, |slot, head| {
                let at = slot * kv_heads + head;
                (keys.values[at * d..][..d].to_vec(), values.values[at * dv..][..dv].to_vec())
            });
            let sizes = sizes_of([heads, kv_heads, d, dv], t);
            let mut scratch = AttentionScratch::new(&device, sizes);
            let mut out = Tensor::from_f32(&device, &[t, heads, dv], &vec![5.0; t * heads * dv]);
            let (q, k, v) = (q.tensor(&device), keys.tensor(&device), values.tensor(&device));
            gqa_attention(&q, &k, &v, &pages.ragged(BLOCK), 0.5, &mut scratch, &mut out);
            let tolerance = if rounds { 1.0 / 512.0 } else { 3e-5 };
            assert_close(
                out.as_f32(),
                &expected,
                tolerance,
                &format!("{device:?} {heads} heads of {d}, {dv}"),
            );
        }
    }
}

/// Queries, keys and values are rounded where a picture's attention is told to multiply as bf16, and nowhere else.
#[test]
fn packed_segments_over_rounded_rows() {
    let cu_seqlens = [0, 1, 1, 66, 199];
    let (t, heads, scale) = (199, 3, 0.5);
    for (d, multiply_as) in [(9, DType::BF16), (72, DType::BF16), (32, DType::BF16), (9, DType::F32)] {
        let numbers: Vec<f32> = values(1, t * 3 * heads * d).iter().map(|v| 2.0 * v).collect();
        let qkv = Host::new(DType::F32, &[t, 3, heads, d], &numbers);
        for device in rounding_devices() {
            let rounds = multiply_as == DType::BF16
                && device.activation_type(WeightType::BF16) == ActivationType::BF16;
            let row = |token: usize, part: usize, head: usize| -> Vec<f64> {
                let factor = if part == 0 { scale } else { 1.0 };
                let row = &qkv.values[((token * 3 + part) * heads + head) * d..][..d];
                let round = |x: f64| if rounds { half::bf16::from_f64(x).to_f64() } else { x };
                row.iter().map(|x| round(factor * x)).collect()
            };
            let mut expected = Vec::new();
            for segment in cu_seqlens.windows(2) {
                let tokens = || segment[0] as usize..segment[1] as usize;
                let sides: Vec<[Vec<Vec<f64>>; 2]> = (0..heads)
                    .map(|head| [1, 2].map(|part| tokens().map(|token| row(token, part, head)).collect()))
                    .collect();
                for token in tokens() {
                    for (head, sides) in sides.iter().enumerate() {
                        let [keys, values] =
                            sides.each_ref().map(|rows| rows.iter().map(|row| &row[..]).collect::<Vec<_>>());
                        expected.extend(naive::attend(&row(token, 0, head), &keys, &values, 1.0));
                    }
                }
            }
            let sizes = AttentionSizes {
                heads,
                kv_heads: heads,
                key_dim: d,
                value_dim: d,
                max_context: 0,
                max_tokens: t,
            };
            let mut scratch = AttentionScratch::new(&device, sizes).multiplying_as(multiply_as);
            let mut out = Tensor::zeros(&device, DType::F32, &[t, heads, d]);
            packed_attention(&qkv.tensor(&device), &cu_seqlens, scale as f32, &mut scratch, &mut out);
            let tolerance = if rounds { 1.0 / 512.0 } else { 3e-5 };
            let what = format!("{device:?} heads of {d} as {multiply_as}");
            assert_close(out.as_f32(), &expected, tolerance, &what);
        }
    }
}

/// `silu(x · gate) * (x · up)`, rounded again, times down, for every pair; and the weighted sums.
fn composed(device: &Device, parts: &[[Matrix; 3]], x: &[f32], ids: &[i32], weights: &[f32]) -> Vec<f32> {
    let (h, i, k) = (parts[0][0].k(), parts[0][0].n(), ids.len() * parts[0][0].k() / x.len());
    let mut sums = vec![0.0; x.len()];
    for (pair, &id) in ids.iter().enumerate() {
        let [gate, up, down] = &parts[id as usize];
        let x = Tensor::from_f32(device, &[1, h], &x[pair / k * h..][..h]);
        let mut both = vec![0.0; 2 * i];
        for (matrix, half) in [gate, up].into_iter().zip(both.chunks_mut(i)) {
            let mut out = Tensor::zeros(device, DType::F32, &[1, i]);
            linear(&x, matrix, None, Activation::None, &mut out);
            half.copy_from_slice(out.as_f32());
        }
        let mut inner = Tensor::zeros(device, DType::F32, &[1, i]);
        silu_mul(&Tensor::from_f32(device, &[1, 2 * i], &both), &mut inner);
        let mut out = Tensor::zeros(device, DType::F32, &[1, h]);
        linear(&inner, down, None, Activation::None, &mut out);
        for (sum, &y) in sums[pair / k * h..][..h].iter_mut().zip(out.as_f32()) {
            *sum = match device.isa() {
                Isa::Portable => weights[pair] * y + *sum,
                _ => weights[pair].mul_add(y, *sum),
            };
        }
    }
    sums
}

#[test]
fn experts_are_the_layers_they_consist_of() {
    for device in devices().into_iter().chain(rounding_devices()) {
        for (dtype, t, h, i, e, k) in [
            (WeightType::F32, 3, 40, 33, 3, 2),
            (WeightType::BF16, 7, 67, 33, 5, 2),
            (WeightType::BF16, 1, 5, 3, 2, 1),
            (WeightType::BF16, 301, 33, 65, 3, 2),
            (WeightType::CompactBf16, 61, 270, 97, 4, 3),
            (WeightType::CompactBf16, 301, 33, 65, 3, 2),
            (WeightType::Int8, 7, 67, 33, 5, 2),
            (WeightType::Int8, 61, 270, 97, 4, 3),
            (WeightType::Int4, 1, 5, 3, 2, 1),
            (WeightType::Int4, 150, 33, 65, 1, 1),
            (WeightType::Int4Zero, 19, 290, 64, 5, 2),
        ] {
            let what = format!("{device:?} {dtype} T {t} H {h} I {i} E {e} k {k}");
            let hosts = random_experts(DType::BF16, [e, h, i]);
            let experts = pack_experts(&device, dtype, &hosts);
            let parts: Vec<[Matrix; 3]> = hosts
                .iter()
                .map(|parts| parts.each_ref().map(|part| Matrix::pack(&device, dtype, &[part.view()])))
                .collect();
            let (x, weights) = (values(90, t * h), values(91, t * k));
            let (ids, id_tensor) = chosen(&device, [t, k, e]);
            let mut scratch = MoeScratch::new(&device, t + 2, [e, h, i], k);
            let mut out = Tensor::from_f32(&device, &[t, h], &vec![7.0; t * h]);
            let [x_tensor, weight_tensor] =
                [(&x, [t, h]), (&weights, [t, k])].map(|(v, shape)| Tensor::from_f32(&device, &shape, v));
            moe(&x_tensor, &experts, &id_tensor, &weight_tensor, &mut scratch, &mut out);
            let expected = composed(&device, &parts, &x, &ids, &weights);
            assert!(bits(out.as_f32()) == bits(&expected), "{what}");
        }
    }
}

/// What is not finite stays visible, tiny values count as zero, and neither touches other rows.
#[test]
fn values_that_have_no_scale() {
    let (n, k) = (35, 70);
    for device in rounding_devices() {
        for dtype in WeightType::ALL {
            if device.activation_type(dtype) == ActivationType::F32 {
                continue;
            }
            let w = Host::random(DType::F32, &[n, k], 3);
            let packed = Matrix::pack(&device, dtype, &[w.view()]);
            let run = |x: &[f32]| {
                let mut out = Tensor::zeros(&device, DType::F32, &[x.len() / k, n]);
                let x = Tensor::from_f32(&device, &[x.len() / k, k], x);
                linear(&x, &packed, None, Activation::None, &mut out);
                out.to_f32_vec()
            };
            let good = values(5, k);
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut x = [&good[..], &good[..]].concat();
                x[3] = bad;
                let out = run(&x);
                assert!(out[..n].iter().all(|y| !y.is_finite()), "{device:?} {dtype} {bad}");
                assert!(bits(&out[n..]) == bits(&run(&good)), "{device:?} {dtype} {bad}: the next row");
            }
            let tiny: Vec<f32> = good.iter().map(|x| x * 1e-39).collect();
            assert!(run(&tiny).iter().all(|y| y.abs() < 1e-30), "{device:?} {dtype}");
        }
    }
}

/// More rows than the device rounds at once.
#[test]
fn more_rows_than_the_scratch_holds() {
    let (t, n, k) = (260, 33, 12_000);
    for activations in [ActivationChoice::BF16, ActivationChoice::Int8, ActivationChoice::Auto] {
        let options = CpuOptions { threads: Some(2), isa: None, activations, ..CpuOptions::default() };
        let Ok(device) = Device::cpu_with(options) else { continue };
        assert!(device.scratch_bytes() > 0);
        for dtype in [WeightType::BF16, WeightType::CompactBf16, WeightType::Int8] {
            if device.activation_type(dtype) == ActivationType::F32 {
                continue;
            }
            let w = Matrix::random(&device, dtype, n, k, 0.1, 7);
            let x = Tensor::random(&device, &[t, k], 1.0, 8);
            let mut out = Tensor::zeros(&device, DType::F32, &[t, n]);
            linear(&x, &w, None, Activation::None, &mut out);
            for row in [0, 87, 175, 259] {
                let one = Tensor::from_f32(&device, &[1, k], &x.as_f32()[row * k..][..k]);
                let mut expected = Tensor::zeros(&device, DType::F32, &[1, n]);
                linear(&one, &w, None, Activation::None, &mut expected);
                assert!(bits(&out.as_f32()[row * n..][..n]) == bits(expected.as_f32()), "{dtype} row {row}");
            }
        }
    }
}

#[test]
fn experts_in_steps_have_the_bits_of_experts() {
    for device in devices().into_iter().chain(rounding_devices()) {
        for stored_as in WeightType::ALL {
            for sizes in expert_rows::SIZES {
                expert_rows::check(&device, stored_as, sizes);
            }
        }
    }
}

/// The expert that every token takes: in the same region, or after it where gate ends within a panel.
#[test]
fn a_shared_expert_is_its_ops_one_after_the_other() {
    for device in devices().into_iter().chain(rounding_devices()) {
        for (routed, stored_as, t, h, i) in [
            (WeightType::BF16, WeightType::BF16, 7, 67, 64),
            (WeightType::BF16, WeightType::BF16, 3, 40, 33),
            (WeightType::Int4, WeightType::Int8, 1, 96, 32),
            (WeightType::Int8, WeightType::BF16, 301, 33, 96),
            (WeightType::F32, WeightType::Int4Zero, 150, 70, 32),
        ] {
            let what = format!("{device:?} {routed} {stored_as} T {t} H {h} I {i}");
            let (e, k) = (3, 2);
            let experts = Experts::random(&device, routed, [e, h, 35], 0.2, 4);
            let gate_up = Matrix::random(&device, stored_as, 2 * i, h, 0.2, 5);
            let down = Matrix::random(&device, stored_as, h, i, 0.2, 6);
            let (x, weights) =
                (Tensor::random(&device, &[t, h], 1.0, 7), Tensor::random(&device, &[t, k], 1.0, 8));
            let mut ids = Tensor::zeros(&device, DType::I32, &[t, k]);
            for (pair, id) in ids.as_i32_mut().iter_mut().enumerate() {
                *id = (pair * 7 % e) as i32;
            }
            let mut scratch = MoeScratch::new(&device, t, [e, h, 35], k);
            let mut buffer = |width| Tensor::zeros(&device, DType::F32, &[t, width]);
            let [mut both, mut inner, mut of_shared] = [2 * i, i, h].map(&mut buffer);
            let [mut out, mut expected] = [h, h].map(&mut buffer);
            let gates = Tensor::random(&device, &[t, 1], 3.0, 9);
            for gate in [None, Some(&gates)] {
                moe(&x, &experts, &ids, &weights, &mut scratch, &mut expected);
                linear(&x, &gate_up, None, Activation::None, &mut both);
                silu_mul(&both, &mut inner);
                linear(&inner, &down, None, Activation::None, &mut of_shared);
                match gate {
                    None => add(&mut expected, &of_shared),
                    Some(gate) => add_gated(&mut expected, &of_shared, gate),
                }
                let shared = SharedExpert {
                    gate_up: &gate_up,
                    down: &down,
                    gate,
                    both: &mut both,
                    inner: &mut inner,
                    out: &mut of_shared,
                };
                let tokens = &mut TokenRoom::new(&device, &[]);
                let shared = Some((shared, tokens));
                moe_and_shared(&x, &experts, [&ids, &weights], &mut scratch, shared, &mut out);
                let is_gated = gate.is_some();
                assert!(bits(out.as_f32()) == bits(expected.as_f32()), "{what}, gated {is_gated}");
            }
        }
    }
}
