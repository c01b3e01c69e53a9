//! Steps that are begun while the one before runs, on a GPU's code: tokens, log-probabilities and ends are those without, bit for bit, with
//! stop tokens, aborts, preemption, pictures, graphs, masks and penalties, which need tokens that are drawn last, and guesses and prompts that
//! are told of beside them.

use crate::common::late::Late;
use crate::common::{Picture, load, on_gpu, picture, put_picture};
use kernels::Device;
use kernels::cuda::error::CudaError;
use models::{DTypeChoice, DeviceRunner, LoadOptions, Loaded};
use scheduler::{
    Engine, Event, FinishReason, NgramConfig, PromptOutput, SamplingParams, SchedulerConfig, Sequence,
    SequenceId,
};
use std::collections::BTreeMap;
use std::sync::Arc;

#[derive(Clone)]
struct Request {
    len: usize,
    picture_at: Option<usize>,
    params: SamplingParams,
    /// Its masks are late up to so many times.
    held: Option<usize>,
    speculates: bool,
    is_told: bool,
}

/// All that an answer consists of; numbers as bits.
#[derive(Debug, Default, PartialEq, Eq, Clone)]
struct Answer {
    tokens: Vec<u32>,
    logprobs: Vec<u32>,
    top: Vec<Vec<(u32, u32)>>,
    prompt: Vec<u32>,
    reason: Option<FinishReason>,
}

#[derive(Default, Debug)]
struct Counts {
    steps: usize,
    ahead: usize,
    dropped: usize,
    preempted: usize,
    deferred: usize,
    accepted: usize,
}

struct World {
    engine: Engine<DeviceRunner>,
    vocab_size: usize,
    picture: Option<Picture>,
    answers: BTreeMap<u64, Answer>,
    counts: Counts,
}

impl World {
    fn new(family: &str, options: &LoadOptions, config: SchedulerConfig) -> Self {
        let Loaded { runner, info, image_processor, scheduler_config, .. } = load(family, options);
        assert!(scheduler_config.async_scheduling, "as it is loaded");
        let picture = picture(family, &info, image_processor);
        let engine = Engine::new(config, runner);
        let (answers, counts) = (BTreeMap::new(), Counts::default());
        Self { engine, vocab_size: info.vocab_size, picture, answers, counts }
    }

    fn add(&mut self, id: usize, request: &Request) {
        let len = request.len;
        let mut prompt: Vec<u32> = (0..len).map(|i| ((i * 37 + 11 * len) % 90) as u32).collect();
        let spans = put_picture(&mut prompt, request.picture_at, &self.picture);
        let (id, params) = (SequenceId(id as u64), Arc::new(request.params.clone()));
        let mut sequence = Sequence::new(id, prompt, spans, params, self.vocab_size).unwrap();
        sequence.constraint = request.held.map(|most| Box::new(Late::new(id.0, most)) as _);
        if request.speculates {
            let config =
                NgramConfig { num_speculative_tokens: 3, prompt_lookup_max: 2, prompt_lookup_min: 1 };
            sequence = sequence.speculating(config).unwrap();
        }
        if request.is_told {
            sequence = sequence.wanting(PromptOutput::Logprobs { first: 1, top: 1 }).unwrap();
        }
        self.engine.add(sequence).unwrap();
    }

    fn step(&mut self) {
        let step = self.engine.step().unwrap();
        self.engine.scheduler().check();
        self.counts.steps += 1;
        self.counts.ahead += usize::from(step.stats.is_ahead);
        self.counts.dropped += step.stats.dropped_tokens;
        self.counts.preempted += step.stats.preempted.len();
        self.counts.deferred += step.stats.deferred_tokens;
        self.counts.accepted += step.stats.num_accepted();
        for event in step.events {
            let answer = self.answers.entry(event.id().0).or_default();
            match event {
                Event::Started { .. } | Event::Pooled { .. } => {}
                Event::PromptLogprobs { logprobs, .. } => {
                    answer.prompt.extend(logprobs.iter().map(|logprob| logprob.logprob.to_bits()));
                }
                Event::Token { token, .. } => {
                    answer.tokens.push(token.token);
                    answer.logprobs.extend(token.logprob.map(f32::to_bits));
                    answer.top.push(token.top.iter().map(|&(token, x)| (token, x.to_bits())).collect());
                }
                Event::Finished { reason, .. } => answer.reason = Some(reason),
            }
        }
    }

