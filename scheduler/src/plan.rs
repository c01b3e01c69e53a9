//! The policy: who takes part in a step, with how many tokens.
//!
//! Order is by rank: priority, then arrival. A step has a budget of tokens, spent in this order:
//!
//! 1. **Decodes**: every running sequence with one token left to compute, by rank. One that needs a block and finds none takes
//!    it from the running sequence of the highest rank above its own, which loses all and waits again; the highest itself sits
//!    the step out. So the sequence of the lowest rank always goes on, and everything finishes.
//! 2. **Short prompts** that are running, by rank. Short is what had no more to compute than one step's budget when it was
//!    admitted. While long prompts of the same or a better priority are running, short ones may have half of what the decodes
//!    left.
//! 3. **Admission**, by rank, as long as there are places, budget for short prompts and blocks for all tokens known so far, and
//!    one block beside for each running sequence. The first that finds no blocks ends admission: nobody overtakes it. Only a
//!    sequence whose next block is just being computed by another one is passed over: it would compute the same, and finds it
//!    ready soon. No admission in a step where a decode found no block. Nobody is pushed out for admission: a better priority
//!    has the next place, not a place that is taken.
//! 4. **Long prompts**, round-robin by turn: the one whose last turn is longest ago gets all that is left, and what it cannot
//!    use goes to the next.
//! 5. **Drafts**, by rank: what is left goes to the guesses of sequences that decode. They take blocks that nobody has, for this
//!    step, and nobody waits for them.
//!
//! Pictures: a chunk ends before a picture whose embedding is neither in the cache nor fits this step's encode budget and the
//! room that is not pinned. Its sequence then queues, the queue is served first in each step, and while it is not empty nobody
//! else enters a picture. A sequence pins a picture only from its first to its last position and asks for one at a time, so
//! who holds a pin needs nothing but tokens to give it back, and gets them right after the decodes while somebody queues: no
//! deadlock, and no waiting for a worse priority's turn.
//!
//! A prefix in the host's memory: its sequence is admitted as any other and takes part in no step until the prefix was copied back
//! (`loads.rs`); others that begin with it wait for that as for one that is being computed.
//!
//! Promised: within one priority, of two sequences without pictures that fit a step and were neither preempted nor deferred nor loaded, the one that
//! arrived first and started first has its first token first; they start in the order of arrival except where step 3 passes
//! one over.

use crate::block_pool::TakenBlocks;
use crate::running::{Rank, Running};
use crate::scheduler::Blocked;
use crate::step::InFlight;
use crate::{Batch, Event, ItemShare, Scheduler};
use std::ops::Bound;

/// Tokens that are still to be given away in this step.
struct Budget {
    left: usize,
    /// Of which for long prompts.
    reserved: usize,
    /// The best priority among the long ones; better ones need not heed the reserve.
    reserved_for: i32,
}

struct Decodes {
    /// Tokens of those that are planned already.
    num_planned: usize,
    /// With memory for their one token, which may be in a picture that is not there yet.
    ready: Vec<Rank>,
    /// Nobody was preempted or has to sit the step out.
    blocks_suffice: bool,
    /// Nobody has more than one token left.
    are_all: bool,
}

impl Budget {
    fn for_short(&self, priority: i32) -> usize {
        if self.reserved_for <= priority { self.left.saturating_sub(self.reserved) } else { self.left }
    }
}

impl Scheduler {
    /// Picks the next step, when the results of all steps before it were taken in. Must be followed by `commit`.
    pub fn schedule(&mut self) -> Batch {
        assert!(self.in_flight.is_empty(), "a step is running: only one that is made ahead can follow it");
        for running in self.running.values_mut() {
            running.begun = running.computed;
            running.planned = running.computed;
        }
        self.make_step()
    }

