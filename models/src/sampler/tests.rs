//! Exact answers for small rows, and chi-square for the distribution of what is drawn.

use super::draw::{by_weight, truncate};
use super::*;
use scheduler::{History, Sample, SamplingParams, TokenId};
use std::sync::Arc;

fn request(params: SamplingParams) -> Sample {
    Sample::new(Arc::new(params), 7, 0)
}

fn with_history(params: SamplingParams, prompt: &[TokenId], output: &[TokenId]) -> Sample {
    let tokens = [prompt, output].concat();
    let history = Some(History { tokens, prompt_len: prompt.len() });
    Sample { num_generated: output.len(), history, ..request(params) }
}

fn token(logits: &[f32], request: &Sample) -> TokenId {
    match sample(&mut logits.to_vec(), request.row(0), &mut Workspace::default()) {
        Sampled::Token(sampled) => sampled.token,
        failed => panic!("{failed:?}"),
    }
}

fn greedy() -> SamplingParams {
    SamplingParams { temperature: 0.0, ..Default::default() }
}

/// How often each token is drawn over many positions.
fn counts(logits: &[f32], params: SamplingParams, draws: usize) -> Vec<usize> {
    let mut counts = vec![0; logits.len()];
    let mut request = request(params);
    for position in 0..draws {
        request.position = position;
        counts[token(logits, &request) as usize] += 1;
    }
    counts
}

/// Pearson's statistic against expected probabilities; a token of probability 0 must never be drawn.
fn chi_square(counts: &[usize], probabilities: &[f64]) -> f64 {
    let draws: usize = counts.iter().sum();
    let mut statistic = 0.0;
    for (&count, &p) in counts.iter().zip(probabilities) {
        let expected = p * draws as f64;
        if p == 0.0 {
            assert_eq!(count, 0, "drawn though its probability is 0");
        } else {
            statistic += (count as f64 - expected).powi(2) / expected;
        }
    }
    statistic
}

fn softmax(logits: &[f32], temperature: f64) -> Vec<f64> {
    let weights: Vec<f64> = logits.iter().map(|&x| (f64::from(x) / temperature).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|w| w / sum).collect()
}

const LOGITS: [f32; 11] = [0.3, -1.2, 2.0, 0.0, 1.1, -3.0, 0.9, 2.0, -0.4, 0.25, 1.6];

#[test]
fn greedy_takes_the_largest_and_the_lower_id_of_equal_ones() {
    assert_eq!(token(&LOGITS, &request(greedy())), 2);
    assert_eq!(token(&[-5.0], &request(greedy())), 0);
    // Long rows are looked through in pieces.
    for (len, places, expected) in
        [(1300, vec![1299], 1299), (1300, vec![512, 1024], 512), (512, vec![511], 511), (513, vec![512], 512)]
    {
        let mut logits: Vec<f32> = (0..len).map(|i| -((i % 7) as f32) - 1.0).collect();
        places.iter().for_each(|&place: &usize| logits[place] = 3.0);
        assert_eq!(token(&logits, &request(greedy())), expected, "{len} logits");
    }
}

#[test]
fn draws_follow_the_distribution() {
    // 10 degrees of freedom: 35.6 is exceeded once in 10,000 times.
    for (temperature, seed) in [(1.0, 1), (0.5, 2), (2.0, 3)] {
        let params = SamplingParams { temperature, seed, ..Default::default() };
        let statistic =
            chi_square(&counts(&LOGITS, params, 20_011), &softmax(&LOGITS, f64::from(temperature)));
        assert!(statistic < 35.6, "{statistic} at temperature {temperature}");
    }
}

