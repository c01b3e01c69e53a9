//! Panels of floats in linear layers: how a panel is walked depends on how many rows pass by.
//!
//! ```text
//! few rows     all columns of a line at once, where a line is four vectors: each is read once
//! some rows    two vectors of columns at a time; where a line is four and weights are not floats already, all of them, over weights that were
//!              made floats once, in a block that stays in the first cache
//! many rows    two vectors of columns at a time over such a block
//! ```
//! Every sum is the same chain of additions in each of them, and so has the same bits.

use super::dot::CACHE_LINE;
use super::simd::{Simd, ask_for};
use super::tile::{
    Blocks, Columns, Format, Job, K_BLOCK, PACKED_ROW, PanelFormat, Partial, Rows, Sums, by_rows, columns,
    starts, tile, tile_from,
};
use crate::ActivationType;
use crate::panel::PANEL;
use std::marker::PhantomData;
use std::mem::MaybeUninit;

/// Panels of floats.
pub(crate) struct Floats<W>(PhantomData<W>);

/// Terms whose weights are made floats at a time.
pub(super) const BLOCK_TERMS: usize = 128;

/// Weights as floats, for all columns; on the stack, and written before it is read.
#[repr(C, align(64))]
pub(super) struct Block([MaybeUninit<f32>; BLOCK_TERMS * PANEL]);

impl Block {
    #[inline(always)]
    pub fn new() -> Self {
        Self([MaybeUninit::uninit(); BLOCK_TERMS * PANEL])
    }

    /// A line of some vectors for each term.
    #[inline(always)]
    pub fn start(&mut self) -> *mut f32 {
        self.0.as_mut_ptr().cast()
    }
}

/// Rows whose sums over four vectors, which are all columns where vectors are that narrow, stay in registers.
pub(super) const NARROW_ROWS: usize = 3;

/// As a limit of tiles: none where a line is two vectors.
const fn narrow_rows<S: Simd>() -> usize {
    if 4 * S::LANES == PANEL { NARROW_ROWS } else { 0 }
}

/// From so many rows on, tiles are two vectors of columns wide and as many rows high as there are registers for.
pub(super) const WIDE_FROM: usize = 13;

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
        if job.num_rows <= narrow_rows::<S>() {
            let w = Columns::<W> { start, stride: W::STEP * PANEL, hi: W::STEP * S::LANES };
            let sums = (from, Sums { hi: S::LANES, ..sums });
            // SAFETY: the promise of `Job::new`.
            by_rows!(job.num_rows, narrow_rows::<S>(), |M| unsafe { tile::<S, W, M, 4>(s, w, x, k, sums) });
        } else if job.num_rows >= WIDE_FROM {
            widened::<S, W, 2>(s, job);
        } else if const { narrow_rows::<S>() > 0 && size_of::<W::Element>() < size_of::<f32>() } {
            widened::<S, W, 4>(s, job);
        } else {
            some_rows::<S, W>(s, job);
        }
    }
}

/// Tiles of two vectors of columns over weights as they lie.
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

/// Makes floats of a block of weights, `V` vectors of columns at a time, for all rows.
#[inline(always)]
fn widened<S: Simd, W: Format, const V: usize>(s: S, job: &Job) {
    let mut room = Block::new();
    let floats = room.start();
    for k_start in (0..job.k).step_by(BLOCK_TERMS) {
        let k = BLOCK_TERMS.min(job.k - k_start);
        let offset = Floats::<W>::offset(k_start);
        let lines = job.panel.wrapping_add(offset).cast::<W::Element>();
        let part = job.terms(k_start, k);
        for first in (0..PANEL / V).step_by(S::LANES) {
            let columns = columns::<V>(S::LANES, first);
            for index in 0..k.div_ceil(W::STEP) {
                if first == 0 {
                    for line in (0..W::STEP * PANEL * size_of::<W::Element>()).step_by(CACHE_LINE) {
                        ask_for(job.ahead.wrapping_add(offset + Floats::<W>::offset(W::STEP * index) + line));
                    }
                }
                let line = lines.wrapping_add(W::STEP * index * PANEL);
                let to = floats.wrapping_add(W::STEP * index * V * S::LANES);
                for (v, column) in columns.into_iter().enumerate() {
                    // SAFETY: the promise of `Job::new`; K is filled up to whole lines, and so has `floats` room.
                    unsafe {
                        let (line, to) = (line.add(W::STEP * column), to.add(v * S::LANES));
                        s.store(to, W::load::<S, 0>(s, line));
                        if W::STEP > 1 {
                            s.store(to.add(V * S::LANES), W::load::<S, 1>(s, line));
                        }
                    }
                }
            }
            // SAFETY: the promise of `Job::new`, and k lines of `floats` were written.
            unsafe { block_rows::<S, V>(s, &part, first, floats) };
        }
    }
}

