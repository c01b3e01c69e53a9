//! Tokens that are rounded and packed once for the linear layers that read them: where each number lies, and that no bit of a result depends on it.

use crate::bench::Bench;
use crate::common::*;
use crate::device::{SEEDS, emulated, with_wgmma};
use half::{bf16, f16};
use kernels::cuda::compile::Source;
use kernels::cuda::driver::Args;
use kernels::ops::*;
use kernels::*;

const PACK: Source = Source { name: "tokens.cu", text: include_str!("../../src/cuda/tokens.cu") };

/// `[T / 128][K / 8][128][8]`, with zeros where it is filled up, whatever was there before.
#[test]
fn tokens_lie_in_columns_of_eight() {
    let bench = Bench::new(1);
    for (rows, k) in [(1, 1), (33, 7), (40, 36), (129, 64), (128, 300), (257, 33)] {
        let values = values((rows * k) as u64, rows * k);
        let x = bench.filled(&values, "x");
        let columns = k.next_multiple_of(32) / 8;
        let len = rows.next_multiple_of(128) * columns * 8;
        for (name, round) in [
            ("bf16", (|v| bf16::from_f32(v).to_bits()) as fn(f32) -> u16),
            ("f16", |v| f16::from_f32(v).to_bits()),
        ] {
            let packed = bench.filled(&vec![0x5555_u16; len], "packed");
            let vector = if k % 4 == 0 { 4 } else { 1 };
            let function =
                bench.function(PACK, &format!("pack_tokens<{name}, {vector}>"), &[]).expect("it compiles");
            let args = Args::new().pointer(x.start).value(rows as i32).value(k as i32).pointer(packed.start);
            let blocks = [rows.next_multiple_of(128) as u32 / 8, (columns as u32 * 8).div_ceil(256), 1];
            bench.launch_grid(function, blocks, 256, &args).expect("a launch");
            let found: Vec<u16> = bench.read(packed).expect("it runs");
            for (place, &found) in found.iter().enumerate() {
                let (token, column) =
                    (place / 8 % 128 + place / 1024 / columns * 128, place / 1024 % columns);
                let at = column * 8 + place % 8;
                let expected = if token < rows && at < k { round(values[token * k + at]) } else { 0 };
                assert_eq!(found, expected, "{name} {rows} x {k}: token {token}, number {at}");
            }
        }
    }
}

/// A layer of random weights `[N, K]`.
fn layer(device: &Device, stored_as: WeightType, [n, k]: [usize; 2]) -> (Matrix, Tensor) {
    let w = Host::random(stored_as.float().unwrap_or(DType::F32), &[n, k], 3);
    (Matrix::pack(device, stored_as, &[w.view()]), Host::random(DType::F32, &[n], 4).tensor(device))
}

/// One room serves one step after the other; up to 32 tokens and weights in f32 do without.
#[test]
fn packed_tokens_give_the_same_bits() {
    let device = emulated(SEEDS[1]);
    let Device::Cuda(cuda) = &device else { panic!("not a GPU") };
    let mut room = TokenRoom::new(&device, &[[300, 523]]);
    // The last three have blocks of 128 tokens.
    for [t, n, k] in [
        [33, 97, 48],
        [64, 40, 523],
        [70, 130, 290],
        [32, 33, 64],
        [300, 31, 33],
        [140, 150, 64],
        [150, 131, 37],
        [129, 140, 72],
    ] {
        for stored_as in WeightType::ON_GPU {
            let (w, bias) = layer(&device, stored_as, [n, k]);
            let x = Host::random(DType::F32, &[t, k], 1).tensor(&device);
            let [mut expected, mut found] = [(); 2].map(|()| Tensor::unwritten(&device, DType::F32, &[t, n]));
            linear(&x, &w, Some(&bias), Activation::GeluTanh, &mut expected);
            let before = cuda.num_launches();
            room.hold(&x).linear(&w, Some(&bias), Activation::GeluTanh, &mut found);
            let launches = cuda.num_launches() - before;
            let what = format!("{stored_as} T {t} N {n} K {k}");
            assert_eq!(bits(&found.to_f32_vec()), bits(&expected.to_f32_vec()), "{what}");
            assert_eq!(launches, if t > 32 && stored_as != WeightType::F32 { 2 } else { 1 }, "{what}");
        }
    }
}

