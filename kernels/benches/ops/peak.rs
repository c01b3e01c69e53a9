//! What the machine can do: multiply-adds from registers, and reads of memory beyond the caches.

use super::clock::best_time;
use kernels::Isa;
use std::hint::black_box;

pub struct Peak {
    pub fma_gflop_s: f64,
    pub read_gb_s: f64,
}

const READ_BYTES: usize = 256 << 20;
const FMA_ROUNDS: usize = 200_000;
const CHAINS: usize = 20;

impl Peak {
    pub fn measure(isa: Isa, threads: usize, clock: fn() -> f64) -> Self {
        let lanes = lanes(isa);
        let flop = (threads * FMA_ROUNDS * CHAINS * lanes * 2) as f64;
        let fma = best_time(clock, &mut || on_threads(threads, |_| fma_rounds(isa)));
        let data: Vec<Vec<u64>> = (0..threads).map(|i| vec![i as u64 + 1; READ_BYTES / 8]).collect();
        let read = best_time(clock, &mut || on_threads(threads, |i| read_all(isa, &data[i])));
        Self { fma_gflop_s: flop / fma / 1e9, read_gb_s: (threads * READ_BYTES) as f64 / read / 1e9 }
    }
}

/// One thread is this one, so that its own clock sees it.
fn on_threads(threads: usize, work: impl Fn(usize) + Sync) {
    std::thread::scope(|scope| {
        for i in 1..threads {
            let work = &work;
            scope.spawn(move || work(i));
        }
        work(0);
    });
}

fn lanes(isa: Isa) -> usize {
    match isa {
        Isa::Avx512 => 16,
        _ => 8,
    }
}

fn fma_rounds(isa: Isa) {
    #[cfg(target_arch = "x86_64")]
    match isa {
        // SAFETY: the device has the instruction set.
        Isa::Avx512 => return unsafe { fma_avx512() },
        // SAFETY: as above.
        Isa::Avx2 => return unsafe { fma_avx2() },
        Isa::Portable | Isa::Neon => {}
    }
    let _ = isa;
    let mut sums = [[0.0f32; 8]; CHAINS];
    for _ in 0..FMA_ROUNDS {
        let x = black_box(1.0f32);
        sums.iter_mut().flatten().for_each(|sum| *sum = *sum * x + x);
    }
    black_box(sums);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn fma_avx512() {
    use std::arch::x86_64::*;
    let (a, b) = (_mm512_set1_ps(black_box(0.999)), _mm512_set1_ps(black_box(0.001)));
    let mut sums = [_mm512_setzero_ps(); CHAINS];
    for _ in 0..FMA_ROUNDS {
        for sum in &mut sums {
            *sum = _mm512_fmadd_ps(*sum, a, b);
        }
    }
    black_box(sums.into_iter().reduce(|a, b| _mm512_add_ps(a, b)));
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn fma_avx2() {
    use std::arch::x86_64::*;
    // Ten chains hide the latency, twenty would not fit the registers.
    let (a, b) = (_mm256_set1_ps(black_box(0.999)), _mm256_set1_ps(black_box(0.001)));
    let mut sums = [_mm256_setzero_ps(); CHAINS / 2];
    for _ in 0..2 * FMA_ROUNDS {
        for sum in &mut sums {
            *sum = _mm256_fmadd_ps(*sum, a, b);
        }
    }
    black_box(sums.into_iter().reduce(|a, b| _mm256_add_ps(a, b)));
}

fn read_all(isa: Isa, data: &[u64]) {
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Avx512 {
        // SAFETY: the device has the instruction set.
        return unsafe { read_avx512(data) };
    }
    let _ = isa;
    let mut sums = [0u64; 32];
    for line in data.as_chunks::<32>().0 {
        sums.iter_mut().zip(line).for_each(|(sum, v)| *sum ^= v);
    }
    black_box(sums);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn read_avx512(data: &[u64]) {
    use std::arch::x86_64::*;
    let mut sums = [_mm512_setzero_si512(); 4];
    for line in data.as_chunks::<32>().0 {
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: 32 numbers are four vectors.
            let v = unsafe { _mm512_loadu_si512(line.as_ptr().add(8 * i).cast()) };
            *sum = _mm512_xor_si512(*sum, v);
        }
    }
    black_box(sums.into_iter().reduce(|a, b| _mm512_xor_si512(a, b)));
}

/// The name that the system gives.
pub fn processor() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name =
        info.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split(": ").nth(1));
    name.unwrap_or("unknown processor").to_owned()
}
