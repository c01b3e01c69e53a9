//! A model made of hashes. Its memory is a *shadow* of the device's: each key-value slot remembers the hash of the whole prefix
//! whose key and value it would hold, each row of the image cache the picture and row that it would show. Before a token is
//! computed, everything that it would read is compared with the truth, so a block given to two writers, a stale prefix hit, a
//! lost recompute, a copy that comes late or a picture that is not there shows up at once, without a model.

mod checks;
mod moves;
mod trace;

use crate::rng::chain;
use crate::truth::{Machine, Truth};
use moves::{Flight, Load};
use scheduler::{
    Batch, BatchItem, DraftShare, Failure, FinishReason, ModelRunner, PromptOutput, PromptResult, PromptTask,
    Sample, Sampled, SchedulerConfig, SequenceId, StepOutput, TokenId,
};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use trace::Counts;

#[derive(Debug, Clone, Copy, PartialEq)]
struct Slot {
    hash: u64,
    /// Who computed it.
    writer: SequenceId,
}

pub struct Shadow {
    config: SchedulerConfig,
    machine: Machine,
    slots: Vec<Option<Slot>>,
    /// What each place of the second tier holds.
    host: Vec<Vec<Option<Slot>>>,
    /// Of each step that was begun and is not executed: what the blocks held that it stores. A device may copy them at once.
    stored_early: VecDeque<Vec<Vec<Option<Slot>>>>,
    /// Loads of steps that were begun, in order, until they are told to be done.
    loads: VecDeque<Load>,
    image_rows: Vec<Option<(u64, usize)>>,
    pub truths: BTreeMap<SequenceId, Truth>,
    /// Who ended, and how, or was aborted. A step that was begun before still has them.
    pub gone: BTreeMap<SequenceId, Option<FinishReason>>,
    /// Of each step that was drawn and is not executed, in order: which items are deferred.
    drawn: VecDeque<Vec<bool>>,
    /// What each row of the step before sampled, and for whom: placeholders stand for it.
    sampled_before: Vec<(SequenceId, Sampled)>,
    /// How far each sequence has got, to see when it starts over.
    ends: BTreeMap<SequenceId, usize>,
    /// The next row of its prompt that each sequence has to tell something of.
    next_rows: BTreeMap<SequenceId, usize>,
    /// How often in a row each sequence was deferred.
    deferrals: BTreeMap<SequenceId, usize>,
    /// What these computed is not to be trusted by anybody but those who may have had it before it was known.
    poisoners: BTreeMap<SequenceId, BTreeSet<SequenceId>>,
    /// The pictures encoded last; a picture is not encoded again before another one was.
    last_encoded: Option<u64>,
    /// Pictures that are encoded ahead, in order; each is there some steps after its own.
    under_way: VecDeque<Flight>,
    patches_under_way: usize,
    /// Steps of the cost model: virtual time.
    pub now_us: u64,
    /// The batch executed last, for the trace.
    pub last_batch: String,
    pub last_counts: Counts,
    /// Whether it waited for loads that nobody wanted any more.
    pub last_waited: bool,
}

impl Shadow {
    pub fn new(config: SchedulerConfig, machine: Machine) -> Self {
        Self {
            machine,
            slots: vec![None; config.token_capacity()],
            host: vec![vec![None; config.block_size]; config.num_host_blocks],
            stored_early: VecDeque::new(),
            loads: VecDeque::new(),
            image_rows: vec![None; config.image_capacity()],
            config,
            truths: BTreeMap::new(),
            gone: BTreeMap::new(),
            drawn: VecDeque::new(),
            sampled_before: Vec::new(),
            ends: BTreeMap::new(),
            next_rows: BTreeMap::new(),
            deferrals: BTreeMap::new(),
            poisoners: BTreeMap::new(),
            last_encoded: None,
            under_way: VecDeque::new(),
            patches_under_way: 0,
            now_us: 0,
            last_batch: String::new(),
            last_counts: Counts::default(),
            last_waited: false,
        }
    }

    /// It will start over, or is gone.
    pub fn forget_progress(&mut self, id: SequenceId) {
        self.ends.remove(&id);
        self.deferrals.remove(&id);
        self.poisoners.values_mut().for_each(|excused| {
            excused.remove(&id);
        });
    }

