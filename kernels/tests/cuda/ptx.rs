//! Every named instruction against what the PTX ISA says of it, written out here once more, in another way.

use crate::bench::Bench;
use crate::common::values;
use half::{bf16, f16};
use kernels::cuda::compile::Source;
use kernels::cuda::driver::*;

const SOURCE: Source = Source { name: "ptx.cu", text: include_str!("ptx.cu") };

fn run(bench: &Bench, expression: &str, threads: u32, args: &Args) {
    let kernel = bench.function(SOURCE, expression, &[]).expect("it compiles");
    bench.launch(kernel, 1, threads, args).expect("a launch");
}

/// Elements of the fragments of mma.m16n8k16 with 16-bit types: the formulas of the manual, by lane and element.
mod fragment {
    pub fn a(lane: usize, i: usize) -> (usize, usize) {
        let (group, thread) = (lane >> 2, lane % 4);
        let row = if i < 2 || (4..6).contains(&i) { group } else { group + 8 };
        let column = thread * 2 + (i & 1) + if i >= 4 { 8 } else { 0 };
        (row, column)
    }

    pub fn b(lane: usize, i: usize) -> (usize, usize) {
        let (group, thread) = (lane >> 2, lane % 4);
        (thread * 2 + (i & 1) + if i >= 2 { 8 } else { 0 }, group)
    }

    pub fn c(lane: usize, i: usize) -> (usize, usize) {
        let (group, thread) = (lane >> 2, lane % 4);
        (if i < 2 { group } else { group + 8 }, thread * 2 + (i & 1))
    }
}

/// Values of one type: to bits and back.
type Half = (fn(f32) -> u16, fn(u16) -> f32);

#[test]
fn products_of_matrices() {
    let types: [(&str, Half); 2] = [
        ("mma<bf16>", (|v| bf16::from_f32(v).to_bits(), |v| bf16::from_bits(v).to_f32())),
        ("mma<f16>", (|v| f16::from_f32(v).to_bits(), |v| f16::from_bits(v).to_f32())),
    ];
    for (expression, (narrow, widen)) in types {
        let halves = |seed, len| -> Vec<u16> { values(seed, len).into_iter().map(narrow).collect() };
        let (a, b, d) = (halves(1, 16 * 16), halves(2, 16 * 8), values(3, 16 * 8));
        let pack = |lo: u16, hi: u16| u32::from(lo) | u32::from(hi) << 16;
        let mut fragments = (vec![0u32; 32 * 4], vec![0u32; 32 * 2], vec![0f32; 32 * 4]);
        for lane in 0..32 {
            let at_a = |i| a[fragment::a(lane, i).0 * 16 + fragment::a(lane, i).1];
            let at_b = |i| b[fragment::b(lane, i).0 * 8 + fragment::b(lane, i).1];
            for i in 0..4 {
                fragments.0[lane * 4 + i] = pack(at_a(2 * i), at_a(2 * i + 1));
                fragments.2[lane * 4 + i] = d[fragment::c(lane, i).0 * 8 + fragment::c(lane, i).1];
            }
            for i in 0..2 {
                fragments.1[lane * 2 + i] = pack(at_b(2 * i), at_b(2 * i + 1));
            }
        }
        let bench = Bench::new(4);
        let out = bench.filled(&fragments.2, "d");
        let args = Args::new().pointer(bench.filled(&fragments.0, "a").start);
        run(&bench, expression, 32, &args.pointer(bench.filled(&fragments.1, "b").start).pointer(out.start));
        let found: Vec<f32> = bench.read(out).expect("a product");
        for lane in 0..32 {
            for i in 0..4 {
                let (row, column) = fragment::c(lane, i);
                let term = |k: usize| f64::from(widen(a[row * 16 + k])) * f64::from(widen(b[k * 8 + column]));
                let expected = f64::from(d[row * 8 + column]) + (0..16).map(term).sum::<f64>();
                let found = f64::from(found[lane * 4 + i]);
                assert!(
                    (found - expected).abs() < 1e-6,
                    "{expression} ({row}, {column}): {found}, not {expected}"
                );
            }
        }
    }
}

#[test]
fn matrices_from_shared_memory() {
    let source: Vec<u16> = (0..256).collect();
    // Rows lie in shared memory in some other order: addresses decide, not places.
    for count in [1, 2, 4] {
        for trans in [false, true] {
            let order: Vec<i32> = (0..32).map(|row| (row * 5 + 3) % (count as i32 * 8)).collect();
            let bench = Bench::new(5);
            let out = bench.filled(&[u32::MAX; 128], "out");
            let args = Args::new().pointer(bench.filled(&source, "values").start);
            let args = args.pointer(bench.filled(&order, "order").start).pointer(out.start);
            run(&bench, &format!("load_matrices<{count}, {trans}>"), 32, &args);
            let found: Vec<u32> = bench.read(out).expect("registers");
            for lane in 0..32 {
                for matrix in 0..count {
                    let element = |i: usize| {
                        let (row, column) = (lane / 4, lane % 4 * 2 + i);
                        let (row, column) = if trans { (column, row) } else { (row, column) };
                        u32::from(source[(matrix * 8 + row) * 8 + column])
                    };
                    let expected = element(0) | element(1) << 16;
                    assert_eq!(found[lane * 4 + matrix], expected, "x{count} trans {trans} lane {lane}");
                }
            }
        }
    }
}

