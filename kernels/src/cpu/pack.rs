//! The order of weights in a panel of 32 rows of a matrix, for the processor: whatever kernels read next lies next in memory.
//!
//! ```text
//! k = 0: w[0][0] w[1][0] … w[31][0]                   k = 1: w[0][1] …              f32, f16
//! k = 0, 1: w[0][0] w[0][1] w[1][0] w[1][1] …         k = 2, 3: w[0][2] w[0][3] …   bf16
//!
//! group of 32 k: 32 scales, (32 zeros,) then for each four k:                       quantised
//!   w[0][k .. k + 4] w[1][k .. k + 4] … w[31][k .. k + 4], a byte each              int8
//!   (w[0][k] | w[16][k] << 4) …, four bytes of columns 0 and 16, then of 1 and 17   int4
//! ```
//! A word of 32 bits holds the terms of one column that an instruction multiplies and sums at once: two of bf16, four of eight bits.
//! Without such instructions a shift or a mask of a word gives a vector of one term. Bytes of int8 are signed; nibbles are levels + 8,
//! without a sign. Scales and zeros are f16, one for each row. K is filled up with zeros: to a multiple of 16 for floats, to whole
//! groups for the others, whose last group has scales like any other. A panel is zeros before it is packed.

use crate::panel::{GROUP, PANEL};
use crate::quantize::GroupedRow;
use crate::{DType, WeightType};
use half::{bf16, f16};

/// The number of this order. Who keeps packed panels, such as a file, must not use them with another: it changes with every change
/// to what `pack_row`, `pack_group` and `compact::pack_block` write, to how floats are rounded (`quantize.rs`), and to the places of experts (`experts.rs`).
pub const LAYOUT_VERSION: u32 = 4;

/// What nibbles are above their levels.
pub(crate) const NIBBLE_OFFSET: i32 = 8;

/// Writes the weights of one output into its column of a panel.
pub(crate) fn pack_row(panel: &mut [u8], dtype: DType, column: usize, values: &[f32]) {
    let size = dtype.size();
    let terms = if dtype == DType::BF16 { 2 } else { 1 };
    for (line, values) in panel.chunks_exact_mut(terms * PANEL * size).zip(values.chunks(terms)) {
        let cells = line[terms * column * size..].chunks_exact_mut(size);
        for (cell, &value) in cells.zip(values) {
            match dtype {
                DType::F32 => cell.copy_from_slice(&value.to_ne_bytes()),
                DType::BF16 => cell.copy_from_slice(&bf16::from_f32(value).to_bits().to_ne_bytes()),
                DType::F16 => cell.copy_from_slice(&f16::from_f32_const(value).to_bits().to_ne_bytes()),
                DType::I32 | DType::U8 => unreachable!("weights are floats"),
            }
        }
    }
}

/// Reads lines of a panel of floats, from its line `first` on as far as they go, into rows of K terms.
pub(crate) fn unpack_panel(lines: &[u8], dtype: DType, k: usize, values: &mut [f32], first: usize) {
    let (size, terms) = (dtype.size(), if dtype == DType::BF16 { 2 } else { 1 });
    for (line, first) in lines.chunks_exact(terms * PANEL * size).zip((first..k).step_by(terms)) {
        for (column, row) in values.chunks_exact_mut(k).enumerate() {
            let cells = line[terms * column * size..].chunks_exact(size);
            for (value, cell) in row[first..].iter_mut().take(terms).zip(cells) {
                *value = match dtype {
                    DType::F32 => f32::from_ne_bytes(cell.try_into().expect("four bytes")),
                    DType::BF16 => bf16::from_ne_bytes(cell.try_into().expect("two bytes")).to_f32(),
                    DType::F16 => f16::from_ne_bytes(cell.try_into().expect("two bytes")).to_f32(),
                    DType::I32 | DType::U8 => unreachable!("weights are floats"),
                };
            }
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
    let nibble = |level: i8| level.wrapping_add(NIBBLE_OFFSET as i8).cast_unsigned() & 0xf;
    for (line, levels) in lines.chunks_exact_mut(4 * stored_as.line_bytes()).zip(levels.chunks(4)) {
        let cells = match stored_as {
            WeightType::Int8 => &mut line[4 * column..],
            _ => &mut line[4 * (column % (PANEL / 2))..],
        };
        for (cell, &level) in cells.iter_mut().zip(levels) {
            match stored_as {
                WeightType::Int8 => *cell = level.cast_unsigned(),
                _ if column < PANEL / 2 => *cell |= nibble(level),
                _ => *cell |= nibble(level) << 4,
            }
        }
    }
}