#[test]
fn truncated_draws_follow_the_renormalised_distribution() {
    let full = softmax(&LOGITS, 1.0);
    let renormalised = |kept: &[usize]| -> Vec<f64> {
        let sum: f64 = kept.iter().map(|&i| full[i]).sum();
        (0..full.len()).map(|i| if kept.contains(&i) { full[i] / sum } else { 0.0 }).collect()
    };
    let base = SamplingParams { seed: 5, ..Default::default() };
    let cases = [
        (SamplingParams { top_k: 3, ..base.clone() }, vec![2, 7, 10]),
        // 2 and 7 have 0.478 of the whole, with 10 it is 0.638.
        (SamplingParams { top_p: 0.6, ..base.clone() }, vec![2, 7, 10]),
        (SamplingParams { top_p: 0.47, ..base.clone() }, vec![2, 7]),
        (SamplingParams { top_p: 0.2, ..base.clone() }, vec![2]),
        // exp(1.1 - 2.0) = 0.41, exp(0.9 - 2.0) = 0.33.
        (SamplingParams { min_p: 0.4, ..base.clone() }, vec![2, 4, 7, 10]),
        (SamplingParams { min_p: 1.0, ..base.clone() }, vec![2, 7]),
        // top-p counts what top-k left: 2 and 7 have 0.75 of these three.
        (SamplingParams { top_k: 3, top_p: 0.74, ..base.clone() }, vec![2, 7]),
        (SamplingParams { top_k: 1, ..base.clone() }, vec![2]),
        (SamplingParams { top_k: 50, ..base }, (0..11).collect()),
    ];
    for (params, kept) in cases {
        let statistic = chi_square(&counts(&LOGITS, params.clone(), 8_009), &renormalised(&kept));
        assert!(statistic < 35.6, "{statistic} for {params:?}");
    }
}

/// What a screened head promises is enough: the largest logits with their places, and something smaller elsewhere.
#[test]
fn a_row_looks_at_its_largest_alone() {
    // Many that differ in their last bits, where weights are equal and logits are not; the kept ones are anywhere among them.
    let logits: Vec<f32> =
        (0..999).map(|i| 3.0f32.next_down() - (i * 7919 % 999 / 4) as f32 * 2.4e-7).collect();
    for (top_k, temperature, top_p, min_p) in [
        (0, 0.0, 1.0, 0.0),
        (1, 1.0, 1.0, 0.0),
        (5, 3.0, 1.0, 0.0),
        (20, 0.7, 0.9, 0.0),
        (64, 1e-6, 0.5, 0.2),
    ] {
        let params = SamplingParams { top_k, temperature, top_p, min_p, seed: 4, ..Default::default() };
        let mut sample = request(params);
        let tasks = [RowTask::Sample(sample.row(0))];
        let top = tops(&tasks).expect("a row that looks at its largest")[0];
        let mut sorted = logits.clone();
        sorted.sort_unstable_by(|a, b| b.total_cmp(a));
        let least = sorted[top - 1];
        let screened: Vec<f32> =
            logits.iter().map(|&x| if x >= least { x } else { least.next_down() }).collect();
        for position in 0..200 {
            sample.position = position;
            assert_eq!(token(&screened, &sample), token(&logits, &sample), "{top_k} at {temperature}");
        }
    }
}

#[test]
fn a_wide_nucleus_is_found_beyond_the_sorted_head() {
    // 3,000 nearly equal tokens: half of the mass needs about 1,500 of them.
    let logits: Vec<f32> = (0..3001).map(|i| ((i * 7919) % 3001) as f32 * 1e-5).collect();
    let weights: Vec<f32> = logits.iter().map(|x| x.exp()).collect();
    let mut candidates: Vec<TokenId> = (0..3001).rev().collect();
    truncate(&weights, 0.5, &mut candidates);
    let mut expected: Vec<TokenId> = (0..3001).collect();
    expected.sort_by(by_weight(&weights));
    let total: f64 = weights.iter().map(|&w| f64::from(w)).sum();
    let mut sum = 0.0;
    let len = expected.iter().position(|&i| {
        sum += f64::from(weights[i as usize]);
        sum >= 0.5 * total
    });
    assert_eq!(candidates, expected[..=len.unwrap()]);
}

#[test]
fn the_draw_depends_on_seed_and_position_only() {
    let logits: Vec<f32> = (0..97).map(|i| (i as f32 * 0.37).sin()).collect();
    let at = |seed, position| {
        let params = SamplingParams { seed, ..Default::default() };
        token(&logits, &Sample { position, ..request(params) })
    };
    let sequence: Vec<TokenId> = (0..50).map(|position| at(3, position)).collect();
    assert_eq!(sequence, (0..50).map(|position| at(3, position)).collect::<Vec<_>>());
    assert_ne!(sequence, (0..50).map(|position| at(4, position)).collect::<Vec<_>>());
    assert!(sequence.windows(2).any(|pair| pair[0] != pair[1]));
}

