//! The one inner loop of linear layers, experts and attention: a tile of rows times two vectors of columns.
//!
//! ```text
//!              w: columns lo, hi of one k
//!              │  │
//! x[0][k] ──▶ acc acc        acc[r] += x[r][k] * w[k], one fused multiply-add for each k, in order
//! x[1][k] ──▶ acc acc
//!    …
//! ```
//! A sum is one chain of additions over k, whatever the number of rows in the tile and wherever a cut between blocks of k
//! falls: partial sums go to memory and come back unchanged. That is what makes a row's bits independent of its company.

use super::simd::Simd;
use crate::ActivationType;
use crate::panel::PANEL;
use std::mem::MaybeUninit;

/// How floats lie in memory.
pub(crate) trait Format {
    type Element: Copy;
    /// Terms that lie side by side in each column.
    const STEP: usize;
    /// The vector of term `TERM` of a line, given the address of its first column.
    ///
    /// # Safety
    /// `STEP` vectors can be read.
    unsafe fn load<S: Simd, const TERM: usize>(s: S, from: *const Self::Element) -> S::V;
}

pub(crate) struct F32;
pub(crate) struct F16;
/// Two terms in a word of 32 bits.
pub(crate) struct Bf16;

impl Format for F32 {
    type Element = f32;
    const STEP: usize = 1;
    #[inline(always)]
    unsafe fn load<S: Simd, const TERM: usize>(s: S, from: *const f32) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { s.load(from) }
    }
}

impl Format for F16 {
    type Element = u16;
    const STEP: usize = 1;
    #[inline(always)]
    unsafe fn load<S: Simd, const TERM: usize>(s: S, from: *const u16) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { s.load_f16(from) }
    }
}

impl Format for Bf16 {
    type Element = u16;
    const STEP: usize = 2;
    #[inline(always)]
    unsafe fn load<S: Simd, const TERM: usize>(s: S, from: *const u16) -> S::V {
        // SAFETY: the caller's promise.
        let (even, odd) = unsafe { s.load_bf16_pairs(from) };
        if TERM == 0 { even } else { odd }
    }
}

/// The weights of a tile: line l, of `STEP` terms, is at `start + l * stride`, each vector `hi` further than the one before.
pub(crate) struct Columns<W: Format> {
    pub start: *const W::Element,
    pub stride: usize,
    pub hi: usize,
}

impl<W: Format> Clone for Columns<W> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<W: Format> Copy for Columns<W> {}

/// The rows of a tile: `x[r][k]` is at `start + r * row + k * step`.
#[derive(Clone, Copy)]
pub(crate) struct Rows {
    pub start: *const f32,
    pub row: usize,
    pub step: usize,
}

/// Where sums go: row r's first vector is at `start + r * row`, each `hi` further than the one before. Not `fresh`: they come from there too.
#[derive(Clone, Copy)]
pub(crate) struct Sums {
    pub start: *mut f32,
    pub row: usize,
    pub hi: usize,
    pub fresh: bool,
}

/// Where sums that are not fresh come from: row r's first vector is at `start + r * row`, the others as far from it as where they go.
#[derive(Clone, Copy)]
pub(crate) struct Partial {
    pub start: *const f32,
    pub row: usize,
}

impl Partial {
    /// Where they go.
    pub fn of(sums: &Sums) -> Self {
        Self { start: sums.start, row: sums.row }
    }
}

/// Where rows begin. Sums in a loop would be checked for overflow again and again.
#[inline(always)]
pub(super) fn starts<const M: usize>(row: usize) -> [usize; M] {
    let mut starts = [0usize; M];
    for r in 1..M {
        starts[r] = starts[r - 1].wrapping_add(row);
    }
    starts
}

/// The first column of each of `V` vectors of a panel: two from `first` on, which are half a panel apart, then the two after them, and so on.
#[inline(always)]
pub(super) fn columns<const V: usize>(lanes: usize, first: usize) -> [usize; V] {
    let mut columns = [0; V];
    for (v, column) in columns.iter_mut().enumerate() {
        *column = first + v / 2 * lanes + v % 2 * (PANEL / 2);
    }
    columns
}

