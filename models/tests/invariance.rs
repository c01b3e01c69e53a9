//! The same request gives the same tokens and the same log-probabilities, bit for bit, whatever else the engine does: through the
//! real scheduler, engine and runner, in the type that the checkpoint is stored in.

mod common;

use common::late::Late;
use common::{files, fixture, load, options};
use models::{
    ActivationsChoice, DTypeChoice, DeviceRunner, KvCacheDTypeChoice, Loaded, QuantizationChoice,
    WeightLayoutChoice,
};
use scheduler::{
    Engine, Event, FinishReason, ImageInput, ImageSpan, SamplingParams, SchedulerConfig, Sequence, SequenceId,
};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Prompts are of ordinary tokens: placeholders are above.
const VOCAB: usize = 110;
const MAX_TOKENS: usize = 21;

/// A model, whether its prompts hold pictures, what its weights are quantised to and how they lie, and how far activations are rounded.
#[derive(Clone, Copy)]
struct Subject {
    family: &'static str,
    pictures: bool,
    quantization: QuantizationChoice,
    activations: ActivationsChoice,
    kv_cache_dtype: KvCacheDTypeChoice,
    mla_expand_from: Option<usize>,
    weight_layout: WeightLayoutChoice,
}

/// Tokens with their log-probabilities, as bits.
type Alternatives = Vec<(u32, u32)>;

/// All that an answer consists of; log-probabilities as bits.
#[derive(Debug, Default, PartialEq, Eq, Clone)]
struct Answer {
    tokens: Vec<u32>,
    logprobs: Vec<u32>,
    top: Vec<Alternatives>,
    cached_tokens: usize,
    preemptions: usize,
}

impl Answer {
    /// What must not depend on anything but the request.
    fn content(&self) -> (&[u32], &[u32], &[Alternatives]) {
        (&self.tokens, &self.logprobs, &self.top)
    }
}

struct World {
    subject: Subject,
    engine: Engine<DeviceRunner>,
    vocab_size: usize,
    pictures: Vec<Arc<ImageInput>>,
    image_token: u32,
    answers: BTreeMap<u64, Answer>,
    num_deferred: usize,
}

#[derive(Clone)]
struct Request {
    prompt: Vec<u32>,
    /// Start of each picture and its number.
    pictures: Vec<(usize, usize)>,
    params: SamplingParams,
}

fn random(seed: u64) -> impl FnMut(usize) -> usize {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move |below| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    }
}

impl Subject {
    fn options(&self) -> models::LoadOptions {
        let Self { quantization, activations, kv_cache_dtype, mla_expand_from, weight_layout, .. } = *self;
        models::LoadOptions {
            dtype: DTypeChoice::Auto,
            quantization,
            activations,
            kv_cache_dtype,
            mla_expand_from,
            weight_layout,
            ..options()
        }
    }
}

impl World {
    fn new(subject: Subject, change: impl FnOnce(&mut SchedulerConfig)) -> Self {
        let options = subject.options();
        let Loaded { runner, info, image_processor, mut scheduler_config, .. } =
            load(subject.family, &options);
        change(&mut scheduler_config);
        scheduler_config.check().unwrap();
        let process = |name: &str| {
            let picture = image::open(fixture(subject.family).join("images").join(name)).unwrap().to_rgb8();
            let (width, height) = (picture.width() as usize, picture.height() as usize);
            Arc::new(image_processor.as_ref().unwrap().process(&picture, width, height).unwrap().into_rows())
        };
        let pictures = match subject.pictures {
            true => ["small.png", "wide.png", "dot.png", "tall.png"].map(process).to_vec(),
            false => Vec::new(),
        };
        Self {
            subject,
            engine: Engine::new(scheduler_config, runner),
            vocab_size: info.vocab_size,
            pictures,
            image_token: info.image_token_id.unwrap_or(0),
            answers: BTreeMap::new(),
            num_deferred: 0,
        }
    }

