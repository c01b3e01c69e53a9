//! Attention of one block of rows over one range of keys.
//!
//! Keys come in tiles of 64, widened to f32 once for all rows of the block (`attention_load`). Scores are computed transposed, keys down and rows
//! across, so that the softmax runs in vectors of rows, and the scores are in the order in which the second product wants them.
//!
//! ```text
//! keys [64, D] · queries [D, 64 rows] = scores [64, 64]  ─exp─▶  weights [64, 64]ᵀ · values [64, Dv]  +▶ sums [64, Dv]
//! ```
//! Both products are the one tile of `tile`, sums in the order of d, or of the keys. A key that a row may not see has weight 0,
//! and adding 0 · v changes no bit. Blocks of few rows go another way to the same bits: `attention_thin`.

use super::attention_load::{self as load, Ahead, Places};
use super::attention_problem::{Block, KEYS, Keys, Problem, ROWS, row_len, width};
use super::shared::SharedMut;
use super::simd::{Isa, MAX_LANES, Simd, Turn, math, simd_entry};
use super::tile::{self, Blocks, Columns, F32, Rows, Sums};
use crate::operands::attention::AttentionSizes;
use std::ops::Range;

/// Below every score, but finite: differences of it are 0, not NaN.
pub(super) const LOWEST: f32 = -1e30;

/// Softmax in progress: for each row the largest score, the sum of weights, and the weighted sum of values.
pub(crate) struct State<'a> {
    pub(super) max: &'a mut [f32],
    pub(super) sum: &'a mut [f32],
    /// `[ROWS, value_row]`
    pub(super) values: &'a mut [f32],
}

impl<'a> State<'a> {
    pub fn len(sizes: &AttentionSizes, num_rows: usize) -> usize {
        num_rows * (2 + row_len(sizes.value_dim))
    }

    pub fn new(buffer: &'a mut [f32], sizes: &AttentionSizes, num_rows: usize) -> Self {
        let (max, buffer) = buffer.split_at_mut(num_rows);
        let (sum, buffer) = buffer.split_at_mut(num_rows);
        Self { max, sum, values: &mut buffer[..num_rows * row_len(sizes.value_dim)] }
    }

    /// For `width` rows.
    pub fn clear(&mut self, width: usize) {
        let row = self.values.len() / self.max.len();
        self.clear_columns(width, &(0..row));
    }

    /// As `clear`, of some columns of the values.
    pub fn clear_columns(&mut self, width: usize, columns: &Range<usize>) {
        let row = self.values.len() / self.max.len();
        self.max[..width].fill(LOWEST);
        self.sum[..width].fill(0.0);
        for values in self.values.chunks_exact_mut(row).take(width) {
            values[columns.clone()].fill(0.0);
        }
    }

    /// Some rows; there may be room for more in one than in the other.
    pub fn copy_from(&mut self, other: &State, num_rows: usize) {
        let row = self.values.len() / self.max.len();
        self.max[..num_rows].copy_from_slice(&other.max[..num_rows]);
        self.sum[..num_rows].copy_from_slice(&other.sum[..num_rows]);
        self.values[..num_rows * row].copy_from_slice(&other.values[..num_rows * row]);
    }

    pub fn finished(&self) -> Finished<'_> {
        Finished { max: self.max, sum: self.sum, values: self.values }
    }
}

/// A `State` to read.
pub(crate) struct Finished<'a> {
    max: &'a [f32],
    sum: &'a [f32],
    values: &'a [f32],
}

impl<'a> Finished<'a> {
    /// What `State::new` makes of a buffer of exactly this length.
    pub fn new(buffer: &'a [f32], num_rows: usize) -> Self {
        let (max, buffer) = buffer.split_at(num_rows);
        let (sum, values) = buffer.split_at(num_rows);
        Self { max, sum, values }
    }
}

/// What a thread works with.
pub(crate) struct Workspace<'a> {
    /// `[key_row, width]`, scaled.
    pub(super) queries: &'a mut [f32],
    /// `[KEYS, key_row]`, or turned round
    pub(super) keys: &'a mut [f32],
    /// `[KEYS, value_row]`
    pub(super) values: &'a mut [f32],
    /// `[KEYS, width]`, or turned round
    pub(super) scores: &'a mut [f32],
    /// By how much the sums of each row shrink when a tile raises its maximum.
    pub(super) shrink: &'a mut [f32],
    /// Keys that each row sees.
    pub(super) visible: &'a mut [f32],
    pub range: State<'a>,
    pub total: State<'a>,
}

impl<'a> Workspace<'a> {
    pub fn len(sizes: &AttentionSizes) -> usize {
        Self::parts(sizes).iter().sum::<usize>() + 2 * State::len(sizes, ROWS)
    }

