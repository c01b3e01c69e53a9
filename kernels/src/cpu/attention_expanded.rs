//! Latent attention in its expanded form: keys and values of each head are made of the cached latents, some keys at a time, for all
//! rows of an item.
//!
//! ```text
//! for each range of 512 keys:   latents [512, R] ─key_up─▶ keys [H, 512, N | rotated]      values [H, 512, V] ◀─value_up─ latents
//!   for each head, for each 64 tokens:   attention over the range, merged into what came before
//! ```
//! Ranges lie at absolute positions, an expanded key is one row of a linear layer, and ranges are merged in order: a row's bits depend
//! on its own position, not on the chunk.

use super::attention;
use super::attention_block::{self, State, Workspace};
use super::attention_load::{slots, widen_row};
use super::attention_problem::{Block, Keys, Problem, RANGE, ROWS, row_len, value_line, width};
use super::gemm::{self, Gemm, Input};
use super::processor::Cpu;
use super::shared::SharedMut;
use super::simd::{Turn, simd_entry};
use crate::operands::attention::{AttentionSizes, Ragged};
use crate::operands::kv::KvRows;
use crate::operands::latents::ExpandedSizes;
use crate::operands::linear::Activation;
use crate::{ActivationType, MatrixBatch, Tensor};

/// What is common to the items of a call.
pub(crate) struct Expansion<'a> {
    /// `[T, H, N + P]`, rotated.
    pub q: &'a Tensor,
    pub cache: KvRows<'a>,
    /// `[H, N, R]`
    pub key_up: &'a MatrixBatch,
    /// `[H, V, R]`
    pub value_up: &'a MatrixBatch,
    pub ragged: &'a Ragged<'a>,
    pub scale: f32,
}

/// In a scratch, one after the other.
struct Room<'a> {
    /// `[RANGE, R]`
    latents: &'a mut [f32],
    /// `[H, RANGE, N + P]`
    keys: &'a mut [f32],
    /// `[H, RANGE, value_line]`
    values: &'a mut [f32],
    workspaces: &'a mut [f32],
    /// For each head and 64 tokens of an item.
    states: &'a mut [f32],
}

fn lens(sizes: &ExpandedSizes, num_threads: usize) -> [usize; 5] {
    let ExpandedSizes { heads, rank, nope, rotated, value_dim, max_tokens, .. } = *sizes;
    let inner = inner(sizes);
    [
        RANGE * rank,
        heads * RANGE * (nope + rotated),
        heads * RANGE * value_line(value_dim),
        num_threads * Workspace::len(&inner),
        heads * max_tokens.div_ceil(ROWS) * State::len(&inner, ROWS),
    ]
}

pub(crate) fn scratch_len(sizes: &ExpandedSizes, num_threads: usize) -> usize {
    lens(sizes, num_threads).iter().sum()
}

/// As attention with a key head for each head.
fn inner(sizes: &ExpandedSizes) -> AttentionSizes {
    let ExpandedSizes { heads, nope, rotated, value_dim, max_tokens, .. } = *sizes;
    AttentionSizes { heads, kv_heads: heads, key_dim: nope + rotated, value_dim, max_context: 0, max_tokens }
}

/// Fills the rows of `out` that belong to an item.
pub(crate) fn item(
    cpu: &Cpu,
    expansion: &Expansion,
    item: usize,
    sizes: &ExpandedSizes,
    mut buffer: &mut [f32],
    out: &mut Tensor,
) {
    let mut take = |len: usize| buffer.split_off_mut(..len).expect("the scratch has this length");
    let [latents, keys, values, workspaces, states] = lens(sizes, cpu.pool.num_workers()).map(&mut take);
    let mut room = Room { latents, keys, values, workspaces, states };
    let rows = Rows::of(expansion.ragged, item);
    let out = SharedMut::new(out.as_f32_mut());
    let inner = inner(sizes);
    let (num_tasks, value_dim) = (sizes.heads * rows.num_blocks(), sizes.value_dim);
    for range in 0..rows.end.div_ceil(RANGE) {
        let first = range * RANGE;
        let n = RANGE.min(rows.end - first);
        expand(cpu, expansion, item, [first, n], sizes, &mut room);
        let problem = Problem {
            keys: Keys::Expanded { keys: room.keys, values: room.values, first },
            q: expansion.q.as_f32(),
            q_stride: expansion.q.row_len(),
            sizes: inner,
            kv_heads: sizes.heads,
            scale: expansion.scale,
            window: usize::MAX,
            sinks: None,
            cu_seqlens: &[],
            context_lens: None,
            selected: None,
            pairs: cpu.rounds.beside_cache(expansion.cache.rows.dtype()) == ActivationType::BF16,
            heads_together: 1,
        };
        let (workspaces, states) = (SharedMut::new(room.workspaces), SharedMut::new(room.states));
        cpu.pool.run(num_tasks, &|task, worker| {
            // Blocks of one head follow each other: its keys are still in the second cache.
            let block = rows.block(item, task / rows.num_blocks(), task % rows.num_blocks());
            let (len, state_len) = (Workspace::len(&inner), State::len(&inner, ROWS));
            // SAFETY: each worker has its own, and runs one task at a time.
            let mut work = Workspace::new(unsafe { workspaces.slice(worker * len, len) }, &inner);
            // SAFETY: each task has its own.
            let mut total = State::new(unsafe { states.slice(task * state_len, state_len) }, &inner, ROWS);
            let width = width(&block);
            if range == 0 {
                total.clear(width);
            }
            if first < block.last_visible {
                attention::pack_queries(cpu.isa, &problem, &block, first, &mut work);
                attention::attend(cpu.isa, &problem, &block, range, None, &mut work);
                let (range, columns) = (work.range.finished(), 0..row_len(value_dim));
                attention_block::merge(cpu.isa, &range, &mut total, block.num_rows(), &columns);
            }
            if first + RANGE >= block.last_visible && first < block.last_visible {
                attention_block::write(cpu.isa, &problem, &block, &total, &out);
            }
        });
    }
}

