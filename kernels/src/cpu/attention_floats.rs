//! Attention of one block of rows over one range of keys, in f32.
//!
//! Keys come in tiles of 64, as f32 for all rows of the block (`attention_load`). Scores are computed transposed, keys down and rows across, so
//! that the softmax runs in vectors of rows, and the scores are in the order in which the second product wants them. Rows lie in panels of 16:
//! each product reads queries, or weights, in one stretch of memory.
//!
//! ```text
//! keys [64, D] · queries [rows / 16, D, 16] = scores [rows / 16, 64, 16]  ─exp─▶  weightsᵀ · values [64, Dv]  +▶ sums [rows, Dv]
//! ```
//! Scores are tiles of `tile`, sums those below, which shrink what was summed before on its way to the registers. A sum is one chain of
//! additions, in the order of d, or of the keys. A key that a row may not see has weight 0, and adding 0 · v changes no bit; keys that no row
//! of a panel sees are left out, which changes none either. Blocks of few rows go another way to the same bits: `attention_thin`.

use super::attention_block::{LOWEST, Lines, Workspace};
use super::attention_load::{self as load, Ahead, Evenly, Places};
use super::attention_problem::{Block, KEYS, Keys, Problem, ROWS, row_len, width};
use super::simd::{MAX_LANES, Simd, Turn, math, simd_entry};
use super::tile::{self, Blocks, Columns, F32, Rows, Sums, by_rows, starts};
use crate::operands::attention::AttentionSizes;

/// Rows of a panel: as many as the widest vector has, so that it is the same on every processor.
const PANEL: usize = MAX_LANES;

/// How queries lie: in panels, one after the other.
pub(super) fn lines(problem: &Problem) -> Lines {
    Lines { panel: PANEL * problem.sizes.key_dim, line: PANEL }
}

/// A tile of keys: positions `first .. first + len`.
#[derive(Clone, Copy)]
struct Tile {
    first: usize,
    len: usize,
    /// Whether nothing came before it.
    is_first: bool,
}

impl Tile {
    /// Keys of it that some of the rows before `end` sees: no more than the last of them.
    fn seen(&self, block: &Block, end: usize) -> usize {
        let visible = block.visible(end.min(block.num_rows()) - 1);
        visible.saturating_sub(self.first).min(self.len)
    }
}

simd_entry! {
    /// Fills `work.range` with the block's attention over one range of keys.
    pub(crate) fn attend(problem: &Problem<'_>, block: &Block, range: usize, work: &mut Workspace<'_>) = attend_body
}

#[inline(always)]
fn attend_body<S: Turn>(s: S, problem: &Problem<'_>, block: &Block, range: usize, work: &mut Workspace<'_>) {
    let mut is_first = true;
    for (first, len) in block.tiles(range) {
        let tile = Tile { first, len, is_first };
        let places = Places::of(problem, block, first, len);
        let mut ahead = Ahead::new(problem, block, first + len, num_calls::<S>(problem, block, len));
        let keys = load::keys(s, problem, block, &places, work.keys);
        let values = match problem.keys {
            // A latent row is key and value at once.
            Keys::Latent { .. } => keys,
            _ => load::values(s, problem, block, &places, work.values),
        };
        // SAFETY: rows of `len` keys and values, the latter in whole vectors, from `load`.
        unsafe {
            score(s, problem, block, tile, keys, work, &mut || ahead.ask(s, problem, block));
            soften(s, block, tile, work);
            accumulate(s, problem, block, tile, values, work, &mut || ahead.ask(s, problem, block));
        }
        is_first = false;
    }
    if is_first {
        work.range.clear(width(block));
    }
}

/// Tiles of a score and of a sum that a block computes for one tile of keys, at most.
fn num_calls<S: Simd>(problem: &Problem, block: &Block, n: usize) -> usize {
    let (num_rows, last) = (block.num_rows(), block.num_rows() % PANEL);
    let scores = num_rows.div_ceil(2 * S::LANES) * n.div_ceil(S::TILE_ROWS);
    let rows = num_rows / PANEL * PANEL.div_ceil(S::TILE_ROWS) + last.div_ceil(S::TILE_ROWS);
    scores + problem.sizes.value_dim.div_ceil(2 * S::LANES) * rows
}

/// Where the lane of a row is, among panels of so many lines.
fn at(lane: usize, num_lines: usize) -> usize {
    lane / PANEL * PANEL * num_lines + lane % PANEL
}

