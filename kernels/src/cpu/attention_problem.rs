//! A call of attention: where its queries and keys are, and how its rows are cut into blocks.
//!
//! A block is up to 64 rows (tokens × heads) that share a key head, or one token with all heads of several key heads, which lie side by side
//! in the cache. Its keys are visited in tiles of 64 and ranges of eight tiles, at absolute positions: those in which no row sees anything are
//! left out, and one in which a row sees nothing leaves its sums as they are.

use super::simd::MAX_LANES;
use crate::operands::attention::{AttentionSizes, Ragged};
use crate::operands::kv::KvRows;
use std::ops::Range;

/// Rows of a block.
pub(crate) const ROWS: usize = 64;
/// Keys of a tile.
pub(crate) const KEYS: usize = 64;
/// Keys of a range: whole tiles.
pub(crate) const RANGE: usize = 8 * KEYS;

/// Where keys and values come from.
pub(crate) enum Keys<'a> {
    Paged {
        keys: KvRows<'a>,
        values: KvRows<'a>,
        ragged: &'a Ragged<'a>,
    },
    /// One row for all heads: its first `value_dim` elements are the value.
    Latent {
        cache: KvRows<'a>,
        ragged: &'a Ragged<'a>,
    },
    Packed {
        qkv: &'a [f32],
        heads: usize,
        cu_seqlens: &'a [u32],
    },
    /// Of one range of one item, the first at position `first`: `[H, RANGE, D]` and `[H, RANGE, value_line]`.
    Expanded {
        keys: &'a [f32],
        values: &'a [f32],
        first: usize,
    },
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
    /// Keys that a row sees at most: itself and those before it; usize::MAX: all.
    pub window: usize,
    /// Of each head: a logit that takes weight and has no value.
    pub sinks: Option<&'a [f32]>,
    /// items + 1
    pub cu_seqlens: &'a [u32],
    /// None: every token sees its whole item.
    pub context_lens: Option<&'a [u32]>,
    /// Whether an item takes part; None: all do.
    pub selected: Option<&'a [bool]>,
    /// Whether queries and weights are rounded and multiplied by pairs: for all rows of a cache, or for none.
    pub pairs: bool,
    /// Key heads of a block of a single token: what lies side by side in the cache is best read together.
    pub heads_together: usize,
}

/// Rows of one task: some tokens of an item, some heads that share a key head; or one token, and all heads of some key heads.
pub(crate) struct Block {
    pub item: usize,
    /// Among those of the item.
    pub index: usize,
    /// The first, and how many.
    pub kv_head: usize,
    pub num_kv_heads: usize,
    /// Index of the first token in the whole step, and how many.
    pub first_token: usize,
    pub num_tokens: usize,
    pub first_head: usize,
    pub num_heads: usize,
    /// Keys that the first and the last token see; those between see one more each, or all the same.
    pub first_visible: usize,
    pub last_visible: usize,
    /// Of those, each sees so many of the last.
    pub window: usize,
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

    /// The ranges in which some row sees something.
    pub fn ranges(&self) -> Range<usize> {
        self.first_tile() / RANGE..self.last_visible.div_ceil(RANGE)
    }

    pub fn num_ranges(&self) -> usize {
        self.ranges().len()
    }

    /// The first position of the first tile in which the first row sees something.
    pub fn first_tile(&self) -> usize {
        self.first_visible.saturating_sub(self.window) / KEYS * KEYS
    }

    /// Tiles of keys of a range, without those that lie before every row's window: the first position, and how many.
    pub fn tiles(&self, range: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (start, end) = (self.first_tile().max(range * RANGE), self.last_visible.min((range + 1) * RANGE));
        (start..end).step_by(KEYS).map(move |first| (first, KEYS.min(end - first)))
    }

