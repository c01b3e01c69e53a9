//! The inner loop of linear layers over quantised weights: a tile of rows times two vectors of columns, group after group.
//!
//! ```text
//! a group:  part[r] = Σ x[r][k] · level[k]                    32 terms from zero on, in order
//!           sum[r] += scale · (part[r] - zero · Σ x[r][k])    once a group
//! ```
//! A group is unpacked once for all rows of the tile, in registers. What belongs to a group does not hang on other groups, so
//! that a tile of few rows computes several at once and waits for no chain of additions; they are added in their order. So the
//! order of a sum is the same however many rows there are.

use super::simd::{Simd, simd_entry};
use super::tile::{
    Blocks, Job, K_BLOCK, LONG_K_BLOCK, MAX_ROWS, Numbers, PanelFormat, Rows, UNPACKED_ROWS, by_rows, k_block,
};
use crate::panel::{GROUP, PANEL};
use crate::{ActivationType, WeightType};
use std::mem::MaybeUninit;

/// How the levels of a group lie in memory, and the panel of such groups.
pub(crate) trait Grouped {
    const STORED_AS: WeightType;

    /// The levels of columns `c ..` and `c + 16 ..` for term `TERM` of a line of four, given the address of its column `c`.
    ///
    /// # Safety
    /// The line can be read.
    unsafe fn load_two<S: Simd, const TERM: usize>(s: S, from: *const u8) -> (S::V, S::V);
}

pub(crate) struct Int8;
pub(crate) struct Int4;
pub(crate) struct Int4Zero;

simd_entry! {
    fn panel<Q: Grouped>(job: &Job) = panel_of
}

impl Grouped for Int8 {
    const STORED_AS: WeightType = WeightType::Int8;
    #[inline(always)]
    unsafe fn load_two<S: Simd, const TERM: usize>(s: S, from: *const u8) -> (S::V, S::V) {
        // SAFETY: the caller's promise.
        unsafe { (s.load_byte::<TERM>(from), s.load_byte::<TERM>(from.add(TERMS * PANEL / 2))) }
    }
}

impl Grouped for Int4 {
    const STORED_AS: WeightType = WeightType::Int4;
    #[inline(always)]
    unsafe fn load_two<S: Simd, const TERM: usize>(s: S, from: *const u8) -> (S::V, S::V) {
        // SAFETY: the caller's promise.
        unsafe { s.load_nibbles::<TERM>(from) }
    }
}

impl Grouped for Int4Zero {
    const STORED_AS: WeightType = WeightType::Int4Zero;
    #[inline(always)]
    unsafe fn load_two<S: Simd, const TERM: usize>(s: S, from: *const u8) -> (S::V, S::V) {
        // SAFETY: the caller's promise.
        unsafe { s.load_nibbles::<TERM>(from) }
    }
}

impl<Q: Grouped> PanelFormat for Q {
    const ROUNDED_TO: ActivationType = ActivationType::F32;
    const GROUP_SUMS: bool = has_zeros::<Q>();
    const K_BLOCK: usize = K_BLOCK;

    fn offset(k: usize) -> usize {
        k / GROUP * Q::STORED_AS.group_bytes()
    }

    #[inline(always)]
    fn panel<S: Simd>(_: S, job: &Job) {
        panel::<Q>(S::ISA, job);
    }
}

pub(crate) const fn has_zeros<Q: Grouped>() -> bool {
    matches!(Q::STORED_AS, WeightType::Int4Zero)
}

#[inline(always)]
fn panel_of<S: Simd, Q: Grouped>(s: S, job: &Job) {
    for first in (0..PANEL / 2).step_by(S::LANES) {
        let (blocks, mut row) = (Blocks::new(job.num_rows, S::TILE_ROWS), 0);
        for block in 0..blocks.count {
            let rows = blocks.len(block);
            let part = job.rows(row, rows);
            // SAFETY: the promise of `Job::new`.
            by_rows!(rows, S::TILE_ROWS, |M| unsafe {
                all_groups::<S, Q, M, { groups_at_once(M) }>(s, &part, first)
            });
            row += rows;
        }
    }
}

