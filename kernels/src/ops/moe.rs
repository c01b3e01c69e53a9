//! Routing and the experts.

use super::elementwise::silu;
use crate::{Device, Experts, Matrix, Tensor};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scoring {
    Softmax,
    Sigmoid,
}

/// What a group of experts is chosen by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupScore {
    Max,
    SumOfTopTwo,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RouterConfig {
    pub scoring: Scoring,
    pub top_k: usize,
    /// 1 is no groups.
    pub num_groups: usize,
    /// How many groups are kept.
    pub top_groups: usize,
    pub group_score: GroupScore,
    /// Divide the chosen scores by their sum (plus 1e-20).
    pub normalize: bool,
    pub scale: f32,
}

/// Chooses `top_k` experts for each token by score + bias, ties by lower index; the weights are the unbiased scores. `logits`
/// `[T, E]` f32, `ids` `[T, k]` i32, `weights` `[T, k]` f32. Source: DeepSeek-V3's `noaux_tc`.
pub fn route(
    logits: &Tensor,
    bias: Option<&Tensor>,
    config: &RouterConfig,
    ids: &mut Tensor,
    weights: &mut Tensor,
) {
    let [t, e] = *logits.shape() else { panic!("route: logits") };
    let k = config.top_k;
    assert_eq!(ids.shape(), [t, k], "route: ids");
    assert_eq!(weights.shape(), [t, k], "route: weights");
    for i in 0..t {
        let row = &logits.as_f32()[i * e..][..e];
        let scores: Vec<f32> = match config.scoring {
            Scoring::Sigmoid => row.iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect(),
            Scoring::Softmax => {
                let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let exps: Vec<f32> = row.iter().map(|x| (x - max).exp()).collect();
                let sum: f32 = exps.iter().sum();
                exps.iter().map(|x| x / sum).collect()
            }
        };
        let mut choice: Vec<f32> = (0..e).map(|j| scores[j] + bias.map_or(0.0, |b| b.get(j))).collect();
        if config.num_groups > 1 {
            let size = e / config.num_groups;
            let score = |group: &[f32]| {
                let mut sorted = group.to_vec();
                sorted.sort_by(|a, b| b.total_cmp(a));
                match config.group_score {
                    GroupScore::Max => sorted[0],
                    GroupScore::SumOfTopTwo => sorted[0] + sorted.get(1).copied().unwrap_or(0.0),
                }
            };
            let groups: Vec<f32> = choice.chunks(size).map(score).collect();
            let kept = top(&groups, config.top_groups);
            for (j, value) in choice.iter_mut().enumerate() {
                if !kept.contains(&(j / size)) {
                    *value = f32::NEG_INFINITY;
                }
            }
        }
        let chosen = top(&choice, k);
        let sum: f32 = chosen.iter().map(|&j| scores[j]).sum::<f32>() + 1e-20;
        for (slot, &j) in chosen.iter().enumerate() {
            let weight = if config.normalize { scores[j] / sum } else { scores[j] };
            ids.as_i32_mut()[i * k + slot] = j as i32;
            weights.as_f32_mut()[i * k + slot] = weight * config.scale;
        }
    }
}

/// Indices of the `k` largest, largest first, ties by lower index.
fn top(values: &[f32], k: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[b].total_cmp(&values[a]).then(a.cmp(&b)));
    order.truncate(k);
    order
}

/// Buffers of [`moe`], for the largest step.
#[derive(Debug)]
pub struct MoeScratch {
    hidden: Tensor,
}

impl MoeScratch {
    pub fn new(device: &Device, max_tokens: usize, [_e, _h, i]: [usize; 3], top_k: usize) -> Self {
        Self { hidden: Tensor::zeros(device, crate::DType::F32, &[max_tokens * top_k, i]) }
    }

    pub fn bytes(max_tokens: usize, [_e, _h, i]: [usize; 3], top_k: usize) -> u64 {
        (max_tokens * top_k * i * 4) as u64
    }
}

/// `out[t, :] = sum_j weights[t, j] * expert[ids[t, j]](x[t, :])` with `expert(x) = down(silu(gate(x)) * up(x))`, summed in the order
/// of `ids`. `x`, `out` `[T, H]`.
pub fn moe(
    x: &Tensor,
    experts: &Experts,
    ids: &Tensor,
    weights: &Tensor,
    scratch: &mut MoeScratch,
    out: &mut Tensor,
) {
    let [t, h] = *x.shape() else { panic!("moe: x") };
    let [_, k] = *ids.shape() else { panic!("moe: ids") };
    let dot = |w: &Matrix, row: usize, x: &[f32]| -> f32 {
        x.iter().enumerate().fold(0.0, |sum, (l, v)| sum + v * w.w.get(row * x.len() + l))
    };
    out.as_f32_mut().fill(0.0);
    for i in 0..t {
        let row = &x.as_f32()[i * h..][..h];
        for j in 0..k {
            let expert = ids.as_i32()[i * k + j] as usize;
            let (gate_up, down) = (&experts.gate_up[expert], &experts.down[expert]);
            let inner = down.k();
            let hidden = &mut scratch.hidden.as_f32_mut()[..inner];
            for (l, value) in hidden.iter_mut().enumerate() {
                *value = silu(dot(gate_up, l, row)) * dot(gate_up, inner + l, row);
            }
            for n in 0..h {
                out.as_f32_mut()[i * h + n] += weights.as_f32()[i * k + j] * dot(down, n, hidden);
            }
        }
    }
}