    /// Whether every row sees all of a tile.
    pub fn hides_nothing(&self, first: usize, len: usize) -> bool {
        first + len <= self.first_visible && self.last_visible <= first.saturating_add(self.window)
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
    pub fn block_shape(&self) -> [usize; 2] {
        let heads = (self.sizes.heads / self.kv_heads).min(ROWS);
        [heads, ROWS / heads]
    }

    pub fn head_blocks(&self) -> usize {
        (self.sizes.heads / self.kv_heads).div_ceil(self.block_shape()[0])
    }

    pub fn num_blocks(&self, item: usize) -> usize {
        if self.selected.is_some_and(|selected| !selected[item]) {
            return 0;
        }
        let tokens = (self.cu_seqlens[item + 1] - self.cu_seqlens[item]) as usize;
        if tokens == 1 && self.heads_together > 1 {
            return self.kv_heads.div_ceil(self.heads_together);
        }
        tokens.div_ceil(self.block_shape()[1]) * self.kv_heads * self.head_blocks()
    }

    pub fn num_items(&self) -> usize {
        self.cu_seqlens.len() - 1
    }

    pub fn blocks(&self) -> impl Iterator<Item = Block> {
        (0..self.num_items())
            .flat_map(move |item| (0..self.num_blocks(item)).map(move |index| self.block_of(item, index)))
    }

    /// The block at an index over all items.
    pub fn block(&self, mut index: usize) -> Block {
        let mut item = 0;
        while index >= self.num_blocks(item) {
            index -= self.num_blocks(item);
            item += 1;
        }
        self.block_of(item, index)
    }

    /// The block that follows another.
    pub fn after(&self, block: &Block) -> Option<Block> {
        if block.index + 1 < self.num_blocks(block.item) {
            return Some(self.block_of(block.item, block.index + 1));
        }
        let item = (block.item + 1..self.num_items()).find(|&item| self.num_blocks(item) > 0)?;
        Some(self.block_of(item, 0))
    }

    pub fn block_of(&self, item: usize, index: usize) -> Block {
        let [heads, tokens] = self.block_shape();
        let (head_blocks, rep) = (self.head_blocks(), self.sizes.heads / self.kv_heads);
        let (start, end) = (self.cu_seqlens[item] as usize, self.cu_seqlens[item + 1] as usize);
        // Heads vary fastest: blocks that follow each other read keys of the same positions.
        let (head_block, [kv_head, num_kv_heads], token) = match self.heads_together {
            together if end - start == 1 && together > 1 => {
                (0, [index * together, together.min(self.kv_heads - index * together)], 0)
            }
            _ => (
                index % head_blocks,
                [index / head_blocks % self.kv_heads, 1],
                index / head_blocks / self.kv_heads * tokens,
            ),
        };
        let first_token = start + token;
        let num_tokens = tokens.min(end - first_token);
        let visible = |token: usize| match self.context_lens {
            Some(lens) => lens[item] as usize + token - start + 1,
            None => end - start,
        };
        Block {
            item,
            index,
            kv_head,
            num_kv_heads,
            first_token,
            num_tokens,
            first_head: kv_head * rep + head_block * heads,
            num_heads: num_kv_heads * heads.min(rep - head_block * heads),
            first_visible: visible(first_token),
            last_visible: visible(first_token + num_tokens - 1),
            window: self.window,
        }
    }

    /// The block and range at an index over all ranges of all blocks.
    pub fn range(&self, mut index: usize) -> (Block, usize) {
        let mut block = 0;
        loop {
            let candidate = self.block(block);
            if index < candidate.num_ranges() {
                let range = candidate.ranges().start + index;
                return (candidate, range);
            }
            index -= candidate.num_ranges();
            block += 1;
        }
    }
}

/// The range of a block that this worker will most likely attend to next, whose first keys are worth asking for.
pub(crate) type After<'a> = Option<(&'a Block, usize)>;

/// Rows of a block in whole vectors of any width: how far a line of queries or of scores is from the next.
pub(crate) fn width(block: &Block) -> usize {
    block.num_rows().next_multiple_of(MAX_LANES)
}

/// A row in whole vectors, with room for the widest.
pub(crate) fn row_len(dim: usize) -> usize {
    dim.next_multiple_of(16)
}

/// A row of values of which many are read a few columns at a time, down the rows: not a multiple of 512 bytes, which would put them all in
/// the same few lines of the first cache.
pub(crate) fn value_line(dim: usize) -> usize {
    let len = row_len(dim);
    if len.is_multiple_of(128) { len + 16 } else { len }
}
