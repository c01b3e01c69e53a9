//! Attention: how the work is cut into tasks, and which of four ways a block goes: `attention_floats` and `attention_thin`, or
//! `attention_pairs` and `attention_pairs_thin`.
//!
//! A block is up to 64 rows (tokens × heads) that share a key head, or one token with all heads of several key heads, which lie side by side
//! in the cache; a task is a block, or, when there are few blocks and long
//! contexts, one range of a block's keys, whose result waits in a slot until all ranges are there and are merged in order.
//! Ranges are cut and merged in the same way in both cases, so that the choice changes no bit.

use super::attention_block::{self, Finished, Lines, State, Workspace};
use super::attention_floats as floats;
#[cfg(target_arch = "x86_64")]
use super::attention_pairs as pairs;
#[cfg(target_arch = "x86_64")]
use super::attention_pairs_thin as pairs_thin;
use super::attention_problem::{After, Block, Keys, Problem, RANGE, row_len, width};
use super::attention_thin as thin;
use super::processor::Cpu;
use super::shared::SharedMut;
use super::simd::MAX_LANES;
use crate::operands::attention::{AttentionScratch, AttentionSizes, Ragged, Softmax};
use crate::operands::kv::KvRows;
use crate::{ActivationType, DType, Isa, Tensor, WeightType};
use std::ops::Range;

#[cfg(not(target_arch = "x86_64"))]
mod pairs {
    use super::{After, Block, Problem, Workspace};
    use std::ops::Range;

    pub fn pack_queries(_: &Problem, _: &Block, _: usize, _: &mut Workspace) {
        unreachable!("no processor of this kind multiplies bf16");
    }

    pub fn attend(_: &Problem, _: &Block, _: usize, _: After, _: &mut Workspace) {
        unreachable!("no processor of this kind multiplies bf16");
    }

    pub fn scores(_: &Problem, _: &Block, _: Range<usize>, _: &mut Workspace, _: &mut [f32]) {
        unreachable!("no processor of this kind multiplies bf16");
    }

