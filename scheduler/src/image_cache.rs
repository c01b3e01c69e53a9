//! Embeddings of pictures on the device: which rows each one has, who still needs them, and what may be encoded in this step.
//!
//! ```text
//!   acquire ─▶ known: pin it │ unknown: room made by dropping the least recently used unpinned ones, patches taken from the
//!              step's budget, encoded in this step, pinned        release ─▶ unpinned, stays until its room is needed
//! ```
//! Where pictures are encoded beside the steps, one that is under way is pinned by that alone, is not ready to be read, and goes on
//! taking its patches from the budget, until it has landed.

use crate::block_pool::BlockId;
use crate::{Digest, ImageEncode, ImageInput, SchedulerConfig};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

#[derive(Debug)]
struct Embedding {
    rows: Vec<BlockId>,
    num_tokens: usize,
    /// Spans of running sequences that have begun to read it and have not finished.
    num_pins: usize,
    /// When the last pin was taken off, counted in such events.
    unpinned_at: u64,
}

#[derive(Debug)]
pub struct ImageCache {
    rows_per_block: usize,
    num_blocks: usize,
    max_encode_patches: usize,
    encode_ahead: bool,
    free: BTreeSet<BlockId>,
    embeddings: BTreeMap<Digest, Embedding>,
    /// What nobody pins, least recently used first.
    unpinned: BTreeMap<u64, Digest>,
    num_unpins: u64,
    patches_left: usize,
    encodes: Vec<ImageEncode>,
    /// Pictures that are being encoded beside the steps, and their patches.
    under_way: BTreeMap<Digest, usize>,
}

/// How a picture came to be on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acquired {
    Cached,
    /// Will be encoded in this step.
    Encoded,
}

impl ImageCache {
    pub fn new(config: &SchedulerConfig) -> Self {
        let SchedulerConfig { num_image_blocks: num_blocks, max_encode_patches, encode_ahead, .. } = *config;
        let ids = 0..u32::try_from(num_blocks).expect("blocks are numbered with 32 bits");
        Self {
            rows_per_block: config.image_rows_per_block,
            num_blocks,
            max_encode_patches,
            encode_ahead,
            free: ids.map(BlockId).collect(),
            embeddings: BTreeMap::new(),
            unpinned: BTreeMap::new(),
            num_unpins: 0,
            patches_left: max_encode_patches,
            encodes: Vec::new(),
            under_way: BTreeMap::new(),
        }
    }

    /// Blocks that hold an embedding, needed now or not.
    pub fn num_used(&self) -> usize {
        self.num_blocks - self.free.len()
    }

    /// Renews the budget. What was to be encoded must have been taken.
    pub fn begin_step(&mut self) {
        self.patches_left = self.max_encode_patches - self.under_way.values().sum::<usize>();
        self.encodes.clear();
    }

    /// The pictures to encode in this step, in the order in which they were acquired.
    pub fn take_encodes(&mut self) -> Vec<ImageEncode> {
        std::mem::take(&mut self.encodes)
    }

    /// Pins the embedding of `image`, encoding it in this step if it is not there. `None`, and nothing changed, when the step's
    /// budget or the room that is not pinned does not suffice.
    pub fn acquire(&mut self, image: &Arc<ImageInput>) -> Option<Acquired> {
        if let Some(embedding) = self.embeddings.get_mut(&image.digest) {
            assert_eq!(embedding.num_tokens, image.num_tokens, "one digest, two pictures");
            if embedding.num_pins == 0 {
                self.unpinned.remove(&embedding.unpinned_at);
            }
            embedding.num_pins += 1;
            return Some(Acquired::Cached);
        }
        if image.num_patches() > self.patches_left {
            return None;
        }
        let rows = self.take_rows(image.num_tokens.div_ceil(self.rows_per_block))?;
        self.patches_left -= image.num_patches();
        let ahead = self.encode_ahead;
        self.encodes.push(ImageEncode { image: image.clone(), rows: rows.clone(), ahead });
        if ahead {
            self.under_way.insert(image.digest, image.num_patches());
        }
        let num_pins = 1 + usize::from(ahead);
        let embedding = Embedding { rows, num_tokens: image.num_tokens, num_pins, unpinned_at: 0 };
        self.embeddings.insert(image.digest, embedding);
        Some(Acquired::Encoded)
    }

