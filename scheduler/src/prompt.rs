//! What a sequence may want of its prompt, beside an answer or instead of one. The numbers are the runner's; here is only which
//! rows are wanted, and that each is told once, in order, however the prompt is cut into chunks and however often it starts over.
//!
//! ```text
//! prompt    t0  t1  t2  t3
//! rows       0   1   2   3      row i is what the model made of token i and all before it; it predicts token i + 1
//!            └───┴───┘          log-probabilities of t1, t2, t3
//!                        └      pooled: the last token
//!            └───┴───┴───┘      pooled: the mean
//! ```
//! A row that is wanted and not yet told must be computed by the sequence itself: prefix hits end before it. Rows that were told
//! may be found in the cache again, as after a preemption.

use crate::sampling::MAX_LOGPROBS;
use crate::{
    Event, Failure, InvalidParam, PooledSum, PromptResult, PromptTask, PromptWork, RowSum, SequenceId,
    TokenId,
};
use std::ops::Range;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PromptOutput {
    /// Of the prompt's tokens from position `first` on, at least 1: how probable each is after the tokens before it, and the `top`
    /// most probable tokens in its place.
    Logprobs { first: usize, top: usize },
    /// One vector for the whole prompt, from the last layer's states after their norm.
    Pooled(Pooling),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The state of the last token, which has seen all the others.
    Last,
    /// The mean of all states.
    Mean,
}

impl PromptOutput {
    pub(crate) fn check(self, prompt_len: usize) -> Result<(), InvalidParam> {
        let fail = |message: String| Err(InvalidParam { param: "prompt_logprobs", message });
        match self {
            PromptOutput::Logprobs { top, .. } if top > MAX_LOGPROBS => {
                fail(format!("at most {MAX_LOGPROBS} alternatives can be reported"))
            }
            PromptOutput::Logprobs { first, .. } if first == 0 || first > prompt_len => {
                fail(format!("token {first} of {prompt_len} has no tokens before it, or is none"))
            }
            PromptOutput::Logprobs { .. } | PromptOutput::Pooled(_) => Ok(()),
        }
    }

    /// The rows that are wanted.
    fn rows(self, prompt_len: usize) -> Range<usize> {
        match self {
            PromptOutput::Logprobs { first, .. } => first - 1..prompt_len - 1,
            PromptOutput::Pooled(Pooling::Last) => prompt_len - 1..prompt_len,
            PromptOutput::Pooled(Pooling::Mean) => 0..prompt_len,
        }
    }

    /// Most events that tell of it: a chunk may be one token long.
    pub(crate) fn num_events_max(self, prompt_len: usize) -> usize {
        match self {
            PromptOutput::Logprobs { .. } => self.rows(prompt_len).len(),
            PromptOutput::Pooled(_) => 1,
        }
    }
}

/// How far a prompt's output has come. It outlives a preemption.
#[derive(Debug)]
pub(crate) struct PromptProgress {
    output: PromptOutput,
    /// Wanted and not yet told.
    rows: Range<usize>,
    /// The running sum, while it is not on its way with an item.
    sum: RowSum,
}

impl PromptProgress {
    pub fn new(output: PromptOutput, prompt_len: usize) -> Self {
        Self { output, rows: output.rows(prompt_len), sum: RowSum::default() }
    }

    /// Tokens, counted from the first, whose rows nobody needs any more.
    pub fn num_skippable(&self) -> usize {
        if self.rows.is_empty() { usize::MAX } else { self.rows.start }
    }

    /// What a chunk that computes positions `chunk` of `tokens` has to tell.
    pub fn work(&mut self, tokens: &[TokenId], chunk: Range<usize>) -> Option<PromptWork> {
        let rows = self.rows.start.max(chunk.start)..self.rows.end.min(chunk.end);
        if rows.is_empty() {
            return None;
        }
        assert_eq!(rows.start, self.rows.start, "rows of a prompt were passed over");
        let task = match self.output {
            PromptOutput::Logprobs { top, .. } => {
                PromptTask::Logprobs { targets: tokens[rows.start + 1..rows.end + 1].to_vec(), top }
            }
            PromptOutput::Pooled(_) => PromptTask::Sum(std::mem::take(&mut self.sum)),
        };
        Some(PromptWork { rows: rows.start - chunk.start..rows.end - chunk.start, task })
    }

    /// Takes in what became of it.
    pub fn take(
        &mut self,
        id: SequenceId,
        work: &PromptWork,
        result: PromptResult,
    ) -> Result<Option<Event>, Failure> {
        let told = work.rows.len();
        self.rows.start += told;
        match result {
            PromptResult::Failed(failure) => Err(failure),
            PromptResult::Logprobs(logprobs) => {
                assert_eq!(logprobs.len(), told, "a log-probability for each row");
                Ok(Some(Event::PromptLogprobs { id, logprobs }))
            }
            PromptResult::Sum(sum) if self.rows.is_empty() => {
                let num_rows = match self.output {
                    PromptOutput::Pooled(Pooling::Mean) => self.rows.end,
                    _ => 1,
                };
                Ok(Some(Event::Pooled { id, pooled: PooledSum { sum, num_rows } }))
            }
            PromptResult::Sum(sum) => {
                self.sum = sum;
                Ok(None)
            }
        }
    }
}
