//! Prefixes on their way back from the second tier: who waits for them, and what becomes of them.
//!
//! ```text
//! step n: stores b → h · rows · loads h → b' beside the rows, for a sequence that was admitted and has no rows yet
//!         └─ before anything of step n is written        └─ when StepOutput::num_loaded says so: b' is published, its sequence goes on
//! ```
//! Nobody waits for a load but its sequence, which holds all its blocks meanwhile and is nobody's prefix there yet. Loads are done in the order
//! in which they were asked for. A place of the host is pinned until what is loaded from it has landed, so no store overwrites it.
//!
//! A sequence that is preempted, or whose client goes, gives its blocks back while they are being written. The next step says that its rows
//! wait for all loads so far (`Batch::waits_for_loads`), so that nobody's keys are overwritten by a copy that comes late.

use crate::block_pool::TakenBlocks;
use crate::running::{LoadId, Loading, Rank};
use crate::{BlockLoad, Scheduler};

impl Scheduler {
    /// Has what a sequence takes from the host copied, which waits for it then; `None`: it takes nothing from there.
    pub(crate) fn load(&mut self, rank: Rank, blocks: &TakenBlocks) -> Option<LoadId> {
        if blocks.loads.is_empty() {
            return None;
        }
        let id = LoadId(self.num_loads);
        self.num_loads += 1;
        let places = blocks.loads.iter().map(|&(index, copy)| (index, copy.host)).collect();
        self.loading.push_back(Loading { id, rank, places });
        let copies = blocks.loads.iter().map(|&(_, copy)| copy).collect();
        self.asked_loads.push(BlockLoad { id: rank.id, copies });
        Some(id)
    }

    /// The oldest so many loads are done.
    pub(crate) fn landed(&mut self, num_loaded: usize) {
        assert!(num_loaded <= self.loading.len(), "{num_loaded} loads are done of {}", self.loading.len());
        for Loading { id, rank, places } in self.loading.drain(..num_loaded).collect::<Vec<_>>() {
            let running = self.running.get_mut(&rank).filter(|running| running.loading == Some(id));
            // The head of a prefix was used last: it is what most others share.
            let places = places.into_iter().rev();
            let Some(running) = running else {
                places.for_each(|(_, host)| self.pool.unpin(host));
                continue;
            };
            running.loading = None;
            let digests = running.job.chain.digests();
            for (index, host) in places {
                if self.pool.landed(host, &digests[index]) {
                    let range = index..index + 1;
                    self.pool.publish(&running.table.blocks()[range.clone()], &digests[range]);
                }
            }
            running.published = running.computed / self.config.block_size;
        }
    }
}
