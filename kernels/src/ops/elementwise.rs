//! add:      x[i] += y[i]                                     x, y f32 of one shape · moves 12 bytes per element
//! add_gated: x[t, i] += sigmoid(gate[t]) * y[t, i], rounded once   x, y [T, D] f32 · gate [T] f32 · moves 12 bytes per element
//! silu_mul: out[t, i] = silu(gate[t, i]) * up[t, i]           gate_up [T, 2I]: gate, then up · out [T, I] f32

use crate::cpu::rows;
use crate::cuda::elementwise;
use crate::{Device, Tensor};

pub fn add(x: &mut Tensor, y: &Tensor) {
    assert_eq!(x.rows(), y.rows(), "add: rows");
    assert_eq!(x.row_len(), y.row_len(), "add: width");
    let d = x.row_len();
    match &x.device().clone() {
        Device::Cpu(cpu) => {
            let y = y.as_f32();
            cpu.for_rows(x.as_f32_mut(), d, |first, block| {
                let start = first * d;
                rows::add(cpu.isa, block, &y[start..start + block.len()]);
            });
        }
        Device::Cuda(cuda) => elementwise::add(cuda, x, y),
    }
}

pub fn add_gated(x: &mut Tensor, y: &Tensor, gate: &Tensor) {
    assert_eq!([x.rows(), x.row_len()], [y.rows(), y.row_len()], "add_gated: shapes");
    assert_eq!(gate.len(), x.rows(), "add_gated: gate");
    let d = x.row_len();
    match &x.device().clone() {
        Device::Cpu(cpu) => {
            let (y, gate) = (y.as_f32(), gate.as_f32());
            cpu.for_rows(x.as_f32_mut(), d, |first, block| {
                let rows = y[first * d..].chunks_exact(d).zip(&gate[first..]);
                for (x, (y, &gate)) in block.chunks_exact_mut(d).zip(rows) {
                    rows::add_gated(cpu.isa, gate, y, x);
                }
            });
        }
        Device::Cuda(cuda) => elementwise::add_gated(cuda, x, y, gate),
    }
}

pub fn silu_mul(gate_up: &Tensor, out: &mut Tensor) {
    let i = out.row_len();
    assert_eq!(gate_up.rows(), out.rows(), "silu_mul: rows");
    assert_eq!(gate_up.row_len(), 2 * i, "silu_mul: width");
    match &out.device().clone() {
        Device::Cpu(cpu) => {
            let gate_up = gate_up.as_f32();
            cpu.for_rows(out.as_f32_mut(), i, |first, block| {
                let inputs = gate_up[first * 2 * i..].chunks_exact(2 * i);
                for (out, input) in block.chunks_exact_mut(i).zip(inputs) {
                    rows::silu_mul(cpu.isa, &input[..i], &input[i..], out);
                }
            });
        }
        Device::Cuda(cuda) => elementwise::silu_mul(cuda, gate_up, out),
    }
}
