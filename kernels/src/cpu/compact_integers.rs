//! Compact bf16 (compact.rs) times rows of whole numbers of 16 bits, with AVX2, which multiplies and adds twice as many of these as floats.
//!
//! ```text
//! weight      level · 2^(2 base - 124)     the base of its row in a block of 256 terms; up to 8160, to the nearest; exact for the upper six
//!                                          exponents of the 16 that a code can tell
//! activation  level · scale                of its group of 32 terms (rounded.rs); up to 8191
//! part        Σ level · level              of a group: a whole number below 2^31, exact
//! sum         Σ of blocks of 2^… · (Σ of groups of scale · part), and outliers as they are, each in order
//! ```
//! An outlier's own level is zero, because its code is. A row counts as NaN where its codes reach 2^127, as those of numbers that are not finite do.

use super::compact_blocks::blocks;
use super::dot::CACHE_LINE;
use super::simd::{Avx2, Simd, ask_for, integers};
use super::tile::{Blocks, Job, by_rows, starts};
use crate::compact::{BLOCK_BYTES, BLOCK_K, BLOCK_WORDS, HEADER_BYTES, Header, QUAD_BYTES};
use crate::panel::{GROUP, K_GRAIN, PANEL, k_padded};
use half::bf16;

const LANES: usize = Avx2::LANES;
/// Rows for all of which a quad is unpacked in registers.
const FEW_ROWS: usize = 4;
/// So many tiles at most wait for memory.
const EVENLY: usize = 4;
/// Rows of a tile over levels in memory.
const TILE_ROWS: usize = 6;
/// Quads of a group.
const GROUP_QUADS: usize = GROUP / 4;
/// How far ahead lines are asked for from the second cache: unpacking alone does not hide the wait for it.
const NEAR: usize = 8 * QUAD_BYTES;

/// The processor has AVX2, FMA and F16C.
pub(super) fn panel(job: &Job) {
    #[target_feature(enable = "avx2,fma,f16c")]
    fn few(job: &Job) {
        // SAFETY: this function has the features.
        let s = unsafe { Avx2::new() };
        blocks(job, 2, |job, _| {
            // SAFETY: the promise of `blocks`.
            by_rows!(job.num_rows, FEW_ROWS, |M| unsafe { few_rows::<M>(s, job) });
            // SAFETY: as above.
            unsafe { add_outliers(job) };
        });
    }
    #[target_feature(enable = "avx2,fma,f16c")]
    fn many(job: &Job) {
        // SAFETY: this function has the features.
        let s = unsafe { Avx2::new() };
        let tiles = Blocks::new(job.num_rows, TILE_ROWS);
        // Where memory is what few tiles wait for, lines are asked for evenly all along: asked for while a block is unpacked, they come faster than
        // memory gives them.
        let evenly = tiles.count <= EVENLY;
        let lines = (BLOCK_BYTES / CACHE_LINE).div_ceil(2 * tiles.count * (BLOCK_K / GROUP));
        blocks(job, 2, |job, words| {
            let (mut asked, mut row) = (job.ahead, 0);
            let halves = [words.cast(), words.cast::<i16>().wrapping_add(BLOCK_WORDS / 2)];
            // SAFETY: the promise of `blocks`.
            unsafe {
                unpack::<0>(s, job, !evenly, halves[0]);
                unpack::<1>(s, job, !evenly, halves[1]);
            }
            for tile in 0..tiles.count {
                let rows = tiles.len(tile);
                let part = job.rows(row, rows);
                // Rows of activations are read once from the second cache for both halves.
                for (half, words) in halves.into_iter().enumerate() {
                    // SAFETY: the promise of `blocks`.
                    by_rows!(rows, TILE_ROWS, |M| unsafe {
                        match evenly {
                            true => tile_of::<M, true>(s, &part, half, words, (asked, lines)),
                            false => tile_of::<M, false>(s, &part, half, words, (asked, lines)),
                        }
                    });
                    asked = asked.wrapping_add(lines * CACHE_LINE * job.k.div_ceil(GROUP));
                }
                row += rows;
            }
            // SAFETY: as above.
            unsafe { add_outliers(job) };
        });
    }
    // SAFETY: a device rounds to 16 bits only with AVX2.
    unsafe { if job.num_rows <= FEW_ROWS { few(job) } else { many(job) } }
}

/// Pairs of terms in a turn of the loop over a tile: what K is filled up to is a multiple of so many.
const TURN: usize = 4;
const TURN_QUADS: usize = TURN / 2;
const _: () = assert!(K_GRAIN.is_multiple_of(2 * TURN));

/// Quads of a block with those that fill K up, beside which activations are zero.
fn num_quads(job: &Job) -> usize {
    k_padded(job.k) / 4
}

