//! The inner loops of linear layers over rounded activations: a tile of rows times two vectors of columns, by instructions that sum
//! several products at once.
//!
//! ```text
//! bf16:      acc[r] += x[r][k] · w[k] + x[r][k + 1] · w[k + 1]          one instruction for each pair, in order
//! quantised: part[r] = Σ x[r][k] · level[k]                            a group of 32 terms, whole numbers, exact
//!            sum[r] += (scale of w · scale of x[r]) · (part[r] - zero · Σ x[r][k])     once a group, in order
//! ```
//! The order of a sum is that of K, whatever the number of rows in the tile and wherever a cut between blocks of K falls. Several
//! sums are under way at once even for one row, so that it waits for memory and not for a chain of additions.

use super::grouped::has_zeros;
use super::grouped::{Grouped, Int4, Int4Zero, Int8, Job};
use super::rounded::{HEADER, SCALE, START, SUM};
#[cfg(target_arch = "x86_64")]
use super::simd::Bf16Dot;
use super::simd::dot::{Dot, Floats};
use super::simd::{Isa, Simd, dot_entry};
use super::tile::{Blocks, PanelFormat, Rows, Sums};
use crate::matrix::PANEL;
use crate::weight_type::GROUP;
use crate::{ActivationType, WeightType};
use std::marker::PhantomData;

/// Panels of bf16 times rows of bf16.
pub(crate) struct Bf16Pairs;

/// Panels of levels times rows of int8.
pub(crate) struct Levels<Q>(PhantomData<Q>);

const CACHE_LINE: usize = 64;
/// Rows up to which the loop waits for memory.
const FEW_ROWS: usize = 4;
/// Bytes ahead of the weights in use that are asked for with few rows. Farther is slower: the processor itself follows a stream, and what
/// is asked for too early only disturbs it.
const BF16_AHEAD: usize = 256;

impl PanelFormat for Bf16Pairs {
    const ROUNDED_TO: ActivationType = ActivationType::BF16;
    const GROUP_SUMS: bool = false;
    const K_BLOCK: usize = 256;

    fn offset(k: usize) -> usize {
        k * WeightType::BF16.line_bytes()
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
        bf16_panel(&unsafe { Job::new(num_rows, panel, x, x_sums, k, sums) });
    }
}

impl<Q: OfLevels> PanelFormat for Levels<Q> {
    const ROUNDED_TO: ActivationType = ActivationType::Int8;
    const GROUP_SUMS: bool = false;
    const K_BLOCK: usize = Q::K_BLOCK;

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
        Q::rounded_panel(S::ISA, &unsafe { Job::new(num_rows, panel, x, x_sums, k, sums) });
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn bf16_panel(_: &Job) {
    unreachable!("no processor of this kind multiplies bf16");
}

#[cfg(target_arch = "x86_64")]
fn bf16_panel(job: &Job) {
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16,avx2,fma,f16c")]
    fn entry(job: &Job) {
        // SAFETY: this function has the features.
        let d = unsafe { Bf16Dot::new() };
        let blocks = Blocks::new(job.num_rows, Bf16Dot::TILE_ROWS);
        let mut row = 0;
        for block in 0..blocks.count {
            let rows = blocks.len(block);
            let x = Rows { start: job.x.start.wrapping_add(row * job.x.row), ..job.x };
            let sums = Sums { start: job.sums.start.wrapping_add(row * job.sums.row), ..job.sums };
            macro_rules! by_rows {
                ($($m:literal)*) => {
                    match rows {
                        // SAFETY: the promise of `Job::new`.
                        $($m => unsafe { bf16_tile::<$m>(d, job.panel, x, job.k, sums) },)*
                        _ => unreachable!("a tile has at most {} rows", Bf16Dot::TILE_ROWS),
                    }
                };
            }
            by_rows!(1 2 3 4 5 6 7 8);
            row += rows;
        }
    }
    // SAFETY: a device rounds to bf16 only where `Isa::has_bf16_dots`.
    unsafe { entry(job) }
}

/// # Safety
/// As for `Job::new`.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn bf16_tile<const M: usize>(d: Bf16Dot, panel: *const u8, x: Rows, k: usize, sums: Sums) {
    let s = d.simd();
    let mut acc = [[s.zero(); 2]; M];
    // SAFETY: the caller's promise.
    unsafe {
        if !sums.fresh {
            for (r, acc) in acc.iter_mut().enumerate() {
                acc[0] = s.load(sums.start.add(r * sums.row));
                acc[1] = s.load(sums.start.add(r * sums.row + PANEL / 2));
            }
        }
        let (mut line, mut pair) = (panel, x.start.cast::<u32>());
        // The end of K is filled up with zeros on both sides.
        for _ in 0..k.div_ceil(2) {
            if M <= FEW_ROWS {
                s.prefetch(line.wrapping_add(BF16_AHEAD));
                s.prefetch(line.wrapping_add(BF16_AHEAD + CACHE_LINE));
            }
            let (lo, hi) = (d.load(line), d.load(line.add(CACHE_LINE)));
            for (r, acc) in acc.iter_mut().enumerate() {
                let x = d.splat(*pair.add(r * x.row));
                acc[0] = d.dot_pairs(acc[0], lo, x);
                acc[1] = d.dot_pairs(acc[1], hi, x);
            }
            line = line.wrapping_add(2 * CACHE_LINE);
            pair = pair.wrapping_add(1);
        }
        for (r, acc) in acc.iter().enumerate() {
            s.store(sums.start.add(r * sums.row), acc[0]);
            s.store(sums.start.add(r * sums.row + PANEL / 2), acc[1]);
        }
    }
}

