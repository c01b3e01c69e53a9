//! Linear layers and experts, of every type of weights.

use crate::common::*;
use crate::naive;
use kernels::ops::*;
use kernels::*;

const ACTIVATIONS: [Activation; 4] =
    [Activation::None, Activation::GeluTanh, Activation::GeluErf, Activation::QuickGelu];

#[test]
fn linear_layers() {
    let sizes =
        [(1, 1, 1), (1, 33, 257), (2, 31, 3), (5, 67, 300), (13, 32, 256), (29, 97, 513), (151, 65, 270)];
    for device in devices() {
        for (i, (t, n, k)) in sizes.into_iter().enumerate() {
            for dtype in WeightType::ALL {
                let what = format!("{device:?} {dtype} T {t} N {n} K {k}");
                let (x, bias) = (Host::random(DType::F32, &[t, k], 1), Host::random(DType::F32, &[n], 2));
                // Two parts of other types, stacked.
                let cut = n.div_ceil(3);
                let parts = [(cut, DType::BF16, 3), (n - cut, DType::F32, 4)];
                let parts = parts.map(|(n, dtype, seed)| Host::random(dtype, &[n, k], seed));
                let w = Matrix::pack(&device, dtype, &parts.each_ref().map(Host::view));
                assert_eq!(w.bytes(), Matrix::packed_bytes(dtype, n, k), "{what}");
                let stacked: Vec<f64> = parts.iter().flat_map(|p| p.values.clone()).collect();
                let stacked = kept(dtype, &stacked, k);
                let act = ACTIVATIONS[i % ACTIVATIONS.len()];
                let bias = (i % 2 == 1).then_some(bias);
                let mut out = Tensor::zeros(&device, DType::F32, &[t, n]);
                let bias_tensor = bias.as_ref().map(|bias| bias.tensor(&device));
                linear(&x.tensor(&device), &w, bias_tensor.as_ref(), act, &mut out);
                let expected = naive::linear(&x.rows(), &stacked, bias.as_ref().map(|b| &b.values[..]), act);
                assert_close(out.as_f32(), &expected.concat(), 3e-6, &what);
            }
        }
    }
}

#[test]
fn linear_layers_of_heads() {
    // Heads of 11 of which 7 are read, from 3 on; heads of 40 of which 37 are written, from 2 on.
    let (t, h, k, n) = (5, 3, 7, 37);
    for device in devices() {
        for dtype in WeightType::ALL {
            let x = Host::random(DType::F32, &[t, h, 11], 1);
            let weights: Vec<Host> =
                (0..h).map(|head| Host::random(DType::F32, &[n, k], 10 + head as u64)).collect();
            let views: Vec<HostTensor> = weights.iter().map(Host::view).collect();
            let packed = MatrixBatch::pack(&device, dtype, &views);
            assert_eq!(packed.bytes(), MatrixBatch::packed_bytes(dtype, [h, n, k]));
            let by_value =
                MatrixBatch::pack_f32(&device, dtype, [h, n, k], &|h, n, c| weights[h].view().get(n * k + c));
            for w in [packed, by_value] {
                let mut out = Tensor::from_f32(&device, &[t, h, 40], &vec![9.0; t * h * 40]);
                let from = x.tensor(&device);
                let x_slice = HeadSlice { tensor: &from, rows: 0..t, offset: 3, len: k };
                heads_linear(x_slice, &w, HeadSliceMut { tensor: &mut out, rows: 0..t, offset: 2, len: n });
                for (i, (out, x)) in out.as_f32().chunks(40).zip(x.rows()).enumerate() {
                    let expected = naive::linear(
                        &vec![x[3..10].to_vec()],
                        &kept(dtype, &weights[i % h].values, k),
                        None,
                        Activation::None,
                    );
                    assert_close(&out[2..39], &expected[0], 3e-6, &format!("{device:?} {dtype} row {i}"));
                    assert_eq!([out[0], out[1], out[39]], [9.0; 3], "outside the slice");
                }
            }
        }
    }
}

/// Which of E experts each of T tokens takes, `[T, k]`: never the last one, if there are two.
pub fn chosen(device: &Device, [t, k, e]: [usize; 3]) -> (Vec<i32>, Tensor) {
    let ids: Vec<i32> = (0..t * k).map(|pair| ((pair * 7 + pair / 5) % (e - 1).max(1)) as i32).collect();
    let mut tensor = Tensor::zeros(device, DType::I32, &[t, k]);
    tensor.as_i32_mut().copy_from_slice(&ids);
    (ids, tensor)
}

