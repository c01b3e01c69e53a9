//! What must hold on any day, judged from outside: from what went in and what came out.

use crate::shadow::Shadow;
use crate::truth::Truth;
use scheduler::{
    Event, Failure, FinishReason, MAX_DEFERRALS, PooledSum, PromptLogprob, PromptOutput, Reject, RowSum,
    SampledToken, SchedulerConfig, Sequence, SequenceId, Step,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A sequence that was taken in and has neither ended nor been aborted.
pub struct Live {
    rank: (i32, SequenceId),
    truth: Truth,
    answer: Vec<SampledToken>,
    reason: FinishReason,
    num_said: usize,
    /// What was told of its prompt: rows so far, and whether as a whole.
    num_told: usize,
    is_pooled: bool,
    arrived_us: u64,
    /// When it started, counted in starts.
    started: Option<usize>,
    preemptions: usize,
    /// Promised to have its first token in order: no picture, fits a step, neither preempted nor deferred so far.
    is_promised: bool,
}

pub struct Oracle {
    config: SchedulerConfig,
    pub live: BTreeMap<SequenceId, Live>,
    ended: BTreeSet<SequenceId>,
    /// Who ended while a step runs, which is told with it.
    leaving: BTreeSet<SequenceId>,
    /// Who was preempted in each step that was made and has not yet told so.
    preempted: VecDeque<BTreeSet<SequenceId>>,
    num_started: usize,
    first_tokens_us: Vec<u64>,
    /// The sequence of the lowest rank, and for how many more steps it may sit out.
    first_in_rank: Option<(SequenceId, usize)>,
}

impl Oracle {
    pub fn new(config: SchedulerConfig) -> Self {
        Self {
            config,
            live: BTreeMap::new(),
            ended: BTreeSet::new(),
            leaving: BTreeSet::new(),
            preempted: VecDeque::new(),
            num_started: 0,
            first_tokens_us: Vec::new(),
            first_in_rank: None,
        }
    }

    pub fn expected_reject(&self, sequence: &Sequence, waiting: usize) -> Option<Reject> {
        let config = &self.config;
        let (prompt_tokens, max_tokens) = (sequence.tokens().len(), sequence.params.max_tokens);
        let tokens = prompt_tokens + max_tokens;
        if tokens > config.max_model_len {
            return Some(Reject::TooLong { prompt_tokens, max_tokens, limit: config.max_model_len });
        }
        let capacity = config.num_blocks * config.block_size;
        if tokens > capacity {
            return Some(Reject::NeverFits { tokens, capacity });
        }
        for image in sequence.images().iter().map(|span| &span.image) {
            let capacity = config.num_image_blocks * config.image_rows_per_block;
            if image.num_tokens > capacity {
                return Some(Reject::ImageTooLarge { tokens: image.num_tokens, capacity });
            }
            let (patches, limit) = (image.grid[0] * image.grid[1], config.max_encode_patches);
            if patches > limit {
                return Some(Reject::ImageTooCostly { patches, limit });
            }
        }
        (waiting >= config.max_waiting).then_some(Reject::QueueFull { waiting })
    }

    pub fn added(&mut self, truth: &Truth, arrived_us: u64) {
        let (answer, reason) = truth.alone();
        let live = Live {
            rank: (truth.sequence.priority, truth.sequence.id),
            truth: truth.clone(),
            answer,
            reason,
            num_said: 0,
            num_told: 0,
            is_pooled: false,
            arrived_us,
            started: None,
            preemptions: 0,
            is_promised: truth.sequence.images().is_empty(),
        };
        self.live.insert(truth.sequence.id, live);
    }

    pub fn hung_up(&mut self, id: SequenceId) {
        self.live.remove(&id);
    }

    pub fn ends_untold(&mut self, id: SequenceId) {
        self.leaving.insert(id);
    }

    pub fn is_leaving(&self, id: SequenceId) -> bool {
        self.leaving.contains(&id)
    }

    /// Who ran before a step was made, and who after; says who was preempted for it.
    pub fn step_is_made(&mut self, before: &[SequenceId], after: &[SequenceId]) -> BTreeSet<SequenceId> {
        let [before, after] = [before, after].map(|ids| ids.iter().copied().collect::<BTreeSet<_>>());
        let victims: BTreeSet<_> = before.difference(&after).copied().collect();
        self.check_preempted(&victims, &before);
        let admitted: BTreeSet<_> = after.difference(&before).copied().collect();
        assert!(victims.is_empty() || admitted.is_empty(), "admitted and preempted in one step");
        self.check_admitted(&admitted, &after);
        self.preempted.push_back(victims.clone());
        victims
    }

    pub fn after_step(&mut self, step: &Step, shadow: &Shadow) {
        self.leaving.clear();
        self.check_stats(step, shadow);
        for (id, _) in &shadow.last_counts.loads {
            // Its first token waits for the copy; others need not.
            self.live.entry(*id).and_modify(|live| live.is_promised = false);
        }
        for id in &shadow.last_counts.deferred {
            // Others may have their first tokens meanwhile.
            self.live.entry(*id).and_modify(|live| live.is_promised = false);
        }
        let preempted: BTreeSet<_> = step.stats.preempted.iter().copied().collect();
        assert_eq!(preempted.len(), step.stats.preempted.len(), "preempted twice in a step");
        assert_eq!(Some(preempted), self.preempted.pop_front(), "who lost its place");
        for event in &step.events {
            assert!(
                self.live.contains_key(&event.id()),
                "an event for one that ended or was aborted: {event:?}"
            );
            match event {
                Event::Started { id, cached_tokens } => self.started(*id, *cached_tokens),
                Event::PromptLogprobs { id, logprobs } => self.told(*id, logprobs),
                Event::Pooled { id, pooled } => self.pooled(*id, pooled),
                Event::Token { id, token } => self.said(*id, token),
                Event::Finished { id, reason, preemptions } => self.finished(*id, *reason, *preemptions),
            }
        }
        self.check_first_in_rank(shadow);
    }

    /// Arrival times of the sequences that had their first token since the last call.
    pub fn take_first_tokens(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.first_tokens_us)
    }

    /// The numbers for the metrics are those of the batch and the events.
    fn check_stats(&self, step: &Step, shadow: &Shadow) {
        let (stats, counts) = (&step.stats, &shadow.last_counts);
        let is_here = |id: &SequenceId| self.live.contains_key(id);
        let num_known =
            stats.prefill_tokens + stats.decode_tokens + stats.deferred_tokens + stats.dropped_tokens;
        let ended = ended_before(step);
        let items_of_ended = counts.items.iter().filter(|(id, _)| ended.contains(id));
        let dropped = counts.placeholders.iter().filter(|id| !is_here(id)).count()
            + items_of_ended.map(|(_, num_tokens)| num_tokens).sum::<usize>();
        assert_eq!(stats.dropped_tokens, dropped, "tokens that ran for nothing");
        assert!(
            stats.is_ahead || counts.placeholders.is_empty(),
            "a placeholder in a step that need not have any"
        );
        assert!(self.config.async_scheduling || !stats.is_ahead, "a step was made ahead unasked");
        let num_tokens = num_known + stats.draft_tokens;
        let is_dropped =
            |id: &SequenceId| ended.contains(id) || (counts.placeholders.contains(id) && !is_here(id));
        let deferred = counts.deferred.iter().filter(|id| !is_dropped(id));
        assert_eq!(stats.deferred_tokens, deferred.count(), "tokens that run again");
        assert_eq!(num_tokens, counts.num_tokens, "tokens of the step");
        assert_eq!(stats.draft_tokens, counts.draft_tokens, "guesses of the step");
        let drafts: Vec<_> = counts.drafts.iter().filter(|draft| is_here(&draft.id)).copied().collect();
        assert_eq!(stats.drafts, drafts, "what became of the guesses");
        let decodes = counts.decodes.iter().filter(|id| !is_dropped(id));
        assert_eq!(stats.decode_tokens, decodes.count(), "decodes of the step");
        assert_eq!((stats.encoded_images, stats.encoded_patches), (counts.images, counts.patches), "encodes");
        let shares = stats.shares.iter().filter(|share| share.num_tokens > 0);
        let items: Vec<_> = shares.map(|share| (share.id, share.num_tokens)).collect();
        assert_eq!(items, counts.items, "shares of the step");
        let patches = stats.shares.iter().map(|share| share.encoded_patches).sum::<usize>();
        assert_eq!(patches, counts.patches, "every encoded patch is somebody's");
        assert_eq!(stats.image_queries - stats.image_hits, stats.encoded_images, "misses are encoded");
        assert!(stats.host_hits <= stats.prefix_hits && stats.prefix_hits <= stats.prefix_queries);
        let num_loaded = counts.loads.iter().map(|(_, num_blocks)| num_blocks).sum::<usize>();
        assert_eq!((stats.stored_blocks, stats.loaded_blocks), (counts.stores, num_loaded), "copies");
        let has_tier = self.config.num_host_blocks > 0;
        assert!(has_tier || counts.stores + num_loaded + stats.lost_blocks == 0, "a tier that is not there");
        assert!(stats.occupancy.running <= self.config.max_running, "too many are running");
    }

    /// Only the highest ranks are preempted, and nobody without need of a better one.
    fn check_preempted(&mut self, victims: &BTreeSet<SequenceId>, before: &BTreeSet<SequenceId>) {
        let ranks =
            |ids: &BTreeSet<SequenceId>| -> Vec<_> { ids.iter().map(|id| self.live[id].rank).collect() };
        let survivors: BTreeSet<_> = before.difference(victims).copied().collect();
        assert!(victims.is_empty() || !survivors.is_empty(), "everybody was preempted");
        if let (Some(victim), Some(survivor)) = (ranks(victims).iter().min(), ranks(&survivors).iter().max())
        {
            assert!(survivor < victim, "{victim:?} was preempted before {survivor:?}");
        }
        for id in victims {
            let live = self.live.get_mut(id).expect("looked at above");
            live.preemptions += 1;
            live.is_promised = false;
        }
    }

    /// Nobody is admitted before a better rank, unless that one waits for blocks that are just being computed.
    fn check_admitted(&self, admitted: &BTreeSet<SequenceId>, running: &BTreeSet<SequenceId>) {
        let Some(last) = admitted.iter().map(|id| self.live[id].rank).max() else { return };
        let is_waiting = |id: &SequenceId| !running.contains(id) && !self.leaving.contains(id);
        for (id, waiting) in self.live.iter().filter(|(id, _)| is_waiting(id)) {
            let mut others = running.iter().map(|other| &self.live[other]);
            let is_excused = waiting.rank > last || others.any(|other| self.is_waited_for(other, waiting));
            assert!(is_excused, "{id:?} was overtaken by {last:?}");
        }
    }

    /// Whether the two share their first block, so that one may wait for the other.
    fn is_waited_for(&self, other: &Live, waiting: &Live) -> bool {
        let last = self.config.block_size - 1;
        let first_block = |live: &Live| live.truth.hashes.get(last).copied();
        self.config.enable_prefix_caching
            && other.rank.0 <= waiting.rank.0
            && first_block(other).is_some()
            && first_block(other) == first_block(waiting)
    }

    fn started(&mut self, id: SequenceId, cached_tokens: usize) {
        self.num_started += 1;
        let live = self.live.get_mut(&id).expect("checked above");
        assert_eq!(live.started, None, "{id:?} started twice");
        live.started = Some(self.num_started);
        let prompt_len = live.truth.sequence.prompt_len();
        assert!(cached_tokens < prompt_len, "{id:?}: the last token is always computed");
        assert_eq!(cached_tokens % self.config.block_size, 0, "{id:?}: only full blocks are cached");
        live.is_promised &= prompt_len - cached_tokens <= self.config.max_batched_tokens;
    }

    fn said(&mut self, id: SequenceId, token: &SampledToken) {
        let live = self.live.get_mut(&id).expect("checked above");
        assert!(live.started.is_some(), "{id:?} speaks before it started");
        live.check_prompt_is_told();
        assert_eq!(live.answer.get(live.num_said), Some(token), "{id:?} differs from a run alone");
        live.num_said += 1;
        live.truth.push(token.token);
        if live.num_said == 1 {
            self.first_tokens_us.push(live.arrived_us);
            self.check_order_of_first_tokens(id);
        }
    }

    fn told(&mut self, id: SequenceId, logprobs: &[PromptLogprob]) {
        let live = self.live.get_mut(&id).expect("checked above");
        assert!(live.started.is_some(), "{id:?} is told of before it started");
        let Some(PromptOutput::Logprobs { top, .. }) = live.truth.sequence.prompt_output() else {
            panic!("{id:?} did not want log-probabilities of its prompt")
        };
        assert!(!logprobs.is_empty(), "{id:?} is told nothing");
        for logprob in logprobs {
            let row = live.truth.wanted_rows().start + live.num_told;
            assert_eq!(*logprob, live.truth.prompt_logprob(row, top), "{id:?} row {row}");
            live.num_told += 1;
        }
    }

    fn pooled(&mut self, id: SequenceId, pooled: &PooledSum) {
        let live = self.live.get_mut(&id).expect("checked above");
        let rows = live.truth.wanted_rows();
        let num_rows = rows.len();
        let sum = rows.fold(RowSum::default(), |sum, row| live.truth.add_row(&sum, row));
        assert_eq!(*pooled, PooledSum { sum, num_rows }, "{id:?} is pooled otherwise than alone");
        assert!(!live.is_pooled, "{id:?} is pooled twice");
        (live.is_pooled, live.num_told) = (true, num_rows);
    }

    fn check_order_of_first_tokens(&self, id: SequenceId) {
        let live = &self.live[&id];
        if !live.is_promised {
            return;
        }
        let same_class = |other: &&Live| other.rank.0 == live.rank.0 && other.rank < live.rank;
        for other in self.live.values().filter(same_class) {
            let began_before = other.started.is_some() && other.started < live.started;
            assert!(
                !(other.is_promised && began_before && other.num_said == 0),
                "{:?} had its first token before {:?}",
                live.rank,
                other.rank
            );
        }
    }

    fn finished(&mut self, id: SequenceId, reason: FinishReason, preemptions: usize) {
        let live = self.live.remove(&id).expect("checked above");
        assert_eq!(live.num_said, live.answer.len(), "{id:?} ends early or late");
        if !matches!(reason, FinishReason::Failed(_)) {
            live.check_prompt_is_told();
        }
        assert_eq!(reason, live.reason, "{id:?} ends otherwise than alone");
        assert_eq!(preemptions, live.preemptions, "preemptions of {id:?}");
        assert!(self.ended.insert(id), "{id:?} ended twice");
    }

    /// No starvation: the sequence of the lowest rank goes on, or waits for something that ends. Others can hold its memory
    /// and its places no longer than they have tokens, and long prompts and pictures have turns.
    fn check_first_in_rank(&mut self, shadow: &Shadow) {
        let Some(first) = self.live.values().min_by_key(|live| live.rank) else { return };
        let id = first.rank.1;
        let took_part = shadow.last_counts.items.iter().any(|(item, _)| *item == id);
        let patience = match self.first_in_rank {
            Some((known, patience)) if known == id && !took_part => {
                assert!(patience > 0, "{id:?} starves");
                patience - 1
            }
            _ => self.patience(),
        };
        self.first_in_rank = Some((id, patience));
    }

    fn patience(&self) -> usize {
        let steps_for_a_token =
            |live: &Live| if live.truth.may_be_deferred() { 1 + MAX_DEFERRALS } else { 1 };
        let tokens =
            |live: &Live| live.truth.sequence.prompt_len() + live.answer.len() * steps_for_a_token(live);
        // A load takes a few steps.
        let steps_for_loads = if self.config.num_host_blocks > 0 { 9 } else { 0 };
        steps_for_loads + self.config.max_running + self.live.values().map(tokens).sum::<usize>()
    }
}

/// Who had ended, as a constraint said of a token of the step before, when this one was taken in.
fn ended_before(step: &Step) -> BTreeSet<SequenceId> {
    let mut ended = BTreeSet::new();
    for event in &step.events {
        match event {
            Event::Finished { id, reason, .. } if is_by_constraint(*reason) => {
                ended.insert(*id);
            }
            _ => break,
        }
    }
    ended
}

fn is_by_constraint(reason: FinishReason) -> bool {
    matches!(reason, FinishReason::Complete | FinishReason::Failed(Failure::Constraint))
}

impl Live {
    fn check_prompt_is_told(&self) {
        let id = self.rank.1;
        assert_eq!(
            self.num_told,
            self.truth.wanted_rows().len(),
            "{id:?}: rows of its prompt that were told"
        );
        let is_pooled = matches!(self.truth.sequence.prompt_output(), Some(PromptOutput::Pooled(_)));
        assert_eq!(self.is_pooled, is_pooled, "{id:?}: whether its prompt was pooled");
    }
}
