//! Blocks of few rows, such as a decode step of four heads that share a key head: keys lie along the vectors, not rows.
//!
//! ```text
//! queries [rows, D] · keys [D, 64] = scores [rows, 64]  ─exp─▶  weights [rows, 64] · values [64, Dv]  +▶ sums [rows, Dv]
//! ```
//! Each line of the cache is read once, widened and multiplied on the spot: keys are turned round a vector of them at a time, values are
//! used as they lie. Every sum has the order that it has in a block of many rows, so that the bits are the same.

use super::attention_block::{LOWEST, Workspace, shrink};
use super::attention_load::{self as load, Places};
use super::attention_problem::{After, Block, KEYS, Keys, Problem, ROWS, row_len, width};
use super::simd::{Isa, MAX_LANES, Simd, Turn, math, simd_entry};
use super::tile::by_rows;
use crate::DType;
use crate::operands::kv::KvRows;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Rows of a key head that go this way at most: turning keys round costs as much as the scores of eight rows in vectors of sixteen.
pub(super) const MOST_ROWS: usize = 8;
/// Bytes of a cache line.
const LINE: usize = 64;

/// Rows that share a look at a key in f32. Tiles of every height are code of their own, for each type of cache: more rows look twice.
const ROWS_AT_ONCE: usize = 4;

/// As many as go this way; none in plain code.
const fn most_rows(isa: Isa) -> usize {
    match isa {
        Isa::Avx512 => MOST_ROWS,
        Isa::Avx2 | Isa::Neon => MOST_ROWS / 2,
        Isa::Portable => 0,
    }
}

/// Rows of a tile whose sums over four vectors of columns stay in registers.
const fn most_of_four_vectors(isa: Isa) -> usize {
    match isa {
        Isa::Avx512 => 4,
        Isa::Avx2 | Isa::Neon => 2,
        Isa::Portable => 0,
    }
}

/// Whether so few rows of a key head go this way.
pub(super) fn is_thin(isa: Isa, problem: &Problem, num_rows: usize) -> bool {
    let lanes = if isa == Isa::Avx512 { MAX_LANES } else { MAX_LANES / 2 };
    // Latents of levels have two scales.
    let has_one_scale = !matches!(problem.keys, Keys::Latent { cache: KvRows { scales: Some(_), .. }, .. });
    let [d, dv] = [problem.sizes.key_dim, problem.sizes.value_dim];
    num_rows <= most_rows(isa) && has_one_scale && d.is_multiple_of(lanes) && dv.is_multiple_of(2 * lanes)
}

/// Where the rows of a tile begin, of the first key head of a block, and where their scales are. Beyond the last row the last one stands
/// in; nobody sees it.
pub(super) struct Tile {
    first: usize,
    pub len: usize,
    pub keys: [*const u8; KEYS],
    pub values: [*const u8; KEYS],
    /// Of keys and of values; null: none.
    scales: [[*const f32; KEYS]; 2],
}

impl Tile {
    /// Of positions `first .. first + len`, at least one.
    pub fn of(problem: &Problem, block: &Block, (first, len): (usize, usize)) -> Self {
        let places = Places::of(problem, block, first, len);
        let [d, dv] = [problem.sizes.key_dim, problem.sizes.value_dim].map(|dim| block.num_kv_heads * dim);
        let nowhere = [std::ptr::null(); KEYS];
        let scales = [[std::ptr::null(); KEYS]; 2];
        let mut tile = Self { first, len, keys: nowhere, values: nowhere, scales };
        for i in 0..KEYS {
            let row = places.rows()[i.min(len - 1)];
            (tile.keys[i], tile.scales[0][i]) =
                load::key(problem, block, row).addresses(d, block.num_kv_heads);
            (tile.values[i], tile.scales[1][i]) =
                load::value(problem, block, row).addresses(dv, block.num_kv_heads);
        }
        tile
    }

