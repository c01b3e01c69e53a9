//! The order of weights in a panel of 32 rows of a matrix, for the processor: whatever kernels read next lies next in memory.
//!
//! ```text
//! k = 0: w[0][0] w[1][0] … w[31][0]           k = 1: w[0][1] …        f32, f16
//! k = 0: w[0][0] w[16][0] w[1][0] w[17][0] …                          bf16
//!
//! group of 32 k: 32 scales, (32 zeros,) then for each k:              quantised
//!   w[0] w[1] … w[31], a byte each                                    int8
//!   w[0] | w[16] << 4, w[1] | w[17] << 4, …                           int4
//! ```
//! The bf16 order makes one 32-bit word of columns c and c + 16: a shift gives one vector of f32, a mask the other. Nibbles are
//! levels in two's complement. Scales and zeros are f16, one for each row. K is filled up with zeros: to a multiple of 16 for
//! floats, to whole groups for the others, whose last group has scales like any other. A panel is zeros before it is packed.

use crate::matrix::PANEL;
use crate::quantize::GroupedRow;
use crate::weight_type::GROUP;
use crate::{DType, WeightType};
use half::{bf16, f16};

/// Writes the weights of one output into its column of a panel.
pub(crate) fn pack_row(panel: &mut [u8], dtype: DType, column: usize, values: &[f32]) {
    let size = dtype.size();
    let place = match dtype {
        DType::BF16 if column < PANEL / 2 => 2 * column,
        DType::BF16 => 2 * (column - PANEL / 2) + 1,
        _ => column,
    };
    let cells = panel.chunks_exact_mut(PANEL * size).map(|line| &mut line[place * size..(place + 1) * size]);
    for (cell, &value) in cells.zip(values) {
        match dtype {
            DType::F32 => cell.copy_from_slice(&value.to_ne_bytes()),
            DType::BF16 => cell.copy_from_slice(&bf16::from_f32(value).to_bits().to_ne_bytes()),
            DType::F16 => cell.copy_from_slice(&f16::from_f32_const(value).to_bits().to_ne_bytes()),
            DType::I32 | DType::U8 => unreachable!("weights are floats"),
        }
    }
}

/// Writes the levels, scale and zero of one output's group `index` into its column of that group of a panel.
pub(crate) fn pack_group(
    group: &mut [u8],
    stored_as: WeightType,
    column: usize,
    row: &GroupedRow,
    index: usize,
) {
    let levels = &row.levels[index * GROUP..row.levels.len().min((index + 1) * GROUP)];
    let (header, lines) = group.split_at_mut(stored_as.header_bytes());
    let place = 2 * column..2 * column + 2;
    header[place.clone()].copy_from_slice(&row.scales[index].to_ne_bytes());
    if stored_as == WeightType::Int4Zero {
        header[2 * PANEL..][place].copy_from_slice(&row.zeros[index].to_ne_bytes());
    }
    let lines = lines.chunks_exact_mut(stored_as.line_bytes()).zip(levels);
    match stored_as {
        WeightType::Int8 => lines.for_each(|(line, &level)| line[column] = level.cast_unsigned()),
        _ if column < PANEL / 2 => {
            lines.for_each(|(line, &level)| line[column] |= level.cast_unsigned() & 0xf);
        }
        _ => lines.for_each(|(line, &level)| line[column - PANEL / 2] |= level.cast_unsigned() << 4),
    }
}
