//! Panels of floats in linear layers: how a panel is walked depends on how many rows pass by.
//!
//! ```text
//! few rows     all columns of a line at once, where vectors are narrow: each line is read once
//! some rows    two vectors of columns at a time, for as many rows as keep their sums in registers
//! many rows    the same over weights that were made floats once, in a block that stays in the first cache
//! ```
//! Every sum is the same chain of additions in each of them, and so has the same bits.

use super::simd::Simd;
use super::tile::{Blocks, Columns, F32, Format, Job, K_BLOCK, PanelFormat, Partial, Rows, Sums, by_rows, tile, tile_from};
use crate::ActivationType;
use crate::panel::PANEL;
use std::marker::PhantomData;
use std::mem::MaybeUninit;

/// Panels of floats.
pub(crate) struct Floats<W>(PhantomData<W>);

/// Terms whose weights are made floats at a time.
pub(super) const BLOCK_TERMS: usize = 128;

/// Weights as floats, for two vectors of columns; on the stack, and written before it is read.
#[repr(C, align(64))]
pub(super) struct Block([MaybeUninit<f32>; BLOCK_TERMS * PANEL]);

impl Block {
    #[inline(always)]
    pub fn new() -> Self {
        Self([MaybeUninit::uninit(); BLOCK_TERMS * PANEL])
    }

    /// A line of two vectors for each term.
    #[inline(always)]
    pub fn start(&mut self) -> *mut f32 {
        self.0.as_mut_ptr().cast()
    }
}

/// Rows whose sums over all columns stay in registers: of four vectors, or of none where a line is two vectors anyway.
const fn one_pass_rows<S: Simd>() -> usize {
    if 4 * S::LANES == PANEL { 3 } else { 0 }
}

impl<W: Format> PanelFormat for Floats<W> {
    const ROUNDED_TO: ActivationType = ActivationType::F32;
    const GROUP_SUMS: bool = false;
    const K_BLOCK: usize = K_BLOCK;

    fn offset(k: usize) -> usize {
        k * PANEL * size_of::<W::Element>()
    }

    #[inline(always)]
    fn panel<S: Simd>(s: S, job: &Job) {
        let Job { x, k, sums, from, .. } = *job;
        let start = job.panel.cast::<W::Element>();
        if job.num_rows <= one_pass_rows::<S>() {
            let w = Columns::<W> { start, stride: W::STEP * PANEL, hi: W::STEP * S::LANES };
            let sums = (from, Sums { hi: S::LANES, ..sums });
            // SAFETY: the promise of `Job::new`.
            by_rows!(job.num_rows, one_pass_rows::<S>(), |M| unsafe { tile::<S, W, M, 4>(s, w, x, k, sums) });
        } else if job.num_rows <= 2 * S::TILE_ROWS {
            some_rows::<S, W>(s, job);
        } else {
            many_rows::<S, W>(s, job);
        }
    }
}

#[inline(always)]
fn some_rows<S: Simd, W: Format>(s: S, job: &Job) {
    let panel = job.panel.cast::<W::Element>();
    for first in (0..PANEL / 2).step_by(S::LANES) {
        let start = panel.wrapping_add(W::STEP * first);
        let w = Columns::<W> { start, stride: W::STEP * PANEL, hi: W::STEP * PANEL / 2 };
        let (blocks, mut row) = (Blocks::new(job.num_rows, S::TILE_ROWS), 0);
        for block in 0..blocks.count {
            let rows = blocks.len(block);
            let Job { x, k, sums, from, .. } = job.rows(row, rows);
            let sums = Sums { start: sums.start.wrapping_add(first), hi: PANEL / 2, ..sums };
            let from = Partial { start: from.start.wrapping_add(first), ..from };
            // SAFETY: the promise of `Job::new`.
            unsafe { tile_from::<S, W, 2>(s, rows, (w, x), k, (from, sums)) };
            row += rows;
        }
    }
}