    fn parts(sizes: &AttentionSizes) -> [usize; 6] {
        let (key_row, value_row) = (row_len(sizes.key_dim), row_len(sizes.value_dim));
        [key_row * ROWS, KEYS * key_row, KEYS * value_row, KEYS * ROWS, ROWS, ROWS]
    }

    pub fn new(mut buffer: &'a mut [f32], sizes: &AttentionSizes) -> Self {
        let mut take = |len: usize| buffer.split_off_mut(..len).expect("the buffer has this length");
        let [queries, keys, values, scores, shrink, visible] = Self::parts(sizes).map(&mut take);
        let states = [State::len(sizes, ROWS); 2].map(&mut take);
        let [range, total] = states.map(|state| State::new(state, sizes, ROWS));
        Self { queries, keys, values, scores, shrink, visible, range, total }
    }
}

/// Queries transposed and scaled; lanes without a row get zeros.
pub(crate) fn pack_queries(problem: &Problem, block: &Block, work: &mut Workspace) {
    let (d, width) = (problem.sizes.key_dim, width(block));
    work.queries[..d * width].fill(0.0);
    for row in 0..block.num_rows() {
        let (token, head) = block.row(row);
        let q = &problem.q[token * problem.q_stride + head * d..][..d];
        for (line, &q) in work.queries.chunks_exact_mut(width).zip(q) {
            line[row] = q * problem.scale;
        }
    }
}

simd_entry! {
    /// Fills `work.range` with the block's attention over one range of keys.
    pub(crate) fn attend(problem: &Problem<'_>, block: &Block, range: usize, work: &mut Workspace<'_>) = attend_body
}

#[inline(always)]
fn attend_body<S: Turn>(s: S, problem: &Problem<'_>, block: &Block, range: usize, work: &mut Workspace<'_>) {
    work.range.clear(width(block));
    let width = width(block);
    for (first, n) in block.tiles(range) {
        let places = Places::of(problem, block, first, n);
        let mut ahead = Ahead::new(problem, block, first + n, num_calls::<S>(problem, block, n));
        load::rows(s, problem, block, &places, [&mut *work.keys, &mut *work.values]);
        score(s, problem, block, n, work, &mut || ahead.ask(s, problem, block));
        if !block.hides_nothing(first, n) {
            mask(s, [first, n], block.window, width, work);
        }
        for lane in (0..block.num_rows()).step_by(S::LANES) {
            soften(s, [n, width], lane, work);
        }
        let sum_row = row_len(problem.sizes.value_dim);
        shrink(s, sum_row, &(0..sum_row), 0..block.num_rows(), work);
        accumulate(s, problem, block, n, work, &mut || ahead.ask(s, problem, block));
    }
}

/// Tiles of a score and of a sum that a block computes for one tile of keys.
fn num_calls<S: Simd>(problem: &Problem, block: &Block, n: usize) -> usize {
    let scores = block.num_rows().div_ceil(2 * S::LANES) * n.div_ceil(S::TILE_ROWS);
    scores + row_len(problem.sizes.value_dim).div_ceil(2 * S::LANES) * block.num_rows().div_ceil(S::TILE_ROWS)
}

/// `scores[j, r] = key[j] · query[r]`
#[inline(always)]
fn score<S: Simd>(
    s: S,
    problem: &Problem<'_>,
    block: &Block,
    n: usize,
    work: &mut Workspace<'_>,
    between: &mut impl FnMut(),
) {
    let (d, width) = (problem.sizes.key_dim, width(block));
    // Lanes that hold rows: fewer than all when a block is small.
    let lanes = block.num_rows().next_multiple_of(S::LANES);
    let key_row = row_len(d);
    assert!(n <= KEYS && width <= ROWS, "a tile of scores");
    assert!(work.keys.len() >= KEYS * key_row && work.queries.len() >= d * width, "workspace");
    assert!(work.scores.len() >= KEYS * width, "workspace");
    let blocks = Blocks::new(n, S::TILE_ROWS);
    let (keys, queries, scores) = (work.keys.as_ptr(), work.queries.as_ptr(), work.scores.as_mut_ptr());
    for lane in (0..lanes).step_by(2 * S::LANES) {
        let w = Columns::<F32> { start: queries.wrapping_add(lane), stride: width, hi: S::LANES };
        let mut key = 0;
        for block in 0..blocks.count {
            let rows = blocks.len(block);
            let x = Rows { start: keys.wrapping_add(key * key_row), row: key_row, step: 1 };
            let start = scores.wrapping_add(key * width + lane);
            let sums = Sums { start, row: width, hi: S::LANES, fresh: true };
            // SAFETY: within the lengths asserted above: key + rows <= n, and lane + one or two vectors <= lanes.
            unsafe {
                if lane + 2 * S::LANES <= lanes {
                    tile::tile_of::<S, F32, 2>(s, rows, w, x, d, sums);
                } else {
                    tile::tile_of::<S, F32, 1>(s, rows, w, x, d, sums);
                }
            }
            key += rows;
            between();
        }
    }
}