/// The job's rows times `V` vectors of columns (`columns`), whose weights are floats: 4, or 2 from `first` on.
///
/// # Safety
/// The promise of `Job::new`, but for the panel; as many lines of floats as the job has terms can be read.
#[inline(always)]
pub(super) unsafe fn block_rows<S: Simd, const V: usize>(s: S, job: &Job, first: usize, floats: *const f32) {
    let blocks = Blocks::new(job.num_rows, if V == 4 { NARROW_ROWS } else { S::TILE_ROWS });
    let (columns, mut row) = (columns::<V>(S::LANES, first), 0);
    for block in 0..blocks.count {
        let rows = blocks.len(block);
        let Job { x, k, sums, from, .. } = job.rows(row, rows);
        let sums = (from, sums, columns);
        // SAFETY: the caller's promise.
        unsafe {
            match V == 4 {
                true if x.row == PACKED_ROW => {
                    by_rows!(rows, NARROW_ROWS, |M| block_tile::<S, M, V, true>(s, floats, x, k, sums));
                }
                true => by_rows!(rows, NARROW_ROWS, |M| block_tile::<S, M, V, false>(s, floats, x, k, sums)),
                false => {
                    assert_eq!(x.row, PACKED_ROW, "so many rows are packed");
                    by_rows!(rows, S::TILE_ROWS, |M| block_tile::<S, M, V, true>(s, floats, x, k, sums));
                }
            }
        }
        row += rows;
    }
}

/// Terms of a turn of the loop over two vectors. Over four vectors it is one: of several terms the compiler would bring weights into registers
/// that sums need.
const TURN: usize = 4;

/// `M` rows times `V` vectors of floats. `PACKED` rows lie as `PackedRows` has them: a distance that the compiler knows is part of each load, and
/// loops are bound by the number of their instructions.
///
/// # Safety
/// As for `tile`, with a line of V vectors to a term.
#[inline(always)]
unsafe fn block_tile<S: Simd, const M: usize, const V: usize, const PACKED: bool>(
    s: S,
    floats: *const f32,
    x: Rows,
    k: usize,
    (from, sums, columns): (Partial, Sums, [usize; V]),
) {
    let rows = starts::<M>(if PACKED { PACKED_ROW } else { x.row });
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
        let (mut line, mut column) = (floats, x.start);
        let turn = if V == 4 { 1 } else { TURN };
        for _ in 0..k / turn {
            for term in 0..turn {
                block_term::<S, M, V>(s, line.add(term * V * S::LANES), column.add(term), &rows, &mut acc);
            }
            (line, column) = (line.add(turn * V * S::LANES), column.add(turn));
        }
        for term in 0..k % turn {
            let line = line.wrapping_add((V * S::LANES).wrapping_mul(term));
            block_term::<S, M, V>(s, line, column.wrapping_add(term), &rows, &mut acc);
        }
        for (r, acc) in acc.iter().enumerate() {
            for (v, acc) in acc.iter().enumerate() {
                s.store(sums.start.add(r * sums.row + columns[v]), *acc);
            }
        }
    }
}

/// One term of every sum.
///
/// # Safety
/// As for `tile`.
#[inline(always)]
unsafe fn block_term<S: Simd, const M: usize, const V: usize>(
    s: S,
    line: *const f32,
    column: *const f32,
    rows: &[usize; M],
    acc: &mut [[S::V; V]; M],
) {
    // SAFETY: the caller's promise.
    unsafe {
        // Whichever of the two are fewer stay in registers beside the sums.
        if V == 4 {
            let mut xs = [s.zero(); M];
            for (r, xs) in xs.iter_mut().enumerate() {
                *xs = s.splat(*column.add(rows[r]));
            }
            for v in 0..V {
                let weights = s.load(line.add(v * S::LANES));
                for (xs, acc) in xs.into_iter().zip(acc.iter_mut()) {
                    acc[v] = s.fma(xs, weights, acc[v]);
                }
            }
        } else {
            let mut weights = [s.zero(); V];
            for (v, weights) in weights.iter_mut().enumerate() {
                *weights = s.load(line.add(v * S::LANES));
            }
            for (r, acc) in acc.iter_mut().enumerate() {
                let x = s.splat(*column.add(rows[r]));
                for (weights, acc) in weights.into_iter().zip(acc) {
                    *acc = s.fma(x, weights, *acc);
                }
            }
        }
    }
}
