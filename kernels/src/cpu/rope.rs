//! Rotation of pairs of dimensions. Scalar loops that the compiler vectorises for the half layout; both cost less than the
//! linear layers around them by orders of magnitude.

use super::simd::{Simd, simd_entry};

/// The rotated part of a row of heads.
#[derive(Clone)]
pub(crate) struct RopePlan {
    pub head_len: usize,
    pub heads: std::ops::Range<usize>,
    pub offset: usize,
}

simd_entry! {
    /// Pairs `(i, i + R/2)` of one token's heads.
    pub(crate) fn rotate_half(row: &mut [f32], plan: &RopePlan, cos: &[f32], sin: &[f32]) = rotate_half_body
}

#[inline(always)]
fn rotate_half_body<S: Simd>(s: S, row: &mut [f32], plan: &RopePlan, cos: &[f32], sin: &[f32]) {
    let half = cos.len();
    for head in plan.heads.clone() {
        let start = head * plan.head_len + plan.offset;
        let (a, b) = row[start..start + 2 * half].split_at_mut(half);
        for i in (0..half).step_by(S::LANES) {
            let (x, y) = (s.load_slice(&a[i..]), s.load_slice(&b[i..]));
            let (cos, sin) = (s.load_slice(&cos[i..]), s.load_slice(&sin[i..]));
            s.store_slice(&mut a[i..], s.sub(s.mul(x, cos), s.mul(y, sin)));
            s.store_slice(&mut b[i..], s.add(s.mul(y, cos), s.mul(x, sin)));
        }
    }
}

/// Pairs `(2i, 2i + 1)` of one token's heads.
pub(crate) fn rotate_interleaved(row: &mut [f32], plan: &RopePlan, cos: &[f32], sin: &[f32]) {
    for head in plan.heads.clone() {
        let start = head * plan.head_len + plan.offset;
        let pairs = row[start..start + 2 * cos.len()].as_chunks_mut::<2>().0;
        for (pair, (cos, sin)) in pairs.iter_mut().zip(cos.iter().zip(sin)) {
            let [x, y] = *pair;
            *pair = [x * cos - y * sin, y * cos + x * sin];
        }
    }
}
