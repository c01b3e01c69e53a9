//! The numbers that fix what a scheduler may hold and do in one step.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchedulerConfig {
    /// Tokens in a block of key-value memory.
    pub block_size: usize,
    pub num_blocks: usize,
    /// Blocks in the host's memory for what other blocks held that were given away; 0: that is lost. Only with a prefix cache.
    pub num_host_blocks: usize,
    /// Most tokens of one sequence, prompt and output together.
    pub max_model_len: usize,
    /// Most tokens computed in a step. At least `max_running`, so that every running sequence can take part in every step.
    pub max_batched_tokens: usize,
    pub max_running: usize,
    /// Most sequences taken in and not yet running.
    pub max_waiting: usize,
    /// Embedding rows in a block of the image cache.
    pub image_rows_per_block: usize,
    /// 0 for a model without pictures.
    pub num_image_blocks: usize,
    /// Most patches encoded in a step, or being encoded at a time.
    pub max_encode_patches: usize,
    /// Whether pictures are encoded beside the steps: a chunk enters a picture once the runner has said that its rows are there
    /// ([`StepOutput::encoded`](crate::StepOutput)), and nobody else waits for it. False: in the step that first needs them, before its tokens run.
    pub encode_ahead: bool,
    /// Whether the next step may be made while one runs, with placeholders for the tokens that are still being sampled
    /// ([`Scheduler::schedule_ahead`](crate::Scheduler::schedule_ahead)), if the runner takes such steps.
    pub async_scheduling: bool,
    pub enable_prefix_caching: bool,
    /// A block with tokens that were generated may be found as a prefix where all its positions are below this one. `usize::MAX` only
    /// where a row's keys and values do not depend on whether its token was read in a prompt or generated: where there is one form
    /// of attention. Where there are two that round differently, this is the position from which on a prompt's rows have the
    /// other; it keeps cold and warm answers equal, and a follow-up turn computes the previous answer once more from there on.
    pub share_decoded_below: usize,
}

/// A configuration that no scheduler can keep, by the name of its field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidConfig {
    pub field: &'static str,
    pub message: String,
}

impl std::fmt::Display for InvalidConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

impl std::error::Error for InvalidConfig {}

impl SchedulerConfig {
    pub fn check(&self) -> Result<(), InvalidConfig> {
        let positive = [
            ("block_size", self.block_size),
            ("num_blocks", self.num_blocks),
            ("max_model_len", self.max_model_len),
            ("max_batched_tokens", self.max_batched_tokens),
            ("max_running", self.max_running),
            ("max_waiting", self.max_waiting),
            ("image_rows_per_block", self.image_rows_per_block),
        ];
        for (field, value) in positive {
            if value == 0 {
                return Err(InvalidConfig { field, message: "must be at least 1".into() });
            }
        }
        for (field, value) in [
            ("num_blocks", self.num_blocks),
            ("num_host_blocks", self.num_host_blocks),
            ("num_image_blocks", self.num_image_blocks),
        ] {
            if value > u32::MAX as usize {
                return Err(InvalidConfig { field, message: format!("{value} blocks cannot be numbered") });
            }
        }
        if self.num_host_blocks > 0 && !self.enable_prefix_caching {
            let message = "without a prefix cache nothing is found there".into();
            return Err(InvalidConfig { field: "num_host_blocks", message });
        }
        if self.max_batched_tokens < self.max_running {
            let message = format!(
                "{} is below max_running = {}: not every sequence could take part in a step",
                self.max_batched_tokens, self.max_running
            );
            return Err(InvalidConfig { field: "max_batched_tokens", message });
        }
        Ok(())
    }

    /// Tokens for which there is key-value memory.
    pub fn token_capacity(&self) -> usize {
        self.num_blocks.saturating_mul(self.block_size)
    }

    /// Embedding rows for which there is memory.
    pub fn image_capacity(&self) -> usize {
        self.num_image_blocks.saturating_mul(self.image_rows_per_block)
    }
}
