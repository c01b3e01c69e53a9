//! A prompt, the tokens generated for it so far, and the pictures among them. "Request" is the API's word; `n` answers to one
//! request are `n` sequences.

use crate::{
    AdapterId, Constraint, Digest, ImageSpan, InvalidParam, NgramConfig, PromptOutput, SamplingParams,
    SequenceId, TokenId,
};
use std::sync::Arc;

#[derive(Debug, Clone)]
pub struct Sequence {
    pub id: SequenceId,
    /// Lower runs first; equal ones in order of arrival.
    pub priority: i32,
    /// Mixed into the block hashes: sequences share cached blocks only with those of the same salt (tenant).
    pub salt: Digest,
    /// What its tokens are computed with beside the model's own weights; `None`: nothing. Mixed into the block hashes as well.
    pub adapter: Option<AdapterId>,
    pub params: Arc<SamplingParams>,
    /// What it may say, beside what the parameters allow.
    pub constraint: Option<Box<dyn Constraint>>,
    pub(crate) tokens: Vec<TokenId>,
    pub(crate) prompt_len: usize,
    pub(crate) images: Vec<ImageSpan>,
    pub(crate) prompt_output: Option<PromptOutput>,
    pub(crate) speculation: Option<NgramConfig>,
}

impl Sequence {
    /// Checks everything that does not depend on memory: parameters, token ids below `vocab_size`, image spans inside the
    /// prompt, in order and apart.
    pub fn new(
        id: SequenceId,
        prompt: Vec<TokenId>,
        images: Vec<ImageSpan>,
        params: Arc<SamplingParams>,
        vocab_size: usize,
    ) -> Result<Self, InvalidParam> {
        params.check(vocab_size)?;
        let fail = |message: String| Err(InvalidParam { param: "prompt", message });
        if prompt.is_empty() {
            return fail("is empty".into());
        }
        if let Some(token) = prompt.iter().find(|&&t| t as usize >= vocab_size) {
            return fail(format!("token {token} is not below the vocabulary size {vocab_size}"));
        }
        let mut end = 0;
        for span in &images {
            if span.start < end || span.end() > prompt.len() || span.image.num_tokens == 0 {
                return fail(format!("image span {}..{} is out of place", span.start, span.end()));
            }
            if span.image.position_grid.is_some_and(|[rows, columns]| rows * columns != span.image.num_tokens)
            {
                return fail(format!(
                    "image span {}..{} is not its grid of positions",
                    span.start,
                    span.end()
                ));
            }
            end = span.end();
        }
        let prompt_len = prompt.len();
        Ok(Self {
            id,
            priority: 0,
            salt: Digest::default(),
            adapter: None,
            params,
            constraint: None,
            tokens: prompt,
            prompt_len,
            images,
            prompt_output: None,
            speculation: None,
        })
    }

    /// The same sequence, wanting something of its prompt too.
    pub fn wanting(self, output: PromptOutput) -> Result<Self, InvalidParam> {
        output.check(self.prompt_len)?;
        Ok(Self { prompt_output: Some(output), ..self })
    }

    /// The same sequence, drafting. Its answer is the same too: drafts only bring several tokens of it in one step. With a constraint
    /// it does not draft.
    pub fn speculating(self, config: NgramConfig) -> Result<Self, InvalidParam> {
        config.check()?;
        Ok(Self { speculation: Some(config), ..self })
    }

    pub fn speculation(&self) -> Option<NgramConfig> {
        self.speculation
    }

    pub fn prompt_output(&self) -> Option<PromptOutput> {
        self.prompt_output
    }

    /// Most events that tell of results and of the end, whatever becomes of it; [`crate::Event::Started`] is not counted.
    pub fn num_events_max(&self) -> usize {
        let of_prompt = self.prompt_output.map_or(0, |output| output.num_events_max(self.prompt_len));
        self.params.max_tokens + of_prompt + 1
    }

    /// Prompt and output.
    pub fn tokens(&self) -> &[TokenId] {
        &self.tokens
    }

    pub fn prompt_len(&self) -> usize {
        self.prompt_len
    }

    pub fn num_generated(&self) -> usize {
        self.tokens.len() - self.prompt_len
    }

    pub fn images(&self) -> &[ImageSpan] {
        &self.images
    }
}

/// Why a sequence was not taken in. The first four can never succeed on this server; the last one can, later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reject {
    /// Prompt and `max_tokens` together are longer than the model's context.
    TooLong {
        prompt_tokens: usize,
        max_tokens: usize,
        limit: usize,
    },
    /// They need more blocks than there are.
    NeverFits {
        tokens: usize,
        capacity: usize,
    },
    /// One picture alone has more embedding rows than the image cache.
    ImageTooLarge {
        tokens: usize,
        capacity: usize,
    },
    /// One picture alone has more patches than a step may encode.
    ImageTooCostly {
        patches: usize,
        limit: usize,
    },
    QueueFull {
        waiting: usize,
    },
}
