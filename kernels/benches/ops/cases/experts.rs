//! Layers of experts.

use super::{known, on_gpu, random, with_wgmma, zeros};
use crate::{Bench, Work};
use kernels::ops::*;
use kernels::*;

pub fn experts(bench: &Bench) {
    if !bench.wants("moe") {
        return;
    }
    for stored_as in
        known(bench, &[WeightType::BF16, WeightType::CompactBf16, WeightType::Int8, WeightType::Int4])
    {
        experts_of(bench, stored_as);
    }
}

fn experts_of(bench: &Bench, stored_as: WeightType) {
    let sizes = [64, 2048, 1408];
    let [e, h, i] = sizes;
    let experts = Experts::random(&bench.device, stored_as, sizes, 0.02, 3);
    let k = 6;
    // The last is for wgmma, which leaves fewer rows of an expert to mma.sync.
    let is_gpu = on_gpu(bench) && stored_as == WeightType::BF16;
    for t in [1, 8, 64, 512].into_iter().chain(is_gpu.then_some(4096)) {
        let (x, mut out) = (random(bench, &[t, h]), zeros(bench, &[t, h]));
        let mut ids = Tensor::zeros(&bench.device, DType::I32, &[t, k]);
        let chosen: Vec<i32> = (0..t * k).map(|pair| ((pair * 11 + pair / 64 * 5) % e) as i32).collect();
        ids.write_i32(0, &chosen);
        let weights = random(bench, &[t, k]);
        let mut scratch = MoeScratch::new(&bench.device, t, sizes, k);
        let distinct = (t * k).min(e);
        let work = || match t {
            1 | 8 => Work::Bytes(experts.bytes() as f64 * distinct as f64 / e as f64),
            _ => Work::Flop(6.0 * (t * k * h * i) as f64),
        };
        let line = format!("{stored_as} T {t} E {e} k {k} H {h} I {i}");
        bench.line("moe", &line, work(), || moe(&x, &experts, &ids, &weights, &mut scratch, &mut out));
        if t == 4096 {
            with_wgmma(bench, || {
                bench.line("moe", &format!("{line} wgmma"), work(), || {
                    moe(&x, &experts, &ids, &weights, &mut scratch, &mut out);
                });
            });
        }
        if stored_as != WeightType::BF16 {
            continue;
        }
        let logits = random(bench, &[t, e]);
        let config = router_config(k);
        let mut weights = zeros(bench, &[t, k]);
        bench.line("route", &format!("T {t} E {e} k {k}"), Work::Bytes((4 * t * e) as f64), || {
            route(&logits, None, &config, &mut ids, &mut weights);
        });
    }
}

fn router_config(top_k: usize) -> RouterConfig {
    RouterConfig {
        scoring: Scoring::Sigmoid,
        top_k,
        num_groups: 1,
        top_groups: 1,
        group_score: GroupScore::Max,
        normalize: true,
        scale: 2.446,
    }
}

/// With the expert that every token takes, twice as wide as the others; then with the norm of the stream after them.
pub fn with_shared(bench: &Bench) {
    let ops =
        [(Op::MoeAndShared, [1, 8, 32]), (Op::MoeAndNorm, [1, 32, 512]), (Op::NormAndRoute, [1, 32, 512])];
    if !ops.iter().any(|(op, _)| bench.wants(op.name())) {
        return;
    }
    let layer = Layer::new(bench, [64, 2048, 1408], 2816);
    for (op, tokens) in ops {
        for t in tokens.into_iter().filter(|_| bench.wants(op.name())) {
            layer.line(bench, op, [t, 6]);
        }
    }
}

#[derive(Clone, Copy)]
pub enum Op {
    MoeAndShared,
    MoeAndNorm,
    NormAndRoute,
}

impl Op {
    fn name(self) -> &'static str {
        match self {
            Self::MoeAndShared => "moe_and_shared",
            Self::MoeAndNorm => "moe_and_norm",
            Self::NormAndRoute => "norm_and_route",
        }
    }
}

