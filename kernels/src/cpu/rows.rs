//! Moving rows: embedding, gather, scatter, cache writes, slices of heads; sums and SwiGLU of rows.

use super::processor::Cpu;
use super::simd::{Simd, math, simd_entry};
use crate::Tensor;
use half::{bf16, f16};

use crate::DType;

/// Row `row` of a tensor of floats, widened.
pub(crate) fn read_row(src: &Tensor, row: usize, out: &mut [f32]) {
    let range = row * out.len()..(row + 1) * out.len();
    match src.dtype() {
        DType::F32 => out.copy_from_slice(&src.as_f32()[range]),
        DType::BF16 => widen(&src.as_u16()[range], out, |v| bf16::from_bits(v).to_f32()),
        DType::F16 => widen(&src.as_u16()[range], out, |v| f16::from_bits(v).to_f32_const()),
        DType::I32 | DType::U8 => panic!("rows of {}", src.dtype()),
    }
}

fn widen(src: &[u16], out: &mut [f32], value: impl Fn(u16) -> f32) {
    for (out, &bits) in out.iter_mut().zip(src) {
        *out = value(bits);
    }
}

/// `out[i] = src[rows[i]]`
pub(crate) fn gather(cpu: &Cpu, src: &Tensor, rows: &[u32], out: &mut Tensor) {
    let row_len = out.row_len();
    cpu.for_rows(out.as_f32_mut(), row_len, |first, block| {
        for (i, out) in block.chunks_exact_mut(row_len).enumerate() {
            read_row(src, rows[first + i] as usize, out);
        }
    });
}

pub(crate) fn copy_slices(src: &[f32], dst: &mut [f32], plan: &SlicePlan) {
    let SlicePlan { src_len, src_offset, dst_len, dst_offset, len, dst_per_src } = *plan;
    for (src, heads) in src.chunks_exact(src_len).zip(dst.chunks_exact_mut(dst_per_src * dst_len)) {
        for dst in heads.chunks_exact_mut(dst_len) {
            dst[dst_offset..dst_offset + len].copy_from_slice(&src[src_offset..src_offset + len]);
        }
    }
}

/// Elements `src_offset ..` of every head of `src_len` go to `dst_offset ..` of every head of `dst_len`.
pub(crate) struct SlicePlan {
    pub src_len: usize,
    pub src_offset: usize,
    pub dst_len: usize,
    pub dst_offset: usize,
    pub len: usize,
    /// How many heads get a copy of each source head.
    pub dst_per_src: usize,
}

simd_entry! {
    /// `x += y`
    pub(crate) fn add(x: &mut [f32], y: &[f32]) = add_body
}

#[inline(always)]
fn add_body<S: Simd>(s: S, x: &mut [f32], y: &[f32]) {
    assert_eq!(x.len(), y.len(), "add");
    for i in (0..x.len()).step_by(S::LANES) {
        let sum = s.add(s.load_slice(&x[i..]), s.load_slice(&y[i..]));
        s.store_slice(&mut x[i..], sum);
    }
}

simd_entry! {
    /// `x += sigmoid(gate) * y`, rounded once
    pub(crate) fn add_gated(gate: f32, y: &[f32], x: &mut [f32]) = add_gated_body
}

#[inline(always)]
fn add_gated_body<S: Simd>(s: S, gate: f32, y: &[f32], x: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "add_gated");
    let factor = math::sigmoid(s, s.splat(gate));
    for i in (0..x.len()).step_by(S::LANES) {
        let sum = s.fma(factor, s.load_slice(&y[i..]), s.load_slice(&x[i..]));
        s.store_slice(&mut x[i..], sum);
    }
}

simd_entry! {
    /// `out += scale * x`, the product rounded
    pub(crate) fn add_scaled(scale: f32, x: &[f32], out: &mut [f32]) = add_scaled_body
}

#[inline(always)]
fn add_scaled_body<S: Simd>(s: S, scale: f32, x: &[f32], out: &mut [f32]) {
    assert_eq!(x.len(), out.len(), "add_scaled");
    let scale = s.splat(scale);
    for i in (0..x.len()).step_by(S::LANES) {
        let sum = s.add(s.load_slice(&out[i..]), s.mul(scale, s.load_slice(&x[i..])));
        s.store_slice(&mut out[i..], sum);
    }
}

simd_entry! {
    /// `out = silu(gate) * up`
    pub(crate) fn silu_mul(gate: &[f32], up: &[f32], out: &mut [f32]) = silu_mul_body
}

#[inline(always)]
fn silu_mul_body<S: Simd>(s: S, gate: &[f32], up: &[f32], out: &mut [f32]) {
    assert_eq!([gate.len(), up.len()], [out.len(); 2], "silu_mul");
    for i in (0..out.len()).step_by(S::LANES) {
        let gate = math::silu(s, s.load_slice(&gate[i..]));
        s.store_slice(&mut out[i..], s.mul(gate, s.load_slice(&up[i..])));
    }
}
