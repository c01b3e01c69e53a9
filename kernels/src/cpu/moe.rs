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
use super::gemm::{self, Gemm, Input, InputRows, Part, Room};
use super::rounded::{RoundRows, Rounding, round_rows};
use super::simd::{Simd, math, simd_entry};
use super::tile::{self, MAX_ROWS, PanelFormat, PanelSums, Sums, by_weight_type};
use crate::device::Cpu;
use crate::matrix::PANEL;
use crate::ops::{Activation, MoeScratch};
use crate::{ActivationType, Experts, MatrixBatch, Tensor};
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
    let (places, starts) = (&mut places.as_i32_mut()[..num_pairs], starts.as_i32_mut());
    sort_by_expert(ids.as_i32(), places, starts);
    let (places, starts) = (&*places, &*starts);
    let stored_as = experts.stored_as();
    match cpu.rounds.beside(stored_as) {
        ActivationType::F32 => {
            let inner = &mut inner.as_f32_mut()[..num_pairs * i];
            let sorted = &mut rows.as_f32_mut()[..num_pairs * h];
            sort_floats(cpu, x, places, sorted);
            let x = Input::Floats { x: sorted, row: h, member: 0 };
            let out = InnerRows::Floats(SharedMut::new(inner));
            UpStage { weights: &experts.gate_up, x, out, inner: i, starts }.run(cpu);
            let inner = Input::Floats { x: inner, row: i, member: 0 };
            down(cpu, &experts.down, inner, SharedMut::new(sorted), starts);
        }
        rounded_to => {
            let [of_x, of_inner] = [h, i].map(|k| Rounding::new(rounded_to, stored_as, k));
            let inner = &mut inner.as_words_mut()[..num_pairs * of_inner.row()];
            let sorted = &mut rows.as_words_mut()[..num_pairs * of_x.row()];
            sort_rounded(cpu, x, places, &of_x, sorted);
            let x = Input::Rounded { words: sorted, rounding: of_x, member: 0 };
            let out = InnerRows::Rounded(SharedMut::new(inner), of_inner);
            UpStage { weights: &experts.gate_up, x, out, inner: i, starts }.run(cpu);
            let inner = Input::Rounded { words: inner, rounding: of_inner, member: 0 };
            down(cpu, &experts.down, inner, SharedMut::new(rows.as_f32_mut()), starts);
        }
    }
    let (rows, weights) = (&rows.as_f32()[..num_pairs * h], weights.as_f32());
    cpu.for_rows(out.as_f32_mut(), h, |first, block| {
        for (token, out) in block.chunks_exact_mut(h).enumerate() {
            let pairs = (first + token) * k..(first + token + 1) * k;
            weighted_sum(cpu.isa, rows, &places[pairs.clone()], &weights[pairs], out);
        }
    });
}

/// A row of x for each pair, at its place.
fn sort_floats(cpu: &Cpu, x: &Tensor, places: &[i32], sorted: &mut [f32]) {
    let (h, k) = (x.row_len(), places.len() / x.rows());
    let (x, sorted) = (x.as_f32(), SharedMut::new(sorted));
    cpu.for_each(places.len(), h, |pair| {
        // SAFETY: every pair has a place of its own.
        let row = unsafe { sorted.slice(places[pair] as usize * h, h) };
        row.copy_from_slice(&x[pair / k * h..][..h]);
    });
}

