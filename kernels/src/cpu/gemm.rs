//! Linear layers: rows of activations times packed panels.

use super::SharedMut;
use super::simd::{MAX_LANES, Simd, math, simd_entry};
use crate::DType;
use crate::MatrixBatch;
use crate::device::Cpu;
use crate::matrix::PANEL;
use crate::ops::Activation;
use half::{bf16, f16};

/// `out[h][t] = act(x[h][t] · w[h]ᵀ + bias)` for every member h of the weights.
pub(crate) struct Gemm<'a> {
    pub x: &'a [f32],
    pub x_stride: usize,
    pub rows: usize,
    pub weights: &'a MatrixBatch,
    pub bias: Option<&'a [f32]>,
    pub act: Activation,
    pub out: SharedMut<f32>,
    pub out_stride: usize,
    /// From one member to the next in x and out.
    pub head_stride: [usize; 2],
}

pub(crate) fn run(cpu: &Cpu, job: &Gemm) {
    let panels = job.weights.panels_per_member();
    cpu.pool.run(job.weights.count() * panels, &|task, _| {
        let (member, panel) = (task / panels, task % panels);
        for row in 0..job.rows {
            let start = member * job.head_stride[0] + row * job.x_stride;
            let x = &job.x[start..start + job.weights.k()];
            let mut sums = panel_row(job.weights, task, x);
            let first = panel * PANEL;
            let n = (job.weights.n() - first).min(PANEL);
            if let Some(bias) = job.bias {
                sums.iter_mut().zip(&bias[first..first + n]).for_each(|(sum, bias)| *sum += bias);
            }
            activate(cpu.isa, &mut sums, job.act);
            // SAFETY: each task has its own member and columns.
            let out = unsafe { job.out.slice(member * job.head_stride[1] + row * job.out_stride + first, n) };
            out.copy_from_slice(&sums[..n]);
        }
    });
}

/// One row of x times one panel.
pub(crate) fn panel_row(weights: &MatrixBatch, panel: usize, x: &[f32]) -> [f32; PANEL] {
    let size = weights.panel_bytes();
    let bytes = &weights.as_bytes()[panel * size..(panel + 1) * size];
    let mut sums = [0.0; PANEL];
    for (line, x) in bytes.chunks_exact(PANEL * weights.dtype().size()).zip(x) {
        for (column, sum) in sums.iter_mut().enumerate() {
            *sum += x * weight(line, weights.dtype(), column);
        }
    }
    sums
}

fn weight(line: &[u8], dtype: DType, column: usize) -> f32 {
    let half = |i: usize| u16::from_ne_bytes([line[2 * i], line[2 * i + 1]]);
    match dtype {
        DType::F32 => f32::from_ne_bytes([
            line[4 * column],
            line[4 * column + 1],
            line[4 * column + 2],
            line[4 * column + 3],
        ]),
        DType::BF16 if column < PANEL / 2 => bf16::from_bits(half(2 * column)).to_f32(),
        DType::BF16 => bf16::from_bits(half(2 * (column - PANEL / 2) + 1)).to_f32(),
        _ => f16::from_bits(half(column)).to_f32_const(),
    }
}

simd_entry! {
    pub(crate) fn activate(values: &mut [f32], act: Activation) = activate_body
}

#[inline(always)]
fn activate_body<S: Simd>(s: S, values: &mut [f32], act: Activation) {
    const { assert!(S::LANES <= MAX_LANES) };
    match act {
        Activation::None => {}
        Activation::GeluTanh => math::map_in_place(s, values, math::gelu_tanh),
        Activation::GeluErf => math::map_in_place(s, values, math::gelu_erf),
        Activation::QuickGelu => math::map_in_place(s, values, math::quick_gelu),
    }
}