    /// What is to be asked for while a tile is computed with: the `next` of its range, or the first of what comes `after`.
    pub fn ahead(
        problem: &Problem,
        block: &Block,
        next: Option<(usize, usize)>,
        after: After,
    ) -> Option<Self> {
        match (next, after) {
            (Some(next), _) => Some(Self::of(problem, block, next)),
            (None, Some((block, range))) => Some(Self::of(problem, block, block.tiles(range).next()?)),
            (None, None) => None,
        }
    }
}

/// One key head of a block: which, and rows that look at it.
pub(super) struct Head {
    pub index: usize,
    pub rows: Range<usize>,
}

impl Head {
    /// All of them, each with up to so many rows.
    pub fn all(block: &Block, most: usize) -> impl Iterator<Item = Self> + use<> {
        let len = block.num_rows() / block.num_kv_heads;
        (0..block.num_kv_heads).flat_map(move |index| {
            let rows = (0..len).step_by(most);
            rows.map(move |row| Self { index, rows: index * len + row..index * len + len.min(row + most) })
        })
    }
}

simd_entry! {
    /// Fills `work.range` with the block's attention over one range of keys, and asks for what comes `after`.
    pub(crate) fn attend(problem: &Problem<'_>, block: &Block, range: usize, after: After<'_>, work: &mut Workspace<'_>) = attend_body
}

#[inline(always)]
fn attend_body<S: Turn>(
    s: S,
    problem: &Problem<'_>,
    block: &Block,
    range: usize,
    after: After<'_>,
    work: &mut Workspace<'_>,
) {
    match elements(problem) {
        (DType::F32, _) => tiles::<S, F32>(s, problem, block, range, after, work),
        (DType::BF16, _) => tiles::<S, Bf16>(s, problem, block, range, after, work),
        (DType::F16, _) => tiles::<S, F16>(s, problem, block, range, after, work),
        _ => tiles::<S, Levels>(s, problem, block, range, after, work),
    }
}

/// How keys and values lie, and whether they are levels.
fn elements(problem: &Problem) -> (DType, bool) {
    match problem.keys {
        Keys::Paged { keys: KvRows { rows, scales }, .. }
        | Keys::Latent { cache: KvRows { rows, scales }, .. } => (rows.dtype(), scales.is_some()),
        Keys::Packed { .. } | Keys::Expanded { .. } => (DType::F32, false),
    }
}

#[inline(always)]
fn tiles<S: Turn, E: Element>(
    s: S,
    problem: &Problem<'_>,
    block: &Block,
    range: usize,
    after: After<'_>,
    work: &mut Workspace<'_>,
) {
    work.range.clear(block.num_rows());
    let mut tiles = block.tiles(range);
    let mut tile = tiles.next().map(|tile| Tile::of(problem, block, tile));
    while let Some(now) = tile {
        let next = tiles.next();
        let ahead = Tile::ahead(problem, block, next, after);
        for head in Head::all(block, ROWS_AT_ONCE) {
            one_head::<S, E>(s, problem, block, [&now, ahead.as_ref().unwrap_or(&now)], &head, work);
        }
        tile = ahead.filter(|_| next.is_some());
    }
}

/// One tile of keys of one head. Lines of the next are asked for at the pace of those that are read.
#[inline(always)]
fn one_head<S: Turn, E: Element>(
    s: S,
    problem: &Problem<'_>,
    block: &Block,
    [tile, next]: [&Tile; 2],
    head: &Head,
    work: &mut Workspace<'_>,
) {
    let [d, dv] = [problem.sizes.key_dim, problem.sizes.value_dim];
    let (num_rows, sum_row) = (head.rows.len(), row_len(dv));
    assert!(num_rows <= ROWS_AT_ONCE && work.scores.len() >= num_rows * KEYS, "a tile of scores");
    assert!(head.rows.end <= ROWS && work.queries.len() >= d * width(block), "workspace");
    assert!(work.range.values.len() >= head.rows.end * sum_row, "workspace");
    let queries = work.queries.as_ptr().wrapping_add(head.rows.start);
    for first in (0..tile.len).step_by(S::LANES) {
        let keys = Vectors { tile, next, first, d, head: head.index, width: width(block) };
        let out = work.scores.as_mut_ptr().wrapping_add(first);
        // SAFETY: rows of d elements, as many lines of queries, and a vector of scores for each row; KEYS is a whole number of vectors.
        by_rows!(num_rows, ROWS_AT_ONCE, |M| unsafe { keys.score::<S, E, M>(s, queries, out) });
    }
    hide(block, tile, head, work);
    soften(s, tile.len, head, work, &mut || ());
    shrink(s, sum_row, &(0..sum_row), head.rows.clone(), work);
    let weights = work.scores.as_ptr();
    let out = work.range.values.as_mut_ptr().wrapping_add(head.rows.start * sum_row);
    let sums = Sums { tile, next, value_dim: dv, head: head.index, weights, out, sum_row };
    // SAFETY: rows of values, weights of KEYS keys, and sums of a whole number of vectors for each row.
    by_rows!(num_rows, ROWS_AT_ONCE, |M| unsafe { sums.add::<S, E, M>(s) });
}

/// Scores of keys that a row may not see, because they come after it or before its window, or that are not there, become -inf.
pub(super) fn hide(block: &Block, tile: &Tile, head: &Head, work: &mut Workspace) {
    for (scores, row) in work.scores.chunks_exact_mut(KEYS).zip(head.rows.clone()) {
        let visible = block.visible(row);
        let seen = (visible - tile.first.min(visible)).min(tile.len);
        scores[seen..].fill(f32::NEG_INFINITY);
        let start = visible.saturating_sub(block.window).saturating_sub(tile.first);
        scores[..start.min(KEYS)].fill(f32::NEG_INFINITY);
    }
}

/// What keys and values consist of.
trait Element {
    const BYTES: usize;
    /// Whether they are levels, which have a scale.
    const SCALED: bool;
    /// Elements that lie in a word of 32 bits, if rows are turned round by words.
    const IN_WORD: usize;

    /// # Safety
    /// `LANES` elements can be read.
    unsafe fn load<S: Turn>(s: S, from: *const u8) -> S::V;

    /// Element `TERM` of each word.
    ///
    /// # Safety
    /// `LANES` words can be read.
    #[inline(always)]
    unsafe fn term<S: Turn, const TERM: usize>(s: S, words: *const f32) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { s.load(words) }
    }
}

