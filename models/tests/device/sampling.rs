//! A GPU's sampler beside the processor's.

use crate::common::bare_gpu;
use kernels::{Device, Tensor};
use models::sampler::{RowResult, RowTask, Sampler};
use scheduler::{History, Sample, Sampled, SamplingParams, TokenMask};
use std::sync::Arc;

const VOCAB: usize = 131;

#[derive(Debug)]
struct Mask(Option<Vec<u32>>);

impl TokenMask for Mask {
    fn allowed(&self) -> Option<&[u32]> {
        self.0.as_deref()
    }
}

fn logits(seed: u32) -> Vec<f32> {
    let value = |i: u32| (i ^ seed).wrapping_mul(2_654_435_761) >> 8;
    (0..VOCAB as u32).map(|i| value(i) as f32 / (1 << 22) as f32 - 2.0).collect()
}

fn sample(params: SamplingParams, mask: Option<Mask>) -> Sample {
    let tokens = vec![3, 7, 7, 90, 3, 12, 12, 12];
    Sample {
        history: Some(History { tokens, prompt_len: 5 }),
        mask: mask.map(|mask| Arc::new(mask) as Arc<dyn TokenMask>),
        ..Sample::new(Arc::new(params), 8, 3)
    }
}

/// One of each way to sample, each with a row of its own.
fn samples() -> Vec<Sample> {
    let base = SamplingParams { logprobs: Some(4), seed: 9, ..SamplingParams::default() };
    let greedy = SamplingParams { temperature: 0.0, ..base.clone() };
    let some = || Some(Mask(Some(vec![0x0f0f_0000, 0, 0x8000_0001])));
    let penalised = SamplingParams {
        repetition_penalty: 1.3,
        frequency_penalty: 0.4,
        presence_penalty: -0.2,
        ..base.clone()
    };
    vec![
        sample(greedy.clone(), None),
        sample(SamplingParams { logprobs: None, ..base.clone() }, None),
        sample(SamplingParams { top_k: 5, temperature: 1.7, ..base.clone() }, None),
        sample(SamplingParams { top_p: 0.7, min_p: 0.02, ..base.clone() }, None),
        sample(penalised, None),
        sample(SamplingParams { logit_bias: vec![(77, 9.0), (3, -4.0)], ..greedy.clone() }, None),
        sample(SamplingParams { min_tokens: 9, stop_token_ids: vec![1, 2, 30], ..greedy.clone() }, None),
        sample(SamplingParams { temperature: 0.6, ..base.clone() }, some()),
        // Nothing is left, there is no mask, and logits that are none.
        sample(greedy.clone(), Some(Mask(Some(vec![0])))),
        sample(greedy.clone(), Some(Mask(None))),
        sample(greedy, None),
    ]
}

fn run(device: &Device, samples: &[Sample]) -> Vec<RowResult> {
    let mut tasks: Vec<RowTask> = samples.iter().map(|sample| RowTask::Sample(sample.row(0))).collect();
    tasks.extend([RowTask::Score { target: 44, top: 3 }, RowTask::Score { target: 0, top: 0 }]);
    tasks.extend([RowTask::Defer, RowTask::Defer]);
    let mut values: Vec<f32> = (0..tasks.len() as u32).flat_map(|row| logits(row * 7919)).collect();
    for row in [samples.len() - 1, tasks.len() - 1] {
        values[row * VOCAB + 5] = f32::NAN;
    }
    let mut logits = Tensor::from_f32(device, &[tasks.len(), VOCAB], &values);
    Sampler::new(device, tasks.len(), VOCAB).unwrap().run(device, &mut logits, &tasks).unwrap()
}

fn assert_close(a: &[(u32, f32)], b: &[(u32, f32)]) {
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().zip(b) {
        assert_eq!(a.0, b.0);
        assert!((a.1 - b.1).abs() < 1e-5, "{a:?} is not {b:?}");
    }
}

#[test]
fn a_gpu_samples_what_the_processor_samples() {
    let samples = samples();
    let [on_gpu, on_cpu] = [bare_gpu(), Device::cpu(Some(2))].map(|device| run(&device, &samples));
    for (row, results) in on_gpu.iter().zip(&on_cpu).enumerate() {
        match results {
            (RowResult::Sampled(Sampled::Token(gpu)), RowResult::Sampled(Sampled::Token(cpu))) => {
                assert_eq!(gpu.token, cpu.token, "row {row}");
                let chosen = |x: Option<f32>| x.map(|x| (0, x)).into_iter().collect::<Vec<_>>();
                assert_close(&chosen(gpu.logprob), &chosen(cpu.logprob));
                assert_close(&gpu.top, &cpu.top);
            }
            (RowResult::Scored(Ok(gpu)), RowResult::Scored(Ok(cpu))) => {
                assert_eq!((gpu.token, gpu.rank), (cpu.token, cpu.rank), "row {row}");
                assert_close(&[(0, gpu.logprob)], &[(0, cpu.logprob)]);
                assert_close(&gpu.top, &cpu.top);
            }
            // Failures, and rows that were deferred.
            (gpu, cpu) => assert_eq!(gpu, cpu, "row {row}"),
        }
    }
}
