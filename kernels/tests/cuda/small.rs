//! Moving rows, slices of heads, sums and SwiGLU.

use crate::common::*;
use crate::device::{SEEDS, emulated};
use crate::naive;
use kernels::ops::*;
use kernels::*;

#[test]
fn rows_move() {
    let device = emulated(SEEDS[0]);
    crate::expert_rows::numbers_are_gathered(&device);
    for dtype in FLOATS {
        for width in [17, 20] {
            let table = Host::random(dtype, &[9, width], 1);
            let ids = [3, 8, 0, 3];
            let mut out = Tensor::unwritten(&device, DType::F32, &[4, width]);
            let expected: Vec<f64> = ids.iter().flat_map(|&id| table.rows()[id as usize].clone()).collect();
            embedding(&table.tensor(&device), &ids, &mut out);
            assert_close(&out.to_f32_vec(), &expected, 0.0, "embedding");
            // From a buffer of the device, whose contents change between calls.
            let mut indices = Indices::new(&device, 6);
            indices.set(&[1, 1, 1, 1, 1, 1]);
            indices.set(&ids);
            gather_rows(&table.tensor(&device), &indices, &mut out);
            assert_close(&out.to_f32_vec(), &expected, 0.0, "gather");

            // Stored rows are rounded to nearest even, as the host rounds them; other slots keep what they had.
            let src = Host::random(DType::F32, &[3, width], 2);
            let narrow: Vec<f32> = src.values.iter().map(|&v| v as f32).collect();
            let narrow = Host::new(dtype, &[3, width], &narrow);
            let mut cache = table.tensor(&device);
            store_rows(&src.tensor(&device), &mut cache, &[7, NOWHERE, 5]);
            let mut expected = table.rows();
            for (slot, row) in [7, 2, 5].into_iter().zip(narrow.rows()).filter(|&(slot, _)| slot != 2) {
                expected[slot] = row;
            }
            assert_close(&cache.to_f32_vec(), &expected.concat(), 0.0, "store");
        }
    }
    let (src, dst) = (Host::random(DType::F32, &[5, 13], 3), Host::random(DType::F32, &[6, 13], 4));
    let mut out = dst.tensor(&device);
    scatter_rows(&src.tensor(&device), &[4, 0], &mut out, &[1, 5]);
    let mut expected = dst.rows();
    (expected[1], expected[5]) = (src.rows()[4].clone(), src.rows()[0].clone());
    assert_close(&out.to_f32_vec(), &expected.concat(), 0.0, "scatter");
}

/// The same bits on the processor and on a GPU: a product, rounded, and a sum.
#[test]
fn rows_are_added_to_slices_of_heads() {
    for device in [Device::cpu(Some(2)), emulated(SEEDS[0])] {
        for (heads, len, dst_len, offset) in [(1, 1, 1, 0), (1, 20, 43, 23), (3, 17, 20, 3), (2, 300, 300, 0)]
        {
            let src = Host::random(DType::F32, &[4, heads, len], 1);
            let dst = Host::random(DType::F32, &[9, heads, dst_len], 2);
            let (rows, scale) = ([0, 3, 4, 8], 0.7f32);
            let mut out = dst.tensor(&device);
            add_rows(&src.tensor(&device), scale, &mut out, &rows, offset);
            let mut expected: Vec<f32> = dst.values.iter().map(|&v| v as f32).collect();
            for (i, &row) in rows.iter().enumerate() {
                for (head, j) in (0..heads).flat_map(|head| (0..len).map(move |j| (head, j))) {
                    let at = (row as usize * heads + head) * dst_len + offset + j;
                    expected[at] += scale * src.values[(i * heads + head) * len + j] as f32;
                }
            }
            assert_eq!(bits(&out.to_f32_vec()), bits(&expected), "{heads} heads of {len}");
            // All rows, which must be as many.
            let mut few = Tensor::from_f32(
                &device,
                &[4, heads, dst_len],
                &rows
                    .iter()
                    .flat_map(|&row| &dst.values[row as usize * heads * dst_len..][..heads * dst_len])
                    .map(|&v| v as f32)
                    .collect::<Vec<f32>>(),
            );
            add_scaled(&src.tensor(&device), scale, &mut few, offset);
            let kept: Vec<f32> = rows
                .iter()
                .flat_map(|&row| &expected[row as usize * heads * dst_len..][..heads * dst_len])
                .copied()
                .collect();
            assert_eq!(bits(&few.to_f32_vec()), bits(&kept), "all rows, {heads} heads of {len}");
        }
        let mut out = Tensor::zeros(&device, DType::F32, &[2, 3]);
        let mut none = Tensor::zeros(&device, DType::F32, &[1, 3]);
        none.set_rows(0);
        add_rows(&none, 1.0, &mut out, &[], 0);
        assert_eq!(out.to_f32_vec(), [0.0; 6]);
    }
}