/// Once for all that take one type, again for another.
#[test]
fn layers_of_the_same_tokens_round_them_once() {
    let device = emulated(SEEDS[0]);
    let Device::Cuda(cuda) = &device else { panic!("not a GPU") };
    let (t, n, k) = (45, 40, 70);
    let x = Host::random(DType::F32, &[t, k], 1).tensor(&device);
    let mut room = TokenRoom::new(&device, &[[t, k]]);
    let out = || Tensor::unwritten(&device, DType::F32, &[t, n]);
    let mut tokens = room.hold(&x);
    use WeightType::*;
    for (stored_as, packs) in [(BF16, 1), (Int8, 0), (F32, 0), (Int4Zero, 0), (F16, 1), (F16, 0), (BF16, 1)] {
        let (w, bias) = layer(&device, stored_as, [n, k]);
        let [mut expected, mut found] = [out(), out()];
        linear(&x, &w, Some(&bias), Activation::None, &mut expected);
        let before = cuda.num_launches();
        tokens.linear(&w, Some(&bias), Activation::None, &mut found);
        assert_eq!(cuda.num_launches() - before, 1 + packs, "{stored_as}");
        assert_eq!(bits(&found.to_f32_vec()), bits(&expected.to_f32_vec()), "{stored_as}");
    }
    // Two at once, of which one takes no packed tokens.
    for (types, launches) in [([BF16, BF16], 2), ([BF16, F32], 2), ([Int4, F16], 3)] {
        let [(first, _), (second, bias)] = types.map(|stored_as| layer(&device, stored_as, [n, k]));
        let [mut a, mut b, mut expected_a, mut expected_b] = [out(), out(), out(), out()];
        linear(&x, &first, None, Activation::None, &mut expected_a);
        linear(&x, &second, Some(&bias), Activation::None, &mut expected_b);
        let before = cuda.num_launches();
        let first = LinearPart { weight: &first, bias: None, out: &mut a };
        tokens.linear_pair([first, LinearPart { weight: &second, bias: Some(&bias), out: &mut b }]);
        assert_eq!(cuda.num_launches() - before, launches, "{types:?}");
        for (found, expected) in [(a, expected_a), (b, expected_b)] {
            assert_eq!(bits(&found.to_f32_vec()), bits(&expected.to_f32_vec()), "{types:?}");
        }
    }
}

/// Fills a room with what must never be read: numbers that are none, in every place.
pub fn poison(device: &Device, room: &mut TokenRoom, [t, k]: [usize; 2]) {
    let x = Tensor::from_f32(device, &[t, k], &vec![f32::NAN; t * k]);
    let (w, _) = layer(device, WeightType::BF16, [1, k]);
    room.hold(&x).linear(&w, None, Activation::None, &mut Tensor::unwritten(device, DType::F32, &[t, 1]));
}

const ROOM: [usize; 2] = [256, 160];

/// SwiGLU, norm and another layer before a layer, in turn: as ops one after the other, or as tokens that were made for it.
pub fn made_for(
    device: &Device,
    [t, k, n]: [usize; 3],
    [first, next]: [WeightType; 2],
    at_once: bool,
) -> Result<(Vec<Vec<u8>>, u64), Error> {
    let Device::Cuda(cuda) = device else { panic!("not a GPU") };
    let random = |shape: &[usize], seed| Host::random(DType::F32, shape, seed).tensor(device);
    let (gate_up, x) = (random(&[t, 2 * k], 5), random(&[t, k], 6));
    let (scale, shift) = (random(&[k], 7), random(&[k], 8));
    let [(before, before_bias), (w, bias)] = [layer(device, first, [k, k]), layer(device, next, [n, k])];
    let mut rooms = [(); 3].map(|()| TokenRoom::new(device, &[ROOM]));
    rooms.iter_mut().for_each(|room| poison(device, room, ROOM));
    let [room, of_norms, of_others] = &mut rooms;
    let mut inner = Tensor::unwritten(device, DType::F32, &[t, k]);
    let mut outs = [(); 3].map(|()| Tensor::unwritten(device, DType::F32, &[t, n]));
    let launched = cuda.num_launches();
    let [of_silu, of_norm, of_layer] = &mut outs;
    if at_once {
        room.hold_silu_mul(&gate_up, &mut inner, &w).linear(&w, Some(&bias), Activation::None, of_silu);
        let mut normed = of_norms.hold_layer_norm(&x, [&scale, &shift], 1e-5, &mut inner, &w);
        normed.linear(&w, Some(&bias), Activation::None, of_norm);
        let mut tokens = room.hold(&x);
        let into = (&w, of_others);
        let mut made = tokens.linear_for(&before, Some(&before_bias), Activation::GeluErf, &mut inner, into);
        made.linear(&w, Some(&bias), Activation::None, of_layer);
    } else {
        silu_mul(&gate_up, &mut inner);
        linear(&inner, &w, Some(&bias), Activation::None, of_silu);
        layer_norm(&x, &scale, &shift, 1e-5, &mut inner);
        linear(&inner, &w, Some(&bias), Activation::None, of_norm);
        linear(&x, &before, Some(&before_bias), Activation::GeluErf, &mut inner);
        linear(&inner, &w, Some(&bias), Activation::None, of_layer);
    }
    let launches = cuda.num_launches() - launched;
    Ok((outs.iter().map(Tensor::read).collect::<Result<_, _>>()?, launches))
}