/// Groups that a tile of so many rows computes side by side.
const fn groups_at_once(num_rows: usize) -> usize {
    match num_rows {
        1 => 4,
        2 | 3 => 2,
        _ => 1,
    }
}

/// Groups of the rows of one task between two visits of memory: many groups of few rows, or few of many.
const MOST_GROUPS: usize = if UNPACKED_ROWS * LONG_K_BLOCK > MAX_ROWS * K_BLOCK {
    UNPACKED_ROWS * LONG_K_BLOCK / GROUP
} else {
    MAX_ROWS * K_BLOCK / GROUP
};

/// Sums of each group of each row of one task, for formats that have zeros. A row has `k_block(num_rows) / GROUP`.
pub(crate) struct GroupSums([MaybeUninit<f32>; MOST_GROUPS]);

impl GroupSums {
    #[inline(always)]
    pub fn new() -> Self {
        Self([MaybeUninit::uninit(); MOST_GROUPS])
    }

    /// Of rows of `k` terms.
    ///
    /// # Safety
    /// The rows can be read; there are at most `MAX_ROWS`, `k` is at most `k_block(num_rows)` and `x.step` is 1.
    #[inline(always)]
    pub unsafe fn fill<S: Simd>(&mut self, s: S, x: Rows, num_rows: usize, k: usize) -> Numbers {
        let groups = k_block(num_rows) / GROUP;
        for row in 0..num_rows {
            // SAFETY: the caller's promise.
            let terms = unsafe { std::slice::from_raw_parts(x.start.add(row * x.row), k) };
            for group in 0..k.div_ceil(GROUP) {
                let end = k.min((group + 1) * GROUP);
                let mut sum = s.zero();
                let mut from = group * GROUP;
                while from < end {
                    sum = s.add(sum, s.load_slice(&terms[from..end]));
                    from += S::LANES;
                }
                self.0[row * groups + group].write(s.sum(sum));
            }
        }
        Numbers { start: self.0.as_ptr().cast(), row: groups }
    }
}

const CACHE_LINE: usize = 64;
/// Terms that lie side by side in each column of a line.
const TERMS: usize = 4;

/// `M` rows, `G` groups at a time as long as there are so many; columns `first ..` and `first + 16 ..`.
///
/// # Safety
/// The promise of `Job::new`, and the job has M rows.
#[inline(always)]
unsafe fn all_groups<S: Simd, Q: Grouped, const M: usize, const G: usize>(s: S, job: &Job, first: usize) {
    let (mut group, k) = (0, job.k);
    let start = job.sums.start.wrapping_add(first);
    // Side by side meanwhile: rows of the result may be a power of two apart, and then fight for the same few cache lines.
    let mut sums = [[s.zero(); 2]; M];
    // SAFETY: the caller's promise; groups end before k.
    unsafe {
        if !job.sums.fresh {
            for (r, sums) in sums.iter_mut().enumerate() {
                for (v, sum) in sums.iter_mut().enumerate() {
                    *sum = s.load(job.from.start.add(r * job.from.row + first + v * PANEL / 2));
                }
            }
        }
        while G > 1 && (group + G) * GROUP <= k {
            some_groups::<S, Q, M, G>(s, job, [first, group, GROUP], &mut sums);
            group += G;
        }
        while group * GROUP < k {
            some_groups::<S, Q, M, 1>(s, job, [first, group, GROUP.min(k - group * GROUP)], &mut sums);
            group += 1;
        }
        for (r, sums) in sums.iter().enumerate() {
            for (v, sum) in sums.iter().enumerate() {
                s.store(start.add(r * job.sums.row + v * PANEL / 2), *sum);
            }
        }
    }
}

