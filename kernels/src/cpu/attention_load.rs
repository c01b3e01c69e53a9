//! Keys and values of a tile, from where they lie to where a block computes with them: widened to f32, once for all rows of the
//! block. What the next tile needs is asked for meanwhile: its rows lie far apart, so that the processor would not guess them.

use super::attention_problem::{Block, KEYS, Keys, Problem, RANGE, row_len, value_line};
use super::simd::Turn;
use crate::operands::attention::{AttentionSizes, Ragged};
use crate::operands::kv::KvRows;
use crate::{DType, Tensor};

/// Rows of the cache, or of what is packed, at which the positions of a tile lie.
pub(crate) struct Places {
    rows: [usize; KEYS],
    pub len: usize,
}

impl Places {
    /// Of positions `first .. first + len`.
    pub fn of(problem: &Problem, block: &Block, first: usize, len: usize) -> Self {
        let mut rows = [0; KEYS];
        let places = &mut rows[..len];
        match problem.keys {
            Keys::Paged { ragged, .. } => slots(ragged, block.item, first, places),
            Keys::Latent { ragged, .. } => slots(ragged, block.item, first, places),
            Keys::Packed { cu_seqlens, .. } => {
                let token = cu_seqlens[block.item] as usize + first;
                places.iter_mut().enumerate().for_each(|(i, row)| *row = token + i);
            }
            Keys::Expanded { first: start, .. } => {
                let start = block.kv_head * RANGE + (first - start);
                places.iter_mut().enumerate().for_each(|(i, row)| *row = start + i);
            }
        }
        Self { rows, len }
    }

    pub fn rows(&self) -> &[usize] {
        &self.rows[..self.len]
    }
}

/// The slots of positions `first ..`: one division for all.
pub(crate) fn slots(ragged: &Ragged, item: usize, first: usize, slots: &mut [usize]) {
    let size = ragged.block_size;
    let tables = &ragged.block_tables.as_slice()[ragged.cu_blocks.as_slice()[item] as usize..];
    let (mut block, mut place) = (first / size, first % size);
    for slot in slots {
        *slot = tables[block] as usize * size + place;
        place += 1;
        if place == size {
            (block, place) = (block + 1, 0);
        }
    }
}

/// A row of elements somewhere, with the scale of its levels.
#[derive(Clone, Copy)]
pub(crate) enum Source<'a> {
    Floats(&'a [f32]),
    Cached { rows: KvRows<'a>, start: usize, scale: usize },
}

/// Where the key at a row of the cache begins.
#[inline(always)]
pub(crate) fn key<'a>(problem: &Problem<'a>, block: &Block, row: usize) -> Source<'a> {
    let d = problem.sizes.key_dim;
    match problem.keys {
        Keys::Paged { keys, .. } => {
            let head = row * problem.kv_heads + block.kv_head;
            Source::Cached { rows: keys, start: head * d, scale: head }
        }
        Keys::Latent { cache, .. } => Source::Cached { rows: cache, start: row * d, scale: 2 * row },
        Keys::Packed { qkv, heads, .. } => {
            Source::Floats(&qkv[((row * 3 + 1) * heads + block.kv_head) * d..][..d])
        }
        Keys::Expanded { keys, .. } => Source::Floats(&keys[row * d..][..d]),
    }
}

/// As `key`, the value.
#[inline(always)]
pub(crate) fn value<'a>(problem: &Problem<'a>, block: &Block, row: usize) -> Source<'a> {
    let AttentionSizes { key_dim: d, value_dim: dv, .. } = problem.sizes;
    match problem.keys {
        Keys::Paged { values, .. } => {
            let head = row * problem.kv_heads + block.kv_head;
            Source::Cached { rows: values, start: head * dv, scale: head }
        }
        Keys::Latent { cache, .. } => Source::Cached { rows: cache, start: row * d, scale: 2 * row },
        Keys::Packed { qkv, heads, .. } => {
            Source::Floats(&qkv[((row * 3 + 2) * heads + block.kv_head) * d..][..dv])
        }
        Keys::Expanded { values, .. } => Source::Floats(&values[row * value_line(dv)..][..dv]),
    }
}

