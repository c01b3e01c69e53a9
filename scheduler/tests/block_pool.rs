//! Random events against a plain model: lists that are searched from end to end, and no cleverness.

use scheduler::{BlockId, BlockPool, BlockTable, Digest};

struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn range(&mut self, low: usize, high: usize) -> usize {
        low + (self.next() % (high - low + 1) as u64) as usize
    }
}

/// What the pool must do, said plainly.
struct Model {
    block_size: usize,
    /// Each block's references.
    references: Vec<usize>,
    /// Never released, or cut off a table: handed out first, by id.
    blank: Vec<BlockId>,
    /// The others, in the order in which they are handed out.
    free: Vec<BlockId>,
    /// What can be found, and where.
    index: Vec<(Digest, BlockId)>,
}

impl Model {
    fn new(num_blocks: usize, block_size: usize) -> Self {
        let blank = (0..num_blocks as u32).map(BlockId).collect();
        let references = vec![0; num_blocks];
        Self { block_size, references, blank, free: Vec::new(), index: Vec::new() }
    }

    fn num_free(&self) -> usize {
        self.blank.len() + self.free.len()
    }

    fn shrink(&mut self, table: &mut Vec<BlockId>, num_tokens: usize) {
        while !table.is_empty() && (table.len() - 1) * self.block_size >= num_tokens {
            let id = table.pop().unwrap();
            self.references[id.0 as usize] = 0;
            self.blank.push(id);
        }
        self.blank.sort();
    }

    fn grow(&mut self, table: &mut Vec<BlockId>, num_tokens: usize, num_spare: usize) -> bool {
        let mut needed = 0;
        while (table.len() + needed) * self.block_size < num_tokens {
            needed += 1;
        }
        if self.num_free() < needed + num_spare {
            return false;
        }
        for _ in 0..needed {
            let source = if self.blank.is_empty() { &mut self.free } else { &mut self.blank };
            let id = source.remove(0);
            self.references[id.0 as usize] = 1;
            self.index.retain(|entry| entry.1 != id);
            table.push(id);
        }
        true
    }

    fn share(&mut self, digests: &[Digest]) -> Vec<BlockId> {
        let mut table = Vec::new();
        for digest in digests {
            let Some(entry) = self.index.iter().find(|entry| entry.0 == *digest) else { break };
            let id = entry.1;
            self.free.retain(|free| *free != id);
            self.references[id.0 as usize] += 1;
            table.push(id);
        }
        table
    }

    fn publish(&mut self, blocks: &[BlockId], digests: &[Digest]) {
        for (&id, &digest) in blocks.iter().zip(digests) {
            if self.index.iter().all(|entry| entry.0 != digest && entry.1 != id) {
                self.index.push((digest, id));
            }
        }
    }

    fn withdraw(&mut self, table: &[BlockId]) {
        self.index.retain(|entry| !table.contains(&entry.1));
    }

    fn release(&mut self, mut table: Vec<BlockId>) {
        while let Some(id) = table.pop() {
            self.references[id.0 as usize] -= 1;
            if self.references[id.0 as usize] == 0 {
                self.free.push(id);
            }
        }
    }
}

/// A table as the pool has it and as the model has it, and which of a few contents it holds.
struct Held {
    table: BlockTable,
    model: Vec<BlockId>,
    family: u8,
}

/// The digest of a family's block: families are equal in their first two blocks.
fn digest(family: u8, index: usize) -> Digest {
    let mut digest = Digest::default();
    digest.0[0] = index as u8;
    digest.0[1] = if index < 2 { 0 } else { family };
    digest
}