    /// Some at once and the others one by one, a step apart; `abort` hangs up after so many steps.
    fn run(&mut self, requests: &[Request], abort: Option<(u64, usize)>) -> Vec<Answer> {
        let num_at_once = requests.len().div_ceil(2);
        for (id, request) in requests.iter().enumerate() {
            self.add(id, request);
            if id >= num_at_once {
                self.step();
            }
        }
        let mut num_steps = 0;
        while !self.engine.is_idle() {
            if let Some((id, _)) = abort.filter(|&(_, at)| at == num_steps) {
                assert!(self.engine.abort(SequenceId(id)));
            }
            self.step();
            num_steps += 1;
        }
        std::mem::take(&mut self.answers).into_values().collect()
    }
}

fn options() -> LoadOptions {
    LoadOptions { dtype: DTypeChoice::BF16, ..on_gpu() }
}

fn config(family: &str, options: &LoadOptions) -> SchedulerConfig {
    load(family, options).scheduler_config
}

fn request(len: usize, params: SamplingParams) -> Request {
    Request { len, picture_at: None, params, held: None, speculates: false, is_told: false }
}

fn requests() -> Vec<Request> {
    let base = SamplingParams { max_tokens: 9, logprobs: Some(2), ..SamplingParams::default() };
    let greedy = SamplingParams { temperature: 0.0, ..base.clone() };
    let drawn = |seed| SamplingParams { temperature: 0.9, top_p: 0.9, seed, ..base.clone() };
    vec![
        Request { picture_at: Some(5), ..request(11, greedy) },
        request(7, SamplingParams { max_tokens: 12, min_tokens: 2, ..drawn(7) }),
        request(13, SamplingParams { logprobs: None, max_tokens: 3, ..drawn(8) }),
        Request { picture_at: Some(3), ..request(6, drawn(9)) },
    ]
}

/// All of whom need the last token before the next one is drawn: for penalties, for masks, for both.
fn held(requests: Vec<Request>) -> Vec<Request> {
    let hold = |(i, request): (usize, Request)| {
        let (held, penalty) = [(Some(0), 0.0), (None, 0.5), (Some(0), 0.3)][i % 3];
        let params =
            SamplingParams { presence_penalty: penalty, repetition_penalty: 1.0 + penalty, ..request.params };
        Request { held, params, ..request }
    };
    requests.into_iter().enumerate().map(hold).collect()
}

/// Makes the third token of the second request one that ends it.
fn with_stop_token(requests: &mut [Request], expected: &[Answer]) {
    requests[1].params.stop_token_ids = vec![expected[1].tokens[3]];
}

fn steps_ahead_change_nothing(family: &str, options: &LoadOptions, mut requests: Vec<Request>) {
    let config = config(family, options);
    let one_by_one = SchedulerConfig { async_scheduling: false, ..config };
    let mut plain = World::new(family, options, one_by_one);
    let all = plain.run(&requests, None);
    assert!(
        all.iter().zip(&requests).all(|(answer, request)| answer.tokens.len() == request.params.max_tokens)
    );
    with_stop_token(&mut requests, &all);
    // The cache is that of the run before: hits are compared too.
    let expected = plain.run(&requests, None);
    assert_eq!(expected[1].reason, Some(FinishReason::Stop));
    assert_eq!((plain.counts.ahead, plain.counts.dropped), (0, 0));

    let mut world = World::new(family, options, config);
    assert_eq!(world.run(&requests, None), expected);
    let Counts { steps, ahead, dropped, .. } = world.counts;
    assert!(ahead + 3 >= steps && dropped == 1, "{:?}", world.counts);
    assert_eq!(world.run(&requests, None), expected, "on prefix hits");
    assert!(world.engine.runner().num_replays() > 0, "no graph was replayed");

    // Prompts in pieces, and too little memory for all.
    let params =
        |seed| SamplingParams { seed, max_tokens: 3 * config.block_size - 4, ..requests[3].params.clone() };
    let growing: Vec<Request> =
        (0..3).map(|seed| Request { held: requests[2].held, ..request(4, params(seed)) }).collect();
    let grown = plain.run(&growing, None);
    let small = SchedulerConfig { max_batched_tokens: 6, max_running: 3, num_blocks: 6, ..config };
    let mut world = World::new(family, &LoadOptions { graphs: false, ..options.clone() }, small);
    assert_eq!(world.run(&growing, None), grown, "in small steps");
    assert!(world.counts.ahead > 4 && world.counts.preempted > 0, "{:?}", world.counts);

    // Somebody hangs up while two steps run.
    let mut world = World::new(family, options, config);
    let mut answers = world.run(&requests, Some((1, 1)));
    assert!(answers[1].tokens.len() < expected[1].tokens.len() && answers[1].reason.is_none());
    assert!(expected[1].tokens.starts_with(&answers[1].tokens));
    answers[1] = expected[1].clone();
    assert_eq!(answers, expected, "beside one that has gone");
    assert!(world.counts.ahead > 4 && world.counts.dropped == 1, "{:?}", world.counts);
}

