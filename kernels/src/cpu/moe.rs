//! Experts of each token in one parallel region: rows are sorted, gate and up with SwiGLU, down, and the weighted sums, with what a token's
//! stream and its norm make of them.
//!
//! Pairs (token, choice) are sorted by expert, so that an expert's weights are read once for all its tokens. A task is one
//! expert, some of its panels and some of its rows. The expert that every token takes is a layer of its own beside the others: its
//! rows are the tokens as they are, and its tasks are among those of the same phase.
//!
//! ```text
//! starts: | expert 0 | expert 1   | …          rows: x of each pair, in sorted order
//! places: pair ─▶ sorted row                   inner: silu(gate) * up ─▶ rows: down ─▶ out[t] = Σ weight · rows[place] + gate · shared
//! ```

use super::ahead::Key;
use super::by_expert::{Groups, Share, Tasks, Terms, linear_part, sort_by_expert, weighted_sum};
use super::by_type::by_weight_type;
use super::gemm::{Input, InputRows, Room};
use super::norm;
use super::pool::Phase;
use super::processor::Cpu;
use super::rounded::{RoundRows, Rounding, round_rows};
use super::shared::{Shared, SharedMut};
use super::simd::{Isa, Simd, math, simd_entry};
use super::tile::{self, Job, MAX_ROWS, PanelFormat, Sums};
use crate::operands::moe::{MoeScratch, SharedExpert};
use crate::panel::PANEL;
use crate::{BiasedGlu, Experts, MatrixBatch, Tensor};
use std::mem::MaybeUninit;
use std::ops::Range;

/// Rows that the layer reads.
#[derive(Clone, Copy)]
pub(crate) struct Tokens<'a> {
    pub x: Shared<'a, f32>,
    pub count: usize,
}

/// Where a token's sum goes on to: it is added to the stream, and the norm of that is written.
pub(crate) struct Then<'a> {
    /// `[T, H]`
    pub residual: SharedMut<f32>,
    pub weight: &'a [f32],
    pub eps: f32,
    /// `[T, H]`: x, or other memory.
    pub normed: SharedMut<f32>,
}

/// Gives the shared expert back if it is left to do: where its rows find no room, or its panels are not those of gate and up. `then` is done
/// unless it is.
///
/// # Safety
/// Until this returns nobody else reads or writes x and what `then` writes.
pub(crate) unsafe fn run<'s>(
    cpu: &Cpu,
    x: Tokens,
    experts: &Experts,
    [ids, weights]: [&Tensor; 2],
    scratch: &mut MoeScratch,
    shared: Option<SharedExpert<'s>>,
    (out, then): (&mut Tensor, Option<Then>),
) -> Option<SharedExpert<'s>> {
    let (h, k) = (experts.hidden(), ids.row_len());
    let (num_tokens, num_pairs) = (x.count, ids.len());
    if num_pairs == 0 {
        return shared;
    }
    let MoeScratch { rows, inner, places, starts, .. } = scratch;
    let places = &mut places.as_i32_mut()[..num_pairs];
    let (starts, used) = starts.as_i32_mut().split_at_mut(experts.len() + 1);
    sort_by_expert(ids.as_i32(), places, starts);
    let (places, groups) = (&*places, Groups::new(starts, used));
    // Down writes when x has been read: the same memory.
    let sorted = SharedMut::new(rows.as_words_mut());
    let routed = Layer {
        gate_up: &experts.gate_up,
        down: &experts.down,
        stacked: false,
        groups,
        x: Source::Entered(Rows::new(cpu, &experts.gate_up, sorted, num_pairs)),
        inner: Rows::new(cpu, &experts.down, SharedMut::new(inner.as_words_mut()), num_pairs),
        out: sorted.floats().first(num_pairs * h),
        glu: experts.glu.as_ref(),
    };
    let gates = shared.as_ref().and_then(|shared| shared.gate).map(Tensor::as_f32);
    let (mut shared, mut words, all_rows) = (shared, cpu.scratch(), [0, num_tokens as i32]);
    let beside = shared.as_mut().and_then(|shared| Layer::of_shared(cpu, x, shared, &mut words, &all_rows));
    let is_left = beside.is_none() && shared.is_some();
    let step = Step {
        cpu,
        x: x.x,
        places,
        weights: weights.as_f32(),
        bias: experts.glu.as_ref().map(|glu| (glu.down_bias.as_f32(), ids.as_i32())),
        gates,
        out: SharedMut::new(out.as_f32_mut()),
        sizes: [h, k],
        layers: [beside, Some(routed)],
        then: then.filter(|_| !is_left),
    };
    step.run(num_tokens);
    if step.layers[0].is_some() { None } else { shared }
}

