//! Moving rows by index.
//!
//! gather_rows:  out[t, :] = src[rows[t], :]            src [R, D] f32 | bf16 | f16 · out [T, D] f32; or both i32
//! scatter_rows: dst[dst_rows[i], :] = src[src_rows[i], :]     src, dst [·, D] f32
//! store_rows:   dst[slots[t], :] = round(src[t, :])    src [T, W] f32 · dst [S, W] f32 | bf16 | f16, to nearest even;
//!               a row whose slot is `NOWHERE` is not stored
//! add_rows:     dst[rows[i], h, b .. b + len] += scale · src[i, h, :]     src [n, H, len], dst [T, H, D] f32; rows ascend
//! add_scaled:   dst[i, h, b .. b + len] += scale · src[i, h, :]           as add_rows of all rows
//! copy_slice:   dst[t, h, b .. b + len] = src[t, h, a .. a + len]     src [T, H, D], dst [T, H, E] f32; a source of one head
//!               goes to every head
//!
//! "Rows" are the first dimension; the others may be of any rank with one product.

use crate::cpu::rows::{self, SlicePlan};
use crate::cpu::shared::SharedMut;
use crate::cuda::rows::{self as cuda_rows, Move};
use crate::tensor::as_heads;
use crate::{DType, Device, Index, Tensor};

/// The slot of a row that is there to fill up a step of a fixed size.
pub const NOWHERE: u32 = u32::MAX;

pub fn gather_rows<'a>(src: &Tensor, rows: impl Into<Index<'a>>, out: &mut Tensor) {
    let index = rows.into();
    let rows = index.as_slice();
    assert_eq!(out.rows(), rows.len(), "gather_rows: rows");
    assert_eq!(out.row_len(), src.row_len(), "gather_rows: width");
    check_rows("gather_rows", rows, src.rows());
    assert_eq!(src.dtype() == DType::I32, out.dtype() == DType::I32, "gather_rows: types");
    match &out.device().clone() {
        Device::Cpu(_) if src.dtype() == DType::I32 => {
            let (width, src) = (src.row_len(), src.as_i32());
            for (out, &row) in out.as_i32_mut().chunks_exact_mut(width).zip(rows) {
                out.copy_from_slice(&src[row as usize * width..][..width]);
            }
        }
        Device::Cpu(cpu) => rows::gather(cpu, src, rows, out),
        Device::Cuda(cuda) => {
            let rows = Move { src_rows: Some(index), dst_rows: None, count: rows.len() };
            cuda_rows::move_rows(cuda, src, src.row_len(), &rows, out);
        }
    }
}

pub fn scatter_rows<'a, 'b>(
    src: &Tensor,
    src_rows: impl Into<Index<'a>>,
    dst: &mut Tensor,
    dst_rows: impl Into<Index<'b>>,
) {
    let (from, to) = (src_rows.into(), dst_rows.into());
    let (src_rows, dst_rows) = (from.as_slice(), to.as_slice());
    assert_eq!(src_rows.len(), dst_rows.len(), "scatter_rows: rows");
    assert_eq!(dst.row_len(), src.row_len(), "scatter_rows: width");
    check_rows("scatter_rows", src_rows, src.rows());
    check_rows("scatter_rows", dst_rows, dst.rows());
    let d = src.row_len();
    match dst.device().clone() {
        Device::Cpu(_) => {
            let (src, dst) = (src.as_f32(), dst.as_f32_mut());
            for (&from, &to) in src_rows.iter().zip(dst_rows) {
                let (from, to) = (from as usize * d, to as usize * d);
                dst[to..to + d].copy_from_slice(&src[from..from + d]);
            }
        }
        Device::Cuda(cuda) => {
            let rows = Move { src_rows: Some(from), dst_rows: Some(to), count: src_rows.len() };
            cuda_rows::move_rows(&cuda, src, src.row_len(), &rows, dst);
        }
    }
}

/// Rows are in ascending order, each once. The product is rounded before it is added.
pub fn add_rows<'a>(
    src: &Tensor,
    scale: f32,
    dst: &mut Tensor,
    dst_rows: impl Into<Index<'a>>,
    dst_offset: usize,
) {
    let index = dst_rows.into();
    let rows = index.as_slice();
    assert_eq!(src.rows(), rows.len(), "add_rows: rows");
    assert!(rows.is_sorted_by(|a, b| a < b), "add_rows: rows are not in ascending order");
    check_rows("add_rows", rows, dst.rows());
    add_to_rows("add_rows", (src, scale), dst, Some(index), dst_offset);
}