    /// From where everybody's `begun` is.
    pub(crate) fn make_step(&mut self) -> Batch {
        self.begin();
        let mut budget = Budget { left: self.config.max_batched_tokens, reserved: 0, reserved_for: i32::MAX };
        let decodes = self.grow_decodes();
        budget.left -= decodes.num_planned;
        // After the last preemption of the step: what is pinned from here on stays.
        self.serve_image_queue();
        for rank in decodes.ready {
            budget.left -= self.advance(rank, budget.left);
        }
        if !self.image_queue.is_empty() {
            self.finish_pictures(&mut budget);
        }
        if !decodes.are_all {
            self.reserve_for_long(&mut budget);
            self.plan_short(&mut budget);
        }
        let num_running = self.running.len();
        if decodes.blocks_suffice {
            self.admit(&mut budget);
        }
        if !decodes.are_all || self.running.len() > num_running {
            self.plan_long(&mut budget);
        }
        self.plan_drafts(&mut budget);
        let batch = self.assemble();
        let (started, stats) = (std::mem::take(&mut self.started), std::mem::take(&mut self.stats));
        self.in_flight.push_back(InFlight { started, stats, ended: Vec::new() });
        batch
    }

    fn begin(&mut self) {
        self.images.begin_step();
        self.stats = Default::default();
    }

    /// Finds the next block for every sequence with one token left, by rank. Who has no picture before it is planned at once.
    fn grow_decodes(&mut self) -> Decodes {
        let mut decodes = Decodes { num_planned: 0, ready: Vec::new(), blocks_suffice: true, are_all: true };
        // From the first that finds no block on.
        let mut others = Vec::new();
        for (&rank, running) in &mut self.running {
            let (len, num_left) = (running.len(), running.num_left());
            decodes.are_all &= num_left <= 1;
            if num_left != 1 {
                continue;
            }
            if !others.is_empty() || !self.pool.grow(&mut running.table, len) {
                others.push(rank);
            } else if running.has_left_pictures() {
                running.planned = len;
                decodes.num_planned += 1;
            } else {
                decodes.ready.push(rank);
            }
        }
        for rank in others {
            // Not running any more: it was preempted for one before it.
            while let Some(running) = self.running.get_mut(&rank) {
                let len = running.len();
                if self.pool.grow(&mut running.table, len) {
                    decodes.ready.push(rank);
                    break;
                }
                decodes.blocks_suffice = false;
                let (&last, _) = self.running.last_key_value().expect("this one is running");
                if last == rank {
                    break;
                }
                self.preempt(last);
            }
        }
        decodes
    }

    fn preempt(&mut self, rank: Rank) {
        let mut job = self.retire(rank);
        job.preemptions += 1;
        self.stats.preempted.push(rank.id);
        self.waiting.insert(rank, job);
    }

    /// Those who could not enter their next picture come first now, in the order in which they came to it.
    fn serve_image_queue(&mut self) {
        while let Some(rank) = self.image_queue.front() {
            let running = self.running.get_mut(rank).expect("only running sequences queue");
            let image = running.job.sequence.images[running.images_entered].image.clone();
            let Some(acquired) = self.images.acquire(&image) else { break };
            running.enter_image(acquired);
            self.stats.count_image(acquired);
            self.image_queue.pop_front();
        }
    }

    /// Somebody waits for room: who holds some goes on to the end of its picture, however low its priority, and gives it back.
    fn finish_pictures(&mut self, budget: &mut Budget) {
        for rank in self.running_ranks(|running| !running.pinned().is_empty()) {
            let running = &self.running[&rank];
            let end = running.pinned().last().expect("selected above").end();
            let limit = end.saturating_sub(running.planned).min(budget.left);
            budget.left -= self.advance(rank, limit);
        }
    }

    fn reserve_for_long(&mut self, budget: &mut Budget) {
        let long = || self.running.iter().filter(|(_, running)| running.is_long && running.num_left() > 1);
        budget.reserved_for = long().map(|(rank, _)| rank.priority).min().unwrap_or(i32::MAX);
        let wanted = long().map(|(_, running)| running.num_left()).sum::<usize>();
        budget.reserved = wanted.min(budget.left / 2);
    }