/// All that tasks need.
struct Step<'a> {
    cpu: &'a Cpu,
    x: Shared<'a, f32>,
    places: &'a [i32],
    weights: &'a [f32],
    /// Of down `[E, H]`, where there is one, and the expert of each pair.
    bias: Option<(&'a [f32], &'a [i32])>,
    /// Of the shared expert, one for each token, where it has any.
    gates: Option<&'a [f32]>,
    out: SharedMut<f32>,
    /// H and k.
    sizes: [usize; 2],
    /// The shared expert, if there is one that fits in, and the others.
    layers: [Option<Layer<'a>>; 2],
    then: Option<Then<'a>>,
}

impl Step<'_> {
    fn run(&self, num_tokens: usize) {
        let [h, k] = self.sizes;
        let [ups, downs] = [Side::Up, Side::Down].map(|side| self.tasks(side));
        let count = |tasks: &[Tasks; 2]| tasks[0].count() + tasks[1].count();
        let per_block = self.cpu.per_block(num_tokens, h * k);
        let blocks = num_tokens.div_ceil(per_block);
        let tokens = |block: usize| block * per_block..num_tokens.min((block + 1) * per_block);
        // What is little is done before and after: there is nothing to wait for.
        let small = blocks == 1;
        if small {
            tokens(0).for_each(|token| self.enter(token));
        }
        let blocks = if small { 0 } else { blocks };
        let experts = self.layers[1].as_ref().expect("there are experts");
        let phase = |tasks: &[Tasks; 2], weights: &MatrixBatch| Phase {
            num_tasks: count(tasks),
            reads: Some(Key::of(weights.as_bytes())),
        };
        self.cpu.pool.run_phases(
            &[blocks.into(), phase(&ups, experts.gate_up), phase(&downs, experts.down), blocks.into()],
            &|phase, index, _| match phase {
                0 => tokens(index).for_each(|token| self.enter(token)),
                1 => self.task(Side::Up, &ups, index),
                2 => self.task(Side::Down, &downs, index),
                _ => tokens(index).for_each(|token| self.sum(token)),
            },
        );
        if small {
            tokens(0).for_each(|token| self.sum(token));
        }
    }

    fn tasks(&self, side: Side) -> [Tasks; 2] {
        self.layers.each_ref().map(|layer| layer.as_ref().map_or(Tasks::NONE, |layer| layer.tasks(side)))
    }

    fn task(&self, side: Side, tasks: &[Tasks; 2], index: usize) {
        let counts = tasks.each_ref().map(Tasks::count);
        let (which, index) = place(counts, self.cpu.pool.num_workers(), index);
        let layer = self.layers[which].as_ref().expect("a layer with tasks is there");
        let Some(part) = tasks[which].part(&layer.groups, index) else { return };
        match side {
            Side::Up => up_part(self.cpu.isa, layer, &part),
            Side::Down => layer.down_part(self.cpu, &part),
        }
    }

    /// Puts a token's row of x where the layers read it.
    fn enter(&self, token: usize) {
        let [h, k] = self.sizes;
        let x = &self.x.from(token * h)[..h];
        let places = &self.places[token * k..(token + 1) * k];
        if let Some(Layer { x: Source::Entered(rows), .. }) = &self.layers[0] {
            rows.enter(self.cpu, x, &[token as i32]);
        }
        if let Some(Layer { x: Source::Entered(rows), .. }) = &self.layers[1] {
            rows.enter(self.cpu, x, places);
        }
    }

    /// Sums what became of a token, and goes on with it.
    fn sum(&self, token: usize) {
        let [h, k] = self.sizes;
        let pairs = token * k..(token + 1) * k;
        // SAFETY: down is done, so that nobody writes its rows; a row of `out` is of one token.
        let ([shared, routed], out) = unsafe {
            let rows = self.layers.each_ref().map(|layer| layer.as_ref().map(|layer| layer.out.reader()));
            (rows, self.out.slice(token * h, h))
        };
        let terms = Terms {
            rows: routed.expect("there are experts").from(0),
            places: &self.places[pairs.clone()],
            weights: &self.weights[pairs.clone()],
            bias: self.bias.map(|(bias, ids)| (bias, &ids[pairs])),
            shared: shared.map(|rows| &rows.from(token * h)[..h]),
            gate: self.gates.map(|gates| gates[token]),
        };
        weighted_sum(self.cpu.isa, &terms, out);
        if let Some(Then { residual, weight, eps, normed }) = &self.then {
            // SAFETY: rows of this token; x was read in phases that have ended.
            let (residual, normed) = unsafe { (residual.slice(token * h, h), normed.slice(token * h, h)) };
            norm::add_rms_norm(self.cpu.isa, residual, out, weight, *eps, normed);
        }
    }
}