/// The product is rounded before it is added.
pub fn add_scaled(src: &Tensor, scale: f32, dst: &mut Tensor, dst_offset: usize) {
    assert_eq!(src.rows(), dst.rows(), "add_scaled: rows");
    add_to_rows("add_scaled", (src, scale), dst, None, dst_offset);
}

/// `None`: to all rows. They were checked.
fn add_to_rows(
    op: &str,
    (src, scale): (&Tensor, f32),
    dst: &mut Tensor,
    dst_rows: Option<Index>,
    dst_offset: usize,
) {
    let ([n, heads, len], [_, dst_heads, dst_len]) = (as_heads(src), as_heads(dst));
    assert_eq!(heads, dst_heads, "{op}: heads");
    assert!(dst_offset + len <= dst_len, "{op}: destination");
    match &dst.device().clone() {
        Device::Cpu(cpu) => {
            let (src, out) = (src.as_f32(), SharedMut::new(dst.as_f32_mut()));
            let rows = dst_rows.map(Index::as_slice);
            cpu.for_each(n, heads * len, |i| {
                let row = rows.map_or(i, |rows| rows[i] as usize);
                for head in 0..heads {
                    let from = (i * heads + head) * len;
                    let to = (row * heads + head) * dst_len + dst_offset;
                    // SAFETY: rows differ, so that nobody else has this slice of one.
                    let to = unsafe { out.slice(to, len) };
                    rows::add_scaled(cpu.isa, scale, &src[from..from + len], to);
                }
            });
        }
        Device::Cuda(cuda) => cuda_rows::add_rows(cuda, (src, scale), dst, dst_rows, dst_offset),
    }
}

pub fn store_rows<'a>(src: &Tensor, dst: &mut Tensor, slots: impl Into<Index<'a>>) {
    let index = slots.into();
    let slots = index.as_slice();
    assert_eq!(src.rows(), slots.len(), "store_rows: rows");
    assert_eq!(dst.row_len(), src.row_len(), "store_rows: width");
    check_slots("store_rows", slots, dst.rows());
    let width = src.row_len();
    match dst.device().clone() {
        Device::Cpu(_) => {
            let rows = src.as_f32().chunks_exact(width).zip(slots);
            for (row, &slot) in rows.filter(|&(_, &slot)| slot != NOWHERE) {
                dst.write_f32(slot as usize * width, row);
            }
        }
        Device::Cuda(cuda) => {
            let rows = Move { src_rows: None, dst_rows: Some(index), count: slots.len() };
            cuda_rows::move_rows(&cuda, src, src.row_len(), &rows, dst);
        }
    }
}

pub fn copy_slice(src: &Tensor, src_offset: usize, dst: &mut Tensor, dst_offset: usize, len: usize) {
    let ([t, h, src_len], [t2, h2, dst_len]) = (as_heads(src), as_heads(dst));
    assert_eq!(t, t2, "copy_slice: rows");
    assert!(h == h2 || h == 1, "copy_slice: {h} heads to {h2}");
    assert!(src_offset + len <= src_len, "copy_slice: source");
    assert!(dst_offset + len <= dst_len, "copy_slice: destination");
    let plan = SlicePlan { src_len, src_offset, dst_len, dst_offset, len, dst_per_src: h2 / h };
    match &dst.device().clone() {
        Device::Cpu(cpu) => {
            let src = src.as_f32();
            cpu.for_rows(dst.as_f32_mut(), h2 * dst_len, |first, block| {
                rows::copy_slices(&src[first * h * src_len..], block, &plan);
            });
        }
        Device::Cuda(cuda) => cuda_rows::copy_slice(cuda, src, dst, &plan, h2),
    }
}

pub(super) fn check_slots(op: &str, slots: &[u32], size: usize) {
    let is_slot = |&slot: &u32| slot == NOWHERE || (slot as usize) < size;
    assert!(slots.iter().all(is_slot), "{op}: a slot is not below {size}");
}

fn check_rows(op: &str, rows: &[u32], bound: usize) {
    assert!(rows.iter().all(|&row| (row as usize) < bound), "{op}: a row is not below {bound}");
}