/// Columns of a half's two vectors.
const fn columns(half: usize) -> [usize; 2] {
    [LANES * half, PANEL / 2 + LANES * half]
}

/// The levels of half of the columns of a block: a line of two vectors for each pair of terms.
///
/// # Safety
/// The promise of `blocks`.
#[inline(always)]
unsafe fn unpack<const HALF: usize>(s: Avx2, job: &Job, asks: bool, mut to: *mut i16) {
    let mut quad = job.panel.wrapping_add(HEADER_BYTES);
    let distance = job.ahead.addr().wrapping_sub(job.panel.addr());
    for _ in 0..num_quads(job) {
        if asks {
            // Two lines beside one half, and one beside the other.
            ask_for(quad.wrapping_add(distance).wrapping_add(2 * HALF * CACHE_LINE));
            if HALF == 0 {
                ask_for(quad.wrapping_add(distance).wrapping_add(CACHE_LINE));
            }
        }
        if HALF == 0 {
            for line in 0..QUAD_BYTES / CACHE_LINE {
                s.prefetch(quad.wrapping_add(NEAR + line * CACHE_LINE));
            }
        }
        // SAFETY: the caller's promise.
        unsafe {
            let of_half = quad.add(32 * HALF);
            let ([a, b], [c, d]) = (integers::levels::<0>(s, of_half), integers::levels::<1>(s, of_half));
            for (i, vector) in [a, b, c, d].into_iter().enumerate() {
                integers::store(s, to.add(2 * LANES * i), vector);
            }
        }
        quad = quad.wrapping_add(QUAD_BYTES);
        to = to.wrapping_add(8 * LANES);
    }
}

/// Sums of a tile's rows over a block, two vectors a row. They stay in memory, since its parts take all registers.
#[repr(C, align(32))]
struct BlockSums<const M: usize>([[f32; 2 * LANES]; M]);

/// `M` rows times half of the columns of a block, whose levels are in memory. With `ASK`, so many lines from an address on are asked for with each
/// group.
///
/// # Safety
/// The promise of `blocks`, and of `Job::new` for M rows; as many lines of levels as there are pairs of terms.
#[inline(always)]
unsafe fn tile_of<const M: usize, const ASK: bool>(
    s: Avx2,
    job: &Job,
    half: usize,
    words: *const i16,
    (mut asked, lines): (*const u8, usize),
) {
    // A row's scales lie behind its levels: as far in one row as in the other.
    assert_eq!(job.x.row, job.numbers.row, "rows of levels and scales");
    let mut to_scale = job.numbers.start.addr().wrapping_sub(job.x.start.addr());
    let mut sums = BlockSums([[0.0; 2 * LANES]; M]);
    let mut line = words;
    let mut pairs = starts::<M>(job.x.row).map(|row| job.x.start.cast::<i32>().wrapping_add(row));
    let mut left = num_quads(job) / TURN_QUADS;
    // SAFETY: the caller's promise.
    unsafe {
        while left > 0 {
            let turns = left.min(GROUP_QUADS / TURN_QUADS);
            if ASK {
                for line in 0..lines {
                    ask_for(asked.wrapping_add(line * CACHE_LINE));
                }
                asked = asked.wrapping_add(lines * CACHE_LINE);
            }
            let mut parts = [[integers::zero(s); 2]; M];
            macro_rules! pairs {
                ($first:literal, $($i:literal)*) => {$(
                    let weights = line.add(4 * LANES * $i);
                    let weights = [integers::load(s, weights), integers::load(s, weights.add(2 * LANES))];
                    for (pair, parts) in pairs.iter().zip(&mut parts) {
                        *parts = match $first && $i == 0 {
                            true => integers::first_pair_from(s, weights, *pair),
                            false => integers::dot_pair_from::<{ 4 * $i }>(s, *parts, weights, *pair),
                        };
                    }
                )*
                    line = line.add(4 * LANES * TURN);
                    for pair in &mut pairs {
                        *pair = pair.add(TURN);
                    }
                };
            }
            pairs!(true, 0 1 2 3);
            for _ in 1..turns {
                pairs!(false, 0 1 2 3);
            }
            // Behind the group's levels.
            let scale = to_scale.wrapping_sub(turns * TURN * size_of::<i32>());
            for ((pair, parts), sums) in pairs.iter().zip(parts).zip(&mut sums.0) {
                integers::add_scaled(s, parts, pair.cast::<f32>().wrapping_byte_add(scale), sums);
            }
            to_scale = scale.wrapping_add(size_of::<f32>());
            left -= turns;
        }
        let sums = sums.0.each_ref().map(|sums| [s.load(sums.as_ptr()), s.load(sums.as_ptr().add(LANES))]);
        finish(s, job, half, &sums);
    }
}

