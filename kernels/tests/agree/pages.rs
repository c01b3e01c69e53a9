//! Caches in pages, for the tests of attention.

use kernels::ops::Ragged;

/// Blocks of all items, dealt out in an order that is not that of positions.
pub struct Pages {
    pub cu_seqlens: Vec<u32>,
    pub context_lens: Vec<u32>,
    pub block_tables: Vec<u32>,
    pub cu_blocks: Vec<u32>,
    pub num_slots: usize,
}

impl Pages {
    pub fn new(items: &[[usize; 2]], block_size: usize) -> Self {
        let blocks: Vec<usize> =
            items.iter().map(|[old, new]| (old + new).div_ceil(block_size) + 1).collect();
        let total: usize = blocks.iter().sum();
        // A step that has no factor in common with the total visits every block once.
        let step = (total / 2..).find(|&step| step > 0 && gcd(step, total) == 1).expect("there is one");
        let running = |lens: Vec<usize>| -> Vec<u32> {
            let mut sum = 0;
            std::iter::once(0)
                .chain(lens.iter().map(|len| {
                    sum += len;
                    sum as u32
                }))
                .collect()
        };
        Self {
            cu_seqlens: running(items.iter().map(|[_, new]| *new).collect()),
            context_lens: items.iter().map(|[old, _]| *old as u32).collect(),
            block_tables: (0..total).map(|i| (i * step % total) as u32).collect(),
            cu_blocks: running(blocks),
            num_slots: total * block_size,
        }
    }

    pub fn ragged(&self, block_size: usize) -> Ragged<'_> {
        Ragged {
            cu_seqlens: (&self.cu_seqlens).into(),
            context_lens: (&self.context_lens).into(),
            block_tables: (&self.block_tables).into(),
            cu_blocks: (&self.cu_blocks).into(),
            block_size,
            selected: None,
        }
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
