//! sample: for each row of logits one token that is drawn, or how probable a given one is
//! logits [R, V] f32, left as they are · results stay on the device until `SampleScratch::read`: 176 bytes for each row
//!
//! ```text
//! logits ─▶ excluded tokens ─▶ bias ─▶ penalties ─▶ mask ─▶ temperature 0: the largest, ties by lower id
//!    │                                                └───▶ temperature ─▶ min-p ─▶ top-k ─▶ top-p ─▶ draw
//!    └─▶ log-probabilities: of the model's own distribution, untouched by all of the above
//! ```
//! Steps, order and rounding are those of the sampler of the processor (`models::sampler`). With equal logits, seed and position the
//! token is the same, unless the random number falls within 2⁻³⁰ of the border between two tokens: weights are rounded to
//! multiples of 2⁻⁴⁴ of the largest and then summed exactly, where the processor sums in f64.
//! A row's result depends on its own logits and request only.
//!
//! For devices whose logits are not in host memory. For the processor there is no arm: logits in sight are `models::sampler`'s.
//!
//! ```text
//! scratch = SampleScratch::new(device, sizes)                once, for the largest call
//! sample(&logits, &requests, &mut scratch)                   enqueues, not part of a graph: requests are copied to the device
//! scratch.read()                                             one small copy back, waits
//! ```

use super::not_on_cuda;
use crate::{DType, Device, Error, Tensor};

/// Most alternatives that are reported.
pub const MAX_TOP: usize = 20;

/// Largest vocabulary: sums of weights stay below 2⁶³.
pub const MAX_VOCAB: usize = 1 << 19;

/// What is wanted of one row.
#[derive(Clone, Copy, Debug)]
pub struct RowRequest<'a> {
    /// `Some(n)`: the log-probability of the token, and the `n` most probable tokens with theirs; at most `MAX_TOP`.
    pub top: Option<usize>,
    pub want: Want<'a>,
}

#[derive(Clone, Copy, Debug)]
pub enum Want<'a> {
    Draw(Draw<'a>),
    /// How probable this token is, and its rank.
    Score(u32),
}

/// How a token is chosen. All numbers are checked; tokens are below V.
#[derive(Clone, Copy, Debug)]
pub struct Draw<'a> {
    /// 0 is greedy.
    pub temperature: f32,
    /// 0 is off.
    pub top_k: usize,
    /// In (0, 1]; 1 is off.
    pub top_p: f32,
    /// In [0, 1]; 0 is off.
    pub min_p: f32,
    /// Key and counter of the random number.
    pub seed: u64,
    pub position: u64,
    /// 1 is off; counts all of `history`.
    pub repetition_penalty: f32,
    /// These count `history` from `prompt_len` on.
    pub frequency_penalty: f32,
    pub presence_penalty: f32,
    /// Tokens so far; may be empty where no penalty is set.
    pub history: &'a [u32],
    pub prompt_len: usize,
    /// Added to logits, each token once.
    pub logit_bias: &'a [(u32, f32)],
    /// Cannot be drawn: stop tokens before `min_tokens`.
    pub excluded: &'a [u32],
    /// Bit t % 32 of word t / 32 lets token t be drawn; tokens beyond the last word cannot be. `None`: all can.
    pub allowed: Option<&'a [u32]>,
}

impl Draw<'_> {
    /// The most probable token, of all.
    pub const GREEDY: Self = Self {
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        seed: 0,
        position: 0,
        repetition_penalty: 1.0,
        frequency_penalty: 0.0,
        presence_penalty: 0.0,
        history: &[],
        prompt_len: 0,
        logit_bias: &[],
        excluded: &[],
        allowed: None,
    };
}

/// What became of one row.
#[derive(Clone, Debug, PartialEq)]
pub enum RowOutcome {
    Token {
        token: u32,
        /// If asked for.
        logprob: Option<f32>,
        /// Most probable first, ties by lower id.
        top: Vec<(u32, f32)>,
    },
    /// Of a given token; a rank of 1 is the most probable one.
    Score { logprob: f32, rank: usize, top: Vec<(u32, f32)> },
    /// The logits hold a NaN or an infinity.
    NonFinite,
    /// Bias, penalties and masks left nothing to draw.
    Nothing,
}

/// Buffers of `sample`, for the largest call.
#[derive(Debug)]
pub struct SampleScratch {
    sizes: SampleSizes,
    /// `[rows, V]` f32: logits after all adjustments, then weights.
    pub(crate) weights: Tensor,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SampleSizes {
    pub max_rows: usize,
    pub vocab: usize,
}

impl SampleScratch {
    pub fn new(device: &Device, sizes: SampleSizes) -> Self {
        assert!(sizes.vocab <= MAX_VOCAB, "sample: a vocabulary of {} exceeds {MAX_VOCAB}", sizes.vocab);
        let weights = Tensor::unwritten(device, DType::F32, &[sizes.max_rows, sizes.vocab]);
        Self { sizes, weights }
    }

    /// What `new` will allocate.
    pub fn bytes(sizes: SampleSizes) -> u64 {
        Tensor::bytes_of(DType::F32, &[sizes.max_rows, sizes.vocab])
    }

    /// The outcomes of the last call, after waiting for the device.
    pub fn read(&self) -> Result<Vec<RowOutcome>, Error> {
        not_on_cuda("sample")
    }
}

/// Enqueues the work for one row of logits for each request.
pub fn sample(logits: &Tensor, requests: &[RowRequest], scratch: &mut SampleScratch) {
    let (rows, vocab) = (logits.rows(), logits.row_len());
    assert_eq!(rows, requests.len(), "sample: a request for each row");
    assert_eq!(vocab, scratch.sizes.vocab, "sample: vocabulary of the scratch");
    assert!(rows <= scratch.sizes.max_rows, "sample: {rows} rows exceed the scratch");
    not_on_cuda("sample")
}
