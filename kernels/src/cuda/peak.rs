//! Launches of peak.cu: what the device reaches at its best, measured in the same run as the ops that are compared with it.

use super::Cuda;
use super::compile::Source;
use super::driver::Args;
use super::launch::{Instance, Kernel, grid};
use crate::{DType, Device, Error, Stopwatch, Tensor};

const THREADS: usize = 256;
const CHAINS: usize = 8;
/// Of one mma.sync.m16n8k16.
const FLOP: usize = 2 * 16 * 8 * 16;
/// The best of so many runs.
const RUNS: usize = 5;

pub(super) const KERNEL: Kernel = Kernel {
    source: Source { name: "peak.cu", text: include_str!("peak.cu") },
    instances: &[Instance::new("peak_read", 64, 0), Instance::new("peak_mma", 64, 0)],
};

/// Rates at their best. Not finite where the clock does not run, as in the emulator.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Peaks {
    /// Reads of device memory, in 10⁹ bytes a second.
    pub read_gb_s: f64,
    /// Multiply-adds of bf16 into f32 by mma.sync, in 10¹² operations a second.
    pub mma_tflop_s: f64,
}

/// How much is read, and how long tensor cores run.
#[derive(Debug, Clone, Copy)]
pub struct PeakSizes {
    pub read_bytes: usize,
    pub rounds: usize,
}

impl PeakSizes {
    /// Well beyond caches, and some milliseconds.
    pub const REAL: Self = Self { read_bytes: 1 << 30, rounds: 1 << 15 };
}

/// Takes `read_bytes` of the device's memory for as long as it runs.
pub fn measure(device: &Device, sizes: PeakSizes) -> Result<Peaks, Error> {
    let Device::Cuda(cuda) = device else { panic!("peaks of a GPU") };
    let blocks = 16 * cuda.info().num_sms as usize;
    let vectors = sizes.read_bytes / 16;
    let x = Tensor::zeros(device, DType::F32, &[4 * vectors.max(1)]);
    let out = Tensor::zeros(device, DType::F32, &[blocks * THREADS]);
    let read = best(device, || {
        let args = Args::new().pointer(x.pointer()).value(vectors as u64).pointer(out.pointer());
        // SAFETY: x has 4 · vectors elements, out one for each thread.
        unsafe { cuda.launch(&KERNEL, "peak_read", grid(blocks, THREADS as u32), args) };
    })?;
    let mma = best(device, || {
        let args = Args::new().value(sizes.rounds as i32).pointer(out.pointer());
        // SAFETY: out has one element for each thread.
        unsafe { cuda.launch(&KERNEL, "peak_mma", grid(blocks, THREADS as u32), args) };
    })?;
    let warps = blocks * THREADS / 32;
    Ok(Peaks {
        read_gb_s: (16 * vectors) as f64 / read / 1e9,
        mma_tflop_s: (warps * CHAINS * sizes.rounds * FLOP) as f64 / mma / 1e12,
    })
}

/// Seconds of the best run.
fn best(device: &Device, work: impl Fn()) -> Result<f64, Error> {
    let mut stopwatch = Stopwatch::new(device)?;
    let mut micros = u64::MAX;
    for run in 0..=RUNS {
        stopwatch.start();
        work();
        stopwatch.stop();
        device.synchronize()?;
        // The first one loads the kernel.
        if run > 0 {
            micros = micros.min(stopwatch.micros()?);
        }
    }
    Ok(micros as f64 * 1e-6)
}

impl Cuda {
    /// Whether a source is for measuring only, so that no model needs it.
    pub(super) fn is_for_measuring(kernel: &Kernel) -> bool {
        kernel.source == KERNEL.source
    }
}
