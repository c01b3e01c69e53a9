//! A model made of hashes. Its memory is a *shadow* of the device's: each key-value slot remembers the hash of the whole prefix
//! whose key and value it would hold, each row of the image cache the picture and row that it would show. Before a token is
//! computed, everything that it would read is compared with the truth, so a block given to two writers, a stale prefix hit, a
//! lost recompute or a picture that is not there shows up at once, without a model.

use crate::rng::chain;
use crate::truth::{Truth, short};
use scheduler::{
    Batch, BatchItem, Failure, MAX_DEFERRALS, ModelRunner, PromptOutput, PromptResult, PromptTask, Sample,
    Sampled, SchedulerConfig, SequenceId, StepOutput,
};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Clone, Copy, PartialEq)]
struct Slot {
    hash: u64,
    /// Who computed it.
    writer: SequenceId,
}

pub struct Shadow {
    config: SchedulerConfig,
    slots: Vec<Option<Slot>>,
    image_rows: Vec<Option<(u64, usize)>>,
    pub truths: BTreeMap<SequenceId, Truth>,
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
    /// Steps of the cost model: virtual time.
    pub now_us: u64,
    /// The batch executed last, for the trace.
    pub last_batch: String,
    pub last_counts: Counts,
}

/// What the batch held, counted without the scheduler's help.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Counts {
    pub num_tokens: usize,
    pub decode_tokens: usize,
    pub images: usize,
    pub patches: usize,
    /// Rows of which something was told.
    pub prompt_rows: usize,
    /// Who runs its last token again in the next step.
    pub deferred: Vec<SequenceId>,
    /// Sequence and tokens of each item.
    pub items: Vec<(SequenceId, usize)>,
}

impl Shadow {
    pub fn new(config: SchedulerConfig) -> Self {
        Self {
            slots: vec![None; config.token_capacity()],
            image_rows: vec![None; config.image_capacity()],
            config,
            truths: BTreeMap::new(),
            ends: BTreeMap::new(),
            next_rows: BTreeMap::new(),
            deferrals: BTreeMap::new(),
            poisoners: BTreeMap::new(),
            last_encoded: None,
            now_us: 0,
            last_batch: String::new(),
            last_counts: Counts::default(),
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
            patches += image.num_patches();
            for row in 0..image.num_tokens {
                let index = encode.rows[row / size].0 as usize * size + row % size;
                assert!(written.insert(index), "two pictures in one row in one step");
                self.image_rows[index] = Some((short(&image.digest), row));
            }
        }
        assert!(patches <= self.config.max_encode_patches, "more patches than a step may encode");
    }

    /// Compares positions `from..to` of an item's memory with the truth.
    fn compare(&self, item: &BatchItem, from: usize, to: usize) {
        let truth = &self.truths[&item.id];
        for position in from..to {
            let hash = self.slots[self.slot(item, position)].map(|slot| slot.hash);
            assert_eq!(hash, Some(truth.hashes[position]), "{:?} reads a wrong key at {position}", item.id);
        }
    }

    fn check_context(&self, item: &BatchItem) {
        let size = self.config.block_size;
        assert!(!item.tokens.is_empty(), "{:?} has nothing to compute", item.id);
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
        let (truth, size) = (&self.truths[&item.id], self.config.image_rows_per_block);
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
    }

    fn check_sample(&self, item: &BatchItem) {
        let truth = &self.truths[&item.id];
        assert_eq!(item.tokens, truth.tokens[item.context_len..item.end()], "{:?} has wrong tokens", item.id);
        let is_last = item.end() == truth.tokens.len();
        let samples = is_last && truth.params().max_tokens > 0;
        assert_eq!(item.sample.is_some(), samples, "{:?} samples exactly after its last token", item.id);
        let Some(sample) = &item.sample else { return };
        let prompt_len = truth.sequence.prompt_len();
        assert_eq!(sample.params.seed, truth.params().seed);
        assert_eq!(sample.position, truth.tokens.len());
        assert_eq!(sample.num_generated, truth.tokens.len() - prompt_len);
        assert_eq!(sample.history.is_some(), truth.params().needs_history());
        if let Some(history) = &sample.history {
            assert_eq!((&history.tokens, history.prompt_len), (&truth.tokens, prompt_len));
        }
        let deferrals = self.deferrals.get(&item.id).copied().unwrap_or(0);
        assert_eq!(sample.may_be_deferred, deferrals < MAX_DEFERRALS, "{:?} after {deferrals}", item.id);
    }

