//! Who owns which block of key-value memory, and which full blocks can be shared.
//!
//! ```text
//!  free (oldest first)  ── grow ──▶  referenced by 1 table  ── share_prefix ──▶  by n tables
//!        ▲  │ a free block keeps its digest, and so can be found again,                │
//!        │  └────────── share_prefix ──▶  until grow hands it to somebody else         │
//!        └──────────────────────────── release: the last reference ────────────────────┘
//! ```
//! Where there is a second tier ([`crate::HostBlockId`]), what a block held is copied there when it is handed to somebody else, and copied back
//! into another block for whoever asks for it ([`BlockPool::take`]).

use crate::Digest;
use crate::host_tier::{HostBlockId, HostTier, Stored};
use std::collections::BTreeSet;
use std::collections::btree_map::{BTreeMap, Entry};
use std::ops::Deref;
use std::sync::Arc;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub u32);

/// A block of the device and a place of the host, one of which gets what the other holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockCopy {
    pub block: BlockId,
    pub host: HostBlockId,
}

/// The blocks of one sequence, in order. Must be given back with [`BlockPool::release`].
#[derive(Debug, Default)]
pub struct BlockTable {
    blocks: Arc<Vec<BlockId>>,
}

impl BlockTable {
    pub fn blocks(&self) -> &[BlockId] {
        &self.blocks
    }

    pub fn num_blocks(&self) -> usize {
        self.blocks.len()
    }

    /// The first `len` of its blocks, as they are now.
    pub fn lend(&self, len: usize) -> BlockList {
        assert!(len <= self.blocks.len(), "the first {len} of {} blocks", self.blocks.len());
        BlockList { blocks: self.blocks.clone(), len }
    }

    /// To be changed: a copy where a list shares them, which keeps what it has.
    fn blocks_mut(&mut self) -> &mut Vec<BlockId> {
        Arc::make_mut(&mut self.blocks)
    }
}

/// Blocks of a sequence, in order, that a step reads: shared with the sequence's table, so that a step costs no copy of it. The table
/// changes with one block in many tokens, and makes a copy then if a list is still there.
#[derive(Debug, Clone)]
pub struct BlockList {
    blocks: Arc<Vec<BlockId>>,
    len: usize,
}

impl From<Vec<BlockId>> for BlockList {
    fn from(blocks: Vec<BlockId>) -> Self {
        Self { len: blocks.len(), blocks: Arc::new(blocks) }
    }
}

impl Deref for BlockList {
    type Target = [BlockId];

    fn deref(&self) -> &[BlockId] {
        &self.blocks[..self.len]
    }
}

impl<'a> IntoIterator for &'a BlockList {
    type Item = &'a BlockId;
    type IntoIter = std::slice::Iter<'a, BlockId>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl Drop for BlockTable {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert!(self.blocks.is_empty(), "block table dropped without release");
        }
    }
}

#[derive(Debug, Clone, Default)]
struct Block {
    references: u32,
    /// What it holds, while others may find it.
    digest: Option<Digest>,
    /// When it became free, counted in releases.
    freed_at: u64,
}

/// Blocks for all tokens of a sequence.
#[derive(Debug)]
pub struct TakenBlocks {
    pub table: BlockTable,
    /// So many of them, from the first on, hold what the sequence would compute, or will when `loads` are done.
    pub num_shared: usize,
    /// Which of the shared ones are to be copied from the host, by their place in the table; the host's are pinned.
    pub loads: Vec<(usize, BlockCopy)>,
}

/// Where the content of a block is.
enum Tier {
    Device(BlockId),
    Host(HostBlockId),
}

#[derive(Debug)]
pub struct BlockPool {
    block_size: usize,
    blocks: Vec<Block>,
    /// Blocks without a reference, least recently freed first. They keep their content until they are handed out.
    free: BTreeSet<(u64, BlockId)>,
    by_digest: BTreeMap<Digest, BlockId>,
    num_releases: u64,
    host: HostTier,
    /// Contents of blocks that were handed out, to be copied before the step in which they are written; the host's places are pinned.
    stores: Vec<BlockCopy>,
    /// Contents that were lost since this was asked, as every place of the host was pinned.
    num_lost: usize,
}

impl BlockPool {
    pub fn new(num_blocks: usize, block_size: usize) -> Self {
        assert!(block_size > 0, "block_size");
        let ids = 0..u32::try_from(num_blocks).expect("blocks are numbered with 32 bits");
        Self {
            block_size,
            blocks: vec![Block::default(); num_blocks],
            free: ids.map(|i| (0, BlockId(i))).collect(),
            by_digest: BTreeMap::new(),
            num_releases: 0,
            host: HostTier::default(),
            stores: Vec::new(),
            num_lost: 0,
        }
    }

    /// The same pool, with a second tier of so many places; 0: none.
    pub fn with_host_blocks(self, num_host_blocks: usize) -> Self {
        Self { host: HostTier::new(num_host_blocks), ..self }
    }

