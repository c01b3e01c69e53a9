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

use super::grouped::{Grouped, Int4, Int4Zero, Int8, has_zeros};
use super::rounded::{HEADER, SCALE, START, SUM};
#[cfg(target_arch = "x86_64")]
use super::simd::Bf16Dot;
use super::simd::dot::{Dot, Floats};
use super::simd::{Simd, ask_for, dot_entry};
use super::tile::{Blocks, Job, PanelFormat, by_rows, columns, starts};
#[cfg(target_arch = "x86_64")]
use super::tile::{Partial, Rows, Sums};
use crate::panel::{GROUP, PANEL};
use crate::{ActivationType, WeightType};
use std::hint::black_box;
use std::marker::PhantomData;

/// Tiles ask for what comes later from so many rows on.
#[cfg(target_arch = "x86_64")]
pub(super) const LEAST_PAIRS_AHEAD: usize = 5;
const LEAST_LEVELS_AHEAD: usize = 4;
pub(super) const CACHE_LINE: usize = 64;

/// Panels of bf16 times rows of bf16.
pub(crate) struct Bf16Pairs;

/// Panels of levels times rows of int8.
pub(crate) struct Levels<Q>(PhantomData<Q>);

impl PanelFormat for Bf16Pairs {
    const ROUNDED_TO: ActivationType = ActivationType::BF16;
    const GROUP_SUMS: bool = false;
    const K_BLOCK: usize = 256;

    fn offset(k: usize) -> usize {
        k * WeightType::BF16.line_bytes()
    }

    #[inline(always)]
    fn panel<S: Simd>(_: S, job: &Job) {
        bf16_panel(job);
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
    fn panel<S: Simd>(_: S, job: &Job) {
        levels_panel::<Q>(S::ISA, job);
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn bf16_panel(_: &Job) {
    unreachable!("no processor of this kind multiplies bf16");
}

#[cfg(target_arch = "x86_64")]
fn bf16_panel(job: &Job) {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
    fn entry(job: &Job) {
        // SAFETY: this function has the features.
        let d = unsafe { Bf16Dot::new() };
        let ahead = Lines { start: job.ahead, step: 2 * CACHE_LINE };
        let w = Words { start: job.panel.cast(), stride: PANEL, hi: PANEL / 2, ahead };
        // The end of K is filled up with zeros on both sides.
        let pairs = job.k.div_ceil(2);
        let (blocks, mut row) = (Blocks::new(job.num_rows, Bf16Dot::TILE_ROWS), 0);
        for block in 0..blocks.count {
            let rows = blocks.len(block);
            let Job { x, sums, from, .. } = job.rows(row, rows);
            let sums = (from, Sums { hi: PANEL / 2, ..sums });
            // SAFETY: the promise of `Job::new`.
            unsafe {
                match rows >= LEAST_PAIRS_AHEAD && block == 0 {
                    true => pair_tile_from::<2, 2>(d, rows, (w, x), pairs, sums),
                    false => pair_tile_from::<2, 0>(d, rows, (w, x), pairs, sums),
                }
            }
            row += rows;
        }
    }
    // SAFETY: a device rounds to bf16 only where `Isa::has_bf16_dots`.
    unsafe { entry(job) }
}

/// Pairs of terms of a tile: line l is at `start + l * stride`, its second vector `hi` further.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(crate) struct Words {
    pub start: *const u32,
    pub stride: usize,
    pub hi: usize,
    /// What comes later.
    pub ahead: Lines,
}

/// Lines of memory that a loop asks for, from `start` on and in each turn `step` bytes further.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(crate) struct Lines {
    pub start: *const u8,
    pub step: usize,
}

#[cfg(target_arch = "x86_64")]
impl Lines {
    pub const NONE: Self = Self { start: std::ptr::null(), step: 0 };
}

/// A tile of up to `Bf16Dot::TILE_ROWS` rows of words times `V` vectors, 1 or 2, that asks for `ASKS` lines a turn.
///
/// # Safety
/// As for `tile::tile`.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) unsafe fn pair_tile_of<const V: usize, const ASKS: usize>(
    d: Bf16Dot,
    num_rows: usize,
    w: Words,
    x: Rows,
    pairs: usize,
    sums: Sums,
) {
    // SAFETY: the caller's promise.
    unsafe { pair_tile_from::<V, ASKS>(d, num_rows, (w, x), pairs, (Partial::of(&sums), sums)) }
}

/// As `pair_tile_of`, for sums that may come from elsewhere.
///
/// # Safety
/// As for `tile::tile`.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) unsafe fn pair_tile_from<const V: usize, const ASKS: usize>(
    d: Bf16Dot,
    num_rows: usize,
    (w, x): (Words, Rows),
    pairs: usize,
    sums: (Partial, Sums),
) {
    // SAFETY: the caller's promise.
    by_rows!(num_rows, Bf16Dot::TILE_ROWS, |M| unsafe { pair_tile::<M, V, ASKS>(d, w, x, pairs, sums) });
}

