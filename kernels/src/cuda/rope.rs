//! Launches of rope.cu: one block for each token.

use super::Cuda;
use super::compile::Source;
use super::driver::{Args, Param};
use super::launch::{Instance, Kernel, grid};
use crate::cpu::rope::RopePlan;
use crate::operands::rope::{RopeLayout, RopeSections, RopeTable};
use crate::{DType, Index, Tensor};

pub(super) const KERNEL: Kernel = Kernel {
    source: Source { name: "rope.cu", text: include_str!("rope.cu") },
    instances: &[
        Instance::new("rope<true>", 40, 0),
        Instance::new("rope<false>", 40, 0),
        Instance::new("rope_sections", 40, 0),
    ],
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

/// As in rope.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct Sections {
    sizes: [i32; 3],
    interleaved: i32,
}
// SAFETY: four i32, as in rope.cu.
unsafe impl Param for Sections {}

/// All heads, from their first dimension on.
pub(crate) fn rope_sections(
    cuda: &Cuda,
    x: &mut Tensor,
    plan: &RopePlan,
    table: &RopeTable,
    (positions, sections): (Index, &RopeSections),
) {
    assert_eq!([x.dtype(), table.cos.dtype(), table.sin.dtype()], [DType::F32; 3], "rope: types");
    let half = table.cos.row_len();
    if x.is_empty() || half == 0 {
        return;
    }
    let shape = shape(x, plan, half);
    let (sizes, interleaved) = match sections {
        RopeSections::Consecutive(sizes) => (sizes, 0),
        RopeSections::Interleaved(sizes) => (sizes, 1),
    };
    let sections = Sections { sizes: sizes.map(|size| size as i32), interleaved };
    let positions = positions.on_device(x.device());
    let args = Args::new().pointer(x.pointer()).value(shape).value(sections).pointer(table.cos.pointer());
    let args = args.pointer(table.sin.pointer()).pointer(positions.pointer);
    // SAFETY: `ops` checked that the pairs are inside the heads, and three positions for each token inside the table.
    unsafe { cuda.launch(&KERNEL, "rope_sections", grid(x.rows(), 256), args) };
}

fn shape(x: &Tensor, plan: &RopePlan, half: usize) -> RopeShape {
    RopeShape {
        row_len: x.row_len() as i32,
        head_len: plan.head_len as i32,
        first_head: plan.heads.start as i32,
        num_heads: plan.heads.len() as i32,
        offset: plan.offset as i32,
        half: half as i32,
    }
}

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
    let shape = shape(x, plan, half);
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
