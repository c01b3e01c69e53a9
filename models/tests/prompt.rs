//! What is told of a prompt, its tokens' log-probabilities and its pooled states, is the same bit for bit whatever the engine does
//! meanwhile, and a token is as probable in a prompt as it was when it was generated.

mod common;

use common::{files, load, options};
use models::{DTypeChoice, DeviceRunner, LoadOptions};
use scheduler::{
    Engine, Event, FinishReason, PooledSum, Pooling, PromptLogprob, PromptOutput, SamplingParams,
    SchedulerConfig, Sequence, SequenceId, TokenId,
};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Grouped queries, latent attention with experts, experts alone.
const FAMILIES: [&str; 3] = ["llama31", "moonlight", "qwen3_moe"];
const VOCAB: u64 = 110;
const TOP: usize = 3;
/// The id of the first target: later than all others, so that these are the ones who give way.
const FIRST: u64 = 1000;
const OUTPUTS: [PromptOutput; 4] = [
    PromptOutput::Logprobs { first: 1, top: TOP },
    PromptOutput::Logprobs { first: 40, top: 0 },
    PromptOutput::Pooled(Pooling::Mean),
    PromptOutput::Pooled(Pooling::Last),
];

/// A token, its log-probability as bits, its rank, the alternatives.
type Told = (TokenId, u32, usize, Vec<(TokenId, u32)>);

#[derive(Debug, Default, PartialEq, Clone)]
struct Outcome {
    logprobs: Vec<Told>,
    /// As bits, and the number of rows.
    pooled: Option<(Vec<u64>, usize)>,
    tokens: Vec<Told>,
    preemptions: usize,
    cached_tokens: usize,
}

impl Outcome {
    fn of_prompt(&self) -> (&[Told], &Option<(Vec<u64>, usize)>) {
        (&self.logprobs, &self.pooled)
    }
}

struct World {
    engine: Engine<DeviceRunner>,
    vocab_size: usize,
    outcomes: BTreeMap<u64, Outcome>,
}

fn bits(top: &[(TokenId, f32)]) -> Vec<(TokenId, u32)> {
    top.iter().map(|&(token, logprob)| (token, logprob.to_bits())).collect()
}

fn prompt(seed: u64, len: usize) -> Vec<TokenId> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % VOCAB
    };
    (0..len).map(|_| next() as TokenId).collect()
}

impl World {
    fn new(family: &str, change: impl FnOnce(&mut SchedulerConfig)) -> Self {
        let mut loaded = load(family, &LoadOptions { dtype: DTypeChoice::Auto, ..options() });
        change(&mut loaded.scheduler_config);
        let engine = Engine::new(loaded.scheduler_config, loaded.runner);
        Self { engine, vocab_size: loaded.info.vocab_size, outcomes: BTreeMap::new() }
    }

    fn add(&mut self, id: u64, prompt: Vec<TokenId>, max_tokens: usize, output: Option<PromptOutput>) {
        let params = SamplingParams {
            max_tokens,
            temperature: 0.0,
            logprobs: Some(TOP),
            seed: id,
            ..Default::default()
        };
        let sequence = Sequence::new(SequenceId(id), prompt, Vec::new(), Arc::new(params), self.vocab_size);
        let sequence = sequence.unwrap();
        let sequence = match output {
            Some(output) => sequence.wanting(output).unwrap(),
            None => sequence,
        };
        self.engine.add(sequence).unwrap();
    }

    fn step(&mut self) {
        for event in self.engine.step().unwrap().events {
            let outcome = self.outcomes.entry(event.id().0).or_default();
            match event {
                Event::Started { cached_tokens, .. } => outcome.cached_tokens = cached_tokens,
                Event::PromptLogprobs { logprobs, .. } => {
                    let told = |p: PromptLogprob| (p.token, p.logprob.to_bits(), p.rank, bits(&p.top));
                    outcome.logprobs.extend(logprobs.into_iter().map(told));
                }
                Event::Pooled { pooled: PooledSum { sum, num_rows }, .. } => {
                    assert!(outcome.pooled.is_none(), "pooled once");
                    outcome.pooled = Some((sum.0.iter().map(|x| x.to_bits()).collect(), num_rows));
                }
                Event::Token { token, .. } => {
                    let logprob = token.logprob.unwrap().to_bits();
                    outcome.tokens.push((token.token, logprob, 1, bits(&token.top)));
                }
                Event::Finished { reason, preemptions, .. } => {
                    assert_eq!(reason, FinishReason::Length);
                    outcome.preemptions = preemptions;
                }
            }
        }
    }

    fn finish(&mut self) {
        while !self.engine.is_idle() {
            self.step();
        }
    }

    fn outcome(&self, id: u64) -> &Outcome {
        &self.outcomes[&id]
    }
}

/// Three prompts, each wanting each output.
fn targets() -> Vec<(Vec<TokenId>, PromptOutput)> {
    let prompts = [(1, 71), (2, 64), (3, 130)].map(|(seed, len)| prompt(seed, len));
    prompts.iter().flat_map(|prompt| OUTPUTS.map(|output| (prompt.clone(), output))).collect()
}