/// The tokens of an item, and the keys that the last of them sees.
struct Rows {
    first: usize,
    num_tokens: usize,
    context_len: usize,
    end: usize,
}

impl Rows {
    fn of(ragged: &Ragged, item: usize) -> Self {
        let (tokens, context_len) = (ragged.tokens(item), ragged.context_lens.as_slice()[item] as usize);
        Self { first: tokens.start, num_tokens: tokens.len(), context_len, end: context_len + tokens.len() }
    }

    fn num_blocks(&self) -> usize {
        self.num_tokens.div_ceil(ROWS)
    }

    fn block(&self, item: usize, head: usize, index: usize) -> Block {
        let start = index * ROWS;
        let num_tokens = ROWS.min(self.num_tokens - start);
        Block {
            item,
            index: head * self.num_blocks() + index,
            kv_head: head,
            num_kv_heads: 1,
            first_token: self.first + start,
            num_tokens,
            first_head: head,
            num_heads: 1,
            first_visible: self.context_len + start + 1,
            last_visible: self.context_len + start + num_tokens,
            window: usize::MAX,
        }
    }
}

/// Keys and values of positions `first .. first + n`, of all heads.
fn expand(
    cpu: &Cpu,
    expansion: &Expansion,
    item: usize,
    [first, n]: [usize; 2],
    sizes: &ExpandedSizes,
    room: &mut Room,
) {
    let ExpandedSizes { heads, rank, nope, rotated, value_dim, .. } = *sizes;
    let key_dim = nope + rotated;
    let mut places = [0; RANGE];
    slots(expansion.ragged, item, first, &mut places[..n]);
    let (latents, keys) = (SharedMut::new(room.latents), SharedMut::new(room.keys));
    cpu.for_each(n, rank + heads * rotated, |row| {
        // SAFETY: the row of one position, and the rotated parts of its keys.
        let latent = unsafe { latents.slice(row * rank, rank) };
        unpack(cpu.isa, expansion.cache, places[row], 0, rank, latent);
        let at = |head: usize| (head * RANGE + row) * key_dim + nope;
        // SAFETY: as above.
        let part = unsafe { keys.slice(at(0), rotated) };
        unpack(cpu.isa, expansion.cache, places[row], rank, rank, part);
        for head in 1..heads {
            // SAFETY: as above.
            unsafe { keys.slice(at(head), rotated) }.copy_from_slice(part);
        }
    });
    let gemm = |weights, out, out_stride| Gemm {
        // All heads read the same latents.
        x: Input::Floats { x: (&*room.latents).into(), row: rank, member: 0 },
        rows: n,
        weights,
        bias: None,
        act: Activation::None,
        out,
        out_stride,
        out_member: RANGE * out_stride,
    };
    gemm::run(cpu, &gemm(expansion.key_up, SharedMut::new(room.keys), key_dim));
    gemm::run(cpu, &gemm(expansion.value_up, SharedMut::new(room.values), value_line(value_dim)));
}

simd_entry! {
    /// Elements `from ..` of a latent row, whose first `rank` have a scale of their own.
    fn unpack(cache: KvRows<'_>, slot: usize, from: usize, rank: usize, out: &mut [f32]) = unpack_body
}

#[inline(always)]
fn unpack_body<S: Turn>(s: S, cache: KvRows<'_>, slot: usize, from: usize, rank: usize, out: &mut [f32]) {
    widen_row(s, cache, slot, from, rank, out);
}
