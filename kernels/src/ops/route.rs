//! route: chooses top_k experts for each token
//! logits [T, E] f32 · bias [E] f32 · ids [T, k] i32 · weights [T, k] f32
//!
//! Scores are softmax or sigmoid of the logits. Experts are chosen by score + bias, in falling order, ties by the lower index,
//! within the top_groups best groups (others get -inf). Weights are the unbiased scores, divided by (their sum + 1e-20) if
//! `normalize`, times `scale`.
//!
//! norm_and_route: add_rms_norm of x [T, H], linear with the router [E, H] and its bias, and route, with the bits that each has alone

use super::linear;
use crate::cpu::gemm::{self, Gemm, Input, Part};
use crate::cpu::norm;
use crate::cpu::processor::Cpu;
use crate::cpu::route::{MAX_GROUPS, route_token};
use crate::cpu::shared::SharedMut;
use crate::cpu::tile::MAX_ROWS;
use crate::cuda::route as cuda_route;
use crate::operands::linear::Activation;
use crate::operands::moe::AddNorm;
use crate::operands::route::RouterConfig;
use crate::operands::tokens::NormFor;
use crate::{ActivationType, Device, Matrix, Tensor};

/// Most experts that a router may have.
const MAX_EXPERTS: usize = 1024;

pub fn route(
    logits: &Tensor,
    bias: Option<&Tensor>,
    config: &RouterConfig,
    ids: &mut Tensor,
    weights: &mut Tensor,
) {
    check(logits, bias, config, [&*ids, &*weights]);
    match logits.device() {
        Device::Cpu(cpu) => {
            let tokens = Choosing::new(logits.row_len(), bias, config, ids, weights);
            let each = cpu.per_block(logits.rows(), tokens.cost());
            cpu.pool.run(logits.rows().div_ceil(each), &|task, _| {
                let logits = logits.as_f32().chunks(each * tokens.num_experts).nth(task).unwrap_or(&[]);
                // SAFETY: each token is of one task.
                unsafe { tokens.choose(task * each, logits) }
            });
        }
        Device::Cuda(cuda) => cuda_route::route(cuda, logits, bias, config, ids, weights),
    }
}

fn check(logits: &Tensor, bias: Option<&Tensor>, config: &RouterConfig, [ids, weights]: [&Tensor; 2]) {
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
}

/// What chooses the experts of a layer.
#[derive(Clone, Copy, Debug)]
pub struct Router<'a> {
    /// `[E, H]`
    pub weight: &'a Matrix,
    /// `[E]`: added to the logits.
    pub logit_bias: Option<&'a Tensor>,
    /// `[E]`: added to scores where experts are chosen.
    pub bias: Option<&'a Tensor>,
    pub config: &'a RouterConfig,
}

/// What is chosen, and by which logits.
#[derive(Debug)]
pub struct Choice<'a> {
    /// `[T, E]`
    pub logits: &'a mut Tensor,
    /// `[T, k]` i32
    pub ids: &'a mut Tensor,
    /// `[T, k]`
    pub weights: &'a mut Tensor,
}

/// `add_rms_norm` of x into `normed`, `linear` of that with the router, and `route`: the bits of these three. A processor does them in one
/// region, some tokens a task; on a GPU the norm leaves what it makes in the room of `add` as well, where the layer after it takes it so.
pub fn norm_and_route(x: &Tensor, add: AddNorm, normed: &mut Tensor, router: Router, choice: Choice) {
    let Choice { logits, ids, weights } = choice;
    let Router { weight, logit_bias, bias, config } = router;
    let AddNorm { residual, norm, tokens } = add;
    let device = x.device().clone();
    let cpu = match &device {
        Device::Cpu(cpu) if cpu.rounds.beside(weight.stored_as()) == ActivationType::F32 => cpu,
        _ => {
            tokens.add_rms_norm(residual, x, norm, normed);
            linear(normed, weight, logit_bias, Activation::None, logits);
            return route(logits, bias, config, ids, weights);
        }
    };
    check(logits, bias, config, [&*ids, &*weights]);
    let (t, h, e) = (x.rows(), weight.k(), weight.n());
    let NormFor { weight: norm, eps, next: _ } = norm;
    assert_eq!([x.row_len(), norm.len()], [h, h], "norm_and_route: width of x");
    assert_eq!([x.shape(), x.shape()], [normed.shape(), residual.shape()], "norm_and_route: shapes");
    assert_eq!([logits.rows(), logits.row_len()], [t, e], "norm_and_route: logits");
    let logits = SharedMut::new(logits.as_f32_mut());
    let choosing = Choosing::new(e, bias, config, ids, weights);
    let rows = Rows {
        cpu,
        x: x.as_f32(),
        norm: norm.as_f32(),
        eps,
        residual: SharedMut::new(residual.as_f32_mut()),
        normed: SharedMut::new(normed.as_f32_mut()),
        router: weight,
        logit_bias: logit_bias.map(Tensor::as_f32),
        logits,
        choosing,
    };
    // A task reads all of the router: no more of them than workers where tokens are few.
    let each = t.div_ceil(cpu.pool.num_workers()).clamp(1, ROUTED_TOGETHER);
    cpu.pool.run(t.div_ceil(each), &|task, _| {
        let first = task * each;
        // SAFETY: each token is of one task.
        unsafe { rows.run(first, each.min(t - first)) };
    });
}