    pub fn attend_columns(_: &Problem, _: &Block, _: &[f32], _: &Range<usize>, _: &mut Workspace) {
        unreachable!("no processor of this kind multiplies bf16");
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod pairs_thin {
    use super::{After, Block, Problem, Workspace};

    pub fn is_thin(_: &Problem, _: usize) -> bool {
        false
    }

    pub fn attend(_: &Problem, _: &Block, _: usize, _: After, _: &mut Workspace) {
        unreachable!("no processor of this kind multiplies bf16");
    }
}

impl Problem<'_> {
    /// Whether so few rows that look at one key head have it along the vectors (`attention_thin`).
    fn is_thin(&self, isa: Isa, num_rows: usize) -> bool {
        if self.pairs { pairs_thin::is_thin(self, num_rows) } else { thin::is_thin(isa, self, num_rows) }
    }

    /// The most key heads of a block of a single token.
    fn most_together(&self, isa: Isa) -> usize {
        let heads = self.sizes.heads / self.kv_heads;
        match self.keys {
            Keys::Paged { .. } if self.is_thin(isa, heads) => self.kv_heads.min(SLOT_ROWS / heads),
            _ => 1,
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
/// Rows that a slot holds, and whose scores are shared: those of one token.
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
    softmax: Softmax,
    scratch: &mut AttentionScratch,
    out: &mut Tensor,
) {
    let problem = Problem {
        keys: Keys::Paged { keys, values, ragged },
        q: q.as_f32(),
        q_stride: q.row_len(),
        sizes: scratch.sizes,
        kv_heads: keys.rows.shape()[1],
        scale: softmax.scale,
        window: softmax.window.unwrap_or(usize::MAX),
        sinks: softmax.sinks.map(Tensor::as_f32),
        cu_seqlens: ragged.cu_seqlens.as_slice(),
        context_lens: Some(ragged.context_lens.as_slice()),
        selected: ragged.selected,
        pairs: cpu.rounds.beside_cache(keys.rows.dtype()) == ActivationType::BF16,
        heads_together: 1,
    };
    run(cpu, problem, scratch, out);
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
        window: usize::MAX,
        sinks: None,
        cu_seqlens: ragged.cu_seqlens.as_slice(),
        context_lens: Some(ragged.context_lens.as_slice()),
        selected: ragged.selected,
        pairs: cpu.rounds.beside_cache(cache.rows.dtype()) == ActivationType::BF16,
        heads_together: 1,
    };
    run(cpu, problem, scratch, out);
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
        window: usize::MAX,
        sinks: None,
        cu_seqlens,
        context_lens: None,
        selected: None,
        pairs: scratch.multiply_as == DType::BF16
            && cpu.rounds.beside(WeightType::BF16) == ActivationType::BF16,
        heads_together: 1,
    };
    run(cpu, problem, scratch, out);
}

fn run(cpu: &Cpu, mut problem: Problem, scratch: &mut AttentionScratch, out: &mut Tensor) {
    let sizes = problem.sizes;
    let num_workers = cpu.pool.num_workers();
    let cut = cut(cpu, &mut problem);
    let num_blocks = problem.blocks().count();
    let (workspaces, rest) = scratch.buffer.as_f32_mut().split_at_mut(num_workers * Workspace::len(&sizes));
    let (scores, slots) = rest.split_at_mut(scores_len(num_workers));
    let task = Task {
        cpu,
        problem: &problem,
        workspaces: SharedMut::new(workspaces),
        scores: SharedMut::new(scores),
        slots: SharedMut::new(slots),
        out: SharedMut::new(out.as_f32_mut()),
    };
    match cut {
        Cut::Blocks => cpu.pool.run(num_blocks, &|index, worker| task.whole_block(index, worker)),
        Cut::Ranges => {
            let num_ranges = problem.blocks().map(|block| block.num_ranges()).sum::<usize>();
            // The last merges of few blocks are long enough to be shared as well.
            let parts = (num_workers / num_blocks).clamp(1, MOST_PARTS);
            cpu.pool.run_phases(
                &[num_ranges.into(), (num_blocks * parts).into()],
                &|phase, index, worker| match phase {
                    0 => task.one_range(index, worker),
                    _ => task.merge(index / parts, [index % parts, parts], worker),
                },
            );
        }
        Cut::Parts => task.share(&problem.block(0), num_workers.min(MOST_PARTS)),
    }
}

/// How work is cut into tasks. It changes no bit.
enum Cut {
    Blocks,
    Ranges,
    /// Of the only block, by keys and by columns.
    Parts,
}

/// Chooses it, and how many key heads blocks of single tokens have.
fn cut(cpu: &Cpu, problem: &mut Problem) -> Cut {
    let num_workers = cpu.pool.num_workers();
    problem.heads_together = problem.most_together(cpu.isa);
    if num_workers == 1 {
        return Cut::Blocks;
    }
    let (mut num_blocks, mut num_ranges, mut longest, mut fit) = (0, 0, 0, true);
    for block in problem.blocks() {
        num_blocks += 1;
        num_ranges += block.num_ranges();
        longest = longest.max(block.num_ranges());
        fit &= block.num_rows() <= SLOT_ROWS;
    }
    let is_grouped = problem.heads_together > 1;
    if num_blocks == 1 && problem.pairs && !is_grouped {
        let block = problem.block(0);
        let num_keys = block.last_visible - block.first_tile();
        if block.num_ranges() == 1 && block.num_rows() <= SLOT_ROWS && num_keys >= WORTH_SHARING {
            return Cut::Parts;
        }
    }
    // Tasks are of nearly one size where there are several for each thread, or none is much longer than the others.
    let is_even = num_blocks >= FEW * num_workers && longest * 2 * num_workers <= num_ranges;
    let least = if is_grouped { FEW * num_workers } else { num_blocks + 1 };
    if fit && !is_even && num_ranges >= least && num_ranges <= num_slots(&problem.sizes, num_workers) {
        return Cut::Ranges;
    }
    // Fewer key heads a block, so that the longest is no more than half of a thread's share.
    let most = num_ranges * problem.kv_heads / (2 * num_workers * longest.max(1));
    problem.heads_together = problem.heads_together.min(most).max(1);
    Cut::Blocks
}

/// What a block needs before its ranges, of which the first begins at position `first`.
pub(crate) fn pack_queries(isa: Isa, problem: &Problem, block: &Block, first: usize, work: &mut Workspace) {
    block.fill_visible(work.visible);
    if problem.pairs {
        return pairs::pack_queries(problem, block, first, work);
    }
    let is_thin = problem.is_thin(isa, block.num_rows() / block.num_kv_heads);
    let lines = if is_thin { Lines { panel: MAX_LANES, line: width(block) } } else { floats::lines(problem) };
    attention_block::pack_queries(isa, problem, block, lines, work);
}

/// Fills `work.range`.
pub(crate) fn attend(
    isa: Isa,
    problem: &Problem,
    block: &Block,
    range: usize,
    after: After,
    work: &mut Workspace,
) {
    let is_thin = problem.is_thin(isa, block.num_rows() / block.num_kv_heads);
    match (problem.pairs, is_thin) {
        (true, true) => pairs_thin::attend(problem, block, range, after, work),
        (true, false) => pairs::attend(problem, block, range, after, work),
        (false, true) => thin::attend(isa, problem, block, range, after, work),
        (false, false) => floats::attend(isa, problem, block, range, work),
    }
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

    /// The slot of a range.
    ///
    /// # Safety
    /// Nobody else writes to it meanwhile, or reads it.
    unsafe fn slot(&self, index: usize) -> State<'_> {
        let len = State::len(&self.problem.sizes, SLOT_ROWS);
        // SAFETY: the caller's promise.
        State::new(unsafe { self.slots.slice(index * len, len) }, &self.problem.sizes, SLOT_ROWS)
    }