/// The layer of a task, 0 for the shared expert, and which of the layer's it is; `shared` and `routed` are how many there are. Each worker's
/// stretch begins with its part of the shared expert's: it may have been asked for before it was known which others were chosen.
fn place([shared, routed]: [usize; 2], num_workers: usize, index: usize) -> (usize, usize) {
    // With few of the others a stretch might have to end within the shared expert's.
    if shared == 0 || routed < 2 * num_workers {
        return if index < shared { (0, index) } else { (1, index - shared) };
    }
    let worker = index * num_workers / (shared + routed);
    let first = |worker: usize, count: usize| (worker * count).div_ceil(num_workers);
    let [start, own, next] =
        [first(worker, shared + routed), first(worker, shared), first(worker + 1, shared)];
    match own + (index - start) {
        shared if shared < next => (0, shared),
        _ => (1, index - next),
    }
}

/// Rows of activations as a product wants them, that tasks write and others read.
#[derive(Clone, Copy)]
struct Rows {
    words: SharedMut<u32>,
    /// None: floats.
    rounding: Option<Rounding>,
    k: usize,
}

impl Rows {
    /// The first so many rows that `words` has room for.
    fn new(cpu: &Cpu, weights: &MatrixBatch, words: SharedMut<u32>, count: usize) -> Self {
        let mut rows = Self { words, rounding: Rounding::beside(cpu, weights), k: weights.k() };
        rows.words = words.first(count * rows.row());
        rows
    }

    /// Words from one row to the next.
    fn row(&self) -> usize {
        self.rounding.map_or(self.k, |rounding| rounding.row())
    }

    /// Writes a row to some places.
    fn enter(&self, cpu: &Cpu, x: &[f32], places: &[i32]) {
        let (&first, others) = places.split_first().expect("a token has experts");
        // SAFETY: a place is one pair's, and nobody reads it yet.
        let place = |place: i32| unsafe { self.words.slice(place as usize * self.row(), self.row()) };
        let row = place(first);
        match &self.rounding {
            None => {
                for (to, x) in row.iter_mut().zip(x) {
                    *to = x.to_bits();
                }
            }
            Some(rounding) => {
                let (x, out) = (x.as_ptr(), row.as_mut_ptr());
                let job = RoundRows { x, x_row: 0, num_rows: 1, first: 0, terms: self.k, out };
                // SAFETY: a whole row of x, and of what it becomes.
                unsafe { round_rows(cpu.isa, rounding, &job) };
            }
        }
        for &other in others {
            place(other).copy_from_slice(row);
        }
    }

