//! The order of weights in device memory.
//!
//! 16-bit weights lie as tensor cores take them: for each 16 of K, for each half of the panel's 32 rows, the A fragment of
//! mma.m16n8k16 (see ptx.cuh), 16 bytes for each lane of a warp. A warp so reads 512 bytes in one go, in order, needs no shared
//! memory to rearrange them, and a register fragment of wgmma is the same. Weights in f32 lie row by row.
//!
//! Quantised weights have a unit for each group of 32 of K: scales and zeros as the processor has them (cpu/pack.rs), then for each
//! half of the rows and each lane the levels of both tiles of 16 in the same order, so that a lane reads them in one go. What is
//! filled up counts for nothing: rows have scales of zero, and k meets zeros among the activations.
//!
//! ```text
//! panel: [K / 16][2 halves][32 lanes][4 registers][2]     register r of lane l: row l / 4 + r % 2 * 8, k = l % 4 * 2 + r / 2 * 8
//! group: 32 scales f16, (32 zeros f16,) [2 halves][32 lanes][2 tiles] of
//!   int8: [4 registers][2] bytes                int4: a word, level + 8 of the lower k of register r in nibble r, of the higher in r + 4
//! ```

use crate::panel::{GROUP, PANEL};
use crate::quantize::GroupedRow;
use crate::{DType, WeightType};
use half::{bf16, f16};

/// Writes the weights of one row of a panel. The panel was zeroed.
pub(crate) fn pack_row(panel: &mut [u8], dtype: DType, row: usize, values: &[f32]) {
    let size = dtype.size();
    let k_padded = panel.len() / (PANEL * size);
    for (k, &value) in values.iter().enumerate() {
        let place = match dtype {
            DType::F32 => row * k_padded + k,
            _ => fragment_place(row, k),
        };
        let cell = &mut panel[place * size..(place + 1) * size];
        match dtype {
            DType::F32 => cell.copy_from_slice(&value.to_le_bytes()),
            DType::BF16 => cell.copy_from_slice(&bf16::from_f32(value).to_le_bytes()),
            DType::F16 => cell.copy_from_slice(&f16::from_f32_const(value).to_le_bytes()),
            DType::I32 | DType::U8 => unreachable!("weights are floats"),
        }
    }
}

/// Writes the levels, scales and zeros of one row of a panel. The panel was zeroed.
pub(crate) fn pack_groups(panel: &mut [u8], stored_as: WeightType, row: usize, groups: &GroupedRow) {
    let units = panel.chunks_exact_mut(stored_as.group_bytes()).zip(groups.levels.chunks(GROUP));
    for (index, (unit, levels)) in units.enumerate() {
        let (header, lanes) = unit.split_at_mut(stored_as.header_bytes());
        let place = 2 * row..2 * row + 2;
        header[place.clone()].copy_from_slice(&groups.scales[index].to_le_bytes());
        if stored_as == WeightType::Int4Zero {
            header[2 * PANEL..][place].copy_from_slice(&groups.zeros[index].to_le_bytes());
        }
        for (k, &level) in levels.iter().enumerate() {
            let (lane, level_of_lane) = group_place(row, k);
            if stored_as == WeightType::Int8 {
                lanes[lane * 16 + level_of_lane] = level.cast_unsigned();
            } else {
                let (tile, level_of_tile) = (level_of_lane / 8, level_of_lane % 8);
                let nibble = level_of_tile / 2 + level_of_tile % 2 * 4;
                lanes[lane * 8 + tile * 4 + nibble / 2] |= (level + 8).cast_unsigned() << (nibble % 2 * 4);
            }
        }
    }
}

/// The lane of both halves that has a level of a group, and which of its 16 levels it is.
fn group_place(row: usize, k: usize) -> (usize, usize) {
    let place = fragment_place(row, k);
    let (tile, lane, level) = (place / 512, place / 8 % 64, place % 8);
    (lane, tile * 8 + level)
}

/// The index of a weight in its panel.
fn fragment_place(row: usize, k: usize) -> usize {
    let (half, row) = (row / 16, row % 16);
    let (tile, k) = (k / 16, k % 16);
    let lane = row % 8 * 4 + k % 8 / 2;
    let register = row / 8 + k / 8 * 2;
    ((tile * 2 + half) * 32 + lane) * 8 + register * 2 + k % 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_is_taken_once() {
        let mut places: Vec<usize> =
            (0..32).flat_map(|row| (0..48).map(move |k| fragment_place(row, k))).collect();
        places.sort_unstable();
        assert!(places.into_iter().eq(0..32 * 48));
    }

    #[test]
    fn fragments_are_those_of_the_instruction() {
        // Lane 13 is group 3, pair 2: its registers hold (3, 2..4), (11, 2..4), (3, 10..12), (11, 10..12).
        let lane = 13 * 8;
        let expected = [(3, 2), (3, 3), (11, 2), (11, 3), (3, 10), (3, 11), (11, 10), (11, 11)];
        for (i, (row, k)) in expected.into_iter().enumerate() {
            assert_eq!(fragment_place(row, k), lane + i);
            assert_eq!(fragment_place(16 + row, 16 + k), 3 * 256 + lane + i);
        }
    }
}
