//! Linear layers at sizes that divide nothing; a token's bits do not depend on how many there are.

use crate::common::*;
use crate::device::{SEEDS, emulated, with_wgmma};
use crate::naive;
use half::f16;
use kernels::ops::*;
use kernels::*;

const ACTIVATIONS: [Activation; 4] =
    [Activation::None, Activation::GeluTanh, Activation::GeluErf, Activation::QuickGelu];

/// Tensor cores take activations in the type of the weights, or in bf16 where those are quantised.
pub fn as_taken(x: &Host, w: WeightType) -> Host {
    let values: Vec<f32> = x.values.iter().map(|&v| v as f32).collect();
    Host::new(w.float().unwrap_or(DType::BF16), &x.shape, &values)
}

/// Weights as a checkpoint has them, before they are kept as `stored_as`.
fn weights(stored_as: WeightType, [n, k]: [usize; 2], seed: u64) -> Host {
    Host::random(stored_as.float().unwrap_or(DType::F32), &[n, k], seed)
}

#[test]
fn linear_layers() {
    let device = emulated(SEEDS[0]);
    // The last three have blocks of 128 tokens.
    let sizes = [
        (1, 1, 1),
        (1, 33, 257),
        (2, 31, 3),
        (11, 67, 300),
        (29, 40, 129),
        (33, 97, 48),
        (70, 130, 290),
        (140, 150, 64),
        (150, 131, 37),
        (129, 140, 70),
    ];
    for (i, (t, n, k)) in sizes.into_iter().enumerate() {
        for stored_as in WeightType::ON_GPU {
            let what = format!("{stored_as} T {t} N {n} K {k}");
            let (x, bias) = (Host::random(DType::F32, &[t, k], 1), Host::random(DType::F32, &[n], 2));
            let w = weights(stored_as, [n, k], 3);
            let packed = Matrix::pack(&device, stored_as, &[w.view()]);
            assert_eq!(packed.bytes(), Matrix::packed_bytes(stored_as, n, k), "{what}");
            let act = ACTIVATIONS[i % ACTIVATIONS.len()];
            let bias = (i % 2 == 1).then_some(bias);
            let mut out = Tensor::unwritten(&device, DType::F32, &[t, n]);
            let bias_tensor = bias.as_ref().map(|bias| bias.tensor(&device));
            linear(&x.tensor(&device), &packed, bias_tensor.as_ref(), act, &mut out);
            let (taken, kept) = (as_taken(&x, stored_as).rows(), kept(stored_as, &w.values, k));
            let expected = naive::linear(&taken, &kept, bias.as_ref().map(|b| &b.values[..]), act);
            assert_close(&out.to_f32_vec(), &expected.concat(), 3e-6, &what);
        }
    }
}

#[test]
fn linear_layers_of_bf16_tokens() {
    let device = emulated(SEEDS[1]);
    for (t, n, k) in [(3, 50, 65), (40, 33, 97), (40, 33, 72), (140, 150, 72), (130, 150, 37)] {
        let (x, w) = (Host::random(DType::BF16, &[t, k], 1), Host::random(DType::BF16, &[n, k], 2));
        let packed = Matrix::pack(&device, DType::BF16, &[w.view()]);
        let mut out = Tensor::unwritten(&device, DType::F32, &[t, n]);
        linear(&x.tensor(&device), &packed, None, Activation::None, &mut out);
        let expected = naive::linear(&x.rows(), &w.rows(), None, Activation::None);
        assert_close(&out.to_f32_vec(), &expected.concat(), 3e-6, &format!("T {t} N {n} K {k}"));
    }
}

