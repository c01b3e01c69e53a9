//! Norms over the last dimension. Statistics are f32; sums run over the dimension from first to last.

use crate::Tensor;

/// `out[r, :] = x[r, :] / rms(x[r, :]) * w` for every row of `w.len()` values. `x`, `out` `[.., D]` f32, `w` `[D]` any float.
pub fn rms_norm(x: &Tensor, w: &Tensor, eps: f32, out: &mut Tensor) {
    assert_eq!(x.shape(), out.shape(), "rms_norm: out");
    let d = w.len();
    assert_eq!(x.shape().last(), Some(&d), "rms_norm: w");
    for (x, out) in x.as_f32().chunks_exact(d).zip(out.as_f32_mut().chunks_exact_mut(d)) {
        let sum: f32 = x.iter().map(|v| v * v).sum();
        let scale = 1.0 / (sum / d as f32 + eps).sqrt();
        for i in 0..d {
            out[i] = x[i] * scale * w.get(i);
        }
    }
}

/// `residual += x`, then `out = rms_norm(residual)`.
pub fn add_rms_norm(residual: &mut Tensor, x: &Tensor, w: &Tensor, eps: f32, out: &mut Tensor) {
    super::add(residual, x);
    rms_norm(residual, w, eps, out);
}

/// `out[r, :] = (x[r, :] - mean) / sqrt(var + eps) * w + b`.
pub fn layer_norm(x: &Tensor, w: &Tensor, b: &Tensor, eps: f32, out: &mut Tensor) {
    assert_eq!(x.shape(), out.shape(), "layer_norm: out");
    let d = w.len();
    assert_eq!(x.shape().last(), Some(&d), "layer_norm: w");
    assert_eq!(b.len(), d, "layer_norm: b");
    for (x, out) in x.as_f32().chunks_exact(d).zip(out.as_f32_mut().chunks_exact_mut(d)) {
        let mean = x.iter().sum::<f32>() / d as f32;
        let var = x.iter().map(|v| (v - mean) * (v - mean)).sum::<f32>() / d as f32;
        let scale = 1.0 / (var + eps).sqrt();
        for i in 0..d {
            out[i] = (x[i] - mean) * scale * w.get(i) + b.get(i);
        }
    }
}
