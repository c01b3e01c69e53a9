//! Launches of moe.cu: place, up, down, combine. How many rows an expert has is known on the device alone; the number of pairs for
//! each expert on average chooses a kernel, never the order of a sum.

use super::Cuda;
use super::compile::Source;
use super::driver::{Args, DevicePtr, Grid, Param};
use super::launch::{Instance, Kernel, grid};
use super::linear::{WGMMA_SHARED, WGMMA_TURNS_SHARED};
use crate::ops::MoeScratch;
use crate::{DType, Experts, MatrixBatch, Tensor, WeightType};

pub(super) const KERNEL: Kernel = Kernel {
    source: Source { name: "moe.cu", text: include_str!("moe.cu") },
    instances: &[
        Instance::new("moe_place", 32, 128),
        Instance::new("moe_few<bf16, 1, true>", 80, 8192),
        Instance::new("moe_few<bf16, 2, true>", 96, 16384),
        Instance::new("moe_few<bf16, 4, true>", 128, 32768),
        Instance::new("moe_few<bf16, 1, false>", 80, 4096),
        Instance::new("moe_few<bf16, 2, false>", 80, 8192),
        Instance::new("moe_few<bf16, 4, false>", 85, 16384),
        Instance::new("moe_few<f16, 1, true>", 80, 8192),
        Instance::new("moe_few<f16, 2, true>", 96, 16384),
        Instance::new("moe_few<f16, 4, true>", 128, 32768),
        Instance::new("moe_few<f16, 1, false>", 80, 4096),
        Instance::new("moe_few<f16, 2, false>", 80, 8192),
        Instance::new("moe_few<f16, 4, false>", 85, 16384),
        Instance::new("moe_many<bf16, true>", 168, 34816),
        Instance::new("moe_many<bf16, false>", 168, 34816),
        Instance::new("moe_many<f16, true>", 168, 34816),
        Instance::new("moe_many<f16, false>", 168, 34816),
        Instance::new("moe_few<q8, 1, true>", 128, 8192),
        Instance::new("moe_few<q8, 2, true>", 128, 16384),
        Instance::new("moe_few<q8, 4, true>", 128, 32768),
        Instance::new("moe_few<q8, 1, false>", 85, 4096),
        Instance::new("moe_few<q8, 2, false>", 85, 8192),
        Instance::new("moe_few<q8, 4, false>", 128, 16384),
        Instance::new("moe_few<q4, 1, true>", 128, 8192),
        Instance::new("moe_few<q4, 2, true>", 128, 16384),
        Instance::new("moe_few<q4, 4, true>", 128, 32768),
        Instance::new("moe_few<q4, 1, false>", 85, 4096),
        Instance::new("moe_few<q4, 2, false>", 85, 8192),
        Instance::new("moe_few<q4, 4, false>", 128, 16384),
        Instance::new("moe_few<q4z, 1, true>", 128, 8192),
        Instance::new("moe_few<q4z, 2, true>", 128, 16384),
        Instance::new("moe_few<q4z, 4, true>", 128, 32768),
        Instance::new("moe_few<q4z, 1, false>", 85, 4096),
        Instance::new("moe_few<q4z, 2, false>", 85, 8192),
        Instance::new("moe_few<q4z, 4, false>", 128, 16384),
        Instance::new("moe_many<q8, true>", 168, 23296),
        Instance::new("moe_many<q8, false>", 168, 23296),
        Instance::new("moe_many<q4, true>", 168, 17152),
        Instance::new("moe_many<q4, false>", 168, 17152),
        Instance::new("moe_many<q4z, true>", 168, 17920),
        Instance::new("moe_many<q4z, false>", 168, 18432),
        Instance::hopper("moe_wgmma<bf16, true>", 168, 1024),
        Instance::hopper("moe_wgmma<bf16, false>", 168, 1024),
        Instance::hopper("moe_wgmma<f16, true>", 168, 1024),
        Instance::hopper("moe_wgmma<f16, false>", 168, 1024),
        Instance::new("moe_f32<true>", 80, 0),
        Instance::new("moe_f32<false>", 64, 0),
        Instance::new("moe_combine<1>", 40, 0),
        Instance::new("moe_combine<4>", 40, 0),
    ],
};

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
}
// SAFETY: seven i32, as in moe.cu.
unsafe impl Param for MoeShape {}

