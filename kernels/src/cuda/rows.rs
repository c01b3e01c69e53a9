//! Launches of rows.cu: one block for each row. The rows were checked in `ops`.

use super::Cuda;
use super::compile::Source;
use super::driver::{Args, DevicePtr, Param};
use super::launch::{Instance, Kernel, grid};
use crate::cpu::rows::SlicePlan;
use crate::index::Index;
use crate::{DType, Tensor};

const THREADS: u32 = 256;

pub(super) const KERNEL: Kernel = Kernel {
    source: Source { name: "rows.cu", text: include_str!("rows.cu") },
    instances: &[
        Instance::new("move_rows<float, float, 1>", 32, 0),
        Instance::new("move_rows<float, float, 4>", 32, 0),
        Instance::new("move_rows<bf16, float, 1>", 32, 0),
        Instance::new("move_rows<bf16, float, 4>", 40, 0),
        Instance::new("move_rows<f16, float, 1>", 32, 0),
        Instance::new("move_rows<f16, float, 4>", 40, 0),
        Instance::new("move_rows<float, bf16, 1>", 32, 0),
        Instance::new("move_rows<float, bf16, 4>", 32, 0),
        Instance::new("move_rows<float, f16, 1>", 32, 0),
        Instance::new("move_rows<float, f16, 4>", 32, 0),
        Instance::new("copy_slice", 40, 0),
    ],
};

/// Which rows go where; `None` is row i.
pub(crate) struct Move<'a> {
    pub src_rows: Option<Index<'a>>,
    pub dst_rows: Option<Index<'a>>,
    pub count: usize,
}

/// Rows of `width` elements.
pub(crate) fn move_rows(cuda: &Cuda, src: &Tensor, width: usize, rows: &Move, dst: &mut Tensor) {
    if rows.count == 0 || width == 0 {
        return;
    }
    let vector = if width.is_multiple_of(4) { 4 } else { 1 };
    let expression = format!("move_rows<{}, {}, {vector}>", src.dtype().cpp(), dst.dtype().cpp());
    let device = dst.device().clone();
    let [src_rows, dst_rows] =
        [rows.src_rows, rows.dst_rows].map(|rows| rows.map(|rows| rows.on_device(&device)));
    let [from, to] =
        [&src_rows, &dst_rows].map(|rows| rows.as_ref().map_or(DevicePtr::NULL, |rows| rows.pointer));
    let args = Args::new().pointer(src.pointer()).pointer(from).value(width as i32);
    let args = args.pointer(dst.pointer()).pointer(to);
    // SAFETY: `ops` checked that every named row is in src and dst, whose rows have one width.
    unsafe { cuda.launch(&KERNEL, &expression, grid(rows.count, THREADS), args) };
}

/// Rows of f32, rounded to 16 bits at another place.
///
/// # Safety
/// Both places hold so many rows of `width` elements, aligned to four of them.
pub(super) unsafe fn round_rows(
    cuda: &Cuda,
    src: DevicePtr,
    [count, width]: [usize; 2],
    dtype: DType,
    dst: DevicePtr,
) {
    let vector = if width.is_multiple_of(4) { 4 } else { 1 };
    let expression = format!("move_rows<float, {}, {vector}>", dtype.cpp());
    let args = Args::new().pointer(src).pointer(DevicePtr::NULL).value(width as i32);
    let args = args.pointer(dst).pointer(DevicePtr::NULL);
    // SAFETY: the caller's promise.
    unsafe { cuda.launch(&KERNEL, &expression, grid(count, THREADS), args) };
}

/// As in rows.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct SliceShape {
    heads: i32,
    src_heads: i32,
    src_len: i32,
    src_offset: i32,
    dst_len: i32,
    dst_offset: i32,
    len: i32,
}
// SAFETY: seven i32, as in rows.cu.
unsafe impl Param for SliceShape {}

pub(crate) fn copy_slice(cuda: &Cuda, src: &Tensor, dst: &mut Tensor, plan: &SlicePlan, heads: usize) {
    assert_eq!([src.dtype(), dst.dtype()], [DType::F32; 2], "copy_slice: types");
    let SlicePlan { src_len, src_offset, dst_len, dst_offset, len, dst_per_src } = *plan;
    if dst.rows() == 0 || len == 0 || heads == 0 {
        return;
    }
    let shape = SliceShape {
        heads: heads as i32,
        src_heads: (heads / dst_per_src) as i32,
        src_len: src_len as i32,
        src_offset: src_offset as i32,
        dst_len: dst_len as i32,
        dst_offset: dst_offset as i32,
        len: len as i32,
    };
    let args = Args::new().pointer(src.pointer()).value(shape).pointer(dst.pointer());
    // SAFETY: `ops` checked tokens, heads and both slices.
    unsafe { cuda.launch(&KERNEL, "copy_slice", grid(dst.rows(), THREADS), args) };
}
