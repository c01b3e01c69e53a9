//! rms_norm:     out[t, :] = x[t, :] / sqrt(mean(x[t, :]²) + eps) * w
//! add_rms_norm: residual[t, :] += x[t, :], then out = rms_norm(residual)
//! layer_norm:   out[t, :] = (x[t, :] - mean) / sqrt(variance + eps) * w + b
//! x, out [T, D] or [T, H, D] f32 · w, b [D] f32: the last dimension is normalised · moves 8 to 16 bytes per element
//! layer_norm_heads: layer_norm of x [T, H, D], where each head has its own w and b: both [H, D]

use crate::cpu::norm;
use crate::cuda;
use crate::{Device, Tensor};

pub fn rms_norm(x: &Tensor, w: &Tensor, eps: f32, out: &mut Tensor) {
    let d = check("rms_norm", x, w, out);
    match &out.device().clone() {
        Device::Cpu(cpu) => {
            let (x, w) = (x.as_f32(), w.as_f32());
            cpu.for_rows(out.as_f32_mut(), d, |first, block| {
                norm::rms_norm(cpu.isa, &x[first * d..first * d + block.len()], w, eps, block);
            });
        }
        Device::Cuda(cuda) => cuda::norm::rms_norm(cuda, x, w, eps, out),
    }
}

pub fn add_rms_norm(residual: &mut Tensor, x: &Tensor, w: &Tensor, eps: f32, out: &mut Tensor) {
    let d = check("add_rms_norm", x, w, out);
    assert_eq!(residual.shape(), x.shape(), "add_rms_norm: residual");
    match &out.device().clone() {
        Device::Cpu(cpu) => {
            let (x, w) = (x.as_f32(), w.as_f32());
            let residual = crate::cpu::shared::SharedMut::new(residual.as_f32_mut());
            cpu.for_rows(out.as_f32_mut(), d, |first, block| {
                let (start, len) = (first * d, block.len());
                // SAFETY: blocks of `out` are disjoint, and so are the same rows of `residual`.
                let residual = unsafe { residual.slice(start, len) };
                norm::add_rms_norm(cpu.isa, residual, &x[start..start + len], w, eps, block);
            });
        }
        Device::Cuda(cuda) => cuda::norm::add_rms_norm(cuda, residual, x, w, eps, out),
    }
}

pub fn layer_norm(x: &Tensor, w: &Tensor, b: &Tensor, eps: f32, out: &mut Tensor) {
    let d = check("layer_norm", x, w, out);
    assert_eq!(b.shape(), [d], "layer_norm: bias");
    match &out.device().clone() {
        Device::Cpu(cpu) => {
            let (x, w, b) = (x.as_f32(), w.as_f32(), b.as_f32());
            cpu.for_rows(out.as_f32_mut(), d, |first, block| {
                norm::layer_norm(cpu.isa, &x[first * d..first * d + block.len()], w, b, eps, block);
            });
        }
        Device::Cuda(cuda) => cuda::norm::layer_norm(cuda, x, w, b, eps, out),
    }
}

pub fn layer_norm_heads(x: &Tensor, w: &Tensor, b: &Tensor, eps: f32, out: &mut Tensor) {
    let &[_, heads, d] = x.shape() else { panic!("layer_norm_heads: x {:?}", x.shape()) };
    assert_eq!(x.shape(), out.shape(), "layer_norm_heads: shape");
    assert_eq!(w.shape(), [heads, d], "layer_norm_heads: weight");
    assert_eq!(b.shape(), [heads, d], "layer_norm_heads: bias");
    match &out.device().clone() {
        Device::Cpu(cpu) => {
            let (x, w, b) = (x.as_f32(), w.as_f32(), b.as_f32());
            let width = heads * d;
            cpu.for_rows(out.as_f32_mut(), width, |first, block| {
                let x = &x[first * width..first * width + block.len()];
                for (i, (x, out)) in x.chunks(d).zip(block.chunks_mut(d)).enumerate() {
                    let own = i % heads * d..(i % heads + 1) * d;
                    norm::layer_norm(cpu.isa, x, &w[own.clone()], &b[own], eps, out);
                }
            });
        }
        Device::Cuda(cuda) => cuda::norm::layer_norm_heads(cuda, x, w, b, eps, out),
    }
}

fn check(op: &str, x: &Tensor, w: &Tensor, out: &Tensor) -> usize {
    let d = *x.shape().last().expect("a tensor has dimensions");
    assert_eq!(x.shape(), out.shape(), "{op}: shape");
    assert_eq!(w.shape(), [d], "{op}: weight");
    d
}
