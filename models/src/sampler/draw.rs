//! One row of logits becomes one token, on the processor.

use super::philox::uniform;
use scheduler::{Failure, SampleRow, Sampled, SampledToken, SamplingParams, TokenId};
use std::cmp::Ordering;

/// Buffers of one sampling thread, reused for row after row.
#[derive(Debug, Default)]
pub struct Workspace {
    /// Tokens of the history, sorted.
    tokens: Vec<TokenId>,
    candidates: Vec<TokenId>,
    /// The model's own distribution, where it is to be reported.
    pub(super) logprobs: Vec<f32>,
}

impl Workspace {
    /// Nothing more is allocated for rows of this many logits.
    pub fn new(vocab_size: usize) -> Self {
        Self {
            tokens: Vec::new(),
            candidates: Vec::with_capacity(vocab_size),
            logprobs: Vec::with_capacity(vocab_size),
        }
    }
}

/// Of some logits at a time, without a branch for each: several to an instruction.
pub(super) fn is_finite(logits: &[f32]) -> bool {
    logits.chunks(256).all(|some| some.iter().fold(true, |all, x| all & x.is_finite()))
}

/// Samples one row. `logits` is used up: it holds weights of the draw afterwards.
pub fn sample(logits: &mut [f32], row: SampleRow, work: &mut Workspace) -> Sampled {
    if !is_finite(logits) {
        return Sampled::Failed(Failure::NonFiniteLogits);
    }
    let params = row.params();
    let top = params.logprobs.map(|k| report(logits, k, &mut work.logprobs));
    adjust(logits, row, work);
    if let Some(mask) = &row.sample.mask {
        let Some(allowed) = mask.allowed() else { return Sampled::Failed(Failure::Constraint) };
        apply_mask(logits, allowed);
    }
    let drawn = match params.temperature == 0.0 {
        true => largest(logits).filter(|&token| logits[token as usize] > f32::NEG_INFINITY),
        false => draw(logits, params, row.position(), work),
    };
    let Some(token) = drawn else { return Sampled::Failed(Failure::NothingToSample) };
    let logprob = top.is_some().then(|| work.logprobs[token as usize]);
    Sampled::Token(SampledToken { token, logprob, top: top.unwrap_or_default() })
}

/// Keeps the model's own distribution, before the logits are changed, and returns its most probable tokens.
pub(super) fn report(logits: &[f32], k: usize, logprobs: &mut Vec<f32>) -> Vec<(TokenId, f32)> {
    logprobs.clear();
    logprobs.extend_from_slice(logits);
    log_softmax(logprobs);
    top_k(logprobs, k)
}

/// In place, summed from the first to the last in f64.
pub fn log_softmax(logits: &mut [f32]) {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from((x - max).exp())).sum();
    let log_sum = f64::from(max) + sum.ln();
    for x in logits.iter_mut() {
        *x = (f64::from(*x) - log_sum) as f32;
    }
}

/// The largest values with their places, largest first, ties by lower place.
fn top_k(values: &[f32], k: usize) -> Vec<(TokenId, f32)> {
    let k = k.min(values.len());
    let mut top: Vec<(TokenId, f32)> = Vec::with_capacity(k + 1);
    for (token, &value) in values.iter().enumerate() {
        // Later places lose ties, so only a larger value moves in.
        if top.len() < k || top.last().is_some_and(|&(_, least)| value > least) {
            let place = top.partition_point(|&(_, other)| other >= value);
            top.insert(place, (token as TokenId, value));
            top.truncate(k);
        }
    }
    top
}

/// The place of the largest value, the first of equals; none of them is NaN.
fn largest(values: &[f32]) -> Option<TokenId> {
    const SOME: usize = 512;
    let (mut max, mut first) = (f32::NEG_INFINITY, 0);
    for (index, some) in values.chunks(SOME).enumerate() {
        // A maximum for each place in a chunk: several to an instruction.
        let (chunks, rest) = some.as_chunks::<16>();
        let mut lanes = [f32::NEG_INFINITY; 16];
        for chunk in chunks {
            for (max, &value) in lanes.iter_mut().zip(chunk) {
                *max = if value > *max { value } else { *max };
            }
        }
        let largest = lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max);
        // Of equals the first stays.
        if largest > max {
            (max, first) = (largest, index * SOME);
        }
    }
    let place = values[first..].iter().position(|&value| value == max)?;
    Some((first + place) as TokenId)
}

/// Masks of the parameters, bias and penalties, in vLLM's order.
fn adjust(logits: &mut [f32], row: SampleRow, work: &mut Workspace) {
    let params = row.params();
    if row.num_generated() < params.min_tokens {
        for &token in &params.stop_token_ids {
            logits[token as usize] = f32::NEG_INFINITY;
        }
    }
    for &(token, bias) in &params.logit_bias {
        logits[token as usize] += bias;
    }
    if params.logit_bias.is_empty() && !params.needs_history() {
        return;
    }
    if params.needs_history() {
        let history = row.history().expect("penalties come with a history");
        penalise(logits, params, history, &mut work.tokens);
    }
    // Penalties near their limits can overflow; the largest number keeps the order and the arithmetic.
    for x in logits.iter_mut() {
        *x = x.min(f32::MAX);
    }
}

