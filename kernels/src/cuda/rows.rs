//! Launches of rows.cu: one block for each row. The rows were checked in `ops`.

use super::Cuda;
use super::compile::Source;
use super::driver::{Args, DevicePtr, Param};
use super::launch::{Instance, Kernel, grid};
use crate::cpu::rows::SlicePlan;
use crate::index::Index;
use crate::tensor::as_heads;
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
        Instance::new("add_rows", 40, 0),
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
    let device = dst.device().clone();
    let [src_rows, dst_rows] =
        [rows.src_rows, rows.dst_rows].map(|rows| rows.map(|rows| rows.on_device(&device)));
    let [from, to] =
        [&src_rows, &dst_rows].map(|rows| rows.as_ref().map_or(DevicePtr::NULL, |rows| rows.pointer));
    let (from, to) = ((src.pointer(), from, src.dtype()), (dst.pointer(), to, dst.dtype()));
    // SAFETY: `ops` checked that every named row is in src and dst, whose rows have one width.
    unsafe { launch(cuda, from, to, [rows.count, width]) };
}

/// So many rows of so many elements; of both sides where they begin, which rows (NULL: row i), and what they are.
///
/// # Safety
/// Every row that is named is there.
unsafe fn launch(
    cuda: &Cuda,
    (src, src_rows, from): (DevicePtr, DevicePtr, DType),
    (dst, dst_rows, to): (DevicePtr, DevicePtr, DType),
    [count, width]: [usize; 2],
) {
    let vector = if width.is_multiple_of(4) { 4 } else { 1 };
    // Moving floats changes no bit, so that numbers of the same size may go as such.
    let name = |dtype: DType| if dtype == DType::I32 { DType::F32 } else { dtype }.cpp();
    let expression = format!("move_rows<{}, {}, {vector}>", name(from), name(to));
    let args = Args::new().pointer(src).pointer(src_rows).value(width as i32);
    let args = args.pointer(dst).pointer(dst_rows);
    // SAFETY: the caller's promise.
    unsafe { cuda.launch(&KERNEL, &expression, grid(count, THREADS), args) };
}

/// Rows of f32, rounded to 16 bits at another place.
///
/// # Safety
/// Both places hold `sizes` rows and elements of each, aligned to four elements.
pub(super) unsafe fn round_rows(
    cuda: &Cuda,
    src: DevicePtr,
    sizes: [usize; 2],
    dtype: DType,
    dst: DevicePtr,
) {
    let (from, to) = ((src, DevicePtr::NULL, DType::F32), (dst, DevicePtr::NULL, dtype));
    // SAFETY: the caller's promise.
    unsafe { launch(cuda, from, to, sizes) };
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

/// As in rows.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct AddShape {
    heads: i32,
    src_len: i32,
    dst_len: i32,
    dst_offset: i32,
}
// SAFETY: four i32, as in rows.cu.
unsafe impl Param for AddShape {}

pub(crate) fn add_rows(
    cuda: &Cuda,
    (src, scale): (&Tensor, f32),
    dst: &mut Tensor,
    rows: Option<Index>,
    dst_offset: usize,
) {
    assert_eq!([src.dtype(), dst.dtype()], [DType::F32; 2], "add_rows: types");
    let ([n, heads, src_len], [_, _, dst_len]) = (as_heads(src), as_heads(dst));
    if src.is_empty() {
        return;
    }
    let [heads, src_len, dst_len, dst_offset] = [heads, src_len, dst_len, dst_offset].map(|size| size as i32);
    let shape = AddShape { heads, src_len, dst_len, dst_offset };
    let rows = rows.map(|rows| rows.on_device(dst.device()));
    let pointer = rows.as_ref().map_or(DevicePtr::NULL, |rows| rows.pointer);
    let args = Args::new().pointer(src.pointer()).pointer(pointer).value(scale).value(shape);
    let args = args.pointer(dst.pointer());
    // SAFETY: `ops` checked the rows, which differ, the heads and the slice.
    unsafe { cuda.launch(&KERNEL, "add_rows", grid(n, THREADS), args) };
}
