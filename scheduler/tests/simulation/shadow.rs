//! A model made of hashes. Its memory is a *shadow* of the device's: each key-value slot remembers the hash of the whole prefix
//! whose key and value it would hold, each row of the image cache the picture and row that it would show. Before a token is
//! computed, everything that it would read is compared with the truth, so a block given to two writers, a stale prefix hit, a
//! lost recompute, a copy that comes late or a picture that is not there shows up at once, without a model.

use crate::rng::chain;
use crate::truth::{Machine, Truth, short, state_words};
use scheduler::{
    Batch, BatchItem, BlockCopy, BlockId, Digest, DraftShare, Failure, FinishReason, MAX_DEFERRALS,
    ModelRunner, PromptOutput, PromptResult, PromptTask, Sample, Sampled, SchedulerConfig, SequenceId,
    StepOutput, TokenId,
};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

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

/// A picture that is encoded beside the steps: until it lands its rows show nothing.
#[derive(Debug)]
struct Flight {
    digest: Digest,
    /// Of the image cache, for each of the picture's rows.
    rows: Vec<usize>,
    patches: usize,
    steps_left: u64,
}

/// Copies from the second tier for one sequence: their blocks hold nothing until these have arrived.
#[derive(Debug)]
struct Load {
    copies: Vec<BlockCopy>,
    /// What the places held when the copies were begun, behind the step before theirs; `None`: they are not yet.
    contents: Option<Vec<Vec<Option<Slot>>>>,
    has_arrived: bool,
    steps_left: u64,
}

