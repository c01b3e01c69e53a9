//! Emulated devices for tests. Compiled kernels are kept between runs.

use kernels::cuda::compile::Cache;
use kernels::cuda::emulated::{Emulator, EmulatorOptions};
use kernels::{CpuOptions, Device};

/// Orders of threads that every result must be the same for.
pub const SEEDS: [u64; 2] = [1, 0xfeed];

pub fn options() -> EmulatorOptions {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_string());
    let cache = Cache::new(concat!(env!("CARGO_TARGET_TMPDIR"), "/emulated"));
    EmulatorOptions::new(&compiler, cache)
}

/// 64 MiB of memory, threads in the order of this seed.
pub fn emulated(seed: u64) -> Device {
    open(EmulatorOptions { seed, ..options() })
}

/// The same with a bug in it.
pub fn edited(seed: u64, from: &'static str, to: &'static str) -> Device {
    open(EmulatorOptions { seed, edits: vec![[from, to]], ..options() })
}

fn open(options: EmulatorOptions) -> Device {
    let emulator = Emulator::new(options).expect("a C++ compiler");
    Device::cuda(Box::new(emulator), 64 << 20, CpuOptions { threads: Some(2), isa: None })
        .expect("an emulated device")
}