struct F32;
struct F16;
struct Bf16;
/// Signed bytes.
struct Levels;

impl Element for F32 {
    const BYTES: usize = 4;
    const SCALED: bool = false;
    const IN_WORD: usize = 1;
    #[inline(always)]
    unsafe fn load<S: Turn>(s: S, from: *const u8) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { s.load(from.cast()) }
    }
}

impl Element for F16 {
    const BYTES: usize = 2;
    const SCALED: bool = false;
    const IN_WORD: usize = 1;
    #[inline(always)]
    unsafe fn load<S: Turn>(s: S, from: *const u8) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { s.load_f16(from.cast()) }
    }
}

impl Element for Bf16 {
    const BYTES: usize = 2;
    const SCALED: bool = false;
    const IN_WORD: usize = 2;
    #[inline(always)]
    unsafe fn load<S: Turn>(s: S, from: *const u8) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { s.load_bf16(from.cast()) }
    }
    #[inline(always)]
    unsafe fn term<S: Turn, const TERM: usize>(s: S, words: *const f32) -> S::V {
        // SAFETY: the caller's promise.
        let (even, odd) = unsafe { s.load_bf16_pairs(words.cast()) };
        if TERM == 0 { even } else { odd }
    }
}

impl Element for Levels {
    const BYTES: usize = 1;
    const SCALED: bool = true;
    const IN_WORD: usize = 4;
    #[inline(always)]
    unsafe fn load<S: Turn>(s: S, from: *const u8) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { s.load_i8(from) }
    }
    #[inline(always)]
    unsafe fn term<S: Turn, const TERM: usize>(s: S, words: *const f32) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { s.load_byte::<TERM>(words.cast()) }
    }
}

