//! Attention of one block of rows over one range of keys in bf16, by instructions that multiply pairs of bf16. What `attention_block` does,
//! with queries and weights rounded to bf16, and keys and values that are not bf16 yet; scores, maxima and sums are f32.
//!
//! ```text
//! keys [64, D/2] · queries [D/2, 64 rows] = scores [64, 64]  ─exp─▶  weights [64/2, 64]ᵀ · values [64/2, Dv]  +▶ sums [64, Dv]
//! ```
//! A word is a pair: two neighbours of a key, as it lies in the cache, and of a query; of weights and values those of two keys. A row's
//! sums have the order of the pairs, whatever rows are beside it. A key that a row may not see has weight 0, and adding 0 · v changes no bit.

use super::attention_block::{Workspace, shrink};
use super::attention_latents::{Latents, LatentsAhead};
use super::attention_load::{self, Ahead, Places, Source};
use super::attention_problem::{After, Block, KEYS, Problem, RANGE, ROWS, row_len, width};
use super::dot::{CACHE_LINE, Lines, Words, pair_tile_of};
use super::simd::{Avx512, Bf16Dot, Simd, Turn, ask_for, math};
use super::tile::{Blocks, Rows, Sums};
use crate::operands::attention::AttentionSizes;
use crate::operands::kv::KvRows;
use std::ops::Range;

const LANES: usize = Avx512::LANES;

/// Words from one pair of values to the next: an odd number of cache lines, because those of a column that are a power of two apart
/// would fight for the same few places of the first cache.
fn value_stride(sizes: &AttentionSizes) -> usize {
    ((row_len(sizes.value_dim) / LANES) | 1) * LANES
}

/// As `attention_block::pack_queries`, rounded, a word for each pair. The keys from position `first` on are read next.
pub(crate) fn pack_queries(problem: &Problem, block: &Block, first: usize, work: &mut Workspace) {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
    fn entry(problem: &Problem, block: &Block, keys: &LatentsAhead, work: &mut Workspace) {
        // SAFETY: this function has the features.
        pack_queries_body(unsafe { Bf16Dot::new() }, problem, block, keys, work);
    }
    let keys = LatentsAhead::new(problem, block, first);
    // SAFETY: a problem is of pairs only where a device rounds to bf16, which is where `Isa::has_bf16_dots`.
    unsafe { entry(problem, block, &keys, work) }
}

#[inline(always)]
fn pack_queries_body(
    dot: Bf16Dot,
    problem: &Problem,
    block: &Block,
    keys: &LatentsAhead,
    work: &mut Workspace,
) {
    let (s, d, width) = (dot.simd(), problem.sizes.key_dim, width(block));
    // Rounded rows wait in the room for keys, in whole vectors of words.
    let words = d.div_ceil(2).next_multiple_of(LANES);
    assert!(work.keys.len() >= LANES * words && work.queries.len() >= words * width, "workspace");
    let scale = s.splat(problem.scale);
    for first in (0..block.num_rows()).step_by(LANES) {
        let rows = LANES.min(block.num_rows() - first);
        let room = &mut work.keys[..LANES * words];
        for (lane, room) in room.chunks_exact_mut(words).enumerate().take(rows) {
            let (token, head) = block.row(first + lane);
            let q = &problem.q[token * problem.q_stride + head * d..][..d];
            let rows_each = KEYS.div_ceil(block.num_rows());
            let mut ahead = keys.lines((first + lane) * rows_each, rows_each, d.div_ceil(LANES));
            for i in (0..d).step_by(LANES) {
                ask_for(ahead.start);
                ask_for(ahead.start.wrapping_add(CACHE_LINE));
                ahead.start = ahead.start.wrapping_add(ahead.step);
                let half = &mut room[i / 2..i / 2 + LANES / 2];
                // SAFETY: half a vector of words is 32 bytes.
                unsafe {
                    dot.store_rounded(half.as_mut_ptr().cast(), s.mul(s.load_slice(&q[i..]), scale));
                }
            }
        }
        // Lanes without a row get zeros.
        room[rows * words..].fill(0.0);
        for column in (0..words).step_by(LANES) {
            // SAFETY: vectors of words in `room`, lines below `words` in `queries`; both lengths were checked.
            unsafe {
                let start = room.as_ptr().add(column);
                let starts = std::array::from_fn(|lane| start.wrapping_add(lane * words));
                s.turn(&starts, work.queries.as_mut_ptr().add(column * width + first), width);
            }
        }
    }
}

