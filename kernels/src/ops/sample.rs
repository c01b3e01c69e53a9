//! sample: for each row of logits one token that is drawn, or how probable a given one is
//! place_tokens: what was sampled becomes tokens of the next step, on the device
//! logits [R, V] f32, left as they are · results stay on the device until they are read: 176 bytes for each row
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
//! reading = scratch.begin_read()                             enqueues one small copy back; two may be under way
//! scratch.finish_read(reading)                               waits for it, and not for what was enqueued behind it
//! ```

use crate::cuda::readback::{Readback, Reading};
use crate::cuda::sample::{self as cuda_sample, Buffers, RESULT};
use crate::operands::sample::{MAX_TOP, RowRequest, SampleSizes, Want};
use crate::{Device, Error, Index, Indices, Tensor};

/// Copies of results that may be under way at a time.
const NUM_READINGS: usize = 2;

/// Largest vocabulary: sums of weights stay below 2⁶³.
pub const MAX_VOCAB: usize = 1 << 19;

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

/// Buffers of `sample`, for the largest call, and what was asked in the last one.
#[derive(Debug)]
pub struct SampleScratch {
    sizes: SampleSizes,
    buffers: Buffers,
    asked: Vec<Asked>,
    readback: Readback,
}

/// Outcomes of a call, on their way to the host.
#[derive(Debug)]
#[must_use]
pub struct Outcomes {
    reading: Reading,
    asked: Vec<Asked>,
}

/// How a result is to be read.
#[derive(Clone, Copy, Debug)]
struct Asked {
    is_score: bool,
    top: Option<usize>,
}

impl SampleScratch {
    /// For a GPU; see above.
    pub fn new(device: &Device, sizes: SampleSizes) -> Result<Self, Error> {
        let Device::Cuda(cuda) = device else {
            panic!("sample: the processor's logits are for models::sampler")
        };
        assert!(sizes.vocab <= MAX_VOCAB, "sample: a vocabulary of {} exceeds {MAX_VOCAB}", sizes.vocab);
        let readback = Readback::new(cuda, NUM_READINGS, sizes.max_rows * RESULT * size_of::<u32>())?;
        let asked = Vec::with_capacity(sizes.max_rows);
        Ok(Self { sizes, buffers: Buffers::new(device, sizes), asked, readback })
    }

    /// What `new` will allocate on the device.
    pub fn bytes(sizes: SampleSizes) -> u64 {
        Buffers::bytes(sizes)
    }

    /// As after a call of no rows.
    pub fn clear(&mut self) {
        self.asked.clear();
        self.buffers.results.set_rows(0);
    }

    /// Enqueues the way back of what the last call makes.
    pub fn begin_read(&mut self) -> Outcomes {
        Outcomes { reading: self.readback.begin(&self.buffers.results), asked: self.asked.clone() }
    }

    /// Waits for them and for all work that was enqueued before they were asked for; what failed by then is told here.
    pub fn finish_read(&mut self, Outcomes { reading, asked }: Outcomes) -> Result<Vec<RowOutcome>, Error> {
        let bytes = self.readback.finish(reading)?;
        let words: Vec<u32> = bytes.as_chunks().0.iter().map(|word| u32::from_ne_bytes(*word)).collect();
        let rows = words.chunks_exact(RESULT).zip(asked);
        Ok(rows.map(|(words, asked)| asked.outcome(words, self.sizes.vocab)).collect())
    }
}

/// Puts tokens that the last call of `sample` draws into `tokens`, in the order of the device's work: `tokens[to[i]]` becomes the token of row
/// `from[i]`, whatever the copy on the host says. A row that draws none gives token 0.
pub fn place_tokens<'a>(
    scratch: &SampleScratch,
    from: impl Into<Index<'a>>,
    to: impl Into<Index<'a>>,
    tokens: &mut Indices,
) {
    let (from, to) = (from.into(), to.into());
    let results = &scratch.buffers.results;
    assert_eq!(from.len(), to.len(), "place_tokens: a place for each row");
    assert!(from.as_slice().iter().all(|&row| (row as usize) < results.rows()), "place_tokens: rows");
    let num_tokens = tokens.as_slice().len();
    assert!(to.as_slice().iter().all(|&place| (place as usize) < num_tokens), "place_tokens: places");
    match results.device() {
        Device::Cpu(_) => unreachable!("a scratch is made on a GPU"),
        Device::Cuda(cuda) => cuda_sample::place_tokens(cuda, results, from, to, tokens),
    }
}

impl Asked {
    fn outcome(self, words: &[u32], vocab: usize) -> RowOutcome {
        let (header, rest) = words.split_at(4);
        let (ids, logprobs) = rest.split_at(MAX_TOP);
        let top = self.top.unwrap_or(0).min(vocab);
        let top = ids[..top].iter().copied().zip(logprobs.iter().map(|&bits| f32::from_bits(bits))).collect();
        let logprob = f32::from_bits(header[2]);
        match header[0] {
            0 if self.is_score => RowOutcome::Score { logprob, rank: header[3] as usize, top },
            0 => RowOutcome::Token { token: header[1], logprob: self.top.map(|_| logprob), top },
            1 => RowOutcome::NonFinite,
            _ => RowOutcome::Nothing,
        }
    }
}

/// Enqueues the work for one row of logits for each request.
pub fn sample(logits: &Tensor, requests: &[RowRequest], scratch: &mut SampleScratch) {
    let (rows, vocab) = (logits.rows(), logits.row_len());
    assert_eq!(rows, requests.len(), "sample: a request for each row");
    assert_eq!(vocab, scratch.sizes.vocab, "sample: vocabulary of the scratch");
    assert!(rows <= scratch.sizes.max_rows, "sample: {rows} rows exceed the scratch");
    requests.iter().for_each(|request| request.check(vocab));
    let asked = |r: &RowRequest| Asked { is_score: matches!(r.want, Want::Score(_)), top: r.top };
    scratch.asked.clear();
    scratch.asked.extend(requests.iter().map(asked));
    scratch.buffers.results.set_rows(rows);
    match logits.device() {
        Device::Cpu(_) => unreachable!("a scratch is made on a GPU, and logits are where it is"),
        Device::Cuda(cuda) => cuda_sample::run(cuda, logits, requests, &mut scratch.buffers),
    }
}

impl RowRequest<'_> {
    fn check(&self, vocab: usize) {
        assert!(self.top.is_none_or(|top| top <= MAX_TOP), "sample: more than {MAX_TOP} alternatives");
        let is_token = |token: &u32| (*token as usize) < vocab;
        match &self.want {
            Want::Score(target) => assert!(is_token(target), "sample: target {target} of {vocab}"),
            Want::Draw(draw) => {
                assert!(draw.history.iter().all(is_token), "sample: history");
                assert!(draw.prompt_len <= draw.history.len(), "sample: length of the prompt");
                assert!(draw.excluded.iter().all(is_token), "sample: excluded tokens");
                assert!(draw.logit_bias.iter().all(|(token, _)| is_token(token)), "sample: bias");
            }
        }
    }
}
