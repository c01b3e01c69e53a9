//! Choosing experts: against the f64 twin, ties, numbers that are none, and rows alone.

use crate::common::*;
use crate::device::{SEEDS, emulated};
use crate::mutants::{Run, assert_noticed};
use crate::naive;
use kernels::ops::*;
use kernels::*;

fn config(scoring: Scoring, [top_k, num_groups, top_groups]: [usize; 3], normalize: bool) -> RouterConfig {
    let group_score = match scoring {
        Scoring::Softmax => GroupScore::Max,
        Scoring::Sigmoid => GroupScore::SumOfTopTwo,
    };
    RouterConfig { scoring, top_k, num_groups, top_groups, group_score, normalize, scale: 2.446 }
}

fn configs() -> [(usize, RouterConfig); 6] {
    [
        (24, config(Scoring::Softmax, [5, 1, 1], false)),
        (24, config(Scoring::Softmax, [5, 8, 3], false)),
        (64, config(Scoring::Sigmoid, [6, 1, 1], true)),
        (24, config(Scoring::Sigmoid, [5, 4, 2], true)),
        (1, config(Scoring::Softmax, [1, 1, 1], true)),
        (385, config(Scoring::Sigmoid, [37, 35, 7], true)),
    ]
}

/// Ids and weights, one after the other.
fn bytes(
    device: &Device,
    logits: &Host,
    bias: Option<&Host>,
    config: &RouterConfig,
) -> Result<Vec<u8>, Error> {
    let t = logits.shape[0];
    let mut ids = Tensor::unwritten(device, DType::I32, &[t, config.top_k]);
    let mut weights = Tensor::unwritten(device, DType::F32, &[t, config.top_k]);
    let bias = bias.map(|bias| bias.tensor(device));
    route(&logits.tensor(device), bias.as_ref(), config, &mut ids, &mut weights);
    Ok([ids.read()?, weights.read()?].concat())
}

fn run(device: &Device, logits: &Host, bias: Option<&Host>, config: &RouterConfig) -> (Vec<i32>, Vec<f32>) {
    let bytes = bytes(device, logits, bias, config).expect("a result");
    let (ids, weights) = bytes.split_at(bytes.len() / 2);
    let ids = ids.as_chunks().0.iter().map(|b| i32::from_le_bytes(*b)).collect();
    (ids, weights.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
}

#[test]
fn routing() {
    let device = emulated(SEEDS[0]);
    for (e, config) in configs() {
        let t = 19;
        let numbers: Vec<f32> = values(1, t * e).iter().map(|v| 3.0 * v).collect();
        let logits = Host::new(DType::F32, &[t, e], &numbers);
        let bias = Host::random(DType::F32, &[e], 2);
        let bias = (config.scoring == Scoring::Sigmoid).then_some(&bias);
        let (ids, weights) = run(&device, &logits, bias, &config);
        let k = config.top_k;
        for (token, row) in logits.rows().iter().enumerate() {
            let (expected_ids, expected) = naive::route(row, bias.map(|bias| &bias.values[..]), &config);
            let found: Vec<usize> = ids[token * k..][..k].iter().map(|&id| id as usize).collect();
            assert_eq!(found, expected_ids, "{config:?} token {token}");
            assert_close(&weights[token * k..][..k], &expected, 1e-6, "weights");
        }
        // Alone, under another schedule.
        let last = Host::new(DType::F32, &[1, e], &numbers[(t - 1) * e..]);
        let alone = run(&emulated(SEEDS[1]), &last, bias, &config);
        assert_eq!((&alone.0[..], bits(&alone.1)), (&ids[(t - 1) * k..], bits(&weights[(t - 1) * k..])));
    }
}

#[test]
fn equal_scores_go_to_the_lower_expert() {
    let config = config(Scoring::Sigmoid, [3, 2, 1], true);
    let device = emulated(SEEDS[0]);
    let flat = Host::new(DType::F32, &[1, 80], &[1.0; 80]);
    assert_eq!(run(&device, &flat, None, &config).0, [0, 1, 2]);
    let mut numbers = [1.0; 80];
    numbers[77] = 2.0;
    numbers[44] = 2.0;
    assert_eq!(run(&device, &Host::new(DType::F32, &[1, 80], &numbers), None, &config).0, [44, 77, 40]);
}

/// Whatever the logits are, ids are those of experts: what follows reads by them.
#[test]
fn numbers_that_are_none_choose_an_expert() {
    let device = emulated(SEEDS[0]);
    for (_, config) in configs().into_iter().take(4) {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for all in [false, true] {
                let mut numbers = vec![if all { bad } else { 0.5 }; 3 * 24];
                numbers[30] = bad;
                let (ids, _) = run(&device, &Host::new(DType::F32, &[3, 24], &numbers), None, &config);
                assert!(ids.iter().all(|id| (0..24).contains(id)), "{config:?} {bad}: {ids:?}");
            }
        }
    }
}

#[test]
fn bugs_are_noticed() {
    let logits = Host::random(DType::F32, &[5, 66], 3);
    let bias = Host::random(DType::F32, &[66], 4);
    let [by_group, by_score] =
        [config(Scoring::Sigmoid, [7, 11, 4], true), config(Scoring::Softmax, [3, 1, 1], false)];
    let grouped = |device: &Device| bytes(device, &logits, Some(&bias), &by_group);
    let flat = |device: &Device| bytes(device, &logits, None, &by_score);
    let cases: [(&'static str, &'static str, Run); 8] = [
        (
            "worth[g] = s.sum_of_top_two ? first + second : first;\n    }\n    __syncwarp();",
            "worth[g] = s.sum_of_top_two ? first + second : first;\n    }",
            &grouped,
        ),
        ("        biased[e] = v;\n    }\n    __syncwarp();", "        biased[e] = v;\n    }", &grouped),
        (
            "biased[expert] = minus_infinity();\n        __syncwarp();",
            "biased[expert] = minus_infinity();",
            &flat,
        ),
        ("if (token >= s.tokens) return;", "if (token > s.tokens) return;", &flat),
        ("before >= s.top_groups", "before > s.top_groups", &grouped),
        ("        float v = scores[expert];", "        float v = biased[expert];", &grouped),
        ("max = warp_max(max);", "", &flat),
        (
            "for (int step = 16; step; step /= 2) {\n        float other",
            "for (int step = 8; step; step /= 2) {\n        float other",
            &flat,
        ),
    ];
    assert_noticed(&cases);
}
