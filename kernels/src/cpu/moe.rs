//! Experts of each token, in three parallel regions: gate and up with SwiGLU, down, and the weighted sums.
//!
//! Pairs (token, choice) are sorted by expert, so that an expert's weights are read once for all its tokens. A task is one
//! expert and some of its panels.
//!
//! ```text
//! starts: | expert 0 | expert 1   | …          rows: x of each pair, in sorted order
//! places: pair ─▶ sorted row                   inner: silu(gate) * up ─▶ rows: down ─▶ out[t] = Σ weight · rows[place]
//! ```

use super::SharedMut;
use super::gemm::{self, Gemm, Part};
use super::grouped::GroupSums;
use super::simd::{Simd, math, simd_entry};
use super::tile::{self, MAX_ROWS, PackedRows, PanelFormat, PanelSums, Rows, Sums, by_weight_type};
use crate::device::Cpu;
use crate::matrix::PANEL;
use crate::ops::{Activation, MoeScratch};
use crate::{Experts, MatrixBatch, Tensor};
use std::ops::Range;

pub(crate) fn run(
    cpu: &Cpu,
    x: &Tensor,
    experts: &Experts,
    ids: &Tensor,
    weights: &Tensor,
    scratch: &mut MoeScratch,
    out: &mut Tensor,
) {
    let (h, i, k) = (experts.hidden(), experts.inner(), ids.row_len());
    let num_pairs = ids.len();
    if num_pairs == 0 {
        return;
    }
    let MoeScratch { rows, inner, places, starts, .. } = scratch;
    let (rows, inner) = (&mut rows.as_f32_mut()[..num_pairs * h], &mut inner.as_f32_mut()[..num_pairs * i]);
    let (places, starts) = (&mut places.as_i32_mut()[..num_pairs], starts.as_i32_mut());
    sort_by_expert(ids.as_i32(), places, starts);
    let x = x.as_f32();
    let sorted = SharedMut::new(rows);
    cpu.for_each(num_pairs, h, |pair| {
        // SAFETY: every pair has a place of its own.
        let row = unsafe { sorted.slice(places[pair] as usize * h, h) };
        row.copy_from_slice(&x[pair / k * h..][..h]);
    });

    let up = UpStage { weights: &experts.gate_up, x: rows, out: SharedMut::new(inner), inner: i, starts };
    up.run(cpu);
    down(cpu, &experts.down, inner, SharedMut::new(rows), starts);

    let (rows, weights) = (&*rows, weights.as_f32());
    cpu.for_rows(out.as_f32_mut(), h, |first, block| {
        for (token, out) in block.chunks_exact_mut(h).enumerate() {
            let pairs = (first + token) * k..(first + token + 1) * k;
            weighted_sum(cpu.isa, rows, &places[pairs.clone()], &weights[pairs], out);
        }
    });
}

/// Counting sort: `places[pair]` is its row, `starts[e] .. starts[e + 1]` are the rows of expert e. Pairs of one expert stay
/// in order.
fn sort_by_expert(ids: &[i32], places: &mut [i32], starts: &mut [i32]) {
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

/// Blocks of at most `MAX_ROWS` sorted rows of an expert.
fn row_blocks(starts: &[i32], expert: usize) -> impl Iterator<Item = Range<usize>> + use<> {
    let (start, end) = (starts[expert] as usize, starts[expert + 1] as usize);
    (start..end).step_by(MAX_ROWS).map(move |first| first..end.min(first + MAX_ROWS))
}

/// Calls `part(expert, units)` for all units of 32 columns of every expert that has rows.
fn for_units(
    cpu: &Cpu,
    starts: &[i32],
    units: usize,
    per_task: usize,
    part: impl Fn(usize, Range<usize>) + Sync,
) {
    let tasks_per_expert = units.div_ceil(per_task);
    cpu.pool.run((starts.len() - 1) * tasks_per_expert, &|task, _| {
        let (expert, first) = (task / tasks_per_expert, task % tasks_per_expert * per_task);
        if starts[expert] < starts[expert + 1] {
            part(expert, first..units.min(first + per_task));
        }
    });
}

/// Rows of an expert when all have the same number, for the size of tasks.
fn usual_rows(starts: &[i32]) -> usize {
    (starts[starts.len() - 1] as usize).div_ceil(starts.len() - 1)
}

/// `rows[r] = inner[r] · down of the row's expert`
fn down(cpu: &Cpu, weights: &MatrixBatch, inner: &[f32], rows: SharedMut<f32>, starts: &[i32]) {
    let panels = weights.panels_per_member();
    let job = Gemm {
        x: inner,
        x_stride: weights.k(),
        rows: 0,
        weights,
        bias: None,
        act: Activation::None,
        out: rows,
        out_stride: weights.n(),
        head_stride: [0, 0],
    };
    let per_task = gemm::panels_worth_a_task(weights, usual_rows(starts)).min(panels);
    for_units(cpu, starts, panels, per_task, |expert, units| {
        for rows in row_blocks(starts, expert) {
            let panels = expert * panels + units.start..expert * panels + units.end;
            gemm::run_part(cpu.isa, &job, expert, &Part { panels, rows });
        }
    });
}

/// `out[r] = silu(x[r] · gate) * (x[r] · up)`, gate and up of the row's expert.
struct UpStage<'a> {
    weights: &'a MatrixBatch,
    /// Sorted rows `[T·k, H]`.
    x: &'a [f32],
    /// Sorted rows `[T·k, I]`.
    out: SharedMut<f32>,
    inner: usize,
    starts: &'a [i32],
}

