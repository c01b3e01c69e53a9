//! Norms, rotation, moving rows, routing, interpolation, activations.

use crate::common::*;
use crate::latent_rows::SIZES;
use crate::naive;
use kernels::ops::*;
use kernels::*;

#[test]
fn norms() {
    for device in devices() {
        for (t, d) in [(1, 1), (3, 17), (5, 576), (401, 67)] {
            let what = format!("{device:?} T {t} D {d}");
            // Far from zero, so that a careless variance would show.
            let shifted: Vec<f32> = values(1, t * d).iter().map(|v| v + 3.0).collect();
            let x = Host::new(DType::F32, &[t, d], &shifted);
            let residual = Host::random(DType::F32, &[t, d], 2);
            let (w, b) = (Host::random(DType::F32, &[d], 3), Host::random(DType::F32, &[d], 4));
            let (x_t, w_t, b_t) = (x.tensor(&device), w.tensor(&device), b.tensor(&device));
            let mut out = Tensor::zeros(&device, DType::F32, &[t, d]);

            rms_norm(&x_t, &w_t, 1e-5, &mut out);
            let expected: Vec<f64> =
                x.rows().iter().flat_map(|x| naive::rms_norm(x, &w.values, 1e-5)).collect();
            assert_close(out.as_f32(), &expected, 1e-6, &what);

            layer_norm(&x_t, &w_t, &b_t, 1e-5, &mut out);
            let expected: Vec<f64> =
                x.rows().iter().flat_map(|x| naive::layer_norm(x, &w.values, &b.values, 1e-5)).collect();
            assert_close(out.as_f32(), &expected, 4e-6, &what);

            let mut sum = residual.tensor(&device);
            add_rms_norm(&mut sum, &x_t, &w_t, 1e-5, &mut out);
            let added: Vec<f64> =
                residual.values.iter().zip(&x.values).map(|(a, b)| f64::from((a + b) as f32)).collect();
            assert_close(sum.as_f32(), &added, 0.0, &what);
            let expected: Vec<f64> =
                rows(&added, d).iter().flat_map(|x| naive::rms_norm(x, &w.values, 1e-5)).collect();
            assert_close(out.as_f32(), &expected, 1e-6, &what);
        }
    }
}

#[test]
fn a_norm_of_every_head() {
    let device = Device::cpu(Some(2));
    let x = Host::random(DType::F32, &[5, 3, 7], 1);
    let w = Host::random(DType::F32, &[7], 2);
    let mut out = Tensor::zeros(&device, DType::F32, &[5, 3, 7]);
    rms_norm(&x.tensor(&device), &w.tensor(&device), 1e-6, &mut out);
    let expected: Vec<f64> = x.rows().iter().flat_map(|x| naive::rms_norm(x, &w.values, 1e-6)).collect();
    assert_close(out.as_f32(), &expected, 1e-6, "heads");
}

/// Each head has its own weight and bias.
#[test]
fn a_layer_norm_of_every_head() {
    for device in devices() {
        for [t, h, d] in [[1, 1, 1], [5, 3, 7], [37, 4, 64]] {
            let shifted: Vec<f32> = values(1, t * h * d).iter().map(|v| v + 3.0).collect();
            let x = Host::new(DType::F32, &[t, h, d], &shifted);
            let (w, b) = (Host::random(DType::F32, &[h, d], 2), Host::random(DType::F32, &[h, d], 3));
            let mut out = Tensor::zeros(&device, DType::F32, &[t, h, d]);
            layer_norm_heads(&x.tensor(&device), &w.tensor(&device), &b.tensor(&device), 1e-5, &mut out);
            let expected = naive::layer_norm_heads([&x, &w, &b].map(Host::rows), 1e-5);
            assert_close(out.as_f32(), &expected, 4e-6, &format!("{device:?} {t} {h} {d}"));
        }
    }
}