/// `M` rows times `V` vectors over `k` terms.
///
/// # Safety
/// All that the arguments describe can be read, and sums written.
#[inline(always)]
pub(crate) unsafe fn tile<S: Simd, W: Format, const M: usize, const V: usize>(
    s: S,
    w: Columns<W>,
    x: Rows,
    k: usize,
    (from, sums): (Partial, Sums),
) {
    // SAFETY: the caller's promise.
    unsafe {
        let (mut acc, rows) = ([[s.zero(); V]; M], starts::<M>(x.row));
        if !sums.fresh {
            for (r, acc) in acc.iter_mut().enumerate() {
                for (v, acc) in acc.iter_mut().enumerate() {
                    *acc = s.load(from.start.add(r * from.row + v * sums.hi));
                }
            }
        }
        let (mut line, mut column) = (w.start, x.start);
        for _ in 0..k / W::STEP {
            // Lines of f32 are two of a cache, which the processor follows better by itself.
            if M <= 4 && size_of::<W::Element>() < size_of::<f32>() {
                s.prefetch(line.cast::<u8>().wrapping_add(PREFETCH));
                if W::STEP > 1 {
                    s.prefetch(line.cast::<u8>().wrapping_add(PREFETCH + 64));
                }
            }
            term::<S, W, M, V, 0>(s, line, w.hi, column, &rows, &mut acc);
            if W::STEP > 1 {
                term::<S, W, M, V, 1>(s, line, w.hi, column.wrapping_add(x.step), &rows, &mut acc);
            }
            line = line.wrapping_add(w.stride);
            column = column.wrapping_add(W::STEP * x.step);
        }
        if W::STEP > 1 && !k.is_multiple_of(W::STEP) {
            term::<S, W, M, V, 0>(s, line, w.hi, column, &rows, &mut acc);
        }
        for (r, acc) in acc.iter().enumerate() {
            for (v, acc) in acc.iter().enumerate() {
                s.store(sums.start.add(r * sums.row + v * sums.hi), *acc);
            }
        }
    }
}

/// One term of every sum.
///
/// # Safety
/// As for `tile`.
#[inline(always)]
unsafe fn term<S: Simd, W: Format, const M: usize, const V: usize, const TERM: usize>(
    s: S,
    line: *const W::Element,
    hi: usize,
    column: *const f32,
    rows: &[usize; M],
    acc: &mut [[S::V; V]; M],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut weights = [s.zero(); V];
        for (v, weights) in weights.iter_mut().enumerate() {
            *weights = W::load::<S, TERM>(s, line.add(v.wrapping_mul(hi)));
        }
        for (r, acc) in acc.iter_mut().enumerate() {
            let x = s.splat(*column.add(rows[r]));
            for (v, acc) in acc.iter_mut().enumerate() {
                *acc = s.fma(x, weights[v], *acc);
            }
        }
    }
}

/// How far ahead a tile over rounded rows asks for lines, as near as the second cache. The processor follows a stream by itself, one page of
/// 4 KiB at a time: a tile of few rows runs far enough ahead of its products to reach the next page in time, and requests only disturb it. One
/// of many rows does not (docs/performance/decode-of-eight.md). Only the first rows to pass by find a panel in memory.
pub(crate) const BYTES_AHEAD: usize = 16 << 10;

/// Bytes ahead of the weights in use; with few rows the loop waits for memory.
const PREFETCH: usize = 1536;

/// Evaluates an expression with a constant that is `$rows`, from 1 to `$most`, a constant, and at most 12: tiles of every height are code of
/// their own, and those above `$most` are never compiled.
macro_rules! by_rows {
    ($rows:expr, $most:expr, |$M:ident| $e:expr) => {
        $crate::cpu::tile::by_rows!(@ $rows, $most, $M, $e, 1 2 3 4 5 6 7 8 9 10 11 12)
    };
    (@ $rows:expr, $most:expr, $M:ident, $e:expr, $($m:literal)*) => {
        match $rows {
            $($m if const { $m <= $most } => {
                const $M: usize = $m;
                $e
            })*
            rows => unreachable!("a tile has {rows} rows, and at most {}", $most),
        }
    };
}
pub(crate) use by_rows;

