//! Decides, step by step, which tokens of which sequences run next and where their keys and values live.
//! Knows nothing of models, devices, clocks, threads or HTTP.

mod batch;
mod block_pool;
mod engine;
mod sampling;
mod sequence;

pub use batch::{
    Batch, BatchItem, Failure, History, ImageEncode, ImageRows, Sample, Sampled, SampledToken, StepOutput,
};
pub use block_pool::BlockId;
pub use engine::ModelRunner;
pub use sampling::{InvalidParam, SamplingParams};
pub use sequence::{Digest, FinishReason, ImageInput, ImageSpan, Reject, Sequence, SequenceId, TokenId};