    /// Places of the host that hold a content.
    pub fn num_host_used(&self) -> usize {
        self.host.num_used()
    }

    pub fn num_free(&self) -> usize {
        self.free.len()
    }

    pub fn num_used(&self) -> usize {
        self.blocks.len() - self.free.len()
    }

    /// Extends `table` to hold `num_tokens` tokens: all the blocks it needs, or none and false.
    pub fn grow(&mut self, table: &mut BlockTable, num_tokens: usize) -> bool {
        self.grow_leaving(table, num_tokens, 0)
    }

    /// As [`BlockPool::grow`], but only if `num_spare` blocks stay free. Handing a block out destroys what it held, so this is
    /// not the same as growing and giving back.
    pub fn grow_leaving(&mut self, table: &mut BlockTable, num_tokens: usize, num_spare: usize) -> bool {
        let needed = num_tokens.div_ceil(self.block_size).saturating_sub(table.blocks.len());
        if needed + num_spare > self.free.len() {
            return false;
        }
        for _ in 0..needed {
            let id = self.hand_out();
            table.blocks_mut().push(id);
        }
        true
    }

    /// The block that was free for longest. What it held is copied to the host, if there is room.
    fn hand_out(&mut self) -> BlockId {
        let (_, id) = self.free.pop_first().expect("counted before");
        let content = self.forget(id);
        let block = &mut self.blocks[id.0 as usize];
        assert_eq!(block.references, 0, "a free block has an owner");
        block.references = 1;
        if let Some(digest) = content.filter(|_| self.host.has_places()) {
            self.store(id, digest);
        }
        id
    }

    /// Has the host keep what a block held. Where it has no other place, one that was found for this step already is given up: the heads of
    /// prefixes come last.
    fn store(&mut self, block: BlockId, digest: Digest) {
        let mut stored = self.host.store(digest);
        if stored == Stored::Nowhere {
            self.num_lost += 1;
            let given_up = self.stores.iter().position(|copy| self.host.num_pins(copy.host) == 1);
            let Some(index) = given_up else { return };
            self.host.unpin(self.stores.remove(index).host);
            stored = self.host.store(digest);
        }
        match stored {
            Stored::To(host) => self.stores.push(BlockCopy { block, host }),
            Stored::Before => {}
            Stored::Nowhere => unreachable!("a place was just given up"),
        }
    }

    /// What is to be copied to the host before anything of the step that was made is written, or copied from the host; and how many contents
    /// found no place there.
    pub fn take_stores(&mut self) -> (Vec<BlockCopy>, usize) {
        let stores = std::mem::take(&mut self.stores);
        stores.iter().for_each(|copy| self.host.unpin(copy.host));
        (stores, std::mem::take(&mut self.num_lost))
    }

    /// Blocks for `num_tokens` tokens, of which `num_spare` more stay free, or none. The first are those that hold the contents of `digests`, in
    /// either tier, as far as these are found.
    pub fn take(&mut self, digests: &[Digest], num_tokens: usize, num_spare: usize) -> Option<TakenBlocks> {
        let found: Vec<Tier> = digests.iter().map_while(|digest| self.find(digest)).collect();
        // What was found is nobody else's now: nothing below hands it out.
        let num_found = found.iter().filter(|tier| matches!(tier, Tier::Device(_))).count();
        let num_blocks = num_tokens.div_ceil(self.block_size);
        let fits = num_blocks - num_found + num_spare <= self.free.len();
        let (mut table, mut loads) = (BlockTable::default(), Vec::new());
        for tier in &found {
            let block = match *tier {
                Tier::Device(block) => block,
                Tier::Host(host) if fits => {
                    let block = self.hand_out();
                    loads.push((table.num_blocks(), BlockCopy { block, host }));
                    block
                }
                Tier::Host(host) => {
                    self.host.unpin(host);
                    continue;
                }
            };
            table.blocks_mut().push(block);
        }
        if !fits {
            self.release(table);
            return None;
        }
        assert!(self.grow_leaving(&mut table, num_tokens, num_spare), "counted above");
        Some(TakenBlocks { table, num_shared: found.len(), loads })
    }

    fn find(&mut self, digest: &Digest) -> Option<Tier> {
        let on_device = self.share(digest).map(Tier::Device);
        on_device.or_else(|| self.host.pin(digest).map(Tier::Host))
    }

    /// A block of this content has been loaded; false: what it holds is not to be trusted any more.
    pub fn landed(&mut self, host: HostBlockId, digest: &Digest) -> bool {
        let is_sound = self.host.holds(host, digest);
        self.host.unpin(host);
        is_sound
    }

    /// A copy from this place of the host is done that was for nobody.
    pub fn unpin(&mut self, host: HostBlockId) {
        self.host.unpin(host);
    }

    /// What others may find in a block.
    pub fn content(&self, id: BlockId) -> Option<&Digest> {
        self.blocks[id.0 as usize].digest.as_ref()
    }

