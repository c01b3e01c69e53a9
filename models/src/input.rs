//! A batch of the scheduler as the flat arrays that the ops take. The arrays are reused from step to step.
//!
//! ```text
//! tokens     a a a a a b c c c      positions  0 1 2 3 4 17 32 33 34
//! cu_seqlens 0 5 6 9                slots      where each token's keys and values are written
//! ```

use kernels::ops::NOWHERE;
use kernels::{Device, Indices};
use scheduler::{AdapterId, Batch, BatchItem, BlockId};
use std::ops::Range;

#[derive(Debug, Default)]
pub struct ModelInput {
    pub tokens: Vec<u32>,
    /// One for each token, or three (time, row, column) where the model rotates by these.
    pub positions: Vec<u32>,
    pub slots: Vec<u32>,
    /// Where each item's tokens begin, and the end.
    pub cu_seqlens: Vec<u32>,
    pub context_lens: Vec<u32>,
    pub block_tables: Vec<u32>,
    /// Where each item's blocks begin in `block_tables`, and the end.
    pub cu_blocks: Vec<u32>,
    /// Of each item as the arrays have them: whether its rows are attended to in the expanded form.
    pub expanded: Vec<bool>,
    /// The first row of each item of the batch, which may be several of the arrays'.
    pub first_rows: Vec<u32>,
    /// Rows of items that have adapters, in order.
    pub adapters: Vec<(AdapterId, Range<u32>)>,
    /// Rows of the tokens after which something is sampled.
    pub sample_rows: Vec<u32>,
    /// Rows that the step before samples, and the tokens that they become. Until then these are 0.
    pub placeholder_rows: Vec<u32>,
    pub placeholder_tokens: Vec<u32>,
    /// Rows of the image cache, and the tokens that take them.
    pub image_rows: Vec<u32>,
    pub image_tokens: Vec<u32>,
}

/// How the scheduler numbers memory, and where the forms of attention part.
#[derive(Debug, Clone, Copy)]
pub struct BlockSizes {
    pub tokens: usize,
    pub image_rows: usize,
    /// Rows of a prompt from this position on have the expanded form; `None`: no row has.
    pub expand_from: Option<usize>,
    /// Rotary positions of a token: 1, or 3.
    pub num_axes: usize,
}

impl ModelInput {
    pub fn pack(&mut self, batch: &Batch, sizes: BlockSizes) {
        self.clear();
        self.cu_seqlens.push(0);
        self.cu_blocks.push(0);
        for item in &batch.items {
            self.push(item, sizes);
        }
    }

    /// Fills a step of one token for each item up to `rows`, with tokens that write nowhere and that nobody reads. Each looks at the first
    /// slot, which is memory whatever lies there.
    pub fn pad(&mut self, rows: usize, num_axes: usize) {
        for _ in self.tokens.len()..rows {
            self.tokens.push(0);
            self.positions.extend(std::iter::repeat_n(0, num_axes));
            self.slots.push(NOWHERE);
            self.cu_seqlens.push(self.tokens.len() as u32);
            self.context_lens.push(0);
            self.block_tables.push(0);
            self.cu_blocks.push(self.block_tables.len() as u32);
            self.expanded.push(false);
        }
    }

    fn clear(&mut self) {
        let Self {
            tokens,
            positions,
            slots,
            cu_seqlens,
            context_lens,
            block_tables,
            cu_blocks,
            expanded,
            first_rows,
            adapters,
            sample_rows,
            placeholder_rows,
            placeholder_tokens,
            image_rows,
            image_tokens,
        } = self;
        expanded.clear();
        adapters.clear();
        let arrays = [
            tokens,
            positions,
            slots,
            cu_seqlens,
            context_lens,
            block_tables,
            cu_blocks,
            first_rows,
            sample_rows,
            placeholder_rows,
            placeholder_tokens,
            image_rows,
            image_tokens,
        ];
        arrays.into_iter().for_each(Vec::clear);
    }