    fn slot(&self, item: &BatchItem, position: usize) -> usize {
        let size = self.config.block_size;
        item.blocks[position / size].0 as usize * size + position % size
    }

    /// What an item's placeholder stands for: nothing where the row before failed, and then all that comes of it is nobody's.
    fn resolve(&self, item: &BatchItem) -> Option<TokenId> {
        let row = item.placeholder_for.expect("it has a placeholder");
        let (id, sampled) = &self.sampled_before[row];
        assert_eq!(*id, item.id, "a placeholder for somebody else's token");
        match sampled {
            Sampled::Token(token) => Some(token.token),
            Sampled::Failed(_) => None,
            Sampled::Deferred => panic!("{id:?} goes on although its mask was late"),
        }
    }

    fn is_lost(&self, item: &BatchItem) -> bool {
        item.placeholder_for.is_some() && self.resolve(item).is_none()
    }

    /// All tokens of an item's sequence that its rows read: also one that came after the sequence was aborted.
    fn truth(&self, item: &BatchItem) -> Cow<'_, Truth> {
        let mut truth = Cow::Borrowed(&self.truths[&item.id]);
        if item.placeholder_for.is_some() && truth.tokens.len() == item.context_len {
            assert!(self.gone.contains_key(&item.id), "{:?} has not been told its token", item.id);
            truth.to_mut().push(self.resolve(item).expect("not lost"));
        }
        truth
    }

    /// The tokens of an item's sequence with the guesses behind them, as if they were right.
    fn with_drafts(&self, item: &BatchItem) -> Cow<'_, Truth> {
        let mut truth = self.truth(item);
        drafts(item).iter().for_each(|&token| truth.to_mut().push(token));
        truth
    }

    /// As if its mask were late when its row was computed, at some time of the day.
    fn is_late(&self, item: &BatchItem, at_us: u64) -> bool {
        let Some(sample) = &item.sample else { return false };
        if !self.truths[&item.id].may_be_deferred() || self.is_lost(item) {
            return false;
        }
        let truth = self.truth(item);
        let rate = truth.machine.deferral_rate;
        // What is not finite needs no mask to be seen, and there is no guess under a mask.
        let has_failed = truth.sample() == Sampled::Failed(Failure::NonFiniteLogits);
        let drawn = chain(truth.hashes[truth.hashes.len() - 1], at_us);
        let may_be = sample.may_be_deferred && sample.num_drafts == 0 && !has_failed;
        may_be && drawn.is_multiple_of(rate)
    }

    /// Notes whether it is deferred.
    fn defers(&mut self, item: &BatchItem, is_late: bool) -> bool {
        if !is_late {
            self.deferrals.remove(&item.id);
            return false;
        }
        *self.deferrals.entry(item.id).or_default() += 1;
        // Nobody may read the last key before it is computed again.
        let index = self.slot(item, item.end() - 1);
        self.slots[index] = None;
        self.ends.insert(item.id, item.end() - 1);
        self.last_counts.deferred.push(item.id);
        self.last_counts.decodes.retain(|id| *id != item.id);
        true
    }

    /// Each wanted row is asked for once, in order, by the first chunk that computes it.
    fn tell_prompt(&mut self, item: &BatchItem) -> Option<PromptResult> {
        let truth = &self.truths[&item.id];
        let wanted = truth.wanted_rows();
        let next = self.next_rows.entry(item.id).or_insert(wanted.start);
        assert!(*next >= item.context_len || *next == wanted.end, "{:?} passes row {next} over", item.id);
        let rows = *next..wanted.end.min(item.end());
        assert_eq!(item.prompt.is_some(), !rows.is_empty(), "{:?} has rows {rows:?} to tell", item.id);
        let work = item.prompt.as_ref()?;
        assert_eq!(work.rows, rows.start - item.context_len..rows.end - item.context_len, "{:?}", item.id);
        *next = rows.end;
        if rows.clone().any(|row| truth.row_fails(row)) {
            return Some(PromptResult::Failed(Failure::NonFiniteLogits));
        }
        Some(match (&work.task, truth.sequence.prompt_output()) {
            (PromptTask::Logprobs { targets, top }, Some(PromptOutput::Logprobs { top: wanted, .. })) => {
                assert_eq!(*targets, truth.tokens[rows.start + 1..rows.end + 1], "{:?}", item.id);
                assert_eq!(*top, wanted);
                PromptResult::Logprobs(rows.map(|row| truth.prompt_logprob(row, *top)).collect())
            }
            (PromptTask::Sum(sum), Some(PromptOutput::Pooled(_))) => {
                PromptResult::Sum(rows.fold(sum.clone(), |sum, row| truth.add_row(&sum, row)))
            }
            (task, output) => panic!("{:?} wants {output:?} and is asked for {task:?}", item.id),
        })
    }

    fn write(&mut self, batch: &Batch) {
        let mut written = BTreeSet::new();
        let size = self.config.block_size;
        let under_way = self.loads.iter().filter(|load| load.contents.is_some() && !load.has_arrived);
        let copies = under_way.flat_map(|load| &load.copies);
        let loading: BTreeSet<_> = copies.map(|copy| copy.block.0 as usize).collect();
        for item in &batch.items {
            let hashes = match self.is_lost(item) {
                true => vec![None],
                false => {
                    let truth = self.with_drafts(item);
                    truth.hashes[item.context_len..item.end()].iter().copied().map(Some).collect()
                }
            };
            for (position, hash) in (item.context_len..).zip(hashes) {
                let index = self.slot(item, position);
                assert!(written.insert(index), "two writers of one slot in a step");
                assert!(!loading.contains(&(index / size)), "{:?} writes where a copy is to arrive", item.id);
                self.slots[index] = hash.map(|hash| Slot { hash, writer: item.id });
            }
            self.ends.insert(item.id, item.end());
        }
    }

    /// A failed row: nobody may ever take what this step wrote, but what rows before it stand for.
    fn spoil(&mut self, item: &BatchItem, num_good: usize) {
        for position in item.context_len + num_good..item.end() {
            let index = self.slot(item, position);
            self.slots[index] = None;
        }
    }

    /// It ended with a NaN: from now on nobody may take anything that it ever wrote, but those who run by then. Its pictures
    /// may be encoded again.
    pub fn poison(&mut self, id: SequenceId, running: BTreeSet<SequenceId>) {
        self.poisoners.insert(id, running);
        self.last_encoded = None;
    }
}