/// `scores[j, r] = key[j] · query[r]`
///
/// # Safety
/// Rows of `tile.len` keys can be read.
#[inline(always)]
unsafe fn score<S: Simd>(
    s: S,
    problem: &Problem<'_>,
    block: &Block,
    tile: Tile,
    keys: Evenly,
    work: &mut Workspace<'_>,
    between: &mut impl FnMut(),
) {
    let d = problem.sizes.key_dim;
    // Lanes that hold rows: fewer than all when a block is small.
    let lanes = block.num_rows().next_multiple_of(S::LANES);
    let whole = lanes.next_multiple_of(PANEL);
    assert!(tile.len <= KEYS && whole <= ROWS, "a tile of scores");
    assert!(work.queries.len() >= whole * d && work.scores.len() >= whole * KEYS, "workspace");
    let (queries, scores) = (work.queries.as_ptr(), work.scores.as_mut_ptr());
    for lane in (0..lanes).step_by(2 * S::LANES) {
        let is_pair = lane + 2 * S::LANES <= lanes;
        let num_keys = tile.seen(block, lane + 2 * S::LANES);
        let blocks = Blocks::new(num_keys, S::TILE_ROWS);
        let mut key = 0;
        for block in 0..blocks.count {
            let rows = blocks.len(block);
            let lines = queries.wrapping_add(at(lane, d));
            let start = scores.wrapping_add(at(lane, KEYS) + key * PANEL);
            let x = Rows { start: keys.start.wrapping_add(key * keys.row), row: keys.row, step: 1 };
            // SAFETY: keys below `tile.len`, lines of lanes below `lanes`, in rooms whose lengths are asserted above.
            unsafe {
                if is_pair {
                    let hi = at(lane + S::LANES, d) - at(lane, d);
                    let w = Columns::<F32> { start: lines, stride: PANEL, hi };
                    let hi = at(lane + S::LANES, KEYS) - at(lane, KEYS);
                    tile::tile_of::<S, F32, 2>(s, rows, w, x, d, Sums { start, row: PANEL, hi, fresh: true });
                } else {
                    let product = Product {
                        lines,
                        line: PANEL,
                        x,
                        num_terms: d,
                        sums: start,
                        sum_row: PANEL,
                        factors: std::ptr::null(),
                    };
                    by_rows!(rows, S::TILE_ROWS, |M| product.run::<S, M, 1>(s));
                }
            }
            key += rows;
            between();
        }
    }
}

/// Scores become weights against the new maximum. Those of keys that a row may not see, because they come after it or before its window,
/// become 0.
#[inline(always)]
fn soften<S: Simd>(s: S, block: &Block, tile: Tile, work: &mut Workspace<'_>) {
    let num_rows = block.num_rows();
    assert!(tile.len <= KEYS && num_rows <= ROWS, "a tile of scores");
    assert!(work.scores.len() >= num_rows.next_multiple_of(PANEL) * KEYS, "workspace");
    let hides = !block.hides_nothing(tile.first, tile.len);
    let (window, hidden) = (s.splat(block.window as f32), s.splat(f32::NEG_INFINITY));
    for lane in (0..num_rows).step_by(S::LANES) {
        let lanes = lane..lane + S::LANES;
        let n = tile.seen(block, (lane / PANEL + 1) * PANEL);
        let scores = work.scores.as_mut_ptr().wrapping_add(at(lane, KEYS));
        let old = s.load_slice(&work.range.max[lanes.clone()]);
        let old = if tile.is_first { s.splat(LOWEST) } else { old };
        let mut max = old;
        // SAFETY: n <= KEYS lines of a panel, of which there are enough for each row.
        unsafe {
            if hides {
                let visible = s.load_slice(&work.visible[lanes.clone()]);
                let start = s.sub(visible, window);
                for j in 0..n {
                    let (position, at) = (s.splat((tile.first + j) as f32), scores.add(j * PANEL));
                    let score = s.select_lt(position, visible, s.load(at), hidden);
                    let score = s.select_lt(position, start, hidden, score);
                    s.store(at, score);
                    max = s.max(max, score);
                }
            } else {
                for j in 0..n {
                    max = s.max(max, s.load(scores.add(j * PANEL)));
                }
            }
            let mut sum = s.zero();
            for j in 0..n {
                let at = scores.add(j * PANEL);
                let weight = math::exp(s, s.sub(s.load(at), max));
                sum = s.add(sum, weight);
                s.store(at, weight);
            }
            let factor = math::exp(s, s.sub(old, max));
            let before = s.load_slice(&work.range.sum[lanes.clone()]);
            let before = if tile.is_first { s.zero() } else { before };
            s.store_slice(&mut work.range.sum[lanes.clone()], s.fma(before, factor, sum));
            s.store_slice(&mut work.range.max[lanes.clone()], max);
            s.store_slice(&mut work.shrink[lanes], factor);
        }
    }
}

