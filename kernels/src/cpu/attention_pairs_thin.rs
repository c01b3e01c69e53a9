//! Blocks of few rows over a cache in bf16, such as a decode step of four heads that share a key head: what `attention_pairs` does, with
//! keys along the vectors and not rows.
//!
//! ```text
//! queries [rows, D/2] · keys [D/2, 64] = scores [rows, 64]  ─exp─▶  weights [rows, 64/2] · values [64/2, Dv]  +▶ sums [rows, Dv]
//! ```
//! Keys are turned round, and values interleaved, in registers on their way from the cache: each line is read once and written nowhere.
//! Every sum has the order that it has in a block of many rows, so that the bits are the same.

use super::attention_block::{Workspace, shrink};
use super::attention_problem::{After, Block, KEYS, Keys, Problem, ROWS, row_len, width};
use super::attention_thin::{Head, MOST_ROWS, Tile, hide, soften};
use super::dot::CACHE_LINE;
use super::simd::{Avx512, Bf16Dot, PairWords as Words, Simd, ask_for};
use super::tile::by_rows;

const LANES: usize = Avx512::LANES;
/// Bytes of a pair.
const WORD: usize = size_of::<u32>();

/// Whether so few rows of a key head go this way.
pub(super) fn is_thin(problem: &Problem, num_rows: usize) -> bool {
    let is_cache = matches!(problem.keys, Keys::Paged { .. } | Keys::Latent { .. });
    let is_whole = |len: usize| len.is_multiple_of(2 * LANES);
    is_cache && num_rows <= MOST_ROWS && is_whole(problem.sizes.key_dim) && is_whole(problem.sizes.value_dim)
}

/// As `attention_thin::attend`.
pub(crate) fn attend(problem: &Problem, block: &Block, range: usize, after: After, work: &mut Workspace) {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
    fn entry(problem: &Problem, block: &Block, range: usize, after: After, work: &mut Workspace) {
        // SAFETY: this function has the features.
        let dot = unsafe { Bf16Dot::new() };
        work.range.clear(block.num_rows());
        let mut tiles = block.tiles(range);
        let mut tile = tiles.next().map(|tile| Tile::of(problem, block, tile));
        while let Some(now) = tile {
            let next = tiles.next();
            let ahead = Tile::ahead(problem, block, next, after);
            for head in Head::all(block, MOST_ROWS) {
                one_head(dot, problem, block, [&now, ahead.as_ref().unwrap_or(&now)], &head, work);
            }
            tile = ahead.filter(|_| next.is_some());
        }
    }
    // SAFETY: as for `attention_pairs::pack_queries`.
    unsafe { entry(problem, block, range, after, work) }
}