/// Levels as four bytes to a word.
pub(crate) trait OfLevels: Grouped {
    /// Terms whose levels leave room in the first cache.
    const K_BLOCK: usize;
    /// How many bytes ahead lines are asked for with 1, 2, 3 and 4 rows, as measured. 0 is not too late: a group's lines are asked for together.
    const AHEAD: [Option<usize>; FEW_ROWS];

    /// The words of columns `c ..` and `c + 16 ..`, given the address of column c in a line of four k.
    ///
    /// # Safety
    /// The line can be read.
    unsafe fn load_words<D: Dot>(d: D, from: *const u8) -> (D::W, D::W);

    fn dot<D: Dot>(d: D, acc: D::W, w: D::W, x: D::W) -> D::W;

    /// A function for each format, as `Grouped::panel`.
    fn rounded_panel(isa: Isa, job: &Job);
}

impl OfLevels for Int8 {
    const K_BLOCK: usize = 512;
    const AHEAD: [Option<usize>; FEW_ROWS] = [Some(0), Some(256), Some(512), Some(512)];
    #[inline(always)]
    unsafe fn load_words<D: Dot>(d: D, from: *const u8) -> (D::W, D::W) {
        // SAFETY: the caller's promise.
        unsafe { (d.load(from), d.load(from.add(4 * PANEL / 2))) }
    }
    #[inline(always)]
    fn dot<D: Dot>(d: D, acc: D::W, w: D::W, x: D::W) -> D::W {
        d.dot_bytes(acc, w, x)
    }
    fn rounded_panel(isa: Isa, job: &Job) {
        int8_panel(isa, job);
    }
}

macro_rules! of_nibbles {
    ($type:ident, $panel:ident, $ahead:expr) => {
        impl OfLevels for $type {
            const K_BLOCK: usize = 1024;
            const AHEAD: [Option<usize>; FEW_ROWS] = [$ahead, Some(0), Some(0), Some(0)];
            #[inline(always)]
            unsafe fn load_words<D: Dot>(d: D, from: *const u8) -> (D::W, D::W) {
                // SAFETY: the caller's promise.
                let words = unsafe { d.load(from) };
                (d.low_nibbles(words), d.high_nibbles(words))
            }
            #[inline(always)]
            fn dot<D: Dot>(d: D, acc: D::W, w: D::W, x: D::W) -> D::W {
                d.dot_nibbles(acc, w, x)
            }
            fn rounded_panel(isa: Isa, job: &Job) {
                $panel(isa, job);
            }
        }
    };
}
of_nibbles!(Int4, int4_panel, Some(256));
of_nibbles!(Int4Zero, int4_zero_panel, None);

dot_entry! {
    fn int8_panel(job: &Job) = int8_body
}
dot_entry! {
    fn int4_panel(job: &Job) = int4_body
}
dot_entry! {
    fn int4_zero_panel(job: &Job) = int4_zero_body
}

#[inline(always)]
fn int8_body<D: Dot>(d: D, job: &Job) {
    panel_of::<D, Int8>(d, job);
}
#[inline(always)]
fn int4_body<D: Dot>(d: D, job: &Job) {
    panel_of::<D, Int4>(d, job);
}
#[inline(always)]
fn int4_zero_body<D: Dot>(d: D, job: &Job) {
    panel_of::<D, Int4Zero>(d, job);
}