#[test]
fn tokens_are_made_for_the_next_layer() {
    let device = emulated(SEEDS[1]);
    use WeightType::*;
    // Launches: of six ops, and one more where tokens are rounded by themselves.
    for (sizes, types, launches) in [
        ([33, 36, 40], [BF16, BF16], 7),
        ([64, 150, 33], [F16, F16], 7),
        ([70, 37, 130], [BF16, Int8], 7),
        ([140, 148, 150], [Int4, BF16], 7),
        ([200, 160, 31], [BF16, BF16], 7),
        // Other types; few tokens; weights in f32.
        ([45, 40, 40], [BF16, F16], 8),
        ([32, 36, 40], [BF16, BF16], 6),
        ([40, 36, 40], [BF16, F32], 7),
        ([40, 36, 40], [F32, BF16], 7),
    ] {
        let (expected, _) = made_for(&device, sizes, types, false).expect("a result");
        let (found, counted) = made_for(&device, sizes, types, true).expect("a result");
        assert!(found == expected, "{types:?} {sizes:?}");
        assert_eq!(counted, launches, "{types:?} {sizes:?}");
    }
}

/// A norm of a stream, which x is added to or which is x, and a layer of it: what it makes, the stream, and what the layer makes of it. The norm is
/// told of weights that are kept as the first type, the layer's are of the second.
pub fn norm_for(
    device: &Device,
    [t, k, n]: [usize; 3],
    [told, next]: [WeightType; 2],
    adds: bool,
    at_once: bool,
) -> Result<(Vec<u8>, u64), Error> {
    let Device::Cuda(cuda) = device else { panic!("not a GPU") };
    let random = |shape: &[usize], seed| Host::random(DType::F32, shape, seed).tensor(device);
    let (x, mut stream, weight) = (random(&[t, k], 5), random(&[t, k], 6), random(&[k], 7));
    let (w, bias) = layer(device, next, [n, k]);
    let mut room = TokenRoom::new(device, &[ROOM]);
    poison(device, &mut room, ROOM);
    let mut out = Tensor::unwritten(device, DType::F32, &[t, k]);
    let mut made = Tensor::unwritten(device, DType::F32, &[t, n]);
    let before = cuda.num_launches();
    if at_once {
        let norm = NormFor { weight: &weight, eps: 1e-5, next: told };
        if adds {
            room.add_rms_norm(&mut stream, &x, norm, &mut out);
        } else {
            room.rms_norm(&stream, norm, &mut out);
        }
        room.hold_made(&out).linear(&w, Some(&bias), Activation::None, &mut made);
    } else {
        if adds {
            add_rms_norm(&mut stream, &x, &weight, 1e-5, &mut out);
        } else {
            rms_norm(&stream, &weight, 1e-5, &mut out);
        }
        room.hold(&out).linear(&w, Some(&bias), Activation::None, &mut made);
    }
    let launches = cuda.num_launches() - before;
    Ok(([out.read()?, stream.read()?, made.read()?].concat(), launches))
}

