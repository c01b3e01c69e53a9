//! The inner loop of linear layers over quantised weights: a tile of rows times two vectors of columns, group after group.
//!
//! ```text
//! a group:  part[r] = Σ x[r][k] · level[k]                    32 terms from zero on, in order
//!           sum[r] += scale · (part[r] - zero · Σ x[r][k])    once a group
//! ```
//! A group is unpacked once for all rows of the tile, in registers. What belongs to a group does not hang on other groups, so
//! that a tile of few rows computes several at once and waits for no chain of additions; they are added in their order. So the
//! order of a sum is the same however many rows there are.

use super::simd::{Isa, Simd, simd_entry};
use super::tile::{Blocks, K_BLOCK, LONG_K_BLOCK, MAX_ROWS, PanelFormat, Rows, Sums, UNPACKED_ROWS, k_block};
use crate::matrix::PANEL;
use crate::weight_type::GROUP;
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

    /// What `PanelFormat::panel` does. A function for each format, not one that is inlined where it is called: tiles of every
    /// height are long code, and their callers need not have a copy each.
    fn panel(isa: Isa, job: &Job);
}

pub(crate) struct Int8;
pub(crate) struct Int4;
pub(crate) struct Int4Zero;

simd_entry! {
    fn int8_panel(job: &Job) = int8_body
}
simd_entry! {
    fn int4_panel(job: &Job) = int4_body
}
simd_entry! {
    fn int4_zero_panel(job: &Job) = int4_zero_body
}

#[inline(always)]
fn int8_body<S: Simd>(s: S, job: &Job) {
    panel_of::<S, Int8>(s, job);
}
#[inline(always)]
fn int4_body<S: Simd>(s: S, job: &Job) {
    panel_of::<S, Int4>(s, job);
}
#[inline(always)]
fn int4_zero_body<S: Simd>(s: S, job: &Job) {
    panel_of::<S, Int4Zero>(s, job);
}

impl Grouped for Int8 {
    const STORED_AS: WeightType = WeightType::Int8;
    #[inline(always)]
    unsafe fn load_two<S: Simd, const TERM: usize>(s: S, from: *const u8) -> (S::V, S::V) {
        // SAFETY: the caller's promise.
        unsafe { (s.load_byte::<TERM>(from), s.load_byte::<TERM>(from.add(TERMS * PANEL / 2))) }
    }
    fn panel(isa: Isa, job: &Job) {
        int8_panel(isa, job);
    }
}

impl Grouped for Int4 {
    const STORED_AS: WeightType = WeightType::Int4;
    #[inline(always)]
    unsafe fn load_two<S: Simd, const TERM: usize>(s: S, from: *const u8) -> (S::V, S::V) {
        // SAFETY: the caller's promise.
        unsafe { s.load_nibbles::<TERM>(from) }
    }
    fn panel(isa: Isa, job: &Job) {
        int4_panel(isa, job);
    }
}

