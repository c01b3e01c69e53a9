//! Launches of interpolate.cu: one block for each output vector.

use super::Cuda;
use super::compile::Source;
use super::driver::{Args, Param};
use super::launch::{Instance, Kernel, grid};
use super::rows::{Move, move_rows};
use crate::cpu::interpolate::Resize;
use crate::{DType, Tensor};

pub(super) const KERNEL: Kernel = Kernel {
    source: Source { name: "interpolate.cu", text: include_str!("interpolate.cu") },
    instances: &[Instance::new("interpolate", 56, 0), Instance::new("interpolate_corners", 40, 0)],
};

/// As in interpolate.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct ResizeShape {
    from: [i32; 2],
    to: [i32; 2],
    depth: i32,
}
// SAFETY: five i32, as in interpolate.cu.
unsafe impl Param for ResizeShape {}

pub(crate) fn interpolate(cuda: &Cuda, table: &Tensor, resize: &Resize, out: &mut Tensor) {
    launch(cuda, "interpolate", table, resize, out);
}

pub(crate) fn corners(cuda: &Cuda, table: &Tensor, resize: &Resize, out: &mut Tensor) {
    launch(cuda, "interpolate_corners", table, resize, out);
}

fn launch(cuda: &Cuda, name: &'static str, table: &Tensor, resize: &Resize, out: &mut Tensor) {
    assert_eq!([table.dtype(), out.dtype()], [DType::F32; 2], "{name}: types");
    if out.is_empty() {
        return;
    }
    let [from, to] = [resize.from, resize.to].map(|size| size.map(|n| n as i32));
    let shape = ResizeShape { from, to, depth: resize.depth as i32 };
    let args = Args::new().pointer(table.pointer()).value(shape).pointer(out.pointer());
    // SAFETY: `ops` checked the shapes of the table and of out.
    unsafe { cuda.launch(&KERNEL, name, grid(out.rows(), 256), args) };
}

/// Where the sizes are the same. The table's rows are vectors here, not lines of the picture.
pub(crate) fn copy(cuda: &Cuda, table: &Tensor, out: &mut Tensor) {
    let rows = Move { src_rows: None, dst_rows: None, count: out.rows() };
    move_rows(cuda, table, out.row_len(), &rows, out);
}
