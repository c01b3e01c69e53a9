//! Blocks of sixteen rows over latents in bf16, such as a token of a model with sixteen heads: what `attention_pairs` does, with keys and
//! values multiplied where they lie in the cache.
//!
//! ```text
//! scores   key rows ×8, a word of each in all lanes  ·  queries, sixteen rows along the vector
//! sums     all sixteen rows' sums of sixteen columns in registers; values of two keys become words on their way there
//! ```
//! With more rows a copy of keys, and of values as words, is read so often that it pays. Every sum has the order that it has there, by the same
//! instructions, and so its bits.

use super::attention_block::Workspace;
use super::attention_load::Places;
use super::attention_problem::{Block, KEYS, Keys, Problem, row_len};
use super::dot::Lines;
use super::simd::{Avx512, Bf16Dot, Simd, ask_for};
use super::tile::{Blocks, by_rows};
use crate::operands::kv::KvRows;
use std::ops::Range;

const LANES: usize = Avx512::LANES;

/// Rows of latents of one tile, where they lie.
pub(super) struct Latents<'a> {
    cache: &'a [u16],
    places: &'a [usize],
    /// Numbers of a row, and those that are the value.
    sizes: [usize; 2],
}

impl<'a> Latents<'a> {
    /// None: the block goes another way.
    pub fn of(problem: &Problem<'a>, block: &Block, places: &'a Places) -> Option<Self> {
        let [d, dv] = [problem.sizes.key_dim, problem.sizes.value_dim];
        match problem.keys {
            Keys::Latent { cache: KvRows { rows, scales: None }, .. }
                if block.num_rows() == LANES
                    && d.is_multiple_of(2)
                    && dv.is_multiple_of(LANES)
                    && dv <= d =>
            {
                Some(Self { cache: rows.as_u16(), places: places.rows(), sizes: [d, dv] })
            }
            _ => None,
        }
    }

    /// Where a row begins, all of which can be read.
    fn row(&self, place: usize) -> *const u16 {
        let [d, _] = self.sizes;
        self.cache[place * d..(place + 1) * d].as_ptr()
    }

    /// `scores[j, r] = key[j] · query[r]`, and lines of what comes next asked for meanwhile.
    #[inline(always)]
    pub fn score(&self, dot: Bf16Dot, next: &LatentsAhead, work: &mut Workspace) {
        let ([d, _], n) = (self.sizes, self.places.len());
        let pairs = d / 2;
        assert!(n <= KEYS && work.scores.len() >= n * LANES, "a tile of scores");
        assert!(work.queries.len() >= pairs * LANES, "workspace");
        let blocks = Blocks::new(n, Bf16Dot::TILE_ROWS);
        // A short tile has little time to ask for a whole one.
        let asks = KEYS.div_ceil(blocks.count);
        let (queries, scores) = (work.queries.as_ptr().cast::<u32>(), work.scores.as_mut_ptr());
        let mut first = 0;
        for block in 0..blocks.count {
            let rows = blocks.len(block);
            let mut keys = [std::ptr::null(); Bf16Dot::TILE_ROWS];
            for (key, &place) in keys.iter_mut().zip(&self.places[first..first + rows]) {
                *key = self.row(place).cast::<u32>();
            }
            let ahead = next.lines(block * asks, asks, pairs);
            let out = scores.wrapping_add(first * LANES);
            // SAFETY: whole rows of so many pairs, which begin at whole words of memory that a cache line begins; as many lines of queries and
            // `rows` lines of scores, both lengths checked above.
            by_rows!(rows, Bf16Dot::TILE_ROWS, |M| unsafe {
                score_tile::<M>(
                    dot,
                    keys.first_chunk().expect("a tile's keys"),
                    (queries, pairs),
                    ahead,
                    out,
                );
            });
            first += rows;
        }
    }

    /// `sums[r] += Σ_j weights[j, r] · value[j]`, in some columns, whole vectors; weights are words for two keys.
    #[inline(always)]
    pub fn sum(&self, dot: Bf16Dot, columns: &Range<usize>, work: &mut Workspace) {
        let ([_, dv], n) = (self.sizes, self.places.len());
        let sum_row = row_len(dv);
        assert!(n <= KEYS && work.scores.len() >= n.div_ceil(2) * LANES, "a tile of weights");
        assert!(work.range.values.len() >= LANES * sum_row && columns.end <= dv, "workspace");
        let mut values = [std::ptr::null(); KEYS];
        for (value, &place) in values.iter_mut().zip(self.places) {
            *value = self.row(place);
        }
        let (weights, out) = (work.scores.as_ptr().cast(), work.range.values.as_mut_ptr());
        for column in columns.clone().step_by(LANES) {
            // SAFETY: a vector of columns that rows have, a line of weights for every two of them, and sixteen rows of sums.
            unsafe { sum_tile(dot, &values[..n], column, weights, (out.wrapping_add(column), sum_row)) };
        }
    }
}

