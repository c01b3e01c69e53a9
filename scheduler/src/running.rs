//! A sequence on its way: what is remembered while it waits, and what it holds while it runs.

use crate::block_pool::{BlockTable, TakenBlocks};
use crate::content::ContentChain;
use crate::host_tier::HostBlockId;
use crate::image_cache::{Acquired, ImageCache};
use crate::ngram::Drafter;
use crate::prompt::PromptProgress;
use crate::{
    Accepted, BatchItem, Failure, FinishReason, History, ImageRows, ImageSpan, ItemTokens, MAX_DEFERRALS,
    PromptWork, Sample, SchedulerConfig, Sequence, SequenceId, TokenId,
};

/// The one order of sequences: lower goes first, higher is preempted first. Ids grow with the time of arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    pub priority: i32,
    pub id: SequenceId,
}

/// A sequence and what outlives a preemption.
#[derive(Debug)]
pub(crate) struct Job {
    pub sequence: Sequence,
    pub chain: ContentChain,
    /// What is still to be told of its prompt.
    pub prompt: Option<Box<PromptProgress>>,
    /// Guesses what comes next, where that is wanted.
    pub drafter: Option<Box<Drafter>>,
    pub preemptions: usize,
    /// It was running before, and that was told.
    pub started: bool,
}

impl Job {
    pub fn new(sequence: Sequence) -> Self {
        let chain = ContentChain::new(sequence.salt, sequence.adapter);
        let prompt = sequence.prompt_output.map(|output| PromptProgress::new(output, sequence.prompt_len));
        let prompt = prompt.map(Box::new);
        // A mask is of one position: what a constraint lets follow a guess would have to be asked of a copy of it.
        let drafter = sequence.speculation.filter(|_| sequence.constraint.is_none());
        let drafter = drafter.map(|config| Box::new(Drafter::new(config)));
        Self { sequence, chain, prompt, drafter, preemptions: 0, started: false }
    }

    /// Whether the host has to know the last token before the next one is computed, as guesses follow from it: nobody goes on behind a step in
    /// which it samples.
    pub fn needs_token_to_compute(&self) -> bool {
        self.drafter.is_some()
    }

    /// Whether the host has to know the last token before the next one is drawn, as a mask or penalties follow from it.
    fn needs_token_to_draw(&self) -> bool {
        self.sequence.constraint.is_some() || self.sequence.params.needs_history()
    }

    pub fn rank(&self) -> Rank {
        Rank { priority: self.sequence.priority, id: self.sequence.id }
    }

    /// Tokens, counted from the first, whose blocks may be found by others and taken from others.
    pub fn sharable_len(&self, config: &SchedulerConfig) -> usize {
        self.sequence.tokens.len().min(config.share_decoded_below.max(self.sequence.prompt_len))
    }

    /// Blocks that it can take from others. The last token is always computed, even on a full hit: its logits are needed. So is
    /// every row that is to be told.
    pub fn max_shared_blocks(&self, config: &SchedulerConfig) -> usize {
        let skippable = self.prompt.as_ref().map_or(usize::MAX, |progress| progress.num_skippable());
        self.sharable_len(config).min(self.sequence.tokens.len() - 1).min(skippable) / config.block_size
    }

    /// A long prompt is read as it is computed, not in the step that drafts first.
    pub fn read_for_drafts(&mut self, len: usize) {
        if let Some(drafter) = &mut self.drafter {
            drafter.read(&self.sequence.tokens[..len], &self.sequence.images);
        }
    }

    /// Brings the chain up to `len` tokens, as far as they are sharable.
    pub fn extend_chain(&mut self, len: usize, config: &SchedulerConfig) {
        let len = len.min(self.sharable_len(config));
        self.chain.extend(&self.sequence.tokens[..len], &self.sequence.images, config.block_size);
    }
}

/// In place of a token that is being sampled.
const PLACEHOLDER: TokenId = 0;

/// Names a load, in the order in which they were asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LoadId(pub u64);

/// Copies under way, for one sequence.
#[derive(Debug)]
pub(crate) struct Loading {
    pub id: LoadId,
    pub rank: Rank,
    /// Which blocks of its table are loaded, and from where.
    pub places: Vec<(usize, HostBlockId)>,
}

impl Loading {
    pub fn hosts(&self) -> impl Iterator<Item = HostBlockId> {
        self.places.iter().map(|&(_, host)| host)
    }
}

