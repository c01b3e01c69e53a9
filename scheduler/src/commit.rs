//! What becomes of the results of a step: tokens, what was told of prompts, blocks that others may find, and ends.

use crate::block_pool::BlockPool;
use crate::image_cache::ImageCache;
use crate::running::{Outcome, Rank, Running, outcome};
use crate::step::InFlight;
use crate::{
    Batch, BatchItem, DraftShare, Event, Failure, FinishReason, PromptResult, Sample, Sampled, Scheduler,
    SchedulerConfig, SequenceId, Step, StepOutput, StepStats, TokenId,
};

/// What became of an item.
struct ItemResults<I> {
    prompt: Option<PromptResult>,
    /// Its only row that samples has no token yet.
    is_deferred: bool,
    /// Of each row that sampled.
    sampled: Option<I>,
}

/// A running sequence whose results are taken in, and all that this changes besides: looked up once.
struct Taking<'a> {
    id: SequenceId,
    running: &'a mut Running,
    config: &'a SchedulerConfig,
    pool: &'a mut BlockPool,
    images: &'a mut ImageCache,
    stats: &'a mut StepStats,
    events: &'a mut Vec<Event>,
}

impl Scheduler {
    /// Takes in the results of the oldest step that was made. Items of sequences that ended or were aborted meanwhile are passed over.
    pub fn commit(&mut self, batch: Batch, output: StepOutput) -> Step {
        assert!(self.accepting.is_empty(), "tokens of the step before are still being taken in");
        let InFlight { started, stats, ended } = self.in_flight.pop_front().expect("a step was made");
        let mut events = started;
        events.reserve(output.prompts.len() + output.sampled.len());
        self.stats = stats;
        for digest in &output.encoded {
            self.images.landed(digest);
        }
        self.landed(output.num_loaded);
        let (mut prompts, mut sampled) = (output.prompts.into_iter(), output.sampled.into_iter());
        self.fetch();
        for item in &batch.items {
            let prompt = item.prompt.as_ref().map(|_| prompts.next().expect("one result per prompt"));
            let num_rows = item.sample.as_ref().map_or(0, Sample::num_rows);
            assert!(sampled.len() >= num_rows, "one result per row that samples");
            let mut rows = sampled.by_ref().take(num_rows).peekable();
            let priority = self.priorities.get(&item.id).copied();
            if ended.contains(&item.id) || (item.placeholder_for.is_some() && priority.is_none()) {
                self.stats.count_for_nothing(item);
                rows.for_each(drop);
                continue;
            }
            let is_deferred = matches!(rows.peek(), Some(Sampled::Deferred));
            if let Some(sample) = item.sample.as_ref().filter(|_| is_deferred) {
                self.stats.count_deferred(item.tokens.len(), sample.num_generated);
            }
            if let Some(priority) = priority {
                let sampled = item.sample.is_some().then_some(&mut rows);
                let results = ItemResults { prompt, is_deferred, sampled };
                self.commit_item(Rank { priority, id: item.id }, item, results, &mut events);
            }
            // What follows a guess that was wrong.
            rows.for_each(drop);
        }
        let left = prompts.len() + sampled.len();
        assert_eq!(left, 0, "results that nobody asked for");
        self.keep(batch);
        let stats = StepStats { occupancy: self.occupancy(), ..std::mem::take(&mut self.stats) };
        Step { events, stats }
    }

    /// Reads what a commit needs of everybody before it begins. A device took its time for the step, in which the caches have lost all this:
    /// fetched one sequence after the other, as the work goes on, each would be waited for; in a loop of nothing but loads many are on their way at a
    /// time.
    fn fetch(&self) {
        let read = self.running.values().map(|running| {
            let Running { job, table, computed, deferrals, published, .. } = running;
            let sequence = &job.sequence;
            let last = sequence.tokens.last().map_or(0, |&token| token as usize);
            let params = sequence.params.max_tokens ^ sequence.params.min_tokens;
            last ^ params ^ sequence.images.len() ^ table.num_blocks() ^ computed ^ deferrals ^ published
        });
        std::hint::black_box(read.fold(0, |all, read| all ^ read));
    }

    /// The memory of one batch becomes that of the next.
    fn keep(&mut self, mut batch: Batch) {
        let masks = batch.items.iter_mut().filter_map(|item| item.sample.as_mut()?.mask.take());
        self.spent_masks.extend(masks);
        batch.items.clear();
        self.spare_items = batch.items;
    }

