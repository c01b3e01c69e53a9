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
    /// The engine stopped before the sequence ended, or did not take it.
    Failed(StopReason),
}

/// Why an adapter is not in the runner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AddError {
    /// Its words.
    Refused(String),
    /// The server is told to stop, or the engine failed.
    Stopped,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopReason {
    /// The server was told to stop and this sequence did not end in time.
    Shutdown,
    Failure(String),
    /// The adapter was unloaded after it was looked up and before the engine saw the sequence.
    AdapterGone,
}
