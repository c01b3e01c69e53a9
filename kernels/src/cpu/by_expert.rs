//! Rows sorted by expert: the sort, how products of an expert's rows with its weights are cut into tasks, and the weighted sum of a token's
//! rows. A layer of experts in one op (moe.rs) and in steps (expert_rows.rs) are made of these, and so have the same bits.
//!
//! ```text
//! starts: | expert 0 | expert 1   | …          places: pair (token, choice) ─▶ its sorted row
//! ```

use super::gemm::{self, Gemm, Input, Part};
use super::shared::SharedMut;
use super::simd::{Isa, Simd, math, simd_entry};
use super::tile::{self, MAX_ROWS};
use crate::MatrixBatch;
use crate::operands::linear::Activation;
use std::ops::Range;

/// Counting sort: `places[pair]` is its row, `starts[e] .. starts[e + 1]` are the rows of expert e. Pairs of one expert stay
/// in order.
pub(crate) fn sort_by_expert(ids: &[i32], places: &mut [i32], starts: &mut [i32]) {
    starts.fill(0);
    for &id in ids {
        starts[id as usize + 1] += 1;
    }
    for e in 1..starts.len() {
        starts[e] += starts[e - 1];
    }
    // Each start moves to its end, which is the next expert's start: moved back below.
    for (&id, place) in ids.iter().zip(places) {
        *place = starts[id as usize];
        starts[id as usize] += 1;
    }
    starts.rotate_right(1);
    starts[0] = 0;
}

/// Rows that were sorted by expert.
#[derive(Clone, Copy)]
pub(crate) struct Groups<'a> {
    starts: &'a [i32],
    /// Experts that have rows.
    used: &'a [i32],
}

impl<'a> Groups<'a> {
    /// One expert, whose rows are from 0 to the second of these.
    pub fn of_one(starts: &'a [i32; 2]) -> Self {
        Self { starts, used: &[0] }
    }

    /// `starts` are as `sort_by_expert` left them, E + 1; `used` is room for E.
    pub fn new(starts: &'a [i32], used: &'a mut [i32]) -> Self {
        let mut count = 0;
        for (expert, rows) in starts.windows(2).enumerate() {
            if rows[0] < rows[1] {
                used[count] = expert as i32;
                count += 1;
            }
        }
        Self { starts, used: &used[..count] }
    }

    /// How a product of the rows with their experts' weights is cut, so many panels being one unit.
    pub fn tasks(&self, weights: &MatrixBatch, panels: usize) -> Tasks {
        let rows = |&expert: &i32| (self.starts[expert as usize + 1] - self.starts[expert as usize]) as usize;
        let (most, total) = self.used.iter().map(rows).fold((0, 0), |(most, sum), n| (n.max(most), sum + n));
        let units = weights.panels_per_member() / panels;
        let per_task = gemm::panels_worth_a_task(weights, total.div_ceil(self.used.len().max(1))) / panels;
        Tasks {
            experts: self.used.len(),
            units,
            per_task: per_task.clamp(1, units),
            chunks: most.div_ceil(MAX_ROWS),
        }
    }
}

/// How one side of a layer is cut: experts, units of 32 columns, chunks of rows. Chunks of one unit follow each other, because its
/// weights are still in the shared cache.
pub(crate) struct Tasks {
    experts: usize,
    units: usize,
    per_task: usize,
    chunks: usize,
}

/// What one task computes.
pub(crate) struct Share {
    pub expert: usize,
    pub units: Range<usize>,
    /// Sorted rows, at most `MAX_ROWS`.
    pub rows: Range<usize>,
}

impl Tasks {
    pub const NONE: Self = Self { experts: 0, units: 0, per_task: 1, chunks: 0 };

    pub fn count(&self) -> usize {
        self.experts * self.units.div_ceil(self.per_task) * self.chunks
    }

    /// None: the expert has fewer rows.
    pub fn part(&self, rows: &Groups, index: usize) -> Option<Share> {
        let (rest, chunk) = (index / self.chunks, index % self.chunks);
        let groups = self.units.div_ceil(self.per_task);
        let (expert, first) = (rows.used[rest / groups] as usize, rest % groups * self.per_task);
        let [start, end] = [0, 1].map(|i| rows.starts[expert + i] as usize);
        let blocks = tile::Blocks::new(end - start, MAX_ROWS);
        let rows_each = (end - start).div_ceil(blocks.count);
        let [from, to] = [chunk, chunk + 1].map(|chunk| end.min(start + chunk * rows_each));
        let units = first..self.units.min(first + self.per_task);
        (from < to).then_some(Share { expert, units, rows: from..to })
    }
}

/// `out[r] = x[r] · weights of the row's expert`
pub(super) fn linear_part(isa: Isa, x: Input, weights: &MatrixBatch, part: &Share, out: SharedMut<f32>) {
    let first = part.expert * weights.panels_per_member();
    let job = Gemm {
        x,
        rows: 0,
        weights,
        bias: None,
        act: Activation::None,
        out,
        out_stride: weights.n(),
        out_member: 0,
    };
    let panels = first + part.units.start..first + part.units.end;
    // One matrix to the job: rows are counted over all experts, and so are panels.
    gemm::run_part(isa, &job, 0, &Part { panels, rows: part.rows.clone() }, &mut []);
}

/// What a token's sum consists of.
pub(super) struct Terms<'a> {
    pub rows: &'a [f32],
    pub places: &'a [i32],
    pub weights: &'a [f32],
    /// `[E, H]`, added to each row, and the expert of each.
    pub bias: Option<(&'a [f32], &'a [i32])>,
    pub shared: Option<&'a [f32]>,
    /// None: what the shared expert made is added as it is.
    pub gate: Option<f32>,
}

simd_entry! {
    /// `out = Σ_j weights[j] * rows[places[j]] + sigmoid(gate) * shared`, in the order of j.
    pub(super) fn weighted_sum(terms: &Terms<'_>, out: &mut [f32]) = weighted_sum_body
}

#[inline(always)]
fn weighted_sum_body<S: Simd>(s: S, terms: &Terms<'_>, out: &mut [f32]) {
    let (h, Terms { rows, places, weights, bias, shared, gate }) = (out.len(), terms);
    // A product with 1 is exact, so that this is a sum where there is no gate.
    let factor = gate.map_or(s.splat(1.0), |gate| math::sigmoid(s, s.splat(gate)));
    for c in (0..h).step_by(S::LANES) {
        let mut sum = s.zero();
        for j in 0..places.len() {
            let row = places[j] as usize * h;
            let mut made = s.load_slice(&rows[row + c..row + h]);
            if let Some((bias, experts)) = bias {
                let row = experts[j] as usize * h;
                made = s.add(made, s.load_slice(&bias[row + c..row + h]));
            }
            sum = s.fma(s.splat(weights[j]), made, sum);
        }
        if let Some(shared) = shared {
            sum = s.fma(factor, s.load_slice(&shared[c..]), sum);
        }
        s.store_slice(&mut out[c..], sum);
    }
}
