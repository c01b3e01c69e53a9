//! Decides, step by step, which tokens of which sequences run next and where their keys and values live.
//! Knows nothing of models, devices, clocks, threads or HTTP.
//!
//! ```text
//!  (caller)  add ─▶ waiting ──schedule: blocks found──▶ running ──commit: stop | length | failed──▶ gone, Event::Finished
//!              │       ▲                                  │ │
//!    Reject ◀──┘       └────────preempt: blocks taken─────┘ └── abort (from either place) ──▶ gone, no event
//! ```
//! A sequence is moved by value, so it is in one place. Preempted is waiting again, with nothing computed; its blocks may still
//! be in memory and are then found again as a prefix. "Prefilling" and "decoding" are not states: both are
//! `computed < tokens.len()`.
//!
//! What blocks held that were given away may be kept in a second tier, the host's memory (`host_tier.rs`), and comes back from there (`loads.rs`).
//!
//! A sequence may draft: tokens that are guessed (`ngram.rs`) run behind the last known one, each row samples as if the guesses
//! before it were right, and `commit` takes rows in until one of them was not. So a step may bring several tokens, the same ones.
//!
//! On a device that works by itself the next step can be made while one runs, before its tokens are known (`ahead.rs`).
//!
//! One step is [`Engine::step`]: `schedule` (policy: `plan.rs`) makes a [`Batch`], the [`ModelRunner`] executes it, `commit`
//! takes in what was sampled. Everything is a pure function of the calls made so far: same calls, same batches.

mod accepting;
mod ahead;
mod batch;
mod block_pool;
mod commit;
mod config;
mod constraint;
mod content;
mod engine;
mod host_tier;
mod ids;
mod image;
mod image_cache;
mod loads;
mod ngram;
mod plan;
mod prompt;
mod running;
mod sampling;
mod scheduler;
mod sequence;
mod step;

pub use batch::{
    Batch, BatchItem, BlockLoad, Failure, History, ImageEncode, ImageRows, ItemTokens, MAX_DEFERRALS,
    PooledSum, PromptLogprob, PromptResult, PromptTask, PromptWork, RowSum, Sample, SampleRow, Sampled,
    SampledToken, StepOutput,
};
pub use block_pool::{BlockCopy, BlockId, BlockList, BlockPool, BlockTable, TakenBlocks};
pub use config::{InvalidConfig, SchedulerConfig};
pub use constraint::{Accepted, Constraint, TokenMask};
pub use content::ContentChain;
pub use engine::{Engine, ModelRunner};
pub use host_tier::HostBlockId;
pub use ids::{AdapterId, Digest, SequenceId, TokenId};
pub use image::{ImageInput, ImageSpan};
pub use ngram::{MAX_SPECULATIVE_TOKENS, NgramConfig};
pub use prompt::{Pooling, PromptOutput};
pub use sampling::{InvalidParam, SamplingParams};
pub use scheduler::Scheduler;
pub use sequence::{Reject, Sequence};
pub use step::{DraftShare, Event, FinishReason, ItemShare, Occupancy, Step, StepStats};
