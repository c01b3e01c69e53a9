//! One row of weights in groups of 32: what a file holds, or what floats are rounded to.
//!
//! ```text
//! weight = scale · (level - zero)        zero is 0 but for Int4Zero
//! ```
//! Scales that are chosen here have eight significant bits, so that f16 and bf16 both hold them: whoever reads them back, in
//! whichever type, has the same weights.

use crate::WeightType;
use crate::panel::GROUP;
use half::f16;

/// A row of K weights; groups are counted from its start, the last may be shorter.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GroupedRow {
    /// K, in the range of the type.
    pub levels: Vec<i8>,
    /// One for each group.
    pub scales: Vec<f16>,
    /// One for each group.
    pub zeros: Vec<f16>,
}

impl GroupedRow {
    /// For rows of `k` weights.
    pub fn new(k: usize) -> Self {
        let groups = k.div_ceil(GROUP);
        Self { levels: vec![0; k], scales: vec![f16::ZERO; groups], zeros: vec![f16::ZERO; groups] }
    }

    /// Rounds K floats. A group with a value that is not finite, or too large for f16, becomes NaN: what is wrong with a
    /// checkpoint stays visible.
    pub fn quantize(&mut self, stored_as: WeightType, values: &[f32]) {
        assert_eq!(values.len(), self.levels.len(), "quantize: K");
        let groups = values.chunks(GROUP).zip(self.levels.chunks_mut(GROUP));
        for ((values, levels), (scale, zero)) in groups.zip(self.scales.iter_mut().zip(&mut self.zeros)) {
            *zero = f16::ZERO;
            *scale = match stored_as {
                WeightType::Int8 => int8(values, levels),
                WeightType::Int4 => int4(values, levels),
                WeightType::Int4Zero => int4_zero(values, levels, zero),
                WeightType::F32 | WeightType::BF16 | WeightType::CompactBf16 | WeightType::F16 => {
                    panic!("{stored_as} weights have no groups")
                }
            };
            if values.iter().any(|value| !value.is_finite()) {
                *scale = f16::NAN;
            }
        }
    }

    /// What the levels stand for, as kernels multiply it.
    pub fn dequantize(&self, out: &mut [f32]) {
        assert_eq!(out.len(), self.levels.len(), "dequantize: K");
        for (group, (out, levels)) in out.chunks_mut(GROUP).zip(self.levels.chunks(GROUP)).enumerate() {
            let (scale, zero) = (self.scales[group].to_f32(), self.zeros[group].to_f32());
            for (out, &level) in out.iter_mut().zip(levels) {
                *out = scale * (f32::from(level) - zero);
            }
        }
    }
}

/// Symmetric: the largest magnitude becomes 127.
fn int8(values: &[f32], levels: &mut [i8]) -> f16 {
    let scale = scale_above(values.iter().fold(0.0, |max: f32, value| max.max(value.abs())) / 127.0);
    let by = inverse(scale);
    for (level, value) in levels.iter_mut().zip(values) {
        *level = nearest(value * by, -127.0, 127.0) as i8;
    }
    scale
}

/// Shares of the range that the best scale is looked for at. Below 1 the largest weight is cut off, and all the others are
/// nearer to their levels.
const RANGES: [f32; 4] = [1.0, 0.95, 0.9, 0.85];

/// Symmetric; there are more negative levels than positive ones, and the largest magnitude gets that side. Of a few scales the
/// one with the least squared error, the first of equals.
fn int4(values: &[f32], levels: &mut [i8]) -> f16 {
    let largest = values.iter().fold(0.0f32, |max, &v| if v.abs() > max.abs() { v } else { max });
    let scales = RANGES.map(|range| rounded(largest / -8.0 * range));
    let (steps, by) = (scales.map(f16::to_f32), scales.map(inverse));
    // All at once, a weight after the other: four sums that do not wait for one another.
    let mut errors = [0.0f32; RANGES.len()];
    for &v in values {
        for ((error, step), by) in errors.iter_mut().zip(steps).zip(by) {
            let off = v - step * nearest(v * by, -8.0, 7.0);
            *error += off * off;
        }
    }
    let (mut best, mut least) = (rounded(largest / -8.0), f32::INFINITY);
    for (scale, error) in scales.into_iter().zip(errors) {
        if error < least {
            (best, least) = (scale, error);
        }
    }
    let by = inverse(best);
    for (level, value) in levels.iter_mut().zip(values) {
        *level = nearest(value * by, -8.0, 7.0) as i8;
    }
    best
}

/// The range from the smallest to the largest, 0 within it, in fifteen steps; 0 is exactly a level.
fn int4_zero(values: &[f32], levels: &mut [i8], zero: &mut f16) -> f16 {
    let (low, high) = values.iter().fold((0.0f32, 0.0f32), |(low, high), &v| (low.min(v), high.max(v)));
    let scale = scale_above((high - low) / 15.0);
    let by = inverse(scale);
    let at = nearest(-8.0 - low * by, -8.0, 7.0);
    *zero = f16::from_f32(at);
    for (level, value) in levels.iter_mut().zip(values) {
        *level = (nearest(value * by, -64.0, 64.0) + at).clamp(-8.0, 7.0) as i8;
    }
    scale
}

/// The nearest whole number within bounds that are whole and small, of two the even one; NaN stays. What the addition cuts off is what
/// rounding cuts off, in one instruction on every processor where `round_ties_even` is a call on some.
pub(crate) fn nearest(x: f32, low: f32, high: f32) -> f32 {
    const WHOLE: f32 = 1.5 * (1 << 23) as f32;
    (x.clamp(low, high) + WHOLE) - WHOLE
}

