//! Takes sequences in and lets them go. How a step is chosen is in `plan.rs`, what becomes of its results in `commit.rs`.

use crate::block_pool::BlockPool;
use crate::image_cache::ImageCache;
use crate::running::{Job, Loading, Rank, Running};
use crate::step::InFlight;
use crate::{
    BatchItem, BlockLoad, Event, Occupancy, Reject, SchedulerConfig, Sequence, SequenceId, StepStats,
    TokenMask,
};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

#[derive(Debug)]
pub struct Scheduler {
    pub(crate) config: SchedulerConfig,
    pub(crate) pool: BlockPool,
    pub(crate) images: ImageCache,
    pub(crate) waiting: BTreeMap<Rank, Job>,
    pub(crate) running: BTreeMap<Rank, Running>,
    /// Of all sequences, waiting and running: what makes an id a rank.
    pub(crate) priorities: BTreeMap<SequenceId, i32>,
    /// Running sequences that could not enter a picture, in the order in which that happened.
    pub(crate) image_queue: VecDeque<Rank>,
    pub(crate) blocked: Option<Blocked>,
    /// Loads under way, in the order in which they were asked for, and how many there were so far.
    pub(crate) loading: VecDeque<Loading>,
    pub(crate) num_loads: u64,
    /// Of the step that is being made.
    pub(crate) asked_loads: Vec<BlockLoad>,
    /// Blocks were given back while they were being loaded, and no step was made since.
    pub(crate) has_stray_loads: bool,
    /// Turns given to long prompts so far.
    pub(crate) num_turns: u64,
    /// What the step that is being made or taken in will tell.
    pub(crate) started: Vec<Event>,
    pub(crate) stats: StepStats,
    /// What the steps will tell that were made and are not yet taken in, in their order; at most two.
    pub(crate) in_flight: VecDeque<InFlight>,
    /// Whose last tokens their constraints are taking in, in the order in which these began; some may have been aborted since.
    pub(crate) accepting: Vec<Rank>,
    /// Of these so many have been handed to other threads.
    pub(crate) num_started: usize,
    /// Of steps that were taken in: large, and freed where nobody waits for it.
    pub(crate) spent_masks: Vec<Arc<dyn TokenMask>>,
    /// Empty: memory for the items of a step.
    pub(crate) spare_items: Vec<BatchItem>,
}

/// Who ended the last admission. While no more blocks are free than then, looking again for all its blocks would be for nothing.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Blocked {
    pub rank: Rank,
    pub num_free: usize,
}

impl Blocked {
    pub fn still_holds(&self, rank: Rank, num_free: usize) -> bool {
        self.rank == rank && num_free <= self.num_free
    }
}

impl Scheduler {
    /// Panics when the configuration does not pass [`SchedulerConfig::check`].
    pub fn new(config: SchedulerConfig) -> Self {
        if let Err(error) = config.check() {
            panic!("{error}");
        }
        Self {
            pool: BlockPool::new(config.num_blocks, config.block_size)
                .with_host_blocks(config.num_host_blocks),
            images: ImageCache::new(&config),
            config,
            waiting: BTreeMap::new(),
            running: BTreeMap::new(),
            priorities: BTreeMap::new(),
            image_queue: VecDeque::new(),
            blocked: None,
            loading: VecDeque::new(),
            num_loads: 0,
            asked_loads: Vec::new(),
            has_stray_loads: false,
            num_turns: 0,
            started: Vec::new(),
            stats: StepStats::default(),
            in_flight: VecDeque::new(),
            accepting: Vec::new(),
            num_started: 0,
            spent_masks: Vec::new(),
            spare_items: Vec::new(),
        }
    }

    pub fn is_idle(&self) -> bool {
        self.priorities.is_empty()
    }

    /// Whatever fits alone is certain to finish: the sequence of the lowest rank may take every block.
    pub fn add(&mut self, sequence: Sequence) -> Result<(), Reject> {
        self.reject(&sequence)?;
        let job = Job::new(sequence);
        let rank = job.rank();
        assert!(self.priorities.insert(rank.id, rank.priority).is_none(), "{:?} was added before", rank.id);
        self.waiting.insert(rank, job);
        Ok(())
    }