/// Shapes were checked in `ops`. Ids come from `route`: that they are below E cannot be seen from here.
pub(crate) fn run(
    cuda: &Cuda,
    x: &Tensor,
    experts: &Experts,
    [ids, weights]: [&Tensor; 2],
    scratch: &mut MoeScratch,
    out: &mut Tensor,
) {
    let (num_tokens, top_k, hidden) = (ids.rows(), ids.row_len(), experts.hidden());
    if num_tokens == 0 {
        return;
    }
    assert_eq!([x.dtype(), weights.dtype(), out.dtype()], [DType::F32; 3], "moe: types");
    assert_eq!(ids.dtype(), DType::I32, "moe: type of the ids");
    let MoeScratch { rows, inner, places, starts, .. } = scratch;
    // The pairs of the rows are needed until `up` has read them, the rows themselves are written after that.
    let order = rows.pointer();

    let args = Args::new().pointer(ids.pointer()).value(ids.len() as i32);
    let args = args.pointer(starts.pointer()).pointer(places.pointer()).pointer(order);
    // SAFETY: T·k ids and places, E + 1 starts, and rows that are longer than an index each.
    unsafe { cuda.launch(&KERNEL, "moe_place", grid(experts.len(), 256), args) };

    let layer = |side: Side, weights: &MatrixBatch, n: usize, x: DevicePtr, out: DevicePtr| Layer {
        side,
        n,
        k: weights.k(),
        panels: weights.panels_per_member(),
        units: weights.units(),
        stored_as: weights.stored_as(),
        pointers: [x, weights.pointer(), starts.pointer(), order, out],
        experts: experts.len(),
        top_k,
        num_pairs: ids.len(),
    };
    layer(Side::Up, &experts.gate_up, experts.inner(), x.pointer(), inner.pointer()).launch(cuda);
    layer(Side::Down, &experts.down, hidden, inner.pointer(), rows.pointer()).launch(cuda);

    let vector = if hidden.is_multiple_of(4) { 4 } else { 1 };
    let args = Args::new().pointer(rows.pointer()).pointer(places.pointer()).pointer(weights.pointer());
    let args = args.value(top_k as i32).value(hidden as i32).pointer(out.pointer());
    // SAFETY: every pair has its row; out has T rows of H.
    unsafe { cuda.launch(&KERNEL, &format!("moe_combine<{vector}>"), grid(num_tokens, 256), args) };
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Up,
    Down,
}

/// One of the two products.
struct Layer {
    side: Side,
    n: usize,
    k: usize,
    panels: usize,
    units: usize,
    stored_as: WeightType,
    /// x, weights, starts, order, out
    pointers: [DevicePtr; 5],
    experts: usize,
    top_k: usize,
    num_pairs: usize,
}

impl Layer {
    fn launch(&self, cuda: &Cuda) {
        let Self { side, n, k, panels, units, stored_as, pointers, experts, top_k, num_pairs } = *self;
        let shape = MoeShape {
            experts: experts as i32,
            top_k: top_k as i32,
            n: n as i32,
            k: k as i32,
            panels: panels as i32,
            units: units as i32,
            pairs: i32::from(k.is_multiple_of(2)),
        };
        let up = side == Side::Up;
        let halves = if up { panels } else { 2 * panels };
        let few =
            |tiles: usize| (format!("moe_few<{}, {tiles}, {up}>", stored_as.cpp()), halves, 8 * tiles, 256);
        let (expression, blocks, rows_each, threads) = match (stored_as, num_pairs.div_ceil(experts)) {
            (WeightType::F32, _) => (format!("moe_f32<{up}>"), n.div_ceil(4), 8, 128),
            (_, ..=4) => few(1),
            (_, ..=8) => few(2),
            (_, ..=16) => few(4),
            (w, _) if cuda.uses_wgmma() && !w.is_quantised() => {
                let [panels_each, rows_each] = if up { [8, 64] } else { [4, 128] };
                let expression = format!("moe_wgmma<{}, {up}>", w.cpp());
                (expression, panels.div_ceil(panels_each), rows_each, 384)
            }
            (_, _) => (format!("moe_many<{}, {up}>", stored_as.cpp()), panels.div_ceil(4), 64, 256),
        };
        let shared = match (threads, side) {
            (384, Side::Up) => WGMMA_TURNS_SHARED,
            (384, Side::Down) => WGMMA_SHARED,
            _ => 0,
        };
        // Each expert that has rows has at most one block that is not full.
        let row_blocks = num_pairs / rows_each + experts.min(num_pairs);
        let [x, weights, starts, order, out] = pointers;
        let args = Args::new().pointer(x).pointer(weights).pointer(starts).pointer(order);
        let args = args.value(shape).pointer(out);
        let grid = Grid { blocks: [blocks as u32, row_blocks as u32, 1], threads: [threads, 1, 1], shared };
        // SAFETY: `moe_place` wrote `starts` and `order` before; the weights have `panels` panels of `units` units for each
        // expert, x rows of K and out T·k rows of N elements.
        unsafe { cuda.launch(&KERNEL, &expression, grid, args) };
    }
}