/// As `attention_block::attend`; latents of what comes `after` are asked for meanwhile.
pub(crate) fn attend(problem: &Problem, block: &Block, range: usize, after: After, work: &mut Workspace) {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
    fn entry(problem: &Problem, block: &Block, range: usize, after: After, work: &mut Workspace) {
        // SAFETY: this function has the features.
        attend_body(unsafe { Bf16Dot::new() }, problem, block, range, after, work);
    }
    // SAFETY: as for `pack_queries`.
    unsafe { entry(problem, block, range, after, work) }
}

#[inline(always)]
fn attend_body(
    dot: Bf16Dot,
    problem: &Problem,
    block: &Block,
    range: usize,
    after: After,
    work: &mut Workspace,
) {
    let (s, width) = (dot.simd(), width(block));
    work.range.clear(width);
    let columns = 0..row_len(problem.sizes.value_dim);
    let mut tiles = block.tiles(range).peekable();
    while let Some((first, n)) = tiles.next() {
        let places = Places::of(problem, block, first, n);
        let mut ahead = Ahead::new(problem, block, first + n, num_calls(problem, block, n));
        let latents = match after {
            Some((block, range)) if tiles.peek().is_none() => {
                LatentsAhead::new(problem, block, range * RANGE)
            }
            _ => LatentsAhead::new(problem, block, first + n),
        };
        if let Some(rows) = Latents::of(problem, block, &places) {
            rows.score(dot, &latents, work);
            weigh(dot, block, [first, n], width, work);
            sum_latents(dot, &rows, problem, &columns, work);
            continue;
        }
        load_keys(dot, problem, block, &places, work);
        score(dot, problem, [n, width], &latents, work, &mut || ahead.ask(s, problem, block));
        weigh(dot, block, [first, n], width, work);
        load_values(dot, problem, block, &places, &columns, work);
        accumulate(dot, problem, block, n, &columns, work, &mut || ahead.ask(s, problem, block));
    }
}

/// Scores of keys that a row may not see become -inf: those after it, and those before its window.
#[inline(always)]
fn mask<S: Simd>(s: S, [first, n]: [usize; 2], window: usize, width: usize, work: &mut Workspace<'_>) {
    let (window, hidden) = (s.splat(window as f32), s.splat(f32::NEG_INFINITY));
    for (j, scores) in work.scores.chunks_exact_mut(width).take(n).enumerate() {
        let position = s.splat((first + j) as f32);
        for lane in (0..width).step_by(S::LANES) {
            let lanes = lane..lane + S::LANES;
            let (score, visible) =
                (s.load_slice(&scores[lanes.clone()]), s.load_slice(&work.visible[lanes.clone()]));
            let score = s.select_lt(position, visible, score, hidden);
            let start = s.sub(visible, window);
            s.store_slice(&mut scores[lanes], s.select_lt(position, start, hidden, score));
        }
    }
}

/// Scores of one vector of rows become weights against the new maximum.
#[inline(always)]
fn soften<S: Simd>(s: S, [n, width]: [usize; 2], lane: usize, work: &mut Workspace<'_>) {
    let lanes = lane..lane + S::LANES;
    let scores = &mut work.scores[..n * width];
    let old = s.load_slice(&work.range.max[lanes.clone()]);
    let mut max = old;
    for scores in scores.chunks_exact(width) {
        max = s.max(max, s.load_slice(&scores[lanes.clone()]));
    }
    let mut sum = s.zero();
    for scores in scores.chunks_exact_mut(width) {
        let scores = &mut scores[lanes.clone()];
        let weight = math::exp(s, s.sub(s.load_slice(scores), max));
        sum = s.add(sum, weight);
        s.store_slice(scores, weight);
    }
    let shrink = math::exp(s, s.sub(old, max));
    let total = s.fma(s.load_slice(&work.range.sum[lanes.clone()]), shrink, sum);
    s.store_slice(&mut work.range.sum[lanes.clone()], total);
    s.store_slice(&mut work.range.max[lanes.clone()], max);
    s.store_slice(&mut work.shrink[lanes], shrink);
}

/// Scores of a tile become weights, in words.
#[inline(always)]
fn weigh(dot: Bf16Dot, block: &Block, [first, n]: [usize; 2], width: usize, work: &mut Workspace) {
    let s = dot.simd();
    if !block.hides_nothing(first, n) {
        mask(s, [first, n], block.window, width, work);
    }
    for lane in (0..width).step_by(LANES) {
        soften(s, [n, width], lane, work);
    }
    round_weights(dot, n, width, work);
}