#[inline(always)]
fn panel_of<D: Dot, Q: OfLevels>(d: D, job: &Job) {
    let blocks = Blocks::new(job.num_rows, D::TILE_ROWS);
    for first in (0..PANEL / 2).step_by(D::S::LANES) {
        let mut row = 0;
        for block in 0..blocks.count {
            let rows = blocks.len(block);
            let tile = Tile {
                panel: job.panel,
                first,
                x: Rows { start: job.x.start.wrapping_add(row * job.x.row), ..job.x },
                headers: job.x_sums.wrapping_add(row * job.x.row),
                groups: job.k.div_ceil(GROUP),
                sums: Sums { start: job.sums.start.wrapping_add(row * job.sums.row + first), ..job.sums },
            };
            macro_rules! by_rows {
                ($($m:literal)*) => {
                    match rows {
                        // SAFETY: the promise of `Job::new`.
                        $($m if $m <= D::TILE_ROWS => unsafe { tile_of::<D, Q, $m>(d, &tile) },)*
                        _ => unreachable!("a tile has at most {} rows", D::TILE_ROWS),
                    }
                };
            }
            by_rows!(1 2 3 4 5 6);
            row += rows;
        }
    }
}

/// What a tile works on.
struct Tile {
    /// The first group.
    panel: *const u8,
    /// Columns `first ..` and `first + 16 ..`.
    first: usize,
    x: Rows,
    /// Of the first group of the first row; rows are as far apart as those of x.
    headers: *const f32,
    groups: usize,
    sums: Sums,
}

/// # Safety
/// All that the tile describes can be read, and its sums written.
#[inline(always)]
unsafe fn tile_of<D: Dot, Q: OfLevels, const M: usize>(d: D, tile: &Tile) {
    let s = d.simd();
    let (quad_bytes, group_bytes) = (4 * Q::STORED_AS.line_bytes(), Q::STORED_AS.group_bytes());
    let ahead = if M <= FEW_ROWS { Q::AHEAD[M - 1] } else { None };
    let mut sums = [[s.zero(); 2]; M];
    // SAFETY: the caller's promise.
    unsafe {
        if !tile.sums.fresh {
            for (r, sums) in sums.iter_mut().enumerate() {
                for (v, sum) in sums.iter_mut().enumerate() {
                    *sum = s.load(tile.sums.start.add(r * tile.sums.row + v * PANEL / 2));
                }
            }
        }
        let (mut start, mut x, mut headers) = (tile.panel, tile.x.start.cast::<i32>(), tile.headers);
        for _ in 0..tile.groups {
            let mut parts = [[d.splat(0); 2]; M];
            for (r, parts) in parts.iter_mut().enumerate() {
                *parts = [d.splat(*headers.add(r * tile.x.row + START).cast::<i32>()); 2];
            }
            let quads = start.add(Q::STORED_AS.header_bytes() + 4 * tile.first);
            for quad in 0..GROUP / 4 {
                if let Some(ahead) = ahead {
                    for line in 0..quad_bytes / CACHE_LINE {
                        s.prefetch(start.wrapping_add(ahead + quad * quad_bytes + line * CACHE_LINE));
                    }
                    // The rest of a group is as long as its header.
                    if quad < Q::STORED_AS.header_bytes() / CACHE_LINE {
                        let rest = GROUP / 4 * quad_bytes + quad * CACHE_LINE;
                        s.prefetch(start.wrapping_add(ahead + rest));
                    }
                }
                let (lo, hi) = Q::load_words(d, quads.add(quad * quad_bytes));
                for (r, parts) in parts.iter_mut().enumerate() {
                    let x = d.splat(*x.add(r * tile.x.row + quad));
                    parts[0] = Q::dot(d, parts[0], lo, x);
                    parts[1] = Q::dot(d, parts[1], hi, x);
                }
            }
            let numbers = start.cast::<u16>().add(tile.first);
            for v in 0..2 {
                let scale = s.load_f16(numbers.add(v * PANEL / 2));
                for (r, parts) in parts.iter().enumerate() {
                    let header = headers.add(r * tile.x.row);
                    let mut part: Floats<D> = d.to_floats(parts[v]);
                    if has_zeros::<Q>() {
                        let zero = s.load_f16(numbers.add(PANEL + v * PANEL / 2));
                        part = s.fma(s.splat(-*header.add(SUM)), zero, part);
                    }
                    let scale = s.mul(scale, s.splat(*header.add(SCALE)));
                    sums[r][v] = s.fma(scale, part, sums[r][v]);
                }
            }
            start = start.wrapping_add(group_bytes);
            x = x.wrapping_add(GROUP / 4);
            headers = headers.wrapping_add(HEADER);
        }
        for (r, sums) in sums.iter().enumerate() {
            for (v, sum) in sums.iter().enumerate() {
                s.store(tile.sums.start.add(r * tile.sums.row + v * PANEL / 2), *sum);
            }
        }
    }
}