/// Scores of keys that a row may not see become -inf: those after it, and those before its window.
#[inline(always)]
pub(super) fn mask<S: Simd>(
    s: S,
    [first, n]: [usize; 2],
    window: usize,
    width: usize,
    work: &mut Workspace<'_>,
) {
    let (window, hidden) = (s.splat(window as f32), s.splat(f32::NEG_INFINITY));
    for (j, scores) in work.scores.chunks_exact_mut(width).take(n).enumerate() {
        let position = s.splat((first + j) as f32);
        for lane in (0..width).step_by(S::LANES) {
            let lanes = lane..lane + S::LANES;
            let (score, visible) =
                (s.load_slice(&scores[lanes.clone()]), s.load_slice(&work.visible[lanes.clone()]));
            let score = s.select_lt(position, visible, score, hidden);
            let start = s.sub(visible, window);
            s.store_slice(&mut scores[lanes], s.select_lt(position, start, hidden, score));
        }
    }
}

/// Scores of one vector of rows become weights against the new maximum.
#[inline(always)]
pub(super) fn soften<S: Simd>(s: S, [n, width]: [usize; 2], lane: usize, work: &mut Workspace<'_>) {
    let lanes = lane..lane + S::LANES;
    let scores = &mut work.scores[..n * width];
    let old = s.load_slice(&work.range.max[lanes.clone()]);
    let mut max = old;
    for scores in scores.chunks_exact(width) {
        max = s.max(max, s.load_slice(&scores[lanes.clone()]));
    }
    let mut sum = s.zero();
    for scores in scores.chunks_exact_mut(width) {
        let scores = &mut scores[lanes.clone()];
        let weight = math::exp(s, s.sub(s.load_slice(scores), max));
        sum = s.add(sum, weight);
        s.store_slice(scores, weight);
    }
    let shrink = math::exp(s, s.sub(old, max));
    let total = s.fma(s.load_slice(&work.range.sum[lanes.clone()]), shrink, sum);
    s.store_slice(&mut work.range.sum[lanes.clone()], total);
    s.store_slice(&mut work.range.max[lanes.clone()], max);
    s.store_slice(&mut work.shrink[lanes], shrink);
}

/// Some columns of the sums of rows whose maximum rose; whole vectors.
#[inline(always)]
pub(super) fn shrink<S: Simd>(
    s: S,
    len: usize,
    columns: &Range<usize>,
    rows: Range<usize>,
    work: &mut Workspace<'_>,
) {
    for row in rows {
        let factor = work.shrink[row];
        // Times 1 would change nothing.
        if factor != 1.0 {
            let values = &mut work.range.values[row * len..(row + 1) * len];
            for i in columns.clone().step_by(S::LANES) {
                let v = s.mul(s.load_slice(&values[i..]), s.splat(factor));
                s.store_slice(&mut values[i..], v);
            }
        }
    }
}

/// `sums[r] += Σ_j weights[j, r] · value[j]`
#[inline(always)]
fn accumulate<S: Simd>(
    s: S,
    problem: &Problem<'_>,
    block: &Block,
    n: usize,
    work: &mut Workspace<'_>,
    between: &mut impl FnMut(),
) {
    let AttentionSizes { key_dim, value_dim, .. } = problem.sizes;
    let (sum_row, num_rows, width) = (row_len(value_dim), block.num_rows(), width(block));
    // A latent row is key and value at once.
    let (values, stride) = match problem.keys {
        Keys::Latent { .. } => (&*work.keys, row_len(key_dim)),
        _ => (&*work.values, sum_row),
    };
    assert!(n <= KEYS && num_rows <= ROWS && sum_row <= stride, "a tile of values");
    assert!(values.len() >= KEYS * stride && work.range.values.len() >= ROWS * sum_row, "workspace");
    let blocks = Blocks::new(num_rows, S::TILE_ROWS);
    let (values, weights) = (values.as_ptr(), work.scores.as_ptr());
    let out = work.range.values.as_mut_ptr();
    for column in (0..sum_row).step_by(2 * S::LANES) {
        let w = Columns::<F32> { start: values.wrapping_add(column), stride, hi: S::LANES };
        let mut row = 0;
        for block in 0..blocks.count {
            let rows = blocks.len(block);
            let x = Rows { start: weights.wrapping_add(row), row: 1, step: width };
            let start = out.wrapping_add(row * sum_row + column);
            let sums = Sums { start, row: sum_row, hi: S::LANES, fresh: false };
            // SAFETY: within the lengths asserted above: row + rows <= num_rows, and column + one or two vectors <= sum_row,
            // which is a whole number of vectors.
            unsafe {
                if column + 2 * S::LANES <= sum_row {
                    tile::tile_of::<S, F32, 2>(s, rows, w, x, n, sums);
                } else {
                    tile::tile_of::<S, F32, 1>(s, rows, w, x, n, sums);
                }
            }
            row += rows;
            between();
        }
    }
}

