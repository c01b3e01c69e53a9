//! Rotary position embedding.

use crate::{Device, Tensor};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeLayout {
    /// Value `i` is rotated with value `i + R/2`.
    Half,
    /// Value `2i` is rotated with value `2i + 1`.
    Interleaved,
}

/// Cosines and sines `[P, R/2]`.
#[derive(Debug)]
pub struct RopeTable {
    pub cos: Tensor,
    pub sin: Tensor,
}

impl RopeTable {
    /// `angle(position, i)` for `i < half` gives cosine and sine.
    pub fn new(
        device: &Device,
        positions: usize,
        half: usize,
        angle: &dyn Fn(usize, usize) -> (f32, f32),
    ) -> Self {
        let mut cos = Tensor::zeros(device, crate::DType::F32, &[positions, half]);
        let mut sin = Tensor::zeros(device, crate::DType::F32, &[positions, half]);
        for p in 0..positions {
            for i in 0..half {
                let (c, s) = angle(p, i);
                cos.as_f32_mut()[p * half + i] = c;
                sin.as_f32_mut()[p * half + i] = s;
            }
        }
        Self { cos, sin }
    }

    pub fn bytes(positions: usize, half: usize) -> u64 {
        (2 * positions * half * 4) as u64
    }
}

/// Rotates values `offset .. offset + R` of each head of `x` `[T, H, D]` by the table's row `positions[t]`.
pub fn rope(x: &mut Tensor, offset: usize, table: &RopeTable, positions: &[u32], layout: RopeLayout) {
    let [t, h, d] = *x.shape() else { panic!("rope: x") };
    assert_eq!(positions.len(), t, "rope: positions");
    let half = table.cos.shape()[1];
    assert!(offset + 2 * half <= d, "rope: offset");
    let (cos, sin) = (table.cos.as_f32(), table.sin.as_f32());
    let x = x.as_f32_mut();
    for i in 0..t {
        let at = positions[i] as usize * half;
        for head in 0..h {
            let row = &mut x[(i * h + head) * d + offset..][..2 * half];
            for j in 0..half {
                let (c, s) = (cos[at + j], sin[at + j]);
                let (a, b) = match layout {
                    RopeLayout::Half => (j, j + half),
                    RopeLayout::Interleaved => (2 * j, 2 * j + 1),
                };
                let (u, v) = (row[a], row[b]);
                row[a] = u * c - v * s;
                row[b] = v * c + u * s;
            }
        }
    }
}
