//! Devices for tests: emulated ones, whose compiled kernels are kept between runs, or with `PERILUNE_TEST_DEVICE=cuda` the first GPU
//! (tests/gpu/run), for what does not plant bugs or choose schedules.

use kernels::cuda::Matmul;
use kernels::cuda::compile::Cache;
use kernels::cuda::emulated::{Emulator, EmulatorOptions, Meter};
use kernels::cuda::nvidia::{Nvidia, NvidiaOptions};
use kernels::{CpuOptions, Device};
use std::sync::Arc;

/// Orders of threads that every result must be the same for.
pub const SEEDS: [u64; 2] = [1, 0xfeed];

pub fn options() -> EmulatorOptions {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_string());
    let cache = Cache::new(concat!(env!("CARGO_TARGET_TMPDIR"), "/emulated"));
    EmulatorOptions::new(&compiler, cache)
}

/// 64 MiB of memory, threads in the order of this seed, where a seed chooses.
pub fn emulated(seed: u64) -> Device {
    if is_real() {
        return real();
    }
    open(EmulatorOptions { seed, ..options() })
}

/// As `emulated`, multiplying by wgmma; `None` where the device has none.
pub fn with_wgmma(seed: u64) -> Option<Device> {
    let device = emulated(seed);
    let Device::Cuda(cuda) = &device else { panic!("not a GPU") };
    cuda.choose_matmul(Matmul::Wgmma).then_some(device)
}

fn is_real() -> bool {
    std::env::var_os("PERILUNE_TEST_DEVICE").is_some_and(|device| device == "cuda")
}

fn real() -> Device {
    let folder = |name: &str| std::env::var_os(name).map(std::path::PathBuf::from);
    let cache =
        folder("PERILUNE_KERNEL_CACHE").unwrap_or_else(|| std::env::temp_dir().join("perilune-kernels"));
    let options = NvidiaOptions { ordinal: 0, cache: Cache::new(cache), nvrtc: folder("PERILUNE_NVRTC_DIR") };
    let driver = Nvidia::new(options).unwrap_or_else(|error| panic!("{error}"));
    Device::cuda(Box::new(driver), 64 << 20, CpuOptions { threads: Some(2), ..CpuOptions::default() })
        .expect("memory")
}

/// As `emulated`, with another number of multiprocessors, where it can be chosen.
pub fn sized(seed: u64, num_sms: u32) -> Device {
    if is_real() {
        return real();
    }
    open(EmulatorOptions { seed, num_sms, ..options() })
}

/// A device of as many multiprocessors as an H200 has, and what counts its launches.
pub fn metered() -> (Device, Arc<Meter>) {
    let meter = Arc::new(Meter::default());
    let options = EmulatorOptions { num_sms: 132, meter: Some(meter.clone()), ..options() };
    (open(options), meter)
}

/// The same with a bug in it.
pub fn edited(seed: u64, from: &'static str, to: &'static str) -> Device {
    open(EmulatorOptions { seed, edits: vec![[from, to]], ..options() })
}

fn open(options: EmulatorOptions) -> Device {
    let emulator = Emulator::new(options).expect("a C++ compiler");
    Device::cuda(Box::new(emulator), 64 << 20, CpuOptions { threads: Some(2), ..CpuOptions::default() })
        .expect("an emulated device")
}