    /// As if its mask were late, or what the model says.
    fn sample(&mut self, item: &BatchItem, sample: &Sample) -> Sampled {
        let truth = &self.truths[&item.id];
        let (sampled, rate) = (truth.sample(), truth.machine.deferral_rate);
        // What is not finite needs no mask to be seen.
        let has_failed = sampled == Sampled::Failed(Failure::NonFiniteLogits);
        let drawn = chain(truth.hashes[item.end() - 1], self.now_us);
        if !sample.may_be_deferred || has_failed || rate == 0 || !drawn.is_multiple_of(rate) {
            self.deferrals.remove(&item.id);
            return sampled;
        }
        *self.deferrals.entry(item.id).or_default() += 1;
        // Nobody may read the last key before it is computed again.
        let index = self.slot(item, item.end() - 1);
        self.slots[index] = None;
        self.ends.insert(item.id, item.end() - 1);
        self.last_counts.deferred.push(item.id);
        let is_decode = item.tokens.len() == 1 && sample.num_generated > 0;
        self.last_counts.decode_tokens -= usize::from(is_decode);
        Sampled::Deferred
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
        for item in &batch.items {
            for position in item.context_len..item.end() {
                let index = self.slot(item, position);
                assert!(written.insert(index), "two writers of one slot in a step");
                let hash = self.truths[&item.id].hashes[position];
                self.slots[index] = Some(Slot { hash, writer: item.id });
            }
            self.ends.insert(item.id, item.end());
        }
    }

    /// A failed row: nobody may ever take what this step wrote.
    fn spoil(&mut self, item: &BatchItem) {
        for position in item.context_len..item.end() {
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
        counts.patches = batch.encodes.iter().map(|encode| encode.image.num_patches()).sum();
        for item in &batch.items {
            let mark = if item.sample.is_some() { "+" } else { "" };
            let told = item.prompt.as_ref().map_or(0, |work| work.rows.len());
            let mark = if told > 0 { format!("{mark}({told} rows)") } else { mark.to_owned() };
            counts.prompt_rows += told;
            text += &format!(" #{}[{}..{}]{mark}", item.id.0, item.context_len, item.end());
            counts.num_tokens += item.tokens.len();
            let truth = &self.truths[&item.id];
            let is_decode = item.tokens.len() == 1 && truth.tokens.len() > truth.sequence.prompt_len();
            counts.decode_tokens += usize::from(is_decode && item.sample.is_some());
            counts.items.push((item.id, item.tokens.len()));
        }
        self.last_batch = text;
        self.last_counts = counts;
    }
}

impl ModelRunner for Shadow {
    type Error = std::convert::Infallible;

    fn execute(&mut self, batch: &Batch) -> Result<StepOutput, Self::Error> {
        self.describe(batch);
        assert!(batch.num_tokens() <= self.config.max_batched_tokens, "more tokens than a step may have");
        let patches = self.last_counts.patches as u64;
        self.now_us += 400 + 9 * batch.num_tokens() as u64 + 5 * patches;
        self.encode(batch);
        // What others wrote must have been there before this step: it cannot be read while it is being written.
        batch.items.iter().for_each(|item| self.check_context(item));
        self.write(batch);
        let mut spoilt = Vec::new();
        let mut output = StepOutput::default();
        for item in &batch.items {
            self.compare(item, 0, item.end());
            self.check_images(item);
            self.check_sample(item);
            let prompt = self.tell_prompt(item);
            let sampled = item.sample.as_ref().map(|sample| self.sample(item, sample));
            let failed = matches!(prompt, Some(PromptResult::Failed(_)));
            if failed || matches!(sampled, Some(Sampled::Failed(_))) {
                spoilt.push(item);
            }
            output.prompts.extend(prompt);
            output.sampled.extend(sampled);
        }
        spoilt.into_iter().for_each(|item| self.spoil(item));
        Ok(output)
    }
}