/// Scores of some positions, for a block whose queries are packed: those of a position in `width(block)` numbers of `out`.
pub(crate) fn scores(
    problem: &Problem,
    block: &Block,
    positions: Range<usize>,
    work: &mut Workspace,
    out: &mut [f32],
) {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
    fn entry(
        problem: &Problem,
        block: &Block,
        positions: Range<usize>,
        work: &mut Workspace,
        out: &mut [f32],
    ) {
        // SAFETY: this function has the features.
        let (dot, width) = (unsafe { Bf16Dot::new() }, width(block));
        let mut out = out.chunks_exact_mut(width);
        for first in positions.clone().step_by(KEYS) {
            let n = KEYS.min(positions.end - first);
            let places = Places::of(problem, block, first, n);
            let latents = LatentsAhead::new(problem, block, first + n);
            match Latents::of(problem, block, &places) {
                Some(rows) => rows.score(dot, &latents, work),
                None => {
                    load_keys(dot, problem, block, &places, work);
                    score(dot, problem, [n, width], &latents, work, &mut || ());
                }
            }
            for (scores, out) in work.scores.chunks_exact(width).take(n).zip(&mut out) {
                out.copy_from_slice(scores);
            }
        }
    }
    // SAFETY: as for `pack_queries`.
    unsafe { entry(problem, block, positions, work, out) }
}

/// What `attend` does for the only range of a block with its scores, the first of the range's first key, in some columns of the values: whole pairs of vectors.
pub(crate) fn attend_columns(
    problem: &Problem,
    block: &Block,
    scores: &[f32],
    columns: &Range<usize>,
    work: &mut Workspace,
) {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
    fn entry(problem: &Problem, block: &Block, scores: &[f32], columns: &Range<usize>, work: &mut Workspace) {
        // SAFETY: this function has the features.
        let (dot, width) = (unsafe { Bf16Dot::new() }, width(block));
        work.range.clear_columns(width, columns);
        let range = block.ranges().start;
        for (first, n) in block.tiles(range) {
            let places = Places::of(problem, block, first, n);
            let at = (first - range * RANGE) * width;
            let scores = scores[at..at + n * width].chunks_exact(width);
            for (to, scores) in work.scores.chunks_exact_mut(width).zip(scores) {
                to.copy_from_slice(scores);
            }
            weigh(dot, block, [first, n], width, work);
            match Latents::of(problem, block, &places) {
                Some(rows) => sum_latents(dot, &rows, problem, columns, work),
                None => {
                    load_values(dot, problem, block, &places, columns, work);
                    accumulate(dot, problem, block, n, columns, work, &mut || ());
                }
            }
        }
    }
    // SAFETY: as for `pack_queries`.
    unsafe { entry(problem, block, scores, columns, work) }
}

/// `accumulate` of rows where they lie.
#[inline(always)]
fn sum_latents(
    dot: Bf16Dot,
    rows: &Latents,
    problem: &Problem,
    columns: &Range<usize>,
    work: &mut Workspace,
) {
    shrink(dot.simd(), row_len(problem.sizes.value_dim), columns, 0..LANES, work);
    rows.sum(dot, columns, work);
}

/// Tiles of a score and of a sum that a block computes for one tile of keys.
fn num_calls(problem: &Problem, block: &Block, n: usize) -> usize {
    let tiles = |columns: usize, rows: usize| columns.div_ceil(2 * LANES) * rows.div_ceil(Bf16Dot::TILE_ROWS);
    tiles(width(block), n) + tiles(row_len(problem.sizes.value_dim), block.num_rows())
}

/// Rows of keys in `keys`, a word for two neighbours.
#[inline(always)]
fn load_keys(dot: Bf16Dot, problem: &Problem, block: &Block, places: &Places, work: &mut Workspace) {
    let d = problem.sizes.key_dim;
    let key_row = row_len(d);
    assert!(work.keys.len() >= KEYS * key_row, "workspace");
    // Half of the room: it is there for floats.
    let keys = work.keys.as_mut_ptr().cast::<u16>();
    for (i, &row) in places.rows().iter().enumerate() {
        // SAFETY: a row of `keys`, whose length was checked.
        let to = unsafe { std::slice::from_raw_parts_mut(keys.add(i * key_row), key_row) };
        Row::of(attention_load::key(problem, block, row), d).copy(dot, to);
    }
}

