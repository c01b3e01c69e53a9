//! Attention: how the work is cut into tasks. What a task does is in `attention_block`.
//!
//! A block is up to 64 rows (tokens × heads) that share a key head; a task is a block, or, when there are few blocks and long
//! contexts, one range of a block's keys, whose result waits in a slot until all ranges are there and are merged in order.
//! Ranges are cut and merged in the same way in both cases, so that the choice changes no bit.

use super::SharedMut;
use super::attention_block::{self, KEYS, RANGE, ROWS, State, Workspace};
use super::attention_load::Keys;
#[cfg(target_arch = "x86_64")]
use super::attention_pairs as pairs;
use crate::device::Cpu;
use crate::ops::{AttentionScratch, AttentionSizes, KvRows, Ragged};
use crate::{ActivationType, DType, Isa, Tensor, WeightType};

#[cfg(not(target_arch = "x86_64"))]
mod pairs {
    use super::{Block, Problem, Workspace};
    use std::ops::Range;

    pub fn pack_queries(_: &Problem, _: &Block, _: usize, _: &mut Workspace) {
        unreachable!("no processor of this kind multiplies bf16");
    }

    pub fn attend(_: &Problem, _: &Block, _: usize, _: &mut Workspace) {
        unreachable!("no processor of this kind multiplies bf16");
    }

    pub fn scores(_: &Problem, _: &Block, _: Range<usize>, _: &mut Workspace, _: &mut [f32]) {
        unreachable!("no processor of this kind multiplies bf16");
    }

    pub fn attend_columns(_: &Problem, _: &Block, _: &[f32], _: &Range<usize>, _: &mut Workspace) {
        unreachable!("no processor of this kind multiplies bf16");
    }
}

/// What is common to all rows of a call.
pub(crate) struct Problem<'a> {
    pub keys: Keys<'a>,
    pub q: &'a [f32],
    /// From one token to the next in `q`.
    pub q_stride: usize,
    pub sizes: AttentionSizes,
    pub kv_heads: usize,
    pub scale: f32,
    /// items + 1
    pub cu_seqlens: &'a [u32],
    /// None: every token sees its whole item.
    pub context_lens: Option<&'a [u32]>,
    /// Whether an item takes part; None: all do.
    pub selected: Option<&'a [bool]>,
    /// Whether queries and weights are rounded and multiplied by pairs: for all rows of a cache, or for none.
    pub pairs: bool,
}

/// Rows of one task: some tokens of an item, some heads that share a key head.
pub(crate) struct Block {
    pub item: usize,
    pub kv_head: usize,
    /// Index of the first token in the whole step, and how many.
    pub first_token: usize,
    pub num_tokens: usize,
    pub first_head: usize,
    pub num_heads: usize,
    /// Keys that the first and the last token see; those between see one more each, or all the same.
    pub first_visible: usize,
    pub last_visible: usize,
}

impl Block {
    pub fn num_rows(&self) -> usize {
        self.num_tokens * self.num_heads
    }

    /// Token and head of a row.
    pub fn row(&self, row: usize) -> (usize, usize) {
        (self.first_token + row / self.num_heads, self.first_head + row % self.num_heads)
    }

    pub fn visible(&self, row: usize) -> usize {
        self.last_visible.min(self.first_visible + row / self.num_heads)
    }

    fn num_ranges(&self) -> usize {
        self.last_visible.div_ceil(RANGE)
    }

    /// Tiles of keys of a range: the first position, and how many.
    pub fn tiles(&self, range: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
        let end = self.last_visible.min((range + 1) * RANGE);
        (range * RANGE..end).step_by(KEYS).map(move |first| (first, KEYS.min(end - first)))
    }

    /// Keys that each row sees; lanes without a row see as many as the last one.
    pub fn fill_visible(&self, visible: &mut [f32]) {
        for (row, visible) in visible.iter_mut().enumerate() {
            *visible = if row < self.num_rows() { self.visible(row) } else { self.last_visible } as f32;
        }
    }
}

