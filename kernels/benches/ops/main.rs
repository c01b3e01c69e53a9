//! Every op: time, GB/s or GFLOP/s, and the share of what this machine can do, measured in the same run.
//!
//! `cargo bench -p kernels --bench ops [-- FILTER]`. Two passes: one thread, timed by the processor time that it got (fair on a
//! shared machine), and all threads, timed by the clock. The best of several runs counts, against the best peak.
//!
//! `-- --device=cuda` measures the first GPU instead, by its own clock; kernels and compiler are looked for where `PERILUNE_KERNEL_CACHE`
//! and `PERILUNE_NVRTC_DIR` say. `--json` prints a line of JSON for each op after one for the peak, `--seconds=N` stops after so many,
//! `--tiny` takes sizes that the emulator (`--device=cuda-emulated`) can do.

mod cases;
mod clock;
mod gpu;
mod peak;
mod reads;

use clock::{best_time, thread_clock, wall_clock};
use kernels::Device;
use peak::Peak;
use std::time::{Duration, Instant};

/// What limits an op: bytes that must come from memory, or arithmetic.
pub enum Work {
    Bytes(f64),
    Flop(f64),
}

pub struct Bench {
    pub device: Device,
    peak: Peak,
    options: Options,
    timer: Timer,
    end: Instant,
}

enum Timer {
    Host(fn() -> f64),
    Device,
}

/// What was typed.
#[derive(Clone, Default)]
struct Options {
    filter: Option<String>,
    device: Option<String>,
    seconds: Option<u64>,
    json: bool,
    tiny: bool,
}

impl Options {
    fn read(args: impl Iterator<Item = String>) -> Self {
        let mut options = Self::default();
        for arg in args {
            match arg.split_once('=').unwrap_or((&arg, "")) {
                ("--device", device) => options.device = Some(device.to_string()),
                ("--seconds", seconds) => options.seconds = seconds.parse().ok(),
                ("--json", _) => options.json = true,
                ("--tiny", _) => options.tiny = true,
                // Cargo passes `--bench`.
                (other, _) if !other.starts_with("--") => options.filter = Some(arg),
                _ => {}
            }
        }
        options
    }

    fn end(&self) -> Instant {
        Instant::now() + Duration::from_secs(self.seconds.unwrap_or(1 << 20))
    }
}

impl Bench {
    pub fn wants(&self, op: &str) -> bool {
        Instant::now() < self.end
            && self.options.filter.as_ref().is_none_or(|filter| op.contains(filter.as_str()))
    }

    /// Measures and prints one line.
    pub fn line(&self, op: &str, sizes: &str, work: Work, mut run: impl FnMut()) {
        let seconds = match self.timer {
            Timer::Host(clock) => best_time(clock, &mut run),
            Timer::Device => gpu::best_time(&self.device, &mut run),
        };
        let (rate, unit, peak) = match work {
            Work::Bytes(bytes) => (bytes / seconds / 1e9, "GB/s", self.peak.read_gb_s),
            Work::Flop(flop) => (flop / seconds / 1e9, "GFLOP/s", self.peak.fma_gflop_s),
        };
        let (micros, percent) = (seconds * 1e6, 100.0 * rate / peak);
        if self.options.json {
            let (micros, rate, percent) = (json(micros), json(rate), json(percent));
            println!(
                r#"{{"op":"{op}","sizes":"{sizes}","micros":{micros},"rate":{rate},"unit":"{unit}","percent":{percent}}}"#
            );
        } else {
            println!("{op:<17} {sizes:<34} {micros:>10.1} µs {rate:>8.1} {unit:<7} {percent:>4.0} %");
        }
    }
}

/// A number, or null for what is none.
fn json(value: f64) -> String {
    if value.is_finite() { value.to_string() } else { "null".to_string() }
}

fn main() {
    let options = Options::read(std::env::args().skip(1));
    if let Some(name) = options.device.clone() {
        return gpu::run(&name, options);
    }
    let all = std::thread::available_parallelism().map_or(1, usize::from);
    for (threads, clock, name) in
        [(1, thread_clock as fn() -> f64, "processor time of the thread"), (all, wall_clock, "clock")]
    {
        let device = Device::cpu(Some(threads));
        let peak = Peak::measure(device.isa(), threads, clock);
        println!("\n{device:?}, {}, by {name}", peak::processor());
        println!("peak: {:.1} GFLOP/s of f32 FMA, {:.1} GB/s read\n", peak.fma_gflop_s, peak.read_gb_s);
        let (timer, end) = (Timer::Host(clock), options.end());
        let bench = Bench { device, peak, options: options.clone(), timer, end };
        reads::all(&bench);
        cases::all(&bench);
    }
}