/// Rows of latents of a tile, asked for in loops, a line or two a turn: requests that come faster than memory answers are dropped.
/// None for keys of another kind, which `attention_load::Ahead` asks for.
pub(super) struct LatentsAhead<'a> {
    cache: Option<&'a [u16]>,
    places: Places,
    key_dim: usize,
}

impl<'a> LatentsAhead<'a> {
    /// Positions `first ..` up to the last that the block sees.
    pub fn new(problem: &Problem<'a>, block: &Block, first: usize) -> Self {
        let (cache, len) = match problem.keys {
            Keys::Latent { cache, .. } => {
                (Some(cache.rows.as_u16()), KEYS.min(block.last_visible - first.min(block.last_visible)))
            }
            _ => (None, 0),
        };
        Self { cache, places: Places::of(problem, block, first, len), key_dim: problem.sizes.key_dim }
    }

    /// Some rows from the one at `index` on, as if they followed each other, which those of one block of the cache do; for a loop of so
    /// many turns.
    pub fn lines(&self, index: usize, rows: usize, turns: usize) -> Lines {
        match (self.cache, self.places.rows().get(index)) {
            (Some(cache), Some(&row)) => Lines {
                start: cache[row * self.key_dim..].as_ptr().cast(),
                step: (rows * self.key_dim * size_of::<u16>()).div_ceil(turns),
            },
            // The same line again and again, which is near.
            _ => Lines { start: self.places.rows().as_ptr().cast(), step: 0 },
        }
    }
}

/// `M` keys of so many pairs.
///
/// # Safety
/// Keys and lines of queries can be read, and `M` lines of `out` written.
#[inline(always)]
unsafe fn score_tile<const M: usize>(
    dot: Bf16Dot,
    keys: &[*const u32; M],
    (queries, pairs): (*const u32, usize),
    mut ahead: Lines,
    out: *mut f32,
) {
    let s = dot.simd();
    let mut acc = [s.zero(); M];
    let mut query = queries;
    // SAFETY: the caller's promise.
    unsafe {
        for pair in 0..pairs {
            ask_for(ahead.start);
            ahead.start = ahead.start.wrapping_add(ahead.step);
            let line = dot.load(query.cast());
            // Two iterators side by side would not be inlined, and sums would go through memory.
            for (r, acc) in acc.iter_mut().enumerate() {
                *acc = dot.dot_pairs(*acc, line, dot.splat(*keys[r].wrapping_add(pair)));
            }
            query = query.wrapping_add(LANES);
        }
        for (r, acc) in acc.iter().enumerate() {
            s.store(out.wrapping_add(r * LANES), *acc);
        }
    }
}

/// Sixteen rows, sixteen columns from `column` on.
///
/// # Safety
/// A vector of each value can be read there, a line of weights for every two, and sixteen rows of sums written, so far apart.
#[inline(always)]
unsafe fn sum_tile(
    dot: Bf16Dot,
    values: &[*const u16],
    column: usize,
    weights: *const u32,
    (out, sum_row): (*mut f32, usize),
) {
    let s = dot.simd();
    let mut acc = [s.zero(); LANES];
    // SAFETY: the caller's promise.
    unsafe {
        for (r, acc) in acc.iter_mut().enumerate() {
            *acc = s.load(out.wrapping_add(r * sum_row));
        }
        let mut weight = weights;
        let (pairs, last) = values.as_chunks::<2>();
        for [a, b] in pairs {
            let words = dot.interleave_half(a.wrapping_add(column), Some(b.wrapping_add(column)));
            for (r, acc) in acc.iter_mut().enumerate() {
                *acc = dot.dot_pairs(*acc, words, dot.splat(*weight.wrapping_add(r)));
            }
            weight = weight.wrapping_add(LANES);
        }
        if let [a] = last {
            let words = dot.interleave_half(a.wrapping_add(column), None);
            for (r, acc) in acc.iter_mut().enumerate() {
                *acc = dot.dot_pairs(*acc, words, dot.splat(*weight.wrapping_add(r)));
            }
        }
        for (r, acc) in acc.iter().enumerate() {
            s.store(out.wrapping_add(r * sum_row), *acc);
        }
    }
}