/// `G` groups of `terms` terms each, from `group` on.
///
/// # Safety
/// As for `all_groups`.
#[inline(always)]
unsafe fn some_groups<S: Simd, Q: Grouped, const M: usize, const G: usize>(
    s: S,
    job: &Job,
    [first, group, terms]: [usize; 3],
    sums: &mut [[S::V; 2]; M],
) {
    let (line_bytes, group_bytes) = (TERMS * Q::STORED_AS.line_bytes(), Q::STORED_AS.group_bytes());
    let start = job.panel.wrapping_add(group * group_bytes);
    let mut parts = [[[s.zero(); 2]; M]; G];
    let mut line = start.wrapping_add(Q::STORED_AS.header_bytes() + TERMS * first);
    let mut column = job.x.start.wrapping_add(group * GROUP);
    // What comes next in memory is asked for meanwhile, some with each line: with few rows the loop waits for it.
    let step = G * group_bytes / (GROUP / TERMS);
    let mut ahead = start.wrapping_add(G * group_bytes);
    // SAFETY: the caller's promise.
    unsafe {
        for _ in 0..terms / TERMS {
            if M <= UNPACKED_ROWS {
                for line in (0..step).step_by(CACHE_LINE) {
                    s.prefetch(ahead.wrapping_add(line));
                }
                ahead = ahead.wrapping_add(step);
            }
            term::<S, Q, M, G, 0>(s, line, column, job.x.row, &mut parts);
            term::<S, Q, M, G, 1>(s, line, column, job.x.row, &mut parts);
            term::<S, Q, M, G, 2>(s, line, column, job.x.row, &mut parts);
            term::<S, Q, M, G, 3>(s, line, column, job.x.row, &mut parts);
            line = line.wrapping_add(line_bytes);
            column = column.wrapping_add(TERMS);
        }
        let left = terms % TERMS;
        if left > 0 {
            term::<S, Q, M, G, 0>(s, line, column, job.x.row, &mut parts);
        }
        if left > 1 {
            term::<S, Q, M, G, 1>(s, line, column, job.x.row, &mut parts);
        }
        if left > 2 {
            term::<S, Q, M, G, 2>(s, line, column, job.x.row, &mut parts);
        }
        for (j, part) in parts.iter().enumerate() {
            let header = start.wrapping_add(j * group_bytes);
            add_group::<S, Q, M>(
                s,
                (header.cast::<u16>().wrapping_add(first), job.numbers, group + j),
                part,
                sums,
            );
        }
    }
}

/// Term `TERM` of a line, of every sum.
///
/// # Safety
/// As for `all_groups`.
#[inline(always)]
unsafe fn term<S: Simd, Q: Grouped, const M: usize, const G: usize, const TERM: usize>(
    s: S,
    line: *const u8,
    column: *const f32,
    row: usize,
    parts: &mut [[[S::V; 2]; M]; G],
) {
    for (j, part) in parts.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        unsafe {
            let (lo, hi) = Q::load_two::<S, TERM>(s, line.add(j * Q::STORED_AS.group_bytes()));
            for (r, part) in part.iter_mut().enumerate() {
                let x = s.splat(*column.add(r * row + j * GROUP + TERM));
                part[0] = s.fma(x, lo, part[0]);
                part[1] = s.fma(x, hi, part[1]);
            }
        }
    }
}

/// Adds what a group came to, scaled, to the sums.
///
/// # Safety
/// As for `all_groups`.
#[inline(always)]
unsafe fn add_group<S: Simd, Q: Grouped, const M: usize>(
    s: S,
    (scales, x_sums, group): (*const u16, Numbers, usize),
    parts: &[[S::V; 2]; M],
    sums: &mut [[S::V; 2]; M],
) {
    for v in 0..2 {
        // SAFETY: the caller's promise.
        unsafe {
            let scale = s.load_f16(scales.add(v * PANEL / 2));
            for (r, part) in parts.iter().enumerate() {
                let mut part = part[v];
                if has_zeros::<Q>() {
                    let zero = s.load_f16(scales.add(PANEL + v * PANEL / 2));
                    let x_sum = s.splat(-*x_sums.start.add(r * x_sums.row + group));
                    part = s.fma(x_sum, zero, part);
                }
                sums[r][v] = s.fma(scale, part, sums[r][v]);
            }
        }
    }
}