/// A sequence that holds blocks.
#[derive(Debug)]
pub(crate) struct Running {
    pub job: Job,
    /// Covers all tokens that are known, from admission on: a prompt never waits for memory half-way.
    pub table: BlockTable,
    /// Tokens that have their keys and values in `table`, or will when they are loaded.
    pub computed: usize,
    /// Tokens that will have before this step: more than `computed` where the step before runs.
    pub begun: usize,
    /// Tokens that will have after this step.
    pub planned: usize,
    /// The row of the step that runs which samples the token after `job.sequence.tokens`, where this sequence goes on behind it.
    pub pending: Option<usize>,
    /// Guesses of what follows them, computed in this step too; none between steps.
    pub drafts: Vec<TokenId>,
    /// Blocks of `table`, counted from the first, that are shared or were published.
    pub published: usize,
    /// What it waits for, if a part of its prefix is being copied from the host.
    pub loading: Option<LoadId>,
    /// Pictures, counted from the first, of which all positions are computed.
    pub images_left: usize,
    /// Pictures, counted from the first, whose embedding it has asked for and got. From `images_left` on they are pinned.
    pub images_entered: usize,
    /// When it was admitted it had more to compute than a step can.
    pub is_long: bool,
    /// When it last had a turn among the long ones.
    pub last_turn: u64,
    /// Patches encoded for it in the step that is being made; 0 between steps.
    pub encoded_patches: usize,
    /// How often it has run its last token because the mask of the next one was not there.
    pub deferrals: usize,
}

impl Running {
    pub fn new(job: Job, blocks: TakenBlocks, config: &SchedulerConfig) -> Self {
        let TakenBlocks { table, num_shared, loads } = blocks;
        let computed = num_shared * config.block_size;
        let first_image = job.sequence.images.partition_point(|span| span.end() <= computed);
        let is_long = job.sequence.tokens.len() - computed > config.max_batched_tokens;
        Self {
            job,
            table,
            computed,
            begun: computed,
            planned: computed,
            pending: None,
            drafts: Vec::new(),
            published: loads.first().map_or(num_shared, |&(index, _)| index),
            loading: None,
            images_left: first_image,
            images_entered: first_image,
            is_long,
            last_turn: 0,
            encoded_patches: 0,
            deferrals: 0,
        }
    }

    /// Its tokens, and the one that is being sampled.
    pub fn len(&self) -> usize {
        self.job.sequence.tokens.len() + usize::from(self.pending.is_some())
    }

    /// Tokens to compute before the next one can be sampled. 0 between steps only while one runs, and then only for who ends with it
    /// in any case; and for who waits for its prefix, which has nothing to do before that.
    pub fn num_left(&self) -> usize {
        if self.loading.is_some() { 0 } else { self.len() - self.planned }
    }

    /// What may follow its last token, up to `max_len` tokens: only of one that does nothing else in this step than to go on by a token.
    /// The last token of an answer is never guessed, and nothing behind a token that ends it: these are sampled anyway.
    pub fn guess(&mut self, max_len: usize) -> Vec<TokenId> {
        let decodes = self.planned == self.begun + 1 && self.num_left() == 0;
        // The drafts of a sequence are those of one step.
        let runs = self.begun > self.computed;
        let Job { sequence, drafter: Some(drafter), .. } = &mut self.job else { return Vec::new() };
        let num_generated = sequence.tokens.len() - sequence.prompt_len;
        let params = &sequence.params;
        let room = params.max_tokens.saturating_sub(num_generated + 1).min(max_len);
        if !decodes || runs || num_generated == 0 || room == 0 {
            return Vec::new();
        }
        let mut drafts = drafter.draft(&sequence.tokens, &sequence.images, room);
        let ends = |token: &TokenId| params.stop_token_ids.binary_search(token).is_ok();
        drafts.truncate(drafts.iter().position(ends).unwrap_or(drafts.len()));
        drafts
    }

    /// Notes that its next picture is on the device, or will be when the step runs.
    pub fn enter_image(&mut self, acquired: Acquired) {
        if acquired == Acquired::Encoded {
            self.encoded_patches += self.job.sequence.images[self.images_entered].image.num_patches();
        }
        self.images_entered += 1;
    }

    pub fn pinned(&self) -> &[ImageSpan] {
        &self.job.sequence.images[self.images_left..self.images_entered]
    }

    /// Whether all its pictures are read to their end.
    pub fn has_left_pictures(&self) -> bool {
        self.images_left == self.job.sequence.images.len()
    }

    /// Tokens after which the next one is sampled: how many were generated by then.
    pub fn num_generated(&self) -> usize {
        self.len() - self.job.sequence.prompt_len
    }

    /// Whether blocks of it that are not yet computed will be published.
    pub fn next_to_publish(&self) -> Option<&crate::Digest> {
        self.job.chain.digests().get(self.published)
    }