/// One tile of keys of one head. Lines of the next are asked for at the pace of those that are read.
#[inline(always)]
fn one_head(
    dot: Bf16Dot,
    problem: &Problem,
    block: &Block,
    [tile, next]: [&Tile; 2],
    head: &Head,
    work: &mut Workspace,
) {
    let [d, dv] = [problem.sizes.key_dim, problem.sizes.value_dim];
    let (s, num_rows, sum_row, words) = (dot.simd(), head.rows.len(), row_len(dv), d / 2);
    assert!(num_rows <= MOST_ROWS && work.scores.len() >= num_rows * KEYS, "a tile of scores");
    assert!(head.rows.end <= ROWS && work.queries.len() >= words * width(block), "workspace");
    assert!(work.keys.len() >= num_rows * KEYS / 2, "workspace");
    assert!(work.range.values.len() >= head.rows.end * sum_row, "workspace");
    let start = work.queries.as_ptr().wrapping_add(head.rows.start).cast();
    let queries = Queries { start, words, width: width(block) };
    for first in (0..tile.len).step_by(LANES) {
        let keys = Keys16 {
            keys: tile.keys[first..].first_chunk().expect("a whole vector"),
            next: next.keys[first..].first_chunk().expect("a whole vector"),
            at: head.index * words * WORD,
        };
        let out = work.scores.as_mut_ptr().wrapping_add(first);
        // SAFETY: keys of so many words, and `words` lines of queries; KEYS is a whole number of vectors.
        by_rows!(num_rows, MOST_ROWS, |M| unsafe { keys.score::<M>(dot, queries, out) });
    }
    hide(block, tile, head, work);
    // One row of the values after the other, in as many steps as the softmax has.
    let (first, last) = next.values.split_at(KEYS / 2);
    let mut ahead = ValuesAhead::new(first, head.index, dv * size_of::<u16>());
    let lines = (KEYS / 2 * dv * size_of::<u16>()).div_ceil(CACHE_LINE * num_rows * (KEYS / LANES));
    soften(s, tile.len, head, work, &mut || ahead.ask(lines));
    // Two neighbours are a word as they lie; they wait in the room for keys.
    let weights = work.keys.as_mut_ptr().cast::<u32>();
    for i in (0..num_rows * KEYS).step_by(LANES) {
        // SAFETY: half a vector of words, of lengths that were checked.
        unsafe { dot.store_rounded(weights.add(i / 2).cast(), s.load_slice(&work.scores[i..])) };
    }
    shrink(s, sum_row, &(0..sum_row), head.rows.clone(), work);
    let out = work.range.values.as_mut_ptr().wrapping_add(head.rows.start * sum_row);
    let (values, next, at) = (&tile.values, last, head.index * dv);
    let sums = Sums { values, next, at, num_keys: tile.len, weights, out, sum_row };
    // SAFETY: values of `sum_row` numbers, and sums of as many, in lengths that were checked.
    by_rows!(num_rows, MOST_ROWS, |M| unsafe { sums.add::<M>(dot) });
}

/// Lines of the values of the next tile, of one head, in the order of rows. Requests that come faster than memory answers are dropped
/// (docs/performance/attention.md): keys of the next tile are asked for where those of this one are read, half of its values while the softmax is
/// computed, and the others where values are read.
struct ValuesAhead<'a> {
    rows: &'a [*const u8],
    /// Bytes from the start of a row to the head.
    at: usize,
    bytes: usize,
    /// Of the first row.
    asked: usize,
}

impl<'a> ValuesAhead<'a> {
    fn new(rows: &'a [*const u8], head: usize, bytes: usize) -> Self {
        Self { rows, at: head * bytes, bytes, asked: 0 }
    }

    /// Some lines, if there are any left.
    #[inline(always)]
    fn ask(&mut self, lines: usize) {
        for _ in 0..lines {
            let Some(row) = self.rows.first() else { return };
            ask_for(row.wrapping_add(self.at + self.asked));
            self.asked += CACHE_LINE;
            if self.asked >= self.bytes {
                (self.rows, self.asked) = (&self.rows[1..], 0);
            }
        }
    }
}

/// Lines of words, one of each row, `width` apart.
#[derive(Clone, Copy)]
struct Queries {
    start: *const u32,
    words: usize,
    width: usize,
}

/// Keys of one vector.
struct Keys16<'a> {
    keys: &'a [*const u8; LANES],
    next: &'a [*const u8; LANES],
    /// Bytes from the start of a row to the head.
    at: usize,
}

impl Keys16<'_> {
    /// `out[r * KEYS + j] = query[r] · key[j]`
    ///
    /// # Safety
    /// Rows of so many words can be read, the lines of queries, and `M` vectors written.
    #[inline(always)]
    unsafe fn score<const M: usize>(&self, dot: Bf16Dot, queries: Queries, out: *mut f32) {
        let (s, Queries { start, words, width }) = (dot.simd(), queries);
        let mut acc = [s.zero(); M];
        // SAFETY: the caller's promise.
        unsafe {
            for column in (0..words).step_by(LANES) {
                let at = self.at + WORD * column;
                let mut query = start.add(column * width);
                for (line, next) in dot.turn(self.keys, at).into_iter().zip(self.next) {
                    ask_for(next.wrapping_add(at));
                    for (r, acc) in acc.iter_mut().enumerate() {
                        *acc = dot.dot_pairs(*acc, line, dot.splat(*query.add(r)));
                    }
                    query = query.wrapping_add(width);
                }
            }
            for (r, acc) in acc.iter().enumerate() {
                s.store(out.wrapping_add(r * KEYS), *acc);
            }
        }
    }
}