#[test]
#[should_panic(expected = "add_rows: rows are not in ascending order")]
fn rows_are_added_once() {
    let device = Device::cpu(Some(1));
    let mut out = Tensor::zeros(&device, DType::F32, &[3, 2]);
    add_rows(&Tensor::zeros(&device, DType::F32, &[2, 2]), 1.0, &mut out, &[1, 1], 0);
}

/// Room that was filled again holds what a matrix of its own would, whatever was there before.
#[test]
fn matrices_are_filled_again() {
    for device in [Device::cpu(Some(2)), emulated(SEEDS[1])] {
        let mut room = Matrix::with_room(&device, DType::F32, 70, 50);
        let mut heads = MatrixBatch::with_room(&device, DType::F32, [3, 40, 33]);
        for (seed, dtype, n, k) in [
            (1, DType::F32, 70, 50),
            (2, DType::BF16, 5, 50),
            (3, DType::F32, 33, 7),
            (4, DType::BF16, 64, 17),
        ] {
            let source = Host::random(dtype, &[n, k], seed);
            let x = Host::random(DType::F32, &[3, k], 9).tensor(&device);
            room.refill(dtype, &source.view());
            let run = |w: &Matrix| {
                let mut out = Tensor::unwritten(&device, DType::F32, &[3, n]);
                linear(&x, w, None, Activation::None, &mut out);
                bits(&out.to_f32_vec())
            };
            assert_eq!(
                run(&room),
                run(&Matrix::pack(&device, dtype, &[source.view()])),
                "{dtype} [{n}, {k}]"
            );

            let shape = [3, n.min(40), k.min(33)];
            let value = |head: usize, n: usize, k: usize| ((head * 7 + n * 3 + k) % 11) as f32 - 5.0;
            heads.refill_f32(dtype, shape, &value);
            let x = Host::random(DType::F32, &[2, 3, shape[2]], 8).tensor(&device);
            let run = |w: &MatrixBatch| {
                let mut out = Tensor::unwritten(&device, DType::F32, &[2, 3, shape[1]]);
                heads_linear(&x, w, &mut out);
                bits(&out.to_f32_vec())
            };
            assert_eq!(
                run(&heads),
                run(&MatrixBatch::pack_f32(&device, dtype, shape, &value)),
                "{dtype} {shape:?}"
            );
        }
    }
}

#[test]
fn slices_of_heads() {
    let device = emulated(SEEDS[1]);
    for src_heads in [1, 3] {
        let (t, h) = (5, 3);
        let src = Host::random(DType::F32, &[t, src_heads, 11], 1);
        let dst = Host::random(DType::F32, &[t, h, 9], 2);
        let mut out = dst.tensor(&device);
        copy_slice(&src.tensor(&device), 4, &mut out, 2, 6);
        let mut expected = dst.rows();
        for (i, row) in expected.iter_mut().enumerate() {
            let from = if src_heads == 1 { i / h } else { i };
            row[2..8].copy_from_slice(&src.rows()[from][4..10]);
        }
        assert_close(&out.to_f32_vec(), &expected.concat(), 0.0, &format!("from {src_heads} heads"));
    }
}

