//! Experts that take tokens as a norm left them, rounded and packed: the bits of those that round f32, what it reads, and bugs planted.

use crate::common::*;
use crate::device::{SEEDS, emulated, metered, with_wgmma};
use crate::mutants::{Run, assert_noticed};
use crate::tokens::poison;
use kernels::cuda::emulated::LaunchTraffic;
use kernels::ops::*;
use kernels::*;

struct Case {
    stored_as: WeightType,
    /// What the norm is told.
    told: WeightType,
    /// T, H, I, E, k
    sizes: [usize; 5],
}

impl Case {
    /// The stream and its norm after experts, and launches: of experts that take what a norm left, or that a norm is followed by.
    fn run(&self, device: &Device, left: bool) -> Result<(Vec<u8>, u64), Error> {
        let Self { stored_as, told, sizes: [t, h, i, e, k] } = *self;
        let Device::Cuda(cuda) = device else { panic!("not a GPU") };
        let random = |shape: &[usize], seed| Host::random(DType::F32, shape, seed).tensor(device);
        let experts = Experts::random(device, stored_as, [e, h, i], 0.2, 1);
        let (x, weights, mut residual) = (random(&[t, h], 2), random(&[t, k], 3), random(&[t, h], 4));
        let (first, second) = (&random(&[h], 5), &random(&[h], 6));
        // Not all have as many rows, and the last has none where there are several.
        let ids: Vec<i32> = (0..t * k).map(|pair| ((pair * 7 + pair / 5) % (e - 1).max(1)) as i32).collect();
        let mut chosen = Tensor::unwritten(device, DType::I32, &[t, k]);
        chosen.write_i32(0, &ids);
        let mut scratch = MoeScratch::new(device, t, [e, h, i], k);
        let mut room = TokenRoom::new(device, &[[t, h]]);
        poison(device, &mut room, [t.next_multiple_of(128), h.next_multiple_of(32)]);
        let [mut normed, mut out] = [(); 2].map(|()| Tensor::unwritten(device, DType::F32, &[t, h]));
        let before = cuda.num_launches();
        if left {
            room.rms_norm(&x, NormFor { weight: first, eps: 1e-5, next: told }, &mut normed);
        } else {
            rms_norm(&x, first, 1e-5, &mut normed);
        }
        let norm = NormFor { weight: second, eps: 1e-5, next: WeightType::F32 };
        let then = AddNorm { residual: &mut residual, norm, tokens: &mut room };
        moe_and_norm(&mut normed, &experts, [&chosen, &weights], &mut scratch, None, &mut out, then);
        let launches = cuda.num_launches() - before;
        Ok(([residual.read()?, normed.read()?].concat(), launches))
    }
}

const BF16: WeightType = WeightType::BF16;

fn case(stored_as: WeightType, told: WeightType, sizes: [usize; 5]) -> Case {
    Case { stored_as, told, sizes }
}

#[test]
fn experts_take_what_a_norm_left() {
    let check = |devices: [&Device; 2], case: &Case| {
        let [(expected, by_pass), (found, left)] =
            [(devices[0], false), (devices[1], true)].map(|(d, left)| case.run(d, left).expect("a result"));
        assert!(found == expected, "{} told {} {:?}", case.stored_as, case.told, case.sizes);
        assert_eq!(left, by_pass, "{:?}", case.sizes);
    };
    let [device, other] = SEEDS.map(emulated);
    for case in [
        case(BF16, BF16, [120, 50, 35, 5, 3]),
        case(WeightType::F16, WeightType::F16, [140, 36, 20, 3, 2]),
        case(WeightType::Int4, BF16, [67, 300, 33, 3, 2]),
        // Of another type than the norm was told, and told of none.
        case(WeightType::F16, BF16, [60, 40, 20, 2, 2]),
        case(BF16, WeightType::F32, [60, 40, 20, 2, 2]),
    ] {
        check([&device, &other], &case);
    }
    let Some(hopper) = with_wgmma(SEEDS[1]) else { return };
    for case in [
        case(BF16, BF16, [180, 70, 45, 3, 3]),
        case(WeightType::F16, BF16, [180, 40, 45, 3, 3]),
        // More tokens than are spread at a time.
        case(WeightType::F16, WeightType::F16, [2100, 40, 20, 2, 1]),
        // Clusters of eight, for the first product and for the second.
        case(BF16, BF16, [150, 70, 270, 1, 1]),
        case(BF16, BF16, [200, 530, 40, 1, 1]),
    ] {
        check([&device, &hopper], &case);
    }
}