    /// # Safety
    /// The rows were written, and nobody writes them as long as the input is in use.
    unsafe fn input<'a>(&self) -> Input<'a> {
        // SAFETY: the caller's promise.
        unsafe {
            match self.rounding {
                None => Input::Floats { x: self.words.floats().reader(), row: self.k, member: 0 },
                Some(rounding) => Input::Rounded { words: self.words.reader(), rounding, member: 0 },
            }
        }
    }
}

/// What a layer reads.
enum Source<'a> {
    Entered(Rows),
    /// Rows of tokens.
    AsIs(Shared<'a, f32>),
}

#[derive(Clone, Copy)]
enum Side {
    Up,
    Down,
}

/// Experts of one size and their rows.
struct Layer<'a> {
    gate_up: &'a MatrixBatch,
    down: &'a MatrixBatch,
    /// Whether all panels of gate are before those of up; else they take turns.
    stacked: bool,
    groups: Groups<'a>,
    x: Source<'a>,
    /// silu(gate) * up.
    inner: Rows,
    out: SharedMut<f32>,
    /// Biases of gate and up, and what is made of both; `None`: silu(gate) * up.
    glu: Option<&'a BiasedGlu>,
}

impl<'a> Layer<'a> {
    /// None: gate ends within a panel, or rounded rows find no room.
    fn of_shared<'s: 'a>(
        cpu: &Cpu,
        x: Tokens<'a>,
        shared: &mut SharedExpert<'s>,
        words: &mut [u32],
        all_rows: &'a [i32; 2],
    ) -> Option<Self> {
        let (gate_up, down, num_tokens) = (shared.gate_up.as_batch(), shared.down.as_batch(), x.count);
        let fits = |weights: &MatrixBatch, words: usize| {
            Rounding::beside(cpu, weights).is_none_or(|rounding| num_tokens * rounding.row() <= words)
        };
        let inner = shared.inner.as_words_mut();
        if !down.k().is_multiple_of(PANEL) || !fits(gate_up, words.len()) || !fits(down, inner.len()) {
            return None;
        }
        Some(Self {
            gate_up,
            down,
            stacked: true,
            groups: Groups::of_one(all_rows),
            x: match Rounding::beside(cpu, gate_up) {
                None => Source::AsIs(x.x),
                Some(_) => Source::Entered(Rows::new(cpu, gate_up, SharedMut::new(words), num_tokens)),
            },
            inner: Rows::new(cpu, down, SharedMut::new(inner), num_tokens),
            out: SharedMut::new(shared.out.as_f32_mut()),
            glu: None,
        })
    }

    fn tasks(&self, side: Side) -> Tasks {
        match side {
            Side::Up => self.groups.tasks(self.gate_up, 2),
            Side::Down => self.groups.tasks(self.down, 1),
        }
    }

    /// The index of a panel among all of its batch.
    fn panel(&self, expert: usize, unit: usize, side: usize) -> usize {
        let panels = self.gate_up.panels_per_member();
        expert * panels + if self.stacked { side * panels / 2 + unit } else { 2 * unit + side }
    }

    /// `out[r] = inner[r] · down of the row's expert`
    fn down_part(&self, cpu: &Cpu, part: &Share) {
        // SAFETY: tasks of the phase before wrote it, and nobody does in this one.
        let x = unsafe { self.inner.input() };
        linear_part(cpu.isa, x, self.down, part, self.out);
    }
}

/// Units, each a panel of gate and one of up, that share packed rows.
const UNITS: usize = 2;
/// Room for their sums with few rows and with many; pages of a stack are touched whether they are used or not.
const FEW_SUMS: usize = 2 * UNITS * tile::ONE_TILE * PANEL;
const MANY_SUMS: usize = 2 * UNITS * MAX_ROWS * PANEL;

