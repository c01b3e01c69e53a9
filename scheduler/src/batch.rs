//! One step of work, and what comes back from it: plain values, so that scheduling is tested without a model.

use crate::block_pool::{BlockCopy, BlockId, BlockList};
use crate::{AdapterId, Digest, ImageInput, SamplingParams, SequenceId, TokenId, TokenMask};
use std::ops::{Deref, Range};
use std::sync::Arc;

/// One step of work, in the order in which its tokens are laid out in memory.
#[derive(Debug, Default)]
pub struct Batch {
    /// What is copied to the host before anything of this step is written to these blocks, or copied into them: they were given away. What they
    /// hold was taken in by then, so no step that runs still writes to them.
    pub stores: Vec<BlockCopy>,
    /// What is copied from the host behind the stores of this step and all steps before it, beside its rows: nobody reads these blocks until
    /// [`StepOutput::num_loaded`] has counted the load.
    pub loads: Vec<BlockLoad>,
    /// The rows of this step come after all loads of earlier steps: some were for sequences that have gone or lost their places, and their blocks are
    /// given away.
    pub waits_for_loads: bool,
    /// Pictures to encode before the tokens run, or to begin with.
    pub encodes: Vec<ImageEncode>,
    pub items: Vec<BatchItem>,
}

/// What one sequence takes from the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockLoad {
    pub id: SequenceId,
    /// Never empty.
    pub copies: Vec<BlockCopy>,
}

#[derive(Debug)]
pub struct ImageEncode {
    pub image: Arc<ImageInput>,
    /// Where the embedding's rows go: row `i` of the picture to row `rows[i / R] * R + i % R` of the image cache, with `R` rows a block.
    pub rows: Vec<BlockId>,
    /// The step need not wait for it: nobody reads these rows until [`StepOutput::encoded`] has named the picture.
    pub ahead: bool,
}

/// Tokens of one sequence that are computed in this step: a chunk of a prompt, or the one token sampled last, and then perhaps a draft.
#[derive(Debug)]
pub struct BatchItem {
    pub id: SequenceId,
    /// What its tokens are computed with beside the model's own weights.
    pub adapter: Option<AdapterId>,
    /// Never empty; the first is at position `context_len`.
    pub tokens: ItemTokens,
    /// In a step that was made ahead: the only token is a placeholder, for what this row of the step before samples. Rows are counted as in
    /// [`StepOutput::sampled`]. Where that row brings no token, or one that ends the sequence, this item's results are dropped.
    pub placeholder_for: Option<usize>,
    /// How many tokens before them have their keys and values in `blocks`.
    pub context_len: usize,
    /// Positions from this one on hold tokens that were generated, whether they are computed for the first time or after a preemption.
    pub prompt_len: usize,
    /// How many fewer rotary positions than tokens the pictures have that end at `context_len` or before: the position that the first token would
    /// have in a text, or that its picture begins at, is `context_len` less this. 0 but for models that rotate by time, row and column.
    pub position_shift: usize,
    /// Covers `context_len + tokens.len()` positions: position `p` is slot `blocks[p / B] * B + p % B`, with `B` tokens a block.
    pub blocks: BlockList,
    /// Positions among `tokens` whose embedding comes from a picture.
    pub images: Vec<ImageRows>,
    /// What is wanted of its rows, where they are a prompt's.
    pub prompt: Option<PromptWork>,
    /// `None` while the prompt is not yet computed to its end, and where nothing is to be generated: such a chunk does not sample.
    pub sample: Option<Sample>,
}

impl BatchItem {
    /// A chunk of a prompt that ends with it, without adapter or pictures, from which nothing is asked.
    pub fn new(id: SequenceId, tokens: Vec<TokenId>, context_len: usize, blocks: Vec<BlockId>) -> Self {
        let prompt_len = context_len + tokens.len();
        Self {
            id,
            adapter: None,
            tokens: tokens.into(),
            placeholder_for: None,
            context_len,
            prompt_len,
            position_shift: 0,
            blocks: blocks.into(),
            images: Vec::new(),
            prompt: None,
            sample: None,
        }
    }

    pub fn end(&self) -> usize {
        self.context_len + self.tokens.len()
    }

    /// Positions of its tokens by time, row and column, for models that rotate by these. A text's three are equal. A picture's rows begin where a
    /// text would go on, and what follows the picture goes on after its longer side.
    ///
    /// ```text
    /// tokens   a b # # # # # # c d      a picture of 2 x 3
    /// time     0 1 2 2 2 2 2 2 5 6
    /// row      0 1 2 2 2 3 3 3 5 6
    /// column   0 1 2 3 4 2 3 4 5 6
    /// ```
    pub fn rotary_positions(&self) -> impl Iterator<Item = [usize; 3]> + '_ {
        let mut shift = self.position_shift;
        let mut images = self.images.iter().peekable();
        (0..self.tokens.len()).map(move |token| {
            let position = self.context_len + token - shift;
            let Some(image) = images
                .next_if(|image| image.first_token + image.len == token + 1)
                .or_else(|| images.peek().copied().filter(|image| image.first_token <= token))
            else {
                return [position; 3];
            };
            let Some([rows, columns]) = image.position_grid else { return [position; 3] };
            let row = image.first_row + token - image.first_token;
            let start = position - row;
            if row + 1 == rows * columns {
                shift += rows * columns - rows.max(columns);
            }
            [start, start + row / columns, start + row % columns]
        })
    }
}