/// What a launch of a kernel read and wrote.
fn moved(counted: &[LaunchTraffic], kernel: &str) -> [u64; 2] {
    let launch = counted.iter().find(|launch| launch.kernel.starts_with(kernel));
    let launch = launch.unwrap_or_else(|| panic!("no {kernel}: {counted:?}"));
    let sum = |of: fn(&cuda::emulated::TensorTraffic) -> u64| launch.tensors.iter().map(of).sum();
    [sum(|tensor| tensor.read), sum(|tensor| tensor.written)]
}

/// A pass reads two bytes of each number of a token, once; with wgmma it writes those of each pair, and reads which pairs there are once for 16 numbers.
#[test]
fn a_pass_before_experts_reads_each_token_once() {
    let [t, h, k] = [256, 64, 2];
    let case = case(BF16, BF16, [t, h, 32, 2, k]);
    let (device, meter) = metered();
    case.run(&device, true).expect("a result");
    assert_eq!(moved(&meter.take(), "moe_unpack"), [(2 * t * h) as u64; 2]);
    let (device, meter) = metered();
    let Device::Cuda(cuda) = &device else { panic!("not a GPU") };
    assert!(cuda.choose_matmul(cuda::Matmul::Wgmma), "compute capability 9.0");
    case.run(&device, true).expect("a result");
    let pairs = 4 * (t * k * (h / 16)) as u64;
    assert_eq!(moved(&meter.take(), "moe_spread"), [(2 * t * h) as u64 + pairs, (2 * t * k * h) as u64]);
}

/// Eight blocks of a cluster fetch each token once, and each weight.
#[test]
fn blocks_of_experts_share_tokens() {
    let ([t, h, i], units) = ([192, 64, 512], 4);
    let (device, meter) = metered();
    let Device::Cuda(cuda) = &device else { panic!("not a GPU") };
    assert!(cuda.choose_matmul(cuda::Matmul::Wgmma), "compute capability 9.0");
    case(BF16, BF16, [t, h, i, 1, 1]).run(&device, true).expect("a result");
    let counted = meter.take();
    let up = counted.iter().find(|l| l.kernel == "moe_wgmma<bf16, true, 8>").expect("the first product");
    assert_eq!(up.blocks % 8, 0);
    let of = |name: &str| up.tensors.iter().find(|tensor| tensor.name.starts_with(name)).expect("a tensor");
    assert_eq!(of("weights").read, (2 * 2 * i * 16 * units) as u64);
    // Tokens, and of each block where the rows of its expert begin, which every warp asks for.
    let tokens = of("float32 [192, 64]").read;
    assert_eq!(tokens, (2 * t * h) as u64, "{up:?}");
}

#[test]
fn bugs_in_what_experts_take_are_noticed() {
    let wgmma = |sizes: [usize; 5]| {
        move |device: &Device| {
            let Device::Cuda(cuda) = device else { panic!("not a GPU") };
            assert!(cuda.choose_matmul(cuda::Matmul::Wgmma), "compute capability 9.0");
            Ok(case(BF16, BF16, sizes).run(device, true)?.0)
        }
    };
    let (spread, long, eight) =
        (wgmma([180, 70, 45, 3, 3]), wgmma([2100, 40, 20, 2, 1]), wgmma([140, 400, 270, 1, 1]));
    let unpacked = |device: &Device| Ok(case(BF16, BF16, [67, 50, 20, 3, 2]).run(device, true)?.0);
    let cases: [(&'static str, &'static str, Run); 9] = [
        ("room = min(num_tokens, SPREAD_TOKENS);", "room = min(num_tokens, SPREAD_TOKENS) - 1;", &spread),
        ("packed_place(first + i, first_column + c,", "packed_place(i, first_column + c,", &long),
        (
            "cp_async_wait<0>();\n        __syncthreads();\n        for (int row",
            "cp_async_wait<0>();\n        for (int row",
            &spread,
        ),
        (
            "cp_async_wait<0>();\n        __syncthreads();\n        for (int row",
            "__syncthreads();\n        for (int row",
            &spread,
        ),
        ("if (token < 0 || token >= count) continue;", "if (token < 0 || token > count) continue;", &long),
        ("held + (c * room + token) * 8", "held + (c * room + token) * 4", &spread),
        ("if (column * 8 + i >= k) continue;", "if (column * 8 + i > k) continue;", &unpacked),
        ("((long long)token * k + column * 8);", "((long long)token * k + column * 4);", &unpacked),
        ("if (senders >> lane & 1) mbarrier", "if (lane < 4) mbarrier", &eight),
    ];
    assert_noticed(&cases);
}