    /// What was planned, as an item; `None` when it sits this step out.
    pub fn item(&mut self, images: &ImageCache, block_size: usize) -> Option<BatchItem> {
        if self.planned == self.begun {
            return None;
        }
        let sequence = &self.job.sequence;
        let tokens = match self.pending {
            None => &sequence.tokens[self.begun..self.planned],
            Some(_) => &[PLACEHOLDER],
        };
        let num_blocks = (self.planned + self.drafts.len()).div_ceil(block_size);
        Some(BatchItem {
            id: sequence.id,
            adapter: sequence.adapter,
            tokens: ItemTokens::joined(tokens, &self.drafts),
            placeholder_for: self.pending,
            context_len: self.begun,
            prompt_len: sequence.prompt_len,
            position_shift: self.position_shift(),
            blocks: self.table.lend(num_blocks),
            images: self.image_rows(images),
            prompt: self.prompt_work(),
            sample: self.samples().then(|| self.sample()),
        })
    }

    /// Of what is computed in this step: pictures before it have fewer positions than tokens.
    fn position_shift(&self) -> usize {
        let before = self.job.sequence.images.iter().take_while(|span| span.end() <= self.begun);
        before.map(|span| span.image.num_tokens - span.image.num_positions()).sum()
    }

    fn image_rows(&self, images: &ImageCache) -> Vec<ImageRows> {
        let overlap = |span: &ImageSpan| {
            let (start, end) = (span.start.max(self.begun), span.end().min(self.planned));
            (start < end).then(|| ImageRows {
                first_token: start - self.begun,
                first_row: start - span.start,
                len: end - start,
                position_grid: span.image.position_grid,
                rows: images.rows(&span.image.digest).to_vec(),
            })
        };
        self.pinned().iter().filter_map(overlap).collect()
    }

    fn prompt_work(&mut self) -> Option<PromptWork> {
        let Job { prompt, sequence, .. } = &mut self.job;
        prompt.as_mut()?.work(&sequence.tokens, self.begun..self.planned)
    }

    fn samples(&self) -> bool {
        self.planned == self.len() && self.job.sequence.params.max_tokens > 0
    }

    fn sample(&mut self) -> Sample {
        let mut sample = Sample {
            params: self.job.sequence.params.clone(),
            position: self.len(),
            num_generated: self.num_generated(),
            num_drafts: self.drafts.len(),
            is_incomplete: self.pending.is_some() && self.job.needs_token_to_draw(),
            history: None,
            mask: None,
            // Who goes on behind a row is not deferred in it.
            may_be_deferred: self.pending.is_some() || self.deferrals < MAX_DEFERRALS,
        };
        if !sample.is_incomplete {
            self.put_in(&mut sample);
        }
        sample
    }

    /// What a sample depends on beside the logits, when all tokens before it are known.
    pub fn put_in(&mut self, sample: &mut Sample) {
        let Sequence { params, tokens, prompt_len, constraint, .. } = &mut self.job.sequence;
        let history = || History { tokens: [&tokens[..], &self.drafts].concat(), prompt_len: *prompt_len };
        sample.history = params.needs_history().then(history);
        sample.mask = constraint.as_mut().and_then(|constraint| constraint.next_mask());
    }
}

/// What becomes of a sequence with the token sampled last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    GoesOn,
    Ends(FinishReason),
    /// It goes on unless its constraint, which has begun to take the token in, says that it ends.
    Accepting,
}

impl From<Option<FinishReason>> for Outcome {
    fn from(reason: Option<FinishReason>) -> Self {
        reason.map_or(Outcome::GoesOn, Outcome::Ends)
    }
}

/// Takes in the token sampled last, or has its constraint begin to.
pub(crate) fn outcome(sequence: &mut Sequence) -> Outcome {
    let last = *sequence.tokens.last().expect("a prompt is not empty");
    let end = end_of(sequence);
    let Some(constraint) = &mut sequence.constraint else { return end.into() };
    match (constraint.begin_accept(last), end) {
        (_, Some(FinishReason::Stop)) => Outcome::Ends(FinishReason::Stop),
        (None, None) => Outcome::Accepting,
        // It ends here in any case: how is what the constraint says, which is asked once an answer.
        (None, Some(_)) => end_by(constraint.finish_accept(), end).into(),
        (Some(accepted), _) => end_by(accepted, end).into(),
    }
}

/// How a sequence ends with a token of which its constraint said `accepted`, and which ends it as `end` says in any case.
pub(crate) fn end_by(accepted: Accepted, end: Option<FinishReason>) -> Option<FinishReason> {
    match accepted {
        Accepted::Open => end,
        Accepted::Complete => Some(FinishReason::Complete),
        Accepted::Failed => Some(end.unwrap_or(FinishReason::Failed(Failure::Constraint))),
    }
}

fn end_of(sequence: &Sequence) -> Option<FinishReason> {
    let params = &sequence.params;
    let generated = sequence.num_generated();
    let last = sequence.tokens.last().expect("a prompt is not empty");
    // As with the mask that keeps them from being sampled: the first `min_tokens` tokens end nothing.
    if generated > params.min_tokens && params.stop_token_ids.binary_search(last).is_ok() {
        Some(FinishReason::Stop)
    } else if generated >= params.max_tokens {
        Some(FinishReason::Length)
    } else {
        None
    }
}
