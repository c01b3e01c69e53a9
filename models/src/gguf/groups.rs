//! Blocks as the groups of 32 that kernels read, where nothing is lost by it.
//!
//! | blocks | kept as | |
//! |---|---|---|
//! | Q8_0, Q5_0, Q4_0, IQ4_NL | int8, int8, int4, int8 | the same numbers |
//! | Q3_K | int8 | the same numbers: levels are products of two whole numbers. Where one is 128, its row is rounded as below |
//! | IQ4_XS | int8 | the scale is rounded to f16, by 1/2048 at most |
//! | Q4_1, Q4_K | int4 with zeros | scale and zero are rounded to f16, 1/2048 of each at most |
//! | Q2_K, Q5_1, Q5_K, Q6_K | int8 | rounded once more, to 1/254 of a group's largest weight |

use super::blocks::{BlockType, IQ4_LEVELS, half_at, iq4_xs_scale, q3_k_level, scale_and_minimum};
use half::f16;
use kernels::{GROUP, GroupedRow, WeightType};

impl BlockType {
    /// `None`: floats.
    pub fn kept_as(self) -> Option<WeightType> {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => None,
            Self::Q4_0 => Some(WeightType::Int4),
            Self::Q4_1 | Self::Q4K => Some(WeightType::Int4Zero),
            Self::Q8_0 | Self::Q5_0 | Self::Q5_1 | Self::Iq4Nl => Some(WeightType::Int8),
            Self::Q2K | Self::Q3K | Self::Q5K | Self::Q6K | Self::Iq4Xs => Some(WeightType::Int8),
        }
    }

    /// A row's blocks as groups; `false` where they are no such groups.
    pub fn read_groups(self, blocks: &[u8], stored_as: WeightType, out: &mut GroupedRow) -> bool {
        let symmetric = match self {
            Self::Q8_0 => stored_as == WeightType::Int8,
            Self::Q5_0 => stored_as == WeightType::Int8,
            Self::Iq4Nl => stored_as == WeightType::Int8,
            Self::Q3K if stored_as == WeightType::Int8 => return products(blocks, out),
            Self::Iq4Xs if stored_as == WeightType::Int8 => return scaled(blocks, out),
            Self::Q4_0 => stored_as.is_quantised(),
            Self::Q4_1 | Self::Q4K if stored_as == WeightType::Int4Zero => {
                with_zeros(self, blocks, out);
                return true;
            }
            _ => false,
        };
        if symmetric {
            for (group, block) in blocks.chunks_exact(self.bytes()).enumerate() {
                out.scales[group] = f16::from_le_bytes([block[0], block[1]]);
                out.zeros[group] = f16::ZERO;
                levels(self, block, &mut out.levels[group * GROUP..][..GROUP]);
            }
        }
        symmetric
    }
}

fn levels(block_type: BlockType, block: &[u8], out: &mut [i8]) {
    match block_type {
        BlockType::Q8_0 => out.iter_mut().zip(&block[2..]).for_each(|(level, &q)| *level = q as i8),
        BlockType::Q4_0 => nibbles(&block[2..], out),
        BlockType::Iq4Nl => iq4_levels(&block[2..], out),
        BlockType::Q5_0 => {
            let fifth = u32::from_le_bytes(block[2..6].try_into().expect("four bytes"));
            for (j, &byte) in block[6..].iter().enumerate() {
                let level = |half: u8, at: usize| (half | ((fifth >> at & 1) << 4) as u8) as i8 - 16;
                out[j] = level(byte & 15, j);
                out[j + 16] = level(byte >> 4, j + 16);
            }
        }
        other => unreachable!("{other} has minimums"),
    }
}

fn iq4_levels(bytes: &[u8], out: &mut [i8]) {
    let (low, high) = out.split_at_mut(GROUP / 2);
    for ((low, high), &byte) in low.iter_mut().zip(high).zip(bytes) {
        *low = IQ4_LEVELS[usize::from(byte & 15)];
        *high = IQ4_LEVELS[usize::from(byte >> 4)];
    }
}

/// Q3_K: a level is the product of a group's scale and a weight's whole number. `false`: one of them is beyond -127 ..= 127.
fn products(blocks: &[u8], out: &mut GroupedRow) -> bool {
    let size = BlockType::Q3K.weights();
    for (index, block) in blocks.chunks_exact(BlockType::Q3K.bytes()).enumerate() {
        for (i, level) in out.levels[index * size..][..size].iter_mut().enumerate() {
            match i8::try_from(q3_k_level(block, i)) {
                Ok(product) => *level = product,
                Err(_) => return false,
            }
        }
        let groups = index * size / GROUP..(index + 1) * size / GROUP;
        out.scales[groups.clone()].fill(f16::from_f32(half_at(block, 108)));
        out.zeros[groups].fill(f16::ZERO);
    }
    true
}

