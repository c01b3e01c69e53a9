//! RMSNorm and LayerNorm of one row. Sums run over four vectors of partial sums, in an order given by the row's length alone.

use super::simd::{Simd, simd_entry};

simd_entry! {
    /// `out = x / rms(x) * w`, row by row; rows have the length of `w`.
    pub(crate) fn rms_norm(x: &[f32], w: &[f32], eps: f32, out: &mut [f32]) = rms_norm_body
}

#[inline(always)]
fn rms_norm_body<S: Simd>(s: S, x: &[f32], w: &[f32], eps: f32, out: &mut [f32]) {
    let d = w.len();
    for first in (0..out.len()).step_by(d) {
        let (x, out) = (&x[first..first + d], &mut out[first..first + d]);
        let mean = sum_of_squares(s, x, 0.0) / d as f32;
        let factor = s.splat(1.0 / (mean + eps).sqrt());
        for i in (0..d).step_by(S::LANES) {
            let v = s.mul(s.load_slice(&x[i..]), factor);
            s.store_slice(&mut out[i..], s.mul(v, s.load_slice(&w[i..])));
        }
    }
}

simd_entry! {
    /// `residual += x; out = residual / rms(residual) * w`, row by row.
    pub(crate) fn add_rms_norm(residual: &mut [f32], x: &[f32], w: &[f32], eps: f32, out: &mut [f32]) = add_rms_norm_body
}

#[inline(always)]
fn add_rms_norm_body<S: Simd>(s: S, residual: &mut [f32], x: &[f32], w: &[f32], eps: f32, out: &mut [f32]) {
    for first in (0..out.len()).step_by(w.len()) {
        let row = first..first + w.len();
        let (residual, x) = (&mut residual[row.clone()], &x[row.clone()]);
        for i in (0..x.len()).step_by(S::LANES) {
            let sum = s.add(s.load_slice(&residual[i..]), s.load_slice(&x[i..]));
            s.store_slice(&mut residual[i..], sum);
        }
        rms_norm_body(s, residual, w, eps, &mut out[row]);
    }
}

simd_entry! {
    /// `out = (x - mean) / sqrt(variance + eps) * w + b`, row by row.
    pub(crate) fn layer_norm(x: &[f32], w: &[f32], b: &[f32], eps: f32, out: &mut [f32]) = layer_norm_body
}

#[inline(always)]
fn layer_norm_body<S: Simd>(s: S, x: &[f32], w: &[f32], b: &[f32], eps: f32, out: &mut [f32]) {
    let d = w.len();
    for first in (0..out.len()).step_by(d) {
        let (x, out) = (&x[first..first + d], &mut out[first..first + d]);
        let mean = sum(s, x) / d as f32;
        // Centred first: the difference of large squares would lose the small variance.
        let factor = s.splat(1.0 / (sum_of_squares(s, x, mean) / d as f32 + eps).sqrt());
        for i in (0..d).step_by(S::LANES) {
            let v = s.mul(s.sub(s.load_slice(&x[i..]), s.splat(mean)), factor);
            s.store_slice(&mut out[i..], s.fma(v, s.load_slice(&w[i..]), s.load_slice(&b[i..])));
        }
    }
}

/// Four vectors of partial sums, then what is left in one more.
#[inline(always)]
fn sum<S: Simd>(s: S, x: &[f32]) -> f32 {
    let mut sums = [s.zero(); 4];
    let whole = x.len() / (4 * S::LANES) * (4 * S::LANES);
    for i in (0..whole).step_by(4 * S::LANES) {
        for (j, sum) in sums.iter_mut().enumerate() {
            *sum = s.add(*sum, s.load_slice(&x[i + j * S::LANES..]));
        }
    }
    let mut rest = s.zero();
    for i in (whole..x.len()).step_by(S::LANES) {
        rest = s.add(rest, s.load_slice(&x[i..]));
    }
    s.sum(s.add(s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3])), rest))
}

/// `Σ (x - mean)²`, in the order of `sum`.
#[inline(always)]
fn sum_of_squares<S: Simd>(s: S, x: &[f32], mean: f32) -> f32 {
    let mut sums = [s.zero(); 4];
    let whole = x.len() / (4 * S::LANES) * (4 * S::LANES);
    for i in (0..whole).step_by(4 * S::LANES) {
        for (j, sum) in sums.iter_mut().enumerate() {
            let v = s.sub(s.load_slice(&x[i + j * S::LANES..]), s.splat(mean));
            *sum = s.fma(v, v, *sum);
        }
    }
    // Element by element: the zeros that fill up a vector would be far from the mean.
    let rest: f32 = x[whole..].iter().map(|v| (v - mean) * (v - mean)).sum();
    s.sum(s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3]))) + rest
}