impl Problem<'_> {
    /// Heads of a block, and tokens of a full one.
    fn block_shape(&self) -> [usize; 2] {
        let heads = (self.sizes.heads / self.kv_heads).min(ROWS);
        [heads, ROWS / heads]
    }

    fn head_blocks(&self) -> usize {
        (self.sizes.heads / self.kv_heads).div_ceil(self.block_shape()[0])
    }

    fn num_blocks(&self, item: usize) -> usize {
        if self.selected.is_some_and(|selected| !selected[item]) {
            return 0;
        }
        let tokens = (self.cu_seqlens[item + 1] - self.cu_seqlens[item]) as usize;
        tokens.div_ceil(self.block_shape()[1]) * self.kv_heads * self.head_blocks()
    }

    fn num_items(&self) -> usize {
        self.cu_seqlens.len() - 1
    }

    /// The block at an index over all items.
    fn block(&self, mut index: usize) -> Block {
        let mut item = 0;
        while index >= self.num_blocks(item) {
            index -= self.num_blocks(item);
            item += 1;
        }
        let [heads, tokens] = self.block_shape();
        let (head_blocks, rep) = (self.head_blocks(), self.sizes.heads / self.kv_heads);
        let (start, end) = (self.cu_seqlens[item] as usize, self.cu_seqlens[item + 1] as usize);
        // Heads vary fastest: blocks that follow each other read keys of the same positions.
        let head_block = index % head_blocks;
        let kv_head = index / head_blocks % self.kv_heads;
        let first_token = start + index / head_blocks / self.kv_heads * tokens;
        let num_tokens = tokens.min(end - first_token);
        let visible = |token: usize| match self.context_lens {
            Some(lens) => lens[item] as usize + token - start + 1,
            None => end - start,
        };
        Block {
            item,
            kv_head,
            first_token,
            num_tokens,
            first_head: kv_head * rep + head_block * heads,
            num_heads: heads.min(rep - head_block * heads),
            first_visible: visible(first_token),
            last_visible: visible(first_token + num_tokens - 1),
        }
    }

    /// The block and range at an index over all ranges of all blocks.
    fn range(&self, mut index: usize) -> (Block, usize) {
        let mut block = 0;
        loop {
            let candidate = self.block(block);
            if index < candidate.num_ranges() {
                return (candidate, index);
            }
            index -= candidate.num_ranges();
            block += 1;
        }
    }
}

/// Few blocks for each thread: worth cutting further.
const FEW: usize = 4;
/// Keys of a block from which on threads share it, and the parts that they make of it: each weighs all scores.
const WORTH_SHARING: usize = 64;
const MOST_PARTS: usize = 4;
/// Columns of values that a task has at least: a pair of vectors.
const COLUMNS: usize = 32;
/// Rows that a slot holds: those of one token.
const SLOT_ROWS: usize = 32;

fn num_slots(sizes: &AttentionSizes, num_threads: usize) -> usize {
    if sizes.max_context <= RANGE || num_threads == 1 {
        return 0;
    }
    sizes.max_context.div_ceil(RANGE) + FEW * num_threads
}

/// Scores of the rows of one token and the keys of a range, where several threads share a block.
fn scores_len(num_threads: usize) -> usize {
    if num_threads == 1 { 0 } else { RANGE * SLOT_ROWS }
}

pub(crate) fn scratch_len(sizes: &AttentionSizes, num_threads: usize) -> usize {
    let slots = num_slots(sizes, num_threads) * State::len(sizes, SLOT_ROWS);
    num_threads * Workspace::len(sizes) + scores_len(num_threads) + slots
}

pub(crate) fn gqa(
    cpu: &Cpu,
    q: &Tensor,
    [keys, values]: [KvRows; 2],
    ragged: &Ragged,
    scale: f32,
    scratch: &mut AttentionScratch,
    out: &mut Tensor,
) {
    let problem = Problem {
        keys: Keys::Paged { keys, values, ragged },
        q: q.as_f32(),
        q_stride: q.row_len(),
        sizes: scratch.sizes,
        kv_heads: keys.rows.shape()[1],
        scale,
        cu_seqlens: ragged.cu_seqlens.as_slice(),
        context_lens: Some(ragged.context_lens.as_slice()),
        selected: ragged.selected,
        pairs: cpu.rounds.beside_cache(&keys) == ActivationType::BF16,
    };
    run(cpu, &problem, scratch, out);
}

