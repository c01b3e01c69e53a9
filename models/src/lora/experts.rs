//! Adapters of single experts: rows of one adapter go through the layer of experts in steps, those of each expert beside each other, and what the
//! adapter makes is added between them.
//!
//! ```text
//! x ─sort by expert─▶ · gate, up ─▶ + s · B (A x) ─▶ silu(gate) · up ─▶ · down ─▶ + s · B (A inner) ─▶ weighted sum of a token's experts
//! ```
//! The steps have the bits of the op that they stand for, so that an adapter of zeros changes nothing.

use super::adapter::{Adapter, Pair, values};
use super::spec::{AdapterSpec, ExpertModules, ExpertPart, Target};
use kernels::ops::{self, ExpertRowSizes, ExpertRows};
use kernels::{DType, Device, Experts, MatrixBatch, Tensor};

/// Rows of gate, and of up, that take turns in `Experts::gate_up`.
const TURN: usize = 32;

/// Of one layer of a slot.
pub(super) struct ExpertRooms {
    gate: ExpertRoom,
    up: ExpertRoom,
    down: ExpertRoom,
}

/// Of one matrix of each expert.
struct ExpertRoom {
    /// `[E, r, k]`
    a: MatrixBatch,
    /// `[E, n, r]`; n of gate and up is filled up to whole turns.
    b: MatrixBatch,
    /// `None`: the adapter leaves these matrices as they are.
    scale: Option<f32>,
}

/// What a run of rows is computed in; a pair is a token and one of its experts.
pub(super) struct ExpertBuffers {
    rows: ExpertRows,
    /// Of the run's tokens `[T, k]`.
    pub ids: Tensor,
    pub weights: Tensor,
    /// Of each pair what its expert reads `[P, H]`, later what it made.
    entered: Tensor,
    /// Gate and up `[P, 2 I']`, I' being I filled up to whole turns.
    both: Tensor,
    /// `[P, I']`
    inner: Tensor,
    /// `[P, I]`, where that is less.
    narrow: Option<Tensor>,
    /// Times A, and times B.
    low: Tensor,
    delta: Tensor,
}

fn filled_up(modules: &ExpertModules) -> usize {
    modules.inner.next_multiple_of(TURN)
}

fn row_sizes(modules: &ExpertModules, num_rows: usize, max_rank: usize) -> ExpertRowSizes {
    let ExpertModules { count, top_k, hidden, inner, .. } = *modules;
    ExpertRowSizes { max_tokens: num_rows, top_k, experts: count, max_width: hidden.max(inner).max(max_rank) }
}

/// Of entered, both, inner, narrow, low and delta; no narrow is 0.
fn widths(modules: &ExpertModules, max_rank: usize) -> [usize; 6] {
    let (hidden, inner) = (modules.hidden, filled_up(modules));
    let narrow = if inner == modules.inner { 0 } else { modules.inner };
    [hidden, 2 * inner, inner, narrow, max_rank, hidden.max(inner)]
}

impl ExpertBuffers {
    /// At most.
    pub const NUM_TENSORS: u64 = 8 + ExpertRows::NUM_TENSORS;

    pub fn new(device: &Device, modules: &ExpertModules, num_rows: usize, max_rank: usize) -> Self {
        let pairs = num_rows * modules.top_k;
        let floats = |width: usize| Tensor::zeros(device, DType::F32, &[pairs, width]);
        let [entered, both, inner, narrow, low, delta] = widths(modules, max_rank);
        Self {
            rows: ExpertRows::new(device, row_sizes(modules, num_rows, max_rank)),
            ids: Tensor::zeros(device, DType::I32, &[num_rows, modules.top_k]),
            weights: Tensor::zeros(device, DType::F32, &[num_rows, modules.top_k]),
            entered: floats(entered),
            both: floats(both),
            inner: floats(inner),
            narrow: (narrow > 0).then(|| floats(narrow)),
            low: floats(low),
            delta: floats(delta),
        }
    }

    /// What `new` allocates.
    pub fn bytes(modules: &ExpertModules, num_rows: usize, max_rank: usize) -> u64 {
        let pairs = num_rows * modules.top_k;
        let floats = pairs * widths(modules, max_rank).iter().sum::<usize>() + 2 * pairs;
        ExpertRows::bytes(row_sizes(modules, num_rows, max_rank)) + 4 * floats as u64
    }
}

/// `[count, n, k]` of A and B of gate, up and down, at the largest rank.
pub(super) fn room_sizes(modules: &ExpertModules, max_rank: usize) -> [[[usize; 3]; 2]; 3] {
    let (count, hidden, r) = (modules.count, modules.hidden, max_rank);
    let side = [[count, r, hidden], [count, filled_up(modules), r]];
    [side, side, [[count, r, modules.inner], [count, hidden, r]]]
}