    /// A prompt of about this length; with pictures in it where the subject has them.
    fn request(&self, seed: u64, len: usize, params: SamplingParams) -> Request {
        let mut random = random(seed);
        let mut prompt: Vec<u32> = (0..len).map(|_| random(VOCAB) as u32).collect();
        let mut pictures = Vec::new();
        if self.subject.pictures {
            for at in [len / 4, len / 2] {
                let number = random(self.pictures.len());
                let start = at
                    + pictures
                        .iter()
                        .map(|&(_, n): &(usize, usize)| self.pictures[n].num_tokens)
                        .sum::<usize>();
                let placeholders = vec![self.image_token; self.pictures[number].num_tokens];
                prompt.splice(start..start, placeholders);
                pictures.push((start, number));
            }
        }
        Request { prompt, pictures, params }
    }

    /// Three requests with different ways of sampling.
    fn targets(&self) -> Vec<Request> {
        let base = SamplingParams { max_tokens: MAX_TOKENS, logprobs: Some(3), ..Default::default() };
        let greedy = SamplingParams { temperature: 0.0, ..base.clone() };
        let drawn = SamplingParams { temperature: 0.9, seed: 77, ..base.clone() };
        let penalised = SamplingParams {
            temperature: 1.1,
            seed: 5,
            top_p: 0.9,
            top_k: 40,
            repetition_penalty: 1.2,
            frequency_penalty: 0.3,
            ..base
        };
        let requests = [(1, 71, greedy), (2, 64, drawn), (3, 83, penalised)];
        requests.into_iter().map(|(seed, len, params)| self.request(seed, len, params)).collect()
    }

    fn add(&mut self, id: u64, request: &Request) {
        let sequence = self.sequence(id, request);
        self.engine.add(sequence).unwrap();
    }

    /// Held by masks of its own, which come up to `most` times late.
    fn add_held(&mut self, id: u64, request: &Request, most: usize) {
        let mut sequence = self.sequence(id, request);
        sequence.constraint = Some(Box::new(Late::new(request.params.seed, most)));
        self.engine.add(sequence).unwrap();
    }

    fn sequence(&self, id: u64, request: &Request) -> Sequence {
        let spans = request.pictures.iter();
        let spans = spans.map(|&(start, number)| ImageSpan { start, image: self.pictures[number].clone() });
        let params = Arc::new(request.params.clone());
        Sequence::new(SequenceId(id), request.prompt.clone(), spans.collect(), params, self.vocab_size)
            .unwrap()
    }

    fn step(&mut self) {
        let step = self.engine.step().unwrap();
        self.num_deferred += step.stats.deferred_tokens;
        for event in step.events {
            let answer = self.answers.entry(event.id().0).or_default();
            match event {
                Event::Started { cached_tokens, .. } => answer.cached_tokens = cached_tokens,
                Event::Token { token, .. } => {
                    answer.tokens.push(token.token);
                    answer.logprobs.extend(token.logprob.map(f32::to_bits));
                    answer.top.push(token.top.iter().map(|&(token, x)| (token, x.to_bits())).collect());
                }
                Event::PromptLogprobs { .. } | Event::Pooled { .. } => panic!("nobody asked for it"),
                Event::Finished { reason, preemptions, .. } => {
                    assert_eq!(reason, FinishReason::Length);
                    answer.preemptions = preemptions;
                }
            }
        }
    }

    fn finish(&mut self) {
        let mut steps = 0;
        while !self.engine.is_idle() {
            self.step();
            steps += 1;
            assert!(steps < 20_000, "no end in sight");
        }
    }

    fn answer(&self, id: u64) -> &Answer {
        &self.answers[&id]
    }

    fn compare(&self, ids: impl IntoIterator<Item = u64>, expected: &[Answer]) {
        for (id, expected) in ids.into_iter().zip(expected) {
            assert_eq!(self.answer(id).content(), expected.content(), "sequence {id}");
        }
    }
}

/// Each request by itself in an engine of its own, its prompt in one piece.
fn alone(subject: Subject, requests: &[Request]) -> Vec<Answer> {
    let run = |request: &Request| {
        let mut world = World::new(subject, |_| {});
        world.add(1, request);
        world.finish();
        let answer = world.answer(1).clone();
        assert_eq!(answer.tokens.len(), MAX_TOKENS);
        assert_eq!(answer.logprobs.len(), MAX_TOKENS);
        answer
    };
    requests.iter().map(run).collect()
}