fn inverse(scale: f16) -> f32 {
    if scale == f16::ZERO { 0.0 } else { 1.0 / scale.to_f32() }
}

/// The last place of the smallest numbers of f16.
const TINY: f32 = 1.0 / (1 << 24) as f32;
/// From here down numbers of f16 have fewer than eight bits.
const FEW_BITS: f32 = 1.0 / (1 << 17) as f32;

/// The smallest number of eight bits in f16 that is not below `x >= 0`.
fn scale_above(x: f32) -> f16 {
    if x < FEW_BITS {
        return f16::from_f32((x / TINY).ceil() * TINY);
    }
    f16::from_f32(f32::from_bits((x.to_bits() + 0xffff) & 0xffff_0000))
}

/// The nearest number of eight bits in f16; below, where steps are coarse, the next one away from zero.
fn rounded(x: f32) -> f16 {
    if x.abs() < FEW_BITS {
        return f16::from_f32((x.abs() / TINY).ceil() * TINY * x.signum());
    }
    f16::from_f32(f32::from_bits((x.to_bits() + 0x8000) & 0xffff_0000))
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    const QUANTISED: [WeightType; 3] = [WeightType::Int8, WeightType::Int4, WeightType::Int4Zero];

    fn round_trip(stored_as: WeightType, values: &[f32]) -> (GroupedRow, Vec<f32>) {
        let mut row = GroupedRow::new(values.len());
        row.quantize(stored_as, values);
        let mut out = vec![0.0; values.len()];
        row.dequantize(&mut out);
        (row, out)
    }

    #[test]
    fn errors_are_at_most_half_a_step() {
        let values: Vec<f32> = (0..77).map(|i| ((i * 37 % 101) as f32 - 43.0) * 0.013).collect();
        for (stored_as, most) in [
            (WeightType::Int8, 0.51 / 127.0),
            (WeightType::Int4, 1.0 / 8.0),
            (WeightType::Int4Zero, 0.55 / 7.5),
        ] {
            let (row, out) = round_trip(stored_as, &values);
            assert_eq!((row.levels.len(), row.scales.len()), (77, 3));
            let range = if stored_as == WeightType::Int8 { -127..=127 } else { -8..=7 };
            assert!(row.levels.iter().all(|level| range.contains(level)), "{stored_as}");
            for (chunk, out) in values.chunks(GROUP).zip(out.chunks(GROUP)) {
                let largest = chunk.iter().fold(0.0f32, |max, v| max.max(v.abs()));
                for (a, b) in chunk.iter().zip(out) {
                    assert!((a - b).abs() <= most * largest, "{stored_as}: {a} became {b}");
                }
            }
        }
    }

    #[test]
    fn nearest_is_rounding_to_even() {
        let halves = (-300..300).map(|i| i as f32 * 0.5);
        let around = halves.flat_map(|x| [x, x.next_up(), x.next_down(), x + 0.25]);
        for x in around.chain([f32::INFINITY, f32::NEG_INFINITY, 1e30, -1e30, 1e-40]) {
            for (low, high) in [(-8.0, 7.0), (-127.0, 127.0), (-64.0, 64.0)] {
                assert_eq!(nearest(x, low, high), x.round_ties_even().clamp(low, high), "{x}");
            }
        }
        assert!(nearest(f32::NAN, -8.0, 7.0).is_nan());
    }

    #[test]
    fn scales_are_numbers_of_bf16_as_well() {
        for exponent in -30..14 {
            for mantissa in [1.0f32, 1.001, 1.2345, 1.5, 1.9999] {
                let values = [mantissa * 2f32.powi(exponent), -0.3 * 2f32.powi(exponent)];
                for stored_as in QUANTISED {
                    let (row, out) = round_trip(stored_as, &values);
                    let scale = row.scales[0].to_f32();
                    assert_eq!(bf16::from_f32(scale).to_f32(), scale, "{stored_as} {values:?}");
                    let step = scale.abs().max(TINY);
                    assert!(
                        (values[0] - out[0]).abs() <= 1.7 * step,
                        "{stored_as}: {values:?} became {out:?} in steps of {step}"
                    );
                }
            }
        }
    }

    #[test]
    fn zeros_and_ends_of_the_range_are_exact() {
        for stored_as in QUANTISED {
            let (_, out) = round_trip(stored_as, &[0.0; 33]);
            assert_eq!(out, [0.0; 33], "{stored_as}");
            let (_, out) = round_trip(stored_as, &[0.0, 1.0, 0.25]);
            assert_eq!(out[0], 0.0, "{stored_as}");
        }
        // Whole numbers that are their own levels.
        let values: Vec<f32> = (-8..8).map(|level| -0.5 * level as f32).collect();
        assert_eq!(round_trip(WeightType::Int4, &values).1, values);
        assert_eq!(round_trip(WeightType::Int4Zero, &values).1, values);
    }

    #[test]
    fn what_is_not_finite_stays_visible() {
        for stored_as in QUANTISED {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 3e38, 1e8] {
                let mut values = [0.5; 40];
                values[3] = bad;
                let (_, out) = round_trip(stored_as, &values);
                assert!(
                    !out[3].is_finite() || (out[3] - bad).abs() < bad * 0.1,
                    "{stored_as} {bad}: {}",
                    out[3]
                );
                assert!(out[32..].iter().all(|v| (v - 0.5).abs() < 0.04), "{stored_as}: the next group");
            }
        }
    }
}
