//! Takes sequences in, gives steps out, takes results in. How a step is chosen is in `plan.rs`.

use crate::block_pool::BlockPool;
use crate::image_cache::ImageCache;
use crate::plan::Blocked;
use crate::running::{Job, Rank, Running, finish_reason};
use crate::{
    Batch, BatchItem, DraftShare, Event, Failure, FinishReason, Occupancy, PromptResult, Reject, Sample,
    Sampled, SchedulerConfig, Sequence, SequenceId, Step, StepOutput, StepStats, TokenId,
};
use std::collections::{BTreeMap, VecDeque};

/// What became of an item.
struct ItemResults<I> {
    prompt: Option<PromptResult>,
    /// Its only row that samples has no token yet.
    is_deferred: bool,
    /// Of each row that sampled.
    sampled: Option<I>,
}

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
    /// Turns given to long prompts so far.
    pub(crate) num_turns: u64,
    /// What the step that is being made or taken in will tell.
    pub(crate) started: Vec<Event>,
    pub(crate) stats: StepStats,
    /// What the steps will tell that were made and are not yet taken in, in their order; at most two.
    pub(crate) in_flight: VecDeque<InFlight>,
}

#[derive(Debug)]
pub(crate) struct InFlight {
    pub started: Vec<Event>,
    pub stats: StepStats,
}