fn alone(family: &str) -> Vec<Outcome> {
    let run = |(prompt, output): (Vec<TokenId>, PromptOutput)| {
        let mut world = World::new(family, |_| {});
        let len = prompt.len();
        world.add(1, prompt, 0, Some(output));
        world.finish();
        let outcome = world.outcome(1).clone();
        match output {
            PromptOutput::Logprobs { first, .. } => assert_eq!(outcome.logprobs.len(), len - first),
            PromptOutput::Pooled(Pooling::Mean) => assert_eq!(outcome.pooled.as_ref().unwrap().1, len),
            PromptOutput::Pooled(Pooling::Last) => assert_eq!(outcome.pooled.as_ref().unwrap().1, 1),
        }
        outcome
    };
    targets().into_iter().map(run).collect()
}

fn check(family: &str, what: &str, world: &mut World, max_tokens: usize) {
    let expected = alone(family);
    for (id, (prompt, output)) in (FIRST..).zip(targets()) {
        world.add(id, prompt, max_tokens, Some(output));
    }
    world.finish();
    for (id, expected) in (FIRST..).zip(&expected) {
        assert_eq!(world.outcome(id).of_prompt(), expected.of_prompt(), "{family} {what}: {id}");
    }
}

#[test]
fn in_chunks_of_any_size() {
    for family in FAMILIES {
        for chunk in [1, 7, 64, 331] {
            let mut world = World::new(family, |config| {
                config.max_batched_tokens = chunk;
                config.max_running = chunk.min(4);
            });
            check(family, &format!("in chunks of {chunk}"), &mut world, 0);
        }
    }
}

#[test]
fn in_company() {
    for family in FAMILIES {
        let mut world = World::new(family, |_| {});
        for other in 0..20 {
            world.add(100 + other, prompt(50 + other, 5 + 6 * other as usize), 20, None);
            world.step();
        }
        check(family, "in company", &mut world, 3);
    }
}

#[test]
fn after_preemption() {
    for enable_prefix_caching in [true, false] {
        let mut world = World::new("moonlight", |config| {
            config.num_blocks = 40;
            config.max_batched_tokens = 9;
            config.max_running = 6;
            config.enable_prefix_caching = enable_prefix_caching;
        });
        // Decodes that grow under the prompts' feet.
        for other in 0..3 {
            world.add(100 + other, prompt(70 + other, 6), 55, None);
        }
        for _ in 0..4 {
            world.step();
        }
        check("moonlight", "after preemption", &mut world, 30);
        let preemptions: usize = (FIRST..FIRST + 12).map(|id| world.outcome(id).preemptions).sum();
        assert!(preemptions > 0, "nobody was preempted");
    }
}

/// The second time all is in memory, but what is to be told is computed; the last token's state needs no more than itself.
#[test]
fn on_a_prefix_hit() {
    for family in FAMILIES {
        let mut world = World::new(family, |_| {});
        for (id, (prompt, _)) in (50..).zip(targets()) {
            world.add(id, prompt, 1, None);
        }
        world.finish();
        check(family, "on a prefix hit", &mut world, 0);
        let cached = |id| world.outcome(FIRST + id).cached_tokens;
        assert_eq!([cached(0), cached(1), cached(2), cached(3)], [0, 35, 0, 70], "{family}");
    }
}

#[test]
fn a_token_is_as_probable_in_a_prompt_as_it_was_when_it_was_generated() {
    for family in FAMILIES {
        let mut world = World::new(family, |_| {});
        let prompt = prompt(9, 33);
        world.add(1, prompt.clone(), 30, None);
        world.finish();
        let generated = world.outcome(1).tokens.clone();
        let mut all = prompt.clone();
        all.extend(generated.iter().map(|told| told.0));
        for (id, first) in [(2, 1), (3, prompt.len())] {
            world.add(id, all.clone(), 0, Some(PromptOutput::Logprobs { first, top: TOP }));
            world.finish();
            let read = &world.outcome(id).logprobs;
            // Greedy: each is the most probable one.
            assert_eq!(read[read.len() - 30..], generated, "{family}");
        }
    }
}

/// The head runs over a step's rows in pieces: with a vocabulary for which few rows fit, the numbers and the memory are the same.
#[test]
fn rows_in_several_pieces() {
    let run = |max_num_batched_tokens| {
        let options = LoadOptions { max_num_batched_tokens, ..options() };
        let loaded = models::load(&files("llama31"), &options, &mut |_| {}).unwrap();
        assert_eq!(loaded.runner.allocated_bytes(), loaded.plan.memory.total);
        let engine = Engine::new(loaded.scheduler_config, loaded.runner);
        let mut world = World { engine, vocab_size: loaded.info.vocab_size, outcomes: BTreeMap::new() };
        world.add(1, prompt(4, 200), 2, Some(OUTPUTS[0]));
        world.finish();
        assert_eq!(world.engine.runner().allocated_bytes(), loaded.plan.memory.total, "nothing is allocated");
        world.outcome(1).clone()
    };
    assert_eq!(run(331), run(40));
}