/// Columns of rows of values in `values`, a word for each column of two rows.
#[allow(
    clippy::manual_map,
    reason = "a closure would not have the features of the function that this is inlined in"
)]
#[inline(always)]
fn load_values(
    dot: Bf16Dot,
    problem: &Problem,
    block: &Block,
    places: &Places,
    columns: &Range<usize>,
    work: &mut Workspace,
) {
    let (dv, stride) = (problem.sizes.value_dim, value_stride(&problem.sizes));
    assert!(work.values.len() >= KEYS / 2 * stride + LANES && columns.end <= row_len(dv), "workspace");
    for (pair, rows) in places.rows().chunks(2).enumerate() {
        let a = Row::of(attention_load::value(problem, block, rows[0]), dv);
        let b = match rows.get(1) {
            Some(&row) => Some(Row::of(attention_load::value(problem, block, row), dv)),
            None => None,
        };
        let to = work.values.as_mut_ptr().wrapping_add(pair * stride);
        let mut rest = columns.clone();
        if let (Row::Kept(a), Some(Row::Kept(b))) = (a, b) {
            // Whole pairs of vectors of rows where they lie.
            let whole = (columns.end.min(dv) - columns.start) / (2 * LANES) * 2 * LANES;
            rest.start += whole;
            let (a, b) = (&a[columns.start..][..whole], &b[columns.start..][..whole]);
            let mut to = to.wrapping_add(columns.start);
            for (a, b) in a.as_chunks::<{ 2 * LANES }>().0.iter().zip(b.as_chunks::<{ 2 * LANES }>().0) {
                // SAFETY: as many numbers, and as many words as columns, in what was checked.
                unsafe {
                    let [lo, hi] = dot.interleave(a.as_ptr(), Some(b.as_ptr()));
                    dot.store(to.cast(), lo);
                    dot.store(to.wrapping_add(LANES).cast(), hi);
                }
                to = to.wrapping_add(2 * LANES);
            }
        }
        for column in rest.step_by(2 * LANES) {
            let mut room = [[0; 2 * LANES]; 2];
            let a = a.bits(dot, column, &mut room[0]);
            let b = match b {
                Some(b) => Some(b.bits(dot, column, &mut room[1])),
                None => None,
            };
            // SAFETY: two vectors of words may end behind their row, but within the room that floats would need; those of the last
            // row in what was checked to be behind it.
            unsafe {
                let [lo, hi] = dot.interleave(a, b);
                dot.store(to.add(column).cast(), lo);
                dot.store(to.add(column + LANES).cast(), hi);
            }
        }
    }
}

/// A row of keys or values: as it is kept, or to be rounded.
#[derive(Clone, Copy)]
enum Row<'a> {
    Kept(&'a [u16]),
    Floats(&'a [f32]),
}

impl<'a> Row<'a> {
    fn of(source: Source<'a>, len: usize) -> Self {
        match source {
            Source::Cached { rows: KvRows { rows, scales: None }, start, .. } => {
                Self::Kept(&rows.as_u16()[start..start + len])
            }
            Source::Cached { .. } => unreachable!("pairs are of floats"),
            Source::Floats(row) => Self::Floats(&row[..len]),
        }
    }

    /// The bits of columns `column .. column + 32`, zeros beyond the last: where they lie, or in `room`.
    #[inline(always)]
    fn bits(self, dot: Bf16Dot, column: usize, room: &mut [u16; 2 * LANES]) -> *const u16 {
        match self {
            Self::Kept(row) if column + 2 * LANES <= row.len() => row[column..].as_ptr(),
            Self::Kept(row) => {
                Self::Kept(&row[column..]).copy(dot, room);
                room.as_ptr()
            }
            Self::Floats(row) => {
                Self::Floats(&row[column..row.len().min(column + 2 * LANES)]).copy(dot, room);
                room.as_ptr()
            }
        }
    }

    /// The row in `out`, a whole number of vectors, of which zeros are left.
    #[inline(always)]
    fn copy(self, dot: Bf16Dot, out: &mut [u16]) {
        match self {
            Self::Kept(row) => {
                out[..row.len()].copy_from_slice(row);
                out[row.len()..].fill(0);
            }
            Self::Floats(row) => {
                for (i, out) in out.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
                    let x = dot.simd().load_slice(row.get(i * LANES..).unwrap_or_default());
                    // SAFETY: sixteen numbers of 16 bits.
                    unsafe { dot.store_rounded(out.as_mut_ptr().cast(), x) };
                }
            }
        }
    }
}