/// `inner[r] = silu(x[r] · gate) * (x[r] · up)`, gate and up of the row's expert.
fn up_part(isa: Isa, layer: &Layer, part: &Share) {
    let x = match &layer.x {
        // SAFETY: tasks of the phase before wrote it, and nobody does in this one.
        Source::Entered(rows) => unsafe { rows.input() },
        Source::AsIs(x) => Input::Floats { x: *x, row: layer.gate_up.k(), member: 0 },
    };
    match part.rows.len() {
        ..=tile::ONE_TILE => up_part_with::<FEW_SUMS>(isa, layer, &x, part),
        _ => up_part_with::<MANY_SUMS>(isa, layer, &x, part),
    }
}

/// With room for so many sums, on a stack of its own.
#[inline(never)]
fn up_part_with<const NUM_SUMS: usize>(isa: Isa, layer: &Layer, x: &Input, part: &Share) {
    let sums = &mut [MaybeUninit::uninit(); NUM_SUMS];
    by_weight_type!(layer.gate_up.stored_as(), x.rounded_to(), up_part_of(isa, layer, x, part, sums));
}

simd_entry! {
    fn up_part_of<W: PanelFormat>(layer: &Layer<'_>, x: &Input<'_>, part: &Share, sums: &mut [MaybeUninit<f32>]) = up_part_body
}

#[inline(always)]
fn up_part_body<S: Simd, W: PanelFormat>(
    s: S,
    layer: &Layer<'_>,
    x: &Input<'_>,
    part: &Share,
    sums: &mut [MaybeUninit<f32>],
) {
    let mut room = Room::new();
    let rows = InputRows::of(x, 0, part.rows.start);
    rows.check(part.rows.len(), layer.gate_up.k());
    // Those of one panel.
    let num_sums = part.rows.len() * PANEL;
    let sums = &mut sums[..2 * UNITS * num_sums];
    for first in part.units.clone().step_by(UNITS) {
        let units = first..part.units.end.min(first + UNITS);
        products::<S, W>(s, layer, part, (rows, units.clone()), sums, &mut room);
        for (unit, sums) in units.zip(sums.chunks_exact_mut(2 * num_sums)) {
            gate(s, layer, [part.expert, unit], part.rows.clone(), sums);
        }
    }
}