impl ExpertRooms {
    pub fn new(device: &Device, modules: &ExpertModules, max_rank: usize) -> Self {
        let [gate, up, down] = room_sizes(modules, max_rank).map(|sizes| {
            let [a, b] = sizes.map(|size| MatrixBatch::with_room(device, DType::F32, size));
            ExpertRoom { a, b, scale: None }
        });
        Self { gate, up, down }
    }

    fn rooms(&self) -> [&ExpertRoom; 3] {
        [&self.gate, &self.up, &self.down]
    }

    pub fn changes_something(&self) -> bool {
        self.rooms().iter().any(|room| room.scale.is_some())
    }

    pub fn fill(&mut self, adapter: &Adapter, layer: usize, spec: &AdapterSpec, float: DType) {
        let modules = spec.experts.as_ref().expect("a model with experts");
        let sides = filled_up(modules);
        for (room, part, n) in [
            (&mut self.gate, ExpertPart::Gate, sides),
            (&mut self.up, ExpertPart::Up, sides),
            (&mut self.down, ExpertPart::Down, modules.hidden),
        ] {
            let pair = |index| adapter.pairs.get(&(layer, Target::Expert(part, index as u32)));
            let pairs: Vec<Option<&Pair>> = (0..modules.count).map(pair).collect();
            room.fill(adapter, &pairs, n, float);
        }
    }

    /// What the experts make of rows `x` `[T, H]`, which are all of this adapter, with ids and weights in `b`: `out` `[T, H]`.
    pub fn run(&self, x: &Tensor, experts: &Experts, b: &mut ExpertBuffers, out: &mut Tensor) {
        let ExpertBuffers { rows, ids, weights, entered, both, inner, narrow, low, delta } = b;
        let (pairs, hidden, sides) = (ids.len(), experts.hidden(), experts.gate_up().n() / 2);
        let turns = sides / TURN;
        ops::sort_by_expert(ids, rows);
        entered.reshape(&[pairs, hidden]);
        ops::enter_experts(x, rows, entered);
        both.reshape(&[pairs, 2 * sides]);
        ops::expert_linear(entered, experts.gate_up(), rows, both);
        both.reshape(&[pairs, turns, 2 * TURN]);
        for (room, offset) in [(&self.gate, 0), (&self.up, TURN)] {
            let Some(scale) = room.scale else { continue };
            room.run(entered, rows, low, delta);
            delta.reshape(&[pairs, turns, TURN]);
            ops::add_scaled(delta, scale, both, offset);
        }
        both.reshape(&[pairs * turns, 2 * TURN]);
        inner.reshape(&[pairs * turns, TURN]);
        ops::silu_mul(both, inner);
        inner.reshape(&[pairs, sides]);
        let inner = match narrow {
            None => &*inner,
            Some(narrow) => {
                narrow.reshape(&[pairs, experts.inner()]);
                ops::copy_slice(inner, 0, narrow, 0, experts.inner());
                &*narrow
            }
        };
        ops::expert_linear(inner, experts.down(), rows, entered);
        if let Some(scale) = self.down.scale {
            self.down.run(inner, rows, low, delta);
            ops::add_scaled(delta, scale, entered, 0);
        }
        ops::combine_experts(entered, weights, rows, out);
    }
}

impl ExpertRoom {
    /// `delta` `[P, N]` from `x` `[P, K]`, with the matrices of each row's expert.
    fn run(&self, x: &Tensor, rows: &mut ExpertRows, low: &mut Tensor, delta: &mut Tensor) {
        low.reshape(&[x.rows(), self.a.n()]);
        delta.reshape(&[x.rows(), self.b.n()]);
        ops::expert_linear(x, &self.a, rows, low);
        ops::expert_linear(low, &self.b, rows, delta);
    }

    /// A pair for each expert, or none: then it is zeros. All have one rank and one scale, as [`Adapter::read`] saw to.
    fn fill(&mut self, adapter: &Adapter, pairs: &[Option<&Pair>], n: usize, float: DType) {
        let Some(first) = pairs.iter().flatten().next() else {
            self.scale = None;
            return;
        };
        self.scale = Some(first.scale);
        let matrices = |half: usize| -> Vec<Option<_>> {
            pairs.iter().map(|pair| pair.map(|pair| adapter.matrices(pair)[half])).collect()
        };
        for (batch, half, rows) in [(&mut self.a, 0, first.rank), (&mut self.b, 1, n)] {
            let hosts = matrices(half);
            let width = hosts.iter().flatten().next().expect("there is one").shape[1];
            let kept = match hosts.iter().flatten().all(|host| host.dtype == float) {
                true => float,
                false => DType::F32,
            };
            let values: Vec<Option<Vec<f32>>> = hosts.iter().map(|host| host.as_ref().map(values)).collect();
            // Rows that fill up a turn are zeros.
            let value = |expert: usize, row: usize, k: usize| {
                let values = values[expert].as_deref().unwrap_or_default();
                values.get(row * width + k).copied().unwrap_or(0.0)
            };
            batch.refill_f32(kept, [pairs.len(), rows, width], &value);
        }
    }
}