/// Tokens that the mask leaves out cannot be drawn; those beyond its last word are left out too.
fn apply_mask(logits: &mut [f32], allowed: &[u32]) {
    let words = allowed.iter().copied().chain(std::iter::repeat(0));
    for (logits, word) in logits.chunks_mut(32).zip(words) {
        // Most words of a grammar's mask are empty, and most of an unconstrained text's are full.
        match word {
            0 => logits.fill(f32::NEG_INFINITY),
            u32::MAX => {}
            _ => mask_word(logits, word),
        }
    }
}

fn mask_word(logits: &mut [f32], word: u32) {
    for (bit, x) in logits.iter_mut().enumerate() {
        if word >> bit & 1 == 0 {
            *x = f32::NEG_INFINITY;
        }
    }
}

/// The history is all tokens so far, and how many of them are the prompt.
fn penalise(
    logits: &mut [f32],
    params: &SamplingParams,
    (history, prompt_len): (&[TokenId], usize),
    tokens: &mut Vec<TokenId>,
) {
    if params.repetition_penalty != 1.0 {
        sorted_into(tokens, history);
        tokens.dedup();
        for &token in tokens.iter() {
            let x = &mut logits[token as usize];
            *x = if *x > 0.0 { *x / params.repetition_penalty } else { *x * params.repetition_penalty };
        }
    }
    sorted_into(tokens, &history[prompt_len..]);
    for run in tokens.chunk_by(|a, b| a == b) {
        let count = run.len() as f32;
        logits[run[0] as usize] -= params.frequency_penalty * count + params.presence_penalty;
    }
}

fn sorted_into(tokens: &mut Vec<TokenId>, source: &[TokenId]) {
    tokens.clear();
    tokens.extend_from_slice(source);
    tokens.sort_unstable();
}

/// Draws from the truncated distribution. Weights are relative to the most probable token, which has 1.
fn draw(
    logits: &mut [f32],
    params: &SamplingParams,
    position: usize,
    work: &mut Workspace,
) -> Option<TokenId> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if max == f32::NEG_INFINITY {
        return None;
    }
    let weigh = |x: &mut f32| {
        let weight = ((*x - max) / params.temperature).exp();
        *x = if weight >= params.min_p { weight } else { 0.0 };
    };
    let candidates = &mut work.candidates;
    candidates.clear();
    if (1..logits.len()).contains(&params.top_k) {
        // The largest logits, of equal ones those of lower ids: smaller ones are not looked at again.
        candidates.extend(0..logits.len() as TokenId);
        candidates.select_nth_unstable_by(params.top_k - 1, by_weight(logits));
        candidates.truncate(params.top_k);
        candidates.iter().for_each(|&token| weigh(&mut logits[token as usize]));
        candidates.retain(|&token| logits[token as usize] > 0.0);
    } else {
        logits.iter_mut().for_each(weigh);
    }
    let u = uniform(params.seed, position as u64);
    let weights = &*logits;
    if params.top_k == 0 && params.top_p >= 1.0 {
        return invert(weights.iter().enumerate().map(|(i, &w)| (i as TokenId, w)), u);
    }
    if candidates.is_empty() {
        candidates.extend((0..weights.len() as TokenId).filter(|&i| weights[i as usize] > 0.0));
    }
    truncate(weights, params.top_p, candidates);
    invert(candidates.iter().map(|&i| (i, weights[i as usize])), u)
}

/// Most probable first, ties by lower id.
pub(super) fn by_weight(weights: &[f32]) -> impl Fn(&TokenId, &TokenId) -> Ordering + Copy {
    |a, b| weights[*b as usize].total_cmp(&weights[*a as usize]).then(a.cmp(b))
}

/// Leaves the candidates that top-p keeps, most probable first. At least one is kept.
pub(super) fn truncate(weights: &[f32], top_p: f32, candidates: &mut Vec<TokenId>) {
    if top_p >= 1.0 {
        candidates.sort_unstable_by(by_weight(weights));
        return;
    }
    // Summed in the order of ids, which does not depend on how the selection left them.
    candidates.sort_unstable();
    let total: f64 = candidates.iter().map(|&i| f64::from(weights[i as usize])).sum();
    let goal = f64::from(top_p) * total;
    let (mut sorted, mut sum) = (0, 0.0);
    // The nucleus is usually small: sort a growing head of the candidates instead of all of them.
    let mut head = 256;
    while sorted < candidates.len() {
        let end = candidates.len().min(sorted + head);
        if end < candidates.len() {
            candidates[sorted..].select_nth_unstable_by(end - sorted, by_weight(weights));
        }
        candidates[sorted..end].sort_unstable_by(by_weight(weights));
        for i in sorted..end {
            sum += f64::from(weights[candidates[i] as usize]);
            if sum >= goal {
                candidates.truncate(i + 1);
                return;
            }
        }
        sorted = end;
        head *= 8;
    }
}

/// The first candidate at which the running sum passes `u` of the total.
fn invert(candidates: impl Iterator<Item = (TokenId, f32)> + Clone, u: f64) -> Option<TokenId> {
    let total: f64 = candidates.clone().map(|(_, w)| f64::from(w)).sum();
    let (goal, mut sum) = (u * total, 0.0);
    let mut last = None;
    for (token, weight) in candidates {
        if weight > 0.0 {
            sum += f64::from(weight);
            last = Some(token);
            if sum > goal {
                return last;
            }
        }
    }
    last
}