#[test]
fn pictures_latents_and_experts() {
    steps_ahead_change_nothing("kimi_vl", &options(), requests());
}

#[test]
fn grouped_queries() {
    steps_ahead_change_nothing("llama31", &options(), requests());
}

#[test]
fn masks_and_penalties() {
    steps_ahead_change_nothing("kimi_vl", &options(), held(requests()));
}

/// Rows whose masks are not there when the logits are have their tokens later, and the others theirs, whether the step was begun ahead or not.
#[test]
fn masks_that_are_late() {
    let config = config("llama31", &options());
    let run = |most, async_scheduling| {
        let mut requests = requests();
        requests[1].held = Some(most);
        requests[3] = Request { held: Some(most), ..held(requests.clone()).swap_remove(2) };
        let mut world = World::new("llama31", &options(), SchedulerConfig { async_scheduling, ..config });
        (world.run(&requests, None), world.counts)
    };
    let (expected, Counts { deferred, .. }) = run(0, false);
    assert_eq!(deferred, 0);
    for async_scheduling in [false, true] {
        let (answers, counts) = run(9, async_scheduling);
        assert_eq!(answers, expected);
        assert!(counts.deferred > 3 && (counts.ahead > 5) == async_scheduling, "{counts:?}");
    }
}

/// Prompts attend in passes over a workspace that the next step fills again: rows of prompts from position 8 on, of pictures on both sides of it, and
/// rows of both forms in a step, in pieces and after a preemption.
#[test]
fn latents_that_are_expanded() {
    let expanded = |from| LoadOptions { mla_expand_from: Some(from), ..options() };
    steps_ahead_change_nothing("kimi_vl", &expanded(8), requests());
    let world = |options: &LoadOptions| {
        let config = config("kimi_vl", options);
        World::new("kimi_vl", options, config).run(&requests(), None)
    };
    assert_ne!(world(&expanded(8)), world(&options()), "rows that are not rounded otherwise");
}

/// Who guesses from the last token, or tells of its prompt, holds up the steps that it is in, and no longer.
#[test]
fn beside_guesses_and_prompts_that_are_told_of() {
    let config = config("llama31", &options());
    let mut requests = requests();
    requests[0].params.max_tokens = 20;
    // Of two tokens one, so that guesses are right.
    let params = SamplingParams { logit_bias: vec![(3, 100.0), (5, 100.0)], ..requests[3].params.clone() };
    requests.push(Request { speculates: true, params: params.clone(), ..request(9, params) });
    let told = Request { is_told: true, ..request(17, requests[1].params.clone()) };
    requests.push(Request { params: SamplingParams { max_tokens: 4, ..told.params.clone() }, ..told });
    let run = |async_scheduling| {
        let mut world = World::new("llama31", &options(), SchedulerConfig { async_scheduling, ..config });
        (world.run(&requests, None), world.counts)
    };
    let (expected, _) = run(false);
    let (answers, counts) = run(true);
    assert_eq!(answers, expected);
    assert_eq!(expected[5].prompt.len(), 16);
    assert!(counts.accepted > 0 && counts.ahead > 3 && counts.ahead < counts.steps - 4, "{counts:?}");
}

#[test]
fn a_failure_ends_both_steps() {
    let config = config("llama31", &options());
    let mut world = World::new("llama31", &options(), config);
    world.add(0, &requests()[1]);
    world.engine.begin();
    assert!(world.engine.begin_ahead());
    let Device::Cuda(cuda) = world.engine.runner().device().clone() else { panic!("not a GPU") };
    cuda.fail(CudaError::Lost { call: "launch".to_string(), reason: "planted".to_string() });
    for _ in 0..2 {
        assert!(world.engine.has_begun());
        assert!(world.engine.finish().is_err());
    }
}