    fn plan_short(&mut self, budget: &mut Budget) {
        for rank in self.running_ranks(|running| running.num_left() > 1 && !running.is_long) {
            budget.left -= self.advance(rank, budget.for_short(rank.priority));
        }
    }

    fn plan_long(&mut self, budget: &mut Budget) {
        let mut ranks = self.running_ranks(|running| running.num_left() > 1 && running.is_long);
        ranks.sort_by_key(|rank| (rank.priority, self.running[rank].last_turn, rank.id));
        for rank in ranks {
            let num_tokens = self.advance(rank, budget.left);
            if num_tokens > 0 {
                self.num_turns += 1;
                self.running.get_mut(&rank).expect("listed above").last_turn = self.num_turns;
                budget.left -= num_tokens;
            }
        }
    }

    /// Guesses cost others nothing but time: all that others can use in this step is given away by now.
    fn plan_drafts(&mut self, budget: &mut Budget) {
        for running in self.running.values_mut() {
            let mut drafts = running.guess(budget.left);
            if drafts.is_empty() {
                continue;
            }
            let len = running.len();
            if !self.pool.grow(&mut running.table, len + drafts.len()) {
                drafts.truncate(running.table.num_blocks() * self.config.block_size - len);
            }
            budget.left -= drafts.len();
            running.drafts = drafts;
        }
    }

    fn admit(&mut self, budget: &mut Budget) {
        let mut after = Bound::Unbounded;
        while self.running.len() < self.config.max_running {
            let Some((&rank, job)) = self.waiting.range_mut((after, Bound::Unbounded)).next() else { break };
            if budget.for_short(rank.priority) == 0 {
                break;
            }
            after = Bound::Excluded(rank);
            if self.config.enable_prefix_caching {
                job.extend_chain(job.sequence.tokens.len(), &self.config);
                if self.is_being_computed(rank) {
                    continue;
                }
            }
            let num_free = self.pool.num_free();
            if self.blocked.is_some_and(|blocked| blocked.still_holds(rank, num_free))
                && !self.running.is_empty()
            {
                break;
            }
            let Some(table) = self.take_blocks(rank) else {
                self.blocked = Some(Blocked { rank, num_free });
                break;
            };
            self.blocked = None;
            self.start(rank, table);
            let running = &self.running[&rank];
            if !running.is_long && running.loading.is_none() {
                budget.left -= self.advance(rank, budget.for_short(rank.priority));
            }
        }
    }

    /// Whether a running sequence is about to compute the next block that this waiting one would have to compute itself. One of
    /// a worse priority is not waited for.
    fn is_being_computed(&self, rank: Rank) -> bool {
        let job = &self.waiting[&rank];
        let sharable = &job.chain.digests()[..job.max_shared_blocks(&self.config)];
        self.running.iter().take_while(|(other, _)| other.priority <= rank.priority).any(|(_, running)| {
            running.next_to_publish().is_some_and(|digest| sharable.get(running.published) == Some(digest))
        })
    }

    /// Blocks for all tokens of a waiting sequence, those that are known in either tier first; or none.
    fn take_blocks(&mut self, rank: Rank) -> Option<TakenBlocks> {
        let job = &self.waiting[&rank];
        let num_shared =
            if self.config.enable_prefix_caching { job.max_shared_blocks(&self.config) } else { 0 };
        // One block to spare for each running sequence: else the newcomer is preempted as soon as they go on.
        let num_spare = self.running.len();
        let digests = &job.chain.digests()[..num_shared];
        self.pool.take(digests, job.sequence.tokens.len(), num_spare)
    }