#[test]
fn asynchronous_copies() {
    let bench = Bench::new(6);
    let bytes: Vec<u8> = (0..1024).map(|i| (i % 251) as u8 + 1).collect();
    let out = bench.region(1024, "out");
    run(&bench, "copies", 32, &Args::new().pointer(bench.filled(&bytes, "src").start).pointer(out.start));
    let found: Vec<u8> = bench.read(out).expect("copies");
    for (i, &byte) in found.iter().enumerate() {
        let valid = (i / 16) % 32 % 17;
        assert_eq!(byte, if i % 16 < valid { bytes[i] } else { 0 }, "byte {i}");
    }
}

#[test]
fn conversions_round_to_nearest_even() {
    let mut inputs: Vec<f32> = values(7, 200);
    let special = [0.0, -0.0, 1.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MAX, f32::MIN_POSITIVE];
    inputs.extend(special);
    // Ties, neighbours of ties, overflow and subnormal numbers of f16.
    let bits = [0x3f80_8000, 0x3f81_8000, 0x3f80_8001, 0x3f80_1000, 0x3f80_3000, 0x3f80_1001, 0x7f7f_ffff];
    inputs.extend(bits.map(f32::from_bits));
    inputs.extend([
        65504.0,
        65519.996,
        65520.0,
        6.1e-5,
        5.9604645e-8,
        2.9802322e-8,
        2.980_232_6e-8,
        8.940697e-8,
        1e-9,
    ]);
    let bench = Bench::new(7);
    let out = bench.region(inputs.len() * 24, "out");
    let args = Args::new().pointer(bench.filled(&inputs, "v").start).value(inputs.len() as i32);
    run(&bench, "conversions", 32, &args.pointer(out.start));
    let found: Vec<u32> = bench.read(out).expect("conversions");
    for (&input, found) in inputs.iter().zip(found.chunks(6)) {
        let (b, h) = (bf16::from_f32(input), f16::from_f32(input));
        let (one_half_b, one_half_h) =
            (u32::from(bf16::from_f32(1.5).to_bits()), u32::from(f16::from_f32(1.5).to_bits()));
        if input.is_nan() {
            let widened = [f32::from_bits(found[2]), f32::from_bits(found[3])];
            assert!(widened[0].is_nan() && widened[1].is_nan());
            continue;
        }
        let expected = [
            u32::from(b.to_bits()),
            u32::from(h.to_bits()),
            b.to_f32().to_bits(),
            h.to_f32().to_bits(),
            u32::from(b.to_bits()) | one_half_b << 16,
            u32::from(h.to_bits()) | one_half_h << 16,
        ];
        assert_eq!(found, expected, "{input:e}");
    }
}

#[test]
fn packed_sums_and_bytes() {
    let bench = Bench::new(9);
    let pair = |seed: u64| values(seed, 2).into_iter().map(|v| bf16::from_f32(v * 300.0));
    let word = |seed| pair(seed).rev().fold(0, |word, v| word << 16 | u32::from(v.to_bits()));
    // As kernels use it, all sixteen nibbles, and numbers whose sum is rounded.
    let operands: Vec<[u32; 3]> = (0..32u32)
        .map(|lane| match lane {
            ..16 => [0x4300_4300 | lane | (15 - lane) << 16, 0xc308_c308, lane << 12 | 0x0040 | (lane % 8)],
            _ => [word(u64::from(lane)), word(100 + u64::from(lane)), 0x7531 ^ lane],
        })
        .collect();
    let out = bench.region(32 * 8, "out");
    let args = Args::new().pointer(bench.filled(&operands.concat(), "v").start);
    run(&bench, "packed", 32, &args.pointer(out.start));
    let found: Vec<u32> = bench.read(out).expect("sums");
    for ([a, b, selector], found) in operands.iter().zip(found.as_chunks::<2>().0) {
        let half = |word: u32, i: u32| bf16::from_bits((word >> (16 * i)) as u16).to_f64();
        for i in 0..2 {
            assert_eq!(half(found[0], i), bf16::from_f64(half(*a, i) + half(*b, i)).to_f64(), "{a:x} {b:x}");
        }
        let bytes = u64::from(*b) << 32 | u64::from(*a);
        let byte = |i: u32| (bytes >> (8 * (selector >> (4 * i) & 7)) & 0xff) as u32;
        assert_eq!(found[1], (0..4).fold(0, |out, i| out | byte(i) << (8 * i)), "{selector:x}");
    }
}

