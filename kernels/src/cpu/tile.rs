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
use crate::matrix::PANEL;
use std::marker::PhantomData;
use std::mem::MaybeUninit;

/// How floats lie in memory.
pub(crate) trait Format {
    type Element: Copy;
    /// The vectors of columns `lo ..` and `lo + hi ..`, given the address of `lo` as `pass_offset` has it.
    ///
    /// # Safety
    /// Both vectors can be read.
    unsafe fn load_two<S: Simd>(s: S, from: *const Self::Element, hi: usize) -> (S::V, S::V);
    /// As `load_two`, the first only.
    ///
    /// # Safety
    /// The vector can be read.
    unsafe fn load_one<S: Simd>(s: S, from: *const Self::Element) -> S::V;
    /// Where in a line of a panel the columns `first ..` and `first + 16 ..` begin.
    fn pass_offset(first: usize) -> usize;
}

pub(crate) struct F32;
pub(crate) struct F16;
pub(crate) struct Bf16;

impl Format for F32 {
    type Element = f32;
    #[inline(always)]
    unsafe fn load_two<S: Simd>(s: S, from: *const f32, hi: usize) -> (S::V, S::V) {
        // SAFETY: the caller's promise.
        unsafe { (s.load(from), s.load(from.add(hi))) }
    }
    #[inline(always)]
    unsafe fn load_one<S: Simd>(s: S, from: *const f32) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { s.load(from) }
    }
    #[inline(always)]
    fn pass_offset(first: usize) -> usize {
        first
    }
}

impl Format for F16 {
    type Element = u16;
    #[inline(always)]
    unsafe fn load_two<S: Simd>(s: S, from: *const u16, hi: usize) -> (S::V, S::V) {
        // SAFETY: the caller's promise.
        unsafe { (s.load_f16(from), s.load_f16(from.add(hi))) }
    }
    #[inline(always)]
    unsafe fn load_one<S: Simd>(s: S, from: *const u16) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { s.load_f16(from) }
    }
    #[inline(always)]
    fn pass_offset(first: usize) -> usize {
        first
    }
}

/// Columns c and c + 16 are neighbours, so `hi` is always 16.
impl Format for Bf16 {
    type Element = u16;
    #[inline(always)]
    unsafe fn load_two<S: Simd>(s: S, from: *const u16, _: usize) -> (S::V, S::V) {
        // SAFETY: the caller's promise.
        unsafe { s.load_bf16_pairs(from) }
    }
    #[inline(always)]
    unsafe fn load_one<S: Simd>(s: S, from: *const u16) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { s.load_bf16_pairs(from).0 }
    }
    #[inline(always)]
    fn pass_offset(first: usize) -> usize {
        2 * first
    }
}

/// The weights of a tile: `w[k]` is at `start + k * stride`, its second vector `hi` columns further.
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

/// Where sums go: row r's first vector is at `start + r * row`, the second `hi` further. Not `fresh`: they come from there too.
#[derive(Clone, Copy)]
pub(crate) struct Sums {
    pub start: *mut f32,
    pub row: usize,
    pub hi: usize,
    pub fresh: bool,
}

/// `M` rows times `V` vectors (1 or 2) over `k` terms.
///
/// # Safety
/// All that the arguments describe can be read, and sums written.
#[inline(always)]
pub(crate) unsafe fn tile<S: Simd, W: Format, const M: usize, const V: usize>(
    s: S,
    w: Columns<W>,
    x: Rows,
    k: usize,
    sums: Sums,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut acc = [[s.zero(); V]; M];
        if !sums.fresh {
            for (r, acc) in acc.iter_mut().enumerate() {
                for (v, acc) in acc.iter_mut().enumerate() {
                    *acc = s.load(sums.start.add(r * sums.row + v * sums.hi));
                }
            }
        }
        let (mut line, mut column) = (w.start, x.start);
        for _ in 0..k {
            if M <= 4 {
                s.prefetch(line.cast::<u8>().wrapping_add(PREFETCH));
            }
            if V == 2 {
                let (lo, hi) = W::load_two(s, line, w.hi);
                for (r, acc) in acc.iter_mut().enumerate() {
                    let x = s.splat(*column.add(r * x.row));
                    acc[0] = s.fma(x, lo, acc[0]);
                    acc[1] = s.fma(x, hi, acc[1]);
                }
            } else {
                let lo = W::load_one(s, line);
                for (r, acc) in acc.iter_mut().enumerate() {
                    acc[0] = s.fma(s.splat(*column.add(r * x.row)), lo, acc[0]);
                }
            }
            line = line.wrapping_add(w.stride);
            column = column.wrapping_add(x.step);
        }
        for (r, acc) in acc.iter().enumerate() {
            for (v, acc) in acc.iter().enumerate() {
                s.store(sums.start.add(r * sums.row + v * sums.hi), *acc);
            }
        }
    }
}

/// Bytes ahead of the weights in use; with few rows the loop waits for memory.
const PREFETCH: usize = 1536;

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
    macro_rules! by_rows {
        ($($m:literal)*) => {
            match num_rows {
                // SAFETY: the caller's promise.
                $($m if $m <= S::TILE_ROWS => unsafe { tile::<S, W, $m, V>(s, w, x, k, sums) },)*
                _ => unreachable!("a tile has at most {} rows", S::TILE_ROWS),
            }
        };
    }
    by_rows!(1 2 3 4 5 6 7 8 9 10 11 12);
}