/// A vector of keys of `d` elements, from the one at `first` on.
struct Vectors<'a> {
    tile: &'a Tile,
    next: &'a Tile,
    first: usize,
    d: usize,
    head: usize,
    /// From one line of queries to the next.
    width: usize,
}

/// Columns of as many keys: lines of a vector, which are written before they are read.
type Lines = [MaybeUninit<f32>; MAX_LANES * MAX_LANES];

impl Vectors<'_> {
    /// `out[r * KEYS + j] = query[r] · key[j]`
    ///
    /// # Safety
    /// Rows of `d` elements, a whole number of vectors, can be read, as many lines of queries, and `M` vectors written.
    #[inline(always)]
    unsafe fn score<S: Turn, E: Element, const M: usize>(&self, s: S, queries: *const f32, out: *mut f32) {
        let mut acc = [s.zero(); M];
        let mut scales = s.zero();
        if E::SCALED {
            let mut of_keys = [0.0; MAX_LANES];
            for (scale, at) in of_keys[..S::LANES].iter_mut().zip(&self.tile.scales[0][self.first..]) {
                // SAFETY: levels have a scale for each key head.
                *scale = unsafe { *at.wrapping_add(self.head) };
            }
            scales = s.load_slice(&of_keys);
        }
        let mut column = 0;
        let mut lines = [MaybeUninit::uninit(); MAX_LANES * MAX_LANES];
        // SAFETY: the caller's promise.
        unsafe {
            while E::IN_WORD > 1 && column + E::IN_WORD * S::LANES <= self.d {
                self.ask::<S, E>(s, column, E::IN_WORD * S::LANES);
                self.turn_words::<S, E>(s, column, &mut lines);
                for line in lines.chunks_exact(S::LANES).take(S::LANES) {
                    let words = line.as_ptr().cast();
                    let query = [0, 1, 2, 3].map(|term| queries.wrapping_add((column + term) * self.width));
                    terms::<S, E, M, 0>(s, words, scales, query[0], &mut acc);
                    terms::<S, E, M, 1>(s, words, scales, query[1], &mut acc);
                    terms::<S, E, M, 2>(s, words, scales, query[2], &mut acc);
                    terms::<S, E, M, 3>(s, words, scales, query[3], &mut acc);
                    column += E::IN_WORD;
                }
            }
            while column < self.d {
                self.ask::<S, E>(s, column, S::LANES);
                self.turn_elements::<S, E>(s, column, &mut lines);
                for line in lines.chunks_exact(S::LANES).take(S::LANES) {
                    let (line, query) = (line.as_ptr().cast(), queries.wrapping_add(column * self.width));
                    term::<S, E, M>(s, s.load(line), scales, query, &mut acc);
                    column += 1;
                }
            }
            for (r, acc) in acc.iter().enumerate() {
                s.store(out.wrapping_add(r * KEYS), *acc);
            }
        }
    }

    /// Bytes from the start of a row to an element of the head.
    #[inline(always)]
    fn at<E: Element>(&self, column: usize) -> usize {
        (self.head * self.d + column) * E::BYTES
    }

    /// The lines of the next tile's rows in which some elements lie.
    #[inline(always)]
    fn ask<S: Turn, E: Element>(&self, s: S, column: usize, len: usize) {
        let start = self.at::<E>(column);
        for row in &self.next.keys[self.first..self.first + S::LANES] {
            for line in (0..len * E::BYTES).step_by(LINE) {
                s.prefetch_second(row.wrapping_add(start + line));
            }
        }
    }

    /// Words from an element on, of which a line holds one of each row.
    ///
    /// # Safety
    /// So many words can be read of each row.
    #[inline(always)]
    unsafe fn turn_words<S: Turn, E: Element>(&self, s: S, column: usize, lines: &mut Lines) {
        let mut rows = [std::ptr::null(); MAX_LANES];
        for (row, key) in rows[..S::LANES].iter_mut().zip(&self.tile.keys[self.first..]) {
            *row = key.wrapping_add(self.at::<E>(column)).cast();
        }
        // SAFETY: the caller's promise.
        unsafe { s.turn(&rows, lines.as_mut_ptr().cast(), S::LANES) };
    }

    /// As `turn_words`, of elements that are widened first.
    ///
    /// # Safety
    /// So many elements can be read of each row.
    #[inline(always)]
    unsafe fn turn_elements<S: Turn, E: Element>(&self, s: S, column: usize, lines: &mut Lines) {
        if E::BYTES == size_of::<f32>() {
            // SAFETY: the caller's promise.
            return unsafe { self.turn_words::<S, E>(s, column, lines) };
        }
        let mut widened: Lines = [MaybeUninit::uninit(); MAX_LANES * MAX_LANES];
        let start = widened.as_mut_ptr().cast::<f32>();
        let mut rows = [std::ptr::null(); MAX_LANES];
        for (lane, row) in rows[..S::LANES].iter_mut().enumerate() {
            let to = start.wrapping_add(lane * S::LANES);
            // SAFETY: the caller's promise, and room for as many vectors.
            unsafe {
                s.store(to, E::load(s, self.tile.keys[self.first + lane].wrapping_add(self.at::<E>(column))));
            }
            *row = to.cast_const();
        }
        // SAFETY: all were written.
        unsafe { s.turn(&rows, lines.as_mut_ptr().cast(), S::LANES) };
    }
}