/// # Safety
/// As for `tile::tile`.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn pair_tile<const M: usize, const V: usize, const ASKS: usize>(
    d: Bf16Dot,
    w: Words,
    x: Rows,
    pairs: usize,
    (from, sums): (Partial, Sums),
) {
    let s = d.simd();
    let rows = starts::<M>(x.row);
    let mut acc = [[s.zero(); V]; M];
    // SAFETY: the caller's promise.
    unsafe {
        if !sums.fresh {
            for (start, acc) in starts::<M>(from.row).into_iter().zip(&mut acc) {
                for (v, acc) in acc.iter_mut().enumerate() {
                    *acc =
                        s.load(from.start.wrapping_add(start).wrapping_add(if v == 0 { 0 } else { sums.hi }));
                }
            }
        }
        let (mut line, mut pair, mut ahead) = (w.start, x.start.cast::<u32>(), w.ahead.start);
        for _ in 0..pairs {
            for ask in 0..ASKS {
                ask_for(ahead.wrapping_add(ask * CACHE_LINE));
            }
            if ASKS > 0 {
                ahead = ahead.wrapping_add(w.ahead.step);
            }
            let lo = d.load(line.cast());
            let hi = if V == 2 { d.load(line.wrapping_add(w.hi).cast()) } else { lo };
            for (r, acc) in acc.iter_mut().enumerate() {
                let x = d.splat_from(pair.wrapping_add(rows[r]));
                acc[0] = d.dot_pairs(acc[0], lo, x);
                if V == 2 {
                    acc[1] = d.dot_pairs(acc[1], hi, x);
                }
            }
            line = line.wrapping_add(w.stride);
            pair = pair.wrapping_add(x.step);
        }
        for (start, acc) in starts::<M>(sums.row).into_iter().zip(&acc) {
            for (v, acc) in acc.iter().enumerate() {
                s.store(sums.start.wrapping_add(start).wrapping_add(if v == 0 { 0 } else { sums.hi }), *acc);
            }
        }
    }
}

/// Levels as four bytes to a word.
pub(crate) trait OfLevels: Grouped {
    /// Terms whose levels leave room in the first cache.
    const K_BLOCK: usize;

    /// The words of columns `c ..` and `c + 16 ..`, given the address of column c in a line of four k.
    ///
    /// # Safety
    /// The line can be read.
    unsafe fn load_words<D: Dot>(d: D, from: *const u8) -> (D::W, D::W);

    /// Where sums of a group begin, which `sum` ends.
    fn begin<D: Dot>(d: D, start: D::W) -> D::W;

    fn dot<D: Dot>(d: D, acc: [D::W; 2], w: [D::W; 2], x: D::W) -> [D::W; 2];

    fn sum<D: Dot>(d: D, acc: D::W, start: D::W) -> D::W;
}

impl OfLevels for Int8 {
    const K_BLOCK: usize = 512;
    #[inline(always)]
    unsafe fn load_words<D: Dot>(d: D, from: *const u8) -> (D::W, D::W) {
        // SAFETY: the caller's promise.
        unsafe { (d.load(from), d.load(from.add(4 * PANEL / 2))) }
    }
    #[inline(always)]
    fn begin<D: Dot>(_: D, start: D::W) -> D::W {
        start
    }
    #[inline(always)]
    fn dot<D: Dot>(d: D, acc: [D::W; 2], w: [D::W; 2], x: D::W) -> [D::W; 2] {
        d.dot_two_bytes(acc, w, x)
    }
    #[inline(always)]
    fn sum<D: Dot>(_: D, acc: D::W, _: D::W) -> D::W {
        acc
    }
}

macro_rules! of_nibbles {
    ($type:ident) => {
        impl OfLevels for $type {
            const K_BLOCK: usize = 1024;
            #[inline(always)]
            unsafe fn load_words<D: Dot>(d: D, from: *const u8) -> (D::W, D::W) {
                // SAFETY: the caller's promise.
                let words = unsafe { d.load(from) };
                (d.low_nibbles(words), d.high_nibbles(words))
            }
            #[inline(always)]
            fn begin<D: Dot>(d: D, start: D::W) -> D::W {
                d.no_nibbles(start)
            }
            #[inline(always)]
            fn dot<D: Dot>(d: D, acc: [D::W; 2], w: [D::W; 2], x: D::W) -> [D::W; 2] {
                d.dot_nibbles(acc, w, x)
            }
            #[inline(always)]
            fn sum<D: Dot>(d: D, acc: D::W, start: D::W) -> D::W {
                d.nibble_sum(acc, start)
            }
        }
    };
}
of_nibbles!(Int4);
of_nibbles!(Int4Zero);

dot_entry! {
    fn levels_panel<Q: OfLevels>(job: &Job) = panel_of
}

#[inline(always)]
fn panel_of<D: Dot, Q: OfLevels>(d: D, job: &Job) {
    if job.num_rows <= wide_rows::<D>() {
        // SAFETY: the promise of `Job::new`.
        return by_rows!(job.num_rows, wide_rows::<D>(), |M| unsafe {
            tile_of::<D, Q, M, 2>(d, job, 0, true)
        });
    }
    for first in (0..PANEL / 2).step_by(D::S::LANES) {
        let (blocks, mut row) = (Blocks::new(job.num_rows, D::TILE_ROWS), 0);
        for block in 0..blocks.count {
            let rows = blocks.len(block);
            let part = job.rows(row, rows);
            // SAFETY: the promise of `Job::new`.
            by_rows!(rows, D::TILE_ROWS, |M| unsafe { tile_of::<D, Q, M, 1>(d, &part, first, block == 0) });
            row += rows;
        }
    }
}

