//! What comes into memory beside the rows of a step: pictures that are encoded, blocks that are copied to the second tier and back.

use super::{Shadow, Slot};
use crate::rng::chain;
use crate::truth::short;
use scheduler::{Batch, BlockCopy, BlockId, Digest};
use std::collections::BTreeSet;

/// A picture that is encoded beside the steps: until it lands its rows show nothing.
#[derive(Debug)]
pub(super) struct Flight {
    digest: Digest,
    /// Of the image cache, for each of the picture's rows.
    rows: Vec<usize>,
    patches: usize,
    steps_left: u64,
}

/// Copies from the second tier for one sequence: their blocks hold nothing until these have arrived.
#[derive(Debug)]
pub(super) struct Load {
    pub copies: Vec<BlockCopy>,
    /// What the places held when the copies were begun, behind the step before theirs; `None`: they are not yet.
    pub contents: Option<Vec<Vec<Option<Slot>>>>,
    pub has_arrived: bool,
    pub steps_left: u64,
}

impl Shadow {
    pub(super) fn encode(&mut self, batch: &Batch) {
        let size = self.config.image_rows_per_block;
        let mut written = BTreeSet::new();
        let mut patches = 0;
        for encode in &batch.encodes {
            let image = &encode.image;
            assert_eq!(encode.rows.len(), image.num_tokens.div_ceil(size), "image blocks for the rows");
            assert_ne!(self.last_encoded, Some(short(&image.digest)), "a picture was encoded twice");
            self.last_encoded = Some(short(&image.digest));
            assert_eq!(encode.ahead, self.config.encode_ahead, "who waits for a picture");
            patches += image.num_patches();
            let rows: Vec<_> = (0..image.num_tokens)
                .map(|row| encode.rows[row / size].0 as usize * size + row % size)
                .collect();
            for (row, &index) in rows.iter().enumerate() {
                assert!(written.insert(index), "two pictures in one row in one step");
                self.image_rows[index] = (!encode.ahead).then_some((short(&image.digest), row));
            }
            if encode.ahead {
                let steps_left = chain(short(&image.digest), self.now_us) % 4;
                self.patches_under_way += image.num_patches();
                self.under_way.push_back(Flight {
                    digest: image.digest,
                    patches: image.num_patches(),
                    rows,
                    steps_left,
                });
            }
        }
        let patches = if self.config.encode_ahead { self.patches_under_way } else { patches };
        assert!(patches <= self.config.max_encode_patches, "more patches than may be encoded at a time");
    }

    pub(super) fn block(&self, id: BlockId) -> &[Option<Slot>] {
        &self.slots[id.0 as usize * self.config.block_size..][..self.config.block_size]
    }

    /// Behind the step before: what was to be stored may have been copied since the step was begun.
    pub(super) fn store(&mut self, batch: &Batch) {
        let early = self.stored_early.pop_front().expect("it was begun");
        let places: BTreeSet<_> = batch.stores.iter().map(|copy| copy.host).collect();
        assert_eq!(places.len(), batch.stores.len(), "a place of the host has two blocks in one step");
        for (copy, early) in batch.stores.iter().zip(early) {
            assert_eq!(self.block(copy.block), early, "a block is stored that a step still writes");
            assert!(early.iter().all(Option::is_some), "a block is stored that is not full");
            self.host[copy.host.0 as usize] = early;
        }
    }

    /// Begins the loads of a step. Their blocks are nobody's to read from here on.
    pub(super) fn begin_loads(&mut self, batch: &Batch) {
        let size = self.config.block_size;
        let is_new = |load: &&mut Load| load.contents.is_none();
        for load in self.loads.iter_mut().filter(is_new).take(batch.loads.len()) {
            let contents = load.copies.iter().map(|copy| self.host[copy.host.0 as usize].clone()).collect();
            load.contents = Some(contents);
            for copy in &load.copies {
                self.slots[copy.block.0 as usize * size..][..size].fill(None);
            }
        }
    }

    /// The oldest `num` loads arrive, if they have not yet.
    pub(super) fn arrive(&mut self, num: usize) {
        let size = self.config.block_size;
        for load in self.loads.iter_mut().take(num).filter(|load| !load.has_arrived) {
            load.has_arrived = true;
            let contents = load.contents.as_ref().expect("begun before");
            for (copy, content) in load.copies.iter().zip(contents) {
                let now = &self.host[copy.host.0 as usize];
                assert_eq!(now, content, "a place of the host is overwritten while it is being read");
                self.slots[copy.block.0 as usize * size..][..size].copy_from_slice(content);
            }
        }
    }

    /// How many more loads are there after this step; one at least where nothing else was done.
    pub(super) fn land_loads(&mut self, is_waiting: bool) -> usize {
        let begun = self.loads.iter().take_while(|load| load.contents.is_some());
        let done = begun.take_while(|load| load.steps_left == 0 || load.has_arrived).count();
        let num_loaded = done.max(usize::from(is_waiting));
        self.arrive(num_loaded);
        self.loads.drain(..num_loaded);
        self.loads.iter_mut().for_each(|load| load.steps_left = load.steps_left.saturating_sub(1));
        num_loaded
    }

    /// The pictures that are there after this step, in the order in which they were begun; one at least where nothing else was done.
    pub(super) fn land(&mut self, is_waiting: bool) -> Vec<Digest> {
        let mut landed = Vec::new();
        while let Some(flight) = self.under_way.front()
            && (flight.steps_left == 0 || (is_waiting && landed.is_empty()))
        {
            let Flight { digest, rows, patches, .. } = self.under_way.pop_front().expect("looked at");
            for (row, index) in rows.into_iter().enumerate() {
                assert_eq!(self.image_rows[index], None, "rows of a picture under way were given away");
                self.image_rows[index] = Some((short(&digest), row));
            }
            self.patches_under_way -= patches;
            landed.push(digest);
        }
        self.under_way.iter_mut().for_each(|flight| flight.steps_left = flight.steps_left.saturating_sub(1));
        assert!(!is_waiting || !landed.is_empty(), "a step without progress");
        landed
    }
}