/// `M` rows times all columns of a block, unpacked for all of them at once.
///
/// # Safety
/// The promise of `blocks`, and the job has M rows.
#[inline(always)]
unsafe fn few_rows<const M: usize>(s: Avx2, job: &Job) {
    let (rows, numbers) = (starts::<M>(job.x.row), starts::<M>(job.numbers.row));
    let mut sums = [[[s.zero(); 2]; M]; 2];
    let (mut group, mut first, mut scales) =
        (job.panel.wrapping_add(HEADER_BYTES), job.x.start.cast::<i32>(), job.numbers.start);
    let distance = job.ahead.addr().wrapping_sub(job.panel.addr());
    let mut left = num_quads(job);
    // SAFETY: the caller's promise.
    unsafe {
        while left > 0 {
            let quads = left.min(GROUP_QUADS);
            for (half, sums) in sums.iter_mut().enumerate() {
                let mut parts = [[integers::zero(s); 2]; M];
                let mut quad = group.add(32 * half);
                let mut pairs = rows.map(|row| first.add(row));
                for _ in 0..quads {
                    if half == 0 {
                        for line in 0..QUAD_BYTES / CACHE_LINE {
                            ask_for(quad.wrapping_add(distance).wrapping_add(line * CACHE_LINE));
                        }
                    }
                    let weights = integers::levels::<0>(s, quad);
                    for (pair, parts) in pairs.iter().zip(&mut parts) {
                        *parts = match M {
                            ..4 => integers::dot_pair(s, *parts, weights, pair.read()),
                            _ => integers::dot_pair_from::<0>(s, *parts, weights, *pair),
                        };
                    }
                    let weights = integers::levels::<1>(s, quad);
                    for (pair, parts) in pairs.iter_mut().zip(&mut parts) {
                        *parts = match M {
                            ..4 => integers::dot_pair(s, *parts, weights, pair.add(1).read()),
                            _ => integers::dot_pair_from::<4>(s, *parts, weights, *pair),
                        };
                        *pair = pair.add(2);
                    }
                    quad = quad.wrapping_add(QUAD_BYTES);
                }
                for (r, (sums, parts)) in sums.iter_mut().zip(parts).enumerate() {
                    let scale = s.splat(*scales.add(numbers[r]));
                    for (sum, part) in sums.iter_mut().zip(parts) {
                        *sum = s.fma(integers::to_floats(s, part), scale, *sum);
                    }
                }
            }
            (group, first) = (group.wrapping_add(GROUP_QUADS * QUAD_BYTES), first.wrapping_add(GROUP / 2));
            scales = scales.wrapping_add(1);
            left -= quads;
        }
        for (half, sums) in sums.iter().enumerate() {
            finish(s, job, half, sums);
        }
    }
}

/// Adds a block's sums over half of the columns to those of the blocks before.
///
/// # Safety
/// The promise of `blocks`, and the job has M rows.
#[inline(always)]
unsafe fn finish<const M: usize>(s: Avx2, job: &Job, half: usize, parts: &[[<Avx2 as Simd>::V; 2]; M]) {
    let (to, from) = (job.sums, job.from);
    // SAFETY: the caller's promise; a header begins with the bases of all rows.
    unsafe {
        for (v, column) in columns(half).into_iter().enumerate() {
            let steps = integers::steps(s, job.panel.add(column));
            for (r, parts) in parts.iter().enumerate() {
                let before = match to.fresh {
                    true => s.zero(),
                    false => s.load(from.start.add(r * from.row + column)),
                };
                s.store(to.start.add(r * to.row + column), s.fma(parts[v], steps, before));
            }
        }
    }
}

/// Adds the products of a block's outliers.
///
/// # Safety
/// The promise of `blocks`, and the block's sums were written.
unsafe fn add_outliers(job: &Job) {
    // SAFETY: the caller's promise: places are within the block, and the sums of all columns can be written.
    unsafe {
        for outlier in Header::outliers(job.panel) {
            let (line, place) = (outlier.place() / (2 * PANEL), outlier.place() % (2 * PANEL));
            let (term, column) = (2 * line + place % 2, place / 2);
            if term >= job.k {
                continue;
            }
            // One that is too small for the codes is nothing here.
            let base = *job.panel.add(column);
            if (outlier.word() >> 8 & 127) < u16::from(base) {
                continue;
            }
            let weight = bf16::from_bits(outlier.word()).to_f32();
            for r in 0..job.num_rows {
                let level = *job.x.start.add(r * job.x.row).cast::<i16>().add(term);
                let scale = *job.numbers.start.add(r * job.numbers.row + term / GROUP);
                let sum = job.sums.start.add(r * job.sums.row + column);
                *sum = (f32::from(level) * scale).mul_add(weight, *sum);
            }
        }
    }
}