/// Two layers of one x: the bits of each by itself, with and without a bias, in one launch for few tokens.
#[test]
fn pairs_of_layers() {
    let device = emulated(SEEDS[1]);
    let Device::Cuda(cuda) = &device else { panic!("not a GPU") };
    use WeightType::*;
    for (types, t, launches) in [
        ([BF16; 2], 1, 1),
        ([F16; 2], 9, 1),
        ([Int8; 2], 32, 1),
        ([Int4; 2], 3, 1),
        ([Int4Zero; 2], 12, 1),
        ([BF16; 2], 33, 2),
        ([F32; 2], 3, 2),
        ([Int8, BF16], 3, 2),
    ] {
        let (k, widths) = (299, [33, 70]);
        let x = Host::random(DType::F32, &[t, k], 1).tensor(&device);
        let [first, second] = [0, 1].map(|i| {
            let w = weights(types[i], [widths[i], k], 2 + i as u64);
            Matrix::pack(&device, types[i], &[w.view()])
        });
        let bias = Host::random(DType::F32, &[widths[1]], 5).tensor(&device);
        let out = |n: usize| Tensor::unwritten(&device, DType::F32, &[t, n]);
        let [[mut a, mut b], [mut expected_a, mut expected_b]] = [(); 2].map(|()| widths.map(out));
        linear(&x, &first, None, Activation::None, &mut expected_a);
        linear(&x, &second, Some(&bias), Activation::None, &mut expected_b);
        let before = cuda.num_launches();
        let first = LinearPart { weight: &first, bias: None, out: &mut a };
        linear_pair(&x, [first, LinearPart { weight: &second, bias: Some(&bias), out: &mut b }]);
        assert_eq!(cuda.num_launches() - before, launches, "{types:?} T {t}");
        for (found, expected) in [(a, expected_a), (b, expected_b)] {
            assert_eq!(bits(&found.to_f32_vec()), bits(&expected.to_f32_vec()), "{types:?} T {t}");
        }
    }
}

#[test]
fn linear_layers_of_heads() {
    // Heads of 11 of which 7 are read, from 3 on; heads of 40 of which 37 are written, from 2 on.
    let (t, h, k, n) = (5, 3, 7, 37);
    let device = emulated(SEEDS[0]);
    for stored_as in WeightType::ON_GPU {
        let x = Host::random(DType::F32, &[t, h, 11], 1);
        let weights: Vec<Host> = (0..h).map(|head| weights(stored_as, [n, k], 10 + head as u64)).collect();
        let views: Vec<HostTensor> = weights.iter().map(Host::view).collect();
        let w = MatrixBatch::pack(&device, stored_as, &views);
        let mut out = Tensor::from_f32(&device, &[t, h, 40], &vec![9.0; t * h * 40]);
        let from = x.tensor(&device);
        let x_slice = HeadSlice { tensor: &from, rows: 0..t, offset: 3, len: k };
        heads_linear(x_slice, &w, HeadSliceMut { tensor: &mut out, rows: 0..t, offset: 2, len: n });
        for (i, (out, x)) in out.to_f32_vec().chunks(40).zip(as_taken(&x, stored_as).rows()).enumerate() {
            let w = kept(stored_as, &weights[i % h].values, k);
            let expected = naive::linear(&vec![x[3..10].to_vec()], &w, None, Activation::None);
            assert_close(&out[2..39], &expected[0], 3e-6, &format!("{stored_as} row {i}"));
            assert_eq!([out[0], out[1], out[39]], [9.0; 3], "outside the slice");
        }
    }
}

/// 1 to 150 tokens take five kernels; each of them must sum in one order, under any schedule.
#[test]
fn tokens_have_the_same_bits_alone() {
    let (t, n, k) = (150, 131, 523);
    let x = Host::random(DType::F32, &[t, k], 1);
    let bias = Host::random(DType::F32, &[n], 2);
    for stored_as in WeightType::ON_GPU {
        let w = weights(stored_as, [n, k], 3);
        let run = |seed: u64, rows: std::ops::Range<usize>| {
            let device = emulated(seed);
            let part: Vec<f32> = x.values[rows.start * k..rows.end * k].iter().map(|&v| v as f32).collect();
            let x = Tensor::from_f32(&device, &[rows.len(), k], &part);
            let w = Matrix::pack(&device, stored_as, &[w.view()]);
            let mut out = Tensor::unwritten(&device, DType::F32, &[rows.len(), n]);
            linear(&x, &w, Some(&bias.tensor(&device)), Activation::GeluTanh, &mut out);
            bits(&out.to_f32_vec())
        };
        let together = run(1, 0..t);
        for rows in [0..1, 149..150, 3..12, 20..50, 31..66, 0..t] {
            assert!(
                run(2, rows.clone()) == together[rows.start * n..rows.end * n],
                "{stored_as}: tokens {rows:?} differ from the same in company"
            );
        }
    }
}

/// A checkpoint whose rows are in groups already: every level, scales of any bits, zeros that are no whole numbers.
struct Published(Vec<GroupedRow>);