impl Shadow {
    /// What each row says after the guesses before it, and how many of these are what the sequence says alone.
    fn sample(&mut self, item: &BatchItem, is_late: bool) -> (Vec<Sampled>, DraftShare) {
        let drafts = drafts(item);
        let mut verdict = DraftShare { id: item.id, num_drafted: drafts.len(), num_accepted: 0 };
        if item.sample.is_some() && self.defers(item, is_late) {
            return (vec![Sampled::Deferred], verdict);
        }
        let mut truth = self.truth(item);
        let mut sampled = Vec::new();
        for row in item.sample.iter().flat_map(|sample| sample.rows()) {
            let said = truth.sample();
            if let Some(&draft) = drafts.get(row.index) {
                let is_right = matches!(&said, Sampled::Token(token) if token.token == draft);
                verdict.num_accepted += usize::from(is_right && verdict.num_accepted == row.index);
                truth.to_mut().push(draft);
            }
            sampled.push(said);
        }
        (sampled, verdict)
    }
}

impl ModelRunner for Shadow {
    type Error = std::convert::Infallible;

    fn begin(&mut self, batch: &Batch) {
        let read = self.loads.iter().flat_map(|load| &load.copies);
        let read: BTreeSet<_> = read.map(|copy| copy.host).collect();
        let is_read = batch.stores.iter().any(|copy| read.contains(&copy.host));
        assert!(!is_read, "a place of the host is given away while it is being read");
        let early = batch.stores.iter().map(|copy| self.block(copy.block).to_vec()).collect();
        self.stored_early.push_back(early);
        for load in &batch.loads {
            assert!(!load.copies.is_empty(), "a load of nothing");
            let steps_left = chain(load.id.0, self.now_us) % 9;
            let copies = load.copies.clone();
            self.loads.push_back(Load { copies, contents: None, has_arrived: false, steps_left });
        }
    }

