//! Launches of route.cu: one warp for each token.

use super::Cuda;
use super::compile::Source;
use super::driver::{Args, DevicePtr, Grid, Param};
use super::launch::{Instance, Kernel};
use crate::operands::route::{GroupScore, RouterConfig, Scoring};
use crate::{DType, Tensor};

const WARPS: usize = 4;

pub(super) const KERNEL: Kernel = Kernel {
    source: Source { name: "route.cu", text: include_str!("route.cu") },
    instances: &[Instance::new("route", 48, 0)],
};

/// As in route.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct RouteShape {
    tokens: i32,
    experts: i32,
    top_k: i32,
    groups: i32,
    top_groups: i32,
    sigmoid: i32,
    sum_of_top_two: i32,
    normalize: i32,
    scale: f32,
}
// SAFETY: eight i32 and a float, as in route.cu.
unsafe impl Param for RouteShape {}

/// Shapes were checked in `ops`.
pub(crate) fn route(
    cuda: &Cuda,
    logits: &Tensor,
    bias: Option<&Tensor>,
    config: &RouterConfig,
    ids: &mut Tensor,
    weights: &mut Tensor,
) {
    let RouterConfig { scoring, top_k, num_groups, top_groups, group_score, normalize, scale } = *config;
    let (tokens, experts) = (logits.rows(), logits.row_len());
    if tokens == 0 {
        return;
    }
    assert_eq!([logits.dtype(), weights.dtype()], [DType::F32; 2], "route: types");
    assert_eq!(ids.dtype(), DType::I32, "route: type of the ids");
    assert!(bias.is_none_or(|bias| bias.dtype() == DType::F32), "route: type of the bias");
    let shape = RouteShape {
        tokens: tokens as i32,
        experts: experts as i32,
        top_k: top_k as i32,
        groups: num_groups as i32,
        top_groups: top_groups as i32,
        sigmoid: i32::from(scoring == Scoring::Sigmoid),
        sum_of_top_two: i32::from(group_score == GroupScore::SumOfTopTwo),
        normalize: i32::from(normalize),
        scale,
    };
    let args = Args::new().pointer(logits.pointer()).pointer(bias.map_or(DevicePtr::NULL, Tensor::pointer));
    let args = args.value(shape).pointer(ids.pointer()).pointer(weights.pointer());
    let grid = Grid {
        blocks: [tokens.div_ceil(WARPS) as u32, 1, 1],
        threads: [WARPS as u32 * 32, 1, 1],
        shared: (WARPS * (2 * experts + num_groups) * 4) as u32,
    };
    // SAFETY: `ops` checked [T, E] logits, [T, k] ids and weights, and a bias of E; the shared memory is what four warps use.
    unsafe { cuda.launch(&KERNEL, "route", grid, args) };
}
