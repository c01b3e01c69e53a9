//! Compact bf16 (compact.rs) beside rows of floats, with AVX2.
//!
//! ```text
//! few rows     a line of all 32 columns becomes vectors of floats in registers, for all rows at once: each quad is read once
//! some rows    the same for the first of them, and the floats are kept in the first cache for the others to pass by (floats.rs)
//! many rows    a block becomes floats in the first cache, for all rows to pass by
//! outliers     a quad that has some is unpacked into memory first, where they are put in their places
//! ```

use super::compact_blocks::blocks;
use super::dot::CACHE_LINE;
use super::floats::{BLOCK_TERMS, Block, NARROW_ROWS, WIDE_FROM, block_rows};
use super::simd::compact::{Avx2Quads, first_term, second_term};
use super::simd::{Avx2, Simd, ask_for};
use super::tile::{Job, by_rows, columns, starts};
use crate::compact::{HEADER_BYTES, Header, QUAD_BYTES, QUAD_WORDS};
use crate::panel::PANEL;
use half::bf16;
use std::arch::x86_64::__m256i;
use std::mem::MaybeUninit;

const LANES: usize = Avx2::LANES;
const QUAD_LINES: usize = QUAD_BYTES / CACHE_LINE;
/// How far ahead lines are asked for from the second cache: unpacking alone does not hide the wait for it.
const NEAR: usize = 8 * QUAD_BYTES;
/// Bytes from what the first half of the columns has of each part of a quad to what the second has.
const HALF: usize = 32;

