//! Answers with guessed tokens are those without, bit for bit, with their log-probabilities and ends: for every family, greedy and
//! drawn, with penalties, together, on prefix hits, after preemption, in small steps, and on a GPU's code.

#[macro_use]
mod common;

use common::{Picture, load, on_gpu, options, picture, put_picture};
use models::{DTypeChoice, DeviceRunner, LoadOptions, Loaded, QuantizationChoice};
use scheduler::{
    DraftShare, Engine, Event, FinishReason, NgramConfig, SamplingParams, SchedulerConfig, Sequence,
    SequenceId,
};
use std::collections::BTreeMap;
use std::sync::Arc;

/// One token alone is looked up, so that many guesses are wrong.
const EAGER: NgramConfig =
    NgramConfig { num_speculative_tokens: 5, prompt_lookup_max: 3, prompt_lookup_min: 1 };

#[derive(Clone)]
struct Request {
    prompt: Vec<u32>,
    /// Where the fixture's picture goes, if there is one.
    picture_at: Option<usize>,
    params: SamplingParams,
}

/// All that an answer consists of; log-probabilities as bits.
#[derive(Debug, Default, PartialEq, Eq, Clone)]
struct Answer {
    tokens: Vec<u32>,
    logprobs: Vec<u32>,
    top: Vec<Vec<(u32, u32)>>,
    reason: Option<FinishReason>,
}

struct World {
    engine: Engine<DeviceRunner>,
    vocab_size: usize,
    picture: Option<Picture>,
    answers: BTreeMap<u64, Answer>,
    drafts: Vec<DraftShare>,
    num_steps: usize,
    num_cached: usize,
    num_preemptions: usize,
}

impl World {
    fn new(family: &str, options: &LoadOptions, change: impl FnOnce(&mut SchedulerConfig)) -> Self {
        let Loaded { runner, info, image_processor, mut scheduler_config, .. } = load(family, options);
        change(&mut scheduler_config);
        scheduler_config.check().unwrap();
        let picture = picture(family, &info, image_processor);
        Self {
            engine: Engine::new(scheduler_config, runner),
            vocab_size: info.vocab_size,
            picture,
            answers: BTreeMap::new(),
            drafts: Vec::new(),
            num_steps: 0,
            num_cached: 0,
            num_preemptions: 0,
        }
    }

    fn add(&mut self, id: usize, request: &Request, speculation: Option<NgramConfig>) {
        let mut prompt = request.prompt.clone();
        let spans = put_picture(&mut prompt, request.picture_at, &self.picture);
        let (id, params) = (SequenceId(id as u64), Arc::new(request.params.clone()));
        let mut sequence = Sequence::new(id, prompt, spans, params, self.vocab_size).unwrap();
        if let Some(config) = speculation {
            sequence = sequence.speculating(config).unwrap();
        }
        self.engine.add(sequence).unwrap();
    }

    fn finish(&mut self) {
        while !self.engine.is_idle() {
            let step = self.engine.step().unwrap();
            self.num_steps += 1;
            self.drafts.extend(&step.stats.drafts);
            for event in step.events {
                let answer = self.answers.entry(event.id().0).or_default();
                match event {
                    Event::Started { cached_tokens, .. } => self.num_cached += cached_tokens,
                    Event::Token { token, .. } => {
                        answer.tokens.push(token.token);
                        answer.logprobs.extend(token.logprob.map(f32::to_bits));
                        answer.top.push(token.top.iter().map(|&(token, x)| (token, x.to_bits())).collect());
                    }
                    Event::PromptLogprobs { .. } | Event::Pooled { .. } => panic!("nobody asked for it"),
                    Event::Finished { reason, preemptions, .. } => {
                        answer.reason = Some(reason);
                        self.num_preemptions += preemptions;
                    }
                }
            }
        }
    }

    /// One after another.
    fn each(&mut self, requests: &[Request], speculation: Option<NgramConfig>) -> Vec<Answer> {
        for (id, request) in requests.iter().enumerate() {
            self.add(id, request, speculation);
            self.finish();
        }
        self.take_answers()
    }

    fn together(&mut self, requests: &[Request], speculation: Option<NgramConfig>) -> Vec<Answer> {
        for (id, request) in requests.iter().enumerate() {
            self.add(id, request, speculation);
        }
        self.finish();
        self.take_answers()
    }

    fn take_answers(&mut self) -> Vec<Answer> {
        std::mem::take(&mut self.answers).into_values().collect()
    }

    fn num_accepted(&self) -> usize {
        self.drafts.iter().map(|draft| draft.num_accepted).sum()
    }

    fn num_wrong(&self) -> usize {
        self.drafts.iter().filter(|draft| draft.num_accepted < draft.num_drafted).count()
    }
}