/// What the batch held, counted without the scheduler's help.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Counts {
    pub num_tokens: usize,
    /// Who needs one token only and had generated it, but for those deferred.
    pub decodes: Vec<SequenceId>,
    pub images: usize,
    pub patches: usize,
    /// Rows of which something was told.
    pub prompt_rows: usize,
    /// Who runs its last token again in the next step.
    pub deferred: Vec<SequenceId>,
    /// Tokens that were guessed, and what becomes of each draft.
    pub draft_tokens: usize,
    pub drafts: Vec<DraftShare>,
    /// Who goes on with a token that was not known when the step was made.
    pub placeholders: Vec<SequenceId>,
    /// Sequence and tokens of each item.
    pub items: Vec<(SequenceId, usize)>,
    /// Blocks that are stored, and those that are loaded for each sequence.
    pub stores: usize,
    pub loads: Vec<(SequenceId, usize)>,
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

    fn encode(&mut self, batch: &Batch) {
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

    fn block(&self, id: BlockId) -> &[Option<Slot>] {
        &self.slots[id.0 as usize * self.config.block_size..][..self.config.block_size]
    }

    /// Behind the step before: what was to be stored may have been copied since the step was begun.
    fn store(&mut self, batch: &Batch) {
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
    fn begin_loads(&mut self, batch: &Batch) {
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
    fn arrive(&mut self, num: usize) {
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
    fn land_loads(&mut self, is_waiting: bool) -> usize {
        let begun = self.loads.iter().take_while(|load| load.contents.is_some());
        let done = begun.take_while(|load| load.steps_left == 0 || load.has_arrived).count();
        let num_loaded = done.max(usize::from(is_waiting));
        self.arrive(num_loaded);
        self.loads.drain(..num_loaded);
        self.loads.iter_mut().for_each(|load| load.steps_left = load.steps_left.saturating_sub(1));
        num_loaded
    }

    /// The pictures that are there after this step, in the order in which they were begun; one at least where nothing else was done.
    fn land(&mut self, is_waiting: bool) -> Vec<Digest> {
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

    fn check_placeholder(&self, item: &BatchItem) {
        let (id, truth) = (item.id, &self.truths[&item.id]);
        assert_eq!((item.tokens.len(), item.prompt.is_some(), item.images.len()), (1, false, 0), "{id:?}");
        let sample = item.sample.as_ref().expect("who goes on samples");
        assert_eq!(sample.num_drafts, 0, "{id:?}");
        let guesses = truth.sequence.speculation().is_some() && truth.sequence.constraint.is_none();
        assert!(!guesses, "{id:?} needs its last token");
        let ended_for_sure = self.gone.get(&id).is_some_and(|reason| *reason == Some(FinishReason::Length));
        assert!(!ended_for_sure, "{id:?} goes on beyond its last token");
    }

    /// The tokens of an item's sequence with the guesses behind them, as if they were right.
    fn with_drafts(&self, item: &BatchItem) -> Cow<'_, Truth> {
        let mut truth = self.truth(item);
        drafts(item).iter().for_each(|&token| truth.to_mut().push(token));
        truth
    }

    /// Compares positions `from..to` of an item's memory with the truth.
    fn compare(&self, item: &BatchItem, from: usize, to: usize) {
        let truth = self.with_drafts(item);
        for position in from..to {
            let hash = self.slots[self.slot(item, position)].map(|slot| slot.hash);
            assert_eq!(hash, Some(truth.hashes[position]), "{:?} reads a wrong key at {position}", item.id);
        }
    }

    fn check_context(&self, item: &BatchItem) {
        let size = self.config.block_size;
        assert!(!item.tokens.is_empty(), "{:?} has nothing to compute", item.id);
        let adapter = self.truths[&item.id].sequence.adapter;
        assert_eq!(item.adapter, adapter, "{:?} runs with the weights of another", item.id);
        assert!(item.blocks.len() * size >= item.end(), "{:?} has not enough blocks", item.id);
        let distinct: BTreeSet<_> = item.blocks.iter().collect();
        assert_eq!(distinct.len(), item.blocks.len(), "{:?} has a block twice", item.id);
        self.compare(item, 0, item.context_len);
        match self.ends.get(&item.id) {
            Some(&end) => assert_eq!(item.context_len, end, "{:?} skips or repeats tokens", item.id),
            None => {
                assert_eq!(item.context_len % size, 0, "{:?} starts inside a block", item.id);
                assert!(self.config.enable_prefix_caching || item.context_len == 0, "a hit without a cache");
                for position in 0..item.context_len {
                    let writer = self.slots[self.slot(item, position)].expect("compared above").writer;
                    let is_clean =
                        self.poisoners.get(&writer).is_none_or(|excused| excused.contains(&item.id));
                    assert!(is_clean, "{:?} takes a poisoned block", item.id);
                }
            }
        }
    }

    fn check_images(&self, item: &BatchItem) {
        let (truth, size) = (self.truth(item), self.config.image_rows_per_block);
        let mut shown = BTreeMap::new();
        for images in &item.images {
            for i in 0..images.len {
                let row = images.first_row + i;
                let index = images.rows[row / size].0 as usize * size + row % size;
                let position = item.context_len + images.first_token + i;
                assert!(position < item.end(), "a picture's row beyond the chunk");
                assert!(shown.insert(position, self.image_rows[index]).is_none(), "two rows for {position}");
            }
        }
        for position in item.context_len..item.end() {
            let expected = truth.image_at(position);
            let actual = shown.get(&position).copied().flatten();
            assert_eq!(actual, expected, "{:?} shows a wrong row at {position}", item.id);
        }
        // Where there is no picture there is nothing to go wrong, and much to count.
        let ends = [item.context_len, item.end() - 1];
        let rotary: Vec<_> = item.rotary_positions().collect();
        if !truth.sequence.images().is_empty() && truth.tokens.len() == item.end() {
            for position in ends {
                let expected = truth.rotary_position(position);
                assert_eq!(rotary[position - item.context_len], expected, "{:?} at {position}", item.id);
            }
        }
    }

    fn check_sample(&self, item: &BatchItem) {
        let (truth, drafts) = (self.truth(item), drafts(item));
        let end = item.end() - drafts.len();
        let known = &item.tokens[..item.tokens.len() - drafts.len()];
        if item.placeholder_for.is_none() {
            assert_eq!(*known, truth.tokens[item.context_len..end], "{:?} has wrong tokens", item.id);
        }
        let is_last = end == truth.tokens.len();
        let samples = is_last && truth.params().max_tokens > 0;
        assert_eq!(item.sample.is_some(), samples, "{:?} samples exactly after its last token", item.id);
        let Some(sample) = &item.sample else { return };
        let prompt_len = truth.sequence.prompt_len();
        assert_eq!(sample.params.seed, truth.params().seed);
        assert_eq!(sample.position, truth.tokens.len());
        assert_eq!(sample.num_generated, truth.tokens.len() - prompt_len);
        assert_eq!(sample.history.is_some(), truth.params().needs_history());
        let deferrals = self.deferrals.get(&item.id).copied().unwrap_or(0);
        assert_eq!(sample.may_be_deferred, deferrals < MAX_DEFERRALS, "{:?} after {deferrals}", item.id);
        if self.gone.contains_key(&item.id) {
            // Nobody looks at what it says.
            return;
        }
        let mask = sample.mask.as_ref().map(|mask| mask.allowed().expect("it is there").to_vec());
        let expected = truth.sequence.constraint.as_ref().map(|_| state_words(truth.state()).to_vec());
        assert_eq!(mask, expected, "{:?} is drawn under a mask of another state", item.id);
        for row in sample.rows() {
            let Some((history, history_prompt_len)) = row.history() else { continue };
            let expected = [&truth.tokens[..], &drafts[..row.index]].concat();
            assert_eq!((history, history_prompt_len), (&expected[..], prompt_len));
            assert_eq!(row.position() - row.num_generated(), prompt_len);
        }
        self.check_drafts(item, drafts);
    }

    fn check_drafts(&self, item: &BatchItem, drafts: &[TokenId]) {
        let (truth, id) = (&self.truths[&item.id], item.id);
        if drafts.is_empty() {
            return;
        }
        let config = truth.sequence.speculation().expect("only those who want to draft");
        assert!(drafts.len() <= config.num_speculative_tokens, "{id:?} drafts too much");
        assert!(item.tokens.len() == 1 + drafts.len() && item.prompt.is_none(), "{id:?} drafts in a prompt");
        let most = truth.sequence.prompt_len() + truth.params().max_tokens;
        assert!(truth.tokens.len() + drafts.len() < most, "{id:?} drafts beyond its answer");
        assert!(!drafts.contains(&0), "{id:?} drafts a picture");
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

    fn describe(&mut self, batch: &Batch) {
        let mut text = String::new();
        for encode in &batch.encodes {
            text += &format!(" encode {:x}", short(&encode.image.digest) & 0xfff);
        }
        let mut counts = Counts { images: batch.encodes.len(), ..Counts::default() };
        for BlockCopy { block, host } in &batch.stores {
            text += &format!(" store {} in {}", block.0, host.0);
        }
        for load in &batch.loads {
            text += &format!(" load {:?} for #{}", load.copies, load.id.0);
        }
        counts.stores = batch.stores.len();
        counts.loads = batch.loads.iter().map(|load| (load.id, load.copies.len())).collect();
        counts.patches = batch.encodes.iter().map(|encode| encode.image.num_patches()).sum();
        for item in &batch.items {
            let mark = if item.sample.is_some() { "+" } else { "" };
            let told = item.prompt.as_ref().map_or(0, |work| work.rows.len());
            let mark = if told > 0 { format!("{mark}({told} rows)") } else { mark.to_owned() };
            counts.prompt_rows += told;
            text += &format!(" #{}[{}..{}]{mark}", item.id.0, item.context_len, item.end());
            counts.num_tokens += item.tokens.len();
            let truth = &self.truths[&item.id];
            let num_drafts = drafts(item).len();
            let is_placeholder = item.placeholder_for.is_some();
            let is_decode = item.tokens.len() == 1 + num_drafts
                && (is_placeholder || truth.tokens.len() > truth.sequence.prompt_len());
            counts.placeholders.extend(is_placeholder.then_some(item.id));
            counts.draft_tokens += num_drafts;
            counts.decodes.extend((is_decode && item.sample.is_some()).then_some(item.id));
            counts.items.push((item.id, item.tokens.len()));
        }
        self.last_batch = text;
        self.last_counts = counts;
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
