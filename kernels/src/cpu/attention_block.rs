//! What the ways of a block share: what a thread works with, the softmax in progress, and how ranges of keys are merged and written.
//!
//! A block of rows goes over its keys a range at a time (`attention_floats`, `attention_thin`, and in pairs of bf16 `attention_pairs` and
//! `attention_pairs_thin`). A range leaves, for each row, its largest score, the sum of weights and the weighted sum of values.

use super::attention_problem::{Block, KEYS, Problem, ROWS, row_len, value_line, width};
use super::shared::SharedMut;
use super::simd::{Isa, MAX_LANES, Simd, Turn, math, simd_entry};
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
    /// Scaled; lines of rows, as `pack_queries` has them.
    pub(super) queries: &'a mut [f32],
    /// `[KEYS, key_row]`, or turned round
    pub(super) keys: &'a mut [f32],
    /// `[KEYS, value_line]`
    pub(super) values: &'a mut [f32],
    /// `[KEYS, width]`, or turned round, or in panels
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
        let (key_row, value_line) = (row_len(sizes.key_dim), value_line(sizes.value_dim));
        [key_row * ROWS, KEYS * key_row, KEYS * value_line, KEYS * ROWS, ROWS, ROWS]
    }

    pub fn new(mut buffer: &'a mut [f32], sizes: &AttentionSizes) -> Self {
        let mut take = |len: usize| buffer.split_off_mut(..len).expect("the buffer has this length");
        let [queries, keys, values, scores, shrink, visible] = Self::parts(sizes).map(&mut take);
        let states = [State::len(sizes, ROWS); 2].map(&mut take);
        let [range, total] = states.map(|state| State::new(state, sizes, ROWS));
        Self { queries, keys, values, scores, shrink, visible, range, total }
    }
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

/// Where a block's queries lie in its workspace: element c of row r is at `r / 16 * panel + r % 16 + c * line`.
#[derive(Clone, Copy)]
pub(crate) struct Lines {
    pub panel: usize,
    pub line: usize,
}

simd_entry! {
    /// Queries transposed and scaled; lanes without a row, up to a multiple of 16, get zeros.
    pub(crate) fn pack_queries(problem: &Problem<'_>, block: &Block, lines: Lines, work: &mut Workspace<'_>) = pack_queries_body
}

#[inline(always)]
fn pack_queries_body<S: Turn>(
    s: S,
    problem: &Problem<'_>,
    block: &Block,
    lines: Lines,
    work: &mut Workspace<'_>,
) {
    let (d, num_rows, width) = (problem.sizes.key_dim, block.num_rows(), width(block));
    let end = (width / MAX_LANES - 1) * lines.panel + (d - 1) * lines.line + MAX_LANES;
    assert!(width <= ROWS && work.queries.len() >= end, "workspace");
    let (scale, whole) = (s.splat(problem.scale), d / S::LANES * S::LANES);
    let zeros = [0.0; MAX_LANES];
    for first in (0..width).step_by(S::LANES) {
        let mut rows = [zeros.as_ptr(); MAX_LANES];
        let filled = S::LANES.min(num_rows.saturating_sub(first));
        for (lane, start) in rows[..filled].iter_mut().enumerate() {
            let (token, head) = block.row(first + lane);
            *start = problem.q[token * problem.q_stride + head * d..][..d].as_ptr();
        }
        let to = work.queries.as_mut_ptr().wrapping_add(first / MAX_LANES * lines.panel + first % MAX_LANES);
        for column in (0..whole).step_by(S::LANES) {
            // SAFETY: so many columns are left of rows, or there are as many zeros; lines below `d` of lanes below `width` were checked.
            unsafe {
                s.turn(&rows, to.add(column * lines.line), lines.line);
                for line in column..column + S::LANES {
                    let to = to.add(line * lines.line);
                    s.store(to, s.mul(s.load(to), scale));
                }
            }
            for start in &mut rows[..filled] {
                *start = start.wrapping_add(S::LANES);
            }
        }
        for column in whole..d {
            for (lane, start) in rows[..S::LANES].iter().enumerate() {
                // SAFETY: rows were moved on to column `whole`, and have `d`; there are more zeros than columns left.
                unsafe { *to.add(column * lines.line + lane) = *start.add(column - whole) * problem.scale };
            }
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