/// How the panels of a matrix are walked, floats or groups.
pub(crate) trait PanelFormat {
    /// Whether `panel` reads sums over groups of x.
    const GROUP_SUMS: bool;

    /// Where in a panel the terms from `k` on begin, in bytes; `k` is a multiple of `K_BLOCK`.
    fn offset(k: usize) -> usize;

    /// Up to any number of rows times one panel's columns: `sums[r][c] (+)= Σ x[r][k] w[k][c]` for 32 columns.
    ///
    /// # Safety
    /// As for `tile`; `x_sums` is what `GroupSums` made of x where the format asks for it.
    unsafe fn panel<S: Simd>(
        s: S,
        num_rows: usize,
        panel: *const u8,
        x: Rows,
        x_sums: *const f32,
        k: usize,
        sums: Sums,
    );
}

/// Panels of floats.
pub(crate) struct Floats<W>(PhantomData<W>);

impl<W: Format> PanelFormat for Floats<W> {
    const GROUP_SUMS: bool = false;

    fn offset(k: usize) -> usize {
        k * PANEL * size_of::<W::Element>()
    }

    #[inline(always)]
    unsafe fn panel<S: Simd>(
        s: S,
        num_rows: usize,
        panel: *const u8,
        x: Rows,
        _: *const f32,
        k: usize,
        sums: Sums,
    ) {
        let panel = panel.cast::<W::Element>();
        let blocks = Blocks::new(num_rows, S::TILE_ROWS);
        for first in (0..PANEL / 2).step_by(S::LANES) {
            let start = panel.wrapping_add(W::pass_offset(first));
            let w = Columns::<W> { start, stride: PANEL, hi: PANEL / 2 };
            let mut row = 0;
            for block in 0..blocks.count {
                let rows = blocks.len(block);
                let x = Rows { start: x.start.wrapping_add(row * x.row), ..x };
                let start = sums.start.wrapping_add(row * sums.row + first);
                // SAFETY: the caller's promise.
                unsafe { tile_of::<S, W, 2>(s, rows, w, x, k, Sums { start, hi: PANEL / 2, ..sums }) };
                row += rows;
            }
        }
    }
}

/// Calls `$f::<S, format>($args)` for the type of weights.
macro_rules! by_weight_type {
    ($stored_as:expr, $f:ident::<$s:ident>($($arg:expr),*)) => {
        match $stored_as {
            $crate::WeightType::F32 => $f::<$s, $crate::cpu::tile::Floats<$crate::cpu::tile::F32>>($($arg),*),
            $crate::WeightType::BF16 => $f::<$s, $crate::cpu::tile::Floats<$crate::cpu::tile::Bf16>>($($arg),*),
            $crate::WeightType::F16 => $f::<$s, $crate::cpu::tile::Floats<$crate::cpu::tile::F16>>($($arg),*),
            $crate::WeightType::Int8 => $f::<$s, $crate::cpu::grouped::Int8>($($arg),*),
            $crate::WeightType::Int4 => $f::<$s, $crate::cpu::grouped::Int4>($($arg),*),
            $crate::WeightType::Int4Zero => $f::<$s, $crate::cpu::grouped::Int4Zero>($($arg),*),
        }
    };
}
pub(crate) use by_weight_type;

/// Terms of a sum between two visits of memory: 16 KiB of a bf16 panel.
pub(crate) const K_BLOCK: usize = 256;
/// The same where there are few rows: their panels are read once, in one go, and nothing need stay in the first cache.
pub(crate) const LONG_K_BLOCK: usize = 4096;

/// Terms between two visits of memory for so many rows. It changes no bit of a sum.
pub(crate) const fn k_block(num_rows: usize) -> usize {
    if num_rows <= UNPACKED_ROWS { LONG_K_BLOCK } else { K_BLOCK }
}

/// Rows that pass by a block of a panel at a time.
pub(crate) const MAX_ROWS: usize = 144;
/// A row of packed activations. Not a power of two: rows that are whole pages apart fight for the same few cache lines.
const PACKED_ROW: usize = K_BLOCK + 16;
/// Rows that do so well enough where they are.
pub(crate) const UNPACKED_ROWS: usize = 4;

/// Room for the activations of one task; on the stack, never filled before use.
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

/// Sums of one panel for the rows of one task; each element is written before it is read.
pub(crate) struct PanelSums([MaybeUninit<f32>; MAX_ROWS * PANEL]);

impl PanelSums {
    #[inline(always)]
    pub const fn new() -> Self {
        Self([MaybeUninit::uninit(); MAX_ROWS * PANEL])
    }

    #[inline(always)]
    pub fn as_mut_ptr(&mut self) -> *mut f32 {
        self.0.as_mut_ptr().cast()
    }

    /// # Safety
    /// The row was written.
    #[inline(always)]
    pub unsafe fn row(&self, row: usize) -> &[f32; PANEL] {
        let row = &self.0[row * PANEL..(row + 1) * PANEL];
        // SAFETY: as many elements, initialised by the caller's promise.
        unsafe { &*row.as_ptr().cast() }
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
