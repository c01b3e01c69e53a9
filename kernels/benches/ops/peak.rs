//! What the machine can do: multiply-adds from registers, and reads of memory beyond the caches.

use kernels::{CpuOptions, Device, Isa, Peaks};

pub struct Peak {
    pub fma_gflop_s: f64,
    pub read_gb_s: f64,
}

impl Peak {
    pub fn measure(isa: Isa, threads: usize, clock: fn() -> f64) -> Self {
        let options = CpuOptions { threads: Some(threads), isa: Some(isa), ..CpuOptions::default() };
        let device = Device::cpu_with(options).expect("the instruction set is there");
        let peaks = Peaks::measure(&device, &clock).expect("the device is the processor");
        let Peaks { read_gb_s, f32_gflop_s, bf16_gflop_s, int8_gop_s } = peaks;
        let rounded = [("bf16", bf16_gflop_s), ("int8", int8_gop_s)];
        for (name, peak) in rounded.into_iter().filter_map(|(name, peak)| Some((name, peak?))) {
            println!("peak: {peak:.0} G operations/s of {name} products");
        }
        Self { fma_gflop_s: f32_gflop_s, read_gb_s }
    }
}

/// The name that the system gives.
pub fn processor() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name =
        info.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split(": ").nth(1));
    name.unwrap_or("unknown processor").to_owned()
}