#[test]
fn rotation() {
    let (t, h, d, half) = (7, 3, 29, 11);
    let positions = [4, 0, 12, 12, 3, 1, 9];
    let angle = |p: usize, i: usize| ((p as f32 * 0.3 + i as f32).cos(), (p as f32 * 0.3 + i as f32).sin());
    let x = Host::random(DType::F32, &[t, h, d], 1);
    for device in devices() {
        let table = RopeTable::new(&device, 13, half, &angle);
        for layout in [RopeLayout::Half, RopeLayout::Interleaved] {
            let angles = |token: usize| -> Vec<(f64, f64)> {
                let angles = (0..half).map(|j| angle(positions[token] as usize, j));
                angles.map(|(c, s)| (f64::from(c), f64::from(s))).collect()
            };
            let twin = |heads: std::ops::Range<usize>, offset: usize| {
                naive::rope_heads(x.rows(), (heads, h), offset, &angles, layout)
            };
            let mut rotated = x.tensor(&device);
            rope(&mut rotated, 5, &table, &positions, layout);
            assert_close(rotated.as_f32(), &twin(0..h, 5), 2e-7, &format!("{device:?} {layout:?}"));
            let mut rotated = x.tensor(&device);
            rope_heads(&mut rotated, 1..2, &table, &positions, layout);
            assert_close(rotated.as_f32(), &twin(1..2, 0), 2e-7, &format!("{device:?} {layout:?} one head"));
        }
    }
}

/// Each pair turns by one of three positions; a token whose three are equal has the bits of one position.
#[test]
fn rotation_in_sections() {
    let (t, h, d, half) = (5, 3, 29, 11);
    let positions = [[4u32, 4, 4], [0, 12, 7], [12, 3, 12], [1, 2, 3], [9, 9, 8]];
    let angle = |p: usize, i: usize| ((p as f32 * 0.3 + i as f32).cos(), (p as f32 * 0.3 + i as f32).sin());
    let x = Host::random(DType::F32, &[t, h, d], 1);
    let cases = [
        (RopeSections::Consecutive([2, 6, 3]), [0, 0, 1, 1, 1, 1, 1, 1, 2, 2, 2]),
        (RopeSections::Consecutive([0, 11, 0]), [1; 11]),
        (RopeSections::Interleaved([5, 4, 2]), [0, 1, 2, 0, 1, 2, 0, 1, 0, 0, 1]),
    ];
    for device in devices() {
        let table = RopeTable::new(&device, 13, half, &angle);
        for (sections, axes) in cases {
            let twin = |(i, mut row): (usize, Vec<f64>)| {
                let position = |j: usize| positions[i / h][axes[j]] as usize;
                let angles = (0..half).map(|j| angle(position(j), j));
                let angles: Vec<_> = angles.map(|(c, s)| (f64::from(c), f64::from(s))).collect();
                naive::rope(&mut row, 0, &angles, RopeLayout::Half);
                row
            };
            let expected: Vec<f64> = x.rows().into_iter().enumerate().flat_map(twin).collect();
            let mut rotated = x.tensor(&device);
            rope_sections(&mut rotated, &table, positions.as_flattened(), &sections);
            let what = format!("{device:?} {sections:?}");
            assert_close(rotated.as_f32(), &expected, 2e-7, &what);
            let mut plain = x.tensor(&device);
            rope(&mut plain, 0, &table, &positions.map(|axes| axes[0]), RopeLayout::Half);
            assert_eq!(rotated.as_f32()[..h * d], plain.as_f32()[..h * d], "{what}");
        }
    }
}

