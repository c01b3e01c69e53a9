//! Compact bf16 against plain bf16: the same bits of every op, whatever the weights are; and as whole numbers, where a device multiplies these,
//! against f64.

use crate::common::*;
use crate::rounded::rounded_group;
use kernels::ops::*;
use kernels::*;

/// Rows at a time: in registers, in one tile, in several, from one kind of tiles to the next, in several tasks.
const ROWS: [usize; 11] = [0, 1, 2, 3, 4, 5, 9, 12, 13, 64, 150];

/// What weights are like, as bits of bf16.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Weights {
    /// In ±1.
    Usual,
    /// All of one exponent.
    OneExponent,
    /// Exponents 112 ..= 127 in all rows, each row's in order.
    AllCodes,
    Zeros,
    Denormals,
    /// NaN of all payloads, infinities, and the largest numbers.
    NotFinite,
    /// Every row of another magnitude, one of zeros, one of infinities.
    RowsApart,
    /// Usual ones, and one in so many that is anything: the first and the last among them.
    Outliers(usize),
    /// All of any pattern: more outliers than there is room for.
    Anything,
}

const ALL: [Weights; 11] = [
    Weights::Usual,
    Weights::OneExponent,
    Weights::AllCodes,
    Weights::Zeros,
    Weights::Denormals,
    Weights::NotFinite,
    Weights::RowsApart,
    Weights::Outliers(400),
    Weights::Outliers(1500),
    Weights::Outliers(20_000),
    Weights::Anything,
];

impl Weights {
    /// `[N, K]`.
    fn bytes(self, [n, k]: [usize; 2], seed: u64) -> Vec<u8> {
        let usual = values(seed, n * k);
        let any: Vec<u16> = values(seed + 1, n * k).iter().map(|v| (v.to_bits() >> 3) as u16).collect();
        let sign_and_mantissa = |i: usize| any[i] & 0x807f;
        let word = |i: usize| -> u16 {
            let (row, column) = (i / k, i % k);
            let usual = half::bf16::from_f32(usual[i]).to_bits();
            match self {
                Self::Usual => usual,
                Self::OneExponent => sign_and_mantissa(i) | 125 << 7,
                Self::AllCodes => sign_and_mantissa(i) | (112 + (row + column) as u16 % 16) << 7,
                Self::Zeros => 0,
                Self::Denormals => sign_and_mantissa(i),
                Self::NotFinite => sign_and_mantissa(i) | (254 + any[i] / 256 % 2) << 7,
                Self::RowsApart if row % 7 == 3 => 0,
                Self::RowsApart if row % 7 == 4 => 0x7f80,
                Self::RowsApart => {
                    half::bf16::from_f32(f32::exp2(-9.0 * (row % 9) as f32)).to_bits() ^ (usual & 0x8000)
                }
                Self::Outliers(among) if i.is_multiple_of(among) || i + 1 == n * k => any[i],
                Self::Outliers(_) => usual & 0x807f | (usual & 0x7f80).max(115 << 7),
                Self::Anything => any[i],
            }
        };
        (0..n * k).flat_map(|i| word(i).to_le_bytes()).collect()
    }
}

fn all_devices() -> impl Iterator<Item = Device> {
    let rounding = rounding_devices().into_iter();
    let rounding = rounding.filter(|device| device.activation_type(WeightType::BF16) == ActivationType::BF16);
    devices().into_iter().chain(rounding)
}

const SIZES: [[usize; 2]; 7] = [[1, 1], [31, 3], [33, 257], [32, 256], [67, 303], [97, 1030], [33, 4355]];

#[test]
fn linear_layers_have_the_bits_of_plain_ones() {
    for device in all_devices() {
        for weights in ALL {
            for (i, shape @ [n, k]) in SIZES.into_iter().enumerate() {
                let what = format!("{device:?} {weights:?} N {n} K {k}");
                let bytes = weights.bytes(shape, 3);
                let host = HostTensor::new(DType::BF16, &shape, &bytes).unwrap();
                let [plain, compact] = [WeightType::BF16, WeightType::CompactBf16]
                    .map(|stored_as| Matrix::pack(&device, stored_as, &[host]));
                assert_eq!(compact.bytes(), Matrix::packed_bytes(compact.stored_as(), n, k), "{what}");
                match weights {
                    Weights::Anything if n * k == 1 => {}
                    Weights::Anything => assert_eq!(compact.stored_as(), WeightType::BF16),
                    _ => assert_eq!(compact.stored_as(), WeightType::CompactBf16, "{what}"),
                }
                let bias = (i % 2 == 0).then(|| Tensor::from_f32(&device, &[n], &values(5, n)));
                for t in ROWS.into_iter().filter(|&t| t < 12 || k < 1000) {
                    let x = Tensor::from_f32(&device, &[t, k], &values(7, t * k));
                    let run = |w: &Matrix| {
                        let mut out = Tensor::zeros(&device, DType::F32, &[t, n]);
                        linear(&x, w, bias.as_ref(), Activation::None, &mut out);
                        bits(out.as_f32())
                    };
                    assert!(run(&compact) == run(&plain), "{what} T {t}");
                }
            }
        }
    }
}