pub(crate) fn mla(
    cpu: &Cpu,
    q: &Tensor,
    cache: KvRows,
    ragged: &Ragged,
    scale: f32,
    scratch: &mut AttentionScratch,
    out: &mut Tensor,
) {
    let problem = Problem {
        keys: Keys::Latent { cache, ragged },
        q: q.as_f32(),
        q_stride: q.row_len(),
        sizes: scratch.sizes,
        kv_heads: 1,
        scale,
        cu_seqlens: ragged.cu_seqlens.as_slice(),
        context_lens: Some(ragged.context_lens.as_slice()),
        selected: ragged.selected,
        pairs: cpu.rounds.beside_cache(&cache) == ActivationType::BF16,
    };
    run(cpu, &problem, scratch, out);
}

pub(crate) fn packed(
    cpu: &Cpu,
    qkv: &Tensor,
    cu_seqlens: &[u32],
    scale: f32,
    scratch: &mut AttentionScratch,
    out: &mut Tensor,
) {
    let problem = Problem {
        keys: Keys::Packed { qkv: qkv.as_f32(), heads: scratch.sizes.heads, cu_seqlens },
        q: qkv.as_f32(),
        q_stride: qkv.row_len(),
        sizes: scratch.sizes,
        kv_heads: scratch.sizes.heads,
        scale,
        cu_seqlens,
        context_lens: None,
        selected: None,
        pairs: scratch.multiply_as == DType::BF16
            && cpu.rounds.beside(WeightType::BF16) == ActivationType::BF16,
    };
    run(cpu, &problem, scratch, out);
}

fn run(cpu: &Cpu, problem: &Problem, scratch: &mut AttentionScratch, out: &mut Tensor) {
    let sizes = problem.sizes;
    let num_workers = cpu.pool.num_workers();
    let num_blocks = (0..problem.num_items()).map(|item| problem.num_blocks(item)).sum();
    let (workspaces, rest) = scratch.buffer.as_f32_mut().split_at_mut(num_workers * Workspace::len(&sizes));
    let (scores, slots) = rest.split_at_mut(scores_len(num_workers));
    let task = Task {
        cpu,
        problem,
        workspaces: SharedMut::new(workspaces),
        scores: SharedMut::new(scores),
        slots: SharedMut::new(slots),
        out: SharedMut::new(out.as_f32_mut()),
    };
    if num_blocks == 1 && num_workers > 1 && problem.pairs {
        let block = problem.block(0);
        if block.num_ranges() == 1 && block.num_rows() <= SLOT_ROWS && block.last_visible >= WORTH_SHARING {
            return task.share(&block, num_workers.min(MOST_PARTS));
        }
    }
    if num_blocks < FEW * num_workers {
        let num_ranges = (0..num_blocks).map(|block| problem.block(block).num_ranges()).sum();
        let fit = (0..num_blocks).all(|block| problem.block(block).num_rows() <= SLOT_ROWS);
        if fit && num_ranges > num_blocks && num_ranges <= num_slots(&sizes, num_workers) {
            cpu.pool.run(num_ranges, &|index, worker| task.one_range(index, worker));
            return cpu.pool.run(num_blocks, &|index, worker| task.merge(index, worker));
        }
    }
    cpu.pool.run(num_blocks, &|index, worker| task.whole_block(index, worker));
}

/// What a block needs before its ranges, of which the first begins at position `first`.
pub(crate) fn pack_queries(problem: &Problem, block: &Block, first: usize, work: &mut Workspace) {
    block.fill_visible(work.visible);
    if problem.pairs {
        return pairs::pack_queries(problem, block, first, work);
    }
    attention_block::pack_queries(problem, block, work);
}

/// Fills `work.range`.
pub(crate) fn attend(isa: Isa, problem: &Problem, block: &Block, range: usize, work: &mut Workspace) {
    if problem.pairs {
        return pairs::attend(problem, block, range, work);
    }
    attention_block::attend(isa, problem, block, range, work);
}