/// Answers of few different tokens, of which many guesses are right and many are not; the first is what the model likes best.
fn requests(max_tokens: usize) -> Vec<Request> {
    let prompt = |len: usize| (0..len).map(|i| ((i * 37 + 11 * len) % 90) as u32).collect();
    let request = |len: usize, picture_at, params| Request { prompt: prompt(len), picture_at, params };
    let base = SamplingParams { max_tokens, logprobs: Some(3), ..SamplingParams::default() };
    let few = |tokens: &[u32]| tokens.iter().map(|&token| (token, 100.0)).collect();
    let drawn = SamplingParams { temperature: 0.9, seed: 77, logit_bias: few(&[3, 5]), ..base.clone() };
    let penalised = SamplingParams {
        temperature: 1.1,
        seed: 5,
        top_p: 0.9,
        top_k: 40,
        repetition_penalty: 1.2,
        frequency_penalty: 0.3,
        presence_penalty: 0.1,
        logit_bias: few(&[3, 5, 8]),
        ..base.clone()
    };
    let stopped = |seed| SamplingParams {
        seed,
        min_tokens: max_tokens / 3,
        logit_bias: vec![(3, 100.0), (5, 100.0), (8, 98.5)],
        stop_token_ids: vec![8],
        logprobs: None,
        ..base.clone()
    };
    let mut requests = vec![
        request(11, Some(5), SamplingParams { temperature: 0.0, ..base.clone() }),
        request(23, None, drawn.clone()),
        request(17, Some(9), penalised),
        request(23, None, SamplingParams { max_tokens: 3, ..drawn }),
    ];
    requests.extend((0..4).map(|seed| request(19, None, stopped(seed))));
    requests
}

fn check(what: &str, answers: &[Answer], expected: &[Answer]) {
    assert_eq!(answers.len(), expected.len(), "{what}");
    for (index, (answer, expected)) in answers.iter().zip(expected).enumerate() {
        assert_eq!(answer, expected, "request {index} {what}");
    }
}

fn drafts_change_nothing(family: &str, quantization: QuantizationChoice) {
    let options = LoadOptions { dtype: DTypeChoice::Auto, quantization, ..options() };
    let requests = requests(24);
    let uncached = |config: &mut SchedulerConfig| config.enable_prefix_caching = false;
    let mut without = World::new(family, &options, uncached);
    let expected = without.each(&requests, None);
    assert!(without.drafts.is_empty());

    let mut world = World::new(family, &options, uncached);
    check("by itself", &world.each(&requests, Some(EAGER)), &expected);
    let (accepted, wrong) = (world.num_accepted(), world.num_wrong());
    assert!(accepted > 4 && wrong > 4, "{accepted} right, {wrong} drafts with something wrong");
    assert!(world.num_steps + accepted == without.num_steps, "each guess that was right saves a step");

    let mut world = World::new(family, &LoadOptions { threads: Some(3), ..options.clone() }, |_| {});
    check("together", &world.together(&requests, Some(EAGER)), &expected);
    world.num_cached = 0;
    check("on a prefix hit", &world.each(&requests, Some(EAGER)), &expected);
    assert!(world.num_cached > 0, "nothing was found");
    check("after a turn with drafts", &world.each(&requests, None), &expected);

    let mut world = World::new(family, &options, |config| {
        config.max_batched_tokens = 7;
        config.max_running = 3;
    });
    check("in small steps", &world.together(&requests, Some(EAGER)), &expected);
    assert!(world.num_accepted() > 0 && world.num_wrong() > 0);

    let mut world = World::new(family, &options, |config| config.num_blocks = 16);
    check("with little memory", &world.together(&requests, Some(EAGER)), &expected);
    assert!(world.num_preemptions > 0, "nobody was preempted");
    assert!(world.num_accepted() > 0 && world.num_wrong() > 0);
}

mod drafts_change_nothing {
    use super::QuantizationChoice::Auto;

    test_families!(|name| super::drafts_change_nothing(name, Auto));
}

mod quantised {
    use super::{QuantizationChoice, drafts_change_nothing};

    #[test]
    fn int8() {
        drafts_change_nothing("kimi_vl", QuantizationChoice::Int8);
    }

    #[test]
    fn int4() {
        drafts_change_nothing("qwen3_moe", QuantizationChoice::Int4);
    }
}

/// A step with guesses is no decode step of a graph; tokens are the same all the same.
fn drafts_change_nothing_on_a_gpu(family: &str) {
    let options = LoadOptions { dtype: DTypeChoice::BF16, ..on_gpu() };
    let requests = &requests(9)[..3];
    let mut without = World::new(family, &options, |_| {});
    let expected = without.together(requests, None);
    assert!(without.engine.runner().num_replays() > 0, "no graph was replayed");
    let mut world = World::new(family, &options, |_| {});
    check("together", &world.together(requests, Some(EAGER)), &expected);
    assert!(world.num_accepted() > 0 && world.num_wrong() > 0);
    check("on a prefix hit", &world.each(requests, Some(EAGER)), &expected);
}

mod on_a_gpu {
    #[test]
    fn pictures_latents_and_experts() {
        super::drafts_change_nothing_on_a_gpu("kimi_vl");
    }

    #[test]
    fn grouped_queries() {
        super::drafts_change_nothing_on_a_gpu("llama31");
    }
}