    fn commit_item(
        &mut self,
        rank: Rank,
        item: &BatchItem,
        results: ItemResults<impl Iterator<Item = Sampled>>,
        events: &mut Vec<Event>,
    ) {
        let running = self.running.get_mut(&rank).expect("an item's sequence is running or was aborted");
        let Self { config, pool, images, stats, .. } = self;
        let taking = Taking { id: rank.id, running, config, pool, images, stats, events };
        match taking.item(item, results) {
            Outcome::GoesOn => {}
            Outcome::Accepting => self.accepting.push(rank),
            Outcome::Ends(reason) => {
                let preemptions = self.finish(rank, reason);
                events.push(Event::Finished { id: rank.id, reason, preemptions });
            }
        }
    }

    /// Ends a running sequence; returns how often it was preempted.
    pub(crate) fn finish(&mut self, rank: Rank, reason: FinishReason) -> usize {
        let is_poisoned = reason == FinishReason::Failed(Failure::NonFiniteLogits);
        if is_poisoned {
            // Its keys and values may be the cause, those of earlier chunks too.
            let running = &self.running[&rank];
            self.pool.withdraw(&running.table, running.job.chain.digests());
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
}

impl Taking<'_> {
    /// Says what becomes of the sequence.
    fn item(mut self, item: &BatchItem, results: ItemResults<impl Iterator<Item = Sampled>>) -> Outcome {
        let running = &mut *self.running;
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
                progress.take(self.id, work, result)
            }
            _ => Ok(None),
        };
        match (told, sampled) {
            (Err(failure), _) => Outcome::Ends(FinishReason::Failed(failure)),
            (Ok(told), Some(_)) if is_deferred => {
                self.settle();
                self.events.extend(told);
                Outcome::GoesOn
            }
            (Ok(told), Some(sampled)) => self.rows(&drafts, sampled, told),
            (Ok(told), None) => {
                self.settle();
                self.events.extend(told);
                let running = &self.running;
                // Nothing is left to compute and nothing was sampled: nothing is to be generated.
                (running.computed == running.len()).then_some(FinishReason::Length).into()
            }
        }
    }

    /// Takes rows in, from the first on, while each draws the draft of the next. Each is taken in as if it had been alone in its step, so
    /// nothing of a guess that was wrong is ever published. `told` goes out before the first token.
    fn rows(
        &mut self,
        drafts: &[TokenId],
        sampled: impl Iterator<Item = Sampled>,
        told: Option<Event>,
    ) -> Outcome {
        let (mut told, mut num_accepted, mut end) = (told, 0, Outcome::GoesOn);
        for row in sampled {
            let token = match row {
                Sampled::Token(token) => token,
                Sampled::Deferred => unreachable!("{:?}: only a row by itself is deferred", self.id),
                Sampled::Failed(failure) => {
                    end = Outcome::Ends(FinishReason::Failed(failure));
                    break;
                }
            };
            self.settle();
            self.events.extend(told.take());
            let is_guessed = drafts.get(num_accepted) == Some(&token.token);
            self.running.job.sequence.tokens.push(token.token);
            self.events.push(Event::Token { id: self.id, token });
            num_accepted += usize::from(is_guessed);
            end = outcome(&mut self.running.job.sequence);
            if end != Outcome::GoesOn || !is_guessed {
                break;
            }
            self.running.computed += 1;
        }
        if !drafts.is_empty() {
            self.judge(DraftShare { id: self.id, num_drafted: drafts.len(), num_accepted });
        }
        end
    }

    /// Gives back what a draft held, as far as its tokens did not come.
    fn judge(&mut self, draft: DraftShare) {
        let running = &mut *self.running;
        let len = running.len();
        self.pool.shrink(&mut running.table, len);
        let drafter = running.job.drafter.as_mut().expect("it drafted");
        drafter.judge(draft.num_drafted, draft.num_accepted);
        self.stats.drafts.push(draft);
    }

    /// Publishes the blocks that became full and lets go of the pictures that were read to their end.
    fn settle(&mut self) {
        let running = &mut *self.running;
        while let Some(span) = running.pinned().first()
            && span.end() <= running.computed
        {
            self.images.release(&span.image.digest);
            running.images_left += 1;
        }
        running.job.read_for_drafts(running.computed);
        if self.config.enable_prefix_caching {
            let num_full =
                running.computed.min(running.job.sharable_len(self.config)) / self.config.block_size;
            // With most tokens no block becomes full.
            if num_full > running.published {
                running.job.extend_chain(running.computed, self.config);
                let new = running.published..num_full;
                self.pool.publish(&running.table.blocks()[new.clone()], &running.job.chain.digests()[new]);
                running.published = num_full;
            }
        }
    }
}