struct Task<'a> {
    cpu: &'a Cpu,
    problem: &'a Problem<'a>,
    workspaces: SharedMut<f32>,
    scores: SharedMut<f32>,
    slots: SharedMut<f32>,
    out: SharedMut<f32>,
}

impl Task<'_> {
    fn workspace(&self, worker: usize) -> Workspace<'_> {
        let len = Workspace::len(&self.problem.sizes);
        // SAFETY: each worker has its own, and runs one task at a time.
        Workspace::new(unsafe { self.workspaces.slice(worker * len, len) }, &self.problem.sizes)
    }

    fn slot(&self, index: usize) -> State<'_> {
        let len = State::len(&self.problem.sizes, SLOT_ROWS);
        // SAFETY: each range has its own slot; merging comes after, in a region of its own.
        State::new(unsafe { self.slots.slice(index * len, len) }, &self.problem.sizes, SLOT_ROWS)
    }

    fn whole_block(&self, index: usize, worker: usize) {
        let block = self.problem.block(index);
        let mut work = self.workspace(worker);
        let width = attention_block::width(&block);
        pack_queries(self.problem, &block, 0, &mut work);
        if block.num_ranges() == 1 {
            // What merging it with nothing would leave.
            attend(self.cpu.isa, self.problem, &block, 0, &mut work);
            return attention_block::write(self.problem, &block, &work.range, &self.out);
        }
        work.total.clear(width);
        for range in 0..block.num_ranges() {
            attend(self.cpu.isa, self.problem, &block, range, &mut work);
            attention_block::merge(self.cpu.isa, &work.range, &mut work.total, width);
        }
        attention_block::write(self.problem, &block, &work.total, &self.out);
    }

    /// The only block, of one range: scores by parts of the keys, and then sums by parts of the columns. Each number is one thread's, and
    /// has the order of terms that `whole_block` gives it.
    fn share(&self, block: &Block, parts: usize) {
        let (keys, width) = (block.last_visible, attention_block::width(block));
        let value_dim = self.problem.sizes.value_dim;
        let cut = |len: usize, part: usize| (part * len.div_ceil(COLUMNS) / parts * COLUMNS).min(len);
        self.cpu.pool.run_phases(&[parts.into(), parts.into()], &|phase, part, worker| {
            let mut work = self.workspace(worker);
            if phase == 0 {
                let positions = part * keys / parts..(part + 1) * keys / parts;
                // SAFETY: each position's scores are one task's.
                let out = unsafe { self.scores.slice(positions.start * width, positions.len() * width) };
                pack_queries(self.problem, block, positions.start, &mut work);
                return pairs::scores(self.problem, block, positions, &mut work, out);
            }
            block.fill_visible(work.visible);
            // SAFETY: all were written, and nobody writes in this phase.
            let scores = unsafe { self.scores.reader() }.from(0);
            let sums = cut(attention_block::row_len(value_dim), part)
                ..cut(attention_block::row_len(value_dim), part + 1);
            pairs::attend_columns(self.problem, block, scores, &sums, &mut work);
            let columns = sums.start.min(value_dim)..sums.end.min(value_dim);
            attention_block::write_columns(self.problem, block, &work.range, columns, &self.out);
        });
    }

    fn one_range(&self, index: usize, worker: usize) {
        let (block, range) = self.problem.range(index);
        let mut work = self.workspace(worker);
        pack_queries(self.problem, &block, range * RANGE, &mut work);
        attend(self.cpu.isa, self.problem, &block, range, &mut work);
        self.slot(index).copy_from(&work.range, attention_block::width(&block));
    }

    fn merge(&self, index: usize, worker: usize) {
        let first: usize = (0..index).map(|before| self.problem.block(before).num_ranges()).sum();
        let block = self.problem.block(index);
        let mut work = self.workspace(worker);
        let width = attention_block::width(&block);
        work.total.clear(width);
        for range in 0..block.num_ranges() {
            attention_block::merge(self.cpu.isa, &self.slot(first + range), &mut work.total, width);
        }
        attention_block::write(self.problem, &block, &work.total, &self.out);
    }
}