/// Of all that weights can be like, a row's bits whatever is beside it, at most 3e-6 of the row's largest number apart from f64.
#[test]
fn whole_numbers_of_all_weights() {
    let to_int16 = |device: &Device| device.activation_type(WeightType::CompactBf16) == ActivationType::Int16;
    for device in rounding_devices().into_iter().filter(to_int16) {
        for weights in ALL.into_iter().filter(|&weights| weights != Weights::Anything) {
            for (i, shape @ [n, k]) in SIZES.into_iter().enumerate() {
                let what = format!("{device:?} {weights:?} N {n} K {k}");
                let bytes = weights.bytes(shape, 3);
                let host = HostTensor::new(DType::BF16, &shape, &bytes).unwrap();
                let compact = Matrix::pack(&device, WeightType::CompactBf16, &[host]);
                let run = |x: &[f32]| {
                    let t = x.len() / k;
                    let mut out = Tensor::zeros(&device, DType::F32, &[t, n]);
                    linear(
                        &Tensor::from_f32(&device, &[t, k], x),
                        &compact,
                        None,
                        Activation::None,
                        &mut out,
                    );
                    out.as_f32().to_vec()
                };
                let t = ROWS[1 + i];
                let x = values(7, t * k);
                let out = run(&x);
                for (row, (x, out)) in x.chunks(k).zip(out.chunks(n)).enumerate() {
                    assert!(bits(&run(x)) == bits(out), "{what} row {row} of {t}");
                }
                let x: Vec<f64> = x[..k].iter().map(|&x| f64::from(x)).collect();
                let x: Vec<f64> = x.chunks(GROUP).flat_map(|group| rounded_group(group, 8191.0)).collect();
                for (column, &found) in out[..n].iter().enumerate() {
                    let mut w: Vec<f64> = (0..k).map(|c| f64::from(host.get(column * k + c))).collect();
                    w.chunks_mut(256).for_each(to_levels);
                    let terms: Vec<f64> = w.iter().zip(&x).map(|(w, x)| w * x).collect();
                    let (sum, size) =
                        (terms.iter().sum::<f64>(), terms.iter().map(|term| term.abs()).sum::<f64>());
                    let found = f64::from(found);
                    let is_near = (found - sum).abs() <= 1e-6 * size + 1e-36;
                    // Beyond f32, or no number.
                    let beyond = |x: f64, limit: f64| x.is_nan() || x.abs() >= limit;
                    let both_wild = beyond(size, f64::from(f32::MAX) / 4.0) && beyond(found, 1e30);
                    assert!(is_near || both_wild, "{what} column {column}: {found}, not {sum}");
                }
            }
        }
    }
}

#[test]
fn layers_of_heads_have_the_bits_of_plain_ones() {
    let (h, shape @ [n, k]) = (3, [37, 71]);
    for device in all_devices() {
        for weights in ALL {
            let bytes: Vec<Vec<u8>> = (0..h).map(|head| weights.bytes(shape, head)).collect();
            let hosts: Vec<HostTensor> =
                bytes.iter().map(|bytes| HostTensor::new(DType::BF16, &shape, bytes).unwrap()).collect();
            for t in ROWS {
                let h = h as usize;
                let x = Tensor::from_f32(&device, &[t, h, k], &values(7, t * h * k));
                let [plain, compact] = [WeightType::BF16, WeightType::CompactBf16].map(|stored_as| {
                    let w = MatrixBatch::pack(&device, stored_as, &hosts);
                    let mut out = Tensor::zeros(&device, DType::F32, &[t, h, n]);
                    heads_linear(&x, &w, &mut out);
                    bits(out.as_f32())
                });
                assert!(compact == plain, "{device:?} {weights:?} T {t}");
            }
        }
    }
}