/// A tile of up to `S::TILE_ROWS` rows.
///
/// # Safety
/// As for `tile`.
#[inline(always)]
pub(crate) unsafe fn tile_of<S: Simd, W: Format, const V: usize>(
    s: S,
    num_rows: usize,
    w: Columns<W>,
    x: Rows,
    k: usize,
    sums: Sums,
) {
    // SAFETY: the caller's promise.
    unsafe { tile_from::<S, W, V>(s, num_rows, (w, x), k, (Partial::of(&sums), sums)) }
}

/// As `tile_of`, for sums that may come from elsewhere.
///
/// # Safety
/// As for `tile`.
#[inline(always)]
pub(super) unsafe fn tile_from<S: Simd, W: Format, const V: usize>(
    s: S,
    num_rows: usize,
    (w, x): (Columns<W>, Rows),
    k: usize,
    sums: (Partial, Sums),
) {
    // SAFETY: the caller's promise.
    by_rows!(num_rows, S::TILE_ROWS, |M| unsafe { tile::<S, W, M, V>(s, w, x, k, sums) });
}

/// Some rows times the 32 columns of one panel, and part of K: `sums[r][c] (+)= Σ x[r][k] w[k][c]`. Whoever has one holds the promise
/// of `new`.
#[derive(Clone, Copy)]
pub(crate) struct Job {
    pub num_rows: usize,
    /// Where in the panel the terms begin.
    pub panel: *const u8,
    pub x: Rows,
    pub numbers: Numbers,
    pub k: usize,
    pub sums: Sums,
    pub from: Partial,
    /// What is asked for while the panel's first bytes are read, and so on: what lies behind them, or the next job's.
    pub ahead: *const u8,
    /// Made by `new` alone.
    _promise: (),
}

/// What goes with the groups of each row of x, where a format asks for it: their sums, or the headers of rounded rows.
#[derive(Clone, Copy)]
pub(crate) struct Numbers {
    pub start: *const f32,
    /// From one row to the next.
    pub row: usize,
}

impl Job {
    /// # Safety
    /// As long as the job is used: `k` terms of the panel, of `num_rows` rows of x and the numbers of their groups can be read, x is as
    /// the panel's format wants it, and the sums can be written.
    #[inline(always)]
    pub unsafe fn new(
        num_rows: usize,
        panel: *const u8,
        (x, numbers): (Rows, Numbers),
        k: usize,
        sums: Sums,
    ) -> Self {
        let (from, ahead) = (Partial::of(&sums), panel.wrapping_add(BYTES_AHEAD));
        Self { num_rows, panel, x, numbers, k, sums, from, ahead, _promise: () }
    }

    /// The same that asks for what is read from an address on. Any will do.
    #[inline(always)]
    pub fn before(self, ahead: *const u8) -> Self {
        Self { ahead, ..self }
    }

    /// The same with sums that, where they are not fresh, come from elsewhere.
    ///
    /// # Safety
    /// As long as the job is used, rows of sums as `new` has them can be read there.
    #[inline(always)]
    pub unsafe fn resuming(self, from: Partial) -> Self {
        Self { from, ..self }
    }

    /// The terms from `first` on, `k` of them, of rows of floats; the panel is that of the whole.
    #[inline(always)]
    pub fn terms(&self, first: usize, k: usize) -> Self {
        let sums = Sums { fresh: self.sums.fresh && first == 0, ..self.sums };
        let x = Rows { start: self.x.start.wrapping_add(first), ..self.x };
        // What the terms before left is where sums go.
        let from = if first == 0 { self.from } else { Partial::of(&sums) };
        Self { x, k, sums, from, ..*self }
    }

    /// Some of the rows.
    #[inline(always)]
    pub fn rows(&self, first: usize, num_rows: usize) -> Self {
        let Self { x, numbers, sums, from, .. } = *self;
        Self {
            num_rows,
            x: Rows { start: x.start.wrapping_add(first * x.row), ..x },
            numbers: Numbers { start: numbers.start.wrapping_add(first * numbers.row), ..numbers },
            sums: Sums { start: sums.start.wrapping_add(first * sums.row), ..sums },
            from: Partial { start: from.start.wrapping_add(first * from.row), ..from },
            ..*self
        }
    }
}

