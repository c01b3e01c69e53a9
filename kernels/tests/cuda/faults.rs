//! Planted bugs, each of which the emulator must show: by a message with file and line, or by bytes that are not the same under
//! every schedule.

use crate::bench::Bench;
use crate::common::values;
use kernels::cuda::compile::Source;
use kernels::cuda::driver::*;
use kernels::cuda::error::{CudaError, Result};

const SOURCE: Source = Source { name: "faults.cu", text: include_str!("faults.cu") };
const SEEDS: u64 = 6;
const ROWS: usize = 3;
/// Whole groups of four, so that each row is aligned; not whole steps.
const K: usize = 300;

fn run(seed: u64, defines: &[&str]) -> Result<Vec<f32>> {
    let bench = Bench::new(seed);
    let kernel = bench.function(SOURCE, "weighted_sums", defines)?;
    let (x, w) = (bench.filled(&values(1, ROWS * K), "x"), bench.filled(&values(2, K), "w"));
    let (scratch, out) = (bench.region(256, "scratch"), bench.region(ROWS * 4, "out"));
    let args = Args::new().pointer(x.start).pointer(w.start).value(K as i32);
    bench.launch(kernel, ROWS as u32, 64, &args.pointer(scratch.start).pointer(out.start))?;
    bench.read(out)
}

fn expected() -> Vec<f64> {
    let (x, w) = (values(1, ROWS * K), values(2, K));
    let dot = |row: &[f32]| row.iter().zip(&w).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
    x.chunks(K).map(dot).collect()
}

fn is_right(found: &[f32]) -> bool {
    found.iter().zip(expected()).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-4)
}

#[test]
fn the_kernel_without_a_bug() {
    let first = run(0, &[]).expect("no bug");
    assert!(is_right(&first), "{first:?} instead of {:?}", expected());
    for seed in 1..SEEDS {
        assert_eq!(run(seed, &[]), Ok(first.clone()), "seed {seed}");
    }
}

/// The message of each bug names the line and what is wrong there, under every schedule.
#[test]
fn bugs_that_are_named() {
    let cases = [
        ("UNMASKED_TAIL", "out-of-bounds read of 16 bytes", "x"),
        ("MISALIGNED", "misaligned write of 16 bytes", "tile"),
        ("MISSING_WAIT", "read of unwritten memory", "tile"),
        ("DIVERGENT_BARRIER", "divergent barrier", ""),
        ("OFF_BY_ONE", "out-of-bounds read of 4 bytes", "w"),
        ("EARLY_EXIT", "divergent", "exit"),
        ("DIVERGENT_WARP", "divergent warp", ""),
        ("WRONG_MASK", "lacks the calling lane", ""),
        ("NULL_POINTER", "null pointer", ""),
        ("UNWRITTEN_DEVICE_MEMORY", "read of unwritten memory", "scratch"),
        ("DEADLOCK", "deadlock", "faults.cu"),
    ];
    for (bug, what, subject) in cases {
        for seed in 0..2 {
            let error = run(seed, &[bug]).expect_err(bug);
            assert!(error.is_sticky(), "{bug}: {error}");
            let message = error.to_string();
            let line = message.split(".cu:").nth(1).or(message.split(".cuh:").nth(1));
            let line = line.and_then(|rest| rest.split([',', ';']).next()).unwrap_or_default();
            let numbered =
                line.trim_end_matches(':').split(':').next().is_some_and(|n| n.trim().parse::<u32>().is_ok());
            assert!(numbered, "{bug}: no line in {message:?}");
            assert!(message.contains(what) && message.contains(subject), "{bug}: {message}");
        }
    }
}

/// A missing barrier is a message or other bytes under some schedule: never the right answer under all.
#[test]
fn bugs_of_order() {
    for bug in ["DROPPED_BARRIER", "NO_SECOND_BARRIER", "NO_LAST_BARRIER"] {
        let caught = (0..SEEDS).filter(|&seed| !run(seed, &[bug]).is_ok_and(|out| is_right(&out))).count();
        assert!(caught > 0, "{bug}: {SEEDS} schedules were right");
    }
}

#[test]
fn a_wrong_lane_is_a_wrong_result() {
    let out = run(0, &["WRONG_LANE"]).expect("nothing that can be named");
    assert!(!is_right(&out));
}

/// After a fault nothing works, as on a device whose context is lost.
#[test]
fn a_fault_stays() {
    let bench = Bench::new(1);
    let kernel = bench.function(SOURCE, "weighted_sums", &["NULL_POINTER"]).expect("it compiles");
    let (x, w) = (bench.filled(&values(1, ROWS * K), "x"), bench.filled(&values(2, K), "w"));
    let out = bench.region(ROWS * 4, "out");
    let args = Args::new().pointer(x.start).pointer(w.start).value(K as i32);
    let args = args.pointer(DevicePtr::NULL).pointer(out.start);
    bench.launch(kernel, ROWS as u32, 64, &args).expect("a launch says nothing yet");
    let first = bench.driver.synchronize(bench.stream).expect_err("the fault");
    assert_eq!(bench.driver.synchronize(bench.stream), Err(first.clone()));
    assert_eq!(bench.launch(kernel, 1, 64, &args), Err(first));
}

/// What a driver refuses at once, with nothing lost.
#[test]
fn wrong_launches_are_refused() {
    let bench = Bench::new(1);
    let kernel = bench.function(SOURCE, "weighted_sums", &[]).expect("it compiles");
    let (x, out) = (bench.filled(&values(1, K), "x"), bench.region(4, "out"));
    let args = |k: Args| k.pointer(DevicePtr::NULL).pointer(out.start);
    let good = args(Args::new().pointer(x.start).pointer(x.start).value(K as i32));
    let refused = [
        (1, 1025, good.clone(), "1025 threads"),
        (0, 64, good.clone(), "grid"),
        (1, 64, args(Args::new().pointer(x.start).pointer(x.start).value(K as u64)), "arguments of"),
        (1, 64, args(Args::new().pointer(x.start).value(K as i32)), "arguments of"),
        (1, 64, args(Args::new().pointer(x.start).pointer(DevicePtr(64)).value(K as i32)), "no region"),
    ];
    for (blocks, threads, args, reason) in refused {
        let error = bench.launch(kernel, blocks, threads, &args).expect_err(reason);
        assert!(!error.is_sticky() && error.to_string().contains(reason), "{error}");
    }
    bench.launch(kernel, 1, 64, &good).expect("a right launch");
    bench.driver.synchronize(bench.stream).expect("it runs");
}

#[test]
fn what_does_not_compile_says_why() {
    let source = Source { name: "broken.cu", text: "__global__ void broken() { undeclared(); }" };
    let error = Bench::new(1).function(source, "broken", &[]).expect_err("it is broken");
    let CudaError::Compile { source_name: "broken.cu", log, .. } = &error else { panic!("{error}") };
    assert!(log.contains("undeclared"), "{log}");
}