/// Element `TERM` of a line of words, if there are so many.
///
/// # Safety
/// As for `term`.
#[inline(always)]
unsafe fn terms<S: Turn, E: Element, const M: usize, const TERM: usize>(
    s: S,
    words: *const f32,
    scales: S::V,
    queries: *const f32,
    acc: &mut [S::V; M],
) {
    if const { TERM < E::IN_WORD } {
        // SAFETY: the caller's promise.
        unsafe { term::<S, E, M>(s, E::term::<S, TERM>(s, words), scales, queries, acc) };
    }
}

/// One element of each key times that of `M` queries.
///
/// # Safety
/// A line of queries can be read.
#[inline(always)]
unsafe fn term<S: Turn, E: Element, const M: usize>(
    s: S,
    line: S::V,
    scales: S::V,
    queries: *const f32,
    acc: &mut [S::V; M],
) {
    let line = if E::SCALED { s.mul(line, scales) } else { line };
    for (r, acc) in acc.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        *acc = s.fma(s.splat(unsafe { *queries.wrapping_add(r) }), line, *acc);
    }
}

/// Scores become weights against the new maximum; those of keys that are not there become 0.
#[inline(always)]
pub(super) fn soften<S: Simd>(
    s: S,
    n: usize,
    head: &Head,
    work: &mut Workspace<'_>,
    between: &mut impl FnMut(),
) {
    let (rows, num_rows) = (head.rows.clone(), head.rows.len());
    let (mut max, mut sum) = ([LOWEST; MAX_LANES], [0.0; MAX_LANES]);
    for (row, scores) in work.scores.chunks_exact_mut(KEYS).take(num_rows).enumerate() {
        let mut highest = s.splat(work.range.max[rows.start + row]);
        for j in (0..KEYS).step_by(S::LANES) {
            highest = s.max(highest, s.load_slice(&scores[j..]));
        }
        let mut lanes = [LOWEST; MAX_LANES];
        s.store_slice(&mut lanes, highest);
        max[row] = lanes.into_iter().fold(LOWEST, |a, b| if a > b { a } else { b });
        for j in (0..KEYS).step_by(S::LANES) {
            let weight = math::exp(s, s.sub(s.load_slice(&scores[j..]), s.splat(max[row])));
            s.store_slice(&mut scores[j..], weight);
            between();
        }
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
    let (old, max) = (s.load_slice(&work.range.max[rows.clone()]), s.load_slice(&max));
    let factor = math::exp(s, s.sub(old, max));
    let total = s.fma(s.load_slice(&work.range.sum[rows.clone()]), factor, s.load_slice(&sum));
    s.store_slice(&mut work.range.sum[rows.clone()], total);
    s.store_slice(&mut work.range.max[rows.clone()], max);
    s.store_slice(&mut work.shrink[rows], factor);
}

/// `out[r] += Σ_j weights[r, j] · value[j]`
struct Sums<'a> {
    tile: &'a Tile,
    next: &'a Tile,
    value_dim: usize,
    head: usize,
    /// `[rows, KEYS]`
    weights: *const f32,
    /// `[rows, sum_row]`
    out: *mut f32,
    sum_row: usize,
}