/// `scores[j, r] = key[j] · query[r]`
#[inline(always)]
fn score(
    dot: Bf16Dot,
    problem: &Problem,
    [n, width]: [usize; 2],
    next: &LatentsAhead,
    work: &mut Workspace,
    between: &mut impl FnMut(),
) {
    let d = problem.sizes.key_dim;
    let (pairs, key_words) = (d.div_ceil(2), row_len(d) / 2);
    assert!(n <= KEYS && width <= ROWS, "a tile of scores");
    assert!(work.keys.len() >= KEYS * key_words && work.queries.len() >= pairs * width, "workspace");
    assert!(work.scores.len() >= KEYS * width, "workspace");
    let blocks = Blocks::new(n, Bf16Dot::TILE_ROWS);
    // A short tile has little time to ask for a whole one.
    let asks = KEYS.div_ceil(blocks.count);
    let (keys, queries, scores) = (work.keys.as_ptr(), work.queries.as_ptr(), work.scores.as_mut_ptr());
    for lane in (0..width).step_by(2 * LANES) {
        let start = queries.wrapping_add(lane).cast();
        let mut key = 0;
        for block in 0..blocks.count {
            let rows = blocks.len(block);
            let w = Words { start, stride: width, hi: LANES, ahead: next.lines(block * asks, asks, pairs) };
            let x = Rows { start: keys.wrapping_add(key * key_words), row: key_words, step: 1 };
            let start = scores.wrapping_add(key * width + lane);
            let sums = Sums { start, row: width, hi: LANES, fresh: true };
            // SAFETY: within the lengths asserted above: key + rows <= n, and lane + one or two vectors <= width.
            unsafe {
                if lane + 2 * LANES <= width {
                    pair_tile_of::<2, 1>(dot, rows, w, x, pairs, sums);
                } else {
                    pair_tile_of::<1, 1>(dot, rows, w, x, pairs, sums);
                }
            }
            key += rows;
            between();
        }
    }
}

/// Weights of two keys become a word for each row, in place: line j from lines 2j and 2j + 1.
#[inline(always)]
fn round_weights(dot: Bf16Dot, n: usize, width: usize, work: &mut Workspace) {
    let s = dot.simd();
    for pair in 0..n.div_ceil(2) {
        for lane in (0..width).step_by(LANES) {
            let line = |j: usize| j * width + lane;
            let even = s.load_slice(&work.scores[line(2 * pair)..]);
            let odd = match 2 * pair + 1 < n {
                true => s.load_slice(&work.scores[line(2 * pair + 1)..]),
                false => s.zero(),
            };
            let to = &mut work.scores[line(pair)..line(pair) + LANES];
            // SAFETY: a vector of words.
            unsafe { dot.store(to.as_mut_ptr().cast(), dot.pairs(even, odd)) };
        }
    }
}

/// `sums[r] += Σ_j weights[j, r] · value[j]`, in some columns, of `n` keys.
#[inline(always)]
fn accumulate(
    dot: Bf16Dot,
    problem: &Problem,
    block: &Block,
    n: usize,
    columns: &Range<usize>,
    work: &mut Workspace,
    between: &mut impl FnMut(),
) {
    let (sum_row, stride) = (row_len(problem.sizes.value_dim), value_stride(&problem.sizes));
    let (num_rows, width) = (block.num_rows(), width(block));
    assert!(n <= KEYS && num_rows <= ROWS && sum_row <= stride, "a tile of values");
    assert!(work.values.len() >= KEYS / 2 * stride && work.scores.len() >= KEYS / 2 * width, "workspace");
    assert!(work.range.values.len() >= ROWS * sum_row && columns.end <= sum_row, "workspace");
    shrink(dot.simd(), sum_row, columns, 0..num_rows, work);
    let blocks = Blocks::new(num_rows, Bf16Dot::TILE_ROWS);
    let (values, weights) = (work.values.as_ptr(), work.scores.as_ptr());
    let out = work.range.values.as_mut_ptr();
    for column in columns.clone().step_by(2 * LANES) {
        let w = Words { start: values.wrapping_add(column).cast(), stride, hi: LANES, ahead: Lines::NONE };
        let mut row = 0;
        for block in 0..blocks.count {
            let rows = blocks.len(block);
            let x = Rows { start: weights.wrapping_add(row), row: 1, step: width };
            let start = out.wrapping_add(row * sum_row + column);
            let sums = Sums { start, row: sum_row, hi: LANES, fresh: false };
            // SAFETY: within the lengths asserted above: row + rows <= num_rows, and column + one or two vectors <= sum_row,
            // which is a whole number of vectors.
            unsafe {
                if column + 2 * LANES <= sum_row {
                    pair_tile_of::<2, 0>(dot, rows, w, x, n.div_ceil(2), sums);
                } else {
                    pair_tile_of::<1, 0>(dot, rows, w, x, n.div_ceil(2), sums);
                }
            }
            row += rows;
            between();
        }
    }
}