simd_entry! {
    /// Adds a range to the ranges before it: some columns, whole vectors.
    pub(crate) fn merge(range: &Finished<'_>, total: &mut State<'_>, num_rows: usize, columns: &Range<usize>) = merge_body
}

#[inline(always)]
fn merge_body<S: Simd>(
    s: S,
    range: &Finished<'_>,
    total: &mut State<'_>,
    num_rows: usize,
    columns: &Range<usize>,
) {
    let (mut keep, mut take) = ([0.0; ROWS], [0.0; ROWS]);
    // Lanes without a row hold anything.
    for lane in (0..num_rows).step_by(S::LANES) {
        let lanes = lane..lane + S::LANES;
        let (a, b) = (s.load_slice(&total.max[lanes.clone()]), s.load_slice(&range.max[lanes.clone()]));
        let max = s.max(a, b);
        let (a, b) = (math::exp(s, s.sub(a, max)), math::exp(s, s.sub(b, max)));
        let kept = s.mul(a, s.load_slice(&total.sum[lanes.clone()]));
        let sum = s.fma(b, s.load_slice(&range.sum[lanes.clone()]), kept);
        s.store_slice(&mut total.max[lanes.clone()], max);
        s.store_slice(&mut total.sum[lanes.clone()], sum);
        s.store_slice(&mut keep[lanes.clone()], a);
        s.store_slice(&mut take[lanes], b);
    }
    let len = total.values.len() / total.max.len();
    for row in 0..num_rows {
        let values = row * len..(row + 1) * len;
        let (total, range) = (&mut total.values[values.clone()], &range.values[values]);
        for i in columns.clone().step_by(S::LANES) {
            let kept = s.mul(s.splat(keep[row]), s.load_slice(&total[i..]));
            s.store_slice(&mut total[i..], s.fma(s.splat(take[row]), s.load_slice(&range[i..]), kept));
        }
    }
}

/// The block's rows of `out`.
pub(crate) fn write(isa: Isa, problem: &Problem, block: &Block, total: &State, out: &SharedMut<f32>) {
    write_columns(isa, problem, block, (total, 0..problem.sizes.value_dim), out);
}

/// Columns of the block's rows of `out`, divided by their sums. A sum of -0 counts as 0, which it is once it was merged with anything.
pub(crate) fn write_columns(
    isa: Isa,
    problem: &Problem,
    block: &Block,
    (total, columns): (&State, Range<usize>),
    out: &SharedMut<f32>,
) {
    let AttentionSizes { heads, value_dim, .. } = problem.sizes;
    for (row, values) in total.values.chunks_exact(row_len(value_dim)).take(block.num_rows()).enumerate() {
        let (token, head) = block.row(row);
        // SAFETY: every row and head is in one block, and a column of it in one task.
        let out = unsafe { out.slice((token * heads + head) * value_dim + columns.start, columns.len()) };
        let sink = problem.sinks.map(|sinks| sinks[head]);
        divide(isa, &values[columns.clone()], [total.max[row], total.sum[row]], sink, out);
    }
}

simd_entry! {
    /// `out = (values + 0) / sum`, of weights against a maximum; a sink has its own weight in the sum.
    fn divide(values: &[f32], max_and_sum: [f32; 2], sink: Option<f32>, out: &mut [f32]) = divide_body
}

#[inline(always)]
fn divide_body<S: Simd>(s: S, values: &[f32], [max, sum]: [f32; 2], sink: Option<f32>, out: &mut [f32]) {
    let factor = match sink {
        None => 1.0 / sum,
        Some(sink) => {
            // Where the sink is above all scores, weights shrink to it, so that nothing overflows.
            let top = if sink > max { sink } else { max };
            let mut weights = [[0.0; MAX_LANES]; 2];
            s.store_slice(&mut weights[0], math::exp(s, s.splat(max - top)));
            s.store_slice(&mut weights[1], math::exp(s, s.splat(sink - top)));
            let [[keep, ..], [sink, ..]] = weights;
            keep / (sum * keep + sink)
        }
    };
    for i in (0..out.len()).step_by(S::LANES) {
        let values = s.add(s.load_slice(&values[i..]), s.zero());
        s.store_slice(&mut out[i..], s.mul(values, s.splat(factor)));
    }
}
