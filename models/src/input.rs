//! A batch of the scheduler as the flat arrays that the ops take. The arrays are reused from step to step.
//!
//! ```text
//! tokens     a a a a a b c c c      positions  0 1 2 3 4 17 32 33 34
//! cu_seqlens 0 5 6 9                slots      where each token's keys and values are written
//! ```

use kernels::ops::NOWHERE;
use kernels::{Device, Indices};
use scheduler::{Batch, BatchItem, BlockId};

#[derive(Debug, Default)]
pub struct ModelInput {
    pub tokens: Vec<u32>,
    pub positions: Vec<u32>,
    pub slots: Vec<u32>,
    /// Where each item's tokens begin, and the end.
    pub cu_seqlens: Vec<u32>,
    pub context_lens: Vec<u32>,
    pub block_tables: Vec<u32>,
    /// Where each item's blocks begin in `block_tables`, and the end.
    pub cu_blocks: Vec<u32>,
    /// Rows of the tokens after which something is sampled.
    pub sample_rows: Vec<u32>,
    /// Rows of the image cache, and the tokens that take them.
    pub image_rows: Vec<u32>,
    pub image_tokens: Vec<u32>,
}

/// How the scheduler numbers memory.
#[derive(Debug, Clone, Copy)]
pub struct BlockSizes {
    pub tokens: usize,
    pub image_rows: usize,
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
    pub fn pad(&mut self, rows: usize) {
        for _ in self.tokens.len()..rows {
            self.tokens.push(0);
            self.positions.push(0);
            self.slots.push(NOWHERE);
            self.cu_seqlens.push(self.tokens.len() as u32);
            self.context_lens.push(0);
            self.block_tables.push(0);
            self.cu_blocks.push(self.block_tables.len() as u32);
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
            sample_rows,
            image_rows,
            image_tokens,
        } = self;
        let arrays = [
            tokens,
            positions,
            slots,
            cu_seqlens,
            context_lens,
            block_tables,
            cu_blocks,
            sample_rows,
            image_rows,
            image_tokens,
        ];
        arrays.into_iter().for_each(Vec::clear);
    }

    fn push(&mut self, item: &BatchItem, sizes: BlockSizes) {
        let BatchItem { id: _, tokens, context_len, blocks, images, prompt: _, sample } = item;
        assert!(!tokens.is_empty(), "an item has tokens");
        assert!(blocks.len() * sizes.tokens >= item.end(), "an item's blocks cover its positions");
        let first = self.tokens.len();
        self.tokens.extend_from_slice(tokens);
        for position in *context_len..item.end() {
            self.positions.push(position as u32);
            self.slots.push(slot(blocks, position, sizes.tokens));
        }
        self.cu_seqlens.push(self.tokens.len() as u32);
        self.context_lens.push(*context_len as u32);
        self.block_tables.extend(blocks.iter().map(|block| block.0));
        self.cu_blocks.push(self.block_tables.len() as u32);
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

/// The largest step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InputLimits {
    pub num_tokens: usize,
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
    /// Set for each piece of the head's rows.
    pub head_rows: Indices,
}

impl StepInput {
    /// In the order of the fields.
    fn capacities(limits: &InputLimits) -> [usize; 10] {
        let InputLimits { num_tokens: t, num_items, num_blocks, head_rows } = *limits;
        [t, t, t, num_items + 1, num_items, num_items * num_blocks, num_items + 1, t, t, head_rows]
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
            head_rows,
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
        let sample = Sample {
            params: Arc::new(SamplingParams::default()),
            position: 8,
            num_generated: 1,
            num_drafts: 1,
            history: None,
            mask: None,
            may_be_deferred: false,
        };
        let chunk = BatchItem {
            id: SequenceId(1),
            tokens: vec![10, 11, 12, 13],
            context_len: 2,
            blocks: blocks(&[4, 0]),
            images: vec![ImageRows { first_token: 1, first_row: 3, len: 2, rows: blocks(&[2, 6]) }],
            prompt: None,
            sample: None,
        };
        let decode = BatchItem {
            id: SequenceId(2),
            tokens: vec![20, 21],
            context_len: 7,
            blocks: blocks(&[9, 1, 3]),
            images: Vec::new(),
            prompt: None,
            sample: Some(sample),
        };
        let batch = Batch { encodes: Vec::new(), items: vec![chunk, decode] };
        let mut input = ModelInput::default();
        for _ in 0..2 {
            input.pack(&batch, BlockSizes { tokens: 3, image_rows: 4 });
        }
        assert_eq!(input.tokens, [10, 11, 12, 13, 20, 21]);
        assert_eq!(input.positions, [2, 3, 4, 5, 7, 8]);
        assert_eq!(input.slots, [14, 0, 1, 2, 10, 11]);
        assert_eq!(input.cu_seqlens, [0, 4, 6]);
        assert_eq!(input.context_lens, [2, 7]);
        assert_eq!(input.block_tables, [4, 0, 9, 1, 3]);
        assert_eq!(input.cu_blocks, [0, 2, 5]);
        assert_eq!(input.sample_rows, [4, 5]);
        assert_eq!(input.image_rows, [11, 24]);
        assert_eq!(input.image_tokens, [1, 2]);
    }

    #[test]
    fn padding_writes_nowhere() {
        let item = |context_len, blocks: &[u32]| BatchItem {
            id: SequenceId(1),
            tokens: vec![9],
            context_len,
            blocks: blocks.iter().map(|&id| BlockId(id)).collect(),
            images: Vec::new(),
            prompt: None,
            sample: None,
        };
        let batch = Batch { encodes: Vec::new(), items: vec![item(4, &[2, 1]), item(0, &[3])] };
        let mut input = ModelInput::default();
        input.pack(&batch, BlockSizes { tokens: 3, image_rows: 1 });
        input.pad(4);
        assert_eq!(input.tokens, [9, 9, 0, 0]);
        assert_eq!(input.slots, [4, 9, NOWHERE, NOWHERE]);
        assert_eq!(input.cu_seqlens, [0, 1, 2, 3, 4]);
        assert_eq!(input.context_lens, [4, 0, 0, 0]);
        assert_eq!(input.block_tables, [2, 1, 3, 0, 0]);
        assert_eq!(input.cu_blocks, [0, 2, 3, 4, 5]);
    }
}
