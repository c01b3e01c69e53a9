//! RMSNorm and LayerNorm of one row. Sums run over four vectors of partial sums, in an order given by the row's length alone.

use super::simd::{Simd, simd_entry};

simd_entry! {
    /// `out = x / rms(x) * w`, row by row; rows have the length of `w`.
    pub(crate) fn rms_norm(x: &[f32], w: &[f32], eps: f32, out: &mut [f32]) = rms_norm_body
}

#[inline(always)]
fn rms_norm_body<S: Simd>(s: S, x: &[f32], w: &[f32], eps: f32, out: &mut [f32]) {
    for (x, out) in x.chunks_exact(w.len()).zip(out.chunks_exact_mut(w.len())) {
        let mean = sum_by(s, x, |v| s.mul(v, v)) / w.len() as f32;
        let factor = s.splat(1.0 / (mean + eps).sqrt());
        for ((x, w), out) in x.chunks(S::LANES).zip(w.chunks(S::LANES)).zip(out.chunks_mut(S::LANES)) {
            s.store_slice(out, s.mul(s.mul(s.load_slice(x), factor), s.load_slice(w)));
        }
    }
}

simd_entry! {
    /// `residual += x; out = residual / rms(residual) * w`, row by row.
    pub(crate) fn add_rms_norm(residual: &mut [f32], x: &[f32], w: &[f32], eps: f32, out: &mut [f32]) = add_rms_norm_body
}

#[inline(always)]
fn add_rms_norm_body<S: Simd>(s: S, residual: &mut [f32], x: &[f32], w: &[f32], eps: f32, out: &mut [f32]) {
    for (residual, x) in residual.chunks_mut(S::LANES).zip(x.chunks(S::LANES)) {
        s.store_slice(residual, s.add(s.load_slice(residual), s.load_slice(x)));
    }
    rms_norm_body(s, residual, w, eps, out);
}

simd_entry! {
    /// `out = (x - mean) / sqrt(variance + eps) * w + b`, row by row.
    pub(crate) fn layer_norm(x: &[f32], w: &[f32], b: &[f32], eps: f32, out: &mut [f32]) = layer_norm_body
}

#[inline(always)]
fn layer_norm_body<S: Simd>(s: S, x: &[f32], w: &[f32], b: &[f32], eps: f32, out: &mut [f32]) {
    let d = w.len();
    for (x, out) in x.chunks_exact(d).zip(out.chunks_exact_mut(d)) {
        let mean = sum_by(s, x, |v| v) / d as f32;
        // Centred first: the difference of large squares would lose the small variance.
        let whole = d / S::LANES * S::LANES;
        let centred = |v| s.sub(v, s.splat(mean));
        let tail: f32 = x[whole..].iter().map(|v| (v - mean) * (v - mean)).sum();
        let squares = sum_by(s, &x[..whole], |v| s.mul(centred(v), centred(v))) + tail;
        let factor = s.splat(1.0 / (squares / d as f32 + eps).sqrt());
        let weights = w.chunks(S::LANES).zip(b.chunks(S::LANES));
        for ((x, (w, b)), out) in x.chunks(S::LANES).zip(weights).zip(out.chunks_mut(S::LANES)) {
            let v = s.mul(centred(s.load_slice(x)), factor);
            s.store_slice(out, s.fma(v, s.load_slice(w), s.load_slice(b)));
        }
    }
}

/// The sum of `f` over all elements; `f(0)` must be 0, since the last vector is filled up with zeros.
#[inline(always)]
fn sum_by<S: Simd>(s: S, x: &[f32], f: impl Fn(S::V) -> S::V) -> f32 {
    let mut sums = [s.zero(); 4];
    for chunk in x.chunks(4 * S::LANES) {
        for (sum, v) in sums.iter_mut().zip(chunk.chunks(S::LANES)) {
            *sum = s.add(*sum, f(s.load_slice(v)));
        }
    }
    s.sum(s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3])))
}