#[inline(always)]
fn many_rows<S: Simd, W: Format>(s: S, job: &Job) {
    let mut room = Block::new();
    let floats = room.start();
    for k_start in (0..job.k).step_by(BLOCK_TERMS) {
        let k = BLOCK_TERMS.min(job.k - k_start);
        let lines = job.panel.wrapping_add(Floats::<W>::offset(k_start)).cast::<W::Element>();
        let part = job.terms(k_start, k);
        for first in (0..PANEL / 2).step_by(S::LANES) {
            for index in 0..k.div_ceil(W::STEP) {
                let line = lines.wrapping_add(W::STEP * (index * PANEL + first));
                let to = floats.wrapping_add(W::STEP * index * 2 * S::LANES);
                // SAFETY: the promise of `Job::new`; K is filled up to whole lines, and so has `floats` room.
                unsafe {
                    widen::<S, W, 0>(s, line, to);
                    if W::STEP > 1 {
                        widen::<S, W, 1>(s, line, to.wrapping_add(2 * S::LANES));
                    }
                }
            }
            // SAFETY: the promise of `Job::new`, and k lines of `floats` were written.
            unsafe { block_rows(s, &part, 0, first, floats) };
        }
    }
}

/// A term's two vectors of columns as floats.
///
/// # Safety
/// They can be read, and two vectors written.
#[inline(always)]
unsafe fn widen<S: Simd, W: Format, const TERM: usize>(s: S, line: *const W::Element, to: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe {
        s.store(to, W::load::<S, TERM>(s, line));
        s.store(to.add(S::LANES), W::load::<S, TERM>(s, line.wrapping_add(W::STEP * PANEL / 2)));
    }
}

/// The job's rows from `row` on, times columns `first ..` and `first + 16 ..`, whose weights are floats, `LANES` of each to a line.
///
/// # Safety
/// The promise of `Job::new`, but for the panel; as many lines of floats as the job has terms can be read.
#[inline(always)]
pub(super) unsafe fn block_rows<S: Simd>(s: S, job: &Job, row: usize, first: usize, floats: *const f32) {
    let (blocks, mut row) = (Blocks::new(job.num_rows - row, S::TILE_ROWS), row);
    for block in 0..blocks.count {
        let rows = blocks.len(block);
        let Job { x, k, sums, from, .. } = job.rows(row, rows);
        let sums = Sums { start: sums.start.wrapping_add(first), hi: PANEL / 2, ..sums };
        let from = Partial { start: from.start.wrapping_add(first), ..from };
        // SAFETY: the caller's promise.
        by_rows!(rows, S::TILE_ROWS, |M| unsafe { block_tile::<S, M>(s, floats, x, k, (from, sums)) });
        row += rows;
    }
}

/// Terms between two requests for the lines of the next tile's rows: a cache line of x.
const ASK_TERMS: usize = 16;

/// `M` rows times two vectors of floats. Rows that follow those of the tile are the next one's: the first cache holds a tile's rows, not all
/// of a task, and without a request the first products of each line wait for the second.
///
/// # Safety
/// As for `tile`, with a line of two vectors to a term.
#[inline(always)]
unsafe fn block_tile<S: Simd, const M: usize>(
    s: S,
    floats: *const f32,
    x: Rows,
    k: usize,
    (from, sums): (Partial, Sums),
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut acc = [[s.zero(); 2]; M];
        for (r, acc) in acc.iter_mut().enumerate() {
            if !sums.fresh {
                let from = from.start.add(r * from.row);
                *acc = [s.load(from), s.load(from.add(sums.hi))];
                s.prefetch(from.wrapping_add(M * sums.row).cast());
                s.prefetch(from.wrapping_add(M * sums.row + sums.hi).cast());
            }
        }
        let mut line = floats;
        for start in (0..k).step_by(ASK_TERMS) {
            let column = x.start.add(start);
            for r in 0..M {
                s.prefetch(column.wrapping_add((M + r) * x.row).cast());
            }
            for term in 0..ASK_TERMS.min(k - start) {
                let weights = [s.load(line), s.load(line.add(S::LANES))];
                for (r, acc) in acc.iter_mut().enumerate() {
                    let x = s.splat(*column.add(r * x.row + term));
                    *acc = [s.fma(x, weights[0], acc[0]), s.fma(x, weights[1], acc[1])];
                }
                line = line.add(2 * S::LANES);
            }
        }
        for (r, acc) in acc.iter().enumerate() {
            s.store(sums.start.add(r * sums.row), acc[0]);
            s.store(sums.start.add(r * sums.row + sums.hi), acc[1]);
        }
    }
}