fn targets_alone(subject: Subject) -> (Vec<Request>, Vec<Answer>) {
    let targets = World::new(subject, |_| {}).targets();
    let answers = alone(subject, &targets);
    (targets, answers)
}

fn again(subject: Subject) {
    let (targets, expected) = targets_alone(subject);
    assert_eq!(alone(subject, &targets), expected);
}

fn among_32_others(subject: Subject) {
    let (targets, expected) = targets_alone(subject);
    let mut world = World::new(subject, |_| {});
    let mut random = random(99);
    for other in 0..32 {
        let params = SamplingParams {
            max_tokens: 1 + random(30),
            temperature: [0.0, 0.7, 1.3][random(3)],
            seed: other,
            ..Default::default()
        };
        let request = world.request(1000 + other, 4 + random(90), params);
        world.add(100 + other, &request);
        if let Some(target) = targets.get(other as usize / 10).filter(|_| other % 10 == 5) {
            world.add(other / 10, target);
        }
        world.step();
    }
    world.finish();
    world.compare(0..3, &expected);
}

fn in_chunks(subject: Subject, chunk: usize) {
    let (targets, expected) = targets_alone(subject);
    let mut world = World::new(subject, |config| {
        config.max_batched_tokens = chunk;
        config.max_running = chunk.min(3);
    });
    for (id, target) in targets.iter().enumerate() {
        world.add(id as u64, target);
    }
    world.finish();
    world.compare(0..3, &expected);
}

fn after_preemption(subject: Subject, enable_prefix_caching: bool) {
    let (targets, expected) = targets_alone(subject);
    // The prompts fit, what is generated does not.
    let prompts: usize = targets.iter().map(|target| target.prompt.len()).sum();
    let mut world = World::new(subject, |config| {
        config.num_blocks = prompts / config.block_size + 6;
        config.enable_prefix_caching = enable_prefix_caching;
    });
    for (id, target) in targets.iter().enumerate() {
        world.add(id as u64, target);
    }
    world.finish();
    world.compare(0..3, &expected);
    let preemptions: usize = (0..3).map(|id| world.answer(id).preemptions).sum();
    assert!(preemptions > 0, "nobody was preempted");
}

fn on_a_prefix_hit(subject: Subject) {
    let (targets, expected) = targets_alone(subject);
    let mut world = World::new(subject, |_| {});
    for (id, target) in (0..).zip(&targets) {
        // Another request with the same beginning goes before; later the same request comes once more.
        let mut other = target.clone();
        let len = other.prompt.len();
        other.prompt[len - 10..].fill(7);
        other.params = SamplingParams { max_tokens: 3, ..Default::default() };
        world.add(100 + id, &other);
        world.finish();
        world.add(id, target);
        world.finish();
        world.add(10 + id, target);
        world.finish();
        for (id, least) in [(id, len - 15), (10 + id, len - 5)] {
            let cached = world.answer(id).cached_tokens;
            assert!(cached >= least && cached < len, "{cached} of {len} were cached");
        }
    }
    world.compare(0..3, &expected);
    world.compare(10..13, &expected);
}

/// A follow-up turn reads what was generated as a prompt; it must not matter whether its blocks are found or computed.
fn after_a_turn(subject: Subject) {
    let (targets, answers) = targets_alone(subject);
    let follow_ups: Vec<Request> = targets
        .iter()
        .zip(&answers)
        .map(|(target, answer)| {
            let mut request = target.clone();
            request.prompt.extend_from_slice(&answer.tokens);
            request.prompt.extend([3, 1, 4]);
            request
        })
        .collect();
    let expected = alone(subject, &follow_ups);
    let mut world = World::new(subject, |_| {});
    for (id, (target, follow_up)) in (0..).zip(targets.iter().zip(&follow_ups)) {
        world.add(id, target);
        world.finish();
        world.add(10 + id, follow_up);
        world.finish();
        // Where a prompt's rows are computed in another form, what was generated is not found.
        let cached = world.answer(10 + id).cached_tokens;
        match subject.mla_expand_from {
            None => assert!(cached > target.prompt.len(), "only {cached} were cached"),
            Some(_) => assert!(
                (target.prompt.len() - 5..=target.prompt.len()).contains(&cached),
                "{cached} were cached"
            ),
        }
    }
    world.compare(10..13, &expected);
}