    fn start(&mut self, rank: Rank, blocks: TakenBlocks) {
        let loading = self.load(rank, &blocks);
        let mut job = self.waiting.remove(&rank).expect("it is waiting");
        let cached_tokens = blocks.num_shared * self.config.block_size;
        self.stats.loaded_blocks += blocks.loads.len();
        if !job.started {
            job.started = true;
            self.started.push(Event::Started { id: rank.id, cached_tokens });
            self.stats.prefix_queries += job.sequence.prompt_len;
            self.stats.prefix_hits += cached_tokens;
            self.stats.host_hits += blocks.loads.len() * self.config.block_size;
        }
        let mut running = Running { loading, ..Running::new(job, blocks, &self.config) };
        // As if it just had its turn: newcomers cannot crowd out those who wait for theirs.
        running.last_turn = self.num_turns;
        self.running.insert(rank, running);
    }

    /// Plans up to `limit` more tokens of a running sequence, ending before a picture it cannot have now; returns how many.
    fn advance(&mut self, rank: Rank, limit: usize) -> usize {
        let running = self.running.get_mut(&rank).expect("only running sequences advance");
        let mut target = running.len().min(running.planned + limit);
        let horizon = target;
        let under_way = running.pinned().iter().find(|span| !self.images.is_ready(&span.image.digest));
        target = under_way.map_or(target, |span| target.min(span.start.max(running.planned)));
        while let Some(span) = running.job.sequence.images.get(running.images_entered)
            && span.start < horizon
        {
            let acquired = if self.image_queue.is_empty() { self.images.acquire(&span.image) } else { None };
            let Some(acquired) = acquired else {
                // Who waits for a picture under way anyway does not queue for the next one, whose room it would hold for nothing.
                if target == horizon {
                    target = span.start.max(running.planned);
                    if !self.image_queue.contains(&rank) {
                        self.image_queue.push_back(rank);
                    }
                }
                break;
            };
            if !self.images.is_ready(&span.image.digest) {
                target = target.min(span.start.max(running.planned));
            }
            running.enter_image(acquired);
            self.stats.count_image(acquired);
        }
        let num_tokens = target - running.planned;
        running.planned = target;
        num_tokens
    }

    fn assemble(&mut self) -> Batch {
        let encodes = self.images.take_encodes();
        let (stores, num_lost) = self.pool.take_stores();
        let stats = &mut self.stats;
        stats.encoded_images = encodes.len();
        stats.encoded_patches = encodes.iter().map(|encode| encode.image.num_patches()).sum();
        let mut items = std::mem::take(&mut self.spare_items);
        items.reserve(self.running.len());
        stats.shares.reserve(self.running.len());
        for (rank, running) in &mut self.running {
            items.extend(running.item(&self.images, self.config.block_size));
            let num_tokens = running.planned - running.begun;
            if running.num_left() == 0 {
                stats.count_to_the_end(num_tokens, running.num_generated());
            } else {
                stats.prefill_tokens += num_tokens;
            }
            stats.draft_tokens += running.drafts.len();
            let num_tokens = num_tokens + running.drafts.len();
            let encoded_patches = std::mem::take(&mut running.encoded_patches);
            let share = ItemShare { id: rank.id, num_tokens, encoded_patches };
            if share.num_tokens + share.encoded_patches > 0 {
                stats.shares.push(share);
            }
        }
        (stats.stored_blocks, stats.lost_blocks) = (stores.len(), num_lost);
        let loads = std::mem::take(&mut self.asked_loads);
        let waits_for_loads = std::mem::take(&mut self.has_stray_loads);
        let batch = Batch { stores, loads, waits_for_loads, encodes, items };
        let is_waiting = self.images.is_encoding() || !self.loading.is_empty();
        assert!(!batch.items.is_empty() || is_waiting || self.is_idle(), "a step without progress");
        assert!(batch.num_tokens() <= self.config.max_batched_tokens, "more tokens than a step may have");
        batch
    }

    fn running_ranks(&self, select: impl Fn(&Running) -> bool) -> Vec<Rank> {
        self.running.iter().filter(|(_, running)| select(running)).map(|(rank, _)| *rank).collect()
    }
}
