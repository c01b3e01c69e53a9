//! route: chooses top_k experts for each token
//! logits [T, E] f32 · bias [E] f32 · ids [T, k] i32 · weights [T, k] f32
//!
//! Scores are softmax or sigmoid of the logits. Experts are chosen by score + bias, in falling order, ties by the lower index,
//! within the top_groups best groups (others get -inf). Weights are the unbiased scores, divided by (their sum + 1e-20) if
//! `normalize`, times `scale`.

use crate::cpu::route::{MAX_GROUPS, route_token};
use crate::cuda::route as cuda_route;
use crate::{Device, Tensor};

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RouterConfig {
    pub scoring: Scoring,
    pub top_k: usize,
    /// Experts are cut into this many groups of one size; 1 where there are none.
    pub num_groups: usize,
    pub top_groups: usize,
    pub group_score: GroupScore,
    pub normalize: bool,
    pub scale: f32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scoring {
    Softmax,
    Sigmoid,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupScore {
    Max,
    SumOfTopTwo,
}

/// Most experts that a router may have.
const MAX_EXPERTS: usize = 1024;

pub fn route(
    logits: &Tensor,
    bias: Option<&Tensor>,
    config: &RouterConfig,
    ids: &mut Tensor,
    weights: &mut Tensor,
) {
    let (t, e, k) = (logits.rows(), logits.row_len(), config.top_k);
    assert!(e <= MAX_EXPERTS, "route: {e} experts are more than {MAX_EXPERTS}");
    assert!((1..=MAX_GROUPS).contains(&config.num_groups), "route: groups");
    assert!(e.is_multiple_of(config.num_groups), "route: {e} experts in {} groups", config.num_groups);
    assert!((1..=config.num_groups).contains(&config.top_groups), "route: top groups");
    assert!((1..=e / config.num_groups * config.top_groups).contains(&k), "route: top {k} of {e}");
    assert_eq!((ids.rows(), ids.row_len()), (t, k), "route: ids");
    assert_eq!((weights.rows(), weights.row_len()), (t, k), "route: weights");
    if let Some(bias) = bias {
        assert_eq!(bias.shape(), [e], "route: bias");
    }
    match logits.device() {
        Device::Cpu(_) => {
            let bias = bias.map(Tensor::as_f32);
            let mut work = [[0.0; MAX_EXPERTS]; 2];
            let out = ids.as_i32_mut().chunks_exact_mut(k).zip(weights.as_f32_mut().chunks_exact_mut(k));
            for (logits, out) in logits.as_f32().chunks_exact(e).zip(out) {
                route_token(logits, bias, config, work.each_mut().map(|w| &mut w[..e]), out);
            }
        }
        Device::Cuda(cuda) => cuda_route::route(cuda, logits, bias, config, ids, weights),
    }
}