impl Grouped for Int4Zero {
    const STORED_AS: WeightType = WeightType::Int4Zero;
    #[inline(always)]
    unsafe fn load_two<S: Simd, const TERM: usize>(s: S, from: *const u8) -> (S::V, S::V) {
        // SAFETY: the caller's promise.
        unsafe { s.load_nibbles::<TERM>(from) }
    }
    fn panel(isa: Isa, job: &Job) {
        int4_zero_panel(isa, job);
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
    unsafe fn panel<S: Simd>(
        _: S,
        num_rows: usize,
        panel: *const u8,
        x: Rows,
        x_sums: *const f32,
        k: usize,
        sums: Sums,
    ) {
        // SAFETY: the caller's promise.
        let job = unsafe { Job::new(num_rows, panel, x, x_sums, k, sums) };
        Q::panel(S::ISA, &job);
    }
}

pub(crate) const fn has_zeros<Q: Grouped>() -> bool {
    matches!(Q::STORED_AS, WeightType::Int4Zero)
}

/// The arguments of `PanelFormat::panel`. Whoever has one holds its promise.
pub(crate) struct Job {
    pub num_rows: usize,
    pub panel: *const u8,
    pub x: Rows,
    pub x_sums: *const f32,
    pub k: usize,
    pub sums: Sums,
    /// Made by `new` alone.
    _promise: (),
}

impl Job {
    /// # Safety
    /// As for `PanelFormat::panel`, as long as the job is used.
    #[inline(always)]
    pub unsafe fn new(
        num_rows: usize,
        panel: *const u8,
        x: Rows,
        x_sums: *const f32,
        k: usize,
        sums: Sums,
    ) -> Self {
        Self { num_rows, panel, x, x_sums, k, sums, _promise: () }
    }
}

#[inline(always)]
fn panel_of<S: Simd, Q: Grouped>(s: S, job: &Job) {
    let blocks = Blocks::new(job.num_rows, S::TILE_ROWS);
    let groups = k_block(job.num_rows) / GROUP;
    for first in (0..PANEL / 2).step_by(S::LANES) {
        let mut row = 0;
        for block in 0..blocks.count {
            let rows = blocks.len(block);
            let start = job.sums.start.wrapping_add(row * job.sums.row + first);
            let tile = Tile {
                panel: job.panel,
                first,
                x: Rows { start: job.x.start.wrapping_add(row * job.x.row), ..job.x },
                x_sums: job.x_sums.wrapping_add(row * groups),
                groups,
                sums: Sums { start, ..job.sums },
            };
            // SAFETY: the promise of `Job::new`.
            unsafe { tile_of::<S, Q>(s, rows, &tile, job.k) };
            row += rows;
        }
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

    /// Of rows of `k` terms; gives the address of the first.
    ///
    /// # Safety
    /// The rows can be read; there are at most `MAX_ROWS`, `k` is at most `k_block(num_rows)` and `x.step` is 1.
    #[inline(always)]
    pub unsafe fn fill<S: Simd>(&mut self, s: S, x: Rows, num_rows: usize, k: usize) -> *const f32 {
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
        self.0.as_ptr().cast()
    }
}

const CACHE_LINE: usize = 64;
/// Terms that lie side by side in each column of a line.
const TERMS: usize = 4;

/// What a tile works on.
struct Tile {
    /// The first group.
    panel: *const u8,
    /// Columns `first ..` and `first + 16 ..`.
    first: usize,
    x: Rows,
    /// `groups` a row.
    x_sums: *const f32,
    groups: usize,
    sums: Sums,
}

/// # Safety
/// All that the tile describes can be read, and its sums written.
#[inline(always)]
unsafe fn tile_of<S: Simd, Q: Grouped>(s: S, num_rows: usize, tile: &Tile, k: usize) {
    macro_rules! by_rows {
        ($($m:literal at $g:literal)*) => {
            match num_rows {
                // SAFETY: the caller's promise.
                $($m if $m <= S::TILE_ROWS => unsafe { all_groups::<S, Q, $m, $g>(s, tile, k) },)*
                _ => unreachable!("a tile has at most {} rows", S::TILE_ROWS),
            }
        };
    }
    by_rows!(1 at 4 2 at 2 3 at 2 4 at 1 5 at 1 6 at 1 7 at 1 8 at 1 9 at 1 10 at 1 11 at 1 12 at 1);
}

/// `M` rows, `G` groups at a time as long as there are so many.
///
/// # Safety
/// As for `tile_of`.
#[inline(always)]
unsafe fn all_groups<S: Simd, Q: Grouped, const M: usize, const G: usize>(s: S, tile: &Tile, k: usize) {
    let mut group = 0;
    // Side by side meanwhile: rows of the result may be a power of two apart, and then fight for the same few cache lines.
    let mut sums = [[s.zero(); 2]; M];
    // SAFETY: the caller's promise; groups end before k.
    unsafe {
        if !tile.sums.fresh {
            for (r, sums) in sums.iter_mut().enumerate() {
                for (v, sum) in sums.iter_mut().enumerate() {
                    *sum = s.load(tile.sums.start.add(r * tile.sums.row + v * PANEL / 2));
                }
            }
        }
        while G > 1 && (group + G) * GROUP <= k {
            some_groups::<S, Q, M, G>(s, tile, group, GROUP, &mut sums);
            group += G;
        }
        while group * GROUP < k {
            some_groups::<S, Q, M, 1>(s, tile, group, GROUP.min(k - group * GROUP), &mut sums);
            group += 1;
        }
        for (r, sums) in sums.iter().enumerate() {
            for (v, sum) in sums.iter().enumerate() {
                s.store(tile.sums.start.add(r * tile.sums.row + v * PANEL / 2), *sum);
            }
        }
    }
}

/// `G` groups of `terms` terms each, from `group` on.
///
/// # Safety
/// As for `tile_of`.
#[inline(always)]
unsafe fn some_groups<S: Simd, Q: Grouped, const M: usize, const G: usize>(
    s: S,
    tile: &Tile,
    group: usize,
    terms: usize,
    sums: &mut [[S::V; 2]; M],
) {
    let (line_bytes, group_bytes) = (TERMS * Q::STORED_AS.line_bytes(), Q::STORED_AS.group_bytes());
    let start = tile.panel.wrapping_add(group * group_bytes);
    let mut parts = [[[s.zero(); 2]; M]; G];
    let mut line = start.wrapping_add(Q::STORED_AS.header_bytes() + TERMS * tile.first);
    let mut column = tile.x.start.wrapping_add(group * GROUP);
    // What comes next in memory is asked for meanwhile, some with each line: with few rows the loop waits for it.
    let step = G * group_bytes / (GROUP / TERMS);
    let mut ahead = start.wrapping_add(G * group_bytes);
    // SAFETY: the caller's promise.
    unsafe {
        for _ in 0..terms / TERMS {
            if M <= UNPACKED_ROWS {
                for first in (0..step).step_by(CACHE_LINE) {
                    s.prefetch(ahead.wrapping_add(first));
                }
                ahead = ahead.wrapping_add(step);
            }
            term::<S, Q, M, G, 0>(s, line, column, tile.x.row, &mut parts);
            term::<S, Q, M, G, 1>(s, line, column, tile.x.row, &mut parts);
            term::<S, Q, M, G, 2>(s, line, column, tile.x.row, &mut parts);
            term::<S, Q, M, G, 3>(s, line, column, tile.x.row, &mut parts);
            line = line.wrapping_add(line_bytes);
            column = column.wrapping_add(TERMS);
        }
        let left = terms % TERMS;
        if left > 0 {
            term::<S, Q, M, G, 0>(s, line, column, tile.x.row, &mut parts);
        }
        if left > 1 {
            term::<S, Q, M, G, 1>(s, line, column, tile.x.row, &mut parts);
        }
        if left > 2 {
            term::<S, Q, M, G, 2>(s, line, column, tile.x.row, &mut parts);
        }
        for (j, part) in parts.iter().enumerate() {
            let header = start.wrapping_add(j * group_bytes);
            add_group::<S, Q, M>(s, tile, (header, group + j), part, sums);
        }
    }
}

/// Term `TERM` of a line, of every sum.
///
/// # Safety
/// As for `tile_of`.
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
/// As for `tile_of`.
#[inline(always)]
unsafe fn add_group<S: Simd, Q: Grouped, const M: usize>(
    s: S,
    tile: &Tile,
    (header, group): (*const u8, usize),
    parts: &[[S::V; 2]; M],
    sums: &mut [[S::V; 2]; M],
) {
    let numbers = header.cast::<u16>().wrapping_add(tile.first);
    for v in 0..2 {
        // SAFETY: the caller's promise.
        unsafe {
            let scale = s.load_f16(numbers.add(v * PANEL / 2));
            for (r, part) in parts.iter().enumerate() {
                let mut part = part[v];
                if has_zeros::<Q>() {
                    let zero = s.load_f16(numbers.add(PANEL + v * PANEL / 2));
                    let x_sum = s.splat(-*tile.x_sums.add(r * tile.groups + group));
                    part = s.fma(x_sum, zero, part);
                }
                sums[r][v] = s.fma(scale, part, sums[r][v]);
            }
        }
    }
}