#[test]
fn powers_of_two() {
    let bench = Bench::new(8);
    let inputs: Vec<f32> = (-24..24).map(|i| i as f32 * 0.75).collect();
    let out = bench.region(inputs.len() * 4, "out");
    let args = Args::new().pointer(bench.filled(&inputs, "v").start).value(inputs.len() as i32);
    run(&bench, "powers", 32, &args.pointer(out.start));
    for (&x, y) in inputs.iter().zip(bench.read::<f32>(out).expect("powers")) {
        assert!((f64::from(y) / f64::from(x).exp2() - 1.0).abs() < 3e-7, "2 to the {x} is not {y}");
    }
}

#[test]
fn exchanges_between_lanes() {
    let bench = Bench::new(9);
    let input: Vec<i32> = (0..32).map(|i| (i * 37 + 11) % 64).collect();
    let out = bench.region(16 * 32 * 4, "out");
    run(&bench, "exchanges", 32, &Args::new().pointer(bench.filled(&input, "v").start).pointer(out.start));
    let found: Vec<i32> = bench.read(out).expect("exchanges");
    let x = |lane: usize| input[lane];
    // A lane that would read outside its segment keeps its own value.
    let down =
        |lane: usize, n: usize, width: usize| if lane % width + n < width { x(lane + n) } else { x(lane) };
    let up = |lane: usize, n: usize, width: usize| if lane % width >= n { x(lane - n) } else { x(lane) };
    let mask =
        |keep: &dyn Fn(usize) -> bool| (0..32).filter(|&l| keep(l)).fold(0u32, |m, l| m | 1 << l) as i32;
    for lane in 0..32 {
        let expected = [
            x(5),
            x(lane / 8 * 8 + (lane + 3) % 8),
            x(lane ^ 9),
            x(lane ^ 4),
            down(lane, 7, 32),
            down(lane, 3, 16),
            up(lane, 7, 32),
            up(lane, 3, 16),
            mask(&|l| x(l) % 2 == 1),
            0,
            1,
            (0..32).map(x).sum(),
            (0..32).map(x).min().unwrap_or(0),
            (0..32).map(x).max().unwrap_or(0),
            mask(&|l| x(l) % 3 == x(lane) % 3),
            if lane < 16 { x(lane ^ 1) } else { (16..32).map(x).sum() },
        ];
        for (kind, expected) in expected.into_iter().enumerate() {
            assert_eq!(found[kind * 32 + lane], expected, "exchange {kind}, lane {lane}");
        }
    }
}

#[test]
fn blocks_meet() {
    let input = values(10, 96);
    for seed in 0..4 {
        let bench = Bench::new(seed);
        let out = bench.region(6 * 96 * 4, "out");
        run(&bench, "blocks", 96, &Args::new().pointer(bench.filled(&input, "v").start).pointer(out.start));
        let found: Vec<f32> = bench.read(out).expect("results");
        let sum: f64 = input.iter().map(|&v| f64::from(v)).sum();
        let max = input.iter().copied().fold(f32::MIN, f32::max);
        for thread in 0..96 {
            assert!((f64::from(found[thread]) - sum).abs() < 1e-5);
            assert_eq!(found[thread].to_bits(), found[0].to_bits(), "one sum for all");
            let got = if thread < 32 { input[64 + thread] } else { 0.0 };
            let expected = [max, 40.0, 1.0, 0.0, got];
            assert_eq!(std::array::from_fn(|i| found[(i + 1) * 96 + thread]), expected, "thread {thread}");
        }
    }
}

#[test]
fn atomic_operations() {
    let bench = Bench::new(11);
    let counters = bench.filled(&[100, -1, 99, 0, 0, 0, 0, 0], "counters");
    let out = bench.region(128, "out");
    run(&bench, "atomics", 32, &Args::new().pointer(counters.start).pointer(out.start));
    let found: Vec<i32> = bench.read(counters).expect("counters");
    assert_eq!(found, [100 + 31 * 16, 31, 0, -1, 77, 55, 0, -32]);
    // Each addition found the sum of some others: all different sums, the first being the start.
    let mut before: Vec<i32> = bench.read(out).expect("old values");
    before.sort_unstable();
    assert_eq!(before[0], 100);
}

/// The vectors published with the algorithm, as the CPU's generator has them.
#[test]
fn random_numbers() {
    let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344, 0xa409_3822, 0x299f_31d0, 0, 0];
    let inputs = [[0u32; 8], [u32::MAX; 8], pi].concat();
    let bench = Bench::new(12);
    let out = bench.region(48, "out");
    run(
        &bench,
        "random_words",
        32,
        &Args::new().pointer(bench.filled(&inputs, "in").start).pointer(out.start),
    );
    let expected = [
        [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8],
        [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd],
        [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
    ];
    assert_eq!(bench.read::<u32>(out).expect("words"), expected.concat());
}