#[test]
fn penalties_follow_vllm() {
    let logits = [1.0, 0.9, -0.1, 0.0];
    // Repetition counts prompt and output, divides what is positive and multiplies what is negative.
    let repetition = SamplingParams { repetition_penalty: 2.0, ..greedy() };
    assert_eq!(token(&logits, &with_history(repetition.clone(), &[0], &[])), 1);
    assert_eq!(token(&logits, &with_history(repetition.clone(), &[0, 0], &[1])), 0);
    assert_eq!(token(&[-1.0, -1.5], &with_history(repetition, &[0], &[])), 1);
    // Frequency and presence count the output alone.
    let presence = SamplingParams { presence_penalty: 0.2, ..greedy() };
    assert_eq!(token(&logits, &with_history(presence.clone(), &[0, 0], &[])), 0);
    assert_eq!(token(&logits, &with_history(presence, &[], &[0])), 1);
    let frequency = SamplingParams { frequency_penalty: 0.06, ..greedy() };
    assert_eq!(token(&logits, &with_history(frequency.clone(), &[0, 0, 0], &[0])), 0);
    assert_eq!(token(&logits, &with_history(frequency, &[], &[0, 3, 0])), 1);
    let reward = SamplingParams { frequency_penalty: -0.5, ..greedy() };
    assert_eq!(token(&logits, &with_history(reward, &[], &[3, 3, 3])), 3);
}

#[test]
fn bias_and_the_mask_of_stop_tokens() {
    let bias = SamplingParams { logit_bias: vec![(5, 100.0), (9, -100.0)], ..greedy() };
    assert_eq!(token(&LOGITS, &request(bias)), 5);
    let masked = SamplingParams { min_tokens: 2, max_tokens: 4, stop_token_ids: vec![2], ..greedy() };
    let after = |num_generated| Sample { num_generated, ..request(masked.clone()) };
    assert_eq!(token(&LOGITS, &after(0)), 7);
    assert_eq!(token(&LOGITS, &after(1)), 7);
    assert_eq!(token(&LOGITS, &after(2)), 2);
}

#[test]
fn a_row_that_cannot_be_sampled_fails_alone() {
    let run = |logits: &[f32], params| {
        sample(&mut logits.to_vec(), request(params).row(0), &mut Workspace::default())
    };
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for params in [greedy(), SamplingParams::default()] {
            assert_eq!(run(&[0.0, bad, 1.0], params), Sampled::Failed(Failure::NonFiniteLogits));
        }
    }
    for temperature in [0.0, 1.0] {
        let params =
            SamplingParams { min_tokens: 1, stop_token_ids: vec![0, 1], temperature, ..Default::default() };
        assert_eq!(run(&[0.0, 1.0], params), Sampled::Failed(Failure::NothingToSample));
    }
}

#[test]
fn extreme_parameters_still_choose_a_token() {
    let tiny = SamplingParams { temperature: f32::MIN_POSITIVE, ..Default::default() };
    assert_eq!(token(&[0.0, 1e-3, -1.0], &request(tiny)), 1);
    let overflow = SamplingParams { repetition_penalty: f32::MIN_POSITIVE, ..Default::default() };
    assert_eq!(token(&[3e38, 8.0, -1.0], &with_history(overflow, &[0], &[])), 0);
    let hot = SamplingParams { temperature: 100.0, top_p: 1e-6, ..Default::default() };
    assert_eq!(token(&LOGITS, &request(hot)), 2);
}

#[test]
fn logprobs_are_of_the_models_own_distribution() {
    let params = SamplingParams {
        logprobs: Some(3),
        logit_bias: vec![(5, 50.0)],
        temperature: 0.3,
        seed: 11,
        ..Default::default()
    };
    let Sampled::Token(sampled) =
        sample(&mut LOGITS.to_vec(), request(params).row(0), &mut Workspace::default())
    else {
        panic!("failed");
    };
    let expected: Vec<f64> = softmax(&LOGITS, 1.0).iter().map(|p| p.ln()).collect();
    assert_eq!(sampled.token, 5);
    assert!((f64::from(sampled.logprob.unwrap()) - expected[5]).abs() < 1e-6);
    let tokens: Vec<TokenId> = sampled.top.iter().map(|&(token, _)| token).collect();
    assert_eq!(tokens, [2, 7, 10]);
    for &(token, logprob) in &sampled.top {
        assert!((f64::from(logprob) - expected[token as usize]).abs() < 1e-6);
    }
}

