//! Resizing of a table of vectors, as torch does it, in f32: bicubic (a = -0.75, align_corners=False, border clamped), four sums along the
//! width, then one along the height; or bilinear, corner to corner (align_corners=True), four products in raster order.

use super::simd::{Simd, simd_entry};

const A: f32 = -0.75;

pub(crate) struct Resize {
    pub from: [usize; 2],
    pub to: [usize; 2],
    pub depth: usize,
}

simd_entry! {
    /// Rows `first ..` of the output, each the vector at its index in raster order.
    pub(crate) fn pixels(resize: &Resize, table: &[f32], first: usize, out: &mut [f32]) = pixels_body
}

#[inline(always)]
fn pixels_body<S: Simd>(s: S, resize: &Resize, table: &[f32], first: usize, out: &mut [f32]) {
    let Resize { from, to, depth } = *resize;
    for (i, out) in out.chunks_exact_mut(depth).enumerate() {
        let (ys, wy) = taps((first + i) / to[1], from[0], to[0]);
        let (xs, wx) = taps((first + i) % to[1], from[1], to[1]);
        let at = |y: usize, x: usize| &table[(y * from[1] + x) * depth..][..depth];
        let around = ys.map(|y| xs.map(|x| at(y, x)));
        for c in (0..depth).step_by(S::LANES) {
            let mut rows = [s.zero(); 4];
            for (row, around) in rows.iter_mut().zip(&around) {
                let [a, b] = [s.load_slice(&around[0][c..]), s.load_slice(&around[1][c..])];
                *row = weighted(s, wx, [a, b, s.load_slice(&around[2][c..]), s.load_slice(&around[3][c..])]);
            }
            s.store_slice(&mut out[c..], weighted(s, wy, rows));
        }
    }
}

simd_entry! {
    /// Rows `first ..` of the output, bilinear.
    pub(crate) fn corners(resize: &Resize, table: &[f32], first: usize, out: &mut [f32]) = corners_body
}

#[inline(always)]
fn corners_body<S: Simd>(s: S, resize: &Resize, table: &[f32], first: usize, out: &mut [f32]) {
    let Resize { from, to, depth } = *resize;
    for (i, out) in out.chunks_exact_mut(depth).enumerate() {
        let y = between((first + i) / to[1], from[0], to[0]);
        let x = between((first + i) % to[1], from[1], to[1]);
        let at = |y: usize, x: usize| &table[(y * from[1] + x) * depth..][..depth];
        let around =
            [at(y.first, x.first), at(y.first, x.second), at(y.second, x.first), at(y.second, x.second)];
        let rows = [1.0 - y.share, 1.0 - y.share, y.share, y.share];
        let columns = [1.0 - x.share, x.share, 1.0 - x.share, x.share];
        let weights = std::array::from_fn(|corner| rows[corner] * columns[corner]);
        for c in (0..depth).step_by(S::LANES) {
            let values = around.map(|vector| s.load_slice(&vector[c..]));
            s.store_slice(&mut out[c..], weighted(s, weights, values));
        }
    }
}

/// Where an output index falls between two of the table's, and how much there is of the second.
#[derive(Debug, PartialEq)]
struct Between {
    first: usize,
    second: usize,
    share: f32,
}

fn between(index: usize, from: usize, to: usize) -> Between {
    let place = index as f32 * (from - 1) as f32 / (to - 1).max(1) as f32;
    let first = (place.floor() as usize).min(from - 1);
    Between { first, second: (first + 1).min(from - 1), share: place - place.floor() }
}

/// Products and sums rounded one by one.
#[inline(always)]
fn weighted<S: Simd>(s: S, w: [f32; 4], v: [S::V; 4]) -> S::V {
    let sum = s.add(s.mul(v[0], s.splat(w[0])), s.mul(v[1], s.splat(w[1])));
    let sum = s.add(sum, s.mul(v[2], s.splat(w[2])));
    s.add(sum, s.mul(v[3], s.splat(w[3])))
}

/// The four source indices around an output index, and their weights.
fn taps(index: usize, from: usize, to: usize) -> ([usize; 4], [f32; 4]) {
    let scale = from as f32 / to as f32;
    let source = scale * (index as f32 + 0.5) - 0.5;
    let floor = source.floor();
    let t = source - floor;
    let clamped = |offset: f32| (floor + offset).clamp(0.0, (from - 1) as f32) as usize;
    let weights = [outer(t + 1.0), inner(t), inner(1.0 - t), outer(2.0 - t)];
    ([-1.0, 0.0, 1.0, 2.0].map(clamped), weights)
}

/// The kernel for distances up to 1.
fn inner(x: f32) -> f32 {
    ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
}

/// The kernel for distances from 1 to 2.
fn outer(x: f32) -> f32 {
    ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A
}