/// As `sort_floats`; a token is rounded once.
fn sort_rounded(cpu: &Cpu, x: &Tensor, places: &[i32], rounding: &Rounding, sorted: &mut [u32]) {
    let (h, k, words) = (x.row_len(), places.len() / x.rows(), rounding.row());
    let (x, sorted) = (x.as_f32(), SharedMut::new(sorted));
    cpu.for_each(places.len() / k, h, |token| {
        let row = &x[token * h..(token + 1) * h];
        let place = |choice: usize| places[token * k + choice] as usize * words;
        // SAFETY: every pair has a place of its own; a whole row of x.
        unsafe {
            let first = sorted.slice(place(0), words);
            let out = first.as_mut_ptr();
            let job = RoundRows { x: row.as_ptr(), x_row: 0, num_rows: 1, first: 0, terms: h, out };
            round_rows(cpu.isa, rounding, &job);
            for choice in 1..k {
                sorted.slice(place(choice), words).copy_from_slice(first);
            }
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
fn down(cpu: &Cpu, weights: &MatrixBatch, inner: Input, rows: SharedMut<f32>, starts: &[i32]) {
    let panels = weights.panels_per_member();
    let job = Gemm {
        x: inner,
        rows: 0,
        weights,
        bias: None,
        act: Activation::None,
        out: rows,
        out_stride: weights.n(),
        out_member: 0,
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
    x: Input<'a>,
    /// Sorted rows `[T·k, I]`.
    out: InnerRows,
    inner: usize,
    starts: &'a [i32],
}

/// What down reads.
enum InnerRows {
    Floats(SharedMut<f32>),
    Rounded(SharedMut<u32>, Rounding),
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
    by_weight_type!(
        stage.weights.stored_as(),
        stage.x.rounded_to(),
        up_part_of::<S>(s, stage, expert, units)
    );
}

#[inline(always)]
fn up_part_of<S: Simd, W: PanelFormat>(s: S, stage: &UpStage<'_>, expert: usize, units: Range<usize>) {
    let mut room = Room::new();
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
            for (unit, sums) in units.zip(sums.as_chunks_mut::<2>().0) {
                gate(s, stage, unit, rows.clone(), sums);
            }
        }
    }
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
    let x = InputRows::of(&stage.x, 0, rows.start);
    x.check(rows.len(), k);
    let k_block = tile::k_block_of::<W>(rows.len());
    for k_start in (0..k).step_by(k_block) {
        let k_len = k_block.min(k - k_start);
        // SAFETY: checked above, and at most MAX_ROWS.
        let (x, x_sums) = unsafe { room.block::<S, W>(s, x, rows.len(), [k_start, k_len]) };
        for (panel, sums) in sums.iter_mut().enumerate() {
            let lines = panels[panel * panel_bytes + W::offset(k_start)..].as_ptr();
            let sums = Sums { start: sums.as_mut_ptr(), row: PANEL, hi: 0, fresh: k_start == 0 };
            // SAFETY: a whole panel, whole rows of x, and at most MAX_ROWS rows of sums.
            unsafe { W::panel(s, rows.len(), lines, x, x_sums, k_len, sums) };
        }
    }
}

#[inline(always)]
fn gate<S: Simd>(s: S, stage: &UpStage<'_>, unit: usize, rows: Range<usize>, sums: &mut [PanelSums; 2]) {
    let columns = (stage.inner - unit * PANEL).min(PANEL);
    let num_rows = rows.len();
    for i in 0..num_rows {
        let [gate, up] = &mut *sums;
        // SAFETY: `products` wrote this row of sums.
        let (gate, up) = unsafe { (gate.row_mut(i), up.row(i)) };
        for c in (0..PANEL).step_by(S::LANES) {
            let product = s.mul(math::silu(s, s.load_slice(&gate[c..])), s.load_slice(&up[c..]));
            s.store_slice(&mut gate[c..], product);
        }
        if let InnerRows::Floats(out) = &stage.out {
            // SAFETY: this task's own rows and columns.
            let out = unsafe { out.slice((rows.start + i) * stage.inner + unit * PANEL, columns) };
            out.copy_from_slice(&gate[..columns]);
        }
    }
    if let InnerRows::Rounded(out, rounding) = &stage.out {
        let (x, out) = (sums[0].as_mut_ptr(), out.at(rows.start * rounding.row()));
        let job = RoundRows { x, x_row: PANEL, num_rows, first: unit * PANEL, terms: columns, out };
        // SAFETY: rows that were written above; this task's own rows and columns.
        unsafe { round_rows(S::ISA, rounding, &job) };
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
