//! One of the two products of a layer of experts: which kernel computes it, on which grid, with which arguments.

use super::Cuda;
use super::driver::{Args, Clusters, DevicePtr, Grid, Param};
use super::linear::{WGMMA_BLOCK, WGMMA_SHARED, pairs_of};
use super::moe_kernel::KERNEL;
use crate::operands::moe::SharedExpert;
use crate::panel::PANEL;
use crate::{Experts, WeightType};

/// As in moe.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct MoeShape {
    experts: i32,
    top_k: i32,
    n: i32,
    k: i32,
    panels: i32,
    units: i32,
    pairs: i32,
    unsorted: i32,
    alpha: f32,
    limit: f32,
}
// SAFETY: eight i32 and two floats, as in moe.cu.
unsafe impl Param for MoeShape {}

/// As in moe.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct SharedShape {
    blocks: i32,
    tokens: i32,
    n: i32,
    k: i32,
    units: i32,
    side_panels: i32,
    pairs: i32,
}
// SAFETY: seven i32, as in moe.cu.
unsafe impl Param for SharedShape {}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Up,
    Down,
}

/// One of the two products.
pub(super) struct Layer {
    pub side: Side,
    pub n: usize,
    pub k: usize,
    pub panels: usize,
    pub units: usize,
    pub stored_as: WeightType,
    /// x, weights, starts, order, out
    pub pointers: [DevicePtr; 5],
    pub experts: usize,
    pub top_k: usize,
    pub num_pairs: usize,
    pub is_sorted: bool,
    /// Of `moe_few`, if that is the kernel.
    pub tiles: Option<usize>,
    /// For `moe_wgmma`.
    pub is_packed: bool,
    pub bias: Bias,
    pub beside: Option<Beside>,
}

/// What is added to a product, and of gate and up the numbers of what is made of them. Null: nothing, and silu.
pub(super) struct Bias {
    pointer: DevicePtr,
    alpha: f32,
    limit: f32,
}

impl Bias {
    pub const NONE: Self = Self { pointer: DevicePtr::NULL, alpha: 0.0, limit: 0.0 };

    pub fn of(experts: &Experts, side: Side) -> Self {
        let Some(glu) = &experts.glu else { return Self::NONE };
        assert!(experts.stored_as() != WeightType::Int4Zero, "moe: biases beside levels with zeros");
        let bias = if side == Side::Up { &glu.gate_up_bias } else { &glu.down_bias };
        Self { pointer: bias.pointer(), alpha: glu.alpha, limit: glu.limit }
    }
}

/// The shared expert's part of a product.
pub(super) struct Beside {
    /// All but `blocks`, which is for the launch to say.
    shape: SharedShape,
    /// x, weights, out
    pointers: [DevicePtr; 3],
}

impl Beside {
    /// No blocks.
    const NONE: Self = Self {
        shape: SharedShape { blocks: 0, tokens: 0, n: 0, k: 0, units: 0, side_panels: 0, pairs: 0 },
        pointers: [DevicePtr::NULL; 3],
    };

    pub fn of(shared: &SharedExpert, side: Side, x: DevicePtr, num_tokens: usize) -> Self {
        let (weights, n, [x, out]) = match side {
            Side::Up => (shared.gate_up, shared.down.k(), [x, shared.inner.pointer()]),
            Side::Down => (shared.down, shared.down.n(), [shared.inner.pointer(), shared.out.pointer()]),
        };
        let shape = SharedShape {
            blocks: 0,
            tokens: num_tokens as i32,
            n: n as i32,
            k: weights.k() as i32,
            units: weights.as_batch().units() as i32,
            side_panels: (n / PANEL) as i32,
            pairs: pairs_of(weights.k()),
        };
        Self { shape, pointers: [x, weights.as_batch().pointer(), out] }
    }

    /// On a grid that is so wide, with the blocks that its outputs need.
    fn on(self, width: usize) -> Self {
        let blocks = 2 * (self.shape.n as usize).div_ceil(PANEL);
        Self { shape: SharedShape { blocks: blocks.div_ceil(width) as i32, ..self.shape }, ..self }
    }
}

