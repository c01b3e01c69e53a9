//! Norms at sizes that divide nothing.

use crate::common::*;
use crate::device::{SEEDS, emulated};
use crate::naive;
use kernels::ops::*;
use kernels::*;

#[test]
fn norms() {
    for seed in SEEDS {
        let device = emulated(seed);
        for (t, d) in [(1, 1), (3, 17), (5, 576), (33, 67), (2, 2052)] {
            let what = format!("{device:?} T {t} D {d}");
            // Far from zero, so that a careless variance would show.
            let shifted: Vec<f32> = values(1, t * d).iter().map(|v| v + 3.0).collect();
            let x = Host::new(DType::F32, &[t, d], &shifted);
            let residual = Host::random(DType::F32, &[t, d], 2);
            let (w, b) = (Host::random(DType::F32, &[d], 3), Host::random(DType::F32, &[d], 4));
            let (x_t, w_t, b_t) = (x.tensor(&device), w.tensor(&device), b.tensor(&device));
            let mut out = Tensor::unwritten(&device, DType::F32, &[t, d]);

            rms_norm(&x_t, &w_t, 1e-5, &mut out);
            let expected: Vec<f64> =
                x.rows().iter().flat_map(|x| naive::rms_norm(x, &w.values, 1e-5)).collect();
            assert_close(&out.to_f32_vec(), &expected, 1e-6, &what);

            layer_norm(&x_t, &w_t, &b_t, 1e-5, &mut out);
            let expected: Vec<f64> =
                x.rows().iter().flat_map(|x| naive::layer_norm(x, &w.values, &b.values, 1e-5)).collect();
            assert_close(&out.to_f32_vec(), &expected, 4e-6, &what);

            let mut sum = residual.tensor(&device);
            add_rms_norm(&mut sum, &x_t, &w_t, 1e-5, &mut out);
            let added: Vec<f64> =
                residual.values.iter().zip(&x.values).map(|(a, b)| f64::from((a + b) as f32)).collect();
            assert_close(&sum.to_f32_vec(), &added, 0.0, &what);
            let expected: Vec<f64> =
                rows(&added, d).iter().flat_map(|x| naive::rms_norm(x, &w.values, 1e-5)).collect();
            assert_close(&out.to_f32_vec(), &expected, 1e-6, &what);
        }
    }
}

#[test]
fn layer_norms_of_heads() {
    for seed in SEEDS {
        let device = emulated(seed);
        for [t, h, d] in [[1, 1, 1], [5, 3, 7], [3, 4, 64]] {
            let shifted: Vec<f32> = values(1, t * h * d).iter().map(|v| v + 3.0).collect();
            let x = Host::new(DType::F32, &[t, h, d], &shifted);
            let (w, b) = (Host::random(DType::F32, &[h, d], 2), Host::random(DType::F32, &[h, d], 3));
            let mut out = Tensor::unwritten(&device, DType::F32, &[t, h, d]);
            layer_norm_heads(&x.tensor(&device), &w.tensor(&device), &b.tensor(&device), 1e-5, &mut out);
            let expected = naive::layer_norm_heads([&x, &w, &b].map(Host::rows), 1e-5);
            assert_close(&out.to_f32_vec(), &expected, 4e-6, &format!("{device:?} {t} {h} {d}"));
        }
    }
}

/// The same, where rows are of 16 bits: the sums are those of what is stored.
#[test]
fn norms_of_bf16() {
    let device = emulated(3);
    for (t, d) in [(3, 17), (2, 260)] {
        let (x, residual) = (Host::random(DType::BF16, &[t, d], 1), Host::random(DType::BF16, &[t, d], 2));
        let (w, b) = (Host::random(DType::F32, &[d], 3), Host::random(DType::F32, &[d], 4));
        let mut out = Tensor::unwritten(&device, DType::BF16, &[t, d]);
        layer_norm(&x.tensor(&device), &w.tensor(&device), &b.tensor(&device), 1e-5, &mut out);
        let expected: Vec<f64> =
            x.rows().iter().flat_map(|x| naive::layer_norm(x, &w.values, &b.values, 1e-5)).collect();
        assert_close(&out.to_f32_vec(), &expected, 4e-3, "layer_norm");

        let mut sum = residual.tensor(&device);
        add_rms_norm(&mut sum, &x.tensor(&device), &w.tensor(&device), 1e-5, &mut out);
        let added: Vec<f32> = residual.values.iter().zip(&x.values).map(|(a, b)| (a + b) as f32).collect();
        let added = Host::new(DType::BF16, &[t, d], &added);
        assert_close(&sum.to_f32_vec(), &added.values, 0.0, "residual");
        let expected: Vec<f64> =
            added.rows().iter().flat_map(|x| naive::rms_norm(x, &w.values, 1e-5)).collect();
        assert_close(&out.to_f32_vec(), &expected, 4e-3, "add_rms_norm");
    }
}

#[test]
fn rows_have_the_same_bits_alone() {
    let (t, d) = (9, 261);
    let x = Host::random(DType::F32, &[t, d], 1);
    let w = Host::random(DType::F32, &[d], 2);
    let run = |seed: u64, rows: std::ops::Range<usize>| {
        let device = emulated(seed);
        let part: Vec<f32> = x.values[rows.start * d..rows.end * d].iter().map(|&v| v as f32).collect();
        let mut out = Tensor::unwritten(&device, DType::F32, &[rows.len(), d]);
        rms_norm(&Tensor::from_f32(&device, &[rows.len(), d], &part), &w.tensor(&device), 1e-6, &mut out);
        bits(&out.to_f32_vec())
    };
    let together = run(1, 0..t);
    for rows in [0..1, 8..9, 3..7, 0..t] {
        assert_eq!(run(7, rows.clone()), together[rows.start * d..rows.end * d], "rows {rows:?}");
    }
}
