//! Compact bf16 (compact.rs) beside rows of floats, with AVX2.
//!
//! ```text
//! few rows     a line of all 32 columns becomes vectors of floats in registers, for all rows at once: each quad is read once
//! some rows    the same with half of the columns at a time
//! many rows    the first of them do the same, and leave the floats in the first cache, for the others to pass by (floats.rs)
//! outliers     a quad that has some is unpacked into memory first, where they are put in their places
//! ```

use super::compact::blocks;
use super::floats::{BLOCK_TERMS, Block, block_rows};
use super::simd::compact::{Avx2Quads, terms};
use super::simd::{Avx2, Simd, ask_for};
use super::tile::{Blocks, Job, by_rows};
use crate::compact::{HEADER_BYTES, Header, Outlier, QUAD_BYTES, QUAD_WORDS};
use crate::panel::PANEL;
use std::arch::x86_64::__m256i;
use std::mem::MaybeUninit;

const LANES: usize = Avx2::LANES;
/// Rows of a tile whose sums stay in registers: over all columns, and over half of them.
const FEW_ROWS: usize = 3;
const SOME_ROWS: usize = Avx2::TILE_ROWS;
const CACHE_LINE: usize = 64;

/// The processor has AVX2, FMA and F16C.
pub(super) fn panel(job: &Job) {
    // SAFETY: a device has only an Isa that was found on this processor.
    unsafe { if job.num_rows <= FEW_ROWS { few(job) } else { more(job) } }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn few(job: &Job) {
    // SAFETY: this function has the features.
    let s = unsafe { Avx2::new() };
    blocks(job, 1, |job, _| {
        let part = Part { first: 0, half: 0, asks: QUAD_BYTES / CACHE_LINE };
        // SAFETY: the promise of `blocks`.
        by_rows!(job.num_rows, FEW_ROWS, |M| unsafe {
            rows::<M, 4, false>(s, job, &part, std::ptr::null_mut());
        });
    });
}

#[target_feature(enable = "avx2,fma,f16c")]
fn more(job: &Job) {
    // SAFETY: this function has the features.
    let s = unsafe { Avx2::new() };
    let tiles = Blocks::new(job.num_rows, SOME_ROWS);
    let first_rows = tiles.len(0);
    let mut room = Block::new();
    let floats = room.start();
    blocks(job, 1, |job, _| {
        for half in 0..2 {
            if tiles.count == 1 {
                let part = Part { first: 0, half, asks: 2 - half };
                // SAFETY: the promise of `blocks`.
                by_rows!(first_rows, SOME_ROWS, |M| unsafe {
                    rows::<M, 2, false>(s, job, &part, std::ptr::null_mut());
                });
                continue;
            }
            for first in (0..job.k).step_by(BLOCK_TERMS) {
                let whole = job.terms(first, BLOCK_TERMS.min(job.k - first));
                let part = Part { first, half, asks: 2 - half };
                // SAFETY: the promise of `blocks`; the first rows write a line of floats for each term, which the others read.
                unsafe {
                    by_rows!(first_rows, SOME_ROWS, |M| rows::<M, 2, true>(s, &whole.rows(0, M), &part, floats));
                    block_rows(s, &whole, first_rows, LANES * half, floats);
                }
            }
        }
    });
}

/// What a tile takes of a block.
struct Part {
    /// The first term, a multiple of four.
    first: usize,
    /// Which half of the columns, where it takes one.
    half: usize,
    /// Lines of memory to ask for beside each quad.
    asks: usize,
}

/// `M` rows times `V` vectors of the block that the job's panel is: 4 for all columns, 2 for half of them. `KEEP` writes the weights to
/// `floats`, two vectors for each term.
///
/// # Safety
/// The promise of `Job::new`, the job has M rows, and `floats` room for all terms where they are kept.
#[inline(always)]
unsafe fn rows<const M: usize, const V: usize, const KEEP: bool>(
    s: Avx2,
    job: &Job,
    part: &Part,
    floats: *mut f32,
) {
    let Job { x, sums, from, k, panel: block, .. } = *job;
    // Where each vector's sums are.
    let mut columns = [0; V];
    for (v, column) in columns.iter_mut().enumerate() {
        *column = (part.half + v / 2) * LANES + v % 2 * (PANEL / 2);
    }
    let mut acc = [[s.zero(); V]; M];
    // SAFETY: the caller's promise.
    unsafe {
        if !sums.fresh {
            for (r, acc) in acc.iter_mut().enumerate() {
                for (v, acc) in acc.iter_mut().enumerate() {
                    *acc = s.load(from.start.add(r * from.row + columns[v]));
                }
            }
        }
        let first_quad = part.first / 4;
        let (mut quad, mut column) = (block.add(HEADER_BYTES + first_quad * QUAD_BYTES), x.start);
        let mut kept = floats;
        let distance = job.ahead.addr().wrapping_sub(block.addr());
        let of_half = [Avx2Quads::new(s, block, part.half), Avx2Quads::new(s, block, V / 4)];
        let outliers = Header::outliers(block);
        let passed = outliers.partition_point(|outlier| outlier.place() / QUAD_WORDS < first_quad);
        let mut outliers = outliers[passed..].iter().peekable();
        // A line of pairs times the two terms that each row has there, or the one.
        macro_rules! multiply {
            ($pairs:expr, $terms:expr) => {
                let mut weights = [[s.zero(); V]; 2];
                for (v, pairs) in $pairs.into_iter().enumerate() {
                    [weights[0][v], weights[1][v]] = terms(s, pairs);
                }
                for (term, weights) in weights.into_iter().enumerate().take($terms) {
                    if KEEP {
                        s.store(kept.add(term * 2 * LANES), weights[0]);
                        s.store(kept.add(term * 2 * LANES + LANES), weights[1]);
                    }
                    for (r, acc) in acc.iter_mut().enumerate() {
                        let x = s.splat(*column.add(r * x.row + term));
                        for (v, acc) in acc.iter_mut().enumerate() {
                            *acc = s.fma(x, weights[v], *acc);
                        }
                    }
                }
                if KEEP {
                    kept = kept.add(4 * LANES);
                }
                column = column.wrapping_add(2);
            };
        }
        let (whole, quads) = (k / 4, k.div_ceil(4));
        let mut done = 0;
        loop {
            let next = outliers.peek().map_or(usize::MAX, |outlier| outlier.place() / QUAD_WORDS - first_quad);
            for _ in done..next.min(whole) {
                ask(quad, distance, part);
                multiply!(line::<V, 0>(of_half, quad, part.half), 2);
                multiply!(line::<V, 1>(of_half, quad, part.half), 2);
                quad = quad.add(QUAD_BYTES);
                done += 1;
            }
            if done == quads {
                break;
            }
            ask(quad, distance, part);
            let mut words = [MaybeUninit::uninit(); QUAD_WORDS];
            store::<V>(of_half, quad, part.half, words.as_mut_ptr().cast());
            while let Some(outlier) =
                outliers.next_if(|outlier| outlier.place() / QUAD_WORDS == first_quad + done)
            {
                put(&mut words, *outlier);
            }
            let words = words.as_ptr().cast();
            let left = (k - 4 * done).min(4);
            multiply!(load::<V>(words, part.half), left.min(2));
            if left > 2 {
                multiply!(load::<V>(words.add(2 * PANEL), part.half), left - 2);
            }
            quad = quad.add(QUAD_BYTES);
            done += 1;
        }
        for (r, acc) in acc.iter().enumerate() {
            for (v, acc) in acc.iter().enumerate() {
                s.store(sums.start.add(r * sums.row + columns[v]), *acc);
            }
        }
    }
}

/// Asks for what is read so much later. The two halves of the columns ask for different lines.
#[inline(always)]
fn ask(quad: *const u8, distance: usize, part: &Part) {
    for line in 0..part.asks {
        ask_for(quad.wrapping_add(distance).wrapping_add((2 * part.half + line) * CACHE_LINE));
    }
}

/// Line `LINE` of a quad: the pairs of `V` vectors of columns.
///
/// # Safety
/// The quad can be read.
#[inline(always)]
unsafe fn line<const V: usize, const LINE: usize>(
    of_half: [Avx2Quads; 2],
    quad: *const u8,
    half: usize,
) -> [__m256i; V] {
    // SAFETY: the caller's promise.
    unsafe {
        let first = of_half[0].load::<LINE>(quad.add(2 * LANES * 2 * half));
        let mut pairs = [first[0]; V];
        pairs[1] = first[1];
        if V == 4 {
            [pairs[2], pairs[3]] = of_half[1].load::<LINE>(quad.add(2 * LANES * 2));
        }
        pairs
    }
}

/// Writes those of a quad's words that are read as `V` vectors to their places in it.
///
/// # Safety
/// The quad can be read, and `QUAD_WORDS` words written.
#[inline(always)]
unsafe fn store<const V: usize>(of_half: [Avx2Quads; 2], quad: *const u8, half: usize, words: *mut u16) {
    // SAFETY: the caller's promise.
    unsafe {
        for (v, pairs) in line::<V, 0>(of_half, quad, half).into_iter().enumerate() {
            words.add(place::<V>(v, half)).cast::<__m256i>().write_unaligned(pairs);
        }
        for (v, pairs) in line::<V, 1>(of_half, quad, half).into_iter().enumerate() {
            words.add(2 * PANEL + place::<V>(v, half)).cast::<__m256i>().write_unaligned(pairs);
        }
    }
}

/// # Safety
/// As `store` left them.
#[inline(always)]
unsafe fn load<const V: usize>(words: *const u16, half: usize) -> [__m256i; V] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut pairs = [words.add(place::<V>(0, half)).cast::<__m256i>().read_unaligned(); V];
        for (v, pairs) in pairs.iter_mut().enumerate() {
            *pairs = words.add(place::<V>(v, half)).cast::<__m256i>().read_unaligned();
        }
        pairs
    }
}

/// Where vector v of a line begins among its words, two for each column.
#[inline(always)]
fn place<const V: usize>(v: usize, half: usize) -> usize {
    2 * ((half + v / 2) * LANES + v % 2 * (PANEL / 2))
}

/// Puts an outlier in its place among the words of its quad, if it is one of the half that was written; else nobody reads it.
#[inline(always)]
fn put(words: &mut [MaybeUninit<u16>; QUAD_WORDS], outlier: Outlier) {
    words[outlier.place() % QUAD_WORDS].write(outlier.word());
}