/// `sums[r] = sums[r] · shrink[r] + Σ_j weights[j, r] · value[j]`
///
/// # Safety
/// Rows of `tile.len` values can be read, in whole vectors.
#[inline(always)]
unsafe fn accumulate<S: Simd>(
    s: S,
    problem: &Problem<'_>,
    block: &Block,
    tile: Tile,
    values: Evenly,
    work: &mut Workspace<'_>,
    between: &mut impl FnMut(),
) {
    let AttentionSizes { value_dim, .. } = problem.sizes;
    let (sum_row, num_rows) = (row_len(value_dim), block.num_rows());
    let columns = value_dim.next_multiple_of(S::LANES);
    assert!(tile.len <= KEYS && num_rows <= ROWS && columns <= values.row, "a tile of values");
    assert!(work.scores.len() >= num_rows.next_multiple_of(PANEL) * KEYS, "workspace");
    assert!(work.range.values.len() >= num_rows * sum_row && work.shrink.len() >= num_rows, "workspace");
    let (weights, sums) = (work.scores.as_ptr(), work.range.values.as_mut_ptr());
    for column in (0..columns).step_by(2 * S::LANES) {
        let is_pair = column + 2 * S::LANES <= columns;
        for panel in (0..num_rows).step_by(PANEL) {
            let num_keys = tile.seen(block, panel + PANEL);
            if num_keys == 0 && !tile.is_first {
                continue;
            }
            let blocks = Blocks::new(PANEL.min(num_rows - panel), S::TILE_ROWS);
            let mut row = panel;
            for block in 0..blocks.count {
                let rows = blocks.len(block);
                let factors = work.shrink.as_ptr().wrapping_add(row);
                let product = Product {
                    lines: values.start.wrapping_add(column),
                    line: values.row,
                    x: Rows { start: weights.wrapping_add(at(row, KEYS)), row: 1, step: PANEL },
                    num_terms: num_keys,
                    sums: sums.wrapping_add(row * sum_row + column),
                    sum_row,
                    factors: if tile.is_first { std::ptr::null() } else { factors },
                };
                // SAFETY: rows below `num_rows`, keys below `tile.len`, whole vectors of columns, in rooms whose lengths are asserted above.
                unsafe {
                    if is_pair {
                        by_rows!(rows, S::TILE_ROWS, |M| product.run::<S, M, 2>(s));
                    } else {
                        by_rows!(rows, S::TILE_ROWS, |M| product.run::<S, M, 1>(s));
                    }
                }
                row += rows;
                between();
            }
        }
    }
}

/// Rows times one or two vectors of columns that follow each other: `sums[r] = sums[r] * factors[r] + Σ_k x[r][k] * lines[k]`.
struct Product {
    /// Line k begins at `lines + k * line`.
    lines: *const f32,
    line: usize,
    x: Rows,
    num_terms: usize,
    /// Sums of row r begin at `sums + r * sum_row`.
    sums: *mut f32,
    sum_row: usize,
    /// One for each row; null: sums begin with 0.
    factors: *const f32,
}

impl Product {
    /// `M` rows and `V` vectors, 1 or 2.
    ///
    /// # Safety
    /// All that `self` describes can be read, and sums written.
    #[inline(always)]
    unsafe fn run<S: Simd, const M: usize, const V: usize>(&self, s: S) {
        let (mut acc, rows) = ([[s.zero(); V]; M], starts::<M>(self.x.row));
        // SAFETY: the caller's promise.
        unsafe {
            if !self.factors.is_null() {
                for (r, acc) in acc.iter_mut().enumerate() {
                    // Times 1 changes nothing.
                    let factor = s.splat(*self.factors.add(r));
                    for (v, acc) in acc.iter_mut().enumerate() {
                        let sums = self.sums.add(r * self.sum_row + v * S::LANES);
                        *acc = s.mul(s.load(sums), factor);
                    }
                }
            }
            let (mut line, mut column) = (self.lines, self.x.start);
            for _ in 0..self.num_terms {
                let first = s.load(line);
                let second = if V == 2 { s.load(line.add(S::LANES)) } else { first };
                for (r, acc) in acc.iter_mut().enumerate() {
                    let x = s.splat(*column.add(rows[r]));
                    acc[0] = s.fma(x, first, acc[0]);
                    if V == 2 {
                        acc[1] = s.fma(x, second, acc[1]);
                    }
                }
                line = line.wrapping_add(self.line);
                column = column.wrapping_add(self.x.step);
            }
            for (r, acc) in acc.iter().enumerate() {
                for (v, acc) in acc.iter().enumerate() {
                    s.store(self.sums.add(r * self.sum_row + v * S::LANES), *acc);
                }
            }
        }
    }
}
