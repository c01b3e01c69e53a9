//! Every op: time, GB/s or GFLOP/s, and the share of what this machine can do, measured in the same run.
//!
//! `cargo bench -p kernels --bench ops [-- FILTER]`. Two passes: one thread, timed by the processor time that it got (fair on a
//! shared machine), and all threads, timed by the clock. The best of several runs counts, against the best peak.

mod cases;
mod peak;

use kernels::Device;
use peak::Peak;
use std::time::Instant;

/// What limits an op: bytes that must come from memory, or arithmetic.
pub enum Work {
    Bytes(f64),
    Flop(f64),
}

pub struct Bench {
    pub device: Device,
    peak: Peak,
    filter: Option<String>,
    clock: fn() -> f64,
}

impl Bench {
    pub fn wants(&self, op: &str) -> bool {
        self.filter.as_ref().is_none_or(|filter| op.contains(filter.as_str()))
    }

    /// Measures and prints one line.
    pub fn line(&self, op: &str, sizes: &str, work: Work, mut run: impl FnMut()) {
        let seconds = best_time(self.clock, &mut run);
        let (rate, unit, peak) = match work {
            Work::Bytes(bytes) => (bytes / seconds / 1e9, "GB/s", self.peak.read_gb_s),
            Work::Flop(flop) => (flop / seconds / 1e9, "GFLOP/s", self.peak.fma_gflop_s),
        };
        println!(
            "{op:<17} {sizes:<34} {:>10.1} µs {rate:>8.1} {unit:<7} {:>4.0} %",
            seconds * 1e6,
            100.0 * rate / peak
        );
    }
}

/// The best of some runs: at least five, then as many as fit half a second.
pub fn best_time(clock: fn() -> f64, run: &mut dyn FnMut()) -> f64 {
    run();
    let start = Instant::now();
    let mut best = f64::MAX;
    let mut runs = 0;
    while runs < 5 || (start.elapsed().as_secs_f64() < 0.5 && runs < 2000) {
        let from = clock();
        run();
        best = best.min(clock() - from);
        runs += 1;
    }
    best
}

fn wall_clock() -> f64 {
    seconds(libc::CLOCK_MONOTONIC)
}

fn thread_clock() -> f64 {
    seconds(libc::CLOCK_THREAD_CPUTIME_ID)
}

fn seconds(clock: libc::clockid_t) -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec.
    unsafe { libc::clock_gettime(clock, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

fn main() {
    // Cargo passes `--bench`.
    let filter = std::env::args().skip(1).find(|arg| !arg.starts_with("--"));
    let all = std::thread::available_parallelism().map_or(1, usize::from);
    for (threads, clock, name) in
        [(1, thread_clock as fn() -> f64, "processor time of the thread"), (all, wall_clock, "clock")]
    {
        let device = Device::cpu(Some(threads));
        let peak = Peak::measure(device.isa(), threads, clock);
        println!("\n{device:?}, {}, by {name}", peak::processor());
        println!("peak: {:.1} GFLOP/s of f32 FMA, {:.1} GB/s read\n", peak.fma_gflop_s, peak.read_gb_s);
        let bench = Bench { device, peak, filter: filter.clone(), clock };
        cases::all(&bench);
    }
}