#[test]
fn rows_move() {
    for device in devices() {
        crate::expert_rows::numbers_are_gathered(&device);
        for dtype in FLOATS {
            let table = Host::random(dtype, &[9, 17], 1);
            let ids = [3, 8, 0, 3];
            let mut out = Tensor::zeros(&device, DType::F32, &[4, 17]);
            let expected: Vec<f64> = ids.iter().flat_map(|&id| table.rows()[id as usize].clone()).collect();
            embedding(&table.tensor(&device), &ids, &mut out);
            assert_close(out.as_f32(), &expected, 0.0, "embedding");
            gather_rows(&table.tensor(&device), &ids, &mut out);
            assert_close(out.as_f32(), &expected, 0.0, "gather");

            // Stored rows are rounded to nearest even, as the host rounds them; other slots keep what they had.
            let src = Host::random(DType::F32, &[3, 17], 2);
            let narrow: Vec<f32> = src.values.iter().map(|&v| v as f32).collect();
            let narrow = Host::new(dtype, &[3, 17], &narrow);
            let mut cache = table.tensor(&device);
            store_rows(&src.tensor(&device), &mut cache, &[7, NOWHERE, 5]);
            let mut expected = table.rows();
            for (slot, row) in [7, 2, 5].into_iter().zip(narrow.rows()).filter(|&(slot, _)| slot != 2) {
                expected[slot] = row;
            }
            assert_close(&cache.to_f32_vec(), &expected.concat(), 0.0, "store");
        }
        let (src, dst) = (Host::random(DType::F32, &[5, 13], 3), Host::random(DType::F32, &[6, 13], 4));
        let mut out = dst.tensor(&device);
        scatter_rows(&src.tensor(&device), &[4, 0], &mut out, &[1, 5]);
        let mut expected = dst.rows();
        (expected[1], expected[5]) = (src.rows()[4].clone(), src.rows()[0].clone());
        assert_close(out.as_f32(), &expected.concat(), 0.0, "scatter");
    }
}

#[test]
fn slices_of_heads() {
    let device = Device::cpu(Some(2));
    for heads in [1, 3] {
        let src = Host::random(DType::F32, &[5, heads, 7], 1);
        let dst = Host::random(DType::F32, &[5, 3, 11], 2);
        let mut out = dst.tensor(&device);
        copy_slice(&src.tensor(&device), 2, &mut out, 6, 4);
        let mut expected = dst.rows();
        for (i, row) in expected.iter_mut().enumerate() {
            row[6..10].copy_from_slice(&src.rows()[if heads == 1 { i / 3 } else { i }][2..6]);
        }
        assert_close(out.as_f32(), &expected.concat(), 0.0, "copy_slice");
    }
}

#[test]
fn sums_and_swiglu() {
    for device in devices() {
        let (t, i) = (407, 67);
        let (x, y) = (Host::random(DType::F32, &[t, 2 * i], 1), Host::random(DType::F32, &[t, 2 * i], 2));
        let mut sum = x.tensor(&device);
        add(&mut sum, &y.tensor(&device));
        let expected: Vec<f64> =
            x.values.iter().zip(&y.values).map(|(x, y)| f64::from((x + y) as f32)).collect();
        assert_close(sum.as_f32(), &expected, 0.0, "add");

        let gate = Host::random(DType::F32, &[t, 1], 3);
        let mut sum = x.tensor(&device);
        add_gated(&mut sum, &y.tensor(&device), &gate.tensor(&device));
        let row = |row: usize| (0..2 * i).map(move |column| row * 2 * i + column);
        let value = |row: usize, at: usize| x.values[at] + y.values[at] / (1.0 + (-gate.values[row]).exp());
        let expected: Vec<f64> =
            (0..t).flat_map(|r| row(r).map(|at| value(r, at)).collect::<Vec<_>>()).collect();
        assert_close(sum.as_f32(), &expected, 3e-7, "add_gated");

        let scaled: Vec<f32> = x.values.iter().map(|&v| 12.0 * v as f32).collect();
        let x = Host::new(DType::F32, &[t, 2 * i], &scaled);
        let mut out = Tensor::zeros(&device, DType::F32, &[t, i]);
        silu_mul(&x.tensor(&device), &mut out);
        let expected: Vec<f64> = x
            .rows()
            .iter()
            .flat_map(|row| (0..i).map(|j| naive::silu(row[j]) * row[i + j]).collect::<Vec<_>>())
            .collect();
        assert_close(out.as_f32(), &expected, 3e-7, "silu_mul");
    }
}