/// The processor has AVX2, FMA and F16C.
pub(super) fn panel(job: &Job) {
    // SAFETY: a device has only an Isa that was found on this processor.
    unsafe {
        match job.num_rows {
            ..=NARROW_ROWS => few(job),
            WIDE_FROM.. => many(job),
            _ => some(job),
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn few(job: &Job) {
    // SAFETY: this function has the features.
    let s = unsafe { Avx2::new() };
    blocks(job, 1, |job, _| {
        // SAFETY: the promise of `blocks`.
        by_rows!(job.num_rows, NARROW_ROWS, |M| unsafe { rows::<M, false>(s, job, 0, std::ptr::null_mut()) });
    });
}

#[target_feature(enable = "avx2,fma,f16c")]
fn some(job: &Job) {
    // SAFETY: this function has the features.
    let s = unsafe { Avx2::new() };
    let mut room = Block::new();
    let floats = room.start();
    // Those that leave whole tiles.
    let together = (job.num_rows - 1) % NARROW_ROWS + 1;
    blocks(job, 1, |job, _| {
        for first in (0..job.k).step_by(BLOCK_TERMS) {
            let part = job.terms(first, BLOCK_TERMS.min(job.k - first));
            let (unpacking, others) = (part.rows(0, together), part.rows(together, job.num_rows - together));
            // SAFETY: the promise of `blocks`; a line of floats is written for each term, and read.
            unsafe {
                by_rows!(together, NARROW_ROWS, |M| rows::<M, true>(s, &unpacking, first, floats));
                block_rows::<Avx2, 4>(s, &others, 0, floats);
            }
        }
    });
}

#[target_feature(enable = "avx2,fma,f16c")]
fn many(job: &Job) {
    // SAFETY: this function has the features.
    let s = unsafe { Avx2::new() };
    let mut room = Block::new();
    let floats = room.start();
    blocks(job, 1, |job, _| {
        for first in (0..job.k).step_by(BLOCK_TERMS) {
            let part = job.terms(first, BLOCK_TERMS.min(job.k - first));
            for half in 0..2 {
                // SAFETY: the promise of `blocks`; a line of floats is written for each term, and read.
                unsafe {
                    unpack(s, &part, [first, half], floats);
                    block_rows::<Avx2, 2>(s, &part, LANES * half, floats);
                }
            }
        }
    });
}

/// The part's terms, the first of which is `first` of the block that is the part's panel, in columns `8 * half ..` and `16 + 8 * half ..` as
/// floats, two vectors to a line.
///
/// # Safety
/// The promise of `Job::new`, and room for as many lines as there are terms, filled up to a multiple of four.
#[inline(always)]
unsafe fn unpack(s: Avx2, part: &Job, [first, half]: [usize; 2], floats: *mut f32) {
    let (block, first_quad, num_quads) = (part.panel, first / 4, part.k.div_ceil(4));
    let distance = part.ahead.addr().wrapping_sub(block.addr());
    // SAFETY: the caller's promise.
    unsafe {
        let of_half = Avx2Quads::new(s, block, half);
        let (mut quad, mut to) = (block.add(HEADER_BYTES + first_quad * QUAD_BYTES), floats);
        for _ in 0..num_quads {
            // Two lines beside one half, and one beside the other.
            for line in 2 * half..(half + 2).min(QUAD_LINES) {
                ask_for(quad.wrapping_add(distance).wrapping_add(line * CACHE_LINE));
            }
            if half == 0 {
                for line in 0..QUAD_LINES {
                    s.prefetch(quad.wrapping_add(NEAR + line * CACHE_LINE));
                }
            }
            let of_quad = quad.add(HALF * half);
            for (line, pairs) in
                [of_half.load::<0>(of_quad), of_half.load::<1>(of_quad)].into_iter().enumerate()
            {
                for (v, pairs) in pairs.into_iter().enumerate() {
                    let to = to.add((4 * line + v) * LANES);
                    s.store(to, first_term(s, pairs));
                    s.store(to.add(2 * LANES), second_term(s, pairs));
                }
            }
            (quad, to) = (quad.add(QUAD_BYTES), to.add(4 * 2 * LANES));
        }
        let places = first_quad * QUAD_WORDS..(first_quad + num_quads) * QUAD_WORDS;
        for outlier in Header::outliers(block) {
            // Two terms of each column lie side by side.
            let (term, column) =
                (outlier.place() / (2 * PANEL) * 2 + outlier.place() % 2, outlier.place() / 2 % PANEL);
            if places.contains(&outlier.place()) && column % (PANEL / 2) / LANES == half {
                let cell = (2 * (term - first) + column / (PANEL / 2)) * LANES + column % LANES;
                floats.add(cell).write(bf16::from_bits(outlier.word()).to_f32());
            }
        }
    }
}

/// `M` rows times all columns of the part's terms, the first of which is `first` of the block that is the part's panel. With `KEEP` the terms'
/// weights are left in `floats`, a line of four vectors each.
///
/// # Safety
/// The promise of `Job::new`, and the part has M rows. With `KEEP`, room for as many lines as there are terms, filled up to a multiple of four.
#[inline(always)]
unsafe fn rows<const M: usize, const KEEP: bool>(s: Avx2, part: &Job, first: usize, floats: *mut f32) {
    let Job { x, sums, from, k, panel: block, .. } = *part;
    let columns = columns::<4>(LANES, 0);
    let (mut acc, starts) = ([[s.zero(); 4]; M], starts::<M>(x.row));
    // SAFETY: the caller's promise.
    unsafe {
        if !sums.fresh {
            for (r, acc) in acc.iter_mut().enumerate() {
                for (v, acc) in acc.iter_mut().enumerate() {
                    *acc = s.load(from.start.add(r * from.row + columns[v]));
                }
            }
        }
        let (mut quad, mut column) = (block.add(HEADER_BYTES + first / 4 * QUAD_BYTES), x.start);
        let mut line = floats;
        let distance = part.ahead.addr().wrapping_sub(block.addr());
        let halves = [Avx2Quads::new(s, block, 0), Avx2Quads::new(s, block, 1)];
        let place = first / 4 * QUAD_WORDS;
        let mut outliers =
            Header::outliers(block).iter().filter(|outlier| outlier.place() >= place).peekable();
        // The two vectors of a line that one half of the columns has, as one of their terms, times that term of each row.
        macro_rules! multiply {
            ($h:expr, $pairs:expr, $of_pair:ident, $term:expr) => {
                let mut xs = [s.zero(); M];
                for (r, xs) in xs.iter_mut().enumerate() {
                    *xs = s.splat(*column.add(starts[r]).add($term));
                }
                for (v, pairs) in $pairs.into_iter().enumerate() {
                    let (v, weights) = (2 * $h + v, $of_pair(s, pairs));
                    if KEEP {
                        s.store(line.add((4 * $term + v) * LANES), weights);
                    }
                    for (xs, acc) in xs.into_iter().zip(&mut acc) {
                        acc[v] = s.fma(xs, weights, acc[v]);
                    }
                }
            };
        }
        let (whole, quads) = (k / 4, k.div_ceil(4));
        let mut done = 0;
        loop {
            let next = outliers.peek().map_or(usize::MAX, |outlier| (outlier.place() - place) / QUAD_WORDS);
            while done < next.min(whole) {
                ask(quad.wrapping_add(distance));
                if KEEP {
                    for line in 0..QUAD_LINES {
                        s.prefetch(quad.wrapping_add(NEAR + line * CACHE_LINE));
                    }
                }
                // One half after the other: unpacking needs registers beside the sums.
                for (h, of_half) in halves.into_iter().enumerate() {
                    let of_quad = quad.add(HALF * h);
                    let pairs = of_half.load::<0>(of_quad);
                    multiply!(h, pairs, first_term, 0);
                    multiply!(h, pairs, second_term, 1);
                    let pairs = of_half.load::<1>(of_quad);
                    multiply!(h, pairs, first_term, 2);
                    multiply!(h, pairs, second_term, 3);
                }
                (quad, column) = (quad.add(QUAD_BYTES), column.wrapping_add(4));
                line = line.wrapping_add(4 * PANEL);
                done += 1;
            }
            if done == quads {
                break;
            }
            ask(quad.wrapping_add(distance));
            let mut words = [MaybeUninit::uninit(); QUAD_WORDS];
            for (half, of_half) in halves.into_iter().enumerate() {
                let to = words.as_mut_ptr().cast::<u16>();
                store(to, half, of_half.load::<0>(quad.add(HALF * half)));
                store(to.add(2 * PANEL), half, of_half.load::<1>(quad.add(HALF * half)));
            }
            while let Some(outlier) =
                outliers.next_if(|outlier| (outlier.place() - place) / QUAD_WORDS == done)
            {
                words[outlier.place() % QUAD_WORDS].write(outlier.word());
            }
            let left = (k - 4 * done).min(4);
            for h in 0..2 {
                let words = words.as_ptr().cast();
                let pairs = load(words, h);
                multiply!(h, pairs, first_term, 0);
                if left > 1 {
                    multiply!(h, pairs, second_term, 1);
                }
                if left > 2 {
                    let pairs = load(words.add(2 * PANEL), h);
                    multiply!(h, pairs, first_term, 2);
                    if left > 3 {
                        multiply!(h, pairs, second_term, 3);
                    }
                }
            }
            (quad, column) = (quad.add(QUAD_BYTES), column.wrapping_add(4));
            line = line.wrapping_add(4 * PANEL);
            done += 1;
        }
        for (r, acc) in acc.iter().enumerate() {
            for (v, acc) in acc.iter().enumerate() {
                s.store(sums.start.add(r * sums.row + columns[v]), *acc);
            }
        }
    }
}

/// Asks for the lines of a quad that is read much later.
#[inline(always)]
fn ask(quad: *const u8) {
    for line in 0..QUAD_LINES {
        ask_for(quad.wrapping_add(line * CACHE_LINE));
    }
}

/// Writes the two vectors of a line that a half of the columns has to their places among its words.
///
/// # Safety
/// A line of words can be written.
#[inline(always)]
unsafe fn store(line: *mut u16, half: usize, [first, second]: [__m256i; 2]) {
    // SAFETY: the caller's promise.
    unsafe {
        line.add(2 * LANES * half).cast::<__m256i>().write_unaligned(first);
        line.add(2 * LANES * half + PANEL).cast::<__m256i>().write_unaligned(second);
    }
}

/// Reads them again.
///
/// # Safety
/// `store` wrote that half of the line.
#[inline(always)]
unsafe fn load(line: *const u16, half: usize) -> [__m256i; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        let first = line.add(2 * LANES * half).cast::<__m256i>().read_unaligned();
        [first, line.add(2 * LANES * half + PANEL).cast::<__m256i>().read_unaligned()]
    }
}