#[test]
fn norms_leave_tokens_for_layers() {
    let device = emulated(SEEDS[1]);
    use WeightType::*;
    for (sizes, types, launches) in [
        ([33, 36, 40], [BF16, BF16], [3, 2]),
        ([140, 37, 130], [F16, F16], [3, 2]),
        ([70, 160, 31], [Int8, Int4], [3, 2]),
        // Other types than it was told of; few tokens; weights in f32.
        ([45, 40, 40], [BF16, F16], [3, 3]),
        ([45, 40, 40], [F32, BF16], [3, 3]),
        ([45, 40, 40], [BF16, F32], [2, 2]),
        ([32, 40, 40], [BF16, BF16], [2, 2]),
    ] {
        for adds in [false, true] {
            let of = |at_once| norm_for(&device, sizes, types, adds, at_once).expect("a result");
            let ((expected, by_themselves), (found, at_once)) = (of(false), of(true));
            assert!(found == expected, "{types:?} {sizes:?} {adds}");
            assert_eq!([by_themselves, at_once], launches, "{types:?} {sizes:?} {adds}");
        }
    }
}

/// What a room was used for since, or another tensor, is not what a norm left there.
#[test]
fn what_a_norm_left_is_used_once_and_for_its_own_tensor() {
    let device = emulated(SEEDS[0]);
    let Device::Cuda(cuda) = &device else { panic!("not a GPU") };
    let (t, d) = (40, 64);
    let [x, y] = [1, 2].map(|seed| Host::random(DType::F32, &[t, d], seed).tensor(&device));
    let weight = Host::random(DType::F32, &[d], 3).tensor(&device);
    let (w, _) = layer(&device, WeightType::BF16, [33, d]);
    let mut room = TokenRoom::new(&device, &[[t, d]]);
    let [mut normed, mut out] = [d, 33].map(|n| Tensor::unwritten(&device, DType::F32, &[t, n]));
    room.rms_norm(&x, NormFor { weight: &weight, eps: 1e-5, next: WeightType::BF16 }, &mut normed);
    let mut launches = |room: &mut TokenRoom, x: &Tensor| {
        let before = cuda.num_launches();
        room.hold_made(x).linear(&w, None, Activation::None, &mut out);
        let found = (bits(&out.to_f32_vec()), cuda.num_launches() - before);
        linear(x, &w, None, Activation::None, &mut out);
        assert_eq!(found.0, bits(&out.to_f32_vec()));
        found.1
    };
    assert_eq!(launches(&mut room, &y), 2);
    room.rms_norm(&x, NormFor { weight: &weight, eps: 1e-5, next: WeightType::BF16 }, &mut normed);
    assert_eq!([launches(&mut room, &normed), launches(&mut room, &normed)], [1, 2]);
    room.rms_norm(&x, NormFor { weight: &weight, eps: 1e-5, next: WeightType::BF16 }, &mut normed);
    room.hold(&y);
    assert_eq!(launches(&mut room, &normed), 2);
}

/// The norm before a router leaves its tokens for the expert that all of them take.
#[test]
fn a_norm_before_a_router_leaves_tokens() {
    let (d, e, k) = (40, 7, 2);
    let config = &RouterConfig {
        scoring: Scoring::Sigmoid,
        top_k: k,
        num_groups: 1,
        top_groups: 1,
        group_score: GroupScore::Max,
        normalize: true,
        scale: 2.446,
    };
    let run = |seed, t, at_once: bool| {
        let device = emulated(seed);
        let Device::Cuda(cuda) = &device else { panic!("not a GPU") };
        let random = |shape: &[usize], seed| Host::random(DType::F32, shape, seed).tensor(&device);
        let (x, mut residual, weight, bias) =
            (random(&[t, d], 1), random(&[t, d], 2), random(&[d], 3), random(&[e], 4));
        let router = Matrix::random(&device, DType::F32, e, d, 0.3, 5);
        let (next, _) = layer(&device, WeightType::BF16, [33, d]);
        let mut room = TokenRoom::new(&device, &[ROOM]);
        poison(&device, &mut room, ROOM);
        let [mut normed, mut logits, mut weights, mut made] =
            [d, e, k, 33].map(|width| Tensor::unwritten(&device, DType::F32, &[t, width]));
        let mut ids = Tensor::unwritten(&device, DType::I32, &[t, k]);
        let before = cuda.num_launches();
        if at_once {
            let norm = NormFor { weight: &weight, eps: 1e-5, next: WeightType::BF16 };
            let add = AddNorm { residual: &mut residual, norm, tokens: &mut room };
            let router = Router { weight: &router, logit_bias: Some(&bias), bias: Some(&bias), config };
            let choice = Choice { logits: &mut logits, ids: &mut ids, weights: &mut weights };
            norm_and_route(&x, add, &mut normed, router, choice);
            room.hold_made(&normed).linear(&next, None, Activation::None, &mut made);
        } else {
            add_rms_norm(&mut residual, &x, &weight, 1e-5, &mut normed);
            linear(&normed, &router, Some(&bias), Activation::None, &mut logits);
            route(&logits, Some(&bias), config, &mut ids, &mut weights);
            room.hold(&normed).linear(&next, None, Activation::None, &mut made);
        }
        let launches = cuda.num_launches() - before;
        let all = [&residual, &normed, &logits, &ids, &weights, &made].map(|tensor| tensor.read().unwrap());
        (all.concat(), launches)
    };
    for (t, saved) in [(32, 0), (33, 1), (140, 1)] {
        let (expected, apart) = run(SEEDS[0], t, false);
        let (found, at_once) = run(SEEDS[1], t, true);
        assert!(found == expected, "T {t}");
        assert_eq!(apart - at_once, saved, "T {t}");
    }
}