/// Tokens of an item. The one token of a decode, which most items are, lies in the item itself.
#[derive(Debug, Clone)]
pub enum ItemTokens {
    One(TokenId),
    Several(Vec<TokenId>),
}

impl ItemTokens {
    /// A copy of both, one behind the other.
    pub(crate) fn joined(tokens: &[TokenId], drafts: &[TokenId]) -> Self {
        match (tokens, drafts) {
            (&[token], []) => Self::One(token),
            _ => Self::Several([tokens, drafts].concat()),
        }
    }
}

impl From<Vec<TokenId>> for ItemTokens {
    fn from(tokens: Vec<TokenId>) -> Self {
        Self::Several(tokens)
    }
}

impl Deref for ItemTokens {
    type Target = [TokenId];

    fn deref(&self) -> &[TokenId] {
        match self {
            Self::One(token) => std::slice::from_ref(token),
            Self::Several(tokens) => tokens,
        }
    }
}

/// Tokens `first_token ..` of an item (counted from the item's first token) take `len` rows, from row `first_row`, of a cached picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRows {
    pub first_token: usize,
    pub first_row: usize,
    pub len: usize,
    /// As in [`ImageInput::position_grid`].
    pub position_grid: Option<[usize; 2]>,
    /// As in [`ImageEncode::rows`].
    pub rows: Vec<BlockId>,
}

/// What an item's rows give beside keys and values.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptWork {
    /// The rows, counted from the item's first. Never empty.
    pub rows: Range<usize>,
    pub task: PromptTask,
}

#[derive(Debug, Clone, PartialEq)]
pub enum PromptTask {
    /// `targets[i]` is the token that row `rows.start + i` is to predict.
    Logprobs { targets: Vec<TokenId>, top: usize },
    /// Adds the rows to this sum, one after another. It comes back in the result and goes out with the
    /// next chunk, so that the order of the additions is that of the tokens.
    Sum(RowSum),
}

#[derive(Debug, Clone, PartialEq)]
pub enum PromptResult {
    /// One for each row.
    Logprobs(Vec<PromptLogprob>),
    Sum(RowSum),
    /// The sequence ends; its blocks are never reused as a prefix.
    Failed(Failure),
}

#[derive(Debug, Clone, PartialEq)]
pub struct PromptLogprob {
    pub token: TokenId,
    /// Natural logarithm of its probability under the model, as [`SampledToken::logprob`].
    pub logprob: f32,
    /// Its place in the order of `top`, which goes on beyond it; 1 is the most probable token.
    pub rank: usize,
    /// The most probable tokens, most probable first; ties by token id.
    pub top: Vec<(TokenId, f32)>,
}

/// Rows added up, one value for each of the model's dimensions; empty before the first row.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RowSum(pub Vec<f64>);

/// A sum of states; divided by `num_rows` it is their mean.
#[derive(Debug, Clone, PartialEq)]
pub struct PooledSum {
    pub sum: RowSum,
    pub num_rows: usize,
}

/// What the last positions of an item sample: the last token that is known, and each token of the draft behind it.
///
/// ```text
/// item.tokens   …  t   d0  d1       num_drafts = 2
/// rows             0   1   2        row i draws the token at `position + i`, as if the drafts before it were right
/// ```
#[derive(Debug, Clone)]
pub struct Sample {
    pub params: Arc<SamplingParams>,
    /// Position in the sequence of the first token to be drawn: the counter of its random numbers.
    pub position: usize,
    /// Tokens generated before it.
    pub num_generated: usize,
    /// The item's last so many tokens are guesses. 0 where there is a mask.
    pub num_drafts: usize,
    /// In a step that was made ahead: history and mask hang on a token that is still being sampled. They are put in when it has come
    /// ([`Scheduler::complete_samples`](crate::Scheduler)), and nothing is drawn before.
    pub is_incomplete: bool,
    /// All tokens so far and the drafts, only where the parameters need them; the first `prompt_len` are the prompt.
    pub history: Option<History>,
    /// The tokens that may be drawn; `None`: any.
    pub mask: Option<Arc<dyn TokenMask>>,
    /// Where its mask is late this row may do without a token in this step. Not for ever: false after [`MAX_DEFERRALS`] times.
    pub may_be_deferred: bool,
}

/// How often in a row a sequence runs its last token again because its mask was not there. Then the step waits for it.
pub const MAX_DEFERRALS: usize = 8;

impl Sample {
    /// Of one token, which depends on nothing but these.
    pub fn new(params: Arc<SamplingParams>, position: usize, num_generated: usize) -> Self {
        Self {
            params,
            position,
            num_generated,
            num_drafts: 0,
            is_incomplete: false,
            history: None,
            mask: None,
            may_be_deferred: false,
        }
    }