/// Rows of the task times the panels of some units, the sums of one after those of the other.
#[inline(always)]
fn products<S: Simd, W: PanelFormat>(
    s: S,
    layer: &Layer<'_>,
    part: &Share,
    (x, units): (InputRows<'_>, Range<usize>),
    sums: &mut [MaybeUninit<f32>],
    room: &mut Room,
) {
    let (k, num_rows) = (layer.gate_up.k(), part.rows.len());
    let (panel_bytes, panels) = (layer.gate_up.panel_bytes(), layer.gate_up.as_bytes());
    let k_block = tile::k_block_of::<W>(num_rows);
    for k_start in (0..k).step_by(k_block) {
        let k_len = k_block.min(k - k_start);
        // SAFETY: `up_part_body` checked the rows, and there are at most MAX_ROWS.
        let x = unsafe { room.block::<S, W>(s, x, num_rows, [k_start, k_len]) };
        let count = 2 * units.len();
        let panel = |index: usize| layer.panel(part.expert, units.start + index / 2, index % 2);
        for (index, sums) in (0..count).zip(sums.chunks_exact_mut(num_rows * PANEL)) {
            let lines = &panels[panel(index) * panel_bytes..][..panel_bytes][W::offset(k_start)..];
            let start = sums.as_mut_ptr().cast();
            let sums = Sums { start, row: PANEL, hi: 0, fresh: k_start == 0 };
            // SAFETY: a whole panel, whole rows of x, and as many rows of sums.
            let mut job = unsafe { Job::new(num_rows, lines.as_ptr(), x, k_len, sums) };
            if k > k_block {
                // Blocks that follow each other in memory do not do so here.
                let (panel, k) = match index + 1 < count {
                    true => (panel(index + 1), k_start),
                    false if k_start + k_len == k => (panel(count), 0),
                    false => (panel(0), k_start + k_block),
                };
                job = job.before(panels.as_ptr().wrapping_add(panel * panel_bytes + W::offset(k)));
            }
            W::panel(s, &job);
        }
    }
}

/// What a unit's sums, rows of gate and then rows of up, make of its columns.
#[inline(always)]
fn gate<S: Simd>(
    s: S,
    layer: &Layer<'_>,
    [expert, unit]: [usize; 2],
    rows: Range<usize>,
    sums: &mut [MaybeUninit<f32>],
) {
    let (inner, num_rows) = (&layer.inner, rows.len());
    let columns = (inner.k - unit * PANEL).min(PANEL);
    let (gates, ups) = sums.split_at_mut(num_rows * PANEL);
    let ups = ups.as_chunks::<PANEL>().0;
    for (i, (gate, up)) in gates.as_chunks_mut::<PANEL>().0.iter_mut().zip(ups).enumerate() {
        // SAFETY: as many elements, which `products` wrote.
        let (gate, up) =
            unsafe { (&mut *gate.as_mut_ptr().cast::<[f32; PANEL]>(), &*up.as_ptr().cast::<[f32; PANEL]>()) };
        for c in (0..PANEL).step_by(S::LANES) {
            let both = [s.load_slice(&gate[c..]), s.load_slice(&up[c..])];
            let product = match layer.glu {
                None => s.mul(math::silu(s, both[0]), both[1]),
                Some(glu) => {
                    // The turns of biases are those of panels.
                    let bias = glu.gate_up_bias.as_f32();
                    let [gate, up] = [0, 1].map(|side| layer.panel(expert, unit, side) * PANEL + c);
                    let both = [
                        s.add(both[0], s.load_slice(&bias[gate..])),
                        s.add(both[1], s.load_slice(&bias[up..])),
                    ];
                    math::clamped_glu(s, both, [glu.alpha, glu.limit])
                }
            };
            s.store_slice(&mut gate[c..], product);
        }
        if inner.rounding.is_none() {
            // SAFETY: this task's own rows and columns.
            let out =
                unsafe { inner.words.floats().slice((rows.start + i) * inner.k + unit * PANEL, columns) };
            out.copy_from_slice(&gate[..columns]);
        }
    }
    if let Some(rounding) = &inner.rounding {
        let (x, out) = (gates.as_ptr().cast(), inner.words.at(rows.start * rounding.row()));
        let job = RoundRows { x, x_row: PANEL, num_rows, first: unit * PANEL, terms: columns, out };
        // SAFETY: rows that were written above; this task's own rows and columns.
        unsafe { round_rows(S::ISA, rounding, &job) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stretch_begins_with_its_part_of_the_shared_experts_tasks() {
        for num_workers in [1, 2, 3, 8] {
            for [shared, routed] in [[0, 9], [5, 3], [16, 64], [7, 100], [1, 16], [40, 17]] {
                let all: Vec<(usize, usize)> =
                    (0..shared + routed).map(|index| place([shared, routed], num_workers, index)).collect();
                let mut sorted = all.clone();
                sorted.sort_unstable();
                let expected = (0..shared).map(|i| (0, i)).chain((0..routed).map(|i| (1, i)));
                assert!(sorted.into_iter().eq(expected), "{shared} and {routed} by {num_workers}");
                if routed >= 2 * num_workers {
                    for worker in 0..num_workers {
                        let start = |worker: usize| (worker * (shared + routed)).div_ceil(num_workers);
                        let stretch = &all[start(worker)..start(worker + 1)];
                        assert!(stretch.is_sorted(), "{shared} and {routed} by {num_workers}: {stretch:?}");
                        let own = stretch.iter().filter(|task| task.0 == 0).count();
                        assert!(own.abs_diff(shared / num_workers) <= 1, "{own} of {shared}");
                    }
                }
            }
        }
    }
}
