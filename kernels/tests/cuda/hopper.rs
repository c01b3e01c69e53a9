//! The named instructions of sm_90a against their definitions, and bugs in their use.

use crate::bench::Bench;
use crate::common::values;
use half::{bf16, f16};
use kernels::cuda::compile::Source;
use kernels::cuda::driver::*;
use kernels::cuda::error::{CudaError, Result};

const SOURCE: Source = Source { name: "hopper.cu", text: include_str!("hopper.cu") };
const K: usize = 64;

fn multiply(
    bench: &Bench,
    (ty, n, swizzle): (&str, usize, bool),
    defines: &[&str],
) -> Result<(Vec<f32>, Vec<f64>)> {
    let narrow = |v: f32| if ty == "bf16" { bf16::from_f32(v).to_bits() } else { f16::from_f32(v).to_bits() };
    let widen = |v: u16| if ty == "bf16" { bf16::from_bits(v).to_f64() } else { f16::from_bits(v).to_f64() };
    let halves = |seed, len| -> Vec<u16> { values(seed, len).into_iter().map(narrow).collect() };
    let (a, b) = (halves(1, 64 * K), halves(2, n * K));
    let kernel = bench.function(SOURCE, &format!("multiply<{ty}, {n}, {swizzle}>"), defines)?;
    let out = bench.region(64 * n * 4, "out");
    let args = Args::new().pointer(bench.filled(&a, "a").start).pointer(bench.filled(&b, "b").start);
    let grid = Grid { blocks: [1; 3], threads: [128, 1, 1], shared: (n * K * 2) as u32 };
    // SAFETY: the emulator checks arguments and every access.
    unsafe { bench.driver.launch(bench.stream, kernel, &grid, &args.pointer(out.start))? };
    let dot = |row: usize, n: usize| (0..K).map(|k| widen(a[row * K + k]) * widen(b[n * K + k])).sum::<f64>();
    let expected = (0..64 * n).map(|i| 1.0 + dot(i / n, i % n)).collect();
    Ok((bench.read(out)?, expected))
}

#[test]
fn products_of_a_warpgroup() {
    for ty in ["bf16", "f16"] {
        for (n, swizzle) in
            [(8, false), (16, true), (32, false), (64, true), (128, false), (128, true), (192, false)]
        {
            let (found, expected) =
                multiply(&Bench::new(n as u64), (ty, n, swizzle), &[]).expect("a product");
            for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
                let error = (f64::from(*found) - expected).abs();
                assert!(
                    error < 1e-5,
                    "{ty} n {n} swizzle {swizzle}: ({}, {}) is {found}, not {expected}",
                    i / n,
                    i % n
                );
            }
        }
    }
}

#[test]
fn bugs_of_products() {
    let error = multiply(&Bench::new(1), ("bf16", 8, false), &["HOLE"]).expect_err("one element is missing");
    assert!(error.to_string().contains("unwritten shared memory, row 7, depth 15"), "{error}");
    let error = multiply(&Bench::new(1), ("bf16", 7, false), &[]).expect_err("no such instruction");
    assert!(matches!(error, CudaError::Compile { .. }), "{error}");
}

fn pipeline(seed: u64, defines: &[&str]) -> Result<Vec<f32>> {
    let bench = Bench::new(seed);
    let kernel = bench.function(SOURCE, "pipeline", defines)?;
    let out = bench.region(256, "out");
    let args = Args::new().pointer(bench.filled(&values(3, 64 * TILES), "x").start).value(TILES as i32);
    bench.launch(kernel, 1, 96, &args.pointer(out.start))?;
    bench.read(out)
}

const TILES: usize = 7;

#[test]
fn a_pipeline_of_bulk_copies() {
    let x = values(3, 64 * TILES);
    let expected: Vec<f32> = (0..64).map(|i| (0..TILES).fold(0.0, |sum, t| sum + x[t * 64 + i])).collect();
    for seed in 0..4 {
        assert_eq!(pipeline(seed, &[]).as_ref(), Ok(&expected), "seed {seed}");
    }
}

#[test]
fn bugs_of_pipelines() {
    let cases = [
        ("NO_EMPTY_WAIT", "more arrivals at an mbarrier"),
        ("WRONG_PARITY", "read of unwritten memory"),
        ("TOO_MANY_BYTES", "deadlock"),
        ("NOT_INITIALISED", "hopper.cu:"),
    ];
    for (bug, what) in cases {
        let error = pipeline(1, &[bug]).expect_err(bug);
        assert!(error.is_sticky() && error.to_string().contains(what), "{bug}: {error}");
    }
}