/// Tokens of a task where there are many: as many as share what is read of the router.
const ROUTED_TOGETHER: usize = 8;
const _: () = assert!(ROUTED_TOGETHER <= MAX_ROWS);

/// What tasks of `norm_and_route` need.
struct Rows<'a> {
    cpu: &'a Cpu,
    x: &'a [f32],
    norm: &'a [f32],
    eps: f32,
    residual: SharedMut<f32>,
    normed: SharedMut<f32>,
    router: &'a Matrix,
    logit_bias: Option<&'a [f32]>,
    logits: SharedMut<f32>,
    choosing: Choosing<'a>,
}

impl Rows<'_> {
    /// # Safety
    /// Nobody else has these tokens.
    unsafe fn run(&self, first: usize, count: usize) {
        let (h, e) = (self.router.k(), self.router.n());
        let (start, len) = (first * h, count * h);
        // SAFETY: the caller's promise.
        let [residual, normed] = unsafe { [self.residual, self.normed].map(|rows| rows.slice(start, len)) };
        norm::add_rms_norm(self.cpu.isa, residual, &self.x[start..start + len], self.norm, self.eps, normed);
        let logits = self.logits.from(first * e).first(count * e);
        let weights = self.router.as_batch();
        let job = Gemm {
            x: Input::Floats { x: (&*normed).into(), row: h, member: 0 },
            rows: count,
            weights,
            bias: self.logit_bias,
            act: Activation::None,
            out: logits,
            out_stride: e,
            out_member: 0,
        };
        let part = Part { panels: 0..weights.panels_per_member(), rows: 0..count };
        gemm::run_part(self.cpu.isa, &job, 0, &part, &mut []);
        // SAFETY: the caller's promise; the product is done.
        unsafe { self.choosing.choose(first, logits.slice(0, count * e)) };
    }
}

/// Tokens to choose experts for.
struct Choosing<'a> {
    num_experts: usize,
    bias: Option<&'a [f32]>,
    config: &'a RouterConfig,
    ids: SharedMut<i32>,
    weights: SharedMut<f32>,
}

impl<'a> Choosing<'a> {
    fn new(
        num_experts: usize,
        bias: Option<&'a Tensor>,
        config: &'a RouterConfig,
        ids: &mut Tensor,
        weights: &mut Tensor,
    ) -> Self {
        let (ids, weights) = (SharedMut::new(ids.as_i32_mut()), SharedMut::new(weights.as_f32_mut()));
        Self { num_experts, bias: bias.map(Tensor::as_f32), config, ids, weights }
    }

    /// Of one token, in elements that simple work would touch.
    fn cost(&self) -> usize {
        self.num_experts * self.config.top_k
    }

    /// For as many tokens as there are logits of.
    ///
    /// # Safety
    /// Nobody else has these tokens.
    unsafe fn choose(&self, first: usize, logits: &[f32]) {
        let (e, k) = (self.num_experts, self.config.top_k);
        let mut work = [[0.0; MAX_EXPERTS]; 2];
        let (start, len) = (first * k, logits.len() / e * k);
        // SAFETY: the caller's promise.
        let (ids, weights) = unsafe { (self.ids.slice(start, len), self.weights.slice(start, len)) };
        let chosen = ids.chunks_exact_mut(k).zip(weights.chunks_exact_mut(k));
        for (logits, chosen) in logits.chunks_exact(e).zip(chosen) {
            route_token(logits, self.bias, self.config, work.each_mut().map(|work| &mut work[..e]), chosen);
        }
    }
}
