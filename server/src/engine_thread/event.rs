//! What a client is told of its sequence.

use super::progress::Spent;
use scheduler::{FinishReason, PooledSum, PromptLogprob, Reject, SampledToken};

#[derive(Debug)]
pub enum SequenceEvent {
    /// Of the next so many tokens of the prompt.
    PromptLogprobs(Vec<PromptLogprob>),
    Pooled(PooledSum),
    Token(SampledToken, Spent),
    Finished(FinishReason, Spent),
    Rejected(Reject),
    /// The engine stopped before the sequence ended.
    Failed(StopReason),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopReason {
    /// The server was told to stop and this sequence did not end in time.
    Shutdown,
    Failure(String),
}