/// Through a linear layer that is the identity: each activation from -30 to 30, and far outside.
#[test]
fn activations() {
    for device in devices() {
        let mut numbers: Vec<f32> = (-3000..=3000).map(|i| i as f32 / 100.0).collect();
        numbers.extend([-3e4, -1e3, -88.0, -87.2, 88.0, 89.0, 1e3, 3e4, -1e-30, 1e-30]);
        let w = Matrix::pack(&device, DType::F32, &[Host::new(DType::F32, &[1, 1], &[1.0]).view()]);
        let x = Tensor::from_f32(&device, &[numbers.len(), 1], &numbers);
        let mut out = Tensor::zeros(&device, DType::F32, &[numbers.len(), 1]);
        for (act, tolerance) in
            [(Activation::GeluTanh, 5e-7), (Activation::GeluErf, 4e-7), (Activation::QuickGelu, 3e-7)]
        {
            linear(&x, &w, None, act, &mut out);
            for (&x, &found) in numbers.iter().zip(out.as_f32()) {
                let expected = naive::activate(act, f64::from(x));
                let error = (f64::from(found) - expected).abs();
                assert!(
                    error <= tolerance * f64::from(x.abs()).max(1e-3),
                    "{device:?} {act:?}({x}) = {found}, not {expected}"
                );
            }
        }
    }
}

#[test]
fn routing() {
    let device = Device::cpu(Some(1));
    let (t, e) = (57, 24);
    let logits: Vec<f32> = values(1, t * e).iter().map(|v| 3.0 * v).collect();
    let logits = Host::new(DType::F32, &[t, e], &logits);
    let bias = Host::random(DType::F32, &[e], 2);
    for (scoring, num_groups, top_groups, group_score, normalize) in [
        (Scoring::Softmax, 1, 1, GroupScore::Max, false),
        (Scoring::Softmax, 8, 3, GroupScore::Max, false),
        (Scoring::Sigmoid, 1, 1, GroupScore::SumOfTopTwo, true),
        (Scoring::Sigmoid, 4, 2, GroupScore::SumOfTopTwo, true),
    ] {
        let config =
            RouterConfig { scoring, top_k: 5, num_groups, top_groups, group_score, normalize, scale: 2.446 };
        let with_bias = (scoring == Scoring::Sigmoid).then_some(&bias);
        let mut ids = Tensor::zeros(&device, DType::I32, &[t, 5]);
        let mut weights = Tensor::zeros(&device, DType::F32, &[t, 5]);
        let bias_tensor = with_bias.map(|bias| bias.tensor(&device));
        route(&logits.tensor(&device), bias_tensor.as_ref(), &config, &mut ids, &mut weights);
        for (token, row) in logits.rows().iter().enumerate() {
            let (expected_ids, expected_weights) =
                naive::route(row, with_bias.map(|bias| &bias.values[..]), &config);
            let found: Vec<usize> = ids.as_i32()[token * 5..][..5].iter().map(|&id| id as usize).collect();
            assert_eq!(found, expected_ids, "{config:?} token {token}");
            assert_close(&weights.as_f32()[token * 5..][..5], &expected_weights, 1e-6, "weights");
        }
    }
}

#[test]
fn equal_scores_go_to_the_lower_expert() {
    let device = Device::cpu(Some(1));
    let config = RouterConfig {
        scoring: Scoring::Sigmoid,
        top_k: 3,
        num_groups: 2,
        top_groups: 1,
        group_score: GroupScore::SumOfTopTwo,
        normalize: true,
        scale: 3.0,
    };
    let logits = Tensor::from_f32(&device, &[1, 8], &[1.0; 8]);
    let mut ids = Tensor::zeros(&device, DType::I32, &[1, 3]);
    let mut weights = Tensor::zeros(&device, DType::F32, &[1, 3]);
    route(&logits, None, &config, &mut ids, &mut weights);
    assert_eq!(ids.as_i32(), [0, 1, 2]);
    assert_close(weights.as_f32(), &[1.0; 3], 1e-6, "weights");
}

