//! Every op in f64, one line of arithmetic after the other, over what the tensors really hold.

use kernels::ops::{Activation, GroupScore, RopeLayout, RouterConfig, Scoring};
use std::ops::Range;

pub type Rows = Vec<Vec<f64>>;

pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

pub fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

pub fn silu(x: f64) -> f64 {
    x * sigmoid(x)
}

pub fn activate(act: Activation, x: f64) -> f64 {
    match act {
        Activation::None => x,
        Activation::GeluTanh => {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
        }
        Activation::GeluErf => 0.5 * x * (1.0 + erf(x / 2f64.sqrt())),
        Activation::QuickGelu => x * sigmoid(1.702 * x),
    }
}

/// By its Taylor series, or by the continued fraction of its complement.
pub fn erf(x: f64) -> f64 {
    let a = x.abs();
    if a < 3.0 {
        let (mut term, mut sum, mut n) = (a, a, 0.0);
        while term.abs() > 1e-18 {
            n += 1.0;
            term *= -a * a / n;
            sum += term / (2.0 * n + 1.0);
        }
        return x.signum() * sum * std::f64::consts::FRAC_2_SQRT_PI;
    }
    let fraction = (1..80).rev().fold(0.0, |fraction, k| f64::from(k) / 2.0 / (a + fraction));
    x.signum() * (1.0 - (-a * a).exp() / (a + fraction) / std::f64::consts::PI.sqrt())
}

/// `x [T, K]` times `w [N, K]`.
pub fn linear(x: &Rows, w: &Rows, bias: Option<&[f64]>, act: Activation) -> Rows {
    let out = |x: &Vec<f64>, n: usize| activate(act, dot(x, &w[n]) + bias.map_or(0.0, |bias| bias[n]));
    x.iter().map(|x| (0..w.len()).map(|n| out(x, n)).collect()).collect()
}

pub struct Expert {
    pub gate: Rows,
    pub up: Rows,
    pub down: Rows,
}

pub fn moe(x: &Rows, experts: &[Expert], ids: &[i32], weights: &[f64]) -> Rows {
    let k = ids.len() / x.len();
    let one = |x: &[f64], e: &Expert| -> Vec<f64> {
        let inner: Vec<f64> = e.gate.iter().zip(&e.up).map(|(g, u)| silu(dot(x, g)) * dot(x, u)).collect();
        e.down.iter().map(|d| dot(&inner, d)).collect()
    };
    let token = |t: usize| -> Vec<f64> {
        let mut out = vec![0.0; x[t].len()];
        for pair in t * k..(t + 1) * k {
            let y = one(&x[t], &experts[ids[pair] as usize]);
            out.iter_mut().zip(y).for_each(|(out, y)| *out += weights[pair] * y);
        }
        out
    };
    (0..x.len()).map(token).collect()
}

pub fn rms_norm(x: &[f64], w: &[f64], eps: f64) -> Vec<f64> {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    x.iter().zip(w).map(|(x, w)| x / (mean + eps).sqrt() * w).collect()
}

pub fn layer_norm(x: &[f64], w: &[f64], b: &[f64], eps: f64) -> Vec<f64> {
    let mean = x.iter().sum::<f64>() / x.len() as f64;
    let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / x.len() as f64;
    (0..x.len()).map(|i| (x[i] - mean) / (variance + eps).sqrt() * w[i] + b[i]).collect()
}

/// Rows of x, of w and of b, with as many of w and b as there are heads.
pub fn layer_norm_heads([x, w, b]: [Vec<Vec<f64>>; 3], eps: f64) -> Vec<f64> {
    let own = |row: usize| row % w.len();
    x.iter().enumerate().flat_map(|(row, x)| layer_norm(x, &w[own(row)], &b[own(row)], eps)).collect()
}

