//! Weights of no model, for benches and for servers without a checkpoint: every number is a function of the seed and its place, so that
//! they do not depend on who makes them.

use crate::panel::GROUP;
use crate::quantize::GroupedRow;
use crate::source::MemberRows;
use crate::{DType, Device, Tensor, WeightType};
use half::f16;

/// Elements of a tensor that are made at a time.
const BLOCK: usize = 64 << 10;

/// Rows of members of `n` rows each, with mean 0 and deviation `std`.
pub(crate) struct RandomRows {
    pub n: usize,
    pub std: f32,
    pub seed: u64,
}

impl MemberRows for RandomRows {
    fn read_f32(&self, member: usize, row: usize, out: &mut [f32]) {
        let start = ((member * self.n + row) * out.len()) as u64;
        normals(self.seed, start, self.std, out);
    }

    /// Levels and scales, without floats that would be rounded. Levels of 4 bits have a mean of -1/2, so that the sign of each group's
    /// scale is drawn: a mean that all weights share would be one direction that every row of activations turns to.
    fn read_groups(&self, member: usize, row: usize, stored_as: WeightType, out: &mut GroupedRow) -> bool {
        let mut state = mix(self.seed ^ mix(((member * self.n + row) as u64).wrapping_add(PHASE)));
        let scale = f16::from_f32(self.std / deviation(stored_as));
        out.zeros.fill(f16::ZERO);
        for (levels, out_scale) in out.levels.chunks_mut(GROUP).zip(&mut out.scales) {
            let per_word = if stored_as == WeightType::Int8 { 8 } else { 16 };
            for levels in levels.chunks_mut(per_word) {
                let word = next(&mut state);
                for (i, level) in levels.iter_mut().enumerate() {
                    *level = match per_word {
                        // The range of quantised weights is symmetric.
                        8 => (word >> (8 * i) as u32).cast_signed() as i8,
                        _ => (word << (60 - 4 * i) >> 56).cast_signed() as i8 >> 4,
                    };
                    *level = (*level).max(-127);
                }
            }
            *out_scale = if next(&mut state) & 1 == 0 { scale } else { -scale };
        }
        true
    }
}

impl Tensor {
    /// As `Matrix::random` of floats.
    pub fn random(device: &Device, shape: &[usize], std: f32, seed: u64) -> Self {
        Self::random_as(device, DType::F32, shape, std, seed)
    }

    /// The same numbers, rounded to another type of floats.
    pub fn random_as(device: &Device, dtype: DType, shape: &[usize], std: f32, seed: u64) -> Self {
        let mut tensor = Self::unwritten(device, dtype, shape);
        tensor.fill(BLOCK, &|start, out| normals(seed, start as u64, std, out));
        tensor
    }
}

/// Of levels that are all equally frequent, about zero.
fn deviation(stored_as: WeightType) -> f32 {
    match stored_as {
        // -127 ..= 127: √(127 · 128 / 3).
        WeightType::Int8 => 73.61,
        // -8 ..= 7: √(344 / 16).
        WeightType::Int4 | WeightType::Int4Zero => 4.637,
        WeightType::F32 | WeightType::BF16 | WeightType::CompactBf16 | WeightType::F16 => {
            panic!("{stored_as} weights have no levels")
        }
    }
}

fn normals(seed: u64, start: u64, std: f32, out: &mut [f32]) {
    for (i, out) in out.iter_mut().enumerate() {
        *out = std * standard_normal(seed, start + i as u64);
    }
}

/// The sum of four uniform numbers, scaled to variance 1.
fn standard_normal(seed: u64, index: u64) -> f32 {
    let bits = mix(seed ^ mix(index.wrapping_add(PHASE)));
    let sum: u64 = (0..4).map(|i| bits >> (16 * i) & 0xffff).sum();
    // Each part has mean 32767.5 and variance (65536² - 1) / 12.
    (sum as f32 - 131_070.0) * (1.0 / 37_837.23)
}

/// The golden ratio in 64 bits.
const PHASE: u64 = 0x9e37_79b9_7f4a_7c15;

/// The next number of SplitMix64.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(PHASE);
    mix(*state)
}

/// The finaliser of SplitMix64.
fn mix(mut x: u64) -> u64 {
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantised_numbers_have_the_mean_and_the_deviation_that_were_asked_for() {
        let (k, rows, std) = (1024, 200, 0.02);
        for stored_as in [WeightType::Int8, WeightType::Int4, WeightType::Int4Zero] {
            let source = RandomRows { n: rows, std, seed: 7 };
            let mut row = GroupedRow::new(k);
            let (mut values, mut all) = (vec![0.0; k], Vec::new());
            let mut levels = [0usize; 256];
            for index in 0..rows {
                assert!(source.read_groups(0, index, stored_as, &mut row));
                row.dequantize(&mut values);
                all.extend(values.iter().map(|&v| f64::from(v)));
                row.levels.iter().for_each(|&level| levels[(i32::from(level) + 128) as usize] += 1);
            }
            let count = all.len() as f64;
            let mean = all.iter().sum::<f64>() / count;
            let deviation = (all.iter().map(|v| v * v).sum::<f64>() / count).sqrt();
            assert!(mean.abs() < 3e-4, "{stored_as}: mean {mean}");
            assert!((deviation / f64::from(std) - 1.0).abs() < 0.01, "{stored_as}: deviation {deviation}");
            let used: Vec<usize> = (0..256).filter(|&i| levels[i] > 0).collect();
            let (low, high) = if stored_as == WeightType::Int8 { (-127, 127) } else { (-8, 7) };
            assert_eq!(used, (low + 128..=high + 128).map(|i: i32| i as usize).collect::<Vec<_>>());
        }
    }

    #[test]
    fn rows_members_and_seeds_differ() {
        let read = |seed, member, row| {
            let mut groups = GroupedRow::new(64);
            RandomRows { n: 10, std: 1.0, seed }.read_groups(member, row, WeightType::Int4, &mut groups);
            groups
        };
        let all = [read(1, 0, 0), read(1, 0, 1), read(1, 1, 0), read(2, 0, 0)];
        for (i, one) in all.iter().enumerate() {
            assert!(all[..i].iter().all(|other| other != one), "{i}");
        }
        assert_eq!(read(1, 1, 0), read(1, 0, 10));
    }
}