/// IQ4_XS; `false` where a scale is beyond f16.
fn scaled(blocks: &[u8], out: &mut GroupedRow) -> bool {
    let per_block = BlockType::Iq4Xs.weights() / GROUP;
    for (index, block) in blocks.chunks_exact(BlockType::Iq4Xs.bytes()).enumerate() {
        for (j, bytes) in block[8..].chunks_exact(GROUP / 2).enumerate() {
            let group = index * per_block + j;
            let scale = f16::from_f32(iq4_xs_scale(block, j));
            if !scale.is_finite() {
                return false;
            }
            (out.scales[group], out.zeros[group]) = (scale, f16::ZERO);
            iq4_levels(bytes, &mut out.levels[group * GROUP..][..GROUP]);
        }
    }
    true
}

/// Levels -8 ..= 7 from halves of bytes, the low ones first.
fn nibbles(bytes: &[u8], out: &mut [i8]) {
    let (low, high) = out.split_at_mut(GROUP / 2);
    for ((low, high), &byte) in low.iter_mut().zip(high).zip(bytes) {
        *low = (byte & 15) as i8 - 8;
        *high = (byte >> 4) as i8 - 8;
    }
}

/// `d q + m = d (level - zero)` with `level = q - 8`, so `zero = -8 - m / d`.
fn with_zeros(block_type: BlockType, blocks: &[u8], out: &mut GroupedRow) {
    let groups_per_block = block_type.weights() / GROUP;
    for (index, block) in blocks.chunks_exact(block_type.bytes()).enumerate() {
        for j in 0..groups_per_block {
            let group = index * groups_per_block + j;
            let levels = &mut out.levels[group * GROUP..][..GROUP];
            let (d, m) = match block_type {
                BlockType::Q4_1 => {
                    nibbles(&block[4..], levels);
                    (half_at(block, 0), half_at(block, 2))
                }
                _ => {
                    let (scale, minimum) = scale_and_minimum(&block[4..16], j);
                    for (level, byte) in levels.iter_mut().zip(&block[16 + j / 2 * GROUP..]) {
                        *level = (if j % 2 == 0 { byte & 15 } else { byte >> 4 }) as i8 - 8;
                    }
                    (half_at(block, 0) * f32::from(scale), -half_at(block, 2) * f32::from(minimum))
                }
            };
            constant_or(d, m, group, out);
        }
    }
}

/// A group whose scale f16 cannot hold beside its minimum is one number: the minimum, once as a scale.
fn constant_or(d: f32, m: f32, group: usize, out: &mut GroupedRow) {
    let (scale, zero) = (f16::from_f32(d), f16::from_f32(-8.0 - m / d));
    if d != 0.0 && scale.to_f32() != 0.0 && zero.is_finite() {
        (out.scales[group], out.zeros[group]) = (scale, zero);
        return;
    }
    out.levels[group * GROUP..][..GROUP].fill(1);
    (out.scales[group], out.zeros[group]) = (f16::from_f32(m), f16::ZERO);
}

#[cfg(test)]
mod tests {
    use super::super::Blocks;
    use super::*;
    use crate::gguf::Gguf;
    use std::path::Path;

    /// What groups lose of random blocks, against the range of a group.
    #[test]
    fn groups_stand_for_what_their_blocks_do() {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/gguf"));
        let gguf = Gguf::open(&folder.join("blocks.gguf")).unwrap();
        let kept = [
            ("Q8_0", WeightType::Int8, 0.0),
            ("Q5_0", WeightType::Int8, 0.0),
            ("Q4_0", WeightType::Int4, 0.0),
            ("Q4_0", WeightType::Int4Zero, 0.0),
            ("Q4_0", WeightType::Int8, 0.0),
            ("Q4_1", WeightType::Int4Zero, 1e-3),
            ("Q4_K", WeightType::Int4Zero, 1e-3),
        ];
        for (name, stored_as, tolerance) in kept {
            let Blocks { info, bytes, .. } = gguf.blocks(name).unwrap();
            let [rows, k] = info.shape[..] else { panic!("{name} is a matrix") };
            for blocks in bytes.chunks_exact(bytes.len() / rows) {
                let (mut groups, mut expected, mut found) = (GroupedRow::new(k), vec![0.0; k], vec![0.0; k]);
                assert!(info.block_type.read_groups(blocks, stored_as, &mut groups), "{name} as {stored_as}");
                info.block_type.dequantize(blocks, &mut expected);
                groups.dequantize(&mut found);
                for (found, expected) in found.chunks(GROUP).zip(expected.chunks(GROUP)) {
                    let range = expected.iter().fold(0.0, |max: f32, value| max.max(value.abs()));
                    for (found, expected) in found.iter().zip(expected) {
                        let error = (found - expected).abs();
                        assert!(error <= tolerance * range, "{name} as {stored_as}: {found}, not {expected}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_would_be_rounded_is_left_to_the_quantiser() {
        let mut groups = GroupedRow::new(256);
        for (block_type, stored_as) in [
            (BlockType::Q6K, WeightType::Int8),
            (BlockType::Q5K, WeightType::Int8),
            (BlockType::Q8_0, WeightType::Int4),
            (BlockType::Q4K, WeightType::Int8),
            (BlockType::BF16, WeightType::Int8),
        ] {
            let blocks = vec![0; block_type.row_bytes(256).unwrap()];
            assert!(!block_type.read_groups(&blocks, stored_as, &mut groups), "{block_type} as {stored_as}");
        }
    }
}