    /// The rows of a picture that was encoded ahead are there.
    pub fn landed(&mut self, digest: &Digest) {
        assert!(self.under_way.remove(digest).is_some(), "a picture that is not being encoded has landed");
        self.release(digest);
    }

    /// Whether a pinned picture's rows can be read in this step.
    pub fn is_ready(&self, digest: &Digest) -> bool {
        !self.under_way.contains_key(digest)
    }

    /// Whether there is something to wait for in a step without items.
    pub fn is_encoding(&self) -> bool {
        !self.under_way.is_empty()
    }

    /// Takes one pin off.
    pub fn release(&mut self, digest: &Digest) {
        let embedding = self.embeddings.get_mut(digest).expect("a pinned picture is in the cache");
        assert!(embedding.num_pins > 0, "unpinned twice");
        embedding.num_pins -= 1;
        if embedding.num_pins == 0 {
            self.num_unpins += 1;
            embedding.unpinned_at = self.num_unpins;
            self.unpinned.insert(self.num_unpins, *digest);
        }
    }

    /// What this picture's embedding holds cannot be trusted: it is encoded again for the next one who asks. One that is pinned
    /// stays with those who read it.
    pub fn withdraw(&mut self, digest: &Digest) {
        if let Some(embedding) = self.embeddings.get(digest)
            && embedding.num_pins == 0
        {
            self.unpinned.remove(&embedding.unpinned_at);
            let embedding = self.embeddings.remove(digest).expect("found above");
            self.free.extend(embedding.rows);
        }
    }

    /// Where a pinned picture's rows are.
    pub fn rows(&self, digest: &Digest) -> &[BlockId] {
        let embedding = &self.embeddings[digest];
        assert!(embedding.num_pins > 0, "rows of a picture that may go");
        assert!(self.is_ready(digest), "rows of a picture that are not there yet");
        &embedding.rows
    }

    /// Asserts that the pins are exactly `pinned` and one for each picture under way, and that every block is free or in one embedding.
    pub fn check<'a>(&'a self, pinned: impl Iterator<Item = &'a Digest>) {
        let mut pins = BTreeMap::new();
        for digest in pinned.chain(self.under_way.keys()) {
            *pins.entry(*digest).or_insert(0) += 1;
        }
        let mut owned = self.free.clone();
        for (digest, embedding) in &self.embeddings {
            assert_eq!(embedding.num_pins, pins.remove(digest).unwrap_or(0), "pins of {digest:?}");
            let listed = self.unpinned.get(&embedding.unpinned_at) == Some(digest);
            assert_eq!(listed, embedding.num_pins == 0, "whether {digest:?} may go");
            for &id in &embedding.rows {
                assert!(owned.insert(id), "image block {id:?} has two owners");
            }
        }
        assert!(pins.is_empty(), "pinned and not in the cache: {pins:?}");
        assert_eq!(owned.len(), self.num_blocks, "image blocks lost");
        let num_unpinned = self.embeddings.values().filter(|embedding| embedding.num_pins == 0).count();
        assert_eq!(self.unpinned.len(), num_unpinned, "unpinned entries without an embedding");
    }

    /// `num` blocks, or none of them and nothing dropped.
    fn take_rows(&mut self, num: usize) -> Option<Vec<BlockId>> {
        let unpinned = self.unpinned.values().map(|digest| self.embeddings[digest].rows.len()).sum::<usize>();
        if num > self.free.len() + unpinned {
            return None;
        }
        while num > self.free.len() {
            let (_, digest) = self.unpinned.pop_first().expect("counted above");
            let embedding = self.embeddings.remove(&digest).expect("listed above");
            self.free.extend(embedding.rows);
        }
        Some((0..num).map(|_| self.free.pop_first().expect("counted above")).collect())
    }
}