    fn waits_for_mask(&self) -> bool {
        self.mask.as_ref().is_some_and(|mask| !mask.is_ready())
    }

    /// Whether the others of its step need not wait for its mask.
    fn is_late(&self) -> bool {
        self.may_be_deferred && self.waits_for_mask()
    }
}

#[derive(Debug, Clone)]
pub struct History {
    pub tokens: Vec<TokenId>,
    pub prompt_len: usize,
}

/// One row of a sample: all that its draw may depend on beside the logits.
#[derive(Debug, Clone, Copy)]
pub struct SampleRow<'a> {
    pub sample: &'a Sample,
    /// Drafts before it.
    pub index: usize,
}

impl Sample {
    pub fn num_rows(&self) -> usize {
        1 + self.num_drafts
    }

    pub fn row(&self, index: usize) -> SampleRow<'_> {
        assert!(index <= self.num_drafts, "row {index} of {}", self.num_rows());
        SampleRow { sample: self, index }
    }

    pub fn rows(&self) -> impl Iterator<Item = SampleRow<'_>> {
        (0..self.num_rows()).map(|index| self.row(index))
    }
}

impl<'a> SampleRow<'a> {
    pub fn params(self) -> &'a SamplingParams {
        &self.sample.params
    }

    pub fn position(self) -> usize {
        self.sample.position + self.index
    }

    pub fn num_generated(self) -> usize {
        self.sample.num_generated + self.index
    }

    /// All tokens before it, and how many of them are the prompt; only where the parameters need them.
    pub fn history(self) -> Option<(&'a [TokenId], usize)> {
        let History { tokens, prompt_len } = self.sample.history.as_ref()?;
        let num_behind = self.sample.num_drafts - self.index;
        Some((&tokens[..tokens.len() - num_behind], *prompt_len))
    }
}

impl Batch {
    pub fn num_tokens(&self) -> usize {
        self.items.iter().map(|item| item.tokens.len()).sum()
    }

    /// Rows after which something is sampled.
    pub fn num_samples(&self) -> usize {
        self.samples().map(Sample::num_rows).sum()
    }

    /// In the order of the items.
    pub fn samples(&self) -> impl Iterator<Item = &Sample> {
        self.items.iter().filter_map(|item| item.sample.as_ref())
    }

    /// Whether all that its samples depend on beside the logits is there: nothing is incomplete and no mask is still being computed.
    pub fn can_be_drawn(&self) -> bool {
        self.samples().all(|sample| !sample.is_incomplete && !sample.waits_for_mask())
    }

    /// Whether a mask is still being computed that the step need not wait for.
    pub fn has_late_masks(&self) -> bool {
        self.samples().any(Sample::is_late)
    }

    /// For each row that samples, whether it is to be [`Sampled::Deferred`]: its mask is not there, and somebody else of the step goes on.
    /// To be asked when the logits are there and not before: until then masks have time. Waits for one mask where all are late.
    pub fn choose_deferred(&self) -> Vec<bool> {
        // A row that is late is the only one of its item: there is no guess under a mask.
        let late = |sample: &Sample| std::iter::repeat_n(sample.is_late(), sample.num_rows());
        let mut deferred: Vec<bool> = self.samples().flat_map(late).collect();
        let num_deferred = deferred.iter().filter(|deferred| **deferred).count();
        if num_deferred > 0 && num_deferred == self.items.len() {
            // The first is also the first that was begun.
            let first = self.samples().next().expect("some are late");
            first.mask.as_ref().expect("it is late").allowed();
            deferred = self.samples().flat_map(late).collect();
            deferred[0] = false;
        }
        deferred
    }
}

/// Results in the order of the items.
#[derive(Debug, Default)]
pub struct StepOutput {
    /// Pictures of this step or an earlier one that were encoded ahead and whose rows are there now. A step without items waits for one, or for a
    /// load.
    pub encoded: Vec<Digest>,
    /// So many more loads of this step or earlier ones are done, in the order in which they were asked for.
    pub num_loaded: usize,
    /// One for each item with `prompt`.
    pub prompts: Vec<PromptResult>,
    /// One for each row of each item's `sample`. What follows a row that did not draw the draft behind it is not looked at.
    pub sampled: Vec<Sampled>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Sampled {
    Token(SampledToken),
    /// Its mask was not there in time. Its last token runs again in the next step, which computes the same.
    Deferred,
    /// This row only; its blocks are never reused as a prefix.
    Failed(Failure),
}

#[derive(Debug, Clone, PartialEq)]
pub struct SampledToken {
    pub token: TokenId,
    /// Natural logarithm of its probability under the model: before temperature, penalties, bias and truncation (vLLM's
    /// `raw_logprobs`). Present when the parameters ask for log-probabilities.
    pub logprob: Option<f32>,
    /// The most probable tokens, most probable first; ties by token id.
    pub top: Vec<(TokenId, f32)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The logits, or the states that were to be pooled, held a NaN or were infinite.
    NonFiniteLogits,
    /// Bias, penalties and masks left nothing to choose from.
    NothingToSample,
    /// Its constraint reached a limit, or its mask could not be computed.
    Constraint,
}