    fn draw(&mut self, batch: &Batch) {
        assert!(
            batch.samples().all(|sample| !sample.is_incomplete),
            "drawn before the token before is known"
        );
        let at_us = self.now_us + cost_us(batch);
        self.drawn.push_back(batch.items.iter().map(|item| self.is_late(item, at_us)).collect());
    }

    fn takes_ahead(&self) -> bool {
        let nobody_waits = self.drawn.back().is_some_and(|deferred| !deferred.contains(&true));
        nobody_waits && chain(self.now_us, 3) % 100 < self.machine.ahead_percent
    }

    fn works_alone(&self) -> bool {
        self.machine.works_alone
    }

    fn execute(&mut self, batch: &Batch) -> Result<StepOutput, Self::Error> {
        self.describe(batch);
        assert!(batch.num_tokens() <= self.config.max_batched_tokens, "more tokens than a step may have");
        let late = self.drawn.pop_front().expect("it was drawn");
        self.now_us += cost_us(batch);
        self.encode(batch);
        self.store(batch);
        self.last_waited = batch.waits_for_loads;
        if batch.waits_for_loads {
            self.arrive(self.loads.iter().take_while(|load| load.contents.is_some()).count());
        }
        self.begin_loads(batch);
        // What others wrote must have been there before this step: it cannot be read while it is being written.
        for item in &batch.items {
            if item.placeholder_for.is_some() {
                self.check_placeholder(item);
            }
            if !self.is_lost(item) {
                self.check_context(item);
            }
        }
        self.write(batch);
        let mut spoilt = Vec::new();
        let mut output = StepOutput::default();
        for (item, is_late) in batch.items.iter().zip(late) {
            if self.is_lost(item) {
                output.sampled.push(Sampled::Failed(Failure::NonFiniteLogits));
                continue;
            }
            self.compare(item, 0, item.end());
            self.check_images(item);
            self.check_sample(item);
            let prompt = self.tell_prompt(item);
            let (sampled, verdict) = self.sample(item, is_late);
            if matches!(prompt, Some(PromptResult::Failed(_))) {
                spoilt.push((item, 0));
            } else if let Some(Sampled::Failed(_)) = sampled.get(verdict.num_accepted) {
                spoilt.push((item, verdict.num_accepted));
            }
            if verdict.num_drafted > 0 {
                self.ends.insert(item.id, item.end() - verdict.num_drafted + verdict.num_accepted);
                self.last_counts.drafts.push(verdict);
            }
            if self.gone.contains_key(&item.id) {
                spoilt.push((item, 0));
            }
            output.prompts.extend(prompt);
            output.sampled.extend(sampled);
        }
        let ids = batch.items.iter().flat_map(|item| {
            let num_rows = item.sample.as_ref().map_or(0, Sample::num_rows);
            std::iter::repeat_n(item.id, num_rows)
        });
        self.sampled_before = ids.zip(output.sampled.iter().cloned()).collect();
        spoilt.into_iter().for_each(|(item, num_good)| self.spoil(item, num_good));
        let is_waiting = batch.items.is_empty();
        // For a picture or for a load, by chance, where there are both.
        let by_chance = self.under_way.is_empty() || chain(self.now_us, 7).is_multiple_of(2);
        let waits_for_load = is_waiting && !self.loads.is_empty() && by_chance;
        output.num_loaded = self.land_loads(waits_for_load);
        output.encoded = self.land(is_waiting && !waits_for_load);
        Ok(output)
    }
}

/// How long a step takes.
fn cost_us(batch: &Batch) -> u64 {
    let patches: usize = batch.encodes.iter().map(|encode| encode.image.num_patches()).sum();
    400 + 3 * batch.stores.len() as u64 + 9 * batch.num_tokens() as u64 + 5 * patches as u64
}

/// The guesses at the end of an item.
fn drafts(item: &BatchItem) -> &[TokenId] {
    let num_drafts = item.sample.as_ref().map_or(0, |sample| sample.num_drafts);
    &item.tokens[item.tokens.len() - num_drafts..]
}
