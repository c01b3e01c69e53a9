//! Experts of gpt-oss in MXFP4, in tensors of all of them.
//!
//! ```text
//! NAME_blocks  U8 [E, N, K/32, 16]  two values of e2m1 a byte, the first in the lower half
//! NAME_scales  U8 [E, N, K/32]      2^(byte - 127) for each 32
//! ```
//! Twice a value of e2m1 is a whole number up to 12 of either sign: in int8 the weights of MXFP4 are what they are, each group with half of its scale.

use kernels::{GROUP, GroupedRow, WeightType};
use std::borrow::Cow;
use std::sync::Arc;

/// Twice what the sixteen codes stand for.
const TWICE: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];
/// The code of the largest scale of which half is a number of f16.
pub(super) const LARGEST_SCALE: u8 = 143;

/// All experts of a layer, in the two tensors of one name.
pub struct Mxfp4<'a> {
    pub(super) blocks: Cow<'a, [u8]>,
    pub(super) scales: Cow<'a, [u8]>,
    /// `[N, K]` of each expert.
    pub(super) shape: [usize; 2],
}

/// One matrix of one expert: every `step`th row from the one at `first` on.
pub struct Mxfp4Rows<'a> {
    pub(super) of: Arc<Mxfp4<'a>>,
    pub(super) expert: usize,
    pub(super) first: usize,
    pub(super) step: usize,
}

impl Mxfp4Rows<'_> {
    pub fn shape(&self) -> [usize; 2] {
        let [n, k] = self.of.shape;
        [n / self.step, k]
    }

    /// Of all rows of the tensors.
    fn row(&self, row: usize) -> usize {
        self.expert * self.of.shape[0] + self.first + row * self.step
    }

    pub fn read_f32(&self, row: usize, out: &mut [f32]) {
        let Mxfp4 { blocks, scales, shape: [_, k] } = &*self.of;
        let (row, groups) = (self.row(row), k / GROUP);
        for (i, out) in out.iter_mut().enumerate() {
            let scale = half_scale(scales[row * groups + i / GROUP]);
            *out = f32::from(level(blocks, row * k + i)) * scale;
        }
    }

    pub fn read_groups(&self, row: usize, stored_as: WeightType, out: &mut GroupedRow) -> bool {
        if stored_as != WeightType::Int8 {
            return false;
        }
        let Mxfp4 { blocks, scales, shape: [_, k] } = &*self.of;
        let (row, groups) = (self.row(row), k / GROUP);
        for (i, level) in out.levels.iter_mut().enumerate() {
            *level = self::level(blocks, row * k + i);
        }
        for (group, (scale, zero)) in out.scales.iter_mut().zip(&mut out.zeros).enumerate() {
            *scale = half::f16::from_f32(half_scale(scales[row * groups + group]));
            *zero = half::f16::ZERO;
        }
        true
    }
}

/// Of value `index`, counted over the whole tensor.
fn level(blocks: &[u8], index: usize) -> i8 {
    TWICE[usize::from(blocks[index / 2] >> (index % 2 * 4) & 0xf)]
}

/// For levels that are twice the values.
fn half_scale(code: u8) -> f32 {
    2f32.powi(i32::from(code) - 128)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two experts of one row of gate and one of up, 64 inputs.
    #[test]
    fn mxfp4_is_what_its_codes_say() {
        let blocks: Vec<u8> = (0..4 * 32).map(|i| (i * 37 % 256) as u8).collect();
        let scales = vec![127, 128, 120, 1, 127, 126, 143, 130];
        let of = Arc::new(Mxfp4 {
            blocks: Cow::Owned(blocks.clone()),
            scales: Cow::Owned(scales.clone()),
            shape: [2, 64],
        });
        let values = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
        for (expert, first) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let rows = Mxfp4Rows { of: of.clone(), expert, first, step: 2 };
            assert_eq!(rows.shape(), [1, 64]);
            let (mut found, mut groups) = (vec![0.0; 64], GroupedRow::new(64));
            rows.read_f32(0, &mut found);
            assert!(rows.read_groups(0, WeightType::Int8, &mut groups));
            assert!(!rows.read_groups(0, WeightType::Int4, &mut groups));
            let mut kept = vec![0.0; 64];
            groups.dequantize(&mut kept);
            for (i, found) in found.iter().enumerate() {
                let at = (expert * 2 + first) * 64 + i;
                let code = blocks[at / 2] >> (if at % 2 == 0 { 0 } else { 4 }) & 0xf;
                let scale = 2f64.powi(i32::from(scales[at / 32]) - 127);
                let sign = if code < 8 { 1.0 } else { -1.0 };
                let expected = sign * values[usize::from(code % 8)] * scale;
                assert_eq!(f64::from(*found), expected, "{at}");
                // f16 has no number as small as one of these scales.
                let is_small = scales[at / 32] == 1;
                assert_eq!(f64::from(kept[i]), if is_small { 0.0 } else { expected }, "{at}");
            }
        }
    }
}
