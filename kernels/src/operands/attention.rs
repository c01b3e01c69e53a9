//! Operands of attention: which rows look at which keys, and where partial results lie.

use crate::cuda::attention_plan::{Plan, RangeRule};
use crate::{DType, Index, Tensor};
use std::ops::Range;

/// Which tokens belong to which sequence, and where its keys are.
///
/// Item i has tokens `cu_seqlens[i] .. cu_seqlens[i + 1]` at positions `context_lens[i] ..`. Position p is slot
/// `block_tables[cu_blocks[i] + p / B] * B + p % B`. Keys of this step were stored before the call.
///
/// For a captured graph the arrays are [`crate::Indices`], whose numbers may change from one replay to the next while T and the
/// number of items stay; [`AttentionScratch::plan`] comes before the replay.
#[derive(Clone, Copy, Debug)]
pub struct Ragged<'a> {
    /// items + 1
    pub cu_seqlens: Index<'a>,
    pub context_lens: Index<'a>,
    pub block_tables: Index<'a>,
    /// items + 1
    pub cu_blocks: Index<'a>,
    pub block_size: usize,
    /// Whether each item takes part; rows of those that do not stay as they are. `None`: all do, as in a captured graph.
    pub selected: Option<&'a [bool]>,
}

/// What scores become before they weigh values.
#[derive(Clone, Copy, Debug)]
pub struct Softmax<'a> {
    /// Of `q · k`.
    pub scale: f32,
    /// A query at position p sees keys in (p - window, p]; `None`: all up to p. At least 1.
    pub window: Option<usize>,
    /// `[Hq]` f32: a logit for each head that takes weight and has no value: out = Σ exp(s_p) v[p] / (Σ exp(s_p) + exp(sink)).
    pub sinks: Option<&'a Tensor>,
}

impl From<f32> for Softmax<'_> {
    /// Of everything up to the query, times `scale`.
    fn from(scale: f32) -> Self {
        Self { scale, window: None, sinks: None }
    }
}

/// Sizes that a scratch serves. For MLA: key_dim R + P, value_dim R. For packed segments: a context of 0.
#[derive(Clone, Copy, Debug)]
pub struct AttentionSizes {
    /// Of queries.
    pub heads: usize,
    /// Of keys and values: 1 for MLA, `heads` for packed segments.
    pub kv_heads: usize,
    pub key_dim: usize,
    pub value_dim: usize,
    /// Longest sequence; a longer one is served too, with less to share out between threads.
    pub max_context: usize,
    /// Most tokens of a call.
    pub max_tokens: usize,
}

/// Tiles of each thread, and partial results of long contexts. On a GPU: partial results, and lists of who computes what.
#[derive(Debug)]
pub struct AttentionScratch {
    pub(crate) buffer: Tensor,
    pub(crate) sizes: AttentionSizes,
    /// Where the device is a GPU.
    pub(crate) plan: Option<Plan>,
    /// There, of calls that have a window: one for all of them.
    pub(crate) window_plan: Option<Plan>,
    pub(crate) multiply_as: DType,
    pub(crate) rule: RangeRule,
}

impl Ragged<'_> {
    pub fn num_items(&self) -> usize {
        self.context_lens.len()
    }

    /// Whether an item takes part.
    pub fn is_selected(&self, item: usize) -> bool {
        self.selected.is_none_or(|selected| selected[item])
    }

    pub(crate) fn check(&self, num_tokens: usize, num_slots: usize) {
        let (block_tables, cu_blocks) = (self.block_tables.as_slice(), self.cu_blocks.as_slice());
        check_offsets("ragged: cu_seqlens", self.cu_seqlens.as_slice(), num_tokens);
        check_offsets("ragged: cu_blocks", cu_blocks, block_tables.len());
        assert_eq!(self.cu_seqlens.len(), self.num_items() + 1, "ragged: cu_seqlens and context_lens");
        assert_eq!(cu_blocks.len(), self.num_items() + 1, "ragged: cu_blocks and context_lens");
        for item in 0..self.num_items() {
            let len = self.context_lens.as_slice()[item] as usize + self.tokens(item).len();
            let blocks = (cu_blocks[item + 1] - cu_blocks[item]) as usize;
            assert!(
                len <= blocks * self.block_size,
                "ragged: item {item} has {len} positions in {blocks} blocks"
            );
        }
        if let Some(selected) = self.selected {
            assert_eq!(selected.len(), self.num_items(), "ragged: selected and context_lens");
        }
        let num_blocks = num_slots / self.block_size;
        let mut blocks = block_tables.iter();
        assert!(
            blocks.all(|&block| (block as usize) < num_blocks),
            "ragged: a block is not below {num_blocks}"
        );
    }

    pub(crate) fn tokens(&self, item: usize) -> Range<usize> {
        let cu_seqlens = self.cu_seqlens.as_slice();
        cu_seqlens[item] as usize..cu_seqlens[item + 1] as usize
    }

    /// The slot of a position.
    pub fn slot(&self, item: usize, position: usize) -> usize {
        let first = self.cu_blocks.as_slice()[item] as usize;
        let block = self.block_tables.as_slice()[first + position / self.block_size];
        block as usize * self.block_size + position % self.block_size
    }
}

pub(crate) fn check_offsets(op: &str, offsets: &[u32], total: usize) {
    assert_eq!(offsets.first(), Some(&0), "{op}: begins at 0");
    assert_eq!(offsets.last().map(|&last| last as usize), Some(total), "{op}: ends at the total");
    assert!(offsets.is_sorted(), "{op}: rises");
}
