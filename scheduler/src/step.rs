//! What a step tells its caller: events for the streams, numbers for the metrics.

use crate::image_cache::Acquired;
use crate::{BatchItem, Failure, PooledSum, PromptLogprob, SampledToken, SequenceId};

#[derive(Debug, Default)]
pub struct Step {
    pub events: Vec<Event>,
    pub stats: StepStats,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Took its place among the running for the first time, in this step; so many tokens of its prompt were in memory already.
    Started {
        id: SequenceId,
        cached_tokens: usize,
    },
    /// Of the next so many tokens of the prompt, in order; all are told before the first token is.
    PromptLogprobs {
        id: SequenceId,
        logprobs: Vec<PromptLogprob>,
    },
    /// Of the whole prompt.
    Pooled {
        id: SequenceId,
        pooled: PooledSum,
    },
    Token {
        id: SequenceId,
        token: SampledToken,
    },
    /// The last event of a sequence. An aborted one has none.
    Finished {
        id: SequenceId,
        reason: FinishReason,
        preemptions: usize,
    },
}

impl Event {
    pub fn id(&self) -> SequenceId {
        match self {
            Event::Started { id, .. }
            | Event::PromptLogprobs { id, .. }
            | Event::Pooled { id, .. }
            | Event::Token { id, .. }
            | Event::Finished { id, .. } => *id,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop token was sampled; it is the last token.
    Stop,
    /// The constraint lets nothing follow the last token, which is part of the answer.
    Complete,
    /// `max_tokens` were generated; where that is 0, the prompt is computed.
    Length,
    /// The model could not go on with this sequence; the others of the step are unharmed.
    Failed(Failure),
}

/// Counts of one step. Nothing is added up here: the caller does that.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StepStats {
    /// Tokens of prompts, and tokens computed again after a preemption.
    pub prefill_tokens: usize,
    /// Tokens of sequences that needed this one only, and had generated it.
    pub decode_tokens: usize,
    /// Of the batch's tokens those that run again, because their sequences were deferred; they are not among the two above.
    pub deferred_tokens: usize,
    /// Of the batch's tokens those that ran for nothing: each stood for a token that was still being sampled, and that one ended its sequence,
    /// or its client went; or was one that ended its sequence, as its constraint said when the step was made. They are not among the ones above.
    pub dropped_tokens: usize,
    /// The step was made, and may have been begun, while the one before it ran.
    pub is_ahead: bool,
    /// Tokens that were guessed and computed behind those.
    pub draft_tokens: usize,
    /// What became of the guesses, in the order of the batch; those of sequences aborted meanwhile are left out.
    pub drafts: Vec<DraftShare>,
    /// In the order of the batch; what the device did for each sequence, to divide its time by.
    pub shares: Vec<ItemShare>,
    pub encoded_images: usize,
    pub encoded_patches: usize,
    /// Who lost its place in this step.
    pub preempted: Vec<SequenceId>,
    /// Prompt tokens of the sequences that started in this step, and how many of them were found in memory.
    pub prefix_queries: usize,
    pub prefix_hits: usize,
    /// Of these hits those in the host's memory.
    pub host_hits: usize,
    /// Blocks whose content was copied to the host in this step, and blocks whose content was lost, as all room there was taken by this very step or
    /// was being read.
    pub stored_blocks: usize,
    pub lost_blocks: usize,
    /// Blocks that began to be copied from the host, for sequences that started or came back.
    pub loaded_blocks: usize,
    /// Pictures that sequences began to read, and how many of them had been encoded before.
    pub image_queries: usize,
    pub image_hits: usize,
    /// At the end of the step.
    pub occupancy: Occupancy,
}

impl StepStats {
    /// Of an item that computes its sequence to the end.
    pub(crate) fn count_to_the_end(&mut self, num_tokens: usize, num_generated: usize) {
        *self.counter_to_the_end(num_tokens, num_generated) += num_tokens;
    }

    /// The last token of an item that was to sample runs again, and counts then.
    pub(crate) fn count_deferred(&mut self, num_tokens: usize, num_generated: usize) {
        *self.counter_to_the_end(num_tokens, num_generated) -= 1;
        self.deferred_tokens += 1;
    }

    /// An item of a sequence that had ended by the time, or a placeholder of one that has gone.
    pub(crate) fn count_for_nothing(&mut self, item: &BatchItem) {
        let num_tokens = item.tokens.len();
        let counter = match &item.sample {
            Some(sample) => self.counter_to_the_end(num_tokens, sample.num_generated),
            None => &mut self.prefill_tokens,
        };
        *counter -= num_tokens;
        self.dropped_tokens += num_tokens;
    }

    fn counter_to_the_end(&mut self, num_tokens: usize, num_generated: usize) -> &mut usize {
        let is_decode = num_tokens == 1 && num_generated > 0;
        if is_decode { &mut self.decode_tokens } else { &mut self.prefill_tokens }
    }

    /// Tokens that the step computed and that were not guessed wrong.
    pub fn num_useful_tokens(&self) -> usize {
        self.prefill_tokens + self.decode_tokens + self.num_accepted()
    }

    /// Drafts that were right.
    pub fn num_accepted(&self) -> usize {
        self.drafts.iter().map(|draft| draft.num_accepted).sum()
    }

    pub(crate) fn count_image(&mut self, acquired: Acquired) {
        self.image_queries += 1;
        self.image_hits += usize::from(acquired == Acquired::Cached);
    }
}

/// One draft of one sequence, verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DraftShare {
    pub id: SequenceId,
    pub num_drafted: usize,
    /// So many of them, from the first on, are what the model said.
    pub num_accepted: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ItemShare {
    pub id: SequenceId,
    /// Drafts among them.
    pub num_tokens: usize,
    /// Patches encoded because this sequence came to the picture first.
    pub encoded_patches: usize,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Occupancy {
    pub running: usize,
    pub waiting: usize,
    /// Blocks that some sequence holds; free ones may still be found as a prefix.
    pub blocks_used: usize,
    pub blocks_total: usize,
    /// Blocks of the host's memory that hold something.
    pub host_blocks_used: usize,
    pub host_blocks_total: usize,
    /// Image blocks that hold an embedding, in use or not.
    pub image_blocks_used: usize,
    pub image_blocks_total: usize,
}

/// What a step will tell that was made and is not yet taken in.
#[derive(Debug)]
pub(crate) struct InFlight {
    pub started: Vec<Event>,
    pub stats: StepStats,
    /// Who ended while it ran, by what a constraint said of a token of an earlier step.
    pub ended: Vec<SequenceId>,
}