/// Rows on several threads give what each gives by itself.
#[test]
fn rows_are_shared_out_between_threads() {
    let row = |seed: u64| (0..53).map(move |i| ((i * seed) as f32 * 0.71).sin() * 3.0);
    let requests: Vec<Sample> = (0..37)
        .map(|seed| {
            let params = SamplingParams { seed, top_p: 0.8, logprobs: Some(2), ..Default::default() };
            request(SamplingParams { temperature: (seed % 3) as f32, ..params })
        })
        .collect();
    let alone: Vec<Sampled> = (0..)
        .zip(&requests)
        .map(|(seed, request)| {
            sample(&mut row(seed).collect::<Vec<_>>(), request.row(0), &mut Workspace::default())
        })
        .collect();
    for threads in [1, 3] {
        let device = Device::cpu(Some(threads));
        let values: Vec<f32> = (0..37).flat_map(row).collect();
        let mut logits = Tensor::from_f32(&device, &[37, 53], &values);
        // Every other row is scored instead: neither way minds the other.
        let tasks: Vec<RowTask> = (0..)
            .zip(&requests)
            .map(|(row, request)| match row % 2 {
                0 => RowTask::Sample(request.row(0)),
                _ => RowTask::Score { target: row % 53, top: 4 },
            })
            .collect();
        let results = Sampler::new(&device, 64, 53).unwrap().run(&device, &mut logits, &tasks).unwrap();
        for (seed, (result, alone)) in (0..).zip(results.into_iter().zip(&alone)) {
            match result {
                RowResult::Sampled(sampled) => assert_eq!(sampled, *alone),
                RowResult::Scored(scored) => {
                    let logits: Vec<f32> = row(seed).collect();
                    assert_eq!(scored, score(&logits, seed as u32 % 53, 4, &mut Workspace::default()));
                }
            }
        }
    }
}

#[test]
fn reported_alternatives_are_as_many_as_asked_for() {
    let run = |logprobs| {
        let params = SamplingParams { logprobs, ..greedy() };
        match sample(&mut LOGITS.to_vec(), request(params).row(0), &mut Workspace::default()) {
            Sampled::Token(token) => (token.logprob.is_some(), token.top.len()),
            failed => panic!("{failed:?}"),
        }
    };
    assert_eq!(run(None), (false, 0));
    assert_eq!(run(Some(0)), (true, 0));
    assert_eq!(run(Some(5)), (true, 5));
    assert_eq!(run(Some(20)), (true, 11));
}

#[derive(Debug)]
struct Mask(Option<Vec<u32>>);

impl scheduler::TokenMask for Mask {
    fn allowed(&self) -> Option<&[u32]> {
        self.0.as_deref()
    }
}

#[test]
fn a_mask_leaves_only_its_tokens() {
    let logits: Vec<f32> = (0..70).map(|i| i as f32).collect();
    let all = || vec![u32::MAX; 3];
    for (mask, expected) in [
        (all(), Some(69)),
        (vec![u32::MAX; 2], Some(63)),
        (vec![u32::MAX, 0, 1], Some(64)),
        (vec![0b1010, 0, 0], Some(3)),
        (vec![1], Some(0)),
        (vec![0; 3], None),
        (vec![], None),
    ] {
        for temperature in [0.0, 1e-3] {
            let params = SamplingParams { temperature, ..Default::default() };
            let sample_request = Sample { mask: Some(Arc::new(Mask(Some(mask.clone())))), ..request(params) };
            let sampled = sample(&mut logits.clone(), sample_request.row(0), &mut Workspace::default());
            match expected {
                Some(expected) => {
                    assert!(matches!(&sampled, Sampled::Token(t) if t.token == expected), "{sampled:?}")
                }
                None => assert_eq!(sampled, Sampled::Failed(Failure::NothingToSample)),
            }
        }
    }
    let failed = Sample { mask: Some(Arc::new(Mask(None))), ..request(SamplingParams::default()) };
    let sampled = sample(&mut logits.clone(), failed.row(0), &mut Workspace::default());
    assert_eq!(sampled, Sampled::Failed(Failure::Constraint));
}

#[test]
fn a_deferred_row_is_only_looked_at() {
    let mut work = Workspace::default();
    let result = RowTask::Defer.run(&mut [0.5, 1.0], &mut work);
    assert_eq!(result, RowResult::Sampled(Sampled::Deferred));
    let result = RowTask::Defer.run(&mut [0.5, f32::NAN], &mut work);
    assert_eq!(result, RowResult::Sampled(Sampled::Failed(Failure::NonFiniteLogits)));
}