/// One head of one token.
pub fn rope(x: &mut [f64], offset: usize, angles: &[(f64, f64)], layout: RopeLayout) {
    let half = angles.len();
    for (i, (cos, sin)) in angles.iter().enumerate() {
        let (a, b) = match layout {
            RopeLayout::Half => (offset + i, offset + i + half),
            RopeLayout::Interleaved => (offset + 2 * i, offset + 2 * i + 1),
        };
        (x[a], x[b]) = (x[a] * cos - x[b] * sin, x[b] * cos + x[a] * sin);
    }
}

/// Some of the heads of each token of `x` `[T, H, D]`; `angles` has cosines and sines of a token.
pub fn rope_heads(
    x: Rows,
    (heads, num_heads): (Range<usize>, usize),
    offset: usize,
    angles: &dyn Fn(usize) -> Vec<(f64, f64)>,
    layout: RopeLayout,
) -> Vec<f64> {
    let rotated = |(i, mut row): (usize, Vec<f64>)| {
        if heads.contains(&(i % num_heads)) {
            rope(&mut row, offset, &angles(i / num_heads), layout);
        }
        row
    };
    x.into_iter().enumerate().flat_map(rotated).collect()
}

/// One query over all the keys that it may see.
pub fn attend(q: &[f64], keys: &[&[f64]], values: &[&[f64]], scale: f64) -> Vec<f64> {
    attend_with_sink(q, keys, values, scale, None)
}

/// With a logit that takes weight and has no value.
pub fn attend_with_sink(
    q: &[f64],
    keys: &[&[f64]],
    values: &[&[f64]],
    scale: f64,
    sink: Option<f64>,
) -> Vec<f64> {
    let scores: Vec<f64> = keys.iter().map(|key| scale * dot(q, key)).collect();
    let max = scores.iter().copied().chain(sink).fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
    let sum = weights.iter().sum::<f64>() + sink.map_or(0.0, |sink| (sink - max).exp());
    let mut out = vec![0.0; values[0].len()];
    for (weight, value) in weights.iter().zip(values) {
        out.iter_mut().zip(*value).for_each(|(out, v)| *out += weight / sum * v);
    }
    out
}

/// Ids and weights of one token.
pub fn route(logits: &[f64], bias: Option<&[f64]>, config: &RouterConfig) -> (Vec<usize>, Vec<f64>) {
    let scores: Vec<f64> = match config.scoring {
        Scoring::Sigmoid => logits.iter().copied().map(sigmoid).collect(),
        Scoring::Softmax => {
            let sum: f64 = logits.iter().map(|x| x.exp()).sum();
            logits.iter().map(|x| x.exp() / sum).collect()
        }
    };
    let mut biased: Vec<f64> =
        scores.iter().enumerate().map(|(i, s)| s + bias.map_or(0.0, |b| b[i])).collect();
    let size = logits.len() / config.num_groups;
    let group_score = |group: &[f64]| {
        let mut sorted = group.to_vec();
        sorted.sort_by(|a, b| b.total_cmp(a));
        match config.group_score {
            GroupScore::Max => sorted[0],
            GroupScore::SumOfTopTwo => sorted[0] + sorted[1],
        }
    };
    if config.top_groups < config.num_groups {
        let groups: Vec<f64> = biased.chunks(size).map(group_score).collect();
        let kept = top(&groups, config.top_groups);
        for (i, score) in biased.iter_mut().enumerate() {
            if !kept.contains(&(i / size)) {
                *score = f64::NEG_INFINITY;
            }
        }
    }
    let ids = top(&biased, config.top_k);
    let sum: f64 = ids.iter().map(|&id| scores[id]).sum::<f64>() + 1e-20;
    let divisor = if config.normalize { sum } else { 1.0 };
    let weights = ids.iter().map(|&id| scores[id] / divisor * f64::from(config.scale)).collect();
    (ids, weights)
}

/// Indices of the largest, largest first, ties by the lower index.
fn top(values: &[f64], k: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[b].total_cmp(&values[a]).then(a.cmp(&b)));
    order.truncate(k);
    order
}