#[test]
fn experts_have_the_bits_of_plain_ones() {
    for device in all_devices() {
        for (weights, [h, i, e]) in [
            (Weights::Usual, [67, 33, 5]),
            (Weights::Outliers(400), [96, 64, 3]),
            (Weights::Outliers(1500), [301, 65, 3]),
            (Weights::RowsApart, [40, 35, 3]),
            (Weights::Anything, [40, 64, 2]),
        ] {
            let shapes = [[i, h], [i, h], [h, i]];
            let bytes: Vec<[Vec<u8>; 3]> =
                (0..e).map(|e| [0, 1, 2].map(|p| weights.bytes(shapes[p], (3 * e + p) as u64))).collect();
            let part = |e: usize, p: usize| HostTensor::new(DType::BF16, &shapes[p], &bytes[e][p]).unwrap();
            let sources: Vec<ExpertSource> =
                (0..e).map(|e| ExpertSource { gate: part(e, 0), up: part(e, 1), down: part(e, 2) }).collect();
            // The first expert's own matrices are those of the one that every token takes.
            let forms = [WeightType::BF16, WeightType::CompactBf16].map(|stored_as| {
                let experts = Experts::pack(&device, stored_as, &sources);
                let gate_up = Matrix::pack(&device, stored_as, &[part(0, 0), part(0, 1)]);
                (experts, gate_up, Matrix::pack(&device, stored_as, &[part(0, 2)]))
            });
            let compact = weights != Weights::Anything;
            assert_eq!(forms[1].0.stored_as() == WeightType::CompactBf16, compact, "{weights:?}");
            for t in ROWS.into_iter().filter(|&t| t > 0) {
                let x = Tensor::random(&device, &[t, h], 1.0, 7);
                let by = Tensor::random(&device, &[t, 2], 1.0, 8);
                let mut ids = Tensor::zeros(&device, DType::I32, &[t, 2]);
                for (pair, id) in ids.as_i32_mut().iter_mut().enumerate() {
                    *id = ((pair * 7 + pair / 5) % e) as i32;
                }
                let [plain, compact] = forms.each_ref().map(|(experts, gate_up, down)| {
                    let mut buffer = |width| Tensor::zeros(&device, DType::F32, &[t, width]);
                    let [mut both, mut inner, mut of_shared, mut out] = [2 * i, i, h, h].map(&mut buffer);
                    let mut scratch = MoeScratch::new(&device, t, [e, h, i], 2);
                    let (both, inner, out_of) = (&mut both, &mut inner, &mut of_shared);
                    let tokens = &mut TokenRoom::new(&device, &[]);
                    let shared = SharedExpert { gate_up, down, gate: None, both, inner, out: out_of };
                    moe_and_shared(&x, experts, [&ids, &by], &mut scratch, Some((shared, tokens)), &mut out);
                    bits(out.as_f32())
                });
                assert!(compact == plain, "{device:?} {weights:?} T {t} H {h} I {i} E {e}");
            }
        }
    }
}

/// Whoever packs which panel: the bytes are the same, and they are taken apart and put together again.
#[test]
fn parts_do_not_depend_on_threads() {
    let shape @ [n, k] = [300, 777];
    let bytes = Weights::Outliers(400).bytes(shape, 4);
    let host = HostTensor::new(DType::BF16, &shape, &bytes).unwrap();
    let form = (WeightType::CompactBf16, shape);
    let parts = |threads| {
        let device = Device::cpu(Some(threads));
        let mut matrix = Matrix::pack(&device, WeightType::CompactBf16, &[host]);
        assert!(matrix.is(&form) && !matrix.is(&(WeightType::BF16, shape)));
        matrix.share()
    };
    let [one, three] = [1, 3].map(parts);
    assert!(one[0].as_slice() == three[0].as_slice());
    assert_eq!(one[0].len() as u64, Matrix::packed_bytes(WeightType::CompactBf16, n, k));
    let saved = one[0].len() as f64 / Matrix::packed_bytes(WeightType::BF16, n, k) as f64;
    assert!(saved < 0.765, "{saved} of plain bf16");
    // Where both forms are multiplied as floats.
    let device = device(Isa::best(), 2);
    let again = Matrix::from_parts(&device, &form, one);
    let x = Tensor::random(&device, &[3, k], 1.0, 7);
    let [first, second] = [Matrix::pack(&device, DType::BF16, &[host]), again].map(|w| {
        let mut out = Tensor::zeros(&device, DType::F32, &[3, n]);
        linear(&x, &w, None, Activation::None, &mut out);
        bits(out.as_f32())
    });
    assert!(first == second);
}