/// Units, each a panel of gate and one of up, that share packed rows.
const UNITS: usize = 2;

impl UpStage<'_> {
    fn run(&self, cpu: &Cpu) {
        let units = self.weights.panels_per_member() / 2;
        let per_task = (gemm::panels_worth_a_task(self.weights, usual_rows(self.starts)) / 2).clamp(1, units);
        for_units(cpu, self.starts, units, per_task, |expert, units| up_part(cpu.isa, self, expert, units));
    }
}

simd_entry! {
    fn up_part(stage: &UpStage<'_>, expert: usize, units: Range<usize>) = up_part_body
}

#[inline(always)]
fn up_part_body<S: Simd>(s: S, stage: &UpStage<'_>, expert: usize, units: Range<usize>) {
    by_weight_type!(stage.weights.stored_as(), up_part_of::<S>(s, stage, expert, units));
}

#[inline(always)]
fn up_part_of<S: Simd, W: PanelFormat>(s: S, stage: &UpStage<'_>, expert: usize, units: Range<usize>) {
    let mut room = Room { packed: PackedRows::new(), x_sums: GroupSums::new() };
    let mut sums = [const { PanelSums::new() }; 2 * UNITS];
    for rows in row_blocks(stage.starts, expert) {
        for first in units.clone().step_by(UNITS) {
            let units = first..units.end.min(first + UNITS);
            products::<S, W>(
                s,
                stage,
                [expert, 2 * first],
                rows.clone(),
                &mut sums[..2 * units.len()],
                &mut room,
            );
            for (unit, sums) in units.zip(sums.as_chunks::<2>().0) {
                gate(s, stage, unit, rows.clone(), sums);
            }
        }
    }
}

/// What is made of the rows of x, a block of K at a time.
struct Room {
    packed: PackedRows,
    x_sums: GroupSums,
}

/// Sorted rows times panels of an expert, from panel `first` on, one for each of `sums`.
#[inline(always)]
fn products<S: Simd, W: PanelFormat>(
    s: S,
    stage: &UpStage<'_>,
    [expert, first]: [usize; 2],
    rows: Range<usize>,
    sums: &mut [PanelSums],
    room: &mut Room,
) {
    let k = stage.weights.k();
    let panel_bytes = stage.weights.panel_bytes();
    let index = expert * stage.weights.panels_per_member() + first;
    let panels = &stage.weights.as_bytes()[index * panel_bytes..(index + sums.len()) * panel_bytes];
    let x = &stage.x[rows.start * k..rows.end * k];
    let k_block = tile::k_block(rows.len());
    for k_start in (0..k).step_by(k_block) {
        let k_len = k_block.min(k - k_start);
        let x = Rows { start: x[k_start..].as_ptr(), row: k, step: 1 };
        // SAFETY: whole rows of x, at most MAX_ROWS of them.
        let x = unsafe { room.packed.pack(x, rows.len(), k_len) };
        let x_sums = if W::GROUP_SUMS {
            // SAFETY: as above.
            unsafe { room.x_sums.fill(s, x, rows.len(), k_len) }
        } else {
            std::ptr::null()
        };
        for (panel, sums) in sums.iter_mut().enumerate() {
            let lines = panels[panel * panel_bytes + W::offset(k_start)..].as_ptr();
            let sums = Sums { start: sums.as_mut_ptr(), row: PANEL, hi: 0, fresh: k_start == 0 };
            // SAFETY: a whole panel, whole rows of x, and at most MAX_ROWS rows of sums.
            unsafe { W::panel(s, rows.len(), lines, x, x_sums, k_len, sums) };
        }
    }
}

#[inline(always)]
fn gate<S: Simd>(s: S, stage: &UpStage<'_>, unit: usize, rows: Range<usize>, sums: &[PanelSums; 2]) {
    let columns = (stage.inner - unit * PANEL).min(PANEL);
    for (i, row) in rows.enumerate() {
        // SAFETY: this task's own rows and columns; `products` wrote this row of sums.
        let (out, sums) = unsafe {
            (stage.out.slice(row * stage.inner + unit * PANEL, columns), [sums[0].row(i), sums[1].row(i)])
        };
        for c in (0..columns).step_by(S::LANES) {
            let gate = math::silu(s, s.load_slice(&sums[0][c..]));
            s.store_slice(&mut out[c..], s.mul(gate, s.load_slice(&sums[1][c..])));
        }
    }
}

simd_entry! {
    /// `out = Σ_j weights[j] * rows[places[j]]`, in the order of j.
    fn weighted_sum(rows: &[f32], places: &[i32], weights: &[f32], out: &mut [f32]) = weighted_sum_body
}

#[inline(always)]
fn weighted_sum_body<S: Simd>(s: S, rows: &[f32], places: &[i32], weights: &[f32], out: &mut [f32]) {
    let h = out.len();
    for c in (0..h).step_by(S::LANES) {
        let mut sum = s.zero();
        for j in 0..places.len() {
            let row = places[j] as usize * h;
            sum = s.fma(s.splat(weights[j]), s.load_slice(&rows[row + c..row + h]), sum);
        }
        s.store_slice(&mut out[c..], sum);
    }
}