impl Source<'_> {
    /// Elements `from .. from + out.len()`, widened; `split` is where a latent row's second scale begins.
    #[inline(always)]
    pub fn widen<S: Turn>(self, s: S, from: usize, split: usize, out: &mut [f32]) {
        match self {
            Self::Floats(row) => out.copy_from_slice(&row[from..from + out.len()]),
            Self::Cached { rows: KvRows { rows, scales: None }, start, .. } => {
                widen(s, rows, start + from, out)
            }
            Self::Cached { rows: KvRows { rows, scales: Some(scales) }, start, scale } => {
                let levels = &rows.as_u8()[start + from..start + from + out.len()];
                let scales = &scales.as_f32()[scale..];
                let (head, tail) = out.split_at_mut(split.saturating_sub(from).min(levels.len()));
                dequantize(s, &levels[..head.len()], scales[0], head);
                if !tail.is_empty() {
                    dequantize(s, &levels[levels.len() - tail.len()..], scales[1], tail);
                }
            }
        }
    }

    /// Where its first of `len` elements lies, and where the first of as many scales, null: it has none.
    pub fn addresses(self, len: usize, num_scales: usize) -> (*const u8, *const f32) {
        match self {
            Self::Floats(row) => (row[..len].as_ptr().cast(), std::ptr::null()),
            Self::Cached { rows: KvRows { rows, scales }, start, scale } => {
                assert!(start + len <= rows.rows() * rows.row_len(), "a row of a cache");
                let scales = scales.map(|scales| scales.as_f32()[scale..scale + num_scales].as_ptr());
                (rows.address(start), scales.unwrap_or(std::ptr::null()))
            }
        }
    }

    /// Asks for the lines of `len` elements.
    #[inline(always)]
    fn prefetch<S: Turn>(self, s: S, len: usize) {
        let (start, bytes) = match self {
            Self::Floats(row) => (row.as_ptr().cast::<u8>(), 4 * len),
            Self::Cached { rows: KvRows { rows, .. }, start, .. } => {
                (rows.address(start), len * rows.dtype().size())
            }
        };
        for line in (0..bytes).step_by(LINE) {
            s.prefetch_second(start.wrapping_add(line));
        }
    }
}

/// Elements `from ..` of a latent row, of which the first `rank` have the first scale.
#[inline(always)]
pub(crate) fn widen_row<S: Turn>(
    s: S,
    cache: KvRows<'_>,
    slot: usize,
    from: usize,
    rank: usize,
    out: &mut [f32],
) {
    Source::Cached { rows: cache, start: slot * cache.rows.row_len(), scale: 2 * slot }
        .widen(s, from, rank, out);
}

/// Bytes of a cache line.
const LINE: usize = 64;

#[inline(always)]
fn widen<S: Turn>(s: S, src: &Tensor, start: usize, out: &mut [f32]) {
    match src.dtype() {
        DType::F32 => out.copy_from_slice(&src.as_f32()[start..start + out.len()]),
        _ => {
            let bits = &src.as_u16()[start..start + out.len()];
            let whole = out.len() / S::LANES * S::LANES;
            // A loop for each: a question for every vector costs as much as the vector.
            if src.dtype() == DType::BF16 {
                for i in (0..whole).step_by(S::LANES) {
                    // SAFETY: LANES elements from i on in both, i + LANES <= whole.
                    unsafe { s.store(out.as_mut_ptr().add(i), s.load_bf16(bits.as_ptr().add(i))) };
                }
            } else {
                for i in (0..whole).step_by(S::LANES) {
                    // SAFETY: as above.
                    unsafe { s.store(out.as_mut_ptr().add(i), s.load_f16(bits.as_ptr().add(i))) };
                }
            }
            for (i, out) in out.iter_mut().enumerate().skip(whole) {
                *out = src.get(start + i);
            }
        }
    }
}

#[inline(always)]
fn dequantize<S: Turn>(s: S, levels: &[u8], scale: f32, out: &mut [f32]) {
    assert_eq!(levels.len(), out.len(), "levels");
    let whole = out.len() / S::LANES * S::LANES;
    for i in (0..whole).step_by(S::LANES) {
        // SAFETY: LANES elements from i on, i + LANES <= whole.
        let v = unsafe { s.load_i8(levels.as_ptr().add(i)) };
        s.store_slice(&mut out[i..i + S::LANES], s.mul(v, s.splat(scale)));
    }
    for (out, &level) in out[whole..].iter_mut().zip(&levels[whole..]) {
        *out = f32::from(level.cast_signed()) * scale;
    }
}