fn day(seed: u64) {
    let mut rng = Rng(seed);
    let (num_blocks, block_size) = (rng.range(1, 12), rng.range(1, 5));
    let mut pool = BlockPool::new(num_blocks, block_size);
    let mut model = Model::new(num_blocks, block_size);
    let mut held: Vec<Held> = Vec::new();
    for _ in 0..300 {
        let choice = if held.is_empty() { 0 } else { rng.range(0, 6) };
        let index = if held.is_empty() { 0 } else { rng.range(0, held.len() - 1) };
        match choice {
            0 => {
                let family = rng.range(0, 2) as u8;
                let digests: Vec<_> = (0..rng.range(0, 8)).map(|block| digest(family, block)).collect();
                let (table, model) = (pool.share_prefix(&digests), model.share(&digests));
                held.push(Held { table, model, family });
            }
            1 | 2 => {
                let Held { table, model: blocks, .. } = &mut held[index];
                let num_tokens = rng.range(0, 8 * block_size);
                let num_spare = if choice == 1 { 0 } else { rng.range(0, 4) };
                let grown = pool.grow_leaving(table, num_tokens, num_spare);
                assert_eq!(grown, model.grow(blocks, num_tokens, num_spare), "seed {seed}");
            }
            3 => {
                let Held { table, model: blocks, family } = &held[index];
                let full = rng.range(0, blocks.len());
                let digests: Vec<_> = (0..full).map(|block| digest(*family, block)).collect();
                pool.publish(&table.blocks()[..full], &digests);
                model.publish(&blocks[..full], &digests);
            }
            4 if rng.range(0, 3) == 0 => {
                pool.withdraw(&held[index].table, &[]);
                model.withdraw(&held[index].model);
            }
            5 => {
                // Blocks for a guess that was wrong, or right in its first token only.
                let Held { table, model: blocks, .. } = &mut held[index];
                let len = (blocks.len() * block_size).saturating_sub(rng.range(0, block_size - 1));
                let guess = rng.range(1, 3 * block_size);
                assert_eq!(pool.grow(table, len + guess), model.grow(blocks, len + guess, 0), "seed {seed}");
                let kept = len + rng.range(0, 1);
                pool.shrink(table, kept);
                model.shrink(blocks, kept);
            }
            _ => {
                let Held { table, model: blocks, .. } = held.swap_remove(index);
                pool.release(table);
                model.release(blocks);
            }
        }
        for Held { table, model, .. } in &held {
            assert_eq!(table.blocks(), model, "seed {seed}");
        }
        assert_eq!(pool.num_free(), model.num_free(), "seed {seed}");
        assert_eq!(pool.num_used(), num_blocks - model.num_free(), "seed {seed}");
        pool.check(held.iter().map(|held| &held.table));
    }
    held.into_iter().for_each(|held| pool.release(held.table));
    assert_eq!(pool.num_used(), 0);
}

#[test]
fn the_pool_does_what_the_plain_model_does() {
    (0..1500).for_each(day);
}

#[test]
fn free_blocks_are_reused_least_recently_freed_first_and_tails_before_heads() {
    let mut pool = BlockPool::new(5, 2);
    let (mut a, mut b) = (BlockTable::default(), BlockTable::default());
    assert!(pool.grow(&mut a, 5));
    assert!(pool.grow(&mut b, 3));
    pool.release(b);
    pool.release(a);
    let mut c = BlockTable::default();
    assert!(pool.grow(&mut c, 10));
    let order: Vec<_> = c.blocks().iter().map(|id| id.0).collect();
    assert_eq!(order, [4, 3, 2, 1, 0]);
    pool.release(c);
}

#[test]
fn blocks_that_are_cut_off_are_reused_before_any_that_hold_something() {
    let mut pool = BlockPool::new(4, 2);
    let (mut cached, mut guessing) = (BlockTable::default(), BlockTable::default());
    assert!(pool.grow(&mut cached, 4));
    pool.publish(cached.blocks(), &[digest(0, 0), digest(0, 1)]);
    pool.release(cached);
    assert!(pool.grow(&mut guessing, 1));
    for _ in 0..9 {
        assert!(pool.grow(&mut guessing, 3));
        pool.shrink(&mut guessing, 1);
        assert_eq!((guessing.num_blocks(), pool.num_free()), (1, 3));
    }
    let found = pool.share_prefix(&[digest(0, 0), digest(0, 1)]);
    assert_eq!(found.num_blocks(), 2, "nine guesses cost the cache nothing");
    pool.release(found);
    pool.release(guessing);
}

#[test]
fn growing_takes_all_or_nothing() {
    let mut pool = BlockPool::new(3, 4);
    let mut table = BlockTable::default();
    assert!(!pool.grow(&mut table, 13));
    assert_eq!((table.num_blocks(), pool.num_free()), (0, 3));
    assert!(!pool.grow_leaving(&mut table, 9, 1));
    assert!(pool.grow(&mut table, 12));
    assert!(pool.grow(&mut table, 7), "it is large enough already");
    assert_eq!(table.num_blocks(), 3);
    pool.release(table);
}

#[test]
#[should_panic(expected = "block table dropped without release")]
fn a_table_must_be_given_back() {
    let mut pool = BlockPool::new(1, 1);
    let mut table = BlockTable::default();
    pool.grow(&mut table, 1);
}