    fn push(&mut self, item: &BatchItem, sizes: BlockSizes) {
        let BatchItem {
            id: _,
            adapter,
            tokens,
            placeholder_for,
            context_len,
            prompt_len: _,
            position_shift: _,
            blocks,
            images,
            prompt: _,
            sample,
        } = item;
        assert!(!tokens.is_empty(), "an item has tokens");
        assert!(blocks.len() * sizes.tokens >= item.end(), "an item's blocks cover its positions");
        let first = self.tokens.len();
        self.first_rows.push(first as u32);
        self.tokens.extend_from_slice(tokens);
        if let Some(adapter) = *adapter {
            self.adapters.push((adapter, first as u32..self.tokens.len() as u32));
        }
        if let Some(row) = *placeholder_for {
            self.placeholder_rows.push(u32::try_from(row).expect("rows are counted with 32 bits"));
            self.placeholder_tokens.push(first as u32);
        }
        let positions = *context_len..item.end();
        self.slots.extend(positions.clone().map(|position| slot(blocks, position, sizes.tokens)));
        match sizes.num_axes {
            1 => self.positions.extend(positions.map(|position| position as u32)),
            _ => self.positions.extend(item.rotary_positions().flatten().map(|position| position as u32)),
        }
        for (positions, is_expanded) in segments(item, sizes.expand_from) {
            self.cu_seqlens.push((first + positions.end - context_len) as u32);
            self.context_lens.push(positions.start as u32);
            self.block_tables.extend(blocks.iter().map(|block| block.0));
            self.cu_blocks.push(self.block_tables.len() as u32);
            self.expanded.push(is_expanded);
        }
        for image in images {
            for i in 0..image.len {
                self.image_rows.push(slot(&image.rows, image.first_row + i, sizes.image_rows));
                self.image_tokens.push((first + image.first_token + i) as u32);
            }
        }
        if let Some(sample) = sample {
            let end = self.tokens.len() as u32;
            self.sample_rows.extend(end - sample.num_rows() as u32..end);
        }
    }
}

/// The positions of an item, cut where the form of attention changes: that hangs on a row's position and on its request, not on the chunk.
fn segments(item: &BatchItem, expand_from: Option<usize>) -> impl Iterator<Item = (Range<usize>, bool)> {
    let (start, end) = (item.context_len, item.end());
    let from = expand_from.map_or(end, |from| from.clamp(start, end));
    // Without a row of the prompt from there on there is nothing to cut.
    let from = if item.prompt_len > from { from } else { end };
    let to = item.prompt_len.clamp(from, end);
    let parts = [(start..from, false), (from..to, true), (to..end, false)];
    parts.into_iter().filter(|(positions, _)| !positions.is_empty())
}

/// The largest step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InputLimits {
    pub num_tokens: usize,
    /// Rotary positions of a token.
    pub num_axes: usize,
    pub num_items: usize,
    /// Of one item.
    pub num_blocks: usize,
    /// Rows that go through the head at a time.
    pub head_rows: usize,
}

/// The arrays of [`ModelInput`] where the ops read them: on the device, at addresses that stay.
pub struct StepInput {
    pub tokens: Indices,
    pub positions: Indices,
    pub slots: Indices,
    pub cu_seqlens: Indices,
    pub context_lens: Indices,
    pub block_tables: Indices,
    pub cu_blocks: Indices,
    pub image_rows: Indices,
    pub image_tokens: Indices,
    pub placeholder_rows: Indices,
    pub placeholder_tokens: Indices,
    /// Set for each piece of the head's rows.
    pub head_rows: Indices,
    pub forms: Forms,
}

/// Which rows of a step have which form of attention.
#[derive(Debug, Default)]
pub struct Forms {
    /// Of each item of the arrays.
    pub absorbed: Vec<bool>,
    pub expanded: Vec<bool>,
    /// Rows in the absorbed form that follow each other.
    pub absorbed_rows: Vec<Range<usize>>,
}

impl Forms {
    fn with_capacity(num_items: usize) -> Self {
        Self {
            absorbed: Vec::with_capacity(num_items),
            expanded: Vec::with_capacity(num_items),
            absorbed_rows: Vec::with_capacity(num_items),
        }
    }

