//! Choosing experts for one token. Scalar: a few hundred experts at most, next to matrices of millions.

use crate::operands::route::{GroupScore, RouterConfig, Scoring};

/// Writes the `top_k` best experts and their weights; `scores` and `biased` are workspace of one value per expert.
pub(crate) fn route_token(
    logits: &[f32],
    bias: Option<&[f32]>,
    config: &RouterConfig,
    work: [&mut [f32]; 2],
    chosen: (&mut [i32], &mut [f32]),
) {
    let [scores, biased] = work;
    let (ids, weights) = chosen;
    score(logits, config.scoring, scores);
    biased.copy_from_slice(scores);
    if let Some(bias) = bias {
        biased.iter_mut().zip(bias).for_each(|(score, bias)| *score += bias);
    }
    if config.top_groups < config.num_groups {
        mask_groups(biased, config);
    }
    for (id, weight) in ids.iter_mut().zip(weights.iter_mut()) {
        let best = best(biased);
        biased[best] = f32::NEG_INFINITY;
        *id = best as i32;
        *weight = scores[best];
    }
    let sum: f32 = weights.iter().sum();
    let factor = if config.normalize { config.scale / (sum + 1e-20) } else { config.scale };
    weights.iter_mut().for_each(|weight| *weight *= factor);
}

fn score(logits: &[f32], scoring: Scoring, scores: &mut [f32]) {
    match scoring {
        Scoring::Sigmoid => {
            for (score, logit) in scores.iter_mut().zip(logits) {
                *score = 1.0 / (1.0 + (-logit).exp());
            }
        }
        Scoring::Softmax => {
            let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            for (score, logit) in scores.iter_mut().zip(logits) {
                *score = (logit - max).exp();
            }
            let sum: f32 = scores.iter().sum();
            scores.iter_mut().for_each(|score| *score /= sum);
        }
    }
}

/// Keeps the experts of the best groups; ties go to the lower group.
fn mask_groups(biased: &mut [f32], config: &RouterConfig) {
    let size = biased.len() / config.num_groups;
    let score = |group: &[f32]| match config.group_score {
        GroupScore::Max => group.iter().copied().fold(f32::NEG_INFINITY, f32::max),
        GroupScore::SumOfTopTwo => {
            let (first, second) = group.iter().fold((f32::NEG_INFINITY, f32::NEG_INFINITY), |(a, b), &x| {
                if x > a { (x, a) } else { (a, b.max(x)) }
            });
            first + second
        }
    };
    // A group stays if fewer than `top_groups` others come before it.
    let comes_before = |other: usize, this: usize, biased: &[f32]| {
        let group = |g: usize| score(&biased[g * size..(g + 1) * size]);
        let (a, b) = (group(other), group(this));
        a > b || (a == b && other < this)
    };
    let mut dropped = [0u64; MAX_GROUPS / 64];
    for this in 0..config.num_groups {
        let before = (0..config.num_groups)
            .filter(|&other| other != this && comes_before(other, this, biased))
            .count();
        if before >= config.top_groups {
            dropped[this / 64] |= 1 << (this % 64);
        }
    }
    for this in 0..config.num_groups {
        if dropped[this / 64] >> (this % 64) & 1 == 1 {
            biased[this * size..(this + 1) * size].fill(f32::NEG_INFINITY);
        }
    }
}

pub(crate) const MAX_GROUPS: usize = 256;

/// The index of the largest value, the lower one of equals. NaN is never larger: with nothing but NaN, index 0.
fn best(values: &[f32]) -> usize {
    let mut best = 0;
    for (i, &value) in values.iter().enumerate() {
        if value > values[best] || (values[best].is_nan() && !value.is_nan()) {
            best = i;
        }
    }
    best
}