/// A layer of experts.
pub struct Layer {
    router: Matrix,
    experts: Experts,
    gate_up: Matrix,
    down: Matrix,
    norm: Tensor,
}

impl Layer {
    /// Of E experts `[E, H, I]`, beside one of another inner size.
    pub fn new(bench: &Bench, sizes: [usize; 3], shared: usize) -> Self {
        let (device, [e, h, _]) = (&bench.device, sizes);
        let matrix = |dtype, n, k, seed| Matrix::random(device, dtype, n, k, 0.02, seed);
        Self {
            router: matrix(DType::F32, e, h, 6),
            experts: Experts::random(device, DType::BF16, sizes, 0.02, 3),
            gate_up: matrix(DType::BF16, 2 * shared, h, 4),
            down: matrix(DType::BF16, h, shared, 5),
            norm: random(bench, &[h]),
        }
    }

    /// `t` tokens with `k` experts each.
    pub fn line(&self, bench: &Bench, op: Op, [t, k]: [usize; 2]) {
        let Self { router, experts, gate_up, down, norm } = self;
        let ([e, h, i], shared_inner) = ([experts.len(), experts.hidden(), experts.inner()], down.k());
        let [mut x, mut residual] = [h; 2].map(|width| random(bench, &[t, width]));
        let mut weights = random(bench, &[t, k]);
        let mut ids = Tensor::zeros(&bench.device, DType::I32, &[t, k]);
        ids.write_i32(0, &(0..t * k).map(|pair| (pair * 11 % e) as i32).collect::<Vec<_>>());
        let mut scratch = MoeScratch::new(&bench.device, t, [e, h, i], k);
        let [mut both, mut inner, mut of_shared, mut out, mut logits] =
            [2 * shared_inner, shared_inner, h, h, e].map(|width| zeros(bench, &[t, width]));
        let of_chosen = experts.bytes() as f64 * (t * k).min(e) as f64 / e as f64;
        let work = match (op, t) {
            (Op::NormAndRoute, _) => Work::Bytes(router.bytes() as f64 + (16 * t * h) as f64),
            (_, ..=32) => Work::Bytes(of_chosen + (gate_up.bytes() + down.bytes()) as f64),
            _ => Work::Flop(6.0 * (t * h * (k * i + shared_inner)) as f64),
        };
        let line = match op {
            Op::NormAndRoute => format!("T {t} E {e} k {k} H {h}"),
            _ => format!("bfloat16 T {t} E {e} k {k} H {h} I {i} and {shared_inner}"),
        };
        let mut room = TokenRoom::new(&bench.device, &[[t, h.max(shared_inner)]]);
        bench.line(op.name(), &line, work, || {
            let (both, inner, tokens) = (&mut both, &mut inner, &mut room);
            let shared = SharedExpert { gate_up, down, gate: None, both, inner, out: &mut of_shared };
            let norm = NormFor { weight: norm, eps: 1e-5, next: WeightType::BF16 };
            match op {
                Op::MoeAndShared => {
                    let shared = Some((shared, tokens));
                    moe_and_shared(&x, experts, [&ids, &weights], &mut scratch, shared, &mut out);
                }
                Op::MoeAndNorm => {
                    let then = AddNorm { residual: &mut residual, norm, tokens };
                    let by = [&ids, &weights];
                    moe_and_norm(&mut x, experts, by, &mut scratch, Some(shared), &mut out, then);
                }
                Op::NormAndRoute => {
                    let add = AddNorm { residual: &mut residual, norm, tokens };
                    let router =
                        Router { weight: router, logit_bias: None, bias: None, config: &router_config(k) };
                    let choice = Choice { logits: &mut logits, ids: &mut ids, weights: &mut weights };
                    norm_and_route(&out, add, &mut x, router, choice);
                }
            }
        });
    }
}