fn several_answers_to_one_prompt(subject: Subject) {
    let prompt = World::new(subject, |_| {}).targets()[1].clone();
    let with_seed =
        |seed| Request { params: SamplingParams { seed, ..prompt.params.clone() }, ..prompt.clone() };
    let requests: Vec<Request> = (0..4).map(with_seed).collect();
    let expected = alone(subject, &requests);
    let mut world = World::new(subject, |_| {});
    for (id, request) in (0..).zip(&requests) {
        world.add(id, request);
    }
    world.finish();
    world.compare(0..4, &expected);
    assert!((1..4).all(|id| world.answer(id).cached_tokens > 0), "the prompt is shared");
    assert_ne!(expected[0].tokens, expected[1].tokens);
}

/// A step that goes on without somebody's mask changes no bit: beside free sequences, in chunks, and with too little memory.
fn with_late_masks(subject: Subject) {
    let targets = World::new(subject, |_| {}).targets();
    let expected: Vec<Answer> = targets
        .iter()
        .map(|target| {
            let mut world = World::new(subject, |_| {});
            world.add_held(1, target, 0);
            world.finish();
            assert_eq!(world.num_deferred, 0);
            world.answer(1).clone()
        })
        .collect();
    let free = targets_alone(subject).1;
    assert_ne!(expected[0].tokens, free[0].tokens, "masks that change nothing prove nothing");
    let blocks = |size: usize| targets.iter().map(|target| target.prompt.len() / size + 1).sum::<usize>();
    let in_chunks = |config: &mut SchedulerConfig| (config.max_batched_tokens, config.max_running) = (29, 8);
    let with_little_memory = |config: &mut SchedulerConfig| config.num_blocks = blocks(config.block_size) + 7;
    let changes: [&dyn Fn(&mut SchedulerConfig); 2] = [&in_chunks, &with_little_memory];
    for (change, has_preemptions) in changes.into_iter().zip([false, true]) {
        let mut world = World::new(subject, change);
        for (id, target) in (0..).zip(&targets) {
            world.add_held(id, target, 5);
            world.add(10 + id, target);
        }
        world.finish();
        world.compare(0..3, &expected);
        world.compare(10..13, &free);
        assert!(world.num_deferred > 20, "only {} were deferred", world.num_deferred);
        let preemptions = world.answers.values().map(|answer| answer.preemptions).sum::<usize>();
        assert!(preemptions > 0 || !has_preemptions, "nobody was preempted");
    }
}

/// One thread or several: the same.
fn on_other_threads(subject: Subject) {
    let (targets, expected) = targets_alone(subject);
    for threads in [1, 3] {
        let options = models::LoadOptions { threads: Some(threads), ..subject.options() };
        let loaded = models::load(&files(subject.family), &options, &mut |_| {}).unwrap();
        let mut world = World::new(subject, |_| {});
        world.engine = Engine::new(loaded.scheduler_config, loaded.runner);
        for (id, target) in (0..).zip(&targets) {
            world.add(id, target);
        }
        world.finish();
        world.compare(0..3, &expected);
    }
}

