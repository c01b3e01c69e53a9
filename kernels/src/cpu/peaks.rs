//! What a processor can do at best: products of each kind from registers, and reads of memory beyond the caches. What ops are measured
//! against, in the same run: a virtual machine gets more at one hour than at another.

use super::shared::SharedMut;
#[cfg(target_arch = "x86_64")]
use super::simd::Bf16Dot;
use super::simd::dot::Dot;
use super::simd::{Isa, Simd, dot_entry, simd_entry};
use crate::{ActivationType, DType, Device, Tensor, WeightType};
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Of all threads of a device together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Peaks {
    /// Bytes a second from memory, by nanoseconds.
    pub read_gb_s: f64,
    /// Multiply-adds count as two.
    pub f32_gflop_s: f64,
    /// None: the device does not round to it.
    pub bf16_gflop_s: Option<f64>,
    /// As `bf16_gflop_s`.
    pub int8_gop_s: Option<f64>,
}

/// Bytes that each thread reads.
const READ_BYTES: usize = 128 << 20;
/// Of products: some milliseconds.
const ROUNDS: usize = 200_000;
/// Of each peak at least; the best counts.
const TRIES: usize = 5;
const LEAST: Duration = Duration::from_millis(150);

impl Peaks {
    /// `clock` gives seconds: those of the day, or with one thread those that it ran. None where the device is a GPU.
    pub fn measure(device: &Device, clock: &dyn Fn() -> f64) -> Option<Self> {
        let Device::Cpu(cpu) = device else { return None };
        let threads = cpu.pool.num_workers();
        let mut counts = vec![0.0; threads];
        let mut rate = |work: &(dyn Fn(usize, &mut f64) + Sync)| {
            let shared = SharedMut::new(&mut counts);
            let mut best = f64::MAX;
            let (begun, mut tries) = (Instant::now(), 0);
            while tries < TRIES || begun.elapsed() < LEAST {
                tries += 1;
                let start = clock();
                // SAFETY: each task has its own count.
                cpu.pool.run(threads, &|task, _| work(task, &mut unsafe { shared.slice(task, 1) }[0]));
                best = best.min(clock() - start);
            }
            counts.iter().sum::<f64>() / best / 1e9
        };
        let mut memory = Tensor::zeros(device, DType::F32, &[threads, READ_BYTES / 4]);
        // Pages that were never written are all the same one.
        memory.as_f32_mut().fill(1.0);
        let memory = memory.as_f32();
        let rounds = |weights| cpu.rounds.beside(weights) != ActivationType::F32;
        Some(Self {
            read_gb_s: rate(&|task, count| {
                read(cpu.isa, &memory[task * READ_BYTES / 4..][..READ_BYTES / 4]);
                *count = READ_BYTES as f64;
            }),
            f32_gflop_s: rate(&|_, count| multiply_floats(cpu.isa, count)),
            bf16_gflop_s: rounds(WeightType::BF16).then(|| rate(&|_, count| multiply_pairs(count))),
            int8_gop_s: rounds(WeightType::Int8).then(|| rate(&|_, count| multiply_bytes(cpu.isa, count))),
        })
    }
}

simd_entry! {
    fn read(data: &[f32]) = read_body
}

#[inline(always)]
fn read_body<S: Simd>(s: S, data: &[f32]) {
    let mut sums = [s.zero(); 8];
    for start in (0..data.len() / (8 * S::LANES) * (8 * S::LANES)).step_by(8 * S::LANES) {
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum = s.add(*sum, s.load_slice(&data[start + i * S::LANES..]));
        }
    }
    black_box(sums.map(|sum| s.sum(sum)));
}

/// Sums under way at once: enough to hide what an instruction takes, and no more than AVX2 has registers for.
const fn num_chains(isa: Isa) -> usize {
    match isa {
        Isa::Avx2 | Isa::Portable => 10,
        Isa::Neon | Isa::Avx512 => 20,
    }
}

simd_entry! {
    /// Leaves in `count` how many operations that were.
    fn multiply_floats(count: &mut f64) = multiply_floats_body
}

#[inline(always)]
fn multiply_floats_body<S: Simd>(s: S, count: &mut f64) {
    if num_chains(S::ISA) == 10 { floats::<S, 10>(s, count) } else { floats::<S, 20>(s, count) }
}

