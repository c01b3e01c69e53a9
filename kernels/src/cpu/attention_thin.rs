//! Blocks of few rows, such as a decode step of four heads that share a key head: keys lie along the vectors, not rows.
//!
//! ```text
//! queries [rows, D] · keys [D, 64] = scores [rows, 64]  ─exp─▶  weights [rows, 64] · values [64, Dv]  +▶ sums [rows, Dv]
//! ```
//! Every sum has the order that it has in a block of many rows, so that the bits are the same.

use super::attention::{Block, Problem};
use super::attention_block::{KEYS, LOWEST, ROWS, Workspace, row_len, shrink};
use super::attention_load::{self as load, Ahead, Places};
use super::simd::{MAX_LANES, Simd, Turn, math};
use super::tile::{self, Columns, F32, Rows, Sums};

/// Whether so few rows go this way.
pub(crate) fn is_thin<S: Simd>(problem: &Problem, num_rows: usize) -> bool {
    let [key_row, value_row] = [problem.sizes.key_dim, problem.sizes.value_dim].map(row_len);
    // Rows of keys wait in the room for values.
    num_rows <= S::TILE_ROWS.min(S::LANES / 2) && MAX_LANES * key_row <= KEYS * value_row
}

/// One tile of keys, those at `places`, the first of which is at position `first`.
#[inline(always)]
pub(crate) fn tile<S: Turn>(
    s: S,
    problem: &Problem<'_>,
    block: &Block,
    first: usize,
    places: &Places,
    work: &mut Workspace<'_>,
) {
    let num_rows = block.num_rows();
    let calls = KEYS / (2 * S::LANES) + num_rows + row_len(problem.sizes.value_dim).div_ceil(2 * S::LANES);
    let mut ahead = Ahead::new(problem, block, first + places.len, calls);
    let mut between = || ahead.ask(s, problem, block);
    load::columns(s, problem, block, places, [&mut *work.keys, &mut *work.values]);
    load::values(s, problem, block, places, work.values);
    score(s, problem, places.len, num_rows, work, &mut between);
    for row in 0..num_rows {
        let seen = (block.visible(row) - first.min(block.visible(row))).min(places.len);
        work.scores[row * KEYS + seen..(row + 1) * KEYS].fill(f32::NEG_INFINITY);
    }
    soften(s, places.len, num_rows, work, &mut between);
    let sum_row = row_len(problem.sizes.value_dim);
    shrink(s, sum_row, &(0..sum_row), num_rows, work);
    accumulate(s, problem, places.len, num_rows, work, &mut between);
}

/// `scores[r, j] = query[r] · key[j]`
#[inline(always)]
fn score<S: Simd>(
    s: S,
    problem: &Problem<'_>,
    n: usize,
    num_rows: usize,
    work: &mut Workspace<'_>,
    between: &mut impl FnMut(),
) {
    let d = problem.sizes.key_dim;
    assert!(n <= KEYS && num_rows <= S::TILE_ROWS, "a tile of scores");
    assert!(work.keys.len() >= d * KEYS && work.queries.len() >= d * ROWS, "workspace");
    assert!(work.scores.len() >= num_rows * KEYS, "workspace");
    let x = Rows { start: work.queries.as_ptr(), row: 1, step: ROWS };
    for lane in (0..n).step_by(2 * S::LANES) {
        let w = Columns::<F32> { start: work.keys.as_ptr().wrapping_add(lane), stride: KEYS, hi: S::LANES };
        let start = work.scores.as_mut_ptr().wrapping_add(lane);
        let sums = Sums { start, row: KEYS, hi: S::LANES, fresh: true };
        // SAFETY: within the lengths asserted above; KEYS is a whole number of pairs of vectors.
        unsafe { tile::tile_of::<S, F32, 2>(s, num_rows, w, x, d, sums) };
        between();
    }
}

/// Scores become weights against the new maximum; those of keys that are not there become 0.
#[inline(always)]
fn soften<S: Simd>(s: S, n: usize, num_rows: usize, work: &mut Workspace<'_>, between: &mut impl FnMut()) {
    let (mut max, mut sum) = ([LOWEST; MAX_LANES], [0.0; MAX_LANES]);
    #[allow(clippy::needless_range_loop, reason = "the row of scores is as much meant as its maximum")]
    for row in 0..num_rows {
        let scores = &mut work.scores[row * KEYS..(row + 1) * KEYS];
        let mut highest = s.splat(work.range.max[row]);
        for j in (0..KEYS).step_by(S::LANES) {
            highest = s.max(highest, s.load_slice(&scores[j..]));
        }
        let mut lanes = [LOWEST; MAX_LANES];
        s.store_slice(&mut lanes, highest);
        max[row] = lanes.into_iter().fold(LOWEST, |a, b| if a > b { a } else { b });
        for j in (0..KEYS).step_by(S::LANES) {
            let weight = math::exp(s, s.sub(s.load_slice(&scores[j..]), s.splat(max[row])));
            s.store_slice(&mut scores[j..], weight);
        }
        between();
    }
    // One key after the other, as in a block of many rows; four rows side by side, of which the last may be there twice.
    for first in (0..num_rows).step_by(4) {
        let weights = |i: usize| &work.scores[(first + i).min(num_rows - 1) * KEYS..][..n];
        let (a, b, c, d) = (weights(0), weights(1), weights(2), weights(3));
        let mut sums = [0.0; 4];
        for j in 0..n {
            sums = [sums[0] + a[j], sums[1] + b[j], sums[2] + c[j], sums[3] + d[j]];
        }
        sum[first..first + 4].copy_from_slice(&sums);
    }
    let lanes = 0..S::LANES;
    let (old, max) = (s.load_slice(&work.range.max[lanes.clone()]), s.load_slice(&max));
    let factor = math::exp(s, s.sub(old, max));
    let total = s.fma(s.load_slice(&work.range.sum[lanes.clone()]), factor, s.load_slice(&sum));
    s.store_slice(&mut work.range.sum[lanes.clone()], total);
    s.store_slice(&mut work.range.max[lanes.clone()], max);
    s.store_slice(&mut work.shrink[lanes], factor);
}

/// `sums[r] += Σ_j weights[r, j] · value[j]`
#[inline(always)]
fn accumulate<S: Simd>(
    s: S,
    problem: &Problem<'_>,
    n: usize,
    num_rows: usize,
    work: &mut Workspace<'_>,
    between: &mut impl FnMut(),
) {
    let sum_row = row_len(problem.sizes.value_dim);
    assert!(n <= KEYS && num_rows <= S::TILE_ROWS, "a tile of values");
    assert!(
        work.values.len() >= KEYS * sum_row && work.range.values.len() >= num_rows * sum_row,
        "workspace"
    );
    let x = Rows { start: work.scores.as_ptr(), row: KEYS, step: 1 };
    for column in (0..sum_row).step_by(2 * S::LANES) {
        let start = work.values.as_ptr().wrapping_add(column);
        let w = Columns::<F32> { start, stride: sum_row, hi: S::LANES };
        let start = work.range.values.as_mut_ptr().wrapping_add(column);
        let sums = Sums { start, row: sum_row, hi: S::LANES, fresh: false };
        // SAFETY: within the lengths asserted above; a row is a whole number of vectors.
        unsafe {
            if column + 2 * S::LANES <= sum_row {
                tile::tile_of::<S, F32, 2>(s, num_rows, w, x, n, sums);
            } else {
                tile::tile_of::<S, F32, 1>(s, num_rows, w, x, n, sums);
            }
        }
        between();
    }
}
