//! Weights in e4m3 with a scale for each block of rows and columns, as DeepSeek-V3 is published, for each row or for all.
//!
//! ```text
//! NAME.weight  F8_E4M3 [N, K]        NAME.weight_scale_inv  F32 [N / 128, K / 128], rounded up
//!                                    NAME.weight_scale      the same, [N, 1], [1] or [] in other forms
//! weight = value · scale of its block
//! ```

use super::host::HostWeights;
use std::borrow::Cow;

pub struct Fp8<'a> {
    pub(super) shape: [usize; 2],
    pub(super) values: Cow<'a, [u8]>,
    pub(super) scales: HostWeights<'a>,
    pub(super) block: [usize; 2],
}

impl Fp8<'_> {
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    pub fn read_f32(&self, row: usize, out: &mut [f32]) {
        let k = self.shape[1];
        let columns = k.div_ceil(self.block[1]);
        let blocks = out.chunks_mut(self.block[1]).zip(self.values[row * k..].chunks(self.block[1]));
        for (block, (out, values)) in blocks.enumerate() {
            let scale = self.scales.view().get(row / self.block[0] * columns + block);
            for (out, &value) in out.iter_mut().zip(values) {
                *out = e4m3(value) * scale;
            }
        }
    }
}

/// Sign, four bits of exponent with a bias of 7, three of mantissa; no infinities, and one NaN of each sign.
fn e4m3(bits: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(bits >> 3 & 0xf), f32::from(bits & 7));
    let magnitude = match (exponent, bits & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa / 512.0,
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    };
    if bits & 0x80 == 0 { magnitude } else { -magnitude }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e4m3_of_known_bits() {
        let known = [
            (0x00, 0.0),
            (0x01, 0.001953125),
            (0x07, 0.013671875),
            (0x08, 0.015625),
            (0x38, 1.0),
            (0x3f, 1.875),
            (0x7e, 448.0),
            (0xb8, -1.0),
            (0xfe, -448.0),
        ];
        for (bits, value) in known {
            assert_eq!(e4m3(bits), value, "{bits:#x}");
        }
        assert!(e4m3(0x7f).is_nan() && e4m3(0xff).is_nan());
    }
}