#[inline(always)]
fn floats<S: Simd, const CHAINS: usize>(s: S, count: &mut f64) {
    let (a, b) = (s.splat(black_box(0.999)), s.splat(black_box(0.001)));
    let mut sums = [s.zero(); CHAINS];
    for _ in 0..ROUNDS {
        for sum in &mut sums {
            *sum = s.fma(*sum, a, b);
        }
    }
    // Not their sums over lanes, beside which the compiler once kept sums of the loop in memory.
    for sum in &sums {
        black_box(*sum);
    }
    *count = (ROUNDS * CHAINS * S::LANES * 2) as f64;
}

dot_entry! {
    /// As `multiply_floats`, four products to a word.
    fn multiply_bytes(count: &mut f64) = multiply_bytes_body
}

#[inline(always)]
fn multiply_bytes_body<D: Dot>(d: D, count: &mut f64) {
    if num_chains(D::S::ISA) == 10 { bytes::<D, 5>(d, count) } else { bytes::<D, 10>(d, count) }
}

/// As a tile does: two vectors of weights times a word of each row.
#[inline(always)]
fn bytes<D: Dot, const ROWS: usize>(d: D, count: &mut f64) {
    // Each product has an operand of its own, which the compiler does not know from one round to the next: where a product is several
    // instructions, it would do all but the additions once, before the loop.
    let mut x = [0i32; ROWS];
    for (row, x) in x.iter_mut().enumerate() {
        *x = 0x0101_0101 * row as i32;
    }
    let w = [d.splat(black_box(0x0102_0304)), d.splat(black_box(0x0403_0201))];
    let mut sums = [[d.splat(0); 2]; ROWS];
    for _ in 0..ROUNDS {
        let x = black_box(&x);
        for (sums, x) in sums.iter_mut().zip(x) {
            *sums = d.dot_two_bytes(*sums, w, d.splat(*x));
        }
    }
    for sum in sums.as_flattened() {
        black_box(*sum);
    }
    *count = (ROUNDS * 2 * ROWS * D::S::LANES * 8) as f64;
}

#[cfg(not(target_arch = "x86_64"))]
fn multiply_pairs(_: &mut f64) {
    unreachable!("no processor of this kind multiplies bf16");
}

#[cfg(target_arch = "x86_64")]
fn multiply_pairs(count: &mut f64) {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
    fn entry(count: &mut f64) {
        // SAFETY: this function has the features.
        let d = unsafe { Bf16Dot::new() };
        let s = d.simd();
        let (a, b) = (d.splat(black_box(0x3f80_3f80)), d.splat(black_box(0x3a80_3a80)));
        let mut sums = [s.zero(); 20];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = d.dot_pairs(*sum, a, b);
            }
        }
        for sum in &sums {
            black_box(*sum);
        }
        *count = (ROUNDS * sums.len() * 16 * 4) as f64;
    }
    // SAFETY: a device rounds to bf16 only where `Isa::has_bf16_dots`.
    unsafe { entry(count) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ActivationChoice, CpuOptions};

    #[test]
    fn each_kind_of_product_that_a_device_has_is_measured() {
        let start = Instant::now();
        for activations in [ActivationChoice::F32, ActivationChoice::Auto] {
            let options = CpuOptions { threads: Some(2), activations, ..CpuOptions::default() };
            let device = Device::cpu_with(options).unwrap();
            let before = device.allocated_bytes();
            let peaks = Peaks::measure(&device, &|| start.elapsed().as_secs_f64()).unwrap();
            assert_eq!(device.allocated_bytes(), before);
            assert!(peaks.read_gb_s > 0.0 && peaks.f32_gflop_s > 0.0, "{peaks:?}");
            let kinds = [(WeightType::BF16, peaks.bf16_gflop_s), (WeightType::Int8, peaks.int8_gop_s)];
            for (weights, peak) in kinds {
                let rounds = device.activation_type(weights) != ActivationType::F32;
                assert_eq!(peak.is_some_and(|peak| peak > 0.0), rounds, "{weights} {peaks:?}");
            }
        }
    }
}