macro_rules! subjects {
    ($($module:ident: $family:literal, $pictures:literal, $quantization:ident, $activations:ident, $kv:ident, $expand:expr, $layout:ident;)*) => {
        $(mod $module {
            use super::*;

            const SUBJECT: Subject = Subject {
                family: $family,
                pictures: $pictures,
                quantization: QuantizationChoice::$quantization,
                activations: ActivationsChoice::$activations,
                kv_cache_dtype: KvCacheDTypeChoice::$kv,
                mla_expand_from: $expand,
                weight_layout: WeightLayoutChoice::$layout,
            };

            #[test]
            fn again() {
                super::again(SUBJECT);
            }

            #[test]
            fn among_32_others() {
                super::among_32_others(SUBJECT);
            }

            #[test]
            fn in_chunks_of_1() {
                in_chunks(SUBJECT, 1);
            }

            #[test]
            fn in_chunks_of_7() {
                in_chunks(SUBJECT, 7);
            }

            #[test]
            fn in_chunks_of_64() {
                in_chunks(SUBJECT, 64);
            }

            #[test]
            fn after_preemption_found_again() {
                after_preemption(SUBJECT, true);
            }

            #[test]
            fn after_preemption_computed_again() {
                after_preemption(SUBJECT, false);
            }

            #[test]
            fn on_a_prefix_hit() {
                super::on_a_prefix_hit(SUBJECT);
            }

            #[test]
            fn after_a_turn() {
                super::after_a_turn(SUBJECT);
            }

            #[test]
            fn several_answers_to_one_prompt() {
                super::several_answers_to_one_prompt(SUBJECT);
            }

            #[test]
            fn with_late_masks() {
                super::with_late_masks(SUBJECT);
            }

            #[test]
            fn on_other_threads() {
                super::on_other_threads(SUBJECT);
            }
        })*
    };
}

// `Auto` is what the machine has instructions for, `Int8` is there on every machine.
subjects! {
    kimi_vl_text: "kimi_vl", false, Auto, F32, Auto, None, Auto;
    kimi_vl_text_rounded: "kimi_vl", false, Auto, Auto, Auto, None, Auto;
    kimi_vl_pictures: "kimi_vl", true, Auto, Auto, Auto, None, Auto;
    grouped_queries: "llama31", false, Auto, F32, Auto, None, Auto;
    grouped_queries_rounded: "llama31", false, Auto, Auto, Auto, None, Auto;
    norms_of_heads: "chameleon", false, Auto, Auto, Auto, None, Auto;
    experts: "qwen3_moe", false, Auto, F32, Auto, None, Auto;
    experts_rounded: "qwen3_moe", false, Auto, Auto, Auto, None, Auto;
    gated_experts: "qwen2_moe", false, Auto, F32, Auto, None, Auto;
    gated_experts_int4_rounded: "qwen2_moe", false, Int4, Int8, Auto, None, Auto;
    experts_compact: "qwen3_moe", false, Auto, F32, Auto, None, Compact;
    qwen_vl_pictures: "qwen2_5_vl", true, Auto, F32, Auto, None, Auto;
    qwen_vl_pictures_rounded: "qwen2_5_vl", true, Int8, Auto, Int8, None, Auto;
    qwen3_vl_pictures: "qwen3_vl", true, Auto, F32, Auto, None, Auto;
    qwen3_vl_pictures_rounded: "qwen3_vl", true, Int8, Auto, Int8, None, Auto;
    qwen3_vl_experts_pictures: "qwen3_vl_moe", true, Auto, F32, Auto, None, Auto;
    kimi_vl_pictures_compact: "kimi_vl", true, Auto, Auto, Auto, None, Compact;
    norms_on_both_sides: "glm4", false, Auto, Auto, Auto, None, Auto;
    a_norm_of_all_heads: "minimax_m2", false, Auto, Auto, Auto, None, Auto;
    experts_behind_dense_layers: "glm4_moe", false, Auto, F32, Auto, None, Auto;
    kimi_vl_text_int8: "kimi_vl", false, Int8, F32, Auto, None, Auto;
    kimi_vl_pictures_int4: "kimi_vl", true, Int4, Int8, Auto, None, Auto;
    grouped_queries_int4: "llama31", false, Int4, F32, Auto, None, Auto;
    experts_int8: "qwen3_moe", false, Int8, Int8, Auto, None, Auto;
    experts_int4: "qwen3_moe", false, Int4, F32, Auto, None, Auto;
    experts_int4_rounded: "qwen3_moe", false, Int4, Int8, Auto, None, Auto;
    kv_int8: "llama31", false, Auto, F32, Int8, None, Auto;
    latents_int8: "kimi_vl", true, Auto, Auto, Int8, None, Auto;
    expanded: "kimi_vl", false, Auto, F32, Auto, Some(0), Auto;
    expanded_later: "kimi_vl", true, Int8, Int8, Int8, Some(37), Auto;
    expanded_rounded: "kimi_vl", false, Auto, Auto, Auto, Some(20), Auto;
}
