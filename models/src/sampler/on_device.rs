//! Sampling where the logits are: what is wanted of each row goes to the device, and a few numbers come back. The steps are those of
//! [`super::sample`]; `kernels::ops::sample` says how near the results are.

use super::task::{RowResult, RowTask};
use kernels::ops::{
    Draw, MAX_TOP, MAX_VOCAB, Outcomes, RowOutcome, RowRequest, SampleScratch, SampleSizes, Want,
    place_tokens, sample,
};
use kernels::{Device, Error, Indices, Tensor};
use scheduler::{Failure, PromptLogprob, SampleRow, Sampled, SampledToken};

pub(crate) struct DeviceSampler {
    scratch: SampleScratch,
}

/// Rows that are being sampled: what comes of them is on its way back.
pub struct Drawing {
    outcomes: Outcomes,
    /// Of each row: false where there is none and should be one.
    has_mask: Vec<bool>,
}

impl DeviceSampler {
    /// `None` where the processor samples: it is the device, or the vocabulary is beyond what the op takes.
    pub fn new(device: &Device, max_rows: usize, vocab_size: usize) -> Result<Option<Self>, Error> {
        if !Self::fits(device, vocab_size) {
            return Ok(None);
        }
        let sizes = SampleSizes { max_rows, vocab: vocab_size };
        Ok(Some(Self { scratch: SampleScratch::new(device, sizes)? }))
    }

    /// What `new` allocates.
    pub fn bytes(device: &Device, max_rows: usize, vocab_size: usize) -> u64 {
        if Self::fits(device, vocab_size) {
            SampleScratch::bytes(SampleSizes { max_rows, vocab: vocab_size })
        } else {
            0
        }
    }

    fn fits(device: &Device, vocab_size: usize) -> bool {
        matches!(device, Device::Cuda(_)) && vocab_size <= MAX_VOCAB
    }

    /// Whether all of this can be done on the device.
    pub fn can_run(tasks: &[RowTask]) -> bool {
        tasks.iter().all(|task| num_top(task) <= MAX_TOP)
    }

    /// Enqueues the sampling of one row of `logits` for each task. Waits for masks first, and not for the device.
    pub fn begin(&mut self, logits: &Tensor, tasks: &[RowTask]) -> Drawing {
        let requests: Vec<Option<RowRequest>> = tasks.iter().map(request).collect();
        // A row whose mask could not be had is told so; something has to be asked of it all the same.
        let asked: Vec<RowRequest> = requests.iter().map(|request| request.unwrap_or(IDLE)).collect();
        if tasks.is_empty() {
            self.scratch.clear();
        } else {
            sample(logits, &asked, &mut self.scratch);
        }
        let has_mask = requests.iter().map(Option::is_some).collect();
        Drawing { outcomes: self.scratch.begin_read(), has_mask }
    }

    /// Waits for all that was enqueued up to there.
    pub fn finish(&mut self, drawing: Drawing, tasks: &[RowTask]) -> Result<Vec<RowResult>, Error> {
        let Drawing { outcomes, has_mask } = drawing;
        let rows = tasks.iter().zip(has_mask).zip(self.scratch.finish_read(outcomes)?);
        Ok(rows.map(|((task, has_mask), outcome)| result(task, has_mask, outcome)).collect())
    }

    /// What row `from[i]` draws, as token `to[i]`.
    pub fn place(&self, from: &Indices, to: &Indices, tokens: &mut Indices) {
        place_tokens(&self.scratch, from, to, tokens);
    }
}

fn num_top(task: &RowTask) -> usize {
    match task {
        RowTask::Sample(row) => row.params().logprobs.unwrap_or(0),
        RowTask::Defer => 0,
        RowTask::Score { top, .. } => *top,
    }
}

const IDLE: RowRequest = RowRequest { top: None, want: Want::Draw(Draw::GREEDY) };

/// `None`: there is no mask where there should be one.
fn request<'a>(task: &RowTask<'a>) -> Option<RowRequest<'a>> {
    match *task {
        RowTask::Score { target, top } => Some(RowRequest { top: Some(top), want: Want::Score(target) }),
        RowTask::Defer => Some(IDLE),
        RowTask::Sample(row) => {
            let draw = draw(row)?;
            Some(RowRequest { top: row.params().logprobs, want: Want::Draw(draw) })
        }
    }
}

fn draw(row: SampleRow<'_>) -> Option<Draw<'_>> {
    let params = row.params();
    let allowed = match &row.sample.mask {
        None => None,
        Some(mask) => Some(mask.allowed()?),
    };
    let (history, prompt_len) = row.history().unwrap_or_default();
    Some(Draw {
        temperature: params.temperature,
        top_k: params.top_k,
        top_p: params.top_p,
        min_p: params.min_p,
        seed: params.seed,
        position: row.position() as u64,
        repetition_penalty: params.repetition_penalty,
        frequency_penalty: params.frequency_penalty,
        presence_penalty: params.presence_penalty,
        history,
        prompt_len,
        logit_bias: &params.logit_bias,
        excluded: if row.num_generated() < params.min_tokens { &params.stop_token_ids } else { &[] },
        allowed,
    })
}

fn result(task: &RowTask, has_mask: bool, outcome: RowOutcome) -> RowResult {
    match (task, outcome) {
        (RowTask::Sample(_) | RowTask::Defer, RowOutcome::NonFinite) => {
            RowResult::Sampled(Sampled::Failed(Failure::NonFiniteLogits))
        }
        (RowTask::Defer, _) => RowResult::Sampled(Sampled::Deferred),
        (RowTask::Sample(_), _) if !has_mask => RowResult::Sampled(Sampled::Failed(Failure::Constraint)),
        (RowTask::Sample(_), RowOutcome::Nothing) => {
            RowResult::Sampled(Sampled::Failed(Failure::NothingToSample))
        }
        (RowTask::Sample(_), RowOutcome::Token { token, logprob, top }) => {
            RowResult::Sampled(Sampled::Token(SampledToken { token, logprob, top }))
        }
        (RowTask::Score { .. }, RowOutcome::NonFinite) => RowResult::Scored(Err(Failure::NonFiniteLogits)),
        (RowTask::Score { target, .. }, RowOutcome::Score { logprob, rank, top }) => {
            RowResult::Scored(Ok(PromptLogprob { token: *target, logprob, rank, top }))
        }
        (task, outcome) => unreachable!("{outcome:?} of {task:?}"),
    }
}