/// A layer that adds to a stream: as ops one after the other, or by itself.
pub fn added(
    device: &Device,
    [t, k, n]: [usize; 3],
    stored_as: WeightType,
    at_once: bool,
) -> Result<(Vec<u8>, u64), Error> {
    let Device::Cuda(cuda) = device else { panic!("not a GPU") };
    let (w, bias) = layer(device, stored_as, [n, k]);
    let x = Host::random(DType::F32, &[t, k], 1).tensor(device);
    let mut stream = Host::random(DType::F32, &[t, n], 2).tensor(device);
    let mut made = Tensor::unwritten(device, DType::F32, &[t, n]);
    let mut room = TokenRoom::new(device, &[[t, k]]);
    let before = cuda.num_launches();
    let mut tokens = room.hold(&x);
    if at_once {
        tokens.add_linear(&w, Some(&bias), &mut stream, &mut made);
    } else {
        tokens.linear(&w, Some(&bias), Activation::None, &mut made);
        add(&mut stream, &made);
    }
    let launches = cuda.num_launches() - before;
    Ok((stream.read()?, launches))
}

#[test]
fn layers_add_to_a_stream() {
    let check = |device: &Device, sizes: [usize; 3], stored_as: WeightType| {
        let (expected, launches) = added(device, sizes, stored_as, false).expect("a result");
        let (found, fewer) = added(device, sizes, stored_as, true).expect("a result");
        assert!(found == expected, "{stored_as} {sizes:?}");
        let adds = sizes[0] > 32 && stored_as != WeightType::F32;
        assert_eq!(fewer, launches - u64::from(adds), "{stored_as} {sizes:?}");
    };
    let device = emulated(SEEDS[1]);
    for sizes in [[33, 70, 40], [140, 36, 150], [70, 290, 31], [32, 40, 33]] {
        WeightType::ON_GPU.into_iter().for_each(|stored_as| check(&device, sizes, stored_as));
    }
    if let Some(device) = with_wgmma(SEEDS[0]) {
        for sizes in [[200, 72, 140], [400, 50, 131]] {
            [WeightType::BF16, WeightType::F16].into_iter().for_each(|w| check(&device, sizes, w));
        }
    }
}

/// Room is for the largest of its sizes that has many tokens, and none on a processor.
#[test]
fn rooms_are_as_large_as_they_say() {
    let device = emulated(SEEDS[0]);
    let bytes = |sizes: &[[usize; 2]]| {
        let before = device.allocated_bytes();
        let _room = TokenRoom::new(&device, sizes);
        let bytes = TokenRoom::bytes(&device, sizes);
        assert_eq!(device.allocated_bytes() - before, bytes, "{sizes:?}");
        bytes
    };
    assert_eq!(bytes(&[[32, 4096]]), 0);
    assert_eq!(bytes(&[[33, 33]]), 2 * 128 * 64);
    assert_eq!(bytes(&[[129, 32], [128, 96]]), 2 * 128 * 96);
    assert_eq!(bytes(&[[2048, 11264]]), 2 * 2048 * 11264);
    assert_eq!(TokenRoom::bytes(&Device::cpu(Some(1)), &[[2048, 11264]]), 0);
}