/// How the panels of a matrix are walked: floats or groups, and activations as they are or rounded.
pub(crate) trait PanelFormat {
    /// What rows of x are: floats, or what `rounded` made of them.
    const ROUNDED_TO: ActivationType;
    /// Whether `panel` reads sums over groups of x.
    const GROUP_SUMS: bool;
    /// Terms between two visits of memory where there are many rows; a multiple of the group's size. It changes no bit of a sum.
    const K_BLOCK: usize;

    /// Where in a panel the terms from `k` on begin, in bytes; `k` is a multiple of `K_BLOCK` or of `LONG_K_BLOCK`.
    fn offset(k: usize) -> usize;

    /// A panel of this format times rows. A function for each format that is long, not one that is inlined where it is called: tiles of
    /// every height are long code, and their callers need not have a copy each.
    fn panel<S: Simd>(s: S, job: &Job);
}

/// Terms of a sum between two visits of memory: 16 KiB of a bf16 panel.
pub(crate) const K_BLOCK: usize = 256;
/// The same where there are few rows: their panels are read once, in one go, and nothing need stay in the first cache.
pub(crate) const LONG_K_BLOCK: usize = 4096;

/// Terms between two visits of memory for so many rows of floats. It changes no bit of a sum.
pub(crate) const fn k_block(num_rows: usize) -> usize {
    if num_rows <= UNPACKED_ROWS { LONG_K_BLOCK } else { K_BLOCK }
}

/// As `k_block`, for rows as the format wants them.
pub(crate) fn k_block_of<W: PanelFormat>(num_rows: usize) -> usize {
    match W::ROUNDED_TO {
        ActivationType::F32 => k_block(num_rows),
        _ if num_rows <= ONE_TILE => LONG_K_BLOCK,
        _ => W::K_BLOCK,
    }
}

/// Rounded rows that pass by a panel together.
pub(crate) const ONE_TILE: usize = 12;

/// Rows that pass by a block of a panel at a time.
pub(crate) const MAX_ROWS: usize = 144;
/// A row of packed activations. Not a power of two: rows that are whole pages apart fight for the same few cache lines.
pub(super) const PACKED_ROW: usize = K_BLOCK + 16;
/// Rows that do so well enough where they are.
pub(crate) const UNPACKED_ROWS: usize = 4;

/// Room for the activations of one task; on the stack, never filled before use. Rows begin at cache lines.
#[repr(C, align(64))]
pub(crate) struct PackedRows([MaybeUninit<f32>; MAX_ROWS * PACKED_ROW]);

impl PackedRows {
    #[inline(always)]
    pub fn new() -> Self {
        Self([MaybeUninit::uninit(); MAX_ROWS * PACKED_ROW])
    }

    /// Rows of `k` terms, copied side by side where that pays.
    ///
    /// # Safety
    /// `x.start` and its `num_rows` rows of `k` terms can be read; there are at most `MAX_ROWS`, `k` is at most
    /// `k_block(num_rows)` and `x.step` is 1.
    #[inline(always)]
    pub unsafe fn pack(&mut self, x: Rows, num_rows: usize, k: usize) -> Rows {
        if num_rows <= UNPACKED_ROWS {
            return x;
        }
        let start = self.0.as_mut_ptr().cast::<f32>();
        for row in 0..num_rows {
            // SAFETY: the caller's promise; MAX_ROWS rows of K_BLOCK have room.
            unsafe { start.add(row * PACKED_ROW).copy_from_nonoverlapping(x.start.add(row * x.row), k) };
        }
        Rows { start, row: PACKED_ROW, step: 1 }
    }
}

/// Rows cut into blocks of nearly one size, none above a limit.
#[derive(Clone, Copy)]
pub(crate) struct Blocks {
    pub count: usize,
    total: usize,
}

impl Blocks {
    pub fn new(total: usize, most: usize) -> Self {
        Self { count: total.div_ceil(most), total }
    }

    pub fn len(&self, block: usize) -> usize {
        self.total / self.count + usize::from(block < self.total % self.count)
    }
}