/// `out[r] += Σ_j weights[r, j] · value[j]`
struct Sums<'a> {
    values: &'a [*const u8; KEYS],
    /// Asked for meanwhile: one for each pair.
    next: &'a [*const u8],
    /// Numbers from the start of a row to the head.
    at: usize,
    num_keys: usize,
    /// `[rows, KEYS / 2]`
    weights: *const u32,
    /// `[rows, sum_row]`
    out: *mut f32,
    sum_row: usize,
}

impl Sums<'_> {
    /// # Safety
    /// `M` rows of weights, and values of `sum_row` numbers, whole pairs of vectors, can be read, and `M` rows of sums written.
    #[inline(always)]
    unsafe fn add<const M: usize>(&self, dot: Bf16Dot) {
        let mut column = 0;
        // As many columns as leave their sums in registers, and enough to have several sums under way.
        // SAFETY: the caller's promise.
        unsafe {
            if const { M <= 2 } {
                while column + 8 * LANES <= self.sum_row {
                    self.columns::<M, 8>(dot, column);
                    column += 8 * LANES;
                }
            }
            if const { M <= 6 } {
                while column + 4 * LANES <= self.sum_row {
                    self.columns::<M, 4>(dot, column);
                    column += 4 * LANES;
                }
            }
            while column < self.sum_row {
                self.columns::<M, 2>(dot, column);
                column += 2 * LANES;
            }
        }
    }

    /// `V` vectors of columns.
    ///
    /// # Safety
    /// As for `add`, and there are so many columns.
    #[inline(always)]
    unsafe fn columns<const M: usize, const V: usize>(&self, dot: Bf16Dot, column: usize) {
        let s = dot.simd();
        let mut acc = [[s.zero(); V]; M];
        // SAFETY: the caller's promise.
        unsafe {
            let out = self.out.add(column);
            for (r, acc) in acc.iter_mut().enumerate() {
                for (v, acc) in acc.iter_mut().enumerate() {
                    *acc = s.load(out.add(r * self.sum_row + v * LANES));
                }
            }
            for pair in 0..self.num_keys / 2 {
                let [a, b] = [2 * pair, 2 * pair + 1]
                    .map(|i| self.values[i].cast::<u16>().wrapping_add(self.at + column));
                let next = self.next[pair].cast::<u16>().wrapping_add(self.at + column);
                for v in (0..V).step_by(2) {
                    ask_for(next.wrapping_add(v * LANES).cast());
                    let words = dot.interleave(a.add(v * LANES), Some(b.add(v * LANES)));
                    self.term(dot, pair, words, &mut acc, v);
                }
            }
            if !self.num_keys.is_multiple_of(2) {
                let pair = self.num_keys / 2;
                let last = self.values[2 * pair].cast::<u16>().wrapping_add(self.at + column);
                for v in (0..V).step_by(2) {
                    let words = dot.interleave(last.add(v * LANES), None);
                    self.term(dot, pair, words, &mut acc, v);
                }
            }
            for (r, acc) in acc.iter().enumerate() {
                for (v, acc) in acc.iter().enumerate() {
                    s.store(out.add(r * self.sum_row + v * LANES), *acc);
                }
            }
        }
    }

    /// One pair of keys in two vectors of columns.
    ///
    /// # Safety
    /// As for `add`.
    #[inline(always)]
    unsafe fn term<const M: usize, const V: usize>(
        &self,
        dot: Bf16Dot,
        pair: usize,
        [lo, hi]: [Words; 2],
        acc: &mut [[<Avx512 as Simd>::V; V]; M],
        v: usize,
    ) {
        for (r, acc) in acc.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            let weight = dot.splat(unsafe { *self.weights.add(r * KEYS / 2 + pair) });
            acc[v] = dot.dot_pairs(acc[v], lo, weight);
            acc[v + 1] = dot.dot_pairs(acc[v + 1], hi, weight);
        }
    }
}