/// Rows that pass by all columns at once where vectors are a quarter of them: whole lines of memory are read one after the other.
const fn wide_rows<D: Dot>() -> usize {
    if 4 * D::S::LANES == PANEL { 2 } else { 0 }
}

/// What sums of a group begin with, in its header.
#[inline(always)]
fn start_of(header: *const f32) -> *const i32 {
    header.wrapping_add(START).cast()
}

/// `M` rows; columns `first ..` and `first + 16 ..` of `H` vectors each. With `ahead`, tiles of many rows ask for lines that come later.
///
/// # Safety
/// The promise of `Job::new`, and the job has M rows.
#[inline(always)]
unsafe fn tile_of<D: Dot, Q: OfLevels, const M: usize, const H: usize>(
    d: D,
    job: &Job,
    first: usize,
    ahead: bool,
) {
    let s = d.simd();
    let (quad_bytes, group_bytes) = (4 * Q::STORED_AS.line_bytes(), Q::STORED_AS.group_bytes());
    let (words, numbers) = (starts::<M>(job.x.row), starts::<M>(job.numbers.row));
    // A number that the compiler does not know: it would unroll the loop, load lines in an order of its own, which the processor does
    // not follow ahead, and run out of registers.
    let quads = black_box(GROUP / 4);
    let (from, out) = (job.from.start.wrapping_add(first), job.sums.start.wrapping_add(first));
    // Two for each half: H is at most 2.
    let columns = columns::<4>(D::S::LANES, 0);
    let mut sums = [[[s.zero(); 2]; H]; M];
    let mut asked = job.ahead;
    // SAFETY: the caller's promise.
    unsafe {
        if !job.sums.fresh {
            for (start, sums) in starts::<M>(job.from.row).into_iter().zip(&mut sums) {
                for (column, sum) in columns.into_iter().zip(sums.as_flattened_mut()) {
                    *sum = s.load(from.wrapping_add(start).wrapping_add(column));
                }
            }
        }
        let (mut start, mut x, mut headers) = (job.panel, job.x.start.cast::<i32>(), job.numbers.start);
        for _ in 0..job.k.div_ceil(GROUP) {
            let mut parts = [[[d.splat(0); 2]; H]; M];
            for (r, parts) in parts.iter_mut().enumerate() {
                *parts = [[Q::begin(d, d.splat(*start_of(headers.wrapping_add(numbers[r])))); 2]; H];
            }
            let mut quad = start.wrapping_add(Q::STORED_AS.header_bytes() + 4 * first);
            if M >= LEAST_LEVELS_AHEAD && ahead {
                for line in (0..group_bytes).step_by(CACHE_LINE) {
                    ask_for(asked.wrapping_add(line));
                }
                asked = asked.wrapping_add(group_bytes);
            }
            for i in 0..quads {
                let mut xs = [d.splat(0); M];
                for (x_row, xs) in words.into_iter().zip(&mut xs) {
                    *xs = d.splat(*x.wrapping_add(x_row).wrapping_add(i));
                }
                for h in 0..H {
                    let (lo, hi) = Q::load_words(d, quad.wrapping_add(4 * D::S::LANES * h));
                    for (parts, &x) in parts.iter_mut().zip(&xs) {
                        parts[h] = Q::dot(d, parts[h], [lo, hi], x);
                    }
                }
                quad = quad.wrapping_add(quad_bytes);
            }
            let scales = start.cast::<u16>().wrapping_add(first);
            for (v, column) in columns.into_iter().enumerate().take(2 * H) {
                let scale = s.load_f16(scales.wrapping_add(column));
                for (r, parts) in parts.iter().enumerate() {
                    let header = headers.wrapping_add(numbers[r]);
                    let part = Q::sum(d, parts.as_flattened()[v], d.splat(*start_of(header)));
                    let mut part: Floats<D> = d.to_floats(part);
                    if has_zeros::<Q>() {
                        let zero = s.load_f16(scales.wrapping_add(PANEL + column));
                        part = s.fma(s.splat(-*header.wrapping_add(SUM)), zero, part);
                    }
                    let scale = s.mul(scale, s.splat(*header.wrapping_add(SCALE)));
                    let sum = &mut sums[r].as_flattened_mut()[v];
                    *sum = s.fma(scale, part, *sum);
                }
            }
            start = start.wrapping_add(group_bytes);
            x = x.wrapping_add(GROUP / 4);
            headers = headers.wrapping_add(HEADER);
        }
        for (start, sums) in starts::<M>(job.sums.row).into_iter().zip(&sums) {
            for (column, sum) in columns.into_iter().zip(sums.as_flattened()) {
                s.store(out.wrapping_add(start).wrapping_add(column), *sum);
            }
        }
    }
}