impl Sums<'_> {
    /// # Safety
    /// Rows of `value_dim` elements, a whole number of pairs of vectors, and `M` rows of weights can be read, and `M` rows of sums written.
    #[inline(always)]
    unsafe fn add<S: Turn, E: Element, const M: usize>(&self, s: S) {
        let mut column = 0;
        // As many columns as leave their sums in registers, and enough to have several sums under way.
        // SAFETY: the caller's promise.
        unsafe {
            if const { M <= most_of_four_vectors(S::ISA) } {
                while column + 4 * S::LANES <= self.value_dim {
                    self.columns::<S, E, M, 4>(s, column);
                    column += 4 * S::LANES;
                }
            }
            while column < self.value_dim {
                self.columns::<S, E, M, 2>(s, column);
                column += 2 * S::LANES;
            }
        }
    }

    /// `V` vectors of columns.
    ///
    /// # Safety
    /// As for `add`, and there are so many columns.
    #[inline(always)]
    unsafe fn columns<S: Turn, E: Element, const M: usize, const V: usize>(&self, s: S, column: usize) {
        let mut acc = [[s.zero(); V]; M];
        // SAFETY: the caller's promise.
        unsafe {
            let out = self.out.add(column);
            let start = (self.head * self.value_dim + column) * E::BYTES;
            for (r, acc) in acc.iter_mut().enumerate() {
                for (v, acc) in acc.iter_mut().enumerate() {
                    *acc = s.load(out.add(r * self.sum_row + v * S::LANES));
                }
            }
            for j in 0..self.tile.len {
                let [value, next] = [self.tile, self.next].map(|tile| tile.values[j].wrapping_add(start));
                for line in (0..V * S::LANES * E::BYTES).step_by(LINE) {
                    s.prefetch_second(next.wrapping_add(line));
                }
                let mut values = [s.zero(); V];
                let scale = if E::SCALED { *self.tile.scales[1][j].wrapping_add(self.head) } else { 1.0 };
                for (v, x) in values.iter_mut().enumerate() {
                    *x = E::load(s, value.wrapping_add(v * S::LANES * E::BYTES));
                    if E::SCALED {
                        *x = s.mul(*x, s.splat(scale));
                    }
                }
                for (r, acc) in acc.iter_mut().enumerate() {
                    let weight = s.splat(*self.weights.wrapping_add(r * KEYS + j));
                    for (v, acc) in acc.iter_mut().enumerate() {
                        *acc = s.fma(weight, values[v], *acc);
                    }
                }
            }
            for (r, acc) in acc.iter().enumerate() {
                for (v, acc) in acc.iter().enumerate() {
                    s.store(out.add(r * self.sum_row + v * S::LANES), *acc);
                }
            }
        }
    }
}