    fn whole_block(&self, index: usize, worker: usize) {
        let block = self.problem.block(index);
        let mut work = self.workspace(worker);
        let width = width(&block);
        pack_queries(self.cpu.isa, self.problem, &block, 0, &mut work);
        let next = self.problem.after(&block);
        let next = next.as_ref().map(|next| (next, next.ranges().start));
        let ranges = block.ranges();
        if ranges.len() == 1 {
            // What merging it with nothing would leave.
            attend(self.cpu.isa, self.problem, &block, ranges.start, next, &mut work);
            return attention_block::write(self.cpu.isa, self.problem, &block, &work.range, &self.out);
        }
        let columns = 0..row_len(self.problem.sizes.value_dim);
        work.total.clear(width);
        for range in ranges.clone() {
            let after = if range + 1 < ranges.end { Some((&block, range + 1)) } else { next };
            attend(self.cpu.isa, self.problem, &block, range, after, &mut work);
            let range = work.range.finished();
            attention_block::merge(self.cpu.isa, &range, &mut work.total, block.num_rows(), &columns);
        }
        attention_block::write(self.cpu.isa, self.problem, &block, &work.total, &self.out);
    }

    /// The only block, of one range: scores by parts of the keys, and then sums by parts of the columns. Each number is one thread's, and
    /// has the order of terms that `whole_block` gives it.
    fn share(&self, block: &Block, parts: usize) {
        let (first, width) = (block.first_tile(), width(block));
        let (keys, range) = (block.last_visible - first, block.ranges().start);
        self.cpu.pool.run_phases(&[parts.into(), parts.into()], &|phase, part, worker| {
            let mut work = self.workspace(worker);
            if phase == 0 {
                let positions = first + part * keys / parts..first + (part + 1) * keys / parts;
                let place = positions.start - range * RANGE;
                // SAFETY: each position's scores are one task's.
                let out = unsafe { self.scores.slice(place * width, positions.len() * width) };
                pack_queries(self.cpu.isa, self.problem, block, positions.start, &mut work);
                return pairs::scores(self.problem, block, positions, &mut work, out);
            }
            block.fill_visible(work.visible);
            // SAFETY: all that are read were written, and nobody writes in this phase.
            let scores = unsafe { self.scores.reader() }.from(0);
            let columns = self.columns(part, parts);
            pairs::attend_columns(self.problem, block, scores, &columns, &mut work);
            self.write(block, &work.range, columns);
        });
    }

    fn one_range(&self, index: usize, worker: usize) {
        let (block, range) = self.problem.range(index);
        let mut work = self.workspace(worker);
        pack_queries(self.cpu.isa, self.problem, &block, range * RANGE, &mut work);
        let after = (range + 1 < block.ranges().end).then_some((&block, range + 1));
        attend(self.cpu.isa, self.problem, &block, range, after, &mut work);
        // SAFETY: a range is one task's, and merging is another phase.
        unsafe { self.slot(index) }.copy_from(&work.range, block.num_rows());
    }

    /// One of so many parts of the columns of a block, from what its ranges left.
    fn merge(&self, index: usize, [part, parts]: [usize; 2], worker: usize) {
        let block = self.problem.block(index);
        let first: usize = self.problem.blocks().take(index).map(|before| before.num_ranges()).sum();
        let len = State::len(&self.problem.sizes, SLOT_ROWS);
        // SAFETY: all were written, and nobody writes in this phase.
        let slots = unsafe { self.slots.reader() };
        let columns = self.columns(part, parts);
        let mut work = self.workspace(worker);
        work.total.clear_columns(width(&block), &columns);
        for range in 0..block.num_ranges() {
            let slot = Finished::new(&slots.from((first + range) * len)[..len], SLOT_ROWS);
            attention_block::merge(self.cpu.isa, &slot, &mut work.total, block.num_rows(), &columns);
        }
        self.write(&block, &work.total, columns);
    }

    /// A part of a row of sums: whole pairs of vectors.
    fn columns(&self, part: usize, parts: usize) -> Range<usize> {
        let len = row_len(self.problem.sizes.value_dim);
        let at = |part: usize| (part * len.div_ceil(COLUMNS) / parts * COLUMNS).min(len);
        at(part)..at(part + 1)
    }

    fn write(&self, block: &Block, sums: &State, columns: Range<usize>) {
        let value_dim = self.problem.sizes.value_dim;
        let columns = columns.start.min(value_dim)..columns.end.min(value_dim);
        attention_block::write_columns(self.cpu.isa, self.problem, block, (sums, columns), &self.out);
    }
}
