//! What a layer of experts does in one region, beside its ops one after the other: the same bits.

use crate::common::*;
use kernels::ops::*;
use kernels::*;

/// The stream's norm, the router and its choice.
#[test]
fn a_choice_is_its_ops_one_after_the_other() {
    for device in devices().into_iter().chain(rounding_devices()) {
        for (stored_as, t, h, e, k) in [
            (WeightType::F32, 0, 67, 5, 2),
            (WeightType::F32, 1, 67, 5, 2),
            (WeightType::F32, 8, 300, 37, 4),
            (WeightType::F32, 203, 67, 70, 3),
            (WeightType::BF16, 9, 70, 33, 3),
        ] {
            let what = format!("{device:?} {stored_as} T {t} H {h} E {e} k {k}");
            let [x, residual] = [1, 2].map(|seed| Tensor::random(&device, &[t, h], 1.0, seed));
            let norm = Tensor::random(&device, &[h], 1.0, 3);
            let weight = &Matrix::random(&device, stored_as, e, h, 0.3, 4);
            let bias = Tensor::random(&device, &[e], 0.5, 5);
            let config = &RouterConfig {
                scoring: Scoring::Sigmoid,
                top_k: k,
                num_groups: 1,
                top_groups: 1,
                group_score: GroupScore::Max,
                normalize: true,
                scale: 2.446,
            };
            let run = |at_once: bool| {
                let mut residual = Tensor::from_f32(&device, &[t, h], residual.as_f32());
                let [mut normed, mut logits, mut weights] =
                    [h, e, k].map(|width| Tensor::zeros(&device, DType::F32, &[t, width]));
                let mut ids = Tensor::zeros(&device, DType::I32, &[t, k]);
                if at_once {
                    let norm = NormFor { weight: &norm, eps: 1e-5, next: WeightType::BF16 };
                    let tokens = &mut TokenRoom::new(&device, &[]);
                    let add = AddNorm { residual: &mut residual, norm, tokens };
                    let router = Router { weight, logit_bias: Some(&bias), bias: Some(&bias), config };
                    let choice = Choice { logits: &mut logits, ids: &mut ids, weights: &mut weights };
                    norm_and_route(&x, add, &mut normed, router, choice);
                } else {
                    add_rms_norm(&mut residual, &x, &norm, 1e-5, &mut normed);
                    linear(&normed, weight, Some(&bias), Activation::None, &mut logits);
                    route(&logits, Some(&bias), config, &mut ids, &mut weights);
                }
                let floats = [&residual, &normed, &logits, &weights].map(|tensor| bits(tensor.as_f32()));
                (floats, ids.as_i32().to_vec())
            };
            assert!(run(true) == run(false), "{what}");
        }
    }
}

/// The sums of experts, the stream and its next norm; also where the shared expert is left to do, or there is none.
#[test]
fn a_norm_follows_experts() {
    for device in devices().into_iter().chain(rounding_devices()) {
        for (stored_as, t, h, shared_inner) in [
            (WeightType::BF16, 1, 67, Some(64)),
            (WeightType::Int4, 9, 96, Some(32)),
            (WeightType::BF16, 9, 70, Some(33)),
            (WeightType::Int8, 150, 70, Some(96)),
            (WeightType::CompactBf16, 301, 33, None),
            (WeightType::F32, 0, 33, None),
            (WeightType::F32, 0, 33, Some(32)),
        ] {
            let what = format!("{device:?} {stored_as} T {t} H {h} I {shared_inner:?}");
            let (e, k, i) = (3, 2, shared_inner.unwrap_or(1));
            let experts = Experts::random(&device, stored_as, [e, h, 35], 0.2, 4);
            let gate_up = &Matrix::random(&device, stored_as, 2 * i, h, 0.2, 5);
            let down = &Matrix::random(&device, stored_as, h, i, 0.2, 6);
            let [x, residual] = [7, 8].map(|seed| Tensor::random(&device, &[t, h], 1.0, seed));
            let weights = Tensor::random(&device, &[t, k], 1.0, 9);
            let weight = &Tensor::random(&device, &[h], 1.0, 10);
            let mut ids = Tensor::zeros(&device, DType::I32, &[t, k]);
            for (pair, id) in ids.as_i32_mut().iter_mut().enumerate() {
                *id = (pair * 7 % e) as i32;
            }
            let run = |at_once: bool| {
                let [mut x, mut residual] =
                    [&x, &residual].map(|tensor| Tensor::from_f32(&device, &[t, h], tensor.as_f32()));
                let mut scratch = MoeScratch::new(&device, t, [e, h, 35], k);
                let [mut both, mut inner, mut of_shared, mut out] =
                    [2 * i, i, h, h].map(|width| Tensor::zeros(&device, DType::F32, &[t, width]));
                let mut tokens = TokenRoom::new(&device, &[]);
                let (both, inner, tokens) = (&mut both, &mut inner, &mut tokens);
                let shared = SharedExpert { gate_up, down, gate: None, both, inner, out: &mut of_shared };
                let shared = shared_inner.map(|_| shared);
                if at_once {
                    let norm = NormFor { weight, eps: 1e-5, next: stored_as };
                    let then = AddNorm { residual: &mut residual, norm, tokens };
                    moe_and_norm(&mut x, &experts, [&ids, &weights], &mut scratch, shared, &mut out, then);
                } else {
                    let shared = shared.map(|shared| (shared, tokens));
                    moe_and_shared(&x, &experts, [&ids, &weights], &mut scratch, shared, &mut out);
                    add_rms_norm(&mut residual, &out, weight, 1e-5, &mut x);
                }
                [&residual, &x].map(|tensor| bits(tensor.as_f32()))
            };
            assert!(run(true) == run(false), "{what}");
        }
    }
}