    fn reject(&self, sequence: &Sequence) -> Result<(), Reject> {
        let (prompt_tokens, max_tokens) = (sequence.prompt_len(), sequence.params.max_tokens);
        let tokens = prompt_tokens.saturating_add(max_tokens);
        let limit = self.config.max_model_len;
        if tokens > limit {
            return Err(Reject::TooLong { prompt_tokens, max_tokens, limit });
        }
        let capacity = self.config.token_capacity();
        if tokens > capacity {
            return Err(Reject::NeverFits { tokens, capacity });
        }
        for span in sequence.images() {
            let (tokens, capacity) = (span.image.num_tokens, self.config.image_capacity());
            if tokens > capacity {
                return Err(Reject::ImageTooLarge { tokens, capacity });
            }
            let (patches, limit) = (span.image.num_patches(), self.config.max_encode_patches);
            if patches > limit {
                return Err(Reject::ImageTooCostly { patches, limit });
            }
        }
        let waiting = self.waiting.len();
        if waiting >= self.config.max_waiting {
            return Err(Reject::QueueFull { waiting });
        }
        Ok(())
    }

    /// Forgets a sequence whose client has gone. False when it is not known: it may have just finished.
    pub fn abort(&mut self, id: SequenceId) -> bool {
        let Some(priority) = self.priorities.remove(&id) else { return false };
        let rank = Rank { priority, id };
        if self.waiting.remove(&rank).is_none() {
            self.retire(rank);
        }
        self.in_flight.iter_mut().for_each(|step| step.started.retain(|event| event.id() != id));
        true
    }

    /// Takes everything from a running sequence. The one place where blocks and pins are given back.
    pub(crate) fn retire(&mut self, rank: Rank) -> Job {
        let running = self.running.remove(&rank).expect("only a running sequence retires");
        for span in running.pinned() {
            self.images.release(&span.image.digest);
        }
        self.image_queue.retain(|queued| *queued != rank);
        let Running { job, table, loading, .. } = running;
        self.has_stray_loads |= loading.is_some();
        self.pool.release(table);
        job
    }

    /// Who runs now, by rank.
    pub fn running_ids(&self) -> impl Iterator<Item = SequenceId> {
        self.running.keys().map(|rank| rank.id)
    }

    pub(crate) fn num_running(&self) -> usize {
        self.running.len()
    }

    pub fn occupancy(&self) -> Occupancy {
        Occupancy {
            running: self.running.len(),
            waiting: self.waiting.len(),
            blocks_used: self.pool.num_used(),
            blocks_total: self.config.num_blocks,
            host_blocks_used: self.pool.num_host_used(),
            host_blocks_total: self.config.num_host_blocks,
            image_blocks_used: self.images.num_used(),
            image_blocks_total: self.config.num_image_blocks,
        }
    }

    /// Asserts everything that must hold between steps. Cheap enough for every step of a test.
    pub fn check(&self) {
        let tables = self.running.values().map(|running| &running.table);
        self.pool.check_loading(tables, self.loading.iter().flat_map(Loading::hosts));
        let pinned = self.running.values().flat_map(|running| running.pinned());
        self.images.check(pinned.map(|span| &span.image.digest));
        assert_eq!(
            self.priorities.len(),
            self.waiting.len() + self.running.len(),
            "a sequence in two places"
        );
        assert!(self.running.len() <= self.config.max_running, "too many are running");
        for (rank, running) in &self.running {
            assert_eq!(self.priorities.get(&rank.id), Some(&rank.priority), "{rank:?}");
            assert!(running.computed < running.len(), "{rank:?} has nothing to compute");
            let num_blocks = running.table.num_blocks();
            let covered = num_blocks * self.config.block_size;
            assert!(running.computed <= covered, "{rank:?} computed beyond its blocks");
            assert!(
                num_blocks <= (running.len() + running.drafts.len()).div_ceil(self.config.block_size),
                "{rank:?} has blocks too many"
            );
            let full = running.computed / self.config.block_size;
            for (index, &id) in running.table.blocks().iter().enumerate() {
                let Some(content) = self.pool.content(id) else { continue };
                assert!(index < full, "{rank:?}: block {index} is findable and not computed");
                assert_eq!(running.job.chain.digests().get(index), Some(content), "{rank:?}: block {index}");
            }
        }
        for rank in &self.image_queue {
            assert!(self.running.contains_key(rank), "{rank:?} waits for a picture and is not running");
        }
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        for (_, running) in std::mem::take(&mut self.running) {
            if std::thread::panicking() {
                continue;
            }
            self.pool.release(running.table);
        }
    }
}