#[test]
fn experts() {
    for device in devices() {
        for (dtype, t, h, i, e, k) in [
            (WeightType::F32, 1, 5, 3, 2, 1),
            (WeightType::BF16, 7, 67, 33, 5, 2),
            (WeightType::F16, 61, 270, 97, 4, 3),
            (WeightType::BF16, 301, 33, 65, 3, 2),
            (WeightType::Int8, 7, 67, 33, 5, 2),
            (WeightType::Int8, 61, 270, 97, 4, 3),
            (WeightType::Int4, 1, 5, 3, 2, 1),
            (WeightType::Int4, 301, 33, 65, 3, 2),
            (WeightType::Int4Zero, 7, 290, 64, 5, 2),
            (WeightType::Int4Zero, 61, 96, 33, 4, 3),
        ] {
            let what = format!("{device:?} {dtype} T {t} H {h} I {i} E {e} k {k}");
            let hosts = random_experts(DType::BF16, [e, h, i]);
            let experts = pack_experts(&device, dtype, &hosts);
            assert_eq!(experts.bytes(), Experts::packed_bytes(dtype, [e, h, i]), "{what}");
            let x = Host::random(DType::F32, &[t, h], 90);
            let weights = Host::random(DType::F32, &[t, k], 91);
            let (ids, id_tensor) = chosen(&device, [t, k, e]);
            let mut scratch = MoeScratch::new(&device, t + 2, [e, h, i], k);
            let mut out = Tensor::from_f32(&device, &[t, h], &vec![7.0; t * h]);
            moe(&x.tensor(&device), &experts, &id_tensor, &weights.tensor(&device), &mut scratch, &mut out);
            let twins: Vec<naive::Expert> = hosts
                .iter()
                .map(|parts| {
                    let [gate, up, down] =
                        parts.each_ref().map(|part| kept(dtype, &part.values, part.shape[1]));
                    naive::Expert { gate, up, down }
                })
                .collect();
            let expected = naive::moe(&x.rows(), &twins, &ids, &weights.values);
            assert_close(out.as_f32(), &expected.concat(), 5e-6, &what);
        }
    }
}

/// A source whose rows are in groups already, with scales and levels that no quantiser would choose.
struct Published(Vec<GroupedRow>);

impl WeightRows for Published {
    fn shape(&self) -> [usize; 2] {
        [self.0.len(), self.0[0].levels.len()]
    }

    fn read_f32(&self, row: usize, out: &mut [f32]) {
        self.0[row].dequantize(out);
    }

    fn read_groups(&self, row: usize, stored_as: WeightType, out: &mut GroupedRow) -> bool {
        out.clone_from(&self.0[row]);
        stored_as == WeightType::Int4Zero
    }
}

#[test]
fn groups_of_a_file_are_not_rounded_again() {
    let (n, k) = (37, 70);
    let row = |row: usize| {
        let mut groups = GroupedRow::new(k);
        for (i, level) in groups.levels.iter_mut().enumerate() {
            *level = ((row * 5 + i * 3) % 7) as i8 - 2;
        }
        for (group, (scale, zero)) in groups.scales.iter_mut().zip(&mut groups.zeros).enumerate() {
            *scale = half::f16::from_f32(0.1 + 0.037 * (row + group) as f32);
            *zero = half::f16::from_f32((row % 16) as f32 - 8.0);
        }
        groups
    };
    let source = Published((0..n).map(row).collect());
    let mut values = vec![0.0; k];
    let rows: Vec<Vec<f64>> = (0..n)
        .map(|row| {
            source.read_f32(row, &mut values);
            values.iter().map(|&v| f64::from(v)).collect()
        })
        .collect();
    for device in devices() {
        let x = Host::random(DType::F32, &[3, k], 1);
        let w = Matrix::pack(&device, WeightType::Int4Zero, &[&source]);
        let mut out = Tensor::zeros(&device, DType::F32, &[3, n]);
        linear(&x.tensor(&device), &w, None, Activation::None, &mut out);
        let expected = naive::linear(&x.rows(), &rows, None, Activation::None);
        assert_close(out.as_f32(), &expected.concat(), 3e-6, &format!("{device:?}"));
    }
}