    fn set(&mut self, input: &ModelInput) {
        let Self { absorbed, expanded, absorbed_rows } = self;
        expanded.clear();
        expanded.extend_from_slice(&input.expanded);
        absorbed.clear();
        absorbed.extend(input.expanded.iter().map(|is_expanded| !is_expanded));
        absorbed_rows.clear();
        for (rows, _) in
            input.cu_seqlens.windows(2).zip(&input.expanded).filter(|(_, is_expanded)| !**is_expanded)
        {
            let rows = rows[0] as usize..rows[1] as usize;
            match absorbed_rows.last_mut() {
                Some(last) if last.end == rows.start => last.end = rows.end,
                _ => absorbed_rows.push(rows),
            }
        }
    }

    /// Whether any row has the expanded form.
    pub fn are_mixed(&self) -> bool {
        self.expanded.contains(&true)
    }
}

impl StepInput {
    /// In the order of the fields.
    fn capacities(limits: &InputLimits) -> [usize; 12] {
        let InputLimits { num_tokens: t, num_axes, num_items: i, num_blocks, head_rows } = *limits;
        [t, num_axes * t, t, i + 1, i, i * num_blocks, i + 1, t, t, i, i, head_rows]
    }

    pub fn new(device: &Device, limits: &InputLimits) -> Self {
        let [
            tokens,
            positions,
            slots,
            cu_seqlens,
            context_lens,
            block_tables,
            cu_blocks,
            image_rows,
            image_tokens,
            placeholder_rows,
            placeholder_tokens,
            head_rows,
        ] = Self::capacities(limits).map(|capacity| Indices::new(device, capacity));
        Self {
            tokens,
            positions,
            slots,
            cu_seqlens,
            context_lens,
            block_tables,
            cu_blocks,
            image_rows,
            image_tokens,
            placeholder_rows,
            placeholder_tokens,
            head_rows,
            forms: Forms::with_capacity(limits.num_items),
        }
    }

    /// What `new` allocates.
    pub fn bytes(device: &Device, limits: &InputLimits) -> u64 {
        Self::capacities(limits).iter().map(|&capacity| Indices::bytes(device, capacity)).sum()
    }

    /// Everything but the head's rows.
    pub fn set(&mut self, input: &ModelInput) {
        self.tokens.set(&input.tokens);
        self.positions.set(&input.positions);
        self.slots.set(&input.slots);
        self.cu_seqlens.set(&input.cu_seqlens);
        self.context_lens.set(&input.context_lens);
        self.block_tables.set(&input.block_tables);
        self.cu_blocks.set(&input.cu_blocks);
        self.image_rows.set(&input.image_rows);
        self.image_tokens.set(&input.image_tokens);
        self.placeholder_rows.set(&input.placeholder_rows);
        self.placeholder_tokens.set(&input.placeholder_tokens);
        self.forms.set(input);
    }

    pub fn num_tokens(&self) -> usize {
        self.tokens.as_slice().len()
    }
}

/// The row of memory at which `index` lies when it is counted through `blocks`.
pub fn slot(blocks: &[BlockId], index: usize, block_size: usize) -> u32 {
    let row = blocks[index / block_size].0 as usize * block_size + index % block_size;
    u32::try_from(row).expect("memory has fewer rows than 32 bits count")
}

#[cfg(test)]
mod tests {
    use super::*;
    use scheduler::{ImageRows, Sample, SamplingParams, SequenceId};
    use std::sync::Arc;

    #[test]
    fn items_are_laid_out_one_after_another() {
        let blocks = |ids: &[u32]| ids.iter().map(|&id| BlockId(id)).collect::<Vec<_>>();
        let sample = Sample { num_drafts: 1, ..Sample::new(Arc::new(SamplingParams::default()), 8, 1) };
        let chunk = BatchItem {
            prompt_len: 8,
            images: vec![ImageRows {
                first_token: 1,
                first_row: 3,
                len: 2,
                position_grid: None,
                rows: blocks(&[2, 6]),
            }],
            ..BatchItem::new(SequenceId(1), vec![10, 11, 12, 13], 2, blocks(&[4, 0]))
        };
        let adapter = AdapterId(std::num::NonZeroU64::MIN);
        let decode = BatchItem {
            prompt_len: 7,
            adapter: Some(adapter),
            sample: Some(sample),
            ..BatchItem::new(SequenceId(2), vec![20, 21], 7, blocks(&[9, 1, 3]))
        };
        let batch = Batch { items: vec![chunk, decode], ..Batch::default() };
        let mut input = ModelInput::default();
        for _ in 0..2 {
            input.pack(&batch, BlockSizes { tokens: 3, image_rows: 4, expand_from: None, num_axes: 1 });
        }
        assert_eq!(input.tokens, [10, 11, 12, 13, 20, 21]);
        assert_eq!(input.positions, [2, 3, 4, 5, 7, 8]);
        assert_eq!(input.slots, [14, 0, 1, 2, 10, 11]);
        assert_eq!(input.cu_seqlens, [0, 4, 6]);
        assert_eq!(input.context_lens, [2, 7]);
        assert_eq!(input.block_tables, [4, 0, 9, 1, 3]);
        assert_eq!(input.cu_blocks, [0, 2, 5]);
        assert_eq!(input.sample_rows, [4, 5]);
        assert_eq!(input.adapters, [(adapter, 4..6)]);
        assert_eq!(input.image_rows, [11, 24]);
        assert_eq!(input.image_tokens, [1, 2]);
    }