impl Published {
    fn new(stored_as: WeightType, [n, k]: [usize; 2]) -> Self {
        let groups = k.div_ceil(GROUP);
        let row = |row: usize| {
            let level = |k: usize| match stored_as {
                WeightType::Int8 => ((row * 89 + k * 37) % 256) as u8 as i8,
                _ => ((row * 5 + k * 7) % 16) as i8 - 8,
            };
            let numbers = |seed: usize| values((seed * n + row) as u64, groups);
            GroupedRow {
                levels: (0..k).map(level).collect(),
                scales: numbers(1).into_iter().map(|v| f16::from_f32(v * 0.01)).collect(),
                zeros: numbers(2).into_iter().map(|v| f16::from_f32(v * 9.0)).collect(),
            }
        };
        Self((0..n).map(row).collect())
    }

    fn rows(&self, stored_as: WeightType) -> naive::Rows {
        let weight = |row: &GroupedRow, k: usize| {
            let zero = if stored_as == WeightType::Int4Zero { row.zeros[k / GROUP].to_f64() } else { 0.0 };
            row.scales[k / GROUP].to_f64() * (f64::from(row.levels[k]) - zero)
        };
        self.0.iter().map(|row| (0..row.levels.len()).map(|k| weight(row, k)).collect()).collect()
    }
}

impl WeightRows for Published {
    fn shape(&self) -> [usize; 2] {
        [self.0.len(), self.0[0].levels.len()]
    }

    fn read_f32(&self, _: usize, _: &mut [f32]) {
        panic!("nothing is rounded");
    }

    fn read_groups(&self, row: usize, _: WeightType, out: &mut GroupedRow) -> bool {
        out.clone_from(&self.0[row]);
        true
    }
}

#[test]
fn published_groups_are_exact() {
    let device = emulated(SEEDS[1]);
    for stored_as in [WeightType::Int8, WeightType::Int4, WeightType::Int4Zero] {
        for (t, n, k) in [(7, 45, 299), (40, 33, 100)] {
            let source = Published::new(stored_as, [n, k]);
            let x = Host::random(DType::BF16, &[t, k], 1);
            let values: Vec<f32> = x.values.iter().map(|&v| v as f32).collect();
            let packed = Matrix::pack(&device, stored_as, &[&source]);
            let mut out = Tensor::unwritten(&device, DType::F32, &[t, n]);
            linear(&Tensor::from_f32(&device, &[t, k], &values), &packed, None, Activation::None, &mut out);
            let expected = naive::linear(&x.rows(), &source.rows(stored_as), None, Activation::None);
            let what = format!("{stored_as} T {t} N {n} K {k}");
            assert_close(&out.to_f32_vec(), &expected.concat(), 3e-6, &what);
        }
    }
}

/// On a GPU this is what decides whether the number of tokens may choose between them. Up to 192 tokens are left to mma.sync; blocks have 64, 128 or 192,
/// clusters twice as many, and blocks of rows and of tokens that are not there.
#[test]
fn wgmma_rounds_as_mma() {
    let device = emulated(SEEDS[0]);
    for (i, (t, n, k)) in
        [(193, 97, 48), (260, 40, 33), (384, 130, 290), (513, 300, 45), (330, 67, 1203), (400, 257, 64)]
            .into_iter()
            .enumerate()
    {
        let Some(hopper) = with_wgmma([SEEDS[1], 7, 2][i % 3]) else { return };
        let mut room = TokenRoom::new(&hopper, &[[t, k]]);
        for dtype in [DType::BF16, DType::F16] {
            let x = Host::random(DType::F32, &[t, k], 1);
            let (bias, w) = (Host::random(DType::F32, &[n], 2), Host::random(dtype, &[n, k], 3));
            let run = |device: &Device, room: Option<&mut TokenRoom>| {
                let packed = Matrix::pack(device, dtype, &[w.view()]);
                let mut out = Tensor::unwritten(device, DType::F32, &[t, n]);
                let (x, bias, act) = (x.tensor(device), bias.tensor(device), ACTIVATIONS[i % 4]);
                match room {
                    Some(room) => room.hold(&x).linear(&packed, Some(&bias), act, &mut out),
                    None => linear(&x, &packed, Some(&bias), act, &mut out),
                }
                bits(&out.to_f32_vec())
            };
            assert!(run(&hopper, Some(&mut room)) == run(&device, None), "{dtype}, T {t} N {n} K {k}");
        }
    }
}
