//! Launches of rope.cu: one block for each token.

use super::Cuda;
use super::compile::Source;
use super::driver::{Args, Param};
use super::launch::{Instance, Kernel, grid};
use crate::cpu::rope::RopePlan;
use crate::operands::rope::{RopeLayout, RopeTable};
use crate::{DType, Index, Tensor};

pub(super) const KERNEL: Kernel = Kernel {
    source: Source { name: "rope.cu", text: include_str!("rope.cu") },
    instances: &[Instance::new("rope<true>", 40, 0), Instance::new("rope<false>", 40, 0)],
};

/// As in rope.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct RopeShape {
    row_len: i32,
    head_len: i32,
    first_head: i32,
    num_heads: i32,
    offset: i32,
    half: i32,
}
// SAFETY: six i32, as in rope.cu.
unsafe impl Param for RopeShape {}

pub(crate) fn rope(
    cuda: &Cuda,
    x: &mut Tensor,
    plan: &RopePlan,
    table: &RopeTable,
    (positions, layout): (Index, RopeLayout),
) {
    assert_eq!([x.dtype(), table.cos.dtype(), table.sin.dtype()], [DType::F32; 3], "rope: types");
    let half = table.cos.row_len();
    if x.is_empty() || plan.heads.is_empty() || half == 0 {
        return;
    }
    let shape = RopeShape {
        row_len: x.row_len() as i32,
        head_len: plan.head_len as i32,
        first_head: plan.heads.start as i32,
        num_heads: plan.heads.len() as i32,
        offset: plan.offset as i32,
        half: half as i32,
    };
    let expression = match layout {
        RopeLayout::Half => "rope<true>",
        RopeLayout::Interleaved => "rope<false>",
    };
    let positions = positions.on_device(x.device());
    let args = Args::new().pointer(x.pointer()).value(shape).pointer(table.cos.pointer());
    let args = args.pointer(table.sin.pointer()).pointer(positions.pointer);
    // SAFETY: `ops` checked that the pairs are inside the heads, the heads inside the rows, and positions inside the table.
    unsafe { cuda.launch(&KERNEL, expression, grid(x.rows(), 256), args) };
}
