//! Launches of latents.cu: two blocks for each token, one for its row of the cache and one for its queries.

use super::Cuda;
use super::compile::Source;
use super::driver::{Args, Grid, Param};
use super::launch::{Instance, Kernel};
use crate::operands::latents::LatentRows;
use crate::operands::rope::{RopeLayout, Rotation};
use crate::{DType, Index, Tensor};

const THREADS: u32 = 256;

pub(super) const KERNEL: Kernel = Kernel {
    source: Source { name: "latents.cu", text: include_str!("latents.cu") },
    instances: &[
        Instance::new("latent_rows<float, 1>", 40, 128),
        Instance::new("latent_rows<float, 4>", 48, 128),
        Instance::new("latent_rows<bf16, 1>", 40, 128),
        Instance::new("latent_rows<bf16, 4>", 48, 128),
        Instance::new("latent_rows<f16, 1>", 40, 128),
        Instance::new("latent_rows<f16, 4>", 48, 128),
    ],
};

/// As in latents.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct LatentShape {
    heads: i32,
    nope: i32,
    rank: i32,
    half: i32,
    halves: i32,
}
// SAFETY: five i32, as in latents.cu.
unsafe impl Param for LatentShape {}

/// Shapes, positions and slots were checked in `ops`.
pub(crate) fn prepare(cuda: &Cuda, rows: &LatentRows, rotation: &Rotation, slots: Index, cache: &Tensor) {
    let LatentRows { kv, norm, eps, q, absorbed, .. } = rows;
    let Rotation { table, positions, layout } = *rotation;
    let types = [&**kv, *norm, &**q, &**absorbed, &table.cos, &table.sin].map(Tensor::dtype);
    assert_eq!(types, [DType::F32; 6], "prepare_latents: types");
    if kv.is_empty() {
        return;
    }
    let (rank, half) = (norm.len(), table.cos.row_len());
    let heads = absorbed.row_len() / kv.row_len();
    let shape = LatentShape {
        heads: heads as i32,
        nope: (q.row_len() / heads - 2 * half) as i32,
        rank: rank as i32,
        half: half as i32,
        halves: i32::from(layout == RopeLayout::Half),
    };
    let vector = if rank.is_multiple_of(4) && (2 * half).is_multiple_of(4) { 4 } else { 1 };
    let expression = format!("latent_rows<{}, {vector}>", cache.dtype().cpp());
    let [positions, slots] = [positions, slots].map(|index| index.on_device(kv.device()));
    let args = Args::new().pointer(kv.pointer()).pointer(norm.pointer()).value(*eps).pointer(q.pointer());
    let args = args.pointer(absorbed.pointer()).value(shape).pointer(table.cos.pointer());
    let args = args.pointer(table.sin.pointer()).pointer(positions.pointer).pointer(slots.pointer);
    let grid = Grid { blocks: [kv.rows() as u32, 2, 1], threads: [THREADS, 1, 1], shared: 0 };
    // SAFETY: `ops` checked the rows of kv, q, absorbed and the cache against these widths, that positions are inside the tables and
    // slots inside the cache; in multiples of `vector` every row begins aligned.
    unsafe { cuda.launch(&KERNEL, &expression, grid, args.pointer(cache.pointer())) };
}