/// Blocks of a cluster of `moe_wgmma`, along the panels: the more share tokens, the less each fetches, where no more blocks are without work.
fn wgmma_cluster(blocks: usize) -> usize {
    if blocks.next_multiple_of(8) == blocks.next_multiple_of(4) { 8 } else { 4 }
}

impl Layer {
    pub fn launch(self, cuda: &Cuda) {
        let Self { side, n, k, panels, units, stored_as, pointers, experts, top_k, num_pairs, .. } = self;
        let Self { is_sorted, tiles, is_packed, bias, beside, .. } = self;
        let shape = MoeShape {
            experts: experts as i32,
            top_k: top_k as i32,
            n: n as i32,
            k: k as i32,
            panels: panels as i32,
            units: units as i32,
            pairs: pairs_of(k),
            unsorted: if is_sorted { 0 } else { num_pairs as i32 },
            alpha: bias.alpha,
            limit: bias.limit,
        };
        let up = side == Side::Up;
        let (expression, blocks, rows_each, threads) = match (stored_as, tiles) {
            (WeightType::F32, _) => (format!("moe_f32<{up}>"), n.div_ceil(4), 8, 128),
            (w, Some(tiles)) => {
                let halves = if up { panels } else { 2 * panels };
                (format!("moe_few<{}, {tiles}, {up}>", w.cpp()), halves, 8 * tiles, 256)
            }
            (w, None) if is_packed => {
                let (blocks, w) = (panels.div_ceil(4), w.cpp());
                let expression = format!("moe_wgmma<{w}, {up}, {}>", wgmma_cluster(blocks));
                (expression, blocks, WGMMA_BLOCK[1], 384)
            }
            (w, None) => {
                // Wider blocks cost less a row, if they are full.
                let rows_each = if num_pairs > 64 * experts { 128 } else { 64 };
                let expression = format!("moe_many<{}, {rows_each}, {up}>", w.cpp());
                (expression, panels.div_ceil(4), rows_each, 256)
            }
        };
        // Each expert that has rows has at most one block that is not full. Not sorted, each pair has a block, which may have no work.
        let mut row_blocks =
            if is_sorted { num_pairs / rows_each + experts.min(num_pairs) } else { num_pairs };
        let [x, weights, starts, order, out] = pointers;
        if is_packed {
            let cluster = wgmma_cluster(blocks);
            let blocks = [blocks.next_multiple_of(cluster) as u32, row_blocks as u32, 1];
            let grid = Grid { blocks, threads: [threads, 1, 1], shared: WGMMA_SHARED };
            let clusters = Clusters { grid, blocks: [cluster as u32, 1, 1] };
            let args = Args::new().pointer(x).pointer(weights).pointer(starts).pointer(bias.pointer);
            let args = args.value(shape).pointer(out);
            // SAFETY: `moe_place` wrote `starts` before, and `moe_pack` or `moe_spread` and the first product rows of K in the order of tokens.cuh; weights and out as below.
            unsafe { cuda.launch_clusters(&KERNEL, &expression, clusters, args) };
            return;
        }
        let mut args = Args::new().pointer(x).pointer(weights).pointer(starts).pointer(order);
        args = args.pointer(bias.pointer).value(shape).pointer(out);
        if stored_as != WeightType::F32 && tiles.is_some() {
            let Beside { shape, pointers: [x, weights, out] } = beside.unwrap_or(Beside::NONE).on(blocks);
            row_blocks += shape.blocks as usize;
            args = args.pointer(x).pointer(weights).value(shape).pointer(out);
        }
        let grid =
            Grid { blocks: [blocks as u32, row_blocks as u32, 1], threads: [threads, 1, 1], shared: 0 };
        // SAFETY: `moe_place` wrote `starts` and `order` before, or `order` is the ids of up to 32 pairs; the weights have `panels` panels of `units` units for each
        // expert, x rows of K and out T·k rows of N elements; so have the shared expert's of its own, for T rows.
        unsafe { cuda.launch(&KERNEL, &expression, grid, args) };
    }
}
