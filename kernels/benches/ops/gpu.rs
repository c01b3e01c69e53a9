//! The same ops on a GPU, or on the emulated one.

use crate::peak::Peak;
use crate::{Bench, Options, Timer, cases, json};
use kernels::cuda::compile::Cache;
use kernels::cuda::driver::Driver;
use kernels::cuda::emulated::{Emulator, EmulatorOptions};
use kernels::cuda::nvidia::{Nvidia, NvidiaOptions};
use kernels::cuda::peak::{PeakSizes, measure};
use kernels::{CpuOptions, Device, Error, Stopwatch};
use std::path::PathBuf;
use std::process::exit;

const EMULATED_MEMORY: u64 = 64 << 20;
/// A run is repeated until one stretch takes about this long.
const STRETCH_MICROS: u64 = 20_000;
const STRETCHES: usize = 5;
const MOST_RUNS: usize = 10_000;

pub fn run(name: &str, options: Options) {
    let device = open(name).unwrap_or_else(|error| {
        eprintln!("error: {error}");
        exit(3)
    });
    let sizes = if options.tiny { PeakSizes { read_bytes: 1 << 12, rounds: 2 } } else { PeakSizes::REAL };
    let peaks = measure(&device, sizes).unwrap_or_else(|error| {
        eprintln!("error: {error}");
        exit(1)
    });
    if options.json {
        let (read, mma) = (json(peaks.read_gb_s), json(peaks.mma_tflop_s));
        println!(r#"{{"device":"{device:?}","read_gb_s":{read},"tflop_s":{mma}}}"#);
    } else {
        println!("\n{device:?}, by its own clock");
        println!("peak: {:.1} TFLOP/s of mma.sync, {:.1} GB/s read\n", peaks.mma_tflop_s, peaks.read_gb_s);
    }
    let peak = Peak { fma_gflop_s: peaks.mma_tflop_s * 1e3, read_gb_s: peaks.read_gb_s };
    let end = options.end();
    let bench = Bench { device, peak, timer: Timer::Device, end, options };
    if bench.options.tiny { cases::tiny(&bench) } else { cases::all(&bench) }
}

fn open(name: &str) -> Result<Device, Error> {
    let folder = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let cache = Cache::new(
        folder("PERILUNE_KERNEL_CACHE").unwrap_or_else(|| std::env::temp_dir().join("perilune-kernels")),
    );
    let (driver, bytes): (Box<dyn Driver>, u64) = match name {
        "cuda-emulated" => (Box::new(Emulator::new(EmulatorOptions::new("c++", cache))?), EMULATED_MEMORY),
        _ => {
            let nvrtc = folder("PERILUNE_NVRTC_DIR");
            let driver = Nvidia::new(NvidiaOptions { ordinal: 0, cache, nvrtc })?;
            let bytes = driver.info().free_memory / 2;
            (Box::new(driver), bytes)
        }
    };
    Device::cuda(driver, bytes, CpuOptions::default())
}

/// Seconds of one run: the best of some stretches, each of as many runs as make it long enough to be measured.
pub fn best_time(device: &Device, run: &mut dyn FnMut()) -> f64 {
    let mut stopwatch = Stopwatch::new(device).expect("events");
    let mut stretch = |runs: usize| {
        stopwatch.start();
        (0..runs).for_each(|_| run());
        stopwatch.stop();
        device.synchronize().unwrap_or_else(|error| panic!("{error}"));
        stopwatch.micros().expect("the stretch is done")
    };
    stretch(1);
    let three = stretch(3);
    // The emulator's clock stands still: nothing is to be measured there.
    if three == 0 {
        return f64::NAN;
    }
    let runs = usize::try_from(3 * STRETCH_MICROS / three).unwrap_or(MOST_RUNS).clamp(1, MOST_RUNS);
    let best = (0..STRETCHES).map(|_| stretch(runs)).min().unwrap_or(0);
    best as f64 * 1e-6 / runs as f64
}