/// Rows of f32 where they lie, a fixed distance apart.
#[derive(Clone, Copy)]
pub(crate) struct Evenly {
    pub start: *const f32,
    pub row: usize,
}

impl Evenly {
    /// Of so many rows of a slice.
    fn of(floats: &[f32], num_rows: usize, dim: usize, row: usize) -> Self {
        assert!(dim <= row && (num_rows - 1) * row + dim <= floats.len(), "rows of floats");
        Self { start: floats.as_ptr(), row }
    }
}

/// Keys of a tile as f32: where they are, or widened in `room` `[KEYS, key_row]`. Of latent rows, which hold the values, as well.
#[inline(always)]
pub(crate) fn keys<S: Turn>(
    s: S,
    problem: &Problem<'_>,
    block: &Block,
    places: &Places,
    room: &mut [f32],
) -> Evenly {
    let (d, n, row) = (problem.sizes.key_dim, places.len, places.rows()[0]);
    match problem.keys {
        Keys::Packed { qkv, heads, .. } => {
            Evenly::of(&qkv[((row * 3 + 1) * heads + block.kv_head) * d..], n, d, 3 * heads * d)
        }
        Keys::Expanded { keys, .. } => Evenly::of(&keys[row * d..], n, d, d),
        Keys::Paged { .. } | Keys::Latent { .. } => {
            for (&row, out) in places.rows().iter().zip(room.chunks_exact_mut(row_len(d))) {
                key(problem, block, row).widen(s, 0, split(problem), &mut out[..d]);
            }
            Evenly::of(room, n, d, row_len(d))
        }
    }
}

/// As `keys`, values, in whole vectors; not of latent rows. Packed ones are copied: they lie pages apart, and are read down the rows.
#[inline(always)]
pub(crate) fn values<S: Turn>(
    s: S,
    problem: &Problem<'_>,
    block: &Block,
    places: &Places,
    room: &mut [f32],
) -> Evenly {
    let (dv, line) = (problem.sizes.value_dim, value_line(problem.sizes.value_dim));
    if let Keys::Expanded { values, .. } = problem.keys {
        // Rows end with whole vectors, though not with whole numbers.
        return Evenly::of(&values[places.rows()[0] * line..], places.len, row_len(dv), line);
    }
    for (&row, out) in places.rows().iter().zip(room.chunks_exact_mut(line)) {
        value(problem, block, row).widen(s, 0, split(problem), &mut out[..dv]);
    }
    Evenly::of(room, places.len, row_len(dv), line)
}

/// The next tile, asked for row by row while this one is computed with: a processor has few requests to memory under way at a time,
/// and would wait for them if all were made at once.
pub(crate) struct Ahead {
    places: Places,
    next: usize,
    /// Rows that each call asks for.
    step: usize,
}

impl Ahead {
    /// Positions `first ..` up to the last that the block sees, to be asked for in about so many calls. Expanded keys lie one after the
    /// other, which needs no help, and latents in pairs are asked for elsewhere.
    pub fn new(problem: &Problem, block: &Block, first: usize, calls: usize) -> Self {
        let len = match problem.keys {
            Keys::Expanded { .. } => 0,
            Keys::Latent { .. } if problem.pairs => 0,
            _ => KEYS.min(block.last_visible - first.min(block.last_visible)),
        };
        Self { places: Places::of(problem, block, first, len), next: 0, step: len.div_ceil(calls.max(1)) }
    }

    #[inline(always)]
    pub fn ask<S: Turn>(&mut self, s: S, problem: &Problem<'_>, block: &Block) {
        let AttentionSizes { key_dim: d, value_dim: dv, .. } = problem.sizes;
        let end = self.places.len.min(self.next + self.step);
        while self.next < end {
            let row = self.places.rows[self.next];
            key(problem, block, row).prefetch(s, d);
            if !matches!(problem.keys, Keys::Latent { .. }) {
                value(problem, block, row).prefetch(s, dv);
            }
            self.next += 1;
        }
    }
}

/// Elements of a row that have its first scale.
fn split(problem: &Problem) -> usize {
    match problem.keys {
        Keys::Latent { .. } => problem.sizes.value_dim,
        _ => usize::MAX,
    }
}