impl Scheduler {
    /// Panics when the configuration does not pass [`SchedulerConfig::check`].
    pub fn new(config: SchedulerConfig) -> Self {
        if let Err(error) = config.check() {
            panic!("{error}");
        }
        Self {
            pool: BlockPool::new(config.num_blocks, config.block_size),
            images: ImageCache::new(&config),
            config,
            waiting: BTreeMap::new(),
            running: BTreeMap::new(),
            priorities: BTreeMap::new(),
            image_queue: VecDeque::new(),
            blocked: None,
            num_turns: 0,
            started: Vec::new(),
            stats: StepStats::default(),
            in_flight: VecDeque::new(),
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

    /// Takes in the results of the oldest step that was made. Items of sequences that ended or were aborted meanwhile are passed over.
    pub fn commit(&mut self, batch: Batch, output: StepOutput) -> Step {
        let InFlight { started, stats } = self.in_flight.pop_front().expect("a step was made");
        let mut events = started;
        self.stats = stats;
        for digest in &output.encoded {
            self.images.landed(digest);
        }
        let (mut prompts, mut sampled) = (output.prompts.into_iter(), output.sampled.into_iter());
        for item in batch.items {
            let prompt = item.prompt.as_ref().map(|_| prompts.next().expect("one result per prompt"));
            let num_rows = item.sample.as_ref().map_or(0, Sample::num_rows);
            assert!(sampled.len() >= num_rows, "one result per row that samples");
            let mut rows = sampled.by_ref().take(num_rows).peekable();
            let is_deferred = matches!(rows.peek(), Some(Sampled::Deferred));
            if let Some(sample) = item.sample.as_ref().filter(|_| is_deferred) {
                self.stats.count_deferred(item.tokens.len(), sample.num_generated);
            }
            if let Some(&priority) = self.priorities.get(&item.id) {
                let sampled = item.sample.is_some().then_some(&mut rows);
                let results = ItemResults { prompt, is_deferred, sampled };
                self.commit_item(Rank { priority, id: item.id }, item, results, &mut events);
            } else if item.placeholder_for.is_some() {
                self.stats.count_dropped();
            }
            // What follows a guess that was wrong.
            rows.for_each(drop);
        }
        let left = prompts.len() + sampled.len();
        assert_eq!(left, 0, "results that nobody asked for");
        let stats = StepStats { occupancy: self.occupancy(), ..std::mem::take(&mut self.stats) };
        Step { events, stats }
    }

    fn commit_item(
        &mut self,
        rank: Rank,
        item: BatchItem,
        results: ItemResults<impl Iterator<Item = Sampled>>,
        events: &mut Vec<Event>,
    ) {
        let running = self.running.get_mut(&rank).expect("an item's sequence is running or was aborted");
        assert_eq!(running.computed, item.context_len, "committed twice");
        let ItemResults { prompt, is_deferred, sampled } = results;
        let drafts = std::mem::take(&mut running.drafts);
        // What was being sampled has come; the step behind has its placeholder by now.
        running.pending = None;
        running.computed = item.end() - drafts.len() - usize::from(is_deferred);
        running.deferrals = if is_deferred { running.deferrals + 1 } else { 0 };
        let told = match (&item.prompt, prompt) {
            (Some(work), Some(result)) => {
                let progress = running.job.prompt.as_mut().expect("it asked for something of its prompt");
                progress.take(rank.id, work, result)
            }
            _ => Ok(None),
        };
        let reason = match (told, sampled) {
            (Err(failure), _) => Some(FinishReason::Failed(failure)),
            (Ok(told), Some(_)) if is_deferred => {
                self.settle(rank);
                events.extend(told);
                None
            }
            (Ok(told), Some(sampled)) => self.commit_rows(rank, &drafts, sampled, told, events),
            (Ok(told), None) => {
                self.settle(rank);
                events.extend(told);
                let running = &self.running[&rank];
                // Nothing is left to compute and nothing was sampled: nothing is to be generated.
                (running.computed == running.len()).then_some(FinishReason::Length)
            }
        };
        if let Some(reason) = reason {
            let preemptions = self.finish(rank, reason);
            events.push(Event::Finished { id: rank.id, reason, preemptions });
        }
    }

    /// Takes rows in, from the first on, while each draws the draft of the next. Each is taken in as if it had been alone in its step, so
    /// nothing of a guess that was wrong is ever published. `told` goes out before the first token.
    fn commit_rows(
        &mut self,
        rank: Rank,
        drafts: &[TokenId],
        sampled: impl Iterator<Item = Sampled>,
        told: Option<Event>,
        events: &mut Vec<Event>,
    ) -> Option<FinishReason> {
        let (mut told, mut num_accepted, mut reason) = (told, 0, None);
        for row in sampled {
            let token = match row {
                Sampled::Token(token) => token,
                Sampled::Deferred => unreachable!("{rank:?}: only a row by itself is deferred"),
                Sampled::Failed(failure) => {
                    reason = Some(FinishReason::Failed(failure));
                    break;
                }
            };
            self.settle(rank);
            events.extend(told.take());
            let running = self.running.get_mut(&rank).expect("settled");
            let is_guessed = drafts.get(num_accepted) == Some(&token.token);
            running.job.sequence.tokens.push(token.token);
            events.push(Event::Token { id: rank.id, token });
            num_accepted += usize::from(is_guessed);
            reason = finish_reason(&mut running.job.sequence);
            if reason.is_some() || !is_guessed {
                break;
            }
            running.computed += 1;
        }
        if !drafts.is_empty() {
            self.judge(rank, DraftShare { id: rank.id, num_drafted: drafts.len(), num_accepted });
        }
        reason
    }

    /// Gives back what a draft held, as far as its tokens did not come.
    fn judge(&mut self, rank: Rank, draft: DraftShare) {
        let running = self.running.get_mut(&rank).expect("it is committed");
        let len = running.len();
        self.pool.shrink(&mut running.table, len);
        let drafter = running.job.drafter.as_mut().expect("it drafted");
        drafter.judge(draft.num_drafted, draft.num_accepted);
        self.stats.drafts.push(draft);
    }

    /// Returns how often it was preempted.
    fn finish(&mut self, rank: Rank, reason: FinishReason) -> usize {
        let is_poisoned = reason == FinishReason::Failed(Failure::NonFiniteLogits);
        if is_poisoned {
            // Its keys and values may be the cause, those of earlier chunks too.
            self.pool.withdraw(&self.running[&rank].table);
        }
        self.priorities.remove(&rank.id);
        let job = self.retire(rank);
        if is_poisoned {
            for span in job.sequence.images() {
                self.images.withdraw(&span.image.digest);
            }
        }
        job.preemptions
    }

    /// Publishes the blocks that became full and lets go of the pictures that were read to their end.
    fn settle(&mut self, rank: Rank) {
        let running = self.running.get_mut(&rank).expect("it is running");
        while let Some(span) = running.pinned().first()
            && span.end() <= running.computed
        {
            self.images.release(&span.image.digest);
            running.images_left += 1;
        }
        running.job.read_for_drafts(running.computed);
        if self.config.enable_prefix_caching {
            running.job.extend_chain(running.computed, &self.config);
            let num_full =
                running.computed.min(running.job.sharable_len(&self.config)) / self.config.block_size;
            let new = running.published..num_full;
            self.pool.publish(&running.table.blocks()[new.clone()], &running.job.chain.digests()[new]);
            running.published = num_full;
        }
    }

    /// Takes everything from a running sequence. The one place where blocks and pins are given back.
    pub(crate) fn retire(&mut self, rank: Rank) -> Job {
        let running = self.running.remove(&rank).expect("only a running sequence retires");
        for span in running.pinned() {
            self.images.release(&span.image.digest);
        }
        self.image_queue.retain(|queued| *queued != rank);
        let Running { job, table, .. } = running;
        self.pool.release(table);
        job
    }

    /// Who runs now, by rank.
    pub fn running_ids(&self) -> impl Iterator<Item = SequenceId> {
        self.running.keys().map(|rank| rank.id)
    }

    pub fn occupancy(&self) -> Occupancy {
        Occupancy {
            running: self.running.len(),
            waiting: self.waiting.len(),
            blocks_used: self.pool.num_used(),
            blocks_total: self.config.num_blocks,
            image_blocks_used: self.images.num_used(),
            image_blocks_total: self.config.num_image_blocks,
        }
    }

    /// Asserts everything that must hold between steps. Cheap enough for every step of a test.
    pub fn check(&self) {
        self.pool.check(self.running.values().map(|running| &running.table));
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