    #[test]
    #[allow(clippy::single_range_in_vec_init, reason = "one range of rows is meant")]
    fn items_are_cut_where_the_form_of_attention_changes() {
        let item = |context_len: usize, prompt_len: usize, len: usize| BatchItem {
            prompt_len,
            ..BatchItem::new(SequenceId(1), vec![9; len], context_len, (0..8).map(BlockId).collect())
        };
        let device = Device::cpu(Some(1));
        let limits = InputLimits { num_tokens: 100, num_axes: 1, num_items: 20, num_blocks: 8, head_rows: 1 };
        let mut on_device = StepInput::new(&device, &limits);
        let mut check =
            |items: Vec<BatchItem>, cu_seqlens: &[u32], expanded: &[bool], rows: &[Range<usize>]| {
                let batch = Batch { items, ..Batch::default() };
                let mut input = ModelInput::default();
                input
                    .pack(&batch, BlockSizes { tokens: 3, image_rows: 1, expand_from: Some(5), num_axes: 1 });
                on_device.set(&input);
                assert_eq!((&input.cu_seqlens[..], &input.expanded[..]), (cu_seqlens, expanded));
                assert_eq!(on_device.forms.absorbed_rows, rows);
                assert_eq!(on_device.forms.are_mixed(), expanded.contains(&true));
                input
            };
        // Before the position, a prompt across it, a prompt beyond it, a preempted one with its answer, a generated token.
        check(vec![item(0, 9, 5)], &[0, 5], &[false], &[0..5]);
        check(vec![item(2, 20, 6)], &[0, 3, 6], &[false, true], &[0..3]);
        check(vec![item(5, 20, 6)], &[0, 6], &[true], &[]);
        let input = check(
            vec![item(9, 9, 1), item(0, 7, 10), item(3, 2, 4)],
            &[0, 1, 6, 8, 11, 15],
            &[false, false, true, false, false],
            &[0..6, 8..15],
        );
        assert_eq!(input.first_rows, [0, 1, 11]);
        assert_eq!(input.context_lens, [9, 0, 5, 7, 3]);
        assert_eq!(input.cu_blocks, [0, 8, 16, 24, 32, 40]);
    }

    #[test]
    fn padding_writes_nowhere() {
        let item = |context_len, blocks: &[u32]| BatchItem {
            prompt_len: context_len,
            ..BatchItem::new(
                SequenceId(1),
                vec![9],
                context_len,
                blocks.iter().map(|&id| BlockId(id)).collect(),
            )
        };
        let batch = Batch { items: vec![item(4, &[2, 1]), item(0, &[3])], ..Batch::default() };
        let mut input = ModelInput::default();
        input.pack(&batch, BlockSizes { tokens: 3, image_rows: 1, expand_from: None, num_axes: 1 });
        input.pad(4, 1);
        assert_eq!(input.tokens, [9, 9, 0, 0]);
        assert_eq!(input.slots, [4, 9, NOWHERE, NOWHERE]);
        assert_eq!(input.cu_seqlens, [0, 1, 2, 3, 4]);
        assert_eq!(input.context_lens, [4, 0, 0, 0]);
        assert_eq!(input.block_tables, [2, 1, 3, 0, 0]);
        assert_eq!(input.cu_blocks, [0, 2, 3, 4, 5]);
    }
}