#[test]
fn tables_of_positions() {
    let device = Device::cpu(Some(2));
    let table = Host::random(DType::F32, &[4, 5, 3], 1);
    let tensor = table.tensor(&device);
    let mut same = Tensor::zeros(&device, DType::F32, &[20, 3]);
    interpolate_positions(&tensor, 4, 5, &mut same);
    assert_eq!(bits(same.as_f32()), bits(tensor.as_f32()), "the same size");
    for (h, w) in [(1, 1), (7, 3), (3, 11), (9, 10)] {
        let mut out = Tensor::zeros(&device, DType::F32, &[h * w, 3]);
        interpolate_positions(&tensor, h, w, &mut out);
        let kernel = |x: f64| {
            let (x, a) = (x.abs(), -0.75);
            if x <= 1.0 {
                ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
            } else {
                ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a
            }
        };
        let taps = |i: usize, from: usize, to: usize| -> Vec<(usize, f64)> {
            let at = from as f64 / to as f64 * (i as f64 + 0.5) - 0.5;
            let near = (-1..=2).map(|offset| at.floor() + f64::from(offset));
            near.map(|p| (p.clamp(0.0, from as f64 - 1.0) as usize, kernel(p - at))).collect()
        };
        let mut expected = Vec::new();
        for y in 0..h {
            for x in 0..w {
                for c in 0..3 {
                    let row = |y: usize| -> f64 {
                        taps(x, 5, w).iter().map(|(x, k)| k * table.values[(y * 5 + x) * 3 + c]).sum()
                    };
                    expected.push(taps(y, 4, h).iter().map(|(y, k)| k * row(*y)).sum::<f64>());
                }
            }
        }
        assert_close(out.as_f32(), &expected, 2e-6, &format!("{h} x {w}"));
    }
}

#[test]
fn tables_of_positions_from_corner_to_corner() {
    let table = Host::random(DType::F32, &[4, 5, 19], 1);
    for device in devices() {
        for (h, w) in [(4, 5), (1, 1), (1, 7), (7, 3), (9, 10)] {
            let mut out = Tensor::zeros(&device, DType::F32, &[h * w, 19]);
            interpolate_corners(&table.tensor(&device), h, w, &mut out);
            let place = |i: usize, from: usize, to: usize| (i * (from - 1)) as f64 / (to - 1).max(1) as f64;
            let mut expected = Vec::new();
            for (y, x) in (0..h).flat_map(|y| (0..w).map(move |x| (place(y, 4, h), place(x, 5, w)))) {
                for c in 0..19 {
                    let at = |row: usize, column: usize| {
                        let near = (1.0 - (y - row as f64).abs()).max(0.0)
                            * (1.0 - (x - column as f64).abs()).max(0.0);
                        near * table.values[(row * 5 + column) * 19 + c]
                    };
                    expected.push((0..20).map(|i| at(i / 5, i % 5)).sum::<f64>());
                }
            }
            assert_close(out.as_f32(), &expected, 2e-6, &format!("{h} x {w}, {device:?}"));
        }
    }
}

/// Norm, rotation and store of what latent attention reads, in one op: the bits of its parts.
#[test]
fn latents_are_prepared_as_by_their_parts() {
    for device in devices() {
        let kinds = FLOATS.map(KvType::Float).into_iter().chain([KvType::Int8]);
        for (sizes, stored_as) in
            SIZES.into_iter().flat_map(|sizes| kinds.clone().map(move |kind| (sizes, kind)))
        {
            let expected = sizes.in_parts(&device, stored_as).expect("rows");
            let found = sizes.together(&device, stored_as, 0..7).expect("rows");
            assert!(found == expected, "{device:?} {stored_as:?} {sizes:?}");
        }
    }
}
