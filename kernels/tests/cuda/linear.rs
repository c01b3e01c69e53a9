//! Linear layers at sizes that divide nothing; a token's bits do not depend on how many there are.

use crate::common::*;
use crate::device::{SEEDS, emulated};
use crate::naive;
use kernels::ops::*;
use kernels::*;

const ACTIVATIONS: [Activation; 4] =
    [Activation::None, Activation::GeluTanh, Activation::GeluErf, Activation::QuickGelu];

/// Tensor cores take activations in the type of the weights.
fn as_taken(x: &Host, w: DType) -> Host {
    let values: Vec<f32> = x.values.iter().map(|&v| v as f32).collect();
    Host::new(w, &x.shape, &values)
}

#[test]
fn linear_layers() {
    let device = emulated(SEEDS[0]);
    let sizes =
        [(1, 1, 1), (1, 33, 257), (2, 31, 3), (11, 67, 300), (29, 40, 129), (33, 97, 48), (70, 130, 290)];
    for (i, (t, n, k)) in sizes.into_iter().enumerate() {
        for dtype in FLOATS {
            let what = format!("{dtype} T {t} N {n} K {k}");
            let (x, bias) = (Host::random(DType::F32, &[t, k], 1), Host::random(DType::F32, &[n], 2));
            let w = Host::random(dtype, &[n, k], 3);
            let packed = Matrix::pack(&device, dtype, &[w.view()]);
            assert_eq!(packed.bytes(), Matrix::packed_bytes(dtype, n, k), "{what}");
            let act = ACTIVATIONS[i % ACTIVATIONS.len()];
            let bias = (i % 2 == 1).then_some(bias);
            let mut out = Tensor::unwritten(&device, DType::F32, &[t, n]);
            let bias_tensor = bias.as_ref().map(|bias| bias.tensor(&device));
            linear(&x.tensor(&device), &packed, bias_tensor.as_ref(), act, &mut out);
            let taken = as_taken(&x, dtype);
            let expected = naive::linear(&taken.rows(), &w.rows(), bias.as_ref().map(|b| &b.values[..]), act);
            assert_close(&out.to_f32_vec(), &expected.concat(), 3e-6, &what);
        }
    }
}

#[test]
fn linear_layers_of_bf16_tokens() {
    let device = emulated(SEEDS[1]);
    for (t, n, k) in [(3, 50, 65), (40, 33, 97)] {
        let (x, w) = (Host::random(DType::BF16, &[t, k], 1), Host::random(DType::BF16, &[n, k], 2));
        let packed = Matrix::pack(&device, DType::BF16, &[w.view()]);
        let mut out = Tensor::unwritten(&device, DType::F32, &[t, n]);
        linear(&x.tensor(&device), &packed, None, Activation::None, &mut out);
        let expected = naive::linear(&x.rows(), &w.rows(), None, Activation::None);
        assert_close(&out.to_f32_vec(), &expected.concat(), 3e-6, &format!("T {t} N {n} K {k}"));
    }
}

#[test]
fn linear_layers_of_heads() {
    // Heads of 11 of which 7 are read, from 3 on; heads of 40 of which 37 are written, from 2 on.
    let (t, h, k, n) = (5, 3, 7, 37);
    let device = emulated(SEEDS[0]);
    for dtype in FLOATS {
        let x = Host::random(DType::F32, &[t, h, 11], 1);
        let weights: Vec<Host> = (0..h).map(|head| Host::random(dtype, &[n, k], 10 + head as u64)).collect();
        let views: Vec<HostTensor> = weights.iter().map(Host::view).collect();
        let w = MatrixBatch::pack(&device, dtype, &views);
        let mut out = Tensor::from_f32(&device, &[t, h, 40], &vec![9.0; t * h * 40]);
        let from = x.tensor(&device);
        let x_slice = HeadSlice { tensor: &from, rows: 0..t, offset: 3, len: k };
        heads_linear(x_slice, &w, HeadSliceMut { tensor: &mut out, rows: 0..t, offset: 2, len: n });
        for (i, (out, x)) in out.to_f32_vec().chunks(40).zip(as_taken(&x, dtype).rows()).enumerate() {
            let expected =
                naive::linear(&vec![x[3..10].to_vec()], &weights[i % h].rows(), None, Activation::None);
            assert_close(&out[2..39], &expected[0], 3e-6, &format!("{dtype} row {i}"));
            assert_eq!([out[0], out[1], out[39]], [9.0; 3], "outside the slice");
        }
    }
}

/// 1 to 70 tokens take four kernels; each of them must sum in one order, under any schedule.
#[test]
fn tokens_have_the_same_bits_alone() {
    let (t, n, k) = (70, 67, 523);
    let x = Host::random(DType::F32, &[t, k], 1);
    let bias = Host::random(DType::F32, &[n], 2);
    for dtype in FLOATS {
        let w = Host::random(dtype, &[n, k], 3);
        let run = |seed: u64, rows: std::ops::Range<usize>| {
            let device = emulated(seed);
            let part: Vec<f32> = x.values[rows.start * k..rows.end * k].iter().map(|&v| v as f32).collect();
            let x = Tensor::from_f32(&device, &[rows.len(), k], &part);
            let w = Matrix::pack(&device, dtype, &[w.view()]);
            let mut out = Tensor::unwritten(&device, DType::F32, &[rows.len(), n]);
            linear(&x, &w, Some(&bias.tensor(&device)), Activation::GeluTanh, &mut out);
            bits(&out.to_f32_vec())
        };
        let together = run(1, 0..t);
        for rows in [0..1, 69..70, 3..12, 20..50, 31..66, 0..t] {
            assert!(
                run(2, rows.clone()) == together[rows.start * n..rows.end * n],
                "{dtype}: tokens {rows:?} differ from the same in company"
            );
        }
    }
}