#[test]
fn sums_and_swiglu() {
    let device = emulated(SEEDS[0]);
    for (t, d) in [(1, 1), (3, 129), (7, 300)] {
        let (x, y) = (Host::random(DType::F32, &[t, d], 1), Host::random(DType::F32, &[t, d], 2));
        let mut sum = x.tensor(&device);
        add(&mut sum, &y.tensor(&device));
        let expected: Vec<f64> =
            x.values.iter().zip(&y.values).map(|(a, b)| f64::from((a + b) as f32)).collect();
        assert_close(&sum.to_f32_vec(), &expected, 0.0, "add");

        let gate = Host::random(DType::F32, &[t, 1], 3);
        let mut sum = x.tensor(&device);
        add_gated(&mut sum, &y.tensor(&device), &gate.tensor(&device));
        let value = |at: usize| x.values[at] + y.values[at] / (1.0 + (-gate.values[at / d]).exp());
        let expected: Vec<f64> = (0..t * d).map(value).collect();
        assert_close(&sum.to_f32_vec(), &expected, 3e-7, "add_gated");

        let gate_up: Vec<f32> = values(3, t * 2 * d).iter().map(|v| 20.0 * v).collect();
        let gate_up = Host::new(DType::F32, &[t, 2 * d], &gate_up);
        let mut out = Tensor::unwritten(&device, DType::F32, &[t, d]);
        silu_mul(&gate_up.tensor(&device), &mut out);
        let twin = |row: Vec<f64>| (0..d).map(move |i| naive::silu(row[i]) * row[d + i]).collect::<Vec<_>>();
        let expected: Vec<f64> = gate_up.rows().into_iter().flat_map(twin).collect();
        assert_close(&out.to_f32_vec(), &expected, 1e-6, "silu_mul");
    }
}

#[test]
fn rotation() {
    let (t, h, d, half) = (7, 3, 29, 11);
    let positions = [4, 0, 12, 12, 3, 1, 9];
    let angle = |p: usize, i: usize| ((p as f32 * 0.3 + i as f32).cos(), (p as f32 * 0.3 + i as f32).sin());
    let x = Host::random(DType::F32, &[t, h, d], 1);
    let device = emulated(SEEDS[1]);
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
        assert_close(&rotated.to_f32_vec(), &twin(0..h, 5), 2e-7, &format!("{layout:?}"));
        let mut rotated = x.tensor(&device);
        rope_heads(&mut rotated, 1..2, &table, &positions, layout);
        assert_close(&rotated.to_f32_vec(), &twin(1..2, 0), 2e-7, &format!("{layout:?} one head"));
    }
}

/// Against the processor, whose own test has the definition.
#[test]
fn rotation_in_sections() {
    let (t, h, d, half) = (5, 3, 29, 11);
    let positions = [[4u32, 4, 4], [0, 12, 7], [12, 3, 12], [1, 2, 3], [9, 9, 8]];
    let angle = |p: usize, i: usize| ((p as f32 * 0.3 + i as f32).cos(), (p as f32 * 0.3 + i as f32).sin());
    let x = Host::random(DType::F32, &[t, h, d], 1);
    for sections in [RopeSections::Consecutive([2, 6, 3]), RopeSections::Interleaved([5, 4, 2])] {
        let [expected, found] = [Device::cpu(Some(1)), emulated(SEEDS[1])].map(|device| {
            let table = RopeTable::new(&device, 13, half, &angle);
            let mut rotated = x.tensor(&device);
            rope_sections(&mut rotated, &table, positions.as_flattened(), &sections);
            rotated.to_f32_vec()
        });
        assert_eq!(found, expected, "{sections:?}");
    }
}

/// Against the processor, whose own test has the definition.
#[test]
fn tables_are_resized_as_on_the_processor() {
    let (cpu, device) = (Device::cpu(Some(1)), emulated(SEEDS[0]));
    let table = Host::random(DType::F32, &[4, 5, 3], 1);
    for (h, w) in [(4, 5), (1, 1), (7, 3), (3, 11)] {
        let [expected, found] = [&cpu, &device].map(|device| {
            let mut out = Tensor::unwritten(device, DType::F32, &[h * w, 3]);
            interpolate_positions(&table.tensor(device), h, w, &mut out);
            out.to_f32_vec()
        });
        let expected: Vec<f64> = expected.into_iter().map(f64::from).collect();
        assert_close(&found, &expected, 1e-6, &format!("{h} x {w}"));
        let [expected, found] = [&cpu, &device].map(|device| {
            let mut out = Tensor::unwritten(device, DType::F32, &[h * w, 3]);
            interpolate_corners(&table.tensor(device), h, w, &mut out);
            out.to_f32_vec()
        });
        assert_eq!(found, expected, "{h} x {w}, corner to corner");
    }
}