    /// The longest run of blocks in memory that hold the contents of `digests`, from the first one on.
    pub fn share_prefix(&mut self, digests: &[Digest]) -> BlockTable {
        let mut table = BlockTable::default();
        for digest in digests {
            let Some(id) = self.share(digest) else { break };
            table.blocks_mut().push(id);
        }
        table
    }

    /// One more reference to the block that holds this content.
    fn share(&mut self, digest: &Digest) -> Option<BlockId> {
        let &id = self.by_digest.get(digest)?;
        let block = &mut self.blocks[id.0 as usize];
        if block.references == 0 {
            self.free.remove(&(block.freed_at, id));
        }
        block.references += 1;
        Some(id)
    }

    /// Makes `blocks`, all computed, findable under `digests`. Where a content is already known under another block, that one
    /// stays, and this one remains private.
    pub fn publish(&mut self, blocks: &[BlockId], digests: &[Digest]) {
        assert_eq!(blocks.len(), digests.len(), "one digest a block");
        for (&id, &digest) in blocks.iter().zip(digests) {
            let block = &mut self.blocks[id.0 as usize];
            assert!(block.references > 0, "published without an owner");
            if block.digest.is_none()
                && let Entry::Vacant(entry) = self.by_digest.entry(digest)
            {
                block.digest = Some(digest);
                entry.insert(id);
            }
        }
    }

    /// Nobody shall find these blocks again: what they hold cannot be trusted. Those who have them keep them. Where there is a second tier, `digests`
    /// are what they may hold: copies of it went to places and to blocks that are not in the table.
    pub fn withdraw(&mut self, table: &BlockTable, digests: &[Digest]) {
        for &id in table.blocks() {
            self.forget(id);
        }
        let copied = if self.host.has_places() { digests } else { &[] };
        for digest in copied {
            if let Some(&id) = self.by_digest.get(digest) {
                self.forget(id);
            }
            self.host.withdraw(digest);
        }
    }

    /// Gives back the blocks beyond `num_tokens` tokens, which nobody else has and which hold nothing that is worth finding: they are
    /// the next ones handed out, so that no others lose what they hold.
    pub fn shrink(&mut self, table: &mut BlockTable, num_tokens: usize) {
        let num_blocks = num_tokens.div_ceil(self.block_size).min(table.num_blocks());
        if num_blocks == table.num_blocks() {
            return;
        }
        for id in table.blocks_mut().drain(num_blocks..).rev() {
            let block = &mut self.blocks[id.0 as usize];
            assert_eq!(block.references, 1, "only the owner's blocks are cut off");
            assert!(block.digest.is_none(), "a block cut off is findable");
            block.references = 0;
            block.freed_at = 0;
            self.free.insert((0, id));
        }
    }

    /// Gives a table's blocks back. The tail is freed first, so it is handed out first: the head of a prompt is what others may
    /// share.
    pub fn release(&mut self, mut table: BlockTable) {
        for &id in std::mem::take(&mut table.blocks).iter().rev() {
            let block = &mut self.blocks[id.0 as usize];
            assert!(block.references > 0, "released twice");
            block.references -= 1;
            if block.references == 0 {
                self.num_releases += 1;
                block.freed_at = self.num_releases;
                self.free.insert((block.freed_at, id));
            }
        }
    }

    /// Asserts that references are exactly what `tables` hold, that free is what nobody holds, and that the index is sound.
    pub fn check<'a>(&self, tables: impl Iterator<Item = &'a BlockTable>) {
        self.check_loading(tables, std::iter::empty());
    }

    /// As [`BlockPool::check`], where blocks are loaded from `loading`.
    pub fn check_loading<'a>(
        &self,
        tables: impl Iterator<Item = &'a BlockTable>,
        loading: impl Iterator<Item = HostBlockId>,
    ) {
        self.host.check(loading.chain(self.stores.iter().map(|copy| copy.host)));
        let mut references = vec![0; self.blocks.len()];
        for id in tables.flat_map(|table| table.blocks()) {
            references[id.0 as usize] += 1;
        }
        let mut num_published = 0;
        for (index, block) in self.blocks.iter().enumerate() {
            let id = BlockId(index as u32);
            assert_eq!(block.references, references[index], "references of block {index}");
            let is_free = self.free.contains(&(block.freed_at, id));
            assert_eq!(is_free, block.references == 0, "whether block {index} is free");
            if let Some(digest) = block.digest {
                assert_eq!(self.by_digest.get(&digest), Some(&id), "index entry of block {index}");
                num_published += 1;
            }
        }
        assert_eq!(self.by_digest.len(), num_published, "index entries without a block");
        assert_eq!(
            self.free.len(),
            references.iter().filter(|&&n| n == 0).count(),
            "free entries without a block"
        );
    }

    /// What it held, and others do not find any more.
    fn forget(&mut self, id: BlockId) -> Option<Digest> {
        let digest = self.blocks[id.0 as usize].digest.take()?;
        self.by_digest.remove(&digest);
        Some(digest)
    }
}
