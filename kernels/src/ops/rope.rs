//! rope: rotates the pairs of dimensions offset .. offset + R of each head by the angles of the token's position
//! x [T, H, D] f32 · table: cos, sin [P, R/2] f32 · positions [T] < P
//! Half: pairs (i, i + R/2) · Interleaved: pairs (2i, 2i + 1) · (a, b) becomes (a cos - b sin, b cos + a sin)
//! rope_sections: the same in halves from the first dimension on, where a token has three positions and each pair turns by one of them:
//! positions [T, 3] < P, those of time, row and column · a token whose three are equal has the bits of rope

use crate::cpu::rope::{self, RopePlan};
use crate::cuda::rope as cuda_rope;
use crate::operands::rope::{RopeLayout, RopeSections, RopeTable};
use crate::tensor::as_heads;
use crate::{Device, Index, Isa, Tensor};
use std::ops::Range;

pub fn rope<'a>(
    x: &mut Tensor,
    offset: usize,
    table: &RopeTable,
    positions: impl Into<Index<'a>>,
    layout: RopeLayout,
) {
    let [_, heads, head_len] = as_heads(x);
    run(x, RopePlan { head_len, heads: 0..heads, offset }, table, positions.into(), layout);
}

/// Rotates some of the heads, from their first dimension on.
pub fn rope_heads<'a>(
    x: &mut Tensor,
    heads: Range<usize>,
    table: &RopeTable,
    positions: impl Into<Index<'a>>,
    layout: RopeLayout,
) {
    let [_, num_heads, head_len] = as_heads(x);
    assert!(heads.start <= heads.end && heads.end <= num_heads, "rope: heads {heads:?} of {num_heads}");
    run(x, RopePlan { head_len, heads, offset: 0 }, table, positions.into(), layout);
}

/// Rotates all heads by three positions a token.
pub fn rope_sections<'a>(
    x: &mut Tensor,
    table: &RopeTable,
    positions: impl Into<Index<'a>>,
    sections: &RopeSections,
) {
    let [num_tokens, heads, head_len] = as_heads(x);
    let plan = RopePlan { head_len, heads: 0..heads, offset: 0 };
    let (index, half) = (positions.into(), table.cos.row_len());
    check_rotation(table, index, [RopeSections::AXES * num_tokens, head_len]);
    assert_eq!(sections.num_pairs(), half, "rope: pairs of {sections:?}");
    let (positions, row_len) = (index.as_slice().as_chunks::<3>().0, x.row_len());
    match &x.device().clone() {
        Device::Cpu(cpu) => cpu.for_rows(x.as_f32_mut(), row_len, |first, block| {
            for (i, row) in block.chunks_exact_mut(row_len).enumerate() {
                match positions[first + i] {
                    [time, y, x] if time == y && time == x => {
                        rotate(cpu.isa, row, &plan, table, (time as usize, RopeLayout::Half));
                    }
                    axes => rotate_sections(row, &plan, table, |pair| axes[sections.axis(pair)] as usize),
                }
            }
        }),
        Device::Cuda(cuda) => cuda_rope::rope_sections(cuda, x, &plan, table, (index, sections)),
    }
}

/// One token's row, in halves; `position_of` a pair.
fn rotate_sections(
    row: &mut [f32],
    plan: &RopePlan,
    table: &RopeTable,
    position_of: impl Fn(usize) -> usize,
) {
    let half = table.cos.row_len();
    let (cos, sin) = (table.cos.as_f32(), table.sin.as_f32());
    for head in row.chunks_exact_mut(plan.head_len) {
        let (first, second) = head[..2 * half].split_at_mut(half);
        for (pair, (a, b)) in first.iter_mut().zip(second).enumerate() {
            let at = position_of(pair) * half + pair;
            (*a, *b) = (*a * cos[at] - *b * sin[at], *b * cos[at] + *a * sin[at]);
        }
    }
}

fn run(x: &mut Tensor, plan: RopePlan, table: &RopeTable, index: Index, layout: RopeLayout) {
    assert!(plan.offset <= plan.head_len, "rope: from {} on, of {}", plan.offset, plan.head_len);
    check_rotation(table, index, [x.rows(), plan.head_len - plan.offset]);
    let (positions, row_len) = (index.as_slice(), x.row_len());
    match &x.device().clone() {
        Device::Cpu(cpu) => {
            cpu.for_rows(x.as_f32_mut(), row_len, |first, block| {
                for (i, row) in block.chunks_exact_mut(row_len).enumerate() {
                    rotate(cpu.isa, row, &plan, table, (positions[first + i] as usize, layout));
                }
            });
        }
        Device::Cuda(cuda) => cuda_rope::rope(cuda, x, &plan, table, (index, layout)),
    }
}

/// Of so many tokens, and so many dimensions from the first that turns on.
pub(super) fn check_rotation(table: &RopeTable, positions: Index, [num_tokens, len]: [usize; 2]) {
    let (num_positions, half) = (table.cos.rows(), table.cos.row_len());
    assert_eq!(table.sin.shape(), table.cos.shape(), "rope: table");
    assert_eq!(positions.len(), num_tokens, "rope: positions");
    assert!(2 * half <= len, "rope: {half} pairs of {len}");
    assert!(
        positions.as_slice().iter().all(|&p| (p as usize) < num_positions),
        "rope: a position is not below {num_positions}"
    );
}

/// One token's row.
pub(super) fn rotate(
    isa: Isa,
    row: &mut [f32],
    plan: &RopePlan,
    table: &RopeTable,
    (position, layout): (usize, RopeLayout),
) {
    let half = table.cos.row_len();
    let angles = position * half..(position + 1) * half;
    let (cos, sin) = (&table.cos.as_f32()[angles.clone()], &table.sin.as_f32()[angles]);
    match layout {
        RopeLayout::Half => rope::rotate_half(isa, row, plan, cos, sin),
        RopeLayout::Interleaved => rope::rotate_interleaved(row, plan, cos, sin),
    }
}
